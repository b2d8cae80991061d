"""The command `bench`: how fast a dataset's records are read into a trainer."""

import json
import time
from collections.abc import Iterator

import click

from cxr_records.cli import PATH
from cxr_records.quiet import load_tensorflow

WARM_UP_SECONDS = 2.0


@click.command()
@click.argument("dataset", type=PATH)
@click.option("--split", default="train", show_default=True, help="Which split is read.")
@click.option("--task", help="Another task than the dataset's, derived while reading.")
@click.option("--batch-size", default=256, show_default=True, help="Records of a batch.")
@click.option("--seconds", default=10.0, show_default=True, help="How long to measure, after a warm-up.")
@click.option(
    "--step-ms", default=0.0, show_default=True, help="Pretend that a trainer's step takes so long."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout and nothing else.")
@click.option("--debug", is_flag=True, help="Show tracebacks.")
def bench(
    dataset: str,
    split: str,
    task: str | None,
    batch_size: int,
    seconds: float,
    step_ms: float,
    as_json: bool,
    debug: bool,
) -> None:
    """Measure how fast records come out of the reader, shuffled, as a trainer gets them.

    With --step-ms the reader is asked for a batch only so often, as by a trainer whose step takes that long:
    the share of the time that it waits is what an accelerator would idle.

    \b
    Example:
      cxr-records bench cxr14
      cxr-records bench cxr14 --batch-size 64 --step-ms 21     a GPU that eats 3,000 images/s
    """
    load_tensorflow()
    from cxr_records.dataset import open_dataset
    from cxr_records.reader import shard_errors

    opened = open_dataset(dataset).as_task(task)
    codec = opened.image_format.codec
    batches = iter(opened.load(split, batch_size, shuffle=True))
    with shard_errors():
        images, waited, passed = _read(batches, WARM_UP_SECONDS, step_ms / 1000, batch_size)
        images, waited, passed = _read(batches, seconds, step_ms / 1000, batch_size)
    figures = {
        "images_per_second": round(images / passed, 1),
        "batch_size": batch_size,
        "codec": codec,
        "seconds": round(passed, 3),
        "input_wait_share": round(waited / passed, 4),
    }
    if as_json:
        click.echo(json.dumps(figures))
        return
    click.echo(
        f"{figures['images_per_second']:,.0f} images/s in batches of {batch_size}, codec {codec}; "
        f"the trainer waited {figures['input_wait_share']:.1%} of the time"
        + (f" with steps of {step_ms:g} ms" if step_ms else " (it did nothing else)")
    )


def _read(
    batches: Iterator[object], seconds: float, step: float, batch_size: int
) -> tuple[int, float, float]:
    """Returns (images, seconds waited, seconds passed) of reading for some time."""
    images, waited = 0, 0.0
    began = now = time.perf_counter()
    while now - began < seconds:
        asked = now
        next(batches)
        got = time.perf_counter()
        waited += got - asked
        images += batch_size
        if step:
            time.sleep(step)
        now = time.perf_counter()
    return images, waited, now - began
