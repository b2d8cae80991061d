"""Tables of scores from anywhere: which columns and rows are recognised, what is said of the rest."""

import gzip
import zipfile
from decimal import Decimal

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cxr_records.errors import CxrError, UsageError
from cxr_records.findings import FINDINGS
from cxr_records.metadata import Metadata, read_metadata
from cxr_records.tasks import parse_task
from cxr_records.trainers.evaluation.tables import listed_images, match, read_score_table

MULTILABEL = parse_task("multilabel")


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
def test_every_kind_of_file_gives_the_same_scores(scores, metadata, tmp_path, ending):
    table = read_score_table(written(scores, tmp_path / f"scores{ending}"), metadata)

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
def test_columns_are_matched_by_the_findings_names(scores, metadata, tmp_path, head, image):
    renamed = scores.rename(columns={**{name: head(name) for name in FINDINGS}, "image": image})
    renamed["label_Hernia"] = 0
    renamed["epoch"] = 7

    table = read_score_table(written(renamed, tmp_path / "scores.csv"), metadata)

    assert table.names == FINDINGS
    np.testing.assert_allclose(table.scores[:, 3], scores[FINDINGS[3]])


def test_image_names_may_have_folders_and_lack_the_ending(scores, metadata, tmp_path):
    names = scores["image"].tolist()
    assert names[0][:8].isdigit()
    scores["image"] = [f"/data/images_001/{name}" if i % 2 else name[:-4] for i, name in enumerate(names)]

    assert read_score_table(written(scores, tmp_path / "scores.csv"), metadata).image_ids.tolist() == names


def test_what_cannot_be_used_is_left_out_and_said(scores, metadata, tmp_path):
    scores.loc[4, "Mass"] = np.inf
    scores.loc[5, "image"] = "99999999_000.png"
    scores = pd.concat([scores.drop(columns="Hernia"), scores.iloc[[0]].drop(columns="Hernia")])
    table = read_score_table(written(scores, tmp_path / "scores.csv"), metadata)

    found = match(table, metadata, parse_task("multilabel"), "all")

    assert found.names == FINDINGS[:-1]
    assert found.lacking == ("Hernia",)
    assert len(found.image_ids) == len(metadata) - 2
    assert found.warnings == (
        "no scores for Hernia",
        f"1 rows with a score that is empty, NaN or infinite (first: {scores['image'][4]}, column Mass): "
        "left out",
        "1 rows stand twice: counted once",
        "1 scored images are not in the table of images (first: 99999999_000.png): left out",
    )


def test_labels_and_patients_are_those_of_the_metadata_whatever_the_order_of_rows(scores, metadata, tmp_path):
    shuffled = scores.sample(frac=1, random_state=0)

    found = match(
        read_score_table(written(shuffled, tmp_path / "s.csv"), metadata),
        metadata,
        parse_task("multilabel"),
        "",
    )

    row = {name: i for i, name in enumerate(metadata.table["image_id"])}
    rows = [row[name] for name in found.image_ids]
    np.testing.assert_array_equal(found.labels, metadata.findings[rows])
    np.testing.assert_array_equal(found.patient_ids, metadata.table["patient_id"].to_numpy()[rows])
    np.testing.assert_allclose(found.scores, scores[list(FINDINGS)].to_numpy()[rows])


def test_tasks_are_derived_from_probabilities(scores, metadata, tmp_path):
    table = read_score_table(written(scores, tmp_path / "s.csv"), metadata)
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
            "found 1 images with two different rows (the first is {first}: {first} in line 2 and {first} in "
            "line 152); expected one row for each image: average them first",
        ),
        (
            lambda s: s.assign(Mass=[np.nan, -np.inf, *s["Mass"][2:]]),
            CxrError,
            "2 of 150 rows have a score that is empty, NaN or infinite (first: {first}, column Mass); "
            "expected at most 1%: give them scores, or remove these rows or that column",
        ),
        (lambda s: s[:0], CxrError, "found a header and no rows; expected one row for each image"),
        (
            lambda s: s.assign(Image=s["image"]),
            UsageError,
            "found two columns of image names: image and Image; remove one",
        ),
    ],
)
def test_a_table_that_is_none_is_refused_in_one_line(scores, metadata, tmp_path, change, kind, message):
    path = written(change(scores), tmp_path / "s.csv")

    with pytest.raises(kind) as error:
        read_score_table(path, metadata)
    assert str(error.value) == f"{path}: {message.format(first=scores['image'][0])}"


def test_a_file_of_another_kind_or_none_is_refused(metadata, tmp_path):
    with pytest.raises(UsageError) as error:
        read_score_table(f"{tmp_path}/none.csv", metadata)
    assert str(error.value) == (
        f"{tmp_path}/none.csv: found no such file; `predictions` must name an existing file"
    )
    (tmp_path / "s.csv").write_bytes(b"7z\xbc\xaf\x27\x1c")
    with pytest.raises(UsageError) as error:
        read_score_table(f"{tmp_path}/s.csv", metadata)
    assert str(error.value) == (
        f"{tmp_path}/s.csv: found a 7z archive, which `predictions` cannot be; unpack it and name the right "
        "file in it"
    )
    (tmp_path / "s.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(CxrError, match="cannot be read as a table"):
        read_score_table(f"{tmp_path}/s.parquet", metadata)
    (tmp_path / "s.csv").write_text('image,Mass\n"a.png,0.5\n')
    with pytest.raises(CxrError, match="found what is no CSV"):
        read_score_table(f"{tmp_path}/s.csv", metadata)


# Files by their content


def test_a_file_is_known_by_its_first_bytes_and_not_by_its_name(scores, metadata, tmp_path):
    plain = scores.to_csv(index=False).encode()
    expected = read_score_table(written(scores, tmp_path / "scores.csv"), metadata).scores
    scores.to_parquet(tmp_path / "p.csv")
    (tmp_path / "plain.csv.gz").write_bytes(plain)
    (tmp_path / "packed.csv").write_bytes(gzip.compress(plain))
    (tmp_path / "marked").write_bytes(b"\xef\xbb\xbf" + plain)  # a byte order mark, as Excel writes
    (tmp_path / "p.csv.gz").write_bytes(gzip.compress((tmp_path / "p.csv").read_bytes()))

    scores.to_excel(tmp_path / "book.xlsx", index=False)
    (tmp_path / "book.xlsx").rename(tmp_path / "book.csv")
    with zipfile.ZipFile(tmp_path / "s.zip", "w") as archive:
        archive.writestr("scores.csv", plain)

    for name in ("p.csv", "plain.csv.gz", "packed.csv", "marked", "p.csv.gz", "book.csv", "s.zip"):
        found = read_score_table(f"{tmp_path}/{name}", metadata)
        np.testing.assert_allclose(found.scores, expected, rtol=1e-14)  # a workbook holds 15 digits


@pytest.mark.parametrize("separator", [";", "\t"])
def test_semicolons_and_tabs_separate_too(scores, metadata, tmp_path, separator):
    expected = read_score_table(written(scores, tmp_path / "scores.csv"), metadata)
    scores.to_csv(tmp_path / "other.csv", index=False, sep=separator, lineterminator="\r\n")

    found = read_score_table(f"{tmp_path}/other.csv", metadata)

    np.testing.assert_array_equal(found.scores, expected.scores)
    assert found.image_ids.tolist() == expected.image_ids.tolist()


@pytest.mark.parametrize(
    ("text", "place", "found", "header"),
    [
        ("image,Mass\na.png,0.5,\nb.png\n", "line 3", 1, 2),
        ("image,Mass\n\na.png,0.5,0.7\n", "line 3", 3, 2),
        ("image,Mass,\na.png\n", "line 2", 1, 2),
    ],
)
def test_a_row_that_is_shorter_or_longer_than_the_header_is_named(
    metadata, tmp_path, text, place, found, header
):
    (tmp_path / "s.csv").write_text(text)

    with pytest.raises(CxrError) as error:
        read_score_table(f"{tmp_path}/s.csv", metadata)
    assert str(error.value) == (
        f"{tmp_path}/s.csv, {place}: found {found} values where the first line has {header} columns; "
        "complete the line, or write the table again"
    )


# Cells


@pytest.mark.parametrize(
    "text", ["-", "0,5", "12%", "True", "NA", "1_5", "\u0661", "0.5 (low)", "none", "0x1", "1e"]
)
def test_a_score_that_is_no_number_is_named_by_line_column_and_text(scores, metadata, tmp_path, text):
    scores = scores.astype(object)
    scores.loc[7, "Hernia"] = "also bad"
    scores.loc[3, "Mass"] = text
    scores.loc[5, "Atelectasis"] = "bad too, but later"
    image = scores["image"][3]

    for path, place in ((tmp_path / "s.csv", "line 5"), (tmp_path / "s.parquet", "row 4")):
        table = scores if path.suffix == ".csv" else scores.astype(str)
        with pytest.raises(CxrError) as error:
            read_score_table(written(table, path), metadata)
        assert str(error.value) == (
            f"{path}, {place} (image {image!r}), column 'Mass': found {text!r}; "
            "expected a number such as 0.25, or an empty cell"
        )


@pytest.mark.parametrize("value", [True, b"0.5", [0.5], {"p": 0.5}], ids=["bool", "bytes", "list", "struct"])
def test_a_column_of_parquet_that_holds_no_numbers_is_refused(scores, metadata, tmp_path, value):
    scores["Mass"] = [value] * len(scores)

    with pytest.raises(CxrError) as error:
        read_score_table(written(scores, tmp_path / "s.parquet"), metadata)
    assert f"s.parquet, row 1 (image {scores['image'][0]!r}), column 'Mass': found {str(value)!r}; " in str(
        error.value
    )


def test_numbers_in_any_column_of_parquet_are_read(scores, metadata, tmp_path):
    expected = read_score_table(written(scores, tmp_path / "s.csv"), metadata).scores
    scores["Mass"] = scores["Mass"].map(repr)
    scores["Nodule"] = [Decimal(repr(value)) for value in scores["Nodule"]]
    scores["Edema"] = pd.Categorical(scores["Edema"])
    scores = scores.set_index("image")

    found = read_score_table(written(scores, tmp_path / "s.parquet"), metadata)

    np.testing.assert_array_equal(found.scores, expected)


@given(st.text(alphabet="0123456789.,-+eE_ %naif", max_size=6))
def test_a_cell_is_a_finite_number_a_missing_one_or_an_error(metadata, tmp_path_factory, text):
    folder = tmp_path_factory.mktemp("cell")
    names = metadata.table["image_id"]
    rows = [f"{name},{text if row == 120 else 0.5}".split(",", 1) for row, name in enumerate(names)]
    pd.DataFrame(rows, columns=["image", "Mass"]).to_csv(folder / "s.csv", index=False)

    try:
        value = float(text) if text.strip() else np.nan
        number = "_" not in text
    except ValueError:
        number = False
    if not number:
        with pytest.raises(CxrError, match=r"line 122 .* column 'Mass': found "):
            read_score_table(f"{folder}/s.csv", metadata)
        return
    table = read_score_table(f"{folder}/s.csv", metadata)
    held = dict(zip(table.image_ids, table.scores[:, 0], strict=True))
    assert held.get(names[120]) == (value if np.isfinite(value) else None)
    assert len(held) == len(names) - (not np.isfinite(value))


# Columns


def test_labels_beside_scores_are_not_read_and_that_is_said(scores, metadata, tmp_path):
    prefixed = scores.rename(columns={name: f"prob_{name}" for name in FINDINGS})
    labels = pd.DataFrame(metadata.findings, columns=list(FINDINGS))
    both = pd.concat([labels, prefixed.drop(columns="prob_Hernia")], axis=1)

    found = read_score_table(written(both, tmp_path / "s.csv"), metadata)

    assert found.names == FINDINGS[:-1]
    np.testing.assert_array_equal(found.scores, scores[list(FINDINGS[:-1])].to_numpy())
    assert found.warnings == (
        "columns of zeros and ones beside scores are taken for labels, and not read: Atelectasis, "
        "Cardiomegaly, Effusion, Infiltration, Mass, Nodule, ...",
        "no scores for Hernia",
    )


def test_columns_that_may_be_meant_for_a_finding_without_scores_are_named(scores, metadata, tmp_path):
    odd = {"Mass": "Mass_score", "Pleural_Thickening": "Pleural Thickning", "Hernia": "rupture"}

    found = read_score_table(written(scores.rename(columns=odd), tmp_path / "s.csv"), metadata)

    assert found.warnings == (
        "no scores for Mass, Pleural_Thickening, Hernia (columns of like names, which are not read: "
        "Mass_score, Pleural Thickning)",
    )


@pytest.mark.parametrize("columns", [("prob_Mass", "score_Mass"), ("Mass", "mass"), ("Mass", "prob_Mass")])
def test_two_columns_of_scores_for_one_finding_are_refused(scores, metadata, tmp_path, columns):
    one, other = columns
    table = scores[["image"]].assign(**{one: scores["Mass"], other: scores["Nodule"]})

    with pytest.raises(UsageError, match=f"found two columns of Mass: {one} and {other}; remove one$"):
        read_score_table(written(table, tmp_path / "s.csv"), metadata)


# Names of images


def test_a_scored_image_is_found_whatever_its_folder_and_ending(scores, metadata, tmp_path):
    names = scores["image"].tolist()
    forms = ("{}.dcm", "C:\\data\\{}.PNG", "s3://bucket/x/{}", " {}.jpeg ", "{}.DICOM")
    scores["image"] = [forms[i % 5].format(name[:-4]) for i, name in enumerate(names)]

    found = match(read_score_table(written(scores, tmp_path / "s.csv"), metadata), metadata, MULTILABEL, "")

    assert found.image_ids.tolist() == names
    assert found.warnings == ()


def test_two_rows_that_become_one_image_are_one_row_or_an_error(scores, metadata, tmp_path):
    name = scores["image"][2]
    twice = pd.concat([scores, scores.iloc[[2]].assign(image=f"{name[:-4]}.dcm")], ignore_index=True)

    found = read_score_table(written(twice, tmp_path / "s.csv"), metadata)
    assert found.image_ids.tolist() == scores["image"].tolist()
    assert found.warnings == ("1 rows stand twice: counted once",)
    with pytest.raises(CxrError) as error:
        read_score_table(written(twice.assign(Mass=range(151)), tmp_path / "s.csv"), metadata)
    assert f"(the first is {name}: {name} in line 4 and {name[:-4]}.dcm in line 152)" in str(error.value)


def test_a_row_without_a_name_is_refused(scores, metadata, tmp_path):
    scores.loc[3, "image"] = None

    for path, place in ((tmp_path / "s.csv", "line 5"), (tmp_path / "s.parquet", "row 4")):
        with pytest.raises(CxrError) as error:
            read_score_table(written(scores, path), metadata)
        assert str(error.value) == f"{path}, {place}: found no name of an image; expected one in each row"


def test_names_of_a_list_are_found_as_those_of_a_table_are(metadata):
    names = metadata.table["image_id"].tolist()

    assert listed_images([f"x/{names[0]}", names[0], names[1][:-4], "other.png"], metadata) == [
        *names[:2],
        "other.png",
    ]


# What scores say of themselves


def test_scores_of_two_values_of_one_or_equal_to_the_labels_are_said(scores, metadata, tmp_path):
    truth = pd.DataFrame(metadata.findings, columns=list(FINDINGS))
    scores["Mass"] = truth["Mass"]
    scores["Edema"] = (scores["Edema"] > 0.5).astype(int)
    scores["Nodule"] = 0.25 + 0.5 * truth["Nodule"]
    scores["Hernia"] = 0.5
    table = read_score_table(written(scores, tmp_path / "s.csv"), metadata)

    assert match(table, metadata, MULTILABEL, "").warnings == (
        "the scores of Mass equal the labels: no model's scores",
        "the scores of Nodule, Edema hold two values only: thresholded, no ranking; an AUROC of them is that "
        "of one operating point",
        "the scores of Hernia hold one value only: they rank nothing",
    )
    assert match(table, metadata, parse_task("binary:Effusion"), "").warnings == ()
    assert len(match(table, metadata, parse_task("multiclass"), "").warnings) == 3


def test_a_column_of_scores_that_was_written_twice_is_said(scores, metadata, tmp_path):
    scores["Nodule"] = scores["Hernia"] = scores["Mass"]
    table = read_score_table(written(scores, tmp_path / "s.csv"), metadata)

    assert match(table, metadata, MULTILABEL, "").warnings == (
        "the scores of Mass and Nodule and Hernia are the same for every image: one column was written twice",
    )


def test_scores_that_are_no_probabilities_serve_no_derived_task(scores, metadata, tmp_path):
    scores[list(FINDINGS)] = scores[list(FINDINGS)] * 10 - 5
    table = read_score_table(written(scores, tmp_path / "s.csv"), metadata)

    assert not match(table, metadata, parse_task("multilabel"), "").are_probabilities
    with pytest.raises(UsageError, match="can be derived from probabilities only"):
        match(table, metadata, parse_task("binary"), "")


def test_images_of_a_list_alone(scores, metadata, tmp_path):
    names = scores["image"].tolist()
    table = read_score_table(written(scores.iloc[:10], tmp_path / "s.csv"), metadata)

    found = match(table, metadata, parse_task("multilabel"), "", names[5:20])

    assert sorted(found.image_ids) == sorted(names[5:10])
    assert found.warnings == (f"10 of the 15 images of the test list have no scores (first: {names[10]})",)
    with pytest.raises(UsageError, match="found no scored image for task multilabel in `test_list`"):
        match(table, metadata, parse_task("multilabel"), "", names[30:])


def test_the_other_side_of_a_binary_task_has_what_is_left_to_one(scores, metadata, tmp_path):
    scores.loc[0, list(FINDINGS)] = 0.0
    scores.loc[1, list(FINDINGS)] = 1.0  # both are probabilities
    table = read_score_table(written(scores, tmp_path / "s.csv"), metadata)
    p, count = scores[list(FINDINGS)].to_numpy(), metadata.findings.sum(axis=1)
    effusion = FINDINGS.index("Effusion")
    against_none = (count == 0) | (metadata.findings[:, effusion] == 1)

    any_first = match(table, metadata, parse_task("binary:Effusion,No Finding"), "")
    np.testing.assert_allclose(any_first.scores[:, 0], 1 - p[against_none, effusion])
    assert any_first.labels[:, 0].tolist() == (count == 0)[against_none].astype(int).tolist()


def test_a_binary_task_needs_the_scores_of_its_own_findings_alone(scores, metadata, tmp_path):
    table = read_score_table(written(scores[["image", "Effusion"]], tmp_path / "s.csv"), metadata)

    assert match(table, metadata, parse_task("binary:Effusion"), "").names == ("Effusion",)
    for task in ("binary", "multiclass"):
        with pytest.raises(UsageError, match=f"^`task={task}`: found no scores for Atelectasis, "):
            match(table, metadata, parse_task(task), "")
