"""What an evaluation says, as objects: metrics.json and comparison.json hold these, as JSON.

None stands for a number that is undefined, such as an AUROC without positives.
"""

import dataclasses
import json
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any

from cxr_records.errors import UsageError
from cxr_records.trainers.evaluation.published import Comparison
from cxr_records.urls import redacted_text

METRICS_FILE = "metrics.json"
COMPARISON_FILE = "comparison.json"
FORMAT = "cxr_records evaluation"
COMPARISON_FORMAT = "cxr_records comparison"
VERSION = 1


@dataclasses.dataclass(frozen=True)
class Interval:
    """A number with its 95% intervals, rounded to 6 digits.

    Attributes:
        value: on the images as they are.
        low: 2.5th percentile over draws of patients; None without draws.
        high: 97.5th.
        image_low: the same over draws of images, as if these were independent.
        image_high: the same.
    """

    value: float | None
    low: float | None = None
    high: float | None = None
    image_low: float | None = None
    image_high: float | None = None


@dataclasses.dataclass(frozen=True)
class PrecisionInterval(Interval):
    """An average precision, with the prevalence, which is what chance would give."""

    prevalence: float = dataclasses.field(kw_only=True)


@dataclasses.dataclass(frozen=True)
class OperatingPoint:
    """A threshold, and what it does on the scored images.

    Attributes:
        threshold: positive from it on.
        chosen_on: which images it was chosen on, by Youden's index.
        sensitivity: share of the positives that it finds.
        specificity: share of the negatives that it leaves.
        ppv: share of the images that it finds which are positive.
        npv: share of the images that it leaves which are negative.
    """

    threshold: float
    chosen_on: str
    sensitivity: float | None
    specificity: float | None
    ppv: float | None
    npv: float | None


@dataclasses.dataclass(frozen=True)
class ClassMeasures:
    """What is known of a class beside its areas.

    Attributes:
        images: that were scored.
        positives: of them.
        negatives: of them.
        positive_patients: patients with at least one positive.
        prevalence: positives by images.
        sensitivity_at_90_specificity: the largest among thresholds of at least that specificity.
        sensitivity_at_95_specificity: the same.
        operating_point: None where it cannot be chosen.
        warnings: what is to be said of the class.
    """

    images: int
    positives: int
    negatives: int
    positive_patients: int
    prevalence: float
    sensitivity_at_90_specificity: Interval
    sensitivity_at_95_specificity: Interval
    operating_point: OperatingPoint | None
    warnings: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Multiclass:
    """How often the chosen class is the right one.

    Attributes:
        class_names: of rows and columns of the confusion matrices.
        balanced_accuracy: of the largest score.
        confusion: counts; rows are what is true, columns what was predicted.
        prior_corrected_balanced_accuracy: of the largest score relative to its class's mean.
        prior_corrected_confusion: the same.
        accuracy: share of images of which the largest score is right.
    """

    class_names: tuple[str, ...]
    balanced_accuracy: Interval
    confusion: tuple[tuple[int, ...], ...]
    prior_corrected_balanced_accuracy: Interval
    prior_corrected_confusion: tuple[tuple[int, ...], ...]
    accuracy: float

    @property
    def over(self) -> str:
        """Behind the name of a balanced accuracy: `mean_over` of the classes that have images."""
        empty = [name for name, row in zip(self.class_names, self.confusion, strict=True) if not sum(row)]
        return mean_over(empty, len(self.class_names))


@dataclasses.dataclass(frozen=True)
class Bin:
    """Images of like scores: their mean score, the share of positives among them, and how many they are."""

    mean_score: float
    positive_share: float
    count: int


@dataclasses.dataclass(frozen=True)
class ClassCalibration:
    """The calibration of a class: expected calibration error, Brier score, the error after a temperature."""

    ece: float
    brier: float
    ece_with_temperature: float | None
    bins: tuple[Bin, ...]


@dataclasses.dataclass(frozen=True)
class Calibration:
    """Whether a score of 0.3 means 30%.

    Attributes:
        prior_shift_undone: whether what copies do to frequencies was undone first.
        temperature: by which logits were divided; None without scores to fit it on.
        temperature_fitted_on: the split.
        macro_ece: mean over the classes.
        macro_brier: the same.
        macro_ece_with_temperature: the same.
        classes: by name.
    """

    prior_shift_undone: bool
    temperature: float | None
    temperature_fitted_on: str | None
    macro_ece: float
    macro_brier: float
    macro_ece_with_temperature: float | None
    classes: Mapping[str, ClassCalibration]


@dataclasses.dataclass(frozen=True)
class SubgroupAuroc:
    """A class's AUROC in a subgroup; `few` says that too few patients are positive to rank by it."""

    value: float | None
    positives: int
    few: bool


@dataclasses.dataclass(frozen=True)
class Subgroup:
    """The images of one view, sex or band of ages.

    Attributes:
        by: "view", "sex" or "age".
        group: which.
        images: how many.
        patients: of how many.
        macro_auroc: mean over the classes that have one.
        auroc: by class.
    """

    by: str
    group: str
    images: int
    patients: int
    macro_auroc: float | None
    auroc: Mapping[str, SubgroupAuroc]

    @property
    def lacks(self) -> tuple[str, ...]:
        """Classes with scores that its mean is not over."""
        return tuple(name for name, each in self.auroc.items() if each.value is None)


@dataclasses.dataclass(frozen=True)
class Mistake:
    """An image with a high score for a class that it lacks, or a low one for a class that it has."""

    class_name: str = dataclasses.field(metadata={"json": "class"})
    kind: str  # "false positive" or "false negative"
    image_id: str
    patient_id: int
    score: float


@dataclasses.dataclass(frozen=True)
class RocCurve:
    """Points of a ROC curve, from (0, 0) to (1, 1)."""

    fpr: tuple[float, ...]
    tpr: tuple[float, ...]


@dataclasses.dataclass(frozen=True)
class PrecisionRecallCurve:
    """Points of a precision-recall curve, by falling threshold."""

    recall: tuple[float, ...]
    precision: tuple[float, ...]


@dataclasses.dataclass(frozen=True)
class Curves:
    """Both curves of a class."""

    roc: RocCurve
    pr: PrecisionRecallCurve


@dataclasses.dataclass(frozen=True)
class Measures:
    """Everything that is computed from labels and scores alone; by class where it is a mapping.

    Attributes:
        macro_auroc: mean over the classes that have one.
        macro_auprc: mean over the same classes.
        macro_lacks: classes of the task that these means are not over: without scores, or without
            positives or negatives among the images.
        auroc: areas under the ROC curve.
        auprc: average precisions.
        classes: counts, sensitivities, operating points.
        multiclass: None for the other tasks.
        calibration: None where scores are no probabilities.
        subgroups: those that have images.
        mistakes: the highest-scoring ones.
        curves: None for a class that lacks positives or negatives.
        warnings: what is to be said of all this.
    """

    macro_auroc: Interval
    macro_auprc: Interval
    macro_lacks: tuple[str, ...]
    auroc: Mapping[str, Interval]
    auprc: Mapping[str, PrecisionInterval]
    classes: Mapping[str, ClassMeasures]
    multiclass: Multiclass | None
    calibration: Calibration | None
    subgroups: tuple[Subgroup, ...]
    mistakes: tuple[Mistake, ...]
    curves: Mapping[str, Curves | None]
    warnings: tuple[str, ...]

    @property
    def num_classes(self) -> int:
        """Classes of the task, also those without scores."""
        return len({*self.auroc, *self.macro_lacks})

    @property
    def over(self) -> str:
        """Behind the name of a macro AUROC or AUPRC: `mean_over` of its classes."""
        return mean_over(self.macro_lacks, self.num_classes)

    @property
    def calibration_over(self) -> str:
        """Behind the name of a mean of calibration: `mean_over` of the classes that have scores."""
        return mean_over(self._without_scores, self.num_classes)

    def group_over(self, group: Subgroup) -> str:
        """Behind the mean of a subgroup: `mean_over` of its classes."""
        return mean_over((*group.lacks, *self._without_scores), self.num_classes, named=False)

    @property
    def _without_scores(self) -> tuple[str, ...]:
        return tuple(name for name in self.macro_lacks if name not in self.auroc)


@dataclasses.dataclass(frozen=True)
class ImageTable:
    """The table of images whose labels counted."""

    dialect: str
    sha256: str


@dataclasses.dataclass(frozen=True)
class Identity:
    """What was measured, and how.

    Attributes:
        name: of the run or of the table of scores.
        run: its directory; None for a table.
        dataset: that the model was trained on, where it is known.
        dataset_id: its id.
        model: of the run.
        task: as `tasks.Task.name`.
        predictions_sha256: of the file of scores.
        versions: of the libraries that trained.
        table: None where it is not known.
        kind: of task: "binary", "multiclass" or "multilabel".
        split: which images.
        images: how many.
        patients: of how many.
        draws: of the bootstrap.
        seed: of the draws.
    """

    name: str
    run: str | None
    dataset: str | None
    dataset_id: str | None
    model: str | None
    task: str
    predictions_sha256: str
    versions: Mapping[str, str]
    table: ImageTable | None
    kind: str
    split: str
    images: int
    patients: int
    draws: int
    seed: int


@dataclasses.dataclass(frozen=True)
class SplitClaim:
    """Which images were scored.

    Attributes:
        official: whether exactly those of NIH's official test list were.
        text: one sentence.
        list_sha256: of their names; None where it is not known.
    """

    official: bool
    text: str
    list_sha256: str | None


@dataclasses.dataclass(frozen=True)
class Spread:
    """One measure of several runs.

    Attributes:
        mean: over the runs; None where one has none.
        spread: standard deviation over the runs (n - 1); None with one run.
        values: of each run.
    """

    mean: float | None
    spread: float | None
    values: tuple[float | None, ...]


@dataclasses.dataclass(frozen=True)
class OverSeeds:
    """Runs that differ in their seed alone, each measured by itself.

    Attributes:
        seeds: of the runs.
        macro_auroc: over them.
        macro_auprc: over them.
        auroc: by class.
    """

    seeds: tuple[int, ...]
    macro_auroc: Spread
    macro_auprc: Spread
    auroc: Mapping[str, Spread]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluation(Measures):
    """An evaluation of a run or of a table of scores.

    Attributes:
        identity: what was measured.
        split_claim: which images were scored.
        comparison: published results, and whether they may be set beside this one.
        leaks: scored images or patients that were trained on, a sentence for each kind.
        seeds: of an ensemble: its members, each by itself.
    """

    identity: Identity
    split_claim: SplitClaim
    comparison: Comparison
    leaks: tuple[str, ...]
    seeds: OverSeeds | None = None

    def to_json(self) -> dict[str, Any]:
        """Returns what metrics.json holds."""
        content: dict[str, Any] = to_plain(self)
        first = ("identity", "split_claim", "comparison", "leaks")
        head = {"format": FORMAT, "version": VERSION}
        return head | {name: content[name] for name in first} | content

    @staticmethod
    def from_json(content: Any) -> "Evaluation":
        """Returns the evaluation that `to_json` returned.

        Raises:
            UsageError: it is none, or one of another version.
        """
        if (
            not isinstance(content, dict)
            or content.get("format") != FORMAT
            or content.get("version") != VERSION
        ):
            raise UsageError(f"found no {FORMAT!r} of version {VERSION}; evaluate again")
        if "macro_lacks" not in content:  # as evaluations of before are
            lacks = [name for name, area in content["auroc"].items() if area["value"] is None]
            content = {**content, "macro_lacks": lacks}
        evaluation: Evaluation = _from_plain(Evaluation, content)
        return evaluation


@dataclasses.dataclass(frozen=True)
class Difference:
    """The AUROC of run b less that of run a, on the images that both scored.

    Attributes:
        a: run directory.
        b: the other.
        images: that both scored.
        macro_auroc: mean over the classes that have one.
        auroc: by class.
    """

    a: str
    b: str
    images: int
    macro_auroc: Interval
    auroc: Mapping[str, Interval]

    @property
    def over(self) -> str:
        """Behind the name of its mean: `mean_over` of its classes."""
        return mean_over([name for name, each in self.auroc.items() if each.value is None], len(self.auroc))


@dataclasses.dataclass(frozen=True)
class RunComparison:
    """Several runs, and the differences of every two."""

    runs: tuple[Evaluation, ...]
    differences: tuple[Difference, ...]

    def to_json(self) -> dict[str, Any]:
        """Returns what comparison.json holds."""
        return {
            "format": COMPARISON_FORMAT,
            "version": VERSION,
            "runs": [evaluation.to_json() for evaluation in self.runs],
            "differences": to_plain(self.differences),
        }


def mean_over(lacks: Sequence[str], total: int, named: bool = True) -> str:
    """Returns what stands behind the name of a mean that is over fewer classes than the task has; else "".

    Args:
        lacks: classes that it is not over.
        total: classes of the task.
        named: whether these are named, such as " (13 of 14 classes: no Mass)", or only counted.
    """
    if not lacks:
        return ""
    names = ", ".join(lacks[:3]) + (f" and {len(lacks) - 3} more" if len(lacks) > 3 else "")
    return f" ({total - len(lacks)} of {total} classes{f': no {names}' if named else ''})"


def json_bytes(content: Mapping[str, Any]) -> bytes:
    """Returns metrics.json or comparison.json, without the credentials of any URL."""
    return (redacted_text(json.dumps(content, indent=1)) + "\n").encode()


def to_plain(value: Any) -> Any:
    """Returns dicts, lists and plain values for dataclasses, mappings and tuples of them."""
    if dataclasses.is_dataclass(value):
        return {_key(field): to_plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {key: to_plain(each) for key, each in value.items()}
    if isinstance(value, tuple):
        return [to_plain(each) for each in value]
    return value


def _from_plain(kind: Any, value: Any) -> Any:
    """Turns plain values back into a type that is made of dataclasses, mappings, tuples and plain types."""
    if dataclasses.is_dataclass(kind):
        types_of = typing.get_type_hints(kind)
        fields = dataclasses.fields(kind)
        return kind(**{f.name: _from_plain(types_of[f.name], value[_key(f)]) for f in fields})  # type: ignore[operator]  # a class, not an instance
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):  # of a type and None
        return None if value is None else _from_plain(arguments[0], value)
    if origin is tuple:
        return tuple(_from_plain(arguments[0], each) for each in value)
    if origin is Mapping:
        return {key: _from_plain(arguments[1], each) for key, each in value.items()}
    return value


def _key(field: dataclasses.Field[Any]) -> str:
    key: str = field.metadata.get("json", field.name)
    return key
