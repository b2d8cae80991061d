"""Folders and archives of every kind, and what the tests of sources and of archives expect of them."""

import gzip
import io
import tarfile
import zipfile
from pathlib import Path

import numpy as np

from cxr_records.sources import SourceReader


def noise(seed: int, size: int = 3000) -> bytes:
    """Bytes that no gzip makes smaller."""
    return np.random.default_rng(seed).bytes(size)


# What is in every source of these tests; the names of half of them are trouble.
FILES = {
    "00000001_000.png": noise(1),
    "images_001/images/00000002_000.png": noise(2, 70_000),
    "images_001/images/00000002_001.PNG": noise(3, 1),
    "images_002/images/Größe 3 (copy).JPG": noise(4),
    "images_002/a.b.jpeg": b"",
    "images_002/scan.dcm": noise(5),
    "images_002/SCAN 2.DICOM": noise(6),
}
JUNK = {
    ".DS_Store": b"junk",
    "images_001/._00000002_000.png": b"junk",
    "__MACOSX/images_001/._00000002_000.png": b"junk",
    "images_001/.hidden.png": b"junk",
    "README.txt": b"junk",
    "images_001/png": b"junk",
    "images_001/x.png.part": b"junk",
    "images_002/Thumbs.db": b"junk",
}
EXPECTED = sorted((name.rsplit("/", 1)[-1], data) for name, data in FILES.items())


def write_folder(path: Path, files=None) -> str:
    for name, data in ({**FILES, **JUNK} if files is None else files).items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)
    return str(path)


def write_zip(path: Path, files=None, compression=zipfile.ZIP_DEFLATED) -> str:
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("images_001/", b"")
        for name, data in ({**FILES, **JUNK} if files is None else files).items():
            archive.writestr(name, data)
    return str(path)


def tar_bytes(files=None, format=tarfile.PAX_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=format) as archive:
        folder = tarfile.TarInfo("images_001")
        folder.type = tarfile.DIRTYPE
        archive.addfile(folder)
        for name, data in ({**FILES, **JUNK} if files is None else files).items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def write_tar(path: Path, files=None, format=tarfile.PAX_FORMAT) -> str:
    path.write_bytes(tar_bytes(files, format))
    return str(path)


def write_targz(path: Path, files=None, members=1) -> str:
    """Writes a .tar.gz of one or several gzip members, as pigz and cat make them."""
    data = tar_bytes(files)
    step = -(-len(data) // members)
    parts = [gzip.compress(data[at : at + step], 1, mtime=0) for at in range(0, len(data), step)]
    path.write_bytes(b"".join(parts))
    return str(path)


SOURCES = {
    "folder": lambda path: write_folder(path / "folder"),
    "file url": lambda path: "file://" + write_folder(path / "folder"),
    "zip": lambda path: write_zip(path / "x.zip"),
    "zip stored": lambda path: write_zip(path / "x.ZIP", compression=zipfile.ZIP_STORED),
    "tar": lambda path: write_tar(path / "x.tar"),
    "tar of GNU": lambda path: write_tar(path / "x.tar", format=tarfile.GNU_FORMAT),
    "tar.gz": lambda path: write_targz(path / "x.tar.gz"),
    "tgz": lambda path: write_targz(path / "x.tgz"),
    "tar.gz of many members": lambda path: write_targz(path / "x.tar.gz", members=7),
}


def read_all(entries, index_folder=None) -> list[tuple[str, bytes]]:
    with SourceReader(index_folder) as reader:
        return [(entry.name, reader.read(entry)) for entry in entries]
