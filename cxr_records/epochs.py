"""The batches of a run, epoch by epoch: which arguments a reader takes, and which records make each batch."""

import math
from collections.abc import Iterator
from itertools import chain, count, islice, repeat

import numpy as np

from cxr_records import balancing
from cxr_records.dataset import Dataset, SplitRecords
from cxr_records.errors import UsageError
from cxr_records.order import Order, buffer_records
from cxr_records.splits import TRAIN

LAST_BATCHES = ("drop", "pad", "smaller")


class Epochs:
    """Arguments of a reader that were checked, and the numbers of the records of each batch.

    Attributes:
        records: of the split that take part.
        batch_size: records of a batch.
        shuffle: whether records are shuffled.
        last_batch: one of `LAST_BATCHES`.
        steps: batches of an epoch, the same for every host and epoch.
        first: number of the run's first batch; those of epochs and batches before its start are counted.
        num_batches: of the whole run, from its start on; None where it is endless.
    """

    def __init__(
        self,
        dataset: Dataset,
        split: str,
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
    ):
        """Checks the arguments, which are those of `reader.load_split`.

        Raises:
            UsageError: the split is not there, a batch is larger than it, hosts outnumber shards, or a number
                or word is out of range.
            CxrError: the dataset was rebuilt since it was opened.
        """
        self.records = records = dataset.split(split)
        self.batch_size = batch_size
        self.shuffle = split == TRAIN if shuffle is None else shuffle
        self.last_batch = last_batch or ("drop" if self.shuffle else "pad")
        if sampling not in balancing.SAMPLINGS:
            raise UsageError(f"found sampling {sampling!r}; expected one of {', '.join(balancing.SAMPLINGS)}")
        if sampling != balancing.NATURAL and not self.shuffle:
            raise UsageError(
                f"found sampling {sampling!r} of records in manifest order; expected `shuffle=True`"
            )
        steps = steps_of_epoch(records, split, batch_size, num_hosts, self.shuffle, self.last_batch)
        if not 0 <= host < num_hosts:
            raise UsageError(f"found host {host} of {num_hosts} hosts; expected 0 to {num_hosts - 1}")
        if start_epoch < 0 or not 0 <= start_batch <= steps:
            raise UsageError(
                f"found start at epoch {start_epoch}, batch {start_batch}; expected an epoch from 0 and a "
                f"batch from 0 to {steps}, for an epoch of split {split} has {steps} batches of {batch_size}"
            )
        if epochs is None and not self.shuffle:
            epochs = start_epoch + 1
        if start_batch == steps:
            start_epoch, start_batch = start_epoch + 1, 0
        self.steps = steps
        self.num_batches = None if epochs is None else max(0, steps * (epochs - start_epoch) - start_batch)
        self.first = start_epoch * steps + start_batch
        self._order = Order(
            records,
            shuffle=self.shuffle,
            buffer=buffer_records(dataset.splits[split].shards),
            seed=seed,
            sampling=sampling,
            host=host,
            num_hosts=num_hosts,
        )

    def batches(self, first: int) -> Iterator[tuple[list[int], np.ndarray]]:
        """Yields the shards of a batch's epoch, in the order of reading, and the numbers of its records.

        These are int64, as those of `records`. What they lack of batch_size is padding, where that is asked
        for; it may be all of it. There is no end.

        Args:
            first: number of the batch to begin with.
        """
        epoch, start = divmod(first, self.steps)
        return chain.from_iterable(self._epoch(e, start if e == epoch else 0) for e in count(epoch))

    def _epoch(self, epoch: int, start: int) -> Iterator[tuple[list[int], np.ndarray]]:
        none = np.empty(0, np.int64)
        shards = self._order.shards(epoch).tolist()
        batches = chain(self._order.batches(epoch, self.batch_size, start), repeat(none))
        return ((shards, numbers) for numbers in islice(batches, self.steps - start))


def steps_of_epoch(
    records: SplitRecords, split: str, batch_size: int, num_hosts: int, shuffle: bool, last_batch: str
) -> int:
    """Returns the batches of an epoch, the same for every host and epoch.

    Raises:
        UsageError: a batch is larger than the split, hosts outnumber shards, or a number or word is out of
            range.
    """
    if batch_size < 1 or num_hosts < 1:
        raise UsageError(f"found batch size {batch_size} and {num_hosts} hosts; expected 1 or more of each")
    if last_batch not in LAST_BATCHES:
        raise UsageError(f"found last_batch {last_batch!r}; expected one of {', '.join(LAST_BATCHES)}")
    if last_batch == "smaller" and num_hosts > 1:
        raise UsageError("found last_batch 'smaller' with several hosts, whose counts differ; expected 'pad'")
    counts = [kept for _, kept, _ in records.shards]
    if num_hosts > len(counts):
        raise UsageError(
            f"found {num_hosts} hosts for the {len(counts)} shards of split {split}; each host needs one: "
            "build with a smaller `shard_mb`"
        )
    if shuffle:  # which shards a host gets changes with the epoch
        counts = sorted(counts)
        fewest = sum(counts[: len(counts) // num_hosts])
        most = sum(counts[-math.ceil(len(counts) / num_hosts) :])
    else:
        per_host = [sum(counts[host::num_hosts]) for host in range(num_hosts)]
        fewest, most = min(per_host), max(per_host)
    if last_batch != "drop":
        return -(-most // batch_size)
    if fewest < batch_size:
        each = f" for each of {num_hosts} hosts" * (num_hosts > 1)
        raise UsageError(
            f"found a batch of {batch_size}, larger than split {split}, which has {fewest} records{each}; "
            "expected a smaller one"
        )
    return fewest // batch_size
