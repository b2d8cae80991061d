"""NIH ChestX-ray14 tables in all their dialects, read into one tidy table.

The dialects differ in line ends, trailing commas, the writing of ages, the order of rows and findings, and
the numbering of follow-ups. What they share is the image's file name, so that alone is the key:
the 2020 table renumbered the follow-ups of 24,106 images (Wang et al. 2017, and NIH's update of 2020).
"""

import csv
import gzip
import hashlib
import io
import os
import re
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import pandas as pd

from cxr_records import storage
from cxr_records.errors import CxrError, UsageError
from cxr_records.findings import parse_findings
from cxr_records.urls import name_of

ENDINGS = (".csv", ".csv.gz", ".xlsx")
NEEDED_COLUMNS = ("Image Index", "Finding Labels", "Patient ID")
OPTIONAL_COLUMNS = ("Patient Age", "Patient Gender", "View Position", "Follow-up #")

T = TypeVar("T")

UNKNOWN = -1
_MAX_AGE_YEARS = 120  # the 2017 table holds ages of 148 to 155 and 411 to 414
_GZIP_MAGIC = b"\x1f\x8b"
_WHOLE_NUMBER = re.compile(r"([0-9]{1,18})(?:\.0*)?")  # "00000001", "1", and the "1.0" of a re-saved table
_AGE = re.compile(r"([0-9]{1,18})(?:\.0*)?([YMWD]?)")  # DICOM's age string (VR "AS"), or plain years
_AGE_UNITS_PER_YEAR = {"": 1, "Y": 1, "M": 12, "W": 52, "D": 365}
_SEXES = {"M": "M", "F": "F", "MALE": "M", "FEMALE": "F"}


@dataclass(frozen=True, eq=False)
class Metadata:
    """What is known of every image before a pixel is read.

    Attributes:
        table: one row per image, sorted by image_id, with a RangeIndex: image_id (str), patient_id (int64),
            view ("PA", "AP", or "" unknown), sex ("M", "F", or "" unknown), age_years (int64, -1 unknown),
            follow_up (int64, -1 unknown; the tables number it differently, so it is for information only).
            Text columns have dtype object on every version of pandas.
        findings: uint8 [num_images, 14], in the order of `FINDINGS`, aligned with the table; read-only.
        dialect: "2017", "v2020", "kaggle sample" or "other".
        digest: sha256 (hex) of the table and the findings, whatever file they came in.
    """

    table: pd.DataFrame
    findings: np.ndarray
    dialect: str
    digest: str

    def __len__(self) -> int:
        return len(self.table)


@dataclass(frozen=True)
class _Columns:
    """The cells of a file as text, by column; blank rows are dropped. `lines` says where each row stands."""

    path: str
    header: list[str]
    cells: dict[str, tuple[str, ...]]
    lines: list[int]

    def error(self, row: int, problem: str) -> CxrError:
        image = self.cells["Image Index"][row].strip()
        return CxrError(f"{self.path}, line {self.lines[row]} (image {_short(image)!r}): {problem}")


def read_metadata(path: str) -> Metadata:
    """Reads a table of NIH ChestX-ray14 images: a local path or any fsspec URL of a .csv, .csv.gz or .xlsx.

    Columns other than the three needed and the four optional ones are ignored, and so is their order. Ages
    in months, weeks or days become whole years; unreadable ages and those above 120 become unknown.

    Raises:
        UsageError: there is no such file, or its name has another ending.
        CxrError: the file is not such a table. The message names the line and the image.
    """
    path = os.fspath(path)
    if not name_of(path).lower().endswith(ENDINGS):
        raise UsageError(
            f"{path}: found a file that is none of {', '.join(ENDINGS)}; `metadata` needs NIH's table of "
            "images, such as Data_Entry_2017_v2020.csv"
        )
    content = read_content(path, "metadata")
    excel = name_of(path).lower().endswith(".xlsx")
    cells, lines = _excel_rows(path, content) if excel else _csv_rows(path, as_text(path, content))
    columns = _columns(path, cells, lines)

    image_ids = _image_ids(columns)
    order = np.array(sorted(range(len(image_ids)), key=image_ids.__getitem__))

    def text(values: list[str]) -> pd.Series:  # pandas 3 would infer a type of its own
        return pd.Series(np.array(values, dtype=object)[order], dtype=object)

    def whole(values: list[int]) -> np.ndarray:
        return np.array(values, dtype=np.int64).take(order)

    table = pd.DataFrame(
        {
            "image_id": text(image_ids),
            "patient_id": whole(_convert(columns, "Patient ID", _patient_id)),
            "view": text(_convert(columns, "View Position", _view)),
            "sex": text(_convert(columns, "Patient Gender", _sex)),
            "age_years": whole(_convert(columns, "Patient Age", _age_years)),
            "follow_up": whole(_convert(columns, "Follow-up #", _follow_up)),
        }
    )
    vectors = np.array(_convert(columns, "Finding Labels", parse_findings), dtype=np.uint8)[order]
    vectors.setflags(write=False)
    return Metadata(table, vectors, _dialect(columns), _digest(table, vectors))


def read_content(path: str, argument: str) -> bytes:
    """Reads a whole input file, decompressed when it is gzip. The argument is named in the errors.

    Gzip is known by its first bytes, not by the name: browsers unpack .gz on the way and keep the name.

    Raises:
        UsageError: there is no such file.
        CxrError: it cannot be read, is empty, or is broken gzip.
    """
    try:
        content = storage.read_bytes(storage.absolute(path))
        if content.startswith(_GZIP_MAGIC):
            content = gzip.decompress(content)
    except (FileNotFoundError, IsADirectoryError) as error:
        what = "a folder" if isinstance(error, IsADirectoryError) else "no such file"
        raise UsageError(f"{path}: found {what}; `{argument}` must name an existing file") from error
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise CxrError(f"{path}: found broken gzip ({_short(error)}); download the file again") from error
    except CxrError:
        raise
    except Exception as error:  # each object store raises exceptions of its own
        problem = f"{type(error).__name__}: {_short(error)}"
        raise CxrError(
            f"{path}: cannot be read ({problem}); check `{argument}` and the access to it"
        ) from error
    if not content.strip():
        raise CxrError(f"{path}: found an empty file; download it again, or correct `{argument}`")
    return content


def as_text(path: str, content: bytes) -> str:
    """Decodes UTF-8, with or without a byte order mark.

    Raises:
        CxrError: the bytes are not UTF-8.
    """
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        place = f"byte {error.start} is 0x{content[error.start]:02x}"
        raise CxrError(f"{path}: found bytes that are not UTF-8 text ({place}); save it as UTF-8") from error


def _csv_rows(path: str, text: str) -> tuple[list[tuple[str, ...]], list[int]]:
    """Returns the rows that are not blank, and the line of the file each ends on."""
    # strict: without it, a quote that is never closed swallows the rows after it in silence.
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    cells, lines = [], []
    try:
        for row in reader:
            if any(row):
                cells.append(tuple(row))  # the garbage collector passes over tuples of text, not over lists
                lines.append(reader.line_num)
    except csv.Error as error:
        problem = f"found what is no CSV ({error}); expected a table with commas"
        raise CxrError(f"{path}, line {reader.line_num}: {problem}; download it again") from error
    return cells, lines


def _excel_rows(path: str, content: bytes) -> tuple[list[tuple[str, ...]], list[int]]:
    """Returns the rows of the first sheet that are not blank, and their numbers in it."""
    try:
        import openpyxl
    except ImportError as error:
        raise CxrError(
            f"{path}: reading .xlsx needs openpyxl; pip install '.[excel]' in a clone, or save it as .csv"
        ) from error
    cells, lines = [], []
    try:
        sheet = openpyxl.load_workbook(io.BytesIO(content), read_only=True, data_only=True).worksheets[0]
        sheet.reset_dimensions()  # some programs write wrong ones, and rows would be cut
        for line, values in enumerate(sheet.iter_rows(values_only=True), start=1):
            row = ["" if value is None else str(value) for value in values]
            if any(row):
                cells.append(tuple(row))
                lines.append(line)
    except Exception as error:  # openpyxl raises whatever the broken part of the archive led to
        problem = f"{type(error).__name__}: {_short(error)}"
        raise CxrError(f"{path}: found what is no .xlsx workbook ({problem}); save it as .csv") from error
    # Cells that were never filled in are not stored, so rows end early.
    width = max(map(len, cells), default=0)
    return [row + ("",) * (width - len(row)) for row in cells], lines


def _columns(path: str, cells: list[tuple[str, ...]], lines: list[int]) -> _Columns:
    """Takes the columns that matter; refuses a header without the needed ones, no rows, and short rows."""
    header = [cell.strip() for cell in cells[0]] if cells else []
    missing = [name for name in NEEDED_COLUMNS if name not in header]
    if missing:
        # NIH's 'OriginalImage[Width,Height]' is two columns to every reader; nobody asks for either.
        present = _short(", ".join(repr(name) for name in header if name) or "none")
        raise CxrError(
            f"{path}: found the columns {present}; needed are {', '.join(map(repr, NEEDED_COLUMNS))}, so "
            f"{', '.join(map(repr, missing))} must be added or renamed in the first line"
        )
    used = [name for name in (*NEEDED_COLUMNS, *OPTIONAL_COLUMNS) if name in header]
    twice = [name for name in used if header.count(name) > 1]
    if twice:
        raise CxrError(f"{path}: found the column {twice[0]!r} twice; keep one of them")
    rows, lines = cells[1:], lines[1:]
    if not rows:
        raise CxrError(f"{path}: found a header and no rows; expected one row per image")
    width = max(map(header.index, used)) + 1
    if min(map(len, rows)) < width:
        row = next(i for i, values in enumerate(rows) if len(values) < width)
        problem = f"found {len(rows[row])} values where the header asks for at least {width}"
        raise CxrError(
            f"{path}, line {lines[row]}: {problem}; complete the line, or download the table again"
        )
    by_place = list(zip(*rows, strict=False))  # the 2017 header ends in a comma, its rows do not
    return _Columns(path, header, {name: by_place[header.index(name)] for name in used}, lines)


def _image_ids(columns: _Columns) -> list[str]:
    """Returns the key column; each name must be there, be printable, and be there once."""
    image_ids = [name.strip() for name in columns.cells["Image Index"]]
    if not all(image_ids) or not "".join(image_ids).isprintable():
        row = next(i for i, name in enumerate(image_ids) if not name or not name.isprintable())
        problem = "found no usable 'Image Index'; expected a file name such as 00000001_000.png"
        raise columns.error(row, problem)
    if len(set(image_ids)) < len(image_ids):
        first: dict[str, int] = {}
        for row, name in enumerate(image_ids):
            if first.setdefault(name, row) != row:
                line = columns.lines[first[name]]
                raise columns.error(row, f"line {line} has the same 'Image Index'; keep one of the two")
    return image_ids


def _convert(columns: _Columns, name: str, convert: Callable[[str], T]) -> list[T]:
    """Converts a column, each distinct text once: 112,120 rows hold only 836 label strings.

    A column that the file does not have counts as empty text in every row.

    Raises:
        CxrError: `convert` raised ValueError; the message names the first line with that text.
    """
    texts = columns.cells.get(name) or ("",) * len(columns.lines)
    values = {}
    for text in dict.fromkeys(texts):
        try:
            values[text] = convert(text.strip())
        except ValueError as error:
            raise columns.error(texts.index(text), f"{name!r}: {_short(error)}") from error
    return [values[text] for text in texts]


def _patient_id(text: str) -> int:
    match = _WHOLE_NUMBER.fullmatch(text)
    if not match:
        raise ValueError(f"found {_short(text)!r}; expected a whole number, such as 1 or 00000001")
    return int(match[1])


def _follow_up(text: str) -> int:
    match = _WHOLE_NUMBER.fullmatch(text)
    return int(match[1]) if match else UNKNOWN


def _age_years(text: str) -> int:
    match = _AGE.fullmatch(text.upper())
    age = int(match[1]) // _AGE_UNITS_PER_YEAR[match[2]] if match else UNKNOWN
    return age if age <= _MAX_AGE_YEARS else UNKNOWN


def _view(text: str) -> str:
    return text.upper() if text.upper() in ("PA", "AP") else ""


def _sex(text: str) -> str:
    return _SEXES.get(text.upper(), "")


def _dialect(columns: _Columns) -> str:
    if {"OriginalImageWidth", "OriginalImageHeight"} <= set(columns.header):
        return "kaggle sample"
    if not any(name.startswith("OriginalImage[Width") for name in columns.header):
        return "other"
    # A workbook has no trailing comma, but its ages still have their unit.
    ages_with_unit = columns.cells.get("Patient Age", ("",))[0].strip().upper().endswith("Y")
    return "2017" if columns.header[-1] == "" or ages_with_unit else "v2020"


def _digest(table: pd.DataFrame, findings: np.ndarray) -> str:
    digest = hashlib.sha256()
    for name in table.columns:
        values = table[name].to_numpy()
        # No text holds a line break (see _image_ids), so the joined texts can mean one table only.
        is_text = values.dtype == object
        digest.update("\n".join(values).encode() if is_text else values.astype("<i8").tobytes())
        digest.update(b"\n\n")
    digest.update(findings.tobytes())
    return digest.hexdigest()


def _short(text: object, limit: int = 400) -> str:
    """Returns the text on one line and not endless: what a broken file holds may be anything."""
    line = " ".join(str(text).split())
    return line if len(line) <= limit else f"{line[:limit]}…"
