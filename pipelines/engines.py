"""The engines that Beam runs a job on: what each is given, what it needs, what its log means.

Each engine is one class here. To add one, write a class: `engine_named` finds it by its `name`. Any other
runner of Beam's is an `Engine` as it is, with the user's own options and nothing added.

The local engine is FnApiRunner by name: a bare DirectRunner changes its runner with the network.
"""

import argparse
import contextlib
import dataclasses
import logging
import os
import re
import shutil
import socket
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import ClassVar

from cxr_records.choices import LOCAL_RUNNER as LOCAL_RUNNER
from cxr_records.errors import CxrError, UsageError

# Worker processes are ready 2 s after they are asked for; a job that two of them would shorten by less stays
# in the calling process.
SECONDS_WORTH_PROCESSES = 5.0
# Not addresses but words for an engine that Beam starts itself.
_STARTED_BY_BEAM = re.compile(r"\[auto\]|\[local\]|embed|local(\[.*\])?")
_CONNECT_SECONDS = 10.0


def cores() -> int:
    """Returns how many processor cores this process may use."""
    if hasattr(os, "sched_getaffinity"):  # Linux; elsewhere a process may use them all
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@dataclasses.dataclass(frozen=True)
class Engine:
    """A runner of Beam's, and how it is called.

    Attributes:
        runner: its name, or the dotted name of its class.
        beam_options: options of Beam's own, as on its command line; they go before `settings`.
        workers: processes of the local engine; others have an option of their own for it.
        debug: whether Beam's log goes to the screen.

    What a class of its own says of an engine:
        name: of the runner, in any case of letters.
        beam_class: the runner's class, where Beam knows it by that alone.
        settings: options of Beam's that make it right for a few large, uneven specs.
        services: {option: what it names} of addresses that must answer before anything is worth doing.
        job_server: "flink" where Beam starts `--flink_job_server_jar`, which needs Java.
        troubles: {pattern in its log: what that means to the user}.
        attempts: how often a job may be started while its workers die.
    """

    name: ClassVar[str] = ""
    beam_class: ClassVar[str] = ""
    settings: ClassVar[tuple[str, ...]] = ()
    services: ClassVar[Mapping[str, str]] = {}
    job_server: ClassVar[str] = ""
    troubles: ClassVar[Mapping[str, str]] = {}
    attempts: ClassVar[int] = 1

    runner: str
    beam_options: tuple[str, ...] = ()
    workers: int = dataclasses.field(default_factory=cores)
    debug: bool = False

    def __post_init__(self) -> None:
        if self.workers < 1:
            raise UsageError(f"`workers={self.workers}`: expected at least 1")
        if self.beam_options and not self.beam_options[0].startswith("--"):
            raise UsageError(
                f"`beam_options`: found {self.beam_options[0]!r}, expected options of Beam's such as "
                "'--parallelism=4'"
            )

    def runs_here(self, num_specs: int, seconds: float) -> bool:
        """Whether a job of so many specs and seconds of one core stays in the calling process."""
        return False

    @property
    def forks(self) -> int:
        """How many workers are forks of the process that runs the pipeline; other engines start their own."""
        return 0

    def options(self, here: bool = False) -> list[str]:
        """Returns Beam's command line for this engine.

        Args:
            here: whether the job runs in the calling process.
        """
        runner = self.runner if "." in self.runner else self.beam_class or self.runner
        own = {option.split("=")[0] for option in self.beam_options}
        added = [word for word in self.settings if word.split("=")[0] not in own]
        return [f"--runner={runner}", *self.beam_options, *added]

    def check(self) -> None:
        """Finds before any work what would stop the engine at its start: services, jars, Java.

        Raises:
            CxrError: with the remedy.
        """
        if self.job_server:
            self._check_job_server()
        for option, what in self.services.items():
            address = self._given(option)
            if address and not _STARTED_BY_BEAM.fullmatch(address):
                _check_answers(f"--{option}={address}", address, what)

    def raise_trouble(self, log: str) -> None:
        """Raises what a known line in the engine's log means, if one is there.

        Raises:
            CxrError: with the remedy.
        """
        known = dict(self.troubles)
        known[r"No module named 'cxr_records"] = (
            "a worker lacks the package cxr_records; install the command's version there, with "
            "--sdk_container_image or in the environment of the worker pool (docker/README.md)"
        )
        if self.job_server:
            known[r"Unable to fetch remote job server jar at (\S+):"] = (
                "Beam's job server could not be fetched from \\1; download it and name it with "
                f"--{self.job_server}_job_server_jar=FILE"
            )
        for pattern, meaning in known.items():
            if match := re.search(pattern, log):
                raise CxrError(match.expand(meaning))

    def _check_job_server(self) -> None:
        """Beam's job server is a jar that it fetches, or is told of; another way does without."""
        option = f"{self.job_server}_job_server_jar"
        jar = self._given(option)
        if jar and "://" not in jar and not os.path.isfile(jar):
            raise CxrError(f"--{option}={jar}: no such file; download Beam's job server and name it here")
        needs_java = f"--{self.job_server}_submit_uber_jar" not in self.beam_options
        if needs_java and not shutil.which("java"):
            raise CxrError(
                f"`runner={self.runner}` starts Beam's job server, which needs Java; none is on the PATH"
            )

    def _given(self, option: str) -> str | None:
        """The value of an option among the user's own."""
        parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
        parser.add_argument(f"--{option}", dest="value")
        value: str | None = parser.parse_known_args(list(self.beam_options))[0].value
        return value


@dataclasses.dataclass(frozen=True)
class LocalEngine(Engine):
    """Processes on this machine; a small job stays in the calling one."""

    name = LOCAL_RUNNER
    attempts = 3

    def runs_here(self, num_specs: int, seconds: float) -> bool:
        """Whether more processes would not pay."""
        return self.workers == 1 or num_specs == 1 or seconds < SECONDS_WORTH_PROCESSES

    @property
    def forks(self) -> int:
        """One for each worker, where there are several; elsewhere than on Linux forks are not safe."""
        return self.workers if self.workers > 1 and sys.platform == "linux" else 0

    def options(self, here: bool = False) -> list[str]:
        """Returns Beam's command line; the runner is not named in it (`beam_job.run_pipeline`)."""
        if here:
            return list(self.beam_options)
        processes = ["--direct_running_mode=multi_processing", f"--direct_num_workers={self.workers}"]
        return [*processes, *self.beam_options]


@dataclasses.dataclass(frozen=True)
class FlinkEngine(Engine):
    """Apache Flink.

    One spec at a time: its bundle of up to 5,000 would put all of them on one worker, and fail with the worst
    of them. A worker that dies costs its spec alone, which is tried again.
    """

    name = "FlinkRunner"
    settings = ("--max_bundle_size=1", "--number_of_execution_retries=3", "--execution_retry_delay=1000")
    services: ClassVar[Mapping[str, str]] = {"flink_master": "Flink's master"}
    job_server = "flink"


@dataclasses.dataclass(frozen=True)
class SparkEngine(Engine):
    """Apache Spark, which retries a task three times by itself."""

    name = "SparkRunner"
    services: ClassVar[Mapping[str, str]] = {"spark_master_url": "Spark's master"}
    job_server = "spark"


@dataclasses.dataclass(frozen=True)
class DataflowEngine(Engine):
    """Google's Dataflow: a thread per process, of which there is one per core, because each holds a shard."""

    name = "DataflowRunner"
    settings = ("--number_of_worker_harness_threads=1",)


@dataclasses.dataclass(frozen=True)
class DaskEngine(Engine):
    """Dask, which would put 128 specs into a partition, and a partition on one worker."""

    name = "DaskRunner"
    beam_class = "apache_beam.runners.dask.dask_runner.DaskRunner"
    settings = ("--dask_partition_size=1",)
    services: ClassVar[Mapping[str, str]] = {"dask_client_address": "Dask's scheduler"}
    troubles: ClassVar[Mapping[str, str]] = {
        r"No module named '(?:dask|distributed)": "Dask is not installed; pip install 'apache-beam[dask]'"
    }


@dataclasses.dataclass(frozen=True)
class PortableEngine(Engine):
    """Any engine behind a job service of Beam's; `--job_endpoint=embed` starts one for a pool of workers."""

    name = "PortableRunner"
    services: ClassVar[Mapping[str, str]] = {"job_endpoint": "Beam's job service"}


def engine_named(
    runner: str = LOCAL_RUNNER,
    beam_options: Sequence[str] = (),
    workers: int | None = None,
    debug: bool = False,
) -> Engine:
    """Chooses an engine.

    Args:
        runner: name of a Beam runner, or the dotted name of a runner's class.
        beam_options: options of Beam's own, such as "--parallelism=4".
        workers: processes of the local engine; None takes as many as there are cores.
        debug: whether Beam's log goes to the screen.

    Raises:
        UsageError: Beam has no such runner, or a value is none.
    """
    if isinstance(beam_options, str):
        beam_options = (beam_options,)
    name = runner.rpartition(".")[2].lower()
    known = {kind.name.lower(): kind for kind in Engine.__subclasses__()}
    if name not in known and "." not in runner:
        _check_runner(runner)
    kind = known.get(name, Engine)
    return kind(runner, tuple(beam_options), cores() if workers is None else workers, debug)


@contextlib.contextmanager
def quiet_beam(debug: bool) -> Iterator[None]:
    """Keeps Beam's log, which tells every error three times, off the screen; other logs stay as they are."""
    if debug:
        yield
        return

    def is_others(record: logging.LogRecord) -> bool:
        return f"{os.sep}apache_beam{os.sep}" not in record.pathname

    beam, root = logging.getLogger("apache_beam"), logging.getLogger()  # it logs to both
    level = beam.level
    beam.setLevel(logging.CRITICAL + 1)
    root.addFilter(is_others)
    try:
        yield
    finally:
        beam.setLevel(level)
        root.removeFilter(is_others)


def _check_runner(name: str) -> None:
    """Refuses a runner that Beam does not know, before any work."""
    with quiet_beam(debug=False):
        from apache_beam.options.pipeline_options import StandardOptions
    ours = (kind.name for kind in Engine.__subclasses__())
    known = {*ours, *StandardOptions.KNOWN_RUNNER_NAMES}
    if name.lower() not in map(str.lower, known):
        raise UsageError(f"`runner={name}`: expected one of {', '.join(sorted(known))}")


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
