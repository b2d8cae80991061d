"""The bootstrap: who is drawn together, how often, and which percentiles."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from cxr_records.errors import UsageError
from cxr_records.trainers.evaluation import metrics
from cxr_records.trainers.evaluation.bootstrap import by_patient, draws_of, intervals, rounded, sample
from cxr_records.trainers.evaluation.results import Interval


def drawn(patients: np.ndarray, draws: int, seed: int = 0, name: str = "patients") -> np.ndarray:
    return np.concatenate(list(draws_of(patients, draws, seed, name)), axis=1)


@settings(deadline=None)
@given(st.lists(st.integers(0, 9), min_size=1, max_size=30), st.integers(1, 120), st.integers(0, 3))
def test_a_patient_is_drawn_with_all_of_its_images_and_as_many_are_drawn_as_there_are(groups, draws, seed):
    patients = np.array(groups) * 7
    firsts = np.unique(patients, return_index=True)[1]

    weights = drawn(patients, draws, seed)

    assert weights.shape == (len(patients), draws)
    assert weights.min() >= 0
    for patient in set(groups):
        rows = weights[patients == patient * 7]
        assert (rows == rows[0]).all()
    assert (weights[firsts].sum(axis=0) == len(firsts)).all()


@pytest.mark.parametrize("count", [1, 2, 5, 40])
def test_every_patient_is_drawn_as_often_as_any_other(count):
    weights = drawn(np.arange(count), 2000)

    # The mean of 2,000 counts, each of variance below 1, lies within 5 standard errors of 1.
    np.testing.assert_allclose(weights.mean(axis=1), 1, atol=5 / math.sqrt(2000))
    if count > 1:
        np.testing.assert_allclose(weights.var(axis=1), 1 - 1 / count, atol=0.25)


def test_draws_come_in_parts_and_are_not_repeated():
    parts = list(draws_of(np.arange(30), 120, 0, "patients"))

    assert [part.shape[1] for part in parts] == [50, 50, 20]
    assert all(part.dtype == np.int16 for part in parts)
    assert len({column.tobytes() for part in parts for column in part.T}) == 120


def test_the_same_seed_gives_the_same_draws_and_another_seed_or_kind_others():
    patients = np.arange(20) // 2

    one = drawn(patients, 30)

    np.testing.assert_array_equal(one, drawn(patients, 30))
    assert (one != drawn(patients, 30, seed=1)).any()
    assert (one != drawn(patients, 30, name="image_")).any()


def percentile(values: list[float], share: float) -> float:
    """Between the two values that stand nearest to their share of the way (Hyndman and Fan's type 7)."""
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    below = ordered[math.floor(place)]
    return below + (ordered[math.ceil(place)] - below) * (place - math.floor(place))


@settings(deadline=None, max_examples=30)
@given(st.lists(st.tuples(st.integers(0, 5), st.floats(-9, 9)), min_size=2, max_size=20), st.integers(1, 99))
def test_bounds_are_the_percentiles_of_the_statistic_over_the_draws(rows, draws):
    patients, values = (np.array(column) for column in zip(*rows, strict=True))

    def statistic(weights: np.ndarray) -> np.ndarray:
        return np.stack([values @ weights, np.full(weights.shape[1], np.nan)], axis=1)

    found, undefined = intervals(statistic, patients, draws, 3)

    over_patients = (values @ drawn(patients, draws, 3)).tolist()
    over_images = (values @ drawn(np.arange(len(values)), draws, 3, "image_")).tolist()
    assert found.value == pytest.approx(values.sum(), abs=1e-6)
    for bound, expected, share in (
        (found.low, over_patients, 0.025),
        (found.high, over_patients, 0.975),
        (found.image_low, over_images, 0.025),
        (found.image_high, over_images, 0.975),
    ):
        assert bound == pytest.approx(percentile(expected, share), abs=1e-6)
    assert undefined == Interval(None)


def test_draws_in_which_a_number_is_undefined_do_not_count_for_it():
    patients = np.arange(4)

    def first_if_drawn(weights: np.ndarray) -> np.ndarray:
        return np.where(weights[:1] > 0, weights[:1], np.nan).T

    (found,) = intervals(first_if_drawn, patients, 200, 0)

    counts = [count for count in drawn(patients, 200)[0] if count]
    assert 0 < len(counts) < 200
    assert (found.low, found.high) == (percentile(counts, 0.025), percentile(counts, 0.975))


def test_without_draws_there_is_the_value_alone_and_fewer_are_refused():
    def total(weights: np.ndarray) -> np.ndarray:
        return weights.sum(axis=0)[:, np.newaxis]

    assert intervals(total, np.arange(3), 0) == [Interval(3.0)]
    with pytest.raises(UsageError, match=r"^found `draws=-1`; expected 0 or more$"):
        intervals(total, np.arange(3), -1)


def test_intervals_are_wider_over_patients_whose_images_agree():
    rng = np.random.default_rng(0)
    labels = np.repeat(rng.integers(0, 2, 60), 10)
    scores = np.repeat(rng.normal(size=60), 10) + labels
    patients = np.repeat(np.arange(60), 10)
    ranking = metrics.Ranking(labels, scores)

    (found,) = intervals(lambda weights: ranking.counts(weights).auroc()[:, np.newaxis], patients, 300, 0)

    assert found.value == pytest.approx(roc_auc_score(labels, scores), abs=1e-6)
    assert found.low < found.image_low < found.value < found.image_high < found.high
    assert found.high - found.low > 2 * (found.image_high - found.image_low)


def test_numbers_have_six_digits():
    assert rounded(1 / 3) == 0.333333
    assert rounded(math.nan) is None


def test_a_thousand_draws_of_seed_0_are_what_is_drawn_unless_told_otherwise():
    def total(weights: np.ndarray) -> np.ndarray:
        return (weights.T @ np.arange(9))[:, np.newaxis]

    assert intervals(total, np.arange(9)) == intervals(total, np.arange(9), 1000, 0)
    assert intervals(total, np.arange(9)) != intervals(total, np.arange(9), 1001, 0)


# Means


@st.composite
def small_tables(draw):
    """Patients, labels of three classes and scores with ties, of few images: classes are often missing."""
    n = draw(st.integers(2, 14))
    rows = [[draw(st.integers(0, 1)) for _ in range(3)] for _ in range(n)]
    scores = [[draw(st.integers(0, 3)) for _ in range(3)] for _ in range(n)]
    return np.array([draw(st.integers(0, 5)) for _ in range(n)]), np.array(rows), np.array(scores)


def slow_auroc(rows: list[tuple[int, int]]) -> float | None:
    """By all pairs."""
    pairs = [(p, q) for y, p in rows if y for z, q in rows if not z]
    return sum(1.0 if p > q else 0.5 if p == q else 0.0 for p, q in pairs) / len(pairs) if pairs else None


def slow_mean(patients, labels, scores, images: list[int], classes: list[int]) -> float | None:
    """The mean area of classes over images, which may repeat; None if one has none."""
    areas = [slow_auroc([(labels[i][c], scores[i][c]) for i in images]) for c in classes]
    return None if None in areas or not areas else sum(areas) / len(areas)


@settings(deadline=None, max_examples=40)
@given(small_tables(), st.integers(1, 60))
def test_the_interval_of_a_mean_is_over_draws_that_hold_every_class_and_there_are_enough(table, draws):
    patients, labels, scores = table
    rankings = [metrics.Ranking(y, s) for y, s in zip(labels.T, scores.T, strict=True)]

    def areas(weights: np.ndarray) -> np.ndarray:
        return np.stack([ranking.counts(weights).auroc() for ranking in rankings], axis=1)

    found = intervals(areas, patients, draws, 1, means=[range(3)])[-1]

    n = len(patients)
    every = list(range(n))
    classes = [c for c in range(3) if slow_mean(patients, labels, scores, every, [c]) is not None]
    value = slow_mean(patients, labels, scores, every, classes)
    if value is None:
        assert found == Interval(None)
        return
    assert found.value == pytest.approx(value, abs=1e-6)
    for groups, name, low, high in (
        (patients, "patients", found.low, found.high),
        (np.arange(n), "image_", found.image_low, found.image_high),
    ):
        means = [
            slow_mean(patients, labels, scores, np.repeat(every, weights).tolist(), classes)
            for weights in drawn(groups, draws, 1, name).T
        ]
        whole = [mean for mean in means if mean is not None]
        if len(whole) < 0.8 * draws:
            assert (low, high) == (None, None)
            if name == "patients":
                share = 100 * len(whole) // draws
                begins = f"only {share}% of" if share else "no draw holds"
                assert found.no_interval.startswith(begins)
        else:
            assert (low, high) == pytest.approx(
                (percentile(whole, 0.025), percentile(whole, 0.975)), abs=1e-6
            )
            assert name == "image_" or found.no_interval is None


@pytest.mark.parametrize(("held", "share"), [(80, None), (79, 79), (1, 1), (0, 0)])
def test_a_mean_has_an_interval_from_80_percent_of_the_draws_on_and_a_reason_below(held, share):
    calls = []

    def statistic(weights: np.ndarray) -> np.ndarray:
        count = weights.shape[1]
        first = sum(calls)
        calls.append(count if first or count > 1 else 0)  # the first call is for the rows as they are
        numbers = np.arange(first, first + count, dtype=float)
        missing = np.where(calls[-1] and (numbers >= held), np.nan, numbers)
        return np.stack([numbers, missing], axis=1)

    first, second, mean = intervals(statistic, np.arange(5), 100, 0, means=[[0, 1]], images=False)

    assert (first.no_interval, second.no_interval) == (None, None)
    assert first.low is not None
    reason = f"only {share}% of the draws hold every class" if share else "no draw holds every class"
    assert mean.no_interval == (None if share is None else reason)
    assert (mean.low is None) == (share is not None)


def test_a_mean_is_over_the_classes_that_the_rows_have():
    def statistic(weights: np.ndarray) -> np.ndarray:
        return np.tile([1.0, np.nan, 3.0], (weights.shape[1], 1))

    *_, mean, none = intervals(statistic, np.arange(5), 10, 0, means=[range(3), [1]])

    assert mean == Interval(2.0, 2.0, 2.0, 2.0, 2.0)
    assert none == Interval(None)


@pytest.mark.parametrize(
    ("draws", "p"),
    [
        ([1.0] * 99, 2 * 1 / 100),
        ([-1.0] * 99, 2 * 1 / 100),
        ([1.0] * 96 + [-1.0] * 3, 2 * 4 / 100),
        ([1.0] * 96 + [0.0] * 3, 2 * 4 / 100),
        ([0.0] * 99, 1.0),
        ([1.0] * 50 + [-1.0] * 49, 1.0),
        ([1.0] * 50 + [float("nan")] * 49, 2 / 51),
    ],
)
def test_a_p_value_is_twice_the_share_of_draws_on_the_other_side_of_0_and_never_0(draws, p):
    numbers = iter([0.5, *draws])

    def statistic(weights: np.ndarray) -> np.ndarray:
        return np.array([[next(numbers)] for _ in range(weights.shape[1])])

    found = sample(statistic, np.arange(4), 99, 0, images=False)

    assert found.p_value(0) == pytest.approx(p)


def test_without_draws_there_is_no_p_value():
    assert sample(lambda weights: np.ones((weights.shape[1], 1)), np.arange(4), 0).p_value(0) is None


def test_rows_are_summed_by_patient_and_a_draw_weighs_the_sums_as_it_does_the_rows():
    patients = np.array([7, 3, 7, 9, 3])
    rows = np.arange(10.0).reshape(5, 2)

    sums = by_patient(patients, rows)

    np.testing.assert_array_equal(sums, [rows[[1, 4]].sum(axis=0), rows[[0, 2]].sum(axis=0), rows[3]])
    np.testing.assert_allclose(
        drawn(np.unique(patients), 70).T @ sums, drawn(patients, 70).T.astype(float) @ rows
    )
