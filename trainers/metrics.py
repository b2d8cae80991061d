"""Measures of scores against labels, in numpy: ranking, precision, sensitivity, accuracy.

Weights are whole numbers: how often a row is counted. A bootstrap over patients is a choice of weights, so
one sorted order serves all its draws (see `trainers.bootstrap`).
"""

import numpy as np


def auroc(labels: np.ndarray, scores: np.ndarray) -> float:
    """Returns the area under the ROC curve: the chance that a positive scores above a negative, ties half.

    Args:
        labels: [n], zeros and ones.
        scores: float [n].

    Returns:
        0 to 1; NaN without a positive or without a negative.
    """
    return float(Ranking(labels, scores).auroc(np.ones((1, len(labels)), np.int64))[0])


def average_precision(labels: np.ndarray, scores: np.ndarray) -> float:
    """Returns the area under the precision-recall curve as average precision (as scikit-learn computes it).

    NaN without a positive.
    """
    return float(Ranking(labels, scores).average_precision(np.ones((1, len(labels)), np.int64))[0])


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
    held = values[~np.isnan(values)]
    return float(held.mean()) if len(held) else float("nan")


class Ranking:
    """Rows of one class in the order of their scores, highest first, for measures under many weightings.

    Args:
        labels: [n], zeros and ones.
        scores: float [n]; equal scores are one threshold.
    """

    def __init__(self, labels: np.ndarray, scores: np.ndarray):
        order = np.argsort(-np.asarray(scores, np.float64), kind="stable")
        self.order = order
        ordered = np.asarray(scores, np.float64)[order]
        # The last row of each group of equal scores.
        self.ends = np.flatnonzero(np.append(ordered[1:] != ordered[:-1], True)) if len(order) else order
        self.thresholds = ordered[self.ends]
        self._positive = np.asarray(labels)[order].astype(np.int64)

    def counts(self, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns true and false positives at each threshold: int64 [draws, thresholds] each.

        Args:
            weights: int [draws, n].
        """
        weights = np.asarray(weights)[:, self.order]
        positives = weights * self._positive
        true = np.cumsum(positives, axis=1)[:, self.ends]
        return true, np.cumsum(weights - positives, axis=1)[:, self.ends]

    def auroc(self, weights: np.ndarray) -> np.ndarray:
        """Returns the AUROC under each weighting: float64 [draws]."""
        return auroc_of_counts(*self.counts(weights))

    def average_precision(self, weights: np.ndarray) -> np.ndarray:
        """Returns the average precision under each weighting: float64 [draws]."""
        return average_precision_of_counts(*self.counts(weights))


def auroc_of_counts(true: np.ndarray, false: np.ndarray) -> np.ndarray:
    """Returns float64 [draws] of true and false positives [draws, thresholds] by the trapezoidal rule."""
    true, false = _from_zero(true), _from_zero(false)
    # Twice the area in whole numbers: exact.
    area = (np.diff(false, axis=1) * (true[:, 1:] + true[:, :-1])).sum(axis=1)
    return _ratio(area, 2 * true[:, -1] * false[:, -1])


def average_precision_of_counts(true: np.ndarray, false: np.ndarray) -> np.ndarray:
    """Returns float64 [draws]: the sum over thresholds of precision times gain in recall."""
    gained = np.diff(_from_zero(true), axis=1)
    precision = _ratio(true, true + false)
    total = np.where(gained > 0, precision, 0.0) * gained
    return _ratio(total.sum(axis=1), true[:, -1])


def sensitivity_of_counts(true: np.ndarray, false: np.ndarray, specificity: float) -> np.ndarray:
    """Returns float64 [draws]: the largest sensitivity among thresholds of at least this specificity."""
    allowed = np.floor((1 - specificity) * false[:, -1:] + 1e-9)
    best = np.where(_from_zero(false) <= allowed, _from_zero(true), 0).max(axis=1)
    return np.where(false[:, -1] > 0, _ratio(best, true[:, -1]), np.nan)


def youden_threshold(labels: np.ndarray, scores: np.ndarray) -> float | None:
    """Returns the threshold of the largest sensitivity + specificity - 1 (Youden 1950): positive from it on.

    None without a positive or without a negative.
    """
    ranking = Ranking(labels, scores)
    (true,), (false,) = ranking.counts(np.ones((1, len(labels)), np.int64))
    if not len(true) or not true[-1] or not false[-1]:
        return None
    return float(ranking.thresholds[np.argmax(true / true[-1] - false / false[-1])])


def confusion(labels: np.ndarray, predicted: np.ndarray, num_classes: int) -> np.ndarray:
    """Returns int64 [k, k]: rows are what is true, columns what was predicted."""
    pairs = np.asarray(labels, np.int64) * num_classes + np.asarray(predicted, np.int64)
    return np.bincount(pairs, minlength=num_classes**2).reshape(num_classes, num_classes)


def balanced_accuracy(labels: np.ndarray, right: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Returns the mean over classes of the share of images that were predicted right: float64 [draws].

    Classes without images in a draw are left out of its mean.

    Args:
        labels: int [n].
        right: bool [n].
        weights: int [draws, n].
    """
    rows = (np.asarray(labels)[:, np.newaxis] == np.unique(labels)).astype(np.float64)
    return np.nanmean(_ratio(weights @ (rows * right[:, np.newaxis]), weights @ rows), axis=1)


def _from_zero(counts: np.ndarray) -> np.ndarray:
    return np.pad(counts, ((0, 0), (1, 0)))


def _ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(below > 0, above / below, np.nan)
