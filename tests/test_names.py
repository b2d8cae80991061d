"""One rule for the names of images."""

import pytest

from cxr_records.names import ImageNames, base_name, is_litter, patient_in_name, patients_told, stem


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("00000001_000.png", "00000001_000.png"),
        ("images_001/images/00000001_000.png", "00000001_000.png"),
        ("C:\\nih\\00000001_000.png", "00000001_000.png"),
        ("00000001_000", "00000001_000.png"),
        ("images/00000001_000.dcm", "00000001_000.png"),
        ("00000001_000.PNG", "00000001_000.png"),
        (" 00000001_000.JPEG ", "00000001_000.png"),
        ("00000001_000.txt", None),
        ("00000001_001.png", None),
        ("1.2.840.113", "1.2.840.113.png"),
        ("1.2.840", None),
        ("", None),
    ],
)
def test_an_image_is_found_with_or_without_folder_and_ending(name, expected):
    assert ImageNames(["00000001_000.png", "1.2.840.113.png"]).find(name) == expected


def test_of_two_images_that_differ_in_their_ending_each_is_found_by_its_whole_name_alone():
    names = ImageNames(["a.png", "a.jpg"])
    assert [names.find(name) for name in ("a.png", "x/a.jpg", "a", "a.dcm")] == ["a.png", "a.jpg", None, None]


def test_only_endings_of_images_are_taken_off():
    assert [stem(name) for name in ("x/1.2.3", "1.2.3.dcm", "a.tar.png", "b.DICOM")] == [
        "1.2.3",
        "1.2.3",
        "a.tar",
        "b",
    ]
    assert base_name("a\\b/c") == "c"


@pytest.mark.parametrize(
    "address", ["https://u:pw@h.org/a/b.png?token=secret", "http://h/b.png#x", "s3://h/b.png?Signature=x"]
)
def test_what_signs_a_web_address_is_no_part_of_the_name(address):
    assert base_name(address) == "b.png"
    assert stem(address) == "b"


@pytest.mark.parametrize(
    ("name", "patient"),
    [
        ("00000013_005.png", 13),
        ("x/00030805_000.dcm", 30805),
        ("00000013_005", 13),
        ("0000013_005.png", None),
        ("00000013_05.png", None),
        ("a00000013_005.png", None),
        ("00000013_005_b.png", 13),
        ("00000013_005.png.jpg", 13),
        ("00000013_0050.png", None),
        ("20190101_005.png", None),
    ],
)
def test_a_name_of_nihs_form_tells_the_patient(name, patient):
    assert patient_in_name(name) == patient


@pytest.mark.parametrize(
    ("names", "patients", "told"),
    [
        (["00000001_000.png", "00000002_000.dcm"], [1, 2], {}),
        (["00000001_000.png", "00000002_000.dcm", "00000002_001"], [1, 1, 3], {1: 2, 2: 2}),
        (["a.png", "1.2.840", "00000002.png", "00000001_000_b.png"], [1, 2, 3, 4], {3: 1}),
        (["123456789_000.png", "00012345_000.png"], [123456789, 123456789], {1: 12345}),
        (["20190101_001.png", "20190102_001.png"], [1, 2], {}),
        ([], [], {}),
    ],
)
def test_patients_who_are_not_those_of_the_names_are_found(names, patients, told):
    assert patients_told(names, patients) == told


@pytest.mark.parametrize(
    "path",
    [
        ".Trash-1000/files/a.png",
        "images/.AppleDouble/a.png",
        "lost+found/#12345.png",
        ".DS_Store",
        "._a.png",
        "__MACOSX/images/a.png",
        "@eaDir/a.png/SYNOPHOTO_THUMB_XL.jpg",
        "images/Thumbs.db",
        "DESKTOP.INI",
        ".ipynb_checkpoints/a-checkpoint.png",
        "$RECYCLE.BIN/S-1-5/$RABC.png",
        "images\\.hidden\\a.png",
        "/.hidden/a.png",
    ],
)
def test_hidden_files_and_what_systems_leave_are_litter(path):
    assert is_litter(path)


@pytest.mark.parametrize(
    "path",
    [
        "a.png",
        "images_001/images/a.png",
        "./a.png",
        "../a.png",
        "a.b/c.png",
        "",
        "/",
        "lost/found/a.png",
        "MACOSX/a",
    ],
)
def test_what_a_user_named_is_no_litter(path):
    assert not is_litter(path)
