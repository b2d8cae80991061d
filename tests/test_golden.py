"""Bytes that may not change: ids of datasets and digests of their shards.

The digests were made with the packages of constraints.txt. A change here is a change of what users have on
disk: raise `planning.RECORD_VERSION` and say so in the changelog. Where it is only that other images
validate, or that a split is cut into shards elsewhere, the bytes of a record are the same, and so are the
shards of splits that have one.
"""

import hashlib
import json

import pytest

GOLDEN = {
    "multilabel": {
        "id": "64f13542de25fe2b566997dae234772c",
        "cxr14-test.tfrecord-00000-of-00001": "91844938e3e13790",
        "cxr14-train.tfrecord-00000-of-00003": "e7a2ad682ad4f7b1",
        "cxr14-train.tfrecord-00001-of-00003": "d49e2ca276c015a5",
        "cxr14-train.tfrecord-00002-of-00003": "0adbdd39e7a9e5b8",
        "cxr14-validation.tfrecord-00000-of-00001": "5990c9c93a422f21",
    },
    "binary": {
        "id": "5a57fcfe8c572ec7ede9bf29b3cd1f5a",
        "cxr14-test.tfrecord-00000-of-00001": "a45e277649b14485",
        "cxr14-train.tfrecord-00000-of-00001": "32055ff13e122ff4",
        "cxr14-validation.tfrecord-00000-of-00001": "d13ef4c740929c05",
    },
    "multiclass": {
        "id": "62ad1d693bdb4f2be9df4c168cf52f6a",
        "cxr14-test.tfrecord-00000-of-00001": "b2cdcfa3f0645cf5",
        "cxr14-train.tfrecord-00000-of-00002": "7e51d515fd775acc",
        "cxr14-train.tfrecord-00001-of-00002": "c99e4f656246f190",
        "cxr14-validation.tfrecord-00000-of-00001": "ba3929bdef61eb0f",
    },
}


@pytest.mark.parametrize("name", ["multilabel", "binary", "multiclass"])
def test_ids_and_shards_are_the_bytes_that_were_written_before(name, build, tmp_path):
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
