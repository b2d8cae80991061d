"""Evaluation: the real numbers of a real model, intervals, claims, leaks, runs side by side."""

import dataclasses
import inspect
import json
import re
import shutil
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import manifest_json, write_manifest
from evaluations import NAMES, make_predictions

from cxr_records.cli import run as run_command
from cxr_records.dataset import open_dataset
from cxr_records.errors import CxrError, UsageError
from cxr_records.findings import FINDINGS
from cxr_records.metadata import read_metadata
from cxr_records.splits import list_digest
from cxr_records.trainers import digests, runs
from cxr_records.trainers.config import TrainConfig
from cxr_records.trainers.evaluation import claims
from cxr_records.trainers.evaluation.bootstrap import draws_of
from cxr_records.trainers.evaluation.evaluate import compare_runs, evaluate, evaluate_run, evaluate_table
from cxr_records.trainers.evaluation.metrics import Ranking, youden_threshold
from cxr_records.trainers.evaluation.predictions import write_predictions
from cxr_records.trainers.evaluation.results import Evaluation, Identity, ImageTable, Interval

# Of a DenseNet-121 on CheXNet's kind of split, as its authors and we have reproduced them (jrzech, 2022).
REAL_AUROC = {
    "Atelectasis": 0.818, "Cardiomegaly": 0.909, "Effusion": 0.883, "Infiltration": 0.716, "Mass": 0.838,
    "Nodule": 0.776, "Pneumonia": 0.762, "Pneumothorax": 0.878, "Consolidation": 0.800, "Edema": 0.895,
    "Emphysema": 0.932, "Fibrosis": 0.825, "Pleural_Thickening": 0.789, "Hernia": 0.918,
}  # fmt: skip


@pytest.fixture(scope="module")
def real(nih) -> Callable[..., Evaluation]:
    def real(**options) -> Evaluation:
        table, images = nih / "densenet121_predictions.csv.gz", nih / "Data_Entry_2017_v2020.csv.gz"
        return evaluate_table(str(table), str(images), **{"draws": 0, **options})

    return real


def write_config(run: Path, content: dict) -> None:
    """Writes a changed config.json with the checksum that it has."""
    content.pop("checksum", None)
    (run / "config.json").write_bytes(digests.sealed(content))


@pytest.fixture
def scored_run(dataset, tmp_path) -> Callable[..., Path]:
    """Makes a finished run without training: scores that know the labels, and noise."""

    def scored_run(
        name: str = "run", noise: float = 1.0, seed: int = 0, task: str | None = None, **config
    ) -> Path:
        run = tmp_path / name
        run.mkdir()
        opened = open_dataset(dataset).as_task(task)
        settings = TrainConfig(**{"loss": "bce", **config})
        runs.begin(runs.describe(str(run), opened, settings, {"keras": "3"}))
        random, tables = np.random.default_rng(seed), []
        for split in ("validation", "test"):
            records = opened.split(split)
            labels = runs.class_rows(opened.task, records.labels).astype(np.int8)
            logits = 2 * labels - 3 + random.normal(scale=noise, size=labels.shape)
            columns = {
                "split": split, "image_id": records.image_ids, "patient_id": records.patient_ids,
                "view": records.views, "sex": records.sexes, "age_years": records.ages_years,
            }  # fmt: skip
            for place, finding in enumerate(runs.score_names(opened.task)):
                columns[f"prob_{finding}"] = (1 / (1 + np.exp(-logits[:, place]))).astype(np.float32)
                columns[f"label_{finding}"] = labels[:, place]
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

    assert {name: entry.value for name, entry in found.auroc.items()} == pytest.approx(REAL_AUROC, abs=0.001)
    assert found.macro_auroc.value == pytest.approx(0.838, abs=0.001)
    assert (found.identity.images, found.identity.patients) == (22_433, 6_187)
    assert found.identity.table.dialect == "v2020"
    assert not found.comparison.comparable
    assert found.split_claim.text == (
        "22,433 images, as many as in CheXNet's random split (78,468 / 11,219 / 22,433), which is not NIH's "
        "official one"
    )
    assert "fewer than 30 positive patients, do not rank by: Hernia (29)" in found.warnings


@pytest.mark.parametrize(
    ("file", "images", "area"), [("train_val_list", 17_220, 0.836), ("test_list", 5_213, 0.818)]
)
def test_the_same_model_is_better_on_the_official_train_part(nih, real, file, images, area):
    found = real(test_list=str(nih / f"{file}.txt.gz"))

    assert found.identity.images == images
    assert found.macro_auroc.value == pytest.approx(area, abs=0.001)
    assert not found.split_claim.official


def test_a_part_of_the_official_list_is_called_a_part(nih, real):
    found = real(test_list=str(nih / "test_list.txt.gz"))

    assert found.split_claim.text == "5,213 of the 25,596 images of NIH's official test list, a part"
    assert (
        found.warnings[0]
        == "20,383 of the 25,596 images of the test list have no scores (first: 00000003_000.png)"
    )


@pytest.mark.parametrize(("task", "area"), [("binary", 0.718), ("binary:Pneumothorax", 0.886)])
def test_derived_binary_tasks_of_the_real_table(nih, real, task, area):
    found = real(test_list=str(nih / "test_list.txt.gz"), task=task)

    (entry,) = found.auroc.values()
    assert entry.value == pytest.approx(area, abs=0.001)
    part = "5,213 of the 25,596 images of NIH's official test list, a part"
    taking = f"; {found.identity.images:,} of them take part in task {task}"
    assert found.split_claim.text == part + taking * (found.identity.images < 5_213)
    assert (found.identity.images < 5_213) == (task != "binary")


def test_the_derived_multiclass_task_of_the_real_table(nih, real):
    found = real(test_list=str(nih / "test_list.txt.gz"), task="multiclass").multiclass

    assert found.balanced_accuracy.value == pytest.approx(0.323, abs=0.001)
    assert found.prior_corrected_balanced_accuracy.value == pytest.approx(0.409, abs=0.001)
    assert np.array(found.confusion).shape == (14, 14)
    assert found.accuracy == pytest.approx(0.478, abs=0.001)


def test_intervals_over_patients_contain_the_value_and_differ_from_those_over_images(real):
    found = real(draws=200)

    widths = {}
    for name, entry in found.auroc.items():
        assert entry.low < entry.value < entry.high
        widths[name] = (entry.high - entry.low) / (entry.image_high - entry.image_low)
    # A patient with pneumothorax has many images of it; one with pneumonia few.
    assert widths["Pneumothorax"] > 1.2
    assert real(draws=200).auroc == found.auroc


# Runs


def test_a_run_is_evaluated_with_thresholds_and_slopes_of_validation(scored_run, dataset):
    found = evaluate_run(str(scored_run()), draws=50)

    records = open_dataset(dataset).split("test")
    assert found.identity.images == len(records)
    effusion = found.classes["Effusion"]
    assert effusion.positives == int(records.labels[:, 2].sum())
    assert effusion.operating_point.chosen_on == "validation"
    assert found.calibration.undone == ("how often it saw each class",)
    assert found.calibration.fitted_on == "validation"
    assert found.leaks == ()
    assert found.split_claim.official is False
    originals = (open_dataset(dataset).split("train").copies == 0).sum()
    assert found.baselines.fitted_on == f"{originals} original images of the training split"
    assert found.baselines.follow_up_numbers == "in the names of images"
    groups = [(each.by, each.group) for each in found.subgroups]
    assert ("view", "PA") in groups
    assert ("sex", "F") in groups
    for by in ("view", "sex", "age"):
        assert sum(each.images for each in found.subgroups if each.by == by) == len(records)


def test_a_thousand_draws_of_seed_0_are_what_is_drawn_unless_told_otherwise():
    for function in (evaluate, evaluate_run, evaluate_table, compare_runs):
        defaults = {name: each.default for name, each in inspect.signature(function).parameters.items()}
        assert (defaults["draws"], defaults["seed"]) == (1000, 0)


def test_an_evaluation_says_what_was_measured(scored_run, dataset):
    run = scored_run()

    identity = evaluate_run(str(run), draws=0, seed=3, date="2026-01-31").identity

    opened = open_dataset(dataset)
    records = opened.split("test")
    assert identity == Identity(
        name="run",
        run=str(run),
        dataset=opened.path,
        dataset_id=opened.id,
        model="small_cnn",
        task="multilabel",
        predictions_sha256=sha256((run / "predictions.parquet").read_bytes()).hexdigest(),
        versions={"keras": "3"},
        table=ImageTable(opened.manifest.table.dialect, opened.manifest.table.sha256),
        kind="multilabel",
        split="test",
        images=len(records),
        patients=len(set(records.patient_ids)),
        draws=0,
        seed=3,
        drawn="all",
        date="2026-01-31",
    )


def test_a_class_without_positives_is_left_out_of_the_mean_and_said(scored_run):
    run = scored_run()
    table = pd.read_parquet(run / "predictions.parquet")
    table["label_Hernia"] = 0
    write_predictions(str(run / "predictions.parquet"), table)

    found = evaluate_run(str(run), draws=20)

    assert found.auroc["Hernia"] == Interval(None)
    assert "Hernia: no positive image, so no measure" in found.warnings
    assert found.macro_lacks == ("Hernia",)
    others = [entry.value for entry in found.auroc.values() if entry.value is not None]
    assert found.macro_auroc.value == pytest.approx(np.mean(others), abs=1e-6)
    assert found.curves["Hernia"] is None


def test_a_table_without_a_class_has_a_mean_of_the_others_and_says_so(lookalike, tmp_path, capfd):
    names = read_metadata(str(lookalike.metadata)).table["image_id"]
    random = np.random.default_rng(0).random((len(names), 14))
    scores = pd.DataFrame(random, columns=list(FINDINGS)).assign(image=names)
    scores.drop(columns="Mass").to_csv(tmp_path / "s.csv", index=False)
    words = ["evaluate", "--predictions", tmp_path / "s.csv", "--metadata", lookalike.metadata]
    words = [str(word) for word in [*words, "--out", tmp_path / "out", "--draws", "0"]]

    assert run_command(words) == 0
    out = capfd.readouterr().out
    assert "\nmacro (13 of 14 classes: no Mass) " in out
    assert "\ncalibration error (13 of 14 classes: no Mass) " in out
    assert "; compare with no published result\n" in out
    assert run_command([*words, "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["macro_lacks"] == ["Mass"]
    assert json.loads((tmp_path / "out" / "metrics.json").read_text())["macro_lacks"] == ["Mass"]
    assert "macro (13 of 14 classes: no Mass)" in (tmp_path / "out" / "report.html").read_text()


def test_what_is_odd_in_the_table_of_images_stands_first_in_the_evaluation(lookalike, tmp_path, monkeypatch):
    images = read_metadata(str(lookalike.metadata))
    odd = dataclasses.replace(images, warnings=("7 ages are unknown",))
    monkeypatch.setattr("cxr_records.trainers.evaluation.evaluate.read_metadata", lambda path: odd)
    scores = pd.DataFrame({"image": images.table["image_id"], "Mass": range(len(images))})
    scores.to_csv(tmp_path / "s.csv", index=False)

    found = evaluate_table(str(tmp_path / "s.csv"), str(lookalike.metadata), draws=0)

    assert found.warnings[0] == "7 ages are unknown"


def test_a_mean_of_fewer_classes_is_not_set_beside_published_ones(lookalike, tmp_path, monkeypatch):
    images = read_metadata(str(lookalike.metadata))
    names = images.table["image_id"]
    monkeypatch.setattr(claims, "OFFICIAL_TEST", list_digest(list(names)))
    random = np.random.default_rng(0).random((len(names), 14))
    scores = pd.DataFrame(random, columns=list(FINDINGS)).assign(image=names)

    def evaluated(table: pd.DataFrame) -> Evaluation:
        table.to_csv(tmp_path / "s.csv", index=False)
        return evaluate_table(str(tmp_path / "s.csv"), str(lookalike.metadata), draws=0)

    whole, lacking = evaluated(scores), evaluated(scores.drop(columns="Mass"))
    assert images.findings.any(axis=0).all()
    drawings = "Its images are drawings, and theirs are X-rays of patients."
    assert (whole.comparison.reasons, whole.macro_lacks) == ((drawings,), ())
    assert lacking.split_claim.official
    fewer = "Its mean is over 13 of the 14 findings, without Mass; theirs is over all."
    assert (lacking.comparison.reasons, lacking.macro_lacks) == ((drawings, fewer), ("Mass",))


def test_scored_images_that_were_trained_on_are_found(scored_run, dataset, tmp_path, capfd):
    run = scored_run(task="binary:Effusion")
    table = pd.read_parquet(run / "predictions.parquet")
    trained = open_dataset(dataset).split("train")
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
    written = Evaluation.from_json(json.loads((run / "metrics.json").read_text()))
    assert len(written.leaks) == 2
    assert not written.comparison.comparable
    assert "Leak: 1 of" in (run / "report.html").read_text()


def test_a_picture_that_was_trained_on_under_another_name_ends_the_command_with_3(
    scored_run, lookalike, copied_dataset, tmp_path, capfd
):
    opened = open_dataset(copied_dataset)
    tested, trained = opened.split("test"), opened.split("train")
    twin, test_image = trained.image_ids[0], opened.as_task("binary:Effusion").split("test").image_ids[0]
    images, splits = zip(*sorted([(twin, "train"), (test_image, "test")]), strict=True)
    same = {"images": images, "splits": splits, "patients": [1, 2], "same": "pixels"}
    write_manifest(copied_dataset, manifest_json(copied_dataset) | {"duplicates": [same]})
    run = scored_run(task="binary:Effusion")
    config = json.loads((run / "config.json").read_text())
    write_config(run, config | {"dataset": str(copied_dataset)})
    pd.DataFrame({"image": tested.image_ids, "Mass": range(len(tested))}).to_csv(tmp_path / "s.csv")
    table = ["--predictions", tmp_path / "s.csv", "--metadata", lookalike.metadata]
    table += ["--trained-on", copied_dataset, "--out", tmp_path / "out"]

    for words in ([run], table):
        assert run_command(["evaluate", *map(str, words), "--draws", "0"]) == 3
        err = capfd.readouterr().err
        assert (
            f"scored images are the same picture as one that {copied_dataset} trained or chose settings on"
            in err
        )
        assert f"{test_image}, which is {twin} of train" in err


def test_a_table_is_checked_for_leaks_against_a_dataset(lookalike, dataset, tmp_path, capfd):
    names = [
        *open_dataset(dataset).split("test").image_ids,
        open_dataset(dataset).split("train").image_ids[3],
    ]
    pd.DataFrame({"image": names, "Mass": 0.5}).to_csv(tmp_path / "s.csv", index=False)
    words = ["evaluate", "--predictions", tmp_path / "s.csv", "--metadata", lookalike.metadata]
    words += ["--trained-on", dataset, "--out", tmp_path / "out", "--draws", "0"]

    assert run_command([str(word) for word in words]) == 3
    assert "1 of" in capfd.readouterr().err


@pytest.mark.parametrize("task", ["multilabel", "binary"])
def test_a_table_is_claimed_by_the_images_that_are_listed_and_scored(lookalike, tmp_path, task):
    names = read_metadata(str(lookalike.metadata)).table["image_id"].tolist()
    scores = pd.DataFrame(0.5, index=range(10), columns=list(FINDINGS)).assign(image=names[:10])
    scores.to_csv(tmp_path / "s.csv", index=False)
    (tmp_path / "list.txt").write_text("\n".join(names[5:20]))

    listed = evaluate_table(
        str(tmp_path / "s.csv"), str(lookalike.metadata), task, str(tmp_path / "list.txt"), draws=0
    )
    all_scored = evaluate_table(str(tmp_path / "s.csv"), str(lookalike.metadata), task, draws=0)

    assert (listed.identity.split, listed.identity.images) == ("test list", 5)
    assert listed.split_claim.list_sha256 == list_digest(names[5:10])
    assert (all_scored.identity.split, all_scored.identity.images) == ("all scored images", 10)
    assert all_scored.split_claim.list_sha256 == list_digest(names[:10])


def test_runs_are_compared_on_the_same_draws(scored_run):
    good, bad = (
        str(scored_run(name, noise, seed, task="binary"))
        for name, noise, seed in (("good", 0.5, 0), ("bad", 4.0, 1))
    )

    (found,) = compare_runs([bad, good], draws=100)
    (same,) = compare_runs([good, good], draws=100)

    areas = [evaluate_run(run, draws=0).macro_auroc.value for run in (bad, good)]
    assert found.macro_auroc.value == pytest.approx(areas[1] - areas[0], abs=1e-5)
    assert 0 < found.macro_auroc.low < found.macro_auroc.value
    assert (same.macro_auroc.value, same.macro_auroc.low, same.macro_auroc.high) == (0.0, 0.0, 0.0)
    assert (same.macro_auroc.p, same.macro_auroc.undecided) == (1.0, "16 patients, fewer than 30")


def test_the_command_compares_runs_and_writes_both_files(scored_run, tmp_path, capfd):
    task = "binary:Effusion"  # of one class: plots take long
    one, other = scored_run("one", task=task), scored_run("other", noise=3.0, task=task)

    words = ["evaluate", str(one), str(other), "--draws", "50", "--out", str(tmp_path / "compared")]
    assert run_command([*words, "--json"]) == 0
    found = json.loads(capfd.readouterr().out)

    assert [each["run"] for each in found["runs"]] == [str(one), str(other)]
    assert [(each["a"], each["b"]) for each in found["differences"]] == [(str(one), str(other))]
    assert json.loads((tmp_path / "compared" / "comparison.json").read_text())["format"] == (
        "cxr_records comparison"
    )
    assert "other less one" in (tmp_path / "compared" / "report.html").read_text()
    assert (found["comparisons"], len(found["said"])) == (1, 1)
    assert run_command(words) == 0
    out = capfd.readouterr().out
    assert f"{other} less {one}: macro " in out
    assert (
        "1 comparison of a class in 1 pair of runs: p-values (two-sided, from the paired draws of patients) "
        "are adjusted over these 1 by Holm's method." in out
    )


def test_with_ten_test_patients_the_command_and_the_report_say_that_nothing_is_decided(
    scored_run, tmp_path, capfd
):
    task = "binary:Effusion"
    one, other = scored_run("one", task=task), scored_run("other", noise=3.0, seed=1, task=task)

    words = ["evaluate", str(one), str(other), "--draws", "200", "--out", str(tmp_path / "c")]
    assert run_command(words) == 0

    patients = evaluate_run(str(one), draws=0).identity.patients
    assert patients < 15
    out = capfd.readouterr().out
    (line,) = [line for line in out.splitlines() if line.startswith(f"{other} less {one}: macro ")]
    assert line.endswith(f"; not decided: {patients} patients, fewer than 30")
    report = (tmp_path / "c" / "report.html").read_text()
    assert f"not decided: {patients} patients, fewer than 30" in report


@pytest.mark.parametrize(("images", "said"), [(30, "15 patients"), (2, "1 patient"), (58, "29 patients")])
def test_fewer_than_thirty_patients_decide_no_comparison_and_that_is_said_first(images, said):
    found = evaluate(make_predictions(n=images), draws=0)

    assert found.warnings[0] == (
        f"{said}, fewer than 30: no comparison of these scores with others is decided"
    )
    assert "decided" not in "".join(evaluate(make_predictions(n=60), draws=0).warnings)


def test_a_mean_that_too_few_draws_hold_has_no_interval_and_says_why(scored_run):
    run = scored_run()
    table = pd.read_parquet(run / "predictions.parquet")
    tested = table.index[table["split"] == "test"]
    table.loc[tested, "label_Hernia"] = 0
    table.loc[tested[0], "label_Hernia"] = 1  # of one patient, whom a third of the draws lack
    write_predictions(str(run / "predictions.parquet"), table)

    found = evaluate_run(str(run), draws=200)

    macro = found.macro_auroc
    assert (macro.low, macro.high) == (None, None)
    beside = [said for said in found.warnings if said.startswith("whether the macro AUROC of ")]
    assert len(beside) == 1
    assert re.search(r"is not decided: no interval, only \d\d?% of the draws hold every class$", beside[0])
    assert re.fullmatch(r"only \d\d?% of the draws hold every class", macro.no_interval)


def test_thresholds_are_those_of_validation_whatever_is_scored():
    scored, validation = make_predictions(seed=2), make_predictions(seed=3, split="validation")

    on_validation, on_scored = evaluate(scored, validation, draws=0), evaluate(scored, draws=0)

    for place, name in enumerate(NAMES):
        chosen, itself = (each.classes[name].operating_point for each in (on_validation, on_scored))
        expected = youden_threshold(validation.labels[:, place], validation.scores[:, place])
        assert (chosen.threshold, chosen.chosen_on) == (expected, "validation")
        assert itself.chosen_on == "test (no validation scores)"
        assert itself.threshold == youden_threshold(scored.labels[:, place], scored.scores[:, place])
        assert itself.threshold != chosen.threshold
        says, truth = scored.scores[:, place] >= chosen.threshold, scored.labels[:, place] == 1
        shares = (truth[says], ~truth[~says], says[truth], ~says[~truth])
        found = (chosen.ppv, chosen.npv, chosen.sensitivity, chosen.specificity)
        assert [each.value for each in found] == pytest.approx([share.mean() for share in shares], abs=1e-6)


def test_macro_intervals_are_those_of_the_mean_in_each_draw():
    scored = make_predictions(n=30)

    found = evaluate(scored, draws=60)

    means, rankings = [], [Ranking(y, s) for y, s in zip(scored.labels.T, scored.scores.T, strict=True)]
    for weights in draws_of(scored.patient_ids, 60, 0, "patients"):
        means += np.mean([ranking.counts(weights).auroc() for ranking in rankings], axis=0).tolist()
    low, high = np.percentile(means, 2.5), np.percentile(means, 97.5)
    assert (found.macro_auroc.low, found.macro_auroc.high) == pytest.approx((low, high), abs=1e-6)


def test_a_class_is_not_ranked_below_thirty_positive_patients_and_ranked_from_thirty_on():
    scored = make_predictions(names=("Mass", "Nodule"), n=120)
    scored.labels[:] = 0
    scored.labels[:58, 0], scored.labels[:60, 1] = 1, 1  # two images of a patient

    found = evaluate(scored, draws=0)

    assert [each.positive_patients for each in found.classes.values()] == [29, 30]
    assert found.classes["Mass"].warnings == ("29 positive patients, fewer than 30: do not rank by it",)
    assert found.classes["Nodule"].warnings == ()
    assert found.warnings[0] == "fewer than 30 positive patients, do not rank by: Mass (29)"


def test_scores_that_are_no_probabilities_are_ranked_and_not_calibrated():
    scored = make_predictions()

    found = evaluate(dataclasses.replace(scored, scores=scored.scores * 10 - 5), draws=0)

    assert found.calibration is None
    assert found.auroc == evaluate(scored, draws=0).auroc
    scores = scored.scores * 10 - 5
    outside = (scores < 0) | (scores > 1)
    row, place = np.argwhere(outside)[0]
    assert found.warnings[0] == (
        f"{outside.sum():,} of {outside.size:,} scores are outside 0 to 1 (first: {scores[row, place]:g}, "
        f"{scored.names[place]} of {scored.image_ids[row]}), and so no probabilities: ranked, but "
        "calibration is not measured"
    )


def test_a_few_scores_outside_0_to_1_may_be_marks_of_missing_ones():
    scored = make_predictions(names=("Mass", "Nodule"))
    scored.scores[7, 1] = -1

    assert evaluate(scored, draws=0).warnings[0] == (
        f"1 of {scored.scores.size:,} scores are outside 0 to 1 (first: -1, Nodule of "
        f"{scored.image_ids[7]}), and so no probabilities: ranked, but calibration is not measured; if they "
        "mark missing scores, leave these cells empty"
    )


def test_prior_correction_divides_scores_by_their_means():
    scored = make_predictions("multiclass")
    skewed = dataclasses.replace(scored, mean_scores=np.array([0.01, 0.5, 0.49]))

    found = evaluate(skewed, draws=0).multiclass

    truth, choice = scored.labels.argmax(axis=1), (scored.scores / skewed.mean_scores).argmax(axis=1)
    expected = np.zeros((3, 3), int)
    np.add.at(expected, (truth, choice), 1)
    np.testing.assert_array_equal(found.prior_corrected_confusion, expected)
    assert found.prior_corrected_balanced_accuracy.value == pytest.approx(
        np.mean(expected.diagonal() / expected.sum(axis=1)), abs=1e-6
    )
    assert found.accuracy == pytest.approx((scored.scores.argmax(axis=1) == truth).mean(), abs=1e-6)
    assert found.not_prior_corrected is None


@pytest.mark.parametrize("loss", ["weighted_ce", "logit_adjusted"])
def test_nothing_is_prior_corrected_twice(scored_run, loss):
    run = scored_run(task="multiclass", loss=loss)

    found = evaluate_run(str(run), draws=0).multiclass

    assert found.prior_corrected_balanced_accuracy is None
    assert found.prior_corrected_confusion is None
    assert found.not_prior_corrected == f"the loss {loss} has made the classes count alike"
    assert found.balanced_accuracy.value is not None


# Bad use


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "give runs to evaluate, or --predictions TABLE --metadata TABLE --out DIR"),
        (["{run}", "--predictions", "s.csv"], "give runs to evaluate, or --predictions TABLE"),
        (
            ["--predictions", "s.csv"],
            "--predictions needs --metadata TABLE (labels and patients) and --out DIR; in place of "
            "--metadata, --labels TABLE will do",
        ),
        (
            ["--predictions", "s.csv", "--metadata", "t.csv", "--out", "o", "--split", "validation"],
            "--split goes with runs; --test-list chooses images of --predictions",
        ),
        (
            ["{run}", "--test-list", "f"],
            "--metadata, --test-list, --task and --trained-on go with --predictions",
        ),
        (["{run}", "{run}/"], "found a run twice among"),
        (["{run}", "--draws", "-1"], "found --draws -1; expected 0 or more"),
        (
            ["{run}", "--out", "x"],
            "--out goes with --predictions, with --labels, or with several runs to compare",
        ),
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
    write_config(run, described | {"dataset": str(tmp_path / "gone")})

    found = evaluate_run(str(run), draws=0)

    assert (
        f"the run's dataset is not at hand ({tmp_path}/gone: no such folder): leaks were not looked for, and "
        "baselines are fitted on the scored images, cross-fitted by patient" in found.warnings
    )
    assert found.baselines.fitted_on == "the scored images, cross-fitted by patient in 5 folds"
    assert found.split_claim.official is False
    (run / runs.PREDICTIONS_FILE).unlink()
    with pytest.raises(CxrError) as error:
        evaluate_run(str(run), draws=0)
    assert str(error.value) == (
        f"{run} holds no scores (predictions.parquet), and they cannot be made: {tmp_path}/gone: "
        "no such folder"
    )


def test_classes_must_be_the_same_to_be_compared(scored_run, build, tmp_path):
    one, other = scored_run("one"), scored_run("other")
    described = json.loads((other / "config.json").read_text())
    write_config(other, described | {"task": "binary:Effusion"})

    with pytest.raises(UsageError, match="cannot be compared: found classes"):
        compare_runs([str(one), str(other)], draws=0)


# The date


@pytest.mark.parametrize(
    ("words", "epoch", "date"),
    [
        (["--date", "2026-01-31"], None, "2026-01-31"),
        (["--date", "2026-01-31"], "86400", "2026-01-31"),
        ([], "86400", "1970-01-02"),
    ],
)
def test_a_report_bears_the_date_that_it_is_told(scored_run, monkeypatch, capfd, words, epoch, date):
    run = scored_run(task="binary:Effusion")
    if epoch:
        monkeypatch.setenv("SOURCE_DATE_EPOCH", epoch)

    assert run_command(["evaluate", str(run), "--draws", "0", *words]) == 0

    assert json.loads((run / "metrics.json").read_text())["identity"]["date"] == date
    page = (run / "report.html").read_bytes()
    assert f'<time datetime="{date}">{date}</time>'.encode() in page
    assert run_command(["evaluate", str(run), "--draws", "0", *words]) == 0
    assert (run / "report.html").read_bytes() == page


@pytest.mark.parametrize(
    ("words", "epoch", "message"),
    [
        (["--date", "31.1.2026"], None, "--date 31.1.2026: expected a day such as 2026-01-31"),
        ([], "yesterday", "SOURCE_DATE_EPOCH=yesterday: expected seconds since 1970"),
    ],
)
def test_a_date_that_is_none_is_one_line(scored_run, monkeypatch, capfd, words, epoch, message):
    if epoch:
        monkeypatch.setenv("SOURCE_DATE_EPOCH", epoch)

    assert run_command(["evaluate", str(scored_run(task="binary:Effusion")), "--draws", "0", *words]) == 2

    assert message in capfd.readouterr().err.splitlines()[-1]
