"""The command `demo`: the main job end to end, on a small look-alike set or on files of one's own."""

import importlib.util
import shlex
import time
from collections.abc import Sequence
from pathlib import Path

import click

from cxr_records import storage
from cxr_records.cli import PATH, cli, in_options
from cxr_records.errors import CxrError, UsageError
from cxr_records.names import is_litter

SHEET = "contact_sheet.png"
SHEET_IMAGES = 6
EPOCHS = 12


@click.command()
@click.option(
    "--out", type=PATH, default="demo", show_default=True, metavar="DIR", help="Where everything goes."
)
@click.option(
    "--images", type=PATH, multiple=True, metavar="PATH", help="Your images instead of the look-alike set."
)
@click.option("--metadata", type=PATH, metavar="TABLE", help="The table of your images.")
@click.option("--train-val-list", type=PATH, metavar="FILE", help="As for build.")
@click.option("--test-list", type=PATH, metavar="FILE", help="As for build.")
@click.option("--num-images", default=600, show_default=True, help="Size of the look-alike set.")
@click.option("--workers", type=int, default=None, help="As for build.")
def demo(
    out: str,
    images: Sequence[str],
    metadata: str | None,
    train_val_list: str | None,
    test_list: str | None,
    num_images: int,
    workers: int | None,
) -> None:
    """Make a small look-alike set and run the main job on it: plan, build, verify, build again, train.

    Training takes about a minute on two cores with the look-alike set; it is left out where TensorFlow is not
    installed, and on your own files it is as short as it can be: one epoch.

    \b
    Example:
      cxr-records demo --out demo
      cxr-records demo --out demo --images images_001 --metadata Data_Entry_2017_v2020.csv
    """
    from cxr_records import contact_sheet, lookalike
    from cxr_records.dataset import open_dataset

    if bool(images) != bool(metadata):
        raise UsageError("give --images and --metadata together, or neither for the look-alike set")
    folder, own_images = storage.local_path(out), bool(images)
    _check_folder(folder)
    if not images:
        click.echo(f"Drawing {num_images:,} look-alike X-rays with planted findings in {folder / 'nih'}")
        made = lookalike.make_lookalike(folder / "nih", num_images, workers=workers or 1)
        images, metadata = [str(made.images)], str(made.metadata)
        train_val_list, test_list = str(made.train_val_list), str(made.test_list)
    inputs = ["--images", *images, "--metadata", str(metadata), "--allow-missing"]
    lists = {"--train-val-list": train_val_list, "--test-list": test_list, "--workers": workers}
    for option, value in lists.items():
        inputs += [option, str(value)] if value is not None else []
    dataset, binary = str(folder / "cxr14"), str(folder / "cxr14-binary")
    _run("plan", *inputs, "--out", dataset)
    _run("build", *inputs, "--out", dataset)
    _run("verify", dataset, "--deep")
    click.echo("\nAnother task from the same decoded images: nothing is decoded again.")
    _run("build", *inputs, "--out", binary, "--task", "binary")
    sheet = folder / SHEET
    contact_sheet.sheet_of_dataset(dataset, SHEET_IMAGES).save(sheet)
    run = folder / f"run-{open_dataset(dataset).id[:8]}"  # another dataset gets another run
    trains = importlib.util.find_spec("tensorflow") is not None
    if trains:
        click.echo("\nThe small model, which a CPU can train.")
        _run("train", dataset, "--run", str(run), *_settings(dataset, 1 if own_images else EPOCHS))
    else:
        click.echo("\nNo training: TensorFlow is not installed (extra train).")
    click.echo(
        f"\nWhere to look:\n"
        f"  {dataset}/                  the dataset: shards, manifest.json, records.parquet, rejected.csv\n"
        f"  {binary}/           the same images for the task binary\n"
        f"  {sheet}      rare images with their ten augmented copies: judge them yourself"
        + f"\n  {run}/report.html   what the small model has learned, and its mistakes" * trains
        + ", on drawings" * (trains and not own_images)
    )


def _settings(dataset: str, epochs: int) -> list[str]:
    """For a training run that a set of any size allows."""
    from cxr_records.dataset import open_dataset

    records = open_dataset(dataset).splits["train"].records
    smaller = ["--set", f"batch_size={max(1, records // 2)}"] if records < 128 else []
    return ["--set", f"epochs={epochs}", *smaller]


def _check_folder(folder: Path) -> None:
    """Refuses a folder that holds anything which no demo made, so that nothing of the user's is replaced."""
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    ours = {"nih", "cxr14", "cxr14-binary"} | {
        name for name in names if name.startswith(("image-store-", "run-"))
    }
    if (folder / "cxr14").is_dir():
        ours.add(SHEET)
    if strangers := sorted(name for name in set(names) - ours if not is_litter(name)):
        raise UsageError(f"--out {folder} holds {strangers[0]}, which no demo made; name another folder")


def _run(*words: str) -> None:
    """Runs one of our commands, showing it as a user would type it and how long it took."""
    click.echo(f"\n$ {shlex.join(('cxr-records', *words))}")
    started = time.monotonic()
    try:
        cli.main(list(words), standalone_mode=False)
    except CxrError as error:  # in the words of the command that is shown, not of the demo's
        command = cli.get_command(click.Context(cli), words[0])
        raise type(error)(in_options(str(error), command)) from error
    click.echo(f"({time.monotonic() - started:.1f} s)")
