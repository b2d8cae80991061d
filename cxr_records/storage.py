"""Paths, local or on any fsspec URL: whole-or-absent writes, range reads, listing, locks."""

import contextlib
import dataclasses
import datetime
import errno
import fcntl
import glob
import hashlib
import itertools
import os
import re
import shutil
import socket
import stat
import tempfile
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, BinaryIO, NamedTuple

import fsspec
from fsspec.core import url_to_fs

from cxr_records.errors import CxrError, UsageError

# Of remote storage: reading so many bytes for nothing is cheaper than another request.
GAP_BYTES = 128 << 10
SPAN_BYTES = 8 << 20
_OBJECT_STORES = {"s3", "s3a", "gs", "gcs", "abfs", "az"}  # which have no folders


class NoFileError(CxrError):
    """Under a name that should be a file's is something else: a folder, a FIFO, a device, a link."""


_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}
_TEMPORARY = re.compile(r"^\..+\.tmp-[0-9a-f]{32}$")


def is_url(path: str) -> bool:
    """Tells whether a path is for fsspec ("s3://...", "https://...") and not a local one."""
    return "://" in path and not path.startswith("file://")


def local_path(path: str) -> Path:
    """Returns the path of a local file or folder, given plainly or as a file:// URL."""
    return Path(path.removeprefix("file://"))


def absolute(path: str) -> str:
    """Returns a path that means the same in every process: URLs as they are, local paths from the root."""
    return path if is_url(path) else os.path.abspath(os.path.expanduser(local_path(path)))


def join(folder: str, *names: str) -> str:
    """Returns the path of a file below a folder, local or remote."""
    if folder.endswith("://") or not folder.strip("/"):  # the root of a storage, or of the machine
        return folder + "/".join(names)
    return "/".join((folder.rstrip("/"), *names))


def exists(path: str) -> bool:
    """Tells whether a file or folder is there."""
    if is_url(path):
        filesystem, name = _filesystem(path)
        with _said_clearly(path):
            return _exists(filesystem, name)
    return local_path(path).exists()


def open_read(path: str) -> BinaryIO:
    """Opens a file for reading bytes; the caller closes it."""
    if is_url(path):
        with _said_clearly(path):
            file: BinaryIO = fsspec.open(path, "rb").open()
            return file
    return open(local_path(path), "rb")


def read_bytes(path: str) -> bytes:
    """Returns all bytes of a file."""
    with open_read(path) as file:
        return file.read()


def open_regular(path: str) -> BinaryIO:
    """Opens a file as `open_read`, but no FIFO, device or socket, from which reading may never end.

    For files that came with a dataset. Links are followed: many tools keep large files behind them.

    Raises:
        NoFileError: it is something else than a file.
        OSError: it is missing, or cannot be opened.
    """
    if is_url(path):
        return open_read(path)
    # Without waiting for who writes into a FIFO; of files it means nothing.
    descriptor = os.open(local_path(path), os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        _check_regular(descriptor, path)
        return open(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def read_regular(path: str, most_bytes: int) -> bytes:
    """Returns all bytes of a file as `open_regular` opens it.

    Raises:
        CxrError: as `open_regular`; or it has more than so many bytes.
    """
    with open_regular(path) as file:
        data = file.read(most_bytes + 1)
    if len(data) > most_bytes:
        raise CxrError(f"{path} has more than {most_bytes:,} bytes, which none of ours has")
    return data


def sha256_of(file: BinaryIO) -> str:
    """Returns the sha256, in hexadecimal, of what an open file still holds."""
    digest = hashlib.sha256()
    while block := file.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()


def open_own(path: str, flags: int) -> int:
    """Opens a local file that only this program makes and changes, and nothing that a link leads to.

    Args:
        path: of the file.
        flags: of `os.open`; what is created may be read by all.

    Returns:
        The descriptor, which the caller closes.

    Raises:
        NoFileError: there is something else under that name.
    """
    try:
        descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o644)
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        raise NoFileError(f"{path} is a link, expected a file of ours; remove the link") from None
    try:
        _check_regular(descriptor, path)
        if flags & os.O_RDWR and os.fstat(descriptor).st_nlink > 1:
            raise NoFileError(f"{path} is a link to another file, expected one of ours; remove the link")
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _check_regular(descriptor: int, path: str) -> None:
    """Refuses what is no file, in words of what it is."""
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        raise NoFileError(f"{path} is {_KINDS.get(stat.S_IFMT(mode), 'no file')}, expected a file")


def identity(path: str) -> object:
    """Returns what changes when a file is written anew, whatever it then holds.

    None where it is missing, or its storage does not tell more than a size.
    """
    if is_url(path):
        filesystem, name = _filesystem(path)
        with _said_clearly(path):
            try:
                info = filesystem.info(name)
            except FileNotFoundError:
                return None
        told = tuple(str(info[key]) for key in ("ETag", "etag", "generation", "md5") if info.get(key))
        told += (str(time),) if (time := _mtime_ns(info)) else ()
        return (*told, info.get("size")) if told else None
    try:
        status = local_path(path).stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def file_size(path: str) -> int:
    """Returns a file's size in bytes."""
    if is_url(path):
        filesystem, name = _filesystem(path)
        with _said_clearly(path):
            return int(filesystem.size(name))
    return local_path(path).stat().st_size


def mtime_ns(path: str) -> int:
    """Returns when a file was changed last, in ns since 1970; 0 where its storage does not say."""
    if is_url(path):
        filesystem, name = _filesystem(path)
        with _said_clearly(path):
            return _mtime_ns(filesystem.info(name))
    return local_path(path).stat().st_mtime_ns


class RemoteFile(NamedTuple):
    """A file in remote storage: its URL, size in bytes (0 where unknown), and `mtime_ns`."""

    url: str
    num_bytes: int
    mtime_ns: int


def find_files(url: str) -> list[RemoteFile]:
    """Returns all files below a URL, sorted by name; for the URL of a file, that one."""
    filesystem, root = _filesystem(url)
    with _said_clearly(url):
        is_file = filesystem.isfile(root)
        files = {root: filesystem.info(root)} if is_file else filesystem.find(root, detail=True)
    return [
        RemoteFile(filesystem.unstrip_protocol(name), int(info.get("size") or 0), _mtime_ns(info))
        for name, info in sorted(files.items())
    ]


def list_names(folder: str) -> list[str]:
    """Returns the names directly in a folder, sorted; an absent folder is empty."""
    if is_url(folder):
        filesystem, name = _filesystem(folder)
        with _said_clearly(folder):
            try:
                names = filesystem.ls(name, detail=False)
            except FileNotFoundError:
                return []
        return sorted(entry.rstrip("/").rsplit("/", 1)[-1] for entry in names)
    try:
        return sorted(os.listdir(local_path(folder)))
    except FileNotFoundError:
        return []


def expand(pattern: str) -> list[str]:
    """Returns the paths that a pattern with * or ? names, sorted; a plain path is returned as it is."""
    if not any(mark in pattern for mark in "*?[") or exists(pattern):
        return [pattern]
    if is_url(pattern):
        filesystem, name = _filesystem(pattern)
        with _said_clearly(pattern):
            names = filesystem.glob(name)
        visible = [name for name in names if not name.rsplit("/", 1)[-1].startswith(".")]
        return sorted(map(filesystem.unstrip_protocol, visible))
    return sorted(glob.glob(str(local_path(pattern)), recursive=True))


def make_folder(path: str) -> None:
    """Makes a folder and those above it; where it exists already, nothing happens.

    Object stores have none; a bucket is never made, for its name may be a slip of the pen.
    """
    if is_url(path):
        filesystem, name = _filesystem(path)
        if path.split("://", 1)[0] not in _OBJECT_STORES:
            filesystem.makedirs(name, exist_ok=True)
    else:
        local_path(path).mkdir(parents=True, exist_ok=True)


def remove(path: str) -> None:
    """Removes a file or a folder with all below it; where it is absent, nothing happens."""
    if is_url(path):
        filesystem, name = _filesystem(path)
        with _said_clearly(path), contextlib.suppress(FileNotFoundError):
            filesystem.rm(name, recursive=True)
        return
    target = local_path(path)
    if target.is_dir() and not target.is_symlink():
        shutil.rmtree(target)
    else:
        target.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_file(path: str) -> Iterator[IO[bytes]]:
    """Opens a file for writing that appears under its name whole, or not at all.

    Local: a temporary name in the same folder, fsync, rename, fsync of the folder.
    Elsewhere: a local temporary file, uploaded in one call once it is complete.
    """
    if is_url(path):
        filesystem, name = _filesystem(path)
        with tempfile.NamedTemporaryFile() as file:
            yield file.file
            file.flush()
            with _said_clearly(path):
                try:
                    filesystem.put_file(file.name, name)
                except FileNotFoundError as error:
                    raise UsageError(f"{path}: no such bucket or folder; make it first") from error
        return
    final = local_path(path)
    # A worker may run twice at once: each attempt has a name of its own, and the last rename wins.
    temporary = final.with_name(f".{final.name}.tmp-{uuid.uuid4().hex}")
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, final)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename is None:
            error.filename = str(final)  # a full disk says so without a name
        raise
    _sync_folder(final.parent)


def write_bytes(path: str, data: bytes) -> None:
    """Writes a file whole or not at all."""
    with atomic_file(path) as file:
        file.write(data)


def read_ranges(ranges: Sequence[tuple[str, int, int]]) -> list[bytes]:
    """Returns the bytes of each (path, offset, length), in the order asked for.

    Local files are opened once each. From remote storage all ranges are asked for at once, those that lie
    near each other in one file as one: a thousand records cost a few round trips.
    """
    parts = [b""] * len(ranges)
    order = sorted(range(len(ranges)), key=lambda number: ranges[number])
    remote = [number for number in order if is_url(ranges[number][0])]
    local = [number for number in order if not is_url(ranges[number][0])]
    for path, numbers in itertools.groupby(local, key=lambda number: ranges[number][0]):
        descriptor = os.open(local_path(path), os.O_RDONLY)
        try:
            for number in numbers:
                parts[number] = os.pread(descriptor, ranges[number][2], ranges[number][1])
        finally:
            os.close(descriptor)
    if remote:
        spans = list(_spans(ranges, remote))
        filesystem, _ = _filesystem(spans[0].path)
        names = [filesystem._strip_protocol(span.path) for span in spans]
        starts, ends = [span.start for span in spans], [span.end for span in spans]
        with _said_clearly(spans[0].path):
            blocks = filesystem.cat_ranges(names, starts, ends, on_error="raise")
        for span, block in zip(spans, blocks, strict=True):
            for number in span.numbers:
                _, offset, length = ranges[number]
                parts[number] = bytes(block[offset - span.start : offset - span.start + length])
    return parts


@dataclasses.dataclass
class _Span:
    """Bytes of a file that are asked for at once, for several ranges in it."""

    path: str
    start: int
    end: int
    numbers: list[int]


def _spans(ranges: Sequence[tuple[str, int, int]], order: Sequence[int]) -> Iterator[_Span]:
    """Joins ranges that lie near each other; `order` is by path and offset."""
    span: _Span | None = None
    for number in order:
        path, offset, length = ranges[number]
        end = offset + length
        if (
            span
            and span.path == path
            and offset - span.end <= GAP_BYTES
            and max(end, span.end) - span.start <= SPAN_BYTES
        ):
            span.end = max(end, span.end)
            span.numbers.append(number)
            continue
        if span:
            yield span
        span = _Span(path, offset, end, [number])
    if span:
        yield span


def remove_temporary(folder: str) -> int:
    """Removes what killed writers left in a folder; returns how many files that were."""
    leftovers = [name for name in list_names(folder) if _TEMPORARY.match(name)]
    for name in leftovers:
        remove(join(folder, name))
    return len(leftovers)


@contextlib.contextmanager
def lock(path: str, what: str) -> Iterator[None]:
    """Holds a lock file so that one command at a time works on `what`.

    The lock is the kernel's (flock): it ends with its process, however that dies, so a lock of a dead
    process never blocks. On remote storage there is no lock; writes are whole and idempotent there.

    Raises:
        CxrError: another command holds it; the message names its process and machine. Or the lock file is a
            link, whose file would be written over.
    """
    if is_url(path):
        yield
        return
    descriptor = open_own(str(local_path(path)), os.O_RDWR | os.O_CREAT)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(descriptor, 200).decode(errors="replace").strip() or "another process"
            raise CxrError(f"{what} is in use by {holder}; wait until it ends, or name another") from None
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
        yield
    finally:
        os.close(descriptor)


def _filesystem(url: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """Returns the storage of a URL and the name in it, with nothing remembered of what it held before.

    Raises:
        UsageError: the kind of URL is unknown, or the package that reads it is not installed.
    """
    try:
        filesystem, name = url_to_fs(url)
    except (ImportError, ValueError) as error:
        raise UsageError(f"{url}: {error}") from error
    filesystem.invalidate_cache()  # other processes write to the same folders
    return filesystem, name


@contextlib.contextmanager
def _said_clearly(url: str) -> Iterator[None]:
    """Turns what a remote storage raises into one line with the remedy; absent files stay what they are.

    Each storage raises kinds of its own, known here by their names, so that none need be installed.
    """
    try:
        yield
    except (FileNotFoundError, FileExistsError, IsADirectoryError, NotADirectoryError, CxrError):
        raise
    except Exception as error:
        text = " ".join(str(error).split())
        kinds = " ".join(kind.__name__ for kind in type(error).__mro__)
        if "Credentials" in kinds or "credentials" in text.lower():
            raise CxrError(
                f"{url}: found no credentials for this storage ({text}); for s3 set AWS_ACCESS_KEY_ID and "
                "AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
            ) from error
        if isinstance(error, PermissionError):
            raise CxrError(
                f"{url}: access denied ({text}); check the credentials and their rights there"
            ) from error
        if any(word in kinds for word in ("Connection", "Connect", "Timeout", "gaierror")):
            raise CxrError(
                f"{url}: the storage cannot be reached ({text}); check the network and the endpoint"
            ) from error
        raise


def _exists(filesystem: fsspec.AbstractFileSystem, name: str) -> bool:
    """Like fsspec's own, which takes every error for absence."""
    try:
        filesystem.info(name)
    except FileNotFoundError:
        return False
    return True


def _mtime_ns(info: Mapping[str, Any]) -> int:
    """The time of change from fsspec's listing, whose key differs by storage; 0 where there is none."""
    for key in ("mtime", "LastModified", "last_modified", "updated", "modified", "created"):
        value = info.get(key)
        if isinstance(value, datetime.datetime):
            value = value.timestamp()
        if isinstance(value, int | float):
            return int(value * 1e9)
    return 0


def _sync_folder(folder: Path) -> None:
    """Makes a rename survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
