"""Paths, local or on any fsspec URL: whole-or-absent writes, range reads, listing."""

import contextlib
import dataclasses
import datetime
import email.utils
import errno
import glob
import hashlib
import itertools
import os
import re
import shutil
import stat
import tempfile
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, BinaryIO, NamedTuple
from urllib.parse import unquote

from cxr_records import urls
from cxr_records.errors import CxrError, UsageError
from cxr_records.urls import redacted as redacted  # asked for here, with all else of paths

if TYPE_CHECKING:  # loaded where the first URL is met: local files need nothing of it
    from fsspec import AbstractFileSystem

# Of remote storage: reading so many bytes for nothing is cheaper than another request.
GAP_BYTES = 128 << 10
SPAN_BYTES = 8 << 20
_BLOCK_BYTES = 16 << 20  # that memory is taken for at once
_OBJECT_STORES = {"s3", "s3a", "gs", "gcs", "abfs", "az"}  # which have no folders
_BUCKETS = {"s3", "s3a", "gs", "gcs"}  # whose URLs begin with the bucket, and with no user
_ABSENT = {404, 410}  # what a web server answers where there is no file
_SCHEME = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]*(://|::.*://)")
_ONE_SLASH = re.compile(r"([a-zA-Z][a-zA-Z0-9+.-]+):/(?!/)")
_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}
_TEMPORARY = re.compile(r"^\..+\.tmp-[0-9a-f]{32}$")


class NoFileError(CxrError):
    """Under a name that should be a file's is something else: a folder, a FIFO, a device, a link."""


def is_url(path: str) -> bool:
    """Tells whether a path is for fsspec ("s3://...", "https://...") and not a local one."""
    return bool(_SCHEME.match(path)) and not path.lower().startswith("file:")


def given(path: str | os.PathLike[str]) -> str:
    """Returns a path as all functions here take it. This is the one rule for paths that come from outside.

    - A URL stays as it is, its scheme in small letters.
    - file:///data/x, file://localhost/data/x and file:x are local; %20 in them is a space, as in any URL.
    - ~ and ~user at the start are home folders, as in a shell, which leaves --out=~/x as it is. ./~x is not.
    - All else stays as it is: variables are the shell's, and *, ? and [ are for `expand`.

    Raises:
        UsageError: the path is empty, or one that no system has; the message says why.
    """
    path = os.fspath(path)
    if not path or "\0" in path:
        raise UsageError(f"found {path!r}, expected the path of a file or folder")
    if is_url(path):
        urls.remember(path)
        scheme, mark, rest = path.partition("://")
        if scheme.lower() in _BUCKETS and urls.credentials_before_host(path):
            raise UsageError(
                f"{path}: credentials in a URL are not read here; for s3 set AWS_ACCESS_KEY_ID and "
                "AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
            )
        return f"{scheme.lower()}{mark}{rest}"
    if path.lower().startswith("file:"):
        path = _path_of_file_url(path)
    elif (match := _ONE_SLASH.match(path)) and _is_protocol(match[1]):
        # pathlib makes it of a URL.
        raise UsageError(f"found {path}; a URL has two slashes after {match[1]}:, give it as text")
    if path.startswith("~"):
        home = os.path.expanduser(path)
        if home == path and not os.path.lexists(path):
            raise UsageError(f"{path}: no home folder of that name is known; for a folder here give ./{path}")
        path = home
    # What is here and called so must not be taken for a home when it is asked for again.
    return os.path.abspath(path) if os.path.normpath(path).startswith("~") else path


def local_path(path: str | os.PathLike[str]) -> Path:
    """Returns the path of a local file or folder, which may be given as a file: URL.

    Raises:
        UsageError: as `given`, or it is on another machine.
    """
    path = given(path)
    if is_url(path):
        raise UsageError(f"found {redacted(path)}, expected a local path")
    return Path(path)


def absolute(path: str | os.PathLike[str]) -> str:
    """Returns a path that means the same in every process: URLs as they are, local paths from the root.

    Raises:
        UsageError: as `given`.
    """
    path = given(path)
    if not is_url(path):
        return os.path.abspath(path)
    # On the web, a folder and the page of its name are two things.
    on_web = path.startswith(("http://", "https://")) or urls.name_of(path) != path
    return path if on_web or path.endswith("://") else path.rstrip("/")


def _is_protocol(name: str) -> bool:
    from fsspec.registry import available_protocols

    return name.lower() in available_protocols()


def _path_of_file_url(url: str) -> str:
    rest = url[len("file:") :]
    if rest.startswith("//"):
        host, slash, path = rest[2:].partition("/")
        if host.lower() in ("", "localhost"):
            rest = slash + path
        elif host.startswith(("~", ".")):
            rest = rest[2:]
        else:
            raise UsageError(
                f"{url}: names the machine {host!r}; a local path has three slashes, file:///..."
            )
    return unquote(rest) or "/"


def join(folder: str, *names: str) -> str:
    """Returns the path of a file below a folder, local or remote.

    Raises:
        UsageError: the folder is a URL with a query, which names one file.
    """
    if urls.name_of(folder) != folder:
        raise UsageError(f"{folder}: a URL with a query names one file, expected that of a folder")
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
        filesystem, name = _filesystem(path)
        with _said_clearly(path):
            file: BinaryIO = filesystem.open(name, "rb")
            return file
    return open(local_path(path), "rb")


def read_bytes(path: str) -> bytes:
    """Returns all bytes of a file as `open_regular` opens it: of what never ends there are none.

    Raises:
        NoFileError: it is something else than a file.
    """
    with open_regular(path) as file, _said_clearly(path):
        return file.read()


def open_regular(path: str) -> BinaryIO:
    """Opens a file as `open_read`, but no FIFO, device or socket, from which reading may never end.

    For files that came with a dataset or a run. Links are followed: many tools keep large files behind them.

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


def read_up_to(file: BinaryIO, num_bytes: int) -> bytes:
    """Returns the next bytes of an open file, so many or what there is.

    Memory is taken for what is there: the number may come from a file, and be any.
    """
    data = file.read(min(num_bytes, _BLOCK_BYTES))
    parts, left = [data], num_bytes - len(data)
    while left > 0 and (data := file.read(min(left, _BLOCK_BYTES))):
        parts.append(data)
        left -= len(data)
    return b"".join(parts)  # which is the very part where there is one


def read_regular(path: str, most_bytes: int) -> bytes:
    """Returns all bytes of a file as `open_regular` opens it.

    Raises:
        CxrError: as `open_regular`; or it has more than so many bytes.
    """
    with open_regular(path) as file:
        data = read_up_to(file, most_bytes + 1)
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


def check_parts(path: str) -> None:
    """Makes sure that any part of a file can be read, as an archive needs.

    Raises:
        CxrError: a web server gives whole files alone; with the remedy.
    """
    if path.startswith(("http://", "https://")):
        with open_read(path) as file, _said_clearly(path):
            try:
                file.seek(1)
                file.read(1)
            except ValueError:  # so says fsspec of a server without ranges, and of a size that is unknown
                raise CxrError(
                    f"{path}: its server gives no parts of a file, which an archive needs; download it first"
                ) from None


def file_sha256(path: str) -> str:
    """Returns the sha256 of a file's bytes, in hexadecimal."""
    with open_read(path) as file:
        return sha256_of(file)


def file_size(path: str) -> int:
    """Returns a file's size in bytes."""
    if is_url(path):
        filesystem, name = _filesystem(path)
        with _said_clearly(path):
            return int(filesystem.size(name))
    return local_path(path).stat().st_size


class FileState(NamedTuple):
    """What a storage tells of a file without reading it.

    Attributes:
        num_bytes: its size; 0 where unknown.
        mtime_ns: when it was changed last, in ns since 1970; 0 where unknown.
        version: another text whenever its bytes are others; "" where nothing of the kind is told, and only
            reading the file tells whether it changed. (Sizes and times of change can be set back. Local: also
            the time of change of the inode, which cannot, and its number, as two files of two folders that
            change names may have all else in common.)
    """

    num_bytes: int
    mtime_ns: int
    version: str


def file_state(path: str) -> FileState:
    """Returns what the storage of a file tells of it; links are followed.

    Raises:
        FileNotFoundError: there is none.
    """
    if is_url(path):
        filesystem, name = _filesystem(path)
        with _said_clearly(path):
            return _remote_state(filesystem.info(name))
    return local_state(os.stat(local_path(path)))


def identity(path: str) -> str | None:
    """Returns what changes when a file is written anew: its `FileState.version`.

    None where it is missing, or its storage does not tell such a thing.
    """
    try:
        return file_state(path).version or None
    except OSError:
        return None


def local_state(status: os.stat_result) -> FileState:
    """Returns the state of a local file from `os.stat` or `os.fstat`."""
    times = f"{status.st_mtime_ns}-{status.st_ctime_ns}-{status.st_ino}"
    return FileState(status.st_size, status.st_mtime_ns, f"{status.st_size}-{times}")


class RemoteFile(NamedTuple):
    """A file in remote storage."""

    url: str
    state: FileState


def find_files(url: str) -> list[RemoteFile]:
    """Returns all files below a URL, sorted by name; for the URL of a file, that one."""
    filesystem, root = _filesystem(url)
    with _said_clearly(url):
        is_file = filesystem.isfile(root)
        files = {root: filesystem.info(root)} if is_file else filesystem.find(root, detail=True)
    return [
        RemoteFile(filesystem.unstrip_protocol(name), _remote_state(info))
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
    """Returns the paths that a pattern with * or ? names, sorted; a plain path is returned as it is.

    So is a URL with a query, which begins with ? and belongs to one file.
    """
    if not any(mark in pattern for mark in "*?[") or urls.name_of(pattern) != pattern or exists(pattern):
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
        _name_final(error, temporary, final)
        raise
    _sync(final.parent)


def _name_final(error: BaseException, temporary: Path, final: Path) -> None:
    """Lets an error of the system name what was to be written, and not the temporary name or, as where a disk
    is full, none."""
    if isinstance(error, OSError) and str(error.filename or temporary) == str(temporary):
        error.filename, error.filename2 = str(final), None


def write_bytes(path: str, data: bytes) -> None:
    """Writes a file whole or not at all."""
    with atomic_file(path) as file:
        file.write(data)


@contextlib.contextmanager
def atomic_folder(path: str, last: str) -> Iterator[Path]:
    """Gives an empty local folder whose files appear under a path whole, or not at all.

    What was there is replaced: to be checked before. What a killed one left beside it is removed.

    Local: a temporary name beside it, fsync, rename. Elsewhere: uploads, that of `last` at the end, so that
    the folder is whole once it has that one.

    Args:
        path: of the folder; those above it are made.
        last: name of a file in it.
    """
    if is_url(path):
        with tempfile.TemporaryDirectory() as folder:
            yield Path(folder)
            remove(join(path, last))
            remove(path)
            files = [file for file in sorted(Path(folder).rglob("*")) if file.is_file()]
            for file in sorted(files, key=lambda file: file == Path(folder, last)):
                name = join(path, *file.relative_to(folder).parts)
                make_folder(name.rpartition("/")[0])
                write_bytes(name, file.read_bytes())
        return
    final = Path(os.path.realpath(local_path(path)))
    temporary, before = (final.with_name(f".{final.name}.tmp-{uuid.uuid4().hex}") for _ in range(2))
    try:
        temporary.mkdir(parents=True)
        yield temporary
        for file in temporary.rglob("*"):
            _sync(file)
        _sync(temporary)
        with contextlib.suppress(FileNotFoundError):
            final.rename(before)
        temporary.rename(final)
    except BaseException as error:
        _name_final(error, temporary, final)
        shutil.rmtree(temporary, ignore_errors=True)
        if not final.exists() and before.exists():
            before.rename(final)
        raise
    _sync(final.parent)
    for name in os.listdir(final.parent):  # what was there, and what killed ones left
        if _TEMPORARY.match(name) and name.startswith(f".{final.name}.tmp-"):
            shutil.rmtree(final.parent / name, ignore_errors=True)


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


def _filesystem(url: str) -> tuple["AbstractFileSystem", str]:
    """Returns the storage of a URL and the name in it, with nothing remembered of what it held before.

    Raises:
        UsageError: the kind of URL is unknown, or the package that reads it is not installed.
    """
    from fsspec.core import url_to_fs

    urls.remember(url)
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
    except (CxrError, MemoryError):
        raise
    except Exception as error:
        if not is_url(url):
            raise
        seen = _behind(error)
        text = " ".join(str(seen).split())
        kinds = " ".join(kind.__name__ for kind in type(seen).__mro__)
        # A traceback shows the cause too, which may quote the URL.
        cause = error if urls.redacted_text(repr(error) + repr(seen)) == repr(error) + repr(seen) else None
        if "Credentials" in kinds or "credentials" in text.lower():
            raise CxrError(
                f"{url}: found no credentials for this storage ({text}); for s3 set AWS_ACCESS_KEY_ID and "
                "AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
            ) from cause
        if isinstance(seen, PermissionError) or getattr(seen, "status", None) in (401, 403):
            signed = ", and that its signature has not expired" if urls.name_of(url) != url else ""
            raise CxrError(
                f"{url}: access denied ({text}); check the credentials and their rights there{signed}"
            ) from cause
        if any(word in kinds for word in ("Connection", "Connect", "Timeout", "gaierror")):
            raise CxrError(
                f"{url}: the storage cannot be reached ({text}); check the network and the endpoint"
            ) from cause
        if isinstance(getattr(seen, "status", None), int):  # of the answer of a web server
            raise CxrError(f"{url}: its server refuses ({text}); name another place, or try later") from cause
        if cause is not None:
            raise
        if isinstance(error, OSError):
            number = errno.ENOENT if isinstance(error, FileNotFoundError) else error.errno or errno.EIO
            raise type(error)(number, os.strerror(number), redacted(url)) from None
        raise CxrError(f"{url}: {type(error).__name__}: {text}") from None


def _behind(error: Exception) -> BaseException:
    """What a web server answered, or that it did not, where fsspec takes it for an absent file."""
    cause = error.__cause__
    if not isinstance(error, FileNotFoundError) or cause is None:
        return error
    status = getattr(cause, "status", None)
    refused = isinstance(status, int) and status not in _ABSENT
    return cause if refused or "Connect" in type(cause).__name__ else error


def _exists(filesystem: "AbstractFileSystem", name: str) -> bool:
    """Like fsspec's own, which takes every error for absence."""
    try:
        filesystem.info(name)
    except FileNotFoundError as error:
        if _behind(error) is not error:
            raise
        return False
    return True


# Under these keys fsspec's storages tell what of a file changes with its bytes, the surest first, and when it
# was changed.
_VERSIONS = ("ETag", "etag", "generation", "md5Hash", "Content-MD5", "Digest", "sha")
_TIMES = ("mtime", "LastModified", "last_modified", "Last-Modified", "updated", "modified", "created")


def _remote_state(info: Mapping[str, Any]) -> FileState:
    """The state of a file from fsspec's listing, whose keys differ by storage.

    One key is taken: the same storage tells others in a listing than of a single file.
    """
    size = int(info.get("size") or 0)
    time = next((info[key] for key in _TIMES if info.get(key)), None)
    told = str(next((info[key] for key in _VERSIONS if info.get(key)), time or "")).strip('"')
    return FileState(size, _ns(time), told and f"{size}-{told}")


def opened_version(file: BinaryIO) -> str:
    """Returns the `FileState.version` of a file that `open_read` has opened, "" where it is not told."""
    details = getattr(file, "details", None)  # of most of fsspec's
    if isinstance(details, Mapping):
        return _remote_state(details).version
    try:
        return local_state(os.fstat(file.fileno())).version
    except (OSError, AttributeError):
        return ""


def _ns(time: object) -> int:
    """A time in ns since 1970; 0 where it is of no kind that we know."""
    if isinstance(time, str):  # of a web server
        try:
            time = email.utils.parsedate_to_datetime(time)
        except ValueError:
            return 0
    if isinstance(time, datetime.datetime):
        time = time.timestamp()
    return int(time * 1e9) if isinstance(time, int | float) else 0


def _sync(path: Path) -> None:
    """Makes a file's bytes, or what was renamed in a folder, survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
