"""What build, plan and decode tell: tables for people, and the same as plain values for --json."""

import math
import os
import shutil
from typing import Any

import click

from cxr_records import png, sampling
from cxr_records.drawings import drawn_share, drawn_words
from cxr_records.pipelines.build import BuildResult
from cxr_records.pipelines.decode import DecodedImages, ImagesAtHand
from cxr_records.pipelines.plan import PlanResult
from cxr_records.planning import Plan
from cxr_records.progress import say, warn
from cxr_records.store import REJECTED

_DETAILS = 20  # reasons that are told; those of a damaged set name the files, and are as many as these


def plan_json(result: PlanResult) -> dict[str, Any]:
    """Returns what `plan --json` prints; other tools rely on its keys."""
    plan, at_hand = result.plan, result.at_hand
    counts = plan.split_counts()
    balance = plan.balance.to_json()
    return {
        "records": {split: count["records"] for split, count in counts.items()},
        "images": {split: count["images"] for split, count in counts.items()},
        "copies": plan.num_copies,
        "patients": {split: count["patients"] for split, count in counts.items()},
        "shards": {split: count["shards"] for split, count in counts.items()},
        "classes": plan.class_counts(),
        "mean_ir": balance["mean_ir"],
        "max_ir": balance["max_ir"],
        "left_out": plan.left_out_counts(),
        "missing": at_hand.missing if at_hand else None,
        "not_in_table": at_hand.not_in_table if at_hand else None,
        # As the manifest will have it.
        "split_origin": {
            "text": plan.splits.origin,
            "official": plan.splits.official,
            "list_sha256": plan.splits.list_digests,
        },
        "official": plan.splits.official,
        "warnings": [*_warnings(plan), *result.warnings],
        **{name: round(value, 1) for name, value in result.size.items()},
    }


def build_json(result: BuildResult, out: str) -> dict[str, Any]:
    """Returns what `build --json` prints; other tools rely on its keys."""
    manifest, at_hand = result.manifest.to_json(), result.decoded.at_hand
    return {
        "dataset": out,
        "id": result.id,
        "records": {split: counts["records"] for split, counts in manifest["splits"].items()},
        "copies": result.plan.num_copies,
        "rejected": result.decoded.rejected,
        "missing": at_hand.missing,
        "not_in_table": at_hand.not_in_table,
        "left_out": manifest["left_out"],
        "classes": manifest["classes"],
        "mean_ir": manifest["mean_ir"],
        "max_ir": manifest["max_ir"],
        "shards": len(result.plan.shards),
        "written": result.written,
        "kept": result.kept,
        "decoded": result.decoded.decoded,
        "duplicates": len(manifest.get("duplicates", [])),
        "png_decoder": png.decoder(),
        "warnings": [*_warnings(result.plan), *result.warnings],
        "seconds": result.seconds,
    }


def decode_json(decoded: DecodedImages) -> dict[str, Any]:
    """Returns what `decode --json` prints; other tools rely on its keys."""
    return {
        "store": decoded.store,
        "images": decoded.num_images - decoded.rejected,
        "decoded": decoded.decoded,
        "rejected": decoded.rejected,
        "png_decoder": png.decoder(),
        "warnings": list(decoded.warnings),
    }


def warn_of_empty_classes(plan: Plan) -> None:
    """Says on stderr which classes have no training image, whatever is printed on stdout."""
    warn(_empty_classes(plan))


def _warnings(plan: Plan) -> list[str]:
    """What was said of the table, the lists and the classes."""
    return [*plan.metadata.warnings, *plan.splits.warnings, *_empty_classes(plan)]


def _empty_classes(plan: Plan) -> list[str]:
    empty = [balance.name for balance in plan.balance.classes if balance.images == 0]
    warning = sampling.empty_classes_warning(empty)
    return [warning] if warning else []


def tell_decode(decoded: DecodedImages) -> None:
    """Prints what is in the store now."""
    if missing := decoded.at_hand.missing:
        click.echo(_missing(missing))
    _tell_not_in_table(decoded.at_hand)
    click.echo(
        f"{decoded.num_images - decoded.rejected:,} images in {decoded.store}, "
        f"{decoded.decoded:,} decoded now, {decoded.rejected:,} rejected"
    )


def tell_plan(plan: Plan, at_hand: ImagesAtHand | None) -> None:
    """Prints splits, what is left out and why, records by split, and the balance of the classes."""
    task = plan.config.task
    click.echo(f"task {task.name}{' with No Finding' * task.with_no_finding}; splits: {plan.splits.origin}")
    if not plan.splits.official:
        click.echo("not the official split: do not compare results with published official-split results")
    if plan.metadata.drawn:
        share = drawn_share(plan.metadata.drawn, len(plan.metadata))
        click.echo(f"{drawn_words(share)}: {plan.metadata.drawn:,} of {len(plan.metadata):,}")
    if at_hand:
        _tell_not_in_table(at_hand)
    _tell_left_out(plan)
    click.echo()
    click.echo(f"{'split':<11}{'patients':>10}{'images':>10}{'copies':>10}{'records':>10}{'shards':>8}")
    for split, count in plan.split_counts().items():
        cells = "".join(f"{count[name]:>10,}" for name in ("patients", "images", "copies", "records"))
        click.echo(f"{split:<11}{cells}{count['shards']:>8,}")
    click.echo()
    _tell_classes(plan)
    balance = plan.balance
    if balance.mean_ir_before is not None:
        copies = _describe(plan.config.copies)
        click.echo(
            f"imbalance in train (copies: {copies}): MeanIR {balance.mean_ir_before:.2f} -> "
            f"{balance.mean_ir_after:.2f}, maxIR {balance.max_ir_before:.1f} -> {balance.max_ir_after:.1f}"
        )


def _missing(count: int) -> str:
    return f"missing: {count:,} images of the table are in no source"


def _tell_not_in_table(at_hand: ImagesAtHand) -> None:
    if at_hand.not_in_table:
        click.echo(f"not in the table: {at_hand.not_in_table:,} image files, left alone")


def _tell_left_out(plan: Plan) -> None:
    """Prints how many images of the table are in no record, and why."""
    if not len(plan.left_out):
        return
    click.echo(f"left out: {len(plan.left_out):,} of {len(plan.metadata):,} images in the table")
    groups = list(plan.left_out.groupby(["reason", "detail"]))
    for (reason, detail), rows in groups[:_DETAILS]:
        if reason == "missing":
            click.echo(f"  {_missing(len(rows))}")
        elif reason == REJECTED:
            more = f" and {len(rows) - 1:,} more" if len(rows) > 1 else ""
            click.echo(f"  rejected: {rows['image_id'].iloc[0]}{more}: {detail}")
        else:
            click.echo(f"  {reason}: {len(rows):,} images{f' ({detail})' if detail else ''}")
    if rest := sum(len(rows) for _, rows in groups[_DETAILS:]):
        click.echo(f"  and {rest:,} more for {len(groups) - _DETAILS:,} other reasons")


def _describe(copies: sampling.CopyRule) -> str:
    """The rule with the settings that it heeds."""
    of = f" of {', '.join(copies.of)}" if copies.of else ""
    if copies.rule == "none":
        return "none"
    if copies.rule == "fixed":
        return f"fixed, {copies.max_records} copies{of}"
    return f"{copies.rule}, target {copies.target:.0%}, max {copies.max_records}{of}"


def _tell_classes(plan: Plan) -> None:
    """A row per class: images by split; in train records, IRLbl before and after, share dragged along."""
    splits = plan.split_names
    head = "".join(f"{split:>11}" for split in splits)
    click.echo(f"{'class':<19}{head}{'train rec.':>12}{'IRLbl':>8}{'after':>8}{'dragged':>9}")
    for name, count in plan.class_counts().items():
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


def tell_plan_result(result: PlanResult) -> None:
    """Prints the plan, bytes on disk and time, and warns where the disk has no room."""
    request, size, to_decode = result.request, result.size, result.to_decode
    tell_plan(result.plan, result.at_hand)
    writes_store = result.plan.stored is None or to_decode > 0
    store = f", image store {_bytes(size['store_bytes'])}" if writes_store else ""
    click.echo(f"on disk: dataset about {_bytes(size['dataset_bytes'])}{store}")
    workers = request.engine.workers
    click.echo(
        f"time with {workers} worker{'s' * (workers > 1)}: decode about {_seconds(size['decode_seconds'])} "
        f"({to_decode:,} images), write about {_seconds(size['write_seconds'])}"
    )
    parent = os.path.dirname(request.out)
    if os.path.isdir(parent):
        needed = size["dataset_bytes"] + size["store_bytes"] * bool(to_decode)
        free = shutil.disk_usage(parent).free
        if needed > free:
            say(f"warning: {parent} has {_bytes(free)} free, {_bytes(needed)} are needed")


def tell_build(result: BuildResult, out: str) -> None:
    """Prints what a finished build did."""
    seconds = result.seconds
    click.echo(
        f"decoded {result.decoded.decoded:,} images in {seconds['decode']:.1f} s, wrote {result.written:,} "
        f"of {len(result.plan.shards):,} shards in {seconds['write']:.1f} s, {seconds['total']:.1f} s in all"
    )
    if result.kept:
        click.echo(
            f"kept {result.kept:,} shards, which hold these records already; only verify reads them again"
        )
    click.echo(f"{out}: complete, id {result.manifest.id}")
    click.echo(f"check it: cxr-records verify {out} --deep")


def _bytes(count: float) -> str:
    unit = min(4, int(math.log(max(count, 1), 1000)))
    return f"{count / 1000**unit:.1f} {('B', 'kB', 'MB', 'GB', 'TB')[unit]}"


def _seconds(count: float) -> str:
    if count < 100:
        return f"{max(count, 1):.0f} s"
    return f"{count / 60:.0f} min" if count < 7200 else f"{count / 3600:.1f} h"
