import dataclasses
import hashlib
from pathlib import Path

import hypothesis
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cxr_records.errors import CxrError, UsageError
from cxr_records.findings import FINDINGS, NO_FINDING, parse_findings
from cxr_records.images import ImageFormat
from cxr_records.metadata import Metadata
from cxr_records.planning import EXAMPLE_BYTES, DatasetConfig, Plan, estimate, make_plan, write_plan
from cxr_records.sampling import CopyRule
from cxr_records.seeding import keyed_hash
from cxr_records.splits import SplitOptions, Splits, make_splits
from cxr_records.tasks import parse_task
from cxr_records.tfrecord import OVERHEAD_BYTES

NONE = CopyRule("none")
HERNIA = CopyRule("fixed", max_records=3, of=("Hernia",))  # the same for an image, whatever the others are


def table(*labels: str, patients=None) -> Metadata:
    """An image of each label string, of a patient of its own."""
    patients = list(range(1, len(labels) + 1)) if patients is None else patients
    columns = {
        "image_id": np.array([f"{i:08}_000.png" for i in range(1, len(labels) + 1)], dtype=object),
        "patient_id": patients,
        "view": "PA",
        "sex": "F",
        "age_years": 50,
        "follow_up": 0,
    }
    return Metadata(pd.DataFrame(columns), np.stack([parse_findings(text) for text in labels]), "other", "0")


def reordered(metadata: Metadata, order) -> Metadata:
    """The rows at these places, in this order."""
    rows = metadata.table.iloc[order].reset_index(drop=True)
    return dataclasses.replace(metadata, table=rows, findings=metadata.findings[order])


def split_as(*of_image: str) -> Splits:
    return Splits(np.array(of_image, dtype=object), "by hand", False, {}, 0, 0)


def by_id(metadata: Metadata) -> Splits:
    """A split that an image has whatever the others are: every fourth tests, every fourth validates."""
    numbers = [int(image_id[:8]) for image_id in metadata.table["image_id"]]
    return split_as(*(("train", "test", "train", "validation")[number % 4] for number in numbers))


def config(task: str = "multilabel", copies: CopyRule = NONE, size: int = 16, **changes) -> DatasetConfig:
    return DatasetConfig(parse_task(task), ImageFormat(size), copies, **changes)


def stored(metadata: Metadata, missing: str = "", **rejected: str) -> pa.Table:
    """What a store tells of all images: i00000001 = "reason" rejects 00000001_000.png."""
    image_ids = metadata.table["image_id"].tolist()
    reasons = [rejected.get(f"i{image_id[:8]}", "") for image_id in image_ids]
    status = ["rejected" if reason else "ok" for reason in reasons]
    status = [None if image_id == missing else one for image_id, one in zip(image_ids, status, strict=True)]
    columns = {
        "sha256": pa.array([sha256(image_id) for image_id in image_ids], pa.binary(32)),
        "unit": pa.array(["aa"] * len(image_ids)).dictionary_encode(),
        "offset": np.arange(len(image_ids)) * 300,
        "length": [300] * len(image_ids),
        "crc32c": [7] * len(image_ids),
        "status": pa.array(status).dictionary_encode(),
        "reason": pa.array(reasons).dictionary_encode(),
    }
    return pa.table(columns)


def sha256(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


def replaced(images: pa.Table, **columns: list) -> pa.Table:
    for name, values in columns.items():
        kind = images.schema.field(name).type
        images = images.set_column(images.column_names.index(name), name, pa.array(values).cast(kind))
    return images


def sequence(plan: Plan, split: str | None = None) -> list[tuple[str, int]]:
    """(image_id, copy) of the records in order."""
    records = plan.records if split is None else plan.records[plan.records["split"] == split]
    image_ids = plan.metadata.table["image_id"].to_numpy()[records["row"]]
    return list(zip(image_ids.tolist(), records["copy"].tolist(), strict=True))


labels = st.sets(st.sampled_from(["Hernia", "Mass", "Edema"]), max_size=2).map(
    lambda found: "|".join(sorted(found)) or NO_FINDING
)
tables = st.lists(labels, min_size=1, max_size=40).map(lambda rows: table(*rows))
seeds = st.integers(0, 2**32)


# Order


@given(tables, seeds)
def test_records_of_a_split_lie_in_the_order_of_a_hash_of_seed_image_and_copy(metadata, seed):
    plan = make_plan(metadata, by_id(metadata), config(copies=HERNIA, seed=seed))

    assert plan.records["split"].tolist() == sorted(
        plan.records["split"], key=("train", "validation", "test").index
    )
    for split in plan.split_names:
        found = sequence(plan, split)
        assert found == sorted(found, key=lambda record: keyed_hash(seed, "order", *record))


@given(tables, seeds, st.randoms(use_true_random=False))
def test_order_of_the_tables_rows_makes_no_difference(metadata, seed, random):
    order = list(range(len(metadata)))
    random.shuffle(order)
    asked = config(copies=CopyRule("linear", 0.4, 5), seed=seed)
    shuffled = reordered(metadata, order)

    plan, other = (make_plan(m, by_id(m), asked) for m in (metadata, shuffled))

    assert sequence(plan) == sequence(other)
    assert plan.shards == other.shards


@given(tables, seeds, st.integers(1, 39))
def test_images_that_are_added_leave_the_others_in_their_order(metadata, seed, kept):
    fewer = reordered(metadata, list(range(min(kept, len(metadata)))))
    asked = config(copies=HERNIA, seed=seed)

    plan, before = (make_plan(m, by_id(m), asked) for m in (metadata, fewer))

    old = set(fewer.table["image_id"])
    assert [record for record in sequence(plan) if record[0] in old] == sequence(before)


def test_another_seed_gives_another_order_of_the_same_records():
    metadata = table(*["Mass", "No Finding"] * 50)

    plan, other = (make_plan(metadata, by_id(metadata), config(seed=seed)) for seed in (0, 1))

    assert sequence(plan) != sequence(other)
    assert sorted(sequence(plan)) == sorted(sequence(other))


# Copies


@given(tables, seeds, st.sampled_from([NONE, HERNIA, CopyRule("linear", 0.4, 5), CopyRule("sqrt", 0.9, 9)]))
def test_every_image_is_there_once_as_the_original_and_copies_are_numbered_and_in_train_only(
    metadata, seed, rule
):
    splits = by_id(metadata)

    plan = make_plan(metadata, splits, config(copies=rule, seed=seed))

    split_of = dict(zip(metadata.table["image_id"], splits.of_image, strict=True))
    assert plan.records["split"].tolist() == [split_of[image_id] for image_id, _ in sequence(plan)]
    copies: dict[str, list[int]] = {}
    for image_id, copy in sequence(plan):
        copies.setdefault(image_id, []).append(copy)
    assert set(copies) == set(metadata.table["image_id"])
    for image_id, numbers in copies.items():
        assert sorted(numbers) == list(range(len(numbers)))
        assert len(numbers) == 1 or split_of[image_id] == "train"
        assert len(numbers) <= rule.max_records + (rule.rule == "fixed")
    assert plan.num_copies == len(plan.records) - len(metadata)


def test_copies_of_one_image_lie_in_many_shards():
    metadata = table("Hernia", *["No Finding"] * 2000)

    plan = make_plan(
        metadata,
        split_as(*["train"] * 2001),
        config(copies=CopyRule("fixed", max_records=10, of=("Hernia",))),
    )

    places = [place for place, (image_id, _) in enumerate(sequence(plan)) if image_id == "00000001_000.png"]
    shards = {
        shard.file
        for shard in plan.shards
        for place in places
        if 0 <= place - shard.start < shard.num_records
    }
    assert len(plan.shards) == 16
    assert len(places) == 11
    assert len(shards) >= 7


# Shards


@given(
    st.integers(1, 400),
    st.sampled_from([16, 224, 1024, 2048]),
    st.sampled_from([1, 2, 64]),
    st.integers(0, 3),
)
@settings(max_examples=50)
def test_shards_cover_the_records_without_gap_and_none_is_empty_or_twice_as_large(
    count, size, shard_mb, seed
):
    metadata = table(*["Mass"] * count)

    plan = make_plan(metadata, by_id(metadata), config(size=size, shard_mb=shard_mb, seed=seed))

    place = 0
    for split in plan.split_names:
        shards = [shard for shard in plan.shards if shard.split == split]
        for number, shard in enumerate(shards):
            assert shard.file == f"cxr14-{split}.tfrecord-{number:05d}-of-{len(shards):05d}"
            assert shard.start == place
            assert (plan.records["split"][place : place + shard.num_records] == split).all()
            place += shard.num_records
        sizes = [shard.num_records for shard in shards]
        mean = sum(sizes) / len(sizes)
        assert min(sizes) >= 1
        assert max(sizes) <= max(2 * mean, mean + 1)
        assert mean <= 1 or (mean - 1) * size * size < shard_mb << 20
    assert place == len(plan.records) == count


@given(st.integers(700, 1000), st.integers(0, 3), st.data())
@settings(max_examples=20)
def test_an_image_that_comes_or_goes_changes_its_own_shard_alone(count, seed, data):
    metadata = table(*["Mass"] * count)
    gone = data.draw(st.integers(0, count - 1))
    fewer = reordered(metadata, [row for row in range(count) if row != gone])

    def records(metadata: Metadata) -> dict[str, list[str]]:
        plan = make_plan(metadata, split_as(*["train"] * len(metadata)), config(seed=seed))
        names = metadata.table["image_id"].to_numpy()[plan.records["row"]].tolist()
        return {
            shard.file.partition("-of-")[0]: names[shard.start : shard.start + shard.num_records]
            for shard in plan.shards
        }

    before, after = records(metadata), records(fewer)
    hypothesis.assume(len(before) == len(after))  # another number of shards is another cut

    (changed,) = [shard for shard in before if before[shard] != after[shard]]
    assert after[changed] == [name for name in before[changed] if name != f"{gone + 1:08}_000.png"]


@pytest.mark.parametrize(
    ("records", "shards"), [(1, 1), (64, 1), (65, 2), (1023, 16), (1024, 16), (5000, 16)]
)
def test_a_split_of_1024_records_or_more_has_16_shards_for_shuffling(records, shards):
    plan = make_plan(table(*["Mass"] * records), split_as(*["train"] * records), config())

    assert len(plan.shards) == shards


def test_shards_are_cut_as_if_a_record_of_224_raw_pixels_had_50427_bytes():
    """Another number would cut large datasets at other places."""
    plan = make_plan(table("Mass"), split_as("train"), config(size=224))

    assert plan.record_bytes == 50_427


@pytest.mark.parametrize("shards", [17, 33])
def test_a_split_of_224_raw_pixels_has_as_many_shards_of_64_mib_as_its_bytes_ask_for(shards):
    record_bytes = 224 * 224 + EXAMPLE_BYTES + 16
    most = (shards - 1) * (64 << 20) // record_bytes  # that fewer shards can hold

    fewer, enough = (
        make_plan(table(*["Mass"] * records), split_as(*["train"] * records), config(size=224))
        for records in (most, most + 1)
    )

    assert fewer.record_bytes == record_bytes
    assert 1320 <= (64 << 20) // record_bytes <= 1330
    assert (len(fewer.shards), len(enough.shards)) == (shards - 1, shards)


def test_compressed_records_are_as_large_as_the_store_says():
    metadata = table("Mass", "Mass", "Mass")
    images = replaced(stored(metadata, i00000003="broken"), length=[4000, 6000, 0])
    asked = DatasetConfig(parse_task("multilabel"), ImageFormat(64, "png"), NONE)

    plan = make_plan(metadata, split_as(*["train"] * 3), asked, images)

    assert plan.record_bytes == 5000 + EXAMPLE_BYTES + OVERHEAD_BYTES


@pytest.mark.parametrize("shard_mb", [0, -1, 4097])
def test_shard_size_out_of_range_is_refused(shard_mb):
    with pytest.raises(UsageError, match=f"^`shard_mb={shard_mb}`: expected 1 to 4096$"):
        config(shard_mb=shard_mb)


@pytest.mark.parametrize("shard_mb", [1, 4096])
def test_the_smallest_and_the_largest_shard_size_are_taken(shard_mb):
    assert config(shard_mb=shard_mb).shard_mb == shard_mb


def test_copies_of_a_class_that_the_task_does_not_have_are_refused_before_anything_is_read():
    with pytest.raises(UsageError, match=r"^`copies_of=Hernia`: no such class"):
        config("binary:Mass", HERNIA)


# Who takes part


def test_left_out_images_have_the_reason_that_is_farthest_from_the_task():
    metadata = table("Mass", "Mass|Edema", "Mass|Edema", "Mass|Edema", "Mass|Edema", "Mass", "No Finding")
    splits = split_as("train", "test", "", "train", "", "", "train")
    images = stored(
        metadata, i00000004="the file is empty", i00000005="too large", missing="00000006_000.png"
    )

    plan = make_plan(metadata, splits, config("multiclass"), images)

    assert plan.left_out.to_numpy().tolist() == [
        ["00000002_000.png", "test", "left out by the task", "more than one finding"],
        ["00000003_000.png", "", "in no list", ""],
        ["00000004_000.png", "train", "rejected", "the file is empty"],
        ["00000005_000.png", "", "rejected", "too large"],
        ["00000006_000.png", "", "missing", "in no source"],
        ["00000007_000.png", "train", "left out by the task", "no finding"],
    ]
    assert plan.left_out_counts() == {"left out by the task": 2, "rejected": 2, "in no list": 1, "missing": 1}
    assert sequence(plan) == [("00000001_000.png", 0)]


@given(tables, st.sampled_from(["binary", "binary:Mass", "binary:Mass,Hernia", "multiclass", "multilabel"]))
def test_records_and_left_out_images_add_up_to_the_table(metadata, task):
    splits = by_id(metadata)
    kept = parse_task(task).select(metadata.findings).kept
    if not kept.any():
        with pytest.raises(CxrError, match=f"^no image is left for `task={task}`: of {len(metadata)} images"):
            make_plan(metadata, splits, config(task))
        return

    plan = make_plan(metadata, splits, config(task, HERNIA if task == "multilabel" else NONE))

    originals = [image_id for image_id, copy in sequence(plan) if copy == 0]
    assert sorted([*originals, *plan.left_out["image_id"]]) == sorted(metadata.table["image_id"])
    assert sum(plan.left_out_counts().values()) == len(metadata) - kept.sum()
    counts = plan.split_counts()
    assert sum(split["images"] for split in counts.values()) == kept.sum()
    assert sum(split["records"] for split in counts.values()) == len(plan.records)


def test_no_image_left_says_how_many_were_left_out_for_which_reason():
    metadata = table("No Finding", "No Finding", "Mass|Edema", "Mass")

    with pytest.raises(CxrError) as error:
        make_plan(metadata, split_as("train", "train", "train", ""), config("multiclass"))

    assert str(error.value) == (
        "no image is left for `task=multiclass`: of 4 images in the table, "
        "3 left out by the task, 1 in no list"
    )


@pytest.mark.parametrize(
    ("task", "expected"),
    [
        ("binary", {1: 1, 2: 1, 3: 0}),
        ("binary:Mass", {1: 1, 2: 1, 3: 0}),
        ("binary:Edema,Mass", {1: 1}),
        ("multiclass", {1: FINDINGS.index("Mass")}),
        ("multilabel", {1: [4], 2: [4, 9], 3: []}),
    ],
)
def test_labels_are_those_of_the_task(tmp_path, task, expected):
    metadata = table("Mass", "Mass|Edema", "No Finding")
    plan = make_plan(metadata, split_as(*["train"] * 3), config(task), stored(metadata))

    (spec,) = write_plan(plan, str(tmp_path), "store", "out")

    rows = pq.read_table(spec.plan.path).to_pylist()
    if task == "multilabel":
        expected = {number: [int(i in on) for i in range(14)] for number, on in expected.items()}
    assert {int(row["image_id"][:8]): row["label"] for row in rows} == expected


# Counts


def test_split_counts_count_records_images_copies_patients_and_shards():
    metadata = table("Hernia", "Mass", "Mass", "Mass", "Mass", patients=[1, 1, 2, 3, 3])

    plan = make_plan(metadata, split_as("train", "train", "train", "test", "test"), config(copies=HERNIA))

    assert plan.split_counts() == {
        "train": {"records": 6, "images": 3, "copies": 3, "patients": 2, "shards": 1},
        "test": {"records": 2, "images": 2, "copies": 0, "patients": 1, "shards": 1},
    }
    assert plan.split_names == ["train", "test"]


def test_class_counts_count_images_and_records_with_their_balance_in_train():
    metadata = table("Hernia|Mass", "Mass", "Mass", "No Finding", "Hernia", "Mass")

    plan = make_plan(
        metadata, split_as("train", "train", "train", "train", "test", "test"), config(copies=HERNIA)
    )

    counts = plan.class_counts()
    assert list(counts) == [*FINDINGS, NO_FINDING]
    assert counts["Hernia"] == {
        "images": 2,
        "records": 5,
        "splits": {"train": {"images": 1, "records": 4}, "test": {"images": 1, "records": 1}},
        "irlbl": {"before": 3.0, "after": 1.5},
        "dragged": 0.0,
    }
    assert counts["Mass"]["splits"] == {
        "train": {"images": 3, "records": 6},
        "test": {"images": 1, "records": 1},
    }
    assert counts["Mass"]["dragged"] == 1.0
    assert counts["Edema"]["splits"]["train"] == {"images": 0, "records": 0}
    assert counts[NO_FINDING] == {
        "images": 1,
        "records": 1,
        "splits": {"train": {"images": 1, "records": 1}, "test": {"images": 0, "records": 0}},
    }


def test_class_counts_of_a_single_label_task_are_those_of_its_classes():
    metadata = table("Mass", "Edema", "No Finding", "No Finding")

    plan = make_plan(metadata, split_as("train", "train", "train", "test"), config("binary"))

    counts = plan.class_counts()
    assert {name: count["images"] for name, count in counts.items()} == {"No Finding": 2, "Any Finding": 2}
    assert counts["No Finding"]["splits"]["test"] == {"images": 1, "records": 1}


def test_estimate_counts_bytes_and_shares_the_seconds_among_workers():
    metadata = table("Hernia", *["Mass"] * 9)
    plan = make_plan(metadata, split_as(*["train"] * 10), config(copies=HERNIA))

    one, two = (estimate(plan, num_to_decode=10, workers=n, seconds_per_decode=0.02) for n in (1, 2))

    assert one["dataset_bytes"] == 13 * (16 * 16 + EXAMPLE_BYTES + 16)
    assert one["store_bytes"] == 10 * (16 * 16 + EXAMPLE_BYTES + 16)
    assert one["decode_seconds"] == pytest.approx(0.2)
    assert two["decode_seconds"] == pytest.approx(0.1)
    assert two["write_seconds"] == pytest.approx(one["write_seconds"] / 2)


# Digests and the plan file


@pytest.fixture
def planned():
    """Writes the plan of 40 images and returns it with its specs, by default always the same."""

    def planned(folder: Path, change_table=None, change_images=None, **changes):
        metadata = table(*(["Hernia", "Mass", "No Finding", "Edema|Mass"] * 10))
        if change_table:
            metadata = change_table(metadata)
        images = stored(metadata)
        if change_images:
            images = change_images(images)
        asked = dataclasses.replace(config(copies=HERNIA), **changes)
        plan = make_plan(metadata, split_as(*["train"] * 30, *["test"] * 10), asked, images)
        return plan, write_plan(plan, str(folder), "store", "out")

    return planned


def with_column(name, value, row=0):
    def change(frame):
        values = frame[name].tolist()
        values[row] = value
        return frame.assign(**{name: values})

    return change


def other_source(images):
    _, *others = images["sha256"].to_pylist()
    return replaced(images, sha256=[sha256("another source"), *others])


def changed_table(name, value):
    return lambda m: dataclasses.replace(m, table=with_column(name, value)(m.table))


def without_mass(metadata):
    findings = metadata.findings.copy()
    findings[1] = 0
    return dataclasses.replace(metadata, findings=findings)


@pytest.mark.parametrize(
    "changes",
    [
        {"seed": 1},
        {"flip": True},
        {"image_format": ImageFormat(32)},
        {"image_format": ImageFormat(16, "png")},
        {"image_format": ImageFormat(16, "raw", "box")},
        {"change_images": other_source},
        {"change_table": without_mass},
        {"change_table": changed_table("patient_id", 99)},
        {"change_table": changed_table("view", "AP")},
        {"change_table": changed_table("sex", "M")},
        {"change_table": changed_table("age_years", 51)},
    ],
    ids=lambda changes: " ".join(f"{k}={v}" for k, v in changes.items() if not callable(v)) or None,
)
def test_digest_of_a_shard_changes_with_all_that_decides_its_bytes(tmp_path, planned, changes):
    _, specs = planned(tmp_path)
    _, others = planned(tmp_path, **changes)

    assert specs[0].digest != others[0].digest
    assert specs[0].plan != others[0].plan


def test_digest_of_a_shard_changes_with_the_label(tmp_path, planned):
    _, (train, _) = planned(tmp_path, copies=NONE)
    _, (other, _) = planned(tmp_path, copies=NONE, task=parse_task("binary"))

    assert train.digest != other.digest


def test_digest_of_a_shard_changes_with_findings_that_leave_the_label_as_it_is(tmp_path, planned):
    def edema_for_mass(metadata):
        findings = metadata.findings.copy()
        findings[1] = parse_findings("Edema")
        return dataclasses.replace(metadata, findings=findings)

    binary = {"copies": NONE, "task": parse_task("binary")}
    _, (train, test) = planned(tmp_path, **binary)
    _, (other_train, other_test) = planned(tmp_path, change_table=edema_for_mass, **binary)

    assert train.digest != other_train.digest
    assert test.digest == other_test.digest


@pytest.mark.parametrize(
    ("what", "other"), [("cxr_records.planning.RECORD_VERSION", 2), ("PIL.__version__", "1.0")]
)
def test_digest_of_a_shard_changes_with_the_code_that_writes_its_bytes(
    tmp_path, planned, monkeypatch, what, other
):
    _, specs = planned(tmp_path)
    monkeypatch.setattr(what, other)
    _, others = planned(tmp_path)

    assert all(one.digest != two.digest for one, two in zip(specs, others, strict=True))


def test_digest_of_a_shard_stays_when_another_shard_changes(tmp_path, planned):
    _, (train, test) = planned(tmp_path)
    _, (other_train, other_test) = planned(tmp_path, change_images=other_source)

    assert train.digest != other_train.digest
    assert test.digest == other_test.digest


def test_digest_of_a_shard_stays_when_the_store_keeps_its_images_elsewhere(tmp_path, planned):
    def move(images):
        return replaced(
            images, unit=["bb"] * 40, offset=[offset + 1000 for offset in images["offset"].to_pylist()]
        )

    _, specs = planned(tmp_path)
    before = pq.read_table(specs[0].plan.path)
    _, others = planned(tmp_path, change_images=move)

    assert [spec.digest for spec in specs] == [spec.digest for spec in others]
    assert [dataclasses.replace(spec, plan=None) for spec in others] == [
        dataclasses.replace(spec, plan=None) for spec in specs
    ]
    assert others[0].plan.path == specs[0].plan.path
    assert others[0].plan.sha256 != specs[0].plan.sha256
    after = pq.read_table(others[0].plan.path)
    assert set(after["unit"].to_pylist()) == {"bb"}
    assert after["offset"].to_pylist() == [offset + 1000 for offset in before["offset"].to_pylist()]


def test_plan_file_has_a_row_group_for_each_shard_with_its_records_in_order(tmp_path, planned):
    plan, specs = planned(tmp_path, image_format=ImageFormat(2048), shard_mb=16)

    assert len(specs) == len(plan.shards) > 8
    found = []
    for spec, shard in zip(specs, plan.shards, strict=True):
        rows = pq.ParquetFile(spec.plan.path).read_row_group(spec.row_group).to_pylist()
        assert (spec.file, spec.num_records) == (shard.file, shard.num_records) == (spec.file, len(rows))
        found += [(row["image_id"], row["copy"]) for row in rows]
    assert found == sequence(plan)
    assert specs[0].path == f"out/{specs[0].file}"
    assert specs[0].sidecar_path == f"out/.build/{specs[0].file}.json"


# The real table


@pytest.fixture(scope="session")
def official(nih, nih_v2020):
    """The official lists as they are: no validation is cut."""
    lists = (str(nih / "train_val_list.txt.gz"), str(nih / "test_list.txt.gz"))
    return make_splits(nih_v2020, SplitOptions(*lists, validation_fraction=0))


def test_real_table_gives_the_official_numbers(nih_v2020, official):
    plan = make_plan(nih_v2020, official, config(size=224))

    counts = plan.split_counts()
    assert counts["train"] | {"shards": 0} == {
        "records": 86_524, "images": 86_524, "copies": 0, "patients": 28_008, "shards": 0
    }  # fmt: skip
    assert counts["test"] | {"shards": 0} == {
        "records": 25_596, "images": 25_596, "copies": 0, "patients": 2_797, "shards": 0
    }  # fmt: skip
    images = {name: [s["images"] for s in c["splits"].values()] for name, c in plan.class_counts().items()}
    assert images["Hernia"] == [141, 86]
    assert images["Pneumonia"] == [876, 555]
    assert images["Infiltration"] == [13_782, 6_112]
    assert images[NO_FINDING] == [50_500, 9_861]
    assert plan.left_out_counts() == {}
    sizes = {s: [p.num_records for p in plan.shards if p.split == s] for s in ("train", "test")}
    # 64 MiB are about 1,330 records; a part of all keys holds so many, give or take by chance.
    assert {split: (len(s), min(s), max(s)) for split, s in sizes.items()} == {
        "train": (66, 1230, 1389), "test": (20, 1240, 1344)
    }  # fmt: skip


def test_real_table_gives_the_official_numbers_of_single_label_tasks(nih_v2020, official):
    multiclass = make_plan(nih_v2020, official, config("multiclass", size=224))
    pneumothorax = make_plan(nih_v2020, official, config("binary:Pneumothorax", size=224))

    assert [split["images"] for split in multiclass.split_counts().values()] == [22_971, 7_992]
    assert multiclass.left_out_counts() == {"left out by the task": 112_120 - 22_971 - 7_992}
    classes = pneumothorax.class_counts()
    assert classes["Pneumothorax"]["splits"]["train"]["images"] == 2_637
    assert classes[NO_FINDING]["splits"]["train"]["images"] == 50_500


def test_real_table_with_copies_to_three_percent_gives_the_published_balance(nih_v2020, official):
    plan = make_plan(nih_v2020, official, config(copies=CopyRule("linear", 0.03, 10), size=224))

    counts = plan.split_counts()
    assert counts["train"]["records"] == pytest.approx(94_181, rel=0.01)
    assert counts["train"]["images"] == 86_524
    assert counts["test"] == {
        "records": 25_596, "images": 25_596, "copies": 0, "patients": 2_797, "shards": 20
    }  # fmt: skip
    hernia = plan.class_counts()["Hernia"]
    assert hernia["splits"] == {
        "train": {"images": 141, "records": 1410},
        "test": {"images": 86, "records": 86},
    }
    assert plan.balance.mean_ir_before == pytest.approx(12.79, rel=0.01)
    assert plan.balance.mean_ir_after == pytest.approx(4.78, rel=0.01)
    assert plan.balance.max_ir_after == pytest.approx(11.2, rel=0.01)
