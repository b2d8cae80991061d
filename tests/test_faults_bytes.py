"""Damage in what was written: stores, datasets, what a build keeps, runs. Part of `make test-faults`."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from campaign import SAID, SILENT, Outcome, Seen, call, copied, damage, run_trials, sort

import cxr_records
from cxr_records.layout import BUILD_FOLDER, MANIFEST_FILE

pytestmark = [pytest.mark.faults, pytest.mark.usefixtures("in_this_thread")]
HOW = ["flip", "spoil"]
SHARE = {"flip": 1.0, "spoil": 0.3}


def of_kind(folder: Path, pattern: str, random: np.random.Generator) -> tuple[Path, list[Path]]:
    """One of the files that a pattern names, drawn, and the others."""
    paths = sorted(path for path in folder.glob(pattern) if path.is_file())
    return (chosen := paths[random.integers(len(paths))]), [path for path in paths if path != chosen]


def use_twice(use: Callable[[], Seen], undamaged: Seen, path: Path, before: bytes) -> Outcome:
    """Uses what is damaged twice over: the second use, too, gives the same or says why not."""
    first, second = (sort(use(), undamaged, path.exists() and path.read_bytes() == before) for _ in range(2))
    return second if second.bad else first


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("pattern", ["store.json", "unit-*.parquet", "unit-*.tfrecord"])
def test_a_damaged_store_is_said_or_made_again(world, tmp_path, record_property, pattern, how):
    def trial(random):
        with copied(world.folder / "store", tmp_path / "store") as store:
            path, others = of_kind(store, pattern, random)
            before = path.read_bytes()
            done = damage(path, how, random, others)
            out = tmp_path / "dataset"
            shutil.rmtree(out, ignore_errors=True)
            seed = int(random.integers(2))
            return use_twice(
                lambda: world.build(out, store, seed), world.undamaged[seed], path, before
            ), f"{done}, seed {seed}"

    run_trials(f"store/{pattern}, {how}", 0.06 * SHARE[how], trial, record_property)


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("pattern", ["plan-*.parquet", "*.json"])
def test_damage_in_what_a_build_keeps_changes_no_dataset(world, tmp_path, record_property, pattern, how):
    """After a whole build, and after one that was killed before its last shard."""

    def trial(random):
        with copied(world.folder / "dataset", tmp_path / "dataset") as dataset:
            path, others = of_kind(dataset / BUILD_FOLDER, pattern, random)
            before = path.read_bytes()
            done = damage(path, how, random, others)
            if unfinished := bool(random.integers(2)):
                (dataset / MANIFEST_FILE).unlink()
                of_kind(dataset, "*.tfrecord-*", random)[0].unlink()
            return use_twice(
                lambda: world.build(dataset, world.folder / "store"), world.undamaged[0], path, before
            ), f"{done}{', unfinished' * unfinished}"

    run_trials(f"dataset/.build/{pattern}, {how}", 0.06 * SHARE[how], trial, record_property)


DATASET_FILES = [
    "manifest.json",
    "records.parquet",
    "*.tfrecord-*",
    "rejected.csv",
    "features.json",
    "dataset_info.json",
]


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("pattern", DATASET_FILES)
def test_verify_finds_every_damaged_file(world, tmp_path, record_property, pattern, how):
    def trial(random):
        with copied(world.folder / "dataset", tmp_path / "dataset") as dataset:
            path, others = of_kind(dataset, pattern, random)
            done = damage(path, how, random, others)
            seen = call(lambda: [str(problem) for problem in cxr_records.verify(dataset)])
            if seen.result:  # each problem names the file
                named = any(path.name in text for text in seen.result)
                return Outcome(SAID if named else SILENT, str(seen.result)), done
            return sort(seen, Seen("no problem")), done

    run_trials(f"verify: {pattern}, {how}", 0.04 * SHARE[how], trial, record_property)


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("pattern", DATASET_FILES)
def test_the_same_build_over_a_damaged_dataset_mends_it_or_says_so(
    world, tmp_path, record_property, pattern, how
):
    def trial(random):
        with copied(world.folder / "dataset", tmp_path / "dataset") as dataset:
            path, others = of_kind(dataset, pattern, random)
            before = path.read_bytes()
            done = damage(path, how, random, others)
            return use_twice(
                lambda: world.build(dataset, world.folder / "store"), world.undamaged[0], path, before
            ), done

    run_trials(f"build again: {pattern}, {how}", 0.03 * SHARE[how], trial, record_property)


def read_all(dataset: Path) -> list[object]:
    """What a trainer sees of a dataset: every batch of every split, and the table of records."""
    from cxr_records.reader import shard_errors

    opened = cxr_records.open(dataset)
    with shard_errors():
        batches = [
            [part.numpy().tobytes() for part in batch]
            for split in opened.splits
            for batch in opened.load(split, 8, shuffle=False)
        ]
    return [opened.id, opened.records.to_pylist(), *batches]


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("pattern", ["manifest.json", "records.parquet", "*.tfrecord-*"])
def test_a_trainer_reads_what_was_written_or_nothing(world, tmp_path, record_property, pattern, how):
    undamaged = call(lambda: read_all(world.folder / "dataset"))
    assert undamaged.result, undamaged

    def trial(random):
        with copied(world.folder / "dataset", tmp_path / "dataset") as dataset:
            path, others = of_kind(dataset, pattern, random)
            done = damage(path, how, random, others)
            return sort(call(lambda: read_all(dataset)), undamaged), done

    run_trials(f"read: {pattern}, {how}", 0.03 * SHARE[how], trial, record_property)


@pytest.fixture(scope="module")
def run(world, tmp_path_factory) -> Path:
    """A run of one epoch on the world's dataset, evaluated."""
    from cxr_records.trainers.config import TrainConfig
    from cxr_records.trainers.evaluation.cli import evaluate_into
    from cxr_records.trainers.predict import predict_run
    from cxr_records.trainers.train import train

    run = tmp_path_factory.mktemp("runs") / "run"
    train(str(world.folder / "dataset"), str(run), TrainConfig(epochs=1, batch_size=8, warmup_epochs=0))
    predict_run(str(run))
    evaluate_into(str(run), draws=0)
    return run


def evaluated(run: Path) -> Seen:
    """All measures of a run, beside what it warns of."""
    from cxr_records.trainers.evaluation.evaluate import evaluate_run

    def measured() -> dict[str, object]:
        return evaluate_run(str(run), draws=0).to_json()

    seen = call(measured)
    if not isinstance(seen.result, dict):
        return seen
    identity = {**seen.result["identity"], "predictions_sha256": None}  # of the damaged file, as it should be
    return Seen({**seen.result, "identity": identity, "warnings": None}, frozenset(seen.result["warnings"]))


def predicted(run: Path, image: Path) -> Seen:
    """The scores that its model gives an image."""
    from cxr_records.trainers.predict import predict_files

    return call(lambda: [score.scores for score in predict_files(str(run), [str(image)])])


def checkpointed(run: Path, file: str) -> Seen:
    """Whatever training would go on with."""
    from cxr_records.trainers import checkpoints

    def loaded() -> object:
        checkpoint = checkpoints.load(str(run / file))
        assert checkpoint is not None
        arrays = {name: (a.dtype.str, a.shape, a.tobytes()) for name, a in checkpoint.arrays.items()}
        return {**arrays, "progress": repr(checkpoint.progress)}

    return call(loaded)


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize(
    ("file", "share"),
    [
        ("config.json", 0.05),
        ("predictions.parquet", 0.03),
        ("model.keras", 0.02),
        ("checkpoints/last.npz", 0.06),
        ("checkpoints/best.npz", 0.06),
    ],
)
def test_a_damaged_run_gives_the_same_numbers_or_says_so(
    world, run, tmp_path, record_property, file, share, how
):
    image = sorted(world.made.images.rglob("*.png"))[0]
    use = {
        "model.keras": lambda copy: predicted(copy, image),
        "checkpoints/last.npz": lambda copy: checkpointed(copy, file),
        "checkpoints/best.npz": lambda copy: checkpointed(copy, file),
    }.get(file, evaluated)
    with copied(run, tmp_path / "run") as copy:
        undamaged = use(copy)
        assert undamaged.result, undamaged

    def trial(random):
        with copied(run, tmp_path / "run") as copy:
            others = [path for path in copy.rglob("*") if path.suffix == Path(file).suffix]
            before = (copy / file).read_bytes()
            done = damage(copy / file, how, random, [path for path in others if path != copy / file])
            seen = use(copy)
            return sort(seen, undamaged, (copy / file).read_bytes() == before), done

    run_trials(f"run/{file}, {how}", share * SHARE[how], trial, record_property)
