"""The plots of a report: small SVG pictures by matplotlib that follow the page's colours.

Text and axes take the page's text colour (currentColor), so that they can be read on light and dark; series
have colours that can be told apart by the colour-blind (Okabe and Ito) on both. The same numbers give the
same bytes.
"""

import io
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from cxr_records.trainers.evaluation.results import Bin, Decisions, PrecisionRecallCurve, RocCurve

BLUE, ORANGE, GREEN, PINK, GREY = "#3d85c6", "#d98318", "#00916e", "#c0609a", "#8b9097"
SERIES = (BLUE, ORANGE, GREEN, PINK, "#7a6ff0", "#b08900")
_TEXT = "#010203"  # stands for the page's text colour until the picture is written
_STYLE: dict[Any, Any] = {
    "svg.hashsalt": "cxr_records",
    "svg.fonttype": "none",
    "font.size": 9,
    "axes.edgecolor": _TEXT,
    "axes.labelcolor": _TEXT,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "text.color": _TEXT,
    "xtick.color": _TEXT,
    "ytick.color": _TEXT,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "lines.linewidth": 1.6,
}
_POINTS = 90  # of a curve, which is more than its pixels tell


def roc(curves: Mapping[str, RocCurve], label: str) -> str:
    """Returns an SVG of ROC curves.

    Args:
        curves: by name.
        label: what the picture shows, for those who cannot see it.
    """

    def draw(axes: Axes) -> None:
        axes.plot([0, 1], [0, 1], color=GREY, linewidth=0.8, linestyle=(0, (3, 3)))
        for (name, curve), colour in zip(curves.items(), SERIES, strict=False):
            x, y = _thinned(curve.fpr, curve.tpr)
            axes.plot(x, y, color=colour, label=name)
        _unit(axes, "1 - specificity", "sensitivity")

    return _picture(draw, label, legend=len(curves) > 1)


def precision_recall(curve: PrecisionRecallCurve, prevalence: float, label: str) -> str:
    """Returns an SVG of a precision-recall curve, as the steps that average precision is the area under.

    The prevalence, which chance would give, is dashed.
    """

    def draw(axes: Axes) -> None:
        axes.axhline(prevalence, color=GREY, linewidth=0.8, linestyle=(0, (3, 3)))
        recall, precision = (0.0, *curve.recall), (curve.precision[0], *curve.precision)
        axes.plot(recall, precision, color=BLUE, drawstyle="steps-pre")
        _unit(axes, "recall", "precision")

    return _picture(draw, label)


def reliability(before: Sequence[Bin], after: Sequence[Bin] | None, label: str) -> str:
    """Returns an SVG of the share of positives against the mean score, bin by bin.

    Args:
        before: calibration.
        after: it; None where there was none.
        label: what the picture shows.
    """
    series = [each for each in (before, after) if each is not None]

    def draw(axes: Axes) -> None:
        top = max([0.02, *(max(b.mean_score, b.positive_share) for bins in series for b in bins)]) * 1.05
        axes.plot([0, top], [0, top], color=GREY, linewidth=0.8, linestyle=(0, (3, 3)))
        for bins, colour in zip(series, (BLUE, ORANGE), strict=False):
            x, y = [each.mean_score for each in bins], [each.positive_share for each in bins]
            axes.plot(x, y, color=colour, marker="o", markersize=3)
        axes.set(xlim=(0, top), ylim=(0, top), xlabel="mean score", ylabel="share positive")
        axes.locator_params(nbins=4)

    return _picture(draw, label)


def decision_curve(curve: Decisions, label: str) -> str:
    """Returns an SVG of net benefit against the threshold: the model's, to treat all, to treat none."""

    def draw(axes: Axes) -> None:
        axes.axhline(0, color=GREY, linewidth=0.8)
        axes.plot(curve.thresholds, curve.treat_all, color=GREY, linewidth=0.8, linestyle=(0, (3, 3)))
        if curve.low is not None and curve.high is not None:
            axes.fill_between(curve.thresholds, curve.low, curve.high, color=BLUE, alpha=0.2, linewidth=0)
        axes.plot(curve.thresholds, curve.model, color=BLUE)
        top = max(0.0, *curve.model, *curve.treat_all)
        axes.set(xlim=(0, curve.thresholds[-1]), ylim=(-0.25 * top, 1.08 * top))
        axes.set(xlabel="threshold probability", ylabel="net benefit")
        axes.locator_params(nbins=4)

    return _picture(draw, label)


def history(rows: Mapping[str, Sequence[Mapping[str, float]]], keys: Sequence[str], label: str) -> str:
    """Returns an SVG of columns of history.csv against the epoch.

    Args:
        rows: of one or more runs, by name.
        keys: columns to draw; those that a run lacks are left out.
        label: what the picture shows.
    """
    lines = [(name, key) for name in rows for key in keys if key in rows[name][0]]

    def draw(axes: Axes) -> None:
        for (name, key), colour in zip(lines, SERIES * 9, strict=False):
            text = key if len(rows) == 1 else f"{name} {key}" if len(keys) > 1 else name
            epochs = [row["epoch"] for row in rows[name]]
            values = [row[key] for row in rows[name]]
            mark = "o" if len(epochs) == 1 else None
            axes.plot(epochs, values, color=colour, label=text.replace("_", " "), marker=mark)
        axes.set(xlabel="epoch")
        axes.locator_params(axis="x", integer=True, nbins=6)

    return _picture(draw, label, legend=len(lines) > 1, width=3.4)


def _picture(
    draw: Callable[[Axes], None], label: str, legend: bool = False, width: float = 2.3, height: float = 2.2
) -> str:
    """Draws on one pair of axes; returns an <svg> element that fills the width it is given."""
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasSVG(figure)
        axes = figure.add_subplot()
        draw(axes)
        if legend:
            axes.legend(loc="best")
        out = io.StringIO()
        figure.savefig(out, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = out.getvalue()
    text = text[text.index("<svg") :].replace(_TEXT, "currentColor")
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text, flags=re.DOTALL)
    text = re.sub(r' (width|height)="[\d.]+pt"', "", text, count=2)
    text = re.sub(r' xmlns:xlink="[^"]*"| xmlns="[^"]*"| version="[^"]*"', "", text, count=3)
    text = re.sub(r"font: ([\d.]+)px [^\"]*?(?=[;\"])", r"font-size: \1px", text)
    text = re.sub(r"(?<=[\d.])(\.\d)\d+(?=[ \"])", r"\1", text)  # tenths of a point are enough
    # Ids of one picture must not be those of another on the same page; ours are not referred to.
    text = re.sub(r' id="(?!p[0-9a-f]{10}|m[0-9a-f]{10})[^"]*"', "", text)
    escaped = label.replace("&", "&amp;").replace("<", "&lt;").replace('"', "&quot;")
    return text.replace("<svg", f'<svg role="img" aria-label="{escaped}"', 1).strip()


def _unit(axes: Axes, x: str, y: str) -> None:
    axes.set(xlim=(0, 1.005), ylim=(0, 1.02), xlabel=x, ylabel=y, aspect="equal")
    axes.set_xticks([0, 0.5, 1])
    axes.set_yticks([0, 0.5, 1])


def _thinned(x: Sequence[float], y: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    kept = np.unique(np.linspace(0, len(x) - 1, _POINTS).round().astype(int))
    return np.asarray(x)[kept], np.asarray(y)[kept]
