"""Weights that PyTorch saved in its format of before 1.6, read without PyTorch.

Such a file is a few pickles, which name and describe tensors, and then their raw numbers. A pickle can run
any code: these may make tensors and ordered dictionaries, and every other name in them is refused.
"""

import collections
import io
import pickle
from typing import Any

import numpy as np

from cxr_records.errors import CxrError

_MAGIC = 0x1950A86A20F9469CFC6C  # begins files of that format
_PROTOCOL = 1001
_TYPES = {"FloatStorage": np.dtype("<f4"), "LongStorage": np.dtype("<i8")}


def read_weights(data: bytes, where: str) -> dict[str, np.ndarray]:
    """Returns the tensors of a state dictionary by name, with their axes as PyTorch has them.

    Args:
        data: the whole file.
        where: what it is called in messages.

    Raises:
        CxrError: the file is of another format, names anything but tensors of float32 or int64, or is
            damaged.
    """
    file = io.BytesIO(data)
    try:
        if (_Pickle(file).load(), _Pickle(file).load()) != (_MAGIC, _PROTOCOL):
            raise ValueError("found another format")
        if not _Pickle(file).load()["little_endian"]:
            raise ValueError("found numbers that are not little-endian")
        tensors = _Pickle(file).load()
        storages = {}
        for key in _Pickle(file).load():
            size = int.from_bytes(file.read(8), "little")
            storages[key] = np.frombuffer(file.read(size * _size_of(tensors, key)), np.uint8)
        return {name: tensor.read(storages) for name, tensor in tensors.items()}
    except MemoryError:  # about the machine, not the file
        raise
    except Exception as error:  # a file of another kind fails in as many ways as there are kinds
        reason = " ".join(str(error).split())
        raise CxrError(f"{where}: not weights that PyTorch saved, or damaged ({reason})") from error


class _Tensor:
    """A view of a storage, as PyTorch describes it: offset and strides are counted in numbers."""

    def __init__(self, storage: Any, offset: int, shape: Any, strides: Any, *of_training: Any):
        kind, self.dtype, self.key, _place, self._numbers, _view = storage
        if kind != "storage":
            raise ValueError(f"found a {kind} where a storage was expected")
        self._offset, self._shape, self._strides = offset, shape, strides

    def read(self, storages: dict[str, np.ndarray]) -> np.ndarray:
        """Returns the numbers; NumPy refuses a view that leaves its storage."""
        data, width = storages[self.key], self.dtype.itemsize
        if len(data) != self._numbers * width:
            raise ValueError("found a storage of another length than its tensor says")
        strides = [step * width for step in self._strides]
        return np.ndarray(self._shape, self.dtype, data.data, self._offset * width, strides).copy()


def _size_of(tensors: dict[str, _Tensor], key: str) -> int:
    """Bytes of each number in a storage: its tensor says what they are."""
    return next(int(tensor.dtype.itemsize) for tensor in tensors.values() if tensor.key == key)


class _Pickle(pickle.Unpickler):
    """Makes tensors and ordered dictionaries, and nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        """Returns what a name in the pickle stands for."""
        if (module, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _Tensor
        if module == "torch" and name in _TYPES:
            return _TYPES[name]
        raise pickle.UnpicklingError(f"{module}.{name} is no tensor")

    def persistent_load(self, pid: Any) -> Any:
        """Returns the description of a storage as it is."""
        return pid
