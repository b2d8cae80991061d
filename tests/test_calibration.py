"""Calibration: the shift of copies undone, errors, the temperature."""

import numpy as np
import pytest

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

    assert [held["count"] for held in bins] == [2] * 15
    assert sum(held["count"] * held["positive_share"] for held in bins) == pytest.approx(15)
    assert calibration.expected_error(bins) == pytest.approx(0.5 * 0.0 + 0.5 * 0.2)


def test_fewer_images_than_bins_are_a_bin_each():
    assert len(calibration.reliability(np.array([0, 1]), np.array([0.1, 0.7]))) == 2
