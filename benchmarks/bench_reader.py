"""Measures the reader beside Grain and beside tf.data on PNG files: python benchmarks/bench_reader.py --help.

All read the same images in a shuffled order, in batches of uint8 [batch, size, size, 1] and labels, each in a
process of its own, in turn, for several rounds. Figures are medians over rounds. Grain is not among our
requirements: `pip install grain array_record` into the environment first (without them its lines are left
out). The set is made once, some 9,000 look-alike images, unless --dataset names one with codec raw.
"""

import argparse
import io
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

BATCH = 256
WARM_UP_SECONDS = 3.0


def rate(batches, seconds: float) -> float:
    """Images per second of an endless iterator, after a warm-up."""
    for limit in (WARM_UP_SECONDS, seconds):
        count, began = 0, time.perf_counter()
        while time.perf_counter() - began < limit:
            next(batches)
            count += BATCH
    return count / (time.perf_counter() - began)


def records_of(dataset: Path):
    """Yields (uint8 [size, size], label bytes as int64) of the training records, read without TensorFlow."""
    import numpy as np

    from cxr_records.dataset import open_dataset
    from cxr_records.examples import decode_example
    from cxr_records.tfrecord import read_records

    opened = open_dataset(dataset)
    side = opened.image_format.size
    for shard in opened.splits["train"].shards:
        with open(dataset / shard.file, "rb") as file:
            for _, data in read_records(file):
                values = decode_example(data)
                pixels = np.frombuffer(values["image"][0], np.uint8).reshape(side, side)
                yield pixels, np.array(values["label"], np.int64)


def prepare(dataset: Path, folder: Path, rivals: list[str]) -> None:
    """Writes the training records for the rivals: one file of ArrayRecord, and PNG files."""
    from PIL import Image

    (folder / "png").mkdir()
    writer = None
    if "grain" in rivals:
        from array_record.python.array_record_module import ArrayRecordWriter

        writer = ArrayRecordWriter(str(folder / "train.arrayrecord"), "group_size:1,uncompressed")
    labels = []
    for number, (pixels, label) in enumerate(records_of(dataset)):
        labels.append(label.tolist())
        if writer:
            writer.write(label.tobytes() + pixels.tobytes())
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "png")
        (folder / "png" / f"{number:06d}.png").write_bytes(file.getvalue())
    if writer:
        writer.close()
    (folder / "labels.json").write_text(json.dumps({"labels": labels, "size": pixels.shape[0]}))


def ours(arguments: argparse.Namespace) -> float:
    """`load_split`, as the trainer calls it."""
    from cxr_records.quiet import load_tensorflow

    load_tensorflow()
    from cxr_records.reader import load_split

    return rate(iter(load_split(str(arguments.dataset), "train", BATCH)), arguments.seconds)


def grain(arguments: argparse.Namespace) -> float:
    """Grain on ArrayRecord: global shuffle, numpy, batches; processes or threads as --grain-workers says."""
    import grain.python as pygrain
    import numpy as np
    from absl import flags

    flags.FLAGS(sys.argv[:1])  # Grain's processes read them
    held = json.loads((arguments.folder / "labels.json").read_text())
    size, width = held["size"], 8 * len(held["labels"][0])
    source = pygrain.ArrayRecordDataSource([str(arguments.folder / "train.arrayrecord")])

    def parse(data: bytes):
        pixels = np.frombuffer(data, np.uint8, offset=width)
        return pixels.reshape(size, size, 1), np.frombuffer(data[:width], np.int64)

    batches = pygrain.MapDataset.source(source).seed(0).shuffle().map(parse).repeat()
    batches = batches.to_iter_dataset().batch(BATCH)
    if arguments.grain_workers:
        options = pygrain.MultiprocessingOptions(num_workers=arguments.grain_workers)
        batches = batches.mp_prefetch(options)
    return rate(iter(batches), arguments.seconds)


def png(arguments: argparse.Namespace) -> float:
    """tf.data as in most repositories: PNG files, decoded anew in every epoch."""
    import tensorflow as tf

    held = json.loads((arguments.folder / "labels.json").read_text())
    paths = sorted(str(path) for path in (arguments.folder / "png").iterdir())

    def decode(path, label):
        pixels = tf.io.decode_png(tf.io.read_file(path), channels=1)
        return tf.ensure_shape(pixels, [held["size"], held["size"], 1]), label

    batches = tf.data.Dataset.from_tensor_slices((paths, tf.constant(held["labels"], tf.int64)))
    batches = batches.shuffle(len(paths)).repeat().map(decode, tf.data.AUTOTUNE)
    return rate(iter(batches.batch(BATCH, drop_remainder=True).prefetch(2)), arguments.seconds)


READERS = {"ours": ours, "grain": grain, "png": png}


def make_set(folder: Path, count: int) -> Path:
    """Builds a raw dataset of look-alike images; returns it."""
    from cxr_records.lookalike import make_lookalike

    made = make_lookalike(folder / "nih", count, image_size=256, workers=2)
    words = ["build", "--images", made.images, "--metadata", made.metadata, "--out", folder / "cxr14"]
    words += ["--train-val-list", made.train_val_list, "--test-list", made.test_list, "--shard-mb", "16"]
    subprocess.run([sys.executable, "-m", "cxr_records", *map(str, words)], check=True, stdout=sys.stderr)
    return folder / "cxr14"


def measure(arguments: argparse.Namespace) -> dict:
    """Runs the readers in turn, each in a fresh process."""
    rivals = ["png"]
    try:
        import array_record  # noqa: F401
        import grain  # noqa: F401

        rivals.insert(0, "grain")
    except ImportError:
        print("grain and array_record are not installed: left out", file=sys.stderr)
    prepare(arguments.dataset, arguments.folder, rivals)
    runs = [("ours", 0), *(("grain", workers) for workers in (0, 2) if "grain" in rivals), ("png", 0)]
    found: dict[tuple[str, int], list[float]] = {run: [] for run in runs}
    for number in range(arguments.rounds):
        for name, workers in runs:
            words = [sys.executable, __file__, "--one", name, "--dataset", arguments.dataset]
            words += ["--folder", arguments.folder, "--seconds", arguments.seconds]
            words += ["--grain-workers", workers]
            done = subprocess.run(
                [str(word) for word in words], check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
            )
            found[name, workers].append(float(done.stdout.split()[-1]))
            print(f"round {number}: {name} {workers} {found[name, workers][-1]:,.0f}", file=sys.stderr)
    medians = {run: statistics.median(rates) for run, rates in found.items()}
    best_grain = max((value for (name, _), value in medians.items() if name == "grain"), default=None)
    own = medians["ours", 0]
    return {
        "images_per_second": round(own),
        "grain_images_per_second": best_grain and round(best_grain),
        "png_images_per_second": round(medians["png", 0]),
        "times_grain": best_grain and round(own / best_grain, 2),
        "times_png": round(own / medians["png", 0], 2),
    }


def main() -> None:
    """Measures, and prints one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dataset", type=Path, help="a multilabel dataset with codec raw")
    parser.add_argument("--count", type=int, default=9000, help="look-alike images to make")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=6.0, help="of each measurement")
    parser.add_argument("--one", choices=list(READERS), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--grain-workers", type=int, default=0, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(READERS[arguments.one](arguments))
        return
    with tempfile.TemporaryDirectory() as folder:
        arguments.folder = Path(folder)
        arguments.dataset = arguments.dataset or make_set(Path(folder) / "set", arguments.count)
        print(json.dumps(measure(arguments), indent=1))


if __name__ == "__main__":
    main()
