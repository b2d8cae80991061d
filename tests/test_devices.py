"""Devices: which words name them, which batches they split. Training on several is in test_train.py."""

import pytest

from cxr_records.errors import CxrError, UsageError
from cxr_records.trainers.devices import Devices, choose_devices


@pytest.mark.parametrize("text", ["gpu:0", "auto:2", "cuda", "cpu:", "cpu:two", "gpu:-1", "", "cpu,gpu"])
def test_another_form_is_refused(text):
    with pytest.raises(UsageError) as error:
        choose_devices(text)
    assert str(error.value) == (
        f"found `devices={text}`; expected auto, cpu, gpu, tpu, or a kind with a number such as gpu:2"
    )


def test_one_cpu_needs_no_strategy():
    found = choose_devices("cpu")

    assert (found.kind, found.count, found.num_hosts, found.strategy) == ("cpu", 1, 1, None)
    assert found.text == "1 CPU"


def test_gpus_that_are_not_there_are_an_error_with_counts():
    import tensorflow as tf

    count = len(tf.config.list_physical_devices("GPU"))
    with pytest.raises(CxrError) as error:
        choose_devices(f"gpu:{count + 1}")
    assert str(error.value) == (f"found {count} GPUs that TensorFlow can use, `devices` asks for {count + 1}")


def test_a_batch_that_cannot_be_split_is_refused_with_one_that_can():
    devices = Devices("gpu", 4, num_hosts=2)

    assert devices.text == "4 GPUs on 2 machines"
    devices.check_batch(64)
    with pytest.raises(UsageError) as error:
        devices.check_batch(30)
    assert str(error.value) == (
        "`batch_size=30`: cannot be split evenly over 4 GPUs on 2 machines; take a multiple of 4, such as 28"
    )


def test_several_machines_with_tensorflow_are_refused_with_the_way_that_works(monkeypatch):
    monkeypatch.setenv("TF_CONFIG", '{"cluster": {"worker": ["a:1", "b:1"]}}')

    with pytest.raises(UsageError) as error:
        choose_devices("cpu")
    assert str(error.value) == (
        "found TF_CONFIG: Keras 3 does not train on several machines with TensorFlow; unset it, or use "
        "KERAS_BACKEND=jax with KERAS_DISTRIBUTION_JOB_ADDRESSES"
    )


@pytest.mark.parametrize(
    ("kind", "capabilities", "precision"),
    [
        ("cpu", [], "float32"),
        ("tpu", [], "mixed_bfloat16"),
        ("gpu", [(8, 0)], "mixed_bfloat16"),
        ("gpu", [(9, 0), (8, 6)], "mixed_bfloat16"),
        ("gpu", [(7, 5)], "float32"),
        ("gpu", [(9, 0), (7, 0)], "float32"),
        ("gpu", [None], "float32"),
    ],
)
def test_computing_is_in_bfloat16_where_all_devices_are_made_for_it(
    monkeypatch, kind, capabilities, precision
):
    import tensorflow as tf

    details = [{"compute_capability": each} if each else {} for each in capabilities]
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: range(len(details)))
    monkeypatch.setattr(tf.config.experimental, "get_device_details", lambda gpu: details[gpu])

    assert Devices(kind, max(1, len(details))).precision == precision
