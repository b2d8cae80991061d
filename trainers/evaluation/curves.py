"""ROC and precision-recall curves, thinned to what a picture can show."""

import numpy as np

from cxr_records.trainers.evaluation.metrics import Ranking
from cxr_records.trainers.evaluation.results import Curves, PrecisionRecallCurve, RocCurve

POINTS = 200  # thresholds of a ROC curve
# Steps of a precision-recall curve are drawn as one where their precision differs by less than the first, or
# their recall by less than the second: less than a pixel of the report's pictures.
_SAME_PRECISION, _SAME_RECALL = 0.005, 0.0025
_DIGITS = 4


def curves_of(ranking: Ranking) -> Curves | None:
    """Returns both curves of a class; None without a positive or without a negative."""
    counts = ranking.once
    (positives,), (negatives,) = counts.positives, counts.negatives
    if not positives or not negatives:
        return None
    true, false, before = counts.true[:, 0], counts.false[:, 0], counts.false_before[:, 0]
    kept = np.unique(np.linspace(0, len(true) - 1, POINTS).round().astype(int))
    gained_from = np.concatenate([[0], true])[kept]  # recall before each threshold: the corner of the step
    fpr = np.stack([before[kept], false[kept]], axis=1).ravel() / negatives
    tpr = np.stack([gained_from, true[kept]], axis=1).ravel() / positives
    recall, precision = true / positives, true / (true + false)
    ends = step_ends(recall, precision)
    return Curves(
        roc=RocCurve(fpr=(0.0, *_plain(fpr), 1.0), tpr=(0.0, *_plain(tpr), 1.0)),
        pr=PrecisionRecallCurve(recall=_plain(recall[ends]), precision=_plain(precision[ends])),
    )


def step_ends(recall: np.ndarray, precision: np.ndarray) -> np.ndarray:
    """Returns which thresholds to keep of a precision-recall curve: its steps are those of average precision.

    Each step that is kept has the precision of its last threshold, so none is made up. It stands for steps
    that look alike: of nearly its precision, or together too narrow to be seen.

    Args:
        recall: float [n], rising, by falling threshold.
        precision: float [n].

    Returns:
        int [m]: places, rising; the last one is among them.
    """
    ends, first = list[int](), 0
    low = high = precision[0]
    for place in range(1, len(recall)):
        low, high = min(low, precision[place]), max(high, precision[place])
        begin = recall[first - 1] if first else 0.0
        if high - low > _SAME_PRECISION and recall[place] - begin > _SAME_RECALL:
            ends.append(place - 1)
            first, low, high = place, precision[place], precision[place]
    return np.array([*ends, len(recall) - 1])


def _plain(values: np.ndarray) -> tuple[float, ...]:
    return tuple(np.round(values, _DIGITS).tolist())
