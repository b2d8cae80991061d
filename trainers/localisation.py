"""Whether maps point at findings: the pointing game and the share of a map inside boxes.

The pointing game (Zhang et al. 2018, arXiv 1608.00507) asks whether a map's largest value lies in a box of
the finding. A large box is hit by chance, and a heart is always at about the same place. So beside it stand
the boxes' share of the image, which a point anywhere would give, and what the one best place gives that is
learnt from the boxes of other patients without looking at the image.
"""

import dataclasses
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from cxr_records.boxes import BOX_SIZE, Box
from cxr_records.trainers.evaluation import bootstrap
from cxr_records.trainers.evaluation.operating_points import FEW_PATIENTS, opened
from cxr_records.trainers.evaluation.results import Interval
from cxr_records.trainers.evaluation.summary import interval, number

FORMAT = "cxr_records localisation"
VERSION = 1
JSON_FILE, PAGE_FILE = "localisation.json", "localisation.html"
ALL = "all"


@dataclasses.dataclass(frozen=True)
class Pointed:
    """What a map of one finding in one image did.

    Attributes:
        image_id: of the image.
        patient: whose it is.
        finding: that was explained.
        score: of the model.
        boxes: of that finding in that image.
        hit: whether the map's largest value lies in one of them.
        mass_in_box: share of what the map holds above 0 that lies in them; 0 where it holds nothing.
        box_share: share of the image that they cover.
        fixed_place: whether the place that other patients' boxes of the finding share most lies in one of
            them; None where no other patient has a box.
    """

    image_id: str
    patient: str
    finding: str
    score: float
    boxes: int
    hit: bool
    mass_in_box: float
    box_share: float
    fixed_place: bool | None


@dataclasses.dataclass(frozen=True)
class Measures:
    """Means over the images of a finding, or over all of them, with 95% intervals over patients.

    Attributes:
        images: with a box of the finding; with several findings an image counts for each.
        patients: of them.
        boxes: in them.
        pointing: share of the images in which the map's largest value lies in a box.
        fixed_place: what one place for all images gives.
        mass_in_box: mean share of the map that lies in the boxes.
        box_share: mean share of the image that the boxes cover, which chance would give of both.
    """

    images: int
    patients: int
    boxes: int
    pointing: Interval
    fixed_place: Interval
    mass_in_box: Interval
    box_share: Interval


def point(heat: np.ndarray) -> tuple[float, float]:
    """Returns x, y of the largest value of a map [n, n], in pixels of a box table."""
    row, column = np.unravel_index(int(heat.argmax()), heat.shape)
    cell = BOX_SIZE / len(heat)
    return (float(column) + 0.5) * cell, (float(row) + 0.5) * cell


def is_inside(x: float, y: float, boxes: Sequence[Box], tolerance: float = 0) -> bool:
    """Tells whether a point is in one of the boxes, or no more than `tolerance` pixels beside it."""
    return any(
        box.left - tolerance <= x <= box.left + box.width + tolerance
        and box.top - tolerance <= y <= box.top + box.height + tolerance
        for box in boxes
    )


def covered(boxes: Sequence[Box], cells: int) -> np.ndarray:
    """Returns which share of each cell of an image the boxes cover, float64 [cells, cells]."""
    edges = np.linspace(0, BOX_SIZE, cells + 1)

    def part(start: float, length: float) -> np.ndarray:
        inside: np.ndarray = np.clip(edges, start, start + length)
        return np.diff(inside) / np.diff(edges)

    bare = np.ones((cells, cells))
    for box in boxes:
        bare *= 1 - np.outer(part(box.top, box.height), part(box.left, box.width))
    return 1 - bare


def mass_in(heat: np.ndarray, cover: np.ndarray) -> float:
    """Returns the share of a map's values above 0 that lies where `cover` is 1; 0 where there are none."""
    positive = np.maximum(heat.astype(np.float64), 0)
    total = positive.sum()
    return float((positive * cover).sum() / total) if total > 0 else 0.0


def fixed_places(
    boxes: Mapping[tuple[str, str], Sequence[Box]], patient_of: Mapping[str, str], cells: int
) -> dict[tuple[str, str], bool | None]:
    """Returns whether each image's boxes hold the place that most boxes of other patients share.

    Args:
        boxes: by image and finding.
        patient_of: by image.
        cells: to a side, of the places to choose from.
    """
    by_finding: dict[str, dict[str, np.ndarray]] = defaultdict(dict)
    for (image_id, finding), held in boxes.items():
        sums = by_finding[finding]
        patient = patient_of[image_id]
        sums[patient] = sums.get(patient, 0) + covered(held, cells)
    totals = {finding: sum(sums.values()) for finding, sums in by_finding.items()}
    places: dict[tuple[str, str], bool | None] = {}
    for (image_id, finding), held in boxes.items():
        others = totals[finding] - by_finding[finding][patient_of[image_id]]
        alone = len(by_finding[finding]) == 1
        places[image_id, finding] = None if alone else is_inside(*point(others), held)
    return places


def measure(pointed: Sequence[Pointed], draws: int = bootstrap.DRAWS, seed: int = 0) -> dict[str, Measures]:
    """Returns measures by finding, in the order of names, and of all together under "all".

    Args:
        pointed: at least one.
        draws: of patients, for the intervals; 0 for none.
        seed: of the draws.

    Raises:
        UsageError: fewer than 0 draws.
    """
    findings = np.array([each.finding for each in pointed], dtype=object)
    patients = np.array([each.patient for each in pointed], dtype=object)
    names = [*sorted(set(findings)), ALL]
    rows = np.array([(findings == name) | (name == ALL) for name in names])
    numbers = np.array(
        [
            (
                each.hit,
                np.nan if each.fixed_place is None else each.fixed_place,
                each.mass_in_box,
                each.box_share,
            )
            for each in pointed
        ],
        dtype=np.float64,
    )

    def statistic(weights: np.ndarray) -> np.ndarray:
        means = []
        for chosen in rows:
            for column in numbers.T:
                known = chosen & ~np.isnan(column)
                sums, counts = column[known] @ weights[known], weights[known].sum(axis=0)
                means.append(np.divide(sums, counts, out=np.full(len(counts), np.nan), where=counts > 0))
        return np.array(means).T

    found = bootstrap.intervals(statistic, patients, draws, seed)
    measures = {}
    for place, (name, chosen) in enumerate(zip(names, rows, strict=True)):
        pointing, fixed_place, mass_in_box, box_share = found[4 * place : 4 * place + 4]
        people = len(set(patients[chosen]))
        measures[name] = Measures(
            images=int(chosen.sum()),
            patients=people,
            boxes=sum(each.boxes for each, taken in zip(pointed, chosen, strict=True) if taken),
            pointing=opened(pointing, people),
            fixed_place=opened(fixed_place, people),
            mass_in_box=_unless_alike(mass_in_box),
            box_share=_unless_alike(box_share),
        )
    return measures


def _unless_alike(found: Interval) -> Interval:
    """Takes away the interval of a mean where every draw gives the same, as those of one image do."""
    return Interval(found.value) if found.low == found.high else found


def to_json(
    measures: Mapping[str, Measures], pointed: Sequence[Pointed], about: Mapping[str, Any]
) -> dict[str, Any]:
    """Returns what localisation.json holds: the measures, and each map that they are of."""

    def thin(found: Interval) -> dict[str, float | None]:
        return {"value": found.value, "low": found.low, "high": found.high}

    return {
        "format": FORMAT,
        "version": VERSION,
        **about,
        "findings": {
            name: {
                key: thin(value) if isinstance(value, Interval) else value
                for key, value in (
                    (field.name, getattr(each, field.name)) for field in dataclasses.fields(each)
                )
            }
            for name, each in measures.items()
        },
        "maps": [
            {
                key: round(value, bootstrap.DIGITS) if isinstance(value, float) else value
                for key, value in dataclasses.asdict(each).items()
            }
            for each in pointed
        ],
    }


def table_lines(measures: Mapping[str, Measures]) -> list[str]:
    """Returns the table that people read, a line each."""
    lines = [
        f"{'finding':<20} {'images':>6} {'patients':>8} {'boxes':>6}  {'points into a box':<22} "
        f"{'fixed place':<11} {'map inside':<22} boxes' area"
    ]
    for name, each in measures.items():
        few = " *" * (each.patients < FEW_PATIENTS)
        lines.append(
            f"{name + few:<20} {each.images:>6,} {each.patients:>8,} {each.boxes:>6,}  "
            f"{interval(each.pointing):<22} {number(each.fixed_place.value):<11} "
            f"{interval(each.mass_in_box):<22} "
            f"{number(each.box_share.value)}"
        )
    if any(each.patients < FEW_PATIENTS for each in measures.values()):
        lines.append(f"* fewer than {FEW_PATIENTS} patients: do not rank by it")
    return lines
