"""The same picture in two splits or of two patients: at build, in the manifest, by verify."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import manifest_json
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from cxr_records import cli
from cxr_records.duplicates import Picture, duplicates_warnings, find_duplicates, touches_test
from cxr_records.manifest import DuplicateImages, Manifest, read_manifest
from cxr_records.verification import check_dataset

SPLITS = {"train": range(1, 9), "validation": range(9, 11), "test": range(11, 15)}


def name(patient: int, number: int = 0) -> str:
    return f"{patient:08d}_{number:03d}.png"


def write_image(path: Path, seed: int, compress_level: int = 1) -> None:
    pixels = np.random.default_rng(seed).integers(0, 256, (32, 32), np.uint8)
    Image.fromarray(pixels).save(path, compress_level=compress_level)


@pytest.fixture
def small(tmp_path) -> Path:
    """14 patients with two images each, all different, and lists that put them into three splits."""
    (tmp_path / "images").mkdir()
    rows = ["Image Index,Finding Labels,Patient ID"]
    for split, patients in SPLITS.items():
        names = [name(patient, number) for patient in patients for number in (0, 1)]
        (tmp_path / f"{split}.txt").write_text("\n".join(names) + "\n")
        for one in names:
            write_image(tmp_path / "images" / one, len(rows))
            rows.append(f"{one},{'Mass' if len(rows) % 3 else 'No Finding'},{int(one[:8])}")
    (tmp_path / "table.csv").write_text("\n".join(rows) + "\n")
    both = (tmp_path / "train.txt").read_text() + (tmp_path / "validation.txt").read_text()
    (tmp_path / "train_val.txt").write_text(both)
    return tmp_path


def build(capsys, small: Path, *words: str) -> tuple[dict, str]:
    """Builds the small set; returns what --json prints, and the warning about pictures, "" where none is."""
    capsys.readouterr()
    code = cli.run(
        [
            *("build", "--images", str(small / "images"), "--metadata", str(small / "table.csv")),
            *("--train-val-list", str(small / "train_val.txt"), "--test-list", str(small / "test.txt")),
            *("--validation-list", str(small / "validation.txt"), "--out", str(small / "ds")),
            *("--size", "16", "--workers", "1", "--json", *words),
        ]
    )
    out, err = capsys.readouterr()
    assert code == 0, err
    told = [line for line in err.splitlines() if " two splits " in line]
    assert [f"warning: {line}" for line in json.loads(out)["warnings"] if " two splits " in line] == told
    return json.loads(out), "".join(told)


def copy(small: Path, source: str, *targets: str) -> None:
    for target in targets:
        shutil.copy(small / "images" / source, small / "images" / target)


def test_different_pictures_are_no_duplicates(small, capsys):
    told, warning = build(capsys, small)

    assert (told["duplicates"], warning) == (0, "")
    assert "duplicates" not in manifest_json(small / "ds")
    assert check_dataset(str(small / "ds"), deep=True) == []


def test_a_test_image_that_is_a_training_image_is_said_listed_and_a_problem(small, capsys):
    copy(small, name(2), name(12, 1))
    copy(small, name(3), name(9))  # validation has it too

    told, warning = build(capsys, small)

    assert told["duplicates"] == 2
    assert warning == (
        "warning: 2 pictures are in two splits or of two patients (the first: 00000002_000.png of train, "
        "patient 2, and 00000012_001.png of test, patient 12; the same bytes); the manifest lists all"
    )
    assert read_manifest(str(small / "ds")).duplicates == (
        DuplicateImages((name(2), name(12, 1)), ("train", "test"), (2, 12), "source"),
        DuplicateImages((name(3), name(9)), ("train", "validation"), (3, 9), "source"),
    )
    (problem,) = check_dataset(str(small / "ds"), deep=True)
    assert problem.image == name(12, 1)
    assert problem.message == "the same pixels as 00000002_000.png of train, patient 2"
    assert check_dataset(str(small / "ds")) == []
    assert cli.run(["verify", str(small / "ds"), "--deep"]) == 3


@pytest.mark.parametrize("codec", ["raw", "png", "jpeg"])
def test_the_same_pixels_in_other_bytes_are_the_same_picture(small, capsys, codec):
    write_image(small / "images" / name(12), 1, compress_level=9)  # that of name(1)

    told, warning = build(capsys, small, "--codec", codec)

    assert told["duplicates"] == 1
    assert warning.endswith("; the same pixels); the manifest lists all")
    assert [group.same for group in read_manifest(str(small / "ds")).duplicates] == ["pixels"]
    (problem,) = check_dataset(str(small / "ds"), deep=True)
    assert problem.message == "the same pixels as 00000001_000.png of train, patient 1"


def test_two_patients_of_one_split_are_said_and_listed_and_no_problem(small, capsys):
    copy(small, name(2), name(3), name(3, 1))

    _, warning = build(capsys, small)

    assert warning.startswith(
        "warning: 1 picture is in two splits or of two patients (the first: 00000002_000.png of train, "
        "patient 2, and 00000003_000.png of train, patient 3; the same bytes)"
    )
    (group,) = manifest_json(small / "ds")["duplicates"]
    assert group == {
        "images": [name(2), name(3), name(3, 1)],
        "splits": ["train"] * 3,
        "patients": [2, 3, 3],
        "same": "source",
    }
    assert check_dataset(str(small / "ds"), deep=True) == []


def test_two_images_of_one_patient_are_nothing(small, capsys):
    copy(small, name(12), name(12, 1))

    told, warning = build(capsys, small)

    assert (told["duplicates"], warning) == (0, "")
    assert check_dataset(str(small / "ds"), deep=True) == []


def test_duplicates_are_no_part_of_the_id_but_of_the_checksum(small, capsys):
    copy(small, name(2), name(12))
    build(capsys, small)

    manifest = read_manifest(str(small / "ds"))
    content = manifest.to_json()
    assert Manifest.from_json(json.loads(json.dumps(content))) == manifest
    without = Manifest.from_json({key: value for key, value in content.items() if key != "duplicates"})
    assert without.id == manifest.id
    assert without.to_json()["checksum"] != content["checksum"]


def test_a_picture_that_test_and_train_have_is_shown_before_others():
    others = DuplicateImages(("a", "b"), ("train", "train"), (1, 2), "pixels")
    tested = DuplicateImages(("c", "d", "e"), ("test", "test", "validation"), (3, 3, 4), "pixels")
    assert (touches_test(others), touches_test(tested)) == (False, True)
    assert not touches_test(DuplicateImages(("c", "d"), ("test", "test"), (3, 4), "source"))
    assert duplicates_warnings((others, tested)) == [
        "2 pictures are in two splits or of two patients (the first: c of test, patient 3, and e of "
        "validation, patient 4; the same pixels); the manifest lists all"
    ]
    assert duplicates_warnings(()) == []


def test_the_same_file_decoded_to_other_pixels_by_another_version_is_the_same_picture():
    pictures = [Picture("a", "train", 1, "x", "p"), Picture("b", "test", 2, "x", "q")]
    assert find_duplicates(pictures) == (DuplicateImages(("a", "b"), ("train", "test"), (1, 2), "source"),)


patient_splits = {1: "train", 2: "train", 3: "validation", 4: "test", 5: "test"}
drawn = st.lists(st.tuples(st.sampled_from(sorted(patient_splits)), st.integers(0, 4)), max_size=12)


@given(drawn, st.randoms())
def test_groups_are_what_two_images_say_of_each_other_whatever_their_order(images, random):
    pictures = [
        Picture(f"{number:02}", patient_splits[patient], patient, f"file {shown} {number % 2}", f"{shown}")
        for number, (patient, shown) in enumerate(images)
    ]
    shuffled = list(pictures)
    random.shuffle(shuffled)
    groups = find_duplicates(shuffled)
    assert groups == find_duplicates(pictures)
    of = {image: group for group in groups for image in group.images}
    for one in pictures:
        other_patient = any(one.pixels == p.pixels and one.patient != p.patient for p in pictures)
        assert (one.image in of) == other_patient
        if one.image in of:
            group = of[one.image]
            assert group.images == tuple(p.image for p in pictures if p.pixels == one.pixels)
            place = group.images.index(one.image)
            assert (group.splits[place], group.patients[place]) == (one.split, one.patient)
            sources = {p.source for p in pictures if p.pixels == one.pixels}
            assert group.same == ("source" if len(sources) == 1 else "pixels")
