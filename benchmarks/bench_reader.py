"""Measures our readers beside others': python benchmarks/bench_reader.py --help.

All read the same images, shuffled, in batches of 256 to uint8 [256, size, size, 1] and labels; of each
process the first batch is compared with what was written. Each reader runs once in every round, in a process
of its own, and the order of the round is another each time. warm: files in the page cache, an epoch before
the clock. cold: its files evicted before, and one epoch from the first batch on.

Rivals run in environments of their own, made by pip from benchmarks/rivals/*.txt. Sets, rivals' files and
measurements stay in --folder: what was stopped goes on, and more rounds add to what is there. Without
--images and --metadata the images are look-alike ones.

    bench_reader.py --folder DIR                          every reader, warm and cold: the tables of this page
    bench_reader.py --folder DIR --sets raw-224 --counts 1000 10000 100000 --cores 1 2 --modes warm
"""

import argparse
import functools
import io
import json
import os
import shutil
import statistics
import sys
import tempfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import harness
import numpy as np
from harness import Log
from measuring import BATCH, marks
from PIL import Image
from readers import FORMS, READERS

SETS = ("raw-224", "png-224", "jpeg-224", "raw-512")
COUNT = 9000  # of 224 pixels; larger images are fewer
STAYED = 0.01  # share of pages that may stay unsaid
CORES = min(2, len(os.sched_getaffinity(0)))
NUM_ORIGINALS = 300  # look-alike images that are drawn


def make_set(asked: argparse.Namespace, name: str, count: int) -> Path:
    """Builds our dataset of a set, writes the same images for others down, and returns the folder.

    Every image is a training record.
    """
    codec, size = name.split("-")
    folder = asked.folder / f"{name}-{count}"
    if (folder / "source" / "about.json").exists():
        return folder
    print(f"{name}: a set of {count} images is made", file=sys.stderr)
    images, metadata = harness.sources(
        asked.images, asked.metadata, asked.folder, int(size), asked.num_originals
    )
    linked = harness.link_images(images, metadata, asked.folder / f"linked-{size}-{count}", count, int(size))
    words = [sys.executable, "-m", "cxr_records", "build", "--images", linked / "images"]
    words += ["--metadata", linked / "table.csv", "--out", folder / "dataset", "--store", folder / "store"]
    words += ["--size", size, "--codec", codec, "--copies", "none", "--shard-mb", "16"]
    words += ["--test-fraction", "0", "--validation-fraction", "0"]
    harness.run(words)
    shutil.rmtree(folder / "store")
    shutil.rmtree(folder / "source", ignore_errors=True)
    write_source(folder)
    return folder


def write_source(folder: Path) -> None:
    """Writes the images of our dataset one after the other, with what they are known by."""
    from cxr_records.dataset import open_dataset
    from cxr_records.examples import decode_example
    from cxr_records.tfrecord import read_records

    opened = open_dataset(folder / "dataset")
    codec, size = opened.image_format.codec, opened.image_format.size
    shards = [shard.file for shard in opened.splits["train"].shards]
    out = folder / "source"
    out.mkdir()
    offsets, labels, crcs, small = [0], [], [], []
    with open(out / "images.bin", "wb") as images:
        for shard in shards:
            with open(folder / "dataset" / shard, "rb") as file:
                for _, data in read_records(file):
                    values = decode_example(data)
                    (image,) = values["image"]
                    images.write(image)
                    pixels = np.frombuffer(image, np.uint8) if codec == "raw" else _pillow(image)
                    offsets.append(offsets[-1] + len(image))
                    labels.append(values["label"])
                    crcs.append(zlib.crc32(pixels.tobytes()))
                    small.append(marks(pixels.reshape(1, size, size, 1))[0])
    np.save(out / "offsets.npy", np.array(offsets))
    np.save(out / "labels.npy", np.array(labels, np.int64))
    np.save(out / "crcs.npy", np.array(crcs, np.uint32))
    np.save(out / "marks.npy", np.array(small))
    about = {
        "codec": codec,
        "size": size,
        "count": len(labels),
        "num_labels": len(labels[0]),
        "shards": shards,
    }
    (out / "about.json").write_text(json.dumps(about))


def _pillow(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)))


def make_form(asked: argparse.Namespace, folder: Path, form: str) -> None:
    """Lets a rival write its files, once."""
    out = folder / "forms" / form
    if form not in FORMS or (out.parent / f"{form}.done").exists():
        return
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    python = harness.python_of(FORMS[form][1], asked.environments)
    harness.run([python, harness.RIVALS / "readers.py", "write", form, folder])
    (out.parent / f"{form}.done").touch()


def files_of(folder: Path, form: str) -> list[Path]:
    """The files that a reader of a form reads."""
    shards = sorted((folder / "dataset").glob("*.tfrecord-*"))
    if form == "source":
        return [folder / "source" / "images.bin"]
    if form == "dataset":
        return [*shards, folder / "dataset" / "records.parquet"]
    own = harness.files_below(folder / "forms" / form)
    return own + shards if form == "dali_index" else own


def measure_one(asked: argparse.Namespace, folder: Path, name: str, cores: int, mode: str) -> dict[str, Any]:
    """One process of one reader."""
    reader = READERS[name]
    make_form(asked, folder, reader.form)
    python = harness.python_of(reader.environment, asked.environments)
    files = files_of(folder, reader.form)
    found: dict[str, Any] = {"disk_mb": round(harness.disk_mb(*files), 1)}
    if mode == "cold":
        found["stayed"] = round(harness.evict(files), 4)
    else:
        harness.read_all(files)
    words = [python, harness.RIVALS / "readers.py", "read", name, folder, "--cores", cores]
    words += ["--seconds", asked.seconds, *["--cold"] * (mode == "cold")]
    taken = harness.run(words, limit=asked.limit)
    found |= json.loads(taken.out.splitlines()[-1])
    return found | {"peak_mb": round(taken.peak_mb), "peak_rss_mb": round(taken.peak_rss_mb)}


def tables(log: Log, readers: Sequence[str]) -> str:
    """Every combination that was measured as a table, the quickest first; then the versions."""
    pages, told = [], {}
    combinations = dict.fromkeys((m["set"], m["count"], m["cores"], m["mode"]) for m in log.lines)
    for images, count, cores, mode in combinations:
        rows, key = [], {"set": images, "count": count, "cores": cores, "mode": mode}
        for name in readers:
            lines = log.find(reader=name, **key)
            good = [line for line in lines if "error" not in line]
            if not good:
                rows += [(0.0, [READERS[name].said, lines[0]["error"][:100], *[""] * 5])] if lines else []
                continue

            def shown(column: str, digits: int | None = None, good: list[dict[str, Any]] = good) -> str:
                return harness.spread([line[column] for line in good], digits)

            rate = statistics.median(line["images_per_second"] for line in good)
            row = [READERS[name].said, shown("images_per_second"), shown("cpu_ms_per_1000")]
            row += [shown("first_batch_seconds", 2), f"{statistics.median(g['peak_mb'] for g in good):,.0f}"]
            row += [f"{good[0]['disk_mb']:,.0f}", str(len(good))]
            rows.append((rate, row))
            told |= good[-1]["versions"]
        header = [
            "reader",
            "images/s",
            "CPU ms per 1,000",
            "first batch, s",
            "peak MB",
            "MB on disk",
            "rounds",
        ]
        rows.sort(key=lambda row: -row[0])
        stayed = max(
            [line.get("stayed", 0) for line in log.find(**key) if line["reader"] in readers], default=0
        )
        if rows:
            title = f"{images}, {count:,} images, {cores} core{'s' * (cores > 1)}, {mode}"
            title += f" ({stayed:.0%} of the pages stayed in memory)" if stayed > STAYED else ""
            pages.append(f"{title}\n\n{harness.table(header, [row for _, row in rows])}")
    pages.append("Versions: " + ", ".join(f"{name} {version}" for name, version in sorted(told.items())))
    return "\n\n".join(pages)


def scaled(count: int, name: str) -> int:
    """So many images of 224 pixels, or fewer larger ones: as many rows of pixels."""
    size = int(name.split("-")[1])
    return count if size <= 224 else max(2 * BATCH, count * 224 // size)


def set_name(text: str) -> str:
    """An argument such as raw-224."""
    codec, _, size = text.partition("-")
    if codec not in ("raw", "png", "jpeg") or not size.isdigit():
        raise argparse.ArgumentTypeError(f"found {text!r}; expected a codec and a size, such as raw-224")
    return text


def options() -> argparse.ArgumentParser:
    """What the command line takes."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--folder", type=Path, help="for sets, files and measurements; a temporary one if not given"
    )
    parser.add_argument("--environments", type=Path, help="rivals' environments; default: in --folder")
    parser.add_argument("--images", type=Path, help="folder of NIH images to make the sets of")
    parser.add_argument("--metadata", type=Path, help="NIH's table")
    parser.add_argument("--sets", nargs="+", type=set_name, default=SETS, metavar="CODEC-SIZE")
    parser.add_argument(
        "--counts", nargs="+", type=int, default=[COUNT], help="images of a set, at 224 pixels"
    )
    parser.add_argument("--cores", nargs="+", type=int, default=[CORES])
    parser.add_argument("--modes", nargs="+", choices=("warm", "cold"), default=("warm", "cold"))
    parser.add_argument("--readers", nargs="+", choices=list(READERS), metavar="READER",
                        default=list(READERS), help=f"of {', '.join(READERS)}")  # fmt: skip
    parser.add_argument("--own", action="store_true", help="only readers that need no further environment")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=6.0, help="of a warm measurement")
    parser.add_argument("--limit", type=float, default=600.0, help="seconds after which a process is ended")
    parser.add_argument("--num-originals", type=int, default=NUM_ORIGINALS, help="look-alike images to draw")
    parser.add_argument(
        "--table", action="store_true", help="print the tables of the log, and measure nothing"
    )
    return parser


def main() -> None:
    """Measures what is not in the log yet, and prints the tables of all that is."""
    asked = options().parse_args()
    readers = [name for name in asked.readers if not (asked.own and READERS[name].environment)]
    with tempfile.TemporaryDirectory() as temporary:
        asked.folder = (asked.folder or Path(temporary)).resolve()
        asked.environments = (asked.environments or asked.folder / "environments").resolve()
        log = Log(asked.folder / "reader.jsonl")
        for name in () if asked.table else asked.sets:
            for count in asked.counts:
                measure_set(asked, log, name, scaled(count, name), readers)
        print(tables(log, readers))


def measure_set(asked: argparse.Namespace, log: Log, name: str, count: int, readers: Sequence[str]) -> None:
    """All readers of one set, in turn."""
    folder = make_set(asked, name, count)
    able = [reader for reader in readers if name.split("-")[0] in READERS[reader].codecs]
    for mode in asked.modes:
        for cores in asked.cores:
            for number, reader in harness.in_turn(able, asked.rounds):
                key = {"set": name, "count": count, "reader": reader}
                key |= {"cores": cores, "mode": mode, "round": number}
                log.measure(key, functools.partial(measure_one, asked, folder, reader, cores, mode))


if __name__ == "__main__":
    main()
