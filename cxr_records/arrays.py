"""Images and labels of a split as NumPy arrays, by number: for PyTorch, Grain, JAX, or a loop. No TensorFlow.

Where each stored image lies stands in the table of records, so that its bytes are found with no parser in
between. Raw pixels are copied once, from the page cache to their place in the array that is asked for; the
files are mapped for that, which takes half the time of reading them.

Damage is found: the checksum of a record is compared when the process reads it for the first time. And each
time that a file is used it must still be as long as it was, or is read instead: to touch what is mapped and
gone would end the process.
"""

import math
import operator
import os
import sys
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from itertools import groupby, islice
from typing import Any

import numpy as np
import pyarrow.compute as pc

from cxr_records import balancing
from cxr_records.cache import DEFAULT_BYTES
from cxr_records.dataset import Dataset, SplitRecords
from cxr_records.epochs import Epochs
from cxr_records.errors import UsageError
from cxr_records.order import INTERLEAVED_SHARDS
from cxr_records.shard_files import Fetch, OpenShard, ShardFiles, open_shards, submitted
from cxr_records.tfrecord import HEADER_BYTES, RecordError, unframe

_ALIGNED = 64  # bytes, to which TensorFlow and others want arrays aligned that they take as they are
_BUFFERS_BYTES = 256 << 20  # kept for batches to come; those of a trainer that makes more ahead are made anew
_LEAST_SHARE = 16  # images that a thread decodes at a time; for fewer it would not be worth asking one


class Arrays:
    """A split of a dataset: `len`, `[number]`, `gather(numbers)` and `batches(size)`. See `Dataset.arrays`.

    Numbers are places in `records`, in manifest order. Several threads may read at once. Pickled, as for the
    processes of PyTorch's DataLoader, it is opened again where it arrives; a forked process reads on.

    Attributes:
        records: what is known of the records beside their pixels.
        labels: int32 [n], or [n, number of findings] for multilabel.
        size: side of the images, in pixels.
    """

    def __init__(
        self,
        dataset: Dataset,
        split: str,
        *,
        check: bool = True,
        cache_dir: str | None = None,
        cache_bytes: int = DEFAULT_BYTES,
        threads: int | None = None,
        fetch: Fetch | None = None,
    ):
        """Opens the shards of a split.

        Args:
            dataset: an open one, for the task that is wanted.
            split: train, validation or test.
            check: whether the checksum of each record is compared, when this process first reads it.
            cache_dir: local folder for shards of a remote dataset; None is the user's cache folder.
            cache_bytes: what that folder may hold at most.
            threads: that decode the images of a batch. None: one for raw pixels, otherwise one per processor.
            fetch: what brings the shards of a remote dataset. None does so by way of the cache's folder.

        Raises:
            UsageError: the split is not there, no image of it takes part in the task, or a number is out of
                range.
            CxrError: the dataset was rebuilt since it was opened, or a shard is missing or of another size
                than it was written.
        """
        if threads is not None and threads < 1:
            raise UsageError(f"found {threads} threads; expected 1 or more")
        self._dataset, self._split = dataset, split
        self._options = {
            "check": check,
            "cache_dir": cache_dir,
            "cache_bytes": cache_bytes,
            "threads": threads,
            "fetch": fetch,
        }
        self.records: SplitRecords = dataset.split(split)
        self.labels = self.records.labels.astype(np.int32)
        self.size, self._format = dataset.image_format.size, dataset.image_format
        # Raw pixels are only copied: to share that out costs more than it gains.
        self._threads = threads or (1 if self._format.codec == "raw" else os.cpu_count() or 1)
        self._pool: tuple[int, ThreadPoolExecutor] | None = None

        entries = dataset.info(split).shards
        rows = np.flatnonzero(self.records.takes_part)
        counts = [entry.records for entry in entries]
        self._shards = np.repeat(np.arange(len(counts)), counts)[rows]
        table = dataset.records.filter(pc.field("split") == split)
        self._places = table["place"].to_numpy()[rows]
        offsets = table["offset"].to_numpy()
        ends = np.append(offsets[1:], 0)
        ends[np.cumsum(counts) - 1] = [entry.bytes for entry in entries]
        self._offsets, self._lengths = offsets[rows], (ends - offsets)[rows]
        self._image_offsets = table["image_offset"].to_numpy()[rows]
        self._image_bytes = table["image_bytes"].to_numpy()[rows]
        self._known = np.full(len(rows), not check)  # whose checksum need not be compared (any more)
        self._files: ShardFiles = open_shards(dataset, split, cache_dir, cache_bytes, self._threads, fetch)
        self._buffers = _Buffers()

    def __repr__(self) -> str:
        return f"<Arrays {self._dataset.path} {self._split}: {len(self):,} images of {self.size}x{self.size}>"

    def __reduce__(self) -> tuple[Any, ...]:
        return _opened_again, (self._dataset, self._split, self._options)

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, number: int) -> tuple[np.ndarray, Any]:
        """Returns one record: uint8 [size, size, 1], and its label, int32 or int32 [number of findings].

        Raises:
            IndexError: there is no such number.
            CxrError: as `gather`.
        """
        number = operator.index(number)
        image = self.gather([number])[0]
        return image, self.labels[number].copy()  # who writes to it changes no other

    def __getitems__(self, numbers: Sequence[int]) -> list[tuple[np.ndarray, Any]]:
        """Returns several records, read together: so PyTorch's DataLoader asks for those of a batch."""
        return list(zip(self.gather(numbers), self.labels[np.asarray(numbers, np.int64)], strict=True))

    def gather(self, numbers: Sequence[int] | np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        """Returns the images of some records: uint8 [len(numbers), size, size, 1].

        Args:
            numbers: whole numbers, in any order, some of them several times; below 0 from the end on.
            out: an array of that shape to be written to and returned; None makes one.

        Raises:
            IndexError: there is no such number.
            UsageError: the numbers are no whole numbers, or `out` is of another shape.
            CxrError: a record is damaged, or its shard is cut short, or cannot be read or fetched.
        """
        wanted = np.asarray(numbers)
        if wanted.ndim != 1 or (wanted.dtype.kind not in "iu" and len(wanted)):
            raise UsageError(
                f"found numbers of shape {list(wanted.shape)} and type {wanted.dtype}; expected a list of "
                "whole numbers"
            )
        wrong = (wanted < -len(self)) | (wanted >= len(self))
        if wrong.any():
            raise IndexError(f"found record {wanted[wrong][0]} of split {self._split}, which has {len(self)}")
        wanted = wanted.astype(np.int64)  # now that all fit: of uint64 the largest would become -1
        wanted[wanted < 0] += len(self)
        shape = (len(wanted), self.size, self.size, 1)
        if out is None:
            out = np.empty(shape, np.uint8)
        elif (
            out.shape != shape
            or out.dtype != np.uint8
            or not (out.flags.c_contiguous and out.flags.writeable)
        ):
            raise UsageError(
                f"found an array of shape {list(out.shape)} and type {out.dtype}; expected uint8 "
                f"{list(shape)}, writable and without gaps"
            )
        images = out.reshape(len(wanted), self.size**2)
        order = np.argsort(wanted, kind="stable")  # as they lie in the shards
        shares = min(self._threads, -(-len(wanted) // _LEAST_SHARE))
        if shares > 1:
            parts = np.array_split(order, 4 * shares)  # so that none waits long for the slowest
            filled = [submitted(self._workers(), self._fill, images, wanted, part) for part in parts]
            wait(filled)  # for all: none writes to the array once an error is raised
            for part_filled in filled:
                part_filled.result()
        else:
            self._fill(images, wanted, order)
        return out

    def batches(
        self,
        batch_size: int,
        *,
        shuffle: bool | None = None,
        seed: int = 0,
        sampling: str = balancing.NATURAL,
        epochs: int | None = None,
        start_epoch: int = 0,
        start_batch: int = 0,
        last_batch: str | None = None,
        host: int = 0,
        num_hosts: int = 1,
    ) -> Iterator[tuple[np.ndarray, ...]]:
        """Yields the batches that `reader.load_split` gives for these arguments, in its order.

        (images, labels): uint8 [batch_size, size, size, 1] and int32 [batch_size] or [batch_size, number of
        findings]. With last_batch="pad" a third follows, the mask: float32 [batch_size], 1 for records and 0
        for padding, whose image and label are zeros. Each batch has arrays of its own.

        Args:
            batch_size: records of a batch, per host.
            shuffle: None shuffles train alone.
            seed: of the shuffling.
            sampling: "natural" or "class_balanced".
            epochs: of the whole run, those before start_epoch included. None: endless where shuffled,
                otherwise one.
            start_epoch: the first epoch, counted from 0.
            start_batch: batches of that epoch that were seen before.
            last_batch: "drop", "pad" or "smaller"; None drops where shuffled, otherwise pads.
            host: number of this host, from 0.
            num_hosts: how many hosts read the split together.

        Raises:
            UsageError: as `load_split`, at the call.
            CxrError: as `gather`, at the batch.
        """
        run = Epochs(
            self._dataset,
            self._split,
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
        self.check_room(run)
        # A generator outermost refuses a second thread; an islice would crash.
        return (self.batch(run, numbers) for numbers in islice(self.numbers(run, run.first), run.num_batches))

    def free_buffers(self) -> None:
        """Lets go of the memory that is kept for batches to come."""
        self._buffers = _Buffers()

    def check_room(self, run: Epochs) -> None:
        """Makes sure that the cache of a remote dataset is large enough for the shards that are read in turn.

        Raises:
            UsageError: it is not.
        """
        if run.shuffle:
            self._files.check_room(min(INTERLEAVED_SHARDS, len(self.records.shards)))

    def numbers(self, run: Epochs, first: int) -> Iterator[np.ndarray]:
        """Yields the numbers of the records of each batch, without end, and has shards made ready ahead.

        Args:
            run: of this split.
            first: number of the batch to begin with.
        """
        known: list[int] = []
        for shards, numbers in run.batches(first):
            if shards is not known:  # another epoch
                known, begun = shards, 0
                places = np.empty(len(self.records.shards), np.int64)
                places[shards] = np.arange(len(shards))
                self._files.ahead(shards)
            if (upto := int(places[self._shards[numbers]].max(initial=-1)) + 1) > begun:
                begun = upto
                self._files.ahead(shards[begun:])
            yield numbers

    def batch(self, run: Epochs, numbers: np.ndarray) -> tuple[np.ndarray, ...]:
        """Returns a batch of a run: images, labels and, where the run pads, the mask; see `batches`.

        Args:
            run: of this split.
            numbers: int64, of its records; fewer than a batch has where it is padded.

        Raises:
            CxrError: as `gather`.
        """
        count, pad = len(numbers), run.last_batch == "pad"
        shape = (run.batch_size if pad else count, self.size, self.size, 1)
        images = self._buffers.array(shape)
        self.gather(numbers, images[:count])
        if not pad:
            return images, self.labels[numbers]
        images[count:] = 0
        labels = np.zeros((run.batch_size, *self.labels.shape[1:]), np.int32)
        labels[:count] = self.labels[numbers]
        return images, labels, (np.arange(run.batch_size) < count).astype(np.float32)

    def _fill(self, images: np.ndarray, numbers: np.ndarray, rows: np.ndarray) -> None:
        """Reads some images into their rows.

        Args:
            images: uint8 [n, size * size].
            numbers: int64 [n].
            rows: int64, those to be filled, as their records lie in the shards.
        """
        size, raw = self.size**2, self._format.codec == "raw"
        chosen = numbers[rows]
        columns = self._shards[chosen], rows, chosen, self._image_offsets[chosen], self._known[chosen]
        lists = (column.tolist() for column in columns)
        for shard, records in groupby(zip(*lists, strict=True), key=operator.itemgetter(0)):
            file = self._files[shard]
            try:
                mapped = file.mapped()
            except OSError as error:  # more files or maps than the system allows
                said = f"cannot be read: {error.strerror or error}"
                raise self._files.trouble(shard, said) from None
            for _, row, number, start, known in records:
                try:
                    if not known:
                        images[row] = self._decoded(self._checked(file, number))
                        self._known[number] = True
                    elif mapped is None:
                        images[row] = self._decoded(_read(file, start, int(self._image_bytes[number])))
                    elif raw:
                        images[row] = mapped[start : start + size]
                    else:
                        images[row] = self._decoded(mapped[start : start + int(self._image_bytes[number])])
                except (ValueError, OSError) as error:
                    kind = "cannot be read" if isinstance(error, OSError) else "is damaged"
                    said = str(getattr(error, "strerror", None) or error)
                    record = f"record {self._places[number]} ({self.records.image_ids[number]})"
                    raise self._files.trouble(shard, f"{record} {kind}: {said}") from None

    def _checked(self, file: OpenShard, number: int) -> memoryview:
        """The stored image of a record whose checksums are right."""
        offset = int(self._offsets[number])
        data = memoryview(unframe(_read(file, offset, int(self._lengths[number])), offset))
        start = int(self._image_offsets[number]) - offset - HEADER_BYTES
        return data[start : start + int(self._image_bytes[number])]

    def _decoded(self, stored: bytes | memoryview | np.ndarray) -> np.ndarray:
        """The pixels of a stored image: uint8 [size * size]."""
        return self._format.decode(bytes(stored)).reshape(-1)  # decoders take nothing but bytes

    def _workers(self) -> ThreadPoolExecutor:
        """The threads that decode; others in each process, as a fork takes none along."""
        process = os.getpid()
        if self._pool is None or self._pool[0] != process:
            self._pool = process, ThreadPoolExecutor(self._threads)
        return self._pool[1]


def _read(file: OpenShard, start: int, count: int) -> bytes:
    """Reads so many bytes; a call may give fewer, as of a network's file."""
    parts = []
    while count:
        part = os.pread(file.fileno(), count, start)
        if not part:
            raise RecordError(start, "the file ends within it")
        parts.append(part)
        start, count = start + len(part), count - len(part)
    return b"".join(parts)


def _opened_again(dataset: Dataset, split: str, options: dict[str, Any]) -> Arrays:
    return Arrays(dataset, split, **options)


class _Buffers:
    """Memory for batches, taken again once nobody refers to the arrays that were made of it.

    A batch in memory that the process did not have before costs about as much as copying the pixels to it.
    """

    def __init__(self) -> None:
        self._held: list[np.ndarray] = [np.empty(0, np.uint8)]
        self._nobody = self._references(0)  # as many as there are when it is in the list alone
        self._held.clear()
        self._lock = threading.Lock()

    def array(self, shape: tuple[int, ...]) -> np.ndarray:
        """Returns an array of such a shape that nobody else has: uint8, whatever it holds."""
        count = math.prod(shape)
        # Nobody waits: a process that was forked meanwhile would do so for ever.
        free = self._lock.acquire(blocking=False)
        try:
            fitting = (
                place for place in range(len(self._held)) if len(self._held[place]) >= count + _ALIGNED
            )
            unused = (place for place in fitting if self._references(place) == self._nobody)
            if free and (place := next(unused, None)) is not None:
                memory = self._held[place]
            else:
                memory = np.empty(count + _ALIGNED, np.uint8)
                if free and sum(map(len, self._held)) + len(memory) <= _BUFFERS_BYTES:
                    self._held.append(memory)
            start = -memory.ctypes.data % _ALIGNED
            return memory[start : start + count].reshape(shape)
        finally:
            if free:
                self._lock.release()

    def _references(self, place: int) -> int:
        return sys.getrefcount(self._held[place])
