"""What an evaluation says, as objects: metrics.json and comparison.json hold these, as JSON.

None stands for a number that is undefined, such as an AUROC without positives.
"""

import dataclasses
import json
import math
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any

from cxr_records.drawings import NONE, SOME, drawn_words
from cxr_records.errors import UsageError
from cxr_records.trainers.evaluation.published import Comparison
from cxr_records.urls import redacted_text

METRICS_FILE = "metrics.json"
COMPARISON_FILE = "comparison.json"
FORMAT = "cxr_records evaluation"
COMPARISON_FORMAT = "cxr_records comparison"
VERSION = 2
ALPHA = 0.05  # at and below which an adjusted p-value decides


@dataclasses.dataclass(frozen=True)
class Interval:
    """A number with its 95% intervals, rounded to 6 digits.

    Attributes:
        value: on the images as they are.
        low: 2.5th percentile over draws of patients; None without draws.
        high: 97.5th.
        image_low: the same over draws of images, as if these were independent.
        image_high: the same.
        no_interval: why a mean has none over patients, though there were draws.
    """

    value: float | None
    low: float | None = None
    high: float | None = None
    image_low: float | None = None
    image_high: float | None = None
    no_interval: str | None = None


@dataclasses.dataclass(frozen=True)
class PrecisionInterval(Interval):
    """An average precision, with the prevalence, which is what chance would give."""

    prevalence: float = dataclasses.field(kw_only=True)


@dataclasses.dataclass(frozen=True)
class Shares:
    """What a threshold does on some images; the intervals are over patients alone.

    Attributes:
        sensitivity: share of the positives that it finds.
        specificity: share of the negatives that it leaves.
        ppv: share of the images that it finds which are positive.
        npv: share of the images that it leaves which are negative.
    """

    sensitivity: Interval
    specificity: Interval
    ppv: Interval
    npv: Interval


@dataclasses.dataclass(frozen=True, kw_only=True)
class OperatingPoint(Shares):
    """A threshold, and what it does on the scored images.

    Attributes:
        threshold: positive from it on; of the scores as the model gives them.
        chosen_on: which images it was chosen on, by Youden's index.
    """

    threshold: float
    chosen_on: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class GroupShares(Shares):
    """What the one threshold of a class does on the images of a subgroup.

    Attributes:
        few: "sensitivity" where fewer than 30 patients of the group are positive, "specificity" where fewer
            have an image that is negative.
        differs: those of the two, without the few, whose difference from the whole has an interval that
            excludes 0.
    """

    few: tuple[str, ...]
    differs: tuple[str, ...]


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
        prior_corrected_balanced_accuracy: of the largest score relative to its class's mean; None where
            training has made the classes count alike.
        prior_corrected_confusion: the same.
        not_prior_corrected: why there is no such correction.
        accuracy: share of images of which the largest score is right.
    """

    class_names: tuple[str, ...]
    balanced_accuracy: Interval
    confusion: tuple[tuple[int, ...], ...]
    prior_corrected_balanced_accuracy: Interval | None
    prior_corrected_confusion: tuple[tuple[int, ...], ...] | None
    not_prior_corrected: str | None
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
    """The calibration of a class.

    Attributes:
        ece_raw: expected calibration error of the scores as the model gives them; None where no image of the
            class was judged, as all that is measured.
        ece: after what training did to the odds was undone.
        ece_calibrated: and after slope and offset; None without these, as all that follows from them.
        brier: Brier score after what training did was undone.
        brier_calibrated: after slope and offset.
        slope: the calibrated logit is slope times the logit, after what training did was undone, plus offset.
        offset: the same.
        shift: what is taken off the logit first: the log of what training multiplied the odds by, or in a
            multiclass task the class's probability before all are made to sum to 1.
        note: why there is no slope, or no offset either.
        bins: after what training did was undone.
        bins_calibrated: after slope and offset.
    """

    ece_raw: float | None
    ece: float | None
    ece_calibrated: float | None
    brier: float | None
    brier_calibrated: float | None
    slope: float | None
    offset: float | None
    shift: float
    note: str | None
    bins: tuple[Bin, ...]
    bins_calibrated: tuple[Bin, ...] | None


@dataclasses.dataclass(frozen=True)
class Calibration:
    """Whether a score of 0.3 means 30%.

    Attributes:
        undone: what of the training was undone before slopes and offsets were fitted.
        fitted_on: the split that slopes and offsets were fitted on; None without scores to fit them on.
        macro_ece_raw: mean over the classes.
        macro_ece: the same.
        macro_ece_calibrated: mean over the classes that have an offset.
        macro_brier: mean over the classes.
        macro_brier_calibrated: mean over the classes that have an offset.
        classes: by name.
    """

    undone: tuple[str, ...]
    fitted_on: str | None
    macro_ece_raw: float | None
    macro_ece: float | None
    macro_ece_calibrated: float | None
    macro_brier: float | None
    macro_brier_calibrated: float | None
    classes: Mapping[str, ClassCalibration]

    @property
    def without_offset(self) -> tuple[str, ...]:
        """Classes that the calibrated means are not over."""
        return tuple(name for name, each in self.classes.items() if each.offset is None)


@dataclasses.dataclass(frozen=True)
class Decisions:
    """Net benefit of deciding by a class's probability (Vickers and Elkin 2006), at several thresholds.

    At the threshold probability t a found positive is worth (1 - t) / t false alarms. Net benefit is the
    share of true positives less t / (1 - t) times the share of false positives, of all images. To treat no
    one has net benefit 0.

    Attributes:
        scores: which probabilities, in words: calibrated, with what training did undone, or as given.
        thresholds: from above 0 to three times the prevalence, at most 0.5.
        model: net benefit of acting from the threshold on.
        low: 2.5th percentile over draws of patients; None without draws.
        high: 97.5th.
        treat_all: net benefit of acting on every image.
    """

    scores: str
    thresholds: tuple[float, ...]
    model: tuple[float, ...]
    low: tuple[float, ...] | None
    high: tuple[float, ...] | None
    treat_all: tuple[float, ...]

    @property
    def best_from_to(self) -> tuple[float, float] | None:
        """The widest run of thresholds at which the model is above both defaults; None where it never is."""
        best: tuple[float, float] | None = None
        start = None
        for threshold, model, everyone in zip(self.thresholds, self.model, self.treat_all, strict=True):
            if model - max(0.0, everyone) <= 1e-6:  # the last digit of either
                start = None
                continue
            start = threshold if start is None else start
            if best is None or threshold - start > best[1] - best[0]:
                best = start, threshold
        return best


@dataclasses.dataclass(frozen=True)
class SubgroupAuroc(Interval):
    """A class's AUROC in a subgroup; `few` says that too few patients are positive to rank by it."""

    positives: int = dataclasses.field(kw_only=True)
    few: bool = dataclasses.field(kw_only=True)


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
        operating_points: of the whole, on the images of the group, by class; None where there is none.
    """

    by: str
    group: str
    images: int
    patients: int
    macro_auroc: Interval
    auroc: Mapping[str, SubgroupAuroc]
    operating_points: Mapping[str, GroupShares | None]

    @property
    def lacks(self) -> tuple[str, ...]:
        """Classes with scores that its mean is not over."""
        return tuple(name for name, each in self.auroc.items() if each.value is None)


@dataclasses.dataclass(frozen=True)
class Mistake:
    """An image that is called positive for a class that it lacks, or negative for one that it has.

    Attributes:
        class_name: the class.
        kind: "false positive" or "false negative".
        image_id: the image.
        patient_id: whose it is.
        score: of the class.
        threshold: of the class's operating point; from it on, an image is called positive.
    """

    class_name: str = dataclasses.field(metadata={"json": "class"})
    kind: str
    image_id: str
    patient_id: int
    score: float
    threshold: float


@dataclasses.dataclass(frozen=True)
class RocCurve:
    """Points of a ROC curve, from (0, 0) to (1, 1)."""

    fpr: tuple[float, ...]
    tpr: tuple[float, ...]


@dataclasses.dataclass(frozen=True)
class PrecisionRecallCurve:
    """Steps of a precision-recall curve, by falling threshold, as average precision sums them.

    Attributes:
        recall: at the end of each step; the first begins at 0.
        precision: on the whole step.
    """

    recall: tuple[float, ...]
    precision: tuple[float, ...]


@dataclasses.dataclass(frozen=True)
class Curves:
    """Both curves of a class."""

    roc: RocCurve
    pr: PrecisionRecallCurve


@dataclasses.dataclass(frozen=True)
class Baseline:
    """What facts about an image give without its pixels, by a logistic regression.

    Attributes:
        knows: the facts that are known of any scored image.
        macro_auroc: mean over the classes that have one.
        auroc: by class.
        macro_added: the model's macro AUROC less this one.
        added: the same by class.
    """

    knows: tuple[str, ...]
    macro_auroc: Interval
    auroc: Mapping[str, Interval]
    macro_added: Interval
    added: Mapping[str, Interval]

    @property
    def knows_text(self) -> str:
        """The facts in words: "view, sex, age and follow-up number"."""
        *some, last = self.knows
        return f"{', '.join(some)} and {last}" if some else last


@dataclasses.dataclass(frozen=True)
class Baselines:
    """What a model is to be better than.

    Attributes:
        fitted_on: which images.
        follow_up_numbers: where those of the scored images are from.
        metadata: of view, sex, age and follow-up number; None where none of them is known.
        view: of the view alone; None where it is not known.
    """

    fitted_on: str
    follow_up_numbers: str
    metadata: Baseline | None
    view: Baseline | None


@dataclasses.dataclass(frozen=True)
class WithinView:
    """The model's AUROC where positives are compared with negatives of their own view alone.

    Attributes:
        images: of known view.
        lacks: classes that have an AUROC over all images, and none within a view: no view has both positives
            and negatives.
        macro_auroc: mean over the classes that have one.
        auroc: by class.
        macro_lost: the macro AUROC of all images less this one, over the same classes.
        lost: the same by class.
    """

    images: int
    lacks: tuple[str, ...]
    macro_auroc: Interval
    auroc: Mapping[str, Interval]
    macro_lost: Interval
    lost: Mapping[str, Interval]


@dataclasses.dataclass(frozen=True)
class NoisyLabels:
    """What is assumed of labels: their sensitivity, and their specificity or their PPV."""

    sensitivity: float
    specificity: float | None
    ppv: float | None


@dataclasses.dataclass(frozen=True)
class TrueAuroc:
    """The AUROC of the truth that an AUROC on such labels means; None with the reason where there is none."""

    labels: NoisyLabels
    value: float | None
    reason: str | None


@dataclasses.dataclass(frozen=True)
class LabelNoise:
    """What AUROC seen on noisy labels mean.

    Attributes:
        classes: of each class that has an AUROC, what it means under each assumption; labels as experts
            have found them stand last, where they are known.
    """

    classes: Mapping[str, tuple[TrueAuroc, ...]]


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
        decisions: None there too; of a class, None where it lacks positives or negatives.
        baselines: what an image's score can know without its pixels.
        within_view: AUROC within PA and AP.
        label_noise: what an AUROC means if labels err.
        subgroups: those that have images.
        mistakes: the gravest at the operating points.
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
    decisions: Mapping[str, Decisions | None] | None
    baselines: Baselines
    within_view: WithinView
    label_noise: LabelNoise
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

    @property
    def calibrated_over(self) -> str:
        """Behind a mean after slope and offset: `mean_over` of the classes that have an offset."""
        without = self.calibration.without_offset if self.calibration else ()
        return mean_over((*without, *self._without_scores), self.num_classes)

    def group_over(self, group: Subgroup) -> str:
        """Behind the mean of a subgroup: `mean_over` of its classes."""
        return mean_over((*group.lacks, *self._without_scores), self.num_classes, named=False)

    @property
    def groups_compared(self) -> int:
        """Sensitivities and specificities of subgroups that were set beside those of the whole."""
        return sum(2 - len(each.few) for each in self._group_shares if self._drawn)

    @property
    def groups_differing(self) -> int:
        """And those of them that differ."""
        return sum(len(each.differs) for each in self._group_shares)

    @property
    def within_view_over(self) -> str:
        """Behind the mean within views: `mean_over` of its classes."""
        return mean_over((*self.macro_lacks, *self.within_view.lacks), self.num_classes)

    @property
    def _drawn(self) -> bool:
        return self.macro_auroc.low is not None or self.macro_auroc.no_interval is not None

    @property
    def _group_shares(self) -> list[GroupShares]:
        every = [each for group in self.subgroups for each in group.operating_points.values()]
        return [each for each in every if each is not None]

    @property
    def _without_scores(self) -> tuple[str, ...]:
        return tuple(name for name in self.macro_lacks if name not in self.auroc)


@dataclasses.dataclass(frozen=True)
class ImageTable:
    """The table of images whose labels counted."""

    dialect: str
    sha256: str


@dataclasses.dataclass(frozen=True)
class GivenLabels:
    """Labels that are not NIH's.

    Attributes:
        file: the name of their table.
        sha256: of the file.
        not_judged: by class, how many of the images have no label.
        differ: by class, how many labels are not NIH's, of those that NIH has; empty where NIH's are unknown.
        compared: by class, of how many.
    """

    file: str
    sha256: str
    not_judged: Mapping[str, int]
    differ: Mapping[str, int]
    compared: Mapping[str, int]


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
        labels: where they are not NIH's.
        drawn: how many of the table's images are drawings: "none", "some" or "all".
        date: of the evaluation, as the command was told it, such as "2026-01-31"; None where it was not.
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
    labels: GivenLabels | None = None
    drawn: str = NONE
    date: str | None = None

    @property
    def drawn_words(self) -> str:
        """What is to stand beside every number where images are drawings; "" where none is."""
        return drawn_words(self.drawn)


@dataclasses.dataclass(frozen=True)
class SplitClaim:
    """Which images were scored.

    Attributes:
        official: whether exactly those of NIH's official test list were.
        text: which, in words that can follow "measured on".
        list_sha256: of their names; None where it is not known.
    """

    official: bool
    text: str
    list_sha256: str | None


@dataclasses.dataclass(frozen=True)
class CardItem:
    """An item of a model card.

    Attributes:
        topic: what is asked.
        tripod_ai: items of TRIPOD+AI (2024) that ask it, such as "5a, 6a"; "" for none.
        claim: items of CLAIM (update of 2024).
        known: the answer; None where it is not known.
    """

    topic: str
    tripod_ai: str
    claim: str
    known: str | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluation(Measures):
    """An evaluation of a run or of a table of scores.

    Attributes:
        identity: what was measured.
        split_claim: which images were scored.
        comparison: published results, and whether they may be set beside this one.
        leaks: scored images or patients that were trained on, a sentence for each kind.
        model_card: what reporting guidelines ask for.
    """

    identity: Identity
    split_claim: SplitClaim
    comparison: Comparison
    leaks: tuple[str, ...]
    model_card: tuple[CardItem, ...] = ()

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
        evaluation: Evaluation = _from_plain(Evaluation, content)
        return evaluation


@dataclasses.dataclass(frozen=True)
class PairedInterval(Interval):
    """A difference of two runs, with the same draws of patients for both.

    Attributes:
        p: two-sided p-value of no difference; None without an interval.
        p_adjusted: by Holm's method.
        undecided: why the difference is not decided; None where it is.
    """

    p: float | None = dataclasses.field(kw_only=True)
    p_adjusted: float | None = dataclasses.field(kw_only=True)
    undecided: str | None = dataclasses.field(kw_only=True)


@dataclasses.dataclass(frozen=True)
class Difference:
    """The AUROC of run b less that of run a, on the images that both scored.

    Attributes:
        a: run directory.
        b: the other.
        images: that both scored.
        patients: of how many.
        macro_auroc: mean over the classes that have one; its p-value is adjusted over the pairs of runs.
        auroc: by class; p-values are adjusted over all classes of all pairs of runs.
    """

    a: str
    b: str
    images: int
    patients: int
    macro_auroc: PairedInterval
    auroc: Mapping[str, PairedInterval]

    @property
    def over(self) -> str:
        """Behind the name of its mean: `mean_over` of its classes."""
        return mean_over([name for name, each in self.auroc.items() if each.value is None], len(self.auroc))


@dataclasses.dataclass(frozen=True)
class RunComparison:
    """Several runs, and the differences of every two."""

    runs: tuple[Evaluation, ...]
    differences: tuple[Difference, ...]

    @property
    def drawn_words(self) -> str:
        """What is to stand beside every number where images of any run are drawings; "" where none is."""
        shares = {evaluation.identity.drawn for evaluation in self.runs}
        return drawn_words(shares.pop() if len(shares) == 1 else SOME)

    @property
    def num_comparisons(self) -> int:
        """How many classes of how many pairs have a p-value."""
        return sum(each.p is not None for pair in self.differences for each in pair.auroc.values())

    @property
    def said(self) -> tuple[str, ...]:
        """Sentences on how many comparisons were made, and what that did to their p-values."""
        count, pairs = self.num_comparisons, len(self.differences)
        draws = self.runs[0].identity.draws
        if not draws:
            return ("No draws, so no difference is decided.",)
        of_pairs = "1 pair of runs" if pairs == 1 else f"{pairs} pairs of runs"
        made = "1 comparison of a class" if count == 1 else f"{count} comparisons of classes"
        macros = f", those of the macro AUROC over the {pairs} pairs" if pairs > 1 else ""
        said = [
            f"{made} in {of_pairs}: p-values (two-sided, from the paired draws of patients) are adjusted "
            f"over these {count} by Holm's method{macros}."
        ]
        least = 2 * count / (1 + draws)
        if least > ALPHA:
            needed = math.ceil(2 * count / ALPHA) - 1
            said.append(
                f"With {draws:,} draws no adjusted p-value of a class can be below {min(1.0, least):.3f}: "
                f"{needed:,} draws or more could decide."
            )
        return tuple(said)

    def to_json(self) -> dict[str, Any]:
        """Returns what comparison.json holds."""
        return {
            "format": COMPARISON_FORMAT,
            "version": VERSION,
            "comparisons": self.num_comparisons,
            "said": list(self.said),
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
