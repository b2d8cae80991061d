"""The run directory: what it says of itself, and the names of the files in it."""

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from cxr_records import storage
from cxr_records.errors import UsageError
from cxr_records.tasks import Task, parse_task

if TYPE_CHECKING:  # importing it brings TensorFlow, which evaluation does without
    from cxr_records.reader import SplitRecords

CONFIG_FILE = "config.json"
HISTORY_FILE = "history.csv"
LAST_FILE = "checkpoints/last.npz"
BEST_FILE = "checkpoints/best.npz"
MODEL_FILE = "model.keras"
PREDICTIONS_FILE = "predictions.parquet"
TENSORBOARD_FOLDER = "tensorboard"

_FORMAT = "cxr_records run"
_VERSION = 1
# What must be the same when a run goes on: the rest may differ from machine to machine.
_FIXED = ("dataset_id", "task", "with_no_finding")  # and all settings but
_FREE = ("checkpoint_minutes",)  # which changes nothing of what comes out


def score_names(task: Task) -> tuple[str, ...]:
    """Returns what a model of the task gives scores for: a binary model for its second class only."""
    return task.class_names[1:] if task.kind == "binary" else task.class_names


def class_rows(task: Task, labels: np.ndarray) -> np.ndarray:
    """Returns uint8 [n, number of scores]: 1 where the image holds the class that the score is of."""
    rows = task.class_rows(labels)
    return rows[:, 1:] if task.kind == "binary" else rows


def describe(
    dataset: str,
    manifest: dict[str, Any],
    records: "SplitRecords",
    config: dict[str, Any],
    versions: dict[str, str],
) -> dict[str, Any]:
    """Returns what config.json holds.

    Args:
        dataset: where it is.
        manifest: its manifest.
        records: of its training split, for the run's task.
        config: `TrainConfig.to_json`.
        versions: of the libraries.
    """
    rows = class_rows(records.task, records.labels)
    original = records.copies == 0
    counts = zip(score_names(records.task), rows.sum(axis=0), rows[original].sum(axis=0), strict=True)
    return {
        "format": _FORMAT,
        "version": _VERSION,
        "dataset": dataset,
        "dataset_id": manifest["id"],
        "task": records.task.name,
        "with_no_finding": records.task.with_no_finding,
        "image_format": {key: manifest["config"][key] for key in ("size", "codec", "resample")},
        "config": config,
        "classes": {name: {"records": int(n), "images": int(images)} for name, n, images in counts},
        "train": {"records": len(rows), "images": int(original.sum())},
        "versions": versions,
    }


def begin(run: str, described: dict[str, Any]) -> None:
    """Writes config.json into a new or empty folder, or checks that the run in it is the same.

    Raises:
        UsageError: the folder holds something else, or a run with other settings; says which.
    """
    names = storage.list_names(run)
    if CONFIG_FILE not in names and any(not name.startswith(".") for name in names):
        raise UsageError(f"--run {run} is not empty and no run of ours (it holds {names[0]}); name another")
    if CONFIG_FILE not in names:
        storage.make_folder(run)
        storage.write_bytes(storage.join(run, CONFIG_FILE), (json.dumps(described, indent=1) + "\n").encode())
        return
    held = read_run(run)
    for key, found, wanted in _compared(held, described):
        if found != wanted:
            raise UsageError(
                f"--run {run} holds a run with {key} {found}, this command says {wanted}; "
                "give the same options to go on with it, or name another folder"
            )


def _compared(held: dict[str, Any], described: dict[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    for key in _FIXED:
        yield key, held[key], described[key]
    for key, wanted in described["config"].items():
        if key not in _FREE:
            yield key, held["config"].get(key), wanted


def read_run(run: str) -> dict[str, Any]:
    """Reads what a run says of itself.

    Raises:
        UsageError: the folder holds no run.
    """
    path = storage.join(run, CONFIG_FILE)
    if not storage.exists(path):
        raise UsageError(f"{run} is no run: found no {CONFIG_FILE} in it; cxr-records train makes one")
    try:
        held = json.loads(storage.read_bytes(path))
    except ValueError as error:
        raise UsageError(f"{path}: no JSON ({error})") from error
    if not isinstance(held, dict) or held.get("format") != _FORMAT or held.get("version") != _VERSION:
        raise UsageError(f"{path}: found no {_FORMAT!r} of version {_VERSION}")
    return held


def task_of(described: dict[str, Any]) -> Task:
    """Returns the task of a run."""
    return parse_task(described["task"], described["with_no_finding"])
