"""The image store: every source image decoded once, kept at one size, found again by what it was.

A unit is a TFRecord file of decoded images and a Parquet index of them, written after it. An image is
known by its signature (bytes and time of change of its file); where only the time differs, its bytes
are read and hashed, and not decoded again when they are the same.
"""

import dataclasses
import functools
import hashlib
import itertools
import json
import os
from collections.abc import Iterable, Mapping, Sequence, Set
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import google_crc32c
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from cxr_records import locks, storage
from cxr_records.errors import CxrError, UsageError
from cxr_records.examples import example_parts
from cxr_records.images import ImageDecodeError, ImageFormat, decode_image
from cxr_records.parquet import read_parquet
from cxr_records.sources import Entry, SourceReader, SourceReadError
from cxr_records.tfrecord import frame_parts

STORE_VERSION = 1
STORE_FILE = "store.json"
LOCK_FILE = ".lock"
ARCHIVE_FOLDER = ".archives"  # restart points and member lists of .tar.gz sources
UNITS = 32  # that a small set is cut into, so that workers share it evenly
UNIT_IMAGES = (16, 512)  # fewest and most images in a unit; a killed worker loses at most one unit

OK, SAME, REJECTED, UNREADABLE = "ok", "same", "rejected", "unreadable"
_RANK = {OK: 0, SAME: 1, REJECTED: 2, UNREADABLE: 3}

_INDEX_COLUMNS: dict[str, pa.DataType] = {
    "image_id": pa.string(),
    "source": pa.string(),
    "bytes": pa.int64(),
    "mtime_ns": pa.int64(),
    "signature": pa.string(),
    "sha256": pa.string(),
    "width": pa.int32(),
    "height": pa.int32(),
    "mode": pa.string(),
    # Where the bytes of the image lie in the unit's TFRecord file, so that a build reads nothing else;
    # -1, 0, 0 where there is no record.
    "offset": pa.int64(),
    "length": pa.int64(),
    "crc32c": pa.int64(),
    "pixel_sum": pa.int64(),
    "pixel_sum_squares": pa.int64(),
    "status": pa.string(),  # ok; same: an image of these bytes is in the store; rejected; unreadable
    "reason": pa.string(),
}
INDEX_SCHEMA = pa.schema(_INDEX_COLUMNS)
_WORK_COLUMNS: dict[str, pa.DataType] = {
    "image_id": pa.string(),
    "signature": pa.string(),
    "known": pa.list_(pa.string()),
    "name": pa.string(),
    "source": pa.string(),  # without credentials
    "hidden": pa.int64(),  # its place in UnitSpec.hidden_sources; -1 where it has none
    "kind": pa.string(),
    "member": pa.string(),
    "offset": pa.int64(),
    "num_bytes": pa.int64(),
    "mtime_ns": pa.int64(),
}
_WORK_SCHEMA = pa.schema(_WORK_COLUMNS)


class Place(NamedTuple):
    """Where the bytes of a stored image lie: the unit's name, offset and length in bytes, and their CRC."""

    unit: str
    offset: int
    length: int
    crc32c: int


@dataclasses.dataclass(frozen=True)
class UnitSpec:
    """One unit to decode: small, because it travels through Beam; what to read is in the work file.

    Attributes:
        store: folder or URL of the store.
        name: digest of the unit's images.
        num_images: how many images it covers.
        work: Parquet file with the entries to read.
        row_group: which part of the work file is this unit's.
        image_format: size, codec and filter of the store.
        hidden_sources: URLs with credentials, which are in no file.
    """

    store: str
    name: str
    num_images: int
    work: str
    row_group: int
    image_format: ImageFormat
    hidden_sources: tuple[str, ...] = ()

    @property
    def records_path(self) -> str:
        """The TFRecord file."""
        return storage.join(self.store, f"unit-{self.name}.tfrecord")

    @property
    def index_path(self) -> str:
        """The Parquet index, whose presence says that the unit is whole."""
        return storage.join(self.store, f"unit-{self.name}.parquet")


@dataclasses.dataclass(frozen=True)
class ImageStore:
    """A folder of units, all of one image format. Make it with `open_store`."""

    path: str
    image_format: ImageFormat

    @property
    def archive_folder(self) -> str:
        """Where what is known of .tar.gz sources is kept."""
        return storage.join(self.path, ARCHIVE_FOLDER)

    def lock(self) -> AbstractContextManager[locks.Lock]:
        """A context that keeps other commands from decoding into this store."""
        return locks.lock(storage.join(self.path, LOCK_FILE), f"the image store {self.path}")

    def read_index(self) -> pd.DataFrame:
        """Returns the rows of all units in a fixed order: the columns of INDEX_SCHEMA and `unit`, a name."""
        names = set(storage.list_names(self.path))
        tables = []
        for name in sorted(names):
            if not (name.startswith("unit-") and name.endswith(".parquet")):
                continue
            unit = name.removeprefix("unit-").removesuffix(".parquet")
            if f"unit-{unit}.tfrecord" not in names:
                continue  # someone removed the images: decode them again
            path = storage.join(self.path, name)
            try:
                table = read_parquet(storage.read_bytes(path))
                table = table.select(INDEX_SCHEMA.names).cast(INDEX_SCHEMA)
            except (pa.ArrowException, OSError, KeyError) as error:
                reason = " ".join(str(error).split())
                raise CxrError(
                    f"{path}: cannot be read ({reason}); delete it, its images are decoded again"
                ) from None
            tables.append(table.append_column("unit", pa.array([unit] * len(table), pa.string())))
        empty = INDEX_SCHEMA.append(pa.field("unit", pa.string())).empty_table()
        return pa.concat_tables([empty, *tables]).to_pandas()

    def clean(self) -> None:
        """Removes what killed workers left: temporary files, work files, records or an index alone.

        Call it with the lock held.
        """
        storage.remove_temporary(self.path)
        names = set(storage.list_names(self.path))
        for name in names:
            unit, ending = os.path.splitext(name)
            other = {".tfrecord": ".parquet", ".parquet": ".tfrecord"}.get(ending)
            orphan = name.startswith("unit-") and other and unit + other not in names
            if orphan or name.startswith(".work-"):
                storage.remove(storage.join(self.path, name))
        if ARCHIVE_FOLDER in names:
            storage.remove_temporary(self.archive_folder)

    def plan_units(
        self, pending: Mapping[str, Sequence[Entry]], index: pd.DataFrame, num_images: int | None = None
    ) -> list[UnitSpec]:
        """Cuts images to decode into units and writes down what each has to read.

        The order is that of the sources, so that an archive is read from front to back. What is left
        after a kill is cut at the same places.

        Args:
            pending: {image_id: its entries}, as `match_entries` gives it.
            index: what the store holds already.
            num_images: images at hand in all, from which follows the size of a unit; those pending when None.
        """
        if not pending:
            return []
        groups = sorted(pending.items(), key=lambda item: _reading_order(item[1][0]))
        least, most = UNIT_IMAGES
        size = min(most, max(least, -(-(num_images or len(groups)) // UNITS)))
        recorded = index[(index.status == OK) & index.image_id.isin(list(pending))]
        known = recorded.groupby("image_id").sha256.agg(list).to_dict()
        cuts = [groups[start : start + size] for start in range(0, len(groups), size)]
        taken = set(index.unit)
        names = [_unit_name(self.image_format, cut, taken) for cut in cuts]
        hidden = [_hidden_sources(cut) for cut in cuts]
        work = storage.join(self.path, f".work-{names[0]}.parquet")
        with storage.atomic_file(work) as file, pq.ParquetWriter(file, _WORK_SCHEMA) as writer:
            for cut, unsaid in zip(cuts, hidden, strict=True):
                rows = [
                    {"image_id": image_id, "signature": signature(entries), "known": known.get(image_id, [])}
                    | entry._asdict()
                    | {
                        "source": storage.redacted(entry.source),
                        "hidden": unsaid.index(entry.source) if entry.source in unsaid else -1,
                    }
                    for image_id, entries in cut
                    for entry in entries
                ]
                writer.write_table(pa.Table.from_pylist(rows, _WORK_SCHEMA), row_group_size=len(rows))
        return [
            UnitSpec(self.path, name, len(cut), work, place, self.image_format, unsaid)
            for place, (name, cut, unsaid) in enumerate(zip(names, cuts, hidden, strict=True))
        ]


def open_store(path: str, image_format: ImageFormat, create: bool = True) -> ImageStore | None:
    """Opens an image store, or makes it.

    Args:
        path: folder or URL.
        image_format: what the images in it must be.
        create: whether to make a store that is not there yet.

    Returns:
        The store; None where there is none and `create` is False.

    Raises:
        UsageError: the folder holds something else, or images of another size, codec or filter.
    """
    marker_path = storage.join(path, STORE_FILE)
    wanted = {"version": STORE_VERSION, **dataclasses.asdict(image_format)}
    if storage.exists(marker_path):
        marker = _read_marker(marker_path)
        if marker != wanted:
            raise UsageError(
                f"`store={path}` holds {_describe(marker)}, asked for {_describe(wanted)}; "
                "use another `store`, or the same `size`, `codec` and `resample`"
            )
        return ImageStore(path, image_format)
    strangers = [name for name in storage.list_names(path) if name not in (ARCHIVE_FOLDER, LOCK_FILE)]
    strangers = [name for name in strangers if not name.startswith(f".{STORE_FILE}.tmp-")]
    if strangers:
        raise UsageError(
            f"`store={path}` is not empty and no image store (it holds {strangers[0]}); name another"
        )
    if not create:
        return None
    storage.make_folder(path)
    storage.write_bytes(marker_path, (json.dumps(wanted, indent=1) + "\n").encode())
    return ImageStore(path, image_format)


def signature(entries: Iterable[Entry]) -> str:
    """Returns what identifies the files of one image without reading them: sizes and times of change."""
    return "+".join(sorted(f"{entry.num_bytes}@{entry.mtime_ns}" for entry in entries))


def locate(index: pd.DataFrame, signatures: Mapping[str, str]) -> pd.DataFrame:
    """Finds the images with these signatures in an index.

    Returns:
        A table by image_id of those that are settled (decoded or rejected), with unit, offset, length,
        crc32c, sha256, sizes, sums, status ("ok" or "rejected") and reason. Who is not in it must be decoded.
    """
    wanted = pd.DataFrame(
        {"image_id": list(signatures), "signature": list(signatures.values())}, dtype=object
    )
    ranked = index.assign(rank=index.status.map(_RANK)).sort_values(["rank", "unit"], kind="stable")
    records = ranked[ranked.status == OK].drop_duplicates(["image_id", "sha256"])
    rows = ranked[ranked.status != UNREADABLE].merge(wanted, on=["image_id", "signature"])
    rows = rows.drop_duplicates("image_id")
    rejected = rows[rows.status == REJECTED]
    by_content = rows.loc[rows.status != REJECTED, ["image_id", "sha256"]]
    decoded = by_content.merge(records, on=["image_id", "sha256"])
    return pd.concat([decoded, rejected]).drop(columns="rank").set_index("image_id").sort_index()


def write_unit(spec: UnitSpec) -> None:
    """Decodes one unit: records, then its index. Done already, or done twice, changes nothing.

    An image that cannot be decoded has a row with its reason and no record; the others are unaffected.
    """
    if storage.exists(spec.index_path) and storage.exists(spec.records_path):
        return
    with storage.open_read(spec.work) as file:
        work = pq.ParquetFile(file).read_row_group(spec.row_group).to_pylist()
    for row in work:
        if row["hidden"] >= 0:
            row["source"] = spec.hidden_sources[row["hidden"]]
    index_folder = storage.join(spec.store, ARCHIVE_FOLDER)
    rows = []
    reader = _reader(index_folder)
    with storage.atomic_file(spec.records_path) as records:
        offset = 0
        for _, group in itertools.groupby(work, key=lambda row: row["image_id"]):
            row, pixels = _decode_one(list(group), reader, spec.image_format)
            if pixels is not None:
                image = spec.image_format.encode(pixels)
                head, *parts = frame_parts(example_parts({"image": image, "image_id": row["image_id"]}))
                before = len(head) + len(parts[0])
                row |= {"offset": offset + before, "length": len(image), "crc32c": google_crc32c.value(image)}
                records.writelines((head, *parts))
                offset += len(head) + sum(map(len, parts))
            rows.append(row)
    with storage.atomic_file(spec.index_path) as file:
        pq.write_table(pa.Table.from_pylist(rows, INDEX_SCHEMA), file)


def fetch_images(store: str, places: Sequence[Place]) -> list[bytes]:
    """Reads stored images, in the order asked for; all at once.

    Raises:
        CxrError: an image is damaged; the message names the file and what to do.
    """
    paths = [storage.join(store, f"unit-{place.unit}.tfrecord") for place in places]
    ranges = [(path, place.offset, place.length) for path, place in zip(paths, places, strict=True)]
    try:
        images = storage.read_ranges(ranges)
    except FileNotFoundError as error:
        missing = next((path for path in paths if not storage.exists(path)), None)
        if missing is None:
            raise
        raise CxrError(f"{missing} is missing; run again: its images are decoded anew") from error
    for path, place, image in zip(paths, places, images, strict=True):
        if google_crc32c.value(image) != place.crc32c:
            raise CxrError(
                f"{path}: the image at byte {place.offset:,} is damaged; "
                "delete it, then run again: its images are decoded anew"
            )
    return images


@functools.lru_cache(maxsize=1)
def _reader(index_folder: str) -> SourceReader:
    """One reader for all units of a process: the list of members of a large zip takes long to read."""
    return SourceReader(index_folder)


def _decode_one(
    rows: Sequence[Mapping[str, Any]], reader: SourceReader, image_format: ImageFormat
) -> tuple[dict[str, Any], np.ndarray | None]:
    """Decodes one image from its entries; returns its index row, and pixels where there is a record."""
    entries = [Entry(**{name: row[name] for name in Entry._fields}) for row in rows]
    first = entries[0]
    row = {
        "image_id": rows[0]["image_id"],
        "source": first.label,
        "bytes": first.num_bytes,
        "mtime_ns": first.mtime_ns,
        "signature": rows[0]["signature"],
        "offset": -1,
        "length": 0,
        "crc32c": 0,
        "status": OK,
        "reason": "",
    }
    try:
        data = reader.read(first)
        digest = hashlib.sha256(data).hexdigest()
        if any(hashlib.sha256(reader.read(other)).hexdigest() != digest for other in entries[1:]):
            raise ImageDecodeError(f"{len(entries)} files of this name differ in their bytes")
        row["sha256"] = digest
        if digest in rows[0]["known"]:
            return row | {"status": SAME}, None
        image = decode_image(data, image_format)
    except SourceReadError as error:
        return row | {"status": UNREADABLE, "reason": str(error)}, None
    except ImageDecodeError as error:
        return row | {"status": REJECTED, "reason": str(error)}, None
    wide = image.pixels.astype(np.int64)
    row |= {"width": image.width, "height": image.height, "mode": image.mode}
    row |= {"pixel_sum": int(wide.sum()), "pixel_sum_squares": int((wide * wide).sum())}
    return row, image.pixels


def _hidden_sources(cut: Sequence[tuple[str, Sequence[Entry]]]) -> tuple[str, ...]:
    sources = {entry.source for _, entries in cut for entry in entries}
    return tuple(sorted(source for source in sources if storage.redacted(source) != source))


def _reading_order(entry: Entry) -> tuple[bool, str, int, str]:
    """Files by path; members of an archive by their place in it."""
    return (entry.kind != "file", entry.source, entry.offset, entry.member)


def _unit_name(image_format: ImageFormat, cut: Sequence[tuple[str, Sequence[Entry]]], taken: Set[str]) -> str:
    """Names a unit after its images; a unit that is there already did not settle them, so not like it."""
    text = "\n".join([repr(image_format), *(f"{image_id} {signature(entries)}" for image_id, entries in cut)])
    name = hashlib.sha256(text.encode()).hexdigest()[:16]
    while name in taken:
        name = hashlib.sha256(name.encode()).hexdigest()[:16]
    return name


def _read_marker(path: str) -> dict[str, Any]:
    try:
        marker: dict[str, Any] = json.loads(storage.read_bytes(path))
        _describe(marker)
    except (ValueError, KeyError, TypeError):
        raise UsageError(f"{path} is damaged; delete the store, or name another with `store`") from None
    return marker


def _describe(marker: Mapping[str, Any]) -> str:
    size, version = marker["size"], marker["version"]
    other = "" if version == STORE_VERSION else f" of store version {version}"
    return f"{size}x{size} {marker['codec']} images ({marker['resample']}){other}"
