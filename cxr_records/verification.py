"""Checks a finished dataset: every byte against the manifest; with `deep`, every record against the rest."""

import functools
import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from cxr_records import storage
from cxr_records.augment import FUNCTIONS
from cxr_records.dataset import Dataset, open_dataset
from cxr_records.duplicates import Picture, find_duplicates, touches_test
from cxr_records.examples import Feature, decode_example, record_features, record_problems
from cxr_records.findings import format_findings
from cxr_records.images import ImageFormat
from cxr_records.layout import MANIFEST_FILE, RECORDS_FILE, is_shard
from cxr_records.manifest import DamagedManifestError, FileEntry, ShardEntry
from cxr_records.names import patients_told
from cxr_records.record_table import RecordTableError, disagreements, read_record_table
from cxr_records.splits import TEST, TRAIN
from cxr_records.storage import NoFileError
from cxr_records.streams import one_line
from cxr_records.tasks import Task
from cxr_records.tfrecord import HEADER_BYTES, RecordError, read_records, unframe

_REBUILD = "delete it and run the build command again: it writes this file anew"


@dataclass(frozen=True)
class Problem:
    """One thing that is not as it must be.

    Attributes:
        path: the file.
        message: what was found, and what was expected.
        record: number of the record in the file, from 0; None where it is about the whole file.
        image: the record's image_id, where it is known.
    """

    path: str
    message: str
    record: int | None = None
    image: str | None = None

    def __str__(self) -> str:
        where = self.path if self.record is None else f"{self.path} record {self.record}"
        return one_line(f"{where}{f' ({self.image})' if self.image else ''}: {self.message}")


@dataclass(frozen=True)
class _Shard:
    """A shard as the manifest names it, with its rows of the table of records."""

    path: str
    split: str
    entry: ShardEntry
    table: pa.Table | None

    @functools.cached_property
    def rows(self) -> Sequence[Mapping[str, Any]] | None:
        """The rows, once they are asked for: they take far more memory than their table."""
        return None if self.table is None else self.table.to_pylist()


@dataclass(frozen=True)
class _Record:
    """What of a record is compared with the others."""

    shard: _Shard
    number: int
    image: str
    patient: int
    copy: int
    findings: tuple[int, ...]
    label: tuple[int, ...]
    pixels: str

    def problem(self, message: str) -> Problem:
        return Problem(self.shard.path, message, self.number, self.image)


def check_dataset(dataset: Dataset | str | os.PathLike[str], deep: bool = False) -> list[Problem]:
    """Checks a finished dataset.

    Always: the manifest against its own digest; presence, size and sha256 of every file that it names, and
    that there are no other shards; the table of records against the manifest's shards and counts, and each
    patient against the name of the image, where that tells one. Where a shard is damaged, which of its
    records are. With `deep` also every record: both checksums, features, image, label against findings, its
    row in the table of records, copies in train only and beside their original, no patient in two splits, no
    picture both in test and in another.

    Args:
        dataset: an open dataset, or the folder or URL of a finished one.
        deep: whether to read every record.

    Returns:
        The problems, in the order of the files; empty when there is none.

    Raises:
        CxrError: there is no finished dataset.
    """
    folder = dataset.path if isinstance(dataset, Dataset) else storage.absolute(os.fspath(dataset))
    try:
        dataset = open_dataset(dataset)
        dataset.check_unchanged()
        problems = _check(dataset, deep)
        dataset.check_unchanged()
        return problems
    except DamagedManifestError as error:
        path = storage.join(folder, MANIFEST_FILE)
        return [Problem(path, str(error).removeprefix(path).removeprefix(" is").lstrip(": "))]


def _check(dataset: Dataset, deep: bool) -> list[Problem]:
    files = dataset.manifest.files
    problems = [problem for entry in files if (problem := _check_file(dataset.path, entry))]
    problems += _check_strays(dataset)
    table, table_path = None, storage.join(dataset.path, RECORDS_FILE)
    if all(problem.path != table_path for problem in problems):
        try:
            table = read_record_table(dataset.path, dataset.manifest)
            problems += [Problem(table_path, text) for text in disagreements(table, dataset.manifest)]
        except RecordTableError as error:
            problems.append(Problem(table_path, f"{error.trouble}; {_REBUILD}"))
    problems += _check_patients(dataset, table)
    shards = list(_shards(dataset, table))
    with ThreadPoolExecutor() as pool:
        for of_shard in pool.map(_check_shard, shards):
            problems += of_shard
    if deep:
        problems += _check_records(dataset, shards, {problem.path for problem in problems})
    return problems


def _check_file(dataset: str, entry: FileEntry | ShardEntry) -> Problem | None:
    """Presence, size and sha256 of one file."""
    path = storage.join(dataset, entry.file)
    try:
        if not storage.exists(path):
            return Problem(path, "the file is missing; run the build command again: it writes it anew")
        with storage.open_regular(path) as file:
            size = storage.file_size(path)
            if size != entry.bytes:
                return Problem(path, f"{size:,} bytes, the manifest says {entry.bytes:,}; {_REBUILD}")
            sha256 = storage.sha256_of(file)
    except NoFileError as error:
        return Problem(path, f"{str(error).removeprefix(f'{path} is ')}; {_REBUILD}")
    except OSError as error:  # of this file; the others are checked all the same
        return Problem(path, f"cannot be read ({error.strerror or error})")
    if sha256 != entry.sha256:
        return Problem(path, f"its sha256 is not that of the manifest; {_REBUILD}")
    return None


def _check_strays(dataset: Dataset) -> list[Problem]:
    known = {entry.file for split in dataset.splits.values() for entry in split.shards}
    strays = [name for name in storage.list_names(dataset.path) if is_shard(name) and name not in known]
    return [
        Problem(storage.join(dataset.path, name), "a shard that the manifest does not name")
        for name in strays
    ]


def _check_patients(dataset: Dataset, table: pa.Table | None) -> list[Problem]:
    """Patients who are not those that the names of their images tell: they may be in several splits."""
    if table is None:
        return []
    patients, images = table["patient_id"].to_numpy().tolist(), table["image_id"].to_numpy().tolist()
    told = patients_told(images, patients)
    if not told:
        return []
    first, patient = next(iter(told.items()))
    message = (
        f"patient {patients[first]}, the name says patient {patient} (so in {len(told):,} of {len(images):,} "
        "records); such patients may be in several splits: build again from NIH's own table"
    )
    return [Problem(storage.join(dataset.path, RECORDS_FILE), message, first, images[first])]


def _shards(dataset: Dataset, table: pa.Table | None) -> Iterator[_Shard]:
    """The manifest's shards with their rows of the table of records."""
    start = 0
    for split, info in dataset.splits.items():
        for entry in info.shards:
            rows = None if table is None else table.slice(start, entry.records)
            start += entry.records
            yield _Shard(storage.join(dataset.path, entry.file), split, entry, rows)


def _check_shard(shard: _Shard) -> list[Problem]:
    """The bytes of one shard; where they are wrong, which records that concerns."""
    problem = _check_file(os.path.dirname(shard.path), shard.entry)
    if problem is None:
        return []
    return [problem, *(read for _, read in _read_shard(shard) if isinstance(read, Problem))]


def _read_shard(shard: _Shard) -> Iterator[tuple[int, bytes | Problem]]:
    """Yields (number, data or the problem with it) of each record.

    Offsets come from the table of records, so that the records behind a damaged one are still found; without
    the table, reading ends at the first damage. Of a shard that is no file there is nothing.
    """
    try:
        opened = storage.open_regular(shard.path)
    except (OSError, NoFileError):  # which is told of the whole file
        return
    with opened as file:
        if shard.rows is None:
            number = -1
            try:
                for number, (_, data) in enumerate(read_records(file)):
                    yield number, data
            except RecordError as error:
                text = f"{error} (at byte {error.offset:,})"
                yield number + 1, Problem(shard.path, text, number + 1)
            return
        size = storage.file_size(shard.path)
        ends = [row["offset"] for row in shard.rows[1:]] + [max(size, shard.entry.bytes)]
        for number, (row, end) in enumerate(zip(shard.rows, ends, strict=True)):
            offset = row["offset"]
            file.seek(offset)
            try:
                yield number, unframe(storage.read_up_to(file, end - offset), offset)
            except RecordError as error:
                text = f"{error} (at byte {offset:,})"
                yield number, Problem(shard.path, text, number, row["image_id"])


def _check_records(dataset: Dataset, shards: Sequence[_Shard], damaged: set[str]) -> list[Problem]:
    """Every record that can be read, by itself and against the others."""
    task, image_format = dataset.manifest.config.task, dataset.image_format
    features = record_features(task.label_shape, len(dataset.findings))
    problems: list[Problem] = []
    records: list[_Record] = []
    all_read = True
    for shard in shards:
        read, whole = 0, len(records)
        for number, data in _read_shard(shard):
            read += 1
            if isinstance(data, Problem):
                if shard.path not in damaged:
                    problems.append(data)
                continue
            of_record, record = _check_record(shard, number, data, features, image_format)
            problems += of_record
            if record:
                records.append(record)
        told = shard.entry.records
        if read != told and shard.path not in damaged:
            problems.append(Problem(shard.path, f"{read:,} records, the manifest says {told:,}"))
        all_read &= len(records) - whole == told
    problems += _check_labels(task, records)
    problems += _check_relations(records, all_read)
    problems += _check_pictures(records)
    return problems


def _check_record(
    shard: _Shard, number: int, data: bytes, features: Sequence[Feature], image_format: ImageFormat
) -> tuple[list[Problem], _Record | None]:
    """One record by itself: schema, image, copy, and its row in the table of records."""
    row = shard.rows[number] if shard.rows else None
    name = row["image_id"] if row else None
    try:
        values = decode_example(data)
    except ValueError as error:
        return [Problem(shard.path, str(error), number, name)], None
    if wrong := record_problems(values, features):
        return [Problem(shard.path, text, number, name) for text in wrong], None
    messages, pixels = [], ""
    try:
        pixels = hashlib.sha256(image_format.decode(values["image"][0]).tobytes()).hexdigest()
    except ValueError as error:
        messages.append(f"image: {error}")
    image, copy = values["image_id"][0].decode(errors="replace"), values["copy"][0]
    augmentation = values["augmentation"][0].decode(errors="replace")
    if copy and shard.split != TRAIN:
        messages.append(f"copy {copy} of an image in {shard.split}; copies belong in {TRAIN} only")
    if not _augmentation_fits(copy, augmentation):
        expected = "a known function" if copy else "none, as this is an original"
        messages.append(f"augmentation {augmentation!r} of copy {copy}, expected {expected}")
    record = _Record(
        shard,
        number,
        image,
        values["patient_id"][0],
        copy,
        tuple(values["findings"]),
        tuple(values["label"]),
        pixels,
    )
    if row:
        label = row["label"] if isinstance(row["label"], list) else [row["label"]]
        told = (*(row[name] for name in _TOLD), tuple(label))
        about = (
            *(values[name][0].decode(errors="replace") for name in ("view", "sex")),
            values["age_years"][0],
        )
        stored = (shard.split, image, record.patient, *about, copy, augmentation, record.label)
        if told != stored:
            messages.append(f"{RECORDS_FILE} tells of {told}, the record holds {stored}")
        start = row["image_offset"] - row["offset"] - HEADER_BYTES
        if data[start : start + row["image_bytes"]] != values["image"][0]:
            messages.append(
                f"{RECORDS_FILE} tells of an image of {row['image_bytes']:,} bytes at byte "
                f"{row['image_offset']:,}, the record holds another"
            )
    return [record.problem(message) for message in messages], record


# What the table of records repeats of a record, beside its label.
_TOLD = ("split", "image_id", "patient_id", "view", "sex", "age_years", "copy", "augmentation")


def _augmentation_fits(copy: int, augmentation: str) -> bool:
    """An original has no augmentation; a copy has one that we know."""
    if copy == 0:
        return augmentation == ""
    try:
        return copy > 0 and json.loads(augmentation)["function"] in FUNCTIONS
    except (ValueError, KeyError, TypeError, RecursionError):
        return False


def _check_labels(task: Task, records: Sequence[_Record]) -> list[Problem]:
    """Labels must be what the task makes of the findings."""
    if not records:
        return []
    findings = np.array([record.findings for record in records])
    labels = np.array([record.label for record in records])
    selection = task.select(findings.astype(np.uint8))
    expected = selection.labels.reshape(len(records), -1)
    bad_bits = ~np.asarray(np.isin(findings, (0, 1)).all(axis=1))
    wrong = bad_bits | ~selection.kept | (expected != labels).any(axis=1)
    problems = []
    for place in np.flatnonzero(wrong).tolist():
        names = format_findings(findings[place], task.findings)
        if bad_bits[place]:
            text = f"findings {findings[place].tolist()}, expected zeros and ones"
        elif not selection.kept[place]:
            text = f"takes no part in the task {task.name} ({selection.reasons[place]}: {names})"
        else:
            text = f"label {labels[place].tolist()}, expected {expected[place].tolist()} of {names}"
        problems.append(records[place].problem(text))
    return problems


def _check_relations(records: Sequence[_Record], all_read: bool) -> list[Problem]:
    """No patient in two splits, no record twice, no copy without its original.

    Where some records could not be read, an original may well be among them.
    """
    problems = []
    first_of_patient: dict[int, _Record] = {}
    seen: dict[tuple[str, int], _Record] = {}
    for record in records:
        first = first_of_patient.setdefault(record.patient, record)
        if first.shard.split != record.shard.split:
            problems.append(
                record.problem(
                    f"patient {record.patient} is in {record.shard.split} and, with {first.image}, "
                    f"in {first.shard.split}"
                )
            )
        twin = seen.setdefault((record.image, record.copy), record)
        if twin is not record:
            problems.append(
                record.problem(f"copy {record.copy} is in {twin.shard.path} record {twin.number} too")
            )
    problems += [
        record.problem(f"copy {record.copy} without its original")
        for record in records
        if all_read and record.copy and (record.image, 0) not in seen
    ]
    return problems


def _check_pictures(records: Sequence[_Record]) -> list[Problem]:
    """No image of the test split that another split holds too: a model would be tested on what it has seen.

    Pictures that two patients of one split have in common are in the manifest.
    """
    originals = {record.image: record for record in records if record.copy == 0 and record.pixels}
    pictures = (
        Picture(record.image, record.shard.split, record.patient, "", record.pixels)
        for record in originals.values()
    )
    problems = []
    for group in filter(touches_test, find_duplicates(pictures)):
        told = list(zip(group.images, group.splits, group.patients, strict=True))
        image, split, patient = next(one for one in told if one[1] != TEST)
        problems += [
            originals[tested].problem(f"the same pixels as {image} of {split}, patient {patient}")
            for tested, tested_split, _ in told
            if tested_split == TEST
        ]
    return problems
