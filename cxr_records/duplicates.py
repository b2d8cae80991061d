"""The same picture in two splits, or of two patients: what a model has seen in training is no test of it."""

import collections
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from cxr_records.manifest import DuplicateImages
from cxr_records.splits import TEST


class Picture(NamedTuple):
    """An original image in a dataset.

    Attributes:
        image: its image_id.
        split: its split.
        patient: its patient_id.
        source: digest of its file; "" where it is not known.
        pixels: digest of the pixels that are stored of it.
    """

    image: str
    split: str
    patient: int
    source: str
    pixels: str


def find_duplicates(pictures: Iterable[Picture]) -> tuple[DuplicateImages, ...]:
    """Returns the images that show one picture and are in several splits, or of several patients.

    Copies of an image within one patient and split, as a scanner may send them twice, are none.
    """
    by_pixels = collections.defaultdict(list)
    pixels_of: dict[str, str] = {}
    for picture in sorted(pictures):
        # The same bytes, decoded at another time by another version, may be other pixels.
        pixels = pixels_of.setdefault(picture.source or picture.image, picture.pixels)
        by_pixels[pixels].append(picture)
    groups = []
    for group in by_pixels.values():
        if len({(picture.split, picture.patient) for picture in group}) > 1:
            images, splits, patients, sources, _ = zip(*group, strict=True)
            same = "source" if len(set(sources)) == 1 and sources[0] else "pixels"
            groups.append(DuplicateImages(images, splits, patients, same))
    return tuple(sorted(groups, key=lambda group: group.images))


def touches_test(group: DuplicateImages) -> bool:
    """Tells whether a picture is in the test split and in another."""
    return TEST in group.splits and len(set(group.splits)) > 1


def duplicates_warnings(groups: Sequence[DuplicateImages]) -> list[str]:
    """Says how many there are, if any; shows the first: one that touches the test split, where any does."""
    if not groups:
        return []
    group = next(filter(touches_test, groups), groups[0])
    told = list(zip(group.images, group.splits, group.patients, strict=True))
    other = next((one for one in told if one[1] != told[0][1]), None) or next(
        one for one in told if one[2] != told[0][2]
    )
    first = ", and ".join(
        f"{image} of {split}, patient {patient}" for image, split, patient in (told[0], other)
    )
    many = "pictures are" if len(groups) > 1 else "picture is"
    same = "the same bytes" if group.same == "source" else "the same pixels"
    return [
        f"{len(groups):,} {many} in two splits or of two patients (the first: {first}; {same}); the manifest "
        "lists all"
    ]
