"""The one way in which a Parquet file is read, and lists of work that a command writes for its workers."""

import functools
import hashlib
import io
from collections.abc import Iterable
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from cxr_records import storage
from cxr_records.errors import CxrError


def read_parquet(data: bytes) -> pa.Table:
    """Reads the bytes of a whole Parquet file.

    `pyarrow.parquet.read_table`, and pandas by it, leave threads behind that may still run when Python ends,
    which then aborts (pyarrow 25: "terminate called without an active exception", in up to a third of the
    processes of a busy machine). Reading the file by itself does not.

    Raises:
        pyarrow.ArrowException: the bytes are no Parquet file, or damaged.
        OSError: they are cut short.
    """
    table: pa.Table = pq.ParquetFile(io.BytesIO(data)).read()
    return table


class WorkFile(NamedTuple):
    """A Parquet file with a row group for each part of a job, and its sha256, which travel with the parts."""

    path: str
    sha256: str


def write_work(path: str, schema: pa.Schema, tables: Iterable[pa.Table]) -> WorkFile:
    """Writes what workers have to do, a row group for each table."""
    out = io.BytesIO()
    with pq.ParquetWriter(out, schema) as writer:
        for table in tables:
            writer.write_table(table, row_group_size=len(table))
    data = out.getvalue()
    storage.write_bytes(path, data)
    return WorkFile(path, hashlib.sha256(data).hexdigest())


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
