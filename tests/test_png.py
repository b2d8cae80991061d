import zlib

import numpy as np
import pytest
from pictures import PNG_MARK, SMALL, chunk, colours, png, ramp, reason, resized, saved
from PIL import Image, ImageOps

from cxr_records.images import ImageFormat, decode_image
from cxr_records.png import needed_chunks, png_of

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


MISSING = "damaged PNG: its last rows are missing"


@pytest.mark.parametrize(("depth", "colour"), [(8, 0), (16, 0), (1, 0), (8, 2), (16, 4), (8, 3), (16, 6)])
@pytest.mark.parametrize("value", [0, 1, 255])
def test_rows_that_the_compressed_data_lacks_reject_a_png_and_rows_of_any_value_do_not(depth, colour, value):
    palette = chunk(b"PLTE", bytes(768)) if colour == 3 else b""
    samples = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour]
    row = b"\0" + bytes([value]) * (16 * samples * depth // 8)
    assert decode_image(png(16, 20, depth, colour, row * 20, palette), SMALL).height == 20
    for rows in (1, 10, 19):
        assert reason(png(16, 20, depth, colour, row * rows, palette)) == MISSING


@pytest.mark.parametrize(("width", "height"), [(1, 1), (1, 9), (9, 1), (2, 2), (8, 8), (13, 11)])
def test_an_interlaced_png_without_its_last_bytes_is_rejected(width, height):
    passes = [
        (0, 0, 8, 8),
        (4, 0, 8, 8),
        (0, 4, 4, 8),
        (2, 0, 4, 4),
        (0, 2, 2, 4),
        (1, 0, 2, 2),
        (0, 1, 1, 2),
    ]
    picture = np.random.default_rng(1).integers(0, 256, (height, width), np.uint8)
    parts = [picture[y::down, x::right] for x, y, right, down in passes]
    rows = [b"\0" + row.tobytes() for part in parts if part.size for row in part]

    def interlaced(count: int) -> bytes:
        made = png(width, height, 8, 0, b"".join(rows[:count]))
        header = made[16:28] + b"\1"
        return PNG_MARK + chunk(b"IHDR", header) + made[33:]

    whole = decode_image(interlaced(len(rows)), ImageFormat(16, resample="box"))
    assert np.array_equal(whole.pixels, resized(Image.fromarray(picture), ImageFormat(16, resample="box")))
    for count in range(1, len(rows)):
        assert reason(interlaced(count)) == MISSING


def test_colours_that_a_palette_lacks_reject_a_png():
    rows = b"\0\2\1"
    whole = png(2, 1, 8, 3, rows, chunk(b"PLTE", bytes([0] * 6 + [90] * 3)))
    assert decode_image(whole, SMALL).pixels.max() == 90
    short = png(2, 1, 8, 3, rows, chunk(b"PLTE", bytes(6)))
    assert reason(short) == "damaged PNG: its palette has only 2 colours"


def test_chunks_out_of_order_reject_a_png():
    whole = saved(NOISE)
    header, rest = whole[8:33], whole[33:]
    for data in (
        PNG_MARK + rest,
        PNG_MARK + chunk(b"tEXt", b"a\0b") + header + rest,
        PNG_MARK + header + header[:16] + rest,
        PNG_MARK + header * 2 + rest,
        PNG_MARK + header + rest[:-12] + header + rest[-12:],
        PNG_MARK + chunk(b"IHDR", header[8:21] + b"\0") + rest,
    ):
        assert reason(data).startswith("damaged PNG: ")
    assert reason(PNG_MARK + header * 2 + rest) == "damaged PNG: it does not begin with its one header"
    late = png(1, 1, 8, 3, b"\0\0")[:-12] + chunk(b"PLTE", bytes(768)) + chunk(b"IEND", b"")
    assert reason(late) == "damaged PNG: a second palette, or one after the pixels"


def test_a_png_of_very_many_chunks_is_given_up_soon():
    whole = saved(NOISE)
    assert (
        reason(whole[:33] + chunk(b"tEXt", b"a\0b") * 200_000 + whole[33:])
        == "PNG of more than 200,000 chunks"
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
    kept = chunks(png_of(needed_chunks(whole), whole))
    assert [name for name, _ in kept] == [b"IHDR", b"iTXt", b"eXIf", b"IDAT", b"IEND"]
    plain = saved(NOISE)
    assert png_of(needed_chunks(plain), plain) is plain  # no copy of what has nothing to leave out


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
        after = chunks(png_of(needed_chunks(path.read_bytes()), path.read_bytes()))
        assert [kind for kind in before if kind in after] == after
        left_out |= {name for name, _ in before} - {name for name, _ in after}
    assert left_out == {b"gAMA", b"pHYs", b"sRGB"}
