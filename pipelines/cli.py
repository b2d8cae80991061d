"""The commands that make datasets: build, plan, decode. They parse, call, and print; no work is done here."""

import functools
import json
import math
import os
import shutil
from collections.abc import Callable, Iterator

import click

from cxr_records import sampling, storage
from cxr_records.errors import UsageError
from cxr_records.images import CODECS, RESAMPLING, ImageFormat
from cxr_records.plan import SECONDS_PER_DECODE, DatasetConfig, Plan, estimate, make_plan
from cxr_records.splits import SplitOptions
from cxr_records.tasks import parse_task
from pipelines.build import BuildRequest, BuildResult, build_dataset, read_table
from pipelines.decode import (
    FoundImages,
    check_rejected,
    decode_images,
    find_images,
    pending_images,
    seconds_per_decode,
)
from pipelines.engines import LOCAL_RUNNER, Engine
from pipelines.progress import say

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
    if as_json:
        click.echo(json.dumps(_build_json(result, out)))
    else:
        _tell_plan(result.plan, result.found)
        _tell_build(result, out)


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
    size = estimate(planned, to_decode, request.engine.workers, per_decode)
    if as_json:
        click.echo(json.dumps(_plan_json(planned, size, found)))
    else:
        _tell_plan(planned, found)
        _tell_size(planned, size, to_decode, request)


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
    found = find_images(images, read_metadata(metadata), store, allow_missing)
    done = decode_images(found, store, image_format, made)
    if as_json:
        held = len(done.images) - done.rejected
        click.echo(
            json.dumps({"store": store, "images": held, "decoded": done.decoded, "rejected": done.rejected})
        )
    else:
        _tell_found(found)
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
    cores = len(os.sched_getaffinity(0))
    return Engine(cores if workers is None else workers, runner, beam_options, debug)


def _with_undecoded(images, pending):
    """Images that are not decoded yet are planned as if all of them will be."""
    import pandas as pd

    from cxr_records.store import OK

    hoped = pd.DataFrame({"status": OK, "reason": ""}, index=sorted(pending))
    return hoped if images is None else pd.concat([images, hoped]).sort_index()


def _plan_json(planned: Plan, size: dict[str, float], found: FoundImages | None) -> dict:
    counts = planned.split_counts()
    balance = planned.balance.to_json()
    return {
        "records": {split: count["records"] for split, count in counts.items()},
        "images": {split: count["images"] for split, count in counts.items()},
        "copies": planned.num_copies,
        "patients": {split: count["patients"] for split, count in counts.items()},
        "shards": {split: count["shards"] for split, count in counts.items()},
        "classes": planned.class_counts(),
        "mean_ir": balance["mean_ir"],
        "max_ir": balance["max_ir"],
        "left_out": planned.left_out_counts(),
        "missing": found.missing if found else None,
        "not_in_table": found.not_in_table if found else None,
        "splits": planned.splits.origin,
        "official": planned.splits.official,
        **{name: round(value, 1) for name, value in size.items()},
    }


def _build_json(result: BuildResult, out: str) -> dict:
    manifest = result.manifest
    return {
        "dataset": out,
        "id": manifest["id"],
        "records": {split: counts["records"] for split, counts in manifest["splits"].items()},
        "copies": result.plan.num_copies,
        "rejected": result.decoded.rejected,
        "missing": result.found.missing,
        "not_in_table": result.found.not_in_table,
        "left_out": manifest["left_out"],
        "classes": manifest["classes"],
        "mean_ir": manifest["mean_ir"],
        "max_ir": manifest["max_ir"],
        "shards": len(result.plan.shards),
        "decoded": result.decoded.decoded,
        "seconds": result.seconds,
    }


def _tell_found(found: FoundImages) -> None:
    if found.missing:
        click.echo(f"missing: {found.missing:,} images of the table are in no source")
    if found.not_in_table:
        click.echo(f"not in the table: {found.not_in_table:,} image files, left alone")


def _tell_plan(planned: Plan, found: FoundImages | None) -> None:
    task, copies = planned.config.task, planned.config.copies
    click.echo(
        f"task {task.name}{' with No Finding' * task.with_no_finding}; splits: {planned.splits.origin}"
    )
    if not planned.splits.official:
        click.echo("not the official split: do not compare results with published official-split results")
    if found:
        _tell_found(found)
    for (reason, detail), count in planned.left_out.groupby(["reason", "detail"]).size().items():
        if reason not in ("missing", "rejected"):
            click.echo(f"{reason}: {count:,} images{f' ({detail})' if detail else ''}")
    rejected = planned.left_out[planned.left_out["reason"] == "rejected"]
    for detail, rows in rejected.groupby("detail"):
        more = f" and {len(rows) - 1:,} more" if len(rows) > 1 else ""
        click.echo(f"rejected: {rows['image_id'].iloc[0]}{more}: {detail}")
    warning = sampling.empty_classes_warning([c.name for c in planned.balance.classes if c.images == 0])
    if warning:
        say(f"warning: {warning}")
    click.echo()
    click.echo(f"{'split':<11}{'patients':>10}{'images':>10}{'copies':>10}{'records':>10}{'shards':>8}")
    for split, count in planned.split_counts().items():
        cells = "".join(f"{count[name]:>10,}" for name in ("patients", "images", "copies", "records"))
        click.echo(f"{split:<11}{cells}{count['shards']:>8,}")
    click.echo()
    _tell_classes(planned)
    balance = planned.balance
    if balance.mean_ir_before is not None:
        rule = (
            copies.rule
            if copies.rule == "none"
            else f"{copies.rule}, target {copies.target:.0%}, max {copies.max_records}"
        )
        click.echo(
            f"imbalance in train (copies: {rule}): MeanIR {balance.mean_ir_before:.2f} -> "
            f"{balance.mean_ir_after:.2f}, maxIR {balance.max_ir_before:.1f} -> {balance.max_ir_after:.1f}"
        )


def _tell_classes(planned: Plan) -> None:
    """A row per class: images by split; in train records, IRLbl before and after, share dragged along."""
    splits = planned.split_names
    head = "".join(f"{split:>11}" for split in splits)
    click.echo(f"{'class':<19}{head}{'records':>10}{'IRLbl':>8}{'after':>8}{'dragged':>9}")
    for name, count in planned.class_counts().items():
        images = "".join(f"{count['splits'][split]['images']:>11,}" for split in splits)
        row = f"{name:<19}{images}"
        if "train" in count["splits"]:
            row += f"{count['splits']['train']['records']:>10,}"
        if "irlbl" in count:
            row += "".join(f"{_ratio(count['irlbl'][key]):>8}" for key in ("before", "after"))
            row += f"{count['dragged']:>9.0%}"
        click.echo(row)


def _ratio(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def _tell_size(planned: Plan, size: dict[str, float], to_decode: int, request: BuildRequest) -> None:
    workers = request.engine.workers
    store = (
        "" if planned.images is not None and not to_decode else f", image store {_bytes(size['store_bytes'])}"
    )
    click.echo(f"on disk: dataset about {_bytes(size['dataset_bytes'])}{store}")
    click.echo(
        f"time with {workers} worker{'s' * (workers > 1)}: decode about {_seconds(size['decode_seconds'])} "
        f"({to_decode:,} images), write about {_seconds(size['write_seconds'])}"
    )
    parent = os.path.dirname(request.out)
    if os.path.isdir(parent):
        needed, free = (
            size["dataset_bytes"] + size["store_bytes"] * bool(to_decode),
            shutil.disk_usage(parent).free,
        )
        if needed > free:
            say(f"warning: {parent} has {_bytes(free)} free, {_bytes(needed)} are needed")


def _tell_build(result: BuildResult, out: str) -> None:
    seconds = result.seconds
    click.echo(
        f"decoded {result.decoded.decoded:,} images in {seconds['decode']:.1f} s, wrote {result.written:,} "
        f"of {len(result.plan.shards):,} shards in {seconds['write']:.1f} s, {seconds['total']:.1f} s in all"
    )
    click.echo(f"{out}: complete, id {result.manifest['id']}")
    click.echo(f"check it: cxr-records verify {out} --deep")


def _bytes(count: float) -> str:
    unit = min(4, int(math.log(max(count, 1), 1000)))
    return f"{count / 1000**unit:.1f} {('B', 'kB', 'MB', 'GB', 'TB')[unit]}"


def _seconds(count: float) -> str:
    if count < 100:
        return f"{max(count, 1):.0f} s"
    return f"{count / 60:.0f} min" if count < 7200 else f"{count / 3600:.1f} h"
