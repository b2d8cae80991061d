"""The shards of a split as files that can be read at any byte: held open on disk, or fetched into the cache.

What is read belongs to the dataset that was opened: shards on disk are held open, so that a rebuild, which
puts others under their names, changes nothing; those that are fetched are known by their sha256.
"""

import contextlib
import mmap
import os
import resource
import sys
import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Protocol, TypeVar

import numpy as np

from cxr_records import storage
from cxr_records.cache import HeldFile, ShardCache, listed_sizes
from cxr_records.dataset import Dataset
from cxr_records.errors import CxrError, UsageError
from cxr_records.manifest import ShardEntry
from cxr_records.order import INTERLEAVED_SHARDS
from cxr_records.record_table import VERIFY

FETCH_AHEAD = 4  # remote shards fetched before they are read
_HELD_SHARDS = 16  # remote ones at most: what is released stays in the cache, as long as it has room
T = TypeVar("T")
_OTHER_FILES = 64  # that a process may open beside the shards it holds


class OpenShard(Protocol):
    """A file that stays open as long as somebody refers to this object."""

    def fileno(self) -> int:
        """Returns the descriptor."""

    def mapped(self) -> np.ndarray | None:
        """Returns all bytes, as they lie in the page cache: uint8, read-only. None: some are gone by now."""


class _Mapped:
    """An open file that is mapped when it is first asked for."""

    def __init__(self, descriptor: int, size: int):
        self._descriptor, self._size, self._bytes = descriptor, size, np.empty(0, np.uint8)

    def fileno(self) -> int:
        """As `OpenShard.fileno`."""
        return self._descriptor

    def mapped(self) -> np.ndarray | None:
        """As `OpenShard.mapped`."""
        # Who uses bytes that were cut off, as where another file is copied over this one, is killed.
        if os.fstat(self._descriptor).st_size < self._size:
            return None
        if not len(self._bytes):
            self._bytes = np.frombuffer(
                mmap.mmap(self._descriptor, self._size, access=mmap.ACCESS_READ), np.uint8
            )
        return self._bytes


class ShardFiles(Protocol):
    """The shards of a split, by number."""

    def __getitem__(self, shard: int) -> OpenShard:
        """Opens a shard, or finds it open."""

    def ahead(self, shards: Sequence[int]) -> None:
        """Says which shards will be read next, the next one first."""

    def check_room(self, at_once: int) -> None:
        """Makes sure that so many shards can be read in turn; a UsageError says what that needs."""

    def trouble(self, shard: int, found: str) -> CxrError:
        """Returns the error to raise for what was found in a shard."""


Fetch = Callable[[str, int, str], HeldFile]  # by URL, size and sha256; see `ShardCache.fetch`


def open_shards(
    dataset: Dataset,
    split: str,
    cache_dir: str | None,
    cache_bytes: int,
    readers: int,
    fetch: Fetch | None = None,
) -> ShardFiles:
    """Opens the shards of a split.

    Args:
        dataset: an open one.
        split: its name.
        cache_dir: local folder for shards of a remote dataset; None is the user's cache folder.
        cache_bytes: what that folder may hold at most.
        readers: threads that read at once.
        fetch: what brings remote shards; None is the cache.

    Raises:
        CxrError: a shard is missing or of another size than it was written, there are more than a process may
            open, or the dataset was rebuilt since it was opened.
        UsageError: the cache is too small.
    """
    entries = dataset.info(split).shards
    if storage.is_url(dataset.path):
        if fetch is not None:
            return FetchedShards(dataset, entries, fetch, sys.maxsize, readers)
        cache = ShardCache(cache_dir, cache_bytes)
        return FetchedShards(dataset, entries, cache.fetch, cache.limit_bytes, readers)
    return LocalShards(dataset, entries)


class LocalShards:
    """Shards on disk, all held open."""

    def __init__(self, dataset: Dataset, entries: Sequence[ShardEntry]):
        """Opens them; see `open_shards`."""
        check_sizes(dataset.path, entries)
        self._paths = [storage.join(dataset.path, entry.file) for entry in entries]
        allow_open_files(len(self._paths))
        self._files = [
            _LocalShard(path, entry.bytes) for path, entry in zip(self._paths, entries, strict=True)
        ]
        self._advised: deque[int] = deque(maxlen=4 * INTERLEAVED_SHARDS)  # once in an epoch is enough
        dataset.check_unchanged()  # still, so that these are its shards

    def __getitem__(self, shard: int) -> OpenShard:
        return self._files[shard]

    def ahead(self, shards: Sequence[int]) -> None:
        """Has the system read the first few as they lie, which is quicker than record by record."""
        for shard in shards[:INTERLEAVED_SHARDS]:
            if shard not in self._advised:
                self._advised.append(shard)
                self._files[shard].advise()

    def check_room(self, at_once: int) -> None:
        """Does nothing: all are open."""

    def trouble(self, shard: int, found: str) -> CxrError:
        """As `ShardFiles.trouble`."""
        return CxrError(f"{self._paths[shard]} {found}; {VERIFY}")


class _LocalShard(_Mapped):
    """A file on disk."""

    def __init__(self, path: str, size: int):
        self._file = storage.open_regular(path)
        super().__init__(self._file.fileno(), size)

    def advise(self) -> None:
        """Has the system read all of it into the page cache; returns at once."""
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(self.fileno(), 0, 0, os.POSIX_FADV_WILLNEED)


class FetchedShards:
    """Shards in remote storage, fetched into a cache as they are read.

    Those that were read last are held there. Others may be evicted for whatever else needs the room, and are
    then fetched again.
    """

    def __init__(
        self, dataset: Dataset, entries: Sequence[ShardEntry], fetch: Fetch, limit_bytes: int, readers: int
    ):
        """Fetches nothing yet; see `open_shards`."""
        check_sizes(dataset.path, entries)
        self._dataset, self._entries, self._bring, self._limit = dataset, entries, fetch, limit_bytes
        self._largest = max(entry.bytes for entry in entries)
        room = limit_bytes // self._largest
        # Of the room that those read in turn leave, a third at a time is on its way.
        self._fetches = max(1, min(FETCH_AHEAD, (room - INTERLEAVED_SHARDS) // 3))
        # Each reader may still have one that was just let go.
        self._most = max(1, min(_HELD_SHARDS, room - self._fetches - readers + 1))
        self._begin()

    def _begin(self) -> None:
        """Also after a fork: threads and locks of the parent do not live on in its child."""
        self._process = os.getpid()
        self._held: OrderedDict[int, _FetchedShard] = OrderedDict()
        self._coming: dict[int, Future[_FetchedShard]] = {}
        self._lock = threading.RLock()  # for `submitted`
        self._pool = ThreadPoolExecutor(self._fetches)

    def check_room(self, at_once: int) -> None:
        """Makes sure that the cache is large enough to read so many shards in turn.

        Raises:
            UsageError: it is not.
        """
        largest = self._largest
        if self._limit // largest < at_once + 3:
            raise UsageError(
                f"found a cache of {self._limit:,} bytes; {at_once} shards of "
                f"{self._dataset.path} are read at once, so it must hold {at_once + 3} of up to {largest:,} "
                f"bytes: allow {(at_once + 3) * largest:,}"
            )

    def __getitem__(self, shard: int) -> OpenShard:
        """Opens a shard.

        Raises:
            UsageError: the cache is too small for it.
            CxrError: it cannot be fetched, or the dataset was rebuilt since it was opened.
        """
        self.check_room(1)
        coming = self._ask_for(shard, self._in_thread_or_here)
        return coming if isinstance(coming, _FetchedShard) else coming.result()

    def ahead(self, shards: Sequence[int]) -> None:
        """Begins to fetch the first few of them."""
        with contextlib.suppress(RuntimeError):  # Python ends, and no thread begins more work
            for shard in shards[: self._fetches]:
                self._ask_for(shard, self._in_thread)

    def trouble(self, shard: int, found: str) -> CxrError:
        """As `ShardFiles.trouble`."""
        url = storage.join(self._dataset.path, self._entries[shard].file)
        with self._lock:
            held = self._held.get(shard)
        if held and not held.path:  # a copy without a name, of which nothing is left to delete
            return CxrError(f"{url} {found}, in the copy that was fetched; {VERIFY}")
        where = f" ({held.path})" if held else ""
        return CxrError(f"{url} {found}, in the cache{where}; delete it there")

    def _in_thread(self, shard: int) -> "Future[_FetchedShard]":
        return self._pool.submit(self._fetch, shard)

    def _in_thread_or_here(self, shard: int) -> "Future[_FetchedShard]":
        return submitted(self._pool, self._fetch, shard)

    def _ask_for(
        self, shard: int, begin: "Callable[[int], Future[_FetchedShard]]"
    ) -> "_FetchedShard | Future[_FetchedShard]":
        if os.getpid() != self._process:
            self._begin()
        with self._lock:
            if shard in self._held:
                self._held.move_to_end(shard)
                return self._held[shard]
            if shard not in self._coming:
                coming = begin(shard)
                if coming.done():
                    return coming
                self._coming[shard] = coming
            return self._coming[shard]

    def _fetch(self, shard: int) -> "_FetchedShard":
        entry = self._entries[shard]
        try:
            with self._lock:
                while len(self._held) >= self._most:
                    self._held.popitem(last=False)
            held = self._bring(storage.join(self._dataset.path, entry.file), entry.bytes, entry.sha256)
            fetched = _FetchedShard(held, entry.bytes)
            with self._lock:
                self._held[shard] = fetched
            return fetched
        except OSError as error:  # of the cache's disk; what a storage raises is a CxrError by now
            self._dataset.check_unchanged()
            url, said = storage.join(self._dataset.path, entry.file), error.strerror or error
            raise CxrError(f"{url} could not be put into the cache: {said}") from None
        except Exception:
            self._dataset.check_unchanged()  # a rebuild is the cause
            raise
        finally:
            with self._lock:
                self._coming.pop(shard, None)


class _FetchedShard(_Mapped):
    """A file in the cache that nobody evicts, and that stays open, while somebody refers to this object."""

    def __init__(self, held: HeldFile, size: int):
        self.path, self._held = held.path, held
        super().__init__(held.fileno(), size)

    def __del__(self) -> None:
        self._held.release()


def submitted(pool: ThreadPoolExecutor, function: Callable[..., T], *arguments: Any) -> Future[T]:
    """Returns what a pool's thread makes of it; once Python ends and begins no more work, it is done here."""
    try:
        return pool.submit(function, *arguments)
    except RuntimeError:  # from the end of the main thread on, though others may read still
        done: Future[T] = Future()
        try:
            done.set_result(function(*arguments))
        except Exception as error:
            done.set_exception(error)
        return done


def check_sizes(dataset: str, entries: Sequence[ShardEntry]) -> None:
    """Compares the shards at hand with the manifest, before anything is read.

    Raises:
        CxrError: one is missing or of another size.
    """
    sizes = listed_sizes(dataset)
    if sizes is None:  # the storage cannot list; each shard is checked as it is fetched
        return
    for entry in entries:
        path = storage.join(dataset, entry.file)
        if entry.file not in sizes:
            if storage.exists(path):
                storage.open_regular(path).close()  # which says what it is instead
            raise CxrError(f"{path} is missing; {VERIFY}")
        size = sizes[entry.file]
        if size is not None and size != entry.bytes:
            raise CxrError(f"{path}: {size:,} bytes, the manifest says {entry.bytes:,}; {VERIFY}")


def allow_open_files(number: int) -> None:
    """Lets the process hold so many files more, each of them mapped too, as far as its hard limit goes.

    Raises:
        CxrError: it does not go so far.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    opened = len(os.listdir("/dev/fd"))
    wanted = 2 * (number + opened) + _OTHER_FILES  # as shards of other splits may not be mapped yet
    if soft == resource.RLIM_INFINITY or wanted <= soft:
        return
    if hard != resource.RLIM_INFINITY and 2 * number + opened + _OTHER_FILES > hard:
        raise CxrError(
            f"found {number:,} shards, which are held open while they are read, and a limit of {hard:,} open "
            "files; raise that (ulimit -Hn), or build with a larger `shard_mb`"
        )
    if hard != resource.RLIM_INFINITY:
        wanted = min(wanted, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
