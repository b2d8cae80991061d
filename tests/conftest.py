"""What several test modules stand on: the real NIH files, a look-alike set, a dataset of it."""

import hashlib
import io
import json
import math
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import campaign
import fsspec
import hypothesis
import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from cxr_records import progress, storage
from cxr_records.config import DatasetConfig
from cxr_records.examples import decode_example
from cxr_records.findings import FINDINGS, NO_FINDING
from cxr_records.images import ImageFormat
from cxr_records.layout import BUILD_FOLDER
from cxr_records.lookalike import LookalikePaths, make_lookalike
from cxr_records.manifest import checksum, manifest_bytes
from cxr_records.metadata import Metadata, read_metadata
from cxr_records.pipelines import running
from cxr_records.pipelines.build import BuildResult, build_dataset
from cxr_records.pipelines.engines import engine_named
from cxr_records.pipelines.request import BuildRequest
from cxr_records.sampling import CopyRule
from cxr_records.splits import SplitOptions
from cxr_records.tasks import parse_task
from cxr_records.tfrecord import frame_parts, read_records
from cxr_records.trainers.config import TrainConfig

# Tests depend neither on the machine's speed nor on chance: the same examples each time.
hypothesis.settings.register_profile(
    "tests",
    deadline=None,
    derandomize=True,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("tests")

# Of `trained_run`.
RUN_CONFIG = TrainConfig(
    epochs=2, batch_size=16, warmup_epochs=0.5, patience=0, seed=3, checkpoint_minutes=60
)
CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "key",
    "AWS_SECRET_ACCESS_KEY": "secret",
    "AWS_DEFAULT_REGION": "us-east-1",
}


def pytest_terminal_summary(terminalreporter) -> None:
    """Prints what came of each kind of fault, where the campaign of faults ran."""
    reports = [report for each in terminalreporter.stats.values() for report in each]
    properties = [pair for r in reports if getattr(r, "when", "") == "call" for pair in r.user_properties]
    if rows := [value for name, value in properties if name == "faults"]:
        terminalreporter.section("faults")
        for line in campaign.summary(rows):
            terminalreporter.write_line(line)


def manifest_json(dataset: Path | str) -> dict[str, Any]:
    """What a local dataset's manifest.json holds, as it is."""
    return json.loads((Path(dataset) / "manifest.json").read_text())


def write_manifest(dataset: Path, content: dict[str, Any]) -> None:
    """Writes a changed manifest with the id and the checksum that its content has."""
    beside = ("id", "findings", "files", "duplicates", "drawn", "checksum")
    identity = {key: value for key, value in content.items() if key not in beside}
    content = {**content, "id": checksum(identity)[:32]}
    content.pop("checksum", None)
    (dataset / "manifest.json").write_bytes(manifest_bytes({**content, "checksum": checksum(content)}))


def stored(dataset: Path, split: str) -> list[dict]:
    """The records of a split in manifest order, read by the parser."""
    found = []
    for shard in manifest_json(dataset)["splits"][split]["shards"]:
        with open(dataset / shard["file"], "rb") as file:
            found += [decode_example(data) for _, data in read_records(file)]
    return found


def pixels(values: dict, codec: str) -> np.ndarray:
    if codec == "raw":
        return np.frombuffer(values["image"][0], np.uint8).reshape(32, 32, 1)
    return np.asarray(Image.open(io.BytesIO(values["image"][0])))[..., np.newaxis]


def frame(data: bytes) -> bytes:
    """One whole record of a TFRecord file."""
    return b"".join(frame_parts((data,)))


def count_findings(findings: np.ndarray) -> dict[str, int]:
    """Images of each finding, and of No Finding, in uint8 [num_images, 14]."""
    counts = {name: int(count) for name, count in zip(FINDINGS, findings.sum(axis=0), strict=True)}
    return {**counts, NO_FINDING: int((~findings.any(axis=1)).sum())}


def free_port() -> int:
    """A port on this machine that nobody listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@pytest.fixture(autouse=True)
def no_progress_lines(monkeypatch) -> None:
    """In a log, progress is told by the clock: a slow machine would print lines that a fast one does not."""
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", math.inf)


def without_progress(said: str) -> str:
    """What a command in a process of its own said on stderr but for such lines."""
    lines = said.splitlines(keepends=True)
    return "".join(line for line in lines if not re.match(r"(decode|write): .* of .* left$", line))


def files_of(dataset: Path | str) -> dict[str, bytes]:
    """Everything in a dataset, on disk or at a URL, but what it keeps for resuming."""
    names = [name for name in storage.list_names(str(dataset)) if name != BUILD_FOLDER]
    return {name: storage.read_bytes(storage.join(str(dataset), name)) for name in names}


@pytest.fixture(scope="session")
def nih() -> Path:
    """The folder of real NIH tables, lists and images beside the repository."""
    folder = Path(__file__).parents[2] / "shared" / "nih"
    if not folder.is_dir():
        pytest.skip("the real NIH files are not at ../shared/nih")
    return folder


@pytest.fixture(scope="session")
def nih_v2020(nih: Path) -> Metadata:
    """The real table of 112,120 images, with the labels of 2020."""
    return read_metadata(str(nih / "Data_Entry_2017_v2020.csv.gz"))


@pytest.fixture(scope="session")
def lookalike(tmp_path_factory: pytest.TempPathFactory) -> LookalikePaths:
    """A look-alike set of 150 images of 64 x 64 pixels."""
    return make_lookalike(tmp_path_factory.mktemp("lookalike"), num_images=150, image_size=64)


@pytest.fixture(scope="session")
def build(lookalike: LookalikePaths, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., BuildResult]:
    """Builds a dataset of the look-alike set, with Beam in this process.

    build(out, task="multilabel", codec="raw", **changes) takes any field of BuildRequest, DatasetConfig,
    CopyRule (as `rule`, `target`, `max_records`) or SplitOptions. Images are 32 x 32; those of one codec come
    from one store, unless `store` says otherwise. Classes below a tenth of the images are copied.
    """
    stores = tmp_path_factory.mktemp("stores")

    def build(
        out: Path, task: str = "multilabel", codec: str = "raw", with_no_finding: bool = False, **changes
    ) -> BuildResult:
        def taken(defaults: dict) -> dict:
            return {name: changes.pop(name, value) for name, value in defaults.items()}

        rule = CopyRule(**taken({"rule": "linear", "target": 0.1, "max_records": 10}))
        config = DatasetConfig(
            task=parse_task(task, with_no_finding),
            image_format=ImageFormat(32, codec),
            copies=rule,
            **taken({"seed": 0, "flip": False, "shard_mb": 64}),
        )
        split_options = SplitOptions(
            str(lookalike.train_val_list),
            str(lookalike.test_list),
            **taken({"validation_list": None, "validation_fraction": 0.125}),
        )
        request = {
            "images": (str(lookalike.images),),
            "metadata": str(lookalike.metadata),
            "out": str(out),
            "config": config,
            "split_options": split_options,
            "store": str(stores / codec),
            "engine": engine_named(workers=1),
        }
        return build_dataset(BuildRequest(**{**request, **changes}))

    return build


@pytest.fixture(scope="session")
def dataset(build: Callable[..., BuildResult], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A multilabel dataset of raw pixels, with copies. Leave it as it is; `copied_dataset` may be damaged."""
    out = tmp_path_factory.mktemp("dataset") / "cxr14"
    build(out)
    return out


@pytest.fixture(scope="session")
def many_shards(dataset, tmp_path_factory) -> Path:
    """The dataset with its training records dealt to seven shards, as a larger one has them."""
    out = tmp_path_factory.mktemp("many") / "cxr14"
    shutil.copytree(dataset, out)
    manifest = manifest_json(out)
    table = pq.read_table(out / "records.parquet").to_pandas()
    rows = table[table["split"] == "train"]
    records = []
    for shard in manifest["splits"]["train"]["shards"]:
        with open(out / shard["file"], "rb") as file:
            records += [data for _, data in read_records(file)]
        (out / shard["file"]).unlink()
    shards, names, places, offsets = [], [], [], []
    for place, part in enumerate(np.array_split(np.arange(len(records)), 7)):
        name = f"cxr14-train.tfrecord-{place:05d}-of-00007"
        framed = [frame(records[i]) for i in part]
        data = b"".join(framed)
        places += range(len(part))
        offsets += [sum(map(len, framed[:number])) for number in range(len(part))]
        (out / name).write_bytes(data)
        digest = hashlib.sha256(data).hexdigest()
        shards.append({"file": name, "records": len(part), "bytes": len(data), "sha256": digest})
        names += [name] * len(part)
    table.loc[rows.index, "shard"] = names
    table.loc[rows.index, "place"] = places
    table.loc[rows.index, "image_offset"] += np.array(offsets) - rows["offset"]
    table.loc[rows.index, "offset"] = offsets
    table.to_parquet(out / "records.parquet")
    manifest["splits"]["train"] |= {"shards": shards, "bytes": sum(shard["bytes"] for shard in shards)}
    (entry,) = (entry for entry in manifest["files"] if entry["file"] == "records.parquet")
    data = (out / "records.parquet").read_bytes()
    entry |= {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    write_manifest(out, manifest)
    return out


@pytest.fixture
def remote(many_shards) -> str:
    """That dataset in fsspec's storage in memory."""
    memory = fsspec.filesystem("memory")
    memory.store.clear()
    for file in many_shards.iterdir():
        if file.is_file():
            memory.pipe(f"/bucket/{file.name}", file.read_bytes())
    yield "memory://bucket"
    memory.store.clear()


@pytest.fixture(scope="session")
def trained_run(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of two epochs on that dataset that nothing broke off. Leave it as it is."""
    from cxr_records.trainers.train import train

    run = tmp_path_factory.mktemp("runs") / "run"
    train(str(dataset), str(run), RUN_CONFIG)
    return run


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> campaign.World:
    """What the campaign of faults damages copies of. Leave it as it is."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(running, "_run_here", campaign.run_here)
        return campaign.make_world(tmp_path_factory.mktemp("world"))


@pytest.fixture
def in_this_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Builds do without Beam and without waiting for the disk: thousands of them take minutes."""
    monkeypatch.setattr(running, "_run_here", campaign.run_here)
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture
def copied_dataset(dataset: Path, tmp_path: Path) -> Path:
    """A copy of that dataset."""
    return Path(shutil.copytree(dataset, tmp_path / "cxr14"))


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    """The address of a server process."""
    port = free_port()
    log = open(tmp_path_factory.mktemp("moto") / "log", "wb")  # noqa: SIM115 - closed below
    process = subprocess.Popen([sys.executable, "-m", "moto.server", "-p", str(port)], stdout=log, stderr=log)
    address = f"http://127.0.0.1:{port}"
    while True:
        try:
            urllib.request.urlopen(address, timeout=5).close()
            break
        except OSError:
            assert process.poll() is None
            time.sleep(0.1)
    yield address
    process.kill()
    process.wait()
    log.close()


@pytest.fixture
def bucket(server, monkeypatch) -> str:
    """The URL of an empty bucket, which this process and those it starts can reach."""
    for name, value in {**CREDENTIALS, "AWS_ENDPOINT_URL": server}.items():
        monkeypatch.setenv(name, value)
    import s3fs

    s3fs.S3FileSystem.clear_instance_cache()
    filesystem = s3fs.S3FileSystem()
    if filesystem.exists("bucket"):
        filesystem.rm("bucket", recursive=True)
    filesystem.mkdir("bucket")
    yield "s3://bucket"
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.fixture
def upload(bucket) -> Callable[[Path, str], str]:
    """Copies a folder to a URL below the bucket, and returns that."""

    def upload(folder: Path, to: str) -> str:
        for path in folder.rglob("*"):
            if path.is_file():
                storage.write_bytes(storage.join(to, *path.relative_to(folder).parts), path.read_bytes())
        return to

    return upload
