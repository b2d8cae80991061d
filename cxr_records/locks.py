"""Locks, so that one command at a time works on a folder: the kernel's, or markers in remote storage."""

import contextlib
import errno
import fcntl
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from typing import Any

from cxr_records import storage
from cxr_records.errors import CxrError
from cxr_records.progress import say

BEAT_SECONDS = 5.0  # between two signs of life of who holds a marker
LEASE_SECONDS = 60.0  # without one, after which it is taken for dead
_NO_LOCKS = {errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS}
_told: set[str] = set()  # of which folders this process has said that there are no locks


class Lock:
    """What `lock` gives while it is held."""

    def check(self) -> None:
        """Makes sure that it is still held.

        Raises:
            CxrError: another command took it, for this process gave no sign of life for too long.
        """


@contextlib.contextmanager
def lock(path: str, what: str) -> Iterator[Lock]:
    """Holds a lock so that one command at a time works on `what`. That of a dead process never blocks long.

    A local lock is the kernel's (flock) on the file `path`: it ends with its process, however that dies.

    In remote storage each command has a marker, `path`-ID, and gives signs of life in it. Who wants to work
    writes a marker and then looks for others; storages show at once what was written, so that of two one sees
    the other at least. Who sees that another holds gives up; of two that come at once the one of the higher
    ID does, and the other waits for that. A marker of a process of this machine that is no more, or without a
    sign of life for LEASE_SECONDS, is removed.

    Args:
        path: of the lock file.
        what: it is for, in words.

    Raises:
        CxrError: another command holds it; the message names its process and machine. Or the lock file is a
            link, whose file would be written over.
    """
    if storage.is_url(path):
        marker = _Marker(path, what)
        try:
            marker.acquire()
            yield marker
        finally:
            marker.release()
        return
    descriptor = storage.open_own(str(storage.local_path(path)), os.O_RDWR | os.O_CREAT)
    try:
        try:
            flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, os.path.dirname(path))
        except BlockingIOError:
            holder = os.read(descriptor, 200).decode(errors="replace").strip() or "another process"
            raise _in_use(what, holder) from None
        with contextlib.suppress(OSError):  # a note for people; a full disk is told by what matters
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{_process()}\n".encode(), 0)
        yield Lock()
    finally:
        os.close(descriptor)


def flock(descriptor: int, operation: int, folder: str) -> bool:
    """Locks an open file by the kernel's flock. Where its file system has no locks, says so once and goes on.

    Args:
        descriptor: of the file.
        operation: as for `fcntl.flock`.
        folder: where it is, to be named.

    Returns:
        Whether it is locked: False where there are no locks (some of NFS and of FUSE).

    Raises:
        BlockingIOError: another process holds it, and the operation does not wait.
    """
    try:
        fcntl.flock(descriptor, operation)
    except BlockingIOError:
        raise
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        if folder not in _told:
            _told.add(folder)
            say(
                f"warning: {folder}: this file system has no locks ({error.strerror}); see to it that no "
                "other command works there at the same time"
            )
        return False
    return True


class _Marker(Lock):
    """A lock in remote storage, held or wanted."""

    def __init__(self, path: str, what: str):
        self._what = what
        self._folder, _, self._prefix = path.rpartition("/")
        self._prefix += "-"
        self._name = f"{self._prefix}{uuid.uuid4().hex}"
        self._state: dict[str, Any] = {
            "process": _process(), "machine": _machine(), "pid": os.getpid(), "holds": False, "beat": 0
        }  # fmt: skip
        self._ended, self._writing = threading.Event(), threading.Lock()
        self._beating = threading.Thread(target=self._beat, daemon=True)

    def acquire(self) -> None:
        """Writes the marker and waits until it is clear who works.

        Raises:
            CxrError: another does.
        """
        self._write()
        self._beating.start()
        seen: dict[str, tuple[Any, float]] = {}  # by name: the last sign of life, and when it was seen first
        told = False
        while others := self._others():
            for name, other in others.items():
                sign, since = seen.get(name, (None, 0.0))
                alive = False if _is_dead(other) else None
                if name not in seen:
                    seen[name] = other.get("beat"), time.monotonic()
                elif sign != other.get("beat"):  # a number alone may be that of another process by now
                    alive = True
                elif time.monotonic() - since > LEASE_SECONDS:
                    alive = False
                if alive is False:
                    storage.remove(storage.join(self._folder, name))
                elif alive and (other.get("holds") or name < self._name):
                    raise _in_use(self._what, str(other.get("process")))
                elif not told and alive is None:
                    told = True
                    holder = other.get("process")
                    say(f"{self._folder}: was in use by {holder}; looking whether it still works")
            self._ended.wait(min(BEAT_SECONDS, 1.0) / 4)
        self._state["holds"] = True
        self._write()

    def check(self) -> None:
        """As `Lock.check`."""
        if not storage.exists(storage.join(self._folder, self._name)):
            raise CxrError(
                f"{self._what} was taken over by another command; run the same again once that has ended"
            )

    def release(self) -> None:
        """Removes the marker; a storage that cannot be reached does not hide what went wrong before."""
        self._ended.set()
        if self._beating.ident is not None:
            self._beating.join()
        with contextlib.suppress(CxrError, OSError):
            storage.remove(storage.join(self._folder, self._name))

    def _others(self) -> dict[str, dict[str, Any]]:
        """The other markers, by name, in order."""
        others = {}
        for name in storage.list_names(self._folder):
            if name.startswith(self._prefix) and name != self._name:
                with contextlib.suppress(FileNotFoundError):  # it is gone meanwhile
                    try:
                        content = json.loads(storage.read_bytes(storage.join(self._folder, name)))
                    except ValueError:
                        content = {}
                    others[name] = content if isinstance(content, dict) else {}
        return others

    def _beat(self) -> None:
        while not self._ended.wait(BEAT_SECONDS):
            with contextlib.suppress(CxrError, OSError):  # the next one may come through
                self.check()
                self._write()

    def _write(self) -> None:
        with self._writing:
            self._state["beat"] += 1
            storage.write_bytes(storage.join(self._folder, self._name), json.dumps(self._state).encode())


def _in_use(what: str, holder: str) -> CxrError:
    return CxrError(f"{what} is in use by {holder}; wait until it ends, or name another")


def _process() -> str:
    return f"process {os.getpid()} on {socket.gethostname()}"


def _machine() -> str:
    """Names this boot of this machine, and within it what numbers processes; "" where that is not known."""
    try:
        with open("/proc/sys/kernel/random/boot_id") as file:
            return f"{file.read().strip()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _is_dead(other: dict[str, Any]) -> bool:
    """Whether a marker's process was one of this machine and is no more; False where that is not known."""
    if not _machine() or other.get("machine") != _machine():
        return False
    try:
        os.kill(int(other["pid"]), 0)
    except ProcessLookupError:
        return True
    except (OSError, KeyError, TypeError, ValueError, OverflowError):
        pass
    return False
