"""Settings of a run: presets, changes by key=value, and what is refused."""

import dataclasses
import re
from pathlib import Path

import pytest

from cxr_records.errors import UsageError
from cxr_records.trainers import presets
from cxr_records.trainers.config import TrainConfig, change, preset_names, read_preset


def test_presets_are_those_of_the_folder():
    assert preset_names() == [
        "convnext_tiny", "densenet121", "efficientnet_lite0", "efficientnetv2b0", "resnet50", "small_cnn"
    ]  # fmt: skip


@pytest.mark.parametrize("name", preset_names())
def test_a_preset_is_a_config_and_begins_with_command_machine_hours_and_expected_result(name):
    assert isinstance(read_preset(name), TrainConfig)
    text = (Path(presets.__path__[0]) / f"{name}.py").read_text()
    assert f"--preset {name}" in text.split('"""')[1]
    for word in ("Machine: ", "Hours: ", "Expected: "):
        assert f"\n{word}" in text.split('"""')[1]


def test_a_preset_that_is_not_there_is_answered_with_the_nearest():
    with pytest.raises(UsageError) as error:
        read_preset("densenet")
    assert str(error.value) == (
        "`preset=densenet`: no such preset (did you mean densenet121?); expected one of "
        "convnext_tiny, densenet121, efficientnet_lite0, efficientnetv2b0, resnet50, small_cnn, "
        "or a file that defines CONFIG, such as mine.py"
    )


def test_changes_take_the_kind_of_their_setting_and_the_last_wins():
    config = change(
        TrainConfig(),
        [
            "epochs=3",
            "learning_rate=1e-4",
            "prior_bias=no",
            "loss=focal",
            "loss_options.gamma=1.5",
            "loss_options.alpha=0.25",
            "epochs=4",
        ],
    )

    assert config == TrainConfig(
        epochs=4,
        learning_rate=1e-4,
        prior_bias=False,
        loss="focal",
        loss_options={"gamma": 1.5, "alpha": 0.25},
    )
    assert [type(value) for value in (config.epochs, config.prior_bias)] == [int, bool]


def test_a_config_comes_back_from_its_json():
    config = change(TrainConfig(), ["loss_options.tau=0.5", "seed=7"])

    assert TrainConfig(**config.to_json()) == config


def test_the_type_of_every_setting_is_one_that_can_be_given_as_text():
    kinds = {field.name: field.type for field in dataclasses.fields(TrainConfig)}
    assert set(kinds.values()) == {str, int, float, bool, dict[str, float]}


def test_every_setting_is_explained():
    explained = re.findall(r"^        (\w+): ", TrainConfig.__doc__.split("Raises:")[0], re.MULTILINE)
    assert explained == [field.name for field in dataclasses.fields(TrainConfig)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("epochs", "`changes=epochs`: expected key=value, such as epochs=5"),
        ("epochs=few", "`epochs=few`: expected a whole number"),
        ("learning_rate=x", "`learning_rate=x`: expected a number"),
        ("prior_bias=maybe", "`prior_bias=maybe`: expected true or false"),
        ("epochs=0", "`epochs=0`: expected at least 1"),
        ("dropout=nan", "`dropout=nan`: expected at least 0"),
        ("dropout=1", "`dropout=1.0`: expected a share below 1"),
        ("learning_rate=0", "`learning_rate=0.0`: expected a number above 0"),
        (
            "precision=mixed_float",
            "`precision=mixed_float`: unknown (did you mean mixed_float16?); "
            "expected one of float32, mixed_bfloat16, mixed_float16",
        ),
        (
            "loss_options=3",
            "`changes=loss_options=3`: expected loss_options.NAME=VALUE, such as loss_options.gamma=2",
        ),
    ],
)
def test_a_wrong_change_is_refused(text, message):
    with pytest.raises(UsageError) as error:
        change(TrainConfig(), [text])
    assert str(error.value) == message


def test_a_mistyped_key_is_answered_with_the_nearest():
    with pytest.raises(UsageError) as error:
        change(TrainConfig(), ["learning_rte=1"])
    assert str(error.value).startswith(
        "`changes=learning_rte`: no such setting (did you mean learning_rate?); known: model, weights, loss, "
    )
