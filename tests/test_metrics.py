"""Measures against scikit-learn, and what they say where they are undefined."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from sklearn.metrics import average_precision_score, balanced_accuracy_score, confusion_matrix, roc_auc_score

from cxr_records.trainers.evaluation import metrics
from cxr_records.trainers.evaluation.bootstrap import draws_of, intervals


@st.composite
def tables(draw):
    """Labels of both kinds, scores with many ties, and how often each row counts."""
    n = draw(st.integers(2, 40))
    labels = draw(npst.arrays(np.int64, n, elements=st.integers(0, 1)))
    scores = draw(npst.arrays(np.float64, n, elements=st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.9, 1.0])))
    weights = draw(npst.arrays(np.int64, n, elements=st.integers(0, 3)))
    return labels, scores, weights


def both(labels: np.ndarray, weights: np.ndarray) -> bool:
    return 0 < (labels * weights).sum() < weights.sum()


@settings(max_examples=300)
@given(tables())
def test_auroc_and_average_precision_are_those_of_scikit_learn_with_ties_and_weights(table):
    labels, scores, weights = table
    ranking = metrics.Ranking(labels, scores)
    counts = ranking.counts(weights[:, np.newaxis])
    found = counts.auroc()[0], counts.average_precision()[0]
    if both(labels, weights):
        assert found[0] == pytest.approx(roc_auc_score(labels, scores, sample_weight=weights), abs=1e-12)
        expected = average_precision_score(labels, scores, sample_weight=weights)
        assert found[1] == pytest.approx(expected, abs=1e-12)
    else:
        assert math.isnan(found[0])
        assert math.isnan(found[1]) == ((labels * weights).sum() == 0)


@settings(max_examples=100)
@given(tables())
def test_a_weight_is_a_repetition(table):
    labels, scores, weights = table
    repeated = np.repeat(labels, weights), np.repeat(scores, weights)

    weighted = metrics.Ranking(labels, scores).counts(weights[:, np.newaxis]).auroc()[0]

    np.testing.assert_equal(weighted, metrics.auroc(*repeated) if len(repeated[0]) else math.nan)


@settings(max_examples=100)
@given(tables(), st.sampled_from([0.9, 0.95, 0.5]))
def test_sensitivity_is_the_largest_among_thresholds_of_that_specificity(table, specificity):
    labels, scores, _ = table
    found = metrics.Ranking(labels, scores).once.sensitivity(specificity)[0]
    if not both(labels, np.ones_like(labels)):
        assert math.isnan(found)
        return
    reached = [0.0]
    for threshold in scores:
        says = scores >= threshold
        if (~says[labels == 0]).mean() >= specificity - 1e-9:
            reached.append(says[labels == 1].mean())
    assert found == pytest.approx(max(reached))


def test_a_youden_threshold_separates_what_can_be_separated():
    assert metrics.youden_threshold(np.array([0, 0, 1, 1]), np.array([0.1, 0.2, 0.3, 0.9])) == 0.3
    assert metrics.youden_threshold(np.zeros(3, int), np.arange(3.0)) is None


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=30))
def test_confusion_and_balanced_accuracy_are_those_of_scikit_learn(pairs):
    truth, said = np.array(pairs).T

    np.testing.assert_array_equal(
        metrics.confusion(truth, said, 4), confusion_matrix(truth, said, labels=range(4))
    )
    found = metrics.balanced_accuracy(truth, truth == said, np.ones((len(truth), 1), int))[0]
    expected = np.mean([(said[truth == c] == c).mean() for c in np.unique(truth)])
    assert found == pytest.approx(expected)
    if set(said) <= set(truth):
        assert found == pytest.approx(balanced_accuracy_score(truth, said))


def test_macro_is_the_mean_of_what_is_defined():
    assert metrics.macro([0.5, math.nan, 1.0]) == 0.75
    assert math.isnan(metrics.macro([math.nan]))


# The bootstrap


def test_a_patient_is_drawn_with_all_of_its_images():
    patients = np.array([7, 3, 7, 7, 5])

    weights = np.concatenate(list(draws_of(patients, 60, 0, "patients")), axis=1)

    assert weights.shape == (5, 60)
    assert (weights[0] == weights[2]).all()
    assert (weights[0] == weights[3]).all()
    assert (weights[[0, 1, 4]].sum(axis=0) == 3).all()  # as many patients as there are


def test_the_same_seed_gives_the_same_draws_and_another_seed_others():
    patients = np.arange(20) // 2

    one, again, other = (
        np.concatenate(list(draws_of(patients, 30, seed, "patients")), axis=1) for seed in (0, 0, 1)
    )

    np.testing.assert_array_equal(one, again)
    assert (one != other).any()


def test_intervals_are_wider_over_patients_whose_images_agree():
    rng = np.random.default_rng(0)
    labels = np.repeat(rng.integers(0, 2, 60), 10)
    scores = np.repeat(rng.normal(size=60), 10) + labels
    patients = np.repeat(np.arange(60), 10)
    ranking = metrics.Ranking(labels, scores)

    (found,) = intervals(lambda weights: ranking.counts(weights).auroc()[:, np.newaxis], patients, 300, 0)

    assert found["value"] == pytest.approx(roc_auc_score(labels, scores), abs=1e-6)
    assert found["low"] < found["image_low"] < found["value"] < found["image_high"] < found["high"]
    assert found["high"] - found["low"] > 2 * (found["image_high"] - found["image_low"])
