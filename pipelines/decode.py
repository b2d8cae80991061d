"""The decode phase: find the images of a table in the sources, and bring the image store up to date."""

import contextlib
import dataclasses
import itertools
import os
import random
import time
from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from cxr_records import sources, storage
from cxr_records.columns import Column, equals, known
from cxr_records.errors import CxrError, FoundProblems, UsageError
from cxr_records.images import ImageDecodeError, ImageFormat, decode_image
from cxr_records.metadata import Metadata, read_metadata
from cxr_records.pipelines.engines import SECONDS_WORTH_PROCESSES, Engine
from cxr_records.pipelines.request import DecodeRequest, check_images
from cxr_records.pipelines.running import Below, Job, run, started_early
from cxr_records.planning import SECONDS_PER_DECODE
from cxr_records.progress import say, warn
from cxr_records.sources import ImageFiles, SourceReader, SourceReadError
from cxr_records.store import (
    ARCHIVE_FOLDER,
    OK,
    REJECTED,
    STORE_FILE,
    STORE_VERSION,
    ImageStore,
    UnitSpec,
    open_store,
    signatures,
    write_unit,
)

# Between the darkest and the lightest hundredth of an image's pixels. Of 1,149 real images of NIH none has
# fewer than 92, at 16 to 224 pixels; files of 12 bits in 16 have at most 16, of 14 bits 64.
FEW_GREY_LEVELS = 64
TYPICAL_BYTES = 400_000  # of an image of NIH's in an archive
NAMED = 5  # images that a warning names
MISSING_ALLOWED = 0.01  # share of the table that may be in no source without a word from the user


@dataclasses.dataclass(frozen=True)
class ImagesAtHand:
    """The images of a table that the sources hold.

    Attributes:
        files: those of each image; forgotten once they are decoded.
        missing: images of the table that no source holds.
        not_in_table: image files that the table does not name.
        warnings: what was found damaged while the sources were listed.
    """

    files: ImageFiles
    missing: int
    not_in_table: int
    warnings: tuple[str, ...] = ()


def pending(store: ImageStore, files: ImageFiles, signatures: np.ndarray) -> np.ndarray:
    """Tells which images at hand the store has not settled: bool [num_images]."""
    settled = known(store.locate(files.image_ids, signatures, columns=())["status"])
    waiting: np.ndarray = files.present & ~settled
    return waiting


@dataclasses.dataclass(frozen=True)
class DecodedImages:
    """The store after the decode phase.

    Attributes:
        at_hand: what the sources hold.
        store: folder or URL of the store.
        image_ids: of the table.
        images: what the store says of each of them, as `ImageStore.locate` gives it; those that are not at
            hand have no status.
        decoded: how many images were decoded in this run.
        warnings: what was odd in the sources, the store and the images and, by `decode_store`, in the table.
    """

    at_hand: ImagesAtHand
    store: str
    image_ids: Column
    images: pa.Table
    decoded: int
    warnings: tuple[str, ...] = ()

    @property
    def num_images(self) -> int:
        """How many images are at hand."""
        return len(self.images) - self.images["status"].null_count

    @property
    def rejected_rows(self) -> np.ndarray:
        """The rows of the table whose images are rejected."""
        return np.flatnonzero(equals(self.images["status"], REJECTED))

    @property
    def rejected(self) -> int:
        """How many images at hand are rejected, whenever that was found."""
        return len(self.rejected_rows)

    def check_rejected(self, max_rejected: float, where: str = "") -> None:
        """Refuses to go on when a larger part of the images at hand was rejected than allowed.

        Args:
            max_rejected: that part, from 0 to 1.
            where: what to add to the message.

        Raises:
            FoundProblems: with counts and the first reason.
        """
        if self.rejected <= max_rejected * self.num_images:
            return
        share, first = self.rejected / self.num_images, int(self.rejected_rows[0])
        raise FoundProblems(
            f"{self.rejected:,} of {self.num_images:,} images ({share:.1%}) were rejected, `max_rejected` "
            f"allows {max_rejected:.1%}; the first is {self.image_ids[first]}: {self.images['reason'][first]}"
            f"{where}"
        )


def decode_store(request: DecodeRequest) -> DecodedImages:
    """Brings an image store up to date: all that a build does before its first record.

    Too many rejected images are no error here; `DecodedImages.check_rejected` makes one of them.

    Raises:
        CxrError: with one line for the user; its exit_code says of which kind.
    """
    check_images(request.images)
    request.engine.check()
    with started_early(request.engine, lambda: much_to_decode(request.images, request.store)) as below:
        metadata = read_metadata(request.metadata)
        warn(metadata.warnings)
        at_hand = find_images(request.images, metadata, request.store, request.allow_missing)
        decoded = decode_images(at_hand, request.store, request.image_format, request.engine, below)
    return dataclasses.replace(decoded, warnings=(*metadata.warnings, *decoded.warnings))


def much_to_decode(paths: Sequence[str], store: str) -> bool:
    """A first look, before any table is read: whether there is enough to decode for several processes.

    Right in most cases and cheap in all: a store that is new, and an archive, or folders of many files. Where
    it is wrong, processes are started for nothing, or later.

    Args:
        paths: folders, archives, files and URLs.
        store: folder of the image store.
    """
    if storage.is_url(store) or storage.exists(storage.join(store, STORE_FILE)):
        return False
    enough, found = SECONDS_WORTH_PROCESSES / SECONDS_PER_DECODE, 0
    for path in itertools.chain.from_iterable(map(storage.expand, filter(_is_local, paths))):
        if os.path.isfile(path):
            found += os.path.getsize(path) // TYPICAL_BYTES
        for _, _, files in os.walk(path):
            found += len(files)
            if found >= enough:
                return True
    return found >= enough


def _is_local(path: str) -> bool:
    return not storage.is_url(path)


def find_images(
    paths: Sequence[str], metadata: Metadata, store: str, allow_missing: bool, keep_index: bool = True
) -> ImagesAtHand:
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
    warn(listing.warnings)
    image_ids = metadata.image_ids
    files, unmatched = sources.match_entries(listing.entries, image_ids)
    if not len(files):
        raise UsageError(
            f"none of the {len(listing.entries):,} image files found (such as {listing.entries[0].name}) "
            f"is named in the table (such as {image_ids[0]}); give `images` and `metadata` of one set"
            if listing.entries
            else "the sources hold no readable image; see the warnings above"
        )
    missing = len(image_ids) - len(files)
    if missing > MISSING_ALLOWED * len(image_ids) and not allow_missing:
        raise CxrError(
            f"{missing:,} of the {len(image_ids):,} images in the table are in no source, "
            f"{len(files):,} are there; name the other sources in `images`, or build from these "
            "with `allow_missing=True`"
        )
    return ImagesAtHand(files, missing, len(unmatched), tuple(listing.warnings))


def decode_images(
    at_hand: ImagesAtHand, store: str, image_format: ImageFormat, engine: Engine, below: Below | None = None
) -> DecodedImages:
    """Decodes what the store does not hold yet; then `at_hand` forgets the files.

    Args:
        at_hand: what the sources hold.
        store: folder of the image store.
        image_format: of its images.
        engine: where they are decoded.
        below: a process group that was started for it, if any.

    Raises:
        CxrError: the store is of another format, is in use, or the engine failed.
    """
    opened = open_store(store, image_format)
    assert opened is not None  # it is made where there is none
    decoded, warnings = 0, [*at_hand.warnings, *warn(outdated_warnings(opened))]
    files, told = at_hand.files, signatures(at_hand.files)
    if pending(opened, files, told).any():
        with opened.lock():
            decoded, damaged = _decode_pending(files, told, opened, engine, below)
        warnings += warn(
            f"{path} was not as it was written: the images in it are decoded again" for path in damaged
        )
    else:
        # A command killed at its very end leaves files behind. Where the store is in use by another, or
        # cannot be written, they are not ours to remove, and nothing needs them gone.
        with contextlib.suppress(CxrError, OSError), opened.lock():
            opened.clean()
    warnings += warn(_remove_outdated(opened))
    files.forget()
    # One that could not be read now counts as rejected this time. So does one that another decoder rejected:
    # workers may have other packages than the command.
    images = opened.locate(files.image_ids, told, lost_as_rejected=True)
    warnings += warn(grey_warnings(images, files.image_ids))
    return DecodedImages(at_hand, store, files.image_ids, images, decoded, tuple(warnings))


def _decode_pending(
    files: ImageFiles, told: np.ndarray, store: ImageStore, engine: Engine, below: Below | None
) -> tuple[int, list[str]]:
    """Decodes what is pending, with the store's lock held; returns how many images, and damaged indexes."""
    store.upgrade()
    store.clean()
    damaged = store.remove_damaged()
    specs = store.plan_units(files, pending(store, files, told), told, len(files))
    num_images = sum(spec.num_images for spec in specs)
    if specs:
        seconds = num_images * SECONDS_PER_DECODE
        run(Job("decode", "images", write_unit, specs, _is_done, _size, seconds), engine, below)
    store.clean()
    return num_images, damaged


def outdated_warnings(store: ImageStore) -> list[str]:
    """Says of a store of a version before ours what comes of it."""
    if store.version == STORE_VERSION:
        return []
    return [
        f"the image store {store.path} is of version {store.version}, whose images were not checked as they "
        f"are now: its {store.count_outdated():,} images are decoded again"
    ]


def _remove_outdated(store: ImageStore) -> list[str]:
    """Removes from a store what is decoded anew; says what is not."""
    if not store.has_outdated():
        return []
    kept = 0
    with contextlib.suppress(CxrError, OSError), store.lock():
        kept = store.remove_outdated()
    if not kept:
        return []
    return [
        f"the image store {store.path} keeps {kept:,} images of an earlier version, some of whose files were "
        "not named now: nothing reads them; name those files too, or delete the store"
    ]


def grey_warnings(images: pa.Table, image_ids: Column) -> list[str]:
    """Says which images show little: of a blank film, or of a file that holds fewer bits than it says.

    Args:
        images: as `ImageStore.locate` gives them.
        image_ids: of the same rows.
    """
    decoded = equals(images["status"], OK)
    low, high = (images[name].to_numpy() for name in ("grey_low", "grey_high"))
    few = np.flatnonzero(decoded & (high - low < FEW_GREY_LEVELS)).tolist()
    if not few:
        return []
    named = [f"{image_ids[row]} ({low[row]} to {high[row]})" for row in few[:NAMED]]
    more = ", ..." if len(few) > NAMED else ""
    return [
        f"{len(few):,} of {np.count_nonzero(decoded):,} images show less than a quarter of the 256 grey "
        f"levels: {', '.join(named)}{more}; blank images, or files that use fewer bits than they say (12 of "
        "16)?"
    ]


def seconds_per_decode(
    at_hand: ImagesAtHand, image_format: ImageFormat, store: str, sample: int = 12
) -> float:
    """Times the decoding of a few images of the sources on one core.

    Returns:
        The mean of those that could be decoded; SECONDS_PER_DECODE where none could.
    """
    rows = np.flatnonzero(at_hand.files.present).tolist()
    chosen = random.Random(0).sample(rows, min(sample, len(rows)))  # noqa: S311
    entries = sorted(entries[0] for entries in at_hand.files.files(chosen))
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


def _is_done(spec: UnitSpec) -> bool:
    return storage.exists(spec.checksum_path)


def _size(spec: UnitSpec) -> int:
    return spec.num_images
