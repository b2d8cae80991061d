"""Small random changes of images on the device, in training alone: one layer, which XLA can compile.

Keras' own layers for images resample once each, and those that move pixels cannot be compiled: with one of
them in a model Keras compiles none of it.
"""

import dataclasses
import math
from typing import Any

import keras
from keras import ops

WHITE = 255.0


@dataclasses.dataclass(frozen=True)
class Ranges:
    """The largest changes; each is drawn evenly from minus to plus that.

    Attributes:
        shift: share of the height, and of the width.
        turn: degrees.
        zoom: share of the size.
        brightness: share of the range of grey levels.
        contrast: share of the distance to the image's mean.
    """

    shift: float
    turn: float
    zoom: float
    brightness: float
    contrast: float

    @property
    def limits(self) -> tuple[float, ...]:
        """Of the columns that `changed` takes."""
        turn = math.radians(self.turn)
        return self.shift, self.shift, turn, self.zoom, WHITE * self.brightness, self.contrast


LIGHT = Ranges(shift=0.04, turn=5.0, zoom=0.06, brightness=0.05, contrast=0.1)


class RandomView(keras.layers.Layer):  # type: ignore[misc]  # Keras has no types
    """Moves, turns and scales each image in its own way, all in one resampling, and changes its grey levels.

    What is moved in from outside is black. Only training=True lets it act. Its seed is a variable of the
    model, and so a part of checkpoints.

    Args:
        ranges: of the changes.
        seed: of the draws; by default drawn from Python's generator.
    """

    def __init__(self, ranges: Ranges, seed: int | None = None, **kwargs: Any):
        # Half precision would round grey levels, and places by pixels.
        super().__init__(**{"dtype": "float32", **kwargs})
        self._ranges, self._seeds = ranges, keras.random.SeedGenerator(seed)

    def call(self, images: Any, training: bool = False) -> Any:
        """Returns images of the same shape, float32 [batch, height, width, 1], grey levels 0 to 255."""
        return changed(images, self.draw(ops.shape(images)[0])) if training else images

    def draw(self, count: int) -> Any:
        """Returns the parameters of that many images, float32 [count, 6], as `changed` takes them."""
        limits = self._ranges.limits
        even = keras.random.uniform((count, len(limits)), -1.0, 1.0, "float32", seed=self._seeds)
        return even * ops.convert_to_tensor(limits, "float32")


def changed(images: Any, parameters: Any) -> Any:
    """Returns images, each after its own changes.

    Args:
        images: float32 [batch, height, width, 1], grey levels 0 to 255.
        parameters: float32 [batch, 6]: shift down and to the right, as shares of height and width; turn, in
            radians, counter-clockwise; zoom, as a share, larger for positive ones; brightness, in grey
            levels; contrast, as a share. All zero changes nothing, not by a bit.

    Returns:
        float32 of the same shape, clipped to 0 to 255.
    """
    down, right, turn, zoom, brightness, contrast = (
        ops.reshape(column, (-1, 1, 1)) for column in ops.unstack(parameters, 6, axis=1)
    )
    height, width = images.shape[1:3]
    # Where each pixel comes from, seen from the middle.
    y = ops.reshape(ops.arange(height, dtype="float32"), (1, -1, 1)) - (height - 1) / 2 - down * height
    x = ops.reshape(ops.arange(width, dtype="float32"), (1, 1, -1)) - (width - 1) / 2 - right * width
    cos, sin = ops.cos(turn) / (1 + zoom), ops.sin(turn) / (1 + zoom)
    grey = _between(
        ops.squeeze(images, -1), cos * y + sin * x + (height - 1) / 2, cos * x - sin * y + (width - 1) / 2
    )
    grey = grey + brightness
    grey = grey + contrast * (grey - ops.mean(grey, axis=(1, 2), keepdims=True))
    return ops.expand_dims(ops.clip(grey, 0.0, WHITE), -1)


def _between(images: Any, y: Any, x: Any) -> Any:
    """Values of images [batch, height, width] at places [batch, height, width]: bilinear, 0 outside."""
    height, width = images.shape[1:]
    # A black frame spares the question which of the four neighbours are in the image.
    framed = ops.reshape(ops.pad(images, ((0, 0), (1, 1), (1, 1))), (-1,))
    y, x = ops.clip(y, -1.0, float(height)), ops.clip(x, -1.0, float(width))
    top, left = ops.minimum(ops.floor(y), height - 1.0), ops.minimum(ops.floor(x), width - 1.0)
    below, beside = y - top, x - left
    image = ops.reshape(ops.arange(ops.shape(images)[0], dtype="int32"), (-1, 1, 1))
    corner = (image * (height + 2) + ops.cast(top, "int32") + 1) * (width + 2) + ops.cast(left, "int32") + 1

    def row(first: Any) -> Any:
        return (1 - beside) * ops.take(framed, first) + beside * ops.take(framed, first + 1)

    return (1 - below) * row(corner) + below * row(corner + width + 2)
