"""The running average of all weights: what it is, in a short run and a long one, on both backends."""

import os
import subprocess
import sys

import keras
import numpy as np
import pytest

from cxr_records.trainers import averaging, checkpoints
from cxr_records.trainers.averaging import AveragedModel


def small_model(ema: float, xla: bool = False) -> AveragedModel:
    """Two weights and BatchNorm, with a step that changes all of them."""
    inputs = keras.Input((3,))
    normalised = keras.layers.BatchNormalization(momentum=0.5, name="norm")(inputs)
    outputs = keras.layers.Dense(1, name="last", kernel_initializer="ones")(normalised)
    model = AveragedModel(keras.Model(inputs, outputs, name="small"), ema)
    model.compile(optimizer=keras.optimizers.SGD(0.1), loss="mse", jit_compile=xla)
    return model


def weights_of(model: AveragedModel) -> dict[str, np.ndarray]:
    averages = {id(variable) for variable in averaging.averages(model)}
    return {w.path: w.numpy() for w in model.weights if id(w) not in averages}


class Watch(keras.callbacks.Callback):
    """The weights after each step."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def on_train_batch_end(self, batch, logs=None):
        self.seen.append(weights_of(self.model))


def trained(ema: float, steps: int, xla: bool = False):
    """A model after some steps, with its weights before the first and after each."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(3, 2, (4 * steps, 3)).astype(np.float32), rng.normal(size=(4 * steps, 1))
    model, watch = small_model(ema, xla), Watch()
    begin = weights_of(model)
    model.fit(x, y.astype(np.float32), batch_size=4, shuffle=False, verbose=0, callbacks=[watch])
    return model, [begin, *watch.seen]


def expected(seen: list[dict[str, np.ndarray]], ema: float) -> dict[str, np.ndarray]:
    """The same in float64, by its definition."""
    mean = {path: value.astype(float) for path, value in seen[0].items()}
    for step, now in enumerate(seen[1:]):
        stays = min(ema, (1 + step) / (10 + step))
        mean = {path: stays * value + (1 - stays) * now[path] for path, value in mean.items()}
    return mean


@pytest.mark.parametrize("xla", [False, True])
@pytest.mark.parametrize(("ema", "steps"), [(0.5, 12), (0.999, 12)])
def test_the_average_is_what_its_definition_says_of_weights_and_batch_statistics(ema, steps, xla):
    model, seen = trained(ema, steps, xla)

    with averaging.averaged(model):
        inside = weights_of(model)

    assert sorted(inside) == [
        "last/bias", "last/kernel", "norm/beta", "norm/gamma", "norm/moving_mean", "norm/moving_variance"
    ]  # fmt: skip
    for path, value in expected(seen, ema).items():
        np.testing.assert_allclose(inside[path], value, rtol=1e-4, atol=1e-6, err_msg=path)
        assert (inside[path] != seen[-1][path]).any()


def test_a_short_run_does_not_end_near_its_first_weights():
    """After 200 steps a plain average with 0.999 would be by 82% the first weights."""
    model, seen = trained(0.999, 200)

    with averaging.averaged(model):
        inside = weights_of(model)

    for path in ("last/kernel", "norm/moving_variance"):
        whole = np.abs(seen[-1][path] - seen[0][path]).max()
        assert np.abs(inside[path] - seen[0][path]).max() > 0.8 * whole


def test_the_weights_come_back_also_after_an_error():
    model, seen = trained(0.9, 3)

    with pytest.raises(KeyError), averaging.averaged(model):
        raise KeyError

    for path, value in weights_of(model).items():
        np.testing.assert_array_equal(value, seen[-1][path])


def test_a_model_without_an_average_answers_with_its_own_weights():
    inputs = keras.Input((3,))
    model = keras.Model(inputs, keras.layers.Dense(1)(inputs))
    before = [weight.numpy() for weight in model.weights]

    with averaging.averaged(model):
        for weight, value in zip(model.weights, before, strict=True):
            np.testing.assert_array_equal(weight.numpy(), value)
    assert averaging.averages(model) == []


def test_a_checkpoint_holds_the_average_apart_from_the_weights(tmp_path):
    model, _ = trained(0.9, 3)
    checkpoints.save(str(tmp_path / "last.npz"), model, checkpoints.TrainingProgress())

    arrays = checkpoints.load(str(tmp_path / "last.npz")).arrays

    assert sorted(name for name in arrays if name.startswith("model/")) == sorted(
        f"model/{path}" for path in weights_of(model)
    )
    averages = [name.removeprefix("average/") for name in arrays if name.startswith("average/")]
    assert sorted(averages) == sorted([*weights_of(model), "steps"])
    fresh = small_model(0.9)
    checkpoints.restore(fresh, arrays, ("model", "average"))
    for one, other in zip(averaging.averages(fresh), averaging.averages(model), strict=True):
        np.testing.assert_array_equal(one.numpy(), other.numpy())
    assert float(averaging.averages(fresh)[-1]) == 3


ON_JAX = """
import sys; sys.path.insert(0, "tests")
import keras, numpy as np, test_averaging as here
from cxr_records.trainers import averaging
if sys.argv[1:]:
    from cxr_records.trainers.devices import choose_devices
    choose_devices(sys.argv[1])
model = here.small_model(0.9)
rng = np.random.default_rng(0)
x, y = rng.normal(3, 2, (32, 3)).astype("float32"), rng.normal(size=(32, 1)).astype("float32")
seen = [here.weights_of(model)]
for step in range(8):  # variables are in step with the state at the end of an epoch alone
    model.fit(x[4 * step : 4 * step + 4], y[4 * step : 4 * step + 4], batch_size=4, verbose=0)
    seen.append(here.weights_of(model))
with averaging.averaged(model):
    inside = here.weights_of(model)
for path, value in here.expected(seen, 0.9).items():
    np.testing.assert_allclose(inside[path], value, rtol=1e-4, atol=1e-6, err_msg=path)
    assert (inside[path] != seen[-1][path]).any()
model.fit(x, y, batch_size=4, verbose=0)  # goes on: no buffer is given away twice
print("right on", keras.backend.backend())
"""


@pytest.mark.slow
@pytest.mark.parametrize("devices", [[], ["cpu:2"]])
def test_the_average_is_the_same_with_jax(devices):
    done = subprocess.run(
        [sys.executable, "-c", ON_JAX, *devices],
        env={**os.environ, "KERAS_BACKEND": "jax"},
        capture_output=True,
        text=True,
        timeout=300,
    )

    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "right on jax"
