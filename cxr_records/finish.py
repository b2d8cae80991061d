"""The end of a build: everything beside the shards, the manifest last; and what an earlier build left."""

import csv
import hashlib
import io
import itertools
import math
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from typing import IO

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from cxr_records import storage, tfds
from cxr_records.columns import Column, array_of, chunks, joined, lists, one_chunk, rows_of_bytes
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
from cxr_records.parquet import HashedFile
from cxr_records.planning import Plan, ShardSpec
from cxr_records.shards import ShardInfo, augmentation_text
from cxr_records.splits import SPLITS, TRAIN, Splits

_ROW_GROUP = 1 << 17  # of the table of records
_HELD_BYTES = 64 << 20  # of it in memory until it is written; that of NIH's set has 3 MB


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
        LEFT_OUT_FILE: left_out_csv(plan.left_out),
        FEATURES_FILE: tfds.features_json(config),
        INFO_FILE: tfds.info_json(config.task.name, splits),
        **split_lists(plan.metadata.image_ids, plan.splits),
    }
    if config.task.kind != "multilabel":
        files[LABELS_FILE] = "".join(f"{name}\n" for name in config.task.class_names).encode()
    path = storage.join(dataset, MANIFEST_FILE)
    with tempfile.SpooledTemporaryFile(_HELD_BYTES) as records:
        entries = (_write_records(records, plan, specs, infos), *itertools.starmap(_entry, files.items()))
        manifest = _manifest(plan, splits, entries)
        written = manifest_bytes(manifest.to_json())
        if storage.exists(path) and storage.read_bytes(path) == written and _all_there(dataset, entries):
            return manifest
        storage.remove(path)
        for name in (LABELS_FILE, *LIST_FILES):
            if name not in files:
                storage.remove(storage.join(dataset, name))  # of an earlier task or split
        records.seek(0)
        with storage.atomic_file(storage.join(dataset, RECORDS_FILE)) as file:
            shutil.copyfileobj(records, file)
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


def split_lists(image_ids: Column, splits: Splits) -> dict[str, bytes]:
    """Returns {file: the names of a split's images, one on each line, sorted}, without empty splits.

    All images of the table that are in the split are named, those too that this dataset leaves out: another
    task has a use for them, and another build may find them.

    Args:
        image_ids: of the table.
        splits: of the same images.
    """
    lists = {}
    for code, file in enumerate(LIST_FILES[: len(SPLITS)]):
        names = image_ids.filter(array_of(splits.codes == code))
        if len(names):
            lists[file] = joined(names.take(pc.sort_indices(names)), "\n") + b"\n"
    return lists


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


def _manifest(plan: Plan, splits: Mapping[str, SplitInfo], files: tuple[FileEntry, ...]) -> Manifest:
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
        files=files,
        duplicates=find_duplicates(_pictures(plan)),
        drawn=plan.metadata.drawn,
    )


def _pictures(plan: Plan) -> Iterator[Picture]:
    """The original images of a plan that may show what another one shows: few, of all."""
    stored, table = plan.stored_images, plan.metadata.table
    records = plan.records[plan.records["copy"].to_numpy() == 0]
    rows = records["row"].to_numpy()
    # The first eight bytes tell nearly all digests apart, in a quarter of the room.
    keys = (
        rows_of_bytes(stored[name])[rows, :8].view(np.uint64)[:, 0] for name in ("sha256", "pixel_sha256")
    )
    chosen = np.flatnonzero(np.logical_or(*map(_comes_again, keys)))
    rows = rows[chosen]
    columns = (
        plan.metadata.image_ids.take(array_of(rows)).to_pylist(),
        records["split"].iloc[chosen].tolist(),
        table["patient_id"].to_numpy()[rows].tolist(),
        *(stored[name].take(array_of(rows)).to_pylist() for name in ("sha256", "pixel_sha256")),
    )
    for image, split, patient, source, pixels in zip(*columns, strict=True):
        yield Picture(image, split, patient, source.hex(), pixels.hex())


def _comes_again(keys: np.ndarray) -> np.ndarray:
    """Tells which values stand at several places: bool [n]."""
    order = np.argsort(keys)
    same = keys[order[1:]] == keys[order[:-1]]
    again = np.zeros(len(keys), bool)
    again[order[1:][same]] = again[order[:-1][same]] = True
    return again


def _pixel_statistics(plan: Plan) -> PixelStatistics:
    """Mean and standard deviation of the original training images' pixels, in grey levels 0 to 255."""
    train = plan.records.iloc[plan.in_split(TRAIN)]
    rows = train["row"].to_numpy()[train["copy"].to_numpy() == 0]
    if not len(rows):
        return PixelStatistics(None, None)
    # Whole numbers: exact, whatever the order. Those of a chunk stay below 2^63, their sum may not.
    total, squares = (
        sum(int(sums[rows[part]].sum()) for part in chunks(len(rows)))
        for sums in (plan.stored_images[name].to_numpy() for name in ("pixel_sum", "pixel_sum_squares"))
    )
    count = len(rows) * plan.config.image_format.size**2
    variance = (squares * count - total * total) / (count * count)
    return PixelStatistics(round(total / count, 6), round(math.sqrt(variance), 6))


def _write_records(
    file: IO[bytes], plan: Plan, specs: Sequence[ShardSpec], infos: Sequence[ShardInfo]
) -> FileEntry:
    """Writes the table of records, a part at a time."""
    counts = [info.records for info in infos]
    shard_of = np.repeat(np.arange(len(specs), dtype=np.int32), counts)
    ends = np.cumsum(counts)
    places = {
        "offset": np.concatenate([info.offsets for info in infos]),
        "image_offset": np.concatenate([info.image_offsets for info in infos]),
        "image_bytes": np.concatenate([info.image_bytes for info in infos]),
    }
    table = {name: one_chunk(column) for name, column in plan.metadata.table.items()}
    files = array_of([spec.file for spec in specs], pa.string())

    def part_of(part: slice) -> pa.Table:
        records, shards = plan.records.iloc[part], shard_of[part]
        rows, copies = records["row"].to_numpy(), records["copy"].to_numpy()
        image_ids = table["image_id"].take(array_of(rows))
        texts = [
            augmentation_text(specs[0], image_id, copy)
            for image_id, copy in zip(image_ids.to_pylist(), copies.tolist(), strict=True)
        ]
        labels = plan.selection.labels[rows]
        columns = {
            "split": array_of(records["split"]).cast(pa.string()),
            "shard": files.take(array_of(shards)),
            "place": array_of(np.arange(part.start, part.stop) - (ends[shards] - np.array(counts)[shards])),
            **{name: array_of(values[part].astype(np.int64)) for name, values in places.items()},
            "image_id": image_ids,
            "patient_id": table["patient_id"].take(array_of(rows)),
            "view": table["view"].take(array_of(rows)).cast(pa.string()),
            "sex": table["sex"].take(array_of(rows)).cast(pa.string()),
            "age_years": table["age_years"].take(array_of(rows)).cast(pa.int64()),
            "copy": array_of(copies.astype(np.int64)),
            "augmentation": array_of(texts, pa.string()),
            "label": lists(labels) if labels.ndim > 1 else array_of(labels),
        }
        return pa.table(columns)

    out = HashedFile(file)
    parts = map(part_of, chunks(len(plan.records), _ROW_GROUP))
    first = next(parts)
    with out.parquet(first.schema) as writer:
        for part in itertools.chain([first], parts):
            writer.write_table(part, row_group_size=_ROW_GROUP)
    return FileEntry(RECORDS_FILE, out.size, out.hexdigest())


def _entry(name: str, data: bytes) -> FileEntry:
    return FileEntry(name, len(data), hashlib.sha256(data).hexdigest())


def _all_there(dataset: str, files: Sequence[FileEntry]) -> bool:
    paths = [storage.join(dataset, entry.file) for entry in files]
    return all(
        storage.exists(path) and storage.file_sha256(path) == entry.sha256
        for path, entry in zip(paths, files, strict=True)
    )
