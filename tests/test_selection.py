"""Which classes choose the best epoch."""

import numpy as np
import pytest

from cxr_records.trainers.selection import Selection, choose

NAMES = ("Mass", "Nodule", "Edema")


def rows_of(*positives: int, images: int = 40) -> np.ndarray:
    """Rows in which so many of the first images hold each class."""
    return np.stack([np.arange(images) < count for count in positives], axis=1).astype(np.uint8)


def test_a_class_takes_part_from_so_many_positive_images_on():
    chosen = choose(NAMES, rows_of(9, 10, 11), np.arange(40), 10)

    assert chosen == Selection(
        ("Nodule", "Edema"),
        "the best epoch is chosen by the mean AUROC of the 2 of 3 classes (Nodule, Edema) with at least 10 "
        "positive images of 3 patients in validation",
    )


def test_many_images_of_two_patients_are_not_enough():
    patients = np.where(np.arange(40) < 20, np.arange(40) % 2, np.arange(40))

    assert choose(NAMES, rows_of(20, 21, 0), patients, 10).names == ("Nodule",)


def test_a_class_that_nearly_all_images_hold_takes_no_part():
    assert choose(NAMES, rows_of(31, 30, 40), np.arange(40), 10).names == ("Nodule",)


def test_all_classes_are_not_listed():
    assert choose(NAMES, rows_of(12, 12, 12), np.arange(40), 10).text == (
        "the best epoch is chosen by the mean AUROC of the 3 of 3 classes with at least 10 positive images "
        "of 3 patients in validation"
    )


def test_where_none_has_enough_those_that_have_any_choose_and_that_is_said():
    assert choose(NAMES, rows_of(2, 0, 40), np.arange(40), 10) == Selection(
        ("Mass",),
        "no class has at least 10 positive images of 3 patients in validation: the best epoch is chosen by "
        "the mean AUROC of the 1 of 3 classes (Mass) with any",
    )


@pytest.mark.parametrize("count", [0, 40])
def test_where_nothing_can_be_ranked_the_last_epoch_is_kept(count):
    assert choose(("Mass",), rows_of(count), np.arange(40), 10) == Selection(
        (), "validation ranks no class: no early stopping, the last epoch's weights are kept"
    )
