"""records.parquet, the table with a row per record: believed once it is what the manifest tells of."""

import hashlib
import io
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cxr_records import storage
from cxr_records.errors import CxrError
from cxr_records.findings import NO_FINDING
from cxr_records.images import ImageFormat
from cxr_records.layout import RECORDS_FILE
from cxr_records.manifest import Manifest, ShardEntry
from cxr_records.manifest_schema import MOST_FILE_BYTES, MOST_LETTERS, most_table_bytes
from cxr_records.tasks import Task
from cxr_records.tfrecord import FOOTER_BYTES, HEADER_BYTES, OVERHEAD_BYTES

VERIFY = "run cxr-records verify on the dataset"  # what to do where something does not fit together

_COLUMNS = {
    "split": pa.string(),
    "shard": pa.string(),
    "place": pa.int64(),
    "offset": pa.int64(),
    "image_offset": pa.int64(),
    "image_bytes": pa.int64(),
    "image_id": pa.string(),
    "patient_id": pa.int64(),
    "view": pa.string(),
    "sex": pa.string(),
    "age_years": pa.int64(),
    "copy": pa.int64(),
    "augmentation": pa.string(),
}  # and label, by the task
# Which datasets of before have not.
_LATER_COLUMNS = ("image_offset", "image_bytes")
_TEXTS = [name for name, kind in _COLUMNS.items() if kind == pa.string()]


class RecordTableError(CxrError):
    """The table of records is missing, damaged, or not as we write it; `trouble` says which."""

    def __init__(self, dataset: str, trouble: str, remedy: str = VERIFY):
        super().__init__(f"{dataset}: the table of records cannot be read ({trouble}); {remedy}")
        self.trouble = trouble


class _OlderTableError(ValueError):
    """The table is whole, and was written before it had all columns of today."""


def read_record_table(dataset: str, manifest: Manifest) -> pa.Table:
    """Reads the table of records of a finished dataset.

    Its bytes are those that the manifest tells of, and checked before they are parsed; then rows, columns,
    splits, shards, places and offsets, which say where to read. `disagreements` are not looked for.

    Args:
        dataset: folder or URL.
        manifest: of the dataset.

    Raises:
        RecordTableError: it is missing, or not such a table.
    """
    (entry,) = (entry for entry in manifest.files if entry.file == RECORDS_FILE)
    try:
        with storage.open_regular(storage.join(dataset, RECORDS_FILE)) as file:
            data = storage.read_up_to(file, entry.bytes + 1)
        if len(data) != entry.bytes:
            more = " or more" if len(data) > entry.bytes else ""
            raise ValueError(f"{len(data):,} bytes{more}, the manifest says {entry.bytes:,}")
        if hashlib.sha256(data).hexdigest() != entry.sha256:
            raise ValueError("its sha256 is not that of the manifest")
        table = _parsed(data, manifest)
        _check_places(table, manifest)
        return table
    except _OlderTableError as error:
        raise RecordTableError(dataset, str(error), "build the dataset again") from None
    except (OSError, ValueError, pa.ArrowException, CxrError) as error:
        raise RecordTableError(dataset, " ".join(str(error).split())) from None


def label_rows(table: pa.Table, task: Task) -> np.ndarray:
    """Returns the column of labels: int64 [n], or [n, number of findings] for multilabel."""
    values = pc.list_flatten(table["label"]) if task.label_shape else table["label"]
    labels: np.ndarray = values.to_numpy()
    return labels.reshape(len(table), *task.label_shape)


def disagreements(table: pa.Table, manifest: Manifest) -> Iterator[str]:
    """Yields what the table tells otherwise than the manifest: images, copies, patients and classes.

    Args:
        table: as `read_record_table` returned it.
        manifest: of the same dataset.
    """
    task = manifest.config.task
    split, copy = table["split"].to_numpy(), table["copy"].to_numpy()
    patient, labels = table["patient_id"].to_numpy(), label_rows(table, task)
    if (copy < 0).any():
        yield f"copy {copy.min()}, expected 0 or more"
    most = 1 if task.kind == "multilabel" else len(task.class_names) - 1
    if labels.min() < 0 or labels.max() > most:
        wrong = labels.min() if labels.min() < 0 else labels.max()
        yield f"label {wrong}, expected 0 to {most}"
        return
    classes, names = task.class_rows(labels), task.class_names
    if task.kind == "multilabel":
        classes, names = np.column_stack([classes, ~classes.any(axis=1)]), (*names, NO_FINDING)
    for name, info in manifest.splits.items():
        here = split == name
        original = here & (copy == 0)
        counted = {
            "images": int(original.sum()),
            "copies": int(here.sum() - original.sum()),
            "patients": len(np.unique(patient[here])),
        }
        for kind, number in counted.items():
            if (told := getattr(info, kind)) != number:
                yield f"{number:,} {kind} in {name}, the manifest says {told:,}"
        for kind, rows in (("images", original), ("records", here)):
            for class_name, number in zip(names, classes[rows].sum(axis=0).tolist(), strict=True):
                if (told := getattr(manifest.classes[class_name].splits[name], kind)) != number:
                    yield f"{number:,} {kind} of {class_name} in {name}, the manifest says {told:,}"


def _parsed(data: bytes, manifest: Manifest) -> pa.Table:
    """The table of a Parquet file whose sizes are those of so many records."""
    file = pq.ParquetFile(io.BytesIO(data))
    count = sum(split.records for split in manifest.splits.values())
    if file.metadata.num_rows != count:
        raise ValueError(f"{file.metadata.num_rows:,} rows, the manifest says {count:,} records")
    task = manifest.config.task
    schema = file.schema_arrow
    if schema.names == [name for name in (*_COLUMNS, "label") if name not in _LATER_COLUMNS]:
        raise _OlderTableError(f"it is older than its columns {' and '.join(_LATER_COLUMNS)}")
    if schema.names != [*_COLUMNS, "label"]:
        raise ValueError(
            f"the columns {', '.join(schema.names)[:300]}; expected {', '.join(_COLUMNS)}, label"
        )
    label = pa.list_(pa.int64()) if task.label_shape else pa.int64()
    for name, kind in {**_COLUMNS, "label": label}.items():
        found = schema.field(name).type
        found = found.value_type if pa.types.is_dictionary(found) else found
        if found != kind and not (pa.types.is_large_string(found) and kind == pa.string()):
            raise ValueError(f"column {name} of {str(found)[:100]}, expected {kind}")
    groups = [file.metadata.row_group(number) for number in range(file.metadata.num_row_groups)]
    if (size := sum(group.total_byte_size for group in groups)) > most_table_bytes(count):
        raise ValueError(f"{size:,} bytes unpacked, expected at most {most_table_bytes(count):,}")
    width = int(np.prod(task.label_shape, dtype=int))
    values = sum(group.column(len(_COLUMNS)).num_values for group in groups)
    if values != count * width:
        raise ValueError(f"{values:,} values of label, expected {width} for each of {count:,} records")
    # Texts as dictionaries: what is long and repeated takes its room once, until it is known to be short.
    table = pq.ParquetFile(io.BytesIO(data), read_dictionary=_TEXTS).read()
    for name in table.column_names:
        if table[name].null_count:
            raise ValueError(f"column {name} has {table[name].null_count:,} empty cells, expected none")
    for name in _TEXTS:
        parts: list[Any] = table[name].chunks
        if any((pc.max(pc.binary_length(part.dictionary)).as_py() or 0) > MOST_LETTERS for part in parts):
            raise ValueError(f"column {name} has text of more than {MOST_LETTERS:,} bytes")
        odd = (part.dictionary.filter(pc.invert(pc.utf8_is_printable(part.dictionary))) for part in parts)
        if found := next((texts[0].as_py() for texts in odd if len(texts)), None):
            raise ValueError(f"column {name} has {found!r}, expected printable text")
        place = table.column_names.index(name)
        table = table.set_column(place, name, table[name].cast(pa.string()))
    if task.label_shape:
        lengths = pc.list_value_length(table["label"]).to_numpy()
        if (lengths != width).any():
            raise ValueError(f"a label of {lengths[lengths != width][0]} values, expected {width}")
    table.validate(full=True)
    return table


def _check_places(table: pa.Table, manifest: Manifest) -> None:
    """Rows must be those of the manifest's shards, in order, one behind the other in each file."""
    shards = [(name, shard) for name, split in manifest.splits.items() for shard in split.shards]
    counts = [shard.records for _, shard in shards]
    for column, of_shard in (("split", [n for n, _ in shards]), ("shard", [s.file for _, s in shards])):
        expected = np.repeat(np.array(of_shard, object), counts)
        wrong = np.flatnonzero(table[column].to_numpy() != expected)
        if len(wrong):
            row = int(wrong[0])
            found = table[column][row].as_py()
            raise ValueError(f"{column} {found!r} in row {row:,}, expected {expected[row]!r}")
    places = np.concatenate([np.arange(count) for count in counts])
    if len(wrong := np.flatnonzero(table["place"].to_numpy() != places)):
        row = int(wrong[0])
        raise ValueError(f"place {table['place'][row]} in row {row:,}, expected {places[row]}")
    ends = _check_offsets(table["offset"].to_numpy(), [shard for _, shard in shards])
    _check_images(table, ends, manifest.config.image_format)


def _check_offsets(offsets: np.ndarray, shards: list[ShardEntry]) -> np.ndarray:
    """Records must lie in their file, each with room for itself, the first at its beginning.

    Returns:
        The byte before which each ends: int64 [n].
    """
    if offsets.min() < 0 or offsets.max() > MOST_FILE_BYTES:
        raise ValueError(f"offsets of {offsets.min():,} to {offsets.max():,}, expected those of records")
    ends = np.append(offsets[1:], 0)
    last = np.cumsum([shard.records for shard in shards])
    ends[last - 1] = [shard.bytes for shard in shards]
    firsts = np.append(0, last[:-1])
    wrong = np.flatnonzero(
        (ends - offsets < OVERHEAD_BYTES) | (np.isin(np.arange(len(ends)), firsts) & (offsets != 0))
    )
    if len(wrong):
        row = int(wrong[0])
        raise ValueError(
            f"offset {offsets[row]:,} in row {row:,}, expected a record that ends by {ends[row]:,}"
        )
    return ends


def _check_images(table: pa.Table, ends: np.ndarray, image_format: ImageFormat) -> None:
    """Stored images must lie within the data of their records; raw ones are of one length."""
    starts, lengths = table["image_offset"].to_numpy(), table["image_bytes"].to_numpy()
    lowest, highest = table["offset"].to_numpy() + HEADER_BYTES, ends - FOOTER_BYTES
    # In this order nothing overflows, whatever the numbers are.
    fits = (starts >= lowest) & (starts <= highest) & (lengths >= 1) & (lengths <= highest - starts)
    if len(wrong := np.flatnonzero(~fits)):
        row = int(wrong[0])
        raise ValueError(
            f"image of {lengths[row]:,} bytes at {starts[row]:,} in row {row:,}, expected one between "
            f"{lowest[row]:,} and {highest[row]:,}"
        )
    expected = image_format.size**2
    if image_format.codec == "raw" and len(wrong := np.flatnonzero(lengths != expected)):
        row = int(wrong[0])
        raise ValueError(
            f"image of {lengths[row]:,} bytes in row {row:,}, expected {expected:,} of raw pixels"
        )
