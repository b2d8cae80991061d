"""The Beam pipeline, and the process that runs it below the command.

The pipeline is `Create(specs) | Reshuffle | ParDo(function)` on every engine: linear, one leaf, no pixels in
a PCollection. Workers load `Apply` from this module by its name, so the package must be installed there.
"""

import dataclasses
import functools
import os
import pickle
import platform
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from importlib.metadata import version
from typing import Any

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.pipeline import AppliedPTransform, PipelineVisitor
from apache_beam.runners.portability.fn_api_runner.fn_runner import FnApiRunner

from cxr_records.errors import CxrError
from cxr_records.pipelines.nursery import Draw, fork_workers
from cxr_records.pipelines.worker_errors import WORKER_DIED, mark


@dataclasses.dataclass(frozen=True)
class Versions:
    """What must be the same on every machine that takes part: the Python's minor version and two packages."""

    python: str
    apache_beam: str
    cxr_records: str

    @staticmethod
    @functools.cache
    def here() -> "Versions":
        """Those of this process."""
        minor = ".".join(platform.python_version_tuple()[:2])
        return Versions(minor, version("apache-beam"), version("cxr_records"))

    def check_worker(self) -> None:
        """Compares this process, a worker, with the command's.

        Raises:
            CxrError: they differ.
        """
        for name, wanted in dataclasses.asdict(self).items():
            if (here := getattr(Versions.here(), name)) != wanted:
                raise CxrError(
                    f"found {name} {here} on worker {platform.node()}; the command has {wanted}: give "
                    "workers the command's versions (docker/README.md)"
                )


class Apply(beam.DoFn):
    """Applies a function to specs; its failure is said in one line that the command can find.

    Args:
        function: of one spec, importable by its name.
        announce: whether workers print a failure at once, for the command that reads their log: Beam itself
            tells only once every other worker has ended.
    """

    def __init__(self, function: Callable[[Any], Any], announce: bool):
        self._function, self._announce, self._versions = function, announce, Versions.here()

    def process(self, spec: Any) -> None:
        """Runs one spec."""
        try:
            self._versions.check_worker()
            self._function(spec)
        except (CxrError, OSError) as error:
            said = mark(error)
            if self._announce:
                print(said, file=sys.stderr, flush=True)
            raise RuntimeError(said) from error


def run_pipeline(
    function: Callable[[Any], Any], specs: Sequence[Any], options: Sequence[str], announce: bool = False
) -> None:
    """Builds the pipeline and runs it to its end.

    Args:
        function: of one spec.
        specs: what to apply it to.
        options: Beam's command line.
        announce: see `Apply`.
    """
    local = not any(option.startswith("--runner=") for option in options)
    with beam.Pipeline(FnApiRunner() if local else None, PipelineOptions(list(options))) as pipeline:
        _ = (
            pipeline
            | "Specs" >> beam.Create(specs, reshuffle=False)
            | "Spread" >> beam.Reshuffle()
            | getattr(function, "__name__", "Apply") >> beam.ParDo(Apply(function, announce))
        )
        check_linear(pipeline)


def check_linear(pipeline: beam.Pipeline) -> None:
    """Refuses a pipeline with more than one leaf: some engines run the last of them alone and report success.

    Raises:
        CxrError: it has several, or a step with several outputs.
    """
    made: list[Any] = []
    taken: list[Any] = []

    class Collect(PipelineVisitor):
        def visit_transform(self, node: AppliedPTransform) -> None:
            made.extend(node.outputs.values())
            taken.extend(node.inputs)

    pipeline.visit(Collect())
    leaves = [value.producer.full_label for value in made if value not in taken]
    if len(leaves) != 1:
        raise CxrError(f"the pipeline has {len(leaves)} leaves ({', '.join(leaves)}); expected one")


def main(workers: int) -> None:
    """The process below the command: makes ready, reads a job from stdin and runs it.

    Args:
        workers: processes that are forked for it beforehand.
    """
    if workers:
        fork_workers(workers)
    try:
        function, specs, options = pickle.load(sys.stdin.buffer)  # noqa: S301 - written by the process that started this process
    except EOFError:  # the command has ended, or found nothing to do
        os._exit(0)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if workers:
        draw = Draw(function, specs)
        draw.deal()
        function, specs = draw, list(range(workers))
    threading.excepthook = _end_without_worker
    code = 0
    try:
        run_pipeline(function, specs, options, announce=True)
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
        print(f"{WORKER_DIED} ({failure.exc_value})", file=sys.stderr, flush=True)
        os._exit(1)


def _end_with_parent() -> None:
    """Blocks until the command's end of the pipe is closed, however it died; then ends the whole group."""
    while os.read(sys.stdin.fileno(), 1):
        pass
    os.killpg(0, signal.SIGKILL)
