"""The reader: pixels and labels of every codec, the order of training, hosts, derived tasks, damage, URLs."""

import gc
import hashlib
import os
import shutil
import subprocess
import sys
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import chain, pairwise
from pathlib import Path

import fsspec
import numpy as np
import pyarrow.compute as pc
import pytest
import tensorflow as tf
from conftest import manifest_json, pixels, stored

from cxr_records import arrays, order, reader, shard_files, storage
from cxr_records.balancing import expected_draws, reached, times_drawn
from cxr_records.dataset import open_dataset
from cxr_records.errors import CxrError, UsageError
from cxr_records.order import Order, buffer_records
from cxr_records.reader import load_split, shard_errors, steps_per_epoch

BATCH = 16
NATURAL_ORDER = [30, 151, 82, 113, 140, 86, 109, 141, 13, 92, 41, 10, 149, 96, 152, 11, 99, 78, 155, 62]
NATURAL_DIGEST = "f4d0fb3b851457880c7c39c599a4a6d1ecf461b77ce26adeaa484f7641bc0421"


def keys(batches) -> list[list[bytes]]:
    """What tells records apart: their pixels. One list of them for each batch."""
    return [[image.tobytes() for image in batch[0].numpy()] for batch in batches]


# What a batch holds


@pytest.mark.parametrize("task", ["multilabel", "multiclass", "binary"])
@pytest.mark.parametrize("codec", ["raw", "png", "jpeg"])
def test_evaluation_gives_every_image_once_in_manifest_order_and_pads_the_last_batch(
    build, tmp_path, codec, task
):
    build(tmp_path / "data", task=task, codec=codec)
    for split in ("validation", "test"):
        expected = stored(tmp_path / "data", split)

        batches = list(load_split(str(tmp_path / "data"), split, 7))

        images, labels, masks = (np.concatenate(parts) for parts in zip(*batches, strict=True))
        assert all(batch[0].shape == (7, 32, 32, 1) for batch in batches)
        assert [images.dtype, labels.dtype, masks.dtype] == [np.uint8, np.int32, np.float32]
        n = len(expected)
        assert masks.tolist() == [1.0] * n + [0.0] * (-n % 7)
        assert len(images) == n + -n % 7
        # Pillow decodes what TensorFlow decodes, to the bit.
        np.testing.assert_array_equal(images[:n], [pixels(values, codec) for values in expected])
        np.testing.assert_array_equal(
            labels[:n].reshape(n, -1), [list(values["label"]) for values in expected]
        )
        assert not images[n:].any()
        assert not labels[n:].any()


def test_shapes_are_known_before_anything_is_read(dataset):
    train = load_split(str(dataset), "train", BATCH)
    test = load_split(str(dataset), "test", BATCH, last_batch="smaller")

    assert train.element_spec == (
        tf.TensorSpec((BATCH, 32, 32, 1), tf.uint8),
        tf.TensorSpec((BATCH, 14), tf.int32),
    )
    assert test.element_spec[0].shape.as_list() == [None, 32, 32, 1]
    assert int(train.cardinality()) == tf.data.INFINITE_CARDINALITY
    assert int(test.cardinality()) == -(-len(stored(dataset, "test")) // BATCH)


@pytest.mark.parametrize(("last_batch", "sizes"), [("drop", [16, 16]), ("smaller", [16, 16, 2])])
def test_the_last_batch_is_dropped_or_smaller(dataset, last_batch, sizes):
    n = len(stored(dataset, "test"))
    sizes = [16] * (n // 16) + [n % 16] * (last_batch == "smaller" and n % 16 > 0)

    batches = load_split(str(dataset), "test", BATCH, last_batch=last_batch)

    assert [len(image) for image, _ in batches] == sizes


def test_the_table_of_a_split_is_that_of_its_records(dataset):
    held = open_dataset(dataset).split("train")
    expected = stored(dataset, "train")

    def column(name: str) -> list:
        return [values[name][0] for values in expected]

    assert [name.encode() for name in held.image_ids] == column("image_id")
    assert [name.encode() for name in held.views] == column("view")
    assert [name.encode() for name in held.sexes] == column("sex")
    assert held.patient_ids.tolist() == column("patient_id")
    assert held.ages_years.tolist() == column("age_years")
    assert held.copies.tolist() == column("copy")
    assert held.labels.tolist() == [list(values["label"]) for values in expected]
    assert (held.task.name, len(held)) == ("multilabel", len(expected))


# The order of training


def test_an_epoch_holds_each_record_at_most_once_and_drops_less_than_a_batch(many_shards):
    everything = {pixels(values, "raw").tobytes() for values in stored(many_shards, "train")}
    steps = steps_per_epoch(str(many_shards), "train", BATCH)

    epoch = [*chain(*keys(load_split(str(many_shards), "train", BATCH, epochs=1)))]

    assert steps == len(stored(many_shards, "train")) // BATCH
    assert len(epoch) == steps * BATCH
    assert set(epoch) <= everything
    assert len(everything) - len(set(epoch)) < BATCH


def test_the_order_is_that_of_seed_and_epoch_alone(many_shards):
    def epochs(seed: int, start: int = 0) -> list:
        return keys(load_split(str(many_shards), "train", BATCH, seed=seed, start_epoch=start, epochs=2))

    tf.random.set_seed(1)
    first = epochs(5)
    tf.random.set_seed(2)
    steps = len(first) // 2

    assert epochs(5) == first
    assert epochs(5, start=1) == first[steps:]
    assert first[:steps] != first[steps:]
    assert epochs(6) != first


@pytest.fixture(scope="module")
def unbroken(many_shards) -> list[list[bytes]]:
    """Four epochs in one go."""
    return keys(load_split(str(many_shards), "train", BATCH, seed=1, epochs=4))


@pytest.mark.parametrize(
    ("epoch", "batch"), [(0, 0), (0, 1), (0, "last"), (1, 0), (1, 2), (2, "all"), (3, "last"), (3, "all")]
)
def test_reading_goes_on_from_any_batch_as_if_it_had_never_stopped(many_shards, unbroken, epoch, batch):
    steps = steps_per_epoch(str(many_shards), "train", BATCH)
    assert len(unbroken) == 4 * steps
    batch = {"last": steps - 1, "all": steps}.get(batch, batch)

    resumed = load_split(
        str(many_shards), "train", BATCH, seed=1, start_epoch=epoch, start_batch=batch, epochs=4
    )

    assert keys(resumed) == unbroken[epoch * steps + batch :]
    assert int(resumed.cardinality()) == len(unbroken) - epoch * steps - batch


@pytest.mark.parametrize(("num_hosts", "epoch"), [(2, 0), (2, 3), (3, 1), (7, 2)])
def test_hosts_share_an_epoch_without_doubling_a_record_and_in_as_many_steps(many_shards, num_hosts, epoch):
    steps = steps_per_epoch(str(many_shards), "train", 4, num_hosts=num_hosts)
    parts = [
        keys(
            load_split(
                str(many_shards), "train", 4, start_epoch=epoch, epochs=epoch + 1, host=h, num_hosts=num_hosts
            )
        )
        for h in range(num_hosts)
    ]

    assert [len(part) for part in parts] == [steps] * num_hosts
    seen = [*chain(*chain(*parts))]
    assert len(seen) == len(set(seen)) == steps * 4 * num_hosts


@pytest.mark.parametrize("num_hosts", [2, 3, 7])
def test_hosts_evaluate_every_image_exactly_once(many_shards, num_hosts):
    expected = sorted(pixels(values, "raw").tobytes() for values in stored(many_shards, "train"))
    seen, counts = [], set()
    for host in range(num_hosts):
        batches = list(
            load_split(str(many_shards), "train", 8, shuffle=False, host=host, num_hosts=num_hosts)
        )
        counts.add(len(batches))
        for images, _, mask in batches:
            seen += [image.tobytes() for image in images.numpy()[mask.numpy() == 1]]

    assert sorted(seen) == expected
    assert len(counts) == 1


def test_the_order_of_natural_sampling_is_what_it_was_before_there_was_another(many_shards):
    """Of the records in manifest order: who goes on with a run of an older version goes on as it began."""
    places = {pixels(v, "raw").tobytes(): place for place, v in enumerate(stored(many_shards, "train"))}

    order = [places[key] for key in chain(*keys(load_split(str(many_shards), "train", BATCH, epochs=2)))]

    assert order[:20] == NATURAL_ORDER
    assert hashlib.sha256(str(order).encode()).hexdigest() == NATURAL_DIGEST


@pytest.mark.parametrize("task", [None, "binary:Effusion"])
@pytest.mark.parametrize("options", [{"sampling": "class_balanced"}, {"host": 1, "num_hosts": 2}])
def test_records_come_in_the_order_that_the_order_of_training_gives(many_shards, options, task):
    opened = open_dataset(many_shards).as_task(task)
    records = opened.split("train")
    buffer = buffer_records(opened.splits["train"].shards)
    everything = stored(many_shards, "train")
    part = [v for v, takes_part in zip(everything, records.takes_part, strict=True) if takes_part]
    steps = steps_per_epoch(opened, "train", 4, num_hosts=options.get("num_hosts", 1))

    batches = keys(load_split(opened, "train", 4, seed=9, start_epoch=2, epochs=3, **options))

    order = Order(records, shuffle=True, seed=9, buffer=buffer, **options)
    numbers = [batch.tolist() for batch in order.batches(2, 4)][:steps]
    assert batches == [[pixels(part[number], "raw").tobytes() for number in batch] for batch in numbers]


# Class-balanced sampling


def balanced(dataset: Path, batch_size: int = BATCH, **options):
    return load_split(str(dataset), "train", batch_size, sampling="class_balanced", **options)


@pytest.mark.parametrize("task", [None, "multiclass", "binary:Effusion"])
def test_an_epoch_draws_each_record_as_often_as_the_rule_says(many_shards, task):
    split = open_dataset(many_shards).as_task(task).split("train")
    everything = [pixels(values, "raw").tobytes() for values in stored(many_shards, "train")]
    expected = np.zeros(len(everything))
    expected[split.takes_part] = expected_draws(split.task, split.labels, [n for _, n, _ in split.shards])
    shards = [n for _, _, n in split.shards]
    parts = np.split(reached(expected, shards), np.cumsum(shards)[:-1])

    for epoch in (0, 3):
        batches = balanced(
            many_shards, task=task, seed=4, start_epoch=epoch, epochs=epoch + 1, last_batch="smaller"
        )
        drawn = Counter(chain(*keys(batches)))

        times = np.concatenate([times_drawn(part, 4, place, epoch) for place, part in enumerate(parts)])
        assert [drawn[key] for key in everything] == times.tolist()
        assert sum(drawn.values()) == len(split)


def test_class_balanced_batches_hold_the_labels_of_their_images(many_shards):
    split = open_dataset(many_shards).split("train")
    labels = {pixels(v, "raw").tobytes(): list(v["label"]) for v in stored(many_shards, "train")}

    for images, found in balanced(many_shards, epochs=1):
        assert found.numpy().tolist() == [labels[image.tobytes()] for image in images.numpy()]
    assert len(labels) == len(split)


@pytest.fixture(scope="module")
def unbroken_draws(many_shards) -> list[list[bytes]]:
    """Three epochs in one go."""
    return keys(balanced(many_shards, seed=1, epochs=3))


@pytest.mark.parametrize(("epoch", "batch"), [(0, 1), (1, 0), (1, 2), (2, "last"), (1, "all")])
def test_class_balanced_reading_goes_on_from_any_batch(many_shards, unbroken_draws, epoch, batch):
    steps = steps_per_epoch(str(many_shards), "train", BATCH)
    assert len(unbroken_draws) == 3 * steps
    batch = {"last": steps - 1, "all": steps}.get(batch, batch)

    resumed = balanced(many_shards, seed=1, start_epoch=epoch, start_batch=batch, epochs=3)

    assert keys(resumed) == unbroken_draws[epoch * steps + batch :]


def test_class_balanced_epochs_and_seeds_differ(many_shards, unbroken_draws):
    steps = len(unbroken_draws) // 3
    epochs = [unbroken_draws[place * steps :][:steps] for place in range(3)]

    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]
    assert keys(balanced(many_shards, seed=2, epochs=1)) != epochs[0]


@pytest.mark.parametrize("num_hosts", [2, 7])
def test_hosts_draw_from_shards_of_their_own_in_as_many_steps(many_shards, num_hosts):
    steps = steps_per_epoch(str(many_shards), "train", 4, num_hosts=num_hosts)
    parts = [keys(balanced(many_shards, 4, epochs=1, host=h, num_hosts=num_hosts)) for h in range(num_hosts)]

    assert [len(part) for part in parts] == [steps] * num_hosts
    seen = [set(chain(*part)) for part in parts]
    assert sum(map(len, seen)) == len(set.union(*seen))


def test_copies_of_a_record_lie_apart_even_without_a_shuffle_buffer(many_shards, monkeypatch):
    monkeypatch.setattr(order, "SHUFFLE_RECORDS", 1)
    drawn = [*chain(*keys(balanced(many_shards, seed=1, epochs=20)))]

    together = np.mean([one == other for one, other in pairwise(drawn)])

    # In a block of a shard's, as independent draws would: side by side each repetition would be.
    shards = open_dataset(many_shards).split("train").shards
    share = np.array(list(Counter(drawn).values())) / len(drawn)
    assert 1 - len(set(drawn)) * 20 / len(drawn) < 0.5
    assert together < 2 * len(shards) * (share**2).sum()


def damage(dataset: Path, split: str, place: int) -> str:
    """Flips a bit of a pixel of a record in the split's first shard; returns what there is to say then."""
    shard = manifest_json(dataset)["splits"][split]["shards"][0]["file"]
    row = open_dataset(dataset).records.filter(pc.field("shard") == shard).slice(place, 1).to_pylist()[0]
    data = bytearray((dataset / shard).read_bytes())
    data[row["image_offset"] + 3] ^= 4
    (dataset / shard).write_bytes(data)
    return (
        f"{dataset / shard} record {place} ({row['image_id']}) is damaged: the checksum of the record's data "
        "does not match; run cxr-records verify on the dataset"
    )


def test_a_flipped_bit_stops_class_balanced_reading_and_the_record_is_named(copied_dataset):
    said = damage(copied_dataset, "train", 5)

    with pytest.raises(CxrError) as error, shard_errors():
        list(balanced(copied_dataset, epochs=20))
    assert str(error.value) == said


# Another task


@pytest.mark.parametrize(
    "task", ["binary", "binary:Effusion", "binary:Mass,Nodule", "multiclass", "multiclass:No Finding"]
)
def test_a_derived_task_holds_the_images_and_labels_of_a_dataset_built_for_it(build, dataset, tmp_path, task):
    build(tmp_path / "own", task=task)
    own = open_dataset(tmp_path / "own").split("test")
    expected = dict(zip(own.image_ids, own.labels.tolist(), strict=True))

    derived = open_dataset(dataset).as_task(task).split("test")
    assert dict(zip(derived.image_ids, derived.labels.tolist(), strict=True)) == expected
    batches = load_split(str(dataset), "test", 5, task=task, last_batch="smaller")
    labels = np.concatenate([label.numpy() for _, label in batches])
    assert labels.tolist() == derived.labels.tolist()
    images = [image for batch, _ in batches for image in batch.numpy()]
    kept = [v for v in stored(dataset, "test") if v["image_id"][0].decode() in expected]
    np.testing.assert_array_equal(images, [pixels(values, "raw") for values in kept])


@pytest.mark.parametrize("task", ["binary", "binary:Effusion", "multiclass:No Finding", "multilabel"])
def test_padding_has_no_pixel_and_no_label_whatever_the_task(dataset, task):
    n = len(open_dataset(dataset).as_task(task).split("test"))
    batch_size = n - 1 if n > 2 else n + 1  # so that a batch is padded

    images, labels, mask = (
        np.concatenate(parts)
        for parts in zip(*load_split(str(dataset), "test", batch_size, task=task), strict=True)
    )

    padding = mask == 0
    assert padding.tolist() == [False] * n + [True] * (-n % batch_size)
    assert padding.any()
    assert not images[padding].any()
    assert labels[padding].tolist() == np.zeros_like(labels[padding]).tolist()


# What is wrong


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"split": "tset"}, "found split 'tset'; {dataset} has train, validation, test"),
        ({"batch_size": 0}, "found batch size 0 and 1 hosts; expected 1 or more of each"),
        ({"host": 2, "num_hosts": 2}, "found host 2 of 2 hosts; expected 0 to 1"),
        (
            {"sampling": "balanced"},
            "found sampling 'balanced'; expected one of natural, class_balanced",
        ),
        (
            {"sampling": "class_balanced", "split": "test"},
            "found sampling 'class_balanced' of records in manifest order; expected `shuffle=True`",
        ),
        ({"last_batch": "keep"}, "found last_batch 'keep'; expected one of drop, pad, smaller"),
        (
            {"num_hosts": 9},
            "found 9 hosts for the 3 shards of split train; each host needs one: build with a smaller "
            "`shard_mb`",
        ),
    ],
)
def test_a_wrong_argument_is_refused(dataset, arguments, message):
    with pytest.raises(UsageError) as error:
        load_split(**{"dataset": str(dataset), "split": "train", "batch_size": 4, **arguments})
    assert str(error.value) == message.format(dataset=dataset)


def test_only_a_multilabel_dataset_gives_other_tasks(build, tmp_path):
    build(tmp_path / "data", task="binary")

    with pytest.raises(UsageError) as error:
        load_split(str(tmp_path / "data"), "train", 4, task="multiclass")
    assert str(error.value) == (
        f"found task multiclass; {tmp_path / 'data'} was built for binary, and only a multilabel dataset "
        "gives other tasks: build one with `task=multilabel`"
    )


def test_a_batch_larger_than_the_split_is_refused(dataset):
    n = len(stored(dataset, "train"))
    with pytest.raises(UsageError) as error:
        load_split(str(dataset), "train", n + 1)
    assert str(error.value) == (
        f"found a batch of {n + 1}, larger than split train, which has {n} records; expected a smaller one"
    )


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_flipped_bit_stops_the_reading_and_the_record_is_named(copied_dataset, split):
    folder = copied_dataset.rename(copied_dataset.parent / "[größer] than Anna's")
    said = damage(folder, split, 2)

    batches = iter(load_split(str(folder), split, 4, epochs=1))
    assert read_on(batches, []) == said


def test_what_is_whole_comes_before_what_is_damaged_and_nothing_behind_it(dataset, copied_dataset):
    expected = contents(load_split(str(dataset), "test", 4))
    said = damage(copied_dataset, "test", 9)

    seen: list = []
    assert read_on(iter(load_split(str(copied_dataset), "test", 4)), seen) == said
    assert contents(seen) == expected[:2]


def test_two_iterators_of_one_split_do_not_disturb_each_other(dataset):
    batches = load_split(str(dataset), "train", 4, epochs=2)
    expected = contents(batches)

    one, other = iter(batches), iter(batches)
    seen: tuple[list, list] = ([], [])
    for turn in range(len(expected)):
        seen[0].append(next(one))
        if turn % 3:
            seen[1].append(next(other))
    assert contents(seen[0]) == expected
    assert contents([*seen[1], *other]) == expected


def test_a_batch_that_is_kept_does_not_change_while_others_are_read(dataset):
    batches = load_split(str(dataset), "train", 4, epochs=40)
    kept = [images for images, _ in batches]
    expected = [images.numpy().tobytes() for images, _ in batches]
    assert [images.numpy().tobytes() for images in kept] == expected


def test_a_missing_or_shorter_shard_is_named_before_anything_is_read(copied_dataset):
    shard = copied_dataset / manifest_json(copied_dataset)["splits"]["test"]["shards"][0]["file"]
    size = shard.stat().st_size
    shard.write_bytes(shard.read_bytes()[:-5])
    with pytest.raises(CxrError) as error:
        load_split(str(copied_dataset), "test", 4)
    assert str(error.value) == (
        f"{shard}: {size - 5:,} bytes, the manifest says {size:,}; run cxr-records verify on the dataset"
    )
    shard.unlink()
    with pytest.raises(CxrError) as error:
        load_split(str(copied_dataset), "test", 4)
    assert str(error.value) == f"{shard} is missing; run cxr-records verify on the dataset"


# Under its feet


@pytest.fixture
def rebuilt(build) -> Callable[[Path], str]:
    """Builds another dataset in the place of one, and returns what there is to say then.

    Its shards have the same names; order, copies and the images of train and validation are others.
    """

    def put(folder: Path) -> str:
        before = manifest_json(folder)["id"]
        again = build(folder, seed=5).manifest.id
        assert again != before
        return f"{folder} was rebuilt since it was opened: found id {again}, expected {before}; open it again"

    return put


def read_on(batches: Iterator, seen: list) -> str:
    """Reads to the end of an iterator, and returns what stopped it."""
    with pytest.raises(CxrError) as error, shard_errors():
        seen.extend(batches)
    with pytest.raises(tf.errors.OpError):
        next(batches)  # asked again it does not go on
    return str(error.value)


def contents(batches) -> list[list[bytes]]:
    """Every byte of every part of each batch: pixels, labels, masks."""
    return [[part.numpy().tobytes() for part in batch] for batch in batches]


@pytest.mark.parametrize("after", [0, 1, 5])
@pytest.mark.parametrize(("split", "shuffle"), [("train", True), ("train", False), ("test", False)])
def test_a_reader_ends_on_the_dataset_that_it_began_with_whatever_is_built_there(
    dataset, copied_dataset, rebuilt, split, shuffle, after
):
    expected = contents(load_split(str(dataset), split, 4, shuffle=shuffle, epochs=3))
    opened = open_dataset(copied_dataset)
    batches = iter(load_split(opened, split, 4, shuffle=shuffle, epochs=3))
    seen = [next(batches) for _ in range(after)]
    said = rebuilt(copied_dataset)

    assert contents([*seen, *batches]) == expected
    with pytest.raises(CxrError) as error:
        load_split(opened, split, 4)
    assert str(error.value) == said


def test_a_derived_task_is_read_to_its_end_after_a_rebuild(dataset, copied_dataset, rebuilt):
    def batches(folder: Path) -> Iterator:
        return iter(open_dataset(folder).as_task("binary:Effusion").load("train", 4, epochs=3))

    expected, reading = contents(batches(dataset)), batches(copied_dataset)
    seen = [next(reading)]
    rebuilt(copied_dataset)
    assert contents([*seen, *reading]) == expected


def test_what_was_loaded_gives_the_same_again_after_a_rebuild_and_after_its_files_are_gone(
    copied_dataset, rebuilt
):
    batches = load_split(str(copied_dataset), "test", 4)
    first = contents(batches)
    rebuilt(copied_dataset)
    assert contents(batches) == first
    shutil.rmtree(copied_dataset)
    assert contents(batches) == first


def test_a_rebuild_while_shards_are_opened_is_said(copied_dataset, rebuilt, monkeypatch):
    open_regular, said = storage.open_regular, []

    def rebuild_and_open(path):
        if not said and ".tfrecord-" in path:
            said.append("")
            said[:] = [rebuilt(copied_dataset)]
        return open_regular(path)

    monkeypatch.setattr(storage, "open_regular", rebuild_and_open)
    with pytest.raises(CxrError) as error:
        load_split(str(copied_dataset), "test", 4)
    assert [str(error.value)] == said


def test_shards_are_held_open_while_they_are_read_and_somewhat_longer(copied_dataset, monkeypatch):
    def held() -> int:
        gc.collect()
        links = [f"/proc/self/fd/{number}" for number in os.listdir("/proc/self/fd")]
        return sum(str(copied_dataset) in os.readlink(link) for link in links if os.path.islink(link))

    train, test = (
        len(manifest_json(copied_dataset)["splits"][split]["shards"]) for split in ("train", "test")
    )
    batches = iter(load_split(str(copied_dataset), "train", 4, epochs=1).map(lambda image, label: image))
    next(batches)
    assert train <= held() <= 2 * train  # those that were read are mapped too
    assert len(list(batches)) > 0

    del batches
    assert held() == 2 * train
    still = load_split(str(copied_dataset), "test", 4)
    assert held() == 2 * train + test
    monkeypatch.setattr(reader, "LINGER_SECONDS", -1.0)
    again = load_split(str(copied_dataset), "test", 4)
    assert held() == 2 * test
    del still, again


def test_a_process_may_load_a_split_any_number_of_times(copied_dataset):
    shards = len(manifest_json(copied_dataset)["splits"]["test"]["shards"])
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(50):
        load_split(str(copied_dataset), "test", 4)
    assert len(os.listdir("/proc/self/fd")) - before <= 17 * shards


def test_memory_of_batches_is_free_when_nobody_refers_to_them(copied_dataset):
    def held() -> int:
        return sum(size for array, size in tracked if array() is not None)

    tracked, empty = [], np.empty

    def traced(*args):
        array = empty(*args)
        tracked.append((weakref.ref(array), array.nbytes))
        return array

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(arrays.np, "empty", traced)
        batches = load_split(str(copied_dataset), "train", 16)
        reading = iter(batches.map(lambda image, label: image))
        for _ in range(10):
            batch = next(reading)
    del batches
    gc.collect()
    assert held() > 0
    kept = batch.numpy().copy()
    del reading
    gc.collect()
    assert held() <= 2 * kept.nbytes  # that of the batch
    np.testing.assert_array_equal(batch.numpy(), kept)


ENDING = """
import sys
from cxr_records.reader import load_split
reading = [iter(load_split(sys.argv[1], "train", 32)) for _ in range(3)]
for one in reading:
    next(one)
"""


def test_a_process_that_ends_while_images_are_decoded_ahead_says_nothing_of_it(build, tmp_path):
    build(tmp_path / "data", codec="png")
    run = subprocess.run(
        [sys.executable, "-c", ENDING, str(tmp_path / "data")], capture_output=True, text=True, timeout=300
    )
    assert run.returncode == 0, run.stderr
    assert "Traceback" not in run.stderr


def test_more_shards_than_a_process_may_open_are_said(copied_dataset, monkeypatch):
    allowed = []
    monkeypatch.setattr(shard_files.resource, "getrlimit", lambda _: (20, 4096))
    monkeypatch.setattr(shard_files.resource, "setrlimit", lambda _, limits: allowed.append(limits))
    next(iter(load_split(str(copied_dataset), "test", 4)))
    [(soft, hard)] = allowed
    assert 64 < soft < hard == 4096

    monkeypatch.setattr(shard_files.resource, "getrlimit", lambda _: (20, 20))
    shards = len(manifest_json(copied_dataset)["splits"]["test"]["shards"])
    with pytest.raises(CxrError) as error:
        load_split(str(copied_dataset), "test", 4)
    assert str(error.value) == (
        f"found {shards} shards, which are held open while they are read, and a limit of 20 open files; "
        "raise that (ulimit -Hn), or build with a larger `shard_mb`"
    )


def test_a_fifo_in_the_place_of_a_shard_is_said_and_not_waited_for(copied_dataset):
    shard = copied_dataset / manifest_json(copied_dataset)["splits"]["test"]["shards"][0]["file"]
    shard.unlink()
    os.mkfifo(shard)

    with pytest.raises(CxrError) as error:
        load_split(str(copied_dataset), "test", 4)
    assert str(error.value) == f"{shard} is a FIFO, expected a file"


def test_a_remote_dataset_that_was_rebuilt_is_said_to_be_so(many_shards, remote, rebuilt, tmp_path):
    again = Path(shutil.copytree(many_shards, tmp_path / "again"))
    batches = iter(load_split(remote, "train", 4, epochs=1, cache_dir=str(tmp_path / "cache")))
    rebuilt(again)
    memory = fsspec.filesystem("memory")
    memory.store.clear()
    for file in again.iterdir():
        if file.is_file():
            memory.pipe(f"/bucket/{file.name}", file.read_bytes())

    said = read_on(batches, [])
    assert said.startswith("memory://bucket was rebuilt since it was opened: found id ")
    assert said.endswith("; open it again")


def test_an_error_of_another_kind_passes_through():
    with pytest.raises(tf.errors.InvalidArgumentError), shard_errors():
        tf.debugging.Assert(False, ["something else"])


# Remote


def test_a_remote_dataset_is_read_as_a_local_one_within_the_bytes_allowed(many_shards, remote, tmp_path):
    largest = max(shard["bytes"] for shard in manifest_json(many_shards)["splits"]["train"]["shards"])
    limit = 10 * largest  # seven are read at once, three more fetched ahead: the smallest that will do

    local = keys(load_split(str(many_shards), "train", BATCH, seed=3, epochs=3))
    fetched = keys(
        load_split(remote, "train", BATCH, seed=3, epochs=3, cache_dir=str(tmp_path), cache_bytes=limit)
    )

    assert fetched == local
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= limit


def test_a_cache_that_is_too_small_is_refused_with_what_it_needs(remote, tmp_path):
    with pytest.raises(UsageError) as error:
        load_split(remote, "train", BATCH, cache_dir=str(tmp_path), cache_bytes=1000)
    assert str(error.value).startswith(
        "found a cache of 1,000 bytes; 7 shards of memory://bucket are read at once"
    )


def test_without_tensorflow_io_a_direct_read_says_what_to_install(remote):
    with pytest.raises(UsageError) as error:
        load_split(remote, "test", 4, direct=True)
    assert str(error.value) == (
        "reading without a local cache needs tensorflow-io (No module named 'tensorflow_io'); "
        "pip install '.[tfio]' in a clone, or leave out direct=True"
    )


def test_a_damaged_remote_shard_is_named(remote, many_shards, tmp_path, monkeypatch):
    monkeypatch.setattr("cxr_records.cache.FIRST_WAIT_SECONDS", 0)
    file = manifest_json(many_shards)["splits"]["test"]["shards"][0]["file"]
    data = bytearray(fsspec.filesystem("memory").cat(f"/bucket/{file}"))
    data[100] ^= 1
    fsspec.filesystem("memory").pipe(f"/bucket/{file}", bytes(data))

    batches = iter(load_split(remote, "test", 4, cache_dir=str(tmp_path)))
    with pytest.raises(CxrError) as error, shard_errors():
        list(batches)
    with pytest.raises(tf.errors.InvalidArgumentError):
        next(batches)  # asked again it says so again
    assert str(error.value) == (
        f"memory://bucket/{file} could not be fetched in 4 attempts (its sha256 is not that of the manifest)"
        "; run cxr-records verify on the dataset"
    )


@pytest.mark.parametrize("task", ["binary", "binary:Effusion", "multiclass", "multiclass:No Finding"])
def test_padding_of_a_derived_task_has_label_zero_and_no_weight(dataset, task):
    """A record without findings may be a class, or none, of the task: padding is neither."""
    count = len(open_dataset(dataset).as_task(task).split("test"))

    ((_, label, mask),) = load_split(str(dataset), "test", count + 3, task=task, last_batch="pad")
    assert mask.numpy().tolist() == [1.0] * count + [0.0] * 3
    assert label.numpy()[count:].tolist() == [0, 0, 0]
    assert label.numpy().min() == 0


def test_a_derived_task_leaves_out_its_records_shard_by_shard(many_shards):
    opened = open_dataset(many_shards).as_task("binary:Effusion")
    known = opened.split("train")

    batches = list(opened.load("train", 5, shuffle=False, last_batch="smaller"))
    assert len(known.shards) == 7
    assert not known.takes_part.all()
    assert np.concatenate([label.numpy() for _, label in batches]).tolist() == known.labels.tolist()
    every = [pixels(values, "raw") for values in stored(many_shards, "train")]
    expected = [image for image, part in zip(every, known.takes_part, strict=True) if part]
    np.testing.assert_array_equal(np.concatenate([image.numpy() for image, _ in batches]), expected)
