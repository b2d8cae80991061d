"""The plan: which shard and which place in it every record has, known before a pixel is read."""

import dataclasses
import hashlib
import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
import PIL
import pyarrow as pa

from cxr_records import storage
from cxr_records.config import DatasetConfig
from cxr_records.errors import CxrError
from cxr_records.examples import FEATURES
from cxr_records.findings import NO_FINDING
from cxr_records.images import ImageFormat
from cxr_records.layout import BUILD_FOLDER, shard_name
from cxr_records.metadata import Metadata
from cxr_records.parquet import WorkFile, write_work
from cxr_records.sampling import Imbalance, imbalance, records_per_image
from cxr_records.seeding import keyed_hash
from cxr_records.splits import SPLITS, TRAIN, Splits
from cxr_records.store import OK, REJECTED
from cxr_records.tasks import Selection
from cxr_records.tfrecord import OVERHEAD_BYTES

RECORD_VERSION = 1  # raised whenever the same plan would give other bytes
# Readers shuffle whole shards against each other, so a split is cut into 16 even where its bytes ask for
# fewer; a small split into one for every 64 records.
SHUFFLE_SHARDS, SHUFFLE_RECORDS = 16, 64
MOST_UNEVEN = 2.0  # the largest shard of the mean
EXAMPLE_BYTES = 235  # what a record holds beside its image, about
# Used before any image is stored: means of 149 NIH originals at 224 pixels.
BYTES_PER_PIXEL = {"raw": 1.0, "png": 0.43, "jpeg": 0.25}
# Of one core of a 2023 server, as benchmarks/bench_build.py measures them, fsync included: a 1024x1024 PNG
# decoded and resized, a record copied, a copy augmented.
SECONDS_PER_DECODE, SECONDS_PER_RECORD, SECONDS_PER_COPY = 14e-3, 0.2e-3, 1.0e-3


@dataclasses.dataclass(frozen=True)
class PlannedShard:
    """One shard: its file name, split, number of records, and the rows of `Plan.records` that it holds."""

    file: str
    split: str
    start: int
    num_records: int


@dataclasses.dataclass(frozen=True)
class ShardSpec:
    """One shard to write: small, because it travels through Beam; its records are in the plan file.

    Attributes:
        dataset: folder or URL of the dataset.
        file: name of the shard in it.
        num_records: how many records it will hold.
        digest: of all that decides its bytes.
        plan: the plan file, with one row group per shard.
        row_group: this shard's.
        store: the image store.
        image_format: of the store and of the records.
        seed: of the copies' parameters.
        flip: whether copies may be flipped.
    """

    dataset: str
    file: str
    num_records: int
    digest: str
    plan: WorkFile
    row_group: int
    store: str
    image_format: ImageFormat
    seed: int
    flip: bool

    @property
    def path(self) -> str:
        """The shard itself."""
        return storage.join(self.dataset, self.file)

    @property
    def sidecar_path(self) -> str:
        """What is known of the shard once it is whole; written after it."""
        return storage.join(self.dataset, BUILD_FOLDER, f"{self.file}.json")


@dataclasses.dataclass(frozen=True, eq=False)
class Plan:
    """Every record of a dataset in its place.

    Attributes:
        config: what was asked for.
        metadata: the whole table.
        splits: the split of each row of the table.
        selection: the task's label of each row of the table.
        records: one row per record in the order of shards: `row` (of the table), `copy`, `split`.
        shards: the shards in order.
        left_out: images of the table that are in no record: image_id, split, reason, detail.
        stored: table by image_id of what the store says of each image, from `store.locate`; None when planned
            as if every image were there.
        balance: of the classes in train, before and after copies.
        record_bytes: size of one record on disk, about.
    """

    config: DatasetConfig
    metadata: Metadata
    splits: Splits
    selection: Selection
    records: pd.DataFrame
    shards: tuple[PlannedShard, ...]
    left_out: pd.DataFrame
    stored: pd.DataFrame | None
    balance: Imbalance
    record_bytes: float

    @property
    def stored_images(self) -> pd.DataFrame:
        """`stored` of a plan that is to be written, which has it."""
        if self.stored is None:
            raise ValueError("this plan was made as if every image were there: nothing of it can be written")
        return self.stored

    @property
    def split_names(self) -> list[str]:
        """The splits that have records, in the order train, validation, test."""
        present = {shard.split for shard in self.shards}
        return [split for split in SPLITS if split in present]

    @property
    def num_copies(self) -> int:
        """How many records are augmented copies."""
        return int((self.records["copy"] > 0).sum())

    def split_counts(self) -> dict[str, dict[str, int]]:
        """Returns {split: {records, images, copies, patients, shards}}."""
        counts = {}
        patients = self.metadata.table["patient_id"].to_numpy()
        for split in self.split_names:
            records = self.records[self.records["split"] == split]
            counts[split] = {
                "records": len(records),
                "images": int((records["copy"] == 0).sum()),
                "copies": int((records["copy"] > 0).sum()),
                "patients": len(np.unique(patients[records["row"]])),
                "shards": sum(shard.split == split for shard in self.shards),
            }
        return counts

    def class_counts(self) -> dict[str, dict[str, Any]]:
        """Returns {class: {images, records, splits: {split: {images, records}}}}, and in train its balance.

        Multilabel datasets count No Finding too, though it is no class of theirs.
        """
        task = self.config.task
        classes = task.class_rows(self.selection.labels)
        names = list(task.class_names)
        if task.kind == "multilabel":
            names.append(NO_FINDING)
            classes = np.column_stack([classes, ~classes.any(axis=1)])
        rows, original = self.records["row"].to_numpy(), self.records["copy"].to_numpy() == 0
        in_split = {split: self.records["split"].to_numpy() == split for split in self.split_names}
        balance = self.balance.to_json()["classes"]
        counts = {}
        for place, name in enumerate(names):
            holds = classes[rows, place] > 0
            splits = {
                split: {"images": int((holds & here & original).sum()), "records": int((holds & here).sum())}
                for split, here in in_split.items()
            }
            counts[name] = {
                "images": int((holds & original).sum()),
                "records": int(holds.sum()),
                "splits": splits,
                **{key: balance[name][key] for key in ("irlbl", "dragged") if name in balance},
            }
        return counts

    def left_out_counts(self) -> dict[str, int]:
        """Counts the images left out for each reason, most first."""
        return {str(reason): int(count) for reason, count in self.left_out["reason"].value_counts().items()}


def make_plan(
    metadata: Metadata, splits: Splits, config: DatasetConfig, stored: pd.DataFrame | None = None
) -> Plan:
    """Plans a dataset.

    Args:
        metadata: the whole table.
        splits: of the whole table.
        config: what is asked for.
        stored: what the store says of each image, from `store.locate`; None plans as if every image were
            there.

    Raises:
        CxrError: no image takes part.
    """
    selection = config.task.select(metadata.findings)
    left_out = _left_out(metadata, splits, selection, stored)
    takes_part = np.ones(len(metadata), bool)
    takes_part[left_out["row"]] = False
    if not takes_part.any():
        reasons = left_out["reason"].value_counts()
        raise CxrError(
            f"no image is left for `task={config.task.name}`: of {len(metadata):,} images in the table, "
            + ", ".join(f"{count:,} {reason}" for reason, count in reasons.items())
        )
    image_ids = metadata.table["image_id"].to_numpy()
    train = np.flatnonzero(takes_part & (splits.of_image == TRAIN))
    classes = config.task.class_rows(selection.labels[train])
    repeats = np.ones(len(metadata), np.int64)
    repeats[train] = records_per_image(
        classes, config.task.class_names, config.copies, list(image_ids[train]), config.seed
    )
    record_bytes = _record_bytes(config.image_format, stored)
    shards: list[PlannedShard] = []
    frames, start = [], 0
    for split in SPLITS:
        rows = np.flatnonzero(takes_part & (splits.of_image == split))
        frame, keys = _in_order(rows, repeats[rows], image_ids, config.seed)
        frames.append(frame.assign(split=split))
        shards += _cut_shards(split, keys, start, record_bytes, config.shard_mb << 20)
        start += len(frame)
    balance = imbalance(classes, repeats[train], config.task.class_names, config.copies)
    return Plan(
        config=config,
        metadata=metadata,
        splits=splits,
        selection=selection,
        records=pd.concat(frames, ignore_index=True),
        shards=tuple(shards),
        left_out=left_out.drop(columns="row"),
        stored=stored,
        balance=balance,
        record_bytes=record_bytes,
    )


def write_plan(plan: Plan, folder: str, store: str, dataset: str) -> list[ShardSpec]:
    """Writes what workers need of a plan, one row group per shard, and returns their specs.

    Args:
        plan: made with what is stored.
        folder: where the plan file goes.
        store: the image store that holds them.
        dataset: the folder of the dataset.
    """
    digests = _shard_digests(plan, plan.stored_images)
    name = hashlib.sha256("".join(digests).encode()).hexdigest()[:16]
    tables = (_record_table(plan, shard, plan.stored_images) for shard in plan.shards)
    first = next(tables)
    path = storage.join(folder, f"plan-{name}.parquet")
    work = write_work(path, first.schema, itertools.chain([first], tables))
    return [
        ShardSpec(
            dataset=dataset,
            file=shard.file,
            num_records=shard.num_records,
            digest=digest,
            plan=work,
            row_group=place,
            store=store,
            image_format=plan.config.image_format,
            seed=plan.config.seed,
            flip=plan.config.flip,
        )
        for place, (shard, digest) in enumerate(zip(plan.shards, digests, strict=True))
    ]


def estimate(plan: Plan, num_to_decode: int, workers: int, seconds_per_decode: float) -> dict[str, float]:
    """Estimates the bytes on disk and the seconds of a build.

    Args:
        plan: the plan.
        num_to_decode: images that are not in the store yet.
        workers: processes at work.
        seconds_per_decode: of one image on one core.
    """
    num_stored = len(plan.metadata) if plan.stored is None else len(plan.stored)
    copies = plan.num_copies
    return {
        "dataset_bytes": round(len(plan.records) * plan.record_bytes),
        "store_bytes": round(num_stored * plan.record_bytes),
        "decode_seconds": num_to_decode * seconds_per_decode / workers,
        "write_seconds": (len(plan.records) * SECONDS_PER_RECORD + copies * SECONDS_PER_COPY) / workers,
    }


def _left_out(
    metadata: Metadata, splits: Splits, selection: Selection, stored: pd.DataFrame | None
) -> pd.DataFrame:
    """One row for each image that no record can hold. Of several reasons one is given: missing, rejected,
    in no list, left out by the task, in this order.
    """
    reason = np.full(len(metadata), "", dtype=object)
    detail = np.full(len(metadata), "", dtype=object)
    reason[~selection.kept] = "left out by the task"
    detail[~selection.kept] = selection.reasons[~selection.kept]
    unlisted = splits.of_image == ""
    reason[unlisted], detail[unlisted] = "in no list", ""
    if stored is not None:
        state = stored["status"].reindex(metadata.table["image_id"]).to_numpy(dtype=object)
        rejected, missing = state == REJECTED, pd.isna(state)
        why = stored["reason"].reindex(metadata.table["image_id"]).to_numpy(dtype=object)
        reason[rejected], detail[rejected] = "rejected", why[rejected]
        reason[missing], detail[missing] = "missing", "in no source"
    rows = np.flatnonzero(reason != "")
    return pd.DataFrame(
        {
            "row": rows,
            "image_id": metadata.table["image_id"].to_numpy()[rows],
            "split": splits.of_image[rows],
            "reason": reason[rows],
            "detail": detail[rows],
        }
    )


def _in_order(
    rows: np.ndarray, repeats: np.ndarray, image_ids: np.ndarray, seed: int
) -> tuple[pd.DataFrame, np.ndarray]:
    """The records of one split in their global order, and what orders them: uint64, a keyed hash of (seed,
    image, copy).
    """
    row = np.repeat(rows, repeats)
    first = np.repeat(np.cumsum(repeats) - repeats, repeats)
    copy = np.arange(len(row)) - first
    pairs = zip(image_ids[row], copy.tolist(), strict=True)
    key = np.fromiter(
        (keyed_hash(seed, "order", name, number) for name, number in pairs), np.uint64, len(row)
    )
    # Two equal keys of 64 bits are all but impossible; the table's order would decide, which is sorted.
    order = np.argsort(key, kind="stable")
    return pd.DataFrame({"row": row[order], "copy": copy[order]}), key[order]


def _cut_shards(
    split: str, keys: np.ndarray, start: int, record_bytes: float, shard_bytes: int
) -> Iterator[PlannedShard]:
    """Cuts the records of a split into shards.

    Args:
        split: its name.
        keys: uint64, what orders its records, in that order.
        start: place of its first record in the plan.
        record_bytes: of one record, about.
        shard_bytes: of a shard, the aim.
    """
    num_records = len(keys)
    by_size = -(-int(num_records * record_bytes) // shard_bytes)
    by_shuffle = min(SHUFFLE_SHARDS, -(-num_records // SHUFFLE_RECORDS))
    count = min(num_records, max(by_size, by_shuffle))
    cuts = _cuts(keys, count)
    for shard, (low, high) in enumerate(itertools.pairwise(cuts)):
        yield PlannedShard(shard_name(split, shard, count), split, start + low, high - low)


def _cuts(keys: np.ndarray, count: int) -> list[int]:
    """Where shards begin and end: `count` + 1 places in `keys`, for shards that each hold a record.

    Each shard has an equal part of all keys there could be, and so holds about as many records as the others.
    A record that comes or goes changes its own shard alone; cut by number, all shards behind it would change.
    Only where a shard has so few records that chance leaves one empty, or makes one twice as large as the
    mean, they are cut by number.
    """
    num_records = len(keys)
    bounds = np.array([(shard << 64) // count for shard in range(1, count)], np.uint64)
    cuts = [0, *np.searchsorted(keys, bounds).tolist(), num_records]
    sizes = np.diff(cuts)
    if count and not (sizes.min() > 0 and sizes.max() <= MOST_UNEVEN * num_records / count):
        return [shard * num_records // count for shard in range(count + 1)]
    return cuts if count else []


def _record_bytes(image_format: ImageFormat, stored: pd.DataFrame | None) -> float:
    """Bytes of one record: exact for raw pixels, the mean of what is stored for PNG and JPEG."""
    decoded = None if stored is None else stored[stored["status"] == OK]
    if image_format.codec != "raw" and decoded is not None and len(decoded):
        image_bytes = float(decoded["length"].mean())
    else:
        image_bytes = image_format.size**2 * BYTES_PER_PIXEL[image_format.codec]
    return image_bytes + EXAMPLE_BYTES + OVERHEAD_BYTES


def _shard_digests(plan: Plan, stored: pd.DataFrame) -> list[str]:
    """A digest of all that decides a shard's bytes: its records' sources, labels, order and settings."""
    table, config = plan.metadata.table, plan.config
    rows = plan.records["row"].to_numpy()
    names = ("image_id", "patient_id", "view", "sex", "age_years")
    columns: list[list[Any]] = [table[name].to_numpy()[rows].tolist() for name in names]
    columns.append(plan.records["copy"].tolist())
    columns.append(stored["sha256"].reindex(columns[0]).tolist())
    heads = ["\0".join(map(str, values)).encode() for values in zip(*columns, strict=True)]
    findings, labels = plan.metadata.findings[rows], plan.selection.labels[rows]
    # Another Pillow may encode PNG and JPEG, and interpolate copies, to other bytes: never mix two in one
    # dataset.
    settings = (RECORD_VERSION, PIL.__version__, config.image_format, config.flip, [f.name for f in FEATURES])
    digests = []
    for shard in plan.shards:
        here = slice(shard.start, shard.start + shard.num_records)
        digest = hashlib.sha256(repr((settings, config.seed, shard.file)).encode())
        digest.update(b"\n".join(heads[here]))
        digest.update(findings[here].tobytes())
        digest.update(np.ascontiguousarray(labels[here]).tobytes())
        digests.append(digest.hexdigest())
    return digests


def _record_table(plan: Plan, shard: PlannedShard, stored: pd.DataFrame) -> pa.Table:
    """What a worker needs to write one shard: a row per record, in order."""
    records = plan.records.iloc[shard.start : shard.start + shard.num_records]
    rows = records["row"].to_numpy()
    table = plan.metadata.table.iloc[rows]
    places = stored.loc[table["image_id"]]
    labels = plan.selection.labels[rows]
    return pa.table(
        {
            **{
                name: pa.array(table[name].tolist())
                for name in ("image_id", "patient_id", "view", "sex", "age_years")
            },
            "findings": pa.array(plan.metadata.findings[rows].tolist(), pa.list_(pa.int64())),
            "label": pa.array(labels.tolist()),
            "copy": pa.array(records["copy"].tolist()),
            "unit": pa.array(places["unit"].tolist()),
            "offset": pa.array(places["offset"].tolist(), pa.int64()),
            "length": pa.array(places["length"].tolist(), pa.int64()),
            "crc32c": pa.array(places["crc32c"].tolist(), pa.int64()),
        }
    )
