"""Pictures of maps over images: PNGs with a caption, the same bytes for the same contents."""

import bisect
import io
import math
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont, PngImagePlugin

from cxr_records.boxes import BOX_SIZE, Box
from cxr_records.trainers.localisation import point

SIDE = 512  # pixels of an image in a picture
_MARGIN, _LINE, _TITLE_SIZE, _TEXT_SIZE = 12, 22, 22, 15
_BACKGROUND, _TEXT, _QUIET = (24, 24, 24), (240, 240, 240), (175, 175, 175)
_BOX, _MARK, _CONTOUR = (80, 220, 255), (255, 255, 255), (255, 240, 150)
# From a tenth of the map's largest value to all of it: red, green, blue.
_COLOURS = np.array([[90, 10, 120], [215, 45, 60], [255, 150, 30], [255, 240, 110]], np.float64)
_STRENGTH = 0.62  # of the colour where the map is largest
_LEVEL = 0.5  # of the map's largest value, at the contour
_MADE_BY = "cxr_records explain"


def overlay(pixels: np.ndarray, heat: np.ndarray, boxes: Sequence[Box]) -> Image.Image:
    """Draws a map over an image: warm where above 0, a line at half of the largest value, there a cross.

    Args:
        pixels: uint8 [height, width].
        heat: [n, n]; one that is nowhere above 0 leaves the image as it is.
        boxes: drawn as frames.

    Returns:
        512 x 512 pixels, RGB.
    """
    grey = np.asarray(_fitted(pixels), np.float64)
    picture = np.repeat(grey[..., np.newaxis], 3, axis=2)
    top = float(heat.max())
    if top > 0:
        shares = Image.fromarray(np.maximum(heat, 0).astype(np.float32) / np.float32(top))
        share = np.clip(np.asarray(shares.resize((SIDE, SIDE), Image.Resampling.BICUBIC), np.float64), 0, 1)
        stops = np.linspace(0.1, 1, len(_COLOURS))
        colours = np.stack([np.interp(share, stops, channel) for channel in _COLOURS.T], axis=-1)
        strength = _STRENGTH * np.clip((share - 0.1) / 0.4, 0, 1)[..., np.newaxis]
        picture = (1 - strength) * picture + strength * colours
        picture[_edge(share >= _LEVEL)] = _CONTOUR
    image = Image.fromarray((picture + 0.5).astype(np.uint8))
    _frame(image, boxes)
    if top > 0:
        x, y = (SIDE * side / BOX_SIZE for side in point(heat))
        pen = ImageDraw.Draw(image)
        for colour, width in (((0, 0, 0), 4), (_MARK, 2)):
            pen.line((x - 7, y, x + 7, y), fill=colour, width=width)
            pen.line((x, y - 7, x, y + 7), fill=colour, width=width)
    return image


def sheet(pixels: np.ndarray, drawn: Image.Image, boxes: Sequence[Box], lines: Sequence[str]) -> bytes:
    """Returns a PNG: the image as it is, the overlay beside it, and a caption below.

    Args:
        pixels: uint8 [height, width].
        drawn: of `overlay`.
        boxes: drawn as frames.
        lines: of the caption; the first is its title.
    """
    plain = _fitted(pixels).convert("RGB")
    _frame(plain, boxes)
    below = SIDE + 2 * _MARGIN
    height = below + _LINE * len(lines) + 2 * _MARGIN
    whole = Image.new("RGB", (2 * SIDE + 3 * _MARGIN, height), _BACKGROUND)
    whole.paste(plain, (_MARGIN, _MARGIN))
    whole.paste(drawn, (SIDE + 2 * _MARGIN, _MARGIN))
    pen = ImageDraw.Draw(whole)
    for number, line in enumerate(lines):
        size, colour = (_TITLE_SIZE, _TEXT) if number == 0 else (_TEXT_SIZE, _QUIET)
        y = below + _LINE * number + (6 if number else 0)
        pen.text((_MARGIN, y), _short(line, size, whole.width), fill=colour, font=_font(size))
    about = PngImagePlugin.PngInfo()
    about.add_text("Software", _MADE_BY)
    out = io.BytesIO()
    whole.save(out, "PNG", pnginfo=about)
    return out.getvalue()


def is_ours(data: bytes) -> bool:
    """Tells whether a file is a PNG that `sheet` made."""
    try:
        with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
            return image.info.get("Software") == _MADE_BY
    except MemoryError:  # about the machine, not the file
        raise
    except Exception:  # whatever Pillow raises on what is no PNG
        return False


def _fitted(pixels: np.ndarray) -> Image.Image:
    return Image.fromarray(pixels).resize((SIDE, SIDE), Image.Resampling.BICUBIC)


def _frame(image: Image.Image, boxes: Sequence[Box]) -> None:
    pen = ImageDraw.Draw(image)
    for box in boxes:
        sides = (box.left, box.top, box.left + box.width, box.top + box.height)
        left, top, right, bottom = (round(SIDE * side / BOX_SIZE) for side in sides)
        pen.rectangle((left - 1, top - 1, right + 1, bottom + 1), outline=(0, 0, 0), width=4)
        pen.rectangle((left, top, right, bottom), outline=_BOX, width=2)


def _edge(mask: np.ndarray) -> np.ndarray:
    """Those of a mask that have a neighbour outside of it."""
    around = np.pad(mask, 1, mode="edge")
    inner = around[:-2, 1:-1] & around[2:, 1:-1] & around[1:-1, :-2] & around[1:-1, 2:]
    edge: np.ndarray = mask & ~inner
    return edge


def _font(size: int) -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    return ImageFont.load_default(size)


def _short(line: str, size: int, width: int) -> str:
    """Cuts a line that is too long for the picture."""
    font, room = _font(size), width - 2 * _MARGIN
    if font.getlength(line) <= room:
        return line
    fitting = bisect.bisect(
        range(len(line)), room, key=lambda letters: math.ceil(font.getlength(f"{line[:letters]}..."))
    )
    return f"{line[: fitting - 1]}..."
