"""Drawn chest X-rays: a body of the patient's own, and a pattern for each finding.

The patterns are chosen to be told apart at 128 pixels rather than to be true to medicine.
"""

import functools
import statistics
from collections.abc import Callable

import numpy as np
from PIL import Image

from cxr_records.lookalike_patients import PlannedImage
from cxr_records.seeding import generator

# Brightness runs from 0 (air) to 1 (bone). Lengths are shares of the image's width. A side is -1 for what is
# left in the image (the patient's right) and 1 for what is right in it, where the heart is.

# Shapes are drawn at this resolution and enlarged: finer detail than this the real ones' noise hides.
_DRAW_SIZE = 256
_SEEN = 0.25  # of a finding's strength: what is less is its soft edge, which nobody would put into a box
# Normal quantiles, one per byte: looking up random bytes is eight times faster than drawing normal
# numbers. This much noise gives a 1024 x 1024 PNG the real ones' 400 KB.
_NOISE = np.array([1.45 * statistics.NormalDist().inv_cdf((i + 0.5) / 256) for i in range(256)], np.float32)

Box = tuple[float, float, float, float]  # left, top, width and height, as shares of the image's sides


def draw_image(image: PlannedImage, size: int, seed: int) -> np.ndarray:
    """Draws an image as uint8 [size, size]."""
    rng = generator(seed, "lookalike image", image.image_id)
    chest = _drawn(image, min(size, _DRAW_SIZE), seed, rng)
    pixels = _expose(chest, image, rng)
    if size != chest.size:
        # Bilinear leaves no overshoot at the markers' edges.
        pixels = np.asarray(Image.fromarray(pixels).resize((size, size), Image.Resampling.BILINEAR))
    grain = _NOISE * np.float32(rng.uniform(0.75, 1.25))
    noise = grain[np.frombuffer(rng.bytes(size * size), np.uint8)].reshape(size, size)
    result: np.ndarray = np.clip(pixels + noise + 0.5, 0, 255).astype(np.uint8)
    return result


def boxes_of(image: PlannedImage, seed: int) -> list[tuple[str, Box]]:
    """Returns the findings that `draw_image` draws at one place, each with its box, in the order of names.

    A nodule has a box of its own, and may have company. Findings of both lungs (Edema, Emphysema, Fibrosis)
    have none. Boxes are the same at every size of the image.
    """
    chest = _drawn(image, _DRAW_SIZE, seed, generator(seed, "lookalike image", image.image_id))
    places = ((name, mask) for name in sorted(chest.places) for mask in chest.places[name])
    return [(name, _box_of(mask)) for name, mask in places if (mask >= _SEEN).any()]


def _drawn(image: PlannedImage, size: int, seed: int, rng: np.random.Generator) -> "_Chest":
    chest = _Chest(image, size, seed, rng)
    for name in _ORDER_OF_DRAWING:
        if name in image.findings:
            # A patient's finding stays about where it was, as long as the name is the same.
            body = generator(seed, "lookalike finding", image.patient, name)
            chest.places[name] = _PATTERNS[name](chest, body, rng)
    return chest


def _box_of(mask: np.ndarray) -> Box:
    """The smallest box that holds what is seen of a finding, of a mask [size, size] of 0 to 1."""
    rows, columns = (np.flatnonzero((mask >= _SEEN).any(axis)) / len(mask) for axis in (1, 0))
    pixel = 1 / len(mask)
    return columns[0], rows[0], columns[-1] - columns[0] + pixel, rows[-1] - rows[0] + pixel


def _expose(chest: "_Chest", image: PlannedImage, rng: np.random.Generator) -> np.ndarray:
    """Turns brightness into grey levels, float32, at the exposure of the day, with the side's marker."""
    low, high = (18, 205) if image.view == "AP" else (6, 235)
    gain = chest.exposure * rng.uniform(0.93, 1.07)
    pixels: np.ndarray = low * rng.uniform(0.5, 1.5) + (high - low) * gain * np.clip(chest.picture, 0, 1.08)
    pixel = chest.size / 64
    row, column = int(rng.uniform(1, 5) * pixel), int(rng.uniform(54, 59) * pixel)
    tall, wide = max(2, round(3 * pixel)), max(1, round(0.7 * pixel))
    pixels[row : row + tall, column : column + wide] = 250
    if image.view == "PA":
        pixels[row + tall - wide : row + tall, column : column + 3 * wide] = 250
    return pixels


@functools.lru_cache(maxsize=2)
def _grid(size: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the centres of the pixels, x as [1, size] and y as [size, 1]."""
    centres = (np.arange(size, dtype=np.float32) + 0.5) / size
    return centres[None, :], centres[:, None]


class _Chest:
    """The picture being drawn and where in it the organs are."""

    def __init__(self, image: PlannedImage, size: int, seed: int, rng: np.random.Generator) -> None:
        body = generator(seed, "lookalike patient", image.patient)
        self.size = size
        self.places: dict[str, list[np.ndarray]] = {}  # of each finding drawn, what its pattern returns
        self.exposure = body.uniform(0.85, 1.05)
        self.x, self.y = self._pose(body, rng)
        self._measure(image, body, rng)
        self._draw_lungs()
        self.picture = self._draw_trunk(body)
        self._draw_bones(body)
        self._draw_heart()
        self.picture += 0.035 * self.texture(rng, 12)

    def _pose(self, body: np.random.Generator, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Returns coordinates that stand, are turned and are scaled as the patient is before the plate."""
        x, y = _grid(self.size)
        turn = np.float32(body.normal(0, 0.02) + rng.normal(0, 0.015))
        scale = np.float32(body.uniform(0.94, 1.06) * rng.uniform(0.98, 1.02))
        dx, dy = (np.float32(body.normal(0, 0.012) + rng.normal(0, 0.01)) for _ in range(2))
        x, y = (x - 0.5 - dx) / scale, (y - 0.5 - dy) / scale
        return x - turn * y + np.float32(0.5), y + turn * x + np.float32(0.5)

    def _measure(self, image: PlannedImage, body: np.random.Generator, rng: np.random.Generator) -> None:
        """Draws the sizes of the organs. Two findings are nothing but sizes."""
        breath = rng.normal(0, 0.008)
        self.lung_width = body.uniform(0.150, 0.172)
        self.lung_centre = body.uniform(0.195, 0.215)
        self.top = body.uniform(0.11, 0.14)
        self.bottom = body.uniform(0.735, 0.775) + breath
        self.dome = 2.6
        self.lung_value = body.uniform(0.20, 0.28)
        heart = body.uniform(0.115, 0.135) * (1.06 if image.view == "AP" else 1.0)
        if "Emphysema" in image.findings:
            self.bottom += rng.uniform(0.075, 0.095)
            self.lung_width *= rng.uniform(1.12, 1.18)
            self.top -= 0.02
            self.dome = 0.3
            self.lung_value *= 0.35
            heart *= 0.85
        if "Cardiomegaly" in image.findings:
            heart *= rng.uniform(1.62, 1.85)
        self.heart = heart
        self.heart_x = 0.5 + 0.3 * heart + 0.01
        self.heart_y = self.bottom - 0.105

    def _draw_lungs(self) -> None:
        """Keeps per side what is lung, [size, size] of 0 to 1, and the ellipse, 1 at its edge, around it."""
        self.lungs: dict[int, np.ndarray] = {}
        self.ellipse: dict[int, np.ndarray] = {}
        for side in (-1, 1):
            lateral = (self.x - 0.5) * side
            offset = lateral - np.float32(self.lung_centre)
            self.ellipse[side] = self.ellipse_of(side)
            lung = np.clip((1 - self.ellipse[side]) * (self.lung_width / 0.024) + 0.5, 0, 1)
            base = np.float32(self.bottom + (0.015 if side > 0 else 0))
            diaphragm = base + np.float32(self.dome) * offset * offset
            self.lungs[side] = lung * soft(self.y - diaphragm, 0.012)
            self.lungs[side] *= soft(np.float32(0.055) - lateral, 0.03)

    def ellipse_of(self, side: int, shrink: float = 1, inward: float = 0, down: float = 0) -> np.ndarray:
        """Returns the squared distance from a lung's centre, 1 at its edge; lungs widen downwards."""
        half = (1.10 * self.bottom - self.top) / 2
        middle = self.top + half + down
        across = ((self.x - 0.5) * side - np.float32(self.lung_centre - inward)) / np.float32(
            self.lung_width * shrink
        )
        across = across / (np.float32(0.78) + np.float32(0.4) * self.y)
        along = (self.y - np.float32(middle)) / np.float32(half * shrink)
        return across * across + along * along

    def _draw_trunk(self, body: np.random.Generator) -> np.ndarray:
        """Returns the picture with trunk, abdomen and lungs."""
        rise = np.clip((self.y - np.float32(0.03)) / np.float32(body.uniform(0.11, 0.16)), 0, 1)
        half = np.float32(0.12) + np.float32(body.uniform(0.30, 0.36)) * rise * (2 - rise)
        away = np.abs(self.x - 0.5)
        trunk = soft(away - half, 0.05)
        flesh = np.float32(0.62) + np.float32(0.22) * np.clip((self.y - 0.62) * 4, 0, 1) - 0.15 * away
        picture: np.ndarray = flesh * trunk
        for side in (-1, 1):
            blend(picture, self.lungs[side], self.lung_value)
        return picture

    def _draw_bones(self, body: np.random.Generator) -> None:
        """Draws ribs, the vessels at the roots of the lungs, collar bones, spine and windpipe."""
        away = np.abs(self.x - 0.5)
        phase = self.y * np.float32(body.uniform(9, 11)) - np.float32(9) * away * away
        ribs = np.clip(np.cos(np.float32(2 * np.pi) * phase) - np.float32(0.2), 0, 1)
        self.picture += np.float32(0.085) * ribs * (self.lungs[-1] + self.lungs[1])
        self.picture += np.float32(0.13) * disc(away - 0.105, self.y - 0.45, 0.085, 0.13)
        collar = np.abs(self.y - np.float32(0.155) + np.float32(0.16) * away)
        self.picture += np.float32(0.13) * soft(collar - 0.011, 0.012) * soft(away - 0.34, 0.05)
        np.maximum(self.picture, np.float32(0.70) * soft(away - 0.062, 0.035), out=self.picture)
        self.picture += np.float32(0.12) * soft(away - 0.03, 0.02)
        self.picture -= np.float32(0.17) * soft(away - 0.012, 0.012) * soft(self.y - 0.31, 0.04)

    def _draw_heart(self) -> None:
        across = (self.x - np.float32(self.heart_x)) / np.float32(self.heart)
        along = (self.y - np.float32(self.heart_y)) / np.float32(0.5 * self.heart + 0.085)
        tilted = across - np.float32(0.25) * along
        heart = np.clip((1 - tilted * tilted - along * along) * (self.heart / 0.03) + 0.5, 0, 1)
        self.heart_mask = heart
        blend(self.picture, np.float32(0.9) * heart, 0.79)
        blend(self.picture, np.float32(0.8) * circle(self.x - 0.562, self.y - 0.315, 0.042), 0.70)
        for side in (-1, 1):
            self.lungs[side] = self.lungs[side] * (1 - heart)

    def texture(self, rng: np.random.Generator, cells: int) -> np.ndarray:
        """Returns clouds of about `cells` by `cells`, roughly from -1 to 1, float32 [size, size]."""
        coarse = rng.uniform(-1, 1, (cells, cells)).astype(np.float32)
        return np.asarray(Image.fromarray(coarse).resize((self.size, self.size), Image.Resampling.BILINEAR))

    def point(self, side: int, across: float, down: float) -> tuple[float, float]:
        """Returns x, y of a place in a lung; `across` from -1 (inner) to 1, `down` from 0 (top) to 1."""
        x = 0.5 + side * (self.lung_centre + 0.01 + 0.75 * across * self.lung_width)
        return x, self.top + down * (self.bottom - self.top)


def soft(distance: np.ndarray, edge: float) -> np.ndarray:
    """Returns 1 where the distance is negative, 0 where it is positive, and a ramp `edge` wide between."""
    result: np.ndarray = np.clip(np.float32(0.5) - distance * np.float32(1 / edge), 0, 1)
    return result


def circle(x: np.ndarray, y: np.ndarray, radius: float, edge: float = 0.014) -> np.ndarray:
    """Returns a disc of 1 with a soft edge, around the origin of x and y."""
    inside = np.float32(radius * radius) - x * x - y * y
    result: np.ndarray = np.clip(inside * np.float32(0.5 / (radius * edge)) + 0.5, 0, 1)
    return result


def disc(x: np.ndarray, y: np.ndarray, width: float, height: float) -> np.ndarray:
    """Returns a hill from 1 at the origin of x and y down to 0 at the half-axes `width` and `height`."""
    x, y = x * np.float32(1 / width), y * np.float32(1 / height)
    hill = np.clip(1 - x * x - y * y, 0, 1)
    result: np.ndarray = hill * hill
    return result


def blend(picture: np.ndarray, mask: np.ndarray, value: float) -> None:
    """Moves the picture, in place, towards a brightness where the mask is 1."""
    picture += (np.float32(value) - picture) * mask


# ---- findings: each (chest, the patient's numbers, the image's numbers) changes chest.picture ------------
# and returns where: a mask of 0 to 1, [size, size], for each of its places; none for what is in both lungs.


def _side(body: np.random.Generator) -> int:
    return -1 if body.random() < 0.5 else 1


def _place(
    chest: _Chest, body: np.random.Generator, rng: np.random.Generator, down: tuple[float, float]
) -> tuple[int, float, float]:
    """Returns a side and x, y of a spot in its lung between two heights, near the patient's last one."""
    side = _side(body)
    x, y = chest.point(side, body.uniform(-0.35, 0.6), body.uniform(*down))
    return side, x + rng.normal(0, 0.008), y + rng.normal(0, 0.008)


def _atelectasis(chest: _Chest, body: np.random.Generator, rng: np.random.Generator) -> list[np.ndarray]:
    """Plate-like bands across a lower lung."""
    side, x, y = _place(chest, body, rng, (0.62, 0.78))
    slope = np.float32(body.uniform(-0.25, 0.25))
    gap = body.uniform(0.045, 0.055)
    reach = soft(np.abs(chest.x - x) - rng.uniform(0.12, 0.16), 0.03) * chest.lungs[side]
    bands = np.zeros_like(chest.picture)
    for number in range(3):
        across = np.abs(chest.y - np.float32(y - number * gap) - slope * (chest.x - np.float32(x)))
        band = soft(across - 0.009, 0.01) * reach
        blend(chest.picture, rng.uniform(0.75, 0.95) * band, 0.72)
        np.maximum(bands, band, out=bands)
    return [bands]


def _effusion(chest: _Chest, body: np.random.Generator, rng: np.random.Generator) -> list[np.ndarray]:
    """Fluid at the base of a lung, its surface rising to the wall."""
    side = _side(body)
    lateral = (chest.x - 0.5) * side
    height = body.uniform(0.10, 0.20) + rng.uniform(0, 0.06)
    rise = np.clip((lateral - 0.10) * 4.5, 0, 1.2)
    surface = np.float32(chest.bottom - height) - np.float32(0.10) * rise * rise
    wall = np.clip((1.25 - chest.ellipse[side]) * 8, 0, 1)
    mask = soft(surface - chest.y, 0.025) * soft(0.05 - lateral, 0.03) * wall
    mask = mask * soft(chest.y - chest.bottom - 0.12, 0.1)
    blend(chest.picture, mask, 0.80)
    return [mask]


def _infiltration(chest: _Chest, body: np.random.Generator, rng: np.random.Generator) -> list[np.ndarray]:
    """A fuzzy, cloudy patch anywhere in a lung."""
    side, x, y = _place(chest, body, rng, (0.25, 0.75))
    cloud = disc(chest.x - x, chest.y - y, rng.uniform(0.17, 0.21), rng.uniform(0.19, 0.25))
    mottled = 1 + np.float32(0.9) * chest.texture(rng, 26)
    chest.picture += np.float32(rng.uniform(0.36, 0.46)) * cloud * mottled * chest.lungs[side]
    return [cloud * chest.lungs[side]]


def _mass(chest: _Chest, body: np.random.Generator, rng: np.random.Generator) -> list[np.ndarray]:
    """A large bright disc."""
    _, x, y = _place(chest, body, rng, (0.25, 0.75))
    radius = body.uniform(0.062, 0.08) * rng.uniform(0.95, 1.1)
    mask = np.float32(0.92) * circle(chest.x - x, chest.y - y, radius)
    blend(chest.picture, mask, rng.uniform(0.86, 0.93))
    return [mask]


def _nodule(chest: _Chest, body: np.random.Generator, rng: np.random.Generator) -> list[np.ndarray]:
    """One to three small, very bright discs."""
    masks = []
    for _ in range(int(body.integers(1, 4))):
        _, x, y = _place(chest, body, rng, (0.2, 0.8))
        radius = rng.uniform(0.023, 0.030)
        masks.append(circle(chest.x - x, chest.y - y, radius, 0.008))
        blend(chest.picture, masks[-1], rng.uniform(0.92, 1.0))
    return masks


def _pneumonia(chest: _Chest, body: np.random.Generator, rng: np.random.Generator) -> list[np.ndarray]:
    """Patchy blobs that run together in a lower lobe, around dark air-filled branches."""
    side, x, y = _place(chest, body, rng, (0.68, 0.78))
    blobs = np.zeros_like(chest.picture)
    for _ in range(9):
        dx, dy = rng.normal(0, 0.05), rng.normal(0, 0.055)
        spot = disc(chest.x - (x + dx), chest.y - (y + dy), rng.uniform(0.03, 0.05), rng.uniform(0.03, 0.05))
        np.maximum(blobs, spot, out=blobs)
    lateral, below = (chest.x - np.float32(x)) * side, chest.y - np.float32(y)
    for slope in (0.35, 1.5):
        branch = soft(np.abs(below - np.float32(slope) * lateral) - 0.008 * (1 + slope), 0.01 * (1 + slope))
        blobs = blobs * (1 - np.float32(0.8) * branch)
    # Brighter than fluid, in which it often lies.
    mask = np.clip(1.5 * blobs, 0, 0.95) * chest.lungs[side]
    blend(chest.picture, mask, 0.97)
    return [mask]


def _pneumothorax(chest: _Chest, body: np.random.Generator, rng: np.random.Generator) -> list[np.ndarray]:
    """Black air around the shrunken lung, and the fine line of its edge."""
    side = _side(body)
    shrink = body.uniform(0.70, 0.80) + rng.normal(0, 0.02)
    inner = chest.ellipse_of(side, shrink, inward=0.16 * (1 - shrink), down=0.25 * (1 - shrink))
    air = np.clip((inner - 1) * 6 + 0.5, 0, 1) * chest.lungs[side]
    blend(chest.picture, np.float32(0.95) * air, 0.03)
    line = soft(np.abs(inner - 1) - 0.05, 0.06) * chest.lungs[side]
    blend(chest.picture, np.float32(0.85) * line, 0.68)
    return [np.maximum(air, line)]


def _consolidation(chest: _Chest, body: np.random.Generator, rng: np.random.Generator) -> list[np.ndarray]:
    """A lobe gone evenly dense between two straight edges."""
    side = _side(body)
    lateral = (chest.x - 0.5) * side
    start = chest.top + (chest.bottom - chest.top) * body.uniform(0.12, 0.42)
    thick = body.uniform(0.13, 0.18) + rng.normal(0, 0.008)
    tilt = np.float32(body.uniform(-0.2, 0.3))
    depth = chest.y - np.float32(start) - tilt * (lateral - np.float32(chest.lung_centre))
    mask = soft(-depth, 0.012) * soft(depth - thick, 0.012) * chest.lungs[side]
    blend(chest.picture, np.float32(0.92) * mask, rng.uniform(0.58, 0.66))
    return [mask]


def _edema(chest: _Chest, body: np.random.Generator, rng: np.random.Generator) -> list[np.ndarray]:
    """Haze like a bat's wings from both roots of the lungs."""
    away = np.abs(chest.x - 0.5)
    reach, tall = body.uniform(0.17, 0.20), body.uniform(0.22, 0.26)
    wings = disc(away - 0.13, chest.y - 0.45, reach, tall)
    strength = np.float32(rng.uniform(0.42, 0.52))
    chest.picture += strength * wings * (chest.lungs[-1] + chest.lungs[1])
    return []


def _fibrosis(chest: _Chest, body: np.random.Generator, rng: np.random.Generator) -> list[np.ndarray]:
    """A fine net of lines at both bases."""
    turns = np.float32(np.pi / body.uniform(0.034, 0.042))
    start = rng.uniform(0, np.pi, 2).astype(np.float32)
    lines = np.minimum(
        np.abs(np.sin((chest.x + chest.y) * turns + start[0])),
        np.abs(np.sin((chest.x - chest.y) * turns + start[1])),
    )
    net = np.clip(1 - np.float32(2.2) * lines, 0, 1)
    low = np.clip((chest.y - np.float32(chest.bottom - 0.33)) * 8, 0, 1) * (chest.lungs[-1] + chest.lungs[1])
    chest.picture += np.float32(rng.uniform(0.36, 0.44)) * net * low
    return []


def _pleural_thickening(
    chest: _Chest, body: np.random.Generator, rng: np.random.Generator
) -> list[np.ndarray]:
    """A bright rim along the outer wall of one lung."""
    side = _side(body)
    lateral = (chest.x - 0.5) * side
    rim = np.clip((chest.ellipse[side] - body.uniform(0.62, 0.70)) * 9, 0, 1)
    rim = rim * np.clip((1.12 - chest.ellipse[side]) * 9, 0, 1) * soft(chest.lung_centre - lateral, 0.05)
    start, end = body.uniform(0.26, 0.34), body.uniform(0.66, 0.72)
    rim = rim * soft(start - chest.y, 0.03) * soft(chest.y - end, 0.03)
    blend(chest.picture, rim, rng.uniform(0.84, 0.94))
    return [rim]


def _hernia(chest: _Chest, body: np.random.Generator, rng: np.random.Generator) -> list[np.ndarray]:
    """A round bag of stomach behind the heart, with a bright wall and air above its fluid."""
    x = chest.x - np.float32(0.5 + body.uniform(0.02, 0.05) + rng.normal(0, 0.005))
    y = chest.y - np.float32(chest.heart_y + body.uniform(0.0, 0.03) + rng.normal(0, 0.005))
    radius = body.uniform(0.09, 0.11)
    bag = circle(x, y, radius)
    blend(chest.picture, bag, 1.06)
    inside = circle(x, y, radius - 0.02)
    blend(chest.picture, inside, 0.80)
    blend(chest.picture, inside * soft(y - rng.uniform(-0.01, 0.015), 0.01), 0.10)
    return [bag]


def _large_heart(chest: _Chest, body: np.random.Generator, rng: np.random.Generator) -> list[np.ndarray]:
    """Nothing more than what `_Chest` drew."""
    return [chest.heart_mask]


def _large_lungs(chest: _Chest, body: np.random.Generator, rng: np.random.Generator) -> list[np.ndarray]:
    """Nothing more than what `_Chest` drew."""
    return []


_PATTERNS: dict[str, Callable[[_Chest, np.random.Generator, np.random.Generator], list[np.ndarray]]] = {
    "Atelectasis": _atelectasis,
    "Cardiomegaly": _large_heart,
    "Effusion": _effusion,
    "Infiltration": _infiltration,
    "Mass": _mass,
    "Nodule": _nodule,
    "Pneumonia": _pneumonia,
    "Pneumothorax": _pneumothorax,
    "Consolidation": _consolidation,
    "Edema": _edema,
    "Emphysema": _large_lungs,
    "Fibrosis": _fibrosis,
    "Pleural_Thickening": _pleural_thickening,
    "Hernia": _hernia,
}
# From the diffuse and large to the small, so that no finding hides another one of the image.
_ORDER_OF_DRAWING = (
    "Cardiomegaly", "Emphysema", "Pneumothorax", "Edema", "Infiltration", "Effusion", "Consolidation",
    "Fibrosis", "Pleural_Thickening", "Pneumonia", "Atelectasis", "Mass", "Hernia", "Nodule",
)  # fmt: skip
