"""From scores to measures: per class and macro, with intervals, for runs and for any table of predictions."""

import json
from collections.abc import Sequence
from typing import Any

import click
import numpy as np

from cxr_records import storage
from cxr_records.errors import UsageError
from cxr_records.manifest import read_manifest
from cxr_records.quiet import load_tensorflow
from cxr_records.splits import TEST, VALIDATION
from trainers import metrics, runs
from trainers.bootstrap import DRAWS, intervals, rounded
from trainers.predictions import Predictions, read_run_predictions

METRICS_FILE = "metrics.json"
FEW_PATIENTS = 30  # positive patients below which a class is not to be ranked

_FORMAT = "cxr_records evaluation"
_VERSION = 1


def evaluate(
    scored: Predictions, validation: Predictions | None = None, draws: int = DRAWS, seed: int = 0
) -> dict[str, Any]:
    """Measures scores against labels.

    Args:
        scored: what is measured.
        validation: of the same model, for choosing operating points; None where there is none, and then they
            are chosen on `scored` itself, which is said.
        draws: of the bootstrap; 0 for none.
        seed: of the draws.

    Returns:
        `auroc` and `auprc` per class, `macro_auroc`, `macro_auprc`, `classes`, `multiclass`, `curves` and
        `warnings`; numbers with intervals as `trainers.bootstrap.intervals` gives them.
    """
    names, count = scored.names, len(scored.names)
    rankings = [metrics.Ranking(y, s) for y, s in zip(scored.labels.T, scored.scores.T, strict=True)]

    def measure(weights: np.ndarray) -> np.ndarray:
        """float [draws, 4k]: AUROC, average precision, sensitivity at 90% and 95% specificity."""
        columns = []
        for ranking in rankings:
            counts = ranking.counts(weights)
            columns.append(
                [
                    metrics.auroc_of_counts(*counts),
                    metrics.average_precision_of_counts(*counts),
                    metrics.sensitivity_of_counts(*counts, 0.90),
                    metrics.sensitivity_of_counts(*counts, 0.95),
                ]
            )
        each = np.array(columns).transpose(2, 1, 0)  # [draws, 4, k]
        macro = np.array([[metrics.macro(row) for row in draw[:2]] for draw in each])
        return np.concatenate([each.reshape(len(weights), -1), macro], axis=1)

    found = intervals(measure, scored.patient_ids, draws, seed)
    auroc, auprc, at_90, at_95 = (found[place * count : (place + 1) * count] for place in range(4))
    positives = scored.labels.sum(axis=0)
    held = {
        "macro_auroc": found[-2],
        "macro_auprc": found[-1],
        "auroc": dict(zip(names, auroc, strict=True)),
        "auprc": {
            name: entry | {"prevalence": rounded(share)}
            for name, entry, share in zip(names, auprc, scored.labels.mean(axis=0), strict=True)
        },
        "classes": {},
        "multiclass": _multiclass(scored, draws, seed) if scored.kind == "multiclass" else None,
        "curves": {name: _curves(ranking) for name, ranking in zip(names, rankings, strict=True)},
    }
    warnings, few = list(scored.warnings), []
    for place, name in enumerate(names):
        labels = scored.labels[:, place]
        patients = len(np.unique(scored.patient_ids[labels == 1]))
        said = []
        if not 0 < positives[place] < len(labels):
            said.append(f"no {'negative' if positives[place] else 'positive'} image, so no measure")
            warnings.append(f"{name}: {said[0]}")
        elif patients < FEW_PATIENTS:
            few.append(f"{name} ({patients})")
            said.append(f"{patients} positive patients, fewer than {FEW_PATIENTS}: do not rank by it")
        held["classes"][name] = {
            "images": len(labels),
            "positives": int(positives[place]),
            "negatives": int(len(labels) - positives[place]),
            "positive_patients": patients,
            "prevalence": rounded(labels.mean()),
            "sensitivity_at_90_specificity": at_90[place],
            "sensitivity_at_95_specificity": at_95[place],
            "operating_point": _operating_point(scored, validation, place),
            "warnings": said,
        }
    if few:
        warnings.append(f"fewer than {FEW_PATIENTS} positive patients, do not rank by: {', '.join(few)}")
    return held | {"warnings": warnings}


def _operating_point(
    scored: Predictions, validation: Predictions | None, place: int
) -> dict[str, Any] | None:
    """The threshold of the largest Youden index on validation, and what it does on what is scored."""
    chosen_on = validation or scored
    threshold = metrics.youden_threshold(chosen_on.labels[:, place], chosen_on.scores[:, place])
    if threshold is None:
        return None
    says, truth = scored.scores[:, place] >= threshold, scored.labels[:, place] == 1

    def share(of: np.ndarray, among: np.ndarray) -> float | None:
        return rounded((of & among).sum() / among.sum()) if among.any() else None

    return {
        "threshold": rounded(threshold),
        "chosen_on": VALIDATION if validation else f"{scored.split} (no validation scores)",
        "sensitivity": share(says, truth),
        "specificity": share(~says, ~truth),
        "ppv": share(truth, says),
        "npv": share(~truth, ~says),
    }


def _multiclass(scored: Predictions, draws: int, seed: int) -> dict[str, Any]:
    """Accuracy of the largest score, and of the largest after scores were divided by their means.

    The division takes the classes' frequencies, as the model sees them, out of the choice.
    """
    truth = scored.labels.argmax(axis=1)
    corrected = scored.scores / np.maximum(scored.mean_scores, 1e-12)
    choices = {"": scored.scores.argmax(axis=1), "prior_corrected_": corrected.argmax(axis=1)}

    def measure(weights: np.ndarray) -> np.ndarray:
        each = [metrics.balanced_accuracy(truth, choice == truth, weights) for choice in choices.values()]
        return np.stack(each, axis=1)

    found = intervals(measure, scored.patient_ids, draws, seed)
    held: dict[str, Any] = {"class_names": list(scored.names)}
    for (prefix, choice), entry in zip(choices.items(), found, strict=True):
        held[f"{prefix}balanced_accuracy"] = entry
        held[f"{prefix}confusion"] = metrics.confusion(truth, choice, len(scored.names)).tolist()
    return held | {"accuracy": rounded((choices[""] == truth).mean())}


def _curves(ranking: metrics.Ranking, points: int = 200) -> dict[str, Any] | None:
    """ROC and precision-recall curves, thinned to some 200 points."""
    (true,), (false,) = ranking.counts(np.ones((1, len(ranking.order)), np.int64))
    if not len(true) or not true[-1] or not false[-1]:
        return None
    kept = np.unique(np.linspace(0, len(true) - 1, points).round().astype(int))
    true, false = true[kept], false[kept]
    recall = true / true[-1]

    def plain(values: np.ndarray) -> list[float]:
        return np.round(values, 4).tolist()

    return {
        "roc": {"fpr": [0.0, *plain(false / false[-1])], "tpr": [0.0, *plain(recall)]},
        "pr": {"recall": plain(recall), "precision": plain(true / (true + false))},
    }


def evaluate_run(run: str, split: str = TEST, draws: int = DRAWS, seed: int = 0) -> dict[str, Any]:
    """Evaluates a trained run on a split of its dataset; scores it first where that has not been done.

    Raises:
        UsageError: the folder holds no run, the run is not finished, or the split has no scores.
    """
    described = runs.read_run(run)
    if not storage.exists(storage.join(run, runs.PREDICTIONS_FILE)):
        load_tensorflow()
        from trainers.predict import predict_run

        predict_run(run)
    task = runs.task_of(described)
    scored = read_run_predictions(run, split, task)
    validation = None
    if split != VALIDATION:
        try:
            validation = read_run_predictions(run, VALIDATION, task)
        except UsageError:
            validation = None
    held = evaluate(scored, validation, draws, seed)
    identity = {
        "name": run.rstrip("/").rsplit("/", 1)[-1],
        "run": run,
        "dataset": described["dataset"],
        "dataset_id": described["dataset_id"],
        "model": described["config"]["model"],
        "task": described["task"],
        "kind": task.kind,
        "split": split,
        "images": len(scored.labels),
        "patients": len(np.unique(scored.patient_ids)),
    }
    return {"format": _FORMAT, "version": _VERSION, "identity": identity} | _claim(described) | held


def _claim(described: dict[str, Any]) -> dict[str, Any]:
    """What may be said of the split, by the dataset's manifest, if it is still there."""
    try:
        manifest = read_manifest(described["dataset"])
    except (UsageError, OSError) as error:
        return {"split_claim": {"official": None, "text": f"unknown: {error}", "list_sha256": None}}
    origin = manifest["split_origin"]
    return {
        "split_claim": {
            "official": origin["official"],
            "text": origin["text"],
            "list_sha256": origin["list_sha256"].get(TEST),
        }
    }


def report_run(
    run: str,
    split: str = TEST,
    draws: int = DRAWS,
    seed: int = 0,
    as_json: bool = False,
    extra: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Evaluates a run, writes metrics.json into it, and prints what came out."""
    held = evaluate_run(run, split, draws, seed)
    path = storage.join(run, METRICS_FILE)
    storage.write_bytes(path, (json.dumps(held, indent=1) + "\n").encode())
    if as_json:
        click.echo(json.dumps(brief(held) | (extra or {})))
    else:
        click.echo("\n".join(table_lines(held)))
        click.echo(f"all numbers: {path}")
    return held


def brief(held: dict[str, Any]) -> dict[str, Any]:
    """Returns what `--json` prints: auroc and auprc per class, macro_auroc and more."""
    keys = ("value", "low", "high")

    def thin(entry: dict[str, Any]) -> dict[str, Any]:
        return {key: entry[key] for key in keys}

    found = {
        "auroc": {name: thin(entry) for name, entry in held["auroc"].items()},
        "auprc": {name: thin(entry) for name, entry in held["auprc"].items()},
        "macro_auroc": thin(held["macro_auroc"]),
        "macro_auprc": thin(held["macro_auprc"]),
        "split": held["identity"]["split"],
        "official": held["split_claim"]["official"],
        "warnings": held["warnings"],
    }
    if held["multiclass"]:
        found["balanced_accuracy"] = thin(held["multiclass"]["balanced_accuracy"])
    return found


def table_lines(held: dict[str, Any]) -> list[str]:
    """Returns the table that people read."""
    identity = held["identity"]
    lines = [
        f"\n{identity['split']}: {identity['images']:,} images of {identity['patients']:,} patients, "
        f"task {identity['task']}; 95% intervals over patients",
        "",
        f"{'class':<20} {'positives':>9} {'patients':>8}  {'AUROC':<22} {'AUPRC':<8} prevalence",
    ]
    for name, about in held["classes"].items():
        area = _interval(held["auroc"][name])
        precision = _number(held["auprc"][name]["value"])
        row = f"{name:<20} {about['positives']:>9,} {about['positive_patients']:>8,}  {area:<22} "
        lines.append(row + f"{precision:<8} {about['prevalence']:.3f}")
    macro = f"{'macro':<20} {'':>9} {'':>8}  {_interval(held['macro_auroc']):<22} "
    lines.append(macro + _number(held["macro_auprc"]["value"]))
    if several := held["multiclass"]:
        corrected = _interval(several["prior_corrected_balanced_accuracy"])
        lines.append(
            f"balanced accuracy {_interval(several['balanced_accuracy'])}; prior-corrected {corrected}"
        )
    if held["split_claim"]["official"] is not True:
        lines.append(
            f"not the official split ({held['split_claim']['text']}): compare with no published result"
        )
    return lines + [f"note: {warning}" for warning in held["warnings"]]


def _interval(entry: dict[str, Any]) -> str:
    if entry["low"] is None:
        return _number(entry["value"])
    return f"{_number(entry['value'])} [{_number(entry['low'])}, {_number(entry['high'])}]"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


@click.command("evaluate")
@click.argument("run", nargs=-1, required=True)
@click.option("--split", default=TEST, show_default=True, help="Which split is scored.")
@click.option("--draws", default=DRAWS, show_default=True, help="Of the bootstrap; 0 for no intervals.")
@click.option("--seed", default=0, show_default=True, help="Of the draws.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout and nothing else.")
@click.option("--debug", is_flag=True, help="Show tracebacks.")
def evaluate_command(
    run: Sequence[str], split: str, draws: int, seed: int, as_json: bool, debug: bool
) -> None:
    """Score the split of a trained run's dataset, and write metrics.json into the run.

    AUROC with 95% intervals by bootstrap over patients, AUPRC beside the prevalence, for each class.

    \b
    Example:
      cxr-records evaluate runs/first
    """
    for one in run:
        report_run(one, split, draws, seed, as_json)
