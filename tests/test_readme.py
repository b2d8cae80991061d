"""README's blocks run as they stand, on a look-alike set under the names that README uses."""

import contextlib
import glob
import io
import re
import shlex
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from cxr_records import cli
from cxr_records.findings import FINDINGS
from cxr_records.lookalike import make_lookalike

README = Path(__file__).parents[1] / "README.md"
# What README says for a real set and a GPU, and what runs here in its place.
IN_PLACE = {
    "splits: official NIH lists": "splits: lists given (not the official NIH lists)",
    "--preset densenet121 --weights imagenet": "--preset small_cnn --set epochs=1",  # a download, and hours
    "--set epochs=5": "--set epochs=1 --set batch_size=16",  # few of our images have that finding
}


@dataclass(frozen=True)
class Block:
    """A fenced block of README: its line, language, text, and why it is not run, if it is not."""

    line: int
    language: str
    text: str
    not_run: str | None

    def commands(self) -> list[tuple[str, list[str]]]:
        """Each command of a console as it is run here, and the lines that are shown below it."""
        text = self.text
        for said, here in IN_PLACE.items():
            text = text.replace(said, here)
        found: list[tuple[str, list[str]]] = []
        for line in text.replace("\\\n", " ").splitlines():
            if line.startswith("$ "):
                found.append((line[2:], []))
            else:
                found[-1][1].append(line)
        return found


def blocks() -> list[Block]:
    pattern = re.compile(r"(?:<!-- not run: (.+) -->\n)?```(.*)\n((?:.*\n)*?)```\n")
    text = README.read_text()
    return [
        Block(text.count("\n", 0, found.start(2)) + 1, found[2], found[3], found[1])
        for found in pattern.finditer(text)
    ]


RUN = [block for block in blocks() if block.language in ("console", "python") and not block.not_run]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """NIH's files by NIH's names: archives and a folder of images, table, lists; scores of a model."""
    folder = tmp_path_factory.mktemp("readme")
    made = make_lookalike(folder / "lookalike", 240, image_size=64, seed=5)
    (folder / "images").mkdir()
    for part in sorted(made.images.iterdir()):
        with tarfile.open(folder / f"{part.name}.tar.gz", "w:gz", compresslevel=1) as archive:
            for path in sorted(part.rglob("*.png")):
                archive.add(path, f"images/{path.name}")
                path.rename(folder / "images" / path.name)
    made.metadata.rename(folder / "Data_Entry_2017_v2020.csv")
    made.train_val_list.rename(folder / "train_val_list.txt")
    made.test_list.rename(folder / "test_list.txt")
    made.boxes.rename(folder / "BBox_List_2017.csv")
    names = (folder / "test_list.txt").read_text().split()
    scores = np.random.default_rng(0).random((len(names), len(FINDINGS)))
    table = pd.DataFrame(scores, columns=[f"prob_{name}" for name in FINDINGS])
    table.insert(0, "Image Index", names)
    table.to_csv(folder / "scores.csv", index=False)
    return folder


@pytest.fixture(scope="module")
def names() -> dict[str, Any]:
    """What the Python blocks share."""
    return {}


def run_command(command: str) -> str:
    """Runs one line of a shell in this process; returns what it prints."""
    words: list[str] = []
    for word in shlex.split(command):
        words += sorted(glob.glob(word)) if "*" in word else [word]
    assert words[0] == "cxr-records"
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        code = cli.run(words[1:])
    assert code == 0, f"{command}: exit code {code}"
    return printed.getvalue()


def form(line: str) -> str:
    """A printed line without its numbers and the width of its columns."""
    line = re.sub(r"\b(k|K|M|G|T)?B\b|\b(s|min|h)\b", "unit", line)
    return " ".join(re.sub(r"(?<![A-Za-z])[\d,]*\.?\d+", "0", line).split())


def test_every_block_is_run_or_says_why_not():
    every = blocks()
    assert README.read_text().count("```") == 2 * len(every)
    assert {block.language for block in every} == {"console", "python", "sh", "text"}
    assert [block.line for block in every if block.language == "sh" and not block.not_run] == []
    assert [block.not_run for block in every if block.not_run] == [
        "these are commands of .ci/run itself", "installs", "needs four GPUs", "needs clusters",
    ]  # fmt: skip
    assert all(block.text.startswith("$ ") for block in every if block.language == "console")
    assert {block.language for block in RUN} == {"console", "python"}
    assert [said for said in IN_PLACE if not any(said in block.text for block in RUN)] == []


@pytest.mark.slow
@pytest.mark.parametrize("block", RUN, ids=lambda block: f"line {block.line}")
def test_a_block_runs_and_prints_what_it_shows(block, folder, names, monkeypatch):
    monkeypatch.chdir(folder)
    if block.language == "python":
        if name := re.match(r"# (\w+\.py)\n", block.text):  # a file that a command takes
            Path(name[1]).write_text(block.text)
        exec(compile(block.text, f"{README}, line {block.line}", "exec"), names)
        return
    for command, shown in block.commands():
        printed = [form(line) for line in run_command(command).splitlines()]
        expected = [form(line) for line in shown if line != "..."]
        assert [line for line in expected if line not in printed] == [], "\n".join(printed)


@pytest.mark.slow
def test_batches_have_the_shapes_that_the_comments_say(folder, names, monkeypatch):
    monkeypatch.chdir(folder)

    def shapes(name: str) -> list[tuple[int, ...]]:
        return [tuple(part.shape) for part in names[name].element_spec]

    assert shapes("train") == [(64, 224, 224, 1), (64, 14)]
    assert shapes("test") == [(64, 224, 224, 1), (64, 14), (64,)]
    assert shapes("mass") == [(64, 224, 224, 1), (64,)]
    assert next(iter(names["images"])).shape[1:] == (224, 224, 1)
