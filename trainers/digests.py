"""Digests of a run's files: what a later command trusts is what was written, byte for byte.

`digests.json` in the run directory holds the sha256 of each, under a checksum of its own. While a file is
replaced it holds those of both, so that a kill at any moment leaves a file that is known.
"""

import json
from hashlib import sha256
from typing import Any

from cxr_records import storage
from cxr_records.errors import CxrError
from cxr_records.manifest import checksum, manifest_bytes

CONFIG_FILE = "config.json"  # which every run has
DIGESTS_FILE = "digests.json"
CHECKPOINTS_FOLDER = "checkpoints"


class DamagedFileError(CxrError):
    """A file of a run is there, and not byte for byte what was written."""


def write(path: str, data: bytes) -> None:
    """Writes a file of a run whole or not at all, and keeps its digest.

    Args:
        path: in the run directory, or in its folder of checkpoints.
        data: the whole file.

    Raises:
        CxrError: digests.json is damaged.
    """
    run, name = _place(path)
    kept, digest = _read(run), sha256(data).hexdigest()
    if before := kept.get(name):
        _write(run, {**kept, name: [digest, *before]})
    storage.write_bytes(path, data)
    _write(run, {**kept, name: [digest]})


def check(path: str, data: bytes) -> str:
    """Compares a file of a run with what was written.

    Args:
        path: as `write` takes it.
        data: what the file holds now.

    Returns:
        What is to be said: that no digest of a run's file is kept. "" where one is, and of a file that is in
        no run.

    Raises:
        DamagedFileError: these are not the bytes that were written.
        CxrError: digests.json is damaged.
    """
    run, name = _place(path)
    digests = _read(run).get(name)
    if not digests:
        if not storage.exists(storage.join(run, CONFIG_FILE)):
            return ""
        return f"{path}: no digest of it is kept, as in runs of before: it is used unchecked"
    if sha256(data).hexdigest() not in digests:
        raise DamagedFileError(f"{path} is damaged: its bytes are not those that were written")
    return ""


def sealed(content: dict[str, Any]) -> bytes:
    """Returns a JSON file that holds its own checksum."""
    return manifest_bytes({**content, "checksum": checksum(content)})


def unsealed(path: str, data: bytes) -> dict[str, Any]:
    """Returns what `sealed` was given.

    Raises:
        DamagedFileError: these are not the bytes that it returned.
    """
    try:
        content = json.loads(data)
        found = content.pop("checksum")
        if found == checksum(content) and data == sealed(content):
            held: dict[str, Any] = content
            return held
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        pass
    raise DamagedFileError(f"{path} is damaged: its bytes are not those that were written")


def _place(path: str) -> tuple[str, str]:
    """The run directory of a file, and the file's name in it."""
    *above, folder, file = storage.absolute(path).split("/")
    if folder == CHECKPOINTS_FOLDER:
        return "/".join(above), f"{folder}/{file}"
    return "/".join((*above, folder)), file


def _read(run: str) -> dict[str, list[str]]:
    path = storage.join(run, DIGESTS_FILE)
    if not storage.exists(path):
        return {}
    try:
        files: dict[str, list[str]] = unsealed(path, storage.read_bytes(path))["files"]
    except DamagedFileError as error:
        raise CxrError(
            f"{error}; put it back as it was, or remove it: then the run's files are used unchecked"
        ) from None
    return files


def _write(run: str, files: dict[str, list[str]]) -> None:
    storage.write_bytes(storage.join(run, DIGESTS_FILE), sealed({"files": files}))
