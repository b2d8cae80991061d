"""Kinds of files, known by their first bytes: names lie, as browsers unpack or rename what they download."""

import tarfile

HEAD_BYTES = 1024  # of a file, enough for `file_type`

# At which byte what stands, in the order in which they are tried.
_MARKS = (
    ("gzip", 0, b"\x1f\x8b"),
    ("zip", 0, b"PK\x03\x04"),  # .xlsx too, which is a zip of XML files
    ("zip", 0, b"PK\x05\x06"),  # an empty one
    ("parquet", 0, b"PAR1"),
    ("xls", 0, b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"),  # Excel's before 2007
    ("bzip2", 0, b"BZh"),
    ("xz", 0, b"\xfd7zXZ\x00"),
    ("zstd", 0, b"\x28\xb5\x2f\xfd"),
    ("7z", 0, b"7z\xbc\xaf\x27\x1c"),
    ("rar", 0, b"Rar!\x1a\x07"),
    ("png", 0, b"\x89PNG\r\n\x1a\n"),
    ("jpeg", 0, b"\xff\xd8\xff"),
    ("dicom", 128, b"DICM"),  # after a preamble of 128 bytes (DICOM PS3.10, 7.1)
)


def file_type(head: bytes) -> str:
    """Tells what a file is: "gzip", "zip", "tar", "parquet", "xls", "png", "jpeg", "dicom", ...; "" unknown.

    Args:
        head: its first HEAD_BYTES, or all of it where it is shorter.
    """
    for kind, offset, mark in _MARKS:
        if head.startswith(mark, offset):
            return kind
    return "tar" if _begins_tar(head) else ""


def _begins_tar(head: bytes) -> bool:
    """Tells whether a file begins with a header of a tar; old ones have no mark, but a checksum."""
    try:
        tarfile.TarInfo.frombuf(head[: tarfile.BLOCKSIZE], "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        return False
    return True
