"""The command bench: what it prints."""

import json
import re
import subprocess
import sys

import pytest

from cxr_records.cli import run as run_command


def test_bench_prints_a_sentence_or_an_object(dataset, capfd):
    words = ["bench", str(dataset), "--seconds", "0.2", "--batch-size", "8"]

    assert run_command([*words, "--json"]) == 0
    found = json.loads(capfd.readouterr().out)
    assert list(found) == ["images_per_second", "batch_size", "codec", "seconds", "input_wait_share"]
    assert found["images_per_second"] > 0
    assert (found["batch_size"], found["codec"]) == (8, "raw")
    assert 0 <= found["input_wait_share"] <= 1
    assert run_command([*words, "--step-ms", "20", "--split", "test"]) == 0
    assert re.fullmatch(
        r"[\d,]+ images/s in batches of 8, codec raw; the trainer waited [\d.]+% of the time "
        r"with steps of 20 ms\n",
        capfd.readouterr().out,
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--split", "tset"], "found split 'tset'; {dataset} has train, validation, test"),
        (["--batch-size", "9999"], "found a batch of 9999, larger than split train"),
        (["--task", "binary:Masss"], "found --task binary:Masss: unknown finding"),
    ],
)
def test_a_mistake_is_one_line(dataset, capfd, words, message):
    assert run_command(["bench", str(dataset), *words]) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith(f"Error: {message.format(dataset=dataset)}")


def test_tensorflow_starts_without_a_word():
    code = "from cxr_records.quiet import load_tensorflow; load_tensorflow()\n"
    code += "import tensorflow as tf; print(tf.add(1, 2).numpy())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert (done.stdout, done.stderr) == ("3\n", "")


def test_what_tensorflow_says_is_shown_where_it_cannot_be_imported(tmp_path):
    (tmp_path / "tensorflow.py").write_text(
        "import os\nos.write(2, b'no such library\\n')\nraise ImportError('broken')\n"
    )
    code = "from cxr_records.quiet import load_tensorflow; load_tensorflow()"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=120,
        env={"PYTHONPATH": str(tmp_path)},
    )
    assert done.returncode == 1
    assert done.stderr.startswith("no such library\n")
    assert done.stderr.endswith("ImportError: broken\n")
