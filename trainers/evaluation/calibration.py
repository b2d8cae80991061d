"""Whether a score of 0.3 means 30%: shifts of frequency undone, errors measured, a temperature fitted."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from cxr_records.trainers.evaluation.bootstrap import DIGITS
from cxr_records.trainers.evaluation.predictions import Predictions
from cxr_records.trainers.evaluation.results import Bin, Calibration, ClassCalibration
from cxr_records.trainers.runs import Run

BINS = 15
_TINY = 1e-12
# Probabilities of a model that was trained with these are off by what the loss weighs.
_WEIGHTED_LOSSES = ("weighted_bce", "weighted_ce", "focal", "asymmetric")


def undo_shift(scores: np.ndarray, kind: str, run: Run) -> np.ndarray:
    """Returns the probabilities that a model would give, had it been trained without copies.

    Binary and multilabel: each class's odds are multiplied by (odds of its frequency in the training images)
    / (odds in the training records). Multiclass: probabilities are multiplied by the ratio of the class's
    shares and made to sum to 1 again (Saerens et al. 2002). A model trained with logit adjustment
    sees all classes as equally frequent, so there the ratio is the share in the images alone.

    Args:
        scores: float64 [n, k], probabilities.
        kind: "binary", "multiclass" or "multilabel".
        run: how often it saw each class, and its loss.
    """
    records = np.array([count.records for count in run.classes.values()], float)
    images = np.array([count.images for count in run.classes.values()], float)
    if kind == "multiclass":
        seen = np.ones(len(images)) if run.config.loss == "logit_adjusted" else records
        ratio = np.maximum(images, 0.5) / np.maximum(seen, 0.5)
        shifted: np.ndarray = scores * ratio
        shifted /= np.maximum(shifted.sum(axis=1, keepdims=True), _TINY)
        return shifted
    shift = _logit(images / run.train_images) - _logit(records / run.train_records)
    return _sigmoid(_logit(scores) + shift)


def warning_of_loss(run: Run) -> str | None:
    """Returns what is to be said where the loss itself moves the probabilities."""
    loss = run.config.loss
    if loss in _WEIGHTED_LOSSES:
        return f"trained with loss {loss}, which moves probabilities by itself: calibration shows that too"
    return None


def fit_temperature(labels: np.ndarray, scores: np.ndarray, kind: str) -> float | None:
    """Returns the temperature of the least negative log likelihood (Guo et al. 2017), one for all classes.

    Args:
        labels: [n, k], zeros and ones.
        scores: float64 [n, k], probabilities.
        kind: softmax over classes for "multiclass", a sigmoid for each class otherwise.

    Returns:
        Between 1/20 and 20; None where the labels hold one kind only.
    """
    if labels.min(initial=1) == labels.max(initial=0):
        return None

    def loss(log_temperature: float) -> float:
        p = np.clip(with_temperature(scores, float(np.exp(log_temperature)), kind), _TINY, 1 - _TINY)
        if kind == "multiclass":
            return float(-(labels * np.log(p)).sum())
        return float(-(labels * np.log(p) + (1 - labels) * np.log1p(-p)).sum())

    # Golden section: the loss has one minimum in the temperature's inverse.
    low, high, golden = -np.log(20), np.log(20), (np.sqrt(5) - 1) / 2
    for _ in range(40):
        one, other = high - golden * (high - low), low + golden * (high - low)
        low, high = (low, other) if loss(one) < loss(other) else (one, high)
    return float(np.exp((low + high) / 2))


def with_temperature(scores: np.ndarray, temperature: float, kind: str) -> np.ndarray:
    """Returns the probabilities of logits divided by a temperature: float64 [n, k]."""
    if kind != "multiclass":
        return _sigmoid(_logit(scores) / temperature)
    logits = np.log(np.clip(scores, _TINY, 1)) / temperature
    powers: np.ndarray = np.exp(logits - logits.max(axis=1, keepdims=True))
    powers /= powers.sum(axis=1, keepdims=True)
    return powers


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
    """Returns the expected calibration error: the mean gap between score and share, weighted by count."""
    gaps = sum(abs(each.mean_score - each.positive_share) * each.count for each in bins)
    return gaps / sum(each.count for each in bins)


def calibrate(scored: Predictions, validation: Predictions | None, run: Run | None) -> Calibration:
    """Measures calibration.

    Args:
        scored: probabilities that are measured.
        validation: of the same model; the temperature is fitted on it.
        run: its counts tell what copies did to frequencies; None for tables from elsewhere, which are
            measured as they are.
    """

    def undone(predictions: Predictions) -> np.ndarray:
        return undo_shift(predictions.scores, scored.kind, run) if run else predictions.scores

    scores, labels = undone(scored), scored.labels
    temperature = fit_temperature(validation.labels, undone(validation), scored.kind) if validation else None
    cooled = with_temperature(scores, temperature, scored.kind) if temperature else None
    classes = {
        name: _calibrate_class(
            labels[:, place], scores[:, place], None if cooled is None else cooled[:, place]
        )
        for place, name in enumerate(scored.names)
    }
    with_temperatures = [
        each.ece_with_temperature for each in classes.values() if each.ece_with_temperature is not None
    ]
    return Calibration(
        prior_shift_undone=run is not None,
        temperature=temperature and _digits(temperature),
        temperature_fitted_on=validation.split if validation and temperature else None,
        macro_ece=_digits(np.mean([each.ece for each in classes.values()])),
        macro_brier=_digits(np.mean([each.brier for each in classes.values()])),
        macro_ece_with_temperature=_digits(np.mean(with_temperatures)) if with_temperatures else None,
        classes=classes,
    )


def _calibrate_class(labels: np.ndarray, scores: np.ndarray, cooled: np.ndarray | None) -> ClassCalibration:
    """Measures one class: labels and scores [n], and the scores after the temperature."""
    judged = labels >= 0
    labels, scores, cooled = labels[judged], scores[judged], None if cooled is None else cooled[judged]
    bins = reliability(labels, scores)
    return ClassCalibration(
        ece=_digits(expected_error(bins)),
        brier=_digits(((scores - labels) ** 2).mean()),
        ece_with_temperature=None if cooled is None else _digits(expected_error(reliability(labels, cooled))),
        bins=tuple(Bin(_digits(b.mean_score), _digits(b.positive_share), b.count) for b in bins),
    )


def _digits(value: float | np.floating[Any]) -> float:
    return round(float(value), DIGITS)


def _logit(p: np.ndarray) -> np.ndarray:
    p = np.clip(p, _TINY, 1 - _TINY)
    logit: np.ndarray = np.log(p) - np.log1p(-p)
    return logit


def _sigmoid(x: np.ndarray) -> np.ndarray:
    p: np.ndarray = 1 / (1 + np.exp(-x))
    return p
