"""Engines past one machine, from the Python packages alone: a worker pool, and a Dask cluster of processes.

Their processes are those of a cluster: a service that deals work out, and workers that know of the command
only what the engine brings them. All lie on this machine and see one disk.
"""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import files_of, free_port

from cxr_records.cli import run as run_command
from cxr_records.errors import CxrError
from cxr_records.pipelines.engines import Engine, engine_named
from cxr_records.pipelines.running import Job, run

pytestmark = pytest.mark.slow

BIN = Path(sys.executable).parent


def answers(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


def wait_for(ready: Callable[[], bool], processes: list[subprocess.Popen]) -> None:
    deadline = time.monotonic() + 120
    while not ready():
        assert all(process.poll() is None for process in processes)
        assert time.monotonic() < deadline
        time.sleep(0.1)


@contextlib.contextmanager
def started(folder: Path) -> Iterator[Callable[..., subprocess.Popen]]:
    """Starts processes in groups of their own, with their log in a folder; kills them at the end."""
    folder.mkdir(parents=True, exist_ok=True)
    processes = []
    # Workers import the functions of this module; a pool starts `python` from the PATH.
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    environment["PATH"] = f"{BIN}{os.pathsep}{os.environ['PATH']}"

    def start(*words: str, **changes: str) -> subprocess.Popen:
        with open(folder / f"{len(processes)}.log", "wb") as log:
            processes.append(
                subprocess.Popen(
                    [sys.executable, *words],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    env={**environment, **changes},
                    cwd=folder,
                    start_new_session=True,
                )
            )
        return processes[-1]

    try:
        yield start
    finally:
        for process in processes:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@pytest.fixture(autouse=True)
def functions_of_this_module(monkeypatch):
    """The process below the command imports them too."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))


def note_pid(path: str) -> None:
    """A unit of work that leaves the number of its process; some names misbehave."""
    name = os.path.basename(path)
    if name == "broken":
        raise CxrError(f"{path} is broken; mend it")
    if name == "kill" and not Path(f"{path}.once").exists():
        Path(f"{path}.once").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(0.2)
    Path(path).write_text(str(os.getpid()))


def job(paths: list[str], function: Callable[[str], None] = note_pid) -> Job:
    return Job("test", "files", function, paths, os.path.exists, lambda path: 1, 1e9)


# A pool of workers, behind Beam's portable runner


def pool_engine(port: int, *more: str) -> Engine:
    options = ("--job_endpoint=embed", "--environment_type=EXTERNAL")
    return engine_named("PortableRunner", (*options, f"--environment_config=localhost:{port}", *more))


@pytest.fixture
def pool(tmp_path) -> Iterator[int]:
    """The port of a worker pool."""
    port = free_port()
    with started(tmp_path / "pool") as start:
        words = ("-m", "apache_beam.runners.worker.worker_pool_main", f"--service_port={port}")
        process = start(*words)
        wait_for(lambda: answers(port), [process])
        yield port


@pytest.fixture(scope="module")
def words(lookalike) -> list[str]:
    """A build of the look-alike set; --out and --store are to follow."""
    return [
        *("build", "--images", str(lookalike.images), "--metadata", str(lookalike.metadata)),
        *("--train-val-list", str(lookalike.train_val_list), "--test-list", str(lookalike.test_list)),
        *("--size", "32", "--copies-target", "0.1"),
    ]


def test_a_worker_pool_builds_the_bytes_of_the_local_engine(pool, words, dataset, tmp_path):
    out = ["--out", str(tmp_path / "cxr14"), "--store", str(tmp_path / "store")]
    options = ["--job_endpoint=embed", "--environment_type=EXTERNAL"]
    options.append(f"--environment_config=localhost:{pool}")

    code = run_command([*words, *out, "--runner", "PortableRunner", "--", *options])

    assert code == 0
    assert files_of(tmp_path / "cxr14") == files_of(dataset)


def test_a_pools_workers_do_the_work_and_say_what_is_wrong(pool, tmp_path):
    paths = [str(tmp_path / f"{number}") for number in range(4)]
    run(job(paths), pool_engine(pool))
    assert str(os.getpid()) not in {Path(path).read_text() for path in paths}

    with pytest.raises(CxrError) as caught:
        run(job([str(tmp_path / "broken")]), pool_engine(pool))
    assert str(caught.value) == f"{tmp_path / 'broken'} is broken; mend it"


def test_a_worker_without_the_package_is_named(tmp_path):
    port = free_port()
    # Python finds everything that is installed here but the package.
    (tmp_path / "shadow").mkdir()
    (tmp_path / "shadow" / "sitecustomize.py").write_text(
        "import sys\n"
        "class Absent:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'cxr_records':\n"
        "            raise ModuleNotFoundError(f'No module named {name!r}', name=name)\n"
        "sys.meta_path.insert(0, Absent())\n"
    )
    with started(tmp_path / "pool") as start:
        process = start(
            *("-m", "apache_beam.runners.worker.worker_pool_main", f"--service_port={port}"),
            PYTHONPATH=str(tmp_path / "shadow"),
        )
        wait_for(lambda: answers(port), [process])
        with pytest.raises(CxrError) as caught:
            run(job([str(tmp_path / "a")]), pool_engine(port))
    assert str(caught.value) == (
        "a worker lacks the package cxr_records; install the command's version there, with "
        "--sdk_container_image or in the environment of the worker pool (docker/README.md)"
    )


# A Dask cluster: a scheduler and two workers, each a process


@pytest.fixture
def dask(tmp_path) -> Iterator[tuple[str, list[subprocess.Popen]]]:
    """The address of a scheduler, and its two workers."""
    port = free_port()
    with started(tmp_path / "dask") as start:
        words = ("-m", "distributed.cli.dask_scheduler", "--host", "127.0.0.1", "--no-dashboard")
        scheduler = start(*words, "--port", str(port))
        wait_for(lambda: answers(port), [scheduler])
        address = f"tcp://127.0.0.1:{port}"
        # Without nannies, so that a worker that is killed stays away.
        words = (
            "-m",
            "distributed.cli.dask_worker",
            address,
            "--nthreads",
            "1",
            "--no-nanny",
            "--no-dashboard",
        )
        workers = [start(*words) for _ in range(2)]
        logs = [tmp_path / "dask" / f"{number}.log" for number in (1, 2)]
        wait_for(lambda: all("Registered to" in log.read_text() for log in logs), [scheduler, *workers])
        yield address, workers


def dask_engine(address: str) -> Engine:
    return engine_named("DaskRunner", (f"--dask_client_address={address}",))


def test_both_workers_work_and_a_killed_ones_work_is_done_by_the_other(dask, tmp_path):
    address, workers = dask
    paths = [str(tmp_path / f"{number:02d}") for number in range(16)]
    run(job(paths), dask_engine(address))
    assert {int(Path(path).read_text()) for path in paths} == {worker.pid for worker in workers}

    more = [str(tmp_path / f"more{number:02d}") for number in range(8)] + [str(tmp_path / "kill")]
    run(job(more), dask_engine(address))
    assert sum(worker.poll() is None for worker in workers) == 1
    assert all(map(os.path.exists, more))


def test_real_images_on_a_cluster_have_the_bytes_of_the_local_engine(nih, dask, tmp_path):
    """One of two workers is killed in the middle of decoding."""
    address, workers = dask
    words = [
        *(sys.executable, "-m", "cxr_records", "build", "--images", str(nih / "images"), "--allow-missing"),
        *("--metadata", str(nih / "Data_Entry_2017_v2020.csv.gz"), "--max-rejected", "0.1", "--json"),
        *(
            "--train-val-list",
            str(nih / "train_val_list.txt.gz"),
            "--test-list",
            str(nih / "test_list.txt.gz"),
        ),
    ]

    def out(name: str) -> list[str]:
        return ["--out", str(tmp_path / name / "cxr14"), "--store", str(tmp_path / name / "store")]

    subprocess.run([*words, *out("local")], check=True, capture_output=True, timeout=200)
    engine = ["--runner", "DaskRunner", "--", f"--dask_client_address={address}"]
    process = subprocess.Popen(
        [*words, *out("dask"), *engine], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    while not list((tmp_path / "dask" / "store").glob("unit-*.sha256")) and process.poll() is None:
        time.sleep(0.02)
    workers[0].kill()
    printed, said = process.communicate(timeout=200)

    assert process.returncode == 0, said
    assert json.loads(printed)["decoded"] == 149
    assert files_of(tmp_path / "dask" / "cxr14") == files_of(tmp_path / "local" / "cxr14")
