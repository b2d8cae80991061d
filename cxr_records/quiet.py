"""Keeps what libraries write on their own account, which is no user's business, off the screen."""

import contextlib
import importlib
import os
import sys
import tempfile
import threading
from collections.abc import Iterator

_ONE_AT_A_TIME = threading.Lock()


def load_tensorflow() -> None:
    """Imports TensorFlow; what it writes meanwhile is shown only where the import fails.

    It writes to the process' stderr from C++, before any setting of its own is heard.

    Raises:
        ModuleNotFoundError: it is not installed.
    """
    if "tensorflow" in sys.modules:
        return
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    lines: list[str] = []
    try:
        with stderr_kept() as lines:
            # Looking for devices is what makes it complain of absent drivers.
            importlib.import_module("tensorflow").config.list_physical_devices()
    except BaseException:
        for line in lines:
            print(line, file=sys.stderr)
        raise


@contextlib.contextmanager
def stderr_kept() -> Iterator[list[str]]:
    """Keeps off the screen what is written to the process' stderr; its lines are in the list at the end."""
    lines: list[str] = []
    # One at a time: of two at once, one would take the other's file for the screen.
    with _ONE_AT_A_TIME, tempfile.TemporaryFile() as file:
        try:
            screen = os.dup(2)
        except OSError:  # the command has no stderr
            yield lines
            return
        if sys.stderr is not None:
            sys.stderr.flush()
        os.dup2(file.fileno(), 2)
        try:
            yield lines
        finally:
            os.dup2(screen, 2)
            os.close(screen)
            file.seek(0)
            lines += file.read().decode(errors="replace").splitlines()
