import csv
import gzip
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cxr_records import sampling
from cxr_records.errors import UsageError
from cxr_records.findings import FINDINGS, parse_findings
from cxr_records.sampling import CopyRule, imbalance, records_per_image
from cxr_records.seeding import keyed_hash

NIH = Path(__file__).parents[2] / "shared" / "nih"


def rows(*counts):
    """One-hot rows, so many of each class, and ids for them."""
    classes = np.repeat(np.eye(len(counts), dtype=np.uint8), counts, axis=0)
    return classes, [f"{i:08d}_000.png" for i in range(len(classes))]


@pytest.fixture(scope="session")
def train_val():
    """The official train_val images of the v2020 table: uint8 [86524, 14] and their ids."""
    if not NIH.exists():
        pytest.skip("the NIH tables are not in ../shared/nih")
    with gzip.open(NIH / "train_val_list.txt.gz", "rt") as file:
        listed = set(file.read().split())
    with gzip.open(NIH / "Data_Entry_2017_v2020.csv.gz", "rt", newline="") as file:
        table = [(row[0], row[1]) for row in csv.reader(file) if row[0] in listed]
    return np.stack([parse_findings(findings) for _, findings in table]), [image_id for image_id, _ in table]


@pytest.mark.parametrize(
    ("rule", "records", "mean_ir", "max_ir", "hernia"),
    [
        (CopyRule("none"), 86_524, 12.79, 97.7, 141),
        (CopyRule("linear", 0.03, 10), 94_181, 4.78, 11.2, 1_410),
        (CopyRule("linear", 0.05, 10), 106_733, 4.02, 13.3, 1_410),
        (CopyRule("sqrt", 0.05), 94_206, 5.46, 19.9, 781),
    ],
)
def test_official_train_val_comes_out_as_published_within_a_percent(
    train_val, rule, records, mean_ir, max_ir, hernia
):
    classes, ids = train_val

    each = records_per_image(classes, FINDINGS, rule, ids, seed=0)
    balance = imbalance(classes, each, FINDINGS, rule)

    assert each.sum() == pytest.approx(records, rel=0.01)
    assert balance.mean_ir_after == pytest.approx(mean_ir, rel=0.01)
    assert balance.max_ir_after == pytest.approx(max_ir, rel=0.01)
    assert balance.classes[-1].records == pytest.approx(hernia, rel=0.01)
    assert balance.mean_ir_before == pytest.approx(12.79, rel=0.001)
    assert (each[~classes.any(axis=1)] == 1).all()


def test_fixed_takes_pneumonia_and_hernia_of_nih_through_ten_copies(train_val):
    classes, ids = train_val

    assert sampling.under_represented(classes, FINDINGS) == ("Pneumonia", "Hernia")
    each = records_per_image(classes, FINDINGS, CopyRule("fixed"), ids, seed=0)
    rare = classes[:, [FINDINGS.index("Pneumonia"), FINDINGS.index("Hernia")]].any(axis=1)
    assert set(each[rare]) == {11}
    assert set(each[~rare]) == {1}


def test_an_image_follows_its_rarest_finding():
    classes = np.zeros((1000, 3), np.uint8)
    classes[:300, 0] = 1
    classes[:10, 1] = 1  # 1% of the images, all of them with the first class too
    classes[300:303, 2] = 1
    ids = [str(i) for i in range(1000)]

    linear = records_per_image(classes, "abc", CopyRule("linear", 0.05, 10), ids, seed=0)
    assert linear[:10].tolist() == [5] * 10
    assert linear[300:303].tolist() == [10] * 3
    assert (linear[10:300] == 1).all()
    assert (linear[303:] == 1).all()
    assert linear.dtype == np.int64

    sqrt = records_per_image(classes, "abc", CopyRule("sqrt", 0.09, 10), ids, seed=0)
    assert sqrt[:10].tolist() == [3] * 10


def test_copies_of_some_classes_leave_the_others_alone():
    classes, ids = rows(900, 10, 10)
    for name in ("linear", "sqrt", "fixed"):
        each = records_per_image(classes, "abc", CopyRule(name, 0.1, 3, of=("c",)), ids, seed=0)
        assert (each[:910] == 1).all()
        assert set(each[910:]) == {4 if name == "fixed" else 3}


def test_fixed_gives_the_named_class_so_many_copies_beside_the_original():
    classes, ids = rows(2, 3)
    each = records_per_image(classes, "ab", CopyRule("fixed", max_records=10, of=("a",)), ids, seed=0)
    assert each.tolist() == [11, 11, 1, 1, 1]


def test_a_binary_task_copies_its_minority_alone():
    classes, ids = rows(990, 10)
    names = ["No Finding", "Pneumothorax"]
    for rule, expected in ((CopyRule(), 3), (CopyRule("fixed"), 11), (CopyRule("none"), 1)):
        each = records_per_image(classes, names, rule, ids, seed=0)
        assert set(each[:990]) == {1}
        assert set(each[990:]) == {expected}


def test_classes_of_nearly_equal_size_are_not_under_represented():
    classes, ids = rows(120, 100)
    assert sampling.under_represented(classes, "ab") == ()
    assert set(records_per_image(classes, "ab", CopyRule("fixed"), ids, seed=0)) == {1}


def test_a_mean_imbalance_of_three_halves_is_not_imbalanced_and_more_is():
    assert sampling.under_represented(rows(20, 10)[0], "ab") == ()
    assert sampling.under_represented(rows(21, 10)[0], "ab") == ("b",)


def test_a_class_at_the_mean_imbalance_is_not_under_represented():
    assert sampling.under_represented(rows(6, 3, 2)[0], "abc") == ("c",)  # IRLbl 1, 2, 3


def test_as_many_ids_as_images_are_needed():
    classes, ids = rows(2, 1)
    with pytest.raises(ValueError, match=r"^2 image ids for 3 rows of classes$"):
        records_per_image(classes, "ab", CopyRule(), ids[:2], seed=0)


def test_fractions_are_met_on_average():
    classes, ids = rows(9_000, 1_000)
    each = records_per_image(classes, "ab", CopyRule(target=0.23), ids, seed=0)
    assert set(each[9_000:]) == {2, 3}
    assert each[9_000:].mean() == pytest.approx(2.3, abs=0.05)
    assert not np.array_equal(each, records_per_image(classes, "ab", CopyRule(target=0.23), ids, seed=1))


@given(st.integers(1, 4), st.integers(0, 2**32), st.randoms(use_true_random=False))
def test_the_draw_of_an_image_does_not_depend_on_the_others(times, seed, random):
    """With the same frequencies the records are the same, whatever stands around and in what order."""
    classes, ids = rows(80, 20)
    rule = CopyRule(target=0.35)
    alone = dict(zip(ids, records_per_image(classes, "ab", rule, ids, seed), strict=True))

    more = [f"other-{i}" for i in range(times * 100)]
    both = list(zip(np.concatenate([classes] * (times + 1)), ids + more, strict=True))
    random.shuffle(both)
    together = records_per_image(np.stack([c for c, _ in both]), "ab", rule, [i for _, i in both], seed)

    found = {image_id: n for (_, image_id), n in zip(both, together, strict=True) if image_id in alone}
    assert found == alone


@given(
    st.lists(st.lists(st.integers(0, 1), min_size=3, max_size=3), max_size=30),
    st.sampled_from(sampling.RULES),
    st.floats(0.001, 0.999),
    st.integers(1, 12),
    st.integers(0, 9),
)
def test_records_stay_between_one_and_the_limit(labels, name, target, most, seed):
    classes = np.array(labels, np.uint8).reshape(-1, 3)
    rule = CopyRule(name, target, most)
    each = records_per_image(classes, "abc", rule, [str(i) for i in range(len(classes))], seed)

    assert ((each >= 1) & (each <= most + (name == "fixed"))).all()
    assert (each[~classes.any(axis=1)] == 1).all()
    balance = imbalance(classes, each, "abc", rule)
    assert [c.images for c in balance.classes] == classes.sum(axis=0).tolist()
    assert all(0 <= c.dragged <= 1 for c in balance.classes)
    json.dumps(balance.to_json(), allow_nan=False)


@given(
    st.lists(st.lists(st.integers(0, 1), min_size=3, max_size=3), min_size=1, max_size=40),
    st.sampled_from(sampling.RULES),
    st.sampled_from([0.01, 0.1, 0.3, 0.5, 0.9]),
    st.integers(1, 12),
    st.sampled_from([(), ("b",), ("a", "c")]),
    st.integers(0, 9),
)
def test_records_and_balance_are_those_of_plain_arithmetic(labels, name, target, most, of, seed):
    classes, ids = np.array(labels, np.uint8), [f"{i}.png" for i in range(len(labels))]
    rule = CopyRule(name, target, most, of)
    each = records_per_image(classes, "abc", rule, ids, seed)
    balance = imbalance(classes, each, "abc", rule)

    def ratios(counts):
        return [max(counts) / count if count else None for count in counts]

    def mean(values):
        known = [value for value in values if value is not None]
        return sum(known) / len(known) if known else None

    images = [sum(row[k] for row in labels) for k in range(3)]
    before = ratios(images)
    rare = [k for k in range(3) if images[k] and mean(before) > 1.5 and before[k] > mean(before)]
    asked = ["abc".index(letter) for letter in of] or (rare if name == "fixed" else [0, 1, 2])
    factors = [1.0] * 3
    for k in asked:
        if images[k] and name == "fixed":
            factors[k] = 1 + most
        elif images[k] and name != "none":
            ratio = target * len(labels) / images[k]
            factors[k] = min(max(ratio**0.5 if name == "sqrt" else ratio, 1), most)
    of_image = [max([1.0, *(factors[k] for k in range(3) if row[k])]) for row in labels]
    uniform = [keyed_hash(seed, image_id, "records") / 2**64 for image_id in ids]
    expected = [int(f) + (u < f - int(f)) for f, u in zip(of_image, uniform, strict=True)]
    records = [sum(row[k] * n for row, n in zip(labels, expected, strict=True)) for k in range(3)]

    assert each.tolist() == expected
    assert [(c.images, c.records) for c in balance.classes] == list(zip(images, records, strict=True))
    for k, found in enumerate(balance.classes):
        copies = sum(f - 1 for f, row in zip(of_image, labels, strict=True) if row[k])
        dragged = sum(f - factors[k] for f, row in zip(of_image, labels, strict=True) if row[k])
        assert found.dragged == pytest.approx(dragged / copies if copies else 0.0)
        assert (found.irlbl_before, found.irlbl_after) == (before[k], ratios(records)[k])
    for values, mean_ir, max_ir in (
        (before, balance.mean_ir_before, balance.max_ir_before),
        (ratios(records), balance.mean_ir_after, balance.max_ir_after),
    ):
        assert mean_ir == pytest.approx(mean(values))
        assert max_ir == max((value for value in values if value is not None), default=None)


def test_the_account_tells_before_after_and_what_was_dragged_along():
    classes = np.zeros((100, 3), np.uint8)
    classes[:50, 0] = 1
    classes[:1, 1] = 1  # with the first class
    classes[50:52, 1] = 1
    classes[:1, 2] = 1  # with both
    rule = CopyRule("linear", 0.06, 10)
    each = records_per_image(classes, "abc", rule, [str(i) for i in range(100)], seed=0)

    assert imbalance(classes, each, "abc", rule).to_json() == {
        "classes": {
            "a": {"images": 50, "records": 55, "irlbl": {"before": 1.0, "after": 1.0}, "dragged": 1.0},
            # The first image gets 6 records for c. b asks for 2 of each of its 3: for 3 of the 7 copies.
            "b": {"images": 3, "records": 10, "irlbl": {"before": 16.6667, "after": 5.5}, "dragged": 0.5714},
            "c": {"images": 1, "records": 6, "irlbl": {"before": 50.0, "after": 9.1667}, "dragged": 0.0},
        },
        "mean_ir": {"before": 22.5556, "after": 5.2222},
        "max_ir": {"before": 50.0, "after": 9.1667},
    }


def test_a_class_without_images_is_told_and_divides_nothing():
    classes, ids = rows(20, 0, 1)
    for name in sampling.RULES:
        each = records_per_image(classes, "abc", CopyRule(name, of=("b", "c")), ids, seed=0)
        empty = imbalance(classes, each, "abc", CopyRule(name)).classes[1]
        assert (empty.images, empty.records, empty.irlbl_before, empty.irlbl_after) == (0, 0, None, None)
    assert sampling.empty_classes_warning(["Hernia", "Edema"]) == (
        "no training image holds Hernia, Edema: nothing to copy and nothing to learn there; "
        "choose another split or task, or leave these classes out of the results"
    )
    assert sampling.empty_classes_warning(()) == ""


@pytest.mark.parametrize("name", sampling.RULES)
def test_a_class_without_images_asks_for_nothing(name):
    factors = sampling.class_factors(rows(20, 0, 1)[0], "abc", CopyRule(name, of=("b",)))
    assert factors.tolist() == [1, 1, 1]


def test_no_images_at_all_give_no_ratios():
    classes, ids = rows(0, 0)
    each = records_per_image(classes, "ab", CopyRule(), ids, seed=0)
    assert each.tolist() == []
    assert imbalance(classes, each, "ab", CopyRule()).mean_ir_after is None


def test_weights_even_out_the_records():
    weights = sampling.class_weights([80, 20, 0], 100)
    assert weights == [0.625, 2.5, 0.0]
    assert 80 * weights[0] == 20 * weights[1]
    assert sampling.class_weights([4, 1, 0], 5) == [0.625, 2.5, 0.0]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"rule": "liner"},
            "`copies=liner`: unknown rule (did you mean linear?); expected one of linear, sqrt, fixed, none",
        ),
        (
            {"target": 3.0},
            "`copies_target=3.0`: expected a share of the images above 0 and below 1; for 3% give 0.03",
        ),
        (
            {"target": float("nan")},
            "`copies_target=nan`: expected a share of the images above 0 and below 1; for 3% give 0.03",
        ),
        (
            {"max_records": 0},
            "`copies_max=0`: expected a whole number of at least 1; "
            "for no copies at all give `copies='none'`",
        ),
    ],
)
def test_a_rule_that_cannot_be_is_refused_while_constructing(values, message):
    with pytest.raises(UsageError) as caught:
        CopyRule(**values)
    assert str(caught.value) == message


@pytest.mark.parametrize("target", [0, 1, -0.1])
def test_the_ends_of_the_target_are_outside(target):
    with pytest.raises(UsageError, match="`copies_target"):
        CopyRule(target=target)


@pytest.mark.parametrize("name", sampling.RULES)
def test_an_unknown_class_is_refused_with_the_nearest_name(name):
    classes, ids = rows(3, 1)
    with pytest.raises(UsageError) as caught:
        records_per_image(classes, ["Mass", "Hernia"], CopyRule(name, of=("hernai",)), ids, seed=0)
    assert str(caught.value) == (
        "`copies_of=hernai`: no such class (did you mean Hernia?); expected one of this task's: Mass, Hernia"
    )


def test_one_name_may_stand_alone():
    assert CopyRule(of="Hernia").of == ("Hernia",)
    assert CopyRule(of=["Hernia", "Mass"]).of == ("Hernia", "Mass")
