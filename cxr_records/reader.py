"""Streams a split of a dataset into a trainer: a tf.data.Dataset of batches of uint8 images and their labels.

Training order. Records lie globally shuffled in their shards; each epoch shuffles the shards anew, reads
INTERLEAVED_SHARDS of them in turn, some records at a time, and passes all through a shuffle buffer. All of
this depends on (seed, epoch, host) alone: not on the number of cores, on tf.data's autotuning or on a global
seed. So epoch e is the same whether or not the epochs before it were read, and a run that was stopped goes on
where it was.

Class-balanced sampling. A shard gives as many records as it holds, but each as often as `balancing` says, and
all of them in an order of the epoch's own: so copies of a record lie apart, and side by side no more often
than independent draws would. The shards that are read in turn are held in memory for it.

Speed. Records stay serialized through shuffling and batching, and a batch is parsed at once.

One dataset. What is read belongs to the dataset that was opened: its shards on disk are held open, so that a
rebuild meanwhile changes nothing; those that are fetched are known by their sha256.
"""

import contextlib
import os
import re
import threading
import time
import weakref
from collections import deque
from collections.abc import Iterator, Sequence
from typing import BinaryIO, ClassVar

import numpy as np
import tensorflow as tf

from cxr_records import balancing, storage
from cxr_records.cache import DEFAULT_BYTES, HeldFile, ShardCache
from cxr_records.dataset import Dataset, SplitRecords, open_dataset
from cxr_records.epochs import steps_of_epoch
from cxr_records.errors import CxrError, UsageError
from cxr_records.examples import encode_example
from cxr_records.findings import NO_FINDING
from cxr_records.manifest import ShardEntry
from cxr_records.order import BLOCK_RECORDS, INTERLEAVED_SHARDS, SHUFFLE_BYTES, SHUFFLE_RECORDS
from cxr_records.record_table import VERIFY
from cxr_records.seeding import keyed_hash
from cxr_records.shard_files import FETCH_AHEAD, allow_open_files, check_sizes
from cxr_records.splits import TRAIN
from cxr_records.tasks import ANY_FINDING, Task
from cxr_records.tfio import enable_tensorflow_io

READ_BYTES = 1 << 20  # of a shard at a time
PREFETCH_BYTES, PREFETCH_BATCHES = 64 << 20, (2, 16)  # of batches ready for the trainer
LINGER_SECONDS = 60.0  # for which shards stay open that nobody reads any longer

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
    records = dataset.split(split)
    shuffle = split == TRAIN if shuffle is None else shuffle
    last_batch = last_batch or ("drop" if shuffle else "pad")
    if sampling not in balancing.SAMPLINGS:
        raise UsageError(f"found sampling {sampling!r}; expected one of {', '.join(balancing.SAMPLINGS)}")
    if sampling != balancing.NATURAL and not shuffle:
        raise UsageError(f"found sampling {sampling!r} of records in manifest order; expected `shuffle=True`")
    steps = steps_of_epoch(records, split, batch_size, num_hosts, shuffle, last_batch)
    if not 0 <= host < num_hosts:
        raise UsageError(f"found host {host} of {num_hosts} hosts; expected 0 to {num_hosts - 1}")
    if start_epoch < 0 or not 0 <= start_batch <= steps:
        raise UsageError(
            f"found start at epoch {start_epoch}, batch {start_batch}; expected an epoch from 0 and a batch "
            f"from 0 to {steps}, for an epoch of split {split} has {steps} batches of {batch_size}"
        )
    if epochs is None and not shuffle:
        epochs = start_epoch + 1
    if start_batch == steps:
        start_epoch, start_batch = start_epoch + 1, 0
    entries = dataset.splits[split].shards
    check_sizes(dataset.path, entries)
    local = [] if storage.is_url(dataset.path) else entries
    held = _OpenFiles([storage.join(dataset.path, entry.file) for entry in local])
    files = _files(dataset, entries, held, shuffle, cache_dir, cache_bytes, direct)
    dataset.check_unchanged()  # still, so that these are its shards
    stream = _Stream(
        records,
        files,
        entries,
        shuffle,
        seed,
        host,
        num_hosts,
        sampling,
    )

    def batches_of(epoch: tf.Tensor) -> tf.data.Dataset:
        seen = tf.constant(start_batch * batch_size, tf.int64)
        skipped = tf.where(tf.equal(epoch, start_epoch), seen, tf.zeros_like(seen)) if start_batch else None
        serialized = stream.epoch(epoch)
        if last_batch == "pad":
            blanks = tf.data.Dataset.from_tensors((_blank(dataset), 0.0)).repeat()
            ones = tf.data.Dataset.from_tensors(1.0).repeat()
            serialized = tf.data.Dataset.zip((serialized, ones)).concatenate(blanks)
        if last_batch != "smaller":
            serialized = serialized.take(steps * batch_size)
        if skipped is not None:
            serialized = serialized.skip(skipped)
        return serialized.batch(batch_size, drop_remainder=last_batch != "smaller")

    last_epoch = tf.int64.max if epochs is None else epochs
    batches = tf.data.Dataset.range(start_epoch, last_epoch).flat_map(batches_of)
    parse = _Parser(dataset, None if last_batch == "smaller" else batch_size)
    batches = batches.map(parse, num_parallel_calls=tf.data.AUTOTUNE)
    if epochs is None:
        count = tf.data.INFINITE_CARDINALITY
    else:
        count = max(0, steps * (epochs - start_epoch) - start_batch)
    batches = batches.apply(tf.data.experimental.assert_cardinality(count))
    ready = PREFETCH_BYTES // (batch_size * dataset.image_format.size**2)
    batches = batches.prefetch(int(np.clip(ready, *PREFETCH_BATCHES)))
    options = tf.data.Options()
    options.deterministic = deterministic
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.OFF
    batches = batches.with_options(options)
    batches.held_open = held  # by iterators too, and by datasets that are derived from this one
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
            raise CxrError(found[1]) from error
        # As TensorFlow says that a file cannot be opened, behind the names of its operations in braces.
        if found := re.search(r"([^{}\n]*\.tfrecord-\d+-of-\d+); ([A-Z][^\n\[]*)", error.message):
            raise CxrError(f"{found[1].strip()} cannot be read ({found[2].strip()}); {VERIFY}") from error
        raise


class _OpenFiles:
    """The shards of a split, held open as long as somebody refers to this object, and somewhat longer.

    Threads of TensorFlow may open a shard just after the last reference went, and would try that for ever if
    it were closed; so what nobody refers to is closed when others are opened, LINGER_SECONDS later.
    """

    _left: ClassVar[deque[tuple[float, list[BinaryIO]]]] = deque()

    def __init__(self, paths: Sequence[str]):
        while self._left and self._left[0][0] < time.monotonic() - LINGER_SECONDS:
            for file in self._left.popleft()[1]:
                file.close()
        allow_open_files(len(paths))
        self.files = [storage.open_regular(path) for path in paths]
        weakref.finalize(self, self._leave, self.files)

    @classmethod
    def _leave(cls, files: list[BinaryIO]) -> None:
        cls._left.append((time.monotonic(), files))


class _ReadableFiles:
    """Shards that TensorFlow opens, on disk or through tensorflow-io: a shard's number to its path.

    Those on disk are opened through the descriptors of files that are held open, so that a rebuild, which
    puts others under their names, changes nothing of what is read. No Python is called on the way: who ends
    an iterator may hold Python's lock, and would wait for ever for a thread that waits for that.
    """

    def __init__(self, dataset: Dataset, entries: Sequence[ShardEntry], held: _OpenFiles):
        self._names = np.array([storage.join(dataset.path, entry.file) for entry in entries])
        self._paths = self._names
        if held.files and _HAS_DESCRIPTORS:
            self._paths = np.array([f"{_DESCRIPTORS}/{file.fileno()}" for file in held.files])

    def located(self, shards: tf.data.Dataset) -> tf.data.Dataset:
        """Turns shard numbers into (number, path for TensorFlow, what to say where reading fails)."""
        paths, names = tf.constant(self._paths), tf.constant(self._names)

        def locate(shard: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
            trouble = tf.strings.join([names[shard], f" is damaged, cut short or missing; {VERIFY}"])
            return shard, paths[shard], trouble

        return shards.map(locate)


_DESCRIPTORS = "/proc/self/fd"  # opened anew there, a descriptor has a place of its own in the file
# As on Linux. Elsewhere files are opened by their names, and a rebuild is noticed at the dataset's next use.
_HAS_DESCRIPTORS = os.path.isdir(_DESCRIPTORS)


class _FetchedFiles:
    """Shards in remote storage, fetched in the order in which they are read, some ahead.

    Those that may be read now are held in the cache. A shard that is open may lose its name without harm, so
    what is fetched and not yet opened is all that must be held; the rest of the window keeps disk use honest.
    """

    def __init__(self, dataset: Dataset, entries: Sequence[ShardEntry], cache: ShardCache, width: int):
        self._dataset, self._entries, self._cache = dataset, entries, cache
        largest = max(entry.bytes for entry in entries)
        room = cache.limit_bytes // largest
        # A window of those being read, those ready, and as many again for fetches that overtake each other;
        # beside it the fetches under way.
        self._ahead = min(FETCH_AHEAD, (room - width) // 3)
        if self._ahead < 1:
            raise UsageError(
                f"found a cache of {cache.limit_bytes:,} bytes; {width} shards of {dataset.path} are read at "
                f"once, so it must hold {width + 3} of up to {largest:,} bytes: "
                f"allow {(width + 3) * largest:,}"
            )
        self._window = width + 2 * self._ahead
        self._held: deque[HeldFile] = deque()
        self._lock = threading.Lock()

    def located(self, shards: tf.data.Dataset) -> tf.data.Dataset:
        """As `_ReadableFiles.located`."""

        def locate(shard: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
            path, trouble = tf.numpy_function(self._fetch, [shard], (tf.string, tf.string))
            return shard, tf.ensure_shape(path, []), tf.ensure_shape(trouble, [])

        return shards.map(locate, num_parallel_calls=self._ahead, deterministic=True)

    def _fetch(self, shard: np.int64) -> tuple[bytes, bytes]:
        entry = self._entries[int(shard)]
        url = storage.join(self._dataset.path, entry.file)
        try:
            held = self._cache.fetch(url, entry.bytes, entry.sha256)
        except Exception as error:  # the reader of the shard says it, in its turn
            said = str(error)
            try:
                self._dataset.check_unchanged()
            except CxrError as cause:
                said = str(cause)
            return b"", " ".join(said.split()).encode()
        with self._lock:
            self._held.append(held)
            while len(self._held) > self._window:
                self._held.popleft().release()
        return held.path.encode(), f"{url} is damaged in the cache ({held.path}); delete it there".encode()


def _files(
    dataset: Dataset,
    entries: Sequence[ShardEntry],
    held: _OpenFiles,
    shuffle: bool,
    cache_dir: str | None,
    cache_bytes: int,
    direct: bool,
) -> _ReadableFiles | _FetchedFiles:
    if storage.is_url(dataset.path) and direct:
        enable_tensorflow_io()
    elif storage.is_url(dataset.path):
        width = min(INTERLEAVED_SHARDS, len(entries)) if shuffle else 1
        return _FetchedFiles(dataset, entries, ShardCache(cache_dir, cache_bytes), width)
    return _ReadableFiles(dataset, entries, held)


class _Stream:
    """The serialized records of a host, epoch by epoch."""

    def __init__(
        self,
        records: SplitRecords,
        files: _ReadableFiles | _FetchedFiles,
        entries: Sequence[ShardEntry],
        shuffle: bool,
        seed: int,
        host: int,
        num_hosts: int,
        sampling: str,
    ):
        self._files, self._shuffle, self._host, self._num_hosts = files, shuffle, host, num_hosts
        self._counts = np.array([count for _, _, count in records.shards], np.int64)
        self._ends = np.cumsum(self._counts)
        self._takes_part = None if records.takes_part.all() else records.takes_part
        mean_bytes = sum(entry.bytes for entry in entries) / self._counts.sum()
        self._buffer = int(min(SHUFFLE_RECORDS, SHUFFLE_BYTES / mean_bytes))
        # Stateless generators take two numbers: ours, and the epoch.
        self._shards_key = keyed_hash(seed, "order of shards") >> 1
        self._buffer_key = keyed_hash(seed, "shuffle buffer", host, num_hosts) >> 1
        self._draws = _Draws(records, self._counts, seed) if sampling == balancing.CLASS_BALANCED else None

    def epoch(self, epoch: tf.Tensor) -> tf.data.Dataset:
        """Returns the records of one epoch, as the host reads them."""
        shards = tf.range(len(self._counts), dtype=tf.int64)
        if self._shuffle:
            shards = tf.random.experimental.stateless_shuffle(
                shards, [tf.constant(self._shards_key, tf.int64), epoch], alg="philox"
            )
        shards = tf.data.Dataset.from_tensor_slices(shards[self._host :: self._num_hosts])
        files = self._files.located(shards).flat_map(_opened)
        if not self._shuffle:
            return files.flat_map(self._shard)

        def blocks_of(shard: tf.Tensor, path: tf.Tensor, trouble: tf.Tensor) -> tf.data.Dataset:
            """Reads a shard ahead in a thread of its own, which hands over blocks and not single records."""
            if self._draws is None:
                blocks = self._shard(shard, path, trouble).batch(BLOCK_RECORDS)
            else:
                blocks = self._draws.blocks(self._whole_shard(shard, path, trouble), shard, epoch)
            return blocks.prefetch(2)

        blocks = files.interleave(blocks_of, INTERLEAVED_SHARDS, block_length=1)
        key = [tf.constant(self._buffer_key, tf.int64), epoch]
        seed = tf.random.stateless_uniform([], key, maxval=tf.int64.max, dtype=tf.int64, alg="philox")
        _forget_global_seed()
        return blocks.unbatch().shuffle(self._buffer, seed, reshuffle_each_iteration=False)

    def _shard(self, shard: tf.Tensor, path: tf.Tensor, trouble: tf.Tensor) -> tf.data.Dataset:
        """The records of a shard that take part."""
        records = self._whole_shard(shard, path, trouble)
        if self._takes_part is None:
            return records
        count, end = tf.gather(self._counts, shard), tf.gather(self._ends, shard)
        takes_part = tf.data.Dataset.from_tensor_slices(tf.constant(self._takes_part)[end - count : end])
        return _chosen(records, takes_part)

    def _whole_shard(self, shard: tf.Tensor, path: tf.Tensor, trouble: tf.Tensor) -> tf.data.Dataset:
        """The records of a shard.

        TensorFlow's error of a damaged file does not name it. So its errors end the file, and where that
        gives fewer records than the manifest says, our own error follows.
        """
        broken = tf.data.Dataset.from_tensors(trouble).repeat().map(_stop)
        whole = tf.data.TFRecordDataset(path, buffer_size=READ_BYTES).ignore_errors()
        return whole.concatenate(broken).take(tf.gather(self._counts, shard))


class _Draws:
    """Class-balanced sampling of a shard's records.

    Args:
        records: of the split that take part.
        counts: int64, records in each file.
        seed: of the order of training.
    """

    def __init__(self, records: SplitRecords, counts: np.ndarray, seed: int):
        expected = np.zeros(len(records.takes_part))
        shard_records = [kept for _, kept, _ in records.shards]
        expected[records.takes_part] = balancing.expected_draws(records.task, records.labels, shard_records)
        self._upto, self._counts = balancing.reached(expected, counts.tolist()), counts
        self._ends = np.cumsum(counts)
        numbers = range(len(counts))
        self._first = np.array([balancing.first_offset(seed, number) for number in numbers])
        self._order_keys = np.array([keyed_hash(seed, "order in shard", n) >> 1 for n in numbers])

    def blocks(self, records: tf.data.Dataset, shard: tf.Tensor, epoch: tf.Tensor) -> tf.data.Dataset:
        """Gives what an epoch draws of a shard's records, as `balancing.times_drawn`, in blocks.

        Args:
            records: all in the file.
            shard: its number.
            epoch: from 0.
        """
        count, end = tf.gather(self._counts, shard), tf.gather(self._ends, shard)
        upto = tf.constant(self._upto)[end - count : end]
        ring = tf.gather(self._first, shard) + epoch * balancing.OFFSET_STEP
        offset = tf.cast(tf.math.floormod(ring, balancing.OFFSETS), tf.float64) / balancing.OFFSETS
        drawn = tf.cast(tf.floor(upto + offset), tf.int64)
        times = drawn - tf.concat([[0], drawn[:-1]], axis=0)
        some = times[times > 0]
        order = tf.random.experimental.stateless_shuffle(
            tf.repeat(tf.range(tf.size(some)), some),
            [tf.gather(self._order_keys, shard), epoch],
            alg="philox",
        )
        held = _chosen(records, tf.data.Dataset.from_tensor_slices(times > 0)).batch(count)

        def in_order(held: tf.Tensor) -> tf.data.Dataset:
            places = tf.data.Dataset.from_tensor_slices(order).batch(BLOCK_RECORDS)
            return places.map(lambda block: tf.gather(held, block))

        return held.flat_map(in_order)


def _chosen(records: tf.data.Dataset, chosen: tf.data.Dataset) -> tf.data.Dataset:
    """Those records beside which stands True."""
    pairs = tf.data.Dataset.zip((records, chosen)).filter(lambda record, chosen: chosen)
    return pairs.map(lambda record, chosen: record)


def _opened(shard: tf.Tensor, path: tf.Tensor, trouble: tf.Tensor) -> tf.data.Dataset:
    """Gives its arguments, once the file could be opened; ignore_errors would try that for ever."""
    fetched = tf.data.Dataset.from_tensors(path).filter(lambda path: path != "")
    first = fetched.flat_map(lambda path: tf.data.FixedLengthRecordDataset(path, 1, buffer_size=1))
    # Asked again after the error, as prefetching does, it must not come to the end and go on with "".
    not_fetched = tf.data.Dataset.from_tensors(trouble).filter(lambda _: path == "").repeat().map(_stop)
    empty = tf.data.Dataset.from_tensors("")  # which is an error for who reads the records
    once = not_fetched.concatenate(first).concatenate(empty).take(1)
    return once.map(lambda _: (shard, path, trouble))


def _stop(trouble: tf.Tensor) -> tf.Tensor:
    with tf.control_dependencies([tf.debugging.Assert(False, [tf.strings.join([_STOPPED, trouble])])]):
        return tf.identity(trouble)


def _forget_global_seed() -> None:
    """Makes the seed that is given to an operation in this graph the only one that matters to it."""
    if not tf.executing_eagerly():  # tf.data traces its functions as graphs
        tf.random.set_seed(1)  # of this graph alone; 0 would be read as none


def _blank(dataset: Dataset) -> bytes:
    """A serialized record of zeros, for padding."""
    side = dataset.image_format.size
    image = dataset.image_format.encode(np.zeros((side, side), np.uint8))
    findings = np.zeros(len(dataset.findings), np.int64)
    label = np.zeros(dataset.task.label_shape, np.int64).reshape(-1)
    return encode_example({"image": image, "label": label, "findings": findings})


class _Parser:
    """Turns a batch of serialized records into images, labels and, where there is one, the mask."""

    def __init__(self, dataset: Dataset, batch_size: int | None):
        self._task, self._format, self._batch_size = dataset.task, dataset.image_format, batch_size
        self._derived = dataset.task != dataset.manifest.config.task

    def __call__(self, serialized: tf.Tensor, mask: tf.Tensor | None = None) -> tuple[tf.Tensor, ...]:
        """Parses string [b]; the mask float32 [b] is passed on."""
        findings_shape = (len(self._task.findings),)
        name, shape = ("findings", findings_shape) if self._derived else ("label", self._task.label_shape)
        features = {
            "image": tf.io.FixedLenFeature([], tf.string),
            name: tf.io.FixedLenFeature(shape, tf.int64),
        }
        parsed = tf.io.parse_example(serialized, features)
        image, label = self._decode(parsed["image"]), tf.cast(parsed[name], tf.int32)
        if self._derived:
            label = _derived_label(self._task, label)
        if mask is None:
            return image, label
        if self._derived:  # padding has no findings, which may be a class of the task
            label *= tf.cast(mask, tf.int32)
        return image, label, mask

    def _decode(self, stored: tf.Tensor) -> tf.Tensor:
        shape = [self._format.size, self._format.size, 1]
        if self._format.codec == "raw":
            pixels = tf.io.decode_raw(stored, tf.uint8)
            return tf.reshape(pixels, [-1 if self._batch_size is None else self._batch_size, *shape])

        def decode(data: tf.Tensor) -> tf.Tensor:
            if self._format.codec == "png":
                return tf.ensure_shape(tf.io.decode_png(data, channels=1), shape)
            # Pillow decodes so; TensorFlow's default is another for speed.
            return tf.ensure_shape(tf.io.decode_jpeg(data, channels=1, dct_method="INTEGER_ACCURATE"), shape)

        return tf.map_fn(decode, stored, fn_output_signature=tf.TensorSpec(shape, tf.uint8))


def _derived_label(task: Task, findings: tf.Tensor) -> tf.Tensor:
    """`Task.select` for records that take part: int32 [b] of int32 [b, number of findings]."""
    any_finding = tf.reduce_any(findings > 0, axis=1)
    if task.kind == "multiclass":
        first = tf.argmax(findings, axis=1, output_type=tf.int32)
        return tf.where(any_finding, first, len(task.findings))
    second = task.class_names[1]
    if second == ANY_FINDING:
        return tf.cast(any_finding, tf.int32)
    if second == NO_FINDING:
        return tf.cast(~any_finding, tf.int32)
    return findings[:, task.findings.index(second)]
