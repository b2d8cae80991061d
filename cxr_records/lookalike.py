"""A seeded set of drawn chest X-rays that looks like NIH ChestX-ray14, with its layout, tables and imbalance.

For the demo, the tests and the benchmarks where the real 45 GB are not at hand. Each finding is drawn as a
pattern of its own, chosen to be told apart at 128 pixels rather than to be true to medicine: scores
reached on this set say that a pipeline works, and nothing about patients.
"""

import contextlib
import csv
import functools
import io
import json
import multiprocessing
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from cxr_records import storage
from cxr_records.drawings import DRAWN_BY_US, DRAWN_COLUMN
from cxr_records.errors import UsageError
from cxr_records.findings import NO_FINDING
from cxr_records.lookalike_drawing import boxes_of, draw_image
from cxr_records.lookalike_patients import PlannedImage, plan_images
from cxr_records.names import is_litter
from cxr_records.seeding import keyed_hash

# Raised when the same call would write other bytes, so that an older set is refused, never mixed in.
_VERSION = 2
_DONE, _STARTED = "lookalike.json", "lookalike-unfinished.json"
MIN_IMAGES, MIN_IMAGE_SIZE = 50, 32
# How the table of 2020 prints these spacings.
_SPACING_2020 = {0.143: "0.14300000000000002", 0.194311: "0.19431099999999998"}

_COLUMNS = ("Image Index", "Finding Labels", "Follow-up #", "Patient ID", "Patient Age", "Patient Gender",
            "View Position", DRAWN_COLUMN)  # fmt: skip
# As in the real files, where the commas within the brackets are not quoted.
_ORIGINAL_COLUMNS = ("OriginalImage[Width", "Height]", "OriginalImagePixelSpacing[x", "y]")
_SAMPLE_COLUMNS = ("OriginalImageWidth", "OriginalImageHeight", "OriginalImagePixelSpacing_x",
                   "OriginalImagePixelSpacing_y")  # fmt: skip


@dataclass(frozen=True)
class LookalikePaths:
    """Where the parts of a look-alike set are.

    Attributes:
        images: folder of `images_001/images/*.png` and `images_002/images/*.png`.
        metadata: the table as it is since 2020.
        metadata_2017: the same images in the original table's dialect.
        metadata_sample: the same images in the dialect of Kaggle's sample.
        train_val_list: file names, one per line.
        test_list: file names, one per line; none of its patients is in `train_val_list`.
        boxes: of the findings of test images that are drawn at one place, as NIH gives boxes.
    """

    images: Path
    metadata: Path
    metadata_2017: Path
    metadata_sample: Path
    train_val_list: Path
    test_list: Path
    boxes: Path


def lookalike_paths(out: Path) -> LookalikePaths:
    """Returns where the parts of a look-alike set in the folder `out` are, whether or not they exist."""
    out = storage.local_path(out)
    return LookalikePaths(
        images=out / "images",
        metadata=out / "Data_Entry_2017_v2020.csv",
        metadata_2017=out / "Data_Entry_2017.csv",
        metadata_sample=out / "sample_labels.csv",
        train_val_list=out / "train_val_list.txt",
        test_list=out / "test_list.txt",
        boxes=out / "BBox_List_2017.csv",
    )


def make_lookalike(
    out: Path, num_images: int = 600, image_size: int = 1024, seed: int = 0, workers: int = 1
) -> LookalikePaths:
    """Writes a set of drawn chest X-rays with the tables, lists and layout of NIH ChestX-ray14.

    One column is in no table of NIH's: `Drawn by`. From it every dataset, run and evaluation of these images
    knows that they are drawings, and says so.

    Shares of findings, how they occur together, images per patient and the split by patient are about those
    of the real set. Every finding occurs in at least 3 patients of train_val and 2 of test whatever the size
    of the set: below some 2,000 images the rare ones are therefore more frequent than in the real set. Where
    enough images without a finding are left (from about 600 images on), as many patients have an image with
    that finding alone.

    The bytes depend on `seed`, `num_images`, `image_size` and the image's name, not on `workers`. A call that
    was killed is finished by the same call; a finished set is left as it is.

    Args:
        out: folder to write to: new, empty, or from an earlier call with the same arguments.
        num_images: number of images, at least 50.
        image_size: height and width of the images in pixels, at least 32.
        seed: makes another set of other patients.
        workers: number of processes that draw. More than one needs a main module that can be imported.

    Raises:
        UsageError: an argument is out of range, or `out` holds something else.
    """
    if num_images < MIN_IMAGES:
        raise UsageError(f"`num_images={num_images}`: a look-alike set needs at least {MIN_IMAGES}")
    if image_size < MIN_IMAGE_SIZE:
        raise UsageError(f"`image_size={image_size}`: expected at least {MIN_IMAGE_SIZE} pixels")
    out = storage.local_path(out)
    parameters = {"version": _VERSION, "num_images": num_images, "image_size": image_size, "seed": seed}
    paths = lookalike_paths(out)
    if _claim(out, parameters):
        return paths
    plan = plan_images(num_images, seed)
    for folder in sorted({image.folder for image in plan}):
        (paths.images / folder).mkdir(parents=True, exist_ok=True)
    _draw_all(plan, paths.images, image_size, seed, workers)
    _write_tables(plan, paths, seed)
    os.replace(out / _STARTED, out / _DONE)
    return paths


def _claim(out: Path, parameters: dict[str, int]) -> bool:
    """Marks the folder as ours and tells whether the set is already complete; refuses anyone else's."""
    if out.exists() and not out.is_dir():
        raise UsageError(f"{out} is a file; the look-alike set needs a new or empty folder")
    for name in (_DONE, _STARTED):
        if not (out / name).exists():
            continue
        try:
            written = json.loads((out / name).read_text())
        except ValueError:
            raise UsageError(f"{out / name} is not readable; remove {out} or choose another folder") from None
        if written != parameters:
            raise UsageError(
                f"{out} holds a look-alike set of {written}, not {parameters}; choose another folder"
            )
        return name == _DONE
    if out.exists() and any(
        entry.name != f"{_STARTED}.part" and not is_litter(entry.name) for entry in out.iterdir()
    ):
        raise UsageError(f"{out} is not empty and no look-alike set; choose a new or empty folder")
    out.mkdir(parents=True, exist_ok=True)
    _write(out / _STARTED, json.dumps(parameters).encode() + b"\n")
    return False


def _write(path: Path, data: bytes) -> None:
    """Writes a file that appears whole or not at all, so that whatever is there need not be made again."""
    # No fsync: it is for kills, not for power cuts, and would cost more than drawing small images.
    part = path.with_name(path.name + ".part")
    part.write_bytes(data)
    os.replace(part, path)


def _write_tables(plan: Sequence[PlannedImage], paths: LookalikePaths, seed: int) -> None:
    labels = {image.image_id: "|".join(image.findings) or NO_FINDING for image in plan}
    appended = _appended_labels(plan, seed)
    v2020 = [
        (image.image_id, appended.get(image.image_id, labels[image.image_id]), image.follow_up, image.patient,
         image.age, image.sex, image.view, DRAWN_BY_US, *image.original,
         *[_SPACING_2020.get(image.spacing, str(image.spacing))] * 2)
        for image in sorted(plan, key=lambda image: (image.patient, image.follow_up))
    ]  # fmt: skip
    padded = [
        (image.image_id, labels[image.image_id], f"{image.place:03d}", f"{image.patient:08d}", image.age_2017,
         image.sex, image.view, DRAWN_BY_US, *image.original, image.spacing, image.spacing)
        for image in plan
    ]  # fmt: skip
    _write(paths.metadata, _csv((*_COLUMNS, *_ORIGINAL_COLUMNS), v2020, "\n"))
    # The header and the rows of 2017 end in a comma, but the rows have no field after it.
    _write(paths.metadata_2017, _csv((*_COLUMNS, *_ORIGINAL_COLUMNS), padded, ",\r\n"))
    _write(paths.metadata_sample, _csv((*_COLUMNS, *_SAMPLE_COLUMNS), padded, "\r\n"))
    for path, is_test in ((paths.train_val_list, False), (paths.test_list, True)):
        names = [f"{image.image_id}\n" for image in plan if image.is_test == is_test]
        _write(path, "".join(names).encode())
    # Sorted by finding, as in the real file, whose brackets hold commas that are not quoted.
    boxes = [
        ("Infiltrate" if name == "Infiltration" else name, image.image_id, box)
        for image in plan
        if image.is_test
        for name, box in boxes_of(image, seed)
    ]
    rows = [
        (image_id, name, *(round(1024 * side, 6) for side in box)) for name, image_id, box in sorted(boxes)
    ]
    _write(
        paths.boxes, _csv(("Image Index", "Finding Label", "Bbox [x", "y", "w", "h]", "", "", ""), rows, "\n")
    )


def _csv(header: Sequence[str], rows: Iterable[Sequence[object]], end: str) -> bytes:
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows([header, *rows])
    return text.getvalue().replace("\n", end).encode()  # Python 3.13's csv takes no comma for a line's end


def _appended_labels(plan: Sequence[PlannedImage], seed: int) -> dict[str, str]:
    """Returns label strings out of alphabetical order: in 2020, some test images had findings appended."""
    several = [image for image in plan if image.is_test and len(image.findings) > 1]
    several.sort(key=lambda image: keyed_hash(seed, "lookalike appended", image.image_id))
    chosen = several[: max(1, len(several) // 20)]
    return {image.image_id: "|".join((*image.findings[1:], image.findings[0])) for image in chosen}


def _draw_all(plan: Sequence[PlannedImage], images: Path, size: int, seed: int, workers: int) -> None:
    missing = [image for image in plan if not (images / image.folder / image.image_id).exists()]
    write = functools.partial(_write_images, images=images, size=size, seed=seed)
    workers = min(workers, len(missing))
    if workers <= 1:
        write(missing)
        return
    chunk = max(1, min(32, len(missing) // (4 * workers)))
    chunks = [missing[i : i + chunk] for i in range(0, len(missing), chunk)]
    spawn = multiprocessing.get_context("spawn")  # forking a process that runs threads can hang it
    with ProcessPoolExecutor(workers, mp_context=spawn) as pool, contextlib.ExitStack() as at_end:
        # After an error, the chunks that wait are not drawn.
        at_end.callback(pool.shutdown, wait=False, cancel_futures=True)
        for _ in pool.map(write, chunks):
            pass


def _write_images(chunk: Sequence[PlannedImage], images: Path, size: int, seed: int) -> None:
    for image in chunk:
        pixels = draw_image(image, size, seed)
        _write(images / image.folder / image.image_id, _encode(pixels, image.rgba))


def _encode(pixels: np.ndarray, rgba: bool) -> bytes:
    data = io.BytesIO()
    if rgba:
        alpha = np.full_like(pixels, 255)
        Image.fromarray(np.dstack([pixels, pixels, pixels, alpha])).save(data, "PNG", compress_level=1)
    else:
        # In noise there is nothing to find but runs (zlib's Z_RLE): as small as level 6, eight times faster.
        Image.fromarray(pixels).save(data, "PNG", compress_level=1, compress_type=3)
    return data.getvalue()
