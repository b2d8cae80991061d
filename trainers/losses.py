"""Losses for classes of very unequal size, from logits, numerically safe under float16 and bfloat16.

Weights come from the records as they are seen in training, after copies and class-balanced sampling: these
have corrected a part of the imbalance already, and weights from the counts before would correct it twice.
"""

import inspect
import math
from collections.abc import Mapping
from typing import Any, Protocol

import keras
import numpy as np
from keras import ops

from cxr_records.errors import UsageError
from cxr_records.findings import nearest
from cxr_records.trainers import named, weighting


class LossMaker(Protocol):
    """Makes a loss, of ours or of a user's."""

    def __call__(self, *counts: Any, **options: Any) -> keras.losses.Loss:
        """Returns a loss of (labels, logits).

        Labels are int32 [batch] for binary (logits float32 [batch, 1]) and multiclass (logits [batch, k]),
        and int32 [batch, k] for multilabel. Its `call` gives float32 [batch]; Keras takes the mean.

        Args:
            counts: two. Float64 [k], training records of an epoch that hold each class, copies included, in
                expectation where they are drawn by class; for binary [1], those of the second class. And the
                number of training records, copies included.
            options: what the user set as loss_options.NAME, by NAME.
        """


def make_loss(
    name: str, kind: str, class_records: np.ndarray, num_records: int, **options: float
) -> keras.losses.Loss:
    """Returns a loss of (labels, logits), averaged over a batch.

    Labels are int [batch] for binary (logits [batch, 1]) and multiclass (logits [batch, k]), and int
    [batch, 14] for multilabel. With sample weights it is their weighted mean: rows of weight 0, as those that
    pad a batch, are as good as absent.

    Args:
        name: one of `LOSSES[kind]`, or a `LossMaker` of a user's, as `named.choose` takes it.
        kind: "binary", "multiclass" or "multilabel".
        class_records: [k], training records of an epoch that hold each class, copies included, in expectation
            where they are drawn by class; for binary [1], those of the second class.
        num_records: training records, copies included.
        options: the loss' own, such as gamma.

    Raises:
        UsageError: no such loss for the kind, or no such option (the nearest name is suggested), or a value
            out of its range.
    """
    known = LOSSES[kind]
    elsewhere = [k for k, names in LOSSES.items() if name in names]
    hint = f" (it is for {' and '.join(elsewhere)})" if elsewhere else nearest(name, list(known))
    make = named.choose("loss", name, known, f"no loss for {kind}{hint}")
    parameters = list(inspect.signature(make).parameters.values())[2:]  # behind the counts
    taken = [p.name for p in parameters if p.kind is not p.VAR_KEYWORD]
    for option in options:
        if option not in taken and len(taken) == len(parameters):
            expected = f"expected one of {', '.join(taken)}" if taken else "it has none"
            raise UsageError(
                f"`loss_options.{option}`: the loss {name} has no such option{nearest(option, taken)}; "
                f"{expected}"
            )
    counts = np.asarray(class_records, np.float64)
    if not named.is_outside(name):
        return make(counts, num_records, **options)
    with named.calling(f"`loss={name}`", name):
        loss = make(counts, num_records, **options)
        _check_loss(loss, kind, len(counts))
    return loss


def _check_loss(loss: Any, kind: str, num_outputs: int) -> None:
    """Tries a loss of a user's on two images, before anything is trained with it."""
    if not isinstance(loss, keras.losses.Loss):
        raise UsageError(f"expected a keras.losses.Loss, found {type(loss).__name__}")
    labels = np.zeros((2, num_outputs) if kind == "multilabel" else 2, np.int32)
    shape = tuple(ops.shape(loss(labels, np.zeros((2, num_outputs), np.float32))))
    if shape:
        raise UsageError(f"expected one number for a batch, found shape {list(shape)}; keep Keras' reduction")


class _FromLogits(keras.losses.Loss):  # type: ignore[misc]  # Keras has no types
    """A loss that is computed in float32, whatever the logits are."""

    def __init__(self, name: str):
        super().__init__(name=name, reduction="mean_with_sample_weight", dtype="float32")


class BinaryCrossEntropy(_FromLogits):
    """Cross-entropy of independent classes, the mean over classes.

    With weights, a positive of class c counts positive_weights[c] times and a negative negative_weights[c]
    times.

    Args:
        positive_weights: float [k], or None for ones.
        negative_weights: float [k], or None for ones.
    """

    def __init__(
        self, positive_weights: np.ndarray | None = None, negative_weights: np.ndarray | None = None
    ):
        super().__init__("binary_cross_entropy")
        self._positive = 1.0 if positive_weights is None else np.asarray(positive_weights, np.float32)
        self._negative = 1.0 if negative_weights is None else np.asarray(negative_weights, np.float32)

    def call(self, y_true: Any, y_pred: Any) -> Any:
        """Returns float32 [batch]."""
        y = _rows(y_true, y_pred)
        weights = self._positive * y + self._negative * (1 - y)
        return ops.mean(weights * ops.binary_crossentropy(y, y_pred, from_logits=True), axis=-1)


class FocalLoss(_FromLogits):
    """Focal loss (Lin et al., "Focal Loss for Dense Object Detection", ICCV 2017, equation 5).

    Each class' cross-entropy times (1 - p)^gamma, with p the probability of what is true: what is right
    already counts less. With alpha, positives count alpha and negatives 1 - alpha.

    Args:
        gamma: 0 is plain cross-entropy.
        alpha: between 0 and 1; None for no weights.

    Raises:
        UsageError: a value is out of its range.
    """

    def __init__(self, gamma: float, alpha: float | None = None):
        super().__init__("focal")
        _check(gamma=gamma)
        if alpha is not None:
            _check(below=1, alpha=alpha)
        self._gamma, self._alpha = gamma, alpha

    def call(self, y_true: Any, y_pred: Any) -> Any:
        """Returns float32 [batch]."""
        y = _rows(y_true, y_pred)
        toward = (2 * y - 1) * y_pred  # the logit of what is true
        # (1 - p)^gamma as a power of e: its gradient is finite at p = 1 too, where that of a power is not.
        losses = ops.softplus(-toward) * ops.exp(-self._gamma * ops.softplus(toward))
        if self._alpha is not None:
            losses *= self._alpha * y + (1 - self._alpha) * (1 - y)
        return ops.mean(losses, axis=-1)


class AsymmetricLoss(_FromLogits):
    """Asymmetric loss (Ridnik et al., "Asymmetric Loss For Multi-Label Classification", ICCV 2021).

    Focal loss with a stronger focus on negatives than on positives, whose probabilities are moreover lowered
    by `clip`, so that negatives easier than that count nothing.

    Args:
        gamma_neg: focus on hard negatives.
        gamma_pos: focus on hard positives.
        clip: what is taken off a negative's probability, 0 to below 1.

    Raises:
        UsageError: a value is out of its range.
    """

    def __init__(self, gamma_neg: float, gamma_pos: float, clip: float):
        super().__init__("asymmetric")
        _check(gamma_neg=gamma_neg, gamma_pos=gamma_pos)
        _check(below=1, clip=clip)
        self._gamma_neg, self._gamma_pos, self._clip = gamma_neg, gamma_pos, clip

    def call(self, y_true: Any, y_pred: Any) -> Any:
        """Returns float32 [batch]."""
        y = _rows(y_true, y_pred)
        positive = ops.softplus(-y_pred) * ops.exp(-self._gamma_pos * ops.softplus(y_pred))
        if self._clip:
            shifted = ops.maximum(ops.sigmoid(y_pred) - self._clip, 0.0)
            # Not log(1 - shifted), which would be infinite where the clip is too small to be seen beside 1.
            losses = -ops.log(ops.minimum(ops.sigmoid(-y_pred) + self._clip, 1.0))
            # A power of 0 has no gradient, hence the floor.
            negative = losses * ops.exp(self._gamma_neg * ops.log(ops.maximum(shifted, 1e-8)))
        else:
            negative = ops.softplus(y_pred) * ops.exp(-self._gamma_neg * ops.softplus(-y_pred))
        return ops.mean(y * positive + (1 - y) * negative, axis=-1)


class CrossEntropy(_FromLogits):
    """Cross-entropy of exclusive classes, with a weight per class and logits moved by a constant.

    Args:
        weights: float [k], or None for ones.
        adjustment: float [k], added to the logits in training, or None for zeros.
    """

    def __init__(self, weights: np.ndarray | None = None, adjustment: np.ndarray | None = None):
        super().__init__("cross_entropy")
        self._weights = None if weights is None else np.asarray(weights, np.float32)
        self._adjustment = 0.0 if adjustment is None else np.asarray(adjustment, np.float32)

    def call(self, y_true: Any, y_pred: Any) -> Any:
        """Returns float32 [batch]."""
        labels = ops.cast(ops.reshape(y_true, (-1,)), "int32")
        logits = y_pred + self._adjustment
        losses = ops.sparse_categorical_crossentropy(labels, logits, from_logits=True)
        return losses if self._weights is None else losses * ops.take(self._weights, labels)


class FocalCrossEntropy(_FromLogits):
    """Focal loss of exclusive classes: cross-entropy times (1 - p)^gamma, p the probability of what is true.

    It is among the losses of Holste et al. ("Long-Tailed Classification of Thorax Diseases on Chest X-Ray: A
    New Benchmark Study", 2022).

    Args:
        gamma: 0 is plain cross-entropy.

    Raises:
        UsageError: a value is out of its range.
    """

    def __init__(self, gamma: float):
        super().__init__("focal")
        _check(gamma=gamma)
        self._gamma = gamma

    def call(self, y_true: Any, y_pred: Any) -> Any:
        """Returns float32 [batch]."""
        labels = ops.cast(ops.reshape(y_true, (-1,)), "int32")
        losses = ops.sparse_categorical_crossentropy(labels, y_pred, from_logits=True)
        wrong = -ops.expm1(-losses)
        # A power of 0 has no gradient, hence the floor.
        return losses * ops.exp(self._gamma * ops.log(ops.maximum(wrong, 1e-8)))


class LDAM(_FromLogits):
    """Label-distribution-aware margins with deferred re-weighting (Cao et al., "Learning Imbalanced Datasets
    with Label-Distribution-Aware Margin Loss", NeurIPS 2019, equation 13 and algorithm 1).

    Cross-entropy in which the logit of what is true is made smaller by its class' margin, C / records^(1/4).
    Margins mean something only where logits cannot grow at will: they are `scale` times the cosine between
    features and a class' weights, as in the paper's code. A model's last layer is that of `cosine_scale`.

    Args:
        class_records: float64 [k], training records that hold each class.
        num_records: training records.
        margin: of the smallest class that has records, as a cosine.
        scale: of the cosines.
        beta: of the effective number of records (1 - beta^n) / (1 - beta) (Cui et al., "Class-Balanced Loss
            Based on Effective Number of Samples", CVPR 2019), by whose inverse classes weigh.
        defer: share of the epochs in which all weigh the same; 1 for no weights at all.

    Raises:
        UsageError: a value is out of its range.
    """

    def __init__(
        self,
        class_records: np.ndarray,
        num_records: int,
        margin: float,
        scale: float,
        beta: float,
        defer: float,
    ):
        super().__init__("ldam")
        _check(margin=margin)
        if not 0 < scale < math.inf:
            raise UsageError(f"`loss_options.scale={scale}`: expected a number above 0")
        _check(below=1, beta=beta)
        if not 0 <= defer <= 1:
            raise UsageError(f"`loss_options.defer={defer}`: expected a share from 0 to 1")
        filled = class_records > 0
        records = np.where(filled, class_records, class_records[filled].min(initial=num_records))
        margins = records**-0.25
        self._toward = np.asarray(scale * margin * margins / margins.max(), np.float32)
        effective = -np.expm1(records * np.log(beta)) if beta else np.ones_like(records)
        weights = filled / effective
        # So that the mean weight over the training records is 1.
        self._weights = np.asarray(weights * num_records / (weights @ class_records), np.float32)
        self._defer = defer
        self.reweighted = False

    def reweights_from(self, epochs: int) -> int:
        """Returns how many epochs of training pass before `reweighted` is to be set, which may be all."""
        return round(self._defer * epochs)

    def call(self, y_true: Any, y_pred: Any) -> Any:
        """Returns float32 [batch]. A step that was compiled keeps the weights that it was compiled with."""
        labels = ops.cast(ops.reshape(y_true, (-1,)), "int32")
        true = ops.one_hot(labels, len(self._toward), dtype="float32")
        losses = ops.sparse_categorical_crossentropy(labels, y_pred - self._toward * true, from_logits=True)
        return losses * ops.take(self._weights, labels) if self.reweighted else losses


def _rows(y_true: Any, y_pred: Any) -> Any:
    """Labels as float32 rows of the logits' shape."""
    return ops.reshape(ops.cast(y_true, "float32"), ops.shape(y_pred))


def _check(below: float = math.inf, **options: float) -> None:
    """Refuses a value that is not 0 or more and under a limit."""
    for name, value in options.items():
        if not 0 <= value < below:  # also refuses NaN
            limit = f" and below {below}" if below < math.inf else ""
            raise UsageError(f"`loss_options.{name}={value}`: expected a number of at least 0{limit}")


def _bce(class_records: np.ndarray, num_records: int) -> BinaryCrossEntropy:
    return BinaryCrossEntropy()


def _weighted_bce(class_records: np.ndarray, num_records: int) -> BinaryCrossEntropy:
    return BinaryCrossEntropy(*weighting.bce_weights(class_records, num_records))


def _focal(
    class_records: np.ndarray, num_records: int, gamma: float = 2.0, alpha: float | None = None
) -> FocalLoss:
    return FocalLoss(gamma, alpha)


def _asymmetric(
    class_records: np.ndarray,
    num_records: int,
    gamma_neg: float = 4.0,
    gamma_pos: float = 1.0,
    clip: float = 0.05,
) -> AsymmetricLoss:
    return AsymmetricLoss(gamma_neg, gamma_pos, clip)


def _ce(class_records: np.ndarray, num_records: int) -> CrossEntropy:
    return CrossEntropy()


def _weighted_ce(class_records: np.ndarray, num_records: int) -> CrossEntropy:
    return CrossEntropy(weights=weighting.ce_weights(class_records, num_records))


def _logit_adjusted(class_records: np.ndarray, num_records: int, tau: float = 1.0) -> CrossEntropy:
    """Menon et al. ("Long-tail learning via logit adjustment", ICLR 2021, equation 10): adds tau times the
    log of a class' share to its logit in training, so that the logits without it rank classes as if all were
    equally frequent."""
    _check(tau=tau)
    return CrossEntropy(adjustment=weighting.logit_adjustment(class_records, num_records, tau))


def _focal_ce(class_records: np.ndarray, num_records: int, gamma: float = 2.0) -> FocalCrossEntropy:
    return FocalCrossEntropy(gamma)


_LDAM_SCALE = 30.0


def _ldam(
    class_records: np.ndarray,
    num_records: int,
    margin: float = 0.5,
    scale: float = _LDAM_SCALE,
    beta: float = 0.9999,
    defer: float = 0.8,
) -> LDAM:
    """The values of the paper's code, which weighs from epoch 160 of 200 on."""
    return LDAM(class_records, num_records, margin, scale, beta, defer)


def cosine_scale(loss: str, options: Mapping[str, float]) -> float:
    """Returns what the logits for a loss are, as `ModelSpec.cosine_scale`: so many times a cosine, or 0.

    Args:
        loss: its name.
        options: of the loss.
    """
    return options.get("scale", _LDAM_SCALE) if loss == "ldam" else 0.0


LOSSES: Mapping[str, Mapping[str, LossMaker]] = {
    "binary": {"bce": _bce, "weighted_bce": _weighted_bce, "focal": _focal},
    "multiclass": {
        "ce": _ce,
        "weighted_ce": _weighted_ce,
        "logit_adjusted": _logit_adjusted,
        "focal": _focal_ce,
        "ldam": _ldam,
    },
    "multilabel": {"bce": _bce, "weighted_bce": _weighted_bce, "focal": _focal, "asymmetric": _asymmetric},
}
