"""Tables of scores from anywhere: which columns and rows are recognised, what is said of the rest."""

import gzip

import numpy as np
import pandas as pd
import pytest

from cxr_records.errors import CxrError, UsageError
from cxr_records.findings import FINDINGS
from cxr_records.metadata import Metadata, read_metadata
from cxr_records.tasks import parse_task
from cxr_records.trainers.evaluation.tables import match, read_score_table


@pytest.fixture(scope="module")
def metadata(lookalike) -> Metadata:
    return read_metadata(str(lookalike.metadata))


@pytest.fixture
def scores(metadata) -> pd.DataFrame:
    """A score for every image and finding."""
    random = np.random.default_rng(0).random((len(metadata), 14))
    return pd.DataFrame(random, columns=list(FINDINGS)).assign(image=metadata.table["image_id"])


def written(scores: pd.DataFrame, path) -> str:
    if path.suffix == ".parquet":
        scores.to_parquet(path)
    elif path.suffix == ".gz":
        path.write_bytes(gzip.compress(scores.to_csv(index=False).encode()))
    else:
        scores.to_csv(path, index=False)
    return str(path)


@pytest.mark.parametrize("ending", [".csv", ".csv.gz", ".parquet"])
def test_every_kind_of_file_gives_the_same_scores(scores, tmp_path, ending):
    table = read_score_table(written(scores, tmp_path / f"scores{ending}"))

    assert table.names == FINDINGS
    assert table.image_ids.tolist() == scores["image"].tolist()
    np.testing.assert_allclose(table.scores, scores[list(FINDINGS)].to_numpy(), rtol=1e-12)
    assert table.warnings == ()


@pytest.mark.parametrize(
    ("head", "image"),
    [
        (lambda name: f"prob_{name}", "Image Index"),
        (lambda name: name.replace("_", " ").upper(), "filename"),
        (lambda name: f"pred {name.lower()}", "image_id"),
        (lambda name: f"p_{name}", "path"),
    ],
)
def test_columns_are_matched_by_the_findings_names(scores, tmp_path, head, image):
    renamed = scores.rename(columns={**{name: head(name) for name in FINDINGS}, "image": image})
    renamed["label_Hernia"] = 0
    renamed["epoch"] = 7

    table = read_score_table(written(renamed, tmp_path / "scores.csv"))

    assert table.names == FINDINGS
    np.testing.assert_allclose(table.scores[:, 3], scores[FINDINGS[3]])


def test_image_names_may_have_folders_and_lack_the_ending(scores, tmp_path):
    names = scores["image"].tolist()
    assert names[0][:8].isdigit()
    scores["image"] = [f"/data/images_001/{name}" if i % 2 else name[:-4] for i, name in enumerate(names)]

    assert read_score_table(written(scores, tmp_path / "scores.csv")).image_ids.tolist() == names


def test_what_cannot_be_used_is_left_out_and_said(scores, metadata, tmp_path):
    scores.loc[3, "Mass"] = np.nan
    scores.loc[4, "Mass"] = np.inf
    scores.loc[5, "image"] = "99999999_000.png"
    scores = pd.concat([scores.drop(columns="Hernia"), scores.iloc[[0]].drop(columns="Hernia")])
    table = read_score_table(written(scores, tmp_path / "scores.csv"))

    found = match(table, metadata, parse_task("multilabel"), "all")

    assert found.names == FINDINGS[:-1]
    assert len(found.image_ids) == len(metadata) - 3
    assert found.warnings == (
        "no scores for Hernia",
        "2 rows with a score that is NaN or infinite: left out",
        "1 rows stand twice: counted once",
        "1 scored images are not in the table of images (first: 99999999_000.png): left out",
    )


def test_labels_and_patients_are_those_of_the_metadata_whatever_the_order_of_rows(scores, metadata, tmp_path):
    shuffled = scores.sample(frac=1, random_state=0)

    found = match(
        read_score_table(written(shuffled, tmp_path / "s.csv")), metadata, parse_task("multilabel"), ""
    )

    row = {name: i for i, name in enumerate(metadata.table["image_id"])}
    rows = [row[name] for name in found.image_ids]
    np.testing.assert_array_equal(found.labels, metadata.findings[rows])
    np.testing.assert_array_equal(found.patient_ids, metadata.table["patient_id"].to_numpy()[rows])
    np.testing.assert_allclose(found.scores, scores[list(FINDINGS)].to_numpy()[rows])


def test_tasks_are_derived_from_probabilities(scores, metadata, tmp_path):
    table = read_score_table(written(scores, tmp_path / "s.csv"))
    p = scores[list(FINDINGS)].to_numpy()
    count = metadata.findings.sum(axis=1)

    def derived(task: str):
        return match(table, metadata, parse_task(task), "")

    np.testing.assert_allclose(derived("binary").scores[:, 0], 1 - np.prod(1 - p, axis=1))
    assert derived("binary").labels[:, 0].tolist() == (count > 0).astype(int).tolist()
    effusion = FINDINGS.index("Effusion")
    against_none = (count == 0) | (metadata.findings[:, effusion] == 1)
    np.testing.assert_allclose(derived("binary:Effusion").scores[:, 0], p[against_none, effusion])
    mass, nodule = (p[:, FINDINGS.index(name)] for name in ("Mass", "Nodule"))
    pair = derived("binary:Mass,Nodule")
    one = metadata.findings[:, [FINDINGS.index("Mass"), FINDINGS.index("Nodule")]].sum(axis=1) == 1
    np.testing.assert_allclose(pair.scores[:, 0], (nodule / (mass + nodule))[one])
    several = derived("multiclass")
    np.testing.assert_allclose(several.scores, (p / p.sum(axis=1, keepdims=True))[count == 1])
    np.testing.assert_allclose(several.mean_scores, p.mean(axis=0))


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        (
            lambda s: s.rename(columns={"image": "who"}),
            UsageError,
            "found columns Atelectasis, Cardiomegaly, Effusion, Infiltration, Mass, Nodule, ...; expected "
            "one of image names, such as image_id or Image Index",
        ),
        (
            lambda s: s[["image"]],
            UsageError,
            "found columns image; expected scores under names of findings, such as prob_Atelectasis or "
            "Atelectasis",
        ),
        (
            lambda s: s.assign(prob_Mass=0.1),
            UsageError,
            "found two columns of Mass: Mass and prob_Mass; remove one",
        ),
        (
            lambda s: pd.concat([s, s.iloc[[0]].assign(Mass=0.123)]),
            CxrError,
            "found 1 images with two different rows (the first is {first}); expected one row for each image: "
            "average them first",
        ),
        (
            lambda s: s.assign(Mass=np.nan),
            CxrError,
            "every row holds a score that is NaN or infinite",
        ),
    ],
)
def test_a_table_that_is_none_is_refused_in_one_line(scores, tmp_path, change, kind, message):
    path = written(change(scores), tmp_path / "s.csv")

    with pytest.raises(kind) as error:
        read_score_table(path)
    assert str(error.value) == f"{path}: {message.format(first=scores['image'][0])}"


def test_a_file_of_another_kind_or_none_is_refused(tmp_path):
    (tmp_path / "s.parquet").write_bytes(b"no table")
    for path, message in (
        ("s.xlsx", "expected a file that is one of .csv, .csv.gz, .parquet"),
        ("none.csv", "no such file"),
    ):
        with pytest.raises(UsageError) as error:
            read_score_table(str(tmp_path / path))
        assert str(error.value) == f"`predictions={tmp_path / path}`: {message}"
    with pytest.raises(CxrError, match="cannot be read as a table"):
        read_score_table(str(tmp_path / "s.parquet"))


def test_scores_that_are_no_probabilities_serve_no_derived_task(scores, metadata, tmp_path):
    scores[list(FINDINGS)] = scores[list(FINDINGS)] * 10 - 5
    table = read_score_table(written(scores, tmp_path / "s.csv"))

    assert not match(table, metadata, parse_task("multilabel"), "").are_probabilities
    with pytest.raises(UsageError, match="can be derived from probabilities only"):
        match(table, metadata, parse_task("binary"), "")


def test_images_of_a_list_alone(scores, metadata, tmp_path):
    names = scores["image"].tolist()
    table = read_score_table(written(scores.iloc[:10], tmp_path / "s.csv"))

    found = match(table, metadata, parse_task("multilabel"), "", names[5:20])

    assert sorted(found.image_ids) == sorted(names[5:10])
    assert found.warnings == ("10 of the 15 images of the test list have no scores",)
    with pytest.raises(UsageError, match="found no scored image for task multilabel in `test_list`"):
        match(table, metadata, parse_task("multilabel"), "", names[30:])


def test_the_other_side_of_a_binary_task_has_what_is_left_to_one(scores, metadata, tmp_path):
    scores.loc[0, list(FINDINGS)] = 0.0
    scores.loc[1, list(FINDINGS)] = 1.0  # both are probabilities
    table = read_score_table(written(scores, tmp_path / "s.csv"))
    p, count = scores[list(FINDINGS)].to_numpy(), metadata.findings.sum(axis=1)
    effusion = FINDINGS.index("Effusion")
    against_none = (count == 0) | (metadata.findings[:, effusion] == 1)

    any_first = match(table, metadata, parse_task("binary:Effusion,No Finding"), "")
    np.testing.assert_allclose(any_first.scores[:, 0], 1 - p[against_none, effusion])
    assert any_first.labels[:, 0].tolist() == (count == 0)[against_none].astype(int).tolist()


def test_a_binary_task_needs_the_scores_of_its_own_findings_alone(scores, metadata, tmp_path):
    table = read_score_table(written(scores[["image", "Effusion"]], tmp_path / "s.csv"))

    assert match(table, metadata, parse_task("binary:Effusion"), "").names == ("Effusion",)
    for task in ("binary", "multiclass"):
        with pytest.raises(UsageError, match=f"^`task={task}`: found no scores for Atelectasis, "):
            match(table, metadata, parse_task(task), "")
