"""Archives of files, .zip, .tar and .tar.gz, read where they are: their members, and the bytes of one.

Of which kind one is tell its first bytes: browsers unpack what they download and leave the name as it is.

A .tar.gz can only be read from its start, so listing one inflates it once and keeps an index of restart
points beside the store; workers then begin at any member.
"""

import contextlib
import hashlib
import io
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import BinaryIO, Literal, NamedTuple

import indexed_gzip
import pyarrow as pa
import pyarrow.parquet as pq

from cxr_records import storage
from cxr_records.errors import CxrError, UsageError
from cxr_records.filetypes import HEAD_BYTES, file_type
from cxr_records.names import base_name
from cxr_records.parquet import read_parquet
from cxr_records.urls import name_of, unsigned

ARCHIVE_ENDINGS = {".zip": "zip", ".tar": "tar", ".tar.gz": "targz", ".tgz": "targz"}
GZIP_SPACING = 4 << 20  # bytes between restart points: 32 MB of index for an NIH archive of 4 GB
GZIP_BUFFER = 16 << 20  # every read inflates anew from a restart point, so reads must be large

_MEMBERS_COLUMNS: dict[str, pa.DataType] = {
    "name": pa.string(),
    "member": pa.string(),
    "offset": pa.int64(),
    "num_bytes": pa.int64(),
}
_MEMBERS_SCHEMA = pa.schema(_MEMBERS_COLUMNS)


class Member(NamedTuple):
    """One file in an archive.

    Attributes:
        path: its name in the archive, with folders.
        offset: first byte in the (inflated) tar; of its header in a zip, which may hold a name twice.
        num_bytes: its size.
    """

    path: str
    offset: int
    num_bytes: int

    @property
    def name(self) -> str:
        """Its name without folders."""
        return base_name(self.path)


class Members(NamedTuple):
    """The members of an archive; where it is damaged, those before the damage, and what is wrong."""

    members: list[Member]
    problem: str


def named_kind(path: str) -> str | None:
    """Returns "zip", "tar" or "targz" by the ending of a path, None where it names no archive."""
    name = name_of(path).lower()
    return next((kind for end, kind in ARCHIVE_ENDINGS.items() if name.endswith(end)), None)


def archive_kind(path: str) -> str | None:
    """Returns "zip", "tar" or "targz" by the first bytes of a file, None where it is something else.

    Where these tell nothing, as of a damaged archive, its name does.

    Raises:
        UsageError: it is an archive that is not read; the message says what to do.
        NoArchiveError: its name is that of an archive, its bytes are not.
    """
    with storage.open_read(path) as file:
        head = file.read(HEAD_BYTES)
    named, found = named_kind(path), file_type(head)
    if found in _NOT_READ:
        raise UsageError(
            f"`images={path}`: {_NOT_READ[found]}, whose members cannot be read one by one; unpack it, or "
            "pack it anew as .tar, .tar.gz or .zip"
        )
    if found in ("zip", "tar"):
        return found
    if found != "gzip":
        if named:
            _check_no_page(head)
        return named
    inflated = _inflate(head)
    if file_type(inflated) == "tar":
        return "targz"
    if named:
        _check_no_page(inflated)
    if named == "targz" or len(inflated) < tarfile.BLOCKSIZE:  # damaged or cut short: listing it tells how
        return "targz"
    raise UsageError(f"`images={path}`: a gzip file that holds no tar; unpack it, or name a .tar.gz")


class NoArchiveError(Exception):
    """A file is no archive, whatever its name; the message, for people, says what it is."""


_NOT_READ = {
    "bzip2": "packed by bzip2",
    "xz": "packed by xz",
    "zstd": "packed by zstd",
    "7z": "a 7z archive",
    "rar": "a rar archive",
}


def _inflate(head: bytes) -> bytes:
    """The first bytes of what a gzip file holds, or fewer where they are damaged."""
    try:
        return zlib.decompressobj(31).decompress(head, HEAD_BYTES)
    except zlib.error:
        return b""


def _check_no_page(head: bytes) -> None:
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n")[:32]
    if start[:1] == b"<":  # as no archive begins; a server's page of errors, or of cookies to agree to
        text = start.decode("latin-1").encode("unicode_escape").decode()
        raise NoArchiveError(f"a web page and no archive (it begins with '{text}')")


def list_members(
    path: str,
    kind: str,
    wanted: Callable[[str], bool],
    version: str,
    index_folder: str | None = None,
    keep_index: bool = True,
) -> Members:
    """Lists the members of an archive whose name, with folders, is wanted.

    Args:
        path: path or URL of the archive.
        kind: as `archive_kind` tells it.
        wanted: tells by a member's name whether to list it; the same at every call.
        version: `FileState.version` of the archive; "" where its storage tells none: then it is listed anew.
        index_folder: where indexes of .tar.gz files are kept between runs.
        keep_index: whether to write there; without it, an index that is there is used and none is made.

    Raises:
        CxrError: the table of contents of a zip is damaged, without which nothing can be found.
    """
    storage.check_parts(path)
    if kind == "targz":
        return _list_targz(path, wanted, version, index_folder, keep_index)
    return _list_zip(path, wanted) if kind == "zip" else _list_tar(path, wanted)


@contextlib.contextmanager
def open_archive(
    path: str, kind: str, version: str, index_folder: str | None
) -> Iterator[Callable[[Member], bytes]]:
    """Opens an archive; gives a function that reads a member, which may be fewer bytes than it should have.

    Args:
        path: path or URL of the archive.
        kind: as `archive_kind` tells it.
        version: of the archive, as `list_members` was given it.
        index_folder: where `list_members` kept the indexes of .tar.gz files.
    """
    with contextlib.ExitStack() as opened:
        if kind == "zip":
            contents: zipfile.ZipFile = opened.enter_context(
                zipfile.ZipFile(opened.enter_context(storage.open_read(path)))
            )
            at = {info.header_offset: info for info in contents.infolist()}

            def read_zipped(member: Member) -> bytes:
                info = at.get(member.offset)
                if info is None or (info.filename, info.file_size) != (member.path, member.num_bytes):
                    raise zipfile.BadZipFile("its table of contents is another than when it was listed")
                if info.flag_bits & 1:
                    raise zipfile.BadZipFile(f"{member.path} is encrypted; unpack the archive")
                with contents.open(info) as file:
                    # What is asked for is inflated, and no more, however much there is.
                    return file.read(member.num_bytes + 1)

            yield read_zipped
            return
        if kind == "targz":
            index = _index_path(index_folder, path, version) if index_folder else None
            tar = opened.enter_context(_open_gzip(path, index))
        else:
            tar = opened.enter_context(storage.open_read(path))

        def read(member: Member) -> bytes:
            _go_to(tar, member.offset)
            data: bytes = tar.read(member.num_bytes)
            return data

        yield read


def _list_zip(path: str, wanted: Callable[[str], bool]) -> Members:
    try:
        with storage.open_read(path) as file, zipfile.ZipFile(file) as archive:
            members = [
                Member(info.filename, info.header_offset, info.file_size) for info in archive.infolist()
            ]
    except (zipfile.BadZipFile, NotImplementedError, ValueError, struct.error) as error:
        # The table of contents is at the end of a zip: without it nothing can be found.
        remedy = "download it first" if storage.is_url(path) else "fetch the archive again"
        raise CxrError(f"`images={path}`: damaged or cut short ({error}); {remedy}") from error
    return Members([member for member in members if wanted(member.path)], "")


def _list_tar(path: str, wanted: Callable[[str], bool]) -> Members:
    with storage.open_read(path) as file:
        return _tar_members(file, "tar", wanted, path)


def _list_targz(
    path: str, wanted: Callable[[str], bool], version: str, index_folder: str | None, keep_index: bool
) -> Members:
    index = _index_path(index_folder, path, version) if index_folder else None
    if version and index and _read_kept(index) and (kept := _read_kept(_members_path(index))):
        rows = read_parquet(kept).to_pylist()
        return Members([Member(row["member"], row["offset"], row["num_bytes"]) for row in rows], "")
    with storage.open_read(path) as file:
        if file.read(2) != b"\x1f\x8b":
            return Members([], "no gzip file")
    with _open_gzip(path, None) as file:
        listed = _tar_members(file, "targz", wanted, path)
        # Nothing is kept of a damaged archive: the next run looks again.
        if index and keep_index and not listed.problem:
            _keep_index(file, listed.members, index)
    return listed


def _keep_index(file: indexed_gzip.IndexedGzipFile, members: Sequence[Member], index: str) -> None:
    storage.make_folder(index.rsplit("/", 1)[0])
    points, table = io.BytesIO(), io.BytesIO()
    file.export_index(fileobj=points)
    rows = [
        {"name": member.name, "member": member.path, "offset": member.offset, "num_bytes": member.num_bytes}
        for member in members
    ]
    pq.write_table(pa.Table.from_pylist(rows, _MEMBERS_SCHEMA), table)
    for path, data in ((index, points.getvalue()), (_members_path(index), table.getvalue())):
        storage.write_bytes(path, _checksum(data) + data)


def _tar_members(file: BinaryIO, kind: str, wanted: Callable[[str], bool], file_name: str) -> Members:
    """Lists the wanted members of an open tar; the path is for messages."""
    members: list[Member] = []
    data: dict[str, tuple[int, int]] = {}  # of every file: where it is, and its size
    try:
        # A gzip is best read straight through ("r|"); a plain tar by leaping from header to header.
        mode: Literal["r|", "r:"] = "r|" if kind == "targz" else "r:"
        with tarfile.open(fileobj=file, mode=mode, bufsize=1 << 20, tarinfo=_StrictTarInfo) as archive:
            for header in archive:
                if header.isfile():
                    data[header.name] = header.offset_data, header.size
                elif header.islnk() and header.linkname in data:  # a file that was packed under another name
                    data[header.name] = data[header.linkname]
                else:
                    continue
                if wanted(header.name):
                    path = header.name.encode(errors="replace").decode()  # it may be no UTF-8
                    if header.issparse():
                        raise UsageError(
                            f"`images={file_name}`: {path} is packed without its zeros, which is not read; "
                            "pack it anew without tar's option --sparse, or unpack it"
                        )
                    members.append(Member(path, *data[header.name]))
    except (MemoryError, CxrError):
        raise
    except Exception as error:  # which one tarfile raises on damaged headers is no contract
        problem = " ".join(str(error).split()) or type(error).__name__
        # What Python's buffers make of a gzip that cannot be inflated.
        return Members(members, "its bytes cannot be inflated" if "readinto()" in problem else problem)
    return Members(members, "")


class _StrictTarInfo(tarfile.TarInfo):
    """A header of a tar; tarfile takes a damaged one for the end of the archive and says nothing."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> "_StrictTarInfo":
        try:
            return super().frombuf(buf, encoding, errors)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]  # typeshed lacks it; zeros at the end
            raise
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(str(error)) from error


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


def _index_path(folder: str, source: str, version: str) -> str:
    """An index belongs to one version of the archive at one path."""
    identity = f"{unsigned(source)}\0{version}"
    return storage.join(folder, hashlib.sha256(identity.encode()).hexdigest()[:16] + ".gzidx")
