"""Standard output and standard error: closed, full, read by nobody, and what never passes them."""

import errno
import io
import os
import subprocess
import sys

import pytest
from conftest import files_of

from cxr_records import streams, urls
from cxr_records.cli import run
from cxr_records.progress import progress, say

CXR = [sys.executable, "-m", "cxr_records"]
FULL = f"Error: standard output: {os.strerror(errno.ENOSPC)}; the work itself is done\n"


class Broken(io.StringIO):
    """A stream that can take no more."""

    def __init__(self, error: OSError):
        super().__init__()
        self.raised, self.broken = error, False

    def write(self, text):
        return super().write(text)

    def flush(self):
        if self.broken:
            raise self.raised


def in_shell(command: list[str], after: str) -> subprocess.CompletedProcess:
    """Runs a command with redirections behind it."""
    return subprocess.run(
        ["bash", "-c", f'"$@" {after}', "bash", *command], capture_output=True, text=True, timeout=120
    )


@pytest.fixture
def build_command(lookalike, tmp_path) -> list[str]:
    return [
        *CXR, "build", "--images", str(lookalike.images), "--metadata", str(lookalike.metadata),
        "--train-val-list", str(lookalike.train_val_list), "--test-list", str(lookalike.test_list),
        "--size", "32", "--copies-target", "0.1", "--workers", "1", "--out", str(tmp_path / "ds"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("after", "code", "said"),
    [
        (">&-", 0, ""),
        ("2>&-", 0, ""),
        ("<&- >&- 2>&-", 0, ""),
        ("2>/dev/full", 0, ""),
        (">/dev/full", 1, FULL),
    ],
)
def test_a_build_whose_streams_are_closed_or_full_is_whole(
    build_command, dataset, tmp_path, after, code, said
):
    done = in_shell(build_command, after)

    assert (done.returncode, done.stderr) == (code, said)
    assert files_of(tmp_path / "ds") == files_of(dataset)


@pytest.mark.slow
def test_worker_processes_need_no_streams(build_command, dataset, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (tmp_path / "sitecustomize.py").write_text(
        "import cxr_records.pipelines.engines as e; e.SECONDS_WORTH_PROCESSES = 0\n"
    )
    build_command[build_command.index("1")] = "2"

    done = in_shell(build_command, "<&- >&- 2>&-")

    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert files_of(tmp_path / "ds") == files_of(dataset)


def test_other_commands_need_no_streams_either(dataset, lookalike, tmp_path):
    names = lookalike.metadata.read_text().splitlines()[1:]
    scores = "".join(f"{line.split(',')[0]},0.{number:03d}\n" for number, line in enumerate(names))
    (tmp_path / "scores.csv").write_text("Image Index,Effusion\n" + scores)
    commands = {
        0: [
            [*CXR, "--help"],
            [*CXR, "plan", "--metadata", str(lookalike.metadata)],
            [*CXR, "verify", str(dataset)],
            [
                *CXR, "evaluate", "--predictions", str(tmp_path / "scores.csv"), "--draws", "0",
                "--metadata", str(lookalike.metadata), "--out", str(tmp_path / "scored"),
            ],
        ],
        1: [[*CXR, "verify", str(tmp_path)]],
        2: [[*CXR, "verify"]],
    }  # fmt: skip

    for code, those in commands.items():
        for command in those:
            done = in_shell(command, "<&- >&- 2>&-")
            assert (done.returncode, done.stdout, done.stderr) == (code, "", "")
    assert (tmp_path / "scored" / "metrics.json").stat().st_size > 0


def test_no_file_takes_the_number_of_a_closed_stream(tmp_path):
    code = (
        "import os, sys\nfrom cxr_records import streams\nstreams.reopen()\n"
        f"with open({str(tmp_path / 'x')!r}, 'w') as file:\n"
        "    print('printed'); print('printed', file=sys.stderr); os.write(1, b'raw'); os.write(2, b'raw')\n"
        "    file.write(str(file.fileno() > 2) + repr(sys.stdin.read()))\n"
        "import subprocess; subprocess.run(['sh', '-c', 'echo x; echo y >&2'], check=True)\n"
    )
    done = in_shell([sys.executable, "-c", code], "<&- >&- 2>&-")

    assert (done.returncode, (tmp_path / "x").read_text()) == (0, "True''")


def test_open_streams_are_left_as_they_are():
    before = os.stat(0), sys.stdin
    streams.reopen()
    assert (os.stat(0), sys.stdin) == before


def test_a_reader_that_has_gone_ends_nothing(monkeypatch):
    stream = Broken(BrokenPipeError(errno.EPIPE, "Broken pipe"))
    monkeypatch.setattr(sys, "stdout", stream)
    with streams.doors() as (out, _):
        print("first", flush=True)
        stream.broken = True
        print("second", flush=True)
        stream.broken = False
        print("third", flush=True)
        assert out.error is None

    assert stream.getvalue() == "first\nsecond\n"
    assert sys.stdout is stream


def test_what_could_not_be_written_is_told_once_the_work_is_done(monkeypatch, capsys, dataset):
    stream = Broken(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
    stream.broken = True
    monkeypatch.setattr(sys, "stdout", stream)

    assert run(["verify", str(dataset)]) == 1
    assert capsys.readouterr().err == FULL
    # What went wrong before is not hidden by it.
    assert run(["verify", str(dataset.parent)]) == 1
    assert capsys.readouterr().err.startswith(f"Error: {dataset.parent}: ")


def test_no_credential_passes_the_door(monkeypatch, capsys):
    monkeypatch.setattr(urls, "_known", set())
    with streams.doors():
        print("reading https://user:password@host/x.zip?sig=secret, then more")
        say("warning: https://user:password@host/x.zip: slow")

    assert capsys.readouterr() == (
        "reading https://...@host/x.zip?..., then more\n",
        "warning: https://...@host/x.zip: slow\n",
    )


def test_names_that_the_terminal_cannot_show_are_spelled_out(monkeypatch):
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, "ascii"))
    with streams.doors():
        print("é\udcff.png")
    assert raw.getvalue() == b"\\xe9\\udcff.png\n"


def test_progress_needs_no_stream(monkeypatch):
    monkeypatch.setattr(sys, "stderr", None)
    with progress("decode", "images", 10) as shown:
        shown.update(5)
    say("a line")


def test_what_steers_a_terminal_is_shown_and_not_done(capsys):
    """A file may be called so, and a cell of a table may hold it."""
    with streams.doors():
        sys.stdout.write("\x1b]0;mine\x07 \x9b2J \x00 a\tb\r\n")
        say("warning: \x1b[31mred")

    out, err = capsys.readouterr()
    assert out == "\\x1b]0;mine\\x07 \\x9b2J \\x00 a\tb\r\n"
    assert err == "warning: \\x1b[31mred\n"
