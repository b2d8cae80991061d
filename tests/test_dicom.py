import configparser
import contextlib
import io
import pathlib
import re
import shutil
import struct
import subprocess
import sys
import tracemalloc
import zlib

import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pictures import (
    DEEP,
    FULL,
    SMALL,
    SQUARE,
    TWELVE,
    colours,
    dicom,
    lut,
    ramp,
    reason,
    resized,
    saved,
    shown,
)
from PIL import Image
from pydicom.encaps import encapsulate, generate_frames

from cxr_records import images
from cxr_records.decoding import DecoderMissingError, ImageDecodeError
from cxr_records.dicom import _PACKAGES, _pixels
from cxr_records.errors import CxrError
from cxr_records.images import ImageFormat, decode_image


def test_monochrome2_is_shown_as_it_is_and_monochrome1_inverted():
    assert np.array_equal(shown(FULL), FULL)
    assert np.array_equal(shown(FULL, "MONOCHROME1"), 255 - FULL)


@pytest.mark.parametrize("tags", [{}, TWELVE], ids=["16 bits", "12 bits"])
@pytest.mark.parametrize("low", [0, 944])
def test_without_a_window_the_values_at_hand_go_from_black_to_white(tags, low):
    stored = (low + DEEP // 4).astype(np.uint16)  # 1,020 steps of the 65,536 or 4,096 that there may be
    assert np.array_equal(shown(stored, **tags), np.rint(DEEP / 4080 * 255))
    table = {"ModalityLUTSequence": lut(0, 16, [n * 3 for n in range(4096)])}
    assert np.abs(shown(stored, **tags, **table) - np.rint(DEEP / 4080 * 255)).max() <= 1


def test_a_window_maps_its_range_to_black_and_white():
    pixels = shown(DEEP, WindowCenter=2048, WindowWidth=1025, **TWELVE)
    expected = np.rint(((DEEP - 2047.5) / 1024 + 0.5).clip(0, 1) * 255)
    assert np.abs(pixels - expected).max() <= 1
    assert pixels.ravel()[0] == 0
    assert pixels.ravel()[-1] == 255


def test_of_several_windows_the_first_is_used():
    first = shown(DEEP, WindowCenter=2048, WindowWidth=1025, **TWELVE)
    both = shown(DEEP, WindowCenter=[2048, 9], WindowWidth=[1025, 9], **TWELVE)
    assert np.array_equal(first, both)


def test_slope_and_intercept_come_before_the_window():
    plain = shown(DEEP, WindowCenter=2048, WindowWidth=1025, **TWELVE)
    scaled = {"RescaleSlope": 2, "RescaleIntercept": -1000}
    # The same range, in the units after slope and intercept.
    pixels = shown(DEEP, WindowCenter=3096, WindowWidth=2049, **scaled, **TWELVE)
    assert np.abs(pixels.astype(int) - plain).max() <= 1


def test_slope_and_intercept_alone_change_nothing():
    plain = shown(DEEP, **TWELVE)
    assert np.array_equal(shown(DEEP, RescaleSlope=0.5, RescaleIntercept=-1024, **TWELVE), plain)


def test_a_falling_slope_inverts_with_a_window_and_without():
    falling = {"RescaleSlope": -1, "RescaleIntercept": 4095, **TWELVE}
    assert np.array_equal(shown(DEEP, **falling), np.rint((4080 - DEEP) / 4080 * 255))
    windowed = shown(DEEP, WindowCenter=2048, WindowWidth=1025, **falling)
    expected = np.rint(((4095.0 - DEEP - 2047.5) / 1024 + 0.5).clip(0, 1) * 255)
    assert np.abs(windowed - expected).max() <= 1


def test_signed_values_are_shown_from_the_smallest_to_the_largest():
    signed = (DEEP.astype(np.int16) - 2048).astype(np.int16)
    assert np.array_equal(shown(signed, **TWELVE), np.rint(DEEP / 4080 * 255))
    window = shown(signed, WindowCenter=0, WindowWidth=1025, **TWELVE)
    assert np.abs(window - np.rint(((signed + 0.5) / 1024 + 0.5).clip(0, 1) * 255)).max() <= 1


def test_a_lookup_table_gives_the_shades():
    table = [255 - n for n in range(256)]
    assert np.array_equal(shown(SQUARE, VOILUTSequence=lut(0, 8, table)), 255 - SQUARE)
    assert np.array_equal(shown(FULL, ModalityLUTSequence=lut(0, 8, table)), 255 - FULL)
    deeper = [n * 257 for n in range(256)]
    assert np.array_equal(shown(FULL, ModalityLUTSequence=lut(0, 16, deeper)), FULL)


FILES = pathlib.Path(pydicom.__file__).parent / "data" / "test_files"  # come with the package
STEEP = np.linspace(300, 3000, 256).astype(np.uint16).reshape(16, 16)
SIGNED = STEEP.astype(np.int16) - 2048
LITTER = np.random.default_rng(0).integers(0, 1 << 16, (16, 16)).astype(np.uint16)
WINDOW = {"WindowCenter": 1500, "WindowWidth": 1000, **TWELVE}


def rising(count: int, bits: int) -> list[int]:
    return [round(n) for n in np.linspace(0, 2**bits - 1, count)]


def broken(name: str, **elements):
    """A sequence of one item of which something is missing or too short."""
    item = pydicom.Dataset()
    for element, value in elements.items():
        setattr(item, element, value)
    return {name: pydicom.Sequence([item])}


# What is in the file, dcmtk's option for what we choose from it, and tags.
SHADES = {
    "no window": (STEEP, "+Wm", {}),
    "no window, 12 bits": (STEEP, "+Wm", TWELVE),
    "no window, 8 bits": (SQUARE // 2 + 20, "+Wm", {}),
    "no window, MONOCHROME1": (STEEP, "+Wm", {"photometric": "MONOCHROME1"}),
    "no window, signed": (SIGNED, "+Wm", TWELVE),
    "no window, padding": (
        np.where(SQUARE < 20, 0, STEEP).astype(np.uint16),
        "+Wm",
        {"PixelPaddingValue": 0},
    ),
    "no window, slope": (STEEP, "+Wm", {"RescaleSlope": 2.5, "RescaleIntercept": -1024}),
    "no window, falling slope": (STEEP, "+Wm", {"RescaleSlope": -1, "RescaleIntercept": 4095}),
    "no window, slope without intercept": (STEEP, "+Wm", {"RescaleSlope": -1}),
    "no window, modality table": (
        STEEP,
        "+Wm",
        {"ModalityLUTSequence": lut(300, 16, rising(2701, 16)[::-1])},
    ),
    "window": (STEEP, "+Wi 1", WINDOW),
    "first of two windows": (
        STEEP,
        "+Wi 1",
        {**TWELVE, "WindowCenter": [1500, 9], "WindowWidth": [1000, 9]},
    ),
    "window, MONOCHROME1": (STEEP, "+Wi 1", {**WINDOW, "photometric": "MONOCHROME1"}),
    "window, signed": (SIGNED, "+Wi 1", {**TWELVE, "WindowCenter": -500, "WindowWidth": 1000}),
    "window, 12 signed bits of 16": (
        (SIGNED & 0xFFF).astype(np.int16),
        "+Wi 1",
        {**TWELVE, "WindowCenter": -500, "WindowWidth": 1000},
    ),
    "window, slope": (
        STEEP,
        "+Wi 1",
        {"RescaleSlope": 2.5, "RescaleIntercept": -1024, "WindowCenter": 2500, "WindowWidth": 2500},
    ),
    "window, falling slope": (
        STEEP,
        "+Wi 1",
        {"RescaleSlope": -1, "RescaleIntercept": 4095, "WindowCenter": 2500, "WindowWidth": 1500},
    ),
    "window, modality table": (
        STEEP,
        "+Wi 1",
        {**WINDOW, "ModalityLUTSequence": lut(300, 12, rising(2701, 12)[::-1])},
    ),
    "window of width 1": (STEEP, "+Wi 1", {"WindowCenter": 1500, "WindowWidth": 1}),
    "window of width 2": (STEEP, "+Wi 1", {"WindowCenter": 1500, "WindowWidth": 2}),
    "window of width 0": (STEEP, "+Wm", {"WindowCenter": 1500, "WindowWidth": 0}),
    "window of negative width": (STEEP, "+Wm", {"WindowCenter": 1500, "WindowWidth": -5}),
    "window without width": (STEEP, "+Wm", {"WindowCenter": 1500}),
    "window, LINEAR_EXACT": (STEEP, "+Wi 1", {**WINDOW, "VOILUTFunction": "LINEAR_EXACT"}),
    "window, SIGMOID": (STEEP, "+Wi 1", {**WINDOW, "VOILUTFunction": "SIGMOID"}),
    "INVERSE": (STEEP, "+Wi 1", {**WINDOW, "PresentationLUTShape": "INVERSE"}),
    "IDENTITY": (STEEP, "+Wi 1", {**WINDOW, "PresentationLUTShape": "IDENTITY"}),
    "INVERSE, MONOCHROME1": (
        STEEP,
        "+Wi 1",
        {**WINDOW, "photometric": "MONOCHROME1", "PresentationLUTShape": "INVERSE"},
    ),
    "IDENTITY, MONOCHROME1": (
        STEEP,
        "+Wi 1",
        {**WINDOW, "photometric": "MONOCHROME1", "PresentationLUTShape": "IDENTITY"},
    ),
    "high bit 15": (STEEP << 4, "+Wi 1", {**WINDOW, "HighBit": 15}),
    "high bit 15, no window": (STEEP << 4 | LITTER & 15, "+Wm", {**TWELVE, "HighBit": 15}),
    "high bit 13, other bits litter": (STEEP << 2 | LITTER & 0xC003, "+Wi 1", {**WINDOW, "HighBit": 13}),
    "overlay in the high bits": (STEEP | LITTER & 0xF000, "+Wi 1", WINDOW),
    "overlay in the high bits, no window": (STEEP | LITTER & 0xF000, "+Wm", TWELVE),
    "table": (STEEP, "+Wl 1", {"VOILUTSequence": lut(300, 12, rising(2701, 12))}),
    "table, partly": (STEEP, "+Wl 1", {"VOILUTSequence": lut(1000, 16, rising(1000, 16))}),
    "table and window": (STEEP, "+Wl 1", {**WINDOW, "VOILUTSequence": lut(1000, 16, rising(1000, 16))}),
    "table of bytes": (
        STEEP,
        "+Wl 1",
        broken("VOILUTSequence", LUTDescriptor=[4096, 0, 8], LUTData=bytes(n // 16 for n in range(4096))),
    ),
    "empty table and window": (STEEP, "+Wi 1", {**WINDOW, **broken("VOILUTSequence")}),
    "short table and window": (
        STEEP,
        "+Wi 1",
        {**WINDOW, **broken("VOILUTSequence", LUTDescriptor=[300, 0, 16], LUTData=bytes(6))},
    ),
    "empty modality table and window": (STEEP, "+Wi 1", {**WINDOW, **broken("ModalityLUTSequence")}),
}

# What `dcm2pnm` of dcmtk 3.6.7 shows of each with that option: every 17th pixel, as hexadecimal numbers.
DCMTK = {
    "no window": "00102132435465768798a9bacbdcedfe",
    "no window, 12 bits": "00102132435465768798a9bacbdcedfe",
    "no window, 8 bits": "00102132435465768798a9bacbdcedfe",
    "no window, MONOCHROME1": "ffeeddccbbaa99887766554433221100",
    "no window, signed": "00112233445566778899aabbccddeeff",
    "no window, padding": "000000475666758493a3b2c1d1e0efff",
    "no window, slope": "00102132435465768898a9baccddeeff",
    "no window, falling slope": "ffeeddccbbaa99887766554433221100",
    "no window, slope without intercept": "00102132435465768798a9bacbdcedfe",
    "no window, modality table": "ffeeddccbbaa99887766554433221100",
    "window": "000000000533608ebceaffffffffffff",
    "first of two windows": "000000000533608ebceaffffffffffff",
    "window, MONOCHROME1": "fffffffff9cb9e704214000000000000",
    "window, signed": "0000000000265482b0deffffffffffff",
    "window, 12 signed bits of 16": "0000000000265482b0deffffffffffff",
    "window, slope": "000000001c4a78a5d3ffffffffffffff",
    "window, falling slope": "ffffffffe1c2a4856648290b00000000",
    "window, modality table": "ffffffffffffffffe8a25d1700000000",
    "window of width 1": "00000000000000ffffffffffffffffff",
    "window of width 2": "00000000000000ffffffffffffffffff",
    "window of width 0": "00102132435465768798a9bacbdcedfe",
    "window of negative width": "00102132435465768798a9bacbdcedfe",
    "window without width": "00102132435465768798a9bacbdcedfe",
    "window, LINEAR_EXACT": "000000000533608ebceaffffffffffff",
    "window, SIGMOID": "02040810203b618eb8d6e9f4f9fcfdfe",
    "INVERSE": "fffffffff9cb9e704214000000000000",
    "IDENTITY": "000000000533608ebceaffffffffffff",
    "INVERSE, MONOCHROME1": "fffffffff9cb9e704214000000000000",
    "IDENTITY, MONOCHROME1": "000000000533608ebceaffffffffffff",
    "high bit 15": "000000000533608ebceaffffffffffff",
    "high bit 15, no window": "00102132435465768798a9bacbdcedfe",
    "high bit 13, other bits litter": "000000000533608ebceaffffffffffff",
    "overlay in the high bits": "000000000533608ebceaffffffffffff",
    "overlay in the high bits, no window": "00102132435465768798a9bacbdcedfe",
    "table": "00112233445566778899aabbccddeeff",
    "table, partly": "000000000533618fbdebffffffffffff",
    "table and window": "000000000533618fbdebffffffffffff",
    "table of bytes": "121e29343f4b56616c78838e99a5b0bb",
    "empty table and window": "000000000533608ebceaffffffffffff",
    "short table and window": "000000000533608ebceaffffffffffff",
    "empty modality table and window": "000000000533608ebceaffffffffffff",
}


def within_one(pixels: np.ndarray, expected: np.ndarray) -> bool:
    return bool(np.abs(pixels.astype(int) - expected).max() <= 1)


@pytest.mark.parametrize("name", SHADES)
def test_shades_are_those_of_dcmtk_within_one_of_256(name):
    stored, _, tags = SHADES[name]
    expected = np.frombuffer(bytes.fromhex(DCMTK[name]), np.uint8)
    assert within_one(shown(stored, **tags).ravel()[::17], expected)


@pytest.mark.skipif(shutil.which("dcm2pnm") is None, reason="dcmtk's dcm2pnm is not installed")
def test_every_pixel_is_that_of_the_dcmtk_at_hand_within_one_of_256(tmp_path):
    for name, (stored, option, tags) in SHADES.items():
        (tmp_path / "in.dcm").write_bytes(dicom(stored, **tags))
        command = ["dcm2pnm", "-O", *option.split(), "+op", tmp_path / "in.dcm", tmp_path / "out.pgm"]
        subprocess.run(command, check=True, capture_output=True)
        with Image.open(tmp_path / "out.pgm") as image:
            assert within_one(shown(stored, **tags), np.asarray(image)), name


def test_one_value_everywhere_is_black_and_no_error():
    assert np.all(shown(np.full((16, 16), 700, np.uint16)) == 0)


def test_bytes_in_the_other_order_are_read_in_it():
    one, two = (
        decode_image((FILES / f"MR_small{order}.dcm").read_bytes(), SMALL) for order in ("", "_bigendian")
    )
    assert np.array_equal(one.pixels, two.pixels)


# ---- compressed -----------------------------------------------------------------------------------------


def compressed(syntax: str, frame: bytes, side: int = 16, **tags) -> bytes:
    """A DICOM file whose one frame is compressed."""
    data = pydicom.dcmread(io.BytesIO(dicom(np.zeros((1, 1), np.uint8))))
    data.file_meta.TransferSyntaxUID = syntax
    data.Rows = data.Columns = side
    data.PixelData = encapsulate([frame])
    data["PixelData"].VR = "OB"
    for name, value in tags.items():
        setattr(data, name, value)
    buffer = io.BytesIO()
    data.save_as(buffer)
    return buffer.getvalue()


BASELINE = "1.2.840.10008.1.2.4.50"
LOSSLESS = "1.2.840.10008.1.2.4.70"
JPEG_LS = "1.2.840.10008.1.2.4.80"
JPEG_2000 = "1.2.840.10008.1.2.4.90"
RLE = "1.2.840.10008.1.2.5"
DEFLATED = "1.2.840.10008.1.2.1.99"


@pytest.mark.parametrize(
    ("name", "low", "high", "mean"),
    [  # the stored values, as dcmtk and pydicom's own tests have them
        ("MR_small_RLE", 127, 2145, 518.881),
        ("MR_small_jp2klossless", 127, 2145, 518.881),
        ("MR_small_jpeg_ls_lossless", 127, 2145, 518.881),
        ("JPEGLSNearLossless_16", 0, 65535, 12014.5),
        ("JPEG2000", -30, 245, 13.458),
        ("JPGExtended", 0, 264, 14.370),  # 12 bits
        ("image_dfl", 0, 255, 127.116),
    ],
)
def test_what_the_extra_brings_decodes_every_transfer_syntax(name, low, high, mean):
    path = FILES / f"{name}.dcm"
    pixels = _pixels(pydicom.dcmread(path))
    assert (pixels.min(), pixels.max(), round(float(pixels.mean()), 3)) == (low, high, mean)
    assert decode_image(path.read_bytes(), SMALL)


def test_nothing_is_written_to_stderr_for_a_jpeg_of_12_bits(capfd):
    """GDCM tries its decoder of 8 bits first, which complains."""
    assert decode_image((FILES / "JPGExtended.dcm").read_bytes(), SMALL)
    assert capfd.readouterr() == ("", "")


def test_a_compressed_frame_that_is_cut_says_why_it_cannot_be_decoded():
    cut = pydicom.dcmread(FILES / "MR_small_jp2klossless.dcm")
    frame = next(generate_frames(cut.PixelData, number_of_frames=1))
    cut.PixelData = encapsulate([frame[: len(frame) // 2]])
    buffer = io.BytesIO()
    cut.save_as(buffer)
    text = "cannot be decoded: broken data stream when reading image file"
    assert reason(buffer.getvalue()) == text


def test_lossless_jpeg_is_decoded_by_what_the_extra_brings():
    """Each difference from the pixel before is a Huffman code of its length, and its bits."""
    frame = lossless_jpeg(STEEP >> 4)
    decoded = decode_image(compressed(LOSSLESS, frame), SMALL)
    assert np.array_equal(decoded.pixels, shown((STEEP >> 4).astype(np.uint8)))


def lossless_jpeg(values: np.ndarray) -> bytes:
    """Encodes 8 bits [height, width] by ISO 10918-1, annex H, with a code of four bits for each length."""
    bits = ""
    rows = values.tolist()
    for y, row in enumerate(rows):
        for x, value in enumerate(row):
            before = row[x - 1] if x else rows[y - 1][0] if y else 128
            difference = value - before
            length = abs(difference).bit_length()
            bits += f"{length:04b}"
            if length:
                bits += f"{difference if difference > 0 else difference + 2**length - 1:0{length}b}"
    bits += "1" * (-len(bits) % 8)
    packed = int(bits, 2).to_bytes(len(bits) // 8, "big").replace(b"\xff", b"\xff\0")
    height, width = values.shape
    table = bytes([0, 0, 0, 0, 15]) + bytes(12) + bytes(range(15))
    return (
        b"\xff\xd8"
        + (b"\xff\xc4" + struct.pack(">H", 2 + len(table)) + table)
        + (b"\xff\xc3" + struct.pack(">HBHHBBBB", 11, 8, height, width, 1, 1, 0x11, 0))
        + b"\xff\xda\0\x08\x01\x01\0\x01\0\0"
        + packed
        + b"\xff\xd9"
    )


def test_damage_of_a_compressed_frame_is_found_where_its_decoder_warns():
    smooth = (np.add.outer(np.arange(64), np.arange(64)) * 2).astype(np.uint8)
    whole = saved(smooth, "JPEG")
    assert decode_image(compressed(BASELINE, whole, 64), SMALL)
    scan = whole.index(b"\xff\xda") + 20
    cut = compressed(BASELINE, whole[:scan] + b"\xff\xd9", 64)
    assert reason(cut) == "damaged JPEG: premature end of data segment"

    frame = lossless_jpeg(smooth)
    assert decode_image(compressed(LOSSLESS, frame, 64), SMALL)
    cut = compressed(LOSSLESS, frame[: len(frame) // 2] + b"\xff\xd9", 64)
    assert reason(cut) == "damaged JPEG in DICOM: premature end of data segment"


def test_without_its_decoder_a_file_says_what_to_install_and_is_known_by_its_error(monkeypatch):
    from pydicom.pixels.decoders.base import get_decoder
    from pydicom.uid import JPEGLSLossless

    data = (FILES / "MR_small_jpeg_ls_lossless.dcm").read_bytes()
    monkeypatch.setattr(get_decoder(JPEGLSLossless), "_available", {})
    with pytest.raises(DecoderMissingError) as caught:
        decode_image(data, SMALL)
    assert str(caught.value) == (
        "DICOM in JPEG-LS Lossless Image Compression, which needs pyjpegls; pip install '.[dicom]' in a clone"
    )


def test_every_package_that_a_message_names_comes_with_the_extra():
    setup = configparser.ConfigParser()
    setup.read(pathlib.Path(__file__).parents[1] / "setup.cfg")
    extra = {line.partition(">")[0] for line in setup["options.extras_require"]["dicom"].split()}
    assert set(_PACKAGES.values()) <= extra
    assert extra <= set(images._DECODERS)
    constraints = (pathlib.Path(__file__).parents[1] / "constraints.txt").read_text()
    for package in (*extra, "simplejpeg"):
        assert re.search(rf"^{re.escape(package)}==", constraints, re.M), package


def test_a_film_is_no_picture():
    assert reason(compressed("1.2.840.10008.1.2.4.102", saved(SQUARE, "JPEG"))) == (
        "DICOM in MPEG-4 AVC/H.264 High Profile / Level 4.1: expected a still picture"
    )


# ---- files that ask for more than they hold -------------------------------------------------------------


def j2k(side: int, samples: int = 1) -> bytes:
    sizes = struct.pack(">HHIIIIIIIIH", 38 + 3 * samples, 0, side, side, 0, 0, side, side, 0, 0, samples)
    return b"\xff\x4f\xff\x51" + sizes + bytes([7, 1, 1]) * samples + b"\xff\xd9\0\0"


def jpeg_header(kind: int, side: int) -> bytes:
    return (
        bytes([255, 216, 255, kind])
        + struct.pack(">HBHHBBBB", 11, 8, side, side, 1, 1, 0x11, 0)
        + b"\xff\xd9"
    )


def rle(encoded: bytes) -> bytes:
    return struct.pack("<16I", 1, 64, *[0] * 14) + encoded


@pytest.mark.parametrize(
    ("syntax", "frame", "text"),
    [
        (JPEG_2000, j2k(60000), "DICOM of 16x16 pixels whose compressed frame is of 60000x60000"),
        (JPEG_2000, j2k(16, 9), "DICOM of 9 samples per pixel: expected one grey frame"),
        (JPEG_LS, jpeg_header(0xF7, 65535), "DICOM of 16x16 pixels whose compressed frame is of 65535x65535"),
        (
            LOSSLESS,
            jpeg_header(0xC3, 65535),
            "DICOM of 16x16 pixels whose compressed frame is of 65535x65535",
        ),
        (BASELINE, saved(ramp(17, 16), "JPEG"), "DICOM of 16x16 pixels whose compressed frame is of 17x16"),
        (BASELINE, b"no JPEG", "DICOM whose compressed frame has no header"),
        (RLE, rle(b"\x81\0" * 100_000), "DICOM whose runs give more than its 256 pixels"),
    ],
    ids=["j2k", "samples", "jpeg-ls", "lossless", "baseline", "junk", "rle"],
)
def test_a_frame_larger_than_its_file_says_is_rejected_before_it_is_decoded(syntax, frame, text):
    assert reason(compressed(syntax, frame)) == text


def test_a_deflated_file_that_inflates_without_end_is_rejected_and_takes_little_memory():
    data = pydicom.dcmread(io.BytesIO(dicom(SQUARE)))
    data.file_meta.TransferSyntaxUID = DEFLATED
    buffer = io.BytesIO()
    data.save_as(buffer)
    whole = buffer.getvalue()
    assert np.array_equal(decode_image(whole, SMALL).pixels, shown(SQUARE))

    deflater = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    bomb = b"".join([deflater.compress(bytes(1 << 20)) for _ in range(400)]) + deflater.flush()
    # Twelve bytes of an element of two letters and a short length stand before what is compressed.
    header = 144 + int.from_bytes(whole[140:144], "little")
    tracemalloc.start()
    text = reason(whole[:header] + bomb)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert text == "DICOM that inflates to more than 201,326,592 bytes"
    assert peak < 16 << 20


@pytest.mark.parametrize("depth", [1000, 100_000])
def test_sequences_within_sequences_without_end_are_rejected(depth):
    whole = dicom(SQUARE)
    opened = struct.pack("<HH2sHI", 8, 0x1140, b"SQ", 0, 0xFFFFFFFF) + struct.pack(
        "<HHI", 0xFFFE, 0xE000, 0xFFFFFFFF
    )
    closed = struct.pack("<HHIHHI", 0xFFFE, 0xE00D, 0, 0xFFFE, 0xE0DD, 0)
    at = whole.index(struct.pack("<HH", 0x28, 2))
    nested = whole[:at] + opened * depth + closed * depth + whole[at:]
    assert reason(nested) == "cannot be decoded: parts within parts without end"


@pytest.mark.parametrize("name", ["Rows", "Columns", "PhotometricInterpretation", "BitsStored", "PixelData"])
def test_a_dicom_without_a_picture_says_what_is_missing(name):
    assert reason(dicom(SQUARE, **{name: None})) == f"DICOM that holds no picture: it has no {name}"


@pytest.mark.parametrize(
    ("tags", "text"),
    [
        ({"BitsStored": 12, "HighBit": 3}, "DICOM of 12 bits up to bit 3, of 16 in all"),
        ({"BitsStored": 12, "HighBit": 16}, "DICOM of 12 bits up to bit 16, of 16 in all"),
        ({"BitsAllocated": 32}, "DICOM of 32 bits per pixel: expected 16 at most"),
    ],
    ids=str,
)
def test_bits_that_cannot_be_are_rejected(tags, text):
    assert reason(dicom(STEEP, **tags)) == text


@given(st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), min_size=1, max_size=4))
@settings(max_examples=100)
def test_a_damaged_compressed_file_is_decoded_or_rejected_and_nothing_else(changes):
    for whole in DAMAGED:
        data = bytearray(whole)
        for place, value in changes:
            data[place % len(data)] = value
        with contextlib.suppress(ImageDecodeError):
            assert decode_image(bytes(data), SMALL).pixels.shape == (16, 16)


DAMAGED = (
    compressed(LOSSLESS, lossless_jpeg(FULL)),
    compressed(BASELINE, saved(FULL, "JPEG")),
    compressed(RLE, rle(b"\x0f" + bytes(range(16)) + b"\x81\x07" * 2 + b"\0" * 2)),
)


@pytest.mark.parametrize(
    ("stored", "tags", "text"),
    [
        (colours(16, 16), {"photometric": "RGB"}, "DICOM of 1 RGB frames: expected one grey frame"),
        (
            np.zeros((16, 16), np.uint8),
            {"NumberOfFrames": 3},
            "DICOM of 3 MONOCHROME2 frames: expected one grey frame",
        ),
        (
            SQUARE,
            {"NumberOfFrames": 10**9},
            "DICOM of 1000000000 MONOCHROME2 frames: expected one grey frame",
        ),
        (SQUARE, {"Rows": 60000, "Columns": 60000}, "60000x60000 pixels, more than the 67,108,864 allowed"),
        (
            SQUARE,
            {"RescaleSlope": 0, "RescaleIntercept": 5},
            "DICOM whose tables give one value for every pixel",
        ),
    ],
    ids=["colour", "frames", "many frames", "bomb", "flat"],
)
def test_a_dicom_that_is_no_grey_picture_is_rejected_in_these_words(stored, tags, text):
    assert reason(dicom(stored, **tags)) == text


@pytest.mark.parametrize(
    "tags",
    [
        {"Rows": 17},
        {"Rows": 0},
        {"Columns": 0},
        {"BitsAllocated": 7},
    ],
    ids=str,
)
def test_a_dicom_that_contradicts_itself_is_rejected(tags):
    assert reason(dicom(SQUARE, **tags)).startswith("cannot be decoded: ")


def test_without_pydicom_a_dicom_stops_the_work_with_the_package_to_install(monkeypatch):
    data = dicom(SQUARE)
    monkeypatch.setitem(sys.modules, "pydicom", None)
    with pytest.raises(CxrError) as error:
        decode_image(data, SMALL)
    assert str(error.value) == "DICOM files need an extra package; pip install '.[dicom]' in a clone"


def test_of_two_real_dicoms_of_one_picture_monochrome1_is_the_inverse(nih):
    one, two = (
        decode_image((nih / "dicom" / f"monochrome{n}_8bit_jpeg.dcm").read_bytes(), ImageFormat())
        for n in (1, 2)
    )
    assert np.abs(one.pixels.astype(int) + two.pixels - 255).max() <= 1
    assert (one.mode, two.mode) == ("MONOCHROME1", "MONOCHROME2")
    assert (one.width, one.height) == (1024, 1024)


def test_a_real_dicom_of_15_bits_in_jpeg2000_is_windowed_and_inverted(nih):
    path = nih / "dicom" / "monochrome1_15bit_jpeg2000.dcm"
    decoded = decode_image(path.read_bytes(), ImageFormat())
    stored = pydicom.dcmread(path)
    assert (decoded.width, decoded.height, decoded.mode) == (stored.Columns, stored.Rows, "MONOCHROME1")
    # PS3.3, C.11.2.1.2.1 with the window 15000 / 30000 of the file; MONOCHROME1 shows small values white.
    window = ((stored.pixel_array - (15000 - 0.5)) / (30000 - 1) + 0.5).clip(0, 1)
    grey = Image.fromarray(np.rint((1 - window) * 255).astype(np.uint8))
    assert np.abs(decoded.pixels.astype(int) - resized(grey, ImageFormat())).max() <= 1


def test_a_dicom_cut_anywhere_is_rejected():
    whole = dicom(SQUARE)
    for end in range(0, len(whole), 7):
        assert reason(whole[:end])


def test_a_data_set_without_preamble_is_told_from_what_is_no_image():
    whole = dicom(ramp())
    bare = "DICOM without the 132 bytes that every file begins with; write it anew, as with dcmtk's dcmconv"
    assert reason(whole[132:]) == bare
    assert reason(whole[whole.index(b"\x08\0\x16\0") :]) == bare  # nor a header of the file
    assert reason(b"\x08\0") == "no PNG, JPEG or DICOM: begins with '\\x08\\x00'"


def test_pixels_of_more_frames_than_are_told_are_rejected_with_their_shape():
    picture = ramp().astype(np.uint8)
    twice = dicom(picture, PixelData=picture.tobytes() * 2)
    assert reason(twice) == "DICOM whose pixels are 2x30x40 samples: expected one grey frame"


MANY = 10_000


@pytest.mark.parametrize("deflated", [False, True], ids=["plain", "deflated"])
@pytest.mark.parametrize("within", ["the file", "a sequence", "items"])
def test_a_dicom_of_very_many_elements_is_rejected(within, deflated, monkeypatch):
    monkeypatch.setattr("cxr_records.dicom.MAX_ELEMENTS", MANY)
    whole = dicom(ramp())
    elements = b"".join(struct.pack("<HH", 9, 0x1000 + n) + b"LO\2\0a " for n in range(3 * MANY))
    start, end = b"\xff" * 4, b"\xfe\xff\xdd\xe0" + bytes(4)
    item = b"\xfe\xff\x00\xe0"
    put = {
        "the file": elements,
        "a sequence": b"\x09\0\x10\x10SQ\0\0"
        + start
        + item
        + start
        + elements
        + item[:2]
        + b"\x0d\xe0"
        + bytes(4)
        + end,
        "items": b"\x09\0\x10\x10SQ\0\0" + start + (item + bytes(4)) * 3 * MANY + end,
    }[within]
    at = whole.index(b"\x28\0\x02\0")
    data = whole[:at] + put + whole[at:]
    if deflated:
        data = deflate(data)
    assert reason(data) == "DICOM of more than 200,000 elements"


def deflate(data: bytes) -> bytes:
    """A file of explicit elements as one of the deflated transfer syntax."""
    stream = io.BytesIO()
    meta = pydicom.dcmread(io.BytesIO(data)).file_meta
    start = 132 + 12 + meta.FileMetaInformationGroupLength
    meta.TransferSyntaxUID = DEFLATED
    pydicom.filewriter.write_file_meta_info(stream, meta)
    packer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return data[:132] + stream.getvalue() + packer.compress(data[start:]) + packer.flush()


def test_a_deflated_file_has_the_pixels_of_the_plain_one():
    whole = dicom(ramp().astype(np.uint16) * 7, WindowCenter=700, WindowWidth=900)
    assert np.array_equal(decode_image(deflate(whole), SMALL).pixels, decode_image(whole, SMALL).pixels)
    assert reason(deflate(whole)[:-20]).startswith("cannot be decoded: ")


def test_tables_of_very_many_items_are_read_by_no_one():
    whole = dicom(ramp(), WindowCenter=100, WindowWidth=50)
    items = b"\xfe\xff\x00\xe0\0\0\0\0" * 600_000
    at = whole.index(b"\xe0\x7f\x10\0")
    tables = b"\x28\0\x10\x30SQ\0\0" + struct.pack("<I", len(items)) + items
    data = whole[:at] + tables + whole[at:]
    assert np.array_equal(decode_image(data, SMALL).pixels, decode_image(whole, SMALL).pixels)


def test_a_frame_in_very_many_pieces_is_rejected():
    data = pydicom.dcmread(io.BytesIO(dicom(ramp())))
    data.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.5"
    data.PixelData = encapsulate([bytes(64)]) + b"\xfe\xff\x00\xe0\0\0\0\0" * 200_001
    data["PixelData"].is_undefined_length = True
    stream = io.BytesIO()
    data.save_as(stream)
    assert reason(stream.getvalue()) == "DICOM of more than 200,000 elements"
