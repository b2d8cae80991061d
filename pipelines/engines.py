"""Runs one pure function over small specs on a Beam engine; the only module that knows Beam.

The pipeline is `Create(specs) | Reshuffle | ParDo(function)` on every engine: linear, one leaf, no pixels
in a PCollection. What the function did is told by the files it leaves, never by the engine.

The local engine is FnApiRunner by name: a bare DirectRunner changes its runner with the network. It runs in
a process group of its own below the command, which reads that group's log, watches the files for progress,
and can end the group at any moment; the group ends itself when the command is gone.
"""

import base64
import contextlib
import dataclasses
import logging
import os
import pickle
import re
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from cxr_records.errors import CxrError, UsageError
from cxr_records.progress import progress, say

LOCAL_RUNNER = "FnApiRunner"
# Starting worker processes takes some 5 s of two cores; a job that two workers would shorten by less than
# that stays in the command's own process.
SECONDS_WORTH_PROCESSES = 12.0
ATTEMPTS = 3  # of a local job whose workers died
_POLL_SECONDS = 0.25
_WORKER_DIED = "a worker process died, perhaps for want of memory"
_SAID_BY_WORKER = re.compile(r"@@cxr-error:([A-Za-z0-9+/=]+)@@")


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
            return [f"--runner={self.runner}", *self.beam_options]
        if in_process:
            return list(self.beam_options)
        local = ["--direct_running_mode=multi_processing", f"--direct_num_workers={self.workers}"]
        return [*local, *self.beam_options]


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
    _raise_what_worker_said(str(failures[0]))
    if engine.debug:
        raise failures[0]
    return f"Beam failed ({_last_line(str(failures[0]))})"


def _run_below(
    function: Callable, specs: Sequence[Any], engine: Engine, watch: Callable[[], None]
) -> str | None:
    """Runs the pipeline in a process group below this one, and ends the group whatever happens."""
    child = subprocess.Popen(
        [sys.executable, "-m", "pipelines.engines"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        # Python looks for modules where it is started: in the folder that holds this package, so that it
        # and its workers import what the command did, and nothing of the user's folder. Specs hold
        # absolute paths.
        cwd=Path(__file__).resolve().parent.parent,
    )
    said: list[str] = []
    reader = threading.Thread(target=_read_log, args=(child, said, engine.debug), daemon=True)
    reader.start()
    try:
        pickle.dump((function, list(specs), engine.options()), child.stdin)
        child.stdin.flush()  # and kept open: its end tells the child that this process is gone
        while child.poll() is None:
            time.sleep(_POLL_SECONDS)
            watch()
            if any(_SAID_BY_WORKER.search(line) for line in list(said)):
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
    _raise_what_worker_said(log)
    if child.returncode == 0:
        return None
    if _WORKER_DIED in log:  # not always at the start of a line: several threads print
        return log[log.index(_WORKER_DIED) :].splitlines()[0]
    if child.returncode < 0:
        return f"Beam's process was killed by {signal.Signals(-child.returncode).name}"
    return f"Beam's process ended early ({_last_line(log)})"


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
    if "." not in name and name.lower() not in map(str.lower, known):
        raise UsageError(f"--runner {name}: expected one of {', '.join(sorted({LOCAL_RUNNER, *known}))}")


def run_pipeline(
    function: Callable, specs: Sequence[Any], options: Sequence[str], announce: bool = False
) -> None:
    """Builds the pipeline and runs it to its end.

    Args:
        function: of one spec.
        specs: what to apply it to.
        options: Beam's command line.
        announce: whether workers print a failure at once, for the command that reads their log.
    """
    import apache_beam as beam
    from apache_beam.options.pipeline_options import PipelineOptions
    from apache_beam.runners.portability.fn_api_runner import FnApiRunner

    class Apply(beam.DoFn):
        """Applies the function; a failure is said in one line that the command above can find."""

        def process(self, spec):
            try:
                function(spec)
            except (CxrError, OSError) as error:
                text = _one_line(error)
                mark = f"@@cxr-error:{base64.b64encode(text.encode()).decode()}@@"
                if announce:  # Beam itself tells only once every other worker has ended
                    print(mark, file=sys.stderr, flush=True)
                raise RuntimeError(mark) from error

    local = not any(option.startswith("--runner=") for option in options)
    with beam.Pipeline(FnApiRunner() if local else None, PipelineOptions(list(options))) as pipeline:
        _ = (
            pipeline
            | "Specs" >> beam.Create(specs, reshuffle=False)
            | "Spread" >> beam.Reshuffle()
            | getattr(function, "__name__", "Apply") >> beam.ParDo(Apply())
        )


@contextlib.contextmanager
def _quiet(debug: bool) -> Iterator[None]:
    """Keeps Beam's log, which tells every error three times, off the screen."""
    if not debug:
        logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)


def _one_line(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename or 'the system says'}: {error.strerror}"
    return " ".join(str(error).split())


def _raise_what_worker_said(text: str) -> None:
    if found := _SAID_BY_WORKER.search(text):
        raise CxrError(base64.b64decode(found[1]).decode())


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:300] if lines else "no reason given"


def _main() -> None:
    """The process below the command: reads a job from stdin and runs it."""
    job = pickle.load(sys.stdin.buffer)  # noqa: S301 - written by the command that started this process
    threading.Thread(target=_end_with_parent, daemon=True).start()
    threading.excepthook = _end_without_worker
    code = 0
    try:
        run_pipeline(*job, announce=True)
    except Exception:
        traceback.print_exc()
        # When a worker died, Beam may say so here first, in words of gRPC's; the thread that waits for the
        # worker knows better (_end_without_worker), and gets the time to tell.
        time.sleep(2)
        code = 1
    sys.stderr.flush()
    os._exit(code)  # Beam's threads have nothing left to do, and some of them would be waited for


def _end_without_worker(failure: threading.ExceptHookArgs) -> None:
    """Ends this process when a worker died: FnApiRunner (2.77) would wait for its answer for ever.

    Beam waits for each worker process in a thread of this name, which raises when the process was killed.
    """
    threading.__excepthook__(failure)
    if failure.thread is not None and failure.thread.name == "run_worker":
        print(f"{_WORKER_DIED} ({failure.exc_value})", file=sys.stderr, flush=True)
        os._exit(1)


def _end_with_parent() -> None:
    """Blocks until the command's end of the pipe is closed, however it died; then ends the whole group."""
    while os.read(sys.stdin.fileno(), 1):
        pass
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    _main()
