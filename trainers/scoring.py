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
    if keras.backend.backend() == "jax" and _on_several_machines():
        return _score_here(model, images)[:count]
    return np.asarray(model.predict(images, verbose=0), np.float32)[:count]


def _on_several_machines() -> bool:
    import jax

    return bool(jax.process_count() > 1)


def _score_here(model: keras.Model, images: tf.data.Dataset) -> np.ndarray:
    """Scores on this machine alone: what `predict` gives lies spread over the machines.

    Each of them scores all images, which costs no more time than to wait for another.
    """
    import jax

    def arrays(variables: list[keras.Variable]) -> list[np.ndarray]:  # every machine has all weights
        return [np.asarray(variable.value.addressable_data(0)) for variable in variables]

    weights = arrays(model.trainable_variables), arrays(model.non_trainable_variables)
    call = jax.jit(lambda weights, batch: model.stateless_call(*weights, batch, training=False)[0])
    return np.concatenate(
        [np.asarray(call(weights, batch), np.float32) for batch in images.as_numpy_iterator()]
    )


def probabilities(logits: np.ndarray, kind: str) -> np.ndarray:
    """Turns logits into probabilities, float32 [n, k]: softmax for multiclass, else sigmoid."""
    logits = logits.astype(np.float64)
    if kind == "multiclass":
        powers = np.exp(logits - logits.max(axis=1, keepdims=True))
        p = powers / powers.sum(axis=1, keepdims=True)
    else:
        small = np.exp(-np.abs(logits))  # at most 1: never overflows
        p = np.where(logits >= 0, 1 / (1 + small), small / (1 + small))
    return np.asarray(p, np.float32)
