"""Comparisons of runs: paired, adjusted for being several, and decided or not."""

import dataclasses
import itertools

import numpy as np
import pytest
from evaluations import make_predictions
from hypothesis import given
from hypothesis import strategies as st

from cxr_records.trainers.evaluation.comparisons import compare, holm
from cxr_records.trainers.evaluation.predictions import Predictions
from cxr_records.trainers.evaluation.results import Interval, PairedInterval


def noisy(scored: Predictions, noise: float, seed: int) -> Predictions:
    scores = scored.scores + np.random.default_rng(seed).normal(scale=noise, size=scored.scores.shape)
    return dataclasses.replace(scored, scores=scores)


@given(st.lists(st.one_of(st.none(), st.floats(0.001, 1)), max_size=8))
def test_holm_rejects_at_every_level_what_its_steps_reject(p_values):
    adjusted = holm(p_values)

    assert [p is None for p in adjusted] == [p is None for p in p_values]
    known = sorted(p for p in p_values if p is not None)
    for level in (0.01, 0.05, 0.2, 0.7):
        rejected = 0  # the smallest first, until one is above the level by those that are left
        while rejected < len(known) and known[rejected] * (len(known) - rejected) <= level:
            rejected += 1
        limit = known[rejected - 1] if rejected else -1.0
        for p, q in zip(p_values, adjusted, strict=True):
            if p is not None and abs(q - level) > 1e-6:
                assert (q <= level) == (p <= limit)


def test_holm_is_as_in_a_worked_example():
    assert holm([0.01, 0.04, 0.03, 0.005]) == [0.03, 0.06, 0.06, 0.02]
    assert holm([]) == []


def test_p_values_of_classes_are_adjusted_over_all_classes_of_all_pairs_and_macros_over_pairs():
    scored = make_predictions(n=400)
    runs = {name: noisy(scored, noise, 1) for name, noise in (("a", 0.0), ("b", 0.3), ("c", 2.0))}

    found = compare(runs, list(itertools.combinations(runs, 2)), draws=199)

    classes = [each for pair in found for each in pair.auroc.values()]
    assert [each.p_adjusted for each in classes] == holm([each.p for each in classes])
    macros = [pair.macro_auroc for pair in found]
    assert [each.p_adjusted for each in macros] == holm([each.p for each in macros])
    assert any(each.p_adjusted > each.p for each in classes)
    assert [(pair.a, pair.b) for pair in found] == [("a", "b"), ("a", "c"), ("b", "c")]


def test_a_large_difference_of_many_patients_is_decided_and_none_is_not():
    scored = make_predictions(n=400)
    runs = {"good": scored, "bad": noisy(scored, 3.0, 1), "same": scored}

    worse, none = compare(runs, [("good", "bad"), ("good", "same")], draws=999)

    assert worse.macro_auroc.undecided is None
    assert worse.macro_auroc.p == pytest.approx(2 / 1000)
    assert worse.macro_auroc.high < 0
    assert none.macro_auroc == PairedInterval(
        0.0, 0.0, 0.0, 0.0, 0.0, p=1.0, p_adjusted=1.0, undecided="the interval spans 0"
    )


def test_fifteen_patients_decide_nothing_however_large_the_difference():
    scored = make_predictions(n=30)
    scored.labels[:] = np.arange(30)[:, np.newaxis] % 3 == 0
    perfect = dataclasses.replace(scored, scores=scored.labels + 0.0)
    inverse = dataclasses.replace(scored, scores=1.0 - scored.labels)

    (found,) = compare({"a": inverse, "b": perfect}, [("a", "b")], draws=50)

    assert (found.patients, found.images) == (15, 30)
    assert (found.macro_auroc.value, found.macro_auroc.low) == (1.0, 1.0)
    assert found.macro_auroc.undecided == "15 patients, fewer than 30"
    assert {each.undecided for each in found.auroc.values()} == {
        "10 patients with the finding, fewer than 30"
    }


@pytest.mark.parametrize(
    ("patients", "which", "undecided"),
    [
        (29, "with", "29 patients with the finding, fewer than 30"),
        (1, "with", "1 patient with the finding, fewer than 30"),
        (29, "without", "29 patients without the finding, fewer than 30"),
        (30, "with", "the interval spans 0"),
        (30, "without", "the interval spans 0"),
        (0, "with", "undefined"),
    ],
)
def test_fewer_than_thirty_patients_with_or_without_a_finding_decide_nothing(patients, which, undecided):
    scored = make_predictions(names=("Mass",), n=200)
    kind = int(which == "with")
    scored.labels[:] = 1 - kind
    scored.labels[: 2 * patients] = kind

    (found,) = compare({"a": scored, "b": scored}, [("a", "b")], draws=20)

    assert found.auroc["Mass"].undecided == undecided


def test_an_interval_without_0_is_not_decided_where_the_adjusted_p_value_is_above_5_percent():
    scored = make_predictions(n=400)

    (found,) = compare({"a": scored, "b": noisy(scored, 3.0, 1)}, [("a", "b")], draws=100)

    for each in found.auroc.values():
        assert each.high < 0
        assert each.p_adjusted == pytest.approx(3 * 2 / 101, abs=1e-5)
        assert each.undecided == "the p-value adjusted for several comparisons is 0.059"


def test_a_mean_without_interval_and_a_comparison_without_draws_are_not_decided():
    scored = make_predictions(n=200)
    scored.labels[:, 2] = 0
    scored.labels[:2, 2] = 1  # of one patient
    runs = {"a": scored, "b": noisy(scored, 3.0, 1)}

    (drawn,), (undrawn,) = (compare(runs, [("a", "b")], draws=draws) for draws in (100, 0))

    share = drawn.macro_auroc.no_interval
    assert share.endswith("% of the draws hold every class")
    assert drawn.macro_auroc.undecided == f"no interval: {share}"
    assert (drawn.macro_auroc.p, drawn.macro_auroc.p_adjusted) == (None, None)
    assert undrawn.macro_auroc.undecided == "no draws"
    assert Interval(undrawn.macro_auroc.value) == Interval(drawn.macro_auroc.value)
