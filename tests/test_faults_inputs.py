"""Pictures, archives, tables, lists and scores with damage in them, and datasets made to mislead.

Part of `make test-faults`. A picture or table without a checksum of its own may turn into another valid one:
that is not promised, and counted.
"""

import copy
import functools
import gzip
import io
import json
import resource
import shutil
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import campaign
import numpy as np
import pandas as pd
import pydicom
import pytest
from campaign import (
    FAULT,
    HARMLESS,
    SAID,
    SILENT,
    UNPROMISED,
    Outcome,
    Seen,
    call,
    command,
    copied,
    damage,
    flip,
    run_trials,
    sort,
    spoil,
)
from conftest import manifest_json, write_manifest
from PIL import Image
from pydicom.uid import ComputedRadiographyImageStorage, ExplicitVRLittleEndian, RLELossless
from source_files import write_tar, write_targz, write_zip

import cxr_records
from cxr_records.findings import FINDINGS
from cxr_records.images import ImageDecodeError, ImageFormat, decode_image

pytestmark = [pytest.mark.faults, pytest.mark.usefixtures("in_this_thread")]
HOW = ["flip", "spoil"]
CPU_SECONDS, MEMORY_KIB = 20, 2 << 20  # that no damaged picture of some kilobytes may take


def unpromised(outcome: Outcome) -> Outcome:
    """The same outcome for files that hold nothing by which another content could be told."""
    return Outcome(UNPROMISED, outcome.shown) if outcome.name == SILENT else outcome


def soft_picture(side: int = 96) -> np.ndarray:
    """Grey levels as an X-ray has them: soft, with a little noise."""
    x, y = np.meshgrid(np.linspace(0, 3, side), np.linspace(0, 4, side))
    noise = np.random.default_rng(0).normal(0, 3, (side, side))
    return np.clip(128 + 60 * np.sin(x) * np.cos(y) + noise, 0, 255).astype(np.uint8)


def saved(picture: Image.Image, kind: str, **options: Any) -> bytes:
    out = io.BytesIO()
    picture.save(out, kind, **options)
    return out.getvalue()


def dicom(compressed: bool) -> bytes:
    """A DICOM of 12 bits, with or without run lengths."""
    pixels = soft_picture().astype(np.uint16) * 16
    data = pydicom.Dataset()
    data.file_meta = pydicom.dataset.FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID = ComputedRadiographyImageStorage
    data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID = "1.2.3"
    data.Rows, data.Columns = pixels.shape
    data.SamplesPerPixel, data.PhotometricInterpretation, data.PixelRepresentation = 1, "MONOCHROME2", 0
    data.BitsAllocated, data.BitsStored, data.HighBit = 16, 12, 11
    data.WindowCenter, data.WindowWidth = 2048, 4096
    data.PixelData = pixels.tobytes()
    if compressed:
        data.compress(RLELossless, generate_instance_uid=False)
    out = io.BytesIO()
    pydicom.dcmwrite(out, data, enforce_file_format=True)
    return out.getvalue()


@functools.cache
def pictures() -> dict[str, list[bytes]]:
    """Pictures of each kind of file."""
    grey = Image.fromarray(soft_picture())
    deep = Image.fromarray(soft_picture().astype(np.uint16) * 256)
    rgb = grey.convert("RGB")
    modes = (grey, deep, rgb, grey.convert("RGBA"), grey.convert("P"))
    return {
        "PNG": [
            *(saved(picture, "PNG") for picture in modes),
            saved(grey, "PNG", compress_level=0),
        ],
        "JPEG": [
            saved(grey, "JPEG"),
            saved(rgb, "JPEG", progressive=True),
            saved(grey, "JPEG", restart_marker_blocks=4),
        ],
        "DICOM": [dicom(False), dicom(True)],
    }


def decoded(data: bytes) -> Seen:
    """Pixels, or the reason why not."""
    try:
        return Seen(decode_image(data, ImageFormat(32)).pixels.tobytes())
    except ImageDecodeError as error:
        return Seen(None, frozenset([str(error)]))
    except Exception as error:
        return Seen(None, fault=f"{type(error).__name__}: {error}")


def sorted_picture(kind: str, whole: bytes, changed: bytes) -> Outcome:
    """What comes of decoding, within time and memory. Only PNGs hold checksums of their pixels."""
    started = time.process_time()
    seen = decoded(changed)
    if time.process_time() - started > CPU_SECONDS:
        return Outcome(FAULT, "took too long")
    if resource.getrusage(resource.RUSAGE_SELF).ru_maxrss > MEMORY_KIB + memory_before():
        return Outcome(FAULT, "took too much memory")
    outcome = sort(seen, decoded(whole))
    return outcome if kind == "PNG" else unpromised(outcome)


@functools.cache
def memory_before() -> int:
    """The most memory, in KiB, that this process had taken when the first picture was damaged."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "DICOM"])
def test_a_picture_with_one_bit_changed_is_rejected_or_the_same(record_property, kind):
    memory_before()

    def trial(random):
        whole = pictures()[kind][random.integers(len(pictures()[kind]))]
        changed, done = flip(whole, random)
        return sorted_picture(kind, whole, changed), done

    run_trials(f"picture: {kind}, flip", 0.1, trial, record_property)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "DICOM"])
def test_a_mangled_picture_is_decoded_or_rejected_and_nothing_else(record_property, kind):
    """Several changes at once: some may give another whole picture, even of a PNG."""
    memory_before()

    def trial(random):
        whole = pictures()[kind][random.integers(len(pictures()[kind]))]
        changed, notes = whole, []
        for _ in range(random.integers(1, 6)):
            # Half of the changes are in the header, which says what the rest is.
            cut = len(changed) if random.integers(2) else min(len(changed), 200)
            part, done = (flip if random.integers(2) else spoil)(changed[:cut] or b"\0", random)
            changed = part + changed[cut:]
            notes.append(done)
        return unpromised(sorted_picture(kind, whole, changed)), "; ".join(notes)

    run_trials(f"picture: {kind}, mangled", 0.07, trial, record_property)


WRITERS: dict[str, Callable[[Path, dict[str, bytes]], str]] = {
    "zip": lambda folder, files: write_zip(folder / "images.zip", files),
    "stored.zip": lambda folder, files: write_zip(folder / "images.zip", files, zipfile.ZIP_STORED),
    "tar": lambda folder, files: write_tar(folder / "images.tar", files),
    "tar.gz": lambda folder, files: write_targz(folder / "images.tar.gz", files),
}


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("kind", WRITERS)
def test_what_is_damaged_in_an_archive_of_pngs_is_rejected_or_said(
    world, tmp_path, record_property, kind, how
):
    """With the store empty each time; that of the .tar.gz keeps the index of a whole archive, or not."""
    files = {path.name: path.read_bytes() for path in sorted(world.made.images.rglob("*.png"))}
    archive = Path(WRITERS[kind](tmp_path, files))
    whole, status = archive.read_bytes(), archive.stat()
    undamaged = world.build(tmp_path / "dataset", tmp_path / "store", images=archive)
    assert isinstance(undamaged.result, dict)
    shutil.copytree(tmp_path / "store", tmp_path / "kept")
    for unit in (tmp_path / "kept").glob("unit-*"):
        unit.unlink()

    def trial(random):
        archive.write_bytes(whole)
        campaign.os.utime(archive, ns=(status.st_atime_ns, status.st_mtime_ns))
        shutil.rmtree(tmp_path / "store", ignore_errors=True)
        shutil.rmtree(tmp_path / "dataset", ignore_errors=True)
        if random.integers(2):
            shutil.copytree(tmp_path / "kept", tmp_path / "store")
        index = sorted((tmp_path / "store" / ".archives").glob("*"))
        done = damage(index[0] if index and random.integers(2) else archive, how, random)
        seen = world.build(tmp_path / "dataset", tmp_path / "store", images=archive)
        if isinstance(seen.result, dict) and seen.result["rejected.csv"] != undamaged.result["rejected.csv"]:
            return Outcome(SAID, "rejected.csv names it"), done
        return sort(seen, undamaged), done

    run_trials(f"archive: {kind}, {how}", 0.02, trial, record_property)


def mangle_text(text: str, random: np.random.Generator) -> tuple[str, str]:
    """Changes a table as people and programs do: cells, columns, rows, signs, separators, ends."""
    lines = text.splitlines()
    at, word = int(random.integers(len(lines))), int(random.integers(4))
    cells = lines[at].split(",")
    cell = int(random.integers(len(cells)))
    odd = [
        "",
        " ",
        "nan",
        "-1",
        "1e999",
        "0x1F",
        '"',
        "é",
        "\0",
        "\u200b",
        "=1+1",
        "9" * 40,
        "None",
        "../x",
        "1,2",
    ]

    def with_cell(value: str) -> str:
        return "\n".join(
            [*lines[:at], ",".join([*cells[:cell], value, *cells[cell + 1 :]]), *lines[at + 1 :]]
        )

    def columns_dropped() -> str:
        return "\n".join(",".join(c for i, c in enumerate(line.split(",")) if i != cell) for line in lines)

    ways: dict[str, Callable[[], str]] = {
        "cell": lambda: with_cell(odd[random.integers(len(odd))]),
        "swapped cells": lambda: with_cell(cells[cell - 1]),
        "row twice": lambda: "\n".join([*lines, lines[at]]),
        "row gone": lambda: "\n".join([*lines[:at], *lines[at + 1 :]]),
        "column gone": columns_dropped,
        "separator": lambda: text.replace(",", ";\t|:"[word]),
        "ends": lambda: text.replace("\n", ["\r\n", "\r", "\n\n", "\x0b"][word]),
        "case": lambda: text.upper() if word % 2 else text.lower(),
        "quoted": lambda: text.replace(",", '","'),
        "mark": lambda: "\ufeff" + text,
        "cut": lambda: text[: int(random.integers(len(text)))],
        "twice": lambda: text + text,
    }
    way = list(ways)[random.integers(len(ways))]
    return ways[way](), f"{way} at line {at + 1}, cell {cell + 1}"


def mangle_file(data: bytes, name: str, random: np.random.Generator) -> tuple[bytes, str]:
    """Changes the text of a table half of the time, and bytes of its file otherwise."""
    if name.endswith((".xlsx", ".parquet")) or random.integers(2):
        return (flip if random.integers(2) else spoil)(data, random)
    text = gzip.decompress(data) if name.endswith(".gz") else data
    changed, done = mangle_text(text.decode(), random)
    encoded = changed.encode(
        ["utf-8", "utf-16", "latin-1"][0 if random.integers(4) else random.integers(3)], "replace"
    )
    return gzip.compress(encoded, mtime=0) if name.endswith(".gz") else encoded, done


def as_kinds(folder: Path, table: Path) -> dict[str, bytes]:
    """A table's bytes as .csv, .csv.gz and .xlsx."""
    pd.read_csv(table, dtype=str).to_excel(folder / "made.xlsx", index=False)
    text = table.read_bytes()
    return {
        "t.csv": text,
        "t.csv.gz": gzip.compress(text, mtime=0),
        "t.xlsx": (folder / "made.xlsx").read_bytes(),
    }


@pytest.mark.parametrize("name", ["t.csv", "t.csv.gz", "t.xlsx"])
def test_a_mangled_table_is_read_or_refused_in_one_line(world, tmp_path, record_property, name):
    whole, path = as_kinds(tmp_path, world.made.metadata)[name], tmp_path / name

    def plan(data: bytes) -> Seen:
        path.write_bytes(data)
        return command("plan", "--metadata", path, "--json")

    undamaged = plan(whole)
    assert undamaged.result, undamaged

    def trial(random):
        changed, done = mangle_file(whole, name, random)
        return unpromised(sort(plan(changed), undamaged)), done

    run_trials(f"table: {name}", 0.07, trial, record_property)


@pytest.mark.parametrize("which", ["train_val_list", "test_list"])
def test_a_mangled_list_is_read_or_refused_in_one_line(world, tmp_path, record_property, which):
    whole, path = getattr(world.made, which).read_bytes(), tmp_path / "list.txt"
    given = {"train_val_list": world.made.train_val_list, "test_list": world.made.test_list, which: path}

    def plan(data: bytes) -> Seen:
        path.write_bytes(data)
        lists = ("--train-val-list", given["train_val_list"], "--test-list", given["test_list"])
        return command("plan", "--metadata", world.made.metadata, *lists, "--json")

    undamaged = plan(whole)
    assert undamaged.result, undamaged

    def trial(random):
        changed, done = mangle_file(whole, "list.txt", random)
        return unpromised(sort(plan(changed), undamaged)), done

    run_trials(f"list: {which}", 0.04, trial, record_property)


@pytest.mark.parametrize("name", ["s.csv", "s.csv.gz", "s.parquet"])
def test_mangled_scores_are_read_or_refused_in_one_line(world, tmp_path, record_property, name):
    from cxr_records.trainers.evaluation.evaluate import evaluate_table

    names = pd.read_csv(world.made.metadata)["Image Index"]
    scores = np.random.default_rng(0).random((len(names), len(FINDINGS))).round(4)
    table = pd.DataFrame(scores, columns=list(FINDINGS)).assign(image_id=names)
    path = tmp_path / name
    if name.endswith(".parquet"):
        table.to_parquet(path)
    else:
        text = table.to_csv(index=False).encode()
        path.write_bytes(gzip.compress(text, mtime=0) if name.endswith(".gz") else text)
    whole = path.read_bytes()

    def evaluated(data: bytes) -> Seen:
        path.write_bytes(data)
        seen = call(lambda: evaluate_table(str(path), str(world.made.metadata), draws=0).to_json())
        if not isinstance(seen.result, dict):
            return seen
        identity = {**seen.result["identity"], "predictions_sha256": None}
        result = json.dumps({**seen.result, "identity": identity, "warnings": None})  # NaN is itself here
        return Seen(result, frozenset(seen.result["warnings"]))

    undamaged = evaluated(whole)
    assert undamaged.result, undamaged

    def trial(random):
        changed, done = mangle_file(whole, name, random)
        return unpromised(sort(evaluated(changed), undamaged)), done

    run_trials(f"scores: {name}", 0.05, trial, record_property)


OUTSIDE = ("../canary", "/etc/hostname", "..", "http://localhost:1/x")  # the first is a shard's twin
HOSTILE = [
    *(*OUTSIDE, "a/b", "", "\0", "x\ny", "\ud800", "cxr14"),
    *(-1, 0, 1, 2**31, 2**63, 10**400, 0.5, -0.0, 1e308, None, True, [], {}, [[]], {"a": {}}, ["../canary"]),
]


def leaves(content: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The places of all values of a manifest that hold no others."""
    if isinstance(content, dict | list) and content:
        pairs = content.items() if isinstance(content, dict) else enumerate(content)
        return [place for key, value in pairs for place in leaves(value, (*at, key))]
    return [at]


def test_a_manifest_made_to_mislead_leads_nowhere(world, tmp_path, record_property):
    """One value changed, and every checksum made to fit: refused, or read, and nothing outside is touched."""
    from cxr_records.reader import shard_errors

    content = manifest_json(world.folder / "dataset")
    content.pop("checksum")
    places = [place for place in leaves(content) if place[0] not in ("format", "format_version", "id")]
    canary = (world.folder / "dataset" / content["splits"]["train"]["shards"][0]["file"]).read_bytes()
    (tmp_path / "canary").write_bytes(canary)
    with copied(world.folder / "dataset", tmp_path / "dataset"):
        pass

    def first_batch(dataset: Path) -> object:
        opened = cxr_records.open(dataset)
        opened.as_task("binary:Mass")
        with shard_errors():
            return next(iter(opened.load("train", 4, shuffle=False)))[0].numpy().tobytes()

    def trial(random):
        place = places[random.integers(len(places))]
        value = HOSTILE[random.integers(len(HOSTILE))]
        changed = copy.deepcopy(content)
        holder = functools.reduce(lambda inner, key: inner[key], place[:-1], changed)
        way = int(random.integers(8))
        if way == 0:
            del holder[place[-1]]
        elif way == 1 and isinstance(holder, dict):
            holder[str(value)] = holder.pop(place[-1])
        else:
            holder[place[-1]] = value
        done = f"{'.'.join(map(str, place))} = {str(value)[:30]!r} (way {way})"
        started = time.process_time()
        with copied(world.folder / "dataset", tmp_path / "dataset") as dataset:
            try:
                write_manifest(dataset, changed)
            except (ValueError, RecursionError):
                return Outcome(HARMLESS, "cannot be written"), done
            uses = {
                "verify": lambda: [str(problem) for problem in cxr_records.verify(dataset, deep=True)],
                "read": lambda: first_batch(dataset),
                "build": lambda: world.build(dataset, world.folder / "store"),
            }
            seen = {use: call(function) for use, function in uses.items()}
            built = seen["build"].result
            seen["build"] = built if isinstance(built, Seen) else seen["build"]
        if sorted(path.name for path in tmp_path.iterdir()) != ["canary"]:
            return Outcome(SILENT, f"left {sorted(path.name for path in tmp_path.iterdir())}"), done
        if (tmp_path / "canary").read_bytes() != canary:
            return Outcome(SILENT, "the canary is changed"), done
        if faults := [
            f"{use}: {each.fault.strip().splitlines()[-1]}" for use, each in seen.items() if each.fault
        ]:
            return Outcome(FAULT, "; ".join(faults)), done
        if time.process_time() - started > CPU_SECONDS:
            return Outcome(FAULT, "took too long"), done
        said = seen["verify"].said or seen["verify"].result or seen["read"].said
        if place[-1] == "file" and value in OUTSIDE and way > 1 and not said:
            return Outcome(SILENT, "a file outside the dataset was taken for one of its own"), done
        return Outcome(SAID if said else UNPROMISED), done

    run_trials("hostile manifest", 0.1, trial, record_property)
