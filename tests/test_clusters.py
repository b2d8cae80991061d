"""Engines past one machine, from the Python packages alone: a worker pool, and a Dask cluster of processes.

Their processes are those of a cluster: a service that deals work out, and workers that know of the command
only what the engine brings them. All lie on this machine and see one disk.
"""

import contextlib
import dataclasses
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import apache_beam as beam
import pytest
from conftest import free_port

from cxr_records.cli import run as run_command
from cxr_records.errors import CxrError, UsageError
from cxr_records.pipelines import beam_job, engines
from cxr_records.pipelines.engines import Engine, Job

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
    return Engine(
        runner="PortableRunner", beam_options=(*options, f"--environment_config=localhost:{port}", *more)
    )


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


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()}


def test_a_worker_pool_builds_the_bytes_of_the_local_engine(pool, words, dataset, tmp_path):
    out = ["--out", str(tmp_path / "cxr14"), "--store", str(tmp_path / "store")]
    options = ["--job_endpoint=embed", "--environment_type=EXTERNAL"]
    options.append(f"--environment_config=localhost:{pool}")

    code = run_command([*words, *out, "--runner", "PortableRunner", "--", *options])

    assert code == 0
    assert files_of(tmp_path / "cxr14") == files_of(dataset)


def test_a_pools_workers_do_the_work_and_say_what_is_wrong(pool, tmp_path):
    paths = [str(tmp_path / f"{number}") for number in range(4)]
    engines.run(job(paths), pool_engine(pool))
    assert str(os.getpid()) not in {Path(path).read_text() for path in paths}

    with pytest.raises(CxrError) as caught:
        engines.run(job([str(tmp_path / "broken")]), pool_engine(pool))
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
            engines.run(job([str(tmp_path / "a")]), pool_engine(port))
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
    return Engine(runner="DaskRunner", beam_options=(f"--dask_client_address={address}",))


def test_both_workers_work_and_a_killed_ones_work_is_done_by_the_other(dask, tmp_path):
    address, workers = dask
    paths = [str(tmp_path / f"{number:02d}") for number in range(16)]
    engines.run(job(paths), dask_engine(address))
    assert {int(Path(path).read_text()) for path in paths} == {worker.pid for worker in workers}

    more = [str(tmp_path / f"more{number:02d}") for number in range(8)] + [str(tmp_path / "kill")]
    engines.run(job(more), dask_engine(address))
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
    while not list((tmp_path / "dask" / "store").glob("unit-*.parquet")) and process.poll() is None:
        time.sleep(0.02)
    workers[0].kill()
    printed, said = process.communicate(timeout=200)

    assert process.returncode == 0, said
    assert json.loads(printed)["decoded"] == 149
    assert files_of(tmp_path / "dask" / "cxr14") == files_of(tmp_path / "local" / "cxr14")


# Guards


def test_a_pipeline_with_two_leaves_is_refused():
    pipeline = beam.Pipeline()
    specs = pipeline | "Specs" >> beam.Create([1, 2])
    _ = specs | "One" >> beam.Map(str)
    _ = specs | "Other" >> beam.Map(str)

    with pytest.raises(CxrError, match=r"the pipeline has 2 leaves \(One, Other\); expected one"):
        beam_job.check_linear(pipeline)


@pytest.mark.parametrize("name", ["python", "apache_beam", "cxr_records"])
def test_a_worker_of_another_version_is_named(name):
    here = beam_job.Versions.here()
    wanted = dataclasses.replace(here, **{name: "0.0"})

    with pytest.raises(CxrError) as caught:
        wanted.check_worker()
    here.check_worker()
    assert str(caught.value) == (
        f"found {name} {getattr(here, name)} on worker {socket.gethostname()}; the command has 0.0: give "
        "workers the command's versions (docker/README.md)"
    )


# Settings, and what is wrong before any work


@pytest.mark.parametrize(
    ("runner", "given", "options"),
    [
        (
            "FlinkRunner",
            ["--flink_master=host:8081"],
            "--runner=FlinkRunner --flink_master=host:8081 --max_bundle_size=1 "
            "--number_of_execution_retries=3 --execution_retry_delay=1000",
        ),
        (
            "FlinkRunner",
            ["--max_bundle_size=4", "--number_of_execution_retries=0"],
            "--runner=FlinkRunner --max_bundle_size=4 --number_of_execution_retries=0 "
            "--execution_retry_delay=1000",
        ),
        ("DataflowRunner", [], "--runner=DataflowRunner --number_of_worker_harness_threads=1"),
        ("SparkRunner", [], "--runner=SparkRunner"),
        (
            "DaskRunner",
            [],
            "--runner=apache_beam.runners.dask.dask_runner.DaskRunner --dask_partition_size=1",
        ),
    ],
)
def test_each_engine_gets_the_settings_that_it_needs_and_the_users_go_before_them(runner, given, options):
    assert Engine(runner=runner, beam_options=tuple(given)).options() == options.split()


def test_every_setting_is_an_option_that_beam_knows():
    from apache_beam.options.pipeline_options import PipelineOptions
    from apache_beam.runners.dask.dask_runner import DaskOptions  # noqa: F401 - known once imported

    # Flink's are known to its job server.
    ours = [word for name, words in engines.SETTINGS.items() if name != "flinkrunner" for word in words]
    known = PipelineOptions(ours).get_all_options(retain_unknown_options=False)
    assert {word.split("=")[0].removeprefix("--").removeprefix("dask_") for word in ours} <= known.keys()


@pytest.mark.parametrize(
    ("option", "what"),
    [
        ("flink_master", "Flink's master"),
        ("spark_master_url", "Spark's master"),
        ("job_endpoint", "Beam's job service"),
        ("dask_client_address", "Dask's scheduler"),
    ],
)
def test_a_service_that_does_not_answer_is_named_before_any_work(option, what):
    address = f"127.0.0.1:{free_port()}"
    for words in ((f"--{option}={address}",), (f"--{option}", address)):
        with pytest.raises(CxrError) as caught:
            Engine(runner="PortableRunner", beam_options=words).check()
        assert str(caught.value) == (
            f"--{option}={address}: {what} does not answer there (Connection refused); start it, or mend the "
            "address"
        )


def test_words_for_engines_that_beam_starts_are_no_addresses():
    for word in ("[auto]", "[local]", "local", "local[4]", "embed"):
        Engine(runner="PortableRunner", beam_options=(f"--flink_master={word}",)).check()
    with pytest.raises(UsageError, match="--flink_master=cluster: expected HOST:PORT"):
        Engine(runner="PortableRunner", beam_options=("--flink_master=cluster",)).check()


def test_a_missing_jar_and_a_missing_java_are_named(tmp_path, monkeypatch):
    with pytest.raises(CxrError) as caught:
        Engine(runner="FlinkRunner", beam_options=("--flink_job_server_jar=/nowhere/jar",)).check()
    assert str(caught.value) == (
        "--flink_job_server_jar=/nowhere/jar: no such file; download Beam's job server and name it here"
    )
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(CxrError, match="--runner FlinkRunner starts Beam's job server, which needs Java"):
        Engine(runner="FlinkRunner").check()


def test_the_command_checks_before_it_reads_anything(words, tmp_path, capfd):
    address = f"127.0.0.1:{free_port()}"
    out = ["--out", str(tmp_path / "cxr14"), "--runner", "FlinkRunner"]

    code = run_command([*words, *out, "--", f"--flink_master={address}"])

    assert code == 1
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith(f"Error: --flink_master={address}: Flink's master does not answer there")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("log", "said"),
    [
        (
            "RuntimeError: Unable to fetch remote job server jar at http://maven/beam.jar: <urlopen error>.",
            "Beam's job server could not be fetched from http://maven/beam.jar; download it and name it with "
            "--flink_job_server_jar=FILE (--spark_job_server_jar for Spark)",
        ),
        (
            "ModuleNotFoundError: No module named 'distributed'",
            "Dask is not installed; pip install 'apache-beam[dask]'",
        ),
    ],
)
def test_what_an_engine_says_becomes_the_remedy(log, said):
    with pytest.raises(CxrError) as caught:
        engines.raise_trouble(log)
    assert str(caught.value) == said
