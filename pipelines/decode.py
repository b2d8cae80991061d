"""The decode phase: find the images of a table in the sources, and bring the image store up to date."""

import contextlib
import dataclasses
import itertools
import os
import random
import time
from collections.abc import Sequence

import pandas as pd

from cxr_records import sources, storage
from cxr_records.errors import CxrError, FoundProblems, UsageError
from cxr_records.images import ImageDecodeError, ImageFormat, decode_image
from cxr_records.metadata import Metadata, read_metadata
from cxr_records.pipelines.engines import SECONDS_WORTH_PROCESSES, Engine
from cxr_records.pipelines.request import DecodeRequest, check_images
from cxr_records.pipelines.running import Below, Job, run, started_early
from cxr_records.planning import SECONDS_PER_DECODE
from cxr_records.progress import say, warn
from cxr_records.sources import Entry, SourceReader, SourceReadError
from cxr_records.store import (
    ARCHIVE_FOLDER,
    OK,
    REJECTED,
    STORE_FILE,
    STORE_VERSION,
    UNREADABLE,
    ImageStore,
    UnitSpec,
    locate,
    open_store,
    signature,
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
        entries: {image_id: the files that hold it}.
        missing: images of the table that no source holds.
        not_in_table: image files that the table does not name.
        warnings: what was found damaged while the sources were listed.
    """

    entries: dict[str, list[Entry]]
    missing: int
    not_in_table: int
    warnings: tuple[str, ...] = ()

    def signatures(self) -> dict[str, str]:
        """Returns {image_id: what the store knows it by}."""
        return {image_id: signature(entries) for image_id, entries in self.entries.items()}

    def pending(self, index: pd.DataFrame) -> dict[str, list[Entry]]:
        """Returns the images that the store has not settled, with their files.

        Args:
            index: of the store, as `ImageStore.read_index` gives it.
        """
        settled = locate(index, self.signatures()).index
        return {image_id: self.entries[image_id] for image_id in self.entries.keys() - set(settled)}


@dataclasses.dataclass(frozen=True)
class DecodedImages:
    """The store after the decode phase.

    Attributes:
        at_hand: what the sources hold.
        store: folder or URL of the store.
        images: table by image_id of every image at hand, as `store.locate` gives it.
        decoded: how many images were decoded in this run.
        warnings: what was odd in the sources, the store and the images and, by `decode_store`, in the table.
    """

    at_hand: ImagesAtHand
    store: str
    images: pd.DataFrame
    decoded: int
    warnings: tuple[str, ...] = ()

    @property
    def rejected(self) -> int:
        """How many images at hand are rejected, whenever that was found."""
        return int((self.images["status"] == REJECTED).sum())

    def check_rejected(self, max_rejected: float, where: str = "") -> None:
        """Refuses to go on when a larger part of the images at hand was rejected than allowed.

        Args:
            max_rejected: that part, from 0 to 1.
            where: what to add to the message.

        Raises:
            FoundProblems: with counts and the first reason.
        """
        if self.rejected <= max_rejected * len(self.images):
            return
        share = self.rejected / len(self.images)
        first = self.images[self.images["status"] == REJECTED].iloc[0]
        raise FoundProblems(
            f"{self.rejected:,} of {len(self.images):,} images ({share:.1%}) were rejected, `max_rejected` "
            f"allows {max_rejected:.1%}; the first is {first.name}: {first['reason']}{where}"
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
    image_ids = metadata.table["image_id"].tolist()
    entries, unmatched = sources.match_entries(listing.entries, image_ids)
    if not entries:
        raise UsageError(
            f"none of the {len(listing.entries):,} image files found (such as {listing.entries[0].name}) "
            f"is named in the table (such as {image_ids[0]}); give `images` and `metadata` of one set"
            if listing.entries
            else "the sources hold no readable image; see the warnings above"
        )
    missing = len(image_ids) - len(entries)
    if missing > MISSING_ALLOWED * len(image_ids) and not allow_missing:
        raise CxrError(
            f"{missing:,} of the {len(image_ids):,} images in the table are in no source, "
            f"{len(entries):,} are there; name the other sources in `images`, or build from these "
            "with `allow_missing=True`"
        )
    return ImagesAtHand(entries, missing, len(unmatched), tuple(listing.warnings))


def decode_images(
    at_hand: ImagesAtHand, store: str, image_format: ImageFormat, engine: Engine, below: Below | None = None
) -> DecodedImages:
    """Decodes what the store does not hold yet.

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
    if at_hand.pending(opened.read_index()):
        with opened.lock():
            decoded, damaged = _decode_pending(at_hand, opened, engine, below)
        warnings += warn(
            f"{path} was not as it was written: the images in it are decoded again" for path in damaged
        )
    else:
        # A command killed at its very end leaves files behind. Where the store is in use by another, or
        # cannot be written, they are not ours to remove, and nothing needs them gone.
        with contextlib.suppress(CxrError, OSError), opened.lock():
            opened.clean()
    index = opened.read_index()
    warnings += warn(_remove_outdated(opened, index))
    images = _settled(index, at_hand)
    warnings += warn(grey_warnings(images))
    return DecodedImages(at_hand, store, images, decoded, tuple(warnings))


def _decode_pending(
    at_hand: ImagesAtHand, store: ImageStore, engine: Engine, below: Below | None
) -> tuple[int, list[str]]:
    """Decodes what is pending, with the store's lock held; returns how many images, and damaged indexes."""
    store.upgrade()
    store.clean()
    damaged = store.remove_damaged()
    index = store.read_index()
    specs = store.plan_units(at_hand.pending(index), index, len(at_hand.entries))
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


def _remove_outdated(store: ImageStore, index: pd.DataFrame) -> list[str]:
    """Removes from a store what is decoded anew; says what is not."""
    if not store.has_outdated():
        return []
    kept = 0
    with contextlib.suppress(CxrError, OSError), store.lock():
        kept = store.remove_outdated(index)
    if not kept:
        return []
    return [
        f"the image store {store.path} keeps {kept:,} images of an earlier version, some of whose files were "
        "not named now: nothing reads them; name those files too, or delete the store"
    ]


def grey_warnings(images: pd.DataFrame) -> list[str]:
    """Says which images show little: of a blank film, or of a file that holds fewer bits than it says.

    Args:
        images: as `store.locate` gives them.
    """
    decoded = images[images["status"] == OK]
    few = decoded[decoded["grey_high"] - decoded["grey_low"] < FEW_GREY_LEVELS]
    if few.empty:
        return []
    named = [
        f"{row.Index} ({row.grey_low:.0f} to {row.grey_high:.0f})" for row in few.head(NAMED).itertuples()
    ]
    more = ", ..." if len(few) > NAMED else ""
    return [
        f"{len(few):,} of {len(decoded):,} images show less than a quarter of the 256 grey levels: "
        f"{', '.join(named)}{more}; blank images, or files that use fewer bits than they say (12 of 16)?"
    ]


def seconds_per_decode(
    at_hand: ImagesAtHand, image_format: ImageFormat, store: str, sample: int = 12
) -> float:
    """Times the decoding of a few images of the sources on one core.

    Returns:
        The mean of those that could be decoded; SECONDS_PER_DECODE where none could.
    """
    names = random.Random(0).sample(sorted(at_hand.entries), min(sample, len(at_hand.entries)))  # noqa: S311
    entries = sorted(at_hand.entries[name][0] for name in names)
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


def _settled(index: pd.DataFrame, at_hand: ImagesAtHand) -> pd.DataFrame:
    """Every image at hand with its state; one that could not be read now counts as rejected this time."""
    signatures = at_hand.signatures()
    images = locate(index, signatures)
    lost = {name: signatures[name] for name in signatures.keys() - set(images.index)}
    # A rejection by another decoder: workers may have other packages than the command.
    rows = index[index["status"].isin((UNREADABLE, REJECTED)) & index["image_id"].isin(lost)]
    rows = rows[rows["signature"] == rows["image_id"].map(lost)].sort_values("status", kind="stable")
    rows = rows.drop_duplicates("image_id", keep="last").set_index("image_id")
    rows = rows.reindex(sorted(lost)).assign(status=REJECTED)
    return pd.concat([images, rows]).sort_index() if len(rows) else images


def _is_done(spec: UnitSpec) -> bool:
    return storage.exists(spec.checksum_path)


def _size(spec: UnitSpec) -> int:
    return spec.num_images
