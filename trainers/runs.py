"""The run directory: what it says of itself, and the names of the files in it."""

import dataclasses
import json
from collections.abc import Iterator
from typing import Any

import numpy as np

from cxr_records import storage
from cxr_records.dataset import Dataset
from cxr_records.errors import UsageError
from cxr_records.images import ImageFormat
from cxr_records.names import is_litter
from cxr_records.splits import TRAIN
from cxr_records.tasks import Task, parse_task
from cxr_records.trainers import named
from cxr_records.trainers.config import TrainConfig
from cxr_records.trainers.named import NamedFile

CONFIG_FILE = "config.json"
HISTORY_FILE = "history.csv"
LAST_FILE = "checkpoints/last.npz"
BEST_FILE = "checkpoints/best.npz"
MODEL_FILE = "model.keras"
PREDICTIONS_FILE = "predictions.parquet"
TENSORBOARD_FOLDER = "tensorboard"

_FORMAT = "cxr_records run"
_VERSION = 1
# What may differ when a run goes on, for it changes nothing of what comes out.
_FREE = ("checkpoint_minutes",)


@dataclasses.dataclass(frozen=True)
class ClassCount:
    """How often a class was seen in training.

    Attributes:
        records: that hold it, copies included.
        images: that hold it.
    """

    records: int
    images: int


@dataclasses.dataclass(frozen=True)
class Run:
    """What config.json says of a run.

    Attributes:
        path: the run directory.
        dataset: where the dataset was when training began.
        dataset_id: its id.
        task: what the model was trained for.
        image_format: of the dataset, and so of what the model takes.
        config: the settings, with the loss that "auto" stood for.
        classes: by name of a score, in the order of the scores.
        train_records: of the training split, copies included.
        train_images: of the training split.
        versions: of the libraries, and the backend.
        code: files of the user's that the settings name, by setting.
    """

    path: str
    dataset: str
    dataset_id: str
    task: Task
    image_format: ImageFormat
    config: TrainConfig
    classes: dict[str, ClassCount]
    train_records: int
    train_images: int
    versions: dict[str, str]
    code: dict[str, NamedFile] = dataclasses.field(default_factory=dict)

    @property
    def score_names(self) -> tuple[str, ...]:
        """What the model gives scores for."""
        return score_names(self.task)

    def file(self, name: str) -> str:
        """Returns the path of a file of the run."""
        return storage.join(self.path, name)

    def to_json(self) -> dict[str, Any]:
        """Returns what config.json holds."""
        image_format = self.image_format
        code = {setting: dataclasses.asdict(file) for setting, file in self.code.items()}
        return {
            "format": _FORMAT,
            "version": _VERSION,
            "dataset": self.dataset,
            "dataset_id": self.dataset_id,
            "task": self.task.name,
            "with_no_finding": self.task.with_no_finding,
            "image_format": {
                "size": image_format.size, "codec": image_format.codec, "resample": image_format.resample
            },
            "config": self.config.to_json(),
            "classes": {name: dataclasses.asdict(count) for name, count in self.classes.items()},
            "train": {"records": self.train_records, "images": self.train_images},
            "versions": self.versions,
            **({"code": code} if code else {}),
        }  # fmt: skip


def score_names(task: Task) -> tuple[str, ...]:
    """Returns what a model of the task gives scores for: a binary model for its second class only."""
    return task.class_names[1:] if task.kind == "binary" else task.class_names


def class_rows(task: Task, labels: np.ndarray) -> np.ndarray:
    """Returns uint8 [n, number of scores]: 1 where the image holds the class that the score is of."""
    rows = task.class_rows(labels)
    return rows[:, 1:] if task.kind == "binary" else rows


def describe(path: str, dataset: Dataset, config: TrainConfig, versions: dict[str, str]) -> Run:
    """Returns what a run is to say of itself.

    Args:
        path: the run directory.
        dataset: for the run's task.
        config: the settings.
        versions: of the libraries.

    Raises:
        UsageError: the dataset has no training split.
    """
    records = dataset.split(TRAIN)
    rows, original = class_rows(records.task, records.labels), records.copies == 0
    counts = zip(score_names(records.task), rows.sum(axis=0), rows[original].sum(axis=0), strict=True)
    return Run(
        path=path,
        dataset=dataset.path,
        dataset_id=dataset.id,
        task=dataset.task,
        image_format=dataset.image_format,
        config=config,
        classes={name: ClassCount(int(n), int(images)) for name, n, images in counts},
        train_records=len(rows),
        train_images=int(original.sum()),
        versions=versions,
        code=named.files_of(config.to_json()),
    )


def begin(run: Run) -> None:
    """Writes config.json into a new or empty folder, or checks that the run in it is the same.

    Raises:
        UsageError: as `check` says.
    """
    check(run)
    if not storage.exists(run.file(CONFIG_FILE)):
        storage.make_folder(run.path)
        storage.write_bytes(run.file(CONFIG_FILE), (json.dumps(run.to_json(), indent=1) + "\n").encode())


def check(run: Run) -> None:
    """Makes sure that a run can begin or go on in its folder.

    Raises:
        UsageError: the folder holds something else, or a run with other settings; says which.
    """
    names = storage.list_names(run.path)
    strangers = [name for name in names if not is_litter(name)]
    if CONFIG_FILE not in names and strangers:
        raise UsageError(
            f"`run={run.path}` is not empty and no run of ours (it holds {strangers[0]}); name another"
        )
    if CONFIG_FILE not in names:
        return
    begun = open_run(run.path)
    for key, before, now in _compared(begun, run):
        if before != now:
            raise UsageError(
                f"`run={run.path}` holds a run with {key} {before}, this command says {now}; "
                "give the same options to go on with it, or name another folder"
            )
    for setting, file in run.code.items():
        before, now = begun.code[setting].sha256, file.sha256
        if before != now:
            value = getattr(run.config, setting)
            raise UsageError(f"`{setting}={value}`: {named.changed(file.file, now, before)}")


def _compared(before: Run, now: Run) -> Iterator[tuple[str, Any, Any]]:
    yield "dataset_id", before.dataset_id, now.dataset_id
    yield "task", before.task.name, now.task.name
    yield "with_no_finding", before.task.with_no_finding, now.task.with_no_finding
    for field in dataclasses.fields(TrainConfig):
        if field.name not in _FREE:
            yield field.name, getattr(before.config, field.name), getattr(now.config, field.name)


def open_run(path: str) -> Run:
    """Reads what a run says of itself.

    Raises:
        UsageError: the folder holds no run, or one of another version.
    """
    file = storage.join(path, CONFIG_FILE)
    if not storage.exists(file):
        raise UsageError(f"{path} is no run: found no {CONFIG_FILE} in it; cxr-records train makes one")
    try:
        values = json.loads(storage.read_bytes(file))
    except ValueError as error:
        raise UsageError(f"{file}: no JSON ({error})") from error
    if not isinstance(values, dict) or values.get("format") != _FORMAT or values.get("version") != _VERSION:
        raise UsageError(f"{file}: found no {_FORMAT!r} of version {_VERSION}")
    try:
        return Run(
            path=path,
            dataset=values["dataset"],
            dataset_id=values["dataset_id"],
            task=parse_task(values["task"], values["with_no_finding"]),
            image_format=ImageFormat(**values["image_format"]),
            config=TrainConfig(**values["config"]),
            classes={name: ClassCount(**counts) for name, counts in values["classes"].items()},
            train_records=values["train"]["records"],
            train_images=values["train"]["images"],
            versions=values["versions"],
            code={setting: NamedFile(**file) for setting, file in values.get("code", {}).items()},
        )
    except (KeyError, TypeError, AttributeError, UsageError) as error:
        raise UsageError(
            f"{file}: not as cxr-records train writes it ({type(error).__name__}: {error}); "
            "restore it, or train into another folder"
        ) from error
