"""What an evaluation prints: a table for people, or one JSON object."""

from typing import Any

from cxr_records.trainers.evaluation.results import Evaluation, Interval, PairedInterval, RunComparison


def brief(evaluation: Evaluation) -> dict[str, Any]:
    """Returns what `--json` prints: auroc and auprc per class, macro_auroc and more."""

    def thin(interval: Interval) -> dict[str, float | str | None]:
        plain: dict[str, float | str | None] = {
            "value": interval.value, "low": interval.low, "high": interval.high
        }  # fmt: skip
        return plain | ({"no_interval": interval.no_interval} if interval.no_interval else {})

    brief: dict[str, Any] = {
        "auroc": {name: thin(interval) for name, interval in evaluation.auroc.items()},
        "auprc": {name: thin(interval) for name, interval in evaluation.auprc.items()},
        "macro_auroc": thin(evaluation.macro_auroc),
        "macro_auprc": thin(evaluation.macro_auprc),
        "macro_lacks": list(evaluation.macro_lacks),
        "within_view": {"macro_auroc": thin(evaluation.within_view.macro_auroc)},
        "baselines": {
            name: each and {"macro_auroc": thin(each.macro_auroc), "macro_added": thin(each.macro_added)}
            for name, each in (
                ("metadata", evaluation.baselines.metadata),
                ("view", evaluation.baselines.view),
            )
        },
        "split": evaluation.identity.split,
        "drawn": evaluation.identity.drawn,
        "date": evaluation.identity.date,
        "official": evaluation.split_claim.official,
        "leaks": list(evaluation.leaks),
        "warnings": list(evaluation.warnings),
    }
    if several := evaluation.multiclass:
        brief["balanced_accuracy"] = thin(several.balanced_accuracy)
        corrected = several.prior_corrected_balanced_accuracy
        brief["prior_corrected_balanced_accuracy"] = None if corrected is None else thin(corrected)
    return brief


def table_lines(evaluation: Evaluation) -> list[str]:
    """Returns the table that people read, a line each."""
    identity = evaluation.identity
    drawn = f" {identity.drawn_words}" * bool(identity.drawn_words)
    lines = [
        f"\n{identity.name}, {identity.split}: {identity.images:,} images of {identity.patients:,} patients, "
        f"task {identity.task}; 95% intervals over patients{drawn and f';{drawn}'}",
        "",
        f"{'class':<20} {'positives':>9} {'patients':>8}  {'AUROC':<22} {'AUPRC':<8} prevalence",
    ]
    for name, about in evaluation.classes.items():
        area, precision = interval(evaluation.auroc[name]), number(evaluation.auprc[name].value)
        row = f"{name:<20} {about.positives:>9,} {about.positive_patients:>8,}  {area:<22} "
        lines.append(row + f"{precision:<8} {about.prevalence:.3f}")
    macro = f"{'macro' + evaluation.over:<39}  {interval(evaluation.macro_auroc):<22} "
    lines.append(macro + number(evaluation.macro_auprc.value) + drawn)
    if several := evaluation.multiclass:
        corrected = several.prior_corrected_balanced_accuracy
        second = interval(corrected) if corrected else f"not computed: {several.not_prior_corrected}"
        balanced = interval(several.balanced_accuracy)
        lines.append(f"balanced accuracy{several.over} {balanced}; prior-corrected {second}{drawn}")
    if measured := evaluation.calibration:
        error, brier = number(measured.macro_ece), number(measured.macro_brier)
        undone = f" ({' and '.join(measured.undone)} undone)" if measured.undone else ""
        over = evaluation.calibration_over
        line = f"calibration error{over} {error}, Brier score {brier}{undone}"
        if measured.fitted_on:
            line += f"; calibrated{evaluation.calibrated_over} {number(measured.macro_ece_calibrated)}"
        lines.append(line + drawn)
    if metadata := evaluation.baselines.metadata:
        alone, added = interval(metadata.macro_auroc), interval(metadata.macro_added, signed=True)
        lines.append(
            f"metadata alone, without a pixel{evaluation.over} {alone}; the model less that {added}{drawn}"
        )
    if evaluation.within_view.macro_auroc.value is not None:
        within = interval(evaluation.within_view.macro_auroc)
        lines.append(f"within a view, PA or AP{evaluation.within_view_over} {within}{drawn}")
    compare = "" if evaluation.comparison.comparable else "; compare with no published result"
    lines.append(f"split: {evaluation.split_claim.text}{compare}")
    if evaluation.comparison.comparable:
        official = [result for result in evaluation.comparison.published if result.split == "official"]
        lines.append("published: " + ", ".join(f"{r.name} {number(r.macro_auroc)}" for r in official))
    lines += [f"leak: {leak}" for leak in evaluation.leaks]
    return lines + [f"note: {warning}" for warning in evaluation.warnings]


def difference_lines(comparison: RunComparison) -> list[str]:
    """Returns the differences between runs, a line each."""
    told = f"; {comparison.drawn_words}" * bool(comparison.drawn_words)
    lines = [
        f"\ndifference in AUROC, second run less first, on the same images; 95% intervals over patients{told}"
    ]
    for pair in comparison.differences:
        lines.append(f"{pair.b} less {pair.a}: macro{pair.over} {_difference(pair.macro_auroc)}")
        lines += [f"  {name:<20} {_difference(each)}" for name, each in pair.auroc.items()]
    return [*lines, *comparison.said]


def _difference(each: PairedInterval) -> str:
    """A difference, its p-value and whether it is decided."""
    text = interval(each, signed=True)
    if each.p is not None:
        text += f", p {number(each.p)}, adjusted {number(each.p_adjusted)}"
    return f"{text}; not decided: {each.undecided}" if each.undecided else text


def interval(measured: Interval, signed: bool = False) -> str:
    """Returns a value with its interval over patients, such as "0.838 [0.830, 0.846]", or why it has none."""
    value = number(measured.value, signed)
    if measured.low is None:
        return f"{value} (no interval: {measured.no_interval})" if measured.no_interval else value
    return f"{value} [{number(measured.low, signed)}, {number(measured.high, signed)}]"


def digits(value: float | None, count: int) -> str:
    """Returns so many digits behind the point, or a dash for what is undefined."""
    return "-" if value is None else f"{value:.{count}f}"


def number(value: float | None, signed: bool = False) -> str:
    """Returns three digits, or a dash for what is undefined."""
    return "-" if value is None else f"{value:+.3f}" if signed else f"{value:.3f}"
