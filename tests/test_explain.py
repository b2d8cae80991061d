"""Maps of a model's own contributions, for networks whose contributions are known."""

import os
import subprocess
import sys

import keras
import numpy as np
import pytest

from cxr_records.errors import CxrError
from cxr_records.trainers import models
from cxr_records.trainers.explain import GRID, Explainer

RANDOM = np.random.default_rng(0)


def network(make, size: int = 32) -> keras.Model:
    """A model from uint8 to probabilities, with a dense layer of two outputs behind what `make` returns."""
    keras.utils.set_random_seed(0)
    image = keras.Input((size, size, 1), dtype="uint8")
    x = keras.layers.Rescaling(1 / 255, dtype="float32")(image)
    logits = keras.layers.Dense(2, name="head")(make(x))
    return keras.Model(image, keras.layers.Activation("sigmoid", name="probabilities")(logits))


def pooled(x):
    """A convolution, and mean and maximum over all places."""
    x = keras.layers.Conv2D(4, 3, 2, "same", activation="relu", use_bias=False)(x)
    mean, largest = keras.layers.GlobalAveragePooling2D()(x), keras.layers.GlobalMaxPooling2D()(x)
    return keras.layers.Concatenate()([mean, largest])


def logits_of(model: keras.Model, images: np.ndarray) -> np.ndarray:
    return np.asarray(keras.Model(model.input, model.layers[-1].input)(images))


def images(count: int, size: int = 32) -> np.ndarray:
    """With nothing at the edges, where smoothing puts what is there twice."""
    made = np.zeros((count, size, size, 1), np.uint8)
    made[:, 8:-8, 8:-8] = RANDOM.integers(0, 256, (count, size - 16, size - 16, 1))
    return made


def test_contributions_sum_to_the_logit_less_its_bias():
    model = network(pooled)
    model.get_layer("head").bias.assign([0.7, -0.3])
    some = images(20)
    places = [n % 2 for n in range(20)]

    maps = Explainer(model).maps(some, places)

    assert maps.shape == (20, GRID, GRID)
    expected = logits_of(model, some)[np.arange(20), places] - np.array([0.7, -0.3])[places]
    np.testing.assert_allclose(maps.sum(axis=(1, 2)), expected, rtol=0.02, atol=1e-3)


def test_the_largest_value_is_where_the_only_thing_in_the_image_is():
    model = network(lambda x: keras.layers.GlobalAveragePooling2D()(keras.layers.AveragePooling2D(2)(x)))
    model.get_layer("head").set_weights([np.array([[1.0, -1.0]]), np.zeros(2)])
    one = np.zeros((1, 32, 32, 1), np.uint8)
    one[0, 20:24, 4:8] = 255

    adds, takes = Explainer(model).maps(np.repeat(one, 2, axis=0), [0, 1])

    row, column = np.unravel_index(adds.argmax(), adds.shape)
    assert (80 <= row < 96, 16 <= column < 32) == (True, True)
    assert takes.max() <= 0
    np.testing.assert_allclose(takes, -adds, atol=1e-7)


def test_an_image_alone_has_the_map_that_it_has_among_others():
    model, some = network(pooled), images(18)

    together = Explainer(model).maps(some, [1] * 18)

    np.testing.assert_allclose(Explainer(model).maps(some[17:], [1])[0], together[17], atol=1e-6)


def test_only_tensors_through_which_all_passes_are_taken():
    """What goes around a tensor would be missing from its contributions."""

    def make(x):
        small = keras.layers.Conv2D(2, 3, 4, "same", name="small")(x)
        beside = keras.layers.Conv2D(2, 3, 2, "same", name="beside")(x)
        small = keras.layers.UpSampling2D(2)(small)
        return pooled(keras.layers.Concatenate()([beside, small]))

    assert Explainer(network(make)).resolutions == (32, 16, 8)
    assert Explainer(network(lambda x: pooled(keras.layers.Conv2D(3, 3, 2)(x)))).resolutions == (32, 15, 8)


def test_networks_in_networks_are_taken_apart():
    """As those of keras.applications are, and Sequential ones in them."""

    def make(x):
        inner = keras.Input(tuple(x.shape[1:]))
        block = keras.Sequential([keras.layers.Conv2D(3, 3, 2, activation="relu", use_bias=False)])
        return keras.Model(inner, pooled(block(inner)), name="inner")(x)

    model, some = network(make), images(3)
    explainer = Explainer(model)

    assert explainer.resolutions == (32, 15, 8)
    maps = explainer.maps(some, [0, 1, 0])
    np.testing.assert_allclose(maps.sum(axis=(1, 2)), logits_of(model, some)[range(3), [0, 1, 0]], rtol=0.05)


def test_a_network_that_is_nowhere_one_tensor_of_places_is_refused_in_one_line():
    image = keras.Input((8, 8, 1), dtype="uint8")
    branches = [
        keras.layers.GlobalAveragePooling2D()(keras.layers.Rescaling(scale, dtype="float32")(image))
        for scale in (1.0, 2.0)
    ]
    logits = keras.layers.Dense(1)(keras.layers.Concatenate()(branches))
    model = keras.Model(image, keras.layers.Activation("sigmoid")(logits), name="branches")

    with pytest.raises(CxrError, match=r"^branches: no map can be made: found no tensor \[batch, height, w"):
        Explainer(model)


def test_small_cnn_is_explained_at_every_resolution_it_has():
    made = models.make_model("small_cnn", 3, 64, 100.0, 50.0)
    explainer = Explainer(models.with_probabilities(made, "multilabel"))

    assert explainer.resolutions == (32, 16, 8, 4)
    maps = explainer.maps(images(2, 64), [0, 2])
    assert np.isfinite(maps).all()
    assert np.abs(maps).max() > 0


@pytest.mark.slow
@pytest.mark.parametrize("name", ["densenet121", "resnet50", "efficientnetv2b0", "convnext_tiny"])
def test_every_network_of_keras_applications_is_explained(name):
    made = models.make_model(name, 3, 64, 100.0, 50.0, dropout=0.3)
    explainer = Explainer(models.with_probabilities(made, "multilabel"))

    assert explainer.resolutions[-3:] == (8, 4, 2)
    maps = explainer.maps(images(2, 64), [0, 2])
    assert np.isfinite(maps).all()
    assert np.abs(maps).max() > 0


@pytest.mark.slow
def test_both_backends_make_the_same_maps(tmp_path):
    made = models.with_probabilities(models.make_model("small_cnn", 3, 32, 100.0, 50.0), "multilabel")
    made.save(tmp_path / "model.keras")
    some = images(2)
    np.save(tmp_path / "images.npy", some)
    code = (
        "import sys, keras, numpy as np; from cxr_records.trainers.explain import Explainer\n"
        "assert keras.backend.backend() == sys.argv[2]\n"
        "model = keras.saving.load_model(sys.argv[1] + '/model.keras', compile=False)\n"
        "maps = Explainer(model).maps(np.load(sys.argv[1] + '/images.npy'), [0, 2])\n"
        "np.save(sys.argv[1] + '/' + sys.argv[2] + '.npy', maps)"
    )
    found = []
    for backend in ("tensorflow", "jax"):
        environment = {**os.environ, "KERAS_BACKEND": backend}
        command = [sys.executable, "-c", code, str(tmp_path), backend]
        subprocess.run(command, env=environment, check=True, timeout=280, capture_output=True)
        found.append(np.load(tmp_path / f"{backend}.npy"))

    np.testing.assert_allclose(found[0], found[1], atol=1e-4 * np.abs(found[0]).max())
