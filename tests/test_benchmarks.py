"""The benchmarks' harness: rounds in turn, what is counted and checked, what is not measured twice."""

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))
import bench_build  # noqa: E402
import bench_check  # noqa: E402
import bench_reader  # noqa: E402
import harness  # noqa: E402
from builders import BUILDERS  # noqa: E402
from measuring import BATCH, Job  # noqa: E402
from readers import FORMS, READERS, decoded  # noqa: E402


def reader_words(folder, *words):
    script = [sys.executable, BENCHMARKS / "bench_reader.py", "--folder", folder, "--num-originals", 50]
    return [*map(str, [*script, "--counts", 512, "--rounds", 2, "--seconds", 0.2, *words])]


NAMES = ("memmap", "read", "arrays")


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """A folder in which readers without TensorFlow were measured, and what was printed."""
    folder = tmp_path_factory.mktemp("measured")
    words = reader_words(folder, "--sets", "raw-32", "--readers", *NAMES)
    done = subprocess.run(words, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    return folder, done.stdout


def lines_of(folder):
    return [json.loads(line) for line in (folder / "reader.jsonl").read_text().splitlines()]


def test_every_reader_runs_once_a_round_in_another_order_each_time_warm_and_cold(measured):
    lines = lines_of(measured[0])

    keys = [(m["set"], m["mode"], m["round"], m["reader"]) for m in lines]
    assert keys == [
        ("raw-32", mode, number, name)
        for mode in ("warm", "cold")
        for number, names in enumerate([NAMES, ("read", "arrays", "memmap")])
        for name in names
    ]
    for line in lines:
        assert "error" not in line
        assert line["count"] == 512
        assert min(line["images_per_second"], line["cpu_ms_per_1000"], line["peak_mb"]) > 0
        assert line["peak_rss_mb"] >= line["peak_mb"]
        assert line["first_batch_seconds"] > 0
        assert line["versions"]["python"]


def test_files_that_stay_in_memory_are_said_above_a_cold_table(tmp_path):
    found = {"images_per_second": 2.0, "cpu_ms_per_1000": 1.0, "first_batch_seconds": 1.0, "disk_mb": 3.0}
    found |= {"peak_mb": 4, "versions": {"python": "3"}}
    log = harness.Log(tmp_path / "log.jsonl")
    for reader, stayed in (("memmap", 0.0), ("read", 0.52)):
        key = {"set": "raw-32", "count": 512, "reader": reader, "cores": 2, "mode": "cold", "round": 0}
        log.add(found | {"stayed": stayed}, **key)

    title = bench_reader.tables(log, ["memmap", "read"]).splitlines()[0]

    assert title == "raw-32, 512 images, 2 cores, cold (52% of the pages stayed in memory)"
    assert bench_reader.tables(log, ["memmap"]).splitlines()[0] == "raw-32, 512 images, 2 cores, cold"


def test_tables_have_a_row_for_each_reader_and_the_quickest_comes_first(measured):
    tables = measured[1].split("\n\n")

    assert [text for text in tables if text.startswith("raw-32")] == [
        f"raw-32, 512 images, {bench_reader.CORES} cores, {mode}" for mode in ("warm", "cold")
    ]
    rates = {}
    for line in lines_of(measured[0]):
        if line["mode"] == "warm":
            rates.setdefault(line["reader"], []).append(line["images_per_second"])
    rows = tables[1].splitlines()[2:]
    assert len(rows) == 3
    best = max(rates, key=lambda name: np.median(rates[name]))
    assert rows[0].startswith(f"| {READERS[best].said} | {harness.spread(rates[best])} |")
    assert rows[0].endswith("| 2 |")
    assert tables[-1].startswith("Versions: numpy ")


def test_what_is_in_the_log_is_not_measured_again(measured):
    folder, printed = measured
    before = (folder / "reader.jsonl").read_bytes()

    words = reader_words(folder, "--sets", "raw-32", "--readers", *NAMES)
    done = subprocess.run(words, capture_output=True, text=True, timeout=120)

    assert (done.returncode, done.stdout, done.stderr) == (0, printed, "")
    assert (folder / "reader.jsonl").read_bytes() == before


def test_a_batch_is_compared_with_what_was_written(measured):
    check_of_batches(measured[0] / "raw-32-512")


def check_of_batches(folder, size=32):
    job = Job(folder, 1)
    images, labels = decoded(job, list(job.source())[:BATCH])
    job.source().check(images, labels, size)

    with pytest.raises(ValueError, match="label"):
        job.source().check(images, 1 - labels, size)
    with pytest.raises(ValueError, match="not in the set"):
        job.source().check(255 - images, labels, size)
    with pytest.raises(ValueError, match="a batch of"):
        job.source().check(images[1:], labels[1:], size)


def test_source_and_forms_hold_the_dataset_s_stored_images(measured):
    from cxr_records.dataset import open_dataset

    folder = measured[0] / "raw-32-512"
    opened = open_dataset(folder / "dataset")
    examples = opened.examples(opened.records)

    written = [(data, label.tolist()) for data, label in Job(folder, 1).source()]

    assert written == [(values["image"][0], values["label"]) for values in examples]
    FORMS["dali_index"][0](Job(folder, 1), folder)
    indexes = sorted(folder.glob("*.idx"))
    offsets = [int(line.split()[0]) for index in indexes for line in index.read_text().splitlines()]
    assert offsets == opened.records["offset"].to_pylist()


def test_each_rival_has_a_file_of_pinned_requirements():
    named = {reader.environment for reader in READERS.values()} | {
        environment for _, environment in FORMS.values()
    }
    named |= {builder.environment for builder in BUILDERS.values()}

    assert {path.stem for path in harness.RIVALS.glob("*.txt")} == named - {""}
    for path in harness.RIVALS.glob("*.txt"):
        assert all("==" in line for line in path.read_text().splitlines())
    for reader in READERS.values():
        if reader.environment:
            pins = (harness.RIVALS / f"{reader.environment}.txt").read_text()
            assert all(f"{package}==" in pins for package in reader.packages)


@pytest.mark.slow
def test_an_environment_is_made_once_and_again_when_its_requirements_change(tmp_path, monkeypatch):
    rivals = tmp_path / "rivals"
    rivals.mkdir()
    (rivals / "none.txt").write_text("")
    monkeypatch.setattr(harness, "RIVALS", rivals)

    python = harness.python_of("none", tmp_path)
    made = Path(python).lstat().st_ino
    assert harness.python_of("none", tmp_path) == python
    assert Path(python).lstat().st_ino == made
    (rivals / "none.txt").write_text("/no/such/package\n")
    with pytest.raises(harness.BenchmarkError, match="none cannot be installed"):
        harness.python_of("none", tmp_path)
    assert harness.python_of("", tmp_path) == sys.executable


def test_processor_time_is_that_of_all_processes_also_of_those_whose_parent_ended(tmp_path):
    # The one that is busy is nobody's child when it ends, and the command waits until it has.
    busy = "import pathlib, time\nwhile time.process_time() < 0.5: pass\n"
    busy += f"pathlib.Path({str(tmp_path / 'ended')!r}).touch()"
    between = f"import subprocess, sys\nsubprocess.Popen([sys.executable, '-c', {busy!r}])"
    code = f"import pathlib, subprocess, sys, time\nsubprocess.run([sys.executable, '-c', {between!r}])\n"
    code += f"while not pathlib.Path({str(tmp_path / 'ended')!r}).exists(): time.sleep(0.01)\nprint('said')"

    taken = harness.run([sys.executable, "-c", code], limit=120)

    assert taken.out == "said\n"
    assert taken.cpu >= 0.5


def test_what_a_command_leaves_behind_is_ended_and_keeps_nobody_waiting(tmp_path):
    code = "import subprocess, sys\n"
    code += "left = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\nprint(left.pid)"

    pid = int(harness.run([sys.executable, "-c", code]).out)

    assert not Path(f"/proc/{pid}").exists()


def test_a_failure_is_a_row_and_said_by_its_last_line(tmp_path):
    log = harness.Log(tmp_path / "log.jsonl")

    log.measure(
        {"name": "a"}, lambda: {"wall": harness.run([sys.executable, "-c", "import nosuchmodule"]).wall}
    )
    with pytest.raises(harness.BenchmarkError, match=r"longer than 0\.2 s"):
        harness.run([sys.executable, "-c", "import time; time.sleep(60)"], limit=0.2)

    (line,) = harness.Log(tmp_path / "log.jsonl").lines
    assert line == {"name": "a", "error": "ModuleNotFoundError: No module named 'nosuchmodule'"}


def test_a_table_is_repeated_under_new_patients_and_each_name_is_a_link(tmp_path):
    from PIL import Image

    (tmp_path / "few").mkdir()
    for number in range(2):
        Image.new("L", (8, 8), number).save(tmp_path / "few" / f"{number}.png")
    rows = [
        ("00000001_000.png", "Mass", 1),
        ("00000001_001.png", "Edema", 1),
        ("00000004_000.png", "Mass", 4),
    ]
    columns = ["Image Index", "Finding Labels", "Patient ID"]
    pd.DataFrame(rows, columns=columns).to_csv(tmp_path / "few.csv", index=False)

    made = harness.link_images(tmp_path / "few", tmp_path / "few.csv", tmp_path / "made", 5)

    table = pd.read_csv(made / "table.csv")
    assert table["Image Index"].tolist() == [
        "00000001_000.png", "00000001_001.png", "00000004_000.png", "00000006_000.png", "00000006_001.png",
    ]  # fmt: skip
    assert table["Patient ID"].tolist() == [1, 1, 4, 6, 6]
    assert sorted(path.name for path in (made / "images").iterdir()) == table["Image Index"].tolist()
    assert all(path.stat().st_nlink > 1 for path in (made / "images").iterdir())


def test_one_label_is_corrected_and_nothing_else(tmp_path):
    rows = [("a", "Mass"), ("b", "No Finding"), ("c", "No Finding")]
    pd.DataFrame(rows, columns=["Image Index", "Finding Labels"]).to_csv(tmp_path / "t.csv", index=False)

    bench_build.correct_label(tmp_path / "t.csv")

    assert pd.read_csv(tmp_path / "t.csv")["Finding Labels"].tolist() == [
        "Mass",
        "Infiltration",
        "No Finding",
    ]


def test_a_lead_is_lost_when_a_quarter_of_it_is():
    found = {"reader": {"lead": 0.76}, "decode": {"lead": 2.2}, "plan": {"lead": 3.0}}

    (said,) = bench_check.verdict(found, {"reader": 1.0, "decode": 3.0, "plan": 3.0}, 0.75)

    assert said == (
        "decode: found a lead of 2.200, expected at least 2.250, "
        "which is 75% of the 3.000 recorded in leads.json"
    )
    assert set(json.loads(bench_check.LEADS.read_text())) >= {"reader", "decode", "plan"}


def test_a_lead_is_the_yardstick_s_processor_time_over_ours():
    def busy(seconds):
        began = time.process_time()
        while time.process_time() - began < seconds:
            pass

    found = bench_check.lead(lambda: busy(0.02), lambda: busy(0.06), rounds=3)

    assert found["lead"] == pytest.approx(3, rel=0.1)
    assert found["low"] <= found["lead"] <= found["high"]


@pytest.mark.slow
def test_our_readers_and_tf_data_run(tmp_path):
    names = ["load_split", "tf_data", "tf_data_batched"]
    words = ["--sets", "jpeg-64", "--readers", *names, "--modes", "warm", "--rounds", "1"]

    done = subprocess.run([*reader_words(tmp_path), *words], capture_output=True, text=True, timeout=280)

    assert done.returncode == 0, done.stderr
    assert [line["reader"] for line in lines_of(tmp_path)] == names
    assert all("error" not in line for line in lines_of(tmp_path))
    check_of_batches(tmp_path / "jpeg-64-512", 64)


@pytest.mark.slow
def test_builds_and_rebuilds_are_measured(tmp_path):
    words = [sys.executable, BENCHMARKS / "bench_build.py", "build", "rebuild", "records"]
    words += ["--folder", tmp_path, "--own"]
    words += ["--counts", 60, "--rebuild-count", 60, "--rounds", 1, "--num-originals", 50]
    words = [*map(str, words), "--lookalike-size", "64"]

    done = subprocess.run(words, capture_output=True, text=True, timeout=280)

    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in (tmp_path / "build.jsonl").read_text().splitlines()]
    builders = ["ours", "bare_pillow", "bare_tfrecord", "bare_ours"]
    assert [m.get("builder") for m in lines] == [*builders, None, None]
    assert all("error" not in line for line in lines)
    assert lines[0]["decode"] < lines[0]["wall"]
    assert (lines[4]["first_written"], lines[4]["unchanged_written"]) == (lines[4]["first_shards"], 0)
    assert lines[4]["other_task_written"] == lines[4]["other_task_shards"]
    assert "| first build |" in done.stdout
    assert not list(tmp_path.glob("tmp*"))
