"""What users read instead of a traceback: one line of what was found, expected, and to be done.

A message names arguments of `cxr_records.build` and its like, in backquotes: `copies_max=0`, `store`. The
command line turns these into its options (`cli.in_options`), so that each message is written once.
"""

from cxr_records.urls import redacted_text


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
