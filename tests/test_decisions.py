"""Decision curves: net benefit by hand, its thresholds, whose probabilities."""

import dataclasses

import numpy as np
import pytest
from evaluations import NAMES, make_predictions
from hypothesis import given, settings
from hypothesis import strategies as st

from cxr_records.trainers.evaluation import calibration
from cxr_records.trainers.evaluation.bootstrap import draws_of
from cxr_records.trainers.evaluation.decisions import decisions
from cxr_records.trainers.evaluation.evaluate import evaluate
from cxr_records.trainers.evaluation.predictions import Predictions
from cxr_records.trainers.evaluation.results import Decisions


def curves(scored: Predictions, draws: int = 0) -> dict[str, Decisions | None]:
    measured, probabilities = calibration.calibrate(scored, None, None)
    return decisions(scored, probabilities, measured, draws, 0)


def slow_benefit(rows: list[tuple[int, float]], threshold: float) -> float:
    """True positives less false positives at the odds of the threshold, by image (Vickers and Elkin 2006)."""
    true = sum(label == 1 and p >= threshold for label, p in rows)
    false = sum(label == 0 and p >= threshold for label, p in rows)
    return true / len(rows) - false / len(rows) * threshold / (1 - threshold)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 99), st.integers(4, 30), st.integers(1, 30))
def test_net_benefit_is_counted_image_by_image_in_all_and_in_each_draw(seed, n, draws):
    scored = make_predictions(names=("Mass",), n=n, seed=seed)
    scored.labels[:2, 0] = [0, 1]

    found = curves(scored, draws)["Mass"]

    rows = list(zip(scored.labels[:, 0].tolist(), scored.scores[:, 0].tolist(), strict=True))
    weights = np.concatenate(list(draws_of(scored.patient_ids, draws, 0, "patients")), axis=1)
    for place in (0, 7, 29):
        t = found.thresholds[place]
        assert found.model[place] == pytest.approx(slow_benefit(rows, t), abs=2e-6)
        every = slow_benefit([(label, 1.0) for label, _ in rows], t)
        assert found.treat_all[place] == pytest.approx(every, abs=2e-6)
        drawn = [
            slow_benefit([row for row, w in zip(rows, column, strict=True) for _ in range(w)], t)
            for column in weights.T
        ]
        low, high = np.percentile(drawn, [2.5, 97.5])
        assert (found.low[place], found.high[place]) == pytest.approx((low, high), abs=2e-6)


def without(scored: Predictions, rows: np.ndarray) -> Predictions:
    columns = ("image_ids", "patient_ids", "views", "sexes", "ages_years", "labels", "scores")
    return dataclasses.replace(scored, **{name: getattr(scored, name)[~rows] for name in columns})


def test_images_that_were_not_judged_take_no_part():
    scored = make_predictions(names=("Mass",), n=100)
    unjudged = np.arange(100) % 4 < 2  # every second patient
    judged = curves(without(scored, unjudged))
    scored.labels[unjudged] = -1

    found = curves(scored)

    assert found == judged
    assert curves(scored, 50)["Mass"].low != judged["Mass"].low
    scored.labels[4:] = -1
    assert len(curves(scored, 50)["Mass"].low) == 30  # though most draws judge nothing


@pytest.mark.parametrize(("positives", "end"), [(10, 0.3), (16, 0.48), (20, 0.5), (90, 0.5)])
def test_thresholds_go_up_to_three_times_the_prevalence_and_at_most_a_half(positives, end):
    scored = make_predictions(names=("Mass",), n=100)
    scored.labels[:, 0] = np.arange(100) < positives

    found = curves(scored)["Mass"]

    assert len(found.thresholds) == 30
    assert found.thresholds[-1] == pytest.approx(end)
    assert found.thresholds[0] == pytest.approx(end / 30, abs=1e-6)
    assert (found.low, found.high) == (None, None)


def test_a_model_that_knows_is_above_both_defaults_and_one_that_knows_nothing_nowhere_between_them():
    scored = make_predictions(names=("Mass",), n=1000)
    scored.labels[:, 0] = np.arange(1000) % 10 == 0
    knows = dataclasses.replace(scored, scores=scored.labels * 0.9)
    constant = dataclasses.replace(scored, scores=np.full((1000, 1), 0.1))

    found = curves(knows)["Mass"]
    assert found.model == (0.1,) * 30
    assert found.best_from_to == (found.thresholds[0], found.thresholds[-1])
    # Who knows the prevalence alone treats all below it and none above.
    assert curves(constant)["Mass"].best_from_to is None


def test_the_widest_run_of_thresholds_is_named():
    curve = Decisions(
        "", (0.1, 0.2, 0.3, 0.4, 0.5), (0.2, -0.1, 0.1, 0.1, 0.0), None, None, (0.1, 0.0, 0.0, -0.1, -0.2)
    )

    assert curve.best_from_to == (0.3, 0.4)


def test_a_class_of_one_kind_has_no_curve_and_scores_that_are_no_probabilities_have_none_at_all():
    scored = make_predictions()
    scored.labels[:, 1] = 0

    found = evaluate(scored, draws=0).decisions

    assert [found[name] is None for name in NAMES] == [False, True, False]
    assert evaluate(dataclasses.replace(scored, scores=scored.scores * 9), draws=0).decisions is None
    scored.labels[:] = 0
    assert evaluate(scored, draws=20).decisions == dict.fromkeys(NAMES)


def test_curves_are_of_the_calibrated_probabilities_where_these_are():
    scored, validation = make_predictions(n=300), make_predictions(n=300, seed=1, split="validation")
    scored.scores[:] = scored.scores**4  # far too low
    validation.scores[:] = validation.scores**4

    given_, fitted = evaluate(scored, draws=0), evaluate(scored, validation, draws=0)

    _, best = calibration.calibrate(scored, validation, None)
    for place, name in enumerate(NAMES):
        assert given_.decisions[name].scores == "as the model gives them"
        assert fitted.decisions[name].scores == "calibrated by slope and offset"
        rows = list(zip(scored.labels[:, place].tolist(), best[:, place].tolist(), strict=True))
        t = fitted.decisions[name].thresholds[9]
        assert fitted.decisions[name].model[9] == pytest.approx(slow_benefit(rows, t), abs=2e-6)
        assert sum(fitted.decisions[name].model) > sum(given_.decisions[name].model)
