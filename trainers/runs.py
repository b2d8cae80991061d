"""The run directory: what it says of itself, and the names of the files in it."""

import dataclasses
import json
import math
import os
from collections.abc import Iterator
from typing import Any

import numpy as np

from cxr_records import drawings, storage
from cxr_records.balancing import CLASS_BALANCED, NATURAL, expected_draws
from cxr_records.dataset import Dataset, SplitRecords, open_dataset
from cxr_records.errors import CxrError, UsageError
from cxr_records.images import ImageFormat
from cxr_records.names import is_litter
from cxr_records.splits import TRAIN, VALIDATION
from cxr_records.tasks import Task, parse_task
from cxr_records.trainers import digests, named, seeds, selection
from cxr_records.trainers.config import TrainConfig
from cxr_records.trainers.named import NamedFile
from cxr_records.trainers.selection import Selection
from cxr_records.urls import redacted_text

CONFIG_FILE = digests.CONFIG_FILE
HISTORY_FILE = "history.csv"
LAST_FILE = "checkpoints/last.npz"
BEST_FILE = "checkpoints/best.npz"
MODEL_FILE = "model.keras"
PREDICTIONS_FILE = "predictions.parquet"
SELECTION_AUROC = "val_selection_auroc"  # the column of history.csv by which the best epoch is chosen
PHASE = "phase"  # the column of history.csv that is no number: a name of `phases`
CLASS_AUROC = "val_auroc_"  # begins the columns of history.csv that are of one class
TENSORBOARD_FOLDER = "tensorboard"

_FORMAT = "cxr_records run"
_VERSION = 1
# What may differ when a run goes on, for it changes nothing of what comes out.
FREE = ("checkpoint_minutes", "steps_per_execution")
_KEYS = {
    "format", "version", "dataset", "dataset_id", "task", "with_no_finding", "image_format", "config",
    "classes", "train", "versions", "code", "drawn", "selection",
}  # fmt: skip
# What settings that a run of before does not name were then.
_BEFORE = {"ema": 0.0, "min_positives": 1, "min_steps": 0}
_RESTORE = "restore it, or train into another folder"


@dataclasses.dataclass(frozen=True)
class ClassCount:
    """How often a class was seen in training.

    Attributes:
        records: of an epoch that hold it, copies included, as they are seen: where they are drawn by class,
            the number that is expected. Of the last layer's epochs, where it was retrained.
        images: that hold it.
    """

    records: float
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
        config: the settings, with the loss and the precision that "auto" stood for.
        classes: by name of a score, in the order of the scores.
        train_records: of the training split, copies included.
        train_images: of the training split.
        versions: of the libraries, and the backend.
        code: files of the user's that the settings name, by setting.
        selection: how the epoch that is kept is chosen.
        drawn: how many of the dataset's images are drawings, as `drawings.drawn_share` says it.
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
    selection: Selection = dataclasses.field(default_factory=Selection)
    drawn: str = drawings.NONE

    @property
    def sampling(self) -> str:
        """How the records came that the last layer was trained on last."""
        return _last_sampling(self.config)

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
            **({"selection": dataclasses.asdict(self.selection)} if self.selection.text else {}),
            **({"drawn": self.drawn} if self.drawn != drawings.NONE else {}),
        }  # fmt: skip


def score_names(task: Task) -> tuple[str, ...]:
    """Returns what a model of the task gives scores for: a binary model for its second class only."""
    return task.class_names[1:] if task.kind == "binary" else task.class_names


def class_rows(task: Task, labels: np.ndarray) -> np.ndarray:
    """Returns uint8 [n, number of scores]: 1 where the image holds the class that the score is of."""
    rows = task.class_rows(labels)
    return rows[:, 1:] if task.kind == "binary" else rows


def _last_sampling(config: TrainConfig) -> str:
    return CLASS_BALANCED if config.retrain_epochs else config.sampling


def seen(records: SplitRecords, sampling: str) -> list[float]:
    """Returns how many records of an epoch hold the class of each score; whole where nothing is drawn.

    Args:
        records: of the training split.
        sampling: one of `balancing.SAMPLINGS`.
    """
    rows = class_rows(records.task, records.labels)
    if sampling == NATURAL:
        return [int(count) for count in rows.sum(axis=0)]
    draws = expected_draws(records.task, records.labels, [kept for _, kept, _ in records.shards])
    # Far more digits than matter, and not those in which machines differ.
    return [round(math.fsum(draws[column == 1]), 3) for column in rows.T]


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
    counts = zip(
        score_names(records.task),
        seen(records, _last_sampling(config)),
        rows[original].sum(axis=0).tolist(),
        strict=True,
    )
    return Run(
        path=path,
        dataset=dataset.path,
        dataset_id=dataset.id,
        task=dataset.task,
        image_format=dataset.image_format,
        config=config,
        classes={name: ClassCount(n, images) for name, n, images in counts},
        train_records=len(rows),
        train_images=int(original.sum()),
        versions=versions,
        code=named.files_of(config.to_json()),
        selection=_selection(dataset, config),
        drawn=dataset.manifest.drawn_share,
    )


def _selection(dataset: Dataset, config: TrainConfig) -> Selection:
    try:
        records = dataset.split(VALIDATION)
    except UsageError:  # the dataset was built without one, or no image of it takes part in the task
        return selection.without_validation()
    if not len(records):
        return selection.without_validation()
    if config.keep == "last":
        return selection.last()
    rows = class_rows(records.task, records.labels)
    return selection.choose(score_names(records.task), rows, records.patient_ids, config.min_positives)


def begin(run: Run) -> None:
    """Writes config.json into a new or empty folder, or checks that the run in it is the same.

    Raises:
        UsageError: as `check` says; or a URL with credentials would have to be written.
    """
    check(run)
    if not storage.exists(run.file(CONFIG_FILE)):
        sealed = digests.sealed(run.to_json())
        if redacted_text(sealed.decode()) != sealed.decode():
            raise UsageError(
                f"{run.file(CONFIG_FILE)} would keep the credentials of a URL (of the dataset, or in a "
                "setting), which later commands need; give them by the environment, or name a copy"
            )
        storage.make_folder(run.path)
        storage.write_bytes(run.file(CONFIG_FILE), sealed)


def check(run: Run) -> None:
    """Makes sure that a run can begin or go on in its folder.

    Raises:
        UsageError: the folder holds something else, or a run with other settings; says which.
    """
    names = storage.list_names(run.path)
    strangers = [name for name in names if not is_litter(name)]
    if CONFIG_FILE not in names and seeds.is_of_seeds(run.path):
        raise UsageError(
            f"`run={run.path}` holds runs of several seeds; go on with them by --seeds, or name another"
        )
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
        if field.name not in FREE:
            yield field.name, getattr(before.config, field.name), getattr(now.config, field.name)


def open_run(path: str) -> Run:
    """Reads what a run says of itself.

    Raises:
        UsageError: the folder holds no run, or one of another version.
        CxrError: config.json is not byte for byte what was written; those of before, which hold no checksum,
            are checked for their keys alone.
    """
    file = storage.join(path, CONFIG_FILE)
    if not storage.exists(file) and seeds.is_of_seeds(path):
        each = list(seeds.members(path).values())
        one = next((run for run in each if storage.exists(storage.join(run, MODEL_FILE))), each[0])
        raise UsageError(f"{path} holds runs of several seeds: name one of them, such as {one}")
    if not storage.exists(file):
        raise UsageError(f"{path} is no run: found no {CONFIG_FILE} in it; cxr-records train makes one")
    try:
        data = storage.read_bytes(file)
        values = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{file}: no JSON ({error})") from error
    if not isinstance(values, dict) or values.get("format") != _FORMAT or values.get("version") != _VERSION:
        raise UsageError(f"{file}: found no {_FORMAT!r} of version {_VERSION}")
    if "checksum" in values:
        try:
            values = digests.unsealed(file, data)
        except digests.DamagedFileError as error:
            raise CxrError(f"{error}; {_RESTORE}") from None
    try:
        if unknown := sorted(set(values) - _KEYS):
            raise KeyError(f"unknown {unknown[0]}")
        drawings.drawn_words(values.get("drawn", drawings.NONE))  # a KeyError where it is no such word
        return Run(
            path=path,
            dataset=values["dataset"],
            dataset_id=values["dataset_id"],
            task=parse_task(values["task"], values["with_no_finding"]),
            image_format=ImageFormat(**values["image_format"]),
            config=TrainConfig(**{**_BEFORE, **values["config"]}),
            classes={name: ClassCount(**counts) for name, counts in values["classes"].items()},
            train_records=values["train"]["records"],
            train_images=values["train"]["images"],
            versions=values["versions"],
            selection=_selection_of(values.get("selection", {})),
            code={setting: NamedFile(**file) for setting, file in values.get("code", {}).items()},
            drawn=values.get("drawn", drawings.NONE),
        )
    except (KeyError, TypeError, AttributeError, UsageError) as error:
        raise UsageError(
            f"{file}: not as cxr-records train writes it ({type(error).__name__}: {error}); {_RESTORE}"
        ) from error


def _selection_of(values: dict[str, Any]) -> Selection:
    return Selection(tuple(values.get("names", ())), values.get("text", ""))


def dataset_of(run: Run, dataset: Dataset | str | os.PathLike[str] | None = None) -> Dataset:
    """Opens the dataset that a run was trained on, for the run's task.

    Args:
        run: which run.
        dataset: open, or where it is now, if it has moved since training.

    Raises:
        ManifestError: there is no finished dataset.
        UsageError: it is another one than the run's.
    """
    opened = open_dataset(dataset if dataset is not None else run.dataset)
    if opened.id != run.dataset_id:
        raise UsageError(
            f"{opened.path} is not the dataset that {run.path} was trained on: found id {opened.id}, "
            f"expected {run.dataset_id}"
        )
    return opened.as_task(run.task)
