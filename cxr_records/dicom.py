"""DICOM files to 8-bit grey, with the shades that dcmtk shows."""

import io
import struct
import sys
import zlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from cxr_records.decoding import MAX_PIXELS, DecoderMissingError, ImageDecodeError, check_pixels, decoding
from cxr_records.errors import CxrError
from cxr_records.jpeg import check_jpeg
from cxr_records.quiet import stderr_kept

if TYPE_CHECKING:  # an extra package
    import pydicom

MAX_BITS = 16  # of a pixel; X-rays have 8 to 16
# What a compressed file may inflate to: the largest image, and a generous header.
MAX_INFLATED_BYTES = MAX_PIXELS * MAX_BITS // 8 + (64 << 20)
# Elements and items of a file, each of which pydicom makes an object of; real ones have some hundreds.
MAX_ELEMENTS = 200_000
_TOO_MANY = f"DICOM of more than {MAX_ELEMENTS:,} elements"
MAX_TABLE_BYTES = 4 << 20  # of a sequence of lookup tables; one of 16 bits has 128 KiB
INSTALL = "pip install '.[dicom]' in a clone"

_NEEDED = ("Rows", "Columns", "PhotometricInterpretation", "BitsAllocated", "BitsStored", "PixelData")
_EXPLICIT = "1.2.840.10008.1.2.1"
_DEFLATED = "1.2.840.10008.1.2.1.99"
_JPEG_EXTENDED = "1.2.840.10008.1.2.4.51"
_JPEG_LOSSLESS = "1.2.840.10008.1.2.4.57"
_ITEM = b"\xfe\xff\x00\xe0"  # begins each piece of a compressed frame
_RLE = "1.2.840.10008.1.2.5"
# Who decodes what: the first of these that is installed, never another one after it has failed, so that
# neither pixels nor a rejection depend on what else is there.
_DECODERS = {
    "1.2.840.10008.1.2.4.50": ("pillow",),  # JPEG baseline
    _JPEG_EXTENDED: ("pillow",),  # of 8 bits; of 12 as _JPEG_LOSSLESS, see _decoder
    _JPEG_LOSSLESS: ("gdcm", "pylibjpeg"),
    "1.2.840.10008.1.2.4.70": ("gdcm", "pylibjpeg"),  # JPEG lossless, first-order prediction
    "1.2.840.10008.1.2.4.80": ("pyjpegls", "gdcm", "pylibjpeg"),  # JPEG-LS
    "1.2.840.10008.1.2.4.81": ("pyjpegls", "gdcm", "pylibjpeg"),
    "1.2.840.10008.1.2.4.90": ("pillow", "pylibjpeg", "gdcm"),  # JPEG 2000
    "1.2.840.10008.1.2.4.91": ("pillow", "pylibjpeg", "gdcm"),
    "1.2.840.10008.1.2.4.201": ("pylibjpeg",),  # High-Throughput JPEG 2000
    "1.2.840.10008.1.2.4.202": ("pylibjpeg",),
    "1.2.840.10008.1.2.4.203": ("pylibjpeg",),
    _RLE: ("pydicom",),
}
# The package that the extra brings for each.
_PACKAGES = {"gdcm": "python-gdcm", "pyjpegls": "pyjpegls", "pylibjpeg": "pylibjpeg-openjpeg"}


def decode_dicom(data: bytes) -> tuple[Image.Image, str]:
    """Decodes a DICOM file of one grey frame; returns 8-bit grey and the photometric interpretation.

    Stored values are cut out by BitsStored and HighBit, go through the modality table or slope and
    intercept, and become shades by the first table of the VOI LUT sequence that can be read, else by the
    first window that can be, else from the smallest to the largest value at hand (dcmtk's `dcm2pnm +Wl 1`,
    `+Wi 1` and `+Wm`). MONOCHROME1 is inverted, unless PresentationLUTShape says otherwise.

    Raises:
        ImageDecodeError: with the reason; DecoderMissingError where a package would help.
        CxrError: the package that reads DICOM is not installed.
    """
    try:
        import pydicom
    except ImportError:
        raise CxrError(f"DICOM files need an extra package; {INSTALL}") from None
    with decoding():
        try:
            dicom = pydicom.dcmread(_CountedReads(_inflated(data)))
        except OSError as error:  # which pydicom makes of whatever is raised where an item begins
            raise error.__context__ or error from None
        for name in _NEEDED:
            if dicom.get(name) is None:
                raise ImageDecodeError(f"DICOM that holds no picture: it has no {name}")
        check_pixels(int(dicom.Columns), int(dicom.Rows))
        photometric, frames = str(dicom.PhotometricInterpretation), int(dicom.get("NumberOfFrames") or 1)
        if frames != 1 or not photometric.startswith("MONOCHROME"):
            raise ImageDecodeError(f"DICOM of {frames} {photometric} frames: expected one grey frame")
        if dicom.BitsAllocated > MAX_BITS:
            raise ImageDecodeError(
                f"DICOM of {dicom.BitsAllocated} bits per pixel: expected {MAX_BITS} at most"
            )
        stored, meanings = _stored(dicom, _pixels(dicom))
        values = _modality_values(dicom, meanings)
        shades = _shades(dicom, values, values[_at_hand(stored, len(values))])
        shape = str(dicom.get("PresentationLUTShape") or "").strip()
        # The smallest value is white (PS3.3, C.7.6.3.1.2); a shape that is given says it itself (C.11.6.1.2).
        if shape == "INVERSE" or (photometric == "MONOCHROME1" and shape != "IDENTITY"):
            shades = 1 - shades
        grey = np.rint(shades * 255).astype(np.uint8)
        return Image.fromarray(np.concatenate([grey[rows] for rows in _row_blocks(stored)])), photometric


# ---- from the file to pixels ----------------------------------------------------------------------------


class _CountedReads(io.BytesIO):
    """The bytes of a file, which stop a reader that finds more elements in it than in any X-ray."""

    reads = 0

    def read(self, size: int | None = -1, /) -> bytes:
        """Reads as any file does; pydicom reads at least once for each element or item."""
        self.reads += 1
        if self.reads > 2 * MAX_ELEMENTS:  # the head of each, and its value
            raise ImageDecodeError(_TOO_MANY)
        return super().read(size)


def _inflated(data: bytes) -> bytes:
    """Returns a deflated file as a plain one, others as they are.

    Raises:
        ImageDecodeError: it inflates beyond all X-rays; pydicom would inflate all of it.
    """
    from pydicom.filereader import read_dataset

    stream = _CountedReads(data)
    stream.seek(132)  # after the preamble and "DICM"
    # The header of the file is never compressed (PS3.10, 7.1).
    header = read_dataset(stream, False, True, stop_when=lambda tag, vr, length: tag >> 16 != 2)
    if header.get("TransferSyntaxUID") != _DEFLATED:
        return data
    start, size = stream.tell(), 0
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    while packed := stream.read(1 << 16):
        while packed and not inflater.eof:
            size += len(inflater.decompress(packed, 1 << 20))
            if size > MAX_INFLATED_BYTES:
                raise ImageDecodeError(f"DICOM that inflates to more than {MAX_INFLATED_BYTES:,} bytes")
            packed = inflater.unconsumed_tail
    # Identifiers may be padded by zeros (PS3.5, 6.2); so the header keeps its length.
    plain = _EXPLICIT.encode().ljust(len(_DEFLATED), b"\0")
    return data[:start].replace(_DEFLATED.encode(), plain) + zlib.decompress(data[start:], -zlib.MAX_WBITS)


def _pixels(dicom: "pydicom.FileDataset") -> np.ndarray:
    """Returns the pixels as they are stored, [height, width] of one or two bytes each."""
    syntax, plugin = dicom.file_meta.TransferSyntaxUID, ""
    if syntax.is_encapsulated:
        from pydicom.encaps import generate_frames

        if dicom.PixelData.count(_ITEM) > MAX_ELEMENTS:
            raise ImageDecodeError(_TOO_MANY)
        frame = next(generate_frames(dicom.PixelData, number_of_frames=1))
        if syntax == _RLE:
            _check_rle(frame, int(dicom.Rows) * int(dicom.Columns))
        else:
            precision = _check_frame(frame, int(dicom.Columns), int(dicom.Rows))
            if syntax == _JPEG_EXTENDED and precision > 8:
                # GDCM decodes it by what the frame says; pydicom asks it only under this name.
                syntax = dicom.file_meta.TransferSyntaxUID = type(syntax)(_JPEG_LOSSLESS)
        plugin = _decoder(syntax)
    # It would correct bits that are not stored without a look at HighBit; `_stored` does it.
    dicom.pixel_array_options(decoding_plugin=plugin, correct_unused_bits=False)
    try:
        pixels = _by_gdcm(dicom) if plugin == "gdcm" else dicom.pixel_array
    except RuntimeError as error:
        # pydicom lists what each of its plugins said; we ask one.
        raise ImageDecodeError(
            f"cannot be decoded: {str(error).rpartition(f'{plugin}: ')[2].strip()}"
        ) from error
    if pixels.ndim != 2:
        shape = "x".join(map(str, pixels.shape))
        raise ImageDecodeError(f"DICOM whose pixels are {shape} samples: expected one grey frame")
    return pixels.astype(pixels.dtype.newbyteorder("="), copy=False)


def _by_gdcm(dicom: "pydicom.Dataset") -> np.ndarray:
    """Decodes by GDCM, whose libjpeg tells of damage on stderr alone, and goes on with guessed pixels."""
    lines: list[str] = []
    try:
        with stderr_kept() as lines:
            pixels: np.ndarray = dicom.pixel_array
    except MemoryError:  # about the machine, not the image
        raise
    except Exception as error:
        raise ImageDecodeError(f"damaged JPEG in DICOM: {lines[-1] if lines else error}") from error
    for line in lines:
        if line.startswith(("Corrupt JPEG data", "Premature end")):
            raise ImageDecodeError(f"damaged JPEG in DICOM: {line.removeprefix('Corrupt JPEG data: ')}")
        # By these it goes on to the next of its decoders; any other line is not its own.
        if not line.startswith(("Unsupported JPEG data precision", "Invalid SOS parameters")):
            print(line, file=sys.stderr)
    return pixels


def _decoder(syntax: "pydicom.uid.UID") -> str:
    """Names the plugin of pydicom that decodes this transfer syntax."""
    from pydicom.pixels.decoders.base import get_decoder

    plugins = _DECODERS.get(syntax)
    if plugins is None:
        raise ImageDecodeError(f"DICOM in {syntax.name}: expected a still picture")
    installed = get_decoder(syntax).available_plugins
    for plugin in plugins:
        if plugin in installed:
            return plugin
    package = next(_PACKAGES[plugin] for plugin in plugins if plugin in _PACKAGES)
    raise DecoderMissingError(f"DICOM in {syntax.name}, which needs {package}; {INSTALL}")


def _check_frame(frame: bytes, width: int, height: int) -> int:
    """Checks a compressed frame by its own header; returns its bits per sample.

    A frame that says it is larger than the file's header would be given memory for all it says.
    """
    if (start := frame.find(b"\xff\x4f\xff\x51", 0, 1024)) >= 0:  # JPEG 2000, also within a JP2 file
        # Sizes and offsets of the image and its tiles, the number of components, each with its depth (SIZ).
        size_x, size_y, left, top = struct.unpack_from(">4I", frame, start + 8)
        found, (samples, precision) = (
            (size_x - left, size_y - top),
            struct.unpack_from(">HB", frame, start + 40),
        )
        precision, kind = (precision & 0x7F) + 1, 0
    else:
        kind, precision, rows, columns, samples = _frame_header(frame)
        found = columns, rows
    if found != (width, height):
        raise ImageDecodeError(
            f"DICOM of {width}x{height} pixels whose compressed frame is of {found[0]}x{found[1]}"
        )
    if samples != 1:
        raise ImageDecodeError(f"DICOM of {samples} samples per pixel: expected one grey frame")
    if kind in (0xC0, 0xC1, 0xC2) and precision == 8:
        check_jpeg(frame)
    return int(precision)


def _frame_header(frame: bytes) -> tuple[int, int, int, int, int]:
    """Returns the marker of a JPEG or JPEG-LS frame's header, bits, height, width and number of samples."""
    at = 2
    while at + 4 <= len(frame) and frame[at] == 0xFF:
        kind, length = frame[at + 1], int.from_bytes(frame[at + 2 : at + 4], "big")
        if kind == 0xFF:  # fill
            at += 1
        elif kind == 0xF7 or (0xC0 <= kind <= 0xCF and kind not in (0xC4, 0xC8, 0xCC)):
            return (kind, *struct.unpack_from(">BHHB", frame, at + 4))
        else:
            at += 2 + length
    raise ImageDecodeError("DICOM whose compressed frame has no header")


def _check_rle(frame: bytes, pixels: int) -> None:
    """Refuses a frame whose runs add up to more than its pixels; each byte of it may stand for 64."""
    count = int.from_bytes(frame[:4], "little")
    starts = struct.unpack_from(f"<{min(count, 15)}I", frame, 4)
    for at, end in zip(starts, (*starts[1:], len(frame)), strict=True):
        size = 0
        while at < min(end, len(frame)):
            # As many bytes as follow, or the next one so many times (PS3.5, G.3.1).
            run = frame[at]
            size += run + 1 if run < 128 else 257 - run if run > 128 else 0
            at += run + 2 if run < 128 else 2 if run > 128 else 1
            if size > 2 * pixels + 1024:
                raise ImageDecodeError(f"DICOM whose runs give more than its {pixels:,} pixels")


# ---- from pixels to shades ------------------------------------------------------------------------------


def _row_blocks(stored: np.ndarray) -> Iterator[np.ndarray]:
    """Yields rows of an image some at a time: NumPy makes 8 bytes of each pixel that looks something up."""
    step = max(1, (1 << 20) // stored.shape[1])
    for start in range(0, stored.shape[0], step):
        yield stored[start : start + step]


def _stored(dicom: "pydicom.Dataset", pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Cuts the stored bits out of each pixel; returns codes from 0 and the value that each code means."""
    bits, allocated, signed = int(dicom.BitsStored), 8 * pixels.itemsize, bool(dicom.PixelRepresentation)
    # Only where pixels lie in the file as they are does HighBit say where in them.
    syntax = dicom.file_meta.TransferSyntaxUID
    as_they_are = not syntax.is_encapsulated or syntax == _RLE
    high = dicom.get("HighBit")
    shift = int(high) + 1 - bits if as_they_are and high is not None else 0
    if bits < 1 or shift < 0 or shift + bits > allocated:
        raise ImageDecodeError(f"DICOM of {bits} bits up to bit {high}, of {allocated} in all")
    values = np.arange(1 << bits)
    if signed:
        values = (values ^ (1 << (bits - 1))) - (1 << (bits - 1))
    if not as_they_are and (pixels.min() < values.min() or pixels.max() > values.max()):
        raise ImageDecodeError(f"DICOM whose compressed frame has values of more than its {bits} bits")
    codes = pixels.view(f"u{pixels.itemsize}")
    if bits < allocated:
        codes = (codes >> shift) & ((1 << bits) - 1)
    return codes, values


def _at_hand(stored: np.ndarray, count: int) -> np.ndarray:
    """Tells which of the codes from 0 to count - 1 occur."""
    found = np.zeros(count, bool)
    for rows in _row_blocks(stored):
        found[rows] = True
    return found


def _modality_values(dicom: "pydicom.Dataset", values: np.ndarray) -> np.ndarray:
    """Puts stored values through the modality table, or through slope and intercept (PS3.3, C.11.1)."""
    table = _first_table(dicom, "ModalityLUTSequence")
    if table is not None:
        first, entries, _ = table
        return np.take(entries, values - first, mode="clip")
    slope, intercept = _first_number(dicom, "RescaleSlope"), _first_number(dicom, "RescaleIntercept")
    if slope is None or intercept is None:
        return values
    if slope == 0:
        raise ImageDecodeError("DICOM whose tables give one value for every pixel")
    return values * slope + intercept


def _shades(dicom: "pydicom.Dataset", values: np.ndarray, at_hand: np.ndarray) -> np.ndarray:
    """Turns values into shades, 0 black to 1 white (PS3.3, C.11.2)."""
    table = _first_table(dicom, "VOILUTSequence")
    if table is not None:
        first, entries, bits = table
        found = np.take(entries, values.astype(np.int64) - first, mode="clip")
        return found / float(2**bits - 1)
    center, width = _first_number(dicom, "WindowCenter"), _first_number(dicom, "WindowWidth")
    function = str(dicom.get("VOILUTFunction") or "LINEAR").strip()
    if center is None or width is None or width <= 0 or (width < 1 and function == "LINEAR"):
        low, high = float(at_hand.min()), float(at_hand.max())
    elif function == "SIGMOID":
        return 1 / (1 + np.exp(-4 * (values - center) / width))
    elif function == "LINEAR_EXACT":
        low, high = center - width / 2, center + width / 2
    else:
        low, high = center - width / 2, center + width / 2 - 1
    if high <= low:
        return (values > low).astype(np.float64)
    return np.clip((values - low) / (high - low), 0, 1)


def _first_table(dicom: "pydicom.Dataset", name: str) -> tuple[int, np.ndarray, int] | None:
    """Returns a lookup table's first input, its entries and their bits; None where none can be read."""
    try:
        if len(getattr(dicom.get_item(name), "value", None) or b"") > MAX_TABLE_BYTES:
            return None
        item = dicom[name].value[0]
        count, first, bits = (int(number) for number in item.LUTDescriptor)
        data = item.LUTData
        if isinstance(data, bytes):
            order = "<" if dicom.original_encoding[1] else ">"
            data = np.frombuffer(data, np.uint8 if len(data) <= (count or 65536) + 1 else f"{order}u2")
        entries = np.asarray(data).ravel()[: count or 65536].astype(np.int64)
    except MemoryError:  # about the machine, not the image
        raise
    except Exception:  # what is odd in it comes as errors of many kinds; see decoding.decoding
        return None
    readable = len(entries) == (count or 65536) and 8 <= bits <= 16 and entries.max() < 2**bits
    return (first, entries, bits) if readable else None


def _first_number(dicom: "pydicom.Dataset", name: str) -> float | None:
    """Returns the first of an element's numbers; None where there is none, or one that cannot be read."""
    try:
        number = float(np.atleast_1d(np.asarray(dicom[name].value, dtype=np.float64))[0])
    except MemoryError:  # about the machine, not the image
        raise
    except Exception:  # see _first_table
        return None
    return number if np.isfinite(number) else None
