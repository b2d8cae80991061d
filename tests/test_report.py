"""The report: self-contained, complete, escaped, the same bytes for the same numbers."""

import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from cxr_records.findings import FINDINGS
from cxr_records.trainers.evaluation.evaluate import evaluate
from cxr_records.trainers.evaluation.predictions import Predictions
from cxr_records.trainers.evaluation.published import RESULTS, comparison
from cxr_records.trainers.evaluation.report import write_comparison, write_report
from cxr_records.trainers.evaluation.summary import interval, number

HISTORY = [
    {"epoch": e + 1.0, "loss": 0.5 / (e + 1), "val_loss": 0.4, "val_macro_auroc": 0.7, "learning_rate": 1e-3}
    for e in range(3)
]
# Elements without an end tag.
VOID = {"meta", "img", "br", "link"}


class Page(HTMLParser):
    """Collects elements and text, and checks that elements are closed in order."""

    def __init__(self, text: str):
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict]] = []
        self.text, self._open = [], []
        self.feed(text)
        assert self._open == []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text.append(data)

    def all(self, tag: str) -> list[dict]:
        return [attributes for name, attributes in self.elements if name == tag]


def made(kind: str = "multilabel", names: tuple[str, ...] = FINDINGS, n: int = 120, official: bool = False):
    random = np.random.default_rng(0)
    labels = random.integers(0, 2, (n, len(names)))
    scores = np.clip(0.6 * labels + random.random((n, len(names))) * 0.5, 0.01, 0.99)
    if kind == "multiclass":
        labels = np.eye(len(names), dtype=int)[random.integers(0, len(names), n)]
        scores = random.dirichlet(np.ones(len(names)), n) + labels
        scores /= scores.sum(axis=1, keepdims=True)
    scored = Predictions(
        kind=kind,
        names=names,
        split="test",
        image_ids=np.array([f"{i:08d}_000.png" for i in range(n)], object),
        patient_ids=np.arange(n) // 2,
        views=np.where(np.arange(n) % 3, "PA", "AP").astype(object),
        sexes=np.where(np.arange(n) % 2, "M", "F").astype(object),
        ages_years=np.arange(n) % 95,
        labels=labels,
        scores=scores,
        mean_scores=scores.mean(axis=0),
    )
    identity = {
        "name": "first", "run": "runs/first", "dataset": "cxr14", "dataset_id": "abc", "model": "small_cnn",
        "task": kind, "kind": kind, "split": "test", "images": n, "patients": n // 2, "draws": 30, "seed": 0,
        "table": {"dialect": "v2020", "sha256": "0" * 64}, "predictions_sha256": "1" * 64,
        "versions": {"keras": "3.5"},
    }  # fmt: skip
    claim = {"official": official, "text": "a split of ours", "list_sha256": "2" * 64}
    head = {"identity": identity, "split_claim": claim, "leaks": []}
    return head | {"comparison": comparison(official, kind)} | evaluate(scored, scored, None, 30, 0)


@pytest.fixture(scope="module")
def metrics() -> dict:
    return made()


def written(metrics: dict, path: Path, **options) -> str:
    write_report(metrics, str(path), **options)
    return path.read_text()


def test_the_page_needs_nothing_else_and_everything_in_it_can_be_read_aloud(metrics, tmp_path):
    shown = metrics["mistakes"][0]["image_id"]
    text = written(
        metrics, tmp_path / "r.html", history=HISTORY, thumbnails={shown: np.zeros((64, 64), np.uint8)}
    )
    page = Page(text)

    assert not re.search(r"(?:https?:)?//(?!www\.w3\.org)[a-z]", re.sub(r"data:[^\"]*", "", text))
    assert page.all("script") == page.all("link") == []
    assert all(attributes["src"].startswith("data:image/png;base64,") for attributes in page.all("img"))
    assert all(attributes["alt"] for attributes in page.all("img"))
    assert len(page.all("img")) == sum(held["image_id"] == shown for held in metrics["mistakes"])
    for attributes in page.all("svg"):
        assert attributes.get("aria-label") or attributes.get("aria-hidden") == "true"
    assert all(attributes.get("scope") in ("row", "col") for attributes in page.all("th"))
    assert {"name": "viewport", "content": "width=device-width, initial-scale=1"} in page.all("meta")
    assert len(text) < 2_000_000


def test_every_class_is_there_with_its_numbers(metrics, tmp_path):
    text = "\n".join(Page(written(metrics, tmp_path / "r.html", history=HISTORY)).text)

    for name in FINDINGS:
        assert name in text
        assert interval(metrics["auroc"][name]) in text
        assert number(metrics["calibration"]["classes"][name]["ece"]) in text
    assert f"{metrics['macro_auroc']['value']:.3f}" in text
    for title in (
        "Classes", "ROC and precision-recall curves", "Operating points", "Calibration", "Subgroups",
        "Highest-scoring mistakes", "Published results", "Training", "What was measured",
    ):  # fmt: skip
        assert f"\n{title}\n" in text
    assert "not the official split" in text
    assert "age 80 and over" in text


def test_the_same_numbers_give_the_same_bytes(metrics, tmp_path):
    one = written(metrics, tmp_path / "a.html", history=HISTORY)

    assert written(metrics, tmp_path / "b.html", history=HISTORY) == one


def test_what_a_stranger_named_is_escaped(metrics, tmp_path):
    hostile = '<script>alert(1)</script>&"'
    changed = {**metrics, "identity": {**metrics["identity"], "name": hostile, "run": hostile}}
    changed["warnings"] = [hostile]

    text = written(changed, tmp_path / "r.html")

    assert "<script" not in text
    assert hostile in "".join(Page(text).text)


def test_published_results_are_beside_an_official_one_alone(metrics, tmp_path):
    own = "".join(Page(written(metrics, tmp_path / "a.html")).text)
    official = "".join(Page(written(made(official=True), tmp_path / "b.html")).text)

    assert "This result is not comparable with them" in own
    assert "this: first" not in own
    assert "this: first" in official
    for text in (own, official):
        random = text[text.index("Not comparable") :]
        for result in RESULTS:
            assert (result.name in random) == (result.split == "random")


def test_a_confusion_matrix_for_several_classes(tmp_path):
    metrics = made("multiclass", ("Mass", "Nodule", "Hernia"))

    text = written(metrics, tmp_path / "r.html")

    page = Page(text)
    assert "Confusion matrix" in page.text
    cells = [a for a in page.all("td") if "--share" in a.get("style", "")]
    assert len(cells) == 2 * 9
    assert f"{metrics['multiclass']['balanced_accuracy']['value']:.3f}" in page.text


def test_what_is_not_there_is_left_out_and_said(metrics, tmp_path):
    changed = {**metrics, "calibration": None, "curves": {**metrics["curves"], "Hernia": None}}

    text = "\n".join(Page(written(changed, tmp_path / "r.html")).text)

    assert "Not measured: the scores are no probabilities." in text
    assert "Hernia: no curve without both positives and negatives." in text
    assert "\nTraining\n" not in text
    assert "No pictures: the images are not at hand." in text


def test_runs_side_by_side(metrics, tmp_path):
    other = {**metrics, "identity": {**metrics["identity"], "run": "runs/second", "name": "second"}}
    difference = {
        "a": "runs/first", "b": "runs/second", "images": 120, "macro_auroc": metrics["macro_auroc"],
        "auroc": metrics["auroc"],
    }  # fmt: skip
    compared = {"runs": [metrics, other], "differences": [difference]}

    write_comparison(compared, str(tmp_path / "c.html"), {"runs/first": HISTORY, "runs/second": HISTORY})

    text = "\n".join(Page((tmp_path / "c.html").read_text()).text)
    assert "Comparison of first, second" in text
    assert "second less first" in text
    assert interval(metrics["macro_auroc"], signed=True) in text
