"""The commands train, predict and export. Keras is imported when one runs, not for its --help."""

import csv
import dataclasses
import io
import json
import os
import sys
from collections.abc import Sequence
from typing import Any

import click

from cxr_records import progress, storage
from cxr_records.cli import PATH
from cxr_records.errors import CxrError, FoundProblems, UsageError
from cxr_records.progress import say
from cxr_records.quiet import load_tensorflow

_DEBUG = click.option("--debug", is_flag=True, help="Show tracebacks.")
_JSON = click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON object on stdout and nothing else."
)


class _Settings(click.Option):
    """An option that changes settings, in whose words messages of the library on them are told."""

    @property
    def settings(self) -> list[str]:
        """Names of the settings."""
        from cxr_records.trainers.config import TrainConfig

        return [field.name for field in dataclasses.fields(TrainConfig)]


@click.command()
@click.argument("dataset", type=PATH)
@click.option(
    "--run",
    type=PATH,
    required=True,
    metavar="DIR",
    help="Where the run is kept; the same again goes on with it.",
)
@click.option("--task", help="Another task than the dataset's; can be derived from a multilabel dataset.")
@click.option("--with-no-finding", is_flag=True, help="multiclass: No Finding as the 15th class.")
@click.option(
    "--preset",
    default="small_cnn",
    show_default=True,
    help="Settings to begin with: a name, or a .py file.",
)
@click.option(
    "--set",
    "changes",
    cls=_Settings,
    multiple=True,
    metavar="KEY=VALUE",
    help="Change a setting; several times.",
)
@click.option("--weights", help="Short for --set weights=...: none, imagenet, or a file.")
@click.option("--devices", default="auto", show_default=True, help="auto, cpu, gpu, tpu, or such as gpu:2.")
@click.option(
    "--seeds",
    type=click.IntRange(min=2),
    metavar="N",
    help="Train N runs that differ in their seed, in DIR/seed-0 and so on, and evaluate their ensemble.",
)
@click.option("--show", is_flag=True, help="Print the settings and train nothing.")
@_JSON
@_DEBUG
def train(
    dataset: str,
    run: str,
    task: str | None,
    with_no_finding: bool,
    preset: str,
    changes: Sequence[str],
    weights: str | None,
    devices: str,
    seeds: int | None,
    show: bool,
    as_json: bool,
    debug: bool,
) -> None:
    """Train a model on a dataset, and evaluate it.

    The run directory gets config.json, checkpoints, history.csv, TensorBoard logs, model.keras (raw uint8
    images in, probabilities out), predictions.parquet, metrics.json and report.html. A run that was killed
    goes on with the same command.

    \b
    Example:
      cxr-records train cxr14 --run runs/first --preset densenet121 --set epochs=10
      cxr-records train cxr14 --run runs/ptx --task binary:Pneumothorax
      cxr-records train cxr14 --run runs/mine --preset mine.py --set model=nets.py:make
      KERAS_BACKEND=jax cxr-records train cxr14 --run runs/jax --devices gpu:4
      cxr-records train cxr14 --run runs/five --seeds 5
    """
    from cxr_records.dataset import open_dataset
    from cxr_records.tasks import parse_task
    from cxr_records.trainers import config

    if preset.endswith(".py"):
        load_tensorflow()  # quietly, before the file does by importing Keras
    settings = config.change(
        config.read_preset(preset), [*changes, *([f"weights={weights}"] if weights else [])]
    )
    if show:
        click.echo(json.dumps(settings.to_json(), indent=1))
        return
    if seeds:
        words = ["train", dataset, "--preset", preset, "--devices", devices, "--json"]
        words += ["--task", task] if task else []
        words += ["--with-no-finding"] if with_no_finding else []
        words += ["--weights", weights] if weights else []
        words += [word for change in changes for word in ("--set", change)]
        _train_seeds(words, run, range(settings.seed, settings.seed + seeds), devices, as_json)
        return
    opened = open_dataset(dataset)
    if task or with_no_finding:
        opened = opened.as_task(parse_task(task or opened.task.name, with_no_finding, opened.findings))
    load_tensorflow()
    from cxr_records.trainers import predict
    from cxr_records.trainers.train import train as run_training

    _, progress = run_training(opened, run, settings, devices=devices)
    if not storage.exists(storage.join(run, "model.keras")):
        return  # another machine of this run writes it
    predict.predict_run(run, dataset=opened)
    from cxr_records.trainers.evaluation import cli as evaluation

    measured = evaluation.evaluate_into(run, dataset=opened, date=evaluation.today())
    evaluation.show(measured, run, as_json, {"run": run, "epochs": len(progress.history)})


def _train_seeds(words: Sequence[str], folder: str, wanted: range, devices: str, as_json: bool) -> None:
    """Trains and evaluates runs of several seeds, then what they say together."""
    from cxr_records.trainers import seeds
    from cxr_records.trainers.evaluation import cli as evaluation

    if os.environ.get("KERAS_DISTRIBUTION_JOB_ADDRESSES"):
        raise UsageError("--seeds trains on one machine; give each machine runs of its own, with --set seed=")
    runs = seeds.begin(folder, list(wanted))
    together = seeds.at_once(devices, len(runs))
    say(f"{len(runs)} seeds, {together} at once: {', '.join(map(str, runs))}")
    failed = seeds.train_all(
        lambda seed, run: [*words, "--run", run, "--set", f"seed={seed}"], runs, together
    )
    if len(failed) == len(runs):
        seed, reason = next(iter(failed.items()))
        raise CxrError(f"all {len(runs)} seeds failed, seed {seed}: {reason}")
    measured = evaluation.evaluate_into(folder)
    evaluation.show(measured, folder, as_json, {"run": folder})
    if failed:
        listed = "; ".join(f"seed {seed}: {reason}" for seed, reason in failed.items())
        raise CxrError(f"{len(failed)} of {len(runs)} seeds failed ({listed}); the same command tries again")


@click.command()
@click.argument("run", type=PATH)
@click.argument("images", nargs=-1, required=True, type=PATH)
@click.option("--out", type=PATH, metavar="FILE", help="Write a table here (.csv) instead of on stdout.")
@_JSON
@_DEBUG
def predict(run: str, images: Sequence[str], out: str | None, as_json: bool, debug: bool) -> None:
    """Score PNG, JPEG or DICOM files with a trained run, decoded as the build decodes.

    Prints a table: image, then the probability of each class. Scores of a model are no diagnosis.

    \b
    Example:
      cxr-records predict runs/first 00000001_000.png chest.dcm
    """
    load_tensorflow()
    from cxr_records.trainers.predict import predict_files

    scores = predict_files(run, images)
    problems = [score for score in scores if score.problem]
    for score in problems:
        click.echo(f"{score.path}: {score.problem}", err=True)
    if as_json:
        click.echo(json.dumps([score._asdict() for score in scores]))
    elif out:
        storage.write_bytes(out, _table(scores).encode())
    else:
        click.echo(_table(scores), nl=False)
    if len(problems) == len(scores):
        raise CxrError(f"none of the {len(scores)} files could be read")
    if problems:
        raise FoundProblems(f"{len(problems)} of {len(scores)} files could not be read")


@click.command()
@click.argument("run", type=PATH)
@click.option("--format", default="savedmodel", show_default=True, help="savedmodel, onnx or tflite.")
@click.option(
    "--out", type=PATH, required=True, metavar="DIR", help="A new folder, or one of an earlier export."
)
@_JSON
@_DEBUG
def export(run: str, format: str, out: str, as_json: bool, debug: bool) -> None:
    """Write a trained run's model for a server: raw uint8 images in, probabilities out.

    Beside the model stands model.json: names of the classes in order, how images are to be prepared,
    operating points and calibration of the run's evaluation, sha256 of every file. The run's dataset is not
    needed. What was written is first scored by its own runtime. Scores of a model are no diagnosis.

    \b
    Example:
      cxr-records export runs/first --out served
      cxr-records export runs/first --format onnx --out served-onnx
    """
    if "keras" not in sys.modules:
        os.environ["KERAS_BACKEND"] = "tensorflow"  # whatever the run was trained with
    load_tensorflow()
    from cxr_records.trainers.devices import choose_devices
    from cxr_records.trainers.export import ABOUT_FILE, export_run

    choose_devices("cpu")  # a GPU may be at work on something else
    done = export_run(run, out, format)
    progress.warn(done.warnings)
    if as_json:
        click.echo(json.dumps({"out": done.path, **done.about, "warnings": list(done.warnings)}))
        return
    megabytes = sum(file["bytes"] for file in done.about["files"].values()) / 1e6
    click.echo(
        f"{done.model}: {megabytes:,.1f} MB, scores by its own runtime within "
        f"{done.about['checked']['largest_difference']:.1g} of the run's"
    )
    click.echo(f"how to use it: {storage.join(done.path, ABOUT_FILE)}")


def _table(scores: Sequence[Any]) -> str:
    out = io.StringIO()
    names = next((list(score.scores) for score in scores if score.scores), [])
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["image", *(f"prob_{name}" for name in names)])
    for score in scores:
        if score.scores:
            writer.writerow([storage.redacted(score.path), *(f"{score.scores[name]:.6f}" for name in names)])
    return out.getvalue()
