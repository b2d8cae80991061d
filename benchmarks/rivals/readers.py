"""The readers that bench_reader.py compares, each as its documentation has it, and their files' writers.

Runs in a rival's environment: what a reader needs is imported within it, before `job.begin()`. Each gives
endless batches of uint8 [256, size, size, 1] and labels, shuffled.
"""

import argparse
import io
import itertools
import json
import os
import shutil
import struct
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from measuring import BATCH, Job, endless, measure, versions

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

Batches = Iterator[tuple[Any, Any]]


@dataclass(frozen=True)
class Reader:
    """A reader of the table.

    Attributes:
        read: from a job to batches.
        form: whose files it reads: a name of FORMS, "dataset" (our shards) or "source".
        environment: the requirements file beside this one, less its ending; "" is the one that runs this.
        packages: whose versions are told.
        said: what it is, for the table.
        codecs: it can read so stored images.
    """

    read: Callable[[Job], Batches]
    form: str
    environment: str
    packages: tuple[str, ...]
    said: str
    codecs: tuple[str, ...] = ("raw", "png", "jpeg")


# Ours.


def load_split(job: Job) -> Batches:
    """`load_split`, as the trainer calls it."""
    from cxr_records.quiet import load_tensorflow

    load_tensorflow()
    from cxr_records.reader import load_split

    job.begin()
    return iter(load_split(str(job.folder / "dataset"), "train", BATCH))


def arrays(job: Job) -> Batches:
    """`Dataset.arrays`, in the order of `load_split`, without TensorFlow."""
    from cxr_records.dataset import open_dataset

    job.begin()
    yield from open_dataset(job.folder / "dataset").arrays("train").batches(BATCH)


def arrays_gather(job: Job) -> Batches:
    """`Dataset.arrays`, a gather by random numbers for each batch, as the yardstick below has it."""
    from cxr_records.dataset import open_dataset

    job.begin()
    images, rng = open_dataset(job.folder / "dataset").arrays("train"), np.random.default_rng(0)
    while True:
        order = rng.permutation(len(images))
        for start in range(0, len(images) - BATCH + 1, BATCH):
            numbers = order[start : start + BATCH]
            yield images.gather(numbers), images.labels[numbers]


# Yardsticks.


def memmap(job: Job) -> Batches:
    """What a clever engineer writes: one file of pixels, mapped; a batch is a gather by random numbers."""
    job.begin()
    pixels = np.memmap(job.source().path, np.uint8, "r").reshape(-1, job.size, job.size, 1)
    labels, rng = job.source().labels, np.random.default_rng(0)
    while True:
        order = rng.permutation(job.count)
        for start in range(0, job.count - BATCH + 1, BATCH):
            rows = order[start : start + BATCH]
            yield pixels[rows], labels[rows]


def read_shards(job: Job) -> Batches:
    """`read()` of our shards, 1 MiB at a time, in file order.

    The first batch alone is real; of the others only the bytes are read.
    """
    job.begin()
    shown = next(memmap(job)) if job.codec == "raw" else decoded(job, itertools.islice(job.source(), BATCH))
    yield shown
    share = sum(os.path.getsize(path) for path in job.shards) / job.count * BATCH
    buffer, given, taken = bytearray(1 << 20), 0, 0
    while True:
        for path in job.shards:
            with open(path, "rb", buffering=0) as file:
                while got := file.readinto(buffer):
                    given += got
                    while given / share > taken:
                        taken += 1
                        yield shown


# tf.data on our shards.


def _parser(job: Job, parse: Callable[..., Any]) -> Callable[[Any], Any]:
    """From serialized examples, one or a batch of them as `parse` takes, to pixels and labels."""
    import tensorflow as tf

    features = {
        "image": tf.io.FixedLenFeature([], tf.string),
        "label": tf.io.FixedLenFeature([job.about["num_labels"]], tf.int64),
    }
    shape = (job.size, job.size, 1)

    def one(data: Any) -> Any:
        decode = tf.io.decode_png if job.codec == "png" else tf.io.decode_jpeg
        return tf.ensure_shape(decode(data, channels=1), shape)

    def parsed(data: Any) -> Any:
        values = parse(data, features)
        images = values["image"]
        if job.codec == "raw":
            images = tf.reshape(tf.io.decode_raw(images, tf.uint8), (*images.shape, *shape))
        elif images.shape.rank:
            images = tf.map_fn(one, images, fn_output_signature=tf.TensorSpec(shape, tf.uint8))
        else:
            images = one(images)
        return images, values["label"]

    return parsed


def tf_data(job: Job) -> Batches:
    """tf.data as its guide has it: parse each record, shuffle, batch, prefetch."""
    import tensorflow as tf

    job.begin()
    records = tf.data.TFRecordDataset(job.shards, num_parallel_reads=tf.data.AUTOTUNE)
    images = records.map(_parser(job, tf.io.parse_single_example), tf.data.AUTOTUNE)
    images = images.shuffle(job.shuffle_buffer).repeat().batch(BATCH, drop_remainder=True)
    return iter(images.prefetch(tf.data.AUTOTUNE))


def tf_data_batched(job: Job) -> Batches:
    """tf.data by those who know it: records are shuffled and batched while serialized, and parsed at once."""
    import tensorflow as tf

    job.begin()
    records = tf.data.TFRecordDataset(job.shards, num_parallel_reads=tf.data.AUTOTUNE)
    records = records.shuffle(job.shuffle_buffer).repeat().batch(BATCH, drop_remainder=True)
    batches = records.map(_parser(job, tf.io.parse_example), tf.data.AUTOTUNE)
    return iter(batches.prefetch(tf.data.AUTOTUNE))


def tfds(job: Job) -> Batches:
    """TensorFlow Datasets on our dataset, by the metadata that lies in it."""
    import tensorflow as tf
    import tensorflow_datasets

    job.begin()
    builder = tensorflow_datasets.builder_from_directory(str(job.folder / "dataset"))
    records = builder.as_dataset(split="train", shuffle_files=True)
    shape = (job.size, job.size, 1)

    def pixels(record: Any) -> Any:
        image = record["image"]
        if image.dtype == tf.string:  # raw pixels are bytes to TFDS
            image = tf.reshape(tf.io.decode_raw(image, tf.uint8), shape)
        return image, record["label"]

    records = records.shuffle(job.shuffle_buffer).repeat().map(pixels, tf.data.AUTOTUNE)
    return iter(records.batch(BATCH, drop_remainder=True).prefetch(tf.data.AUTOTUNE))


# ArrayRecord and Grain.


def write_array_record(job: Job, folder: Path) -> None:
    """One file; a record is a label's bytes and an image's. Groups of one, as its readers advise."""
    from array_record.python.array_record_module import ArrayRecordWriter

    writer = ArrayRecordWriter(str(folder / "train.arrayrecord"), "group_size:1,uncompressed")
    for image, label in job.source():
        writer.write(label.tobytes() + image)
    writer.close()


def array_record(job: Job) -> Batches:
    """ArrayRecord's own reader, a batch of numbers at a time in an order that NumPy shuffles."""
    from array_record.python.array_record_module import ArrayRecordReader

    job.begin()
    path = str(job.form("array_record") / "train.arrayrecord")
    reader = ArrayRecordReader(path, "readahead_buffer_size:0", file_reader_buffer_size=32 << 10)
    rng, width = np.random.default_rng(0), 8 * job.about["num_labels"]
    while True:
        order = rng.permutation(job.count)
        for start in range(0, job.count - BATCH + 1, BATCH):
            images = np.empty((BATCH, job.size, job.size, 1), np.uint8)
            labels = np.empty((BATCH, job.about["num_labels"]), np.int64)
            for place, data in enumerate(reader.read(order[start : start + BATCH].tolist())):
                images[place] = np.frombuffer(data, np.uint8, offset=width).reshape(images.shape[1:])
                labels[place] = np.frombuffer(data, np.int64, count=job.about["num_labels"])
            yield images, labels


def grain_threads(job: Job) -> Batches:
    """Grain with its default threads."""
    return _grain(job, 0)


def grain_processes(job: Job) -> Batches:
    """Grain with a process for each core."""
    return _grain(job, job.cores)


def _grain(job: Job, processes: int) -> Batches:
    import grain.python as grain
    from absl import flags

    flags.FLAGS(sys.argv[:1])  # Grain's processes read them
    job.begin()
    width, decode = 8 * job.about["num_labels"], _decoder(job)
    source = grain.ArrayRecordDataSource([str(job.form("array_record") / "train.arrayrecord")])

    def parse(data: bytes) -> Any:
        return decode(data[width:]), np.frombuffer(data[:width], np.int64)

    batches = grain.MapDataset.source(source).seed(0).shuffle().map(parse).repeat()
    batches = batches.to_iter_dataset().batch(BATCH)
    if processes:
        batches = batches.mp_prefetch(grain.MultiprocessingOptions(num_workers=processes))
    return iter(batches)


# Images of a list of bytes, for those who leave decoding to their users.


def _decoder(job: Job) -> Callable[[bytes], np.ndarray]:
    """From stored bytes to uint8 [size, size, 1]: a view of raw pixels, or what Pillow makes of a file."""
    shape = (job.size, job.size, 1)
    if job.codec == "raw":
        return lambda data: np.frombuffer(data, np.uint8).reshape(shape)
    from PIL import Image

    return lambda data: np.asarray(Image.open(io.BytesIO(data))).reshape(shape)


def decoded(job: Job, records: Any) -> tuple[np.ndarray, np.ndarray]:
    """A batch of (stored bytes, label)."""
    decode = _decoder(job)
    images, labels = zip(*((decode(data), label) for data, label in records), strict=True)
    return np.stack(images), np.stack(labels)


# Hugging Face datasets.


def write_arrow(job: Job, folder: Path) -> None:
    """Raw: a column of lists of fixed length, the quickest of its forms; files: its Image feature."""
    import datasets

    image: Any = datasets.Image()
    if job.codec == "raw":
        image = datasets.List(datasets.Value("uint8"), length=job.size**2)
    features = {
        "image": image,
        "label": datasets.List(datasets.Value("int64"), length=job.about["num_labels"]),
    }

    def rows() -> Iterator[dict[str, Any]]:
        for data, label in job.source():
            held = np.frombuffer(data, np.uint8) if job.codec == "raw" else {"bytes": data, "path": None}
            yield {"image": held, "label": label}

    features = datasets.Features(features)
    made = datasets.Dataset.from_generator(rows, features=features, cache_dir=str(folder / "cache"))
    made.save_to_disk(str(folder / "arrow"))
    shutil.rmtree(folder / "cache")


def hf_datasets(job: Job) -> Batches:
    """Hugging Face datasets from disk: shuffled numbers, a batch of rows at a time, as NumPy or Arrow."""
    import datasets

    job.begin()
    rows = datasets.load_from_disk(str(job.form("arrow") / "arrow"))
    rows = rows.with_format("arrow" if job.codec == "raw" else "numpy")
    shape, rng = (-1, job.size, job.size, 1), np.random.default_rng(0)
    while True:
        order = rng.permutation(len(rows))
        for start in range(0, len(rows) - BATCH + 1, BATCH):
            batch = rows[order[start : start + BATCH]]
            if job.codec == "raw":
                images, labels = (
                    batch[name].combine_chunks().flatten().to_numpy() for name in ("image", "label")
                )
                yield images.reshape(shape), labels.reshape(BATCH, -1)
            else:
                yield np.asarray(batch["image"]).reshape(shape), np.asarray(batch["label"])


# LitData.


def write_litdata(job: Job, folder: Path) -> None:
    """Chunks of 64 MB, as its guide has them: raw as arrays, files as bytes."""
    from litdata.streaming.writer import BinaryWriter

    # What `optimize` calls in its workers.
    writer = BinaryWriter(str(folder), chunk_bytes="64MB")
    for number, (data, label) in enumerate(job.source()):
        image = data
        if job.codec == "raw":
            image = np.frombuffer(data, np.uint8).reshape(job.size, job.size, 1)
        writer[number] = {"image": image, "label": label}
    writer.done()
    writer.merge()


def litdata(job: Job) -> Batches:
    """LitData's dataset and loader, shuffled, a worker for each core."""
    from litdata import StreamingDataLoader, StreamingDataset

    job.begin()
    decode = _decoder(job)

    class Images(StreamingDataset):  # type: ignore[misc]
        def __getitem__(self, index: Any) -> Any:
            row = super().__getitem__(index)
            image = row["image"] if job.codec == "raw" else decode(row["image"])
            return image, row["label"]

    rows = Images(str(job.form("litdata")), shuffle=True, drop_last=True)
    loader = StreamingDataLoader(
        rows, batch_size=BATCH, num_workers=job.cores, drop_last=True, persistent_workers=True
    )
    return endless(loader)


# MosaicML Streaming.


def write_mds(job: Job, folder: Path) -> None:
    """MDS shards of its default size, not compressed: raw as arrays, files as bytes."""
    from streaming import MDSWriter

    image = f"ndarray:uint8:{job.size},{job.size},1" if job.codec == "raw" else "bytes"
    columns = {"image": image, "label": f"ndarray:int64:{job.about['num_labels']}"}
    with MDSWriter(out=str(folder), columns=columns) as writer:
        for data, label in job.source():
            held: Any = data
            if job.codec == "raw":
                held = np.frombuffer(data, np.uint8).reshape(job.size, job.size, 1)
            writer.write({"image": held, "label": label})


def mosaicml(job: Job) -> Batches:
    """MosaicML Streaming from its local folder, shuffled, by PyTorch's loader with a worker for each core."""
    from streaming import StreamingDataset
    from streaming.base.util import clean_stale_shared_memory
    from torch.utils.data import DataLoader

    job.begin()
    clean_stale_shared_memory()  # which a process that was ended leaves behind
    decode = _decoder(job)

    class Images(StreamingDataset):  # type: ignore[misc]
        def __getitem__(self, index: Any) -> Any:
            row = super().__getitem__(index)
            image = row["image"] if job.codec == "raw" else decode(row["image"])
            return image, row["label"]

    rows = Images(local=str(job.form("mds")), shuffle=True, batch_size=BATCH)
    loader = DataLoader(rows, BATCH, num_workers=job.cores, drop_last=True, persistent_workers=True)
    return endless(loader)


# WebDataset.


def write_tar(job: Job, folder: Path) -> None:
    """Tar files of 1,000 images: an image's bytes, and its label's."""
    import webdataset

    with webdataset.ShardWriter(str(folder / "train-%05d.tar"), maxcount=1000, verbose=0) as writer:
        for number, (data, label) in enumerate(job.source()):
            writer.write({"__key__": f"{number:08d}", "img": data, "label": label.tobytes()})


def web_dataset(job: Job) -> Batches:
    """WebDataset: shards and a buffer shuffled, batched in its own process."""
    import webdataset

    job.begin()
    decode = _decoder(job)

    def parse(row: dict[str, Any]) -> Any:
        return decode(row["img"]), np.frombuffer(row["label"], np.int64)

    def stack(rows: Any) -> Any:
        images, labels = zip(*rows, strict=True)
        return np.stack(images), np.stack(labels)

    paths = sorted(str(path) for path in job.form("tar").glob("*.tar"))
    rows = webdataset.WebDataset(paths, shardshuffle=len(paths), empty_check=False)
    rows = rows.shuffle(job.shuffle_buffer).map(parse).batched(BATCH, collation_fn=stack, partial=False)
    return endless(rows)


# PyTorch on files.


def write_files(job: Job, folder: Path) -> None:
    """One file for each image, raw pixels without a header."""
    for number, (data, _) in enumerate(job.source()):
        (folder / f"{number:06d}").write_bytes(data)


def torch_files(job: Job) -> Batches:
    """PyTorch's loader on a file for each image, shuffled, a worker for each core."""
    import torch
    from torch.utils.data import DataLoader, Dataset

    job.begin()
    decode, labels, folder = _decoder(job), job.source().labels, job.form("files")

    class Files(Dataset):  # type: ignore[type-arg,misc]
        def __len__(self) -> int:
            return job.count

        def __getitem__(self, number: int) -> Any:
            return decode((folder / f"{number:06d}").read_bytes()).copy(), labels[number]

    torch.manual_seed(0)
    loader = DataLoader(
        Files(), BATCH, shuffle=True, num_workers=job.cores, drop_last=True, persistent_workers=True
    )
    return endless(loader)


# NVIDIA DALI.


def write_dali_index(job: Job, folder: Path) -> None:
    """Where each record of our shards begins, and its length, as DALI's tool `tfrecord2idx` writes it."""
    for path in job.shards:
        lines, at = [], 0
        with open(path, "rb") as file:
            while header := file.read(8):
                length = struct.unpack("<Q", header)[0] + 16  # with length, and two checksums of 4 bytes
                lines.append(f"{at} {length}\n")
                at += length
                file.seek(at)
        (folder / f"{Path(path).name}.idx").write_text("".join(lines))


def dali(job: Job) -> Batches:
    """DALI on the CPU, on our shards: shuffled in its buffer, a thread for each core."""
    from nvidia.dali import fn, pipeline_def, tfrecord, types

    job.begin()
    indexes = [str(job.form("dali_index") / f"{Path(path).name}.idx") for path in job.shards]
    features = {
        "image": tfrecord.FixedLenFeature((), tfrecord.string, ""),
        "label": tfrecord.FixedLenFeature([job.about["num_labels"]], tfrecord.int64, 0),
    }

    @pipeline_def(batch_size=BATCH, num_threads=job.cores, device_id=None, seed=0)  # type: ignore[misc]
    def pipeline() -> Any:
        row = fn.readers.tfrecord(
            path=job.shards, index_path=indexes, features=features, random_shuffle=True,
            initial_fill=job.shuffle_buffer, pad_last_batch=False, name="records",
        )  # fmt: skip
        if job.codec == "raw":
            images = fn.reshape(row["image"], shape=[job.size, job.size, 1])
        else:
            images = fn.decoders.image(row["image"], device="cpu", output_type=types.GRAY)
        return images, row["label"]

    running = pipeline()
    running.build()
    while True:
        images, labels = running.run()
        yield images.as_tensor(), labels.as_tensor()


FORMS = {
    "array_record": (write_array_record, "arrayrecord_grain"),
    "arrow": (write_arrow, "hf_datasets"),
    "litdata": (write_litdata, "torch"),
    "mds": (write_mds, "torch"),
    "tar": (write_tar, "webdataset"),
    "files": (write_files, ""),
    "dali_index": (write_dali_index, ""),
}

TF = ("tensorflow", "numpy")
READERS = {
    "load_split": Reader(load_split, "dataset", "", TF, "`load_split`"),
    "arrays": Reader(arrays, "dataset", "", ("numpy",), "`Dataset.arrays`, order of `load_split`"),
    "arrays_gather": Reader(arrays_gather, "dataset", "", ("numpy",), "`Dataset.arrays`, random gather"),
    "memmap": Reader(memmap, "source", "", ("numpy",), "`numpy.memmap`, random gather", ("raw",)),
    "read": Reader(read_shards, "dataset", "", (), "`read()` of our shards, no parsing"),
    "tf_data": Reader(tf_data, "dataset", "", TF, "tf.data as documented, our shards"),
    "tf_data_batched": Reader(tf_data_batched, "dataset", "", TF, "tf.data, batch then parse, our shards"),
    "tfds": Reader(tfds, "dataset", "tfds", ("tensorflow-datasets", "tensorflow"), "TFDS, our dataset"),
    "array_record": Reader(
        array_record,
        "array_record",
        "arrayrecord_grain",
        ("array_record",),
        "ArrayRecord, batch read",
        ("raw",),
    ),
    "grain_threads": Reader(
        grain_threads, "array_record", "arrayrecord_grain", ("grain", "array_record"), "Grain, threads"
    ),
    "grain_processes": Reader(
        grain_processes, "array_record", "arrayrecord_grain", ("grain", "array_record"), "Grain, processes"
    ),
    "hf_datasets": Reader(
        hf_datasets, "arrow", "hf_datasets", ("datasets", "pyarrow"), "Hugging Face datasets, Arrow"
    ),
    "litdata": Reader(litdata, "litdata", "torch", ("litdata", "torch"), "LitData"),
    "mosaicml": Reader(mosaicml, "mds", "torch", ("mosaicml-streaming", "torch"), "MosaicML Streaming"),
    "webdataset": Reader(web_dataset, "tar", "webdataset", ("webdataset",), "WebDataset"),
    "torch_files": Reader(torch_files, "files", "torch", ("torch",), "PyTorch `DataLoader` on files"),
    "dali": Reader(
        dali, "dali_index", "dali", ("nvidia-dali-cuda120",), "NVIDIA DALI on the CPU, our shards"
    ),
}


def main() -> None:
    """Writes the files of one form, or measures one reader and prints a JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("write", "read"))
    parser.add_argument("name")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=6.0)
    parser.add_argument("--cold", action="store_true")
    asked = parser.parse_args()
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: asked.cores])
    job = Job(asked.folder, asked.cores)
    if asked.what == "write":
        FORMS[asked.name][0](job, job.form(asked.name))
        return
    reader, started = READERS[asked.name], time.perf_counter()
    batches = reader.read(job)
    if not job.imported:  # a generator begins with its first batch
        batches = itertools.chain([next(batches)], batches)
    found = measure(job, batches, asked.seconds, asked.cold)
    found |= {"import_seconds": job.imported - started, "versions": versions(reader.packages)}
    print(json.dumps(found), flush=True)
    os._exit(0)  # threads and processes of some readers do not end by themselves


if __name__ == "__main__":
    main()
