"""Pictures of maps: what is drawn where, and whose they are."""

import io

import numpy as np
from PIL import Image

from cxr_records.boxes import Box
from cxr_records.trainers.overlays import SIDE, is_ours, overlay, sheet

GREY = np.full((64, 64), 100, np.uint8)
BOX = Box("a.png", "Mass", 256, 512, 128, 256)


def hot() -> np.ndarray:
    """A map that is largest in one corner and below 0 in another."""
    heat = np.zeros((16, 16), np.float32)
    heat[2:5, 2:5], heat[12:15, 12:15] = 1, -5
    return heat


def test_the_image_is_coloured_where_the_map_is_above_0_and_nowhere_else():
    drawn = np.asarray(overlay(GREY, hot(), []), int)

    assert drawn.shape == (SIDE, SIDE, 3)
    red, _, blue = drawn[140, 90]
    assert red > blue + 60
    for row, column in ((430, 430), (40, 430), (430, 40)):
        assert drawn[row, column].tolist() == [100, 100, 100]


def test_a_map_that_is_nowhere_above_0_leaves_the_image_as_it_is():
    assert (np.asarray(overlay(GREY, -np.abs(hot()), [])) == 100).all()


def test_a_box_is_framed_at_half_of_its_coordinates():
    drawn = np.asarray(overlay(GREY, np.zeros((16, 16), np.float32), [BOX]), int)

    for row, column in ((256, 160), (384, 160), (300, 128), (300, 192)):
        assert drawn[row, column].tolist() == [80, 220, 255]
    assert drawn[300, 160].tolist() == [100, 100, 100]


def test_the_same_contents_give_the_same_bytes_and_a_caption_of_any_length_fits():
    drawn = overlay(GREY, hot(), [BOX])

    one, two = (sheet(GREY, drawn, [BOX], ["Mass: score 0.5", "x" * 5000]) for _ in range(2))

    assert one == two
    with Image.open(io.BytesIO(one)) as image:
        pixels = np.asarray(image.convert("L"))
        assert image.width == 2 * SIDE + 36
    assert (pixels[:, -8:] == 24).all()
    assert pixels[SIDE + 24 :].max() > 200


def test_only_pictures_of_this_command_pass_for_ours():
    drawn = overlay(GREY, hot(), [])
    out = io.BytesIO()
    drawn.save(out, "PNG")

    assert is_ours(sheet(GREY, drawn, [], ["Mass"]))
    assert not is_ours(out.getvalue())
    assert not is_ours(b"no picture")
