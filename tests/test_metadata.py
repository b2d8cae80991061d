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
        "object",
        "int64",
        "object",
        "object",
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
        ("1,57", "9,57"),
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
def test_ages_become_whole_years_or_unknown(text, years):
    metadata = read_metadata(
        write("age.csv", NEEDED_ONLY.splitlines()[0] + f",Patient Age\n1,Mass,a.png,{text}\n")
    )

    assert metadata.table["age_years"].tolist() == [years]


def test_views_and_sexes_other_than_known_become_empty():
    rows = "1,Mass,a.png,pa,male\n1,Mass,b.png,AP,F\n1,Mass,c.png,LATERAL,O\n1,Mass,d.png,,\n"
    metadata = read_metadata(
        write("t.csv", "Patient ID,Finding Labels,Image Index,View Position,Patient Gender\n" + rows)
    )

    assert metadata.table["view"].tolist() == ["PA", "AP", "", ""]
    assert metadata.table["sex"].tolist() == ["M", "F", "", ""]


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
            "so 'Image Index' must be added or renamed in the first line",
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
            "<!DOCTYPE html>\n<p>Sign in</p>\n",
            ": found the columns '<!DOCTYPE html>'; needed are 'Image Index', 'Finding Labels', 'Patient "
            "ID', so 'Image Index', 'Finding Labels', 'Patient ID' must be added or renamed in the first "
            "line",
        ),
        (
            "t.csv.gz",
            gzip.compress(V2020.encode())[:-20],
            ": found broken gzip (Compressed file ended before the end-of-stream marker was reached); "
            "download the file again",
        ),
        (
            "t.csv",
            V2020.encode("utf-16"),
            ": found bytes that are not UTF-8 text (byte 0 is 0xff); save it as UTF-8",
        ),
        (
            "t.xlsx",
            V2020,
            ": found what is no .xlsx workbook (BadZipFile: File is not a zip file); save it as .csv",
        ),
    ],
    ids=["empty", "empty gzip", "header only", "html", "cut gzip", "utf-16", "csv named xlsx"],
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


def test_another_ending_is_a_wrong_use(tmp_path):
    with pytest.raises(
        UsageError, match=r"table\.parquet: found a file that is none of \.csv, \.csv\.gz, \.xlsx; "
    ):
        read_metadata(str(tmp_path / "table.parquet"))


def test_an_unknown_kind_of_url_is_refused_in_one_line():
    with pytest.raises(
        CxrError, match=r"^nosuch://t\.csv: cannot be read \(ValueError: .*\); check `metadata`"
    ):
        read_metadata("nosuch://t.csv")


def test_a_workbook_without_openpyxl_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "openpyxl", None)

    assert refusal("t.xlsx", "anything") == (
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
    in_file_name = old.table["image_id"].str.slice(9, 12).astype(int)
    assert (old.table["follow_up"] == in_file_name).all()
    assert (nih_v2020.table["follow_up"] != in_file_name).sum() == 24_106


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

    monkeypatch.setattr(storage, "read_bytes", refuse)

    with pytest.raises(CxrError, match=r"^s3://bucket/t\.csv: found no credentials for this storage$"):
        read_metadata("s3://bucket/t.csv")
