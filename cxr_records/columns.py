"""Columns of millions of images: Arrow and NumPy arrays, never a Python object for each image."""

from collections.abc import Iterator
from typing import Any, TypeAlias

import numpy as np
import pyarrow
import pyarrow.compute

# An array of Arrow, or several of them: its stubs know less than it takes, and see nulls everywhere.
Column: TypeAlias = Any
pa: Any = pyarrow
pc: Any = pyarrow.compute

OBJECTS = 1 << 16  # rows of which there may be Python objects at a time


def chunks(count: int, size: int = OBJECTS) -> Iterator[slice]:
    """Yields slices of at most `size` rows that cover `count` rows in order."""
    for start in range(0, count, size):
        yield slice(start, min(start + size, count))


def array_of(values: Any, kind: Any = None, mask: Any = None) -> Column:
    """Returns values as Arrow's."""
    return pa.array(values, kind, mask=mask)


def give_back() -> None:
    """Gives memory that was freed back to the system: large arrays that come next could not use it."""
    pa.default_memory_pool().release_unused()


def one_chunk(values: Column) -> Column:
    """Returns a column of pandas or Arrow as one Arrow array, without a copy where it is one already."""
    array = pa.array(values) if not isinstance(values, pa.Array | pa.ChunkedArray) else values
    if isinstance(array, pa.ChunkedArray):
        return array.chunk(0) if array.num_chunks == 1 else array.combine_chunks()
    return array


def texts(values: Column) -> Column:
    """Returns a column of text as one Arrow array of strings."""
    array = one_chunk(values)
    return array if array.type == pa.string() else array.cast(pa.string())


def equals(values: Column, text: str) -> np.ndarray:
    """Tells which values of a column of text are this one: bool [n], False where there is none."""
    found: np.ndarray = pc.equal(one_chunk(values), text).fill_null(False).to_numpy(zero_copy_only=False)
    return found


def known(values: Column) -> np.ndarray:
    """Tells where a column has a value: bool [n]."""
    found: np.ndarray = one_chunk(values).is_valid().to_numpy(zero_copy_only=False)
    return found


def joined(values: Column, between: str) -> bytes:
    """Joins a column of text to one, in UTF-8."""
    text: str = pc.binary_join(pa.ListArray.from_arrays([0, len(values)], values), between)[0].as_py()
    return text.encode()


def lists(values: np.ndarray) -> Column:
    """Returns rows of whole numbers [n, k] as Arrow's lists of int64."""
    count, width = len(values), int(values.shape[1])
    flat = pa.array(np.ascontiguousarray(values, np.int64).reshape(-1))
    return pa.ListArray.from_arrays(np.arange(count + 1, dtype=np.int32) * width, flat)


def whole_bytes(values: np.ndarray) -> Column:
    """Returns rows of bytes, uint8 [n, k], as Arrow's binary of fixed width."""
    width = values.shape[1]
    flat = np.ascontiguousarray(values).reshape(-1)
    return pa.Array.from_buffers(pa.binary(width), len(values), [None, pa.py_buffer(flat)])


def rows_of_bytes(values: Column) -> np.ndarray:
    """Returns Arrow's binary of fixed width as uint8 [n, k]; zeros where it has nothing."""
    array, width = one_chunk(values), values.type.byte_width
    if array.null_count:
        array = array.fill_null(bytes(width))
    buffer = array.buffers()[1]
    start = array.offset * width
    flat = np.frombuffer(buffer, np.uint8)[start : start + len(array) * width]
    return flat.reshape(len(array), width)


def from_hex(values: Column, num_bytes: int) -> np.ndarray:
    """Turns digests written as text into bytes: uint8 [n, num_bytes]."""
    flat = bytes.fromhex(joined(one_chunk(values), "").decode()) if len(values) else b""
    return np.frombuffer(flat, np.uint8).reshape(len(values), num_bytes)


def to_hex(values: np.ndarray) -> Column:
    """Writes rows of bytes, uint8 [n, k], as text: an Arrow array of strings."""
    count, letters = len(values), 2 * values.shape[1]
    offsets = np.arange(count + 1, dtype=np.int32) * letters
    text = values.tobytes().hex().encode()
    return pa.StringArray.from_buffers(count, pa.py_buffer(offsets), pa.py_buffer(text))


def rows_of(names: Column, table: Column) -> np.ndarray:
    """Finds names in a column of names.

    The table is passed over ten times, each for a part of the names, so that little is hashed at a time.

    Args:
        names: Arrow array of strings or binary; a name may come several times.
        table: Arrow array of the same type.

    Returns:
        int32 [names], for each the row of the table that holds it; -1 where none or several do.
    """
    found = np.empty(len(names), np.int32)
    for part in chunks(len(names), max(1 << 16, len(table) // 10)):
        coded = one_chunk(names[part]).dictionary_encode()
        places = pc.index_in(table, value_set=coded.dictionary)
        rows = np.flatnonzero(places.is_valid().to_numpy(zero_copy_only=False))
        places = places.drop_null().to_numpy()
        row_of = np.full(len(coded.dictionary), -1, np.int32)
        row_of[places] = rows
        row_of[np.bincount(places, minlength=len(row_of)) > 1] = -1
        found[part] = row_of[coded.indices.to_numpy()]
    return found
