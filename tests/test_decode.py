"""The decode phase: what is said of sources, of the store, and of images that show little."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cxr_records import cli, store
from cxr_records.images import ImageFormat
from cxr_records.pipelines import decode
from cxr_records.pipelines.decode import DecodedImages, decode_store
from cxr_records.pipelines.engines import engine_named
from cxr_records.pipelines.request import DecodeRequest
from cxr_records.store import open_store


def grey(low: int, high: int) -> np.ndarray:
    """Pixels that rise evenly from one level to another."""
    return np.linspace(low, high, 64 * 64).round().astype(np.uint8).reshape(64, 64)


class Set:
    """Images, their table and a store."""

    def __init__(self, folder: Path):
        self.folder, self.images, self.store = folder, folder / "images", folder / "store"
        self.images.mkdir()

    def write(self, **pixels: np.ndarray) -> None:
        for name, array in pixels.items():
            Image.fromarray(array).save(self.images / f"{name}.png")
        names = sorted(os.listdir(self.images))
        rows = [f"{name},No Finding,{7 * number},50,F,PA" for number, name in enumerate(names)]
        header = "Image Index,Finding Labels,Patient ID,Patient Age,Patient Gender,View Position"
        table = "\n".join([header, *rows])
        (self.folder / "table.csv").write_text(table + "\n")

    def decode(self, *images: str, **changes) -> DecodedImages:
        request = {
            "images": images or (str(self.images),),
            "metadata": str(self.folder / "table.csv"),
            "store": str(self.store),
            "image_format": ImageFormat(32),
            "allow_missing": True,
            "engine": engine_named(workers=1),
        }
        return decode_store(DecodeRequest(**{**request, **changes}))

    def words(self, command: str) -> list[str]:
        """The words of a command on this set."""
        out = ["--store", str(self.store)] if command == "decode" else ["--out", str(self.folder / "ds")]
        if command != "decode":
            out += ["--store", str(self.store)]
        return [
            *(command, "--images", str(self.images), "--metadata", str(self.folder / "table.csv")),
            *(*out, "--size", "32", "--workers", "1", "--json", "--allow-missing"),
        ]


@pytest.fixture
def small(tmp_path) -> Set:
    return Set(tmp_path)


# ---- images that show little ----------------------------------------------------------------------------


def test_images_of_few_grey_levels_are_counted_and_named(small, capsys):
    full = {f"a{number}": grey(0, 255) for number in range(3)}
    few = {f"b{number}": grey(number, 16) for number in range(7)}
    small.write(**full, **few, blank=grey(255, 255))

    decoded = small.decode()

    assert decoded.warnings == (
        "8 of 11 images show less than a quarter of the 256 grey levels: b0.png (0 to 16), b1.png (1 to 16), "
        "b2.png (2 to 16), b3.png (3 to 16), b4.png (4 to 16), ...; blank images, or files that use fewer "
        "bits than they say (12 of 16)?",
    )
    assert capsys.readouterr().err == f"warning: {decoded.warnings[0]}\n"
    # Said again by each command that uses them, with --json too.
    capsys.readouterr()
    assert cli.run(small.words("decode")) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["warnings"] == list(decoded.warnings)
    assert err == f"warning: {decoded.warnings[0]}\n"
    assert cli.run(small.words("plan")) == 0
    # Before it, what a plan says of a table that holds no findings.
    assert list(decoded.warnings) == json.loads(capsys.readouterr().out)["warnings"][1:]


@pytest.mark.parametrize(("high", "said"), [(60, True), (63, True), (70, False), (255, False)])
def test_less_than_a_quarter_of_the_grey_levels_is_few(small, high, said):
    small.write(a=grey(0, high))
    assert bool(small.decode().warnings) == said


def test_no_real_image_shows_few_grey_levels(nih, tmp_path):
    request = DecodeRequest(
        (str(nih / "images"),),
        str(nih / "Data_Entry_2017_v2020.csv.gz"),
        str(tmp_path / "store"),
        ImageFormat(16),  # the fewer pixels, the fewer levels
        allow_missing=True,
        engine=engine_named(workers=1),
    )
    decoded = decode_store(request)
    assert decoded.num_images == 149
    assert decoded.warnings == ()


def test_many_different_reasons_are_counted_and_not_all_printed(small, capsys):
    names = [f"a{number:02}" for number in range(23)]
    small.write(**{name: grey(0, 255) for name in [*names, "whole"]})
    (small.images / "more").mkdir()
    for name in names:
        Image.fromarray(grey(0, 200)).save(small.images / "more" / f"{name}.png")
    decoded = small.decode()
    assert decoded.rejected == 23
    words = [word for word in small.words("plan") if word != "--json"]
    capsys.readouterr()
    assert cli.run(words) == 0
    lines = capsys.readouterr().out.splitlines()
    rejected = [line for line in lines if line.startswith("  rejected: ")]
    assert len(rejected) == 20
    assert rejected[0] == (
        f"  rejected: a00.png: 2 files of this name differ in their bytes: {small.images}/a00.png and "
        f"{small.images}/more/a00.png"
    )
    assert "  and 3 more for 3 other reasons" in lines


# ---- the store ------------------------------------------------------------------------------------------


def test_a_damaged_index_is_said_and_its_images_are_decoded_again(small, capsys):
    small.write(a=grey(0, 255), b=grey(10, 255))
    before = small.decode()
    (index,) = small.store.glob("unit-*.parquet")
    data = bytearray(index.read_bytes())
    data[len(data) // 2] ^= 1
    index.write_bytes(data)
    capsys.readouterr()

    after = small.decode()

    assert after.decoded == 2
    assert after.warnings == (f"{index} was not as it was written: the images in it are decoded again",)
    assert capsys.readouterr().err == f"warning: {after.warnings[0]}\n"
    assert after.images.equals(before.images)
    assert small.decode().decoded == 0


def make_first(small: Set) -> list[str]:
    """Turns a store into one of version 1 (its tests are in test_store.py); returns the units' files."""
    for index in list(small.store.glob("unit-v2-*.parquet")):
        for ending in (".tfrecord", ".parquet"):
            path = index.with_suffix(ending)
            path.rename(path.with_name(path.name.replace("unit-v2-", "unit-")))
        index.with_suffix(".sha256").unlink()
    marker = {"version": 1, "size": 32, "codec": "raw", "resample": "bilinear"}
    (small.store / "store.json").write_text(json.dumps(marker, indent=1) + "\n")
    return sorted(path.name for path in small.store.glob("unit-*"))


def test_a_store_of_the_first_version_is_said_decoded_anew_and_emptied(small, capsys):
    small.write(**{f"a{number:02}": grey(number, 255) for number in range(20)})
    first = small.decode()
    old = make_first(small)
    assert len(old) == 4
    capsys.readouterr()
    said = (
        f"the image store {small.store} is of version 1, whose images were not checked as they are now: its "
        "20 images are decoded again"
    )

    assert cli.run(small.words("plan")) == 0  # which changes nothing
    out, err = capsys.readouterr()
    # Before it, what a plan says of a table that holds no findings.
    assert json.loads(out)["warnings"][1:] == [said]
    assert f"warning: {said}" in err.splitlines()
    assert sorted(path.name for path in small.store.glob("unit-*")) == old

    after = small.decode()
    assert (after.decoded, after.warnings) == (20, (said,))
    assert not {path.name for path in small.store.glob("unit-*")} & set(old)
    assert json.loads((small.store / "store.json").read_text())["version"] == 2
    assert after.images["sha256"].equals(first.images["sha256"])
    again = small.decode()
    assert (again.decoded, again.warnings) == (0, ())


def test_images_of_the_first_version_that_are_not_at_hand_are_kept_and_said(small, capsys):
    small.write(**{f"a{number:02}": grey(number, 255) for number in range(20)})
    small.decode()
    make_first(small)
    for number in range(16, 20):  # the second unit's
        (small.images / f"a{number}.png").unlink()

    for decoded in (16, 0):  # said again until they are gone
        after = small.decode()
        assert after.decoded == decoded
        assert after.warnings[-1] == (
            f"the image store {small.store} keeps 4 images of an earlier version, some of whose files "
            "were not named now: nothing reads them; name those files too, or delete the store"
        )
    assert len([path for path in small.store.glob("unit-*") if "v2" not in path.name]) == 2

    small.write(**{f"a{number:02}": grey(number, 255) for number in range(16, 20)})
    assert small.decode().warnings == ()
    assert not [path for path in small.store.glob("unit-*") if "v2" not in path.name]


def test_a_rejection_by_a_worker_with_other_packages_is_one_all_the_same(small, monkeypatch):
    """As on a cluster: the command has another decoder than those who decode for it."""
    small.write(a=grey(0, 255))
    (small.images / "a.png").write_bytes(b"junk")
    here = store.decoder_version()
    write_unit = store.write_unit

    def on_the_cluster(spec):
        monkeypatch.setattr(store, "decoder_version", lambda: "cluster")
        write_unit(spec)
        monkeypatch.setattr(store, "decoder_version", lambda: here)

    monkeypatch.setattr(decode, "run", lambda job, *where: [on_the_cluster(spec) for spec in job.specs])
    for _ in range(2):
        decoded = small.decode()
        assert (decoded.decoded, decoded.rejected) == (1, 1)
        assert decoded.images["reason"].to_pylist() == ["no PNG, JPEG or DICOM: begins with 'junk'"]


# ---- sources --------------------------------------------------------------------------------------------


def test_what_is_damaged_in_the_sources_is_among_the_warnings(small):
    small.write(a=grey(0, 255))
    page = small.folder / "images_01.tar.gz"
    page.write_text("<html>")
    decoded = small.decode(str(small.images), str(page))
    assert decoded.warnings == (
        f"{page}: a web page and no archive (it begins with '<html>'); fetch the archive again",
    )
    assert decoded.at_hand.warnings == decoded.warnings


# ---- whether processes are started before the table is read ---------------------------------------------


def test_a_first_look_tells_whether_there_is_enough_to_decode_for_several_processes(tmp_path):
    def empty_files(folder: str, count: int) -> str:
        (tmp_path / folder / "below").mkdir(parents=True)
        for number in range(count):
            (tmp_path / folder / "below" / f"{number}.png").touch()
        return str(tmp_path / folder)

    many, few = empty_files("many", 900), empty_files("few", 100)
    for name, size in {"large": 1 << 30, "small": 1 << 20}.items():
        with open(tmp_path / f"{name}.tar.gz", "wb") as file:
            file.truncate(size)
    store = str(tmp_path / "store")

    def much(*paths: str) -> bool:
        return decode.much_to_decode(paths, store)

    assert much(many)
    assert much(few, str(tmp_path / "man*"))
    assert much(str(tmp_path / "large.tar.gz"))
    assert not much(few)
    assert not much(few, str(tmp_path / "small.tar.gz"), str(tmp_path / "absent"), "s3://bucket/images")
    open_store(store, ImageFormat(32))  # most of it may be there already
    assert not much(many)
