import dataclasses
import hashlib
import io
import itertools
import json
import os
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from cxr_records import storage, store
from cxr_records.errors import CxrError, UsageError
from cxr_records.examples import decode_example
from cxr_records.images import ImageFormat
from cxr_records.lookalike import make_lookalike
from cxr_records.sources import Entries, ImageFiles, list_sources, match_entries
from cxr_records.store import INDEX_SCHEMA, fetch_images, open_store, signature, signatures, write_unit
from cxr_records.store import Place as Stored
from cxr_records.tfrecord import read_records

FORMAT = ImageFormat(16)


def picture(seed: int, kind: str = "PNG") -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (20, 20), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


class Place:
    """A folder of images and a store, and how the two come together in a command."""

    def __init__(self, path: Path, where: str | None = None, image_format: ImageFormat = FORMAT):
        self.images = path / "images"
        self.images.mkdir(parents=True, exist_ok=True)
        self.store = open_store(where or str(path / "store"), image_format)

    def write(self, **files: bytes) -> None:
        """Writes images, given by their name without .png; each is changed at a time of its own."""
        for name, data in files.items():
            (self.images / f"{name}.png").write_bytes(data)
            self.touch(name)

    def touch(self, *names: str, clock=itertools.count(10**18, 10**9)) -> None:  # noqa: B008 - one clock
        for name in names:
            now = next(clock)
            os.utime(self.images / f"{name}.png", ns=(now, now))

    def index(self) -> pd.DataFrame:
        units = self.store._units()
        read = ((unit, self.store._read_unit(unit, INDEX_SCHEMA.names)) for unit in units)
        tables = [(unit, table.to_pandas()) for unit, table in read if table is not None]
        empty = INDEX_SCHEMA.empty_table().to_pandas()
        return pd.concat([empty.assign(unit=""), *(table.assign(unit=unit) for unit, table in tables)])

    def matched(self, *sources: str) -> ImageFiles:
        entries = list_sources(sources or [str(self.images)], self.store.archive_folder).entries
        return match_entries(entries, pa.array(sorted({entry.name for entry in entries}), pa.string()))[0]

    def located(self, files: ImageFiles) -> pd.DataFrame:
        """What the store says of the images that are settled, by image_id."""
        return settled_rows(self.store.locate(files.image_ids, signatures(files)), files.image_ids)

    def settled(self, *sources: str) -> pd.DataFrame:
        return self.located(self.matched(*sources))

    def plan(self, *sources: str) -> list[store.UnitSpec]:
        files = self.matched(*sources)
        settled = set(self.located(files).index)
        pending = np.array([name not in settled for name in files.image_ids.to_pylist()], bool)
        return self.store.plan_units(files, pending, signatures(files))

    def decode(self, *sources: str) -> pd.DataFrame:
        self.store.clean()
        for spec in self.plan(*sources):
            write_unit(spec)
        return self.settled(*sources)

    def stored(self, *sources: str) -> dict[str, bytes]:
        rows = self.settled(*sources).query("status == 'ok'")
        places = [Stored(*row) for row in rows[list(Stored._fields)].itertuples(index=False)]
        return dict(zip(rows.index, fetch_images(self.store.path, places), strict=True))

    def files(self) -> dict[str, bytes]:
        """Every file of the store, but for what is only for the time of the work."""
        names = storage.list_names(self.store.path)
        kept = [name for name in names if not name.startswith((".work-", store.ARCHIVE_FOLDER))]
        return {name: storage.read_bytes(storage.join(self.store.path, name)) for name in kept}


def settled_rows(located: pa.Table, image_ids: pa.Array) -> pd.DataFrame:
    rows = located.to_pandas().set_index(pd.Index(image_ids.to_pylist(), name="image_id"))
    rows = rows.astype(dict.fromkeys(("status", "reason", "unit"), object))
    for name in ("sha256", "pixel_sha256"):
        rows[name] = [digest.hex() for digest in rows[name]]
    return rows[rows.status.notna()]


def files_named(*names: str) -> ImageFiles:
    """A file of each image, which is nowhere."""
    found = Entries(store.Entry(name, f"/images/{name}", "file", "", 0, 1, 1, "1") for name in names)
    return match_entries(found, pa.array(names, pa.string()))[0]


@pytest.fixture
def place(tmp_path) -> Place:
    return Place(tmp_path)


@pytest.fixture
def decoded(monkeypatch) -> list[bytes]:
    """The bytes of every image that was decoded, in order."""
    calls = []
    decode = store.decode_image

    def count(data, image_format):
        calls.append(data)
        return decode(data, image_format)

    monkeypatch.setattr(store, "decode_image", count)
    return calls


# ---- units ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("images", "sizes"),
    [
        (1, [1]),
        (16, [16]),
        (17, [16, 1]),
        (600, [19] * 31 + [11]),
        (16384, [512] * 32),
        (16400, [512] * 32 + [16]),
    ],
)
def test_units_hold_16_to_512_images_and_as_few_as_keep_32_workers_busy(place, images, sizes):
    found = files_named(*(f"{number:05}.png" for number in range(images)))
    units = place.store.plan_units(found, found.present, signatures(found))
    assert [unit.num_images for unit in units] == sizes
    assert len({unit.name for unit in units}) == len(units)


def test_units_of_what_is_left_are_as_large_as_those_of_all(place):
    found = files_named(*(f"{number:05}.png" for number in range(40)))
    units = place.store.plan_units(found, found.present, signatures(found), num_images=600)
    assert [unit.num_images for unit in units] == [19, 19, 2]


def test_nothing_to_decode_is_no_unit_and_no_file(place):
    found = files_named()
    assert place.store.plan_units(found, found.present, signatures(found)) == []
    assert storage.list_names(place.store.path) == ["store.json"]


def test_units_follow_the_order_of_the_archive(place, tmp_path):
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        for number in (3, 1, 2):
            archive.writestr(f"{number}.png", picture(number))
    place.write(z=picture(9))
    index = place.decode(str(tmp_path / "x.zip"), str(place.images))
    rows = place.index()
    assert rows.image_id.tolist() == ["z.png", "3.png", "1.png", "2.png"]
    assert index.status.tolist() == ["ok"] * 4


def test_a_unit_is_one_record_of_each_image_and_an_index_of_where_they_are(place):
    place.write(b=picture(2), a=picture(1), bad=b"junk", c=picture(3, "JPEG"))
    found = place.decode()
    (unit,) = set(found.unit.dropna())
    path = Path(place.store.path) / f"unit-{unit}.tfrecord"
    with open(path, "rb") as file:
        records = [(offset, decode_example(data)) for offset, data in read_records(file)]
    whole = path.read_bytes()
    assert [record["image_id"] for _, record in records] == [[b"a.png"], [b"b.png"], [b"c.png"]]
    rows = pd.read_parquet(path.with_suffix(".parquet"))
    assert list(rows.columns) == INDEX_SCHEMA.names
    held = [whole[row.offset : row.offset + row.length] for row in rows.itertuples() if row.status == "ok"]
    assert held == [record["image"][0] for _, record in records]
    assert (rows.offset[2], rows.length[2], rows.crc32c[2]) == (-1, 0, 0)
    assert rows.status.tolist() == ["ok", "ok", "rejected", "ok"]
    assert rows.reason.tolist() == ["", "", "no PNG, JPEG or DICOM: begins with 'junk'", ""]
    assert rows.source.tolist() == [str(place.images / f"{name}.png") for name in ("a", "b", "bad", "c")]
    for (_, record), row in zip(records, rows[rows.status == "ok"].itertuples(), strict=True):
        pixels = np.frombuffer(record["image"][0], np.uint8).astype(np.int64)
        assert (row.pixel_sum, row.pixel_sum_squares) == (pixels.sum(), (pixels**2).sum())
        assert (row.width, row.height, row.mode) == (20, 20, "L")
        assert row.pixel_sha256 == hashlib.sha256(record["image"][0]).hexdigest()
        # 1 of 100 pixels is up to the one, 99 up to the other.
        ordered = np.sort(pixels)
        assert (row.grey_low, row.grey_high) == (ordered[2], ordered[253])
    assert rows.bytes.tolist() == [
        len((place.images / f"{name}.png").read_bytes()) for name in ("a", "b", "bad", "c")
    ]


def test_stored_images_are_the_decoded_pixels_in_the_order_asked_for(place):
    place.write(**{f"i{n:02}": picture(n) for n in range(40)})
    rows = place.decode()
    assert len(set(rows.unit)) == 3
    order = list(rows.index[::-1]) + list(rows.index[::7])
    places = [Stored(*rows.loc[name, list(Stored._fields)]) for name in order]
    for name, image in zip(order, fetch_images(place.store.path, places), strict=True):
        with Image.open(place.images / name) as source:
            assert image == np.asarray(source.resize((16, 16), Image.Resampling.BILINEAR)).tobytes()
    assert fetch_images(place.store.path, []) == []


@pytest.mark.parametrize("codec", ["raw", "png", "jpeg"])
def test_images_are_stored_in_the_codec_of_the_store(tmp_path, codec):
    place = Place(tmp_path, image_format=ImageFormat(32, codec))
    place.write(a=picture(1))
    place.decode()
    (image,) = place.stored().values()
    start = {"raw": b"", "png": b"\x89PNG", "jpeg": b"\xff\xd8\xff"}[codec]
    assert image.startswith(start)
    assert place.store.image_format.decode(image).shape == (32, 32)


def test_a_unit_written_twice_is_the_same_file_and_the_second_time_reads_nothing(place, decoded):
    place.write(a=picture(1), b=picture(2), bad=b"")
    (spec,) = place.plan()
    write_unit(spec)
    first, calls = place.files(), len(decoded)
    write_unit(spec)
    assert place.files() == first
    assert len(decoded) == calls
    for name in first:
        if name.startswith("unit-"):
            storage.remove(storage.join(place.store.path, name))
    write_unit(spec)
    assert place.files() == first


@pytest.mark.parametrize("lost", [".tfrecord", ".parquet", ".sha256"])
def test_a_unit_of_which_a_worker_left_a_part_is_written_whole_by_the_next(place, lost):
    place.write(a=picture(1), bad=b"")
    (spec,) = place.plan()
    write_unit(spec)
    whole = place.files()
    (path,) = Path(place.store.path).glob(f"unit-*{lost}")
    path.unlink()
    write_unit(spec)
    assert place.files() == whole


def test_two_stores_of_the_same_images_are_the_same_files(tmp_path):
    places = [Place(tmp_path, str(tmp_path / name)) for name in ("one", "two")]
    places[0].write(a=picture(1), b=picture(2))
    for one in places:
        one.decode()
    assert places[0].files() == places[1].files()


def test_a_unit_in_which_every_image_is_rejected_is_done_all_the_same(place, decoded):
    place.write(a=b"", b=b"<html>", c=picture(1)[:40])
    found = place.decode()
    assert found.status.tolist() == ["rejected"] * 3
    assert found.reason.tolist() == [
        "the file is empty",
        "no PNG, JPEG or DICOM: begins with '<html>'",
        "damaged PNG: cut short at byte 40, or a length is wrong",
    ]
    assert place.plan() == []
    assert sorted(len(data) for name, data in place.files().items() if name.endswith(".tfrecord")) == [0]


def test_a_write_that_fails_leaves_no_part_of_the_unit(place, monkeypatch):
    place.write(a=picture(1))
    (spec,) = place.plan()

    def fail(*_):
        raise MemoryError

    monkeypatch.setattr(store, "decode_image", fail)
    with pytest.raises(MemoryError):
        write_unit(spec)
    assert list(place.files()) == ["store.json"]


def test_remote_storage_holds_the_same_store(tmp_path):
    MemoryFileSystem.store.clear()
    local, remote = Place(tmp_path), Place(tmp_path, "memory://bucket/store")
    local.write(a=picture(1), b=picture(2), bad=b"junk")
    local.decode()
    found = remote.decode()
    assert found.status.tolist() == ["ok", "ok", "rejected"]
    assert remote.files() == local.files()
    assert remote.stored() == local.stored()
    assert remote.plan() == []
    with remote.store.lock():
        remote.store.clean()
    assert remote.files() == local.files()


# ---- what is decoded again, and what is not -------------------------------------------------------------


def test_only_new_images_are_decoded(place, decoded):
    place.write(a=picture(1), b=picture(2))
    place.decode()
    before = place.stored()
    place.write(c=picture(3))
    place.decode()
    assert decoded == [picture(1), picture(2), picture(3)]
    assert place.plan() == []
    assert {name: place.stored()[name] for name in before} == before


def test_an_image_of_another_time_but_the_same_bytes_is_not_decoded_again(place, decoded):
    place.write(a=picture(1), b=picture(2))
    before = place.decode()
    place.touch("a")
    after = place.decode()
    assert len(decoded) == 2
    assert after[["unit", "offset", "length"]].equals(before[["unit", "offset", "length"]])
    assert place.plan() == []
    statuses = place.index().status.value_counts().to_dict()
    assert statuses == {"ok": 2, "same": 1}
    # Nor is it after the unit that says so is gone.
    place.touch("a", "b")
    place.decode()
    assert len(decoded) == 2


def test_the_same_images_in_an_archive_are_not_decoded_again(place, tmp_path, decoded):
    place.write(a=picture(1), b=picture(2))
    place.decode()
    before = place.stored()
    for kind in ("zip", "tar", "gztar"):
        path = shutil.make_archive(str(tmp_path / "archive"), kind, place.images)
        place.decode(path)
        assert place.stored(path) == before
    assert len(decoded) == 2


def test_an_image_whose_bytes_changed_is_decoded_again_and_its_old_bytes_are_known_still(place, decoded):
    place.write(a=picture(1))
    place.decode()
    first = place.stored()
    place.write(a=picture(2))
    assert len(place.plan()) == 1
    place.decode()
    assert place.stored() != first
    place.write(a=picture(1))
    place.decode()
    assert place.stored() == first
    assert decoded == [picture(1), picture(2)]


def test_an_image_that_was_rejected_is_decoded_once_it_is_mended(place, decoded):
    place.write(a=picture(1)[:-50])
    assert place.decode().status.tolist() == ["rejected"]
    assert place.plan() == []
    place.write(a=picture(1))
    assert place.decode().status.tolist() == ["ok"]


def test_an_image_that_was_rejected_and_only_changed_its_time_is_rejected_again_for_the_same_reason(place):
    place.write(a=picture(1)[:-50], b=picture(2))
    before = place.decode()
    place.touch("a")
    after = place.decode()
    assert after.status.to_dict() == {"a.png": "rejected", "b.png": "ok"}
    assert after.reason["a.png"] == before.reason["a.png"] != ""
    assert place.plan() == []


def test_two_files_of_one_name_count_once_where_they_are_the_same(place, decoded):
    (place.images / "more").mkdir()
    place.write(a=picture(1))
    (place.images / "more" / "a.png").write_bytes(picture(1))
    assert place.decode().status.tolist() == ["ok"]
    assert decoded == [picture(1)]
    assert place.plan() == []


def test_two_files_of_one_name_are_rejected_where_they_differ(place, decoded):
    (place.images / "more").mkdir()
    place.write(a=picture(1), b=picture(3))
    (place.images / "more" / "a.png").write_bytes(picture(2))
    found = place.decode()
    assert found.status.to_dict() == {"a.png": "rejected", "b.png": "ok"}
    assert found.reason["a.png"] == (
        f"2 files of this name differ in their bytes: {place.images}/a.png and {place.images}/more/a.png"
    )
    assert decoded == [picture(3)]
    (place.images / "more" / "a.png").unlink()
    assert place.decode().status.tolist() == ["ok", "ok"]


def test_folders_whose_names_are_no_utf8_are_read_and_named(place):
    """As archives of other systems leave them."""
    for name, seed in ((b"caf\xe9", 1), (b"\xff", 2)):
        folder = os.path.join(os.fsencode(place.images), name)
        os.mkdir(folder)
        Path(os.fsdecode(folder), "a.png").write_bytes(picture(seed))
    place.write(b=picture(3))
    found = place.decode()
    assert found.status.to_dict() == {"a.png": "rejected", "b.png": "ok"}
    assert found.reason["a.png"] == (
        f"2 files of this name differ in their bytes: {place.images}/caf\\xe9/a.png and "
        f"{place.images}/\\xff/a.png"
    )
    Path(os.fsdecode(os.path.join(os.fsencode(place.images), b"\xff", b"a.png"))).unlink()
    assert place.decode().status.tolist() == ["ok", "ok"]
    assert place.index().source.str.contains(r"caf\\xe9").any()


def test_a_file_that_could_not_be_read_is_tried_again(place):
    place.write(a=picture(1), b=picture(2))
    specs = place.plan()
    state = (place.images / "a.png").stat()
    (place.images / "a.png").rename(place.images / "hidden")
    for spec in specs:
        write_unit(spec)
    (place.images / "hidden").rename(place.images / "a.png")
    assert (place.images / "a.png").stat().st_mtime_ns == state.st_mtime_ns
    rows = place.index().set_index("image_id")
    assert rows.status.to_dict() == {"a.png": "unreadable", "b.png": "ok"}
    assert rows.reason["a.png"] == "cannot be read: No such file or directory"
    assert place.settled().index.tolist() == ["b.png"]
    assert place.decode().status.tolist() == ["ok", "ok"]
    assert place.plan() == []


def test_a_unit_of_which_nothing_could_be_read_is_tried_again(place, decoded):
    place.write(a=picture(1))
    for _ in range(2):
        specs = place.plan()
        (place.images / "a.png").rename(place.images / "hidden")
        for spec in specs:
            write_unit(spec)
        (place.images / "hidden").rename(place.images / "a.png")
        assert place.settled().empty
    assert place.decode().status.tolist() == ["ok"]
    assert place.plan() == []
    assert decoded == [picture(1)]


def test_a_unit_that_fails_on_the_way_and_is_planned_again_has_the_same_name(place):
    place.write(a=picture(1), b=picture(2))
    assert [spec.name for spec in place.plan()] == [spec.name for spec in place.plan()]


def test_locating_in_an_empty_store_or_nothing_finds_nothing(place):
    nothing, others = files_named(), files_named("a.png", "b.png")
    assert place.located(nothing).empty
    assert place.located(others).empty
    place.write(a=picture(1))
    place.decode()
    assert place.located(nothing).empty
    assert place.located(others).empty


class Told(store.ImageStore):
    """A store that is no more than the rows of its units."""

    def _units(self) -> list[str]:
        return sorted(UNITS_TOLD)

    def _read_unit(self, unit: str, columns=()) -> pa.Table:
        return pa.Table.from_pylist(UNITS_TOLD[unit], INDEX_SCHEMA).select(list(columns))


UNITS_TOLD: dict[str, list[dict]] = {}
index_rows = st.fixed_dictionaries(
    {
        "image_id": st.sampled_from(["a", "b", "c", "strange"]),
        "signature": st.sampled_from(["1" * 32, "2" * 32]),
        "sha256": st.sampled_from(["3" * 64, "4" * 64]),
        "status": st.sampled_from(["ok", "same", "rejected", "unreadable"]),
        "decoder": st.sampled_from(["ours", "another"]),
        "reason": st.sampled_from(["", "broken", "cut short"]),
        "offset": st.integers(0, 2**40),
    }
)


def settled_by_hand(rows: list[tuple[str, dict]], image_id: str, signature: str) -> tuple | None:
    """The rule: the best row of this file decides; the first record of its bytes tells where these are."""
    ranks = ["ok", "same", "rejected", "unreadable"]
    its = [(unit, row) for unit, row in rows if row["image_id"] == image_id]
    own = [row for _, row in its if row["signature"] == signature and row["status"] != "unreadable"]
    own = [row for row in own if row["status"] != "rejected" or row["decoder"] == "ours"]
    if not own:
        return None
    best = min(own, key=lambda row: ranks.index(row["status"]))
    if best["status"] == "rejected":
        return ("rejected", best["reason"], None, 0)
    records = [(unit, row) for unit, row in its if row["status"] == "ok" and row["sha256"] == best["sha256"]]
    return ("ok", "", records[0][0], records[0][1]["offset"]) if records else None


@given(
    st.lists(st.lists(index_rows, max_size=5, unique_by=lambda row: row["image_id"]), max_size=5),
    st.lists(st.sampled_from(["", "1" * 32, "2" * 32]), min_size=3, max_size=3),
    st.integers(1, 3),
    st.sampled_from([("offset", "sha256"), ("offset",)]),
)
def test_what_is_located_is_what_the_rows_of_all_units_say(units, wanted, at_once, columns):
    UNITS_TOLD.clear()
    UNITS_TOLD.update({f"v2-{number}": rows for number, rows in enumerate(units)})
    rows = [(unit, row) for unit, its in UNITS_TOLD.items() for row in its]
    told = np.frombuffer(bytes.fromhex("".join(text or "0" * 32 for text in wanted)), np.uint8).reshape(3, 16)
    image_ids = ["a", "b", "c"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store, "decoder_version", lambda: "ours")
        patch.setattr(store, "_UNITS_AT_ONCE", at_once)
        located = Told("nowhere", FORMAT).locate(pa.array(image_ids), told, columns)
    found = [
        None if row["status"] is None else (row["status"], row["reason"], row["unit"], row["offset"])
        for row in located.to_pylist()
    ]
    assert found == [
        settled_by_hand(rows, image_id, signature) if signature else None
        for image_id, signature in zip(image_ids, wanted, strict=True)
    ]


def test_a_signature_tells_path_place_size_and_version_in_any_order_of_files():
    one = store.Entry("a.png", "/a.png", "file", "", 0, 10, 99, "x")
    two = store.Entry("a.png", "/b.zip", "zip", "a.png", 5, 7, 100, "y")
    assert signature([one, two]) == signature([two, one])
    others = [
        [one],
        [two],
        [one, one],
        *([one, two._replace(**{name: value})] for name, value in TOLD.items()),
    ]
    assert len({signature(entries) for entries in [[one, two], *others]}) == len(others) + 1
    # When it was changed is in the version; of which kind it is, its bytes tell.
    assert signature([one._replace(mtime_ns=1)]) == signature([one])


TOLD = {"source": "/c.zip", "member": "b/a.png", "offset": 6, "num_bytes": 8, "version": "z"}


# ---- the same size and time are not the same picture ----------------------------------------------------


def in_place(path: Path, data: bytes) -> None:
    """Writes other bytes of the same number, and sets the time of change back."""
    state = path.stat()
    assert state.st_size == len(data)
    path.write_bytes(data)
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))


def bitmap(level: int) -> bytes:
    """A PNG whose number of bytes does not depend on what it shows."""
    buffer = io.BytesIO()
    Image.fromarray(np.full((20, 20), level, np.uint8)).save(buffer, "PNG", compress_level=0)
    return buffer.getvalue()


def test_an_image_of_the_same_size_and_time_in_another_folder_is_another(place, tmp_path):
    """Two sets with one store, as `touch` or an unpacked archive leave them."""
    other = tmp_path / "other"
    other.mkdir()
    for folder, level in ((place.images, 10), (other, 200)):
        (folder / "a.png").write_bytes(bitmap(level))
        os.utime(folder / "a.png", ns=(0, 10**18))
    place.decode()
    assert place.stored() == {"a.png": bytes([10]) * 256}
    place.decode(str(other))
    assert place.stored(str(other)) == {"a.png": bytes([200]) * 256}
    assert place.stored() == {"a.png": bytes([10]) * 256}


def test_an_image_that_was_replaced_at_the_same_path_size_and_time_is_decoded_again(place):
    place.write(a=bitmap(10))
    place.decode()
    in_place(place.images / "a.png", bitmap(200))
    assert place.decode().status.tolist() == ["ok"]
    assert place.stored() == {"a.png": bytes([200]) * 256}


def test_folders_that_change_names_are_not_taken_for_each_other(place, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    (place.images / "a.png").write_bytes(bitmap(10))
    (other / "a.png").write_bytes(bitmap(200))
    for folder in (place.images, other):
        os.utime(folder / "a.png", ns=(0, 10**18))
    place.decode()
    place.images.rename(tmp_path / "aside")
    other.rename(place.images)
    place.decode()
    assert place.stored() == {"a.png": bytes([200]) * 256}


@pytest.mark.parametrize("change", ["chmod", "link", "move"])
def test_a_file_of_the_same_bytes_is_hashed_again_and_not_decoded(place, change, tmp_path, decoded):
    place.write(a=picture(1))
    place.decode()
    path = place.images / "a.png"
    if change == "chmod":
        path.chmod(0o600)
    elif change == "link":
        os.link(path, tmp_path / "link")
    else:
        place.images = place.images.rename(tmp_path / "moved")
    assert len(place.plan()) == 1
    assert place.decode().status.tolist() == ["ok"]
    assert place.plan() == []
    assert len(decoded) == 1


def test_files_of_a_storage_that_tells_nothing_of_them_are_hashed_each_time(place, decoded, monkeypatch):
    place.write(a=bitmap(10))
    monkeypatch.setattr(storage, "local_state", lambda status: storage.FileState(status.st_size, 0, ""))
    found = place.matched()

    def run() -> pd.DataFrame:
        found = place.matched()
        told = signatures(found)
        assert place.store.locate(found.image_ids, told)["status"].null_count == 1
        for spec in place.store.plan_units(found, found.present, told):
            write_unit(spec)
        return settled_rows(place.store.locate(found.image_ids, told), found.image_ids)

    assert run().status.tolist() == run().status.tolist() == ["ok"]
    assert len(decoded) == 1
    in_place(place.images / "a.png", bitmap(200))
    assert run().status.tolist() == ["ok"]
    assert len(decoded) == 2
    assert found.files([0]) != place.matched().files([0])


# ---- another decoder ------------------------------------------------------------------------------------


def test_what_one_decoder_rejected_another_tries_again(place, decoded, monkeypatch):
    """As when a plugin is installed: what it can decode is taken, what it cannot is rejected by it too."""
    place.write(a=b"plugin", b=b"junk", c=picture(3))
    before = place.decode()
    assert before.status.to_dict() == {"a.png": "rejected", "b.png": "rejected", "c.png": "ok"}
    assert set(place.index().decoder) == {store.decoder_version()}
    assert (place.plan(), len(decoded)) == ([], 3)

    plain = store.decode_image
    monkeypatch.setattr(store, "decoder_version", lambda: "plugin 1")
    monkeypatch.setattr(
        store,
        "decode_image",
        lambda data, image_format: plain(picture(1) if data == b"plugin" else data, image_format),
    )
    after = place.decode()
    assert after.status.to_dict() == {"a.png": "ok", "b.png": "rejected", "c.png": "ok"}
    tried = sorted(zip(place.index().image_id, place.index().decoder == "plugin 1", strict=True))
    assert tried == [("a.png", False), ("a.png", True), ("b.png", False), ("b.png", True), ("c.png", False)]
    assert (place.plan(), len(decoded)) == ([], 5)  # c was not decoded again

    # Without the plugin again: what is decoded stays so.
    monkeypatch.undo()
    assert place.settled().status.to_dict() == after.status.to_dict()
    assert place.plan() == []


# ---- a store of the version before ----------------------------------------------------------------------

FIRST_COLUMNS = [
    *("image_id", "source", "bytes", "mtime_ns", "signature", "sha256", "width", "height", "mode"),
    *("offset", "length", "crc32c", "pixel_sum", "pixel_sum_squares", "status", "reason"),
]


def make_first(place: Place) -> dict[str, bytes]:
    """Turns a store into one as version 1 wrote it; returns its files."""
    path = Path(place.store.path)
    for index in list(path.glob("unit-v2-*.parquet")):
        table = pd.read_parquet(index)[FIRST_COLUMNS]
        state = [(place.images / name).stat() for name in table.image_id]
        table["signature"] = [f"{one.st_size}@{one.st_mtime_ns}" for one in state]
        old = index.with_name(index.name.replace("unit-v2-", "unit-"))
        table.to_parquet(old)
        index.with_suffix(".tfrecord").rename(old.with_suffix(".tfrecord"))
        index.unlink()
        index.with_suffix(".sha256").unlink()
    (path / "store.json").write_text(
        '{\n "version": 1,\n "size": 16,\n "codec": "raw",\n "resample": "bilinear"\n}\n'
    )
    place.store = open_store(place.store.path, FORMAT)
    return place.files()


def test_nothing_of_a_store_of_the_first_version_is_used(place, decoded):
    place.write(**{f"i{n:02}": picture(n) for n in range(20)}, bad=b"junk")
    place.decode()
    first = make_first(place)
    assert place.store.version == 1
    assert place.store.count_outdated() == 20
    assert place.index().empty
    decoded.clear()

    place.store.upgrade()
    # A killed command leaves the marker of today and units of both versions.
    write_unit(place.plan()[0])
    place.store = open_store(place.store.path, FORMAT)
    assert place.store.version == 2
    place.decode()
    assert len(decoded) == 21
    units = {name: data for name, data in first.items() if name.startswith("unit-")}
    assert len(units) == 4
    assert units.items() <= place.files().items()  # until all is decoded, they stay

    assert place.store.remove_outdated() == 0
    assert not units.keys() & place.files().keys()
    assert not place.store.has_outdated()
    assert len(place.stored()) == 20


def test_images_of_the_first_version_whose_files_are_not_at_hand_are_kept_and_counted(place):
    place.write(**{f"i{n:02}": picture(n) for n in range(20)})
    place.decode()
    make_first(place)
    place.store.upgrade()
    for number in range(16, 20):  # the second unit's
        (place.images / f"i{number}.png").unlink()
    place.decode()
    assert place.store.remove_outdated() == 4
    assert place.store.count_outdated() == 4
    assert len([name for name in place.files() if not name.startswith("unit-v2-")]) == 3


def test_images_of_the_first_version_that_cannot_be_read_now_are_kept(place):
    place.write(a=picture(1))
    place.decode()
    make_first(place)
    place.store.upgrade()
    specs = place.plan()
    (place.images / "a.png").unlink()
    for spec in specs:
        write_unit(spec)
    assert place.index().status.tolist() == ["unreadable"]
    assert place.store.remove_outdated() == 1


@pytest.mark.parametrize("data", [None, b"", b"junk"], ids=["absent", "empty", "junk"])
def test_a_unit_of_the_first_version_without_a_whole_index_is_removed(place, data):
    place.write(a=picture(1))
    place.decode()
    make_first(place)
    (index,) = Path(place.store.path).glob("unit-*.parquet")
    index.unlink() if data is None else index.write_bytes(data)
    assert place.store.count_outdated() == 0
    assert place.store.remove_outdated() == 0
    assert list(place.files()) == ["store.json"]


# ---- what is left after a kill --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def lookalike(tmp_path_factory):
    return make_lookalike(tmp_path_factory.mktemp("lookalike"), 100, image_size=32).images


@pytest.mark.slow
def test_whatever_was_finished_before_a_kill_is_not_decoded_again(lookalike, tmp_path, decoded):
    whole = Place(tmp_path / "whole")
    whole.decode(str(lookalike))
    expected = whole.stored(str(lookalike))
    assert len(expected) == 100
    numbers = itertools.count()

    @given(st.lists(st.sets(st.integers(0, 6)), min_size=1, max_size=3))
    @settings(
        max_examples=12, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
    )
    def check(runs):
        place = Place(tmp_path / f"run-{next(numbers)}")
        decoded.clear()
        for finished in runs:
            place.store.clean()
            for number, spec in enumerate(place.plan(str(lookalike))):
                if number in finished:
                    write_unit(spec)
        place.decode(str(lookalike))
        assert len(decoded) == 100
        assert place.stored(str(lookalike)) == expected
        assert place.plan(str(lookalike)) == []

    check()


def test_cleaning_removes_what_killed_workers_left_and_nothing_of_a_unit(place):
    place.write(a=picture(1), bad=b"")
    place.decode()
    path = Path(place.store.path)
    storage.make_folder(place.store.archive_folder)
    kept = place.files()
    left = [
        "unit-v2-0123456789abcdef.tfrecord",
        "unit-v2-fedcba9876543210.parquet",
        "unit-v2-00000000000000ff.sha256",
        *(f"unit-v2-00000000000000aa{ending}" for ending in (".tfrecord", ".parquet")),
        ".work-0123456789abcdef.parquet",
        ".unit-x.tfrecord.tmp-" + "0" * 32,
        ".unit-x.parquet.tmp-" + "0" * 32,
        ".archives/.x.gzidx.tmp-" + "0" * 32,
    ]
    others = [".archives/x.gzidx", ".archives/x.members", ".lock"]
    for name in left + others:
        (path / name).write_bytes(b"x")
    place.store.clean()
    assert {name for name in left + others if (path / name).exists()} == set(others)
    assert place.files() == {**kept, ".lock": b"x"}


def test_records_without_an_index_are_no_unit(place):
    place.write(a=picture(1))
    place.decode()
    (index,) = Path(place.store.path).glob("unit-*.parquet")
    index.unlink()
    assert place.index().empty
    assert len(place.plan()) == 1


def test_a_unit_whose_records_were_deleted_is_decoded_again(place, decoded):
    place.write(a=picture(1), b=picture(2))
    place.decode()
    before = place.files()
    (records,) = Path(place.store.path).glob("unit-*.tfrecord")
    records.unlink()
    assert place.settled().empty
    place.decode()
    assert place.files() == before
    assert len(decoded) == 4


def test_images_that_are_the_same_as_deleted_ones_are_decoded_again(place, decoded):
    place.write(a=picture(1))
    place.decode()
    (records,) = Path(place.store.path).glob("unit-*.tfrecord")
    place.touch("a")
    place.decode()
    assert len(decoded) == 1
    records.unlink()
    assert place.settled().empty
    place.decode()
    assert len(decoded) == 2
    assert place.settled().status.tolist() == ["ok"]


# ---- damage ---------------------------------------------------------------------------------------------


def test_any_flipped_byte_of_a_stored_image_is_an_error_that_names_the_file(place):
    place.write(a=picture(1))
    row = place.decode().iloc[0]
    path = Path(place.store.path) / f"unit-{row.unit}.tfrecord"
    whole = path.read_bytes()
    for at in range(row.offset, row.offset + row.length, 11):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with pytest.raises(CxrError) as caught:
            fetch_images(place.store.path, [Stored(*row[list(Stored._fields)])])
        assert str(caught.value) == (
            f"{path}: the image at byte {row.offset} is damaged; delete it, then run again: "
            "its images are decoded anew"
        )


@pytest.mark.parametrize("change", ["cut", "deleted", "other"])
def test_stored_records_that_are_gone_are_an_error_that_names_the_file(place, change):
    place.write(a=picture(1))
    row = place.decode().iloc[0]
    path = Path(place.store.path) / f"unit-{row.unit}.tfrecord"
    if change == "cut":
        os.truncate(path, 100)
    elif change == "deleted":
        path.unlink()
    else:
        path.write_bytes(bytes(path.stat().st_size))
    with pytest.raises(CxrError) as caught:
        fetch_images(place.store.path, [Stored(*row[list(Stored._fields)])])
    assert str(caught.value).startswith(f"{path}")
    assert str(caught.value).endswith("run again: its images are decoded anew")


def test_following_the_advice_about_a_damaged_record_mends_the_store(place):
    place.write(a=picture(1))
    place.decode()
    before = place.stored()
    (path,) = Path(place.store.path).glob("unit-*.tfrecord")
    path.write_bytes(bytes(path.stat().st_size))
    with pytest.raises(CxrError, match="delete it, then run again"):
        place.stored()
    path.unlink()
    place.decode()
    assert place.stored() == before


def test_a_flip_of_any_byte_of_an_index_or_its_checksum_is_no_index_and_it_is_made_again(place):
    place.write(a=picture(1), bad=b"junk")
    place.decode()
    whole = place.files()
    rows = place.index()
    for path in sorted(Path(place.store.path).glob("unit-*")):
        if path.suffix == ".tfrecord":
            continue
        data = path.read_bytes()
        for at in range(0, len(data), max(1, len(data) // 60)):
            path.write_bytes(data[:at] + bytes([data[at] ^ 4]) + data[at + 1 :])
            assert place.index().empty
        assert place.store.remove_damaged() == [str(path.with_suffix(".parquet"))]
        assert place.decode().status.tolist() == ["ok", "rejected"]
        assert place.files() == whole
    assert place.store.remove_damaged() == []
    assert place.index().equals(rows)


@pytest.mark.parametrize("data", [b"", b"junk"])
def test_a_damaged_index_hides_its_unit_alone(place, data, decoded):
    place.write(**{f"i{n:02}": picture(n) for n in range(20)})
    place.decode()
    path = min(Path(place.store.path).glob("unit-*.parquet"))
    lost = len(pd.read_parquet(path))
    path.write_bytes(data)
    assert len(place.settled()) == 20 - lost
    place.store.remove_damaged()
    assert place.decode().status.tolist() == ["ok"] * 20
    assert len(decoded) == 20 + lost


def test_work_that_changed_since_it_was_planned_is_not_done(place):
    place.write(a=picture(1))
    (spec,) = place.plan()
    path = Path(spec.work.path)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(CxrError) as caught:
        write_unit(spec)
    assert str(caught.value) == (
        f"{path} changed since it was written; run the same again, which writes it anew"
    )
    assert list(place.files()) == ["store.json"]


# ---- opening --------------------------------------------------------------------------------------------


def test_a_new_store_says_what_it_holds(place):
    marker = json.loads((Path(place.store.path) / "store.json").read_bytes())
    assert len(marker.pop("checksum")) == 16
    assert marker == {"version": 2, "size": 16, "codec": "raw", "resample": "bilinear"}
    assert open_store(place.store.path, FORMAT) == place.store


@pytest.mark.parametrize(
    ("change", "asked"),
    [
        ({"size": 32}, "32x32 raw images (bilinear)"),
        ({"codec": "png"}, "16x16 png images (bilinear)"),
        ({"resample": "lanczos"}, "16x16 raw images (lanczos)"),
    ],
    ids=str,
)
def test_another_size_codec_or_filter_is_refused_in_these_words(place, change, asked):
    for create in (True, False):
        with pytest.raises(UsageError) as caught:
            open_store(place.store.path, dataclasses.replace(FORMAT, **change), create)
        assert str(caught.value) == (
            f"`store={place.store.path}` holds 16x16 raw images (bilinear), asked for {asked}; "
            "use another `store`, or the same `size`, `codec` and `resample`"
        )


def test_a_store_of_a_later_version_is_refused_in_these_words(place, monkeypatch):
    monkeypatch.setattr(store, "STORE_VERSION", 3)
    (Path(place.store.path) / "store.json").write_bytes(store._marker(FORMAT))
    monkeypatch.undo()
    with pytest.raises(UsageError) as caught:
        open_store(place.store.path, FORMAT)
    assert str(caught.value) == (
        f"`store={place.store.path}` holds 16x16 raw images (bilinear) of store version 3, later than the 2 "
        "known here; use another `store`, or a newer cxr_records"
    )


def test_a_store_of_the_first_version_and_another_size_is_refused(place):
    make_first(place)
    with pytest.raises(UsageError, match=r"holds 16x16 raw images \(bilinear\), asked for 32x32 raw"):
        open_store(place.store.path, ImageFormat(32))


def test_any_flipped_byte_of_the_marker_changes_nothing_or_is_said(place):
    marker = Path(place.store.path) / "store.json"
    whole = marker.read_bytes()
    for at, bit in itertools.product(range(len(whole)), range(8)):
        marker.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << bit]) + whole[at + 1 :])
        try:
            assert open_store(place.store.path, FORMAT) == place.store
        except UsageError as error:
            assert str(error) == f"{marker} is damaged; delete the store, or name another with `store`"  # noqa: PT017


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", "null", '{"size": 16}', "\udcff"], ids=repr)
def test_a_damaged_marker_is_refused_in_these_words(place, text):
    marker = Path(place.store.path) / "store.json"
    marker.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(UsageError) as caught:
        open_store(place.store.path, FORMAT)
    assert str(caught.value) == f"{marker} is damaged; delete the store, or name another with `store`"


def test_a_folder_of_something_else_is_refused_and_left_alone(tmp_path):
    (tmp_path / "thesis.doc").touch()
    (tmp_path / "zebra").touch()
    with pytest.raises(UsageError) as caught:
        open_store(str(tmp_path), FORMAT)
    assert str(caught.value) == (
        f"`store={tmp_path}` is not empty and no image store (it holds thesis.doc); name another"
    )
    assert sorted(os.listdir(tmp_path)) == ["thesis.doc", "zebra"]


def test_a_store_is_made_only_where_that_is_asked_for(tmp_path):
    path = tmp_path / "deep" / "store"
    assert open_store(str(path), FORMAT, create=False) is None
    assert not path.exists()
    assert open_store(str(path), FORMAT) == open_store(str(path), FORMAT, create=False)


def test_what_a_killed_command_or_a_system_left_before_the_marker_is_no_stranger(tmp_path):
    for name in (".lock", ".store.json.tmp-" + "0" * 32, ".DS_Store", "desktop.ini"):
        (tmp_path / name).touch()
    for name in (".archives", "lost+found", "@eaDir"):
        (tmp_path / name).mkdir()
    assert open_store(str(tmp_path), FORMAT) is not None


def test_a_store_is_locked_by_one_command_at_a_time(place):
    second = place.store.lock()
    with (
        place.store.lock(),
        pytest.raises(CxrError, match=f"the image store {place.store.path} is in use by"),
    ):
        second.__enter__()
    with place.store.lock():
        pass


def test_real_originals_are_stored_as_pillow_decodes_them(nih, tmp_path):
    place = Place(tmp_path, image_format=ImageFormat())
    names = sorted(os.listdir(nih / "images"))[:8]
    rows = place.decode(*[str(nih / "images" / name) for name in names])
    assert rows.index.tolist() == names
    images = place.stored(*[str(nih / "images" / name) for name in names])
    for name in names:
        with Image.open(nih / "images" / name) as image:
            expected = image.convert("L").resize((224, 224), Image.Resampling.BILINEAR)
        assert images[name] == expected.tobytes()
