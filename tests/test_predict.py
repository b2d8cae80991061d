"""Scores of a trained run: for its dataset's splits, and for files by the command."""

import io
import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from cxr_records import open as open_dataset
from cxr_records.cli import run as run_command
from cxr_records.errors import UsageError
from cxr_records.findings import FINDINGS
from cxr_records.trainers.config import TrainConfig
from cxr_records.trainers.predict import load_model, predict_files, predict_run
from cxr_records.trainers.runs import open_run
from cxr_records.trainers.train import train


@pytest.fixture(scope="module")
def trained(trained_run, tmp_path_factory) -> Path:
    """A finished run, into which predictions may be written."""
    return Path(shutil.copytree(trained_run, tmp_path_factory.mktemp("runs") / "run"))


def test_every_image_of_validation_and_test_has_its_scores_and_labels(dataset, trained):
    table = predict_run(str(trained))

    pd.testing.assert_frame_equal(table, pd.read_parquet(trained / "predictions.parquet"), check_dtype=False)
    assert list(table)[:6] == ["split", "image_id", "patient_id", "view", "sex", "age_years"]
    model = load_model(open_run(str(trained)))
    for split in ("validation", "test"):
        rows, held = table[table["split"] == split], open_dataset(dataset).split(split)
        assert rows["image_id"].tolist() == held.image_ids.tolist()
        assert rows["patient_id"].tolist() == held.patient_ids.tolist()
        batches = open_dataset(dataset).load(split, 64, last_batch="smaller")
        images = np.concatenate([image.numpy() for image, _ in batches])
        expected = np.asarray(model(images))
        found = rows[[f"prob_{name}" for name in FINDINGS]].to_numpy()
        np.testing.assert_allclose(found, expected, atol=1e-6)
        np.testing.assert_array_equal(rows[[f"label_{name}" for name in FINDINGS]], held.labels)


def test_a_derived_task_is_scored_with_its_own_images_and_labels(dataset, tmp_path):
    derived = open_dataset(dataset).as_task("binary:Effusion")
    config = TrainConfig(model=f"{Path(__file__).parent / 'tiny_model.py'}:make", batch_size=16, epochs=1)
    train(derived, str(tmp_path / "run"), config)

    table = predict_run(str(tmp_path / "run"), ["test"])

    records = derived.split("test")
    assert len(records) < len(open_dataset(dataset).split("test"))
    assert table["image_id"].tolist() == records.image_ids.tolist()
    np.testing.assert_array_equal(table["label_Effusion"], records.labels)
    assert [name for name in table if name.startswith("prob_")] == ["prob_Effusion"]


def test_a_file_goes_through_the_codec_of_the_dataset(build, lookalike, tmp_path):
    build(tmp_path / "data", codec="jpeg")
    config = TrainConfig(
        model=f"{Path(__file__).parent / 'tiny_model.py'}:make_of_pixels", batch_size=16, epochs=1
    )
    train(str(tmp_path / "data"), str(tmp_path / "run"), config)
    row = predict_run(str(tmp_path / "run"), ["test"]).iloc[0]

    (score,) = predict_files(str(tmp_path / "run"), [str(next(lookalike.images.rglob(row["image_id"])))])

    expected = [row[f"prob_{name}"] for name in FINDINGS]
    np.testing.assert_allclose([score.scores[name] for name in FINDINGS], expected, atol=2e-6)


def test_another_dataset_than_the_runs_is_refused(trained, build, tmp_path):
    build(tmp_path / "other", seed=5)

    with pytest.raises(UsageError, match=r"is not the dataset that .* was trained on: found id"):
        predict_run(str(trained), dataset=str(tmp_path / "other"))


def test_a_file_gets_the_score_that_it_has_in_the_dataset(trained, lookalike, capfd):
    table = predict_run(str(trained))
    row = table[table["split"] == "test"].iloc[0]
    path = next(lookalike.images.rglob(row["image_id"]))

    assert run_command(["predict", str(trained), str(path)]) == 0

    lines = capfd.readouterr().out.splitlines()
    assert lines[0] == "image," + ",".join(f"prob_{name}" for name in FINDINGS)
    name, *scores = lines[1].split(",")
    assert name == str(path)
    expected = [row[f"prob_{name}"] for name in FINDINGS]
    np.testing.assert_allclose([float(score) for score in scores], expected, atol=2e-6)


def test_png_jpeg_and_dicom_files_are_scored(trained, nih, tmp_path, capfd):
    png = sorted((nih / "images").rglob("*.png"))[0]
    Image.open(png).convert("L").save(tmp_path / "same.jpg", quality=98)
    dicom = sorted((nih / "dicom").glob("*.dcm"))[0]

    words = ["predict", str(trained), str(png), str(tmp_path / "same.jpg"), str(dicom), "--json"]
    assert run_command(words) == 0

    one, same, other = json.loads(capfd.readouterr().out)
    assert [held["path"] for held in (one, same, other)] == words[2:5]
    assert set(one["scores"]) == set(FINDINGS)
    for name in FINDINGS:
        assert one["scores"][name] == pytest.approx(same["scores"][name], abs=0.02)
        assert 0 < other["scores"][name] < 1


def test_a_file_that_is_no_image_is_named_and_the_others_are_scored(trained, lookalike, tmp_path, capfd):
    good = next(lookalike.images.rglob("*.png"))
    (tmp_path / "bad.png").write_bytes(b"no image")

    words = ["predict", str(trained), str(tmp_path / "bad.png"), str(good), str(tmp_path / "gone.png")]
    assert run_command([*words, "--out", str(tmp_path / "scores.csv")]) == 3

    out, err = capfd.readouterr()
    assert out == ""
    lines = err.splitlines()
    assert lines[0].startswith(f"{tmp_path / 'bad.png'}: ")
    assert lines[1] == f"{tmp_path / 'gone.png'}: No such file or directory"
    assert lines[2] == "Error: 2 of 3 files could not be read"
    table = pd.read_csv(io.BytesIO((tmp_path / "scores.csv").read_bytes()))
    assert table["image"].tolist() == [str(good)]
    assert run_command(["predict", str(trained), str(tmp_path / "bad.png")]) == 1
    assert "Error: none of the 1 files could be read" in capfd.readouterr().err


def test_a_run_without_a_model_says_what_to_do(dataset, trained, tmp_path, capfd):
    (tmp_path / "config.json").write_bytes((trained / "config.json").read_bytes())

    assert run_command(["predict", str(tmp_path), "x.png"]) == 2
    assert capfd.readouterr().err == (
        f"Error: {tmp_path}: found no model.keras; run its train command again until it ends\n"
    )
