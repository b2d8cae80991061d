import statistics

import pytest

from cxr_records import lookalike_patients
from cxr_records.findings import FINDINGS
from cxr_records.lookalike_patients import plan_images


def labels_by_patient(plan, is_test):
    patients = {name: set() for name in FINDINGS}
    for image in plan:
        for name in image.findings:
            if image.is_test == is_test:
                patients[name].add(image.patient)
    return patients


@pytest.mark.parametrize("num_images", [50, 51, 80, 200, 600, 2000])
@pytest.mark.parametrize("seed", range(4))
def test_every_finding_is_in_three_train_val_and_two_test_patients(num_images, seed):
    plan = plan_images(num_images, seed)
    assert len(plan) == num_images
    assert len({image.image_id for image in plan}) == num_images
    assert all(len(patients) >= 3 for patients in labels_by_patient(plan, False).values())
    assert all(len(patients) >= 2 for patients in labels_by_patient(plan, True).values())
    assert any(not image.findings for image in plan if image.is_test)


@pytest.mark.parametrize("seed", range(4))
def test_from_600_images_every_finding_also_occurs_alone(seed):
    alone = [image for image in plan_images(600, seed) if len(image.findings) == 1]
    assert all(len(patients) >= 3 for patients in labels_by_patient(alone, False).values())
    assert all(len(patients) >= 2 for patients in labels_by_patient(alone, True).values())


def test_large_sets_are_as_unbalanced_as_the_real_one():
    plan = plan_images(20_000, 0)
    for is_test, shares in lookalike_patients._PREVALENCE.items():
        part = [image for image in plan if image.is_test == is_test]
        for name, share in zip(FINDINGS, shares, strict=True):
            found = sum(name in image.findings for image in part)
            assert abs(found - share * len(part)) <= 1, name
    none = [not image.findings for image in plan]
    assert 0.52 < statistics.mean(none) < 0.57  # 0.538 in the real set
    edema = [image for image in plan if "Edema" in image.findings and not image.is_test]
    assert 0.3 < statistics.mean("Infiltration" in image.findings for image in edema) < 0.55  # 0.43
    assert max(len(image.findings) for image in plan) >= 5


def test_patients_have_one_image_in_the_middle_and_a_heavy_tail():
    counts: dict[bool, dict[int, int]] = {False: {}, True: {}}
    for image in plan_images(20_000, 0):
        counts[image.is_test][image.patient] = counts[image.is_test].get(image.patient, 0) + 1
    every = [*counts[False].values(), *counts[True].values()]
    assert not counts[False].keys() & counts[True].keys()
    assert statistics.median(every) == 1
    assert 3.3 < statistics.mean(every) < 4.2  # 3.64
    assert 2.8 < statistics.mean(counts[False].values()) < 3.6  # 3.09
    assert 8 < statistics.mean(counts[True].values()) < 10.5  # 9.15
    assert max(every) > 100


def test_other_seeds_and_sizes_make_other_sets():
    plans = [plan_images(100, 0), plan_images(100, 1), plan_images(101, 0)]
    assert plans[0] == plan_images(100, 0)
    assert len({str(plan[:50]) for plan in plans}) == 3
