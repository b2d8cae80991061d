"""Fails when reader, decoder or plan lost a quarter of their lead: python benchmarks/bench_check.py.

A lead is the processor time of a yardstick over ours for the same work, in one process, in turn, the median
over rounds: no clock on the wall, so that a busy machine changes little. The yardsticks are a gather from
`numpy.memmap` for the readers, a bare loop with Pillow for the decoder, and for the plan what pandas takes to
read the same table and look at it once. The leads to hold are in leads.json, and `--record` writes those of
now there. Inputs are look-alike images and drawn patients.
"""

import argparse
import gc
import io
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import bench_reader
import numpy as np
import pandas as pd
from measuring import BATCH, Job
from PIL import Image
from readers import memmap

LEADS = Path(__file__).with_name("leads.json")
KEPT = 0.75  # of a lead: what must be left
NUM_IMAGES, EPOCHS = 2048, 4  # of the reader's set, and read in a round
DECODED, SIZE = 6, 224  # images of 1,024 pixels in a round
TABLE_ROWS = 30_000

Work = Callable[[], object]


def reader_work(folder: Path) -> Iterator[tuple[str, Work, Work]]:
    """`load_split`, and `Dataset.arrays`, on a raw set in the page cache; the yardstick gathers as many."""
    from cxr_records.quiet import load_tensorflow

    load_tensorflow()
    from cxr_records.dataset import open_dataset
    from cxr_records.reader import load_split

    words = ["--folder", str(folder), "--num-originals", "50"]
    made = bench_reader.make_set(bench_reader.options().parse_args(words), f"raw-{SIZE}", NUM_IMAGES)
    number = NUM_IMAGES // BATCH * EPOCHS

    def yardstick() -> None:
        batches = memmap(Job(made, 1))
        for _ in range(number):
            next(batches)

    dataset = open_dataset(made / "dataset")
    yield "reader", lambda: list(map(len, load_split(dataset, "train", BATCH, epochs=EPOCHS))), yardstick
    images = dataset.arrays("train")
    yield "arrays", lambda: list(map(len, images.batches(BATCH, epochs=EPOCHS))), yardstick


def decode_work(folder: Path) -> Iterator[tuple[str, Work, Work]]:
    """Files of 1,024 pixels to grey of 224; nothing where Pillow decodes them, as without a compiler."""
    from cxr_records import png
    from cxr_records.images import ImageFormat, decode_image
    from cxr_records.lookalike_drawing import draw_image
    from cxr_records.lookalike_patients import plan_images

    if png.decoder() == "pillow":
        print("the extension in C is not built here, so the decoder is not compared", file=sys.stderr)
        return
    files = []
    for image in plan_images(50, seed=0)[:DECODED]:
        file = io.BytesIO()
        Image.fromarray(draw_image(image, 1024, 0)).save(file, "PNG")
        files.append(file.getvalue())

    def ours() -> None:
        for data in files:
            decode_image(data, ImageFormat(SIZE))

    def yardstick() -> None:
        for data in files:
            grey = Image.open(io.BytesIO(data)).convert("L")
            grey.resize((SIZE, SIZE), Image.Resampling.BILINEAR).tobytes()

    yield "decode", ours, yardstick


def plan_work(folder: Path) -> Iterator[tuple[str, Work, Work]]:
    """What the command `plan` does for a table of NIH's form."""
    import cxr_records
    from cxr_records.lookalike_patients import plan_images

    path = str(folder / "table.csv")
    rows = [
        (image.image_id, "|".join(image.findings) or "No Finding", 0, image.patient, 50, "M", image.view)
        for image in plan_images(TABLE_ROWS, seed=0)
    ]
    columns = ["Image Index", "Finding Labels", "Follow-up #", "Patient ID", "Patient Age", "Patient Gender"]
    pd.DataFrame(rows, columns=[*columns, "View Position"]).to_csv(path, index=False)

    def yardstick() -> None:
        table = pd.read_csv(path)
        findings = table["Finding Labels"].str.get_dummies("|")
        findings.groupby(table["Patient ID"]).sum()
        np.argsort(table["Image Index"].to_numpy(object))
        table.to_csv(io.StringIO())

    yield "plan", lambda: cxr_records.plan(path), yardstick


PARTS = (decode_work, plan_work, reader_work)


def cpu_of(work: Work) -> float:
    """Processor seconds of some work, with all threads of this process."""
    gc.collect()  # what others left behind is not this work's to collect
    started = time.process_time()
    work()
    return time.process_time() - started


def lead(ours: Work, yardstick: Work, rounds: int) -> dict[str, Any]:
    """The median over rounds of the yardstick's time over ours, after one round that does not count."""
    ratios = []
    for number in range(rounds + 1):
        # Who goes first changes, for the second finds the caches of the first.
        spent = {work: cpu_of(work) for work in ((ours, yardstick) if number % 2 else (yardstick, ours))}
        if number:
            ratios.append(spent[yardstick] / spent[ours])
    return {"lead": statistics.median(ratios), "low": min(ratios), "high": max(ratios)}


def verdict(found: dict[str, dict[str, Any]], recorded: dict[str, float], kept: float) -> list[str]:
    """One line for each lead of which less than a share is left."""
    return [
        f"{name}: found a lead of {found[name]['lead']:.3f}, expected at least {kept * held:.3f}, "
        f"which is {kept:.0%} of the {held:.3f} recorded in {LEADS.name}"
        for name, held in recorded.items()
        if name in found and found[name]["lead"] < kept * held
    ]


def main() -> None:
    """Measures, prints one JSON object, and exits with 1 where a lead is lost."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--keep", type=float, default=KEPT, help="share of each lead that must be left")
    parser.add_argument("--record", action="store_true", help=f"write what is found to {LEADS.name}")
    asked = parser.parse_args()
    found = {}
    with tempfile.TemporaryDirectory() as temporary:
        for part in PARTS:
            for name, ours, yardstick in part(Path(temporary)):
                found[name] = lead(ours, yardstick, asked.rounds)
    print(
        json.dumps(
            {name: {key: round(value, 4) for key, value in told.items()} for name, told in found.items()}
        )
    )
    if asked.record:
        leads = {name: round(told["lead"], 4) for name, told in found.items()}
        LEADS.write_text(json.dumps(leads, indent=1) + "\n")
        return
    lost = verdict(found, json.loads(LEADS.read_text()), asked.keep)
    for line in lost:
        print(f"Error: {line}", file=sys.stderr)
    raise SystemExit(bool(lost))


if __name__ == "__main__":
    main()
