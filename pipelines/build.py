"""The main job: sources and a table to a finished dataset."""

import contextlib
import dataclasses
import time

from cxr_records import storage
from cxr_records.config import DatasetConfig
from cxr_records.errors import UsageError
from cxr_records.finish import check_folder, clear_stale, finish_dataset, rejected_csv
from cxr_records.layout import BUILD_FOLDER, LOCK_FILE, REJECTED_FILE
from cxr_records.manifest import Manifest
from cxr_records.metadata import Metadata, read_metadata
from cxr_records.pipelines.decode import (
    DecodedImages,
    FoundImages,
    check_rejected,
    decode_images,
    find_images,
)
from cxr_records.pipelines.engines import Engine, Job, run
from cxr_records.planning import (
    SECONDS_PER_COPY,
    SECONDS_PER_RECORD,
    Plan,
    make_plan,
    write_plan,
)
from cxr_records.shards import read_shard_info, write_shard
from cxr_records.splits import SplitOptions, Splits, make_splits


@dataclasses.dataclass(frozen=True)
class BuildRequest:
    """What is to be built, from what, where.

    Attributes:
        images: folders, archives, files and URLs; empty only where a plan is made without images.
        metadata: path of the table.
        out: folder of the dataset.
        config: task, image format, copies, order.
        split_options: lists or fractions.
        store: folder of the image store; None puts it beside the dataset.
        allow_missing: build from the images that are there.
        max_rejected: share of the images at hand that may be rejected.
        engine: where it runs.
    """

    images: tuple[str, ...]
    metadata: str
    out: str
    config: DatasetConfig
    split_options: SplitOptions
    store: str | None = None
    allow_missing: bool = False
    max_rejected: float = 0.01
    engine: Engine = dataclasses.field(default_factory=Engine)

    def __post_init__(self):
        if not 0 <= self.max_rejected <= 1:
            raise UsageError(f"--max-rejected {self.max_rejected}: expected a share from 0 to 1")
        if not self.out:
            raise UsageError("--out is empty; name a folder")
        # Workers run in another folder.
        object.__setattr__(self, "out", storage.absolute(self.out))
        if self.store:
            object.__setattr__(self, "store", storage.absolute(self.store))
            if f"{self.store}/".startswith(f"{self.out}/"):
                raise UsageError(
                    f"--store {self.store} is in --out {self.out}; the store outlives datasets, name another"
                )

    @property
    def store_path(self) -> str:
        """The store asked for, or the one beside the dataset, whose name tells what it holds."""
        if self.store:
            return self.store
        image_format = self.config.image_format
        parent = self.out.rstrip("/").rpartition("/")[0] or "/"
        kind = f"{image_format.size}-{image_format.codec}-{image_format.resample}"
        return storage.join(parent, f"image-store-{kind}")


@dataclasses.dataclass(frozen=True)
class BuildResult:
    """A finished dataset: its manifest, plan, images, and the seconds each phase took."""

    manifest: Manifest
    plan: Plan
    found: FoundImages
    decoded: DecodedImages
    written: int
    seconds: dict[str, float]


def build_dataset(request: BuildRequest) -> BuildResult:
    """Builds a dataset, or finishes it, or brings it up to date; what is there already is not done again.

    Raises:
        CxrError: with one line for the user; its exit_code says of which kind.
    """
    clock = _Clock()
    request.engine.check()
    metadata, splits = read_table(request)
    check_folder(request.out)
    found = find_images(request.images, metadata, request.store_path, request.allow_missing)
    build_folder = storage.join(request.out, BUILD_FOLDER)
    storage.make_folder(build_folder)
    with storage.lock(storage.join(build_folder, LOCK_FILE), f"--out {request.out}"):
        clock.lap("plan")
        decoded = decode_images(found, request.store_path, request.config.image_format, request.engine)
        clock.lap("decode")
        _check_rejected(request, metadata, splits, decoded)
        plan = make_plan(metadata, splits, request.config, decoded.images)
        specs = write_plan(plan, build_folder, request.store_path, request.out)
        pending = [spec for spec in specs if read_shard_info(spec) is None]
        clear_stale(request.out, specs, will_change=bool(pending))
        clock.lap("plan")
        if pending:
            share = sum(spec.num_records for spec in pending) / len(plan.records)
            seconds = len(plan.records) * SECONDS_PER_RECORD + plan.num_copies * SECONDS_PER_COPY
            job = Job("write", "records", write_shard, pending, _is_done, _size, share * seconds)
            run(job, request.engine)
        manifest = finish_dataset(plan, specs, [read_shard_info(spec) for spec in specs])
        clock.lap("write")
    return BuildResult(manifest, plan, found, decoded, len(pending), clock.seconds())


def read_table(request: BuildRequest) -> tuple[Metadata, Splits]:
    """Reads the table and splits it: all that can be wrong with them is found before any work."""
    metadata = read_metadata(request.metadata)
    return metadata, make_splits(metadata, request.split_options)


def _check_rejected(
    request: BuildRequest, metadata: Metadata, splits: Splits, decoded: DecodedImages
) -> None:
    """Stops where too many images were rejected, and leaves a table of them."""
    if decoded.rejected <= request.max_rejected * len(decoded.images):
        return
    path = storage.join(request.out, BUILD_FOLDER, REJECTED_FILE)
    with contextlib.suppress(OSError):
        split_of = dict(zip(metadata.table["image_id"], splits.of_image, strict=True))
        storage.write_bytes(path, rejected_csv(_rejected_rows(decoded, split_of)))
    check_rejected(decoded.images, request.max_rejected, f"; all are in {path}")


def _rejected_rows(decoded: DecodedImages, split_of: dict[str, str]):
    rejected = decoded.images[decoded.images["status"] == "rejected"].reset_index()
    return rejected.assign(
        split=rejected["image_id"].map(split_of), detail=rejected["reason"], reason="rejected"
    )


def _is_done(spec) -> bool:
    return read_shard_info(spec) is not None


def _size(spec) -> int:
    return spec.num_records


class _Clock:
    """Seconds by phase; a phase may have several laps."""

    def __init__(self):
        self._started = self._last = time.monotonic()
        self._laps = {"decode": 0.0, "plan": 0.0, "write": 0.0}

    def lap(self, phase: str) -> None:
        now = time.monotonic()
        self._laps[phase] += now - self._last
        self._last = now

    def seconds(self) -> dict[str, float]:
        laps = {phase: round(seconds, 3) for phase, seconds in self._laps.items()}
        return {**laps, "total": round(time.monotonic() - self._started, 3)}
