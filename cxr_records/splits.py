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

from cxr_records.columns import array_of
from cxr_records.errors import CxrError, UsageError
from cxr_records.findings import FINDINGS
from cxr_records.names import IMAGE_ENDINGS, ImageNames, base_name, has_image_ending, patient_in_name, stem
from cxr_records.seeding import keyed_hashes
from cxr_records.tablefiles import IMAGE_COLUMNS, as_text, plain, read_content

if TYPE_CHECKING:  # pandas stays out of the import
    import pandas as pd

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
_ENDINGS = "|".join(re.escape(ending) for ending in IMAGE_ENDINGS)
# A name may hold spaces and commas where an image's ending says how far it goes.
_NAME = re.compile(
    rf"""(?P<quote>["'])(?P<quoted>.*?)(?P=quote)|.*?(?:{_ENDINGS})(?=[\s,;]|$)|[^\s,;]+""", re.I
)
_MORE_THAN_NAMES = re.compile(r"[^\S\r\n]|[,;\"']")  # white space other than line ends, and such
_BETWEEN = re.compile(r"[\s,;]+")
# Patients of few images hold at least this share of all images, so that they can even out the rest.
FEW_HOLD = 0.25

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
        seed: of the cuts; another seed is another cut of the same quality.
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
        of_image: categories [num_images], "train", "validation", "test", or "" for an image in no list;
            aligned with the table. Given as an array of text, it is made one of categories.
        origin: where the splits come from, one line in plain words.
        official: whether train_val and test are NIH's own lists, so that results can be compared.
        list_digests: `list_digest` of each list given, under "train_val", "test" and "validation"; of another
            dataset's lists under "train", "validation" and "test".
        in_no_list: images of the table that no list names.
        not_in_table: names in the lists that the table does not have.
        warnings: what is to be said of the splits, or was left out of the lists.
    """

    of_image: "pd.Categorical"
    origin: str
    official: bool
    list_digests: dict[str, str]
    in_no_list: int
    not_in_table: int
    warnings: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if isinstance(self.of_image, np.ndarray):
            object.__setattr__(self, "of_image", _categories(self.of_image))

    @property
    def codes(self) -> np.ndarray:
        """The places in `SPLITS` of the images' splits: int8 [num_images]; -1 for an image in no list."""
        codes: np.ndarray = self.of_image.codes - 1
        return codes


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
    known = frozenset(image_ids)
    found = {name: _in_table(names, known) for name, names in lists.items()}
    _check_lists(lists, found, options, image_ids, official)
    warnings = [*_without_effect(options), *_unlisted(lists, found, options, image_ids, official)]

    split_of_image = {}
    for name, split in (("train_val", TRAIN), ("test", TEST), ("validation", VALIDATION)):
        split_of_image.update(dict.fromkeys(found.get(name, {}).values(), split))
    of_image = _categories(np.array([split_of_image.get(image_id, "") for image_id in image_ids], object))
    origin = "official NIH lists" if official else "lists given (not the official NIH lists)"
    if options.validation_list is not None:
        origin += "; validation from a list given"
    elif options.validation_fraction > 0:
        train_val = np.flatnonzero(of_image == TRAIN)
        cut = _cut(metadata, train_val, options.validation_fraction, options.seed, VALIDATION)
        of_image[train_val[cut]] = VALIDATION
        origin += f"; validation cut from train_val by patient with seed {options.seed}"
    _check_patients(metadata, of_image)
    in_no_list = int((of_image == "").sum())
    not_in_table = sum(len(lists[name]) - len(found[name]) for name in ("train_val", "test"))
    return Splits(of_image, origin, official, digests, in_no_list, not_in_table, tuple(warnings))


def take_splits(
    metadata: "Metadata",
    lists: Mapping[str, Sequence[str]],
    *,
    dataset: str,
    dataset_id: str,
    origin: str,
    official: bool,
) -> Splits:
    """Splits a table as another dataset is split.

    An image that the other dataset does not name goes where its patient's other images are, and is counted in
    a warning; where it names none of the patient, the image is in no list.

    Args:
        metadata: the table.
        lists: {split: names of images} of the other dataset.
        dataset: its path, for messages.
        dataset_id: its id.
        origin: where its own splits come from.
        official: whether they are NIH's own.

    Raises:
        CxrError: the lists name no image of the table, or have a patient of the table in two splits.
    """
    image_ids = metadata.table["image_id"].tolist()
    split_of_name = {name: split for split, names in lists.items() for name in names}
    found = _in_table(list(split_of_name), frozenset(image_ids))
    not_in_table = len(split_of_name) - len(found)
    split_of_image = {image_id: split_of_name[name] for name, image_id in found.items()}
    # An image of the very name goes before one of another ending.
    split_of_image |= {name: split for name, split in split_of_name.items() if name in split_of_image}
    if not split_of_image:
        raise CxrError(
            f"{dataset}: none of the {not_in_table:,} images in its lists is in the table (whose first is "
            f"{image_ids[0]}); `splits_of` must name a dataset of the same images"
        )
    of_image = _categories(np.array([split_of_image.get(image_id, "") for image_id in image_ids], object))
    _check_patients(metadata, of_image, f"{dataset} has other patients than the table: name another dataset")
    patients = metadata.table["patient_id"].to_numpy()
    split_of_patient = dict(zip(patients[of_image != ""], of_image[of_image != ""], strict=True))
    unnamed = np.flatnonzero(of_image == "")
    of_image[unnamed] = [split_of_patient.get(patient, "") for patient in patients[unnamed]]
    added = unnamed[of_image[unnamed] != ""]
    warnings = []
    if len(added):
        warnings.append(
            f"{dataset} does not name {len(added):,} image{'s' * (len(added) > 1)} of its patients (the "
            f"first is {image_ids[added[0]]}): each is in the split of its patient"
        )
    if not_in_table:
        strange = next(name for name in split_of_name if name not in found)
        warnings.append(
            f"{dataset}: {not_in_table:,} of its {len(split_of_name):,} images (the first is "
            f"{_words(strange)}) are in no row of the table (whose first is {image_ids[0]}): left out"
        )
    return Splits(
        of_image=of_image,
        origin=f"as in dataset {dataset_id} ({origin})",
        official=official and not len(added),
        list_digests={split: list_digest(list(names)) for split, names in lists.items()},
        in_no_list=int((of_image == "").sum()),
        not_in_table=not_in_table,
        warnings=tuple(warnings),
    )


def read_list(path: str, argument: str) -> list[str]:
    """Reads the image names of a list, one on each line: text, plain, gzip or zip, local or fsspec URL.

    Blank lines are passed over, and so is what follows the name (published lists carry labels there). Where
    the first line is a header that says which column holds the names, they are taken from there. Folders are
    taken off. A name that stands twice counts once: a list is a set of images.

    Raises:
        UsageError: there is no such file. The message names the argument.
        CxrError: it cannot be read, is no text, holds no names, or several on a line.
    """
    text = as_text(path, read_content(path, argument))
    lines = text.splitlines()
    names = _column_of_names(path, lines)
    if names is None and _MORE_THAN_NAMES.search(text):
        names = [_name_in(path, number, line) for number, line in enumerate(lines, start=1) if line.strip()]
    elif names is None:
        names = list(map(str.strip, lines))
    if "/" in text or "\\" in text:
        names = list(map(base_name, names))
    names = list(dict.fromkeys(filter(None, names)))
    if not names:
        raise CxrError(f"{path}: found no names; `{argument}` must hold one 'Image Index' per line")
    return names


def _column_of_names(path: str, lines: Sequence[str]) -> list[str] | None:
    """The names of a list that is a table; None where its first line is no header."""
    header = next((line for line in lines if line.strip()), "")
    for separator in ",;\t":
        cells = enumerate(header.split(separator))
        place = next((place for place, cell in cells if plain(cell) in IMAGE_COLUMNS), None)
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


def _in_table(names: Sequence[str], image_ids: frozenset[str]) -> dict[str, str]:
    """{name of a list: the image that it stands for}, without the names that the table does not have."""
    if image_ids.issuperset(names):
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
        if len(found[name]) == len(lists[name]):
            continue
        strange = [listed for listed in lists[name] if listed not in found[name]]
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


def _without_effect(options: SplitOptions) -> list[str]:
    """What to say of fractions that were asked for beside lists which decide instead."""
    decided = {"test_fraction": "the lists say which images test the model"}
    if options.validation_list is not None:
        decided["validation_fraction"] = "a list says which images validate it"
    return [
        f"{name} {getattr(options, name):g} has no effect: {why}"
        for name, why in decided.items()
        if getattr(options, name) != getattr(SplitOptions, name)
    ]


def list_digest(names: list[str]) -> str:
    """Returns the sha256 (hex) of the sorted names, joined by newlines: one value per set of images."""
    return sha256("\n".join(sorted(names)).encode()).hexdigest()


def cut_by_patient(
    patient_ids: np.ndarray, findings: np.ndarray, fraction: float, seed: int, cut_name: str = VALIDATION
) -> np.ndarray:
    """Chooses a share of the images so that whole patients and the same share of every finding are in it.

    Each patient draws a number once and for all (a hash), and low numbers are cut: permanent random numbers,
    which keep two samples of a changed population alike (Ohlsson 1995). So a corrected label moves only the
    patients that balance asks for, where a cut that hangs on the counts so far moves thousands.

    1. Patients of many images are cut by their draw alone, in classes of about as many images each, whatever
       their labels: each of them would move much. The largest go first.
    2. Those of few images make up for what these came to by chance: the rarest finding goes first, as in
       iterative stratification (Sechidis, Tsoumakas, Vlahavas 2011), and takes its patients by their draws
       until its share is full; patients without findings come last and even out the number of images.

    Nobody is cut who would bring a finding, or the number of images, beyond its share. A cut by chance would
    leave a rare finding at a third of its share.

    Args:
        patient_ids: int64 [n]. The order of the rows makes no difference.
        findings: uint8 [n, 14].
        fraction: the share to cut, in [0, 1).
        seed: another seed is another cut of the same quality.
        cut_name: of the split that is cut; what one split takes tells nothing of what another one does.

    Returns:
        bool [n], True for the images cut. The last patient of a finding is never cut, so a few patients may
        leave the cut without a finding, or empty.
    """
    patients, of_row = _numbered(patient_ids)
    cut = np.zeros(len(patients), bool)
    if not len(patients):
        return cut
    counts = np.empty((len(patients), len(FINDINGS) + 1), np.int32)  # images per patient and finding, and all
    for place, column in enumerate(findings.T):
        counts[:, place] = np.bincount(of_row[column > 0], minlength=len(patients))
    counts[:, _IMAGES] = np.bincount(of_row)
    draws = keyed_hashes(seed, cut_name, array_of(patients))
    totals = counts.sum(axis=0, dtype=np.int64)
    room = np.minimum(_share(fraction, totals), np.maximum(totals - 1, 0))  # images that may still be cut

    def deal(candidates: np.ndarray, column: int) -> None:
        """Cuts the patients who fit in, one after the other, until there is no room in the column."""
        for patient in candidates:
            if not room[column]:
                return
            if (counts[patient] <= room).all():
                cut[patient] = True
                room[:] -= counts[patient]

    few, low = _few_and_low(counts[:, _IMAGES], draws, fraction)
    largest_first = np.lexsort((draws, -counts[:, _IMAGES]))
    deal(largest_first[low[largest_first]], _IMAGES)
    waiting = ~cut
    few_first = np.lexsort((draws, ~few))
    for column in (*np.argsort(totals[:_IMAGES], kind="stable"), _IMAGES):
        concerned = waiting & (counts[:, column] > 0)
        deal(few_first[concerned[few_first]], column)
        waiting &= ~concerned
    of_image: np.ndarray = cut[of_row]
    return of_image


def _numbered(patient_ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the patients, sorted, and the place of each image's among them, int32.

    `np.unique` gives both, in five times the memory.
    """
    patients = np.unique(patient_ids)
    place: np.ndarray = np.searchsorted(patients, patient_ids).astype(np.int32)
    return patients, place


def _few_and_low(images: np.ndarray, draws: np.ndarray, fraction: float) -> tuple[np.ndarray, np.ndarray]:
    """Tells which patients have few images, and which of the others drew low.

    Classes are of 1, 2 to 3, 4 to 7, 8 to 15 images and so on; few have those of the first classes that hold
    FEW_HOLD of all images, enough to even out the rest. In each other class the lowest draws are its share,
    and what is lost in rounding the next smaller class makes up for.
    """
    classes = np.frexp(images)[1]
    held = np.bincount(classes, weights=images).cumsum()
    few = classes <= np.searchsorted(held, FEW_HOLD * held[-1])
    low = np.zeros(len(images), bool)
    larger = np.bincount(classes)[::-1].cumsum()[::-1]  # patients of this class and the larger ones
    lowest = -np.diff(_share(fraction, larger), append=0)
    for number in np.unique(classes[~few]):
        members = np.flatnonzero(classes == number)
        low[members[np.argsort(draws[members])[: lowest[number]]]] = True
    return few, low


def _share(fraction: float, count: np.ndarray) -> np.ndarray:
    """Returns the whole number nearest to a share, the smaller of two."""
    return np.ceil(fraction * count - 0.5).astype(np.int64)


def _cut(metadata: "Metadata", rows: np.ndarray, fraction: float, seed: int, cut_name: str) -> np.ndarray:
    patient_ids, findings = metadata.table["patient_id"].to_numpy(), metadata.findings
    if len(rows) < len(metadata):
        patient_ids, findings = patient_ids[rows], findings[rows]
    return cut_by_patient(patient_ids, findings, fraction, seed, cut_name)


def _split_without_lists(metadata: "Metadata", options: SplitOptions) -> Splits:
    """Cuts test from all images, then validation from the rest, so that test does not hang on validation."""
    of_image = _categories(np.broadcast_to(np.array(TRAIN, object), len(metadata)))
    for split, fraction in ((TEST, options.test_fraction), (VALIDATION, options.validation_fraction)):
        rows = np.flatnonzero(of_image == TRAIN)
        of_image[rows[_cut(metadata, rows, fraction, options.seed, split)]] = split
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
        of_table = found.get(name, {})
        images = {image: listed for listed, image in of_table.items()}
        if len(of_table) < len(lists.get(name, ())):
            images.update({stem(listed): listed for listed in lists[name] if listed not in of_table})
        return images

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


def _categories(of_image: np.ndarray) -> "pd.Categorical":
    """Splits as `Splits.of_image` has them, a byte for each image."""
    import pandas as pd

    return pd.Categorical(of_image, categories=["", *SPLITS])


def _check_patients(
    metadata: "Metadata", of_image: "pd.Categorical", remedy: str = "correct the lists"
) -> None:
    """Refuses a patient whose images are in two splits: the model would be tested on whom it has seen."""
    rows = np.flatnonzero(of_image != "")
    codes = of_image.codes[rows] - 1
    patients, of_row = _numbered(metadata.table["patient_id"].to_numpy()[rows])
    in_split = np.zeros((len(patients), len(SPLITS)), bool)
    in_split[of_row, codes] = True
    torn = np.flatnonzero(in_split.sum(axis=1) > 1)
    if torn.size:
        firsts = [
            rows[(of_row == torn[0]) & (codes == code)][0]
            for code in range(len(SPLITS))
            if in_split[torn[0]][code]
        ]
        sides = [f"{metadata.image_ids[int(row)]} in {of_image[row]}" for row in firsts]
        more = f" (such patients in all: {torn.size:,})" if torn.size > 1 else ""
        raise CxrError(
            f"found patient {patients[torn[0]]} in two splits: {', '.join(sides)}{more}; a patient must be "
            f"in one split only, so {remedy}"
        )


def _words(name: str, limit: int = 80) -> str:
    return repr(name if len(name) <= limit else f"{name[:limit]}…")
