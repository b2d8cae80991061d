"""Locks, of the kernel's and in remote storage: one command at a time, and no dead one blocks."""

import errno
import json
import os
import subprocess
import sys
import threading
import time

import pytest
from conftest import files_of
from fsspec.implementations.memory import MemoryFileSystem

from cxr_records import locks, storage
from cxr_records.errors import CxrError
from cxr_records.manifest import read_manifest
from cxr_records.verification import check_dataset

# Takes a lock, says so, and waits to be killed.
HOLD_LOCK = """
import sys, time
from cxr_records import locks
with locks.lock(sys.argv[1], "the store"):
    print("held", flush=True)
    time.sleep(600)
"""


# Of the kernel's


@pytest.fixture
def holder(tmp_path):
    """Another process that holds tmp_path/lock."""
    arguments = [sys.executable, "-c", HOLD_LOCK, str(tmp_path / "lock")]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_a_lock_that_another_process_holds_is_refused_with_its_number_and_machine(tmp_path, holder):
    message = (
        f"the image store x is in use by process {holder.pid} on {os.uname().nodename}; "
        "wait until it ends, or name another"
    )
    for _ in range(2):
        with pytest.raises(CxrError) as caught, locks.lock(str(tmp_path / "lock"), "the image store x"):
            pytest.fail("two processes hold one lock")
        assert str(caught.value) == message


def test_a_lock_of_a_killed_process_does_not_block(tmp_path, holder):
    holder.kill()
    holder.wait()
    assert (tmp_path / "lock").read_text().startswith(f"process {holder.pid} on ")
    with locks.lock(str(tmp_path / "lock"), "the store"):
        text = (tmp_path / "lock").read_text()
    assert text == f"process {os.getpid()} on {os.uname().nodename}\n"


def test_a_lock_can_be_taken_again_after_success_and_after_failure(tmp_path):
    path = str(tmp_path / "lock")
    with locks.lock(path, "it"):
        pass
    with pytest.raises(RuntimeError), locks.lock(path, "it"):
        raise RuntimeError
    second = locks.lock(path, "it")
    with locks.lock(path, "it"), pytest.raises(CxrError, match="it is in use by process"):
        second.__enter__()


@pytest.fixture(params=[errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS])
def no_locks(request, monkeypatch) -> str:
    """Makes a file system that has no locks; what it says."""

    def refuse(descriptor, operation):
        raise OSError(request.param, os.strerror(request.param))

    monkeypatch.setattr(locks.fcntl, "flock", refuse)
    monkeypatch.setattr(locks, "_told", set())
    return os.strerror(request.param)


def test_where_there_are_no_locks_that_is_said_once_and_the_work_goes_on(tmp_path, no_locks, capsys):
    for _ in range(2):
        with (
            locks.lock(str(tmp_path / "lock"), "the store"),
            locks.lock(str(tmp_path / "lock"), "the store"),
        ):
            pass

    assert capsys.readouterr().err == (
        f"warning: {tmp_path}: this file system has no locks ({no_locks}); see to it that no other command "
        "works there at the same time\n"
    )


def test_a_lock_that_fails_for_another_reason_is_an_error(tmp_path, monkeypatch):
    def fail(descriptor, operation):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(locks.fcntl, "flock", fail)
    with pytest.raises(OSError, match="Input/output error"), locks.lock(str(tmp_path / "lock"), "it"):
        pass


@pytest.mark.parametrize("kind", ["symbolic", "dangling", "hard"])
def test_a_lock_file_that_is_a_link_is_refused_and_its_file_left_as_it_is(tmp_path, kind):
    mine, path = tmp_path / "mine", tmp_path / "lock"
    if kind != "dangling":
        mine.write_bytes(b"years of work")
    path.hardlink_to(mine) if kind == "hard" else path.symlink_to(mine)

    with pytest.raises(CxrError) as caught, locks.lock(str(path), "it"):
        pytest.fail("the lock was taken")
    expected = {"hard": "is a link to another file, expected one of ours"}
    assert str(caught.value) == (
        f"{path} {expected.get(kind, 'is a link, expected a file of ours')}; remove the link"
    )
    assert mine.exists() == (kind != "dangling")
    assert kind == "dangling" or mine.read_bytes() == b"years of work"


def test_a_lock_file_that_is_none_is_said_to_be_so(tmp_path):
    os.mkfifo(tmp_path / "lock")

    with (
        pytest.raises(CxrError, match=r"lock is a FIFO, expected a file$"),
        locks.lock(str(tmp_path / "lock"), "it"),
    ):
        pytest.fail("the lock was taken")


# In remote storage


@pytest.fixture
def remote(monkeypatch) -> str:
    """The path of a lock in a remote folder; signs of life are quick."""
    MemoryFileSystem.store.clear()
    MemoryFileSystem.pseudo_dirs[:] = [""]
    monkeypatch.setattr(locks, "BEAT_SECONDS", 0.02)
    monkeypatch.setattr(locks, "LEASE_SECONDS", 1.0)
    return "memory://folder/lock"


def markers() -> list[str]:
    return [name for name in storage.list_names("memory://folder") if name.startswith("lock-")]


def leave_marker(machine: str, pid: int, holds: bool = True, name: str = "lock-0") -> None:
    state = {"process": "process 7 on far", "machine": machine, "pid": pid, "holds": holds, "beat": 3}
    storage.write_bytes(f"memory://folder/{name}", json.dumps(state).encode())


def test_a_remote_lock_that_is_held_is_refused_and_free_again_after_it(remote):
    with locks.lock(remote, "it") as held:
        held.check()
        for _ in range(2):
            with pytest.raises(CxrError) as caught, locks.lock(remote, "it"):
                pytest.fail("two hold one lock")
            assert str(caught.value) == (
                f"it is in use by process {os.getpid()} on {os.uname().nodename}; "
                "wait until it ends, or name another"
            )
        assert len(markers()) == 1
    assert markers() == []
    with pytest.raises(RuntimeError), locks.lock(remote, "it"):
        raise RuntimeError
    assert markers() == []


def test_of_many_that_come_at_once_one_holds_and_the_others_are_told(remote):
    start, holding, most, outcomes = threading.Barrier(8), [], [], []

    def work() -> None:
        start.wait()
        try:
            with locks.lock(remote, "it"):
                holding.append(1)
                most.append(len(holding))
                time.sleep(0.5)  # longer than it takes the others to see it
                holding.pop()
                outcomes.append("held")
        except CxrError as error:
            outcomes.append(str(error).partition(" by ")[0])

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert set(most) == {1}
    assert sorted(set(outcomes)) == ["held", "it is in use"]
    assert len(outcomes) == 8
    assert markers() == []


@pytest.mark.parametrize("holds", [True, False])
def test_a_marker_of_a_dead_process_of_this_machine_does_not_block(remote, holds, capsys):
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    leave_marker(locks._machine(), process.pid, holds)

    with locks.lock(remote, "it"):
        assert len(markers()) == 1
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("content", [None, b"{", b"[]"])
def test_a_marker_without_a_sign_of_life_does_not_block_for_ever(remote, content, capsys):
    leave_marker("another machine", os.getpid())
    if content is not None:
        storage.write_bytes("memory://folder/lock-0", content)
    started = time.monotonic()

    with locks.lock(remote, "it"):
        assert time.monotonic() - started > 1
        assert len(markers()) == 1
    holder = "process 7 on far" if content is None else "None"
    assert capsys.readouterr().err == (
        f"memory://folder: was in use by {holder}; looking whether it still works\n"
    )


def test_who_lost_the_lock_finds_out_and_does_not_take_it_back(remote):
    with locks.lock(remote, "it") as held:
        storage.remove(f"memory://folder/{markers()[0]}")  # as another does after the lease
        time.sleep(0.2)
        with pytest.raises(CxrError, match=r"^it was taken over by another command; run the same again"):
            held.check()
    assert markers() == []


@pytest.mark.slow
def test_two_builds_of_one_dataset_in_a_bucket_leave_one_of_them_whole(bucket, lookalike, tmp_path):
    def start(seed: int, out: str, store: str) -> subprocess.Popen:
        words = [
            "--images", str(lookalike.images), "--metadata", str(lookalike.metadata), "--train-val-list",
            str(lookalike.train_val_list), "--test-list", str(lookalike.test_list), "--size", "32",
            "--copies-target", "0.1", "--workers", "1", "--seed", str(seed), "--out", out, "--store", store,
        ]  # fmt: skip
        command = [sys.executable, "-m", "cxr_records", "build", *words]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    alone = {}
    for seed in (1, 2):
        process = start(seed, str(tmp_path / f"{seed}"), str(tmp_path / "store"))
        assert process.wait(timeout=120) == 0
        alone[seed] = files_of(tmp_path / f"{seed}")

    for _ in range(3):
        both = [start(seed, f"{bucket}/cxr14", f"{bucket}/store") for seed in (1, 2)]
        said = [process.communicate(timeout=120)[1] for process in both]
        codes = [process.returncode for process in both]

        assert 0 in codes, said
        for code, text in zip(codes, said, strict=True):
            assert code == 0 or "is in use by process" in text, text
        assert check_dataset(f"{bucket}/cxr14", deep=True) == []
        seed = read_manifest(f"{bucket}/cxr14").config.seed
        assert files_of(f"{bucket}/cxr14") == alone[seed]
        assert codes[seed - 1] == 0


@pytest.mark.slow
def test_a_build_in_a_bucket_that_was_killed_does_not_block_the_next(bucket, lookalike, build, tmp_path):
    code = (
        "import os, signal, sys\nfrom cxr_records import locks\n"
        "with locks.lock(sys.argv[1], 'it'): os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    ended = subprocess.run([sys.executable, "-c", code, f"{bucket}/cxr14/.build/lock"])
    assert ended.returncode == -9
    assert len(storage.list_names(f"{bucket}/cxr14/.build")) == 1

    build(f"{bucket}/cxr14")

    assert check_dataset(f"{bucket}/cxr14") == []
    assert not [name for name in storage.list_names(f"{bucket}/cxr14/.build") if name.startswith("lock")]
