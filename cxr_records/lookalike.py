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
import statistics
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from cxr_records.errors import UsageError
from cxr_records.findings import FINDINGS, NO_FINDING
from cxr_records.seeding import generator, keyed_hash

# Raised when the same call would write other bytes, so that an older set is refused, never mixed in.
_VERSION = 1
_DONE, _STARTED = "lookalike.json", "lookalike-unfinished.json"
MIN_IMAGES, MIN_IMAGE_SIZE = 50, 32
MIN_TRAIN_VAL_PATIENTS, MIN_TEST_PATIENTS = 3, 2  # for every finding

# Of the 86,524 train_val and the 25,596 test images, in the order of FINDINGS (table of 2020).
_PREVALENCE = {
    False: (0.0957, 0.0197, 0.1001, 0.1593, 0.0466, 0.0544, 0.0101, 0.0305, 0.0330, 0.0159, 0.0164, 0.0145,
            0.0259, 0.0016),
    True: (0.1281, 0.0418, 0.1820, 0.2388, 0.0683, 0.0634, 0.0217, 0.1041, 0.0709, 0.0361, 0.0427, 0.0170,
           0.0447, 0.0034),
}  # fmt: skip
# Tetrachoric correlations of each finding with those before it, in percent, measured on train_val: what
# makes thresholded normal numbers occur together as often as the findings do.
_CORRELATION = (
    (),
    (4,),
    (37, 39),
    (20, 1, 24),
    (7, -4, 23, 4),
    (-3, -8, 7, 11, 28),
    (19, 1, 15, 27, -2, -2),
    (10, -15, 15, -2, 12, 1, -12),
    (32, 2, 31, 15, 26, 17, 15, 4),
    (2, 13, 25, 33, 1, -1, 49, -16, 14),
    (16, -1, 9, 0, 11, -5, -4, 46, 3, -6),
    (10, 3, 3, 8, 5, 12, -5, 1, 3, -14, -2),
    (10, 7, 26, 6, 23, 20, 3, 14, 15, -1, 14, 26),
    (16, 8, 0, -1, 16, -4, -38, -10, -18, -9, 3, 17, 4),
)
_SAME_PATIENT = 0.4  # the share of those numbers' variance that all images of a patient have in common
_TEST_SHARE = 0.2283
# Images per patient: at which share of the patients how many are reached. Test patients have more.
_IMAGES_PER_PATIENT = {
    False: ((0, 0.576, 0.75, 0.9, 0.95, 0.99, 1), (1, 2, 3.4, 7.5, 11.5, 25, 109)),
    True: ((0, 0.49, 0.75, 0.9, 0.95, 0.99, 1), (1, 2, 9.5, 26, 42, 81, 184)),
}
# Width, height, pixel spacing in mm and how often, of the originals.
_ORIGINALS = ((2500, 2048, 0.168, 0.34), (2992, 2991, 0.143, 0.25), (3056, 2544, 0.139, 0.17),
              (2500, 2048, 0.171, 0.08), (2048, 2500, 0.168, 0.07), (2021, 2021, 0.194311, 0.05),
              (2544, 3056, 0.139, 0.04))  # fmt: skip
# How the table of 2020 prints these spacings.
_SPACING_2020 = {0.143: "0.14300000000000002", 0.194311: "0.19431099999999998"}

_COLUMNS = ("Image Index", "Finding Labels", "Follow-up #", "Patient ID", "Patient Age", "Patient Gender",
            "View Position")  # fmt: skip
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
    """

    images: Path
    metadata: Path
    metadata_2017: Path
    metadata_sample: Path
    train_val_list: Path
    test_list: Path


def lookalike_paths(out: Path) -> LookalikePaths:
    """Returns where the parts of a look-alike set in the folder `out` are, whether or not they exist."""
    out = Path(out)
    return LookalikePaths(
        images=out / "images",
        metadata=out / "Data_Entry_2017_v2020.csv",
        metadata_2017=out / "Data_Entry_2017.csv",
        metadata_sample=out / "sample_labels.csv",
        train_val_list=out / "train_val_list.txt",
        test_list=out / "test_list.txt",
    )


def make_lookalike(
    out: Path, num_images: int = 600, image_size: int = 1024, seed: int = 0, workers: int = 1
) -> LookalikePaths:
    """Writes a set of drawn chest X-rays with the tables, lists and layout of NIH ChestX-ray14.

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
        raise UsageError(f"num_images is {num_images}; a look-alike set needs at least {MIN_IMAGES}")
    if image_size < MIN_IMAGE_SIZE:
        raise UsageError(f"image_size is {image_size} pixels; at least {MIN_IMAGE_SIZE} are needed")
    out = Path(out)
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
            found = json.loads((out / name).read_text())
        except ValueError:
            raise UsageError(f"{out / name} is not readable; remove {out} or choose another folder") from None
        if found != parameters:
            raise UsageError(
                f"{out} holds a look-alike set of {found}, not {parameters}; choose another folder"
            )
        return name == _DONE
    if out.exists() and any(entry.name != f"{_STARTED}.part" for entry in out.iterdir()):
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


# ---- who has what: patients, findings, table rows -------------------------------------------------------


@dataclass(frozen=True)
class PlannedImage:
    """One image to draw and what the tables say of it.

    Attributes:
        image_id: file name, such as "00000001_000.png".
        folder: below the folder of images.
        patient: number of the patient, from 1.
        place: number in the file name; in the table of 2017 also the follow-up number.
        follow_up: number in time, as renumbered in 2020.
        is_test: in the test list.
        findings: names present, in alphabetical order.
        age: years, as in the table of 2020.
        age_2017: as in the table of 2017, such as "058Y" or "011M".
        sex: "M" or "F".
        view: "PA" or "AP".
        original: width and height of the original in pixels.
        spacing: of the original's pixels in mm.
        rgba: stored with four channels.
    """

    image_id: str
    folder: str
    patient: int
    place: int
    follow_up: int
    is_test: bool
    findings: tuple[str, ...]
    age: int
    age_2017: str
    sex: str
    view: str
    original: tuple[int, int]
    spacing: float
    rgba: bool


def plan_images(num_images: int, seed: int) -> list[PlannedImage]:
    """Returns the images of a set, sorted by name: what `make_lookalike` draws and writes into the tables."""
    rng = generator(seed, "lookalike", num_images)
    patient, place, is_test = _draw_patients(num_images, rng)
    labels = _draw_findings(patient, is_test, rng)
    follow_up = _draw_time_order(patient, place, rng)
    sex = rng.random(patient.max() + 1) < 0.565
    is_ap = _draw_views(labels, is_test, rng)
    age, age_2017 = _draw_ages(patient, follow_up, rng)
    shares = np.array([share for *_, share in _ORIGINALS])
    original = rng.choice(len(_ORIGINALS), num_images, p=shares / shares.sum())
    # The real ones with four channels are about 1%, and each a patient's first image.
    rgba = set(rng.permutation(np.flatnonzero(place == 0))[: max(1, round(num_images / 100))].tolist())
    plan = []
    for i in range(num_images):
        width, height, spacing, _ = _ORIGINALS[original[i]]
        plan.append(
            PlannedImage(
                image_id=f"{patient[i]:08d}_{place[i]:03d}.png",
                # As in the archives, the cut between two folders may run through a patient.
                folder=f"images_{1 + (2 * i >= num_images):03d}/images",
                patient=int(patient[i]),
                place=int(place[i]),
                follow_up=int(follow_up[i]),
                is_test=bool(is_test[i]),
                findings=tuple(sorted(name for name, on in zip(FINDINGS, labels[i], strict=True) if on)),
                age=int(age[i]),
                age_2017=age_2017[i],
                sex="M" if sex[patient[i]] else "F",
                view="AP" if is_ap[i] else "PA",
                original=(width, height),
                spacing=spacing,
                rgba=i in rgba,
            )
        )
    return plan


def _draw_patients(num_images: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns per image, in name order, the patient's number, the place within the patient, and the split."""
    num_test = round(num_images * _TEST_SHARE)
    sizes, tests = [], []
    for is_test, total in ((False, num_images - num_test), (True, num_test)):
        drawn = _patient_sizes(total, is_test, rng)
        sizes += drawn
        tests += [is_test] * len(drawn)
    order = rng.permutation(len(sizes))
    counts = np.array(sizes)[order]
    patient = np.repeat(np.arange(1, len(counts) + 1), counts)
    place = np.arange(num_images) - np.repeat(np.cumsum(counts) - counts, counts)
    return patient, place, np.repeat(np.array(tests)[order], counts)


def _patient_sizes(total: int, is_test: bool, rng: np.random.Generator) -> list[int]:
    """Returns images per patient that sum to `total`, with the heavy tail of the real set."""
    shares, counts = _IMAGES_PER_PATIENT[is_test]
    # No patient may hold so much of a small split that too few others are left for the rare findings.
    cap = min(184, max(1, total // 8))
    # Steps of the golden ratio fill [0, 1) evenly: a small set has the tail in the right share too.
    start, sizes, left = rng.random(), [], total
    while left:
        level = (start + len(sizes) * 0.6180339887498949) % 1
        size = min(int(np.exp(np.interp(level, shares, np.log(counts))) + 1e-9), cap, left)
        sizes.append(size)
        left -= size
    return sizes


def _draw_findings(patient: np.ndarray, is_test: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Returns bool [images, 14]: findings as frequent, and as often together, as in the real split."""
    correlation = np.eye(len(FINDINGS))
    for i, row in enumerate(_CORRELATION):
        correlation[i, :i] = correlation[:i, i] = np.array(row) / 100
    factor = np.linalg.cholesky(correlation).T
    common = rng.standard_normal((patient.max() + 1, len(FINDINGS))) @ factor
    own = rng.standard_normal((len(patient), len(FINDINGS))) @ factor
    score = np.sqrt(_SAME_PATIENT) * common[patient] + np.sqrt(1 - _SAME_PATIENT) * own
    labels = np.zeros(score.shape, bool)
    for test, needed in ((False, MIN_TRAIN_VAL_PATIENTS), (True, MIN_TEST_PATIENTS)):
        rows = np.flatnonzero(is_test == test)
        part = np.zeros((len(rows), len(FINDINGS)), bool)
        for k, prevalence in enumerate(_PREVALENCE[test]):
            # The highest scores, not those over a threshold: shares are met in small sets too.
            part[np.argsort(-score[rows, k])[: round(prevalence * len(rows))], k] = True
        _add_rare(part, score[rows], patient[rows], needed)
        labels[rows] = part
    return labels


def _add_rare(labels: np.ndarray, score: np.ndarray, patient: np.ndarray, needed: int) -> None:
    """Adds findings, in place, until each one is in `needed` patients and, if possible, alone in as many.

    Images without a finding are taken first, but a quarter of the split stays without.
    """
    for alone in (False, True):
        for k in np.argsort(labels.sum(0), kind="stable"):
            while True:
                count = labels.sum(1)
                holders = patient[labels[:, k] & ((count == 1) | (not alone))]
                if len(set(holders.tolist())) >= needed:
                    break
                free = ~np.isin(patient, holders)
                empty = free & (count == 0)
                if empty.any() and (count == 0).mean() > 0.25:
                    candidates = np.flatnonzero(empty)
                elif alone:
                    break
                else:
                    fewest = count[free & (count > 0)].min() if (free & (count > 0)).any() else 0
                    candidates = np.flatnonzero(free & (count == fewest))
                labels[candidates[np.argmax(score[candidates, k])], k] = True


def _draw_time_order(patient: np.ndarray, place: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Returns the follow-up numbers of 2020, where a fifth of the files are not in order of time."""
    follow_up = place.copy()
    several = np.unique(patient[place > 0])
    for number in rng.permutation(several)[: max(1, len(several) // 5)]:
        rows = np.flatnonzero(patient == number)
        follow_up[rows] = np.roll(place[rows], 1)  # the first file is the last in time, as with patient 3
    return follow_up


def _draw_views(labels: np.ndarray, is_test: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Returns which images are AP: the bedside view of the very ill, so that it goes with some findings."""
    chance = np.where(is_test, 0.47, 0.30)
    for name, more in (("Edema", 0.4), ("Consolidation", 0.22), ("Infiltration", 0.13), ("Effusion", 0.1)):
        chance = chance + more * labels[:, FINDINGS.index(name)]
    for name in ("Hernia", "Fibrosis", "Emphysema"):
        chance = chance - 0.15 * labels[:, FINDINGS.index(name)]
    return rng.random(len(chance)) < np.clip(chance, 0.05, 0.95)


def _draw_ages(
    patient: np.ndarray, follow_up: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, list[str]]:
    """Returns ages in years as of 2020, rising with the follow-up, and as written, oddly, in 2017."""
    first = np.clip(rng.normal(46, 16.6, patient.max() + 1), 2, 90)
    pace = rng.uniform(0, 0.8, patient.max() + 1)  # years from one image to the next
    age = np.clip(first[patient] + pace[patient] * follow_up, 0, 95).astype(int)
    # The table of 2017 says one year more for a quarter of the images.
    older = age + (rng.random(len(age)) < 0.24)
    written = [f"{years:03d}Y" for years in older]
    single = np.flatnonzero(np.bincount(patient)[patient] == 1)
    odd = rng.permutation(single)[:5]
    for row, months in zip(odd[:3], (11, 18, 5), strict=False):
        age[row], written[row] = months // 12, f"{months:03d}M"
    # Of a grown-up both, as the table of 2020 says of the real ones.
    for row, text in zip(odd[3:], ("001D", "414Y"), strict=False):
        written[row] = text
    return age, written


# ---- tables ----------------------------------------------------------------------------------------------


def _write_tables(plan: Sequence[PlannedImage], paths: LookalikePaths, seed: int) -> None:
    labels = {image.image_id: "|".join(image.findings) or NO_FINDING for image in plan}
    appended = _appended_labels(plan, seed)
    v2020 = [
        (image.image_id, appended.get(image.image_id, labels[image.image_id]), image.follow_up, image.patient,
         image.age, image.sex, image.view, *image.original,
         *[_SPACING_2020.get(image.spacing, str(image.spacing))] * 2)
        for image in sorted(plan, key=lambda image: (image.patient, image.follow_up))
    ]  # fmt: skip
    padded = [
        (image.image_id, labels[image.image_id], f"{image.place:03d}", f"{image.patient:08d}", image.age_2017,
         image.sex, image.view, *image.original, image.spacing, image.spacing)
        for image in plan
    ]  # fmt: skip
    _write(paths.metadata, _csv((*_COLUMNS, *_ORIGINAL_COLUMNS), v2020, "\n"))
    # The header and the rows of 2017 end in a comma, but the rows have no field after it.
    _write(paths.metadata_2017, _csv((*_COLUMNS, *_ORIGINAL_COLUMNS), padded, ",\r\n"))
    _write(paths.metadata_sample, _csv((*_COLUMNS, *_SAMPLE_COLUMNS), padded, "\r\n"))
    for path, is_test in ((paths.train_val_list, False), (paths.test_list, True)):
        names = [f"{image.image_id}\n" for image in plan if image.is_test == is_test]
        _write(path, "".join(names).encode())


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


# ---- drawing ---------------------------------------------------------------------------------------------
#
# Brightness runs from 0 (air) to 1 (bone). Lengths are shares of the image's width. A side is -1 for what is
# left in the image (the patient's right) and 1 for what is right in it, where the heart is.

# Shapes are drawn at this resolution and enlarged: finer detail than this the real ones' noise hides.
_DRAW_SIZE = 256
# Normal quantiles, one per byte: looking up random bytes is eight times faster than drawing normal
# numbers. This much noise gives a 1024 x 1024 PNG the real ones' 400 KB.
_NOISE = np.array([1.45 * statistics.NormalDist().inv_cdf((i + 0.5) / 256) for i in range(256)], np.float32)


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


def draw_image(image: PlannedImage, size: int, seed: int) -> np.ndarray:
    """Draws an image as uint8 [size, size]."""
    rng = generator(seed, "lookalike image", image.image_id)
    chest = _Chest(image, min(size, _DRAW_SIZE), seed, rng)
    for name in _ORDER_OF_DRAWING:
        if name in image.findings:
            # A patient's finding stays about where it was, as long as the name is the same.
            _PATTERNS[name](chest, generator(seed, "lookalike finding", image.patient, name), rng)
    pixels = _expose(chest, image, rng)
    if size != chest.size:
        # Bilinear leaves no overshoot at the markers' edges.
        pixels = np.asarray(Image.fromarray(pixels).resize((size, size), Image.Resampling.BILINEAR))
    grain = _NOISE * np.float32(rng.uniform(0.75, 1.25))
    noise = grain[np.frombuffer(rng.bytes(size * size), np.uint8)].reshape(size, size)
    return np.clip(pixels + noise + 0.5, 0, 255).astype(np.uint8)


def _expose(chest: "_Chest", image: PlannedImage, rng: np.random.Generator) -> np.ndarray:
    """Turns brightness into grey levels, float32, at the exposure of the day, with the side's marker."""
    low, high = (18, 205) if image.view == "AP" else (6, 235)
    gain = chest.exposure * rng.uniform(0.93, 1.07)
    pixels = low * rng.uniform(0.5, 1.5) + (high - low) * gain * np.clip(chest.picture, 0, 1.08)
    pixel = chest.size / 64
    row, column = int(rng.uniform(1, 5) * pixel), int(rng.uniform(54, 59) * pixel)
    tall, wide = max(2, round(3 * pixel)), max(1, round(0.7 * pixel))
    pixels[row : row + tall, column : column + wide] = 250
    if image.view == "PA":
        pixels[row + tall - wide : row + tall, column : column + 3 * wide] = 250
    return pixels


@functools.lru_cache(maxsize=2)
def _grid(size: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the centres of the pixels, x as [1, size] and y as [size, 1]."""
    centres = (np.arange(size, dtype=np.float32) + 0.5) / size
    return centres[None, :], centres[:, None]


class _Chest:
    """The picture being drawn and where in it the organs are."""

    def __init__(self, image: PlannedImage, size: int, seed: int, rng: np.random.Generator) -> None:
        body = generator(seed, "lookalike patient", image.patient)
        self.size = size
        self.exposure = body.uniform(0.85, 1.05)
        self.x, self.y = self._pose(body, rng)
        self._measure(image, body, rng)
        self._draw_lungs()
        self.picture = self._draw_trunk(body)
        self._draw_bones(body)
        self._draw_heart()
        self.picture += 0.035 * self.texture(rng, 12)

    def _pose(self, body: np.random.Generator, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Returns coordinates that stand, are turned and are scaled as the patient is before the plate."""
        x, y = _grid(self.size)
        turn = np.float32(body.normal(0, 0.02) + rng.normal(0, 0.015))
        scale = np.float32(body.uniform(0.94, 1.06) * rng.uniform(0.98, 1.02))
        dx, dy = (np.float32(body.normal(0, 0.012) + rng.normal(0, 0.01)) for _ in range(2))
        x, y = (x - 0.5 - dx) / scale, (y - 0.5 - dy) / scale
        return x - turn * y + np.float32(0.5), y + turn * x + np.float32(0.5)

    def _measure(self, image: PlannedImage, body: np.random.Generator, rng: np.random.Generator) -> None:
        """Draws the sizes of the organs. Two findings are nothing but sizes."""
        breath = rng.normal(0, 0.008)
        self.lung_width = body.uniform(0.150, 0.172)
        self.lung_centre = body.uniform(0.195, 0.215)
        self.top = body.uniform(0.11, 0.14)
        self.bottom = body.uniform(0.735, 0.775) + breath
        self.dome = 2.6
        self.lung_value = body.uniform(0.20, 0.28)
        heart = body.uniform(0.115, 0.135) * (1.06 if image.view == "AP" else 1.0)
        if "Emphysema" in image.findings:
            self.bottom += rng.uniform(0.075, 0.095)
            self.lung_width *= rng.uniform(1.12, 1.18)
            self.top -= 0.02
            self.dome = 0.3
            self.lung_value *= 0.35
            heart *= 0.85
        if "Cardiomegaly" in image.findings:
            heart *= rng.uniform(1.62, 1.85)
        self.heart = heart
        self.heart_x = 0.5 + 0.3 * heart + 0.01
        self.heart_y = self.bottom - 0.105

    def _draw_lungs(self) -> None:
        """Keeps per side what is lung, [size, size] of 0 to 1, and the ellipse, 1 at its edge, around it."""
        self.lungs: dict[int, np.ndarray] = {}
        self.ellipse: dict[int, np.ndarray] = {}
        for side in (-1, 1):
            lateral = (self.x - 0.5) * side
            offset = lateral - np.float32(self.lung_centre)
            self.ellipse[side] = self.ellipse_of(side)
            lung = np.clip((1 - self.ellipse[side]) * (self.lung_width / 0.024) + 0.5, 0, 1)
            base = np.float32(self.bottom + (0.015 if side > 0 else 0))
            diaphragm = base + np.float32(self.dome) * offset * offset
            self.lungs[side] = lung * soft(self.y - diaphragm, 0.012)
            self.lungs[side] *= soft(np.float32(0.055) - lateral, 0.03)

    def ellipse_of(self, side: int, shrink: float = 1, inward: float = 0, down: float = 0) -> np.ndarray:
        """Returns the squared distance from a lung's centre, 1 at its edge; lungs widen downwards."""
        half = (1.10 * self.bottom - self.top) / 2
        middle = self.top + half + down
        across = ((self.x - 0.5) * side - np.float32(self.lung_centre - inward)) / np.float32(
            self.lung_width * shrink
        )
        across = across / (np.float32(0.78) + np.float32(0.4) * self.y)
        along = (self.y - np.float32(middle)) / np.float32(half * shrink)
        return across * across + along * along

    def _draw_trunk(self, body: np.random.Generator) -> np.ndarray:
        """Returns the picture with trunk, abdomen and lungs."""
        rise = np.clip((self.y - np.float32(0.03)) / np.float32(body.uniform(0.11, 0.16)), 0, 1)
        half = np.float32(0.12) + np.float32(body.uniform(0.30, 0.36)) * rise * (2 - rise)
        away = np.abs(self.x - 0.5)
        trunk = soft(away - half, 0.05)
        flesh = np.float32(0.62) + np.float32(0.22) * np.clip((self.y - 0.62) * 4, 0, 1) - 0.15 * away
        picture = flesh * trunk
        for side in (-1, 1):
            blend(picture, self.lungs[side], self.lung_value)
        return picture

    def _draw_bones(self, body: np.random.Generator) -> None:
        """Draws ribs, the vessels at the roots of the lungs, collar bones, spine and windpipe."""
        away = np.abs(self.x - 0.5)
        phase = self.y * np.float32(body.uniform(9, 11)) - np.float32(9) * away * away
        ribs = np.clip(np.cos(np.float32(2 * np.pi) * phase) - np.float32(0.2), 0, 1)
        self.picture += np.float32(0.085) * ribs * (self.lungs[-1] + self.lungs[1])
        self.picture += np.float32(0.13) * disc(away - 0.105, self.y - 0.45, 0.085, 0.13)
        collar = np.abs(self.y - np.float32(0.155) + np.float32(0.16) * away)
        self.picture += np.float32(0.13) * soft(collar - 0.011, 0.012) * soft(away - 0.34, 0.05)
        np.maximum(self.picture, np.float32(0.70) * soft(away - 0.062, 0.035), out=self.picture)
        self.picture += np.float32(0.12) * soft(away - 0.03, 0.02)
        self.picture -= np.float32(0.17) * soft(away - 0.012, 0.012) * soft(self.y - 0.31, 0.04)

    def _draw_heart(self) -> None:
        across = (self.x - np.float32(self.heart_x)) / np.float32(self.heart)
        along = (self.y - np.float32(self.heart_y)) / np.float32(0.5 * self.heart + 0.085)
        tilted = across - np.float32(0.25) * along
        heart = np.clip((1 - tilted * tilted - along * along) * (self.heart / 0.03) + 0.5, 0, 1)
        blend(self.picture, np.float32(0.9) * heart, 0.79)
        blend(self.picture, np.float32(0.8) * circle(self.x - 0.562, self.y - 0.315, 0.042), 0.70)
        for side in (-1, 1):
            self.lungs[side] = self.lungs[side] * (1 - heart)

    def texture(self, rng: np.random.Generator, cells: int) -> np.ndarray:
        """Returns clouds of about `cells` by `cells`, roughly from -1 to 1, float32 [size, size]."""
        coarse = rng.uniform(-1, 1, (cells, cells)).astype(np.float32)
        return np.asarray(Image.fromarray(coarse).resize((self.size, self.size), Image.Resampling.BILINEAR))

    def point(self, side: int, across: float, down: float) -> tuple[float, float]:
        """Returns x, y of a place in a lung; `across` from -1 (inner) to 1, `down` from 0 (top) to 1."""
        x = 0.5 + side * (self.lung_centre + 0.01 + 0.75 * across * self.lung_width)
        return x, self.top + down * (self.bottom - self.top)


def soft(distance: np.ndarray, edge: float) -> np.ndarray:
    """Returns 1 where the distance is negative, 0 where it is positive, and a ramp `edge` wide between."""
    return np.clip(np.float32(0.5) - distance * np.float32(1 / edge), 0, 1)


def circle(x: np.ndarray, y: np.ndarray, radius: float, edge: float = 0.014) -> np.ndarray:
    """Returns a disc of 1 with a soft edge, around the origin of x and y."""
    inside = np.float32(radius * radius) - x * x - y * y
    return np.clip(inside * np.float32(0.5 / (radius * edge)) + 0.5, 0, 1)


def disc(x: np.ndarray, y: np.ndarray, width: float, height: float) -> np.ndarray:
    """Returns a hill from 1 at the origin of x and y down to 0 at the half-axes `width` and `height`."""
    x, y = x * np.float32(1 / width), y * np.float32(1 / height)
    hill = np.clip(1 - x * x - y * y, 0, 1)
    return hill * hill


def blend(picture: np.ndarray, mask: np.ndarray, value: float) -> None:
    """Moves the picture, in place, towards a brightness where the mask is 1."""
    picture += (np.float32(value) - picture) * mask


# ---- findings: each (chest, the patient's numbers, the image's numbers) changes chest.picture ------------


def _side(body: np.random.Generator) -> int:
    return -1 if body.random() < 0.5 else 1


def _place(
    chest: _Chest, body: np.random.Generator, rng: np.random.Generator, down: tuple[float, float]
) -> tuple[int, float, float]:
    """Returns a side and x, y of a spot in its lung between two heights, near the patient's last one."""
    side = _side(body)
    x, y = chest.point(side, body.uniform(-0.35, 0.6), body.uniform(*down))
    return side, x + rng.normal(0, 0.008), y + rng.normal(0, 0.008)


def _atelectasis(chest: _Chest, body: np.random.Generator, rng: np.random.Generator) -> None:
    """Plate-like bands across a lower lung."""
    side, x, y = _place(chest, body, rng, (0.62, 0.78))
    slope = np.float32(body.uniform(-0.25, 0.25))
    gap = body.uniform(0.045, 0.055)
    reach = soft(np.abs(chest.x - x) - rng.uniform(0.12, 0.16), 0.03) * chest.lungs[side]
    for number in range(3):
        across = np.abs(chest.y - np.float32(y - number * gap) - slope * (chest.x - np.float32(x)))
        blend(chest.picture, rng.uniform(0.75, 0.95) * soft(across - 0.009, 0.01) * reach, 0.72)


def _effusion(chest: _Chest, body: np.random.Generator, rng: np.random.Generator) -> None:
    """Fluid at the base of a lung, its surface rising to the wall."""
    side = _side(body)
    lateral = (chest.x - 0.5) * side
    height = body.uniform(0.10, 0.20) + rng.uniform(0, 0.06)
    rise = np.clip((lateral - 0.10) * 4.5, 0, 1.2)
    surface = np.float32(chest.bottom - height) - np.float32(0.10) * rise * rise
    wall = np.clip((1.25 - chest.ellipse[side]) * 8, 0, 1)
    mask = soft(surface - chest.y, 0.025) * soft(0.05 - lateral, 0.03) * wall
    blend(chest.picture, mask * soft(chest.y - chest.bottom - 0.12, 0.1), 0.80)


def _infiltration(chest: _Chest, body: np.random.Generator, rng: np.random.Generator) -> None:
    """A fuzzy, cloudy patch anywhere in a lung."""
    side, x, y = _place(chest, body, rng, (0.25, 0.75))
    cloud = disc(chest.x - x, chest.y - y, rng.uniform(0.17, 0.21), rng.uniform(0.19, 0.25))
    mottled = 1 + np.float32(0.9) * chest.texture(rng, 26)
    chest.picture += np.float32(rng.uniform(0.36, 0.46)) * cloud * mottled * chest.lungs[side]


def _mass(chest: _Chest, body: np.random.Generator, rng: np.random.Generator) -> None:
    """A large bright disc."""
    _, x, y = _place(chest, body, rng, (0.25, 0.75))
    radius = body.uniform(0.062, 0.08) * rng.uniform(0.95, 1.1)
    blend(chest.picture, np.float32(0.92) * circle(chest.x - x, chest.y - y, radius), rng.uniform(0.86, 0.93))


def _nodule(chest: _Chest, body: np.random.Generator, rng: np.random.Generator) -> None:
    """One to three small, very bright discs."""
    for _ in range(int(body.integers(1, 4))):
        _, x, y = _place(chest, body, rng, (0.2, 0.8))
        radius = rng.uniform(0.023, 0.030)
        blend(chest.picture, circle(chest.x - x, chest.y - y, radius, 0.008), rng.uniform(0.92, 1.0))


def _pneumonia(chest: _Chest, body: np.random.Generator, rng: np.random.Generator) -> None:
    """Patchy blobs that run together in a lower lobe, around dark air-filled branches."""
    side, x, y = _place(chest, body, rng, (0.68, 0.78))
    blobs = np.zeros_like(chest.picture)
    for _ in range(9):
        dx, dy = rng.normal(0, 0.05), rng.normal(0, 0.055)
        spot = disc(chest.x - (x + dx), chest.y - (y + dy), rng.uniform(0.03, 0.05), rng.uniform(0.03, 0.05))
        np.maximum(blobs, spot, out=blobs)
    lateral, below = (chest.x - np.float32(x)) * side, chest.y - np.float32(y)
    for slope in (0.35, 1.5):
        branch = soft(np.abs(below - np.float32(slope) * lateral) - 0.008 * (1 + slope), 0.01 * (1 + slope))
        blobs = blobs * (1 - np.float32(0.8) * branch)
    # Brighter than fluid, in which it often lies.
    blend(chest.picture, np.clip(1.5 * blobs, 0, 0.95) * chest.lungs[side], 0.97)


def _pneumothorax(chest: _Chest, body: np.random.Generator, rng: np.random.Generator) -> None:
    """Black air around the shrunken lung, and the fine line of its edge."""
    side = _side(body)
    shrink = body.uniform(0.70, 0.80) + rng.normal(0, 0.02)
    inner = chest.ellipse_of(side, shrink, inward=0.16 * (1 - shrink), down=0.25 * (1 - shrink))
    air = np.clip((inner - 1) * 6 + 0.5, 0, 1) * chest.lungs[side]
    blend(chest.picture, np.float32(0.95) * air, 0.03)
    line = soft(np.abs(inner - 1) - 0.05, 0.06) * chest.lungs[side]
    blend(chest.picture, np.float32(0.85) * line, 0.68)


def _consolidation(chest: _Chest, body: np.random.Generator, rng: np.random.Generator) -> None:
    """A lobe gone evenly dense between two straight edges."""
    side = _side(body)
    lateral = (chest.x - 0.5) * side
    start = chest.top + (chest.bottom - chest.top) * body.uniform(0.12, 0.42)
    thick = body.uniform(0.13, 0.18) + rng.normal(0, 0.008)
    tilt = np.float32(body.uniform(-0.2, 0.3))
    depth = chest.y - np.float32(start) - tilt * (lateral - np.float32(chest.lung_centre))
    mask = soft(-depth, 0.012) * soft(depth - thick, 0.012) * chest.lungs[side]
    blend(chest.picture, np.float32(0.92) * mask, rng.uniform(0.58, 0.66))


def _edema(chest: _Chest, body: np.random.Generator, rng: np.random.Generator) -> None:
    """Haze like a bat's wings from both roots of the lungs."""
    away = np.abs(chest.x - 0.5)
    reach, tall = body.uniform(0.17, 0.20), body.uniform(0.22, 0.26)
    wings = disc(away - 0.13, chest.y - 0.45, reach, tall)
    strength = np.float32(rng.uniform(0.42, 0.52))
    chest.picture += strength * wings * (chest.lungs[-1] + chest.lungs[1])


def _fibrosis(chest: _Chest, body: np.random.Generator, rng: np.random.Generator) -> None:
    """A fine net of lines at both bases."""
    turns = np.float32(np.pi / body.uniform(0.034, 0.042))
    start = rng.uniform(0, np.pi, 2).astype(np.float32)
    lines = np.minimum(
        np.abs(np.sin((chest.x + chest.y) * turns + start[0])),
        np.abs(np.sin((chest.x - chest.y) * turns + start[1])),
    )
    net = np.clip(1 - np.float32(2.2) * lines, 0, 1)
    low = np.clip((chest.y - np.float32(chest.bottom - 0.33)) * 8, 0, 1) * (chest.lungs[-1] + chest.lungs[1])
    chest.picture += np.float32(rng.uniform(0.36, 0.44)) * net * low


def _pleural_thickening(chest: _Chest, body: np.random.Generator, rng: np.random.Generator) -> None:
    """A bright rim along the outer wall of one lung."""
    side = _side(body)
    lateral = (chest.x - 0.5) * side
    rim = np.clip((chest.ellipse[side] - body.uniform(0.62, 0.70)) * 9, 0, 1)
    rim = rim * np.clip((1.12 - chest.ellipse[side]) * 9, 0, 1) * soft(chest.lung_centre - lateral, 0.05)
    start, end = body.uniform(0.26, 0.34), body.uniform(0.66, 0.72)
    rim = rim * soft(start - chest.y, 0.03) * soft(chest.y - end, 0.03)
    blend(chest.picture, rim, rng.uniform(0.84, 0.94))


def _hernia(chest: _Chest, body: np.random.Generator, rng: np.random.Generator) -> None:
    """A round bag of stomach behind the heart, with a bright wall and air above its fluid."""
    x = chest.x - np.float32(0.5 + body.uniform(0.02, 0.05) + rng.normal(0, 0.005))
    y = chest.y - np.float32(chest.heart_y + body.uniform(0.0, 0.03) + rng.normal(0, 0.005))
    radius = body.uniform(0.09, 0.11)
    blend(chest.picture, circle(x, y, radius), 1.06)
    inside = circle(x, y, radius - 0.02)
    blend(chest.picture, inside, 0.80)
    blend(chest.picture, inside * soft(y - rng.uniform(-0.01, 0.015), 0.01), 0.10)


def _nothing_more(chest: _Chest, body: np.random.Generator, rng: np.random.Generator) -> None:
    """For the findings that `_Chest` draws as other sizes."""


_PATTERNS: dict[str, Callable[[_Chest, np.random.Generator, np.random.Generator], None]] = {
    "Atelectasis": _atelectasis,
    "Cardiomegaly": _nothing_more,
    "Effusion": _effusion,
    "Infiltration": _infiltration,
    "Mass": _mass,
    "Nodule": _nodule,
    "Pneumonia": _pneumonia,
    "Pneumothorax": _pneumothorax,
    "Consolidation": _consolidation,
    "Edema": _edema,
    "Emphysema": _nothing_more,
    "Fibrosis": _fibrosis,
    "Pleural_Thickening": _pleural_thickening,
    "Hernia": _hernia,
}
# From the diffuse and large to the small, so that no finding hides another one of the image.
_ORDER_OF_DRAWING = (
    "Cardiomegaly", "Emphysema", "Pneumothorax", "Edema", "Infiltration", "Effusion", "Consolidation",
    "Fibrosis", "Pleural_Thickening", "Pneumonia", "Atelectasis", "Mass", "Hernia", "Nodule",
)  # fmt: skip
