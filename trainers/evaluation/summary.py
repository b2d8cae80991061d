"""What an evaluation prints: a table for people, or one JSON object."""

from typing import Any


def brief(held: dict[str, Any]) -> dict[str, Any]:
    """Returns what `--json` prints: auroc and auprc per class, macro_auroc and more."""
    keys = ("value", "low", "high")

    def thin(entry: dict[str, Any]) -> dict[str, Any]:
        return {key: entry[key] for key in keys}

    found = {
        "auroc": {name: thin(entry) for name, entry in held["auroc"].items()},
        "auprc": {name: thin(entry) for name, entry in held["auprc"].items()},
        "macro_auroc": thin(held["macro_auroc"]),
        "macro_auprc": thin(held["macro_auprc"]),
        "split": held["identity"]["split"],
        "official": held["split_claim"]["official"],
        "leaks": held["leaks"],
        "warnings": held["warnings"],
    }
    if several := held["multiclass"]:
        found["balanced_accuracy"] = thin(several["balanced_accuracy"])
        found["prior_corrected_balanced_accuracy"] = thin(several["prior_corrected_balanced_accuracy"])
    return found


def table_lines(held: dict[str, Any]) -> list[str]:
    """Returns the table that people read, a line each."""
    identity = held["identity"]
    lines = [
        f"\n{identity['name']}, {identity['split']}: {identity['images']:,} images of "
        f"{identity['patients']:,} patients, task {identity['task']}; 95% intervals over patients",
        "",
        f"{'class':<20} {'positives':>9} {'patients':>8}  {'AUROC':<22} {'AUPRC':<8} prevalence",
    ]
    for name, about in held["classes"].items():
        area = interval(held["auroc"][name])
        precision = number(held["auprc"][name]["value"])
        row = f"{name:<20} {about['positives']:>9,} {about['positive_patients']:>8,}  {area:<22} "
        lines.append(row + f"{precision:<8} {about['prevalence']:.3f}")
    macro = f"{'macro':<20} {'':>9} {'':>8}  {interval(held['macro_auroc']):<22} "
    lines.append(macro + number(held["macro_auprc"]["value"]))
    if several := held["multiclass"]:
        corrected = interval(several["prior_corrected_balanced_accuracy"])
        lines.append(
            f"balanced accuracy {interval(several['balanced_accuracy'])}; prior-corrected {corrected}"
        )
    if measured := held["calibration"]:
        error, brier = number(measured["macro_ece"]), number(measured["macro_brier"])
        text = f"calibration error {error}, Brier score {brier}"
        if measured["prior_shift_undone"]:
            text += " (the shift by copies undone)"
        lines.append(text)
    compare = "" if held["split_claim"]["official"] else "; compare with no published result"
    lines.append(f"split: {held['split_claim']['text']}{compare}")
    if held["comparison"]["comparable"]:
        official = [held for held in held["comparison"]["published"] if held["split"] == "official"]
        lines.append("published: " + ", ".join(f"{r['name']} {number(r['macro_auroc'])}" for r in official))
    lines += [f"leak: {leak}" for leak in held["leaks"]]
    return lines + [f"note: {warning}" for warning in held["warnings"]]


def difference_lines(differences: list[dict[str, Any]]) -> list[str]:
    """Returns the differences between runs, a line each."""
    lines = ["\ndifference in AUROC, second run less first, on the same images; 95% intervals over patients"]
    for held in differences:
        lines.append(f"{held['b']} less {held['a']}: macro {interval(held['macro_auroc'], signed=True)}")
        for name, entry in held["auroc"].items():
            if entry["low"] is not None and not entry["low"] <= 0 <= entry["high"]:
                lines.append(f"  {name:<20} {interval(entry, signed=True)}")
    return [*lines, "(of the classes, those whose interval excludes 0)"]


def interval(entry: dict[str, Any], signed: bool = False) -> str:
    """Returns a value with its interval over patients, such as "0.838 [0.830, 0.846]"."""
    if entry["low"] is None:
        return number(entry["value"], signed)
    return (
        f"{number(entry['value'], signed)} [{number(entry['low'], signed)}, {number(entry['high'], signed)}]"
    )


def number(value: float | None, signed: bool = False) -> str:
    """Returns three digits, or a dash for what is undefined."""
    return "-" if value is None else f"{value:+.3f}" if signed else f"{value:.3f}"
