"""What may be claimed of a result: which images were scored, and whether the model has seen them before."""

import csv
import io
from collections.abc import Sequence

import pyarrow.compute as pc

from cxr_records.dataset import Dataset
from cxr_records.layout import LEFT_OUT_FILE
from cxr_records.names import ImageNames
from cxr_records.splits import OFFICIAL_TEST, TEST, TRAIN, VALIDATION, list_digest
from cxr_records.trainers.evaluation.predictions import Predictions
from cxr_records.trainers.evaluation.published import RANDOM_SPLIT_SIZES
from cxr_records.trainers.evaluation.results import SplitClaim

OFFICIAL_TEST_IMAGES = 25_596
_TOLD = 3  # pairs of a leak that are named


def claim_of_run(dataset: Dataset, split: str) -> SplitClaim:
    """Tells whether a run's test split is NIH's own, by its images and not by its name.

    Those images count too that the dataset's task leaves out.
    """
    origin = dataset.manifest.split_origin
    names = _images_of(dataset, split)
    digest = list_digest(names)
    sizes = tuple(info.images for info in dataset.splits.values())
    if split == TEST and origin.official and digest == OFFICIAL_TEST:
        text = (
            f"all {OFFICIAL_TEST_IMAGES:,} images of NIH's official test split; trained on official train_val"
        )
        return SplitClaim(True, text, digest)
    if sizes == RANDOM_SPLIT_SIZES or len(names) == RANDOM_SPLIT_SIZES[2]:
        text = _random_split(len(names))
    elif split == TEST and origin.official:
        text = f"{len(names):,} of the {OFFICIAL_TEST_IMAGES:,} images of NIH's official test split, a part"
    elif split == TEST:
        text = f"a test split that is not NIH's official one: {origin.text}"
    else:
        text = f"the split {split}, on which settings are chosen: {origin.text}"
    return SplitClaim(False, text, digest)


def claim_of_table(image_ids: Sequence[str], test_list: Sequence[str] | None) -> SplitClaim:
    """The same of a table of scores, of which nobody knows what its model was trained on.

    Args:
        image_ids: that are scored.
        test_list: the list that chose them, if any.
    """
    digest, count = list_digest(list(image_ids)), len(image_ids)
    if digest == OFFICIAL_TEST:
        text = f"all {count:,} images of NIH's official test list; the training images are unknown"
        return SplitClaim(True, text, digest)
    if count == RANDOM_SPLIT_SIZES[2]:
        text = _random_split(count)
    elif test_list is not None and list_digest(list(test_list)) == OFFICIAL_TEST:
        text = f"{count:,} of the {OFFICIAL_TEST_IMAGES:,} images of NIH's official test list, a part"
    else:
        text = f"{count:,} images, not the {OFFICIAL_TEST_IMAGES:,} of NIH's official test list"
    return SplitClaim(False, text, digest)


def claim_of_labels(file: str, images: int) -> SplitClaim:
    """The same of images whose labels are not NIH's: whichever they are, it is no official result."""
    return SplitClaim(False, f"{images:,} images with the labels of {file}, which are not NIH's", None)


def find_leaks(dataset: Dataset, scored: Predictions) -> tuple[str, ...]:
    """Looks for scored images and patients among the training records of a dataset; a line for each kind.

    An image is a leak too where the same picture, under another name, is in the dataset's training or
    validation split; for images of the validation split themselves, in the training split.
    """
    table = dataset.records.filter(pc.field("split") == TRAIN)
    trained_images = ImageNames(map(str, table["image_id"].to_pylist()))
    trained_patients = set(table["patient_id"].to_pylist())
    images = [image for image in scored.image_ids if trained_images.find(image) is not None]
    patients = sorted({int(patient) for patient in scored.patient_ids if patient in trained_patients})
    leaks = []
    if images:
        leaks.append(
            f"{len(images):,} of {len(scored.image_ids):,} scored images are among the training records of "
            f"{dataset.path} (first: {images[0]})"
        )
    if patients:
        leaks.append(
            f"{len(patients):,} patients of the scored images are in the training split of {dataset.path} "
            f"(first: {patients[0]})"
        )
    if twins := _seen_twins(dataset, scored):
        told = ", ".join(f"{image}, which is {twin} of {split}" for image, (twin, split) in twins[:_TOLD])
        more = f" and {len(twins) - _TOLD:,} more" if len(twins) > _TOLD else ""
        leaks.append(
            f"{len(twins):,} of {len(scored.image_ids):,} scored images are the same picture as one that "
            f"{dataset.path} trained or chose settings on ({told}{more})"
        )
    return tuple(leaks)


def _seen_twins(dataset: Dataset, scored: Predictions) -> list[tuple[str, tuple[str, str]]]:
    """(scored image, (its twin, the twin's split)) of each scored image that was seen under another name."""
    twins = dict[str, tuple[str, str]]()
    for same in dataset.manifest.duplicates:
        split_of = dict(zip(same.images, same.splits, strict=True))
        for image, own in split_of.items():
            for twin, split in split_of.items():
                if twin != image and split in (TRAIN, VALIDATION) and split != own:
                    twins.setdefault(image, (twin, split))
    return [(image, twins[image]) for image in map(str, scored.image_ids) if image in twins]


def _random_split(count: int) -> str:
    return (
        f"{count:,} images, as many as in CheXNet's random split "
        f"({' / '.join(f'{size:,}' for size in RANDOM_SPLIT_SIZES)}), which is not NIH's official one"
    )


def _images_of(dataset: Dataset, split: str) -> list[str]:
    """The images of a split, with those that the dataset's task leaves out."""
    names = {str(name) for name in dataset.records.filter(pc.field("split") == split)["image_id"].to_pylist()}
    text = dataset.side_file(LEFT_OUT_FILE).decode()
    for row in csv.DictReader(io.StringIO(text)):
        if row["split"] == split and row["reason"] == "left out by the task":
            names.add(row["image_id"])
    return sorted(names)
