"""Names of images: one rule for tables, lists, sources and scores.

An image is named in the table by its file name. Elsewhere folders may stand before the name, and its ending
may be another one of an image file (a DICOM of the same image), of another case, or none.
"""

import re
from collections.abc import Iterable, Sequence

from cxr_records.urls import name_of

IMAGE_ENDINGS = (".png", ".jpg", ".jpeg", ".dcm", ".dicom")

# What macOS, Windows, Linux and file servers leave lying about in folders and archives, beside hidden files.
_LITTER = {
    "__macosx",
    "@eadir",
    "#recycle",
    "@recycle",
    "lost+found",
    "$recycle.bin",
    "system volume information",
    "recycler",
    "thumbs.db",
    "ehthumbs.db",
    "desktop.ini",
    "icon\r",
}

# What such a name begins with, whatever people append (_resized, -0). NIH's patients go up to 30,805: eight
# digits that do not begin with 000 are another hospital's, such as a date.
_NIH_NAME = re.compile(r"(000[0-9]{5})_([0-9]{3})(?![0-9])")


def base_name(path: str) -> str:
    """Returns the last part of a path; some are written with backslashes.

    Of a web address too: what signs it is no part of the name, and must not pass for one.
    """
    if "://" in path:
        path = name_of(path)
    return path.replace("\\", "/").rsplit("/", 1)[-1]


def is_litter(path: str) -> bool:
    """Tells whether a file is hidden or left lying about by a system, or is in such a folder.

    Args:
        path: below a folder or archive that the user named; the user's own part of a path may be hidden.
    """
    parts = [part for part in path.replace("\\", "/").split("/") if part not in ("", ".", "..")]
    return any(part.startswith(".") or part.casefold() in _LITTER for part in parts)


def has_image_ending(path: str) -> bool:
    """Tells whether a name ends as an image file does."""
    return path.lower().endswith(IMAGE_ENDINGS)


def stem(path: str) -> str:
    """Returns a name without folders and without the ending of an image file.

    Other endings are part of the name: DICOM's identifiers are numbers with dots between them.
    """
    name = base_name(path)
    ending = next((end for end in IMAGE_ENDINGS if name.lower().endswith(end)), "")
    return name[: len(name) - len(ending)]


def patient_in_name(path: str) -> int | None:
    """Returns the patient whom a name of NIH's form tells, 13 for 00000013_005.png; None for other names."""
    match = _NIH_NAME.match(base_name(path))
    return int(match[1]) if match else None


def follow_up_in_name(path: str) -> int | None:
    """Returns the number of the follow-up that a name of NIH's form tells, 5 for 00000013_005.png.

    It is that of the table of 2017; the table of 2020 numbers 24,106 images otherwise.
    """
    match = _NIH_NAME.match(base_name(path))
    return int(match[2]) if match else None


def patients_told(image_ids: Sequence[str], patient_ids: Sequence[int]) -> dict[int, int]:
    """Returns {place: patient whom the name tells} of those images whose patient is another one."""
    digits = {patient: f"{patient:08}" for patient in set(patient_ids)}
    # Nearly every table agrees throughout, and reading each name would take ten times as long.
    if all(map(str.startswith, image_ids, map(digits.__getitem__, patient_ids))):
        return {}
    return {
        place: patient
        for place, name in enumerate(image_ids)
        if (patient := patient_in_name(name)) is not None and patient != patient_ids[place]
    }


class ImageNames:
    """The images of a table, found by whatever name they have elsewhere.

    A name that is in the table, folders aside, is that image. Otherwise it is the one image that differs from
    it in its ending alone; where several do (a.png and a.jpg for "a"), it is none of them.
    """

    def __init__(self, image_ids: Iterable[str]):
        self._ids = frozenset(image_ids)
        self._by_stem: dict[str, str | None] = {}
        for image_id in self._ids:
            key = stem(image_id)
            self._by_stem[key] = None if key in self._by_stem else image_id

    def find(self, name: str) -> str | None:
        """Returns the image_id that a name stands for, None where it is no image of the table."""
        base = base_name(name.strip())
        return base if base in self._ids else self._by_stem.get(stem(base))
