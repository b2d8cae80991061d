"""The order of training, against TensorFlow's operations, which it was first made of."""

import hashlib
import inspect
from collections import Counter
from itertools import islice

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tf_order import epoch_by_tensorflow

from cxr_records import balancing, order
from cxr_records.dataset import SplitRecords
from cxr_records.manifest import ShardEntry
from cxr_records.order import Order
from cxr_records.tasks import parse_task

KEYS = st.integers(0, 2**63 - 1)
EPOCHS = st.one_of(st.integers(0, 20), st.integers(0, 2**40))


def split_of(counts: list[int], kept: list[int] | None = None, seed: int = 0) -> SplitRecords:
    """A split of shards of so many records, of which so many take part, for a task with rare classes."""
    kept = counts if kept is None else kept
    n = sum(kept)
    spread = (np.arange(n) * 7919 + seed) % 97
    none = np.zeros(n, np.int64)
    takes_part = np.concatenate(
        [np.arange(count) < part for part, count in zip(kept, counts, strict=True)] or [np.zeros(0, bool)]
    )
    return SplitRecords(
        task=parse_task("multiclass:No Finding"),
        image_ids=none.astype(object),
        patient_ids=none,
        views=none.astype(object),
        sexes=none.astype(object),
        ages_years=none,
        copies=none,
        labels=np.minimum(spread * spread // 40, 14),
        shards=tuple((f"{i}", *pair) for i, pair in enumerate(zip(kept, counts, strict=True))),
        takes_part=takes_part,
    )


def numbers(made: Order, epoch: int) -> list[int]:
    return [number for part in made.epoch(epoch) for number in part.tolist()]


# Each operation


@given(KEYS, EPOCHS)
@settings(max_examples=30)
@example(0, 0)
@example(2**63 - 1, 2**62)
def test_a_number_drawn_for_a_key_is_tensorflows(key, epoch):
    drawn = tf.random.stateless_uniform([], [key, epoch], maxval=tf.int64.max, dtype=tf.int64, alg="philox")

    assert order.uniform(key, epoch) == int(drawn)


@given(KEYS, EPOCHS, st.integers(0, 300))
@settings(max_examples=30)
@example(1, 1, 0)
@example(1, 1, 1)
def test_a_shuffle_is_tensorflows(key, epoch, count):
    values = np.arange(count) * 7
    expected = tf.random.experimental.stateless_shuffle(values, [key, epoch], alg="philox")

    assert order.shuffled(values, order._stateless(key, epoch)).tolist() == expected.numpy().tolist()


@given(st.integers(0, 2**63 - 2), st.integers(0, 600), st.integers(1, 700), st.integers(1, 90))
@settings(max_examples=30)
@example(0, 100, 10, 7)
@example(2**31 - 1, 100, 10, 7)  # 0 again, where TensorFlow takes a seed modulo that
def test_a_shuffle_buffer_draws_as_tf_data_does(seed, count, size, chunk):
    @tf.function
    def expected() -> tf.Tensor:
        tf.random.set_seed(1)
        shuffled = tf.data.Dataset.range(count).shuffle(
            size, tf.constant(seed, tf.int64), reshuffle_each_iteration=False
        )
        return shuffled.batch(max(1, count)).reduce(
            tf.zeros([0], tf.int64), lambda before, part: tf.concat([before, part], 0)
        )

    parts = (np.arange(start, min(count, start + chunk)) for start in range(0, count, chunk))
    drawn = [
        n for part in order.through_buffer(parts, size, order._of_a_dataset(seed)) for n in part.tolist()
    ]
    assert drawn == expected().numpy().tolist()


@given(st.lists(st.integers(0, 4), max_size=30))
@settings(max_examples=30)
@example([])
@example([0] * 9 + [1])
def test_shards_are_read_in_turn_as_tf_data_does(lengths):
    def blocks(shard: int) -> list[np.ndarray]:
        return [np.array([shard, block]) for block in range(lengths[shard])]

    counts = tf.constant(lengths or [0], tf.int64)

    def of_shard(shard: tf.Tensor) -> tf.data.Dataset:
        return tf.data.Dataset.range(counts[shard]).map(lambda block: tf.stack([shard, block]))

    dataset = tf.data.Dataset.range(len(lengths)).interleave(
        of_shard, order.INTERLEAVED_SHARDS, block_length=1
    )
    taken = order.interleaved(iter(blocks(shard)) for shard in range(len(lengths)))
    assert [block.tolist() for block in taken] == [pair.numpy().tolist() for pair in dataset]


def test_random_numbers_are_those_of_philox_as_published():
    """The known answers of the authors' own library (Random123 1.14, kat_vectors)."""
    ones = 2**64 - 1
    assert order.Philox(0, 0).take(4).tolist() == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]
    assert order.Philox(ones, ones, ones).take(4).tolist() == [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]
    key, stream, start = 0x299F31D0A4093822, 0x0370734413198A2E, 0x85A308D3243F6A88
    assert order.Philox(key, stream, start).take(4).tolist() == [
        0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1,
    ]  # fmt: skip


@given(st.lists(st.integers(0, 50)))
def test_random_numbers_do_not_depend_on_how_many_are_taken_at_once(lengths):
    parts, whole = order.Philox(1, 2, 3), order.Philox(1, 2, 3)

    assert [n for length in lengths for n in parts.take(length).tolist()] == whole.take(sum(lengths)).tolist()


# Whole epochs


@st.composite
def epochs(draw) -> tuple[SplitRecords, dict]:
    """A split of up to 20 shards, some of records that take no part, and arguments of an epoch."""
    counts = draw(st.lists(st.integers(0, 70), min_size=1, max_size=20))
    kept = [draw(st.sampled_from([0, count, count, count // 2])) for count in counts]
    num_hosts = draw(st.integers(1, min(3, len(counts))))
    shuffle = draw(st.integers(0, 5)) > 0
    return split_of(counts, kept, draw(st.integers(0, 9))), {
        "shuffle": shuffle,
        "buffer": draw(st.sampled_from([1, 2, 17, 100, 1000, 16384])),
        "seed": draw(st.integers(0, 2**32)),
        "sampling": draw(st.sampled_from(balancing.SAMPLINGS)) if shuffle else balancing.NATURAL,
        "host": draw(st.integers(0, num_hosts - 1)),
        "num_hosts": num_hosts,
    }


@given(epochs(), EPOCHS)
@settings(max_examples=20)
def test_an_epoch_is_the_one_that_tensorflow_gives(made, epoch):
    records, options = made

    assert numbers(Order(records, **options), epoch) == epoch_by_tensorflow(records, epoch=epoch, **options)


@pytest.mark.parametrize("sampling", balancing.SAMPLINGS)
def test_an_epoch_longer_than_chunks_and_buffer_is_the_one_that_tensorflow_gives(sampling):
    records = split_of([900, 700, 1, 500, 16, 33, 800, 600, 400, 17])

    options = {"shuffle": True, "buffer": 1000, "seed": 3, "sampling": sampling}

    assert numbers(Order(records, **options), 5) == epoch_by_tensorflow(records, epoch=5, **options)


@given(epochs(), st.integers(1, 300), st.integers(0, 5))
def test_batches_are_the_epoch_cut_into_lengths_from_any_of_them_on(made, batch_size, start):
    records, options = made
    made = Order(records, **options)
    whole = numbers(made, 1)

    batches = [batch.tolist() for batch in made.batches(1, batch_size, start)]

    assert batches == [
        whole[at : at + batch_size] for at in range(start * batch_size, len(whole), batch_size)
    ]


def test_hosts_share_the_records_of_an_epoch():
    records = split_of([100, 7, 50, 1, 64, 64, 64])

    seen = Counter()
    for host in range(3):
        made = Order(records, shuffle=True, buffer=30, seed=1, host=host, num_hosts=3)
        seen.update(numbers(made, 2))
        own = {n for shard in made.shards(2).tolist() for n in made._natural(shard).tolist()}
        assert own == set(numbers(made, 2))
    assert seen == Counter(range(len(records)))


def test_an_epoch_of_ten_million_records_begins_with_the_first_shards_alone():
    counts = [1000] * 10_000
    none = np.zeros(0)
    records = SplitRecords(
        *(parse_task("multilabel"), *[none] * 7), tuple((f"{i}", n, n) for i, n in enumerate(counts)), none
    )
    made, opened = Order(records, shuffle=True, buffer=16384), []
    made._natural = lambda shard: opened.append(shard) or Order._natural(made, shard)

    batches = list(islice(made.batches(0, 256), 3))

    assert [len(batch) for batch in batches] == [256] * 3
    # The buffer's worth, and shards that are read in turn.
    assert opened == made.shards(0)[: len(opened)].tolist()
    assert len(opened) <= 16384 // 1000 + 2 * order.INTERLEAVED_SHARDS


@pytest.mark.parametrize(
    ("sampling", "first", "digest"),
    [
        (
            "natural",
            [23, 3009, 2204, 1473, 2208, 532, 4618, 1457, 2979, 555],
            "1d9f35e185c44b4b7ac83954d0e4f8ec31b751aa31c6ca999f6b6de061546c5e",
        ),
        (
            "class_balanced",
            [385, 3170, 2361, 1507, 2300, 975, 4589, 1471, 3256, 1125],
            "c2e222e0a67d6719cc3e0c48d5cddc2d65917e08b7911dde67e2ee6f174ca55e",
        ),
    ],
)
def test_the_order_is_what_it_was_when_tensorflow_made_it(sampling, first, digest):
    """Held beside the comparisons, which would follow a TensorFlow that changes: runs go on as they began."""
    records = split_of([500, 900, 33, 700, 16, 1, 800, 640, 999, 50])
    made = Order(records, shuffle=True, buffer=600, sampling=sampling)
    order_of_two = numbers(made, 0) + numbers(made, 1)

    assert order_of_two[:10] == first
    assert hashlib.sha256(str(order_of_two).encode()).hexdigest() == digest


@pytest.mark.parametrize(("mean_bytes", "expected"), [(50_000, 1342), (1000, 16384), (4 << 20, 16)])
def test_the_buffer_holds_64_mib_or_16384_records(mean_bytes, expected):
    entries = [ShardEntry("a", 3, 3 * mean_bytes, ""), ShardEntry("b", 1, mean_bytes, "")]

    assert order.buffer_records(entries) == expected


def test_the_module_needs_no_tensorflow():
    assert "import tensorflow" not in inspect.getsource(order)
