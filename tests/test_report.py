"""The report: self-contained, complete, escaped, the same bytes for the same numbers."""

import dataclasses
import itertools
import math
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from evaluations import NAMES, make_predictions, read_expected

from cxr_records.findings import FINDINGS
from cxr_records.trainers.evaluation import pages, plots
from cxr_records.trainers.evaluation.model_card import card
from cxr_records.trainers.evaluation.published import RESULTS, comparison
from cxr_records.trainers.evaluation.report import write_comparison, write_report
from cxr_records.trainers.evaluation.results import (
    Difference,
    Evaluation,
    Interval,
    PairedInterval,
    PrecisionRecallCurve,
    RunComparison,
)
from cxr_records.trainers.evaluation.summary import difference_lines, interval, number, table_lines

HISTORY = [
    {"epoch": e + 1.0, "loss": 0.5 / (e + 1), "val_loss": 0.4, "val_macro_auroc": 0.7, "learning_rate": 1e-3}
    for e in range(3)
]
# Elements without an end tag.
VOID = {"meta", "img", "br", "link", "wbr"}


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


@pytest.fixture(scope="module")
def evaluation() -> Evaluation:
    """Of three classes, of which Hernia has no positive image."""
    return read_expected("multilabel")


@pytest.fixture(scope="module")
def text(evaluation, tmp_path_factory) -> str:
    """A report with a thumbnail for the first mistake, and training curves."""
    pixels = {evaluation.mistakes[0].image_id: np.zeros((64, 64), np.uint8)}
    return written(
        evaluation, tmp_path_factory.mktemp("report") / "r.html", history=HISTORY, thumbnails=pixels
    )


def written(evaluation: Evaluation, path: Path, **options) -> str:
    write_report(evaluation, str(path), **options)
    return path.read_text()


def test_the_page_needs_nothing_else_and_everything_in_it_can_be_read_aloud(evaluation, text):
    shown, page = evaluation.mistakes[0].image_id, Page(text)

    assert not re.search(r"(?:https?:)?//(?!www\.w3\.org)[a-z]", re.sub(r"data:[^\"]*", "", text))
    assert page.all("script") == page.all("link") == []
    assert all(attributes["src"].startswith("data:image/png;base64,") for attributes in page.all("img"))
    assert all(attributes["alt"] for attributes in page.all("img"))
    assert len(page.all("img")) == sum(each.image_id == shown for each in evaluation.mistakes)
    for attributes in page.all("svg"):
        assert attributes.get("aria-label") or attributes.get("aria-hidden") == "true"
    assert all(attributes.get("scope") in ("row", "col") for attributes in page.all("th"))
    assert {"name": "viewport", "content": "width=device-width, initial-scale=1"} in page.all("meta")
    assert len(text) < 2_000_000


def test_every_class_is_there_with_its_numbers(evaluation, text):
    shown = "\n".join(Page(text).text)

    for name in NAMES:
        assert name in shown
        assert interval(evaluation.auroc[name]) in shown
        assert number(evaluation.calibration.classes[name].ece) in shown
    assert f"{evaluation.macro_auroc.value:.3f}" in shown
    for title in (
        "Classes", "ROC and precision-recall curves", "Operating points", "Calibration",
        "Decision curves", "Subgroups", "Mistakes at the operating points", "Published results", "Training",
        "Model card",
        "What was measured",
    ):  # fmt: skip
        assert f"\n{title}\n" in shown
    assert "\nofficial split\n" in shown
    assert "age 40-59" in shown
    assert "Hernia: no curve without both positives and negatives." in shown


def test_a_sentence_stands_whole(evaluation, text):
    shown = " ".join(" ".join(Page(text).text).split())

    assert "Task multilabel, test: 60 images of 30 patients." in shown
    assert "Thresholds of the largest Youden index, chosen on: validation. They are of the scores" in shown
    assert (
        "Undone first, exactly: what training did to the odds by how often it saw each class. Each class was "
        "calibrated by a line of its own, fitted on validation: calibrated logit = offset + slope × logit."
    ) in shown
    assert "20 draws of patients with replacement, seed 0; 2.5th and 97.5th percentile" in shown


def test_what_metadata_give_without_a_pixel_is_a_plain_sentence(evaluation, tmp_path, text):
    metadata, within = evaluation.baselines.metadata, evaluation.within_view
    shown = squeezed(text)
    over = " (2 of 3 classes: no Hernia)"

    assert (
        f"Metadata alone, without a pixel, reaches a macro AUROC{over} of {interval(metadata.macro_auroc)}; "
        f"the model reaches {interval(evaluation.macro_auroc)}, a difference of "
        f"{interval(metadata.macro_added, signed=True)}. Metadata here: view, sex, age and follow-up number, "
        "by a logistic regression fitted on the scored images, cross-fitted by patient in 5 folds; numbers "
        "of follow-ups: in the names of images."
    ) in shown
    assert (
        f"it has a macro AUROC{over} of {interval(within.macro_auroc)}, on the 60 images of known view"
        in shown
    )
    cells = [evaluation.auroc["Mass"], metadata.auroc["Mass"], evaluation.baselines.view.auroc["Mass"]]
    assert (
        f"Mass {interval(cells[0])} {interval(cells[1])} {interval(metadata.added['Mass'], signed=True)} "
        in shown
    )
    lines = table_lines(evaluation)
    added = interval(metadata.macro_added, signed=True)
    assert (
        f"metadata alone, without a pixel{over} {interval(metadata.macro_auroc)}; the model less that {added}"
    ) in lines
    assert f"within a view, PA or AP{over} {interval(within.macro_auroc)}" in lines
    unknown = dataclasses.replace(evaluation.baselines, metadata=None, view=None)
    without = squeezed(written(bare(evaluation, baselines=unknown), tmp_path / "r.html"))
    assert "Neither view, sex, age nor follow-up number is known of any image" in without


def test_what_the_areas_mean_if_labels_err_is_a_table(evaluation, tmp_path, text):
    shown = squeezed(text)
    mass = evaluation.label_noise.classes["Mass"]

    assert (
        "a true AUROC of 0.899 reads 0.827 on labels of 90% sensitivity and 99% specificity, if 5% of the"
        in shown
    )
    assert "class AUROC seen 99% / 99% 90% / 99% 80% / 95% as experts found them" in shown
    cells = [each.reason or number(each.value) for each in mass]
    assert (
        f"Mass {number(evaluation.auroc['Mass'].value)} {' '.join(cells)} (sensitivity 42%, PPV 56%)" in shown
    )
    assert "(Majkowska et al. 2020)" in shown
    drawn = dataclasses.replace(evaluation.identity, drawn="all")
    of_drawings = squeezed(written(bare(evaluation, identity=drawn), tmp_path / "d.html"))
    assert "If the labels err" in shown
    assert "If the labels err" not in of_drawings  # what is drawn is what is labelled
    assert "NIH's labels were read from radiology reports" in shown
    several = squeezed(written(bare(read_expected("multiclass")), tmp_path / "r.html"))
    assert "AUROC seen 99% / 99% 90% / 99% 80% / 95% Mass" in several
    assert "experts" not in several


def test_the_same_numbers_give_the_same_bytes(evaluation, tmp_path, text):
    pixels = {evaluation.mistakes[0].image_id: np.zeros((64, 64), np.uint8)}

    assert written(evaluation, tmp_path / "b.html", history=HISTORY, thumbnails=pixels) == text


def squeezed(page: str) -> str:
    return " ".join(" ".join(Page(page).text).split())


def test_a_mean_over_fewer_classes_says_so_wherever_it_stands(evaluation, tmp_path):
    history = [{**row, "val_auroc_Mass": 0.7, "val_auroc_Hernia": math.nan} for row in HISTORY]
    lacking = dataclasses.replace(evaluation, macro_lacks=("Edema", "Hernia"))  # of Edema there are no scores
    shown = squeezed(written(lacking, tmp_path / "r.html", history=history))

    over = "(2 of 4 classes: no Edema, Hernia)"
    assert "ranked right on average over 2 classes" in shown
    value = evaluation.macro_auroc.value
    assert f"{value:.3f} macro AUROC {over} (95% interval" in shown
    assert f"macro {over} {interval(evaluation.macro_auroc)}" in shown
    assert "mean (3 of 4 classes: no Edema)" in shown
    group = evaluation.subgroups[0]
    assert group.lacks == ("Hernia",)
    assert f"macro {interval(group.macro_auroc)} (2 of 4 classes)" in shown
    assert "Validation macro AUROC (1 of 2 classes: no Hernia)" in shown
    whole = dataclasses.replace(evaluation, macro_lacks=())
    assert "classes:" not in squeezed(written(bare(whole), tmp_path / "w.html", history=HISTORY))


def difference_of(evaluation: Evaluation, images: int) -> Difference:
    """Of two runs; the numbers are those of one."""
    changes = {
        name: PairedInterval(**vars(each), p=0.04, p_adjusted=0.08, undecided="so few of them")
        for name, each in {"": evaluation.macro_auroc, **evaluation.auroc}.items()
    }
    macro = changes.pop("")
    return Difference("runs/first", "runs/second", images, 60, macro, changes)


def test_a_mean_of_runs_over_fewer_classes_says_so(evaluation, tmp_path):
    difference = difference_of(evaluation, 9)
    second = dataclasses.replace(evaluation.identity, run="runs/second")
    compared = RunComparison((evaluation, dataclasses.replace(evaluation, identity=second)), (difference,))

    write_comparison(compared, str(tmp_path / "c.html"))

    shown, over = squeezed((tmp_path / "c.html").read_text()), "(2 of 3 classes: no Hernia)"
    assert (
        f"macro {interval(evaluation.macro_auroc)} {over} {interval(evaluation.macro_auroc)} {over}" in shown
    )
    alone = interval(evaluation.baselines.metadata.macro_auroc)
    assert f"metadata alone {alone} {alone}" in shown
    within = f"{interval(evaluation.within_view.macro_auroc)} {over}"
    assert f"within a view {within} {within}" in shown
    assert f"macro {over} {interval(evaluation.macro_auroc, signed=True)}" in shown
    assert f"second less runs/first: macro {over} " in "\n".join(difference_lines(compared))


def test_a_balanced_accuracy_over_fewer_classes_says_so(tmp_path):
    several = bare(read_expected("multiclass"))
    rows = ((0, 0, 0), *several.multiclass.confusion[1:])
    changed = dataclasses.replace(
        several, multiclass=dataclasses.replace(several.multiclass, confusion=rows), macro_lacks=("Mass",)
    )
    over = "(2 of 3 classes: no Mass)"

    shown = squeezed(written(changed, tmp_path / "r.html"))

    assert f"balanced accuracy {over}; " in shown
    assert f"Largest score: balanced accuracy {over} " in shown
    assert f"\nbalanced accuracy {over} 0." in "\n".join(table_lines(changed))


def bare(evaluation: Evaluation, **changes) -> Evaluation:
    """Without what takes long to draw."""
    curves = dict.fromkeys(evaluation.curves)
    return dataclasses.replace(
        evaluation, **{"calibration": None, "decisions": None, "curves": curves, **changes}
    )


def test_a_mean_without_interval_says_why_in_the_report_and_on_the_terminal(evaluation, tmp_path):
    reason = "only 31% of the draws hold every class"
    lacking = Interval(0.7123, no_interval=reason)
    changed = bare(evaluation, macro_auroc=lacking, macro_lacks=())

    shown = squeezed(written(changed, tmp_path / "r.html"))

    assert f"0.712 macro AUROC (95% interval: none, {reason})" in shown
    assert f"macro 0.712 (no interval: {reason})" in shown
    assert f"  0.712 (no interval: {reason})" in "\n".join(table_lines(changed))


def test_what_was_not_prior_corrected_is_said_in_the_report_and_on_the_terminal(tmp_path):
    several = bare(read_expected("multiclass"))
    changed = dataclasses.replace(
        several,
        multiclass=dataclasses.replace(
            several.multiclass,
            prior_corrected_balanced_accuracy=None,
            prior_corrected_confusion=None,
            not_prior_corrected="the loss weighted_ce has made the classes count alike",
        ),
    )

    page = Page(written(changed, tmp_path / "r.html"))

    said = "the loss weighted_ce has made the classes count alike"
    assert f"No prior-corrected matrix: {said}; to correct again would correct twice." in "".join(page.text)
    assert len([a for a in page.all("td") if "--share" in a.get("style", "")]) == 9
    assert f"; prior-corrected not computed: {said}" in "\n".join(table_lines(changed))


def test_a_group_whose_shares_differ_is_marked_and_comparisons_are_counted(evaluation, tmp_path):
    group = evaluation.subgroups[0]
    point = group.operating_points["Mass"]
    point = dataclasses.replace(
        point,
        sensitivity=Interval(0.987, 0.98, 0.99),
        specificity=Interval(0.012, 0.01, 0.02),
        few=(),
        differs=("sensitivity", "specificity"),
    )
    few = dataclasses.replace(point, few=("sensitivity", "specificity"), differs=())
    groups = (dataclasses.replace(group, operating_points={"Mass": point, "Nodule": few, "Hernia": few}),)
    changed = bare(evaluation, subgroups=groups)

    shown = squeezed(written(changed, tmp_path / "r.html"))

    assert "▲ 0.987 / ▼ 0.012" in shown
    assert "0.987* / 0.012*" in shown
    assert "2 such comparisons were made, 2 are marked; by chance alone some 0 would be." in shown
    assert "▲ 0.987" not in squeezed(written(bare(evaluation), tmp_path / "r.html"))


def test_a_class_that_was_not_calibrated_says_why(evaluation, tmp_path):
    mass = dataclasses.replace(evaluation.calibration.classes["Mass"], note="offset alone: for a reason")
    classes = {**evaluation.calibration.classes, "Mass": mass}
    fitted = dataclasses.replace(evaluation.calibration, classes=classes)
    unfitted = dataclasses.replace(evaluation.calibration, fitted_on=None, undone=())

    with_note = squeezed(written(bare(evaluation, calibration=fitted), tmp_path / "r.html"))
    without = squeezed(written(bare(evaluation, calibration=unfitted), tmp_path / "w.html"))

    for step in ("ECE of the scores", "ECE, training undone", "ECE, calibrated", "slope", "offset"):
        assert step in with_note
    assert f"{mass.slope:.2f} {mass.offset:.2f} offset alone: for a reason" in with_note
    assert "ECE, calibrated" not in without
    assert "No slope and offset: there are no validation scores to fit them on." in without


def test_a_class_of_which_nothing_was_judged_has_an_empty_picture(evaluation, tmp_path):
    mass = dataclasses.replace(
        evaluation.calibration.classes["Mass"],
        bins=(),
        bins_calibrated=None,
        ece=None,
        ece_raw=None,
        brier=None,
    )
    measured = dataclasses.replace(
        evaluation.calibration, classes={"Mass": dataclasses.replace(mass, ece_calibrated=None)}
    )

    shown = squeezed(written(bare(evaluation, calibration=measured), tmp_path / "r.html"))

    assert "Mass - - - - " in shown


def test_a_decision_curve_says_where_the_model_is_of_use(evaluation, tmp_path):
    useless = dataclasses.replace(evaluation.decisions["Mass"], model=(-0.1,) * 30)
    curves = {"Mass": useless, "Nodule": evaluation.decisions["Nodule"], "Hernia": None}

    shown = squeezed(written(bare(evaluation, decisions=curves), tmp_path / "r.html"))

    assert "Mass: nowhere above both: of no use at these thresholds" in shown
    low, high = evaluation.decisions["Nodule"].best_from_to
    assert f"Nodule: above both from {low:.2g} to {high:.2g}" in shown
    assert "Hernia: no curve without both positives and negatives." in shown
    assert "Probabilities calibrated by slope and offset." in shown


def test_what_a_stranger_named_is_escaped(evaluation, tmp_path):
    hostile = '<script>alert(1)</script>&"'
    identity = dataclasses.replace(evaluation.identity, name=hostile, run=hostile)
    changed = dataclasses.replace(evaluation, identity=identity, warnings=(hostile,))

    page = written(changed, tmp_path / "r.html")

    assert "<script" not in page
    assert hostile in "".join(Page(page).text)
    assert "alert(1)" in page


def test_published_results_are_beside_an_official_one_alone(evaluation, tmp_path):
    claim = dataclasses.replace(evaluation.split_claim, official=False)
    changed = bare(evaluation, split_claim=claim)
    comparable = bare(evaluation, comparison=comparison(True, "multilabel", FINDINGS))
    own = "".join(Page(written(changed, tmp_path / "a.html")).text)
    official = "".join(Page(written(comparable, tmp_path / "b.html")).text)

    assert "This result is not comparable with them" in own
    assert "not the official split" in own
    assert "this: first" not in own
    assert "this: first" in official
    for shown in (own, official):
        random = shown[shown.index("Not comparable") :]
        for result in RESULTS:
            assert (result.name in random) == (result.split == "random")


def test_a_confusion_matrix_for_several_classes(tmp_path):
    several = bare(read_expected("multiclass"))

    page = Page(written(several, tmp_path / "r.html"))

    assert "Confusion matrix" in page.text
    cells = [a for a in page.all("td") if "--share" in a.get("style", "")]
    assert len(cells) == 2 * 9
    assert f"{several.multiclass.balanced_accuracy.value:.3f}" in page.text
    assert "Leak: one leak." in page.text


def test_what_is_not_there_is_left_out_and_said(evaluation, tmp_path):
    page = written(bare(evaluation), tmp_path / "r.html")

    shown = "\n".join(Page(page).text)
    assert "Not measured: the scores are no probabilities." in shown
    assert "<h2>Training" not in page
    assert "No pictures: the images are not at hand." in shown
    flawless = squeezed(written(bare(evaluation, mistakes=()), tmp_path / "f.html"))
    assert "None: no class has an operating point at which an image is called wrongly." in flawless


# What a clinician reads first


def first_words(evaluation: Evaluation, tmp_path, **identity) -> str:
    changed = dataclasses.replace(evaluation, identity=dataclasses.replace(evaluation.identity, **identity))
    return squeezed(
        written(bare(changed), tmp_path / "r.html").split("</header>")[0] + "</header></main></body></html>"
    )


def test_the_first_paragraph_says_what_was_measured_on_whom_how_good_and_how_sure(evaluation, tmp_path):
    assert evaluation.macro_auroc == Interval(0.802368, 0.735705, 0.866832, 0.702832, 0.865499)
    shown = first_words(evaluation, tmp_path)

    assert (
        "Evaluation of 2026-01-31 : the model of this run on 60 chest X-rays of 30 patients. Of 100 pairs of "
        "one image with a finding and one without, 80 are ranked right on average over 2 classes; by chance "
        "it would be 50. With other patients of this kind it could as well be 74 to 87. Not for use on "
        "patients. These are scores for research."
    ) in shown
    assert "made-up" not in shown


def test_the_first_paragraph_fits_what_is_not_there(evaluation, tmp_path):
    undated = first_words(evaluation, tmp_path, date=None, run=None, patients=1)
    assert "first the scores of this table on 60 chest X-rays of 1 patient. Of 100" in undated
    assert "So few patients do not decide how good a model is." in undated
    assert "So few patients" not in first_words(evaluation, tmp_path)
    assert "So few patients" in first_words(evaluation, tmp_path, patients=15)
    without = dataclasses.replace(evaluation, macro_auroc=Interval(0.8))
    assert "How far chance has a part in it is not known: there is no interval." in first_words(
        without, tmp_path
    )
    unranked = dataclasses.replace(evaluation, macro_auroc=Interval(None))
    assert "no class has images both with it and without" in first_words(unranked, tmp_path)


@pytest.mark.parametrize("kind", ["multilabel", "multiclass"])
def test_headings_follow_each_other_in_order(kind, tmp_path):
    page = Page(written(read_expected(kind), tmp_path / "r.html", history=HISTORY))

    levels = [int(tag[1]) for tag, _ in page.elements if tag in ("h1", "h2", "h3", "h4")]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))


def test_the_model_card_tells_what_is_known_and_lists_what_is_not(evaluation, tmp_path):
    items = card(evaluation.identity, evaluation.split_claim, make_predictions())
    shown = squeezed(written(bare(evaluation, model_card=items), tmp_path / "r.html"))

    known, unknown = shown.split("Not known to this report")
    for item in items:
        assert (item.topic if item.known is None else item.known) in (
            unknown if item.known is None else known
        )
    assert "Ethics approval (TRIPOD+AI 17)" in unknown
    assert "Funding (TRIPOD+AI 18a; CLAIM 44)" in unknown
    assert "Comparison with radiologists (reader study) Effect in care" in unknown


# Pictures


def test_dots_bars_and_ticks_are_whole_and_on_the_scale(evaluation, text):
    bars = re.findall(
        r'<svg class="bar" viewBox="(\S+) 0 (\S+) 12" aria-hidden="true">(.*?)</svg>', text, re.DOTALL
    )

    assert len(bars) == 3  # Mass, Nodule, macro; Hernia has no interval
    for left, width, drawn in bars:
        left, width = float(left), float(width)
        ((x, radius),) = re.findall(r'<circle cx="(\S+)" cy="5" r="(\S+)"/>', drawn)
        assert left <= float(x) - float(radius)
        assert float(x) + float(radius) <= left + width
        assert all(left <= float(end) <= left + width for end in re.findall(r' x[12]="(\S+)"', drawn))
    (axis,) = re.findall(r'<svg class="bar axis".*?</svg>', text, re.DOTALL)
    assert re.findall(r">(\S+)</text>", axis) == ["0.5", "0.6", "0.7", "0.8", "0.9", "1"]
    assert re.findall(r'<text x="(\S+)"', axis) == ["0.0", "20.0", "40.0", "60.0", "80.0", "100.0"]
    assert '<span class="unseen">scale from 0.5 to 1</span>' in text


def test_a_dot_at_the_end_of_the_scale_is_whole(evaluation, tmp_path):
    best = Interval(1.0, 1.0, 1.0, 1.0, 1.0)
    changed = bare(evaluation, auroc=dict.fromkeys(evaluation.auroc, best))

    assert '<circle cx="100.0" cy="5" r="2.6"/>' in written(changed, tmp_path / "r.html")


def test_precision_is_drawn_in_steps_from_recall_0():
    curve = PrecisionRecallCurve(recall=(0.25, 0.5, 1.0), precision=(1.0, 0.4, 0.5))

    picture = plots.precision_recall(curve, 0.3, "label")

    path = max(re.findall(r' d="([^"]*)"', picture), key=lambda d: d.count("L"))
    points = [tuple(map(float, pair)) for pair in re.findall(r"[ML] (\S+) (\S+)", path)]
    points = [point for point, _ in itertools.groupby(points)]
    for (x, y), (to_x, to_y) in itertools.pairwise(points):
        assert (x == to_x) != (y == to_y)  # along one axis only
    xs, ys = zip(*points, strict=True)
    places = (np.array([0, 0.25, 0.25, 0.5, 0.5, 1]), np.array([1, 1, 0.4, 0.4, 0.5, 0.5]))
    for drawn, meant in zip((xs, ys), places, strict=True):
        slope = (drawn[-1] - drawn[0]) / (meant[-1] - meant[0])
        np.testing.assert_allclose(np.array(drawn) - drawn[0], slope * (meant - meant[0]), atol=0.2)


@pytest.mark.parametrize("scheme", ["light", "dark", "print"])
def test_text_has_the_contrast_that_accessibility_asks_for(scheme):
    """WCAG 2.2, 1.4.3: 4.5 to 1."""
    css = (Path(pages.__file__).parent / "report.css").read_text()
    marks = {"light": ":root {", "dark": "(prefers-color-scheme: dark) {", "print": "@media print {"}
    block = css[css.index(marks[scheme]) :]
    colours = dict(
        re.findall(r"--(\w+): (#\w+)", block[: block.index(";\n  }" if scheme != "light" else ";\n}") + 1])
    )

    def luminance(colour: str) -> float:
        digits = colour[1:] if len(colour) == 7 else "".join(2 * digit for digit in colour[1:])
        shares = [int(digits[place : place + 2], 16) / 255 for place in (0, 2, 4)]
        linear = [s / 12.92 if s <= 0.04045 else ((s + 0.055) / 1.055) ** 2.4 for s in shares]
        return float(np.dot(linear, (0.2126, 0.7152, 0.0722)))

    for text_colour, ground in (
        *((name, "ground") for name in ("text", "quiet", "problem", "good")),
        ("text", "drawn"),
    ):
        low, high = sorted((luminance(colours[text_colour]), luminance(colours[ground])))
        assert (high + 0.05) / (low + 0.05) >= 4.5, (text_colour, ground)


def test_lines_break_behind_the_parts_of_names_alone(evaluation, text):
    assert (
        "<td>sha256 1111111111111111<wbr>1111111111111111<wbr>1111111111111111<wbr>1111111111111111</td>"
        in text
    )
    broken = pages.breakable("s3://bucket/runs/first_try-2 of small_cnn")
    assert broken.split("<wbr>") == ["s3://", "bucket/", "runs/", "first_", "try-", "2 of small_cnn"]
    assert pages.breakable("<b>") == "&lt;b&gt;"


def test_words_in_a_cell_may_go_on_in_the_next_line_and_numbers_may_not(evaluation, tmp_path):
    reason = Interval(0.8, no_interval="only 45% of the draws hold every class")
    page = written(bare(evaluation, macro_auroc=reason), tmp_path / "r.html")

    assert f'<td class="long">{interval(reason)}</td>' in page
    assert f"<td>{interval(evaluation.auroc['Mass'])}</td>" in page


@pytest.mark.parametrize(
    ("start", "end", "expected"),
    [
        (0.5, 1, ["0.5", "0.6", "0.7", "0.8", "0.9", "1"]),
        (0.4, 1, ["0.4", "0.6", "0.8", "1"]),
        (0.3, 1, ["0.4", "0.6", "0.8", "1"]),
        (0.0, 1, ["0", "0.2", "0.4", "0.6", "0.8", "1"]),
        (-0.02, 0.02, ["-0.02", "-0.01", "0", "0.01", "0.02"]),
        (-0.3, 0.3, ["-0.2", "0", "0.2"]),
    ],
)
def test_ticks_are_round_numbers(start, end, expected):
    assert [pages.tick_text(tick) for tick in pages.ticks(start, end)] == expected
    assert pages.tick_text(0.02, signed=True) == "+0.02"


def test_runs_side_by_side(evaluation, tmp_path):
    other = dataclasses.replace(
        evaluation, identity=dataclasses.replace(evaluation.identity, run="runs/second", name="second")
    )
    difference = difference_of(evaluation, 120)
    compared = RunComparison((evaluation, other), (difference,))

    write_comparison(compared, str(tmp_path / "c.html"), {"runs/first": HISTORY, "runs/second": HISTORY})

    shown = "\n".join(Page((tmp_path / "c.html").read_text()).text)
    assert "Comparison of first, second" in shown
    assert "second less first" in shown
    assert interval(evaluation.macro_auroc, signed=True) in shown
    assert "On the 120 images of 60 patients that both scored" in shown
    assert "3 comparisons of classes in 1 pair of runs: p-values" in shown
    assert shown.count("not decided: so few of them") == 4
    assert "0.040\n0.080" in shown.replace("\n\n", "\n") or "0.0400.080" in shown.replace("\n", "")
