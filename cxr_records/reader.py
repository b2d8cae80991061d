"""Streams a split of a dataset into a trainer: a tf.data.Dataset of batches of uint8 images and their labels.

Which records a batch has is said by `epochs` and `order`, as numbers that depend on the arguments alone. So
epoch e is the same whether or not the epochs before it were read, and a run that was stopped goes on where it
was. `arrays` reads the images of these numbers; labels come from the table of records.

Speed. An image is copied once, from the page cache to its place in the batch, which becomes a tensor as it
is. That takes Python, though but one call for a batch; see `python_calls` for how such calls end.

One dataset. What is read belongs to the dataset that was opened: its shards on disk are held open, so that a
rebuild meanwhile changes nothing; those that are fetched are known by their sha256.
"""

import contextlib
import itertools
import re
import threading
import time
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import numpy as np
import tensorflow as tf

from cxr_records import balancing, storage
from cxr_records.arrays import Arrays
from cxr_records.cache import DEFAULT_BYTES
from cxr_records.dataset import Dataset, open_dataset
from cxr_records.epochs import Epochs, steps_of_epoch
from cxr_records.errors import CxrError
from cxr_records.python_calls import python_call
from cxr_records.tasks import Task
from cxr_records.tfio import enable_tensorflow_io, fetch_by_tensorflow

PREFETCH_BYTES, PREFETCH_BATCHES = 64 << 20, (2, 16)  # of batches ready for the trainer
LINGER_SECONDS = 60.0  # for which a split stays open that nobody refers to and nobody reads
_MOST_LINGERING = 16  # of such splits: a process that makes many soon could open no more files
_MOST_PLACES = 16  # of iterators in a run, remembered

_STOPPED = "reading stopped: "  # begins what `shard_errors` knows again


def steps_per_epoch(dataset: Dataset | str, split: str, batch_size: int, *, num_hosts: int = 1) -> int:
    """Returns how many whole batches `load_split` gives each host in an epoch of shuffled training.

    It is the same for every epoch and host: what the host with the fewest records is sure to have.

    Raises:
        UsageError: as `load_split`.
    """
    records = open_dataset(dataset).split(split)
    return steps_of_epoch(records, split, batch_size, num_hosts, shuffle=True, last_batch="drop")


def load_split(
    dataset: Dataset | str,
    split: str,
    batch_size: int,
    *,
    task: Task | str | None = None,
    shuffle: bool | None = None,
    seed: int = 0,
    sampling: str = balancing.NATURAL,
    epochs: int | None = None,
    start_epoch: int = 0,
    start_batch: int = 0,
    last_batch: str | None = None,
    host: int = 0,
    num_hosts: int = 1,
    deterministic: bool = True,
    cache_dir: str | None = None,
    cache_bytes: int = DEFAULT_BYTES,
    direct: bool = False,
) -> tf.data.Dataset:
    """Streams a split in batches.

    Elements are (image, label): uint8 [batch_size, size, size, 1] and int32 [batch_size], or
    [batch_size, number of findings] for multilabel. With last_batch="pad" a third follows, the mask: float32
    [batch_size], 1 for records and 0 for padding, whose image and label are zeros. Batches never mix epochs.

    Several hosts: each reads every num_hosts-th shard, of the epoch's order where shuffled. All hosts have
    the same number of batches in every epoch. Dropped tails, and what one host has more than another, are
    other records in every epoch.

    A shard that is damaged or missing, or cannot be fetched because the dataset was rebuilt, stops the
    iteration with a tf.errors.InvalidArgumentError that names it; `shard_errors` turns that into a CxrError.
    A rebuild of a dataset on disk changes nothing of what is read here: its shards are held open.

    Args:
        dataset: an open dataset, or the folder or URL of a finished one.
        split: train, validation or test.
        batch_size: records of a batch, per host.
        task: another than the dataset's; see `Dataset.as_task`.
        shuffle: None shuffles train alone. What is not shuffled comes in manifest order.
        seed: of the shuffling.
        sampling: "natural", each record once in an epoch; or "class_balanced", where shuffled: as many
            records, drawn so that all classes come as often, as far as each shard holds them.
        epochs: of the whole run, those before start_epoch included. None: endless where shuffled, otherwise
            one from start_epoch on.
        start_epoch: the first epoch, counted from 0.
        start_batch: batches of that epoch that were seen before. The rest is what an unbroken run would give.
        last_batch: what becomes of an epoch's last records where they fill no batch: "drop", "pad" (a masked
            batch; hosts with fewer records get batches of padding alone) or "smaller" (one host only).
            None drops where shuffled, otherwise pads.
        host: number of this host, from 0.
        num_hosts: how many hosts read the split together.
        deterministic: False lets batches overtake each other where that is faster.
        cache_dir: local folder for shards of a remote dataset; None is the user's cache folder.
        cache_bytes: what that folder may hold at most.
        direct: True lets TensorFlow read remote shards itself, by tensorflow-io, without that folder. For
            s3://, az:// and hdfs://, with TensorFlow 2.16 or 2.17. A rebuild meanwhile is not noticed there.

    Raises:
        UsageError: the split is not there, the task cannot be derived, a batch is larger than the split,
            hosts outnumber shards, a number or word is out of range, or tensorflow-io is not installed.
        CxrError: the dataset is not finished or was rebuilt since it was opened, or a shard is missing or of
            another size than it was written.
    """
    dataset = open_dataset(dataset)
    dataset = dataset.as_task(task) if task is not None else dataset
    dataset.check_unchanged()
    run = Epochs(
        dataset,
        split,
        batch_size,
        shuffle=shuffle,
        seed=seed,
        sampling=sampling,
        epochs=epochs,
        start_epoch=start_epoch,
        start_batch=start_batch,
        last_batch=last_batch,
        host=host,
        num_hosts=num_hosts,
    )
    fetch = fetch_by_tensorflow if direct and storage.is_url(dataset.path) else None
    if fetch:
        enable_tensorflow_io()
    arrays = Arrays(dataset, split, cache_dir=cache_dir, cache_bytes=cache_bytes, fetch=fetch)
    arrays.check_room(run)
    reading = _Reading(arrays, run)

    types = [tf.uint8, tf.int32] + [tf.float32] * (run.last_batch == "pad")
    first, count = run.first, run.num_batches
    rows = None if run.last_batch == "smaller" else batch_size
    shapes = [[rows, *shape] for shape in ([arrays.size, arrays.size, 1], arrays.labels.shape[1:], [])]

    by_number, at_end = reading.function(), _refused("Python ends", len(types))

    @tf.autograph.experimental.do_not_convert  # type: ignore[untyped-decorator] # which takes a while
    def batch(number: tf.Tensor) -> tuple[tf.Tensor, ...]:
        trouble, *parts = python_call(by_number, [number], [tf.string, *types], at_end)
        # An error of Python's would come with its traceback.
        with tf.control_dependencies([tf.debugging.Assert(tf.equal(trouble, ""), [trouble])]):
            return tuple(tf.ensure_shape(part, shape) for part, shape in zip(parts, shapes, strict=False))

    last = tf.int64.max if count is None else first + count
    batches = tf.data.Dataset.range(first, last).map(batch)
    cardinality = tf.data.INFINITE_CARDINALITY if count is None else count
    batches = batches.apply(tf.data.experimental.assert_cardinality(cardinality))
    ready = PREFETCH_BYTES // (batch_size * arrays.size**2)
    batches = batches.prefetch(int(np.clip(ready, *PREFETCH_BATCHES)))
    options = tf.data.Options()
    options.deterministic = deterministic
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.OFF
    batches = batches.with_options(options)
    batches.held_open = reading.keeper()  # by iterators too, and by datasets that are derived from this one
    return batches


@contextlib.contextmanager
def shard_errors() -> Iterator[None]:
    """Turns the error of a damaged, missing, changed or unfetchable shard into a CxrError of one line.

    Put it around the loop, or the `fit`, that reads what `load_split` made.
    """
    try:
        yield
    except tf.errors.OpError as error:
        if found := re.search(rf"\[{_STOPPED}(.*?)\]\s*(\[\[|\[Op|$)", error.message, re.DOTALL):
            raise CxrError(re.sub(r"\\(.)", r"\1", found[1])) from error  # it puts \ before quotes
        raise


class _Reading:
    """The batches of a run by number, for whatever iterators TensorFlow makes of it.

    TensorFlow never lets go of a function, so the one that it gets finds this object by a name. One that
    nobody refers to is closed when another is made: after LINGER_SECONDS in which nobody asked for a batch,
    or when _MOST_LINGERING others were asked since. (What derives from a tf.data.Dataset refers to it, but
    for a strategy's own.)
    """

    _open: ClassVar[dict[int, "_Reading"]] = {}
    _names = itertools.count()

    def __init__(self, arrays: Arrays, run: Epochs):
        self._arrays, self._run = arrays, run
        self._lock = threading.Lock()
        # Where iterators are: the number of the batch that comes next, and its records and those after it.
        self._places: OrderedDict[int, Iterator[np.ndarray]] = OrderedDict()
        self._failed: dict[int, str] = {}  # said of a batch, as the one before it was not read
        self._kept, self._used = True, time.monotonic()
        left = [(other._used, name) for name, other in list(self._open.items()) if not other._kept]
        for place, (used, name) in enumerate(sorted(left, reverse=True)):
            if place >= _MOST_LINGERING or used < time.monotonic() - LINGER_SECONDS:
                self._open.pop(name, None)
        self._name = next(self._names)
        self._open[self._name] = self

    def keeper(self) -> object:
        """Returns an object; as long as somebody refers to it, all stays open."""
        keeper = _Keeper()
        weakref.finalize(keeper, self._leave)
        return keeper

    def function(self) -> Callable[[np.int64], tuple[Any, ...]]:
        """Returns what TensorFlow calls with the number of a batch, for its parts behind what went wrong."""
        name, parts = self._name, 3 if self._run.last_batch == "pad" else 2

        def batch(number: np.int64) -> tuple[Any, ...]:
            try:
                if (reading := _Reading._open.get(name)) is None:
                    raise CxrError("its shards were closed, as nobody referred to what load_split returned")
                return b"", *reading._batch(int(number))
            except CxrError as error:
                return _refused(str(error), parts)

        return batch

    def _leave(self) -> None:
        self._kept = False
        self._arrays.free_buffers()  # the files stay open; memory, a strategy's batches take anew

    def _batch(self, number: int) -> tuple[np.ndarray, ...]:
        self._used = time.monotonic()
        with self._lock:
            place, trouble = self._places.pop(number, None), self._failed.pop(number, None)
        try:
            if trouble:  # an iterator that is asked again says it again, and does not go on behind a gap
                raise CxrError(trouble)
            place = place or self._arrays.numbers(self._run, number)
            made = self._arrays.batch(self._run, next(place))
        except CxrError as error:
            with self._lock:
                self._failed[number + 1] = str(error)
            raise
        with self._lock:
            self._failed.pop(number + 1, None)
            self._places[number + 1] = place
            while len(self._places) > _MOST_PLACES:
                self._places.popitem(last=False)
        return made


def _refused(said: str, parts: int) -> tuple[Any, ...]:
    """What went wrong, before the empty parts of a batch."""
    types = np.uint8, np.int32, np.float32
    return f"{_STOPPED}{said}".encode(), *(np.empty(0, kind) for kind in types[:parts])


class _Keeper:
    """Is referred to."""
