"""The pointing game and the share of a map inside boxes, against what can be worked out by hand."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cxr_records.boxes import BOX_SIZE, Box
from cxr_records.trainers.localisation import (
    Pointed,
    covered,
    fixed_places,
    is_inside,
    mass_in,
    measure,
    point,
    table_lines,
    to_json,
)


def box(left: float, top: float, width: float, height: float, image_id: str = "a.png") -> Box:
    return Box(image_id, "Mass", left, top, width, height)


def pointed(
    patient: str, hit: bool, mass: float, finding: str = "Mass", fixed: bool | None = False
) -> Pointed:
    return Pointed(f"{patient}.png", patient, finding, 0.5, 1, hit, mass, 0.1, fixed)


def test_a_map_points_at_the_middle_of_its_largest_cell():
    heat = np.zeros((4, 4))
    heat[1, 3] = 2

    assert point(heat) == (896, 384)


def test_a_point_on_the_edge_is_inside_and_tolerance_widens_every_side():
    boxes = [box(100, 200, 50, 60), box(700, 700, 10, 10)]

    assert is_inside(100, 260, boxes)
    assert is_inside(705, 705, boxes)
    assert not is_inside(99, 230, boxes)
    assert is_inside(99, 230, boxes, tolerance=1)
    assert not is_inside(120, 262, boxes, tolerance=1)
    assert not is_inside(400, 400, boxes, tolerance=15)


def test_boxes_that_overlap_cover_an_area_once():
    cover = covered([box(0, 0, 512, 512), box(0, 0, 256, 1024)], 4)

    assert cover.tolist() == [[1, 1, 0, 0], [1, 1, 0, 0], [1, 0, 0, 0], [1, 0, 0, 0]]


@given(st.tuples(*[st.floats(0, 900)] * 2, *[st.floats(1, 124)] * 2))
def test_a_box_covers_its_own_area_whatever_the_cells(sides):
    one = box(*sides)

    for cells in (7, 64):
        assert covered([one], cells).mean() == pytest.approx(one.width * one.height / BOX_SIZE**2, rel=1e-6)


def test_only_what_adds_to_the_score_counts_as_mass():
    heat = np.array([[3.0, -8], [1, 0]])

    assert mass_in(heat, covered([box(0, 0, 512, 512)], 2)) == 0.75
    assert mass_in(np.full((2, 2), -1.0), np.ones((2, 2))) == 0


def test_the_fixed_place_is_that_of_other_patients_boxes():
    boxes = {
        ("a.png", "Mass"): [box(0, 0, 256, 256)],
        ("b.png", "Mass"): [box(0, 0, 256, 256)],
        ("c.png", "Mass"): [box(768, 768, 256, 256)],
        ("d.png", "Hernia"): [box(0, 0, 256, 256)],
        ("e.png", "Hernia"): [box(0, 0, 256, 256)],
    }
    patients = {"a.png": "1", "b.png": "2", "c.png": "3", "d.png": "4", "e.png": "4"}

    assert fixed_places(boxes, patients, 4) == {
        ("a.png", "Mass"): True,
        ("b.png", "Mass"): True,
        ("c.png", "Mass"): False,
        # Both are of one patient: nobody else tells where a hernia is.
        ("d.png", "Hernia"): None,
        ("e.png", "Hernia"): None,
    }


def test_measures_are_means_over_images_by_finding_and_over_all():
    some = [
        pointed("1", True, 0.5, fixed=True), pointed("1", False, 0.1), pointed("2", True, 0.6),
        pointed("3", False, 0.0, "Hernia", None),
    ]  # fmt: skip

    found = measure(some, draws=200)

    assert list(found) == ["Hernia", "Mass", "all"]
    mass = found["Mass"]
    assert (mass.images, mass.patients, mass.boxes) == (3, 2, 3)
    assert mass.pointing.value == 0.666667
    assert mass.mass_in_box.value == 0.4
    assert mass.fixed_place.value == 0.333333
    assert mass.box_share.value == 0.1
    assert found["Hernia"].fixed_place.value is None
    assert found["all"].pointing.value == 0.5
    assert (found["all"].images, found["all"].patients) == (4, 3)
    # Two patients: a draw has one of them alone, twice or mixed.
    assert (mass.pointing.low, mass.pointing.high) == (0.5, 1.0)


def test_intervals_are_over_patients_not_images():
    """Twenty images of each patient, all alike, tell no more than one."""
    once = measure([pointed(str(n), n % 2 == 0, 0.5) for n in range(20)], draws=400)["all"].pointing
    often = measure([pointed(str(n % 20), n % 2 == 0, 0.5) for n in range(400)], draws=400)["all"].pointing

    assert (once.low, once.high) == (often.low, often.high)
    assert often.image_high - often.image_low < 0.5 * (often.high - often.low)


def test_without_draws_there_are_values_and_no_intervals():
    found = measure([pointed("1", True, 0.5)], draws=0)["all"]

    assert (found.pointing.value, found.pointing.low) == (1.0, None)


def test_the_table_and_the_json_say_the_same():
    some = [pointed("1", True, 0.5), pointed("2", False, 0.25)]
    measures = measure(some, draws=0)

    content = to_json(measures, some, {"run": "r"})

    assert content["findings"]["Mass"]["pointing"] == {"value": 0.5, "low": None, "high": None}
    assert content["findings"]["Mass"]["images"] == 2
    assert content["maps"][1] == {
        "image_id": "2.png", "patient": "2", "finding": "Mass", "score": 0.5, "boxes": 1, "hit": False,
        "mass_in_box": 0.25, "box_share": 0.1, "fixed_place": False,
    }  # fmt: skip
    assert [line.split() for line in table_lines(measures)[1:-1]] == [
        ["Mass", "*", "2", "2", "2", "0.500", "0.000", "0.375", "0.100"],
        ["all", "*", "2", "2", "2", "0.500", "0.000", "0.375", "0.100"],
    ]
    assert table_lines(measures)[-1] == "* fewer than 30 patients: do not rank by it"


def test_where_all_images_are_alike_the_interval_is_that_of_so_many_patients_or_none():
    found = measure([pointed(str(n), False, n / 10) for n in range(5)], draws=100)["all"]

    # Clopper and Pearson: five misses of five are likely enough up to this chance of a hit.
    assert (found.pointing.value, found.pointing.low) == (0.0, 0.0)
    assert found.pointing.high == pytest.approx(1 - 0.025 ** (1 / 5), abs=1e-6)
    assert found.mass_in_box.low < 0.2 < found.mass_in_box.high
    assert (found.box_share.value, found.box_share.low) == (0.1, None)
