"""One rule for every path of the user's: ~, file: URLs, relative paths, URLs."""

import pwd
import shutil
from pathlib import Path

import click
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import cxr_records
from cxr_records import storage
from cxr_records.cache import ShardCache
from cxr_records.cli import COMMANDS, PATH, cli, run
from cxr_records.contact_sheet import sheet_of_dataset
from cxr_records.errors import UsageError
from cxr_records.lookalike import make_lookalike
from cxr_records.metadata import read_metadata
from cxr_records.reader import load_split
from cxr_records.splits import SplitOptions, make_splits
from cxr_records.trainers.config import change, read_preset
from cxr_records.trainers.named import choose

# All that is typed as words and names no file. What is not here must be of the type PATH.
WORDS = {
    "beam_options", "changes", "codec", "copies", "copies_of", "date", "devices", "finding", "format",
    "preset", "resample", "runner", "split", "task", "weights",
}  # fmt: skip


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    """A home folder; the work is done in another."""
    (tmp_path / "home").mkdir()
    (tmp_path / "work").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "home"


def parameters() -> list[tuple[str, click.Parameter]]:
    """Every option and argument of every command."""
    context = click.Context(cli)
    return [(name, param) for name in COMMANDS for param in cli.get_command(context, name).params]


# The rule


@pytest.mark.parametrize(
    ("path", "meant"),
    [
        ("ds", "ds"),
        ("./ds/", "./ds/"),
        ("~", "{home}"),
        ("~/x y", "{home}/x y"),
        ("~root/x", f"{pwd.getpwnam('root').pw_dir}/x"),
        ("./~/x", "{work}/~/x"),
        ("x/../~/y", "{work}/~/y"),
        ("a/~/x", "a/~/x"),
        ("x~", "x~"),
        ("$HOME/x", "$HOME/x"),
        ("a#b?c%20d[1]*.png", "a#b?c%20d[1]*.png"),
        ("/data/a://b", "/data/a://b"),
        ("C:x", "C:x"),
        ("a::b", "a::b"),
        ("file:///data/x", "/data/x"),
        ("FILE:///data/x", "/data/x"),
        ("file:/data/x", "/data/x"),
        ("file://localhost/data/x", "/data/x"),
        ("file:x/y", "x/y"),
        ("file://./x", "./x"),
        ("file://~/x", "{home}/x"),
        ("file:~/x", "{home}/x"),
        ("file:///data/a%20b%2520c#d?e", "/data/a b%20c#d?e"),
        ("file:///data/100%", "/data/100%"),
        ("S3://Bucket/x", "s3://Bucket/x"),
        ("https://host/a%20b/?x=~/y", "https://host/a%20b/?x=~/y"),
        ("s3://bucket/~/x", "s3://bucket/~/x"),
        ("simplecache::s3://bucket/x", "simplecache::s3://bucket/x"),
    ],
)
def test_what_a_path_means(home, path, meant):
    meant = meant.format(home=home, work=home.parent / "work")

    assert storage.given(path) == meant
    assert storage.given(meant) == meant
    assert PATH.convert(path, None, None) == meant


def test_a_name_that_begins_like_a_home_is_found_where_it_is(home):
    work = Path.cwd()
    (work / "~nobody-here").mkdir()
    (work / "~").mkdir()

    assert storage.given("~nobody-here") == str(work / "~nobody-here")
    assert storage.given(storage.given("~nobody-here")) == str(work / "~nobody-here")
    assert storage.given("~/x") == str(home / "x")


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("", "found '', expected the path of a file or folder"),
        ("a\0b", r"found 'a\x00b', expected the path of a file or folder"),
        ("~nobody-here/x", "~nobody-here/x: no home folder of that name is known; for a folder here give "
                           "./~nobody-here/x"),
        ("file://host/x", "file://host/x: names the machine 'host'; a local path has three slashes, file:///..."),
        ("s3:/bucket/x", "found s3:/bucket/x; a URL has two slashes after s3:, give it as text"),
        (Path("https://host/x"), "found https:/host/x; a URL has two slashes after https:, give it as text"),
    ],
)  # fmt: skip
def test_what_no_path_can_be_is_refused(path, said, home):
    for ask in (storage.given, storage.absolute, storage.local_path):
        with pytest.raises(UsageError) as caught:
            ask(path)
        assert str(caught.value) == said


@given(path=st.text("~/.:a%2fil e#?", min_size=1, max_size=12))
def test_the_rule_applied_twice_is_the_rule_applied_once(path):
    try:
        once = storage.given(path)
    except UsageError:
        return
    if not once.startswith(("file:", "~")):  # a name that only an encoded URL can make
        assert storage.given(once) == once
    assert storage.absolute(storage.absolute(path)) == storage.absolute(path)


def test_a_slash_at_the_end_names_the_same_folder(home):
    assert storage.absolute("ds/") == storage.absolute("ds")
    assert storage.absolute("s3://bucket/ds/") == "s3://bucket/ds"
    assert storage.absolute("s3://bucket//") == "s3://bucket"
    assert storage.absolute("memory://") == "memory://"
    assert storage.absolute("https://host/ds/") == "https://host/ds/"


# Every place where one enters


@pytest.mark.parametrize(
    ("command", "param"), parameters(), ids=lambda value: value if isinstance(value, str) else value.name
)
def test_every_option_that_takes_text_is_a_path_or_known_to_be_none(command, param, home):
    if isinstance(
        param.type, click.types.BoolParamType | click.types.IntParamType | click.types.FloatParamType
    ):
        return
    if param.name in WORDS:
        assert param.type is not PATH
        return
    assert param.type is PATH, f"{command} {param.name}: of type PATH, or named in WORDS"
    context = click.Context(click.Command(command))
    several = param.multiple or param.nargs == -1
    for path, meant in (("~/x", f"{home}/x"), ("file:///x", "/x"), ("x", "x"), ("s3://b/x", "s3://b/x")):
        value = param.type_cast_value(context, (path,) if several else path)
        assert value == ((meant,) if several else meant)
    with pytest.raises(UsageError, match=f"^`{param.name}`: found ''"):
        param.type_cast_value(context, ("",) if several else "")


def test_commands_find_and_make_everything_at_home(home, lookalike, dataset, capsys):
    shutil.copytree(lookalike.images, home / "a b#1?%41" / "images")
    for path in (lookalike.metadata, lookalike.train_val_list, lookalike.test_list):
        shutil.copy(path, home / path.name)
    names = lookalike.metadata.read_text().splitlines()[1:]
    scores = "".join(f"{line.split(',')[0]},0.{number:03d}\n" for number, line in enumerate(names))
    (home / "scores.csv").write_text("Image Index,Effusion\n" + scores)
    table, lists = f"--metadata=~/{lookalike.metadata.name}", f"--test-list=file:~/{lookalike.test_list.name}"
    build = [
        "build", "--images=~/a b#1?%41/images", table, lists,
        f"--train-val-list=~/{lookalike.train_val_list.name}", "--size=32",
        "--copies-target=0.1", "--workers=1", "--out=~/ds", "--store=~/store/",
    ]  # fmt: skip

    assert run(build) == 0
    assert f"check it: cxr-records verify {home}/ds --deep" in capsys.readouterr().out
    assert run(["verify", "~/ds"]) == 0
    assert run(["verify", "file:~/ds/"]) == 0
    assert run(["evaluate", "--predictions=~/scores.csv", table, lists, "--draws=0", "--out=~/scored"]) == 0
    assert f"all numbers: {home}/scored/metrics.json" in capsys.readouterr().out
    assert (home / "ds" / "manifest.json").read_bytes() == (dataset / "manifest.json").read_bytes()
    assert (home / "store" / "store.json").exists()
    assert list(Path.cwd().iterdir()) == []


def test_functions_find_and_make_everything_at_home(home, lookalike, dataset):
    shutil.copytree(dataset, home / "ds")
    for path in (lookalike.metadata, lookalike.train_val_list, lookalike.test_list):
        shutil.copy(path, home / path.name)
    (home / "mine.py").write_text(
        "from cxr_records.trainers.config import TrainConfig\nCONFIG = TrainConfig(epochs=7)\n"
        "def loss():\n    return 5\n"
    )

    for path in ("~/ds", Path("~/ds"), "file:~/ds", (home / "ds").as_uri()):
        assert cxr_records.open(path).path == str(home / "ds")
        assert cxr_records.verify(path) == []
    assert len(list(load_split("~/ds", "test", 8))) == len(list(load_split(str(dataset), "test", 8)))
    assert np.array_equal(sheet_of_dataset("~/ds", 1), sheet_of_dataset(str(dataset), 1))
    metadata = read_metadata(f"~/{lookalike.metadata.name}")
    lists = SplitOptions(f"~/{lookalike.train_val_list.name}", f"file:~/{lookalike.test_list.name}")
    assert set(make_splits(metadata, lists).of_image) == {"train", "validation", "test"}
    assert ShardCache("~/cache").folder == home / "cache"
    assert read_preset("~/mine.py").epochs == 7
    assert choose("loss", "~/mine.py:loss", {})() == 5
    assert change(read_preset("small_cnn"), ["loss=~/mine.py:loss"]).loss == "~/mine.py:loss"
    assert make_lookalike(Path("~/drawn"), 50, 32).images == home / "drawn" / "images"
    assert list(Path.cwd().iterdir()) == []


def test_what_must_be_local_is_no_url(home, capsys):
    with pytest.raises(UsageError, match=r"^found s3://b/x, expected a local path$"):
        make_lookalike("s3://b/x", 50, 32)
    assert run(["demo", "--out", "s3://b/x"]) == 2
    assert capsys.readouterr().err == "Error: found s3://b/x, expected a local path\n"
