"""Labels in place of NIH's: what is read, what counts, what is said."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from evaluations import NAMES, make_predictions
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from cxr_records.cli import run as run_command
from cxr_records.dataset import open_dataset
from cxr_records.errors import CxrError, UsageError
from cxr_records.findings import FINDINGS, format_findings
from cxr_records.metadata import read_metadata
from cxr_records.tasks import parse_task
from cxr_records.trainers import runs
from cxr_records.trainers.config import TrainConfig
from cxr_records.trainers.evaluation.evaluate import compare_runs, evaluate, evaluate_run, evaluate_table
from cxr_records.trainers.evaluation.given_labels import read_labels, relabel
from cxr_records.trainers.evaluation.predictions import UNJUDGED, Predictions, write_predictions
from cxr_records.trainers.evaluation.results import GivenLabels, Interval


def write(path: Path, text: str) -> str:
    path.write_text(text)
    return str(path)


@pytest.fixture(scope="module")
def scores(lookalike, tmp_path_factory) -> str:
    """A table of scores of all images of the look-alike set."""
    names = read_metadata(str(lookalike.metadata)).table["image_id"]
    table = pd.DataFrame(np.random.default_rng(0).random((len(names), 14)).round(3), columns=list(FINDINGS))
    path = tmp_path_factory.mktemp("scores") / "s.csv"
    table.assign(image=names).to_csv(path, index=False)
    return str(path)


@pytest.fixture
def scored_run(dataset, tmp_path) -> Callable[..., Path]:
    """Makes a finished run without training."""

    def scored_run(name: str = "run", task: str | None = None, seed: int = 0) -> Path:
        run, opened = tmp_path / name, open_dataset(dataset).as_task(task)
        run.mkdir()
        runs.begin(runs.describe(str(run), opened, TrainConfig(loss="bce"), {"keras": "3"}))
        random, tables = np.random.default_rng(seed), []
        for split in ("validation", "test"):
            records = opened.split(split)
            labels = runs.class_rows(opened.task, records.labels).astype(np.int8)
            columns = {
                "split": split, "image_id": records.image_ids, "patient_id": records.patient_ids,
                "view": records.views, "sex": records.sexes, "age_years": records.ages_years,
            }  # fmt: skip
            for place, finding in enumerate(runs.score_names(opened.task)):
                noise = random.random(len(labels))
                columns[f"prob_{finding}"] = (0.3 * labels[:, place] + 0.7 * noise).astype(np.float32)
                columns[f"label_{finding}"] = labels[:, place]
            tables.append(pd.DataFrame(columns))
        write_predictions(str(run / "predictions.parquet"), pd.concat(tables, ignore_index=True))
        return run

    return scored_run


# What counts


@settings(max_examples=4)
@given(arrays.arrays(np.int64, (60, 3), elements=st.sampled_from([0, 0, 1, UNJUDGED]), fill=st.nothing()))
def test_a_class_is_measured_on_the_images_that_were_judged_for_it_and_on_no_other(labels):
    labels[:3], labels[-3:] = 0, 1  # of every class some are judged
    scored = dataclasses.replace(make_predictions(), labels=labels)
    validation = make_predictions(seed=1, split="validation")
    whole = evaluate(scored, validation, draws=0)

    for place, name in enumerate(NAMES):
        rows = labels[:, place] >= 0
        alone = evaluate(scored.of_rows(rows).of_classes([name]), validation.of_classes([name]), draws=0)
        assert whole.classes[name] == alone.classes[name]
        assert whole.classes[name].images == rows.sum()
        assert whole.auroc[name] == alone.auroc[name]
        assert whole.auprc[name] == alone.auprc[name]
        assert whole.curves[name] == alone.curves[name]
        assert whole.label_noise.classes[name] == alone.label_noise.classes[name]
        assert whole.within_view.auroc[name] == alone.within_view.auroc[name]
        assert whole.baselines.metadata.auroc[name] == alone.baselines.metadata.auroc[name]
        ours, theirs = whole.calibration.classes[name], alone.calibration.classes[name]
        assert ours == theirs
        assert whole.decisions[name] == alone.decisions[name]
        groups = {(each.by, each.group): each for each in alone.subgroups}
        for each in whole.subgroups:
            if expected := groups.get((each.by, each.group)):
                assert each.auroc[name] == expected.auroc[name]
                assert each.operating_points[name] == expected.operating_points[name]
            else:
                assert each.auroc[name].value is None
    shown = {(mistake.class_name, mistake.image_id) for mistake in whole.mistakes}
    row_of = {image: row for row, image in enumerate(scored.image_ids)}
    assert all(labels[row_of[image], NAMES.index(name)] >= 0 for name, image in shown)


def test_an_image_that_is_not_judged_changes_no_draw_of_its_class():
    """The same patients are drawn, and its score does not matter."""
    scored = make_predictions()
    scored.labels[::5, 0] = UNJUDGED
    before = evaluate(scored, draws=50)
    scored.scores[::5, 0] = 1 - scored.scores[::5, 0]
    after = evaluate(scored, draws=50)

    assert before.auroc == after.auroc
    assert before.macro_auroc == after.macro_auroc
    assert before.classes == after.classes


# Reading


WORDS = {
    1: ("1", "1.0", "yes", "Yes", "true", "TRUE", "positive", "Positive", "y"),
    0: ("0", "0.0", "no", "No", "false", "FALSE", "negative", "n"),
    UNJUDGED: ("", " "),
}


@given(st.lists(st.sampled_from([0, 1, UNJUDGED]), min_size=1, max_size=20), st.randoms())
def test_labels_are_read_in_whatever_words_and_separators(tmp_path_factory, labels, random):
    separator = random.choice(",;\t")
    header = separator.join(
        [random.choice(["Image Index", "image_id", "filename"]), "pleural thickening", "note"]
    )
    lines = [
        separator.join([f"img{place}.png", random.choice(WORDS[label]), "x"])
        for place, label in enumerate(labels)
    ]
    path = write(tmp_path_factory.mktemp("l") / "l.csv", "\n".join([header, *lines]) + "\n")

    if set(labels) == {UNJUDGED}:
        with pytest.raises(CxrError, match="found no label in any row"):
            read_labels(path)
        return
    found = read_labels(path)

    assert found.names == ("Pleural_Thickening",)
    assert found.labels[:, 0].tolist() == [label for label in labels if label != UNJUDGED]
    empty = labels.count(UNJUDGED)
    said = (f"{path}: {empty} of {len(labels)} rows have no label at all: left out",) if empty else ()
    assert found.warnings == said


@pytest.mark.parametrize("kind", ["xlsx", "parquet", "csv.gz"])
def test_labels_come_in_any_kind_of_file(tmp_path, kind):
    table = pd.DataFrame(
        {
            "image": ["a.png", "b.png", "c.png"],
            "patient": [1, 1, 2],
            "label_Mass": [True, False, None],
            "prob_Mass": [0.1, 0.2, 0.3],
            "Edema": [1, 0, 1],
        }
    )
    path = tmp_path / f"l.{kind}"
    {"xlsx": table.to_excel, "parquet": table.to_parquet, "csv.gz": table.to_csv}[kind](path, index=False)

    found = read_labels(str(path))

    assert found.names == ("Mass", "Edema")
    assert found.labels.tolist() == [[1, 1], [0, 0], [UNJUDGED, 1]]
    assert found.patients == ("1", "1", "2")


def test_nih_own_label_strings_judge_every_finding(lookalike):
    images = read_metadata(str(lookalike.metadata))

    found = read_labels(str(lookalike.metadata))

    place = {name: row for row, name in enumerate(found.image_ids)}
    rows = [place[name] for name in images.table["image_id"]]
    assert found.names == FINDINGS
    assert (found.labels[rows] == images.findings).all()
    own = found.images
    assert own.table["patient_id"].tolist() == images.table["patient_id"].tolist()
    assert own.table["view"].tolist() == images.table["view"].tolist()
    assert own.table["sex"].tolist() == images.table["sex"].tolist()
    assert own.table["age_years"].tolist() == images.table["age_years"].tolist()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "image,Masse,Tumour\na.png,1,0\n",
            "found columns image, Masse, Tumour; expected `labels` under 'Finding Labels', or under names of "
            "findings such as Atelectasis (columns of like names: Masse)",
        ),
        (
            "file_of,Mass\na.png,1\n",
            "found columns file_of, Mass; expected one of image names, such as image_id",
        ),
        ("image,Mass,mass\na.png,1,0\n", "found two columns of Mass: Mass and mass; remove one"),
        (
            "image,Mass,Finding Labels\na.png,1,Mass\n",
            "found both 'Finding Labels' and columns of findings (Mass); keep one kind in `labels`",
        ),
        (
            "image,Mass\na.png,1\nb.png,-1\n",
            "line 3 (image 'b.png'), column 'Mass': found '-1'; expected 1 or 0, yes or no, true or false, "
            "positive or negative, or an empty cell where nobody judged",
        ),
        ("image,Mass\na.png,0.7\n", "line 2 (image 'a.png'), column 'Mass': found '0.7'; expected 1 or 0"),
        (
            "image,Finding Labels\na.png,Masse\n",
            "line 2 (image 'a.png'), column 'Finding Labels': unknown finding 'Masse' (did you mean Mass?)",
        ),
        (
            "image,Mass\na.png,\n",
            "found no label in any row; expected 1 or 0, yes or no, or such, in `labels`",
        ),
        ("image,Mass\n", "found a header and no rows"),
    ],
)
def test_a_table_that_is_none_of_labels_is_refused_in_one_line(tmp_path, text, message):
    path = write(tmp_path / "l.csv", text)

    with pytest.raises(CxrError) as error:
        read_labels(path)
    assert str(error.value).startswith(path)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_labels_under_other_names_are_counted_as_not_read(tmp_path):
    table = pd.DataFrame({"image": ["a.png", "b.png"], "Mass": [1, 0], "pleural thickness": ["yes", "no"]})
    table = table.assign(Opacity=[1, ""], **{"No Finding": [0, 1], "Sex": ["", ""], "reader": [1, 2]})
    table.assign(Opacity=[1, 0]).to_csv(tmp_path / "l.csv", index=False)

    read = read_labels(str(tmp_path / "l.csv"))

    assert read.names == ("Mass",)
    assert read.warnings == (
        f"{tmp_path / 'l.csv'}: columns of labels that are under no name of a finding, and so not read: "
        f"pleural thickness, Opacity; findings are {', '.join(FINDINGS)}",
    )
    table[["image", "Mass", "No Finding"]].to_csv(tmp_path / "l.csv", index=False)
    assert read_labels(str(tmp_path / "l.csv")).warnings == ()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "image,patient,Mass\n00000001_000.png,1,1\n00000002_000.png,9,0\n",
            "line 3 (image '00000002_000.png'): found patient 9, the name says 2; the columns do not belong",
        ),
        (
            "image,patient,Mass\na.png,1,1\nb.png,,0\n",
            "line 3 (image 'b.png'): found no patient; expected one in each row, or no column of patients",
        ),
    ],
)
def test_patients_that_cannot_be_are_refused(tmp_path, text, message):
    with pytest.raises(CxrError, match=message.replace("(", r"\(").replace(")", r"\)")):
        _ = read_labels(write(tmp_path / "l.csv", text)).images


def test_patients_are_told_by_the_names_or_by_the_table_or_are_one_for_each_image(tmp_path):
    def patients(text: str) -> tuple[list[int], tuple[str, ...]]:
        images = read_labels(write(tmp_path / "l.csv", text)).images
        return images.table["patient_id"].tolist(), images.warnings

    assert patients("image,Mass\n00000007_000.png,1\n00000003_002.png,0\n") == ([3, 7], ())
    # No number of another hospital is taken for one of NIH's patients.
    assert patients("image,pid,Mass\na.png,P2,1\nb.png,P1,0\nc.png,P2,0\n") == (
        [1_000_001, 1_000_000, 1_000_001],
        (),
    )
    assert patients("image,Patient ID,Mass\na.png,7.0,1\nb.png,7,0\n")[0] == [1_000_000, 1_000_000]
    assert patients("image,Mass\na.png,1\nb.png,0\n") == (
        [1_000_000, 1_000_001],
        ("l.csv has no patients: each image counts as a patient of its own, so intervals may be too narrow",),
    )


# Tables of scores


def test_judged_images_of_nih_are_measured_by_their_new_labels(lookalike, scores, tmp_path):
    images = read_metadata(str(lookalike.metadata))
    names, mass = images.table["image_id"][:80], images.findings[:80, FINDINGS.index("Mass")].copy()
    mass[:12] = 1 - mass[:12]
    table = pd.DataFrame({"image": names, "Mass": mass.astype(object), "Effusion": 1})
    table["Effusion"] = images.findings[:80, FINDINGS.index("Effusion")].astype(object)
    table.loc[70:, "Effusion"] = ""
    table.to_csv(tmp_path / "judged.csv", index=False)

    found = evaluate_table(scores, str(lookalike.metadata), draws=20, labels=str(tmp_path / "judged.csv"))

    digest = found.identity.labels.sha256
    assert found.identity.labels == GivenLabels(
        "judged.csv", digest, {"Effusion": 10, "Mass": 0}, {"Effusion": 0, "Mass": 12},
        {"Effusion": 70, "Mass": 80},
    )  # fmt: skip
    others = ", ".join(name for name in FINDINGS if name not in ("Effusion", "Mass"))
    for text in (
        "70 of 150 scored images are not in judged.csv: left out",
        "labels are from judged.csv, not NIH's: compare with no published result",
        f"no labels for {others}: not measured",
        "not judged, so not counted for that class, of 80 images: Effusion 10",
        "against NIH's labels, Mass: 12 of 80 differ",
    ):
        assert text in found.warnings
    assert (found.classes["Mass"].images, found.classes["Mass"].positives) == (80, int(mass.sum()))
    assert found.classes["Effusion"].images == 70
    assert found.over == f" (2 of 14 classes: no {', '.join(others.split(', ')[:3])} and 9 more)"
    assert found.split_claim.official is False
    assert found.split_claim.text == "80 images with the labels of judged.csv, which are not NIH's"
    assert not found.comparison.comparable
    assert all(len(each) == 3 for each in found.label_noise.classes.values())
    assert found.identity.patients == images.table["patient_id"][:80].nunique()


def test_nih_labels_under_another_name_change_nothing_but_the_claim(lookalike, scores):
    plain = evaluate_table(scores, str(lookalike.metadata), draws=0)

    given_again = evaluate_table(scores, str(lookalike.metadata), draws=0, labels=str(lookalike.metadata))
    alone = evaluate_table(scores, None, draws=0, labels=str(lookalike.metadata))

    assert "against NIH's labels, no label differs" in given_again.warnings
    for found in (given_again, alone):
        assert (found.auroc, found.subgroups, found.classes) == (plain.auroc, plain.subgroups, plain.classes)
        assert found.calibration == plain.calibration
        assert found.identity.patients == plain.identity.patients
    assert given_again.baselines == plain.baselines
    assert alone.identity.table is None
    assert alone.identity.labels.compared == {}


@pytest.mark.parametrize("task", ["binary", "binary:Effusion", "multiclass"])
def test_derived_tasks_follow_from_the_labels_given(lookalike, scores, tmp_path, task):
    """As if NIH's table held them."""
    images = read_metadata(str(lookalike.metadata))
    changed = np.roll(images.findings, 7, axis=0)
    table = pd.read_csv(lookalike.metadata)
    row_of = {name: row for row, name in enumerate(images.table["image_id"])}
    strings = [format_findings(changed[row_of[name]]) for name in table["Image Index"]]
    labels = write(
        tmp_path / "l.csv",
        "image,Finding Labels\n"
        + "".join(f"{n},{s}\n" for n, s in zip(table["Image Index"], strings, strict=True)),
    )
    table.assign(**{"Finding Labels": strings}).to_csv(tmp_path / "nih.csv", index=False)

    found = evaluate_table(scores, str(lookalike.metadata), task, draws=0, labels=labels)

    expected = evaluate_table(scores, str(tmp_path / "nih.csv"), task, draws=0)
    assert (found.auroc, found.classes, found.multiclass) == (
        expected.auroc, expected.classes, expected.multiclass
    )  # fmt: skip
    assert found.identity.images == expected.identity.images


def test_a_derived_task_needs_the_findings_that_it_follows_from(lookalike, scores, tmp_path):
    names = read_metadata(str(lookalike.metadata)).table["image_id"]
    labels = write(tmp_path / "l.csv", "image,Mass\n" + "".join(f"{name},1\n" for name in names))

    with pytest.raises(UsageError) as error:
        evaluate_table(scores, str(lookalike.metadata), "binary:Mass", draws=0, labels=labels)
    assert str(error.value) == (
        f"{labels}: found labels for Mass; task binary:Mass follows from 14 findings, so `labels` must have "
        "Atelectasis, Cardiomegaly, Effusion, Infiltration, Nodule, Pneumonia, ... too"
    )


def test_another_test_set_needs_no_table_of_nih(tmp_path):
    random = np.random.default_rng(0)
    ids = [f"case-{place}.dcm" for place in range(40)]
    pd.DataFrame(random.random((40, 14)), columns=list(FINDINGS)).assign(image=ids).to_csv(
        tmp_path / "s.csv", index=False
    )
    labels = pd.DataFrame(
        {"image": [f"x/case-{place}.png" for place in range(40)], "Mass": np.arange(40) % 2}
    )
    labels.assign(patient=[f"p{place // 2}" for place in range(40)]).to_csv(tmp_path / "l.csv", index=False)

    found = evaluate_table(str(tmp_path / "s.csv"), None, draws=20, labels=str(tmp_path / "l.csv"))

    assert (found.identity.images, found.identity.patients) == (40, 20)
    assert found.baselines.metadata is None
    assert found.within_view.macro_auroc == Interval(None)
    assert found.auroc["Mass"].low is not None
    labels.to_csv(tmp_path / "l.csv", index=False)
    own = evaluate_table(str(tmp_path / "s.csv"), None, draws=0, labels=str(tmp_path / "l.csv"))
    assert own.identity.patients == 40
    assert own.warnings[0].startswith("l.csv has no patients: each image counts as a patient of its own")


def test_names_that_match_nothing_are_one_line(lookalike, scores, tmp_path):
    labels = write(tmp_path / "l.csv", "image,Mass\npatient_1/view_1,1\npatient_2/view_2,0\n")

    for metadata in (str(lookalike.metadata), None):
        with pytest.raises(UsageError) as error:
            evaluate_table(scores, metadata, draws=0, labels=labels)
        assert "\n" not in str(error.value)
    with pytest.raises(UsageError) as error:
        evaluate_table(scores, str(lookalike.metadata), draws=0, labels=labels)
    first = read_metadata(str(lookalike.metadata)).table["image_id"][0]
    assert str(error.value) == (
        f"{labels}: found 2 image names (the first is 'patient_1/view_1'), none of which is that of an "
        f"image in the table of images; expected names such as {first!r} in `labels`"
    )


def test_names_that_are_one_but_for_their_folders_are_refused_where_they_alone_name_the_images(tmp_path):
    labels = read_labels(write(tmp_path / "l.csv", "image,Mass\np1/view1.jpg,1\np2/view1.jpg,1\n"))

    with pytest.raises(CxrError) as error:
        _ = labels.images
    assert str(error.value) == (
        f"{labels.path}, line 2 and line 3: found names that differ in their folders alone "
        "('p1/view1.jpg' and 'p2/view1.jpg'); give each image a file name of its own, here and in the table "
        "of scores"
    )


def test_two_different_rows_of_an_image_are_refused(lookalike, scores, tmp_path):
    first = read_metadata(str(lookalike.metadata)).table["image_id"][0]
    labels = write(tmp_path / "l.csv", f"image,Mass\n{first},1\nfolder/{first},0\n")

    told = f"line 2 and line 3: found different labels for image {first}; keep one of the two rows"
    with pytest.raises(CxrError, match=told):
        evaluate_table(scores, str(lookalike.metadata), draws=0, labels=labels)
    write(tmp_path / "l.csv", f"image,Mass\n{first},1\n{first},0\n")
    with pytest.raises(CxrError, match=told):
        evaluate_table(scores, None, draws=0, labels=labels)


def test_leaks_are_looked_for_whatever_the_labels(lookalike, scores, dataset):
    found = evaluate_table(scores, None, trained_on=str(dataset), draws=0, labels=str(lookalike.metadata))

    assert "scored images are among the training records of" in found.leaks[0]


# Runs


def test_a_run_is_measured_by_given_labels_beside_its_own_result(
    scored_run, dataset, tmp_path, monkeypatch, capfd
):
    run, records = scored_run(), open_dataset(dataset).split("test")
    effusion = records.labels[:, FINDINGS.index("Effusion")].astype(object)
    effusion[0] = 1 - effusion[0]
    table = pd.DataFrame({"file": records.image_ids, "effusion": effusion, "Hernia": ""})
    table[: len(table) - 2].to_csv(tmp_path / "again.v2.csv", index=False)
    words = ["evaluate", str(run), "--labels", str(tmp_path / "again.v2.csv"), "--draws", "20"]

    assert run_command(words) == 0

    out = capfd.readouterr().out
    images = len(records) - 2
    assert (
        f"split: {images} images with the labels of again.v2.csv, which are not NIH's; compare with no" in out
    )
    assert f"note: against NIH's labels, Effusion: 1 of {images} differ" in out
    assert not (run / "metrics.json").exists()
    written = json.loads((run / "labels-again" / "metrics.json").read_text())
    assert list(written["auroc"]) == ["Effusion"]
    assert written["identity"]["labels"]["differ"] == {"Effusion": 1}
    assert written["comparison"]["comparable"] is False
    page = (run / "labels-again" / "report.html").read_text().replace("<wbr>", "")
    assert f"{images} images with the labels of again.v2.csv, which are not NIH&#39;s" in page
    assert f"again.v2.csv, not NIH&#39;s, sha256 {written['identity']['labels']['sha256']}" in page
    assert "Labels are from again.v2.csv, not NIH's; they too may err." in page
    assert "chosen on: validation, by the labels of the dataset." in page
    assert "fitted on validation, by the labels of the dataset:" in page
    monkeypatch.setattr("cxr_records.trainers.evaluation.report.write_report", lambda *_: None)
    assert run_command([*words, "--out", str(tmp_path / "there")]) == 0
    assert json.loads((tmp_path / "there" / "metrics.json").read_text()) == written


@pytest.mark.parametrize("task", ["binary", "multiclass"])
def test_a_run_of_a_derived_task_takes_given_labels_too(scored_run, lookalike, task):
    run = scored_run(task=task)

    found = evaluate_run(str(run), draws=0, labels=str(lookalike.metadata))

    plain = evaluate_run(str(run), draws=0)
    assert (found.auroc, found.multiclass) == (plain.auroc, plain.multiclass)
    for name, each in found.classes.items():
        point, own = each.operating_point, plain.classes[name].operating_point
        assert (point and point.chosen_on) == (own and "validation, by the labels of the dataset")
        as_plain = own and dataclasses.replace(point, chosen_on="validation")
        assert dataclasses.replace(each, operating_point=as_plain) == plain.classes[name]
    assert "against NIH's labels, no label differs" in found.warnings


def test_runs_are_compared_by_given_labels(scored_run, dataset, tmp_path):
    one, other = scored_run("one"), scored_run("other", seed=1)
    records = open_dataset(dataset).split("test")
    labels = tmp_path / "l.csv"
    pd.DataFrame({"image": records.image_ids, "Mass": np.arange(len(records)) % 2}).to_csv(
        labels, index=False
    )

    (found,) = compare_runs([str(one), str(other)], draws=10, labels=str(labels))

    a, b = (evaluate_run(str(run), draws=0, labels=str(labels)) for run in (one, other))
    assert list(found.auroc) == ["Mass"]
    assert found.auroc["Mass"].value == pytest.approx(b.auroc["Mass"].value - a.auroc["Mass"].value, abs=2e-6)


def test_a_binary_task_of_two_findings_asks_for_these_alone(tmp_path):
    scored = make_predictions("binary", ("Nodule",), n=6)
    names = scored.image_ids
    rows = zip(names, ["1", "0", "1", "", "0", "1"], ["0", "1", "1", "1", "0", "0"], strict=True)
    path = write(tmp_path / "l.csv", "image,Mass,Nodule\n" + "".join(",".join(row) + "\n" for row in rows))

    found, _ = relabel(scored, read_labels(path), parse_task("binary:Mass,Nodule"))

    assert isinstance(found, Predictions)
    assert found.image_ids.tolist() == [names[0], names[1], names[5]]
    assert found.labels[:, 0].tolist() == [0, 1, 0]
