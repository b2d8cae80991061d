"""The layer that changes images on the device: places and grey levels, ranges, seeds, compiled steps."""

import math

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cxr_records.trainers.augmentation import LIGHT, RandomView, changed


def pictures(count: int, height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, height, width, 1)).astype(np.float32)


def numbers(tensor) -> np.ndarray:
    return np.array(keras.ops.convert_to_numpy(tensor))


def by_hand(image: np.ndarray, parameters: tuple[float, ...]) -> np.ndarray:
    """One image [height, width], pixel by pixel in float64."""
    down, right, turn, zoom, brightness, contrast = parameters
    height, width = image.shape
    out = np.zeros((height, width))
    for row in range(height):
        for column in range(width):
            # Undone from the last change to the first: shift, zoom, turn.
            y = row - (height - 1) / 2 - down * height
            x = column - (width - 1) / 2 - right * width
            y, x = y / (1 + zoom), x / (1 + zoom)
            y, x = y * math.cos(turn) + x * math.sin(turn), x * math.cos(turn) - y * math.sin(turn)
            y, x = y + (height - 1) / 2, x + (width - 1) / 2
            for near_y in (math.floor(y), math.floor(y) + 1):
                for near_x in (math.floor(x), math.floor(x) + 1):
                    if 0 <= near_y < height and 0 <= near_x < width:
                        share = (1 - abs(y - near_y)) * (1 - abs(x - near_x))
                        out[row, column] += share * image[near_y, near_x]
    out += brightness
    return np.clip(out + contrast * (out - out.mean()), 0, 255)


SHARE = st.floats(-0.25, 0.25, width=32)


@settings(max_examples=30)
@given(
    st.lists(st.tuples(SHARE, SHARE, st.floats(-4, 4, width=32), SHARE, st.floats(-60, 60, width=32), SHARE),
             min_size=3, max_size=3),
    st.sampled_from([(6, 6), (5, 8)]),
)  # fmt: skip
def test_each_image_is_moved_turned_scaled_and_shaded_as_by_hand(parameters, shape):
    images = pictures(3, *shape)

    found = numbers(changed(images, np.array(parameters, np.float32)))

    for image, drawn, one in zip(images, parameters, found, strict=True):
        np.testing.assert_allclose(one[..., 0], by_hand(image[..., 0].astype(float), drawn), atol=0.02)


def test_directions_are_those_that_are_said():
    dot = np.zeros((1, 9, 9, 1), np.float32)
    dot[0, 2, 4] = 200

    def place(*parameters: float) -> tuple[int, ...]:
        moved = numbers(changed(dot, np.array([parameters], np.float32)))[0, ..., 0]
        return tuple(int(index) for index in np.unravel_index(moved.argmax(), moved.shape))

    assert place(0, 0, 0, 0, 0, 0) == (2, 4)
    assert place(1 / 9, 0, 0, 0, 0, 0) == (3, 4), "down"
    assert place(0, 1 / 9, 0, 0, 0, 0) == (2, 5), "to the right"
    assert place(0, 0, math.pi / 2, 0, 0, 0) == (4, 2), "counter-clockwise, from the top to the left"
    assert place(0, 0, 0, 1.0, 0, 0) == (0, 4), "larger, away from the middle"


@pytest.mark.parametrize("size", [15, 16, 224])
def test_all_zero_changes_no_bit(size):
    images = pictures(2, size, size)
    np.testing.assert_array_equal(numbers(changed(images, np.zeros((2, 6), np.float32))), images)


def test_draws_fill_their_ranges_evenly_and_each_by_itself():
    drawn = numbers(RandomView(LIGHT, seed=3).draw(20_000))

    limits = np.array([0.04, 0.04, math.radians(5), 0.06, 12.75, 0.1])
    np.testing.assert_allclose(LIGHT.limits, limits)
    assert (np.abs(drawn) <= limits.astype(np.float32)).all()
    np.testing.assert_allclose(np.abs(drawn).max(axis=0), limits, rtol=1e-3)
    np.testing.assert_allclose(np.quantile(drawn / limits, [0.25, 0.5, 0.75], axis=0).T, [[-0.5, 0, 0.5]] * 6,
                               atol=0.03)  # fmt: skip
    assert np.abs(np.corrcoef(drawn.T) - np.eye(6)).max() < 0.03


def test_it_acts_where_it_is_told_that_it_is_training_and_nowhere_else():
    layer, images = RandomView(LIGHT, seed=1), pictures(4, 32, 32)
    before = numbers(layer.variables[0])

    for given_training in ({}, {"training": False}):
        np.testing.assert_array_equal(numbers(layer(images, **given_training)), images)
    np.testing.assert_array_equal(numbers(layer.variables[0]), before)

    first, second = (numbers(layer(images, training=True)) for _ in range(2))
    assert (np.abs(first - images).mean(axis=(1, 2, 3)) > 1).all()
    assert not np.array_equal(first, second)
    assert (numbers(layer.variables[0]) != before).any()


def test_a_seed_that_is_put_back_draws_the_same_again():
    layer, other, images = RandomView(LIGHT, seed=1), RandomView(LIGHT, seed=2), pictures(4, 32, 32)
    layer(images, training=True)
    other.variables[0].assign(layer.variables[0])

    np.testing.assert_array_equal(
        numbers(layer(images, training=True)), numbers(other(images, training=True))
    )


def test_it_computes_in_float32_in_a_run_of_half_precision():
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_float16")
    try:
        layer = RandomView(LIGHT, seed=1)
    finally:
        keras.config.set_dtype_policy(before)
    images = pictures(2, 224, 224)

    found = numbers(layer(images, training=True))

    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, numbers(RandomView(LIGHT, seed=1)(images, training=True)))
