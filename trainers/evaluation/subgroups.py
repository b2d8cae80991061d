"""AUROC by view, sex and age: a mean can hide a group for which a model fails."""

from collections.abc import Iterator

import numpy as np

from cxr_records.trainers.evaluation import metrics
from cxr_records.trainers.evaluation.bootstrap import rounded
from cxr_records.trainers.evaluation.predictions import Predictions
from cxr_records.trainers.evaluation.results import Subgroup, SubgroupAuroc

AGE_BANDS = ((0, 17), (18, 39), (40, 59), (60, 79), (80, 200))  # years, both ends included
FEW_PATIENTS = 30  # positive patients below which a class is not to be ranked


def subgroups(scored: Predictions) -> tuple[Subgroup, ...]:
    """Returns the measures of each group that has images.

    A class's AUROC is None where the group lacks positives or negatives; `few` tells that fewer than 30
    patients of the group are positive.
    """
    return tuple(_subgroup(scored, by, group, rows) for by, group, rows in _groups(scored))


def _subgroup(scored: Predictions, by: str, group: str, rows: np.ndarray) -> Subgroup:
    labels, scores, patients = scored.labels[rows], scored.scores[rows], scored.patient_ids[rows]
    areas = metrics.auroc_per_class(labels, scores)
    classes = {}
    for place, name in enumerate(scored.names):
        positive = labels[:, place] == 1
        classes[name] = SubgroupAuroc(
            value=rounded(areas[place]),
            positives=int(positive.sum()),
            few=len(np.unique(patients[positive])) < FEW_PATIENTS,
        )
    return Subgroup(
        by=by,
        group=group,
        images=int(rows.sum()),
        patients=len(np.unique(patients)),
        macro_auroc=rounded(metrics.macro(areas)),
        auroc=classes,
    )


def _groups(scored: Predictions) -> Iterator[tuple[str, str, np.ndarray]]:
    groups = [("view", view or "unknown", scored.views == view) for view in ("PA", "AP", "")]
    groups += [("sex", sex or "unknown", scored.sexes == sex) for sex in ("F", "M", "")]
    ages = scored.ages_years
    for low, high in AGE_BANDS:
        name = f"{low}-{high}" if high < 200 else f"{low} and over"
        groups.append(("age", name, (ages >= low) & (ages <= high)))
    groups.append(("age", "unknown", ages < 0))
    yield from (group for group in groups if group[2].any())
