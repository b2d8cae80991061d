"""What a decoder of PNG passes over: wrong checksums, missing rows and colours, parts that no pixel needs.

And a decoder of the plainest files, which are nearly all of NIH's: four times as fast as Pillow, to the same
pixels. It says nothing of what it does not take: that is Pillow's.
"""

import zlib
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import NamedTuple

import numpy as np
from PIL import Image

from cxr_records.decoding import MAX_PIXELS, ImageDecodeError

# Both are a matter of speed alone, and may be missing: isal, where it has no wheel; the extension, where the
# package was installed without a C compiler.
_unfilter: Callable[[bytes, int, int], bytes | None] | None
try:
    from cxr_records._pixels import unfilter as _unfilter
except ImportError:
    _unfilter = None
_inflate: ModuleType
try:
    from isal import isal_zlib as _inflate
except ImportError:
    _inflate = zlib

SIGNATURE = b"\x89PNG\r\n\x1a\n"
MAX_TEXT_BYTES = 1 << 20  # of a text that may say which way is up, inflated; Pillow takes no more

# Chunks that Pillow reads and no pixel needs: colour profiles, texts, the further pictures of an animation.
# It refuses a whole file for a profile or text that is large or odd.
_UNNEEDED = {b"iCCP", b"sRGB", b"gAMA", b"cHRM", b"pHYs", b"acTL", b"fcTL", b"fdAT"}
_TEXTS = {b"tEXt", b"zTXt", b"iTXt"}
# Texts in which programs write the orientation, besides the chunk eXIf.
_ORIENTATION = (b"Raw profile type exif\0", b"XML:com.adobe.xmp\0")
# Chunks that a reader has to understand (PNG 3rd edition, 11.2); their names begin with a capital.
_CRITICAL = {b"IHDR", b"PLTE", b"IDAT", b"IEND"}
_HEADER_BYTES = 13
MAX_CHUNKS = 200_000  # of the largest image, cut into pieces of 8 KiB as libpng does, there are 64,000

# Samples per pixel by colour type (PNG, 11.2.1); of _PALETTE the pixels are numbers of colours.
_SAMPLES = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
_PALETTE = 3
# First column and row, and steps, of the passes of an interlaced image (PNG, 8.2).
_PASSES = (
    (0, 0, 8, 8),
    (4, 0, 8, 8),
    (0, 4, 4, 8),
    (2, 0, 4, 4),
    (0, 2, 2, 4),
    (1, 0, 2, 2),
    (0, 1, 1, 2),
)
# Bits, colour type, compression, filter method, interlacing of what `grey_pixels` takes: 8-bit grey by rows.
_PLAIN = b"\x08\0\0\0\0"
_UNREAD = {b"tIME", b"bKGD"}  # of these Pillow reads nothing
# Where a block of a stream has a code of a distance that nothing in it uses, as in flat or noisy pictures,
# zlib sees damage to that code, and ISA-L does not: the bytes that come out, and their checksum, are right
# all the same, and the checksum of the chunk tells of it. Small streams go to zlib, which has them soon too.
_SMALL_STREAM = 16 << 10
_MAX_WIDTH = 1 << 14  # of what `grey_pixels` takes: the extension keeps 17 rows
_UNTOUCHED = 1  # what every sample is before it is decoded: rarer in real images than 0


class Chunk(NamedTuple):
    """A chunk of a PNG: its name, and all of it, with length and checksum."""

    kind: bytes
    whole: memoryview


def decoder() -> str:
    """Names what decodes plain PNG files of 8-bit grey here. To other files, and to pixels, it is all one."""
    if _unfilter is None:
        return "pillow"
    return f"{_inflate.__name__.partition('.')[0]} and cxr_records"


def decode_grey(data: bytes) -> np.ndarray | None:
    """Decodes a plain PNG file of 8-bit grey, fast; Python's lock is free for most of the time.

    Returns:
        uint8 [height, width], not to be written to; None where the file is of another kind or damaged, or
        the extension is missing: `images.decode_image` reads it, or says what is wrong with it.
    """
    if _unfilter is None or not data.startswith(SIGNATURE):
        return None
    try:
        return grey_pixels(needed_chunks(data))
    except ImageDecodeError:
        return None


def grey_pixels(chunks: Sequence[Chunk]) -> np.ndarray | None:
    """Decodes the chunks of a plain PNG file, as `decode_grey` does.

    Args:
        chunks: as `needed_chunks` gives them.
    """
    # Only what Pillow would take too, and where it could see no other picture: whoever loosens this finds in
    # test_pixels.py a file for each part of it.
    header = chunks[0].whole[8:21]
    width, height = int.from_bytes(header[:4], "big"), int.from_bytes(header[4:8], "big")
    if _unfilter is None or header[8:] != _PLAIN or not 0 < width <= _MAX_WIDTH:
        return None
    if not 0 < height <= MAX_PIXELS // width:
        return None
    kinds = [chunk.kind for chunk in chunks]
    if not {b"IHDR", b"IDAT", b"IEND"} | _UNREAD >= set(kinds):
        return None
    first, count = kinds.index(b"IDAT"), kinds.count(b"IDAT")
    if kinds[first : first + count] != [b"IDAT"] * count:  # Pillow reads to the first that is none
        return None
    packed = b"".join(chunk.whole[8:-4] for chunk in chunks[first : first + count])
    num_bytes = height * (1 + width)
    if not _is_zlib(packed[:2], num_bytes):
        return None
    inflate = _inflate if len(packed) > _SMALL_STREAM else zlib
    inflater = inflate.decompressobj()
    try:
        rows = inflater.decompress(packed, num_bytes + 1)  # never more, whatever the file says
    except inflate.error:
        return None
    # At the end of the stream its checksum was right.
    if len(rows) != num_bytes or not inflater.eof or inflater.unused_data:
        return None
    pixels = _unfilter(rows, width, height)
    return None if pixels is None else np.frombuffer(pixels, np.uint8).reshape(height, width)


def _is_zlib(head: bytes, num_bytes: int) -> bool:
    """Tells whether two bytes begin a zlib stream without a preset dictionary (RFC 1950, 2.2).

    Its window must be the largest, or larger than all that it holds: whether a stream reaches beyond its
    window, one inflater checks, and another does not.
    """
    if len(head) < 2 or int.from_bytes(head, "big") % 31 or head[0] & 0x0F != 8 or head[1] & 0x20:
        return False
    window = head[0] >> 4
    return window == 7 or (window < 7 and num_bytes <= 256 << window)


def needed_chunks(data: bytes) -> list[Chunk]:
    """Checks every chunk of a PNG file, and returns those that a pixel may need.

    All chunks count, also those that are left out: where one byte is wrong, others may be. What follows
    the end chunk is no part of the image and is not looked at.

    Raises:
        ImageDecodeError: a checksum is wrong, the file ends early, its chunks are not in order, or it needs
            a reader that knows more.
    """
    view = memoryview(data)
    at, kept = len(SIGNATURE), list[Chunk]()
    kind, count, kinds = b"", 0, set[bytes]()
    while kind != b"IEND":
        if (count := count + 1) > MAX_CHUNKS:
            raise ImageDecodeError(f"PNG of more than {MAX_CHUNKS:,} chunks")
        # Four bytes of length, four of name, the data, and a CRC-32 of name and data (PNG, 5.3).
        end = at + 12 + int.from_bytes(view[at : at + 4], "big")
        if end > len(data) or len(data) - at < 12:
            raise ImageDecodeError(f"damaged PNG: cut short at byte {len(data):,}, or a length is wrong")
        kind = data[at + 4 : at + 8]
        if _inflate.crc32(view[at + 4 : end - 4]) != int.from_bytes(view[end - 4 : end], "big"):
            name = kind.decode("latin-1").encode("unicode_escape").decode()
            raise ImageDecodeError(f"damaged PNG: the checksum of chunk {name} at byte {at:,} is wrong")
        if not kind[0] & 0x20 and kind not in _CRITICAL:
            raise ImageDecodeError(f"PNG with a chunk that only some readers know: {kind.decode('latin-1')}")
        if (kind == b"IHDR") != (count == 1) or (count == 1 and end - at != 12 + _HEADER_BYTES):
            raise ImageDecodeError("damaged PNG: it does not begin with its one header")
        if kind == b"PLTE" and kinds & {b"PLTE", b"IDAT"}:
            raise ImageDecodeError("damaged PNG: a second palette, or one after the pixels")
        if kind not in _UNNEEDED and (kind not in _TEXTS or _may_turn(kind, data[at + 8 : end - 4])):
            kept.append(Chunk(kind, view[at:end]))
        kinds.add(kind)
        at = end
    if b"IDAT" not in kinds:
        raise ImageDecodeError("damaged PNG: no pixels in it")
    if data[25] == _PALETTE and b"PLTE" not in kinds:
        raise ImageDecodeError("damaged PNG: the colours of its palette are missing")
    return kept


def png_of(chunks: Sequence[Chunk], data: bytes) -> bytes:
    """Returns the file of these chunks alone: the whole file itself, where they are all of it."""
    parts: list[bytes | memoryview] = [SIGNATURE, *(chunk.whole for chunk in chunks)]
    return data if sum(map(len, parts)) == len(data) else b"".join(parts)


def blank(image: Image.Image) -> Image.Image:
    """Returns what `check_decoded` wants a PNG to be decoded into: rows that nothing has written show."""
    samples = len(image.getbands())
    return Image.new(image.mode, image.size, _UNTOUCHED if samples == 1 else (_UNTOUCHED,) * samples)


def check_decoded(image: Image.Image, data: bytes) -> None:
    """Checks that there were pixels for every row of a PNG, and colours for every pixel.

    Pillow is content with fewer where the compressed data ends at a row's end.

    Args:
        image: decoded into what `blank` gave.
        data: as `png_of` gave it.

    Raises:
        ImageDecodeError: there were fewer.
    """
    last = image.crop((0, image.height - 1, image.width, image.height))
    # To inflate the pixels once more takes a third of the time of decoding, so it is done where in doubt.
    if (data[28] or (np.asarray(last) == _UNTOUCHED).all()) and not _has_all_rows(data):
        raise ImageDecodeError("damaged PNG: its last rows are missing")
    if image.mode == "P":
        at = data.index(b"PLTE")
        colours = int.from_bytes(data[at - 4 : at], "big") // 3
        if int(np.asarray(image).max()) >= colours:
            raise ImageDecodeError(f"damaged PNG: its palette has only {colours} colours")


def _has_all_rows(data: bytes) -> bool:
    """Tells whether the compressed data holds as many bytes as the header promises."""
    width, height = (int.from_bytes(data[at : at + 4], "big") for at in (16, 20))
    bits = data[24] * _SAMPLES[data[25]]
    passes = _PASSES if data[28] else ((0, 0, 1, 1),)
    left = 0
    for column, row, right, down in passes:
        columns, rows = (-(-(width - column) // right), -(-(height - row) // down))
        left += rows * (1 + -(-columns * bits // 8)) if columns > 0 else 0
    inflater, at = zlib.decompressobj(), len(SIGNATURE)
    while at < len(data) and left > 0:
        end = at + 12 + int.from_bytes(data[at : at + 4], "big")
        packed = data[at + 8 : end - 4] if data[at + 4 : at + 8] == b"IDAT" else b""
        while packed and left > 0 and not inflater.eof:
            left -= len(inflater.decompress(packed, 1 << 20))
            packed = inflater.unconsumed_tail
        at = end
    return left <= 0


def _may_turn(kind: bytes, text: bytes) -> bool:
    """Tells whether a text chunk may say which way is up, and is of a size that Pillow takes."""
    if not text.startswith(_ORIENTATION):
        return False
    if kind == b"tEXt":
        return len(text) <= MAX_TEXT_BYTES
    rest = text.partition(b"\0")[2]
    if kind == b"iTXt":  # compressed or not, method, language, translated keyword
        compressed, rest = rest[:1] == b"\1", rest[2:].split(b"\0", 2)[-1]
    else:
        compressed, rest = True, rest[1:]
    if not compressed:
        return len(text) <= MAX_TEXT_BYTES
    try:
        inflated = zlib.decompressobj().decompress(rest, MAX_TEXT_BYTES)
    except zlib.error:
        return False
    return len(inflated) < MAX_TEXT_BYTES
