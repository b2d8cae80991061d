"""What augmented copies of rare classes bring: python benchmarks/ablate_copies.py --help.

Trains the small model on a look-alike set with NIH's imbalance, built with --copies none, linear and fixed,
with several seeds each, for the same number of steps, and prints the AUROC and AUPRC on the test split of the
findings that `linear` copies (those below 3% of the training images), with mean and spread over the seeds.
"""

import argparse
import dataclasses
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

RULES = ("none", "linear", "fixed")


def build(made, rule: str, folder: Path) -> Path:
    """Builds the set with a rule; returns the dataset."""
    out = folder / f"cxr14-{rule}"
    words = ["build", "--images", made.images, "--metadata", made.metadata, "--out", out, "--size", "64"]
    words += ["--train-val-list", made.train_val_list, "--test-list", made.test_list, "--shard-mb", "2"]
    words += ["--store", folder / "store", "--copies", rule]
    words = [sys.executable, "-m", "cxr_records", *map(str, words)]
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return out


def measure(dataset: Path, run: Path, seed: int, seen: int) -> dict[str, np.ndarray]:
    """Trains once; returns AUROC and AUPRC on test, float [14] each."""
    from cxr_records.quiet import load_tensorflow

    load_tensorflow()
    from cxr_records.dataset import open_dataset
    from cxr_records.trainers.config import TrainConfig
    from cxr_records.trainers.evaluation import metrics
    from cxr_records.trainers.evaluation.predictions import read_run_predictions
    from cxr_records.trainers.predict import predict_run
    from cxr_records.trainers.runs import open_run
    from cxr_records.trainers.train import train

    records = open_dataset(dataset).splits["train"].records
    config = dataclasses.replace(TrainConfig(), epochs=max(1, round(seen / records)), seed=seed)
    train(str(dataset), str(run), config)
    predict_run(str(run))
    scored = read_run_predictions(open_run(str(run)), "test")
    pairs = list(zip(scored.labels.T, scored.scores.T, strict=True))
    return {
        "auroc": np.array([metrics.auroc(*pair) for pair in pairs]),
        "auprc": np.array([metrics.average_precision(*pair) for pair in pairs]),
    }


def main() -> None:
    """Measures, and prints one JSON object."""
    from cxr_records.dataset import open_dataset
    from cxr_records.findings import FINDINGS
    from cxr_records.lookalike import make_lookalike

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=4000, help="look-alike images")
    parser.add_argument("--seen", type=int, default=10_000, help="training records seen by each run")
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    results: dict[str, dict] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        made = make_lookalike(folder / "nih", arguments.count, image_size=64, workers=2)
        datasets = {rule: build(made, rule, folder) for rule in RULES}
        manifest = open_dataset(datasets["none"]).manifest
        total = manifest.splits["train"].records
        images = {finding: manifest.classes[finding].splits["train"].images for finding in FINDINGS}
        rare = [finding for finding in FINDINGS if images[finding] / total < 0.03]
        places = [FINDINGS.index(finding) for finding in rare]
        results["train_images"], results["rare"] = total, {finding: images[finding] for finding in rare}
        for rule, dataset in datasets.items():
            runs = []
            for seed in range(arguments.seeds):
                runs.append(measure(dataset, folder / f"run-{rule}-{seed}", seed, arguments.seen))
                print(
                    rule, seed, {k: v[places].round(3).tolist() for k, v in runs[-1].items()}, file=sys.stderr
                )
            results[rule] = {"records": open_dataset(dataset).splits["train"].records}
            for measured in ("auroc", "auprc"):
                each = np.array([run[measured][places] for run in runs])
                overall = np.array([np.nanmean(run[measured]) for run in runs])
                results[rule][measured] = {
                    "rare_mean": round(float(np.nanmean(each)), 4),
                    "rare_spread": round(float(np.nanmean(each, axis=1).std(ddof=1)), 4),
                    "all_mean": round(float(overall.mean()), 4),
                    "by_finding": dict(zip(rare, np.nanmean(each, axis=0).round(3).tolist(), strict=True)),
                }
    print(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
