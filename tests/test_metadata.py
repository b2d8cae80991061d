import gzip
import importlib
import io
import re
import sys
import zipfile

import fsspec
import numpy as np
import pytest
from conftest import count_findings
from hypothesis import example, given, settings
from hypothesis import strategies as st

from cxr_records import storage
from cxr_records.errors import CxrError, UsageError
from cxr_records.findings import NO_FINDING, format_findings
from cxr_records.metadata import read_metadata

SHARED_HEADER = "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position"
V2020 = f"""\
{SHARED_HEADER},OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y]
00000003_000.png,Mass|Atelectasis,7,3,81,F,PA,2582,2991,0.143,0.143
00000001_000.png,Cardiomegaly,0,1,57,M,PA,2682,2749,0.14300000000000002,0.14300000000000002
00000002_000.png,No Finding,0,2,80,M,AP,2500,2048,0.171,0.171
"""
# The same images as the table of 2017 writes them: the header ends in a comma, the rows do not.
V2017 = f"""\
{SHARED_HEADER},OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y],
00000001_000.png,Cardiomegaly,000,00000001,057Y,M,PA,2682,2749,0.143,0.143
00000002_000.png,No Finding,000,00000002,080Y,M,AP,2500,2048,0.171,0.171
00000003_000.png,Atelectasis|Mass,007,00000003,081Y,F,PA,2582,2991,0.143,0.143
""".replace("\n", "\r\n")
KAGGLE = V2017.replace("[Width,Height]", "Width,OriginalImageHeight").replace(
    "[x,y],", "_x,OriginalImagePixelSpacing_y"
)
NEEDED_ONLY = """\
Patient ID,Finding Labels,Image Index
1,Cardiomegaly,00000001_000.png
2,No Finding,00000002_000.png
3,Mass|Atelectasis,00000003_000.png
"""


def write(name: str, content: str | bytes) -> str:
    """Writes a file in memory and returns its URL; the reader takes any fsspec URL."""
    url = f"memory://tests/{name}"
    with fsspec.open(url, "wb") as file:
        file.write(content if isinstance(content, bytes) else content.encode())
    return url


def workbook(text: str) -> bytes:
    """Turns CSV text into a workbook, numbers as numbers, as Excel does when it opens one."""
    openpyxl = importlib.import_module("openpyxl")
    book = openpyxl.Workbook()
    for line in text.splitlines():
        cells = [int(c) if c.isdigit() and str(int(c)) == c else c or None for c in line.split(",")]
        book.active.append(cells)
    buffer = io.BytesIO()
    book.save(buffer)
    return buffer.getvalue()


def refusal(name: str, content: str | bytes) -> str:
    """Returns what the reader says of a file, without the path."""
    url = write(name, content)
    with pytest.raises(CxrError) as caught:
        read_metadata(url)
    message = str(caught.value)
    assert message.startswith(url)
    assert "\n" not in message
    return message.removeprefix(url)


@pytest.mark.parametrize(
    ("text", "dialect"),
    [(V2020, "v2020"), (V2017, "2017"), (KAGGLE, "kaggle sample")],
    ids=["v2020", "2017", "kaggle"],
)
def test_every_dialect_gives_the_same_table(text, dialect):
    metadata = read_metadata(write("table.csv", text))

    assert metadata.dialect == dialect
    assert metadata.table.to_dict("list") == {
        "image_id": ["00000001_000.png", "00000002_000.png", "00000003_000.png"],
        "patient_id": [1, 2, 3],
        "view": ["PA", "AP", "PA"],
        "sex": ["M", "M", "F"],
        "age_years": [57, 80, 81],
        "follow_up": [0, 0, 7],
    }
    assert metadata.table.index.tolist() == [0, 1, 2]
    assert [str(dtype) for dtype in metadata.table.dtypes] == [
        "string[pyarrow]",
        "int64",
        "category",
        "category",
        "int64",
        "int64",
    ]
    assert metadata.findings.dtype == np.uint8
    assert [format_findings(row) for row in metadata.findings] == [
        "Cardiomegaly",
        NO_FINDING,
        "Atelectasis|Mass",
    ]
    assert metadata.digest == read_metadata(write("v2020.csv", V2020)).digest
    assert len(metadata) == 3


@pytest.mark.parametrize(
    "text", [V2020, V2017, KAGGLE, NEEDED_ONLY], ids=["v2020", "2017", "kaggle", "needed"]
)
def test_drawings_are_told_from_x_rays_by_their_column_in_whatever_file_it_comes(text):
    first, *rows = text.splitlines()
    at = first.split(",").index("Patient ID") + 1

    def with_column(*cells: str) -> str:
        lines = zip([first, *rows], ["Drawn by", *cells], strict=True)
        return "".join(
            ",".join((*(row := line.split(","))[:at], cell, *row[at:])) + "\n" for line, cell in lines
        )

    plain, all_drawn = read_metadata(write("t.csv", text)), with_column(*["cxr_records"] * 3)
    for table in (
        all_drawn,
        workbook(all_drawn),
        gzip.compress(all_drawn.encode()),
        all_drawn.replace("OriginalImage[Width,Height]", '"OriginalImage[Width,Height]"'),
        all_drawn.replace(",cxr_records,", ", cxr_records ,"),
    ):
        drawn = read_metadata(write("t.csv", table))
        assert drawn.drawn == len(drawn) == 3
        assert (drawn.digest, drawn.dialect, drawn.warnings) == (plain.digest, plain.dialect, plain.warnings)
    assert read_metadata(write("t.csv", with_column("cxr_records", "", "Dr. Hill"))).drawn == 1
    assert plain.drawn == 0


def test_columns_beyond_the_needed_ones_may_be_absent_and_in_any_order():
    metadata = read_metadata(write("table.csv", NEEDED_ONLY))

    assert metadata.dialect == "other"
    assert metadata.table["patient_id"].tolist() == [1, 2, 3]
    assert set(metadata.table["age_years"]) == set(metadata.table["follow_up"]) == {-1}
    assert set(metadata.table["view"]) == set(metadata.table["sex"]) == {""}


@pytest.mark.parametrize(
    "text", [V2020, V2017, KAGGLE, NEEDED_ONLY], ids=["v2020", "2017", "kaggle", "needed"]
)
def test_csv_gzip_and_workbook_have_the_same_dialect_and_digest(text):
    plain = read_metadata(write("table.csv", text))
    others = [
        read_metadata(write("table.csv.gz", gzip.compress(text.encode()))),
        read_metadata(write("table.XLSX", workbook(text))),
        read_metadata(write("bom.csv", b"\xef\xbb\xbf" + text.encode())),
        read_metadata(write("unpacked by a browser.csv.gz", text)),
        read_metadata(write("blank lines.csv", text.replace("\n", "\n\n") + ",,,,,,\n")),
        read_metadata(
            write(
                "header in quotes.csv",
                text.replace("OriginalImage[Width,Height]", '"OriginalImage[Width,Height]"'),
            )
        ),
    ]

    assert {(other.digest, other.dialect) for other in others} == {(plain.digest, plain.dialect)}


def test_a_workbook_that_states_too_small_a_size_is_read_whole():
    original = zipfile.ZipFile(io.BytesIO(workbook(V2020)))
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as changed:
        for name in original.namelist():
            changed.writestr(name, re.sub(rb'(?<=<dimension ref=")[^"]+', b"A1:D2", original.read(name)))

    assert (
        read_metadata(write("t.xlsx", buffer.getvalue())).digest
        == read_metadata(write("t.csv", V2020)).digest
    )


@pytest.mark.parametrize(
    "change",
    [
        ("Cardiomegaly", "Edema"),
        ("00000001_000.png,Cardiomegaly,0,1", "00000009_000.png,Cardiomegaly,0,9"),
        ("57,M", "58,M"),
        ("M,AP", "F,AP"),
        ("M,AP", "M,PA"),
        ("3_000", "3_001"),
    ],
)
def test_another_value_is_another_digest(change):
    assert (
        read_metadata(write("a.csv", V2020)).digest
        != read_metadata(write("b.csv", V2020.replace(*change))).digest
    )


def test_a_local_path_with_spaces_and_brackets_is_read(tmp_path):
    path = tmp_path / "Data Entry [2017] *.csv"
    path.write_text(V2020)

    assert len(read_metadata(str(path))) == 3
    assert len(read_metadata(path)) == 3


@pytest.mark.parametrize(
    ("text", "years"),
    [
        ("058Y", 58),
        ("58", 58),
        ("58.0", 58),
        (" 058y ", 58),
        ("011M", 0),
        ("013M", 1),
        ("001D", 0),
        ("060W", 1),
        ("0", 0),
        ("120Y", 120),
        ("121Y", -1),
        ("414Y", -1),
        ("155", -1),
        ("", -1),
        ("nan", -1),
        ("-5", -1),
        ("٣", -1),
    ],
)
def test_ages_become_whole_years_or_unknown_which_is_said(text, years):
    metadata = read_metadata(
        write("age.csv", NEEDED_ONLY.splitlines()[0] + f",Patient Age\n1,Mass,a.png,{text}\n")
    )

    assert metadata.table["age_years"].tolist() == [years]
    assert [warning for warning in warnings_of(metadata) if "found no column" not in warning] == [
        f"1 of 1 rows have a 'Patient Age' that cannot be read (the first is {text!r} on line 2; expected 0 "
        "to 120 years): taken as unknown"
    ] * (years == -1)


def warnings_of(metadata) -> list[str]:
    """What is said of a table, without the path before it."""
    assert all(warning.startswith("memory://tests/") for warning in metadata.warnings)
    return [warning.split(": ", 1)[1] for warning in metadata.warnings]


def test_views_and_sexes_other_than_known_become_empty_and_are_counted_with_their_first_text():
    rows = "1,Mass,a.png,pa,male\n1,Mass,b.png,AP,F\n1,Mass,c.png,LATERAL,O\n1,Mass,d.png,,\n"
    metadata = read_metadata(
        write("t.csv", "Patient ID,Finding Labels,Image Index,View Position,Patient Gender\n" + rows)
    )

    assert metadata.table["view"].tolist() == ["PA", "AP", "", ""]
    assert metadata.table["sex"].tolist() == ["M", "F", "", ""]
    assert warnings_of(metadata) == [
        "found no column 'Patient Age': unknown of every image",
        "2 of 4 rows have a 'View Position' that cannot be read (the first is 'LATERAL' on line 4; expected "
        "PA or AP): taken as unknown",
        "2 of 4 rows have a 'Patient Gender' that cannot be read (the first is 'O' on line 4; expected M "
        "or F): taken as unknown",
    ]


@pytest.mark.parametrize("text", [V2020, V2017, KAGGLE], ids=["v2020", "2017", "kaggle"])
def test_of_a_table_as_nih_gives_it_nothing_is_said(text):
    assert read_metadata(write("t.csv", text)).warnings == ()
    assert read_metadata(write("t.xlsx", workbook(text))).warnings == ()


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("Patient Gender", "Patient Sex"),
        ("Patient Gender", "sex"),
        ("Patient Gender", "patient gender"),
        ("Patient Gender", "Patient_Gender"),
        ("Patient Gender", "Pateint Gender"),
        ("Patient Gender", "Patient-Gender"),
        ("Patient Age", "Age"),
        ("Patient Age", "Patient Age (years)"),
        ("View Position", "View"),
        ("View Position", "ViewPosition"),
    ],
)
def test_a_column_whose_name_is_nearly_right_is_named(old, new):
    assert warnings_of(read_metadata(write("t.csv", V2020.replace(old, new)))) == [
        f"found no column {old!r}, so it is unknown of every image; {' '.join(new.split())!r} looks like it: "
        f"rename it to {old!r}"
    ]


def test_columns_that_are_absent_are_said_in_one_line_and_none_is_taken_for_another():
    assert warnings_of(read_metadata(write("t.csv", NEEDED_ONLY))) == [
        "found no column 'Patient Age', 'Patient Gender', 'View Position': unknown of every image"
    ]
    without_sex = V2020.replace("Patient Gender", "Notes")
    assert warnings_of(read_metadata(write("t.csv", without_sex))) == [
        "found no column 'Patient Gender': unknown of every image"
    ]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("Image Index", "image_id"),
        ("Image Index", "Filename"),
        ("Finding Labels", "Finding Label"),
        ("Finding Labels", "labels"),
        ("Patient ID", "PatientID"),
        ("Patient ID", "subject_id"),
    ],
)
def test_a_needed_column_whose_name_is_nearly_right_is_named_in_the_refusal(old, new):
    said = refusal("t.csv", V2020.replace(old, new))

    assert said.endswith(
        f"so {old!r} must be added or renamed in the first line ({new!r} looks like {old!r})"
    )


def patients_by_row() -> str:
    """A table of three images of patient 1 and one of another hospital whose patients are numbers of rows."""
    rows = ["00000001_000.png,Mass", "00000001_001.dcm,Edema", "00000001_002,Mass", "other.png,Mass"]
    numbered = [f"{row},{number}" for number, row in enumerate(rows, start=1)]
    return "\n".join(["Image Index,Finding Labels,Patient ID", *numbered]) + "\n"


@pytest.mark.parametrize("packed", [False, True], ids=["csv", "workbook"])
def test_a_patient_whom_the_name_of_the_image_contradicts_is_refused_with_the_count(packed):
    text = patients_by_row()

    assert refusal("t.csv", workbook(text) if packed else text) == (
        ", line 3 (image '00000001_001.dcm'): 'Patient ID' says 2, the name says patient 1 (so in 2 of 4 "
        "rows); the columns do not belong together: take the table as NIH gives it"
    )


@settings(max_examples=50)
@given(st.permutations(range(1, 9)))
def test_a_patient_column_sorted_alone_is_refused_whatever_the_order_of_the_rows(patients):
    rows = [f"{patient:08}_000.png,No Finding,{number}" for number, patient in enumerate(patients, start=1)]
    text = "\n".join(["Image Index,Finding Labels,Patient ID", *rows])
    wrong = sum(number != patient for number, patient in enumerate(patients, start=1))

    if wrong:
        assert f"(so in {wrong} of 8 rows)" in refusal("t.csv", text)
    else:
        assert len(read_metadata(write("t.csv", text))) == 8


def test_folders_before_names_are_taken_off_and_counted():
    text = V2020.replace("00000003", "images_001/images/00000003").replace("00000001", "C:\\x\\00000001")
    metadata = read_metadata(write("t.csv", text))

    assert metadata.digest == read_metadata(write("plain.csv", V2020)).digest
    assert warnings_of(metadata) == [
        "2 of 3 rows have folders in their 'Image Index' (the first is 'images_001/images/00000003_000.png' "
        "on line 2): taken off"
    ]


def test_two_rows_that_folders_aside_name_one_image_are_refused():
    text = V2020.replace("00000002_000.png", "a/x.png").replace("00000001_000.png", "b/x.png")

    assert refusal("t.csv", text) == (
        ", line 4 (image 'a/x.png'): line 3 has the same 'Image Index', folders aside; keep one of the two"
    )
    assert refusal("t.csv", V2020.replace("00000002_000.png", "images/")) == (
        ", line 4 (image 'images/'): found no usable 'Image Index'; expected a file name such as "
        "00000001_000.png"
    )


def test_names_that_differ_in_their_ending_alone_are_said():
    text = V2020.replace("00000002_000.png,No Finding,0,2", "00000001_000.DCM,No Finding,0,1")

    assert warnings_of(read_metadata(write("t.csv", text))) == [
        "1 rows have an 'Image Index' that differs from another's in its ending alone: each stands for files "
        "and names of its own ending only"
    ]
    assert warnings_of(read_metadata(write("t.csv", V2020.replace(".png", "")))) == []


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("Mass|Atelectasis", '"Mass, Edema"', "found 'Mass, Edema'; findings are separated by '|'"),
        ("Mass|Atelectasis", "Mass;Atelectasis", "found 'Mass;Atelectasis'; findings are separated by '|'"),
        (",7,3,81", ",7,3E+00,81", "found '3E+00'; expected a whole number, such as 1 or 00000001"),
        (",7,3,81", ',7,"3,000",81', "found '3,000'; expected a whole number, such as 1 or 00000001"),
        (",7,3,81", ",7,3.000,81", "found '3.000'; expected a whole number, such as 1 or 00000001"),
        (",7,3,81", ",7,,81", "found ''; expected a whole number, such as 1 or 00000001"),
        (",7,3,81", ",7,#REF!,81", "found '#REF!'; expected a whole number, such as 1 or 00000001"),
        ("Mass|Atelectasis", "Mass,Atelectasis", "found 12 values where the header has 11 columns; quote the "
         "cell that holds ',', or download the table again"),
        ("2500,2048,0.171", "2500,2048,0,171", "found 12 values where the header has 11 columns; quote the "
         "cell that holds ',', or download the table again"),
        ("00000002_000.png,No Finding,0,2", SHARED_HEADER[:46], "found the header again; remove it "
         "from among the rows"),
        ("00000002_000.png", "2023-05-01 00:00:00", "found a date as 'Image Index'; expected a file "
         "name such as 00000001_000.png"),
    ],
)  # fmt: skip
def test_cells_that_people_and_programs_changed_are_refused(old, new, message):
    assert refusal("t.csv", V2020.replace(old, new)).endswith(f": {message}")


def test_a_cell_too_many_is_found_below_the_header_of_2017_too_which_ends_in_a_comma():
    assert refusal("t.csv", V2017.replace("Atelectasis|Mass", "Atelectasis,Mass")) == (
        ", line 4: found 12 values where the header has 11 columns; quote the cell that holds ',', or "
        "download the table again"
    )
    assert len(read_metadata(write("t.csv", V2017.replace("0.171,0.171", "0.171,0.171,,,")))) == 3


@pytest.mark.parametrize("text", ["3.", "3.0", "3.00", "3.000000", "03", " 3 "])
def test_a_whole_number_may_be_written_as_programs_write_it(text):
    changed = read_metadata(write("t.csv", V2020.replace(",7,3,81", f",7,{text},81")))

    assert changed.digest == read_metadata(write("plain.csv", V2020)).digest


def test_the_findings_cannot_be_changed_by_accident():
    with pytest.raises(ValueError, match="read-only"):
        read_metadata(write("t.csv", V2020)).findings[0, 0] = 1


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "Cardiomegaly",
            "Cardiomegalie",
            ", line 3 (image '00000001_000.png'): 'Finding Labels': unknown finding 'Cardiomegalie' (did "
            "you mean Cardiomegaly?)",
        ),
        (
            "No Finding",
            "",
            ", line 4 (image '00000002_000.png'): 'Finding Labels': empty finding in ''; an image without "
            "findings is 'No Finding'",
        ),
        (
            "Mass|Atelectasis",
            "Mass|No Finding",
            ", line 2 (image '00000003_000.png'): 'Finding Labels': 'Mass|No Finding' names findings and "
            "'No Finding' at once",
        ),
        (
            "00000002_000",
            "00000003_000",
            ", line 4 (image '00000003_000.png'): line 2 has the same 'Image Index'; keep one of the two",
        ),
        (
            "0,2,80",
            "0,2b,80",
            ", line 4 (image '00000002_000.png'): 'Patient ID': found '2b'; expected a whole number, such "
            "as 1 or 00000001",
        ),
        (
            "00000002_000.png",
            "",
            ", line 4 (image ''): found no usable 'Image Index'; expected a file name such as "
            "00000001_000.png",
        ),
        (
            "0,2,80,M,AP,2500,2048,0.171,0.171",
            "0,2",
            ", line 4: found 4 values where the header asks for at least 7; complete the line, or download "
            "the table again",
        ),
        (
            "Image Index,",
            "Image_Index,",
            ": found the columns 'Image_Index', 'Finding Labels', 'Follow-up #', 'Patient ID', 'Patient "
            "Age', 'Patient Gender', 'View Position', 'OriginalImage[Width', 'Height]', "
            "'OriginalImagePixelSpacing[x', 'y]'; needed are 'Image Index', 'Finding Labels', 'Patient ID', "
            "so 'Image Index' must be added or renamed in the first line ('Image_Index' looks like 'Image "
            "Index')",
        ),
        (
            "OriginalImage[Width",
            "Patient ID",
            ": found the column 'Patient ID' twice; keep one of them",
        ),
        (
            "2500",
            '"2500',
            ", line 4: found what is no CSV (unexpected end of data); expected a table with commas; "
            "download it again",
        ),
    ],
)  # fmt: skip
def test_a_wrong_cell_is_refused_with_its_line_and_image(old, new, message):
    assert refusal("wrong.csv", V2020.replace(old, new)) == message


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.csv", b"", ": found an empty file; download it again, or correct `metadata`"),
        ("t.csv.gz", gzip.compress(b""), ": found an empty file; download it again, or correct `metadata`"),
        ("t.csv", V2020.splitlines()[0], ": found a header and no rows; expected one row per image"),
        (
            "t.csv",
            "\n<!DOCTYPE html>\n<p>Sign in</p>\n",
            ": found a web page; download the file itself, or correct `metadata`",
        ),
        (
            "t.csv.gz",
            gzip.compress(V2020.encode())[:-20],
            ": found broken gzip (Compressed file ended before the end-of-stream marker was reached); "
            "download the file again",
        ),
        (
            "t.csv",
            "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 7\n",
            ": found a Git LFS pointer; fetch the file itself with git lfs pull, or correct `metadata`",
        ),
        (
            "t.csv",
            V2020.replace("Mass", "Maß").encode("cp1252"),
            ": found bytes that are not UTF-8 text (byte 169 is 0xdf); save it as UTF-8",
        ),
        (
            "t.csv",
            V2020.replace(",81,F", ",81\0,F"),
            ", line 2: found a NUL byte, which no text holds; save it as UTF-8",
        ),
    ],
    ids=["empty", "empty gzip", "header only", "html", "cut gzip", "lfs", "cp1252", "nul"],
)  # fmt: skip
def test_a_file_that_is_no_table_is_refused_with_the_reason(name, content, message):
    assert refusal(name, content) == message


def test_a_missing_file_or_folder_is_a_wrong_use(tmp_path):
    with pytest.raises(
        UsageError, match=r"absent\.csv: found no such file; `metadata` must name an existing file$"
    ):
        read_metadata(str(tmp_path / "absent.csv"))
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(
        UsageError, match=r"folder\.csv: found a folder; `metadata` must name an existing file$"
    ):
        read_metadata(str(tmp_path / "folder.csv"))


def test_an_unknown_kind_of_url_is_refused_in_one_line():
    with pytest.raises(CxrError, match=r"^nosuch://t\.csv: Protocol not known: nosuch$"):
        read_metadata("nosuch://t.csv")


def test_a_workbook_without_openpyxl_names_the_extra(monkeypatch):
    book = workbook(V2020)
    monkeypatch.setitem(sys.modules, "openpyxl", None)

    assert refusal("t.csv", book) == (
        ": reading .xlsx needs openpyxl; pip install '.[excel]' in a clone, or save it as .csv"
    )


def read_or_refuse(name: str, content: bytes) -> None:
    """Fails when anything but a table or a refusal of one short line comes out of a broken file."""
    said = "read"
    try:
        metadata = read_metadata(write(name, content))
    except CxrError as error:
        said = str(error)
    else:
        assert len(metadata.findings) == len(metadata) > 0
    assert len(said.splitlines()) == 1
    assert len(said) < 1500


@settings(max_examples=150)
@given(st.binary(max_size=300), st.sampled_from(["t.csv", "t.csv.gz", "t.xlsx"]))
@example(b"\xef\xbb\xbf", "t.csv")
@example(b"\x1f\x8b", "t.csv.gz")
@example(b'"' * 200_001, "t.csv")
@example(b"x" * 200_001, "t.csv")
def test_random_bytes_are_refused_and_never_crash(content, name):
    read_or_refuse(name, content)


@settings(max_examples=300)
@given(
    st.sampled_from([V2020, V2017, KAGGLE, NEEDED_ONLY]).map(str.encode),
    st.integers(0, 700),
    st.integers(0, 20),
    st.one_of(
        st.binary(max_size=8),
        st.sampled_from([b",", b'"', b"\n", b"\r", b"\0", b"|", b"9" * 30, b"\xe2\x80\xa8"]),
    ),
    st.booleans(),
)
def test_damaged_tables_are_read_or_refused_and_never_crash(content, start, length, patch, packed):
    damaged = content[:start] + patch + content[start + length :]
    read_or_refuse("t.csv", gzip.compress(damaged) if packed else damaged)


@settings(max_examples=100)
@given(st.integers(0, 5000), st.integers(0, 30), st.binary(max_size=8), st.sampled_from(["gz", "xlsx"]))
def test_damaged_archives_are_read_or_refused_and_never_crash(start, length, patch, kind):
    content = gzip.compress(V2020.encode()) if kind == "gz" else workbook(V2020)
    start %= len(content)
    read_or_refuse(
        f"t.csv.{kind}" if kind == "gz" else "t.xlsx", content[:start] + patch + content[start + length :]
    )


def test_the_real_table_of_2020_has_the_published_counts(nih_v2020):
    assert nih_v2020.dialect == "v2020"
    assert len(nih_v2020) == 112_120
    assert nih_v2020.table["patient_id"].nunique() == 30_805
    assert nih_v2020.table["view"].value_counts().to_dict() == {"PA": 67_310, "AP": 44_810}
    assert nih_v2020.table["sex"].value_counts().to_dict() == {"M": 63_340, "F": 48_780}
    assert (nih_v2020.table["age_years"].min(), nih_v2020.table["age_years"].max()) == (0, 95)
    assert count_findings(nih_v2020.findings) == {
        "Atelectasis": 11_559,
        "Cardiomegaly": 2_776,
        "Effusion": 13_317,
        "Infiltration": 19_894,
        "Mass": 5_782,
        "Nodule": 6_331,
        "Pneumonia": 1_431,
        "Pneumothorax": 5_302,
        "Consolidation": 4_667,
        "Edema": 2_303,
        "Emphysema": 2_516,
        "Fibrosis": 1_686,
        "Pleural_Thickening": 3_385,
        "Hernia": 227,
        NO_FINDING: 60_361,
    }


def test_the_real_table_of_2017_differs_from_2020_in_the_labels_of_181_images(nih, nih_v2020):
    old = read_metadata(str(nih / "Data_Entry_2017.csv.gz"))

    assert old.dialect == "2017"
    assert old.table["image_id"].tolist() == nih_v2020.table["image_id"].tolist()
    assert old.table["patient_id"].equals(nih_v2020.table["patient_id"])
    assert old.table["view"].equals(nih_v2020.table["view"])
    assert (old.findings != nih_v2020.findings).any(axis=1).sum() == 181
    assert (nih_v2020.findings >= old.findings).all()
    assert count_findings(old.findings)[NO_FINDING] == 60_412
    assert (old.table["age_years"] == -1).sum() == 16
    assert old.warnings == (
        f"{nih / 'Data_Entry_2017.csv.gz'}: 16 of 112,120 rows have a 'Patient Age' that cannot be read (the "
        "first is '412Y' on line 20,854; expected 0 to 120 years): taken as unknown",
    )
    in_file_name = old.table["image_id"].str.slice(9, 12).astype(int)
    assert (old.table["follow_up"] == in_file_name).all()
    assert (nih_v2020.table["follow_up"] != in_file_name).sum() == 24_106


@pytest.mark.parametrize(
    ("name", "digest"),
    [
        ("Data_Entry_2017_v2020", "f2320ba38a2d6c03a3aa5465bb4c382b5f9a6cedbe9e6aa03684fa6964b221ff"),
        ("Data_Entry_2017", "c3b751f946ebe7c30b212bf4434c149762c89e0bd8f941f130c19fb53d0f0728"),
        ("sample_labels", "2e5eabc3f0195cd8936e51beeb4acabcb6f6eea0d30406ade092ea5b09078939"),
    ],
)
def test_the_real_tables_are_read_to_the_same_values_for_ever(nih, nih_v2020, name, digest):
    """Datasets and claims refer to these digests: change one only with a line in the changelog."""
    table = nih_v2020 if name.endswith("v2020") else read_metadata(str(nih / f"{name}.csv.gz"))

    assert table.digest == digest
    assert (table.warnings == ()) == name.endswith("v2020")


def test_the_real_kaggle_sample_is_a_part_of_the_table_of_2017(nih, nih_v2020):
    sample = read_metadata(str(nih / "sample_labels.csv.gz"))

    assert sample.dialect == "kaggle sample"
    assert len(sample) == 5_606
    assert set(sample.table["image_id"]) < set(nih_v2020.table["image_id"])
    assert count_findings(sample.findings)["Hernia"] == 13


def test_the_real_kaggle_sample_as_a_workbook_is_the_same(nih):
    text = gzip.decompress((nih / "sample_labels.csv.gz").read_bytes()).decode()
    sample = read_metadata(str(nih / "sample_labels.csv.gz"))
    converted = read_metadata(write("sample.xlsx", workbook(text)))

    assert (converted.digest, converted.dialect) == (sample.digest, sample.dialect)


@pytest.mark.parametrize("name", ["test_list.txt.gz", "BBox_List_2017.csv.gz"])
def test_another_real_nih_file_given_as_the_table_is_refused(nih, name):
    with pytest.raises(CxrError, match=re.escape(name)):
        read_metadata(str(nih / name))


def test_a_table_below_the_home_folder_is_found(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "t.csv").write_text(V2020)

    assert len(read_metadata("~/t.csv")) == len(read_metadata(write("t.csv", V2020)))


def test_what_a_storage_has_said_clearly_is_said_once(monkeypatch):
    def refuse(path):
        raise CxrError(f"{path}: found no credentials for this storage")

    monkeypatch.setattr(storage, "open_read", refuse)

    with pytest.raises(CxrError, match=r"^s3://bucket/t\.csv: found no credentials for this storage$"):
        read_metadata("s3://bucket/t.csv")


@pytest.mark.parametrize("first", [0, 1])
def test_patients_who_count_the_rows_are_said_where_no_name_tells_one(first):
    def said(*rows: str) -> list[str]:
        url = write("t.csv", "\n".join(["Image Index,Finding Labels,Patient ID", *rows]))
        warnings = [warning.removeprefix(f"{url}: ") for warning in read_metadata(url).warnings]
        return [warning for warning in warnings if "counts the rows" in warning]

    assert said(*(f"scan{7 - row}.png,Mass,{row}" for row in range(first, first + 3))) == [
        f"'Patient ID' counts the rows, {first} to {first + 2}: if a patient has several images, they will "
        "be torn between splits; make sure that it names patients"
    ]
    assert said("a.png,Mass,1", "b.png,Mass,1", "c.png,Mass,2") == []
    assert said("00000001_000.png,Mass,1", "00000002_000.png,Mass,2") == []
