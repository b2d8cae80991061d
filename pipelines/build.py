"""The main job: sources and a table to a finished dataset."""

import contextlib
import dataclasses
import time

import pandas as pd

from cxr_records import locks, storage
from cxr_records.duplicates import duplicates_warnings
from cxr_records.errors import CxrError
from cxr_records.finish import check_folder, clear_stale, finish_dataset, left_out_csv
from cxr_records.layout import BUILD_FOLDER, LEFT_OUT_FILE, LOCK_FILE, MANIFEST_FILE
from cxr_records.manifest import Manifest, ManifestError, read_manifest
from cxr_records.metadata import Metadata
from cxr_records.pipelines.decode import (
    DecodedImages,
    decode_images,
    find_images,
    much_to_decode,
)
from cxr_records.pipelines.engines import SECONDS_WORTH_PROCESSES
from cxr_records.pipelines.plan import read_table
from cxr_records.pipelines.request import BuildRequest, check_images
from cxr_records.pipelines.running import Below, Job, run, started_early
from cxr_records.planning import (
    SECONDS_PER_COPY,
    SECONDS_PER_RECORD,
    Plan,
    ShardSpec,
    make_plan,
    write_plan,
)
from cxr_records.progress import warn
from cxr_records.shards import read_shard_info, read_shard_infos, write_shard
from cxr_records.splits import Splits
from cxr_records.store import REJECTED


@dataclasses.dataclass(frozen=True)
class BuildResult:
    """A finished dataset.

    Attributes:
        path: its folder or URL.
        manifest: what it says of itself.
        plan: every record in its place.
        decoded: the images it was made from, and how many were decoded in this run.
        written: shards written in this run.
        seconds: of the phases `decode`, `plan`, `write`, and `total`.
    """

    path: str
    manifest: Manifest
    plan: Plan
    decoded: DecodedImages
    written: int
    seconds: dict[str, float]

    @property
    def kept(self) -> int:
        """How many shards were there with the records that they are to have, and were not written again."""
        return len(self.plan.shards) - self.written

    @property
    def id(self) -> str:
        """The dataset's id: the same for the same content, wherever it was built."""
        return self.manifest.id

    @property
    def warnings(self) -> tuple[str, ...]:
        """What was odd in the sources, the store and the images."""
        return (*self.decoded.warnings, *duplicates_warnings(self.manifest.duplicates))


def build_dataset(request: BuildRequest) -> BuildResult:
    """Builds a dataset, or finishes it, or brings it up to date; what is there already is not done again.

    Raises:
        CxrError: with one line for the user; its exit_code says of which kind.
    """
    check_images(request.images)
    clock = _Clock()
    request.engine.check()
    with started_early(request.engine, lambda: much_to_decode(request.images, request.store_path)) as below:
        return _build(request, clock, below)


def _build(request: BuildRequest, clock: "_Clock", below: Below | None) -> BuildResult:
    metadata, splits = read_table(request)
    check_folder(request.out)
    at_hand = find_images(request.images, metadata, request.store_path, request.allow_missing)
    build_folder = storage.join(request.out, BUILD_FOLDER)
    storage.make_folder(build_folder)
    with locks.lock(storage.join(build_folder, LOCK_FILE), f"`out={request.out}`") as held:
        clock.lap("plan")
        decoded = decode_images(
            at_hand, request.store_path, request.config.image_format, request.engine, below
        )
        clock.lap("decode")
        _check_rejected(request, metadata, splits, decoded)
        num_images = len(metadata) - at_hand.missing
        early = started_early(request.engine, lambda: _much_to_write(request, num_images))
        with early as below:
            plan = make_plan(metadata, splits, request.config, decoded.images)
            specs = write_plan(plan, build_folder, request.store_path, request.out)
            infos = dict(zip(specs, read_shard_infos(specs), strict=True))
            pending = [spec for spec, info in infos.items() if info is None]
            clear_stale(request.out, specs, pending)
            clock.lap("plan")
            if pending:
                share = sum(spec.num_records for spec in pending) / len(plan.records)
                seconds = len(plan.records) * SECONDS_PER_RECORD + plan.num_copies * SECONDS_PER_COPY
                job = Job("write", "records", write_shard, pending, _is_done, _size, share * seconds)
                run(job, request.engine, below)
        held.check()
        infos |= zip(pending, read_shard_infos(pending), strict=True)
        manifest = finish_dataset(plan, specs, [info for info in infos.values() if info is not None])
        try:
            held.check()
        except CxrError:  # what another build is writing must not pass for finished
            storage.remove(storage.join(request.out, MANIFEST_FILE))
            raise
        warn(duplicates_warnings(manifest.duplicates))
        clock.lap("write")
    return BuildResult(request.out, manifest, plan, decoded, len(pending), clock.seconds())


def _much_to_write(request: BuildRequest, num_images: int) -> bool:
    """A guess, before anything is planned: whether there are shards enough to write for several processes."""
    if num_images * SECONDS_PER_RECORD < SECONDS_WORTH_PROCESSES:
        return False
    try:
        return read_manifest(request.out).config != request.config
    except ManifestError:  # there is no dataset yet
        return True


def _check_rejected(
    request: BuildRequest, metadata: Metadata, splits: Splits, decoded: DecodedImages
) -> None:
    """Stops where too many images were rejected, and leaves a table of them."""
    rows = decoded.rejected_rows
    if len(rows) <= request.max_rejected * decoded.num_images:
        return
    path = storage.join(request.out, BUILD_FOLDER, LEFT_OUT_FILE)
    left_out = pd.DataFrame(
        {
            "image_id": metadata.image_ids.take(rows).to_pylist(),
            "split": splits.of_image[rows],
            "reason": REJECTED,
            "detail": decoded.images["reason"].take(rows).to_pylist(),
        }
    )
    with contextlib.suppress(OSError):
        storage.write_bytes(path, left_out_csv(left_out))
    decoded.check_rejected(request.max_rejected, f"; all are in {path}")


def _is_done(spec: ShardSpec) -> bool:
    return read_shard_info(spec) is not None


def _size(spec: ShardSpec) -> int:
    return spec.num_records


class _Clock:
    """Seconds by phase; a phase may have several laps."""

    def __init__(self) -> None:
        self._started = self._last = time.monotonic()
        self._laps = {"decode": 0.0, "plan": 0.0, "write": 0.0}

    def lap(self, phase: str) -> None:
        now = time.monotonic()
        self._laps[phase] += now - self._last
        self._last = now

    def seconds(self) -> dict[str, float]:
        laps = {phase: round(seconds, 3) for phase, seconds in self._laps.items()}
        return {**laps, "total": round(time.monotonic() - self._started, 3)}
