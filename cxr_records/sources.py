"""What a source is: images in folders, archives and single files, local or on any fsspec URL.

Listing them, joining them to the table by file name, and reading one.
"""

import contextlib
import os
import stat
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from types import TracebackType
from typing import NamedTuple

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
from cxr_records.errors import UsageError
from cxr_records.names import IMAGE_ENDINGS, ImageNames, base_name, has_image_ending, is_litter
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
        whole = storage.absolute(pattern)
        matching = [path for path in storage.expand(whole) if not is_litter(_below(whole, path))]
        if not matching:
            raise UsageError(f"`images={pattern}`: nothing matches")
        for path in matching:
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
    matched: dict[str, list[Entry]] = {image_id: [] for image_id in image_ids}
    names = ImageNames(matched)
    found = [(entry, names.find(entry.name)) for entry in entries]
    exact = {image_id for entry, image_id in found if entry.name == image_id}
    unmatched = []
    for entry, image_id in found:
        if image_id is None or (image_id in exact and entry.name != image_id):
            unmatched.append(entry)
        else:
            matched[image_id].append(entry)
    return {image_id: sorted(its) for image_id, its in matched.items() if its}, unmatched


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
) -> list[Entry]:
    path = storage.absolute(path)
    if not storage.exists(path):
        silent = ", or its server does not answer" if storage.is_url(path) else ""
        raise UsageError(f"`images={path}`: no such file or folder{silent}")
    if storage.is_url(path):
        files = storage.find_files(path)
        if [_bare(file.url) for file in files] != [_bare(path)]:
            return [_file_entry(file.url, file.state) for file in files if _is_image(_below(path, file.url))]
        state = files[0].state
    elif os.path.isdir(path):
        return list(_list_local(path, warnings))
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
    return [Entry(member.name, path, kind, *member, state.mtime_ns, version) for member in members]


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
