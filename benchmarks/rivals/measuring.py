"""What a process that is measured does itself: it says when it begins, counts, and prints one JSON line.

It runs in a rival's environment, so it knows the standard library and NumPy alone.
"""

import importlib.metadata
import json
import os
import platform
import time
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

BATCH = 256
WARM_UP_SECONDS = 2.0
MARK = 8  # side of the small picture by which an image is known where a lossy codec was decoded
MARK_TOLERANCE = 2  # grey levels by which decoders of JPEG differ in such a picture
SHUFFLE_BYTES = 64 << 20  # of images in the shuffle buffers of readers that have one, as in ours


@dataclass
class Job:
    """One measurement of a reader.

    Attributes:
        folder: of the set: `dataset` (our shards), `source` (the same images for yardsticks and writers) and
            `forms` (a rival's own files).
        cores: that the process may use; readers with worker processes start as many.
        imported: when the reader had imported what it needs; what follows is reading.
    """

    folder: Path
    cores: int
    about: dict[str, Any] = field(init=False)
    imported: float = 0.0
    cpu_imported: float = 0.0

    def __post_init__(self) -> None:
        self.about = json.loads((self.folder / "source" / "about.json").read_text())

    @property
    def codec(self) -> str:
        """raw, png or jpeg."""
        return self.about["codec"]

    @property
    def size(self) -> int:
        """Side of the images."""
        return self.about["size"]

    @property
    def count(self) -> int:
        """Images of the set."""
        return self.about["count"]

    @property
    def shards(self) -> list[str]:
        """Our shards of the set."""
        return [str(self.folder / "dataset" / name) for name in self.about["shards"]]

    @property
    def shuffle_buffer(self) -> int:
        """Images that a shuffle buffer holds, where the reader has one."""
        return min(self.count, max(BATCH, SHUFFLE_BYTES // self.size**2))

    def form(self, name: str) -> Path:
        """Folder of a rival's own files."""
        return self.folder / "forms" / name

    def source(self) -> "Source":
        """The images of the set as they were written, with their labels."""
        return Source(self.folder / "source", self.about)

    def begin(self) -> None:
        """Called by a reader when its imports are done."""
        self.imported, self.cpu_imported = time.perf_counter(), cpu_seconds()


class Source:
    """The stored images of a set, one after the other in a file, and their labels."""

    def __init__(self, folder: Path, about: dict[str, Any]):
        self.path = folder / "images.bin"
        self.offsets = np.load(folder / "offsets.npy")
        self.labels = np.load(folder / "labels.npy")
        self._folder, self._lossy = folder, about["codec"] == "jpeg"

    def __iter__(self) -> Iterator[tuple[bytes, np.ndarray]]:
        with open(self.path, "rb") as file:
            for length, label in zip(np.diff(self.offsets), self.labels, strict=True):
                yield file.read(int(length)), label

    def check(self, images: np.ndarray, labels: np.ndarray, size: int) -> None:
        """Makes sure that a batch holds images of this set, each with its label, and no image is torn.

        Raises:
            ValueError: it does not.
        """
        images, labels = np.asarray(images), np.asarray(labels)
        if images.shape != (BATCH, size, size, 1) or images.dtype != np.uint8:
            raise ValueError(f"a batch of {images.shape} {images.dtype}")
        if labels.shape != (BATCH, self.labels.shape[1]):
            raise ValueError(f"labels of {labels.shape}")
        if self._lossy:
            known, found = np.load(self._folder / "marks.npy"), marks(images)
            for mark, label in zip(found, labels, strict=True):
                near = np.abs(known.astype(int) - mark).max(axis=1) <= MARK_TOLERANCE
                self._check_label(np.flatnonzero(near), label)
            return
        known = np.load(self._folder / "crcs.npy")
        for image, label in zip(images, labels, strict=True):
            self._check_label(np.flatnonzero(known == zlib.crc32(image.tobytes())), label)

    def _check_label(self, places: np.ndarray, label: np.ndarray) -> None:
        if not len(places):
            raise ValueError("an image that is not in the set")
        if not (self.labels[places] == label).all(axis=1).any():
            raise ValueError("an image with another's label")


def marks(images: np.ndarray) -> np.ndarray:
    """Returns uint8 [n, MARK * MARK], means over blocks of uint8 [n, size, size, 1]."""
    side = images.shape[1] // MARK
    kept = images[:, : side * MARK, : side * MARK, 0].reshape(-1, MARK, side, MARK, side)
    return kept.mean(axis=(2, 4)).round().astype(np.uint8).reshape(len(images), -1)


def cpu_seconds() -> float:
    """Processor time of this process, of those below it, and of those of them that have ended."""
    ended = os.times()
    seconds = time.process_time() + ended.children_user + ended.children_system
    ticks = os.sysconf("SC_CLK_TCK")
    for pid in below(os.getpid()):
        try:
            words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:  # it ended meanwhile
            continue
        seconds += sum(map(int, words[11:15])) / ticks
    return seconds


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


def endless(loader: Iterable[Any]) -> Iterator[Any]:
    """The batches of a loader, epoch after epoch."""
    while True:
        yield from loader


def measure(job: Job, batches: Iterator[Any], seconds: float, cold: bool) -> dict[str, Any]:
    """Reads for some time; cold: one epoch from the first batch on, otherwise after an epoch of warming up.

    Args:
        job: whose reader it is; `begin` was called.
        batches: endless, of (images, labels).
        seconds: how long to read where not cold.
        cold: whether the files were evicted from memory.
    """
    images, labels = next(batches)
    first = time.perf_counter() - job.imported
    kept = np.array(images), np.array(labels)  # the reader may use its buffers again
    of_epoch = max(1, job.count // BATCH)
    if cold:
        began, cpu, number = job.imported, job.cpu_imported, of_epoch
        for _ in range(number - 1):
            next(batches)
    else:
        warm = time.perf_counter() + WARM_UP_SECONDS
        number = 1
        while number < of_epoch or time.perf_counter() < warm:
            next(batches)
            number += 1
        began, cpu, number = time.perf_counter(), cpu_seconds(), 0
        while time.perf_counter() - began < seconds:
            next(batches)
            number += 1
    spent, passed = cpu_seconds() - cpu, time.perf_counter() - began
    job.source().check(*kept, job.size)
    return {
        "images_per_second": number * BATCH / passed,
        "cpu_ms_per_1000": spent * 1e6 / (number * BATCH),
        "first_batch_seconds": first,
    }


def versions(packages: Iterable[str]) -> dict[str, str]:
    """Versions of packages, and of Python."""
    return {
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in packages},
    }
