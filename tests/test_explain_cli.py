"""The command explain, on a trained run and the look-alike images whose findings have boxes."""

import json
import re
import shutil
from hashlib import sha256
from pathlib import Path

import pytest
from PIL import Image

from cxr_records.boxes import read_boxes
from cxr_records.cli import run as run_command
from cxr_records.findings import FINDINGS
from cxr_records.trainers import digests
from cxr_records.trainers.explaining import _operating_points
from cxr_records.trainers.runs import open_run

HEADER = "Image Index,Finding Label,Bbox [x,y,w,h],,,\n"


@pytest.fixture
def explain(trained_run, tmp_path, capfd):
    """Runs the command on the trained run, into a folder; returns exit code, stdout and stderr."""

    def explain(*words: object, run: Path = trained_run, out: str = "maps") -> tuple[int, str, str]:
        code = run_command(["explain", str(run), *map(str, words), "--out", str(tmp_path / out)])
        out, err = capfd.readouterr()
        # TensorFlow's own, which a process of the command's keeps quiet.
        return code, out, re.sub(r"^[EIW]0000 .*\n", "", err, flags=re.MULTILINE)

    return explain


@pytest.fixture
def boxed(lookalike) -> list[Path]:
    """Two look-alike images that have boxes."""
    names = sorted({box.image_id for box in read_boxes(str(lookalike.boxes)).boxes})[:2]
    return [next(lookalike.images.rglob(name)) for name in names]


def moved(run: Path, to: Path, dataset: str) -> Path:
    """A copy of a run whose dataset is elsewhere."""
    shutil.copytree(run, to)
    content = json.loads((to / "config.json").read_text())
    content.pop("checksum")
    (to / "config.json").write_bytes(digests.sealed({**content, "dataset": dataset}))
    return to


def test_the_highest_scores_are_drawn_and_the_same_bytes_again(explain, trained_run, boxed, tmp_path):
    code, out, err = explain(*boxed, "--top", "2")

    made = sorted((tmp_path / "maps").iterdir())
    assert (code, len(made)) == (0, 4)
    assert out == f"4 pictures in {tmp_path / 'maps'}\n"
    why = f"{trained_run} has no metrics.json"
    assert err == f"warning: the pictures show no operating points: {why}; cxr-records evaluate makes it\n"
    for image in boxed:
        findings = [p.stem.split("-")[1] for p in made if p.name.startswith(image.stem)]
        assert len(findings) == 2
        assert set(findings) <= set(FINDINGS)
    before = {path.name: path.read_bytes() for path in made}
    with Image.open(made[0]) as picture:
        assert picture.width == 1060
    assert explain(*boxed, "--top", "2")[0] == 0
    assert {path.name: path.read_bytes() for path in made} == before


def test_an_evaluation_that_is_not_of_this_model_gives_no_operating_points(trained_run, tmp_path):
    from cxr_records.trainers.evaluation.results import FORMAT, VERSION

    run = Path(shutil.copytree(trained_run, tmp_path / "run"))
    (run / "predictions.parquet").write_bytes(b"scores")
    identity = {
        "dataset_id": open_run(str(run)).dataset_id,
        "predictions_sha256": sha256(b"scores").hexdigest(),
    }
    point = {"threshold": 0.25, "chosen_on": "validation"}
    content = {"format": FORMAT, "version": VERSION, "identity": identity}
    content["classes"] = {"Mass": {"operating_point": point}, "Hernia": {"operating_point": None}}
    digests.write(str(run / "metrics.json"), json.dumps(content).encode())

    assert _operating_points(open_run(str(run))) == ({"Mass": (0.25, "validation")}, [])

    (run / "predictions.parquet").write_bytes(b"others")
    why = f"{run}/metrics.json is of other scores than predictions.parquet"
    said = f"the pictures show no operating points: {why}; cxr-records evaluate makes it"
    assert _operating_points(open_run(str(run))) == ({}, [said])


def test_boxes_of_a_datasets_images_are_measured_and_written(explain, lookalike, dataset, tmp_path):
    code, out, _ = explain("--boxes", lookalike.boxes, "--pictures", "3", "--draws", "50", "--json")

    told = json.loads(out)
    content = json.loads((tmp_path / "maps" / "localisation.json").read_text())
    boxes = read_boxes(str(lookalike.boxes)).boxes
    pairs = {(box.image_id, box.finding) for box in boxes}
    assert code == 0
    assert told["findings"] == content["findings"]
    assert {(each["image_id"], each["finding"]) for each in content["maps"]} == pairs
    total = content["findings"]["all"]
    assert (total["images"], total["boxes"]) == (len(pairs), len(boxes))
    assert total["patients"] == len({name[:8] for name, _ in pairs})
    hits = [each["hit"] for each in content["maps"]]
    assert total["pointing"]["value"] == round(sum(hits) / len(hits), 6)
    assert total["pointing"]["low"] <= total["pointing"]["value"] <= total["pointing"]["high"]
    area = {
        pair: sum(box.width * box.height for box in boxes if (box.image_id, box.finding) == pair) / 1024**2
        for pair in pairs
    }
    for each in content["maps"]:
        assert 0 <= each["mass_in_box"] <= 1
        # Boxes of nodules may overlap, and count once.
        assert each["box_share"] <= area[each["image_id"], each["finding"]] + 1e-6
    pictures = [path.name for path in (tmp_path / "maps").glob("*.png")]
    assert sorted(pictures) == [Path(path).name for path in told["pictures"]]
    assert len(pictures) == 3
    page = (tmp_path / "maps" / "localisation.html").read_text()
    assert page.count("<figure>") == 3
    assert "measured <strong>on drawn images, which say nothing about patients</strong>" in page
    assert f"of {len(pairs):,} cases" in page
    assert content["dataset_id"] in json.dumps(told)


def test_files_with_boxes_are_measured_without_the_runs_dataset(
    explain, trained_run, lookalike, boxed, tmp_path
):
    run = moved(trained_run, tmp_path / "run", str(tmp_path / "gone"))

    code, out, err = explain(*boxed, "--boxes", lookalike.boxes, "--draws", "0", run=run)

    assert code == 0
    assert (
        "the 2 files given; 95% intervals over patients; by a run that was trained on drawn images, which"
        in out
    )
    assert re.search(
        r"warning: .*: \d+ of \d+ boxes are of \d+ images that are not in the 2 files given", err
    )
    content = json.loads((tmp_path / "maps" / "localisation.json").read_text())
    assert {each["image_id"] for each in content["maps"]} == {path.name for path in boxed}
    assert len(list((tmp_path / "maps").glob("*.png"))) == len(content["maps"])
    code, out, err = explain("--boxes", lookalike.boxes, run=run)
    why = f"the run's dataset: {tmp_path / 'gone'}: no such folder"
    assert (code, out, err) == (1, "", f"Error: {why}; name the images themselves, beside --boxes\n")


def test_an_image_that_cannot_be_read_is_named_and_the_others_are_drawn(explain, boxed, tmp_path):
    (tmp_path / "bad.png").write_bytes(b"no image")

    code, _, err = explain(tmp_path / "bad.png", boxed[0], "--finding", "Mass")

    assert code == 3
    assert err.splitlines()[-2].startswith(f"{tmp_path / 'bad.png'}: ")
    assert err.splitlines()[-1] == "Error: 1 of 2 files could not be read"
    assert [path.name for path in (tmp_path / "maps").iterdir()] == [f"{boxed[0].stem}-Mass.png"]
    code, _, err = explain(tmp_path / "bad.png")
    assert (code, err.count("\n")) == (1, 1)
    assert err.startswith(f"Error: none of the 1 files could be read; {tmp_path / 'bad.png'}: ")


def test_nothing_of_the_users_is_replaced(explain, lookalike, boxed, tmp_path):
    (tmp_path / "maps").mkdir()
    for name in (f"{boxed[0].stem}-Mass.png", "localisation.json", "localisation.html"):
        path = tmp_path / "maps" / name
        path.write_bytes(b"mine")
        code, _, err = explain(boxed[0], "--finding", "Mass", "--finding", "Effusion", "--finding", "Nodule",
                               "--finding", "Infiltration", "--finding", "Atelectasis",
                               *(["--boxes", lookalike.boxes] if "local" in name else []))  # fmt: skip
        assert code == 2
        assert err == f"Error: {path} is there and was not written by this command; name another folder\n"
        assert [(each.name, each.read_bytes()) for each in (tmp_path / "maps").iterdir()] == [(name, b"mine")]
        path.unlink()


def test_a_finding_that_the_run_does_not_score_is_said(explain, boxed, tmp_path):
    name = boxed[0].name
    (tmp_path / "boxes.csv").write_text(f"{HEADER}{name},Mass,1,2,300,400\n{name},Fractur,1,2,3,4\n")

    code, _, err = explain(boxed[0], "--boxes", tmp_path / "boxes.csv", "--draws", "0")

    assert code == 0
    assert f"warning: {tmp_path / 'boxes.csv'}: 1 boxes are of Fractur, which the run does not score\n" in err


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        ([], 2, "give images, or --boxes TABLE for those of the run's dataset"),
        (["{image}", "--split", "test"], 2, "--split goes with --boxes and no images"),
        (["{image}", "--finding", "Mas"], 2, "found --finding Mas (did you mean Mass?); the run scores A"),
        (["{image}", "--top", "0"], 2, "found --top 0; expected 1 or more"),
        (["--boxes", "{boxes}", "--tolerance", "-1"], 2, "found --tolerance -1; expected 0 or more pixels"),
        (["--boxes", "{boxes}", "--pictures", "-1"], 2, "found --pictures -1; expected 0 or more"),
        (["--boxes", "{boxes}", "--draws", "-1"], 2, "found --draws -1; expected 0 or more"),
        (["--boxes", "{boxes}", "--split", "night"], 2, "found split 'night'; "),
        (["--boxes", "{boxes}", "--split", "train"], 1, "{boxes}: found none of its "),
        (["--boxes", "{image}"], 2, "{image}: found a PNG image, which --boxes cannot be; name "),
        (["--boxes", "{table}"], 1, "{table}: found the columns 'Image Index', 'Finding Labels', "),
        (["{image}", "{twin}"], 2, "{image} and {twin} are called the same"),
    ],
)  # fmt: skip
def test_wrong_use_is_one_line(explain, lookalike, boxed, tmp_path, words, code, said):
    given = {
        "image": boxed[0], "boxes": lookalike.boxes, "table": lookalike.metadata,
        "twin": tmp_path / "twin" / boxed[0].name,
    }  # fmt: skip

    found, out, err = explain(*(word.format(**given) for word in words))

    assert (found, out) == (code, "")
    assert err.startswith(f"Error: {said.format(**given)}")
    assert err.count("\n") == 1
    assert not (tmp_path / "maps").exists()


def test_a_run_without_a_model_says_what_to_do(explain, trained_run, boxed, tmp_path):
    (tmp_path / "run").mkdir()
    shutil.copy(trained_run / "config.json", tmp_path / "run")

    code, _, err = explain(boxed[0], run=tmp_path / "run")

    assert (code, err) == (
        2, f"Error: {tmp_path / 'run'}: found no model.keras; run its train command again until it ends\n"
    )  # fmt: skip
