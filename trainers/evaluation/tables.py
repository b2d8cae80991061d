"""Scores from anywhere: any model's table, matched to NIH's table of images.

Labels and patients come from NIH's table alone, never from the table of scores.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from decimal import Decimal
from itertools import repeat
from typing import Any

import numpy as np
import pyarrow as pa

from cxr_records.errors import CxrError, UsageError
from cxr_records.filetypes import HEAD_BYTES, file_type
from cxr_records.findings import FINDINGS, NO_FINDING
from cxr_records.metadata import Metadata
from cxr_records.names import ImageNames
from cxr_records.parquet import read_parquet
from cxr_records.tablefiles import (
    IMAGE_COLUMNS,
    Rows,
    alike,
    filled,
    plain,
    read_content,
    rows_of,
    short,
)
from cxr_records.tasks import ANY_FINDING, Task
from cxr_records.trainers import runs
from cxr_records.trainers.evaluation.predictions import Predictions, said_of_scores

_IMAGE_COLUMNS = (*IMAGE_COLUMNS, "id")
_PREFIXES = ("prob", "probability", "score", "pred", "prediction", "logit", "p")
# Rows without a score are left out and said up to this share of a table; beyond it something else is wrong.
_MAX_WITHOUT_SCORE = 0.01


Column = Sequence[Any] | np.ndarray  # text or other values, or float64


@dataclasses.dataclass(frozen=True, eq=False)
class ScoreTable:
    """Scores of images for findings, as they stood in a table; one row for each image.

    Attributes:
        image_ids: object [n], the names in NIH's table; of images that are not in it, as they stood.
        known: bool [n], whether an image is in NIH's table.
        names: of the k findings that have scores.
        scores: float64 [n, k].
        warnings: what had to be left out or assumed.
    """

    image_ids: np.ndarray
    known: np.ndarray
    names: tuple[str, ...]
    scores: np.ndarray
    warnings: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Table:
    """The cells of a file by column, as text or as the values that they are.

    Attributes:
        path: of the file.
        header: names of the columns.
        columns: aligned with it.
        places: where each row stands, for messages: "line 5", "row 4".
        warnings: what is odd in the file.
    """

    path: str
    header: list[str]
    columns: list[Column]
    places: list[str]
    warnings: tuple[str, ...] = ()


def read_score_table(path: str, metadata: Metadata) -> ScoreTable:
    """Reads a table of scores: CSV, .xlsx or Parquet, packed or not; a local path or any fsspec URL.

    What kind of file it is, its first bytes tell and not its name. CSV may have commas, semicolons or tabs. A
    column heads a finding's scores if it is the finding's name, in any case and with any signs between the
    words, with or without a prefix such as prob_. Beside columns with a prefix, those without one that hold
    zeros and ones alone are labels that the table brings along: they are not read. Images are named as
    `names.ImageNames.find` takes them.

    Args:
        path: of the table.
        metadata: NIH's table, whose images are meant.

    Raises:
        UsageError: no file, or no column for images or for any finding, or two for one.
        CxrError: the file is damaged or of another kind, a score is no number, more than 1% of the rows lack
            one, or an image has two different rows.
    """
    table = read_table(path, "predictions", lambda name: _finding_of(name) is not None)
    image_ids = image_names(table)
    columns, said = _finding_columns(table)
    warnings = [*table.warnings, *said]
    if not columns:
        raise UsageError(
            f"{path}: found columns {listed(table.header)}; expected scores under names of findings, such "
            f"as prob_{FINDINGS[0]} or {FINDINGS[0]}"
        )
    scores = _scores(table, image_ids, columns)
    with_score, said = _with_scores(table, image_ids, columns, scores)
    warnings += said
    found = _in_table(image_ids, ImageNames(metadata.table["image_id"]))
    names = np.array([image_id or name for image_id, name in zip(found, image_ids, strict=True)], object)
    rows = np.flatnonzero(with_score)
    kept, said = _once_each(table, names, image_ids, scores, rows)
    known = np.array([image_id is not None for image_id in found], bool)
    return ScoreTable(names[kept], known[kept], tuple(columns), scores[kept], (*warnings, *said))


def listed_images(names: Sequence[str], metadata: Metadata) -> list[str]:
    """Returns the images that a list names, each once; names of no image in NIH's table as they stand."""
    found = _in_table(names, ImageNames(metadata.table["image_id"]))
    return list(dict.fromkeys(image_id or name for image_id, name in zip(found, names, strict=True)))


def match(
    table: ScoreTable, metadata: Metadata, task: Task, split: str, only: list[str] | None = None
) -> Predictions:
    """Gives scores their labels and patients, for a task that they serve or that can be derived from them.

    Derived from probabilities of findings: of any finding, 1 - prod(1 - p); of one finding against No
    Finding, its p; of A against B, p of B by the sum of both; of one of 14, p by their sum.

    Args:
        table: the scores.
        metadata: NIH's table.
        task: which task.
        split: what to call the images.
        only: the images to evaluate, of `listed_images`; None for all that were scored.

    Raises:
        UsageError: no image is left, or the task needs scores that are not there.
    """
    row_of = dict(zip(metadata.table["image_id"], range(len(metadata)), strict=True))
    rows = np.array([row_of.get(image_id, -1) for image_id in table.image_ids], np.int64)
    warnings = list(table.warnings)
    known = table.known.copy()
    if not known.any():
        raise UsageError(
            f"found {len(rows):,} images with scores, none of which is in the table of images, "
            f"`metadata` (the first is {table.image_ids[0]!r})"
        )
    if not known.all():
        first = table.image_ids[~known][0]
        warnings.append(
            f"{(~known).sum():,} scored images are not in the table of images (first: {first}): left out"
        )
    scores, names = _task_scores(table, task)
    mean_scores = scores[known].mean(axis=0)  # over all rows, which is what the model saw
    if task.kind == "multiclass":
        scores = scores / np.maximum(scores.sum(axis=1, keepdims=True), 1e-12)
    if only is not None:
        wanted = set(only)
        listed = np.array([image_id in wanted for image_id in table.image_ids], bool)
        scored = set(table.image_ids[listed & known])
        if lacking := [name for name in only if name not in scored]:
            warnings.append(
                f"{len(lacking):,} of the {len(wanted):,} images of the test list have no scores "
                f"(first: {lacking[0]})"
            )
        known &= listed
    selection = task.select(metadata.findings[rows])
    kept = known & selection.kept
    if not kept.any():
        raise UsageError(
            f"found no scored image for task {task.name}" + " in `test_list`" * (only is not None)
        )
    used = [place for place, name in enumerate(table.names) if name in needed_findings(task)]
    used_names = [table.names[place] for place in used]
    labels = metadata.findings[rows[kept]][:, [FINDINGS.index(name) for name in used_names]]
    warnings += said_of_scores(used_names, labels, table.scores[kept][:, used])
    about = metadata.table.iloc[rows[kept]]
    follow_ups = about["follow_up"].to_numpy()
    places = [runs.score_names(task).index(name) for name in names]
    return Predictions(
        kind=task.kind,
        names=names,
        split=split,
        image_ids=about["image_id"].to_numpy(object),
        patient_ids=about["patient_id"].to_numpy(),
        views=about["view"].to_numpy(object),
        sexes=about["sex"].to_numpy(object),
        ages_years=about["age_years"].to_numpy(),
        labels=runs.class_rows(task, selection.labels[kept])[:, places].astype(np.int64),
        scores=scores[kept],
        mean_scores=mean_scores,
        lacking=tuple(name for name in runs.score_names(task) if name not in names),
        warnings=tuple(warnings),
        follow_ups=follow_ups if (follow_ups >= 0).any() else None,
    )


def needed_findings(task: Task) -> tuple[str, ...]:
    """Returns the findings whose scores a task is made of."""
    sides = task.class_names[:2]
    if task.kind != "binary" or ANY_FINDING in sides:
        return FINDINGS
    return tuple(name for name in sides if name != NO_FINDING)


def _task_scores(table: ScoreTable, task: Task) -> tuple[np.ndarray, tuple[str, ...]]:
    """Scores float64 [n, k] of a task, and the names of its k classes."""
    if task.kind == "multilabel":
        return table.scores, table.names
    if not ((table.scores >= 0) & (table.scores <= 1)).all():
        raise UsageError(f"`task={task.name}`: can be derived from probabilities only, not from other scores")
    if task.with_no_finding:
        raise UsageError(f"`task={task.name}`: No Finding has no score in a table of findings")
    if lacking := [name for name in needed_findings(task) if name not in table.names]:
        raise UsageError(f"`task={task.name}`: found no scores for {', '.join(lacking)}")
    by_name = dict(zip(table.names, table.scores.T, strict=True))
    if task.kind == "multiclass":
        return np.stack([by_name[name] for name in FINDINGS], axis=1), FINDINGS
    first, second = task.class_names[0], task.class_names[1]
    if ANY_FINDING in (first, second):
        score = 1 - np.prod([1 - by_name[name] for name in FINDINGS], axis=0)
        score = score if second == ANY_FINDING else 1 - score
    elif NO_FINDING in (first, second):
        score = by_name[second] if first == NO_FINDING else 1 - by_name[first]
    else:
        score = by_name[second] / np.maximum(by_name[first] + by_name[second], 1e-12)
    return score[:, np.newaxis], (second,)


def read_table(path: str, argument: str, is_wanted: Callable[[str], bool]) -> Table:
    """Reads a table of images: CSV, .xlsx or Parquet.

    Args:
        path: of the table.
        argument: what it was given as, for the errors.
        is_wanted: tells whether a column is one of those that it is read for, beside that of images.

    Raises:
        UsageError: there is no such file, or it is of another kind.
        CxrError: it is damaged, or its rows are not of one width.
    """

    def is_header(cells: Sequence[str]) -> bool:
        return any(plain(cell) in _IMAGE_COLUMNS for cell in cells) and any(map(is_wanted, cells))

    content = read_content(path, argument, also=("parquet",))
    if file_type(content[:HEAD_BYTES]) == "parquet":
        return _parquet_table(path, content)
    return _text_table(rows_of(path, content, is_header))


def _parquet_table(path: str, content: bytes) -> Table:
    try:
        table = read_parquet(content)
        columns = [_values(column) for column in table.columns]
    except (pa.ArrowException, OSError, ValueError) as error:
        raise CxrError(f"{path} cannot be read as a table ({short(error)})") from error
    places = [f"row {row:,}" for row in range(1, len(table) + 1)]
    return Table(path, list(map(str, table.column_names)), columns, places)


def _values(column: "pa.ChunkedArray[Any]") -> Column:
    """Numbers as float64, nulls NaN; everything else as the Python values that stand there."""
    if pa.types.is_floating(column.type) or pa.types.is_integer(column.type):
        numbers: np.ndarray = column.to_numpy().astype(np.float64)
        return numbers
    values: list[Any] = column.to_pylist()
    return values


def _text_table(table: Rows) -> Table:
    header = filled(table.header)  # lines may end in a separator
    for row, cells in enumerate(table.rows):
        if len(cells) < len(header) or any(cells[len(header) :]):
            raise CxrError(
                f"{table.path}, {table.place(row)}: found {len(cells)} values where the first line has "
                f"{len(header)} columns; complete the line, or write the table again"
            )
    columns: list[Column] = [[cells[place] for cells in table.rows] for place in range(len(header))]
    places = [table.place(row) for row in range(len(table.rows))]
    return Table(table.path, header, columns, places, table.warnings)


def image_names(table: Table) -> list[str]:
    """Returns the names of images, as they stand.

    Raises:
        UsageError: no column is headed as one of images, or two are.
        CxrError: there are no rows, or one without a name.
    """
    names = list(map(plain, table.header))
    wanted = next((name for name in _IMAGE_COLUMNS if name in names), None)
    if wanted is None:
        raise UsageError(
            f"{table.path}: found columns {listed(table.header)}; expected one of image names, such as "
            "image_id or Image Index"
        )
    places = [place for place, name in enumerate(names) if name == wanted]
    if len(places) > 1:
        one, other = (table.header[place] for place in places[:2])
        raise UsageError(f"{table.path}: found two columns of image names: {one} and {other}; remove one")
    values = table.columns[places[0]]
    if not len(values):
        raise CxrError(f"{table.path}: found a header and no rows; expected one row for each image")
    names = [cell_text(value) for value in values]
    for place, name in zip(table.places, names, strict=True):
        if not name:
            raise CxrError(f"{table.path}, {place}: found no name of an image; expected one in each row")
    return names


def cell_text(value: Any) -> str:
    """Returns what a cell holds as text; "" for an empty one."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    return (value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)).strip()


def _finding_columns(table: Table) -> tuple[dict[str, int], list[str]]:
    """The place of each finding's column, in the order of FINDINGS, and what is to be said of the choice."""
    heads: dict[str, list[int]] = {}
    for place, column in enumerate(table.header):
        if name := _finding_of(column):
            heads.setdefault(name, []).append(place)
    bare = [place for name, places in heads.items() for place in places if _is_bare(table, place)]
    labels = [place for place in bare if _holds_labels(table.columns[place])]
    if len(bare) == sum(map(len, heads.values())):
        labels = []  # nothing else could be scores
    chosen = {}
    for name in FINDINGS:
        places = [place for place in heads.get(name, ()) if place not in labels]
        if len(places) > 1:
            one, other = (table.header[place] for place in places[:2])
            raise UsageError(f"{table.path}: found two columns of {name}: {one} and {other}; remove one")
        if places:
            chosen[name] = places[0]
    said = []
    if labels:
        said.append(
            f"columns of zeros and ones beside scores are taken for labels, and not read: "
            f"{listed([table.header[place] for place in labels])}"
        )
    if lacking := [name for name in FINDINGS if name not in chosen]:
        unread = [column for column in table.header if not _finding_of(column)]
        like = [column for column in unread if any(map(_is_like, repeat(column), lacking))]
        meant = f" (columns of like names, which are not read: {listed(like)})" if like else ""
        said.append(f"no scores for {', '.join(lacking)}{meant}")
    return chosen, said


def _is_like(column: str, finding: str) -> bool:
    """Whether a column may be meant for a finding: "Mass_score", "Pleural Thickning"."""
    return plain(finding) in plain(column) or alike(column, finding)


def _is_bare(table: Table, place: int) -> bool:
    """Whether a finding's column is headed by its name alone."""
    return plain(table.header[place]) in map(plain, FINDINGS)


def _holds_labels(values: Column) -> bool:
    return all(str(value).strip().lower() in ("0", "1", "0.0", "1.0", "true", "false") for value in values)


def _finding_of(column: str) -> str | None:
    by_plain = {plain(name): name for name in FINDINGS}
    text = plain(column)
    for prefix in ("", *_PREFIXES):
        if text.startswith(prefix) and text[len(prefix) :] in by_plain:
            return by_plain[text[len(prefix) :]]
    return None


def _scores(table: Table, image_ids: Sequence[str], columns: dict[str, int]) -> np.ndarray:
    """Returns float64 [n, k], NaN where a cell is empty; refuses what is no number."""
    scores, bad = np.empty((len(image_ids), len(columns))), []
    for column, place in enumerate(columns.values()):
        values = table.columns[place]
        if isinstance(values, np.ndarray):
            scores[:, column] = values
            continue
        for row, value in enumerate(values):
            try:
                scores[row, column] = _number(value)
            except ValueError:
                bad.append((row, place, str(value)))
                break
    if bad:
        row, place, text = min(bad)
        raise CxrError(
            f"{table.path}, {table.places[row]} (image {image_ids[row]!r}), column {table.header[place]!r}: "
            f"found {short(text, 80)!r}; expected a number such as 0.25, or an empty cell"
        )
    return scores


def _number(value: Any) -> float:
    """Returns the number that a cell holds, NaN for an empty one.

    Raises:
        ValueError: it holds something else, such as True, 12% or 0,5.
    """
    if value is None:
        return math.nan
    if isinstance(value, int | float | Decimal) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, str) or not value.isascii() or "_" in value:  # Python reads 1_5 as 15
        raise ValueError
    return float(value) if value.strip() else math.nan


def _with_scores(
    table: Table, image_ids: Sequence[str], columns: dict[str, int], scores: np.ndarray
) -> tuple[np.ndarray, list[str]]:
    """Which rows have all their scores, and what is to be said of the others."""
    missing = ~np.isfinite(scores)
    rows = np.flatnonzero(missing.any(axis=1))
    if not len(rows):
        return np.ones(len(scores), bool), []
    column = table.header[list(columns.values())[int(missing[rows[0]].argmax())]]
    what = f"a score that is empty, NaN or infinite (first: {image_ids[rows[0]]}, column {column})"
    if len(rows) > _MAX_WITHOUT_SCORE * len(scores):
        raise CxrError(
            f"{table.path}: {len(rows):,} of {len(scores):,} rows have {what}; expected at most "
            f"{_MAX_WITHOUT_SCORE:.0%}: give them scores, or remove these rows or that column"
        )
    return ~missing.any(axis=1), [f"{len(rows):,} rows with {what}: left out"]


def _in_table(names: Sequence[str], images: ImageNames) -> list[str | None]:
    return [images.find(name) for name in names]


def _once_each(
    table: Table, names: np.ndarray, as_written: Sequence[str], scores: np.ndarray, rows: np.ndarray
) -> tuple[np.ndarray, list[str]]:
    """Of some rows the first one of each image, and what is to be said of the others."""
    first_of: dict[str, int] = {}
    different: dict[str, tuple[int, int]] = {}
    for row in rows:
        first = first_of.setdefault(names[row], row)
        if first != row and (scores[first] != scores[row]).any():
            different.setdefault(names[row], (first, row))
    if different:
        name, places = next(iter(different.items()))
        spelled = " and ".join(f"{as_written[row]} in {table.places[row]}" for row in places)
        raise CxrError(
            f"{table.path}: found {len(different):,} images with two different rows (the first is {name}: "
            f"{spelled}); expected one row for each image: average them first"
        )
    kept = np.array(list(first_of.values()), np.int64)
    doubled = len(rows) - len(kept)
    return kept, [f"{doubled:,} rows stand twice: counted once"] if doubled else []


def listed(columns: Sequence[str]) -> str:
    """Returns the first six names."""
    return ", ".join(columns[:6]) + (", ..." if len(columns) > 6 else "")
