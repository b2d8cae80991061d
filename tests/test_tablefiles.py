"""Tables and lists in every file that people have them in."""

import bz2
import csv
import gzip
import importlib
import io
import lzma
import tarfile
import zipfile
from datetime import datetime

import fsspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cxr_records import tablefiles
from cxr_records.errors import CxrError, UsageError
from cxr_records.findings import FINDINGS, NO_FINDING
from cxr_records.metadata import read_metadata
from cxr_records.splits import read_list
from cxr_records.tablefiles import IMAGE_COLUMNS, alike, as_text, plain, read_content, read_rows
from cxr_records.trainers.evaluation.tables import read_score_table

HEADER = [
    *("Image Index", "Finding Labels", "Follow-up #", "Patient ID", "Patient Age", "Patient Gender"),
    *("View Position", "OriginalImage[Width", "Height]", "OriginalImagePixelSpacing[x", "y]"),
]
ROWS = [
    ["00000001_000.png", "Mass|Nodule", "0", "1", "57", "M", "PA", "2682", "2749", "0.143", "0.143"],
    ["00000001_001.png", "No Finding", "1", "1", "58", "M", "AP", "2500", "2048", "0.171", "0.171"],
    ["00000002_000.png", "Hernia", "0", "2", "80", "F", "PA", "2500", "2048", "0.171", "0.171"],
]
TEXT = "".join(",".join(row) + "\n" for row in [HEADER, *ROWS])


def write(name: str, content: str | bytes) -> str:
    url = f"memory://tablefiles/{name}"
    with fsspec.open(url, "wb") as file:
        file.write(content if isinstance(content, bytes) else content.encode())
    return url


def zipped(**files: str | bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def workbook(*sheets: tuple[str, list[list[object]]], hidden: tuple[str, ...] = ()) -> bytes:
    """A workbook of (name, rows) sheets."""
    openpyxl = importlib.import_module("openpyxl")
    book = openpyxl.Workbook()
    book.remove(book.active)
    for name, rows in sheets:
        sheet = book.create_sheet(name)
        for row in rows:
            sheet.append(row)
        sheet.sheet_state = "hidden" if name in hidden else "visible"
    buffer = io.BytesIO()
    book.save(buffer)
    return buffer.getvalue()


def tarred(name: str, content: bytes) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        member = tarfile.TarInfo(name)
        member.size = len(content)
        archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def refusal(name: str, content: str | bytes, kind: type[CxrError] = CxrError) -> str:
    """What is said of a table that is refused, without the path."""
    url = write(name, content)
    with pytest.raises(CxrError) as caught:
        read_metadata(url)
    assert type(caught.value) is kind
    message = str(caught.value)
    assert message.startswith(url)
    assert "\n" not in message
    return message.removeprefix(url)


def warnings_of(content: bytes) -> list[str]:
    url = write("t.xlsx", content)
    return [warning.removeprefix(f"{url}: ") for warning in read_metadata(url).warnings]


# Packed, under any name


@pytest.mark.parametrize("name", ["t.csv", "t.csv.gz", "t.xlsx", "t.txt", "t.zip", "table"])
@pytest.mark.parametrize(
    "content",
    [
        TEXT,
        gzip.compress(TEXT.encode()),
        gzip.compress(gzip.compress(TEXT.encode())),
        gzip.compress(TEXT[:200].encode()) + gzip.compress(TEXT[200:].encode()),
        zipped(**{"Data_Entry.csv": TEXT}),
        zipped(**{"Data_Entry.csv": TEXT, "__MACOSX/._Data_Entry.csv": "x", ".DS_Store": "x", "empty/": ""}),
        zipped(**{"Data_Entry.csv.gz": gzip.compress(TEXT.encode())}),
        workbook(("Sheet", [HEADER, *ROWS])),
        zipped(**{"Data_Entry.xlsx": workbook(("Sheet", [HEADER, *ROWS]))}),
        gzip.compress(workbook(("Sheet", [HEADER, *ROWS]))),
        TEXT.replace(",", "\t"),
        TEXT.replace(",", ";"),
        "sep=;\r\n" + TEXT.replace(",", ";"),
        "sep=,\n" + TEXT,
        TEXT.encode("utf-8-sig"),
        b"\xef\xbb\xbf" + TEXT.encode("utf-8-sig"),
        TEXT.replace("Patient ID", " Patient\u00a0 ID "),
        TEXT.replace(",", "\t").encode("utf-16"),
        b"\xfe\xff" + TEXT.encode("utf-16-be"),
        TEXT.replace("\n", "\r\n"),
        TEXT.replace("\n", "\r"),
    ],
    ids=[
        "csv", "gzip", "gzip twice", "gzip in parts", "zip", "zip of macOS", "gzip in zip", "xlsx",
        "xlsx in zip", "xlsx in gzip", "tabs", "semicolons", "sep= line", "sep= line of commas", "bom",
        "bom twice", "spaces", "utf-16", "utf-16 big endian", "CRLF", "CR",
    ],
)  # fmt: skip
def test_a_table_is_what_its_first_bytes_say_whatever_its_name(name, content):
    read = read_metadata(write(name, content))

    assert read.digest == read_metadata(write("plain.csv", TEXT)).digest
    assert (read.dialect, read.warnings) == ("v2020", ())


@pytest.mark.parametrize(
    ("content", "what", "remedy"),
    [
        (tarred("t.csv", TEXT.encode()), "a tar archive", "unpack it and name the right file in it"),
        (gzip.compress(tarred("t", b"")), "a tar archive", "unpack it and name the right file in it"),
        (bz2.compress(TEXT.encode()), "a bzip2 file", "unpack it"),
        (lzma.compress(TEXT.encode()), "an xz file", "unpack it"),
        (b"PAR1" + bytes(100), "a Parquet file", "save it as CSV"),
        (
            b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(600),
            "an Excel workbook of the old kind (.xls) or with a password",
            "save it as .xlsx without one, or as CSV",
        ),
        (b"\x89PNG\r\n\x1a\n" + bytes(100), "a PNG image", "name the right file"),
        (gzip.compress(gzip.compress(gzip.compress(gzip.compress(b"x")))), "a gzip file", "unpack it"),
    ],
    ids=["tar", "tar.gz", "bzip2", "xz", "parquet", "xls", "png", "gzips"],
)
def test_a_file_of_another_kind_is_named_and_refused(content, what, remedy):
    assert refusal("t.csv", content, UsageError) == (f": found {what}, which `metadata` cannot be; {remedy}")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            zipped(**{"a.csv": TEXT, "b.csv": TEXT}),
            "a zip of 2 files ('a.csv', 'b.csv'); `metadata` needs one: unpack it and name that",
        ),
        (
            zipped(**{f"{i}.png": "x" for i in range(9)}),
            "a zip of 9 files ('0.png', '1.png', '2.png' and 6 more); `metadata` needs one: unpack it and "
            "name that",
        ),
        (zipped(), "a zip of 0 files; `metadata` needs one: unpack it and name that"),
        (
            zipped(**{"mimetype": "application/vnd.oasis.opendocument.spreadsheet", "content.xml": "x"}),
            "an OpenDocument file (.ods); save it as .xlsx or as CSV",
        ),
        (
            zipped(**{"[Content_Types].xml": "x", "xl/workbook.bin": "x"}),
            "a binary workbook (.xlsb); save it as .xlsx or as CSV",
        ),
    ],
    ids=["two", "images", "none", "ods", "xlsb"],
)
def test_a_zip_that_is_not_one_table_is_refused_with_what_it_holds(content, message):
    assert refusal("t.csv", content, UsageError) == f": found {message}"


def test_a_damaged_zip_is_refused():
    whole = zipped(**{"t.csv": TEXT * 50})

    for broken in (whole[:-30], whole[:60] + b"\0" * 20 + whole[80:]):
        assert refusal("t.zip", broken).startswith(": found a zip or .xlsx that cannot be read (")


@pytest.mark.parametrize(
    "packed", [gzip.compress, lambda data: zipped(**{"t.csv": data})], ids=["gzip", "zip"]
)
def test_what_unpacks_without_end_is_refused_at_the_limit(monkeypatch, packed):
    monkeypatch.setattr(tablefiles, "MAX_BYTES", 1 << 20)
    read = []
    inflate = gzip.GzipFile.read
    monkeypatch.setattr(gzip.GzipFile, "read", lambda file, size: read.append(size) or inflate(file, size))

    assert refusal("t.csv", packed(bytes(5 << 20))) == (
        ": found more than 1 MiB; NIH's table has 10 MB, so name the right file in `metadata`"
    )
    assert set(read) <= {(1 << 20) + 1}


def test_a_plain_file_beyond_the_limit_and_a_workbook_that_unpacks_to_more_are_refused(monkeypatch):
    book = workbook(("Sheet", [HEADER, *ROWS]))
    monkeypatch.setattr(tablefiles, "MAX_BYTES", len(book) + 1)
    assert refusal("t.xlsx", book).startswith(": found more than 0 MiB; ")
    monkeypatch.setattr(tablefiles, "MAX_BYTES", 1 << 8)
    assert refusal("t.csv", TEXT).startswith(": found more than 0 MiB; ")


# Separators and cells


def test_the_header_decides_on_the_separator_never_the_cells():
    """A cell may hold any of the others."""
    text = (
        'Image Index,Finding Labels,Patient ID,Note\na.png,Mass,1,"x;y;z\t;;;;\t\t\t"\nb;c.png,Mass,2,;;;;\n'
    )
    rows = read_rows(write("t.csv", text), "metadata", lambda header: "Patient ID" in header)

    assert rows.separator == ","
    assert rows.rows == [("a.png", "Mass", "1", "x;y;z\t;;;;\t\t\t"), ("b;c.png", "Mass", "2", ";;;;")]


def test_a_header_that_no_separator_makes_is_shown_by_the_one_that_makes_most_cells_of_it():
    assert refusal("t.csv", "a;b;c\n1;2;3\n").startswith(": found the columns 'a', 'b', 'c'; needed are ")


def test_decimal_commas_and_quotes_of_european_excel_are_read():
    rows = [[*row[:9], row[9].replace(".", ","), row[10].replace(".", ",")] for row in ROWS]
    rows[0][4] = "57,0"
    text = "".join(";".join(f'"{cell}"' for cell in row) + "\r\n" for row in [HEADER, *rows])

    assert read_metadata(write("t.csv", text)).digest == read_metadata(write("p.csv", TEXT)).digest


labels = st.sets(st.sampled_from(FINDINGS), max_size=3).map(lambda names: "|".join(names) or NO_FINDING)
cells = st.tuples(
    labels,
    st.sampled_from(["57", "058Y", "", "x", "300"]),
    st.sampled_from(["M", "F", "", "O", "male"]),
    st.sampled_from(["PA", "AP", "", "LL"]),
    st.text(st.sampled_from("ab,;\t\"'. \n|"), max_size=8),
)
written_as = st.tuples(
    st.sampled_from([",", ";", "\t"]),
    st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
    st.sampled_from(["\n", "\r\n"]),
    st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]),
    st.sampled_from([bytes, gzip.compress, lambda data: zipped(**{"t": data})]),
)


@settings(max_examples=150)
@given(st.lists(cells, min_size=1, max_size=6), written_as, st.permutations(range(6)))
def test_however_a_table_is_written_it_is_read_to_the_same_values(rows, how, order):
    separator, quoting, line_end, encoding, pack = how
    header = [
        "Image Index",
        "Finding Labels",
        "Patient ID",
        "Patient Age",
        "Patient Gender",
        "View Position",
        "?",
    ]
    table = [
        [f"{i + 1:08}_000.png", finding, str(i + 1), age, sex, view, note]
        for i, (finding, age, sex, view, note) in enumerate(rows)
    ]
    plain, other = io.StringIO(), io.StringIO()
    csv.writer(plain).writerows([header, *table])
    writer = csv.writer(other, delimiter=separator, quoting=quoting, lineterminator=line_end)
    writer.writerows([[row[place] for place in (*order, 6)] for row in [header, *table]])

    expected = read_metadata(write("plain.csv", plain.getvalue()))
    read = read_metadata(write("other", pack(other.getvalue().encode(encoding))))

    assert read.digest == expected.digest
    assert read.table["patient_id"].tolist() == list(range(1, len(rows) + 1))
    assert len(read.warnings) == len(expected.warnings)


@settings(max_examples=300)
@given(
    st.sampled_from([TEXT, TEXT.replace(",", ";"), TEXT.replace(",", "\t")]),
    st.lists(st.tuples(st.integers(0, 400), st.integers(0, 6), st.text(max_size=3)), min_size=1, max_size=3),
)
def test_a_changed_table_is_read_whole_or_refused_in_one_line(text, changes):
    for start, length, patch in changes:
        text = text[:start] + patch + text[start + length :]
    url = write("t.csv", text.encode("utf-8", "surrogatepass"))
    try:
        metadata = read_metadata(url)
    except CxrError as error:
        said = [str(error)]
    else:
        said = list(metadata.warnings)
        assert len(metadata) == len(metadata.findings) >= 1
    assert [line.startswith(url) and len(line.splitlines()) for line in said] == [1] * len(said)


# Sheets


def test_rows_on_several_sheets_are_read_together_and_said():
    book = workbook(("Sheet", [HEADER, *ROWS[:2]]), ("empty", []), ("more", [[], HEADER, ROWS[2]]))

    assert warnings_of(book) == [
        "the table is on 2 sheets, which are read together: 'Sheet' (2 rows), 'more' (1 rows)"
    ]
    assert read_metadata(write("t.xlsx", book)).digest == read_metadata(write("t.csv", TEXT)).digest


def test_an_error_on_one_of_several_sheets_names_it():
    book = workbook(("Sheet", [HEADER, *ROWS]), ("more", [HEADER, [], ROWS[0]]))

    assert refusal("t.xlsx", book) == (
        ", line 3 of sheet 'more' (image '00000001_000.png'): line 2 of sheet 'Sheet' has the same 'Image "
        "Index'; keep one of the two"
    )


def test_sheets_of_different_columns_are_refused_by_name():
    other = [[row[place] for place in (3, 0, 1)] for row in [HEADER, *ROWS]]

    assert refusal("t.xlsx", workbook(("a", [HEADER, *ROWS]), ("b", other))) == (
        ": found sheets 'a' and 'b' with different columns; give both the same, or save the table as one CSV"
    )


@pytest.mark.parametrize("place", [0, 1], ids=["before", "behind"])
def test_a_hidden_sheet_is_not_taken_for_the_table_and_is_said(place):
    old = [HEADER, *[[row[0], "Edema", *row[2:]] for row in ROWS[:2]]]
    sheets = [("Sheet", [HEADER, *ROWS])]
    sheets.insert(place, ("old", old))
    book = workbook(*sheets, hidden=("old",))

    assert read_metadata(write("t.xlsx", book)).digest == read_metadata(write("t.csv", TEXT)).digest
    assert warnings_of(book) == ["hidden sheet 'old' is left out: it holds 2 rows of such a table"]


def test_a_table_on_a_hidden_sheet_alone_is_refused():
    book = workbook(("notes", [["a"], ["b"]]), ("old", [HEADER, *ROWS]), hidden=("old",))

    assert refusal("t.xlsx", book) == (
        ": found the table on a hidden sheet only ('old'); show that sheet, or save it as CSV"
    )


def test_a_sheet_that_holds_no_table_is_said_and_one_of_images_without_header_refused():
    assert warnings_of(workbook(("notes", [["Source", "NIH"]]), ("Sheet", [HEADER, *ROWS]))) == [
        "sheet 'notes' is left out: it holds no such table"
    ]
    for more in ROWS[2:], [["Image_Index", *HEADER[1:]], *ROWS[2:]]:
        assert refusal("t.xlsx", workbook(("Sheet", [HEADER, *ROWS[:2]]), ("more", more))) == (
            ": found images on sheet 'more', whose first line is no header like that of sheet 'Sheet'; give "
            "it that header, or remove the sheet"
        )


def test_a_workbook_without_the_needed_columns_is_refused_with_those_of_its_first_sheet_that_shows():
    book = workbook(("old", [["x"]]), ("a", [["b", "c"]]), hidden=("old",))

    assert refusal("t.xlsx", book).startswith(": found the columns 'b', 'c'; needed are ")


@pytest.mark.parametrize("place", [0, 3, 5], ids=["image", "patient", "sex"])
def test_a_formula_without_its_value_is_refused_not_read_as_empty(place):
    rows = [list(row) for row in ROWS]
    rows[1][place] = "=A1"
    cell = f"{'ABCDEFGHIJK'[place]}3"

    assert refusal("t.xlsx", workbook(("Sheet", [HEADER, *rows]))) == (
        f", sheet 'Sheet': found a formula without its value in cell {cell}; open it in Excel and save it, "
        "or save it as CSV"
    )


def test_a_row_of_formulas_alone_is_no_blank_row():
    book = workbook(("Sheet", [HEADER, *ROWS, ["=A1"] * len(HEADER)]))

    assert "found a formula without its value in cell A5" in refusal("t.xlsx", book)


def test_blank_rows_are_no_rows_and_merged_cells_are_empty_but_the_first():
    openpyxl = importlib.import_module("openpyxl")
    book = openpyxl.load_workbook(io.BytesIO(workbook(("Sheet", [HEADER, ROWS[0], [], [None], *ROWS[1:]]))))
    blank, merged = io.BytesIO(), io.BytesIO()
    book.save(blank)
    assert read_metadata(write("t.xlsx", blank.getvalue())).digest == read_metadata(write("t", TEXT)).digest

    book.active.merge_cells("D5:D6")
    book.save(merged)
    assert refusal("t.xlsx", merged.getvalue()) == (
        ", line 6 (image '00000002_000.png'): 'Patient ID': found ''; expected a whole number, such as 1 or "
        "00000001"
    )


def test_dates_and_numbers_of_more_digits_than_excel_keeps_are_refused():
    def changed(place: int, value: object) -> bytes:
        rows = [list(row) for row in ROWS]
        rows[0][place] = value
        return workbook(("Sheet", [HEADER, *rows]))

    line = ", line 2 (image "
    assert refusal("t.xlsx", changed(0, datetime(2023, 5, 1))) == (
        f"{line}'2023-05-01 00:00:00'): found a date as 'Image Index'; expected a file name such as "
        "00000001_000.png"
    )
    assert refusal("t.xlsx", changed(3, datetime(2023, 5, 1))) == (
        f"{line}'00000001_000.png'): 'Patient ID': found '2023-05-01 00:00:00'; expected a whole number, "
        "such as 1 or 00000001"
    )
    assert refusal("t.xlsx", changed(3, 1234567890123456789)) == (
        f"{line}'00000001_000.png'): 'Patient ID': found '1.234568E+18'; expected a whole number, such as 1 "
        "or 00000001"
    )
    assert warnings_of(changed(4, datetime(2023, 5, 1))) == [
        "1 of 3 rows have a 'Patient Age' that cannot be read (the first is '2023-05-01 00:00:00' on line 2; "
        "expected 0 to 120 years): taken as unknown"
    ]


# What other readers are given


def test_text_of_a_workbook_is_none():
    content = read_content(write("t", workbook(("Sheet", [HEADER]))), "test_list")

    with pytest.raises(CxrError, match=r"^p: found an \.xlsx workbook where text is expected; save it as "):
        as_text("p", content)


def test_utf_16_that_is_cut_short_is_refused():
    with pytest.raises(
        CxrError, match=r"^p: found bytes that are not UTF-16 text, as its first bytes say \("
    ):
        as_text("p", "abc".encode("utf-16")[:-1])


@pytest.mark.parametrize(
    ("separator", "name"),
    [("|", "bars (|)"), (":", "colons"), ("   ", "spaces")],
    ids=["bar", "colon", "spaces"],
)
def test_a_table_of_another_separator_is_told_so_and_not_to_rename_its_columns(separator, name):
    text = TEXT.replace("|", "+").replace(",", separator)

    assert refusal("t.csv", text) == (
        f", line 1: found columns with {name} between them; save it with commas, semicolons or tabs"
    )


def test_a_table_each_of_whose_lines_is_in_quotes_is_told_so():
    assert refusal("t.csv", "".join(f'"{line}"\n' for line in TEXT.splitlines())) == (
        ", line 1: found all columns in one pair of quotes; save it without the quotes around each line"
    )


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_a_title_above_the_header_is_what_is_named(separator):
    text = f"# ChestX-ray14, downloaded 2020\n\n{TEXT.replace(',', separator)}"

    assert refusal("t.csv", text) == ": found the header on line 3; remove what stands above it"


def test_a_title_above_the_header_of_any_shown_sheet_is_what_is_named():
    titled = [["ChestX-ray14"], HEADER, ROWS[2]]
    whole = [HEADER, *ROWS[:2]]
    said = ": found the header on line 2 of sheet 'b'; remove what stands above it"

    assert refusal("t.xlsx", workbook(("b", titled))) == said
    assert refusal("t.xlsx", workbook(("a", whole), ("b", titled))) == said
    hidden = workbook(("a", whole), ("b", titled), hidden=("b",))
    assert warnings_of(hidden) == ["hidden sheet 'b' is left out: it holds no such table"]


def test_rows_that_a_filter_hides_are_read_and_counted():
    openpyxl = importlib.import_module("openpyxl")
    book = openpyxl.load_workbook(io.BytesIO(workbook(("a", [HEADER, *ROWS]))))
    for line in (2, 4):
        book["a"].row_dimensions[line].hidden = True
    buffer = io.BytesIO()
    book.save(buffer)

    assert warnings_of(buffer.getvalue()) == [
        "2 rows are hidden, by a filter or by hand: they are read as the others are"
    ]
    assert len(read_metadata(write("t.xlsx", buffer.getvalue()))) == 3


@pytest.mark.parametrize(
    ("content", "what"),
    [
        ('<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "an XML file"),
        ("<!-- sign in --><html>", "a web page"),
    ],
)
def test_what_an_object_store_answers_in_place_of_a_table_is_called_by_its_name(content, what):
    assert refusal("t.csv", content) == f": found {what}; download the file itself, or correct `metadata`"


@pytest.mark.parametrize("column", ["Image Index", "image_id", "Image-Name", "FILENAME", "imageFile", "Path"])
def test_a_column_of_image_names_is_known_by_one_rule_in_tables_lists_and_scores(column):
    assert plain(column) in IMAGE_COLUMNS
    assert read_list(write("l.csv", f"{column},n\na.png,1\nb.png,2\n"), "test_list") == ["a.png", "b.png"]
    said = refusal("t.csv", TEXT.replace("Image Index", column)) if column != "Image Index" else ""
    assert said == "" or said.endswith(f"({column!r} looks like 'Image Index')")
    scores = write("s.csv", f"{column},Mass\n00000001_000.png,0.25\n")
    assert read_score_table(scores, read_metadata(write("t.csv", TEXT))).known.tolist() == [True]


def test_names_of_columns_are_alike_up_to_a_slip_of_the_pen():
    assert alike("Veiw Position", "View Position")
    assert alike("Patient_Genders", "Patient Gender")
    assert not alike("Patient Sex", "Patient Age")


def test_used_up_memory_while_a_table_is_read_is_no_fault_of_the_table(tmp_path, monkeypatch):
    def no_memory(path):
        raise MemoryError

    monkeypatch.setattr("cxr_records.storage.open_read", no_memory)
    with pytest.raises(MemoryError):
        tablefiles.read_content(str(tmp_path / "table.csv"), "metadata")
