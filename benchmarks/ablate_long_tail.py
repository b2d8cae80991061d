"""What each way with rare classes brings: python benchmarks/ablate_long_tail.py --help.

Trains the small model on a look-alike set with NIH's imbalance and, where they are given, on real images, by
each method with several seeds, for the same number of steps, and measures on the test split:

- multilabel: AUROC and AUPRC of the rare findings (those below 3% of the training images), AUROC of all;
- multiclass with No Finding: balanced accuracy, as NIH-CXR-LT measures (Holste et al. 2022), that is the mean
  over the classes of the share of their images whose largest score is theirs; of all classes and of the rare.

Each run adds a line to the log, and a run that is in the log, with the same settings on the same dataset, is
not made again: what was stopped goes on. The tables, in Markdown, are of the seeds that all methods have.
"""

import argparse
import dataclasses
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from cxr_records.dataset import Dataset, open_dataset
from cxr_records.findings import FINDINGS
from cxr_records.lookalike import make_lookalike
from cxr_records.splits import TRAIN
from cxr_records.trainers import runs
from cxr_records.trainers.config import TrainConfig
from cxr_records.trainers.evaluation import metrics
from cxr_records.trainers.evaluation.predictions import read_run_predictions
from cxr_records.trainers.predict import predict_run
from cxr_records.trainers.train import train

RARE_BELOW = 0.03  # of the training images; `--copies linear` copies for these
RETRAINED = 0.2  # share of the epochs that retraining of the last layer takes
COPIES = ("none", "linear", "fixed")
IDENTITY = ("set", "task", "method", "seed", "dataset_id", "config")  # of a run in the log


@dataclasses.dataclass(frozen=True)
class Method:
    """A way with rare classes: a rule of copies, and settings of the run."""

    copies: str = "none"
    retrained: bool = False
    settings: dict[str, str] = dataclasses.field(default_factory=dict)


def methods(plain: str, weighted: str) -> dict[str, Method]:
    """What every task can do, with its plain and its weighted loss."""
    return {
        f"none ({plain})": Method(settings={"loss": plain}),
        "copies, linear": Method("linear", settings={"loss": plain}),
        "copies, fixed": Method("fixed", settings={"loss": plain}),
        f"weighted loss ({weighted})": Method(settings={"loss": weighted}),
        "class-balanced sampling": Method(settings={"loss": plain, "sampling": "class_balanced"}),
        "focal loss": Method(settings={"loss": "focal"}),
        "last layer retrained (cRT)": Method(retrained=True, settings={"loss": plain}),
    }


METHODS = {
    "multilabel": methods("bce", "weighted_bce"),
    "multiclass:No Finding": {
        **methods("ce", "weighted_ce"),
        "logit adjustment": Method(settings={"loss": "logit_adjusted"}),
        "LDAM with deferred weights": Method(settings={"loss": "ldam"}),
    },
}
MEASURES = {
    "multilabel": ("AUROC, rare", "AUPRC, rare", "AUROC, all"),
    "multiclass:No Finding": ("balanced accuracy", "balanced accuracy, rare", "AUROC, all"),
}


def build(sources: dict[str, object], rule: str, folder: Path) -> Dataset:
    """Builds a set with a rule of copies, if that has not been done."""
    out = folder / f"cxr14-{rule}"
    words = ["build", "--out", out, "--size", "64", "--shard-mb", "2", "--store", folder / "store"]
    words += ["--copies", rule, "--allow-missing"]
    words += [word for option, value in sources.items() for word in (f"--{option}", value)]
    words = [sys.executable, "-m", "cxr_records", *map(str, words)]
    done = subprocess.run(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(done.stderr)
    return open_dataset(out)


def rare_findings(dataset: Dataset) -> dict[str, int]:
    """Training images of each rare finding."""
    records = dataset.split(TRAIN)
    images = records.labels[records.copies == 0].sum(axis=0)
    share = images / (records.copies == 0).sum()
    return {name: int(n) for name, n, s in zip(FINDINGS, images, share, strict=True) if s < RARE_BELOW}


def config_of(dataset: Dataset, task: str, method: Method, seed: int, seen: int, batch: int) -> TrainConfig:
    """The settings of a run that sees so many records, those of retraining included."""
    epochs = max(2, round(seen / len(dataset.as_task(task).split(TRAIN))))
    retrained = max(1, round(RETRAINED * epochs)) if method.retrained else 0
    return dataclasses.replace(
        TrainConfig(
            epochs=epochs - retrained, retrain_epochs=retrained, batch_size=batch, keep="last", seed=seed
        ),
        **method.settings,
    )


def measure(dataset: Dataset, rare: list[str], run: Path, task: str, config: TrainConfig) -> dict[str, float]:
    """Trains once; returns the measures on test."""
    train(dataset, str(run), config, task=task)
    predict_run(str(run))
    scored = read_run_predictions(runs.open_run(str(run)), "test")
    shutil.rmtree(run)
    pairs = list(zip(scored.labels.T, scored.scores.T, strict=True))
    auroc = np.array([metrics.auroc(*pair) for pair in pairs])
    places = [scored.names.index(name) for name in rare]
    if scored.kind == "multilabel":
        auprc = np.array([metrics.average_precision(*pair) for pair in pairs])
        values = (np.nanmean(auroc[places]), np.nanmean(auprc[places]), np.nanmean(auroc))
    else:
        found = scored.scores.argmax(axis=1)
        counts = scored.labels.sum(axis=0)
        right = ((scored.labels == 1) & (found[:, None] == np.arange(len(counts)))).sum(axis=0)
        recall = np.where(counts > 0, right / np.maximum(counts, 1), np.nan)
        values = (np.nanmean(recall), np.nanmean(recall[places]), np.nanmean(auroc))
    return dict(zip(MEASURES[task], map(float, values), strict=True))


def read_log(path: Path) -> list[dict]:
    """Lines of the log; none where there is no such file."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def tables(rows: list[dict]) -> str:
    """The tables in Markdown: mean and standard deviation over the seeds that all methods of a table have."""
    parts = []
    for name, task in dict.fromkeys((row["set"], row["task"]) for row in rows):
        own = [row for row in rows if (row["set"], row["task"]) == (name, task)]
        by_method = {m: {r["seed"]: r for r in own if r["method"] == m} for m in METHODS[task]}
        seeds = sorted(set.intersection(*(set(each) for each in by_method.values())))
        if not seeds:
            continue
        lines = [
            f"{name}, {task}; seeds {', '.join(map(str, seeds))}:",
            "",
            f"| method | {' | '.join(MEASURES[task])} |",
            "|---" * (1 + len(MEASURES[task])) + "|",
        ]
        for method, each in by_method.items():
            cells = []
            for measured in MEASURES[task]:
                values = [each[seed]["measures"][measured] for seed in seeds]
                spread = f" ± {np.std(values, ddof=1):.3f}" if len(values) > 1 else ""
                cells.append(f"{np.mean(values):.3f}{spread}")
            lines.append(f"| {method} | {' | '.join(cells)} |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def main() -> None:
    """Measures, and prints the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=4000, help="look-alike images; 0 for none")
    parser.add_argument("--seen", type=int, default=10_000, help="training records seen by each run")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--minutes", type=float, default=float("inf"), help="after which no run begins")
    parser.add_argument("--log", type=Path, default=Path("ablate_long_tail.jsonl"))
    parser.add_argument("--real-images", type=Path, help="a folder of real images, of any size")
    parser.add_argument("--metadata", type=Path, help="NIH's table, for these")
    parser.add_argument("--train-val-list", type=Path, help="NIH's list")
    parser.add_argument("--test-list", type=Path, help="NIH's list")
    arguments = parser.parse_args()
    until = time.monotonic() + 60 * arguments.minutes
    done = [{key: row.get(key) for key in IDENTITY} for row in read_log(arguments.log)]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sets = {}
        if arguments.real_images:
            named = ("metadata", "train_val_list", "test_list")
            sources = {option.replace("_", "-"): getattr(arguments, option) for option in named}
            sets["real"] = {"images": arguments.real_images, **sources}
        if arguments.count:
            made = make_lookalike(folder / "nih", arguments.count, image_size=64, workers=2)
            sets["look-alike"] = {
                "images": made.images,
                "metadata": made.metadata,
                "train-val-list": made.train_val_list,
                "test-list": made.test_list,
            }
        built = {
            name: {rule: build(sources, rule, folder / name) for rule in COPIES}
            for name, sources in sets.items()
        }
        rare = {name: rare_findings(datasets["none"]) for name, datasets in built.items()}
        for name, datasets in built.items():
            sizes = {split: info.records for split, info in datasets["none"].splits.items()}
            print(f"{name}: {sizes}, rare in training: {rare[name]}", file=sys.stderr)
        # By seed, so that what is stopped early has the same seeds of all methods.
        plan = [
            (name, task, label, seed)
            for seed in range(arguments.seeds)
            for name in built
            for task, known in METHODS.items()
            for label in known
        ]
        wanted = []
        for name, task, label, seed in plan:
            method, began = METHODS[task][label], time.monotonic()
            dataset = built[name][method.copies]
            config = config_of(dataset, task, method, seed, arguments.seen, arguments.batch_size)
            values = (name, task, label, seed, dataset.id, config.to_json())
            row = dict(zip(IDENTITY, values, strict=True))
            wanted.append(dict(row))
            if row in done or began > until:
                continue
            row["measures"] = measure(dataset, list(rare[name]), folder / "run", task, config)
            row["seconds"] = round(time.monotonic() - began, 1)
            with open(arguments.log, "a") as log:
                log.write(json.dumps(row) + "\n")
    rows = read_log(arguments.log)
    print(tables([row for row in rows if {key: row.get(key) for key in IDENTITY} in wanted]))


if __name__ == "__main__":
    main()
