import contextlib
import gzip
import http.server
import io
import os
import shutil
import struct
import tarfile
import threading
import zipfile
from functools import partial
from pathlib import Path

import fsspec
import indexed_gzip
import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cxr_records import sources
from cxr_records.errors import CxrError, UsageError
from cxr_records.sources import (
    Entry,
    SourceReader,
    SourceReadError,
    archive_kind,
    list_sources,
    match_entries,
)


def noise(seed: int, size: int = 3000) -> bytes:
    """Bytes that no gzip makes smaller."""
    return np.random.default_rng(seed).bytes(size)


# What is in every source of these tests; the names of half of them are trouble.
FILES = {
    "00000001_000.png": noise(1),
    "images_001/images/00000002_000.png": noise(2, 70_000),
    "images_001/images/00000002_001.PNG": noise(3, 1),
    "images_002/images/Größe 3 (copy).JPG": noise(4),
    "images_002/a.b.jpeg": b"",
    "images_002/scan.dcm": noise(5),
    "images_002/SCAN 2.DICOM": noise(6),
}
JUNK = {
    ".DS_Store": b"junk",
    "images_001/._00000002_000.png": b"junk",
    "__MACOSX/images_001/._00000002_000.png": b"junk",
    "images_001/.hidden.png": b"junk",
    "README.txt": b"junk",
    "images_001/png": b"junk",
    "images_001/x.png.part": b"junk",
    "images_002/Thumbs.db": b"junk",
}
EXPECTED = sorted((name.rsplit("/", 1)[-1], data) for name, data in FILES.items())


@pytest.fixture(autouse=True)
def empty_memory():
    MemoryFileSystem.store.clear()
    MemoryFileSystem.pseudo_dirs[:] = [""]


def write_folder(path: Path, files=None) -> str:
    for name, data in ({**FILES, **JUNK} if files is None else files).items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)
    return str(path)


def write_zip(path: Path, files=None, compression=zipfile.ZIP_DEFLATED) -> str:
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("images_001/", b"")
        for name, data in ({**FILES, **JUNK} if files is None else files).items():
            archive.writestr(name, data)
    return str(path)


def tar_bytes(files=None, format=tarfile.PAX_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=format) as archive:
        folder = tarfile.TarInfo("images_001")
        folder.type = tarfile.DIRTYPE
        archive.addfile(folder)
        for name, data in ({**FILES, **JUNK} if files is None else files).items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def write_tar(path: Path, files=None, format=tarfile.PAX_FORMAT) -> str:
    path.write_bytes(tar_bytes(files, format))
    return str(path)


def write_targz(path: Path, files=None, members=1) -> str:
    """Writes a .tar.gz of one or several gzip members, as pigz and cat make them."""
    data = tar_bytes(files)
    step = -(-len(data) // members)
    parts = [gzip.compress(data[at : at + step], 1, mtime=0) for at in range(0, len(data), step)]
    path.write_bytes(b"".join(parts))
    return str(path)


SOURCES = {
    "folder": lambda path: write_folder(path / "folder"),
    "file url": lambda path: "file://" + write_folder(path / "folder"),
    "zip": lambda path: write_zip(path / "x.zip"),
    "zip stored": lambda path: write_zip(path / "x.ZIP", compression=zipfile.ZIP_STORED),
    "tar": lambda path: write_tar(path / "x.tar"),
    "tar of GNU": lambda path: write_tar(path / "x.tar", format=tarfile.GNU_FORMAT),
    "tar.gz": lambda path: write_targz(path / "x.tar.gz"),
    "tgz": lambda path: write_targz(path / "x.tgz"),
    "tar.gz of many members": lambda path: write_targz(path / "x.tar.gz", members=7),
}


def read_all(entries, index_folder=None) -> list[tuple[str, bytes]]:
    with SourceReader(index_folder) as reader:
        return [(entry.name, reader.read(entry)) for entry in entries]


def entry(name: str, source: str = "/x", **fields) -> Entry:
    defaults = {"kind": "file", "member": "", "offset": 0, "num_bytes": 1, "mtime_ns": 0}
    return Entry(name=name, source=source, **(defaults | fields))


# ---- every kind of source -------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", SOURCES)
def test_every_kind_of_source_lists_and_reads_the_same_images(kind, tmp_path):
    path = SOURCES[kind](tmp_path)
    listing = list_sources([path], str(tmp_path / "index"))
    assert listing.warnings == []
    assert sorted(read_all(listing.entries, str(tmp_path / "index"))) == EXPECTED
    assert {e.num_bytes for e in listing.entries} == {len(data) for data in FILES.values()}
    local = path.removeprefix("file://")
    changed = {os.stat(e.source).st_mtime_ns for e in listing.entries}
    assert {e.mtime_ns for e in listing.entries} == changed
    if local.endswith("folder"):
        assert {os.path.relpath(e.source, local) for e in listing.entries} == set(FILES)
        assert all(e.label == e.source for e in listing.entries)
    else:
        assert {e.label for e in listing.entries} == {f"{local}:{name}" for name in FILES}
    # In any order, each by a reader of its own.
    for one in listing.entries[::-1]:
        assert read_all([one], str(tmp_path / "index"))[0] in EXPECTED


@pytest.mark.parametrize("kind", SOURCES)
def test_listing_twice_gives_the_same_in_the_same_order(kind, tmp_path):
    path = SOURCES[kind](tmp_path)
    first, second = (list_sources([path], str(tmp_path / "index")) for _ in range(2))
    assert first == second
    assert list_sources([path], None) == first


def test_sources_mix_and_a_pattern_names_several(tmp_path):
    write_targz(tmp_path / "images_2.tar.gz", {"a/b.png": b"b"})
    write_targz(tmp_path / "images_1.tar.gz", {"a.png": b"a"})
    paths = [
        str(tmp_path / "images_*.tar.gz"),
        write_zip(tmp_path / "x.zip", {"c.png": b"c"}),
        write_folder(tmp_path / "folder", {"deep/er/d.png": b"d"}),
        write_tar(tmp_path / "y.tar", {"e.png": b"e"}),
        write_folder(tmp_path / "alone", {"f.jpg": b"f"}) + "/f.jpg",
    ]
    entries = list_sources(paths).entries
    assert read_all(entries) == [(f"{c}.{'jpg' if c == 'f' else 'png'}", c.encode()) for c in "abcdef"]
    assert [e.kind for e in entries] == ["targz", "targz", "zip", "file", "tar", "file"]


def test_a_path_named_twice_is_listed_once(tmp_path):
    folder = write_folder(tmp_path / "folder", {"a.png": b"a", "b/c.png": b"c"})
    once = list_sources([folder])
    assert list_sources([folder, folder + "/", folder + "/b", "file://" + folder]) == once


def test_a_relative_path_is_made_absolute(tmp_path, monkeypatch):
    write_folder(tmp_path / "folder", {"a.png": b"a"})
    monkeypatch.chdir(tmp_path)
    assert [e.source for e in list_sources(["folder"]).entries] == [str(tmp_path / "folder" / "a.png")]


def test_the_caller_is_told_of_each_archive_before_it_is_read(tmp_path):
    paths = [SOURCES[kind](tmp_path) for kind in ("folder", "zip", "tar", "tar.gz")]
    told = []
    list_sources(paths, on_archive=told.append)
    assert told == paths[1:]


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("a.zip", "zip"),
        ("a.ZIP", "zip"),
        ("a.tar", "tar"),
        ("a.tar.gz", "targz"),
        ("A.Tgz", "targz"),
        ("a.gz", None),
        ("a.png", None),
        ("zip", None),
    ],
)
def test_an_archive_is_known_by_its_ending(path, kind):
    assert archive_kind(path) == kind


def test_a_folder_that_is_named_like_an_archive_is_a_folder(tmp_path):
    path = write_folder(tmp_path / "images.zip", {"a.png": b"a"})
    assert read_all(list_sources([path]).entries) == [("a.png", b"a")]


# ---- folders --------------------------------------------------------------------------------------------


def test_links_are_followed_and_loops_of_links_end(tmp_path):
    write_folder(tmp_path / "elsewhere", {"b.png": b"b"})
    folder = tmp_path / "folder"
    write_folder(folder, {"a.png": b"a", "one/c.png": b"c", "two/d.png": b"d"})
    (folder / "linked").symlink_to(tmp_path / "elsewhere")
    (folder / "again").symlink_to(tmp_path / "elsewhere")
    (folder / "e.png").symlink_to(folder / "a.png")
    (folder / "nothing.png").symlink_to(tmp_path / "absent")
    for below in ("one", "two"):
        (folder / below / "up").symlink_to(folder)
        (folder / below / "self").symlink_to(".")
    found = [os.path.relpath(e.source, folder) for e in list_sources([str(folder)]).entries]
    assert found == ["a.png", "e.png", "again/b.png", "one/c.png", "two/d.png"]


def test_pipes_and_folders_with_an_image_name_are_no_images(tmp_path):
    write_folder(tmp_path, {"a.png": b"a", "folder.png/b.png": b"b"})
    os.mkfifo(tmp_path / "pipe.png")
    assert [e.name for e in list_sources([str(tmp_path)]).entries] == ["a.png", "b.png"]


def test_a_folder_that_cannot_be_listed_is_told_and_the_rest_is_taken(tmp_path, monkeypatch):
    path = write_folder(tmp_path / "folder", {"a.png": b"a", "secret/b.png": b"b"})
    scandir = os.scandir

    def guarded(folder):
        if str(folder).endswith("secret"):
            raise PermissionError(13, "Permission denied", folder)
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", guarded)
    listing = list_sources([path])
    assert [e.name for e in listing.entries] == ["a.png"]
    assert listing.warnings == [f"{path}/secret: cannot be listed (Permission denied)"]


def test_a_file_removed_after_listing_is_a_read_error_without_its_path(tmp_path):
    path = write_folder(tmp_path / "folder", {"a.png": b"a", "b.png": b"b"})
    entries = list_sources([path]).entries
    os.remove(entries[0].source)
    with SourceReader(None) as reader:
        with pytest.raises(SourceReadError, match=r"^cannot be read: No such file or directory$"):
            reader.read(entries[0])
        assert reader.read(entries[1]) == b"b"


def test_a_file_that_became_shorter_after_listing_is_a_read_error(tmp_path):
    path = write_tar(tmp_path / "x.tar", {"a.png": noise(1)})
    entries = list_sources([path]).entries
    os.truncate(path, 1024)
    with pytest.raises(SourceReadError, match=r"^cut short: 0 of its 3,000 bytes are there$"):
        read_all(entries)


def test_a_huge_file_is_refused_before_it_is_read():
    with pytest.raises(SourceReadError, match=r"^300,000,000 bytes, more than the 268,435,456 allowed$"):
        read_all([entry("a.png", "/absent", num_bytes=300_000_000)])


# ---- URLs -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["zip", "zip stored", "tar", "tar.gz", "tgz", "tar.gz of many members"])
def test_an_archive_in_remote_storage_lists_and_reads_the_same_images(kind, tmp_path):
    local = SOURCES[kind](tmp_path)
    url = f"memory://bucket/{os.path.basename(local)}"
    with fsspec.open(url, "wb") as file:
        file.write(Path(local).read_bytes())
    for index in ("memory://bucket/index", str(tmp_path / "index")):
        for _ in range(2):
            listing = list_sources([url], index)
            assert sorted(read_all(listing.entries, index)) == EXPECTED
    assert {e.source for e in listing.entries} == {url}


def test_a_folder_in_remote_storage_lists_and_reads_the_same_images():
    for name, data in {**FILES, **JUNK}.items():
        fsspec.filesystem("memory").pipe_file(f"/bucket/set/{name}", data)
    entries = list_sources(["memory://bucket/set"]).entries
    assert sorted(read_all(entries)) == EXPECTED
    assert all(e.mtime_ns > 0 for e in entries)
    matching = list_sources(["memory://bucket/set/*.png", "memory://bucket/set/*_002/scan.d*"]).entries
    assert read_all(matching) == [(name, dict(EXPECTED)[name]) for name in ("00000001_000.png", "scan.dcm")]


@pytest.fixture
def server(tmp_path):
    """Serves tmp_path/served on this machine; gives the address."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        """Answers ranges, as real servers do and Python's does not."""

        def log_message(self, *_):
            pass

        def do_GET(self):
            path, asked = Path(self.translate_path(self.path)), self.headers.get("Range")
            if not path.is_file() or not asked:
                return super().do_GET()
            data = path.read_bytes()
            start, end = asked.removeprefix("bytes=").split("-")
            part = data[int(start) : int(end or len(data)) + 1]
            self.send_response(206)
            self.send_header("Content-Length", str(len(part)))
            self.send_header("Content-Range", f"bytes {start}-{int(start) + len(part) - 1}/{len(data)}")
            self.end_headers()
            self.wfile.write(part)

    (tmp_path / "served").mkdir()
    with http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), partial(Quiet, directory=tmp_path / "served")
    ) as http_server:
        threading.Thread(target=http_server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{http_server.server_port}"
        http_server.shutdown()


@pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz"])
def test_an_archive_on_a_web_server_lists_and_reads_the_same_images(kind, server, tmp_path):
    local = SOURCES[kind](tmp_path / "served")
    url = f"{server}/{os.path.basename(local)}"
    for _ in range(2):
        listing = list_sources([url], str(tmp_path / "index"))
        assert listing.warnings == []
        assert sorted(read_all(listing.entries, str(tmp_path / "index"))) == EXPECTED


def test_one_image_on_a_web_server_is_read_and_an_absent_one_refused(server, tmp_path):
    write_folder(tmp_path / "served", {"a.png": b"a"})
    assert read_all(list_sources([f"{server}/a.png"]).entries) == [("a.png", b"a")]
    with pytest.raises(UsageError, match=r"/b\.png`: no such file or folder, or its server does not answer$"):
        list_sources([f"{server}/b.png"])


# ---- the index of a .tar.gz -----------------------------------------------------------------------------


def index_files(folder: Path) -> list[str]:
    return sorted(path.suffix for path in folder.iterdir()) if folder.is_dir() else []


def refuse_to_inflate(monkeypatch):
    def refuse(*_, **__):
        pytest.fail("the archive was read again")

    monkeypatch.setattr(indexed_gzip, "IndexedGzipFile", refuse)


def test_a_second_listing_does_not_open_the_archive(tmp_path, monkeypatch):
    path, index = write_targz(tmp_path / "x.tar.gz"), tmp_path / "index"
    first = list_sources([path], str(index))
    assert index_files(index) == [".gzidx", ".members"]
    refuse_to_inflate(monkeypatch)
    assert list_sources([path], str(index)) == first
    assert list_sources([path], str(index), keep_index=False) == first


def test_an_index_is_not_written_where_none_is_to_be_kept(tmp_path):
    path, index = write_targz(tmp_path / "x.tar.gz"), tmp_path / "index"
    listing = list_sources([path], str(index), keep_index=False)
    assert not index.exists()
    assert sorted(read_all(listing.entries, str(index))) == EXPECTED


def test_an_archive_that_changed_is_listed_anew(tmp_path):
    path, index = tmp_path / "x.tar.gz", str(tmp_path / "index")
    write_targz(path, {"a.png": noise(1)})
    list_sources([str(path)], index)
    state = path.stat()
    write_targz(path, {"b.png": noise(2)})
    assert path.stat().st_size == state.st_size
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns + 1))
    assert read_all(list_sources([str(path)], index).entries, index) == [("b.png", noise(2))]


def test_readers_begin_at_restart_points_and_need_not_inflate_what_is_before(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "GZIP_SPACING", 1 << 20)
    monkeypatch.setattr(sources, "GZIP_BUFFER", 1 << 18)
    files = {f"{n}.png": noise(n, 400_000) for n in range(20)}
    path, index = write_targz(tmp_path / "x.tar.gz", files), str(tmp_path / "index")
    entries = list_sources([path], index).entries
    # The first half of the archive destroyed: what lies behind is read all the same.
    with open(path, "r+b") as file:
        file.write(bytes(4_000_000))
    os.utime(path, ns=(0, entries[0].mtime_ns))
    assert read_all(entries[14:], index) == [(f"{n}.png", files[f"{n}.png"]) for n in range(14, 20)]


def damaged(data: bytes) -> dict[str, bytes | None]:
    middle = len(data) // 2
    flipped = data[:middle] + bytes([data[middle] ^ 255]) + data[middle + 1 :]
    return {"absent": None, "empty": b"", "cut": data[:middle], "flipped": flipped, "junk": b"junk" * 100}


@pytest.mark.parametrize("damage", ["absent", "empty", "cut", "flipped", "junk"])
@pytest.mark.parametrize("ending", [".gzidx", ".members", "both"])
def test_a_damaged_index_is_made_anew_and_never_gives_other_bytes(ending, damage, tmp_path, monkeypatch):
    # Text, so that restart points need the text before them.
    files = {f"{n}.png": (b"%d again and " % n) * 90_000 for n in range(8)}
    monkeypatch.setattr(sources, "GZIP_SPACING", 1 << 20)
    path, index = write_targz(tmp_path / "x.tar.gz", files), tmp_path / "index"
    listing = list_sources([path], str(index))
    before = {p: p.read_bytes() for p in index.iterdir()}
    for kept, data in before.items():
        if ending in (kept.suffix, "both"):
            other = damaged(data)[damage]
            kept.unlink() if other is None else kept.write_bytes(other)
    # A reader takes no harm, even before the listing has mended it.
    assert read_all(listing.entries[::-1], str(index)) == list(files.items())[::-1]
    assert list_sources([path], str(index)) == listing
    assert {p: p.read_bytes() for p in index.iterdir()} == before
    assert read_all(listing.entries[::-1], str(index)) == list(files.items())[::-1]


# ---- damaged archives -----------------------------------------------------------------------------------

CUT_FILES = {f"{n}.png": noise(n, 2000) for n in range(6)}


@pytest.mark.parametrize("kind", ["tar", "tar.gz"])
def test_an_archive_cut_anywhere_gives_what_is_before_and_a_warning(kind, tmp_path):
    path, index = tmp_path / f"x.{kind}", tmp_path / "index"
    {"tar": write_tar, "tar.gz": write_targz}[kind](path, CUT_FILES)
    whole = path.read_bytes()
    expected = list(CUT_FILES.items())
    # What is cut off the zeros at the end is no loss.
    for cut in [*range(0, len(whole), 509), *range(512, len(whole), 512)]:
        path.write_bytes(whole[:cut])
        listing = list_sources([str(path)], str(index))
        read = []
        with SourceReader(str(index)) as reader, contextlib.suppress(SourceReadError):
            read.extend((one.name, reader.read(one)) for one in listing.entries)
        assert read == expected[: len(read)]
        if not listing.warnings:
            assert read == expected
            continue
        found = len(listing.entries)
        assert len(read) >= found - 2
        assert len(listing.warnings) == 1
        assert listing.warnings[0].startswith(f"{path}: damaged after {found} images (")
        assert listing.warnings[0].endswith("); fetch the archive again")
        assert "\n" not in listing.warnings[0]
        assert index_files(index) == []  # nothing is kept of a damaged archive


def test_a_damaged_header_in_the_middle_of_a_tar_is_not_taken_for_its_end(tmp_path):
    path = tmp_path / "x.tar"
    write_tar(path, CUT_FILES)
    third = list_sources([str(path)]).entries[3].offset - 512
    data = bytearray(path.read_bytes())
    data[third + 5] ^= 1
    path.write_bytes(data)
    listing = list_sources([str(path)])
    assert [e.name for e in listing.entries] == ["0.png", "1.png", "2.png"]
    assert listing.warnings == [f"{path}: damaged after 3 images (bad checksum); fetch the archive again"]


@pytest.mark.parametrize("ending", [".tar", ".tar.gz", ".tgz"])
def test_a_web_page_saved_as_an_archive_is_a_warning_and_the_others_are_read(ending, tmp_path):
    page = tmp_path / f"page{ending}"
    page.write_bytes(b"<!DOCTYPE html><html>" + b" " * 2000)
    folder = write_folder(tmp_path / "folder", {"a.png": b"a"})
    listing = list_sources([str(page), folder])
    assert [e.name for e in listing.entries] == ["a.png"]
    assert len(listing.warnings) == 1
    assert listing.warnings[0].startswith(f"{page}: damaged after 0 images (")


def test_an_empty_folder_is_refused_even_after_a_warning(tmp_path):
    (tmp_path / "page.tar").write_bytes(b"<html>")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="holds no image"):
        list_sources([str(tmp_path / "page.tar"), str(tmp_path / "empty")])


def test_a_zip_cut_short_or_replaced_by_a_web_page_is_an_error(tmp_path):
    path = tmp_path / "x.zip"
    write_zip(path)
    whole = path.read_bytes()
    for data in (whole[:-1], whole[: len(whole) // 2], b"", b"<html>" * 100):
        path.write_bytes(data)
        with pytest.raises(CxrError) as caught:
            list_sources([str(path)])
        assert str(caught.value) == (
            f"`images={path}`: damaged or cut short (File is not a zip file); fetch the archive again"
        )


@pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz"])
def test_a_damaged_archive_gives_right_bytes_or_says_that_it_is_damaged(kind, tmp_path):
    path = tmp_path / f"x.{kind}"
    {"zip": write_zip, "tar": write_tar, "tar.gz": write_targz}[kind](path, CUT_FILES)
    whole = path.read_bytes()

    @given(st.integers(0, len(whole) - 1), st.integers(1, 255))
    @settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    def check(place, flip):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ flip]) + whole[place + 1 :])
        try:
            listing = list_sources([str(path)], None)
        except CxrError:
            return
        with SourceReader(None) as reader:
            for one in listing.entries:
                try:
                    data = reader.read(one)
                except SourceReadError as error:
                    assert str(path) not in str(error)  # noqa: PT017 - most of these are read
                else:
                    # A plain tar has no checksum of its data: the image's own decoder finds it.
                    assert kind != "zip" or data == CUT_FILES.get(one.name, data)

    check()


def test_a_damaged_member_of_a_zip_is_a_read_error_and_the_others_are_read(tmp_path):
    path = tmp_path / "x.zip"
    write_zip(path, CUT_FILES, zipfile.ZIP_STORED)
    data = path.read_bytes()
    path.write_bytes(data.replace(CUT_FILES["2.png"], CUT_FILES["2.png"][::-1]))
    entries = list_sources([str(path)]).entries
    with SourceReader(None) as reader:
        with pytest.raises(SourceReadError, match=r"^cannot be read: Bad CRC-32 for file '2\.png'$"):
            reader.read(entries[2])
        assert [reader.read(e) for e in entries[3:]] == list(CUT_FILES.values())[3:]


def test_an_encrypted_member_of_a_zip_is_a_read_error(tmp_path):
    path = tmp_path / "x.zip"
    write_zip(path, {"a.png": b"a"}, zipfile.ZIP_STORED)
    data = bytearray(path.read_bytes())
    for mark, place in ((b"PK\1\2", 8), (b"PK\3\4", 6)):
        at = data.rindex(mark)
        struct.pack_into("<H", data, at + place, 1)
    path.write_bytes(data)
    with pytest.raises(SourceReadError, match=r"^cannot be read: File 'a\.png' is encrypted, password"):
        read_all(list_sources([str(path)]).entries)


def test_a_zip_replaced_after_listing_is_a_read_error(tmp_path):
    path = tmp_path / "x.zip"
    write_zip(path, {"a.png": b"a"})
    entries = list_sources([str(path)]).entries
    write_zip(path, {"b.png": b"b"})
    with pytest.raises(SourceReadError, match=r"^cannot be read: .*no item named 'a\.png'"):
        read_all(entries)


def test_reading_goes_on_after_an_archive_that_is_gone(tmp_path):
    paths = [write_zip(tmp_path / f"{n}.zip", {f"{n}.png": b"x"}) for n in range(3)]
    entries = list_sources(paths).entries
    os.remove(paths[1])
    with SourceReader(None) as reader:
        assert reader.read(entries[0]) == b"x"
        with pytest.raises(SourceReadError, match=r"^cannot be read: No such file or directory$"):
            reader.read(entries[1])
        assert reader.read(entries[2]) == b"x"
        assert reader.read(entries[0]) == b"x"


def test_names_in_a_tar_that_are_no_utf8_are_listed_and_kept(tmp_path):
    path, index = tmp_path / "x.tar.gz", str(tmp_path / "index")
    data = tar_bytes({"caf\udce9/a.png": b"a"}, tarfile.GNU_FORMAT)
    path.write_bytes(gzip.compress(data))
    first, second = (list_sources([str(path)], index) for _ in range(2))
    assert first == second
    assert first.entries[0].member.encode() == b"caf?/a.png"
    assert read_all(second.entries, index) == [("a.png", b"a")]


# ---- what is refused ------------------------------------------------------------------------------------

KINDS = "expected a folder, one of .zip, .tar, .tar.gz, .tgz, or an image (.png, .jpg, .jpeg, .dcm, .dicom)"


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("absent", "`images={0}/absent`: no such file or folder"),
        ("absent.zip", "`images={0}/absent.zip`: no such file or folder"),
        ("absent_*.zip", "`images={0}/absent_*.zip`: nothing matches"),
        ("table.csv", "`images={0}/table.csv`: " + KINDS),
        ("empty", "`images={0}/empty`: holds no image (.png, .jpg, .jpeg, .dcm, .dicom)"),
        ("junk", "`images={0}/junk`: holds no image (.png, .jpg, .jpeg, .dcm, .dicom)"),
        ("empty.zip", "`images={0}/empty.zip`: holds no image (.png, .jpg, .jpeg, .dcm, .dicom)"),
        ("empty.tar", "`images={0}/empty.tar`: holds no image (.png, .jpg, .jpeg, .dcm, .dicom)"),
        (
            "archives",
            "`images={0}/archives`: holds no image but 2 archives; "
            "name them: `images={0}/archives/images_01.tar.gz` ...",
        ),
    ],
)
def test_a_source_without_images_is_refused_in_these_words(path, message, tmp_path):
    for folder in ("empty", "junk", "archives"):
        (tmp_path / folder).mkdir()
    (tmp_path / "table.csv").write_text("x")
    write_folder(tmp_path / "junk", JUNK)
    write_zip(tmp_path / "empty.zip", JUNK)
    write_tar(tmp_path / "empty.tar", JUNK)
    write_targz(tmp_path / "archives" / "images_02.tar.gz")
    shutil.copy(tmp_path / "archives" / "images_02.tar.gz", tmp_path / "archives" / "images_01.tar.gz")
    with pytest.raises(UsageError) as caught:
        list_sources([str(tmp_path / path)])
    assert str(caught.value) == message.format(tmp_path)


# ---- joining to the table -------------------------------------------------------------------------------


def test_entries_are_joined_by_file_name_and_the_rest_is_given_back():
    entries = [entry("a.png"), entry("b.png"), entry("x.png")]
    matched, others = match_entries(entries, ["b.png", "c.png", "a.png"])
    assert matched == {"b.png": [entries[1]], "a.png": [entries[0]]}
    assert others == [entries[2]]


def test_another_ending_matches_where_the_exact_name_is_nowhere():
    entries = [
        entry("a.dcm"),
        entry("a.jpg"),
        entry("b.png"),
        entry("b.dcm"),
        entry("c.PNG"),
        entry("d.e.jpg"),
    ]
    matched, others = match_entries(entries, ["a.png", "b.png", "c.png", "d.png"])
    assert matched == {
        "a.png": [entries[0], entries[1]],
        "b.png": [entries[2]],
        "c.png": [entries[4]],
    }
    assert others == [entries[3], entries[5]]


def test_several_entries_of_one_image_are_kept_in_one_order():
    entries = [entry("a.png", "/z"), entry("a.png", "/b"), entry("a.png", "/m")]
    for given_order in (entries, entries[::-1]):
        matched, others = match_entries(given_order, ["a.png"])
        assert [e.source for e in matched["a.png"]] == ["/b", "/m", "/z"]
        assert others == []


names = st.sampled_from([f"{stem}.{end}" for stem in "abcd" for end in ("png", "jpg", "dcm")])


@given(st.lists(names, max_size=12), st.lists(names, unique=True, max_size=6))
def test_every_entry_is_either_matched_once_or_given_back(found, table):
    entries = [entry(name, f"/{place}") for place, name in enumerate(found)]
    matched, others = match_entries(entries, table)
    assert sorted([*others, *(e for one in matched.values() for e in one)]) == sorted(entries)
    assert all(matched.values())
    for image_id, of_image in matched.items():
        stems = {e.name.rsplit(".", 1)[0] for e in of_image}
        assert stems == {image_id.rsplit(".", 1)[0]}
