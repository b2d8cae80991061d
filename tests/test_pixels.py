"""Decoding and making smaller with the extension, beside Pillow, which decides what is right."""

import hashlib
import importlib.util
import io
import itertools
import os
import random
import shutil
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pictures import PNG_MARK, SMALL, chunk, colours, png, ramp, saved
from PIL import Image

from cxr_records import png as png_module
from cxr_records import resizing
from cxr_records.images import CODECS, ImageDecodeError, ImageFormat, decode_image
from cxr_records.png import decode_grey, decoder

if not shutil.which(os.environ.get("CC", "cc")):
    pytest.skip("without a C compiler there is no extension", allow_module_level=True)

from cxr_records import _pixels

ROOT = Path(__file__).parents[1]
BILINEAR = Image.Resampling.BILINEAR
MUTANTS = 2000
NOISE = np.random.default_rng(0).integers(0, 256, (120, 150), np.uint8)
# As of an X-ray: smooth, with noise; its stream is none of the small ones.
SMOOTH = (
    120 + 90 * np.sin(np.mgrid[:230, :240][0] / 60) + np.random.default_rng(1).normal(0, 6, (230, 240))
).astype(np.uint8)


@pytest.fixture(scope="session")
def one_lane(tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    """The extension as a compiler without vectors builds it."""
    folder = tmp_path_factory.mktemp("one_lane")
    built = [sys.executable, "setup.py", "-q", "build_ext", "--build-lib", folder, "--build-temp", folder]
    subprocess.run(built, cwd=ROOT, env={**os.environ, "CFLAGS": "-DCXR_ONE_LANE"}, check=True)
    (path,) = folder.rglob("_pixels*.so")
    spec = importlib.util.spec_from_file_location("cxr_records._pixels", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.LANES == 1
    return module


@pytest.fixture(params=["isal", "zlib", "one lane"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Each way to decode without Pillow."""
    if request.param == "zlib":
        monkeypatch.setattr(png_module, "_inflate", zlib)
    if request.param == "one lane":
        monkeypatch.setattr(png_module, "_unfilter", request.getfixturevalue("one_lane").unfilter)
    return request.param


@pytest.fixture
def by_pillow(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple]:
    """What comes of a file where the package was installed without a compiler."""

    def outcome_by_pillow(data: bytes, image_format: ImageFormat = SMALL) -> tuple:
        with monkeypatch.context() as patch:
            patch.setattr(png_module, "_unfilter", None)
            patch.setattr(resizing, "_pixels", None)
            return outcome(data, image_format)

    return outcome_by_pillow


def outcome(data: bytes, image_format: ImageFormat = SMALL) -> tuple:
    try:
        decoded = decode_image(data, image_format)
    except ImageDecodeError as error:
        return ("rejected", str(error))
    return (decoded.pixels.tobytes(), decoded.width, decoded.height, decoded.mode)


def opened(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)))


def filtered(picture: np.ndarray, filters: list[int]) -> bytes:
    """The rows of a PNG, each with the filter asked for (PNG 3rd edition, 9.2)."""
    height, width = picture.shape
    padded = np.zeros((height + 1, width + 1), int)
    padded[1:, 1:] = picture
    left, up, corner = padded[1:, :-1], padded[:-1, 1:], padded[:-1, :-1]
    distances = np.stack([abs(up - corner), abs(left - corner), abs(left + up - 2 * corner)])
    nearest = np.choose(distances.argmin(axis=0), [left, up, corner])
    guesses = [np.zeros_like(left), left, up, (left + up) // 2, nearest]
    rows = [(picture[y] - guesses[kind][y]) % 256 for y, kind in enumerate(filters)]
    return b"".join(
        bytes([kind]) + row.astype(np.uint8).tobytes() for kind, row in zip(filters, rows, strict=True)
    )


def test_the_extension_is_used_wherever_it_could_be_built():
    assert decoder() == "isal and cxr_records"


def test_without_it_pillow_is_named(monkeypatch):
    monkeypatch.setattr(png_module, "_unfilter", None)
    assert decoder() == "pillow"
    assert decode_grey(saved(NOISE)) is None


# ---- the extension --------------------------------------------------------------------------------------


@given(st.integers(1, 70), st.integers(1, 50), st.integers(0, 2**32 - 1), st.integers(1, 255))
@settings(max_examples=150, deadline=None)
@example(16, 16, 0, 255)
@example(1, 1, 0, 255)
@example(1, 33, 0, 255)
@example(33, 17, 0, 1)
def test_pixels_come_back_from_rows_of_any_filters(one_lane, width, height, seed, most):
    draws = np.random.default_rng(seed)
    picture = draws.integers(0, most, (height, width), np.uint8, endpoint=True)
    rows = filtered(picture, draws.integers(0, 5, height).tolist())
    assert _pixels.unfilter(rows, width, height) == picture.tobytes()
    assert one_lane.unfilter(rows, width, height) == picture.tobytes()


def test_the_nearest_of_all_three_neighbours_is_taken_whatever_they_are(one_lane):
    """Left, up and corner of all sizes together, in two rows of which the second has Paeth's filter."""
    values = np.r_[0:256:6, 1, 2, 85, 127:130, 253:256].astype(np.uint8)
    left, up, corner = (each.ravel() for each in np.meshgrid(values, values, values))
    picture = np.stack([np.stack([corner, up], axis=1).ravel(), np.stack([left, ~left], axis=1).ravel()])
    rows = filtered(picture, [0, 4])
    for module in (_pixels, one_lane):
        assert module.unfilter(rows, picture.shape[1], 2) == picture.tobytes()


@pytest.mark.parametrize("filters", [0, 1, 2, 3, 4])
@pytest.mark.parametrize("width", [1, 15, 16, 17, 31, 32, 33, 1024])
def test_each_filter_alone(one_lane, filters, width):
    picture = np.random.default_rng(width).integers(0, 256, (35, width), np.uint8)
    rows = filtered(picture, [filters] * 35)
    for module in (_pixels, one_lane):
        assert module.unfilter(rows, width, 35) == picture.tobytes()


def test_a_filter_that_no_png_has_is_none_in_any_row(one_lane):
    rows = filtered(NOISE[:20, :20], [4] * 20)
    for row in range(20):
        for kind in (5, 255):
            wrong = rows[: 21 * row] + bytes([kind]) + rows[21 * row + 1 :]
            for module in (_pixels, one_lane):
                assert module.unfilter(wrong, 20, 20) is None


@pytest.mark.parametrize(
    ("width", "height"),
    [(5, 5), (4, 6), (0, 30), (30, 0), (-1, 30), (5, -5), (29, 2**62), (2**62, 1), (2**63 - 1, 2), (14, 1)],
)
def test_rows_of_another_size_are_refused(one_lane, width, height):
    for module in (_pixels, one_lane):
        with pytest.raises(ValueError, match=r"the rows are not height times width \+ 1 bytes"):
            module.unfilter(bytes(29), width, height)
        with pytest.raises(OverflowError):
            module.unfilter(bytes(30), 2**63, 1)
        with pytest.raises(TypeError):
            module.unfilter(bytearray(30), 5, 5)


# ---- making smaller -------------------------------------------------------------------------------------


@pytest.fixture(params=["vectors", "one lane"])
def shrinking(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "one lane":
        monkeypatch.setattr(resizing, "_pixels", request.getfixturevalue("one_lane"))


def by_pillow_alone(picture: np.ndarray, side: int, resample: Image.Resampling = BILINEAR) -> np.ndarray:
    return np.asarray(Image.fromarray(picture).resize((side, side), resample))


def test_any_picture_is_made_smaller_to_the_bits_of_pillow(shrinking):
    @given(st.integers(8, 400), st.integers(8, 400), st.integers(1, 400), st.integers(0, 2**32 - 1))
    @settings(max_examples=200, deadline=None)
    @example(1024, 1024, 224, 0)
    @example(8, 8, 7, 0)
    @example(8, 400, 8, 0)
    @example(400, 9, 1, 0)
    def check(width, height, side, seed):
        draws = np.random.default_rng(seed)
        picture = draws.integers(0, 256, (height, width), np.uint8)
        if seed % 2:  # where a sum that is too large or too small shows
            picture = np.where(picture < draws.integers(0, 256), 0, 255).astype(np.uint8)
        assert np.array_equal(resizing.resized(picture, side, BILINEAR), by_pillow_alone(picture, side))

    check()


def test_the_extension_makes_smaller_what_it_can_and_pillow_the_rest(monkeypatch):
    calls = []
    monkeypatch.setattr(
        resizing, "_pixels", SimpleNamespace(shrink=lambda *given: calls.append(1) or _pixels.shrink(*given))
    )
    for picture, side, resample, taken in [
        (NOISE, 100, BILINEAR, True),
        (NOISE, 120, BILINEAR, True),
        (NOISE, 121, BILINEAR, False),  # larger than it is high
        (NOISE, 100, Image.Resampling.BOX, False),
        (NOISE, 100, Image.Resampling.LANCZOS, False),
        (NOISE[:8, :8], 1, BILINEAR, True),
        (NOISE[:7, :8], 1, BILINEAR, False),
        (NOISE[:20, :20], 1, BILINEAR, False),  # weights for 24 pixels
        (NOISE[:20, :20], 20, BILINEAR, False),
    ]:
        calls.clear()
        small = resizing.resized(picture, side, resample)
        assert np.array_equal(small, by_pillow_alone(picture, side, resample))
        assert bool(calls) == taken


def test_weights_that_reach_past_the_pixels_are_refused(one_lane):
    picture = np.zeros((20, 30), np.uint8)
    across, down = resizing._weights(30, 10), resizing._weights(20, 10)
    for module in (_pixels, one_lane):
        assert module.shrink(picture, 30, 20, *across, *down) == bytes(100)
        for width, height, x, y in [
            (20, 30, across, down),
            (0, 20, across, down),
            (-30, -20, across, down),
            (600, 2**62, across, down),
            (30, 20, (across[0] + 1, across[1]), down),
            (30, 20, across, (down[0] - 1, down[1])),
            (30, 20, (across[0][:9], across[1]), down),
            (30, 20, across, (down[0], down[1][:, :, :7])),
            (30, 20, (across[0][:0], across[1][:0]), down),
            (30, 20, (across[0].tobytes()[:-1], across[1]), down),
            (30, 20, across, (down[0], np.zeros((2, 10, 24), np.int16))),
        ]:
            with pytest.raises(ValueError, match=r"not for this many pixels|C-contiguous"):
                module.shrink(picture, width, height, *x, *y)


# ---- files ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("picture", [NOISE, SMOOTH, ramp(), ramp(1, 1), ramp(300, 1), ramp(1, 300)], ids=str)
def test_grey_files_are_decoded_without_pillow(way, picture):
    for options in ({}, {"compress_level": 1}, {"compress_level": 0}, {"optimize": True}):
        assert np.array_equal(decode_grey(saved(picture, **options)), picture)


def test_real_originals_of_plain_grey_are_decoded_to_the_same_pixels(nih, way):
    paths = sorted((nih / "images").glob("*.png"))[:: 1 if way == "isal" else 20]
    others = 0
    for path in paths:
        data = path.read_bytes()
        pixels = decode_grey(data)
        others += pixels is None
        assert pixels is None or np.array_equal(pixels, opened(data)), path.name
        assert (pixels is None) == (data[25] != 0)
    assert others == 6 or way != "isal"  # those of colours and transparency


def test_stored_png_records_are_decoded_to_the_same_pixels(way):
    image_format = ImageFormat(230, "png")
    pixels = SMOOTH[:, :230]
    assert np.array_equal(image_format.decode(image_format.encode(pixels)), pixels)
    assert "png" in CODECS


def around(data: bytes, where: bytes, *more: bytes, after: bool = False) -> bytes:
    """A PNG with further chunks before or after the first chunk of a kind."""
    at = data.index(where) - 4
    at += after * (12 + int.from_bytes(data[at : at + 4], "big"))
    return data[:at] + b"".join(more) + data[at:]


def with_stream(stream: bytes, width: int, height: int, *cuts: int) -> bytes:
    """A grey PNG of a zlib stream, cut into chunks."""
    ends = [0, *cuts, len(stream)]
    parts = [chunk(b"IDAT", stream[start:end]) for start, end in itertools.pairwise(ends)]
    return png(width, height, 8, 0, b"", *parts)


def rows_of(picture: np.ndarray) -> bytes:
    return filtered(picture, [y % 5 for y in range(len(picture))])


def deflated(rows: bytes, level: int = 6, window: int = 15, strategy: int = 0) -> bytes:
    packer = zlib.compressobj(level, zlib.DEFLATED, window, 9, strategy)
    return packer.compress(rows) + packer.flush()


PLAIN = saved(SMOOTH)
GAMMA = chunk(b"gAMA", b"\0\0\xb1\x8f")
STREAM = deflated(rows_of(SMOOTH))
HIGH, WIDE = SMOOTH.shape
OTHERS = {
    "transparency": around(PLAIN, b"IDAT", chunk(b"tRNS", b"\0\7")),
    "an eXIf": around(PLAIN, b"IDAT", chunk(b"eXIf", b"MM\0*\0\0\0\x08\0\0\0\0\0\0")),
    "a chunk of others": around(PLAIN, b"IDAT", chunk(b"juNk", b"x")),
    "a palette": around(PLAIN, b"IDAT", chunk(b"PLTE", bytes(768))),
    "a time among its pixels": around(
        with_stream(STREAM, WIDE, HIGH, 900), b"IDAT", chunk(b"tIME", bytes(7)), after=True
    ),
    "16 bits": saved(SMOOTH.astype(np.uint16) * 257),
    "one bit": saved(Image.fromarray(SMOOTH).convert("1")),
    "colours": saved(colours()),
    "grey with alpha": saved(Image.fromarray(SMOOTH).convert("LA")),
    "interlaced": PNG_MARK + chunk(b"IHDR", PLAIN[16:28] + b"\1") + PLAIN[33:],
    "another compression": PNG_MARK + chunk(b"IHDR", PLAIN[16:26] + b"\1\0\0") + PLAIN[33:],
    "another filter method": PNG_MARK + chunk(b"IHDR", PLAIN[16:26] + b"\0\1\0") + PLAIN[33:],
    "no width": PNG_MARK + chunk(b"IHDR", bytes(4) + PLAIN[20:29]) + PLAIN[33:],
    "no height": PNG_MARK + chunk(b"IHDR", PLAIN[16:20] + bytes(4) + PLAIN[24:29]) + PLAIN[33:],
    "more pixels than are allowed": png(8193, 8192, 8, 0, b"\0" * 100),
    "very wide": png(20_000, 1, 8, 0, bytes(20_001)),
    "a row too much": with_stream(deflated(rows_of(SMOOTH) + bytes(WIDE + 1)), WIDE, HIGH),
    "a byte too much": with_stream(deflated(rows_of(SMOOTH) + b"\0"), WIDE, HIGH),
    "a row too few": with_stream(deflated(rows_of(SMOOTH)[: -WIDE - 1]), WIDE, HIGH),
    "a byte too few": with_stream(deflated(rows_of(SMOOTH)[:-1]), WIDE, HIGH),
    "an unknown filter": with_stream(deflated(rows_of(SMOOTH[1:]) + b"\5" + bytes(WIDE)), WIDE, HIGH),
    "a wrong checksum of its stream": with_stream(STREAM[:-1] + bytes([STREAM[-1] ^ 1]), WIDE, HIGH),
    "no checksum of its stream": with_stream(STREAM[:-4], WIDE, HIGH),
    "half a checksum": with_stream(STREAM[:-2], WIDE, HIGH),
    "bytes after its stream": with_stream(STREAM + b"more", WIDE, HIGH),
    "a window smaller than it": with_stream(deflated(rows_of(SMOOTH), window=9), WIDE, HIGH),
    "a dictionary": with_stream(b"\x78\x20" + STREAM[2:], WIDE, HIGH),
    "a stream of no kind": with_stream(b"\x79\x9b" + STREAM[2:], WIDE, HIGH),
    "a stream of one byte": with_stream(b"\x78", WIDE, HIGH),
    "no mark": b"\0" + PLAIN[1:],
    "no stream": png(WIDE, HIGH, 8, 0, b"", chunk(b"IDAT", b"")),
}  # fmt: skip
TAKEN = {
    "one of many chunks": with_stream(STREAM, WIDE, HIGH, *range(10, len(STREAM), 100)),
    "one of empty chunks": with_stream(STREAM, WIDE, HIGH, 0, 1, 1, 2, 2, len(STREAM)),
    "one without matches": with_stream(deflated(rows_of(SMOOTH), strategy=zlib.Z_HUFFMAN_ONLY), WIDE, HIGH),
    "one of fixed codes": with_stream(deflated(rows_of(SMOOTH), strategy=zlib.Z_FIXED), WIDE, HIGH),
    "one of stored blocks": with_stream(deflated(rows_of(SMOOTH), level=0), WIDE, HIGH),
    "one of a small window that holds it": with_stream(
        deflated(rows_of(SMOOTH[:9, :20]), window=9), 20, 9
    ),
    "a time": around(PLAIN, b"IDAT", chunk(b"tIME", bytes(7))),
    "a time at its end": around(PLAIN, b"IEND", chunk(b"tIME", bytes(7))),
    "a background": around(PLAIN, b"IDAT", chunk(b"bKGD", b"\0\7")),
    "what no pixel needs": around(PLAIN, b"IDAT", GAMMA, chunk(b"tEXt", b"Comment\0x")),
    "the first of an animation": saved(
        Image.fromarray(SMOOTH), save_all=True, append_images=[Image.fromarray(SMOOTH[::-1])]
    ),
    "more after its end": PLAIN + b"PK\x03\x04" * 100,
}  # fmt: skip


@pytest.mark.parametrize("kind", OTHERS)
def test_what_is_not_plain_is_left_to_pillow(way, by_pillow, kind):
    assert decode_grey(OTHERS[kind]) is None
    assert outcome(OTHERS[kind]) == by_pillow(OTHERS[kind])


@pytest.mark.parametrize("kind", TAKEN)
def test_what_is_plain_is_decoded_as_pillow_does(way, by_pillow, kind):
    assert decode_grey(TAKEN[kind]) is not None
    assert outcome(TAKEN[kind]) == by_pillow(TAKEN[kind])
    assert outcome(TAKEN[kind])[0] != "rejected"


def test_the_pixels_cannot_be_written_to():
    with pytest.raises(ValueError, match="read-only"):
        decode_grey(PLAIN)[0, 0] = 1


# ---- damage ---------------------------------------------------------------------------------------------


def chunks(data: bytes) -> list[tuple[bytes, bytes]]:
    """Names and data of a PNG's chunks."""
    at, found = 8, []
    while at < len(data):
        end = at + 8 + int.from_bytes(data[at : at + 4], "big")
        found.append((data[at + 4 : at + 8], data[at + 8 : end]))
        at = end + 4
    return found


def put_together(parts: list[tuple[bytes, bytes]]) -> bytes:
    return PNG_MARK + b"".join(chunk(name, data) for name, data in parts)


def altered(draws: random.Random, data: bytes, low: int = 0) -> bytes:
    """A bit or byte of it another, or a piece lost, doubled or made anew; near its beginning more often."""
    made = bytearray(data)
    if len(made) <= low:
        return data + b"\0"
    at = draws.randrange(low, draws.choice((len(made), min(len(made), low + 60))))
    length = draws.choice((1, 2, 50))
    change = draws.randrange(5)
    if change == 0:
        made[at] ^= 1 << draws.randrange(8)
    elif change == 1:
        made[at] = draws.randrange(256)
    elif change == 2:
        del made[at : at + length]
    elif change == 3:
        made[at:at] = made[at : at + length]
    else:
        made[at:at] = draws.randbytes(length)
    return bytes(made)


FURTHER = [
    (b"tIME", bytes(7)), (b"tRNS", b"\0\7"), (b"gAMA", b"\0\0\xb1\x8f"), (b"IDAT", b""), (b"PLTE", bytes(9)),
    (b"eXIf", b"junk"), (b"acTL", bytes(8)), (b"bKGD", b"\0\1"), (b"juNk", b"x"), (b"tEXt", b"a\0b"),
]  # fmt: skip


def mutant(draws: random.Random, data: bytes) -> bytes:
    """A PNG with one thing wrong; mostly with all checksums made right again, which tell everything else."""
    if draws.random() < 0.1:
        return altered(draws, data)
    parts = chunks(data)
    place = draws.randrange(len(parts))
    stream = b"".join(body for name, body in parts if name == b"IDAT")
    change = draws.randrange(9)
    if change == 0:
        parts[place] = (parts[place][0], altered(draws, parts[place][1]))
    elif change == 1:
        del parts[place]
    elif change == 2:
        parts.insert(place, parts[draws.randrange(len(parts))])
    elif change == 3:
        parts.insert(place, draws.choice(FURTHER))
    elif change == 4:
        header = bytearray(parts[0][1])
        header[draws.choice((2, 3, 6, 7, 8, 9, 10, 11, 12))] = draws.choice((0, 1, 2, 4, 8, 16, 24, 255))
        parts[0] = (b"IHDR", bytes(header))
    else:
        if change == 5:
            stream = altered(draws, stream)
        elif change == 6:  # the rows, and so all of the stream
            rows = altered(draws, zlib.decompress(stream))
            stream = deflated(rows, draws.choice((0, 1, 6)), draws.choice((15, 15, 9)), draws.randrange(5))
        elif change == 7:  # the checksum of the stream alone
            stream = altered(draws, stream, low=max(0, len(stream) - 4))
        cut = draws.randint(0, len(stream))
        parts = [(b"IHDR", parts[0][1]), (b"IDAT", stream[:cut]), (b"IDAT", stream[cut:]), (b"IEND", b"")]
    return put_together(parts)


SEEDS = [saved(SMOOTH[:60, :90]), saved(NOISE[:40, :30]), saved(ramp()), saved(ramp() * 0 + 3), PLAIN]


def test_mutants_have_the_pixels_or_the_reason_that_they_have_by_pillow(by_pillow):
    check_mutants(SEEDS, MUTANTS, by_pillow)


def test_mutants_of_real_originals_have_the_pixels_or_the_reason_too(nih, by_pillow):
    paths = sorted((nih / "images").glob("*.png"))[::15]
    check_mutants([path.read_bytes() for path in paths], 100, by_pillow)


def check_mutants(wholes: list[bytes], count: int, by_pillow: Callable[..., tuple]) -> None:
    taken = rejected = 0
    draws = random.Random(0)
    for _ in range(count):
        data = mutant(draws, draws.choice(wholes))
        came, pixels = outcome(data), decode_grey(data)
        assert came == by_pillow(data)
        assert pixels is None or came[0] != "rejected"
        taken += pixels is not None
        rejected += came[0] == "rejected"
    assert taken > count // 10  # of both there are many
    assert rejected > count // 3


# ---- without a compiler ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("compiler", "named"), [(None, "isal and cxr_records"), ("/bin/false", "pillow")])
def test_the_package_is_installed_with_a_compiler_or_without_one_and_decodes_to_the_same_pixels(
    tmp_path, compiler, named
):
    source, where = tmp_path / "source", tmp_path / "installed"
    for folder in ("cxr_records", "pipelines", "trainers"):
        built = shutil.ignore_patterns("*.so", "__pycache__")
        shutil.copytree(ROOT / folder, source / folder, ignore=built)
    for name in ("setup.cfg", "setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    environment = {**os.environ, **({"CC": compiler} if compiler else {})}
    subprocess.run([*pip, "-w", tmp_path, source], env=environment, check=True)
    (wheel,) = tmp_path.glob("*.whl")
    assert "-cp310-abi3-" in wheel.name
    with zipfile.ZipFile(wheel) as packed:
        packed.extractall(where)
        assert any("_pixels." in name and name.endswith(".so") for name in packed.namelist()) == (
            compiler is None
        )
    (tmp_path / "picture.png").write_bytes(PLAIN)
    script = (
        "import hashlib, pathlib, sys; from cxr_records import images, png\n"
        "decoded = images.decode_image(pathlib.Path(sys.argv[1]).read_bytes(), images.ImageFormat())\n"
        "print(png.__file__, hashlib.sha256(decoded.pixels.tobytes()).hexdigest(), png.decoder(), sep='|')"
    )
    said = subprocess.run(
        # Without site, which would find this clone's extension too.
        [sys.executable, "-S", "-c", script, tmp_path / "picture.png"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(where), *filter(None, sys.path)])},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    pixels = decode_image(PLAIN, ImageFormat()).pixels
    digest = hashlib.sha256(pixels.tobytes()).hexdigest()
    assert said == f"{where / 'cxr_records' / 'png.py'}|{digest}|{named}"
