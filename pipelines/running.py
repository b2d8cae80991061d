"""How a job runs on an engine, and how the caller watches it.

What the function did is told by the files it leaves, never by the engine: all specs must be done before the
caller goes on, and progress is counted from the files.

A small job of the local engine stays in the calling process. Every other runs in a process group below it
(`beam_job`): the caller reads that group's log, watches the files, and can end the group at any moment; the
group ends itself when the caller is gone.
"""

import contextlib
import dataclasses
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Generic, TypeVar

import cxr_records
from cxr_records.errors import NO_MEMORY, CxrError, is_out_of_memory
from cxr_records.pipelines.engines import Engine, quiet_beam
from cxr_records.pipelines.worker_errors import WORKER_DIED, is_marked, raise_marked
from cxr_records.progress import progress, say

Spec = TypeVar("Spec")
_POLL_SECONDS = 0.25
_LOG_LINES = 200  # of an engine's log that are kept


@dataclasses.dataclass(frozen=True)
class Job(Generic[Spec]):
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
    function: Callable[[Spec], object]
    specs: Sequence[Spec]
    is_done: Callable[[Spec], bool]
    size: Callable[[Spec], int]
    seconds: float


def run(job: Job[Spec], engine: Engine, below: "Below | None" = None) -> None:
    """Runs a job to its end, showing progress.

    A local worker that dies (killed for memory, say) does not end the job: what is unfinished is run again.

    Args:
        job: what to run.
        engine: on what.
        below: a process group that was started for it, if any.

    Raises:
        CxrError: a worker said what is wrong, or the engine failed, or left specs unfinished.
    """
    with progress(job.phase, job.unit, sum(map(job.size, job.specs))) as shown:
        pending = list(job.specs)
        for attempt in range(1, engine.attempts + 1):
            failure = _run_once(job, pending, engine, shown.update, below)
            below = None  # it is good for one
            undone = [spec for spec in pending if not job.is_done(spec)]
            if not undone:
                shown.update(sum(map(job.size, job.specs)))
                return
            if failure is None:
                raise CxrError(
                    f"{job.phase}: {engine.runner} ended without error but left {len(undone)} of "
                    f"{len(job.specs)} parts undone; run the same again"
                )
            if attempt == engine.attempts:
                raise CxrError(f"{job.phase}: {failure}; run the same again to go on, `debug=True` shows all")
            say(f"{job.phase}: {failure}; going on with what is left")
            pending = undone


def _run_once(
    job: Job[Spec],
    pending: Sequence[Spec],
    engine: Engine,
    show: Callable[[int], None],
    below: "Below | None",
) -> str | None:
    """Runs specs once. Returns the engine's failure, if any; raises what a worker itself said."""
    total = sum(map(job.size, job.specs))
    undone = dict(enumerate(pending))

    def watch() -> None:
        for place, spec in list(undone.items()):
            if job.is_done(spec):
                del undone[place]
        show(total - sum(map(job.size, undone.values())))

    watch()
    if engine.runs_here(len(pending), job.seconds):
        return _run_here(job.function, pending, engine, watch)
    return (below or Below(engine)).run(job.function, pending, watch)


def _run_here(
    function: Callable[[Spec], object], specs: Sequence[Spec], engine: Engine, watch: Callable[[], None]
) -> str | None:
    """Runs the pipeline in a thread of this process."""
    failures: list[BaseException] = []

    def work() -> None:
        try:
            with quiet_beam(engine.debug):
                from cxr_records.pipelines.beam_job import run_pipeline

                run_pipeline(function, specs, engine.options(here=True))
        except BaseException as error:
            failures.append(error)

    # A daemon, so that Ctrl-C in the main thread ends the caller and this thread with it.
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(_POLL_SECONDS)
        watch()
    if not failures:
        return None
    raise_marked(str(failures[0]))
    if is_out_of_memory(failures[0]):
        raise CxrError(NO_MEMORY) from failures[0]
    if engine.debug:
        raise failures[0]
    return f"Beam failed ({_last_line(str(failures[0]))})"


class Below:
    """A process group below this one, for one job: it can be started before the job is known.

    Its processes import Beam and what a worker needs, which takes a second or two, and wait for the job.

    Args:
        engine: where the job will run.

    Attributes:
        pid: of the first process, and number of the group.
    """

    def __init__(self, engine: Engine):
        self._engine = engine
        self._log: list[str] = []
        self._ended = False
        self._child = subprocess.Popen(
            # Not -m: functions and classes of a main module would travel by value and not by name.
            [sys.executable, "-c", f"from cxr_records.pipelines.beam_job import main; main({engine.forks})"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            # Python looks for modules where it is started: in the folder that holds cxr_records, so that it
            # and its workers import what the caller did, and nothing of the user's folder. (This file's own
            # folder is another one in a checkout than where it is installed.) Specs hold absolute paths.
            cwd=Path(cxr_records.__file__).resolve().parent.parent,
            # A process for each core: threads of NumPy's own would be in each other's way. Set for all that
            # this process starts.
            env={"OPENBLAS_NUM_THREADS": "1", **os.environ},
        )
        self.pid = self._child.pid
        self._reader = threading.Thread(target=self._read_log, daemon=True)
        self._reader.start()

    def run(
        self, function: Callable[[Spec], object], specs: Sequence[Spec], watch: Callable[[], None]
    ) -> str | None:
        """Runs the pipeline, and ends the group whatever happens; returns what went wrong, if anything."""
        child = self._child
        assert child.stdin is not None
        try:
            pickle.dump((function, list(specs), self._engine.options()), child.stdin)
            child.stdin.flush()  # and kept open: its end tells the child that this process is gone
            looked = 0.0
            while child.poll() is None:
                # In a store far away a look takes long: then they are seldom. The end is noticed at once.
                with contextlib.suppress(subprocess.TimeoutExpired):
                    child.wait(max(_POLL_SECONDS, 4 * looked))
                started = time.monotonic()
                watch()
                looked = time.monotonic() - started
                # A worker has said why it cannot go on: do not wait for the others. Without memory Beam
                # itself waits for ever, for threads that could not be started.
                if any(is_marked(line) or is_out_of_memory(line) for line in list(self._log)):
                    break
        except BrokenPipeError:
            child.wait()
        finally:
            self.end()
        watch()
        return _failure(child.returncode, "\n".join(self._log), self._engine)

    def end(self) -> None:
        """Ends every process of the group, once: its number may be another's after that."""
        if self._ended:
            return
        self._ended = True
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._child.pid, signal.SIGKILL)
        self._child.wait()
        self._reader.join(timeout=2)

    def _read_log(self) -> None:
        """Keeps the end of what Beam and its workers print, and shows it where asked to."""
        assert self._child.stdout is not None
        for line in self._child.stdout:
            text = line.decode(errors="replace").rstrip()
            if self._engine.debug:
                print(text, file=sys.stderr)
            self._log.append(text)
            del self._log[:-_LOG_LINES]


@contextlib.contextmanager
def started_early(engine: Engine, likely: Callable[[], bool]) -> Iterator[Below | None]:
    """Gives a process group that makes ready while the caller reads tables and lists folders.

    Args:
        engine: where the job will run.
        likely: tells whether there will be a job that is worth more processes; if not, None is given.
    """
    if not (engine.forks and likely()):
        yield None
        return
    below = Below(engine)
    try:
        yield below
    finally:
        below.end()


def _failure(code: int, log: str, engine: Engine) -> str | None:
    """What went wrong in the process below, by its exit code and log; raises what a user can mend."""
    raise_marked(log)
    if code == 0:
        return None
    if is_out_of_memory(log):
        raise CxrError(NO_MEMORY)
    if WORKER_DIED in log:  # not always at the start of a line: several threads print
        return log[log.index(WORKER_DIED) :].splitlines()[0]
    engine.raise_trouble(log)
    if code < 0:
        return f"Beam's process was killed by {signal.Signals(-code).name}"
    return f"Beam's process ended early ({_last_line(log)})"


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:300] if lines else "no reason given"
