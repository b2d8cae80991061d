"""Python functions as operations of TensorFlow, which are over before the interpreter ends.

`tf.numpy_function` runs in a thread of TensorFlow's. One that waits for Python's lock while the interpreter
is taken down waits for ever, and with it whoever collects its iterator: the process would never end. So at
exit what is called returns at once, with an error, and the exit goes on when nothing is called any more.
"""

import atexit
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

QUIET_SECONDS = 0.03  # in which nothing was called: what is made ahead is full, of errors if need be
MOST_SECONDS = 10.0  # for a call that does not return, as a download that stands still


def python_call(
    function: Callable[..., Any], arguments: Sequence[tf.Tensor], types: Sequence[tf.DType]
) -> list[tf.Tensor]:
    """Calls a function with the values of tensors, as NumPy has them, whenever the operation runs.

    An array that the function returns becomes a tensor without a copy where its bytes begin at a multiple of
    64. TensorFlow keeps the function, and all that it refers to, until the process ends.

    Args:
        function: returns as many arrays or numbers as there are types.
        arguments: what it is called with.
        types: of the tensors that it returns; their shapes are unknown.
    """

    @tf.autograph.experimental.do_not_convert  # type: ignore[untyped-decorator] # as is tried, at each call, with what a pipeline calls
    def called(*values: Any) -> Any:
        with _calls:
            return function(*values)

    return list(tf.numpy_function(called, arguments, list(types)))


class _Calls:
    """Counts what is called, until it is told that no more may be."""

    def __init__(self) -> None:
        self._lock, self._begun, self._running, self._closed = threading.Lock(), 0, 0, False

    def __enter__(self) -> None:
        with self._lock:
            self._begun += 1
            if self._closed:
                raise RuntimeError("Python ends")
            self._running += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._running -= 1

    def end(self) -> None:
        """Lets nothing be called any more, and waits until nobody tries."""
        self._closed, seen = True, -1
        until = time.monotonic() + MOST_SECONDS
        while time.monotonic() < until and (self._running or self._begun != seen):
            seen = self._begun
            time.sleep(QUIET_SECONDS)


_calls = _Calls()
atexit.register(_calls.end)
