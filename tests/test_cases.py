"""Inputs after public bug reports, each of which once went wrong here, through the command as users type it.

The number of each is that of the report. The small sets are drawn here; a test says what is right.
"""

import gzip
import io
import json
import os
import re
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import pydicom
import pytest
from conftest import manifest_json
from PIL import Image
from pydicom.uid import ComputedRadiographyImageStorage, ExplicitVRLittleEndian

import cxr_records
from cxr_records.cli import run
from cxr_records.findings import FINDINGS

pytestmark = pytest.mark.usefixtures("in_this_thread")
HEADER = "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position"
SIDE = 64
BUILD = ("build", "--images", "images", "--metadata", "t.csv", "--out", "ds", "--size", SIDE, "--workers", 1)


class Answer(NamedTuple):
    """Exit code, and what a command printed on stdout and stderr."""

    code: int
    out: str
    err: str

    @property
    def text(self) -> str:
        return self.out + self.err


@pytest.fixture
def cxr(tmp_path, monkeypatch, capsys) -> Callable[..., Answer]:
    """Runs a command in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def cxr(*words: object) -> Answer:
        code = run([str(word) for word in words])
        return Answer(code, *capsys.readouterr())

    return cxr


def picture(number: int) -> np.ndarray:
    """uint8 [64, 64], another for each number, with all grey levels and none of them by far the most."""
    ramp = np.arange(SIDE * SIDE).reshape(SIDE, SIDE) * 255 // (SIDE * SIDE - 1)
    return np.roll(ramp, 37 * number, axis=1).astype(np.uint8)


def png(pixels: np.ndarray, **options: object) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG", **options)
    return out.getvalue()


def dicom(stored: np.ndarray, bits: int, high_bit: int, **tags: object) -> bytes:
    data = pydicom.Dataset()
    data.file_meta = pydicom.dataset.FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID = ComputedRadiographyImageStorage
    data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID = "1.2.3"
    data.Rows, data.Columns = stored.shape
    data.SamplesPerPixel, data.PhotometricInterpretation, data.PixelRepresentation = 1, "MONOCHROME2", 0
    data.BitsAllocated, data.BitsStored, data.HighBit = 16, bits, high_bit
    data.PixelData = stored.astype("<u2").tobytes()
    for name, value in tags.items():
        setattr(data, name, value)
    out = io.BytesIO()
    data.save_as(out, enforce_file_format=True)
    return out.getvalue()


def names(count: int = 12) -> list[str]:
    return [f"{number:08d}_000.png" for number in range(1, count + 1)]


def write_table(path: str, images: Sequence[str], header: str = HEADER) -> None:
    """A table in which every third image has a finding."""
    labels = ["No Finding", "Cardiomegaly", "Effusion|Pneumothorax"]
    rows = [
        f"{name},{labels[place % 3]},{int(name[9:12])},{int(name[:8])},{30 + place % 40},{'MF'[place % 2]},PA"
        for place, name in enumerate(images)
    ]
    Path(path).write_text("\n".join([header, *rows]) + "\n")


def write_set(files: dict[str, bytes]) -> None:
    """Images in images/ and a table of 12."""
    Path("images").mkdir()
    for name, data in files.items():
        path = Path("images") / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    write_table("t.csv", names())


def pngs(count: int = 12, **options: object) -> dict[str, bytes]:
    return {name: png(picture(place), **options) for place, name in enumerate(names(count))}


def write_scores(images: Sequence[str], change: Callable[[pd.DataFrame], pd.DataFrame] | None = None) -> str:
    """A table of scores for each finding; returns it as text."""
    scores = np.random.default_rng(0).random((len(images), len(FINDINGS))).round(4)
    table = pd.DataFrame(scores, columns=list(FINDINGS)).astype(object)
    table.insert(0, "Image Index", list(images))
    text = (change(table) if change else table).to_csv(index=False)
    Path("s.csv").write_text(text)
    return text


EVALUATE = ("evaluate", "--predictions", "s.csv", "--metadata", "t.csv", "--out", "o", "--draws", 0)


def pixels_of(dataset: str) -> dict[str, np.ndarray]:
    """{image_id: uint8 [64, 64]} of the originals."""
    opened = cxr_records.open(dataset)
    examples = opened.examples(opened.records)
    return {
        example["image_id"][0].decode(): opened.image_format.decode(example["image"][0])
        for example in examples
        if example["copy"] == [0]
    }


def left_out(dataset: str = "ds") -> dict[str, str]:
    """{image_id: reason} of rejected.csv."""
    table = pd.read_csv(Path(dataset) / "rejected.csv", dtype=str)
    return dict(zip(table["image_id"], table["reason"], strict=True))


def test_01_a_patient_id_that_is_the_row_number_is_refused(cxr):
    images = [f"{patient:08d}_{visit:03d}.png" for patient in range(1, 21) for visit in range(3)]
    write_table("t.csv", images)
    assert cxr("plan", "--metadata", "t.csv").code == 0
    head, *rows = Path("t.csv").read_text().splitlines()
    for number, row in enumerate(rows, 1):
        cells = row.split(",")
        rows[number - 1] = ",".join([*cells[:3], str(number), *cells[4:]])
    Path("t.csv").write_text("\n".join([head, *rows]) + "\n")

    answer = cxr("plan", "--metadata", "t.csv")

    assert answer.code in (1, 2)
    assert answer.out == ""
    assert "00000001_001.png" in answer.err
    assert re.search(r"\b2\b", answer.err)


def test_02_a_cell_that_is_no_score_is_named(cxr):
    images = names(60)
    write_table("t.csv", images)

    def changed(table: pd.DataFrame) -> pd.DataFrame:
        table.loc[7, "Mass"] = "-"
        return table

    write_scores(images, changed)

    answer = cxr(*EVALUATE)

    assert answer.code in (1, 2)
    assert "Mass" in answer.err
    assert "'-'" in answer.err
    assert images[7] in answer.err or re.search(r"\b(line 9|row 8)\b", answer.err)
    assert not Path("o/metrics.json").exists()


def test_03_two_sets_whose_files_have_the_same_sizes_and_times_are_two_datasets(cxr):
    write_set(pngs(compress_level=0))
    Path("inverted").mkdir()
    for place, name in enumerate(names()):
        (Path("inverted") / name).write_bytes(png(255 - picture(place), compress_level=0))
    for path in [*Path("images").iterdir(), *Path("inverted").iterdir()]:
        os.utime(path, (1_500_000_000, 1_500_000_000))
    assert cxr(*BUILD).code == 0

    other = [{"images": "inverted", "ds": "ds2"}.get(word, word) for word in BUILD]
    assert cxr(*other).code == 0

    assert manifest_json("ds")["id"] != manifest_json("ds2")["id"]
    before, now = pixels_of("ds"), pixels_of("ds2")
    assert all((now[name] == 255 - before[name]).all() for name in before)


def test_04_images_with_few_grey_levels_are_said(cxr):
    write_set({name: png(picture(place).astype(np.uint16) * 16) for place, name in enumerate(names())})

    answer = cxr(*BUILD)

    assert answer.code == 0
    assert re.search(r"warning: .*\b12\b.* grey levels", answer.err)


def test_04h_a_dicom_without_window_takes_the_range_of_its_values(cxr):
    stored = [picture(place).astype(np.uint16) * 16 for place in range(12)]  # 0 to 4080 of 65535
    write_set({f"{name[:-4]}.dcm": dicom(s, 16, 15) for name, s in zip(names(), stored, strict=True)})

    answer = cxr(*BUILD)

    assert answer.code == 0, answer.err
    found = pixels_of("ds")
    assert len(found) == 12
    for place, name in enumerate(names()):
        assert np.abs(found[name].astype(int) - picture(place)).max() <= 1


def test_05_a_jpeg_that_was_cut_and_closed_again_is_rejected(cxr):
    files = pngs()
    noisy = np.random.default_rng(0).integers(0, 256, (256, 256)).astype(np.uint8)
    out = io.BytesIO()
    Image.fromarray(noisy).save(out, "JPEG")
    whole = out.getvalue()
    files.pop(names()[0])
    write_set({**files, "00000001_000.jpg": whole[: len(whole) // 4] + b"\xff\xd9"})

    answer = cxr(*BUILD, "--max-rejected", 1)

    assert answer.code == 0, answer.err
    assert left_out() == {names()[0]: "rejected"}


def test_06_test_images_that_are_copies_of_training_images_are_counted_and_a_leak(cxr):
    files = pngs()
    for copy, original in zip(names()[9:], names()[:3], strict=True):
        files[copy] = files[original]
    write_set(files)
    Path("tv.txt").write_text("\n".join(names()[:9]) + "\n")
    Path("te.txt").write_text("\n".join(names()[9:]) + "\n")
    lists = ("--train-val-list", "tv.txt", "--test-list", "te.txt", "--validation-fraction", 0)

    built = cxr(*BUILD, *lists)
    verified = cxr("verify", "ds", "--deep")
    write_scores(names()[9:])
    evaluated = cxr(*EVALUATE, "--trained-on", "ds")

    assert re.search(r"warning: .*\b3\b.* (pictures|pixels|images|copies)", built.err)
    assert re.search(r"\b3\b", verified.text)
    assert all(split in verified.text for split in ("test", "train"))
    assert evaluated.code == 3
    assert re.search(r"\b3\b.*scored images", evaluated.text)


def test_07_an_image_in_the_trash_is_missing(cxr):
    files = pngs()
    deleted = names()[3]
    files[f".Trash-1000/files/{deleted}"] = files.pop(deleted)
    write_set(files)

    refused = cxr(*BUILD)
    answer = cxr(*BUILD, "--allow-missing")

    assert refused.code == 1
    assert "1 of the 12 images in the table are in no source" in refused.err
    assert answer.code == 0
    assert left_out() == {deleted: "missing"}


def test_08_rows_on_two_sheets_are_all_read_or_refused(cxr):
    write_table("t.csv", names(24))
    whole = cxr("plan", "--metadata", "t.csv", "--json")
    table = pd.read_csv("t.csv", dtype=str)
    with pd.ExcelWriter("t.xlsx") as book:
        table[:12].to_excel(book, sheet_name="first", index=False)
        table[12:].to_excel(book, sheet_name="second", index=False)

    answer = cxr("plan", "--metadata", "t.xlsx", "--json")

    if answer.code:
        assert all(sheet in answer.text for sheet in ("first", "second"))
    else:
        assert json.loads(answer.out)["records"] == json.loads(whole.out)["records"]


def test_09_a_header_that_is_nearly_right_is_said_with_the_right_one(cxr):
    write_set(pngs())
    write_table("t.csv", names(), HEADER.replace("Gender", "Sex"))

    answer = cxr(*BUILD)

    assert answer.code == 0
    assert any("Patient Sex" in line and "Patient Gender" in line for line in answer.err.splitlines())


def test_10_scores_of_zeros_and_ones_are_said(cxr):
    images = names(60)
    write_table("t.csv", images)

    def rounded(table: pd.DataFrame) -> pd.DataFrame:
        return table.assign(**{name: table[name].astype(float).round().astype(int) for name in FINDINGS})

    write_scores(images, rounded)

    answer = cxr(*EVALUATE)

    assert answer.code == 0
    assert "threshold" in answer.text
    assert any("threshold" in text for text in json.loads(Path("o/metrics.json").read_text())["warnings"])


def test_11_a_zip_of_archives_is_said_to_be_one(cxr):
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        for name, data in pngs().items():
            member = tarfile.TarInfo(f"images/{name}")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    with zipfile.ZipFile("images.zip", "w") as outer:
        outer.writestr("images/images_01.tar.gz", packed.getvalue())
    write_table("t.csv", names())

    answer = cxr("plan", "--images", "images.zip", "--metadata", "t.csv")

    assert answer.code in (1, 2)
    assert "images_01.tar.gz" in answer.err
    assert "unpack" in answer.err


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_12_a_name_that_a_zip_holds_twice_is_rejected(cxr):
    write_set({})
    with zipfile.ZipFile("i.zip", "w") as archive:
        for name, data in pngs().items():
            archive.writestr(name, data)
        archive.writestr(names()[4], png(picture(99)))

    answer = cxr(*[{"images": "i.zip"}.get(word, word) for word in BUILD], "--max-rejected", 1)

    assert answer.code == 0, answer.err
    assert left_out() == {names()[4]: "rejected"}


def test_13_a_dicom_whose_high_bit_is_15_is_shifted_or_rejected(cxr):
    window = {"WindowCenter": 2048, "WindowWidth": 4096}
    stored = [picture(place).astype(np.uint16) * 16 for place in range(12)]
    files = {f"{n[:-4]}.dcm": dicom(s << 4, 12, 15, **window) for n, s in zip(names(), stored, strict=True)}
    write_set({**files, "00000012_000.dcm": dicom(stored[11], 12, 11, **window)})

    answer = cxr(*BUILD, "--max-rejected", 1)

    assert answer.code == 0, answer.err
    found, rejected = pixels_of("ds"), left_out()
    assert found.keys() | rejected.keys() == set(names())
    for place, name in enumerate(names()):
        if name in found:
            assert np.abs(found[name].astype(int) - picture(place)).max() <= 1


def test_13i_a_window_beside_an_empty_table_is_used(cxr):
    tags = {"WindowCenter": 2048, "WindowWidth": 4096, "VOILUTSequence": [pydicom.Dataset()]}
    stored = [picture(place).astype(np.uint16) * 16 for place in range(12)]
    write_set({f"{n[:-4]}.dcm": dicom(s, 12, 11, **tags) for n, s in zip(names(), stored, strict=True)})

    answer = cxr(*BUILD)

    assert answer.code == 0, answer.err
    found = pixels_of("ds")
    assert found.keys() == set(names())
    assert all(
        np.abs(found[name].astype(int) - picture(place)).max() <= 1 for place, name in enumerate(names())
    )


@pytest.mark.faults
@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&- >&- 2>&-"])
def test_14_a_build_with_closed_streams_ends_well(cxr, closed):
    write_set(pngs())
    command = [sys.executable, "-m", "cxr_records", *map(str, BUILD)]

    ended = subprocess.run(
        ["/bin/sh", "-c", f'"$@" {closed}', "sh", *command], capture_output=True, text=True
    )

    assert (ended.returncode, "Traceback" in ended.stderr) == (0, False), ended.stderr
    assert cxr("verify", "ds", "--deep").code == 0


def test_15_names_in_a_list_are_matched_with_or_without_folders(cxr):
    write_table("t.csv", names(24))
    Path("te.txt").write_text("\n".join(names(24)[18:]) + "\n")
    words = ("plan", "--metadata", "t.csv", "--train-val-list", "tv.txt", "--test-list", "te.txt", "--json")
    Path("tv.txt").write_text("\n".join(names(18)) + "\n")
    plain = cxr(*words)
    Path("tv.txt").write_text("\n".join([*names(10), *(f"images/{name}" for name in names(18)[10:])]) + "\n")

    answer = cxr(*words)

    if answer.code:
        assert "images/00000011_000.png" in answer.err
    else:
        assert json.loads(answer.out)["records"] == json.loads(plain.out)["records"]


def test_16_scored_names_are_matched_by_their_stem(cxr):
    images = names(60)
    write_table("t.csv", images)
    write_scores([name.replace(".png", ".dcm") if place % 2 else name for place, name in enumerate(images)])

    answer = cxr(*EVALUATE)

    assert answer.code == 0
    assert "left out" not in answer.text
    assert json.loads(Path("o/metrics.json").read_text())["identity"]["images"] == 60


def test_17_a_png_with_a_large_colour_profile_is_read_or_rejected_for_that(cxr):
    files = pngs()
    files[names()[0]] = png(picture(0), icc_profile=bytes(3 << 20))
    write_set(files)

    answer = cxr(*BUILD, "--max-rejected", 1)

    assert answer.code == 0, answer.err
    found = pixels_of("ds")
    if names()[0] in found:
        np.testing.assert_array_equal(found[names()[0]], picture(0))
    else:
        assert re.search(names()[0] + ".*profile", Path("ds/rejected.csv").read_text())


def test_18_a_table_of_semicolons_is_read_or_said_to_be_one(cxr):
    write_table("t.csv", names())
    plain = cxr("plan", "--metadata", "t.csv", "--json")
    Path("t.csv").write_text(Path("t.csv").read_text().replace(",", ";"))

    answer = cxr("plan", "--metadata", "t.csv", "--json")

    if answer.code:
        assert "';'" in answer.text or "semicolon" in answer.text
    else:
        assert json.loads(answer.out)["records"] == json.loads(plain.out)["records"]


def test_19_a_tilde_is_the_home_folder_in_every_command(cxr, tmp_path, monkeypatch):
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    write_table("t.csv", names(30))
    write_scores(names(30))

    evaluated = cxr("evaluate", "--predictions", "s.csv", "--metadata", "t.csv", "--out=~/o", "--draws", 0)
    verified = cxr("verify", "~/no")

    assert evaluated.code == 0
    assert (home / "o" / "metrics.json").exists()
    assert not Path("~").exists()
    assert verified.code == 1
    assert str(home / "no") in verified.err


def test_20_scores_are_known_by_their_bytes(cxr):
    write_table("t.csv", names(30))
    text = write_scores(names(30)).encode()
    Path("s.csv.gz").write_bytes(text)  # plain, named as gzip
    Path("z.csv").write_bytes(gzip.compress(text))  # gzip, named as plain

    measured = []
    for file in ("s.csv", "s.csv.gz", "z.csv"):
        answer = cxr("evaluate", "--predictions", file, "--metadata", "t.csv", "--out", "o", "--draws", 0)
        assert answer.code == 0, answer.err
        measured.append(json.loads(Path("o/metrics.json").read_text())["auroc"])

    assert measured[0] == measured[1] == measured[2]


@pytest.mark.faults
def test_21_a_decoder_installed_later_reads_what_was_rejected(cxr, tmp_path):
    """The decoder is a stand-in that pydicom takes for pyjpegls; the file is pydicom's own, of JPEG-LS."""
    source = Path(pydicom.__file__).parent / "data" / "test_files" / "MR_small_jpeg_ls_lossless.dcm"
    write_set({f"{name[:-4]}.dcm": source.read_bytes() for name in names()})
    plug = tmp_path / "plug"
    (plug / "jpeg_ls").mkdir(parents=True)
    (plug / "pyjpegls-99.0.dist-info").mkdir()
    (plug / "pyjpegls-99.0.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: pyjpegls\nVersion: 99.0\n"
    )
    (plug / "jpeg_ls" / "__init__.py").write_text(
        "__version__ = '99.0'\n"
        "def decode_pixel_data(src):\n"
        "    pixels = bytearray(i % 256 if i % 2 == 0 else i % 4 for i in range(64 * 64 * 2))\n"
        "    return pixels, {'components': 1, 'interleave_mode': 0, 'bits_per_sample': 16}\n"
    )

    def build(path: str) -> subprocess.CompletedProcess:
        command = [sys.executable, "-m", "cxr_records", *map(str, BUILD)]
        return subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path})

    hidden = tmp_path / "hidden"  # those that are installed here
    hidden.mkdir()
    for module in ("jpeg_ls", "gdcm"):
        (hidden / f"{module}.py").write_text(f"raise ImportError('no {module}')\n")

    without = build(str(hidden))
    assert without.returncode == 3, without.stderr
    assert "12 of 12 images (100.0%) were rejected" in without.stderr
    assert "pyjpegls" in without.stderr or "pylibjpeg" in without.stderr

    later = build(str(plug))

    assert later.returncode == 0, later.stderr
    assert set(pixels_of("ds")) == set(names())
