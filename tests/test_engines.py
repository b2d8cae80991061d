"""The local Beam engine: processes that end with the command, work that survives any death, quiet screens."""

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

from cxr_records.errors import CxrError
from cxr_records.lookalike import draw_image, plan_images
from cxr_records.manifest import MANIFEST_FILE
from cxr_records.pipelines import beam_job, engines
from cxr_records.pipelines.engines import Engine, Job

NUM_IMAGES = 960  # enough work for two processes, by the engine's own judgement
SECONDS_TO_END = 5


def touch(path: str) -> None:
    """A unit of work that leaves a file; some names misbehave."""
    name = os.path.basename(path)
    if name == "full":
        raise OSError(28, "No space left on device", path)
    if name == "broken":
        raise CxrError(f"{path} is broken; mend it")
    if name == "fault":
        raise ZeroDivisionError("surprise")
    if name == "kill" and not Path(f"{path}.once").exists():
        Path(f"{path}.once").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    Path(path).touch()


def job(paths: list[str], seconds: float) -> Job:
    return Job("test", "files", touch, paths, os.path.exists, lambda path: 1, seconds)


@pytest.fixture(params=[0.0, 1e9], ids=["in process", "two processes"])
def seconds(request, monkeypatch) -> float:
    """An estimate that makes the engine stay in this process, or start others."""
    # Worker processes import the function from here.
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    return request.param


def test_every_spec_is_run(tmp_path, seconds, capsys):
    paths = [str(tmp_path / f"{number:02d}") for number in range(20)]
    engines.run(job(paths, seconds), Engine(workers=2))
    assert sorted(map(str, tmp_path.iterdir())) == paths
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("name", "text"),
    [("full", "{path}: No space left on device"), ("broken", "{path} is broken; mend it")],
)
def test_what_a_worker_says_reaches_the_user_as_it_is(tmp_path, seconds, capsys, name, text):
    paths = [str(tmp_path / name), str(tmp_path / "good")]
    with pytest.raises(CxrError) as caught:
        engines.run(job(paths, seconds), Engine(workers=2))
    assert str(caught.value) == text.format(path=paths[0])
    assert capsys.readouterr() == ("", "")


def test_a_fault_of_ours_in_a_worker_is_one_line(tmp_path, seconds, capsys):
    with pytest.raises(
        CxrError, match=r"surprise.*run the same command to go on, --debug shows all"
    ) as caught:
        engines.run(job([str(tmp_path / "fault"), str(tmp_path / "good")], seconds), Engine(workers=2))
    assert "\n" not in str(caught.value)


def test_a_worker_that_is_killed_costs_only_its_own_spec(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    paths = [str(tmp_path / f"{number:02d}") for number in range(20)] + [str(tmp_path / "kill")]
    engines.run(job(paths, 1e9), Engine(workers=2))
    assert all(map(os.path.exists, paths))
    assert "a worker process died" in capsys.readouterr().err


def test_an_engine_that_leaves_specs_undone_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(beam_job, "run_pipeline", lambda *job: None)
    with pytest.raises(CxrError, match="ended without error but left 1 of 1 parts undone"):
        engines.run(job([str(tmp_path / "a")], 0), Engine(workers=1))


# What follows runs the command itself on a set that takes two processes some seconds, and kills it.


@pytest.fixture(scope="module")
def slow(tmp_path_factory) -> Path:
    """960 names of one 1024-pixel image, with a table and lists."""
    folder = tmp_path_factory.mktemp("slow")
    (folder / "images").mkdir()
    from PIL import Image

    first = folder / "images" / "00000001_000.png"
    Image.fromarray(draw_image(plan_images(60, 0)[0], 1024, 0)).save(first, compress_level=1)
    names = [f"{number:08d}_000.png" for number in range(1, NUM_IMAGES + 1)]
    for name in names[1:]:
        os.link(first, folder / "images" / name)
    rows = [
        f"{name},{'Hernia' if number % 40 == 0 else 'No Finding'},{number}"
        for number, name in enumerate(names)
    ]
    (folder / "table.csv").write_text("Image Index,Finding Labels,Patient ID\n" + "\n".join(rows) + "\n")
    return folder


def command(slow: Path, work: Path, *more: str) -> list[str]:
    return [
        *(sys.executable, "-m", "cxr_records", "build", "--images", str(slow / "images")),
        *("--metadata", str(slow / "table.csv"), "--size", "64", "--json"),
        *("--out", str(work / "ds"), "--store", str(work / "store"), *more),
    ]


@pytest.fixture(scope="module")
def undisturbed(slow, tmp_path_factory) -> dict[str, bytes]:
    """The dataset as one process writes it that nothing disturbs."""
    work = tmp_path_factory.mktemp("undisturbed")
    subprocess.run(command(slow, work, "--workers", "1"), check=True, capture_output=True)
    return files_of(work)


def files_of(work: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((work / "ds").iterdir()) if path.is_file()}


def units(work: Path) -> int:
    return len(list((work / "store").glob("unit-*.parquet")))


def start(
    slow: Path, work: Path, *more: str, num_units: int = 1, ignored: int | None = None
) -> subprocess.Popen:
    """Starts a build and waits until it has finished so many units of decoding more than there are."""

    def set_signals() -> None:
        # A suite that runs in the background hands an ignored SIGINT down to what it starts.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        if ignored:
            signal.signal(ignored, signal.SIG_IGN)

    wanted = units(work) + num_units
    process = subprocess.Popen(
        command(slow, work, *more),
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
    """Waits for processes to end; fails when one is still there after the time that is promised."""
    deadline = time.monotonic() + SECONDS_TO_END

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
def test_signals_end_every_process(slow, tmp_path, number, to_group, code, text, workers):
    process = start(slow, tmp_path, "--workers", str(workers))
    below = descendants(process.pid)
    assert len(below) >= (1 if workers == 1 else 4)
    (os.killpg if to_group else os.kill)(process.pid, number)
    out, err = process.communicate(timeout=SECONDS_TO_END)
    wait_until_gone(below)
    assert (process.returncode, out, err.lstrip("\n")) == (code, "", text)
    assert not (tmp_path / "ds" / MANIFEST_FILE).exists()


def test_a_build_under_nohup_outlives_its_terminal(slow, tmp_path):
    process = start(slow, tmp_path, "--workers", "2", ignored=signal.SIGHUP)
    os.killpg(process.pid, signal.SIGHUP)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert json.loads(out)["decoded"] == NUM_IMAGES


def test_killed_again_and_again_it_ends_with_the_same_bytes(slow, tmp_path, undisturbed):
    """SIGKILL to the command alone: those below end by themselves, and no finished unit is done again."""
    kills, before = 0, {}
    while True:
        process = start(slow, tmp_path, "--workers", "2", num_units=12)
        if process.poll() is not None or kills == 2:
            break
        below = descendants(process.pid)
        process.kill()
        process.communicate()
        wait_until_gone(below)
        kills += 1
        now = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "store").glob("unit-*.parquet")}
        assert before.items() <= now.items()
        before = now
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert kills == 2
    # Units hold 30 images, and twice 12 of them were finished before a kill.
    assert json.loads(out)["decoded"] <= NUM_IMAGES - 2 * 12 * 30
    assert files_of(tmp_path) == undisturbed
    assert not list(tmp_path.rglob(".*.tmp-*"))
    assert not list(tmp_path.rglob(".work-*"))


def test_killed_while_it_writes_it_ends_with_the_same_bytes(slow, tmp_path, undisturbed):
    shutil.rmtree(tmp_path / "ds", ignore_errors=True)
    for shards in (1, 3):
        process = subprocess.Popen(
            command(slow, tmp_path), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        while len(list((tmp_path / "ds").glob("cxr14-*"))) < shards and process.poll() is None:
            time.sleep(0.005)
        process.kill()
        process.wait()
    (tmp_path / "ds" / ".cxr14-train.tfrecord-00000-of-00012.tmp-0123456789abcdef0123456789abcdef").touch()
    subprocess.run(command(slow, tmp_path), check=True, capture_output=True)
    assert files_of(tmp_path) == undisturbed


def test_two_commands_on_one_output_and_a_dead_ones_lock(slow, tmp_path):
    first = start(slow, tmp_path, "--workers", "2")
    second = subprocess.run(command(slow, tmp_path), capture_output=True, text=True)
    assert (second.returncode, second.stdout) == (1, "")
    said = f"Error: --out {tmp_path / 'ds'} is in use by process {first.pid} on "
    assert second.stderr.startswith(said)
    assert second.stderr.endswith("; wait until it ends, or name another\n")
    other = subprocess.run(
        [*command(slow, tmp_path), "--out", str(tmp_path / "other")], capture_output=True, text=True
    )
    assert other.returncode == 1
    assert f"the image store {tmp_path / 'store'} is in use by process {first.pid}" in other.stderr
    first.kill()
    first.communicate()
    third = subprocess.run(command(slow, tmp_path), capture_output=True, text=True)
    assert third.returncode == 0, third.stderr
    assert [
        s for s in third.stderr.splitlines() if not s.startswith(("decode: ", "write: ", "warning: "))
    ] == []


def test_a_terminal_shows_a_bar_and_no_word_of_beams(slow, tmp_path):
    master, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("4H", 24, 100, 0, 0))
    process = subprocess.Popen(command(slow, tmp_path), stdout=subprocess.PIPE, stderr=terminal)
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
