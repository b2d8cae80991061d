"""Building, planning and decoding from Python: values come back, nothing is printed."""

import inspect
import json
import subprocess
import sys
import tarfile

import pytest
from conftest import files_of, without_progress

import cxr_records
from cxr_records import storage
from cxr_records.errors import CxrError, FoundProblems, UsageError
from cxr_records.pipelines import api, cli
from cxr_records.pipelines.engines import LOCAL_RUNNER
from cxr_records.tasks import parse_task


@pytest.fixture
def arguments(lookalike) -> dict:
    """The look-alike set, as paths, at the size and with the copies of the dataset that tests share."""
    return {
        "images": lookalike.images,
        "metadata": lookalike.metadata,
        "train_val_list": lookalike.train_val_list,
        "test_list": lookalike.test_list,
        "size": 32,
        "copies_target": 0.1,
        "workers": 1,
    }


def test_a_build_returns_what_it_made_and_prints_nothing(arguments, dataset, tmp_path, capfd):
    result = cxr_records.build(out=tmp_path / "cxr14", **arguments)

    assert capfd.readouterr().out == ""
    assert files_of(tmp_path / "cxr14") == files_of(dataset)
    assert (result.path, result.id) == (str(tmp_path / "cxr14"), cxr_records.open(result.path).id)
    assert result.manifest == cxr_records.open(result.path).manifest
    assert (result.decoded.decoded, result.decoded.rejected) == (150, 0)
    assert (result.decoded.at_hand.missing, result.decoded.at_hand.not_in_table) == (0, 0)
    assert result.written == len(result.plan.shards)
    again = cxr_records.build(out=tmp_path / "cxr14", **arguments)
    assert (again.decoded.decoded, again.written, again.id) == (0, 0, result.id)


def test_a_plan_tells_what_the_build_writes_and_writes_nothing(arguments, tmp_path, capfd, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = {**arguments, "task": parse_task("binary:Infiltration"), "copies": "fixed", "copies_max": 2}
    planned = cxr_records.plan(**options)

    assert list(tmp_path.iterdir()) == []
    assert capfd.readouterr().out == ""
    assert planned.to_decode == 150
    built = cxr_records.build(out="cxr14", **options)
    assert planned.plan.records.equals(built.plan.records)
    assert planned.plan.num_copies == built.plan.num_copies > 0
    size = sum(split.bytes for split in built.manifest.splits.values())
    assert planned.size["dataset_bytes"] == pytest.approx(size, rel=0.1)
    assert cxr_records.plan(**options).to_decode == 0


def test_a_plan_needs_no_images(lookalike):
    planned = cxr_records.plan(str(lookalike.metadata))

    assert (planned.at_hand, planned.to_decode) == (None, 150)
    assert sum(count["images"] for count in planned.plan.split_counts().values()) == 150


def test_a_plan_counts_on_what_is_decoded_already_and_on_what_will_be(lookalike, arguments, tmp_path):
    store, part = tmp_path / "store", lookalike.images / "images_001"
    decoding = {name: arguments[name] for name in ("metadata", "size", "workers")}
    decoded = api.decode(part, **decoding, store=store, allow_missing=True).decoded

    planned = api.plan(**arguments, store=store)
    assert 0 < decoded < 150
    assert planned.to_decode == 150 - decoded
    assert sum(count["images"] for count in planned.plan.split_counts().values()) == 150


def test_a_plan_from_an_archive_writes_nothing_either(lookalike, arguments, tmp_path, monkeypatch):
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    with tarfile.open(tmp_path / "images.tar.gz", "w:gz") as archive:
        archive.add(lookalike.images, "images")

    planned = api.plan(**{**arguments, "images": tmp_path / "images.tar.gz"})
    assert planned.to_decode == 150
    assert list((tmp_path / "work").iterdir()) == []


def test_a_store_beside_the_dataset_may_begin_with_its_name(arguments, tmp_path):
    planned = api.plan(**arguments, out=tmp_path / "cxr14", store=tmp_path / "cxr14-store")
    assert planned.request.store_path == str(tmp_path / "cxr14-store")
    beside = api.plan(**arguments, out=tmp_path / "cxr14")
    assert beside.request.store_path == str(tmp_path / "image-store-32-raw-bilinear")


def test_decoding_fills_a_store_that_builds_share(arguments, tmp_path, capfd):
    decoding = {name: arguments[name] for name in ("images", "metadata", "size", "workers")}
    decoded = api.decode(**decoding, store=tmp_path / "store")

    assert capfd.readouterr().out == ""
    assert (decoded.store, decoded.decoded, decoded.rejected) == (str(tmp_path / "store"), 150, 0)
    assert decoded.num_images == 150
    built = api.build(**arguments, out=tmp_path / "cxr14", store=tmp_path / "store")
    assert built.decoded.decoded == 0


def test_too_many_rejected_images_are_an_error_that_leaves_the_others_in_the_store(
    lookalike, arguments, tmp_path
):
    (tmp_path / "images").mkdir()
    for number, path in enumerate(sorted(lookalike.images.rglob("*.png"))):
        (tmp_path / "images" / path.name).write_bytes(path.read_bytes() if number > 2 else b"")
    decoding = {name: arguments[name] for name in ("metadata", "size", "workers")}
    decoding |= {"images": [tmp_path / "images"], "store": tmp_path / "store"}

    with pytest.raises(
        FoundProblems, match=r"3 of 150 images \(2.0%\) were rejected, `max_rejected` allows 1.0%; the first"
    ):
        api.decode(**decoding)
    decoded = api.decode(**decoding, max_rejected=0.02)
    assert (decoded.decoded, decoded.rejected) == (0, 3)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"images": ()}, "`images` is missing: name the folders, archives or URLs that hold the images"),
        ({"out": ""}, "`out` is empty; name a folder"),
        ({"max_rejected": 2}, "`max_rejected=2`: expected a share from 0 to 1"),
        ({"max_rejected": float("nan")}, "`max_rejected=nan`: expected a share from 0 to 1"),
        ({"workers": 0}, "`workers=0`: expected at least 1"),
        (
            {"out": "/x/ds", "store": "/x/ds/store"},
            "`store=/x/ds/store` is in `out=/x/ds`; the store outlives datasets, name another",
        ),
    ],
    ids=str,
)
def test_a_wrong_argument_is_named_before_any_work(arguments, tmp_path, changes, said):
    with pytest.raises(UsageError) as caught:
        api.build(**{**arguments, "out": tmp_path / "cxr14", **changes})
    assert str(caught.value) == said
    assert list(tmp_path.iterdir()) == []


def test_splits_of_a_dataset_at_a_url_are_taken(lookalike, dataset):
    for name, data in files_of(dataset).items():
        storage.write_bytes(f"memory://splits-of/{name}", data)

    splits = api.plan(lookalike.metadata, splits_of="memory://splits-of").plan.splits
    named = (dataset / "validation_list.txt").read_text().split()
    assert (splits.of_image == "validation").sum() == len(named)
    assert splits.origin.startswith(
        f"as in dataset {json.loads((dataset / 'manifest.json').read_text())['id']} ("
    )


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"splits_of": ""}, "`splits_of` is empty; name a dataset"),
        ({"out": "/x/a"}, "`splits_of=/x/a` is what `out` names; name another dataset, or another folder"),
        *(
            (
                {name: value},
                f"found `{name}={value}` beside `splits_of`, which places every image; give one of the two",
            )
            for name, value in {"validation_fraction": 0, "test_fraction": 0.3}.items()
        ),
        (
            {"train_val_list": "a", "test_list": "b"},
            "found `train_val_list=a` beside `splits_of`, which places every image; give one of the two",
        ),
    ],
    ids=str,
)
def test_splits_of_a_dataset_go_with_no_lists_fractions_or_that_dataset_itself(lookalike, changes, said):
    with pytest.raises(UsageError) as caught:
        api.plan(**{"metadata": lookalike.metadata, "splits_of": "/x/a", **changes})
    assert str(caught.value) == said


def test_a_dataset_is_not_split_as_itself_where_a_link_names_it(lookalike, tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "link").symlink_to("a")
    for out, splits_of in (("a", "link"), ("link", "a")):
        with pytest.raises(UsageError, match="is what `out` names; name another dataset"):
            api.plan(lookalike.metadata, splits_of=tmp_path / splits_of, out=tmp_path / out)


def test_missing_images_name_the_argument_that_allows_them(lookalike, arguments, tmp_path):
    part = lookalike.images / "images_001"
    with pytest.raises(
        CxrError,
        match=r"of the 150 images in the table are in no source, \d+ are there; name the other sources in "
        r"`images`, or build from these with `allow_missing=True`",
    ):
        api.build(**{**arguments, "images": part}, out=tmp_path / "cxr14")


@pytest.mark.parametrize(
    ("function", "command", "required"),
    [
        (api.build, cli.build, "--images i --metadata m --out o"),
        (api.plan, cli.plan, "--metadata m"),
        (api.decode, cli.decode, "--images i --metadata m --store s"),
    ],
    ids=["build", "plan", "decode"],
)
def test_each_argument_is_the_option_of_its_name_with_the_same_default(function, command, required):
    options = command.make_context("", required.split()).params
    # What only a command has: how it prints, and the second half of a task.
    assert options.pop("as_json") is False
    assert not options.pop("with_no_finding", False)

    arguments = inspect.signature(function).parameters
    assert options.keys() == arguments.keys()
    given = {word.removeprefix("--") for word in required.split()[::2]}
    for name in options.keys() - given:
        assert options[name] == arguments[name].default, name


def test_plan_and_build_take_the_same_arguments():
    build, plan = (dict(inspect.signature(f).parameters) for f in (api.build, api.plan))
    assert build.keys() == plan.keys()
    for name in build.keys() - {"images", "metadata", "out"}:
        assert build[name] == plan[name]
    assert build["runner"].default == LOCAL_RUNNER


@pytest.mark.slow
def test_a_script_builds_with_several_workers(arguments, dataset, tmp_path):
    """Nothing of the script's own is needed by workers: it has no guard, and no name to be imported by."""
    words = {name: str(value) if name != "size" else value for name, value in arguments.items()}
    words |= {"copies_target": 0.1, "workers": 2, "out": str(tmp_path / "cxr14")}
    script = tmp_path / "no module's name.py"
    script.write_text(
        "import cxr_records\n"
        "from cxr_records.pipelines import engines\n"
        "engines.SECONDS_WORTH_PROCESSES = 0\n"
        f"result = cxr_records.build(**{words!r})\n"
        "print(result.id)\n"
    )
    done = subprocess.run(
        [sys.executable, str(script)], cwd=tmp_path, capture_output=True, text=True, timeout=200
    )

    assert (done.returncode, without_progress(done.stderr)) == (0, "")
    manifest = json.loads((dataset / "manifest.json").read_text())
    assert done.stdout == f"{manifest['id']}\n"  # once: no worker runs the script
    assert files_of(tmp_path / "cxr14") == files_of(dataset)
