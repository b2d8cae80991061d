"""metrics.json: its keys, their order and its numbers stay what they are."""

import dataclasses
import json

import pytest
from evaluations import EXPECTED, NAMES, make_predictions, read_expected

from cxr_records.errors import UsageError
from cxr_records.images import ImageFormat
from cxr_records.tasks import parse_task
from cxr_records.trainers.config import TrainConfig
from cxr_records.trainers.evaluation.evaluate import complete, evaluate
from cxr_records.trainers.evaluation.results import (
    CardItem,
    Evaluation,
    Identity,
    ImageTable,
    SplitClaim,
    json_bytes,
    mean_over,
)
from cxr_records.trainers.runs import ClassCount, Run


def make_evaluation(kind: str) -> Evaluation:
    """What tests/expected was made from."""
    scored, validation = make_predictions(kind), make_predictions(kind, seed=1, split="validation")
    if kind == "multilabel":
        scored.labels[:, NAMES.index("Hernia")] = 0
    run = Run(
        path="runs/first",
        dataset="cxr14",
        dataset_id="abc",
        task=parse_task(kind),
        image_format=ImageFormat(),
        config=TrainConfig(loss="focal" if kind == "multilabel" else "ce"),
        classes=dict(
            zip(NAMES, (ClassCount(300, 300), ClassCount(200, 100), ClassCount(150, 15)), strict=True)
        ),
        train_records=1300,
        train_images=1000,
        versions={"keras": "3.5"},
    )
    identity = Identity(
        name="first",
        run=run.path,
        dataset=run.dataset,
        dataset_id=run.dataset_id,
        model=run.config.model,
        task=kind,
        predictions_sha256="1" * 64,
        versions=run.versions,
        table=ImageTable("v2020", "0" * 64),
        kind=kind,
        split="test",
        images=60,
        patients=30,
        draws=20,
        seed=0,
        date="2026-01-31",
    )
    claim = SplitClaim(kind == "multilabel", "a split of ours", "2" * 64)
    leaks = ("one leak",) if kind == "multiclass" else ()
    asked = (CardItem("Predictors", "9a", "", "The pixels."), CardItem("Funding", "18a", "44", None))
    return complete(evaluate(scored, validation, run, 20, 0), identity, claim, leaks, ["said before"], asked)


@pytest.mark.parametrize("kind", ["multilabel", "multiclass"])
def test_metrics_json_has_the_keys_the_order_and_the_numbers_that_it_had(kind):
    expected = (EXPECTED / f"metrics_{kind}.json").read_bytes()

    assert json_bytes(make_evaluation(kind).to_json()) == expected


@pytest.mark.parametrize("kind", ["multilabel", "multiclass"])
def test_metrics_json_gives_the_evaluation_back(kind):
    evaluation = read_expected(kind)

    assert evaluation == make_evaluation(kind)
    assert json_bytes(evaluation.to_json()) == (EXPECTED / f"metrics_{kind}.json").read_bytes()


@pytest.mark.parametrize(
    ("lacks", "total", "named", "text"),
    [
        ((), 14, True, ""),
        (("Mass",), 14, True, " (13 of 14 classes: no Mass)"),
        (("A", "B", "C", "D", "E"), 14, True, " (9 of 14 classes: no A, B, C and 2 more)"),
        (("Mass",), 14, False, " (13 of 14 classes)"),
    ],
)
def test_a_mean_is_called_by_its_classes(lacks, total, named, text):
    assert mean_over(lacks, total, named) == text


@pytest.mark.parametrize("change", [{"version": 1}, {"format": "another"}])
def test_another_format_or_version_is_refused(change):
    content = json.loads((EXPECTED / "metrics_multilabel.json").read_text())

    with pytest.raises(UsageError, match="found no 'cxr_records evaluation' of version 2; evaluate again"):
        Evaluation.from_json({**content, **change})


def test_an_evaluation_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        read_expected("multilabel").leaks = ("one",)
