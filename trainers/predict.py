"""Scores of a trained run: for the splits of its dataset, and for single image files."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import keras
import numpy as np
import pandas as pd

from cxr_records import reader, storage
from cxr_records.errors import UsageError
from cxr_records.images import ImageDecodeError, ImageFormat, decode_image
from cxr_records.manifest import read_manifest
from cxr_records.splits import TEST, VALIDATION
from cxr_records.trainers import models, runs, scoring
from cxr_records.trainers.evaluation.predictions import write_predictions

BATCH_SIZE = 64


def load_model(run: str) -> keras.Model:
    """Loads a run's trained model: uint8 [batch, size, size, 1] -> probabilities [batch, scores].

    Raises:
        UsageError: the run has none yet.
    """
    path = storage.join(run, runs.MODEL_FILE)
    if not storage.exists(path):
        raise UsageError(f"{run}: found no {runs.MODEL_FILE}; run its train command again until it ends")
    with models.local_copy(path) as local:
        return keras.saving.load_model(local, compile=False)


def predict_run(
    run: str, splits: Sequence[str] = (VALIDATION, TEST), dataset: str | None = None
) -> pd.DataFrame:
    """Scores splits of the run's dataset and writes predictions.parquet into the run.

    Args:
        run: the run directory.
        splits: which; those that the dataset does not have are left out.
        dataset: where it is now, if it has moved since training.

    Returns:
        The table: one row per image, in manifest order; columns split, image_id, patient_id, view, sex,
        age_years, then prob_CLASS (float32) and label_CLASS (int8) for each score.

    Raises:
        UsageError: the run is not finished, the dataset is another than the run's, or has none of the splits.
    """
    described = runs.read_run(run)
    dataset = dataset or described["dataset"]
    manifest = read_manifest(dataset)
    if manifest["id"] != described["dataset_id"]:
        raise UsageError(
            f"{dataset} is not the dataset that {run} was trained on: "
            f"found id {manifest['id']}, expected {described['dataset_id']}"
        )
    task, model = runs.task_of(described), load_model(run)
    tables = []
    for split in splits:
        if not manifest["splits"].get(split, {}).get("records"):
            continue
        held = reader.split_records(dataset, split, task.name, task.with_no_finding)
        batches = reader.load_split(
            dataset,
            split,
            min(BATCH_SIZE, len(held.labels)),
            task=task.name,
            with_no_finding=task.with_no_finding,
            shuffle=False,
            last_batch="pad",
        )
        with reader.shard_errors():
            scores = scoring.score(model, batches, len(held.labels))
        tables.append(_table(split, held, scores))
    if not tables:
        raise UsageError(f"{dataset} has none of the splits {', '.join(splits)}")
    table = pd.concat(tables, ignore_index=True)
    write_predictions(storage.join(run, runs.PREDICTIONS_FILE), table)
    return table


def _table(split: str, held: reader.SplitRecords, scores: np.ndarray) -> pd.DataFrame:
    columns: dict[str, Any] = {
        "split": split,
        "image_id": held.image_ids,
        "patient_id": held.patient_ids,
        "view": held.views,
        "sex": held.sexes,
        "age_years": held.ages_years,
    }
    rows = runs.class_rows(held.task, held.labels).astype(np.int8)
    for place, name in enumerate(runs.score_names(held.task)):
        columns[f"prob_{name}"] = scores[:, place]
        columns[f"label_{name}"] = rows[:, place]
    return pd.DataFrame(columns)


class FileScore(NamedTuple):
    """What came of one image file.

    Attributes:
        path: the file.
        scores: probability of each class; empty when it could not be read.
        problem: why not; "" when it could.
    """

    path: str
    scores: dict[str, float]
    problem: str


def predict_files(run: str, paths: Sequence[str]) -> list[FileScore]:
    """Scores PNG, JPEG or DICOM files, decoded as the build decodes.

    Raises:
        UsageError: the run is not finished.
    """
    described = runs.read_run(run)
    model, names = load_model(run), runs.score_names(runs.task_of(described))
    image_format = ImageFormat(**described["image_format"])
    found, images = {}, {}
    for path in paths:
        try:
            pixels = decode_image(storage.read_bytes(path), image_format).pixels
            # A JPEG dataset's images have been through its encoder; so must these.
            images[path] = image_format.decode(image_format.encode(pixels))
        except ImageDecodeError as error:
            found[path] = FileScore(path, {}, str(error))
        except OSError as error:
            found[path] = FileScore(path, {}, error.strerror or str(error))
    if images:
        stacked = np.stack(list(images.values()))[..., np.newaxis]
        scores = model.predict(stacked, batch_size=BATCH_SIZE, verbose=0)
        for path, row in zip(images, np.asarray(scores, np.float64), strict=True):
            found[path] = FileScore(path, dict(zip(names, row.tolist(), strict=True)), "")
    return [found[path] for path in paths]
