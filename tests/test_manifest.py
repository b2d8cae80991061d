import csv
import dataclasses
import hashlib
import io
import itertools
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from conftest import files_of, manifest_json, write_manifest
from PIL import Image

from cxr_records import storage
from cxr_records.errors import UsageError
from cxr_records.examples import decode_example
from cxr_records.findings import FINDINGS, NO_FINDING
from cxr_records.finish import check_folder, clear_stale, left_out_csv
from cxr_records.layout import BUILD_FOLDER, is_shard
from cxr_records.manifest import ManifestError, manifest_bytes, read_manifest
from cxr_records.metadata import read_metadata
from cxr_records.parquet import WorkFile
from cxr_records.planning import ShardSpec
from cxr_records.splits import SplitOptions
from cxr_records.tfrecord import read_records

CHANGES = [
    {"task": "multiclass"},
    {"task": "multiclass", "with_no_finding": True},
    {"task": "binary:Mass"},
    {"codec": "png"},
    {"rule": "none"},
    {"target": 0.2},
    {"max_records": 3},
    {"flip": True},
    {"seed": 1},
    {"shard_mb": 32},
    {"validation_fraction": 0.3},
]
LISTS = ["train_list.txt", "validation_list.txt", "test_list.txt"]


def times_of(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in folder.iterdir() if path.is_file()}


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


# The same inputs, the same dataset


def test_same_inputs_give_the_same_bytes_in_another_folder_from_a_store_cut_otherwise(
    build, lookalike, dataset, tmp_path
):
    store, out = tmp_path / "store", tmp_path / "elsewhere"
    some = str(sorted(lookalike.images.iterdir())[-1])
    build(tmp_path / "some", images=(some,), store=str(store), allow_missing=True)
    result = build(out, store=str(store))

    assert 0 < result.decoded.decoded < 150
    assert files_of(out) == files_of(dataset)
    assert str(tmp_path) not in json.dumps(result.manifest.to_json())


def test_the_same_build_again_writes_nothing(build, copied_dataset):
    build(copied_dataset)  # which finds that the copy is whole, and notes it
    before, made = times_of(copied_dataset), times_of(copied_dataset / ".build")
    plan = next(name for name in made if name.startswith("plan-"))

    result = build(copied_dataset)

    assert result.written == 0
    assert times_of(copied_dataset) == before
    made.pop("lock"), made.pop(plan)
    assert made.items() <= times_of(copied_dataset / ".build").items()


@pytest.mark.parametrize("changes", CHANGES, ids=str)
def test_another_option_gives_another_id(build, dataset, tmp_path, changes):
    assert build(tmp_path / "out", **changes).manifest.id != manifest_json(dataset)["id"]


def test_a_change_in_the_table_alone_gives_another_id(build, lookalike, dataset, tmp_path):
    text = lookalike.metadata.read_text()
    older = tmp_path / "older.csv"
    lines = text.splitlines(keepends=True)
    cells = lines[1].split(",")
    cells[4] = str(int(cells[4]) + 1)  # the patient's age
    older.write_text("".join([lines[0], ",".join(cells), *lines[2:]]))

    assert build(tmp_path / "out", metadata=str(older)).manifest.id != manifest_json(dataset)["id"]


@pytest.mark.parametrize("changes", [{"task": "binary"}, {"task": "multiclass", "rule": "none"}], ids=str)
def test_a_folder_that_held_another_dataset_ends_with_the_files_of_the_new_one_alone(
    build, dataset, copied_dataset, tmp_path, changes
):
    build(tmp_path / "new", **changes)

    build(copied_dataset, **changes)
    assert files_of(copied_dataset) == files_of(tmp_path / "new")
    build(copied_dataset)
    assert files_of(copied_dataset) == files_of(dataset)
    sidecars = [path for path in (copied_dataset / ".build").iterdir() if path.name.startswith("cxr14")]
    assert len(sidecars) == len(list(copied_dataset.glob("cxr14-*")))


@pytest.mark.parametrize(
    "name",
    ["manifest.json", "records.parquet", "rejected.csv", "features.json", "dataset_info.json", *LISTS],
)
@pytest.mark.parametrize("damage", ["removed", "changed"])
def test_a_lost_or_changed_file_is_written_anew_by_the_same_build(
    build, dataset, copied_dataset, name, damage
):
    path = copied_dataset / name
    if damage == "removed":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes() + b" ")

    assert build(copied_dataset).written == 0
    assert files_of(copied_dataset) == files_of(dataset)


def test_the_manifest_is_written_last_and_is_away_while_anything_else_is_written(
    build, copied_dataset, monkeypatch
):
    written = []
    atomic = storage.atomic_file

    def atomic_file(path):
        if BUILD_FOLDER not in path:
            written.append((os.path.basename(path), (copied_dataset / "manifest.json").exists()))
        return atomic(path)

    monkeypatch.setattr(storage, "atomic_file", atomic_file)
    build(copied_dataset, task="binary")

    names = [name for name, _ in written]
    assert names[-1] == "manifest.json"
    assert {"records.parquet", "rejected.csv", "features.json", "label.labels.txt"} < set(names[:-1])
    assert not any(there for _, there in written)


@pytest.mark.parametrize("lost", ["records.parquet", "rejected.csv"])
def test_the_manifest_is_away_while_another_file_alone_is_written_anew(
    build, copied_dataset, monkeypatch, lost
):
    (copied_dataset / lost).unlink()
    away = {}
    atomic = storage.atomic_file

    def atomic_file(path):
        if BUILD_FOLDER not in path and not is_shard(os.path.basename(path)):
            away[os.path.basename(path)] = not (copied_dataset / "manifest.json").exists()
        return atomic(path)

    monkeypatch.setattr(storage, "atomic_file", atomic_file)
    build(copied_dataset)

    assert away[lost]
    assert all(away.values())
    assert list(away)[-1] == "manifest.json"


# Lists of its splits


def test_lists_name_every_image_of_each_split_also_what_the_task_or_a_rejection_leaves_out(
    build, lookalike, dataset, tmp_path
):
    images = shutil.copytree(lookalike.images, tmp_path / "images")
    in_train = (dataset / "train_list.txt").read_text().split()
    lost, broken = (next(images.rglob(name)) for name in in_train[:2])
    lost.unlink()
    broken.write_bytes(b"")
    result = build(
        tmp_path / "out",
        task="binary:Mass",
        images=(str(images),),
        store=str(tmp_path / "store"),
    )

    assert result.manifest.left_out.keys() == {"left out by the task", "missing", "rejected"}
    for name in LISTS:
        assert (tmp_path / "out" / name).read_bytes() == (dataset / name).read_bytes()
    names = [(dataset / name).read_text().splitlines() for name in LISTS]
    assert all(listed == sorted(listed) for listed in names)
    assert sorted(itertools.chain(*names)) == sorted(read_metadata(str(lookalike.metadata)).table["image_id"])


def test_a_dataset_without_validation_has_no_list_of_it_and_takes_an_earlier_one_away(build, copied_dataset):
    assert (copied_dataset / "validation_list.txt").exists()
    build(copied_dataset, validation_fraction=0)

    found = {path.name for path in copied_dataset.glob("*_list.txt")}
    assert found == {"train_list.txt", "test_list.txt"}
    assert found < {entry["file"] for entry in manifest_json(copied_dataset)["files"]}


def test_lists_given_back_are_the_same_splits(build, lookalike, dataset, tmp_path):
    given = {"validation_list": str(dataset / "validation_list.txt")}
    build(tmp_path / "out", **given)

    for name in LISTS:
        assert (tmp_path / "out" / name).read_bytes() == (dataset / name).read_bytes()
    shards = [path.name for path in sorted(dataset.glob("cxr14-*"))]
    assert [(tmp_path / "out" / name).read_bytes() for name in shards] == [
        (dataset / name).read_bytes() for name in shards
    ]


# Splits of another dataset


def test_splits_of_another_dataset_are_taken_as_they_are(build, lookalike, dataset, tmp_path):
    table = pd.read_csv(lookalike.metadata)
    table["Finding Labels"] = table["Finding Labels"].sample(frac=1, random_state=0).to_numpy()
    table.to_csv(tmp_path / "other.csv", index=False)
    result = build(
        tmp_path / "out",
        task="binary",
        metadata=str(tmp_path / "other.csv"),
        split_options=SplitOptions(seed=5),
        splits_of=str(dataset),
    )

    for name in LISTS:
        assert (tmp_path / "out" / name).read_bytes() == (dataset / name).read_bytes()
    there = read_manifest(str(dataset))
    assert result.manifest.split_origin.text == f"as in dataset {there.id} ({there.split_origin.text})"
    assert result.manifest.split_origin.official is False
    assert result.manifest.split_origin.list_sha256 == {
        name.removesuffix("_list.txt"): sha256((dataset / name).read_bytes()[:-1]) for name in LISTS
    }


# What it says


def test_manifest_tells_all_and_nothing_of_where_or_when(dataset, lookalike):
    manifest = manifest_json(dataset)

    assert set(manifest) == {
        "format", "format_version", "id", "config", "class_names", "table", "split_origin", "pixels",
        "splits", "classes", "mean_ir", "max_ir", "left_out", "findings", "files",
        "drawn", "checksum",
    }  # fmt: skip
    assert manifest["drawn"] == 150
    assert manifest["config"] == {
        "task": "multilabel",
        "with_no_finding": False,
        "size": 32,
        "codec": "raw",
        "resample": "bilinear",
        "copies": {"rule": "linear", "target": 0.1, "max_records": 10, "of": []},
        "flip": False,
        "seed": 0,
        "shard_mb": 64,
    }
    assert manifest["class_names"] == list(FINDINGS)
    metadata = read_metadata(str(lookalike.metadata))
    assert manifest["table"] == {"dialect": "v2020", "images": 150, "sha256": metadata.digest}
    assert manifest["split_origin"]["official"] is False
    assert set(manifest["split_origin"]["list_sha256"]) == {"train_val", "test"}
    assert manifest["left_out"] == {}
    assert manifest["findings"] == list(FINDINGS)
    assert manifest_bytes(manifest) == (dataset / "manifest.json").read_bytes()


def test_manifest_holds_size_and_sha256_of_every_file_but_itself(dataset):
    manifest = manifest_json(dataset)
    shards = [shard for split in manifest["splits"].values() for shard in split["shards"]]

    told = {entry["file"]: (entry["bytes"], entry["sha256"]) for entry in [*shards, *manifest["files"]]}
    found = {name: (len(data), sha256(data)) for name, data in files_of(dataset).items()}
    assert told == {name: of for name, of in found.items() if name != "manifest.json"}
    for split in manifest["splits"].values():
        assert split["bytes"] == sum(shard["bytes"] for shard in split["shards"])
        assert split["records"] == sum(shard["records"] for shard in split["shards"])


def test_counts_in_the_manifest_are_those_of_the_table_of_records(dataset):
    manifest = manifest_json(dataset)
    table = pq.read_table(dataset / "records.parquet").to_pandas()

    for split, counts in manifest["splits"].items():
        here = table[table["split"] == split]
        assert {name: counts[name] for name in ("records", "images", "copies", "patients")} == {
            "records": len(here),
            "images": here["image_id"].nunique(),
            "copies": (here["copy"] > 0).sum(),
            "patients": here["patient_id"].nunique(),
        }
        label = np.stack(here["label"])
        for place, name in enumerate(FINDINGS):
            assert manifest["classes"][name]["splits"][split]["records"] == label[:, place].sum()
        assert manifest["classes"][NO_FINDING]["splits"][split]["records"] == (label.sum(axis=1) == 0).sum()


def test_table_of_records_has_a_row_for_each_record_with_its_place_and_offset(dataset):
    table = pq.read_table(dataset / "records.parquet")

    assert table.column_names == [
        "split", "shard", "place", "offset", "image_offset", "image_bytes", "image_id", "patient_id", "view",
        "sex", "age_years", "copy", "augmentation", "label",
    ]  # fmt: skip
    manifest = manifest_json(dataset)
    expected = []
    for split, counts in manifest["splits"].items():
        for shard in counts["shards"]:
            with open(dataset / shard["file"], "rb") as file:
                offsets = [offset for offset, _ in read_records(file)]
            expected += [(split, shard["file"], place, offset) for place, offset in enumerate(offsets)]
    assert list(zip(*(table[name].to_pylist() for name in table.column_names[:4]), strict=True)) == expected


@pytest.mark.parametrize("codec", ["raw", "png", "jpeg"])
def test_image_offset_and_image_bytes_lead_to_the_stored_image_of_each_record(build, tmp_path, codec):
    build(tmp_path / "out", codec=codec)

    rows = pq.read_table(tmp_path / "out" / "records.parquet").to_pylist()
    found = []
    for row in rows:
        with open(tmp_path / "out" / row["shard"], "rb") as file:
            file.seek(row["image_offset"])
            found.append(file.read(row["image_bytes"]))
    expected = []
    for shard in dict.fromkeys(row["shard"] for row in rows):
        with open(tmp_path / "out" / shard, "rb") as file:
            expected += [decode_example(data)["image"][0] for _, data in read_records(file)]
    assert found == expected


@pytest.mark.parametrize("codec", ["raw", "png"])
def test_mean_and_std_are_those_of_the_pixels_of_the_original_training_images(
    build, lookalike, tmp_path, codec
):
    result = build(tmp_path / "out", codec=codec)

    table = pq.read_table(tmp_path / "out" / "records.parquet").to_pandas()
    train = set(table[table["split"] == "train"]["image_id"])
    pixels = [
        np.asarray(Image.open(path).convert("L").resize((32, 32), Image.Resampling.BILINEAR))
        for path in lookalike.images.rglob("*.png")
        if path.name in train
    ]
    assert len(pixels) == len(train)
    assert result.manifest.pixels.mean == pytest.approx(np.mean(pixels), abs=1e-6)
    assert result.manifest.pixels.std == pytest.approx(np.std(pixels), abs=1e-6)


def test_a_dataset_without_training_images_has_no_mean_and_no_std(build, lookalike, tmp_path):
    metadata = read_metadata(str(lookalike.metadata))
    listed = set(lookalike.train_val_list.read_text().split())
    mass = metadata.findings[:, FINDINGS.index("Mass")] > 0
    no_part = metadata.table["image_id"][metadata.findings.any(axis=1) & ~mass]
    (tmp_path / "train_val.txt").write_text(next(name for name in no_part if name in listed) + "\n")
    lists = SplitOptions(str(tmp_path / "train_val.txt"), str(lookalike.test_list), validation_fraction=0)

    build(tmp_path / "out", task="binary:Mass", split_options=lists)

    assert manifest_json(tmp_path / "out")["pixels"] == {"mean": None, "std": None}
    read = read_manifest(str(tmp_path / "out"))
    assert list(read.splits) == ["test"]
    assert (read.pixels.mean, read.pixels.std) == (None, None)


# Images left out


def test_left_out_csv_quotes_what_needs_it():
    rows = [("a.png", "train", "rejected", 'says "no", twice'), ("b.png", "", "in no list", ""),
            ("ü.png", "test", "rejected", "two\nlines")]  # fmt: skip

    data = left_out_csv(pd.DataFrame(rows, columns=["image_id", "split", "reason", "detail"]))

    assert data.decode() == (
        "image_id,split,reason,detail\n"
        'a.png,train,rejected,"says ""no"", twice"\n'
        "b.png,,in no list,\n"
        'ü.png,test,rejected,"two\nlines"\n'
    )
    assert [tuple(row) for row in csv.reader(io.StringIO(data.decode()))][1:] == rows


def test_left_out_csv_names_every_image_that_is_not_in_the_dataset_and_why(build, lookalike, tmp_path):
    images = Path(shutil.copytree(lookalike.images, tmp_path / "images"))
    metadata = read_metadata(str(lookalike.metadata))
    several = metadata.findings.sum(axis=1)
    image_ids = metadata.table["image_id"].tolist()
    of_path = {path.name: path for path in images.rglob("*.png")}
    single = [image_id for image_id, count in zip(image_ids, several, strict=True) if count == 1]
    empty, text, gone = single[0], single[1], single[2]
    of_path[empty].write_bytes(b"")
    of_path[text].write_bytes(b"<html>")
    of_path[gone].unlink()

    result = build(
        tmp_path / "out",
        task="multiclass",
        images=(str(images),),
        store=str(tmp_path / "store"),
        allow_missing=True,
        max_rejected=0.02,
    )

    split_of = dict(zip(image_ids, result.plan.splits.of_image, strict=True))
    why = {
        empty: ("rejected", "the file is empty"),
        text: ("rejected", "no PNG, JPEG or DICOM: begins with '<html>'"),
        gone: ("missing", "in no source"),
    }
    for image_id, count in zip(image_ids, several, strict=True):
        if count != 1:
            why[image_id] = (
                "left out by the task",
                "more than one finding" if count else "no finding",
            )
    with open(tmp_path / "out" / "rejected.csv", newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["image_id", "split", "reason", "detail"]
    assert rows[1:] == [[name, split_of[name], *why[name]] for name in image_ids if name in why]
    assert result.manifest.left_out == {
        "left out by the task": (several != 1).sum(),
        "rejected": 2,
        "missing": 1,
    }
    in_records = pq.read_table(tmp_path / "out" / "records.parquet")["image_id"].to_pylist()
    assert set(in_records) == set(image_ids) - set(why)


# Reading it


def test_a_folder_that_is_not_there_is_said_to_be_so(tmp_path):
    with pytest.raises(ManifestError) as error:
        read_manifest(str(tmp_path / "nowhere"))
    assert str(error.value) == f"{tmp_path}/nowhere: no such folder"


def test_an_unfinished_build_is_said_to_be_so(copied_dataset):
    (copied_dataset / "manifest.json").unlink()

    with pytest.raises(ManifestError) as error:
        read_manifest(str(copied_dataset))
    assert str(error.value) == (
        f"{copied_dataset}: the build is not finished; run the same build command again"
    )


def test_a_folder_of_something_else_is_said_to_be_no_dataset(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")

    with pytest.raises(ManifestError) as error:
        read_manifest(str(tmp_path))
    assert str(error.value) == (f"{tmp_path}: no manifest.json, so no dataset of ours; build one there first")


@pytest.mark.parametrize(
    "data",
    [b"", b"{", b"[]", b"null", b"{}", b'{"checksum": "0"}', b"\xff\xfe{", b'"\\ud800"', b"[" * 100_000],
    ids=lambda data: repr(data[:10]),
)
def test_a_manifest_that_is_not_ours_byte_for_byte_is_damaged(tmp_path, data):
    (tmp_path / "manifest.json").write_bytes(data)

    with pytest.raises(ManifestError) as error:
        read_manifest(str(tmp_path))
    assert str(error.value) == (
        f"{tmp_path}/manifest.json is damaged: its bytes are not those that were written; "
        "run the build command again"
    )


def test_a_manifest_that_means_the_same_in_other_bytes_is_damaged(copied_dataset):
    path = copied_dataset / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_bytes())))

    with pytest.raises(ManifestError, match="is damaged"):
        read_manifest(str(copied_dataset))


@pytest.mark.parametrize(
    "change",
    [
        lambda content: content["files"][0].update(sha256="0" * 64),
        lambda content: content.update(findings=content["findings"][::-1]),
        lambda content: content["splits"]["test"].update(records=1),
        lambda content: content.update(id="0" * 32),
        lambda content: content.update(checksum="0" * 64),
    ],
    ids=["files", "findings", "splits", "id", "checksum"],
)
def test_a_manifest_that_was_edited_as_we_write_them_is_damaged(copied_dataset, change):
    path = copied_dataset / "manifest.json"
    content = json.loads(path.read_bytes())
    change(content)
    path.write_bytes(manifest_bytes(content))

    with pytest.raises(ManifestError) as error:
        read_manifest(str(copied_dataset))
    assert str(error.value) == (
        f"{path} is damaged: its bytes are not those that were written; run the build command again"
    )


def test_a_manifest_keeps_names_of_other_alphabets_as_they_are():
    assert (
        manifest_bytes({"findings": ["Épanchement"]})
        == '{\n "findings": [\n  "Épanchement"\n ]\n}\n'.encode()
    )


def test_what_is_read_is_what_was_written(dataset):
    assert read_manifest(str(dataset)).to_json() == manifest_json(dataset)


def test_a_manifest_without_the_names_of_its_findings_is_of_nihs(copied_dataset):
    """Those of before had none."""
    before = manifest_json(copied_dataset)
    del before["findings"]
    write_manifest(copied_dataset, before)

    assert read_manifest(str(copied_dataset)).findings == FINDINGS
    assert read_manifest(str(copied_dataset)).id == before["id"]


def test_an_id_that_is_not_of_the_content_is_damage(copied_dataset):
    content = manifest_json(copied_dataset) | {"id": "0" * 32}
    content.pop("checksum")
    content["checksum"] = sha256(manifest_bytes(content))
    (copied_dataset / "manifest.json").write_bytes(manifest_bytes(content))

    with pytest.raises(ManifestError, match=r"is not as cxr_records writes it: id: found '0000"):
        read_manifest(str(copied_dataset))


def test_a_manifest_of_another_version_is_told_from_a_damaged_one(copied_dataset):
    path = copied_dataset / "manifest.json"
    write_manifest(copied_dataset, manifest_json(copied_dataset) | {"format_version": 0})

    with pytest.raises(ManifestError) as error:
        read_manifest(str(copied_dataset))
    assert str(error.value) == (
        f"{path}: 'cxr_records dataset' version 0, expected 'cxr_records dataset' version 1; "
        "build the dataset again"
    )


# Folders


def test_check_folder_accepts_none_an_empty_one_and_datasets_finished_or_not(copied_dataset, tmp_path):
    check_folder(str(tmp_path / "nowhere"))
    (tmp_path / "empty").mkdir()
    check_folder(str(tmp_path / "empty"))
    check_folder(str(copied_dataset))
    (copied_dataset / "manifest.json").unlink()
    check_folder(str(copied_dataset))


def test_check_folder_accepts_a_dataset_that_came_without_what_made_it(copied_dataset):
    shutil.rmtree(copied_dataset / ".build")

    check_folder(str(copied_dataset))


@pytest.mark.parametrize("left", [[], ["lock"], ["lock", ".plan-0.parquet.tmp-0", "rejected.csv"]], ids=str)
def test_check_folder_accepts_what_a_build_that_was_killed_early_leaves(tmp_path, left):
    (tmp_path / ".build").mkdir()
    for name in left:
        (tmp_path / ".build" / name).touch()

    check_folder(str(tmp_path))


@pytest.mark.parametrize("inside", ["", ".build"])
def test_check_folder_accepts_hidden_files_and_what_systems_leave(tmp_path, inside):
    (tmp_path / ".build").mkdir()
    folder = tmp_path / inside if inside else tmp_path / "new"
    for name in (".DS_Store", "lost+found", "@eaDir", "Thumbs.db", "desktop.ini", ".Trash-1000", "._x"):
        (folder / name).mkdir(parents=True)

    check_folder(str(tmp_path if inside else folder))


def test_check_folder_names_a_stranger_and_not_what_systems_leave(tmp_path):
    for name in (".DS_Store", "@eaDir", "thesis.tex"):
        (tmp_path / name).touch()

    with pytest.raises(UsageError, match=r"\(it holds thesis\.tex\)"):
        check_folder(str(tmp_path))


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("notes.txt", b"mine"),
        ("cxr14-train.tfrecord-00000-of-00001", b""),
        ("manifest.json", b"{}"),
        (".build/debug.yaml", b"of another tool"),
    ],
)
def test_check_folder_refuses_what_is_not_ours_and_names_it(tmp_path, name, data):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(data)

    with pytest.raises(UsageError) as error:
        check_folder(str(tmp_path))
    assert str(error.value) == (
        f"`out={tmp_path}` is not empty and no dataset of ours (it holds {name.split('/')[0]}); name another"
    )
    assert path.read_bytes() == data


@pytest.fixture
def littered(tmp_path):
    """A folder with every kind of file, and the spec of the one shard that is planned."""
    shard = "cxr14-train.tfrecord-00000-of-00001"
    for name in [
        shard, "cxr14-train.tfrecord-00000-of-00002", "cxr14-test.tfrecord-00000-of-00001", "manifest.json",
        "records.parquet", "notes.txt", "cxr14-notes.txt", f".{shard}.tmp-{'0' * 32}", ".hidden",
        f".build/{shard}.json", ".build/cxr14-test.tfrecord-00000-of-00001.json", ".build/plan-1.parquet",
        ".build/plan-2.parquet", ".build/lock", ".build/.DS_Store", ".build/rejected.csv",
        f".build/.{shard}.json.tmp-{'0' * 32}",
    ]:  # fmt: skip
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    plan = WorkFile(str(tmp_path / ".build" / "plan-1.parquet"), "0")
    return tmp_path, ShardSpec(str(tmp_path), shard, 1, "0", plan, 0, "store", None, 0, False)


def test_clear_stale_removes_what_is_ours_and_not_planned_and_nothing_else(littered):
    folder, spec = littered

    clear_stale(str(folder), [spec], [])

    left = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert left == {
        spec.file, "records.parquet", "notes.txt", "cxr14-notes.txt", ".hidden", f".build/{spec.file}.json",
        ".build/plan-1.parquet", ".build/lock", ".build/.DS_Store",
    }  # fmt: skip


@pytest.mark.parametrize("will_change", [True, False])
def test_clear_stale_takes_the_manifest_away_only_where_the_dataset_will_change(littered, will_change):
    folder, spec = littered
    for stale in folder.glob("cxr14-*"):
        if stale.name != spec.file:
            stale.unlink()

    clear_stale(str(folder), [dataclasses.replace(spec)], [spec] if will_change else [])

    assert (folder / "manifest.json").exists() is not will_change
    # What is told of a shard that is to be written is told of another one.
    assert (folder / ".build" / f"{spec.file}.json").exists() is not will_change
