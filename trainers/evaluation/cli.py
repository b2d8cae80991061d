"""The command evaluate, and what the command train needs of it."""

import datetime
import json
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from cxr_records import storage
from cxr_records.cli import PATH
from cxr_records.errors import FoundProblems, UsageError
from cxr_records.urls import name_of

if TYPE_CHECKING:
    from cxr_records.dataset import Dataset
    from cxr_records.trainers.evaluation.results import Evaluation

_DEBUG = click.option("--debug", is_flag=True, help="Show tracebacks.")
_JSON = click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON object on stdout and nothing else."
)


@click.command()
@click.argument("runs", nargs=-1, type=PATH, metavar="[RUN]...")
@click.option("--split", default="test", show_default=True, help="Of a run's dataset: which split.")
@click.option(
    "--predictions", type=PATH, metavar="TABLE", help="Scores from anywhere: CSV, .xlsx or Parquet."
)
@click.option("--metadata", type=PATH, metavar="TABLE", help="NIH's table of images, whose labels count.")
@click.option(
    "--labels",
    type=PATH,
    metavar="TABLE",
    help="Labels in place of NIH's, of images that were judged again or of another test set.",
)
@click.option("--test-list", type=PATH, metavar="FILE", help="Evaluate the images of this list alone.")
@click.option("--task", default="multilabel", show_default=True, help="For --predictions: may be derived.")
@click.option(
    "--trained-on",
    type=PATH,
    metavar="DATASET",
    help="For --predictions: look for leaks from its train split.",
)
@click.option(
    "--out", type=PATH, metavar="DIR", help="Where metrics.json and report.html go; default: into each run."
)
@click.option("--draws", default=1000, show_default=True, help="Of the bootstrap; 0 for no intervals.")
@click.option("--seed", default=0, show_default=True, help="Of the draws.")
@click.option("--date", metavar="YYYY-MM-DD", help="Of the report; default: today.")
@_JSON
@_DEBUG
def evaluate(
    runs: Sequence[str],
    split: str,
    predictions: str | None,
    metadata: str | None,
    labels: str | None,
    test_list: str | None,
    task: str,
    trained_on: str | None,
    out: str | None,
    draws: int,
    seed: int,
    date: str | None,
    as_json: bool,
    debug: bool,
) -> None:
    """Score trained runs, or any table of predictions, and write metrics.json and report.html.

    For each class AUROC and AUPRC with 95% intervals by bootstrap over patients, operating points,
    calibration, subgroups, and what the result may be compared with. Several runs are also compared with each
    other. Images or patients that were trained on are a problem: exit code 3.

    --labels takes a table of image names with NIH's "Finding Labels" or a column for each finding (1 or 0,
    yes or no; empty where nobody judged). Images that it does not name are left out. What comes of it goes to
    --out, by default into the folder labels-NAME of each run, so that a run's own metrics.json stays NIH's.

    \b
    Example:
      cxr-records evaluate runs/first
      cxr-records evaluate runs/first runs/second --out comparison
      cxr-records evaluate --predictions scores.csv --metadata Data_Entry_2017_v2020.csv \\
          --test-list test_list.txt --out evaluation
    """
    if bool(runs) == bool(predictions):
        raise UsageError("give runs to evaluate, or --predictions TABLE --metadata TABLE --out DIR")
    day = _checked_date(date) if date is not None else today()
    if predictions:
        if not (metadata or labels) or not out:
            raise UsageError(
                "--predictions needs --metadata TABLE (labels and patients) and --out DIR; in place of "
                "--metadata, --labels TABLE will do"
            )
        if split != "test":
            raise UsageError("--split goes with runs; --test-list chooses images of --predictions")
        from cxr_records.trainers.evaluation.evaluate import evaluate_table

        evaluation = evaluate_table(
            predictions, metadata, task, test_list, trained_on, draws, seed, labels, day
        )
        _write(evaluation, out)
        show(evaluation, out, as_json, {})
        _fail_on_leaks([evaluation])
        return
    if metadata or test_list or trained_on or task != "multilabel":
        raise UsageError(
            "--metadata, --test-list, --task and --trained-on go with --predictions, not with runs"
        )
    if out and len(runs) == 1 and not labels:
        raise UsageError("--out goes with --predictions, with --labels, or with several runs to compare")
    if len({run.rstrip("/") for run in runs}) < len(runs):
        raise UsageError(f"found a run twice among {', '.join(runs)}; give each once")
    folders = list(runs)
    if labels:
        folders = [storage.join(run, f"labels-{_stem(labels)}") for run in runs]
        if out and len(runs) == 1:
            folders = [out]
    evaluated = [
        evaluate_into(run, split, draws, seed, labels=labels, folder=folder, date=day)
        for run, folder in zip(runs, folders, strict=True)
    ]
    if len(runs) == 1:
        show(evaluated[0], folders[0], as_json, {"run": runs[0]})
    else:
        _compare(runs, evaluated, split, draws, seed, out, as_json, labels)
    _fail_on_leaks(evaluated)


def today() -> str:
    """Returns the date of a report where none is given: that of SOURCE_DATE_EPOCH, if set, or today's.

    Raises:
        UsageError: SOURCE_DATE_EPOCH holds no number of seconds.
    """
    if seconds := os.environ.get("SOURCE_DATE_EPOCH"):  # reproducible-builds.org
        try:
            return datetime.datetime.fromtimestamp(int(seconds), datetime.timezone.utc).date().isoformat()
        except (ValueError, OverflowError, OSError):
            raise UsageError(f"SOURCE_DATE_EPOCH={seconds}: expected seconds since 1970") from None
    return datetime.date.today().isoformat()


def _checked_date(text: str) -> str:
    try:
        return datetime.datetime.strptime(text, "%Y-%m-%d").date().isoformat()
    except ValueError:
        raise UsageError(f"`date={text}`: expected a day such as 2026-01-31") from None


def evaluate_into(
    run: str,
    split: str = "test",
    draws: int = 1000,
    seed: int = 0,
    dataset: "Dataset | None" = None,
    labels: str | None = None,
    folder: str | None = None,
    date: str | None = None,
) -> "Evaluation":
    """Evaluates a run and writes metrics.json and report.html into it.

    Args:
        run: the run directory.
        split: of its dataset.
        draws: of the bootstrap; 0 for none.
        seed: of the draws.
        dataset: the run's, where it is open already.
        labels: a table whose labels count in place of NIH's.
        folder: where to write; the run where none is given.
        date: of the evaluation, for whoever reads it.
    """
    from cxr_records.trainers.evaluation import report
    from cxr_records.trainers.evaluation.evaluate import evaluate_run

    evaluation = evaluate_run(run, split, draws, seed, dataset, labels, date)
    thumbnails = report.read_thumbnails(evaluation, dataset)
    _write(evaluation, folder or run, report.read_history(run), thumbnails)
    return evaluation


def show(evaluation: "Evaluation", folder: str, as_json: bool, extra: Mapping[str, Any]) -> None:
    """Prints an evaluation, as a table or as one JSON object with `extra` in it."""
    from cxr_records.trainers.evaluation import report, results, summary

    if as_json:
        click.echo(json.dumps({**summary.brief(evaluation), **extra}))
        return
    click.echo("\n".join(summary.table_lines(evaluation)))
    click.echo(f"report: {storage.join(folder, report.REPORT_FILE)}")
    click.echo(f"all numbers: {storage.join(folder, results.METRICS_FILE)}")


def _write(
    evaluation: "Evaluation",
    folder: str,
    history: Sequence[Mapping[str, float]] | None = None,
    thumbnails: Mapping[str, Any] | None = None,
) -> None:
    """Writes metrics.json and report.html."""
    from cxr_records.trainers import digests
    from cxr_records.trainers.evaluation import report, results

    path = storage.join(folder, results.METRICS_FILE)
    _check_ours(path, results.FORMAT)
    storage.make_folder(folder)
    # An export of the run trusts what is said of it there.
    in_run = storage.exists(storage.join(folder, digests.CONFIG_FILE))
    write = digests.write if in_run else storage.write_bytes
    write(path, results.json_bytes(evaluation.to_json()))
    report.write_report(evaluation, storage.join(folder, report.REPORT_FILE), history, thumbnails)


def _stem(path: str) -> str:
    """The name of a file without its endings: "relabelled" of a/relabelled.csv.gz."""
    return name_of(path).rsplit("/", 1)[-1].split(".")[0]


def _check_ours(path: str, expected: str) -> None:
    """Refuses to replace a file that we have not written."""
    if not storage.exists(path):
        return
    try:
        ours = json.loads(storage.read_bytes(path))["format"] == expected
    except (ValueError, KeyError, TypeError):
        ours = False
    if not ours:
        raise UsageError(f"{path} is there and was not written by this command; name another folder")


def _compare(
    runs: Sequence[str],
    evaluated: Sequence["Evaluation"],
    split: str,
    draws: int,
    seed: int,
    out: str | None,
    as_json: bool,
    labels: str | None = None,
) -> None:
    """Sets runs side by side."""
    from cxr_records.trainers.evaluation import evaluate, report, results, summary

    differences = evaluate.compare_runs(runs, split, draws, seed, labels)
    comparison = results.RunComparison(tuple(evaluated), differences)
    if out:
        path = storage.join(out, results.COMPARISON_FILE)
        _check_ours(path, results.COMPARISON_FORMAT)
        storage.make_folder(out)
        storage.write_bytes(path, results.json_bytes(comparison.to_json()))
        histories = {run: report.read_history(run) for run in runs}
        report.write_comparison(comparison, storage.join(out, report.REPORT_FILE), histories)
    if as_json:
        briefs = [summary.brief(each) | {"run": run} for run, each in zip(runs, evaluated, strict=True)]
        found = {"comparisons": comparison.num_comparisons, "said": list(comparison.said)}
        differences = results.to_plain(comparison.differences)
        click.echo(json.dumps({"runs": briefs, **found, "differences": differences}))
        return
    for evaluation in evaluated:
        click.echo("\n".join(summary.table_lines(evaluation)))
    click.echo("\n".join(summary.difference_lines(comparison)))
    if out:
        click.echo(f"report: {storage.join(out, report.REPORT_FILE)}")


def _fail_on_leaks(evaluated: Sequence["Evaluation"]) -> None:
    if leaks := [leak for evaluation in evaluated for leak in evaluation.leaks]:
        raise FoundProblems("; ".join(leaks))
