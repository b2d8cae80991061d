"""Metadata alone, the view alone, and ranking within a view: against known figures and other computations."""

import dataclasses

import numpy as np
import pytest
from evaluations import NAMES, make_predictions
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from cxr_records.dataset import open_dataset
from cxr_records.findings import FINDINGS
from cxr_records.names import follow_up_in_name
from cxr_records.splits import read_list
from cxr_records.tasks import parse_task
from cxr_records.trainers.evaluation import baselines
from cxr_records.trainers.evaluation.baselines import CellRanking, Facts, Training, WithinRanking, fitted
from cxr_records.trainers.evaluation.evaluate import evaluate
from cxr_records.trainers.evaluation.metrics import Ranking, auroc
from cxr_records.trainers.evaluation.results import Baseline, Baselines, Interval
from cxr_records.trainers.evaluation.tables import match, read_score_table


def once(rows: int) -> np.ndarray:
    return np.ones((rows, 1), np.int64)


def make_facts(n: int = 300, seed: int = 0) -> Facts:
    """Two images of each patient, of whom a fifth is known by half."""
    random = np.random.default_rng(seed)
    return Facts(
        random.choice(np.array(["PA", "AP", ""], object), n),
        random.choice(np.array(["F", "M", ""], object), n),
        random.integers(-1, 95, n),
        random.integers(-1, 60, n),
        np.arange(n) // 2,
    )


def make_labels(facts: Facts, seed: int = 0) -> np.ndarray:
    """A class of AP and many follow-ups, and one of the old."""
    noise = np.random.default_rng(seed).random((2, len(facts.views)))
    sick = noise[0] < 0.15 + 0.5 * (facts.views == "AP") * (facts.follow_ups > 5)
    return np.stack([sick, noise[1] < facts.ages_years / 100], axis=1).astype(np.int64)


# Real figures


def test_metadata_alone_reach_63_on_the_official_test_images(nih, nih_v2020):
    table = nih_v2020.table
    test = table["image_id"].isin(read_list(str(nih / "test_list.txt.gz"), "test_list")).to_numpy()

    def facts(rows: np.ndarray, follow_ups: np.ndarray) -> Facts:
        some = table[rows]
        texts = (some[name].to_numpy(object) for name in ("view", "sex"))
        return Facts(*texts, some["age_years"].to_numpy(), follow_ups[rows], some["patient_id"].to_numpy())

    def areas(follow_ups: np.ndarray, known) -> np.ndarray:
        asked, labels = facts(test, follow_ups), nih_v2020.findings
        scores, cells = fitted(known(facts(~test, follow_ups)), labels[~test], known(asked), None)
        return CellRanking(labels[test], scores, cells).auroc(once(test.sum()))[0]

    assert test.sum() == 25_596
    told = np.array([follow_up_in_name(name) for name in table["image_id"]])
    assert (told != table["follow_up"]).sum() == 24_106
    assert areas(table["follow_up"].to_numpy(), Facts.metadata).mean() == pytest.approx(0.630, abs=0.0005)
    assert areas(told, Facts.metadata).mean() == pytest.approx(0.628, abs=0.0005)
    by_view = dict(zip(FINDINGS, areas(told, Facts.view), strict=True))
    known = {
        "Edema": 0.681,
        "Consolidation": 0.618,
        "Infiltration": 0.605,
        "Pneumonia": 0.572,
        "Hernia": 0.697,
    }
    assert {name: by_view[name] for name in known} == pytest.approx(known, abs=0.001)


def test_the_public_densenet_is_worse_within_a_view_and_far_above_metadata(nih, nih_v2020):
    table = read_score_table(str(nih / "densenet121_predictions.csv.gz"), nih_v2020)

    found = evaluate(match(table, nih_v2020, parse_task("multilabel"), "test"), draws=0)

    assert found.macro_auroc.value == pytest.approx(0.838, abs=0.0005)
    assert found.within_view.macro_auroc.value == pytest.approx(0.824, abs=0.0005)
    assert found.within_view.macro_lost.value == pytest.approx(0.0143, abs=0.0001)
    assert found.auroc["Edema"].value == pytest.approx(0.894, abs=0.001)
    assert found.within_view.auroc["Edema"].value == pytest.approx(0.836, abs=0.001)
    assert found.within_view.images == 22_433
    assert found.baselines.fitted_on == "the scored images, cross-fitted by patient in 5 folds"
    assert found.baselines.follow_up_numbers == "of the table"
    assert found.baselines.metadata.knows_text == "view, sex, age and follow-up number"
    assert found.baselines.metadata.macro_auroc.value == pytest.approx(0.655, abs=0.001)
    assert found.baselines.view.macro_auroc.value == pytest.approx(0.565, abs=0.001)
    assert not any("metadata alone" in warning for warning in found.warnings)


# Ranking


@st.composite
def tables(draw):
    """Labels (of which some are not known), scores with ties, views, weights of two draws."""
    n = draw(st.integers(2, 25))
    whole = lambda low, high, shape: draw(arrays.arrays(np.int64, shape, elements=st.integers(low, high)))  # noqa: E731
    views = np.array(["PA", "AP", ""], object)[whole(0, 2, n)]
    return whole(-1, 1, n), whole(0, 5, n) / 5, views, whole(0, 3, (n, 2))


@given(tables())
def test_within_views_every_pair_of_one_view_counts_once_ties_half(table):
    labels, scores, views, weights = table
    found = WithinRanking(labels, scores, views).auroc(weights)

    for draw, weight in enumerate(weights.T):
        ordered = pairs = 0
        for i in np.flatnonzero((labels == 1) & (views != "")):
            for j in np.flatnonzero((labels == 0) & (views == views[i])):
                pairs += weight[i] * weight[j]
                ordered += weight[i] * weight[j] * (np.sign(scores[i] - scores[j]) + 1) / 2
        assert found[draw] == pytest.approx(ordered / pairs if pairs else np.nan, nan_ok=True)


@given(tables())
def test_scores_by_cell_rank_as_the_scores_of_their_rows_do(table):
    labels, scores, _, weights = table
    cell_scores = np.arange(8)[:, np.newaxis] % 3 / 2  # several cells of one score
    cells = (scores * 7).astype(int)

    found = CellRanking(labels[:, np.newaxis], cell_scores, cells).auroc(weights)[:, 0]

    assert found == pytest.approx(Ranking(labels, cell_scores[cells, 0]).counts(weights).auroc(), nan_ok=True)


# Fitting


def test_cells_are_scored_as_a_regression_on_every_image_scores_them():
    facts, asked = make_facts(), make_facts(seed=1)
    labels = make_labels(facts)

    scores, cells = fitted(facts.metadata(), labels, asked.metadata(), None)

    for place in range(2):
        model = LogisticRegression(solver="newton-cholesky", tol=1e-8).fit(facts.metadata(), labels[:, place])
        odds = asked.metadata() @ model.coef_[0]
        mean = (facts.metadata() @ model.coef_[0]).mean()
        assert scores[cells, place] == pytest.approx(odds - mean, abs=1e-5)


def test_what_is_known_of_an_image_is_one_value_of_each_fact():
    facts = Facts(
        np.array(["AP", "", "PA"], object),
        np.array(["M", "F", ""], object),
        np.array([80, -1, 17]),
        np.array([0, 4, -1]),
        np.arange(3),
    )

    found = ["".join(map(str, row)) for row in facts.metadata().astype(int)]

    assert found == ["010010000001010000000", "001100100000000010000", "100001010000100000000"]
    assert facts.view().astype(int).tolist() == [[0, 1, 0], [0, 0, 1], [1, 0, 0]]
    assert facts.known == ("view", "sex", "age", "follow-up number")


def test_no_patient_is_scored_by_a_fit_on_its_own_labels():
    facts = make_facts()
    known, labels, folds = facts.metadata(), make_labels(facts), baselines._folds(facts.patient_ids)
    before, cells = fitted(known, labels, known, folds)

    assert all(len(set(folds[facts.patient_ids == patient])) == 1 for patient in range(150))
    assert set(folds) == set(range(5))
    for fold in range(5):
        changed = labels.copy()
        changed[folds == fold] = 1 - changed[folds == fold]
        after, _ = fitted(known, changed, known, folds)
        same = (after[cells] == before[cells]).all(axis=1)
        assert same[folds == fold].all()
        assert not same[folds != fold].any()


def test_a_class_that_cannot_be_fitted_ranks_nothing():
    facts = make_facts(60)
    labels = make_labels(facts)
    labels[:, 0] = 0

    scores, _ = fitted(facts.metadata(), labels, facts.metadata(), None)

    assert (scores[:, 0] == 0).all()
    assert (scores[:, 1] != 0).any()


# Evaluations


def test_baselines_of_a_run_are_fitted_on_the_originals_of_its_training_split(dataset):
    opened = open_dataset(dataset)
    records = opened.split("train")
    scored = make_predictions(n=200)

    training = baselines.training_of(opened, FINDINGS)
    binary = baselines.training_of(opened.as_task("binary"), ["Any Finding"])

    originals = records.copies == 0
    assert 0 < originals.sum() < len(records)
    assert (training.labels == records.labels[originals]).all()
    assert (training.facts.views == records.views[originals]).all()
    assert training.facts.follow_ups.tolist() == [
        int(name[9:12]) for name in records.image_ids[originals].tolist()
    ]
    assert (binary.labels[:, 0] == training.labels.any(axis=1)).all()
    of_three = Training(training.facts, training.labels[:, :3])
    found = evaluate(scored, draws=0, training=of_three).baselines
    assert found.fitted_on == f"{originals.sum()} original images of the training split"
    scores, cells = fitted(of_three.facts.view(), of_three.labels, np.eye(3, dtype=bool)[[1, 0]], None)
    by_view = np.where(scored.views == "AP", scores[cells[0], 0], scores[cells[1], 0])
    assert found.view.auroc["Mass"].value == pytest.approx(
        roc_auc_score(scored.labels[:, 0], by_view), abs=1e-6
    )


@pytest.mark.parametrize("kind", ["multilabel", "multiclass", "binary"])
def test_differences_are_those_of_the_two_and_their_intervals_of_the_same_draws(kind):
    scored = make_predictions(kind, NAMES[:1] if kind == "binary" else NAMES, n=200)

    found = evaluate(scored, draws=100)

    for other, added, macro_added in (
        (found.baselines.metadata, found.baselines.metadata.added, found.baselines.metadata.macro_added),
        (found.baselines.view, found.baselines.view.added, found.baselines.view.macro_added),
        (found.within_view, found.within_view.lost, found.within_view.macro_lost),
    ):
        assert set(other.auroc) == set(scored.names)
        for name, area in found.auroc.items():
            assert added[name].value == pytest.approx(area.value - other.auroc[name].value, abs=2e-6)
            assert added[name].low < added[name].value < added[name].high
        change = found.macro_auroc.value - other.macro_auroc.value
        assert macro_added.value == pytest.approx(change, abs=2e-6)
    # Drawn apart, the interval would be as wide as both together.
    lost, area = found.within_view.macro_lost, found.macro_auroc
    assert lost.high - lost.low < area.high - area.low


def test_a_class_without_positives_is_in_no_baseline_and_in_no_mean():
    scored = make_predictions()
    scored.labels[:, 1] = 0

    found = evaluate(scored, draws=10)

    for each in (found.baselines.metadata, found.baselines.view, found.within_view):
        assert each.auroc["Nodule"] == Interval(None)
        others = [area.value for area in each.auroc.values() if area.value is not None]
        assert each.macro_auroc.value == pytest.approx(np.mean(others), abs=1e-6)
    assert found.within_view.lacks == ()


def test_a_class_of_one_view_alone_has_no_pairs_within_it():
    scored = make_predictions()
    scored.labels[:, 1] = scored.views == "AP"

    found = evaluate(scored, draws=0)

    assert found.within_view.auroc["Nodule"].value is None
    assert found.within_view.lacks == ("Nodule",)
    assert found.within_view_over == " (2 of 3 classes: no Nodule)"
    assert found.baselines.view.auroc["Nodule"].value == 1


def test_where_nothing_is_known_of_the_images_there_is_no_baseline():
    scored = make_predictions(n=20)
    unknown = dataclasses.replace(
        scored,
        image_ids=np.array([f"x{place}.png" for place in range(20)], object),
        views=np.full(20, "", object),
        sexes=np.full(20, "", object),
        ages_years=np.full(20, -1),
    )

    found = evaluate(unknown, draws=0)

    assert found.baselines == Baselines(
        "the scored images, cross-fitted by patient in 5 folds", "none", None, None
    )
    assert found.within_view.images == 0
    assert found.within_view.macro_auroc == Interval(None)
    only_sex = evaluate(dataclasses.replace(unknown, sexes=scored.sexes), draws=0).baselines
    assert only_sex.metadata.knows == ("sex",)
    assert only_sex.view is None


def test_a_model_that_knows_no_more_than_metadata_is_told_so():
    scored = make_predictions(n=400)
    scored.labels[:] = (scored.views == "AP")[:, np.newaxis]
    flip = np.random.default_rng(1).random(scored.labels.shape) < 0.2
    scored.labels[flip] = 1 - scored.labels[flip]
    scored.scores[:, 1] = 0.1 + 0.8 * scored.labels[:, 1]

    found = evaluate(scored, draws=100)

    metadata = found.baselines.metadata
    added = metadata.macro_added
    assert auroc(scored.labels[:, 0], scored.scores[:, 0]) < metadata.auroc["Mass"].value
    assert found.warnings[-2:] == (
        f"the macro AUROC of {found.macro_auroc.value:.3f} is not shown to be above that of metadata alone, "
        f"without a pixel, {metadata.macro_auroc.value:.3f} (difference {added.value:+.3f} "
        f"[{added.low:+.3f}, {added.high:+.3f}])",
        "not shown to be above metadata alone: Mass, Hernia",
    )


@pytest.mark.parametrize(
    ("added", "said"),
    [
        (Interval(0.03, -0.01, 0.07), True),
        (Interval(0.03, 0.01, 0.05), False),
        (Interval(0.03), False),  # without draws the value alone decides
        (Interval(-0.03), True),
        (Interval(None), False),
    ],
)
def test_the_interval_decides_whether_a_model_is_above_metadata(added, said):
    metadata = Baseline(("view",), Interval(0.6), {}, added, {})

    found = baselines.warnings_of(Baselines("", "", metadata, None), Interval(0.63))

    assert bool(found) == said
