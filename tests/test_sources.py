import http.server
import io
import os
import shutil
import threading
import zlib
from functools import partial
from pathlib import Path

import fsspec
import numpy as np
import pyarrow as pa
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from hypothesis import given
from hypothesis import strategies as st
from source_files import (
    EXPECTED,
    FILES,
    JUNK,
    SOURCES,
    noise,
    read_all,
    write_folder,
    write_tar,
    write_targz,
    write_zip,
)

from cxr_records import storage
from cxr_records.errors import UsageError
from cxr_records.names import ImageNames
from cxr_records.sources import (
    Entries,
    Entry,
    SourceReader,
    SourceReadError,
    list_sources,
    match_entries,
)


@pytest.fixture(autouse=True)
def empty_memory():
    MemoryFileSystem.store.clear()
    MemoryFileSystem.pseudo_dirs[:] = [""]


CHANGED = r"^changed since it was listed; run again when it is whole$"


def entry(name: str, source: str = "/x", **fields) -> Entry:
    defaults = {"kind": "file", "member": "", "offset": 0, "num_bytes": 1, "mtime_ns": 0, "version": "1"}
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
    with pytest.raises(SourceReadError, match=CHANGED):
        read_all(entries)


def test_a_huge_file_is_refused_before_it_is_read():
    with pytest.raises(SourceReadError, match=r"^300,000,000 bytes, more than the 268,435,456 allowed$"):
        read_all([entry("a.png", "/absent", num_bytes=300_000_000)])


def touched_back(path: Path, data: bytes) -> None:
    """Writes other bytes of the same number, and sets the time of change back."""
    state = path.stat()
    assert len(data) == state.st_size
    path.write_bytes(data)
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))


def test_a_file_that_became_another_of_the_same_size_and_time_after_listing_is_a_read_error(tmp_path):
    path = write_folder(tmp_path / "folder", {"a.png": b"one", "b.png": b"two"})
    entries = list_sources([path]).entries
    touched_back(tmp_path / "folder" / "a.png", b"ONE")
    with SourceReader(None) as reader:
        with pytest.raises(SourceReadError, match=CHANGED):
            reader.read(entries[0])
        assert reader.read(entries[1]) == b"two"
    assert read_all(list_sources([path]).entries) == [("a.png", b"ONE"), ("b.png", b"two")]


@pytest.mark.parametrize("data", [b"longer", b"on", b""])
def test_a_file_that_changes_while_it_is_read_is_a_read_error(data, tmp_path, monkeypatch):
    path = write_folder(tmp_path / "folder", {"a.png": b"one"})
    entries = list_sources([path]).entries
    open_read = storage.open_read

    class Slow(io.FileIO):
        def read(self, size=-1):
            (tmp_path / "folder" / "a.png").write_bytes(data)
            return super().read(size)

    monkeypatch.setattr(storage, "open_read", Slow)
    with pytest.raises(SourceReadError, match=CHANGED):
        read_all(entries)
    monkeypatch.setattr(storage, "open_read", open_read)
    assert read_all(list_sources([path]).entries) == [("a.png", data)]


@pytest.mark.parametrize("kind", ["zip stored", "tar", "tar.gz"])
def test_an_archive_that_changes_after_listing_or_while_it_is_read_is_a_read_error(kind, tmp_path):
    path = Path(SOURCES[kind](tmp_path))
    index, whole = str(tmp_path / "index"), path.read_bytes()
    entries = list_sources([str(path)], index).entries
    with SourceReader(index) as reader:
        assert (entries[0].name, reader.read(entries[0])) in EXPECTED
        touched_back(path, whole[::-1])
        with pytest.raises(SourceReadError):  # most kinds of damage are found first
            reader.read(entries[1])
    for one in entries:
        with pytest.raises(SourceReadError, match=CHANGED):
            read_all([one], index)
    touched_back(path, whole)
    entries = list_sources([str(path)], index).entries
    assert sorted(read_all(entries, index)) == EXPECTED


@pytest.mark.parametrize("kind", ["folder", "zip", "tar.gz"])
def test_another_machine_may_number_the_same_files_in_another_way(kind, tmp_path, monkeypatch):
    index = str(tmp_path / "index")
    entries = list_sources([SOURCES[kind](tmp_path)], index).entries
    local_state = storage.local_state

    def elsewhere(status):
        state = local_state(status)
        return state._replace(version=state.version.rpartition("-")[0] + "-7")

    monkeypatch.setattr(storage, "local_state", elsewhere)
    assert sorted(read_all(entries, index)) == EXPECTED


def test_the_version_of_a_file_tells_what_size_and_time_do_not(tmp_path):
    path = Path(write_folder(tmp_path / "folder", {"a.png": b"one", "b.png": b"one"})) / "a.png"

    def listed():
        return list_sources([str(path)]).entries[0]

    first = listed()
    assert listed() == first
    touched_back(path, b"two")
    second = listed()
    assert second[:-1] == first[:-1]
    assert second.version != first.version
    # Two files whose names change places, as those of folders do.
    other = path.with_name("b.png")
    os.utime(path, ns=(0, 10**18))
    os.utime(other, ns=(0, 10**18))
    before = listed()
    path.rename(tmp_path / "c")
    other.rename(path)
    assert listed()[:-1] == before[:-1]
    assert listed().version != before.version


# ---- hidden files, and what systems leave ---------------------------------------------------------------

LITTER = [
    ".Trash-1000/files/00000009_000.png",
    ".AppleDouble/00000009_000.png",
    "__MACOSX/00000009_000.png",
    "lost+found/00000009_000.png",
    "@eaDir/00000009_000.png/SYNOPHOTO_THUMB_XL.jpg",
    ".ipynb_checkpoints/00000009_000-checkpoint.png",
    "$RECYCLE.BIN/S-1-5-21/$R9.png",
    "deep/er/.hidden/00000009_000.png",
    "deep/._00000009_000.png",
    "System Volume Information/a.png",
]


@pytest.mark.parametrize("kind", ["folder", "zip", "tar", "tar.gz", "memory"])
def test_hidden_folders_and_what_systems_leave_are_passed_over_in_every_kind_of_source(kind, tmp_path):
    files = {"deep/er/00000001_000.png": b"1", **dict.fromkeys(LITTER, b"junk")}
    if kind == "memory":
        path = "memory://bucket/.cache/set"
        for name, data in files.items():
            fsspec.filesystem("memory").pipe_file(f"/bucket/.cache/set/{name}", data)
    elif kind == "folder":
        path = write_folder(tmp_path / ".cache" / "set", files)  # what the user names may be hidden
    else:
        (tmp_path / ".cache").mkdir()
        write = {"zip": write_zip, "tar": write_tar, "tar.gz": write_targz}[kind]
        path = write(tmp_path / ".cache" / f"x.{kind}", files)
    assert read_all(list_sources([path]).entries) == [("00000001_000.png", b"1")]


def test_a_pattern_names_no_hidden_files_nor_what_systems_leave(tmp_path):
    files = {"a/1.png": b"1", "lost+found/2.png": b"2", "__MACOSX/3.png": b"3", ".x/4.png": b"4"}
    folder = write_folder(tmp_path / ".cache", files)
    assert read_all(list_sources([folder + "/*"]).entries) == [("1.png", b"1")]
    assert read_all(list_sources([folder + "/*/*.png"]).entries) == [("1.png", b"1")]
    assert read_all(list_sources([folder + "/lost+found/*.png"]).entries) == [("2.png", b"2")]
    for name, data in files.items():
        fsspec.filesystem("memory").pipe_file(f"/bucket/.cache/{name}", data)
    assert read_all(list_sources(["memory://bucket/.cache/*"]).entries) == [("1.png", b"1")]


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
def tells() -> tuple[str, ...]:
    """By which headers the server below tells of a file's version."""
    return ("Last-Modified",)


@pytest.fixture
def server(tmp_path, tells):
    """Serves tmp_path/served on this machine; gives the address."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        """Answers ranges, as real servers do and Python's does not."""

        def log_message(self, *_):
            pass

        def send_header(self, name, value):
            if name != "Last-Modified":
                return super().send_header(name, value)
            path = Path(self.translate_path(self.path))
            for kind in http_server.tells:
                told = {"ETag": f'"{zlib.crc32(path.read_bytes())}"', "Last-Modified": value}
                super().send_header(kind, told[kind])

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
        http_server.tells = tells
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


@pytest.mark.parametrize(
    ("tells", "set_back", "noticed"),
    [
        (("ETag",), True, True),
        (("ETag", "Last-Modified"), True, True),
        (("Last-Modified",), False, True),
        (("Last-Modified",), True, False),  # all that the server tells is as it was
    ],
)
@pytest.mark.parametrize("name", ["a.png", "x.zip", "x.tar.gz"])
def test_a_file_on_a_web_server_is_known_by_its_etag_or_time(
    name, server, tmp_path, set_back, noticed, tells
):
    def write(data: bytes) -> None:
        path = tmp_path / "served" / name
        writers = {"x.zip": write_zip, "x.tar.gz": write_targz}
        writers[name](path, {"a.png": data}) if name in writers else path.write_bytes(data)
        os.utime(path, (0, 10**9 if set_back else 10**9 + data[0]))

    def listed() -> Entry:
        (one,) = list_sources([f"{server}/{name}"], str(tmp_path / "index")).entries
        return one

    write(noise(1))
    first = listed()
    assert first == listed()
    assert read_all([first], str(tmp_path / "index")) == [("a.png", noise(1))]
    write(noise(2))
    second = listed()
    assert (second.version != first.version) == noticed
    if noticed:
        assert read_all([second], str(tmp_path / "index")) == [("a.png", noise(2))]
        if name != "a.png":
            with pytest.raises(SourceReadError, match=CHANGED):
                read_all([first], str(tmp_path / "index"))


@pytest.mark.parametrize("tells", [()])
@pytest.mark.parametrize("name", ["a.png", "x.tar.gz"])
def test_a_file_on_a_web_server_that_tells_nothing_of_it_is_another_at_each_listing(name, server, tmp_path):
    path, index = tmp_path / "served" / name, tmp_path / "index"
    versions = set()
    for seed in (1, 2, 2):
        write_targz(path, {"a.png": noise(seed)}) if "tar" in name else path.write_bytes(noise(seed))
        entries = list_sources([f"{server}/{name}"], str(index)).entries
        assert read_all(entries, str(index)) == [("a.png", noise(seed))]
        versions.add(entries[0].version)
    assert len(versions) == 3
    assert not index.exists() or len(list(index.iterdir())) == 2  # no index of each listing is left


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


def joined(entries, table) -> tuple[dict, list]:
    """{image: its entries} of those that have any, and the entries of no image."""
    found = Entries(entries)
    files, others = match_entries(found, pa.array(table, pa.string()))
    rows = np.flatnonzero(files.present)
    assert len(files) == len(rows)
    return dict(zip([table[row] for row in rows], files.files(rows), strict=True)), found.take(others)


def test_entries_are_joined_by_file_name_and_the_rest_is_given_back():
    entries = [entry("a.png"), entry("b.png"), entry("x.png")]
    matched, others = joined(entries, ["b.png", "c.png", "a.png"])
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
    matched, others = joined(entries, ["a.png", "b.png", "c.png", "d.png"])
    assert matched == {
        "a.png": [entries[0], entries[1]],
        "b.png": [entries[2]],
        "c.png": [entries[4]],
    }
    assert others == [entries[3], entries[5]]


def test_several_entries_of_one_image_are_kept_in_one_order():
    entries = [entry("a.png", "/z"), entry("a.png", "/b"), entry("a.png", "/m")]
    for given_order in (entries, entries[::-1]):
        matched, others = joined(given_order, ["a.png"])
        assert [e.source for e in matched["a.png"]] == ["/b", "/m", "/z"]
        assert others == []


names = st.sampled_from([f"{stem}.{end}" for stem in "abcd" for end in ("png", "jpg", "dcm")])


@given(st.lists(names, max_size=12), st.lists(names, unique=True, max_size=6))
def test_every_entry_is_either_matched_once_or_given_back(found, table):
    entries = [entry(name, f"/{place}") for place, name in enumerate(found)]
    matched, others = joined(entries, table)
    assert sorted([*others, *(e for one in matched.values() for e in one)]) == sorted(entries)
    assert all(matched.values())
    for image_id, of_image in matched.items():
        stems = {e.name.rsplit(".", 1)[0] for e in of_image}
        assert stems == {image_id.rsplit(".", 1)[0]}


# ---- entries as columns -----------------------------------------------------------------------------------

odd_names = st.sampled_from(["a.png", "b.png", "\udcff.png", "caf\xe9.png", "a\\b.png", ""])
folders = st.sampled_from(["", "/", "/x/", "/x/y/", "https://h/x/"])
numbers = st.one_of(st.integers(0, 3), st.sampled_from([10**18, 2**63 - 1, 127, 128, 2**31]))
versions = st.one_of(
    st.just(""),
    st.just("untold-1"),
    st.builds("{}-{}-{}-{}".format, numbers, numbers, st.integers(0, 2**65), numbers),
    st.sampled_from(["1-1-01-1", "1-1--1-1", "1-1-\u0661-1", '"etag"']),
)


@st.composite
def any_entries(draw) -> Entry:
    kind, name, size, mtime = (
        draw(st.sampled_from(["file", "zip"])),
        draw(odd_names),
        draw(numbers),
        draw(numbers),
    )
    path = draw(folders) + name
    version = draw(st.one_of(versions, st.just(f"{size}-{mtime}-{mtime}-7")))
    of_place = (path, "file", "") if kind == "file" else ("/a.zip", kind, path)
    return Entry(draw(st.sampled_from([name, "other.png"])), *of_place, draw(numbers), size, mtime, version)


@given(st.lists(any_entries(), max_size=12), st.integers(1, 5), st.data())
def test_entries_in_columns_are_the_entries_that_went_in(given_entries, batch, data):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Entries, "_BATCH", batch)
        packed = Entries(given_entries)
        assert (len(packed), list(packed)) == (len(given_entries), given_entries)
        assert packed[1:] == given_entries[1:]
        chosen = data.draw(st.lists(st.sampled_from(range(len(given_entries))))) if given_entries else []
        assert packed.take(chosen) == [given_entries[number] for number in chosen]
        assert list(packed.distinct()) == list(dict.fromkeys(given_entries))


@given(st.lists(any_entries(), max_size=12), st.integers(1, 5))
def test_files_are_read_by_folder_and_name_and_members_by_their_place(given_entries, batch):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Entries, "_BATCH", batch)
        order = Entries(given_entries).reading_order()

    def key(entry: Entry) -> tuple:
        path = entry.source if entry.kind == "file" else entry.member
        before, mark, tail = path.rpartition("/")
        place = before + mark if entry.kind == "file" else entry.source
        return (entry.kind != "file", place, entry.offset, tail.encode("utf-8", "surrogatepass"))

    in_order = [given_entries[number] for number in (range(len(given_entries)) if order is None else order)]
    assert list(map(key, in_order)) == sorted(map(key, given_entries))
    if list(map(key, given_entries)) == sorted(map(key, given_entries)):
        assert order is None  # nothing is sorted that is sorted already


listed_names = st.sampled_from(["a.png", "a.jpg", " a.png", "A.PNG", "b", "b.dcm", "b.png", "\udcff.png"])


@given(st.lists(listed_names, max_size=9), st.lists(listed_names, unique=True, max_size=6))
def test_images_are_matched_as_by_the_rule_of_names(found, table):
    table = [name for name in table if name.isprintable() and name == name.strip()]  # as tables' are
    matched, others = joined([entry(name, f"/{place}") for place, name in enumerate(found)], table)
    rule = ImageNames(table)
    expected: dict[str, list[str]] = {}
    for name in found:
        image_id = rule.find(name)
        if image_id is not None and (name == image_id or image_id not in found):
            expected.setdefault(image_id, []).append(name)
    assert {image_id: sorted(e.name for e in its) for image_id, its in matched.items()} == {
        image_id: sorted(its) for image_id, its in expected.items()
    }
    assert len(others) == len(found) - sum(map(len, expected.values()))
