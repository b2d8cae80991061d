"""The report: one HTML file that needs nothing else, for a screen of any width and for paper.

It shows what metrics.json holds, and nothing that is not in it. The same metrics give the same bytes.
"""

import base64
import csv
import io
import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image

from cxr_records import storage
from cxr_records.dataset import Dataset, open_dataset
from cxr_records.errors import CxrError
from cxr_records.trainers import digests, runs
from cxr_records.trainers.evaluation import pages, plots
from cxr_records.trainers.evaluation.operating_points import FEW_PATIENTS
from cxr_records.trainers.evaluation.results import (
    ALPHA,
    Difference,
    Evaluation,
    Interval,
    Multiclass,
    RunComparison,
    mean_over,
)
from cxr_records.trainers.evaluation.summary import number

REPORT_FILE = "report.html"
THUMBNAIL = 160  # pixels
_SMALLEST_SCALE = 0.02  # of the bars of differences, to either side of 0

History = Sequence[Mapping[str, float]]


def read_history(run: str) -> list[dict[str, float]]:
    """Returns the rows of a run's history.csv; none where there is no such file, or a damaged one."""
    path = storage.join(run, runs.HISTORY_FILE)
    if not storage.exists(path):
        return []
    data = storage.read_bytes(path)
    try:
        digests.check(path, data)
    except CxrError:  # which the evaluation says
        return []
    rows = csv.DictReader(io.StringIO(data.decode()))
    return [{key: float(value) for key, value in row.items() if key != runs.PHASE} for row in rows]


def read_thumbnails(evaluation: Evaluation, dataset: Dataset | None = None) -> dict[str, np.ndarray]:
    """Returns the images of the mistakes from the run's dataset: uint8 [size, size] by image_id.

    None of them where the dataset is no longer at hand, or another one is in its place.

    Args:
        evaluation: of a run.
        dataset: the run's, where it is open already.
    """
    wanted = sorted({mistake.image_id for mistake in evaluation.mistakes})
    path = evaluation.identity.dataset
    if path is None:
        return {}
    try:
        dataset = dataset or open_dataset(path)
        if dataset.id != evaluation.identity.dataset_id:
            return {}
        rows = dataset.records.filter(
            (pc.field("copy") == 0) & pc.field("image_id").isin(pa.array(wanted, pa.string()))
        )
    except (CxrError, OSError):
        return {}
    return {
        example["image_id"][0].decode(): dataset.image_format.decode(example["image"][0])
        for example in dataset.examples(rows)
    }


def write_report(
    evaluation: Evaluation,
    out: str,
    history: History | None = None,
    thumbnails: Mapping[str, np.ndarray] | None = None,
) -> None:
    """Writes the report of one evaluation.

    Args:
        evaluation: what metrics.json holds.
        out: path or URL of the HTML file.
        history: rows of history.csv, for the training curves.
        thumbnails: uint8 [height, width] by image_id, for the mistakes.
    """
    several, calibration = evaluation.multiclass, evaluation.calibration
    page = pages.render(
        "report.html",
        title=evaluation.identity.name,
        evaluation=evaluation,
        few_patients=FEW_PATIENTS,
        scale_start=_scale_start(evaluation),
        confusions=list(_confusions(several)) if several else [],
        curves={name: _curve_pictures(evaluation, name) for name in evaluation.curves},
        reliability={
            name: plots.reliability(
                each.bins,
                each.bins_calibrated,
                f"Reliability of {name}, ECE {number(each.ece)}, calibrated {number(each.ece_calibrated)}",
            )
            for name, each in (calibration.classes if calibration else {}).items()
        },
        decisions={
            name: plots.decision_curve(curve, f"Net benefit of {name} by threshold") if curve else None
            for name, curve in (evaluation.decisions or {}).items()
        },
        thumbnails={image_id: _data_uri(pixels) for image_id, pixels in (thumbnails or {}).items()},
        training=_training_pictures({evaluation.identity.name: history} if history else {}),
    )
    storage.write_bytes(out, page)


def write_comparison(
    comparison: RunComparison, out: str, histories: Mapping[str, History] | None = None
) -> None:
    """Writes several evaluations side by side, with their paired differences.

    Args:
        comparison: what comparison.json holds.
        out: path or URL of the HTML file.
        histories: rows of history.csv by run.
    """
    names = _short_names([str(evaluation.identity.run) for evaluation in comparison.runs])
    fitted_on = [evaluation.baselines.fitted_on for evaluation in comparison.runs]
    if len(set(fitted_on)) == 1:
        fitted_on = fitted_on[:1]
    else:
        fitted_on = [f"{name}: {each}" for name, each in zip(names.values(), fitted_on, strict=True)]
    page = pages.render(
        "comparison.html",
        title="Comparison of " + ", ".join(names.values()),
        names=list(names.values()),
        drawn=comparison.drawn_words,
        few_patients=FEW_PATIENTS,
        evaluations=comparison.runs,
        said=comparison.said,
        alpha=ALPHA,
        fitted_on=fitted_on,
        differences=[
            (difference, names[difference.a], names[difference.b], _scale(difference))
            for difference in comparison.differences
        ],
        training=_training_pictures({names[run]: rows for run, rows in (histories or {}).items() if rows}),
    )
    storage.write_bytes(out, page)


def _scale_start(evaluation: Evaluation) -> float:
    """Where the scale of the bars begins: a tenth at or below every AUROC and bound, and at most 0.5."""
    numbers = [n for each in evaluation.auroc.values() for n in (each.low, each.image_low, each.value)]
    return max(0.0, float(np.floor(min([0.5, *(n for n in numbers if n is not None)]) * 10) / 10))


def _scale(difference: Difference) -> float:
    """How far the scale of the bars goes to either side of 0: a number that is written with one digit."""
    bounds = [bound for each in difference.auroc.values() for bound in (each.low, each.high)]
    widest = max([_SMALLEST_SCALE, *(abs(bound) for bound in bounds if bound is not None)])
    power = 10.0 ** math.floor(math.log10(widest))
    return round(math.ceil(widest / power - 1e-9) * power, 10)


def _confusions(
    several: Multiclass,
) -> Iterator[tuple[str, Interval, list[tuple[str, list[tuple[int, float]]]]]]:
    """Title, accuracy and rows of each matrix; a row is a name with counts and their shares of the row."""
    for title, accuracy, counts in (
        ("Largest score", several.balanced_accuracy, several.confusion),
        (
            "Prior-corrected: largest score relative to its mean",
            several.prior_corrected_balanced_accuracy,
            several.prior_corrected_confusion,
        ),
    ):
        if accuracy is None or counts is None:
            continue
        rows = [
            (name, [(count, count / max(sum(row), 1)) for count in row])
            for name, row in zip(several.class_names, counts, strict=True)
        ]
        yield title, accuracy, rows


def _curve_pictures(evaluation: Evaluation, name: str) -> str | None:
    """Both curves of a class."""
    curves, precision = evaluation.curves[name], evaluation.auprc[name]
    if curves is None:
        return None
    area = number(evaluation.auroc[name].value)
    pictures = plots.roc({name: curves.roc}, f"ROC curve of {name}, AUROC {area}")
    pictures += plots.precision_recall(
        curves.pr,
        precision.prevalence,
        f"Precision-recall curve of {name}, AUPRC {number(precision.value)}",
    )
    return pictures


def _training_pictures(histories: Mapping[str, History]) -> list[tuple[str, str]]:
    """Title and picture of each column of history.csv that is shown."""
    if not histories:
        return []
    classes = {key for rows in histories.values() for key in rows[-1] if key.startswith(runs.CLASS_AUROC)}
    lacks = [key for key in classes if any(math.isnan(rows[-1].get(key, 0)) for rows in histories.values())]
    over = mean_over([key.removeprefix(runs.CLASS_AUROC) for key in sorted(lacks)], len(classes))
    shown = (
        ("Loss", ("loss", "val_loss")),
        (f"Validation macro AUROC{over}", ("val_macro_auroc",)),
        ("Learning rate", ("learning_rate",)),
    )
    return [(title, plots.history(histories, keys, f"{title} by epoch")) for title, keys in shown]


def _data_uri(pixels: np.ndarray) -> str:
    image = Image.fromarray(pixels)
    image.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)
    out = io.BytesIO()
    image.save(out, "png", optimize=True)
    return "data:image/png;base64," + base64.b64encode(out.getvalue()).decode()


def _short_names(paths: Sequence[str]) -> dict[str, str]:
    """The last parts of paths, or the whole paths where those are alike."""
    short = [path.rstrip("/").rsplit("/", 1)[-1] for path in paths]
    return dict(zip(paths, short if len(set(short)) == len(paths) else paths, strict=True))
