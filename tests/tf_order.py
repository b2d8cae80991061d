"""The order of training as TensorFlow's own operations make it: how it was first defined, and an oracle."""

import numpy as np
import tensorflow as tf

from cxr_records import balancing
from cxr_records.dataset import SplitRecords
from cxr_records.order import BLOCK_RECORDS, INTERLEAVED_SHARDS
from cxr_records.seeding import keyed_hash


def epoch_by_tensorflow(
    records: SplitRecords,
    *,
    shuffle: bool,
    buffer: int,
    epoch: int,
    seed: int = 0,
    sampling: str = balancing.NATURAL,
    host: int = 0,
    num_hosts: int = 1,
) -> list[int]:
    """The numbers of an epoch's records; arguments as those of `order.Order`."""
    counts = np.array([kept for _, kept, _ in records.shards], np.int64)
    starts = np.cumsum(counts) - counts

    def in_shard(shard: tf.Tensor) -> tf.data.Dataset:
        start = tf.gather(starts, shard)
        return tf.data.Dataset.range(start, start + tf.gather(counts, shard))

    def drawn_of(shard: tf.Tensor, epoch: tf.Tensor) -> tf.data.Dataset:
        expected = balancing.expected_draws(records.task, records.labels, counts.tolist())
        upto = tf.constant(balancing.reached(expected, counts.tolist()))
        first = np.array([balancing.first_offset(seed, n) for n in range(len(counts))])
        keys = np.array([keyed_hash(seed, "order in shard", n) >> 1 for n in range(len(counts))])
        start, count = tf.gather(starts, shard), tf.gather(counts, shard)
        ring = tf.gather(first, shard) + epoch * balancing.OFFSET_STEP
        offset = tf.cast(tf.math.floormod(ring, balancing.OFFSETS), tf.float64) / balancing.OFFSETS
        drawn = tf.cast(tf.floor(upto[start : start + count] + offset), tf.int64)
        times = drawn - tf.concat([[0], drawn[:-1]], axis=0)
        order = tf.random.experimental.stateless_shuffle(
            tf.repeat(tf.range(start, start + count), times), [tf.gather(keys, shard), epoch], alg="philox"
        )
        return tf.data.Dataset.from_tensor_slices(order)

    def of_epoch(epoch: tf.Tensor) -> tf.data.Dataset:
        shards = tf.range(len(counts), dtype=tf.int64)
        if not shuffle:
            return tf.data.Dataset.from_tensor_slices(shards[host::num_hosts]).flat_map(in_shard)
        key = tf.constant(keyed_hash(seed, "order of shards") >> 1, tf.int64)
        shards = tf.random.experimental.stateless_shuffle(shards, [key, epoch], alg="philox")
        shards = tf.data.Dataset.from_tensor_slices(shards[host::num_hosts])

        def blocks_of(shard: tf.Tensor) -> tf.data.Dataset:
            balanced = sampling == balancing.CLASS_BALANCED
            return (drawn_of(shard, epoch) if balanced else in_shard(shard)).batch(BLOCK_RECORDS)

        blocks = shards.interleave(blocks_of, INTERLEAVED_SHARDS, block_length=1)
        key = tf.constant(keyed_hash(seed, "shuffle buffer", host, num_hosts) >> 1, tf.int64)
        drawn = tf.random.stateless_uniform(
            [], [key, epoch], maxval=tf.int64.max, dtype=tf.int64, alg="philox"
        )
        tf.random.set_seed(1)  # of the graph that tf.data makes of this function
        return blocks.unbatch().shuffle(buffer, drawn, reshuffle_each_iteration=False)

    epochs = tf.data.Dataset.range(epoch, epoch + 1).flat_map(of_epoch)
    return [int(number) for number in epochs.as_numpy_iterator()]
