"""Evaluation: the real numbers of a real model, intervals, claims, leaks, runs side by side."""

import gzip
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from cxr_records.cli import run as run_command
from cxr_records.errors import UsageError
from cxr_records.findings import FINDINGS
from cxr_records.manifest import read_manifest
from cxr_records.reader import split_records
from cxr_records.splits import list_digest
from cxr_records.trainers import runs
from cxr_records.trainers.config import TrainConfig
from cxr_records.trainers.evaluation import claims
from cxr_records.trainers.evaluation.evaluate import compare_runs, evaluate_run, evaluate_table
from cxr_records.trainers.evaluation.predictions import write_predictions

# Of a DenseNet-121 on CheXNet's kind of split, as its authors and we have reproduced them (jrzech, 2022).
REAL_AUROC = {
    "Atelectasis": 0.818, "Cardiomegaly": 0.909, "Effusion": 0.883, "Infiltration": 0.716, "Mass": 0.838,
    "Nodule": 0.776, "Pneumonia": 0.762, "Pneumothorax": 0.878, "Consolidation": 0.800, "Edema": 0.895,
    "Emphysema": 0.932, "Fibrosis": 0.825, "Pleural_Thickening": 0.789, "Hernia": 0.918,
}  # fmt: skip


@pytest.fixture(scope="module")
def real(nih) -> Callable[..., dict]:
    def real(**options) -> dict:
        table, images = nih / "densenet121_predictions.csv.gz", nih / "Data_Entry_2017_v2020.csv.gz"
        return evaluate_table(str(table), str(images), **{"draws": 0, **options})

    return real


@pytest.fixture
def scored_run(dataset, tmp_path) -> Callable[..., Path]:
    """Makes a finished run without training: scores that know the labels, and noise."""

    def scored_run(name: str = "run", noise: float = 1.0, seed: int = 0, **config) -> Path:
        run = tmp_path / name
        run.mkdir()
        manifest = read_manifest(str(dataset))
        settings = TrainConfig(**{"loss": "bce", **config})
        train = split_records(str(dataset), "train")
        runs.begin(runs.describe(str(run), str(dataset), manifest, train, settings, {"keras": "3"}))
        random, tables = np.random.default_rng(seed), []
        for split in ("validation", "test"):
            held = split_records(str(dataset), split)
            logits = 2 * held.labels - 3 + random.normal(scale=noise, size=held.labels.shape)
            columns = {
                "split": split, "image_id": held.image_ids, "patient_id": held.patient_ids,
                "view": held.views, "sex": held.sexes, "age_years": held.ages_years,
            }  # fmt: skip
            for place, finding in enumerate(FINDINGS):
                columns[f"prob_{finding}"] = (1 / (1 + np.exp(-logits[:, place]))).astype(np.float32)
                columns[f"label_{finding}"] = held.labels[:, place].astype(np.int8)
            tables.append(pd.DataFrame(columns))
        write_predictions(str(run / "predictions.parquet"), pd.concat(tables, ignore_index=True))
        (run / "history.csv").write_text(
            "epoch,loss,val_loss,val_macro_auroc,learning_rate\n1,0.5,0.4,0.7,0.001\n"
        )
        return run

    return scored_run


# A real model


def test_every_class_of_the_real_table_comes_out_as_known(real):
    found = real()

    assert {name: entry["value"] for name, entry in found["auroc"].items()} == pytest.approx(
        REAL_AUROC, abs=0.001
    )
    assert found["macro_auroc"]["value"] == pytest.approx(0.838, abs=0.001)
    assert (found["identity"]["images"], found["identity"]["patients"]) == (22_433, 6_187)
    assert found["identity"]["table"]["dialect"] == "v2020"
    assert not found["comparison"]["comparable"]
    assert found["split_claim"]["text"] == (
        "22,433 images: the size of CheXNet's random split (78,468 / 11,219 / 22,433), which is not NIH's "
        "official one"
    )
    assert "fewer than 30 positive patients, do not rank by: Hernia (29)" in found["warnings"]


@pytest.mark.parametrize(
    ("file", "images", "area"), [("train_val_list", 17_220, 0.836), ("test_list", 5_213, 0.818)]
)
def test_the_same_model_is_better_on_the_official_train_part(nih, real, file, images, area):
    found = real(test_list=str(nih / f"{file}.txt.gz"))

    assert found["identity"]["images"] == images
    assert found["macro_auroc"]["value"] == pytest.approx(area, abs=0.001)
    assert not found["split_claim"]["official"]


def test_a_part_of_the_official_list_is_called_a_part(nih, real):
    found = real(test_list=str(nih / "test_list.txt.gz"))

    assert found["split_claim"]["text"] == "5,213 of the 25,596 images of NIH's official test list: a part"
    assert found["warnings"][0] == "20,383 of the 25,596 images of --test-list have no scores"


@pytest.mark.parametrize(("task", "area"), [("binary", 0.718), ("binary:Pneumothorax", 0.886)])
def test_derived_binary_tasks_of_the_real_table(nih, real, task, area):
    found = real(test_list=str(nih / "test_list.txt.gz"), task=task)

    (entry,) = found["auroc"].values()
    assert entry["value"] == pytest.approx(area, abs=0.001)


def test_the_derived_multiclass_task_of_the_real_table(nih, real):
    found = real(test_list=str(nih / "test_list.txt.gz"), task="multiclass")["multiclass"]

    assert found["balanced_accuracy"]["value"] == pytest.approx(0.323, abs=0.001)
    assert found["prior_corrected_balanced_accuracy"]["value"] == pytest.approx(0.409, abs=0.001)
    assert np.array(found["confusion"]).shape == (14, 14)
    assert found["accuracy"] == pytest.approx(0.478, abs=0.001)


def test_intervals_over_patients_contain_the_value_and_differ_from_those_over_images(real):
    found = real(draws=200)

    widths = {}
    for name, entry in found["auroc"].items():
        assert entry["low"] < entry["value"] < entry["high"]
        widths[name] = (entry["high"] - entry["low"]) / (entry["image_high"] - entry["image_low"])
    # A patient with pneumothorax has many images of it; one with pneumonia few.
    assert widths["Pneumothorax"] > 1.2
    assert real(draws=200)["auroc"] == found["auroc"]


# Runs


def test_a_run_is_evaluated_with_thresholds_and_temperature_of_validation(scored_run, dataset):
    found = evaluate_run(str(scored_run()), draws=50)

    held = split_records(str(dataset), "test")
    assert found["identity"]["images"] == len(held)
    effusion = found["classes"]["Effusion"]
    assert effusion["positives"] == int(held.labels[:, 2].sum())
    assert effusion["operating_point"]["chosen_on"] == "validation"
    assert found["calibration"]["prior_shift_undone"] is True
    assert found["calibration"]["temperature_fitted_on"] == "validation"
    assert found["leaks"] == []
    assert found["split_claim"]["official"] is False
    groups = [(held["by"], held["group"]) for held in found["subgroups"]]
    assert ("view", "PA") in groups
    assert ("sex", "F") in groups
    for by in ("view", "sex", "age"):
        assert sum(held["images"] for held in found["subgroups"] if held["by"] == by) == len(held)


def test_a_class_without_positives_is_left_out_of_the_mean_and_said(scored_run):
    run = scored_run()
    table = pd.read_parquet(run / "predictions.parquet")
    table["label_Hernia"] = 0
    write_predictions(str(run / "predictions.parquet"), table)

    found = evaluate_run(str(run), draws=20)

    assert found["auroc"]["Hernia"] == dict.fromkeys(("value", "low", "high", "image_low", "image_high"))
    assert "Hernia: no positive image, so no measure" in found["warnings"]
    others = [entry["value"] for entry in found["auroc"].values() if entry["value"] is not None]
    assert found["macro_auroc"]["value"] == pytest.approx(np.mean(others), abs=1e-6)
    assert found["curves"]["Hernia"] is None


def test_scored_images_that_were_trained_on_are_found(scored_run, dataset, tmp_path, capfd):
    run = scored_run()
    table = pd.read_parquet(run / "predictions.parquet")
    trained = split_records(str(dataset), "train")
    table.loc[table.index[-1], ["image_id", "patient_id"]] = [trained.image_ids[0], trained.patient_ids[0]]
    write_predictions(str(run / "predictions.parquet"), table)

    assert run_command(["evaluate", str(run), "--draws", "0"]) == 3

    out, err = capfd.readouterr()
    images = (table["split"] == "test").sum()
    assert (
        f"Error: 1 of {images} scored images are among the training records of {dataset} (first: "
        f"{trained.image_ids[0]}); 1 patients of the scored images are in the training split of {dataset} "
        f"(first: {trained.patient_ids[0]})"
    ) in err
    assert "leak: 1 of" in out
    held = json.loads((run / "metrics.json").read_text())
    assert len(held["leaks"]) == 2
    assert not held["comparison"]["comparable"]
    assert "Leak: 1 of" in (run / "report.html").read_text()


def test_a_table_is_checked_for_leaks_against_a_dataset(lookalike, dataset, tmp_path, capfd):
    names = [
        *split_records(str(dataset), "test").image_ids,
        split_records(str(dataset), "train").image_ids[3],
    ]
    pd.DataFrame({"image": names, "Mass": 0.5}).to_csv(tmp_path / "s.csv", index=False)
    words = ["evaluate", "--predictions", tmp_path / "s.csv", "--metadata", lookalike.metadata]
    words += ["--trained-on", dataset, "--out", tmp_path / "out", "--draws", "0"]

    assert run_command([str(word) for word in words]) == 3
    assert "1 of" in capfd.readouterr().err


def test_runs_are_compared_on_the_same_draws(scored_run):
    good, bad = str(scored_run("good", noise=0.5)), str(scored_run("bad", noise=4.0, seed=1))

    (found,) = compare_runs([bad, good], draws=100)
    (same,) = compare_runs([good, good], draws=100)

    areas = [evaluate_run(run, draws=0)["macro_auroc"]["value"] for run in (bad, good)]
    assert found["macro_auroc"]["value"] == pytest.approx(areas[1] - areas[0], abs=1e-5)
    assert 0 < found["macro_auroc"]["low"] < found["macro_auroc"]["value"]
    assert same["macro_auroc"] == {
        "value": 0.0, "low": 0.0, "high": 0.0, "image_low": 0.0, "image_high": 0.0
    }  # fmt: skip


def test_the_command_compares_runs_and_writes_both_files(scored_run, tmp_path, capfd):
    one, other = scored_run("one"), scored_run("other", noise=3.0)

    words = ["evaluate", str(one), str(other), "--draws", "50", "--out", str(tmp_path / "compared")]
    assert run_command([*words, "--json"]) == 0
    found = json.loads(capfd.readouterr().out)

    assert [held["run"] for held in found["runs"]] == [str(one), str(other)]
    assert [(held["a"], held["b"]) for held in found["differences"]] == [(str(one), str(other))]
    assert json.loads((tmp_path / "compared" / "comparison.json").read_text())["format"] == (
        "cxr_records comparison"
    )
    assert "other less one" in (tmp_path / "compared" / "report.html").read_text()
    assert run_command(words) == 0
    assert "other less" in capfd.readouterr().out


# What may be claimed


def test_a_split_is_official_by_its_images_and_not_by_its_name(dataset, monkeypatch):
    manifest = read_manifest(str(dataset))
    names = sorted(split_records(str(dataset), "test").image_ids)
    monkeypatch.setattr(claims, "OFFICIAL_TEST", list_digest(names))
    official = {**manifest, "split_origin": {**manifest["split_origin"], "official": True}}

    assert claims.claim_of_run(str(dataset), official, "test")["official"] is True
    assert claims.claim_of_run(str(dataset), official, "validation")["official"] is False
    assert claims.claim_of_run(str(dataset), manifest, "test")["official"] is False
    monkeypatch.setattr(claims, "OFFICIAL_TEST", list_digest([*names, "one_more.png"]))
    part = claims.claim_of_run(str(dataset), official, "test")
    assert part["official"] is False
    assert part["text"] == f"{len(names)} of the 25,596 images of NIH's official test split: a part"


def test_the_official_images_stay_official_where_the_task_leaves_some_out(build, tmp_path, monkeypatch):
    build(tmp_path / "data", task="multiclass")
    build(tmp_path / "all")
    names = split_records(str(tmp_path / "all"), "test").image_ids
    monkeypatch.setattr(claims, "OFFICIAL_TEST", list_digest(list(names)))
    manifest = read_manifest(str(tmp_path / "data"))
    manifest["split_origin"]["official"] = True

    assert claims.claim_of_run(str(tmp_path / "data"), manifest, "test")["official"] is True


def test_the_sizes_of_chexnets_split_are_never_official(dataset, monkeypatch):
    manifest = read_manifest(str(dataset))
    manifest["split_origin"]["official"] = True
    for held, size in zip(manifest["splits"].values(), (78_468, 11_219, 22_433), strict=True):
        held["images"] = size

    found = claims.claim_of_run(str(dataset), manifest, "test")

    assert found["official"] is False
    assert "the size of CheXNet's random split" in found["text"]


def test_a_table_of_all_official_images_is_official(nih):
    names = gzip.decompress((nih / "test_list.txt.gz").read_bytes()).decode().split()

    assert claims.claim_of_table(names, None)["official"] is True
    assert claims.claim_of_table(names[:-1], names)["official"] is False


# Bad use


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "give runs to evaluate, or --predictions TABLE --metadata TABLE --out DIR"),
        (["{run}", "--predictions", "s.csv"], "give runs to evaluate, or --predictions TABLE"),
        (
            ["--predictions", "s.csv"],
            "--predictions needs --metadata TABLE (labels and patients) and --out DIR",
        ),
        (
            ["{run}", "--test-list", "f"],
            "--metadata, --test-list, --task and --trained-on go with --predictions",
        ),
        (["{run}", "--draws", "-1"], "found --draws -1; expected 0 or more"),
        (["{run}", "--out", "x"], "--out goes with --predictions, or with several runs to compare"),
        (
            ["{run}", "--split", "tset"],
            "{run}/predictions.parquet: found no scores for split tset; it has test,",
        ),
        (["nowhere"], "nowhere is no run: found no config.json in it; cxr-records train makes one"),
    ],
)
def test_a_mistake_is_one_line(scored_run, capfd, words, message):
    run = str(scored_run())

    assert run_command(["evaluate", *(word.format(run=run) for word in words)]) == 2

    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith(f"Error: {message.format(run=run)}")


def test_a_file_of_somebody_else_is_not_replaced(scored_run, capfd):
    run = scored_run()
    (run / "metrics.json").write_text("{}")

    assert run_command(["evaluate", str(run), "--draws", "0"]) == 2
    assert "metrics.json is there and was not written by this command" in capfd.readouterr().err
    assert (run / "metrics.json").read_text() == "{}"


def test_without_the_dataset_leaks_are_not_looked_for_and_that_is_said(scored_run, dataset, tmp_path):
    run = scored_run()
    shutil.copytree(dataset, tmp_path / "moved")
    described = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps(described | {"dataset": str(tmp_path / "gone")}))

    found = evaluate_run(str(run), draws=0)

    assert "the run's dataset is not at hand: leaks were not looked for" in found["warnings"]
    assert found["split_claim"]["official"] is False


def test_classes_must_be_the_same_to_be_compared(scored_run, build, tmp_path):
    one, other = scored_run("one"), scored_run("other")
    described = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(described | {"task": "binary:Effusion"}))

    with pytest.raises(UsageError, match="cannot be compared: found classes"):
        compare_runs([str(one), str(other)], draws=0)
