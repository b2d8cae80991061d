"""The image store: every source image decoded once, kept at one size, found again by what it was.

A unit is a TFRecord file of decoded images, a Parquet index of them, and last the index's sha256: an index
that does not match it is none. An image is known by its signature (path, size and version of its file); where
that differs, its bytes are read and hashed, and not decoded again when they are the same.
"""

import collections
import dataclasses
import functools
import hashlib
import io
import itertools
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import google_crc32c
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cxr_records import locks, storage
from cxr_records.columns import (
    Column,
    array_of,
    chunks,
    equals,
    from_hex,
    give_back,
    rows_of,
    rows_of_bytes,
    whole_bytes,
)
from cxr_records.errors import CxrError, UsageError
from cxr_records.examples import example_parts
from cxr_records.images import ImageDecodeError, ImageFormat, decode_image, decoder_version
from cxr_records.names import is_litter
from cxr_records.parquet import WorkFile, read_parquet, read_work, write_work
from cxr_records.sources import Entry, ImageFiles, SourceReader, SourceReadError
from cxr_records.tfrecord import frame_parts
from cxr_records.urls import unsigned

STORE_VERSION = 2  # raised whenever a unit of before may not be used any more
STORE_FILE = "store.json"
LOCK_FILE = ".lock"
ARCHIVE_FOLDER = ".archives"  # restart points and member lists of .tar.gz sources
UNITS = 32  # that a small set is cut into, so that workers share it evenly
UNIT_IMAGES = (16, 512)  # fewest and most images in a unit; a killed worker loses at most one unit

UNIT_ENDINGS = (".tfrecord", ".parquet", ".sha256")  # in the order in which they are written
_UNIT_PREFIX = (
    f"v{STORE_VERSION}-"  # of a unit's name, so that those of other versions are never taken for ours
)
_SIGNATURE_BYTES = 16
_READERS = 16  # indexes read at once far away
_UNITS_AT_ONCE = 256  # whose rows are looked at together
_FEW, _MOST = (
    0.01,
    0.99,
)  # shares of the pixels up to `grey_low` and up to `grey_high`

OK, SAME, REJECTED, UNREADABLE = "ok", "same", "rejected", "unreadable"
_RANKS = (OK, SAME, REJECTED, UNREADABLE)  # of several rows of an image the first of these counts

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
    # Of the stored pixels, before their codec.
    "pixel_sha256": pa.string(),
    "pixel_sum": pa.int64(),
    "pixel_sum_squares": pa.int64(),
    "grey_low": pa.int32(),  # between these two lie 98 of 100 pixels
    "grey_high": pa.int32(),
    "decoder": pa.string(),  # what decoded or rejected it: images.decoder_version()
    "status": pa.string(),  # ok; same: an image of these bytes is in the store; rejected; unreadable
    "reason": pa.string(),
}
INDEX_SCHEMA = pa.schema(_INDEX_COLUMNS)
# What is told of a decoded image, and how it is held; the digests as bytes.
_LOCATED: dict[str, tuple[type[np.generic], tuple[int, ...]]] = {
    "offset": (np.int64, ()),
    "length": (np.int32, ()),
    "crc32c": (np.uint32, ()),
    "sha256": (np.uint8, (32,)),
    "pixel_sha256": (np.uint8, (16,)),  # its first half: enough to tell pictures apart
    "pixel_sum": (np.int32, ()),  # up to 2048 x 2048 x 255
    "pixel_sum_squares": (np.int64, ()),
    "grey_low": (np.uint8, ()),
    "grey_high": (np.uint8, ()),
}
LOCATED = tuple(_LOCATED)
_DIGESTS = {"signature": _SIGNATURE_BYTES, "sha256": 32, "pixel_sha256": 32}  # written as text in an index
_WORK_COLUMNS: dict[str, pa.DataType] = {
    "image_id": pa.string(),
    "signature": pa.string(),
    "known": pa.list_(pa.string()),
    "name": pa.string(),
    "source": pa.binary(),  # without credentials; names of files need be no UTF-8
    "hidden": pa.int64(),  # its place in UnitSpec.hidden_sources; -1 where it has none
    "kind": pa.string(),
    "member": pa.string(),
    "offset": pa.int64(),
    "num_bytes": pa.int64(),
    "mtime_ns": pa.int64(),
    "version": pa.string(),
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
        name: version of the store and digest of the unit's images.
        num_images: how many images it covers.
        work: the work file, with the entries to read.
        row_group: which part of the work file is this unit's.
        image_format: size, codec and filter of the store.
        hidden_sources: URLs with credentials, which are in no file.
    """

    store: str
    name: str
    num_images: int
    work: WorkFile
    row_group: int
    image_format: ImageFormat
    hidden_sources: tuple[str, ...] = ()

    @property
    def records_path(self) -> str:
        """The TFRecord file."""
        return _unit_path(self.store, self.name, ".tfrecord")

    @property
    def index_path(self) -> str:
        """The Parquet index."""
        return _unit_path(self.store, self.name, ".parquet")

    @property
    def checksum_path(self) -> str:
        """The index's checksum, whose presence says that the unit is whole."""
        return _unit_path(self.store, self.name, ".sha256")


@dataclasses.dataclass(frozen=True)
class ImageStore:
    """A folder of units, all of one image format. Make it with `open_store`.

    Attributes:
        path: folder or URL.
        image_format: of its images.
        version: what its marker says; units of a version before ours are not read.
    """

    path: str
    image_format: ImageFormat
    version: int = STORE_VERSION

    @property
    def archive_folder(self) -> str:
        """Where what is known of .tar.gz sources is kept."""
        return storage.join(self.path, ARCHIVE_FOLDER)

    def lock(self) -> AbstractContextManager[locks.Lock]:
        """A context that keeps other commands from decoding into this store."""
        return locks.lock(storage.join(self.path, LOCK_FILE), f"the image store {self.path}")

    def _units(self) -> list[str]:
        return sorted(_whole_units(storage.list_names(self.path)))

    def _index(self, units: Sequence[str], columns: Sequence[str]) -> Iterator[tuple[pa.Table, np.ndarray]]:
        """Yields the rows of some units at a time, and of which unit each is, in their order.

        Digests are bytes there, not text.
        """

        def read_unit(unit: str) -> pa.Table | None:
            table = self._read_unit(unit, columns)
            return None if table is None else _with_bytes(table)

        for part in chunks(len(units), _UNITS_AT_ONCE):
            tables = dict(enumerate(self._read_units(units[part], read_unit), start=part.start))
            whole = {number: table for number, table in tables.items() if table is not None}
            if whole:
                lengths = [len(table) for table in whole.values()]
                yield pa.concat_tables(whole.values()), np.repeat(list(whole), lengths)

    def _read_units(
        self, units: Sequence[str], read: Callable[[str], pa.Table | None]
    ) -> list[pa.Table | None]:
        """Reads units; several at once far away, where each takes a round trip."""
        if not storage.is_url(self.path):  # what threads allocate here stays with them
            return list(map(read, units))
        with ThreadPoolExecutor(_READERS) as pool:
            return list(pool.map(read, units))

    def _read_unit(self, unit: str, columns: Sequence[str] = ()) -> pa.Table | None:
        """Columns of the index of a unit; None where it is not as it was written."""
        index, told = (_unit_path(self.path, unit, ending) for ending in (".parquet", ".sha256"))
        try:
            data = storage.read_bytes(index)
            if storage.read_bytes(told) != _checksum_line(data, index):
                return None
        except FileNotFoundError:  # a command that cleans has removed it
            return None
        schema = pa.schema([INDEX_SCHEMA.field(name) for name in columns])
        return read_parquet(data, columns).cast(schema)

    def locate(
        self,
        image_ids: Column,
        signatures: np.ndarray,
        columns: Sequence[str] = LOCATED,
        lost_as_rejected: bool = False,
    ) -> pa.Table:
        """Finds the images of a table that are settled: decoded, or rejected by the decoder that is here now.

        Args:
            image_ids: of the table.
            signatures: uint8 [num_images, 16], as `signatures` gives them; zeros where no file is at hand.
            columns: of `LOCATED`, what is to be told of decoded images.
            lost_as_rejected: whether to tell of images at hand that are not settled that they are rejected,
                and why: they could not be read, or not by the decoder that was there.

        Returns:
            A row for each image of the table: status ("ok", "rejected"; null of an image that is not at hand,
            or must be decoded), reason, unit, and the columns asked for.
        """
        search = _Search(signatures, columns)
        units = self._units()
        read = ["image_id", "signature", "sha256", "status", "reason", "decoder"]
        read += [name for name in columns if name not in read]
        for table, of_row in self._index(units, read):
            rows = rows_of(table["image_id"], image_ids)
            known = rows >= 0
            search.add(table if known.all() else table.filter(array_of(known)), of_row[known], rows[known])
        located = search.table(units, lost_as_rejected)
        give_back()
        return located

    def _contents(self, image_ids: Column, wanted: np.ndarray) -> dict[int, list[str]]:
        """The digests of the files of which there are records, for each row of wanted images."""
        contents: dict[int, list[str]] = {}
        for table, _ in self._index(self._units(), ["image_id", "sha256", "status"]):
            recorded = table.filter(array_of(equals(table["status"], OK)))
            rows = rows_of(recorded["image_id"], image_ids)
            known = np.flatnonzero((rows >= 0) & wanted[rows])
            digests = rows_of_bytes(recorded["sha256"])[known]
            for row, digest in zip(rows[known].tolist(), digests, strict=True):
                contents.setdefault(row, []).append(digest.tobytes().hex())
        return contents

    def clean(self) -> None:
        """Removes what killed workers left: temporary files, work files, parts of a unit.

        Call it with the lock held.
        """
        storage.remove_temporary(self.path)
        names = storage.list_names(self.path)
        whole = _whole_units(names)
        for name in names:
            unit = _unit_of(name)
            if name.startswith(".work-") or (
                unit is not None and unit.startswith(_UNIT_PREFIX) and unit not in whole
            ):
                storage.remove(storage.join(self.path, name))
        if ARCHIVE_FOLDER in names:
            storage.remove_temporary(self.archive_folder)

    def remove_damaged(self) -> list[str]:
        """Removes units whose index is not as it was written, so that their images are decoded again.

        Call it with the lock held.

        Returns:
            The paths of these indexes.
        """
        units = self._units()
        read = self._read_units(units, functools.partial(self._read_unit, columns=["status"]))
        damaged = [unit for unit, table in zip(units, read, strict=True) if table is None]
        for unit in damaged:
            for ending in reversed(UNIT_ENDINGS):
                storage.remove(_unit_path(self.path, unit, ending))
        return [_unit_path(self.path, unit, ".parquet") for unit in damaged]

    def upgrade(self) -> None:
        """Makes a store of a version before ours one of ours; its units stay, and are read no more.

        Call it with the lock held.
        """
        if self.version != STORE_VERSION:
            marker = _marker(self.image_format)
            storage.write_bytes(storage.join(self.path, STORE_FILE), marker)

    def has_outdated(self) -> bool:
        """Tells whether there are units of a version before ours."""
        return bool(_outdated_units(storage.list_names(self.path)))

    def count_outdated(self) -> int:
        """Returns how many images are in units of a version before ours."""
        units = _outdated_units(storage.list_names(self.path))
        return len(set().union(*(self._images_of_outdated(unit) for unit in units)))

    def remove_outdated(self) -> int:
        """Removes units of a version before ours of which every image has been decoded, or rejected, anew.

        Call it with the lock held.

        Returns:
            How many images are in those that stay, because their files were not at hand.
        """
        settled: set[str] = set()
        for table, _ in self._index(self._units(), ["image_id", "status"]):
            image_ids: Column = table["image_id"].filter(array_of(~equals(table["status"], UNREADABLE)))
            settled.update(image_ids.to_pylist())
        kept: set[str] = set()
        for unit in sorted(_outdated_units(storage.list_names(self.path))):
            images = self._images_of_outdated(unit)
            if images <= settled:
                for ending in reversed(UNIT_ENDINGS):
                    storage.remove(_unit_path(self.path, unit, ending))
            else:
                kept |= images
        return len(kept)

    def _images_of_outdated(self, unit: str) -> set[str]:
        """The images that a unit of a version before ours holds; none where its index is damaged."""
        path = _unit_path(self.path, unit, ".parquet")
        if not storage.exists(path):
            return set()
        data = storage.read_bytes(path)
        try:
            columns = read_parquet(data).select(["image_id", "status"]).to_pydict()
        except (pa.ArrowException, OSError, KeyError):
            return set()
        pairs = zip(columns["image_id"], columns["status"], strict=True)
        return {image_id for image_id, status in pairs if status == OK}

    def plan_units(
        self, files: ImageFiles, pending: np.ndarray, signatures: np.ndarray, num_images: int | None = None
    ) -> list[UnitSpec]:
        """Cuts images to decode into units and writes down what each has to read.

        The order is that of the sources, so that an archive is read from front to back. What is left
        after a kill is cut at the same places.

        Args:
            files: of the images of a table.
            pending: bool [num_images], which of them to decode.
            signatures: of the same images, as `signatures` gives them.
            num_images: images at hand in all, from which follows the size of a unit; those pending when None.
        """
        order = files.reading_order(pending)
        if not len(order):
            return []
        least, most = UNIT_IMAGES
        size = min(most, max(least, -(-(num_images or len(order)) // UNITS)))
        known = self._contents(files.image_ids, pending)
        taken = set(self._units())
        cuts = (_Cut.of(order[part], files, signatures, known) for part in chunks(len(order), size))
        units: list[tuple[str, int, tuple[str, ...]]] = []

        def tables() -> Iterator[pa.Table]:
            for cut in cuts:
                hidden = cut.hidden_sources()
                units.append((_unit_name(self.image_format, cut, taken), len(cut.image_ids), hidden))
                yield cut.table(hidden)

        first = next(work := tables())
        path = storage.join(self.path, f".work-{units[0][0]}.parquet")
        written = write_work(path, _WORK_SCHEMA, itertools.chain([first], work))
        return [
            UnitSpec(self.path, name, count, written, place, self.image_format, hidden)
            for place, (name, count, hidden) in enumerate(units)
        ]


@dataclasses.dataclass(frozen=True)
class _Cut:
    """The images of one unit to decode, in their order: names, signatures, digests known, and files."""

    image_ids: list[str]
    signatures: list[str]
    known: list[list[str]]
    files: list[list[Entry]]

    @classmethod
    def of(
        cls, rows: np.ndarray, files: ImageFiles, signatures: np.ndarray, known: Mapping[int, list[str]]
    ) -> "_Cut":
        """Takes these rows of the table."""
        return cls(
            files.image_ids.take(array_of(rows)).to_pylist(),
            [signature.tobytes().hex() for signature in signatures[rows]],
            [known.get(row, []) for row in rows.tolist()],
            files.files(rows),
        )

    def hidden_sources(self) -> tuple[str, ...]:
        """Those that have credentials, sorted."""
        sources = {entry.source for entries in self.files for entry in entries}
        return tuple(sorted(source for source in sources if storage.redacted(source) != source))

    def table(self, hidden: Sequence[str]) -> pa.Table:
        """What a worker reads: a row for each file."""
        images = zip(self.image_ids, self.signatures, self.known, self.files, strict=True)
        rows = [
            (
                *about,
                entry.name,
                os.fsencode(storage.redacted(entry.source)),
                hidden.index(entry.source) if entry.source in hidden else -1,
                *entry[2:],
            )
            for *about, entries in images
            for entry in entries
        ]
        columns = zip(*rows, strict=True)
        kinds = _WORK_COLUMNS.items()
        return pa.table({n: array_of(c, kind) for (n, kind), c in zip(kinds, columns, strict=True)})


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
    if storage.exists(marker_path):
        marker = _read_marker(marker_path)
        version = marker["version"]
        if version > STORE_VERSION:
            raise UsageError(
                f"`store={path}` holds {_describe(marker)} of store version {version}, later than the "
                f"{STORE_VERSION} known here; use another `store`, or a newer cxr_records"
            )
        wanted = dataclasses.asdict(image_format)
        if any(marker[name] != value for name, value in wanted.items()):
            raise UsageError(
                f"`store={path}` holds {_describe(marker)}, asked for {_describe(wanted)}; "
                "use another `store`, or the same `size`, `codec` and `resample`"
            )
        return ImageStore(path, image_format, version)
    strangers = [name for name in storage.list_names(path) if not is_litter(name)]
    if strangers:
        raise UsageError(
            f"`store={path}` is not empty and no image store (it holds {strangers[0]}); name another"
        )
    if not create:
        return None
    storage.make_folder(path)
    storage.write_bytes(marker_path, _marker(image_format))
    return ImageStore(path, image_format)


def signature(entries: Iterable[Entry]) -> str:
    """Returns what identifies the files of one image without reading them: where they are, size and version.

    Two sets of images have names in common, and may have sizes and times of change in common.
    """
    files = sorted(
        (unsigned(entry.source), entry.member, entry.offset, entry.num_bytes, entry.version)
        for entry in entries
    )
    return hashlib.sha256(repr(files).encode()).hexdigest()[: 2 * _SIGNATURE_BYTES]


def signatures(files: ImageFiles) -> np.ndarray:
    """Returns the signature of each image of a table: uint8 [num_images, 16], zeros where it has no file."""
    told = np.zeros((len(files.image_ids), _SIGNATURE_BYTES), np.uint8)
    for rows, of_images in files.parts():
        text = "".join(map(signature, of_images))
        told[rows] = np.frombuffer(bytes.fromhex(text), np.uint8).reshape(len(rows), -1)
    return told


class _Search:
    """The images of a table as an index tells of them, whose rows come some at a time, sorted by unit.

    Args:
        signatures: as for `ImageStore.locate`.
        columns: the same.
    """

    def __init__(self, signatures: np.ndarray, columns: Sequence[str]):
        count = len(signatures)
        self._signatures = signatures.view(np.uint64)
        self._at_hand = np.asarray(self._signatures.any(axis=1))
        # The best row with an image's signature: its rank, and of which bytes it tells. Of a digest the first
        # eight bytes are held: it is compared with those of the few other files that an image had.
        self._rank = np.full(count, len(_RANKS), np.int8)
        self._content = np.zeros(count, np.uint64)
        # The first record of each image, of which bytes it is; and those of other bytes.
        self._has_record = np.zeros(count, bool)
        self._unit = np.zeros(count, np.int32)
        self._told = {name: np.zeros((count, *_LOCATED[name][1]), _LOCATED[name][0]) for name in columns}
        digests = self._told.get("sha256")
        self._recorded = np.zeros(count, np.uint64) if digests is None else digests.view(np.uint64)[:, 0]
        self._others: list[tuple[np.ndarray, np.ndarray, np.ndarray, dict[str, np.ndarray]]] = []
        self._reasons: dict[int, str] = {}
        self._unsettled: dict[int, tuple[str, str]] = {}  # why an image is not settled: status and reason

    def add(self, table: pa.Table, unit: np.ndarray, rows: np.ndarray) -> None:
        """Takes rows of the index.

        Args:
            table: rows of the index of images of the table.
            unit: number of the unit of each.
            rows: of the images in the table.
        """
        rank = pc.index_in(table["status"], value_set=array_of(_RANKS)).to_numpy()
        digests = rows_of_bytes(table["sha256"])
        content = digests.view(np.uint64)[:, 0]
        wanted = self._signatures[rows]
        differs: np.ndarray = rows_of_bytes(table["signature"]).view(np.uint64) != wanted
        same: np.ndarray = self._at_hand[rows] & ~differs.any(axis=1)
        # What one decoder rejected, another may be able to read.
        ours = equals(table["decoder"], decoder_version())
        settled: np.ndarray = same & (
            (rank <= _RANKS.index(SAME)) | ((rank == _RANKS.index(REJECTED)) & ours)
        )
        better = _first_of_each(rows, rank, settled & (rank < self._rank[rows]))
        self._rank[rows[better]], self._content[rows[better]] = rank[better], content[better]
        for place in better[rank[better] == _RANKS.index(REJECTED)].tolist():
            self._reasons[int(rows[place])] = table["reason"][place].as_py()
        for place in np.flatnonzero(same & ~settled).tolist():
            row, status = int(rows[place]), table["status"][place].as_py()
            if row not in self._unsettled or self._unsettled[row][0] <= status:
                self._unsettled[row] = status, table["reason"][place].as_py()

        has_record = rank == _RANKS.index(OK)
        new = _first_of_each(rows, rank, has_record & ~self._has_record[rows])
        self._has_record[rows[new]] = True
        values = {name: digests if name == "sha256" else _values(table[name], name) for name in self._told}
        self._hold(rows[new], content[new], unit[new], {name: column[new] for name, column in values.items()})
        other = np.flatnonzero(has_record & (content != self._recorded[rows]))
        if len(other):
            kept = {name: column[other] for name, column in values.items()}
            self._others.append((rows[other], content[other], unit[other], kept))

    def _hold(
        self, rows: np.ndarray, content: np.ndarray, unit: np.ndarray, values: Mapping[str, np.ndarray]
    ) -> None:
        """Tells of images by records of theirs."""
        for name, column in values.items():
            self._told[name][rows] = column
        self._recorded[rows], self._unit[rows] = content, unit

    def table(self, units: Sequence[str], lost_as_rejected: bool) -> pa.Table:
        """Returns what `ImageStore.locate` does, once all rows were added; call it once.

        Args:
            units: names of the numbers.
            lost_as_rejected: as there.
        """
        wanted = self._rank <= _RANKS.index(SAME)
        for rows, content, unit, values in self._others:
            lacking = wanted[rows] & (self._recorded[rows] != self._content[rows])
            found = _first_of_each(rows, unit, lacking & (content == self._content[rows]))
            here = {name: column[found] for name, column in values.items()}
            self._hold(rows[found], content[found], unit[found], here)
        decoded = wanted & self._has_record & (self._recorded == self._content)
        rejected = self._rank == _RANKS.index(REJECTED)
        if lost_as_rejected:
            for row in np.flatnonzero(self._at_hand & ~decoded & ~rejected).tolist():
                rejected[row] = True
                self._reasons[row] = self._unsettled.get(row, ("", ""))[1]
        reasons = {row: text for row, text in self._reasons.items() if rejected[row]}
        texts = list(dict.fromkeys(["", *reasons.values()]))
        code_of = {text: code for code, text in enumerate(texts)}
        reason = np.zeros(len(decoded), np.int32)
        reason[list(reasons)] = [code_of[text] for text in reasons.values()]
        status = array_of(rejected.astype(np.int8), mask=~(decoded | rejected))
        columns: dict[str, Column] = {
            "status": pa.DictionaryArray.from_arrays(status, array_of([OK, REJECTED])),
            "reason": pa.DictionaryArray.from_arrays(array_of(reason), array_of(texts)),
            "unit": pa.DictionaryArray.from_arrays(
                array_of(self._unit, mask=~decoded), array_of(units, pa.string())
            ),
        }
        for name in list(self._told):
            told = self._told.pop(name)
            told[~decoded] = 0
            columns[name] = whole_bytes(told) if told.ndim > 1 else array_of(told)
        return pa.table(columns)


def _first_of_each(rows: np.ndarray, rank: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Returns for each number in rows the first wanted place that has it, of those the one of least rank."""
    places = np.flatnonzero(wanted)
    places = places[np.argsort(rank[places], kind="stable")]
    found: np.ndarray = places[np.unique(rows[places], return_index=True)[1]]
    return found


def _with_bytes(table: pa.Table) -> pa.Table:
    """Rows of an index with digests as bytes; zeros where there are none."""
    for name, num_bytes in _DIGESTS.items():
        if name in table.column_names:
            text: Column = table[name]
            values = from_hex(text.fill_null("0" * 2 * num_bytes), num_bytes)
            table = table.set_column(table.column_names.index(name), name, whole_bytes(values))
    return table


def _values(column: Column, name: str) -> np.ndarray:
    """A column of an index as `_LOCATED` says."""
    kind, shape = _LOCATED[name]
    if shape:
        return rows_of_bytes(column)[:, : shape[0]]
    values: np.ndarray = column.fill_null(0).to_numpy().astype(kind)
    return values


def write_unit(spec: UnitSpec) -> None:
    """Decodes one unit: records, their index, its checksum. Done already, or done twice, changes nothing.

    An image that cannot be decoded has a row with its reason and no record; the others are unaffected.
    """
    if all(map(storage.exists, (spec.checksum_path, spec.index_path, spec.records_path))):
        return
    work = read_work(spec.work, spec.row_group)
    for row in work:
        if row["hidden"] >= 0:
            row["source"] = os.fsencode(spec.hidden_sources[row["hidden"]])
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
    out = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, INDEX_SCHEMA), out)
    storage.write_bytes(spec.index_path, out.getvalue())
    storage.write_bytes(spec.checksum_path, _checksum_line(out.getvalue(), spec.index_path))


def fetch_images(store: str, places: Sequence[Place]) -> list[bytes]:
    """Reads stored images, in the order asked for; all at once.

    Raises:
        CxrError: an image is damaged; the message names the file and what to do.
    """
    paths = [_unit_path(store, place.unit, ".tfrecord") for place in places]
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
    fields = ({name: row[name] for name in Entry._fields} for row in rows)
    entries = [Entry(**{**values, "source": os.fsdecode(values["source"])}) for values in fields]
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
        "decoder": decoder_version(),
        "status": OK,
        "reason": "",
    }
    try:
        data = reader.read(first)
        digest = hashlib.sha256(data).hexdigest()
        for other in entries[1:]:
            if hashlib.sha256(reader.read(other)).hexdigest() != digest:
                both = " and ".join(_told_apart(first, other))
                raise ImageDecodeError(f"{len(entries)} files of this name differ in their bytes: {both}")
        row["sha256"] = digest
        if digest in rows[0]["known"]:
            return row | {"status": SAME}, None
        image = decode_image(data, image_format)
    except SourceReadError as error:
        return row | {"status": UNREADABLE, "reason": str(error)}, None
    except ImageDecodeError as error:
        return row | {"status": REJECTED, "reason": str(error)}, None
    row |= {"width": image.width, "height": image.height, "mode": image.mode}
    return row | _pixel_columns(image.pixels), image.pixels


def _told_apart(one: Entry, other: Entry) -> tuple[str, str]:
    """Two entries for people; an archive may hold a name twice."""
    if one.label != other.label:
        return one.label, other.label
    return f"{one.label} at byte {one.offset:,}", f"at byte {other.offset:,}"


def _pixel_columns(pixels: np.ndarray) -> dict[str, str | int]:
    """What the index tells of uint8 pixels [size, size]."""
    count = np.bincount(pixels.ravel(), minlength=256)
    level, darker = np.arange(256), np.cumsum(count)
    low, high = np.searchsorted(darker, (_FEW * pixels.size, _MOST * pixels.size))
    return {
        "pixel_sha256": hashlib.sha256(pixels.tobytes()).hexdigest(),
        "pixel_sum": int(count @ level),
        "pixel_sum_squares": int(count @ level**2),
        "grey_low": int(low),
        "grey_high": int(high),
    }


def _unit_name(image_format: ImageFormat, cut: _Cut, taken: Set[str]) -> str:
    """Names a unit after its images; a unit that is there already did not settle them, so not like it."""
    images = map(" ".join, zip(cut.image_ids, cut.signatures, strict=True))
    text = "\n".join([repr(image_format), *images])
    name = ""
    while not name or name in taken:
        text = hashlib.sha256(text.encode()).hexdigest()
        name = _UNIT_PREFIX + text[:16]
    return name


def _unit_path(store: str, unit: str, ending: str) -> str:
    return storage.join(store, f"unit-{unit}{ending}")


def _unit_of(name: str) -> str | None:
    """The unit to which a file belongs, None where it belongs to none."""
    unit, ending = os.path.splitext(name)
    return unit.removeprefix("unit-") if unit.startswith("unit-") and ending in UNIT_ENDINGS else None


def _whole_units(names: Iterable[str]) -> set[str]:
    """The units of our version of which every file is there."""
    count = collections.Counter(map(_unit_of, names))
    return {
        unit
        for unit, files in count.items()
        if unit is not None and unit.startswith(_UNIT_PREFIX) and files == len(UNIT_ENDINGS)
    }


def _outdated_units(names: Iterable[str]) -> set[str]:
    """The units of versions before ours; the names of the first one's have no version."""
    return {unit for unit in map(_unit_of, names) if unit and not unit.startswith(_UNIT_PREFIX)}


def _checksum_line(data: bytes, path: str) -> bytes:
    """What `sha256sum` prints of a file, and `sha256sum -c` checks."""
    return f"{hashlib.sha256(data).hexdigest()}  {path.rsplit('/', 1)[-1]}\n".encode()


def _marker(image_format: ImageFormat) -> bytes:
    content = {"version": STORE_VERSION, **dataclasses.asdict(image_format)}
    return (json.dumps({**content, "checksum": _marker_checksum(content)}, indent=1) + "\n").encode()


def _marker_checksum(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def _read_marker(path: str) -> dict[str, Any]:
    try:
        marker: dict[str, Any] = json.loads(storage.read_bytes(path))
        told = marker.pop("checksum", None)  # the first version had none
        known = {"version", *(field.name for field in dataclasses.fields(ImageFormat))}
        whole = told == _marker_checksum(marker) if told or marker["version"] != 1 else set(marker) == known
        if not whole or not known <= set(marker) or not isinstance(marker["version"], int):
            raise ValueError(path)
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UsageError(f"{path} is damaged; delete the store, or name another with `store`") from None
    return marker


def _describe(marker: Mapping[str, Any]) -> str:
    return f"{marker['size']}x{marker['size']} {marker['codec']} images ({marker['resample']})"
