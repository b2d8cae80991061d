"""Which classes choose the best epoch: those of which validation holds enough to tell epochs apart.

The AUROC of a class with 3 positive images moves by a tenth from epoch to epoch, and the largest mean of many
such is luck. With n positives and many negatives, the AUROC of a ranking that knows nothing has a standard
deviation of .29 / sqrt(n): .09 with 10.
"""

import dataclasses

import numpy as np

MIN_PATIENTS = 3  # images of one patient look alike: many of them count little more than one


@dataclasses.dataclass(frozen=True)
class Selection:
    """How the epoch that a run keeps is chosen.

    Attributes:
        names: of the classes whose mean AUROC on validation tells epochs apart; none where the last one is
            kept.
        text: a line that says so.
    """

    names: tuple[str, ...] = ()
    text: str = ""


def without_validation() -> Selection:
    """Returns what holds where there is nothing to choose by."""
    return Selection(text="no validation split: no early stopping, and the last epoch's weights are kept")


def last() -> Selection:
    """Returns what holds where the last epoch was asked for."""
    return Selection(text="the last epoch's weights are kept (keep=last)")


def choose(
    names: tuple[str, ...], rows: np.ndarray, patient_ids: np.ndarray, min_positives: int
) -> Selection:
    """Finds the classes of which validation holds enough images with and without the finding.

    Where it holds enough of none, all that have any of both take part.

    Args:
        names: of k scores.
        rows: uint8 [n, k], 1 where the image holds the class.
        patient_ids: [n].
        min_positives: images of each kind, of at least `MIN_PATIENTS` patients.
    """
    positive = rows.T.astype(bool)

    def chosen(holds: np.ndarray) -> tuple[str, ...]:
        return tuple(name for name, each in zip(names, holds, strict=True) if each)

    def enough(held: np.ndarray) -> bool:
        return held.sum() >= min_positives and len(np.unique(patient_ids[held])) >= MIN_PATIENTS

    rule = f"at least {min_positives} positive images of {MIN_PATIENTS} patients in validation"
    by = "the best epoch is chosen by the mean AUROC of"
    if able := chosen(np.array([enough(each) and enough(~each) for each in positive])):
        return Selection(able, f"{by} {_of(able, names)} with {rule}")
    if able := chosen(np.array([each.any() and not each.all() for each in positive])):
        return Selection(able, f"no class has {rule}: {by} {_of(able, names)} with any")
    return Selection(text="validation ranks no class: no early stopping, the last epoch's weights are kept")


def _of(some: tuple[str, ...], names: tuple[str, ...]) -> str:
    if len(names) == 1:
        return f"the class {names[0]}"
    listed = "" if len(some) == len(names) else f" ({', '.join(some)})"
    return f"the {len(some)} of {len(names)} classes{listed}"
