"""What a source is: images in folders, archives and single files, local or on any fsspec URL.

Listing them, joining them to the table by file name, and reading one.
"""

import contextlib
import itertools
import os
import stat
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from types import TracebackType
from typing import Any, ClassVar, NamedTuple, overload

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cxr_records import storage
from cxr_records.archives import (
    ARCHIVE_ENDINGS,
    Member,
    NoArchiveError,
    archive_kind,
    list_members,
    named_kind,
    open_archive,
)
from cxr_records.columns import Column, array_of, chunks, give_back, rows_of
from cxr_records.errors import UsageError
from cxr_records.names import IMAGE_ENDINGS, base_name, has_image_ending, is_litter, stem
from cxr_records.urls import name_of, redacted_text

MAX_FILE_BYTES = 256 << 20  # no X-ray file is near 256 MiB; a larger one is damage or an attack


class Entry(NamedTuple):
    """One file that may hold an image.

    Attributes:
        name: file name without folders.
        source: path or URL of the file, or of the archive that holds it.
        kind: "file", "zip", "tar" or "targz".
        member: its name in the archive; "" for a file.
        offset: first byte in the (inflated) tar, of the header in a zip; 0 otherwise.
        num_bytes: its size; 0 where the storage does not say.
        mtime_ns: when the file, or the archive, was changed last; 0 where the storage does not say.
        version: of the file, or the archive: `storage.FileState.version`; where its storage tells none, a
            text that no other listing gives, so that it is never taken for what it was before.
    """

    name: str
    source: str
    kind: str
    member: str
    offset: int
    num_bytes: int
    mtime_ns: int
    version: str

    @property
    def label(self) -> str:
        """The entry for people: the path without credentials, with the name in the archive after it.

        What is no UTF-8 is escaped.
        """
        source = os.fsencode(storage.redacted(self.source)).decode(errors="backslashreplace")
        return f"{source}:{self.member}" if self.member else source


class _Place(NamedTuple):
    """What many entries have in common: a folder of files, or of an archive's members.

    Attributes:
        kind: as `Entry.kind`.
        source: of files, what stands before their names; else the archive.
        member: what stands before the members' names.
        mtime_ns: of an archive; 0 of a folder, whose files have their own.
        version: the same; "".
    """

    kind: str
    source: str
    member: str
    mtime_ns: int
    version: str


class Entries(Sequence[Entry]):
    """Entries as columns, which take a tenth of the memory of the objects; these are made when asked for.

    Args:
        entries: in the order in which they are listed.
    """

    _BATCH = 1 << 13  # entries that are packed together
    _COLUMNS: ClassVar[dict[str, pa.DataType | None]] = {
        "place": None,  # whole numbers are of the smallest type that holds those of a batch
        "tail": pa.binary(),  # of the source of a file, or of a member: what follows its place
        "name": pa.binary(),  # null where it is the tail
        "offset": None,
        "num_bytes": None,
        "mtime_ns": None,  # of a file, and so are the next
        # The end of a version as `storage.local_state` writes it: it begins with size and mtime_ns.
        "ctime_ns": None,
        "inode": None,
        "version": pa.binary(),  # where it is another
    }

    def __init__(self, entries: Iterable[Entry] = ()):
        self._places: list[_Place] = []
        self._number_of: dict[tuple[Any, ...], int] = {}
        self._packed: list[pa.RecordBatch] = []
        self._last: list[Entry] = []  # fewer than make a batch
        self.extend(entries)

    def extend(self, entries: Iterable[Entry]) -> None:
        """Appends entries."""
        for entry in entries:
            self._last.append(entry)
            if len(self._last) == self._BATCH:
                self._packed.append(self._pack(self._last))
                self._last = []

    def __len__(self) -> int:
        return len(self._packed) * self._BATCH + len(self._last)

    def __iter__(self) -> Iterator[Entry]:
        return itertools.chain(*map(self._unpack, self._packed), self._last)

    @overload
    def __getitem__(self, at: int) -> Entry: ...
    @overload
    def __getitem__(self, at: slice) -> list[Entry]: ...
    def __getitem__(self, at: int | slice) -> Entry | list[Entry]:
        numbers = range(len(self))[at]
        return self.take([numbers])[0] if isinstance(numbers, int) else self.take(numbers)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Entries) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]  # like a list

    def take(self, numbers: Any) -> list[Entry]:
        """Returns the entries of these numbers, in this order."""
        wanted = np.asarray(numbers, np.int64)
        places, batch_of = wanted % self._BATCH, wanted // self._BATCH
        order = np.argsort(batch_of, kind="stable")
        taken: list[Entry] = []
        for batch in np.unique(batch_of).tolist():
            here = places[batch_of == batch]
            if batch < len(self._packed):
                taken.extend(self._unpack(self._packed[batch].take(array_of(here))))
            else:
                taken.extend(self._last[place] for place in here.tolist())
        back = np.empty(len(order), np.int64)
        back[order] = np.arange(len(order))
        return [taken[place] for place in back.tolist()]

    def names(self) -> Column:
        """The names as bytes of UTF-8; what is no text in a name is none there either."""

        def of(batch: pa.RecordBatch) -> Column:
            if batch["name"].null_count == len(batch):
                return batch["tail"]  # as it is, without a copy
            return pc.coalesce(batch["name"], batch["tail"])

        return pa.chunked_array(list(map(of, self._batches())), pa.binary())

    def reading_order(self) -> np.ndarray | None:
        """Returns the numbers of the entries in the order in which they are read; None where that is theirs.

        Files go first, by folder and name; members of an archive by their place in it.
        """
        batches = list(self._batches())  # first, as packing the last one finds places
        sources = [(place.kind != "file", place.source) for place in self._places]
        rank_of = {source: rank for rank, source in enumerate(sorted(set(sources)))}
        rank = np.array([rank_of[source] for source in sources], np.int32)
        keys: list[tuple[np.ndarray, np.ndarray, Column]] = []
        ordered, last = True, (-1, -1, b"")
        for batch in batches:
            ranks, offsets, tails = rank[batch["place"]], batch["offset"].to_numpy(), batch["tail"]
            keys.append((ranks, offsets, tails))
            ends = [(int(ranks[at]), int(offsets[at]), tails[at].as_py()) for at in (0, -1)]
            same = (ranks[1:] == ranks[:-1]) & (offsets[1:] == offsets[:-1])
            rising = pc.less_equal(tails[:-1], tails[1:]).to_numpy(zero_copy_only=False)
            further = (ranks[1:] > ranks[:-1]) | ((ranks[1:] == ranks[:-1]) & (offsets[1:] > offsets[:-1]))
            ordered = ordered and last <= ends[0] and bool((further | (same & rising)).all())
            last = ends[1]
        if ordered:
            return None
        columns: dict[str, Any] = {
            "rank": pa.chunked_array([array_of(ranks) for ranks, _, _ in keys], pa.int32()),
            "offset": pa.chunked_array([array_of(offsets, pa.int64()) for _, offsets, _ in keys], pa.int64()),
            "tail": pa.chunked_array([tails for _, _, tails in keys], pa.binary()),
        }
        sort: Any = pc.sort_indices
        order: np.ndarray = sort(
            pa.table(columns), sort_keys=[(name, "ascending") for name in columns]
        ).to_numpy()
        return order.astype(np.int32)

    def distinct(self) -> "Entries":
        """Returns the entries without those that are there before, in the same order."""
        keys, counts = np.unique(np.fromiter(map(hash, self), np.int64, len(self)), return_counts=True)
        several = set(keys[counts > 1].tolist())
        if not several:
            return self
        seen: set[Entry] = set()

        def is_new(entry: Entry) -> bool:
            if hash(entry) not in several:
                return True
            before = len(seen)
            seen.add(entry)
            return len(seen) > before

        return Entries(filter(is_new, self))

    def _batches(self) -> Iterator[pa.RecordBatch]:
        yield from self._packed
        if self._last:
            yield self._pack(self._last)

    def _pack(self, entries: Sequence[Entry]) -> pa.RecordBatch:
        columns = zip(*map(self._row, entries), strict=True)
        kinds = self._COLUMNS.values()
        arrays = [
            array_of(values, kind or _smallest(values)) for values, kind in zip(columns, kinds, strict=True)
        ]
        return pa.RecordBatch.from_arrays(arrays, names=list(self._COLUMNS))

    def _row(self, entry: Entry) -> tuple[Any, ...]:
        name, source, kind, member, offset, num_bytes, mtime_ns, version = entry
        path = source if kind == "file" else member
        cut = path.rfind("/") + 1
        before, tail = path[:cut], path[cut:]
        place = (kind, before, member, 0, "") if kind == "file" else (kind, source, before, mtime_ns, version)
        number = self._number_of.setdefault(place, len(self._places))
        if number == len(self._places):
            self._places.append(_Place(*place))
        row = (number, _to_bytes(tail), None if name == tail else _to_bytes(name), offset, num_bytes)
        if kind != "file":
            return (*row, 0, 0, 0, None)
        *_, last, end = "0", "0", *filter(str.isdecimal, version.split("-"))
        ctime_ns, inode = min(int(last), _MOST), min(int(end), _MOST)
        same = version == f"{num_bytes}-{mtime_ns}-{ctime_ns}-{inode}"
        return (*row, mtime_ns, ctime_ns, inode, None if same else _to_bytes(version))

    def _unpack(self, batch: pa.RecordBatch) -> Iterator[Entry]:
        columns = zip(*(column.to_pylist() for column in batch.columns), strict=True)
        for number, end, other, offset, num_bytes, mtime_ns, ctime_ns, inode, told in columns:
            kind, source, member, mtime_of_archive, version = self._places[number]
            tail = _to_text(end)
            name = tail if other is None else _to_text(other)
            if kind != "file":
                yield Entry(name, source, kind, member + tail, offset, num_bytes, mtime_of_archive, version)
                continue
            version = f"{num_bytes}-{mtime_ns}-{ctime_ns}-{inode}" if told is None else _to_text(told)
            yield Entry(name, source + tail, kind, member, offset, num_bytes, mtime_ns, version)


def _smallest(values: Sequence[int]) -> pa.DataType:
    low, high = min(values), max(values)
    kinds = ((8, pa.int8()), (16, pa.int16()), (32, pa.int32()))
    return next(
        (kind for bits, kind in kinds if -(1 << bits - 1) <= low and high < 1 << bits - 1), pa.int64()
    )


_MOST = 2**63 - 1  # of a whole number in a column


def _to_bytes(text: str) -> bytes:
    """Any text, sorted as it was: names of files need be no UTF-8, and hold surrogates then."""
    return text.encode("utf-8", "surrogatepass")


def _to_text(data: bytes) -> str:
    return data.decode("utf-8", "surrogatepass")


class SourceReadError(Exception):
    """An entry could not be read: a fault of the disk, the archive or the network, not of the image."""


class Listing(NamedTuple):
    """What the sources hold: entries of image files, and what was found damaged on the way."""

    entries: Entries
    warnings: list[str]


def list_sources(
    paths: Sequence[str],
    index_folder: str | None = None,
    keep_index: bool = True,
    on_archive: Callable[[str], None] = lambda path: None,
) -> Listing:
    """Lists every image file in the given folders, archives, files and URLs, in a fixed order.

    Args:
        paths: any mix; a name with * or ? stands for all that match.
        index_folder: where indexes of .tar.gz files are kept between runs.
        keep_index: whether to write there; without it, indexes that are there are used and none is made.
        on_archive: called with the path before an archive is read through.

    Raises:
        UsageError: a path is not there, is of a kind that we do not read, or holds no image.
    """
    entries = Entries()
    warnings: list[str] = []
    listed = 0
    for pattern in paths:
        if "::" in pattern:
            raise UsageError(f"`images={pattern}`: chained URLs are not read; name the archive itself")
        whole = storage.absolute(pattern)
        matching = [path for path in storage.expand(whole) if not is_litter(_below(whole, path))]
        if not matching:
            raise UsageError(f"`images={pattern}`: nothing matches")
        for path in matching:
            before = len(entries), len(warnings)
            entries.extend(_list_path(path, index_folder, keep_index, on_archive, warnings))
            listed += 1
            if (len(entries), len(warnings)) == before:
                raise UsageError(f"`images={path}`: {_nothing_found(path)}")
    return Listing(entries.distinct() if listed > 1 else entries, warnings)  # a path may be named twice


class ImageFiles:
    """The files of the images of a table.

    Args:
        image_ids: of the table.
        entries: all that were listed.
        rows: int32 [entries], the row of the table whose image each entry is; -1 where it is none.

    Attributes:
        image_ids: of the table.
        present: bool [num_images], whether there is a file of the image.
    """

    def __init__(self, image_ids: Column, entries: Entries, rows: np.ndarray):
        self.image_ids = image_ids
        self._entries = entries
        counts = np.bincount(rows[rows >= 0], minlength=len(image_ids))
        self.present: np.ndarray = counts > 0
        numbers = np.argsort(rows, kind="stable")[np.count_nonzero(rows < 0) :]
        self._numbers = numbers.astype(np.int32)  # of the entries, image by image
        self._ends = np.cumsum(counts, dtype=np.int32)
        # Several files of an image are in the order of their entries, whatever order they were listed in.
        for row in np.flatnonzero(counts > 1).tolist():
            here = slice(self._ends[row] - counts[row], self._ends[row])
            its = self._numbers[here].tolist()
            told = dict(zip(its, entries.take(its), strict=True))
            self._numbers[here] = sorted(its, key=told.__getitem__)

    def __len__(self) -> int:
        """How many images have files."""
        return int(np.count_nonzero(self.present))

    def files(self, rows: Any) -> list[list[Entry]]:
        """Returns the files of each of these rows of the table."""
        ends, counts = self._ends[rows], self._counts(rows)
        within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        entries = iter(self._entries.take(self._numbers[np.repeat(ends - counts, counts) + within]))
        return [list(itertools.islice(entries, count)) for count in counts.tolist()]

    def parts(self) -> Iterator[tuple[np.ndarray, list[list[Entry]]]]:
        """Yields rows of the table and their files, some at a time, in the order of the list."""
        rows = self._first_files(self.present)
        rows = rows[rows >= 0]
        for part in chunks(len(rows), 1 << 13):
            yield rows[part], self.files(rows[part])

    def reading_order(self, wanted: np.ndarray) -> np.ndarray:
        """Returns the rows of wanted images, bool [num_images], in the order in which they are read."""
        rows = self._first_files(wanted)
        if (order := self._entries.reading_order()) is not None:
            rows = rows[order]
        found: np.ndarray = rows[rows >= 0]
        return found

    def _first_files(self, wanted: np.ndarray) -> np.ndarray:
        """For each entry the row of the wanted image whose first file it is; else -1: int32 [entries]."""
        chosen = wanted & self.present
        counts = np.diff(self._ends, prepend=np.int32(0))
        firsts = self._numbers[(self._ends - counts)[chosen]]
        row_of = np.full(len(self._entries), -1, np.int32)
        row_of[firsts] = np.flatnonzero(chosen)
        return row_of

    def forget(self) -> None:
        """Forgets all but how many there are, once the files are read."""
        self._entries, self._numbers, self._ends = Entries(), np.empty(0, np.int32), np.empty(0, np.int32)
        give_back()

    def _counts(self, rows: Any) -> np.ndarray:
        """How many files each of these images has."""
        before = np.where(np.asarray(rows) > 0, self._ends[np.asarray(rows) - 1], 0)
        counts: np.ndarray = self._ends[rows] - before
        return counts


def match_entries(entries: Entries, image_ids: Column) -> tuple[ImageFiles, np.ndarray]:
    """Joins entries to a table by file name; returns the images' files, and numbers of entries of no image.

    A file whose name differs in its ending alone (a DICOM of the same image) matches too, where the
    exact name is nowhere. Several entries of one image are kept in a fixed order.
    """
    names, ids = entries.names(), image_ids.cast(pa.binary())
    rows = rows_of(names, ids)
    by_name = np.zeros(len(image_ids) + 1, bool)  # the last is for those of no image
    by_name[rows[rows >= 0]] = True
    others = np.flatnonzero(rows < 0)
    if len(others):
        stems = _stems(image_ids)
        for part in chunks(len(others), max(1 << 16, len(image_ids) // 10)):
            found = _row_of_others(names.take(array_of(others[part])), ids, stems)
            rows[others[part]] = np.where(by_name[found], -1, found)
    return ImageFiles(image_ids, entries, rows), np.flatnonzero(rows < 0)


def _stems(image_ids: Column) -> Column:
    parts = (image_ids[part].to_pylist() for part in chunks(len(image_ids)))
    return pa.chunked_array([array_of(map(_stem, part), pa.binary()) for part in parts], pa.binary())


def _stem(name: str) -> bytes:
    return _to_bytes(stem(name))


def _row_of_others(names: Column, ids: Column, stems: Column) -> np.ndarray:
    """As `names.ImageNames.find` does it, for names that are no image's: by what is in them, or the stem."""
    bases = [base_name(_to_text(name).strip()) for name in names.to_pylist()]
    rows = rows_of(array_of(map(_to_bytes, bases), pa.binary()), ids)
    of_stem = rows_of(array_of(map(_stem, bases), pa.binary()), stems)
    return np.where(rows >= 0, rows, of_stem)


class SourceReader:
    """Reads entries; keeps the archive that it read last open, so that units of one archive are cheap.

    Args:
        index_folder: where `list_sources` kept the indexes of .tar.gz files.
    """

    def __init__(self, index_folder: str | None):
        self._index_folder = index_folder
        self._archive: tuple[str, str] | None = None  # path and version of the open archive
        self._read_member: Callable[[Member], bytes] | None = None
        self._open = contextlib.ExitStack()

    def __enter__(self) -> "SourceReader":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._open.close()

    def read(self, entry: Entry) -> bytes:
        """Returns the bytes of an entry.

        Raises:
            SourceReadError: with the reason, which names no path; also where the file or archive is not what
                was listed, or changes while it is read.
        """
        if entry.num_bytes > MAX_FILE_BYTES:
            raise SourceReadError(f"{entry.num_bytes:,} bytes, more than the {MAX_FILE_BYTES:,} allowed")
        try:
            return self._read_file(entry) if entry.kind == "file" else self._read_archived(entry)
        except (MemoryError, SourceReadError):
            raise
        except Exception as error:  # which one an archive or a network raises is no contract
            reason = (
                getattr(error, "strerror", None) or str(error).split(entry.source)[0] or type(error).__name__
            )
            raise SourceReadError(f"cannot be read: {redacted_text(' '.join(reason.split()))}") from error

    def _read_file(self, entry: Entry) -> bytes:
        with storage.open_read(entry.source) as file:
            _check_version(entry, storage.opened_version(file))
            data = file.read((entry.num_bytes or MAX_FILE_BYTES) + 1)
            if entry.num_bytes and len(data) != entry.num_bytes:
                raise SourceReadError(_CHANGED)
            _check_version(entry, storage.opened_version(file))
        if len(data) > MAX_FILE_BYTES:
            raise SourceReadError(f"more than the {MAX_FILE_BYTES:,} bytes allowed")
        return data

    def _read_archived(self, entry: Entry) -> bytes:
        data = self._reader_of(entry)(Member(entry.member, entry.offset, entry.num_bytes))
        if not storage.is_url(entry.source):  # elsewhere it would be one more request for each image
            _check_version(entry, storage.file_state(entry.source).version)
        if len(data) < entry.num_bytes:
            raise SourceReadError(f"cut short: {len(data):,} of its {entry.num_bytes:,} bytes are there")
        return data

    def _reader_of(self, entry: Entry) -> Callable[[Member], bytes]:
        """Opens the entry's archive, if it is not the one that is open."""
        archive = (entry.source, entry.version)
        if self._read_member is None or self._archive != archive:
            self._open.close()
            self._archive, self._read_member = None, None
            _check_version(entry, storage.file_state(entry.source).version)
            version = "" if entry.version.startswith(_UNTOLD) else entry.version
            self._read_member = self._open.enter_context(
                open_archive(entry.source, entry.kind, version, self._index_folder)
            )
            self._archive = archive
        return self._read_member


_CHANGED = "changed since it was listed; run again when it is whole"
_UNTOLD = "untold-"  # begins the version of what has none


def _check_version(entry: Entry, version: str) -> None:
    """Makes sure that what is read is what was listed, as far as its storage tells."""
    listed = entry.version
    if not version or listed.startswith(_UNTOLD):
        return
    if not storage.is_url(entry.source):  # machines that share a folder may see other numbers of its inodes
        listed, version = listed.rpartition("-")[0], version.rpartition("-")[0]
    if version != listed:
        raise SourceReadError(_CHANGED)


def _list_path(
    path: str,
    index_folder: str | None,
    keep_index: bool,
    on_archive: Callable[[str], None],
    warnings: list[str],
) -> Iterable[Entry]:
    path = storage.absolute(path)
    if not storage.exists(path):
        silent = ", or its server does not answer" if storage.is_url(path) else ""
        raise UsageError(f"`images={path}`: no such file or folder{silent}")
    if storage.is_url(path):
        files = storage.find_files(path)
        if [_bare(file.url) for file in files] != [_bare(path)]:
            return (_file_entry(file.url, file.state) for file in files if _is_image(_below(path, file.url)))
        state = files[0].state
    elif os.path.isdir(path):
        return _list_local(path, warnings)
    elif os.path.isfile(path):
        state = storage.file_state(path)
    else:  # reading a pipe would wait for ever
        raise UsageError(f"`images={path}`: neither a file nor a folder")
    if has_image_ending(name_of(path)):
        return [_file_entry(path, state)]
    try:
        kind = archive_kind(path)
    except NoArchiveError as error:
        warnings.append(f"{path}: {error}; fetch the archive again")
        return []
    if kind is None:
        raise UsageError(f"`images={path}`: {_unknown_kind()}")
    on_archive(path)
    found, problem = list_members(path, kind, _may_hold_images, state.version, index_folder, keep_index)
    members = [member for member in found if _is_image(member.path)]
    inside = [member.name for member in found if not _is_image(member.path)]
    # As a cloud's "download all" makes them.
    unread = (
        f"{_count(inside)}, which are not read inside another; unpack it, then name them: " if inside else ""
    )
    if not members and not problem:
        said = f"holds no image but {unread}`images={inside[0]}` ..." if inside else _NO_IMAGE
        raise UsageError(f"`images={path}`: {said}")
    if inside:
        warnings.append(f"{path}: beside images it holds {unread}{inside[0]} ...")
    if problem:
        warnings.append(f"{path}: damaged after {len(members):,} images ({problem}); fetch the archive again")
    version = _version(state)
    return (Entry(member.name, path, kind, *member, state.mtime_ns, version) for member in members)


def _file_entry(path: str, state: storage.FileState) -> Entry:
    return Entry(
        base_name(name_of(path)), path, "file", "", 0, state.num_bytes, state.mtime_ns, _version(state)
    )


def _version(state: storage.FileState) -> str:
    return state.version or _UNTOLD + uuid.uuid4().hex


def _list_local(path: str, warnings: list[str]) -> Iterator[Entry]:
    """Walks folders in sorted order; links to folders are followed, as Kaggle mirrors use them."""

    def warn(error: OSError) -> None:
        warnings.append(f"{error.filename}: cannot be listed ({error.strerror})")

    seen = set()
    for folder, below, names in os.walk(path, followlinks=True, onerror=warn):
        state = os.stat(folder)
        if (state.st_dev, state.st_ino) in seen:  # two links to one folder, or a link to one above it
            below.clear()
            continue
        seen.add((state.st_dev, state.st_ino))
        below[:] = sorted(name for name in below if not is_litter(name))
        for name in sorted(filter(_is_image, names)):
            full = os.path.join(folder, name)
            with contextlib.suppress(FileNotFoundError):  # a link to nothing is no image
                status = os.stat(full)
                if stat.S_ISREG(status.st_mode):  # reading a pipe would wait for ever
                    yield _file_entry(full, storage.local_state(status))


def _below(root: str, path: str) -> str:
    """The part of a path below the folder, or behind the fixed part of a pattern, that the user named."""
    if path == root:
        return ""
    fixed = _bare(root)
    while any(mark in fixed for mark in "*?["):
        fixed = fixed.rpartition("/")[0]
    below = _bare(path)
    return below.removeprefix(fixed) if below.startswith(fixed) else base_name(path)


def _bare(path: str) -> str:
    """A path or URL without its signature and what fsspec may write in another way."""
    return name_of(path).rpartition("://")[2].strip("/")


def _is_image(path: str) -> bool:
    """Tells by its path below what the user named whether a file may be an image."""
    return has_image_ending(path) and not is_litter(path)


def _unknown_kind() -> str:
    return f"expected a folder, one of {', '.join(ARCHIVE_ENDINGS)}, or an image ({', '.join(IMAGE_ENDINGS)})"


_NO_IMAGE = f"holds no image ({', '.join(IMAGE_ENDINGS)})"


def _nothing_found(folder: str) -> str:
    """Says why a folder that is there gave no image, and what to do."""
    if storage.is_url(folder):
        names = [file.url for file in storage.find_files(folder)]
    else:
        names = [os.path.join(folder, name) for name in sorted(os.listdir(folder))]
    if archives := [name for name in names if _is_archive(_below(folder, name))]:
        return f"holds no image but {_count(archives)}; name them: `images={archives[0]}` ..."
    return _NO_IMAGE


def _is_archive(path: str) -> bool:
    return named_kind(path) is not None and not is_litter(path)


def _may_hold_images(path: str) -> bool:
    return _is_image(path) or _is_archive(path)


def _count(archives: Sequence[str]) -> str:
    return f"{len(archives):,} archive{'s' * (len(archives) > 1)}"
