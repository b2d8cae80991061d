"""Measures of scores against labels, in numpy: ranking, precision, sensitivity, accuracy.

Weights are whole numbers [n, draws]: how often a row is counted. A bootstrap over patients is a choice of
weights, so one sorted order serves all its draws (see `cxr_records.trainers.evaluation.bootstrap`).
"""

import dataclasses

import numpy as np
from scipy import sparse


def auroc(labels: np.ndarray, scores: np.ndarray) -> float:
    """Returns the area under the ROC curve: the chance that a positive scores above a negative, ties half.

    Args:
        labels: [n], zeros and ones.
        scores: float [n].

    Returns:
        0 to 1; NaN without a positive or without a negative.
    """
    return float(Ranking(labels, scores).once.auroc()[0])


def average_precision(labels: np.ndarray, scores: np.ndarray) -> float:
    """Returns the area under the precision-recall curve as average precision (as scikit-learn computes it).

    NaN without a positive.
    """
    return float(Ranking(labels, scores).once.average_precision()[0])


def auroc_per_class(labels: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Returns the AUROC of each column: float64 [k]; NaN where a class has no positive or no negative.

    Args:
        labels: [n, k], zeros and ones.
        scores: float [n, k].
    """
    return np.array([auroc(y, s) for y, s in zip(labels.T, scores.T, strict=True)])


def macro(values: np.ndarray) -> float:
    """Returns the mean of the classes that have a value; NaN when none has."""
    values = np.asarray(values, float)
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if len(defined) else float("nan")


@dataclasses.dataclass(frozen=True, eq=False)
class Counts:
    """Weighted counts at the thresholds at which a positive scores, highest first, for many weightings.

    At other thresholds only false positives are added, so no measure needs them.

    Attributes:
        true: int64 [thresholds, draws], positives at or above the threshold.
        false_before: negatives above it.
        false: negatives at or above it.
        positives: [draws], all of them.
        negatives: [draws].
    """

    true: np.ndarray
    false_before: np.ndarray
    false: np.ndarray
    positives: np.ndarray
    negatives: np.ndarray

    def auroc(self) -> np.ndarray:
        """Returns float64 [draws]; NaN where there is no positive or no negative."""
        gained = np.diff(self.true, axis=0, prepend=0)
        # Twice the area in whole numbers: exact.
        area = (gained * (2 * self.negatives - self.false_before - self.false)).sum(axis=0)
        return _ratio(area, 2 * self.positives * self.negatives)

    def average_precision(self) -> np.ndarray:
        """Returns float64 [draws]: the sum over thresholds of precision times gain in recall."""
        gained = np.diff(self.true, axis=0, prepend=0)
        precision = self.true / np.maximum(self.true + self.false, 1)
        return _ratio((precision * gained).sum(axis=0), self.positives)

    def sensitivity(self, specificity: float) -> np.ndarray:
        """Returns float64 [draws]: the largest sensitivity among thresholds of at least this specificity."""
        allowed = np.floor((1 - specificity) * self.negatives + 1e-9)
        best = np.where(self.false <= allowed, self.true, 0).max(axis=0, initial=0)
        return np.where(self.negatives > 0, _ratio(best, self.positives), np.nan)


class Sums:
    """Weights of rows, summed by group.

    Args:
        rows: int [m], which rows are counted.
        groups: int [m], the group of each of them.
        num_groups: how many there are.
        num_rows: how many rows weights have.
    """

    def __init__(self, rows: np.ndarray, groups: np.ndarray, num_groups: int, num_rows: int):
        self._matrix = sparse.csr_array((np.ones(len(rows)), (groups, rows)), shape=(num_groups, num_rows))

    def of(self, weights: np.ndarray) -> np.ndarray:
        """Returns int64 [groups, draws].

        Args:
            weights: whole numbers [n, draws]; exact while no sum is above 2^53. As float64 they are not
                copied.
        """
        sums: np.ndarray = (self._matrix @ weights.astype(np.float64, copy=False)).astype(np.int64)
        return sums


class Ranking:
    """Rows of one class in the order of their scores, for measures under many weightings.

    Args:
        labels: [n], zeros and ones; rows of other labels take no part.
        scores: float [n]; equal scores are one threshold.

    Attributes:
        thresholds: float [t], the distinct scores of positives, highest first.
    """

    def __init__(self, labels: np.ndarray, scores: np.ndarray):
        falling, kinds = -np.asarray(scores, np.float64), np.asarray(labels)
        positives, negatives = np.flatnonzero(kinds == 1), np.flatnonzero(kinds == 0)
        levels = np.unique(falling[positives])
        self.thresholds = -levels
        self._rows = len(falling)
        self._true = Sums(positives, np.searchsorted(levels, falling[positives]), len(levels), self._rows)
        # Negatives between the thresholds, and with them, by turns: what is summed up is short.
        above = np.searchsorted(levels, falling[negatives], "left")
        with_it = np.searchsorted(levels, falling[negatives], "right") - above
        self._false = Sums(negatives, 2 * above + with_it, 2 * len(levels) + 1, self._rows)

    def counts(self, weights: np.ndarray) -> Counts:
        """Counts under each weighting.

        Args:
            weights: int [n, draws].
        """
        true, false = self._true.of(weights).cumsum(axis=0), self._false.of(weights).cumsum(axis=0)
        none = np.zeros(weights.shape[1], np.int64)
        return Counts(true, false[:-1:2], false[1::2], true[-1] if len(true) else none, false[-1])

    @property
    def once(self) -> Counts:
        """With every row counted once: one draw."""
        return self.counts(np.ones((self._rows, 1), np.int64))


def youden_threshold(labels: np.ndarray, scores: np.ndarray) -> float | None:
    """Returns the threshold of the largest sensitivity + specificity - 1 (Youden 1950): positive from it on.

    None without a positive or without a negative.
    """
    ranking = Ranking(labels, scores)
    counts = ranking.once
    if not counts.positives[0] or not counts.negatives[0]:
        return None
    gain = counts.true / counts.positives - counts.false / counts.negatives
    return float(ranking.thresholds[np.argmax(gain)])


def confusion(labels: np.ndarray, predicted: np.ndarray, num_classes: int) -> np.ndarray:
    """Returns int64 [k, k]: rows are what is true, columns what was predicted."""
    pairs = np.asarray(labels, np.int64) * num_classes + np.asarray(predicted, np.int64)
    return np.bincount(pairs, minlength=num_classes**2).reshape(num_classes, num_classes)


def recall_per_class(labels: np.ndarray, right: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Returns the share of images of each class that were predicted right: float64 [draws, classes].

    Their mean is the balanced accuracy. The classes are those that occur, in order; NaN where a draw has no
    image of one.

    Args:
        labels: int [n].
        right: bool [n].
        weights: int [n, draws].
    """
    rows = (np.unique(labels)[:, np.newaxis] == np.asarray(labels)).astype(np.float64)
    shares: np.ndarray = _ratio((rows * right) @ weights, rows @ weights).T
    return shares


def _ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(below > 0, above / below, np.nan)
