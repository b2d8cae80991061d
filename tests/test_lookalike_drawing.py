import dataclasses
import statistics

import numpy as np
import pytest

from cxr_records.findings import FINDINGS
from cxr_records.lookalike_drawing import draw_image
from cxr_records.lookalike_patients import plan_images


@pytest.mark.parametrize("size", [33, 64, 100, 128, 300])
def test_any_size_is_drawn_with_dark_lungs_beside_a_bright_heart(size):
    image = next(image for image in plan_images(600, 0) if not image.findings)
    pixels = draw_image(image, size, 0).astype(float) / 255
    assert pixels.shape == (size, size)

    def at(x, y):
        row, column = int(y * size), int(x * size)
        return pixels[row - 1 : row + 2, column - 1 : column + 2].mean()

    assert at(0.28, 0.5) < 0.75 * at(0.53, 0.66)
    assert at(0.74, 0.4) < 0.75 * at(0.53, 0.66)
    assert pixels.max() > 0.6


@pytest.mark.parametrize("name", FINDINGS)
def test_each_finding_changes_what_is_seen_at_128_pixels(name):
    healthy = [image for image in plan_images(600, 0) if not image.findings][:8]
    for image in healthy:
        without = draw_image(image, 128, 0).astype(float)
        with_it = draw_image(dataclasses.replace(image, findings=(name,)), 128, 0).astype(float)
        # Averages over 2 x 2 pixels: what is left is no noise, whose deviation is below 2 grey levels.
        change = np.abs(with_it - without).reshape(64, 2, 64, 2).mean((1, 3))
        assert (change > 20).sum() >= 10


def test_images_of_one_patient_look_alike():
    plan = [image for image in plan_images(600, 0) if not image.findings and image.view == "PA"]
    same, other = [], []
    for first, second, third in zip(plan, plan[1:], plan[2:], strict=False):
        drawn = [draw_image(image, 64, 0).astype(float) for image in (first, second, third)]
        drawn = [pixels - pixels.mean() for pixels in drawn]
        if first.patient == second.patient != third.patient:
            same.append(np.abs(drawn[0] - drawn[1]).mean())
            other.append(np.abs(drawn[0] - drawn[2]).mean())
    assert len(same) >= 10
    assert statistics.median(same) < 0.8 * statistics.median(other)
