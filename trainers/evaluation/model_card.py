"""A model card: what a reader of TRIPOD+AI and CLAIM asks for, filled in where it is known, listed where not.

Numbers of items are those of TRIPOD+AI (Collins et al., BMJ 2024;385:e078378) and of the 2024 update of CLAIM
(Tejani et al., Radiology: Artificial Intelligence 2024;6(4):e240300). The words are ours.
"""

import io
import zipfile
from collections.abc import Iterator

import numpy as np

from cxr_records import drawings, storage
from cxr_records.balancing import CLASS_BALANCED
from cxr_records.dataset import Dataset
from cxr_records.errors import CxrError
from cxr_records.images import ImageFormat
from cxr_records.manifest import Manifest
from cxr_records.trainers import runs
from cxr_records.trainers.config import TrainConfig
from cxr_records.trainers.evaluation.predictions import Predictions
from cxr_records.trainers.evaluation.results import CardItem, Identity, SplitClaim

# Dialects of `metadata.Metadata` that are NIH's own.
_NIH = ("2017", "v2020", "kaggle sample")
_INTENDED = (
    "Research on methods, and teaching. Not for diagnosis, triage or any other decision about a patient: "
    "nothing here shows that the scores help in care."
)
_LABELS = (
    "Findings that a program read from radiologists' reports (text mining, Wang et al. 2017), not from the "
    "images. Where radiologists have read such images anew, many labels were wrong (Oakden-Rayner 2020). No "
    "Finding means that the report named none of the 14."
)
_LIMITATIONS = (
    "Frontal images only; labels by text mining; several images of one patient, which the intervals allow "
    "for. Views, sexes and ages differ between findings, so a model can score by these instead of the "
    "finding (see Subgroups)."
)
_LIMITATIONS_OF_OTHERS = (
    "What the labels and the images leave out is known to whoever gave them. Several images of one patient, "
    "which the intervals allow for where patients are known. Views, sexes and ages differ between findings, "
    "so a model can score by these instead of the finding (see Subgroups)."
)
_MISSING = (
    "An unknown view, sex or age stays unknown and is in no subgroup of it; images without scores, and files "
    "that cannot be decoded, take no part and are counted."
)

_Row = tuple[str, str, str, str | None]  # topic, items of TRIPOD+AI, items of CLAIM, what is known


def card(
    identity: Identity,
    claim: SplitClaim,
    scored: Predictions,
    run: runs.Run | None = None,
    dataset: Dataset | None = None,
) -> tuple[CardItem, ...]:
    """Returns the items of a model card.

    Args:
        identity: what was measured.
        claim: which images were scored.
        scored: the scores.
        run: that trained the model; None for a table of scores.
        dataset: the run's, where it is at hand.
    """
    manifest = dataset.manifest if run and dataset else None
    rows = (
        *_study(identity, run),
        *_data(identity, claim, scored, run, manifest),
        *_model(run, manifest),
        *_measures(identity, run),
        *_unknown(),
    )
    return tuple(
        CardItem(topic, tripod_ai, claim_items, known) for topic, tripod_ai, claim_items, known in rows
    )


def _study(identity: Identity, run: runs.Run | None) -> Iterator[_Row]:
    what = f"Evaluation of the scores in {identity.name}, whose model is not known"
    if run:
        what = f"Development and evaluation of a neural network ({run.config.model}) that scores chest X-rays"
    yield "Kind of study", "1, 4", "1, 5, 6", f"{what}; task {identity.task}; retrospective."
    yield "Intended use", "3b", "3", _INTENDED


def _data(
    identity: Identity,
    claim: SplitClaim,
    scored: Predictions,
    run: runs.Run | None,
    manifest: Manifest | None,
) -> Iterator[_Row]:
    dialect = identity.table.dialect if identity.table else ""
    drawn, of_nih = identity.drawn == drawings.ALL, dialect in _NIH and identity.drawn == drawings.NONE

    def known(text: str, of_drawings: str = "None: the images are drawn.") -> str | None:
        """What holds of NIH's images alone, and what is said of drawings instead."""
        return text if of_nih else of_drawings if drawn else None

    source = known(
        "NIH ChestX-ray14 (Wang et al., CVPR 2017): frontal chest X-rays of one hospital, the NIH Clinical "
        f"Center, Bethesda; by the table of images, which has its form {dialect}.",
        "Images drawn by cxr_records (look-alike set) in the form of NIH ChestX-ray14; of no patient.",
    )
    yield "Data source and setting", "5a, 6a", "7", source
    yield "Dates of the data", "5b", "", known("1992 to 2015, as NIH gives them.")
    yield "Which images take part", "6b", "8, 10", _left_out(manifest) if manifest else None
    views = _shares("view", scored.views)
    devices = known(f"Frontal, {views or 'view not known'}; devices and settings are not known.")
    yield "How images were taken", "", "13", devices
    yield "De-identification", "", "11", known("By NIH, before release.")
    yield "Preparation of images", "7, 9b", "9", _preparation(run.image_format) if run else None
    yield "Missing data", "11", "12", _MISSING
    reference = known(_LABELS, "The findings that were drawn.")
    if identity.labels:
        reference = (
            f"The labels of {identity.labels.file}, which are not NIH's; how they were come by is not known."
        )
    yield "Reference standard", "8a, 8b, 8c", "14, 15, 16, 17", reference
    yield "Predictors", "9a", "", "The pixels of one image; nothing else of the patient." if run else None
    yield "Sample size", "10", "21", f"No calculation: all images at hand. {_counts(identity, manifest)}"
    yield "Parts of the data, and by what they are disjoint", "12a", "19, 20", _parts(claim, manifest)
    yield "Patients of the scored images", "20a, 20b", "35, 36", _patients(identity, scored)


def _model(run: runs.Run | None, manifest: Manifest | None) -> Iterator[_Row]:
    answers = _of_run(run, manifest) if run else {}
    for topic, tripod_ai, claim_items in (
        ("Model output", "15", ""),
        ("Model", "12c, 22", "22"),
        ("Software", "", "23"),
        ("First weights", "", "24"),
        ("Training", "12c", "25"),
        ("Selection of the final model", "12c", "26"),
        ("Class imbalance", "13", ""),
    ):
        yield topic, tripod_ai, claim_items, answers.get(topic)


def _of_run(run: runs.Run, manifest: Manifest | None) -> dict[str, str]:
    """What a run tells of its model, by topic."""
    return {
        "Model output": f"Probabilities of {', '.join(run.score_names)}. Thresholds: see Operating points.",
        "Model": _architecture(run),
        "Software": ", ".join(f"{name} {version}" for name, version in run.versions.items()) + ".",
        "First weights": _first_weights(run.config),
        "Training": _training(run.config),
        "Selection of the final model": _selection(run),
        "Class imbalance": _imbalance(run, manifest),
    }


def _measures(identity: Identity, run: runs.Run | None) -> Iterator[_Row]:
    uncertainty = (
        f"{identity.draws:,} draws of patients with replacement, seed {identity.seed}: 95% intervals"
    )
    yield (
        "Measures and their uncertainty", "12e, 12g", "28, 29",
        "AUROC, AUPRC, sensitivity, specificity, predictive values, calibration; "
        + (uncertainty if identity.draws else "no intervals were asked for") + ".",
    )  # fmt: skip
    yield "Results", "23a", "32, 37, 38", "See Classes, Operating points and Calibration."
    yield "Fairness, and differences between groups", "14, 23b", "30", "By view, sex and age: see Subgroups."
    yield "Analysis of errors", "", "39", "See Mistakes at the operating points."
    limits = _LIMITATIONS_OF_OTHERS if identity.labels else _LIMITATIONS
    if identity.drawn == drawings.ALL:
        limits = "The images are drawn: nothing here holds of patients."
    yield "Limitations", "26", "40", limits
    version = run.versions.get("cxr_records") if run else None
    shared = f"Dataset id {identity.dataset_id}" if identity.dataset_id else None
    yield (
        "Data, for others to use",
        "18e",
        "43",
        shared and f"{shared}: made again from the same images and table.",
    )
    yield "Code, for others to use", "18f", "43", version and f"cxr_records {version}, Apache License 2.0."


def _unknown() -> Iterator[_Row]:
    """What no run and no table tells."""
    yield "Known inequalities in health", "3c", "", None
    yield "Agreement between readers of the images", "8b", "18", None
    yield "External validation: images of other hospitals", "16", "33", None
    yield "Comparison with radiologists (reader study)", "", "", None
    yield "Effect in care, and what users must know", "27a, 27b, 27c", "41", None
    yield "Ethics approval", "17", "", None
    yield "Funding", "18a", "44", None
    yield "Conflicts of interest", "18b", "", None
    yield "Study protocol and registration", "18c, 18d", "34, 42", None
    yield "Involvement of patients and the public", "19", "", None


def _preparation(image: ImageFormat) -> str:
    return (
        f"8-bit grey, {image.size} x {image.size} pixels ({image.resample}), stored as {image.codec}; the "
        "model subtracts the mean and divides by the standard deviation of the training pixels."
    )


def _left_out(manifest: Manifest) -> str:
    images = sum(split.images for split in manifest.splits.values())
    reasons = ", ".join(f"{reason} {count:,}" for reason, count in manifest.left_out.items())
    return f"{images:,} of the {manifest.table.images:,} images of the table; left out: {reasons or 'none'}."


def _counts(identity: Identity, manifest: Manifest | None) -> str:
    scored = f"Scored: {identity.images:,} images of {identity.patients:,} patients"
    if not manifest:
        return f"{scored}."
    splits = ", ".join(
        f"{name} {split.images:,} images of {split.patients:,} patients"
        for name, split in manifest.splits.items()
    )
    return f"The dataset: {splits}. {scored}."


def _parts(claim: SplitClaim, manifest: Manifest | None) -> str:
    if not manifest:
        return f"Scored: {claim.text}."
    return f"Scored: {claim.text}. No patient is in two parts."


def _patients(identity: Identity, scored: Predictions) -> str:
    """Numbers, sexes, ages and views of the scored images."""
    ages = scored.ages_years[scored.ages_years >= 0]
    told = [_shares("view", scored.views), _shares("sex", scored.sexes)]
    if len(ages):
        low, middle, high = np.percentile(ages, (25, 50, 75))
        told.append(f"age {middle:.0f} years (middle half {low:.0f} to {high:.0f})")
    described = "; ".join(text for text in told if text)
    counted = f"{identity.images:,} images of {identity.patients:,} patients"
    return f"{counted}; by image: {described}." if described else f"{counted}."


def _shares(what: str, values: np.ndarray) -> str:
    """Shares of the images, such as "view AP 45%, PA 55%"; "" where none is known."""
    names, counts = np.unique(values[values != ""].astype(str), return_counts=True)
    shares = [f"{name} {100 * count / len(values):.0f}%" for name, count in zip(names, counts, strict=True)]
    return f"{what} {', '.join(shares)}" if shares else ""


def _architecture(run: runs.Run) -> str:
    weights = _num_weights(run)
    count = f", {weights:,} weights" if weights else ""
    size = run.image_format.size
    return f"{run.config.model}{count}; takes one grey image of {size} x {size} pixels."


def _num_weights(run: runs.Run) -> int | None:
    """Numbers that the model holds, from its checkpoint; None where there is none that can be read."""
    try:
        data = storage.read_bytes(run.file(runs.BEST_FILE))
        with np.load(io.BytesIO(data), allow_pickle=False) as file:
            return sum(int(file[name].size) for name in file.files if name.startswith("model/"))
    except (CxrError, OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile):
        return None


def _first_weights(config: TrainConfig) -> str:
    known = {"none": f"Random, seed {config.seed}.", "imagenet": "Trained on ImageNet."}
    return known.get(config.weights, f"From {config.weights}.")


def _training(config: TrainConfig) -> str:
    settings = ", ".join(
        f"{name} {value}"
        for name, value in config.to_json().items()
        if name not in ("model", "weights", "checkpoint_minutes", "loss_options") and value != ""
    )
    options = "".join(f", {name} {value:g}" for name, value in config.loss_options.items())
    return f"AdamW; {settings}{options}."


def _selection(run: runs.Run) -> str:
    how, config = run.selection.text, run.config
    if not how:  # as runs of before
        how = "the epoch of the largest macro AUROC on the validation split (without one the last)"
    stop = f"; training ends {config.patience} epochs after it" if config.patience else ""
    average = f"; its weights are a running average ({config.ema:g})" if config.ema else ""
    return f"{how[0].upper()}{how[1:]}{stop}{average}."


def _imbalance(run: runs.Run, manifest: Manifest | None) -> str:
    copies = run.train_records - run.train_images
    rule = f" by the rule {manifest.config.copies.rule}" if manifest and copies else ""
    drawn = "; records drawn so that all classes come as often" * (run.config.sampling == CLASS_BALANCED)
    anew = "; last layer trained anew by class-balanced sampling" * (run.config.retrain_epochs > 0)
    return (
        f"Loss {run.config.loss}; {copies:,} augmented copies of images with rare findings in training{rule}"
        f"{drawn}{anew}."
    )
