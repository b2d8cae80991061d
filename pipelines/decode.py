"""The decode phase: find the images of a table in the sources, and bring the image store up to date."""

import contextlib
import dataclasses
import random
import time
from collections.abc import Sequence

import pandas as pd

from cxr_records import sources, storage
from cxr_records.errors import CxrError, FoundProblems, UsageError
from cxr_records.images import ImageDecodeError, ImageFormat, decode_image
from cxr_records.metadata import Metadata
from cxr_records.pipelines.engines import Engine, Job, run
from cxr_records.planning import SECONDS_PER_DECODE
from cxr_records.progress import say
from cxr_records.sources import Entry, SourceReader, SourceReadError
from cxr_records.store import (
    ARCHIVE_FOLDER,
    REJECTED,
    UNREADABLE,
    ImageStore,
    locate,
    open_store,
    signature,
    write_unit,
)

MISSING_ALLOWED = 0.01  # share of the table that may be in no source without a word from the user


@dataclasses.dataclass(frozen=True)
class FoundImages:
    """What the sources hold of a table.

    Attributes:
        entries: {image_id: the files that hold it}.
        missing: images of the table that no source holds.
        not_in_table: image files that the table does not name.
    """

    entries: dict[str, list[Entry]]
    missing: int
    not_in_table: int


@dataclasses.dataclass(frozen=True)
class DecodedImages:
    """The store after the decode phase.

    Attributes:
        store: it.
        images: table by image_id of every image at hand, as `store.locate` gives it.
        decoded: images that were decoded in this run.
        rejected: images at hand that are rejected, whenever that was found.
    """

    store: ImageStore
    images: pd.DataFrame
    decoded: int
    rejected: int


def find_images(
    paths: Sequence[str], metadata: Metadata, store: str, allow_missing: bool, keep_index: bool = True
) -> FoundImages:
    """Lists the sources and joins them to the table by file name.

    Args:
        paths: folders, archives, files and URLs.
        metadata: the table.
        store: folder of the image store, where indexes of .tar.gz sources are kept.
        allow_missing: whether images may be missing beyond MISSING_ALLOWED of the table.
        keep_index: whether such an index may be written.

    Raises:
        CxrError: nothing fits, or too much is missing.
    """
    archives = storage.join(store, ARCHIVE_FOLDER)
    listing = sources.list_sources(
        paths, archives, keep_index, on_archive=lambda path: say(f"listing {path}")
    )
    for warning in listing.warnings:
        say(f"warning: {warning}")
    image_ids = metadata.table["image_id"].tolist()
    entries, unmatched = sources.match_entries(listing.entries, image_ids)
    if not entries:
        raise UsageError(
            f"none of the {len(listing.entries):,} image files found (such as {listing.entries[0].name}) "
            f"is named in the table (such as {image_ids[0]}); give --images and --metadata of one set"
            if listing.entries
            else "the sources hold no readable image; see the warnings above"
        )
    missing = len(image_ids) - len(entries)
    if missing > MISSING_ALLOWED * len(image_ids) and not allow_missing:
        raise CxrError(
            f"{missing:,} of the {len(image_ids):,} images in the table are in no source, "
            f"{len(entries):,} are there; name the other sources in --images, or build from these "
            "with --allow-missing"
        )
    return FoundImages(entries, missing, len(unmatched))


def pending_images(found: FoundImages, index: pd.DataFrame) -> dict[str, list[Entry]]:
    """Returns the images at hand that the store has not settled, with their files."""
    settled = locate(index, _signatures(found)).index
    return {image_id: found.entries[image_id] for image_id in found.entries.keys() - set(settled)}


def decode_images(found: FoundImages, store: str, image_format: ImageFormat, engine: Engine) -> DecodedImages:
    """Decodes what the store does not hold yet.

    Raises:
        CxrError: the store is of another format, is in use, or the engine failed.
    """
    opened = open_store(store, image_format)
    decoded = 0
    if pending_images(found, opened.read_index()):
        with opened.lock():
            decoded = _decode_pending(found, opened, engine)
    else:
        # A command killed at its very end leaves files behind. Where the store is in use by another, or
        # cannot be written, they are not ours to remove, and nothing needs them gone.
        with contextlib.suppress(CxrError, OSError), opened.lock():
            opened.clean()
    images = _settled(opened.read_index(), found)
    return DecodedImages(opened, images, decoded, int((images["status"] == REJECTED).sum()))


def _decode_pending(found: FoundImages, store: ImageStore, engine: Engine) -> int:
    """Decodes what is pending, with the store's lock held; returns how many images that were."""
    store.clean()
    index = store.read_index()
    specs = store.plan_units(pending_images(found, index), index, len(found.entries))
    num_images = sum(spec.num_images for spec in specs)
    if specs:
        run(
            Job("decode", "images", write_unit, specs, _is_done, _size, num_images * SECONDS_PER_DECODE),
            engine,
        )
    store.clean()
    return num_images


def check_rejected(images: pd.DataFrame, max_rejected: float, where: str = "") -> None:
    """Refuses to go on when a larger part of the images at hand was rejected than allowed.

    Raises:
        FoundProblems: with counts and the most frequent reason.
    """
    rejected = images[images["status"] == REJECTED]
    if len(rejected) <= max_rejected * len(images):
        return
    share, first = len(rejected) / len(images), rejected.iloc[0]
    raise FoundProblems(
        f"{len(rejected):,} of {len(images):,} images ({share:.1%}) were rejected, --max-rejected allows "
        f"{max_rejected:.1%}; the first is {first.name}: {first['reason']}{where}"
    )


def seconds_per_decode(found: FoundImages, image_format: ImageFormat, store: str, sample: int = 12) -> float:
    """Times the decoding of a few images of the sources on one core.

    Returns:
        The mean of those that could be decoded; SECONDS_PER_DECODE where none could.
    """
    names = random.Random(0).sample(sorted(found.entries), min(sample, len(found.entries)))  # noqa: S311
    entries = sorted(found.entries[name][0] for name in names)
    seconds = []
    with SourceReader(storage.join(store, ARCHIVE_FOLDER)) as reader:
        for entry in entries:
            if entry.kind == "targz":  # its place in the archive would be timed, not its decoding
                continue
            started = time.perf_counter()
            try:
                decode_image(reader.read(entry), image_format)
            except (SourceReadError, ImageDecodeError):
                continue
            seconds.append(time.perf_counter() - started)
    return sum(seconds) / len(seconds) if seconds else SECONDS_PER_DECODE


def _settled(index: pd.DataFrame, found: FoundImages) -> pd.DataFrame:
    """Every image at hand with its state; one that could not be read now counts as rejected this time."""
    signatures = _signatures(found)
    images = locate(index, signatures)
    lost = [image_id for image_id in signatures if image_id not in images.index]
    rows = index[(index["status"] == UNREADABLE) & index["image_id"].isin(lost)]
    rows = rows.drop_duplicates("image_id", keep="last").set_index("image_id")
    rows = rows.reindex(lost).assign(status=REJECTED)
    return pd.concat([images, rows]).sort_index() if len(rows) else images


def _signatures(found: FoundImages) -> dict[str, str]:
    return {image_id: signature(entries) for image_id, entries in found.entries.items()}


def _is_done(spec) -> bool:
    return storage.exists(spec.index_path)


def _size(spec) -> int:
    return spec.num_images
