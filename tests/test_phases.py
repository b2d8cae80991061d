"""Phases of a run: deferred weights, the last layer trained anew, kills in each, the best of the last."""

import csv
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import keras
import numpy as np
import pytest
from keras import ops

from cxr_records import open as open_dataset
from cxr_records.balancing import expected_draws
from cxr_records.errors import UsageError
from cxr_records.images import ImageFormat
from cxr_records.tasks import parse_task
from cxr_records.trainers import callbacks, checkpoints, losses, phases, runs
from cxr_records.trainers.checkpoints import TrainingProgress
from cxr_records.trainers.config import TrainConfig
from cxr_records.trainers.evaluation.report import read_history
from cxr_records.trainers.losses import make_loss
from cxr_records.trainers.train import train

TINY = TrainConfig(
    model=f"{Path(__file__).parent / 'tiny_model.py'}:make", batch_size=16, warmup_epochs=0.5, patience=0
)
# With random changes and dropout, whose state is a part of a run's.
RETRAINED = replace(
    TINY, epochs=2, retrain_epochs=2, augment="light", dropout=0.3, checkpoint_minutes=60, seed=3
)
DEFERRED = replace(
    TINY, loss="ldam", loss_options={"defer": 0.5}, epochs=2, batch_size=8, checkpoint_minutes=60
)


def arrays_of(run: Path, file: str = "last.npz") -> dict[str, np.ndarray]:
    return checkpoints.load(str(run / "checkpoints" / file)).arrays


def assert_same_bits(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> None:
    assert sorted(one) == sorted(other)
    for name, array in one.items():
        np.testing.assert_array_equal(array, other[name], err_msg=name)


def names_of(history: list[dict]) -> list[str]:
    return [row["phase"] for row in history]


# Which phase follows which


def walk(config: TrainConfig, stop_at: int = 0) -> list[tuple[str, int]]:
    """The phase of each epoch and whether it may stop, of a run that stops after an epoch, or at none."""
    kind = "multiclass" if config.loss == "ldam" else "multilabel"
    loss = make_loss(config.loss, kind, np.array([3, 2]), 5, **config.loss_options)
    progress, seen = TrainingProgress(), []
    while (phase := phases.current(config, loss, progress)) is not None:
        seen.append((phase.name, phase.may_stop))
        progress.epoch += 1
        progress.retrained += phase.name == "retrain"
        progress.stopped = progress.stopped or progress.epoch == stop_at
        assert phase.end >= progress.epoch
    return seen


def test_a_run_without_more_is_one_phase():
    assert walk(TrainConfig(loss="bce", epochs=3)) == [("train", True)] * 3
    assert walk(TrainConfig(loss="bce", epochs=3), stop_at=2) == [("train", True)] * 2


def test_deferred_weights_begin_after_their_share_and_training_does_not_stop_before():
    config = TrainConfig(loss="ldam", epochs=5)
    assert walk(config) == [("train", False)] * 4 + [("reweight", True)]
    assert walk(replace(config, loss_options={"defer": 1.0})) == [("train", True)] * 5
    assert walk(replace(config, loss_options={"defer": 0.0})) == [("reweight", True)] * 5


def test_retraining_follows_the_end_and_a_stop():
    config = TrainConfig(loss="bce", epochs=4, retrain_epochs=2)
    assert walk(config) == [("train", True)] * 4 + [("retrain", False)] * 2
    assert walk(config, stop_at=2) == [("train", True)] * 2 + [("retrain", False)] * 2


# The last layer, trained anew


def test_what_is_shown_counts_to_the_end_of_the_run_and_not_of_the_phase():
    config = TrainConfig(epochs=5, retrain_epochs=2)
    of_phases = [phases.Phase(phases.TRAIN, 4, False), phases.Phase(phases.REWEIGHT, 5, True)]
    after_a_stop = phases.Phase(phases.RETRAIN, 5, False)

    assert [phases.last_epoch(config, phase) for phase in (*of_phases, after_a_stop)] == [7, 7, 5]


@pytest.fixture(scope="module")
def retrained(dataset, tmp_path_factory) -> Path:
    """A run with retraining that nothing broke off."""
    run = tmp_path_factory.mktemp("runs") / "retrained"
    train(str(dataset), str(run), RETRAINED)
    return run


class Killed(BaseException):
    """Stands for the kill: nothing of ours catches it."""


@pytest.mark.parametrize(
    ("file", "epoch", "batch", "retrained_epochs"),
    [
        pytest.param("last.npz", 1, 2, 0, id="in training", marks=pytest.mark.slow),
        pytest.param("last.npz", 2, 0, 0, id="between the phases"),
        pytest.param("last.npz", 2, 3, 0, id="in the first epoch of retraining"),
        # With the best weights of retraining, and the last still of its first epoch.
        pytest.param("best.npz", 3, 0, 1, id="between best and last", marks=pytest.mark.slow),
        pytest.param("last.npz", 3, 1, 1, id="in the second", marks=pytest.mark.slow),
    ],
)
def test_a_run_that_is_killed_in_either_phase_ends_with_the_bits_of_an_undisturbed_one(
    dataset, retrained, tmp_path, monkeypatch, file, epoch, batch, retrained_epochs
):
    save = checkpoints.save

    def dying_save(path, model, progress):
        save(path, model, progress)
        place = (progress.epoch, progress.batch, progress.retrained)
        if path.endswith(file) and place == (epoch, batch, retrained_epochs):
            raise Killed

    config = replace(RETRAINED, checkpoint_minutes=0)  # one after every step
    monkeypatch.setattr(checkpoints, "save", dying_save)
    with pytest.raises(Killed):
        train(str(dataset), str(tmp_path / "run"), config)
    monkeypatch.setattr(checkpoints, "save", save)
    _, trained = train(str(dataset), str(tmp_path / "run"), replace(config, checkpoint_minutes=60))

    for name in ("last.npz", "best.npz"):
        assert_same_bits(arrays_of(tmp_path / "run", name), arrays_of(retrained, name))
    with open(retrained / "history.csv") as table:
        expected = [(row["phase"], row["loss"], row["val_loss"]) for row in csv.DictReader(table)]
    found = [(r["phase"], f"{r['loss']:.6g}", f"{r['val_loss']:.6g}") for r in trained.history]
    assert found == expected
    assert [phase for phase, _, _ in found] == ["train", "train", "retrain", "retrain"]


def test_retraining_leaves_all_but_the_last_layer_as_the_best_weights_had_it(dataset, tmp_path):
    """BatchNorm's statistics too: the network has five."""
    config = TrainConfig(epochs=1, batch_size=32, patience=0, seed=1)
    train(str(dataset), str(tmp_path / "plain"), config)
    train(str(dataset), str(tmp_path / "retrained"), replace(config, retrain_epochs=1))

    before, after = arrays_of(tmp_path / "plain", "best.npz"), arrays_of(tmp_path / "retrained", "best.npz")
    names = [name for name in before if name.startswith("model/")]
    assert sum("moving" in name for name in names) == 10
    changed = [name for name in names if (before[name] != after[name]).any()]
    assert changed == ["model/head/kernel", "model/head/bias"]
    saved = keras.saving.load_model(tmp_path / "retrained" / "model.keras", compile=False)
    np.testing.assert_array_equal(saved.get_layer("head").get_weights()[0], after["model/head/kernel"])


def test_the_last_layer_begins_anew_at_the_frequencies_that_are_drawn(dataset, tmp_path, monkeypatch):
    plain = phases.retraining
    monkeypatch.setattr(phases, "retraining", lambda config: replace(plain(config), learning_rate=1e-12))

    run, _ = train(str(dataset), str(tmp_path / "run"), replace(TINY, epochs=1, retrain_epochs=1, seed=4))

    share = np.array([count.records for count in run.classes.values()]) / run.train_records
    found = arrays_of(tmp_path / "run", "best.npz")
    np.testing.assert_allclose(found["model/head/bias"], np.log(share / (1 - share)), rtol=1e-4)
    first = np.abs(found["model/head/kernel"]).max()
    assert 0 < first < np.sqrt(6 / (16 + 14)) + 1e-6  # within the uniform distribution of a fresh one


def test_the_best_epoch_is_one_of_retraining_whatever_training_had(dataset, tmp_path, monkeypatch):
    scores = iter([0.9, 0.8, 0.3, 0.5, 0.4])
    monkeypatch.setattr(
        callbacks.Validation,
        "__call__",
        lambda self, model: {"val_loss": 1.0, "val_selection_auroc": next(scores)},
    )
    config = replace(TINY, epochs=9, retrain_epochs=3, batch_size=32, patience=1, min_steps=0)

    _, trained = train(str(dataset), str(tmp_path / "run"), config)

    assert names_of(trained.history) == ["train", "train", "retrain", "retrain", "retrain"]
    assert (trained.best, trained.best_epoch, trained.stopped) == (0.5, 4, True)
    assert checkpoints.load(str(tmp_path / "run/checkpoints/best.npz")).progress.epoch == 4


def test_a_finished_run_is_not_retrained_again(dataset, retrained, capfd):
    _, again = train(str(dataset), str(retrained), RETRAINED)

    assert f"{retrained}: already trained, 4 epochs" in capfd.readouterr().err
    assert again.retrained == 2


def test_history_names_the_phase_and_reports_read_it(retrained):
    with open(retrained / "history.csv") as file:
        rows = list(csv.DictReader(file))

    assert [row["phase"] for row in rows] == ["train", "train", "retrain", "retrain"]
    assert [row["epoch"] for row in read_history(str(retrained))] == [1, 2, 3, 4]


# Deferred weights


def test_the_weights_reach_the_compiled_steps_when_their_time_comes(dataset, tmp_path, monkeypatch):
    monkeypatch.setattr(
        losses.LDAM,
        "call",
        lambda self, y, x: ops.sum(x * 0, axis=-1) + (0.25 if self.reweighted else 1.0),
    )

    _, trained = train(
        str(dataset),
        str(tmp_path / "run"),
        replace(DEFERRED, xla="yes", deterministic="no"),
        task="multiclass",
    )

    told = [(row["phase"], row["loss"], row["val_loss"]) for row in trained.history]
    assert told == [("train", 1.0, 1.0), ("reweight", 0.25, 0.25)]


@pytest.mark.parametrize(
    "kill_at",
    [pytest.param((0, 2), marks=pytest.mark.slow), pytest.param((1, 0), marks=pytest.mark.slow), (1, 2)],
)
def test_deferred_weights_are_those_of_an_undisturbed_run_wherever_it_was_killed(
    dataset, tmp_path, monkeypatch, kill_at
):
    train(str(dataset), str(tmp_path / "whole"), DEFERRED, task="multiclass")
    save = checkpoints.save

    def dying_save(path, model, progress):
        save(path, model, progress)
        if path.endswith("last.npz") and (progress.epoch, progress.batch) == kill_at:
            raise Killed

    monkeypatch.setattr(checkpoints, "save", dying_save)
    with pytest.raises(Killed):
        train(str(dataset), str(tmp_path / "run"), replace(DEFERRED, checkpoint_minutes=0), task="multiclass")
    monkeypatch.setattr(checkpoints, "save", save)
    train(str(dataset), str(tmp_path / "run"), DEFERRED, task="multiclass")

    assert_same_bits(arrays_of(tmp_path / "run"), arrays_of(tmp_path / "whole"))


def test_the_logits_of_ldam_are_cosines_and_the_saved_model_is_of_keras_alone(dataset, tmp_path):
    train(str(dataset), str(tmp_path / "run"), replace(DEFERRED, epochs=1), task="multiclass")

    kernel = arrays_of(tmp_path / "run")["model/head/kernel"]
    np.testing.assert_allclose(np.linalg.norm(kernel, axis=0), 1, rtol=1e-5)
    model = keras.saving.load_model(tmp_path / "run" / "model.keras", compile=False)
    images = next(iter(open_dataset(dataset).load("validation", 8)))[0]
    logits = keras.Model(model.input, model.get_layer("scale").output)(images).numpy()
    assert 0 < np.abs(logits).max() <= 30 * (1 + 1e-5)
    assert {type(layer).__module__.split(".")[0] for layer in model.layers} == {"keras"}


# What was seen


def test_the_counts_of_a_run_are_those_that_its_last_layer_saw(dataset, retrained, tmp_path):
    records = open_dataset(dataset).split("train")
    draws = expected_draws(records.task, records.labels, [kept for _, kept, _ in records.shards])
    natural, sampled = records.labels.sum(axis=0), records.labels.T @ draws

    run, _ = train(str(dataset), str(tmp_path / "run"), replace(TINY, epochs=1, sampling="class_balanced"))

    for path in (tmp_path / "run", retrained):
        held = json.loads((path / "config.json").read_text())
        np.testing.assert_allclose([c["records"] for c in held["classes"].values()], sampled, atol=1e-3)
        assert held["train"]["records"] == len(records)
    assert run == runs.open_run(str(tmp_path / "run"))
    # Copies have made the findings about even already; what is left is No Finding, one class of fifteen.
    assert draws[~records.labels.any(axis=1)].sum() < (~records.labels.any(axis=1)).sum() / 2
    assert runs.seen(records, "natural") == natural.tolist()


def test_training_itself_counts_what_it_draws_and_not_what_retraining_will(dataset, tmp_path, monkeypatch):
    given = []

    def keep(name, kind, counts, total, **options):
        given.append(counts)
        return make_loss(name, kind, counts, total, **options)

    monkeypatch.setattr(losses, "make_loss", keep)
    train(str(dataset), str(tmp_path / "run"), replace(TINY, epochs=1, retrain_epochs=1))

    records = open_dataset(dataset).split("train")
    assert given[0].tolist() == runs.seen(records, "natural")
    assert given[1].tolist() == runs.seen(records, "class_balanced")


def test_frequencies_that_were_drawn_are_undone_exactly():
    """Of a model that is right for records as they are drawn, to probabilities for images as they are."""
    from cxr_records.trainers.evaluation.calibration import (
        balanced_by,
        shift_of_training,
        undo_shift,
        undone_by,
    )

    random = np.random.default_rng(0)
    labels = random.choice(3, 500, p=[0.8, 0.15, 0.05])
    shown = (labels + random.integers(0, 2, 500)) % 3  # all that the model sees of an image
    draws = expected_draws(parse_task("multiclass"), labels, [500])
    natural, drawn = np.zeros((3, 3)), np.zeros((3, 3))
    np.add.at(natural, (shown, labels), 1)
    np.add.at(drawn, (shown, labels), draws)
    classes = {
        str(place): runs.ClassCount(float(draws[labels == place].sum()), int((labels == place).sum()))
        for place in range(3)
    }
    run = runs.Run(
        path="run",
        dataset="dataset",
        dataset_id="id",
        task=parse_task("multiclass"),
        image_format=ImageFormat(),
        config=TrainConfig(loss="ce", sampling="class_balanced"),
        classes=classes,
        train_records=500,
        train_images=500,
        versions={},
    )

    scores = drawn / drawn.sum(axis=1, keepdims=True)
    undone = undo_shift(scores, "multiclass", shift_of_training(run))

    np.testing.assert_allclose(undone, natural / natural.sum(axis=1, keepdims=True), rtol=1e-6)
    assert undone_by(run) == ("how often it saw each class",)
    assert balanced_by(run) == "training on as many records of each class"


# Bad use


@pytest.mark.parametrize(
    ("settings", "task", "message"),
    [
        (
            {"retrain_epochs": 2}, None,
            "`retrain_epochs=2`: the model make has no layer called head: end it with `spec.head(features)`, "
            "or give `retrain_epochs=0`",
        ),
        (
            {"loss": "ldam"}, "multiclass",
            "`loss=ldam`: its margins are of cosines, and the model make has no layer called head: end it "
            "with `spec.head(features)`, which gives them",
        ),
    ],
)  # fmt: skip
def test_a_model_without_the_last_layer_is_refused_and_leaves_no_run(
    dataset, tmp_path, settings, task, message
):
    (tmp_path / "mine.py").write_text(
        "import keras\n"
        "def make(images, spec):\n"
        "    return keras.layers.Dense(spec.num_outputs, name='last')(keras.layers.Flatten()(images))\n"
    )
    config = replace(TINY, model=f"{tmp_path / 'mine.py'}:make", **settings)

    with pytest.raises(UsageError) as error:
        train(str(dataset), str(tmp_path / "run"), config, task=task)
    assert str(error.value) == message
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"retrain_epochs": -1}, "`retrain_epochs=-1`: expected at least 0"),
        (
            {"sampling": "class-balanced"},
            "`sampling=class-balanced`: unknown (did you mean class_balanced?); expected one of natural, "
            "class_balanced",
        ),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(UsageError) as error:
        TrainConfig(**settings)
    assert str(error.value) == message


# JAX


ON_JAX = """
import json, sys
from dataclasses import replace
from cxr_records.trainers.config import TrainConfig
from cxr_records.trainers.train import train
config = TrainConfig(epochs=2, batch_size=8, patience=0, loss="ldam", loss_options={"defer": 0.5}, xla="yes")
config = replace(config, retrain_epochs=1, sampling="class_balanced")
_, trained = train(sys.argv[1], sys.argv[2], config, task="multiclass")
print(json.dumps([[row["phase"], row["loss"]] for row in trained.history]))
"""


@pytest.mark.slow
def test_all_phases_run_on_jax_and_learn_what_they_learn_on_tensorflow(dataset, tmp_path):
    told = {}
    for backend in ("jax", "tensorflow"):
        done = subprocess.run(
            [sys.executable, "-c", ON_JAX, str(dataset), str(tmp_path / backend)],
            env={**os.environ, "KERAS_BACKEND": backend},
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr
        told[backend] = json.loads(done.stdout.splitlines()[-1])
    assert [name for name, _ in told["jax"]] == ["train", "reweight", "retrain"]
    np.testing.assert_allclose(
        [loss for _, loss in told["jax"]], [loss for _, loss in told["tensorflow"]], rtol=0.05
    )
