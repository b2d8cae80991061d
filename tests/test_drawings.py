"""Drawings are known as such from the table to every number: manifest, run, evaluation, terminal, report."""

import json
import re

import numpy as np
import pandas as pd
import pytest
from conftest import manifest_json, write_manifest

from cxr_records.cli import run as run_command
from cxr_records.dataset import open_dataset
from cxr_records.drawings import drawn_share, drawn_words
from cxr_records.metadata import read_metadata
from cxr_records.trainers import runs
from cxr_records.trainers.config import TrainConfig
from cxr_records.trainers.evaluation.evaluate import evaluate_table

WORDS = "on drawn images, which say nothing about patients"


@pytest.mark.parametrize(
    ("drawn", "images", "share", "words"),
    [
        (0, 5, "none", ""),
        (1, 5, "some", "on images of which some are drawn, which say nothing about patients"),
        (5, 5, "all", WORDS),
    ],
)
def test_a_share_in_words(drawn, images, share, words):
    assert drawn_share(drawn, images) == share
    assert drawn_words(share) == words


@pytest.fixture
def scores(lookalike, tmp_path):
    """A table of scores of two classes of the look-alike set."""
    names = read_metadata(str(lookalike.metadata)).table["image_id"]
    random = np.random.default_rng(0).random((len(names), 2))
    path = tmp_path / "scores.csv"
    pd.DataFrame(random, columns=["Effusion", "Mass"]).assign(image=names).to_csv(path, index=False)
    return path


def test_wherever_a_number_of_drawings_stands_they_are_called_drawings(lookalike, scores, tmp_path, capfd):
    words = ["evaluate", "--predictions", scores, "--metadata", lookalike.metadata, "--date", "2026-01-31"]
    words = [str(word) for word in [*words, "--out", tmp_path / "out", "--draws", "0"]]

    assert run_command(words) == 0
    for line in capfd.readouterr().out.splitlines():
        if line.startswith(("scores.csv,", "macro", "calibration error")):
            assert line.endswith(WORDS), line
    assert run_command([*words, "--json"]) == 0
    told = json.loads(capfd.readouterr().out)
    assert (told["drawn"], told["date"]) == ("all", "2026-01-31")
    assert json.loads((tmp_path / "out" / "metrics.json").read_text())["identity"]["drawn"] == "all"
    page = (tmp_path / "out" / "report.html").read_text()
    assert f"<strong>{WORDS}</strong>" in page
    assert "made-up patients.\n" in page
    titles = re.findall(r"<h2>(.*?)</h2>", page)
    unmarked = ["Published results", "Model card", "What was measured"]
    assert [title for title in titles if WORDS not in title] == unmarked
    assert "If the labels err" not in page
    assert "Its images are drawings, and theirs are X-rays of patients." in page


def test_an_x_ray_is_never_called_a_drawing(lookalike, scores, tmp_path, capfd):
    table = pd.read_csv(lookalike.metadata).drop(columns="Drawn by")
    table.to_csv(tmp_path / "table.csv", index=False)
    words = ["evaluate", "--predictions", scores, "--metadata", tmp_path / "table.csv", "--draws", "0"]

    assert run_command([str(word) for word in [*words, "--out", tmp_path / "out"]]) == 0

    assert "drawn" not in capfd.readouterr().out
    page = (tmp_path / "out" / "report.html").read_text()
    assert "drawn" not in page.replace("were other patients drawn in the same way", "").split("</style>")[1]


def test_a_table_of_both_says_that_some_are_drawn(lookalike, scores, tmp_path):
    table = pd.read_csv(lookalike.metadata)
    table.loc[0, "Drawn by"] = ""
    table.to_csv(tmp_path / "table.csv", index=False)

    assert evaluate_table(str(scores), str(tmp_path / "table.csv"), draws=0).identity.drawn == "some"


def test_a_run_remembers_that_its_images_were_drawn_when_its_dataset_is_gone(dataset, tmp_path):
    run = runs.describe(str(tmp_path / "run"), open_dataset(dataset), TrainConfig(loss="bce"), {})
    runs.begin(run)

    assert runs.open_run(str(tmp_path / "run")).drawn == "all"


def test_a_run_on_x_rays_says_nothing_of_drawings(copied_dataset, tmp_path):
    content = manifest_json(copied_dataset)
    del content["drawn"]
    write_manifest(copied_dataset, content)

    run = runs.describe(str(tmp_path / "run"), open_dataset(copied_dataset), TrainConfig(loss="bce"), {})

    assert run.drawn == "none"
    assert "drawn" not in run.to_json()


def test_plan_says_how_many_images_are_drawn(lookalike, capfd):
    assert (
        run_command(["plan", "--metadata", str(lookalike.metadata), "--images", str(lookalike.images)]) == 0
    )

    assert f"\n{WORDS}: 150 of 150\n" in capfd.readouterr().out
