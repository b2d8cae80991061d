"""Class-balanced sampling: how often each training record is drawn in an epoch.

A class is drawn, each as likely, and then one of its records (Shen, Lin and Huang, "Relay Backpropagation for
Effective Learning of Deep Convolutional Neural Networks", ECCV 2016, section 5.3). So a record weighs the sum
of 1 / (records of the class) over the classes that it holds; that is also what Wu et al. take for images of
several classes ("Distribution-Balanced Loss for Multi-Label Classification in Long-Tailed Datasets", ECCV
2020, section 3.1). Images without a finding, whom these have none of, are a class of their own; without it
they would never be drawn.

Each shard gives as many records as it holds, so that hosts, steps and places in an epoch are those of natural
sampling: of the n records of a shard, record i is drawn n * weight_i / (weights of the shard) times in
expectation, by systematic resampling (Madow 1949), in an epoch the whole number below or above that. The
point at which it begins moves on from epoch to epoch by the golden section (Weyl's sequence): over many
epochs each record comes as often as it should to within a few times, which independent draws would not give.
"""

import math
from collections.abc import Sequence

import numpy as np

from cxr_records.seeding import keyed_hash
from cxr_records.tasks import Task

NATURAL, CLASS_BALANCED = "natural", "class_balanced"
SAMPLINGS = (NATURAL, CLASS_BALANCED)
OFFSETS = 2**32  # where a shard's draws may begin: as many points, of which none is rounded
OFFSET_STEP = 0x9E3779B1  # 2^32 by the golden section; odd, so that all points come before one comes again


def expected_draws(task: Task, labels: np.ndarray, shard_records: Sequence[int]) -> np.ndarray:
    """Returns how often each record is drawn in an epoch, in expectation: float64 [n].

    Args:
        task: of the labels.
        labels: int64 [n], or [n, number of findings] for multilabel, in the order of the shards; all take
            part in the task.
        shard_records: how many of them each shard holds; their sum is n.
    """
    classes = task.class_rows(labels).astype(np.float64)
    if task.kind == "multilabel":
        classes = np.column_stack([classes, ~classes.any(axis=1)])
    sizes = classes.sum(axis=0)
    weights = np.zeros(len(labels))
    # One after the other: the last digit of a product of matrices is another on other machines.
    for column, size in zip(classes.T, sizes, strict=True):
        weights += column / max(size, 1)
    parts = np.split(weights, np.cumsum(shard_records)[:-1])
    return np.concatenate([len(part) * part / math.fsum(part) if len(part) else part for part in parts])


def reached(expected: np.ndarray, shard_records: Sequence[int]) -> np.ndarray:
    """Returns the draws that a shard expects up to and with each of its records: float64 [n].

    A shard's last one is the whole number of the records that take part in it, exactly.

    Args:
        expected: float64 [n], of all records in the files; 0 for those that take no part.
        shard_records: records in each file.
    """
    sums = []
    for part in np.split(expected, np.cumsum(shard_records)[:-1]):
        upto = np.cumsum(part)
        sums.append(upto / upto[-1] * np.rint(upto[-1]) if part.any() else upto)
    return np.concatenate(sums)


def first_offset(seed: int, shard: int) -> int:
    """Returns where a shard's draws begin in epoch 0, of OFFSETS; each epoch moves it on by OFFSET_STEP."""
    return keyed_hash(seed, "class-balanced draws", shard) % OFFSETS


def times_drawn(upto: np.ndarray, seed: int, shard: int, epoch: int) -> np.ndarray:
    """Returns how often each record of a shard is drawn in an epoch: int64 [n], of sum n.

    Args:
        upto: float64 [n], of the shard, as `reached` gives it.
        seed: of the order of training.
        shard: its number in the split.
        epoch: from 0.
    """
    offset = (first_offset(seed, shard) + epoch * OFFSET_STEP) % OFFSETS / OFFSETS
    return np.diff(np.floor(upto + offset).astype(np.int64), prepend=0)
