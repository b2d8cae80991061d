"""What a decoder of JPEG passes over: damage for which libjpeg warns, or which leaves some scans out."""

import re

import numpy as np
import simplejpeg

from cxr_records.decoding import ImageDecodeError

MAX_SCANS = 100  # a progressive file has about ten; each costs a pass over all pixels, and few bytes

# Any marker with a length after it, or the end mark: what stands among pixels is stuffed, or a restart.
_MARKER = re.compile(rb"\xff([^\x00\x01\xd0-\xd8\xff])")
_HEADERS_OF_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}  # SOF (ISO 10918-1, table B.1)
_TABLES, _SCAN, _END = 0xDB, 0xDA, 0xD9
_COEFFICIENTS = 64  # of a block of 8 x 8 pixels


def check_jpeg(data: bytes) -> None:
    """Decodes a JPEG file once more, to one eighth, where each of libjpeg's warnings is an error.

    Pillow does not tell them. JPEG has no checksums: where a flipped bit makes another valid code of
    equal standing, nothing can be known of it, and nothing is. Of several pictures, the first is checked.

    Raises:
        ImageDecodeError: libjpeg warns of the file, scans are missing, or so many that they take minutes.
    """
    try:
        finished = _is_finished(data)
    except ImageDecodeError:
        raise
    except (IndexError, KeyError, ValueError) as error:
        raise ImageDecodeError("damaged JPEG: its headers contradict each other") from error
    try:
        simplejpeg.decode_jpeg(data, "GRAY", min_height=1, min_width=1, min_factor=8, strict=True)
    except ValueError as error:
        text = " ".join(str(error).split())
        if "subsampling" in text:  # TurboJPEG knows no more than what cameras and scanners write
            raise ImageDecodeError(
                "JPEG with rare or damaged sampling factors, which cannot be checked; save it as PNG"
            ) from error
        raise ImageDecodeError(f"damaged JPEG: {text.removeprefix('Corrupt JPEG data: ')}") from error
    if not finished:
        raise ImageDecodeError("damaged JPEG: its last scans are missing")


def decode_grey_jpeg(data: bytes, size: int) -> np.ndarray | None:
    """Decodes a grey JPEG a third quicker than Pillow, to the same pixels: both take libjpeg's exact DCT.

    Returns:
        uint8 [size, size]; None for a file of another kind or size, or of which libjpeg warns, which is for
        Pillow to judge.
    """
    try:
        if simplejpeg.decode_jpeg_header(data)[:3] != (size, size, "Gray"):
            return None
        pixels: np.ndarray = simplejpeg.decode_jpeg(data, "GRAY", strict=True)
    except ValueError:
        return None
    return pixels[..., 0]


def _is_finished(data: bytes) -> bool:
    """Tells whether the scans bring every coefficient of every component to its last bit."""
    missing: dict[int, bytearray] = {}  # by component: for each coefficient, how many low bits
    at, scans = 2, 0
    while (marker := _MARKER.search(data, at)) and (kind := marker[1][0]) != _END:
        at = marker.end() + int.from_bytes(data[marker.end() : marker.end() + 2], "big")
        body = data[marker.end() + 2 : at]
        if kind == _TABLES:
            _check_tables(body)
        elif kind in _HEADERS_OF_FRAMES:
            # Bits, height, width, the number of components; three bytes of each (B.2.2).
            missing = {number: bytearray(b"\xff" * _COEFFICIENTS) for number in body[6 : 6 + 3 * body[5] : 3]}
        elif kind == _SCAN:
            if (scans := scans + 1) > MAX_SCANS:
                raise ImageDecodeError(f"JPEG of more than {MAX_SCANS} scans")
            # The number of components, two bytes of each, first and last coefficient, bits (B.2.3).
            first, last, bits = body[1 + 2 * body[0] : 4 + 2 * body[0]]
            for number in body[1 : 1 + 2 * body[0] : 2]:
                missing[number][first : last + 1] = bytes([bits & 0x0F]) * (last + 1 - first)
    return not any(any(bits) for bits in missing.values())


def _check_tables(body: bytes) -> None:
    """Refuses quantization tables by which frequencies vanish, of which libjpeg says nothing (B.2.4.1)."""
    while body:
        wide = body[0] >> 4  # whether its numbers have two bytes
        end = 1 + (_COEFFICIENTS << wide)
        table = body[1:end]
        if not all(table[at : at + 1 + wide].strip(b"\0") for at in range(0, len(table), 1 + wide)):
            raise ImageDecodeError("damaged JPEG: zeros in its quantization tables")
        body = body[end:]
