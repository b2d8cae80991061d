"""One picture to judge augmented copies by: each image beside its copies, their parameters underneath."""

import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow.compute as pc
from PIL import Image, ImageDraw, ImageFont

from cxr_records.augment import Params, apply, augmentation_for
from cxr_records.dataset import Dataset, open_dataset
from cxr_records.errors import CxrError
from cxr_records.findings import format_findings
from cxr_records.record_table import VERIFY
from cxr_records.splits import TRAIN

# In pixels of the sheet.
THUMBNAIL = 200
_TITLE_WIDTH = 150
_CAPTION_HEIGHT = 66
_MARGIN = 12
_TEXT_SIZE = 14

_BACKGROUND, _TEXT, _QUIET = 24, 235, 160

# (title, original uint8 [height, width], [(augmentation, copy uint8 [height, width]), ...])
Row = tuple[str, np.ndarray, Sequence[tuple[Params, np.ndarray]]]


def contact_sheet(rows: Sequence[Row]) -> Image.Image:
    """Draws a line per image: its title, the original, and its copies with their parameters underneath.

    Args:
        rows: per image a title, such as its findings and its id, the original, and its copies with the
            augmentation of each, as `augment.draw` returned it. Images of any size; each is fitted into
            200 × 200 pixels.

    Returns:
        A grey picture ("L").

    Raises:
        ValueError: there are no rows.
    """
    if not rows:
        raise ValueError("a contact sheet needs at least one image")
    columns = 1 + max(len(copies) for _, _, copies in rows)
    cell_width, cell_height = THUMBNAIL + _MARGIN, THUMBNAIL + _CAPTION_HEIGHT
    left = _MARGIN + _TITLE_WIDTH
    sheet = Image.new("L", (left + columns * cell_width, _MARGIN + len(rows) * cell_height), _BACKGROUND)
    pen = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(_TEXT_SIZE)
    for i, (title, original, copies) in enumerate(rows):
        top = _MARGIN + i * cell_height
        pen.multiline_text((_MARGIN, top), _wrapped(title, _TITLE_WIDTH, font), fill=_TEXT, font=font)
        cells = [("original", "", original), *((*caption(params), copy) for params, copy in copies)]
        for j, (name, parameters, image) in enumerate(cells):
            x = left + j * cell_width
            _paste(sheet, image, x, top)
            pen.text((x, top + THUMBNAIL + 2), name, fill=_TEXT, font=font)
            pen.multiline_text((x, top + THUMBNAIL + 20), parameters, fill=_QUIET, font=font)
    return sheet


def sheet_of_dataset(dataset: Dataset | str, num_images: int = 6) -> Image.Image:
    """Draws training images of the rarest classes of a finished dataset, each with its ten copies.

    The copies are drawn as the build draws them, whether or not it made that many of an image.

    Args:
        dataset: an open dataset, or the folder or URL of a finished one.
        num_images: how many images; one of each of the rarest classes.

    Raises:
        CxrError: there is no finished dataset, it has no training split, or a record of it is damaged.
    """
    dataset = open_dataset(dataset)
    config = dataset.manifest.config
    rows = []
    for values in _rare_examples(dataset, num_images):
        image_id = values["image_id"][0].decode(errors="replace")
        try:
            original = config.image_format.decode(values["image"][0])
        except ValueError as error:
            raise CxrError(f"{dataset.path}: the image of {image_id!r}: {error}; {VERIFY}") from None
        drawn = [augmentation_for(config.seed, image_id, copy, config.flip) for copy in range(1, 11)]
        copies = [(augmentation, apply(original, augmentation)) for augmentation in drawn]
        title = f"{format_findings(values['findings'], dataset.findings)}\n{image_id}"
        rows.append((title, original, copies))
    return contact_sheet(rows)


def _rare_examples(dataset: Dataset, num_images: int) -> list[dict[str, list[Any]]]:
    """Decoded records of originals in train: for each of the rarest classes, the first that holds it."""
    table = dataset.records
    originals = table.filter((pc.field("split") == TRAIN) & (pc.field("copy") == 0))
    if not len(originals):
        raise CxrError(f"{dataset.path} has no training images to show")
    classes = dataset.manifest.config.task.class_rows(np.array(originals["label"].to_pylist()))
    chosen: list[int] = []
    for place in np.argsort(classes.sum(axis=0), kind="stable"):
        holding = [row for row in np.flatnonzero(classes[:, place]).tolist() if row not in chosen]
        chosen += holding[:1]
    return dataset.examples(originals.take(chosen[:num_images]))


def caption(augmentation: Params) -> tuple[str, str]:
    """Returns the function, and its parameters one to a line, as in ("shift", "right -0.02\\ndown 0.045")."""
    parameters = [f"{key} {_short(value)}" for key, value in augmentation.items() if key != "function"]
    return augmentation["function"], "\n".join(parameters)


def _short(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _paste(sheet: Image.Image, image: np.ndarray, x: int, y: int) -> None:
    """Fits an image of any shape into the square at (x, y), in the middle."""
    scale = THUMBNAIL / max(image.shape)
    height, width = (max(1, round(side * scale)) for side in image.shape)
    thumbnail = Image.fromarray(image).resize((width, height), Image.Resampling.LANCZOS)
    sheet.paste(thumbnail, (x + (THUMBNAIL - width) // 2, y + (THUMBNAIL - height) // 2))


def _wrapped(text: str, width: int, font: ImageFont.ImageFont | ImageFont.FreeTypeFont) -> str:
    """Breaks text into lines of at most `width` pixels; findings may break at their bars."""
    letters = max(1, int(width / font.getlength("n")))
    lines = text.replace("|", "| ").splitlines()
    return "\n".join(part for line in lines for part in textwrap.wrap(line, letters) or [""])
