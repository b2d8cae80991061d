"""The cache of remote shards: bounded, checked, shared, never evicting what is about to be read."""

import concurrent.futures
import errno
import fcntl
import hashlib
import os
import threading
from pathlib import Path

import pytest

from cxr_records import locks, storage
from cxr_records.cache import ShardCache, listed_sizes
from cxr_records.errors import CxrError, UsageError


@pytest.fixture
def source(tmp_path):
    """Makes files of 1,000 bytes; make(name) -> (path, bytes, sha256)."""

    def make(name: str) -> tuple[str, int, str]:
        data = (name * 1000).encode()[:1000]
        (tmp_path / name).write_bytes(data)
        return str(tmp_path / name), len(data), hashlib.sha256(data).hexdigest()

    return make


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    monkeypatch.setattr("cxr_records.cache.FIRST_WAIT_SECONDS", 0)


def files(cache: ShardCache) -> set[str]:
    return {path.name.partition("-")[2] for path in cache.folder.iterdir() if path.name != "lock"}


def test_a_file_is_fetched_once_and_then_had_from_the_cache(source, tmp_path):
    cache = ShardCache(str(tmp_path / "cache"), 5000)
    wanted = source("a")
    first = cache.fetch(*wanted)
    first.release()
    (tmp_path / "a").unlink()  # a second fetch would fail

    again = ShardCache(str(tmp_path / "cache"), 5000).fetch(*wanted)

    assert Path(again.path).read_bytes() == b"a" * 1000
    assert again.path == first.path


def test_the_one_not_used_for_the_longest_time_goes(source, tmp_path):
    cache = ShardCache(str(tmp_path / "cache"), 2000)
    a, b, c = (source(name) for name in "abc")
    for wanted in (a, b, a, c):
        cache.fetch(*wanted).release()

    assert files(cache) == {"a", "c"}


@pytest.fixture
def no_locks(monkeypatch):
    """A file system that has no locks."""

    def refuse(descriptor, operation):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(locks.fcntl, "flock", refuse)
    monkeypatch.setattr(locks, "_told", set())


def test_without_locks_files_are_had_and_none_is_evicted(source, tmp_path, no_locks, capsys):
    cache = ShardCache(str(tmp_path / "cache"), 2000)
    for name in "aba":
        held = cache.fetch(*source(name))
        assert Path(held.path).read_bytes() == name.encode() * 1000
        held.release()

    with pytest.raises(CxrError, match="may hold 2,000 bytes, and 2,000 of them are in use now"):
        cache.fetch(*source("c"))
    assert {name for name in files(cache) if not name.endswith(".part")} == {"a", "b"}
    assert capsys.readouterr().err == (
        f"warning: {tmp_path / 'cache'}: this file system has no locks (No locks available); see to it that "
        "no other command works there at the same time\n"
    )


def test_without_locks_threads_that_fetch_one_file_all_have_it_whole(source, tmp_path, no_locks):
    cache, wanted = ShardCache(str(tmp_path / "cache"), 1 << 20), source("a")
    start = threading.Barrier(8)

    def fetch(_: int) -> bytes:
        start.wait()
        return Path(cache.fetch(*wanted).path).read_bytes()

    with concurrent.futures.ThreadPoolExecutor(8) as threads:
        assert set(threads.map(fetch, range(8))) == {b"a" * 1000}


def test_what_is_held_stays_and_more_than_fits_is_refused(source, tmp_path):
    cache = ShardCache(str(tmp_path / "cache"), 2000)
    held = [cache.fetch(*source(name)) for name in "ab"]

    with pytest.raises(CxrError) as error:
        cache.fetch(*source("c"))
    assert str(error.value) == (
        f"the cache {cache.folder} may hold 2,000 bytes, and 2,000 of them are in use now; "
        f"{tmp_path / 'c'} needs 1,000 more: allow the cache more bytes"
    )
    held[0].release()
    cache.fetch(*source("c")).release()
    assert files(cache) == {"b", "c"}


def test_a_file_damaged_in_the_cache_is_fetched_again(source, tmp_path):
    wanted = source("a")
    held = ShardCache(str(tmp_path / "cache"), 5000).fetch(*wanted)
    held.release()
    with open(held.path, "r+b") as file:
        file.write(b"x")

    again = ShardCache(str(tmp_path / "cache"), 5000).fetch(*wanted)

    assert Path(again.path).read_bytes() == b"a" * 1000


def test_a_source_with_other_bytes_is_never_given_a_name(source, tmp_path):
    cache = ShardCache(str(tmp_path / "cache"), 5000)
    path, size, _ = source("a")
    _, _, other = source("b")

    with pytest.raises(CxrError) as error:
        cache.fetch(path, size, other)
    assert str(error.value) == (
        f"{path} could not be fetched in 4 attempts (its sha256 is not that of the manifest); "
        "run cxr-records verify on the dataset"
    )
    assert files(cache) == set()


def test_a_missing_source_is_named(tmp_path):
    cache = ShardCache(str(tmp_path / "cache"), 5000)

    with pytest.raises(CxrError) as error:
        cache.fetch(str(tmp_path / "gone"), 10, "0" * 64)
    assert str(error.value) == f"{tmp_path / 'gone'} is missing; run cxr-records verify on the dataset"


def test_what_a_killed_process_left_is_taken_over(source, tmp_path):
    cache = ShardCache(str(tmp_path / "cache"), 2000)
    path, size, digest = source("a")
    (cache.folder / f"{digest}-a.part").write_bytes(b"half" * 400)

    held = cache.fetch(path, size, digest)

    assert Path(held.path).read_bytes() == b"a" * 1000
    assert files(cache) == {"a"}


def test_the_folder_is_a_local_one():
    with pytest.raises(UsageError) as error:
        ShardCache("s3://bucket/cache")
    assert str(error.value) == "found the cache folder s3://bucket/cache; expected a local folder"


def test_a_source_of_another_size_is_told_by_its_size(source, tmp_path):
    cache = ShardCache(str(tmp_path / "cache"), 5000)
    path, size, digest = source("a")
    for wrong in (size - 1, size + 1):
        with pytest.raises(CxrError, match=rf"4 attempts \(1,000 bytes, the manifest says {wrong:,}\)"):
            cache.fetch(path, wrong, digest)
    assert files(cache) == set()


def test_a_fetch_that_another_gave_up_meanwhile_is_begun_again(source, tmp_path, monkeypatch):
    """Who waited for the other's lock holds a file that has no name any more."""
    cache = ShardCache(str(tmp_path / "cache"), 5000)
    path, size, digest = source("a")
    flock, removed = fcntl.flock, []

    def lock(descriptor: int, how: int) -> None:
        part = cache.folder / f"{digest}-a.part"
        if not removed and part.exists():
            removed.append(part)
            part.unlink()
        flock(descriptor, how)

    monkeypatch.setattr("cxr_records.cache.fcntl.flock", lock)
    held = cache.fetch(path, size, digest)

    assert Path(held.path).read_bytes() == b"a" * 1000
    assert removed
    assert files(cache) == {"a"}


def test_a_file_takes_the_last_free_byte_and_not_one_more(source, tmp_path):
    cache = ShardCache(str(tmp_path / "cache"), 1000)
    cache.fetch(*source("a")).release()
    assert files(cache) == {"a"}
    with pytest.raises(CxrError, match=r"may hold 999 bytes, and 0 of them are in use"):
        ShardCache(str(tmp_path / "other"), 999).fetch(*source("b"))


def test_names_and_sizes_of_a_folder_are_listed(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "a").write_bytes(b"123")
    (tmp_path / "b").write_bytes(b"")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "nowhere").symlink_to("absent")
    assert listed_sizes(str(tmp_path)) == {"a": 3, "b": 0}
    for name, data in (("a", b"123"), ("b", b"12")):
        storage.write_bytes(f"memory://listed/{name}", data)
    assert listed_sizes("memory://listed") == {"a": 3, "b": 2}


# What is not ours


@pytest.mark.parametrize(
    "sha256",
    ["../thesis", "/etc/passwd", "", "0" * 63, "0" * 65, "A" * 64, "0" * 64 + "\n", "../" * 20 + "abcd"],
)
def test_what_is_no_sha256_names_no_file_and_removes_none(tmp_path, sha256):
    mine = tmp_path / "thesis-a"
    mine.write_bytes(b"years of work")
    (tmp_path / "a").write_bytes(b"other")
    cache = ShardCache(str(tmp_path / "cache"), 5000)

    with pytest.raises(CxrError) as error:
        cache.fetch(str(tmp_path / "a"), 5, sha256)
    assert str(error.value) == (
        f"{str(tmp_path / 'a')!r} with sha256 {sha256!r}: expected a plain name and 64 hexadecimal digits; "
        "nothing was fetched"
    )
    assert mine.read_bytes() == b"years of work"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "cache", "thesis-a"]
    assert list(cache.folder.iterdir()) == []


def test_files_of_other_names_are_neither_counted_nor_removed(source, tmp_path):
    cache = ShardCache(str(tmp_path / "cache"), 1000)
    (cache.folder / "thesis.tex").write_bytes(b"x" * 5000)
    (cache.folder / ("0" * 64 + "-folder")).mkdir()
    (cache.folder / ("1" * 64 + "-link")).symlink_to(cache.folder / "thesis.tex")

    for name in "ab":
        cache.fetch(*source(name)).release()

    assert files(cache) == {"b", "", "folder", "link"}  # "": a name without a dash
    assert (cache.folder / "thesis.tex").read_bytes() == b"x" * 5000


@pytest.mark.parametrize("kind", ["symbolic", "dangling", "hard"])
@pytest.mark.parametrize("name", ["lock", "{0}-a.part"])
def test_a_link_in_the_cache_is_not_written_through(source, tmp_path, kind, name):
    cache = ShardCache(str(tmp_path / "cache"), 5000)
    path, size, digest = source("a")
    mine, link = tmp_path / "mine", cache.folder / name.format(digest)
    if kind != "dangling":
        mine.write_bytes(b"years of work")
    link.hardlink_to(mine) if kind == "hard" else link.symlink_to(mine)

    with pytest.raises(CxrError) as error:
        cache.fetch(path, size, digest)
    assert str(error.value).startswith(f"{link} is a link")
    assert str(error.value).endswith("; remove the link")
    assert mine.exists() == (kind != "dangling")
    assert kind == "dangling" or mine.read_bytes() == b"years of work"


def test_a_link_under_the_name_of_a_fetched_file_is_not_read(source, tmp_path):
    cache = ShardCache(str(tmp_path / "cache"), 5000)
    path, size, digest = source("a")
    (cache.folder / f"{digest}-a").symlink_to(path)

    with pytest.raises(CxrError, match=r"-a is a link, expected a file of ours; remove the link$"):
        cache.fetch(path, size, digest)
    assert Path(path).read_bytes() == b"a" * 1000


def test_a_fifo_in_the_cache_is_said_and_not_waited_for(source, tmp_path):
    cache = ShardCache(str(tmp_path / "cache"), 5000)
    path, size, digest = source("a")
    os.mkfifo(cache.folder / f"{digest}-a")

    with pytest.raises(CxrError, match=r"-a is a FIFO, expected a file$"):
        cache.fetch(path, size, digest)


def while_it_is_fetched(cache: ShardCache, wanted: tuple[str, int, str]) -> tuple[int, Path, Path]:
    """What another process has that fetches a file: its locked descriptor; paths while and after it does."""
    final = cache.folder / f"{wanted[2]}-{wanted[0].rsplit('/', 1)[-1]}"
    part = Path(f"{final}.part")
    descriptor = os.open(part, os.O_RDWR | os.O_CREAT)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    return descriptor, part, final


def test_who_waits_for_a_fetch_has_the_file_while_the_other_holds_it(source, tmp_path):
    cache, wanted = ShardCache(str(tmp_path / "cache"), 5000), source("a")
    descriptor, part, final = while_it_is_fetched(cache, wanted)
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        try:
            waiting = pool.submit(cache.fetch, *wanted)
            with pytest.raises(concurrent.futures.TimeoutError):
                waiting.result(0.2)
            os.write(descriptor, b"a" * 1000)
            os.rename(part, final)
            fcntl.flock(descriptor, fcntl.LOCK_SH)  # as long as it reads

            held = waiting.result(10)
            assert Path(held.path).read_bytes() == b"a" * 1000
            held.release()
        finally:
            os.close(descriptor)


def test_a_file_that_was_open_in_a_fork_while_it_was_fetched_can_be_had(source, tmp_path, monkeypatch):
    cache, wanted = ShardCache(str(tmp_path / "cache"), 5000), source("a")
    as_in_a_fork: list[int] = []
    make_room = cache._make_room

    def fork(path: str, part: int, num_bytes: int) -> None:
        as_in_a_fork.append(os.dup(part))
        make_room(path, part, num_bytes)

    monkeypatch.setattr(cache, "_make_room", fork)
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        try:
            held = pool.submit(cache.fetch, *wanted).result(10)
            assert Path(held.path).read_bytes() == b"a" * 1000
            held.release()
        finally:
            for descriptor in as_in_a_fork:
                os.close(descriptor)
    assert len(as_in_a_fork) == 1
