"""Bytes that may not change: ids of datasets and digests of their shards, as version 0.1.0 first wrote them.

The digests were made with the packages of constraints.txt. A change here is a change of what users have on
disk: raise `planning.RECORD_VERSION` and say so in the changelog.
"""

import hashlib
import json

import pytest

GOLDEN = {
    "multilabel": {
        "id": "78fd79305b555bd071b5eaa60f55aade",
        "cxr14-test.tfrecord-00000-of-00001": "91844938e3e13790",
        "cxr14-train.tfrecord-00000-of-00003": "414376ed50e4a6e2",
        "cxr14-train.tfrecord-00001-of-00003": "8e19bb05ff6f616c",
        "cxr14-train.tfrecord-00002-of-00003": "58757a09cfec23e5",
        "cxr14-validation.tfrecord-00000-of-00001": "d90338de5684228b",
    },
    "binary": {
        "id": "9d10612086bff02ff106149e4ad6ad3c",
        "cxr14-test.tfrecord-00000-of-00001": "a45e277649b14485",
        "cxr14-train.tfrecord-00000-of-00001": "05b1b58489483bd8",
        "cxr14-validation.tfrecord-00000-of-00001": "b099f9b26c420a51",
    },
    "multiclass": {
        "id": "f665f18c1d3bd6374c0e145669100b60",
        "cxr14-test.tfrecord-00000-of-00001": "b2cdcfa3f0645cf5",
        "cxr14-train.tfrecord-00000-of-00002": "240be2e6b6578f44",
        "cxr14-train.tfrecord-00001-of-00002": "6dda174f7c5c63da",
        "cxr14-validation.tfrecord-00000-of-00001": "2a495bcd91ac3858",
    },
}


@pytest.mark.parametrize("name", ["multilabel", "binary", "multiclass"])
def test_ids_and_shards_are_the_bytes_of_the_first_version(name, build, tmp_path):
    settings = {
        "multilabel": {"task": "multilabel", "codec": "raw", "seed": 3, "flip": True},
        "binary": {"task": "binary:Pneumothorax", "codec": "png", "rule": "fixed", "max_records": 3},
        "multiclass": {"task": "multiclass", "codec": "jpeg", "with_no_finding": True, "rule": "sqrt"},
    }[name]
    build(tmp_path / "cxr14", **settings)

    found = {"id": json.loads((tmp_path / "cxr14/manifest.json").read_text())["id"]}
    for path in sorted((tmp_path / "cxr14").glob("*.tfrecord-*")):
        found[path.name] = hashlib.sha256(path.read_bytes()).hexdigest()[:16]
    assert found == GOLDEN[name]
