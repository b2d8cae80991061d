"""What each part of the training recipe brings on few real images: python benchmarks/recipe.py --help.

Builds datasets of the images given, by NIH's own lists, with validation cut from the training patients. Then
measures the macro AUROC on the test images of baselines (logistic regressions on pixels, on histograms of
oriented gradients, on metadata: view, sex, age, follow-up number, on the features of EfficientNet-Lite0 as
ImageNet left it, and on some of these together) and of networks trained with several settings and seeds.
Prints one JSON object: for each the mean and the spread over seeds, the ensemble of the seeds, the least of
the seeds, the CPU seconds of a training, all threads counted, and the ensemble's interval over test patients.
Arms that are done are kept in the folder, so that the same command goes on.
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
    "small, batch 64": (64, "small_cnn", ("batch_size=64", "epochs=20", "keep=last")),
    "small": (64, "small_cnn", ("batch_size=16", "epochs=20", "ema=0", "keep=last")),
    "small, light": (64, "small_cnn", ("batch_size=16", "epochs=20", "keep=last", "augment=light")),
    "small, light, no average": (64, "small_cnn", ("batch_size=16", "epochs=20", "ema=0", "keep=last",
                                                   "augment=light")),
    "small, light, ema .99": (64, "small_cnn", ("batch_size=16", "epochs=20", "ema=0.99", "keep=last",
                                                "augment=light")),
    "small, light, best": (64, "small_cnn", ("batch_size=16", "epochs=20", "keep=best", "min_positives=5",
                                             "augment=light")),
    "lite0 at 64": (64, "efficientnet_lite0", ("keep=last",)),
    "lite0 at 64, 1e-3": (64, "efficientnet_lite0", ("keep=last", "learning_rate=1e-3")),
    "lite0 at 128": (128, "efficientnet_lite0", ("keep=last",)),
}  # fmt: skip
STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1)  # of the penalty of logistic regressions: scikit-learn's C
BEST = "pixels + hog"  # of the baselines that see the image alone


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
        "image_ids": held.image_ids,
        "patients": held.patient_ids,
        "pixels": pixels.reshape(len(pixels), -1) / 255,
        "hog": histograms(pixels),
        "metadata": _metadata(held),
        **{f"ImageNet features at {side}": imagenet_features(pixels, side) for side in (64, 128)},
    }


def imagenet_features(images: np.ndarray, side: int) -> np.ndarray:
    """What EfficientNet-Lite0 as ImageNet left it makes of images, float [n, 1280].

    Args:
        images: of 0 to 255, [n, height, width].
        side: they are brought to, bilinearly.
    """
    import keras

    from cxr_records.trainers import efficientnet_lite

    seen = keras.Input((*images.shape[1:], 1))
    x = keras.layers.Resizing(side, side)(seen)
    x = keras.layers.Rescaling(1 / 128, offset=-127 / 128)(x)
    features = efficientnet_lite.features(keras.layers.Concatenate()([x, x, x]))
    model = keras.Model(seen, features)
    efficientnet_lite.load_imagenet(model)
    found: np.ndarray = model.predict(images[..., np.newaxis], 32, verbose=0)
    return found


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
) -> tuple[dict[str, Any], np.ndarray]:
    """Macro AUROC on test of logistic regressions on 150 principal components, and scores by image id.

    The strength of the penalty is chosen by three-fold cross-validation over the training patients. What the
    best of the strengths on the test images themselves gives is told too, as `favoured`.
    """
    from sklearn.decomposition import PCA
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GroupKFold
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    from cxr_records.trainers.evaluation import metrics

    def scores(x: np.ndarray, truth: np.ndarray, wanted: np.ndarray) -> list[np.ndarray]:
        """Of each strength: [n, k]."""
        few = make_pipeline(StandardScaler(), PCA(min(150, x.shape[1]), svd_solver="full"))
        x, wanted = few.fit_transform(x), few.transform(wanted)
        found = []
        for strength in STRENGTHS:
            columns = np.full((len(wanted), truth.shape[1]), 0.0)
            for place, labels in enumerate(truth.T):
                if labels.any():  # a fold may lack a rare finding
                    model = LogisticRegression(C=strength, max_iter=200).fit(x, labels)
                    columns[:, place] = model.decision_function(wanted)
            found.append(columns)
        return found

    def area(truth: np.ndarray, columns: np.ndarray) -> float:
        return metrics.macro(metrics.auroc_per_class(truth, columns))

    x, test_x = (np.concatenate([part[kind] for kind in kinds], axis=1) for part in (train, test))
    folds = []
    for fit, held in GroupKFold(3).split(x, groups=train["patients"]):
        tried = scores(x[fit], train["labels"][fit], x[held])
        folds.append([area(train["labels"][held], columns) for columns in tried])
    last = scores(x, train["labels"], test_x)
    chosen = int(np.mean(folds, axis=0).argmax())
    found = [area(test["labels"], columns) for columns in last]
    told = {
        "macro_auroc": round(found[chosen], 4),
        "penalty": STRENGTHS[chosen],
        "favoured": round(max(found), 4),
    }
    return told, last[chosen][np.argsort(test["image_ids"])]


def baselines(dataset: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """What the case gives without a network, and the scores."""
    train, test = arrays(dataset, "train"), arrays(dataset, "test")
    kinds: tuple[tuple[str, ...], ...] = (("pixels",), ("hog",), ("metadata",), ("pixels", "hog"))
    kinds += (("pixels", "hog", "metadata"), ("ImageNet features at 64",), ("ImageNet features at 128",))
    kinds += (("ImageNet features at 128", "hog"),)
    found = {" + ".join(some): baseline(train, test, some) for some in kinds}
    return {name: told for name, (told, _) in found.items()}, {
        name: each for name, (_, each) in found.items()
    }


def intervals(dataset: Path, scores: dict[str, np.ndarray]) -> dict[str, dict[str, list[float]]]:
    """95% intervals in draws of test patients: of the macro AUROC, and of what it has more than BEST.

    A draw's mean is over the findings that it holds: every fifth draw or more lacks a rare one.
    """
    from cxr_records.dataset import open_dataset
    from cxr_records.trainers.evaluation import bootstrap, metrics

    held = open_dataset(str(dataset)).split("test")
    order = np.argsort(held.image_ids)
    labels, patients = held.labels[order], held.patient_ids[order]
    rankings = {
        name: [metrics.Ranking(*pair) for pair in zip(labels.T, columns.T, strict=True)]
        for name, columns in scores.items()
    }

    def macros(weights: np.ndarray) -> np.ndarray:
        return np.stack(
            [np.nanmean([r.counts(weights).auroc() for r in each], axis=0) for each in rankings.values()],
            axis=1,
        )

    drawn = bootstrap.sample(macros, patients, images=False).drawn
    best = drawn[:, [list(scores).index(BEST)]]
    bounds, more = (np.percentile(each, [2.5, 97.5], axis=0).T for each in (drawn, drawn - best))
    return {
        name: {"interval": np.round(own, 3).tolist(), f"more than {BEST}": np.round(less, 3).tolist()}
        for name, own, less in zip(scores, bounds, more, strict=True)
    }


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


def arm(arguments: argparse.Namespace, name: str) -> tuple[dict[str, Any], np.ndarray]:
    """Trains with every seed; returns mean, spread, ensemble, and the ensemble's scores by image id."""
    from cxr_records.trainers.evaluation import metrics
    from cxr_records.trainers.evaluation.predictions import read_run_predictions
    from cxr_records.trainers.runs import open_run

    size, preset, changes = ARMS[name]
    folder = arguments.folder / "runs" / name.replace(",", "").replace(" ", "-")
    dataset = build(arguments, size)
    measured, scores = [], []
    for seed in range(arguments.seeds):
        run, kept = folder / f"seed-{seed}", folder / f"seed-{seed}.json"
        if not kept.exists():
            kept.parent.mkdir(parents=True, exist_ok=True)
            found = measure(dataset, run, preset, changes, seed)
            kept.write_text(json.dumps(found))
            print(name, seed, found, file=sys.stderr, flush=True)
        measured.append(json.loads(kept.read_text()))
        scored = read_run_predictions(open_run(str(run)), "test")
        scores.append(scored.scores)
    areas = np.array([each["macro_auroc"] for each in measured])
    ensemble = np.mean(scores, axis=0)
    together = metrics.auroc_per_class(scored.labels, ensemble)
    told = {
        "settings": " ".join(changes),
        "seeds": len(areas),
        "mean": round(float(areas.mean()), 4),
        "spread": round(float(areas.std(ddof=1)), 4) if len(areas) > 1 else None,
        "least": round(float(areas.min()), 4),
        "ensemble": round(metrics.macro(together), 4),
        "cpu_seconds": round(float(np.mean([each["cpu_seconds"] for each in measured])), 1),
        "each": [round(each["macro_auroc"], 4) for each in measured],
        "kept": [each["kept"] for each in measured],
    }
    return told, ensemble[np.argsort(scored.image_ids)]


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
    arguments.folder.mkdir(parents=True, exist_ok=True)
    smallest = build(arguments, 64)
    told, scores = arguments.folder / "baselines.json", arguments.folder / "baselines.npz"
    if not told.exists():
        results, found = baselines(smallest)
        np.savez(scores, **found)
        told.write_text(json.dumps(results))
    results, found = json.loads(told.read_text()), dict(np.load(scores))
    for name in arguments.arms:
        results[name], found[name] = arm(arguments, name)
        print(name, results[name], file=sys.stderr, flush=True)
    for name, bounds in intervals(smallest, found).items():
        results[name] |= bounds
    print(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
