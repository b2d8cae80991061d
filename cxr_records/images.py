"""Image files of any kind to uint8 [height, width], and pixels to and from what a record stores."""

import contextlib
import dataclasses
import functools
import importlib.metadata
import io
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from cxr_records.errors import CxrError, UsageError

if TYPE_CHECKING:  # an extra package
    import pydicom

CODECS = ("raw", "png", "jpeg")
RESAMPLING = {
    "box": Image.Resampling.BOX,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
SIZES = (16, 2048)  # smallest and largest side of a stored image, in pixels
MAX_PIXELS = 64 << 20  # 8192 x 8192; NIH's originals before release were at most 3827 x 4715
JPEG_QUALITY = 95

_GREY_OF_16_BITS = ((np.arange(65536) * 255 + 32767) // 65535).astype(np.uint8)  # rounded to the nearest
_DICOM_MARK = slice(128, 132)  # "DICM" stands after a preamble of 128 bytes (DICOM PS3.10, 7.1)
_PREFERRED_FORMATS = ("PNG", "JPEG")


DECODE_VERSION = 2  # raised whenever a file may give other pixels, or another verdict, than before
# Packages that turn files into pixels, pydicom's plugins among them.
_DECODERS = (
    "pillow",
    "pydicom",
    "pylibjpeg",
    "pylibjpeg-libjpeg",
    "pylibjpeg-openjpeg",
    "pylibjpeg-rle",
    "pyjpegls",
    "python-gdcm",
)


@functools.cache
def decoder_version() -> str:
    """Names all that decodes here, with versions: what others have rejected, these may be able to read."""
    found = []
    for package in _DECODERS:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found.append(f"{package} {importlib.metadata.version(package)}")
    return "; ".join([f"cxr_records {DECODE_VERSION}", *found])


class ImageDecodeError(ValueError):
    """The bytes are no image that we can decode; the message is the reason that rejected.csv gives."""


@dataclasses.dataclass(frozen=True)
class ImageFormat:
    """How images are stored: side in pixels, codec of the stored bytes, filter used to resize."""

    size: int = 224
    codec: str = "raw"
    resample: str = "bilinear"

    def __post_init__(self) -> None:
        low, high = SIZES
        if not low <= self.size <= high:
            raise UsageError(f"`size={self.size}`: expected {low} to {high} pixels")
        if self.codec not in CODECS:
            raise UsageError(f"`codec={self.codec}`: expected one of {', '.join(CODECS)}")
        if self.resample not in RESAMPLING:
            raise UsageError(f"`resample={self.resample}`: expected one of {', '.join(RESAMPLING)}")

    def encode(self, pixels: np.ndarray) -> bytes:
        """Turns uint8 [size, size] into the stored bytes."""
        if self.codec == "raw":
            return pixels.tobytes()
        buffer = io.BytesIO()
        if self.codec == "png":
            Image.fromarray(pixels).save(buffer, "PNG")
        else:
            Image.fromarray(pixels).save(buffer, "JPEG", quality=JPEG_QUALITY)
        return buffer.getvalue()

    def decode(self, data: bytes) -> np.ndarray:
        """Turns stored bytes back into uint8 [size, size].

        Raises:
            ImageDecodeError: the bytes hold no image of this size and codec.
        """
        if self.codec == "raw":
            if len(data) != self.size**2:
                raise ImageDecodeError(f"{len(data)} bytes of raw pixels, expected {self.size**2}")
            return np.frombuffer(data, np.uint8).reshape(self.size, self.size)
        with _decoding(), Image.open(io.BytesIO(data), formats=[self.codec.upper()]) as image:
            pixels = np.asarray(image)
        if pixels.shape != (self.size, self.size) or pixels.dtype != np.uint8:
            shape = "x".join(map(str, pixels.shape))
            raise ImageDecodeError(f"image of {shape} {pixels.dtype}, expected {self.size}x{self.size} uint8")
        return pixels


@dataclasses.dataclass(frozen=True)
class DecodedImage:
    """One decoded source: uint8 pixels [size, size], and width, height and mode of the original."""

    pixels: np.ndarray
    width: int
    height: int
    mode: str


def decode_image(data: bytes, image_format: ImageFormat) -> DecodedImage:
    """Decodes a PNG, JPEG or DICOM file of any mode to 8-bit grey at the format's size.

    8-bit images become grey as Pillow's `convert("L")` does it (ITU-R 601-2 luma; alpha is dropped);
    16-bit grey is scaled by 255/65535; DICOM goes through its modality and window tables and is
    inverted where MONOCHROME1. The aspect is squashed to a square, as in NIH's own 1024x1024 release.

    Raises:
        ImageDecodeError: with the reason.
        CxrError: the file is DICOM and the package that reads it is not installed.
    """
    if not data:
        raise ImageDecodeError("the file is empty")
    # Decoders warn of what is odd, image by image; what is wrong comes as an error.
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        grey, mode = _decode_dicom(data) if data[_DICOM_MARK] == b"DICM" else _decode_picture(data)
    width, height = grey.size
    side = image_format.size
    small = grey.resize((side, side), RESAMPLING[image_format.resample])
    return DecodedImage(np.asarray(small), width, height, mode)


@contextlib.contextmanager
def _decoding() -> Iterator[None]:
    """Turns whatever a decoder raises on bad bytes into ImageDecodeError."""
    try:
        yield
    except (ImageDecodeError, CxrError, MemoryError):  # the last is about the machine, not the image
        raise
    except UnidentifiedImageError as error:  # Pillow names the address of a buffer
        raise ImageDecodeError("cannot be decoded: no image of the kind expected") from error
    except Exception as error:
        # Decoders raise OSError, SyntaxError, ValueError, struct.error, zlib.error and others on bad
        # bytes; which one is no contract.
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ImageDecodeError(f"cannot be decoded: {reason}") from error


def _decode_picture(data: bytes) -> tuple[Image.Image, str]:
    try:
        image: Image.Image = Image.open(io.BytesIO(data), formats=_PREFERRED_FORMATS)
    except Image.DecompressionBombError as error:
        raise ImageDecodeError("far more pixels than any X-ray") from error
    except Exception as error:  # see _decoding: what is raised on bad headers is no contract
        if data.startswith((b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff")):
            raise ImageDecodeError("a PNG or JPEG whose header is damaged or cut short") from error
        start = data[:12].decode("latin-1").encode("unicode_escape").decode()
        raise ImageDecodeError(f"no PNG, JPEG or DICOM: begins with '{start}'") from error
    with _decoding(), image:
        _check_pixels(image.width, image.height)
        mode = image.mode
        if mode.startswith("I"):
            return Image.fromarray(_GREY_OF_16_BITS[np.asarray(image)]), mode
        if image.format != "PNG":  # JPEG, and MPO, which is several of them
            image = ImageOps.exif_transpose(image)
        return image.convert("L"), mode


def _decode_dicom(data: bytes) -> tuple[Image.Image, str]:
    try:
        import pydicom
        from pydicom.pixels.processing import apply_modality_lut, apply_voi_lut
    except ImportError:
        raise CxrError("DICOM files need an extra package; pip install '.[dicom]' in a clone") from None
    with _decoding():
        dicom = pydicom.dcmread(io.BytesIO(data))
        _check_pixels(int(dicom.Columns), int(dicom.Rows))
        photometric, frames = str(dicom.PhotometricInterpretation), int(dicom.get("NumberOfFrames") or 1)
        if frames != 1 or not photometric.startswith("MONOCHROME"):
            raise ImageDecodeError(f"DICOM of {frames} {photometric} frames: expected one grey frame")
        stored = dicom.pixel_array
        if stored.ndim != 2:
            raise ImageDecodeError(f"DICOM of {stored.shape[-1]} samples per pixel: expected one grey frame")
        values = apply_voi_lut(apply_modality_lut(stored, dicom), dicom).astype(np.float64)
        low, high = _dicom_range(dicom)
        if not abs(high - low) > 0:
            raise ImageDecodeError("DICOM whose tables give one value for every pixel")
        grey = np.clip((values - low) / (high - low), 0, 1)
        if photometric == "MONOCHROME1":  # the smallest value is white (PS3.3, C.7.6.3.1.2)
            grey = 1 - grey
        return Image.fromarray(np.rint(grey * 255).astype(np.uint8)), photometric


def _dicom_range(dicom: "pydicom.Dataset") -> tuple[float, float]:
    """The values of black and white that a DICOM's tables can give."""
    for tables in (dicom.get("VOILUTSequence"), dicom.get("ModalityLUTSequence")):
        if tables:
            return 0.0, float(2 ** tables[0].LUTDescriptor[2] - 1)
    bits = int(dicom.BitsStored)
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if dicom.PixelRepresentation else (0, 2**bits - 1)
    if "RescaleSlope" in dicom and "RescaleIntercept" in dicom:
        low = low * float(dicom.RescaleSlope) + float(dicom.RescaleIntercept)
        high = high * float(dicom.RescaleSlope) + float(dicom.RescaleIntercept)
    # A falling slope swaps the ends; a window then gives `low`, now the larger one, for black.
    windowed = dicom.get("WindowCenter") is not None and dicom.get("WindowWidth") is not None
    return (low, high) if windowed else (min(low, high), max(low, high))


def _check_pixels(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise ImageDecodeError(f"{width}x{height} pixels, more than the {MAX_PIXELS:,} allowed")
