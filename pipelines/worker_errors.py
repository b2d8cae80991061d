"""What a worker says to the user, carried as one word through any engine's logs and exceptions."""

import base64
import re

from cxr_records.errors import CxrError

WORKER_DIED = "a worker process died, perhaps for want of memory"
_MARK = re.compile(r"@@cxr-error:([A-Za-z0-9+/=]+)@@")


def mark(error: Exception) -> str:
    """Returns an error's line as a word that `raise_marked` finds again."""
    if isinstance(error, OSError) and error.strerror:
        text = f"{error.filename or 'the system says'}: {error.strerror}"
    else:
        text = " ".join(str(error).split())
    return f"@@cxr-error:{base64.b64encode(text.encode()).decode()}@@"


def is_marked(text: str) -> bool:
    """Tells whether a worker's error is in a text."""
    return bool(_MARK.search(text))


def raise_marked(text: str) -> None:
    """Raises the first worker's error in a text, if any.

    Raises:
        CxrError: in the worker's own words.
    """
    if match := _MARK.search(text):
        raise CxrError(base64.b64decode(match[1]).decode())
