"""Files are what their first bytes say."""

import gzip
import io
import tarfile
import zipfile

import pytest

from cxr_records.filetypes import HEAD_BYTES, file_type


def _tar(kind: int) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=kind) as archive:
        archive.addfile(tarfile.TarInfo("a.png"))
    return out.getvalue()


def _zip() -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("a.png", b"")
    return out.getvalue()


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (gzip.compress(b"text", mtime=0), "gzip"),
        (_zip(), "zip"),
        (b"PK\x05\x06" + bytes(18), "zip"),
        (_tar(tarfile.USTAR_FORMAT), "tar"),
        (_tar(tarfile.GNU_FORMAT), "tar"),
        (_tar(tarfile.PAX_FORMAT), "tar"),
        (b"PAR1....PAR1", "parquet"),
        (b"\x89PNG\r\n\x1a\n", "png"),
        (b"\xff\xd8\xff\xe0", "jpeg"),
        (bytes(128) + b"DICM", "dicom"),
        (b"Image Index,Finding Labels\n" * 40, ""),
        (bytes(1024), ""),
        (b"", ""),
    ],
)
def test_a_file_is_known_by_its_first_bytes(data, expected):
    assert file_type(data[:HEAD_BYTES]) == expected


def test_a_tar_of_before_1988_has_a_checksum_and_no_mark():
    header = bytearray(_tar(tarfile.USTAR_FORMAT)[:512])
    header[257:265] = bytes(8)
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    assert file_type(bytes(header)) == "tar"
