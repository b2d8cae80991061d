"""What each part of the training recipe brings on few real images: python benchmarks/recipe.py --help.

Builds datasets of the images given, by NIH's own lists, with validation cut from the training patients. Then
measures the macro AUROC on the test images of three baselines (logistic regressions on pixels, on histograms
of oriented gradients, on metadata: view, sex, age, follow-up number) and of networks trained with several
settings and seeds. Prints one JSON object: for each the mean and the spread over seeds, the ensemble of the
seeds, the least of the seeds, and the CPU seconds of a training, all threads counted. Arms that are done are
kept in the folder, so that the same command goes on.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

# Name: (side of the images, preset, settings).
ARMS: dict[str, tuple[int, str, tuple[str, ...]]] = {
    "before": (64, "small_cnn", ("epochs=20", "ema=0", "patience=5", "min_steps=0", "min_positives=1",
                                 "batch_size=64")),
    "small, batch 64": (64, "small_cnn", ("batch_size=64", "ema=0", "keep=last")),
    "small": (64, "small_cnn", ("batch_size=16", "epochs=10", "ema=0", "keep=last")),
    "small, ema .99": (64, "small_cnn", ("batch_size=16", "epochs=10", "ema=0.99", "keep=last")),
    "small, ema .999": (64, "small_cnn", ("batch_size=16", "epochs=10", "ema=0.999", "keep=last")),
    "small, ema .999, best": (64, "small_cnn", ("batch_size=16", "epochs=10", "ema=0.999", "keep=best")),
    "small, light": (64, "small_cnn", ("batch_size=16", "epochs=10", "ema=0", "keep=last", "augment=light")),
    "small, light, ema .999": (64, "small_cnn", ("batch_size=16", "epochs=10", "ema=0.999", "keep=last",
                                                "augment=light")),
    "lite0 at 64": (64, "efficientnet_lite0", ()),
    "lite0 at 128": (128, "efficientnet_lite0", ()),
}  # fmt: skip


def build(arguments: argparse.Namespace, size: int) -> Path:
    """Builds the dataset of a size, or finds it built."""
    out = arguments.folder / f"data{size}"
    words = [
        "build",
        "--metadata",
        arguments.nih / "Data_Entry_2017_v2020.csv.gz",
        "--out",
        out,
        "--size",
        size,
    ]
    for folder in arguments.images:
        words += ["--images", folder]
    words += ["--train-val-list", arguments.nih / "train_val_list.txt.gz"]
    words += ["--test-list", arguments.nih / "test_list.txt.gz", "--copies", "none", "--allow-missing"]
    words = [sys.executable, "-m", "cxr_records", *map(str, words), "--workers", "1"]
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return out


def histograms(images: np.ndarray) -> np.ndarray:
    """Histograms of oriented gradients (Dalal and Triggs 2005), float [n, 36 * blocks].

    Nine unsigned directions, cells of 8 x 8 pixels, blocks of 2 x 2 cells, each brought to unit length, cut
    at 0.2, and brought to unit length again.

    Args:
        images: float [n, side, side], side a multiple of 8.
    """
    down, across = np.gradient(images.astype(np.float32), axis=(1, 2))
    size, angle = np.hypot(down, across), np.arctan2(down, across) % np.pi
    direction = np.minimum((angle / np.pi * 9).astype(int), 8)
    votes = size[..., np.newaxis] * (direction[..., np.newaxis] == np.arange(9))
    n, side = images.shape[:2]
    cells = votes.reshape(n, side // 8, 8, side // 8, 8, 9).sum(axis=(2, 4))
    blocks = np.concatenate(
        [np.roll(cells, (-y, -x), (1, 2))[:, :-1, :-1] for y in (0, 1) for x in (0, 1)], axis=-1
    )
    for _ in range(2):
        blocks = np.minimum(blocks / (np.linalg.norm(blocks, axis=-1, keepdims=True) + 1e-6), 0.2)
    return blocks.reshape(n, -1)


def arrays(dataset: Path, split: str) -> dict[str, np.ndarray]:
    """Labels and what the baselines see of a split."""
    from cxr_records.dataset import open_dataset

    held = open_dataset(str(dataset)).split(split)
    pixels = _pixels(dataset, split)
    return {
        "labels": held.labels,
        "pixels": pixels.reshape(len(pixels), -1) / 255,
        "hog": histograms(pixels),
        "metadata": _metadata(held),
    }


def _pixels(dataset: Path, split: str) -> np.ndarray:
    from cxr_records.reader import load_split

    batches = load_split(str(dataset), split, 64, shuffle=False, last_batch="smaller")
    return np.concatenate([images.numpy() for images, _ in batches])[..., 0].astype(np.float32)


def _metadata(held: Any) -> np.ndarray:
    """View, sex, age and its square, and how many images the patient had before."""
    age = np.where(held.ages_years < 0, 50, held.ages_years) / 100
    follow_up = [int(name.rsplit("_", 1)[1].split(".")[0]) for name in held.image_ids]
    return np.stack([held.views == "AP", held.sexes == "M", age, age**2, np.log1p(follow_up)], axis=1).astype(
        float
    )


def baseline(
    train: dict[str, np.ndarray], test: dict[str, np.ndarray], kinds: tuple[str, ...]
) -> dict[str, Any]:
    """Macro AUROC on test of logistic regressions on 150 principal components.

    The strength of the penalty is the best of three on the test images themselves, in the baseline's favour.
    """
    from sklearn.decomposition import PCA
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    from cxr_records.trainers.evaluation import metrics

    x, test_x = (np.concatenate([part[kind] for kind in kinds], axis=1) for part in (train, test))
    few = make_pipeline(StandardScaler(), PCA(min(150, x.shape[1]), svd_solver="full"))
    x, test_x = few.fit_transform(x), few.transform(test_x)
    found = {}
    for strength in (1e-4, 1e-3, 1e-2):
        areas = []
        for labels, truth in zip(train["labels"].T, test["labels"].T, strict=True):
            model = LogisticRegression(C=strength, max_iter=200).fit(x, labels)
            areas.append(metrics.auroc(truth, model.decision_function(test_x)))
        found[str(strength)] = round(metrics.macro(np.array(areas)), 4)
    return {"macro_auroc": max(found.values()), "by_penalty": found}


def baselines(dataset: Path) -> dict[str, Any]:
    """What the case gives without a network."""
    train, test = arrays(dataset, "train"), arrays(dataset, "test")
    kinds = (("pixels",), ("hog",), ("metadata",), ("pixels", "hog"), ("pixels", "hog", "metadata"))
    return {" + ".join(some): baseline(train, test, some) for some in kinds}


def measure(dataset: Path, run: Path, preset: str, changes: tuple[str, ...], seed: int) -> dict[str, Any]:
    """Trains once; returns its scores on test, its macro AUROC and what it took."""
    from cxr_records.trainers import config
    from cxr_records.trainers.evaluation import metrics
    from cxr_records.trainers.evaluation.predictions import read_run_predictions
    from cxr_records.trainers.predict import predict_run
    from cxr_records.trainers.runs import open_run
    from cxr_records.trainers.train import train

    began = time.process_time()
    settings = config.change(config.read_preset(preset), [*changes, f"seed={seed}"])
    _, progress = train(str(dataset), str(run), settings, devices="cpu")
    seconds = time.process_time() - began
    predict_run(str(run))
    scored = read_run_predictions(open_run(str(run)), "test")
    return {
        "macro_auroc": metrics.macro(metrics.auroc_per_class(scored.labels, scored.scores)),
        "cpu_seconds": round(seconds, 1),
        "epochs": len(progress.history),
        "kept": progress.best_epoch,
    }


def arm(arguments: argparse.Namespace, name: str) -> dict[str, Any]:
    """Trains with every seed; returns mean, spread and ensemble."""
    from cxr_records.trainers.evaluation import metrics
    from cxr_records.trainers.evaluation.predictions import read_run_predictions
    from cxr_records.trainers.runs import open_run

    size, preset, changes = ARMS[name]
    folder = arguments.folder / "runs" / name.replace(",", "").replace(" ", "-")
    measured, scores = [], []
    for seed in range(arguments.seeds):
        run, kept = folder / f"seed-{seed}", folder / f"seed-{seed}.json"
        if not kept.exists():
            kept.parent.mkdir(parents=True, exist_ok=True)
            found = measure(build(arguments, size), run, preset, changes, seed)
            kept.write_text(json.dumps(found))
            print(name, seed, found, file=sys.stderr, flush=True)
        measured.append(json.loads(kept.read_text()))
        scored = read_run_predictions(open_run(str(run)), "test")
        scores.append(scored.scores)
    areas = np.array([each["macro_auroc"] for each in measured])
    together = metrics.auroc_per_class(scored.labels, np.mean(scores, axis=0))
    return {
        "settings": " ".join(changes),
        "seeds": len(areas),
        "mean": round(float(areas.mean()), 4),
        "spread": round(float(areas.std(ddof=1)), 4) if len(areas) > 1 else None,
        "least": round(float(areas.min()), 4),
        "ensemble": round(metrics.macro(together), 4),
        "cpu_seconds": round(float(np.mean([each["cpu_seconds"] for each in measured])), 1),
        "kept": [each["kept"] for each in measured],
    }


def main() -> None:
    """Measures, and prints one JSON object."""
    from cxr_records.quiet import load_tensorflow

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nih", type=Path, required=True, help="NIH's tables and lists")
    parser.add_argument("--images", type=Path, nargs="+", required=True, help="folders of images")
    parser.add_argument("--folder", type=Path, required=True, help="for datasets and runs; kept")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--arms", nargs="*", default=list(ARMS), help=f"of: {', '.join(ARMS)}")
    arguments = parser.parse_args()
    load_tensorflow()
    kept = arguments.folder / "baselines.json"
    if not kept.exists():
        kept.parent.mkdir(parents=True, exist_ok=True)
        kept.write_text(json.dumps(baselines(build(arguments, 64))))
    results = json.loads(kept.read_text())
    for name in arguments.arms:
        results[name] = arm(arguments, name)
        print(name, results[name], file=sys.stderr, flush=True)
    print(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
