"""What all kinds of image files share: the largest that is taken, and how a file that is none is refused."""

import contextlib
from collections.abc import Iterator

from PIL import UnidentifiedImageError

from cxr_records.errors import CxrError

MAX_PIXELS = 64 << 20  # 8192 x 8192; NIH's originals before release were at most 3827 x 4715


class ImageDecodeError(ValueError):
    """The bytes are no image that we can decode; the message is the reason that rejected.csv gives."""


class DecoderMissingError(ImageDecodeError):
    """What decodes this kind is not installed here; the message names it. With it, the file may be read."""


@contextlib.contextmanager
def decoding() -> Iterator[None]:
    """Turns whatever a decoder raises on bad bytes into ImageDecodeError."""
    try:
        yield
    except (ImageDecodeError, CxrError, MemoryError):  # the last is about the machine, not the image
        raise
    except UnidentifiedImageError as error:  # Pillow names the address of a buffer
        raise ImageDecodeError("cannot be decoded: no image of the kind expected") from error
    except RecursionError as error:
        raise ImageDecodeError("cannot be decoded: parts within parts without end") from error
    except Exception as error:
        # Decoders raise OSError, SyntaxError, ValueError, struct.error, zlib.error and others on bad
        # bytes; which one is no contract.
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ImageDecodeError(f"cannot be decoded: {reason}") from error


def check_pixels(width: int, height: int) -> None:
    """Refuses images of more than MAX_PIXELS before any memory is taken for them."""
    if width * height > MAX_PIXELS:
        raise ImageDecodeError(f"{width}x{height} pixels, more than the {MAX_PIXELS:,} allowed")
