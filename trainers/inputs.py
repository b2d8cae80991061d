"""What feeds a model: the reader's batches, and how long the trainer waited for them."""

import time
from typing import Any

import tensorflow as tf

from cxr_records.python_calls import python_call

PREFETCHED_BATCHES = 4


class WaitMeter:
    """Counts the seconds for which a batch that was asked for was not there yet."""

    def __init__(self) -> None:
        self._seconds = tf.Variable(0.0, dtype=tf.float64, trainable=False, name="input_wait")

    @property
    def seconds(self) -> float:
        """The wait so far."""
        return float(self._seconds.numpy())

    def measure(self, batches: tf.data.Dataset) -> tf.data.Dataset:
        """Returns the same batches, made ahead of their use; waiting for them is counted.

        The clock is read just before and just after a batch is taken from those made ahead, by the thread
        that asks. Where a strategy asks ahead for several devices, its waits are counted, of which the
        trainer notices a part: the figure is never too low.
        """

        def clock() -> tf.Tensor:
            # TensorFlow's own clock refuses to run where kernels are to be deterministic.
            (now,) = python_call(time.monotonic, [], [tf.float64], 0.0)
            return tf.ensure_shape(now, [])

        def note(asked_at: tf.Tensor, batch: Any) -> Any:
            with tf.control_dependencies([self._seconds.assign_add(clock() - asked_at, read_value=False)]):
                return tf.nest.map_structure(tf.identity, batch)

        asked = tf.data.Dataset.counter().map(lambda _: clock())

        measured = tf.data.Dataset.zip(asked, batches.prefetch(PREFETCHED_BATCHES)).map(note)
        options = tf.data.Options()
        options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.OFF
        # A prefetch behind the clock would make the clock tell of itself, not of the trainer.
        options.experimental_optimization.inject_prefetch = False
        return measured.with_options(options)
