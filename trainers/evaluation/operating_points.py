"""What one threshold does: sensitivity, specificity, PPV and NPV, of all images and of each subgroup."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from cxr_records.trainers.evaluation import metrics
from cxr_records.trainers.evaluation.bootstrap import DIGITS, Sample, by_patient, sample
from cxr_records.trainers.evaluation.predictions import Predictions
from cxr_records.trainers.evaluation.results import GroupShares, Interval, OperatingPoint, Shares

FEW_PATIENTS = 30  # below which a share is not set beside another, and a class not ranked
_MEASURES = tuple(field.name for field in dataclasses.fields(Shares))
_COMPARED = ("sensitivity", "specificity")


def choose_thresholds(scored: Predictions, validation: Predictions | None) -> list[float | None]:
    """Returns for each class the threshold of the largest Youden index, on validation where there is one."""
    chosen_on = validation or scored
    return [
        metrics.youden_threshold(labels, scores)
        for labels, scores in zip(chosen_on.labels.T, chosen_on.scores.T, strict=True)
    ]


def operating_points(
    scored: Predictions,
    validation: Predictions | None,
    groups: Sequence[np.ndarray],
    draws: int,
    seed: int,
) -> tuple[list[OperatingPoint | None], list[list[GroupShares | None]]]:
    """Returns what each class's threshold does on all images, and on those of each group.

    The threshold stays as it is in every draw: it was chosen before the patients were drawn. A group's share
    is compared with the whole's in the same draws.

    Args:
        scored: what is measured.
        validation: of the same model; None where there is none, and then thresholds are chosen on `scored`
            itself, which is said.
        groups: bool [n] each.
        draws: of the bootstrap, over patients alone; 0 for none.
        seed: of the draws.

    Returns:
        By class; and by group, then class. None for a class without a threshold.
    """
    thresholds = choose_thresholds(scored, validation)
    places = [place for place, threshold in enumerate(thresholds) if threshold is not None]
    everyone = np.ones(len(scored.labels), bool)
    counts = [
        _count(scored, place, thresholds[place], rows) for rows in (everyone, *groups) for place in places
    ]
    held = [_patients(each) for each in counts]
    patients = np.unique(scored.patient_ids)
    table = np.concatenate([np.empty((len(patients), 0), np.float32), *counts], axis=1)
    whole, of_groups = len(places), len(places) * len(groups)

    def shares(weights: np.ndarray) -> np.ndarray:
        """float64 [draws, 4 (1 + groups) classes + 2 groups classes]: the shares, and the differences."""
        # Whole numbers below 2^24, which float32 adds exactly.
        sums = (weights.T.astype(np.float32) @ table).reshape(weights.shape[1], whole + of_groups, 4)
        above, among = _shares_of(sums)
        with np.errstate(divide="ignore", invalid="ignore"):
            found = np.where(among > 0, above / among, np.nan)  # [4, draws, (1 + groups) classes]
        compared = found[[_MEASURES.index(name) for name in _COMPARED]]
        beside = np.tile(compared[:, :, :whole], (1, 1, len(groups)))
        columns = [found.transpose(1, 2, 0), (compared[:, :, whole:] - beside).transpose(1, 2, 0)]
        return np.concatenate([each.reshape(len(each), -1) for each in columns], axis=1)

    drawn = sample(shares, patients, draws, seed, images=False)
    intervals = [_intervals(drawn, place, each) for place, each in enumerate(held)]
    points: list[OperatingPoint | None] = [None] * len(thresholds)
    by_group: list[list[GroupShares | None]] = [[None] * len(thresholds) for _ in groups]
    chosen_on = validation.split if validation else f"{scored.split} (no validation scores)"
    for index, place in enumerate(places):
        threshold = thresholds[place]
        assert threshold is not None
        points[place] = OperatingPoint(**intervals[index], threshold=threshold, chosen_on=chosen_on)
    for index in range(of_groups):
        group, place = divmod(index, whole)
        few = tuple(name for name in _COMPARED if held[whole + index][name] < FEW_PATIENTS)
        first = 4 * (whole + of_groups) + 2 * index
        differs = tuple(
            name
            for offset, name in enumerate(_COMPARED)
            if name not in few and _excludes_0(drawn.interval(first + offset))
        )
        by_group[group][places[place]] = GroupShares(**intervals[whole + index], few=few, differs=differs)
    return points, by_group


def _count(scored: Predictions, place: int, threshold: float | None, rows: np.ndarray) -> np.ndarray:
    """Images of each patient, of all of them, that are of each kind: float32 [patients, 4]."""
    assert threshold is not None
    says, labels = scored.scores[:, place] >= threshold, scored.labels[:, place]
    positive, negative = labels == 1, labels == 0
    kinds = np.stack([positive & says, positive & ~says, negative & ~says, negative & says], axis=1)
    return by_patient(scored.patient_ids, (kinds & rows[:, np.newaxis]).astype(np.float32))


def _shares_of(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Numerators and denominators of the four measures: [4, ...] each, of counts [..., 4]."""
    true, missed, left, false = np.moveaxis(counts, -1, 0)
    among = np.stack([true + missed, left + false, true + false, left + missed])
    return np.stack([true, left, true, left]), among


def _patients(counts: np.ndarray) -> dict[str, int]:
    """Patients with an image that a measure is a share of, by measure."""
    return dict(zip(_MEASURES, (_shares_of(counts)[1] > 0).sum(axis=1).tolist(), strict=True))


def _intervals(drawn: Sample, place: int, patients: dict[str, int]) -> dict[str, Interval]:
    """The four measures of one class in one group, by name."""
    return {
        name: opened(drawn.interval(4 * place + offset), patients[name])
        for offset, name in enumerate(_MEASURES)
    }


def opened(found: Interval, patients: int) -> Interval:
    """Opens an interval that has no width because all images are of one kind: drawing them tells nothing.

    A share of 1 has the lower bound of Clopper and Pearson (1934), as if each patient were one image; a share
    of 0 their upper one.
    """
    if found.low is None or found.high is None or found.value not in (0.0, 1.0):
        return found
    least = round(0.025 ** (1 / patients), DIGITS)
    if found.value == 1:
        return dataclasses.replace(found, low=min(found.low, least))
    return dataclasses.replace(found, high=max(found.high, round(1 - least, DIGITS)))


def _excludes_0(found: Interval) -> bool:
    return found.low is not None and found.high is not None and not found.low <= 0 <= found.high
