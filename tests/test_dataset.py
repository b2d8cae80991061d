"""A finished dataset as one object."""

import pickle
import shutil

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from conftest import files_of, manifest_json, write_manifest

import cxr_records
from cxr_records import storage
from cxr_records.dataset import open_dataset
from cxr_records.errors import CxrError, UsageError
from cxr_records.findings import FINDINGS
from cxr_records.images import ImageFormat
from cxr_records.tasks import parse_task


def test_an_open_dataset_tells_what_its_manifest_says(dataset):
    opened = cxr_records.open(dataset)

    assert (opened.path, opened.id) == (str(dataset), manifest_json(dataset)["id"])
    assert opened.task == parse_task("multilabel")
    assert opened.image_format == ImageFormat(32, "raw", "bilinear")
    assert opened.findings == FINDINGS
    told = manifest_json(dataset)["splits"]
    assert list(opened.splits) == ["train", "validation", "test"]
    for name, split in opened.splits.items():
        assert split.records == told[name]["records"]
        assert [shard.sha256 for shard in split.shards] == [s["sha256"] for s in told[name]["shards"]]
    assert repr(opened) == f"<Dataset {dataset}: multilabel, id {opened.id}>"


def test_what_is_open_is_opened_as_it_is(dataset):
    opened = open_dataset(dataset)

    assert open_dataset(opened) is opened


def test_what_was_pickled_is_opened_again_with_its_task_where_it_is_still_the_same(copied_dataset, build):
    opened = open_dataset(copied_dataset).as_task("binary:Effusion")
    data = pickle.dumps(opened)

    again = pickle.loads(data)
    assert (again.path, again.id, again.task) == (opened.path, opened.id, opened.task)
    assert again.split("test").labels.tolist() == opened.split("test").labels.tolist()

    rebuilt = build(copied_dataset, seed=5).manifest.id
    with pytest.raises(CxrError) as error:
        pickle.loads(data)
    assert str(error.value) == (
        f"{copied_dataset} was rebuilt since it was opened: found id {rebuilt}, expected {opened.id}; "
        "open it again"
    )


def test_manifest_and_table_are_read_once_whatever_is_asked_and_for_which_task(dataset, monkeypatch):
    reads = []
    open_regular = storage.open_regular
    monkeypatch.setattr(storage, "open_regular", lambda path: reads.append(path) or open_regular(path))

    opened = open_dataset(dataset)
    mass = opened.as_task("binary:Mass")
    for one in (opened, mass, mass.as_task(None)):
        for name in opened.splits:
            one.split(name)
            one.load(name, 2)
            one.steps_per_epoch(name, 1)
    assert opened.records is mass.records
    read = [path for path in reads if ".tfrecord-" not in path]  # shards are opened to be read by TensorFlow
    assert read == [f"{dataset}/manifest.json", f"{dataset}/records.parquet"]


def test_the_table_of_records_is_that_on_disk(dataset):
    assert open_dataset(dataset).records.equals(pq.read_table(dataset / "records.parquet"))


def test_steps_per_epoch_are_those_that_the_reader_counts_for_the_task_and_the_hosts(dataset):
    from cxr_records import reader

    for opened in (open_dataset(dataset), open_dataset(dataset).as_task("binary:Mass")):
        one, two = (opened.steps_per_epoch("train", 3, num_hosts=hosts) for hosts in (1, 2))
        assert one == reader.steps_per_epoch(opened, "train", 3)
        assert two == reader.steps_per_epoch(opened, "train", 3, num_hosts=2)
        assert one > two > 0


def test_another_task_leaves_out_who_has_no_part_in_it(dataset):
    opened = open_dataset(dataset)
    every, mass = opened.split("train"), opened.as_task("binary:Mass").split("train")
    is_mass = every.labels[:, FINDINGS.index("Mass")] == 1
    expected = is_mass | ~every.labels.any(axis=1)

    assert 0 < expected.sum() < len(every)
    assert mass.image_ids.tolist() == every.image_ids[expected].tolist()
    assert mass.labels.tolist() == is_mass[expected].astype(int).tolist()
    assert mass.takes_part.tolist() == expected.tolist()
    assert [count for _, _, count in mass.shards] == [s.records for s in opened.splits["train"].shards]
    assert sum(part for _, part, _ in mass.shards) == expected.sum()


def test_none_is_the_datasets_own_task(build, tmp_path):
    build(tmp_path / "cxr14", task="binary:Mass")
    opened = open_dataset(tmp_path / "cxr14")

    assert opened.as_task(None).task == opened.as_task("binary:Mass").task == parse_task("binary:Mass")
    with pytest.raises(UsageError) as error:
        opened.as_task("multiclass:No Finding")
    assert str(error.value) == (
        f"found task multiclass with No Finding; {tmp_path}/cxr14 was built for binary:Mass, and only a "
        "multilabel dataset gives other tasks: build one with `task=multilabel`"
    )


def test_a_split_that_is_not_there_is_told_from_those_that_are(dataset):
    with pytest.raises(UsageError) as error:
        open_dataset(dataset).split("dev")
    assert str(error.value) == f"found split 'dev'; {dataset} has train, validation, test"


def test_examples_are_the_records_of_the_rows_asked_for_in_their_order(dataset):
    opened = open_dataset(dataset)
    rows = opened.records.filter(pc.equal(opened.records["split"], "test")).take([3, 0, 2])

    examples = opened.examples(rows)
    assert [values["image_id"][0].decode() for values in examples] == rows["image_id"].to_pylist()
    assert [values["label"] for values in examples] == rows["label"].to_pylist()
    batch, _, _ = next(iter(opened.load("test", 4)))
    pixels = [opened.image_format.decode(values["image"][0]) for values in examples]
    np.testing.assert_array_equal(pixels, batch.numpy()[[3, 0, 2], :, :, 0])


@pytest.mark.parametrize("damage", ["flipped", "cut"])
def test_an_example_that_is_damaged_is_named(copied_dataset, damage):
    opened = open_dataset(copied_dataset)
    rows = opened.records.slice(len(opened.records) - 1)
    path = copied_dataset / rows["shard"][0].as_py()
    data = path.read_bytes()
    path.write_bytes(data[:-1] if damage == "cut" else data[:-1] + bytes([data[-1] ^ 1]))

    with pytest.raises(CxrError) as error:
        opened.examples(rows)
    place = f"byte {rows['offset'][0].as_py():,}"
    assert str(error.value).startswith(f"{path} is damaged at {place} (")
    assert str(error.value).endswith("; run cxr-records verify on the dataset")


def test_an_example_without_its_image_is_named(copied_dataset, monkeypatch):
    """A build writes none; a dataset from elsewhere may hold any."""
    opened = open_dataset(copied_dataset)
    monkeypatch.setattr("cxr_records.dataset.decode_example", lambda data: {})

    with pytest.raises(CxrError, match=r"is damaged at byte 0 \(feature 'image' is missing\); run cxr-"):
        opened.examples(opened.records.slice(0, 1))


# Under its feet


@pytest.mark.parametrize(
    "use",
    [
        lambda opened: opened.records,
        lambda opened: opened.split("train"),
        lambda opened: opened.load("train", 4),
        lambda opened: cxr_records.verify(opened),
    ],
    ids=["records", "split", "load", "verify"],
)
def test_a_dataset_that_was_rebuilt_since_it_was_opened_says_so(build, copied_dataset, use):
    opened = open_dataset(copied_dataset)
    again = build(copied_dataset, task="binary").manifest.id

    with pytest.raises(CxrError) as error:
        use(opened)
    assert str(error.value) == (
        f"{copied_dataset} was rebuilt since it was opened: found id {again}, expected {opened.id}; "
        "open it again"
    )


def test_a_table_that_was_read_before_is_not_taken_for_the_rebuilt_ones(build, copied_dataset):
    opened = open_dataset(copied_dataset)
    rows = opened.records.slice(0, 1)
    opened.split("train")
    build(copied_dataset, seed=5)

    for use in (
        lambda: opened.examples(rows),
        lambda: opened.load("train", 4),
        lambda: opened.split("train"),
        lambda: opened.records,
    ):
        with pytest.raises(CxrError, match="was rebuilt since it was opened"):
            use()


def test_records_that_were_read_while_a_build_went_on_are_not_handed_out(build, copied_dataset, monkeypatch):
    opened = open_dataset(copied_dataset)
    rows, open_regular = opened.records.slice(0, 2), storage.open_regular

    def rebuild_and_open(path):
        monkeypatch.setattr(storage, "open_regular", open_regular)  # which the build uses too
        build(copied_dataset, seed=5)
        return open_regular(path)

    monkeypatch.setattr(storage, "open_regular", rebuild_and_open)
    with pytest.raises(CxrError, match="was rebuilt since it was opened"):
        opened.examples(rows)


def test_a_contact_sheet_of_a_dataset_that_was_rebuilt_since_is_not_drawn(build, copied_dataset):
    from cxr_records.contact_sheet import sheet_of_dataset

    opened = open_dataset(copied_dataset)
    assert sheet_of_dataset(opened, 1).size
    build(copied_dataset, seed=5)

    with pytest.raises(CxrError, match="was rebuilt since it was opened"):
        sheet_of_dataset(opened, 1)


def test_a_remote_dataset_that_was_rebuilt_since_it_was_opened_says_so(build, dataset, copied_dataset):
    import fsspec

    def put(folder):
        for name, data in files_of(folder).items():
            storage.write_bytes(f"memory://changing/{name}", data)

    put(dataset)
    opened = open_dataset("memory://changing")
    put(dataset)  # the same again, at another time
    assert len(opened.split("train")) == opened.splits["train"].records
    again = build(copied_dataset, seed=5).manifest.id
    put(copied_dataset)

    for use in (lambda: opened.records, lambda: opened.split("test"), lambda: opened.load("train", 4)):
        with pytest.raises(CxrError) as error:
            use()
        assert str(error.value) == (
            f"memory://changing was rebuilt since it was opened: found id {again}, expected {opened.id}; "
            "open it again"
        )
    fsspec.filesystem("memory").store.clear()


def test_a_manifest_damaged_under_an_open_dataset_is_a_problem_to_verify(copied_dataset):
    opened = open_dataset(copied_dataset)
    path = copied_dataset / "manifest.json"
    path.write_bytes(path.read_bytes()[:-1])

    (problem,) = cxr_records.verify(opened)
    assert cxr_records.verify(copied_dataset) == [problem]
    assert problem.path == str(path)
    assert problem.message.startswith("damaged: its bytes are not those that were written")


def test_a_build_under_way_is_no_dataset_to_read(copied_dataset):
    opened = open_dataset(copied_dataset)
    (copied_dataset / "manifest.json").unlink()

    with pytest.raises(CxrError) as error:
        opened.load("train", 4)
    assert str(error.value) == (
        f"{copied_dataset} is being rebuilt or was removed since it was opened; open it again"
    )


def test_the_same_dataset_written_again_goes_on(copied_dataset):
    opened = open_dataset(copied_dataset)
    write_manifest(copied_dataset, manifest_json(copied_dataset))

    assert len(opened.split("train")) == opened.splits["train"].records


def test_a_dataset_that_was_moved_is_opened_where_it_is(copied_dataset, tmp_path):
    opened = open_dataset(copied_dataset)
    shutil.move(copied_dataset, tmp_path / "moved")

    assert open_dataset(tmp_path / "moved").id == opened.id
    with pytest.raises(CxrError, match=r"was removed since it was opened; open it again$"):
        opened.split("train")
    with pytest.raises(CxrError, match=r"cxr14: no such folder$"):
        open_dataset(copied_dataset)


def test_lists_of_the_splits_name_the_images_of_the_records(dataset):
    opened = open_dataset(dataset)

    assert opened.split_lists() == {
        split: sorted(set(opened.split(split).image_ids)) for split in ("train", "validation", "test")
    }


@pytest.mark.parametrize(
    ("damage", "said"),
    [(b"00000001_000.png\n", "is damaged: its sha256 is not the manifest's"), (None, "is missing")],
    ids=["damaged", "missing"],
)
def test_a_damaged_or_missing_list_is_one_line(copied_dataset, damage, said):
    path = copied_dataset / "validation_list.txt"
    path.write_bytes(damage) if damage is not None else path.unlink()

    with pytest.raises(CxrError) as error:
        open_dataset(copied_dataset).split_lists()
    assert str(error.value) == f"{path} {said}; run cxr-records verify on the dataset"


def test_a_dataset_without_lists_says_what_to_do_instead(copied_dataset):
    content = manifest_json(copied_dataset)
    content["files"] = [entry for entry in content["files"] if not entry["file"].endswith("_list.txt")]
    write_manifest(copied_dataset, content)

    with pytest.raises(CxrError) as error:
        open_dataset(copied_dataset).split_lists()
    assert str(error.value) == (
        f"{copied_dataset} is older than the lists of splits that datasets hold now; make lists from its "
        "records.parquet, and give them as `train_val_list`, `test_list` and `validation_list`"
    )


@pytest.mark.parametrize("damage", [b"", b"PAR1", None])
def test_a_damaged_or_missing_table_of_records_is_one_line(copied_dataset, damage):
    path = copied_dataset / "records.parquet"
    path.write_bytes(damage) if damage is not None else path.unlink()

    with pytest.raises(CxrError) as error:
        open_dataset(copied_dataset).split("train")
    assert str(error.value).startswith(f"{copied_dataset}: the table of records cannot be read (")
    assert str(error.value).endswith("; run cxr-records verify on the dataset")
    assert "\n" not in str(error.value)


def test_a_table_that_does_not_fit_the_manifest_is_refused(copied_dataset):
    content = manifest_json(copied_dataset)
    counts = content["splits"]["train"]
    counts["patients"] -= 1
    write_manifest(copied_dataset, content)

    with pytest.raises(CxrError) as error:
        open_dataset(copied_dataset).split("test")
    assert str(error.value) == (
        f"{copied_dataset}: the table of records is not that of the manifest ({counts['patients'] + 1} "
        f"patients in train, the manifest says {counts['patients']}); run cxr-records verify on the dataset"
    )
