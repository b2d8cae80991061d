"""Curves: through the corners of their steps; thinned, they hold true points only, and nearly their area."""

import numpy as np
import pytest
from evaluations import make_predictions
from hypothesis import given
from hypothesis import strategies as st

from cxr_records.trainers.evaluation.curves import POINTS, curves_of, step_ends
from cxr_records.trainers.evaluation.evaluate import evaluate
from cxr_records.trainers.evaluation.metrics import Ranking, average_precision


def area(recall, precision) -> float:
    """Under the steps, the first of which begins at recall 0: average precision's own sum."""
    return float((np.diff(recall, prepend=0.0) * np.asarray(precision)).sum())


def random_scores(n: int, seed: int, share: float, known: float) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    labels = (random.random(n) < share).astype(int)
    labels[:2] = 0, 1
    return labels, (random.random(n) + known * labels).round(3)


def test_curves_pass_through_the_corners_of_the_steps():
    scored = make_predictions(names=("Mass",), n=12)
    scored.labels[:, 0] = [1, 0, 1, 0, 0, 0] * 2
    scored.scores[:, 0] = [0.9, 0.8, 0.7, 0.7, 0.1, 0.1] * 2

    curves = evaluate(scored, draws=0).curves["Mass"]

    # Ties of a positive and a negative at 0.7 make a slope, not a step.
    assert curves.roc.fpr == (0.0, 0.0, 0.0, 0.25, 0.5, 1.0)
    assert curves.roc.tpr == (0.0, 0.0, 0.5, 0.5, 1.0, 1.0)
    assert curves.pr.recall == (0.5, 1.0)
    assert curves.pr.precision == (1.0, 0.5)


def test_long_roc_curves_are_thinned_to_200_thresholds():
    labels, scores = np.arange(1000) < 500, np.random.default_rng(5).permutation(1000) / 1000

    curves = curves_of(Ranking(labels, scores))

    assert len(curves.roc.fpr) == len(curves.roc.tpr) == 2 + 2 * POINTS


def test_no_curve_without_both_positives_and_negatives():
    assert curves_of(Ranking(np.zeros(3), np.arange(3.0))) is None
    assert curves_of(Ranking(np.ones(3), np.arange(3.0))) is None


@pytest.mark.parametrize("n", [2, 30, 1000, 20_000])
@pytest.mark.parametrize(("share", "known"), [(0.002, 0.5), (0.05, 0.3), (0.5, 0.0), (0.3, 1.5)])
def test_a_thinned_precision_recall_curve_has_the_area_of_average_precision(n, share, known):
    labels, scores = random_scores(n, n, share, known)

    curve = curves_of(Ranking(labels, scores)).pr

    assert area(curve.recall, curve.precision) == pytest.approx(average_precision(labels, scores), abs=0.004)
    assert curve.recall[-1] == 1.0
    assert len(curve.recall) <= 700


@given(n=st.integers(2, 400), seed=st.integers(0, 99), share=st.floats(0.01, 0.9), known=st.floats(0, 1))
def test_every_step_that_is_kept_is_a_true_one_and_near_all_that_it_stands_for(n, seed, share, known):
    labels, scores = random_scores(n, seed, share, known)
    thresholds = np.unique(scores[labels == 1])[::-1]
    recall = np.array([(scores[labels == 1] >= each).mean() for each in thresholds])
    precision = np.array([labels[scores >= each].mean() for each in thresholds])

    ends = step_ends(recall, precision)

    assert ends[-1] == len(recall) - 1
    assert (np.diff(ends) > 0).all()
    first = 0
    for end in ends:
        part, begin = precision[first : end + 1], recall[first - 1] if first else 0
        assert np.ptp(part) <= 0.005 or recall[end] - begin <= 0.0025 or first == end
        first = end + 1
    curve = curves_of(Ranking(labels, scores)).pr
    np.testing.assert_allclose(curve.recall, recall[ends], atol=1e-4)
    np.testing.assert_allclose(curve.precision, precision[ends], atol=1e-4)
