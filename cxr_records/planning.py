"""The plan: which shard and which place in it every record has, known before a pixel is read."""

import dataclasses
import hashlib
import itertools
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pandas as pd
import PIL
import pyarrow as pa
import pyarrow.compute as pc

from cxr_records import storage
from cxr_records.columns import (
    Column,
    array_of,
    chunks,
    equals,
    joined,
    known,
    lists,
    one_chunk,
    rows_of_bytes,
    texts,
    to_hex,
)
from cxr_records.config import DatasetConfig
from cxr_records.errors import CxrError
from cxr_records.examples import FEATURES
from cxr_records.findings import NO_FINDING
from cxr_records.images import ImageFormat
from cxr_records.layout import BUILD_FOLDER, shard_name
from cxr_records.metadata import Metadata
from cxr_records.parquet import WorkFile, write_work
from cxr_records.sampling import Imbalance, imbalance, records_per_image
from cxr_records.seeding import keyed_hashes
from cxr_records.splits import SPLITS, TRAIN, Splits
from cxr_records.store import OK, REJECTED
from cxr_records.tasks import Selection
from cxr_records.tfrecord import OVERHEAD_BYTES

RECORD_VERSION = 1  # raised whenever the same plan would give other bytes
# Readers shuffle whole shards against each other, so a split is cut into 16 even where its bytes ask for
# fewer; a small split into one for every 64 records.
SHUFFLE_SHARDS, SHUFFLE_RECORDS = 16, 64
MOST_UNEVEN = 2.0  # the largest shard of the mean
_PLAN_COLUMNS = [
    *("image_id", "patient_id", "view", "sex", "age_years", "findings", "label", "copy"),
    *("unit", "offset", "length", "crc32c"),
]
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
        records: one row per record in the order of shards: `row` (of the table), `copy`, `split`; int32 and
            categories.
        shards: the shards in order.
        left_out: images of the table that are in no record: image_id, split, reason, detail.
        stored: what the store says of each image, a row for each of the metadata, from `store.locate`; None
            when planned as if every image were there.
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
    stored: pa.Table | None
    balance: Imbalance
    record_bytes: float

    @property
    def stored_images(self) -> pa.Table:
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
        return int(np.count_nonzero(self.records["copy"]))

    def in_split(self, split: str) -> slice:
        """The rows of `records` of a split: all behind each other."""
        shards = [shard for shard in self.shards if shard.split == split]
        start = shards[0].start if shards else 0
        return slice(start, start + sum(shard.num_records for shard in shards))

    def split_counts(self) -> dict[str, dict[str, int]]:
        """Returns {split: {records, images, copies, patients, shards}}."""
        counts = {}
        patients = self.metadata.table["patient_id"].to_numpy()
        for split in self.split_names:
            here = self.in_split(split)
            rows, copies = (self.records[name].to_numpy()[here] for name in ("row", "copy"))
            counts[split] = {
                "records": len(rows),
                "images": len(rows) - int(np.count_nonzero(copies)),
                "copies": int(np.count_nonzero(copies)),
                "patients": len(np.unique(patients[rows[copies == 0]])),
                "shards": sum(shard.split == split for shard in self.shards),
            }
        return counts

    def class_counts(self) -> dict[str, dict[str, Any]]:
        """Returns {class: {images, records, splits: {split: {images, records}}}}, and in train its balance.

        Multilabel datasets count No Finding too, though it is no class of theirs.
        """
        task = self.config.task
        classes = task.class_rows(self.selection.labels)
        of_class = dict(zip(task.class_names, classes.T, strict=True))
        if task.kind == "multilabel":
            of_class[NO_FINDING] = ~classes.any(axis=1)
        rows, original = self.records["row"].to_numpy(), self.records["copy"].to_numpy() == 0
        balance = self.balance.to_json()["classes"]
        counts = {}
        for name, holds_image in of_class.items():
            holds = holds_image[rows] > 0
            images = holds & original
            splits = {
                split: {
                    "images": int(np.count_nonzero(images[self.in_split(split)])),
                    "records": int(np.count_nonzero(holds[self.in_split(split)])),
                }
                for split in self.split_names
            }
            counts[name] = {
                "images": int(np.count_nonzero(images)),
                "records": int(np.count_nonzero(holds)),
                "splits": splits,
                **{key: balance[name][key] for key in ("irlbl", "dragged") if name in balance},
            }
        return counts

    def left_out_counts(self) -> dict[str, int]:
        """Counts the images left out for each reason, most first."""
        return {str(reason): int(count) for reason, count in self.left_out["reason"].value_counts().items()}


def make_plan(
    metadata: Metadata, splits: Splits, config: DatasetConfig, stored: pa.Table | None = None
) -> Plan:
    """Plans a dataset.

    Args:
        metadata: the whole table.
        splits: of the whole table.
        config: what is asked for.
        stored: what the store says of each image of the table, from `store.locate`; None plans as if every
            image were there.

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
    image_ids = metadata.image_ids
    train = np.flatnonzero(takes_part & (splits.of_image == TRAIN))
    classes = config.task.class_rows(selection.labels[train])
    repeats = np.ones(len(metadata), np.int32)
    repeats[train] = records_per_image(
        classes, config.task.class_names, config.copies, image_ids.take(train), config.seed
    )
    record_bytes = _record_bytes(config.image_format, stored)
    shards: list[PlannedShard] = []
    parts, start = [], 0
    for split in SPLITS:
        rows = np.flatnonzero(takes_part & (splits.of_image == split)).astype(np.int32)
        *part, keys = _in_order(rows, repeats[rows], image_ids, config.seed)
        shards += _cut_shards(split, keys, start, record_bytes, config.shard_mb << 20)
        start += len(keys)
        parts.append(part)
    row, copy = (np.concatenate(columns) for columns in zip(*parts, strict=True))
    codes = np.repeat(np.arange(len(SPLITS), dtype=np.int8), [len(rows) for rows, _ in parts])
    of_split = pd.CategoricalDtype(list(SPLITS))
    records = {"row": row, "copy": copy, "split": pd.Categorical.from_codes(codes, dtype=of_split)}
    balance = imbalance(classes, repeats[train], config.task.class_names, config.copies)
    return Plan(
        config=config,
        metadata=metadata,
        splits=splits,
        selection=selection,
        records=pd.DataFrame(records),
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
    columns = _columns(plan)
    digests = _shard_digests(plan, columns)
    name = hashlib.sha256("".join(digests).encode()).hexdigest()[:16]
    tables = (_record_table(plan, shard, columns) for shard in plan.shards)
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
    num_stored = len(plan.metadata)
    if plan.stored is not None:
        num_stored -= plan.stored["status"].null_count
    copies = plan.num_copies
    return {
        "dataset_bytes": round(len(plan.records) * plan.record_bytes),
        "store_bytes": round(num_stored * plan.record_bytes),
        "decode_seconds": num_to_decode * seconds_per_decode / workers,
        "write_seconds": (len(plan.records) * SECONDS_PER_RECORD + copies * SECONDS_PER_COPY) / workers,
    }


def _left_out(
    metadata: Metadata, splits: Splits, selection: Selection, stored: pa.Table | None
) -> pd.DataFrame:
    """One row for each image that no record can hold. Of several reasons one is given: missing, rejected,
    in no list, left out by the task, in this order.
    """
    unlisted = splits.codes < 0
    rejected = missing = np.zeros(len(metadata), bool)
    if stored is not None:
        rejected, missing = equals(stored["status"], REJECTED), ~known(stored["status"])
    rows = np.flatnonzero(~selection.kept | unlisted | rejected | missing)
    reason = np.full(len(rows), "left out by the task", dtype=object)
    detail = selection.reasons[rows].copy()
    reason[unlisted[rows]], detail[unlisted[rows]] = "in no list", ""
    if stored is not None:
        reason[rejected[rows]] = REJECTED
        detail[rejected[rows]] = stored["reason"].filter(rejected).to_pylist()
        reason[missing[rows]], detail[missing[rows]] = "missing", "in no source"
    return pd.DataFrame(
        {
            "row": rows,
            "image_id": metadata.table["image_id"].take(rows).array,
            "split": splits.of_image[rows],
            "reason": pd.Series(reason, dtype=object),  # pandas 3 would infer a type of its own
            "detail": pd.Series(detail, dtype=object),
        }
    )


def _in_order(
    rows: np.ndarray, repeats: np.ndarray, image_ids: Column, seed: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows and copies of the records of one split in their global order, and what orders them: uint64, a
    keyed hash of (seed, image, copy).
    """
    row = np.repeat(rows, repeats)
    first = np.repeat(np.cumsum(repeats, dtype=np.int32) - repeats, repeats)
    copy = np.arange(len(row), dtype=np.int32) - first
    key = np.empty(len(row), np.uint64)
    for part in chunks(len(row)):
        key[part] = keyed_hashes(seed, "order", image_ids.take(row[part]), array_of(copy[part]))
    # Two equal keys of 64 bits are all but impossible; the table's order would decide, which is sorted.
    order = np.argsort(key, kind="stable")
    return row[order], copy[order], key[order]


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


def _record_bytes(image_format: ImageFormat, stored: pa.Table | None) -> float:
    """Bytes of one record: exact for raw pixels, the mean of what is stored for PNG and JPEG."""
    image_bytes = image_format.size**2 * BYTES_PER_PIXEL[image_format.codec]
    if image_format.codec != "raw" and stored is not None:
        lengths = stored["length"].filter(array_of(equals(stored["status"], OK))).drop_null()
        if len(lengths):
            image_bytes = float(lengths.to_numpy().mean())
    return image_bytes + EXAMPLE_BYTES + OVERHEAD_BYTES


def _columns(plan: Plan) -> Mapping[str, Any]:
    """Columns of the table and of the store that decide what a record is, or where its image lies."""
    about = ("image_id", "patient_id", "view", "sex", "age_years")
    places = ("unit", "offset", "length", "crc32c", "sha256")
    return {
        **{name: one_chunk(plan.metadata.table[name]) for name in about},
        **{name: one_chunk(plan.stored_images[name]) for name in places},
    }


def _shard_digests(plan: Plan, columns: Mapping[str, Any]) -> list[str]:
    """A digest of all that decides a shard's bytes: its records' sources, labels, order and settings."""
    config, records = plan.config, plan.records
    # Another Pillow may encode PNG and JPEG, and interpolate copies, to other bytes: never mix two in one
    # dataset.
    settings = (RECORD_VERSION, PIL.__version__, config.image_format, config.flip, [f.name for f in FEATURES])
    digests = []
    for shard in plan.shards:
        here = slice(shard.start, shard.start + shard.num_records)
        rows, copies = records["row"].to_numpy()[here], records["copy"].to_numpy()[here]
        names = ("image_id", "patient_id", "view", "sex", "age_years")
        cells = [columns[name].take(rows).cast(pa.string()) for name in names]
        cells += [array_of(copies).cast(pa.string()), to_hex(rows_of_bytes(columns["sha256"].take(rows)))]
        heads = pc.binary_join_element_wise(*cells, "\0")
        digest = hashlib.sha256(repr((settings, config.seed, shard.file)).encode())
        digest.update(joined(heads, "\n"))
        digest.update(plan.metadata.findings[rows].tobytes())
        digest.update(plan.selection.labels[rows].astype(np.int64).tobytes())
        digests.append(digest.hexdigest())
    return digests


def _record_table(plan: Plan, shard: PlannedShard, columns: Mapping[str, Any]) -> pa.Table:
    """What a worker needs to write one shard: a row per record, in order."""
    records = plan.records.iloc[shard.start : shard.start + shard.num_records]
    rows = records["row"].to_numpy()
    labels = plan.selection.labels[rows].astype(np.int64)
    return pa.table(
        {
            **{name: texts(columns[name].take(rows)) for name in ("image_id", "view", "sex", "unit")},
            **{
                name: columns[name].take(rows).cast(pa.int64())
                for name in ("patient_id", "age_years", "offset", "length", "crc32c")
            },
            "findings": lists(plan.metadata.findings[rows]),
            "label": lists(labels) if labels.ndim > 1 else array_of(labels),
            "copy": array_of(records["copy"].to_numpy().astype(np.int64)),
        }
    ).select(_PLAN_COLUMNS)
