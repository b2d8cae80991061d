"""Others read what we write: TensorFlow, and TensorFlow Datasets, with no code of ours."""

import json
import os
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from conftest import manifest_json
from PIL import Image

from cxr_records import augment
from cxr_records.findings import FINDINGS
from cxr_records.images import ImageFormat
from cxr_records.metadata import Metadata, read_metadata
from cxr_records.tfrecord import unframe
from cxr_records.verification import check_dataset

SIZE = 32
CODECS = ["raw", "png", "jpeg"]
TASKS = ["binary", "multiclass", "multilabel"]


@pytest.fixture(scope="session")
def tf():
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import tensorflow

    return tensorflow


@pytest.fixture(scope="session")
def tfds(tf):
    import tensorflow_datasets

    return tensorflow_datasets


@pytest.fixture(scope="session")
def datasets(build, tmp_path_factory):
    """datasets(codec, task): the folder of such a dataset, built once."""
    folder, there = tmp_path_factory.mktemp("formats"), {}

    def dataset(codec: str, task: str) -> Path:
        if (codec, task) not in there:
            there[codec, task] = folder / f"{codec}-{task}"
            build(there[codec, task], task=task, codec=codec)
        return there[codec, task]

    return dataset


@pytest.fixture(scope="session")
def table(lookalike) -> Metadata:
    return read_metadata(str(lookalike.metadata))


@pytest.fixture(scope="session")
def image_of(lookalike):
    """image_of(row of the table of records, codec): its bytes, made anew from the source."""
    paths = {path.name: path for path in lookalike.images.rglob("*.png")}

    def image(row: dict, codec: str) -> bytes:
        image_format = ImageFormat(SIZE, codec)
        with Image.open(paths[row["image_id"]]) as source:
            small = source.convert("L").resize((SIZE, SIZE), Image.Resampling.BILINEAR)
        original = image_format.encode(np.asarray(small))
        if row["copy"] == 0:
            return original
        pixels = image_format.decode(original)
        return image_format.encode(augment.apply(pixels, json.loads(row["augmentation"])))

    return image


def rows_of(dataset: Path, split: str | None = None) -> list[dict]:
    rows = pq.read_table(dataset / "records.parquet").to_pylist()
    return [row for row in rows if split in (None, row["split"])]


def schema(tf, task: str) -> dict:
    """What anyone would write down for tf.io.parse_example, from the README."""
    one, fourteen = tf.io.FixedLenFeature([], tf.int64), tf.io.FixedLenFeature([14], tf.int64)
    text = tf.io.FixedLenFeature([], tf.string)
    return {
        "image": text,
        "label": fourteen if task == "multilabel" else one,
        "findings": fourteen,
        "image_id": text,
        "patient_id": one,
        "view": text,
        "sex": text,
        "age_years": one,
        "copy": one,
        "augmentation": text,
    }


def decode(tf, codec: str, data: bytes, dct_method: str = "") -> np.ndarray:
    if codec == "raw":
        return tf.reshape(tf.io.decode_raw(data, tf.uint8), [SIZE, SIZE]).numpy()
    decoded = tf.io.decode_png(data) if codec == "png" else tf.io.decode_jpeg(data, dct_method=dct_method)
    return decoded.numpy()[:, :, 0]


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("task", TASKS)
def test_tensorflow_reads_every_record_in_the_order_of_the_table_of_records(
    tf, datasets, table, image_of, codec, task
):
    dataset = datasets(codec, task)
    rows = rows_of(dataset)
    files = [
        str(dataset / shard["file"])
        for split in manifest_json(dataset)["splits"].values()
        for shard in split["shards"]
    ]
    place = {image_id: i for i, image_id in enumerate(table.table["image_id"])}

    batch = next(iter(tf.data.TFRecordDataset(files).batch(1000)))
    found = {name: value.numpy() for name, value in tf.io.parse_example(batch, schema(tf, task)).items()}

    assert [image_id.decode() for image_id in found["image_id"]] == [row["image_id"] for row in rows]
    assert [text.decode() for text in found["augmentation"]] == [row["augmentation"] for row in rows]
    for name in ("label", "copy", "patient_id"):
        assert found[name].tolist() == [row[name] for row in rows]
    at = [place[row["image_id"]] for row in rows]
    assert found["findings"].tolist() == table.findings[at].tolist()
    assert found["age_years"].tolist() == table.table["age_years"].iloc[at].tolist()
    for name in ("view", "sex"):
        assert [text.decode() for text in found[name]] == table.table[name].iloc[at].tolist()
    for data, row in zip(found["image"], rows, strict=True):
        assert data == image_of(row, codec)
        # TensorFlow's default for JPEG is faster, and off by up to 8 grey levels.
        pixels = decode(tf, codec, data, "INTEGER_ACCURATE")
        np.testing.assert_array_equal(pixels, ImageFormat(SIZE, codec).decode(data))


@pytest.mark.parametrize("task", TASKS)
def test_labels_are_what_the_task_says_of_the_findings(datasets, table, task):
    findings = dict(zip(table.table["image_id"], table.findings.tolist(), strict=True))

    for row in rows_of(datasets("raw", task)):
        present = findings[row["image_id"]]
        if task == "multilabel":
            assert row["label"] == present
        elif task == "binary":
            assert row["label"] == any(present)
        else:
            assert [int(place == row["label"]) for place in range(14)] == present


def test_offsets_in_the_table_of_records_lead_to_the_records(tf, datasets):
    dataset = datasets("jpeg", "multilabel")
    rows = rows_of(dataset)

    for row, after in zip(rows, [*rows[1:], None], strict=True):
        data = (dataset / row["shard"]).read_bytes()
        end = after["offset"] if after and after["shard"] == row["shard"] else len(data)
        example = tf.train.Example.FromString(unframe(data[row["offset"] : end]))
        assert example.features.feature["image_id"].bytes_list.value[0].decode() == row["image_id"]
        assert example.features.feature["copy"].int64_list.value[0] == row["copy"]


def test_records_are_the_bytes_that_tensorflow_would_write(tf, datasets, tmp_path):
    dataset = datasets("raw", "multilabel")
    shard = next(dataset.glob("cxr14-validation*"))

    with tf.io.TFRecordWriter(str(tmp_path / "again")) as writer:
        for data in tf.data.TFRecordDataset(str(shard)).as_numpy_iterator():
            writer.write(data)
            example = tf.train.Example.FromString(data)
            again = example.SerializeToString(deterministic=True)
            assert (len(again), sorted(again)) == (len(data), sorted(data))  # in the order of the names here

    assert (tmp_path / "again").read_bytes() == shard.read_bytes()


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("task", TASKS)
def test_tfds_reads_a_dataset_with_no_code_of_ours(tf, tfds, datasets, image_of, codec, task):
    dataset = datasets(codec, task)

    builder = tfds.builder_from_directory(str(dataset))

    assert builder.info.name == "cxr14"
    sizes = {name: split.num_examples for name, split in builder.info.splits.items()}
    assert sizes == {name: len(rows_of(dataset, name)) for name in ("train", "validation", "test")}
    if task != "multilabel":
        classes = list(FINDINGS) if task == "multiclass" else ["No Finding", "Any Finding"]
        assert builder.info.features["label"].names == classes
    config = tfds.ReadConfig(interleave_cycle_length=1)  # one shard after the other
    for split in sizes:
        found = list(builder.as_dataset(split=split, read_config=config).as_numpy_iterator())
        rows = rows_of(dataset, split)
        assert [record["image_id"].decode() for record in found] == [row["image_id"] for row in rows]
        assert [record["label"].tolist() for record in found] == [row["label"] for row in rows]
        assert [record["copy"] for record in found] == [row["copy"] for row in rows]
        for record, row in zip(found, rows, strict=True):
            expected = decode(tf, codec, image_of(row, codec))
            np.testing.assert_array_equal(record["image"], expected[:, :, np.newaxis])


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("task", TASKS)
def test_tfds_metadata_is_what_tfds_itself_writes(tf, tfds, datasets, tmp_path, codec, task):
    dataset, features = datasets(codec, task), tfds.features
    shape = (SIZE, SIZE, 1)
    if codec == "raw":
        image = features.Tensor(shape=shape, dtype=np.uint8, encoding=features.Encoding.BYTES)
    else:
        image = features.Image(shape=shape, dtype=np.uint8, encoding_format=codec)
    vector = features.Tensor(shape=(14,), dtype=np.int64)
    classes = {"binary": ["No Finding", "Any Finding"], "multiclass": list(FINDINGS)}
    label = vector if task == "multilabel" else features.ClassLabel(names=classes[task])
    number = features.Scalar(dtype=np.int64)
    described = features.FeaturesDict(
        {
            "image": image,
            "label": label,
            "findings": vector,
            "image_id": features.Text(),
            "patient_id": number,
            "view": features.Text(),
            "sex": features.Text(),
            "age_years": number,
            "copy": number,
            "augmentation": features.Text(),
        }
    )

    described.save_config(str(tmp_path))
    builder = tfds.builder_from_directory(str(dataset))
    (tmp_path / "info").mkdir()
    builder.info.write_to_directory(str(tmp_path / "info"))

    ours = json.loads((dataset / "features.json").read_bytes())
    assert ours == json.loads((tmp_path / "features.json").read_bytes())
    names = "label.labels.txt"
    assert (dataset / names).exists() == (tmp_path / names).exists() == (task != "multilabel")
    if task != "multilabel":
        assert (dataset / names).read_bytes().strip() == (tmp_path / names).read_bytes().strip()
    theirs = json.loads((tmp_path / "info" / "dataset_info.json").read_bytes())
    of_the_reader = {
        "moduleName": theirs.pop("moduleName"),
        "redistributionInfo": theirs.pop("redistributionInfo"),
    }
    assert of_the_reader == {
        "moduleName": "tensorflow_datasets.core.read_only_builder",
        "redistributionInfo": {},
    }
    assert json.loads((dataset / "dataset_info.json").read_bytes()) == theirs


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("task", TASKS)
def test_every_codec_and_task_passes_the_deep_check(datasets, codec, task):
    assert check_dataset(str(datasets(codec, task)), deep=True) == []
