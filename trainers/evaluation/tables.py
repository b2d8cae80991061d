"""Scores from anywhere: any model's table, matched to NIH's table of images.

Labels and patients come from NIH's table alone, never from the table of scores.
"""

import dataclasses
import gzip
import io
import re

import numpy as np
import pandas as pd

from cxr_records import storage
from cxr_records.errors import CxrError, UsageError
from cxr_records.findings import FINDINGS, NO_FINDING
from cxr_records.metadata import Metadata
from cxr_records.parquet import read_parquet
from cxr_records.tasks import ANY_FINDING, Task
from cxr_records.trainers import runs
from cxr_records.trainers.evaluation.predictions import Predictions

ENDINGS = (".csv", ".csv.gz", ".parquet")
# What heads the column of image names, without case and signs.
_IMAGE_COLUMNS = (
    "imageid",
    "imageindex",
    "image",
    "imagename",
    "filename",
    "file",
    "imagepath",
    "path",
    "id",
)
_PREFIXES = ("prob", "probability", "score", "pred", "prediction", "logit", "p")


@dataclasses.dataclass(frozen=True, eq=False)
class ScoreTable:
    """Scores of images for findings, as they stood in a table.

    Attributes:
        image_ids: object [n], names as in NIH's table.
        names: of the k findings that have scores.
        scores: float64 [n, k].
        warnings: what had to be left out or assumed.
    """

    image_ids: np.ndarray
    names: tuple[str, ...]
    scores: np.ndarray
    warnings: tuple[str, ...]


def read_score_table(path: str) -> ScoreTable:
    """Reads a table of scores: .csv, .csv.gz or .parquet, local or any fsspec URL.

    A column heads a finding's scores if it is the finding's name, in any case and with any signs between the
    words, with or without a prefix such as prob_. Image names may have folders before them and lack ".png".

    Raises:
        UsageError: another ending, no file, or no column for images or for any finding.
        CxrError: the file is damaged, a score is no number, or an image has two different rows.
    """
    table = _read(path)
    image_column = _image_column(table)
    if image_column is None:
        raise UsageError(
            f"{path}: found columns {_listed(table.columns)}; expected one of image names, such as "
            "image_id or Image Index"
        )
    columns = _finding_columns(path, table)
    if not columns:
        raise UsageError(
            f"{path}: found columns {_listed(table.columns)}; expected scores under names of findings, such "
            f"as prob_{FINDINGS[0]} or {FINDINGS[0]}"
        )
    warnings = []
    if lacking := [name for name in FINDINGS if name not in columns]:
        warnings.append(f"no scores for {', '.join(lacking)}")
    try:
        scores = table[list(columns.values())].to_numpy(np.float64)
    except (ValueError, TypeError) as error:
        raise CxrError(f"{path}: found a score that is no number ({error})") from None
    image_ids = table[image_column].astype(str).map(_image_id).to_numpy(object)
    kept, said = _checked(path, image_ids, scores)
    return ScoreTable(image_ids[kept], tuple(columns), scores[kept], (*warnings, *said))


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
        only: names of the images to evaluate; None for all that were scored.

    Raises:
        UsageError: no image is left, or the task needs scores that are not there.
    """
    row_of = dict(zip(metadata.table["image_id"], range(len(metadata)), strict=True))
    rows = np.array([row_of.get(image_id, -1) for image_id in table.image_ids], np.int64)
    warnings = list(table.warnings)
    known = rows >= 0
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
        if lacking := len(wanted) - int((listed & known).sum()):
            warnings.append(f"{lacking:,} of the {len(wanted):,} images of the test list have no scores")
        known &= listed
    selection = task.select(metadata.findings[rows])
    kept = known & selection.kept
    if not kept.any():
        raise UsageError(
            f"found no scored image for task {task.name}" + " in `test_list`" * (only is not None)
        )
    about = metadata.table.iloc[rows[kept]]
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
        warnings=tuple(warnings),
    )


def _task_scores(table: ScoreTable, task: Task) -> tuple[np.ndarray, tuple[str, ...]]:
    """Scores float64 [n, k] of a task, and the names of its k classes."""
    if task.kind == "multilabel":
        return table.scores, table.names
    if not ((table.scores >= 0) & (table.scores <= 1)).all():
        raise UsageError(f"`task={task.name}`: can be derived from probabilities only, not from other scores")
    if task.with_no_finding:
        raise UsageError(f"`task={task.name}`: No Finding has no score in a table of findings")
    first, second = task.class_names[0], task.class_names[1]
    needed = FINDINGS if task.kind == "multiclass" or ANY_FINDING in (first, second) else (first, second)
    if lacking := [name for name in needed if name not in (*table.names, NO_FINDING)]:
        raise UsageError(f"`task={task.name}`: found no scores for {', '.join(lacking)}")
    by_name = dict(zip(table.names, table.scores.T, strict=True))
    if task.kind == "multiclass":
        return np.stack([by_name[name] for name in FINDINGS], axis=1), FINDINGS
    if ANY_FINDING in (first, second):
        score = 1 - np.prod([1 - by_name[name] for name in FINDINGS], axis=0)
        score = score if second == ANY_FINDING else 1 - score
    elif NO_FINDING in (first, second):
        score = by_name[second] if first == NO_FINDING else 1 - by_name[first]
    else:
        score = by_name[second] / np.maximum(by_name[first] + by_name[second], 1e-12)
    return score[:, np.newaxis], (second,)


def _read(path: str) -> pd.DataFrame:
    if not path.lower().endswith(ENDINGS):
        raise UsageError(f"`predictions={path}`: expected a file that is one of {', '.join(ENDINGS)}")
    if not storage.exists(path):
        raise UsageError(f"`predictions={path}`: no such file")
    content = storage.read_bytes(path)
    try:
        if path.lower().endswith(".parquet"):
            table: pd.DataFrame = read_parquet(content).to_pandas()
            return table
        text = gzip.decompress(content) if path.lower().endswith(".gz") else content
        image_column = _image_column(pd.read_csv(io.BytesIO(text), nrows=0))
        return pd.read_csv(io.BytesIO(text), dtype={image_column: str})  # 00000001 is a name
    except Exception as error:  # pandas and pyarrow raise many kinds
        raise CxrError(f"{path} cannot be read as a table ({' '.join(str(error).split())})") from error


def _image_column(table: pd.DataFrame) -> str | None:
    plain = {_plain(column): column for column in table.columns}
    return next((plain[name] for name in _IMAGE_COLUMNS if name in plain), None)


def _finding_columns(path: str, table: pd.DataFrame) -> dict[str, str]:
    """The column of each finding, in the order of FINDINGS."""
    heads: dict[str, str] = {}
    for column in table.columns:
        # Labels that the table brings along are none of our business.
        if (name := _finding_of(column)) and pd.api.types.is_numeric_dtype(table[column]):
            if name in heads:
                raise UsageError(
                    f"{path}: found two columns of {name}: {heads[name]} and {column}; remove one"
                )
            heads[name] = column
    return {name: heads[name] for name in FINDINGS if name in heads}


def _finding_of(column: str) -> str | None:
    by_plain = {_plain(name): name for name in FINDINGS}
    text = _plain(column)
    for prefix in ("", *_PREFIXES):
        if text.startswith(prefix) and text[len(prefix) :] in by_plain:
            return by_plain[text[len(prefix) :]]
    return None


def _plain(text: str) -> str:
    return re.sub(r"[^a-z0-9]", "", str(text).lower())


def _image_id(text: str) -> str:
    name = text.strip().replace("\\", "/").rsplit("/", 1)[-1]
    return name if "." in name else f"{name}.png"


def _checked(path: str, image_ids: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """Which rows can be used, and what is to be said of the others."""
    said, kept = [], np.isfinite(scores).all(axis=1)
    if not kept.all():
        said.append(f"{(~kept).sum():,} rows with a score that is NaN or infinite: left out")
    if not kept.any():
        raise CxrError(f"{path}: every row holds a score that is NaN or infinite")
    frame = pd.DataFrame(scores).assign(image_id=image_ids)
    doubled = frame.duplicated("image_id", keep="first").to_numpy()
    if doubled.any():
        different = doubled & ~frame.duplicated(keep="first").to_numpy()
        if different.any():
            name = image_ids[different][0]
            raise CxrError(
                f"{path}: found {different.sum():,} images with two different rows (the first is {name}); "
                "expected one row for each image: average them first"
            )
        said.append(f"{doubled.sum():,} rows stand twice: counted once")
    return kept & ~doubled, said


def _listed(columns: pd.Index) -> str:
    return ", ".join(map(str, columns[:6])) + (", ..." if len(columns) > 6 else "")
