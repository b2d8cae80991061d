"""Bytes that may not change: ids of datasets and digests of their shards.

The digests were made with the packages of constraints.txt. A change here is a change of what users have on
disk: raise `planning.RECORD_VERSION` and say so in the changelog. Where it is only that other images
validate, the bytes of a record are the same, and so are the test shards.
"""

import hashlib
import json

import pytest

GOLDEN = {
    "multilabel": {
        "id": "57ed36cf14ef402755b4125cfc41052e",
        "cxr14-test.tfrecord-00000-of-00001": "91844938e3e13790",
        "cxr14-train.tfrecord-00000-of-00003": "a510c1f096b6d11d",
        "cxr14-train.tfrecord-00001-of-00003": "64859cd5558dac00",
        "cxr14-train.tfrecord-00002-of-00003": "7b7da7cb0bb97265",
        "cxr14-validation.tfrecord-00000-of-00001": "5990c9c93a422f21",
    },
    "binary": {
        "id": "5a57fcfe8c572ec7ede9bf29b3cd1f5a",
        "cxr14-test.tfrecord-00000-of-00001": "a45e277649b14485",
        "cxr14-train.tfrecord-00000-of-00001": "32055ff13e122ff4",
        "cxr14-validation.tfrecord-00000-of-00001": "d13ef4c740929c05",
    },
    "multiclass": {
        "id": "39e084050840f8fc27875ae182f262b6",
        "cxr14-test.tfrecord-00000-of-00001": "b2cdcfa3f0645cf5",
        "cxr14-train.tfrecord-00000-of-00002": "3a497cbf69b91e10",
        "cxr14-train.tfrecord-00001-of-00002": "4fa6d77fd0d4e77c",
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
