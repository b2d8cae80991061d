"""The three kinds of task: which images take part in each, and what their label is.

"No Finding" is a class like any other here: an image without any of the 14 findings.
"""

from dataclasses import dataclass

import numpy as np

from cxr_records.errors import UsageError
from cxr_records.findings import FINDINGS, NO_FINDING, nearest

ANY_FINDING = "Any Finding"
FORMS = ("binary", "binary:Pneumothorax", "binary:Mass,Nodule", "multiclass", "multilabel")

LEFT_OUT = -1  # the label of an image that takes no part


@dataclass(frozen=True, eq=False)
class Selection:
    """What a task makes of the images.

    Attributes:
        kept: bool [n], whether the image takes part.
        labels: int64 [n], -1 where the image takes no part; for multilabel the findings: uint8 [n, 14].
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
        name: as manifests and runs hold it, beside `with_no_finding`.
        kind: "binary", "multiclass" or "multilabel".
        class_names: what label 0, 1, ... stand for; for multilabel, what the places stand for.
        with_no_finding: whether multiclass has "No Finding" as its last class.
        findings: of the set of images, in the order of a record's `findings`; 14 in NIH's.
    """

    name: str
    kind: str
    class_names: tuple[str, ...]
    with_no_finding: bool = False
    findings: tuple[str, ...] = FINDINGS

    @property
    def text(self) -> str:
        """The whole task in one text: `parse_task(text)` gives the same task again."""
        return f"{self.name}:{NO_FINDING}" if self.with_no_finding else self.name

    @property
    def label_shape(self) -> tuple[int, ...]:
        """Shape of one image's label: (), or (number of findings,) for multilabel."""
        return (len(self.findings),) if self.kind == "multilabel" else ()

    def select(self, findings: np.ndarray) -> Selection:
        """Decides for each image whether it takes part, and its label.

        Args:
            findings: uint8 [n, number of findings], in the order of `self.findings`.
        """
        if self.kind == "multilabel":
            return _selection(findings, np.broadcast_to(np.array("", object), len(findings)))
        if self.kind == "multiclass":
            return self._select_multiclass(findings)
        return self._select_binary(findings)

    def class_rows(self, labels: np.ndarray) -> np.ndarray:
        """Turns labels into uint8 [n, number of classes], 1 where the image counts for the class.

        Images left out count for no class.
        """
        rows: np.ndarray = labels == 1
        if self.kind != "multilabel":
            rows = labels[:, np.newaxis] == np.arange(len(self.class_names))
        return rows.view(np.uint8)

    def _select_multiclass(self, findings: np.ndarray) -> Selection:
        present = findings.sum(axis=1)
        labels = np.where(present == 1, findings.argmax(axis=1), LEFT_OUT)
        reasons = np.full(len(findings), "", dtype=object)
        reasons[present > 1] = "more than one finding"
        if self.with_no_finding:
            labels[present == 0] = len(self.findings)
        else:
            reasons[present == 0] = "no finding"
        return _selection(labels, reasons)

    def _select_binary(self, findings: np.ndarray) -> Selection:
        first, second = (self._has(name, findings) for name in self.class_names)
        one, other = self.class_names
        labels = np.where(first & ~second, 0, np.where(second & ~first, 1, LEFT_OUT))
        reasons = np.full(len(findings), "", dtype=object)
        reasons[first & second] = f"both {one} and {other}"
        neither = f"another finding than {other}" if one == NO_FINDING else f"neither {one} nor {other}"
        reasons[~first & ~second] = neither
        return _selection(labels, reasons)

    def _has(self, name: str, findings: np.ndarray) -> np.ndarray:
        """Returns bool [n]: whether the image belongs to a class of binary, by that class alone."""
        has_any = np.asarray(findings.any(axis=1))
        if name == NO_FINDING:
            return ~has_any
        return has_any if name == ANY_FINDING else findings[:, self.findings.index(name)] > 0


def parse_task(text: str, with_no_finding: bool = False, findings: tuple[str, ...] = FINDINGS) -> Task:
    """Reads a task as people write it.

    Args:
        text: "binary" (any finding against No Finding), "binary:Pneumothorax" (that finding against No
            Finding), "binary:Mass,Nodule" (the first is label 0), "multiclass" (exactly one finding),
            "multiclass:No Finding" (with No Finding as one more class) or "multilabel".
        with_no_finding: the same as "multiclass:No Finding", for who says it beside the text.
        findings: names of the findings of the set.

    Raises:
        UsageError: another form, an unknown finding, a finding twice, or `with_no_finding` with a task other
            than multiclass.
    """
    kind, colon, names = (part.strip() for part in text.partition(":"))
    if kind == "multiclass" and names == NO_FINDING:
        with_no_finding, colon = True, ""
    if with_no_finding and (kind != "multiclass" or colon):
        raise UsageError(
            f"found `with_no_finding=True` with `task={text}`; it goes with `task=multiclass` only"
        )
    if kind == "binary" and colon:
        return _binary(text, names, findings)
    if kind == "binary":
        return Task("binary", "binary", (NO_FINDING, ANY_FINDING), findings=findings)
    if kind == "multiclass" and not colon:
        classes = (*findings, NO_FINDING) if with_no_finding else findings
        return Task("multiclass", "multiclass", classes, with_no_finding, findings)
    if kind == "multilabel" and not colon:
        return Task("multilabel", "multilabel", findings, findings=findings)
    raise UsageError(f"found `task='{text}'`; expected one of the forms {', '.join(FORMS)}")


def as_task(task: Task | str, findings: tuple[str, ...] = FINDINGS) -> Task:
    """Returns a task, which may be given as `parse_task` takes it."""
    return parse_task(task, findings=findings) if isinstance(task, str) else task


def _binary(text: str, names: str, findings: tuple[str, ...]) -> Task:
    """Makes the task of "binary:A" (No Finding against A) or "binary:A,B"."""
    classes = tuple(name.strip() for name in names.split(","))
    if not all(classes) or len(classes) > 2:
        raise UsageError(
            f"found `task='{text}'`; expected one finding or two after the colon: {FORMS[1]}, {FORMS[2]}"
        )
    for name in classes:
        if name != NO_FINDING and name not in findings:
            raise UsageError(
                f"found `task='{text}'`: unknown finding {name!r}{nearest(name, findings)}; "
                f"known: {', '.join(findings)}"
            )
    first, second = classes if len(classes) == 2 else (NO_FINDING, classes[0])
    if first == second:
        raise UsageError(f"found `task='{text}'`, which sets {first} against itself; expected two classes")
    # "binary:No Finding,Mass" is what "binary:Mass" means.
    name = second if first == NO_FINDING else f"{first},{second}"
    return Task(f"binary:{name}", "binary", (first, second), findings=findings)


def _selection(labels: np.ndarray, reasons: np.ndarray) -> Selection:
    return Selection(reasons == "", labels, reasons)
