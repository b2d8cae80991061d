"""What a finished dataset says of itself, as it is read and written: manifest.json.

The manifest is written last, so its presence says that everything else is whole. It holds a digest of
every other file, and of itself.
"""

import functools
import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from cxr_records import storage
from cxr_records.config import DatasetConfig
from cxr_records.drawings import drawn_share
from cxr_records.errors import CxrError
from cxr_records.findings import FINDINGS
from cxr_records.layout import BUILD_FOLDER, MANIFEST_FILE
from cxr_records.manifest_schema import SchemaError, check_manifest, shown

FORMAT = "cxr_records dataset"
FORMAT_VERSION = 1
MOST_BYTES = 64 << 20  # of a manifest; that of ten million images has 2 MiB


class ManifestError(CxrError):
    """The manifest is absent, damaged, or of another version; the message says which."""


class DamagedManifestError(ManifestError):
    """The manifest is there, and not byte for byte what was written, or not as we write any."""


@dataclass(frozen=True)
class FileEntry:
    """A file beside the shards: its name, size in bytes, and sha256 in hexadecimal."""

    file: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class ShardEntry:
    """A shard: its name, number of records, size in bytes, and sha256 in hexadecimal."""

    file: str
    records: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class SplitInfo:
    """What a split has: records, of which `images` are originals and `copies` are not, and its shards."""

    records: int
    images: int
    copies: int
    patients: int
    shards: tuple[ShardEntry, ...]
    bytes: int


@dataclass(frozen=True)
class ClassCount:
    """How many images, and records with their copies, are of a class."""

    images: int
    records: int


@dataclass(frozen=True)
class BeforeAfter:
    """A ratio before and after copies; None where it is undefined."""

    before: float | None
    after: float | None


@dataclass(frozen=True)
class ClassInfo:
    """A class, in all splits and in each.

    Attributes:
        images: of all splits.
        records: of all splits.
        splits: by name of the split.
        irlbl: of the training split, as `sampling.ClassBalance`; None for No Finding where it is no class.
        dragged: as `sampling.ClassBalance`; None where `irlbl` is.
    """

    images: int
    records: int
    splits: Mapping[str, ClassCount]
    irlbl: BeforeAfter | None = None
    dragged: float | None = None


@dataclass(frozen=True)
class TableInfo:
    """The table of images that the dataset was made from: its dialect, rows, and digest of what it says."""

    dialect: str
    images: int
    sha256: str


@dataclass(frozen=True)
class SplitOrigin:
    """Where the splits come from: in words, whether they are NIH's own, and digests of the lists given."""

    text: str
    official: bool
    list_sha256: Mapping[str, str]


@dataclass(frozen=True)
class PixelStatistics:
    """Mean and standard deviation of the original training images, in grey levels 0 to 255.

    None without a training split.
    """

    mean: float | None
    std: float | None


@dataclass(frozen=True)
class DuplicateImages:
    """Images that show one picture and are in several splits, or of several patients.

    Attributes:
        images: their image_ids, sorted.
        splits: of each.
        patients: of each.
        same: "source" where their files are the same, byte for byte; "pixels" where what is stored of them is
            the same.
    """

    images: tuple[str, ...]
    splits: tuple[str, ...]
    patients: tuple[int, ...]
    same: str


@dataclass(frozen=True)
class Manifest:
    """What a finished dataset says of itself.

    Attributes:
        config: what was asked for.
        class_names: of the task.
        table: the table of images.
        split_origin: where the splits come from.
        pixels: grey levels of the training images.
        splits: by name, in the order train, validation, test.
        classes: by name; for multilabel also No Finding.
        mean_ir: MeanIR of the training split.
        max_ir: its largest IRLbl.
        left_out: images that are in no record, by reason.
        findings: names of the findings, in the order of a record's `findings`.
        files: those beside the shards.
        duplicates: pictures that are in the dataset more than once where they should not be.
        drawn: images of the table that are drawings of ours (`cxr_records.lookalike`).
    """

    config: DatasetConfig
    class_names: tuple[str, ...]
    table: TableInfo
    split_origin: SplitOrigin
    pixels: PixelStatistics
    splits: Mapping[str, SplitInfo]
    classes: Mapping[str, ClassInfo]
    mean_ir: BeforeAfter
    max_ir: BeforeAfter
    left_out: Mapping[str, int]
    findings: tuple[str, ...] = FINDINGS
    files: tuple[FileEntry, ...] = ()
    duplicates: tuple[DuplicateImages, ...] = ()
    drawn: int = 0

    @functools.cached_property
    def id(self) -> str:
        """Names what the dataset holds: 32 hexadecimal digits.

        The files beside the shards only describe it, and a Parquet file also tells which library wrote it:
        they are under the checksum alone, as are the duplicates and what is drawn.
        """
        return checksum(self._content())[:32]

    @property
    def drawn_share(self) -> str:
        """How many of the table's images are drawings: as `drawings.drawn_share` says it."""
        return drawn_share(self.drawn, self.table.images)

    def to_json(self) -> dict[str, Any]:
        """Returns what manifest.json holds."""
        content = {
            **self._content(),
            "id": self.id,
            "findings": list(self.findings),
            "files": [asdict(entry) for entry in self.files],
        }
        if self.duplicates:
            content["duplicates"] = [dict(vars(group)) for group in self.duplicates]
        if self.drawn:
            content["drawn"] = self.drawn
        return {**content, "checksum": checksum(content)}

    def _content(self) -> dict[str, Any]:
        """What the id is of."""
        splits = {name: asdict(split) for name, split in self.splits.items()}
        for split in splits.values():
            split["shards"] = list(split["shards"])
        return {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "config": self.config.to_json(),
            "class_names": list(self.class_names),
            "table": asdict(self.table),
            "split_origin": {**asdict(self.split_origin), "list_sha256": dict(self.split_origin.list_sha256)},
            "pixels": asdict(self.pixels),
            "splits": splits,
            "classes": {name: _class_json(info) for name, info in self.classes.items()},
            "mean_ir": asdict(self.mean_ir),
            "max_ir": asdict(self.max_ir),
            "left_out": dict(self.left_out),
        }

    @staticmethod
    def from_json(content: Mapping[str, Any]) -> "Manifest":
        """Returns the manifest that `to_json` returned.

        Args:
            content: as `check_manifest` lets it pass.
        """
        findings = tuple(content.get("findings", FINDINGS))
        return Manifest(
            config=DatasetConfig.from_json(content["config"], findings),
            class_names=tuple(content["class_names"]),
            table=TableInfo(**content["table"]),
            split_origin=SplitOrigin(**content["split_origin"]),
            pixels=PixelStatistics(**content["pixels"]),
            splits={
                name: SplitInfo(
                    **{**split, "shards": tuple(ShardEntry(**shard) for shard in split["shards"])}
                )
                for name, split in content["splits"].items()
            },
            classes={name: _class_info(info) for name, info in content["classes"].items()},
            mean_ir=BeforeAfter(**content["mean_ir"]),
            max_ir=BeforeAfter(**content["max_ir"]),
            left_out=content["left_out"],
            findings=findings,
            files=tuple(FileEntry(**entry) for entry in content["files"]),
            duplicates=tuple(
                DuplicateImages(
                    tuple(group["images"]), tuple(group["splits"]), tuple(group["patients"]), group["same"]
                )
                for group in content.get("duplicates", ())
            ),
            drawn=content.get("drawn", 0),
        )


def read_manifest(dataset: str) -> Manifest:
    """Reads a dataset's manifest and checks it against its own digests.

    Args:
        dataset: folder or URL.

    Raises:
        ManifestError: there is none, any byte of it is not as it was written, or it says what no manifest of
            ours says.
    """
    path = storage.join(dataset, MANIFEST_FILE)
    if not storage.exists(path):
        if os.path.isfile(dataset):
            raise ManifestError(f"{dataset} is a file, expected the folder of a dataset")
        if not storage.exists(dataset):
            raise ManifestError(f"{dataset}: no such folder")
        if BUILD_FOLDER in storage.list_names(dataset):
            raise ManifestError(f"{dataset}: the build is not finished; run the same build command again")
        raise ManifestError(f"{dataset}: no {MANIFEST_FILE}, so no dataset of ours; build one there first")
    try:
        data = storage.read_regular(path, MOST_BYTES)
    except CxrError as error:
        raise DamagedManifestError(str(error)) from None
    damaged = DamagedManifestError(
        f"{path} is damaged: its bytes are not those that were written; run the build command again"
    )
    try:
        content = json.loads(data)
        covered = {key: value for key, value in content.items() if key != "checksum"}
        if content["checksum"] != checksum(covered) or data != manifest_bytes(content):
            raise damaged
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise damaged from None
    kind, version = content.get("format"), content.get("format_version")
    if (kind, version) != (FORMAT, FORMAT_VERSION):
        remedy = "build the dataset again" if kind == FORMAT else "name a dataset of ours"
        raise ManifestError(
            f"{path}: {shown(kind)} version {shown(version)}, expected {FORMAT!r} version {FORMAT_VERSION}; "
            f"{remedy}"
        )
    try:
        check_manifest(content)
        manifest = Manifest.from_json(content)
        if manifest.id != content["id"]:
            raise SchemaError("id", content["id"], f"{manifest.id}, that of its content")
    except SchemaError as error:
        raise DamagedManifestError(
            f"{path} is not as cxr_records writes it: {error}; build the dataset again, or get it anew from "
            "where it was built"
        ) from None
    return manifest


def manifest_bytes(content: Mapping[str, Any]) -> bytes:
    """Returns the one way in which a manifest is written."""
    return (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode()


def checksum(content: Mapping[str, Any]) -> str:
    """Returns the sha256, in hexadecimal, of what a manifest holds beside its own checksum."""
    return hashlib.sha256(manifest_bytes(content)).hexdigest()


def _class_json(info: ClassInfo) -> dict[str, Any]:
    return {key: value for key, value in asdict(info).items() if value is not None}


def _class_info(content: Mapping[str, Any]) -> ClassInfo:
    irlbl = content.get("irlbl")
    return ClassInfo(
        images=content["images"],
        records=content["records"],
        splits={name: ClassCount(**count) for name, count in content["splits"].items()},
        irlbl=None if irlbl is None else BeforeAfter(**irlbl),
        dragged=content.get("dragged"),
    )
