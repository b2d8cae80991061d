"""The meter of how long a trainer waits: it counts what it should, and changes no batch."""

import time

import numpy as np
import tensorflow as tf

from cxr_records.trainers.inputs import WaitMeter


def batches(seconds: float = 0.0) -> tf.data.Dataset:
    def slow(x):
        time.sleep(seconds)
        return x

    return tf.data.Dataset.range(12).map(
        lambda x: (tf.ensure_shape(tf.numpy_function(slow, [x], tf.int64), []), x * 2)
    )


def test_batches_pass_unchanged_and_in_order():
    measured = WaitMeter().measure(batches())

    assert [(int(x), int(y)) for x, y in measured] == [(i, 2 * i) for i in range(12)]
    assert measured.element_spec == batches().element_spec


def test_a_slow_input_is_waited_for_all_of_its_time():
    meter = WaitMeter()

    for _ in meter.measure(batches(0.05)):
        pass

    assert meter.seconds >= 12 * 0.05


def test_a_fast_input_behind_a_slow_trainer_is_hardly_waited_for():
    meter = WaitMeter()
    iterator = iter(meter.measure(batches(0.01)))
    next(iterator)
    before = meter.seconds

    for _ in range(8):
        time.sleep(0.1)  # the trainer works; four batches are made ahead meanwhile
        next(iterator)

    assert meter.seconds - before < 0.4  # of 0.8 s, if it were not made ahead


def test_it_counts_inside_a_graph_as_a_trainer_runs_it():
    meter = WaitMeter()

    @tf.function
    def total(iterator):
        found = tf.constant(0, tf.int64)
        for _ in tf.range(12):
            found += next(iterator)[1]
        return found

    assert int(total(iter(meter.measure(batches(0.02))))) == 2 * sum(range(12))
    assert np.isfinite(meter.seconds)
    assert meter.seconds >= 12 * 0.02
