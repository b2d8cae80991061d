"""Measures what the command itself does for a large set, before, between and after Beam's jobs.

    python benchmarks/bench_driver.py --metadata Data_Entry_2017_v2020.csv --images 112120 1000000 10000000

The real table is repeated under new names and patients until it has so many rows. No image is there and none
is decoded: entries of the list of files, rows of the store's index and what is known of finished shards are
made up in the form that listing, decoding and writing give them. Each size runs in a process of its own;
printed are seconds of each step, the peak memory up to its end, and the size of the job graph that goes to
the engine. The graph is made in a process of its own, as a command does it.
"""

import argparse
import concurrent.futures
import dataclasses
import json
import multiprocessing
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from cxr_records import sources, store
from cxr_records.columns import array_of, chunks, known
from cxr_records.config import DatasetConfig
from cxr_records.finish import finish_dataset
from cxr_records.images import ImageFormat, decoder_version
from cxr_records.metadata import Metadata, read_metadata
from cxr_records.planning import ShardSpec, make_plan, write_plan
from cxr_records.shards import ShardInfo, write_shard
from cxr_records.splits import SplitOptions, make_splits
from cxr_records.tasks import parse_task

SIZE = 224
FOLDER = "/data/nih/images"
RECORD_BYTES = SIZE * SIZE + 250


def repeated(metadata: Metadata, count: int) -> Metadata:
    """The table with `count` rows: the same findings again and again, under new names and patients."""
    rows = np.arange(count, dtype=np.int32) % len(metadata)
    round_of = np.arange(count, dtype=np.int32) // len(metadata)
    patients = metadata.table["patient_id"].to_numpy()
    numbers = patients[rows] + round_of * (patients.max() + 1)
    start: Any = pc.utf8_lpad(array_of(numbers).cast(pa.string()), 10, "0")
    names: Any = pc.binary_join_element_wise(
        start, pc.utf8_slice_codeunits(metadata.image_ids.take(rows), 8), ""
    )
    columns = {name: metadata.table[name].take(rows).array for name in metadata.table.columns}
    columns["patient_id"] = numbers
    columns["image_id"] = pd.array(names, dtype=metadata.table.dtypes["image_id"])
    table = pd.DataFrame(columns)
    return dataclasses.replace(metadata, table=table, findings=metadata.findings[rows], dialect="other")


def entries(image_ids: pa.StringArray) -> Iterator[sources.Entry]:
    """A file of each image, as listing a local folder tells of it."""
    for part in chunks(len(image_ids), 1 << 16):
        for number, name in enumerate(image_ids[part].to_pylist(), start=part.start):
            changed = 10**18 + number
            version = f"400000-{changed}-{changed}-{number}"
            yield sources.Entry(name, f"{FOLDER}/{name}", "file", "", 0, 400_000, changed, version)


@dataclasses.dataclass(frozen=True)
class MadeUpStore(store.ImageStore):
    """A store whose units are told of without being there.

    Attributes:
        rows: of the table, that each unit holds.
        told: names and signatures of the table's images.
    """

    rows: dict[str, slice] = dataclasses.field(default_factory=dict)
    told: dict[str, Any] = dataclasses.field(default_factory=dict)

    def _units(self) -> list[str]:
        return sorted(self.rows)

    def _read_unit(self, unit: str, columns: Sequence[str] = ()) -> pa.Table:
        here = self.rows[unit]
        count, first = here.stop - here.start, here.start
        digests = [f"{(row * 0x9E3779B97F4A7C15) % 2**64:016x}{row:048x}" for row in range(first, here.stop)]
        made = {
            "image_id": self.told["names"][here],
            "signature": [signature.tobytes().hex() for signature in self.told["signatures"][here]],
            "offset": np.arange(count) * RECORD_BYTES + 100,
            **dict.fromkeys(("sha256", "pixel_sha256"), digests),
        }
        same = {
            "length": SIZE * SIZE, "crc32c": 1 << 30, "pixel_sum": 6 * 10**6, "pixel_sum_squares": 10**9,
            "grey_low": 0, "grey_high": 255, "decoder": decoder_version(), "status": store.OK, "reason": "",
        }  # fmt: skip
        kinds = {name: store.INDEX_SCHEMA.field(name).type for name in columns}
        return pa.table({n: pa.array(made.get(n, [same.get(n)] * count), kind) for n, kind in kinds.items()})


def graph_bytes(function: Callable[[Any], object], specs: Sequence[Any]) -> int:
    """How large a job is on its way to the engine."""
    import apache_beam as beam

    from cxr_records.pipelines.beam_job import Apply

    pipeline = beam.Pipeline()
    specs_there = pipeline | beam.Create(specs, reshuffle=False) | beam.Reshuffle()
    _ = specs_there | beam.ParDo(Apply(function, True))
    return pipeline.to_runner_api().ByteSize()


def finished(spec: ShardSpec) -> ShardInfo:
    """What is known of a shard, had it been written."""
    offsets = [place * RECORD_BYTES for place in range(spec.num_records)]
    image_offsets, image_bytes = [offset + 100 for offset in offsets], [SIZE * SIZE] * len(offsets)
    num_bytes = len(offsets) * RECORD_BYTES
    info = ShardInfo(spec.digest, len(offsets), num_bytes, "0" * 64, offsets, image_offsets, image_bytes)
    return info.compact()


def measure(path: str, count: int) -> dict[str, Any]:
    """Runs the steps of a first build but for listing, decoding and writing."""
    seconds: dict[str, float] = {}
    peak_mb: dict[str, int] = {}
    started = time.perf_counter()

    def lap(name: str) -> None:
        nonlocal started
        now = time.perf_counter()
        seconds[name], started = round(now - started, 1), now
        peak_mb[name] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10

    fresh = multiprocessing.get_context("spawn")
    with (
        tempfile.TemporaryDirectory() as name,
        concurrent.futures.ProcessPoolExecutor(1, mp_context=fresh) as other,
    ):
        folder, image_format = Path(name), ImageFormat(SIZE)
        for made in ("store", "cxr14"):
            (folder / made).mkdir()
        lap("start")
        metadata = repeated(read_metadata(path), count)
        lap("table")
        splits = make_splits(metadata, SplitOptions())
        lap("splits")
        listed = sources.Entries(entries(metadata.image_ids))
        files, _ = sources.match_entries(listed, metadata.image_ids)
        del listed
        lap("files")
        signatures = store.signatures(files)
        lap("signatures")
        units_at = MadeUpStore(str(folder / "store"), image_format)
        located = units_at.locate(metadata.image_ids, signatures, columns=())
        units = units_at.plan_units(files, ~known(located["status"]), signatures, count)
        lap("plan of decoding")
        unit_graph = other.submit(graph_bytes, store.write_unit, units).result()
        lap("graph of decoding")
        files.forget()
        start = 0
        for unit in units:  # they hold the images in the order of the table
            units_at.rows[unit.name] = slice(start, start := start + unit.num_images)
        units_at.told.update(names=metadata.image_ids, signatures=signatures)
        images = units_at.locate(metadata.image_ids, signatures, lost_as_rejected=True)
        del signatures
        lap("index")
        planned = make_plan(metadata, splits, DatasetConfig(parse_task("multilabel"), image_format), images)
        lap("plan of records")
        dataset = str(folder / "cxr14")
        specs = write_plan(planned, str(folder), units_at.path, dataset)
        lap("plan file")
        shard_graph = other.submit(graph_bytes, write_shard, specs).result()
        lap("graph of writing")
        finish_dataset(planned, specs, [finished(spec) for spec in specs])
        lap("finish")
    return {
        "images": count,
        "cpu_seconds": round(time.process_time(), 1),
        "seconds": {**seconds, "total": round(sum(seconds.values()), 1)},
        "peak_mb": peak_mb,
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
            # As `cli.main` has it.
            subprocess.run(words, check=True, env={"ARROW_DEFAULT_MEMORY_POOL": "system", **os.environ})


if __name__ == "__main__":
    main()
