"""Labels that are not NIH's: of images that were judged again, or of another test set, from any table."""

import dataclasses
import functools
from collections.abc import Sequence
from hashlib import sha256

import numpy as np
import pandas as pd

from cxr_records import storage
from cxr_records.errors import CxrError, UsageError
from cxr_records.findings import FINDINGS, NO_FINDING
from cxr_records.metadata import UNKNOWN, Metadata, as_age_years, as_findings, as_sex, as_view
from cxr_records.names import ImageNames, base_name, patient_in_name, patients_told
from cxr_records.tablefiles import PATIENT_COLUMNS, alike, plain, short
from cxr_records.tasks import ANY_FINDING, Task
from cxr_records.trainers import runs
from cxr_records.trainers.evaluation.predictions import UNJUDGED, Predictions
from cxr_records.trainers.evaluation.results import GivenLabels
from cxr_records.trainers.evaluation.tables import (
    ScoreTable,
    Table,
    cell_text,
    image_names,
    listed,
    match,
    read_table,
)
from cxr_records.urls import name_of

_LABEL_STRINGS = "findinglabels"  # NIH's own column, as `plain` writes it
_PREFIXES = ("", "label", "gt", "truth", "target")  # before the name of a finding
_VALUES = {
    "1": 1, "1.0": 1, "yes": 1, "y": 1, "true": 1, "positive": 1, "pos": 1,
    "0": 0, "0.0": 0, "no": 0, "n": 0, "false": 0, "negative": 0, "neg": 0,
    "": UNJUDGED,
}  # fmt: skip
_VIEW_COLUMNS = ("viewposition", "view", "position", "projection")
_SEX_COLUMNS = ("patientgender", "patientsex", "gender", "sex")
_AGE_COLUMNS = ("patientage", "age", "ageyears", "patientageyears")
# Patients that NIH has not numbered get numbers from here on, so that none is taken for one of NIH's.
_FIRST_OF_OTHERS = 1_000_000


@dataclasses.dataclass(frozen=True, eq=False)
class LabelTable:
    """Labels of images for findings, as they stood in a table.

    Attributes:
        path: of the table.
        sha256: of the file, hex.
        image_ids: [m], the names of the images, as they stood.
        places: [m], where each row stands, for messages.
        names: of the k findings that have labels.
        labels: int64 [m, k], 0, 1 or `UNJUDGED`.
        patients: [m] texts; None where the table has no patients.
        views: object [m], PA, AP or "".
        sexes: object [m], M, F or "".
        ages_years: int64 [m], -1 where unknown.
        warnings: what was read otherwise than it stands, or not read.
    """

    path: str
    sha256: str
    image_ids: tuple[str, ...]
    places: tuple[str, ...]
    names: tuple[str, ...]
    labels: np.ndarray
    patients: tuple[str, ...] | None
    views: np.ndarray
    sexes: np.ndarray
    ages_years: np.ndarray
    warnings: tuple[str, ...]

    @property
    def file(self) -> str:
        """The name of the table's file."""
        return name_of(self.path).rsplit("/", 1)[-1]

    def rows_of(self, image_ids: Sequence[str], what: str) -> np.ndarray:
        """Returns the row of each image: int64 [n], -1 where the table does not name it.

        Args:
            image_ids: of n images.
            what: the images are, for the errors.

        Raises:
            UsageError: it names none of them.
            CxrError: it has two different rows for one.
        """
        images, place_of = ImageNames(image_ids), {name: place for place, name in enumerate(image_ids)}
        rows = np.full(len(image_ids), -1)
        for row, name in enumerate(self.image_ids):
            image_id = images.find(name)
            if image_id is None:
                continue
            place = place_of[image_id]
            if rows[place] >= 0 and (self.labels[rows[place]] != self.labels[row]).any():
                raise CxrError(
                    f"{self.path}, {self.places[rows[place]]} and {self.places[row]}: found different labels "
                    f"for image {image_id}; keep one of the two rows"
                )
            rows[place] = row if rows[place] < 0 else rows[place]
        if (rows < 0).all():
            raise self.no_image(what, image_ids[0])
        return rows

    def no_image(self, what: str, first: str) -> UsageError:
        """Returns the error of a table that names none of the images, of which `first` is one."""
        return UsageError(
            f"{self.path}: found {len(self.image_ids):,} image names (the first is "
            f"{short(self.image_ids[0], 80)!r}), none of which is that of {what}; expected names such as "
            f"{first!r} in `labels`"
        )

    def findings_of(self, rows: np.ndarray) -> np.ndarray:
        """Returns int64 [n, 14] for rows of the table; `UNJUDGED` for findings that it lacks and rows < 0."""
        found = np.full((len(rows), len(FINDINGS)), UNJUDGED)
        found[:, [FINDINGS.index(name) for name in self.names]] = self.labels[rows]
        found[rows < 0] = UNJUDGED
        return found

    @functools.cached_property
    def images(self) -> Metadata:
        """The images as a table of their own, for scores of which NIH's table does not know the images.

        Patients are those that names of NIH's form tell; else those of the table; else each image is one.

        Raises:
            CxrError: a row names another patient than the image's name, or none; or two names are one but for
                their folders, which do not count.
        """
        names = [base_name(name.strip()) for name in self.image_ids]
        first = dict[str, int]()
        for row, name in enumerate(names):
            if self.image_ids[first.setdefault(name, row)] != self.image_ids[row]:
                both = " and ".join(repr(short(self.image_ids[each], 80)) for each in (first[name], row))
                raise CxrError(
                    f"{self.path}, {self.places[first[name]]} and {self.places[row]}: found names that "
                    f"differ in their folders alone ({both}); give each image a file name of its own, here "
                    "and in the table of scores"
                )
        rows = np.array([first[name] for name in sorted(first)])
        patients, said = self._patient_ids(names)
        text = {
            "image_id": np.array(names, object)[rows],
            "patient_id": patients[rows],
            "view": self.views[rows],
            "sex": self.sexes[rows],
            "age_years": self.ages_years[rows],
            "follow_up": np.full(len(rows), UNKNOWN, np.int64),
        }
        findings = (self.findings_of(rows) == 1).astype(np.uint8)
        return Metadata(pd.DataFrame(text), findings, "other", self.sha256, said)

    def _patient_ids(self, names: Sequence[str]) -> tuple[np.ndarray, tuple[str, ...]]:
        """The patient of each row, and what is to be said of them."""
        told = [patient_in_name(name) for name in names]
        if self.patients is not None and not all(self.patients):
            row = self.patients.index("")
            raise CxrError(
                f"{self.path}, {self.places[row]} (image {names[row]!r}): found no patient; expected one in "
                "each row, or no column of patients"
            )
        if all(patient is not None for patient in told):
            numbers = [patient for patient in told if patient is not None]
            if self.patients and all(text.isdecimal() for text in self.patients):
                for row, patient in patients_told(names, list(map(int, self.patients))).items():
                    raise CxrError(
                        f"{self.path}, {self.places[row]} (image {names[row]!r}): found patient "
                        f"{self.patients[row]}, the name says {patient}; the columns do not belong together"
                    )
            return np.array(numbers, np.int64), ()
        if self.patients is None:
            said = f"{self.file} has no patients: each image counts as a patient of its own"
            return _FIRST_OF_OTHERS + np.arange(len(names)), (f"{said}, so intervals may be too narrow",)
        _, numbers_of = np.unique(np.array(self.patients, object).astype(str), return_inverse=True)
        return _FIRST_OF_OTHERS + numbers_of, ()


def read_labels(path: str) -> LabelTable:
    """Reads a table of labels: CSV, .xlsx or Parquet, packed or not; a local path or any fsspec URL.

    It has a column of image names, and NIH's "Finding Labels" or a column for each finding that was judged,
    headed by its name in any case and with any signs between the words: 1 or 0, yes or no, true or false,
    positive or negative; empty where nobody judged. It may have patients, views, sexes and ages.

    Raises:
        UsageError: no file, or no column of images or of any finding, or two of one.
        CxrError: the file is damaged or of another kind, or a label is none.
    """
    table = read_table(
        path, "labels", lambda name: plain(name) == _LABEL_STRINGS or _finding_of(name) is not None
    )
    names = image_names(table)
    strings = [place for place, name in enumerate(table.header) if plain(name) == _LABEL_STRINGS]
    columns = _finding_columns(table)
    if strings and columns:
        raise UsageError(
            f"{path}: found both {table.header[strings[0]]!r} and columns of findings "
            f"({listed([table.header[place] for place in columns.values()])}); keep one kind in `labels`"
        )
    if not strings and not columns:
        known = {plain(name): name for name in FINDINGS}
        like = [
            each
            for each in table.header
            for name in known.values()
            if alike(each, name) or plain(name) in plain(each)
        ]
        hint = f" (columns of like names: {listed(like)})" if like else ""
        raise UsageError(
            f"{path}: found columns {listed(table.header)}; expected `labels` under 'Finding Labels', or "
            f"under names of findings such as {FINDINGS[0]}{hint}"
        )
    found = tuple(FINDINGS) if strings else tuple(columns)
    labels = _label_strings(table, names, strings[0]) if strings else _label_columns(table, names, columns)
    said = list(table.warnings)
    others = [head for place, head in enumerate(table.header) if _is_of_another(table, place)]
    if others and columns:
        said.append(
            f"columns of labels that are under no name of a finding, and so not read: {listed(others)}; "
            f"findings are {', '.join(FINDINGS)}"
        )
    empty = ~(labels >= 0).any(axis=1)
    if empty.any():
        said.append(f"{empty.sum():,} of {len(names):,} rows have no label at all: left out")
    if empty.all():
        raise CxrError(f"{path}: found no label in any row; expected 1 or 0, yes or no, or such, in `labels`")

    def column(of: Sequence[str]) -> list[str] | None:
        place = next((place for place, name in enumerate(table.header) if plain(name) in of), None)
        return None if place is None else [cell_text(value) for value in table.columns[place]]

    def text(of: Sequence[str]) -> list[str]:
        return column(of) or [""] * len(names)

    patients = column(PATIENT_COLUMNS)
    kept = np.flatnonzero(~empty)
    return LabelTable(
        path=path,
        sha256=sha256(storage.read_bytes(path)).hexdigest(),
        image_ids=tuple(names[row] for row in kept),
        places=tuple(table.places[row] for row in kept),
        names=found,
        labels=labels[kept],
        patients=tuple(_whole(patients[row]) for row in kept) if patients else None,
        views=np.array([as_view(each) for each in text(_VIEW_COLUMNS)], object)[kept],
        sexes=np.array([as_sex(each) for each in text(_SEX_COLUMNS)], object)[kept],
        ages_years=np.array([as_age_years(each) for each in text(_AGE_COLUMNS)], np.int64)[kept],
        warnings=tuple(f"{path}: {each}" for each in said),
    )


def relabel(scored: Predictions, table: LabelTable, task: Task) -> tuple[Predictions, GivenLabels]:
    """Gives the scores of a run other labels, and leaves out the images that these do not name.

    Args:
        scored: with NIH's labels.
        table: the labels.
        task: of the scores.

    Raises:
        UsageError: the table names no scored image, or has not what the task is derived from.
        CxrError: it has two different rows for one image.
    """
    _check_task(table, task)
    rows = table.rows_of(list(scored.image_ids), "a scored image")
    findings, said = table.findings_of(rows), _said_of_rows(table, rows, len(scored.image_ids))
    if task.kind == "multilabel":
        labels = findings[:, [FINDINGS.index(name) for name in scored.names]]
    else:
        judged = (findings[:, [FINDINGS.index(name) for name in _asked(task)]] >= 0).all(axis=1)
        selection = task.select(np.maximum(findings, 0).astype(np.uint8))
        labels = runs.class_rows(task, selection.labels).astype(np.int64)
        labels[~(judged & selection.kept)] = UNJUDGED
    nih = dict(zip(scored.image_ids, scored.labels, strict=True))
    return _labelled(scored, labels, table, nih, said)


def match_labels(
    scores: ScoreTable,
    images: Metadata | None,
    table: LabelTable,
    task: Task,
    split: str,
    only: list[str] | None = None,
) -> tuple[Predictions, GivenLabels]:
    """Gives a table of scores other labels than NIH's: `tables.match` of the images that have these.

    Args:
        scores: whose names of images are those of `images`, or of `table.images` where there are none.
        images: NIH's table; None where it does not know the images.
        table: the labels.
        task: which task.
        split: what to call the images.
        only: the images to evaluate; None for all.

    Raises:
        UsageError, CxrError: as `relabel` and `match`.
    """
    _check_task(table, task)
    known = images or table.images
    rows = table.rows_of(list(known.table["image_id"]), "an image in the table of images")
    named = rows >= 0
    findings = table.findings_of(rows)
    if task.kind != "multilabel":
        named &= (findings[:, [FINDINGS.index(name) for name in _asked(task)]] >= 0).all(axis=1)
    relabelled = dataclasses.replace(
        known,
        table=known.table[named].reset_index(drop=True),
        findings=(findings[named] == 1).astype(np.uint8),
    )
    chosen = set(relabelled.table["image_id"])
    kept = np.array([name in chosen for name in scores.image_ids], bool)
    if not kept.any():
        raise table.no_image("a scored image", scores.image_ids[0])
    of_scores = dataclasses.replace(
        scores, image_ids=scores.image_ids[kept], known=scores.known[kept], scores=scores.scores[kept]
    )
    if only is not None:
        only = [name for name in only if name in chosen]
    scored = match(of_scores, relabelled, task, split, only)
    row_of = dict(zip(relabelled.table["image_id"], findings[named], strict=True))
    labels = scored.labels
    if task.kind == "multilabel":
        places = [FINDINGS.index(name) for name in scored.names]
        labels = np.array([row_of[name][places] for name in scored.image_ids])
    nih = {}
    if images is not None:
        try:
            before = match(of_scores, images, task, split, only)
            nih = dict(zip(before.image_ids, before.labels, strict=True))
        except UsageError:  # by NIH's labels, no image takes part in the task
            pass
    return _labelled(scored, labels, table, nih, _said_of_rows(table, np.where(kept, 0, -1), len(kept)))


def _asked(task: Task) -> tuple[str, ...]:
    """The findings that must be judged of an image for it to have a label of a task that is derived."""
    sides = task.class_names
    if task.kind == "binary" and not {ANY_FINDING, NO_FINDING} & set(sides):
        return sides
    return FINDINGS


def _check_task(table: LabelTable, task: Task) -> None:
    if task.kind != "multilabel" and (lacking := [name for name in _asked(task) if name not in table.names]):
        raise UsageError(
            f"{table.path}: found labels for {listed(table.names)}; task {task.name} follows from "
            f"{len(_asked(task))} findings, so `labels` must have {listed(lacking)} too"
        )


def _said_of_rows(table: LabelTable, rows: np.ndarray, scored: int) -> list[str]:
    """What is to be said of images that are scored or labelled, and not both; rows are -1 for the former."""
    said = []
    if without := int((rows < 0).sum()):
        said.append(f"{without:,} of {scored:,} scored images are not in {table.file}: left out")
    return said


def _labelled(
    scored: Predictions,
    labels: np.ndarray,
    table: LabelTable,
    nih: dict[str, np.ndarray],
    said: list[str],
) -> tuple[Predictions, GivenLabels]:
    """Puts labels in the place of NIH's; images and classes without any are left out."""
    judged = np.asarray(labels >= 0)
    names = [name for name, any_judged in zip(scored.names, judged.max(axis=0), strict=True) if any_judged]
    if not names:
        raise UsageError(
            f"{table.path}: found labels for {listed(table.names)}, none of which is of an image and a class "
            f"that have scores ({listed(scored.names)}); give `labels` for these"
        )
    used = dataclasses.replace(scored, labels=labels).of_rows(judged.max(axis=1)).of_classes(names)
    images = len(used.image_ids)
    if (unused := len(set(table.image_ids)) - images) > 0:
        why = "they have no score, or take no part in the task"
        said.append(
            f"{unused:,} of {len(set(table.image_ids)):,} images in {table.file} are not evaluated: {why}"
        )
    said.append(f"labels are from {table.file}, not NIH's: compare with no published result")
    if lacking := [name for name in scored.names if name not in names]:
        said.append(f"no labels for {', '.join(lacking)}: not measured")
    not_judged = {
        name: int((column == UNJUDGED).sum()) for name, column in zip(names, used.labels.T, strict=True)
    }
    if some := [f"{name} {count:,}" for name, count in not_judged.items() if count]:
        said.append(f"not judged, so not counted for that class, of {images:,} images: {', '.join(some)}")
    differ, compared = dict[str, int](), dict[str, int]()
    both = [place for place, name in enumerate(used.image_ids) if name in nih]
    if both:
        places = [scored.names.index(name) for name in names]
        before, now = np.array([nih[used.image_ids[place]][places] for place in both]), used.labels[both]
        compared = dict(zip(names, (now >= 0).sum(axis=0).tolist(), strict=True))
        differ = dict(zip(names, ((now >= 0) & (now != before)).sum(axis=0).tolist(), strict=True))
        told = [f"{name}: {count:,} of {compared[name]:,} differ" for name, count in differ.items() if count]
        said.append(f"against NIH's labels, {'; '.join(told) or 'no label differs'}")
    warnings = (*table.warnings, *said, *used.warnings)
    return (
        dataclasses.replace(used, warnings=warnings, labels_from=table.file),
        GivenLabels(table.file, table.sha256, not_judged, differ, compared),
    )


def _finding_columns(table: Table) -> dict[str, int]:
    """The place of each finding's column, in the order of FINDINGS; scores beside labels are passed over."""
    heads: dict[str, list[int]] = {}
    for place, column in enumerate(table.header):
        if name := _finding_of(column):
            heads.setdefault(name, []).append(place)
    for name, places in heads.items():
        if len(places) > 1:
            one, other = (table.header[place] for place in places[:2])
            raise UsageError(f"{table.path}: found two columns of {name}: {one} and {other}; remove one")
    return {name: heads[name][0] for name in FINDINGS if name in heads}


def _finding_of(column: str) -> str | None:
    text = plain(column)
    return next((name for name in FINDINGS for prefix in _PREFIXES if text == prefix + plain(name)), None)


def _is_of_another(table: Table, place: int) -> bool:
    """Whether a column holds labels, of something that is none of the findings."""
    name = plain(table.header[place])
    known = (plain(NO_FINDING), *PATIENT_COLUMNS, *_VIEW_COLUMNS, *_SEX_COLUMNS, *_AGE_COLUMNS)
    if name in known or _finding_of(table.header[place]):
        return False
    values = {cell_text(value).lower() for value in table.columns[place]}
    return values <= set(_VALUES) and len(values - {""}) > 1


def _label_strings(table: Table, names: Sequence[str], place: int) -> np.ndarray:
    """NIH's label strings as int64 [m, 14]; an empty cell is judged for no finding."""
    labels = np.full((len(names), len(FINDINGS)), UNJUDGED)
    for row, value in enumerate(table.columns[place]):
        if text := cell_text(value):
            try:
                labels[row] = as_findings(text)
            except ValueError as error:
                raise _error(table, names, row, place, short(error)) from error
    return labels


def _label_columns(table: Table, names: Sequence[str], columns: dict[str, int]) -> np.ndarray:
    labels = np.empty((len(names), len(columns)), np.int64)
    for column, place in enumerate(columns.values()):
        for row, value in enumerate(table.columns[place]):
            label = _VALUES.get(cell_text(value).lower())
            if label is None:
                problem = (
                    f"found {short(value, 80)!r}; expected 1 or 0, yes or no, true or false, positive or "
                    "negative, or an empty cell where nobody judged"
                )
                raise _error(table, names, row, place, problem)
            labels[row, column] = label
    return labels


def _error(table: Table, names: Sequence[str], row: int, place: int, problem: str) -> CxrError:
    where = (
        f"{table.path}, {table.places[row]} (image {short(names[row], 80)!r}), column {table.header[place]!r}"
    )
    return CxrError(f"{where}: {problem}")


def _whole(text: str) -> str:
    """A number without the ".0" of a table that was saved again."""
    return text.removesuffix(".0") if text.removesuffix(".0").isdecimal() else text
