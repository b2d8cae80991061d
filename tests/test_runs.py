"""What a run says of itself: written, read again, compared where a run goes on."""

import json
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest

from cxr_records import open as open_dataset
from cxr_records.errors import UsageError
from cxr_records.findings import FINDINGS
from cxr_records.tasks import parse_task
from cxr_records.trainers import runs
from cxr_records.trainers.config import TrainConfig

# As a run of version 0.1.0 has it.
BEFORE = {
    "format": "cxr_records run",
    "version": 1,
    "dataset": "/data/cxr14",
    "dataset_id": "0123456789abcdef0123456789abcdef",
    "task": "multiclass",
    "with_no_finding": True,
    "image_format": {"size": 224, "codec": "raw", "resample": "bilinear"},
    "config": TrainConfig(loss="logit_adjusted", epochs=3).to_json(),
    "classes": {
        name: {"records": 20 + i, "images": 10 + i} for i, name in enumerate((*FINDINGS, "No Finding"))
    },
    "train": {"records": 500, "images": 400},
    "versions": {"backend": "tensorflow", "keras": "3.15.1"},
}


@pytest.fixture
def before(tmp_path) -> Path:
    (tmp_path / "config.json").write_text(json.dumps(BEFORE))
    return tmp_path


def test_a_run_of_before_is_opened_and_says_the_same_again(before):
    run = runs.open_run(str(before))

    assert run.to_json() == BEFORE
    assert run.task == parse_task("multiclass", with_no_finding=True)
    assert run.score_names == (*FINDINGS, "No Finding")
    assert run.classes["Hernia"] == runs.ClassCount(records=33, images=23)
    assert (run.train_records, run.train_images) == (500, 400)
    assert run.config == TrainConfig(loss="logit_adjusted", epochs=3)
    assert run.file(runs.BEST_FILE) == f"{before}/checkpoints/best.npz"


def test_a_run_of_the_same_settings_goes_on_and_may_checkpoint_at_other_times(before):
    run, text = runs.open_run(str(before)), (before / "config.json").read_text()

    runs.begin(replace(run, config=replace(run.config, checkpoint_minutes=1.0), versions={}))

    assert (before / "config.json").read_text() == text


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"dataset_id": "f" * 32}, f"dataset_id {BEFORE['dataset_id']}, this command says {'f' * 32}"),
        ({"task": parse_task("multiclass")}, "with_no_finding True, this command says False"),
        ({"task": parse_task("multilabel")}, "task multiclass, this command says multilabel"),
    ],
)
def test_a_run_of_something_else_is_not_gone_on_with(before, changes, text):
    with pytest.raises(UsageError) as error:
        runs.begin(replace(runs.open_run(str(before)), **changes))
    assert str(error.value) == (
        f"`run={before}` holds a run with {text}; "
        "give the same options to go on with it, or name another folder"
    )


OTHERS = {
    "model": "resnet50", "weights": "imagenet", "loss": "ce", "loss_options": {"tau": 2.0}, "epochs": 4,
    "batch_size": 8, "learning_rate": 0.5, "warmup_epochs": 2.0, "weight_decay": 0.5, "clip_norm": 2.0,
    "dropout": 0.5, "augment": "light", "prior_bias": False, "patience": 1, "precision": "mixed_float16",
    "xla": "no", "deterministic": "no", "seed": 1, "ema": 0.5, "keep": "last", "min_positives": 5,
    "min_steps": 7, "sampling": "class_balanced", "retrain_epochs": 1,
}  # fmt: skip


def test_every_setting_but_the_time_between_checkpoints_must_stay(before):
    run = runs.open_run(str(before))
    assert {field.name for field in fields(TrainConfig)} - set(OTHERS) == {"checkpoint_minutes"}
    for key, value in OTHERS.items():
        with pytest.raises(UsageError) as error:
            runs.check(replace(run, config=replace(run.config, **{key: value})))
        assert f"holds a run with {key} {getattr(run.config, key)}, this command says {value};" in str(
            error.value
        )


def test_a_run_of_before_keeps_what_settings_were_that_had_no_name_then(tmp_path):
    named = {
        key: value
        for key, value in BEFORE["config"].items()
        if key not in ("ema", "keep", "min_positives", "min_steps")
    }
    (tmp_path / "config.json").write_text(json.dumps(BEFORE | {"config": named}))

    config = runs.open_run(str(tmp_path)).config

    assert (config.ema, config.keep, config.min_positives, config.min_steps) == (0, "best", 1, 0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", ": no JSON ("),
        ("[]", ": found no 'cxr_records run' of version 1"),
        (json.dumps(BEFORE | {"version": 2}), ": found no 'cxr_records run' of version 1"),
        (
            json.dumps({key: value for key, value in BEFORE.items() if key != "train"}),
            ": not as cxr-records train writes it (KeyError: 'train'); ",
        ),
        (
            json.dumps(BEFORE | {"config": {"epoch": 3}}),
            ": not as cxr-records train writes it (TypeError: ",
        ),
    ],
)
def test_a_config_that_is_none_is_refused_in_one_line(tmp_path, text, message):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(UsageError) as error:
        runs.open_run(str(tmp_path))
    assert str(error.value).startswith(f"{tmp_path}/config.json{message}")
    assert "\n" not in str(error.value)


def test_a_folder_without_a_run_says_what_makes_one(tmp_path):
    with pytest.raises(UsageError) as error:
        runs.open_run(str(tmp_path))
    assert str(error.value) == (
        f"{tmp_path} is no run: found no config.json in it; cxr-records train makes one"
    )


@pytest.mark.parametrize("task", ["binary:Effusion", "multiclass", "multilabel"])
def test_a_run_is_described_with_how_often_it_sees_each_class(dataset, task):
    derived = open_dataset(dataset).as_task(task)
    records = derived.split("train")
    run = runs.describe("run", derived, TrainConfig(), {"keras": "3"})

    def counted(place: int) -> tuple[int, int]:
        labels, original = records.labels, records.copies == 0
        of_class = labels[:, place] == 1 if labels.ndim == 2 else labels == place
        return int(of_class.sum()), int((of_class & original).sum())

    places = [1] if derived.task.kind == "binary" else range(len(derived.task.class_names))
    assert run.score_names == tuple(derived.task.class_names[place] for place in places)
    assert [(n.records, n.images) for n in run.classes.values()] == [counted(place) for place in places]
    assert list(run.classes) == list(run.score_names)
    assert (run.train_records, run.train_images) == (len(records), int((records.copies == 0).sum()))
    assert run.train_records > run.train_images
    assert (run.dataset, run.dataset_id, run.task) == (str(dataset), derived.id, derived.task)
    rows = runs.class_rows(derived.task, records.labels)
    np.testing.assert_array_equal(rows.sum(axis=0), [n.records for n in run.classes.values()])
