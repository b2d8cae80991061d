"""The commands that make datasets: build, plan, decode. They parse, call, and print; no work is done here."""

import functools
import json
from collections.abc import Callable, Iterator

import click

from cxr_records import sampling, storage
from cxr_records.config import DatasetConfig
from cxr_records.errors import UsageError
from cxr_records.images import CODECS, RESAMPLING, ImageFormat
from cxr_records.pipelines.build import BuildRequest, build_dataset, read_table
from cxr_records.pipelines.decode import (
    check_rejected,
    decode_images,
    find_images,
    pending_images,
    seconds_per_decode,
)
from cxr_records.pipelines.engines import LOCAL_RUNNER, Engine, cores
from cxr_records.pipelines.summary import (
    build_json,
    plan_json,
    tell_build,
    tell_found,
    tell_plan,
    tell_size,
    warn_of_empty_classes,
)
from cxr_records.planning import SECONDS_PER_DECODE, estimate, make_plan
from cxr_records.splits import SplitOptions
from cxr_records.tasks import parse_task

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
        click.option("--images", multiple=True, metavar="PATH...",
                     help="Folders, .zip, .tar, .tar.gz files and URLs that hold the images, any mix."),
        click.option("--metadata", required=True, metavar="TABLE",
                     help="NIH's table: .csv, .csv.gz or .xlsx; 2017, 2020 or Kaggle's sample."),
        click.option("--allow-missing", is_flag=True,
                     help="Go on although images of the table (beyond 1%) are in no source."),
        click.option("--max-rejected", type=float, default=0.01, show_default=True,
                     help="Share of the images at hand that may be undecodable."),
    ],
    "format": [
        click.option("--size", type=int, default=224, show_default=True, help="Side of an image, in pixels."),
        click.option("--codec", type=click.Choice(CODECS), default="raw", show_default=True,
                     help="What a record holds: raw pixels are the fastest to read."),
        click.option("--resample", type=click.Choice(list(RESAMPLING)), default="bilinear", show_default=True,
                     help="Filter used to resize."),
    ],
    "dataset": [
        click.option("--train-val-list", metavar="FILE", help="Names of the images to train on."),
        click.option("--test-list", metavar="FILE", help="Names of the images to test on."),
        click.option("--validation-list", metavar="FILE", help="Names of the images to validate on."),
        click.option("--validation-fraction", type=float, default=0.125, show_default=True,
                     help="Share of the training images cut for validation, by patient; 0 makes none."),
        click.option("--test-fraction", type=float, default=0.2, show_default=True,
                     help="Share of all images to test on, where no lists are given."),
        click.option("--task", default="multilabel", show_default=True,
                     help="binary, binary:FINDING, binary:FINDING,FINDING, multiclass or multilabel."),
        click.option("--with-no-finding", is_flag=True, help="Give multiclass a 15th class, No Finding."),
        click.option("--copies", type=click.Choice(sampling.RULES), default="linear", show_default=True,
                     help=sampling.RULE_HELP),
        click.option("--copies-target", type=float, default=0.03, show_default=True,
                     help=sampling.TARGET_HELP),
        click.option("--copies-max", type=int, default=10, show_default=True, help=sampling.MAX_HELP),
        click.option("--copies-of", multiple=True, metavar="FINDING...", help=sampling.OF_HELP),
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


def _options(*groups: str) -> Callable:
    stack = [option for group in groups for option in _OPTIONS[group]]

    def decorate(function: Callable) -> Callable:
        return functools.reduce(lambda made, option: option(made), reversed(stack), function)

    return decorate


@click.command(cls=_Command)
@_options("sources")
@click.option("--out", required=True, metavar="DATASET", help="Folder of the dataset.")
@_options("dataset", "format")
@click.option("--store", metavar="DIR", help="Folder of decoded images; beside the dataset when not given.")
@_options("engine", "output")
def build(out: str, as_json: bool, **options) -> None:
    """Build a dataset of TFRecord shards, or finish or update it.

    Every image is decoded once and kept in an image store; a change of task, split, labels or copies is
    then a matter of seconds. Stopped at any moment, the same command goes on where it was.

    \b
    Example:
      cxr-records build --images images_*.tar.gz --metadata Data_Entry_2017_v2020.csv \\
          --train-val-list train_val_list.txt --test-list test_list.txt --out cxr14
    """
    if not options["images"]:
        raise UsageError("--images is missing: name the folders, archives or URLs that hold the images")
    result = build_dataset(_request(out=out, **options))
    warn_of_empty_classes(result.plan)
    if as_json:
        click.echo(json.dumps(build_json(result, out)))
    else:
        tell_plan(result.plan, result.found)
        tell_build(result, out)


@click.command(cls=_Command)
@_options("sources")
@click.option("--out", default="cxr14", metavar="DATASET", help="Folder that build would write to.")
@_options("dataset", "format")
@click.option("--store", metavar="DIR", help="Folder of decoded images; beside the dataset when not given.")
@_options("engine", "output")
def plan(as_json: bool, **options) -> None:
    """Tell what build would write with the same options; write nothing.

    Without --images it plans as if every image of the table were there.

    \b
    Example:
      cxr-records plan --metadata Data_Entry_2017_v2020.csv \\
          --train-val-list train_val_list.txt --test-list test_list.txt
    """
    from cxr_records.store import locate, open_store, signature

    request = _request(**options)
    metadata, splits = read_table(request)
    found, images, to_decode, per_decode = None, None, len(metadata), SECONDS_PER_DECODE
    if request.images:
        image_format, path = request.config.image_format, request.store_path
        found = find_images(request.images, metadata, path, request.allow_missing, keep_index=False)
        store = open_store(path, image_format, create=False)
        pending = found.entries
        images = None
        if store:
            index = store.read_index()
            pending = pending_images(found, index)
            images = locate(index, {name: signature(entries) for name, entries in found.entries.items()})
        images = _with_undecoded(images, pending)
        to_decode = len(pending)
        if pending:
            per_decode = seconds_per_decode(found, image_format, path)
    planned = make_plan(metadata, splits, request.config, images)
    warn_of_empty_classes(planned)
    size = estimate(planned, to_decode, request.engine.workers, per_decode)
    if as_json:
        click.echo(json.dumps(plan_json(planned, size, found)))
    else:
        tell_plan(planned, found)
        tell_size(planned, size, to_decode, request)


@click.command(cls=_Command)
@_options("sources")
@click.option("--store", required=True, metavar="DIR", help="Folder of decoded images.")
@_options("format", "engine", "output")
def decode(
    images: tuple[str, ...],
    metadata: str,
    allow_missing: bool,
    max_rejected: float,
    store: str,
    size: int,
    codec: str,
    resample: str,
    as_json: bool,
    **engine,
) -> None:
    """Decode images into an image store, which builds then share.

    \b
    Example:
      cxr-records decode --images images_*.tar.gz --metadata Data_Entry_2017_v2020.csv --store store-224
    """
    from cxr_records.metadata import read_metadata

    image_format = ImageFormat(size, codec, resample)
    if not images:
        raise UsageError("--images is missing: name the folders, archives or URLs that hold the images")
    store, made = storage.absolute(store), _engine(**engine)
    made.check()
    found = find_images(images, read_metadata(metadata), store, allow_missing)
    done = decode_images(found, store, image_format, made)
    if as_json:
        held = len(done.images) - done.rejected
        click.echo(
            json.dumps({"store": store, "images": held, "decoded": done.decoded, "rejected": done.rejected})
        )
    else:
        tell_found(found)
        click.echo(f"{len(done.images) - done.rejected:,} images in {store}, {done.decoded:,} decoded now, "
                   f"{done.rejected:,} rejected")  # fmt: skip
    check_rejected(done.images, max_rejected)


def _request(
    images: tuple[str, ...], metadata: str, out: str, store: str | None, allow_missing: bool,
    max_rejected: float, train_val_list: str | None, test_list: str | None, validation_list: str | None,
    validation_fraction: float, test_fraction: float, task: str, with_no_finding: bool, copies: str,
    copies_target: float, copies_max: int, copies_of: tuple[str, ...], flip: bool, seed: int, shard_mb: int,
    size: int, codec: str, resample: str, **engine,
) -> BuildRequest:  # fmt: skip
    """Turns the words of the command line into what they mean; each part refuses what it cannot be."""
    return BuildRequest(
        images=images,
        metadata=metadata,
        out=out,
        config=DatasetConfig(
            task=parse_task(task, with_no_finding),
            image_format=ImageFormat(size, codec, resample),
            copies=sampling.CopyRule(copies, copies_target, copies_max, copies_of),
            flip=flip,
            seed=seed,
            shard_mb=shard_mb,
        ),
        split_options=SplitOptions(
            train_val_list, test_list, validation_list, validation_fraction, test_fraction, seed
        ),
        store=store,
        allow_missing=allow_missing,
        max_rejected=max_rejected,
        engine=_engine(**engine),
    )


def _engine(workers: int | None, runner: str, beam_options: tuple[str, ...], debug: bool) -> Engine:
    if beam_options and not beam_options[0].startswith("--"):
        raise UsageError(
            f"found {beam_options[0]!r}, which belongs to no option; quote names with spaces or *"
        )
    return Engine(cores() if workers is None else workers, runner, beam_options, debug)


def _with_undecoded(images, pending):
    """Images that are not decoded yet are planned as if all of them will be."""
    import pandas as pd

    from cxr_records.store import OK

    hoped = pd.DataFrame({"status": OK, "reason": ""}, index=sorted(pending))
    return hoped if images is None else pd.concat([images, hoped]).sort_index()
