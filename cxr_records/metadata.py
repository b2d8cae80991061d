"""NIH ChestX-ray14 tables in all their dialects, read into one tidy table.

The dialects differ in line ends, trailing commas, the writing of ages, the order of rows and findings, and
the numbering of follow-ups. What they share is the image's file name, so that alone is the key:
the 2020 table renumbered the follow-ups of 24,106 images (Wang et al. 2017, and NIH's update of 2020).
"""

import hashlib
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import pandas as pd
import pyarrow as pa

from cxr_records.columns import Column, chunks, texts
from cxr_records.drawings import DRAWN_BY_US, DRAWN_COLUMN
from cxr_records.errors import CxrError
from cxr_records.findings import FINDINGS, parse_findings
from cxr_records.names import base_name, patient_in_name, patients_told, stem
from cxr_records.tablefiles import (
    IMAGE_COLUMNS,
    PATIENT_COLUMNS,
    Rows,
    alike,
    filled,
    plain,
    read_rows,
    short,
)

NEEDED_COLUMNS = ("Image Index", "Finding Labels", "Patient ID")
# What each must hold to be read, for what is said of the others.
OPTIONAL_COLUMNS = {
    "Patient Age": "0 to 120 years",
    "Patient Gender": "M or F",
    "View Position": "PA or AP",
    "Follow-up #": "a whole number",
}
_FOR_INFORMATION = "Follow-up #"  # the tables number it differently, and nothing uses it
# Other names of these columns, as `plain` writes them.
_ALIASES = {
    "Image Index": IMAGE_COLUMNS,
    "Finding Labels": ("finding", "findings", "label", "labels", "diagnosis"),
    "Patient ID": PATIENT_COLUMNS,
    "Patient Age": ("age", "ageyears", "patientageyears"),
    "Patient Gender": ("gender", "sex", "patientsex"),
    "View Position": ("view", "position", "projection"),
}

T = TypeVar("T")

UNKNOWN = -1
_TYPES = {"image_id": pd.ArrowDtype(pa.string()), "view": "category", "sex": "category"}
_MAX_AGE_YEARS = 120  # the 2017 table holds ages of 148 to 155 and 411 to 414
# "00000001", "1", and the "1.0" of a re-saved table; but "1.000" is a thousand to half of Europe.
_WHOLE_NUMBER = re.compile(r"([0-9]{1,18})(?:\.(?:0{0,2}|0{4,}))?")
_AGE = re.compile(r"([0-9]{1,18})(?:[.,]0*)?([YMWD]?)")  # DICOM's age string (VR "AS"), or plain years
_DATE = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2} [0-9]{2}:[0-9]{2}:[0-9]{2}.*")  # what a workbook's became
_AGE_UNITS_PER_YEAR = {"": 1, "Y": 1, "M": 12, "W": 52, "D": 365}
_SEXES = {"M": "M", "F": "F", "MALE": "M", "FEMALE": "F"}


@dataclass(frozen=True, eq=False)
class Metadata:
    """What is known of every image before a pixel is read.

    Attributes:
        table: one row per image, sorted by image_id, with a RangeIndex: image_id (Arrow's strings),
            patient_id (int64), view ("PA", "AP", or "" unknown) and sex ("M", "F", or "" unknown), both
            categories, age_years (int64, -1 unknown), follow_up (int64, -1 unknown; the tables number it
            differently, so it is for information only). Text of other types is made such.
        findings: uint8 [num_images, 14], in the order of `FINDINGS`, aligned with the table; read-only.
        dialect: "2017", "v2020", "kaggle sample" or "other".
        digest: sha256 (hex) of the table and the findings, whatever file they came in.
        warnings: what was read otherwise than it stands, or could not be read, with counts.
        drawn: rows that are of drawings of ours (`DRAWN_COLUMN`), which say nothing about patients.
    """

    table: pd.DataFrame
    findings: np.ndarray
    dialect: str
    digest: str
    warnings: tuple[str, ...] = ()
    drawn: int = 0

    def __post_init__(self) -> None:
        types: Any = {name: kind for name, kind in _TYPES.items() if name in self.table}
        object.__setattr__(self, "table", self.table.astype(types))

    def __len__(self) -> int:
        return len(self.table)

    @property
    def image_ids(self) -> Column:
        """The column image_id as Arrow has it."""
        return texts(self.table["image_id"])


@dataclass(frozen=True)
class _Columns:
    """The cells of the columns that matter, as text."""

    rows: Rows
    cells: dict[str, tuple[str, ...]]

    def error(self, row: int, problem: str) -> CxrError:
        image = self.cells["Image Index"][row].strip()
        where = f"{self.rows.path}, {self.rows.place(row)} (image {short(image)!r})"
        return CxrError(f"{where}: {problem}")


def read_metadata(path: str) -> Metadata:
    """Reads a table of NIH ChestX-ray14 images, a local path or any fsspec URL.

    CSV with commas, semicolons or tabs, or an .xlsx workbook, plain, gzip or alone in a zip; the file's name
    makes no difference. Columns other than the three needed and the four optional ones are ignored, and so is
    their order. Folders before an image's name are taken off. Ages in months, weeks or days become whole
    years. An age above 120 and an age, sex or view that cannot be read become unknown, and are counted in
    `warnings`.

    Raises:
        UsageError: there is no such file, or it is of another kind.
        CxrError: the file is not such a table, or its rows contradict themselves. The message names the line
            and the image.
    """
    path = os.fspath(path)
    columns = _columns(read_rows(path, "metadata", lambda header: set(NEEDED_COLUMNS) <= set(header)))
    warnings = [*columns.rows.warnings, *_header_warnings(columns)]

    image_ids = _image_ids(columns, warnings)
    patient_ids = _convert(columns, "Patient ID", _patient_id)
    _check_patients(columns, image_ids, patient_ids)
    warnings += _row_numbers(image_ids, patient_ids)
    order = np.array(sorted(range(len(image_ids)), key=image_ids.__getitem__))

    def text(values: list[str]) -> pd.Series:  # pandas 3 would infer a type of its own
        return pd.Series(np.array(values, dtype=object)[order], dtype=object)

    def whole(values: list[int]) -> np.ndarray:
        return np.array(values, dtype=np.int64).take(order)

    def optional(name: str, convert: Callable[[str], T], unknown: T) -> list[T]:
        values = _convert(columns, name, convert)
        warnings.extend(_unreadable(columns, name, values, unknown))
        return values

    table = pd.DataFrame(
        {
            "image_id": text(image_ids),
            "patient_id": whole(patient_ids),
            "view": text(optional("View Position", as_view, "")),
            "sex": text(optional("Patient Gender", as_sex, "")),
            "age_years": whole(optional("Patient Age", as_age_years, UNKNOWN)),
            "follow_up": whole(optional("Follow-up #", _follow_up, UNKNOWN)),
        }
    )
    vectors = np.array(_convert(columns, "Finding Labels", as_findings), dtype=np.uint8)[order]
    vectors.setflags(write=False)
    digest = _digest(table, vectors)
    told = tuple(f"{path}: {text}" for text in warnings)
    drawn = [text.strip() for text in columns.cells.get(DRAWN_COLUMN, ())].count(DRAWN_BY_US)
    return Metadata(table, vectors, _dialect(columns), digest, told, drawn)


def _alike(header: Sequence[str], column: str) -> str | None:
    """The cell of a header that may be meant for an absent column; None where there is none."""
    known = {*NEEDED_COLUMNS, *OPTIONAL_COLUMNS}
    others = (name for name in header if name and name not in known)
    return next(
        (name for name in others if plain(name) in _ALIASES.get(column, ()) or alike(name, column)), None
    )


def _columns(rows: Rows) -> _Columns:
    """Takes the columns that matter; refuses a header without the needed ones, no rows, and broken rows."""
    path, header = rows.path, rows.header
    missing = [name for name in NEEDED_COLUMNS if name not in header]
    if missing:
        # NIH's 'OriginalImage[Width,Height]' is two columns to every reader; nobody asks for either.
        present = short(", ".join(repr(name) for name in header if name) or "none")
        alike = {name: like for name in missing if (like := _alike(header, name)) is not None}
        hints = [f"{short(like, 60)!r} looks like {name!r}" for name, like in alike.items()]
        raise CxrError(
            f"{path}: found the columns {present}; needed are {', '.join(map(repr, NEEDED_COLUMNS))}, so "
            f"{', '.join(map(repr, missing))} must be added or renamed in the first line"
            f"{' (' * bool(hints)}{', '.join(hints)}{')' * bool(hints)}"
        )
    used = [name for name in (*NEEDED_COLUMNS, *OPTIONAL_COLUMNS, DRAWN_COLUMN) if name in header]
    twice = [name for name in used if header.count(name) > 1]
    if twice:
        raise CxrError(f"{path}: found the column {twice[0]!r} twice; keep one of them")
    if not rows.rows:
        raise CxrError(f"{path}: found a header and no rows; expected one row per image")
    _check_widths(rows, max(map(header.index, used)) + 1)
    by_place = list(zip(*rows.rows, strict=False))  # the 2017 header ends in a comma, its rows do not
    return _Columns(rows, {name: by_place[header.index(name)] for name in used})


def _check_widths(rows: Rows, needed: int) -> None:
    """Refuses rows that end before the columns that matter, and rows whose cells fit no header.

    Args:
        rows: of the file.
        needed: how many columns there are up to the last that matters.
    """
    widths = set(map(len, rows.rows))
    most = max(widths)
    if rows.separator:
        # Some quote NIH's header 'OriginalImage[Width,Height]', whose values are two cells all the same.
        most = sum(1 + cell.count(rows.separator) for cell in filled(rows.header))
    if min(widths) >= needed and max(widths) <= most:
        return
    for row, values in enumerate(rows.rows):
        where = f"{rows.path}, {rows.place(row)}"
        if len(values) < needed:
            problem = f"found {len(values)} values where the header asks for at least {needed}"
            raise CxrError(f"{where}: {problem}; complete the line, or download the table again")
        if any(values[most:]):
            problem = f"found {len(values)} values where the header has {most} columns"
            raise CxrError(
                f"{where}: {problem}; quote the cell that holds {rows.separator!r}, or download the table "
                "again"
            )


def _header_warnings(columns: _Columns) -> list[str]:
    """What to say of the optional columns that are not there."""
    warnings, absent = [], []
    for name in OPTIONAL_COLUMNS:
        if name in columns.cells or name == _FOR_INFORMATION:
            continue
        if like := _alike(columns.rows.header, name):
            warnings.append(
                f"found no column {name!r}, so it is unknown of every image; {short(like, 60)!r} looks like "
                f"it: rename it to {name!r}"
            )
        else:
            absent.append(name)
    if absent:
        warnings.append(f"found no column {', '.join(map(repr, absent))}: unknown of every image")
    return warnings


def _image_ids(columns: _Columns, warnings: list[str]) -> list[str]:
    """Returns the key column; each name must be there, be printable, and be there once, folders aside."""
    image_ids = [name.strip() for name in columns.cells["Image Index"]]
    together = "".join(image_ids)
    if "/" in together or "\\" in together:
        image_ids = [base_name(name) for name in image_ids]
        of_row = list(map(str.strip, columns.cells["Image Index"]))
        with_folder = [row for row, name in enumerate(image_ids) if name != of_row[row]]
        warnings.append(
            f"{len(with_folder):,} of {len(image_ids):,} rows have folders in their 'Image Index' (the first "
            f"is {short(of_row[with_folder[0]], 80)!r} on {columns.rows.place(with_folder[0])}): taken off"
        )
    if not all(image_ids) or not together.isprintable():
        row = next(i for i, name in enumerate(image_ids) if not name or not name.isprintable())
        problem = "found no usable 'Image Index'; expected a file name such as 00000001_000.png"
        raise columns.error(row, problem)
    dates = [row for row, name in enumerate(image_ids) if _DATE.fullmatch(name)] if ":" in together else []
    if dates:
        problem = "found a date as 'Image Index'; expected a file name such as 00000001_000.png"
        raise columns.error(dates[0], problem)
    distinct = set(image_ids)
    if "Image Index" in distinct:
        row = image_ids.index("Image Index")
        raise columns.error(row, "found the header again; remove it from among the rows")
    if len(distinct) < len(image_ids):
        first: dict[str, int] = {}
        for row, name in enumerate(image_ids):
            if first.setdefault(name, row) != row:
                place, cells = columns.rows.place(first[name]), columns.cells["Image Index"]
                alike = "" if cells[row].strip() == cells[first[name]].strip() else ", folders aside"
                raise columns.error(row, f"{place} has the same 'Image Index'{alike}; keep one of the two")
    # Mostly all end alike, and taking the endings off takes ten times as long.
    if together.count(".png") != len(image_ids) and (twins := len(distinct) - len(set(map(stem, distinct)))):
        warnings.append(
            f"{twins:,} rows have an 'Image Index' that differs from another's in its ending alone: each "
            "stands for files and names of its own ending only"
        )
    return image_ids


def _check_patients(columns: _Columns, image_ids: list[str], patient_ids: list[int]) -> None:
    """Refuses a patient who is not the one that the image's name tells, where it has NIH's form.

    Such a table has a column sorted alone, or filled in by row: its patients would be torn between splits.
    """
    told = patients_told(image_ids, patient_ids)
    if told:
        row, patient = next(iter(told.items()))
        raise columns.error(
            row,
            f"'Patient ID' says {patient_ids[row]}, the name says patient {patient} (so in {len(told):,} of "
            f"{len(image_ids):,} rows); the columns do not belong together: take the table as NIH gives it",
        )


def _row_numbers(image_ids: list[str], patient_ids: list[int]) -> list[str]:
    """What to say of patients who are numbered like the rows, where no name tells otherwise."""
    first, count = patient_ids[0], len(patient_ids)
    if first > 1 or count < 2 or patient_ids != list(range(first, first + count)):
        return []
    if any(patient_in_name(name) is not None for name in image_ids):
        return []
    return [
        f"'Patient ID' counts the rows, {first} to {patient_ids[-1]:,}: if a patient has several images, "
        "they will be torn between splits; make sure that it names patients"
    ]


def _convert(columns: _Columns, name: str, convert: Callable[[str], T]) -> list[T]:
    """Converts a column, each distinct text once: 112,120 rows hold only 836 label strings.

    A column that the file does not have counts as empty text in every row.

    Raises:
        CxrError: `convert` raised ValueError; the message names the first line with that text.
    """
    texts = columns.cells.get(name) or ("",) * len(columns.rows.rows)
    values = {}
    for text in dict.fromkeys(texts):
        try:
            values[text] = convert(text.strip())
        except ValueError as error:
            raise columns.error(texts.index(text), f"{name!r}: {short(error)}") from error
    return [values[text] for text in texts]


def _unreadable(columns: _Columns, name: str, values: list[T], unknown: T) -> list[str]:
    """What to say of the cells of a column that became unknown; nothing where the column is not there."""
    if name not in columns.cells or unknown not in values:
        return []
    row = values.index(unknown)
    text = short(columns.cells[name][row].strip(), 60)
    return [
        f"{values.count(unknown):,} of {len(values):,} rows have a {name!r} that cannot be read (the first "
        f"is {text!r} on {columns.rows.place(row)}; expected {OPTIONAL_COLUMNS[name]}): taken as unknown"
    ]


def as_findings(text: str) -> np.ndarray:
    """Returns uint8 [14] for a cell of "Finding Labels".

    Raises:
        ValueError: as `parse_findings`, which knows of one separator; people save tables with others.
    """
    try:
        return parse_findings(text)
    except ValueError as error:
        tokens = {token.strip() for token in re.split("[,;/&+]", text)}
        if len(tokens) > 1 and tokens <= set(FINDINGS):
            raise ValueError(f"found {short(text)!r}; findings are separated by '|'") from error
        raise


def _patient_id(text: str) -> int:
    match = _WHOLE_NUMBER.fullmatch(text)
    if not match:
        raise ValueError(f"found {short(text)!r}; expected a whole number, such as 1 or 00000001")
    return int(match[1])


def _follow_up(text: str) -> int:
    match = _WHOLE_NUMBER.fullmatch(text)
    return int(match[1]) if match else UNKNOWN


def as_age_years(text: str) -> int:
    """Returns the whole years of a cell such as "58", "058Y" or "011M"; -1 for what is no age up to 120."""
    match = _AGE.fullmatch(text.upper())
    age = int(match[1]) // _AGE_UNITS_PER_YEAR[match[2]] if match else UNKNOWN
    return age if age <= _MAX_AGE_YEARS else UNKNOWN


def as_view(text: str) -> str:
    """Returns PA or AP; "" for all else."""
    return text.upper() if text.upper() in ("PA", "AP") else ""


def as_sex(text: str) -> str:
    """Returns M or F; "" for all else."""
    return _SEXES.get(text.upper(), "")


def _dialect(columns: _Columns) -> str:
    if {"OriginalImageWidth", "OriginalImageHeight"} <= set(columns.rows.header):
        return "kaggle sample"
    if not any(name.startswith("OriginalImage[Width") for name in columns.rows.header):
        return "other"
    # A workbook has no trailing comma, but its ages still have their unit.
    ages_with_unit = columns.cells.get("Patient Age", ("",))[0].strip().upper().endswith("Y")
    return "2017" if columns.rows.header[-1] == "" or ages_with_unit else "v2020"


def _digest(table: pd.DataFrame, findings: np.ndarray) -> str:
    digest = hashlib.sha256()
    for name in table.columns:
        is_text = table[name].dtype != np.int64
        for part in chunks(len(table)):
            values = table[name].iloc[part]
            # No text holds a line break (see _image_ids), so the joined texts can mean one table only.
            between = "\n" if part.start and is_text else ""
            joined = "\n".join(values).encode() if is_text else values.to_numpy().astype("<i8").tobytes()
            digest.update(between.encode() + joined)
        digest.update(b"\n\n")
    digest.update(findings.tobytes())
    return digest.hexdigest()
