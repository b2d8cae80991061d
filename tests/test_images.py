import contextlib
import hashlib
import io
import struct
import subprocess
import sys
import warnings

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pictures import (
    DEEP,
    PNG_MARK,
    SMALL,
    SQUARE,
    TWELVE,
    chunk,
    colours,
    dicom,
    png,
    ramp,
    reason,
    resized,
    saved,
)
from PIL import Image, ImageOps

from cxr_records import images
from cxr_records import png as png_module
from cxr_records.decoding import MAX_PIXELS
from cxr_records.errors import UsageError
from cxr_records.images import CODECS, RESAMPLING, ImageDecodeError, ImageFormat, decode_image

RGBA_ORIGINALS = 6  # of the 149 real files


def decodes_or_says_why(data: bytes) -> None:
    try:
        decoded = decode_image(data, SMALL)
    except ImageDecodeError as error:
        assert str(error)  # noqa: PT017 - most of these decode
    else:
        assert decoded.pixels.shape == (16, 16)
        assert decoded.pixels.dtype == np.uint8


# ---- what is stored -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"size": 0}, "`size=0`: expected 16 to 2048 pixels"),
        ({"size": 15}, "`size=15`: expected 16 to 2048 pixels"),
        ({"size": 2049}, "`size=2049`: expected 16 to 2048 pixels"),
        ({"size": -224}, "`size=-224`: expected 16 to 2048 pixels"),
        ({"codec": "webp"}, "`codec=webp`: expected one of raw, png, jpeg"),
        ({"resample": "area"}, "`resample=area`: expected one of box, bilinear, bicubic, lanczos"),
    ],
    ids=str,
)
def test_a_wrong_format_is_refused_in_these_words(wrong, message):
    with pytest.raises(UsageError) as caught:
        ImageFormat(**wrong)
    assert str(caught.value) == message


@pytest.mark.parametrize("size", [16, 2048])
def test_the_smallest_and_the_largest_size_are_allowed(size):
    assert ImageFormat(size).size == size


def test_the_default_is_224_raw_bilinear():
    assert ImageFormat() == ImageFormat(224, "raw", "bilinear")


@pytest.mark.parametrize("codec", ["raw", "png"])
def test_raw_and_png_give_back_every_pixel(codec):
    image_format = ImageFormat(32, codec)

    @given(st.integers(0, 2**32 - 1))
    @settings(max_examples=30)
    def check(seed):
        pixels = np.random.default_rng(seed).integers(0, 256, (32, 32), np.uint8)
        assert np.array_equal(image_format.decode(image_format.encode(pixels)), pixels)

    check()


def test_raw_is_the_pixels_row_by_row():
    assert ImageFormat(16).encode(ramp(16, 16)) == bytes(ramp(16, 16).ravel().tolist())


def test_jpeg_gives_back_almost_every_pixel():
    image_format = ImageFormat(64, "jpeg")
    smooth = np.asarray(Image.fromarray(np.array([[10, 200], [90, 250]], np.uint8)).resize((64, 64), 2))
    stored = image_format.encode(smooth)
    assert stored.startswith(b"\xff\xd8\xff")
    assert np.abs(image_format.decode(stored).astype(int) - smooth).max() <= 4


@pytest.mark.parametrize("codec", CODECS)
def test_the_same_pixels_are_stored_as_the_same_bytes(codec):
    image_format, pixels = ImageFormat(16, codec), ramp(16, 16)
    assert image_format.encode(pixels) == image_format.encode(np.asfortranarray(pixels))


@pytest.mark.parametrize(
    ("codec", "data", "message"),
    [
        ("raw", b"x" * 255, "255 bytes of raw pixels, expected 256"),
        ("raw", b"", "0 bytes of raw pixels, expected 256"),
        ("png", saved(ramp(17, 16)), "image of 16x17 uint8, expected 16x16 uint8"),
        ("png", saved(colours(16, 16)), "image of 16x16x3 uint8, expected 16x16 uint8"),
        ("png", saved(ramp(16, 16).astype(np.uint16)), "image of 16x16 uint16, expected 16x16 uint8"),
        ("png", saved(ramp(16, 16), "JPEG"), "cannot be decoded: no image of the kind expected"),
        ("jpeg", saved(ramp(16, 16)), "cannot be decoded: no image of the kind expected"),
        ("jpeg", b"junk", "cannot be decoded: no image of the kind expected"),
    ],
    ids=["short", "empty", "size", "colour", "deep", "jpeg", "png", "junk"],
)
def test_stored_bytes_of_another_kind_are_refused_in_these_words(codec, data, message):
    with pytest.raises(ImageDecodeError) as caught:
        ImageFormat(16, codec).decode(data)
    assert str(caught.value) == message


@given(st.sampled_from(CODECS), st.data())
@settings(max_examples=60)
def test_damaged_stored_bytes_are_an_image_decode_error_and_nothing_else(codec, draw):
    image_format = ImageFormat(16, codec)
    data = bytearray(image_format.encode(ramp(16, 16)))
    for _ in range(draw.draw(st.integers(1, 3))):
        data[draw.draw(st.integers(0, len(data) - 1))] = draw.draw(st.integers(0, 255))
    with contextlib.suppress(ImageDecodeError):
        assert image_format.decode(bytes(data)).shape == (16, 16)


# ---- the real files -------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def originals(nih):
    """The six RGBA originals and six of the grey ones."""
    paths = sorted((nih / "images").glob("*.png"))
    rgba = [path for path in paths if path.read_bytes()[25] == 6]  # the colour type in a PNG's header
    assert len(rgba) == RGBA_ORIGINALS
    return rgba + [path for path in paths if path not in rgba][::24][:6]


@pytest.mark.parametrize("resample", RESAMPLING)
def test_real_originals_equal_pillow_pixel_for_pixel(originals, resample):
    modes = set()
    for path in originals[:: 1 if resample == "bilinear" else 2]:
        decoded = decode_image(path.read_bytes(), ImageFormat(224, "raw", resample))
        with Image.open(path) as image:
            expected = image.convert("L").resize((224, 224), RESAMPLING[resample])
        assert np.array_equal(decoded.pixels, np.asarray(expected)), path.name
        assert (decoded.width, decoded.height) == (1024, 1024)
        modes.add(decoded.mode)
    assert modes == {"L", "RGBA"}


def test_a_real_web_page_saved_as_a_dicom_says_what_it_begins_with(nih):
    page = (nih / "corrupt" / "html_saved_as.dcm").read_bytes()
    text = reason(page)
    assert text.startswith("no PNG, JPEG or DICOM: begins with '")
    assert "<" in text


@pytest.mark.parametrize(
    ("folder", "size", "count", "digest"),
    [
        ("nih/images", 64, 149, "cf0790005e93e9699f159274e65dab1e8d45240980a2ad9db62b82b1f13c8533"),
        ("nih64/images", 32, 1000, "d74f3ffa2736b9fb2195b7b0e9d3b9793d360ec96cd7ed8a4118da1f35e96834"),
    ],
)
def test_all_real_images_give_the_pixels_that_they_always_gave(nih, folder, size, count, digest):
    paths = sorted((nih.parent / folder).glob("*.png"))
    assert len(paths) == count
    pixels = [decode_image(path.read_bytes(), ImageFormat(size)).pixels.tobytes() for path in paths]
    assert hashlib.sha256(b"".join(pixels)).hexdigest() == digest


# ---- every mode -----------------------------------------------------------------------------------------


def palette(transparency=None) -> bytes:
    image = Image.fromarray(ramp() // 32, "P")
    image.putpalette(bytes(n * 3 % 256 for n in range(768)))
    return saved(image, **({} if transparency is None else {"transparency": transparency}))


def rgba() -> bytes:
    return saved(np.dstack([colours(), ramp()[:, ::-1]]))


MODES = {
    "1": saved(Image.fromarray(ramp()).convert("1")),
    "L": saved(ramp()),
    "L interlaced by hand": png(4, 2, 8, 0, b"\0\1\2\3\4\0\5\6\7\x08"),
    "L of 2 bits": png(4, 1, 2, 0, b"\0\x1b"),
    "LA": saved(Image.fromarray(np.dstack([ramp(), ramp()[::-1]]))),
    "P": palette(),
    "P, one colour transparent": palette(2),
    "P, alpha of every colour": palette(bytes(range(0, 256, 32))),
    "RGB": saved(colours()),
    "RGB, one colour transparent": saved(colours(), transparency=(1, 2, 3)),
    "RGBA": rgba(),
    "JPEG L": saved(ramp(), "JPEG"),
    "JPEG RGB": saved(colours(), "JPEG"),
    "JPEG progressive": saved(colours(), "JPEG", progressive=True),
    "JPEG CMYK": saved(Image.fromarray(colours()).convert("CMYK"), "JPEG"),
}


@pytest.mark.parametrize("kind", MODES)
@pytest.mark.parametrize("resample", RESAMPLING)
def test_eight_bit_images_equal_pillow_pixel_for_pixel(kind, resample):
    image_format = ImageFormat(16, "raw", resample)
    decoded = decode_image(MODES[kind], image_format)
    with warnings.catch_warnings(), Image.open(io.BytesIO(MODES[kind])) as image:
        warnings.simplefilter("ignore")
        mode, size, grey = image.mode, image.size, image.convert("L")
    assert np.array_equal(decoded.pixels, resized(grey, image_format))
    assert (decoded.mode, (decoded.width, decoded.height)) == (mode, size)


def test_alpha_is_dropped_and_no_background_shines_through():
    transparent = np.dstack([colours(16, 16), np.zeros((16, 16), np.uint8)])
    opaque = decode_image(saved(colours(16, 16)), SMALL).pixels
    assert np.array_equal(decode_image(saved(transparent), SMALL).pixels, opaque)


def test_sixteen_bit_grey_is_scaled_to_the_nearest_of_256():
    deep = np.concatenate([np.arange(0, 65536, 257), [65535] * 0]).astype(np.uint16).reshape(16, 16)
    decoded = decode_image(saved(deep), SMALL)
    assert decoded.pixels.ravel().tolist() == list(range(256))
    assert decoded.mode.startswith("I")
    every = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    pixels = decode_image(saved(every), ImageFormat(256)).pixels
    assert np.array_equal(pixels, np.rint(every.astype(float) * 255 / 65535))


def test_sixteen_bit_grey_with_alpha_and_colour_are_scaled_to_within_one_of_256():
    deep = (ramp(16, 16).astype(np.uint16) * 257)[..., None]
    alpha = np.full_like(deep, 30000)
    grey = np.concatenate([deep, alpha], axis=2).astype(">u2")
    colour = np.repeat(deep, 3, axis=2).astype(">u2")
    for samples, kind in ((grey, 4), (colour, 2), (np.concatenate([colour, alpha], 2).astype(">u2"), 6)):
        rows = b"".join(b"\0" + row.tobytes() for row in samples)
        decoded = decode_image(png(16, 16, 16, kind, rows), SMALL)
        assert np.abs(decoded.pixels.astype(int) - ramp(16, 16)).max() <= 1


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_jpeg_is_turned_as_its_exif_says(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = saved(ramp(), "JPEG", exif=exif)
    with Image.open(io.BytesIO(data)) as image:
        upright = ImageOps.exif_transpose(image)
    decoded = decode_image(data, SMALL)
    assert np.array_equal(decoded.pixels, resized(upright))
    assert (decoded.width, decoded.height) == ((30, 40) if orientation > 4 else (40, 30))


def test_a_jpeg_of_several_pictures_gives_the_first_and_turns_it_too():
    exif = Image.Exif()
    exif[0x0112] = 6
    pictures = [Image.fromarray(ramp()), Image.fromarray(ramp()[::-1].copy())]
    data = saved(pictures[0], "MPO", save_all=True, append_images=pictures[1:], exif=exif)
    decoded = decode_image(data, SMALL)
    assert (decoded.width, decoded.height) == (30, 40)


def test_an_aspect_is_squashed_to_a_square():
    wide = np.repeat(np.array([[0, 255]], np.uint8), 16, axis=1).repeat(16, axis=0)
    pixels = decode_image(saved(wide), ImageFormat(16, "raw", "box")).pixels
    assert np.array_equal(pixels, np.repeat(np.array([[0, 255]], np.uint8), 8, axis=1).repeat(16, axis=0))


def test_an_image_smaller_than_the_size_is_enlarged():
    assert np.all(decode_image(saved(np.full((1, 1), 77, np.uint8)), SMALL).pixels == 77)


# ---- what is rejected -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"", "the file is empty"),
        (b"<!DOCTYPE html><p>404", "no PNG, JPEG or DICOM: begins with '<!DOCTYPE ht'"),
        (b"\0\n\xff'", r"no PNG, JPEG or DICOM: begins with '\x00\n\xff''"),
        (saved(ramp(), "GIF")[:60], r"no PNG, JPEG or DICOM: begins with 'GIF87a(\x00\x1e\x00\x87\x00'"),
        (PNG_MARK, "damaged PNG: cut short at byte 8, or a length is wrong"),
        (b"\xff\xd8\xff", "a JPEG whose header is damaged or cut short"),
        (saved(ramp())[:33], "damaged PNG: cut short at byte 33, or a length is wrong"),
        (png(60000, 60000, 8, 0, b"\0"), "far more pixels than any X-ray"),
        (png(8193, 8192, 1, 0, b"\0"), "8193x8192 pixels, more than the 67,108,864 allowed"),
        (png(10000, 10000, 1, 0, b"\0"), "10000x10000 pixels, more than the 67,108,864 allowed"),
    ],
    ids=["empty", "html", "bytes", "gif", "mark", "jpeg mark", "header", "bomb", "over", "warned of"],
)
def test_what_is_no_picture_is_rejected_in_these_words(data, text):
    assert reason(data) == text


@pytest.mark.parametrize("kind", ["GIF", "BMP", "TIFF", "WEBP", "PPM", "ICO"])
def test_other_picture_formats_are_rejected_and_not_guessed(kind):
    assert reason(saved(ramp(), kind)).startswith("no PNG, JPEG or DICOM: begins with '")


def test_a_real_png_of_400_million_pixels_is_rejected_before_it_is_inflated():
    row = b"\0" + bytes(20000 // 8)
    assert reason(png(20000, 20000, 1, 0, row * 20000)) == "far more pixels than any X-ray"


def test_an_image_of_exactly_the_largest_size_is_decoded():
    assert MAX_PIXELS == 8192 * 8192
    row = b"\0" + b"\xff" * 1024
    decoded = decode_image(png(8192, 8192, 1, 0, row * 8192), ImageFormat(16, "raw", "box"))
    assert np.all(decoded.pixels == 255)


@pytest.mark.parametrize("size", [(0, 5), (5, 0), (0, 0), (2**31, 1), (1, 2**32 - 1)], ids=str)
def test_impossible_sizes_are_rejected(size):
    assert reason(png(*size, 8, 0, b"\0\1\2\3\4\5"))


@pytest.mark.parametrize("size", [(1, 300_000), (300_000, 1)], ids=str)
def test_very_long_images_are_squashed_too(size):
    width, height = size
    data = png(width, height, 1, 0, (b"\0" + b"\xff" * -(-width // 8)) * height)
    assert decode_image(data, ImageFormat(16, "raw", "box")).pixels.mean() == 255


CUT = {
    "png": saved(np.random.default_rng(0).integers(0, 256, (20, 20), np.uint8)),
    "jpeg": saved(ramp(), "JPEG"),
    "rgba": rgba(),
}


@pytest.mark.parametrize("kind", CUT)
def test_a_file_cut_anywhere_is_rejected_or_has_every_pixel(kind):
    whole = decode_image(CUT[kind], SMALL).pixels
    rejected = 0
    for end in range(len(CUT[kind])):
        try:
            pixels = decode_image(CUT[kind][:end], SMALL).pixels
        except ImageDecodeError:
            rejected += 1
        else:
            # Only what follows the last pixel was cut off.
            assert np.array_equal(pixels, whole)
    assert rejected >= len(CUT[kind]) - 24


@given(st.binary(max_size=400))
@example(b"\0" * 128 + b"DICM")
def test_random_bytes_are_rejected(data):
    assert reason(data)


@given(st.binary(max_size=200))
def test_random_bytes_behind_the_marks_of_a_format_are_rejected(data):
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 16, 16, 8, 0, 0, 0, 0))
    for mark in (PNG_MARK, PNG_MARK + header, b"\xff\xd8\xff\xe0", bytes(128) + b"DICM"):
        decodes_or_says_why(mark + data)


@pytest.mark.parametrize(
    "kind", ["png", "palette", "deep", "jpeg", "progressive", "exif", "dicom", "windowed"]
)
def test_a_damaged_file_is_decoded_or_rejected_and_nothing_else(kind):
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "text"
    whole = {
        "png": lambda: CUT["png"],
        "palette": lambda: palette(bytes(range(0, 256, 32))),
        "deep": lambda: saved(DEEP),
        "jpeg": lambda: CUT["jpeg"],
        "progressive": lambda: saved(colours(), "JPEG", progressive=True),
        "exif": lambda: saved(ramp(), "JPEG", exif=exif),
        "dicom": lambda: dicom(SQUARE),
        "windowed": lambda: dicom(
            DEEP, WindowCenter=9, WindowWidth=9, RescaleSlope=2, RescaleIntercept=1, **TWELVE
        ),
    }[kind]()

    # Most of a small file is header: that is where decoders stumble.
    places = st.integers(0, min(len(whole), 900) - 1)

    @given(st.lists(st.tuples(places, st.integers(0, 255)), min_size=1, max_size=5), st.booleans())
    @settings(max_examples=150)
    def check(changes, repair):
        data = bytearray(whole)
        for place, value in changes:
            data[place] = value
        decodes_or_says_why(with_right_checksums(bytes(data)) if repair else bytes(data))

    check()


def with_right_checksums(data: bytes) -> bytes:
    """Makes the checksums of a changed PNG right again, so that the change goes deeper."""
    if not data.startswith(PNG_MARK):
        return data
    at, parts = 8, [PNG_MARK]
    while at + 12 <= len(data):
        length = min(int.from_bytes(data[at : at + 4], "big"), len(data) - at - 12)
        parts.append(chunk(data[at + 4 : at + 8], data[at + 8 : at + 8 + length]))
        at += 12 + length
    return b"".join(parts)


def test_running_out_of_memory_is_not_the_fault_of_the_image(monkeypatch):
    def fail(*_):
        raise MemoryError

    monkeypatch.setattr(images, "check_pixels", fail)
    monkeypatch.setattr(png_module, "_unfilter", fail)
    for data in (saved(ramp()), saved(colours()), saved(ramp(), "JPEG")):
        with pytest.raises(MemoryError):
            decode_image(data, SMALL)


def test_nothing_is_written_to_stderr_for_odd_images(tmp_path):
    files = {
        "palette": palette(bytes(range(0, 256, 32))),
        "large": png(10000, 10000, 1, 0, b"\0"),
        "exif": saved(ramp(), "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\0\x09\x01\x12\0\x03\0\0\xff\xff"),
        "dicom": dicom(SQUARE, PixelData=SQUARE.tobytes() + b"\0" * 10),
        "flat": dicom(SQUARE, RescaleSlope=0, RescaleIntercept=0),
    }
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    script = (
        "import sys, pathlib\nfrom cxr_records.images import *\n"
        "for path in sorted(pathlib.Path(sys.argv[1]).iterdir()):\n"
        "    try: decode_image(path.read_bytes(), ImageFormat(16)); print(path.name, 'decoded')\n"
        "    except ImageDecodeError as error: print(path.name, 'rejected')\n"
    )
    command = [sys.executable, "-W", "always", "-c", script, str(tmp_path)]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert ended.stderr == ""
    assert ended.stdout.split("\n")[-3:] == ["large rejected", "palette decoded", ""]
    assert ended.returncode == 0


def test_an_image_is_never_rejected_for_want_of_memory(monkeypatch):
    def no_memory(*given, **more):
        raise MemoryError

    monkeypatch.setattr(Image, "open", no_memory)
    with pytest.raises(MemoryError):
        decode_image(saved(Image.fromarray(ramp()), "JPEG"), SMALL)
