"""One shard, from stored images to a finished file: the pure function that Beam runs."""

import contextlib
import dataclasses
import hashlib
import json
from array import array
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from cxr_records import augment, storage
from cxr_records.errors import CxrError
from cxr_records.examples import FEATURES, example_parts
from cxr_records.parquet import read_work
from cxr_records.planning import ShardSpec
from cxr_records.store import Place, fetch_images
from cxr_records.tfrecord import HEADER_BYTES, frame_parts

# Enough for a store far away to be asked seldom; few enough for a lot to stay in a processor's cache.
LOT_BYTES = 4 << 20
_READERS = 16  # sidecars read at once
_RECORD_COLUMNS = [f.name for f in FEATURES if f.name not in ("image", "augmentation")]


@dataclasses.dataclass(frozen=True)
class ShardInfo:
    """A finished shard.

    Attributes:
        digest: of its plan.
        records: how many it holds.
        bytes: of the file.
        sha256: of the file.
        offsets: byte of the file at which each record begins.
        image_offsets: byte of the file at which the stored image of each record begins.
        image_bytes: of each of these images.
    """

    digest: str
    records: int
    bytes: int
    sha256: str
    offsets: Sequence[int]
    image_offsets: Sequence[int]
    image_bytes: Sequence[int]

    def compact(self) -> "ShardInfo":
        """The same with bytes for lists of objects, for a command that holds all shards'."""
        kind = "I" if self.bytes < 1 << 32 else "Q"
        return dataclasses.replace(
            self,
            offsets=array(kind, self.offsets),
            image_offsets=array(kind, self.image_offsets),
            image_bytes=array(kind, self.image_bytes),
        )


def read_shard_info(spec: ShardSpec) -> ShardInfo | None:
    """Returns what is known of a shard that is finished as this spec wants it; None when it is not.

    A sidecar is trusted by its own checksum, and a shard because its storage says that it is the file that
    was written. Where that says something else, as of a folder that was copied, its bytes are hashed again.
    """
    try:
        content = json.loads(storage.read_bytes(spec.sidecar_path))
        told = content.pop("checksum")
        version = content.pop("version")
        info = ShardInfo(**content)
        if told != _checksum(info, version) or info.digest != spec.digest:
            return None
        state = storage.file_state(spec.path)
    except (FileNotFoundError, ValueError, TypeError, KeyError, AttributeError):
        return None
    if state.num_bytes != info.bytes:
        return None
    if not state.version or state.version != version:
        if storage.file_sha256(spec.path) != info.sha256:
            return None
        with contextlib.suppress(OSError):  # a dataset that cannot be written is hashed each time
            _write_sidecar(spec, info, state.version)
    return info


def read_shard_infos(specs: Sequence[ShardSpec]) -> list[ShardInfo | None]:
    """Returns `read_shard_info` of each, compact, in order: some at once, for far away each is slow."""

    def read(spec: ShardSpec) -> ShardInfo | None:
        info = read_shard_info(spec)
        return info and info.compact()

    with ThreadPoolExecutor(_READERS) as pool:
        return list(pool.map(read, specs))


def _write_sidecar(spec: ShardSpec, info: ShardInfo, version: str) -> None:
    content = {**dataclasses.asdict(info), "version": version, "checksum": _checksum(info, version)}
    storage.write_bytes(spec.sidecar_path, (json.dumps(content) + "\n").encode())


def _checksum(info: ShardInfo, version: object) -> str:
    return hashlib.sha256(repr((info, version)).encode()).hexdigest()


def augmentation_text(spec: ShardSpec, image_id: str, copy: int) -> str:
    """Returns the `augmentation` feature of a record: JSON of function and parameters, "" for an original."""
    if copy == 0:
        return ""
    return json.dumps(augment.augmentation_for(spec.seed, image_id, copy, spec.flip), sort_keys=True)


def write_shard(spec: ShardSpec) -> ShardInfo:
    """Writes one shard, then its sidecar. Done already, or done twice, changes nothing.

    Stored images are fetched some megabytes at a time, each lot in the order in which it lies in the store.

    Raises:
        CxrError: a stored image is damaged.
    """
    if done := read_shard_info(spec):
        return done
    rows = read_work(spec.plan, spec.row_group)
    sha256, size = hashlib.sha256(), 0
    offsets: list[int] = []
    image_offsets: list[int] = []
    image_bytes: list[int] = []
    with storage.atomic_file(spec.path) as file:
        for row, image in zip(rows, _fetch(spec.store, rows), strict=True):
            parts = record_parts(spec, row, image)
            offsets.append(size)
            image_offsets.append(size + HEADER_BYTES + len(parts[0]))
            image_bytes.append(len(parts[1]))
            for part in frame_parts(parts):
                file.write(part)
                sha256.update(part)
                size += len(part)
    info = ShardInfo(spec.digest, len(rows), size, sha256.hexdigest(), offsets, image_offsets, image_bytes)
    _write_sidecar(spec, info, storage.file_state(spec.path).version)
    return info


def _fetch(store: str, rows: Sequence[Mapping[str, Any]]) -> Iterator[bytes]:
    """Yields the stored image of each row, in order."""
    lot = LOT_BYTES // max(1, rows[0]["length"]) + 1
    for start in range(0, len(rows), lot):
        yield from fetch_images(
            store, [Place(*(row[name] for name in Place._fields)) for row in rows[start : start + lot]]
        )


def record_parts(spec: ShardSpec, row: Mapping[str, Any], stored: bytes) -> tuple[bytes, bytes, bytes]:
    """Returns the serialized Example of one planned record, in the parts of `example_parts`.

    Args:
        spec: the shard's.
        row: a row of the plan file.
        stored: the image as the store holds it; an original takes it as it is, a copy is augmented.
    """
    values = {name: row[name] for name in _RECORD_COLUMNS}
    values["augmentation"] = augmentation_text(spec, row["image_id"], row["copy"])
    values["image"] = stored
    if row["copy"]:
        try:
            pixels = spec.image_format.decode(stored)
        except ValueError as error:
            raise CxrError(f"stored image {row['image_id']}: {error}") from error
        values["image"] = spec.image_format.encode(augment.apply(pixels, json.loads(values["augmentation"])))
    return example_parts(values)
