"""What a manifest must say: one from elsewhere, whose checksum fits, is checked value by value."""

import copy
import json
import math
from pathlib import Path
from typing import Any

import pytest
from conftest import files_of, manifest_json, write_manifest
from hypothesis import given, settings
from hypothesis import strategies as st

import cxr_records
from cxr_records.errors import CxrError
from cxr_records.manifest import (
    MOST_BYTES,
    DamagedManifestError,
    DuplicateImages,
    Manifest,
    ManifestError,
    read_manifest,
)
from cxr_records.manifest_schema import SchemaError, check_manifest

TRAIN = "cxr14-train.tfrecord-00000-of-00003"
AGAIN = "; build the dataset again, or get it anew from where it was built"

NASTY: list[Any] = [
    None, True, False, 0, 1, -1, 1.5, -0.0, 1e300, math.nan, math.inf, 1 << 53, (1 << 53) + 1, 1 << 64,
    10**400,
    "", ".", "..", "/", "/etc/passwd", "../../thesis", "a\0b", "a\nb", "\x1b[2J", "x" * 1001, "0" * 64,
    "A" * 64, "\u202eevil", "train", "records.parquet", "manifest.json", TRAIN, f"{TRAIN}/../x",
    "file:///etc/passwd", "s3://bucket/x", "multilabel", "No Finding", [], {}, [[]], [None], ["../x"],
    {"a": 1}, {"../x": {}}, [{"file": "../x", "bytes": 1, "sha256": "../x"}],
]  # fmt: skip


def places(content: Any, path: tuple = ()) -> list[tuple]:
    """Every place in JSON that holds a value."""
    inside = (
        content.items()
        if isinstance(content, dict)
        else enumerate(content)
        if isinstance(content, list)
        else ()
    )
    return [path] * bool(path) + [place for key, part in inside for place in places(part, (*path, key))]


def changed(content: dict[str, Any], path: tuple, value: Any) -> dict[str, Any]:
    content = copy.deepcopy(content)
    part = content
    for key in path[:-1]:
        part = part[key]
    part[path[-1]] = value
    return content


def refusal(content: dict[str, Any]) -> str:
    with pytest.raises(SchemaError) as error:
        check_manifest(content)
    return str(error.value)


# What we write


@pytest.mark.parametrize("task", ["multilabel", "multiclass", "binary", "binary:Mass", "binary:Mass,Nodule"])
@pytest.mark.parametrize("changes", [{}, {"rule": "none", "validation_fraction": 0}], ids=str)
def test_every_manifest_that_a_build_writes_is_as_we_write_them(build, tmp_path, task, changes):
    build(tmp_path / "data", task=task, **changes)

    check_manifest(manifest_json(tmp_path / "data"))


def test_a_multiclass_manifest_with_no_finding_is_as_we_write_them(build, tmp_path):
    build(tmp_path / "data", task="multiclass", with_no_finding=True, seed=-(10**30))

    check_manifest(manifest_json(tmp_path / "data"))


def test_datasets_of_before_have_no_lists_of_the_splits_among_their_files(dataset):
    content = manifest_json(dataset)
    content["files"] = [entry for entry in content["files"] if not entry["file"].endswith("_list.txt")]
    assert len(content["files"]) == 4

    check_manifest(content)


def test_duplicates_are_read_as_they_were_written_and_are_no_part_of_the_id(copied_dataset):
    before = read_manifest(str(copied_dataset))
    same = DuplicateImages(("a.png", "b.png"), ("train", "test"), (1, 7), "pixels")
    told = Manifest(**{**{n: getattr(before, n) for n in before.__dataclass_fields__}, "duplicates": (same,)})
    write_manifest(copied_dataset, told.to_json())

    read = read_manifest(str(copied_dataset))
    assert read.duplicates == (same,)
    assert read.id == before.id
    assert "duplicates" not in before.to_json()
    assert json.loads(json.dumps(told.to_json()["duplicates"])) == [
        {"images": ["a.png", "b.png"], "splits": ["train", "test"], "patients": [1, 7], "same": "pixels"}
    ]


def test_what_is_drawn_is_read_as_it_was_written_and_is_no_part_of_the_id(copied_dataset):
    drawn = read_manifest(str(copied_dataset))
    content = {key: value for key, value in drawn.to_json().items() if key != "drawn"}
    write_manifest(copied_dataset, content)

    real = read_manifest(str(copied_dataset))
    assert (drawn.drawn, drawn.drawn_share) == (drawn.table.images, "all")
    assert (real.drawn, real.drawn_share) == (0, "none")
    assert real.id == drawn.id
    assert "drawn" not in real.to_json()


# What we do not write


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("splits", "train", "shards", 0, "sha256"), "../thesis",
         "splits.train.shards[0].sha256: found '../thesis', expected 64 hexadecimal digits"),
        (("splits", "train", "shards", 0, "sha256"), "A" * 64,
         f"splits.train.shards[0].sha256: found '{'A' * 64}', expected 64 hexadecimal digits"),
        (("splits", "train", "shards", 0, "file"), "../thesis",
         f"splits.train.shards[0].file: found '../thesis', expected {TRAIN}"),
        (("splits", "train", "shards", 1, "file"), TRAIN,
         f"splits.train.shards[1].file: found '{TRAIN}', expected cxr14-train.tfrecord-00001-of-00003"),
        (("splits", "train", "shards", 0, "bytes"), True,
         "splits.train.shards[0].bytes: found True, expected a whole number of 0 to 1,099,511,627,776"),
        (("splits", "train", "shards", 0, "bytes"), 1 << 50,
         "splits.train.shards[0].bytes: found 1,125,899,906,842,624, expected a whole number of 0 to "
         "1,099,511,627,776"),
        (("splits", "train", "shards", 0, "bytes"), 31,
         "splits.train.shards[0].bytes: found 31, expected 16 or more for each of {1} records"),
        (("splits", "train", "shards", 0, "records"), 1 << 31,
         "splits.train.shards[0].records: found 2,147,483,648, expected a whole number of 1 to 16,777,216"),
        (("splits", "train", "shards"), [],
         "splits.train.shards: found [], expected a list of 1 or more"),
        (("splits", "train", "records"), 157,
         "splits.train.records: found 157, expected the 156 of its shards"),
        (("splits", "train", "images"), 103,
         "splits.train.records: found 156, expected 103 images and 54 copies"),
        (("splits", "train", "patients"), 103,
         "splits.train.patients: found 103, expected 1 to 102, its images"),
        (("splits", "train", "bytes"), 1, "splits.train.bytes: found 1, expected the 199,812 of its shards"),
        (("splits", "dev"), {}, "splits: found 'dev', expected one of train, validation, test"),
        (("classes", "Mass", "images"), 0, "classes.Mass.images: found 0, expected the {0} of its splits"),
        (("class_names", 0), "Pneumonitis",
         "class_names: found ['Pneumonitis', 'Cardiomegaly', 'Effusion', 'Infiltration', 'Mass', 'Nodule', "
         "'Pneumonia', 'Pneu..., expected those of multilabel"),
        (("pixels", "mean"), math.nan, "pixels.mean: found nan, expected a number of 0 to 255, or null"),
        (("pixels", "mean"), 255.5, "pixels.mean: found 255.5, expected a number of 0 to 255, or null"),
        (("config", "size"), 224.0, "config.size: found 224.0, expected a whole number of 16 to 2,048"),
        (("config", "codec"), "tiff", "config.codec: found 'tiff', expected one of raw, png, jpeg"),
        (("config", "task"), "binary:Unicorn",
         "config.task: found 'binary:Unicorn', expected a task of these findings"),
        (("config", "task"), "multilabel ",
         "config.task: found 'multilabel ', expected a task of these findings"),
        (("config", "copies", "of"), ["Unicorn"],
         "config.copies.of: found 'Unicorn', expected a class of multilabel"),
        (("findings", 3), "Mass", "findings: found 'Mass twice', expected each once"),
        (("findings", 3), "Mass|Nodule", "findings[3]: found 'Mass|Nodule', expected the name of a finding"),
        (("files", 0, "file"), "/etc/passwd",
         "files[0].file: found '/etc/passwd', expected one of records.parquet, rejected.csv, features.json, "
         "dataset_info.json, label.labels.txt, train_list.txt, validation_list.txt, test_list.txt"),
        (("files", 0, "file"), "rejected.csv", "files: found 'rejected.csv twice', expected each once"),
        (("files", 0, "file"), "label.labels.txt",
         "files: found ['label.labels.txt', 'rejected.csv', 'features.json', 'dataset_info.json', "
         "'train_list.txt', 'va..., expected records.parquet among them"),
        (("files", 0, "bytes"), 10**9,
         "files.records.parquet.bytes: found 1,000,000,000, expected at most 1,884,160 for 204 records"),
        (("table", "images"), 151, "table.images: found 151, expected the 150 in splits and 0 left out"),
        (("left_out",), {"rejected": 10**400},
         "left_out.rejected: found a number of many digits, expected a whole number of 1 to "
         "9,007,199,254,740,992"),
        (("left_out",), {"\x1b[2J": 1},
         "left_out: found '\\x1b[2J', expected printable text of 1 to 1,000 letters"),
        (("mine",), 1, "it: found 'mine', expected none but "),
        (("drawn",), 151, "drawn: found 151, expected at most 150, as in the table"),
        (("drawn",), 0, "drawn: found 0, expected a whole number of 1 to 9,007,199,254,740,992"),
        (("duplicates",), [{"images": ["a.png"], "splits": [], "patients": [], "same": "source"}],
         "duplicates[0].images: found ['a.png'], expected a list of 2 or more"),
        (("duplicates",), [{"images": ["a.png", "b.png"], "splits": [], "patients": [], "same": "name"}],
         "duplicates[0].same: found 'name', expected one of source, pixels"),
    ],
)  # fmt: skip
def test_a_value_that_we_do_not_write_is_named_with_its_place(dataset, path, value, message):
    content = manifest_json(dataset)
    mass, records = content["classes"]["Mass"]["images"], content["splits"]["train"]["shards"][0]["records"]
    message = message.replace("{0}", str(mass)).replace("{1}", str(records))

    assert refusal(changed(content, path, value)).startswith(message)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        (("table",), "it: found 'no table', expected one"),
        (("files", 0, "sha256"), "files[0]: found 'no sha256', expected one"),
        (("classes", "Mass"), "classes: found ["),
        (("splits", "test"), "classes.Atelectasis.splits: found ['train', 'validation', 'test'], expected "),
    ],
    ids=str,
)
def test_a_value_that_is_not_there_is_named_with_its_place(dataset, path, message):
    content = manifest_json(dataset)
    part = content
    for key in path[:-1]:
        part = part[key]
    del part[path[-1]]

    assert refusal(content).startswith(message)


def test_copies_are_in_train_alone(dataset):
    content = manifest_json(dataset)
    content["splits"]["test"] |= {"images": 33, "copies": 1}

    assert refusal(content) == "splits.test.copies: found 1, expected none, for copies are in train only"


@pytest.mark.parametrize("task", ["multilabel", "multiclass"])
def test_classes_have_as_many_records_as_their_split(build, tmp_path, task):
    build(tmp_path / "data", task=task)
    content = manifest_json(tmp_path / "data")
    for info in content["classes"].values():
        images, records = info["splits"]["test"].values()
        info["splits"]["test"] = {"images": 0, "records": 0}
        info["images"] -= images
        info["records"] -= records

    assert refusal(content) == (
        f"splits.test.images: found {content['splits']['test']['images']}, expected the 0 of the classes"
    )


def test_a_class_has_no_more_records_than_its_split(dataset):
    content = manifest_json(dataset)
    info, split = content["classes"]["Mass"], content["splits"]["test"]
    extra = split["images"] + 1 - info["splits"]["test"]["images"]
    for count in (info, info["splits"]["test"]):
        count["images"] += extra
        count["records"] += extra

    assert refusal(content) == (
        f"classes.Mass.splits.test.images: found {split['images'] + 1}, expected at most the "
        f"{split['images']} of the split"
    )


def test_it_is_said_in_one_line_that_the_manifest_is_not_as_we_write_them(copied_dataset):
    path = ("splits", "train", "shards", 0, "sha256")
    write_manifest(copied_dataset, changed(manifest_json(copied_dataset), path, "../thesis"))

    with pytest.raises(DamagedManifestError) as error:
        read_manifest(str(copied_dataset))
    assert str(error.value) == (
        f"{copied_dataset}/manifest.json is not as cxr_records writes it: splits.train.shards[0].sha256: "
        f"found '../thesis', expected 64 hexadecimal digits{AGAIN}"
    )


def test_a_manifest_that_is_too_large_is_not_parsed(copied_dataset):
    with open(copied_dataset / "manifest.json", "r+b") as file:
        file.truncate(MOST_BYTES + 1)

    with pytest.raises(ManifestError) as error:
        read_manifest(str(copied_dataset))
    assert str(error.value) == (
        f"{copied_dataset}/manifest.json has more than 67,108,864 bytes, which none of ours has"
    )


@settings(max_examples=400)
@given(data=st.data())
def test_one_value_changed_is_refused_or_harmless(dataset, tmp_path_factory, data):
    """Whatever it is changed to, there is one line or a dataset; and no other file is touched."""
    folder = tmp_path_factory.mktemp("hostile")
    outside = folder / "thesis"
    outside.write_bytes(b"years of work")
    hostile = folder / "cxr14"
    hostile.mkdir()
    for path in dataset.iterdir():
        if path.is_file():
            (hostile / path.name).symlink_to(path)
    content = manifest_json(dataset)
    content["duplicates"] = [
        {"images": ["a.png", "b.png"], "splits": ["test"], "patients": [1, 2], "same": "source"}
    ]
    place = data.draw(st.sampled_from(places(content)))
    (hostile / "manifest.json").unlink()
    write_manifest(hostile, changed(content, place, data.draw(st.sampled_from(NASTY))))
    before, said = files_of(hostile), ""

    try:
        opened = cxr_records.open(hostile)
        for name in opened.splits:
            assert len(opened.split(name)) == opened.splits[name].records
        said = " ".join(map(str, cxr_records.verify(opened)))  # of files that are read by no reader
    except CxrError as error:
        said = str(error)
    assert said.isprintable()  # and so one line
    assert len(said) < 2000
    assert files_of(hostile) == before
    assert outside.read_bytes() == b"years of work"
    assert sorted(path.name for path in folder.iterdir()) == ["cxr14", "thesis"]


def test_a_value_of_another_kind_is_refused_wherever_it_stands(dataset):
    """Every place, with a value of each kind of JSON that does not belong there."""
    content = manifest_json(dataset)
    kinds = [None, True, 7, 7.25, "\0", [None], {"\0": None}]
    for place in places(content):
        value = content
        for key in place:
            value = value[key]
        for wrong in kinds:
            number = isinstance(value, int | float) and not isinstance(value, bool)
            alike = type(wrong) is type(value) and not isinstance(wrong, str | list | dict)
            if alike or (number and isinstance(wrong, int | float) and not isinstance(wrong, bool)):
                continue
            if wrong is None and isinstance(value, float):
                continue  # a ratio that is undefined; the id tells it from what was written
            with pytest.raises(SchemaError):
                check_manifest(changed_in_place(content, place, wrong))
            changed_in_place(content, place, value)
    assert json.dumps(content) == json.dumps(manifest_json(dataset))


def changed_in_place(content: dict[str, Any], path: tuple, value: Any) -> dict[str, Any]:
    part = content
    for key in path[:-1]:
        part = part[key]
    part[path[-1]] = value
    return content


def test_a_link_to_a_dataset_is_that_dataset(dataset, tmp_path):
    (tmp_path / "link").symlink_to(dataset)

    assert read_manifest(str(Path(tmp_path / "link"))).id == manifest_json(dataset)["id"]
