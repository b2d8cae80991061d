"""What an evaluation prints: a table for people, or one JSON object."""

from collections.abc import Sequence
from typing import Any

from cxr_records.trainers.evaluation.results import Difference, Evaluation, Interval, to_plain


def brief(evaluation: Evaluation) -> dict[str, Any]:
    """Returns what `--json` prints: auroc and auprc per class, macro_auroc and more."""

    def thin(interval: Interval) -> dict[str, float | None]:
        return {"value": interval.value, "low": interval.low, "high": interval.high}

    brief: dict[str, Any] = {
        "auroc": {name: thin(interval) for name, interval in evaluation.auroc.items()},
        "auprc": {name: thin(interval) for name, interval in evaluation.auprc.items()},
        "macro_auroc": thin(evaluation.macro_auroc),
        "macro_auprc": thin(evaluation.macro_auprc),
        "macro_lacks": list(evaluation.macro_lacks),
        "split": evaluation.identity.split,
        "official": evaluation.split_claim.official,
        "leaks": list(evaluation.leaks),
        "warnings": list(evaluation.warnings),
    }
    if over := evaluation.seeds:
        brief["seeds"] = to_plain(over)
    if several := evaluation.multiclass:
        brief["balanced_accuracy"] = thin(several.balanced_accuracy)
        brief["prior_corrected_balanced_accuracy"] = thin(several.prior_corrected_balanced_accuracy)
    return brief


def table_lines(evaluation: Evaluation) -> list[str]:
    """Returns the table that people read, a line each."""
    identity = evaluation.identity
    lines = [
        f"\n{identity.name}, {identity.split}: {identity.images:,} images of {identity.patients:,} patients, "
        f"task {identity.task}; 95% intervals over patients",
        "",
        f"{'class':<20} {'positives':>9} {'patients':>8}  {'AUROC':<22} {'AUPRC':<8} prevalence",
    ]
    for name, about in evaluation.classes.items():
        area, precision = interval(evaluation.auroc[name]), number(evaluation.auprc[name].value)
        row = f"{name:<20} {about.positives:>9,} {about.positive_patients:>8,}  {area:<22} "
        lines.append(row + f"{precision:<8} {about.prevalence:.3f}")
    macro = f"{'macro' + evaluation.over:<39}  {interval(evaluation.macro_auroc):<22} "
    lines.append(macro + number(evaluation.macro_auprc.value))
    if members := evaluation.seeds:
        single, apart = members.macro_auroc, number(members.macro_auroc.spread)
        each = ", ".join(number(value) for value in single.values)
        lines.append(
            f"the ensemble of {len(members.seeds)} seeds (mean of probabilities); single runs: macro AUROC "
            f"{number(single.mean)}, spread {apart} ({each})"
        )
    if several := evaluation.multiclass:
        corrected = interval(several.prior_corrected_balanced_accuracy)
        balanced = interval(several.balanced_accuracy)
        lines.append(f"balanced accuracy{several.over} {balanced}; prior-corrected {corrected}")
    if measured := evaluation.calibration:
        error, brier = number(measured.macro_ece), number(measured.macro_brier)
        undone = " (the shift by copies undone)" if measured.prior_shift_undone else ""
        over = evaluation.calibration_over
        lines.append(f"calibration error{over} {error}, Brier score {brier}{undone}")
    compare = "" if evaluation.comparison.comparable else "; compare with no published result"
    lines.append(f"split: {evaluation.split_claim.text}{compare}")
    if evaluation.comparison.comparable:
        official = [result for result in evaluation.comparison.published if result.split == "official"]
        lines.append("published: " + ", ".join(f"{r.name} {number(r.macro_auroc)}" for r in official))
    lines += [f"leak: {leak}" for leak in evaluation.leaks]
    return lines + [f"note: {warning}" for warning in evaluation.warnings]


def difference_lines(differences: Sequence[Difference]) -> list[str]:
    """Returns the differences between runs, a line each."""
    lines = ["\ndifference in AUROC, second run less first, on the same images; 95% intervals over patients"]
    for difference in differences:
        macro = interval(difference.macro_auroc, signed=True)
        lines.append(f"{difference.b} less {difference.a}: macro{difference.over} {macro}")
        for name, each in difference.auroc.items():
            if each.low is not None and each.high is not None and not each.low <= 0 <= each.high:
                lines.append(f"  {name:<20} {interval(each, signed=True)}")
    return [*lines, "(of the classes, those whose interval excludes 0)"]


def interval(measured: Interval, signed: bool = False) -> str:
    """Returns a value with its interval over patients, such as "0.838 [0.830, 0.846]"."""
    value = number(measured.value, signed)
    if measured.low is None:
        return value
    return f"{value} [{number(measured.low, signed)}, {number(measured.high, signed)}]"


def number(value: float | None, signed: bool = False) -> str:
    """Returns three digits, or a dash for what is undefined."""
    return "-" if value is None else f"{value:+.3f}" if signed else f"{value:.3f}"
