"""Measures a trainer fed by our reader: python benchmarks/bench_gpu.py --help.

For each model and backend, in a process of its own, in turn, for several rounds:

cached   the train step, compiled as `cxr-records train` compiles it, again and again on one batch that is on
         the device already: the most that any reader could reach
fed      `model.fit` on the reader's batches, with the same step
reader   the reader alone, into nothing

`of_cached` is fed by cached of the same round; the goal is 0.98. `bound` is what the chip could do if it did
nothing but the multiply-adds of convolutions and dense layers, at its peak: counted from the layers' shapes,
2 operations each, for the forward pass and for the gradients by weights and, but for the first layer, by
inputs. All else (normalising, activations, augmentation, the optimizer, memory) is left out. The peak is
known for some chips, else given by --peak-tflops; without it there is no bound.

Figures are medians over rounds. The set is made once, of look-alike images, unless --dataset names one. A
table goes to stderr, one JSON object to stdout.
"""

import argparse
import dataclasses
import itertools
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

MODELS = ("densenet121", "convnext_tiny")
GOAL = 0.98
# Peak of dense bfloat16 or float16, in TFLOP/s, by a part of the device's name; from NVIDIA's data sheets,
# where figures with sparsity are halved. The first that fits counts.
PEAKS = {"H200": 989, "H100 PCIe": 756, "H100": 989, "A100": 312, "L40S": 362, "L4": 121}


def multiply_adds(model) -> dict[tuple[int, ...], list[int]]:
    """Multiply-adds of the forward pass of one image: of every convolution and dense layer, by its input."""
    counts: dict[tuple[int, ...], list[int]] = {}
    for layer in model._flatten_layers():
        kernel = getattr(layer, "kernel", None)
        if kernel is not None:
            taken = tuple(layer.get_build_config()["input_shape"])
            places = math.prod(layer.compute_output_shape(taken)[1:-1])
            # Each place of the output takes every weight once, in convolutions by group and by channel too.
            counts.setdefault(taken[1:], []).append(places * math.prod(kernel.shape))
    return counts


def step_flops(model) -> int:
    """Operations of a train step for one image.

    Images need no gradient: the first layer, which has the largest input of the fewest channels, has two
    passes and not three.
    """
    counts = multiply_adds(model)
    first = counts[min(counts, key=lambda shape: (-math.prod(shape[:-1]), shape[-1]))][0]
    return 2 * (3 * sum(itertools.chain.from_iterable(counts.values())) - first)


def peak_of(device: str, precision: str) -> float | None:
    """The peak of a chip in TFLOP/s, where it is known."""
    if precision == "float32":
        return None
    return next((peak for name, peak in PEAKS.items() if name in device), None)


class _Clock:
    """Tells when training steps of `model.fit` are done, waiting for the device at the first and last."""

    def __init__(self, first: int, last: int):
        import keras

        marks = self.marks = {}

        class Marks(keras.callbacks.Callback):
            def on_train_batch_end(self, batch, logs=None):
                wanted = first if not marks else last
                if len(marks) < 2 and batch + 1 >= wanted:
                    float(keras.ops.convert_to_numpy(logs["loss"]))
                    marks[batch + 1] = time.perf_counter()

        self.callback = Marks()

    def steps_per_second(self) -> float:
        (first, began), (last, ended) = self.marks.items()
        return (last - first) / (ended - began)


def fed(model, batches, warm_up: int, steps: int) -> float:
    """Steps per second of `model.fit`."""
    clock = _Clock(warm_up, warm_up + steps)
    model.fit(batches, steps_per_epoch=warm_up + steps, callbacks=[clock.callback], shuffle=False, verbose=0)
    return clock.steps_per_second()


def cached_tensorflow(model, batch, device: str, warm_up: int, steps: int) -> float:
    """Steps per second on one batch, of the step as Keras compiles it for `fit`."""
    import tensorflow as tf

    with tf.device(device):
        held = tf.nest.map_structure(tf.identity, batch)
    step = tf.function(model.train_step, jit_compile=model.jit_compile, reduce_retracing=True)
    for count in (warm_up, steps):
        began = time.perf_counter()
        for _ in range(count):
            logs = step(held)
        float(logs["loss"])
        taken = time.perf_counter() - began
    return steps / taken


def cached_jax(model, batch, warm_up: int, steps: int) -> float:
    """Steps per second on one batch, of Keras' own compiled step."""
    import jax

    held = itertools.repeat(jax.tree.map(lambda part: jax.device_put(part.numpy()), batch))
    # One batch at a time, whatever `fit` takes at once.
    model.steps_per_execution = 1
    model.make_train_function(force=True)
    state = model._get_jax_state(
        trainable_variables=True,
        non_trainable_variables=True,
        optimizer_variables=True,
        metrics_variables=True,
    )
    # The step takes its state's memory for the next one: the model keeps its own.
    state = jax.tree.map(lambda variable: variable.copy(), state)
    for count in (warm_up, steps):
        began = time.perf_counter()
        for _ in range(count):
            logs, state = model.train_function(state, held)
        jax.block_until_ready((logs, state))
        taken = time.perf_counter() - began
    return steps / taken


def reader_alone(batches, warm_up: int, steps: int) -> float:
    """Batches per second."""
    ahead = iter(batches)
    for count in (warm_up, steps):
        began = time.perf_counter()
        for _ in range(count):
            next(ahead)
        taken = time.perf_counter() - began
    return steps / taken


def measure_here(arguments: argparse.Namespace) -> dict:
    """One round of one model, on the backend that this process has."""
    from cxr_records.quiet import load_tensorflow

    load_tensorflow()
    import keras
    import tensorflow as tf

    from cxr_records.dataset import open_dataset
    from cxr_records.trainers import config, runs, train
    from cxr_records.trainers.devices import choose_devices
    from cxr_records.trainers.inputs import WaitMeter

    name, batch, dataset = arguments.one, arguments.batch, open_dataset(arguments.dataset)
    changes = [f"batch_size={batch}", f"precision={arguments.precision}", "weights=none", *arguments.set]
    settings = config.change(config.read_preset(name), changes)
    if settings.loss == "auto":
        settings = dataclasses.replace(settings, loss=train.AUTO_LOSS[dataset.task.kind])
    devices = choose_devices(arguments.devices)
    devices.check_batch(batch)
    keras.config.set_dtype_policy(settings.precision)
    run = runs.describe(str(arguments.folder / "run"), dataset, settings, {})
    job = train._Job(dataset, run, devices, dataset.steps_per_epoch("train", batch), run.config)
    with devices.scope():
        model = train._compiled(job, train._loss(job))
    if keras.backend.backend() == "jax":
        import jax

        device, where = jax.devices()[0].device_kind, None
    else:
        where = "/GPU:0" if devices.kind == "gpu" else "/CPU:0"
        gpus = tf.config.list_physical_devices("GPU") if devices.kind == "gpu" else []
        device = tf.config.experimental.get_device_details(gpus[0]).get("device_name") if gpus else "cpu"
    if devices.count > 1:
        raise SystemExit(f"found {devices.text}; one is measured, give --devices {devices.kind}:1")

    def batches() -> tf.data.Dataset:
        return train._training_batches(job, WaitMeter(), 0, 0)

    # What `fit` runs at once is measured whole.
    unit = model.steps_per_execution
    warm_up, steps = (math.ceil(count / unit) * unit for count in (arguments.warm_up, arguments.steps))
    one = next(iter(batches()))
    found = {"fed": fed(model, batches(), warm_up, steps)}
    if where is None:
        found["cached"] = cached_jax(model, one, warm_up, steps)
    else:
        found["cached"] = cached_tensorflow(model, one, where, warm_up, steps)
    found["reader"] = reader_alone(batches(), warm_up, steps)
    flops = step_flops(model)
    peak = arguments.peak_tflops or peak_of(device, settings.precision)
    return {
        **{key: rate * batch for key, rate in found.items()},
        "device": device,
        "size": dataset.image_format.size,
        "xla": str(model.jit_compile),
        "gflops_per_image": flops / 1e9,
        "peak_tflops": peak,
        "bound": peak * 1e12 / flops if peak else None,
    }


def make_set(folder: Path, count: int, size: int) -> Path:
    """Builds a raw dataset of look-alike images; returns it."""
    from cxr_records.lookalike import make_lookalike

    made = make_lookalike(folder / "nih", count, image_size=max(size, 64), workers=os.cpu_count() or 1)
    words = ["build", "--images", made.images, "--metadata", made.metadata, "--out", folder / "cxr14"]
    words += ["--train-val-list", made.train_val_list, "--test-list", made.test_list, "--size", size]
    subprocess.run([sys.executable, "-m", "cxr_records", *map(str, words)], check=True, stdout=sys.stderr)
    return folder / "cxr14"


def in_a_process(arguments: argparse.Namespace, backend: str, model: str) -> dict:
    """One round, in a fresh process with the backend."""
    words = [sys.executable, __file__, "--one", model, "--dataset", arguments.dataset]
    words += ["--folder", arguments.folder, "--batch", arguments.batch, "--steps", arguments.steps]
    words += [
        "--warm-up",
        arguments.warm_up,
        "--precision",
        arguments.precision,
        "--devices",
        arguments.devices,
    ]
    words += [word for change in arguments.set for word in ("--set", change)]
    words += ["--peak-tflops", arguments.peak_tflops] if arguments.peak_tflops else []
    environment = {**os.environ, "KERAS_BACKEND": backend}
    done = subprocess.run([str(word) for word in words], env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{model} on {backend}: {done.stderr.strip() or done.returncode}")
    round_of_it: dict = json.loads(done.stdout.splitlines()[-1])
    return round_of_it


def summary(rounds: list[dict]) -> dict:
    """Medians over rounds."""
    rates = {
        key: round(statistics.median(each[key] for each in rounds), 1) for key in ("cached", "fed", "reader")
    }
    ratio = statistics.median(each["fed"] / each["cached"] for each in rounds)
    first = rounds[0]
    bound = first["bound"]
    return {
        **{f"{key}_images_per_second": rate for key, rate in rates.items()},
        "of_cached": round(ratio, 3),
        "goal": GOAL,
        "gflops_per_image": round(first["gflops_per_image"], 4),
        "peak_tflops": first["peak_tflops"],
        "bound_images_per_second": bound and round(bound, 1),
        "of_bound": bound and round(rates["fed"] / bound, 4),
        "device": first["device"],
        "size": first["size"],
        "xla": first["xla"],
    }


def table(results: list[dict]) -> str:
    """The results for people."""
    lines = [
        "| model | backend | device | cached images/s | fed images/s | of cached | reader alone | of bound |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for each in results:
        of_bound = "-" if each["of_bound"] is None else f"{each['of_bound']:.1%}"
        cells = [each["model"], each["backend"], each["device"]]
        cells += [f"{each['cached_images_per_second']:,.0f}", f"{each['fed_images_per_second']:,.0f}"]
        cells += [f"{each['of_cached']:.3f}", f"{each['reader_images_per_second']:,.0f}", of_bound]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Measures, and prints a table and one JSON object."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", nargs="+", default=list(MODELS), help="presets; default: %(default)s")
    parser.add_argument("--backend", nargs="+", choices=("tensorflow", "jax"), default=["tensorflow", "jax"])
    parser.add_argument("--devices", default="auto", help="as for the command train")
    parser.add_argument("--dataset", type=Path, help="a dataset with codec raw, whose size then counts")
    parser.add_argument("--count", type=int, default=4096, help="look-alike images to make; %(default)s")
    parser.add_argument("--size", type=int, default=224, help="of images that are made; %(default)s")
    parser.add_argument("--batch", type=int, default=256, help="images of a step; %(default)s")
    parser.add_argument("--steps", type=int, default=50, help="measured in a round; %(default)s")
    parser.add_argument("--warm-up", type=int, default=10, help="steps before these; %(default)s")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--precision", default="mixed_bfloat16", help="default: %(default)s")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change a setting")
    parser.add_argument("--peak-tflops", type=float, help="of the chip, in the precision")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if min(arguments.steps, arguments.warm_up, arguments.rounds, arguments.batch) < 1:
        parser.error("--steps, --warm-up, --rounds and --batch are 1 or more")
    if arguments.one:
        print(json.dumps(measure_here(arguments)))
        return
    with tempfile.TemporaryDirectory() as folder:
        arguments.folder = Path(folder)
        arguments.dataset = arguments.dataset or make_set(
            Path(folder) / "set", arguments.count, arguments.size
        )
        rounds: dict[tuple[str, str], list[dict]] = {
            key: [] for key in itertools.product(arguments.model, arguments.backend)
        }
        for number in range(arguments.rounds):
            for model, backend in rounds:
                found = in_a_process(arguments, backend, model)
                rounds[model, backend].append(found)
                rates = ", ".join(f"{key} {found[key]:,.0f}" for key in ("cached", "fed", "reader"))
                print(f"round {number}: {model} {backend} {rates}", file=sys.stderr)
    results = [
        {"model": model, "backend": backend, "batch": arguments.batch, "precision": arguments.precision}
        | summary(found)
        for (model, backend), found in rounds.items()
    ]
    print(table(results), file=sys.stderr)
    print(json.dumps({"rounds": arguments.rounds, "steps": arguments.steps, "results": results}, indent=1))


if __name__ == "__main__":
    main()
