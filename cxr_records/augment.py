"""The ten functions that make augmented copies, each as a random and as a deterministic twin.

`draw` takes parameters from a generator, `apply` carries them out. A record keeps the parameters as JSON, so
`apply(original, parameters)` gives the pixels of any copy back exactly.

Every range is small enough for the copy to pass as another exposure of the same patient. Nothing is drawn
near zero strength, so that no copy is its original again. Geometry fills with the nearest edge pixel. Changes
of grey levels are curves that keep black and white apart: a plain shift or stretch of the levels, as in
Pillow's ImageEnhance, drives 4 to 5% of the pixels of a typical NIH image, and up to 40%, to black or white.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageFilter

from cxr_records.findings import nearest
from cxr_records.seeding import generator, keyed_hash

Params = dict[str, Any]

# Parameters are rounded before they are used, so that JSON holds exactly what was applied.
_DIGITS = 4


@dataclass(frozen=True)
class Function:
    """One augmentation.

    Attributes:
        draw: takes a generator and returns parameters, never near those of `identity`.
        apply: takes uint8 [height, width] and the parameters by name; returns uint8 of the same shape.
        identity: the parameters of zero strength, with which every pixel stays as it is.
        ranges: what is drawn, in words.
    """

    draw: Callable[[np.random.Generator], Params]
    apply: Callable[..., np.ndarray]
    identity: Params
    ranges: str


def draw(function_name: str, rng: np.random.Generator) -> Params:
    """Draws an augmentation such as {"function": "rotate", "degrees": -3.2104}; JSON can hold it.

    Raises:
        ValueError: there is no such function.
    """
    return {"function": function_name, **_function(function_name).draw(rng)}


def apply(image: np.ndarray, augmentation: Params) -> np.ndarray:
    """Applies an augmentation as `draw` returned it or as a record holds it.

    Args:
        image: uint8 [height, width].
        augmentation: the name under "function", and the parameters of that function.

    Returns:
        uint8 [height, width], a new array.

    Raises:
        ValueError: the function or a parameter is unknown or missing, or the image is of another kind.
    """
    if image.dtype != np.uint8 or image.ndim != 2 or image.size == 0:
        raise ValueError(
            f"expected an image of uint8 [height, width], found {image.dtype} {list(image.shape)}"
        )
    params = dict(augmentation)
    name = params.pop("function", "")
    function = _function(name)
    if params.keys() != function.identity.keys():
        raise ValueError(
            f"{name} takes {', '.join(function.identity)}; found {', '.join(params) or 'nothing'}"
        )
    return function.apply(image, **params)


def function_order(seed: int, image_id: str, flip: bool = False) -> list[str]:
    """Returns the ten functions in the order in which this image's copies take them.

    With `flip` the eleventh finds a place among them; the order of the ten stays the same.
    """
    names = [name for name in FUNCTIONS if flip or name != "flip"]
    return sorted(names, key=lambda name: keyed_hash(seed, image_id, "function", name))


def augmentation_for(seed: int, image_id: str, copy: int, flip: bool = False) -> Params:
    """Draws the augmentation of one copy from (seed, image_id, copy) alone.

    Args:
        seed: of the plan.
        image_id: the source image.
        copy: 1 for the first copy (0 is the original). Ten copies meet all ten functions; further ones begin
            the image's order again with new parameters.
        flip: whether flip takes part.
    """
    if copy < 1:
        raise ValueError(f"copies count from 1 (0 is the original), found {copy}")
    order = function_order(seed, image_id, flip)
    return draw(order[(copy - 1) % len(order)], generator(seed, image_id, copy))


def _function(name: str) -> Function:
    if name not in FUNCTIONS:
        guess = nearest(name, list(FUNCTIONS))
        raise ValueError(f"unknown function {name!r}{guess}; known: {', '.join(FUNCTIONS)}")
    return FUNCTIONS[name]


def _between(rng: np.random.Generator, low: float, high: float, identity: float, least: float = 0.2) -> float:
    """Draws towards `low` or `high`, going at least the share `least` of the way there from the identity."""
    ends = [end for end in (low, high) if end != identity]
    end = ends[int(rng.random() * len(ends))]
    return round(identity + (end - identity) * (least + (1 - least) * rng.random()), _DIGITS)


# Geometry: one affine map about the centre of the image.


def _affine(
    image: np.ndarray, matrix: tuple[float, float, float, float], shift: tuple[float, float] = (0, 0)
) -> np.ndarray:
    """Takes the pixel at p from centre + M (p - centre - shift), bilinear, with the edge repeated outside.

    Args:
        image: uint8 [height, width].
        matrix: M by rows.
        shift: how far the contents move, in pixels: right, down.
    """
    height, width = image.shape
    centre_x, centre_y = width / 2, height / 2
    a, b, d, e = matrix
    move_x, move_y = centre_x + shift[0], centre_y + shift[1]
    c, f = centre_x - a * move_x - b * move_y, centre_y - d * move_x - e * move_y
    # Pillow fills with black what lies outside, so the image gets a border of its own edge, wide enough for
    # the farthest place, which an affine map finds at a corner.
    corners = [(x, y) for x in (0, width) for y in (0, height)]
    out_x = max(max(-(a * x + b * y + c), a * x + b * y + c - width) for x, y in corners)
    out_y = max(max(-(d * x + e * y + f), d * x + e * y + f - height) for x, y in corners)
    border = max(0, math.ceil(max(out_x, out_y))) + 1
    padded = Image.fromarray(_with_border(image, border))
    data = (a, b, c + border, d, e, f + border)
    return np.array(
        padded.transform((width, height), Image.Transform.AFFINE, data, Image.Resampling.BILINEAR)
    )


def _with_border(image: np.ndarray, border: int) -> np.ndarray:
    """Repeats the edge outside the image, `border` pixels wide: the median of the outermost 4% at each place.

    A quarter of NIH's image sides have a bright line of a few pixels at the very edge, which the outermost
    pixel alone would draw out into a white beam.
    """
    edged = image.copy()
    for side in (edged, edged[::-1], edged.T, edged.T[::-1]):  # views
        depth = 2 * (len(side) // 50) + 1
        side[0] = np.partition(side[:depth], depth // 2, axis=0)[depth // 2]
    padded = np.pad(edged, border, mode="edge")
    padded[border:-border, border:-border] = image
    return padded


def _shift(image: np.ndarray, right: float, down: float) -> np.ndarray:
    return _affine(image, (1, 0, 0, 1), (right * image.shape[1], down * image.shape[0]))


def _rotate(image: np.ndarray, degrees: float) -> np.ndarray:
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return _affine(image, (cos, -sin, sin, cos))


def _zoom(image: np.ndarray, factor: float) -> np.ndarray:
    return _affine(image, (1 / factor, 0, 0, 1 / factor))


def _shear(image: np.ndarray, degrees: float) -> np.ndarray:
    return _affine(image, (1, math.tan(math.radians(degrees)), 0, 1))


def _flip(image: np.ndarray, mirrored: bool) -> np.ndarray:
    return np.array(image[:, ::-1] if mirrored else image)


# Grey levels: curves over the 256 levels, in which nothing but black becomes black, nothing but white white.


def _curve(image: np.ndarray, levels: np.ndarray) -> np.ndarray:
    """Applies a curve given as float [256] in 0 to 1, the place of each grey level."""
    table = np.rint(levels * 255)
    # Rounding must not swallow the darkest and brightest steps: that is saturation.
    table[1:255] = table[1:255].clip(1, 254)
    result: np.ndarray = table.astype(np.uint8)[image]
    return result


_LEVELS = np.arange(256) / 255


def _brightness(image: np.ndarray, amount: float) -> np.ndarray:
    """Blends towards white (amount above 0) or towards black, so that the far end moves by the amount."""
    return _curve(image, _LEVELS * (1 - abs(amount)) + max(amount, 0))


def _contrast(image: np.ndarray, factor: float) -> np.ndarray:
    """Multiplies the distance from the mean grey level, less and less towards black and white."""
    # v + k (v - m) v (1 - v) / (m (1 - m)) has slope 1 + k at the mean m and keeps 0, m and 1 where they are.
    # It rises everywhere while m is well inside.
    mean = min(max(float(image.mean()) / 255, 0.25), 0.75)
    bend = (_LEVELS - mean) * _LEVELS * (1 - _LEVELS) / (mean * (1 - mean))
    return _curve(image, _LEVELS + (factor - 1) * bend)


def _gamma(image: np.ndarray, exponent: float) -> np.ndarray:
    return _curve(image, _LEVELS**exponent)


# Noise, sharpness, local contrast.


def _noise(image: np.ndarray, sigma: float, seed: int) -> np.ndarray:
    """Adds Gaussian noise of `sigma` of the range; what would leave the range is mirrored back into it."""
    # The sum of eight random bytes is close to Gaussian. Unlike the methods of numpy's Generator, the raw
    # bits of PCG64 are promised to stay the same in later versions (NEP 19), and a record must outlive them.
    raw = np.random.PCG64(seed).random_raw(image.size).view(np.uint8).reshape(*image.shape, 8)
    total = raw.sum(axis=-1, dtype=np.int16)
    deviation = math.sqrt(8 * (256**2 - 1) / 12)
    noisy = np.rint(image + (total - np.float32(8 * 127.5)) * np.float32(sigma * 255 / deviation))
    result: np.ndarray = (255 - np.abs(255 - np.abs(noisy))).astype(np.uint8)
    return result


def _blur(image: np.ndarray, sigma: float) -> np.ndarray:
    # In pixels of a 224-pixel image. Smaller images get the same pixels, not fewer: below 0.3 of a pixel the
    # blur would round away in 8 bits.
    pixels = sigma * max(1.0, min(image.shape) / 224)
    return np.array(Image.fromarray(image).filter(ImageFilter.GaussianBlur(pixels)))


def _equalise(image: np.ndarray, clip: float, strength: float) -> np.ndarray:
    """Blends in contrast-limited adaptive histogram equalisation (Zuiderveld 1994, 8 × 8 tiles)."""
    result: np.ndarray = np.rint(image + np.float32(strength) * (_clahe(image, clip) - image)).astype(
        np.uint8
    )
    return result


def _clahe(image: np.ndarray, clip: float, tiles: int = 8) -> np.ndarray:
    """Returns float32 [height, width]: each pixel's grey level by the curves of the four nearest tiles.

    Args:
        image: uint8 [height, width].
        clip: the most pixels in a grey level of a tile, in multiples of an even histogram, which bounds the
            slope of a curve. What is cut off is spread evenly over all levels.
        tiles: tiles along each side.
    """
    height, width = image.shape
    row_tile, row_next, row_share = _tile_places(height, tiles)
    column_tile, column_next, column_share = _tile_places(width, tiles)
    own_tile = (np.arange(height) * tiles // height)[:, None] * tiles + np.arange(width) * tiles // width
    counts = np.bincount((own_tile * 256 + image).ravel(), minlength=tiles * tiles * 256)
    histogram = counts.reshape(tiles * tiles, 256).astype(np.float64)
    histogram /= histogram.sum(axis=1, keepdims=True).clip(1)  # tiles of images below 8 pixels may be empty
    kept = histogram.clip(max=clip / 256)
    kept += (1 - kept.sum(axis=1, keepdims=True)) / 256
    # Half of a level's own share keeps an even histogram where it is, neither darker nor brighter.
    curves = ((kept.cumsum(axis=1) - kept / 2) * 256 - 0.5).clip(0, 255).astype(np.float32).ravel()

    def by(rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
        levels: np.ndarray = curves[(rows[:, None] * tiles + columns) * 256 + image]
        return levels

    upper = by(row_tile, column_tile) * (1 - column_share) + by(row_tile, column_next) * column_share
    lower = by(row_next, column_tile) * (1 - column_share) + by(row_next, column_next) * column_share
    result: np.ndarray = upper * (1 - row_share[:, None]) + lower * row_share[:, None]
    return result


def _tile_places(size: int, tiles: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns per pixel the tile centres before and after it and its place between them (float32, 0 to 1)."""
    place = ((np.arange(size) + 0.5) * tiles / size - 0.5).clip(0, tiles - 1)
    before = place.astype(np.int64)
    return before, np.minimum(before + 1, tiles - 1), (place - before).astype(np.float32)


FUNCTIONS: dict[str, Function] = {
    "shift": Function(
        draw=lambda rng: {"right": _between(rng, -0.05, 0.05, 0), "down": _between(rng, -0.05, 0.05, 0)},
        apply=_shift,
        identity={"right": 0.0, "down": 0.0},
        ranges="±5% of the width and of the height",
    ),
    "rotate": Function(
        draw=lambda rng: {"degrees": _between(rng, -7, 7, 0)},
        apply=_rotate,
        identity={"degrees": 0.0},
        ranges="±7° about the centre, anticlockwise above 0",
    ),
    "zoom": Function(
        draw=lambda rng: {"factor": _between(rng, 0.92, 1.08, 1)},
        apply=_zoom,
        identity={"factor": 1.0},
        ranges="0.92 to 1.08, the same along both sides",
    ),
    "shear": Function(
        draw=lambda rng: {"degrees": _between(rng, -3, 3, 0)},
        apply=_shear,
        identity={"degrees": 0.0},
        ranges="±3° along the rows",
    ),
    "brightness": Function(
        draw=lambda rng: {"amount": _between(rng, -0.1, 0.1, 0)},
        apply=_brightness,
        identity={"amount": 0.0},
        ranges="±10% of the range, blended towards white or black",
    ),
    "contrast": Function(
        draw=lambda rng: {"factor": _between(rng, 0.85, 1.15, 1)},
        apply=_contrast,
        identity={"factor": 1.0},
        ranges="0.85 to 1.15 at the mean grey level, less towards black and white",
    ),
    "gamma": Function(
        draw=lambda rng: {"exponent": _between(rng, 0.85, 1.18, 1)},
        apply=_gamma,
        identity={"exponent": 1.0},
        ranges="exponent 0.85 to 1.18",
    ),
    "noise": Function(
        draw=lambda rng: {"sigma": _between(rng, 0, 0.02, 0, least=0.4), "seed": int(rng.integers(2**32))},
        apply=_noise,
        identity={"sigma": 0.0, "seed": 0},
        ranges="Gaussian, sigma 0.8 to 2% of the range",
    ),
    "blur": Function(
        draw=lambda rng: {"sigma": _between(rng, 0, 0.7, 0, least=0.6)},
        apply=_blur,
        identity={"sigma": 0.0},
        ranges="Gaussian, sigma 0.42 to 0.7 pixels of a 224-pixel image",
    ),
    "equalise": Function(
        draw=lambda rng: {
            "clip": _between(rng, 1, 2, 1, least=0.5),
            "strength": _between(rng, 0, 0.4, 0, least=0.5),
        },
        apply=_equalise,
        identity={"clip": 1.0, "strength": 0.0},
        ranges="adaptive histogram equalisation, 8 × 8 tiles, clip limit 1.5 to 2, blended in by 20 to 40%",
    ),
    # Off unless asked for: it fakes dextrocardia and turns side markers round.
    "flip": Function(
        draw=lambda rng: {"mirrored": True},
        apply=_flip,
        identity={"mirrored": False},
        ranges="mirrored left to right",
    ),
}
