"""Measures against scikit-learn, and what they say where they are undefined."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from sklearn.metrics import average_precision_score, balanced_accuracy_score, confusion_matrix, roc_auc_score

from cxr_records.trainers.evaluation import metrics


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


@settings(max_examples=200, deadline=None)
@given(tables())
def test_a_youden_threshold_is_the_score_of_a_positive_with_the_largest_index(table):
    labels, scores, _ = table
    found = metrics.youden_threshold(labels, scores)
    if not both(labels, np.ones_like(labels)):
        assert found is None
        return

    def index(threshold: float) -> Fraction:
        says = scores >= threshold
        sensitivity = Fraction(int(says[labels == 1].sum()), int((labels == 1).sum()))
        return sensitivity - Fraction(int(says[labels == 0].sum()), int((labels == 0).sum()))

    assert found in scores[labels == 1]
    assert index(found) == max(index(score) for score in scores[labels == 1])


def test_of_thresholds_with_the_same_index_the_highest_is_taken():
    labels, scores = np.array([1, 0, 1, 0]), np.array([0.9, 0.5, 0.4, 0.1])

    assert metrics.youden_threshold(labels, scores) == 0.9


@settings(max_examples=200, deadline=None)
@given(tables())
def test_average_precision_is_precision_times_gain_in_recall_threshold_by_threshold(table):
    labels, scores, weights = table
    labels, scores = np.repeat(labels, weights), np.repeat(scores, weights)
    if not labels.sum():
        return
    total, recall = Fraction(0), Fraction(0)
    for threshold in sorted(set(scores), reverse=True):
        says = scores >= threshold
        true = int(says[labels == 1].sum())
        now = Fraction(true, int(labels.sum()))
        total, recall = total + Fraction(true, int(says.sum())) * (now - recall), now
    assert metrics.average_precision(labels, scores) == pytest.approx(float(total), abs=1e-12)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.booleans(), st.integers(0, 2)), min_size=1, max_size=20))
def test_recall_counts_each_row_as_often_as_it_weighs(rows):
    labels, right, weights = (np.array(column) for column in zip(*rows, strict=True))

    found = metrics.recall_per_class(labels, right, weights[:, np.newaxis])

    assert found.shape == (1, len(set(labels.tolist())))
    for place, label in enumerate(sorted(set(labels.tolist()))):
        mine = np.repeat(right[labels == label], weights[labels == label])
        np.testing.assert_equal(found[0, place], mine.mean() if len(mine) else math.nan)


def test_each_class_has_its_own_area_and_none_without_both_kinds():
    labels = np.array([[0, 1, 1], [1, 1, 0], [1, 1, 0]])
    scores = np.array([[0.1, 0.5, 0.2], [0.2, 0.5, 0.3], [0.3, 0.5, 0.2]])

    np.testing.assert_equal(metrics.auroc_per_class(labels, scores), [1.0, math.nan, 0.25])


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=30))
def test_confusion_and_balanced_accuracy_are_those_of_scikit_learn(pairs):
    truth, said = np.array(pairs).T

    np.testing.assert_array_equal(
        metrics.confusion(truth, said, 4), confusion_matrix(truth, said, labels=range(4))
    )
    found = metrics.recall_per_class(truth, truth == said, np.ones((len(truth), 1), int)).mean()
    expected = np.mean([(said[truth == c] == c).mean() for c in np.unique(truth)])
    assert found == pytest.approx(expected)
    if set(said) <= set(truth):
        assert found == pytest.approx(balanced_accuracy_score(truth, said))


def test_macro_is_the_mean_of_what_is_defined():
    assert metrics.macro([0.5, math.nan, 1.0]) == 0.75
    assert math.isnan(metrics.macro([math.nan]))
