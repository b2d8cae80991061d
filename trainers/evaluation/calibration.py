"""Whether a score of 0.3 means 30%: what training did to the odds undone, errors measured, a line fitted.

Each class has a line of its own in logits (Cox 1958; Platt 1999): calibrated logit = offset + slope x logit.
One for each class also where classes are exclusive: there each is calibrated against all others, and the
calibrated probabilities of an image need not sum to 1.
"""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from cxr_records.trainers import named, weighting
from cxr_records.trainers.evaluation.bootstrap import DIGITS, rounded
from cxr_records.trainers.evaluation.predictions import Predictions
from cxr_records.trainers.evaluation.results import Bin, Calibration, ClassCalibration
from cxr_records.trainers.runs import Run

BINS = 15
FEW_IMAGES = 10  # positives or negatives, below which a slope is more noise than news
_TINY = 1e-12


def shift_of_training(run: Run) -> np.ndarray:
    """Returns the log of what training multiplied each class's odds by: float64 [k].

    Of a multiclass run it is what each class's probability was multiplied by, before they are made to sum
    to 1 (Saerens et al. 2002). Training multiplies by how much more often than in the images it saw a class,
    and by what the loss weighs. A loss that does not multiply by a constant counts as if it did nothing; see
    `warning_of_loss`.

    Args:
        run: how often it saw each class, copies included, and its loss.
    """
    seen, images = _shares(run)
    config, records = run.config, seen * run.train_records
    of_loss = weighting.shift_of_loss(config.loss, config.loss_options, records, run.train_records)
    if run.task.kind == "multiclass":
        # A class without records or images counts as half of one.
        floors = 0.5 / run.train_records, 0.5 / run.train_images
        shift: np.ndarray = np.log(np.maximum(seen, floors[0])) - np.log(np.maximum(images, floors[1]))
    else:
        shift = logit(seen) - logit(images)
    return shift if of_loss is None else shift + of_loss


def _shares(run: Run) -> tuple[np.ndarray, np.ndarray]:
    """The share of each class in what training saw, and in the images: float64 [k] each."""
    seen = [count.records / run.train_records for count in run.classes.values()]
    return np.array(seen), np.array([count.images / run.train_images for count in run.classes.values()])


def undo_shift(scores: np.ndarray, kind: str, shift: np.ndarray) -> np.ndarray:
    """Returns the probabilities that a model would give, had training not moved the odds.

    Args:
        scores: float64 [n, k], probabilities.
        kind: "binary", "multiclass" or "multilabel".
        shift: as `shift_of_training` gives it.
    """
    if kind != "multiclass":
        return _sigmoid(logit(scores) - shift)
    shifted: np.ndarray = scores * np.exp(shift.min() - shift)  # at most 1 each: nothing overflows
    shifted /= np.maximum(shifted.sum(axis=1, keepdims=True), _TINY)
    return shifted


def undone_by(run: Run) -> tuple[str, ...]:
    """Returns what of a run's training `shift_of_training` undoes."""
    done = [] if np.allclose(*_shares(run), rtol=1e-9) else ["how often it saw each class"]
    if run.config.loss in ("weighted_bce", "weighted_ce"):
        done.append(f"the weights of {run.config.loss}")
    if run.config.loss == "logit_adjusted":
        done.append("the adjustment of logits")
    return tuple(done)


def balanced_by(run: Run) -> str | None:
    """Returns what of a run's training has made the classes count alike; None where nothing has.

    To divide the scores by their means as well would correct for the classes' frequencies twice.
    """
    loss, (seen, _) = run.config.loss, _shares(run)
    if loss in ("logit_adjusted", "weighted_ce", "ldam"):
        return f"the loss {loss}"
    # As class-balanced sampling leaves them; a class that was never seen is no part of it.
    even = run.task.kind == "multiclass" and np.ptp(seen[seen > 0]) <= 0.01 * seen.max()
    return "training on as many records of each class" if even else None


def warning_of_loss(run: Run) -> str | None:
    """Returns what is to be said where the loss moves the probabilities in a way that is not undone."""
    loss = run.config.loss
    if named.is_outside(loss):
        return f"trained with loss {loss}: whether it moves probabilities is not known, and is not undone"
    if weighting.shift_of_loss(loss, run.config.loss_options, np.ones(1), 2) is None:
        return (
            f"trained with loss {loss}, which moves probabilities by more than a factor of the odds: that is "
            "not undone, and calibration shows it"
        )
    return None


@dataclasses.dataclass(frozen=True)
class Line:
    """What turns the logits of a class into calibrated ones: offset + slope x logit.

    Attributes:
        slope: None with the offset.
        offset: None where nothing could be fitted.
        note: why there is no slope, or no offset either.
    """

    slope: float | None
    offset: float | None
    note: str | None = None

    def apply(self, scores: np.ndarray) -> np.ndarray:
        """Returns calibrated probabilities: float64 [n].

        Args:
            scores: float64 [n], probabilities.
        """
        assert self.slope is not None
        assert self.offset is not None
        return _sigmoid(self.offset + self.slope * logit(scores))


def fit_line(labels: np.ndarray, scores: np.ndarray) -> Line:
    """Returns the line of the greatest likelihood, by Newton's method.

    Where fewer than 10 images are positive, or negative, or the scores separate the two, a slope would be
    noise or infinite: it is 1, and the offset alone is fitted. Labels of one kind give no line.

    Args:
        labels: [n], zeros and ones.
        scores: float64 [n], probabilities.
    """
    x, y = logit(scores), np.asarray(labels, float)
    positives, negatives = int(y.sum()), int(len(y) - y.sum())
    for kind, count in (("positive", positives), ("negative", negatives)):
        if not count:
            return Line(None, None, f"not fitted: no {kind} image")
    for kind, count in (("positive", positives), ("negative", negatives)):
        if count < FEW_IMAGES:
            images = "image" if count == 1 else "images"
            note = f"offset alone: {count} {kind} {images}, fewer than {FEW_IMAGES}"
            return Line(1.0, _offset(x, y), note)
    if x[y == 0].max() <= x[y == 1].min() or x[y == 1].max() <= x[y == 0].min():
        return Line(1.0, _offset(x, y), "offset alone: the scores separate the labels")
    slope, offset = _newton(x, y)
    return Line(
        slope, offset, None if slope > 0 else "the slope is not above 0: the scores rank the wrong way"
    )


def _newton(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """Slope and offset of the greatest likelihood, which labels that x does not separate have."""
    middle, width = x.mean(), x.std()
    rows = np.stack([np.ones_like(x), (x - middle) / width], axis=1)

    def loss(line: np.ndarray) -> float:
        z = rows @ line
        return float((np.logaddexp(0, z) - y * z).sum())

    line = np.array([np.log(y.mean() / (1 - y.mean())), 0.0])  # the prevalence for all
    for _ in range(100):
        p = _sigmoid(rows @ line)
        gradient = rows.T @ (p - y)
        step = np.linalg.solve((rows * (p * (1 - p))[:, np.newaxis]).T @ rows, gradient)
        before = loss(line)
        # The loss is convex: a step that overshoots is halved.
        while loss(line - step) > before and np.abs(step).max() > _TINY:
            step = step / 2
        line = line - step
        if np.abs(step).max() <= 1e-10:
            break
    slope = line[1] / width
    return float(slope), float(line[0] - slope * middle)


def _offset(x: np.ndarray, y: np.ndarray) -> float:
    """The offset at which the mean probability is the share of positives, by halving: the slope is 1."""
    low, high = -100.0, 100.0  # logits lie within 28 of 0
    for _ in range(100):
        offset = (low + high) / 2
        low, high = (offset, high) if _sigmoid(x + offset).mean() < y.mean() else (low, offset)
    return (low + high) / 2


def reliability(labels: np.ndarray, scores: np.ndarray) -> tuple[Bin, ...]:
    """Returns up to 15 bins with as many images each, by rising score.

    Args:
        labels: [n], zeros and ones.
        scores: float [n], probabilities.
    """
    order = np.argsort(scores, kind="stable")
    return tuple(
        Bin(float(scores[rows].mean()), float(labels[rows].mean()), len(rows))
        for rows in np.array_split(order, BINS)
        if len(rows)
    )


def expected_error(bins: Sequence[Bin]) -> float:
    """Returns the expected calibration error: the mean gap between score and share, weighted by count.

    NaN without bins.
    """
    gaps = sum(abs(each.mean_score - each.positive_share) * each.count for each in bins)
    return gaps / sum(each.count for each in bins) if bins else float("nan")


def calibrate(
    scored: Predictions, validation: Predictions | None, run: Run | None
) -> tuple[Calibration, np.ndarray]:
    """Measures calibration.

    Args:
        scored: probabilities that are measured.
        validation: of the same model; slopes and offsets are fitted on it.
        run: its counts and its loss tell what training did to the odds; None for tables from elsewhere,
            which are measured as they are.

    Returns:
        The calibration, and the best calibrated probabilities that there are: float64 [n, k]; of a class
        without slope and offset, those after what training did was undone.
    """
    shift = shift_of_training(run) if run else np.zeros(len(scored.names))

    def undone(predictions: Predictions) -> np.ndarray:
        return undo_shift(predictions.scores, scored.kind, shift) if run else predictions.scores

    scores, labels = undone(scored), scored.labels
    fitted_from = undone(validation) if validation else None
    best, classes = scores.copy(), {}
    for place, name in enumerate(scored.names):
        line = Line(None, None, "not fitted: no validation scores")
        if validation and fitted_from is not None:
            known = validation.labels[:, place] >= 0
            line = fit_line(validation.labels[known, place], fitted_from[known, place])
        if line.offset is not None:
            best[:, place] = line.apply(scores[:, place])
        known = labels[:, place] >= 0
        steps = [each[known, place] for each in (scored.scores, scores, best)]
        classes[name] = _calibrate_class(labels[known, place], steps, line, shift[place])
    every = classes.values()
    fitted = any(each.offset is not None for each in every)
    calibration = Calibration(
        undone=undone_by(run) if run else (),
        fitted_on=validation.split if validation and fitted else None,
        macro_ece_raw=_mean(each.ece_raw for each in every),
        macro_ece=_mean(each.ece for each in every),
        macro_ece_calibrated=_mean(each.ece_calibrated for each in every),
        macro_brier=_mean(each.brier for each in every),
        macro_brier_calibrated=_mean(each.brier_calibrated for each in every),
        classes=classes,
    )
    return calibration, best


def _calibrate_class(
    labels: np.ndarray, steps: Sequence[np.ndarray], line: Line, shift: float
) -> ClassCalibration:
    """Measures one class: labels [n], and its scores as given, after the shift was undone, after the line."""
    raw, undone, best = steps

    def brier(scores: np.ndarray) -> float | None:
        return _digits(((scores - labels) ** 2).mean()) if len(labels) else None

    bins, fitted = reliability(labels, undone), line.offset is not None and len(labels) > 0
    bins_calibrated = reliability(labels, best)
    return ClassCalibration(
        ece_raw=rounded(expected_error(reliability(labels, raw))),
        ece=rounded(expected_error(bins)),
        ece_calibrated=rounded(expected_error(bins_calibrated)) if fitted else None,
        brier=brier(undone),
        brier_calibrated=brier(best) if fitted else None,
        slope=None if line.slope is None else _digits(line.slope),
        offset=None if line.offset is None else _digits(line.offset),
        shift=_digits(shift),
        note=line.note,
        bins=_rounded(bins),
        bins_calibrated=_rounded(bins_calibrated) if fitted else None,
    )


def _rounded(bins: Sequence[Bin]) -> tuple[Bin, ...]:
    return tuple(Bin(_digits(b.mean_score), _digits(b.positive_share), b.count) for b in bins)


def _mean(values: Iterable[float | None]) -> float | None:
    """Of those that there are."""
    defined = [value for value in values if value is not None]
    return _digits(sum(defined) / len(defined)) if defined else None


def _digits(value: float | np.floating[Any]) -> float:
    return round(float(value), DIGITS)


def logit(p: np.ndarray) -> np.ndarray:
    """Returns the log of the odds of probabilities, which are kept 1e-12 away from 0 and 1."""
    p = np.clip(p, _TINY, 1 - _TINY)
    odds: np.ndarray = np.log(p) - np.log1p(-p)
    return odds


def _sigmoid(x: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):  # 1 / infinity is the 0 that is meant
        p: np.ndarray = 1 / (1 + np.exp(-x))
    return p
