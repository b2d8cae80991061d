"""Tables of predictions: one row per scored image."""

import dataclasses
import io
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from cxr_records import storage
from cxr_records.errors import CxrError, UsageError
from cxr_records.parquet import read_parquet
from cxr_records.progress import say
from cxr_records.trainers import digests
from cxr_records.trainers.evaluation import results
from cxr_records.trainers.runs import PREDICTIONS_FILE, Run

UNJUDGED = -1  # a label that nobody has given


@dataclasses.dataclass(frozen=True, eq=False)
class Predictions:
    """Scores and labels of n images for k classes.

    Attributes:
        kind: "binary", "multiclass" or "multilabel".
        names: of the k classes.
        split: which split the images are of.
        image_ids: [n].
        patient_ids: [n].
        views: object [n] of "PA", "AP" or "" where unknown.
        sexes: object [n] of "M", "F" or "".
        ages_years: int64 [n], -1 where unknown.
        labels: int [n, k], zeros and ones; `UNJUDGED` where an image does not count for a class.
        scores: float64 [n, k].
        mean_scores: float64 [k], over all rows that the model scored, also those that take no part, and
            before scores of 14 findings were made to sum to 1.
        lacking: classes of the task for which there are no scores.
        warnings: what is to be said of the table.
        follow_ups: int64 [n], numbers of the follow-up as the table of images has them, -1 where unknown;
            None for what the images' names tell.
        labels_from: the table that labels are from, where they are not NIH's; else "".
    """

    kind: str
    names: tuple[str, ...]
    split: str
    image_ids: np.ndarray
    patient_ids: np.ndarray
    views: np.ndarray
    sexes: np.ndarray
    ages_years: np.ndarray
    labels: np.ndarray
    scores: np.ndarray
    mean_scores: np.ndarray
    lacking: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    follow_ups: np.ndarray | None = None
    labels_from: str = ""

    def of_classes(self, names: Sequence[str]) -> "Predictions":
        """Returns the same images for some of the classes; the others are lacking."""
        places = [self.names.index(name) for name in names]
        return dataclasses.replace(
            self,
            names=tuple(names),
            labels=self.labels[:, places],
            scores=self.scores[:, places],
            mean_scores=self.mean_scores[places],
            lacking=(*self.lacking, *(name for name in self.names if name not in names)),
        )

    def of_rows(self, rows: np.ndarray) -> "Predictions":
        """Returns some of the images, by place or as bool [n]; `mean_scores` stay those of all."""
        each = {
            field: getattr(self, field)[rows]
            for field in (
                "image_ids", "patient_ids", "views", "sexes", "ages_years", "labels", "scores"
            )
        }  # fmt: skip
        follow_ups = None if self.follow_ups is None else self.follow_ups[rows]
        return dataclasses.replace(self, **each, follow_ups=follow_ups)

    @property
    def num_patients(self) -> int:
        """Patients of the images."""
        return len(np.unique(self.patient_ids))

    @property
    def are_probabilities(self) -> bool:
        """Whether all scores lie between 0 and 1."""
        return bool(((self.scores >= 0) & (self.scores <= 1)).all())


def said_of_scores(names: Sequence[str], labels: np.ndarray, scores: np.ndarray) -> list[str]:
    """Returns what is to be said of scores that rank little or nothing, or that give the labels away.

    Args:
        names: of the k classes.
        labels: [n, k], zeros and ones, or `UNJUDGED`.
        scores: float64 [n, k].
    """
    equal, constant, two = list[str](), list[str](), list[str]()
    same = dict[bytes, list[str]]()  # classes of one and the same column
    for name, truth, column in zip(names, labels.T, scores.T, strict=True):
        levels = len(np.unique(column))
        if levels <= 2 < len(column):
            (constant if levels == 1 else equal if (column == truth)[truth >= 0].all() else two).append(name)
        elif levels > 2:
            same.setdefault(column.tobytes(), []).append(name)

    def listed(some: list[str]) -> str:
        return f"all {len(names)} classes" if len(some) == len(names) > 3 else ", ".join(some)

    said = []
    if equal:
        said.append(f"the scores of {listed(equal)} equal the labels: no model's scores")
    if two:
        said.append(
            f"the scores of {listed(two)} hold two values only: thresholded, no ranking; an AUROC of them "
            "is that of one operating point"
        )
    if constant:
        said.append(f"the scores of {listed(constant)} hold one value only: they rank nothing")
    said += [
        f"the scores of {' and '.join(some)} are the same for every image: one column was written twice"
        for some in same.values()
        if len(some) > 1
    ]
    return said


def check_scores(where: str, image_ids: Sequence[str], names: Sequence[str], scores: np.ndarray) -> None:
    """Makes sure that a model's scores are numbers.

    Args:
        where: what gave them, which begins the message.
        image_ids: of n images.
        names: of k classes.
        scores: [n, k].

    Raises:
        CxrError: one is NaN or infinite; names the first image and class.
    """
    bad = np.argwhere(~np.isfinite(scores))
    if len(bad):
        row, place = bad[0]
        raise CxrError(
            f"{where}: found the score {scores[row, place]} of {names[place]} for image {image_ids[row]}, "
            f"the first of {len(bad):,} that are NaN or infinite; train again, with a smaller learning_rate "
            "or clip_norm"
        )


def write_predictions(path: str, table: pd.DataFrame) -> None:
    """Writes a run's table of predictions, whole or not at all, and keeps its digest."""
    out = io.BytesIO()
    table.to_parquet(out, index=False)
    digests.write(path, out.getvalue())


def read_run_predictions(run: Run, split: str) -> Predictions:
    """Reads what a run predicted for a split.

    Raises:
        UsageError: the table has no rows of the split, or lacks a class of the run.
        DamagedFileError: the table is not what was written.
        CxrError: a score is NaN or infinite.
    """
    path = run.file(PREDICTIONS_FILE)
    data = storage.read_bytes(path)
    warning = digests.check(path, data)
    try:
        table = read_parquet(data).to_pandas()
    except (pa.ArrowException, OSError, ValueError) as error:
        trouble = " ".join(str(error).split())
        raise digests.DamagedFileError(f"{path} is damaged: {trouble}") from error
    names = run.score_names
    if lacking := [name for name in names if f"prob_{name}" not in table]:
        raise UsageError(f"{path}: found no column prob_{lacking[0]}; remove it to have it made again")
    splits = sorted(set(table["split"]))
    table = table[table["split"] == split]
    if not len(table):
        raise UsageError(f"{path}: found no scores for split {split}; it has {', '.join(splits)}")
    scores = table[[f"prob_{name}" for name in names]].to_numpy(np.float64)
    check_scores(path, table["image_id"].tolist(), names, scores)
    labels = table[[f"label_{name}" for name in names]].to_numpy(np.int64)
    said = said_of_scores(names, labels, scores)
    return Predictions(
        kind=run.task.kind,
        names=names,
        split=split,
        image_ids=table["image_id"].to_numpy(),
        patient_ids=table["patient_id"].to_numpy(),
        views=table["view"].to_numpy(object),
        sexes=table["sex"].to_numpy(object),
        ages_years=table["age_years"].to_numpy(),
        labels=labels,
        scores=scores,
        mean_scores=scores.mean(axis=0),
        warnings=((warning,) if warning else ()) + tuple(said),
    )


def evaluation_of(run: Run) -> tuple[dict[str, Any] | None, str]:
    """Returns what a run's metrics.json holds; None and why, where it is not of the model in the run."""
    path = run.file(results.METRICS_FILE)
    if not storage.exists(path):
        return None, f"{run.path} has no {results.METRICS_FILE}"
    try:
        data = storage.read_bytes(path)
        if warning := digests.check(path, data):
            say(f"warning: {warning}")
        content = json.loads(data)
        if (content["format"], content["version"]) != (results.FORMAT, results.VERSION):
            return None, f"{path} is of another version"
        if content["identity"]["dataset_id"] != run.dataset_id:
            return None, f"{path} is of another dataset"
        scores = run.file(PREDICTIONS_FILE)
        if not storage.exists(scores):
            return None, f"{path} is of a model before this one"
        if storage.file_sha256(scores) != content["identity"]["predictions_sha256"]:
            return None, f"{path} is of other scores than {PREDICTIONS_FILE}"
    except CxrError as error:
        return None, str(error)
    except (ValueError, KeyError, TypeError, RecursionError):
        return None, f"{path} is not as cxr-records evaluate writes it"
    held: dict[str, Any] = content
    return held, ""
