"""Where source images lie: in folders, .zip, .tar and .tar.gz files, local or on any fsspec URL.

Archives are read where they are. A .tar.gz can only be read from its start, so listing one inflates it
once and keeps an index of restart points beside the store; workers then begin at any image.
"""

import contextlib
import hashlib
import io
import os
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import BinaryIO, NamedTuple

import indexed_gzip
import pyarrow as pa
import pyarrow.parquet as pq
from fsspec.core import url_to_fs

from cxr_records import storage
from cxr_records.errors import CxrError, UsageError

IMAGE_ENDINGS = (".png", ".jpg", ".jpeg", ".dcm", ".dicom")
ARCHIVE_ENDINGS = {".zip": "zip", ".tar": "tar", ".tar.gz": "targz", ".tgz": "targz"}
MAX_FILE_BYTES = 256 << 20  # no X-ray file is near 256 MiB; a larger one is damage or an attack
GZIP_SPACING = 4 << 20  # bytes between restart points: 32 MB of index for an NIH archive of 4 GB
GZIP_BUFFER = 16 << 20  # every read inflates anew from a restart point, so reads must be large


_MEMBERS_SCHEMA = pa.schema(
    [("name", pa.string()), ("member", pa.string()), ("offset", pa.int64()), ("num_bytes", pa.int64())]
)


class Entry(NamedTuple):
    """One file that may hold an image.

    Attributes:
        name: file name without folders.
        source: path or URL of the file, or of the archive that holds it.
        kind: "file", "zip", "tar" or "targz".
        member: its name in the archive; "" for a file.
        offset: first byte in the (inflated) tar; 0 otherwise.
        num_bytes: its size.
        mtime_ns: when the file, or the archive, was changed last; 0 where the storage does not say.
    """

    name: str
    source: str
    kind: str
    member: str
    offset: int
    num_bytes: int
    mtime_ns: int

    @property
    def label(self) -> str:
        """The entry for people: the path, with the name in the archive after it."""
        return f"{self.source}:{self.member}" if self.member else self.source


class SourceReadError(Exception):
    """An entry could not be read: a fault of the disk, the archive or the network, not of the image."""


class Listing(NamedTuple):
    """What the sources hold: entries of image files, and what was found damaged on the way."""

    entries: list[Entry]
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
    entries: list[Entry] = []
    warnings: list[str] = []
    for pattern in paths:
        if "::" in pattern:
            raise UsageError(f"`images={pattern}`: chained URLs are not read; name the archive itself")
        found = storage.expand(storage.absolute(pattern))
        if not found:
            raise UsageError(f"`images={pattern}`: nothing matches")
        for path in found:
            before = len(entries), len(warnings)
            entries += _list_path(path, index_folder, keep_index, on_archive, warnings)
            if (len(entries), len(warnings)) == before:
                raise UsageError(f"`images={path}`: {_nothing_found(path)}")
    return Listing(list(dict.fromkeys(entries)), warnings)  # a path may be named twice


def match_entries(
    entries: Iterable[Entry], image_ids: Sequence[str]
) -> tuple[dict[str, list[Entry]], list[Entry]]:
    """Joins entries to a table by file name; returns ({image_id: its entries}, entries of no image).

    A file whose name differs in its ending alone (a DICOM of the same image) matches too, where the
    exact name is nowhere. Several entries of one image are kept in a fixed order.
    """
    exact: dict[str, list[Entry]] = {image_id: [] for image_id in image_ids}
    by_stem = {_stem(image_id): image_id for image_id in exact}
    others = []
    for entry in entries:
        if entry.name in exact:
            exact[entry.name].append(entry)
        else:
            others.append(entry)
    unmatched = []
    filled = {image_id for image_id, found in exact.items() if found}
    for entry in others:
        image_id = by_stem.get(_stem(entry.name))
        if image_id is None or image_id in filled:
            unmatched.append(entry)
        else:
            exact[image_id].append(entry)
    return {image_id: sorted(found) for image_id, found in exact.items() if found}, unmatched


class SourceReader:
    """Reads entries; keeps the archive that it read last open, so that units of one archive are cheap.

    Args:
        index_folder: where `list_sources` kept the indexes of .tar.gz files.
    """

    def __init__(self, index_folder: str | None):
        self._index_folder = index_folder
        self._source: tuple[str, int] | None = None  # path and time of change of the open archive
        self._open = contextlib.ExitStack()
        self._archive: zipfile.ZipFile | BinaryIO | None = None

    def __enter__(self) -> "SourceReader":
        return self

    def __exit__(self, *error) -> None:
        self._open.close()

    def read(self, entry: Entry) -> bytes:
        """Returns the bytes of an entry.

        Raises:
            SourceReadError: with the reason, which names no path.
        """
        if entry.num_bytes > MAX_FILE_BYTES:
            raise SourceReadError(f"{entry.num_bytes:,} bytes, more than the {MAX_FILE_BYTES:,} allowed")
        try:
            if entry.kind == "file":
                return storage.read_bytes(entry.source)
            archive = self._opened(entry)
            if isinstance(archive, zipfile.ZipFile):
                return archive.read(entry.member)
            _go_to(archive, entry.offset)
            data = archive.read(entry.num_bytes)
        except MemoryError:
            raise
        except Exception as error:  # which one an archive or a network raises is no contract
            reason = (
                getattr(error, "strerror", None) or str(error).split(entry.source)[0] or type(error).__name__
            )
            raise SourceReadError(f"cannot be read: {' '.join(reason.split())}") from error
        if len(data) < entry.num_bytes:
            raise SourceReadError(f"cut short: {len(data):,} of its {entry.num_bytes:,} bytes are there")
        return data

    def _opened(self, entry: Entry) -> zipfile.ZipFile | BinaryIO:
        source = (entry.source, entry.mtime_ns)
        if self._source != source:
            self._open.close()
            self._source = None
            if entry.kind == "targz":
                index = self._index_folder and _index_path(self._index_folder, entry.source, entry.mtime_ns)
                self._archive = self._open.enter_context(_open_gzip(entry.source, index))
            else:
                file = self._open.enter_context(storage.open_read(entry.source))
                self._archive = file
                if entry.kind == "zip":
                    self._archive = self._open.enter_context(zipfile.ZipFile(file))
            self._source = source
        return self._archive


class _StrictTarInfo(tarfile.TarInfo):
    """A header of a tar; tarfile takes a damaged one for the end of the archive and says nothing."""

    @classmethod
    def frombuf(cls, buf: bytes, encoding: str, errors: str) -> "tarfile.TarInfo":
        try:
            return super().frombuf(buf, encoding, errors)
        except tarfile.EOFHeaderError:  # the block of zeros at the end
            raise
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(str(error)) from error


def archive_kind(path: str) -> str | None:
    """Returns "zip", "tar" or "targz" by the ending of a path, None where it is no archive."""
    return next((kind for end, kind in ARCHIVE_ENDINGS.items() if path.lower().endswith(end)), None)


def _list_path(
    path: str,
    index_folder: str | None,
    keep_index: bool,
    on_archive: Callable[[str], None],
    warnings: list[str],
) -> list[Entry]:
    path = storage.absolute(path)
    if not storage.exists(path):
        silent = ", or its server does not answer" if storage.is_url(path) else ""
        raise UsageError(f"`images={path}`: no such file or folder{silent}")
    kind = archive_kind(path)
    if kind and not os.path.isdir(path):
        on_archive(path)
        if kind == "targz":
            found, problem = _list_targz(path, index_folder, keep_index)
        else:
            found, problem = {"zip": _list_zip, "tar": _list_tar}[kind](path)
        if problem:
            warnings.append(
                f"{path}: damaged after {len(found):,} images ({problem}); fetch the archive again"
            )
        return found
    return list(_list_remote(path) if storage.is_url(path) else _list_local(path, warnings))


def _list_local(path: str, warnings: list[str]) -> Iterator[Entry]:
    """Walks folders in sorted order; links to folders are followed, as Kaggle mirrors use them."""
    if os.path.isfile(path):
        if not _is_image(path):
            raise UsageError(f"`images={path}`: {_unknown_kind(path)}")
        state = os.stat(path)
        yield Entry(os.path.basename(path), path, "file", "", 0, state.st_size, state.st_mtime_ns)
        return

    def warn(error: OSError) -> None:
        warnings.append(f"{error.filename}: cannot be listed ({error.strerror})")

    seen = set()
    for folder, below, names in os.walk(path, followlinks=True, onerror=warn):
        state = os.stat(folder)
        if (state.st_dev, state.st_ino) in seen:  # two links to one folder, or a link to one above it
            below.clear()
            continue
        seen.add((state.st_dev, state.st_ino))
        below.sort()
        for name in sorted(filter(_is_image, names)):
            full = os.path.join(folder, name)
            with contextlib.suppress(FileNotFoundError):  # a link to nothing is no image
                state = os.stat(full)
                if stat.S_ISREG(state.st_mode):  # reading a pipe would wait for ever
                    yield Entry(name, full, "file", "", 0, state.st_size, state.st_mtime_ns)


def _list_remote(url: str) -> Iterator[Entry]:
    filesystem, root = url_to_fs(url)
    if filesystem.isfile(root):
        if not _is_image(root):
            raise UsageError(f"`images={url}`: {_unknown_kind(root)}")
        found = {root: filesystem.info(root)}
    else:
        found = filesystem.find(root, detail=True)
    for name, info in sorted(found.items()):
        if _is_image(name):
            source = filesystem.unstrip_protocol(name)
            size = int(info.get("size") or 0)
            yield Entry(name.rsplit("/", 1)[-1], source, "file", "", 0, size, _mtime_ns(info))


def _list_zip(path: str) -> tuple[list[Entry], str]:
    mtime_ns = _changed(path)
    try:
        with storage.open_read(path) as file, zipfile.ZipFile(file) as archive:
            return [
                Entry(_basename(info.filename), path, "zip", info.filename, 0, info.file_size, mtime_ns)
                for info in archive.infolist()
                if _is_image(info.filename)
            ], ""
    except (zipfile.BadZipFile, NotImplementedError, ValueError, struct.error) as error:
        # The table of contents is at the end of a zip: without it nothing can be found.
        remedy = "download it first" if storage.is_url(path) else "fetch the archive again"
        raise CxrError(f"`images={path}`: damaged or cut short ({error}); {remedy}") from error


def _list_tar(path: str) -> tuple[list[Entry], str]:
    with storage.open_read(path) as file:
        return _tar_members(file, path, "tar", _changed(path))


def _list_targz(path: str, index_folder: str | None, keep_index: bool) -> tuple[list[Entry], str]:
    mtime_ns = _changed(path)
    index = index_folder and _index_path(index_folder, path, mtime_ns)
    if index and _read_kept(index) and (members := _read_kept(_members_path(index))):
        rows = pq.read_table(io.BytesIO(members)).to_pylist()
        return [Entry(kind="targz", source=path, mtime_ns=mtime_ns, **row) for row in rows], ""
    with storage.open_read(path) as file:
        if file.read(2) != b"\x1f\x8b":
            return [], "no gzip file"
    with _open_gzip(path, None) as file:
        found, problem = _tar_members(file, path, "targz", mtime_ns)
        # Nothing is kept of a damaged archive: the next run looks again.
        if index and keep_index and not problem:
            _keep_index(file, found, index)
    return found, problem


def _keep_index(file: indexed_gzip.IndexedGzipFile, found: Sequence[Entry], index: str) -> None:
    storage.make_folder(index.rsplit("/", 1)[0])
    points, members = io.BytesIO(), io.BytesIO()
    file.export_index(fileobj=points)
    columns = {name: [getattr(entry, name) for entry in found] for name in _MEMBERS_SCHEMA.names}
    pq.write_table(pa.table(columns, _MEMBERS_SCHEMA), members)
    for path, data in ((index, points.getvalue()), (_members_path(index), members.getvalue())):
        storage.write_bytes(path, _checksum(data) + data)


def _tar_members(file: BinaryIO, path: str, kind: str, mtime_ns: int) -> tuple[list[Entry], str]:
    """Lists the image members of an open tar; where it is damaged, those before and what is wrong."""
    found: list[Entry] = []
    try:
        # A gzip is best read straight through ("r|"); a plain tar by leaping from header to header.
        mode = "r|" if kind == "targz" else "r:"
        with tarfile.open(fileobj=file, mode=mode, bufsize=1 << 20, tarinfo=_StrictTarInfo) as archive:
            for member in archive:
                if member.isfile() and _is_image(member.name):
                    path_inside = member.name.encode(errors="replace").decode()  # it may be no UTF-8
                    name, offset = _basename(path_inside), member.offset_data
                    found.append(Entry(name, path, kind, path_inside, offset, member.size, mtime_ns))
    except MemoryError:
        raise
    except Exception as error:  # which one tarfile raises on damaged headers is no contract
        return found, " ".join(str(error).split()) or type(error).__name__
    return found, ""


def _open_gzip(path: str, index: str | None) -> indexed_gzip.IndexedGzipFile:
    source = {"fileobj": storage.open_read(path)} if storage.is_url(path) else {"filename": path}
    file = indexed_gzip.IndexedGzipFile(**source, spacing=GZIP_SPACING, buffer_size=GZIP_BUFFER)
    if data := index and _read_kept(index):
        file.import_index(fileobj=io.BytesIO(data))
    return file


def _read_kept(path: str) -> bytes:
    """Returns what `_keep_index` wrote; b"" where it is absent or damaged, which nothing else would find."""
    data = storage.read_bytes(path) if storage.exists(path) else b""
    return data[4:] if data[:4] == _checksum(data[4:]) else b""


def _checksum(data: bytes) -> bytes:
    return zlib.crc32(data).to_bytes(4, "big")


def _go_to(file: BinaryIO, offset: int) -> None:
    """Seeks; but a short way forward is read over, as a seek in a gzip inflates from a restart point."""
    gap = offset - file.tell()
    if 0 <= gap < GZIP_SPACING and isinstance(file, indexed_gzip.IndexedGzipFile):
        file.read(gap)
    else:
        file.seek(offset)


def _members_path(index: str) -> str:
    return index.removesuffix(".gzidx") + ".members"


def _index_path(folder: str, source: str, mtime_ns: int) -> str:
    """An index belongs to an archive of one path, size and time."""
    identity = f"{source}\0{storage.file_size(source)}\0{mtime_ns}"
    return storage.join(folder, hashlib.sha256(identity.encode()).hexdigest()[:16] + ".gzidx")


def _changed(path: str) -> int:
    if not storage.is_url(path):
        return os.stat(path).st_mtime_ns
    filesystem, name = url_to_fs(path)
    return _mtime_ns(filesystem.info(name))


def _mtime_ns(info: dict) -> int:
    """The time of change from fsspec's listing, whose key differs by storage; 0 where there is none."""
    for key in ("mtime", "LastModified", "last_modified", "updated", "modified", "created"):
        value = info.get(key)
        if hasattr(value, "timestamp"):
            value = value.timestamp()
        if isinstance(value, int | float):
            return int(value * 1e9)
    return 0


def _is_image(name: str) -> bool:
    base = _basename(name)
    return base.lower().endswith(IMAGE_ENDINGS) and not base.startswith(".")


def _basename(name: str) -> str:
    return name.replace("\\", "/").rsplit("/", 1)[-1]


def _stem(name: str) -> str:
    return name.rsplit(".", 1)[0]


def _unknown_kind(path: str) -> str:
    return f"expected a folder, one of {', '.join(ARCHIVE_ENDINGS)}, or an image ({', '.join(IMAGE_ENDINGS)})"


def _nothing_found(path: str) -> str:
    """Says why a path that is there gave no image, and what to do."""
    archives = []
    if not storage.is_url(path) and os.path.isdir(path):
        archives = sorted(name for name in os.listdir(path) if archive_kind(name))
    if archives:
        first = os.path.join(path, archives[0])
        return f"holds no image but {len(archives)} archives; name them: `images={first}` ..."
    return f"holds no image ({', '.join(IMAGE_ENDINGS)})"
