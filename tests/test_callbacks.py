"""What happens beside the steps: validation, what counts as better, when a run stops, history, figures."""

import math
from types import SimpleNamespace

import keras
import numpy as np
import pytest
import tensorflow as tf

from cxr_records import open as open_dataset
from cxr_records.errors import CxrError
from cxr_records.trainers import callbacks, checkpoints, losses, runs, scoring
from cxr_records.trainers.checkpoints import TrainingProgress
from cxr_records.trainers.config import TrainConfig
from cxr_records.trainers.models import make_model
from cxr_records.trainers.phases import Phase


class Counter(keras.Model):
    """Logits that tell the images apart: the mean grey level, times 1 to k."""

    def __init__(self, outputs: int):
        super().__init__()
        self.outputs = outputs

    def call(self, images):
        grey = keras.ops.mean(keras.ops.cast(images, "float32"), axis=(1, 2, 3))
        return (grey[:, None] - 128) / 32 * keras.ops.arange(1, self.outputs + 1, dtype="float32")


# Padding


@pytest.mark.parametrize("task", ["binary:Effusion", "binary:Mass,Nodule", "multiclass", "multilabel"])
def test_padding_changes_no_loss_and_no_score_of_a_derived_task(dataset, task):
    derived = open_dataset(dataset).as_task(task)
    records = derived.split("test")
    names, rows = runs.score_names(derived.task), runs.class_rows(derived.task, records.labels)
    loss = losses.make_loss(
        "ce" if task == "multiclass" else "bce", derived.task.kind, rows.sum(0), len(records)
    )
    model, count = Counter(len(names)), len(records)

    def measured(batch_size: int, **options) -> dict[str, float]:
        batches = derived.load("test", batch_size, **options)
        return callbacks.Validation(batches, records.labels, rows, names, loss, range(len(names)))(model)

    whole, padded = measured(count), measured(count - 1, last_batch="pad")
    assert padded == pytest.approx(whole, rel=1e-5, nan_ok=True)
    # The mask as Keras takes it, for a loss by batches: labels of padding must not make it NaN.
    images, labels, mask = next(iter(derived.load("test", count + 3, last_batch="pad")))
    assert mask.numpy().tolist() == [1.0] * count + [0.0] * 3
    by_mask = float(loss(labels, model(images), sample_weight=mask))
    assert by_mask == pytest.approx(float(loss(labels[:count], model(images[:count]))), rel=1e-5)
    assert math.isfinite(by_mask)
    assert labels.numpy().min() >= 0


# Validation


def test_validation_has_the_loss_and_the_auroc_of_each_class_and_their_mean():
    labels = np.array([[0, 1], [1, 1], [0, 0], [1, 0]])
    logits = np.array([[0.0, 2.0], [1.0, -1.0], [2.0, 0.0], [3.0, 1.0]], np.float32)
    loss = losses.make_loss("bce", "multilabel", np.array([2, 2]), 4)
    validation = callbacks.Validation(None, labels, labels.astype(np.uint8), ("A", "B"), loss, (1,))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scoring, "score", lambda model, batches, count: logits[:count])
        measured = validation(None)

    assert measured["val_auroc_A"] == pytest.approx(0.75)
    assert measured["val_auroc_B"] == pytest.approx(0.5)
    assert measured["val_macro_auroc"] == pytest.approx(0.625)
    assert measured["val_selection_auroc"] == pytest.approx(0.5)  # of B alone
    p = 1 / (1 + np.exp(-logits.astype(float)))
    assert measured["val_loss"] == pytest.approx(
        -np.mean(labels * np.log(p) + (1 - labels) * np.log(1 - p)), rel=1e-5
    )


def test_a_class_that_validation_lacks_is_nan_and_left_out_of_the_mean():
    labels = np.array([[0, 0], [1, 0]])
    logits = np.array([[0.0, 1.0], [1.0, 0.0]], np.float32)
    loss = losses.make_loss("bce", "multilabel", np.array([1, 1]), 2)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scoring, "score", lambda *arguments: logits)
        both = callbacks.Validation(None, labels, labels, ("A", "B"), loss, (0, 1))(None)
        none = callbacks.Validation(None, labels * 0, labels * 0, ("A", "B"), loss, ())(None)

    assert math.isnan(both["val_auroc_B"])
    assert both["val_macro_auroc"] == 1.0
    assert math.isnan(none["val_macro_auroc"])
    assert math.isnan(none["val_selection_auroc"])


def test_multiclass_is_ranked_by_probabilities_not_by_logits():
    # Of class 0 the first image has the larger logit, the second the larger probability.
    labels, logits = np.array([1, 0]), np.array([[2.0, 5.0], [1.0, -5.0]], np.float32)
    loss = losses.make_loss("ce", "multiclass", np.array([1, 1]), 2)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scoring, "score", lambda *arguments: logits)
        measured = callbacks.Validation(None, labels, np.eye(2)[labels], ("A", "B"), loss, (0, 1))(None)

    assert measured["val_auroc_A"] == 1.0


# What is kept, and when a run stops


class Run:
    """A keeper over a run whose validation says what it is told, and the checkpoints that it makes."""

    def __init__(self, tmp_path, monkeypatch, writes=True, progress=None, minutes=60.0, **settings):
        self.saved: list[tuple[str, int, int]] = []
        self.score = math.nan
        self.progress = progress or TrainingProgress()
        monkeypatch.setattr(
            checkpoints,
            "save",
            lambda path, model, p: self.saved.append((path.rsplit("/", 1)[1], p.epoch, p.batch)),
        )
        config = TrainConfig(checkpoint_minutes=minutes, **{"min_steps": 0, **settings})
        self.keeper = callbacks.RunKeeper(
            str(tmp_path), self.progress, None, lambda model: {"val_selection_auroc": self.score}, config, 5,
            writes, Phase("train", 99, may_stop=True),
        )  # fmt: skip
        self.model = SimpleNamespace(stop_training=False, optimizer=SimpleNamespace(learning_rate=0.5))
        self.keeper.set_model(self.model)

    def epoch(self, score: float, loss: float = 1.0) -> None:
        self.score = score
        logs = {"loss": loss, "images_per_second": 1.0, "input_wait_share": 0.0, "seconds": 2.0}
        self.keeper.on_epoch_begin(self.progress.epoch)
        self.keeper.on_epoch_end(self.progress.epoch, logs)


def test_a_mean_over_fewer_classes_is_called_that_after_each_epoch(capfd):
    keeper = SimpleNamespace(progress=TrainingProgress(best_epoch=1), phase=Phase("train", 2, True))
    display = callbacks.Display(2, 4, 5, SimpleNamespace(_batches=0), keeper)

    def said(**areas: float) -> str:
        display.on_epoch_begin(0)
        display.on_epoch_end(0, {"loss": 0.5, "val_macro_auroc": 0.75, **areas})
        return capfd.readouterr().err

    assert said(val_auroc_Mass=0.75, val_auroc_Hernia=0.75) == (
        "epoch 1/2: loss 0.5000, validation macro AUROC 0.7500 (best so far)\n"
    )
    assert said(val_auroc_Mass=0.75, val_auroc_Hernia=math.nan) == (
        "epoch 1/2: loss 0.5000, validation macro AUROC (1 of 2 classes: no Hernia) 0.7500 (best so far)\n"
    )
    # An epoch before may have been better, and is none of these.
    keeper.phase = Phase("retrain", 2, False)
    assert said(val_auroc_Mass=0.75) == (
        "epoch 1/2: loss 0.5000, validation macro AUROC 0.7500 (best so far of retraining)\n"
    )


def test_the_best_weights_are_those_of_the_largest_auroc_and_of_ties_the_first(tmp_path, monkeypatch):
    run = Run(tmp_path, monkeypatch)

    for score in (0.6, 0.8, 0.8, 0.7):
        run.epoch(score)

    assert (run.progress.best, run.progress.best_epoch, run.progress.epoch) == (0.8, 2, 4)
    assert [(file, epoch) for file, epoch, _ in run.saved] == [
        ("best.npz", 1), ("last.npz", 1), ("best.npz", 2), ("last.npz", 2), ("last.npz", 3), ("last.npz", 4)
    ]  # fmt: skip


def test_without_a_score_the_last_weights_are_the_best_and_a_number_beats_none(tmp_path, monkeypatch):
    run = Run(tmp_path, monkeypatch)

    run.epoch(math.nan)
    run.epoch(math.nan)
    assert (run.progress.best, run.progress.best_epoch) == (None, 2)
    run.epoch(0.4)
    run.epoch(math.nan)
    assert (run.progress.best, run.progress.best_epoch) == (0.4, 3)


@pytest.mark.parametrize(("patience", "stops_after"), [(1, 3), (2, 4), (0, None)])
def test_a_run_stops_after_as_many_epochs_without_better_as_its_patience(
    tmp_path, monkeypatch, patience, stops_after
):
    run = Run(tmp_path, monkeypatch, patience=patience)

    stopped = []
    for score in (0.6, 0.8, 0.7, 0.75):
        run.epoch(score)
        stopped.append((run.progress.stopped, run.model.stop_training))

    expected = [stops_after is not None and epoch >= stops_after for epoch in (1, 2, 3, 4)]
    assert stopped == [(stop, stop) for stop in expected]


@pytest.mark.parametrize(("min_steps", "stops_after"), [(14, 3), (15, 3), (16, 4), (20, 4), (21, None)])
def test_no_run_stops_before_its_fewest_steps(tmp_path, monkeypatch, min_steps, stops_after):
    run = Run(tmp_path, monkeypatch, patience=1, min_steps=min_steps)  # 5 steps an epoch

    stopped = []
    for score in (0.6, 0.8, 0.7, 0.75):
        run.epoch(score)
        stopped.append(run.progress.stopped)

    assert stopped == [stops_after is not None and epoch >= stops_after for epoch in (1, 2, 3, 4)]
    assert run.progress.best_epoch == 2


def test_the_last_epoch_is_kept_where_that_is_asked_for(tmp_path, monkeypatch):
    run = Run(tmp_path, monkeypatch, keep="last")

    for score in (0.6, 0.8, 0.7):
        run.epoch(score)

    assert run.progress.best_epoch == 3
    assert [epoch for file, epoch, _ in run.saved if file == "best.npz"] == [1, 2, 3]


def test_checkpoints_inside_an_epoch_come_by_the_clock_and_never_for_its_last_batch(tmp_path, monkeypatch):
    always = Run(tmp_path, monkeypatch, minutes=0)
    always.keeper.on_epoch_begin(0)
    for batch in range(5):
        always.keeper.on_train_batch_end(batch, {"loss": 1.0})
    assert always.saved == [("last.npz", 0, done) for done in (1, 2, 3, 4)]

    clock = iter([0.0, 59.0, 60.0, 60.0, 61.0, 119.0, 120.0, 120.0])
    monkeypatch.setattr(callbacks, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    now_and_then = Run(tmp_path, monkeypatch, minutes=1)
    now_and_then.keeper.on_epoch_begin(0)
    for batch in range(4):
        now_and_then.keeper.on_train_batch_end(batch, {"loss": 1.0})
    assert [done for _, _, done in now_and_then.saved] == [2]


def test_an_epoch_that_goes_on_counts_its_batches_from_where_it_was(tmp_path, monkeypatch):
    run = Run(tmp_path, monkeypatch, minutes=0, progress=TrainingProgress(epoch=1, batch=2))
    run.keeper.on_epoch_begin(1)
    run.keeper.on_train_batch_end(0, {"loss": 1.0})
    run.keeper.on_train_batch_end(1, {"loss": 1.0})  # its fourth
    run.keeper.on_train_batch_end(2, {"loss": 1.0})  # its last

    assert run.saved == [("last.npz", 1, 3), ("last.npz", 1, 4)]
    run.epoch(0.5)
    assert (run.progress.epoch, run.progress.batch) == (2, 0)


def test_a_machine_that_does_not_write_leaves_nothing(tmp_path, monkeypatch):
    run = Run(tmp_path, monkeypatch, minutes=0, writes=False)
    run.keeper.on_epoch_begin(0)
    run.keeper.on_train_batch_end(0, {"loss": 1.0})
    run.epoch(0.5)

    assert run.saved == []
    assert list(tmp_path.iterdir()) == []
    assert run.progress.best_epoch == 1


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_loss_that_is_no_number_ends_the_run_before_it_is_saved(tmp_path, monkeypatch, loss):
    run = Run(tmp_path, monkeypatch, minutes=0)
    run.keeper.on_epoch_begin(0)
    with pytest.raises(CxrError) as in_epoch:
        run.keeper.on_train_batch_end(0, {"loss": loss})
    with pytest.raises(CxrError) as at_end:
        run.epoch(0.5, loss)

    assert run.saved == []
    for error in (in_epoch, at_end):
        assert str(error.value) == (
            f"{tmp_path}: the loss became {loss} in epoch 1; there is no checkpoint yet; try a smaller "
            "learning_rate or clip_norm in a new run"
        )
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "last.npz").touch()
    with pytest.raises(CxrError, match="in epoch 1; the last good checkpoint is kept; try"):
        run.keeper.on_train_batch_end(0, {"loss": loss})


def test_steps_that_changed_nothing_under_float16_are_counted_and_said_when_there_are_more(
    tmp_path, monkeypatch, capfd
):
    run = Run(tmp_path, monkeypatch)
    said = []
    for updates, scale in ((2, 4096.0), (7, 4096.0), (11, 2048.0)):  # of 5, 10 and 15 steps
        optimizer = SimpleNamespace(learning_rate=0.5, iterations=updates, dynamic_scale=scale)
        run.model.optimizer = optimizer
        run.epoch(0.5)
        said.append(capfd.readouterr().err)

    assert said == [
        "warning: 3 of 5 steps changed nothing: their gradients overflowed float16; the loss scale is 4096 "
        "now\n",
        "",
        "warning: 4 of 15 steps changed nothing: their gradients overflowed float16; the loss scale is 2048 "
        "now\n",
    ]


def test_a_run_of_which_no_step_changed_a_weight_ends(tmp_path, monkeypatch):
    run = Run(tmp_path, monkeypatch)
    run.model.optimizer = SimpleNamespace(learning_rate=0.5, iterations=0, dynamic_scale=1024.0)

    with pytest.raises(CxrError) as error:
        run.epoch(0.5)
    assert run.saved == []
    assert str(error.value) == (
        f"{tmp_path}: none of the 5 steps changed a weight: gradients overflow float16, at a loss scale of "
        "1024 still; give `precision=mixed_bfloat16` or float32 in a new run"
    )


def test_history_is_a_table_with_six_digits(tmp_path, monkeypatch):
    run = Run(tmp_path, monkeypatch)
    run.epoch(0.123456789)
    run.epoch(0.5, loss=0.25)

    assert (tmp_path / "history.csv").read_text() == (
        "epoch,steps,loss,val_selection_auroc,phase,learning_rate,images_per_second,input_wait_share,seconds\n"
        "1,5,1,0.123457,train,0.5,1,0,2\n"
        "2,5,0.25,0.5,train,0.5,1,0,2\n"
    )


# Speed


def test_speed_leaves_out_the_first_batch_of_all_and_counts_what_was_waited(monkeypatch):
    now, meter = [0.0], SimpleNamespace(seconds=0.0)
    monkeypatch.setattr(callbacks, "time", SimpleNamespace(monotonic=lambda: now[0]))
    speed, logs = callbacks.Speed(10, meter), {}

    def batches(count: int, first: int = 0) -> None:
        for batch in range(first, first + count):
            now[0] += 2.0
            meter.seconds += 0.5
            speed.on_train_batch_end(batch)

    speed.on_epoch_begin(0)
    now[0] += 100.0  # compilation
    meter.seconds += 50.0
    batches(1)
    assert math.isnan(speed.figures()[0])
    batches(3, first=1)
    speed.on_epoch_end(0, logs)
    assert logs == {"images_per_second": 5.0, "input_wait_share": 0.25, "seconds": 108.0}
    now[0] += 40.0  # validation
    speed.on_epoch_begin(1)
    batches(2)
    assert speed.figures() == (5.0, 0.25)


def test_speed_counts_the_steps_of_executions_of_several_and_the_last_one_has_fewer(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(callbacks, "time", SimpleNamespace(monotonic=lambda: now[0]))
    speed = callbacks.Speed(10, SimpleNamespace(seconds=0.0))
    speed.set_params({"steps": 10})

    speed.on_epoch_begin(0)
    for last in (3, 7, 11):  # of 4, 4 and 2 steps, as Keras numbers them
        now[0] += 2.0
        speed.on_train_batch_end(last)

    assert speed.figures()[0] == 10 * (4 + 2) / 4.0


# Scores


def test_scores_come_in_order_without_those_of_padding():
    model = make_model("small_cnn", 2, 16, 100.0, 50.0)
    images = np.random.default_rng(0).integers(0, 256, (7, 16, 16, 1), np.uint8)
    padded = np.concatenate([images, np.zeros((2, 16, 16, 1), np.uint8)])
    batches = tf.data.Dataset.from_tensor_slices((padded, np.zeros(9), np.ones(9))).batch(3)

    scores = scoring.score(model, batches, 7)

    assert (scores.shape, scores.dtype) == ((7, 2), np.float32)
    np.testing.assert_allclose(scores, np.asarray(model(images)), rtol=1e-4, atol=1e-5)


def test_probabilities_are_right_and_never_overflow():
    logits = np.array([[-800.0, 0.0, 2.0], [800.0, 800.0, 799.0]])

    sigmoid = scoring.probabilities(logits, "multilabel")
    softmax = scoring.probabilities(logits, "multiclass")

    assert (sigmoid.dtype, softmax.dtype) == (np.float32, np.float32)
    np.testing.assert_allclose(sigmoid, [[0, 0.5, 1 / (1 + np.exp(-2))], [1, 1, 1]], rtol=1e-6)
    third = 1 / (2 + np.exp(-1))
    np.testing.assert_allclose(
        softmax, [[0, 1 / (1 + np.e**2), np.e**2 / (1 + np.e**2)], [third, third, 1 - 2 * third]], rtol=1e-6
    )
    np.testing.assert_array_equal(scoring.probabilities(logits, "binary"), sigmoid)
