"""Measures what the command itself does for a large set, before and between Beam's jobs.

    python benchmarks/bench_driver.py --metadata Data_Entry_2017_v2020.csv --images 112120 1000000

The real table is repeated under new names and patients until it has so many rows. No image is there and none
is decoded: entries and the store's index are made up in the form that listing and decoding give them. Each
size runs in a process of its own; printed are seconds of each step, the peak memory, and the size of the job
graph that goes to the engine.
"""

import argparse
import dataclasses
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd

SIZE = 224


def repeated(metadata, count: int):
    """The table with `count` rows: the same findings again and again, under new names and patients."""
    table, times = metadata.table, -(-count // len(metadata))
    rows = np.tile(np.arange(len(table)), times)[:count]
    round_of = np.repeat(np.arange(times), len(table))[:count]
    larger = table.iloc[rows].reset_index(drop=True)
    numbers = larger["patient_id"].to_numpy() + round_of * (int(table["patient_id"].max()) + 1)
    tails = larger["image_id"].str[8:].to_numpy()
    names = np.array([f"{number:010d}{tail}" for number, tail in zip(numbers, tails, strict=True)], object)
    larger = larger.assign(patient_id=numbers, image_id=names)
    return dataclasses.replace(metadata, table=larger, findings=metadata.findings[rows], dialect="other")


def measure(path: str, count: int) -> dict[str, float]:
    """Runs the steps of a first build but for listing, decoding and writing."""
    import apache_beam as beam

    from cxr_records.config import DatasetConfig
    from cxr_records.images import ImageFormat
    from cxr_records.metadata import read_metadata
    from cxr_records.pipelines.beam_job import Apply
    from cxr_records.planning import make_plan, write_plan
    from cxr_records.shards import write_shard
    from cxr_records.sources import Entry
    from cxr_records.splits import SplitOptions, make_splits
    from cxr_records.store import INDEX_SCHEMA, open_store, write_unit
    from cxr_records.tasks import parse_task

    seconds, started = {}, time.perf_counter()

    def lap(name: str) -> None:
        nonlocal started
        now = time.perf_counter()
        seconds[name], started = round(now - started, 1), now

    def graph_bytes(function, specs) -> int:
        pipeline = beam.Pipeline()
        _ = (
            pipeline
            | beam.Create(specs, reshuffle=False)
            | beam.Reshuffle()
            | beam.ParDo(Apply(function, True))
        )
        return pipeline.to_runner_api().ByteSize()

    with tempfile.TemporaryDirectory() as name:
        folder, image_format = Path(name), ImageFormat(SIZE)
        metadata = repeated(read_metadata(path), count)
        ids = metadata.table["image_id"].tolist()
        lap("table")
        splits = make_splits(metadata, SplitOptions())
        lap("splits")
        entries = {i: [Entry(i, f"/data/nih/images/{i}", "file", "", 0, 400_000, 10**18, "1")] for i in ids}
        lap("entries")
        store = open_store(str(folder / "store"), image_format)
        empty = INDEX_SCHEMA.empty_table().to_pandas().assign(unit="")
        units = store.plan_units(entries, empty, len(entries))
        lap("plan of decoding")
        unit_graph = graph_bytes(write_unit, units)
        lap("graph of decoding")
        del entries
        unit_of = np.repeat([unit.name for unit in units], [unit.num_images for unit in units])
        images = pd.DataFrame(
            {
                "unit": unit_of, "offset": 0, "length": SIZE * SIZE, "crc32c": 0,
                "sha256": [f"{number:064x}" for number in range(count)], "status": "ok", "reason": "",
            },
            index=pd.Index(ids, name="image_id"),
        )  # fmt: skip
        lap("index")
        planned = make_plan(metadata, splits, DatasetConfig(parse_task("multilabel"), image_format), images)
        lap("plan of records")
        specs = write_plan(planned, str(folder), store.path, str(folder / "cxr14"))
        lap("plan file")
        shard_graph = graph_bytes(write_shard, specs)
        lap("graph of writing")
    return {
        "images": count,
        "seconds": {**seconds, "total": round(sum(seconds.values()), 1)},
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10,
        "units": len(units),
        "decode_graph_kb": unit_graph >> 10,
        "shards": len(specs),
        "write_graph_kb": shard_graph >> 10,
    }


def main() -> None:
    """Measures, and prints a JSON object for each size."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--metadata", required=True, help="NIH's table")
    parser.add_argument("--images", type=int, nargs="+", default=[112_120, 1_000_000, 10_000_000])
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    for count in arguments.images:
        if arguments.here:
            print(json.dumps(measure(arguments.metadata, count)))
        else:
            words = [
                sys.executable,
                __file__,
                "--here",
                "--metadata",
                arguments.metadata,
                "--images",
                str(count),
            ]
            subprocess.run(words, check=True)


if __name__ == "__main__":
    main()
