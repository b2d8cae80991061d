"""TFRecord files: framing, masked CRC-32C, and where each record lies.

One record on disk (tensorflow/core/lib/io/record_writer.h):
    uint64  length                 little endian
    uint32  masked CRC of length
    byte    data[length]
    uint32  masked CRC of data
"""

import struct
from collections.abc import Iterator, Sequence
from typing import BinaryIO

import google_crc32c

from cxr_records.storage import read_up_to

HEADER_BYTES = 12  # length and its CRC
FOOTER_BYTES = 4  # CRC of the data
OVERHEAD_BYTES = HEADER_BYTES + FOOTER_BYTES

_HEADER = struct.Struct("<QI")
_FOOTER = struct.Struct("<I")


class RecordError(ValueError):
    """A record is not what its checksums say. `offset` is the byte at which the record begins."""

    def __init__(self, offset: int, message: str):
        super().__init__(message)
        self.offset = offset


def masked_crc(data: bytes) -> int:
    """Returns the CRC-32C of `data`, rotated and shifted as TensorFlow stores it."""
    return _mask(google_crc32c.value(data))


def _mask(crc: int) -> int:
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF


def frame_parts(parts: Sequence[bytes]) -> tuple[bytes, ...]:
    """Returns the parts of one whole record whose data comes in parts: header, the parts, footer.

    Large parts are not copied, which is most of the cost of a record.
    """
    length, crc = 0, 0
    for part in parts:
        length += len(part)
        crc = google_crc32c.extend(crc, part)
    header = length.to_bytes(8, "little")
    return (header + _FOOTER.pack(masked_crc(header)), *parts, _FOOTER.pack(_mask(crc)))


def unframe(record: bytes, offset: int = 0) -> bytes:
    """Returns the data of one whole record as `frame_parts` made it.

    Args:
        record: the bytes of exactly one record.
        offset: where the record begins in its file; used in the error only.

    Raises:
        RecordError: the record is cut short, or a checksum does not match.
    """
    if len(record) < OVERHEAD_BYTES:
        raise RecordError(offset, f"cut short: {len(record)} bytes, a record has at least {OVERHEAD_BYTES}")
    length = _checked_length(record[:HEADER_BYTES], offset)
    if len(record) != length + OVERHEAD_BYTES:
        expected = length + OVERHEAD_BYTES
        raise RecordError(offset, f"{len(record)} bytes, its header says {expected}")
    data = record[HEADER_BYTES:-FOOTER_BYTES]
    _check_data(data, record[-FOOTER_BYTES:], offset)
    return data


def read_records(file: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """Yields (offset, data) for every record of an open file, checking both checksums of each.

    Raises:
        RecordError: at the first record that is damaged or cut short.
    """
    offset = 0
    while header := file.read(HEADER_BYTES):
        if len(header) < HEADER_BYTES:
            raise RecordError(offset, f"cut short: {len(header)} bytes of a {HEADER_BYTES}-byte header")
        length = _checked_length(header, offset)
        body = read_up_to(file, length + FOOTER_BYTES)
        if len(body) < length + FOOTER_BYTES:
            raise RecordError(offset, f"cut short: {len(body)} bytes, {length + FOOTER_BYTES} expected")
        data = body[:-FOOTER_BYTES]
        _check_data(data, body[-FOOTER_BYTES:], offset)
        yield offset, data
        offset += length + OVERHEAD_BYTES


def _checked_length(header: bytes, offset: int) -> int:
    length: int
    length, crc = _HEADER.unpack(header)
    if masked_crc(header[:8]) != crc:
        raise RecordError(offset, "the checksum of the record's length does not match")
    return length


def _check_data(data: bytes, footer: bytes, offset: int) -> None:
    if masked_crc(data) != _FOOTER.unpack(footer)[0]:
        raise RecordError(offset, "the checksum of the record's data does not match")
