"""What is asked for, as the values that the work needs; each part refuses what it cannot be."""

import dataclasses
import os
from collections.abc import Sequence

from cxr_records import storage
from cxr_records.config import DatasetConfig
from cxr_records.errors import UsageError
from cxr_records.images import ImageFormat
from cxr_records.pipelines.engines import Engine, engine_named
from cxr_records.sampling import CopyRule
from cxr_records.splits import SplitOptions
from cxr_records.tasks import Task, as_task

PathOrUrl = str | os.PathLike[str]  # URLs are text, of any fsspec kind


@dataclasses.dataclass(frozen=True)
class DecodeRequest:
    """Which images are to be decoded, and where they are to be kept.

    Attributes:
        images: folders, archives, files and URLs.
        metadata: path of the table.
        store: folder of the image store.
        image_format: size, codec and filter of the store.
        allow_missing: decode the images that are there.
        max_rejected: share of the images at hand that may be rejected.
        engine: where it runs.
    """

    images: tuple[str, ...]
    metadata: str
    store: str
    image_format: ImageFormat = dataclasses.field(default_factory=ImageFormat)
    allow_missing: bool = False
    max_rejected: float = 0.01
    engine: Engine = dataclasses.field(default_factory=engine_named)

    def __post_init__(self) -> None:
        _check_max_rejected(self.max_rejected)
        if not self.store:
            raise UsageError("`store` is empty; name a folder")
        # Workers run in another folder.
        object.__setattr__(self, "store", storage.absolute(self.store))


@dataclasses.dataclass(frozen=True)
class BuildRequest:
    """What is to be built, from what, where.

    Attributes:
        images: folders, archives, files and URLs; empty only where a plan is made without images.
        metadata: path of the table.
        out: folder of the dataset.
        config: task, image format, copies, order.
        split_options: lists or fractions.
        splits_of: folder or URL of the dataset whose splits are taken instead, or None.
        store: folder of the image store; None puts it beside the dataset.
        allow_missing: build from the images that are there; `split_options` has its own for the lists.
        max_rejected: share of the images at hand that may be rejected.
        engine: where it runs.
    """

    images: tuple[str, ...]
    metadata: str
    out: str
    config: DatasetConfig
    split_options: SplitOptions
    splits_of: str | None = None
    store: str | None = None
    allow_missing: bool = False
    max_rejected: float = 0.01
    engine: Engine = dataclasses.field(default_factory=engine_named)

    def __post_init__(self) -> None:
        _check_max_rejected(self.max_rejected)
        if not self.out:
            raise UsageError("`out` is empty; name a folder")
        # Workers run in another folder.
        object.__setattr__(self, "out", storage.absolute(self.out))
        if self.splits_of is not None:
            _check_splits_of(self.splits_of, self.out, self.split_options)
        if self.store:
            object.__setattr__(self, "store", storage.absolute(self.store))
            if f"{self.store}/".startswith(f"{self.out}/"):
                raise UsageError(
                    f"`store={self.store}` is in `out={self.out}`; the store outlives datasets, name another"
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


def build_request_of(
    *,
    images: Sequence[PathOrUrl] | PathOrUrl,
    metadata: PathOrUrl,
    out: PathOrUrl,
    task: Task | str,
    train_val_list: PathOrUrl | None,
    test_list: PathOrUrl | None,
    validation_list: PathOrUrl | None,
    validation_fraction: float,
    test_fraction: float,
    splits_of: PathOrUrl | None,
    size: int,
    codec: str,
    resample: str,
    copies: str,
    copies_target: float,
    copies_max: int,
    copies_of: Sequence[str] | str,
    flip: bool,
    seed: int,
    shard_mb: int,
    store: PathOrUrl | None,
    workers: int | None,
    runner: str,
    beam_options: Sequence[str],
    allow_missing: bool,
    max_rejected: float,
    debug: bool,
) -> BuildRequest:
    """Turns the arguments of `api.build` and `api.plan`, which the command line shares, into a request.

    Raises:
        UsageError: one of them is wrong; the message names it.
    """
    return BuildRequest(
        images=_paths(images),
        metadata=os.fspath(metadata),
        out=os.fspath(out),
        config=DatasetConfig(
            task=as_task(task),
            image_format=ImageFormat(size, codec, resample),
            copies=CopyRule(copies, copies_target, copies_max, _words(copies_of)),
            flip=flip,
            seed=seed,
            shard_mb=shard_mb,
        ),
        split_options=SplitOptions(
            _path(train_val_list),
            _path(test_list),
            _path(validation_list),
            validation_fraction,
            test_fraction,
            seed,
            allow_missing,
        ),
        splits_of=_path(splits_of),
        store=_path(store),
        allow_missing=allow_missing,
        max_rejected=max_rejected,
        engine=engine_named(runner, beam_options, workers, debug),
    )


def decode_request_of(
    *,
    images: Sequence[PathOrUrl] | PathOrUrl,
    metadata: PathOrUrl,
    store: PathOrUrl,
    size: int,
    codec: str,
    resample: str,
    workers: int | None,
    runner: str,
    beam_options: Sequence[str],
    allow_missing: bool,
    max_rejected: float,
    debug: bool,
) -> DecodeRequest:
    """Turns the arguments of `api.decode`, which the command line shares, into a request.

    Raises:
        UsageError: one of them is wrong; the message names it.
    """
    return DecodeRequest(
        images=_paths(images),
        metadata=os.fspath(metadata),
        store=os.fspath(store),
        image_format=ImageFormat(size, codec, resample),
        allow_missing=allow_missing,
        max_rejected=max_rejected,
        engine=engine_named(runner, beam_options, workers, debug),
    )


def check_images(images: Sequence[str]) -> None:
    """Refuses to work without sources.

    Raises:
        UsageError: there are none.
    """
    if not images:
        raise UsageError("`images` is missing: name the folders, archives or URLs that hold the images")


def _check_max_rejected(share: float) -> None:
    if not 0 <= share <= 1:  # refuses nan too
        raise UsageError(f"`max_rejected={share}`: expected a share from 0 to 1")


def _check_splits_of(dataset: str, out: str, options: SplitOptions) -> None:
    """Refuses a dataset's splits beside others, and the splits of what is to be built."""
    if not dataset:
        raise UsageError("`splits_of` is empty; name a dataset")
    other = storage.absolute(dataset)
    # A link to the dataset is the dataset. What no link is, such as a URL, stays as it is.
    if other == out or (not storage.is_url(out) and os.path.realpath(other) == os.path.realpath(out)):
        raise UsageError(
            f"`splits_of={dataset}` is what `out` names; name another dataset, or another folder"
        )
    others = ("train_val_list", "test_list", "validation_list", "validation_fraction", "test_fraction")
    for name in others:
        if (value := getattr(options, name)) != getattr(SplitOptions, name):
            raise UsageError(
                f"found `{name}={value}` beside `splits_of`, which places every image; give one of the two"
            )


def _paths(paths: Sequence[PathOrUrl] | PathOrUrl) -> tuple[str, ...]:
    """Several paths, or one by itself."""
    if isinstance(paths, str | os.PathLike):
        return (os.fspath(paths),)
    return tuple(os.fspath(path) for path in paths)


def _path(path: PathOrUrl | None) -> str | None:
    return None if path is None else os.fspath(path)


def _words(words: Sequence[str] | str) -> tuple[str, ...]:
    return (words,) if isinstance(words, str) else tuple(words)
