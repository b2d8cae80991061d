"""The one way in which a Parquet file is read."""

import io

import pyarrow as pa
import pyarrow.parquet as pq


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
