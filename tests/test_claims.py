"""What may be claimed of a result: official or not, by the images; leaks, by image and by patient."""

import dataclasses
import gzip
import re

import numpy as np
import pytest
from evaluations import make_predictions

from cxr_records.dataset import Dataset, open_dataset
from cxr_records.errors import CxrError
from cxr_records.findings import FINDINGS
from cxr_records.manifest import DuplicateImages
from cxr_records.splits import list_digest
from cxr_records.trainers.evaluation import claims
from cxr_records.trainers.evaluation.published import RESULTS, comparison


def opened_as(path, official: bool = True, sizes: tuple[int, ...] = ()) -> Dataset:
    """An open dataset whose manifest says that its splits are NIH's own, or that they have other sizes."""
    dataset = open_dataset(path)
    manifest = dataset.manifest
    origin = dataclasses.replace(manifest.split_origin, official=official)
    splits = dict(manifest.splits)
    for (name, info), images in zip(manifest.splits.items(), sizes, strict=False):
        splits[name] = dataclasses.replace(info, images=images)
    dataset.manifest = dataclasses.replace(manifest, split_origin=origin, splits=splits)
    return dataset


def test_a_split_is_official_by_its_images_and_not_by_its_name(dataset, monkeypatch):
    names = sorted(open_dataset(dataset).split("test").image_ids)
    monkeypatch.setattr(claims, "OFFICIAL_TEST", list_digest(names))
    official = opened_as(dataset)

    assert claims.claim_of_run(official, "test").official is True
    assert claims.claim_of_run(official, "validation").official is False
    other = claims.claim_of_run(opened_as(dataset, official=False), "test")
    assert other.official is False
    assert other.text.startswith("a test split that is not NIH's official one: ")
    monkeypatch.setattr(claims, "OFFICIAL_TEST", list_digest([*names, "one_more.png"]))
    part = claims.claim_of_run(official, "test")
    assert part.official is False
    assert part.text == f"{len(names)} of the 25,596 images of NIH's official test split, a part"


def test_the_official_images_stay_official_where_the_task_leaves_some_out(build, tmp_path, monkeypatch):
    build(tmp_path / "data", task="multiclass")
    build(tmp_path / "all")
    names = open_dataset(tmp_path / "all").split("test").image_ids
    monkeypatch.setattr(claims, "OFFICIAL_TEST", list_digest(list(names)))

    assert claims.claim_of_run(opened_as(tmp_path / "data"), "test").official is True


def test_the_sizes_of_chexnets_split_are_never_official(dataset):
    claim = claims.claim_of_run(opened_as(dataset, sizes=(78_468, 11_219, 22_433)), "test")

    assert claim.official is False
    assert "as many as in CheXNet's random split" in claim.text


def test_a_table_of_all_official_images_is_official(nih):
    names = gzip.decompress((nih / "test_list.txt.gz").read_bytes()).decode().split()

    assert claims.claim_of_table(names, None).official is True
    assert claims.claim_of_table(names[:-1], names).official is False


def test_the_splits_on_which_settings_are_chosen_are_called_that(dataset):
    claim = claims.claim_of_run(open_dataset(dataset), "validation")

    assert claim.text.startswith("the split validation, on which settings are chosen: ")
    assert claim.list_sha256 == list_digest(list(open_dataset(dataset).split("validation").image_ids))


@pytest.mark.parametrize(
    ("count", "test_list", "text"),
    [
        (
            22_433,
            None,
            "22,433 images, as many as in CheXNet's random split (78,468 / 11,219 / 22,433), which is",
        ),
        (3, "official", "3 of the 25,596 images of NIH's official test list, a part"),
        (3, "another", "3 images, not the 25,596 of NIH's official test list"),
        (3, None, "3 images, not the 25,596 of NIH's official test list"),
    ],
)
def test_a_table_is_what_its_images_are(monkeypatch, count, test_list, text):
    official = [f"{i}.png" for i in range(10)]
    monkeypatch.setattr(claims, "OFFICIAL_TEST", list_digest(official))
    chosen = {"official": official, "another": official[:-1], None: None}[test_list]

    claim = claims.claim_of_table([f"{i}.png" for i in range(count)], chosen)

    assert not claim.official
    assert claim.text.startswith(text)


def test_leaks_are_images_and_patients_of_the_training_split_alone(dataset):
    opened = open_dataset(dataset)
    train, test = opened.split("train"), opened.split("test")
    clean = dataclasses.replace(
        make_predictions(n=4), image_ids=test.image_ids[:4], patient_ids=test.patient_ids[:4]
    )
    patient = dataclasses.replace(clean, patient_ids=np.array([*test.patient_ids[:3], train.patient_ids[0]]))
    both = dataclasses.replace(patient, image_ids=np.array([*train.image_ids[:2], *test.image_ids[:2]]))

    assert claims.find_leaks(opened, clean) == ()
    said = (
        f"1 patients of the scored images are in the training split of {opened.path} "
        f"(first: {train.patient_ids[0]})"
    )
    assert claims.find_leaks(opened, patient) == (said,)
    assert claims.find_leaks(opened, both) == (
        f"2 of 4 scored images are among the training records of {opened.path} (first: {train.image_ids[0]})",
        said,
    )
    renamed = dataclasses.replace(both, image_ids=np.array([f"x/{n[:-4]}.DCM" for n in both.image_ids]))
    assert claims.find_leaks(opened, renamed)[0].startswith("2 of 4 scored images are among the training")


def with_duplicates(path, *groups: tuple[tuple[str, ...], tuple[str, ...]]) -> Dataset:
    """An open dataset whose manifest names pictures that it holds several times: (images, splits) of each."""
    dataset = open_dataset(path)
    duplicates = [
        DuplicateImages(images, splits, tuple(range(len(images))), "source") for images, splits in groups
    ]
    dataset.manifest = dataclasses.replace(dataset.manifest, duplicates=tuple(duplicates))
    return dataset


def test_a_scored_image_that_was_seen_under_another_name_is_a_leak(dataset):
    opened = open_dataset(dataset)
    test, train = opened.split("test"), opened.split("train")
    scored = dataclasses.replace(
        make_predictions(n=4), image_ids=test.image_ids[:4], patient_ids=test.patient_ids[:4]
    )
    a, b, c, d = test.image_ids[:4]
    seen, other = train.image_ids[0], opened.split("validation").image_ids[0]

    leaking = with_duplicates(dataset, ((a, seen), ("test", "train")), ((b, other), ("test", "validation")))
    assert claims.find_leaks(leaking, scored) == (
        f"2 of 4 scored images are the same picture as one that {dataset} trained or chose settings on "
        f"({a}, which is {seen} of train, {b}, which is {other} of validation)",
    )
    # One picture of two test patients, or of images that nobody scored, was seen by no model.
    harmless = with_duplicates(
        dataset, ((a, b), ("test", "test")), ((test.image_ids[5], seen), ("test", "train"))
    )
    assert claims.find_leaks(harmless, scored) == ()
    many = [((image, seen), ("test", "train")) for image in (a, b, c, d)]
    (leak,) = claims.find_leaks(with_duplicates(dataset, *many), scored)
    assert leak.startswith("4 of 4 scored images ")
    assert leak.endswith(" and 1 more)")


def test_a_split_is_told_by_no_damaged_table_of_what_was_left_out(copied_dataset):
    path = copied_dataset / "rejected.csv"
    path.write_text("image_id,split,reason,detail\n00000099_000.png,test,left out by the task,\n")

    with pytest.raises(CxrError) as error:
        claims.claim_of_run(open_dataset(copied_dataset), "test")
    assert str(error.value) == (
        f"{path} is damaged: its sha256 is not the manifest's; run cxr-records verify on the dataset"
    )


def test_validation_images_leak_from_the_training_split_alone(dataset):
    validation = open_dataset(dataset).split("validation")
    scored = dataclasses.replace(
        make_predictions(n=2), image_ids=validation.image_ids[:2], patient_ids=validation.patient_ids[:2]
    )
    a, b = validation.image_ids[:2]

    within = with_duplicates(dataset, ((a, b), ("validation", "validation")))
    assert claims.find_leaks(within, scored) == ()
    trained = with_duplicates(dataset, ((a, "x.png"), ("validation", "train")))
    assert "1 of 2 scored images are the same picture" in claims.find_leaks(trained, scored)[0]


@pytest.mark.parametrize(
    ("official", "task", "classes", "comparable"),
    [
        (True, "multilabel", FINDINGS, True),
        (False, "multilabel", FINDINGS, False),
        (True, "multilabel", FINDINGS[1:], False),
        (True, "binary:Mass", ("Mass",), False),
    ],
)
def test_published_results_compare_with_official_multilabel_ones_of_14_classes_alone(
    official, task, classes, comparable
):
    found = comparison(official, task, classes)

    assert found.comparable is comparable
    assert found.published == RESULTS


# Everything that a claim can say of the scored images, at its simplest.
SCORED = {
    "all 25,596 images of NIH's official test split; trained on official train_val": True,
    "all 25,596 images of NIH's official test list; the training images are unknown": True,
    "22,433 images, as many as in CheXNet's random split (78,468 / 11,219 / 22,433), which is not NIH's "
    "official one": False,
    "7 of the 25,596 images of NIH's official test split, a part": False,
    "7 of the 25,596 images of NIH's official test list, a part": False,
    "a test split that is not NIH's official one: split by patient with seed 0": False,
    "the split validation, on which settings are chosen: lists given": False,
    "100 images, not the 25,596 of NIH's official test list": False,
    "images of a split that is not known: cxr14: no such folder": False,
}


@pytest.mark.parametrize("scored", SCORED)
@pytest.mark.parametrize("task", ["multilabel", "binary:Mass,No Finding", "multiclass"])
@pytest.mark.parametrize("missing", [0, 1, 5])
@pytest.mark.parametrize("leaks", [False, True])
@pytest.mark.parametrize("drawn", [False, True])
def test_why_a_result_is_not_comparable_reads_as_english(scored, task, missing, leaks, drawn):
    found = comparison(SCORED[scored], task, FINDINGS[missing:], scored=scored, leaks=leaks, drawn=drawn)

    expected = []
    if not SCORED[scored]:
        expected.append(f"It is measured on {scored}.")
    if drawn:
        expected.append("Its images are drawings, and theirs are X-rays of patients.")
    if leaks:
        expected.append("Its model was trained on some of the test images, or of their patients.")
    if task != "multilabel":
        expected.append(f"Its task is {task}, and theirs is multilabel.")
    elif missing == 1:
        expected.append("Its mean is over 13 of the 14 findings, without Atelectasis; theirs is over all.")
    elif missing:
        expected.append(
            "Its mean is over 9 of the 14 findings, without Atelectasis, Cardiomegaly, Effusion and 2 more; "
            "theirs is over all."
        )
    assert found.reasons == tuple(expected)
    assert found.comparable is not bool(expected)


def test_claims_say_only_what_is_listed_above(dataset, monkeypatch):
    """So that no text of theirs is left out of the table."""
    kept = opened_as(dataset, official=False)
    names = sorted(open_dataset(dataset).split("test").image_ids)
    said = [claims.claim_of_run(kept, "test"), claims.claim_of_run(kept, "validation")]
    said += [claims.claim_of_run(opened_as(dataset), "test"), claims.claim_of_table(names, None)]
    said.append(claims.claim_of_run(opened_as(dataset, sizes=(78_468, 11_219, 22_433)), "test"))
    monkeypatch.setattr(claims, "OFFICIAL_TEST", list_digest(names))
    said += [claims.claim_of_run(opened_as(dataset), "test"), claims.claim_of_table(names, None)]
    said.append(claims.claim_of_table(names[:-1], names))

    def pattern(text: str) -> str:
        return re.sub(r"[\d,/ ]*\d", "#", text.split(":")[0])

    assert len({pattern(claim.text) for claim in said}) == 8
    assert {pattern(claim.text) for claim in said} < {pattern(text) for text in SCORED}
