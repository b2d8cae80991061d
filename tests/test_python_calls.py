"""Python functions in a tf.data pipeline: what they return, and that a process with them ends."""

import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

from cxr_records.python_calls import _Calls, python_call


def test_arrays_and_numbers_come_back_as_tensors():
    pairs = tf.data.Dataset.range(3).map(
        lambda x: python_call(
            lambda n: (np.full((2, 2), n, np.uint8), float(n)), [x], [tf.uint8, tf.float64], ()
        )
    )
    assert [(image.numpy().tolist(), n.numpy()) for image, n in pairs] == [
        ([[n, n], [n, n]], float(n)) for n in range(3)
    ]


def test_an_error_of_the_function_is_tensorflows():
    def fail(_):
        raise ValueError("as it says")

    failing = tf.data.Dataset.range(1).map(lambda n: python_call(fail, [n], [tf.int64], 0))
    with pytest.raises(tf.errors.InvalidArgumentError, match="as it says"):
        next(iter(failing))


def test_after_the_end_nothing_is_called():
    calls = _Calls()
    assert calls.begin()
    calls.finish()
    calls.end()
    assert not calls.begin()


ENDING = """
import random
import tensorflow as tf
from cxr_records.python_calls import python_call

def work(n):
    for _ in range(random.randrange(30_000)):
        pass
    return n

numbers = tf.data.Dataset.range(10**6).map(
    lambda n: python_call(work, [n], [tf.int64], 0)[0], num_parallel_calls=2
).prefetch(4)
reading = [iter(numbers) for _ in range(3)]
for one in reading:
    next(one)
print("done", flush=True)
"""


def test_a_process_ends_while_batches_are_made_ahead():
    """Without the end of calls before that of Python, some of these processes never end."""
    running = [
        subprocess.Popen([sys.executable, "-c", ENDING], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for _ in range(2)
    ]
    for process in running:
        out, err = process.communicate(timeout=300)
        assert (process.returncode, out) == (0, b"done\n"), err.decode()
        assert "Traceback" not in err.decode()
