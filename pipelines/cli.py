"""The commands that make datasets: build, plan, decode. They parse, call, and print; no work is done here.

What does the work is loaded when a command runs, not for its --help.
"""

import functools
import json
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import click

from cxr_records.choices import (
    CODECS,
    LOCAL_RUNNER,
    MAX_HELP,
    OF_HELP,
    RESAMPLE,
    RULE_HELP,
    RULES,
    TARGET_HELP,
)
from cxr_records.cli import PATH
from cxr_records.errors import UsageError

Decorated = TypeVar("Decorated", bound=Callable[..., Any])
_SEVERAL = ("--images", "--copies-of")


class _Command(click.Command):
    """A command whose --images and --copies-of take all words up to the next option."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        return super().parse_args(ctx, list(_repeat_options(args)))


def _repeat_options(args: list[str]) -> Iterator[str]:
    """Turns `--images a b` into `--images a --images b`, as a shell's * gives many words at once."""
    option, count = None, 0
    for place, word in enumerate(args):
        if word == "--":
            yield from args[place:]
            return
        if word.startswith("-"):
            option, count = (word if word in _SEVERAL else None), 0
        elif option:
            count += 1
            if count > 1:
                yield option
        yield word


_OPTIONS = {
    "sources": [
        click.option("--images", type=PATH, multiple=True, metavar="PATH...",
                     help="Folders, .zip, .tar, .tar.gz files and URLs that hold the images, any mix."),
        click.option("--metadata", type=PATH, required=True, metavar="TABLE",
                     help="NIH's table: CSV or .xlsx, packed or not; 2017, 2020 or Kaggle's sample."),
        click.option("--allow-missing", is_flag=True,
                     help="Go on although images of the table are in no source, or names of a list in no row "
                          "of the table (beyond 1%)."),
        click.option("--max-rejected", type=float, default=0.01, show_default=True,
                     help="Share of the images at hand that may be undecodable."),
    ],
    "format": [
        click.option("--size", type=int, default=224, show_default=True, help="Side of an image, in pixels."),
        click.option("--codec", type=click.Choice(CODECS), default="raw", show_default=True,
                     help="What a record holds: raw pixels are the fastest to read."),
        click.option("--resample", type=click.Choice(RESAMPLE), default="bilinear", show_default=True,
                     help="Filter used to resize."),
    ],
    "dataset": [
        click.option("--train-val-list", type=PATH, metavar="FILE", help="Names of the images to train on."),
        click.option("--test-list", type=PATH, metavar="FILE", help="Names of the images to test on."),
        click.option("--validation-list", type=PATH, metavar="FILE",
                     help="Names of the images to validate on."),
        click.option("--validation-fraction", type=float, default=0.125, show_default=True,
                     help="Share of the training images cut for validation, by patient; 0 makes none."),
        click.option("--test-fraction", type=float, default=0.2, show_default=True,
                     help="Share of all images to test on, where no lists are given."),
        click.option("--splits-of", type=PATH, metavar="DATASET",
                     help="Take the splits of another dataset as they are, in place of lists and fractions."),
        click.option("--task", default="multilabel", show_default=True,
                     help="binary, binary:FINDING, binary:FINDING,FINDING, multiclass or multilabel."),
        click.option("--with-no-finding", is_flag=True, help="Give multiclass a 15th class, No Finding."),
        click.option("--copies", type=click.Choice(RULES), default="linear", show_default=True,
                     help=RULE_HELP),
        click.option("--copies-target", type=float, default=0.03, show_default=True,
                     help=TARGET_HELP),
        click.option("--copies-max", type=int, default=10, show_default=True, help=MAX_HELP),
        click.option("--copies-of", multiple=True, metavar="FINDING...", help=OF_HELP),
        click.option("--flip", is_flag=True,
                     help="Let copies be flipped sideways. It fakes dextrocardia, so it is off."),
        click.option("--seed", type=int, default=0, show_default=True, help="Of splits, order and copies."),
        click.option("--shard-mb", type=int, default=64, show_default=True, help="Aim of a shard, in MiB."),
    ],
    "engine": [
        click.option("--workers", type=int, default=None, help="Processes; as many as cores when not given."),
        click.option("--runner", default=LOCAL_RUNNER, show_default=True,
                     help="Beam runner; its own options follow after --."),
        click.argument("beam_options", nargs=-1, type=click.UNPROCESSED, metavar="[-- BEAM_OPTIONS]"),
    ],
    "output": [
        click.option("--json", "as_json", is_flag=True, help="Print one JSON object and nothing else."),
        click.option("--debug", is_flag=True, help="Show Beam's log, and tracebacks."),
    ],
}  # fmt: skip


def _options(*groups: str) -> Callable[[Decorated], Decorated]:
    stack = [option for group in groups for option in _OPTIONS[group]]

    def decorate(function: Decorated) -> Decorated:
        return functools.reduce(lambda made, option: option(made), reversed(stack), function)

    return decorate


@click.command(cls=_Command)
@_options("sources")
@click.option("--out", type=PATH, required=True, metavar="DATASET", help="Folder of the dataset.")
@_options("dataset", "format")
@click.option(
    "--store", type=PATH, metavar="DIR", help="Folder of decoded images; beside the dataset when not given."
)
@_options("engine", "output")
def build(as_json: bool, out: str, **options: Any) -> None:
    """Build a dataset of TFRecord shards, or finish or update it.

    Every image is decoded once and kept in an image store; a change of task, split, labels or copies is
    then a matter of seconds. Stopped at any moment, the same command goes on where it was.

    \b
    Example:
      cxr-records build --images images_*.tar.gz --metadata Data_Entry_2017_v2020.csv \\
          --train-val-list train_val_list.txt --test-list test_list.txt --out cxr14
    """
    from cxr_records.pipelines import api, summary

    result = api.build(out=out, **_words(**options))
    summary.warn_of_empty_classes(result.plan)
    if as_json:
        click.echo(json.dumps(summary.build_json(result, out)))
    else:
        summary.tell_plan(result.plan, result.decoded.at_hand)
        summary.tell_build(result, out)


@click.command(cls=_Command)
@_options("sources")
@click.option(
    "--out", type=PATH, default="cxr14", metavar="DATASET", help="Folder that build would write to."
)
@_options("dataset", "format")
@click.option(
    "--store", type=PATH, metavar="DIR", help="Folder of decoded images; beside the dataset when not given."
)
@_options("engine", "output")
def plan(as_json: bool, **options: Any) -> None:
    """Tell what build would write with the same options; write nothing.

    Without --images it plans as if every image of the table were there.

    \b
    Example:
      cxr-records plan --metadata Data_Entry_2017_v2020.csv \\
          --train-val-list train_val_list.txt --test-list test_list.txt
    """
    from cxr_records.pipelines import api, summary

    result = api.plan(**_words(**options))
    summary.warn_of_empty_classes(result.plan)
    if as_json:
        click.echo(json.dumps(summary.plan_json(result)))
    else:
        summary.tell_plan_result(result)


@click.command(cls=_Command)
@_options("sources")
@click.option("--store", type=PATH, required=True, metavar="DIR", help="Folder of decoded images.")
@_options("format", "engine", "output")
def decode(as_json: bool, beam_options: tuple[str, ...], **options: Any) -> None:
    """Decode images into an image store, which builds then share.

    \b
    Example:
      cxr-records decode --images images_*.tar.gz --metadata Data_Entry_2017_v2020.csv --store store-224
    """
    from cxr_records.pipelines import summary
    from cxr_records.pipelines.decode import decode_store
    from cxr_records.pipelines.request import decode_request_of

    _check_words(beam_options)
    request = decode_request_of(beam_options=beam_options, **options)
    decoded = decode_store(request)
    if as_json:
        click.echo(json.dumps(summary.decode_json(decoded)))
    else:
        summary.tell_decode(decoded)
    decoded.check_rejected(request.max_rejected)


def _words(task: str, with_no_finding: bool, beam_options: tuple[str, ...], **options: Any) -> dict[str, Any]:
    """The arguments of `api.build` and `api.plan` from the words of the command line."""
    from cxr_records.tasks import parse_task

    _check_words(beam_options)
    return {"task": parse_task(task, with_no_finding), "beam_options": beam_options, **options}


def _check_words(beam_options: tuple[str, ...]) -> None:
    """Refuses words that stand where only Beam's options may."""
    if beam_options and not beam_options[0].startswith("--"):
        raise UsageError(
            f"found {beam_options[0]!r}, which belongs to no option; quote names with spaces or *"
        )
