"""Runs that differ in their seed alone, side by side in one folder: DIR/seed-0, DIR/seed-1 and so on.

Each is a process of its own, so that one that fails or is killed leaves the others be, and each goes on where
it was broken off. When the command ends, so do its runs: they see the end of a pipe that it holds open.
"""

import contextlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO

import cxr_records
from cxr_records import storage
from cxr_records.errors import CxrError, UsageError
from cxr_records.names import is_litter
from cxr_records.progress import say
from cxr_records.trainers import digests

SEEDS_FILE = "seeds.json"
_FORMAT = "cxr_records seeds"
_VERSION = 1
CORES_OF_RUN = 4  # on a CPU, where runs of small networks make little use of more
BYTES_OF_RUN = 4 << 30
_POLL_SECONDS = 0.1
# Python looks for modules in the folder that holds this package, and not in the user's.
_HERE = "import sys; sys.path[0] = sys.argv.pop(1); "
_START = f"{_HERE}from cxr_records.trainers.seeds import below; below(sys.argv[1:])"
_KIND = (
    f"{_HERE}from cxr_records.quiet import load_tensorflow; load_tensorflow(); "
    "from cxr_records.trainers.devices import choose_devices; print(choose_devices(sys.argv[1]).kind)"
)


def is_of_seeds(path: str) -> bool:
    """Tells whether a folder holds runs of several seeds."""
    return storage.exists(storage.join(path, SEEDS_FILE))


def members(path: str) -> dict[int, str]:
    """Returns the run directories of a folder of several seeds, by seed; there may be no run in one yet.

    Raises:
        UsageError: the folder holds none.
        CxrError: seeds.json is not as it was written.
    """
    file = storage.join(path, SEEDS_FILE)
    if not storage.exists(file):
        raise UsageError(f"{path} holds no runs of several seeds: found no {SEEDS_FILE} in it")
    try:
        content = digests.unsealed(file, storage.read_bytes(file))
    except digests.DamagedFileError as error:
        raise CxrError(f"{error}; remove it and give the same `train --seeds` again") from None
    if (content.get("format"), content.get("version")) != (_FORMAT, _VERSION):
        raise UsageError(f"{file}: found no {_FORMAT!r} of version {_VERSION}")
    return {seed: storage.join(path, f"seed-{seed}") for seed in content["seeds"]}


def begin(path: str, seeds: Sequence[int]) -> dict[int, str]:
    """Writes seeds.json into a new or empty folder, or adds seeds to those of before; returns the runs.

    Raises:
        UsageError: the folder holds something else.
    """
    if is_of_seeds(path):
        seeds = sorted({*members(path), *seeds})
    elif strangers := [
        name for name in storage.list_names(path) if not is_litter(name) and not name.startswith("seed-")
    ]:
        raise UsageError(
            f"`run={path}` is not empty and holds no runs of several seeds (it holds {strangers[0]}); "
            "name another"
        )
    storage.make_folder(path)
    content = {"format": _FORMAT, "version": _VERSION, "seeds": list(seeds)}
    storage.write_bytes(storage.join(path, SEEDS_FILE), digests.sealed(content))
    return {seed: storage.join(path, f"seed-{seed}") for seed in seeds}


def at_once(devices: str, runs: int) -> int:
    """Returns how many runs to train at the same time.

    On a CPU as many as have `CORES_OF_RUN` cores and `BYTES_OF_RUN` of free memory each, and at least one; on
    GPUs and TPUs one after another, as each run takes all of them.
    """
    cores, memory = len(os.sched_getaffinity(0)), os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    most = max(1, min(runs, cores // CORES_OF_RUN, memory // BYTES_OF_RUN))
    return most if most == 1 or devices.startswith("cpu") or _kind(devices) == "cpu" else 1


def _kind(devices: str) -> str:
    """The kind of devices, asked by a process of its own: whoever asks takes them."""
    words = [sys.executable, "-c", _KIND, _root(), devices]
    told = subprocess.run(words, capture_output=True, text=True, check=False)
    return told.stdout.strip().rpartition("\n")[2]


def train_all(
    words: Callable[[int, str], Sequence[str]], runs: dict[int, str], together: int
) -> dict[int, str]:
    """Trains runs as processes below this one, some at the same time.

    Args:
        words: returns the words of the command `train` for a seed and its run directory.
        runs: run directories by seed.
        together: how many at the same time.

    Returns:
        What went wrong, by seed; of what went well, nothing.

    Raises:
        UsageError: the first run says that what was asked for is wrong, as all others would.
    """
    waiting, failed = list(runs), dict[int, str]()
    running: dict[int, _Below] = {}
    try:
        while waiting or running:
            while waiting and len(running) < together:
                seed = waiting.pop(0)
                running[seed] = _Below(seed, words(seed, runs[seed]))
            time.sleep(_POLL_SECONDS)
            for seed, below in list(running.items()):
                if (code := below.code()) is None:
                    continue
                del running[seed]
                if code == UsageError.exit_code and seed == next(iter(runs)):
                    raise UsageError(below.reason)
                if code:
                    failed[seed] = below.reason or f"ended with exit code {code}"
                    say(f"seed {seed} failed: {failed[seed]}; the others go on")
    finally:
        for below in running.values():
            below.kill()
    return failed


class _Below:
    """A run in a process below this one; what it says is said here, behind its seed."""

    def __init__(self, seed: int, words: Sequence[str]):
        self.reason = ""
        self._process = subprocess.Popen(
            [sys.executable, "-c", _START, _root(), *words],
            stdin=subprocess.PIPE,  # kept open: its end tells the run that this process is gone
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
        )
        assert self._process.stderr is not None
        self._reader = threading.Thread(target=self._read, args=(seed, self._process.stderr), daemon=True)
        self._reader.start()

    def code(self) -> int | None:
        """Returns the exit code, None while it runs."""
        code = self._process.poll()
        if code is not None:
            self._reader.join(timeout=5)
        return code

    def kill(self) -> None:
        """Ends the run; it goes on from its last checkpoint."""
        self._process.kill()
        self._process.wait()

    def _read(self, seed: int, pipe: IO[str]) -> None:
        for line in pipe:
            text = line.rstrip()
            if text.startswith("Error: "):
                self.reason = text.removeprefix("Error: ")
            elif text:
                say(f"seed {seed}: {text}")


def below(words: list[str]) -> None:
    """Runs a command in a process that ends when the one above it does."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    from cxr_records.cli import run

    sys.exit(run(words))


def _end_with_parent() -> None:
    with contextlib.suppress(OSError):
        while os.read(0, 1):
            pass
    os._exit(1)


def _root() -> str:
    """The folder in which Python finds this package and nothing of the user's."""
    return str(Path(cxr_records.__file__).resolve().parent.parent)
