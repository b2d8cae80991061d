"""How well the splits are balanced, and how little a correction of the table moves.

    python benchmarks/bench_splits.py --metadata Data_Entry_2017_v2020.csv \\
        --train-val-list train_val_list.txt --test-list test_list.txt --corrected Data_Entry_2017.csv

For each seed: images of the validation split; the lowest and highest ratio of a finding's share of validation
to its share of train, the same for No Finding, for AP views and for patients; seconds. Then how many images
change sides, as mean and most over the trials, in images and in percent of validation: after one label or 181
labels more (any finding, on any image of train_val), and after 100 patients less. With --corrected, another
table of the same images, how many change sides in the unofficial split when that table is split instead.
Without --metadata a look-alike population of 20,000 images is made up.
"""

import argparse
import dataclasses
import time

import numpy as np

from cxr_records.findings import FINDINGS, parse_findings
from cxr_records.metadata import Metadata, read_metadata
from cxr_records.splits import TEST, TRAIN, VALIDATION, SplitOptions, make_splits


def made_up(count: int) -> Metadata:
    """A population with NIH's shares and numbers of images per patient."""
    import pandas as pd

    from cxr_records.lookalike_patients import plan_images

    images = plan_images(count, seed=0)
    columns = {"image_id": "image_id", "patient_id": "patient", "view": "view"}
    table = pd.DataFrame({name: [getattr(image, of) for image in images] for name, of in columns.items()})
    findings = [parse_findings("|".join(image.findings) or "No Finding") for image in images]
    return Metadata(table, np.stack(findings), "other", "")


def balance(metadata: Metadata, of_image: np.ndarray) -> str:
    """One line of ratios of validation to train."""
    validation, train = (np.flatnonzero(of_image == split) for split in (VALIDATION, TRAIN))

    def ratio(column: np.ndarray) -> float:
        return column[validation].mean() / column[train].mean()

    findings = {name: ratio(metadata.findings[:, place]) for place, name in enumerate(FINDINGS)}
    low, high = min(findings, key=findings.get), max(findings, key=findings.get)
    none, views = ~metadata.findings.any(axis=1), metadata.table["view"].to_numpy() == "AP"
    patients = metadata.table["patient_id"].to_numpy()
    share = len(set(patients[validation])) / len(set(patients[np.concatenate([validation, train])]))
    return (
        f"{len(validation):,} images; findings {findings[low]:.3f} ({low}) to {findings[high]:.3f} ({high}), "
        f"No Finding {ratio(none):.3f}, AP {ratio(views):.3f}; {share:.2%} of the patients"
    )


def moved(metadata: Metadata, options: SplitOptions, trials: int, change) -> str:
    """How many images change sides when the table is changed: mean and most over the trials."""
    before = dict(zip(metadata.table["image_id"], make_splits(metadata, options).of_image, strict=True))
    counts = []
    for trial in range(trials):
        after = change(metadata, np.random.default_rng(trial))
        splits = make_splits(after, options).of_image
        old = [before[image_id] for image_id in after.table["image_id"]]
        counts.append(int((splits != np.array(old, dtype=object)).sum()))
    share = sum(split == VALIDATION for split in before.values()) / 100
    mean, most = np.mean(counts), max(counts)
    return f"{mean:.1f} images ({mean / share:.2f}%), at most {most} ({most / share:.2f}%)"


def more_labels(count: int, options: SplitOptions):
    """A change that adds any finding to each of some images that are not in the test split."""

    def change(metadata: Metadata, rng: np.random.Generator) -> Metadata:
        rows = np.flatnonzero(make_splits(metadata, options).of_image != TEST)
        findings = metadata.findings.copy()
        findings[rng.choice(rows, count, replace=False), rng.integers(len(FINDINGS), size=count)] = 1
        return dataclasses.replace(metadata, findings=findings)

    return change


def fewer_patients(metadata: Metadata, rng: np.random.Generator) -> Metadata:
    """The table without 100 patients."""
    patients = metadata.table["patient_id"].to_numpy()
    kept = ~np.isin(patients, rng.choice(np.unique(patients), 100, replace=False))
    table = metadata.table[kept].reset_index(drop=True)
    return dataclasses.replace(metadata, table=table, findings=metadata.findings[kept])


def main() -> None:
    """Prints it all."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--metadata")
    parser.add_argument("--train-val-list")
    parser.add_argument("--test-list")
    parser.add_argument("--corrected")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--trials", type=int, default=20)
    asked = parser.parse_args()

    metadata = read_metadata(asked.metadata) if asked.metadata else made_up(20_000)
    corrected = read_metadata(asked.corrected) if asked.corrected else None
    for seed in range(asked.seeds):
        options = SplitOptions(asked.train_val_list, asked.test_list, seed=seed)
        started = time.perf_counter()
        splits = make_splits(metadata, options)
        seconds = time.perf_counter() - started
        print(f"seed {seed}: {balance(metadata, splits.of_image)}; {seconds:.2f} s")
        for count in (1, 181):
            told = moved(metadata, options, asked.trials, more_labels(count, options))
            print(f"  {count} labels more: {told}")
        print(f"  100 patients less: {moved(metadata, options, asked.trials, fewer_patients)}")
        if corrected is not None:
            told = moved(metadata, SplitOptions(seed=seed), 1, lambda *_: corrected)
            print(f"  the other table, unofficial split: {told}")


if __name__ == "__main__":
    main()
