"""Runs of several seeds in one folder: what trains them, what they say together, and what goes wrong."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from cxr_records.cli import run as run_command
from cxr_records.errors import CxrError, UsageError
from cxr_records.trainers import digests, runs, seeds
from cxr_records.trainers.config import TrainConfig
from cxr_records.trainers.evaluation import ensembles, evaluate, metrics
from cxr_records.trainers.predict import predict_run
from cxr_records.trainers.train import train

TINY = TrainConfig(model=f"{Path(__file__).parent / 'tiny_model.py'}:make", batch_size=16, epochs=1)


@pytest.fixture(scope="module")
def made(dataset, tmp_path_factory) -> Path:
    """Three finished runs in a folder, as the command leaves them."""
    folder = tmp_path_factory.mktemp("seeds") / "three"
    for seed, run in seeds.begin(str(folder), [0, 1, 2]).items():
        train(str(dataset), run, replace(TINY, seed=seed))
        predict_run(run)
    return folder


@pytest.fixture
def folder(made, tmp_path) -> Path:
    """A copy of that folder."""
    return Path(shutil.copytree(made, tmp_path / "three"))


def scores_of(folder: Path) -> np.ndarray:
    table = pd.read_parquet(folder / "predictions.parquet")
    return table[[name for name in table if name.startswith("prob_")]].to_numpy()


# What they say together


def test_the_ensemble_is_the_mean_of_the_probabilities(folder):
    evaluation = evaluate.evaluate_run(str(folder), draws=0)

    each = [scores_of(folder / f"seed-{seed}") for seed in range(3)]
    np.testing.assert_allclose(scores_of(folder), np.mean(each, axis=0), rtol=1e-6)
    table = pd.read_parquet(folder / "predictions.parquet")
    test = table[table["split"] == "test"]
    areas = metrics.auroc_per_class(
        *(test[[name for name in table if name.startswith(kind)]].to_numpy() for kind in ("label_", "prob_"))
    )
    assert evaluation.macro_auroc.value == pytest.approx(np.nanmean(areas), abs=1e-4)
    assert (evaluation.identity.name, evaluation.identity.run) == ("three", str(folder))


def test_mean_and_spread_are_those_of_the_runs_measured_one_by_one(folder):
    over = evaluate.evaluate_run(str(folder), draws=0).seeds

    alone = [evaluate.evaluate_run(str(folder / f"seed-{seed}"), draws=0) for seed in range(3)]
    values = [each.macro_auroc.value for each in alone]
    assert over.seeds == (0, 1, 2)
    assert over.macro_auroc.values == pytest.approx(values, abs=1e-4)
    assert over.macro_auroc.mean == pytest.approx(np.mean(values), abs=1e-4)
    assert over.macro_auroc.spread == pytest.approx(np.std(values, ddof=1), abs=1e-4)
    assert over.macro_auprc.values == pytest.approx([e.macro_auprc.value for e in alone], abs=1e-4)
    effusion = [each.auroc["Effusion"].value for each in alone]
    assert over.auroc["Effusion"].values == pytest.approx(effusion, abs=1e-4)
    assert all(each.seeds is None for each in alone)


def test_evaluate_understands_the_folder_and_leaves_a_report(folder, capfd):
    assert run_command(["evaluate", str(folder), "--draws", "0", "--json"]) == 0

    printed = json.loads(capfd.readouterr().out)
    held = json.loads((folder / "metrics.json").read_text())
    assert printed["seeds"] == held["seeds"]
    assert held["seeds"]["seeds"] == [0, 1, 2]
    assert "ensemble of 3 seeds" in (folder / "report.html").read_text()


def test_people_are_told_the_ensemble_and_the_single_runs(folder, capfd):
    assert run_command(["evaluate", str(folder), "--draws", "0"]) == 0

    over = json.loads((folder / "metrics.json").read_text())["seeds"]["macro_auroc"]
    said = (
        f"the ensemble of 3 seeds (mean of probabilities); single runs: macro AUROC {over['mean']:.3f}, "
        f"spread {over['spread']:.3f} ({', '.join(f'{value:.3f}' for value in over['values'])})"
    )
    assert said in capfd.readouterr().out


def test_a_seed_that_is_not_finished_is_left_out_and_that_is_said(folder):
    (folder / "seed-1" / "predictions.parquet").unlink()
    shutil.rmtree(folder / "seed-2")

    evaluation = evaluate.evaluate_run(str(folder), draws=0)

    assert evaluation.warnings[0] == "the ensemble is of 1 of 3 seeds: not finished 1, 2"
    assert (evaluation.seeds.seeds, evaluation.seeds.macro_auroc.spread) == ((0,), None)
    np.testing.assert_array_equal(scores_of(folder), scores_of(folder / "seed-0"))


def test_the_ensemble_follows_its_runs_whatever_was_written_before(folder):
    evaluate.evaluate_run(str(folder), draws=0)
    shutil.rmtree(folder / "seed-2")
    evaluate.evaluate_run(str(folder), draws=0)

    each = [scores_of(folder / f"seed-{seed}") for seed in range(2)]
    np.testing.assert_allclose(scores_of(folder), np.mean(each, axis=0), rtol=1e-6)


# Bad use


def test_runs_that_differ_in_more_than_their_seed_are_no_ensemble(folder, dataset):
    shutil.rmtree(folder / "seed-1")
    train(str(dataset), str(folder / "seed-1"), replace(TINY, seed=1, learning_rate=1e-4))
    predict_run(str(folder / "seed-1"))

    with pytest.raises(UsageError) as error:
        ensembles.combine(str(folder))
    assert str(error.value) == (
        f"{folder}/seed-1 and {folder}/seed-0 differ in more than their seed: no ensemble; train them with "
        "the same settings"
    )


def test_seeds_may_differ_in_what_changes_nothing(folder):
    path = folder / "seed-1" / "config.json"
    content = digests.unsealed(str(path), path.read_bytes())
    content["config"] |= {"checkpoint_minutes": 0.5, "steps_per_execution": 7}
    path.write_bytes(digests.sealed(content))

    assert ensembles.combine(str(folder)) == []


def test_a_folder_without_a_finished_run_is_told(tmp_path):
    seeds.begin(str(tmp_path / "none"), [0, 1])

    with pytest.raises(UsageError) as error:
        evaluate.evaluate_run(str(tmp_path / "none"))
    assert str(error.value) == (
        f"{tmp_path}/none: no seed is finished; run its train command again until one is"
    )


def test_a_folder_that_holds_something_else_is_refused(tmp_path, trained_run):
    (tmp_path / "thesis.tex").write_text("years of work")

    for folder, stranger in ((tmp_path, "thesis.tex"), (trained_run, "checkpoints")):
        with pytest.raises(UsageError) as error:
            seeds.begin(str(folder), [0, 1])
        assert str(error.value) == (
            f"`run={folder}` is not empty and holds no runs of several seeds (it holds {stranger}); "
            "name another"
        )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["thesis.tex"]


def test_what_takes_one_run_says_so(folder):
    with pytest.raises(UsageError) as error:
        runs.open_run(str(folder))
    assert str(error.value) == (
        f"{folder} holds runs of several seeds: name one of them, such as {folder}/seed-0"
    )


def test_the_one_that_is_named_is_a_finished_one_where_there_is_any(folder):
    shutil.rmtree(folder / "seed-0")
    with pytest.raises(UsageError, match=f"name one of them, such as {folder}/seed-1$"):
        runs.open_run(str(folder))

    for seed in (1, 2):
        (folder / f"seed-{seed}" / "model.keras").unlink()
    with pytest.raises(UsageError, match=f"name one of them, such as {folder}/seed-0$"):
        runs.open_run(str(folder))


def test_to_train_one_run_over_several_is_refused(folder, dataset):
    with pytest.raises(UsageError) as error:
        train(str(dataset), str(folder), TINY)
    assert str(error.value) == (
        f"`run={folder}` holds runs of several seeds; go on with them by --seeds, or name another"
    )


def test_a_damaged_seeds_json_is_told(folder):
    (folder / "seeds.json").write_text((folder / "seeds.json").read_text().replace("1", "3"))

    with pytest.raises(CxrError) as error:
        seeds.members(str(folder))
    assert str(error.value) == (
        f"{folder}/seeds.json is damaged: its bytes are not those that were written; remove it and give the "
        "same `train --seeds` again"
    )


def test_more_seeds_are_added_to_those_of_before(tmp_path):
    seeds.begin(str(tmp_path / "runs"), [0, 1])

    assert list(seeds.begin(str(tmp_path / "runs"), [0, 1, 2, 3])) == [0, 1, 2, 3]
    assert list(seeds.begin(str(tmp_path / "runs"), [0, 1])) == [0, 1, 2, 3]


# How many at once


@pytest.mark.parametrize(
    ("devices", "kind", "cores", "gigabytes", "expected"),
    [
        ("cpu", "", 2, 64, 1),
        ("cpu", "", 16, 64, 4),
        ("auto", "cpu", 16, 64, 4),
        ("auto", "gpu", 16, 64, 1),
        ("gpu", "gpu", 64, 64, 1),
        ("cpu", "", 16, 9, 2),
        ("cpu", "", 64, 999, 5),
    ],
)
def test_as_many_run_at_once_as_cores_memory_and_devices_allow(
    monkeypatch, devices, kind, cores, gigabytes, expected
):
    monkeypatch.setattr(seeds.os, "sched_getaffinity", lambda process: set(range(cores)))
    page = {"SC_AVPHYS_PAGES": gigabytes << 18, "SC_PAGE_SIZE": 4096}
    monkeypatch.setattr(seeds.os, "sysconf", page.get)
    monkeypatch.setattr(seeds, "_kind", lambda asked: kind)

    assert seeds.at_once(devices, 5) == expected


# Processes


@pytest.fixture
def stand_in(monkeypatch) -> None:
    """Instead of the command: a script, so that no TensorFlow is loaded."""
    script = (
        "import sys, time; sys.argv.pop(1)\n"
        "from pathlib import Path\n"
        "what, run = sys.argv[1:3]\n"
        "print('epoch 1', file=sys.stderr)\n"
        "if what == 'fail': sys.exit('Error: no luck')\n"
        "if what == 'refuse': print('Error: --set epoch: no such', file=sys.stderr); sys.exit(2)\n"
        "Path(run).write_text('begun'); time.sleep(0.2); Path(run).write_text('done')\n"
    )
    monkeypatch.setattr(seeds, "_START", script)


def test_one_that_fails_leaves_the_others_be_and_is_told(stand_in, tmp_path, capfd):
    places = {seed: str(tmp_path / f"{seed}") for seed in range(3)}

    failed = seeds.train_all(lambda seed, run: ["fail" if seed == 1 else "do", run], places, 2)

    assert failed == {1: "no luck"}
    assert [(tmp_path / f"{seed}").exists() for seed in range(3)] == [True, False, True]
    said = capfd.readouterr().err.splitlines()
    assert "seed 1 failed: no luck; the others go on" in said
    assert {"seed 0: epoch 1", "seed 1: epoch 1", "seed 2: epoch 1"} <= set(said)


def test_what_is_wrong_for_all_is_told_once(stand_in, tmp_path):
    places = {seed: str(tmp_path / f"{seed}") for seed in range(3)}

    with pytest.raises(UsageError) as error:
        seeds.train_all(lambda seed, run: ["refuse", run], places, 1)
    assert str(error.value) == "--set epoch: no such"


@pytest.mark.slow
def test_the_command_that_is_killed_takes_its_runs_along_and_the_same_goes_on(dataset, tmp_path):
    folder = tmp_path / "two"
    words = [
        sys.executable, "-m", "cxr_records", "train", str(dataset), "--run", str(folder), "--seeds", "2",
        "--json", "--devices", "cpu", "--set", f"model={TINY.model}", "--set", "epochs=3", "--set",
        "batch_size=16", "--set", "checkpoint_minutes=0",
    ]  # fmt: skip
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    last = folder / "seed-0" / "checkpoints" / "last.npz"
    deadline = time.monotonic() + 200
    while not last.exists():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    time.sleep(2)
    assert of_folder(folder) == []  # nobody goes on in secret

    done = subprocess.run(words, capture_output=True, text=True, timeout=280)

    assert done.returncode == 0, done.stderr
    printed = json.loads(done.stdout)
    assert (printed["run"], printed["seeds"]["seeds"]) == (str(folder), [0, 1])
    for seed in (0, 1):
        assert (folder / f"seed-{seed}" / "report.html").exists()
    assert {"seeds.json", "metrics.json", "report.html", "predictions.parquet"} <= set(os.listdir(folder))


def of_folder(folder: Path) -> list[str]:
    """Processes whose words name the folder."""
    words = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words.append(path.read_bytes().replace(b"\0", b" ").decode(errors="replace"))
        except OSError:
            continue
    return [each for each in words if str(folder) in each]
