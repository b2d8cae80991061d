"""The one way in which a Parquet file is read, and lists of work that a command writes for its workers."""

import functools
import hashlib
import io
from collections.abc import Iterable, Sequence
from typing import IO, Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from cxr_records import storage
from cxr_records.errors import CxrError


def read_parquet(data: bytes, columns: Sequence[str] | None = None) -> pa.Table:
    """Reads the bytes of a whole Parquet file: all columns, or those asked for, in that order.

    `pyarrow.parquet.read_table`, and pandas by it, leave threads behind that may still run when Python ends,
    which then aborts (pyarrow 25: "terminate called without an active exception", in up to a third of the
    processes of a busy machine). Reading the file by itself does not.

    Raises:
        pyarrow.ArrowException: the bytes are no Parquet file, or damaged.
        OSError: they are cut short.
    """
    table: pa.Table = pq.ParquetFile(io.BytesIO(data)).read(
        None if columns is None else list(columns), use_threads=False
    )
    return table if columns is None else table.select(list(columns))


class WorkFile(NamedTuple):
    """A Parquet file with a row group for each part of a job, and its sha256, which travel with the parts."""

    path: str
    sha256: str


class HashedFile(io.RawIOBase):
    """A file to write to from its beginning to its end; what goes through is counted and hashed.

    Args:
        file: open to be written, as `storage.atomic_file` gives it.
    """

    def __init__(self, file: IO[bytes]):
        super().__init__()
        self._file, self._sha256, self.size = file, hashlib.sha256(), 0

    def writable(self) -> bool:
        """Yes."""
        return True

    def write(self, data: Any) -> int:
        """Writes all of the data."""
        self._file.write(data)
        self._sha256.update(data)
        self.size += len(data)
        return len(data)

    def tell(self) -> int:
        """How many bytes were written."""
        return self.size

    def parquet(self, schema: pa.Schema) -> pq.ParquetWriter:
        """Opens a Parquet file in it."""
        to: Any = self  # any file does
        return pq.ParquetWriter(to, schema)

    def hexdigest(self) -> str:
        """The sha256 of what was written."""
        return self._sha256.hexdigest()


def write_work(path: str, schema: pa.Schema, tables: Iterable[pa.Table]) -> WorkFile:
    """Writes what workers have to do, a row group for each table; one is held at a time."""
    with storage.atomic_file(path) as file:
        out = HashedFile(file)
        with out.parquet(schema) as writer:
            for table in tables:
                writer.write_table(table, row_group_size=len(table))
    return WorkFile(path, out.hexdigest())


def read_work(work: WorkFile, row_group: int) -> list[dict[str, Any]]:
    """Returns the rows of one part of a job.

    Raises:
        CxrError: the file is not as it was written: what it says would be done all the same.
    """
    rows: list[dict[str, Any]] = (
        pq.ParquetFile(io.BytesIO(_checked(work))).read_row_group(row_group).to_pylist()
    )
    return rows


@functools.lru_cache(maxsize=1)
def _checked(work: WorkFile) -> bytes:
    """The bytes of a work file, read and checked once by each process."""
    data = storage.read_bytes(work.path)
    if hashlib.sha256(data).hexdigest() != work.sha256:
        raise CxrError(f"{work.path} changed since it was written; run the same again, which writes it anew")
    return data
