"""Calibration: the shift of copies undone, errors, the temperature."""

import numpy as np
import pytest
from evaluations import NAMES, make_predictions
from hypothesis import given, settings
from hypothesis import strategies as st

from cxr_records.images import ImageFormat
from cxr_records.tasks import parse_task
from cxr_records.trainers.config import TrainConfig
from cxr_records.trainers.evaluation import calibration
from cxr_records.trainers.runs import ClassCount, Run

RNG = np.random.default_rng(0)


def run_of(records: dict, images: dict, totals: tuple[int, int], loss: str = "bce") -> Run:
    return Run(
        path="run",
        dataset="dataset",
        dataset_id="id",
        task=parse_task("multilabel"),
        image_format=ImageFormat(),
        config=TrainConfig(loss=loss),
        classes={name: ClassCount(records[name], images[name]) for name in records},
        train_records=totals[0],
        train_images=totals[1],
        versions={},
    )


def test_a_model_that_knows_only_the_frequency_after_copies_is_brought_to_that_before():
    run = run_of({"Hernia": 300}, {"Hernia": 30}, (1300, 1000))

    undone = calibration.undo_shift(np.full((5, 1), 300 / 1300), "multilabel", run)

    np.testing.assert_allclose(undone, 30 / 1000)


def test_without_copies_nothing_is_shifted():
    run = run_of({"A": 30, "B": 500}, {"A": 30, "B": 500}, (1000, 1000))
    scores = RNG.random((20, 2))

    np.testing.assert_allclose(calibration.undo_shift(scores, "multilabel", run), scores)


@pytest.mark.parametrize(("loss", "seen"), [("ce", [0.25, 0.75]), ("logit_adjusted", [0.5, 0.5])])
def test_multiclass_shares_are_brought_to_those_of_the_images(loss, seen):
    run = run_of({"A": 100, "B": 300}, {"A": 10, "B": 300}, (400, 310), loss)

    undone = calibration.undo_shift(np.array([seen]), "multiclass", run)

    np.testing.assert_allclose(undone, [[10 / 310, 300 / 310]])


@pytest.mark.parametrize("truth", [0.5, 1.0, 3.0])
def test_the_temperature_that_made_the_scores_is_found(truth):
    logits = RNG.normal(scale=2, size=(40_000, 1))
    labels = (RNG.random(logits.shape) < 1 / (1 + np.exp(-logits))).astype(int)
    scores = 1 / (1 + np.exp(-logits * truth))

    found = calibration.fit_temperature(labels, scores, "binary")

    assert found == pytest.approx(truth, rel=0.05)
    np.testing.assert_allclose(
        calibration.with_temperature(scores, truth, "binary"), 1 / (1 + np.exp(-logits)), atol=1e-6
    )


def test_a_softmax_stays_one_under_a_temperature():
    scores = RNG.dirichlet(np.ones(5), size=50)

    cooled = calibration.with_temperature(scores, 2.0, "multiclass")

    np.testing.assert_allclose(cooled.sum(axis=1), 1)
    np.testing.assert_array_equal(cooled.argmax(axis=1), scores.argmax(axis=1))
    np.testing.assert_allclose(calibration.with_temperature(scores, 1.0, "multiclass"), scores, atol=1e-6)


def test_labels_of_one_kind_have_no_temperature():
    assert calibration.fit_temperature(np.zeros((5, 1), int), RNG.random((5, 1)), "binary") is None


def test_bins_hold_as_many_images_each_and_errors_are_what_they_say():
    labels = np.array([0] * 15 + [1] * 15)
    scores = np.array([0.0] * 15 + [0.8] * 15)

    bins = calibration.reliability(labels, scores)

    assert [each.count for each in bins] == [2] * 15
    assert sum(each.count * each.positive_share for each in bins) == pytest.approx(15)
    assert calibration.expected_error(bins) == pytest.approx(0.5 * 0.0 + 0.5 * 0.2)


def test_fewer_images_than_bins_are_a_bin_each():
    assert len(calibration.reliability(np.array([0, 1]), np.array([0.1, 0.7]))) == 2


# What calibrate does with them


def shifted_run(loss: str = "bce") -> Run:
    return run_of(
        {"Mass": 300, "Nodule": 200, "Hernia": 150},
        {"Mass": 300, "Nodule": 100, "Hernia": 15},
        (1300, 1000),
        loss,
    )


@pytest.mark.parametrize("kind", ["multilabel", "multiclass"])
def test_a_temperature_is_fitted_on_validation_after_the_shift_of_copies_was_undone(kind):
    run = shifted_run()
    scored = make_predictions(kind, n=400)
    validation = make_predictions(kind, n=400, seed=1, split="validation")
    undone = calibration.undo_shift(validation.scores, kind, run)

    found = calibration.calibrate(scored, validation, run)

    expected = best_temperature(validation.labels, undone, kind)
    assert found.temperature == pytest.approx(expected, rel=0.005)
    for labels, scores in (
        (validation.labels, validation.scores),
        (scored.labels, calibration.undo_shift(scored.scores, kind, run)),
    ):
        assert abs(best_temperature(labels, scores, kind) - expected) > 0.02 * expected
    assert (found.prior_shift_undone, found.temperature_fitted_on) == (True, "validation")
    cooled = calibration.with_temperature(
        calibration.undo_shift(scored.scores, kind, run), found.temperature, kind
    )
    for place, name in enumerate(NAMES):
        error = brute_error(scored.labels[:, place], cooled[:, place])
        assert found.classes[name].ece_with_temperature == pytest.approx(error, abs=1e-5)


def best_temperature(labels: np.ndarray, scores: np.ndarray, kind: str) -> float:
    """By trying them all, from logits written plainly."""
    tried = np.exp(np.linspace(-2, 2, 2001))
    if kind == "multiclass":
        logits = np.log(np.maximum(scores, 1e-12))
        right = (logits * labels).sum(axis=1)
        losses = [(np.log(np.exp(logits / t).sum(axis=1)) - right / t).sum() for t in tried]
    else:
        logits = np.log(scores / (1 - scores))
        losses = [np.log1p(np.exp(np.where(labels == 1, -logits, logits) / t)).sum() for t in tried]
    return float(tried[np.argmin(losses)])


def brute_error(labels: np.ndarray, scores: np.ndarray) -> float:
    """The expected calibration error over 15 bins of scores in order, the first of them one image larger."""
    rows = sorted(range(len(scores)), key=lambda row: scores[row])
    total, small, larger = 0.0, *divmod(len(rows), 15)
    while rows:
        size = small + (larger > 0)
        bin_rows, rows, larger = rows[:size], rows[size:], larger - 1
        total += abs(sum(scores[row] - labels[row] for row in bin_rows))
    return total / len(scores)


@settings(deadline=None, max_examples=100)
@given(st.lists(st.tuples(st.integers(0, 1), st.floats(0, 1)), min_size=1, max_size=60))
def test_the_expected_error_is_that_of_bins_in_the_order_of_scores(rows):
    labels, scores = (np.array(column) for column in zip(*rows, strict=True))

    bins = calibration.reliability(labels, scores)

    assert calibration.expected_error(bins) == pytest.approx(brute_error(labels, scores), abs=1e-12)
    assert sum(each.count for each in bins) == len(scores)
    means = [each.mean_score for each in bins]
    assert means == pytest.approx(sorted(means))


@settings(deadline=None, max_examples=100)
@given(st.floats(0.01, 0.99), st.integers(1, 99), st.integers(1, 99), st.integers(100, 300))
def test_odds_are_multiplied_by_those_of_images_over_those_of_records(score, images, records, total):
    run = run_of({"Mass": records}, {"Mass": images}, (total, 100))

    undone = calibration.undo_shift(np.array([[score]]), "multilabel", run)[0, 0]

    factor = (images / (100 - images)) / (records / (total - records))
    assert undone / (1 - undone) == pytest.approx(score / (1 - score) * factor, rel=1e-6)


def test_without_a_run_or_validation_scores_are_measured_as_they_are():
    scored = make_predictions(n=100)

    found = calibration.calibrate(scored, None, None)

    assert (found.prior_shift_undone, found.temperature, found.temperature_fitted_on) == (False, None, None)
    assert found.macro_ece_with_temperature is None
    for place, name in enumerate(NAMES):
        each, labels, scores = found.classes[name], scored.labels[:, place], scored.scores[:, place]
        assert each.brier == pytest.approx(np.mean((scores - labels) ** 2), abs=1e-6)
        assert each.ece == pytest.approx(brute_error(labels, scores), abs=1e-6)
        assert each.ece_with_temperature is None
    assert found.macro_ece == pytest.approx(np.mean([each.ece for each in found.classes.values()]), abs=1e-6)
    assert found.macro_brier == pytest.approx(
        np.mean([each.brier for each in found.classes.values()]), abs=1e-6
    )


def test_validation_labels_of_one_kind_give_no_temperature_and_none_is_said_to_be_fitted():
    scored = make_predictions(n=60)
    validation = make_predictions(n=60, split="validation")
    validation.labels[:] = 0

    found = calibration.calibrate(scored, validation, None)

    assert (found.temperature, found.temperature_fitted_on) == (None, None)


@pytest.mark.parametrize("loss", ["weighted_bce", "weighted_ce", "focal", "asymmetric"])
def test_a_loss_that_moves_probabilities_is_named(loss):
    assert calibration.warning_of_loss(shifted_run(loss)) == (
        f"trained with loss {loss}, which moves probabilities by itself: calibration shows that too"
    )


@pytest.mark.parametrize("loss", ["bce", "ce", "logit_adjusted"])
def test_a_loss_that_moves_nothing_is_not(loss):
    assert calibration.warning_of_loss(shifted_run(loss)) is None


def test_a_class_without_images_counts_as_half_an_image():
    empty = run_of({"A": 0, "B": 10}, {"A": 0, "B": 10}, (10, 10))
    adjusted = run_of({"A": 0, "B": 10}, {"A": 0, "B": 10}, (10, 10), "logit_adjusted")
    even, scores = np.array([[0.5, 0.5]]), np.array([[0.5, 0.5], [0.0, 1.0]])

    np.testing.assert_allclose(calibration.undo_shift(even, "multiclass", empty), even)
    np.testing.assert_allclose(
        calibration.undo_shift(even, "multiclass", adjusted), [[0.5 / 10.5, 10 / 10.5]]
    )
    assert np.isfinite(calibration.undo_shift(scores, "multilabel", empty)).all()


def test_a_temperature_lies_between_a_twentieth_and_twenty_also_for_scores_of_0_and_1():
    right, wrong = np.array([[0], [0], [1], [1], [1], [0]]), np.array([[1], [0], [0], [1], [0], [1]])
    scores = np.array([[0.0], [0.0], [1.0], [1.0], [0.6], [0.4]])

    assert calibration.fit_temperature(right, scores, "binary") == pytest.approx(1 / 20, rel=1e-6)
    assert calibration.fit_temperature(wrong, scores, "binary") == pytest.approx(20, rel=1e-6)
