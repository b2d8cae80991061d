"""Tables of boxes: NIH's own, and as people save them."""

import gzip
import io

import openpyxl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cxr_records.boxes import BOX_SIZE, Box, read_boxes
from cxr_records.errors import CxrError, UsageError

HEADER = "Image Index,Finding Label,Bbox [x,y,w,h],,,\n"
ROWS = "00000013_005.png,Infiltrate,10.5,20,30,40\n00000001_000.png,Mass,1,2,3,4\n"
BOXES = (
    Box("00000001_000.png", "Mass", 1, 2, 3, 4),
    Box("00000013_005.png", "Infiltration", 10.5, 20, 30, 40),
)


def written(tmp_path, content: str | bytes, name: str = "boxes.csv") -> str:
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


def said(tmp_path, content: str) -> str:
    with pytest.raises(CxrError) as caught:
        read_boxes(written(tmp_path, content))
    return str(caught.value).removeprefix(str(tmp_path / "boxes.csv"))


def test_nihs_table_has_984_boxes_of_880_images_and_8_findings(nih):
    table = read_boxes(str(nih / "BBox_List_2017.csv.gz"))

    assert len(table.boxes) == 984
    assert len({box.image_id for box in table.boxes}) == 880
    found = " ".join(sorted({box.finding for box in table.boxes}))
    assert found == "Atelectasis Cardiomegaly Effusion Infiltration Mass Nodule Pneumonia Pneumothorax"
    assert table.warnings == ()
    found = next(box for box in table.boxes if box.image_id == "00013118_008.png")
    assert (found.left, found.top) == (225.084745762712, 547.019216763771)
    assert (found.width, found.height) == (86.7796610169491, 79.1864406779661)


@pytest.mark.parametrize(
    "content",
    [
        HEADER + ROWS,
        (HEADER + ROWS).replace("\n", "\r\n"),
        "\ufeff" + HEADER + ROWS,
        # Excel writes the empty cells of the header for every row.
        HEADER + ROWS.replace("40\n", "40,,,\n").replace("4\n", "4,,,\n"),
        (HEADER + ROWS).replace(",", ";").replace("10.5", "10,5"),
        (HEADER + ROWS).replace(",", "\t"),
        'Image Index,Finding Label,"Bbox [x,y,w,h]",,,\n' + ROWS,
        "path,finding,x,y,width,height\n" + ROWS.replace("00000013_005", "images/00000013_005"),
        "h,w,y,x,label,image\n4,3,2,1,mass,00000001_000.png\n40,30,20,10.5,infiltrate,00000013_005.png\n",
    ],
)
def test_every_way_of_saving_it_gives_the_same_boxes(tmp_path, content):
    plain = read_boxes(written(tmp_path, content))
    packed = read_boxes(written(tmp_path, gzip.compress(content.encode()), "boxes.csv.gz"))

    assert plain.boxes == packed.boxes == BOXES
    assert plain.digest == packed.digest == read_boxes(written(tmp_path, HEADER + ROWS)).digest


def test_a_workbook_is_read(tmp_path):
    book = openpyxl.Workbook()
    for line in (HEADER + ROWS).splitlines():
        cells = line.split(",")
        book.active.append([float(cell) if cell.replace(".", "").isdigit() else cell for cell in cells])
    out = io.BytesIO()
    book.save(out)

    assert read_boxes(written(tmp_path, out.getvalue(), "boxes.xlsx")).boxes == BOXES


def test_a_box_over_the_edge_is_cut_and_a_repeated_one_counts_once_and_both_are_said(tmp_path):
    table = read_boxes(
        written(tmp_path, HEADER + ROWS + "a.png,Mass,-5,1000,20,100\n00000001_000.png,Mass,1,2,3,4\n")
    )

    assert table.boxes == (*BOXES, Box("a.png", "Mass", 0, 1000, 15, 24))
    assert [warning.split(": ", 1)[1] for warning in table.warnings] == [
        "1 of 4 boxes reach over the image's edge: cut there",
        "1 of 4 rows repeat another: each box counts once",
    ]


COLUMNS = "Image Index, Finding Label, Bbox [x, y, w, h]"


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (
            "Image Index,Finding Labels\na.png,Mass\n",
            f": found the columns 'Image Index', 'Finding Labels'; a table of boxes has {COLUMNS}",
        ),
        (HEADER, ": found a header and no rows; expected one row per box"),
        (HEADER + "a.png,Mass,1,2,3\n", f", line 2: found 5 values; a row of boxes has {COLUMNS}"),
        (
            HEADER + ",Mass,1,2,3,4\n",
            ", line 2: found no image's name; expected one such as 00000001_000.png",
        ),
        (HEADER + "a.png,,1,2,3,4\n", ", line 2 (image 'a.png'): found no finding's name"),
    ],
)
def test_what_is_no_table_of_boxes_is_refused_in_one_line(tmp_path, content, expected):
    assert said(tmp_path, content) == expected


@pytest.mark.parametrize(
    ("numbers", "told"),
    [
        ("1,2,0,4", "x 1, y 2, w 0, h 4; expected four numbers, the last two above 0"),
        ("1,2,-3,4", "x 1, y 2, w -3, h 4; expected four numbers, the last two above 0"),
        ("1,nan,3,4", "x 1, y nan, w 3, h 4; expected four numbers, the last two above 0"),
        ("1,,3,4", "x 1, y , w 3, h 4; expected four numbers, the last two above 0"),
        (
            "2000,2,3,4",
            "x 2000, y 2, w 3, h 4, outside the image; expected pixels of an image of 1024 x 1024",
        ),
        ("1,-9,3,4", "x 1, y -9, w 3, h 4, outside the image; expected pixels of an image of 1024 x 1024"),
    ],
)
def test_a_box_that_is_none_is_named_with_its_line_and_image(tmp_path, numbers, told):
    found = said(tmp_path, f"{HEADER}{ROWS}a.png,Mass,{numbers}\n")

    assert found == f", line 4 (image 'a.png'): found the box {told}"


def test_a_file_that_is_not_there_is_named_with_its_argument(tmp_path):
    with pytest.raises(UsageError, match=r"found no such file; `boxes` must name an existing file$"):
        read_boxes(str(tmp_path / "gone.csv"))


@given(st.lists(st.tuples(*[st.floats(-100, 1000)] * 2, *[st.floats(101, 1500)] * 2), min_size=1, max_size=5))
def test_every_box_that_is_read_lies_in_the_image(tmp_path_factory, sides):
    path = tmp_path_factory.mktemp("boxes") / "boxes.csv"
    rows = [",".join(("a.png", "Mass", *map(repr, four))) for four in sides]
    path.write_text(HEADER + "\n".join(rows) + "\n")

    table = read_boxes(str(path))

    assert len(table.boxes) >= 1
    for box in table.boxes:
        assert 0 <= box.left < box.left + box.width <= BOX_SIZE + 1e-6
        assert 0 <= box.top < box.top + box.height <= BOX_SIZE + 1e-6
