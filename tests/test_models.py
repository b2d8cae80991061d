"""Networks: shapes and types, normalisation, the same weights in every process, weights from files."""

import hashlib
import json
import os
import random
import subprocess
import sys
import urllib.error
from pathlib import Path

import keras
import numpy as np
import pytest
from keras.src.applications import convnext
from servers import assert_inert

from cxr_records.errors import CxrError, UsageError
from cxr_records.trainers import checkpoints
from cxr_records.trainers.models import MODELS, inert, make_model, with_augmentation, with_probabilities

MEAN, STD = 130.0, 60.0


def small(**changes) -> keras.Model:
    arguments = {"name": "small_cnn", "num_outputs": 3, "size": 32, "mean": MEAN, "std": STD, **changes}
    return make_model(**arguments)


def images(count: int = 4, size: int = 32) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, size, size, 1), np.uint8)


def outputs(model: keras.Model, x: np.ndarray, training: bool = False) -> np.ndarray:
    return keras.ops.convert_to_numpy(model(x, training=training))


def weights_of(model: keras.Model) -> dict[str, np.ndarray]:
    return {
        weight.path: keras.ops.convert_to_numpy(keras.ops.convert_to_tensor(weight))
        for weight in model.weights
    }


def shifted(model: keras.Model) -> keras.Model:
    """The model with other weights than a fresh one has."""
    for weight in model.weights:
        weight.assign_add(keras.ops.ones(weight.shape))
    return model


def assert_same(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> None:
    assert sorted(one) == sorted(other)
    for path, array in one.items():
        np.testing.assert_array_equal(array, other[path], err_msg=path)


@pytest.fixture(scope="module")
def each_model() -> dict[str, keras.Model]:
    """Every model once, with dropout; they take seconds to make."""
    return {name: small(name=name, dropout=0.3) for name in MODELS}


def light(**changes) -> keras.Model:
    """A small model that is augmented in training."""
    return with_augmentation(small(**changes), "light", changes.get("seed", 0))


# What goes in and comes out


@pytest.mark.parametrize("name", MODELS)
def test_a_model_takes_raw_grey_images_and_gives_float32_logits(each_model, name):
    model = each_model[name]
    assert (model.input.shape, model.input.dtype) == ((None, 32, 32, 1), "uint8")
    assert (model.output.shape, model.output.dtype) == ((None, 3), "float32")
    found = outputs(model, images())
    assert found.shape == (4, 3)
    assert np.isfinite(found).all()
    assert np.ptp(found, axis=0).min() > 0, "the output does not depend on the image"


@pytest.mark.parametrize("name", MODELS)
def test_every_weight_has_a_path_of_its_own(each_model, name):
    # Checkpoints hold weights by path.
    paths = [weight.path for weight in each_model[name].weights]
    assert len(set(paths)) == len(paths)
    assert {"head/kernel", "head/bias"} < set(paths)


@pytest.mark.parametrize("name", ["small_cnn", "convnext_tiny"])
def test_paths_do_not_depend_on_what_was_made_before(each_model, name):
    # ConvNeXt has weights without a name, which Keras numbers through a process.
    expected = [w.path for w in each_model[name].weights]
    assert [w.path for w in small(name=name).weights] == expected
    assert "convnext_tiny_stage_0_block_0_layer_scale/variable" in expected or name == "small_cnn"


def test_the_small_model_is_small():
    assert small(num_outputs=14, size=64).count_params() == 194_014


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("densenet121", 7_037_504),
        ("resnet50", 23_587_712),
        ("efficientnetv2b0", 5_919_312),
        ("convnext_tiny", 27_820_128),
    ],
)
def test_the_applications_have_the_weights_of_their_papers_and_nothing_before_them(each_model, name, count):
    # Counts without the top layer, as Keras documents them; a doubled normalisation would add some.
    (network,) = (layer for layer in each_model[name].layers if isinstance(layer, keras.Model))
    assert network.count_params() == count
    assert not [
        layer
        for layer in network.layers
        if isinstance(layer, keras.layers.Rescaling | keras.layers.Normalization)
    ]
    assert each_model[name].count_params() == count + 3 * (network.output.shape[-1] + 1)


@pytest.mark.parametrize(("name", "spread"), [("small_cnn", 1), ("densenet121", 1), ("resnet50", 58)])
def test_grey_levels_are_normalised_by_the_datasets_mean_and_deviation(each_model, name, spread):
    model = each_model[name]
    normalised = keras.Model(model.input, model.get_layer("normalise").output)
    levels = np.array([0, 70, 130, 190, 255], np.uint8)
    x = np.broadcast_to(levels[:, None, None, None], (5, 32, 32, 1))
    np.testing.assert_allclose(
        outputs(normalised, x)[:, 0, 0, 0], spread * (levels - MEAN) / STD, rtol=1e-5, atol=1e-5
    )


def test_the_three_channels_of_an_application_are_the_same_grey(each_model):
    model = each_model["densenet121"]
    rgb = outputs(keras.Model(model.input, model.get_layer("grey_to_rgb").output), images())
    assert rgb.shape == (4, 32, 32, 3)
    np.testing.assert_array_equal(rgb[..., 0], rgb[..., 1])
    np.testing.assert_array_equal(rgb[..., 0], rgb[..., 2])


@pytest.mark.parametrize("precision", ["mixed_float16", "mixed_bfloat16"])
def test_mixed_precision_keeps_grey_levels_and_logits_in_float32(precision):
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(precision)
    try:
        model, trained = small(), light()
    finally:
        keras.config.set_dtype_policy(before)
    for name in ("to_float", "normalise", "head"):
        assert model.get_layer(name).compute_dtype == "float32", name
    assert {layer.output.dtype for layer in trained.layers if layer.name != "image"} == {"float32"}
    assert model.get_layer("conv1").compute_dtype == precision.removeprefix("mixed_")
    assert {keras.backend.standardize_dtype(w.dtype) for w in model.weights} == {"float32"}
    full = outputs(small(), images())
    np.testing.assert_allclose(outputs(model, images()), full, atol=0.03 * np.abs(full).max())


# Where training begins


def test_the_bias_is_that_of_the_last_layer():
    bias = np.array([-3.0, -1.0, 0.5])
    model = small(bias=bias)
    np.testing.assert_array_equal(weights_of(model)["head/bias"], bias.astype(np.float32))
    assert not weights_of(small())["head/bias"].any()


def test_the_same_seed_makes_the_same_weights_whatever_was_drawn_before():
    one = small(seed=5)
    random.seed(99)
    keras.random.normal((3,))
    assert_same(weights_of(one), weights_of(small(seed=5)))


def test_another_seed_makes_other_weights():
    one, other = weights_of(small(seed=5)), weights_of(small(seed=6))
    assert all(not np.array_equal(one[p], other[p]) for p in one if p.endswith("/kernel"))


def test_no_two_layers_share_their_first_weights():
    kernels = [w.ravel()[:8].tobytes() for p, w in weights_of(small()).items() if p.endswith("/kernel")]
    assert len(set(kernels)) == len(kernels) == 6


def test_pythons_random_numbers_go_on_as_if_no_model_had_been_made():
    random.seed(7)
    expected = [random.random() for _ in range(3)]
    random.seed(7)
    small()
    assert [random.random() for _ in range(3)] == expected


def described(names: list[str]) -> dict:
    """Digests of all variables of models, the state of their random layers included; logits of the first."""
    found = {"backend": keras.backend.backend()}
    for name in names:
        digest = hashlib.sha256()
        for variable in light(name=name, dropout=0.2, seed=5).variables:
            tensor = keras.ops.convert_to_tensor(variable)
            digest.update(np.ascontiguousarray(keras.ops.convert_to_numpy(tensor)).tobytes())
        found[name] = digest.hexdigest()
    return found | {"logits": outputs(small(name=names[0], seed=5), images()).tolist()}


def described_elsewhere(names: list[str], backend: str = "tensorflow") -> dict:
    """The same from another process."""
    code = "import json, sys; from test_models import described; print(json.dumps(described(sys.argv[1:])))"
    tests = Path(__file__).parent
    done = subprocess.run(
        [sys.executable, "-c", code, *names],
        env={**os.environ, "KERAS_BACKEND": backend, "PYTHONPATH": f"{tests}{os.pathsep}{tests.parent}"},
        cwd=tests,
        capture_output=True,
        text=True,
        timeout=250,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_two_processes_make_the_same_bits():
    # EfficientNetV2 has random layers of its own, which Keras gives no way to seed.
    names = ["small_cnn", "efficientnetv2b0"]
    assert described_elsewhere(names) == described(names)


@pytest.mark.slow
def test_the_small_model_works_on_jax():
    found = described_elsewhere(["small_cnn"], backend="jax")
    assert found["backend"] == "jax"
    assert np.isfinite(found["logits"]).all()
    assert np.shape(found["logits"]) == (4, 3)


# Augmentation and dropout


def test_light_augmentation_acts_in_training_alone():
    plain, augmented = small(), light()
    np.testing.assert_array_equal(outputs(augmented, images()), outputs(plain, images()))
    x = np.broadcast_to(np.arange(0, 256, 8, dtype=np.uint8)[None, :, None, None], (16, 32, 32, 1))
    changed = keras.Model(augmented.input, augmented.layers[-2].output)
    seen = outputs(changed, x, training=True)
    assert len({image.tobytes() for image in seen}) == 16, "each image of a batch is changed in its own way"
    assert 0 <= seen.min() <= seen.max() <= 255
    assert 1 < np.abs(seen - x).mean() < 20, "light changes leave the image what it was"


def test_augmentation_repeats_with_the_seed():
    first, second, other = (light(seed=seed) for seed in (1, 1, 2))
    draws = [outputs(model, images(), training=True) for model in (first, second, other)]
    np.testing.assert_array_equal(draws[0], draws[1])
    assert not np.array_equal(draws[0], draws[2])


def test_dropout_acts_in_training_alone():
    dropout, ones = small(dropout=0.25).get_layer("dropout"), np.ones((100, 100), np.float32)
    np.testing.assert_array_equal(dropout(ones, training=False), ones)
    assert 0.2 < np.mean(np.asarray(dropout(ones, training=True)) == 0) < 0.3


def test_augmentation_and_dropout_leave_the_first_weights_as_they_are():
    assert_same(weights_of(light(dropout=0.5)), weights_of(small()))


# What is handed over


@pytest.mark.parametrize("name", MODELS)
def test_what_is_handed_over_answers_a_server_as_the_trained_model_predicts(each_model, name):
    trained = with_augmentation(each_model[name], "light")
    assert len(trained.variables) > len(trained.weights), "nothing was random"

    # `predict` compiles, which takes long for the large ones: test_train.py has runs of them.
    saved = with_probabilities(inert(each_model[name]), "multilabel")
    found = assert_inert(saved, images(), predict=name == "small_cnn")

    logits = outputs(trained, images(), training=False)
    np.testing.assert_allclose(found, 1 / (1 + np.exp(-logits)), atol=1e-5)


def test_a_trained_model_of_before_that_still_augments_is_made_inert(tmp_path):
    # Keras' layers for images act where nobody says that it is not training, and statistics move then.
    layers = keras.layers
    inputs = keras.Input((32, 32, 1), dtype="uint8")
    x = layers.RandomTranslation(0.2, 0.2)(layers.Rescaling(1 / 255)(inputs))
    x = layers.Dropout(0.3)(layers.Flatten()(layers.BatchNormalization()(x)))
    keras.Model(inputs, layers.Dense(2)(x)).save(tmp_path / "model.keras")
    model = keras.saving.load_model(tmp_path / "model.keras")

    with pytest.raises(AssertionError):
        assert_inert(model, images())
    inert(model).save(tmp_path / "inert.keras")
    found = assert_inert(keras.saving.load_model(tmp_path / "inert.keras"), images())
    np.testing.assert_allclose(found, outputs(model, images()), atol=1e-5)


# By what a user may put into a network.
NOISE = {
    "GaussianNoise": lambda layers: layers.GaussianNoise(1.0),
    "GaussianDropout": lambda layers: layers.GaussianDropout(0.5),
    "AlphaDropout": lambda layers: layers.AlphaDropout(0.5),
    "SpatialDropout2D": lambda layers: layers.SpatialDropout2D(0.5),
    "StochasticDepth": lambda layers: convnext.StochasticDepth(0.5),
    "RandomFlip": lambda layers: layers.RandomFlip(),
    "RandomErasing": lambda layers: layers.RandomErasing(1.0),
    "in a row": lambda layers: keras.Sequential([layers.RandomRotation(0.2), layers.RandomZoom(0.2)]),
    "in a model": lambda layers: keras.Model(x := keras.Input((8, 8, 1)), layers.GaussianNoise(1.0)(x)),
}


@pytest.mark.parametrize("kind", NOISE)
def test_no_layer_of_keras_that_draws_at_random_is_left_in_it(kind):
    inputs = keras.Input((8, 8, 1))
    x = keras.layers.Conv2D(1, 3, padding="same")(inputs)
    x = NOISE[kind](keras.layers)(x)
    model = keras.Model(inputs, keras.layers.Dense(2)(keras.layers.Flatten()(x)))
    x = np.random.default_rng(0).normal(size=(16, 8, 8, 1)).astype(np.float32)
    assert not np.array_equal(outputs(model, x, training=True), outputs(model, x, training=True))

    quiet = inert(model)

    expected = outputs(model, x, training=False)
    np.testing.assert_array_equal(outputs(quiet, x, training=True), expected)
    np.testing.assert_array_equal(outputs(quiet, x), expected)
    assert [id(weight) for weight in quiet.weights] == [id(weight) for weight in model.weights]
    assert len(quiet.variables) == len(quiet.weights)


def test_a_model_without_any_is_left_as_it_is():
    model = small()
    assert inert(model) is model


# Probabilities


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("binary", lambda x: 1 / (1 + np.exp(-x))),
        ("multilabel", lambda x: 1 / (1 + np.exp(-x))),
        ("multiclass", lambda x: np.exp(x) / np.exp(x).sum(axis=1, keepdims=True)),
    ],
)
def test_probabilities_are_those_of_the_logits_and_share_their_weights(kind, expected):
    model = small(bias=np.array([-1.0, 0.0, 2.0]))
    saved = with_probabilities(model, kind)
    np.testing.assert_allclose(outputs(saved, images()), expected(outputs(model, images())), rtol=1e-5)
    shifted(model)
    assert_same(weights_of(saved), weights_of(model))


def test_a_saved_model_answers_as_before(tmp_path):
    model = with_probabilities(small(dropout=0.3, seed=4), "multilabel")
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(outputs(loaded, images()), outputs(model, images()))
    assert loaded.output.dtype == "float32"


# Weights from files


@pytest.fixture
def keras_file(tmp_path) -> tuple[str, dict[str, np.ndarray]]:
    model = shifted(small(seed=8))
    path = tmp_path / "model.keras"
    with_probabilities(model, "multilabel").save(path)
    return str(path), weights_of(model)


def test_weights_are_taken_from_a_runs_model(keras_file):
    path, held = keras_file
    said = []
    assert_same(weights_of(small(weights=path, say=said.append)), held)
    assert said == [f"took the weights of {path}"]


def test_weights_are_taken_from_a_checkpoint(tmp_path):
    model = shifted(light())
    model.compile(optimizer="adamw", loss="mse")
    model.optimizer.build(model.trainable_variables)
    path = str(tmp_path / "best.npz")
    checkpoints.save(path, model, checkpoints.TrainingProgress())
    assert_same(weights_of(small(weights=path)), weights_of(model))


def test_a_head_of_another_shape_stays_fresh(keras_file):
    path, held = keras_file
    said = []
    found = weights_of(small(num_outputs=5, weights=path, bias=np.full(5, 0.25), say=said.append))
    fresh = weights_of(small(num_outputs=5, bias=np.full(5, 0.25)))
    heads = {"head/kernel", "head/bias"}
    assert_same({p: w for p, w in found.items() if p in heads}, {p: fresh[p] for p in heads})
    assert_same(
        {p: w for p, w in found.items() if p not in heads}, {p: held[p] for p in held if p not in heads}
    )
    assert said == [f"took the weights of {path}, the last layer stays fresh: it has other outputs"]


def test_a_network_with_blocks_and_weights_without_a_name_is_taken_from_its_file(each_model, tmp_path):
    path, model = str(tmp_path / "model.keras"), each_model["convnext_tiny"]
    with_probabilities(inert(model), "multilabel").save(path)
    assert_same(weights_of(small(name="convnext_tiny", seed=3, weights=path)), weights_of(model))


def test_images_of_another_size_can_go_on_with_the_weights(keras_file):
    path, held = keras_file
    assert_same(weights_of(small(size=48, weights=path)), held)


def test_weights_of_another_network_are_refused_with_counts(keras_file):
    path, _ = keras_file
    with pytest.raises(CxrError) as raised:
        small(name="efficientnetv2b0", weights=path)
    assert str(raised.value) == (
        f"`weights={path}`: of another network: 359 of the 361 weights of efficientnetv2b0 are not in it, "
        "such as stem_conv/kernel"
    )


def test_a_remote_file_is_taken_too(keras_file):
    import fsspec

    path, held = keras_file
    with fsspec.open("memory://runs/model.keras", "wb") as file:
        file.write(Path(path).read_bytes())
    assert_same(weights_of(small(weights="memory://runs/model.keras")), held)


def test_an_application_takes_a_file_of_its_weights_without_its_top(tmp_path):
    network = keras.applications.EfficientNetV2B0(
        include_top=False, weights=None, input_shape=(64, 64, 3), include_preprocessing=False
    )
    path = str(tmp_path / "notop.h5")
    network.save(path)
    found = weights_of(small(name="efficientnetv2b0", weights=path))
    assert_same({p: w for p, w in found.items() if not p.startswith("head/")}, weights_of(network))


def test_a_file_of_another_application_is_refused(tmp_path):
    path = str(tmp_path / "other.h5")
    keras.applications.MobileNet(include_top=False, weights=None, input_shape=(32, 32, 3)).save(path)
    with pytest.raises(CxrError) as raised:
        small(name="efficientnetv2b0", weights=path)
    assert str(raised.value).startswith(
        f"`weights={path}`: not the weights of efficientnetv2b0 without its top, or damaged ("
    )
    assert "\n" not in str(raised.value)


def test_imagenet_without_a_network_is_one_line(monkeypatch):
    def offline(*args, **kwargs):
        raise urllib.error.URLError("Name or service not known")

    monkeypatch.setattr("keras.src.utils.file_utils.get_file", offline)
    with pytest.raises(CxrError) as raised:
        small(name="efficientnetv2b0", weights="imagenet")
    assert str(raised.value) == (
        "`weights=imagenet`: the weights of efficientnetv2b0 cannot be fetched "
        "(<urlopen error Name or service not known>); where there is no network give `weights=none`, or a "
        "file of weights"
    )


@pytest.mark.parametrize("weights", ["model.keras", "last.npz"])
def test_a_damaged_file_is_one_line(tmp_path, weights):
    path = tmp_path / weights
    path.write_bytes(b"no weights\nat all")
    with pytest.raises(CxrError) as raised:
        small(weights=str(path))
    assert str(raised.value).startswith(f"`weights={path}`: cannot be read: ")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        (
            {"name": "densnet121"},
            "`model=densnet121`: no such model (did you mean densenet121?); expected one of small_cnn, "
            "efficientnet_lite0, densenet121, resnet50, efficientnetv2b0, convnext_tiny, or your own as "
            "module:function or file.py:function",
        ),
        ({"weights": "nowhere.keras"}, "`weights=nowhere.keras`: no such file"),
        ({"weights": "nowhere.h5", "name": "resnet50"}, "`weights=nowhere.h5`: no such file"),
        (
            {"weights": "model.pt"},
            "`weights=model.pt`: expected none, imagenet, a run's model.keras or .npz checkpoint, or an .h5 "
            "of keras.applications without its top",
        ),
        (
            {"weights": "imagenet"},
            "`weights=imagenet`: small_cnn has none such; expected none, or a run's model.keras or .npz "
            "checkpoint",
        ),
        (
            {"name": "resnet50", "size": 28},
            "`model=resnet50`: takes images of 32 pixels or more, the dataset's have 28",
        ),
    ],
)
def test_bad_use_is_refused_in_one_line(changes, error):
    with pytest.raises(UsageError) as raised:
        small(**changes)
    assert str(raised.value) == error
