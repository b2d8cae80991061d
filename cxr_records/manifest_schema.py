"""What manifest.json must hold, value by value: a dataset from elsewhere is checked before it is believed.

A checksum that fits says that nothing was damaged on the way; whoever wrote the file can make it fit. So
names of files are names of ours, digests are digests, numbers are bounded, and counts agree with each other.
"""

import re
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from typing import Any

from cxr_records.config import SHARD_MB
from cxr_records.errors import CxrError
from cxr_records.findings import FINDINGS, NO_FINDING
from cxr_records.images import CODECS, RESAMPLING, SIZES
from cxr_records.layout import RECORDS_FILE, SIDE_FILES, shard_name
from cxr_records.sampling import RULES
from cxr_records.splits import SPLITS, TRAIN
from cxr_records.tasks import parse_task
from cxr_records.tfrecord import OVERHEAD_BYTES

MOST = 1 << 53  # of anything that is counted: whole numbers beyond it are not the same in every JSON
MOST_FILE_BYTES = 1 << 40  # of one file; a shard aims at 4 GiB at most
# Of a dataset. A table of so many takes some GiB of memory, however little it takes on disk.
MOST_RECORDS = 1 << 24
MOST_LETTERS = 1000  # of a name or a line of text
# Rows of the table of records are some hundred bytes; this allows for names of files as long as they can be.
ROW_BYTES, TABLE_BYTES = 4 << 10, 1 << 20

Check = Callable[[Any, str], None]


class SchemaError(ValueError):
    """A value is not one that we write; the message says which, what was found, and what was expected."""

    def __init__(self, where: str, found: object, expected: str):
        super().__init__(f"{where or 'it'}: found {shown(found)}, expected {expected}")


def check_manifest(content: Any) -> None:
    """Checks what manifest.json holds, as JSON gives it.

    Raises:
        SchemaError: at the first value that no manifest of ours has.
    """
    _MANIFEST(content, "")
    _check_task(content)
    _check_splits(content["splits"])
    _check_classes(content)
    _check_files(content)
    counted = sum(split["images"] for split in content["splits"].values())
    left_out = sum(content["left_out"].values())
    if content["table"]["images"] != counted + left_out:
        images = content["table"]["images"]
        raise SchemaError("table.images", images, f"the {counted:,} in splits and {left_out:,} left out")
    if content.get("drawn", 0) > content["table"]["images"]:
        raise SchemaError(
            "drawn", content["drawn"], f"at most {content['table']['images']:,}, as in the table"
        )


def _check_task(content: Mapping[str, Any]) -> None:
    config, findings = content["config"], content.get("findings", list(FINDINGS))
    _unique(findings, "findings")
    for place, name in enumerate(findings):
        if name == NO_FINDING or "|" in name:
            raise SchemaError(f"findings[{place}]", name, "the name of a finding")
    try:
        task = parse_task(config["task"], config["with_no_finding"], tuple(findings))
    except CxrError:
        task = None
    if task is None or task.name != config["task"]:
        raise SchemaError("config.task", config["task"], "a task of these findings")
    if content["class_names"] != list(task.class_names):
        raise SchemaError("class_names", content["class_names"], f"those of {task.text}")
    _unique(config["copies"]["of"], "config.copies.of")
    for name in config["copies"]["of"]:
        if name not in task.class_names:
            raise SchemaError("config.copies.of", name, f"a class of {task.text}")


def _check_splits(splits: Mapping[str, Any]) -> None:
    if list(splits) != [name for name in SPLITS if name in splits]:
        raise SchemaError("splits", list(splits), f"some of {', '.join(SPLITS)}, in this order")
    for name, split in splits.items():
        where, shards = f"splits.{name}", split["shards"]
        for number, shard in enumerate(shards):
            place, expected = f"{where}.shards[{number}]", shard_name(name, number, len(shards))
            if shard["file"] != expected:
                raise SchemaError(f"{place}.file", shard["file"], expected)
            if shard["bytes"] < shard["records"] * OVERHEAD_BYTES:
                least = f"{OVERHEAD_BYTES} or more for each of {shard['records']:,} records"
                raise SchemaError(f"{place}.bytes", shard["bytes"], least)
        for kind in ("records", "bytes"):
            if (total := sum(shard[kind] for shard in shards)) != split[kind]:
                raise SchemaError(f"{where}.{kind}", split[kind], f"the {total:,} of its shards")
        if split["records"] != split["images"] + split["copies"]:
            text = f"{split['images']:,} images and {split['copies']:,} copies"
            raise SchemaError(f"{where}.records", split["records"], text)
        if split["copies"] and name != TRAIN:
            raise SchemaError(f"{where}.copies", split["copies"], f"none, for copies are in {TRAIN} only")
        if not 1 <= split["patients"] <= split["images"]:
            raise SchemaError(f"{where}.patients", split["patients"], f"1 to {split['images']:,}, its images")


def _check_classes(content: Mapping[str, Any]) -> None:
    splits, classes = content["splits"], content["classes"]
    names = list(content["class_names"])
    several = content["config"]["task"] == "multilabel"
    if several:
        names.append(NO_FINDING)
    if list(classes) != names:
        raise SchemaError("classes", list(classes), f"those of the task: {', '.join(names)}")
    for name, info in classes.items():
        where = f"classes.{name}"
        if list(info["splits"]) != list(splits):
            raise SchemaError(f"{where}.splits", list(info["splits"]), ", ".join(splits))
        for kind in ("images", "records"):
            if (total := sum(count[kind] for count in info["splits"].values())) != info[kind]:
                raise SchemaError(f"{where}.{kind}", info[kind], f"the {total:,} of its splits")
        for split, count in info["splits"].items():
            here = splits[split]
            if count["images"] > here["images"]:
                most = f"at most the {here['images']:,} of the split"
                raise SchemaError(f"{where}.splits.{split}.images", count["images"], most)
            copies = count["records"] - count["images"]
            if not 0 <= copies <= here["copies"]:
                text = f"{count['images']:,} images and at most the split's {here['copies']:,} copies"
                raise SchemaError(f"{where}.splits.{split}.records", count["records"], text)
    for split, here in splits.items():
        for kind in ("images", "records"):
            total = sum(info["splits"][split][kind] for info in classes.values())
            # An image has one class, but in multilabel one or more.
            if total < here[kind] or (total > here[kind] and not several):
                text = f"the {total:,} of the classes"
                raise SchemaError(f"splits.{split}.{kind}", here[kind], text)


def _check_files(content: Mapping[str, Any]) -> None:
    files = {entry["file"]: entry for entry in content["files"]}
    _unique([entry["file"] for entry in content["files"]], "files")
    if RECORDS_FILE not in files:
        raise SchemaError("files", list(files), f"{RECORDS_FILE} among them")
    records = sum(split["records"] for split in content["splits"].values())
    most, size = most_table_bytes(records), files[RECORDS_FILE]["bytes"]
    if size > most:
        text = f"at most {most:,} for {records:,} records"
        raise SchemaError(f"files.{RECORDS_FILE}.bytes", size, text)


def most_table_bytes(records: int) -> int:
    """Returns how large the table of so many records may be, on disk or in memory."""
    return TABLE_BYTES + ROW_BYTES * records


def _unique(names: Collection[str], where: str) -> None:
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise SchemaError(where, f"{twice[0]} twice", "each once")


def shown(value: object) -> str:
    """A value in a message of one line: what may be long or hold anything is cut and escaped."""
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, int) and not isinstance(value, bool):
        # Python refuses to write very long numbers.
        return f"{value:,}" if abs(value) < 1 << 200 else "a number of many digits"
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:96]}..."


def _object(required: Mapping[str, Check], optional: Mapping[str, Check] | None = None) -> Check:
    known = {**required, **(optional or {})}

    def check(value: Any, where: str) -> None:
        if not isinstance(value, dict):
            raise SchemaError(where, value, "an object")
        for name in value:
            if name not in known:
                raise SchemaError(where, name, f"none but {', '.join(known)}")
        for name in required:
            if name not in value:
                raise SchemaError(where, f"no {name}", "one")
        for name, part in value.items():
            known[name](part, f"{where}.{name}".lstrip("."))

    return check


def _by_name(of: Check, name: Check | None = None) -> Check:
    def check(value: Any, where: str) -> None:
        if not isinstance(value, dict):
            raise SchemaError(where, value, "an object")
        for key, part in value.items():
            (name or _text)(key, where)
            of(part, f"{where}.{key}")

    return check


def _list(of: Check, least: int = 0) -> Check:
    def check(value: Any, where: str) -> None:
        if not isinstance(value, list) or len(value) < least:
            raise SchemaError(where, value, f"a list of {least} or more")
        for place, part in enumerate(value):
            of(part, f"{where}[{place}]")

    return check


def _whole(least: int | None = 0, most: int | None = MOST) -> Check:
    bounds = "" if least is None or most is None else f" of {least:,} to {most:,}"

    def check(value: Any, where: str) -> None:
        right = isinstance(value, int) and not isinstance(value, bool)
        if not right or (least is not None and value < least) or (most is not None and value > most):
            raise SchemaError(where, value, f"a whole number{bounds}")

    return check


def _real(least: int, most: int) -> Check:
    """A number; None is one that is undefined."""

    def check(value: Any, where: str) -> None:
        if value is None:
            return
        right = isinstance(value, int | float) and not isinstance(value, bool)
        if not right or not least <= value <= most:  # nor is NaN
            raise SchemaError(where, value, f"a number of {least:,} to {most:,}, or null")

    return check


def _text(value: Any, where: str) -> None:
    if not isinstance(value, str) or not value or len(value) > MOST_LETTERS or not value.isprintable():
        raise SchemaError(where, value, f"printable text of 1 to {MOST_LETTERS:,} letters")


def _flag(value: Any, where: str) -> None:
    if not isinstance(value, bool):
        raise SchemaError(where, value, "true or false")


def _one_of(values: Collection[str]) -> Check:
    def check(value: Any, where: str) -> None:
        if not isinstance(value, str) or value not in values:
            raise SchemaError(where, value, f"one of {', '.join(values)}")

    return check


def _hexadecimal(digits: int) -> Check:
    pattern = re.compile(f"[0-9a-f]{{{digits}}}")

    def check(value: Any, where: str) -> None:
        if not isinstance(value, str) or not pattern.fullmatch(value):
            raise SchemaError(where, value, f"{digits} hexadecimal digits")

    return check


def _share(value: Any, where: str) -> None:
    """A share of images to aim at: as `sampling.CopyRule` has it."""
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < 1:
        raise SchemaError(where, value, "a share above 0 and below 1")


_SHA256 = _hexadecimal(64)
_RATIO = _object({"before": _real(0, MOST), "after": _real(0, MOST)})
_COUNT = _object({"images": _whole(), "records": _whole()})
_FILE_BYTES = _whole(0, MOST_FILE_BYTES)
_MANIFEST = _object(
    {
        "format": _text,
        "format_version": _whole(),
        "id": _hexadecimal(32),
        "checksum": _SHA256,
        "config": _object(
            {
                "task": _text,
                "with_no_finding": _flag,
                "size": _whole(*SIZES),
                "codec": _one_of(CODECS),
                "resample": _one_of(RESAMPLING),
                "copies": _object(
                    {"rule": _one_of(RULES), "target": _share, "max_records": _whole(1), "of": _list(_text)}
                ),
                "flip": _flag,
                "seed": _whole(None, None),
                "shard_mb": _whole(*SHARD_MB),
            }
        ),
        "class_names": _list(_text, least=1),
        "table": _object({"dialect": _text, "images": _whole(1), "sha256": _SHA256}),
        "split_origin": _object({"text": _text, "official": _flag, "list_sha256": _by_name(_SHA256)}),
        "pixels": _object({"mean": _real(0, 255), "std": _real(0, 255)}),
        "splits": _by_name(
            _object(
                {
                    "records": _whole(1, MOST_RECORDS),
                    "images": _whole(1),
                    "copies": _whole(),
                    "patients": _whole(1),
                    "shards": _list(
                        _object(
                            {
                                "file": _text,
                                "records": _whole(1, MOST_RECORDS),
                                "bytes": _FILE_BYTES,
                                "sha256": _SHA256,
                            }
                        ),
                        least=1,
                    ),
                    "bytes": _whole(),
                }
            ),
            _one_of(SPLITS),
        ),
        "classes": _by_name(
            _object(
                {"images": _whole(), "records": _whole(), "splits": _by_name(_COUNT, _one_of(SPLITS))},
                {"irlbl": _RATIO, "dragged": _real(0, 1)},
            )
        ),
        "mean_ir": _RATIO,
        "max_ir": _RATIO,
        "left_out": _by_name(_whole(1)),
        "files": _list(_object({"file": _one_of(SIDE_FILES), "bytes": _FILE_BYTES, "sha256": _SHA256})),
    },
    {
        "findings": _list(_text, least=1),
        "drawn": _whole(1),
        "duplicates": _list(
            _object(
                {
                    "images": _list(_text, least=2),
                    "splits": _list(_one_of(SPLITS)),
                    "patients": _list(_whole(-MOST, MOST)),
                    "same": _one_of(("source", "pixels")),
                }
            )
        ),
    },
)
