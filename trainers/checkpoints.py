"""Whole states of training on disk: weights, optimizer, random seeds, running loss, place in the data."""

import io
import json
import zipfile
from typing import Any

import keras
import numpy as np

from cxr_records import storage
from cxr_records.errors import CxrError

_PROGRESS = "progress"


def save(path: str, model: keras.Model, progress: dict[str, Any]) -> None:
    """Writes a checkpoint, whole or not at all.

    Args:
        path: an .npz: arrays named after the variables, `model/...`, `seeds/...`,
            `optimizer/...`, `metrics/...`.
        model: compiled; its random seeds are among its variables.
        progress: plain values to be had back from `load`.
    """
    arrays = {
        # By way of a tensor: a variable that lives on several devices is no array.
        name: keras.ops.convert_to_numpy(keras.ops.convert_to_tensor(variable))
        for name, variable in _variables(model).items()
    }
    arrays[_PROGRESS] = np.frombuffer(json.dumps(progress).encode(), np.uint8)
    with storage.atomic_file(path) as file:
        np.savez(file, **arrays)


def load(path: str) -> tuple[dict[str, np.ndarray], dict[str, Any]] | None:
    """Returns the arrays of a checkpoint and its progress; None where there is none.

    Raises:
        CxrError: the file is no checkpoint of ours, or damaged.
    """
    if not storage.exists(path):
        return None
    try:
        with np.load(io.BytesIO(storage.read_bytes(path)), allow_pickle=False) as held:
            arrays = {name: held[name] for name in held.files}
        return arrays, json.loads(arrays.pop(_PROGRESS).tobytes())
    except (ValueError, KeyError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise CxrError(
            f"{path}: found a damaged checkpoint ({error}); remove it to begin the run anew"
        ) from error


def restore(model: keras.Model, arrays: dict[str, np.ndarray], kinds: tuple[str, ...]) -> None:
    """Puts the arrays of a checkpoint back.

    Args:
        model: as when the checkpoint was made.
        arrays: of `load`.
        kinds: which of "model", "seeds", "optimizer", "metrics".

    Raises:
        CxrError: the checkpoint is of another model.
    """
    variables = {n: v for n, v in _variables(model).items() if n.startswith(kinds)}
    held = {name: array for name, array in arrays.items() if name.startswith(kinds)}
    if {n: tuple(v.shape) for n, v in variables.items()} != {n: a.shape for n, a in held.items()}:
        odd = sorted(set(variables) ^ set(held)) or ["a shape"]
        raise CxrError(f"the checkpoint is of another model: {odd[0]} differs")
    for name, variable in variables.items():
        variable.assign(held[name])


def _variables(model: keras.Model) -> dict[str, keras.Variable]:
    """Weights by their paths, so that another model can take what fits; the rest by place, as Keras numbers
    its paths anew with every model of a process."""
    weights = {id(variable) for variable in model.weights}
    others = {
        "seeds": [variable for variable in model.variables if id(variable) not in weights],
        "optimizer": model.optimizer.variables,
        "metrics": model.metrics_variables,
    }
    found = {f"model/{variable.path}": variable for variable in model.weights}
    for kind, variables in others.items():
        found |= {f"{kind}/{place:04d}": variable for place, variable in enumerate(variables)}
    return found
