import numpy as np
import pytest

from cxr_records.augment import apply, augmentation_for
from cxr_records.contact_sheet import THUMBNAIL, caption, contact_sheet, sheet_of_dataset


def image(shape, grey):
    return np.full(shape, grey, np.uint8)


def test_a_sheet_has_a_line_per_image_and_a_column_per_copy():
    original = np.random.default_rng(0).integers(0, 256, (64, 64), np.uint8)
    ten = [augmentation_for(0, "a.png", copy) for copy in range(1, 11)]
    copies = [(augmentation, apply(original, augmentation)) for augmentation in ten]

    one = contact_sheet([("Hernia\na.png", original, copies)])
    two = contact_sheet([("Hernia\na.png", original, copies), ("Mass", original, copies[:2])])

    assert one.mode == "L"
    assert one.width > 11 * THUMBNAIL
    assert two.width == one.width
    assert two.height - one.height > THUMBNAIL


def test_each_image_stands_whole_in_its_place():
    sheet = np.asarray(
        contact_sheet(
            [("Hernia", image((50, 50), 90), [({"function": "blur", "sigma": 0.5}, image((50, 25), 200))])]
        )
    )
    assert (sheet == 90).sum() >= THUMBNAIL**2
    assert (sheet == 200).sum() >= THUMBNAIL * THUMBNAIL // 2


def test_captions_are_short():
    assert caption({"function": "shift", "right": -0.0214, "down": 0.05}) == (
        "shift",
        "right -0.0214\ndown 0.05",
    )
    assert caption({"function": "noise", "sigma": 0.0123456, "seed": 7}) == ("noise", "sigma 0.0123\nseed 7")


def test_long_findings_stay_beside_the_images():
    title = "Atelectasis|Cardiomegaly|Consolidation|Edema|Effusion|Infiltration|Pleural_Thickening"
    sheet = np.asarray(contact_sheet([(title, image((9, 9), 0), [])]))
    # Nothing of the title is drawn over the black original.
    left = 162
    assert (sheet[12 : 12 + THUMBNAIL, left : left + THUMBNAIL] == 0).all()


def test_an_empty_sheet_is_refused():
    with pytest.raises(ValueError, match="a contact sheet needs at least one image"):
        contact_sheet([])


def test_the_sheet_of_a_dataset_has_a_row_of_ten_copies_for_each_rare_class(dataset):
    sheet = sheet_of_dataset(str(dataset), num_images=4)

    row_of_ten = contact_sheet(
        [("a", np.zeros((64, 64), np.uint8), [({"function": "flip"}, image((64, 64), 9))] * 10)]
    )
    assert sheet.width == row_of_ten.width
    assert sheet.height - row_of_ten.height == 3 * (row_of_ten.height - 12)


def test_the_sheet_of_a_dataset_is_the_same_each_time(dataset):
    assert sheet_of_dataset(str(dataset)).tobytes() == sheet_of_dataset(str(dataset)).tobytes()
