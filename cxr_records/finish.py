"""The end of a build: everything beside the shards, the manifest last; and what an earlier build left."""

import csv
import hashlib
import io
import itertools
import math
import os
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from cxr_records import storage, tfds
from cxr_records.duplicates import Picture, find_duplicates
from cxr_records.errors import UsageError
from cxr_records.layout import (
    BUILD_FOLDER,
    DATASET_NAME,
    FEATURES_FILE,
    INFO_FILE,
    LABELS_FILE,
    LEFT_OUT_FILE,
    LIST_FILES,
    LOCK_FILE,
    MANIFEST_FILE,
    RECORDS_FILE,
    is_shard,
)
from cxr_records.manifest import (
    BeforeAfter,
    ClassCount,
    ClassInfo,
    FileEntry,
    Manifest,
    ManifestError,
    PixelStatistics,
    ShardEntry,
    SplitInfo,
    SplitOrigin,
    TableInfo,
    manifest_bytes,
    read_manifest,
)
from cxr_records.names import is_litter
from cxr_records.planning import Plan, ShardSpec
from cxr_records.shards import ShardInfo, augmentation_text
from cxr_records.splits import SPLITS, TRAIN, Splits


def check_folder(dataset: str) -> None:
    """Refuses a folder that holds anything but a dataset of ours, finished or not.

    Raises:
        UsageError: with the first strange name found.
    """
    if os.path.isfile(dataset):
        raise UsageError(f"`out={dataset}` is a file, expected a folder; name another")
    names = storage.list_names(dataset)
    if BUILD_FOLDER in names:
        # Other tools keep a .build too.
        inside = storage.list_names(storage.join(dataset, BUILD_FOLDER))
        if all(_of_a_build(name) or is_litter(name) for name in inside):
            return
        names = [BUILD_FOLDER]
    else:
        names = [name for name in names if not is_litter(name)]
    if not names:
        return
    if MANIFEST_FILE in names:
        try:
            read_manifest(dataset)
            return
        except ManifestError:
            pass
    raise UsageError(
        f"`out={dataset}` is not empty and no dataset of ours (it holds {names[0]}); name another"
    )


def finish_dataset(plan: Plan, specs: Sequence[ShardSpec], infos: Sequence[ShardInfo]) -> Manifest:
    """Writes everything beside the shards, the manifest last, and returns the manifest.

    Nothing is written where the dataset is already as it must be.

    Args:
        plan: the plan.
        specs: of its shards, in order.
        infos: of the finished shards, in the same order.
    """
    dataset, config = specs[0].dataset, plan.config
    splits = _splits(plan, infos)
    files = {
        RECORDS_FILE: _records_parquet(plan, specs, infos),
        LEFT_OUT_FILE: left_out_csv(plan.left_out),
        FEATURES_FILE: tfds.features_json(config),
        INFO_FILE: tfds.info_json(config.task.name, splits),
        **split_lists(plan.metadata.table["image_id"].to_numpy(), plan.splits),
    }
    if config.task.kind != "multilabel":
        files[LABELS_FILE] = "".join(f"{name}\n" for name in config.task.class_names).encode()
    manifest = _manifest(plan, splits, files)
    written = manifest_bytes(manifest.to_json())
    path = storage.join(dataset, MANIFEST_FILE)
    if storage.exists(path) and storage.read_bytes(path) == written and _all_there(dataset, files):
        return manifest
    storage.remove(path)
    for name in (LABELS_FILE, *LIST_FILES):
        if name not in files:
            storage.remove(storage.join(dataset, name))  # of an earlier task or split
    for name, data in files.items():
        storage.write_bytes(storage.join(dataset, name), data)
    storage.write_bytes(path, written)
    return manifest


def clear_stale(dataset: str, specs: Sequence[ShardSpec], pending: Sequence[ShardSpec]) -> None:
    """Removes what an earlier or killed build left and this plan does not hold.

    Args:
        dataset: its folder, with the lock held.
        specs: the shards of the plan.
        pending: those of them that are to be written. If there are any, the manifest goes first, so that no
            reader takes a half-changed dataset for a finished one.
    """
    build = storage.join(dataset, BUILD_FOLDER)
    planned = {spec.file for spec in specs}
    stale = [name for name in storage.list_names(dataset) if is_shard(name) and name not in planned]
    if pending or stale:
        storage.remove(storage.join(dataset, MANIFEST_FILE))
    for name in stale:
        storage.remove(storage.join(dataset, name))
    kept = {f"{name}.json" for name in planned - {spec.file for spec in pending}} | {
        LOCK_FILE,
        specs[0].plan.path.rsplit("/", 1)[-1],
    }
    for name in storage.list_names(build):
        if name not in kept and _of_a_build(name) and not name.startswith(f"{LOCK_FILE}-"):
            storage.remove(storage.join(build, name))
    storage.remove_temporary(dataset)


def _of_a_build(name: str) -> bool:
    """Tells whether a file in the build folder is a plan, a sidecar, a lock, or half of one (with a dot)."""
    return name.removeprefix(".").startswith(("plan-", f"{DATASET_NAME}-", LOCK_FILE, LEFT_OUT_FILE))


def left_out_csv(left_out: pd.DataFrame) -> bytes:
    """Returns the table of images that are in the NIH table and not in the dataset, with the reason."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["image_id", "split", "reason", "detail"])
    columns = (left_out[name].tolist() for name in ("image_id", "split", "reason", "detail"))
    writer.writerows(zip(*columns, strict=True))
    return out.getvalue().encode()


def split_lists(image_ids: np.ndarray, splits: Splits) -> dict[str, bytes]:
    """Returns {file: the names of a split's images, one on each line, sorted}, without empty splits.

    All images of the table that are in the split are named, those too that this dataset leaves out: another
    task has a use for them, and another build may find them.

    Args:
        image_ids: object [num_images] of str, of the table.
        splits: of the same images.
    """
    lists = {
        file: "".join(f"{name}\n" for name in sorted(image_ids[splits.of_image == split]))
        for file, split in zip(LIST_FILES, SPLITS, strict=True)
    }
    return {file: names.encode() for file, names in lists.items() if names}


def _splits(plan: Plan, infos: Sequence[ShardInfo]) -> dict[str, SplitInfo]:
    splits = {}
    for name, counts in plan.split_counts().items():
        shards = tuple(
            ShardEntry(shard.file, info.records, info.bytes, info.sha256)
            for shard, info in zip(plan.shards, infos, strict=True)
            if shard.split == name
        )
        splits[name] = SplitInfo(
            records=counts["records"],
            images=counts["images"],
            copies=counts["copies"],
            patients=counts["patients"],
            shards=shards,
            bytes=sum(shard.bytes for shard in shards),
        )
    return splits


def _manifest(plan: Plan, splits: Mapping[str, SplitInfo], files: Mapping[str, bytes]) -> Manifest:
    balance = plan.balance.to_json()
    return Manifest(
        config=plan.config,
        class_names=plan.config.task.class_names,
        table=TableInfo(plan.metadata.dialect, len(plan.metadata), plan.metadata.digest),
        split_origin=SplitOrigin(plan.splits.origin, plan.splits.official, plan.splits.list_digests),
        pixels=_pixel_statistics(plan),
        splits=splits,
        classes={
            name: ClassInfo(
                images=count["images"],
                records=count["records"],
                splits={split: ClassCount(**counted) for split, counted in count["splits"].items()},
                irlbl=BeforeAfter(**count["irlbl"]) if "irlbl" in count else None,
                dragged=count.get("dragged"),
            )
            for name, count in plan.class_counts().items()
        },
        mean_ir=BeforeAfter(**balance["mean_ir"]),
        max_ir=BeforeAfter(**balance["max_ir"]),
        left_out=plan.left_out_counts(),
        findings=plan.config.task.findings,
        files=tuple(
            FileEntry(name, len(data), hashlib.sha256(data).hexdigest()) for name, data in files.items()
        ),
        duplicates=find_duplicates(_pictures(plan)),
        drawn=plan.metadata.drawn,
    )


def _pictures(plan: Plan) -> Iterator[Picture]:
    """The original images of a plan."""
    records = plan.records[plan.records["copy"] == 0]
    table = plan.metadata.table.iloc[records["row"].to_numpy()]
    stored = plan.stored_images.loc[table["image_id"]]
    columns = (
        *(table["image_id"], records["split"], table["patient_id"]),
        *(stored["sha256"], stored["pixel_sha256"]),
    )
    return itertools.starmap(Picture, zip(*(column.tolist() for column in columns), strict=True))


def _pixel_statistics(plan: Plan) -> PixelStatistics:
    """Mean and standard deviation of the original training images' pixels, in grey levels 0 to 255."""
    train = plan.records[(plan.records["split"] == TRAIN) & (plan.records["copy"] == 0)]
    if not len(train):
        return PixelStatistics(None, None)
    image_ids = plan.metadata.table["image_id"].to_numpy()[train["row"]]
    sums = plan.stored_images.loc[image_ids]
    # Whole numbers, summed as Python's: exact, whatever the order.
    total, squares = (sum(map(int, sums[name])) for name in ("pixel_sum", "pixel_sum_squares"))
    count = len(train) * plan.config.image_format.size**2
    variance = (squares * count - total * total) / (count * count)
    return PixelStatistics(round(total / count, 6), round(math.sqrt(variance), 6))


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
        "offset": pa.array([offset for info in infos for offset in info.offsets], pa.int64()),
        "image_offset": pa.array([offset for info in infos for offset in info.image_offsets], pa.int64()),
        "image_bytes": pa.array([count for info in infos for count in info.image_bytes], pa.int64()),
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


def _all_there(dataset: str, files: Mapping[str, bytes]) -> bool:
    paths = {name: storage.join(dataset, name) for name in files}
    return all(
        storage.exists(path) and storage.read_bytes(path) == files[name] for name, path in paths.items()
    )
