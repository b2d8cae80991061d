"""Measures decoders of grey PNG and JPEG on one thread: python benchmarks/bench_png.py --help.

Rivals are timed where they are installed: in an environment of their own, pip install deflate imagecodecs
kornia_rs opencv-python-headless pyspng tensorflow zlib-ng. Rounds are interleaved, each image counts with the
least processor time that it took, and `equal` says whether every pixel of every image is Pillow's.
"""

import argparse
import contextlib
import io
import json
import statistics
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from cxr_records import png, resizing

JPEG_QUALITY = 95  # as stored JPEG records have it
Decoder = Callable[[bytes], np.ndarray]


def by_pillow(data: bytes) -> np.ndarray:
    """What all others are compared with."""
    return np.asarray(Image.open(io.BytesIO(data)))


def png_decoders() -> Iterator[tuple[str, Decoder]]:
    """Yields decoders of PNG that are installed."""
    yield "Pillow", by_pillow
    yield f"cxr_records ({png.decoder()})", png.decode_grey
    with contextlib.suppress(ImportError):
        import imagecodecs

        yield "imagecodecs, libpng", imagecodecs.png_decode
        yield "imagecodecs, libspng", imagecodecs.spng_decode
    with contextlib.suppress(ImportError):
        import pyspng

        yield "pyspng", pyspng.load
    with contextlib.suppress(ImportError):
        import cv2

        cv2.setNumThreads(1)
        yield "OpenCV", lambda data: cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_GRAYSCALE)
    with contextlib.suppress(ImportError):
        import kornia_rs.io

        yield (
            "kornia_rs",
            lambda data: np.asarray(kornia_rs.io.decode_image_png_u8(data, (1024, 1024), "mono")),
        )
    with contextlib.suppress(ImportError):
        import tensorflow as tf

        yield "TensorFlow", lambda data: tf.io.decode_png(data, 1).numpy()


def inflaters() -> Iterator[tuple[str, Callable[[bytes, int], bytes]]]:
    """Yields inflaters that are installed."""
    yield "zlib", lambda packed, size: zlib.decompressobj().decompress(packed, size + 1)
    with contextlib.suppress(ImportError):
        from isal import isal_zlib

        yield "isal", lambda packed, size: isal_zlib.decompressobj().decompress(packed, size + 1)
    with contextlib.suppress(ImportError):
        from zlib_ng import zlib_ng

        yield "zlib-ng", lambda packed, size: zlib_ng.decompressobj().decompress(packed, size + 1)
    with contextlib.suppress(ImportError):
        import deflate

        yield "deflate (libdeflate)", lambda packed, size: deflate.zlib_decompress(packed, size)


def jpeg_decoders() -> Iterator[tuple[str, Decoder]]:
    """Yields decoders of JPEG that are installed."""
    yield "Pillow", by_pillow
    with contextlib.suppress(ImportError):
        import simplejpeg

        yield "simplejpeg", lambda data: simplejpeg.decode_jpeg(data, "GRAY")
    with contextlib.suppress(ImportError):
        import imagecodecs

        yield "imagecodecs", imagecodecs.jpeg8_decode
    with contextlib.suppress(ImportError):
        import cv2

        yield "OpenCV", lambda data: cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_GRAYSCALE)
    with contextlib.suppress(ImportError):
        import tensorflow as tf

        yield "TensorFlow", lambda data: tf.io.decode_jpeg(data, 1).numpy()
        yield (
            "TensorFlow, INTEGER_ACCURATE",
            lambda data: tf.io.decode_jpeg(data, 1, dct_method="INTEGER_ACCURATE").numpy(),
        )


def measure(functions: dict[str, Callable], inputs: list, right: list[bytes], rounds: int) -> dict:
    """Times every function on every input, in turn; returns {name: milliseconds and whether all is right}."""
    least = {name: [float("inf")] * len(inputs) for name in functions}
    equal = dict.fromkeys(functions, True)
    for _ in range(rounds):
        for name, function in functions.items():
            for place, given in enumerate(inputs):
                started = time.thread_time()
                made = function(given)
                least[name][place] = min(least[name][place], time.thread_time() - started)
                equal[name] &= bytes(memoryview(made).cast("B")) == right[place]
    return {
        name: {"cpu_ms": round(1e3 * statistics.mean(spent), 3), "equal": equal[name]}
        for name, spent in least.items()
    }


def main() -> None:
    """Measures and prints one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--images", type=Path, required=True, help="folder of 1024x1024 NIH images")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    files = [path.read_bytes() for path in sorted(arguments.images.glob("*.png"))]
    files = [data for data in files if data[24:29] == b"\x08\0\0\0\0"]  # 8-bit grey, row by row
    pictures = [by_pillow(data) for data in files]
    right = [picture.tobytes() for picture in pictures]
    results = {"images": len(files), "png": measure(dict(png_decoders()), files, right, arguments.rounds)}
    packed = [
        b"".join(chunk.whole[8:-4] for chunk in png.needed_chunks(data) if chunk.kind == b"IDAT")
        for data in files
    ]
    sizes = {stream: picture.size + len(picture) for stream, picture in zip(packed, pictures, strict=True)}
    results["inflate"] = measure(
        {
            name: (lambda stream, inflate=inflate: inflate(stream, sizes[stream]))
            for name, inflate in inflaters()
        },
        packed,
        [zlib.decompress(stream) for stream in packed],
        arguments.rounds,
    )
    bilinear = Image.Resampling.BILINEAR
    for side in (224, 512):
        small = [np.asarray(Image.fromarray(each).resize((side, side), bilinear)) for each in pictures]
        results[f"resize {side}"] = measure(
            {
                "Pillow": lambda each, side=side: np.asarray(
                    Image.fromarray(each).resize((side, side), bilinear)
                ),
                "cxr_records": lambda each, side=side: resizing.resized(each, side, bilinear),
            },
            pictures,
            [each.tobytes() for each in small],
            arguments.rounds,
        )
        stored = []
        for each in small:
            buffer = io.BytesIO()
            Image.fromarray(each).save(buffer, "JPEG", quality=JPEG_QUALITY)
            stored.append(buffer.getvalue())
        results[f"jpeg {side}"] = measure(
            dict(jpeg_decoders()), stored, [by_pillow(data).tobytes() for data in stored], arguments.rounds
        )
    print(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
