"""What a finished dataset says of itself: manifest, table of records, rejected images, TFDS metadata.

The manifest is written last, so its presence says that everything else is whole. It holds a digest of
every other file, and of itself.
"""

import csv
import hashlib
import io
import json
import math
import os
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from cxr_records import storage
from cxr_records.errors import CxrError, UsageError
from cxr_records.examples import Feature, decode_example, record_features
from cxr_records.plan import BUILD_FOLDER, SHARD_NAME, Plan, ShardSpec
from cxr_records.shards import ShardInfo, augmentation_text
from cxr_records.splits import TRAIN
from cxr_records.tfrecord import read_records

FORMAT = "cxr_records dataset"
FORMAT_VERSION = 1
MANIFEST_FILE = "manifest.json"
RECORDS_FILE = "records.parquet"
REJECTED_FILE = "rejected.csv"
LABELS_FILE = "label.labels.txt"  # where TFDS looks for class names; multilabel datasets have none
LOCK_FILE = "lock"
TFDS_NAME, TFDS_VERSION = "cxr14", "1.0.0"


class ManifestError(CxrError):
    """The manifest is absent, damaged, or of another version; the message says which."""


class DamagedManifestError(ManifestError):
    """The manifest is there, and not byte for byte what was written."""


def read_manifest(dataset: str) -> dict:
    """Reads a dataset's manifest and checks it against its own digests.

    Raises:
        ManifestError: there is none, or any byte of it is not as it was written.
    """
    path = storage.join(dataset, MANIFEST_FILE)
    if not storage.exists(path):
        if os.path.isfile(dataset):
            raise ManifestError(f"{dataset} is a file, expected the folder of a dataset")
        if not storage.exists(dataset):
            raise ManifestError(f"{dataset}: no such folder")
        if BUILD_FOLDER in storage.list_names(dataset):
            raise ManifestError(f"{dataset}: the build is not finished; run the same build command again")
        raise ManifestError(f"{dataset}: no {MANIFEST_FILE}, so no dataset of ours; build one there first")
    data = storage.read_bytes(path)
    damaged = f"{path} is damaged: its bytes are not those that were written; run the build command again"
    try:
        manifest = json.loads(data)
        content = {key: value for key, value in manifest.items() if key != "checksum"}
        known = {"format": FORMAT, "format_version": FORMAT_VERSION}
        if manifest["checksum"] != _checksum(content) or data != manifest_bytes(manifest):
            raise DamagedManifestError(damaged)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise DamagedManifestError(damaged) from None
    if any(manifest.get(key) != value for key, value in known.items()):
        found = f"{manifest.get('format')!r} version {manifest.get('format_version')!r}"
        raise ManifestError(f"{path}: {found}, expected {FORMAT!r} version {FORMAT_VERSION}")
    return manifest


def read_records_table(dataset: str) -> pa.Table:
    """Reads the table of records: one row per record, in the order of the shards."""
    return pq.read_table(io.BytesIO(storage.read_bytes(storage.join(dataset, RECORDS_FILE))))


def read_examples(dataset: str, rows: pa.Table) -> list[dict]:
    """Reads the records of rows of the table of records, each by itself; as `decode_example` gives them."""
    found = []
    for row in rows.select(["shard", "offset"]).to_pylist():
        with storage.open_read(storage.join(dataset, row["shard"])) as file:
            file.seek(row["offset"])
            found.append(decode_example(next(read_records(file))[1]))
    return found


def manifest_bytes(manifest: Mapping) -> bytes:
    """Returns the one way in which a manifest is written."""
    return (json.dumps(manifest, indent=1, ensure_ascii=False) + "\n").encode()


def check_folder(dataset: str) -> None:
    """Refuses a folder that holds anything but a dataset of ours, finished or not.

    Raises:
        UsageError: with the first strange name found.
    """
    if os.path.isfile(dataset):
        raise UsageError(f"--out {dataset} is a file, expected a folder; name another")
    names = storage.list_names(dataset)
    if not names:
        return
    if BUILD_FOLDER in names:
        # Other tools keep a .build too, and what is in ours is cleared.
        inside = storage.list_names(storage.join(dataset, BUILD_FOLDER))
        ours = ("plan-", "cxr14-", LOCK_FILE, REJECTED_FILE)
        if all(name.removeprefix(".").startswith(ours) for name in inside):  # a dot: temporary
            return
        names = [BUILD_FOLDER]
    if MANIFEST_FILE in names:
        try:
            read_manifest(dataset)
            return
        except ManifestError:
            pass
    raise UsageError(
        f"--out {dataset} is not empty and no dataset of ours (it holds {names[0]}); name another"
    )


def finish_dataset(plan: Plan, specs: Sequence[ShardSpec], infos: Sequence[ShardInfo]) -> dict:
    """Writes everything beside the shards, the manifest last, and returns the manifest.

    Nothing is written where the dataset is already as it must be.

    Args:
        plan: the plan.
        specs: of its shards, in order.
        infos: of the finished shards, in the same order.
    """
    dataset = specs[0].dataset
    features = record_features(plan.config.task.label_shape)
    files = {
        RECORDS_FILE: _records_parquet(plan, specs, infos),
        REJECTED_FILE: rejected_csv(plan.left_out),
        "features.json": _tfds_features(plan, features),
        "dataset_info.json": _tfds_info(plan, infos),
    }
    if plan.config.task.kind != "multilabel":
        files[LABELS_FILE] = "".join(f"{name}\n" for name in plan.config.task.class_names).encode()
    manifest = _manifest(plan, infos, files)
    written = manifest_bytes(manifest)
    path = storage.join(dataset, MANIFEST_FILE)
    if storage.exists(path) and storage.read_bytes(path) == written and _all_there(dataset, files):
        return manifest
    storage.remove(path)
    if LABELS_FILE not in files:
        storage.remove(storage.join(dataset, LABELS_FILE))  # of an earlier task
    for name, data in files.items():
        storage.write_bytes(storage.join(dataset, name), data)
    storage.write_bytes(path, written)
    return manifest


def clear_stale(dataset: str, specs: Sequence[ShardSpec], will_change: bool) -> None:
    """Removes what an earlier or killed build left and this plan does not hold.

    Args:
        dataset: its folder, with the lock held.
        specs: the shards of the plan.
        will_change: whether any shard is to be written; then the manifest goes first, so that no reader
            takes a half-changed dataset for a finished one.
    """
    build = storage.join(dataset, BUILD_FOLDER)
    planned = {spec.file for spec in specs}
    stale = [
        name for name in storage.list_names(dataset) if SHARD_NAME.fullmatch(name) and name not in planned
    ]
    if will_change or stale:
        storage.remove(storage.join(dataset, MANIFEST_FILE))
    for name in stale:
        storage.remove(storage.join(dataset, name))
    kept = {f"{name}.json" for name in planned} | {LOCK_FILE, specs[0].plan.rsplit("/", 1)[-1]}
    for name in storage.list_names(build):
        if name not in kept:
            storage.remove(storage.join(build, name))
    storage.remove_temporary(dataset)


def rejected_csv(left_out: pd.DataFrame) -> bytes:
    """Returns the table of images that are in the NIH table and not in the dataset, with the reason."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["image_id", "split", "reason", "detail"])
    columns = (left_out[name].tolist() for name in ("image_id", "split", "reason", "detail"))
    writer.writerows(zip(*columns, strict=True))
    return out.getvalue().encode()


def _manifest(plan: Plan, infos: Sequence[ShardInfo], files: Mapping[str, bytes]) -> dict:
    mean, std = _pixel_statistics(plan)
    balance = plan.balance.to_json()
    splits = plan.split_counts()
    for split, counts in splits.items():
        shards = [
            {"file": shard.file, "records": info.records, "bytes": info.bytes, "sha256": info.sha256}
            for shard, info in zip(plan.shards, infos, strict=True)
            if shard.split == split
        ]
        counts["bytes"] = sum(shard["bytes"] for shard in shards)
        counts["shards"] = shards
    held = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "config": plan.config.to_json(),
        "class_names": list(plan.config.task.class_names),
        "table": {
            "dialect": plan.metadata.dialect,
            "images": len(plan.metadata),
            "sha256": plan.metadata.digest,
        },
        "split_origin": {
            "text": plan.splits.origin,
            "official": plan.splits.official,
            "list_sha256": plan.splits.list_digests,
        },
        "pixels": {"mean": mean, "std": std},
        "splits": splits,
        "classes": plan.class_counts(),
        "mean_ir": balance["mean_ir"],
        "max_ir": balance["max_ir"],
        "left_out": plan.left_out_counts(),
    }
    described = [
        {"file": name, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        for name, data in files.items()
    ]
    # The id is of what the dataset holds. The files beside the shards only describe it, and a Parquet file
    # also tells which library wrote it: they are under the checksum alone.
    content = {**held, "id": _checksum(held)[:32], "files": described}
    return {**content, "checksum": _checksum(content)}


def _checksum(content: Mapping) -> str:
    return hashlib.sha256(manifest_bytes(content)).hexdigest()


def _pixel_statistics(plan: Plan) -> tuple[float | None, float | None]:
    """Mean and standard deviation of the original training images' pixels, in grey levels 0 to 255."""
    train = plan.records[(plan.records["split"] == TRAIN) & (plan.records["copy"] == 0)]
    if not len(train):
        return None, None
    image_ids = plan.metadata.table["image_id"].to_numpy()[train["row"]]
    sums = plan.images.loc[image_ids]
    # Whole numbers, summed as Python's: exact, whatever the order.
    total, squares = (sum(map(int, sums[name])) for name in ("pixel_sum", "pixel_sum_squares"))
    count = len(train) * plan.config.image_format.size**2
    variance = (squares * count - total * total) / (count * count)
    return round(total / count, 6), round(math.sqrt(variance), 6)


def _records_parquet(plan: Plan, specs: Sequence[ShardSpec], infos: Sequence[ShardInfo]) -> bytes:
    rows = plan.records["row"].to_numpy()
    table = plan.metadata.table
    counts = [info.records for info in infos]
    image_ids = table["image_id"].to_numpy()[rows].tolist()
    copies = plan.records["copy"].tolist()
    texts = [
        augmentation_text(specs[0], image_id, copy) for image_id, copy in zip(image_ids, copies, strict=True)
    ]
    out = io.BytesIO()
    columns = {
        "split": pa.array(plan.records["split"].tolist(), pa.string()),
        "shard": pa.array(np.repeat([spec.file for spec in specs], counts).tolist(), pa.string()),
        "place": pa.array(np.concatenate([np.arange(count) for count in counts])),
        "offset": pa.array(np.concatenate([np.array(info.offsets, np.int64) for info in infos])),
        "image_id": pa.array(image_ids, pa.string()),
        "patient_id": pa.array(table["patient_id"].to_numpy()[rows]),
        "view": pa.array(table["view"].to_numpy()[rows].tolist(), pa.string()),
        "sex": pa.array(table["sex"].to_numpy()[rows].tolist(), pa.string()),
        "age_years": pa.array(table["age_years"].to_numpy()[rows]),
        "copy": pa.array(copies, pa.int64()),
        "augmentation": pa.array(texts, pa.string()),
        "label": pa.array(plan.selection.labels[rows].tolist()),
    }
    pq.write_table(pa.table(columns), out, row_group_size=1 << 17)
    return out.getvalue()


def _tfds_features(plan: Plan, features: Sequence[Feature]) -> bytes:
    """features.json as tfds.features.FeaturesDict.save_config writes it (TensorFlow Datasets 4.9)."""
    module = "tensorflow_datasets.core.features"
    size, codec = plan.config.image_format.size, plan.config.image_format.codec
    side = {"dimensions": [str(size), str(size), "1"]}

    def describe(feature: Feature) -> dict:
        if feature.name == "image" and codec != "raw":
            image = {"dtype": "uint8", "encodingFormat": codec, "shape": side}
            return {"image": image, "pythonClassName": f"{module}.image_feature.Image"}
        if feature.name == "image":
            tensor = {"dtype": "uint8", "encoding": "bytes", "shape": side}
            return {"pythonClassName": f"{module}.tensor_feature.Tensor", "tensor": tensor}
        if feature.name == "label" and not feature.shape:
            classes = {"numClasses": str(len(plan.config.task.class_names))}
            return {"classLabel": classes, "pythonClassName": f"{module}.class_label_feature.ClassLabel"}
        if feature.kind == "text":
            return {"pythonClassName": f"{module}.text_feature.Text", "text": {}}
        if not feature.shape:
            tensor = {"dtype": "int64", "encoding": "none", "shape": {}}
            return {"pythonClassName": f"{module}.scalar.Scalar", "tensor": tensor}
        shape = {"dimensions": [str(length) for length in feature.shape]}
        tensor = {"dtype": "int64", "encoding": "none", "shape": shape}
        return {"pythonClassName": f"{module}.tensor_feature.Tensor", "tensor": tensor}

    described = {feature.name: describe(feature) for feature in sorted(features, key=lambda f: f.name)}
    return _json(
        {
            "featuresDict": {"features": described},
            "pythonClassName": f"{module}.features_dict.FeaturesDict",
        }
    )


def _tfds_info(plan: Plan, infos: Sequence[ShardInfo]) -> bytes:
    """dataset_info.json (tensorflow_datasets/core/proto/dataset_info.proto; 64-bit numbers are strings)."""
    splits = []
    for split in plan.split_names:
        here = [info for shard, info in zip(plan.shards, infos, strict=True) if shard.split == split]
        splits.append(
            {
                "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
                "name": split,
                "numBytes": str(sum(info.bytes for info in here)),
                "shardLengths": [str(info.records) for info in here],
            }
        )
    task = plan.config.task.name
    return _json(
        {
            "citation": "Wang X, Peng Y, Lu L, Lu Z, Bagheri M, Summers RM. ChestX-ray8. IEEE CVPR 2017.",
            "description": f"NIH ChestX-ray14 for the task {task}; see {MANIFEST_FILE}.",
            "fileFormat": "tfrecord",
            "name": TFDS_NAME,
            "splits": splits,
            "version": TFDS_VERSION,
        }
    )


def _json(content: dict) -> bytes:
    return (json.dumps(content, indent=4, sort_keys=True) + "\n").encode()


def _all_there(dataset: str, files: Mapping[str, bytes]) -> bool:
    paths = {name: storage.join(dataset, name) for name in files}
    return all(
        storage.exists(path) and storage.read_bytes(path) == files[name] for name, path in paths.items()
    )
