"""Who is in a look-alike set and with what: patients, their images, findings, views and ages.

Shares, co-occurrence and images per patient were measured on the real NIH ChestX-ray14.
"""

from dataclasses import dataclass

import numpy as np

from cxr_records.findings import FINDINGS
from cxr_records.seeding import generator

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
    start, left = rng.random(), total
    sizes: list[int] = []
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
