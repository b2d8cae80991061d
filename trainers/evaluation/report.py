"""The report: one HTML file that needs nothing else, for a screen of any width and for paper.

It shows what metrics.json holds, and nothing that is not in it. The same metrics give the same bytes.
"""

import base64
import csv
import io
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image

from cxr_records import storage
from cxr_records.errors import CxrError
from cxr_records.images import ImageFormat
from cxr_records.manifest import read_examples, read_manifest, read_records_table
from cxr_records.trainers import runs
from cxr_records.trainers.evaluation import plots
from cxr_records.trainers.evaluation.subgroups import FEW_PATIENTS
from cxr_records.trainers.evaluation.summary import interval, number

REPORT_FILE = "report.html"
THUMBNAIL = 160  # pixels
_STYLE_FILE = Path(__file__).with_name("report.css")

History = Sequence[Mapping[str, float]]


def read_history(run: str) -> list[dict[str, float]]:
    """Returns the rows of a run's history.csv; none where there is no such file."""
    path = storage.join(run, runs.HISTORY_FILE)
    if not storage.exists(path):
        return []
    rows = csv.DictReader(io.StringIO(storage.read_bytes(path).decode()))
    return [{key: float(value) for key, value in row.items()} for row in rows]


def read_thumbnails(metrics: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Returns the images of the mistakes from the run's dataset: uint8 [size, size] by image_id.

    None of them where the dataset is no longer at hand.
    """
    identity = metrics["identity"]
    wanted = sorted({held["image_id"] for held in metrics["mistakes"]})
    try:
        config = read_manifest(identity["dataset"])["config"]
        table = read_records_table(identity["dataset"])
    except (CxrError, OSError):
        return {}
    rows = table.filter(
        pc.and_(pc.equal(table["copy"], 0), pc.is_in(table["image_id"], pa.array(wanted, pa.string())))
    )
    image_format = ImageFormat(config["size"], config["codec"], config["resample"])
    return {
        example["image_id"][0].decode(): image_format.decode(example["image"][0])
        for example in read_examples(identity["dataset"], rows)
    }


def write_report(
    metrics: Mapping[str, Any],
    out: str,
    history: History | None = None,
    thumbnails: Mapping[str, np.ndarray] | None = None,
) -> None:
    """Writes the report of one evaluation.

    Args:
        metrics: what metrics.json holds.
        out: path or URL of the HTML file.
        history: rows of history.csv, for the training curves.
        thumbnails: uint8 [height, width] by image_id, for the mistakes.
    """
    parts = [
        _headline(metrics),
        _classes(metrics),
        _multiclass(metrics),
        _curves(metrics),
        _operating_points(metrics),
        _calibration(metrics),
        _subgroups(metrics),
        _mistakes(metrics, thumbnails or {}),
        _published(metrics),
        _training({metrics["identity"]["name"]: history} if history else {}),
        _identity(metrics),
    ]
    storage.write_bytes(out, _page(metrics["identity"]["name"], parts).encode())


def write_comparison(
    comparison: Mapping[str, Any], out: str, histories: Mapping[str, History] | None = None
) -> None:
    """Writes several evaluations side by side, with their paired differences.

    Args:
        comparison: what comparison.json holds.
        out: path or URL of the HTML file.
        histories: rows of history.csv by run.
    """
    held = comparison["runs"]
    names = _short_names([metrics["identity"]["run"] for metrics in held])
    title = "Comparison of " + ", ".join(names.values())
    head = ["", *names.values()]
    classes = list(held[0]["auroc"])
    rows = [
        ["macro", *(interval(metrics["macro_auroc"]) for metrics in held)],
        *([name, *(interval(metrics["auroc"][name]) for metrics in held)] for name in classes),
    ]
    parts = [
        f"<header><h1>{escape(title)}</h1><p>AUROC with 95% intervals over patients. "
        f"{_sentence(held[0])}</p></header>",
        _section("AUROC", _table(head, rows)),
    ]
    for difference in comparison["differences"]:
        a, b = names[difference["a"]], names[difference["b"]]
        scale = max(
            [0.02]
            + [abs(e[k]) for e in difference["auroc"].values() for k in ("low", "high") if e[k] is not None]
        )
        rows = [
            [escape(name), interval(entry, signed=True), _bar(entry, -scale, scale, 0.0)]
            for name, entry in {"macro": difference["macro_auroc"], **difference["auroc"]}.items()
        ]
        note = (
            f"On the {difference['images']:,} images that both scored, with the same draws of patients for "
            "both; an interval that excludes 0 is a difference that the choice of patients does not explain."
        )
        parts.append(
            _section(
                f"{b} less {a}",
                f"<p>{note}</p>" + _table(["", "difference", f"±{scale:.3f}"], rows, escaped=True),
            )
        )
    named = {names[run]: rows for run, rows in (histories or {}).items() if rows}
    parts.append(_training(named))
    storage.write_bytes(out, _page(title, parts).encode())


def _headline(metrics: Mapping[str, Any]) -> str:
    identity, claim = metrics["identity"], metrics["split_claim"]
    official = "official split" if claim["official"] else "not the official split"
    leaks = "".join(f'<p class="problem">Leak: {escape(text)}.</p>' for text in metrics["leaks"])
    warnings = "".join(f"<li>{escape(text)}</li>" for text in metrics["warnings"])
    several = metrics["multiclass"]
    main = metrics["macro_auroc"]
    lead = f"<strong>{number(main['value'])}</strong> macro AUROC"
    if several:
        lead = f"<strong>{number(several['balanced_accuracy']['value'])}</strong> balanced accuracy; " + lead
    bounds = "" if main["low"] is None else f" (95% interval {number(main['low'])} to {number(main['high'])})"
    return (
        f"<header><h1>{escape(identity['name'])}</h1>"
        f'<p class="lead">{lead}{bounds}</p><p>{_sentence(metrics)}</p>'
        f'<p><span class="{"official" if claim["official"] else "unofficial"}">{official}</span> '
        f"{escape(claim['text'])}.</p>{leaks}" + (f"<ul>{warnings}</ul>" if warnings else "") + "</header>"
    )


def _sentence(metrics: Mapping[str, Any]) -> str:
    identity = metrics["identity"]
    return (
        f"Task {escape(identity['task'])}, {escape(identity['split'])}: {identity['images']:,} images of "
        f"{identity['patients']:,} patients."
    )


def _classes(metrics: Mapping[str, Any]) -> str:
    entries = metrics["auroc"]
    lows = [e[k] for e in entries.values() for k in ("low", "image_low", "value") if e[k] is not None]
    start = max(0.0, np.floor(min([0.5, *lows]) * 10) / 10)
    rows = []
    for name, entry in [*entries.items(), ("macro", metrics["macro_auroc"])]:
        about = metrics["classes"].get(name)
        precision = metrics["auprc"][name] if about else metrics["macro_auprc"]
        rows.append(
            [
                escape(name) + (" *" if about and about["warnings"] else ""),
                interval(entry),
                _bar(entry, start, 1.0),
                f"{about['positives']:,}" if about else "",
                f"{about['positive_patients']:,}" if about else "",
                interval(precision),
                number(about["prevalence"]) if about else "",
            ]
        )
    head = [
        "class",
        "AUROC",
        f"{start:.1f} to 1",
        "positive images",
        "patients",
        "AUPRC",
        "prevalence",
    ]
    note = (
        "AUROC is the chance that an image with the finding scores above one without. AUPRC depends on the "
        "prevalence, which chance would give, so compare it only on the same images. Brackets and thick "
        "bars: 95% interval over patients; thin bars: over images, as if these were independent, which they "
        "are not."
    )
    marked = any(about["warnings"] for about in metrics["classes"].values())
    stars = f"<p>* fewer than {FEW_PATIENTS} positive patients: do not rank by it.</p>" if marked else ""
    return _section("Classes", _table(head, rows, escaped=True) + f"<p>{note}</p>{stars}")


def _multiclass(metrics: Mapping[str, Any]) -> str:
    several = metrics["multiclass"]
    if not several:
        return ""
    names = several["class_names"]
    parts = []
    for prefix, title in (
        ("", "Largest score"),
        ("prior_corrected_", "Prior-corrected: largest score relative to its mean"),
    ):
        counts = np.array(several[f"{prefix}confusion"])
        shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
        rows = []
        for name, row, share in zip(names, counts, shares, strict=True):
            cells = [
                f'<td style="--share:{value:.2f}">{count:,}</td>'
                for count, value in zip(row, share, strict=True)
            ]
            rows.append(f'<tr><th scope="row">{escape(name)}</th>{"".join(cells)}</tr>')
        head = "".join(
            f'<th scope="col"><span>{escape(name.replace("_", " "))}</span></th>' for name in names
        )
        accuracy = interval(several[f"{prefix}balanced_accuracy"])
        parts.append(
            f"<h3>{title}: balanced accuracy {accuracy}</h3>"
            f'<div class="scroll"><table class="confusion"><caption>Rows: what is true; columns: what was '
            f'predicted</caption><thead><tr><th scope="col"></th>{head}</tr></thead>'
            f"<tbody>{''.join(rows)}</tbody></table></div>"
        )
    return _section("Confusion matrix", "".join(parts))


def _curves(metrics: Mapping[str, Any]) -> str:
    figures = []
    for name, curves in metrics["curves"].items():
        if curves is None:
            figures.append(f"<p>{escape(name)}: no curve without both positives and negatives.</p>")
            continue
        area, precision = metrics["auroc"][name]["value"], metrics["auprc"][name]
        pictures = plots.roc({name: curves["roc"]}, f"ROC curve of {name}, AUROC {number(area)}")
        pictures += plots.precision_recall(
            curves["pr"],
            precision["prevalence"],
            f"Precision-recall curve of {name}, AUPRC {number(precision['value'])}",
        )
        caption = f"{escape(name)}: AUROC {number(area)}, AUPRC {number(precision['value'])}"
        figures.append(
            f'<figure><div class="pair">{pictures}</div><figcaption>{caption}</figcaption></figure>'
        )
    note = "<p>Left ROC, right precision against recall; dashed: chance (on the right, the prevalence).</p>"
    return _section("ROC and precision-recall curves", f'{note}<div class="grid">{"".join(figures)}</div>')


def _operating_points(metrics: Mapping[str, Any]) -> str:
    rows, chosen_on = [], set()
    for name, about in metrics["classes"].items():
        point = about["operating_point"]
        at = [interval(about[f"sensitivity_at_{level}_specificity"]) for level in (90, 95)]
        if point:
            chosen_on.add(point["chosen_on"])
            rest = [number(point[key]) for key in ("sensitivity", "specificity", "ppv", "npv")]
            rows.append([name, *at, f"{point['threshold']:.4f}", *rest])
        else:
            rows.append([name, *at, "-", "-", "-", "-", "-"])
    head = [
        "class",
        "sensitivity at 90% specificity",
        "at 95%",
        "threshold",
        "sensitivity",
        "specificity",
        "PPV",
        "NPV",
    ]
    note = (
        f"<p>Thresholds of the largest Youden index, chosen on: {escape(', '.join(sorted(chosen_on)) or '-')}"
        ". Predictive values hold at this prevalence only.</p>"
    )
    return _section("Operating points", _table(head, rows) + note)


def _calibration(metrics: Mapping[str, Any]) -> str:
    measured = metrics["calibration"]
    if not measured:
        return _section("Calibration", "<p>Not measured: the scores are no probabilities.</p>")
    rows, figures = [], []
    for name, held in measured["classes"].items():
        rows.append([name, number(held["ece"]), number(held["ece_with_temperature"]), f"{held['brier']:.4f}"])
        picture = plots.reliability(held["bins"], f"Reliability of {name}, ECE {number(held['ece'])}")
        figures.append(f"<figure>{picture}<figcaption>{escape(name)}</figcaption></figure>")
    means = [number(measured[key]) for key in ("macro_ece", "macro_ece_with_temperature")]
    rows.append(["mean", *means, f"{measured['macro_brier']:.4f}"])
    temperature = measured["temperature"]
    note = "The shift of frequencies by copies was undone first. " * measured["prior_shift_undone"]
    note += (
        f"Temperature {temperature:.2f}, fitted on {measured['temperature_fitted_on']}. "
        if temperature
        else "No temperature: there are no validation scores. "
    )
    note += "Expected calibration error (ECE) over 15 bins with as many images each."
    head = ["class", "ECE", "ECE with temperature", "Brier score"]
    pictures = f'<div class="grid small">{"".join(figures)}</div>'
    return _section("Calibration", _table(head, rows) + f"<p>{escape(note)}</p>{pictures}")


def _subgroups(metrics: Mapping[str, Any]) -> str:
    groups = metrics["subgroups"]
    head = ["", *(f"{held['by']} {held['group']}" for held in groups)]
    rows = [
        ["images", *(f"{held['images']:,}" for held in groups)],
        ["patients", *(f"{held['patients']:,}" for held in groups)],
        ["macro", *(number(held["macro_auroc"]) for held in groups)],
    ]
    for name in metrics["auroc"]:
        entries = [held["auroc"][name] for held in groups]
        marks = ["*" if entry["few"] and entry["value"] is not None else "" for entry in entries]
        cells = [number(entry["value"]) + mark for entry, mark in zip(entries, marks, strict=True)]
        rows.append([name, *cells])
    note = (
        f"<p>AUROC. * fewer than {FEW_PATIENTS} positive patients in the group: do not rank by it. Ages in "
        "years.</p>"
    )
    return _section("Subgroups", _table(head, rows) + note)


def _mistakes(metrics: Mapping[str, Any], thumbnails: Mapping[str, np.ndarray]) -> str:
    title = "Highest-scoring mistakes"
    if not metrics["mistakes"]:
        return ""
    figures = []
    for held in metrics["mistakes"]:
        pixels = thumbnails.get(held["image_id"])
        caption = (
            f"{escape(held['class'])}: {held['kind']}, {held['score']:.3f}<br>{escape(held['image_id'])}, "
            f"patient {held['patient_id']}"
        )
        text = escape(f"{held['image_id']}, {held['kind']} for {held['class']}", quote=True)
        picture = "" if pixels is None else f'<img src="{_data_uri(pixels)}" alt="{text}">'
        figures.append(f"<figure>{picture}<figcaption>{caption}</figcaption></figure>")
    said = (
        "Negatives with the highest score and positives with the lowest. NIH's labels were read from reports "
        "by a program: some of these mistakes are the label's."
    )
    if not thumbnails:
        said += " No pictures: the images are not at hand."
    return _section(title, f'<p>{said}</p><div class="grid thumbnails">{"".join(figures)}</div>')


def _published(metrics: Mapping[str, Any]) -> str:
    comparison = metrics["comparison"]
    rows = {"official": [], "random": []}
    for held in comparison["published"]:
        rows[held["split"]].append(
            [f"{held['name']} ({held['year']})", number(held["macro_auroc"]), held["source"]]
        )
    head = ["model", "macro AUROC", "source"]
    if comparison["comparable"]:
        own = [f"this: {metrics['identity']['name']}", interval(metrics["macro_auroc"]), "this report"]
        official = [own, *rows["official"]]
        said = "<p>On NIH's official test split, as this result is:</p>"
    else:
        official = rows["official"]
        said = (
            "<p><strong>This result is not comparable with them</strong>: it is of task "
            f"{escape(metrics['identity']['task'])} on {escape(metrics['split_claim']['text'])}. Published "
            "on NIH's official test split, multilabel:</p>"
        )
    random = (
        "<h3>Not comparable</h3><p>On random splits, which are easier; shown so that nobody sets them beside "
        f"an official result.</p>{_table(head, rows['random'], kind='words')}"
    )
    return _section("Published results", said + _table(head, official, kind="words") + random)


def _training(histories: Mapping[str, History]) -> str:
    if not histories:
        return ""
    pictures = [
        plots.history(histories, ("loss", "val_loss"), "Loss by epoch"),
        plots.history(histories, ("val_macro_auroc",), "Validation macro AUROC by epoch"),
        plots.history(histories, ("learning_rate",), "Learning rate by epoch"),
    ]
    titles = ("Loss", "Validation macro AUROC", "Learning rate")
    figures = [
        f"<figure>{picture}<figcaption>{title}</figcaption></figure>"
        for picture, title in zip(pictures, titles, strict=True)
    ]
    return _section("Training", f'<div class="grid">{"".join(figures)}</div>')


def _identity(metrics: Mapping[str, Any]) -> str:
    identity = metrics["identity"]
    table = identity["table"]
    rows = [
        ["run", identity["run"]],
        ["model", identity["model"]],
        ["dataset", identity["dataset"]],
        ["dataset id", identity["dataset_id"]],
        ["table of images", table and f"{table['dialect']}, sha256 {table['sha256']}"],
        ["predictions", f"sha256 {identity['predictions_sha256']}"],
        ["scored images", f"sha256 of their names {metrics['split_claim']['list_sha256']}"],
        ["versions", ", ".join(f"{name} {version}" for name, version in identity["versions"].items())],
        [
            "intervals",
            f"{identity['draws']:,} draws of patients with replacement, seed {identity['seed']}; 2.5th and "
            "97.5th percentile",
        ],
    ]
    return _section("What was measured", _table(["", ""], [[k, str(v)] for k, v in rows if v], kind="words"))


def _section(title: str, body: str) -> str:
    return f"<section><h2>{escape(title)}</h2>{body}</section>"


def _table(
    head: Sequence[str], rows: Sequence[Sequence[str]], escaped: bool = False, kind: str = "numbers"
) -> str:
    """A table whose first cells head their rows; text is escaped unless it has been."""

    def clean(text: str) -> str:
        return text if escaped else escape(text)

    header = "".join(f'<th scope="col">{escape(text)}</th>' for text in head)
    body = "".join(
        f'<tr><th scope="row">{clean(first)}</th>{"".join(f"<td>{clean(cell)}</td>" for cell in rest)}</tr>'
        for first, *rest in rows
    )
    header = f"<thead><tr>{header}</tr></thead>" if any(head) else ""
    return f'<div class="scroll"><table class="{kind}">{header}<tbody>{body}</tbody></table></div>'


def _bar(entry: Mapping[str, Any], start: float, end: float, mark: float | None = None) -> str:
    """An interval over patients with that over images, thinner, beneath, and the value, on one scale."""
    if entry["value"] is None or entry["low"] is None:
        return ""

    def x(key: str) -> str:
        return f"{100 * min(1.0, max(0.0, (entry[key] - start) / (end - start))):.1f}"

    line = '<line x1="{}" x2="{}" y1="{}" y2="{}" class="{}"/>'
    lines = [line.format(x("low"), x("high"), 5, 5, "patients")]
    if entry["image_low"] is not None:
        lines.append(line.format(x("image_low"), x("image_high"), 10, 10, "images"))
    if mark is not None:
        at = f"{100 * (mark - start) / (end - start):.1f}"
        lines.append(line.format(at, at, 0, 12, "mark"))
    dot = f'<circle cx="{x("value")}" cy="5" r="2.6"/>'
    return f'<svg class="bar" viewBox="0 0 100 12" aria-hidden="true">{"".join(lines)}{dot}</svg>'


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


def _page(title: str, parts: Sequence[str]) -> str:
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE_FILE.read_text()}</style></head><body><main>"
        + "\n".join(part for part in parts if part)
        + "<footer>Made by cxr_records. Scores of a model are no diagnosis.</footer></main></body></html>\n"
    )
