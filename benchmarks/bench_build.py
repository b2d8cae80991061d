"""Measures the build against yardsticks in the same run: python benchmarks/bench_build.py --help.

Every figure is a median over rounds, and a ratio to a yardstick that ran in turn with it on the same machine.
Real images are repeated under many names by hard links, so a few hundred files make a set of any size.
"""

import argparse
import io
import json
import multiprocessing
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from PIL import Image

from cxr_records.metadata import read_metadata

SIZE = 224
COMMAND = (sys.executable, "-m", "cxr_records")


def bare_decode(paths: list[str]) -> None:
    """The least that any builder must do: read, decode, to grey, resize."""
    for path in paths:
        data = Path(path).read_bytes()
        Image.open(io.BytesIO(data)).convert("L").resize((SIZE, SIZE), Image.Resampling.BILINEAR).tobytes()


def time_bare_loop(paths: list[str], workers: int) -> float:
    """Seconds for the bare loop, its processes' start included."""
    context = multiprocessing.get_context("spawn")
    started = time.perf_counter()
    processes = [context.Process(target=bare_decode, args=(paths[i::workers],)) for i in range(workers)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    return time.perf_counter() - started


class PeakMemory(threading.Thread):
    """Samples the resident memory of every process below a pid; keeps each process's peak in MB."""

    def __init__(self, pid: int):
        super().__init__(daemon=True)
        self.pid, self.peaks, self.alive = pid, {}, True

    def run(self) -> None:
        """Samples until told to stop."""
        while self.alive:
            for pid in below(self.pid):
                try:
                    words = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
                    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
                except OSError:
                    continue
                if any("beam_job" in word for word in words):  # of the workers, and what they are forks of
                    peak = [int(line.split()[1]) for line in lines if line.startswith("VmHWM")]
                    self.peaks[pid] = max(self.peaks.get(pid, 0), *peak) if peak else 0
            time.sleep(0.2)


def below(pid: int) -> list[int]:
    """Pids of all processes below one."""
    found = []
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            pids = [int(word) for word in children.read_text().split()]
        except OSError:
            continue
        for child in pids:
            found += [child, *below(child)]
    return found


def run_build(words: list[str]) -> tuple[dict, float, float]:
    """Runs a build; returns what it told, its wall seconds, and its workers' largest peak in MB."""
    started = time.perf_counter()
    process = subprocess.Popen([*COMMAND, "build", "--json", *words], stdout=subprocess.PIPE, text=True)
    memory = PeakMemory(process.pid)
    memory.start()
    out, _ = process.communicate()
    memory.alive = False
    seconds = time.perf_counter() - started
    if process.returncode:
        sys.exit("the build failed")
    return json.loads(out), seconds, max(memory.peaks.values(), default=0) / 1024


def link_images(source: Path, table: Path, folder: Path, count: int) -> list[str]:
    """Makes `count` names from the table, each a hard link (or a copy) to one of the source images."""
    images = folder / f"images-{count}"
    images.mkdir()
    originals = []
    for path in sorted(source.rglob("*.png")):
        shutil.copy(path, folder / path.name)  # a link must be on the same disk
        originals.append(folder / path.name)
    for number, name in enumerate(read_metadata(str(table)).table["image_id"].tolist()[:count]):
        os.link(originals[number % len(originals)], images / name)
    return sorted(str(path) for path in images.iterdir())


def build_words(paths: list[str], arguments: argparse.Namespace, workers: int) -> list[str]:
    """The options of a build of linked images, less --out."""
    sources = ["--images", str(Path(paths[0]).parent), "--metadata", str(arguments.metadata)]
    return [*sources, "--allow-missing", "--workers", str(workers)]


def measure_decode(arguments: argparse.Namespace, folder: Path) -> dict:
    """The decode phase beside a bare loop of the same work, in turn."""
    paths = link_images(arguments.images, arguments.metadata, folder, arguments.count)
    words = build_words(paths, arguments, arguments.workers)
    bare, decode = [], []
    for number in range(arguments.rounds):
        bare.append(time_bare_loop(paths, arguments.workers))
        out = folder / f"round-{number}"
        decode.append(run_build([*words, "--out", str(out / "a")])[0]["seconds"]["decode"])
        print(f"round {number}: bare {bare[-1]:.1f} s, decode {decode[-1]:.1f} s", file=sys.stderr)
        shutil.rmtree(out)
    ratios = [a / b for a, b in zip(bare, decode, strict=True)]
    return {
        "decode_images": arguments.count,
        "bare_images_per_second": round(arguments.count / statistics.median(bare), 1),
        "decode_images_per_second": round(arguments.count / statistics.median(decode), 1),
        "decode_over_bare_loop": round(statistics.median(ratios), 3),
    }


def measure_rebuild(arguments: argparse.Namespace, folder: Path) -> dict:
    """A first build, and builds of another task from the same images."""
    paths = link_images(arguments.images, arguments.metadata, folder, arguments.rebuild_count)
    words = build_words(paths, arguments, arguments.workers)
    first, again = run_build([*words, "--out", str(folder / "first")])[1], []
    for number in range(arguments.rounds):
        out = folder / f"again-{number}"
        again.append(run_build([*words, "--out", str(out), "--task", "binary"])[1])
        shutil.rmtree(out)
    print(f"first {first:.1f} s, again {', '.join(f'{s:.1f} s' for s in again)}", file=sys.stderr)
    return {
        "rebuild_images": arguments.rebuild_count,
        "first_build_seconds": round(first, 1),
        "rebuild_seconds": round(statistics.median(again), 1),
        "rebuild_times_faster": round(first / statistics.median(again), 1),
    }


def measure_memory(arguments: argparse.Namespace, folder: Path) -> dict:
    """A worker's peak for 1,000 and for 10,000 images."""
    peaks = {}
    for count in (1_000, 10_000):
        paths = link_images(arguments.images, arguments.metadata, folder, count)
        words = [
            "--images",
            str(Path(paths[0]).parent),
            "--metadata",
            str(arguments.metadata),
            "--allow-missing",
        ]
        out = folder / f"memory-{count}" / "a"
        peaks[f"worker_peak_mb_{count}"] = round(run_build([*words, "--out", str(out), "--workers", "2"])[2])
        shutil.rmtree(out.parent)
    return peaks


def measure_records(arguments: argparse.Namespace, folder: Path) -> dict:
    """Records per second of processor time: originals copied from the store, and augmented copies made."""
    from cxr_records import shards
    from cxr_records.config import DatasetConfig
    from cxr_records.images import ImageFormat
    from cxr_records.pipelines.decode import decode_images, find_images
    from cxr_records.pipelines.engines import engine_named
    from cxr_records.pipelines.plan import read_table
    from cxr_records.pipelines.request import BuildRequest
    from cxr_records.planning import make_plan, write_plan
    from cxr_records.sampling import CopyRule
    from cxr_records.splits import SplitOptions
    from cxr_records.tasks import parse_task

    paths = link_images(arguments.images, arguments.metadata, folder, arguments.count)
    rates = {}
    for rule in ("none", "fixed"):
        config = DatasetConfig(
            parse_task("multilabel"), ImageFormat(SIZE), CopyRule(rule, of=("Mass",) * (rule == "fixed"))
        )
        request = BuildRequest(
            images=(str(Path(paths[0]).parent),),
            metadata=str(arguments.metadata),
            out=str(folder / rule),
            config=config,
            split_options=SplitOptions(),
            store=str(folder / "store"),
            engine=engine_named(workers=arguments.workers),
        )
        metadata, splits = read_table(request)
        at_hand = find_images(request.images, metadata, request.store_path, allow_missing=True)
        images = decode_images(at_hand, request.store_path, config.image_format, request.engine).images
        (folder / rule).mkdir()
        (folder / rule / ".build").mkdir()
        plan = make_plan(metadata, splits, config, images)
        specs = write_plan(plan, str(folder / rule / ".build"), request.store_path, request.out)
        spent = []
        for _ in range(arguments.rounds):
            started = time.process_time()
            for spec in specs:
                shards.write_shard(spec)
            spent.append(time.process_time() - started)
            for spec in specs:
                os.remove(spec.sidecar_path)  # so that the next round writes again
        rates[rule] = (len(plan.records), plan.num_copies, statistics.median(spent))
    records, _, seconds = rates["none"]
    more, copies, longer = rates["fixed"]
    spent = longer - (more - copies) * seconds / records
    return {
        "records_per_second_per_core": round(records / seconds),
        "copies_per_second_per_core": round(copies / spent),
    }


def measure_commands(arguments: argparse.Namespace) -> dict:
    """Seconds of `--help`, and of `plan` on the whole table."""

    def median(words: list[str]) -> float:
        seconds = []
        for _ in range(5):
            started = time.perf_counter()
            subprocess.run([*COMMAND, *words], check=True, stdout=subprocess.DEVNULL)
            seconds.append(time.perf_counter() - started)
        return round(statistics.median(seconds), 2)

    return {
        "help_seconds": median(["--help"]),
        "plan_seconds": median(["plan", "--metadata", str(arguments.metadata)]),
    }


PARTS = {
    "decode": measure_decode,
    "rebuild": measure_rebuild,
    "memory": measure_memory,
    "records": measure_records,
    "commands": lambda arguments, folder: measure_commands(arguments),
}


def main() -> None:
    """Runs the parts asked for and prints one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", default=list(PARTS), help=f"of {', '.join(PARTS)}")
    parser.add_argument("--images", type=Path, required=True, help="folder of 1024x1024 NIH images")
    parser.add_argument("--metadata", type=Path, required=True, help="NIH's table of all images")
    parser.add_argument("--count", type=int, default=10_000, help="names to make of the images")
    parser.add_argument("--rebuild-count", type=int, default=60_000, help="the same for the rebuild")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument(
        "--scratch", type=Path, default=None, help="where to work; a temporary folder if not given"
    )
    arguments = parser.parse_args()
    results = {}
    for part in arguments.parts:
        with tempfile.TemporaryDirectory(dir=arguments.scratch) as folder:
            results |= PARTS[part](arguments, Path(folder))
    print(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
