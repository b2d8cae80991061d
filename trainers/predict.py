"""Scores of a trained run: for the splits of its dataset, and for single image files."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import keras
import numpy as np
import pandas as pd

from cxr_records import reader, storage
from cxr_records.dataset import Dataset, SplitRecords
from cxr_records.errors import CxrError, UsageError
from cxr_records.images import ImageDecodeError, ImageFormat, decode_image
from cxr_records.progress import say
from cxr_records.splits import TEST, VALIDATION
from cxr_records.trainers import digests, models, named, runs, scoring, train
from cxr_records.trainers.evaluation.predictions import check_scores, write_predictions

BATCH_SIZE = 64


def load_model(run: runs.Run, dataset: Dataset | None = None) -> keras.Model:
    """Loads a run's trained model: uint8 [batch, size, size, 1] -> probabilities [batch, scores], float32.

    Nothing in it is random: `model(x)` is what `predict` gives. A damaged one is made again from the best
    checkpoint, which needs the run's dataset, and that is said.

    Args:
        run: which run.
        dataset: the run's, where it is open already.

    Raises:
        UsageError: the run has none yet, or the user's code that it is made of is gone or has changed.
        CxrError: it cannot be loaded, or is damaged and cannot be made again.
    """
    path, settings = run.file(runs.MODEL_FILE), run.config.to_json()
    if not storage.exists(path):
        raise UsageError(f"{run.path}: found no {runs.MODEL_FILE}; run its train command again until it ends")
    with models.local_copy(path) as local:
        try:
            if warning := digests.check(path, storage.read_bytes(local)):
                say(f"warning: {warning}")
        except digests.DamagedFileError as error:
            try:
                remade = train.remake_model(run, runs.dataset_of(run, dataset))
            except (CxrError, OSError) as trouble:
                raise CxrError(f"{error}, and it cannot be made again: {trouble}") from trouble
            say(f"warning: {error}; it was made again from {runs.BEST_FILE}")
            return remade
        try:
            # What runs of before saved still holds the layers that made training random.
            return models.inert(keras.saving.load_model(local, compile=False))
        except MemoryError:  # about the machine, not the file
            raise
        except Exception as error:  # as many kinds as there are ways for a file to be damaged
            custom = named.objects(settings, run.code)
            try:
                return models.inert(keras.saving.load_model(local, compile=False, custom_objects=custom))
            except MemoryError:
                raise
            except Exception:
                reason = (str(error).splitlines() or [type(error).__name__])[0]
                raise CxrError(f"{path} cannot be loaded: {reason}") from error


def predict_run(
    run: str, splits: Sequence[str] = (VALIDATION, TEST), dataset: Dataset | str | None = None
) -> pd.DataFrame:
    """Scores splits of the run's dataset and writes predictions.parquet into the run.

    Args:
        run: the run directory.
        splits: which; those that the dataset does not have are left out.
        dataset: open, or where it is now, if it has moved since training.

    Returns:
        The table: one row per image, in manifest order; columns split, image_id, patient_id, view, sex,
        age_years, then prob_CLASS (float32) and label_CLASS (int8) for each score.

    Raises:
        UsageError: the run is not finished, the dataset is another than the run's, or has none of the splits.
        CxrError: the model is damaged, or a score is NaN or infinite.
    """
    trained = runs.open_run(run)
    dataset = runs.dataset_of(trained, dataset)
    model = load_model(trained, dataset)
    tables = []
    for split in splits:
        if split not in dataset.splits or not dataset.splits[split].records:
            continue
        records = dataset.split(split)
        batches = dataset.load(split, min(BATCH_SIZE, len(records)), shuffle=False, last_batch="pad")
        with reader.shard_errors():
            scores = scoring.score(model, batches, len(records))
        check_scores(trained.file(runs.MODEL_FILE), records.image_ids.tolist(), trained.score_names, scores)
        tables.append(_table(split, records, scores))
    if not tables:
        raise UsageError(f"{dataset.path} has none of the splits {', '.join(splits)}")
    table = pd.concat(tables, ignore_index=True)
    write_predictions(storage.join(run, runs.PREDICTIONS_FILE), table)
    return table


def _table(split: str, records: SplitRecords, scores: np.ndarray) -> pd.DataFrame:
    columns: dict[str, Any] = {
        "split": split,
        "image_id": records.image_ids,
        "patient_id": records.patient_ids,
        "view": records.views,
        "sex": records.sexes,
        "age_years": records.ages_years,
    }
    rows = runs.class_rows(records.task, records.labels).astype(np.int8)
    for place, name in enumerate(runs.score_names(records.task)):
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
        CxrError: the model is damaged, or a score is NaN or infinite.
    """
    trained = runs.open_run(run)
    model, names = load_model(trained), trained.score_names
    images, problems = read_files(paths, trained.image_format)
    scored = {path: FileScore(path, {}, problem) for path, problem in problems.items()}
    if images:
        stacked = np.stack(list(images.values()))[..., np.newaxis]
        scores = model.predict(stacked, batch_size=BATCH_SIZE, verbose=0)
        check_scores(trained.file(runs.MODEL_FILE), list(images), names, scores)
        for path, row in zip(images, np.asarray(scores, np.float64), strict=True):
            scored[path] = FileScore(path, dict(zip(names, row.tolist(), strict=True)), "")
    return [scored[path] for path in paths]


def read_files(
    paths: Sequence[str], image_format: ImageFormat
) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Reads PNG, JPEG or DICOM files as the build decodes them.

    Returns:
        uint8 [size, size] of each file that can be read, and what is wrong with each of the others.
    """
    images, problems = {}, {}
    for path in paths:
        try:
            pixels = decode_image(storage.read_bytes(path), image_format).pixels
            # A JPEG dataset's images have been through its encoder; so must these.
            images[path] = image_format.decode(image_format.encode(pixels))
        except ImageDecodeError as error:
            problems[path] = str(error)
        except OSError as error:
            problems[path] = error.strerror or str(error)
    return images, problems
