"""The benchmark of the trainer, small and on a CPU: what it counts and what it prints."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import keras
import pytest

from cxr_records.trainers import models

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "bench_gpu.py"
spec = importlib.util.spec_from_file_location("bench_gpu", SCRIPT)
bench_gpu = importlib.util.module_from_spec(spec)
spec.loader.exec_module(bench_gpu)


def test_operations_are_counted_from_the_shapes_of_convolutions_and_dense_layers():
    images = keras.Input((8, 8, 1))
    x = keras.layers.Conv2D(4, 3, padding="same")(images)  # 64 places of 9 weights for each of 4 channels
    x = keras.layers.Conv2D(4, 3, strides=2, groups=2)(x)  # 9 places, each channel sees 2
    inner = keras.Sequential([keras.layers.DepthwiseConv2D(3, padding="same"), keras.layers.Dense(6)])
    x = keras.layers.GlobalAveragePooling2D()(keras.layers.BatchNormalization()(inner(x)))
    model = keras.Model(images, keras.layers.Dense(5)(x))

    counts = bench_gpu.multiply_adds(model)

    each = {
        (8, 8, 1): [64 * 9 * 4],
        (8, 8, 4): [9 * 9 * 2 * 4],
        (3, 3, 4): [9 * 9 * 4, 9 * 4 * 6],
        (6,): [6 * 5],
    }
    assert {shape: sorted(of_shape, reverse=True) for shape, of_shape in counts.items()} == each
    assert bench_gpu.step_flops(model) == 2 * (3 * sum(map(sum, each.values())) - 64 * 9 * 4)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "published"), [("densenet121", 2.87e9), ("resnet50", 3.86e9)])
def test_so_counted_networks_have_the_published_number_of_multiply_adds(name, published):
    """Huang et al. 2017 and He et al. 2016, at 224 pixels; a last layer of 14 instead of 1,000 is small."""
    counts = bench_gpu.multiply_adds(models.make_model(name, 14, 224, 120.0, 60.0))

    assert sum(map(sum, counts.values())) == pytest.approx(published, rel=0.02)


def test_a_peak_is_known_by_the_chips_name_and_for_half_precision_alone():
    assert bench_gpu.peak_of("NVIDIA H100 80GB HBM3", "mixed_bfloat16") == 989
    assert bench_gpu.peak_of("NVIDIA H100 PCIe", "mixed_bfloat16") == 756
    assert bench_gpu.peak_of("NVIDIA L40S", "mixed_bfloat16") == 362
    assert bench_gpu.peak_of("NVIDIA A100-SXM4-40GB", "float32") is None
    assert bench_gpu.peak_of("cpu", "mixed_bfloat16") is None


def test_figures_are_medians_and_ratios_are_within_a_round():
    rounds = [
        {"cached": 100.0, "fed": 99.0, "reader": 500.0},
        {"cached": 200.0, "fed": 100.0, "reader": 400.0},
        {"cached": 110.0, "fed": 88.0, "reader": 300.0},
    ]
    held = {
        "gflops_per_image": 2.0,
        "peak_tflops": 1.0,
        "bound": 500.0,
        "device": "x",
        "size": 8,
        "xla": "True",
    }

    found = bench_gpu.summary([{**each, **held} for each in rounds])

    assert (found["cached_images_per_second"], found["fed_images_per_second"]) == (110.0, 99.0)
    assert (found["of_cached"], found["of_bound"], found["goal"]) == (0.8, 0.198, 0.98)


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["tensorflow", "jax"])
def test_it_prints_one_object_and_a_table(dataset, backend):
    words = [sys.executable, str(SCRIPT), "--dataset", str(dataset), "--model", "small_cnn"]
    words += ["--backend", backend, "--batch", "8", "--steps", "2", "--warm-up", "1", "--rounds", "1"]
    words += ["--precision", "float32", "--peak-tflops", "0.1"]

    done = subprocess.run(words, capture_output=True, text=True, timeout=280)

    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    (result,) = found["results"]
    assert (found["rounds"], found["steps"]) == (1, 2)
    assert (result["model"], result["backend"], result["batch"]) == ("small_cnn", backend, 8)
    assert (result["size"], result["device"], result["goal"]) == (32, "cpu", 0.98)
    assert min(result[f"{key}_images_per_second"] for key in ("cached", "fed", "reader")) > 0
    assert result["bound_images_per_second"] == pytest.approx(0.1e3 / result["gflops_per_image"], rel=0.01)
    header, rule, row = [line for line in done.stderr.splitlines() if line.startswith("|")]
    assert header.count("|") == rule.count("|") == row.count("|")
    assert row.startswith(f"| small_cnn | {backend} | cpu |")
