"""A finished dataset as one object: opened once, typed, without TensorFlow."""

import functools
import hashlib
import os
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cxr_records import storage
from cxr_records.errors import CxrError, UsageError
from cxr_records.examples import decode_example, record_features, record_problems
from cxr_records.images import ImageFormat
from cxr_records.layout import LIST_FILES, MANIFEST_FILE, RECORDS_FILE
from cxr_records.manifest import Manifest, SplitInfo, read_manifest
from cxr_records.record_table import VERIFY, disagreements, label_rows, read_record_table
from cxr_records.splits import SPLITS
from cxr_records.tasks import Task
from cxr_records.tasks import as_task as task_of
from cxr_records.tfrecord import read_records

if TYPE_CHECKING:  # `load` alone needs TensorFlow
    import tensorflow as tf

    from cxr_records.arrays import Arrays


@dataclass(frozen=True, eq=False)
class SplitRecords:
    """The records of a split that take part in a task, in manifest order; n of them.

    Attributes:
        task: the task.
        image_ids: object [n] of str.
        patient_ids: int64 [n].
        views: object [n] of str, PA or AP; "" where unknown.
        sexes: object [n] of str, M or F; "" where unknown.
        ages_years: int64 [n]; -1 where unknown.
        copies: int64 [n], 0 for originals.
        labels: int64 [n], or [n, number of findings] for multilabel.
        shards: (file, records that take part, records in the file) of each shard.
        takes_part: bool, for every record in the files.
    """

    task: Task
    image_ids: np.ndarray
    patient_ids: np.ndarray
    views: np.ndarray
    sexes: np.ndarray
    ages_years: np.ndarray
    copies: np.ndarray
    labels: np.ndarray
    shards: tuple[tuple[str, int, int], ...]
    takes_part: np.ndarray

    def __len__(self) -> int:
        return len(self.image_ids)


class Dataset:
    """A finished dataset, for its own task or for one derived from it. Make it with `open_dataset`.

    It belongs to the dataset that was opened: where its folder is rebuilt, the next use says so.

    Attributes:
        path: folder or URL.
        manifest: what it says of itself.
        task: what labels are.
    """

    def __init__(self, path: str, manifest: Manifest, task: Task, opened: "_Opened"):
        self.path, self.manifest, self.task, self._opened = path, manifest, task, opened

    def __reduce__(self) -> tuple[Any, ...]:
        return _opened_again, (self.path, self.id, self.task)

    def __repr__(self) -> str:
        return f"<Dataset {self.path}: {self.task.text}, id {self.id}>"

    @property
    def id(self) -> str:
        """Names what the dataset holds: 32 hexadecimal digits."""
        return self.manifest.id

    @property
    def image_format(self) -> ImageFormat:
        """Size, codec and resampling filter of the images."""
        return self.manifest.config.image_format

    @property
    def findings(self) -> tuple[str, ...]:
        """Names of the findings, in the order of a record's `findings`."""
        return self.manifest.findings

    @property
    def splits(self) -> Mapping[str, SplitInfo]:
        """The splits that there are, by name."""
        return self.manifest.splits

    @property
    def records(self) -> pa.Table:
        """The table of records, one row per record in the order of the shards; read once.

        Raises:
            CxrError: it is missing, damaged, or was rebuilt since the dataset was opened.
        """
        self.check_unchanged()
        return self._opened.records

    def as_task(self, task: Task | str | None) -> "Dataset":
        """Returns the same dataset for another task, which only a multilabel one gives.

        Args:
            task: as `tasks.parse_task` takes it; None is the dataset's own.

        Raises:
            UsageError: there is no such task, or it cannot be derived.
        """
        own = self.manifest.config.task
        wanted = own if task is None else task_of(task, self.findings)
        if wanted != own and own.kind != "multilabel":
            raise UsageError(
                f"found task {_spoken(wanted)}; {self.path} was built for {_spoken(own)}, and only a "
                "multilabel dataset gives other tasks: build one with `task=multilabel`"
            )
        return Dataset(self.path, self.manifest, wanted, self._opened)

    def split(self, name: str) -> SplitRecords:
        """Returns what is known of a split's records without reading their pixels.

        Raises:
            UsageError: there is no such split, or no image of it takes part in the task.
            CxrError: the table of records is damaged, or was rebuilt since the dataset was opened.
        """
        self.check_unchanged()
        return self._opened.split(self.info(name), name, self.task)

    def info(self, split: str) -> SplitInfo:
        """Returns what the manifest says of a split.

        Raises:
            UsageError: there is no such split.
        """
        if split not in self.splits:
            raise UsageError(f"found split {split!r}; {self.path} has {', '.join(self.splits)}")
        return self.splits[split]

    def split_lists(self) -> dict[str, list[str]]:
        """Returns {split: the names of all images of the table that are in it}, sorted.

        They are in it whether they have a record or not: the dataset may leave out images that another task
        takes. Images that were in no split are named nowhere.

        Raises:
            CxrError: a list is missing or damaged, or the dataset is older than these lists.
        """
        told = {entry.file for entry in self.manifest.files}
        lists = {
            split: self.side_file(file).decode().split("\n")[:-1]
            for split, file in zip(SPLITS, LIST_FILES, strict=True)
            if file in told
        }
        if not lists:
            raise CxrError(
                f"{self.path} is older than the lists of splits that datasets hold now; make lists from its "
                f"{RECORDS_FILE}, and give them as `train_val_list`, `test_list` and `validation_list`"
            )
        return lists

    def side_file(self, name: str) -> bytes:
        """Returns a file beside the shards, as it was written.

        Args:
            name: of those that the manifest names.

        Raises:
            CxrError: it is missing or damaged, or the dataset was rebuilt since it was opened.
        """
        self.check_unchanged()
        path = storage.join(self.path, name)
        entry = next((entry for entry in self.manifest.files if entry.file == name), None)
        data = None
        if entry and storage.exists(path):
            with storage.open_regular(path) as file:
                data = storage.read_up_to(file, entry.bytes + 1)
        if entry is None or data is None or hashlib.sha256(data).hexdigest() != entry.sha256:
            self.check_unchanged()  # a rebuild that began meanwhile is the cause
            trouble = "is missing" if data is None else "is damaged: its sha256 is not the manifest's"
            raise CxrError(f"{path} {trouble}; {VERIFY}")
        return data

    def load(self, split: str, batch_size: int, **options: Any) -> "tf.data.Dataset":
        """Streams a split in batches of uint8 images and their labels: `reader.load_split`, which see."""
        from cxr_records.reader import load_split

        return load_split(self, split, batch_size, **options)

    def arrays(self, split: str, *, task: Task | str | None = None, **options: Any) -> "Arrays":
        """Opens a split's images and labels as NumPy arrays, to be read by number, without TensorFlow.

        Args:
            split: train, validation or test.
            task: another than the dataset's; see `as_task`.
            options: check, cache_dir, cache_bytes and threads, as `arrays.Arrays` takes them.

        Raises:
            UsageError: the split is not there, the task cannot be derived, or an option is out of range.
            CxrError: the dataset was rebuilt since it was opened, or a shard is missing or of another size
                than it was written.
        """
        from cxr_records.arrays import Arrays

        return Arrays(self if task is None else self.as_task(task), split, **options)

    def steps_per_epoch(self, split: str, batch_size: int, num_hosts: int = 1) -> int:
        """Returns how many batches of training `load` gives each host: `reader.steps_per_epoch`."""
        from cxr_records.reader import steps_per_epoch

        return steps_per_epoch(self, split, batch_size, num_hosts=num_hosts)

    def examples(self, rows: pa.Table) -> list[dict[str, list[Any]]]:
        """Reads single records, as `examples.decode_example` gives them.

        Args:
            rows: of `records`.

        Raises:
            CxrError: a record is damaged, or the dataset was rebuilt since it was opened.
        """
        self.check_unchanged()
        examples = []
        features = record_features(self.manifest.config.task.label_shape, len(self.findings))
        for row in rows.select(["shard", "offset"]).to_pylist():
            path = storage.join(self.path, row["shard"])
            try:
                with storage.open_regular(path) as file:
                    file.seek(row["offset"])
                    _, data = next(read_records(file), (0, None))
                if data is None:
                    raise ValueError("the file ends there")
                values = decode_example(data)
                if wrong := record_problems(values, features):
                    raise ValueError(wrong[0])
                examples.append(values)
            except (ValueError, OSError) as error:
                self.check_unchanged()  # a rebuild that began meanwhile is the cause
                trouble = f"is damaged at byte {row['offset']:,} ({error})"
                if isinstance(error, OSError):
                    trouble = f"cannot be read ({error.strerror or error})"
                raise CxrError(f"{path} {trouble}; {VERIFY}") from None
        self.check_unchanged()  # a build takes the manifest away before it writes another shard
        return examples

    def check_unchanged(self) -> None:
        """Makes sure that the folder still holds the dataset that was opened.

        Raises:
            CxrError: it holds another one now, or none.
        """
        self._opened.check_unchanged()


def open_dataset(dataset: "str | os.PathLike[str] | Dataset") -> Dataset:
    """Opens a finished dataset; one that is open already is returned as it is.

    Args:
        dataset: folder or URL.

    Raises:
        ManifestError: there is no finished dataset, or its manifest is damaged or of another version.
    """
    if isinstance(dataset, Dataset):
        return dataset
    path = storage.absolute(os.fspath(dataset))
    stamp = storage.identity(storage.join(path, MANIFEST_FILE))
    manifest = read_manifest(path)
    return Dataset(path, manifest, manifest.config.task, _Opened(path, manifest, stamp))


def _opened_again(path: str, dataset_id: str, task: Task) -> Dataset:
    """Opens a dataset that was pickled, where it is still the same."""
    dataset = open_dataset(path)
    if dataset.id != dataset_id:
        raise _rebuilt(path, dataset.id, dataset_id)
    return dataset.as_task(task)


def _rebuilt(path: str, found: str, expected: str) -> CxrError:
    return CxrError(
        f"{path} was rebuilt since it was opened: found id {found}, expected {expected}; open it again"
    )


class _Opened:
    """What all tasks of an open dataset share."""

    def __init__(self, path: str, manifest: Manifest, stamp: object):
        self._path, self._manifest, self._stamp = path, manifest, stamp
        self._lock = threading.Lock()
        self._splits: dict[tuple[str, Task], SplitRecords] = {}

    @functools.cached_property
    def records(self) -> pa.Table:
        self.check_unchanged()
        try:
            table = read_record_table(self._path, self._manifest)
        except CxrError:
            self.check_unchanged()  # a rebuild that began meanwhile is the cause
            raise
        for told in disagreements(table, self._manifest):
            raise CxrError(
                f"{self._path}: the table of records is not that of the manifest ({told}); {VERIFY}"
            )
        return table

    def split(self, info: SplitInfo, name: str, task: Task) -> SplitRecords:
        with self._lock:
            if (name, task) not in self._splits:
                self._splits[name, task] = self._read_split(info, name, task)
            return self._splits[name, task]

    def _read_split(self, info: SplitInfo, name: str, task: Task) -> SplitRecords:
        own = self._manifest.config.task
        table = self.records.filter(pc.field("split") == name)
        labels = label_rows(table, own)
        takes_part = np.ones(len(table), bool)
        if task != own:
            selection = task.select(labels)
            takes_part, labels = selection.kept, selection.labels[selection.kept]
            if not takes_part.any():
                raise UsageError(f"found no image for task {_spoken(task)} in split {name} of {self._path}")
        ends = np.cumsum([shard.records for shard in info.shards])

        def column(name: str) -> np.ndarray:
            values: np.ndarray = table[name].to_numpy()
            return values[takes_part]

        return SplitRecords(
            task=task,
            image_ids=column("image_id"),
            patient_ids=column("patient_id"),
            views=column("view"),
            sexes=column("sex"),
            ages_years=column("age_years"),
            copies=column("copy"),
            labels=labels,
            shards=tuple(
                (shard.file, int(takes_part[end - shard.records : end].sum()), shard.records)
                for shard, end in zip(info.shards, ends, strict=True)
            ),
            takes_part=takes_part,
        )

    def check_unchanged(self) -> None:
        path = storage.join(self._path, MANIFEST_FILE)
        stamp = storage.identity(path)
        if stamp is not None and stamp == self._stamp:
            return
        if not storage.exists(path):
            raise CxrError(f"{self._path} is being rebuilt or was removed since it was opened; open it again")
        now = read_manifest(self._path).id
        if now != self._manifest.id:
            raise _rebuilt(self._path, now, self._manifest.id)
        self._stamp = stamp


def _spoken(task: Task) -> str:
    return f"{task.name} with No Finding" if task.with_no_finding else task.name
