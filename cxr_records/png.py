"""What a decoder of PNG passes over: wrong checksums, a missing end, parts that no pixel needs."""

import zlib

from cxr_records.decoding import ImageDecodeError

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
_PALETTE = 3  # the colour type at byte 25 whose pixels are numbers of colours


def checked_png(data: bytes) -> bytes:
    """Checks every chunk of a PNG file, and returns the file without those that no pixel needs.

    All chunks count, also those that are left out: where one byte is wrong, others may be. What follows
    the end chunk is no part of the image and is not looked at.

    Raises:
        ImageDecodeError: a checksum is wrong, the file ends early, or it needs a reader that knows more.
    """
    view = memoryview(data)
    at, kept, kinds = len(SIGNATURE), [view[: len(SIGNATURE)]], set()
    kind = b""
    while kind != b"IEND":
        # Four bytes of length, four of name, the data, and a CRC-32 of name and data (PNG, 5.3).
        end = at + 12 + int.from_bytes(view[at : at + 4], "big")
        if end > len(data) or len(data) - at < 12:
            raise ImageDecodeError(f"damaged PNG: cut short at byte {len(data):,}, or a length is wrong")
        kind = data[at + 4 : at + 8]
        if zlib.crc32(view[at + 4 : end - 4]) != int.from_bytes(view[end - 4 : end], "big"):
            name = kind.decode("latin-1").encode("unicode_escape").decode()
            raise ImageDecodeError(f"damaged PNG: the checksum of chunk {name} at byte {at:,} is wrong")
        if not kind[0] & 0x20 and kind not in _CRITICAL:
            raise ImageDecodeError(f"PNG with a chunk that only some readers know: {kind.decode('latin-1')}")
        if kind not in _UNNEEDED and (kind not in _TEXTS or _may_turn(kind, data[at + 8 : end - 4])):
            kept.append(view[at:end])
        kinds.add(kind)
        at = end
    if b"IDAT" not in kinds:
        raise ImageDecodeError("damaged PNG: no pixels in it")
    if data[25] == _PALETTE and b"PLTE" not in kinds:
        raise ImageDecodeError("damaged PNG: the colours of its palette are missing")
    return data if sum(map(len, kept)) == len(data) else b"".join(kept)


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
