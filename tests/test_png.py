import zlib

import numpy as np
import pytest
from pictures import PNG_MARK, SMALL, chunk, colours, png, ramp, reason, resized, saved
from PIL import Image, ImageOps

from cxr_records.images import ImageFormat, decode_image
from cxr_records.png import checked_png

NOISE = np.random.default_rng(0).integers(0, 256, (20, 20), np.uint8)


def chunks(data: bytes) -> list[tuple[bytes, bytes]]:
    """Names and data of a PNG's chunks."""
    at, found = 8, []
    while at < len(data):
        end = at + 8 + int.from_bytes(data[at : at + 4], "big")
        found.append((data[at + 4 : at + 8], data[at + 8 : end]))
        at = end + 4
    return found


def with_chunk(name: bytes, data: bytes, picture: np.ndarray = NOISE, before: bytes = b"IDAT") -> bytes:
    """A PNG with one more chunk, before its pixels or its end."""
    whole = saved(picture)
    at = whole.index(before) - 4
    return whole[:at] + chunk(name, data) + whole[at:]


def exif(orientation: int) -> bytes:
    made = Image.Exif()
    made[0x0112] = orientation
    return made.tobytes()


@pytest.mark.parametrize("kind", ["grey", "colours", "palette", "with texts"])
def test_whatever_single_bit_of_a_png_flips_it_is_rejected(kind):
    whole = {
        "grey": lambda: saved(NOISE),
        "colours": lambda: saved(colours(9, 7)),
        "palette": lambda: saved(Image.fromarray(NOISE).convert("P"), transparency=3),
        "with texts": lambda: with_chunk(b"tEXt", b"Comment\0no pixel needs it"),
    }[kind]()
    assert decode_image(whole, SMALL)
    for place in range(len(whole)):
        flipped = bytearray(whole)
        flipped[place] ^= 1 << place % 8
        assert reason(bytes(flipped))


def test_every_other_byte_anywhere_in_a_small_png_is_rejected():
    whole = saved(np.arange(4, dtype=np.uint8).reshape(2, 2))
    for place in range(len(whole)):
        for value in range(256):
            if value != whole[place]:
                assert reason(whole[:place] + bytes([value]) + whole[place + 1 :])


def test_a_png_cut_anywhere_is_rejected_and_what_follows_its_end_does_not_matter():
    whole = saved(NOISE)
    for end in range(len(whole)):
        assert reason(whole[:end])
    for more in (b"\0", b"\n", b"PK\x03\x04" * 100):
        assert np.array_equal(decode_image(whole + more, SMALL).pixels, decode_image(whole, SMALL).pixels)


def test_damage_is_told_with_its_place():
    whole = saved(NOISE)
    at = whole.index(b"IDAT") - 4
    flipped = whole[: at + 50] + bytes([whole[at + 50] ^ 1]) + whole[at + 51 :]
    assert reason(flipped) == "damaged PNG: the checksum of chunk IDAT at byte 33 is wrong"
    cut = f"damaged PNG: cut short at byte {len(whole) - 12}, or a length is wrong"
    assert reason(whole[:-12]) == cut
    assert reason(PNG_MARK + b"\0\0\0\0" * 2) == "damaged PNG: cut short at byte 16, or a length is wrong"
    assert reason(png(16, 16, 8, 0, b"")) == "damaged PNG: no pixels in it"
    rows = b"\0\0" * 2
    assert reason(png(1, 2, 8, 3, rows)) == "damaged PNG: the colours of its palette are missing"
    assert reason(png(1, 2, 8, 0, rows, chunk(b"CgBI", b""))) == (
        "PNG with a chunk that only some readers know: CgBI"
    )


@pytest.mark.parametrize(
    ("name", "data"),
    [
        (b"iCCP", b"profile\0\0" + zlib.compress(bytes(3 << 20))),
        (b"iCCP", b"no profile at all"),
        (b"zTXt", b"Comment\0\0" + zlib.compress(bytes(80 << 20), 9)),
        (b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(bytes(80 << 20), 9)),
        (b"zTXt", b"Raw profile type exif\0\0junk"),
        (b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(bytes(80 << 20), 9)),
        (b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + b" " * (3 << 20)),
        (b"tEXt", b"Raw profile type exif\0" + b" " * (3 << 20)),
        (b"tEXt", b"Comment\0" + b"." * (70 << 20)),
        (b"eXIf", b"no EXIF"),
        (b"gAMA", b"\0"),
        (b"pHYs", b""),
        (b"juNk", bytes(range(256))),
    ],
    ids=lambda value: value[:12].decode("latin-1").partition("\0")[0],
)
@pytest.mark.parametrize("before", [b"IDAT", b"IEND"], ids=["first", "last"])
def test_a_large_or_odd_chunk_that_no_pixel_needs_rejects_no_png(name, data, before):
    decoded = decode_image(with_chunk(name, data, before=before), SMALL)
    assert np.array_equal(decoded.pixels, resized(Image.fromarray(NOISE)))


def test_only_chunks_that_may_matter_are_handed_on():
    texts = [
        chunk(b"tEXt", b"Comment\0x"),
        chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0<x/>"),
        chunk(b"iCCP", b"p\0\0" + zlib.compress(b"x")),
        chunk(b"eXIf", exif(1)),
    ]
    whole = png(2, 1, 8, 0, b"\0\1\2", *texts)
    assert [name for name, _ in chunks(checked_png(whole))] == [b"IHDR", b"iTXt", b"eXIf", b"IDAT", b"IEND"]
    plain = saved(NOISE)
    assert checked_png(plain) is plain  # no copy of what has nothing to leave out


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("how", ["eXIf", "after the pixels", "text", "XMP"])
def test_a_png_is_turned_as_its_exif_says(orientation, how):
    picture = ramp()
    data = {
        "eXIf": lambda: saved(picture, exif=exif(orientation)),
        "after the pixels": lambda: with_chunk(b"eXIf", exif(orientation)[6:], picture, b"IEND"),
        "text": lambda: with_chunk(
            b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(raw(orientation)), picture
        ),
        "XMP": lambda: with_chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp(orientation), picture),
    }[how]()
    turned = Image.fromarray(picture)
    turned.getexif()[0x0112] = orientation
    upright = ImageOps.exif_transpose(turned)
    decoded = decode_image(data, SMALL)
    assert np.array_equal(decoded.pixels, resized(upright))
    assert (decoded.width, decoded.height) == ((30, 40) if orientation > 4 else (40, 30))


def raw(orientation: int) -> bytes:
    """EXIF as ImageMagick writes it into a text."""
    data = exif(orientation)
    return b"\nexif\n%8d\n" % len(data) + data.hex().encode() + b"\n"


def xmp(orientation: int) -> bytes:
    return b'<rdf:Description tiff:Orientation="%d"/>' % orientation


def test_sixteen_bits_are_turned_too():
    deep = ramp().astype(np.uint16) * 257
    decoded = decode_image(saved(deep, exif=exif(6)), SMALL)
    assert np.array_equal(decoded.pixels, resized(Image.fromarray(np.rot90(ramp(), -1))))


def test_of_an_animation_the_still_picture_is_decoded():
    second = Image.fromarray(NOISE[::-1].copy())
    data = saved(Image.fromarray(NOISE), save_all=True, append_images=[second])
    assert b"acTL" in data
    decoded = decode_image(data, ImageFormat(20))
    assert np.array_equal(decoded.pixels, NOISE)


def test_sixteen_bits_that_are_said_to_be_twelve_are_scaled_by_their_depth():
    """By the standard, sBIT says how exact the samples are, and they fill the whole range all the same."""
    deep = np.arange(256, dtype=np.uint16).reshape(16, 16) * 257
    data = saved(deep)
    at = data.index(b"IDAT") - 4
    said = data[:at] + chunk(b"sBIT", b"\x0c") + data[at:]
    assert decode_image(said, SMALL).pixels.ravel().tolist() == list(range(256))


def test_a_png_that_inflates_without_end_stops_at_its_last_row():
    rows = b"".join(b"\0" + bytes([n]) * 16 for n in range(16))
    decoded = decode_image(png(16, 16, 8, 0, rows + bytes(80 << 20)), SMALL)
    assert decoded.pixels[:, 0].tolist() == list(range(16))


def test_of_real_originals_only_what_no_pixel_needs_is_left_out(nih):
    left_out = set()
    for path in sorted((nih / "images").glob("*.png")):
        before = chunks(path.read_bytes())
        after = chunks(checked_png(path.read_bytes()))
        assert [kind for kind in before if kind in after] == after
        left_out |= {name for name, _ in before} - {name for name, _ in after}
    assert left_out == {b"gAMA", b"pHYs", b"sRGB"}
