"""Images and labels as NumPy arrays: what they hold, their order, damage, other processes, URLs."""

import contextlib
import gc
import multiprocessing
import os
import pickle
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path

import fsspec
import numpy as np
import pytest
from conftest import frame, manifest_json, pixels, stored
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cxr_records import arrays, shard_files
from cxr_records.arrays import Arrays
from cxr_records.cache import HeldFile
from cxr_records.dataset import open_dataset
from cxr_records.errors import CxrError, UsageError
from cxr_records.images import ImageFormat
from cxr_records.order import Order

VERIFY = "run cxr-records verify on the dataset"


def opened(dataset: Path | str, split: str = "train", **options) -> Arrays:
    return open_dataset(dataset).arrays(split, **options)


def contents(batches) -> list[list[bytes]]:
    """Every byte of every part of each batch: pixels, labels, masks."""
    return [[np.asarray(part).tobytes() for part in batch] for batch in batches]


# What they hold


@pytest.mark.parametrize(
    ("codec", "task"), [("raw", "multilabel"), ("png", "multiclass"), ("jpeg", "binary")]
)
def test_every_record_is_there_by_its_number_in_manifest_order(build, tmp_path, codec, task):
    build(tmp_path / "data", task=task, codec=codec)
    for split in ("train", "validation", "test"):
        expected = stored(tmp_path / "data", split)
        images = np.array([pixels(values, codec) for values in expected])
        labels = np.array([values["label"] for values in expected])

        read = opened(tmp_path / "data", split)

        assert len(read) == len(expected)
        np.testing.assert_array_equal(read.gather(range(len(read))), images)
        assert read.labels.reshape(labels.shape).tolist() == labels.tolist()
        assert read.labels.dtype == np.int32
        assert [name.encode() for name in read.records.image_ids] == [v["image_id"][0] for v in expected]
        for number in (0, 1, len(read) - 1, -1, -len(read), np.int64(2), np.uint8(2)):
            image, label = read[number]
            assert (image.shape, image.dtype) == ((32, 32, 1), np.uint8)
            np.testing.assert_array_equal(image, images[number])
            np.testing.assert_array_equal(label, read.labels[number])


@pytest.mark.parametrize("codec", ["raw", "png", "jpeg"])
def test_decoders_are_given_bytes_with_checksums_and_without(build, tmp_path, codec, monkeypatch):
    """Those that are in C, or look for a signature, take nothing else."""
    build(tmp_path / "data", codec=codec)
    given, decode = [], ImageFormat.decode
    monkeypatch.setattr(
        ImageFormat, "decode", lambda self, data: given.append(type(data)) or decode(self, data)
    )

    read = opened(tmp_path / "data", "test")
    first = read.gather(range(5))
    np.testing.assert_array_equal(read.gather(range(5)), first)
    assert set(given) == {bytes}
    assert len(given) == (
        5 if codec == "raw" else 10
    )  # raw pixels are not decoded but where they are checked


def test_they_are_a_sequence_that_ends(dataset):
    read = opened(dataset, "test")
    n = len(read)

    assert len(list(read)) == n  # by __getitem__, until IndexError
    for wrong in (n, -n - 1, 1 << 40):
        with pytest.raises(IndexError) as error:
            read[wrong]
        assert str(error.value) == f"found record {wrong} of split test, which has {n}"
    with pytest.raises(TypeError):
        read[1.0]
    assert repr(read) == f"<Arrays {dataset} test: {n} images of 32x32>"


@given(st.data())
@settings(max_examples=30)
def test_images_are_gathered_in_the_order_asked_for(dataset, data):
    read = opened(dataset)
    n = len(read)
    numbers = data.draw(st.lists(st.integers(-n, n - 1), max_size=50))
    kind = data.draw(
        st.sampled_from([list, tuple, lambda q: np.array(q, np.int64), lambda q: np.array(q, np.int16)])
    )

    images = read.gather(kind(numbers))

    assert images.shape == (len(numbers), 32, 32, 1)
    np.testing.assert_array_equal(images, read.gather(range(n))[np.array(numbers, np.int64)])


def test_images_are_written_into_an_array_that_is_given(dataset):
    read = opened(dataset)
    out = np.full((4, 32, 32, 1), 7, np.uint8)

    assert read.gather([5, 1], out[1:3]) is not None
    np.testing.assert_array_equal(out[1:3], read.gather([5, 1]))
    assert (out[[0, 3]] == 7).all()


@pytest.mark.parametrize(
    "out",
    [
        np.zeros((2, 32, 32), np.uint8),
        np.zeros((3, 32, 32, 1), np.uint8),
        np.zeros((2, 32, 32, 1), np.int8),
        np.zeros((4, 32, 32, 1), np.uint8)[::2],
        np.frombuffer(bytes(2048), np.uint8).reshape(2, 32, 32, 1),
    ],
)
def test_an_array_that_does_not_fit_is_refused(dataset, out):
    with pytest.raises(UsageError) as error:
        opened(dataset).gather([0, 1], out)
    assert str(error.value) == (
        f"found an array of shape {list(out.shape)} and type {out.dtype}; expected uint8 [2, 32, 32, 1], "
        "writable and without gaps"
    )


@pytest.mark.parametrize(
    ("numbers", "said"),
    [
        ([0.5], "shape [1] and type float64"),
        ([[1]], "shape [1, 1] and type int64"),
        ([True], "shape [1] and type bool"),
    ],
)
def test_what_is_no_list_of_whole_numbers_is_refused(dataset, numbers, said):
    with pytest.raises(UsageError) as error:
        opened(dataset).gather(numbers)
    assert str(error.value) == f"found numbers of {said}; expected a list of whole numbers"


@pytest.mark.parametrize(
    "numbers", [np.array([2**64 - 1], np.uint64), np.array([0, 2**63], np.uint64), [2**64 - 1]]
)
def test_a_number_that_is_no_int64_is_out_of_range_and_not_one_from_the_end(dataset, numbers):
    with pytest.raises(IndexError, match=f"found record {max(np.array(numbers))} of split train, which has"):
        opened(dataset).gather(numbers)


def test_who_writes_to_a_record_changes_it_for_nobody_else(dataset):
    read = opened(dataset)
    image, label = read[0]
    before = image.copy(), label.copy()
    for mine in (read[0], read.__getitems__([0])[0]):
        for part in mine:
            part[...] = 9

    np.testing.assert_array_equal(read[0][0], before[0])
    np.testing.assert_array_equal(read[0][1], before[1])
    np.testing.assert_array_equal(read.labels[0], before[1])


def test_a_derived_task_has_its_own_records_and_labels(many_shards):
    everything = open_dataset(many_shards).arrays("train")
    derived = open_dataset(many_shards).arrays("train", task="binary:Effusion")
    kept = derived.records.takes_part

    assert 0 < len(derived) < len(everything)
    assert derived.labels.tolist() == derived.records.labels.tolist()
    np.testing.assert_array_equal(
        derived.gather(range(len(derived))), everything.gather(np.flatnonzero(kept))
    )


class Loader:
    """Asks for batches as PyTorch's DataLoader does (torch/utils/data/_utils/fetch.py)."""

    def __init__(self, dataset: Sequence, batches: list[list[int]]):
        self.dataset, self.sampler = dataset, batches

    def __iter__(self):
        for numbers in self.sampler:
            if hasattr(self.dataset, "__getitems__") and self.dataset.__getitems__:
                samples = self.dataset.__getitems__(numbers)
            else:
                samples = [self.dataset[number] for number in numbers]
            yield tuple(np.stack(parts) for parts in zip(*samples, strict=True))


def test_a_loader_that_asks_for_batches_gets_what_one_gets_that_asks_for_records(dataset, monkeypatch):
    read, wanted = opened(dataset), [[3, 1, 2], [0], [7, 7]]
    together = contents(Loader(read, wanted))

    monkeypatch.delattr(Arrays, "__getitems__")
    assert contents(Loader(read, wanted)) == together
    assert together[1] == [read.gather([0]).tobytes(), read.labels[[0]].tobytes()]


# The order of training


@pytest.mark.parametrize(
    ("split", "options"),
    [
        ("train", {"epochs": 2, "seed": 5}),
        ("train", {"epochs": 2, "last_batch": "pad"}),
        ("train", {"epochs": 2, "last_batch": "smaller", "sampling": "class_balanced"}),
        ("train", {"epochs": 3, "start_epoch": 1, "start_batch": 2, "host": 1, "num_hosts": 2}),
        ("train", {"shuffle": False, "host": 6, "num_hosts": 7}),
        ("train", {"epochs": 1, "task": "binary:Effusion", "last_batch": "pad"}),
        ("train", {"epochs": 1, "task": "binary", "sampling": "class_balanced"}),
        ("train", {"epochs": 2, "start_epoch": 2}),
        ("test", {}),
        ("test", {"shuffle": True, "epochs": 1}),
        ("validation", {"last_batch": "smaller"}),
        ("test", {"start_batch": 1, "epochs": 2}),
    ],
)
def test_batches_are_those_of_load_split(many_shards, split, options):
    from cxr_records.reader import load_split

    expected = contents(load_split(str(many_shards), split, 4, **options))

    task = options.pop("task", None)
    read = opened(many_shards, split, task=task)
    found = list(read.batches(4, **options))
    assert contents(found) == expected
    for batch in found:
        assert [part.dtype for part in batch] == [np.uint8, np.int32, np.float32][: len(batch)]


def test_batches_without_end_go_on_from_any_of_them(many_shards):
    read = opened(many_shards)
    steps = len(read) // 16
    unbroken = contents(islice(read.batches(16, seed=1), 4 * steps))

    for epoch, batch in [(0, 1), (1, 0), (1, steps), (3, steps - 1)]:
        resumed = read.batches(16, seed=1, start_epoch=epoch, start_batch=batch)
        start = epoch * steps + batch
        assert contents(islice(resumed, 4 * steps - start)) == unbroken[start:]


def test_a_batch_does_not_change_when_the_next_is_read(many_shards):
    batches, copies = [], []
    for batch in islice(opened(many_shards).batches(16), 20):
        batches.append(batch)
        copies.append([part.copy() for part in batch])

    assert contents(batches) == contents(copies)
    assert not any(
        np.shares_memory(one[0], other[0]) for one in batches for other in batches if one is not other
    )


@pytest.mark.parametrize(
    ("split", "size", "arguments", "message"),
    [
        ("train", 0, {}, "found batch size 0 and 1 hosts; expected 1 or more of each"),
        ("train", 4, {"host": 2, "num_hosts": 2}, "found host 2 of 2 hosts; expected 0 to 1"),
        (
            "train",
            4,
            {"sampling": "balanced"},
            "found sampling 'balanced'; expected one of natural, class_balanced",
        ),
        (
            "test",
            4,
            {"sampling": "class_balanced"},
            "found sampling 'class_balanced' of records in manifest order; expected `shuffle=True`",
        ),
        ("train", 4, {"last_batch": "keep"}, "found last_batch 'keep'; expected one of drop, pad, smaller"),
        (
            "train",
            4,
            {"num_hosts": 2, "last_batch": "smaller"},
            "found last_batch 'smaller' with several hosts, whose counts differ; expected 'pad'",
        ),
        (
            "train",
            4,
            {"num_hosts": 9},
            "found 9 hosts for the 3 shards of split train; each host needs one: build with a smaller "
            "`shard_mb`",
        ),
        (
            "test",
            17,
            {"start_batch": 3},
            "found start at epoch 0, batch 3; expected an epoch from 0 and a batch from 0 to 2, for an epoch "
            "of split test has 2 batches of 17",
        ),
        (
            "train",
            999,
            {},
            "found a batch of 999, larger than split train, which has 156 records; expected a smaller one",
        ),
    ],
)
def test_a_wrong_argument_is_refused_at_the_call_as_by_load_split(dataset, split, size, arguments, message):
    from cxr_records.reader import load_split

    with pytest.raises(UsageError) as error:
        opened(dataset, split).batches(size, **arguments)
    assert str(error.value) == message
    with pytest.raises(UsageError) as error:
        load_split(dataset, split, size, **arguments)
    assert str(error.value) == message


def test_a_wrong_option_is_refused(dataset):
    with pytest.raises(UsageError) as error:
        opened(dataset, "tset")
    assert str(error.value) == f"found split 'tset'; {dataset} has train, validation, test"
    with pytest.raises(UsageError) as error:
        opened(dataset, threads=0)
    assert str(error.value) == "found 0 threads; expected 1 or more"


# Threads and processes


@pytest.mark.parametrize("codec", ["raw", "png"])
def test_several_threads_read_at_once(build, tmp_path, codec):
    build(tmp_path / "data", codec=codec)
    read = opened(tmp_path / "data", threads=4)
    rng = np.random.default_rng(0)
    wanted = [rng.integers(0, len(read), 100) for _ in range(16)]
    expected = opened(tmp_path / "data", threads=1).gather(range(len(read)))

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(read.gather, wanted))

    for images, numbers in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(images, expected[numbers])


def test_threads_that_share_an_iterator_are_refused_and_harm_nothing(many_shards):
    """Those of itertools crash the process."""
    read = opened(many_shards)
    batches = read.batches(4, seed=1)

    def some(_) -> None:
        with contextlib.suppress(ValueError):  # "generator already executing"
            for _ in range(200):
                next(batches, None)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(some, range(20)))
    assert len(next(read.batches(4, seed=1))[0]) == 4


def test_nothing_is_written_to_an_array_any_more_once_an_error_was_raised(build, tmp_path, monkeypatch):
    build(tmp_path / "data", codec="png")
    read = opened(tmp_path / "data", threads=4, check=False)
    out = np.zeros((96, read.size, read.size, 1), np.uint8)
    first, decode = threading.Event(), ImageFormat.decode

    def slow(self, data):
        if not first.is_set():
            first.set()
            raise ValueError("cut short")
        time.sleep(0.002)
        return decode(self, data)

    monkeypatch.setattr(ImageFormat, "decode", slow)
    with pytest.raises(CxrError, match="is damaged: cut short"):
        read.gather([0] * 96, out)
    then = out.copy()
    time.sleep(0.1)
    np.testing.assert_array_equal(out, then)


def test_a_thread_reads_on_after_the_main_thread_has_ended(build, tmp_path):
    """From then on Python begins no threads for what pools are asked for."""
    build(tmp_path / "data", codec="png")
    code = f"""
import threading
import cxr_records

read = cxr_records.open({str(tmp_path / "data")!r}).arrays("train", threads=4)

def read_on():
    threading.main_thread().join()
    print(read.gather([0] * 64).any(), flush=True)

threading.Thread(target=read_on).start()
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (run.returncode, run.stdout, run.stderr) == (0, "True\n", "")


def read_elsewhere(read: Arrays, numbers: list[int]) -> bytes:
    return read.gather(numbers).tobytes() + read.labels[numbers].tobytes()


def test_another_process_reads_the_same_from_what_was_pickled(many_shards):
    read = opened(many_shards, task="binary:Effusion", check=False, threads=2)
    expected = read_elsewhere(read, [3, 0, 5])

    again = pickle.loads(pickle.dumps(read))
    assert (again._threads, again.records.task, len(again)) == (2, read.records.task, len(read))
    assert again._known.all()
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(read_elsewhere, (read, [3, 0, 5])) == expected


def test_what_was_pickled_before_a_rebuild_is_not_opened_after_it(copied_dataset, build):
    read = opened(copied_dataset)
    before, data = read._dataset.id, pickle.dumps(read)
    again = build(copied_dataset, seed=5).manifest.id

    with pytest.raises(CxrError) as error:
        pickle.loads(data)
    assert str(error.value) == (
        f"{copied_dataset} was rebuilt since it was opened: found id {again}, expected {before}; "
        "open it again"
    )


def test_a_forked_process_reads_on(build, tmp_path):
    """In a process without TensorFlow, which does not bear it."""
    build(tmp_path / "data", codec="png")
    code = f"""
import os, sys
import cxr_records
read = cxr_records.open({str(tmp_path / "data")!r}).arrays("train", threads=3)
first = read.gather(range(100)).tobytes()  # so that threads are there
child = os.fork()
same = read.gather(range(100)).tobytes() == first
if child == 0:
    os._exit(0 if same else 1)
_, status = os.waitpid(child, 0)
sys.exit(0 if same and status == 0 else 1)
"""
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, timeout=60)


def test_a_forked_process_fetches_for_itself(many_shards, tmp_path):
    """What the parent had fetched, its threads and its locks are not those of the child."""
    code = f"""
import os, sys
import cxr_records, fsspec
memory = fsspec.filesystem("memory")
for file in os.scandir({str(many_shards)!r}):
    if file.is_file():
        memory.pipe("/bucket/" + file.name, open(file.path, "rb").read())
expected = cxr_records.open({str(many_shards)!r}).arrays("train").gather(range(100)).tobytes()
read = cxr_records.open("memory://bucket").arrays("train", cache_dir={str(tmp_path)!r})
first = read.gather(range(50)).tobytes()  # of the first shards
child = os.fork()
same = read.gather(range(100)).tobytes() == expected and expected.startswith(first)
if child == 0:
    os._exit(0 if same else 1)
_, status = os.waitpid(child, 0)
sys.exit(0 if same and status == 0 else 1)
"""
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, timeout=60)


# Damage


@pytest.fixture(scope="module")
def to_damage(dataset, tmp_path_factory) -> Path:
    """A copy of the dataset, which is put right again after each damage."""
    return Path(shutil.copytree(dataset, tmp_path_factory.mktemp("damage") / "cxr14"))


def row_of(dataset: Path, split: str, number: int) -> dict:
    records = open_dataset(dataset).records.to_pylist()
    return [row for row in records if row["split"] == split][number]


@given(st.data())
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_flipped_bit_anywhere_in_a_record_is_found_at_its_first_reading_and_named(to_damage, data):
    number = data.draw(st.integers(0, 33))
    row, after = (row_of(to_damage, "test", n) if n < 34 else None for n in (number, number + 1))
    path = to_damage / row["shard"]
    whole = path.read_bytes()
    place = data.draw(st.integers(row["offset"], (after["offset"] if after else len(whole)) - 1))
    damaged = bytearray(whole)
    damaged[place] ^= 1 << data.draw(st.integers(0, 7))
    others = [n for n in range(34) if n != number]
    read = opened(to_damage, "test")
    try:
        path.write_bytes(damaged)  # the same file, which is held open
        for _ in range(2):  # asked again it says so again
            with pytest.raises(CxrError) as error:
                read.gather([0, number])
            said = f"{path} record {number} ({row['image_id']}) is damaged: the checksum of the record's "
            assert str(error.value).startswith(said)
            assert str(error.value).endswith(f" does not match; {VERIFY}")
        assert read.gather(others).any()
        assert len(opened(to_damage, "test", check=False).gather([number])) == 1
    finally:
        path.write_bytes(whole)
    assert read.gather([number]).any()


def test_a_checksum_is_compared_once(dataset, monkeypatch):
    read, seen = opened(dataset), []
    unframe = arrays.unframe
    monkeypatch.setattr(arrays, "unframe", lambda data, offset: seen.append(offset) or unframe(data, offset))

    first = read.gather([5, 6, 7])
    np.testing.assert_array_equal(read.gather([5, 7, 6, 5]), first[[0, 2, 1, 0]])
    assert len(seen) == 3


@pytest.mark.parametrize("known", [True, False])
def test_a_shard_that_is_cut_short_while_it_is_read_is_named_with_the_record(copied_dataset, known):
    read = opened(copied_dataset, "test", check=not known)
    row = row_of(copied_dataset, "test", 20)
    path = copied_dataset / row["shard"]
    with open(path, "r+b") as file:
        file.truncate(row["image_offset"] + 100)

    assert read.gather([0, 19]).any()
    with pytest.raises(CxrError) as error:
        read.gather([0, 20])
    assert str(error.value) == (
        f"{path} record 20 ({row['image_id']}) is damaged: the file ends within it; {VERIFY}"
    )


def test_a_missing_or_shorter_shard_is_named_before_anything_is_read(copied_dataset):
    shard = copied_dataset / manifest_json(copied_dataset)["splits"]["test"]["shards"][0]["file"]
    size = shard.stat().st_size
    shard.write_bytes(shard.read_bytes()[:-5])
    with pytest.raises(CxrError) as error:
        opened(copied_dataset, "test")
    assert str(error.value) == f"{shard}: {size - 5:,} bytes, the manifest says {size:,}; {VERIFY}"
    shard.unlink()
    with pytest.raises(CxrError) as error:
        opened(copied_dataset, "test")
    assert str(error.value) == f"{shard} is missing; {VERIFY}"


def test_a_disk_that_fails_is_said_with_the_record(dataset, monkeypatch):
    read, row = opened(dataset, "test"), row_of(dataset, "test", 3)

    def fail(*_):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "pread", fail)
    with pytest.raises(CxrError) as error:
        read[3]
    assert str(error.value) == (
        f"{dataset / row['shard']} record 3 ({row['image_id']}) cannot be read: Input/output error; {VERIFY}"
    )


def test_more_maps_than_the_system_allows_are_said(dataset, monkeypatch):
    read = opened(dataset, "test")

    def fail(*_, **__):
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr(shard_files.mmap, "mmap", fail)
    with pytest.raises(CxrError) as error:
        read[3]
    shard = dataset / row_of(dataset, "test", 3)["shard"]
    assert str(error.value) == f"{shard} cannot be read: Cannot allocate memory; {VERIFY}"


def test_calls_that_give_a_part_of_the_bytes_give_the_same_images(dataset, monkeypatch):
    expected = opened(dataset).gather(range(20))
    pread, preadv = os.pread, os.preadv
    monkeypatch.setattr(os, "pread", lambda file, count, start: pread(file, min(count, 100), start))
    monkeypatch.setattr(os, "preadv", lambda file, into, start: preadv(file, [into[0][:90]], start))

    read = opened(dataset)
    for _ in range(2):  # with checksums and without
        np.testing.assert_array_equal(read.gather(range(20)), expected)


def test_bytes_that_are_no_image_are_named_with_the_record(build, tmp_path):
    """Whose checksum is right: what wrote them was wrong."""
    build(tmp_path / "data", codec="png")
    row, after = row_of(tmp_path / "data", "test", 0), row_of(tmp_path / "data", "test", 1)
    path = tmp_path / "data" / row["shard"]
    whole = path.read_bytes()
    data = bytearray(whole[12 : after["offset"] - 4])
    start = row["image_offset"] - 12
    data[start : start + 8] = b"no image"
    path.write_bytes(frame(bytes(data)) + whole[after["offset"] :])
    read = opened(tmp_path / "data", "test")

    with pytest.raises(CxrError) as error:
        read[0]
    assert str(error.value).startswith(f"{path} record 0 ({row['image_id']}) is damaged: ")
    assert str(error.value).endswith(f"; {VERIFY}")
    assert read[1][0].any()


# Under its feet


def test_it_reads_the_dataset_that_it_began_with_whatever_is_built_there(dataset, copied_dataset, build):
    expected = contents(opened(dataset).batches(4, epochs=3))
    known = open_dataset(copied_dataset)
    read = known.arrays("train")
    batches = read.batches(4, epochs=3)
    seen = [next(batches) for _ in range(3)]
    before = known.id
    again = build(copied_dataset, seed=5).manifest.id

    assert contents([*seen, *batches]) == expected
    with pytest.raises(CxrError) as error:
        known.arrays("train")
    assert str(error.value) == (
        f"{copied_dataset} was rebuilt since it was opened: found id {again}, expected {before}; "
        "open it again"
    )


def test_shards_are_closed_when_nobody_refers_to_them(copied_dataset):
    def held() -> int:
        gc.collect()
        links = [f"/proc/self/fd/{number}" for number in os.listdir("/proc/self/fd")]
        return sum(str(copied_dataset) in os.readlink(link) for link in links if os.path.islink(link))

    read = opened(copied_dataset)
    assert held() == len(read.records.shards)
    batches = read.batches(4)
    del read
    next(batches)
    assert held() > 0
    del batches
    assert held() == 0


def test_more_shards_than_a_process_may_open_are_said(dataset, monkeypatch):
    monkeypatch.setattr(shard_files.resource, "getrlimit", lambda _: (20, 20))
    with pytest.raises(CxrError) as error:
        opened(dataset)
    assert str(error.value).startswith(
        "found 3 shards, which are held open while they are read, and a limit of 20 "
    )


def test_several_splits_that_are_opened_before_one_is_read_may_be_mapped_all(dataset, monkeypatch):
    """A map takes a descriptor of its own."""
    limits = [20, 4096]
    monkeypatch.setattr(shard_files.resource, "getrlimit", lambda _: tuple(limits))
    monkeypatch.setattr(shard_files.resource, "setrlimit", lambda _, wanted: limits.__setitem__(0, wanted[0]))
    monkeypatch.setattr(shard_files, "_OTHER_FILES", 0)

    reads = [opened(dataset) for _ in range(20)]
    for read in reads:
        read.gather(range(len(read)))
    assert len(os.listdir("/proc/self/fd")) <= limits[0]


def test_nothing_of_tensorflow_is_loaded(dataset):
    code = f"""
import sys
import cxr_records
read = cxr_records.open({str(dataset)!r}).arrays("train")
next(read.batches(4)), read[0]
assert not {{"tensorflow", "keras", "apache_beam"}} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


# Remote


def largest_of(dataset: Path) -> int:
    return max(shard["bytes"] for shard in manifest_json(dataset)["splits"]["train"]["shards"])


@pytest.mark.parametrize(
    "options", [{"seed": 3, "epochs": 3}, {"shuffle": False}, {"epochs": 1, "num_hosts": 3, "host": 1}]
)
def test_a_remote_dataset_gives_the_same_batches_within_the_bytes_allowed(
    many_shards, remote, tmp_path, options
):
    limit = 10 * largest_of(many_shards)  # seven are read at once, three more: the smallest that will do
    expected = contents(opened(many_shards).batches(4, **options))

    read = opened(remote, cache_dir=str(tmp_path), cache_bytes=limit)
    found = []
    for batch in read.batches(4, **options):
        found.append(batch)
        assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= limit

    assert contents(found) == expected


def test_images_of_a_remote_dataset_are_gathered_with_the_smallest_cache_and_several_threads(
    many_shards, remote, tmp_path
):
    limit = 4 * largest_of(many_shards)
    read = opened(remote, cache_dir=str(tmp_path), cache_bytes=limit)
    n, expected = len(read), opened(many_shards).gather(range(len(read)))

    rng = np.random.default_rng(0)
    for _ in range(5):
        numbers = rng.integers(0, n, 30)
        np.testing.assert_array_equal(read.gather(numbers), expected[numbers])
        assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= limit


def test_a_remote_shard_is_fetched_by_its_reader_once_no_thread_begins_work(many_shards, remote, tmp_path):
    read = opened(remote, cache_dir=str(tmp_path))
    read._files._pool.shutdown()  # as Python does when its main thread has ended
    expected = contents(opened(many_shards).batches(4, epochs=1))
    assert contents(read.batches(4, epochs=1)) == expected


def test_a_cache_that_is_removed_meanwhile_is_made_again(many_shards, remote, tmp_path):
    cache = tmp_path / "cache"
    expected = contents(opened(many_shards).batches(4, epochs=2))
    batches = opened(remote, cache_dir=str(cache), cache_bytes=10 * largest_of(many_shards)).batches(
        4, epochs=2
    )
    found = []
    for number, batch in enumerate(batches):
        found.append(batch)
        if number in (1, 5):
            shutil.rmtree(cache, ignore_errors=True)
    assert contents(found) == expected


def test_a_cache_that_cannot_be_written_is_said(remote, tmp_path, monkeypatch):
    read = opened(remote, cache_dir=str(tmp_path))

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "ftruncate", full)
    with pytest.raises(CxrError) as error:
        read[0]
    shard = read.records.shards[0][0]
    assert (
        str(error.value)
        == f"memory://bucket/{shard} could not be put into the cache: No space left on device"
    )


def test_a_cache_that_is_too_small_is_refused_with_what_it_needs(many_shards, remote, tmp_path):
    largest = largest_of(many_shards)
    for limit, at_once in ((4 * largest - 1, 1), (10 * largest - 1, 7)):
        read = opened(remote, cache_dir=str(tmp_path), cache_bytes=limit)
        with pytest.raises(UsageError) as error:
            read[0] if at_once == 1 else read.batches(4)
        assert str(error.value) == (
            f"found a cache of {limit:,} bytes; {at_once} shards of memory://bucket are read at once, so it "
            f"must hold {at_once + 3} of up to {largest:,} bytes: allow {(at_once + 3) * largest:,}"
        )


def test_a_damaged_remote_shard_is_named(remote, many_shards, tmp_path, monkeypatch):
    monkeypatch.setattr("cxr_records.cache.FIRST_WAIT_SECONDS", 0)
    file = manifest_json(many_shards)["splits"]["test"]["shards"][0]["file"]
    data = bytearray(fsspec.filesystem("memory").cat(f"/bucket/{file}"))
    data[100] ^= 1
    fsspec.filesystem("memory").pipe(f"/bucket/{file}", bytes(data))

    read = opened(remote, "test", cache_dir=str(tmp_path))
    for _ in range(2):
        with pytest.raises(CxrError) as error:
            read[0]
        assert str(error.value) == (
            f"memory://bucket/{file} could not be fetched in 4 attempts (its sha256 is not that of the "
            f"manifest); {VERIFY}"
        )


def test_damage_in_the_cache_is_said_to_be_there(remote, many_shards, tmp_path):
    read = opened(remote, "test", cache_dir=str(tmp_path))
    assert read[0][0].any()
    (cached,) = tmp_path.glob("*-of-*")
    row = row_of(many_shards, "test", 1)
    with open(cached, "r+b") as file:
        file.seek(row["offset"] + 20)
        file.write(b"\xff\xff\xff")

    with pytest.raises(CxrError) as error:
        read[1]
    assert str(error.value) == (
        f"memory://bucket/{row['shard']} record 1 ({row['image_id']}) is damaged: the checksum of the "
        f"record's data does not match, in the cache ({cached}); delete it there"
    )


def test_a_remote_dataset_that_was_rebuilt_is_said_to_be_so(many_shards, remote, build, tmp_path):
    again = Path(shutil.copytree(many_shards, tmp_path / "again"))
    read = opened(remote, cache_dir=str(tmp_path / "cache"))
    build(again, seed=5)
    memory = fsspec.filesystem("memory")
    memory.store.clear()
    for file in again.iterdir():
        if file.is_file():
            memory.pipe(f"/bucket/{file.name}", file.read_bytes())

    with pytest.raises(CxrError) as error:
        list(read.batches(4, epochs=1))
    assert re.fullmatch(
        r"memory://bucket was rebuilt since it was opened: found id \w{32}, expected \w{32}; open it again",
        str(error.value),
    )


def test_shards_are_fetched_ahead_in_the_order_of_the_epoch(many_shards, remote, tmp_path):
    read = opened(remote, cache_dir=str(tmp_path))
    asked: list[int] = []
    ahead = read._files.ahead
    read._files.ahead = lambda shards: asked.append(list(shards)) or ahead(shards)

    list(read.batches(4, seed=2, epochs=1))

    order = Order(read.records, shuffle=True, buffer=16384, seed=2).shards(0).tolist()
    assert all(order[len(order) - len(shards) :] == shards for shards in asked)
    assert [len(shards) for shards in asked] == sorted((len(shards) for shards in asked), reverse=True)
    assert asked[-1] == []


def test_memory_of_batches_is_used_again_once_nobody_refers_to_them(dataset):
    batches = opened(dataset).batches(4, epochs=None)
    places = {next(batches)[0].__array_interface__["data"][0] for _ in range(40)}
    kept = [next(batches)[0] for _ in range(5)]

    assert len(places) <= 2
    assert len({images.__array_interface__["data"][0] for images in kept}) == 5
    assert all(images.__array_interface__["data"][0] % 64 == 0 for images in kept)


def test_damage_in_a_copy_without_a_name_never_sends_anybody_to_delete_the_dataset(remote, tmp_path):
    """As TensorFlow fetches shards for `direct=True`."""

    def fetch(url: str, num_bytes: int, sha256: str) -> HeldFile:
        data = bytearray(fsspec.filesystem("memory").cat(url.removeprefix("memory:/")))
        data[100] ^= 1
        (tmp_path / "copy").write_bytes(data)
        return HeldFile("", os.open(tmp_path / "copy", os.O_RDONLY))

    read = opened(remote, "test", fetch=fetch)
    with pytest.raises(CxrError) as error:
        read[0]
    shard = read.records.shards[0][0]
    assert str(error.value) == (
        f"memory://bucket/{shard} record 0 ({read.records.image_ids[0]}) is damaged: the checksum of the "
        "record's data does not match, in the copy that was fetched; run cxr-records verify on the dataset"
    )
