"""What a score can know without pixels: metadata alone, the view alone; and ranking within a view.

Sick patients are X-rayed in bed (AP) and often. A score that has learned no more than this reaches a macro
AUROC of 0.630 on NIH's official test images, so what a model reaches is to be read against it.
"""

import dataclasses
import warnings
from collections.abc import Sequence

import numpy as np

from cxr_records.dataset import Dataset
from cxr_records.names import follow_up_in_name
from cxr_records.seeding import keyed_hash
from cxr_records.splits import TRAIN
from cxr_records.trainers import runs
from cxr_records.trainers.evaluation import metrics
from cxr_records.trainers.evaluation.predictions import Predictions
from cxr_records.trainers.evaluation.results import Baseline, Baselines, Interval, WithinView
from cxr_records.trainers.evaluation.subgroups import AGE_BANDS

FOLDS = 5
VIEWS = ("PA", "AP")
_SEXES = ("F", "M")
_FOLLOW_UPS = (0, 1, 2, 3, 5, 10, 20, 40)  # each band begins with one of them
_DIGITS = 9  # of a score: images of the same facts tie, whatever the order of a sum


@dataclasses.dataclass(frozen=True, eq=False)
class Facts:
    """What is known of n images beside their pixels.

    Attributes:
        views: object [n], PA or AP; "" where unknown.
        sexes: object [n], F or M; "" where unknown.
        ages_years: int [n]; -1 where unknown.
        follow_ups: int [n], numbers of the follow-up; -1 where unknown.
        patient_ids: [n].
    """

    views: np.ndarray
    sexes: np.ndarray
    ages_years: np.ndarray
    follow_ups: np.ndarray
    patient_ids: np.ndarray

    def metadata(self) -> np.ndarray:
        """Returns bool [n, facts] of view, sex, age and follow-up number, each by band.

        Every fact enters as one column for each of its values, so that nothing is assumed of the way it acts:
        views PA and AP; sexes F and M; ages of 0 to 17, 18 to 39, 40 to 59, 60 to 79 and from 80 years on;
        follow-ups 0, 1, 2, 3 to 4, 5 to 9, 10 to 19, 20 to 39 and from 40 on. "Unknown" is a value too.
        """
        ages = _band(self.ages_years, [low for low, _ in AGE_BANDS])
        follow_ups = _band(self.follow_ups, _FOLLOW_UPS)
        return np.concatenate([self.view(), _one_of(self.sexes, _SEXES), ages, follow_ups], axis=1)

    def view(self) -> np.ndarray:
        """Returns bool [n, 3] of the view alone: PA, AP, unknown."""
        return _one_of(self.views, VIEWS)

    @property
    def known(self) -> tuple[str, ...]:
        """Which of the facts are known of any image."""
        facts = {
            "view": self.views != "",
            "sex": self.sexes != "",
            "age": self.ages_years >= 0,
            "follow-up number": self.follow_ups >= 0,
        }
        return tuple(name for name, each in facts.items() if each.any())


@dataclasses.dataclass(frozen=True, eq=False)
class Training:
    """What baselines are fitted on: the original images of a training split.

    Attributes:
        facts: of the images.
        labels: [n, k], zeros and ones.
    """

    facts: Facts
    labels: np.ndarray


def facts_of(scored: Predictions) -> Facts:
    """Returns what is known of scored images."""
    follow_ups = scored.follow_ups
    if follow_ups is None:
        follow_ups = _follow_ups_in(scored.image_ids)
    return Facts(scored.views, scored.sexes, scored.ages_years, follow_ups, scored.patient_ids)


def training_of(dataset: Dataset, names: Sequence[str]) -> Training:
    """Returns the original images of a dataset's training split, for the dataset's task.

    A dataset holds no numbers of follow-ups: those in the images' names are taken, NIH's of 2017.

    Args:
        dataset: of a run.
        names: of the classes that are wanted.

    Raises:
        UsageError: there is no such split, or no image of it takes part in the task.
        CxrError: the table of records is damaged, or was rebuilt since the dataset was opened.
    """
    records = dataset.split(TRAIN)
    originals = records.copies == 0
    places = [runs.score_names(records.task).index(name) for name in names]
    return Training(
        Facts(
            records.views[originals],
            records.sexes[originals],
            records.ages_years[originals],
            _follow_ups_in(records.image_ids[originals]),
            records.patient_ids[originals],
        ),
        runs.class_rows(records.task, records.labels)[originals][:, places],
    )


class Beside:
    """What stands beside a model's AUROC, in each draw of the bootstrap.

    Args:
        scored: what is measured.
        training: what baselines are fitted on; None for the scored images themselves, cross-fitted by
            patient.
    """

    def __init__(self, scored: Predictions, training: Training | None = None):
        self._scored, self._facts = scored, facts_of(scored)
        self._fitted_on = (
            f"{len(training.labels):,} original images of the training split"
            if training
            else f"the scored images, cross-fitted by patient in {FOLDS} folds"
        )
        folds = None if training else _folds(scored.patient_ids)
        training = training or Training(self._facts, scored.labels)
        self._metadata, self._view = (
            CellRanking(
                scored.labels, *fitted(known(training.facts), training.labels, known(self._facts), folds)
            )
            for known in (Facts.metadata, Facts.view)
        )
        self._within = [
            WithinRanking(y, s, scored.views) for y, s in zip(scored.labels.T, scored.scores.T, strict=True)
        ]

    def columns(self, weights: np.ndarray, areas: np.ndarray) -> np.ndarray:
        """Returns what `results` takes the intervals of, by class: float64 [draws, 6k].

        AUROC of metadata, of the view, and within views; the model's less each of these.

        Args:
            weights: int [n, draws].
            areas: float64 [draws, k], the model's AUROC.
        """
        within = np.stack([each.auroc(weights) for each in self._within], axis=1)
        alone = [self._metadata.auroc(weights), self._view.auroc(weights), within]
        return np.concatenate([*alone, *(areas - each for each in alone)], axis=1)

    def means(self, first: int) -> list[range]:
        """Returns the places of the columns that `results` takes means of; `columns` begin at `first`."""
        count = len(self._scored.names)
        return [range(first + block * count, first + (block + 1) * count) for block in range(6)]

    def results(
        self, model: Sequence[Interval], columns: Sequence[Interval], means: Sequence[Interval]
    ) -> tuple[Baselines, WithinView]:
        """Returns what was found.

        Args:
            model: its AUROC by class.
            columns: intervals of `columns`.
            means: of `means`.
        """
        names = self._scored.names
        metadata, view, within, added, added_to_view, lost = (
            (mean, dict(zip(names, (columns[place] for place in places), strict=True)))
            for mean, places in zip(means, self.means(0), strict=True)
        )
        known = self._facts.known
        follow_ups = "none"
        if "follow-up number" in known:
            follow_ups = "of the table" if self._scored.follow_ups is not None else "in the names of images"
        baselines = Baselines(
            fitted_on=self._fitted_on,
            follow_up_numbers=follow_ups,
            metadata=Baseline(known, *metadata, *added) if known else None,
            view=Baseline(("view",), *view, *added_to_view) if "view" in known else None,
        )
        of_known_view = int(np.isin(self._facts.views, VIEWS).sum())
        lacks = tuple(
            name
            for name, each in zip(names, model, strict=True)
            if each.value is not None and within[1][name].value is None
        )
        return baselines, WithinView(of_known_view, lacks, *within, *lost)


def fitted(
    known: np.ndarray, labels: np.ndarray, asked: np.ndarray, folds: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """Scores images by logistic regressions on what is known of them, one for each class.

    Images of which the same is known have the same score, so they are held together as a cell. A regression
    has an L2 penalty of weight 1 (scikit-learn's C) on all but its intercept, which is left out of the
    scores: cross-fitted, it is high where the class is rare among the images that are scored.

    Args:
        known: bool [m, facts], of the images that are fitted on.
        labels: [m, k], zeros and ones; other labels take no part.
        asked: bool [n, facts], of the images that are scored.
        folds: int [n] where they are the same images: each is scored by a fit on those of the other folds.

    Returns:
        Scores float64 [cells, k], log odds; all 0 where a class has no positive or no negative to be fitted
        on. And int [n], the cell of each image that is scored.
    """
    fold = np.zeros(len(asked), np.int64) if folds is None else folds
    bits = 1 << np.arange(known.shape[1])  # facts as one whole number: these sort quickly
    cells, place = np.unique(fold << len(bits) | asked @ bits, return_inverse=True)
    scores = np.zeros((len(cells), labels.shape[1]))
    for each in np.unique(fold):
        rows = np.ones(len(known), bool) if folds is None else folds != each
        of_fold = cells >> len(bits) == each
        kinds, kind = np.unique(known[rows] @ bits, return_inverse=True)
        for column, truth in enumerate(labels[rows].T):
            no, yes = (np.bincount(kind[truth == value], minlength=len(kinds)) for value in (0, 1))
            if no.any() and yes.any():
                asked_facts = (cells[of_fold, np.newaxis] & bits) > 0
                scores[of_fold, column] = _log_odds((kinds[:, np.newaxis] & bits) > 0, no, yes, asked_facts)
    return scores, place


def _log_odds(
    kinds: np.ndarray, negatives: np.ndarray, positives: np.ndarray, asked: np.ndarray
) -> np.ndarray:
    """Fits one class on counts of each kind of image; returns log odds without the intercept: float64 [n].

    They are less their mean over the images that were fitted on, so that those of several folds go together.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(solver="newton-cholesky", tol=1e-8)
    design = np.concatenate([kinds, kinds]).astype(np.float64)
    truth = np.repeat([0, 1], len(kinds))
    weights = np.concatenate([negatives, positives]).astype(np.float64)
    with warnings.catch_warnings():  # that it goes on with lbfgs where a Newton step gains nothing
        warnings.simplefilter("ignore", ConvergenceWarning)
        effects = model.fit(design[weights > 0], truth[weights > 0], weights[weights > 0]).coef_[0]
    mean = np.average(kinds @ effects, weights=negatives + positives)
    odds: np.ndarray = (asked @ effects - mean).round(_DIGITS)
    return odds


class CellRanking:
    """AUROC of scores that are alike in many images, under many weightings.

    Args:
        labels: [n, k], zeros and ones; rows of other labels take no part.
        scores: float [cells, k].
        cells: int [n], the cell of each row.
    """

    def __init__(self, labels: np.ndarray, scores: np.ndarray, cells: np.ndarray):
        rows, (num_cells, _) = len(labels), scores.shape
        self._cells = metrics.Sums(np.arange(rows), cells, num_cells, rows)
        self._classes = []
        for truth, column in zip(labels.T, scores.T, strict=True):
            levels, level = np.unique(column, return_inverse=True)
            # Positives are few, and so are cells: what is left of a cell's rows are negatives.
            others = [np.flatnonzero(kind) for kind in (truth == 1, (truth != 0) & (truth != 1))]
            self._classes.append(
                [
                    metrics.Sums(np.arange(num_cells), level, len(levels), num_cells),
                    *(metrics.Sums(each, level[cells[each]], len(levels), rows) for each in others),
                ]
            )

    def auroc(self, weights: np.ndarray) -> np.ndarray:
        """Returns float64 [draws, k]; NaN where there is no positive or no negative.

        Args:
            weights: whole numbers [n, draws].
        """
        of_cells, columns = self._cells.of(weights), []
        for every, positive, unjudged in self._classes:
            true = positive.of(weights)
            false = every.of(of_cells) - true - unjudged.of(weights)
            upto = false.cumsum(axis=0)
            columns.append(_share((true * (2 * upto - false)).sum(axis=0), true.sum(axis=0) * upto[-1]))
        return np.stack(columns, axis=1)


class WithinRanking:
    """AUROC of one class within views: positives are compared with negatives of their own view alone.

    The pairs of both views that are in order, ties half, by all pairs of both views. That is the mean of the
    AUROC within PA and within AP, weighted by (positives x negatives) of each view. Images of unknown view
    take no part.

    Args:
        labels: [n], zeros and ones; rows of other labels take no part.
        scores: float [n].
        views: object [n].
    """

    def __init__(self, labels: np.ndarray, scores: np.ndarray, views: np.ndarray):
        self._rankings = [metrics.Ranking(np.where(views == view, labels, -1), scores) for view in VIEWS]

    def auroc(self, weights: np.ndarray) -> np.ndarray:
        """Returns float64 [draws]; NaN where no view has both positives and negatives.

        Args:
            weights: int [n, draws].
        """
        ordered, pairs = np.zeros(weights.shape[1]), np.zeros(weights.shape[1])
        for ranking in self._rankings:
            counts = ranking.counts(weights)
            of_view = counts.positives * counts.negatives
            ordered += np.where(of_view > 0, counts.auroc(), 0) * of_view
            pairs += of_view
        return _share(2 * ordered, pairs)


def warnings_of(baselines: Baselines, model: Interval) -> list[str]:
    """Returns what is to be said where a model is not shown to be above what metadata give.

    Args:
        baselines: that stand beside the model.
        model: its macro AUROC.
    """
    metadata = baselines.metadata
    if metadata is None or metadata.macro_added.value is None or model.value is None:
        return []
    mean, said = metadata.macro_added, []
    if mean.no_interval:
        said.append(
            f"whether the macro AUROC of {model.value:.3f} is above that of metadata alone, without a pixel, "
            f"{metadata.macro_auroc.value:.3f}, is not decided: no interval, {mean.no_interval}"
        )
    elif not _above(mean):
        bounds = "" if mean.low is None else f" [{mean.low:+.3f}, {mean.high:+.3f}]"
        said.append(
            f"the macro AUROC of {model.value:.3f} is not shown to be above that of metadata alone, without "
            f"a pixel, {metadata.macro_auroc.value:.3f} (difference {mean.value:+.3f}{bounds})"
        )
    if below := [
        name for name, each in metadata.added.items() if each.value is not None and not _above(each)
    ]:
        said.append(f"not shown to be above metadata alone: {', '.join(below)}")
    return said


def _above(added: Interval) -> bool:
    """Whether a difference is above 0 by more than its interval, where it has one."""
    least = added.value if added.low is None else added.low
    return least is not None and least > 0


def _folds(patient_ids: np.ndarray) -> np.ndarray:
    """The fold of each image, by its patient alone: int [n]."""
    patients, place = np.unique(patient_ids, return_inverse=True)
    folds = np.array([keyed_hash(0, "fold", str(patient)) % FOLDS for patient in patients])
    return folds[place]


def _follow_ups_in(image_ids: np.ndarray) -> np.ndarray:
    """The numbers of follow-ups that names tell: int [n], -1 where they tell none."""
    told = map(follow_up_in_name, image_ids)
    return np.array([-1 if number is None else number for number in told], np.int64)


def _one_of(values: np.ndarray, known: Sequence[str]) -> np.ndarray:
    """A column for each value, and one for all others: bool [n, values + 1]."""
    columns = [values == each for each in known]
    return np.stack([*columns, ~np.any(columns, axis=0)], axis=1)


def _band(values: np.ndarray, starts: Sequence[int]) -> np.ndarray:
    """A column for each band, and one for values below 0: bool [n, bands + 1]."""
    bands = np.searchsorted(starts, values, "right")
    columns: np.ndarray = bands[:, np.newaxis] == np.arange(len(starts) + 1)
    return columns


def _share(twice: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """The ordered pairs by all pairs: float64 [draws]."""
    with np.errstate(divide="ignore", invalid="ignore"):
        share: np.ndarray = np.where(pairs > 0, twice / (2 * pairs), np.nan)
    return share
