"""Names of the files of a dataset on disk."""

import re

DATASET_NAME = "cxr14"  # with which the names of shards begin; TFDS takes it for the name of the dataset
MANIFEST_FILE = "manifest.json"
RECORDS_FILE = "records.parquet"
LEFT_OUT_FILE = "rejected.csv"  # every image that is in no record, rejected or not
LABELS_FILE = "label.labels.txt"  # where TFDS looks for class names; multilabel datasets have none
FEATURES_FILE, INFO_FILE = "features.json", "dataset_info.json"  # of TFDS
# The lists of the splits, where a dataset has them.
LIST_FILES = ("train_list.txt", "validation_list.txt", "test_list.txt")
BUILD_FOLDER = ".build"  # the plan, and a sidecar for each finished shard
LOCK_FILE = "lock"

_SHARD = re.compile(r"(?P<name>.+)-(?P<split>[a-z]+)\.tfrecord-(\d{5,})-of-(\d{5,})")


def shard_name(split: str, number: int, count: int) -> str:
    """Returns the file name of a shard, in the manner of TFDS: cxr14-train.tfrecord-00003-of-00128."""
    return f"{DATASET_NAME}-{split}.tfrecord-{number:05d}-of-{count:05d}"


def is_shard(file: str) -> bool:
    """Tells whether a file has the name of a shard of ours."""
    match = _SHARD.fullmatch(file)
    return match is not None and match["name"] == DATASET_NAME
