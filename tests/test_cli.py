"""What a person sees: results, errors of one line, exit codes. Each bad use leaves nothing in the way."""

import csv
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from conftest import files_of
from PIL import Image

from cxr_records import cli, png
from cxr_records.examples import FEATURES
from cxr_records.findings import FINDINGS
from cxr_records.lookalike import LookalikePaths, make_lookalike
from cxr_records.manifest import MANIFEST_FILE


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> LookalikePaths:
    """120 look-alike images of 64 pixels; tests that change it copy it first."""
    return make_lookalike(tmp_path_factory.mktemp("cli") / "nih", 120, image_size=64, seed=3)


@pytest.fixture
def arguments(small) -> list[str]:
    """Sources, table and lists of the small set."""
    return [
        *("--images", str(small.images), "--metadata", str(small.metadata)),
        *("--train-val-list", str(small.train_val_list), "--test-list", str(small.test_list)),
        *("--size", "32", "--workers", "1"),
    ]


def run(capsys, *words) -> tuple[int, str, str]:
    """Runs a command in this process; returns exit code, stdout and stderr."""
    capsys.readouterr()
    code = cli.run([str(word) for word in words])
    out, err = capsys.readouterr()
    return code, out, err


def refused(capsys, code: int, *words) -> str:
    """Runs a command that must fail with this code and one line; returns the line."""
    found, out, err = run(capsys, *words)
    assert (found, out) == (code, "")
    assert err.count("\n") == 1
    assert "Traceback" not in err
    return err.strip()


def test_build_prints_one_json_object_and_nothing_else(capsys, arguments, tmp_path):
    code, out, err = run(capsys, "build", *arguments, "--out", tmp_path / "ds", "--json")

    assert (code, err) == (0, "")
    told = json.loads(out)
    manifest = json.loads((tmp_path / "ds" / MANIFEST_FILE).read_bytes())
    assert told["id"] == manifest["id"]
    assert told["decoded"] == 120
    assert told["png_decoder"] == png.decoder()
    assert sum(told["records"].values()) == 120 + told["copies"]
    assert told["records"] == {split: counts["records"] for split, counts in manifest["splits"].items()}
    assert set(told["seconds"]) == {"decode", "plan", "write", "total"}
    assert told["shards"] == sum(len(counts["shards"]) for counts in manifest["splits"].values())


def test_a_second_build_decodes_nothing_and_changes_no_byte(capsys, arguments, tmp_path):
    run(capsys, "build", *arguments, "--out", tmp_path / "ds")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "ds").iterdir() if path.is_file()}
    code, out, _ = run(capsys, "build", *arguments, "--out", tmp_path / "ds", "--json")

    assert code == 0
    assert json.loads(out)["decoded"] == 0
    assert before == {path: path.stat().st_mtime_ns for path in before}


def test_another_task_shares_the_store_and_replaces_the_dataset(capsys, arguments, tmp_path):
    run(capsys, "build", *arguments, "--out", tmp_path / "ds")
    code, out, _ = run(
        capsys, "build", *arguments, "--out", tmp_path / "ds", "--task", "binary:Infiltration", "--json"
    )
    assert code == 0
    told = json.loads(out)
    assert told["decoded"] == 0
    assert list(told["classes"]) == ["No Finding", "Infiltration"]
    assert sum(told["left_out"].values()) + sum(c["images"] for c in told["classes"].values()) == 120
    assert run(capsys, "verify", tmp_path / "ds", "--deep")[0] == 0
    fresh = tmp_path / "fresh"
    run(capsys, "build", *arguments, "--out", fresh, "--task", "binary:Infiltration")
    assert files_of(tmp_path / "ds") == files_of(fresh)


def test_folder_zip_tar_and_targz_make_byte_identical_datasets(capsys, small, arguments, tmp_path):
    flat = sorted(small.images.rglob("*.png"))
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for path in reversed(flat):
            archive.write(path, f"images/{path.name}")
    for name, mode in (("a.tar", "w"), ("a.tar.gz", "w:gz")):
        with tarfile.open(tmp_path / name, mode) as archive:
            for path in flat:
                archive.add(path, f"images/{path.name}")
    half = tmp_path / "half"
    half.mkdir()
    for path in flat[:50]:
        shutil.copy(path, half)
    with zipfile.ZipFile(tmp_path / "rest.zip", "w") as archive:
        for path in flat[50:]:
            archive.write(path, path.name)

    datasets = {}
    forms = {"folder": [small.images], "zip": ["a.zip"], "tar": ["a.tar"], "targz": ["a.tar.gz"]}
    forms["mix"] = ["half", "rest.zip"]
    for form, sources in forms.items():
        out, store = tmp_path / form, tmp_path / f"store-{form}"
        words = ["--images", *(tmp_path / source for source in sources)]
        code, _, err = run(capsys, "build", *arguments[2:], *words, "--out", out, "--store", store)
        assert (code, "Error" in err) == (0, False)
        datasets[form] = files_of(out)
    assert all(files == datasets["folder"] for files in datasets.values())


def test_every_dialect_of_the_table_gives_the_same_labels(capsys, small, arguments, tmp_path):
    labels = {}
    for table in (small.metadata, small.metadata_2017, small.metadata_sample):
        words = [*arguments[:2], "--metadata", table, *arguments[4:]]
        code, out, _ = run(capsys, "build", *words, "--out", tmp_path / table.stem, "--json")
        assert code == 0
        labels[table.stem] = json.loads(out)["classes"]
    assert len({json.dumps(counts, sort_keys=True) for counts in labels.values()}) == 1


def test_the_splits_of_another_dataset_are_taken_by_plan_and_build(capsys, small, arguments, tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    run(capsys, "build", *arguments, "--out", first, "--task", "binary:Mass")
    given = [*arguments[:4], *arguments[8:], "--splits-of", first, "--seed", "7"]
    lines = small.metadata.read_text().splitlines(keepends=True)
    (tmp_path / "more.csv").write_text("".join([*lines, lines[1].replace(lines[1][:16], "00000001_077.png")]))
    given[3] = tmp_path / "more.csv"

    code, out, err = run(capsys, "plan", *given, "--json")
    assert (code, err) == (
        0,
        f"warning: {first} does not name 1 image of its patients (the first is 00000001_077.png): each is "
        "in the split of its patient\n",
    )
    origin = json.loads(out)["split_origin"]
    there = json.loads((first / MANIFEST_FILE).read_bytes())
    assert origin["text"] == f"as in dataset {there['id']} ({there['split_origin']['text']})"
    assert run(capsys, "build", *given, "--out", second)[0] == 0
    for split in ("train", "validation", "test"):
        one, two = ((ds / f"{split}_list.txt").read_text().split() for ds in (first, second))
        assert sorted(two) == sorted([*one, *["00000001_077.png"] * ("00000001_000.png" in one)])
    assert refused(capsys, 2, "plan", *given, "--validation-fraction", "0.2") == (
        "Error: found --validation-fraction 0.2 beside --splits-of, which places every image; give one of "
        "the two"
    )
    assert (
        refused(capsys, 1, "plan", *given[:-3], tmp_path / "none")
        == f"Error: {tmp_path}/none: no such folder"
    )


def test_plan_writes_nothing_and_tells_what_build_does(capsys, arguments, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, err = run(capsys, "plan", *arguments, "--out", tmp_path / "ds", "--json")
    assert (code, err) == (0, "")
    assert list(tmp_path.iterdir()) == []
    planned = json.loads(out)

    built = json.loads(run(capsys, "build", *arguments, "--out", tmp_path / "ds", "--json")[1])
    for key in ("records", "copies", "classes", "mean_ir", "max_ir"):
        assert planned[key] == built[key]
    assert sum(planned["shards"].values()) == built["shards"]
    size = sum(path.stat().st_size for path in (tmp_path / "ds").glob("cxr14-*"))
    assert planned["dataset_bytes"] == pytest.approx(size, rel=0.1)


def test_plan_needs_no_images(capsys, arguments, tmp_path):
    code, out, _ = run(capsys, "plan", *arguments[2:], "--json")
    assert code == 0
    assert sum(json.loads(out)["images"].values()) == 120


@pytest.mark.parametrize("path", ["a\nb.csv", "a.csv\n", "a\r\nb"])
def test_a_path_of_several_lines_is_refused_in_one(capsys, path):
    code, _, err = run(capsys, "plan", "--metadata", path)

    told = path.replace("\r", "\\r").replace("\n", "\\n")
    assert (code, err) == (2, f"Error: {told}: found no such file; --metadata must name an existing file\n")


def test_without_lists_the_split_is_said_to_be_unofficial(capsys, small, tmp_path):
    code, out, _ = run(capsys, "plan", "--metadata", small.metadata)
    assert code == 0
    assert "unofficial" in out
    assert "not the official split: do not compare" in out


def test_rejected_images_are_named_with_their_reason_and_the_rest_is_built(
    capsys, small, arguments, tmp_path
):
    images = tmp_path / "images"
    images.mkdir()
    for path in small.images.rglob("*.png"):
        shutil.copy(path, images)
    names = sorted(path.name for path in images.iterdir())
    truncated = (images / names[1]).read_bytes()[:900]
    jpeg = io.BytesIO()
    Image.open(images / names[5]).convert("L").convert("CMYK").save(jpeg, "JPEG")
    spoiled = {
        names[0]: (b"", "the file is empty"),
        names[1]: (truncated, "damaged PNG: "),
        names[2]: (b"<!DOCTYPE html>", "no PNG, JPEG or DICOM: begins with '<!DOCTYPE ht'"),
        names[3]: (b"GIF89a" + bytes(30), "no PNG, JPEG or DICOM: begins with 'GIF89a"),
    }
    for name, (data, _) in spoiled.items():
        (images / name).write_bytes(data)
    (images / names[4]).unlink()
    (images / names[5]).write_bytes(jpeg.getvalue())  # a JPEG under a .png name is an image all the same
    Image.open(images / names[6]).convert("P").save(images / names[6])
    (images / "of_another_set.png").write_bytes(b"x")
    words = ["build", "--images", images, *arguments[2:], "--out", tmp_path / "ds"]

    error = refused(capsys, 3, *words)
    assert error.startswith(
        "Error: 4 of 119 images (3.4%) were rejected, --max-rejected allows 1.0%; the first"
    )
    assert not (tmp_path / "ds" / MANIFEST_FILE).exists()
    code, out, _ = run(capsys, *words, "--max-rejected", "0.04")
    assert code == 0
    assert "missing: 1 images of the table are in no source" in out
    assert "not in the table: 1 image files" in out
    with open(tmp_path / "ds" / "rejected.csv", newline="") as file:
        rows = {row["image_id"]: row for row in csv.DictReader(file)}
    assert set(rows) == {*spoiled, names[4]}
    assert (rows[names[4]]["reason"], rows[names[4]]["detail"]) == ("missing", "in no source")
    for name, (_, reason) in spoiled.items():
        assert rows[name]["reason"] == "rejected"
        assert rows[name]["detail"].startswith(reason)
    assert run(capsys, "verify", tmp_path / "ds", "--deep")[0] == 0


def test_images_missing_beyond_a_hundredth_need_a_word_of_the_user(capsys, small, arguments, tmp_path):
    part = str(small.images / "images_001")
    there = len(list(Path(part).rglob("*.png")))
    words = ["build", "--images", part, *arguments[2:], "--out", tmp_path / "ds"]

    error = refused(capsys, 1, *words)
    assert error == (
        f"Error: {120 - there} of the 120 images in the table are in no source, {there} are there; "
        "name the other sources in --images, or build from these with --allow-missing"
    )
    assert list(tmp_path.iterdir()) == []
    code, out, _ = run(capsys, *words, "--allow-missing", "--json")
    assert code == 0
    assert json.loads(out)["missing"] == 120 - there
    assert json.loads(out)["decoded"] == there


def test_new_images_are_added_without_decoding_the_old_ones(capsys, small, arguments, tmp_path):
    part, whole = str(small.images / "images_001"), str(small.images)
    words = [*arguments[2:], "--allow-missing", "--json"]
    first = json.loads(run(capsys, "build", "--images", part, *words, "--out", tmp_path / "a")[1])
    second = json.loads(run(capsys, "build", "--images", whole, *words, "--out", tmp_path / "b")[1])
    assert first["decoded"] + second["decoded"] == 120
    alone = tmp_path / "alone"
    run(capsys, "build", "--images", whole, *words, "--out", alone, "--store", tmp_path / "other-store")
    assert files_of(tmp_path / "b") == files_of(alone)


def test_a_damaged_shard_is_found_named_and_mended_by_the_same_build(capsys, arguments, tmp_path):
    run(capsys, "build", *arguments, "--out", tmp_path / "ds")
    good = files_of(tmp_path / "ds")
    shard = next((tmp_path / "ds").glob("cxr14-train*"))
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)

    code, out, err = run(capsys, "verify", tmp_path / "ds", "--json")
    assert code == 3
    assert err == f"Error: 2 problems in {tmp_path / 'ds'}\n"
    told = json.loads(out)
    assert told["ok"] is False
    assert [problem["path"] for problem in told["problems"]] == [str(shard)] * 2
    assert told["problems"][1]["record"] is not None
    shard.unlink()
    assert run(capsys, "build", *arguments, "--out", tmp_path / "ds")[0] == 0
    assert files_of(tmp_path / "ds") == good


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        (["--size", "0"], 2, "--size 0: expected 16 to 2048 pixels"),
        (["--workers", "0"], 2, "--workers 0: expected at least 1"),
        (["--shard-mb", "0"], 2, "--shard-mb 0: expected 1 to 4096"),
        (["--max-rejected", "2"], 2, "--max-rejected 2.0: expected a share from 0 to 1"),
        (["--validation-fraction", "1"], 2, "found --validation-fraction 1.0"),
        (["--task", "binary:Hernai"], 2, "did you mean Hernia?"),
        (["--task", "regression"], 2, "found --task regression; expected one of the forms"),
        (["--with-no-finding"], 2, "--with-no-finding"),
        (["--copies-of", "Pnuemonia"], 2, "did you mean Pneumonia?"),
        (["--copies-target", "1"], 2, "--copies-target"),
        (["--copies-max", "0"], 2, "--copies-max"),
        (["--metadata", "nowhere.csv"], 2, "nowhere.csv"),
        (["--train-val-list", "nowhere.txt"], 2, "nowhere.txt"),
        (["--images", "nowhere"], 2, "nowhere: no such file or folder"),
    ],
    ids=lambda value: value[0].strip("-") if isinstance(value, list) else None,
)  # fmt: skip
def test_wrong_values_are_refused_in_one_line(capsys, arguments, tmp_path, words, code, text):
    error = refused(capsys, code, "build", *arguments, "--out", tmp_path / "ds", *words)
    assert error.startswith("Error: ")
    assert text in error
    assert list(tmp_path.iterdir()) == []


def test_wrong_tables_are_refused_in_one_line(capsys, arguments, tmp_path):
    table = tmp_path / "table.csv"
    words = ["build", *arguments[:2], "--metadata", table, *arguments[4:], "--out", tmp_path / "ds"]

    table.write_text("name,label\na.png,Mass\n")
    error = refused(capsys, 1, *words)
    assert "Image Index" in error
    assert "'name', 'label'" in error
    table.write_text("Image Index,Finding Labels,Patient ID\n00000001_000.png,Infiltrate,1\n")
    error = refused(capsys, 1, *words)
    assert "did you mean Infiltration?" in error
    assert "00000001_000.png" in error
    assert not (tmp_path / "ds").exists()


def test_sources_of_another_set_are_refused(capsys, small, arguments, tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "cat.png").write_bytes(b"x")
    words = ["build", "--images", tmp_path / "images", *arguments[2:], "--out", tmp_path / "ds"]
    error = refused(capsys, 2, *words)
    assert "none of the 1 image files found (such as cat.png) is named in the table" in error
    (tmp_path / "images" / "cat.png").unlink()
    assert "holds no image" in refused(capsys, 2, *words)


def test_an_output_that_is_not_ours_is_refused_and_left_alone(capsys, arguments, tmp_path):
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.tex").write_text("years")
    error = refused(capsys, 2, "build", *arguments, "--out", tmp_path / "home")
    assert "is not empty and no dataset of ours (it holds thesis.tex)" in error
    error = refused(capsys, 2, "build", *arguments, "--out", tmp_path / "home" / "thesis.tex")
    assert "is a file, expected a folder" in error
    assert [path.name for path in tmp_path.rglob("*")] == ["home", "thesis.tex"]


def test_a_store_of_another_size_is_refused_with_the_reason(capsys, arguments, tmp_path):
    run(capsys, "build", *arguments, "--out", tmp_path / "ds", "--store", tmp_path / "store")
    words = ["build", *arguments, "--size", "48", "--out", tmp_path / "b", "--store", tmp_path / "store"]
    error = refused(capsys, 2, *words)
    assert "holds 32x32 raw images (bilinear), asked for 48x48 raw images (bilinear)" in error


def test_an_output_below_a_file_is_one_line(capsys, arguments, tmp_path):
    (tmp_path / "file").write_text("x")
    error = refused(capsys, 1, "build", *arguments, "--out", tmp_path / "file" / "ds")
    assert error.endswith("Not a directory")


def mounted(folder: Path, options: str):
    """Mounts a small file system of memory, or skips where that is not allowed."""
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], capture_output=True)
    if done.returncode:
        pytest.skip("mounting a small disk needs root")


@pytest.mark.parametrize("place", ["store", "out"])
def test_a_full_disk_is_one_line_and_the_same_command_goes_on(capsys, arguments, tmp_path, place):
    mounted(tmp_path / "disk", "size=64k")
    try:
        paths = {"--out": tmp_path / "ds", "--store": tmp_path / "store"}
        paths["--" + place] = tmp_path / "disk" / place
        words = ["build", *arguments, *(str(word) for pair in paths.items() for word in pair)]
        error = refused(capsys, 1, *words)
        assert error.endswith("No space left on device")
        assert str(tmp_path / "disk") in error
        assert not list((tmp_path / "disk").rglob(".*.tmp-*"))
        assert not (paths["--out"] / MANIFEST_FILE).exists()
        subprocess.run(["mount", "-o", "remount,size=64m", tmp_path / "disk"], check=True)
        assert run(capsys, *words)[0] == 0
        assert run(capsys, "verify", paths["--out"], "--deep")[0] == 0
    finally:
        subprocess.run(["umount", tmp_path / "disk"], check=True)


def test_a_disk_that_cannot_be_written_is_one_line(capsys, arguments, tmp_path):
    mounted(tmp_path / "disk", "ro,size=64k")
    try:
        error = refused(capsys, 1, "build", *arguments, "--out", tmp_path / "disk" / "ds")
        assert error.endswith("Read-only file system")
    finally:
        subprocess.run(["umount", tmp_path / "disk"], check=True)


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["stray"], "Error: found 'stray', which belongs to no option; quote names with spaces or *"),
        (["--", "stray"], "Error: found 'stray', which belongs to no option; quote names with spaces or *"),
        (["--runner", "Foo"], "Error: --runner Foo: expected one of "),
        (["--foo"], "Error: No such option"),
        (["--size", "big"], "Error: Invalid value for '--size'"),
    ],
    ids=" ".join,
)
def test_words_that_mean_nothing_are_refused(capsys, arguments, tmp_path, words, text):
    error = refused(capsys, 2, "build", *arguments, "--seed", "1", "--out", tmp_path / "ds", "--flip", *words)
    assert error.startswith(text)
    assert list(tmp_path.iterdir()) == []


def test_nihs_lists_in_each_others_place_are_refused(capsys, nih):
    words = ["--train-val-list", nih / "test_list.txt.gz", "--test-list", nih / "train_val_list.txt.gz"]
    error = refused(capsys, 2, "plan", "--metadata", nih / "Data_Entry_2017_v2020.csv.gz", *words)
    assert error.endswith("swap them")


def test_a_store_in_the_dataset_is_refused(capsys, arguments, tmp_path):
    for store in ("ds", "ds/store"):
        words = ["build", *arguments, "--out", tmp_path / "ds", "--store", tmp_path / store]
        assert "is in --out" in refused(capsys, 2, *words)
    assert list(tmp_path.iterdir()) == []


def test_a_demo_replaces_nothing_that_no_demo_made(capsys, tmp_path):
    (tmp_path / "contact_sheet.png").write_text("mine")
    error = refused(capsys, 2, "demo", "--out", tmp_path)
    assert "holds contact_sheet.png, which no demo made" in error
    assert (tmp_path / "contact_sheet.png").read_text() == "mine"


def test_an_unknown_command_suggests_the_nearest(capsys):
    assert "no such command 'biuld' (did you mean build?)" in run(capsys, "biuld")[2]


@pytest.mark.parametrize("name", [*cli.COMMANDS, ""])
def test_every_command_has_help_with_an_example(capsys, name):
    code, out, _ = run(capsys, *filter(None, [name]), "--help")
    assert code == 0
    assert "Example:" in out
    assert f"cxr-records {name}" in out


def test_verify_of_what_is_no_dataset_says_so(capsys, tmp_path):
    assert "no such folder" in refused(capsys, 1, "verify", tmp_path / "nowhere")
    assert "no manifest.json" in refused(capsys, 1, "verify", tmp_path)


def test_a_fault_of_ours_is_one_line_and_debug_shows_where(capsys, monkeypatch, tmp_path):
    def fail(dataset, deep):
        raise KeyError("surprise")

    monkeypatch.setattr("cxr_records.verification.check_dataset", fail)
    error = refused(capsys, 1, "verify", tmp_path)
    assert error == "Error: KeyError: 'surprise' (a fault of ours; --debug shows where)"
    assert "Traceback" in run(capsys, "verify", tmp_path, "--debug")[2]

    # What libraries below say where they get no more memory is of no one kind.
    monkeypatch.setattr("resource.getrlimit", lambda _: (3 << 30, 3 << 30))
    error = refused(capsys, 1, "verify", tmp_path)
    assert error.endswith("(a fault of ours, or ulimit -v 3145728 is too little; --debug shows where)")


@pytest.mark.slow
def test_demo_ends_with_where_to_look(capsys, tmp_path):
    code, out, _ = run(capsys, "demo", "--out", tmp_path / "demo", "--num-images", "60", "--workers", "1")
    assert code == 0
    assert "ok (every record checked)" in out
    sheet = Image.open(tmp_path / "demo" / "contact_sheet.png")
    assert sheet.width > 2000
    assert out.index("Where to look:") < out.index("contact_sheet.png")
    (report,) = (tmp_path / "demo").glob("run-*/report.html")
    assert out.index("\nmacro ") < out.index("Where to look:") < out.rindex(str(report.parent))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("`copies_max=0`: expected 1", "--copies-max 0: expected 1"),
        ("name another with `store`", "name another with --store"),
        ("for no copies give `copies='none'`", "for no copies give --copies none"),
        ("found `with_no_finding=True` with `task=binary:No Finding`",
         "found --with-no-finding with --task binary:No Finding"),
        ("`out=` is empty", "--out  is empty"),
        ("`dataset=x` is another command's", "`dataset=x` is another command's"),
        ("`no such` `thing", "`no such` `thing"),
    ],
)  # fmt: skip
def test_arguments_of_the_library_are_options_on_the_command_line(text, words):
    assert cli.in_options(text, cli.cli.get_command(None, "build")) == words
    assert cli.in_options(text, None) == text


def test_the_readme_names_every_command():
    readme = (Path(__file__).parents[1] / "README.md").read_text()
    assert [name for name in cli.COMMANDS if f"cxr-records {name}" not in readme] == []


def test_the_readme_describes_each_feature_as_the_code_does():
    readme = (Path(__file__).parents[1] / "README.md").read_text()
    rows = [line for line in readme.splitlines() if line.startswith("| `")]
    for feature in FEATURES:
        (row,) = [line for line in rows if line.startswith(f"| `{feature.name}` |")]
        assert row.endswith(f"| {feature.meaning} |")


def test_a_class_without_training_images_is_a_warning(capsys, arguments, tmp_path):
    table = tmp_path / "table.csv"
    rows = [
        f"{number:08d}_000.png,{'Mass' if number < 6 else 'No Finding'},{number}" for number in range(1, 41)
    ]
    table.write_text("Image Index,Finding Labels,Patient ID\n" + "\n".join(rows) + "\n")
    code, out, err = run(capsys, "plan", "--metadata", table, "--task", "binary:Hernia", "--json")
    assert code == 0
    said = [
        f"{table}: found no column 'Patient Age', 'Patient Gender', 'View Position': unknown of every image",
        "no training image holds Hernia: nothing to copy and nothing to learn there; choose another split or "
        "task, or leave these classes out of the results",
    ]
    assert err == "".join(f"warning: {warning}\n" for warning in said)
    assert json.loads(out)["warnings"] == said
    assert json.loads(out)["classes"]["Hernia"]["images"] == 0


@pytest.fixture
def odd(small, tmp_path) -> tuple[Path, Path]:
    """The small set's table with a column of sexes under another name, and a list of one image more."""
    table, test_list = tmp_path / "table.csv", tmp_path / "test.txt"
    table.write_text(small.metadata.read_text().replace("Patient Gender", "Sex"))
    test_list.write_text(f"{small.test_list.read_text().rstrip()}\nnowhere.png\n")
    return table, test_list


def test_what_is_odd_in_table_and_lists_is_said_once_by_each_command(capsys, small, odd, tmp_path):
    table, test_list = odd
    count = len(test_list.read_text().split())
    of_table = (
        f"{table}: found no column 'Patient Gender', so it is unknown of every image; 'Sex' looks like it: "
        "rename it to 'Patient Gender'"
    )
    told = (
        f"{test_list}: 1 of its {count} names (the first is 'nowhere.png') are in no row of the table (whose "
        "first is 00000001_000.png)"
    )
    images = ["--images", small.images, "--metadata", table, "--size", "32", "--workers", "1"]
    lists = ["--train-val-list", small.train_val_list, "--test-list", test_list]
    out = ["--out", tmp_path / "ds", "--store", tmp_path / "store"]

    assert refused(capsys, 1, "plan", "--metadata", small.metadata, *lists) == (
        f"Error: {told}; give the list of this table, or go on without them with --allow-missing"
    )
    for words, expected in (
        (["plan", "--metadata", table, *lists, "--allow-missing"], [of_table, f"{told}: left out"]),
        (["build", *images, *lists, *out, "--allow-missing"], [of_table, f"{told}: left out"]),
        (["decode", *images, "--store", tmp_path / "store"], [of_table]),
    ):
        code, printed, err = run(capsys, *words, "--json")
        assert (code, err) == (0, "".join(f"warning: {warning}\n" for warning in expected))
        assert json.loads(printed)["warnings"] == expected


def test_of_a_table_and_lists_as_they_should_be_nothing_is_said(capsys, small, arguments, tmp_path):
    for words in (
        ["plan", *arguments[2:]],
        ["build", *arguments, "--out", tmp_path / "ds"],
        ["decode", *arguments[:4], *arguments[8:], "--store", tmp_path / "store"],
    ):
        code, printed, err = run(capsys, *words, "--json")
        assert (code, err, json.loads(printed)["warnings"]) == (0, "", [])


def test_a_table_whose_patients_are_numbers_of_rows_is_refused_by_every_command(capsys, small, tmp_path):
    """Its patients would be in several splits, and nothing could tell any more."""
    header, *rows = small.metadata.read_text().splitlines()
    place = header.split(",").index("Patient ID")
    cells = [row.split(",") for row in rows]
    table, scores = tmp_path / "t.csv", tmp_path / "s.csv"
    numbered = [[*row[:place], str(n), *row[place + 1 :]] for n, row in enumerate(cells, start=1)]
    table.write_text("\n".join([header, *map(",".join, numbered)]) + "\n")
    scores.write_text("image,Mass\n" + "".join(f"{row[0]},0.{n}\n" for n, row in enumerate(cells)))
    wrong = [n for n, row in enumerate(cells) if int(row[place]) != n + 1]
    first = cells[wrong[0]]
    expected = (
        f"Error: {table}, line {wrong[0] + 2} (image {first[0]!r}): 'Patient ID' says {wrong[0] + 1}, the "
        f"name says patient {int(first[place])} (so in {len(wrong)} of 120 rows); the columns do not belong "
        "together: take the table as NIH gives it"
    )

    images = ["--images", small.images]
    for words in (
        ["plan"],
        ["build", *images, "--out", tmp_path / "ds"],
        ["decode", *images, "--store", tmp_path / "st"],
        ["evaluate", "--predictions", scores, "--out", tmp_path / "o"],
    ):
        assert refused(capsys, 1, *words, "--metadata", table) == expected
    assert sorted(path.name for path in tmp_path.iterdir()) == ["s.csv", "t.csv"]


@pytest.mark.parametrize("table", ["Data_Entry_2017_v2020", "Data_Entry_2017", "sample_labels"])
def test_the_real_images_build_with_each_real_table(capsys, nih, tmp_path_factory, table):
    shared = tmp_path_factory.getbasetemp() / "real"
    out = shared / table
    code, told, _ = run(
        capsys, "build", "--images", nih / "images", "--metadata", nih / f"{table}.csv.gz",
        "--train-val-list", nih / "train_val_list.txt.gz", "--test-list", nih / "test_list.txt.gz",
        "--validation-fraction", "0", "--copies", "none", "--allow-missing", "--out", out, "--json",
        "--store", shared / "store", "--workers", "1",
    )  # fmt: skip
    assert code == 0
    built = json.loads(told)
    expected = {"Data_Entry_2017_v2020": (69, 80), "Data_Entry_2017": (69, 80)}
    if table in expected:
        assert (built["records"]["train"], built["records"]["test"]) == expected[table]
    assert built["rejected"] == 0
    assert set(built["classes"]) == {*FINDINGS, "No Finding"}
    assert run(capsys, "verify", out, "--deep")[0] == 0


def test_closed_pipes_and_exit_codes_reach_the_shell(tmp_path):
    command = [sys.executable, "-m", "cxr_records", "verify", str(tmp_path / "nowhere")]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"Error: {tmp_path / 'nowhere'}: no such folder\n"
