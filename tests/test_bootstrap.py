"""The bootstrap: who is drawn together, how often, and which percentiles."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from cxr_records.errors import UsageError
from cxr_records.trainers.evaluation import metrics
from cxr_records.trainers.evaluation.bootstrap import draws_of, intervals, rounded
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
