"""Paths, local or on any fsspec URL: whole-or-absent writes, range reads, listing, locks."""

import contextlib
import fcntl
import glob
import os
import re
import shutil
import socket
import tempfile
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import fsspec
from fsspec.core import url_to_fs

from cxr_records.errors import CxrError, UsageError

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
        return filesystem.exists(name)
    return local_path(path).exists()


def open_read(path: str) -> BinaryIO:
    """Opens a file for reading bytes; the caller closes it."""
    if is_url(path):
        return fsspec.open(path, "rb").open()
    return open(local_path(path), "rb")


def read_bytes(path: str) -> bytes:
    """Returns all bytes of a file."""
    with open_read(path) as file:
        return file.read()


def file_size(path: str) -> int:
    """Returns a file's size in bytes."""
    if is_url(path):
        filesystem, name = _filesystem(path)
        return int(filesystem.size(name))
    return local_path(path).stat().st_size


def list_names(folder: str) -> list[str]:
    """Returns the names directly in a folder, sorted; an absent folder is empty."""
    if is_url(folder):
        filesystem, name = _filesystem(folder)
        if not filesystem.exists(name):
            return []
        return sorted(entry.rstrip("/").rsplit("/", 1)[-1] for entry in filesystem.ls(name, detail=False))
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
        found = [name for name in filesystem.glob(name) if not name.rsplit("/", 1)[-1].startswith(".")]
        return sorted(map(filesystem.unstrip_protocol, found))
    return sorted(glob.glob(str(local_path(pattern)), recursive=True))


def make_folder(path: str) -> None:
    """Makes a folder and those above it; where it exists already, nothing happens."""
    if is_url(path):
        filesystem, name = _filesystem(path)
        filesystem.makedirs(name, exist_ok=True)
    else:
        local_path(path).mkdir(parents=True, exist_ok=True)


def remove(path: str) -> None:
    """Removes a file or a folder with all below it; where it is absent, nothing happens."""
    if is_url(path):
        filesystem, name = _filesystem(path)
        with contextlib.suppress(FileNotFoundError):
            filesystem.rm(name, recursive=True)
        return
    target = local_path(path)
    if target.is_dir() and not target.is_symlink():
        shutil.rmtree(target)
    else:
        target.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_file(path: str) -> Iterator[BinaryIO]:
    """Opens a file for writing that appears under its name whole, or not at all.

    Local: a temporary name in the same folder, fsync, rename, fsync of the folder.
    Elsewhere: a local temporary file, uploaded in one call once it is complete.
    """
    if is_url(path):
        filesystem, name = _filesystem(path)
        with tempfile.NamedTemporaryFile() as file:
            yield file.file
            file.flush()
            filesystem.put_file(file.name, name)
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


def read_ranges(path: str, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
    """Returns the bytes of each (offset, length) of one file, in the order asked for."""
    if is_url(path):
        filesystem, name = _filesystem(path)
        starts = [offset for offset, _ in ranges]
        ends = [offset + length for offset, length in ranges]
        return filesystem.cat_ranges([name] * len(ranges), starts, ends, on_error="raise")
    descriptor = os.open(local_path(path), os.O_RDONLY)
    try:
        return [os.pread(descriptor, length, offset) for offset, length in ranges]
    finally:
        os.close(descriptor)


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
        CxrError: another command holds it; the message names its process and machine.
    """
    if is_url(path):
        yield
        return
    descriptor = os.open(local_path(path), os.O_RDWR | os.O_CREAT, 0o644)
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


def _sync_folder(folder: Path) -> None:
    """Makes a rename survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
