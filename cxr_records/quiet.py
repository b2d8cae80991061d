"""Keeps TensorFlow's own lines at start-up, which are no user's business, off the screen."""

import contextlib
import importlib
import os
import sys
import tempfile
from collections.abc import Iterator


def load_tensorflow() -> None:
    """Imports TensorFlow; what it writes meanwhile is shown only where the import fails.

    It writes to the process' stderr from C++, before any setting of its own is heard.

    Raises:
        ModuleNotFoundError: it is not installed.
    """
    if "tensorflow" in sys.modules:
        return
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    with _stderr_kept():
        # Looking for devices is what makes it complain of absent drivers.
        importlib.import_module("tensorflow").config.list_physical_devices()


@contextlib.contextmanager
def _stderr_kept() -> Iterator[None]:
    """Sends what is written to stderr to a file, and shows it if something goes wrong."""
    sys.stderr.flush()
    screen = os.dup(2)
    with tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), 2)
        try:
            yield
        except BaseException:
            file.seek(0)
            os.write(screen, file.read())
            raise
        finally:
            os.dup2(screen, 2)
            os.close(screen)
