"""Which image trains, which validates, which tests. No patient is ever in two splits.

Splits are computed on the whole table, never on the images at hand: a build of a hundred images puts each
where the build of all of them does.
"""

import csv
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import TYPE_CHECKING

import numpy as np

from cxr_records.errors import CxrError, UsageError
from cxr_records.findings import FINDINGS
from cxr_records.names import IMAGE_ENDINGS, ImageNames, base_name, has_image_ending, patient_in_name, stem
from cxr_records.seeding import keyed_hash
from cxr_records.tablefiles import as_text, read_content

if TYPE_CHECKING:  # pandas stays out of the import
    from cxr_records.metadata import Metadata

TRAIN = "train"
VALIDATION = "validation"
TEST = "test"
SPLITS = (TRAIN, VALIDATION, TEST)

# `list_digest` of NIH's train_val_list.txt (86,524 names) and test_list.txt (25,596 names), Wang et al. 2017:
# the same as `sort FILE | head -c -1 | sha256sum` in the C locale.
OFFICIAL_TRAIN_VAL = "61fbe896321c1c1c8b75f3e4f3a08e4fef6486d95ef8a667c31d4d60dca6cb81"
OFFICIAL_TEST = "38ca5ef7f756092946f57c1a59faca882ed589a1ab1f72590b45dc06c6d5e1cc"

UNLISTED_ALLOWED = 0.01  # share of a list's names that may be in no row of the table without a word
# What the first line of a list may call the names in it, as `_plain` writes it.
_HEADERS = {
    "imageindex",
    "imageid",
    "imagename",
    "imagefile",
    "imagepath",
    "image",
    "filename",
    "file",
    "path",
}
_ENDINGS = "|".join(re.escape(ending) for ending in IMAGE_ENDINGS)
# A name may hold spaces and commas where an image's ending says how far it goes.
_NAME = re.compile(
    rf"""(?P<quote>["'])(?P<quoted>.*?)(?P=quote)|.*?(?:{_ENDINGS})(?=[\s,;]|$)|[^\s,;]+""", re.I
)
_BETWEEN = re.compile(r"[\s,;]+")

_IMAGES = len(FINDINGS)  # the column after the findings: images of any kind


@dataclass(frozen=True)
class SplitOptions:
    """How the images are to be split.

    Attributes:
        train_val_list: path or fsspec URL of the list of images to train and validate on, or None.
        test_list: the same for the test images. Both lists or neither.
        validation_list: the images of train_val to validate on, or None to cut them by patient.
        validation_fraction: share of the images of train_val to cut, in [0, 1); 0 makes no validation split.
            Without effect when there is a validation list.
        test_fraction: share of all images to test on when there are no lists, in [0, 1).
        seed: decides between patients who are alike; another seed is another cut of the same quality.
        allow_missing: whether more than UNLISTED_ALLOWED of a list's names may be in no row of the table.
            NIH's own lists may go with any part of its table.

    Raises:
        UsageError: one of the two lists without the other, a validation list without them, or a fraction
            that is none.
    """

    train_val_list: str | None = None
    test_list: str | None = None
    validation_list: str | None = None
    validation_fraction: float = 0.125
    test_fraction: float = 0.2
    seed: int = 0
    allow_missing: bool = False

    def __post_init__(self) -> None:
        if (self.train_val_list is None) != (self.test_list is None):
            given, other = "train_val_list", "test_list"
            if self.train_val_list is None:
                given, other = other, given
            raise UsageError(
                f"found `{given}` without `{other}`; give both, or neither for an unofficial split"
            )
        if self.validation_list is not None and self.train_val_list is None:
            raise UsageError(
                "found `validation_list` without `train_val_list` and `test_list`; give all three, or use "
                "`validation_fraction`"
            )
        for name in ("validation_fraction", "test_fraction"):
            fraction = getattr(self, name)
            if not 0 <= fraction < 1:  # refuses nan too
                raise UsageError(f"found `{name}={fraction}`; expected a share of at least 0 and below 1")


@dataclass(frozen=True, eq=False)
class Splits:
    """The split of every image of a table.

    Attributes:
        of_image: object [num_images] of "train", "validation", "test", or "" for an image in no list;
            aligned with the table.
        origin: where the splits come from, one line in plain words.
        official: whether train_val and test are NIH's own lists, so that results can be compared.
        list_digests: `list_digest` of each list given, under "train_val", "test" and "validation".
        in_no_list: images of the table that no list names.
        not_in_table: names in train_val and test that the table does not have.
        warnings: what of the lists was left out.
    """

    of_image: np.ndarray
    origin: str
    official: bool
    list_digests: dict[str, str]
    in_no_list: int
    not_in_table: int
    warnings: tuple[str, ...] = ()


def make_splits(metadata: "Metadata", options: SplitOptions) -> Splits:
    """Splits a table by the lists given, or by patient where there are none.

    Validation, when not given as a list, and test, when there are no lists, are cut so that each finding is
    as frequent in the cut as in the rest (see `cut_by_patient`).

    Raises:
        UsageError: a list does not exist.
        CxrError: a list is unreadable, has nothing to do with the table, or contradicts another one; or a
            patient is in two splits.
    """
    if options.train_val_list is None:
        return _split_without_lists(metadata, options)
    image_ids = metadata.table["image_id"].tolist()
    lists = _read_lists(options)
    digests = {name: list_digest(names) for name, names in lists.items()}
    if (digests["train_val"], digests["test"]) == (OFFICIAL_TEST, OFFICIAL_TRAIN_VAL):
        raise UsageError(
            "found NIH's test list under `train_val_list` and its train_val list under `test_list`; swap them"
        )
    official = digests["train_val"] == OFFICIAL_TRAIN_VAL and digests["test"] == OFFICIAL_TEST
    found = {name: _in_table(names, image_ids) for name, names in lists.items()}
    _check_lists(lists, found, options, image_ids, official)
    warnings = _unlisted(lists, found, options, image_ids, official)

    split_of_image = {}
    for name, split in (("train_val", TRAIN), ("test", TEST), ("validation", VALIDATION)):
        split_of_image.update(dict.fromkeys(found.get(name, {}).values(), split))
    of_image = np.array([split_of_image.get(image_id, "") for image_id in image_ids], dtype=object)
    origin = "official NIH lists" if official else "lists given (not the official NIH lists)"
    if options.validation_list is not None:
        origin += "; validation from a list given"
    elif options.validation_fraction > 0:
        train_val = np.flatnonzero(of_image == TRAIN)
        of_image[train_val[_cut(metadata, train_val, options.validation_fraction, options.seed)]] = VALIDATION
        origin += f"; validation cut from train_val by patient with seed {options.seed}"
    _check_patients(metadata, of_image)
    in_no_list = int((of_image == "").sum())
    not_in_table = sum(len(lists[name]) - len(found[name]) for name in ("train_val", "test"))
    return Splits(of_image, origin, official, digests, in_no_list, not_in_table, tuple(warnings))


def read_list(path: str, argument: str) -> list[str]:
    """Reads the image names of a list, one on each line: text, plain, gzip or zip, local or fsspec URL.

    Blank lines are passed over, and so is what follows the name (published lists carry labels there). Where
    the first line is a header that says which column holds the names, they are taken from there. Folders are
    taken off. A name that stands twice counts once: a list is a set of images.

    Raises:
        UsageError: there is no such file. The message names the argument.
        CxrError: it cannot be read, is no text, holds no names, or several on a line.
    """
    lines = as_text(path, read_content(path, argument)).splitlines()
    read = _column_of_names(path, lines)
    if read is None:
        read = [_name_in(path, number, line) for number, line in enumerate(lines, start=1) if line.strip()]
    names = list(dict.fromkeys(filter(None, map(base_name, read))))
    if not names:
        raise CxrError(f"{path}: found no names; `{argument}` must hold one 'Image Index' per line")
    return names


def _column_of_names(path: str, lines: Sequence[str]) -> list[str] | None:
    """The names of a list that is a table; None where its first line is no header."""
    header = next((line for line in lines if line.strip()), "")
    for separator in ",;\t":
        cells = [re.sub(r"[\W_]", "", cell).lower() for cell in header.split(separator)]
        place = next((place for place, cell in enumerate(cells) if cell in _HEADERS), None)
        if place is None:
            continue
        reader = csv.reader(lines, delimiter=separator, strict=True)
        try:
            rows = [row for row in reader if any(row)][1:]
        except csv.Error as error:
            raise CxrError(
                f"{path}, line {reader.line_num:,}: found what is no CSV ({error}), below a header; correct "
                "the line, or give one name on each line"
            ) from error
        names = [row[place].strip() if place < len(row) else "" for row in rows]
        if "" in names:
            raise CxrError(
                f"{path}: found no name in row {names.index('') + 1:,} below the header; complete the row, "
                "or remove it"
            )
        return names
    return None


def _name_in(path: str, number: int, line: str) -> str:
    """The name at the start of a line that is not blank; refuses a line that holds several."""
    line = line.strip()
    match = _NAME.match(line)
    if match is None:  # it begins with a comma
        return line
    name = match["quoted"] if match["quote"] else match[0]
    rest = line[match.end() :]
    if "." in rest or "_" in rest:
        for word in _BETWEEN.split(rest):
            other = word.strip("\"'")
            if (has_image_ending(other) or patient_in_name(other) is not None) and stem(other) != stem(name):
                raise CxrError(
                    f"{path}, line {number:,}: found {_words(name)} and {_words(other)} on one line; a list "
                    "must hold one name on each line"
                )
    return name.strip()


def _in_table(names: Sequence[str], image_ids: Sequence[str]) -> dict[str, str]:
    """{name of a list: the image that it stands for}, without the names that the table does not have."""
    if set(image_ids).issuperset(names):
        return dict(zip(names, names, strict=True))
    known = ImageNames(image_ids)
    return {name: image_id for name in names if (image_id := known.find(name)) is not None}


def _unlisted(
    lists: Mapping[str, Sequence[str]],
    found: Mapping[str, Mapping[str, str]],
    options: SplitOptions,
    image_ids: Sequence[str],
    official: bool,
) -> list[str]:
    """What to say of names that are in no row of the table; refuses too many of them."""
    warnings = []
    for name in ("train_val", "test"):
        strange = [listed for listed in lists[name] if listed not in found[name]]
        if not strange:
            continue
        told = (
            f"{getattr(options, f'{name}_list')}: {len(strange):,} of its {len(lists[name]):,} names (the "
            f"first is {_words(strange[0])}) are in no row of the table (whose first is {image_ids[0]})"
        )
        too_many = len(strange) > UNLISTED_ALLOWED * len(lists[name])
        if too_many and not official and not options.allow_missing:
            raise CxrError(
                f"{told}; give the list of this table, or go on without them with `allow_missing=True`"
            )
        warnings.append(f"{told}: left out")
    return warnings


def list_digest(names: list[str]) -> str:
    """Returns the sha256 (hex) of the sorted names, joined by newlines: one value per set of images."""
    return sha256("\n".join(sorted(names)).encode()).hexdigest()


def cut_by_patient(patient_ids: np.ndarray, findings: np.ndarray, fraction: float, seed: int) -> np.ndarray:
    """Chooses a share of the images so that whole patients and the same share of every finding are in it.

    Greedy iterative stratification (Sechidis, Tsoumakas, Vlahavas 2011), with patients in the place of
    images: the finding with the fewest images left goes first, and the patients with most images of it. Each
    patient goes where the finding's images dealt so far come nearest to the share; in the paper, where most
    images are still lacking, which would leave the cut the small patients only. Patients without findings
    come last and even out the number of images. A cut by chance would leave a rare finding at a third of
    its share.

    Args:
        patient_ids: int64 [n]. The order of the rows makes no difference.
        findings: uint8 [n, 14].
        fraction: the share to cut, in [0, 1).
        seed: decides between patients with equally many images of a finding.

    Returns:
        bool [n], True for the images cut. The first patient of a finding is never cut, so a few patients may
        leave the cut without a finding, or empty.
    """
    patients, of_row = np.unique(patient_ids, return_inverse=True)
    cut = np.zeros(len(patients), bool)
    counts = np.empty((len(patients), len(FINDINGS) + 1), np.int64)  # images per patient and finding, and all
    for place, column in enumerate(findings.T):
        counts[:, place] = np.bincount(of_row[column > 0], minlength=len(patients))
    counts[:, _IMAGES] = np.bincount(of_row)
    ties = np.array([keyed_hash(seed, "split", int(patient)) for patient in patients], np.uint64)

    in_cut, in_rest = np.zeros((2, counts.shape[1]), np.int64)
    waiting = np.ones(len(patients), bool)
    while waiting.any():
        column = _rarest(counts[waiting])
        candidates = np.flatnonzero(waiting & (counts[:, column] > 0))
        for patient in candidates[np.lexsort((ties[candidates], -counts[candidates, column]))]:
            images = counts[patient, column]
            share = fraction * (in_cut[column] + in_rest[column] + images)
            if in_rest[column] and in_cut[column] + images / 2 < share:
                cut[patient] = True
                in_cut += counts[patient]
            else:
                in_rest += counts[patient]
        waiting[candidates] = False
    return cut[of_row]


def _rarest(counts: np.ndarray) -> int:
    """Returns the finding with the fewest images, of those that have any; else the column of all images."""
    images = counts.sum(axis=0)[:_IMAGES]
    return int(np.where(images > 0, images, images.max() + 1).argmin()) if images.any() else _IMAGES


def _cut(metadata: "Metadata", rows: np.ndarray, fraction: float, seed: int) -> np.ndarray:
    return cut_by_patient(
        metadata.table["patient_id"].to_numpy()[rows], metadata.findings[rows], fraction, seed
    )


def _split_without_lists(metadata: "Metadata", options: SplitOptions) -> Splits:
    """Cuts test from all images, then validation from the rest, so that test does not hang on validation."""
    of_image = np.full(len(metadata), TRAIN, dtype=object)
    for split, fraction in ((TEST, options.test_fraction), (VALIDATION, options.validation_fraction)):
        rows = np.flatnonzero(of_image == TRAIN)
        of_image[rows[_cut(metadata, rows, fraction, options.seed)]] = split
    _check_patients(metadata, of_image)
    return Splits(of_image, f"unofficial: cut by patient with seed {options.seed}", False, {}, 0, 0)


def _read_lists(options: SplitOptions) -> dict[str, list[str]]:
    paths = {
        "train_val": options.train_val_list,
        "test": options.test_list,
        "validation": options.validation_list,
    }
    return {name: read_list(path, f"{name}_list") for name, path in paths.items() if path is not None}


def _check_lists(
    lists: Mapping[str, Sequence[str]],
    found: Mapping[str, Mapping[str, str]],
    options: SplitOptions,
    image_ids: Sequence[str],
    official: bool,
) -> None:
    """Refuses lists that contradict each other, and lists that belong to other images than the table's.

    Args:
        lists: {"train_val", "test", maybe "validation": names}.
        found: the images of the table that these stand for.
        options: with the lists' paths, for the errors.
        image_ids: of the table.
        official: whether train_val and test are NIH's own.
    """

    def images(name: str) -> dict[str, str]:  # an image may have another ending in another list
        return {found[name].get(listed) or stem(listed): listed for listed in lists.get(name, ())}

    train_val, test = images("train_val"), images("test")
    both = [test[image] for image in train_val.keys() & test.keys()]
    if both:
        more = f" and {len(both) - 1:,} more" if len(both) > 1 else ""
        raise CxrError(
            f"{options.test_list}: found {min(both)}{more} in `train_val_list` too; an image must be in one "
            "list only, so remove it from one of the two"
        )
    validation = images("validation")
    outside = [validation[image] for image in validation.keys() - train_val.keys()]
    if outside:
        raise CxrError(
            f"{options.validation_list}: found {_words(min(outside))}, which is not in `train_val_list`; "
            "validation images must come from there"
        )
    strange = [name for name in ("train_val", "test") if not found[name]]
    # A part of NIH's table may well hold no image of one of NIH's lists.
    if strange and not (official and len(strange) == 1):
        name = strange[0]
        raise CxrError(
            f"{getattr(options, f'{name}_list')}: none of its {len(lists[name]):,} names (the first is "
            f"{_words(lists[name][0])}) is in the table (whose first is {image_ids[0]}); "
            f"`{name}_list` must hold one 'Image Index' per line"
        )


def _check_patients(metadata: "Metadata", of_image: np.ndarray) -> None:
    """Refuses a patient whose images are in two splits: the model would be tested on whom it has seen."""
    rows = np.flatnonzero(of_image != "")
    codes = np.array([SPLITS.index(split) for split in of_image[rows]], dtype=np.int64)
    patients, of_row = np.unique(metadata.table["patient_id"].to_numpy()[rows], return_inverse=True)
    in_split = np.zeros((len(patients), len(SPLITS)), bool)
    in_split[of_row, codes] = True
    torn = np.flatnonzero(in_split.sum(axis=1) > 1)
    if torn.size:
        image_ids = metadata.table["image_id"].to_numpy()[rows]
        sides = [
            f"{image_ids[(of_row == torn[0]) & (codes == code)][0]} in {SPLITS[code]}"
            for code in np.flatnonzero(in_split[torn[0]])
        ]
        more = f" (such patients in all: {torn.size:,})" if torn.size > 1 else ""
        raise CxrError(
            f"found patient {patients[torn[0]]} in two splits: {', '.join(sides)}{more}; a patient must be "
            "in one split only, so correct the lists"
        )


def _words(name: str, limit: int = 80) -> str:
    return repr(name if len(name) <= limit else f"{name[:limit]}…")
