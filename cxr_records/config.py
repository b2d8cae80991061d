"""What decides the bytes of a dataset, beside its images, its table and its splits."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from cxr_records.errors import UsageError
from cxr_records.images import ImageFormat
from cxr_records.sampling import CopyRule
from cxr_records.tasks import Task, parse_task

SHARD_MB = (1, 4096)


@dataclasses.dataclass(frozen=True)
class DatasetConfig:
    """What was asked for of a dataset.

    Attributes:
        task: what the label of a record is.
        image_format: size, codec and resampling filter.
        copies: how images of rare classes are repeated.
        flip: whether horizontal flip is among the augmentations.
        seed: of record order, copies and their parameters.
        shard_mb: bytes that a shard aims at, in MiB.

    Raises:
        UsageError: a value is out of range, or copies are asked for of a class that the task does not have.
    """

    task: Task
    image_format: ImageFormat = dataclasses.field(default_factory=ImageFormat)
    copies: CopyRule = dataclasses.field(default_factory=CopyRule)
    flip: bool = False
    seed: int = 0
    shard_mb: int = 64

    def __post_init__(self) -> None:
        low, high = SHARD_MB
        if not low <= self.shard_mb <= high:
            raise UsageError(f"`shard_mb={self.shard_mb}`: expected {low} to {high}")
        self.copies.check_names(self.task.class_names)

    def to_json(self) -> dict[str, Any]:
        """Returns the config as the manifest holds it."""
        return {
            "task": self.task.name,
            "with_no_finding": self.task.with_no_finding,
            **dataclasses.asdict(self.image_format),
            "copies": {**dataclasses.asdict(self.copies), "of": list(self.copies.of)},
            "flip": self.flip,
            "seed": self.seed,
            "shard_mb": self.shard_mb,
        }

    @staticmethod
    def from_json(config: Mapping[str, Any], findings: tuple[str, ...]) -> "DatasetConfig":
        """Returns the config that a manifest holds.

        Args:
            config: as `to_json` returned it.
            findings: names of the findings of the set.
        """
        return DatasetConfig(
            task=parse_task(config["task"], config["with_no_finding"], findings),
            image_format=ImageFormat(config["size"], config["codec"], config["resample"]),
            copies=CopyRule(**config["copies"]),
            flip=config["flip"],
            seed=config["seed"],
            shard_mb=config["shard_mb"],
        )
