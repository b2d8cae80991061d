"""Worker processes that are ready before Beam asks for them.

Beam's local engine starts each worker as a Python of its own, which imports Beam, pandas and pyarrow anew:
some seconds of every core before the first image. Here the process that runs the pipeline imports them once
and then forks: while it has no thread but its first, before it knows its job, and before anything of gRPC's,
whose threads would not live on in a fork. A fork waits for the addresses that Beam gives a worker; then it is
that worker.

The engine deals specs out before the first is done, each worker its share, and whoever ends early idles. The
forks have a pipe in common instead, with the numbers of the specs in it: each takes the next one.
"""

import contextlib
import gc
import json
import os
import struct
import sys
import threading
import traceback
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from apache_beam.portability import python_urns
from apache_beam.portability.api import endpoints_pb2
from apache_beam.runners.portability.fn_api_runner.worker_handlers import (
    SubprocessSdkWorkerHandler,
    WorkerHandler,
)
from apache_beam.runners.worker import sdk_worker_main
from google.protobuf import json_format, text_format

_waiting: list["Fork"] = []  # those that no pipeline has asked for yet
# Reading end of the pipe of numbers, which this process and its forks share, and, in this process, the other.
_numbers: int | None = None
_deals: int | None = None
_NUMBER = struct.Struct("<I")


class Fork:
    """A process that waits until it is told which worker it is."""

    def __init__(self) -> None:
        reads, self._writes = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            # So that the end of a pipe is the end of who holds it.
            for writes in (_deals, *(other._writes for other in (*_waiting, self))):
                if writes is not None:
                    os.close(writes)
            _wait_to_be_a_worker(reads)
        os.close(reads)

    def work(self, environment: dict[str, str]) -> None:
        """Lets it be a worker of these variables, and returns when it has ended.

        Raises:
            RuntimeError: it failed, or was killed.
        """
        # One that was killed before reads nothing; how it ended is told below.
        with contextlib.suppress(BrokenPipeError), open(self._writes, "w") as pipe:
            json.dump(environment, pipe)
        if code := os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1]):
            raise RuntimeError(f"Worker subprocess exited with return code {code}")


def fork_workers(count: int) -> None:
    """Forks processes for the workers that a pipeline of this process will ask for.

    Call it while this process has one thread.
    """
    global _numbers, _deals
    _numbers, _deals = os.pipe()
    # What a worker would load first of all; it is there before a fork, for all of them.
    from cxr_records import shards, store  # noqa: F401

    gc.freeze()  # what is there now stays: a collector that looks at it would copy its pages into each fork
    sys.stdout.flush()
    sys.stderr.flush()
    for _ in range(count):
        _waiting.append(Fork())
    WorkerHandler.register_environment(python_urns.SUBPROCESS_SDK, bytes)(ForkedWorkerHandler)


class Draw:
    """What each worker does, once: applies a function to specs, always the next that no other has taken.

    Args:
        function: of one spec.
        specs: of the job.
    """

    def __init__(self, function: Callable[[Any], object], specs: Sequence[Any]):
        self._function, self._specs = function, specs

    def deal(self) -> None:
        """Lets the workers begin."""
        threading.Thread(target=self._write_numbers, daemon=True).start()

    def __call__(self, turn: int) -> None:
        """Works until nothing is left."""
        if _numbers is None:
            raise RuntimeError("this worker shares no pipe with the process that runs the pipeline")
        while number := os.read(_numbers, _NUMBER.size):
            self._function(self._specs[_NUMBER.unpack(number)[0]])

    def _write_numbers(self) -> None:
        """Fills the pipe, which holds some thousands at a time, and then ends it."""
        assert _deals is not None
        with open(_deals, "wb", buffering=0) as pipe:
            for number in range(len(self._specs)):
                pipe.write(_NUMBER.pack(number))


class ForkedWorkerHandler(SubprocessSdkWorkerHandler):
    """Beam's handle of a worker process: a fork that waits; where none is left, a Python of its own."""

    def start_worker(self) -> None:
        """Starts it, and a thread that waits for its end, of the name by which its death is known."""
        if not _waiting:
            super().start_worker()
            return
        control = endpoints_pb2.ApiServiceDescriptor(url=self.control_address)
        environment = {
            "CONTROL_API_SERVICE_DESCRIPTOR": text_format.MessageToString(control),
            "PIPELINE_OPTIONS": json_format.MessageToJson(
                self.provision_info.provision_info.pipeline_options
            ),
            "WORKER_ID": self.worker_id,
        }
        self.worker_thread = threading.Thread(
            name="run_worker", target=_waiting.pop(0).work, args=(environment,)
        )
        self.worker_thread.start()


def _wait_to_be_a_worker(reads: int) -> NoReturn:
    """What a fork does all its life; it never returns into what its parent was doing."""
    code = 1
    try:
        # What the command tells the pipeline's process is not for this one.
        nothing = os.open(os.devnull, os.O_RDONLY)
        os.dup2(nothing, 0)
        with open(reads) as pipe:
            told = pipe.read()
        if told:
            os.environ.update(json.loads(told))
            sdk_worker_main.main([])
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)
