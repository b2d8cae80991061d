import dataclasses
import hashlib
import itertools
import json
import os
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cxr_records import augment, shards, storage
from cxr_records.errors import CxrError
from cxr_records.examples import FEATURES, decode_example, encode_example
from cxr_records.images import ImageFormat
from cxr_records.parquet import WorkFile
from cxr_records.planning import ShardSpec, write_plan
from cxr_records.shards import augmentation_text, read_shard_info, record_parts, write_shard
from cxr_records.tfrecord import read_records


@pytest.fixture(scope="session")
def plan_of(build, tmp_path_factory):
    """{codec: (plan, its store, folder of the finished dataset)} of three datasets with copies."""
    plans = {}
    for codec in ("raw", "png", "jpeg"):
        out = tmp_path_factory.mktemp("shards") / codec
        result = build(out, codec=codec, flip=True)
        plans[codec] = result.plan, result.decoded.store, out
    return plans


@pytest.fixture
def spec(plan_of, tmp_path) -> ShardSpec:
    """The first training shard, to be written to a folder that has none yet."""
    plan, store, _ = plan_of["raw"]
    (tmp_path / ".build").mkdir()
    return write_plan(plan, str(tmp_path / ".build"), store, str(tmp_path))[0]


def records_of(path) -> list[dict]:
    with open(path, "rb") as file:
        return [decode_example(data) for _, data in read_records(file)]


def contents(folder: Path) -> dict[str, tuple[bytes, int]]:
    return {
        str(path.relative_to(folder)): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in folder.rglob("*")
        if path.is_file()
    }


def nothing_is_read(*_):
    raise AssertionError("images were fetched again")


def test_a_shard_tells_of_its_bytes_and_of_where_each_record_lies(spec):
    info = write_shard(spec)

    data = Path(spec.path).read_bytes()
    with open(spec.path, "rb") as file:
        records = [(offset, decode_example(record)["image"][0]) for offset, record in read_records(file)]
    offsets, images = zip(*records, strict=True)
    assert info == shards.ShardInfo(
        spec.digest,
        spec.num_records,
        len(data),
        hashlib.sha256(data).hexdigest(),
        list(offsets),
        [data.index(image, offset) for offset, image in records],
        [len(image) for image in images],
    )
    assert read_shard_info(spec) == info
    told = json.loads(Path(spec.sidecar_path).read_bytes())
    assert told.pop("version") == storage.file_state(spec.path).version
    assert len(told.pop("checksum")) == 64
    assert told == dataclasses.asdict(info)


def test_a_second_run_changes_nothing_and_reads_no_image(spec, tmp_path, monkeypatch):
    info = write_shard(spec)
    before = contents(tmp_path)
    monkeypatch.setattr(shards, "fetch_images", nothing_is_read)

    assert write_shard(spec) == info
    assert contents(tmp_path) == before


def test_two_attempts_at_once_leave_the_bytes_of_one(spec, plan_of):
    """As when an engine takes a slow worker for dead."""
    *_, finished = plan_of["raw"]
    for _ in range(5):
        Path(spec.path).unlink(missing_ok=True)
        Path(spec.sidecar_path).unlink(missing_ok=True)
        both = threading.Barrier(2)

        def attempt(both=both):
            both.wait()
            return write_shard(spec)

        with ThreadPoolExecutor(2) as pool:
            first, second = (future.result() for future in [pool.submit(attempt) for _ in range(2)])

        assert first == second == read_shard_info(spec)
        assert Path(spec.path).read_bytes() == (finished / spec.file).read_bytes()
        assert not list(Path(spec.dataset).rglob("*.tmp-*"))


@pytest.mark.parametrize("images_at_a_time", [1, 2, 7])
def test_a_shard_is_the_same_however_few_images_are_fetched_at_a_time(
    spec, plan_of, monkeypatch, images_at_a_time
):
    asked = []
    fetch = shards.fetch_images
    monkeypatch.setattr(shards, "LOT_BYTES", (images_at_a_time - 1) * 32 * 32)
    monkeypatch.setattr(
        shards, "fetch_images", lambda store, places: asked.append(len(places)) or fetch(store, places)
    )

    write_shard(spec)

    whole, rest = divmod(spec.num_records, images_at_a_time)
    assert asked == [images_at_a_time] * whole + [rest] * (rest > 0)
    assert Path(spec.path).read_bytes() == (plan_of["raw"][2] / spec.file).read_bytes()


@pytest.mark.parametrize("sidecar", [None, b"", b"{", b"[]", b"null", b'{"digest": "0"}', b"\xff\xfe"])
def test_a_shard_without_a_whole_sidecar_is_written_again_with_the_same_bytes(spec, sidecar):
    info = write_shard(spec)
    shard = Path(spec.path).read_bytes()
    if sidecar is None:
        Path(spec.sidecar_path).unlink()
    else:
        Path(spec.sidecar_path).write_bytes(sidecar)

    assert read_shard_info(spec) is None
    assert write_shard(spec) == info
    assert Path(spec.path).read_bytes() == shard
    assert read_shard_info(spec) == info


def test_a_flip_of_any_byte_of_a_sidecar_is_no_sidecar(spec):
    info = write_shard(spec)
    path = Path(spec.sidecar_path)
    whole = path.read_bytes()
    for at, bit in itertools.product(range(len(whole) - 1), (0, 3)):  # the last one ends the line
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << bit]) + whole[at + 1 :])
        assert read_shard_info(spec) in (None, info)
        if not chr(whole[at]).isspace():
            assert read_shard_info(spec) is None


def in_place(path: Path, data: bytes) -> None:
    """Writes other bytes of the same number, and sets the time of change back."""
    state = path.stat()
    assert state.st_size == len(data)
    path.write_bytes(data)
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))


def test_a_shard_that_was_changed_and_has_its_size_and_time_is_written_again(spec):
    info = write_shard(spec)
    shard = Path(spec.path).read_bytes()
    in_place(Path(spec.path), shard[:100] + b"x" + shard[101:])

    assert read_shard_info(spec) is None
    assert write_shard(spec) == info
    assert Path(spec.path).read_bytes() == shard


def test_a_shard_that_was_copied_is_hashed_once_and_not_written_again(spec, tmp_path, monkeypatch):
    info = write_shard(spec)
    copied = dataclasses.replace(spec, dataset=str(shutil.copytree(tmp_path, tmp_path.with_name("copied"))))
    hashed = []
    plain = storage.file_sha256
    monkeypatch.setattr(storage, "file_sha256", lambda path: hashed.append(path) or plain(path))
    monkeypatch.setattr(shards, "fetch_images", nothing_is_read)

    assert read_shard_info(spec) == info
    assert hashed == []
    assert read_shard_info(copied) == read_shard_info(copied) == write_shard(copied) == info
    assert hashed == [copied.path]


def test_a_plan_that_changed_since_it_was_written_is_not_done(spec):
    path = Path(spec.plan.path)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)

    with pytest.raises(CxrError) as error:
        write_shard(spec)
    assert str(error.value) == (
        f"{path} changed since it was written; run the same again, which writes it anew"
    )
    assert not Path(spec.path).exists()


@pytest.mark.parametrize("size", [None, 0, -1, 1])
def test_a_shard_of_another_size_than_its_sidecar_says_is_written_again(spec, size):
    info = write_shard(spec)
    shard = Path(spec.path).read_bytes()
    Path(spec.path).unlink()
    if size is not None:
        Path(spec.path).write_bytes(shard[:size] if size <= 0 else shard + b"\0")

    assert read_shard_info(spec) is None
    assert write_shard(spec) == info
    assert Path(spec.path).read_bytes() == shard


def test_a_shard_of_another_plan_is_written_again(spec):
    write_shard(spec)
    changed = dataclasses.replace(spec, digest="0" * 64)

    assert read_shard_info(changed) is None
    assert write_shard(changed).digest == "0" * 64
    assert read_shard_info(changed) is not None
    assert read_shard_info(spec) is None


def test_a_damaged_store_is_named_and_leaves_no_half_shard(spec, plan_of, tmp_path):
    copied = Path(shutil.copytree(plan_of["raw"][1], tmp_path / "store"))
    row = pq.ParquetFile(spec.plan.path).read_row_group(spec.row_group).to_pylist()[-1]
    unit = copied / f"unit-{row['unit']}.tfrecord"
    data = bytearray(unit.read_bytes())
    data[row["offset"] + 20] ^= 1
    unit.write_bytes(data)

    with pytest.raises(CxrError) as error:
        write_shard(dataclasses.replace(spec, store=str(copied)))
    assert str(error.value) == (
        f"{unit}: the image at byte {row['offset']:,} is damaged; delete it, then run again: "
        "its images are decoded anew"
    )
    assert {path.name for path in tmp_path.iterdir()} == {".build", "store"}


@pytest.mark.parametrize("codec", ["raw", "png", "jpeg"])
def test_records_are_about_as_large_as_the_plan_says(plan_of, codec):
    plan, _, out = plan_of[codec]

    written = sum((out / shard.file).stat().st_size for shard in plan.shards)
    assert written / len(plan.records) == pytest.approx(plan.record_bytes, abs=100)


@pytest.mark.parametrize("codec", ["raw", "png", "jpeg"])
def test_records_hold_what_was_planned_in_the_planned_order(plan_of, codec):
    plan, _, out = plan_of[codec]
    table = plan.metadata.table.iloc[plan.records["row"]]
    findings = plan.metadata.findings[plan.records["row"]]

    found = [record for shard in plan.shards for record in records_of(out / shard.file)]

    assert all(set(record) == {feature.name for feature in FEATURES} for record in found)
    for name in ("image_id", "view", "sex"):
        assert [record[name] for record in found] == [[text.encode()] for text in table[name]]
    for name in ("patient_id", "age_years"):
        assert [record[name] for record in found] == [[number] for number in table[name]]
    assert [record["copy"] for record in found] == [[copy] for copy in plan.records["copy"]]
    assert [record["findings"] for record in found] == findings.tolist()
    assert [record["label"] for record in found] == findings.tolist()  # multilabel
    assert [shard.num_records for shard in plan.shards] == [
        len(records_of(out / shard.file)) for shard in plan.shards
    ]


@pytest.mark.parametrize("codec", ["raw", "png", "jpeg"])
def test_parameters_in_a_copys_record_give_its_pixels_back_from_the_original(plan_of, codec):
    plan, _, out = plan_of[codec]
    image_format = ImageFormat(32, codec)
    found = [record for shard in plan.shards for record in records_of(out / shard.file)]
    originals = {
        record["image_id"][0]: image_format.decode(record["image"][0])
        for record in found
        if record["copy"] == [0]
    }
    copies = [record for record in found if record["copy"] != [0]]

    assert len(copies) == plan.num_copies > 40
    functions = set()
    for record in copies:
        params = json.loads(record["augmentation"][0])
        functions.add(params["function"])
        pixels = augment.apply(originals[record["image_id"][0]], params)
        if codec == "jpeg":  # it does not keep pixels as they are
            pixels = image_format.decode(image_format.encode(pixels))
        np.testing.assert_array_equal(image_format.decode(record["image"][0]), pixels)
    assert functions == set(augment.FUNCTIONS)
    assert all(record["augmentation"] == [b""] for record in found if record["copy"] == [0])


def test_originals_are_the_stored_bytes_untouched(plan_of):
    plan, store, out = plan_of["jpeg"]
    stored = {}
    for path in sorted(Path(store).glob("unit-*.tfrecord")):
        stored |= {record["image_id"][0]: record["image"][0] for record in records_of(path)}

    for shard in plan.shards:
        for record in records_of(out / shard.file):
            if record["copy"] == [0]:
                assert record["image"][0] == stored[record["image_id"][0]]


ROW = {
    "image_id": "00000001_000.png",
    "patient_id": 1,
    "view": "",
    "sex": "F",
    "age_years": -1,
    "findings": [0] * 13 + [1],
    "label": 13,
}


def bare_spec(**changes) -> ShardSpec:
    spec = ShardSpec(
        dataset="out",
        file="cxr14-train.tfrecord-00000-of-00001",
        num_records=1,
        digest="0",
        plan=WorkFile("plan", "0"),
        row_group=0,
        store="store",
        image_format=ImageFormat(16),
        seed=3,
        flip=False,
    )
    return dataclasses.replace(spec, **changes)


@given(st.integers(0, 2**63), st.integers(0, 30), st.binary(min_size=256, max_size=256))
def test_a_records_bytes_depend_on_seed_image_and_copy_and_not_on_its_place(seed, copy, pixels):
    row = {**ROW, "copy": copy}
    elsewhere = bare_spec(seed=seed, dataset="other", file="cxr14-train.tfrecord-00007-of-00009", row_group=7)

    record = b"".join(record_parts(bare_spec(seed=seed), row, pixels))

    assert b"".join(record_parts(elsewhere, row, pixels)) == record
    values = decode_example(record)
    expected = pixels
    if copy:
        params = augment.augmentation_for(seed, ROW["image_id"], copy)
        assert json.loads(values["augmentation"][0]) == params
        expected = augment.apply(np.frombuffer(pixels, np.uint8).reshape(16, 16), params).tobytes()
    assert values["image"] == [expected]
    assert record == encode_example(
        {
            **row,
            "augmentation": augmentation_text(bare_spec(seed=seed), ROW["image_id"], copy),
            "image": expected,
        }
    )


def test_a_stored_image_of_another_size_is_named():
    with pytest.raises(CxrError) as error:
        record_parts(bare_spec(), {**ROW, "copy": 1}, bytes(255))
    assert str(error.value) == "stored image 00000001_000.png: 255 bytes of raw pixels, expected 256"


def test_flip_is_among_the_augmentations_only_where_asked_for():
    def functions(flip):
        spec = bare_spec(flip=flip)
        texts = [augmentation_text(spec, ROW["image_id"], copy) for copy in range(1, 12)]
        return {json.loads(text)["function"] for text in texts}

    assert "flip" not in functions(flip=False)
    assert functions(flip=True) == functions(flip=False) | {"flip"}
    assert augmentation_text(bare_spec(flip=True), ROW["image_id"], 0) == ""
