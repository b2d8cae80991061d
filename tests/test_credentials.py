"""Signed URLs and passwords in URLs work as sources, and are in no file, log or message."""

import base64
import functools
import http.server
import re
import tarfile
import threading
import urllib.parse
import zipfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import files_of

from cxr_records import archives, storage, urls
from cxr_records.cli import run
from cxr_records.dataset import open_dataset
from cxr_records.errors import CxrError, UsageError
from cxr_records.images import ImageFormat
from cxr_records.lookalike import LookalikePaths
from cxr_records.sources import Entries, Entry, SourceReader, match_entries
from cxr_records.store import open_store, signatures, write_unit
from cxr_records.trainers import runs
from cxr_records.trainers.config import TrainConfig

SIGNATURE, PASSWORD = "SeCrEt/Signature+0123=", "SeCrEt-PassWord-0123"
SECRETS = re.compile(rb"SeCrEt")
NO_PARTS = "its server gives no parts of a file, which an archive needs; download it first"


class Handler(http.server.SimpleHTTPRequestHandler):
    """Gives files to who signs the URL, or gives user and password."""

    ranges = True  # whether it gives parts of a file
    head = True  # whether it answers HEAD, which a signature for GET does not allow

    def do_HEAD(self):
        self.answer() if self.head else self.refuse(403)

    def do_GET(self):
        self.wfile.write(self.answer())

    def answer(self) -> bytes:
        query = urllib.parse.parse_qs(urllib.parse.urlsplit(self.path).query)
        basic = "Basic " + base64.b64encode(f"user:{PASSWORD}".encode()).decode()
        if query.get("sig") != [SIGNATURE] and self.headers.get("Authorization") != basic:
            return self.refuse(403)
        path = Path(self.translate_path(self.path))
        if not path.is_file():
            return self.refuse(404)
        data = path.read_bytes()
        asked = re.match(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        part = data
        if asked and self.ranges:
            part = data[int(asked[1]) : int(asked[2]) + 1]
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {asked[1]}-{int(asked[1]) + len(part) - 1}/{len(data)}")
        else:
            self.send_response(200)
        self.send_header("Content-Length", str(len(part)))
        self.end_headers()
        return part

    def refuse(self, status: int) -> bytes:
        self.send_response(status)
        self.send_header("Content-Length", "0")
        self.end_headers()
        return b""

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def shared(lookalike: LookalikePaths, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The look-alike set as a server gives it: three archives of a part each, one image, table and lists."""
    folder = tmp_path_factory.mktemp("shared")
    for path in (lookalike.metadata, lookalike.train_val_list, lookalike.test_list):
        (folder / path.name).write_bytes(path.read_bytes())
    images = sorted(lookalike.images.rglob("*.png"))
    (folder / images[0].name).write_bytes(images[0].read_bytes())
    with zipfile.ZipFile(folder / "a.zip", "w") as archive:
        for path in images[1:50]:
            archive.write(path, path.name)
    for name, mode, those in (("b.tar", "w", images[50:100]), ("c.tar.gz", "w:gz", images[100:])):
        with tarfile.open(folder / name, mode) as archive:
            for path in those:
                archive.add(path, path.name)
    return folder


@pytest.fixture(autouse=True)
def nothing_known(monkeypatch):
    monkeypatch.setattr(urls, "_known", set())


@pytest.fixture
def serve(shared):
    """Starts a server of that folder; serve(ranges, head) returns its host and port."""
    servers = []

    def serve(ranges: bool = True, head: bool = True) -> str:
        kind = type("Kind", (Handler,), {"ranges": ranges, "head": head})
        made = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(kind, directory=shared))
        threading.Thread(target=made.serve_forever, args=(0.05,), daemon=True).start()
        servers.append(made)
        return f"127.0.0.1:{made.server_port}"

    yield serve
    for made in servers:
        made.shutdown()
        made.server_close()


def signed(host: str, name: str) -> str:
    return f"http://{host}/{name}?v=1&sig={urllib.parse.quote(SIGNATURE, safe='')}"


def with_password(host: str, name: str) -> str:
    return f"http://user:{PASSWORD}@{host}/{name}"


def build(url, host: str, lookalike: LookalikePaths, shared: Path, out: Path, *more: str) -> int:
    image = next(shared.glob("*.png")).name
    return run([
        "build", "--images", *(url(host, name) for name in (image, "a.zip", "b.tar", "c.tar.gz")),
        "--metadata", url(host, lookalike.metadata.name),
        "--train-val-list", url(host, lookalike.train_val_list.name), "--test-list",
        url(host, lookalike.test_list.name), "--size", "32", "--copies-target", "0.1", "--workers", "1",
        "--out", str(out / "ds"), "--store", str(out / "store"), *more,
    ])  # fmt: skip


def told(folder: Path) -> bytes:
    """All that is written below a folder, Parquet unpacked."""
    parts = []
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            parts += [str(path).encode(), path.read_bytes()]
            if path.suffix == ".parquet":
                parts.append(str(pq.read_table(pa.BufferReader(parts[-1])).to_pylist()).encode())
    return b"\n".join(parts)


@pytest.mark.parametrize(("url", "head"), [(signed, True), (signed, False), (with_password, True)])
def test_a_build_from_urls_with_credentials_is_that_from_files_and_tells_none(
    serve, shared, lookalike, dataset, tmp_path, capfd, url, head
):
    assert build(url, serve(head=head), lookalike, shared, tmp_path, "--debug") == 0

    out, err = capfd.readouterr()
    assert files_of(tmp_path / "ds") == files_of(dataset)
    assert "listing http://" in err
    written = told(tmp_path)
    assert not SECRETS.search(written + out.encode() + err.encode())
    assert b"c.tar.gz" in written  # where an image is from is told


@pytest.mark.parametrize("url", [signed, with_password])
def test_what_goes_wrong_tells_no_credentials(serve, shared, lookalike, tmp_path, capfd, url):
    gone = "127.0.0.1:9"
    host = serve()
    commands = [
        ["plan", "--metadata", url(host, "absent.csv")],
        ["plan", "--metadata", url(gone, "t.csv")],
        ["plan", "--metadata", url(host, "c.tar.gz")],
        ["build", "--images", url(host, "absent.zip"), "--metadata", str(lookalike.metadata), "--out", "x"],
        ["build", "--images", url(gone, "a.zip"), "--metadata", str(lookalike.metadata), "--out", "x"],
        ["build", "--images", url(host, "a.txt"), "--metadata", str(lookalike.metadata), "--out", "x"],
        ["verify", url(host, "ds")],
        ["verify", url(host, "ds").replace("http:", "s3:")],
        ["evaluate", "--predictions", url(host, "no.csv"), "--metadata", url(host, "t.csv"), "--out", "x"],
        ["build", "--images", str(lookalike.images), "--metadata", str(lookalike.metadata), "--out",
         url(host, "x")],
    ]  # fmt: skip
    for command in commands:
        for debug in ([], ["--debug"]):
            assert run([*command, *debug]) in (1, 2), command
            out, err = capfd.readouterr()
            assert "Error: " in err
            assert "a fault of ours" not in err, err
            assert not SECRETS.search((out + err).encode()), err


def test_an_error_of_the_library_tells_no_credentials(serve):
    for url in (signed(serve(), "absent"), signed("127.0.0.1:9", "x"), with_password(serve(), "absent")):
        for ask in (storage.read_bytes, storage.file_size, storage.file_state):
            with pytest.raises((CxrError, FileNotFoundError)) as caught:
                ask(url)
            assert not SECRETS.search(str(caught.getrepr(chain=True, style="native")).encode())


def test_a_signature_that_the_server_refuses_is_no_absent_file(serve):
    url = f"http://{serve()}/a.zip?sig=expired"
    for ask in (storage.exists, storage.read_bytes):
        with pytest.raises(
            CxrError, match=r"a\.zip\?\.\.\.: access denied .*that its signature has not expired$"
        ):
            ask(url)
    assert not storage.exists(signed(serve(), "absent.zip"))


@pytest.mark.parametrize(("name", "kind"), [("a.zip", "zip"), ("b.tar", "tar"), ("c.tar.gz", "targz")])
def test_an_archive_on_a_server_that_gives_whole_files_alone_is_to_be_downloaded(serve, name, kind):
    url = signed(serve(ranges=False), name)
    with pytest.raises(CxrError) as caught:
        archives.list_members(url, kind, lambda name: True, "")
    assert str(caught.value) == f"{urls.redacted(url)}: {NO_PARTS}"


def test_credentials_in_the_url_of_a_bucket_are_refused():
    with pytest.raises(
        UsageError, match=r"^s3://\.\.\.@bucket/x: credentials in a URL are not read here; for s3"
    ):
        storage.given("s3://key:SeCrEt/x+y@bucket/x")


def test_a_url_with_a_query_is_no_folder():
    with pytest.raises(UsageError, match=r"^https://host/ds\?\.\.\.: a URL with a query names one file"):
        storage.join("https://host/ds?sig=SeCrEt", "manifest.json")


def test_a_query_is_no_pattern():
    for url in ("https://host/a.zip?sig=[a]*b", "az://c/a.zip?sig=*"):
        assert storage.expand(url) == [url]


def test_a_run_that_would_have_to_keep_a_password_is_refused(dataset, tmp_path, monkeypatch):
    opened = open_dataset(dataset)
    monkeypatch.setattr(opened, "path", "http://user:SeCrEt-password@host/ds")
    described = runs.describe(str(tmp_path / "run"), opened, TrainConfig(), {})

    with pytest.raises(UsageError, match=r"config\.json would keep the credentials of a URL"):
        runs.begin(described)
    assert not (tmp_path / "run").exists()


def test_an_evaluation_tells_where_scores_came_from_without_credentials(
    serve, shared, lookalike, tmp_path, capfd
):
    names = [line.split(",")[0] for line in lookalike.metadata.read_text().splitlines()[1:]]
    table = pa.table({"Image Index": names, "Effusion": [number / 1000 for number in range(len(names))]})
    pq.write_table(table, shared / "scores.parquet")
    scores = with_password(serve(), "scores.parquet")
    arguments = [
        "--metadata",
        signed(serve(), lookalike.metadata.name),
        "--draws",
        "0",
        "--out",
        str(tmp_path),
    ]

    assert run(["evaluate", "--predictions", scores, *arguments]) == 0
    out, err = capfd.readouterr()
    assert not SECRETS.search(told(tmp_path) + out.encode() + err.encode())
    assert b'"scores.parquet"' in (tmp_path / "metrics.json").read_bytes()


def test_what_workers_are_told_of_sources_is_in_no_file(tmp_path):
    store = open_store(str(tmp_path), ImageFormat(32))
    plain = Entry("c.png", "/data/c.png", "file", "", 0, 1, 1, "v")
    hidden = [
        Entry(f"{name}.png", f"https://h/?id={name}&sig=SeCrEt", "file", "", 0, 1, 1, "v") for name in "ab"
    ]

    found = Entries([*hidden, plain])
    files, _ = match_entries(found, pa.array([entry.name for entry in found]))

    (spec,) = store.plan_units(files, files.present, signatures(files))

    assert spec.hidden_sources == tuple(entry.source for entry in hidden)
    assert not SECRETS.search(told(tmp_path))
    assert pq.read_table(spec.work.path)["source"].to_pylist() == [
        b"/data/c.png",
        b"https://h/?...",
        b"https://h/?...",
    ]
    read = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SourceReader, "read", lambda self, entry: read.append(entry) or b"")
        write_unit(spec)
    assert sorted(read) == sorted([*hidden, plain])
    assert not SECRETS.search(told(tmp_path))
