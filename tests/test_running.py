"""The local engine: every spec is done, and what goes wrong in a worker is one line."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cxr_records.errors import CxrError, is_out_of_memory
from cxr_records.pipelines import beam_job, engines
from cxr_records.pipelines.engines import engine_named
from cxr_records.pipelines.running import Job, run, started_early


def touch(path: str) -> None:
    """A unit of work that leaves a file; some names misbehave."""
    name = os.path.basename(path)
    if name == "full":
        raise OSError(28, "No space left on device", path)
    if name == "broken":
        raise CxrError(f"{path} is broken; mend it")
    if name == "fault":
        raise ZeroDivisionError("surprise")
    if name == "memory":
        raise MemoryError
    if name == "thread":
        raise RuntimeError("can't start new thread")
    if name == "kill" and not Path(f"{path}.once").exists():
        Path(f"{path}.once").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    Path(path).touch()


def job(paths: list[str], seconds: float) -> Job:
    return Job("test", "files", touch, paths, os.path.exists, lambda path: 1, seconds)


@pytest.fixture(params=[0.0, pytest.param(1e9, marks=pytest.mark.slow)], ids=["in process", "two processes"])
def seconds(request, monkeypatch) -> float:
    """An estimate that makes the engine stay in this process, or start others."""
    # Worker processes import the function from here.
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    return request.param


def test_every_spec_is_run(tmp_path, seconds, capsys):
    paths = [str(tmp_path / f"{number:02d}") for number in range(20)]
    run(job(paths, seconds), engine_named(workers=2))
    assert sorted(map(str, tmp_path.iterdir())) == paths
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("name", ["memory", "thread"])
def test_used_up_memory_is_one_line_with_the_remedy(tmp_path, seconds, capsys, name):
    paths = [str(tmp_path / name), str(tmp_path / "good")]
    with pytest.raises(CxrError) as caught:
        run(job(paths, seconds), engine_named(workers=2))
    assert str(caught.value) == (
        "not enough memory, or threads, for what runs at once; run the same again with fewer `workers`, or "
        "under larger limits (ulimit -v, ulimit -u)"
    )
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("x\nMemoryError\n", True),
        ("numpy._core._exceptions._ArrayMemoryError: Unable to allocate 3 GiB", True),
        ("terminate called after throwing an instance of 'std::bad_alloc'", True),
        ("OSError: [Errno 12] Cannot allocate memory", True),
        ("RuntimeError: can't start new thread", True),
        ("OpenBLAS blas_thread_init: pthread_create failed for thread 1 of 2", False),
        ("/data/MemoryError.png: no such file", False),
        (MemoryError(), True),
        (ValueError("x"), False),
    ],
)
def test_what_says_that_memory_is_used_up_is_known(text, said):
    assert is_out_of_memory(text) == said


@pytest.mark.parametrize(
    ("name", "text"),
    [("full", "{path}: No space left on device"), ("broken", "{path} is broken; mend it")],
)
def test_what_a_worker_says_reaches_the_user_as_it_is(tmp_path, seconds, capsys, name, text):
    paths = [str(tmp_path / name), str(tmp_path / "good")]
    with pytest.raises(CxrError) as caught:
        run(job(paths, seconds), engine_named(workers=2))
    assert str(caught.value) == text.format(path=paths[0])
    assert capsys.readouterr() == ("", "")


def test_a_fault_of_ours_in_a_worker_is_one_line(tmp_path, seconds, capsys):
    with pytest.raises(
        CxrError, match=r"surprise.*run the same again to go on, `debug=True` shows all"
    ) as caught:
        run(job([str(tmp_path / "fault"), str(tmp_path / "good")], seconds), engine_named(workers=2))
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_a_worker_that_is_killed_costs_only_its_own_spec(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    paths = [str(tmp_path / f"{number:02d}") for number in range(20)] + [str(tmp_path / "kill")]
    run(job(paths, 1e9), engine_named(workers=2))
    assert all(map(os.path.exists, paths))
    assert "a worker process died" in capsys.readouterr().err


def test_an_engine_that_leaves_specs_undone_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(beam_job, "run_pipeline", lambda *job: None)
    with pytest.raises(CxrError, match="ended without error but left 1 of 1 parts undone"):
        run(job([str(tmp_path / "a")], 0), engine_named(workers=1))


def group_of(pid: int) -> list[int]:
    """Pids of the processes of a group that are not dead."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            words = path.read_text().rpartition(")")[2].split()
            if int(words[2]) == pid and words[0] != "Z":
                found.append(int(path.parent.name))
    return found


def wait_for_group(pid: int, count: int) -> None:
    deadline = time.monotonic() + 60
    while len(group_of(pid)) != count:
        assert time.monotonic() < deadline, group_of(pid)
        time.sleep(0.02)


def test_processes_that_were_started_early_do_the_job_and_end(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    engine = engine_named(workers=2)
    paths = [str(tmp_path / f"{number:02d}") for number in range(20)]

    with started_early(engine, lambda: True) as below:
        wait_for_group(below.pid, 3)  # that of the pipeline, and two forks of it
        forked = set(group_of(below.pid)) - {below.pid}
        run(job_of(note_process, paths), engine, below)
        wait_for_group(below.pid, 0)

    assert {int(Path(path).read_text()) for path in paths} <= forked
    assert capsys.readouterr() == ("", "")


def note_process(path: str) -> None:
    Path(path).write_text(str(os.getpid()))


def test_processes_that_were_started_for_nothing_end_and_leave_no_word(capfd):
    groups = []

    def fail_early() -> None:
        with started_early(engine_named(workers=2), lambda: True) as below:
            groups.append(below.pid)
            wait_for_group(below.pid, 3)
            raise CxrError("the table is wrong")

    with pytest.raises(CxrError, match="the table is wrong"):
        fail_early()

    wait_for_group(groups[0], 0)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("moment", ["at its start", "while it waits"])
def test_processes_that_were_started_early_end_with_a_command_that_is_killed(moment):
    code = (
        "import time\nfrom cxr_records.pipelines.engines import engine_named\n"
        "from cxr_records.pipelines.running import Below\n"
        "print(Below(engine_named(workers=2)).pid, flush=True)\ntime.sleep(600)"
    )
    command = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    group = int(command.stdout.readline())
    if moment == "while it waits":
        wait_for_group(group, 3)

    command.kill()
    command.wait()

    wait_for_group(group, 0)


@pytest.mark.parametrize(("workers", "runner"), [(1, "FnApiRunner"), (4, "PortableRunner")])
def test_nothing_is_started_early_where_no_process_of_ours_would_wait(workers, runner):
    with started_early(engine_named(runner, workers=workers), lambda: True) as below:
        assert below is None
    with started_early(engine_named(workers=2), lambda: False) as below:
        assert below is None


@pytest.mark.slow
def test_where_workers_are_no_forks_beam_starts_them(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    monkeypatch.setattr(engines.LocalEngine, "forks", 0)
    paths = [str(tmp_path / f"{number:02d}") for number in range(20)]

    run(job_of(note_process, paths), engine_named(workers=2))

    assert len({Path(path).read_text() for path in paths}) == 2
    assert capsys.readouterr() == ("", "")


def test_a_worker_that_is_done_takes_what_a_slow_one_has_not_begun(tmp_path, monkeypatch):
    """Dealt out beforehand, half of the files would wait for the slow one."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    paths = [str(tmp_path / name) for name in ("slow", *(f"{number:02d}" for number in range(20)))]

    run(job_of(note_process_slowly, paths), engine_named(workers=2))

    by = {Path(path).name: Path(path).read_text() for path in paths}
    slow = by.pop("slow")
    assert set(by.values()) - {slow} == {by["19"]}  # two processes, the other one has all the rest
    assert list(by.values()).count(slow) == 0


def job_of(function, paths: list[str]) -> Job:
    return Job("test", "files", function, paths, os.path.exists, lambda path: 1, 1e9)


def note_process_slowly(path: str) -> None:
    """The slow one ends when all others are done."""
    others = [Path(path).with_name(f"{number:02d}") for number in range(20)]
    deadline = time.monotonic() + 60
    while Path(path).name == "slow" and not all(other.exists() for other in others):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    note_process(path)
