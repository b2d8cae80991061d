"""Small pictures of every kind, made in the test."""

import importlib
import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from cxr_records.images import RESAMPLING, ImageDecodeError, ImageFormat, decode_image

SMALL = ImageFormat(16)


PNG_MARK = b"\x89PNG\r\n\x1a\n"


def ramp(width: int = 40, height: int = 30) -> np.ndarray:
    """A picture in which every pixel differs from its neighbours; uint8 [height, width]."""
    y, x = np.mgrid[:height, :width]
    return ((x * 5 + y * 3) % 256).astype(np.uint8)


def colours(width: int = 40, height: int = 30) -> np.ndarray:
    grey = ramp(width, height)
    return np.stack([grey, grey[::-1], 255 - grey], axis=-1)


def saved(image: Image.Image | np.ndarray, kind: str = "PNG", **options) -> bytes:
    image = Image.fromarray(image) if isinstance(image, np.ndarray) else image
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(width: int, height: int, depth: int, colour: int, rows: bytes, *more: bytes) -> bytes:
    """A PNG by hand, for the kinds that Pillow cannot write; `rows` begin with their filter byte."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    body = chunk(b"IDAT", zlib.compress(rows, 1)) if rows else b""
    return PNG_MARK + chunk(b"IHDR", header) + b"".join(more) + body + chunk(b"IEND", b"")


def resized(grey: Image.Image, image_format: ImageFormat = SMALL) -> np.ndarray:
    side = image_format.size
    return np.asarray(grey.resize((side, side), RESAMPLING[image_format.resample]))


def reason(data: bytes, image_format: ImageFormat = SMALL) -> str:
    with pytest.raises(ImageDecodeError) as caught:
        decode_image(data, image_format)
    text = str(caught.value)
    assert "\n" not in text
    assert " at 0x" not in text  # an address: another one in every run
    return text


def dicom(stored: np.ndarray, photometric: str = "MONOCHROME2", **tags) -> bytes:
    """A DICOM file of uncompressed pixels, uint8, uint16 or int16 [height, width]."""
    pydicom = importlib.import_module("pydicom")
    from pydicom.uid import ExplicitVRLittleEndian

    data = pydicom.Dataset()
    data.file_meta = pydicom.dataset.FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID = "1.2.840.10008.5.1.4.1.1.1"
    data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID = "1.2.3"
    data.Rows, data.Columns = stored.shape[:2]
    data.SamplesPerPixel = 1 if stored.ndim == 2 else stored.shape[2]
    data.PhotometricInterpretation = photometric
    data.BitsAllocated = data.BitsStored = 8 * stored.itemsize
    data.HighBit = data.BitsStored - 1
    data.PixelRepresentation = int(stored.dtype.kind == "i")
    if stored.ndim == 3:
        data.PlanarConfiguration = 0
    data.PixelData = stored.astype(stored.dtype.newbyteorder("<")).tobytes()
    for name, value in tags.items():
        if value is None:
            delattr(data, name)
        else:
            setattr(data, name, value)
    buffer = io.BytesIO()
    data.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def shown(stored: np.ndarray, *arguments, **tags) -> np.ndarray:
    """The pixels of a 16x16 DICOM, which are not resized."""
    return decode_image(dicom(stored, *arguments, **tags), SMALL).pixels


def lut(first: int, bits: int, values: list[int]):
    import pydicom

    item = pydicom.Dataset()
    item.LUTDescriptor = [len(values), first, bits]
    item.add_new("LUTData", "OW", struct.pack(f"<{len(values)}H", *values))
    return pydicom.Sequence([item])


SQUARE = ramp(16, 16)


FULL = np.arange(256, dtype=np.uint8).reshape(16, 16)


TWELVE = {"BitsStored": 12, "HighBit": 11}


DEEP = (np.arange(256, dtype=np.uint16) * 16).reshape(16, 16)  # 0 to 4080
