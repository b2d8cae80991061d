"""Operating points: one threshold, and what it does on all images and on those of a group."""

import dataclasses

import numpy as np
import pytest
from evaluations import NAMES, make_predictions, read_real
from hypothesis import given, settings
from hypothesis import strategies as st

from cxr_records.trainers.evaluation.bootstrap import draws_of
from cxr_records.trainers.evaluation.evaluate import evaluate
from cxr_records.trainers.evaluation.metrics import youden_threshold
from cxr_records.trainers.evaluation.operating_points import operating_points
from cxr_records.trainers.evaluation.predictions import Predictions
from cxr_records.trainers.evaluation.results import Interval
from cxr_records.trainers.evaluation.subgroups import groups

MEASURES = ("sensitivity", "specificity", "ppv", "npv")


def slow_shares(rows: list[tuple[int, bool]]) -> dict[str, float | None]:
    """Of (label, whether called positive), image by image."""

    def share(of: list[bool]) -> float | None:
        return sum(of) / len(of) if of else None

    return {
        "sensitivity": share([says for label, says in rows if label]),
        "specificity": share([not says for label, says in rows if not label]),
        "ppv": share([label == 1 for label, says in rows if says]),
        "npv": share([label == 0 for label, says in rows if not says]),
    }


@st.composite
def tables(draw):
    n = draw(st.integers(4, 25))
    scored = make_predictions(names=("Mass",), n=n)
    labels = np.array([0, 1] + [draw(st.integers(0, 1)) for _ in range(n - 2)])
    return dataclasses.replace(
        scored,
        patient_ids=np.array([draw(st.integers(0, 6)) for _ in range(n)]),
        labels=labels[:, np.newaxis],
        scores=np.array([[draw(st.sampled_from([0.1, 0.3, 0.5, 0.9]))] for _ in range(n)]),
    )


@settings(deadline=None, max_examples=40)
@given(tables(), st.integers(1, 60))
def test_shares_and_intervals_are_those_of_images_counted_one_by_one(scored, draws):
    rows = scored.views == "PA"

    (whole,), ((part,),) = operating_points(scored, None, [rows], draws, 4)

    labels, scores = scored.labels[:, 0], scored.scores[:, 0]
    threshold = youden_threshold(labels, scores)
    assert whole.threshold == threshold
    weights = np.concatenate(list(draws_of(scored.patient_ids, draws, 4, "patients")), axis=1)
    for found, images in ((whole, np.arange(len(labels))), (part, np.flatnonzero(rows))):
        truth = [(int(labels[i]), bool(scores[i] >= threshold)) for i in images]
        value = slow_shares(truth)
        each = [
            slow_shares([pair for pair, i in zip(truth, images, strict=True) for _ in range(column[i])])
            for column in weights.T
        ]
        for measure in MEASURES:
            mine: Interval = getattr(found, measure)
            if value[measure] is None:
                assert mine == Interval(None)
                continue
            assert mine.value == pytest.approx(value[measure], abs=1e-6)
            drawn = [draw[measure] for draw in each if draw[measure] is not None]
            if not drawn:
                assert (mine.low, mine.high) == (None, None)
            elif value[measure] not in (0, 1):
                bounds = np.percentile(drawn, [2.5, 97.5])
                assert (mine.low, mine.high) == pytest.approx(bounds, abs=1e-6)
            assert (mine.image_low, mine.image_high) == (None, None)


def test_where_every_image_agrees_the_interval_is_as_wide_as_its_patients_are_few():
    scored = make_predictions(names=("Mass",), n=40)
    scored.labels[:, 0] = np.arange(40) < 20  # of ten patients
    scored.scores[:, 0] = np.where(scored.labels[:, 0] == 1, 0.9, 0.1)

    (found,), _ = operating_points(scored, None, [], 100, 0)

    expected = Interval(1.0, round(0.025 ** (1 / 10), 6), 1.0)
    assert [getattr(found, measure) for measure in MEASURES] == [expected] * 4
    scored.scores[:20] = np.where(np.arange(20) == 0, 0.1, 0.05)[:, np.newaxis]  # at the negatives, or below
    (worst,), _ = operating_points(
        scored, dataclasses.replace(scored, scores=1.0 * scored.labels), [], 100, 0
    )
    assert worst.sensitivity == Interval(0.0, 0.0, round(1 - 0.025 ** (1 / 10), 6))
    assert worst.ppv == Interval(None)
    scored.scores[:, 0] = np.where(scored.labels[:, 0] == 1, 0.9, 0.1)
    about = evaluate(scored, draws=100).classes["Mass"]
    for each in (about.sensitivity_at_90_specificity, about.sensitivity_at_95_specificity):
        assert (each.value, each.low, each.high) == (expected.value, expected.low, expected.high)


def two_views(shift: float, patients: int) -> Predictions:
    """AP images score higher by `shift`, whatever they show; so many patients in each view, half with it."""
    n = 2 * patients
    scored = make_predictions(names=("Mass",), n=n)
    random = np.random.default_rng(0)
    labels = (np.arange(n) // 2) % 2
    ap = np.arange(n) >= patients
    scores = 0.3 * labels + 0.4 * random.random(n) + shift * ap
    views = np.where(ap, "AP", "PA").astype(object)
    return dataclasses.replace(
        scored,
        patient_ids=np.arange(n),
        views=views,
        labels=labels[:, np.newaxis],
        scores=scores[:, np.newaxis],
    )


def by_view(scored: Predictions, draws: int = 200) -> dict:
    views = [(group, rows) for by, group, rows in groups(scored) if by == "view"]
    _, found = operating_points(scored, None, [rows for _, rows in views], draws, 0)
    return {group: each for (group, _), (each,) in zip(views, found, strict=True)}


def test_a_group_that_the_one_threshold_serves_otherwise_is_marked():
    shifted, alike = by_view(two_views(0.2, 200)), by_view(two_views(0.0, 200))

    for group in ("PA", "AP"):
        assert shifted[group].differs == ("sensitivity", "specificity")
        assert (shifted[group].few, alike[group].few) == ((), ())
        assert alike[group].differs == ()
    assert shifted["AP"].sensitivity.value > shifted["PA"].sensitivity.value
    assert shifted["AP"].specificity.value < shifted["PA"].specificity.value


@pytest.mark.parametrize(("patients", "few"), [(56, True), (60, False)])
def test_groups_of_few_patients_are_not_compared(patients, few):
    found = by_view(two_views(0.2, patients))["AP"]

    assert found.few == (("sensitivity", "specificity") if few else ())
    assert found.differs == (() if few else ("sensitivity", "specificity"))


def test_without_draws_nothing_is_marked_and_there_are_values_alone():
    found = by_view(two_views(0.2, 200), draws=0)["AP"]

    assert found.differs == ()
    assert found.sensitivity == Interval(found.sensitivity.value)
    measures = evaluate(two_views(0.2, 200), draws=0)
    assert (measures.groups_compared, measures.groups_differing) == (0, 0)


def test_comparisons_of_groups_are_counted():
    measures = evaluate(two_views(0.2, 200), draws=50)

    shares = [group.operating_points["Mass"] for group in measures.subgroups]
    assert measures.groups_compared == sum(2 - len(each.few) for each in shares)
    assert measures.groups_differing == sum(len(each.differs) for each in shares) >= 4


def test_images_that_were_not_judged_take_no_part():
    scored = make_predictions(n=100)
    some = np.arange(100) % 4 > 0
    part = dataclasses.replace(
        scored, patient_ids=scored.patient_ids[some], labels=scored.labels[some], scores=scored.scores[some]
    )
    scored.labels[~some] = -1

    found, _ = operating_points(scored, None, [], 0, 0)

    assert found == operating_points(part, None, [], 0, 0)[0]


def test_a_class_without_a_threshold_has_no_point_anywhere():
    scored = make_predictions()
    scored.labels[:, 1] = 0

    points, of_groups = operating_points(scored, None, [scored.views == "PA"], 20, 0)

    assert [point is None for point in points] == [False, True, False]
    assert [point is None for point in of_groups[0]] == [False, True, False]
    scored.labels[:] = 0
    assert operating_points(scored, None, [scored.views == "PA"], 20, 0) == ([None] * 3, [[None] * 3])


def test_a_threshold_gives_the_same_shares_to_whoever_reads_it():
    """It is written as it is: rounded, a threshold of rare findings would call other images positive."""
    scored = make_predictions()
    scored.scores[:] = scored.scores * 1e-7

    points, _ = operating_points(scored, None, [], 0, 0)

    for place, point in enumerate(points):
        says, truth = scored.scores[:, place] >= point.threshold, scored.labels[:, place] == 1
        assert point.sensitivity.value == pytest.approx(says[truth].mean(), abs=1e-6)
        assert point.specificity.value == pytest.approx((~says[~truth]).mean(), abs=1e-6)
    assert len(points) == len(NAMES)


def test_one_threshold_for_edema_finds_other_shares_in_each_view_of_the_real_table(nih):
    scored = read_real(nih)
    edema = scored.names.index("Edema")
    only = dataclasses.replace(
        scored, names=("Edema",), labels=scored.labels[:, [edema]], scores=scored.scores[:, [edema]]
    )

    found = by_view(only)

    assert found["PA"].specificity.value == pytest.approx(0.92, abs=0.005)
    assert found["AP"].specificity.value == pytest.approx(0.47, abs=0.005)
    assert found["PA"].sensitivity.value == pytest.approx(0.74, abs=0.005)
    assert found["AP"].sensitivity.value == pytest.approx(0.95, abs=0.005)
    for view in ("PA", "AP"):
        assert found[view].differs == ("sensitivity", "specificity")
        assert found[view].specificity.high - found[view].specificity.low < 0.08
