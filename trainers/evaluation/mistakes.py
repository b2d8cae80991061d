"""The gravest mistakes at the operating points: the images to look at first."""

from collections.abc import Iterator

import numpy as np

from cxr_records.trainers.evaluation.bootstrap import DIGITS
from cxr_records.trainers.evaluation.operating_points import choose_thresholds
from cxr_records.trainers.evaluation.predictions import Predictions
from cxr_records.trainers.evaluation.results import Mistake

_SHOWN = 12  # of each kind, shared out among the classes, and at least one for each


def mistakes(scored: Predictions, validation: Predictions | None = None) -> Iterator[Mistake]:
    """Yields negatives called positive, highest score first, and positives called negative, lowest first.

    Called so at the threshold of the class's operating point; a class that has none has no mistakes.

    Args:
        scored: what is measured.
        validation: on which operating points are chosen; None for `scored` itself.
    """
    each, thresholds = max(1, _SHOWN // len(scored.names)), choose_thresholds(scored, validation)
    for place, (name, threshold) in enumerate(zip(scored.names, thresholds, strict=True)):
        if threshold is None:
            continue
        scores, labels = scored.scores[:, place], scored.labels[:, place]
        called = scores >= threshold
        for kind, wrong, order in (
            ("false positive", called & (labels == 0), -scores),
            ("false negative", ~called & (labels == 1), scores),
        ):
            rows = np.flatnonzero(wrong)
            for row in rows[np.argsort(order[rows], kind="stable")][:each]:
                yield Mistake(
                    class_name=name,
                    kind=kind,
                    image_id=str(scored.image_ids[row]),
                    patient_id=int(scored.patient_ids[row]),
                    score=round(float(scores[row]), DIGITS),
                    threshold=threshold,
                )
