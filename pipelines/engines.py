"""Which Beam engine a job runs on, with which settings, and what the command sees of it.

What the function did is told by the files it leaves, never by the engine: all specs must be done before the
command goes on, and progress is counted from the files.

The local engine is FnApiRunner by name: a bare DirectRunner changes its runner with the network. It and every
other engine but the command's own process run in a process group below the command (`beam_job`), which reads
that group's log, watches the files, and can end the group at any moment; the group ends itself when the
command is gone.
"""

import argparse
import contextlib
import dataclasses
import logging
import os
import pickle
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import cxr_records
from cxr_records.errors import CxrError, UsageError
from cxr_records.pipelines.worker_errors import WORKER_DIED, is_marked, raise_marked
from cxr_records.progress import progress, say

LOCAL_RUNNER = "FnApiRunner"
# What makes an engine right for a few large, uneven specs; the user's own options go before them.
SETTINGS = {
    # One spec at a time: Flink's bundle of up to 5,000 would put all of them on one worker, and fail with the
    # worst of them. A worker that dies costs its spec alone, which is tried again.
    "flinkrunner": ("--max_bundle_size=1", "--number_of_execution_retries=3", "--execution_retry_delay=1000"),
    # A thread per process, of which there is one per core: each holds a shard.
    "dataflowrunner": ("--number_of_worker_harness_threads=1",),
    # Spark retries a task three times by itself.
    "sparkrunner": (),
    # Dask puts 128 specs into a partition, and a partition on one worker.
    "daskrunner": ("--dask_partition_size=1",),
}
# Runners that Beam knows by their class alone.
_CLASSES = {"daskrunner": "apache_beam.runners.dask.dask_runner.DaskRunner"}
# Options that name a service which must answer before anything is worth doing, with what they name.
_SERVICES = {
    "flink_master": "Flink's master",
    "spark_master_url": "Spark's master",
    "job_endpoint": "Beam's job service",
    "dask_client_address": "Dask's scheduler",
}
# Not addresses but words for an engine that Beam starts itself.
_STARTED_BY_BEAM = re.compile(r"\[auto\]|\[local\]|embed|local(\[.*\])?")
_JARS = ("flink_job_server_jar", "spark_job_server_jar")
# What is in an engine's log, and what it means to the user.
_TROUBLES = {
    r"No module named 'cxr_records": (
        "a worker lacks the package cxr_records; install the command's version there, with "
        "--sdk_container_image or in the environment of the worker pool (docker/README.md)"
    ),
    r"Unable to fetch remote job server jar at (\S+):": (
        "Beam's job server could not be fetched from \\1; download it and name it with "
        "--flink_job_server_jar=FILE (--spark_job_server_jar for Spark)"
    ),
    r"No module named '(?:dask|distributed)": "Dask is not installed; pip install 'apache-beam[dask]'",
}
# Starting worker processes takes some 5 s of two cores; a job that two workers would shorten by less than
# that stays in the command's own process.
SECONDS_WORTH_PROCESSES = 12.0
ATTEMPTS = 3  # of a local job whose workers died
_POLL_SECONDS = 0.25
_CONNECT_SECONDS = 10.0


def cores() -> int:
    """Returns how many processor cores this process may use."""
    if hasattr(os, "sched_getaffinity"):  # Linux; elsewhere a process may use them all
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@dataclasses.dataclass(frozen=True)
class Engine:
    """Where a job runs.

    Attributes:
        workers: processes of the local engine.
        runner: name of the Beam runner.
        beam_options: further options of Beam's own, as on its command line.
        debug: whether Beam's log goes to the screen.
    """

    workers: int = dataclasses.field(default_factory=cores)
    runner: str = LOCAL_RUNNER
    beam_options: tuple[str, ...] = ()
    debug: bool = False

    def __post_init__(self):
        if self.workers < 1:
            raise UsageError(f"--workers {self.workers}: expected at least 1")
        if self.runner != LOCAL_RUNNER:
            _check_runner(self.runner)

    def options(self, in_process: bool = False) -> list[str]:
        """Returns Beam's command line for this engine."""
        if self.runner != LOCAL_RUNNER:
            own = {option.split("=")[0] for option in self.beam_options}
            name = self.runner.rsplit(".", 1)[-1].lower()
            added = [word for word in SETTINGS.get(name, ()) if word.split("=")[0] not in own]
            return [f"--runner={_CLASSES.get(name, self.runner)}", *self.beam_options, *added]
        if in_process:
            return list(self.beam_options)
        local = ["--direct_running_mode=multi_processing", f"--direct_num_workers={self.workers}"]
        return [*local, *self.beam_options]

    def check(self) -> None:
        """Finds before any work what would stop the engine at its start: services, jars, Java.

        Raises:
            CxrError: with the remedy.
        """
        parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
        for name in (*_SERVICES, *_JARS):
            parser.add_argument(f"--{name}")
        parser.add_argument("--flink_submit_uber_jar", action="store_true")
        given, _ = parser.parse_known_args(list(self.beam_options))
        for name in _JARS:
            jar = getattr(given, name)
            if jar and "://" not in jar and not os.path.isfile(jar):
                raise CxrError(f"--{name}={jar}: no such file; download Beam's job server and name it here")
        starts_jar = self.runner.lower() in ("flinkrunner", "sparkrunner") and not given.flink_submit_uber_jar
        if starts_jar and not shutil.which("java"):
            raise CxrError(
                f"--runner {self.runner} starts Beam's job server, which needs Java; none is on the PATH"
            )
        for name, what in _SERVICES.items():
            address = getattr(given, name)
            if address and not _STARTED_BY_BEAM.fullmatch(address):
                _check_answers(f"--{name}={address}", address, what)


@dataclasses.dataclass(frozen=True)
class Job:
    """One phase to run.

    Attributes:
        phase: its name for people, such as "decode".
        unit: what is counted, such as "images".
        function: a module-level function of one spec, which may run twice on the same spec.
        specs: small, picklable.
        is_done: tells by the files on disk whether a spec is finished.
        size: how many units a spec stands for.
        seconds: about how long one core would take for all.
    """

    phase: str
    unit: str
    function: Callable[[Any], Any]
    specs: Sequence[Any]
    is_done: Callable[[Any], bool]
    size: Callable[[Any], int]
    seconds: float


def run(job: Job, engine: Engine) -> None:
    """Runs a job to its end, showing progress.

    A local worker that dies (killed for memory, say) does not end the job: what is unfinished is run again.

    Raises:
        CxrError: a worker said what is wrong, or the engine failed, or left specs unfinished.
    """
    with progress(job.phase, job.unit, sum(map(job.size, job.specs))) as shown:
        pending = list(job.specs)
        for attempt in range(1, ATTEMPTS + 1):
            failure = _run_once(job, pending, engine, shown.update)
            left = [spec for spec in pending if not job.is_done(spec)]
            if not left:
                shown.update(sum(map(job.size, job.specs)))
                return
            if failure is None:
                raise CxrError(
                    f"{job.phase}: {engine.runner} ended without error but left {len(left)} of "
                    f"{len(job.specs)} parts undone; run the same command again"
                )
            if engine.runner != LOCAL_RUNNER or attempt == ATTEMPTS:
                raise CxrError(f"{job.phase}: {failure}; run the same command to go on, --debug shows all")
            say(f"{job.phase}: {failure}; going on with what is left")
            pending = left


def _run_once(job: Job, pending: Sequence[Any], engine: Engine, show: Callable[[int], None]) -> str | None:
    """Runs specs once. Returns the engine's failure, if any; raises what a worker itself said."""
    total = sum(map(job.size, job.specs))
    undone = {id(spec): spec for spec in pending}

    def watch() -> None:
        for key, spec in list(undone.items()):
            if job.is_done(spec):
                del undone[key]
        show(total - sum(map(job.size, undone.values())))

    small = engine.workers == 1 or len(pending) == 1 or job.seconds < SECONDS_WORTH_PROCESSES
    in_process = engine.runner == LOCAL_RUNNER and small
    runner = _run_in_process if in_process else _run_below
    watch()
    return runner(job.function, pending, engine, watch)


def _run_in_process(
    function: Callable, specs: Sequence[Any], engine: Engine, watch: Callable[[], None]
) -> str | None:
    failures: list[BaseException] = []

    def work() -> None:
        try:
            with _quiet(engine.debug):
                from cxr_records.pipelines.beam_job import run_pipeline

                run_pipeline(function, specs, engine.options(in_process=True))
        except BaseException as error:
            failures.append(error)

    # A daemon, so that Ctrl-C in the main thread ends the command and this thread with it.
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(_POLL_SECONDS)
        watch()
    if not failures:
        return None
    raise_marked(str(failures[0]))
    if engine.debug:
        raise failures[0]
    return f"Beam failed ({_last_line(str(failures[0]))})"


def _run_below(
    function: Callable, specs: Sequence[Any], engine: Engine, watch: Callable[[], None]
) -> str | None:
    """Runs the pipeline in a process group below this one, and ends the group whatever happens."""
    child = subprocess.Popen(
        # Not -m: functions and classes of a main module would travel by value and not by name.
        [sys.executable, "-c", "from cxr_records.pipelines.beam_job import main; main()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        # Python looks for modules where it is started: in the folder that holds cxr_records, so that it and
        # its workers import what the command did, and nothing of the user's folder. (This file's own folder
        # is another one in a checkout than where it is installed.) Specs hold absolute paths.
        cwd=Path(cxr_records.__file__).resolve().parent.parent,
    )
    said: list[str] = []
    reader = threading.Thread(target=_read_log, args=(child, said, engine.debug), daemon=True)
    reader.start()
    try:
        pickle.dump((function, list(specs), engine.options()), child.stdin)
        child.stdin.flush()  # and kept open: its end tells the child that this process is gone
        looked = 0.0
        while child.poll() is None:
            # In a store far away a look takes long: then they are seldom. The end is noticed at once.
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(max(_POLL_SECONDS, 4 * looked))
            started = time.monotonic()
            watch()
            looked = time.monotonic() - started
            if any(is_marked(line) for line in list(said)):
                break  # a worker has said why it cannot go on: do not wait for the others
    except BrokenPipeError:
        child.wait()
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()
        reader.join(timeout=2)
    watch()
    log = "\n".join(said)
    raise_marked(log)
    if child.returncode == 0:
        return None
    if WORKER_DIED in log:  # not always at the start of a line: several threads print
        return log[log.index(WORKER_DIED) :].splitlines()[0]
    raise_trouble(log)
    if child.returncode < 0:
        return f"Beam's process was killed by {signal.Signals(-child.returncode).name}"
    return f"Beam's process ended early ({_last_line(log)})"


def raise_trouble(log: str) -> None:
    """Raises what a known line in an engine's log means, if one is there.

    Raises:
        CxrError: with the remedy.
    """
    for pattern, meaning in _TROUBLES.items():
        if found := re.search(pattern, log):
            raise CxrError(found.expand(meaning))


def _read_log(child: subprocess.Popen, said: list[str], debug: bool) -> None:
    """Keeps the end of what Beam and its workers print, and shows it where asked to."""
    for line in child.stdout:
        text = line.decode(errors="replace").rstrip()
        if debug:
            print(text, file=sys.stderr)
        said.append(text)
        del said[:-200]


def _check_runner(name: str) -> None:
    """Refuses a runner that Beam does not know, before any work; a dotted name is a class of the user's."""
    with _quiet(debug=False):
        from apache_beam.options.pipeline_options import StandardOptions
    known = StandardOptions.KNOWN_RUNNER_NAMES
    known = {LOCAL_RUNNER, "DaskRunner", *known}
    if "." not in name and name.lower() not in map(str.lower, known):
        raise UsageError(f"--runner {name}: expected one of {', '.join(sorted(known))}")


def _check_answers(option: str, address: str, what: str) -> None:
    """Connects to a service and closes the connection."""
    host, _, port = address.split("://")[-1].split("/")[0].rpartition(":")
    if not host or not port.isdigit():
        raise UsageError(f"{option}: expected HOST:PORT")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_SECONDS).close()
    except OSError as error:
        raise CxrError(
            f"{option}: {what} does not answer there ({error.strerror or error}); start it, or "
            "mend the address"
        ) from error


@contextlib.contextmanager
def _quiet(debug: bool) -> Iterator[None]:
    """Keeps Beam's log, which tells every error three times, off the screen."""
    if not debug:
        logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:300] if lines else "no reason given"
