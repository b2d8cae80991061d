import sys

import numpy as np
import pytest
from pictures import DEEP, FULL, SMALL, SQUARE, TWELVE, colours, dicom, lut, reason, resized, shown
from PIL import Image

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
    import pydicom

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
