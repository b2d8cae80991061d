"""That the trainers learn: minutes on two cores, so `make test-learn` runs them and `make test` does not."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from cxr_records.cli import run as run_command
from cxr_records.dataset import open_dataset
from cxr_records.lookalike import LookalikePaths, make_lookalike
from cxr_records.reader import load_split

pytestmark = [pytest.mark.learn, pytest.mark.timeout(1200)]


@pytest.fixture(scope="module")
def look3000(tmp_path_factory) -> LookalikePaths:
    """3,000 look-alike images of 64 x 64 pixels."""
    return make_lookalike(tmp_path_factory.mktemp("look"), num_images=3000, image_size=64)


@pytest.fixture(scope="module")
def learn(look3000, tmp_path_factory):
    """Builds, trains and evaluates by the commands; returns what `train --json` prints."""
    store = tmp_path_factory.mktemp("store")

    def learn(capfd, folder: Path, task: str, *settings: str, metadata: Path = look3000.metadata) -> dict:
        words = ["--images", look3000.images, "--metadata", metadata, "--task", task, "--size", "64"]
        words += ["--train-val-list", look3000.train_val_list, "--test-list", look3000.test_list]
        words += ["--store", store, "--shard-mb", "2", "--out", folder / "data"]
        assert run_command(["build", *map(str, words)]) == 0
        capfd.readouterr()
        changes = [word for setting in ("seed=0", *settings) for word in ("--set", setting)]
        words = ["train", folder / "data", "--run", folder / "run", *changes, "--json"]
        assert run_command([str(word) for word in words]) == 0
        return json.loads(capfd.readouterr().out)

    return learn


def test_multilabel_comes_to_a_macro_auroc_of_090(learn, tmp_path, capfd):
    found = learn(capfd, tmp_path, "multilabel", "epochs=6")

    assert found["macro_auroc"]["value"] >= 0.90


def test_binary_comes_to_an_auroc_of_095(learn, tmp_path, capfd):
    found = learn(capfd, tmp_path, "binary", "epochs=4")

    assert found["auroc"]["Any Finding"]["value"] >= 0.95


def test_multiclass_comes_to_a_balanced_accuracy_of_080(learn, tmp_path, capfd):
    found = learn(capfd, tmp_path, "multiclass", "epochs=30", "patience=0")

    assert found["balanced_accuracy"]["value"] >= 0.80


def test_maps_point_into_over_80_percent_of_the_boxes(learn, look3000, tmp_path, capfd):
    """Where findings are planted; the shares by finding are printed."""
    learn(capfd, tmp_path, "multilabel", "epochs=6")
    words = ["explain", tmp_path / "run", "--boxes", look3000.boxes, "--out", tmp_path / "maps", "--json"]

    assert run_command([str(word) for word in words]) == 0

    found = json.loads(capfd.readouterr().out)["findings"]
    for name, each in found.items():
        shares = [each[key]["value"] for key in ("pointing", "fixed_place", "box_share")]
        print(f"{name}: {each['images']} images; points right, one fixed place, chance: {shares}")
    everything = found["all"]
    assert everything["images"] > 600
    assert everything["pointing"]["value"] > 0.80
    # Far above what no look at the image gives.
    assert everything["fixed_place"]["high"] < 0.60
    assert everything["mass_in_box"]["low"] > 3 * everything["box_share"]["high"]


def test_labels_dealt_out_at_random_teach_nothing(learn, look3000, tmp_path, capfd):
    """So the tests above can fail: the same images with another image's findings stay near chance."""
    with open(look3000.metadata, newline="") as file:
        rows = list(csv.reader(file))
    place = rows[0].index("Finding Labels")
    labels = [row[place] for row in rows[1:]]
    order = np.random.default_rng(0).permutation(len(labels))
    for row, other in zip(rows[1:], order, strict=True):
        row[place] = labels[other]
    with open(tmp_path / "shuffled.csv", "w", newline="") as file:
        csv.writer(file).writerows(rows)

    found = learn(capfd, tmp_path, "multilabel", "epochs=6", metadata=tmp_path / "shuffled.csv")

    assert 0.40 <= found["macro_auroc"]["value"] <= 0.60


@pytest.fixture(scope="module")
def nih64(nih) -> Path:
    """1,000 real images of 64 x 64 pixels."""
    folder = nih.parent / "nih64" / "images"
    if not folder.is_dir():
        pytest.skip("the small real images are not at ../shared/nih64")
    return folder


@pytest.mark.parametrize(
    ("task", "settings"),
    [
        ("multilabel", ["epochs=15"]),
        ("binary", ["epochs=15"]),
        ("multiclass", ["epochs=15", "batch_size=32"]),
    ],
)
def test_real_images_go_through_build_train_and_evaluate(nih, nih64, tmp_path, capfd, task, settings):
    """Beside a logistic regression on the pixels, by NIH's own split, which is by patient."""
    words = ["--images", nih64, "--metadata", nih / "Data_Entry_2017_v2020.csv.gz", "--task", task]
    words += ["--train-val-list", nih / "train_val_list.txt.gz", "--test-list", nih / "test_list.txt.gz"]
    words += ["--size", "64", "--allow-missing", "--shard-mb", "1", "--out", tmp_path / "data"]
    assert run_command(["build", *map(str, words)]) == 0
    capfd.readouterr()
    changes = [word for setting in (*settings, "augment=light") for word in ("--set", setting)]
    words = ["train", tmp_path / "data", "--run", tmp_path / "run", *changes, "--json"]
    assert run_command([str(word) for word in words]) == 0
    found = json.loads(capfd.readouterr().out)

    data = str(tmp_path / "data")
    patients = [set(open_dataset(data).split(split).patient_ids) for split in ("train", "validation", "test")]
    assert len(set.union(*patients)) == sum(map(len, patients))
    baseline = logistic_regression(data, task)
    print(f"{task}: macro AUROC {found['macro_auroc']['value']}, logistic regression {baseline:.3f}")
    assert 0.4 < found["macro_auroc"]["value"] < 1
    assert 0.4 < baseline < 1
    assert (tmp_path / "run" / "metrics.json").exists()


def logistic_regression(data: str, task: str) -> float:
    """Macro AUROC on test of a logistic regression on the pixels of the training records."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    from cxr_records.trainers import runs
    from cxr_records.trainers.evaluation import metrics

    def arrays(split: str) -> tuple[np.ndarray, np.ndarray]:
        batches = load_split(data, split, 64, shuffle=False, last_batch="smaller")
        pixels = np.concatenate([images.numpy() for images, _ in batches]).reshape(-1, 64 * 64)
        held = open_dataset(data).split(split)
        return pixels / 255, runs.class_rows(held.task, held.labels)

    (x, y), (test_x, test_y) = arrays("train"), arrays("test")
    areas = []
    for labels, truth in zip(y.T, test_y.T, strict=True):
        if 0 < labels.sum() < len(labels) and 0 < truth.sum() < len(truth):
            model = make_pipeline(StandardScaler(), LogisticRegression(C=1e-3, max_iter=300))
            areas.append(metrics.auroc(truth, model.fit(x, labels).decision_function(test_x)))
    return float(np.mean(areas))
