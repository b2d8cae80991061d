"""AUROC by view, sex and age: a mean can hide a group for which a model fails."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from cxr_records.trainers.evaluation import metrics
from cxr_records.trainers.evaluation.bootstrap import DRAWS, intervals
from cxr_records.trainers.evaluation.operating_points import FEW_PATIENTS
from cxr_records.trainers.evaluation.predictions import Predictions
from cxr_records.trainers.evaluation.results import GroupShares, Subgroup, SubgroupAuroc

AGE_BANDS = ((0, 17), (18, 39), (40, 59), (60, 79), (80, 200))  # years, both ends included


def subgroups(
    scored: Predictions,
    points: Sequence[Sequence[GroupShares | None]] | None = None,
    draws: int = DRAWS,
    seed: int = 0,
) -> tuple[Subgroup, ...]:
    """Returns the measures of each group that has images.

    A class's AUROC is None where the group lacks positives or negatives; `few` tells that fewer than 30
    patients of the group are positive.

    Args:
        scored: what is measured.
        points: what the operating points do, by group of `groups` and class; None for none.
        draws: of the bootstrap, over patients alone; 0 for none.
        seed: of the draws.
    """
    found = []
    for place, (by, group, rows) in enumerate(groups(scored)):
        each = points[place] if points else [None] * len(scored.names)
        found.append(
            _subgroup(scored, by, group, rows, dict(zip(scored.names, each, strict=True)), draws, seed)
        )
    return tuple(found)


def groups(scored: Predictions) -> Iterator[tuple[str, str, np.ndarray]]:
    """Yields "view", "sex" or "age", the name of a group, and which images it has: bool [n].

    Each image is in one group of each kind; groups without images are left out.
    """
    every = [("view", view or "unknown", scored.views == view) for view in ("PA", "AP", "")]
    every += [("sex", sex or "unknown", scored.sexes == sex) for sex in ("F", "M", "")]
    ages = scored.ages_years
    for low, high in AGE_BANDS:
        name = f"{low}-{high}" if high < 200 else f"{low} and over"
        every.append(("age", name, (ages >= low) & (ages <= high)))
    every.append(("age", "unknown", ages < 0))
    yield from (group for group in every if group[2].any())


def _subgroup(
    scored: Predictions,
    by: str,
    group: str,
    rows: np.ndarray,
    points: Mapping[str, GroupShares | None],
    draws: int,
    seed: int,
) -> Subgroup:
    labels, scores, patients = scored.labels[rows], scored.scores[rows], scored.patient_ids[rows]
    rankings = [metrics.Ranking(y, s) for y, s in zip(labels.T, scores.T, strict=True)]

    def areas(weights: np.ndarray) -> np.ndarray:
        numbers = weights.astype(np.float64)  # once for all classes
        return np.stack([ranking.counts(numbers).auroc() for ranking in rankings], axis=1)

    *each, macro = intervals(areas, patients, draws, seed, [range(len(rankings))], images=False)
    classes = {}
    for name, truth, area in zip(scored.names, labels.T, each, strict=True):
        positive = truth == 1
        classes[name] = SubgroupAuroc(
            **vars(area),
            positives=int(positive.sum()),
            few=len(np.unique(patients[positive])) < FEW_PATIENTS,
        )
    return Subgroup(
        by=by,
        group=group,
        images=int(rows.sum()),
        patients=len(np.unique(patients)),
        macro_auroc=macro,
        auroc=classes,
        operating_points=points,
    )
