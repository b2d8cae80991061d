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
        labels: [n], zeros and ones.
        acted: bool [n], which images were acted on.
        threshold: the probability from which on one would act, below 1.
    """
    return acted * np.where(labels == 1, 1.0, -threshold / (1 - threshold))


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
    held = [place for place, column in enumerate(scored.labels.T) if 0 < column.sum() < len(column)]
    grids = {place: _thresholds(scored.labels[:, place].mean()) for place in held}
    images = by_patient(scored.patient_ids, np.ones((len(scored.labels), 1)))
    columns = [
        by_patient(scored.patient_ids, _curve(scored.labels[:, place], probabilities[:, place], grid))
        for place, grid in grids.items()
    ]
    table = np.concatenate([images, *columns], axis=1)

    def means(weights: np.ndarray) -> np.ndarray:
        sums = weights.T.astype(np.float64) @ table
        benefits: np.ndarray = sums[:, 1:] / sums[:, :1]
        return benefits

    drawn = sample(means, np.unique(scored.patient_ids), draws, seed, images=False)
    found: dict[str, Decisions | None] = dict.fromkeys(scored.names)
    for index, (place, grid) in enumerate(grids.items()):
        name = scored.names[place]
        each = [drawn.interval(THRESHOLDS * index + offset) for offset in range(THRESHOLDS)]
        everyone = np.ones(len(scored.labels), bool)
        found[name] = Decisions(
            scores=_which(calibration, name),
            thresholds=tuple(grid.tolist()),
            model=tuple(interval.value or 0.0 for interval in each),
            low=tuple(interval.low or 0.0 for interval in each) if draws else None,
            high=tuple(interval.high or 0.0 for interval in each) if draws else None,
            treat_all=tuple(
                round(float(net_benefit(scored.labels[:, place], everyone, t).mean()), DIGITS) for t in grid
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
