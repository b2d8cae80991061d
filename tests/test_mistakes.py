"""Mistakes are those at the operating point, the gravest first."""

from collections import Counter

import numpy as np
import pytest
from evaluations import NAMES, make_predictions

from cxr_records.trainers.evaluation.metrics import youden_threshold
from cxr_records.trainers.evaluation.mistakes import mistakes


@pytest.mark.parametrize("apart", [False, True], ids=["chosen on itself", "chosen on validation"])
def test_mistakes_are_called_wrongly_at_the_operating_point_and_the_farthest_from_it_come_first(apart):
    scored = make_predictions()
    validation = make_predictions(seed=5, split="validation") if apart else None

    found = list(mistakes(scored, validation))

    for place, name in enumerate(NAMES):
        chosen_on = validation or scored
        threshold = youden_threshold(chosen_on.labels[:, place], chosen_on.scores[:, place])
        scores, truth = scored.scores[:, place], scored.labels[:, place] == 1
        for kind, expected in (
            ("false positive", sorted(scores[~truth & (scores >= threshold)], reverse=True)[:4]),
            ("false negative", sorted(scores[truth & (scores < threshold)])[:4]),
        ):
            mine = [each for each in found if (each.class_name, each.kind) == (name, kind)]
            assert [each.score for each in mine] == expected
            assert {each.threshold for each in mine} <= {threshold}
            rows = [int(each.image_id[:8]) for each in mine]
            assert [scores[row] for row in rows] == expected
            assert [each.patient_id for each in mine] == [row // 2 for row in rows]
    assert {each.kind for each in found} == {"false positive", "false negative"}


def test_a_positive_below_other_positives_but_called_positive_is_no_mistake():
    scored = make_predictions(names=("Mass",), n=6)
    scored.labels[:, 0] = [1, 1, 1, 0, 0, 0]
    scored.scores[:, 0] = [0.9, 0.8, 0.6, 0.5, 0.2, 0.1]

    assert list(mistakes(scored)) == []


def test_the_threshold_itself_is_called_positive():
    scored, validation = make_predictions(names=("Mass",), n=4), make_predictions(names=("Mass",), n=2)
    validation.labels[:, 0], validation.scores[:, 0] = [1, 0], [0.5, 0.1]
    scored.labels[:, 0], scored.scores[:, 0] = [0, 1, 0, 1], [0.5, 0.5, 0.49, 0.49]

    (called, missed) = mistakes(scored, validation)

    assert (called.kind, called.score, called.image_id) == ("false positive", 0.5, "00000000_000.png")
    assert (missed.kind, missed.score, missed.image_id) == ("false negative", 0.49, "00000003_000.png")


def test_an_image_that_was_not_judged_is_no_mistake():
    scored = make_predictions(names=("Mass",), n=4)
    scored.labels[:, 0], scored.scores[:, 0] = [1, 0, -1, -1], [0.9, 0.1, 0.95, 0.05]

    assert list(mistakes(scored)) == []


def test_a_class_without_an_operating_point_has_no_mistakes():
    scored = make_predictions(names=("Mass", "Hernia"))
    scored.labels[:, 1] = 0

    assert {each.class_name for each in mistakes(scored)} == {"Mass"}


@pytest.mark.parametrize(("classes", "each"), [(1, 12), (3, 4), (14, 1)])
def test_twelve_mistakes_of_each_kind_are_shared_out_and_every_class_has_one(classes, each):
    scored = make_predictions(names=tuple(f"class {i}" for i in range(classes)), n=240)
    scored.scores[:] = np.random.default_rng(1).random(scored.scores.shape).round(4)

    counts = Counter((mistake.class_name, mistake.kind) for mistake in mistakes(scored))

    assert counts == dict.fromkeys(
        [(name, kind) for name in scored.names for kind in ("false positive", "false negative")], each
    )
