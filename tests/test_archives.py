import bz2
import contextlib
import gzip
import lzma
import os
import struct
import subprocess
import tarfile
import tracemalloc
import zipfile
from pathlib import Path

import indexed_gzip
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from source_files import (
    EXPECTED,
    noise,
    read_all,
    tar_bytes,
    write_folder,
    write_tar,
    write_targz,
    write_zip,
)

from cxr_records import archives, storage
from cxr_records.archives import archive_kind
from cxr_records.errors import CxrError, UsageError
from cxr_records.sources import SourceReader, SourceReadError, list_sources
from cxr_records.storage import FileState

# ---- kinds ----------------------------------------------------------------------------------------------

ONE = {"a.png": noise(1)}
KINDS = {"zip": write_zip, "tar": write_tar, "targz": write_targz}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "name", ["images.zip", "images.tar", "images.tar.gz", "images.gz", "images", "i.csv"]
)
def test_an_archive_is_known_by_its_first_bytes_whatever_its_name(kind, name, tmp_path):
    path = KINDS[kind](tmp_path / name, ONE)
    assert archive_kind(path) == kind
    (one,) = list_sources([path], str(tmp_path / "index")).entries
    assert one.kind == kind
    assert read_all([one], str(tmp_path / "index")) == [("a.png", noise(1))]


@pytest.mark.parametrize(
    ("name", "kind"),
    [("a.zip", "zip"), ("a.ZIP", "zip"), ("a.tar", "tar"), ("A.Tgz", "targz"), ("a.x", None)],
)
def test_a_file_whose_first_bytes_tell_nothing_is_known_by_its_ending(name, kind, tmp_path):
    (tmp_path / name).write_bytes(bytes(2000))
    assert archive_kind(str(tmp_path / name)) == kind


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (bz2.compress(tar_bytes(ONE)), "packed by bzip2"),
        (lzma.compress(tar_bytes(ONE)), "packed by xz"),
        (b"7z\xbc\xaf\x27\x1c" + bytes(99), "a 7z archive"),
        (b"Rar!\x1a\x07\x01\x00" + bytes(99), "a rar archive"),
        (b"\x28\xb5\x2f\xfd" + bytes(99), "packed by zstd"),
    ],
    ids=["bz2", "xz", "7z", "rar", "zstd"],
)
@pytest.mark.parametrize("name", ["images.tar.bz2", "images.tar.gz", "images"])
def test_an_archive_that_is_not_read_is_refused_in_these_words(data, said, name, tmp_path):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(UsageError) as caught:
        list_sources([str(tmp_path / name)])
    assert str(caught.value) == (
        f"`images={tmp_path / name}`: {said}, whose members cannot be read one by one; unpack it, or pack it "
        "anew as .tar, .tar.gz or .zip"
    )


def test_a_gzip_file_of_something_else_is_refused_in_these_words(tmp_path):
    path = tmp_path / "images.png.gz"
    path.write_bytes(gzip.compress(noise(1)))
    with pytest.raises(UsageError) as caught:
        list_sources([str(path)])
    assert str(caught.value) == (
        f"`images={path}`: a gzip file that holds no tar; unpack it, or name a .tar.gz"
    )


@pytest.mark.parametrize("kind", KINDS)
def test_an_archive_of_archives_is_refused_in_these_words(kind, tmp_path):
    inside = {f"box/images_{n:02}.tar.gz": b"x" for n in (1, 2)} | {"__MACOSX/._images_01.tar.gz": b"x"}
    path = KINDS[kind](tmp_path / "all", inside)
    with pytest.raises(UsageError) as caught:
        list_sources([path], str(tmp_path / "index"))
    assert str(caught.value) == (
        f"`images={path}`: holds no image but 2 archives, which are not read inside another; unpack it, then "
        "name them: `images=images_01.tar.gz` ..."
    )


@pytest.mark.parametrize("kind", KINDS)
def test_archives_beside_the_images_of_an_archive_are_a_warning(kind, tmp_path):
    path = KINDS[kind](tmp_path / "all", {"a.png": noise(1), "box/images_01.tar.gz": b"x", "x.zip": b"x"})
    for _ in range(2):  # the second time from what is kept of it
        listing = list_sources([path], str(tmp_path / "index"))
        assert [entry.name for entry in listing.entries] == ["a.png"]
        assert listing.warnings == [
            f"{path}: beside images it holds 2 archives, which are not read inside another; unpack it, then "
            "name them: images_01.tar.gz ..."
        ]


@pytest.mark.parametrize("kind", ["tar", "targz"])
def test_a_hard_link_in_a_tar_is_the_file_that_was_packed_before_it(kind, tmp_path):
    folder = tmp_path / "folder"
    write_folder(folder, {"a.png": noise(1), "b.png": noise(2), "kept.bin": noise(3)})
    os.link(folder / "a.png", folder / "c.png")
    os.link(folder / "kept.bin", folder / "d.png")  # packed under a name that is no image's
    path = tmp_path / "x"
    with tarfile.open(path, "w:gz" if kind == "targz" else "w") as archive:
        for name in ("a.png", "b.png", "kept.bin", "c.png", "d.png"):
            archive.add(folder / name, name)
    index = str(tmp_path / "index")
    expected = [(f"{name}.png", noise(seed)) for name, seed in zip("abcd", (1, 2, 1, 3), strict=True)]
    for _ in range(2):
        assert sorted(read_all(list_sources([str(path)], index).entries, index)) == expected


@pytest.mark.parametrize("format", ["gnu", "posix"])
def test_a_tar_that_leaves_zeros_out_is_refused_in_these_words(format, tmp_path):
    with open(tmp_path / "a.png", "wb") as file:
        file.write(noise(1))
        file.truncate(1 << 20)
        file.seek(0, os.SEEK_END)
        file.write(noise(2))
    path = tmp_path / "x.tar"
    subprocess.run(["tar", "cSf", path, f"--format={format}", "-C", tmp_path, "a.png"], check=True)
    assert path.stat().st_size < 1 << 20
    with pytest.raises(UsageError) as caught:
        list_sources([str(path)])
    assert str(caught.value) == (
        f"`images={path}`: a.png is packed without its zeros, which is not read; pack it anew without tar's "
        "option --sparse, or unpack it"
    )


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("kind", KINDS)
def test_an_archive_that_holds_a_name_twice_gives_both(kind, tmp_path):
    path = tmp_path / "x"
    first, second = tar_bytes({"a.png": b"first"}), tar_bytes({"a.png": b"second"})
    if kind == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("a.png", b"first")
            archive.writestr("a.png", b"second")
    else:  # a folder, the file, no zeros at the end
        data = first[: 512 * 3] + second
        path.write_bytes(gzip.compress(data) if kind == "targz" else data)
    found = list_sources([str(path)]).entries
    assert read_all(found) == [("a.png", b"first"), ("a.png", b"second")]
    assert read_all(found[::-1]) == [("a.png", b"second"), ("a.png", b"first")]


def test_a_member_of_a_zip_that_inflates_to_more_than_it_says_is_stopped_there(tmp_path):
    """A bomb: 1000 bytes by its table of contents, 200 MB inflated."""
    path = tmp_path / "x.zip"
    write_zip(path, {"a.png": bytes(200_000_000)})
    data = bytearray(path.read_bytes())
    for mark, place in ((b"PK\1\2", 24), (b"PK\3\4", 22)):
        struct.pack_into("<I", data, data.rindex(mark) + place, 1000)
    path.write_bytes(data)
    (one,) = list_sources([str(path)]).entries
    assert one.num_bytes == 1000
    tracemalloc.start()
    with pytest.raises(SourceReadError, match=r"^cannot be read: Bad CRC-32 for file 'a\.png'$"):
        read_all([one])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20_000_000


# ---- the index of a .tar.gz -----------------------------------------------------------------------------


def index_files(folder: Path) -> list[str]:
    return sorted(path.suffix for path in folder.iterdir()) if folder.is_dir() else []


def refuse_to_inflate(monkeypatch):
    def refuse(*_, **__):
        pytest.fail("the archive was read again")

    monkeypatch.setattr(indexed_gzip, "IndexedGzipFile", refuse)


def test_a_second_listing_does_not_open_the_archive(tmp_path, monkeypatch):
    path, index = write_targz(tmp_path / "x.tar.gz"), tmp_path / "index"
    first = list_sources([path], str(index))
    assert index_files(index) == [".gzidx", ".members"]
    refuse_to_inflate(monkeypatch)
    assert list_sources([path], str(index)) == first
    assert list_sources([path], str(index), keep_index=False) == first


def test_an_index_is_not_written_where_none_is_to_be_kept(tmp_path):
    path, index = write_targz(tmp_path / "x.tar.gz"), tmp_path / "index"
    listing = list_sources([path], str(index), keep_index=False)
    assert not index.exists()
    assert sorted(read_all(listing.entries, str(index))) == EXPECTED


def test_an_archive_that_changed_is_listed_anew(tmp_path):
    path, index = tmp_path / "x.tar.gz", str(tmp_path / "index")
    write_targz(path, {"a.png": noise(1)})
    list_sources([str(path)], index)
    state = path.stat()
    write_targz(path, {"b.png": noise(2)})
    assert path.stat().st_size == state.st_size
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns + 1))
    assert read_all(list_sources([str(path)], index).entries, index) == [("b.png", noise(2))]


def test_readers_begin_at_restart_points_and_need_not_inflate_what_is_before(tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "GZIP_SPACING", 1 << 20)
    monkeypatch.setattr(archives, "GZIP_BUFFER", 1 << 18)
    files = {f"{n}.png": noise(n, 400_000) for n in range(20)}
    path, index = write_targz(tmp_path / "x.tar.gz", files), str(tmp_path / "index")
    entries = list_sources([path], index).entries
    # The first half of the archive destroyed: what lies behind is read all the same.
    with open(path, "r+b") as file:
        file.write(bytes(4_000_000))
    state = FileState(entries[0].num_bytes, entries[0].mtime_ns, entries[0].version)
    monkeypatch.setattr(storage, "file_state", lambda path: state)  # as if nothing had changed
    assert read_all(entries[14:], index) == [(f"{n}.png", files[f"{n}.png"]) for n in range(14, 20)]


def damaged(data: bytes) -> dict[str, bytes | None]:
    middle = len(data) // 2
    flipped = data[:middle] + bytes([data[middle] ^ 255]) + data[middle + 1 :]
    return {"absent": None, "empty": b"", "cut": data[:middle], "flipped": flipped, "junk": b"junk" * 100}


@pytest.mark.parametrize("damage", ["absent", "empty", "cut", "flipped", "junk"])
@pytest.mark.parametrize("ending", [".gzidx", ".members", "both"])
def test_a_damaged_index_is_made_anew_and_never_gives_other_bytes(ending, damage, tmp_path, monkeypatch):
    # Text, so that restart points need the text before them.
    files = {f"{n}.png": (b"%d again and " % n) * 90_000 for n in range(8)}
    monkeypatch.setattr(archives, "GZIP_SPACING", 1 << 20)
    path, index = write_targz(tmp_path / "x.tar.gz", files), tmp_path / "index"
    listing = list_sources([path], str(index))
    before = {p: p.read_bytes() for p in index.iterdir()}
    for kept, data in before.items():
        if ending in (kept.suffix, "both"):
            other = damaged(data)[damage]
            kept.unlink() if other is None else kept.write_bytes(other)
    # A reader takes no harm, even before the listing has mended it.
    assert read_all(listing.entries[::-1], str(index)) == list(files.items())[::-1]
    assert list_sources([path], str(index)) == listing
    assert {p: p.read_bytes() for p in index.iterdir()} == before
    assert read_all(listing.entries[::-1], str(index)) == list(files.items())[::-1]


# ---- damaged archives -----------------------------------------------------------------------------------

CUT_FILES = {f"{n}.png": noise(n, 2000) for n in range(6)}


@pytest.mark.parametrize("kind", ["tar", "tar.gz"])
def test_an_archive_cut_anywhere_gives_what_is_before_and_a_warning(kind, tmp_path):
    path, index = tmp_path / f"x.{kind}", tmp_path / "index"
    {"tar": write_tar, "tar.gz": write_targz}[kind](path, CUT_FILES)
    whole = path.read_bytes()
    expected = list(CUT_FILES.items())
    # What is cut off the zeros at the end is no loss.
    for cut in [*range(0, len(whole), 509), *range(512, len(whole), 512)]:
        path.write_bytes(whole[:cut])
        listing = list_sources([str(path)], str(index))
        read = []
        with SourceReader(str(index)) as reader, contextlib.suppress(SourceReadError):
            read.extend((one.name, reader.read(one)) for one in listing.entries)
        assert read == expected[: len(read)]
        if not listing.warnings:
            assert read == expected
            continue
        found = len(listing.entries)
        assert len(read) >= found - 2
        assert len(listing.warnings) == 1
        assert listing.warnings[0].startswith(f"{path}: damaged after {found} images (")
        assert listing.warnings[0].endswith("); fetch the archive again")
        assert "\n" not in listing.warnings[0]
        assert index_files(index) == []  # nothing is kept of a damaged archive


def test_a_damaged_header_in_the_middle_of_a_tar_is_not_taken_for_its_end(tmp_path):
    path = tmp_path / "x.tar"
    write_tar(path, CUT_FILES)
    third = list_sources([str(path)]).entries[3].offset - 512
    data = bytearray(path.read_bytes())
    data[third + 5] ^= 1
    path.write_bytes(data)
    listing = list_sources([str(path)])
    assert [e.name for e in listing.entries] == ["0.png", "1.png", "2.png"]
    assert listing.warnings == [f"{path}: damaged after 3 images (bad checksum); fetch the archive again"]


@pytest.mark.parametrize("ending", [".tar", ".tar.gz", ".tgz", ".zip"])
def test_a_web_page_saved_as_an_archive_is_a_warning_and_the_others_are_read(ending, tmp_path):
    page = tmp_path / f"page{ending}"
    html = b"<!DOCTYPE html><html>" + b" " * 2000
    # Some servers pack what they send.
    page.write_bytes(gzip.compress(html) if ending == ".tgz" else html)
    folder = write_folder(tmp_path / "folder", {"a.png": b"a"})
    listing = list_sources([str(page), folder])
    assert [e.name for e in listing.entries] == ["a.png"]
    assert len(listing.warnings) == 1
    assert listing.warnings == [
        f"{page}: a web page and no archive (it begins with '<!DOCTYPE html><html>           '); "
        "fetch the archive again"
    ]


def test_an_empty_folder_is_refused_even_after_a_warning(tmp_path):
    (tmp_path / "page.tar").write_bytes(b"<html>")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="holds no image"):
        list_sources([str(tmp_path / "page.tar"), str(tmp_path / "empty")])


def test_a_zip_cut_short_is_an_error(tmp_path):
    path = tmp_path / "x.zip"
    write_zip(path)
    whole = path.read_bytes()
    for data in (whole[:-1], whole[: len(whole) // 2], b"", b"junk" * 100):
        path.write_bytes(data)
        with pytest.raises(CxrError) as caught:
            list_sources([str(path)])
        assert str(caught.value) == (
            f"`images={path}`: damaged or cut short (File is not a zip file); fetch the archive again"
        )


@pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz"])
def test_a_damaged_archive_gives_right_bytes_or_says_that_it_is_damaged(kind, tmp_path):
    path = tmp_path / f"x.{kind}"
    {"zip": write_zip, "tar": write_tar, "tar.gz": write_targz}[kind](path, CUT_FILES)
    whole = path.read_bytes()

    @given(st.integers(0, len(whole) - 1), st.integers(1, 255))
    @settings(
        max_examples=60, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
    )
    def check(place, flip):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ flip]) + whole[place + 1 :])
        try:
            listing = list_sources([str(path)], None)
        except CxrError:
            return
        with SourceReader(None) as reader:
            for one in listing.entries:
                try:
                    data = reader.read(one)
                except SourceReadError as error:
                    assert str(path) not in str(error)  # noqa: PT017 - most of these are read
                else:
                    # A plain tar has no checksum of its data: the image's own decoder finds it.
                    assert kind != "zip" or data == CUT_FILES.get(one.name, data)

    check()


def test_a_damaged_member_of_a_zip_is_a_read_error_and_the_others_are_read(tmp_path):
    path = tmp_path / "x.zip"
    write_zip(path, CUT_FILES, zipfile.ZIP_STORED)
    data = path.read_bytes()
    path.write_bytes(data.replace(CUT_FILES["2.png"], CUT_FILES["2.png"][::-1]))
    entries = list_sources([str(path)]).entries
    with SourceReader(None) as reader:
        with pytest.raises(SourceReadError, match=r"^cannot be read: Bad CRC-32 for file '2\.png'$"):
            reader.read(entries[2])
        assert [reader.read(e) for e in entries[3:]] == list(CUT_FILES.values())[3:]


def test_an_encrypted_member_of_a_zip_is_a_read_error(tmp_path):
    path = tmp_path / "x.zip"
    write_zip(path, {"a.png": b"a"}, zipfile.ZIP_STORED)
    data = bytearray(path.read_bytes())
    for mark, place in ((b"PK\1\2", 8), (b"PK\3\4", 6)):
        at = data.rindex(mark)
        struct.pack_into("<H", data, at + place, 1)
    path.write_bytes(data)
    with pytest.raises(SourceReadError, match=r"^cannot be read: a\.png is encrypted; unpack the archive$"):
        read_all(list_sources([str(path)]).entries)


def test_a_zip_replaced_after_listing_is_a_read_error(tmp_path):
    path = tmp_path / "x.zip"
    write_zip(path, {"a.png": b"a"})
    entries = list_sources([str(path)]).entries
    write_zip(path, {"b.png": b"b"})
    with pytest.raises(SourceReadError, match=r"^changed since it was listed; run again"):
        read_all(entries)


def test_reading_goes_on_after_an_archive_that_is_gone(tmp_path):
    paths = [write_zip(tmp_path / f"{n}.zip", {f"{n}.png": b"x"}) for n in range(3)]
    entries = list_sources(paths).entries
    os.remove(paths[1])
    with SourceReader(None) as reader:
        assert reader.read(entries[0]) == b"x"
        with pytest.raises(SourceReadError, match=r"^cannot be read: No such file or directory$"):
            reader.read(entries[1])
        assert reader.read(entries[2]) == b"x"
        assert reader.read(entries[0]) == b"x"


def test_names_in_a_tar_that_are_no_utf8_are_listed_and_kept(tmp_path):
    path, index = tmp_path / "x.tar.gz", str(tmp_path / "index")
    data = tar_bytes({"caf\udce9/a.png": b"a"}, tarfile.GNU_FORMAT)
    path.write_bytes(gzip.compress(data))
    first, second = (list_sources([str(path)], index) for _ in range(2))
    assert first == second
    assert first.entries[0].member.encode() == b"caf?/a.png"
    assert read_all(second.entries, index) == [("a.png", b"a")]
