"""TensorFlow reading s3:// by itself: in an environment of its own, by `make test-tfio`."""

import os
import subprocess
import sys

import numpy as np
import pytest

from cxr_records import storage
from cxr_records.errors import CxrError
from cxr_records.manifest import read_manifest
from cxr_records.reader import load_split, shard_errors

pytestmark = pytest.mark.tfio


def test_a_split_is_read_straight_from_a_bucket_as_from_disk(bucket, upload, dataset):
    remote = upload(dataset, f"{bucket}/cxr14")

    for split, options in (("train", {"epochs": 2, "seed": 4}), ("test", {})):
        local = list(load_split(str(dataset), split, 8, **options))
        straight = list(load_split(remote, split, 8, direct=True, **options))
        assert len(local) == len(straight) > 1
        for one, other in zip(local, straight, strict=True):
            for a, b in zip(one, other, strict=True):
                np.testing.assert_array_equal(a, b)


def test_a_damaged_shard_is_named(bucket, upload, dataset):
    remote = upload(dataset, f"{bucket}/cxr14")
    path = f"{remote}/{read_manifest(remote).splits['test'].shards[0].file}"
    data = bytearray(storage.read_bytes(path))
    data[100] ^= 1
    storage.write_bytes(path, bytes(data))

    with pytest.raises(CxrError) as error, shard_errors():
        list(load_split(remote, "test", 4, direct=True))
    assert str(error.value) == (
        f"{path} is damaged, cut short or missing; run cxr-records verify on the dataset"
    )


@pytest.mark.parametrize(("end", "status"), [("", 0), ("sys.exit(3)", 3), ("raise ValueError('mine')", 1)])
def test_a_process_that_has_read_ends_as_it_wants_to(bucket, upload, dataset, end, status):
    remote = upload(dataset, f"{bucket}/cxr14")
    code = (
        "import atexit, sys\n"
        "from cxr_records.reader import load_split\n"
        "atexit.register(print, 'at exit')\n"
        f"print(len(list(load_split({remote!r}, 'test', 8, direct=True))))\n{end}\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ, capture_output=True, text=True, timeout=120
    )

    batches = -(-read_manifest(remote).splits["test"].records // 8)
    assert (done.returncode, done.stdout) == (status, f"{batches}\nat exit\n")
    assert "pure virtual" not in done.stderr
    assert ("ValueError: mine" in done.stderr) == (status == 1)
