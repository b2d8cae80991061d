"""A bounded folder of shards fetched from remote storage, which several processes may share.

A file here is named by its sha256, is checked before it gets its name, and is kept until room is needed for
another; then the one not used for the longest time goes. What a process is about to read it holds with a
lock of the kernel's (flock), which nobody's eviction passes over and which ends with its process. Files of
other names are not ours: neither counted nor removed. Links are never followed.
"""

import contextlib
import fcntl
import hashlib
import os
import re
import stat
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import fsspec

from cxr_records import locks, storage
from cxr_records.errors import CxrError, UsageError

DEFAULT_BYTES = 20 << 30
ATTEMPTS = 4
FIRST_WAIT_SECONDS = 0.5  # before the second attempt; doubled for each further one
BLOCK_BYTES = 4 << 20
_POLL_SECONDS = 0.02  # between two looks at what another fetches
_PART = ".part"  # a file that is being fetched
_LOCK_FILE = "lock"
_SHA256 = re.compile(r"[0-9a-f]{64}")
_FILE = re.compile(r"[0-9a-f]{64}-[^/]+", re.DOTALL)  # what is ours in the folder, with or without _PART


def default_cache_folder() -> str:
    """Returns the user's folder for shards: cxr-records/shards below $XDG_CACHE_HOME or ~/.cache."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return os.path.join(base, "cxr-records", "shards")


class HeldFile:
    """A file in the cache that nobody evicts until `release` is called.

    Attributes:
        path: of the whole, checked file.
    """

    def __init__(self, path: str, descriptor: int):
        self.path = path
        self._descriptor = descriptor

    def fileno(self) -> int:
        """Returns the descriptor of the open file."""
        return self._descriptor

    def release(self) -> None:
        """Gives the file free; who has it open may read on. Twice does no harm."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


class ShardCache:
    """Fetches files into a local folder and keeps it below a number of bytes."""

    def __init__(self, folder: str | None = None, limit_bytes: int = DEFAULT_BYTES):
        """Makes the folder where it is absent.

        Args:
            folder: local; None is the user's cache folder.
            limit_bytes: what all files fetched into it, those half fetched included, may take together.

        Raises:
            UsageError: the folder is a URL.
        """
        folder = default_cache_folder() if folder is None else folder
        if storage.is_url(folder):
            raise UsageError(f"found the cache folder {folder}; expected a local folder")
        self.folder = Path(storage.absolute(folder))
        self.limit_bytes = limit_bytes
        self.folder.mkdir(parents=True, exist_ok=True)
        self._checked: set[tuple[str, int]] = set()  # in this process: name and inode

    def fetch(self, path: str, num_bytes: int, sha256: str) -> HeldFile:
        """Returns a file from the cache, fetching it first where it is absent or damaged there.

        Args:
            path: local path or URL of the file.
            num_bytes: its size.
            sha256: of its bytes, in hexadecimal.

        Raises:
            CxrError: it cannot be fetched, its bytes are not those expected, there is no room for it, or
                `sha256` is none.
        """
        name = path.rsplit("/", 1)[-1]
        # Both come from a manifest, which may come from anywhere: no other name than of this form, so that
        # nothing outside of the folder is ever written or removed.
        if not _SHA256.fullmatch(sha256) or not name.isprintable():
            raise CxrError(
                f"{path!r} with sha256 {sha256!r}: expected a plain name and 64 hexadecimal digits; nothing "
                "was fetched"
            )
        final = self.folder / f"{sha256}-{name}"
        while True:
            if held := self._hold(final, num_bytes, sha256):
                return held
            self.folder.mkdir(parents=True, exist_ok=True)  # somebody may have removed it
            with self._part_of(final) as (descriptor, part):
                if descriptor is None or final.exists():
                    continue  # another thread or process has fetched it meanwhile
                self._make_room(path, descriptor, num_bytes)
                _download(path, descriptor, num_bytes, sha256)
                os.fsync(descriptor)
                os.rename(part, final)
                self._checked.add((final.name, os.fstat(descriptor).st_ino))

    def _hold(self, final: Path, num_bytes: int, sha256: str) -> HeldFile | None:
        """Locks a cached file; None where there is none, or it was damaged and is gone now."""
        try:
            descriptor = storage.open_own(str(final), os.O_RDONLY)
        except FileNotFoundError:
            return None
        try:
            locks.flock(descriptor, fcntl.LOCK_SH, str(self.folder))
            status = os.fstat(descriptor)
            if status.st_nlink == 0:  # evicted between our open and our lock
                os.close(descriptor)
                return None
            identity = final.name, status.st_ino
            if identity not in self._checked:
                if status.st_size != num_bytes or _digest(descriptor) != sha256:
                    final.unlink(missing_ok=True)
                    os.close(descriptor)
                    return None
                self._checked.add(identity)
            now = time.time_ns()  # finer than the kernel's own stamp of some milliseconds
            os.utime(descriptor, ns=(now, now))
        except BaseException:
            os.close(descriptor)
            raise
        return HeldFile(str(final), descriptor)

    @contextlib.contextmanager
    def _part_of(self, final: Path) -> Iterator[tuple[int | None, Path]]:
        """Opens and locks the temporary file of a fetch, waiting for who fetches the same.

        Yields its number and path; None and the path where that one is done. Where there are no locks, each
        fetch has a file of its own. What is left of it after an error is removed; what a killed
        process left is taken over.
        """
        part = Path(f"{final}{_PART}")
        descriptor = storage.open_own(str(part), os.O_RDWR | os.O_CREAT)
        try:
            locked = _lock_part(descriptor, part)
            if locked is False:
                os.close(descriptor)
                part = Path(f"{final}.{uuid.uuid4().hex}{_PART}")
                descriptor = storage.open_own(str(part), os.O_RDWR | os.O_CREAT)
            elif locked is None or not _is_file(descriptor, part):
                yield None, part
                return
            try:
                yield descriptor, part
            finally:
                if _is_file(descriptor, part):
                    part.unlink()
                if locked:  # also for a process that was forked meanwhile, and has the file open too
                    locks.flock(descriptor, fcntl.LOCK_UN, str(self.folder))
        finally:
            os.close(descriptor)

    def _make_room(self, path: str, part: int, num_bytes: int) -> None:
        """Evicts what was not used for the longest time, then takes the room for a file."""
        lock = storage.open_own(str(self.folder / _LOCK_FILE), os.O_RDWR | os.O_CREAT)
        try:
            locks.flock(lock, fcntl.LOCK_EX, str(self.folder))
            os.ftruncate(part, 0)
            files = sorted(self._files(), key=lambda entry: entry[1].st_mtime_ns)
            total = sum(status.st_size for _, status in files)
            for file, status in files:
                if total + num_bytes <= self.limit_bytes:
                    break
                if _remove_unheld(file):
                    total -= status.st_size
            if total + num_bytes > self.limit_bytes:
                raise CxrError(
                    f"the cache {self.folder} may hold {self.limit_bytes:,} bytes, and {total:,} of them are "
                    f"in use now; {path} needs {num_bytes:,} more: allow the cache more bytes"
                )
            os.ftruncate(part, num_bytes)  # so that others count it
        finally:
            os.close(lock)

    def _files(self) -> Iterator[tuple[Path, os.stat_result]]:
        """The files that were fetched, or are being so, with what the system says of each."""
        with os.scandir(self.folder) as entries:
            for entry in entries:
                if _FILE.fullmatch(entry.name):
                    with contextlib.suppress(FileNotFoundError):
                        status = entry.stat(follow_symlinks=False)
                        if stat.S_ISREG(status.st_mode):
                            yield Path(entry.path), status


def listed_sizes(folder: str) -> dict[str, int | None] | None:
    """Returns name and size of every file in a folder, in one call; a size is None where unknown.

    None where the storage cannot list, as most web servers.
    """
    if storage.is_url(folder):
        filesystem, name = fsspec.core.url_to_fs(folder)
        filesystem.invalidate_cache()
        try:
            listed = filesystem.ls(name, detail=True)
        except (OSError, NotImplementedError):
            return None
        return {entry["name"].rstrip("/").rsplit("/", 1)[-1]: entry.get("size") for entry in listed} or None
    sizes: dict[str, int | None] = {}
    with os.scandir(storage.local_path(folder)) as entries:
        for entry in entries:
            with contextlib.suppress(OSError):  # a link that leads nowhere
                if entry.is_file():
                    sizes[entry.name] = entry.stat().st_size
    return sizes


def _download(path: str, descriptor: int, num_bytes: int, sha256: str) -> None:
    """Copies a file, checking it; tries again a few times, for networks fail."""
    for attempt in range(ATTEMPTS):
        if attempt:
            time.sleep(FIRST_WAIT_SECONDS * 2 ** (attempt - 1))
        digest, offset = hashlib.sha256(), 0
        try:
            with storage.open_read(path) as file:
                while block := file.read(BLOCK_BYTES):
                    digest.update(block)
                    if offset + len(block) <= num_bytes:  # never more than there is room for
                        os.pwrite(descriptor, block, offset)
                    offset += len(block)
        except FileNotFoundError:
            raise CxrError(f"{path} is missing; run cxr-records verify on the dataset") from None
        except (CxrError, MemoryError):
            raise
        except Exception as error:  # each storage has its own kinds
            trouble = " ".join(f"{type(error).__name__}: {error}".split())
            continue
        if offset != num_bytes:
            trouble = f"{offset:,} bytes, the manifest says {num_bytes:,}"
        elif digest.hexdigest() != sha256:
            trouble = "its sha256 is not that of the manifest"
        else:
            return
    raise CxrError(
        f"{path} could not be fetched in {ATTEMPTS} attempts ({trouble}); "
        "run cxr-records verify on the dataset"
    )


def _digest(descriptor: int) -> str:
    digest, offset = hashlib.sha256(), 0
    while block := os.pread(descriptor, BLOCK_BYTES, offset):
        digest.update(block)
        offset += len(block)
    return digest.hexdigest()


def _lock_part(descriptor: int, part: Path) -> bool | None:
    """Waits for the lock of a file that is being fetched.

    It is not waited for in the kernel: whoever fetched the file may hold it for as long as it reads, under
    the name that the file has by then, and would be waited for so long.

    Returns:
        As `locks.flock`; None once the file is no longer being fetched.
    """
    while True:
        try:
            return locks.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, str(part.parent))
        except BlockingIOError:
            if not _is_file(descriptor, part):
                return None
            time.sleep(_POLL_SECONDS)


def _is_file(descriptor: int, path: Path) -> bool:
    """Tells whether an open file is still the one of that name."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.lstat(path))
    except FileNotFoundError:
        return False


def _remove_unheld(file: Path) -> bool:
    """Removes a file unless somebody holds it; tells whether it is gone."""
    try:
        descriptor = storage.open_own(
            str(file), os.O_RDWR
        )  # which NFS asks for where a lock is to be exclusive
    except FileNotFoundError:
        return True
    except PermissionError:
        return False
    try:
        if not locks.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, str(file.parent)):
            return False  # who holds it cannot be known
        file.unlink(missing_ok=True)
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)
    return True
