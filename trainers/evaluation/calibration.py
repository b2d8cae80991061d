"""Whether a score of 0.3 means 30%: shifts of frequency undone, errors measured, a temperature fitted."""

from typing import Any

import numpy as np

from cxr_records.trainers.evaluation.bootstrap import rounded
from cxr_records.trainers.evaluation.predictions import Predictions
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
        shifted = scores * ratio
        return shifted / np.maximum(shifted.sum(axis=1, keepdims=True), _TINY)
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
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def reliability(labels: np.ndarray, scores: np.ndarray) -> list[dict[str, float]]:
    """Returns up to 15 bins with as many images each: mean score, share of positives, count.

    Args:
        labels: [n], zeros and ones.
        scores: float [n], probabilities.
    """
    order = np.argsort(scores, kind="stable")
    bins = [rows for rows in np.array_split(order, BINS) if len(rows)]
    return [
        {
            "mean_score": float(scores[rows].mean()),
            "positive_share": float(labels[rows].mean()),
            "count": len(rows),
        }
        for rows in bins
    ]


def expected_error(bins: list[dict[str, float]]) -> float:
    """Returns the expected calibration error: the mean gap between score and share, weighted by count."""
    count = sum(held["count"] for held in bins)
    return sum(abs(held["mean_score"] - held["positive_share"]) * held["count"] for held in bins) / count


def calibrate(scored: Predictions, validation: Predictions | None, run: Run | None) -> dict[str, Any]:
    """Measures calibration as metrics.json has it.

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
    classes = {}
    for place, name in enumerate(scored.names):
        bins = reliability(labels[:, place], scores[:, place])
        classes[name] = {
            "ece": rounded(expected_error(bins)),
            "brier": rounded(((scores[:, place] - labels[:, place]) ** 2).mean()),
            "ece_with_temperature": None
            if cooled is None
            else rounded(expected_error(reliability(labels[:, place], cooled[:, place]))),
            "bins": [{key: round(value, 6) for key, value in held.items()} for held in bins],
        }
    return {
        "prior_shift_undone": run is not None,
        "temperature": temperature and rounded(temperature),
        "temperature_fitted_on": validation.split if temperature else None,
        "macro_ece": rounded(np.mean([held["ece"] for held in classes.values()])),
        "macro_brier": rounded(np.mean([held["brier"] for held in classes.values()])),
        "macro_ece_with_temperature": None
        if cooled is None
        else rounded(np.mean([held["ece_with_temperature"] for held in classes.values()])),
        "classes": classes,
    }


def _logit(p: np.ndarray) -> np.ndarray:
    p = np.clip(p, _TINY, 1 - _TINY)
    return np.log(p) - np.log1p(-p)


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))
