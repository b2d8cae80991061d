"""The door by which all text of a command leaves: its standard output and its standard error.

Credentials stay behind, and so does what would steer a terminal. A reader that has gone (`| head -1`), a
stream that was closed before the start (>&-) and a full disk behind one do not stop the work; whoever started
the command may not want to hear of it.
"""

import contextlib
import io
import os
import re
import sys
from collections.abc import Iterator
from typing import Any

from cxr_records.urls import redacted_text

# Letters that move the cursor, colour, or do worse; but for ends of lines and what bars of progress need.
_STEERING = re.compile(r"[\x00-\x07\x0b\x0c\x0e-\x1f\x7f-\x9f]")


def shown(text: str) -> str:
    """Returns a text without letters that steer a terminal: \\x1b stands for the one of its name.

    Names of files, and cells of tables, may hold any.
    """
    return _STEERING.sub(lambda letter: f"\\x{ord(letter[0]):02x}", text)


def one_line(text: str) -> str:
    """Returns a text as one line: `shown`, and ends of lines in it as \\n, so that it passes for no other."""
    return shown(text).translate({ord(c): repr(c)[1:-1] for c in "\b\t\n\r\u2028\u2029"})


class Door:
    """A text stream that tells no credentials and never fails; what went wrong is kept in `error`."""

    def __init__(self, stream: Any):
        self._stream = stream
        self.error: OSError | None = None
        self._closed = False

    def write(self, text: str) -> int:
        """Writes a text, unless an earlier one could not be written."""
        if not isinstance(text, str):
            raise TypeError(f"expected text, found {type(text).__name__}")
        with self._minding():
            if not self._closed:
                self._stream.write(redacted_text(shown(text)))
        return len(text)

    def flush(self) -> None:
        """Sends what was written on its way."""
        with self._minding():
            if not self._closed:
                self._stream.flush()

    @contextlib.contextmanager
    def _minding(self) -> Iterator[None]:
        try:
            yield
        except BrokenPipeError:  # the reader has read enough
            self._closed = True
        except OSError as error:
            self._closed, self.error = True, error

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextlib.contextmanager
def doors() -> Iterator[tuple[Door, Door]]:
    """Puts doors before standard output and standard error, for as long as it is open."""
    before = sys.stdout, sys.stderr
    both = Door(before[0] or io.StringIO()), Door(before[1] or io.StringIO())
    for stream in before:
        if isinstance(stream, io.TextIOWrapper):  # names of files may hold what the terminal cannot show
            stream.reconfigure(errors="backslashreplace")
    sys.stdout, sys.stderr = both
    try:
        yield both
    finally:
        for door in both:
            door.flush()
        sys.stdout, sys.stderr = before


def reopen() -> None:
    """Opens what was closed before the start (>&-, 2>&-, <&-) as the empty device.

    Otherwise the next file that is opened would get the number of standard output, and all that is printed.
    """
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)
    for name, number, mode in (("stdin", 0, "r"), ("stdout", 1, "w"), ("stderr", 2, "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, mode, closefd=False))  # noqa: SIM115 - as long as the process
