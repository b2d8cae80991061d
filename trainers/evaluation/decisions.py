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
        labels: [n], zeros and ones; images of other labels add nothing.
        acted: bool [n], which images were acted on.
        threshold: the probability from which on one would act, below 1.
    """
    gain: np.ndarray = acted * ((labels == 1) - (labels == 0) * (threshold / (1 - threshold)))
    return gain


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
    held = [place for place, column in enumerate(scored.labels.T) if {0, 1} <= set(column.tolist())]
    judged = scored.labels >= 0
    grids = {place: _thresholds(scored.labels[judged[:, place], place].mean()) for place in held}
    images = by_patient(scored.patient_ids, judged[:, held].astype(np.float64))
    columns = [
        by_patient(scored.patient_ids, _curve(scored.labels[:, place], probabilities[:, place], grid))
        for place, grid in grids.items()
    ]
    table = np.concatenate([images, *columns], axis=1)

    def means(weights: np.ndarray) -> np.ndarray:
        sums = weights.T.astype(np.float64) @ table
        with np.errstate(divide="ignore", invalid="ignore"):
            benefits: np.ndarray = sums[:, len(held) :] / np.repeat(sums[:, : len(held)], THRESHOLDS, axis=1)
        return benefits

    drawn = sample(means, np.unique(scored.patient_ids), draws, seed, images=False)
    found: dict[str, Decisions | None] = dict.fromkeys(scored.names)
    for index, (place, grid) in enumerate(grids.items()):
        name, truth = scored.names[place], scored.labels[judged[:, place], place]
        each = [drawn.interval(THRESHOLDS * index + offset) for offset in range(THRESHOLDS)]
        found[name] = Decisions(
            scores=_which(calibration, name),
            thresholds=tuple(grid.tolist()),
            model=tuple(interval.value or 0.0 for interval in each),
            low=tuple(interval.low or 0.0 for interval in each) if draws else None,
            high=tuple(interval.high or 0.0 for interval in each) if draws else None,
            treat_all=tuple(
                round(float(net_benefit(truth, np.ones(len(truth), bool), t).mean()), DIGITS) for t in grid
            ),
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
