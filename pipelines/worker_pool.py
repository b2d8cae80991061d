"""Starts Beam's worker processes on a machine of a cluster that has no Docker.

    python -m pipelines.worker_pool --port 50000

One pool serves every Flink task manager of its machine; commands name it with
`--environment_type=EXTERNAL --environment_config=localhost:50000`. Run it in the environment that holds this
package. Anybody who can reach the port can run code in it, so it listens on this machine alone unless told
otherwise.

Beam brings a pool too (worker_pool_main, 2.77), which goes wrong in three ways that this one does not: it
knows workers by a name that all task managers give alike ("1-1"), so the first that is finished ends the
worker of another; it starts whatever `python` comes first on the PATH; and it hands a worker a pipe as its
stdout that nobody reads, so that one that prints 64 KiB stands still for ever.
"""

import argparse
import contextlib
import os
import subprocess
import sys
import threading
from concurrent import futures

SECONDS_TO_END = 5.0


class WorkerPool:
    """Starts a process for each worker that an engine asks for, and ends those that are left with the pool.

    The methods in capitals are those of Beam's service BeamFnExternalWorkerPool.
    """

    def __init__(self):
        self._workers: list[subprocess.Popen] = []
        self._lock = threading.Lock()

    def StartWorker(self, request, context):
        """Starts a worker that takes its work from the engine at the address in the request."""
        from apache_beam.portability.api import beam_fn_api_pb2

        environment = {
            **os.environ,
            "WORKER_ID": request.worker_id,
            "CONTROL_API_SERVICE_DESCRIPTOR": f'url: "{request.control_endpoint.url}"',
        }
        try:
            worker = subprocess.Popen(
                [sys.executable, "-m", "apache_beam.runners.worker.sdk_worker_main"],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=sys.stderr,
            )
        except OSError as error:
            return beam_fn_api_pb2.StartWorkerResponse(error=str(error))
        print(f"worker {worker.pid} for {request.control_endpoint.url}", file=sys.stderr, flush=True)
        with self._lock:
            # Those that have ended are reaped here; the others are left to work.
            self._workers = [other for other in self._workers if other.poll() is None] + [worker]
        return beam_fn_api_pb2.StartWorkerResponse()

    def StopWorker(self, request, context):
        """Does nothing: a worker ends when its engine hangs up, and its name does not tell whose it is."""
        from apache_beam.portability.api import beam_fn_api_pb2

        return beam_fn_api_pb2.StopWorkerResponse()

    def close(self) -> None:
        """Ends all workers."""
        for worker in self._workers:
            worker.terminate()
        for worker in self._workers:
            with contextlib.suppress(subprocess.TimeoutExpired):
                worker.wait(SECONDS_TO_END)
            worker.kill()
            worker.wait()


def serve(address: str) -> None:
    """Runs a pool until this process is told to end.

    Args:
        address: host and port to listen on.

    Raises:
        SystemExit: the port is taken.
    """
    import grpc
    from apache_beam.portability.api import beam_fn_api_pb2_grpc

    # Two pools on one port would each get some of the requests.
    server = grpc.server(futures.ThreadPoolExecutor(8), options=[("grpc.so_reuseport", 0)])
    pool = WorkerPool()
    beam_fn_api_pb2_grpc.add_BeamFnExternalWorkerPoolServicer_to_server(pool, server)
    try:
        server.add_insecure_port(address)
    except RuntimeError:
        raise SystemExit(f"Error: cannot listen on {address}; name another port or address") from None
    server.start()
    print(f"worker pool listens on {address}", file=sys.stderr, flush=True)
    try:
        server.wait_for_termination()
    finally:
        server.stop(0)
        pool.close()


def _main() -> None:
    import signal

    parser = argparse.ArgumentParser(
        prog="python -m pipelines.worker_pool", description="Starts Beam's workers on this machine."
    )
    parser.add_argument("--port", type=int, required=True, help="port to listen on")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: this machine)")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with contextlib.suppress(KeyboardInterrupt):
        serve(f"{arguments.host}:{arguments.port}")


if __name__ == "__main__":
    _main()
