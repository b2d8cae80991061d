"""How many records each training image gets, and what that does to the balance of the classes.

One image carries several findings, so a copy made for a rare one drags the common ones along: an image's
factor comes from its rarest finding, and `imbalance` tells what came with it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cxr_records.choices import RULES as RULES
from cxr_records.columns import chunks, texts
from cxr_records.errors import UsageError
from cxr_records.findings import nearest
from cxr_records.seeding import keyed_hashes

# A multilabel set counts as imbalanced from this MeanIR on (Charte et al. 2015, section 3).
IMBALANCED_MEAN_IR = 1.5


@dataclass(frozen=True)
class CopyRule:
    """How rare classes are copied.

    Attributes:
        rule: one of `RULES` (the argument `copies` of a build).
        target: share of the training images that linear and sqrt aim at, above 0 and below 1
            (`copies_target`).
        max_records: for linear and sqrt the most records of one image, the original among them; for fixed
            the number of copies that each image gets beside the original (`copies_max`).
        of: names of the only classes to copy for; empty for the rule's own choice (`copies_of`).

    Raises:
        UsageError: a value is not one of these.
    """

    rule: str = "linear"
    target: float = 0.03
    max_records: int = 10
    of: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.rule not in RULES:
            guess = nearest(self.rule, RULES)
            raise UsageError(f"`copies={self.rule}`: unknown rule{guess}; expected one of {', '.join(RULES)}")
        if not 0 < self.target < 1:  # also refuses NaN
            raise UsageError(
                f"`copies_target={self.target}`: expected a share of the images above 0 and below 1; "
                "for 3% give 0.03"
            )
        if not isinstance(self.max_records, int) or self.max_records < 1:
            raise UsageError(
                f"`copies_max={self.max_records}`: expected a whole number of at least 1; "
                "for no copies at all give `copies='none'`"
            )
        object.__setattr__(self, "of", (self.of,) if isinstance(self.of, str) else tuple(self.of))

    def check_names(self, class_names: Sequence[str]) -> None:
        """Refuses to copy for a class that a task does not have.

        Raises:
            UsageError: with the name most like it.
        """
        for name in self.of:
            if name not in class_names:
                raise UsageError(
                    f"`copies_of={name}`: no such class{nearest(name, class_names)}; "
                    f"expected one of this task's: {', '.join(class_names)}"
                )


@dataclass(frozen=True)
class ClassBalance:
    """One class before and after copies.

    Attributes:
        name: the class.
        images: training images that hold it.
        records: records that hold it, originals and copies.
        irlbl_before: images of the most frequent class / `images`; None for a class without images.
        irlbl_after: the same of records.
        dragged: of the copies that the rule makes of images with this class, the share (0 to 1) that the
            class did not ask for itself: they were made for a rarer class on the same image.
    """

    name: str
    images: int
    records: int
    irlbl_before: float | None
    irlbl_after: float | None
    dragged: float


@dataclass(frozen=True)
class Imbalance:
    """The balance of the training split before and after copies (IRLbl, MeanIR: Charte et al. 2015).

    MeanIR is the mean and maxIR the largest IRLbl of the classes that have images; None when none has.
    """

    classes: tuple[ClassBalance, ...]
    mean_ir_before: float | None
    mean_ir_after: float | None
    max_ir_before: float | None
    max_ir_after: float | None

    def to_json(self) -> dict[str, Any]:
        """Returns plain values for a plan's JSON and the manifest, ratios rounded to 4 digits."""
        return {
            "classes": {
                c.name: {
                    "images": c.images,
                    "records": c.records,
                    "irlbl": {"before": _rounded(c.irlbl_before), "after": _rounded(c.irlbl_after)},
                    "dragged": _rounded(c.dragged),
                }
                for c in self.classes
            },
            "mean_ir": {"before": _rounded(self.mean_ir_before), "after": _rounded(self.mean_ir_after)},
            "max_ir": {"before": _rounded(self.max_ir_before), "after": _rounded(self.max_ir_after)},
        }


def records_per_image(
    classes: np.ndarray, class_names: Sequence[str], rule: CopyRule, image_ids: Any, seed: int
) -> np.ndarray:
    """Returns how many records each training image gets: int64 [n], 1 for the original alone.

    A fractional factor such as 2.3 is met by rounding: 3 records for 30% of the images, 2 for the rest. Which
    ones depends on (seed, image_id) alone, so other images do not change an image's draw.

    Args:
        classes: uint8 [n, k], 1 where the image holds the class: the 14 findings of a multilabel task (an
            image without findings is all zeros, so never copied), or one-hot rows of the task's own classes.
        class_names: k names.
        rule: how to copy.
        image_ids: n ids, a column of text.
        seed: of the plan.

    Raises:
        UsageError: `rule.of` names a class that the task does not have.
    """
    factors = image_factors(classes, class_factors(classes, class_names, rule))
    if len(image_ids) != len(factors):
        raise ValueError(f"{len(image_ids)} image ids for {len(factors)} rows of classes")
    records: np.ndarray = np.floor(factors).astype(np.int64)
    fractions = factors - records
    rows, ids = np.flatnonzero(fractions), texts(image_ids)
    for part in chunks(len(rows)):
        uniform = keyed_hashes(seed, ids.take(rows[part]), "records") / 2**64
        records[rows[part]] += uniform < fractions[rows[part]]
    return records


def class_factors(classes: np.ndarray, class_names: Sequence[str], rule: CopyRule) -> np.ndarray:
    """Returns the records per image that each class asks for by itself: float64 [k], at least 1.

    With f the share of images that hold the class and t the target: linear t / f; sqrt √(t / f), which is
    repeat factor sampling (LVIS, Gupta et al. 2019); both at most `rule.max_records`. fixed:
    1 + `rule.max_records` for the named or the under-represented classes. A class without images asks for
    nothing.

    Raises:
        UsageError: `rule.of` names a class that the task does not have.
    """
    images = _count(classes)
    chosen = _chosen(classes, class_names, rule) & (images > 0)
    factors = np.ones(len(class_names))
    if rule.rule == "fixed":
        factors[chosen] = 1 + rule.max_records
    elif rule.rule != "none":
        ratio = rule.target * len(classes) / images[chosen]
        factors[chosen] = np.clip(np.sqrt(ratio) if rule.rule == "sqrt" else ratio, 1, rule.max_records)
    return factors


def image_factors(classes: np.ndarray, factors: np.ndarray) -> np.ndarray:
    """Returns the largest factor among each image's classes: float64 [n], 1 for an image of no class."""
    result = np.ones(len(classes))
    for column, factor in zip(classes.T, factors, strict=True):
        if factor > 1:
            np.maximum(result, factor, out=result, where=column.astype(bool))
    return result


def under_represented(classes: np.ndarray, class_names: Sequence[str]) -> tuple[str, ...]:
    """Returns the classes whose IRLbl is above MeanIR (Charte et al. 2015), in the order given.

    Returns none where MeanIR is 1.5 or less: such a set is not imbalanced, and ten copies of the smaller of
    two nearly equal classes would only turn the imbalance around. A class without images is not among them.
    """
    irlbl = _irlbl(_count(classes))
    mean = _mean(irlbl)
    if mean is None or mean <= IMBALANCED_MEAN_IR:
        return ()
    return tuple(name for name, ratio in zip(class_names, irlbl, strict=True) if ratio > mean)


def empty_classes_warning(names: Sequence[str]) -> str:
    """Returns one line that warns of classes without a training image, or "" when there are none."""
    if not names:
        return ""
    return (
        f"no training image holds {', '.join(names)}: nothing to copy and nothing to learn there; "
        "choose another split or task, or leave these classes out of the results"
    )


def imbalance(
    classes: np.ndarray, records: np.ndarray, class_names: Sequence[str], rule: CopyRule
) -> Imbalance:
    """Counts each class before and after copies, and how far the copies dragged other classes along.

    `ClassBalance.dragged` is Σ (factor of the image - factor of the class) / Σ (factor of the image - 1) over
    the images with the class, before rounding: 0 for the rarest class and for one that gained no record, 1
    for a class that the rule would not have copied.

    Args:
        classes: uint8 [n, k], as for `records_per_image`.
        records: int64 [n], as `records_per_image` returned it.
        class_names: k names.
        rule: the rule that made `records`.
    """
    own = class_factors(classes, class_names, rule)
    images, after = _count(classes), _count(classes, records)
    dragged = _dragged(classes, own)
    before_ir, after_ir = _irlbl(images), _irlbl(after)
    return Imbalance(
        classes=tuple(
            ClassBalance(
                name=name,
                images=int(images[i]),
                records=int(after[i]),
                irlbl_before=_finite(before_ir[i]),
                irlbl_after=_finite(after_ir[i]),
                dragged=dragged[i],
            )
            for i, name in enumerate(class_names)
        ),
        mean_ir_before=_mean(before_ir),
        mean_ir_after=_mean(after_ir),
        max_ir_before=_finite(np.fmax.reduce(before_ir, initial=np.nan)),
        max_ir_after=_finite(np.fmax.reduce(after_ir, initial=np.nan)),
    )


def class_weights(records: Sequence[float], total: int) -> list[float]:
    """Returns a loss weight per class: inverse frequency, total / (classes with records × records).

    Over single-label records the mean weight is 1. Give the counts AFTER copies: the copies have corrected
    part of the imbalance, and weights from the counts before would correct that part twice. A class without
    records gets weight 0.

    Args:
        records: records per class as seen in training, copies included.
        total: records of the split, copies included.
    """
    filled = sum(count > 0 for count in records)
    return [total / (filled * count) if count else 0.0 for count in records]


def _chosen(classes: np.ndarray, class_names: Sequence[str], rule: CopyRule) -> np.ndarray:
    """Returns bool [k]: the classes that the rule may copy for."""
    rule.check_names(class_names)
    names: Sequence[str] = rule.of
    if not names:
        names = under_represented(classes, class_names) if rule.rule == "fixed" else class_names
    return np.isin(list(class_names), list(names))


def _count(classes: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """Returns per class the images that hold it, each as often as its weight says: [k]."""
    if weights is None:
        return np.array([np.count_nonzero(column) for column in classes.T])
    # A product of integers avoids the copy in floating point that a masked sum would need.
    return np.array([column.astype(weights.dtype) @ weights for column in classes.T])


def _dragged(classes: np.ndarray, own: np.ndarray) -> list[float]:
    """Returns per class the share of its copies that its own factor does not account for; see `imbalance`."""
    factors = image_factors(classes, own)
    shares = []
    for column, factor in zip(classes.T, own, strict=True):
        of_images = factors[column.astype(bool)]
        copies = float((of_images - 1).sum())
        shares.append(float((of_images - factor).sum()) / copies if copies else 0.0)
    return shares


def _irlbl(counts: np.ndarray) -> np.ndarray:
    """Returns count of the most frequent class / count of each class; NaN for an empty class."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(counts > 0, counts.max(initial=0) / counts, np.nan)


def _mean(ratios: np.ndarray) -> float | None:
    known = ratios[np.isfinite(ratios)]
    return float(known.mean()) if len(known) else None


def _finite(ratio: float) -> float | None:
    return float(ratio) if np.isfinite(ratio) else None


def _rounded(ratio: float | None) -> float | None:
    return None if ratio is None else round(ratio, 4)
