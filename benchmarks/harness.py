"""What the benchmarks share: rivals' environments, rounds in turn, what a process took, logs and tables."""

import contextlib
import ctypes
import json
import mmap
import os
import resource
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import venv
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

RIVALS = Path(__file__).parent / "rivals"
sys.path.insert(0, str(RIVALS))  # what runs in rivals' environments is one folder, and no package
from measuring import below  # noqa: E402

SAMPLE_SECONDS = 0.05
_SUBREAPER = 36  # PR_SET_CHILD_SUBREAPER of prctl(2)


class BenchmarkError(Exception):
    """Something that was measured failed; the message is for the row of the table."""


def python_of(environment: str, folder: Path) -> str:
    """Returns the Python of a rival's environment, made by pip where it is not there yet.

    Args:
        environment: a file of rivals/, less its ending; "" is the environment that this runs in.
        folder: where environments are kept.

    Raises:
        BenchmarkError: pip could not make it.
    """
    if not environment:
        return sys.executable
    wanted, home = RIVALS / f"{environment}.txt", folder / environment
    stamp, python = home / "requirements.txt", home / "bin" / "python"
    if stamp.exists() and stamp.read_text() == wanted.read_text():
        return str(python)
    print(f"{environment}: an environment is made", file=sys.stderr)
    shutil.rmtree(home, ignore_errors=True)
    venv.create(home, with_pip=True)
    words = [str(python), "-m", "pip", "install", "--quiet", "--requirement", str(wanted)]
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode:
        raise BenchmarkError(f"{environment} cannot be installed: {last_line(done.stderr)}")
    shutil.copy(wanted, stamp)
    return str(python)


def last_line(text: str) -> str:
    """The last line that says something."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "it said nothing"


@dataclass(frozen=True)
class Taken:
    """What a command gave and took, with all processes that it started.

    Attributes:
        out: what it printed.
        wall: seconds.
        cpu: seconds, user and system, of all of them, their start and imports included.
        peak_mb: the most that they held at a time, without pages of files.
        peak_rss_mb: the same with them; pages that processes share count for each.
        worker_mb: the most that one process below the command held, pages of files included.
    """

    out: str
    wall: float
    cpu: float
    peak_mb: float
    peak_rss_mb: float
    worker_mb: float


class _Sampler(threading.Thread):
    """Looks at the memory of a process and of all below it, until told to stop."""

    def __init__(self, pid: int):
        super().__init__(daemon=True)
        self.pid, self.own, self.rss, self.worker, self.ended = pid, 0, 0, 0, threading.Event()

    def run(self) -> None:
        """Samples."""
        while not self.ended.wait(SAMPLE_SECONDS):
            own = rss = 0
            for pid in (self.pid, *below(self.pid)):
                held = _memory_kb(pid)
                own += held.get("RssAnon", 0) + held.get("RssShmem", 0)
                rss += held.get("VmRSS", 0)
                if pid != self.pid:
                    self.worker = max(self.worker, held.get("VmHWM", 0))
            self.own, self.rss = max(self.own, own), max(self.rss, rss)


def _memory_kb(pid: int) -> dict[str, int]:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:  # it ended meanwhile
        return {}
    return {line.split(":")[0]: int(line.split()[1]) for line in lines if line.startswith(("Rss", "Vm"))}


def run(words: Sequence[object], *, limit: float = 3600.0) -> Taken:
    """Runs a command in a session of its own, and ends what it leaves behind.

    Raises:
        BenchmarkError: it failed, or took longer than `limit` seconds.
    """
    # Processes whose parents ended come to this one meanwhile, so that their time is counted too.
    ctypes.CDLL(None).prctl(_SUBREAPER, 1, 0, 0, 0)
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    # No pipes: workers that outlive the command would hold them open.
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen(list(map(str, words)), stdout=out, stderr=said, start_new_session=True)
        sampler = _Sampler(process.pid)
        sampler.start()
        try:
            process.wait(limit)
            wall = time.perf_counter() - started
        except subprocess.TimeoutExpired:
            raise BenchmarkError(f"it took longer than {limit:g} s") from None
        finally:
            sampler.ended.set()
            sampler.join()
            _end_session(process)
            ctypes.CDLL(None).prctl(_SUBREAPER, 0, 0, 0, 0)
        out.seek(0)
        said.seek(0)
        printed, told = out.read(), said.read()
    if process.returncode:
        raise BenchmarkError(last_line(told))
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Taken(printed, wall, cpu, sampler.own / 1024, sampler.rss / 1024, sampler.worker / 1024)


def _end_session(process: subprocess.Popen[bytes]) -> None:
    """Ends what a command left behind, and waits for it."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    with contextlib.suppress(ChildProcessError):
        while True:
            os.waitpid(-process.pid, 0)


class Log:
    """Measurements as JSON lines in a file: what is there already is not measured again."""

    def __init__(self, path: Path):
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self.lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def find(self, **key: object) -> list[dict[str, Any]]:
        """The measurements of which so much is true."""
        return [line for line in self.lines if all(line.get(name) == value for name, value in key.items())]

    def add(self, found: dict[str, Any], **key: object) -> None:
        """Writes one down, and says it."""
        self.lines.append(key | found)
        with open(self.path, "a") as file:
            file.write(json.dumps(self.lines[-1]) + "\n")
        told = ", ".join(
            f"{name} {value:,.4g}" for name, value in found.items() if isinstance(value, int | float)
        )
        print(" ".join(map(str, key.values())), "-", told or found.get("error"), file=sys.stderr)

    def measure(self, key: dict[str, object], measurement: Callable[[], dict[str, Any]]) -> None:
        """Measures what is not in the log; an error is a result too, and tried once for each round."""
        if self.find(**key):
            return
        try:
            found = measurement()
        except BenchmarkError as error:
            found = {"error": str(error)}
        self.add(found, **key)


def in_turn(names: Sequence[str], rounds: int) -> Iterator[tuple[int, str]]:
    """Every name once in each round, in an order that begins one further on in every round."""
    for number in range(rounds):
        start = number % len(names)
        for name in (*names[start:], *names[:start]):
            yield number, name


def files_below(*paths: Path) -> list[Path]:
    """The files that are, or lie below, the paths."""
    found: list[Path] = []
    for path in paths:
        found += [path] if path.is_file() else [each for each in sorted(path.rglob("*")) if each.is_file()]
    return found


def disk_mb(*paths: Path) -> float:
    """Bytes of the files below, in MB of 10^6."""
    return sum(path.stat().st_size for path in files_below(*paths)) / 1e6


def read_all(paths: Iterable[Path]) -> None:
    """Brings files into the page cache."""
    for path in paths:
        with open(path, "rb", buffering=0) as file:
            while file.read(1 << 22):
                pass


def evict(paths: Iterable[Path]) -> float:
    """Takes files out of the page cache, which needs no rights; returns the share of pages that stayed."""
    pages = stayed = 0
    for path in paths:
        with open(path, "rb") as file:
            os.fsync(file.fileno())  # what is not on the disk yet would stay
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            size = os.fstat(file.fileno()).st_size
            if size:
                held = _resident(file.fileno(), size)
                pages, stayed = pages + len(held), stayed + int(held.sum())
    return stayed / pages if pages else 0.0


def _resident(descriptor: int, size: int) -> np.ndarray:
    """Tells for each page of an open file whether it is in memory."""
    flags = np.zeros(-(-size // mmap.PAGESIZE), np.uint8)
    with mmap.mmap(descriptor, size, mmap.MAP_PRIVATE) as mapped:
        start = ctypes.addressof(ctypes.c_char.from_buffer(mapped))
        if ctypes.CDLL(None).mincore(ctypes.c_void_p(start), ctypes.c_size_t(size), flags.ctypes):
            raise OSError("mincore failed")
    return flags & 1


def link_images(source: Path, metadata: Path, folder: Path, count: int, size: int | None = None) -> Path:
    """Makes a set of `count` images of a few: every name a hard link to one of them.

    A table that has fewer rows is repeated under names of new patients.

    Args:
        source: folder of PNG files.
        metadata: a table in NIH's form.
        folder: to make `images` and `table.csv` in; on one disk.
        count: of images.
        size: side of the pictures that are linked to; None takes the files as they are.

    Returns:
        The folder.
    """
    if (folder / "table.csv").exists():
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "images").mkdir(parents=True)
    (folder / "originals").mkdir()
    for path in sorted(source.rglob("*.png")):
        target = folder / "originals" / path.name
        if size is None:
            shutil.copy(path, target)
        else:
            with Image.open(path) as image:
                image.convert("L").resize((size, size), Image.Resampling.BILINEAR).save(target)
    originals = sorted((folder / "originals").iterdir())
    table = pd.read_csv(metadata).dropna(axis=1, how="all")
    times, patients = -(-count // len(table)), int(table["Patient ID"].max()) + 1
    table = pd.concat(
        [table.assign(**{"Patient ID": table["Patient ID"] + patients * n}) for n in range(times)]
    )
    table = table.head(count).reset_index(drop=True)
    numbers = table.groupby("Patient ID").cumcount()
    table["Image Index"] = [
        f"{patient:08d}_{number:03d}.png"
        for patient, number in zip(table["Patient ID"], numbers, strict=True)
    ]
    for number, name in enumerate(table["Image Index"]):
        os.link(originals[number % len(originals)], folder / "images" / name)
    table.to_csv(folder / "unfinished", index=False)
    os.replace(folder / "unfinished", folder / "table.csv")
    return folder


def sources(
    images: Path | None, metadata: Path | None, folder: Path, size: int, count: int
) -> tuple[Path, Path]:
    """The images and the table to make sets of; look-alike ones are drawn where none are given."""
    if images and metadata:
        return images, metadata
    if images or metadata:
        raise SystemExit("Error: --images and --metadata belong together; give both or none")
    from cxr_records.lookalike import make_lookalike

    made = make_lookalike(folder / f"lookalike-{size}", count, image_size=size, workers=2)
    return made.images, made.metadata


def spread(values: Sequence[float], digits: int | None = None) -> str:
    """The median, and the lowest and highest; three digits that count, or so many behind the point."""

    def shown(value: float) -> str:
        if digits is not None:
            return f"{value:,.{digits}f}"
        return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"

    if len(values) == 1:
        return shown(values[0])
    return f"{shown(statistics.median(values))} ({shown(min(values))} to {shown(max(values))})"


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
