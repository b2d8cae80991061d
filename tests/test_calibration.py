"""Calibration: what training did to the odds undone, errors, slopes and offsets."""

import dataclasses

import numpy as np
import pytest
from evaluations import NAMES, make_predictions, read_real
from hypothesis import given, settings
from hypothesis import strategies as st

from cxr_records.images import ImageFormat
from cxr_records.tasks import parse_task
from cxr_records.trainers.config import TrainConfig
from cxr_records.trainers.evaluation import calibration
from cxr_records.trainers.evaluation.predictions import Predictions
from cxr_records.trainers.runs import ClassCount, Run

RNG = np.random.default_rng(0)


def run_of(records: dict, images: dict, totals: tuple[int, int], loss: str = "bce") -> Run:
    several = loss in ("ce", "weighted_ce", "logit_adjusted")
    return Run(
        path="run",
        dataset="dataset",
        dataset_id="id",
        task=parse_task("multiclass" if several else "multilabel"),
        image_format=ImageFormat(),
        config=TrainConfig(loss=loss),
        classes={name: ClassCount(records[name], images[name]) for name in records},
        train_records=totals[0],
        train_images=totals[1],
        versions={},
    )


def undone(scores: np.ndarray, kind: str, run: Run) -> np.ndarray:
    return calibration.undo_shift(scores, kind, calibration.shift_of_training(run))


def test_a_model_that_knows_only_the_frequency_after_copies_is_brought_to_that_before():
    run = run_of({"Hernia": 300}, {"Hernia": 30}, (1300, 1000))

    found = undone(np.full((5, 1), 300 / 1300), "multilabel", run)

    np.testing.assert_allclose(found, 30 / 1000)
    assert calibration.undone_by(run) == ("how often it saw each class",)


def test_without_copies_nothing_is_shifted():
    run = run_of({"A": 30, "B": 500}, {"A": 30, "B": 500}, (1000, 1000))
    scores = RNG.random((20, 2))

    np.testing.assert_allclose(undone(scores, "multilabel", run), scores)
    assert calibration.undone_by(run) == ()


@pytest.mark.parametrize(("loss", "seen"), [("ce", [0.25, 0.75]), ("logit_adjusted", [0.5, 0.5])])
def test_multiclass_shares_are_brought_to_those_of_the_images(loss, seen):
    run = run_of({"A": 100, "B": 300}, {"A": 10, "B": 300}, (400, 310), loss)

    np.testing.assert_allclose(undone(np.array([seen]), "multiclass", run), [[10 / 310, 300 / 310]])


@settings(deadline=None, max_examples=100)
@given(st.integers(1, 999), st.integers(1, 99), st.floats(0.001, 0.999))
def test_what_weights_and_copies_do_to_the_odds_is_undone_exactly(records, images, truth):
    """Of images that look alike a share `truth` is positive; the model was trained to the least loss."""
    run = run_of({"Mass": records}, {"Mass": images}, (1000, 100), "weighted_bce")
    odds_of_records, odds_of_images = records / (1000 - records), images / (100 - images)
    odds = truth / (1 - truth) * odds_of_records / odds_of_images  # of the records, which hold copies
    odds *= (1000 - records) / records  # (N / 2P) / (N / 2(N - P))

    found = undone(np.array([[odds / (1 + odds)]]), "multilabel", run)

    assert found[0, 0] == pytest.approx(truth, rel=1e-6)
    assert calibration.undone_by(run) == ("how often it saw each class", "the weights of weighted_bce")


@pytest.mark.parametrize("tau", [0.0, 0.5, 1.0, 2.0])
@pytest.mark.parametrize("loss", ["weighted_ce", "logit_adjusted"])
def test_what_a_softmax_learned_under_weights_or_an_adjustment_is_undone_exactly(loss, tau):
    records, images, truth = np.array([300, 200, 500]), np.array([30, 50, 20]), np.array([0.2, 0.7, 0.1])
    run = run_of(
        dict(zip("ABC", records, strict=True)), dict(zip("ABC", images, strict=True)), (1000, 100), loss
    )
    if loss == "logit_adjusted":
        run = dataclasses.replace(run, config=TrainConfig(loss=loss, loss_options={"tau": tau}))
    learned = truth * (records / 1000) / (images / 100)
    learned = learned / records if loss == "weighted_ce" else learned / (records / 1000) ** tau
    learned /= learned.sum()

    np.testing.assert_allclose(undone(learned[np.newaxis], "multiclass", run), [truth])


def test_sampling_by_class_is_undone_as_copies_are():
    """As a run says of itself whose records were drawn so that classes come as often: numbers as expected."""
    run = run_of({"A": 133.333, "B": 133.333, "C": 133.334}, {"A": 100, "B": 30, "C": 270}, (400, 400), "ce")

    found = undone(np.full((1, 3), 1 / 3), "multiclass", run)

    np.testing.assert_allclose(found, [[0.25, 0.075, 0.675]], rtol=1e-4)
    assert calibration.undone_by(run) == ("how often it saw each class",)
    assert calibration.balanced_by(run) == "training on as many records of each class"


# Slope and offset


def slow_loss(labels: np.ndarray, scores: np.ndarray, slope: float, offset: float) -> float:
    z = offset + slope * np.log(scores / (1 - scores))
    return float((np.logaddexp(0, z) - labels * z).sum())


@pytest.mark.parametrize(("slope", "offset"), [(1.0, 0.0), (0.5, -2.0), (3.0, 1.5)])
def test_the_line_that_made_the_labels_is_found(slope, offset):
    scores = 1 / (1 + np.exp(-RNG.normal(scale=1.5, size=40_000)))
    truth = 1 / (1 + np.exp(-(offset + slope * np.log(scores / (1 - scores)))))
    labels = (RNG.random(len(scores)) < truth).astype(int)

    found = calibration.fit_line(labels, scores)

    assert (found.slope, found.offset) == pytest.approx((slope, offset), abs=0.08)
    assert found.note is None


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 9999), st.integers(30, 80))
def test_no_line_near_the_one_that_is_found_is_more_likely(seed, n):
    random = np.random.default_rng(seed)
    labels = np.arange(n) % 3 == 0
    scores = 1 / (1 + np.exp(-random.normal(size=n) * 3 - random.normal(size=n) * labels))

    found = calibration.fit_line(labels, scores)

    x = np.log(scores / (1 - scores))
    p = 1 / (1 + np.exp(-(found.offset + found.slope * x)))
    # The likelihood is level there: its slope is 0 in both directions.
    assert (p - labels).sum() == pytest.approx(0, abs=1e-6 * n)
    assert ((p - labels) * x).sum() == pytest.approx(0, abs=1e-6 * n * np.abs(x).max())
    assert (found.note is None) == (found.slope > 0)
    assert found == calibration.fit_line(labels, scores)


@pytest.mark.parametrize(
    ("labels", "scores", "note"),
    [
        ([0] * 20, np.linspace(0.1, 0.9, 20), "not fitted: no positive image"),
        ([1] * 20, np.linspace(0.1, 0.9, 20), "not fitted: no negative image"),
        ([1] + [0] * 30, None, "offset alone: 1 positive image, fewer than 10"),
        ([1] * 9 + [0] * 30, None, "offset alone: 9 positive images, fewer than 10"),
        ([1] * 30 + [0] * 9, None, "offset alone: 9 negative images, fewer than 10"),
        ([0] * 20 + [1] * 20, np.linspace(0.1, 0.9, 40), "offset alone: the scores separate the labels"),
        ([1] * 20 + [0] * 20, np.linspace(0.1, 0.9, 40), "offset alone: the scores separate the labels"),
        ([1, 0] * 20, np.full(40, 0.3), "offset alone: the scores separate the labels"),
        ([1, 0] * 20, np.tile([1.0, 0.0], 20), "offset alone: the scores separate the labels"),
    ],
)
def test_where_no_slope_can_be_fitted_the_offset_alone_is_and_that_is_said(labels, scores, note):
    labels = np.array(labels)
    scores = RNG.random(len(labels)) if scores is None else scores

    found = calibration.fit_line(labels, scores)

    assert found.note == note
    if note.startswith("not fitted"):
        assert (found.slope, found.offset) == (None, None)
    else:
        assert found.slope == 1.0
        assert found.apply(scores).mean() == pytest.approx(labels.mean(), abs=1e-6)


def test_scores_that_rank_the_wrong_way_are_said_to():
    labels = RNG.integers(0, 2, 2000)
    scores = np.clip(0.5 - 0.2 * labels + RNG.normal(scale=0.15, size=2000), 0.01, 0.99)

    found = calibration.fit_line(labels, scores)

    assert found.slope < 0
    assert found.note == "the slope is not above 0: the scores rank the wrong way"


# Bins


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


def weighted_run(loss: str = "weighted_bce") -> Run:
    return run_of(
        {"Mass": 300, "Nodule": 200, "Hernia": 150},
        {"Mass": 300, "Nodule": 100, "Hernia": 15},
        (1300, 1000),
        loss,
    )


@pytest.mark.parametrize(("kind", "loss"), [("multilabel", "weighted_bce"), ("multiclass", "weighted_ce")])
def test_lines_are_fitted_on_validation_after_training_was_undone_and_each_step_is_measured(kind, loss):
    run = weighted_run(loss)
    run = dataclasses.replace(run, task=parse_task(kind))
    scored = make_predictions(kind, n=400)
    validation = make_predictions(kind, n=400, seed=1, split="validation")

    found, best = calibration.calibrate(scored, validation, run)

    assert (found.undone, found.fitted_on) == (
        ("how often it saw each class", f"the weights of {loss}"),
        "validation",
    )
    before, fitted_from = undone(scored.scores, kind, run), undone(validation.scores, kind, run)
    shift = calibration.shift_of_training(run)
    for place, name in enumerate(NAMES):
        each, labels = found.classes[name], scored.labels[:, place]
        line = calibration.fit_line(validation.labels[:, place], fitted_from[:, place])
        assert (each.slope, each.offset) == pytest.approx((line.slope, line.offset), abs=1e-6)
        assert each.shift == pytest.approx(shift[place], abs=1e-6)
        assert line.slope != calibration.fit_line(labels, before[:, place]).slope
        logits = line.offset + line.slope * np.log(before[:, place] / (1 - before[:, place]))
        after = 1 / (1 + np.exp(-logits))
        np.testing.assert_allclose(best[:, place], after)
        for error, brier, scores in (
            (each.ece_raw, None, scored.scores[:, place]),
            (each.ece, each.brier, before[:, place]),
            (each.ece_calibrated, each.brier_calibrated, after),
        ):
            assert error == pytest.approx(brute_error(labels, scores), abs=1e-6)
            assert brier is None or brier == pytest.approx(np.mean((scores - labels) ** 2), abs=1e-6)
        assert len(each.bins) == len(each.bins_calibrated) == 15
    for mean in ("ece_raw", "ece", "ece_calibrated", "brier", "brier_calibrated"):
        expected = np.mean([getattr(each, mean) for each in found.classes.values()])
        assert getattr(found, f"macro_{mean}") == pytest.approx(expected, abs=1e-6)


def brute_error(labels: np.ndarray, scores: np.ndarray) -> float:
    """The expected calibration error over 15 bins of scores in order, the first of them one image larger."""
    rows = sorted(range(len(scores)), key=lambda row: scores[row])
    total, small, larger = 0.0, *divmod(len(rows), 15)
    while rows:
        size = small + (larger > 0)
        bin_rows, rows, larger = rows[:size], rows[size:], larger - 1
        total += abs(sum(scores[row] - labels[row] for row in bin_rows))
    return total / len(scores)


def best_temperature(labels: np.ndarray, scores: np.ndarray) -> float:
    """One for all classes, by trying them all (Guo et al. 2017): what slopes and offsets are set beside."""
    logits = np.log(scores / (1 - scores))
    tried = np.exp(np.linspace(-1, 1, 41))
    losses = [np.log1p(np.exp(np.where(labels == 1, -logits, logits) / t)).sum() for t in tried]
    return float(tried[np.argmin(losses)])


@pytest.fixture(scope="module")
def real(nih) -> tuple[Predictions, Predictions, Run, Predictions]:
    """The real table with odds shifted as `weighted_bce` shifts them, in halves of patients; that run.

    And the first half as it was.
    """
    whole = read_real(nih)
    positives, count = whole.labels.sum(axis=0), len(whole.labels)
    held = dict(zip(whole.names, positives.tolist(), strict=True))
    run = run_of(held, held, (count, count), "weighted_bce")
    odds = whole.scores / (1 - whole.scores) * (count - positives) / positives
    shifted = dataclasses.replace(whole, scores=odds / (1 + odds))
    patients = np.unique(whole.patient_ids)
    half = np.isin(whole.patient_ids, np.random.default_rng(0).permutation(patients)[: len(patients) // 2])
    columns = ("image_ids", "patient_ids", "views", "sexes", "ages_years", "labels", "scores")

    def part(table: Predictions, rows: np.ndarray) -> Predictions:
        return dataclasses.replace(table, **{name: getattr(table, name)[rows] for name in columns})

    return part(shifted, ~half), part(shifted, half), run, part(whole, ~half)


def test_slope_and_offset_bring_the_real_table_from_a_quarter_to_less_than_a_hundredth(real):
    scored, validation, _, _ = real

    found, _ = calibration.calibrate(scored, validation, None)

    assert found.macro_ece_raw == pytest.approx(0.263, abs=0.004)
    assert found.macro_ece_calibrated == pytest.approx(0.0068, abs=0.0005)
    # One temperature for all classes does nothing of the kind.
    temperature = best_temperature(validation.labels, validation.scores)
    odds = (scored.scores / (1 - scored.scores)) ** (1 / temperature)
    cooled, _ = calibration.calibrate(dataclasses.replace(scored, scores=odds / (1 + odds)), None, None)
    assert cooled.macro_ece == pytest.approx(0.267, abs=0.004)


def test_on_the_real_table_the_weights_are_undone_before_slopes_and_offsets(real):
    scored, validation, run, before = real

    found, _ = calibration.calibrate(scored, validation, run)

    as_it_was, _ = calibration.calibrate(before, None, None)
    assert found.undone == ("the weights of weighted_bce",)
    assert found.macro_ece == pytest.approx(as_it_was.macro_ece, abs=1e-5) == pytest.approx(0.009, abs=0.001)
    assert found.macro_ece_calibrated < 0.008
    # Its scores are too extreme, of nearly all classes.
    assert 0.7 < np.median([each.slope for each in found.classes.values()]) < 0.9


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

    found = undone(np.array([[score]]), "multilabel", run)[0, 0]

    factor = (images / (100 - images)) / (records / (total - records))
    assert found / (1 - found) == pytest.approx(score / (1 - score) * factor, rel=1e-6)


def test_without_a_run_or_validation_scores_are_measured_as_they_are():
    scored = make_predictions(n=100)

    found, best = calibration.calibrate(scored, None, None)

    assert (found.undone, found.fitted_on) == ((), None)
    assert (found.macro_ece_calibrated, found.macro_brier_calibrated) == (None, None)
    np.testing.assert_array_equal(best, scored.scores)
    for place, name in enumerate(NAMES):
        each, labels, scores = found.classes[name], scored.labels[:, place], scored.scores[:, place]
        assert each.brier == pytest.approx(np.mean((scores - labels) ** 2), abs=1e-6)
        assert each.ece == each.ece_raw == pytest.approx(brute_error(labels, scores), abs=1e-6)
        assert (each.ece_calibrated, each.slope, each.offset, each.shift) == (None, None, None, 0.0)
        assert each.note == "not fitted: no validation scores"


def test_images_that_were_not_judged_take_no_part():
    scored, validation = make_predictions(n=200), make_predictions(n=200, seed=1, split="validation")
    some = np.arange(200) % 4 > 0
    part, part_of_validation = (
        dataclasses.replace(each, labels=each.labels[some], scores=each.scores[some])
        for each in (scored, validation)
    )
    for each in (scored, validation):
        each.labels[~some] = -1

    found, _ = calibration.calibrate(scored, validation, None)

    assert found == calibration.calibrate(part, part_of_validation, None)[0]


def test_a_class_of_which_no_image_was_judged_is_not_measured():
    scored = make_predictions(n=100)
    scored.labels[:, 1] = -1

    found, _ = calibration.calibrate(scored, None, None)

    none = found.classes["Nodule"]
    assert (none.ece_raw, none.ece, none.brier, none.bins) == (None, None, None, ())
    others = [found.classes[name].ece for name in ("Mass", "Hernia")]
    assert found.macro_ece == pytest.approx(np.mean(others), abs=1e-6)


def test_a_class_that_validation_lacks_is_not_calibrated_and_the_mean_is_over_the_others():
    scored, validation = make_predictions(n=200), make_predictions(n=200, split="validation")
    validation.labels[:, 1] = 0

    found, best = calibration.calibrate(scored, validation, None)

    assert found.without_offset == ("Nodule",)
    assert found.classes["Nodule"].note == "not fitted: no positive image"
    np.testing.assert_array_equal(best[:, 1], scored.scores[:, 1])
    others = [found.classes[name].ece_calibrated for name in ("Mass", "Hernia")]
    assert found.macro_ece_calibrated == pytest.approx(np.mean(others), abs=1e-6)
    validation.labels[:] = 0
    assert calibration.calibrate(scored, validation, None)[0].fitted_on is None


@pytest.mark.parametrize("loss", ["focal", "asymmetric"])
def test_a_loss_that_cannot_be_undone_is_named(loss):
    assert calibration.warning_of_loss(weighted_run(loss)) == (
        f"trained with loss {loss}, which moves probabilities by more than a factor of the odds: that is not "
        "undone, and calibration shows it"
    )
    np.testing.assert_allclose(
        calibration.shift_of_training(weighted_run(loss)),
        calibration.shift_of_training(weighted_run("bce")),
    )


def test_of_a_loss_of_a_users_it_is_not_known_what_it_does():
    assert calibration.warning_of_loss(weighted_run("mine.py:loss")) == (
        "trained with loss mine.py:loss: whether it moves probabilities is not known, and is not undone"
    )


@pytest.mark.parametrize("loss", ["bce", "ce", "logit_adjusted", "weighted_bce", "weighted_ce"])
def test_of_a_loss_that_is_undone_nothing_is_said(loss):
    assert calibration.warning_of_loss(weighted_run(loss)) is None


@pytest.mark.parametrize(
    ("loss", "said"),
    [
        ("ce", None),
        ("weighted_bce", None),
        ("weighted_ce", "the loss weighted_ce"),
        ("ldam", "the loss ldam"),
        ("logit_adjusted", "the loss logit_adjusted"),
    ],
)
def test_losses_that_make_classes_count_alike_are_named(loss, said):
    assert calibration.balanced_by(weighted_run(loss)) == said


def test_a_class_without_images_counts_as_half_an_image():
    empty = run_of({"A": 0, "B": 10}, {"A": 0, "B": 10}, (10, 10))
    adjusted = run_of({"A": 0, "B": 10}, {"A": 0, "B": 10}, (10, 10), "logit_adjusted")
    even, scores = np.array([[0.5, 0.5]]), np.array([[0.5, 0.5], [0.0, 1.0]])

    np.testing.assert_allclose(undone(even, "multiclass", empty), even)
    np.testing.assert_allclose(undone(even, "multiclass", adjusted), [[0.5 / 10.5, 10 / 10.5]])
    assert np.isfinite(undone(scores, "multilabel", empty)).all()
