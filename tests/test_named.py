"""What a user names from outside: presets, models, losses and augmentations, and what is wrong with them."""

import json
import os
from pathlib import Path

import keras
import numpy as np
import pytest
from servers import answers

from cxr_records.cli import run as run_command
from cxr_records.errors import UsageError
from cxr_records.trainers import digests, named
from cxr_records.trainers.config import TrainConfig, read_preset
from cxr_records.trainers.losses import make_loss
from cxr_records.trainers.models import AUGMENTATIONS, MODELS, make_model, with_augmentation
from cxr_records.trainers.predict import load_model, predict_run
from cxr_records.trainers.runs import open_run
from cxr_records.trainers.train import train

NETS = '''
"""A model with a layer of its own, an augmentation, a loss."""
import keras


class Halved(keras.layers.Layer):
    def call(self, x):
        return x / 2


def make(images, spec):
    x = keras.layers.Conv2D(4, 3, activation="relu")(Halved()(images))
    return spec.head(keras.layers.GlobalAveragePooling2D()(x))


def bright(images):
    return keras.layers.RandomBrightness(0.5, value_range=(0, 255))(images)


class Squared(keras.losses.Loss):
    def __init__(self, scale):
        super().__init__()
        self.scale = scale

    def call(self, labels, logits):
        labels = keras.ops.reshape(keras.ops.cast(labels, "float32"), keras.ops.shape(logits))
        return self.scale * keras.ops.mean((keras.ops.sigmoid(logits) - labels) ** 2, axis=-1)


def squared(class_records, num_records, scale=1.0):
    return Squared(scale)


number = 3


def two_outputs(images, spec):
    return keras.layers.Dense(2)(keras.layers.Flatten()(images))


def no_tensor(images, spec):
    return "logits"


def failing(*arguments):
    raise ValueError("no such thing\\nand more")


def smaller(images):
    return images[:, 1:]


def no_loss(class_records, num_records):
    return "mse"


def whole_rows(class_records, num_records):
    return keras.losses.BinaryCrossentropy(from_logits=True, reduction=None)


class Unsaved(keras.layers.Layer):
    def __init__(self, number):
        super().__init__()

    def call(self, x):
        return x


def not_saved(images, spec):
    return spec.head(keras.layers.Flatten()(Unsaved(3)(images)))


class Shaken(keras.layers.Layer):
    def call(self, x):
        return x + keras.random.normal((1,), seed=self.seed)

    def build(self, shape):
        self.seed = keras.random.SeedGenerator(1)


def shaken(images, spec):
    return spec.head(keras.layers.Flatten()(Shaken(name="shaking")(images)))


class Counting(keras.layers.Layer):
    def build(self, shape):
        self.calls = self.add_weight(name="calls", shape=(), initializer="zeros", trainable=False)

    def call(self, x):
        self.calls.assign_add(1.0)
        return x


def counting(images, spec):
    return spec.head(keras.layers.Flatten()(Counting()(images)))


def wider(images, spec):
    units = 2 if spec.dropout else 3
    return spec.head(keras.layers.Dense(units, name="hidden")(keras.layers.Flatten()(images)))


class Block(keras.layers.Layer):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.drop = keras.layers.Dropout(0.5)

    def call(self, x):
        return self.drop(x)


def blocks(images, spec):
    x = keras.layers.GaussianNoise(1.0)(keras.layers.RandomRotation(0.1)(images))
    x = keras.layers.BatchNormalization()(Block(name="block")(x))
    return spec.head(keras.layers.Flatten()(x))


def lambdas(images, spec):
    return spec.head(keras.layers.Flatten()(keras.layers.Lambda(lambda x: x / 2)(images)))


def plain(images, spec):
    return keras.layers.Dense(spec.num_outputs)(keras.layers.Flatten()(images))
'''


@pytest.fixture
def nets(tmp_path) -> Path:
    path = tmp_path / "nets.py"
    path.write_text(NETS)
    return path


def line_of(text: str) -> int:
    return NETS.split("\n").index(text) + 1


def model(name: str, **changes) -> keras.Model:
    return make_model(name, **{"num_outputs": 3, "size": 16, "mean": 100.0, "std": 50.0, **changes})


# One way to all of them


def test_our_models_and_augmentations_are_named_in_tables():
    assert list(MODELS) == [
        "small_cnn", "efficientnet_lite0", "densenet121", "resnet50", "efficientnetv2b0", "convnext_tiny",
    ]  # fmt: skip
    assert list(AUGMENTATIONS) == ["none", "light"]


def test_a_users_model_that_takes_no_dropout_is_told_so(nets):
    said: list[str] = []
    make_model(f"{nets}:plain", 3, 16, 100.0, 50.0, dropout=0.3, say=said.append)
    assert said == [
        f"warning: `dropout=0.3`: nothing in {nets}:plain drops; end it with `spec.head(features)`"
    ]
    make_model(f"{nets}:make", 3, 16, 100.0, 50.0, dropout=0.3, say=said.append)
    make_model(f"{nets}:plain", 3, 16, 100.0, 50.0, say=said.append)
    assert len(said) == 1


def test_a_model_of_a_users_file_takes_what_ours_take(nets):
    made = model(f"{nets}:make", bias=np.array([-1.0, 0.0, 1.0]))
    trained = with_augmentation(made, f"{nets}:bright")

    assert (made.input.dtype, made.input.shape, made.output.shape) == ("uint8", (None, 16, 16, 1), (None, 3))
    np.testing.assert_array_equal(made.get_layer("head").get_weights()[1], [-1, 0, 1])
    assert [layer.name for layer in made.layers][1:3] == ["to_float", "normalise"]
    assert [layer.name for layer in trained.layers] == ["image", "to_float", "random_brightness", "make"]
    assert [id(w) for w in trained.weights] == [id(w) for w in made.weights]


def test_a_users_model_has_the_same_weights_and_paths_whatever_was_made_before(nets):
    one, other = (model(f"{nets}:make", seed=5) for _ in range(2))

    assert [w.path for w in one.weights] == [w.path for w in other.weights]
    for a, b in zip(one.get_weights(), other.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_users_loss_takes_options(nets):
    loss = make_loss(f"{nets}:squared", "binary", np.array([3]), 10, scale=4.0)

    assert float(loss(np.array([0, 1], np.int32), np.zeros((2, 1), np.float32))) == pytest.approx(1.0)
    with pytest.raises(UsageError) as error:
        make_loss(f"{nets}:squared", "binary", np.array([3]), 10, scal=4.0)
    assert str(error.value).startswith("`loss_options.scal`: the loss ")
    assert str(error.value).endswith("has no such option (did you mean scale?); expected one of scale")


def test_a_loss_of_keras_is_named_by_its_module(monkeypatch, tmp_path):
    (tmp_path / "some_losses.py").write_text(
        "import keras\ndef plain(class_records, num_records):\n"
        "    return keras.losses.BinaryCrossentropy(from_logits=True)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)

    loss = make_loss("some_losses:plain", "multilabel", np.array([3, 2]), 10)

    assert float(loss(np.array([[0, 1]], np.int32), np.zeros((1, 2)))) == pytest.approx(np.log(2), abs=1e-6)


def test_a_preset_may_be_a_file(tmp_path):
    (tmp_path / "mine.py").write_text(
        "from cxr_records.trainers.config import TrainConfig\nCONFIG = TrainConfig(epochs=3, loss='focal')\n"
    )

    assert read_preset(str(tmp_path / "mine.py")) == TrainConfig(epochs=3, loss="focal")


def test_a_file_is_run_once(tmp_path):
    path = tmp_path / "counting.py"
    path.write_text(f"open({str(tmp_path / 'log')!r}, 'a').write('x')\n")

    assert named.load("`model`", str(path)) is named.load("`loss`", str(path))
    assert (tmp_path / "log").read_text() == "x"


# A run with them


@pytest.fixture(scope="module")
def users_run(dataset, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("users")
    (folder / "nets.py").write_text(NETS)
    config = TrainConfig(
        model=f"{folder}/nets.py:make", loss=f"{folder}/nets.py:squared", augment=f"{folder}/nets.py:bright",
        loss_options={"scale": 2.0}, epochs=1, batch_size=16,
    )  # fmt: skip
    train(str(dataset), str(folder / "run"), config)
    return folder / "run"


def test_a_run_records_what_was_named_and_the_digest_of_the_file(users_run):
    file = users_run.parent / "nets.py"
    said = json.loads((users_run / "config.json").read_text())

    assert said["config"]["model"] == f"{file}:make"
    digest = named.hashlib.sha256(file.read_bytes()).hexdigest()
    assert said["code"] == {
        setting: {"file": str(file), "sha256": digest} for setting in ("model", "loss", "augment")
    }
    assert digests.sealed(open_run(str(users_run)).to_json()) == (users_run / "config.json").read_bytes()


def test_a_run_of_ours_alone_says_nothing_of_files(dataset, trained_run):
    assert "code" not in json.loads((trained_run / "config.json").read_text())


def test_a_saved_model_with_layers_of_a_users_is_loaded_by_whom_has_not_run_the_file(users_run, monkeypatch):
    monkeypatch.setattr(named, "_FILES", {})
    with pytest.raises(TypeError, match="Could not locate class 'Halved'"):
        keras.saving.load_model(users_run / "model.keras", compile=False)

    table = predict_run(str(users_run), ["test"])

    assert table["prob_Mass"].between(0, 1, inclusive="neither").all()


def test_a_users_model_takes_the_weights_of_a_saved_one_with_layers_of_its_own(nets, tmp_path):
    saved = model(f"{nets}:make", seed=1)
    saved.save(tmp_path / "model.keras")

    taken = model(f"{nets}:make", weights=str(tmp_path / "model.keras"))

    for weight, other in zip(taken.weights, saved.weights, strict=True):
        np.testing.assert_array_equal(weight.numpy(), other.numpy(), err_msg=weight.path)


def test_a_file_that_has_changed_is_refused_when_going_on_and_when_predicting(dataset, users_run):
    file = users_run.parent / "nets.py"
    config, before = open_run(str(users_run)).config, file.read_text()
    file.write_text(before.replace("return x / 2", "return x / 3"))
    try:
        with pytest.raises(UsageError) as going_on:
            train(str(dataset), str(users_run), config)
        with pytest.raises(UsageError) as predicting:
            load_model(open_run(str(users_run)))
    finally:
        file.write_text(before)
    for error in (going_on, predicting):
        assert str(error.value).startswith(
            f"`model={file}:make`: {file} has changed since the run began: found sha256 "
        )
        assert str(error.value).endswith("; put it back as it was, or train into another folder")


def test_a_users_random_layers_act_in_training_alone_and_those_inside_of_others_are_said(
    dataset, nets, tmp_path, capfd
):
    config = TrainConfig(model=f"{nets}:blocks", epochs=1, batch_size=16, patience=0)
    train(str(dataset), str(tmp_path / "run"), config)

    assert (
        f"warning: `model={nets}:blocks`: block (Block) stays random in model.keras where a caller asks for "
        "training=True\n"
    ) in capfd.readouterr().err
    saved = load_model(open_run(str(tmp_path / "run")))
    images = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 1), np.uint8)
    for other in answers(saved, images):
        np.testing.assert_allclose(other, answers(saved, images)[0], atol=1e-5)
    kinds = {type(layer) for layer in saved.layers}
    assert not kinds & {keras.layers.GaussianNoise, keras.layers.RandomRotation}


# Bad use


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "shaken",
            "the saved model gives other scores each time it is called (look at shaking (Shaken)); let "
            "layers do so only where `training` is true",
        ),
        (
            "counting",
            "the saved model changes when it is called; let layers do so only where `training` is true",
        ),
        (
            "wider",
            "head/kernel differs between the model that is trained and the one without dropout that is "
            "saved; give the same weights whatever `spec.dropout` is",
        ),
    ],
)
def test_a_model_that_could_not_be_handed_over_is_refused_before_it_is_trained(
    dataset, nets, tmp_path, name, message
):
    config = TrainConfig(model=f"{nets}:{name}", epochs=1, batch_size=16, dropout=0.5)
    with pytest.raises(UsageError) as error:
        train(str(dataset), str(tmp_path / "run"), config)
    assert str(error.value) == f"`model={nets}:{name}`: {message}"
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("gone.py:make", "`model=gone.py:make`: no such file gone.py"),
        ("{nets}:mak", "`model={nets}:mak`: {nets} has no 'mak' (did you mean make?)"),
        ("{nets}:number", "`model={nets}:number`: expected a function, found 'number' of type int"),
        (
            "{nets}:two_outputs",
            "`model={nets}:two_outputs`: expected logits of shape [batch, 3], found [batch, 2]",
        ),
        ("{nets}:no_tensor", "`model={nets}:no_tensor`: expected logits, a Keras tensor, found str"),
        ("{nets}:failing", "`model={nets}:failing`: ValueError: no such thing ({nets}, line FAILING)"),
        ("no_such_module:make", "`model=no_such_module:make`: no module 'no_such_module' is installed"),
        ("json:make", "`model=json:make`: json has no 'make'"),
        ("json.nothing:make", "`model=json.nothing:make`: no module 'json.nothing' is installed"),
    ],
)
def test_a_model_that_is_none_is_refused_in_one_line(nets, name, message):
    failing = str(line_of('    raise ValueError("no such thing\\nand more")'))
    with pytest.raises(UsageError) as error:
        model(name.replace("{nets}", str(nets)))
    assert str(error.value) == message.replace("{nets}", str(nets)).replace("FAILING", failing)


@pytest.mark.parametrize("name", ["not_saved", "lambdas"])
def test_a_model_that_could_not_be_kept_is_refused_before_it_is_trained(nets, name):
    with pytest.raises(UsageError) as error:
        model(f"{nets}:{name}")
    assert str(error.value).startswith(f"`model={nets}:{name}`: cannot be saved and loaded again: ")
    assert "\n" not in str(error.value)


def test_an_augmentation_of_another_shape_is_refused(nets):
    with pytest.raises(UsageError) as error:
        with_augmentation(model("small_cnn"), f"{nets}:smaller")
    assert str(error.value) == (
        f"`augment={nets}:smaller`: expected images of shape [batch, 16, 16, 1], found [batch, 15, 16, 1]"
    )


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no_loss", "expected a keras.losses.Loss, found str"),
        ("whole_rows", "expected one number for a batch, found shape [2]; keep Keras' reduction"),
    ],
)
def test_a_loss_that_is_none_is_refused_in_one_line(nets, name, message):
    with pytest.raises(UsageError) as error:
        make_loss(f"{nets}:{name}", "multilabel", np.array([3, 2]), 10)
    assert str(error.value) == f"`loss={nets}:{name}`: {message}"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("X = 1", "found no CONFIG; expected CONFIG = TrainConfig(...)"),
        ("CONFIG = {'epochs': 3}", "found CONFIG of type dict; expected CONFIG = TrainConfig(...)"),
        ("CONFIG = TrainConfig(epochs=3)", "NameError: name 'TrainConfig' is not defined ({path}, line 1)"),
        ("x = (1,\n", "'(' was never closed ({path}, line 1)"),
        (
            "from cxr_records.trainers.config import TrainConfig\nCONFIG = TrainConfig(epochs=0)",
            "`epochs=0`: expected at least 1 ({path}, line 2)",
        ),
    ],
)
def test_a_preset_file_without_settings_is_refused_in_one_line(tmp_path, text, message):
    path = tmp_path / "mine.py"
    path.write_text(text)

    with pytest.raises(UsageError) as error:
        read_preset(str(path))
    expected = message.replace("{path}", str(path)).replace("'(' was", "SyntaxError: '(' was")
    assert str(error.value) == f"`preset={path}`: {expected}"


def test_a_file_that_failed_is_run_again_once_it_is_mended(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text("1 / 0")
    with pytest.raises(UsageError, match="division by zero"):
        named.load("`preset`", str(path))
    with pytest.raises(UsageError, match="division by zero"):
        named.load("`preset`", str(path))


def test_a_module_in_the_working_folder_is_pointed_to_as_a_file(nets, monkeypatch):
    monkeypatch.chdir(nets.parent)
    with pytest.raises(UsageError) as error:
        named.choose("model", "nets:make", MODELS)
    assert str(error.value) == (
        "`model=nets:make`: no module 'nets' is installed; for the file give nets.py:..."
    )


def test_the_command_says_it_in_its_own_words_and_leaves_no_run(dataset, tmp_path, capfd):
    run = tmp_path / "run"
    words = ["train", str(dataset), "--run", str(run)]

    for more, message in (
        (["--set", "model=gone.py:make"], "Error: --set model=gone.py:make: no such file gone.py"),
        (["--preset", "gone.py"], "Error: --preset gone.py: no such file gone.py"),
        (["--set", "epochs=0"], "Error: --set epochs=0: expected at least 1"),
        (
            ["--set", "loss=focal", "--set", "loss_options.gamma=-1"],
            "Error: --set loss_options.gamma=-1.0: expected a number of at least 0",
        ),
        (["--set", "model=resnet"], "Error: --set model=resnet: no such model (did you mean resnet50?)"),
    ):
        assert run_command([*words, *more]) == 2
        (line,) = [line for line in capfd.readouterr().err.splitlines() if line.startswith("Error: ")]
        assert line.startswith(message)
        assert not os.path.exists(run)
