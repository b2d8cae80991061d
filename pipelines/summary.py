"""What build and plan tell: tables for people, and the same as plain values for --json."""

import math
import os
import shutil

import click

from cxr_records import sampling
from cxr_records.pipelines.build import BuildRequest, BuildResult
from cxr_records.pipelines.decode import FoundImages
from cxr_records.planning import Plan
from cxr_records.progress import say


def plan_json(planned: Plan, size: dict[str, float], found: FoundImages | None) -> dict:
    """Returns what `plan --json` prints; other tools rely on its keys."""
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


def build_json(result: BuildResult, out: str) -> dict:
    """Returns what `build --json` prints; other tools rely on its keys."""
    manifest = result.manifest.to_json()
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


def warn_of_empty_classes(planned: Plan) -> None:
    """Says on stderr which classes have no training image, whatever is printed on stdout."""
    empty = [balance.name for balance in planned.balance.classes if balance.images == 0]
    if warning := sampling.empty_classes_warning(empty):
        say(f"warning: {warning}")


def tell_found(found: FoundImages) -> None:
    """Prints what the table and the sources do not have in common."""
    if found.missing:
        click.echo(f"missing: {found.missing:,} images of the table are in no source")
    if found.not_in_table:
        click.echo(f"not in the table: {found.not_in_table:,} image files, left alone")


def tell_plan(planned: Plan, found: FoundImages | None) -> None:
    """Prints splits, what is left out and why, records by split, and the balance of the classes."""
    task = planned.config.task
    click.echo(
        f"task {task.name}{' with No Finding' * task.with_no_finding}; splits: {planned.splits.origin}"
    )
    if not planned.splits.official:
        click.echo("not the official split: do not compare results with published official-split results")
    if planned.splits.not_in_table and not planned.splits.official:
        click.echo(f"in a list but not in the table: {planned.splits.not_in_table:,} names")
    if found:
        tell_found(found)
    for (reason, detail), count in planned.left_out.groupby(["reason", "detail"]).size().items():
        if reason not in ("missing", "rejected"):
            click.echo(f"{reason}: {count:,} images{f' ({detail})' if detail else ''}")
    rejected = planned.left_out[planned.left_out["reason"] == "rejected"]
    for detail, rows in rejected.groupby("detail"):
        more = f" and {len(rows) - 1:,} more" if len(rows) > 1 else ""
        click.echo(f"rejected: {rows['image_id'].iloc[0]}{more}: {detail}")
    click.echo()
    click.echo(f"{'split':<11}{'patients':>10}{'images':>10}{'copies':>10}{'records':>10}{'shards':>8}")
    for split, count in planned.split_counts().items():
        cells = "".join(f"{count[name]:>10,}" for name in ("patients", "images", "copies", "records"))
        click.echo(f"{split:<11}{cells}{count['shards']:>8,}")
    click.echo()
    _tell_classes(planned)
    balance = planned.balance
    if balance.mean_ir_before is not None:
        copies = _describe(planned.config.copies)
        click.echo(
            f"imbalance in train (copies: {copies}): MeanIR {balance.mean_ir_before:.2f} -> "
            f"{balance.mean_ir_after:.2f}, maxIR {balance.max_ir_before:.1f} -> {balance.max_ir_after:.1f}"
        )


def _describe(copies: sampling.CopyRule) -> str:
    """The rule with the settings that it heeds."""
    of = f" of {', '.join(copies.of)}" if copies.of else ""
    if copies.rule == "none":
        return "none"
    if copies.rule == "fixed":
        return f"fixed, {copies.max_records} copies{of}"
    return f"{copies.rule}, target {copies.target:.0%}, max {copies.max_records}{of}"


def _tell_classes(planned: Plan) -> None:
    """A row per class: images by split; in train records, IRLbl before and after, share dragged along."""
    splits = planned.split_names
    head = "".join(f"{split:>11}" for split in splits)
    click.echo(f"{'class':<19}{head}{'train rec.':>12}{'IRLbl':>8}{'after':>8}{'dragged':>9}")
    for name, count in planned.class_counts().items():
        images = "".join(f"{count['splits'][split]['images']:>11,}" for split in splits)
        row = f"{name:<19}{images}"
        if "train" in count["splits"]:
            row += f"{count['splits']['train']['records']:>12,}"
        if "irlbl" in count:
            row += "".join(f"{_ratio(count['irlbl'][key]):>8}" for key in ("before", "after"))
            row += f"{count['dragged']:>9.0%}"
        click.echo(row)


def _ratio(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def tell_size(planned: Plan, size: dict[str, float], to_decode: int, request: BuildRequest) -> None:
    """Prints bytes on disk and time, and warns where the disk has no room."""
    workers = request.engine.workers
    store = (
        "" if planned.stored is not None and not to_decode else f", image store {_bytes(size['store_bytes'])}"
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


def tell_build(result: BuildResult, out: str) -> None:
    """Prints what a finished build did."""
    seconds = result.seconds
    click.echo(
        f"decoded {result.decoded.decoded:,} images in {seconds['decode']:.1f} s, wrote {result.written:,} "
        f"of {len(result.plan.shards):,} shards in {seconds['write']:.1f} s, {seconds['total']:.1f} s in all"
    )
    if result.written < len(result.plan.shards):
        click.echo("the other shards were there already; only verify reads them again")
    click.echo(f"{out}: complete, id {result.manifest.id}")
    click.echo(f"check it: cxr-records verify {out} --deep")


def _bytes(count: float) -> str:
    unit = min(4, int(math.log(max(count, 1), 1000)))
    return f"{count / 1000**unit:.1f} {('B', 'kB', 'MB', 'GB', 'TB')[unit]}"


def _seconds(count: float) -> str:
    if count < 100:
        return f"{max(count, 1):.0f} s"
    return f"{count / 60:.0f} min" if count < 7200 else f"{count / 3600:.1f} h"
