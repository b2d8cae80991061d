"""What a person sees while a job runs."""

import pytest

from cxr_records import progress


@pytest.fixture(autouse=True)
def seconds_between_lines(monkeypatch, no_progress_lines) -> None:
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 15.0)


def test_a_log_gets_a_line_now_and_then(capsys, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    with progress.progress("decode", "images", 10_000) as shown:
        for second in range(0, 61):
            now[0] = float(second)
            shown.update(100 * second)
    assert capsys.readouterr().err == (
        "decode: 1,500 of 10,000 images, 100 images/s, 1 min 25 s left\n"
        "decode: 3,000 of 10,000 images, 100 images/s, 1 min 10 s left\n"
        "decode: 4,500 of 10,000 images, 100 images/s, 55 s left\n"
        "decode: 6,000 of 10,000 images, 100 images/s, 40 s left\n"
    )


def test_a_note_stands_behind_the_counts(capsys, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    with progress.progress("epoch 1/2", "images", 400) as shown:
        shown.update(0)
        now[0] = 20.0
        shown.update(200, "loss 0.5")
    assert capsys.readouterr().err == "epoch 1/2: 200 of 400 images, 10 images/s, 20 s left, loss 0.5\n"
