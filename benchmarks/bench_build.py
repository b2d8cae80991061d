"""Measures builds beside others' and beside yardsticks: python benchmarks/bench_build.py --help.

Real images are repeated under many names by hard links, so a few hundred files make a set of any size;
without --images and --metadata they are look-alike ones. In `build` and `rebuild` every row runs once in each
round, in turn; wall and processor time are of the whole command with all its processes, start and imports
included. Rivals run in environments of their own, made by pip from benchmarks/rivals/*.txt. Sets and
measurements stay in --folder: what was stopped goes on, and more rounds add to what is there.

    bench_build.py --folder DIR --images ... --metadata ...                    the tables of this page
    bench_build.py build --folder DIR --counts 1000 10000 --workers 1 2        how builds grow
"""

import argparse
import functools
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import harness
import pandas as pd
from builders import BUILDERS
from harness import Log

SIZE = 224
COMMAND = (sys.executable, "-m", "cxr_records")
OURS = "ours"


def build_words(images: Path, table: Path, out: Path, workers: int) -> list[object]:
    """A build of linked images; the store is beside the dataset."""
    words = [*COMMAND, "build", "--json", "--images", images, "--metadata", table]
    return [*words, "--out", out, "--size", SIZE, "--workers", workers]


def linked_set(asked: argparse.Namespace, count: int) -> Path:
    """The images of a build, and their table."""
    images, metadata = harness.sources(
        asked.images, asked.metadata, asked.folder, asked.lookalike_size, asked.num_originals
    )
    return harness.link_images(images, metadata, asked.folder / f"images-{count}", count)


def measure_build(asked: argparse.Namespace, log: Log) -> None:
    """All builders, each once in a round, for each number of images and of workers."""
    names = [
        name for name in asked.builders if not (asked.own and name != OURS and BUILDERS[name].environment)
    ]
    for count in asked.counts:
        linked = linked_set(asked, count)
        harness.read_all(harness.files_below(linked / "originals"))
        for workers in asked.workers:
            for number, name in harness.in_turn(names, asked.rounds):
                key = {"part": "build", "count": count, "workers": workers, "builder": name, "round": number}
                log.measure(key, functools.partial(build_once, asked, linked, name, workers))


def build_once(asked: argparse.Namespace, linked: Path, name: str, workers: int) -> dict[str, Any]:
    """One build by one builder; its files are deleted."""
    with tempfile.TemporaryDirectory(dir=asked.folder) as temporary:
        out = Path(temporary) / "out"
        words = [*build_words(linked / "images", linked / "table.csv", out, workers), "--copies", "none"]
        if name != OURS:
            python = harness.python_of(BUILDERS[name].environment, asked.environments)
            words = [python, harness.RIVALS / "builders.py", name, linked / "images", out]
            words += ["--size", SIZE, "--workers", workers]
        taken = harness.run(words, limit=asked.limit)
        found = {"wall": taken.wall, "cpu": taken.cpu}
        found |= {"worker_mb": round(taken.worker_mb), "disk_mb": round(harness.disk_mb(out))}
        if name == OURS:
            found["decode"] = json.loads(taken.out)["seconds"]["decode"]
        return found


def build_tables(log: Log) -> list[str]:
    """A table for each number of images and of workers, the quickest builder first."""
    pages = []
    for count, workers in dict.fromkeys((m["count"], m["workers"]) for m in log.find(part="build")):
        of = {"part": "build", "count": count, "workers": workers}
        rows, good = [], {}
        for name in (OURS, *BUILDERS):
            lines = log.find(builder=name, **of)
            said = "`cxr-records build`" if name == OURS else BUILDERS[name].said
            good[name] = [line for line in lines if "error" not in line]
            if not good[name]:
                rows += [(1e9, [said, lines[0]["error"][:100], "", "", "", ""])] if lines else []
                continue
            walls = [line["wall"] for line in good[name]]
            cpus = [line["cpu"] * 1000 / count for line in good[name]]
            row = [said, harness.spread(walls, 1), harness.spread(cpus, 2)]
            row += [f"{count / statistics.median(walls):,.0f}", str(max(m["worker_mb"] for m in good[name]))]
            rows.append((statistics.median(walls), [*row, str(len(walls))]))
        rows.sort(key=lambda row: row[0])
        header = ["builder", "wall, s", "CPU ms per image", "images/s", "largest worker, MB", "rounds"]
        page = f"build, {count:,} images, {workers} worker{'s' * (workers > 1)}\n\n"
        page += harness.table(header, [row for _, row in rows])
        if good[OURS] and good["bare_ours"]:
            ratio = statistics.median(m["wall"] for m in good["bare_ours"])
            ratio /= statistics.median(m["decode"] for m in good[OURS])
            page += f"\n\nOur decode phase has {ratio:.2f} of the rate of the bare loop with our decoder."
        pages.append(page)
    return pages


def measure_rebuild(asked: argparse.Namespace, log: Log) -> None:
    """A first build and what is built again from its store, for so many rounds."""
    count, workers = asked.rebuild_count, max(asked.workers)
    linked = linked_set(asked, count)
    for number in range(asked.rounds):
        key = {"part": "rebuild", "count": count, "workers": workers, "round": number}
        log.measure(key, functools.partial(rebuild_once, asked, linked, workers))


def rebuild_once(asked: argparse.Namespace, linked: Path, workers: int) -> dict[str, Any]:
    """Wall and processor seconds of each kind of build, and how many shards it wrote."""
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(dir=asked.folder) as temporary:
        folder, written = Path(temporary), dict[str, tuple[int, int]]()
        table = Path(shutil.copy(linked / "table.csv", folder))
        words = build_words(linked / "images", table, folder / "out", workers)
        steps = [("first", []), ("unchanged", []), ("one_label", []), ("other_task", ["--task", "binary"])]
        for step, more in steps:
            if step == "one_label":
                correct_label(table)
            taken = harness.run([*words, *more], limit=asked.limit)
            found |= {f"{step}_wall": taken.wall, f"{step}_cpu": taken.cpu}
            before, written = (
                written,
                {
                    path.name: (path.stat().st_ino, path.stat().st_mtime_ns)
                    for path in (folder / "out").glob("*.tfrecord-*")
                },
            )
            found[f"{step}_written"] = sum(before.get(name) != now for name, now in written.items())
            found[f"{step}_shards"] = len(written)
    return found


REBUILDS = {
    "first": "first build",
    "unchanged": "again, nothing changed",
    "one_label": "again, one label changed",
    "other_task": "again, for another task",
}


def correct_label(path: Path) -> None:
    """Gives one image of the table another finding: the first that has none gets Infiltration."""
    table = pd.read_csv(path)
    row = table.index[table["Finding Labels"] == "No Finding"][0]
    table.loc[row, "Finding Labels"] = "Infiltration"
    table.to_csv(path, index=False)


def rebuild_tables(log: Log) -> list[str]:
    """A table for each number of images."""
    pages = []
    for count in dict.fromkeys(m["count"] for m in log.find(part="rebuild")):
        lines = [line for line in log.find(part="rebuild", count=count) if "error" not in line]
        rows = []
        for step, name in REBUILDS.items() if lines else ():
            faster = statistics.median(line["first_wall"] / line[f"{step}_wall"] for line in lines)
            row = [
                name,
                *(harness.spread([m[f"{step}_{what}"] for m in lines], 2) for what in ("wall", "cpu")),
            ]
            shards = f"{max(m[f'{step}_written'] for m in lines)} of {lines[0][f'{step}_shards']}"
            rows.append([*row, f"{faster:.1f}", shards, str(len(lines))])
        header = ["build", "wall, s", "CPU, s", "times faster", "shards written", "rounds"]
        errors = [line["error"] for line in log.find(part="rebuild", count=count) if "error" in line]
        pages.append(f"rebuild, {count:,} images\n\n{harness.table(header, rows)}" + "".join(errors[:1]))
    return pages


def measure_records(asked: argparse.Namespace, log: Log) -> None:
    """Records per second of processor time: originals copied from the store, and augmented copies made."""
    key = {"part": "records", "count": asked.counts[0]}
    if not log.find(**key):
        with tempfile.TemporaryDirectory(dir=asked.folder) as folder:
            log.add(records_rates(asked, Path(folder)), **key)


def records_rates(asked: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Writes the shards of a plan again and again in this process."""
    from cxr_records import shards
    from cxr_records.config import DatasetConfig
    from cxr_records.images import ImageFormat
    from cxr_records.pipelines.decode import decode_images, find_images
    from cxr_records.pipelines.engines import engine_named
    from cxr_records.pipelines.plan import read_table
    from cxr_records.pipelines.request import BuildRequest
    from cxr_records.planning import make_plan, write_plan
    from cxr_records.sampling import CopyRule
    from cxr_records.splits import SplitOptions
    from cxr_records.tasks import parse_task

    linked = linked_set(asked, asked.counts[0])
    rates = {}
    for rule in ("none", "fixed"):
        config = DatasetConfig(
            parse_task("multilabel"), ImageFormat(SIZE), CopyRule(rule, of=("Mass",) * (rule == "fixed"))
        )
        request = BuildRequest(
            images=(str(linked / "images"),),
            metadata=str(linked / "table.csv"),
            out=str(folder / rule),
            config=config,
            split_options=SplitOptions(),
            store=str(folder / "store"),
            engine=engine_named(workers=max(asked.workers)),
        )
        metadata, splits = read_table(request)
        at_hand = find_images(request.images, metadata, request.store_path, allow_missing=False)
        images = decode_images(at_hand, request.store_path, config.image_format, request.engine).images
        (folder / rule).mkdir()
        (folder / rule / ".build").mkdir()
        plan = make_plan(metadata, splits, config, images)
        specs = write_plan(plan, str(folder / rule / ".build"), request.store_path, request.out)
        spent = []
        for _ in range(asked.rounds):
            started = time.process_time()
            for spec in specs:
                shards.write_shard(spec)
            spent.append(time.process_time() - started)
            for spec in specs:
                os.remove(spec.sidecar_path)  # so that the next round writes again
        rates[rule] = (len(plan.records), plan.num_copies, statistics.median(spent))
    records, _, seconds = rates["none"]
    more, copies, longer = rates["fixed"]
    spent = longer - (more - copies) * seconds / records
    return {
        "records_per_second_per_core": round(records / seconds),
        "copies_per_second_per_core": round(copies / spent),
    }


def measure_commands(asked: argparse.Namespace, log: Log) -> None:
    """Seconds of `--help`, of the whole and of a command, and of `plan` on the whole table."""
    words = {"help": ["--help"], "build_help": ["build", "--help"]}
    if asked.metadata:
        words["plan"] = ["plan", "--metadata", str(asked.metadata)]
    for number, name in harness.in_turn(list(words), 5):
        key = {"part": "commands", "command": name, "round": number}
        log.measure(key, functools.partial(command_once, words[name]))


def command_once(words: list[str]) -> dict[str, Any]:
    """One call of the command."""
    taken = harness.run([*COMMAND, *words])
    return {"wall": taken.wall, "cpu": taken.cpu}


def other_tables(log: Log) -> list[str]:
    """What records and commands take."""
    pages = []
    for line in log.find(part="records"):
        of_copies = f"augmented copies {line['copies_per_second_per_core']:,}"
        pages.append(
            f"Records copied per second of a core: {line['records_per_second_per_core']:,}; {of_copies}."
        )
    rows = []
    for name in dict.fromkeys(line["command"] for line in log.find(part="commands")):
        lines = [m for m in log.find(part="commands", command=name) if "error" not in m]
        rows.append([name, *(harness.spread([m[what] for m in lines], 2) for what in ("wall", "cpu"))])
    return [*pages, *([harness.table(["command", "wall, s", "CPU, s"], rows)] if rows else [])]


PARTS = {
    "build": measure_build,
    "rebuild": measure_rebuild,
    "records": measure_records,
    "commands": measure_commands,
}


def main() -> None:
    """Runs the parts asked for as far as they are not in the log, and prints the tables of all that is."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", default=list(PARTS), help=f"of {', '.join(PARTS)}")
    parser.add_argument("--folder", type=Path, help="for sets and measurements; a temporary one if not given")
    parser.add_argument("--environments", type=Path, help="rivals' environments; default: in --folder")
    parser.add_argument("--images", type=Path, help="folder of 1024x1024 NIH images")
    parser.add_argument("--metadata", type=Path, help="NIH's table of all images")
    parser.add_argument("--counts", type=int, nargs="+", default=[4000], help="names to make of the images")
    parser.add_argument("--rebuild-count", type=int, default=10_000, help="the same for the rebuild")
    parser.add_argument("--workers", type=int, nargs="+", default=[2])
    parser.add_argument("--builders", nargs="+", choices=[OURS, *BUILDERS], default=[OURS, *BUILDERS],
                        metavar="BUILDER", help=f"of {', '.join([OURS, *BUILDERS])}")  # fmt: skip
    parser.add_argument("--own", action="store_true", help="only builders that need no further environment")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--limit", type=float, default=3600.0, help="seconds after which a command is ended")
    parser.add_argument("--num-originals", type=int, default=100, help="look-alike images to draw")
    parser.add_argument("--lookalike-size", type=int, default=1024, help="side of look-alike images")
    parser.add_argument(
        "--table", action="store_true", help="print the tables of the log, and measure nothing"
    )
    asked = parser.parse_args()
    if unknown := set(asked.parts) - set(PARTS):
        parser.error(f"found {', '.join(sorted(unknown))}; expected parts of {', '.join(PARTS)}")
    with tempfile.TemporaryDirectory() as temporary:
        asked.folder = (asked.folder or Path(temporary)).resolve()
        asked.environments = (asked.environments or asked.folder / "environments").resolve()
        log = Log(asked.folder / "build.jsonl")
        for part in () if asked.table else asked.parts:
            PARTS[part](asked, log)
        print("\n\n".join([*build_tables(log), *rebuild_tables(log), *other_tables(log)]))


if __name__ == "__main__":
    main()
