"""Runs: what they leave on disk, going on after a kill with the same bits, devices, and bad use."""

import collections
import csv
import io
import json
import math
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import keras
import numpy as np
import pytest
from conftest import RUN_CONFIG
from servers import assert_inert

from cxr_records import open as open_dataset
from cxr_records import storage
from cxr_records.cli import run as run_command
from cxr_records.errors import CxrError, UsageError
from cxr_records.findings import FINDINGS
from cxr_records.trainers import callbacks, checkpoints, digests
from cxr_records.trainers.config import TrainConfig
from cxr_records.trainers.predict import load_model
from cxr_records.trainers.runs import open_run
from cxr_records.trainers.train import train

# Where the model does not matter.
TINY = TrainConfig(model=f"{Path(__file__).parent / 'tiny_model.py'}:make", batch_size=16, patience=0)


def arrays_of(run: Path, file: str = "last.npz") -> dict[str, np.ndarray]:
    return checkpoints.load(str(run / "checkpoints" / file)).arrays


def assert_same_bits(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> None:
    assert sorted(one) == sorted(other)
    for name, array in one.items():
        np.testing.assert_array_equal(array, other[name], err_msg=name)


# What is left on disk


def test_a_run_leaves_config_history_checkpoints_logs_and_a_model(dataset, trained_run):
    assert sorted(p.name for p in trained_run.iterdir() if not p.name.startswith(".")) == [
        "checkpoints", "config.json", "digests.json", "history.csv", "model.keras", "tensorboard"
    ]  # fmt: skip
    assert sorted(p.name for p in (trained_run / "checkpoints").iterdir()) == ["best.npz", "last.npz"]
    held = json.loads((trained_run / "config.json").read_text())
    records = open_dataset(dataset).split("train")
    assert held["dataset"] == str(dataset)
    assert (held["task"], held["with_no_finding"]) == ("multilabel", False)
    assert held["config"] == {**RUN_CONFIG.to_json(), "loss": "bce", "precision": "float32"}
    assert held["image_format"] == {"size": 32, "codec": "raw", "resample": "bilinear"}
    assert held["train"] == {"records": len(records), "images": int((records.copies == 0).sum())}
    assert held["classes"]["Hernia"] == {
        "records": int(records.labels[:, FINDINGS.index("Hernia")].sum()),
        "images": int(records.labels[records.copies == 0, FINDINGS.index("Hernia")].sum()),
    }


def test_history_has_a_row_for_each_epoch(dataset, trained_run):
    with open(trained_run / "history.csv") as file:
        rows = list(csv.DictReader(file))

    steps = open_dataset(dataset).steps_per_epoch("train", 16)
    assert [(row["epoch"], row["steps"]) for row in rows] == [("1", str(steps)), ("2", str(steps))]
    assert list(rows[0])[:6] == [
        "epoch", "steps", "loss", "val_loss", "val_macro_auroc", "val_selection_auroc"
    ]  # fmt: skip
    assert list(rows[0])[-4:] == ["learning_rate", "images_per_second", "input_wait_share", "seconds"]
    assert [f"val_auroc_{name}" in rows[0] for name in FINDINGS] == [True] * 14
    for row in rows:
        assert 0 < float(row["loss"]) < 2
        assert 0 <= float(row["val_macro_auroc"]) <= 1
        assert 0 <= float(row["input_wait_share"]) <= 1
    assert float(rows[-1]["learning_rate"]) == pytest.approx(0, abs=1e-6)  # the cosine has come to its end


def test_the_learning_rate_rises_to_its_peak_and_falls_by_half_a_cosine(dataset, trained_run):
    with open(trained_run / "history.csv") as file:
        rates = [float(row["learning_rate"]) for row in csv.DictReader(file)]

    steps = open_dataset(dataset).steps_per_epoch("train", 16)
    warmup, peak = round(0.5 * steps), RUN_CONFIG.learning_rate
    falling = [(done - warmup) / (2 * steps - warmup) for done in (steps, 2 * steps)]
    expected = [peak * (1 + math.cos(math.pi * share)) / 2 for share in falling]
    assert rates == pytest.approx(expected, rel=1e-4, abs=1e-9)


@pytest.mark.parametrize(("task", "loss"), [("multilabel", "bce"), ("multiclass", "ce")])
def test_training_begins_at_the_frequencies_of_the_classes(dataset, tmp_path, task, loss):
    config = replace(TINY, epochs=1, loss=loss, learning_rate=1e-9)
    run, _ = train(str(dataset), str(tmp_path / "run"), config, task=task)

    share = np.array([count.records for count in run.classes.values()]) / run.train_records
    share = np.clip(share, 1e-4, 1 - 1e-4)
    expected = np.log(share) if task == "multiclass" else np.log(share / (1 - share))
    np.testing.assert_allclose(arrays_of(tmp_path / "run")["model/head/bias"], expected, rtol=1e-4)


def test_the_saved_model_takes_raw_bytes_of_pixels_and_gives_probabilities(dataset, trained_run):
    model = keras.saving.load_model(trained_run / "model.keras", compile=False)
    images = next(iter(open_dataset(dataset).load("validation", 4)))[0]

    scores = np.asarray(model.predict(images, verbose=0))

    assert (images.dtype.name, model.input_shape, scores.shape) == ("uint8", (None, 32, 32, 1), (4, 14))
    assert scores.dtype == np.float32
    assert (scores > 0).all()
    assert (scores < 1).all()


def test_tensorboard_logs_hold_the_epochs(trained_run):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(trained_run / "tensorboard"))
    events.Reload()

    assert {"epoch/loss", "epoch/val_macro_auroc", "epoch/images_per_second"} <= set(events.Tags()["tensors"])
    assert [event.step for event in events.Tensors("epoch/loss")] == [1, 2]


def test_training_again_on_a_finished_run_changes_nothing(dataset, trained_run, capfd):
    def times() -> dict[Path, int]:
        return {p: p.stat().st_mtime_ns for p in trained_run.rglob("*") if p.name != ".lock"}

    before = times()

    _, again = train(str(dataset), str(trained_run), RUN_CONFIG)

    assert times() == before
    assert f"{trained_run}: already trained, 2 epochs" in capfd.readouterr().err
    assert len(again.history) == 2


# The same bits


def test_the_same_settings_give_the_same_bits_and_another_seed_others(dataset, tmp_path):
    for name, seed in (("one", 3), ("same", 3), ("other", 4)):
        train(str(dataset), str(tmp_path / name), replace(TINY, epochs=1, seed=seed))

    one, same, other = (arrays_of(tmp_path / name) for name in ("one", "same", "other"))
    assert_same_bits(same, one)
    assert all((other[name] != one[name]).any() for name in one if name.endswith("kernel"))


class Killed(BaseException):
    """Stands for the kill: nothing of ours catches it."""


# With random changes and dropout, whose state is a part of a run's.
RANDOM = replace(TINY, epochs=2, warmup_epochs=0.5, augment="light", dropout=0.3, checkpoint_minutes=60)


@pytest.fixture(scope="module")
def undisturbed(dataset, tmp_path_factory) -> Path:
    """A run that nothing broke off."""
    run = tmp_path_factory.mktemp("runs") / "undisturbed"
    train(str(dataset), str(run), RANDOM)
    return run


@pytest.mark.parametrize("kill_at", [1, 4, "epoch", "write"])
def test_a_run_that_was_broken_off_ends_with_the_bits_of_an_undisturbed_one(
    dataset, undisturbed, tmp_path, monkeypatch, kill_at
):
    config = replace(RANDOM, checkpoint_minutes=0)  # one after every step
    saves, save = [], checkpoints.save

    def dying_save(path, model, progress):
        saves.append(path)
        if kill_at == "write" and len(saves) == 3:
            with checkpoints.storage.atomic_file(path) as file:
                file.write(b"half of it")
                raise Killed
        save(path, model, progress)
        if len(saves) == kill_at or (kill_at == "epoch" and path.endswith("best.npz")):
            raise Killed

    monkeypatch.setattr(checkpoints, "save", dying_save)
    with pytest.raises(Killed):
        train(str(dataset), str(tmp_path / "run"), config)
    monkeypatch.setattr(checkpoints, "save", save)
    _, trained = train(str(dataset), str(tmp_path / "run"), config)

    for file in ("last.npz", "best.npz"):
        assert_same_bits(arrays_of(tmp_path / "run", file), arrays_of(undisturbed, file))
    with open(undisturbed / "history.csv") as file:
        expected = [(row["loss"], row["val_loss"], row["val_macro_auroc"]) for row in csv.DictReader(file)]
    found = [(row["loss"], row["val_loss"], row["val_macro_auroc"]) for row in trained.history]
    assert [tuple(f"{value:.6g}" for value in row) for row in found] == expected


def test_the_model_that_a_run_leaves_has_nothing_random_in_it_and_the_best_weights(dataset, undisturbed):
    images = next(iter(open_dataset(dataset).load("test", 8, shuffle=False)))[0].numpy()

    found = assert_inert(load_model(open_run(str(undisturbed))), images)

    best = arrays_of(undisturbed, "best.npz")
    assert [name for name in best if name.startswith("seeds/")], "nothing was random in training"
    pixels = open_dataset(dataset).manifest.pixels
    levels = (images.astype(np.float64) - pixels.mean) / pixels.std
    means = levels.reshape(8, 4, 8, 4, 8).mean(axis=(2, 4)).reshape(8, 16)  # what tiny_model looks at
    logits = means @ best["model/head/kernel"] + best["model/head/bias"]
    np.testing.assert_allclose(found, 1 / (1 + np.exp(-logits)), atol=1e-5)


def test_a_model_that_was_trained_in_half_precision_is_handed_over_in_whole(dataset, tmp_path):
    config = TrainConfig(epochs=1, batch_size=64, precision="mixed_bfloat16", augment="light", dropout=0.3)
    train(str(dataset), str(tmp_path / "run"), config)

    images = next(iter(open_dataset(dataset).load("test", 8, shuffle=False)))[0].numpy()
    first = assert_inert(load_model(open_run(str(tmp_path / "run"))), images)
    (tmp_path / "run" / "model.keras").write_bytes(b"")  # made again: the same
    np.testing.assert_array_equal(assert_inert(load_model(open_run(str(tmp_path / "run"))), images), first)


def command(dataset: Path, run: Path, *words: str) -> list[str]:
    return [
        sys.executable, "-m", "cxr_records", "train", str(dataset), "--run", str(run), "--set", "epochs=2",
        "--set", "batch_size=16", "--set", "warmup_epochs=0.5", "--set", "patience=0", "--set", "seed=3",
        *words,
    ]  # fmt: skip


@pytest.mark.slow
def test_a_process_that_is_killed_with_kill_9_goes_on_to_the_same_bits(dataset, trained_run, tmp_path):
    run = tmp_path / "run"
    words = command(dataset, run, "--set", "checkpoint_minutes=0")
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_until(lambda: (run / "checkpoints" / "last.npz").exists(), process)
    time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    progress = checkpoints.load(str(run / "checkpoints" / "last.npz")).progress
    assert (progress.epoch, progress.batch) != (2, 0)

    done = subprocess.run(words, capture_output=True, text=True, timeout=300)

    assert done.returncode == 0, done.stderr
    assert f"going on at epoch {progress.epoch + 1}, step {progress.batch}" in done.stderr
    assert_same_bits(arrays_of(run), arrays_of(trained_run))
    assert (run / "predictions.parquet").exists()
    assert (run / "metrics.json").exists()
    assert "Traceback" not in done.stderr


def wait_until(true, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 120
    while not true():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)


# The whole command


def test_the_command_reads_the_manifest_at_most_twice_and_the_table_of_records_once(
    dataset, tmp_path, monkeypatch, capfd
):
    opened = collections.Counter()

    def counting(open_file):
        def counted(path):
            opened[Path(path).name] += 1
            return open_file(path)

        return counted

    for name in ("open_read", "open_regular"):  # by which `read_bytes` and `read_regular` read too
        monkeypatch.setattr(storage, name, counting(getattr(storage, name)))
    run = tmp_path / "run"

    code = run_command(
        ["train", str(dataset), "--run", str(run), "--json", "--set", f"model={TINY.model}",
         "--set", "epochs=3", "--set", "batch_size=16", "--task", "binary:Effusion"]
    )  # fmt: skip

    assert code == 0
    printed = json.loads(capfd.readouterr().out)
    assert (printed["run"], printed["epochs"]) == (str(run), 3)
    assert {"config.json", "metrics.json", "report.html", "predictions.parquet"} <= set(os.listdir(run))
    assert 1 <= opened["manifest.json"] <= 2
    assert opened["records.parquet"] == 1


# Tasks


@pytest.mark.parametrize(
    ("task", "loss", "outputs"),
    [("binary", "bce", 1), ("multiclass", "logit_adjusted", 14), ("binary:Effusion", "weighted_bce", 1)],
)
def test_another_task_is_derived_from_a_multilabel_dataset(dataset, tmp_path, task, loss, outputs):
    config = replace(TINY, epochs=1, batch_size=8, loss=loss)

    run, trained = train(str(dataset), str(tmp_path / "run"), config, task=task)

    assert (run.task.name, len(run.classes)) == (task, outputs)
    assert run == open_run(str(tmp_path / "run"))
    assert math.isfinite(trained.history[0]["val_loss"])
    model = keras.saving.load_model(tmp_path / "run" / "model.keras", compile=False)
    assert model.output_shape == (None, outputs)


def test_without_validation_the_last_epoch_is_kept_and_that_is_said(build, tmp_path, capfd):
    build(tmp_path / "data", validation_fraction=0)

    _, trained = train(str(tmp_path / "data"), str(tmp_path / "run"), replace(TINY, epochs=2))

    said = "no validation split: no early stopping, and the last epoch's weights are kept"
    assert said in capfd.readouterr().err
    assert open_run(str(tmp_path / "run")).selection.text == said
    assert "val_loss" not in trained.history[0]
    best, last = arrays_of(tmp_path / "run", "best.npz"), arrays_of(tmp_path / "run")
    weights = [name for name in last if name.startswith("model/")]
    for name in weights:  # the average of the last epoch
        average = last[name.replace("model/", "average/", 1)]
        np.testing.assert_array_equal(best[name], average, err_msg=name)
    others = [name for name in last if name not in weights]
    assert_same_bits({name: best[name] for name in others}, {name: last[name] for name in others})


def test_training_stops_when_validation_no_longer_gets_better(dataset, tmp_path, monkeypatch):
    scores = iter([0.6, 0.8, 0.7, 0.75, 0.9])
    monkeypatch.setattr(
        callbacks.Validation,
        "__call__",
        lambda self, model: {"val_loss": 1.0, "val_selection_auroc": next(scores)},
    )
    config = replace(TINY, epochs=9, batch_size=32, patience=2, min_steps=0)

    _, trained = train(str(dataset), str(tmp_path / "run"), config)

    assert [row["val_selection_auroc"] for row in trained.history] == [0.6, 0.8, 0.7, 0.75]
    assert trained.best_epoch == 2
    # The model is that of the best epoch, not of the last.
    best, last = arrays_of(tmp_path / "run", "best.npz"), arrays_of(tmp_path / "run")
    head = keras.saving.load_model(tmp_path / "run" / "model.keras", compile=False).get_layer("head")
    np.testing.assert_array_equal(head.get_weights()[0], best["model/head/kernel"])
    assert (best["model/head/kernel"] != last["model/head/kernel"]).any()
    assert checkpoints.load(str(tmp_path / "run/checkpoints/best.npz")).progress.epoch == 2


# Devices


LOSSES = """
import json, sys
from cxr_records.trainers.config import TrainConfig
from cxr_records.trainers.train import train
# A small rate: Adam makes much of differences in the last bits of small gradients.
config = TrainConfig(epochs=2, batch_size=16, patience=0, seed=3, learning_rate=2e-4, retrain_epochs=1)
_, trained = train(sys.argv[1], sys.argv[2], config, devices=sys.argv[3])
print(json.dumps([[row["loss"], row["val_loss"]] for row in trained.history]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["tensorflow", "jax"])
def test_two_devices_learn_what_one_does(dataset, tmp_path, backend):
    losses = {}
    for devices in ("cpu", "cpu:2"):
        done = subprocess.run(
            [sys.executable, "-c", LOSSES, str(dataset), str(tmp_path / devices), devices],
            env={**os.environ, "KERAS_BACKEND": backend},
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr
        assert f"{'2 CPUs' if devices == 'cpu:2' else '1 CPU'}, Keras on {backend}" in done.stderr
        losses[devices] = json.loads(done.stdout.splitlines()[-1])

    np.testing.assert_allclose(losses["cpu:2"], losses["cpu"], rtol=2e-3)


@pytest.mark.slow
def test_two_machines_learn_together_with_jax(dataset, tmp_path):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    started = [
        subprocess.Popen(
            [sys.executable, "-c", LOSSES, str(dataset), str(tmp_path / "run"), "cpu"],
            env={
                **os.environ,
                "KERAS_BACKEND": "jax",
                "KERAS_DISTRIBUTION_JOB_ADDRESSES": address,
                "KERAS_DISTRIBUTION_NUM_PROCESSES": "2",
                "KERAS_DISTRIBUTION_PROCESS_ID": str(host),
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for host in range(2)
    ]
    told = [process.communicate(timeout=250) for process in started]

    assert [process.returncode for process in started] == [0, 0], told
    one, other = (json.loads(out.splitlines()[-1]) for out, _ in told)
    assert "2 CPUs on 2 machines, Keras on jax" in told[0][1]
    assert np.isfinite(one).all()
    np.testing.assert_allclose(one, other, rtol=1e-5)
    assert (tmp_path / "run" / "model.keras").exists()


# A run without its best weights


@pytest.fixture
def finished_without(trained_run, tmp_path) -> Callable[..., Path]:
    """Makes a copy of the run that lacks files, as if its best epoch had been another."""

    def finished_without(*files: str, best_epoch: int) -> Path:
        run = Path(shutil.copytree(trained_run, tmp_path / "run"))
        last = dict(np.load(run / "checkpoints/last.npz"))
        progress = json.loads(last["progress"].tobytes()) | {"best_epoch": best_epoch}
        last["progress"] = np.frombuffer(json.dumps(progress).encode(), np.uint8)
        changed = io.BytesIO()
        np.savez(changed, **last)
        digests.write(str(run / "checkpoints/last.npz"), changed.getvalue())
        for file in files:
            (run / file).unlink()
        return run

    return finished_without


def test_best_weights_that_are_gone_are_said_to_be_with_what_to_do(dataset, finished_without):
    run = finished_without("model.keras", "checkpoints/best.npz", best_epoch=1)

    with pytest.raises(CxrError) as error:
        train(str(dataset), str(run), RUN_CONFIG)
    assert str(error.value) == (
        f"{run}/checkpoints/best.npz is missing or damaged, and model.keras is made from it; put it back, or "
        f"remove {run}/checkpoints/last.npz to begin the run anew"
    )
    assert not (run / "model.keras").exists()


def test_best_weights_that_are_gone_are_taken_from_the_last_epoch_where_that_was_the_best(
    dataset, finished_without
):
    run = finished_without("model.keras", "checkpoints/best.npz", best_epoch=2)

    train(str(dataset), str(run), RUN_CONFIG)

    last, best = arrays_of(run), arrays_of(run, "best.npz")
    paths = [name for name in best if name.startswith("model/")]
    averages = {name: last[name.replace("model/", "average/", 1)] for name in paths}
    assert_same_bits(
        best,
        {name: last[name] for name in best if not name.startswith("metrics")}
        | {name: best[name] for name in best if name.startswith("metrics")}
        | averages,
    )
    model = keras.saving.load_model(run / "model.keras", compile=False)
    head = model.get_layer("head").get_weights()[0]
    np.testing.assert_array_equal(head, averages["model/head/kernel"])
    assert (head != last["model/head/kernel"]).any()


# Bad use


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (
            ["--set", "batch_size=100000"],
            2,
            "Error: found a batch of 100000, larger than split train",
        ),
        (["--devices", "gpu:0"], 2, "Error: found --devices gpu:0; expected auto, cpu, gpu, tpu, or a kind"),
        (["--devices", "tpu"], 1, "Error: found no TPU: TPU_NAME is not set; on a TPU VM set TPU_NAME=local"),
        (["--preset", "smal_cnn"], 2, "Error: --preset smal_cnn: no such preset (did you mean small_cnn?)"),
        (["--set", "epoch=3"], 2, "Error: --set epoch: no such setting (did you mean epochs?)"),
        (["--set", "model=resnet"], 2, "Error: "),
        (["--set", "loss=asymetric"], 2, "Error: "),
        (["--task", "binary:Masss"], 2, "Error: found --task binary:Masss: unknown finding 'Masss'"),
        (["--weights", "nowhere.keras"], 2, "Error: "),
    ],
)
def test_a_mistake_is_answered_in_one_line(dataset, tmp_path, capfd, words, code, message):
    assert run_command(["train", str(dataset), "--run", str(tmp_path / "run"), *words]) == code

    lines = [line for line in capfd.readouterr().err.splitlines() if line.startswith("Error: ")]
    assert len(lines) == 1
    assert lines[0].startswith(message)


def test_a_run_with_other_settings_is_not_gone_on_with(dataset, trained_run):
    with pytest.raises(UsageError) as error:
        train(str(dataset), str(trained_run), replace(RUN_CONFIG, epochs=5))
    assert str(error.value) == (
        f"`run={trained_run}` holds a run with epochs 2, this command says 5; "
        "give the same options to go on with it, or name another folder"
    )


def test_a_folder_that_holds_something_else_is_not_touched(dataset, tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    (tmp_path / "@eaDir").mkdir()  # what systems leave is no stranger

    with pytest.raises(UsageError) as error:
        train(str(dataset), str(tmp_path), RUN_CONFIG)
    assert str(error.value) == (
        f"`run={tmp_path}` is not empty and no run of ours (it holds thesis.tex); name another"
    )
    assert sorted(p.name for p in tmp_path.iterdir()) == ["@eaDir", "thesis.tex"]


def test_a_damaged_shard_is_named(copied_dataset, tmp_path):
    shard = copied_dataset / "cxr14-train.tfrecord-00000-of-00003"
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)

    with pytest.raises(CxrError) as error:
        train(str(copied_dataset), str(tmp_path / "run"), TINY)
    assert str(error.value).startswith(f"{shard} record ")
    assert " is damaged: the checksum of the record's data does not match; " in str(error.value)


def test_a_run_whose_dataset_is_rebuilt_under_it_ends_as_if_nothing_had_happened(
    build, dataset, copied_dataset, tmp_path, monkeypatch
):
    config = replace(TINY, epochs=4, checkpoint_minutes=0)  # one after every step
    train(str(dataset), str(tmp_path / "expected"), config)
    before, ids, save = open_dataset(copied_dataset).id, [], checkpoints.save

    def rebuilding_save(path, model, progress):
        save(path, model, progress)
        if not ids:
            ids.append(build(copied_dataset, seed=5).manifest.id)

    monkeypatch.setattr(checkpoints, "save", rebuilding_save)
    train(str(copied_dataset), str(tmp_path / "run"), config)

    assert ids != [before]
    weights = [
        checkpoints.load(str(tmp_path / name / "checkpoints/best.npz")) for name in ("expected", "run")
    ]
    for name, array in weights[0].arrays.items():
        np.testing.assert_array_equal(weights[1].arrays[name], array, err_msg=name)
    with pytest.raises(UsageError) as error:
        train(str(copied_dataset), str(tmp_path / "run"), config)
    assert str(error.value) == (
        f"`run={tmp_path / 'run'}` holds a run with dataset_id {before}, this command says {ids[0]}; "
        "give the same options to go on with it, or name another folder"
    )


def test_a_loss_that_is_no_number_ends_the_run(dataset, tmp_path):
    config = replace(TINY, epochs=3, learning_rate=1e38, clip_norm=0, warmup_epochs=0)

    with pytest.raises(CxrError) as error:
        train(str(dataset), str(tmp_path / "run"), config)
    assert "; try a smaller learning_rate or clip_norm in a new run" in str(error.value)
