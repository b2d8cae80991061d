import errno
import os
import resource
import signal
import subprocess
import sys
import threading
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from fsspec.registry import known_implementations

from cxr_records import storage
from cxr_records.errors import CxrError, UsageError


class RememberingFileSystem(MemoryFileSystem):
    """Memory whose listings are remembered until told otherwise, as those of S3 are."""

    protocol = "remembering"
    listings = {}  # noqa: RUF012 - shared on purpose, as MemoryFileSystem's store is

    def ls(self, path, detail=True, **_):
        key = (path, detail)
        if key not in self.listings:
            self.listings[key] = super().ls(path, detail=detail)
        return self.listings[key]

    def invalidate_cache(self, path=None):
        self.listings.clear()


@pytest.fixture(autouse=True)
def empty_memory():
    MemoryFileSystem.store.clear()
    MemoryFileSystem.pseudo_dirs[:] = [""]


@pytest.fixture(params=["local", "file", "memory"])
def folder(request, tmp_path):
    """A folder given as a plain path, as a file:// URL and as a URL of fsspec."""
    made = {"local": str(tmp_path), "file": f"file://{tmp_path}", "memory": "memory://bucket/folder"}
    storage.make_folder(made[request.param])
    return made[request.param]


def write_in_pieces(path, *pieces, then=None):
    """Writes a file piece by piece; before its end, raises what is to happen then."""
    with storage.atomic_file(path) as file:
        for piece in pieces:
            file.write(piece)
        if then:
            raise then


def write_parquet(path, *values):
    with storage.atomic_file(path) as file:
        pq.write_table(pa.table({"a": values}), file)


def files_below(path: Path) -> list[str]:
    return sorted(str(p.relative_to(path)) for p in path.rglob("*"))


# ---- paths ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("folder", "path"),
    [
        ("a/b", "a/b/x"),
        ("a/b/", "a/b/x"),
        ("/", "/x"),
        ("", "x"),
        ("s3://bucket", "s3://bucket/x"),
        ("s3://bucket/a/", "s3://bucket/a/x"),
        ("memory://", "memory://x"),
    ],
)
def test_a_name_is_joined_to_a_folder_with_one_slash(folder, path):
    assert storage.join(folder, "x") == path


def test_only_what_fsspec_must_open_is_a_url():
    assert [storage.is_url(p) for p in ("s3://b/x", "https://h/x", "file:///x", "/x", "x", "C:x")] == [
        True,
        True,
        False,
        False,
        False,
        False,
    ]


def test_an_absolute_path_means_the_same_from_every_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/someone")
    assert storage.absolute("a/../b") == str(tmp_path / "b")
    assert storage.absolute("~/x") == "/home/someone/x"
    assert storage.absolute("file:///data/x") == "/data/x"
    assert storage.absolute("s3://bucket/a") == "s3://bucket/a"


@pytest.mark.parametrize(
    ("url", "words"),
    [("nosuch://bucket/x", "Protocol not known: nosuch"), ("missing://x", "pip install missing")],
)
def test_a_kind_of_url_that_cannot_be_read_is_wrong_usage(url, words, monkeypatch):
    missing = {"class": "no_such_module.FileSystem", "err": "pip install missing"}
    monkeypatch.setitem(known_implementations, "missing", missing)
    for ask in (storage.exists, storage.list_names, storage.file_size, storage.make_folder):
        with pytest.raises(UsageError) as caught:
            ask(url)
        assert str(caught.value).startswith(f"{url}: ")
        assert words in str(caught.value)


# ---- reading and listing --------------------------------------------------------------------------------


def test_what_is_written_is_there_and_read_back(folder):
    path = storage.join(folder, "a b é.bin")
    assert not storage.exists(path)
    storage.write_bytes(path, b"first")
    storage.write_bytes(path, b"second, longer")
    assert storage.exists(path)
    assert storage.read_bytes(path) == b"second, longer"
    assert storage.file_size(path) == 14
    assert storage.list_names(folder) == ["a b é.bin"]
    with storage.open_read(path) as file:
        file.seek(8)
        assert file.read(6) == b"longer"


def test_ranges_come_in_the_order_asked_for_and_end_with_the_file(folder):
    path = storage.join(folder, "x")
    storage.write_bytes(path, bytes(range(100)))
    ranges = [(90, 5), (0, 3), (50, 0), (0, 3), (98, 10)]
    read = storage.read_ranges([(path, *wanted) for wanted in ranges])
    assert read == [bytes(range(100))[start : start + length] for start, length in ranges]
    assert storage.read_ranges([]) == []


def test_ranges_of_an_absent_file_are_an_error_and_no_value(folder):
    with pytest.raises(FileNotFoundError):
        storage.read_ranges([(storage.join(folder, "absent"), 0, 1)])


def test_errors_of_asynchronous_storage_are_raised_too(monkeypatch):
    # By default fsspec's asynchronous storages put the exception in the place of the bytes.
    asked = {}

    def cat_ranges(self, paths, starts, ends, max_gap=None, on_error="return", **_):
        asked["on_error"] = on_error
        return [b""] * len(paths)

    monkeypatch.setattr(MemoryFileSystem, "cat_ranges", cat_ranges)
    storage.read_ranges([("memory://x", 0, 1)])
    assert asked == {"on_error": "raise"}


def test_an_absent_folder_is_empty(folder):
    assert storage.list_names(storage.join(folder, "absent")) == []


def test_names_are_sorted_and_hold_folders_too(folder):
    for name in ("b", "a", "c/d"):
        if "/" in name:
            storage.make_folder(storage.join(folder, "c"))
        storage.write_bytes(storage.join(folder, name), b"")
    assert storage.list_names(folder) == ["a", "b", "c"]


def test_what_another_process_wrote_is_listed_although_the_storage_remembers_an_older_listing():
    fsspec.register_implementation("remembering", RememberingFileSystem, clobber=True)
    storage.make_folder("remembering://bucket")
    assert storage.list_names("remembering://bucket") == []
    fsspec.filesystem("remembering").pipe_file("remembering://bucket/new", b"")
    assert storage.list_names("remembering://bucket") == ["new"]


def test_a_pattern_names_what_matches_and_a_plain_path_itself(folder):
    for name in ("a_2.zip", "a_1.zip", "b.zip", "odd[1].zip"):
        storage.write_bytes(storage.join(folder, name), b"")
    found = storage.expand(storage.join(folder, "a_*.zip"))
    assert [path.rsplit("/", 1)[1] for path in found] == ["a_1.zip", "a_2.zip"]
    assert [storage.read_bytes(path) for path in found] == [b"", b""]
    assert storage.expand(storage.join(folder, "none*")) == []
    odd = storage.join(folder, "odd[1].zip")
    assert storage.expand(odd) == [odd]
    absent = storage.join(folder, "absent")
    assert storage.expand(absent) == [absent]


def test_removing_takes_files_and_folders_and_minds_nothing_absent(folder):
    below = storage.join(folder, "below")
    storage.make_folder(below)
    storage.make_folder(below)
    storage.write_bytes(storage.join(below, "x"), b"")
    storage.write_bytes(storage.join(folder, "y"), b"")
    for name in ("below", "y", "absent"):
        storage.remove(storage.join(folder, name))
    assert storage.list_names(folder) == []


def test_removing_a_link_leaves_what_it_points_to(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "x").touch()
    (tmp_path / "link").symlink_to("real")
    storage.remove(str(tmp_path / "link"))
    assert files_below(tmp_path) == ["real", "real/x"]


# ---- whole or absent ------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_an_interrupted_write_leaves_nothing(folder, error):
    with pytest.raises(error):
        write_in_pieces(storage.join(folder, "x"), b"half", then=error)
    assert storage.list_names(folder) == []


def test_an_interrupted_write_leaves_the_older_file_as_it_was(folder):
    path = storage.join(folder, "x")
    storage.write_bytes(path, b"old")
    with pytest.raises(RuntimeError):
        write_in_pieces(path, b"new", then=RuntimeError)
    assert storage.read_bytes(path) == b"old"
    assert storage.list_names(folder) == ["x"]


def test_nothing_is_under_the_name_until_the_file_is_whole(folder):
    path = storage.join(folder, "x")
    with storage.atomic_file(path) as file:
        file.write(b"half")
        file.flush()
        assert not storage.exists(path)
    assert storage.read_bytes(path) == b"half"


def test_writers_at_once_leave_one_whole_file(folder):
    path, contents = storage.join(folder, "x"), [bytes([n]) * 200_000 for n in range(8)]
    start = threading.Barrier(len(contents))

    def write(data):
        start.wait()
        write_in_pieces(path, *[data[at : at + 50_000] for at in range(0, len(data), 50_000)])

    threads = [threading.Thread(target=write, args=[data]) for data in contents]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert storage.read_bytes(path) in contents
    assert storage.list_names(folder) == ["x"]


def test_the_file_is_on_disk_before_its_name_and_the_name_before_the_end(tmp_path, monkeypatch):
    steps = []
    fsync, replace = os.fsync, os.replace

    def record_fsync(descriptor):
        target = os.readlink(f"/proc/self/fd/{descriptor}")
        steps.append(("fsync", "folder" if os.path.isdir(target) else os.path.getsize(target)))
        fsync(descriptor)

    def record_replace(source, target):
        steps.append(("rename", os.path.basename(target)))
        replace(source, target)

    monkeypatch.setattr(os, "fsync", record_fsync)
    monkeypatch.setattr(os, "replace", record_replace)
    storage.write_bytes(str(tmp_path / "x"), b"12345")
    assert steps == [("fsync", 5), ("rename", "x"), ("fsync", "folder")]


def test_a_write_into_an_absent_folder_names_it(tmp_path):
    with pytest.raises(FileNotFoundError) as caught:
        storage.write_bytes(str(tmp_path / "absent" / "x"), b"")
    assert str(tmp_path / "absent") in caught.value.filename


def test_parquet_is_written_to_every_storage(folder):
    path = storage.join(folder, "x.parquet")
    write_parquet(path, 1, 2)
    with storage.open_read(path) as file:
        assert pq.read_table(file).to_pydict() == {"a": [1, 2]}


def test_only_what_killed_writers_left_is_removed(folder):
    path = storage.join(folder, "x")
    storage.write_bytes(path, b"kept")
    kept = ["x", ".lock", ".x.tmp-short", "x.tmp-" + "0" * 32, ".tmp-" + "0" * 32]
    left = [".x.tmp-" + "0123456789abcdef" * 2, ".unit-1.parquet.tmp-" + "f" * 32]
    for name in kept + left:
        storage.write_bytes(storage.join(folder, name), b"")
    assert storage.remove_temporary(folder) == 2
    assert storage.list_names(folder) == sorted(kept)
    assert storage.remove_temporary(storage.join(folder, "absent")) == 0


def test_a_writer_killed_midway_leaves_only_what_remove_temporary_removes(tmp_path):
    script = (
        "import os, signal, sys\nfrom cxr_records import storage\n"
        "with storage.atomic_file(sys.argv[1]) as file:\n"
        "    file.write(b'half'); file.flush(); os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    ended = subprocess.run([sys.executable, "-c", script, str(tmp_path / "x")])
    assert ended.returncode == -signal.SIGKILL
    assert len(files_below(tmp_path)) == 1
    assert not (tmp_path / "x").exists()
    assert storage.remove_temporary(str(tmp_path)) == 1
    assert files_below(tmp_path) == []


# ---- a disk that is full --------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 1 MiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)]
    try:
        mounted = subprocess.run(mount, capture_output=True).returncode == 0
    except FileNotFoundError:
        mounted = False
    if not mounted:
        pytest.skip("mounting a small disk takes more rights")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.parametrize(
    ("write", "parts"),
    [
        (write_in_pieces, [bytes(2 << 20)]),
        (write_in_pieces, [bytes(1024)] * 2048),
        (write_parquet, [os.urandom(1 << 20), os.urandom(1 << 20)]),
    ],
    ids=["at once", "in pieces", "parquet"],
)
def test_a_full_disk_names_the_file_and_keeps_nothing_of_it(small_disk, write, parts):
    path = str(small_disk / "x")
    with pytest.raises(OSError, match="No space left on device") as caught:
        write(path, *parts)
    assert caught.value.errno == errno.ENOSPC
    assert caught.value.filename == path
    assert files_below(small_disk) == []
    storage.write_bytes(path, bytes(500_000))
    assert files_below(small_disk) == ["x"]


def test_a_file_over_the_limit_of_the_process_names_the_file_and_keeps_nothing_of_it(tmp_path):
    path = str(tmp_path / "x")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(OSError, match="File too large") as caught:
            storage.write_bytes(path, bytes(200_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
    assert caught.value.filename == path
    assert files_below(tmp_path) == []


# ---- files that came with a dataset ---------------------------------------------------------------------


def test_only_a_file_is_opened_as_one_and_nothing_is_waited_for(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "folder").mkdir()
    (tmp_path / "zero").symlink_to("/dev/zero")

    for name, kind in (("fifo", "a FIFO"), ("folder", "a folder"), ("zero", "a device")):
        with pytest.raises(CxrError) as caught:
            storage.open_regular(str(tmp_path / name))
        assert str(caught.value) == f"{tmp_path / name} is {kind}, expected a file"
        with pytest.raises(CxrError, match="expected a file"):
            storage.read_bytes(str(tmp_path / name))
    with pytest.raises(FileNotFoundError):
        storage.open_regular(str(tmp_path / "absent"))


def test_a_file_behind_a_link_is_read_as_itself_and_never_more_of_it_than_allowed(tmp_path):
    (tmp_path / "annexed").write_bytes(b"12345")
    (tmp_path / "file").symlink_to("annexed")

    assert storage.read_regular(str(tmp_path / "file"), 5) == b"12345"
    with pytest.raises(CxrError) as caught:
        storage.read_regular(str(tmp_path / "file"), 4)
    assert str(caught.value) == f"{tmp_path / 'file'} has more than 4 bytes, which none of ours has"


def test_the_identity_of_a_file_changes_when_it_is_written_anew_though_it_holds_the_same(tmp_path):
    for folder in (str(tmp_path), "memory://identity"):
        path = storage.join(folder, "file")
        assert storage.identity(path) is None
        storage.write_bytes(path, b"1")
        first = storage.identity(path)
        assert storage.identity(path) == first
        storage.write_bytes(path, b"1")
        assert storage.identity(path) not in (first, None)


# Folders


def below(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob("*") if path.is_file()
    }


def test_a_folder_appears_whole_and_replaces_what_was_there(tmp_path):
    for text in ("one", "two"):
        with storage.atomic_folder(str(tmp_path / "new" / "served"), "last") as folder:
            (folder / "deep").mkdir()
            (folder / "deep" / "file").write_text(text)
            if text == "one":
                (folder / "gone").write_text("")
            assert (tmp_path / "new" / "served").exists() is (text == "two")
            (folder / "last").write_text(text)

    assert below(tmp_path / "new") == {"served/deep/file": "two", "served/last": "two"}


@pytest.mark.parametrize("broken", ["at work", "rename"])
def test_where_a_folder_is_broken_off_the_one_before_stays(tmp_path, monkeypatch, broken):
    with storage.atomic_folder(str(tmp_path / "served"), "last") as folder:
        (folder / "last").write_text("before")
    real = Path.rename

    def rename(path: Path, target: Path) -> Path:
        if broken == "rename" and target.name == "served" and (path / "last").read_text() == "after":
            raise OSError(28, "No space left on device")
        return real(path, target)

    monkeypatch.setattr(Path, "rename", rename)

    def write() -> None:
        with storage.atomic_folder(str(tmp_path / "served"), "last") as folder:
            (folder / "last").write_text("after")
            if broken == "at work":
                raise KeyboardInterrupt

    with pytest.raises((KeyboardInterrupt, OSError)):
        write()

    assert below(tmp_path) == {"served/last": "before"}


def test_where_nothing_can_be_written_the_error_names_what_was_to_be(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()

    def write_folder(path: str, data: bytes) -> None:
        with storage.atomic_folder(path, "last"):
            pass

    for write, name in (
        (storage.write_bytes, "absent/scores.csv"),
        (storage.write_bytes, "folder"),
        (write_folder, "file/served"),
    ):
        with pytest.raises(OSError, match=r"No such file|Is a directory|Not a directory") as caught:
            write(str(tmp_path / name), b"")
        assert (caught.value.filename, caught.value.filename2) == (str(tmp_path / name), None)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]


def test_what_a_killed_one_left_beside_a_folder_is_removed_and_no_other(tmp_path):
    for name in ("served", "other"):
        (tmp_path / f".{name}.tmp-{'0' * 32}").mkdir()
    (tmp_path / ".served.tmp-mine").mkdir()

    with storage.atomic_folder(str(tmp_path / "served"), "last") as folder:
        (folder / "last").write_text("")

    assert sorted(path.name for path in tmp_path.iterdir()) == [
        f".other.tmp-{'0' * 32}",
        ".served.tmp-mine",
        "served",
    ]


def test_of_a_remote_folder_the_file_that_makes_it_whole_comes_last(monkeypatch):
    written = []
    real = storage.write_bytes
    monkeypatch.setattr(storage, "write_bytes", lambda path, data: (written.append(path), real(path, data)))
    for names in (("b/z", "a"), ("b/y",)):
        with storage.atomic_folder("memory://folders/served", "about") as folder:
            for name in (*names, "about"):
                (folder / name).parent.mkdir(exist_ok=True)
                (folder / name).write_text(name)

    root = "memory://folders/served"
    assert written == [f"{root}/{name}" for name in ("a", "b/z", "about", "b/y", "about")]
    assert [file.url.rpartition("served/")[2] for file in storage.find_files(root)] == ["about", "b/y"]
