"""Decision curves: whether it is worth acting on a model's probabilities at all.

Vickers and Elkin, "Decision curve analysis: a novel method for evaluating prediction models", Medical
Decision Making 26 (2006), doi 10.1177/0272989X06295361.
"""

import numpy as np

from cxr_records.trainers.evaluation.bootstrap import DIGITS, by_patient, sample
from cxr_records.trainers.evaluation.predictions import Predictions
from cxr_records.trainers.evaluation.results import Calibration, Decisions

THRESHOLDS = 30  # of each curve
_TIMES_PREVALENCE, _HIGHEST = 3, 0.5  # where the thresholds end


def net_benefit(labels: np.ndarray, acted: np.ndarray, threshold: float) -> np.ndarray:
    """Returns what each image adds to the net benefit: float64 [n], of which the mean is the net benefit.

    Args:
        labels: [n], zeros and ones; other labels add nothing.
        acted: bool [n], which images were acted on.
        threshold: the probability from which on one would act, below 1.
    """
    return acted * np.where(labels == 1, 1.0, np.where(labels == 0, -threshold / (1 - threshold), 0.0))


def decisions(
    scored: Predictions, probabilities: np.ndarray, calibration: Calibration, draws: int, seed: int
) -> dict[str, Decisions | None]:
    """Returns the decision curve of each class; None for one without positives or negatives.

    Args:
        scored: whose labels count.
        probabilities: float64 [n, k], the best calibrated ones.
        calibration: how these were come by.
        draws: of the bootstrap, over patients alone; 0 for none.
        seed: of the draws.
    """
    yes, judged = scored.labels == 1, scored.labels >= 0
    held = np.flatnonzero(yes.any(axis=0) & (scored.labels == 0).any(axis=0)).tolist()
    grids = {place: _thresholds(yes[:, place].sum() / judged[:, place].sum()) for place in held}
    images = by_patient(scored.patient_ids, judged[:, held].astype(np.float64))
    columns = [
        by_patient(scored.patient_ids, _curve(scored.labels[:, place], probabilities[:, place], grid))
        for place, grid in grids.items()
    ]
    table = np.concatenate([images, *columns], axis=1)

    def means(weights: np.ndarray) -> np.ndarray:
        sums = weights.T @ table
        count = np.repeat(sums[:, : len(held)], THRESHOLDS, axis=1)
        with np.errstate(divide="ignore", invalid="ignore"):
            benefits: np.ndarray = np.where(count > 0, sums[:, len(held) :] / count, np.nan)
        return benefits

    drawn = sample(means, np.unique(scored.patient_ids), draws, seed, images=False)
    found: dict[str, Decisions | None] = dict.fromkeys(scored.names)
    for index, (place, grid) in enumerate(grids.items()):
        name = scored.names[place]
        each = [drawn.interval(THRESHOLDS * index + offset) for offset in range(THRESHOLDS)]
        labels, everyone = scored.labels[judged[:, place], place], np.ones(judged[:, place].sum(), bool)
        found[name] = Decisions(
            scores=_which(calibration, name),
            thresholds=tuple(grid.tolist()),
            model=tuple(interval.value or 0.0 for interval in each),
            low=tuple(interval.low or 0.0 for interval in each) if draws else None,
            high=tuple(interval.high or 0.0 for interval in each) if draws else None,
            treat_all=tuple(round(float(net_benefit(labels, everyone, t).mean()), DIGITS) for t in grid),
        )
    return found


def _thresholds(prevalence: float) -> np.ndarray:
    """From above 0 to three times the prevalence, or 0.5: float64 [30], rounded."""
    end = min(_HIGHEST, _TIMES_PREVALENCE * prevalence)
    return np.linspace(0, end, THRESHOLDS + 1)[1:].round(DIGITS)


def _curve(labels: np.ndarray, probabilities: np.ndarray, grid: np.ndarray) -> np.ndarray:
    """What each image adds at each threshold: float64 [n, 30]."""
    return np.stack([net_benefit(labels, probabilities >= t, t) for t in grid], axis=1)


def _which(calibration: Calibration, name: str) -> str:
    if calibration.classes[name].offset is not None:
        return "calibrated by slope and offset"
    return "with what training did to the odds undone" if calibration.undone else "as the model gives them"
