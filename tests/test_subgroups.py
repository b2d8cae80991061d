"""Subgroups: who belongs to which, and what is measured of it."""

import dataclasses

import numpy as np
import pytest
from evaluations import NAMES, make_predictions

from cxr_records.trainers.evaluation.metrics import auroc
from cxr_records.trainers.evaluation.subgroups import subgroups


@pytest.mark.parametrize(
    ("age", "group"),
    [
        (-1, "unknown"),
        (0, "0-17"),
        (17, "0-17"),
        (18, "18-39"),
        (39, "18-39"),
        (40, "40-59"),
        (59, "40-59"),
        (60, "60-79"),
        (79, "60-79"),
        (80, "80 and over"),
        (155, "80 and over"),
        (200, "80 and over"),
    ],
)
def test_both_ends_of_a_band_of_ages_belong_to_it(age, group):
    scored = dataclasses.replace(make_predictions(n=6), ages_years=np.full(6, age))

    ages = [each for each in subgroups(scored) if each.by == "age"]

    assert [(each.group, each.images, each.patients) for each in ages] == [(group, 6, 3)]


def test_every_image_is_in_one_group_of_each_kind_and_unknown_is_a_group():
    scored = dataclasses.replace(
        make_predictions(n=9),
        views=np.array(["PA", "AP", ""] * 3, object),
        sexes=np.array(["F", "F", "M", "M", "M", "", "", "", ""], object),
    )

    counts = {(each.by, each.group): each.images for each in subgroups(scored) if each.by != "age"}

    assert counts == {
        ("view", "PA"): 3, ("view", "AP"): 3, ("view", "unknown"): 3,
        ("sex", "F"): 2, ("sex", "M"): 3, ("sex", "unknown"): 4,
    }  # fmt: skip


def test_a_groups_numbers_are_those_of_its_images_alone():
    scored = make_predictions(n=90)
    scored.labels[scored.sexes == "F", 0] = 0

    found = {each.group: each for each in subgroups(scored) if each.by == "sex"}

    assert found["F"].auroc["Mass"].value is None
    for sex, group in found.items():
        rows = scored.sexes == sex
        areas = []
        for place, name in enumerate(NAMES):
            labels, scores = scored.labels[rows, place], scored.scores[rows, place]
            assert group.auroc[name].positives == labels.sum()
            if labels.any():
                areas.append(auroc(labels, scores))
                assert group.auroc[name].value == pytest.approx(areas[-1], abs=1e-6)
        assert group.macro_auroc.value == pytest.approx(np.mean(areas), abs=1e-6)


def test_the_mean_of_a_small_group_has_no_interval_where_draws_lack_a_class():
    scored = dataclasses.replace(
        make_predictions(n=200), sexes=np.where(np.arange(200) < 60, "F", "M").astype(object)
    )
    scored.labels[:60, 0] = 0
    scored.labels[:2, 0] = 1  # of one patient, whom 36% of the draws lack

    found = {each.group: each for each in subgroups(scored, draws=200) if each.by == "sex"}

    assert found["M"].macro_auroc.low < found["M"].macro_auroc.value < found["M"].macro_auroc.high
    assert (found["F"].macro_auroc.low, found["F"].macro_auroc.image_low) == (None, None)
    share = int(found["F"].macro_auroc.no_interval.removeprefix("only ")[:2])
    assert 50 < share < 75
    assert found["F"].macro_auroc.no_interval == f"only {share}% of the draws hold every class"
    assert found["F"].auroc["Nodule"].low < found["F"].auroc["Nodule"].high


@pytest.mark.parametrize(("patients", "few"), [(29, True), (30, False)])
def test_few_are_fewer_than_thirty_positive_patients_of_the_group(patients, few):
    scored = dataclasses.replace(
        make_predictions(names=("Mass",), n=160), views=np.array(["PA", "AP"] * 80, object)
    )
    scored.labels[:] = 0
    scored.labels[: 2 * patients] = 1  # one image in each view

    assert [each.auroc["Mass"].few for each in subgroups(scored) if each.by == "view"] == [few, few]
