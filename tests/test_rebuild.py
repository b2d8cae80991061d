"""A dataset that is built again where something changed: what is written, what is kept; the same bytes."""

import contextlib
import csv
import io
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import files_of
from fsspec.implementations.memory import MemoryFileSystem

from cxr_records import planning, shards, storage
from cxr_records.dataset import open_dataset
from cxr_records.findings import FINDINGS, NO_FINDING
from cxr_records.manifest import ManifestError, read_manifest
from cxr_records.pipelines import build as build_module
from cxr_records.pipelines import running, summary
from cxr_records.pipelines.build import BuildResult
from cxr_records.pipelines.engines import engine_named
from cxr_records.splits import SplitOptions
from cxr_records.verification import check_dataset

NAME, LABEL, AGE = "Image Index", "Finding Labels", "Patient Age"


class Table:
    """NIH's table of the look-alike set, to be changed."""

    def __init__(self, source: Path, path: Path):
        self.path = path
        with open(source, newline="") as file:
            self.head, *self.rows = csv.reader(file)
        self.write()

    def write(self) -> None:
        out = io.StringIO()
        csv.writer(out, lineterminator="\n").writerows([self.head, *self.rows])
        self.path.write_text(out.getvalue())

    def change(self, row: int, column: str, value: str) -> None:
        self.rows[row][self.head.index(column)] = value
        self.write()

    def row_of(self, image_id: str) -> int:
        return next(n for n, row in enumerate(self.rows) if row[self.head.index(NAME)] == image_id)


@pytest.fixture
def table(lookalike, tmp_path) -> Table:
    return Table(lookalike.metadata, tmp_path / "table.csv")


@pytest.fixture
def rebuild(build, lookalike, table, monkeypatch) -> Callable[..., BuildResult]:
    """Builds from the table as it is now, without copies, into shards of some eight records."""
    monkeypatch.setattr(planning, "SHUFFLE_RECORDS", 8)

    def rebuild(out: Path | str, validation_fraction: float = 0.125, **changes) -> BuildResult:
        lists = map(str, (lookalike.train_val_list, lookalike.test_list))
        splits = SplitOptions(*lists, validation_fraction=validation_fraction, allow_missing=True)
        given = {"metadata": str(table.path), "split_options": splits, "rule": "none", "allow_missing": True}
        return build(out, **{**given, **changes})

    return rebuild


def states(dataset: Path | str) -> dict[str, str | None]:
    """What the storage tells of each shard: another text for each that was written anew."""
    names = [name for name in storage.list_names(str(dataset)) if name.startswith("cxr14-")]
    return {name: storage.identity(storage.join(str(dataset), name)) for name in names}


def changed(before: dict[str, str | None], after: dict[str, str | None]) -> set[str]:
    assert None not in {*before.values(), *after.values()}
    return {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}


def shard_of(dataset: Path | str, image_id: str) -> str:
    records = open_dataset(dataset).records.to_pylist()
    (shard,) = {record["shard"] for record in records if record["image_id"] == image_id}
    return shard


def relabel(table: Table, dataset: Path | str, split: str) -> str:
    """Gives an image of a split another label of those that are frequent; returns its name."""
    records = open_dataset(dataset).records.to_pylist()
    image_id = next(record["image_id"] for record in records if record["split"] == split)
    row = table.row_of(image_id)
    label = table.rows[row][table.head.index(LABEL)]
    table.change(row, LABEL, "Mass" if label != "Mass" else "Effusion")
    return image_id


@pytest.fixture(params=["local", "remote"])
def out(request, tmp_path):
    if request.param == "local":
        yield tmp_path / "cxr14"
    else:
        MemoryFileSystem.store.clear()
        yield "memory://bucket/cxr14"
        MemoryFileSystem.store.clear()


# The splits come from the images' patients in the lists; a cut for validation follows the labels a little.
@pytest.mark.parametrize("split", ["train", "test"])
def test_where_one_label_changes_one_shard_is_written(rebuild, table, out, tmp_path, split, capsys):
    rebuild(out, validation_fraction=0)
    before = states(out)
    image_id = relabel(table, out, split)

    result = rebuild(out, validation_fraction=0)

    assert len(before) > 10
    assert changed(before, states(out)) == {shard_of(out, image_id)}
    assert (result.written, result.kept) == (1, len(before) - 1)
    assert summary.build_json(result, str(out)).items() >= {"written": 1, "kept": len(before) - 1}.items()
    summary.tell_build(result, str(out))
    said = capsys.readouterr().out
    assert f"wrote 1 of {len(before)} shards in " in said
    kept = f"kept {len(before) - 1} shards, which hold these records already; only verify reads them again"
    assert f"\n{kept}\n" in said
    rebuild(tmp_path / "fresh", validation_fraction=0)
    assert files_of(out) == files_of(tmp_path / "fresh")
    assert check_dataset(str(out), deep=True) == []


def test_the_engine_is_given_the_shards_that_change_and_no_others(rebuild, table, tmp_path, monkeypatch):
    out, given = tmp_path / "cxr14", []
    rebuild(out, validation_fraction=0)
    image_id = relabel(table, out, "train")
    real = running.run

    def run(job, engine, *below):
        given.extend(spec.file for spec in job.specs)
        real(job, engine, *below)

    monkeypatch.setattr(build_module, "run", run)
    rebuild(out, validation_fraction=0)
    assert given == [shard_of(out, image_id)]

    rebuild(out, validation_fraction=0)
    assert len(given) == 1  # nothing changed: no engine is asked


def test_an_image_that_comes_or_goes_writes_its_own_shard_alone(rebuild, table, tmp_path):
    out = tmp_path / "cxr14"
    rebuild(out, validation_fraction=0)
    before = states(out)
    row = next(n for n, _ in enumerate(table.rows) if len(shard_of(out, table.rows[n][0])))
    image_id, shard = table.rows[row][0], shard_of(out, table.rows[row][0])
    taken = table.rows.pop(row)
    table.write()

    result = rebuild(out, validation_fraction=0)

    assert changed(before, states(out)) == {shard}
    assert image_id not in {record["image_id"] for record in open_dataset(out).records.to_pylist()}
    before = states(out)
    table.rows.insert(row, taken)
    table.write()
    assert rebuild(out, validation_fraction=0).written == 1
    assert changed(before, states(out)) == {shard} == {shard_of(out, image_id)}
    assert result.kept == len(before) - 1


def test_with_copies_only_the_shards_of_the_copies_that_change_are_written(rebuild, table, tmp_path):
    """Each copy holds its image's label, and of a class that has one image more each is copied less."""
    settings = {"rule": "linear", "target": 0.1, "validation_fraction": 0}
    out = tmp_path / "cxr14"
    rebuild(out, **settings)
    before, records = states(out), open_dataset(out).records.to_pylist()
    relabel(table, out, "train")

    rebuild(out, **settings)

    def content(rows: list[dict]) -> dict[str, list[tuple]]:
        by_shard: dict[str, list[tuple]] = {}
        for row in rows:
            by_shard.setdefault(row["shard"], []).append((row["image_id"], row["copy"], str(row["label"])))
        return by_shard

    then, now = content(records), content(open_dataset(out).records.to_pylist())
    if then.keys() == now.keys():
        assert changed(before, states(out)) == {shard for shard in now if then[shard] != now[shard]}
    rebuild(tmp_path / "fresh", **settings)
    assert files_of(out) == files_of(tmp_path / "fresh")


@pytest.mark.parametrize("seed", range(2))
def test_after_any_changes_of_the_table_it_is_what_is_built_from_nothing(rebuild, table, tmp_path, seed):
    chance, out, removed = random.Random(seed), tmp_path / "cxr14", []
    settings = {"rule": chance.choice(["none", "linear", "fixed"]), "codec": chance.choice(["raw", "png"])}
    rebuild(out, **settings)
    for step in range(3):
        for _ in range(chance.randint(1, 4)):
            row = chance.randrange(len(table.rows))
            match chance.choice(["label", "age", "remove", "restore"]):
                case "label":
                    some = "|".join(sorted(chance.sample(FINDINGS, chance.randint(1, 2))))
                    table.change(row, LABEL, chance.choice([NO_FINDING, some]))
                case "age":
                    table.change(row, AGE, str(chance.randint(1, 90)))
                case "remove":
                    removed.append(table.rows.pop(row))
                case "restore" if removed:
                    table.rows.append(removed.pop())
        table.write()

        result = rebuild(out, **settings)

        fresh = tmp_path / f"fresh-{step}"
        assert rebuild(fresh, **settings).kept == 0
        assert files_of(out) == files_of(fresh)
        assert result.manifest == read_manifest(str(fresh))


@pytest.mark.parametrize("moment", [0, 2])
def test_broken_off_at_any_shard_it_is_no_dataset_until_the_same_build_has_ended(
    rebuild, table, tmp_path, monkeypatch, moment
):
    """Never is a mixture of the two taken for one of them."""
    settings = {"seed": 1, "validation_fraction": 0}
    out, count = tmp_path / "cxr14", 0
    rebuild(out, validation_fraction=0)
    real = shards._write_sidecar

    def break_off(*arguments) -> None:
        nonlocal count
        count += 1
        if count > moment * 4:
            raise OSError(5, "Input/output error")
        real(*arguments)

    monkeypatch.setattr(shards, "_write_sidecar", break_off)
    with pytest.raises(Exception, match="Input/output error"):
        rebuild(out, **settings)
    with pytest.raises(ManifestError, match="the build is not finished; run the same build command again"):
        open_dataset(out)
    monkeypatch.setattr(shards, "_write_sidecar", real)

    result = rebuild(out, **settings)

    assert result.kept == moment * 4
    rebuild(tmp_path / "fresh", **settings)
    assert files_of(out) == files_of(tmp_path / "fresh")


def test_a_kept_shard_that_was_damaged_is_made_again_and_never_passed_on(rebuild, table, tmp_path):
    """Though its size and time are as before; the manifest never has the digest of damaged bytes."""
    out = tmp_path / "cxr14"
    rebuild(out, validation_fraction=0)
    image_id = relabel(table, out, "train")
    damaged = next(path for path in sorted(out.glob("cxr14-*")) if path.name != shard_of(out, image_id))
    status, data = damaged.stat(), bytearray(damaged.read_bytes())
    data[len(data) // 2] ^= 1
    damaged.write_bytes(data)
    os.utime(damaged, ns=(status.st_atime_ns, status.st_mtime_ns))

    result = rebuild(out, validation_fraction=0)

    assert result.written == 2
    rebuild(tmp_path / "fresh", validation_fraction=0)
    assert files_of(out) == files_of(tmp_path / "fresh")


def test_a_copied_dataset_keeps_its_shards_once_their_bytes_were_read(rebuild, table, tmp_path):
    rebuild(tmp_path / "cxr14", validation_fraction=0)
    image_id = relabel(table, tmp_path / "cxr14", "test")
    copy = shutil.copytree(tmp_path / "cxr14", tmp_path / "copy")
    before = states(copy)

    assert rebuild(copy, validation_fraction=0).written == 1
    assert changed(before, states(copy)) == {shard_of(copy, image_id)}


def test_processes_are_made_ready_to_write_where_much_is_likely_to_be_written(build, tmp_path, monkeypatch):
    asked = []

    @contextlib.contextmanager
    def started_early(engine, likely):
        asked.append(likely())
        yield None

    monkeypatch.setattr(build_module, "started_early", started_early)
    monkeypatch.setattr(build_module, "SECONDS_PER_RECORD", 1.0)

    def told(**changes) -> bool:
        """For the shards; asked before is for the store."""
        asked.clear()
        build(tmp_path / "cxr14", **changes)
        return asked[1]

    assert told(rule="none")  # there is no dataset yet
    assert not told(rule="none")  # nothing, or a label, will have changed
    assert told(rule="none", task="binary")
    monkeypatch.setattr(build_module, "SECONDS_PER_RECORD", 1e-6)
    assert not told(rule="none")


@pytest.mark.slow
def test_worker_processes_keep_what_did_not_change(rebuild, table, tmp_path, monkeypatch):
    from cxr_records.pipelines import engines

    monkeypatch.setattr(engines, "SECONDS_WORTH_PROCESSES", 0)
    out, engine = tmp_path / "cxr14", engine_named(workers=2)
    rebuild(out, validation_fraction=0, engine=engine)
    before, names = states(out), [relabel(table, out, split) for split in ("train", "test")]

    result = rebuild(out, validation_fraction=0, engine=engine)

    assert result.written == 2
    assert changed(before, states(out)) == {shard_of(out, name) for name in names}
    rebuild(tmp_path / "fresh", validation_fraction=0)
    assert files_of(out) == files_of(tmp_path / "fresh")
