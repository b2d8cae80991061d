"""Everything on s3://, against a server process on this machine that speaks its protocol (moto's)."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import s3fs
from conftest import CREDENTIALS, files_of, free_port
from hypothesis import given
from hypothesis import strategies as st

from cxr_records import storage
from cxr_records.cli import run as run_command
from cxr_records.errors import CxrError
from cxr_records.manifest import read_manifest
from cxr_records.pipelines import engines
from cxr_records.pipelines.engines import engine_named
from cxr_records.reader import load_split
from cxr_records.sources import SourceReader, SourceReadError, list_sources
from cxr_records.splits import SplitOptions
from cxr_records.trainers.config import TrainConfig
from cxr_records.trainers.predict import predict_run
from cxr_records.trainers.train import train

# Building


@pytest.fixture
def remote_build(bucket, upload, lookalike, build):
    """Builds with images, table, lists, store and dataset all in the bucket."""
    upload(lookalike.images.parent, f"{bucket}/nih")

    def names(path: Path) -> str:
        return storage.join(bucket, "nih", *path.relative_to(lookalike.images.parent).parts)

    def remote_build(out: str, **changes):
        options = SplitOptions(names(lookalike.train_val_list), names(lookalike.test_list))
        everything = {
            "images": (names(lookalike.images),),
            "metadata": names(lookalike.metadata),
            "split_options": options,
            "store": f"{bucket}/store",
        }
        return build(out, **{**everything, **changes})

    return remote_build


def test_a_build_in_a_bucket_has_the_bytes_of_a_local_one(remote_build, bucket, dataset):
    remote_build(f"{bucket}/cxr14")

    assert files_of(f"{bucket}/cxr14") == files_of(str(dataset))
    assert run_command(["verify", f"{bucket}/cxr14", "--deep"]) == 0


@pytest.mark.slow
def test_worker_processes_write_to_a_bucket_too(remote_build, bucket, dataset, monkeypatch):
    monkeypatch.setattr(engines, "SECONDS_WORTH_PROCESSES", 0)

    remote_build(f"{bucket}/cxr14", engine=engine_named(workers=2))

    assert files_of(f"{bucket}/cxr14") == files_of(str(dataset))


def test_a_build_that_was_broken_off_goes_on_and_decodes_nothing_again(remote_build, bucket, dataset):
    first = remote_build(f"{bucket}/cxr14")
    shard = read_manifest(f"{bucket}/cxr14").splits["train"].shards[0].file
    for name in ("manifest.json", shard, f".build/{shard}.json"):
        storage.remove(f"{bucket}/cxr14/{name}")
    units = storage.list_names(f"{bucket}/store")

    again = remote_build(f"{bucket}/cxr14")

    assert files_of(f"{bucket}/cxr14") == files_of(str(dataset))
    assert storage.list_names(f"{bucket}/store") == units
    assert again.manifest.id == first.manifest.id


def test_a_folder_that_holds_something_else_is_refused(remote_build, bucket):
    storage.write_bytes(f"{bucket}/thesis/chapter.tex", b"years of work")

    with pytest.raises(CxrError, match=r"chapter\.tex"):
        remote_build(f"{bucket}/thesis")
    assert storage.read_bytes(f"{bucket}/thesis/chapter.tex") == b"years of work"


def test_an_object_that_was_replaced_by_one_of_the_same_size_is_another(bucket):
    for _ in range(2):
        storage.write_bytes(f"{bucket}/set/a.png", b"one")
        (first,) = list_sources([f"{bucket}/set"]).entries
        assert list(list_sources([f"{bucket}/set"]).entries) == [first]
        with SourceReader(None) as reader:
            assert reader.read(first) == b"one"
            storage.write_bytes(f"{bucket}/set/a.png", b"two")
            with pytest.raises(SourceReadError):
                reader.read(first)
        (second,) = list_sources([f"{bucket}/set"]).entries
        assert second.version != first.version
        with SourceReader(None) as reader:
            assert reader.read(second) == b"two"


# Files


def test_a_file_that_is_broken_off_does_not_appear(bucket):
    storage.write_bytes(f"{bucket}/a", b"before")

    def break_off():
        with storage.atomic_file(f"{bucket}/a") as file:
            file.write(b"half of it")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        break_off()

    assert storage.read_bytes(f"{bucket}/a") == b"before"
    assert storage.list_names(bucket) == ["a"]


def test_what_another_process_wrote_is_seen_at_once(bucket, server):
    assert storage.list_names(f"{bucket}/folder") == []
    code = "from cxr_records import storage; storage.write_bytes('s3://bucket/folder/x', b'1')"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)

    assert storage.list_names(f"{bucket}/folder") == ["x"]
    assert storage.exists(f"{bucket}/folder/x")


@given(
    ranges=st.lists(
        st.tuples(st.sampled_from("ab"), st.integers(0, 900), st.integers(1, 100)), min_size=1, max_size=40
    )
)
def test_ranges_that_lie_near_each_other_are_one_request(ranges):
    data = {name: np.random.default_rng(ord(name)).bytes(1000) for name in "ab"}
    for name, content in data.items():
        storage.write_bytes(f"memory://near/{name}", content)
    order = sorted(range(len(ranges)), key=lambda n: ranges[n])

    found = storage.read_ranges([(f"memory://near/{name}", *rest) for name, *rest in ranges])
    spans = list(storage._spans(ranges, order))

    assert found == [data[name][offset : offset + length] for name, offset, length in ranges]
    assert len(spans) == len({name for name, _, _ in ranges})


def test_a_span_has_its_limits(monkeypatch):
    monkeypatch.setattr(storage, "GAP_BYTES", 10)
    monkeypatch.setattr(storage, "SPAN_BYTES", 100)
    ranges = [("a", 0, 40), ("a", 50, 40), ("a", 95, 40), ("a", 146, 1), ("b", 147, 1)]

    spans = [(span.path, span.start, span.end) for span in storage._spans(ranges, range(5))]

    assert spans == [("a", 0, 90), ("a", 95, 135), ("a", 146, 147), ("b", 147, 148)]


# Reading and training


def test_a_split_is_read_from_a_bucket_as_from_disk(bucket, upload, dataset, tmp_path):
    remote = upload(dataset, f"{bucket}/cxr14")

    for split, options in (("train", {"epochs": 2, "seed": 4}), ("test", {})):
        local = list(load_split(str(dataset), split, 8, **options))
        fetched = list(load_split(remote, split, 8, cache_dir=str(tmp_path), **options))
        assert len(local) == len(fetched)
        for one, other in zip(local, fetched, strict=True):
            for a, b in zip(one, other, strict=True):
                np.testing.assert_array_equal(a, b)


@pytest.mark.slow
def test_a_run_lives_in_a_bucket(bucket, upload, dataset, tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    remote, run = upload(dataset, f"{bucket}/cxr14"), f"{bucket}/runs/first"
    config = TrainConfig(epochs=1, batch_size=16, patience=0)

    train(remote, run, config)
    _, local = train(str(dataset), str(tmp_path / "run"), config)

    assert storage.list_names(run) == [
        "checkpoints", "config.json", "digests.json", "history.csv", "model.keras"
    ]  # fmt: skip
    _, progress = train(remote, run, config)  # as the checkpoint there holds it
    assert [row["loss"] for row in progress.history] == [row["loss"] for row in local.history]
    predict_run(run)
    assert run_command(["evaluate", run, "--draws", "0"]) == 0
    assert f"report: {run}/report.html" in capfd.readouterr().out
    assert storage.read_bytes(f"{run}/report.html").startswith(b"<!doctype html>")


# Bad use


def answer(words: list[str], **environment: str) -> tuple[int, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    # No place but the environment may hold credentials: not a file, not a cloud's metadata server.
    kept |= {"AWS_EC2_METADATA_DISABLED": "true", "HOME": "/nonexistent", "AWS_DEFAULT_REGION": "us-east-1"}
    done = subprocess.run(
        [sys.executable, "-m", "cxr_records", *words],
        env={**kept, **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )
    return done.returncode, done.stderr


def test_a_bucket_that_is_not_there_is_not_made(bucket, lookalike):
    words = ["build", "--images", str(lookalike.images), "--metadata", str(lookalike.metadata)]
    code, error = answer([*words, "--out", "s3://bukcet/cxr14", "--size", "32"], **environment_of(bucket))

    assert code != 0
    assert error.splitlines()[-1].startswith("Error: s3://bukcet/")
    assert "no such bucket or folder; make it first" in error
    assert not s3fs.S3FileSystem().exists("bukcet")


def environment_of(bucket: str) -> dict[str, str]:
    return {name: os.environ[name] for name in (*CREDENTIALS, "AWS_ENDPOINT_URL")}


def test_missing_credentials_are_named_with_the_remedy(server):
    code, error = answer(["verify", "s3://bucket/cxr14"], AWS_ENDPOINT_URL=server)

    assert code == 1
    (line,) = error.splitlines()
    assert line.startswith("Error: s3://bucket/cxr14")
    assert "found no credentials for this storage" in line
    assert "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE" in line


def test_an_endpoint_that_does_not_answer_is_named(server):
    address = f"http://127.0.0.1:{free_port()}"
    code, error = answer(["verify", "s3://bucket/cxr14"], **CREDENTIALS, AWS_ENDPOINT_URL=address)

    assert code == 1
    (line,) = error.splitlines()
    assert line.startswith("Error: s3://bucket/cxr14")
    assert "the storage cannot be reached" in line
    assert "check the network and the endpoint" in line


def test_a_denied_write_is_named(bucket, monkeypatch):
    async def deny(self, *args, **kwargs):
        raise PermissionError("Access Denied")

    monkeypatch.setattr(s3fs.S3FileSystem, "_put_file", deny)
    s3fs.S3FileSystem.clear_instance_cache()  # those made before keep the method they were made with

    with pytest.raises(CxrError) as error:
        storage.write_bytes(f"{bucket}/x", b"1")
    assert str(error.value) == (
        f"{bucket}/x: access denied (Access Denied); check the credentials and their rights there"
    )
