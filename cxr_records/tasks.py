"""The three kinds of task: which images take part in each, and what their label is.

"No Finding" is a class like any other here: an image without any of the 14 findings.
"""

from dataclasses import dataclass

import numpy as np

from cxr_records.errors import UsageError
from cxr_records.findings import FINDINGS, NO_FINDING, finding_index

ANY_FINDING = "Any Finding"
FORMS = ("binary", "binary:Pneumothorax", "binary:Mass,Nodule", "multiclass", "multilabel")

LEFT_OUT = -1  # the label of an image that takes no part


@dataclass(frozen=True, eq=False)
class Selection:
    """What a task makes of the images.

    Attributes:
        kept: bool [n], whether the image takes part.
        labels: int64 [n], or [n, 14] for multilabel; -1 where the image takes no part.
        reasons: object [n] of str, why the image takes no part; "" where it does.
    """

    kept: np.ndarray
    labels: np.ndarray
    reasons: np.ndarray

    def left_out(self) -> dict[str, int]:
        """Counts the images left out for each reason, most first; empty when all take part."""
        reasons, counts = np.unique(self.reasons[~self.kept].astype(str), return_counts=True)
        order = np.argsort(-counts, kind="stable")
        return {str(reasons[i]): int(counts[i]) for i in order}


@dataclass(frozen=True)
class Task:
    """A task, as made by `parse_task`.

    Attributes:
        name: the canonical text; `parse_task(name, with_no_finding)` gives the same task again.
        kind: "binary", "multiclass" or "multilabel".
        class_names: what label 0, 1, ... stand for; for multilabel, what the 14 places stand for.
        with_no_finding: whether multiclass has "No Finding" as its 15th class.
    """

    name: str
    kind: str
    class_names: tuple[str, ...]
    with_no_finding: bool = False

    @property
    def label_shape(self) -> tuple[int, ...]:
        """Shape of one image's label: () or (14,)."""
        return (len(FINDINGS),) if self.kind == "multilabel" else ()

    def select(self, findings: np.ndarray) -> Selection:
        """Decides for each image whether it takes part, and its label.

        Args:
            findings: uint8 [n, 14], in the order of `FINDINGS`.
        """
        if self.kind == "multilabel":
            return _selection(findings.astype(np.int64), np.full(len(findings), "", dtype=object))
        if self.kind == "multiclass":
            return self._select_multiclass(findings)
        return self._select_binary(findings)

    def class_rows(self, labels: np.ndarray) -> np.ndarray:
        """Turns labels into uint8 [n, number of classes], 1 where the image counts for the class.

        Images left out count for no class.
        """
        if self.kind == "multilabel":
            return (labels == 1).astype(np.uint8)
        return (labels[:, np.newaxis] == np.arange(len(self.class_names))).astype(np.uint8)

    def _select_multiclass(self, findings: np.ndarray) -> Selection:
        present = findings.sum(axis=1)
        labels = np.where(present == 1, findings.argmax(axis=1), LEFT_OUT)
        reasons = np.full(len(findings), "", dtype=object)
        reasons[present > 1] = "more than one finding"
        if self.with_no_finding:
            labels[present == 0] = len(FINDINGS)
        else:
            reasons[present == 0] = "no finding"
        return _selection(labels, reasons)

    def _select_binary(self, findings: np.ndarray) -> Selection:
        first, second = (_has(name, findings) for name in self.class_names)
        one, other = self.class_names
        labels = np.where(first & ~second, 0, np.where(second & ~first, 1, LEFT_OUT))
        reasons = np.full(len(findings), "", dtype=object)
        reasons[first & second] = f"both {one} and {other}"
        neither = f"another finding than {other}" if one == NO_FINDING else f"neither {one} nor {other}"
        reasons[~first & ~second] = neither
        return _selection(labels, reasons)


def parse_task(text: str, with_no_finding: bool = False) -> Task:
    """Reads a task from the command line.

    Args:
        text: "binary" (any finding against No Finding), "binary:Pneumothorax" (that finding against No
            Finding), "binary:Mass,Nodule" (the first is label 0), "multiclass" (exactly one finding) or
            "multilabel".
        with_no_finding: adds "No Finding" to multiclass as its 15th class.

    Raises:
        UsageError: another form, an unknown finding, a finding twice, or `with_no_finding` with a task other
            than multiclass.
    """
    kind, colon, names = text.strip().partition(":")
    if with_no_finding and text.strip() != "multiclass":
        raise UsageError(f"found --with-no-finding with --task {text}; it goes with --task multiclass only")
    if kind == "binary":
        return _binary(text, names) if colon else Task("binary", "binary", (NO_FINDING, ANY_FINDING))
    if text.strip() == "multiclass":
        extra = (NO_FINDING,) if with_no_finding else ()
        return Task("multiclass", "multiclass", (*FINDINGS, *extra), with_no_finding)
    if text.strip() == "multilabel":
        return Task("multilabel", "multilabel", FINDINGS)
    raise UsageError(f"found --task {text!r}; expected one of the forms {', '.join(FORMS)}")


def _binary(text: str, names: str) -> Task:
    """Makes the task of "binary:A" (No Finding against A) or "binary:A,B"."""
    classes = tuple(name.strip() for name in names.split(","))
    if not all(classes) or len(classes) > 2:
        raise UsageError(
            f"found --task {text!r}; expected one finding or two after the colon: {FORMS[1]}, {FORMS[2]}"
        )
    try:
        for name in classes:
            if name != NO_FINDING:
                finding_index(name)
    except ValueError as error:
        raise UsageError(f"found --task {text!r}: {error}") from error
    first, second = classes if len(classes) == 2 else (NO_FINDING, classes[0])
    if first == second:
        raise UsageError(f"found --task {text!r}, which sets {first} against itself; expected two classes")
    # "binary:No Finding,Mass" is what "binary:Mass" means.
    name = second if first == NO_FINDING else f"{first},{second}"
    return Task(f"binary:{name}", "binary", (first, second))


def _has(name: str, findings: np.ndarray) -> np.ndarray:
    """Returns bool [n]: whether the image belongs to the class, by that class alone."""
    if name == NO_FINDING:
        return ~findings.any(axis=1)
    return findings.any(axis=1) if name == ANY_FINDING else findings[:, finding_index(name)] > 0


def _selection(labels: np.ndarray, reasons: np.ndarray) -> Selection:
    return Selection(reasons == "", labels, reasons)
