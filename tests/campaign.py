"""Faults drawn by a seed, and what came of each.

A trial damages a copy of something, lets a command or function use it, and sorts what came out:

- said: an error, a problem or a warning that the undamaged thing does not give;
- made again: the same result, and the damaged file is whole again;
- harmless: the same result beside the damage;
- not promised: another result that nothing in the file could have told from a true one;
- SILENT: another result, and not a word;
- FAULT: an error that no user should see (a traceback, "a fault of ours").

The last two fail the test. Trial n of a kind draws the same damage wherever and however often it runs:
FAULT_SEED=0 FAULT_TRIAL=n make test-faults ARGS='-k name' runs it alone. FAULTS is the size of the campaign.
"""

import collections
import contextlib
import dataclasses
import io
import os
import shutil
import traceback
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from cxr_records import storage
from cxr_records.cli import run as run_command
from cxr_records.errors import CxrError
from cxr_records.layout import BUILD_FOLDER
from cxr_records.lookalike import LookalikePaths, make_lookalike

FAULTS = int(os.environ.get("FAULTS", "600"))
SEED = int(os.environ.get("FAULT_SEED", "0"))
TRIAL = os.environ.get("FAULT_TRIAL")

SAID, MENDED, HARMLESS, UNPROMISED = "said", "made again", "harmless", "not promised"
SILENT, FAULT = "SILENT", "FAULT"
OUTCOMES = (SAID, MENDED, HARMLESS, UNPROMISED, SILENT, FAULT)
_SHOWN = 8  # bad trials that a failure names


@dataclasses.dataclass(frozen=True)
class Seen:
    """What a user sees of one use: the result, and what was said beside it; `fault` where that is ours."""

    result: object
    said: frozenset[str] = frozenset()
    fault: str = ""


def command(*words: object) -> Seen:
    """Runs a command in this process: the result is what it printed, and it may say errors and warnings."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = run_command([str(word) for word in words])
    lines = [line for line in err.getvalue().splitlines() if line.strip()]
    said = {line for line in lines if line.startswith(("Error:", "warning:"))}
    if code not in (0, 1, 2, 3) or "fault of ours" in err.getvalue() or "Traceback" in err.getvalue():
        return Seen(None, fault=err.getvalue())
    if code and not said:
        return Seen(None, fault=f"exit {code} without a word: {lines}")
    return Seen(None if code else out.getvalue(), frozenset(said))


def call(function: Callable[[], object]) -> Seen:
    """Runs a function of the library: warnings, and errors that the command tells in one line, are said."""
    err = io.StringIO()
    try:
        with contextlib.redirect_stderr(err):
            result = function()
        return Seen(result, frozenset(line for line in err.getvalue().splitlines() if "warning: " in line))
    except CxrError as error:
        return Seen(None, frozenset([str(error)]))
    except OSError as error:
        named = error.strerror is not None
        return Seen(None, frozenset([str(error)])) if named else Seen(None, fault=traceback.format_exc())
    except Exception:
        return Seen(None, fault=traceback.format_exc())


class Outcome(NamedTuple):
    """What came of a trial: one of OUTCOMES, and what shows it."""

    name: str
    shown: str = ""

    @property
    def bad(self) -> bool:
        """Whether it fails the test."""
        return self.name in (SILENT, FAULT)


def sort(seen: Seen, undamaged: Seen, mended: bool = False) -> Outcome:
    """Tells what came of a trial, from what was seen with and without the damage."""
    if seen.fault:
        return Outcome(FAULT, seen.fault.strip().splitlines()[-1])
    if new := seen.said - undamaged.said:
        return Outcome(SAID, min(new))
    if seen.result != undamaged.result:
        return Outcome(SILENT, _difference(seen.result, undamaged.result))
    return Outcome(MENDED if mended else HARMLESS)


def _difference(found: object, expected: object) -> str:
    if isinstance(found, dict) and isinstance(expected, dict):
        names = sorted(name for name in {*found, *expected} if found.get(name) != expected.get(name))
        return f"differs: {', '.join(names)}"
    return f"found {str(found)[:200]}"


def run_trials(
    kind: str,
    share: float,
    trial: Callable[[np.random.Generator], tuple[Outcome, str]],
    record_property: Callable[[str, object], None],
) -> None:
    """Runs the trials of one kind, counts them for the table at the end, and fails on any bad one.

    Args:
        kind: its name in the table.
        share: of all trials of the campaign.
        trial: draws a fault and returns (outcome, what was done).
        record_property: pytest's.
    """
    counts: collections.Counter[str] = collections.Counter()
    bad = []
    numbers = [int(TRIAL)] if TRIAL else range(max(4, round(FAULTS * share)))
    for number in numbers:
        outcome, done = trial(np.random.default_rng([SEED, zlib.crc32(kind.encode()), number]))
        counts[outcome.name] += 1
        if outcome.bad:
            bad.append(f"trial {number}: {outcome.name}: {done}: {outcome.shown}")
    record_property("faults", [kind, {name: counts[name] for name in OUTCOMES}])
    hidden = [f"and {len(bad) - _SHOWN} more"] * (len(bad) > _SHOWN)
    if bad:
        head = f"{kind}: {len(bad)} of {len(numbers)} trials with FAULT_SEED={SEED} FAULTS={FAULTS}"
        pytest.fail("\n".join([head, *bad[:_SHOWN], *hidden]), pytrace=False)


def flip(data: bytes, random: np.random.Generator) -> tuple[bytes, str]:
    """Changes one bit."""
    at, bit = int(random.integers(len(data))), int(random.integers(8))
    changed = bytearray(data)
    changed[at] ^= 1 << bit
    return bytes(changed), f"bit {bit} of byte {at} of {len(data)} flipped"


def spoil(data: bytes, random: np.random.Generator, others: Sequence[bytes] = ()) -> tuple[bytes, str]:
    """Changes more than one bit: a run of zeros or of noise, an end cut off or put on, another file."""
    at = int(random.integers(len(data)))
    length = int(random.integers(1, 65))
    kinds = ["zeros", "noise", "cut", "longer", "empty", *(["another file"] if others else [])]
    kind = kinds[random.integers(len(kinds))]
    changed = {
        "zeros": data[:at] + bytes(len(data[at : at + length])) + data[at + length :],
        "noise": data[:at] + random.bytes(len(data[at : at + length])) + data[at + length :],
        "cut": data[:at],
        "longer": data + random.bytes(length),
        "empty": b"",
        "another file": others[random.integers(len(others))] if others else b"",
    }[kind]
    return changed, f"{kind} at byte {at} of {len(data)}, {length} bytes"


def damage(path: Path, how: str, random: np.random.Generator, others: Sequence[Path] = ()) -> str:
    """Damages a file as a disk would: its time of change stays. Returns what was done.

    Args:
        path: the file.
        how: "flip" or "spoil".
        random: where the damage is drawn.
        others: files whose bytes it may get.
    """
    status, data = path.stat(), path.read_bytes()
    while True:
        spoilt = spoil(data, random, [other.read_bytes() for other in others])
        changed, done = flip(data, random) if how == "flip" else spoilt
        if changed != data:
            break
    path.write_bytes(changed)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    return f"{path.name}: {done}"


@contextlib.contextmanager
def copied(folder: Path, to: Path) -> Iterator[Path]:
    """A copy of a folder, with the times of its files, that goes away."""
    shutil.rmtree(to, ignore_errors=True)
    yield Path(shutil.copytree(folder, to))
    shutil.rmtree(to)


def run_here(function: Callable[[Any], object], specs: Sequence[Any], engine: object, watch: Any) -> None:
    """Stands for `running._run_here`: Beam is not on trial, and takes longer than the work."""
    for spec in specs:
        function(spec)
    watch()


@dataclasses.dataclass(frozen=True)
class World:
    """A look-alike set, a store and a finished dataset of it, and what each seed's build gives undamaged.

    Attributes:
        folder: where `store` and `dataset` lie, as they were built with seed 0.
        made: the look-alike set, of which one image is broken.
        undamaged: {seed: what a build with it says, and every byte that it writes}.
    """

    folder: Path
    made: LookalikePaths
    undamaged: dict[int, Seen]

    def words(self, out: Path, store: Path, seed: int = 0, images: Path | None = None) -> list[object]:
        """The command that builds."""
        made = self.made
        return [
            *("build", "--images", images or made.images, "--metadata", made.metadata, "--out", out),
            *("--train-val-list", made.train_val_list, "--test-list", made.test_list, "--store", store),
            *("--size", 32, "--copies-target", 0.1, "--copies-max", 3, "--seed", seed, "--workers", 1),
            *("--max-rejected", 0.1, "--shard-mb", 1),
        ]

    def build(self, out: Path, store: Path, seed: int = 0, images: Path | None = None) -> Seen:
        """Builds; the result is every byte of the dataset."""
        seen = command(*self.words(out, store, seed, images))
        return seen if seen.result is None else dataclasses.replace(seen, result=bytes_of(out))


def make_world(folder: Path) -> World:
    """Makes the set, the store and the dataset."""
    made = make_lookalike(folder / "made", num_images=60, image_size=48)
    broken = sorted(made.images.rglob("*.png"))[7]
    broken.write_bytes(broken.read_bytes()[:-30])
    world = World(folder, made, {})
    for seed in (1, 0):
        world.undamaged[seed] = world.build(folder / "dataset", folder / "store", seed)
        assert world.undamaged[seed].result is not None, world.undamaged[seed]
    return world


def bytes_of(dataset: Path) -> dict[str, bytes]:
    """Everything in a dataset but what it keeps for resuming."""
    names = [name for name in storage.list_names(str(dataset)) if name != BUILD_FOLDER]
    return {name: (dataset / name).read_bytes() for name in names}


def summary(rows: Sequence[tuple[str, dict[str, int]]]) -> list[str]:
    """The lines of the table: one row for each kind of fault, and their sum."""
    total = {name: sum(counts[name] for _, counts in rows) for name in OUTCOMES}
    width = max(len(kind) for kind, _ in rows)
    heads = ("trials", *OUTCOMES)
    lines = ["  ".join(["kind of fault".ljust(width), *heads])]
    for kind, counts in [*sorted(rows), ("all", total)]:
        numbers = {"trials": sum(counts.values()), **counts}
        lines.append(
            "  ".join([kind.ljust(width), *(f"{numbers[head]:,}".rjust(len(head)) for head in heads)])
        )
    return lines
