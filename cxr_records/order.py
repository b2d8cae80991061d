"""The order of training: which record of a split comes when, as numbers. No file is read, nothing is random.

An epoch of shuffled training, for one host:

1. The shards of the split are shuffled (`shuffled`, keyed by seed and epoch); the host takes every
   num_hosts-th of them.
2. INTERLEAVED_SHARDS of them are read in turn, BLOCK_RECORDS records at a time (`interleaved`). Natural
   sampling reads a shard's records in manifest order. Class-balanced sampling reads them as often as
   `balancing.times_drawn` says, in an order of the shard and the epoch's own.
3. All pass through a shuffle buffer (`through_buffer`, keyed by seed, host and epoch).

So an epoch depends on (seed, epoch, host, num_hosts) and the split alone, and records that follow each other
lie in few shards. Training that is not shuffled has manifest order.

The order was first made by TensorFlow's operations, and runs that began with those go on as they began. It is
ours now, and written down here: their random numbers (Philox4x32-10: Salmon, Moraes, Dror and Shaw, "Parallel
random numbers: as easy as 1, 2, 3", SC 2011; tensorflow/core/lib/random/philox_random.h), the way their keys
come from seeds (python/ops/random_ops_util.py, python/data/util/random_seed.py), their shuffle
(core/kernels/random_shuffle_op.cc), and tf.data's interleave and shuffle
(core/kernels/data/interleave_dataset_op.cc, shuffle_dataset_op.cc).
"""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from cxr_records import balancing
from cxr_records.dataset import SplitRecords
from cxr_records.manifest import ShardEntry
from cxr_records.seeding import keyed_hash

INTERLEAVED_SHARDS = 8
BLOCK_RECORDS = 16
SHUFFLE_BYTES, SHUFFLE_RECORDS = 64 << 20, 16384  # whichever is less; never taken from the machine

_CHUNK_BLOCKS = 128  # handed on together: less would cost more for each record, more is no quicker
_CHUNK_RECORDS = _CHUNK_BLOCKS * BLOCK_RECORDS

_MULTIPLIERS = 0xD2511F53, 0xCD9E8D57
_KEY_STEPS = 0x9E3779B9, 0xBB67AE85
_LOW = 0xFFFFFFFF
_SCRAMBLING_KEY = 0x02461E293EC8F720
_GRAPH_SEED = 1  # with which tf.data's own seeds were made


def buffer_records(entries: Sequence[ShardEntry]) -> int:
    """Returns how many records the shuffle buffer holds, for a split of these shards."""
    mean_bytes = sum(entry.bytes for entry in entries) / sum(entry.records for entry in entries)
    return int(min(SHUFFLE_RECORDS, SHUFFLE_BYTES / mean_bytes))


class Order:
    """The order in which one host reads the records of a split.

    Numbers are those of `SplitRecords`: record 0 is the first that takes part, and `records.labels[numbers]`
    are their labels.
    """

    def __init__(
        self,
        records: SplitRecords,
        *,
        shuffle: bool,
        buffer: int,
        seed: int = 0,
        sampling: str = balancing.NATURAL,
        host: int = 0,
        num_hosts: int = 1,
    ):
        """Takes arguments that were checked.

        Args:
            records: of the split that take part.
            shuffle: False is manifest order.
            buffer: records that the shuffle buffer holds, see `buffer_records`.
            seed: of the shuffling.
            sampling: one of `balancing.SAMPLINGS`; natural where not shuffled.
            host: number of the host, from 0.
            num_hosts: how many read the split together.
        """
        self._shuffle, self._buffer, self._seed = shuffle, buffer, seed
        self._host, self._num_hosts = host, num_hosts
        self._counts = [kept for _, kept, _ in records.shards]
        self._starts = (np.cumsum(self._counts) - self._counts).tolist()
        self._upto: np.ndarray | None = None  # of class-balanced sampling, see `balancing.reached`
        if sampling == balancing.CLASS_BALANCED:
            expected = balancing.expected_draws(records.task, records.labels, self._counts)
            self._upto = balancing.reached(expected, self._counts)

    def shards(self, epoch: int) -> np.ndarray:
        """Returns the numbers of the shards that the host reads in an epoch, in order: int64."""
        numbers = np.arange(len(self._counts))
        if self._shuffle:
            numbers = shuffled(numbers, _stateless(keyed_hash(self._seed, "order of shards") >> 1, epoch))
        return numbers[self._host :: self._num_hosts]

    def epoch(self, epoch: int) -> Iterator[np.ndarray]:
        """Yields the numbers of an epoch's records in order: int64, some at a time.

        It begins at once, and holds the numbers of the shuffle buffer and of a few shards.

        Args:
            epoch: from 0.
        """
        shards = self.shards(epoch).tolist()
        if not self._shuffle:
            return _parts((self._natural(shard) for shard in shards), _CHUNK_RECORDS)
        drawn = (
            self._natural(shard) if self._upto is None else self._drawn(shard, epoch) for shard in shards
        )
        blocks = interleaved(_parts([numbers], BLOCK_RECORDS) for numbers in drawn)
        key = keyed_hash(self._seed, "shuffle buffer", self._host, self._num_hosts) >> 1
        return through_buffer(joined(blocks), self._buffer, _of_a_dataset(uniform(key, epoch)))

    def batches(self, epoch: int, batch_size: int, start_batch: int = 0) -> Iterator[np.ndarray]:
        """Yields the numbers of each batch of an epoch: int64 [batch_size]; the last may be smaller.

        Args:
            epoch: from 0.
            batch_size: records of a batch.
            start_batch: so many batches are passed over.
        """
        skipped = start_batch * batch_size
        held: list[np.ndarray] = []
        size = 0
        for numbers in self.epoch(epoch):
            if skipped >= len(numbers):
                skipped -= len(numbers)
                continue
            held.append(numbers[skipped:])
            size, skipped = size + len(held[-1]), 0
            if size >= batch_size:
                ready = np.concatenate(held)
                whole = size - size % batch_size
                yield from np.split(ready[:whole], whole // batch_size)
                held, size = [ready[whole:]], size - whole
        if size:
            yield np.concatenate(held)

    def _natural(self, shard: int) -> np.ndarray:
        start = self._starts[shard]
        return np.arange(start, start + self._counts[shard])

    def _drawn(self, shard: int, epoch: int) -> np.ndarray:
        numbers = self._natural(shard)
        assert self._upto is not None
        times = balancing.times_drawn(self._upto[numbers], self._seed, shard, epoch)
        key = keyed_hash(self._seed, "order in shard", shard) >> 1
        return shuffled(np.repeat(numbers, times), _stateless(key, epoch))


def interleaved(shards: Iterable[Iterator[np.ndarray]]) -> Iterator[np.ndarray]:
    """Yields blocks of INTERLEAVED_SHARDS shards in turn.

    A shard that has no more is left at its turn, and another takes its place when that turn comes again.
    """
    slots: list[Iterator[np.ndarray] | None] = [None] * INTERLEAVED_SHARDS
    waiting = iter(shards)
    turn, num_open, more = 0, 0, True
    while num_open or more:
        slot = slots[turn]
        if slot is None and more:
            slots[turn] = next(waiting, None)
            more = slots[turn] is not None
            num_open += more
            continue  # its turn is now
        if slot is not None:
            block = next(slot, None)
            if block is None:
                slots[turn] = None
                num_open -= 1
            else:
                yield block
        turn = (turn + 1) % INTERLEAVED_SHARDS


def joined(blocks: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
    """Yields the same numbers in larger arrays."""
    held = []
    for block in blocks:
        held.append(block)
        if len(held) == _CHUNK_BLOCKS:
            yield np.concatenate(held)
            held = []
    if held:
        yield np.concatenate(held)


def through_buffer(chunks: Iterable[np.ndarray], size: int, random: "Philox") -> Iterator[np.ndarray]:
    """Yields the same numbers as they come out of a shuffle buffer.

    The buffer is a ring of `size` places. What is drawn comes from any place between the oldest and the
    newest number; the oldest moves there, and the next number takes the place of the oldest.

    Args:
        chunks: int64, the numbers as they go in.
        size: of the buffer; one that holds them all shuffles them all.
        random: what draws.
    """
    ring: list[int] = []
    oldest = 0
    for chunk in chunks:
        room = size - len(ring)
        ring += chunk[:room].tolist()
        entering = chunk[room:]
        if not len(entering):
            continue
        olds = oldest + np.arange(len(entering))
        places = olds + random.take(len(olds)) % size
        drawn = []
        steps = zip((places % size).tolist(), (olds % size).tolist(), entering.tolist(), strict=True)
        # Each step reads what those before wrote. On lists of ints it takes a tenth of a microsecond.
        for place, old, number in steps:
            drawn.append(ring[place])
            ring[place] = ring[old]
            ring[old] = number
        oldest += len(drawn)
        yield np.array(drawn)
    if not ring:
        return
    olds = oldest + np.arange(len(ring))
    places = olds + random.take(len(ring)) % np.arange(len(ring), 0, -1)
    drawn = []
    for place, old in zip((places % size).tolist(), (olds % size).tolist(), strict=True):
        drawn.append(ring[place])
        ring[place] = ring[old]
    yield np.array(drawn)


def shuffled(values: np.ndarray, random: "Philox") -> np.ndarray:
    """Returns the values in another order (Fisher and Yates, from the first place on)."""
    result, count = values.tolist(), len(values)
    offsets = random.take(max(0, count - 1)) % np.arange(count, 1, -1)
    for place, offset in enumerate(offsets.tolist()):
        other = place + offset
        result[place], result[other] = result[other], result[place]
    return np.array(result, values.dtype)


def uniform(key: int, epoch: int) -> int:
    """Returns a whole number from 0 to 2^63 - 2."""
    low, high = _stateless(key, epoch).take(2).tolist()
    return int(low | high << 32) % (2**63 - 1)


class Philox:
    """A stream of 32-bit random numbers, four for each count of a counter (Philox4x32-10).

    Args:
        key: 64 bits.
        stream: 64 bits, the upper half of the counter; the lower begins at `start`.
        start: count of the first four.
    """

    def __init__(self, key: int, stream: int, start: int = 0):
        self._key, self._stream, self._count = key, stream, start
        self._ready = np.empty(0, np.int64)

    def take(self, number: int) -> np.ndarray:
        """Returns the next random numbers: int64 [number], 0 to 2^32 - 1."""
        if missing := max(0, number - len(self._ready)):
            counts = np.arange(-(-missing // 4), dtype=np.uint64) + np.uint64(self._count)
            self._count += len(counts)
            self._ready = np.concatenate([self._ready, self._blocks(counts)])
        taken, self._ready = self._ready[:number], self._ready[number:]
        return taken

    def _blocks(self, counts: np.ndarray) -> np.ndarray:
        words = [counts & _LOW, counts >> 32]
        words += [np.full_like(counts, self._stream & _LOW), np.full_like(counts, self._stream >> 32)]
        keys = self._key & _LOW, self._key >> 32
        for _ in range(10):
            products = words[0] * _MULTIPLIERS[0], words[2] * _MULTIPLIERS[1]
            words = [
                (products[1] >> 32) ^ words[1] ^ keys[0],
                products[1] & _LOW,
                (products[0] >> 32) ^ words[3] ^ keys[1],
                products[0] & _LOW,
            ]
            keys = (keys[0] + _KEY_STEPS[0]) & _LOW, (keys[1] + _KEY_STEPS[1]) & _LOW
        return np.stack(words, axis=1).reshape(-1).astype(np.int64)


def _stateless(key: int, epoch: int) -> Philox:
    """The random numbers of an operation whose seed is the pair (key, epoch)."""
    words = Philox(_SCRAMBLING_KEY, epoch, start=key).take(4).tolist()
    return Philox(words[0] | words[1] << 32, words[2] | words[3] << 32)


def _of_a_dataset(seed: int) -> Philox:
    """The random numbers of a tf.data shuffle of this seed."""
    return Philox(_GRAPH_SEED, seed % (2**31 - 1))


def _parts(arrays: Iterable[np.ndarray], length: int) -> Iterator[np.ndarray]:
    """Yields slices of the arrays, each up to so long."""
    for array in arrays:
        for start in range(0, len(array), length):
            yield array[start : start + length]
