"""What an AUROC on noisy labels means: the known value, simulation, and what cannot be."""

import numpy as np
import pytest
from evaluations import make_predictions, read_expected
from hypothesis import example, given, settings
from hypothesis import strategies as st

from cxr_records.trainers.evaluation.evaluate import evaluate
from cxr_records.trainers.evaluation.label_noise import (
    ABOVE_1,
    BELOW_0,
    TELL_NOTHING,
    TOO_FEW_NEGATIVES,
    TOO_FEW_POSITIVES,
    Noise,
    label_noise,
    of_ppv,
    of_specificity,
    of_true_prevalence,
)
from cxr_records.trainers.evaluation.metrics import auroc
from cxr_records.trainers.evaluation.results import ClassMeasures, Interval, NoisyLabels

SHARES = st.floats(0.05, 1)


def class_of(positives: int, images: int) -> ClassMeasures:
    none = Interval(None)
    return ClassMeasures(
        images=images, positives=positives, negatives=images - positives, positive_patients=positives,
        prevalence=positives / images, sensitivity_at_90_specificity=none, sensitivity_at_95_specificity=none,
        operating_point=None, warnings=(),
    )  # fmt: skip


def test_a_true_899_reads_827_at_90_99_and_a_prevalence_of_5_in_a_hundred():
    assert of_true_prevalence(0.90, 0.99, 0.05).seen(0.899) == pytest.approx(0.827, abs=0.0005)


@given(SHARES, SHARES, st.floats(0.01, 0.99), st.integers(0, 1000))
@example(0.9, 0.99, 0.05, 0)
@settings(max_examples=30)
def test_labels_that_err_by_chance_are_seen_as_the_formula_says(sensitivity, specificity, prevalence, seed):
    random = np.random.default_rng(seed)
    images = 40_000
    truth = random.random(images) < prevalence
    scores = random.normal(size=images) + 1.5 * truth
    labels = np.where(truth, random.random(images) < sensitivity, random.random(images) > specificity)
    kinds = [(labels == seen) & (truth == true) for seen in (0, 1) for true in (0, 1)]
    if min(labels.sum(), truth.sum(), images - labels.sum()) < 200:
        return  # too few for an area that is near its mean

    noise = of_true_prevalence(sensitivity, specificity, truth.mean())

    assert noise.ppv == pytest.approx(kinds[3].sum() / labels.sum(), abs=0.12)
    few = min(labels.sum(), images - labels.sum())
    assert auroc(labels, scores) == pytest.approx(noise.seen(auroc(truth, scores)), abs=5 * 0.35 / few**0.5)


@given(st.floats(0.5, 1), st.floats(0.55, 1), st.floats(0.01, 0.99), st.floats(0, 1))
def test_what_is_seen_leads_back_to_the_truth(sensitivity, specificity, prevalence, true):
    noise = of_true_prevalence(sensitivity, specificity, prevalence)
    labelled = sensitivity * prevalence + (1 - specificity) * (1 - prevalence)

    by_specificity = of_specificity(sensitivity, specificity, labelled)
    by_ppv = of_ppv(sensitivity, noise.ppv, labelled)

    for found in (by_specificity, by_ppv):
        assert (found.ppv, found.npv) == pytest.approx((noise.ppv, noise.npv), abs=1e-9)
    if noise.ppv + noise.npv - 1 > 0.02:
        assert by_specificity.true(noise.seen(true)) == pytest.approx(true, abs=1e-6)


@pytest.mark.parametrize(
    ("sensitivity", "specificity", "labelled", "reason"),
    [
        (0.9, 0.99, 0.0034, TOO_FEW_POSITIVES),
        (0.9, 0.75, 0.25, TOO_FEW_POSITIVES),
        (0.9, 0.99, 0.95, TOO_FEW_NEGATIVES),
        (0.9, 0.99, 0.9, TOO_FEW_NEGATIVES),
        (0.5, 0.5, 0.5, TELL_NOTHING),
        (0.2, 0.1, 0.5, TELL_NOTHING),
    ],
)
def test_what_the_prevalence_rules_out_is_said(sensitivity, specificity, labelled, reason):
    assert of_specificity(sensitivity, specificity, labelled) == reason


def test_a_ppv_that_leaves_too_few_negatives_is_said():
    assert of_ppv(0.1, 0.5, 0.2) == TOO_FEW_NEGATIVES
    assert of_ppv(0.5, 0.5, 0.2) == Noise(0.5, 1 - 0.1 / 0.8)


def test_each_class_is_judged_at_its_own_prevalence_and_what_cannot_be_is_no_number():
    areas = {
        "Pneumothorax": Interval(0.87),
        "Edema": Interval(0.86),
        "Hernia": Interval(0.9),
        "Mass": Interval(None),
    }
    classes = {"Pneumothorax": class_of(104, 1000), "Edema": class_of(36, 1000), "Hernia": class_of(3, 1000)}

    found = label_noise(areas, classes, True).classes

    assert list(found) == ["Pneumothorax", "Edema", "Hernia"]
    values = [(each.value, each.reason) for each in found["Pneumothorax"]]
    # By hand: 90/99 of 10.4% means 10.5618% true, PPV .914, NPV .98821.
    assert values[1] == (pytest.approx(0.5 + 0.37 / (0.914 + 0.98821 - 1), abs=2e-4), None)
    assert values[3] == (None, ABOVE_1)
    assert found["Pneumothorax"][3].labels == NoisyLabels(0.458, None, 0.458)
    assert [each.reason for each in found["Edema"]] == [None, None, TOO_FEW_POSITIVES]
    assert [each.reason for each in found["Hernia"]] == [TOO_FEW_POSITIVES] * 3
    assert len(label_noise(areas, classes, False).classes["Pneumothorax"]) == 3
    low = label_noise({"Edema": Interval(0.1)}, {"Edema": class_of(100, 1000)}, True).classes["Edema"]
    assert [each.reason for each in low] == [None, None, BELOW_0]


def test_an_evaluation_holds_it_for_every_class_that_has_an_area():
    scored = make_predictions()
    scored.labels[:, 2] = 0

    found = evaluate(scored, draws=0)

    assert list(found.label_noise.classes) == ["Mass", "Nodule"]
    for kind in ("multilabel", "multiclass"):
        stored = read_expected(kind)
        assert stored.label_noise.classes["Mass"][0].labels == NoisyLabels(0.99, 0.99, None)
        assert next(map(len, stored.label_noise.classes.values())) == 3 + (kind == "multilabel")
