"""That the campaign of faults sees what it looks for, and says how to see it again."""

import campaign
import numpy as np
import pytest
from campaign import FAULT, HARMLESS, MENDED, SAID, SILENT, Outcome, Seen, call, damage, run_trials, sort

from cxr_records.errors import CxrError
from cxr_records.progress import say

WHOLE = Seen("result", frozenset(["warning: as ever"]))


@pytest.mark.parametrize(
    ("seen", "mended", "outcome"),
    [
        (Seen("result", WHOLE.said), False, HARMLESS),
        (Seen("result", WHOLE.said), True, MENDED),
        (Seen("other", WHOLE.said), False, SILENT),
        (Seen(None, WHOLE.said), False, SILENT),
        (Seen("other", WHOLE.said | {"warning: damaged"}), False, SAID),
        (Seen("result", fault="KeyError: 'x'"), False, FAULT),
    ],
)
def test_what_was_seen_is_sorted_by_result_and_by_what_is_newly_said(seen, mended, outcome):
    assert sort(seen, WHOLE, mended).name == outcome


def test_what_a_call_raises_or_warns_of_is_said_and_other_errors_are_faults():
    def refuse():
        raise CxrError("t.csv: no table")

    def warn():
        say("warning: odd")
        return 3

    assert call(refuse) == Seen(None, frozenset(["t.csv: no table"]))
    assert call(warn) == Seen(3, frozenset(["warning: odd"]))
    assert call(lambda: 1 // 0).fault.endswith("ZeroDivisionError: integer division or modulo by zero\n")


def test_a_silent_trial_fails_with_its_number_and_is_the_same_alone(monkeypatch):
    drawn, counted = [], []

    def trial(random):
        drawn.append(int(random.integers(1 << 30)))
        return Outcome(SILENT if len(drawn) == 3 else SAID), "done"

    monkeypatch.setattr(campaign, "FAULTS", 50)
    said = r"kind: 1 of 5 trials with FAULT_SEED=0[^\n]*\ntrial 2: SILENT: done"
    with pytest.raises(pytest.fail.Exception, match=said):
        run_trials("kind", 0.1, trial, lambda *pair: counted.append(pair))
    assert counted == [("faults", ["kind", {**dict.fromkeys(campaign.OUTCOMES, 0), SAID: 4, SILENT: 1}])]
    monkeypatch.setattr(campaign, "TRIAL", "2")
    run_trials("kind", 0.1, trial, lambda *pair: None)
    assert drawn[-1] == drawn[2]


@pytest.mark.parametrize("how", ["flip", "spoil"])
def test_damage_changes_bytes_and_leaves_the_time_as_it_was(tmp_path, how):
    path = tmp_path / "file"
    for seed in range(20):
        path.write_bytes(bytes(100))
        before = path.stat().st_mtime_ns
        said = damage(path, how, np.random.default_rng(seed))
        assert path.read_bytes() != bytes(100)
        assert path.stat().st_mtime_ns == before
        assert said.startswith("file: ")
