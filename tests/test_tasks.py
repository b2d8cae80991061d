import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cxr_records.errors import UsageError
from cxr_records.findings import FINDINGS, NO_FINDING, parse_findings
from cxr_records.splits import TEST, SplitOptions, make_splits
from cxr_records.tasks import as_task, parse_task

ALL_TASKS = ["binary", "binary:Pneumothorax", "binary:Mass,Nodule", "multiclass", "multilabel"]
IMAGES = ["No Finding", "Pneumothorax", "Pneumothorax|Mass", "Mass", "Nodule", "Mass|Nodule", "Edema|Hernia"]


def findings_of(*texts: str) -> np.ndarray:
    return np.stack([parse_findings(text) for text in texts])


def outcome(task: str, with_no_finding: bool = False) -> list[int | str]:
    """Returns the class name, or why it is left out, of each of IMAGES."""
    parsed = parse_task(task, with_no_finding)
    selection = parsed.select(findings_of(*IMAGES))
    return [
        parsed.class_names[label] if kept else f"left out: {reason}"
        for kept, label, reason in zip(selection.kept, selection.labels, selection.reasons, strict=True)
    ]


def test_binary_sets_any_finding_against_no_finding():
    assert outcome("binary") == ["No Finding", *["Any Finding"] * 6]
    assert parse_task("binary").class_names == ("No Finding", "Any Finding")


def test_binary_with_one_finding_leaves_out_the_images_with_others_only():
    other = "left out: another finding than Pneumothorax"

    assert outcome("binary:Pneumothorax") == [
        "No Finding",
        "Pneumothorax",
        "Pneumothorax",
        other,
        other,
        other,
        other,
    ]
    assert parse_task("binary:Pneumothorax").class_names == ("No Finding", "Pneumothorax")


def test_binary_with_two_findings_leaves_out_both_and_neither():
    neither = "left out: neither Mass nor Nodule"

    assert outcome("binary:Mass,Nodule") == [
        neither,
        neither,
        "Mass",
        "Mass",
        "Nodule",
        "left out: both Mass and Nodule",
        neither,
    ]
    assert parse_task("binary:Mass,Nodule").class_names == ("Mass", "Nodule")
    assert parse_task("binary:Nodule,Mass").class_names == ("Nodule", "Mass")


def test_no_finding_may_be_one_of_two_classes():
    assert parse_task("binary:No Finding,Mass") == parse_task("binary:Mass")
    assert parse_task("binary:Mass,No Finding").class_names == ("Mass", "No Finding")
    assert outcome("binary:Mass,No Finding") == [
        "No Finding",
        "left out: neither Mass nor No Finding",
        "Mass",
        "Mass",
        "left out: neither Mass nor No Finding",
        "Mass",
        "left out: neither Mass nor No Finding",
    ]


def test_multiclass_takes_images_with_exactly_one_finding():
    several = "left out: more than one finding"
    rest = ["Pneumothorax", several, "Mass", "Nodule", several, several]

    assert outcome("multiclass") == ["left out: no finding", *rest]
    assert outcome("multiclass", with_no_finding=True) == ["No Finding", *rest]
    assert parse_task("multiclass").class_names == FINDINGS
    assert parse_task("multiclass", True).class_names == (*FINDINGS, NO_FINDING)


def test_multilabel_takes_every_image_and_its_labels_are_the_findings():
    findings = findings_of(*IMAGES)
    selection = parse_task("multilabel").select(findings)

    assert selection.kept.all()
    assert selection.labels is findings
    assert selection.labels.tolist() == findings.tolist()
    assert selection.left_out() == {}


def test_images_left_out_are_counted_by_reason_most_first():
    findings = findings_of(*IMAGES)

    assert list(parse_task("binary:Mass,Nodule").select(findings).left_out().items()) == [
        ("neither Mass nor Nodule", 3),
        ("both Mass and Nodule", 1),
    ]
    assert parse_task("multiclass").select(findings).left_out() == {
        "more than one finding": 3,
        "no finding": 1,
    }


@pytest.mark.parametrize("text", ALL_TASKS)
def test_the_name_of_a_task_gives_the_task_again(text):
    task = parse_task(f" {text.replace(',', ' , ').replace(':', ': ')} ")

    assert task == parse_task(text) == parse_task(task.name)
    assert (task.name, task.kind) == (text, text.split(":")[0])
    assert task.label_shape == ((14,) if text == "multilabel" else ())


@pytest.mark.parametrize("text", ALL_TASKS)
@given(bits=st.lists(st.lists(st.integers(0, 1), min_size=14, max_size=14), max_size=30))
def test_every_image_has_either_a_label_of_the_task_or_a_reason(text, bits):
    findings = np.array(bits, np.uint8).reshape(-1, 14)
    task = parse_task(text)
    selection = task.select(findings)
    rows = task.class_rows(selection.labels)

    of_labels = np.uint8 if text == "multilabel" else np.int64
    assert (selection.kept.dtype, selection.labels.dtype, rows.dtype) == (np.bool_, of_labels, np.uint8)
    assert selection.labels.shape == (len(findings), *task.label_shape)
    assert rows.shape == (len(findings), len(task.class_names))
    assert (selection.kept == (selection.reasons == "")).all()
    assert sum(selection.left_out().values()) == (~selection.kept).sum()
    if task.kind != "multilabel":
        assert (rows.sum(axis=1) == selection.kept).all()
        assert (rows.argmax(axis=1) == selection.labels)[selection.kept].all()
        assert (selection.labels[~selection.kept] == -1).all()


@pytest.mark.parametrize(
    ("text", "with_no_finding", "message"),
    [
        (
            "multi-label",
            False,
            "found `task='multi-label'`; expected one of the forms binary, binary:Pneumothorax, "
            "binary:Mass,Nodule, multiclass, multilabel",
        ),
        (
            "multiclass:Mass",
            False,
            "found `task='multiclass:Mass'`; expected one of the forms binary, binary:Pneumothorax, "
            "binary:Mass,Nodule, multiclass, multilabel",
        ),
        (
            "binary:",
            False,
            "found `task='binary:'`; expected one finding or two after the colon: binary:Pneumothorax, "
            "binary:Mass,Nodule",
        ),
        (
            "binary:Mass,Nodule,Edema",
            False,
            "found `task='binary:Mass,Nodule,Edema'`; expected one finding or two after the colon: "
            "binary:Pneumothorax, binary:Mass,Nodule",
        ),
        (
            "binary:Pneumotorax",
            False,
            "found `task='binary:Pneumotorax'`: unknown finding 'Pneumotorax' (did you mean Pneumothorax?); "
            f"known: {', '.join(FINDINGS)}",
        ),
        (
            "binary:Mass,Mass",
            False,
            "found `task='binary:Mass,Mass'`, which sets Mass against itself; expected two classes",
        ),
        (
            "binary:No Finding",
            False,
            "found `task='binary:No Finding'`, which sets No Finding against itself; expected two classes",
        ),
        (
            "multilabel",
            True,
            "found `with_no_finding=True` with `task=multilabel`; it goes with `task=multiclass` only",
        ),
    ],
)
def test_a_wrong_task_is_refused_with_what_was_expected(text, with_no_finding, message):
    with pytest.raises(UsageError, match=f"^{re.escape(message)}$"):
        parse_task(text, with_no_finding)


def test_the_whole_task_stands_in_one_text():
    for text in ("binary", "binary:Mass", "binary:Mass,Nodule", "multiclass", "multilabel"):
        assert parse_task(text).text == text
    assert parse_task("multiclass", True).text == "multiclass:No Finding"
    assert parse_task(" multiclass : No Finding ") == parse_task("multiclass", True)


def test_a_task_of_another_set_has_its_findings():
    other = ("Fracture", "Edema", "Mass")
    task = parse_task("multiclass:No Finding", findings=other)

    assert task.class_names == (*other, NO_FINDING)
    assert task.select(np.array([[0, 1, 0], [0, 0, 0], [1, 1, 0]], np.uint8)).labels.tolist() == [1, 3, -1]
    assert parse_task("multilabel", findings=other).label_shape == (3,)
    assert parse_task("binary:Fracture", findings=other).class_names == (NO_FINDING, "Fracture")
    with pytest.raises(UsageError, match=r"unknown finding 'Nodule'; known: Fracture, Edema, Mass$"):
        parse_task("binary:Nodule", findings=other)


@given(st.text())
def test_any_text_is_a_task_or_a_wrong_use(text):
    try:
        task = parse_task(text)
    except UsageError:
        return
    assert parse_task(task.text) == task
    assert parse_task(task.name, task.with_no_finding) == task


@pytest.mark.parametrize(
    ("text", "train_val", "test"),
    [
        ("binary", [50_500, 36_024], [9_861, 15_735]),
        ("binary:Pneumothorax", [50_500, 2_637], [9_861, 2_665]),
        ("binary:Mass,Nodule", [3_447, 4_121], [1_429, 1_304]),
        (
            "multiclass",
            [3_414, 777, 2_788, 7_327, 1_696, 2_248, 234, 1_241, 829, 397, 587, 551, 817, 65],
            [801, 316, 1_167, 2_220, 443, 457, 88, 953, 481, 231, 305, 176, 309, 45],
        ),
        (
            "multilabel",
            [8_280, 1_707, 8_659, 13_782, 4_034, 4_708, 876, 2_637, 2_852, 1_378, 1_423, 1_251, 2_242, 141],
            [3_279, 1_069, 4_658, 6_112, 1_748, 1_623, 555, 2_665, 1_815, 925, 1_093, 435, 1_143, 86],
        ),
    ],
)
def test_the_real_table_has_the_known_number_of_images_per_class(nih, nih_v2020, text, train_val, test):
    lists = SplitOptions(str(nih / "train_val_list.txt.gz"), str(nih / "test_list.txt.gz"))
    in_test = make_splits(nih_v2020, lists).of_image == TEST
    task = parse_task(text)
    counted = [
        task.class_rows(task.select(nih_v2020.findings[rows]).labels).sum(axis=0).tolist()
        for rows in (~in_test, in_test)
    ]

    assert counted == [train_val, test]
    if text == "multiclass":
        assert (sum(train_val), sum(test)) == (22_971, 7_992)


def test_the_real_table_names_what_each_task_leaves_out(nih_v2020):
    findings = nih_v2020.findings

    assert parse_task("binary").select(findings).left_out() == {}
    assert parse_task("multiclass").select(findings).left_out() == {
        "no finding": 60_361,
        "more than one finding": 20_796,
    }
    assert parse_task("multiclass", True).select(findings).left_out() == {"more than one finding": 20_796}
    assert parse_task("binary:Pneumothorax").select(findings).left_out() == {
        "another finding than Pneumothorax": 46_457
    }
    assert parse_task("binary:Mass,Nodule").select(findings).left_out() == {
        "neither Mass nor Nodule": 100_913,
        "both Mass and Nodule": 906,
    }


def test_a_task_is_given_as_itself_or_in_words_of_the_set():
    task = parse_task("binary:Mass")

    assert as_task(task) is task
    assert as_task("binary:Mass") == task
    assert as_task("multilabel", ("Mass", "Edema")).class_names == ("Mass", "Edema")
