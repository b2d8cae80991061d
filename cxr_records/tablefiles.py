"""Tables and lists as people have them: CSV of any separator, Excel workbooks, packed or not.

What a file is, its first bytes say, never its name: browsers unpack what they download and keep the name, and
people save a workbook under the name that a command asked for.
"""

import csv
import difflib
import gzip
import io
import re
import zipfile
import zlib
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from cxr_records import storage
from cxr_records.errors import CxrError, UsageError
from cxr_records.filetypes import HEAD_BYTES, file_type
from cxr_records.names import base_name, has_image_ending, patient_in_name

# Of a file, unpacked: NIH's table has 10 MB, as a workbook 66 MB, and what unpacks without end is none.
MAX_BYTES = 256 << 20
# What heads the column of image names, as `plain` writes it; the likeliest first.
IMAGE_COLUMNS = (
    "imageid",
    "imageindex",
    "image",
    "imagename",
    "imagefile",
    "filename",
    "file",
    "imagepath",
    "path",
)
# And what heads the column of patients.
PATIENT_COLUMNS = ("patientid", "patient", "patientnumber", "subject", "subjectid", "pid")
_LIKENESS = 0.85  # of two names as `plain` writes them: "patientage" and "patientsex" have 0.8
_MAX_WRAPPINGS = 3  # gzip in zip, and such
_SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs"}
# What else people write between cells. The findings of an image have bars between them, so none is taken.
_OTHER_SEPARATORS = {r"\|": "bars (|)", ":": "colons", r"\s{2,}": "spaces", r"\s": "spaces"}
_SEPARATOR_LINE = re.compile(r"sep=.(?=\r?\n)", re.IGNORECASE)  # Excel's own, before the header
_HEADER_CHARACTERS = 1 << 16  # the first line is looked for in so many
_SHARED_CELLS = 1 << 14  # so many different ones are looked for again
_LINES_ABOVE = 20  # a title above the header is looked for in so many lines
_FORMULA = re.compile(rb"<(?:\w+:)?f[ />]")  # in the XML of a sheet
_HIDDEN_ROW = re.compile(rb"<(?:\w+:)?row\s[^>]*\bhidden=[\"'](?:1|true)[\"']")
_EXACT_IN_EXCEL = 10**15  # a cell holds 15 digits of a number
_UTF_16 = (b"\xff\xfe", b"\xfe\xff")

# How text begins that is sent in place of a file.
_STAND_INS = {
    b"<!doctype html": ("a web page", "download the file itself"),
    b"<html": ("a web page", "download the file itself"),
    b"<!--": ("a web page", "download the file itself"),
    b"<?xml": ("an XML file", "download the file itself"),  # object stores answer so where they refuse
    b"version https://git-lfs": ("a Git LFS pointer", "fetch the file itself with git lfs pull"),
}
# What `file_type` found, and what to do.
_KINDS = {
    "tar": ("a tar archive", "unpack it and name the right file in it"),
    "parquet": ("a Parquet file", "save it as CSV"),
    "xls": (
        "an Excel workbook of the old kind (.xls) or with a password",
        "save it as .xlsx without one, or as CSV",
    ),
    "bzip2": ("a bzip2 file", "unpack it"),
    "xz": ("an xz file", "unpack it"),
    "zstd": ("a Zstandard file", "unpack it"),
    "7z": ("a 7z archive", "unpack it and name the right file in it"),
    "rar": ("a RAR archive", "unpack it and name the right file in it"),
    "png": ("a PNG image", "name the right file"),
    "jpeg": ("a JPEG image", "name the right file"),
    "dicom": ("a DICOM file", "name the right file"),
}


@dataclass(frozen=True)
class Rows:
    """The cells of a table as text; rows that are blank throughout are not among them.

    Attributes:
        path: of the file.
        header: the first row, without white space around its cells and with single spaces within.
        rows: those after it. Rows of a CSV may be longer or shorter than the header.
        lines: the line of the file, or of the sheet, that each row stands on.
        separator: of a CSV; "" for a workbook.
        sheets: (place in `rows` of its first row, name) of each sheet, where several were read.
        warnings: what was passed over, or put together; the path is not said.
    """

    path: str
    header: list[str]
    rows: list[tuple[str, ...]]
    lines: list[int]
    separator: str = ""
    sheets: tuple[tuple[int, str], ...] = ()
    warnings: tuple[str, ...] = ()

    def place(self, row: int) -> str:
        """Tells where a row stands: "line 7", or "line 7 of sheet 'more'" where there are several."""
        line = f"line {self.lines[row]:,}"
        if not self.sheets:
            return line
        name = self.sheets[bisect_right([first for first, _ in self.sheets], row) - 1][1]
        return f"{line} of sheet {name!r}"


class _Sheet(NamedTuple):
    """One sheet of a workbook; its rows are not blank, and the first is its header."""

    name: str
    hidden: bool
    rows: list[tuple[str, ...]]
    lines: list[int]


def read_content(path: str, argument: str, also: Sequence[str] = ()) -> bytes:
    """Reads a whole input file: text, or an .xlsx workbook; unpacked where it is gzip, or a zip of one file.

    Args:
        path: local path or fsspec URL.
        argument: what it was given as, for the errors.
        also: other kinds of file that it may be, as `file_type` calls them.

    Raises:
        UsageError: there is no such file, or it is of another kind.
        CxrError: it cannot be read, is empty, too large, or broken.
    """
    try:
        with storage.open_read(storage.absolute(path)) as file:
            content = file.read(MAX_BYTES + 1)
    except (FileNotFoundError, IsADirectoryError) as error:
        what = "a folder" if isinstance(error, IsADirectoryError) else "no such file"
        raise UsageError(f"{path}: found {what}; `{argument}` must name an existing file") from error
    except (CxrError, MemoryError):  # the last is about the machine, not the file
        raise
    except Exception as error:  # each object store raises exceptions of its own
        problem = f"{type(error).__name__}: {short(error)}"
        raise CxrError(
            f"{path}: cannot be read ({problem}); check `{argument}` and the access to it"
        ) from error
    for _ in range(_MAX_WRAPPINGS):
        _check_size(path, argument, len(content))
        kind = file_type(content[:HEAD_BYTES])
        if kind == "gzip":
            content = _inflated(path, content)
        elif kind == "zip" and (member := _only_file(path, argument, content)) is not None:
            content = member
        else:
            break
    _check_size(path, argument, len(content))
    kind = file_type(content[:HEAD_BYTES])
    if kind not in ("", "zip", *also):
        what, remedy = _KINDS.get(kind, (f"a {kind} file", "unpack it"))
        raise UsageError(f"{path}: found {what}, which `{argument}` cannot be; {remedy}")
    beginning = content[:HEAD_BYTES].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if stand_in := next((told for mark, told in _STAND_INS.items() if beginning.startswith(mark)), None):
        raise CxrError(f"{path}: found {stand_in[0]}; {stand_in[1]}, or correct `{argument}`")
    if not content.strip():
        raise CxrError(f"{path}: found an empty file; download it again, or correct `{argument}`")
    return content


def as_text(path: str, content: bytes) -> str:
    """Decodes UTF-8, with or without a byte order mark, or UTF-16 with one, which is Excel's Unicode text.

    Raises:
        CxrError: the bytes are another encoding's, or none's.
    """
    if file_type(content[:HEAD_BYTES]) == "zip":
        raise CxrError(f"{path}: found an .xlsx workbook where text is expected; save it as .csv or .txt")
    encoding = "utf-16" if content.startswith(_UTF_16) else "utf-8-sig"
    try:
        text = content.decode(encoding).lstrip("\ufeff")  # some programs add a mark to the one that is there
    except UnicodeDecodeError as error:
        place = f"byte {error.start} is 0x{content[error.start]:02x}"
        expected = "UTF-16 text, as its first bytes say" if encoding == "utf-16" else "UTF-8 text"
        raise CxrError(f"{path}: found bytes that are not {expected} ({place}); save it as UTF-8") from error
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise CxrError(f"{path}, line {line:,}: found a NUL byte, which no text holds; save it as UTF-8")
    return text


def read_rows(path: str, argument: str, is_header: Callable[[Sequence[str]], bool]) -> Rows:
    """Reads a table whose first row is its header, from CSV of any separator or all sheets of a workbook.

    The separator is the one (comma, semicolon, tab) that makes a header of the first row, so that none is
    guessed from the cells. Where none does, the row is given as it is, for the caller to refuse, unless it is
    plain what is wrong.

    Args:
        path: local path or fsspec URL.
        argument: what it was given as, for the errors.
        is_header: tells whether cells, as `Rows.header` has them, are the header that is wanted.

    Raises:
        UsageError: there is no such file, or it is of another kind.
        CxrError: it cannot be read, its sheets do not go together, or its header is hidden by a title, by
            quotes or by another separator.
    """
    return rows_of(path, read_content(path, argument), is_header)


def rows_of(path: str, content: bytes, is_header: Callable[[Sequence[str]], bool]) -> Rows:
    """Returns the table in what `read_content` read, as `read_rows` does.

    Raises:
        CxrError: as there.
    """
    if file_type(content[:HEAD_BYTES]) == "zip":
        return _workbook_rows(path, content, is_header)
    return _csv_rows(path, as_text(path, content), is_header)


def filled(header: Sequence[str]) -> list[str]:
    """Returns a header without the empty cells at its end."""
    cells = list(header)
    while cells and not cells[-1]:
        cells.pop()
    return cells


def plain(name: str) -> str:
    """Returns a column's name without what people write in many ways: case, white space and signs."""
    return re.sub(r"[\W_]", "", name).lower()


def alike(one: str, other: str) -> bool:
    """Tells whether two columns' names differ by no more than a slip of the pen."""
    return difflib.SequenceMatcher(None, plain(one), plain(other)).ratio() >= _LIKENESS


def short(text: object, limit: int = 400) -> str:
    """Returns the text on one line and not endless: what a broken file holds may be anything."""
    line = " ".join(str(text).split())
    return line if len(line) <= limit else f"{line[:limit]}…"


def _check_size(path: str, argument: str, num_bytes: int) -> None:
    if num_bytes > MAX_BYTES:
        raise CxrError(
            f"{path}: found more than {MAX_BYTES >> 20} MiB; NIH's table has 10 MB, so name the right file "
            f"in `{argument}`"
        )


def _inflated(path: str, content: bytes) -> bytes:
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(content)) as file:
            return file.read(MAX_BYTES + 1)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise CxrError(f"{path}: found broken gzip ({short(error)}); download the file again") from error


def _only_file(path: str, argument: str, content: bytes) -> bytes | None:
    """The one file in a zip; None where the zip is an .xlsx workbook."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            files = [info for info in archive.infolist() if not info.is_dir()]
            names = [info.filename for info in files]
            if "xl/workbook.bin" in names:
                raise UsageError(f"{path}: found a binary workbook (.xlsb); save it as .xlsx or as CSV")
            if any(name.startswith("xl/") for name in names):
                _check_size(path, argument, sum(info.file_size for info in files))
                return None
            if "mimetype" in names and "content.xml" in names:
                raise UsageError(f"{path}: found an OpenDocument file (.ods); save it as .xlsx or as CSV")
            # What macOS adds to every zip it makes, and hidden files.
            files = [info for info in files if not _is_hidden(info.filename)]
            if len(files) != 1:
                inside = ", ".join(repr(short(info.filename, 60)) for info in files[:3])
                more = f" and {len(files) - 3:,} more" if len(files) > 3 else ""
                raise UsageError(
                    f"{path}: found a zip of {len(files):,} files{inside and f' ({inside}{more})'}; "
                    f"`{argument}` needs one: unpack it and name that"
                )
            with archive.open(files[0]) as file:
                return file.read(MAX_BYTES + 1)
    except (CxrError, MemoryError):  # the last is about the machine, not the file
        raise
    except Exception as error:  # zipfile raises whatever the broken part led to
        problem = f"{type(error).__name__}: {short(error)}"
        raise CxrError(
            f"{path}: found a zip or .xlsx that cannot be read ({problem}); download it again, or save it as "
            "CSV"
        ) from error


def _is_hidden(name: str) -> bool:
    return base_name(name).startswith(".") or name.startswith("__MACOSX/")


def _csv_rows(path: str, text: str, is_header: Callable[[Sequence[str]], bool]) -> Rows:
    text = _SEPARATOR_LINE.sub("", text, count=1) if _SEPARATOR_LINE.match(text) else text
    separator = _separator(path, text, is_header)
    # strict: without it, a quote that is never closed swallows the rows after it in silence.
    # A StringIO of the text would take four bytes for each letter.
    file = io.TextIOWrapper(io.BytesIO(text.encode()), "utf-8", newline="")
    reader = csv.reader(file, delimiter=separator, strict=True)
    cells, lines = [], []
    # Most cells are like others: one object for all of a kind takes a third of the memory.
    shared: dict[str, str] = {}
    try:
        for row in reader:
            if any(row):
                keep = shared.setdefault if len(shared) < _SHARED_CELLS else shared.get
                # The garbage collector passes over tuples of text, not over lists.
                cells.append(tuple([keep(cell, cell) for cell in row]))
                lines.append(reader.line_num)
    except csv.Error as error:
        problem = f"found what is no CSV ({error}); expected a table with {_SEPARATORS[separator]}"
        raise CxrError(f"{path}, line {reader.line_num}: {problem}; download it again") from error
    return Rows(path, _header(cells[0]) if cells else [], cells[1:], lines[1:], separator)


def _separator(path: str, text: str, is_header: Callable[[Sequence[str]], bool]) -> str:
    """Returns what makes a header of the first row; where nothing does, what makes most cells of it.

    Raises:
        CxrError: the header is plainly there, and not as it must be.
    """
    width_of = {}
    for separator in _SEPARATORS:
        head = io.StringIO(text[:_HEADER_CHARACTERS], newline="")
        try:
            row = next(filter(any, csv.reader(head, delimiter=separator, strict=True)), [])
        except csv.Error:
            row = []
        if is_header(_header(row)):
            return separator
        width_of[separator] = len(row)
    _check_header(path, text, is_header)
    return max(width_of, key=width_of.__getitem__)  # the first of several


def _check_header(path: str, text: str, is_header: Callable[[Sequence[str]], bool]) -> None:
    """Refuses a CSV whose header is not the first row, or not in cells, and says so."""
    above = 0
    for number, line in enumerate(text[:_HEADER_CHARACTERS].splitlines()[:_LINES_ABOVE], start=1):
        if not line.strip():
            continue
        for separator in _SEPARATORS:
            if above and is_header(_header(next(csv.reader([line], delimiter=separator)))):
                raise _title_error(path, f"line {number}")
            if line.startswith('"') and is_header(_header(line.strip(' "').split(separator))):
                raise CxrError(
                    f"{path}, line {number}: found all columns in one pair of quotes; save it without the "
                    "quotes around each line"
                )
        for pattern, name in _OTHER_SEPARATORS.items():
            if is_header(_header(re.split(pattern, line.strip()))):
                raise CxrError(
                    f"{path}, line {number}: found columns with {name} between them; save it with commas, "
                    "semicolons or tabs"
                )
        above += 1


def _title_error(path: str, place: str) -> CxrError:
    return CxrError(f"{path}: found the header on {place}; remove what stands above it")


def _header(cells: Sequence[str]) -> list[str]:
    """The first row's cells without the white space that nobody sees, such as a no-break space in a name."""
    return [" ".join(cell.split()) for cell in cells]


def _workbook_rows(path: str, content: bytes, is_header: Callable[[Sequence[str]], bool]) -> Rows:
    """Reads every sheet; those whose first row is a header are taken together, if they are not hidden."""
    sheets = [sheet for sheet in _sheets(path, content) if sheet.rows]
    tables = [sheet for sheet in sheets if is_header(_header(sheet.rows[0]))]
    taken = [sheet for sheet in tables if not sheet.hidden]
    others = [sheet for sheet in sheets if sheet not in taken]
    for sheet in sheets:
        if sheet not in tables and not sheet.hidden:
            for line, row in list(zip(sheet.lines, sheet.rows, strict=True))[1:_LINES_ABOVE]:
                if is_header(_header(row)):
                    raise _title_error(path, f"line {line} of sheet {sheet.name!r}")
    if not taken and tables:
        raise CxrError(
            f"{path}: found the table on a hidden sheet only ({tables[0].name!r}); show that sheet, or save "
            "it as CSV"
        )
    if not taken:
        shown = next((sheet for sheet in sheets if not sheet.hidden), None)
        rows, lines = (shown.rows, shown.lines) if shown else ([], [])
        return Rows(path, _header(rows[0]) if rows else [], rows[1:], lines[1:])
    first, *more = taken
    header = _header(first.rows[0])
    for sheet in more:
        if filled(_header(sheet.rows[0])) != filled(header):
            raise CxrError(
                f"{path}: found sheets {first.name!r} and {sheet.name!r} with different columns; give both "
                "the same, or save the table as one CSV"
            )
    warnings = []
    if more:
        told = ", ".join(f"{sheet.name!r} ({len(sheet.rows) - 1:,} rows)" for sheet in taken)
        warnings.append(f"the table is on {len(taken)} sheets, which are read together: {told}")
    for sheet in others:
        if not sheet.hidden and any(_names_an_image(cell) for row in sheet.rows[:2] for cell in row):
            raise CxrError(
                f"{path}: found images on sheet {sheet.name!r}, whose first line is no header like that of "
                f"sheet {first.name!r}; give it that header, or remove the sheet"
            )
        what = "hidden sheet" if sheet.hidden else "sheet"
        told = f"{len(sheet.rows) - 1:,} rows of such a table" if sheet in tables else "no such table"
        warnings.append(f"{what} {sheet.name!r} is left out: it holds {told}")
    if hidden := _count_hidden_rows(content):
        warnings.append(
            f"{hidden:,} rows are hidden, by a filter or by hand: they are read as the others are"
        )
    rows = [row for sheet in taken for row in sheet.rows[1:]]
    lines = [line for sheet in taken for line in sheet.lines[1:]]
    starts, start = [], 0
    for sheet in taken:
        starts.append((start, sheet.name))
        start += len(sheet.rows) - 1
    # Cells that were never filled in are not stored, so rows end early.
    width = max(map(len, [header, *rows]))
    header += [""] * (width - len(header))
    rows = [row + ("",) * (width - len(row)) for row in rows]
    return Rows(path, header, rows, lines, "", tuple(starts) if more else (), tuple(warnings))


def _names_an_image(cell: str) -> bool:
    return has_image_ending(cell.strip()) or patient_in_name(cell.strip()) is not None


def _sheets(path: str, content: bytes) -> list[_Sheet]:
    try:
        import openpyxl
    except ImportError as error:
        raise CxrError(
            f"{path}: reading .xlsx needs openpyxl; pip install '.[excel]' in a clone, or save it as .csv"
        ) from error
    try:
        book = openpyxl.load_workbook(io.BytesIO(content), read_only=True, data_only=True)
        sheets = [_sheet(sheet) for sheet in book.worksheets]
        if _has_formulas(content):
            _check_formulas(path, book, openpyxl.load_workbook(io.BytesIO(content), read_only=True))
    except (CxrError, MemoryError):  # the last is about the machine, not the file
        raise
    except Exception as error:  # openpyxl raises whatever the broken part of the archive led to
        problem = f"{type(error).__name__}: {short(error)}"
        raise CxrError(f"{path}: found what is no .xlsx workbook ({problem}); save it as .csv") from error
    return sheets


def _sheet(sheet: Any) -> _Sheet:
    """A sheet of openpyxl's, which has no types."""
    sheet.reset_dimensions()  # some programs write wrong ones, and rows would be cut
    rows, lines = [], []
    for line, values in enumerate(sheet.iter_rows(values_only=True), start=1):
        row = tuple(map(_cell_text, values))
        if any(row):
            rows.append(row)
            lines.append(line)
    return _Sheet(sheet.title, sheet.sheet_state != "visible", rows, lines)


def _cell_text(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, int | float) and abs(value) > _EXACT_IN_EXCEL:
        return f"{value:E}"  # its last digits are lost, and must not pass for those of an identity
    return str(value)


def _sheet_files(content: bytes) -> Iterator[bytes]:
    """The XML of each sheet."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        for name in archive.namelist():
            if name.startswith("xl/worksheets/"):
                yield archive.read(name)


def _has_formulas(content: bytes) -> bool:
    return any(map(_FORMULA.search, _sheet_files(content)))


def _count_hidden_rows(content: bytes) -> int:
    """How many rows are hidden, of any sheet; those of hidden sheets are not hidden themselves."""
    return sum(len(_HIDDEN_ROW.findall(text)) for text in _sheet_files(content))


def _check_formulas(path: str, values: Any, formulas: Any) -> None:
    """Refuses a formula whose value the workbook does not hold: it would read as an empty cell.

    Args:
        path: of the workbook.
        values: the workbook opened for the values that its program kept.
        formulas: the workbook opened for the formulas.
    """
    for kept, written in zip(values.worksheets, formulas.worksheets, strict=True):
        written.reset_dimensions()
        for of_row, cells in zip(kept.iter_rows(values_only=True), written.iter_rows(), strict=True):
            for value, cell in zip(of_row, cells, strict=True):
                if value is None and cell.data_type == "f":
                    raise CxrError(
                        f"{path}, sheet {kept.title!r}: found a formula without its value in cell "
                        f"{cell.coordinate}; open it in Excel and save it, or save it as CSV"
                    )
