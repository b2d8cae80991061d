"""Disks that fail, processes that die, commands that meet: at any write the work goes on to the same bytes.

Part of `make test-faults`. test_interruptions.py holds the same of whole commands with workers.
"""

import errno
import io
import json
import os
import select
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import campaign
import pytest
from campaign import FAULT, HARMLESS, SAID, SILENT, Outcome, Seen, bytes_of, call, command, run_trials, sort

import cxr_records
from cxr_records import storage
from cxr_records.layout import MANIFEST_FILE
from cxr_records.pipelines import running

pytestmark = [pytest.mark.faults, pytest.mark.usefixtures("in_this_thread")]
ERRORS = {"ENOSPC": errno.ENOSPC, "EIO": errno.EIO, "EACCES": errno.EACCES}


class Disk:
    """Counts what is written, synced and renamed, and lets something happen in the middle of one of these.

    Args:
        at: which, counted from 1; 0 for none.
        happens: raises, or ends the process.
    """

    def __init__(self, at: int, happens: Callable[[], None]):
        self.at, self.happens, self.count = at, happens, 0

    def touch(self) -> bool:
        """Counts one; tells whether it is the one."""
        self.count += 1
        return self.count == self.at

    @contextmanager
    def mounted(self) -> Iterator["Disk"]:
        """Has `storage` write to this disk."""
        disk, fsync, replace = self, os.fsync, os.replace

        class File(io.FileIO):
            def write(self, data) -> int:
                if disk.touch():
                    super().write(bytes(data)[: len(data) // 2])
                    disk.happens()
                return super().write(data)

        def open_file(path, mode="r", *rest):
            if "w" in mode or "x" in mode:
                return io.BufferedWriter(File(path, mode.replace("b", "")))
            return open(path, mode, *rest)

        def before(function):
            def changed(*arguments, **options):
                if disk.touch():
                    disk.happens()
                return function(*arguments, **options)

            return changed

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(storage, "open", open_file, raising=False)
            patch.setattr(os, "fsync", before(fsync))
            patch.setattr(os, "replace", before(replace))
            yield self


def build_on(disk: Disk, words: list[str]) -> Seen:
    with disk.mounted():
        return command(*words)


def begin(world, folder: Path, rebuilt: bool) -> list[str]:
    """An empty folder, or one with a dataset of another seed to be replaced; returns the command."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    if rebuilt:
        shutil.copytree(world.folder / "dataset", folder / "dataset")
        shutil.copytree(world.folder / "store", folder / "store")
    return [str(word) for word in world.words(folder / "dataset", folder / "store", seed=1)]


@pytest.fixture(scope="module")
def operations(world, tmp_path_factory) -> dict[bool, int]:
    """{whether it replaces a dataset: how often a build writes, syncs and renames}."""
    folder, counts = tmp_path_factory.mktemp("operations") / "work", {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(running, "_run_here", campaign.run_here)
        for rebuilt in (False, True):
            disk = Disk(0, lambda: None)
            assert build_on(disk, begin(world, folder, rebuilt)).result
            counts[rebuilt] = disk.count
    return counts


def whole_or_none(world, dataset: Path) -> str:
    """What is wrong with what a broken build left: a manifest stands over a whole dataset or not at all."""
    if not (dataset / MANIFEST_FILE).exists():
        return ""
    problems = cxr_records.verify(dataset, deep=True)
    known = [world.undamaged[seed].result for seed in (0, 1)]
    if not problems and bytes_of(dataset) not in known:
        return "a manifest over another dataset"
    return f"a manifest over {problems[0]}" if problems else ""


def goes_on(world, folder: Path, words: list[str], first: Outcome) -> Outcome:
    """The outcome of a broken build: first, unless what it left or what follows is wrong."""
    if wrong := whole_or_none(world, folder / "dataset"):
        return Outcome(SILENT, wrong)
    again = world.build(folder / "dataset", folder / "store", seed=1)
    then = sort(again, world.undamaged[1])
    if then.name != HARMLESS:
        return Outcome(FAULT, f"the same command afterwards: {then.name} {then.shown}")
    if left := [path.name for path in folder.rglob(".*") if ".tmp-" in path.name or ".work-" in path.name]:
        return Outcome(FAULT, f"left {left}")
    return first


@pytest.mark.parametrize("error", ERRORS)
def test_a_disk_that_fails_at_any_write_is_said_and_the_same_command_goes_on(
    world, operations, tmp_path, record_property, error
):
    def fail() -> None:
        raise OSError(ERRORS[error], os.strerror(ERRORS[error]))

    def trial(random):
        rebuilt = bool(random.integers(2))
        words = begin(world, tmp_path / "work", rebuilt)
        at = int(random.integers(operations[rebuilt])) + 1
        seen = build_on(Disk(at, fail), words)
        if seen.result is not None:
            seen = Seen(bytes_of(tmp_path / "work" / "dataset"), seen.said)
        first = sort(seen, world.undamaged[1])
        done = (
            f"{error} at operation {at} of {operations[rebuilt]}, {'over a dataset' if rebuilt else 'anew'}"
        )
        return first if first.bad else goes_on(world, tmp_path / "work", words, first), done

    run_trials(f"disk: {error}", 0.03, trial, record_property)


_DRIVER = """
import json, os, sys
import cxr_records.pipelines.cli, cxr_records.pipelines.api, test_faults_disks  # once, not in each child
from cxr_records.pipelines import engines
engines.engine_named(workers=1).check()
for line in sys.stdin:
    child = os.fork()
    if not child:
        test_faults_disks.build_and_die(**json.loads(line))
    print(os.waitpid(child, 0)[1], flush=True)
"""


def build_and_die(words: list[str], at: int) -> None:
    """Builds in this process, which is killed in the middle of a write, sync or rename, or ends."""
    running._run_here = campaign.run_here
    seen = build_on(Disk(at, lambda: os.kill(os.getpid(), signal.SIGKILL)), words)
    os._exit(0 if seen.result is not None else 1)


@pytest.fixture(scope="module")
def driver() -> Iterator[subprocess.Popen]:
    """A process that builds in children of its own, so that these may be killed; nothing runs beside them."""
    process = subprocess.Popen(
        [sys.executable, "-c", _DRIVER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent)},
    )
    yield process
    process.stdin.close()
    process.wait()


def ask(driver: subprocess.Popen, words: list[str], at: int) -> None:
    driver.stdin.write(json.dumps({"words": words, "at": at}) + "\n")
    driver.stdin.flush()


def test_a_build_killed_at_any_write_goes_on_to_the_same_bytes(
    world, operations, driver, tmp_path, record_property
):
    def trial(random):
        rebuilt = bool(random.integers(2))
        words = begin(world, tmp_path / "work", rebuilt)
        kills = sorted((random.integers(operations[rebuilt], size=random.integers(1, 4)) + 1).tolist())
        for at in kills:
            ask(driver, words, at)
            driver.stdout.readline()
        done = f"killed at operations {kills}, {'over a dataset' if rebuilt else 'anew'}"
        return goes_on(world, tmp_path / "work", words, Outcome(campaign.MENDED)), done

    run_trials("kill -9", 0.03, trial, record_property)


def test_readers_of_a_dataset_that_is_rebuilt_see_one_or_the_other_or_are_told(
    world, driver, tmp_path, record_property
):
    def read() -> Seen:
        def everything() -> object:
            opened = cxr_records.open(tmp_path / "dataset")
            return [opened.id, opened.records.to_pylist(), opened.examples(opened.records)]

        return call(everything)

    def check() -> Seen:
        seen = call(lambda: cxr_records.verify(tmp_path / "dataset", deep=True))
        return Seen(None, frozenset(map(str, seen.result))) if seen.result else seen

    seeds = [1, 0]
    known: list[object] = []
    for seed in seeds:  # the last is the one that stands
        world.build(tmp_path / "dataset", world.folder / "store", seed)
        known.append(read().result)
    begun = [0]

    def trial(random):
        if not begun[0]:
            words = world.words(tmp_path / "dataset", world.folder / "store", seeds[0])
            ask(driver, [str(word) for word in words], 0)
            begun[0] = 1
        use = check if random.integers(2) else read
        seen = use()
        if select.select([driver.stdout], [], [], 0)[0]:
            if driver.stdout.readline().strip() != "0":
                return Outcome(FAULT, "the rebuild failed"), ""
            seeds.reverse()
            begun[0] = 0
        if seen.fault:
            return Outcome(FAULT, seen.fault.strip().splitlines()[-1]), use.__name__
        if seen.said:
            return Outcome(SAID, min(seen.said)), use.__name__
        whole = seen.result == [] if use is check else seen.result in known
        return Outcome(HARMLESS if whole else SILENT, str(seen.result)[:200]), use.__name__

    run_trials("read while it is rebuilt", 0.3, trial, record_property)
    if begun[0]:
        driver.stdout.readline()


def test_two_builds_at_once_end_with_one_whole_dataset(world, tmp_path, record_property):
    """On one output, and on one store; as processes of their own."""

    def trial(random):
        one_output = bool(random.integers(2))
        folder = tmp_path / "work"
        begin(world, folder, rebuilt=False)
        outs = [folder / "a", folder / ("a" if one_output else "b")]
        commands = [[str(word) for word in world.words(out, folder / "store", seed=1)] for out in outs]
        processes = [
            subprocess.Popen(
                [sys.executable, "-m", "cxr_records", *words],
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
            )
            for words in commands
        ]
        said = [process.communicate()[1] for process in processes]
        outcome = Outcome(HARMLESS)
        for process, text, out in zip(processes, said, outs, strict=True):
            if process.returncode == 0:
                if sort(Seen(bytes_of(out)), world.undamaged[1]).name != HARMLESS:
                    return Outcome(SILENT, f"{out.name} is another dataset"), ""
            elif "in use by process" in text and "Traceback" not in text:
                outcome = Outcome(SAID, text)
            else:
                return Outcome(FAULT, text), ""
        if all(process.returncode for process in processes):
            return Outcome(FAULT, "both gave up"), ""
        return outcome, f"one {'output' if one_output else 'store'}"

    run_trials("two builds at once", 0.003, trial, record_property)
