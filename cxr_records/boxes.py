"""Tables of boxes around findings, such as NIH's BBox_List_2017.csv.

NIH's has 984 boxes on 880 images of the official test list, for 8 of the 14 findings (Wang et al. 2017). Its
header holds commas that are not quoted, `Bbox [x,y,w,h],,,`, and it calls Infiltration `Infiltrate`.
"""

import hashlib
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from cxr_records.errors import CxrError
from cxr_records.findings import FINDINGS
from cxr_records.names import base_name
from cxr_records.tablefiles import IMAGE_COLUMNS, Rows, plain, read_rows, short

# Side of the square that coordinates are in: images as NIH released them, whatever the originals were.
BOX_SIZE = 1024

_NEEDED = "Image Index, Finding Label, Bbox [x, y, w, h]"
_FINDING_COLUMNS = ("findinglabel", "findinglabels", "finding", "label", "class")
# Names of the four numbers as `plain` writes them.
_SIDES = (("x", "left"), ("y", "top"), ("w", "width"), ("h", "height"))
_NAME_OF = {plain(name): name for name in FINDINGS} | {"infiltrate": "Infiltration"}
# Where commas do not stand between cells, Excel in much of Europe has them in numbers.
_NUMBER = re.compile(r"-?[0-9]+(?:[.,][0-9]*)?(?:[eE][-+]?[0-9]+)?")


@dataclass(frozen=True)
class Box:
    """A box around a finding of an image.

    Attributes:
        image_id: as the table names it, folders aside.
        finding: as `FINDINGS` has it, where it is one of them.
        left: from the image's left edge, in pixels of an image of 1024 x 1024.
        top: from its upper edge.
        width: of the box.
        height: of the box.
    """

    image_id: str
    finding: str
    left: float
    top: float
    width: float
    height: float


@dataclass(frozen=True)
class BoxTable:
    """The boxes of a table.

    Attributes:
        path: of the file.
        boxes: sorted by image, then finding, then place; no two are the same.
        digest: sha256 (hex) of the boxes, whatever file they came in.
        warnings: what was read otherwise than it stands, with counts.
    """

    path: str
    boxes: tuple[Box, ...]
    digest: str
    warnings: tuple[str, ...]


def read_boxes(path: str) -> BoxTable:
    """Reads a table of boxes, a local path or any fsspec URL, of any kind that `tablefiles` reads.

    The columns may stand in any order and others beside them; the four numbers may be headed as NIH has them,
    or x, y, w (or width) and h (or height). A box that reaches over the image's edge is cut there.

    Raises:
        UsageError: there is no such file, or it is of another kind.
        CxrError: it is no table of boxes, or a box of it is none. The message names the line.
    """
    rows = read_rows(path, "boxes", lambda header: _places(header) is not None)
    places = _places(rows.header)
    if places is None:
        found = short(", ".join(repr(cell) for cell in rows.header if cell) or "none")
        raise CxrError(f"{path}: found the columns {found}; a table of boxes has {_NEEDED}")
    if not rows.rows:
        raise CxrError(f"{path}: found a header and no rows; expected one row per box")
    read = [_box(rows, row, places) for row in range(len(rows.rows))]
    inside = [_cut(box) for box in read]
    boxes = tuple(sorted(set(inside), key=_order))
    warnings = [*rows.warnings]
    if cut := sum(one != other for one, other in zip(read, inside, strict=True)):
        warnings.append(f"{cut:,} of {len(read):,} boxes reach over the image's edge: cut there")
    if twice := len(inside) - len(boxes):
        warnings.append(f"{twice:,} of {len(read):,} rows repeat another: each box counts once")
    digest = hashlib.sha256("\n".join(map(repr, map(_order, boxes))).encode()).hexdigest()
    return BoxTable(path, boxes, digest, tuple(f"{path}: {text}" for text in warnings))


def _places(header: Sequence[str]) -> list[int] | None:
    """Places of image, finding and the four numbers in a header; None where one of them is not there."""
    names = [plain(cell) for cell in header]

    def find(known: Sequence[str]) -> int:
        return next((place for place, name in enumerate(names) if name in known), -1)

    image, finding = find(IMAGE_COLUMNS), find(_FINDING_COLUMNS)
    together = find(("bboxxywh", "xywh"))
    sides = [find([*known, f"bbox{known[0]}"]) for known in _SIDES]
    if together >= 0:  # in one cell, quoted; the numbers are in four
        sides = list(range(together, together + 4))
    return [image, finding, *sides] if min(image, finding, *sides) >= 0 else None


def _box(rows: Rows, row: int, places: Sequence[int]) -> Box:
    cells = rows.rows[row]
    where = f"{rows.path}, {rows.place(row)}"
    if len(cells) <= max(places):
        raise CxrError(f"{where}: found {len(cells)} values; a row of boxes has {_NEEDED}")
    image_id, finding, *sides = (cells[place].strip() for place in places)
    image_id = base_name(image_id)
    if not image_id or not image_id.isprintable():
        raise CxrError(f"{where}: found no image's name; expected one such as 00000001_000.png")
    if not finding:
        raise CxrError(f"{where} (image {short(image_id)!r}): found no finding's name")
    numbers = [float(text.replace(",", ".")) if _NUMBER.fullmatch(text) else math.nan for text in sides]
    box = Box(image_id, _NAME_OF.get(plain(finding), finding), *numbers)
    told = f"x {sides[0]}, y {sides[1]}, w {sides[2]}, h {sides[3]}"
    if not all(map(math.isfinite, numbers)) or box.width <= 0 or box.height <= 0:
        raise CxrError(
            f"{where} (image {short(image_id)!r}): found the box {short(told)}; expected four numbers, the "
            "last two above 0"
        )
    beyond = max(box.left, box.top) >= BOX_SIZE or box.left + box.width <= 0 or box.top + box.height <= 0
    if beyond:
        raise CxrError(
            f"{where} (image {short(image_id)!r}): found the box {short(told)}, outside the image; expected "
            f"pixels of an image of {BOX_SIZE} x {BOX_SIZE}"
        )
    return box


def _cut(box: Box) -> Box:
    left, top = max(0.0, box.left), max(0.0, box.top)
    right, bottom = min(BOX_SIZE, box.left + box.width), min(BOX_SIZE, box.top + box.height)
    if (
        (left, top) == (box.left, box.top)
        and right - left >= box.width - 1e-6
        and bottom - top >= box.height - 1e-6
    ):
        return box  # as it was written: differences of sums are not
    return Box(box.image_id, box.finding, left, top, right - left, bottom - top)


def _order(box: Box) -> tuple[str, str, float, float, float, float]:
    return box.image_id, box.finding, box.left, box.top, box.width, box.height
