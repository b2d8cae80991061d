"""Image files of any kind to uint8 [height, width], and pixels to and from what a record stores."""

import contextlib
import dataclasses
import functools
import importlib.metadata
import io
import warnings

import numpy as np
from PIL import ExifTags, Image

from cxr_records.choices import CODECS as CODECS
from cxr_records.choices import RESAMPLE
from cxr_records.decoding import ImageDecodeError as ImageDecodeError
from cxr_records.decoding import check_pixels, decoding
from cxr_records.dicom import decode_dicom
from cxr_records.errors import UsageError
from cxr_records.filetypes import HEAD_BYTES, file_type
from cxr_records.jpeg import check_jpeg, decode_grey_jpeg
from cxr_records.png import blank, check_decoded, decode_grey, grey_pixels, needed_chunks, png_of
from cxr_records.resizing import resized

RESAMPLING = {name: Image.Resampling[name.upper()] for name in RESAMPLE}
SIZES = (16, 2048)  # smallest and largest side of a stored image, in pixels
JPEG_QUALITY = 95

_GREY_OF_16_BITS = ((np.arange(65536) * 255 + 32767) // 65535).astype(np.uint8)  # rounded to the nearest
# How to turn a picture upright, by the value of EXIF's Orientation; 1 is upright.
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# Where Pillow puts EXIF, or what it reads as such, of a PNG or JPEG.
_EXIF_IN = {"exif", "Raw profile type exif", "XML:com.adobe.xmp", "xmp"}

# The first element of a data set that is no file: the group 0002 or 0008, its number low byte first.
_BARE_DICOM = (
    b"\2\0\0\0",
    b"\2\0\1\0",
    b"\2\0\2\0",
    b"\2\0\x10\0",
    *(b"\x08\0%c\0" % n for n in (0, 1, 5, 6, 8, 0x12, 0x16, 0x18)),
)

DECODE_VERSION = 3  # raised whenever a file may give other pixels, or another verdict, than before
# Packages that turn files into pixels, pydicom's plugins among them.
_DECODERS = (
    "pillow",
    "simplejpeg",
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
        if self.codec == "jpeg" and (grey := decode_grey_jpeg(data, self.size)) is not None:
            return grey
        if self.codec == "raw":
            if len(data) != self.size**2:
                raise ImageDecodeError(f"{len(data)} bytes of raw pixels, expected {self.size**2}")
            return np.frombuffer(data, np.uint8).reshape(self.size, self.size)
        pixels = decode_grey(data) if self.codec == "png" else None
        if pixels is None:
            with decoding(), Image.open(io.BytesIO(data), formats=[self.codec.upper()]) as image:
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
    16-bit grey is scaled by 255/65535; PNG and JPEG are turned as their EXIF says; of several pictures in
    one file, the first; DICOM as `dicom.decode_dicom` says. The aspect is squashed to a square, as in
    NIH's own 1024x1024 release.

    Raises:
        ImageDecodeError: with the reason; DecoderMissingError where a package would help.
        CxrError: the file is DICOM and the package that reads it is not installed.
    """
    if not data:
        raise ImageDecodeError("the file is empty")
    # Decoders warn of what is odd, image by image; what is wrong comes as an error.
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        kind = file_type(data[:HEAD_BYTES])
        grey, mode = decode_dicom(data) if kind == "dicom" else _decode_picture(data, kind)
    width, height = grey.shape[::-1] if isinstance(grey, np.ndarray) else grey.size
    pixels = resized(grey, image_format.size, RESAMPLING[image_format.resample])
    return DecodedImage(pixels, width, height, mode)


def _decode_picture(data: bytes, kind: str) -> tuple[Image.Image | np.ndarray, str]:
    if data.startswith(_BARE_DICOM):
        raise ImageDecodeError(
            "DICOM without the 132 bytes that every file begins with; write it anew, as with dcmtk's dcmconv"
        )
    if kind not in ("png", "jpeg"):
        start = data[:12].decode("latin-1").encode("unicode_escape").decode()
        raise ImageDecodeError(f"no PNG, JPEG or DICOM: begins with '{start}'")
    if kind == "png":
        chunks = needed_chunks(data)
        if (pixels := grey_pixels(chunks)) is not None:
            return pixels, "L"
        data = png_of(chunks, data)
    try:
        image: Image.Image = Image.open(io.BytesIO(data), formats=[kind.upper()])
    except Image.DecompressionBombError as error:
        raise ImageDecodeError("far more pixels than any X-ray") from error
    except MemoryError:  # about the machine, not the image
        raise
    except Exception as error:  # see decoding.decoding: what is raised on bad headers is no contract
        raise ImageDecodeError(f"a {kind.upper()} whose header is damaged or cut short") from error
    with decoding(), image:
        check_pixels(image.width, image.height)
        if kind == "jpeg":
            check_jpeg(data)
        mode = image.mode
        if kind == "png":
            image.im = blank(image).im
        image.load()
        if kind == "png":
            check_decoded(image, data)
        if mode.startswith("I"):
            grey = Image.fromarray(_GREY_OF_16_BITS[np.asarray(image)])
        else:
            grey = image if mode == "L" else image.convert("L")
        turn = _turn(image)
        return grey if turn is None else grey.transpose(turn), mode


def _turn(image: Image.Image) -> Image.Transpose | None:
    """Tells how to turn a picture upright. Viewers show one of unreadable EXIF as it is, and so do we."""
    if not _EXIF_IN.intersection(image.info):
        return None  # what is asked of Pillow takes longer
    try:
        return _TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except MemoryError:  # about the machine, not the image
        raise
    except Exception:  # see decoding.decoding
        return None
