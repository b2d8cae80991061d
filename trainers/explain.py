"""Where a score comes from: maps of a model's own contributions, for any network and both backends.

At every tensor through which all of a network passes, activation times gradient of the logit says what each
place adds to it (HiResCAM: Draelos and Carin 2020, arXiv 2011.08891). At the last one, where mean and maximum
over all places and a dense layer follow, these contributions are exact: they sum to the logit less its bias.
Where only a mean over places follows, they are also what CAM and, but for its sign, Grad-CAM show. But cells
there are coarse, 7 by 7, and each has seen far beyond its own edges. So contributions at all resolutions of
at most 32 cells a side are spread over the image and averaged. On drawn images with planted findings the
largest value of that lay in the finding's box in 87%, of the last resolution alone in 17%.
"""

import contextlib
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from cxr_records.errors import CxrError

GRID = 128  # cells of a map, to a side
METHOD = "activation times gradient of the logit (HiResCAM)"
_MOST_CELLS = 32  # to a side: finer ones the smoothing would blur
_SMOOTHING = 1 / 32  # of the image's side: deviation of the Gaussian
BATCH = 16  # images at a time
_TRIES = 8  # tensors of a resolution, from the last: a network is put together anew for each


class Explainer:
    """Maps of where a model's scores come from.

    Attributes:
        resolutions: cells to a side of the tensors that the maps are made of, fine ones first.
        method: in words.
    """

    def __init__(self, model: keras.Model):
        """Takes the network apart.

        Args:
            model: uint8 [batch, size, size, 1] -> probabilities, as `predict.load_model` returns it.

        Raises:
            CxrError: nowhere in the network is an image's place to be told.
        """
        whole, tensors = _flat(keras.Model(model.input, model.layers[-1].input))
        passed = _passed_by_all(tensors, whole.output)
        small = [tensor for tensor in passed if max(tensor.shape[1:3]) <= _MOST_CELLS]
        stages = small or passed[-1:]
        if not stages:
            raise CxrError(
                f"{model.name}: no map can be made: found no tensor [batch, height, width, channels] in it "
                "through which all of it passes"
            )
        self.resolutions = tuple(int(tensor.shape[1]) for tensor in stages)
        self.method = f"{METHOD} at {', '.join(map(str, self.resolutions))} cells a side"
        self._front = keras.Model(whole.input, stages[0])
        ends = [*stages[1:], whole.output]
        self._parts = [keras.Model(start, end) for start, end in zip(stages, ends, strict=True)]
        self._spreads = [_spreaders(tensor.shape[1:3]) for tensor in stages]

    def maps(self, images: np.ndarray, places: Sequence[int]) -> np.ndarray:
        """Returns what each part of an image adds to a logit: float32 [n, GRID, GRID].

        Args:
            images: uint8 [n, size, size, 1].
            places: of the n outputs that are to be explained.
        """
        maps = []
        for start in range(0, len(images), BATCH):
            batch = slice(start, start + BATCH)
            features, slopes = self._gradients(images[batch], np.asarray(places[batch], np.int32))
            added = [
                high @ (_floats(feature) * _floats(slope)).sum(axis=-1) @ wide.T
                for feature, slope, (high, wide) in zip(features, slopes, self._spreads, strict=True)
            ]
            maps.append(np.mean(added, axis=0, dtype=np.float64).astype(np.float32))
        return np.concatenate(maps)

    def _gradients(self, images: np.ndarray, places: np.ndarray) -> tuple[list[Any], list[Any]]:
        """The tensors of all stages, and the gradients of one output of each image by them."""

        def chosen(logits: Any) -> Any:
            logits = keras.ops.cast(logits, "float32")
            return keras.ops.sum(keras.ops.take_along_axis(logits, places[:, np.newaxis], axis=1))

        def run(first: Any, more: Sequence[Any] | None = None) -> tuple[Any, list[Any]]:
            """Runs all parts one after another; `more` is added to what goes into each."""
            features, tensor = [], first
            for number, part in enumerate(self._parts):
                features.append(tensor if more is None else tensor + more[number])
                tensor = part(features[-1], training=False)
            return chosen(tensor), features

        first = self._front(images, training=False)
        if keras.backend.backend() == "jax":
            import jax

            _, features = run(first)
            nothing = [keras.ops.zeros_like(feature) for feature in features]
            return features, jax.grad(lambda more: run(first, more)[0])(nothing)
        import tensorflow as tf

        with tf.GradientTape() as tape:
            tape.watch(first)
            total, features = run(first)
        # Zeros where the output does not depend on the features: nothing there adds to it.
        return features, tape.gradient(total, features, unconnected_gradients="zero")


def _flat(model: keras.Model) -> tuple[keras.Model, list[Any]]:
    """Returns the network without networks in it, which shares all layers, and its tensors in order."""
    tensors: list[Any] = []

    def same(layer: keras.layers.Layer) -> keras.layers.Layer:
        return layer

    def call(layer: keras.layers.Layer, *inputs: Any, **options: Any) -> Any:
        if isinstance(layer, keras.Sequential):
            output = inputs[0]
            for inner in layer.layers:
                output = call(inner, output)
            return output
        if isinstance(layer, keras.Model) and hasattr(layer, "operations"):
            # What Keras returns is cut off from the tensors around it; the last that it made is not.
            ended = keras.Model(layer.input, keras.layers.Identity()(layer.output))
            keras.models.clone_model(ended, input_tensors=inputs[0], clone_function=same, call_function=call)
            return tensors[-1]
        output = layer(*inputs, **options)
        tensors.append(output)
        return output

    return keras.models.clone_model(model, clone_function=same, call_function=call), tensors


def _has_places(tensor: Any) -> bool:
    shape = getattr(tensor, "shape", ())
    return len(shape) == 4 and None not in shape[1:3] and max(shape[1:3]) > 1


def _passed_by_all(tensors: Sequence[Any], output: Any) -> list[Any]:
    """Of each resolution the last tensor through which all of the network passes, in their order."""
    found: dict[tuple[int, int], Any] = {}
    tried: dict[tuple[int, int], int] = {}
    for tensor in filter(_has_places, reversed(tensors)):
        cells = tuple(tensor.shape[1:3])
        if cells in found or tried.setdefault(cells, 0) == _TRIES:
            continue
        tried[cells] += 1
        with contextlib.suppress(ValueError):  # Keras' word for an output that also needs other inputs
            keras.Model(tensor, output)
            found[cells] = tensor
    return list(found.values())[::-1]


def _floats(tensor: Any) -> np.ndarray:
    return np.asarray(keras.ops.convert_to_numpy(keras.ops.cast(tensor, "float32")))


def _spreaders(cells: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """What spreads [height, width] cells over the grid, for each side: float64 [GRID, height or width].

    Between the cells' centres it is linear, then smoothed; the sum over the image stays about what it was.
    """
    height, width = (_smoother() @ _linear(count) * (count / GRID) for count in cells)
    return height, width


def _linear(count: int) -> np.ndarray:
    centres = np.clip((np.arange(GRID) + 0.5) * count / GRID - 0.5, 0, count - 1)
    weights: np.ndarray = np.clip(1 - np.abs(centres[:, np.newaxis] - np.arange(count)), 0, 1)
    return weights


def _smoother() -> np.ndarray:
    away = np.arange(GRID)[:, np.newaxis] - np.arange(GRID)
    weights = np.exp(-0.5 * (away / (_SMOOTHING * GRID)) ** 2)
    smoother: np.ndarray = weights / weights.sum(axis=1, keepdims=True)
    return smoother
