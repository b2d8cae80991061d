"""Checkpoints: everything that training goes on with comes back, bit for bit."""

import keras
import numpy as np
import pytest

from cxr_records.errors import CxrError
from cxr_records.trainers import checkpoints
from cxr_records.trainers.checkpoints import TrainingProgress


def make_model(units: int = 3) -> "keras.Model":
    inputs = keras.Input((4,))
    hidden = keras.layers.Dense(units, name="first")(inputs)
    hidden = keras.layers.Dropout(0.5, seed=1, name="drop")(hidden)
    model = keras.Model(inputs, keras.layers.Dense(1, name="last")(hidden))
    model.compile(optimizer=keras.optimizers.AdamW(0.01), loss="mse")
    model.optimizer.build(model.trainable_variables)
    return model


def state(model) -> list[np.ndarray]:
    variables = [*model.variables, *model.optimizer.variables, *model.metrics_variables]
    return [np.array(variable.value) for variable in variables]


X, Y = np.random.default_rng(0).normal(size=(2, 32, 4)), np.ones((32, 1))


def test_weights_optimizer_seeds_and_running_loss_come_back_bit_for_bit(tmp_path):
    path = str(tmp_path / "last.npz")
    trained, fresh = make_model(), make_model()
    trained.fit(X[0], Y, epochs=1, verbose=0)
    progress = TrainingProgress(epoch=1, best=0.75, best_epoch=1, history=[{"loss": 0.5}])
    checkpoints.save(path, trained, progress)

    saved = checkpoints.load(path)
    assert any((a != b).any() for a, b in zip(state(trained), state(fresh), strict=True))
    checkpoints.restore(fresh, saved.arrays, ("model", "seeds", "optimizer", "metrics"))

    assert saved.progress == progress
    for a, b in zip(state(trained), state(fresh), strict=True):
        np.testing.assert_array_equal(a, b)
    # Dropout's seed came back too: the next epoch is the same.
    trained.fit(X[1], Y, epochs=1, verbose=0, shuffle=False)
    fresh.fit(X[1], Y, epochs=1, verbose=0, shuffle=False)
    for a, b in zip(state(trained), state(fresh), strict=True):
        np.testing.assert_array_equal(a, b)


def test_only_what_is_asked_for_is_put_back(tmp_path):
    path = str(tmp_path / "last.npz")
    trained, fresh = make_model(), make_model()
    trained.fit(X[0], Y, epochs=1, verbose=0)
    checkpoints.save(path, trained, TrainingProgress())

    checkpoints.restore(fresh, checkpoints.load(path).arrays, ("model",))

    assert int(fresh.optimizer.iterations.value) == 0
    np.testing.assert_array_equal(
        fresh.get_layer("last").get_weights()[0], trained.get_layer("last").get_weights()[0]
    )


def test_there_may_be_no_checkpoint(tmp_path):
    assert checkpoints.load(str(tmp_path / "last.npz")) is None


@pytest.mark.parametrize("cut", [0, 10, 500])
def test_a_damaged_checkpoint_is_named_with_what_to_do(tmp_path, cut):
    path = tmp_path / "last.npz"
    checkpoints.save(str(path), make_model(), TrainingProgress())
    path.write_bytes(path.read_bytes()[:cut])

    with pytest.raises(CxrError) as error:
        checkpoints.load(str(path))
    assert str(error.value) == (
        f"{path} is damaged: its bytes are not those that were written; remove it to begin the run anew"
    )
    (tmp_path / "digests.json").unlink()  # as in a run of before
    with pytest.raises(CxrError) as error:
        checkpoints.load(str(path))
    assert str(error.value).startswith(f"{path}: found a damaged checkpoint (")
    assert str(error.value).endswith("); remove it to begin the run anew")


def test_a_checkpoint_of_another_model_is_refused(tmp_path):
    path = str(tmp_path / "last.npz")
    checkpoints.save(path, make_model(units=4), TrainingProgress())

    with pytest.raises(CxrError) as error:
        checkpoints.restore(make_model(), checkpoints.load(path).arrays, ("model",))
    assert str(error.value) == "the checkpoint is of another model: a shape differs"


def test_a_writer_that_dies_leaves_the_checkpoint_before_it(tmp_path, monkeypatch):
    path = tmp_path / "last.npz"
    checkpoints.save(str(path), make_model(), TrainingProgress(epoch=1))
    before = path.read_bytes()

    def die(file, **arrays):
        file.write(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(np, "savez", die)
    with pytest.raises(KeyboardInterrupt):
        checkpoints.save(str(path), make_model(), TrainingProgress(epoch=2))

    assert path.read_bytes() == before
    assert sorted([p.name for p in tmp_path.iterdir()], reverse=True) == ["last.npz", "digests.json"]
