"""The model card: filled in from what is at hand, and never from what is not."""

import dataclasses

import numpy as np
import pytest
from evaluations import make_predictions

from cxr_records.dataset import open_dataset
from cxr_records.trainers import runs
from cxr_records.trainers.config import TrainConfig
from cxr_records.trainers.evaluation.model_card import card
from cxr_records.trainers.evaluation.results import Identity, ImageTable, SplitClaim

CLAIM = SplitClaim(False, "100 images, not the 25,596 of NIH's official test list", None)
# What no run and no table tells.
NEVER = [
    "Known inequalities in health", "Agreement between readers of the images",
    "External validation: images of other hospitals", "Comparison with radiologists (reader study)",
    "Effect in care, and what users must know", "Ethics approval", "Funding", "Conflicts of interest",
    "Study protocol and registration", "Involvement of patients and the public",
]  # fmt: skip


def identity(**changes) -> Identity:
    fields = dict.fromkeys(("run", "dataset", "dataset_id", "model"))
    fields |= {
        "name": "scores.csv",
        "task": "multilabel",
        "kind": "multilabel",
        "split": "test",
        "versions": {},
    }
    fields |= {"predictions_sha256": "1" * 64, "table": ImageTable("v2020", "0" * 64)}
    fields |= {"images": 60, "patients": 30, "draws": 20, "seed": 0}
    return Identity(**{**fields, **changes})


def answers(*arguments) -> dict[str, str | None]:
    return {item.topic: item.known for item in card(*arguments)}


@pytest.fixture
def run(dataset, tmp_path) -> runs.Run:
    config = TrainConfig(loss="focal", loss_options={"gamma": 1.5}, epochs=7, seed=3, patience=2)
    return runs.describe(
        str(tmp_path / "run"), open_dataset(dataset), config, {"keras": "3.5", "cxr_records": "9"}
    )


def test_of_a_table_from_elsewhere_most_is_not_known():
    found = answers(identity(), CLAIM, make_predictions())

    unknown = [topic for topic, known in found.items() if known is None]
    assert unknown == [
        "Which images take part", "Preparation of images", "Predictors", "Model output", "Model", "Software",
        "First weights", "Training", "Selection of the final model", "Class imbalance",
        "Data, for others to use", "Code, for others to use", *NEVER,
    ]  # fmt: skip
    assert found["Kind of study"] == (
        "Evaluation of the scores in scores.csv, whose model is not known; task multilabel; retrospective."
    )
    assert "of one hospital, the NIH Clinical Center" in found["Data source and setting"]
    assert found["Patients of the scored images"] == (
        "60 images of 30 patients; by image: view AP 33%, PA 67%; sex F 50%, M 50%; age 29 years (middle "
        "half 14 to 44)."
    )


def test_of_a_run_everything_that_it_tells_is_filled_in(run, dataset):
    opened = open_dataset(dataset)
    named = identity(run=run.path, dataset=opened.path, dataset_id=opened.id, drawn="all")

    found = answers(named, CLAIM, make_predictions(), run, opened)

    assert [topic for topic, known in found.items() if known is None] == NEVER
    assert found["Data source and setting"].startswith("Images drawn by cxr_records")
    assert found["Reference standard"] == "The findings that were drawn."
    assert found["Dates of the data"] == "None: the images are drawn."
    assert found["Limitations"] == "The images are drawn: nothing here holds of patients."
    assert found["Preparation of images"].startswith("8-bit grey, 32 x 32 pixels (bilinear), stored as raw;")
    assert found["First weights"] == "Random, seed 3."
    for setting in ("AdamW; loss focal, ", ", epochs 7, ", ", batch_size 64, ", ", seed 3", ", gamma 1.5."):
        assert setting in found["Training"]
    assert "training ends 2 epochs after it" in found["Selection of the final model"]
    copies = opened.splits["train"].copies
    assert found["Class imbalance"] == (
        f"Loss focal; {copies} augmented copies of images with rare findings in training by the rule linear."
    )
    assert found["Code, for others to use"] == "cxr_records 9, Apache License 2.0."
    counts = "".join(
        f"{name} {split.images:,} images of {split.patients:,} patients, "
        for name, split in opened.splits.items()
    )
    assert counts.removesuffix(", ") in found["Sample size"]
    assert found["Which images take part"] == "150 of the 150 images of the table; left out: none."


def test_a_run_whose_dataset_is_gone_tells_less(run):
    found = answers(identity(run=run.path, drawn="all"), CLAIM, make_predictions(), run, None)

    assert found["Which images take part"] is None
    assert found["Sample size"] == "No calculation: all images at hand. Scored: 60 images of 30 patients."
    assert found["Model"].startswith("small_cnn; takes one grey image")


def test_weights_are_counted_from_the_best_checkpoint(run, tmp_path):
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    arrays = {"model/a": np.zeros((20, 60)), "model/b": np.zeros(34), "optimizer/0000": np.zeros(9)}
    np.savez(tmp_path / "run" / runs.BEST_FILE, **arrays)

    known = answers(identity(run=run.path), CLAIM, make_predictions(), run, None)["Model"]

    assert known == "small_cnn, 1,234 weights; takes one grey image of 32 x 32 pixels."
    (tmp_path / "run" / runs.BEST_FILE).write_bytes(b"damaged")
    damaged = answers(identity(run=run.path), CLAIM, make_predictions(), run, None)["Model"]
    assert damaged == "small_cnn; takes one grey image of 32 x 32 pixels."


@pytest.mark.parametrize(
    ("table", "drawn"),
    [(None, "none"), (ImageTable("other", "0" * 64), "none"), (ImageTable("v2020", "0" * 64), "some")],
)
def test_of_tables_that_are_not_nihs_nothing_of_nih_is_said(table, drawn):
    found = answers(identity(table=table, drawn=drawn), CLAIM, make_predictions())

    for topic in ("Data source and setting", "Dates of the data", "De-identification", "Reference standard"):
        assert found[topic] is None, topic


def test_unknown_views_sexes_and_ages_are_not_told():
    blank = np.array([""] * 60, object)
    scored = dataclasses.replace(make_predictions(), views=blank, sexes=blank, ages_years=np.full(60, -1))

    found = answers(identity(), CLAIM, scored)

    assert found["Patients of the scored images"] == "60 images of 30 patients."
    assert found["How images were taken"] == "Frontal, view not known; devices and settings are not known."


def test_every_number_of_an_item_is_one_that_the_guidelines_have():
    found = card(identity(), CLAIM, make_predictions())

    tripod_ai = {number for item in found for number in item.tripod_ai.split(", ") if number}
    claim = {number for item in found for number in item.claim.split(", ") if number}
    lettered = {"3": "abc", "5": "ab", "6": "abc", "8": "abc", "9": "abc", "12": "abcdefg", "18": "abcdef",
                "20": "abc", "23": "ab", "27": "abc"}  # fmt: skip
    have = {f"{n}{letter}" for n in map(str, range(1, 28)) for letter in lettered.get(n, [""])}
    assert tripod_ai <= have
    assert claim <= set(map(str, range(1, 45)))
