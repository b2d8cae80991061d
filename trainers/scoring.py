"""Scores of a model for the images of a split, in manifest order."""

import keras
import numpy as np
import tensorflow as tf


def score(model: keras.Model, batches: tf.data.Dataset, count: int) -> np.ndarray:
    """Returns the model's outputs for the first `count` images: float32 [count, outputs].

    Args:
        model: takes uint8 [batch, size, size, 1].
        batches: of `load_split` with last_batch="pad"; rows of padding come last and are left out.
        count: images.
    """
    images = batches.map(lambda image, *_: image)
    return np.asarray(model.predict(images, verbose=0), np.float32)[:count]


def probabilities(logits: np.ndarray, kind: str) -> np.ndarray:
    """Turns logits into probabilities, float32 [n, k]: softmax for multiclass, else sigmoid."""
    logits = logits.astype(np.float64)
    if kind == "multiclass":
        powers = np.exp(logits - logits.max(axis=1, keepdims=True))
        return (powers / powers.sum(axis=1, keepdims=True)).astype(np.float32)
    small = np.exp(-np.abs(logits))  # at most 1: never overflows
    return np.where(logits >= 0, 1 / (1 + small), small / (1 + small)).astype(np.float32)
