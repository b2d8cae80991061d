"""Two runs on the same images: differences on the same draws of patients, and several of them at once."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from cxr_records.errors import UsageError
from cxr_records.trainers.evaluation import metrics
from cxr_records.trainers.evaluation.bootstrap import DIGITS, DRAWS, sample
from cxr_records.trainers.evaluation.operating_points import FEW_PATIENTS
from cxr_records.trainers.evaluation.predictions import Predictions
from cxr_records.trainers.evaluation.results import ALPHA, Difference, PairedInterval


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Returns p-values adjusted for being several (Holm 1979): the smallest times their number, and so on.

    The k-th smallest is multiplied by what is left of them, itself included; none falls below one before it,
    none is above 1. None stays None and is not counted.
    """
    ranked = sorted((p, place) for place, p in enumerate(p_values) if p is not None)
    adjusted: list[float | None] = [None] * len(p_values)
    highest = 0.0
    for rank, (p, place) in enumerate(ranked):
        highest = max(highest, min(1.0, (len(ranked) - rank) * p))
        adjusted[place] = round(highest, DIGITS)
    return adjusted


def compare(
    scored: Mapping[str, Predictions], pairs: Sequence[tuple[str, str]], draws: int = DRAWS, seed: int = 0
) -> tuple[Difference, ...]:
    """Returns the differences in AUROC of pairs of runs, by class and macro.

    P-values of the classes are adjusted over all classes of all pairs, those of the macro AUROC over the
    pairs.

    Args:
        scored: what each run scored.
        pairs: of runs: a and b, for b less a.
        draws: of the bootstrap; 0 for none.
        seed: of the draws.

    Raises:
        UsageError: runs of different classes, or without a common image.
    """
    found = [_difference(scored, a, b, draws, seed) for a, b in pairs]
    macros = iter(holm([each.macro_auroc.p for each in found]))
    classes = iter(holm([change.p for each in found for change in each.auroc.values()]))
    return tuple(
        dataclasses.replace(
            each,
            macro_auroc=_decided(each.macro_auroc, next(macros)),
            auroc={name: _decided(change, next(classes)) for name, change in each.auroc.items()},
        )
        for each in found
    )


def _difference(scored: Mapping[str, Predictions], a: str, b: str, draws: int, seed: int) -> Difference:
    """One pair, with p-values as they are, and what few patients leave undecided."""
    one, other = scored[a], scored[b]
    if one.names != other.names:
        raise UsageError(
            f"{a} and {b} cannot be compared: found classes {', '.join(one.names)} "
            f"and {', '.join(other.names)}"
        )
    common, rows, rows_of_other = np.intersect1d(one.image_ids, other.image_ids, return_indices=True)
    if not len(common):
        raise UsageError(f"{a} and {b} cannot be compared: they have scored no common image")
    labels, patients = one.labels[rows], one.patient_ids[rows]
    rankings = [
        [metrics.Ranking(y, s) for y, s in zip(labels.T, scores.T, strict=True)]
        for scores in (one.scores[rows], other.scores[rows_of_other])
    ]

    def change(weights: np.ndarray) -> np.ndarray:
        areas = [np.array([ranking.counts(weights).auroc() for ranking in each]) for each in rankings]
        differences: np.ndarray = (areas[1] - areas[0]).T  # [draws, k]
        return differences

    drawn = sample(change, patients, draws, seed, means=[range(len(one.names))])

    def paired(place: int, few: str | None) -> PairedInterval:
        p = drawn.p_value(place)
        interval = drawn.interval(place)
        p = None if p is None else round(p, DIGITS)
        return PairedInterval(**vars(interval), p=p, p_adjusted=None, undecided=few)

    count = len(np.unique(patients))
    return Difference(
        a=a,
        b=b,
        images=len(common),
        patients=count,
        macro_auroc=paired(len(one.names), _few(count, "")),
        auroc={
            name: paired(place, _few_of_class(labels[:, place], patients))
            for place, name in enumerate(one.names)
        },
    )


def _few_of_class(labels: np.ndarray, patients: np.ndarray) -> str | None:
    """What to say where too few patients have a finding, or an image without it."""
    with_it, without = (len(np.unique(patients[labels == kind])) for kind in (1, 0))
    return _few(with_it, " with the finding") or _few(without, " without the finding")


def _few(count: int, which: str) -> str | None:
    if count >= FEW_PATIENTS:
        return None
    patients = "1 patient" if count == 1 else f"{count} patients"
    return f"{patients}{which}, fewer than {FEW_PATIENTS}"


def _decided(each: PairedInterval, p_adjusted: float | None) -> PairedInterval:
    """With the adjusted p-value, and why the difference is not decided."""
    undecided = each.undecided
    if each.value is None:
        undecided = "undefined"
    elif undecided is not None:
        pass
    elif each.low is None or each.high is None:
        undecided = f"no interval: {each.no_interval}" if each.no_interval else "no draws"
    elif each.low <= 0 <= each.high:
        undecided = "the interval spans 0"
    elif p_adjusted is not None and p_adjusted > ALPHA:
        undecided = f"the p-value adjusted for several comparisons is {p_adjusted:.3f}"
    return dataclasses.replace(each, p_adjusted=p_adjusted, undecided=undecided)
