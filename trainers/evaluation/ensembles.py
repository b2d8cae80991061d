"""Runs of several seeds as one: the mean of their probabilities, and how far single runs lie apart.

Probabilities and not logits are averaged (Lakshminarayanan et al. 2017): the mean is what the members say
together, and stays calibrated where they are calibrated and agree.
"""

import dataclasses

import numpy as np
import pandas as pd

from cxr_records import storage
from cxr_records.errors import CxrError, UsageError
from cxr_records.parquet import read_parquet
from cxr_records.trainers import digests, runs, seeds
from cxr_records.trainers.config import TrainConfig
from cxr_records.trainers.evaluation import metrics
from cxr_records.trainers.evaluation.bootstrap import rounded
from cxr_records.trainers.evaluation.given_labels import read_labels, relabel
from cxr_records.trainers.evaluation.predictions import Predictions, read_run_predictions, write_predictions
from cxr_records.trainers.evaluation.results import OverSeeds, Spread


def open_run(path: str) -> runs.Run:
    """Reads what a run says of itself, or what those of several seeds say: what they have in common.

    Raises:
        UsageError: the folder holds no run, or no finished one.
        CxrError: what it holds is not as it was written.
    """
    if not seeds.is_of_seeds(path):
        return runs.open_run(path)
    first = next(iter(_finished(path)))
    return dataclasses.replace(first, path=path)


def combine(path: str) -> list[str]:
    """Writes predictions.parquet of the ensemble: the mean over the finished seeds.

    Returns:
        What is to be said: which seeds are not in it.

    Raises:
        UsageError: no seed is finished, or they differ in more than their seed.
        CxrError: scores of one are damaged.
    """
    finished = _finished(path)
    tables = [_table(run) for run in finished]
    first = tables[0]
    columns = [f"prob_{name}" for name in finished[0].score_names]
    for run, table in zip(finished, tables, strict=True):
        if not table["image_id"].equals(first["image_id"]) or not table["split"].equals(first["split"]):
            raise UsageError(f"{run.path} has scored other images than {finished[0].path}; train both again")
    mean = np.mean([table[columns].to_numpy(np.float64) for table in tables], axis=0).astype(np.float32)
    together = first.assign(**dict(zip(columns, mean.T, strict=True)))
    write_predictions(storage.join(path, runs.PREDICTIONS_FILE), together)
    members, done = seeds.members(path), {run.path for run in finished}
    lacks = [str(seed) for seed, folder in members.items() if folder not in done]
    if not lacks:
        return []
    return [f"the ensemble is of {len(finished)} of {len(members)} seeds: not finished {', '.join(lacks)}"]


def over_seeds(path: str, split: str, labels: str | None = None) -> OverSeeds:
    """Returns mean and spread over the finished seeds, each measured by itself.

    Args:
        path: folder of several seeds.
        split: of their dataset.
        labels: a table whose labels count in place of NIH's, as `evaluate.evaluate_run` takes it.
    """
    finished = _finished(path)
    scored = [read_run_predictions(run, split) for run in finished]
    if labels:
        table = read_labels(labels)
        scored = [relabel(each, table, finished[0].task)[0] for each in scored]
    areas = np.array([metrics.auroc_per_class(each.labels, each.scores) for each in scored])
    precisions = np.array([_precisions(each) for each in scored])
    precisions[np.isnan(areas)] = np.nan
    return OverSeeds(
        seeds=tuple(run.config.seed for run in finished),
        macro_auroc=_spread(np.array([metrics.macro(each) for each in areas])),
        macro_auprc=_spread(np.array([metrics.macro(each) for each in precisions])),
        auroc={name: _spread(area) for name, area in zip(scored[0].names, areas.T, strict=True)},
    )


def _precisions(scored: Predictions) -> np.ndarray:
    pairs = zip(scored.labels.T, scored.scores.T, strict=True)
    return np.array([metrics.average_precision(*pair) for pair in pairs])


def _spread(values: np.ndarray) -> Spread:
    each = tuple(rounded(value) for value in values)
    if np.isnan(values).any():
        return Spread(mean=None, spread=None, values=each)
    apart = rounded(values.std(ddof=1)) if len(values) > 1 else None
    return Spread(mean=rounded(values.mean()), spread=apart, values=each)


def _finished(path: str) -> list[runs.Run]:
    """The finished runs of a folder, in the order of their seeds, which alone tells them apart."""
    needed = (runs.MODEL_FILE, runs.PREDICTIONS_FILE)
    finished = [
        runs.open_run(folder)
        for folder in seeds.members(path).values()
        if all(storage.exists(storage.join(folder, file)) for file in needed)
    ]
    if not finished:
        raise UsageError(f"{path}: no seed is finished; run its train command again until one is")

    def rest(run: runs.Run) -> runs.Run:
        free = {name: getattr(TrainConfig(), name) for name in ("seed", *runs.FREE)}
        config = dataclasses.replace(run.config, **free)
        return dataclasses.replace(run, path="", dataset="", versions={}, config=config)

    for run in finished:
        if rest(run) != rest(finished[0]):
            raise UsageError(
                f"{run.path} and {finished[0].path} differ in more than their seed: no ensemble; train them "
                "with the same settings"
            )
    return finished


def _table(run: runs.Run) -> pd.DataFrame:
    file = run.file(runs.PREDICTIONS_FILE)
    data = storage.read_bytes(file)
    try:
        digests.check(file, data)
        return read_parquet(data).to_pandas()
    except CxrError as error:
        raise CxrError(f"{error}; cxr-records evaluate {run.path} makes it again") from error
