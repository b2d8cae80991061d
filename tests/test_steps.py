"""Steps on the device: compiled with XLA for every preset, several at once, in which precision."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import keras
import numpy as np
import pytest

from cxr_records.errors import UsageError
from cxr_records.trainers import checkpoints, runs
from cxr_records.trainers import train as training
from cxr_records.trainers.config import TrainConfig, preset_names
from cxr_records.trainers.devices import Devices
from cxr_records.trainers.losses import make_loss
from cxr_records.trainers.models import make_model
from cxr_records.trainers.train import train

TESTS = Path(__file__).parent
TINY = TrainConfig(
    model=f"{TESTS / 'tiny_model.py'}:make", batch_size=16, epochs=1, patience=0, augment="light", dropout=0.3
)
OWN = """
import keras

def turned(images):
    return keras.layers.RandomZoom(0.1)(keras.layers.RandomRotation(0.1)(images))

def half(images, spec):
    return spec.head(keras.layers.Dense(4, name="half")(keras.layers.Flatten()(images)))

def steep(class_records, num_records):
    class Steep(keras.losses.BinaryCrossentropy):
        def call(self, labels, logits):
            return 1e4 * super().call(labels, logits)
    return Steep(from_logits=True)
"""


@pytest.fixture
def own(tmp_path) -> Path:
    (tmp_path / "own.py").write_text(OWN)
    return tmp_path / "own.py"


@pytest.fixture
def fitted(monkeypatch) -> list[keras.Model]:
    """Models that are trained from here on."""
    models, fit = [], keras.Model.fit

    def noting(model, x, **options):
        model.seen = x.element_spec
        models.append(model)
        return fit(model, x, **options)

    monkeypatch.setattr(keras.Model, "fit", noting)
    return models


# XLA


STEP = """
import dataclasses, json, sys
import keras
from servers import assert_inert
from cxr_records import open as open_dataset
from cxr_records.trainers import predict, runs
from cxr_records.trainers.config import read_preset
from cxr_records.trainers.train import train
compiled, fit = [], keras.Model.fit
def noting(model, *inputs, **options):
    compiled.append(model.jit_compile)
    return fit(model, *inputs, **options)
keras.Model.fit = noting
preset, data, run = sys.argv[1:]
config = dataclasses.replace(
    read_preset(preset), weights="none", augment="light", dropout=0.3, epochs=1, batch_size=32, xla="yes"
)
_, progress = train(data, run, config)
images = next(iter(open_dataset(data).load("test", 4, shuffle=False)))[0].numpy()
assert_inert(predict.load_model(runs.open_run(run)), images)
print(json.dumps([compiled, progress.history[0]["loss"], keras.backend.backend()]))
"""


# Whether XLA takes the steps is the question here, and not how fast they are: it compiles in a fraction so.
UNOPTIMISED = "--xla_backend_optimization_level=1 --xla_llvm_disable_expensive_passes=true"


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["tensorflow", "jax"])
@pytest.mark.parametrize("preset", preset_names())
def test_the_steps_of_a_preset_compile_under_xla_and_its_model_is_inert(dataset, tmp_path, preset, backend):
    done = subprocess.run(
        [sys.executable, "-c", STEP, preset, str(dataset), str(tmp_path / "run")],
        env={
            **os.environ,
            "KERAS_BACKEND": backend,
            "PYTHONPATH": f"{TESTS}{os.pathsep}{TESTS.parent}",
            "XLA_FLAGS": UNOPTIMISED,
        },
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    compiled, loss, used = json.loads(done.stdout.splitlines()[-1])
    assert (compiled, used) == ([True], backend)
    assert np.isfinite(loss)


def test_a_run_with_augmentation_and_dropout_compiles_under_xla_and_sends_bytes(dataset, tmp_path, fitted):
    train(str(dataset), str(tmp_path / "run"), replace(TINY, xla="yes"))

    (model,) = fitted
    assert model.jit_compile is True
    assert (model.seen[0].dtype.name, model.input.dtype) == ("uint8", "uint8")
    assert [layer.name for layer in model.layers] == ["image", "to_float", "light", "make"]
    assert "normalise" in [layer.name for layer in model.layers[-1].layers]


def test_xla_that_cannot_be_had_is_refused_with_the_layer_that_is_in_the_way(dataset, own, tmp_path):
    with pytest.raises(UsageError) as error:
        train(str(dataset), str(tmp_path / "run"), replace(TINY, xla="yes", augment=f"{own}:turned"))
    assert str(error.value) == (
        "`xla=yes`: XLA cannot compile random_rotation (RandomRotation) and random_zoom (RandomZoom); "
        "replace what cannot, or give `xla=no`"
    )
    assert not (tmp_path / "run").exists()


def test_xla_and_deterministic_kernels_are_not_had_together_with_tensorflow(dataset, tmp_path):
    with pytest.raises(UsageError) as error:
        train(str(dataset), str(tmp_path / "run"), replace(TINY, xla="yes", deterministic="yes"))
    assert str(error.value) == (
        "`xla=yes`: TensorFlow compiles no steps while its kernels are to be deterministic; give "
        "`deterministic=no`, or `xla=no`"
    )


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("gpu", "warning: steps are not compiled with XLA: XLA cannot compile zoom (RandomZoom); replace "
         "what cannot, or give `xla=no`\n"),
        ("cpu", ""),
    ],
)  # fmt: skip
def test_xla_that_a_gpu_does_without_is_said(dataset, capfd, kind, said):
    opened, model = training.open_dataset(str(dataset)), make_model("small_cnn", 14, 32, 100.0, 50.0)
    shaky = keras.Model(model.input, model(keras.layers.RandomZoom(0.1, name="zoom")(model.input)))
    job = training._Job(opened, runs.describe("run", opened, TINY, {}), Devices(kind, 1), 1, TINY)

    def warned(asked: keras.Model) -> str:
        assert training._xla(job, asked) == "auto"
        lines = capfd.readouterr().err.splitlines(keepends=True)
        return "".join(line for line in lines if line.startswith("warning: "))

    assert warned(shaky) == said
    assert warned(model) == ""


# Several steps at once


@pytest.fixture(scope="module")
def one_by_one(dataset, tmp_path_factory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "one"
    train(str(dataset), str(run), replace(TINY, epochs=2, warmup_epochs=0.5))
    return run


def arrays_of(run: Path) -> dict[str, np.ndarray]:
    return checkpoints.load(str(run / "checkpoints" / "last.npz")).arrays


class Killed(BaseException):
    """Stands for the kill: nothing of ours catches it."""


@pytest.mark.parametrize("kill", [False, True])
def test_several_steps_at_once_give_the_same_bits_also_where_they_are_broken_off(
    dataset, one_by_one, tmp_path, monkeypatch, kill
):
    # 9 steps of an epoch are 4 + 4 + 1.
    config = replace(TINY, epochs=2, warmup_epochs=0.5, steps_per_execution=4, checkpoint_minutes=0)
    saved, save = [], checkpoints.save

    def noting(path, model, progress):
        save(path, model, progress)
        saved.append((Path(path).name, progress.epoch, progress.batch))
        if kill and len(saved) == 2:
            raise Killed

    monkeypatch.setattr(checkpoints, "save", noting)
    if kill:
        with pytest.raises(Killed):
            train(str(dataset), str(tmp_path / "run"), config)
        # Other steps at once change nothing that comes out.
        config = replace(config, steps_per_execution=3)
    _, progress = train(str(dataset), str(tmp_path / "run"), config)

    steps = progress.history[0]["steps"]
    assert steps == 9, "the numbers below are of these"
    inside = [(epoch, batch) for file, epoch, batch in saved if file == "last.npz"]
    expected = [(0, 4), (0, 8), (1, 0), (1, 4), (1, 8), (2, 0)]
    assert inside == ([(0, 4), (0, 8), (1, 0), (1, 3), (1, 6), (2, 0)] if kill else expected)
    found = arrays_of(tmp_path / "run")
    assert sorted(found) == sorted(arrays_of(one_by_one))
    for name, array in arrays_of(one_by_one).items():
        np.testing.assert_array_equal(found[name], array, err_msg=name)


# Precision


def test_auto_is_what_the_device_is_made_for_or_what_the_run_began_with(dataset, tmp_path, monkeypatch):
    monkeypatch.setattr(Devices, "precision", "mixed_bfloat16")
    begun, _ = train(str(dataset), str(tmp_path / "run"), TINY)
    monkeypatch.setattr(Devices, "precision", "float32")

    again, progress = train(str(dataset), str(tmp_path / "run"), TINY)

    assert begun.config.precision == again.config.precision == "mixed_bfloat16"
    assert runs.open_run(str(tmp_path / "run")).config.precision == "mixed_bfloat16"
    assert len(progress.history) == 1
    with pytest.raises(UsageError, match="precision mixed_bfloat16, this command says float32"):
        train(str(dataset), str(tmp_path / "run"), replace(TINY, precision="float32"))


def test_steps_that_float16_skips_are_said_and_counted(dataset, own, tmp_path, capfd):
    config = replace(TINY, model=f"{own}:half", loss=f"{own}:steep", precision="mixed_float16", batch_size=8)
    train(str(dataset), str(tmp_path / "run"), config)

    said = [line for line in capfd.readouterr().err.splitlines() if line.startswith("warning: ")]
    skipped, steps, scale = (float(said[0].split()[place]) for place in (1, 3, -2))
    assert said == [
        f"warning: {skipped:g} of {steps:g} steps changed nothing: their gradients overflowed float16; "
        f"the loss scale is {scale:g} now"
    ]
    assert 1 <= skipped < steps == 19
    assert scale == 2.0 ** (15 - skipped)
    arrays = arrays_of(tmp_path / "run").items()
    counts = [float(array) for name, array in arrays if name.startswith("optimizer") and not array.ndim]
    assert steps - skipped in counts, "updates, as the optimizer counts them"


@pytest.mark.slow
def test_resnet50_loses_six_steps_under_float16_for_its_first_gradients_are_too_large():
    """Keras' loss scale begins at 2**15 and is halved where a gradient is above 65504. ResNet-50's scale of
    the pixels has no part in it: BatchNorm behind the first convolution undoes it."""
    import tensorflow as tf

    from cxr_records.trainers import models

    x = np.random.default_rng(0).integers(0, 256, (8, 32, 32, 1), np.uint8)
    labels = np.random.default_rng(1).integers(0, 2, (8, 3)).astype(np.int32)
    loss, largest = make_loss("bce", "multilabel", np.array([4, 4, 4]), 8), {}
    for spread in (58.0, 1.0):
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(models._SPREAD, "resnet50", spread)
            model = make_model("resnet50", 3, 32, 130.0, 60.0)
        with tf.GradientTape() as tape:
            value = loss(labels, model(x, training=True))
        gradients = tape.gradient(value, model.trainable_variables)
        largest[spread] = max(float(tf.reduce_max(tf.abs(gradient))) for gradient in gradients)

    skipped = {spread: int(np.ceil(np.log2(value * 2**15 / 65504))) for spread, value in largest.items()}
    assert skipped == {58.0: 6, 1.0: 6}
