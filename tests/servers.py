"""A model as a server calls it, for tests of the model that is handed over."""

import keras
import numpy as np


def answers(model: keras.Model, images: np.ndarray, predict: bool = True) -> list[np.ndarray]:
    """What a model gives when it is called twice, told that it is not training, and by `predict`."""
    given = [model(images), model(images), model(images, training=False)]
    given += [model.predict(images, verbose=0)] if predict else []
    return [np.array(keras.ops.convert_to_numpy(each)) for each in given]


def assert_inert(model: keras.Model, images: np.ndarray, predict: bool = True) -> np.ndarray:
    """Makes sure that nothing is random in a model and that it learns from no call; returns its scores."""

    def state() -> list[np.ndarray]:
        return [np.array(keras.ops.convert_to_numpy(variable)) for variable in model.variables]

    before = state()
    first, *others = answers(model, images, predict)
    for other in others:
        np.testing.assert_allclose(other, first, rtol=0, atol=1e-5)
    for a, b in zip(before, state(), strict=True):
        np.testing.assert_array_equal(a, b)
    seeds = {variable.path for variable in model.variables} - {weight.path for weight in model.weights}
    assert not seeds, "a layer that draws at random is left"
    assert {layer.compute_dtype for layer in model._flatten_layers() if layer.weights} == {"float32"}
    return first
