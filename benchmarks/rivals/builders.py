"""The builders that bench_build.py compares: from PNG files to grey pixels of one size in files to train on.

    builders.py NAME IMAGES OUT --size 224 --workers 2

Runs in a rival's environment. All decode by Pillow, but for `bare_ours`; all go over the same files, and
store pixels raw beside a number that stands for a label.
"""

import argparse
import io
import multiprocessing
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image


def decode(path: str, size: int) -> np.ndarray:
    """Reads, decodes, to grey, resizes: uint8 [size, size]."""
    data = Path(path).read_bytes()
    image = Image.open(io.BytesIO(data)).convert("L").resize((size, size), Image.Resampling.BILINEAR)
    return np.asarray(image)


def decode_ours(path: str, size: int) -> np.ndarray:
    """The same by this library's decoder."""
    from cxr_records.images import ImageFormat, decode_image

    return decode_image(Path(path).read_bytes(), ImageFormat(size)).pixels


def in_processes(
    function: Callable[[list[str], Path], None], paths: list[str], out: Path, workers: int
) -> None:
    """Lets each process have every so-manieth file and an output of its own."""
    context = multiprocessing.get_context("spawn")
    processes = [
        context.Process(target=function, args=(paths[number::workers], out / f"part-{number}"))
        for number in range(workers)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    if any(process.exitcode for process in processes):
        raise SystemExit("a worker failed")


def loop_raw(decoder: Callable[[str, int], np.ndarray], size: int, paths: list[str], part: Path) -> None:
    """Pixels one after the other."""
    with open(part, "wb") as file:
        for path in paths:
            file.write(decoder(path, size).tobytes())


def loop_records(size: int, paths: list[str], part: Path) -> None:
    """TFRecords of Examples, without TensorFlow, whose import takes seconds."""
    from cxr_records.examples import example_parts
    from cxr_records.tfrecord import frame_parts

    with open(part, "wb") as file:
        for path in paths:
            values = {"image": decode(path, size).tobytes(), "label": 0, "image_id": os.path.basename(path)}
            file.writelines(frame_parts(example_parts(values)))


def loop_mds(size: int, paths: list[str], part: Path) -> None:
    """MosaicML's writer."""
    from streaming import MDSWriter

    columns = {"image": f"ndarray:uint8:{size},{size},1", "label": "int"}
    with MDSWriter(out=str(part), columns=columns) as writer:
        for path in paths:
            writer.write({"image": decode(path, size)[..., None], "label": 0})


def bare_pillow(paths: list[str], out: Path, size: int, workers: int) -> None:
    """The least that any builder with Pillow must do."""
    in_processes(partial(loop_raw, decode, size), paths, out, workers)


def bare_ours(paths: list[str], out: Path, size: int, workers: int) -> None:
    """The same with our decoder."""
    in_processes(partial(loop_raw, decode_ours, size), paths, out, workers)


def bare_tfrecord(paths: list[str], out: Path, size: int, workers: int) -> None:
    """A loop with Pillow that writes TFRecords."""
    in_processes(partial(loop_records, size), paths, out, workers)


def mosaicml(paths: list[str], out: Path, size: int, workers: int) -> None:
    """MDSWriter in a process for each core, and their indexes merged."""
    from streaming.base.util import merge_index

    in_processes(partial(loop_mds, size), paths, out, workers)
    merge_index(str(out))


def litdata_row(size: int, path: str) -> dict[str, Any]:
    """One of LitData's rows."""
    return {"image": decode(path, size)[..., None], "label": 0}


def litdata(paths: list[str], out: Path, size: int, workers: int) -> None:
    """LitData's `optimize`."""
    from litdata import optimize

    optimize(partial(litdata_row, size), paths, str(out / "set"), chunk_bytes="64MB", num_workers=workers)


def tfds_row(size: int, path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """One of TFDS's rows."""
    yield os.path.basename(path), {"image": decode(path, size)[..., None], "label": 0}


def tfds_beam(paths: list[str], out: Path, size: int, workers: int) -> None:
    """A Beam builder of TensorFlow Datasets on the DirectRunner."""
    import apache_beam as beam
    import tensorflow_datasets as tfds
    from apache_beam.options.pipeline_options import PipelineOptions

    class Images(tfds.core.GeneratorBasedBuilder):  # type: ignore[misc,name-defined]
        name, VERSION = "images", tfds.core.Version("1.0.0")
        pkg_dir_path = out

        def _info(self) -> Any:
            image = tfds.features.Tensor(shape=(size, size, 1), dtype=np.uint8)
            return self.dataset_info_from_configs(
                features=tfds.features.FeaturesDict({"image": image, "label": np.int64})
            )

        def _split_generators(self, manager: Any) -> Any:
            return {"train": self._generate_examples()}

        def _generate_examples(self) -> Any:
            return beam.Create(paths) | beam.FlatMap(partial(tfds_row, size))

    running = [f"--direct_num_workers={workers}", "--direct_running_mode=multi_processing"]
    config = tfds.download.DownloadConfig(
        beam_runner="DirectRunner", beam_options=PipelineOptions(running), try_download_gcs=False
    )
    Images(data_dir=str(out / "set")).download_and_prepare(download_config=config)


@dataclass(frozen=True)
class Builder:
    """A builder: the requirements file of its environment ("" is ours), packages, and what it is."""

    build: Callable[[list[str], Path, int, int], None]
    environment: str
    packages: tuple[str, ...]
    said: str


BUILDERS = {
    "bare_pillow": Builder(bare_pillow, "", ("pillow",), "bare loop with Pillow, raw pixels"),
    "bare_tfrecord": Builder(bare_tfrecord, "", ("pillow",), "bare loop with Pillow, TFRecords"),
    "bare_ours": Builder(bare_ours, "", (), "bare loop with our decoder, raw pixels"),
    "litdata": Builder(litdata, "torch", ("litdata", "pillow"), "LitData, `optimize`"),
    "mosaicml": Builder(mosaicml, "torch", ("mosaicml-streaming", "pillow"), "MosaicML, `MDSWriter`"),
    "tfds_beam": Builder(
        tfds_beam, "tfds", ("tensorflow-datasets", "apache-beam", "pillow"), "TFDS, Beam's DirectRunner"
    ),
}


def main() -> None:
    """Builds."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", choices=list(BUILDERS))
    parser.add_argument("images", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--workers", type=int, default=2)
    asked = parser.parse_args()
    asked.out.mkdir(parents=True)
    paths = sorted(str(path) for path in asked.images.iterdir())
    BUILDERS[asked.name].build(paths, asked.out, asked.size, asked.workers)
    written = sum(path.stat().st_size for path in asked.out.rglob("*") if path.is_file())
    if written < len(paths) * asked.size**2:
        raise SystemExit(f"{written} bytes were written, less than {len(paths)} images have")


if __name__ == "__main__":
    main()
