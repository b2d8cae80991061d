"""Whole states of training on disk: weights, optimizer, random seeds, running loss, place in the data."""

import dataclasses
import io
import json
import zipfile
from typing import Any

import keras
import numpy as np

from cxr_records import storage
from cxr_records.errors import CxrError
from cxr_records.progress import say
from cxr_records.trainers import averaging, digests

_PROGRESS = "progress"


@dataclasses.dataclass
class TrainingProgress:
    """How far a run has come.

    Attributes:
        epoch: epochs that are done, those of retraining included.
        retrained: those of them in which the last layer was trained anew.
        batch: batches of the next epoch that are done.
        best: the largest macro AUROC on the validation split, in the phase of the last epoch; None where
            there is none yet.
        best_epoch: the epoch of it, counted from 1; without a validation split the last one. 0 before any.
        stopped: whether it no longer got better, and training ended early; retraining follows all the same.
        history: for each epoch that is done its row of history.csv.
    """

    epoch: int = 0
    batch: int = 0
    best: float | None = None
    best_epoch: int = 0
    stopped: bool = False
    retrained: int = 0
    history: list[dict[str, Any]] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True, eq=False)
class Checkpoint:
    """What a checkpoint holds.

    Attributes:
        arrays: by names of variables, as `save` gives them.
        progress: how far the run had come.
    """

    arrays: dict[str, np.ndarray]
    progress: TrainingProgress


def save(path: str, model: keras.Model, progress: TrainingProgress) -> None:
    """Writes a checkpoint, whole or not at all.

    Args:
        path: an .npz: arrays named after the variables, `model/...`, `average/...`, `seeds/...`,
            `optimizer/...`, `metrics/...`.
        model: compiled; its random seeds are among its variables.
        progress: how far the run has come.
    """
    arrays = {
        # By way of a tensor: a variable that lives on several devices is no array.
        name: keras.ops.convert_to_numpy(keras.ops.convert_to_tensor(variable))
        for name, variable in _variables(model).items()
    }
    arrays[_PROGRESS] = np.frombuffer(json.dumps(dataclasses.asdict(progress)).encode(), np.uint8)
    file = io.BytesIO()
    np.savez(file, **arrays)
    digests.write(path, file.getvalue())


def load(path: str) -> Checkpoint | None:
    """Reads a checkpoint; None where there is no such file.

    Raises:
        CxrError: the file is no checkpoint of ours, or damaged.
    """
    if not storage.exists(path):
        return None
    data = storage.read_bytes(path)
    try:
        if warning := digests.check(path, data):
            say(f"warning: {warning}")
        with np.load(io.BytesIO(data), allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        progress = TrainingProgress(**json.loads(arrays.pop(_PROGRESS).tobytes()))
    except digests.DamagedFileError as error:
        raise digests.DamagedFileError(f"{error}; remove it to begin the run anew") from None
    except (ValueError, KeyError, TypeError, OSError, EOFError, RuntimeError, zipfile.BadZipFile) as error:
        raise digests.DamagedFileError(
            f"{path}: found a damaged checkpoint ({error}); remove it to begin the run anew"
        ) from error
    return Checkpoint(arrays, progress)


def restore(model: keras.Model, arrays: dict[str, np.ndarray], kinds: tuple[str, ...]) -> None:
    """Puts the arrays of a checkpoint back.

    Args:
        model: as when the checkpoint was made; for "model" alone, any with the same weights will do.
        arrays: of its `Checkpoint`.
        kinds: which of "model", "average", "seeds", "optimizer", "metrics".

    Raises:
        CxrError: the checkpoint is of another model.
    """
    variables = {n: v for n, v in _variables(model).items() if n.startswith(kinds)}
    saved = {name: array for name, array in arrays.items() if name.startswith(kinds)}
    if {n: tuple(v.shape) for n, v in variables.items()} != {n: a.shape for n, a in saved.items()}:
        odd = sorted(set(variables) ^ set(saved)) or ["a shape"]
        raise CxrError(f"the checkpoint is of another model: {odd[0]} differs")
    for name, variable in variables.items():
        variable.assign(saved[name])


def _variables(model: keras.Model) -> dict[str, keras.Variable]:
    """Weights by their paths, so that another model can take what fits; the rest by place, as Keras numbers
    its paths anew with every model of a process."""
    weights = {id(variable) for variable in model.weights}
    others = {
        "seeds": [variable for variable in model.variables if id(variable) not in weights],
        "optimizer": model.optimizer.variables if model.compiled else [],
        "metrics": model.metrics_variables,
    }
    named = {f"model/{variable.path}": variable for variable in averaging.own_weights(model)}
    named |= {f"average/{path}": each for path, each in averaging.named_averages(model).items()}
    for kind, variables in others.items():
        named |= {f"{kind}/{place:04d}": variable for place, variable in enumerate(variables)}
    return named
