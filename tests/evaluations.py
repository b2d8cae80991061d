"""Scores made by chance, and their evaluation, for several test modules."""

import functools
import json
from pathlib import Path

import numpy as np

from cxr_records.metadata import read_metadata
from cxr_records.tasks import as_task
from cxr_records.trainers.evaluation.predictions import Predictions
from cxr_records.trainers.evaluation.results import Evaluation
from cxr_records.trainers.evaluation.tables import match, read_score_table

EXPECTED = Path(__file__).with_name("expected")
NAMES = ("Mass", "Nodule", "Hernia")


def make_predictions(
    kind: str = "multilabel", names: tuple[str, ...] = NAMES, n: int = 60, seed: int = 0, split: str = "test"
) -> Predictions:
    """Scores of n images, two of each patient, that know something of the labels; with ties."""
    random = np.random.default_rng(seed)
    if kind == "multiclass":
        labels = np.eye(len(names), dtype=np.int64)[random.integers(0, len(names), n)]
        scores = random.random((n, len(names))) + 0.4 * labels + 0.1
        scores /= scores.sum(axis=1, keepdims=True)
    else:
        labels = random.integers(0, 2, (n, len(names)))
        scores = np.clip(0.25 * labels + random.random((n, len(names))) * 0.7, 0.01, 0.99)
    scores = scores.round(2)
    return Predictions(
        kind=kind,
        names=names,
        split=split,
        image_ids=np.array([f"{i:08d}_000.png" for i in range(n)], object),
        patient_ids=np.arange(n) // 2,
        views=np.where(np.arange(n) % 3, "PA", "AP").astype(object),
        sexes=np.where(np.arange(n) % 2, "M", "F").astype(object),
        ages_years=np.arange(n) % 95 - 1,
        labels=labels,
        scores=scores,
        mean_scores=scores.mean(axis=0),
    )


@functools.cache
def read_real(nih: Path) -> Predictions:
    """The real table of a DenseNet-121's scores, with NIH's labels; not to be changed."""
    images = read_metadata(str(nih / "Data_Entry_2017_v2020.csv.gz"))
    table = read_score_table(str(nih / "densenet121_predictions.csv.gz"), images)
    return match(table, images, as_task("multilabel"), "all scored images")


def read_expected(kind: str) -> Evaluation:
    """The evaluation that is stored in tests/expected; its numbers are those of `make_predictions`."""
    return Evaluation.from_json(json.loads((EXPECTED / f"metrics_{kind}.json").read_text()))
