import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from cxr_records.augment import FUNCTIONS, apply, augmentation_for, draw, function_order
from cxr_records.seeding import generator

IMAGES = Path(__file__).parents[2] / "shared" / "nih" / "images"
TEN = [name for name in FUNCTIONS if name != "flip"]
GEOMETRY = ["shift", "rotate", "zoom", "shear"]

names = st.sampled_from(list(FUNCTIONS))
seeds = st.integers(0, 2**32)
shapes = st.tuples(st.integers(24, 90), st.integers(24, 90))


def textured(shape, seed=0):
    """Smooth and rough parts over the whole range of grey, as uint8 of this shape."""
    rng = np.random.default_rng(seed)
    ramp = np.add.outer(np.linspace(0, 120, shape[0]), np.linspace(20, 100, shape[1]))
    return (ramp + rng.integers(0, 30, shape)).astype(np.uint8)


@pytest.fixture(scope="module")
def radiographs():
    if not IMAGES.exists():
        pytest.skip("the NIH images are not in ../shared/nih")
    paths = sorted(IMAGES.glob("*.png"))[::6]
    pictures = [Image.open(path).convert("L").resize((224, 224), Image.Resampling.BILINEAR) for path in paths]
    return [np.asarray(picture) for picture in pictures]


def test_the_ten_functions_have_their_names_and_flip_is_the_eleventh():
    assert list(FUNCTIONS) == [
        *("shift", "rotate", "zoom", "shear", "brightness", "contrast", "gamma", "noise", "blur", "equalise"),
        "flip",
    ]


@given(names, shapes, seeds)
def test_a_copy_is_another_image_of_the_same_shape(name, shape, seed):
    image = textured(shape, seed)
    kept = image.copy()
    copy = apply(image, draw(name, generator(seed, "x", 1)))

    assert copy.dtype == np.uint8
    assert copy.shape == image.shape
    assert (copy != image).any()
    assert np.array_equal(image, kept)


@given(names, shapes, seeds)
def test_zero_strength_keeps_every_pixel(name, shape, seed):
    image = np.random.default_rng(seed).integers(0, 256, shape, np.uint8)
    assert np.array_equal(apply(image, {"function": name, **FUNCTIONS[name].identity}), image)


@given(names, seeds)
def test_parameters_read_back_from_json_give_the_same_pixels(name, seed):
    image = textured((48, 64))
    augmentation = draw(name, generator(seed, "x", 1))
    read = json.loads(json.dumps(augmentation))
    assert read == augmentation
    assert np.array_equal(apply(image, read), apply(image, augmentation))


@given(names, shapes, st.sampled_from([0, 7, 128, 255]), seeds)
def test_constant_images_do_no_harm(name, shape, grey, seed):
    image = np.full(shape, grey, np.uint8)
    copy = apply(image, draw(name, generator(seed, "x", 1)))
    assert copy.shape == shape
    assert abs(copy.astype(int) - grey).max() <= 30


@given(st.sampled_from(GEOMETRY), shapes, seeds)
def test_geometry_fills_with_the_edge_and_never_with_black(name, shape, seed):
    image = np.full(shape, 200, np.uint8)
    image[8:-8, 8:-8] = textured((shape[0] - 16, shape[1] - 16), seed).clip(150, 250)
    assert apply(image, draw(name, generator(seed, "x", 1))).min() >= 150


def test_a_bright_line_at_the_very_edge_is_not_drawn_out_into_a_beam():
    image = np.full((224, 224), 60, np.uint8)
    image[:2] = 250
    shifted = apply(image, {"function": "shift", "right": 0.0, "down": 0.05})
    assert (shifted > 60).sum(axis=0).max() <= 4
    assert (shifted[:8] == 60).all()


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (3, 5), (224, 100)])
def test_tiny_and_oblong_images_pass(name, shape):
    assert apply(np.full(shape, 90, np.uint8), draw(name, generator(0, "x", 1))).shape == shape


def test_draws_stay_in_range_and_away_from_zero_strength():
    ranges = {
        ("shift", "right"): (-0.05, 0.05, 0.01),
        ("shift", "down"): (-0.05, 0.05, 0.01),
        ("rotate", "degrees"): (-7, 7, 1.4),
        ("zoom", "factor"): (0.92, 1.08, 0.016),
        ("shear", "degrees"): (-3, 3, 0.6),
        ("brightness", "amount"): (-0.1, 0.1, 0.02),
        ("contrast", "factor"): (0.85, 1.15, 0.03),
        ("gamma", "exponent"): (0.85, 1.18, 0.03),
        ("noise", "sigma"): (0, 0.02, 0.008),
        ("blur", "sigma"): (0, 0.7, 0.42),
        ("equalise", "clip"): (1, 2, 0.5),
        ("equalise", "strength"): (0, 0.4, 0.2),
    }
    rng = generator(0, "ranges")
    drawn = {name: [draw(name, rng) for _ in range(1000)] for name in TEN}
    for (name, key), (low, high, least) in ranges.items():
        values = np.array([d[key] for d in drawn[name]])
        identity = FUNCTIONS[name].identity[key]
        assert low <= values.min()
        assert values.max() <= high
        assert abs(values - identity).min() >= least - 1e-9
        assert values.max() > identity + 0.95 * (high - identity)
        assert (
            values.min() < identity + 0.95 * (low - identity) if low < identity else values.min() > identity
        )


def test_directions_are_as_they_are_told():
    image = np.zeros((101, 101), np.uint8)
    image[45:56, 70:81] = 200  # a square to the right of the centre

    def centre(augmentation):
        rows, columns = np.nonzero(apply(image, augmentation) > 100)
        return rows.mean() - 50, columns.mean() - 50

    assert centre({"function": "shift", "right": 0.05, "down": -0.02}) == pytest.approx((-2, 30), abs=0.6)
    # Anticlockwise takes the right-hand side upwards.
    assert centre({"function": "rotate", "degrees": 7.0}) == pytest.approx((-3.05, 24.8), abs=0.4)
    assert centre({"function": "zoom", "factor": 1.08}) == pytest.approx((0, 27), abs=0.4)
    assert centre({"function": "flip", "mirrored": True}) == pytest.approx((0, -25), abs=0.1)
    assert centre({"function": "shear", "degrees": 3.0}) == pytest.approx((0, 25), abs=0.4)
    ramp = np.tile(np.arange(256, dtype=np.uint8), (4, 1))
    assert apply(ramp, {"function": "brightness", "amount": 0.1})[0, [0, 128, 255]].tolist() == [26, 141, 255]
    assert apply(ramp, {"function": "brightness", "amount": -0.1})[0, [0, 128, 255]].tolist() == [0, 115, 230]
    assert apply(ramp, {"function": "gamma", "exponent": 1.18})[0, [0, 1, 128, 255]].tolist() == [
        0,
        1,
        113,
        255,
    ]
    contrast = apply(ramp, {"function": "contrast", "factor": 1.15})[0].astype(int)
    assert (np.diff(contrast) >= 0).all()
    assert contrast[148] - contrast[108] == 46  # 1.15 × 40 at the mean


def test_noise_is_as_strong_as_told():
    image = np.full((224, 224), 128, np.uint8)
    noisy = apply(image, {"function": "noise", "sigma": 0.02, "seed": 1}).astype(float)
    assert noisy.std() == pytest.approx(0.02 * 255, rel=0.02)
    assert noisy.mean() == pytest.approx(128, abs=0.1)


def test_known_pixels_stay_the_same_for_years():
    """A record's parameters must give the same pixels in every later version of this package."""
    image = (np.add.outer(np.arange(32) * 7, np.arange(32) * 5) % 256).astype(np.uint8)
    noise = apply(image, {"function": "noise", "sigma": 0.02, "seed": 3})
    rotate = apply(image, {"function": "rotate", "degrees": 5.0})
    equalise = apply(image, {"function": "equalise", "clip": 2.0, "strength": 0.5})

    assert noise[16, :8].tolist() == [116, 114, 120, 131, 131, 132, 144, 150]
    assert rotate[16, :8].tolist() == [102, 108, 113, 119, 124, 130, 136, 141]
    assert equalise[16, :8].tolist() == [110, 116, 122, 127, 131, 136, 141, 146]


@pytest.mark.parametrize("name", TEN)
def test_real_radiographs_change_and_do_not_saturate(name, radiographs):
    added = []
    for i, image in enumerate(radiographs):
        copy = apply(image, draw(name, generator(i, "real", 1)))
        assert (copy != image).mean() > 0.02
        added.append(np.isin(copy, (0, 255)).mean() - np.isin(image, (0, 255)).mean())
    # Zooming out repeats a black edge, which is black in the original too.
    assert max(added) <= (0.06 if name in GEOMETRY else 0.02)
    assert np.median(added) <= 0.002


def test_ten_copies_meet_all_ten_functions_in_the_images_own_order():
    orders = set()
    for image_id in ("00000001_000.png", "00000001_001.png", "00000002_000.png"):
        met = [augmentation_for(5, image_id, copy)["function"] for copy in range(1, 12)]
        assert sorted(met[:10]) == sorted(TEN)
        assert met[10] == met[0]
        assert met[:10] == function_order(5, image_id)
        orders.add(tuple(met[:10]))
    assert len(orders) == 3


def test_flip_joins_only_when_asked_and_leaves_the_order_of_the_ten():
    order = function_order(0, "a.png", flip=True)
    assert sorted(order) == sorted(FUNCTIONS)
    assert [name for name in order if name != "flip"] == function_order(0, "a.png")
    assert "flip" in {augmentation_for(0, "a.png", copy, flip=True)["function"] for copy in range(1, 12)}


def test_an_augmentation_depends_on_seed_image_and_copy_alone():
    np.random.seed(1)  # noqa: NPY002  # the global state must not matter
    first = augmentation_for(0, "a.png", 1)
    for i in range(20):
        augmentation_for(0, f"other-{i}.png", 1)
    np.random.seed(2)  # noqa: NPY002
    assert augmentation_for(0, "a.png", 1) == first
    assert augmentation_for(0, "a.png", 11) != first
    assert len({json.dumps(augmentation_for(seed, "a.png", 1)) for seed in range(5)}) == 5


def test_what_cannot_be_applied_is_refused():
    image = textured((9, 9))
    known = ", ".join(FUNCTIONS)
    for call, message in (
        (
            lambda: draw("rotat", generator(0)),
            f"unknown function 'rotat' (did you mean rotate?); known: {known}",
        ),
        (lambda: apply(image, {}), f"unknown function ''; known: {known}"),
        (lambda: apply(image, {"function": "rotate"}), "rotate takes degrees; found nothing"),
        (
            lambda: apply(image, {"function": "noise", "sigma": 0.1, "sead": 1}),
            "noise takes sigma, seed; found sigma, sead",
        ),
        (
            lambda: apply(image.astype(np.float32), draw("blur", generator(0))),
            "expected an image of uint8 [height, width], found float32 [9, 9]",
        ),
        (lambda: augmentation_for(0, "a.png", 0), "copies count from 1 (0 is the original), found 0"),
    ):
        with pytest.raises(ValueError, match=r".") as caught:
            call()
        assert str(caught.value) == message
