"""What a build would write, how large and how long, without writing anything."""

import dataclasses

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cxr_records.columns import Column, array_of, known
from cxr_records.dataset import open_dataset
from cxr_records.metadata import Metadata, read_metadata
from cxr_records.pipelines.decode import (
    ImagesAtHand,
    find_images,
    grey_warnings,
    outdated_warnings,
    seconds_per_decode,
)
from cxr_records.pipelines.request import BuildRequest
from cxr_records.planning import SECONDS_PER_DECODE, Plan, estimate, make_plan
from cxr_records.progress import warn
from cxr_records.splits import Splits, make_splits, take_splits
from cxr_records.store import OK, open_store, signatures


@dataclasses.dataclass(frozen=True)
class PlanResult:
    """What a build would write.

    Attributes:
        request: what was asked for.
        plan: every record in its place, with splits, classes and what is left out.
        at_hand: what the sources hold; None where no sources were given.
        to_decode: images that are not in the store yet.
        size: `dataset_bytes`, `store_bytes`, `decode_seconds` and `write_seconds`, estimated.
        warnings: what was odd in the sources, the store and the images in it.
    """

    request: BuildRequest
    plan: Plan
    at_hand: ImagesAtHand | None
    to_decode: int
    size: dict[str, float]
    warnings: tuple[str, ...] = ()


def plan_dataset(request: BuildRequest) -> PlanResult:
    """Plans what `build_dataset` would write; without sources, as if every image of the table were there.

    Raises:
        CxrError: with one line for the user; its exit_code says of which kind.
    """
    metadata, splits = read_table(request)
    at_hand, images, to_decode, per_decode = None, None, len(metadata), SECONDS_PER_DECODE
    warnings: tuple[str, ...] = ()
    if request.images:
        at_hand, images, to_decode, per_decode, warnings = _look(request, metadata)
    plan = make_plan(metadata, splits, request.config, images)
    size = estimate(plan, to_decode, request.engine.workers, per_decode)
    return PlanResult(request, plan, at_hand, to_decode, size, warnings)


def read_table(request: BuildRequest) -> tuple[Metadata, Splits]:
    """Reads the table and splits it: all that can be wrong with them is found, and said, before any work.

    Raises:
        CxrError: the table or a list is wrong, or the dataset whose splits are taken.
    """
    metadata = read_metadata(request.metadata)
    warn(metadata.warnings)
    splits = _split(metadata, request)
    warn(splits.warnings)
    return metadata, splits


def _split(metadata: Metadata, request: BuildRequest) -> Splits:
    """By lists or fractions, or as another dataset is split."""
    if request.splits_of is None:
        return make_splits(metadata, request.split_options)
    other = open_dataset(request.splits_of)
    there = other.manifest.split_origin
    return take_splits(
        metadata,
        other.split_lists(),
        dataset=other.path,
        dataset_id=other.id,
        origin=there.text,
        official=there.official,
    )


def _look(
    request: BuildRequest, metadata: Metadata
) -> tuple[ImagesAtHand, pa.Table, int, float, tuple[str, ...]]:
    """What the sources hold, the images as they will be once decoded, how many wait, seconds for each, and
    what is odd.
    """
    path, image_format = request.store_path, request.config.image_format
    at_hand = find_images(request.images, metadata, path, request.allow_missing, keep_index=False)
    store = open_store(path, image_format, create=False)
    files, warnings = at_hand.files, list(at_hand.warnings)
    if store is None:
        held, waiting = None, files.present
    else:
        told = signatures(files)
        held = store.locate(files.image_ids, told, ("length", "grey_low", "grey_high"))
        waiting = files.present & ~known(held["status"])
        warnings += warn([*outdated_warnings(store), *grey_warnings(held, files.image_ids)])
    images, count = _hoped(held, waiting), int(np.count_nonzero(waiting))
    seconds = seconds_per_decode(at_hand, image_format, path) if count else SECONDS_PER_DECODE
    files.forget()
    return at_hand, images, count, seconds, tuple(warnings)


def _hoped(held: pa.Table | None, waiting: np.ndarray) -> pa.Table:
    """What the store will say of images: of those that wait to be decoded, that they are."""
    if held is None:
        nothing = pa.nulls(len(waiting), pa.string())
        held = pa.table({"status": nothing, "reason": nothing, "length": pa.nulls(len(waiting), pa.int32())})
    columns: dict[str, Column] = {
        "status": pc.if_else(array_of(waiting), OK, held["status"].cast(pa.string())),
        "reason": held["reason"],
        "length": pc.if_else(array_of(waiting), pa.scalar(None, pa.int32()), held["length"]),
    }
    return pa.table(columns)
