"""The table of predictions."""

import io

import pandas as pd

from cxr_records import storage


def write_predictions(path: str, table: pd.DataFrame) -> None:
    """Writes a predictions table, whole or not at all."""
    out = io.BytesIO()
    table.to_parquet(out, index=False)
    storage.write_bytes(path, out.getvalue())
