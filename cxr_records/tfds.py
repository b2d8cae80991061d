"""TFDS metadata beside the shards, so that `tfds.builder_from_directory` reads a dataset as it is."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from cxr_records.config import DatasetConfig
from cxr_records.examples import Feature, record_features
from cxr_records.layout import DATASET_NAME, MANIFEST_FILE
from cxr_records.manifest import SplitInfo

_VERSION = "1.0.0"
_MODULE = "tensorflow_datasets.core.features"


def features_json(config: DatasetConfig) -> bytes:
    """Returns features.json as tfds.features.FeaturesDict.save_config writes it (TensorFlow Datasets 4.9)."""
    features = record_features(config.task.label_shape, len(config.task.findings))
    described = {
        feature.name: _describe(feature, config) for feature in sorted(features, key=lambda f: f.name)
    }
    return _json(
        {
            "featuresDict": {"features": described},
            "pythonClassName": f"{_MODULE}.features_dict.FeaturesDict",
        }
    )


def _describe(feature: Feature, config: DatasetConfig) -> dict[str, Any]:
    side = str(config.image_format.size)
    if feature.name == "image" and config.image_format.codec != "raw":
        shape = {"dimensions": [side, side, "1"]}
        image = {"dtype": "uint8", "encodingFormat": config.image_format.codec, "shape": shape}
        return {"image": image, "pythonClassName": f"{_MODULE}.image_feature.Image"}
    if feature.name == "image":
        return _tensor("uint8", "bytes", (side, side, "1"))
    if feature.name == "label" and not feature.shape:
        classes = {"numClasses": str(len(config.task.class_names))}
        return {"classLabel": classes, "pythonClassName": f"{_MODULE}.class_label_feature.ClassLabel"}
    if feature.kind == "text":
        return {"pythonClassName": f"{_MODULE}.text_feature.Text", "text": {}}
    if not feature.shape:
        tensor = {"dtype": "int64", "encoding": "none", "shape": {}}
        return {"pythonClassName": f"{_MODULE}.scalar.Scalar", "tensor": tensor}
    return _tensor("int64", "none", [str(length) for length in feature.shape])


def _tensor(dtype: str, encoding: str, dimensions: Sequence[str]) -> dict[str, Any]:
    shape = {"dimensions": list(dimensions)}
    tensor = {"dtype": dtype, "encoding": encoding, "shape": shape}
    return {"pythonClassName": f"{_MODULE}.tensor_feature.Tensor", "tensor": tensor}


def info_json(task_name: str, splits: Mapping[str, SplitInfo]) -> bytes:
    """Returns dataset_info.json.

    The message is tensorflow_datasets/core/proto/dataset_info.proto, where 64-bit numbers are strings.
    """
    described = [
        {
            "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
            "name": name,
            "numBytes": str(split.bytes),
            "shardLengths": [str(shard.records) for shard in split.shards],
        }
        for name, split in splits.items()
    ]
    return _json(
        {
            "citation": "Wang X, Peng Y, Lu L, Lu Z, Bagheri M, Summers RM. ChestX-ray8. IEEE CVPR 2017.",
            "description": f"NIH ChestX-ray14 for the task {task_name}; see {MANIFEST_FILE}.",
            "fileFormat": "tfrecord",
            "name": DATASET_NAME,
            "splits": described,
            "version": _VERSION,
        }
    )


def _json(content: dict[str, Any]) -> bytes:
    return (json.dumps(content, indent=4, sort_keys=True) + "\n").encode()
