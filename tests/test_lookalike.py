import csv
import dataclasses
import hashlib
import io
import json
import os
import statistics
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cxr_records import lookalike
from cxr_records.boxes import read_boxes
from cxr_records.errors import UsageError
from cxr_records.findings import FINDINGS, parse_findings
from cxr_records.lookalike import make_lookalike
from cxr_records.lookalike_drawing import boxes_of, draw_image
from cxr_records.lookalike_patients import plan_images

# Copied from the files that NIH and Kaggle offer, but for the column that tells drawings from X-rays.
HEADER_2020 = (
    "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position,Drawn by,"
    "OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y]"
)
HEADER_SAMPLE = (
    "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position,Drawn by,"
    "OriginalImageWidth,OriginalImageHeight,OriginalImagePixelSpacing_x,OriginalImagePixelSpacing_y"
)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return make_lookalike(tmp_path_factory.mktemp("lookalike") / "set", num_images=600, image_size=32)


def rows_of(path: Path) -> list[list[str]]:
    return list(csv.reader(io.StringIO(path.read_text())))[1:]


def digests(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


# ---- tables and lists


def test_headers_and_line_ends_are_those_of_the_real_files(small):
    assert small.metadata.read_bytes().startswith(HEADER_2020.encode() + b"\n0000")
    assert b"\r" not in small.metadata.read_bytes()
    assert small.metadata_2017.read_bytes().startswith(HEADER_2020.encode() + b",\r\n0000")
    assert small.metadata_sample.read_bytes().startswith(HEADER_SAMPLE.encode() + b"\r\n0000")


def test_every_line_of_2017_ends_in_a_comma_and_has_twelve_fields(small):
    lines = small.metadata_2017.read_bytes().split(b"\r\n")
    assert lines.pop() == b""
    assert len(lines) == 601
    assert all(line.endswith(b",") and line.count(b",") == 12 for line in lines)


def test_all_tables_name_the_same_images_with_the_same_findings(small):
    tables = [rows_of(path) for path in (small.metadata, small.metadata_2017, small.metadata_sample)]
    findings = [{row[0]: parse_findings(row[1]).tolist() for row in table} for table in tables]
    assert [len(table) for table in tables] == [600, 600, 600]
    assert findings[0] == findings[1] == findings[2]
    # Sex, view and size too.
    assert len({tuple(sorted((row[0], *row[5:10]) for row in table)) for table in tables}) == 1
    assert {row[7] for table in tables for row in table} == {"cxr_records"}


def test_2020_has_labels_out_of_order_renumbered_follow_ups_and_unsorted_rows(small):
    rows = rows_of(small.metadata)
    names = [row[0] for row in rows]
    unordered = [row for row in rows if row[1].split("|") != sorted(row[1].split("|"))]
    renumbered = [row for row in rows if int(row[0][9:12]) != int(row[2])]
    test = set(small.test_list.read_text().split())
    assert names != sorted(names)
    assert unordered
    assert {row[0] for row in unordered} <= test
    assert 0.1 < len(renumbered) / len(rows) < 0.35
    assert [(int(row[3]), int(row[2])) for row in rows] == sorted((int(row[3]), int(row[2])) for row in rows)
    assert all(row[3] == str(int(row[3])) and 0 <= int(row[4]) <= 95 for row in rows)


def test_2017_pads_numbers_and_writes_odd_ages(small):
    rows = rows_of(small.metadata_2017)
    ages = [row[4] for row in rows]
    assert [row[0] for row in rows] == sorted(row[0] for row in rows)
    assert all(row[0] == f"{row[3]}_{row[2]}.png" and len(row[3]) == 8 for row in rows)
    assert sorted(age for age in ages if not age.endswith("Y")) == ["001D", "005M", "011M", "018M"]
    assert [age for age in ages if int(age[:3]) > 100] == ["414Y"]
    assert {len(age) for age in ages} == {4}


def test_ages_differ_by_a_year_in_about_a_quarter_of_the_rows(small):
    new = {row[0]: int(row[4]) for row in rows_of(small.metadata)}
    old = {row[0]: row[4] for row in rows_of(small.metadata_2017)}
    older = [int(age[:3]) - new[name] for name, age in old.items() if age.endswith("Y") and age != "414Y"]
    assert set(older) == {0, 1}
    assert 0.15 < statistics.mean(older) < 0.35


def test_spacing_is_printed_as_in_each_table(small):
    assert {row[10] for row in rows_of(small.metadata)} >= {"0.14300000000000002", "0.168", "0.139"}
    assert {row[10] for row in rows_of(small.metadata_2017)} >= {"0.143", "0.168", "0.139"}


def test_lists_hold_every_image_once_and_share_no_patient(small):
    train_val = small.train_val_list.read_text().splitlines()
    test = small.test_list.read_text().splitlines()
    assert len(test) == round(600 * 0.2283)
    assert sorted(train_val + test) == sorted(row[0] for row in rows_of(small.metadata))
    assert not {name[:8] for name in train_val} & {name[:8] for name in test}


def test_sex_is_constant_per_patient_and_views_are_mixed(small):
    rows = rows_of(small.metadata)
    assert len({(row[3], row[5]) for row in rows}) == len({row[3] for row in rows})
    assert 0.25 < sum(row[6] == "AP" for row in rows) / len(rows) < 0.55


# ---- images


def test_images_lie_in_two_nested_folders_as_on_kaggle(small):
    paths = sorted(small.images.rglob("*"))
    files = [path.relative_to(small.images) for path in paths if path.is_file()]
    assert {str(file.parent) for file in files} == {"images_001/images", "images_002/images"}
    assert sorted(file.name for file in files) == sorted(row[0] for row in rows_of(small.metadata))


def test_one_in_a_hundred_is_rgba_with_equal_channels_and_the_rest_is_grey(small):
    coloured = 0
    for path in small.images.rglob("*.png"):
        with Image.open(path) as image:
            assert image.size == (32, 32)
            if image.mode == "RGBA":
                coloured += 1
                red, green, blue, alpha = np.moveaxis(np.asarray(image), 2, 0)
                assert (red == green).all()
                assert (red == blue).all()
                assert (alpha == 255).all()
            else:
                assert image.mode == "L"
    assert coloured == 6
    assert sum(image.rgba for image in plan_images(50, 3)) == 1


def test_pngs_of_1024_pixels_take_about_400_kb():
    plan = plan_images(600, 0)
    encoded = [lookalike._encode(draw_image(image, 1024, 0), False) for image in plan[:600:50]]
    sizes = [len(data) for data in encoded]
    assert 380_000 < statistics.median(sizes) < 460_000
    assert min(sizes) > 300_000
    assert max(sizes) < 500_000
    with Image.open(io.BytesIO(encoded[0])) as image:
        assert (image.size, image.mode) == ((1024, 1024), "L")


# ---- the same bytes again


def test_bytes_do_not_depend_on_the_number_of_workers(tmp_path):
    make_lookalike(tmp_path / "one", num_images=60, image_size=48, seed=5)
    make_lookalike(tmp_path / "two", num_images=60, image_size=48, seed=5, workers=2)
    assert digests(tmp_path / "one") == digests(tmp_path / "two")
    assert len(digests(tmp_path / "one")) == 60 + 7


def test_a_finished_set_is_left_as_it_is(tmp_path):
    paths = make_lookalike(tmp_path, num_images=50, image_size=32)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    assert make_lookalike(tmp_path, num_images=50, image_size=32) == paths
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_a_killed_call_is_finished_by_the_same_call(tmp_path, monkeypatch):
    whole = digests(make_lookalike(tmp_path / "whole", num_images=50, image_size=32).images.parent)
    drawn = []

    def killed(image, size, seed):
        if len(drawn) == 20:
            raise KeyboardInterrupt
        drawn.append(image.image_id)
        return draw_image(image, size, seed)

    with monkeypatch.context() as patch:
        patch.setattr(lookalike, "draw_image", killed)
        with pytest.raises(KeyboardInterrupt):
            make_lookalike(tmp_path / "cut", num_images=50, image_size=32)
    last = plan_images(50, 0)[-1]
    (tmp_path / f"cut/images/{last.folder}/{last.image_id}.part").write_bytes(b"half")
    assert not (tmp_path / "cut/lookalike.json").exists()
    with pytest.raises(UsageError, match=r"not \{.version"):
        make_lookalike(tmp_path / "cut", num_images=50, image_size=32, seed=1)
    again = []
    with monkeypatch.context() as patch:
        patch.setattr(
            lookalike, "draw_image", lambda *given: again.append(given[0].image_id) or draw_image(*given)
        )
        make_lookalike(tmp_path / "cut", num_images=50, image_size=32)
    assert len(again) == 30
    assert not set(again) & set(drawn)
    assert digests(tmp_path / "cut") == whole


# ---- refusals


def test_a_folder_with_something_else_in_it_is_refused_and_untouched(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(UsageError, match="is not empty and no look-alike set"):
        make_lookalike(tmp_path, num_images=50, image_size=32)
    assert os.listdir(tmp_path) == ["thesis.txt"]
    with pytest.raises(UsageError, match="is a file"):
        make_lookalike(tmp_path / "thesis.txt", num_images=50, image_size=32)


def test_what_systems_leave_in_a_folder_is_no_stranger(tmp_path):
    for name in (".DS_Store", "lost+found"):
        (tmp_path / name).mkdir()
    assert len(digests(make_lookalike(tmp_path, num_images=50, image_size=32).images)) == 50


def test_a_set_with_other_parameters_is_refused(tmp_path):
    make_lookalike(tmp_path, num_images=50, image_size=32)
    assert json.loads((tmp_path / "lookalike.json").read_text())["image_size"] == 32
    for other in ({"num_images": 51}, {"image_size": 33}, {"seed": 1}):
        with pytest.raises(UsageError, match="holds a look-alike set of") as caught:
            make_lookalike(tmp_path, **{"num_images": 50, "image_size": 32, **other})
        assert "\n" not in str(caught.value)


def test_too_few_or_too_small_images_are_refused(tmp_path):
    with pytest.raises(UsageError, match=r"^`num_images=49`: a look-alike set needs at least 50"):
        make_lookalike(tmp_path / "few", num_images=49)
    with pytest.raises(UsageError, match=r"^`image_size=31`: expected at least 32 pixels$"):
        make_lookalike(tmp_path / "tiny", num_images=50, image_size=31)
    assert not list(tmp_path.iterdir())


# ---- boxes


def test_boxes_are_written_as_nih_writes_them_for_test_images_of_that_finding(small):
    text = small.boxes.read_text()
    held = {row[0]: set(row[1].split("|")) for row in rows_of(small.metadata)}
    test = set(small.test_list.read_text().split())
    table = read_boxes(str(small.boxes))

    assert text.startswith("Image Index,Finding Label,Bbox [x,y,w,h],,,\n0")
    assert "Infiltration" not in text
    assert all(line.count(",") == 5 for line in text.splitlines()[1:])
    assert table.warnings == ()
    for box in table.boxes:
        assert box.image_id in test
        assert box.finding in held[box.image_id]
    boxed = {(box.image_id, box.finding) for box in table.boxes}
    placed = set(FINDINGS) - {"Edema", "Emphysema", "Fibrosis"}
    assert {finding for _, finding in boxed} == placed
    # A nodule may lie where nothing is seen of it; what else has a place has a box.
    expected = {(name, finding) for name in test for finding in held[name] & placed}
    assert len(expected - boxed) <= 0.02 * len(expected)


@pytest.mark.parametrize("name", sorted(set(FINDINGS) - {"Edema", "Emphysema", "Fibrosis", "Cardiomegaly"}))
def test_a_finding_changes_its_image_inside_its_boxes(name):
    for image in [image for image in plan_images(600, 0) if not image.findings][:6]:
        with_it = dataclasses.replace(image, findings=(name,))
        drawn = [draw_image(each, 256, 0).astype(float) for each in (with_it, image)]
        # Means over 4 x 4 pixels: what is left is no noise.
        change = np.abs(drawn[0] - drawn[1]).reshape(64, 4, 64, 4).mean((1, 3))
        change[:10, 52:] = 0  # the side's marker, whose place is drawn after the findings
        inside = np.zeros((64, 64), bool)
        for _, (left, top, width, height) in boxes_of(with_it, 0):
            rows = slice(int(64 * top), int(np.ceil(64 * (top + height))))
            inside[rows, int(64 * left) : int(np.ceil(64 * (left + width)))] = True
        strong = change > 0.4 * change.max()
        assert (strong & inside).sum() > 0.97 * strong.sum()
        assert inside.mean() < 0.35
