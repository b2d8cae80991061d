"""From scores to measures: per class and macro, with intervals, for runs and for any table of predictions."""

import itertools
import json
from collections.abc import Sequence
from hashlib import sha256
from typing import Any

import numpy as np

from cxr_records import storage
from cxr_records.errors import CxrError, UsageError
from cxr_records.manifest import read_manifest
from cxr_records.metadata import read_metadata
from cxr_records.quiet import load_tensorflow
from cxr_records.splits import TEST, VALIDATION, read_list
from cxr_records.tasks import parse_task
from cxr_records.trainers import runs
from cxr_records.trainers.evaluation import calibration, claims, metrics, published
from cxr_records.trainers.evaluation.bootstrap import DRAWS, intervals, rounded
from cxr_records.trainers.evaluation.predictions import Predictions, read_run_predictions
from cxr_records.trainers.evaluation.subgroups import FEW_PATIENTS, subgroups
from cxr_records.trainers.evaluation.tables import match, read_score_table

METRICS_FILE = "metrics.json"
FORMAT = "cxr_records evaluation"
COMPARISON_FORMAT = "cxr_records comparison"
VERSION = 1
_MISTAKES = 12  # of each kind, shared out among the classes, and at least one for each


def evaluate(
    scored: Predictions,
    validation: Predictions | None = None,
    run: runs.Run | None = None,
    draws: int = DRAWS,
    seed: int = 0,
) -> dict[str, Any]:
    """Measures scores against labels.

    Args:
        scored: what is measured.
        validation: of the same model, for choosing operating points; None where there is none, and then they
            are chosen on `scored` itself, which is said.
        run: the one that scored, for calibration; None for other tables.
        draws: of the bootstrap; 0 for none.
        seed: of the draws.

    Returns:
        `auroc` and `auprc` per class, `macro_auroc`, `macro_auprc`, `classes`, `multiclass`, `calibration`,
        `subgroups`, `mistakes`, `curves` and `warnings`; numbers with intervals as
        `cxr_records.trainers.evaluation.bootstrap.intervals` gives them, None where something is undefined.
    """
    names, count = scored.names, len(scored.names)
    rankings = [metrics.Ranking(y, s) for y, s in zip(scored.labels.T, scored.scores.T, strict=True)]

    def measure(weights: np.ndarray) -> np.ndarray:
        """float [draws, 4k + 2]: AUROC, average precision, sensitivity at 90% and 95% specificity; macros."""
        columns = []
        for ranking in rankings:
            counts = ranking.counts(weights)
            at = [counts.sensitivity(0.90), counts.sensitivity(0.95)]
            columns.append([counts.auroc(), counts.average_precision(), *at])
        each = np.array(columns).transpose(2, 1, 0)  # [draws, 4, k]
        macros = np.array([[metrics.macro(row) for row in draw[:2]] for draw in each])
        return np.concatenate([each.reshape(len(each), -1), macros], axis=1)

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
        "calibration": None,
        "subgroups": subgroups(scored),
        "mistakes": _mistakes(scored),
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
    if scored.are_probabilities:
        held["calibration"] = calibration.calibrate(scored, validation, run)
        if run and (said := calibration.warning_of_loss(run)):
            warnings.append(said)
    else:
        warnings.append("scores outside 0 to 1 are no probabilities: ranked, but calibration is not measured")
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


def _mistakes(scored: Predictions) -> list[dict[str, Any]]:
    """The negatives that score highest and the positives that score lowest, class by class."""
    found = []
    each = max(1, _MISTAKES // len(scored.names))
    for place, name in enumerate(scored.names):
        scores = scored.scores[:, place]
        for kind, label, order in (("false positive", 0, -scores), ("false negative", 1, scores)):
            rows = np.flatnonzero(scored.labels[:, place] == label)
            for row in rows[np.argsort(order[rows], kind="stable")][:each]:
                found.append(
                    {
                        "class": name,
                        "kind": kind,
                        "image_id": str(scored.image_ids[row]),
                        "patient_id": int(scored.patient_ids[row]),
                        "score": rounded(scores[row]),
                    }
                )
    return found


def _curves(ranking: metrics.Ranking, points: int = 200) -> dict[str, Any] | None:
    """ROC and precision-recall curves, thinned to some 200 points."""
    counts = ranking.once
    (positives,), (negatives,) = counts.positives, counts.negatives
    if not positives or not negatives:
        return None
    true, false, before = counts.true[:, 0], counts.false[:, 0], counts.false_before[:, 0]
    kept = np.unique(np.linspace(0, len(true) - 1, points).round().astype(int))
    gained_from = np.concatenate([[0], true])[kept]  # recall before each threshold: the corner of the step
    fpr = np.stack([before[kept], false[kept]], axis=1).ravel() / negatives
    tpr = np.stack([gained_from, true[kept]], axis=1).ravel() / positives

    def plain(values: np.ndarray) -> list[float]:
        return np.round(values, 4).tolist()

    return {
        "roc": {"fpr": [0.0, *plain(fpr), 1.0], "tpr": [0.0, *plain(tpr), 1.0]},
        "pr": {"recall": plain(true[kept] / positives), "precision": plain((true / (true + false))[kept])},
    }


def evaluate_run(run: str, split: str = TEST, draws: int = DRAWS, seed: int = 0) -> dict[str, Any]:
    """Evaluates a trained run on a split of its dataset; scores it first where that has not been done.

    Returns:
        What metrics.json holds. `leaks` are not empty where scored images or patients were trained on.

    Raises:
        UsageError: the folder holds no run, the run is not finished, or the split has no scores.
    """
    trained = runs.open_run(run)
    scored, validation = _scores_of(trained, split)
    identity = {
        "name": run.rstrip("/").rsplit("/", 1)[-1],
        "run": run,
        "dataset": trained.dataset,
        "dataset_id": trained.dataset_id,
        "model": trained.config.model,
        "task": trained.task.name,
        "predictions_sha256": _digest(storage.join(run, runs.PREDICTIONS_FILE)),
        "versions": trained.versions,
    }
    warnings: list[str] = []
    try:
        manifest = read_manifest(trained.dataset)
        if manifest["id"] != trained.dataset_id:
            raise UsageError(f"{trained.dataset} is another dataset now")
        identity["table"] = {"dialect": manifest["table"]["dialect"], "sha256": manifest["table"]["sha256"]}
        claim = claims.claim_of_run(trained.dataset, manifest, split)
        leaks = claims.find_leaks(trained.dataset, scored)
    except (CxrError, OSError) as error:
        identity["table"] = None
        claim = {"official": False, "text": f"unknown which split: {error}", "list_sha256": None}
        leaks = []
        warnings.append("the run's dataset is not at hand: leaks were not looked for")
    held = evaluate(scored, validation, trained, draws, seed)
    return _complete(identity, scored, claim, leaks, held, warnings, trained.task.name, draws, seed)


def evaluate_table(
    predictions: str,
    metadata: str,
    task: str = "multilabel",
    test_list: str | None = None,
    trained_on: str | None = None,
    draws: int = DRAWS,
    seed: int = 0,
) -> dict[str, Any]:
    """Evaluates scores from anywhere against NIH's labels.

    Args:
        predictions: a table as `cxr_records.trainers.evaluation.tables.read_score_table` takes it.
        metadata: NIH's table of images.
        task: multilabel, or one that `cxr_records.trainers.evaluation.tables.match` can derive.
        test_list: list of the images to evaluate; all that were scored otherwise.
        trained_on: dataset that the model was trained on, in which to look for leaks.
        draws: of the bootstrap; 0 for none.
        seed: of the draws.

    Returns:
        What metrics.json holds.

    Raises:
        UsageError, CxrError: a file is missing or is not what it should be; see the functions named.
    """
    table, images = read_score_table(predictions), read_metadata(metadata)
    only = read_list(test_list, "test_list") if test_list else None
    scored = match(table, images, parse_task(task), "test list" if only else "all scored images", only)
    identity = {
        "name": predictions.rsplit("/", 1)[-1],
        "run": None,
        "dataset": trained_on,
        "dataset_id": read_manifest(trained_on)["id"] if trained_on else None,
        "model": None,
        "task": task,
        "predictions_sha256": _digest(predictions),
        "versions": {},
        "table": {"dialect": images.dialect, "sha256": images.digest},
    }
    listed = scored.image_ids if task == "multilabel" else table.image_ids
    if only is not None and task != "multilabel":
        listed = sorted(set(only) & set(table.image_ids))
    claim = claims.claim_of_table(listed, only)
    leaks = claims.find_leaks(trained_on, scored) if trained_on else []
    held = evaluate(scored, None, None, draws, seed)
    return _complete(identity, scored, claim, leaks, held, [], task, draws, seed)


def compare_runs(
    chosen: Sequence[str], split: str = TEST, draws: int = DRAWS, seed: int = 0
) -> list[dict[str, Any]]:
    """Returns the differences in AUROC of every two runs, by class and macro, on the images both scored.

    The draws of patients are the same for both runs, so what is hard for both falls out of the difference.

    Raises:
        UsageError: runs of different classes, or without a common image.
    """
    scored = {run: _scores_of(runs.open_run(run), split)[0] for run in chosen}
    return [_difference(scored, a, b, draws, seed) for a, b in itertools.combinations(chosen, 2)]


def _difference(scored: dict[str, Predictions], a: str, b: str, draws: int, seed: int) -> dict[str, Any]:
    one, other = scored[a], scored[b]
    if one.names != other.names:
        raise UsageError(
            f"{a} and {b} cannot be compared: found classes {', '.join(one.names)} "
            f"and {', '.join(other.names)}"
        )
    common, rows, rows_of_other = np.intersect1d(one.image_ids, other.image_ids, return_indices=True)
    if not len(common):
        raise UsageError(f"{a} and {b} cannot be compared: they have scored no common image")
    labels = one.labels[rows]
    rankings = [
        [metrics.Ranking(y, s) for y, s in zip(labels.T, scores.T, strict=True)]
        for scores in (one.scores[rows], other.scores[rows_of_other])
    ]

    def measure(weights: np.ndarray) -> np.ndarray:
        areas = [np.array([ranking.counts(weights).auroc() for ranking in each]) for each in rankings]
        change = (areas[1] - areas[0]).T  # [draws, k]
        macros = [[metrics.macro(draw)] for draw in change]
        return np.concatenate([change, macros], axis=1)

    found = intervals(measure, one.patient_ids[rows], draws, seed)
    return {
        "a": a,
        "b": b,
        "images": len(common),
        "macro_auroc": found[-1],
        "auroc": dict(zip(one.names, found, strict=False)),
    }


def _scores_of(run: runs.Run, split: str) -> tuple[Predictions, Predictions | None]:
    """What a run predicted for a split, and for validation; scores it first where that has not been done."""
    if not storage.exists(run.file(runs.PREDICTIONS_FILE)):
        load_tensorflow()
        from cxr_records.trainers.predict import predict_run

        predict_run(run.path)
    scored = read_run_predictions(run.path, split, run.task)
    if split == VALIDATION:
        return scored, None
    try:
        return scored, read_run_predictions(run.path, VALIDATION, run.task)
    except UsageError:  # the dataset has no validation split
        return scored, None


def _complete(
    identity: dict[str, Any],
    scored: Predictions,
    claim: dict[str, Any],
    leaks: list[str],
    held: dict[str, Any],
    warnings: list[str],
    task: str,
    draws: int,
    seed: int,
) -> dict[str, Any]:
    identity |= {
        "kind": scored.kind,
        "split": scored.split,
        "images": len(scored.labels),
        "patients": len(np.unique(scored.patient_ids)),
        "draws": draws,
        "seed": seed,
    }
    found = {"format": FORMAT, "version": VERSION, "identity": identity, "split_claim": claim}
    found |= {"comparison": published.comparison(claim["official"] and not leaks, task), "leaks": leaks}
    return found | held | {"warnings": [*warnings, *held["warnings"]]}


def _digest(path: str) -> str:
    return sha256(storage.read_bytes(path)).hexdigest()


def to_json(held: dict[str, Any]) -> bytes:
    """Returns metrics.json."""
    return (json.dumps(held, indent=1) + "\n").encode()
