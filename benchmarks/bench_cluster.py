"""Measures two workers of a cluster against one: python benchmarks/bench_cluster.py --help.

A Dask scheduler and its workers, processes of one thread each, decode real images, repeated under many
names by hard links. One worker and two take turns; printed are medians of the decode phase's seconds and the
efficiency, which is the time of one over twice the time of two. All share this machine and its disk.
"""

import argparse
import contextlib
import json
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import harness
from bench_build import build_words


@contextlib.contextmanager
def cluster(workers: int, folder: Path):
    """The address of a scheduler with so many workers."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = f"tcp://127.0.0.1:{port}"
    own = ["--nthreads", "1", "--no-nanny", "--no-dashboard"]
    commands = [["distributed.cli.dask_scheduler", "--port", str(port), "--no-dashboard"]]
    commands += [["distributed.cli.dask_worker", address, *own]] * workers
    processes, logs = [], []
    try:
        for number, words in enumerate(commands):
            logs.append(folder / f"{number}.log")
            with open(logs[-1], "wb") as log:
                processes.append(
                    subprocess.Popen([sys.executable, "-m", *words], stdout=log, stderr=log, cwd=folder)
                )
        while not all("Registered to" in log.read_text() for log in logs[1:]):
            time.sleep(0.1)
        yield address
    finally:
        for process in processes:
            process.kill()
            process.wait()


def main() -> None:
    """Measures, and prints one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=Path, required=True, help="folder of 1024x1024 NIH images")
    parser.add_argument("--metadata", type=Path, required=True, help="NIH's table of all images")
    parser.add_argument("--count", type=int, default=3000, help="names to make of the images")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    seconds: dict[int, list[float]] = {1: [], 2: []}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        linked = harness.link_images(arguments.images, arguments.metadata, folder / "linked", arguments.count)
        words = build_words(linked / "images", linked / "table.csv", folder / "out" / "a", 1)
        for number in range(arguments.rounds):
            for workers, found in seconds.items():
                out = folder / "out"
                with cluster(workers, folder) as address:
                    engine = ["--runner", "DaskRunner", "--", f"--dask_client_address={address}"]
                    built = harness.run([*words, *engine])
                found.append(json.loads(built.out)["seconds"]["decode"])
                print(f"round {number}: {workers} workers {found[-1]:.1f} s", file=sys.stderr)
                shutil.rmtree(out)
    one, two = (statistics.median(found) for found in seconds.values())
    print(json.dumps({"one_worker_s": one, "two_workers_s": two, "efficiency": round(one / two / 2, 3)}))


if __name__ == "__main__":
    main()
