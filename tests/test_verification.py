import contextlib
import errno
import hashlib
import json
import os
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import frame, manifest_json, write_manifest
from hypothesis import given, settings
from hypothesis import strategies as st

from cxr_records import storage
from cxr_records.augment import augmentation_for
from cxr_records.examples import decode_example, encode_example, example_parts
from cxr_records.findings import FINDINGS, NO_FINDING
from cxr_records.layout import LIST_FILES
from cxr_records.manifest import ManifestError, read_manifest
from cxr_records.tfrecord import read_records
from cxr_records.verification import Problem, check_dataset

TRAIN, TEST = "cxr14-train.tfrecord-00000-of-00003", "cxr14-test.tfrecord-00000-of-00001"
VALIDATION = "cxr14-validation.tfrecord-00000-of-00001"
SHARDS = [
    TRAIN,
    "cxr14-train.tfrecord-00001-of-00003",
    "cxr14-train.tfrecord-00002-of-00003",
    VALIDATION,
    TEST,
]
MISSING = "the file is missing; run the build command again: it writes it anew"
REBUILD = "delete it and run the build command again: it writes this file anew"
OTHER_FILES = [
    "manifest.json", "records.parquet", "rejected.csv", "features.json", "dataset_info.json", *LIST_FILES,
]  # fmt: skip


@pytest.fixture(scope="session")
def to_flip(dataset, tmp_path_factory) -> Path:
    """A copy in which bytes are flipped and put back."""
    return Path(shutil.copytree(dataset, tmp_path_factory.mktemp("flipped") / "cxr14"))


@contextlib.contextmanager
def flipped(path: Path, place: int, bit: int):
    with open(path, "r+b") as file:
        file.seek(place)
        (byte,) = file.read(1)
        file.seek(place)
        file.write(bytes([byte ^ (1 << bit)]))
    try:
        yield
    finally:
        with open(path, "r+b") as file:
            file.seek(place)
            file.write(bytes([byte]))


def rows_of(dataset: Path, shard: str) -> list[dict]:
    return [row for row in pq.read_table(dataset / "records.parquet").to_pylist() if row["shard"] == shard]


def said(problems: list[Problem]) -> list[tuple]:
    return [(Path(p.path).name, p.record, p.image, p.message) for p in problems]


# Whole


@pytest.mark.parametrize("deep", [False, True])
def test_a_finished_dataset_has_no_problem(dataset, deep):
    assert sorted(path.name for path in dataset.glob("cxr14-*")) == sorted(SHARDS)
    assert check_dataset(str(dataset), deep) == []


@pytest.mark.parametrize("deep", [False, True])
def test_files_that_are_not_ours_are_no_problem(copied_dataset, deep):
    (copied_dataset / "notes.txt").touch()
    (copied_dataset / "cxr14-notes.txt").touch()

    assert check_dataset(str(copied_dataset), deep) == []


def test_a_problem_reads_as_file_record_image_and_cause():
    assert str(Problem("a", "broken", 3, "x.png")) == "a record 3 (x.png): broken"
    assert str(Problem("a", "broken", 3)) == "a record 3: broken"
    assert str(Problem("a", "broken")) == "a: broken"


# Any flipped bit


@given(st.data(), st.booleans())
@settings(max_examples=120)
def test_a_flipped_bit_anywhere_in_a_shard_is_found_with_its_record_and_image(to_flip, data, deep):
    shard = data.draw(st.sampled_from(SHARDS))
    size = (to_flip / shard).stat().st_size
    rows = rows_of(to_flip, shard)
    number = data.draw(st.integers(0, len(rows) - 1))
    start = rows[number]["offset"]
    end = rows[number + 1]["offset"] if number + 1 < len(rows) else size
    place = data.draw(
        st.one_of(  # length, its checksum, data, checksum of the data
            st.integers(start, start + 7),
            st.integers(start + 8, start + 11),
            st.integers(start + 12, end - 5),
            st.integers(end - 4, end - 1),
        )
    )
    part = "length" if place < start + 12 else "data"

    with flipped(to_flip / shard, place, data.draw(st.integers(0, 7))):
        problems = check_dataset(str(to_flip), deep)

    checksum = f"the checksum of the record's {part} does not match (at byte {start:,})"
    assert said(problems) == [
        (shard, None, None, f"its sha256 is not that of the manifest; {REBUILD}"),
        (shard, number, rows[number]["image_id"], checksum),
    ]


@pytest.mark.parametrize("shard", SHARDS)
@pytest.mark.parametrize("deep", [False, True])
def test_the_first_and_the_last_byte_of_each_shard_count(to_flip, shard, deep):
    rows = rows_of(to_flip, shard)
    for place, number in ((0, 0), ((to_flip / shard).stat().st_size - 1, len(rows) - 1)):
        with flipped(to_flip / shard, place, 0):
            problems = check_dataset(str(to_flip), deep)
        assert [(p.record, p.image) for p in problems] == [(None, None), (number, rows[number]["image_id"])]


@given(st.data(), st.booleans())
@settings(max_examples=80)
def test_a_flipped_bit_anywhere_in_another_file_is_found_and_named(to_flip, data, deep):
    name = data.draw(st.sampled_from(OTHER_FILES))
    last = (to_flip / name).stat().st_size - 1
    place = data.draw(st.one_of(st.integers(0, last), st.sampled_from([0, last])))

    with flipped(to_flip / name, place, data.draw(st.integers(0, 7))):
        problems = check_dataset(str(to_flip), deep)

    cause = f"its sha256 is not that of the manifest; {REBUILD}"
    if name == "manifest.json":
        cause = "damaged: its bytes are not those that were written; run the build command again"
    assert said(problems) == [(name, None, None, cause)]


def test_bytes_all_over_the_manifest_count(to_flip):
    path = to_flip / "manifest.json"
    for place in range(0, path.stat().st_size, 7):
        with flipped(path, place, place % 8), pytest.raises(ManifestError):
            read_manifest(str(to_flip))


# Whole files


@pytest.mark.parametrize("deep", [False, True])
def test_a_truncated_shard_names_the_records_that_are_cut_off(copied_dataset, deep):
    rows = rows_of(copied_dataset, TRAIN)
    path = copied_dataset / TRAIN
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[: rows[-2]["offset"] + 100])

    problems = check_dataset(str(copied_dataset), deep)

    before, last = rows[-2]["offset"], rows[-1]["offset"]
    assert said(problems) == [
        (TRAIN, None, None, f"{before + 100:,} bytes, the manifest says {size:,}; {REBUILD}"),
        (
            TRAIN,
            len(rows) - 2,
            rows[-2]["image_id"],
            f"100 bytes, its header says {last - before} (at byte {before:,})",
        ),
        (
            TRAIN,
            len(rows) - 1,
            rows[-1]["image_id"],
            f"cut short: 0 bytes, a record has at least 16 (at byte {last:,})",
        ),
    ]


@pytest.mark.parametrize("deep", [False, True])
def test_bytes_behind_the_last_record_are_found(copied_dataset, deep):
    path = copied_dataset / TEST
    size = path.stat().st_size
    path.write_bytes(path.read_bytes() + frame(b"one more"))

    problems = check_dataset(str(copied_dataset), deep)

    rows = rows_of(copied_dataset, TEST)
    length = size - rows[-1]["offset"]
    assert said(problems) == [
        (TEST, None, None, f"{size + 24:,} bytes, the manifest says {size:,}; {REBUILD}"),
        (
            TEST,
            len(rows) - 1,
            rows[-1]["image_id"],
            f"{length + 24} bytes, its header says {length} (at byte {rows[-1]['offset']:,})",
        ),
    ]


@pytest.mark.parametrize("deep", [False, True])
@pytest.mark.parametrize("name", [*SHARDS, *OTHER_FILES[1:]])
def test_a_missing_file_is_one_problem(copied_dataset, name, deep):
    (copied_dataset / name).unlink()

    assert said(check_dataset(str(copied_dataset), deep)) == [(name, None, None, MISSING)]


def test_a_shard_too_many_is_found(copied_dataset):
    name = "cxr14-train.tfrecord-00003-of-00004"
    shutil.copy(copied_dataset / TRAIN, copied_dataset / name)

    assert said(check_dataset(str(copied_dataset))) == [
        (name, None, None, "a shard that the manifest does not name")
    ]


def test_swapped_shards_are_found(copied_dataset):
    one, other = copied_dataset / SHARDS[0], copied_dataset / SHARDS[1]
    one.rename(copied_dataset / "held")
    other.rename(one)
    (copied_dataset / "held").rename(other)

    problems = check_dataset(str(copied_dataset))
    deep = check_dataset(str(copied_dataset), deep=True)

    assert {Path(problem.path).name for problem in problems if problem.record is None} == set(SHARDS[:2])
    assert set(problems) <= set(deep)


@pytest.mark.parametrize("number", [0, 5])
@pytest.mark.parametrize("deep", [False, True])
def test_without_its_table_of_records_a_shards_first_damaged_record_is_still_named(
    copied_dataset, deep, number
):
    rows = rows_of(copied_dataset, TRAIN)
    (copied_dataset / "records.parquet").unlink()

    with flipped(copied_dataset / TRAIN, rows[number]["offset"] + 50, 3):
        problems = check_dataset(str(copied_dataset), deep)

    checksum = f"the checksum of the record's data does not match (at byte {rows[number]['offset']:,})"
    assert said(problems) == [
        (
            "records.parquet",
            None,
            None,
            MISSING,
        ),
        (TRAIN, None, None, f"its sha256 is not that of the manifest; {REBUILD}"),
        (TRAIN, number, None, checksum),
    ]


@pytest.mark.parametrize(
    ("left", "message"),
    [
        (None, "no such folder"),
        ([".build"], "the build is not finished; run the same build command again"),
        ([], "no manifest.json, so no dataset of ours; build one there first"),
    ],
)
@pytest.mark.parametrize("deep", [False, True])
def test_where_no_finished_dataset_is_there_is_nothing_to_check(tmp_path, left, message, deep):
    folder = tmp_path / "cxr14"
    for name in left or ():
        (folder / name).mkdir(parents=True)
    if left == []:
        folder.mkdir()

    with pytest.raises(ManifestError) as error:
        check_dataset(str(folder), deep)
    assert str(error.value) == f"{folder}: {message}"


# Records that are wrong though every checksum is right


def plain(values: dict) -> dict:
    """What encode_example takes, of what decode_example gives."""
    return {
        name: value[0] if value and isinstance(value[0], bytes) else value for name, value in values.items()
    }


def tamper(dataset: Path, change=lambda shards: None) -> None:
    """Changes {shard: [values of each record]} in place, then makes table, counts and digests fit again.

    Copies belong in train: in the other splits the manifest still tells of originals alone.
    """
    manifest = manifest_json(dataset)
    split_of = {shard["file"]: split for split, c in manifest["splits"].items() for shard in c["shards"]}
    shards = {}
    for name in split_of:
        with open(dataset / name, "rb") as file:
            shards[name] = [plain(decode_example(data)) for _, data in read_records(file)]
    change(shards)
    rows, entries = [], {}
    schema = pq.read_schema(dataset / "records.parquet")
    one_label = schema.field("label").type == pa.int64()
    for name, records in shards.items():
        data = b""
        for place, values in enumerate(records):
            row = {"split": split_of[name], "shard": name, "place": place, "offset": len(data)}
            before, image, _ = example_parts(values)
            row |= {"image_offset": len(data) + 12 + len(before), "image_bytes": len(image)}
            numbers = ("patient_id", "age_years", "copy")
            for column in ("image_id", *numbers, "view", "sex", "augmentation", "label"):
                value = values.get(column, "")
                one = value[0] if column in numbers and isinstance(value, list) else value
                one = one.decode() if isinstance(one, bytes) else one
                row[column] = -1 if column in numbers and isinstance(one, str) else one
            row["label"] = row["label"][0] if one_label else row["label"]
            rows.append(row)
            data += frame(encode_example(values))
        (dataset / name).write_bytes(data)
        entries[name] = {"records": len(records), **described(data)}
    pq.write_table(pa.Table.from_pylist(rows, schema), dataset / "records.parquet")
    for split, counts in manifest["splits"].items():
        here = [row for row in rows if row["split"] == split]
        for shard in counts["shards"]:
            shard |= entries[shard["file"]]
        counts["bytes"] = sum(shard["bytes"] for shard in counts["shards"])
        counts["records"] = len(here)
        counts["copies"] = sum(row["copy"] > 0 for row in here) if split == "train" else 0
        counts["images"] = len(here) - counts["copies"]
        counts["patients"] = len({row["patient_id"] for row in here})
        for name, info in manifest["classes"].items():
            of_class = [row for row in here if name in classes_of(row["label"], manifest["class_names"])]
            copies = sum(row["copy"] > 0 for row in of_class) if split == "train" else 0
            info["splits"][split] = {"images": len(of_class) - copies, "records": len(of_class)}
    for info in manifest["classes"].values():
        for kind in ("images", "records"):
            info[kind] = sum(count[kind] for count in info["splits"].values())
    manifest["table"]["images"] = sum(counts["images"] for counts in manifest["splits"].values()) + sum(
        manifest["left_out"].values()
    )
    for entry in manifest["files"]:
        entry |= described((dataset / entry["file"]).read_bytes())
    write_manifest(dataset, manifest)


def classes_of(label: int | list[int], class_names: list[str]) -> list[str]:
    if isinstance(label, int):
        return [class_names[label]]
    return [name for name, on in zip(class_names, label, strict=True) if on] or [NO_FINDING]


def described(data: bytes) -> dict:
    return {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def findings_of(values: dict) -> str:
    return "|".join(n for n, on in zip(FINDINGS, values["findings"], strict=True) if on) or NO_FINDING


def test_tampering_with_nothing_is_no_problem(copied_dataset):
    tamper(copied_dataset)

    assert check_dataset(str(copied_dataset), deep=True) == []


def wrong_label(values):
    values["label"][4] = 1 - values["label"][4]
    return f"label {values['label']}, expected {values['findings']} of {findings_of(values)}"


def findings_beyond_one(values):
    values["findings"][13] = 256  # zero to whoever keeps 8 bits
    return f"findings {values['findings']}, expected zeros and ones"


def missing_feature(values):
    del values["view"]
    return "feature 'view' is missing"


def extra_feature(values):
    values["comment"] = b"hello"
    return "feature 'comment' is unknown"


def feature_of_another_kind(values):
    values["age_years"] = b"58"
    return "feature 'age_years' is not int64"


def too_few_findings(values):
    values["findings"] = values["findings"][:13]
    return "feature 'findings' has 13 values, expected 14"


def copy_in_test(values):
    values["copy"] = [1]
    values["augmentation"] = json.dumps(augmentation_for(0, values["image_id"].decode(), 1)).encode()
    return "copy 1 of an image in test; copies belong in train only"


def copy_before_the_original(values):
    values["copy"] = [-1]
    values["augmentation"] = b'{"function": "blur", "sigma": 0.5}'
    return "copy -1 of an image in test; copies belong in train only"


def original_with_augmentation(values):
    values["augmentation"] = b'{"function": "blur", "sigma": 0.5}'
    return (
        'augmentation \'{"function": "blur", "sigma": 0.5}\' of copy 0, expected none, as this is an original'
    )


@pytest.mark.parametrize(
    "change",
    [
        wrong_label, findings_beyond_one, missing_feature, extra_feature, feature_of_another_kind,
        too_few_findings, copy_in_test, original_with_augmentation, copy_before_the_original,
    ],
)  # fmt: skip
def test_a_wrong_record_is_named_with_its_cause(copied_dataset, change):
    message = None

    def change_third(shards):
        nonlocal message
        message = change(shards[TEST][3])

    image = rows_of(copied_dataset, TEST)[3]["image_id"]
    tamper(copied_dataset, change_third)

    about_table = check_dataset(str(copied_dataset))  # every byte is as the manifest says
    copies_there = change in (copy_in_test, copy_before_the_original)
    assert {Path(problem.path).name for problem in about_table} == {"records.parquet"} & {
        "records.parquet" if copies_there else ""
    }
    problems = said(check_dataset(str(copied_dataset), deep=True))
    assert (TEST, 3, image, message) in problems
    problems = [problem for problem in problems if problem[0] != "records.parquet"]
    assert {problem[:3] for problem in problems} == {(TEST, 3, image)}
    # These two are copies without their original as well, and none counts below 0.
    assert len(problems) == {copy_in_test: 2, copy_before_the_original: 3}.get(change, 1)


def test_an_image_of_another_size_is_found_in_the_table_and_in_its_record(copied_dataset):
    def cut(shards):
        shards[TEST][3]["image"] = shards[TEST][3]["image"][:-32]

    image = rows_of(copied_dataset, TEST)[3]["image_id"]
    tamper(copied_dataset, cut)

    row = sum(counts["records"] for counts in list(manifest_json(copied_dataset)["splits"].values())[:2]) + 3
    expected = f"image of 992 bytes in row {row}, expected 1,024 of raw pixels; {REBUILD}"
    assert said(check_dataset(str(copied_dataset))) == [("records.parquet", None, None, expected)]
    assert said(check_dataset(str(copied_dataset), deep=True))[1:] == [
        (TEST, 3, image, "image: 992 bytes of raw pixels, expected 1024")
    ]


@pytest.mark.parametrize("by", [-1, 1])
def test_a_table_that_tells_of_another_place_of_an_image_is_named_with_the_record(copied_dataset, by):
    row = rows_of(copied_dataset, TEST)[0]
    start = row["image_offset"] + by
    rewrite_table(copied_dataset, "image_offset", start)

    assert check_dataset(str(copied_dataset)) == []  # every byte is as the manifest says
    message = f"records.parquet tells of an image of 1,024 bytes at byte {start}, the record holds another"
    assert said(check_dataset(str(copied_dataset), deep=True)) == [(TEST, 0, row["image_id"], message)]


def test_a_table_of_an_older_dataset_is_a_problem_and_the_next_build_writes_it_anew(copied_dataset, build):
    whole = (copied_dataset / "records.parquet").read_bytes()
    path = copied_dataset / "records.parquet"
    pq.write_table(pq.read_table(path).drop_columns(["image_offset", "image_bytes"]), path)
    for sidecar in (copied_dataset / ".build").glob("*.json"):  # of a build that kept no place of images
        content = json.loads(sidecar.read_text())
        sidecar.write_text(json.dumps({k: v for k, v in content.items() if not k.startswith("image_")}))
    fit_digests(copied_dataset)

    message = f"it is older than its columns image_offset and image_bytes; {REBUILD}"
    assert said(check_dataset(str(copied_dataset))) == [("records.parquet", None, None, message)]
    before = {name: (copied_dataset / name).read_bytes() for name in SHARDS}
    build(copied_dataset)
    assert path.read_bytes() == whole
    assert {name: (copied_dataset / name).read_bytes() for name in SHARDS} == before
    assert check_dataset(str(copied_dataset), deep=True) == []


def test_text_of_a_record_that_is_no_utf8_is_a_problem(copied_dataset, monkeypatch):
    monkeypatch.setattr(
        "cxr_records.verification.decode_example", lambda data: {**decode_example(data), "sex": [b"\xff"]}
    )

    problems = said(check_dataset(str(copied_dataset), deep=True))
    assert {problem[:3] for problem in problems} == {
        (name, row["place"], row["image_id"]) for name in SHARDS for row in rows_of(copied_dataset, name)
    }
    assert all(", '\ufffd', " in problem[3].partition("the record holds")[2] for problem in problems)


def first_copy(dataset: Path) -> dict:
    return next(row for name in SHARDS for row in rows_of(dataset, name) if row["copy"] > 0)


@pytest.mark.parametrize(
    "augmentation", ["", "{", "[]", "null", "{}", '{"function": "swirl"}', '{"function": []}', "[" * 999]
)
def test_a_copy_by_no_function_that_we_know_is_named(copied_dataset, augmentation):
    row = first_copy(copied_dataset)

    def change(shards):
        shards[row["shard"]][row["place"]]["augmentation"] = augmentation.encode()

    tamper(copied_dataset, change)

    message = f"augmentation {augmentation!r} of copy {row['copy']}, expected a known function"
    assert said(check_dataset(str(copied_dataset), deep=True)) == [
        (row["shard"], row["place"], row["image_id"], message)
    ]


def test_a_copy_without_its_original_is_named(copied_dataset):
    row = first_copy(copied_dataset)

    def change(shards):
        shards[row["shard"]][row["place"]]["image_id"] = b"another.png"

    tamper(copied_dataset, change)

    assert said(check_dataset(str(copied_dataset), deep=True)) == [
        (row["shard"], row["place"], "another.png", f"copy {row['copy']} without its original")
    ]


def test_copies_are_not_blamed_where_their_original_cannot_be_read(copied_dataset):
    row = first_copy(copied_dataset)
    rows = [row for name in SHARDS for row in rows_of(copied_dataset, name)]
    original = next(r for r in rows if r["image_id"] == row["image_id"] and r["copy"] == 0)

    tamper(copied_dataset, lambda shards: shards[original["shard"]][original["place"]].pop("view"))

    assert said(check_dataset(str(copied_dataset), deep=True)) == [
        (original["shard"], original["place"], original["image_id"], "feature 'view' is missing")
    ]


def test_a_patient_in_two_splits_is_named_with_an_image_of_each(copied_dataset):
    first = rows_of(copied_dataset, TRAIN)[0]

    def change(shards):
        shards[TEST][7]["patient_id"] = [first["patient_id"]]
        shards[TEST][7]["image_id"] = b"of no patient.png"

    tamper(copied_dataset, change)

    message = f"patient {first['patient_id']} is in test and, with {first['image_id']}, in train"
    assert said(check_dataset(str(copied_dataset), deep=True)) == [(TEST, 7, "of no patient.png", message)]


@pytest.mark.parametrize("deep", [False, True])
def test_patients_other_than_the_names_of_their_images_tell_are_one_problem(copied_dataset, deep):
    """As a table with a column sorted alone made them; such a dataset agrees with itself in all else."""
    splits = {row["image_id"]: row["patient_id"] for name in SHARDS for row in rows_of(copied_dataset, name)}
    wrong = sorted(splits)[:2]
    told = [splits[image] for image in wrong]

    def change(shards):
        for records in shards.values():
            for values in records:
                if values["image_id"].decode() in wrong:
                    values["patient_id"] = [values["patient_id"][0] + 500_000]

    tamper(copied_dataset, change)

    rows = pq.read_table(copied_dataset / "records.parquet").to_pylist()
    number, first = next((i, row) for i, row in enumerate(rows) if row["image_id"] in wrong)
    count = sum(row["image_id"] in wrong for row in rows)
    problems = said(check_dataset(str(copied_dataset), deep))
    assert problems[0] == (
        "records.parquet",
        number,
        first["image_id"],
        f"patient {first['patient_id']}, the name says patient {told[wrong.index(first['image_id'])]} (so in "
        f"{count} of {len(rows)} records); such patients may be in several splits: build again from NIH's "
        "own table",
    )
    assert [problem for problem in problems if problem[0] == "records.parquet"] == problems[:1]


def test_a_record_that_is_there_twice_is_named_with_its_twin(copied_dataset):
    def change(shards):
        shards[TEST].append(shards[TEST][2])

    count, image = len(rows_of(copied_dataset, TEST)), rows_of(copied_dataset, TEST)[2]["image_id"]
    tamper(copied_dataset, change)

    (problem,) = check_dataset(str(copied_dataset), deep=True)
    assert (problem.record, problem.image) == (count, image)
    assert problem.message == f"copy 0 is in {copied_dataset / TEST} record 2 too"


@pytest.mark.parametrize(
    ("column", "wrong"),
    [("patient_id", 1000), ("image_id", "a.png"), ("view", "LL"), ("age_years", 200)],
)
def test_a_record_that_its_table_tells_otherwise_of_is_named(copied_dataset, column, wrong):
    row = rows_of(copied_dataset, TEST)[0]
    rewrite_table(copied_dataset, column, wrong)

    *others, problem = check_dataset(str(copied_dataset), deep=True)
    assert len(others) == (column == "patient_id")  # which the name of the image contradicts too
    assert (Path(problem.path).name, problem.record, problem.image) == (TEST, 0, row["image_id"])
    told = row | {column: wrong}
    assert problem.message.startswith(
        f"records.parquet tells of {told_as(told)}, the record holds {told_as(row)}"
    )


def test_a_table_that_tells_of_other_places_is_not_read_by(copied_dataset):
    rewrite_table(copied_dataset, "split", "train")
    row = sum(counts["records"] for counts in list(manifest_json(copied_dataset)["splits"].values())[:2])

    message = f"split 'train' in row {row}, expected 'test'; {REBUILD}"
    for deep in (False, True):
        assert said(check_dataset(str(copied_dataset), deep)) == [("records.parquet", None, None, message)]


def rewrite_table(dataset: Path, column: str, wrong: object) -> None:
    """Changes the first test record's row of the table of records; its digest fits again."""
    path = dataset / "records.parquet"
    rows = pq.read_table(path).to_pylist()
    next(row for row in rows if row["shard"] == TEST)[column] = wrong
    pq.write_table(pa.Table.from_pylist(rows, pq.read_schema(path)), path)
    fit_digests(dataset)


def fit_digests(dataset: Path) -> None:
    """Makes the manifest tell of the files beside the shards as they are now."""

    def change(manifest):
        for entry in manifest["files"]:
            entry |= described((dataset / entry["file"]).read_bytes())

    rewrite_manifest(dataset, change)


def told_as(row: dict) -> tuple:
    names = ("split", "image_id", "patient_id", "view", "sex", "age_years", "copy", "augmentation")
    return (*(row[name] for name in names), tuple(row["label"]))


def rewrite_manifest(dataset: Path, change) -> None:
    manifest = manifest_json(dataset)
    change(manifest)
    write_manifest(dataset, manifest)


@pytest.mark.parametrize("deep", [False, True])
def test_wrong_counts_of_a_split_are_named(copied_dataset, deep):
    counts = manifest_json(copied_dataset)["splits"]["train"]

    def change(manifest):
        manifest["splits"]["train"] |= {
            "images": counts["images"] + 1,
            "copies": counts["copies"] - 1,
            "patients": counts["patients"] - 1,
        }
        manifest["table"]["images"] += 1

    rewrite_manifest(copied_dataset, change)

    told = {"images": 1, "copies": -1, "patients": -1}
    assert said(check_dataset(str(copied_dataset), deep)) == [
        (
            "records.parquet",
            None,
            None,
            f"{counts[kind]:,} {kind} in train, the manifest says {counts[kind] + by:,}",
        )
        for kind, by in told.items()
    ]


@pytest.mark.parametrize("deep", [False, True])
@pytest.mark.parametrize("kind", ["records", "images"])
@pytest.mark.parametrize("name", [FINDINGS[0], FINDINGS[13], NO_FINDING])
def test_a_wrong_count_of_a_class_is_named(copied_dataset, kind, name, deep):
    by = 1 if kind == "records" else -1
    count = manifest_json(copied_dataset)["classes"][name]["splits"]["train"][kind]

    def change(manifest):
        info = manifest["classes"][name]
        info[kind] += by
        info["splits"]["train"][kind] += by

    rewrite_manifest(copied_dataset, change)

    message = f"{count:,} {kind} of {name} in train, the manifest says {count + by:,}"
    assert said(check_dataset(str(copied_dataset), deep)) == [("records.parquet", None, None, message)]


@pytest.mark.parametrize("table", [True, False])
def test_counts_are_held_against_the_records_themselves_where_there_is_no_table(copied_dataset, table):
    """What the table says must fit first; the records are counted by themselves all the same."""
    count = len(rows_of(copied_dataset, TRAIN))

    second = len(rows_of(copied_dataset, SHARDS[1]))

    def change(manifest):
        one, other = manifest["splits"]["train"]["shards"][:2]
        one["records"] += 1
        other["records"] -= 1
        if not table:
            for entry in manifest["files"]:
                entry["bytes"] += entry["file"] == "records.parquet"

    rewrite_manifest(copied_dataset, change)

    (about_table, *others) = said(check_dataset(str(copied_dataset), deep=True))
    assert about_table[0] == "records.parquet"
    if table:
        message = f"shard {SHARDS[1]!r} in row {count}, expected {TRAIN!r}; {REBUILD}"
        assert about_table[3] == message
    assert others == [
        (TRAIN, None, None, f"{count:,} records, the manifest says {count + 1:,}"),
        (SHARDS[1], None, None, f"{second:,} records, the manifest says {second - 1:,}"),
    ]


@pytest.mark.parametrize("deep", [False, True])
def test_a_manifest_that_is_not_as_we_write_them_is_a_problem(copied_dataset, deep):
    rewrite_manifest(copied_dataset, lambda manifest: manifest["splits"]["train"].update(records=1))

    (problem,) = check_dataset(str(copied_dataset), deep)
    total = sum(len(rows_of(copied_dataset, shard)) for shard in SHARDS[:3])
    assert said([problem])[0] == (
        "manifest.json",
        None,
        None,
        f"not as cxr_records writes it: splits.train.records: found 1, expected the {total} of its shards; "
        "build the dataset again, or get it anew from where it was built",
    )


@pytest.mark.parametrize("deep", [False, True])
@pytest.mark.parametrize("name", [TRAIN, "records.parquet", "rejected.csv"])
def test_a_fifo_in_the_place_of_a_file_is_a_problem_and_not_waited_for(copied_dataset, name, deep):
    (copied_dataset / name).unlink()
    os.mkfifo(copied_dataset / name)

    assert said(check_dataset(str(copied_dataset), deep)) == [
        (name, None, None, f"a FIFO, expected a file; {REBUILD}")
    ]


@pytest.mark.parametrize("deep", [False, True])
@pytest.mark.parametrize("name", [TRAIN, "rejected.csv"])
def test_a_file_that_the_system_cannot_read_is_a_problem_beside_the_others(
    copied_dataset, monkeypatch, name, deep
):
    """As a disk says it that fails."""
    (copied_dataset / "features.json").write_text("{}")
    opened = storage.open_regular

    def failing(path):
        if path.endswith(name):
            raise OSError(errno.EIO, os.strerror(errno.EIO), path)
        return opened(path)

    monkeypatch.setattr(storage, "open_regular", failing)

    found = said(check_dataset(str(copied_dataset), deep))
    assert (name, None, None, "cannot be read (Input/output error)") in found
    assert {problem[0] for problem in found} == {name, "features.json"}


@pytest.mark.parametrize("deep", [False, True])
def test_a_link_to_itself_is_a_missing_file(copied_dataset, deep):
    (copied_dataset / TRAIN).unlink()
    (copied_dataset / TRAIN).symlink_to(TRAIN)

    ((name, _, _, message),) = said(check_dataset(str(copied_dataset), deep))
    assert (name, message[:19]) == (TRAIN, "the file is missing")


def test_a_shard_told_to_be_of_a_terabyte_takes_no_more_memory_than_it_has(copied_dataset):
    content = manifest_json(copied_dataset)
    shard = content["splits"]["train"]["shards"][-1]
    content["splits"]["train"]["bytes"] += (1 << 40) - shard["bytes"]
    size, shard["bytes"] = shard["bytes"], 1 << 40
    write_manifest(copied_dataset, content)

    ((name, _, _, message),) = said(check_dataset(str(copied_dataset)))
    assert (name, message) == (shard["file"], f"{size:,} bytes, the manifest says {1 << 40:,}; {REBUILD}")


def test_a_problem_is_one_line_whatever_names_it_holds():
    problem = Problem("a\nb", "not\ta file\u2028\x1b[2J", 3, "1.png\r\x9b2J")

    assert str(problem) == "a\\nb record 3 (1.png\\r\\x9b2J): not\\ta file\\u2028\\x1b[2J"


@pytest.mark.parametrize("deep", [False, True])
def test_files_behind_links_are_checked_as_themselves(copied_dataset, tmp_path, deep):
    """As git-annex, DVC and the caches of model hubs keep them."""
    for path in [path for path in copied_dataset.iterdir() if path.is_file()]:
        path.rename(tmp_path / path.name)
        path.symlink_to(tmp_path / path.name)

    assert check_dataset(str(copied_dataset), deep) == []


def test_other_labels_are_held_against_findings_too(build, tmp_path):
    out = tmp_path / "cxr14"
    build(out, task="multiclass")
    row = rows_of(out, TEST)[1]
    values = {}

    def change(shards):
        shards[TEST][1]["label"] = [5]
        shards[TEST][2]["findings"] = [1] * 14
        values.update(shards[TEST][1])

    tamper(out, change)

    problems = said(check_dataset(str(out), deep=True))
    assert row["label"] != 5
    assert problems[0] == (
        TEST, 1, row["image_id"], f"label [5], expected [{row['label']}] of {findings_of(values)}"
    )  # fmt: skip
    assert problems[1][1] == 2
    assert problems[1][3] == (
        f"takes no part in the task multiclass (more than one finding: {'|'.join(FINDINGS)})"
    )
    assert len(problems) == 2
