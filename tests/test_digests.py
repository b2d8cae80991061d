"""Files of a run: what is trusted is what was written, byte for byte, whatever killed the writer."""

import json
import os
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import RUN_CONFIG, manifest_json, write_manifest

from cxr_records import storage
from cxr_records.cli import run as run_command
from cxr_records.errors import CxrError, UsageError
from cxr_records.findings import FINDINGS
from cxr_records.trainers import checkpoints, digests, models, predict, runs, scoring, train
from cxr_records.trainers.evaluation.evaluate import evaluate_run
from cxr_records.trainers.evaluation.predictions import read_run_predictions, write_predictions
from cxr_records.trainers.evaluation.report import read_history, read_thumbnails


def flipped(data: bytes, number: int) -> bytes:
    """The bytes with one bit another."""
    changed = bytearray(data)
    changed[number // 8] ^= 1 << number % 8
    return bytes(changed)


def flips(path: Path, count: int) -> Iterator[None]:
    """Damages a file by one bit at a time, at seeded places; it is whole again afterwards."""
    data = path.read_bytes()
    chosen = random.Random(path.name)
    for _ in range(count):
        path.write_bytes(flipped(data, chosen.randrange(8 * len(data))))
        yield
    path.write_bytes(data)


# Single files


def test_a_file_is_what_was_written_or_said_to_be_damaged(tmp_path):
    path = tmp_path / "model.keras"
    digests.write(str(path), b"weights")

    assert path.read_bytes() == b"weights"
    assert digests.check(str(path), b"weights") == ""
    for bit in range(8 * len(b"weights")):
        with pytest.raises(digests.DamagedFileError) as error:
            digests.check(str(path), flipped(b"weights", bit))
    assert str(error.value) == f"{path} is damaged: its bytes are not those that were written"


def test_a_checkpoint_is_under_the_digests_of_its_run_wherever_that_is_moved(tmp_path):
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    digests.write(f"{tmp_path}/run/checkpoints/last.npz", b"one")
    digests.write(f"{tmp_path}/run/history.csv", b"two")
    (tmp_path / "run").rename(tmp_path / "moved")

    assert sorted(p.name for p in (tmp_path / "moved").iterdir()) == [
        "checkpoints", "digests.json", "history.csv"
    ]  # fmt: skip
    for name, data in (("checkpoints/last.npz", b"one"), ("history.csv", b"two")):
        assert digests.check(f"{tmp_path}/moved/{name}", data) == ""
        with pytest.raises(digests.DamagedFileError):
            digests.check(f"{tmp_path}/moved/{name}", b"other")


def test_no_byte_of_the_digests_themselves_may_change(tmp_path):
    digests.write(f"{tmp_path}/history.csv", b"rows")
    kept = tmp_path / "digests.json"
    data = kept.read_bytes()

    for bit in range(0, 8 * len(data), 7):
        kept.write_bytes(flipped(data, bit))
        with pytest.raises(CxrError) as error:
            digests.check(f"{tmp_path}/history.csv", b"rows")
    assert str(error.value) == (
        f"{kept} is damaged: its bytes are not those that were written; put it back as it was, or remove it: "
        "then the run's files are used unchecked"
    )
    kept.write_bytes(data.rstrip())
    with pytest.raises(CxrError):
        digests.check(f"{tmp_path}/history.csv", b"rows")
    kept.unlink()
    assert digests.check(f"{tmp_path}/history.csv", b"rows") == ""  # a file that is in no run
    (tmp_path / "config.json").touch()
    assert digests.check(f"{tmp_path}/history.csv", b"rows") == (
        f"{tmp_path}/history.csv: no digest of it is kept, as in runs of before: it is used unchecked"
    )


@pytest.mark.parametrize("kills", [(0,), (1,), (2,), (1, 1), (1, 2, 0), (2, 2), (1, 1, 2, 0, 1)])
def test_a_kill_at_any_write_leaves_a_file_that_is_known(tmp_path, monkeypatch, kills):
    path, write = f"{tmp_path}/last.npz", storage.write_bytes
    digests.write(path, b"first")

    for turn, kill in enumerate(kills):
        left = iter(range(9))

        def dying(path: str, data: bytes, left=left, kill=kill) -> None:
            if next(left) == kill:
                raise KeyboardInterrupt
            write(path, data)

        monkeypatch.setattr(storage, "write_bytes", dying)
        with pytest.raises(KeyboardInterrupt):
            digests.write(path, f"state {turn}".encode())
        assert digests.check(path, Path(path).read_bytes()) == ""
        with pytest.raises(digests.DamagedFileError):
            digests.check(path, b"another")
    monkeypatch.setattr(storage, "write_bytes", write)
    digests.write(path, b"last")
    with pytest.raises(digests.DamagedFileError):
        digests.check(path, b"first")


# A run's files


@pytest.fixture(scope="module")
def scored(trained_run, tmp_path_factory) -> Path:
    """A finished run with predictions. Leave it as it is."""
    run = Path(shutil.copytree(trained_run, tmp_path_factory.mktemp("scored") / "run"))
    predict.predict_run(str(run))
    return run


@pytest.fixture
def run(scored, tmp_path) -> Path:
    return Path(shutil.copytree(scored, tmp_path / "run"))


def test_no_flipped_bit_of_a_trusted_file_is_used(run, monkeypatch):
    """63 of 300 flips of a model and its predictions changed metrics in silence."""
    opened = runs.open_run(str(run))
    remade = object()
    monkeypatch.setattr(train, "remake_model", lambda run, dataset: remade)
    readers: dict[str, Callable[[], object]] = {
        "config.json": lambda: runs.open_run(str(run)),
        "digests.json": lambda: read_run_predictions(opened, "test"),
        "predictions.parquet": lambda: read_run_predictions(opened, "test"),
        "checkpoints/best.npz": lambda: checkpoints.load(f"{run}/checkpoints/best.npz"),
        "checkpoints/last.npz": lambda: checkpoints.load(f"{run}/checkpoints/last.npz"),
    }
    for name, read in readers.items():
        read()
        for _ in flips(run / name, 100):
            with pytest.raises(CxrError) as error:
                read()
            assert "\n" not in str(error.value)
    for _ in flips(run / "history.csv", 100):
        assert read_history(str(run)) == []
    for _ in flips(run / "model.keras", 100):
        assert predict.load_model(opened) is remade
    for name in ("model.keras", "checkpoints/best.npz"):
        for _ in flips(run / name, 5):
            with pytest.raises(CxrError, match=r"^`weights=.*: cannot be read: .* is damaged"):
                models._read_weights(str(run / name), {}, lambda text: None)
    held = {p.relative_to(run).as_posix() for p in run.rglob("*") if p.is_file()}
    assert {name for name in held if not name.startswith(("tensorboard", ".lock"))} == {
        *readers, "history.csv", "model.keras"
    }  # fmt: skip


def test_damaged_predictions_are_made_again_and_that_is_said(run, capfd):
    before = (run / "predictions.parquet").read_bytes()
    whole = evaluate_run(str(run), draws=0)
    (run / "predictions.parquet").write_bytes(flipped(before, 8 * 999))

    found = evaluate_run(str(run), draws=0)

    said = (
        f"{run}/predictions.parquet is damaged: its bytes are not those that were written; it was made again"
    )
    assert f"warning: {said}\n" in capfd.readouterr().err
    assert said in found.warnings
    assert said not in whole.warnings
    assert found.auroc == whole.auroc
    assert (run / "predictions.parquet").read_bytes() == before


def test_predictions_that_cannot_be_made_again_are_an_error_of_one_line(run, capfd):
    (run / "predictions.parquet").write_bytes(b"PAR1")
    (run / "model.keras").unlink()

    assert run_command(["evaluate", str(run), "--draws", "0"]) == 1
    assert capfd.readouterr().err == (
        f"Error: {run}/predictions.parquet is damaged: its bytes are not those that were written, and it "
        f"cannot be made again: {run}: found no model.keras; run its train command again until it ends\n"
    )


def test_a_damaged_model_is_made_again_from_the_best_checkpoint_and_that_is_said(run, capfd):
    expected = pd.DataFrame(predict.predict_run(str(run), ["test"]))
    data = (run / "model.keras").read_bytes()
    (run / "model.keras").write_bytes(flipped(data, 4 * len(data)))

    found = predict.predict_run(str(run), ["test"])

    assert (
        f"warning: {run}/model.keras is damaged: its bytes are not those that were written; it was made "
        "again from checkpoints/best.npz\n"
    ) in capfd.readouterr().err
    pd.testing.assert_frame_equal(found, expected)
    predict.load_model(runs.open_run(str(run)))
    assert capfd.readouterr().err == ""


def test_a_damaged_model_without_a_whole_checkpoint_is_an_error_of_one_line(run, lookalike, capfd):
    for name in ("model.keras", "checkpoints/best.npz"):
        (run / name).write_bytes((run / name).read_bytes()[:-1])
    image = next(lookalike.images.rglob("*.png"))

    assert run_command(["predict", str(run), str(image)]) == 1
    assert capfd.readouterr().err.splitlines()[-1] == (
        f"Error: {run}/model.keras is damaged: its bytes are not those that were written, and it cannot be "
        f"made again: {run}/checkpoints/best.npz is missing or damaged, and model.keras is made from it; put "
        f"it back, or remove {run}/checkpoints/last.npz to begin the run anew"
    )


def test_training_goes_on_with_a_damaged_model_and_without_what_killed_runs_left(run, dataset, capfd):
    data = (run / "model.keras").read_bytes()
    (run / "model.keras").write_bytes(data[:-100])
    left = [run / f".model.keras.tmp-{'0' * 32}", run / "checkpoints" / f".last.npz.tmp-{'1' * 32}"]
    for path in left:
        path.write_bytes(b"half")

    train.train(str(dataset), str(run), RUN_CONFIG)

    assert f"warning: {run}/model.keras is damaged" in capfd.readouterr().err
    assert not any(path.exists() for path in left)
    assert not (run / "predictions.parquet").exists()  # those of the model before
    assert digests.check(str(run / "model.keras"), (run / "model.keras").read_bytes()) == ""


def test_a_damaged_history_is_not_shown_and_that_is_said(run):
    (run / "history.csv").write_text("epoch,loss\n1,0.001\n")

    assert any("history.csv is damaged" in each for each in evaluate_run(str(run), draws=0).warnings)


def test_a_run_of_before_is_used_and_said_to_be_unchecked(run):
    (run / "digests.json").unlink()
    config = json.loads((run / "config.json").read_text())
    del config["checksum"]
    (run / "config.json").write_text(json.dumps(config, indent=1) + "\n")

    found = evaluate_run(str(run), draws=0)

    assert found.warnings[0] == (
        f"{run}/predictions.parquet: no digest of it is kept, as in runs of before: it is used unchecked"
    )


@pytest.mark.parametrize("name", ["config.json", "digests.json", "predictions.parquet"])
def test_a_fifo_in_a_run_is_said_to_be_one_and_not_waited_for(run, name):
    (run / name).unlink()
    os.mkfifo(run / name)

    with pytest.raises(CxrError) as error:
        evaluate_run(str(run), draws=0)

    assert str(error.value) == f"{run}/{name} is a FIFO, expected a file"


# Scores that are none


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_score_of_a_run_that_is_no_number_is_an_error_that_names_it(run, capfd, value):
    table = pd.read_parquet(run / "predictions.parquet")
    rows = table.index[table["split"] == "test"]
    table.loc[rows[[2, 5]], "prob_Mass"] = value
    write_predictions(f"{run}/predictions.parquet", table)

    assert run_command(["evaluate", str(run), "--draws", "0"]) == 1
    assert capfd.readouterr().err == (
        f"Error: {run}/predictions.parquet: found the score {value} of Mass for image "
        f"{table['image_id'][rows[2]]}, the first of 2 that are NaN or infinite; train again, with a smaller "
        "learning_rate or clip_norm\n"
    )


def test_a_model_without_numbers_writes_no_predictions(run, monkeypatch):
    before = (run / "predictions.parquet").read_bytes()
    monkeypatch.setattr(
        scoring, "score", lambda model, batches, count: np.full((count, 14), np.nan, np.float32)
    )

    with pytest.raises(CxrError, match=f"model.keras: found the score nan of {FINDINGS[0]} for image "):
        predict.predict_run(str(run))
    assert (run / "predictions.parquet").read_bytes() == before


# Another dataset in the place of the run's


def test_another_dataset_in_the_place_of_the_runs_is_refused_or_said(run, copied_dataset):
    config = json.loads((run / "config.json").read_text())
    config.pop("checksum")
    config["dataset"] = str(copied_dataset)
    (run / "config.json").write_bytes(digests.sealed(config))
    changed = manifest_json(copied_dataset)
    changed["table"]["sha256"] = "0" * 64
    write_manifest(copied_dataset, changed)
    now = manifest_json(copied_dataset)["id"]
    text = (
        f"{copied_dataset} is not the dataset that {run} was trained on: found id {now}, expected "
        f"{config['dataset_id']}"
    )

    with pytest.raises(UsageError) as error:
        predict.predict_run(str(run))
    assert str(error.value) == text
    found = evaluate_run(str(run), draws=0)
    assert (
        f"the run's dataset is not at hand ({text}): leaks were not looked for, and baselines "
        "are fitted on the scored images, cross-fitted by patient"
    ) in found.warnings
    assert found.split_claim.text == f"images of a split that is not known: {text}"
    assert not found.comparison.comparable
    assert read_thumbnails(found) == {}
    with pytest.raises(UsageError, match=f"holds a run with dataset_id {config['dataset_id']}, this command"):
        train.train(str(copied_dataset), str(run), RUN_CONFIG)
    (run / "model.keras").write_bytes(b"damaged")
    with pytest.raises(CxrError, match=r"cannot be made again: .* is not the dataset that"):
        predict.load_model(runs.open_run(str(run)))
