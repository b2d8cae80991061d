"""What users read instead of a traceback: one line of what was found, expected, and to be done.

A message names arguments of `cxr_records.build` and its like, in backquotes: `copies_max=0`, `store`. The
command line turns these into its options (`cli.in_options`), so that each message is written once.
"""

import re

from cxr_records.urls import redacted_text

# What Python, its packages and the C++ below them say where memory, or what limits leave of it, is used up.
# OpenBLAS says that it could start fewer threads, and goes on.
_NO_MEMORY = re.compile(
    r"^[\w.]*MemoryError\b|can't start new thread|std::bad_alloc|Cannot allocate memory|"
    "(?<!blas_thread_init: )pthread_create failed|failed to map segment",
    re.MULTILINE,
)
NO_MEMORY = (
    "not enough memory, or threads, for what runs at once; run the same again with fewer `workers`, or under "
    "larger limits (ulimit -v, ulimit -u)"
)


def is_out_of_memory(error: BaseException | str) -> bool:
    """Tells whether an error, or a line or more of a log, says that memory or threads are used up."""
    return isinstance(error, MemoryError) or bool(_NO_MEMORY.search(str(error)))


class CxrError(Exception):
    """The work failed: the data or the machine is not as it must be. Commands exit with code 1.

    No message of ours tells a URL's credentials, wherever it is shown.
    """

    exit_code = 1

    def __init__(self, text: str = ""):
        super().__init__(redacted_text(text))


class UsageError(CxrError):
    """What was asked for is wrong: an argument, or a path that does not fit it. Commands exit with code 2."""

    exit_code = 2


class FoundProblems(CxrError):
    """The work was done and what it found is not acceptable. Commands exit with code 3."""

    exit_code = 3
