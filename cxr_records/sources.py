"""What a source is: images in folders, archives and single files, local or on any fsspec URL.

Listing them, joining them to the table by file name, and reading one.
"""

import contextlib
import os
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from types import TracebackType
from typing import NamedTuple

from cxr_records import storage
from cxr_records.archives import ARCHIVE_ENDINGS, Member, archive_kind, base_name, list_members, open_archive
from cxr_records.errors import UsageError
from cxr_records.urls import name_of, redacted_text

IMAGE_ENDINGS = (".png", ".jpg", ".jpeg", ".dcm", ".dicom")
MAX_FILE_BYTES = 256 << 20  # no X-ray file is near 256 MiB; a larger one is damage or an attack


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
        """The entry for people: the path without credentials, with the name in the archive after it."""
        source = storage.redacted(self.source)
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
        matching = storage.expand(storage.absolute(pattern))
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
    by_stem = {_stem(image_id): image_id for image_id in matched}
    others = []
    for entry in entries:
        if entry.name in matched:
            matched[entry.name].append(entry)
        else:
            others.append(entry)
    unmatched = []
    exact = {image_id for image_id, same_name in matched.items() if same_name}
    for entry in others:
        image_id = by_stem.get(_stem(entry.name))
        if image_id is None or image_id in exact:
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
        self._archive: tuple[str, int] | None = None  # path and time of change of the open archive
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
            SourceReadError: with the reason, which names no path.
        """
        if entry.num_bytes > MAX_FILE_BYTES:
            raise SourceReadError(f"{entry.num_bytes:,} bytes, more than the {MAX_FILE_BYTES:,} allowed")
        try:
            if entry.kind == "file":
                return storage.read_bytes(entry.source)
            data = self._reader_of(entry)(Member(entry.member, entry.offset, entry.num_bytes))
        except MemoryError:
            raise
        except Exception as error:  # which one an archive or a network raises is no contract
            reason = (
                getattr(error, "strerror", None) or str(error).split(entry.source)[0] or type(error).__name__
            )
            raise SourceReadError(f"cannot be read: {redacted_text(' '.join(reason.split()))}") from error
        if len(data) < entry.num_bytes:
            raise SourceReadError(f"cut short: {len(data):,} of its {entry.num_bytes:,} bytes are there")
        return data

    def _reader_of(self, entry: Entry) -> Callable[[Member], bytes]:
        """Opens the entry's archive, if it is not the one that is open."""
        archive = (entry.source, entry.mtime_ns)
        if self._read_member is None or self._archive != archive:
            self._open.close()
            self._archive, self._read_member = None, None
            self._read_member = self._open.enter_context(open_archive(*archive, self._index_folder))
            self._archive = archive
        return self._read_member


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
        mtime_ns = storage.mtime_ns(path)
        members, problem = list_members(path, _is_image, index_folder, keep_index)
        if problem:
            warnings.append(
                f"{path}: damaged after {len(members):,} images ({problem}); fetch the archive again"
            )
        return [Entry(member.name, path, kind, *member, mtime_ns) for member in members]
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
    files = storage.find_files(url)
    if [file.url for file in files] == [url] and not _is_image(url):
        raise UsageError(f"`images={url}`: {_unknown_kind(url)}")
    for file in files:
        if _is_image(file.url):
            yield Entry(base_name(name_of(file.url)), file.url, "file", "", 0, file.num_bytes, file.mtime_ns)


def _is_image(name: str) -> bool:
    base = base_name(name_of(name))
    return base.lower().endswith(IMAGE_ENDINGS) and not base.startswith(".")


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
