"""The table of records: believed once it is what the manifest tells of."""

import dataclasses
import hashlib
import os
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import manifest_json, write_manifest

from cxr_records.manifest import read_manifest
from cxr_records.record_table import RecordTableError, disagreements, label_rows, read_record_table

TEST = "cxr14-test.tfrecord-00000-of-00001"


def put_table(dataset: Path, table: pa.Table, **options) -> None:
    """Writes a table of records whose digest is that in the manifest."""
    path = dataset / "records.parquet"
    pq.write_table(table, path, **options)
    content = manifest_json(dataset)
    for entry in content["files"]:
        data = (dataset / entry["file"]).read_bytes()
        entry |= {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    write_manifest(dataset, content)


def changed(table: pa.Table, column: str, row: int, value: object) -> pa.Table:
    values = table[column].to_pylist()
    values[row] = value
    place = table.column_names.index(column)
    return table.set_column(place, table.field(column), pa.array(values, table.field(column).type))


def trouble(dataset: Path) -> str:
    with pytest.raises(RecordTableError) as error:
        read_record_table(str(dataset), read_manifest(str(dataset)))
    assert str(error.value) == (
        f"{dataset}: the table of records cannot be read ({error.value.trouble}); "
        "run cxr-records verify on the dataset"
    )
    assert "\n" not in str(error.value)
    return error.value.trouble


@pytest.fixture
def table(dataset) -> pa.Table:
    return pq.read_table(dataset / "records.parquet")


@pytest.mark.parametrize("task", ["multilabel", "multiclass", "binary"])
def test_what_a_build_wrote_is_read_as_it_is_and_agrees_with_its_manifest(build, tmp_path, task):
    manifest = build(tmp_path / "data", task=task).manifest

    table = read_record_table(str(tmp_path / "data"), manifest)
    assert table.equals(pq.read_table(tmp_path / "data" / "records.parquet"))
    assert list(disagreements(table, manifest)) == []
    assert label_rows(table, manifest.config.task).tolist() == table["label"].to_pylist()


def test_bytes_that_the_manifest_does_not_tell_of_are_not_parsed(copied_dataset):
    path = copied_dataset / "records.parquet"
    data = path.read_bytes()
    for wrong, expected in (
        (b"", f"0 bytes, the manifest says {len(data):,}"),
        (data[:-1], f"{len(data) - 1:,} bytes, the manifest says {len(data):,}"),
        (data * 3, f"{len(data) + 1:,} bytes or more, the manifest says {len(data):,}"),
        (data[:-1] + b"2", "its sha256 is not that of the manifest"),
    ):
        path.write_bytes(wrong)
        assert trouble(copied_dataset) == expected
    path.unlink()
    assert trouble(copied_dataset) == f"[Errno 2] No such file or directory: '{path}'"
    os.mkfifo(path)
    assert trouble(copied_dataset) == f"{path} is a FIFO, expected a file"


def test_a_file_that_is_no_parquet_is_said_to_be_none(copied_dataset, table):
    put_table(copied_dataset, table)
    content = manifest_json(copied_dataset)
    for entry in content["files"]:
        if entry["file"] == "records.parquet":
            entry |= {"bytes": 4, "sha256": hashlib.sha256(b"mine").hexdigest()}
    (copied_dataset / "records.parquet").write_bytes(b"mine")
    write_manifest(copied_dataset, content)

    assert "Parquet" in trouble(copied_dataset)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda t: t.slice(1), "203 rows, the manifest says 204 records"),
        (lambda t: pa.concat_tables([t, t]), "408 rows, the manifest says 204 records"),
        (
            lambda t: t.drop_columns("label"),
            "the columns split, shard, place, offset, image_offset, image_bytes, image_id, patient_id, view, "
            "sex, age_years, copy, augmentation; expected split, shard, place, offset, image_offset, "
            "image_bytes, image_id, patient_id, view, sex, age_years, copy, augmentation, label",
        ),
        (lambda t: t.append_column("mine", t["place"]), "the columns "),
        (lambda t: t.set_column(3, "offset", t["offset"].cast(pa.float64())), "column offset of double, "),
        (lambda t: t.set_column(6, "image_id", t["place"]), "column image_id of int64, expected string"),
        (lambda t: changed(t, "view", 3, None), "column view has 1 empty cells, expected none"),
        (
            lambda t: changed(t, "label", 3, [0] * 13),
            "2,855 values of label, expected 14 for each of 204 records",
        ),
        (
            lambda t: changed(changed(t, "label", 3, [0] * 13), "label", 4, [0] * 15),
            "a label of 13 values, expected 14",
        ),
        (lambda t: changed(t, "shard", 0, "../thesis"), "shard '../thesis' in row 0, expected 'cxr14-train."),
        (lambda t: changed(t, "split", 0, "test"), "split 'test' in row 0, expected 'train'"),
        (lambda t: changed(t, "place", 2, 1), "place 1 in row 2, expected 2"),
        (lambda t: changed(t, "offset", 0, 1), "offset 1 in row 0, expected a record that ends by "),
        (lambda t: changed(t, "offset", 1, -1), "offsets of -1 to "),
        (lambda t: changed(t, "offset", 1, 1 << 62), "offsets of 0 to 4,611,686,018,427,387,904, "),
        (lambda t: changed(t, "offset", 3, 0), "offset "),
        (lambda t: changed(t, "offset", 203, 1 << 30), "offset 1,073,741,824 in row 203, expected a record"),
        # 12 bytes of a header before the data and 4 behind it.
        (
            lambda t: changed(t, "image_offset", 0, 11),
            "image of 1,024 bytes at 11 in row 0, expected ",
        ),
        (
            lambda t: changed(t, "image_offset", 0, t["offset"][1].as_py() - 1024 - 3),
            "image of 1,024 bytes at ",
        ),
        (lambda t: changed(t, "image_offset", 1, t["image_offset"][2].as_py()), "image of 1,024 bytes at "),
        (
            lambda t: changed(t, "image_offset", 0, -(1 << 63)),
            "image of 1,024 bytes at -9,223,372,036",
        ),
        (
            lambda t: changed(t, "image_offset", 5, (1 << 63) - 1),
            "image of 1,024 bytes at 9,223,372,036",
        ),
        (
            lambda t: changed(t, "image_bytes", 5, (1 << 63) - 1),
            "image of 9,223,372,036,854,775,807 bytes ",
        ),
        (lambda t: changed(t, "image_bytes", 203, 0), "image of 0 bytes at "),
        (lambda t: changed(t, "image_bytes", 203, 1 << 20), "image of 1,048,576 bytes at "),
        (
            lambda t: changed(t, "image_bytes", 5, 1023),
            "image of 1,023 bytes in row 5, expected 1,024 of raw pixels",
        ),
        (
            lambda t: changed(t, "augmentation", 0, "x" * 1001),
            "column augmentation has text of more than 1,000 bytes",
        ),
        (
            lambda t: changed(t, "image_id", 3, "1.png\n\x1b[2J"),
            "column image_id has '1.png\\n\\x1b[2J', expected printable text",
        ),
        (
            lambda t: t.set_column(0, "split", pa.array([{"a": 1}] * len(t))),
            "column split of struct<a: int64>, expected string",
        ),
    ],
)
def test_a_table_of_another_form_is_refused_with_what_was_found(copied_dataset, table, change, expected):
    assert len(table) == 204
    put_table(copied_dataset, change(table))

    assert trouble(copied_dataset).startswith(expected)


@pytest.mark.parametrize("first", [True, False])
def test_an_image_may_fill_the_data_of_its_record_and_no_more(copied_dataset, table, first):
    """The bounds, to the byte."""
    begins, ends = table["offset"][3].as_py() + 12, table["offset"][4].as_py() - 4
    put_table(copied_dataset, changed(table, "image_offset", 3, begins if first else ends - 1024))
    read_record_table(str(copied_dataset), read_manifest(str(copied_dataset)))

    put_table(copied_dataset, changed(table, "image_offset", 3, begins - 1 if first else ends - 1023))
    assert trouble(copied_dataset) == (
        f"image of 1,024 bytes at {begins - 1 if first else ends - 1023:,} in row 3, expected one between "
        f"{begins:,} and {ends:,}"
    )


def test_a_table_of_an_older_dataset_is_said_to_be_one(copied_dataset, table):
    put_table(copied_dataset, table.drop_columns(["image_offset", "image_bytes"]))

    with pytest.raises(RecordTableError) as error:
        read_record_table(str(copied_dataset), read_manifest(str(copied_dataset)))
    assert str(error.value) == (
        f"{copied_dataset}: the table of records cannot be read (it is older than its columns image_offset "
        "and image_bytes); build the dataset again"
    )


def test_a_table_that_unpacks_to_far_more_than_its_records_need_is_not_unpacked(copied_dataset, table):
    texts = pa.array(["x" * (1 << 20)] + [str(row) * 20_000 for row in range(len(table) - 1)])
    bomb = table.set_column(table.column_names.index("view"), "view", texts)
    put_table(copied_dataset, bomb, compression="zstd", use_dictionary=False)

    assert (copied_dataset / "records.parquet").stat().st_size < 100_000
    assert trouble(copied_dataset).endswith(f"bytes unpacked, expected at most {(1 << 20) + 204 * 4096:,}")


def test_memory_is_taken_for_what_is_there_and_not_for_what_the_manifest_tells_of(copied_dataset):
    manifest = read_manifest(str(copied_dataset))
    size = (copied_dataset / "records.parquet").stat().st_size
    told = tuple(
        dataclasses.replace(file, bytes=1 << 60) if file.file == "records.parquet" else file
        for file in manifest.files
    )

    with pytest.raises(RecordTableError) as error:
        read_record_table(str(copied_dataset), dataclasses.replace(manifest, files=told))

    assert error.value.trouble == f"{size:,} bytes, the manifest says {1 << 60:,}"


def test_text_that_is_no_utf8_is_refused(copied_dataset, table):
    wrong = pa.Array.from_buffers(
        pa.string(),
        len(table),
        [None, pa.py_buffer(np.arange(len(table) + 1, dtype=np.int32)), pa.py_buffer(b"\xff" * len(table))],
    )
    put_table(copied_dataset, table.set_column(table.column_names.index("sex"), "sex", wrong))

    assert "UTF8" in trouble(copied_dataset)


@pytest.mark.parametrize(
    ("column", "value", "expected"),
    [
        ("copy", -1, ["copy -1, expected 0 or more", "33 images in test, the manifest says 34"]),
        ("copy", 1, ["33 images in test, the manifest says 34", "1 copies in test, the manifest says 0"]),
        ("label", [2] + [0] * 13, ["label 2, expected 0 to 1"]),
        ("label", [-(1 << 63)] + [0] * 13, ["label -9223372036854775808, expected 0 to 1"]),
    ],
)
def test_what_the_table_tells_otherwise_than_the_manifest_is_told(dataset, table, column, value, expected):
    wrong = changed(table, column, len(table) - 1, value)

    told = list(disagreements(wrong, read_manifest(str(dataset))))
    assert told[: len(expected)] == expected


def test_every_label_that_is_changed_changes_a_count(dataset, table):
    manifest, rng = read_manifest(str(dataset)), np.random.default_rng(0)
    for row in rng.choice(len(table), 20, replace=False).tolist():
        label = list(table["label"][row].as_py())
        place = int(rng.integers(14))
        label[place] = 1 - label[place]
        told = list(disagreements(changed(table, "label", row, label), manifest))
        assert any(f"of {manifest.class_names[place]} in {table['split'][row]}" in text for text in told)


def test_a_table_written_by_others_with_large_strings_is_the_same_table(copied_dataset, table):
    large = table.cast(
        pa.schema(
            [pa.field(f.name, pa.large_string() if f.type == pa.string() else f.type) for f in table.schema]
        )
    )
    put_table(copied_dataset, large)

    assert read_record_table(str(copied_dataset), read_manifest(str(copied_dataset))).equals(table)


def test_a_table_behind_a_link_is_read(copied_dataset, tmp_path, table):
    path = copied_dataset / "records.parquet"
    shutil.move(path, tmp_path / "annexed")
    path.symlink_to(tmp_path / "annexed")

    assert read_record_table(str(copied_dataset), read_manifest(str(copied_dataset))).equals(table)
