"""The command on a set that takes two processes some seconds, stopped and killed at any moment.

Processes end with the command, work survives any death, screens are quiet.
"""

import fcntl
import json
import os
import pty
import shutil
import signal
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest
from conftest import files_of, without_progress

from cxr_records.layout import MANIFEST_FILE
from cxr_records.lookalike_drawing import draw_image
from cxr_records.lookalike_patients import plan_images

pytestmark = pytest.mark.slow

NUM_IMAGES = 960  # enough work for two processes, by the engine's own judgement
SECONDS_TO_WAIT = 60  # so that a process that stays is a failure and no hang; ending takes a second or two


@pytest.fixture(scope="module")
def large_set(tmp_path_factory) -> Path:
    """960 names of one 1024-pixel image, with a table and lists."""
    folder = tmp_path_factory.mktemp("large_set")
    (folder / "images").mkdir()
    from PIL import Image

    first = folder / "images" / "00000001_000.png"
    Image.fromarray(draw_image(plan_images(60, 0)[0], 1024, 0)).save(first, compress_level=1)
    names = [f"{number:08d}_000.png" for number in range(1, NUM_IMAGES + 1)]
    for name in names[1:]:
        os.link(first, folder / "images" / name)
    rows = [
        f"{name},{'Hernia' if number % 40 == 0 else 'No Finding'},{number},50,F,PA"
        for number, name in enumerate(names, start=1)
    ]
    header = "Image Index,Finding Labels,Patient ID,Patient Age,Patient Gender,View Position"
    (folder / "table.csv").write_text("\n".join([header, *rows]) + "\n")
    return folder


def command(large_set: Path, work: Path, *more: str) -> list[str]:
    return [
        *(sys.executable, "-m", "cxr_records", "build", "--images", str(large_set / "images")),
        *("--metadata", str(large_set / "table.csv"), "--size", "64", "--json"),
        *("--out", str(work / "ds"), "--store", str(work / "store"), *more),
    ]


@pytest.fixture(scope="module")
def undisturbed(large_set, tmp_path_factory) -> dict[str, bytes]:
    """The dataset as one process writes it that nothing disturbs."""
    work = tmp_path_factory.mktemp("undisturbed")
    subprocess.run(command(large_set, work, "--workers", "1"), check=True, capture_output=True)
    return files_of(work / "ds")


def units(work: Path) -> int:
    return len(list((work / "store").glob("unit-*.sha256")))


def start(
    large_set: Path, work: Path, *more: str, num_units: int = 1, ignored: int | None = None
) -> subprocess.Popen:
    """Starts a build and waits until it has finished so many units of decoding more than there are."""

    def set_signals() -> None:
        # A suite that runs in the background hands an ignored SIGINT down to what it starts.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        if ignored:
            signal.signal(ignored, signal.SIG_IGN)

    wanted = units(work) + num_units
    process = subprocess.Popen(
        command(large_set, work, *more),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=set_signals,
    )
    while units(work) < wanted and process.poll() is None:
        time.sleep(0.02)
    return process


def descendants(pid: int) -> list[int]:
    """Pids of a process and of all below it."""
    found = [pid]
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in children.read_text().split():
            found += descendants(int(child))
    return found


def wait_until_gone(pids: list[int]) -> None:
    """Waits for processes to end."""
    deadline = time.monotonic() + SECONDS_TO_WAIT

    def alive() -> list[int]:
        states = {}
        for pid in pids:
            try:
                states[pid] = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
            except OSError:
                continue
        return [pid for pid, state in states.items() if state != "Z"]

    while left := alive():
        assert time.monotonic() < deadline, f"still running: {left}"
        time.sleep(0.05)


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize(
    ("number", "to_group", "code", "text"),
    [
        (signal.SIGINT, False, 130, "stopped; the same command goes on from here\n"),
        (signal.SIGTERM, False, 143, "told to end; the same command goes on from here\n"),
        (signal.SIGTERM, True, 143, "told to end; the same command goes on from here\n"),
    ],
    ids=["SIGINT", "SIGTERM", "SIGTERM to the group"],
)
def test_signals_end_every_process(large_set, tmp_path, number, to_group, code, text, workers):
    process = start(large_set, tmp_path, "--workers", str(workers))
    below = descendants(process.pid)
    assert len(below) >= (1 if workers == 1 else 4)
    (os.killpg if to_group else os.kill)(process.pid, number)
    out, err = process.communicate(timeout=SECONDS_TO_WAIT)
    wait_until_gone(below)
    assert (process.returncode, out, without_progress(err).lstrip("\n")) == (code, "", text)
    assert not (tmp_path / "ds" / MANIFEST_FILE).exists()


def test_a_build_under_nohup_outlives_its_terminal(large_set, tmp_path):
    process = start(large_set, tmp_path, "--workers", "2", ignored=signal.SIGHUP)
    os.killpg(process.pid, signal.SIGHUP)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert json.loads(out)["decoded"] == NUM_IMAGES


def test_killed_again_and_again_it_ends_with_the_same_bytes(large_set, tmp_path, undisturbed):
    """SIGKILL to the command alone: those below end by themselves, and no finished unit is done again."""
    kills, before = 0, {}
    while True:
        process = start(large_set, tmp_path, "--workers", "2", num_units=12)
        if process.poll() is not None or kills == 2:
            break
        below = descendants(process.pid)
        process.kill()
        process.communicate()
        wait_until_gone(below)
        kills += 1
        now = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "store").glob("unit-*.sha256")}
        assert before.items() <= now.items()
        before = now
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert kills == 2
    # Units hold 30 images, and twice 12 of them were finished before a kill.
    assert json.loads(out)["decoded"] <= NUM_IMAGES - 2 * 12 * 30
    assert files_of(tmp_path / "ds") == undisturbed
    assert not list(tmp_path.rglob(".*.tmp-*"))
    assert not list(tmp_path.rglob(".work-*"))


def test_killed_while_it_writes_it_ends_with_the_same_bytes(large_set, tmp_path, undisturbed):
    shutil.rmtree(tmp_path / "ds", ignore_errors=True)
    for shards in (1, 3):
        process = subprocess.Popen(
            command(large_set, tmp_path), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        while len(list((tmp_path / "ds").glob("cxr14-*"))) < shards and process.poll() is None:
            time.sleep(0.005)
        process.kill()
        process.wait()
    (tmp_path / "ds" / ".cxr14-train.tfrecord-00000-of-00012.tmp-0123456789abcdef0123456789abcdef").touch()
    subprocess.run(command(large_set, tmp_path), check=True, capture_output=True)
    assert files_of(tmp_path / "ds") == undisturbed


def test_two_commands_on_one_output_and_a_dead_ones_lock(large_set, tmp_path):
    first = start(large_set, tmp_path, "--workers", "2")
    second = subprocess.run(command(large_set, tmp_path), capture_output=True, text=True)
    assert (second.returncode, second.stdout) == (1, "")
    said = f"Error: --out {tmp_path / 'ds'} is in use by process {first.pid} on "
    assert second.stderr.startswith(said)
    assert second.stderr.endswith("; wait until it ends, or name another\n")
    other = subprocess.run(
        [*command(large_set, tmp_path), "--out", str(tmp_path / "other")], capture_output=True, text=True
    )
    assert other.returncode == 1
    assert f"the image store {tmp_path / 'store'} is in use by process {first.pid}" in other.stderr
    first.kill()
    first.communicate()
    third = subprocess.run(command(large_set, tmp_path), capture_output=True, text=True)
    assert third.returncode == 0, third.stderr
    said = without_progress(third.stderr).splitlines()
    assert [line for line in said if not line.startswith("warning: ")] == []


def test_a_terminal_shows_a_bar_and_no_word_of_beams(large_set, tmp_path):
    master, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("4H", 24, 100, 0, 0))
    process = subprocess.Popen(command(large_set, tmp_path), stdout=subprocess.PIPE, stderr=terminal)
    os.close(terminal)
    shown = b""
    while True:
        try:
            shown += os.read(master, 4096)
        except OSError:  # the other end is closed
            break
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert json.loads(out)["decoded"] == NUM_IMAGES
    text = shown.decode()
    assert "decode: 100%" in text
    assert f"{NUM_IMAGES}/{NUM_IMAGES}" in text
    assert " images/s" in text
    assert "write: 100%" in text
    assert not any(word in text for word in ("WARNING", "apache_beam", "INFO", "ERROR", "Traceback"))
