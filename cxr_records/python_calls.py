"""Python functions as operations of TensorFlow, which are over before the interpreter ends.

`tf.numpy_function` runs in a thread of TensorFlow's. One that waits for Python's lock while the interpreter
is taken down waits for ever, and with it whoever collects its iterator: the process would never end. So at
exit what is called returns at once, with what was given for that, and the exit goes on when nothing is called
any more. (An error would be logged, with its traceback, by each iterator that makes batches ahead.)
"""

import atexit
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

QUIET_SECONDS = 0.03  # in which nothing was called: what is made ahead is full
MOST_SECONDS = 10.0  # for a call that does not return, as a download that stands still


def python_call(
    function: Callable[..., Any], arguments: Sequence[tf.Tensor], types: Sequence[tf.DType], at_end: Any
) -> list[tf.Tensor]:
    """Calls a function with the values of tensors, as NumPy has them, whenever the operation runs.

    An array that the function returns becomes a tensor without a copy where its bytes begin at a multiple of
    64. TensorFlow keeps the function, and all that it refers to, until the process ends.

    Args:
        function: returns as many arrays or numbers as there are types.
        arguments: what it is called with.
        types: of the tensors that it returns; their shapes are unknown.
        at_end: what is returned in its place once Python ends.
    """

    made: list[tf.Tensor] = _operation(function, arguments, types, at_end)
    return made


@tf.autograph.experimental.do_not_convert  # type: ignore[untyped-decorator] # nor what is called, each time
def _operation(
    function: Callable[..., Any], arguments: Sequence[tf.Tensor], types: Sequence[tf.DType], at_end: Any
) -> list[tf.Tensor]:
    def called(*values: Any) -> Any:
        if not _calls.begin():
            return at_end
        try:
            return function(*values)
        finally:
            _calls.finish()

    return list(tf.numpy_function(called, arguments, list(types)))


class _Calls:
    """Counts what is called, until it is told that no more may be."""

    def __init__(self) -> None:
        self._lock, self._begun, self._running, self._closed = threading.Lock(), 0, 0, False

    def begin(self) -> bool:
        """Tells whether a call may run; if so, `finish` follows it."""
        with self._lock:
            self._begun += 1
            self._running += not self._closed
            return not self._closed

    def finish(self) -> None:
        """Says that a call is over."""
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
