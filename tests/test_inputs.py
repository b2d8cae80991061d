"""The meter of how long a trainer waits: it counts what it should, and changes no batch."""

import threading
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import tensorflow as tf

from cxr_records.trainers import inputs
from cxr_records.trainers.inputs import WaitMeter


class Clock:
    """Stands still until it is told to go on; with `tick`, goes on with each look at it."""

    def __init__(self, tick: float = 0.0):
        self.now, self.tick, self.looked = 0.0, tick, threading.Semaphore(0)

    def monotonic(self) -> float:
        self.now += self.tick
        self.looked.release()
        return self.now

    def await_look(self) -> None:
        """Waits until somebody has looked at it once more."""
        assert self.looked.acquire(timeout=60), "nobody looks at the clock"


@pytest.fixture
def clock(monkeypatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(inputs, "time", clock)
    return clock


@pytest.fixture
def permits() -> Iterator[threading.Semaphore]:
    """Each lets one batch be made; in the end all of them, so that whoever waits can end."""
    permits = threading.Semaphore(0)
    yield permits
    permits.release(24)


def batches(permits: threading.Semaphore | None = None) -> tf.data.Dataset:
    """12 batches, each of which takes a permit."""

    def made(x):
        if permits:
            permits.acquire()
        return x

    return tf.data.Dataset.range(12).map(
        lambda x: (tf.ensure_shape(tf.numpy_function(made, [x], tf.int64), []), x * 2)
    )


def test_batches_pass_unchanged_and_in_order():
    measured = WaitMeter().measure(batches())

    assert [(int(x), int(y)) for x, y in measured] == [(i, 2 * i) for i in range(12)]
    assert measured.element_spec == batches().element_spec


def test_only_the_time_between_asking_for_a_batch_and_having_it_is_counted(clock, permits):
    meter = WaitMeter()
    iterator = iter(meter.measure(batches(permits)))

    def taken_late(seconds: float) -> None:
        """Takes a batch that is made so long after it was asked for."""
        taking = threading.Thread(target=next, args=[iterator])
        taking.start()
        clock.await_look()  # it has been asked for
        clock.now += seconds
        permits.release()
        taking.join()
        clock.await_look()  # and has come

    taken_late(5)
    assert meter.seconds == 5
    clock.now += 100  # the trainer works; meanwhile batches are made
    permits.release(4)
    for _ in range(4):
        next(iterator)
        clock.await_look()
        clock.await_look()
        clock.now += 100
    assert meter.seconds == 5
    taken_late(2)
    assert meter.seconds == 7
    permits.release(12)  # the iterator ends when nobody waits any more


def test_it_counts_inside_a_graph_as_a_trainer_runs_it(monkeypatch):
    monkeypatch.setattr(inputs, "time", SimpleNamespace(monotonic=Clock(tick=1).monotonic))
    meter = WaitMeter()

    @tf.function
    def total(iterator):
        summed = tf.constant(0, tf.int64)
        for _ in tf.range(12):
            summed += next(iterator)[1]
        return summed

    assert int(total(iter(meter.measure(batches())))) == 2 * sum(range(12))
    assert meter.seconds == 12
