"""Models for servers: each format is loaded by its own runtime, in a process without ours."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np
import pytest

from cxr_records.cli import run as run_command
from cxr_records.errors import CxrError, UsageError
from cxr_records.findings import FINDINGS
from cxr_records.images import ImageFormat, decode_image
from cxr_records.trainers import digests, export, models
from cxr_records.trainers.evaluation.cli import evaluate_into
from cxr_records.trainers.export import KINDS, export_run
from cxr_records.trainers.predict import load_model, predict_run
from cxr_records.trainers.runs import open_run

# As a server calls each format.
SERVERS = {
    "savedmodel": """
import tensorflow as tf
model = tf.saved_model.load(f"{folder}/saved_model")
score = lambda images: model.serve(images)["probabilities"].numpy()
""",
    "onnx": """
import onnxruntime
session = onnxruntime.InferenceSession(f"{folder}/model.onnx")
score = lambda images: session.run(["probabilities"], {"image": images})[0]
""",
    "tflite": """
from ai_edge_litert.interpreter import Interpreter
serve = Interpreter(f"{folder}/model.tflite").get_signature_runner("serve")
score = lambda images: serve(image=images)["probabilities"]
""",
}


# Which are not there, as if they were not installed.
ABSENT = {
    "savedmodel": ("keras", "cxr_records"),
    "onnx": ("keras", "cxr_records", "tensorflow", "onnx"),
    "tflite": ("keras", "cxr_records", "tensorflow"),
}


def served(format: str, folder: Path, images: np.ndarray) -> list[np.ndarray]:
    """Scores by a fresh process with the runtime: of the first image, of all by fives, of these again."""
    np.save(folder.parent / "images.npy", images)
    code = (
        "import sys; folder, beside, *absent = sys.argv[1:]\n"
        "sys.modules.update(dict.fromkeys(absent))\n" + SERVERS[format] + "import numpy as np\n"
        "images = np.load(f'{beside}/images.npy')\n"
        "fives = lambda: np.concatenate([score(images[n : n + 5]) for n in range(0, len(images), 5)])\n"
        "scores = [score(images[:1]), fives(), fives()]\n"
        "np.savez(f'{beside}/scores.npz', *scores)\n"
    )
    words = [sys.executable, "-c", code, str(folder), str(folder.parent), *ABSENT[format]]
    done = subprocess.run(words, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    with np.load(folder.parent / "scores.npz") as scores:
        return [scores[name].copy() for name in scores.files]


def assert_same(model: keras.Model, images: np.ndarray, scores: list[np.ndarray]) -> None:
    """Asserts that what `served` returned is what the model predicts."""
    expected = model.predict(images, verbose=0)
    one, all_of_them, again = scores
    assert (one.shape, all_of_them.dtype) == ((1, expected.shape[1]), np.float32)
    np.testing.assert_allclose(one, expected[:1], rtol=0, atol=1e-5)
    np.testing.assert_allclose(all_of_them, expected, rtol=0, atol=1e-5)
    np.testing.assert_array_equal(all_of_them, again)


def pixels(paths: list[Path], size: int = 32) -> np.ndarray:
    """uint8 [n, size, size, 1]: image files, prepared as model.json says."""
    decoded = [decode_image(path.read_bytes(), ImageFormat(size)).pixels for path in paths]
    return np.stack(decoded)[..., np.newaxis]


def names_below(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


@pytest.fixture(scope="module")
def run(trained_run, tmp_path_factory) -> Path:
    """A finished and evaluated run. Leave it as it is; `copied_run` may be changed."""
    run = Path(shutil.copytree(trained_run, tmp_path_factory.mktemp("export") / "run"))
    predict_run(str(run))
    evaluate_into(str(run), draws=0)
    return run


@pytest.fixture
def copied_run(run, tmp_path) -> Path:
    return Path(shutil.copytree(run, tmp_path / "run"))


@pytest.fixture(scope="module")
def exported(run, tmp_path_factory) -> dict[str, Path]:
    """The run's model in each format. Leave them as they are."""
    folders = {format: tmp_path_factory.mktemp(format) / "served" for format in KINDS}
    for format, folder in folders.items():
        assert export_run(str(run), str(folder), format).warnings == missing_points(run)
    return folders


def missing_points(run: Path) -> tuple[str, ...]:
    """What is said of classes of which validation has no positive."""
    classes = json.loads((run / "metrics.json").read_text())["classes"]
    lacks = [name for name in FINDINGS if classes[name]["operating_point"] is None]
    assert lacks
    return (f"no operating point of {', '.join(lacks)}: without positives none can be chosen",)


@pytest.fixture
def with_model(run, tmp_path) -> Callable[[Callable], Path]:
    """Returns a run that ended with another network, made of images [batch, 32, 32, 1] and a ModelSpec."""

    def with_model(network: Callable) -> Path:
        changed = Path(shutil.copytree(run, tmp_path / "changed", dirs_exist_ok=True))
        spec = models.ModelSpec(14, bias=np.full(14, -1.0))
        images = keras.Input((32, 32, 1), dtype="uint8", name="image")
        scaled = keras.layers.Rescaling(1 / 60, offset=-2.0, dtype="float32")(images)
        logits = network(scaled, spec)
        model = models.with_probabilities(keras.Model(images, logits), "multilabel")
        model.save(tmp_path / "model.keras")
        digests.write(str(changed / "model.keras"), (tmp_path / "model.keras").read_bytes())
        return changed

    return with_model


@pytest.fixture(scope="module")
def images(lookalike) -> np.ndarray:
    """Five look-alike images, and five real ones behind them where these are at hand."""
    real = Path(__file__).parents[2] / "shared" / "nih" / "images"
    paths = sorted(lookalike.images.rglob("*.png"))[:5]
    return pixels(paths + sorted(real.rglob("*.png"))[:5])


@pytest.fixture(scope="module", params=KINDS)
def scores(request, exported, images) -> list[np.ndarray]:
    """Of these images, as `served` returns them, by each format."""
    return served(request.param, exported[request.param], images)


def test_the_formats_own_runtime_gives_what_the_run_predicts(run, images, scores):
    first = [each[:5] for each in scores]

    assert_same(load_model(open_run(str(run))), images[:5], first)


def test_so_it_does_on_real_images(run, images, scores, nih):
    assert len(images) == 10
    _, *others = scores
    model = load_model(open_run(str(run)))
    for each in others:
        np.testing.assert_allclose(each[5:], model.predict(images[5:], verbose=0), rtol=0, atol=1e-5)
    assert np.abs(others[0][5:] - others[0][:5]).max() > 1e-3


def test_model_json_says_all_that_a_server_must_know(run, exported):
    about = json.loads((exported["onnx"] / "model.json").read_text())

    assert (about["format"], about["version"]) == ("cxr_records export", 1)
    assert about["notice"].startswith("Scores of this model are no diagnosis.")
    assert about["classes"] == list(FINDINGS)
    assert (about["task"], about["model_format"]) == ("multilabel", "onnx")
    assert about["input"]["shape"] == ["batch", 32, 32, 1]
    assert (about["input"]["name"], about["input"]["dtype"], about["input"]["size"]) == ("image", "uint8", 32)
    assert (about["input"]["channels"], about["input"]["resample"]) == (1, "bilinear")
    assert len(about["input"]["preparation"]) == 2
    assert about["output"]["shape"] == ["batch", 14]
    assert about["dataset_id"] == open_run(str(run)).dataset_id
    assert about["run"]["versions"] == json.loads((run / "config.json").read_text())["versions"]
    assert about["checked"]["largest_difference"] < 1e-5
    assert set(about["converted_by"]) == {
        "cxr_records", "keras", "tensorflow", "onnx", "tf2onnx", "onnxruntime"
    }  # fmt: skip
    metrics = json.loads((run / "metrics.json").read_text())
    points = {name: measured["operating_point"] for name, measured in metrics["classes"].items()}
    assert about["operating_points"] == points
    assert {point["chosen_on"] for point in points.values() if point} == {"validation"}
    assert "of split test" in about["operating_points_note"]
    assert list(about["calibration"]["classes"]) == list(FINDINGS)
    assert {"slope", "offset", "shift"} <= set(about["calibration"]["classes"]["Mass"])
    assert '"bins' not in json.dumps(about)
    assert about["calibration_note"].startswith("a class that has slope and offset: sigmoid(slope * (logit(")


@pytest.mark.parametrize("format", KINDS)
def test_model_json_holds_the_sha256_of_every_file(exported, format):
    folder = exported[format]
    about = json.loads((folder / "model.json").read_text())

    assert sorted(about["files"]) == [name for name in names_below(folder) if name != "model.json"]
    for name, file in about["files"].items():
        data = (folder / name).read_bytes()
        assert file == {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    assert (folder / about["model"]["file"]).exists()


def test_the_command_prints_one_object_and_needs_no_dataset(copied_run, tmp_path, capfd):
    config = json.loads((copied_run / "config.json").read_text())
    del config["checksum"]
    gone = digests.sealed({**config, "dataset": str(tmp_path / "gone")})
    (copied_run / "config.json").write_bytes(gone)
    words = ["export", str(copied_run), "--format", "onnx", "--out", str(tmp_path / "served")]

    assert run_command([*words, "--json"]) == 0

    out, err = capfd.readouterr()
    about = json.loads((tmp_path / "served" / "model.json").read_text())
    del about["checksum"]
    assert json.loads(out) == {
        "out": str(tmp_path / "served"),
        **about,
        "warnings": list(missing_points(copied_run)),
    }
    assert err == f"warning: {missing_points(copied_run)[0]}\n"

    assert run_command(words) == 0  # an export of our own may be replaced
    model, use = capfd.readouterr().out.splitlines()
    assert re.fullmatch(
        rf"{tmp_path}/served/model.onnx: 0.8 MB, scores by its own runtime within \S+ of the run's", model
    )
    assert use == f"how to use it: {tmp_path}/served/model.json"
    assert names_below(tmp_path / "served") == ["model.json", "model.onnx"]
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_an_unfinished_run_is_refused_in_one_line(run, tmp_path, capfd):
    (tmp_path / "run").mkdir()
    shutil.copy(run / "config.json", tmp_path / "run")

    assert run_command(["export", str(tmp_path / "run"), "--out", str(tmp_path / "served")]) == 2
    assert capfd.readouterr().err == (
        f"Error: {tmp_path}/run: found no model.keras; run its train command again until it ends\n"
    )
    assert not (tmp_path / "served").exists()


def test_an_unknown_format_is_refused_in_the_commands_words(run, tmp_path, capfd):
    words = ["export", str(run), "--format", "onx", "--out", str(tmp_path / "served")]

    assert run_command(words) == 2
    assert capfd.readouterr().err == (
        "Error: --format onx: unknown (did you mean onnx?); expected one of savedmodel, onnx, tflite\n"
    )


def _stranger(folder: Path) -> str:
    (folder / "saved_model" / "mine.txt").write_text("mine")
    return "holds saved_model/mine.txt, which no export has written; name another folder"


def _without_about(folder: Path) -> str:
    (folder / "model.json").unlink()
    return "is not empty and no export of ours (it holds saved_model); name another"


def _edited(folder: Path) -> str:
    about = json.loads((folder / "model.json").read_text())
    about["operating_points"]["Mass"] = {"threshold": 0.5}
    (folder / "model.json").write_text(json.dumps(about))
    return ": model.json in it is none of ours, or was changed since; name another folder"


def _tuned(folder: Path) -> str:
    (folder / "saved_model" / "saved_model.pb").write_bytes(b"another")
    return ": saved_model/saved_model.pb was changed since its export; name another folder"


def _linked(folder: Path) -> str:
    (folder / "assets").symlink_to(folder.parent)
    return "holds assets, which no export has written; name another folder"


@pytest.mark.parametrize("change", [_stranger, _without_about, _edited, _tuned, _linked])
def test_what_it_did_not_make_is_not_replaced(run, exported, tmp_path, change):
    folder = Path(shutil.copytree(exported["savedmodel"], tmp_path / "served"))
    message = change(folder)
    before = {name: (folder / name).read_bytes() for name in names_below(folder)}

    with pytest.raises(UsageError) as caught:
        export_run(str(run), str(folder))

    assert str(caught.value).replace(" :", ":") == f"`out={folder}` {message}".replace("` :", "`:")
    assert {name: (folder / name).read_bytes() for name in names_below(folder)} == before


def test_another_format_and_a_file_are_no_place_for_it(run, exported, tmp_path):
    folder = exported["onnx"]
    with pytest.raises(UsageError, match="holds an export as onnx; name another folder for tflite"):
        export_run(str(run), str(folder), "tflite")
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match=r"file` is no folder; name another"):
        export_run(str(run), str(tmp_path / "file"))


def test_a_model_that_the_runtime_scores_otherwise_is_not_handed_over(run, exported, tmp_path, monkeypatch):
    folder = Path(shutil.copytree(exported["onnx"], tmp_path / "served"))
    before = {name: (folder / name).read_bytes() for name in names_below(folder)}
    kind = KINDS["onnx"]
    wrong = export._Kind(
        kind.file, (), kind.write, lambda path: lambda images: kind.load(path)(255 - images), kind.call
    )
    monkeypatch.setitem(export.KINDS, "onnx", wrong)

    with pytest.raises(CxrError, match=r"as onnx its model gives other scores than in the run, by up to "):
        export_run(str(run), str(folder), "onnx")

    assert {name: (folder / name).read_bytes() for name in names_below(folder)} == before
    assert [path.name for path in tmp_path.iterdir()] == ["served"]


def test_an_operation_that_a_format_lacks_is_named(with_model, tmp_path, capfd):
    def network(images, spec):
        return spec.head(keras.ops.erfinv(keras.layers.GlobalAveragePooling2D()(images) / 10))

    run = with_model(network)
    for format, others in (("onnx", "savedmodel, tflite"), ("tflite", "savedmodel, onnx")):
        words = ["export", str(run), "--format", format, "--out", str(tmp_path / format)]
        assert run_command(words) == 1
        assert capfd.readouterr().err == (
            f"Error: {run}: its model cannot be written as {format} (it has no operation for Erfinv); "
            f"others: {others}\n"
        )
        assert not (tmp_path / format).exists()
    assert export_run(str(run), str(tmp_path / "saved")).about["checked"]["largest_difference"] < 1e-5


@pytest.mark.parametrize(
    "format", ["onnx", *(pytest.param(name, marks=pytest.mark.slow) for name in ("savedmodel", "tflite"))]
)
def test_grouped_convolutions_and_the_exact_gelu_are_exported(with_model, tmp_path, format):
    """What ConvNeXt is made of: Keras marks the first for XLA, and ONNX has no erfc."""

    def network(images, spec):
        x = keras.layers.Conv2D(8, 3, padding="same")(images)
        x = keras.layers.Conv2D(8, 3, groups=8, padding="same")(x)
        x = keras.layers.Conv2D(8, 3, strides=2, groups=2)(keras.layers.Activation("gelu")(x))
        return spec.head(keras.layers.GlobalAveragePooling2D()(x))

    done = export_run(str(with_model(network)), str(tmp_path / "served"), format)

    assert done.about["checked"]["largest_difference"] < 1e-5


def test_a_model_that_was_saved_in_mixed_precision_is_exported_in_float32(with_model, tmp_path):
    """As runs of before did."""

    def network(images, spec):
        x = keras.layers.Conv2D(8, 3, kernel_initializer=keras.initializers.RandomNormal(stddev=0.5, seed=0))(
            images
        )
        features = keras.layers.GlobalAveragePooling2D()(x)
        initial = keras.initializers.RandomNormal(stddev=1.0, seed=1)
        return keras.layers.Dense(spec.num_outputs, kernel_initializer=initial, dtype="float32")(features)

    plain = load_model(open_run(str(with_model(network))))
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        run = with_model(network)
    finally:
        keras.config.set_dtype_policy("float32")
    images = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 1)).astype(np.uint8)
    rough = load_model(open_run(str(run))).predict(images, verbose=0)
    assert np.abs(rough - plain.predict(images, verbose=0)).max() > 1e-5

    done = export_run(str(run), str(tmp_path / "served"), "onnx")

    assert done.about["model"]["precision"] == "float32"
    assert_same(plain, images, served("onnx", tmp_path / "served", images))


def test_without_an_evaluation_it_says_how_to_get_operating_points(copied_run, tmp_path):
    (copied_run / "metrics.json").unlink()

    done = export_run(str(copied_run), str(tmp_path / "served"), "onnx")

    note = (
        f"no operating points: {copied_run} has no metrics.json; cxr-records evaluate, then export again, "
        "adds them"
    )
    assert done.warnings == (note,)
    assert (done.about["operating_points"], done.about["operating_points_note"]) == (None, note)
    assert (done.about["calibration"], done.about["calibration_note"]) == (None, None)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (
            lambda run: (run / "metrics.json").write_text((run / "metrics.json").read_text() + " "),
            "metrics.json is damaged: its bytes are not those that were written",
        ),
        (lambda run: (run / "predictions.parquet").unlink(), "metrics.json is of a model before this one"),
        (
            lambda run: (run / "predictions.parquet").write_bytes(b"others"),
            "metrics.json is of other scores than predictions.parquet",
        ),
    ],
)
def test_an_evaluation_that_is_not_of_this_model_is_left_out_and_that_is_said(copied_run, change, why):
    change(copied_run)

    measured, notes = export._measured(open_run(str(copied_run)))

    assert measured["operating_points"] is None
    said = f"no operating points: {copied_run}/{why}; cxr-records evaluate, then export again, adds them"
    assert notes == [said]


def test_points_that_were_measured_by_other_labels_are_said_to_be(copied_run):
    content = json.loads((copied_run / "metrics.json").read_text())
    content["identity"]["labels"] = {"file": "readers.csv"}
    digests.write(str(copied_run / "metrics.json"), json.dumps(content).encode())

    measured, _ = export._measured(open_run(str(copied_run)))

    said = measured["operating_points_note"]
    assert said.endswith(" of split test, by the labels of readers.csv and not NIH's")


def test_a_missing_package_is_one_line(run, tmp_path, monkeypatch, capfd):
    monkeypatch.setitem(sys.modules, "tf2onnx", None)

    assert run_command(["export", str(run), "--format", "onnx", "--out", str(tmp_path / "x")]) == 1
    assert capfd.readouterr().err == "Error: tf2onnx is not installed; pip install '.[export]' in a clone\n"


def test_an_export_goes_to_a_url_and_is_replaced_there(run, tmp_path):
    for _ in range(2):
        done = export_run(str(run), "memory://served/one", "onnx")
    import fsspec

    held = fsspec.filesystem("memory")
    assert sorted(held.find("/served/one")) == ["/served/one/model.json", "/served/one/model.onnx"]
    data = held.cat_file("/served/one/model.onnx")
    assert done.about["files"]["model.onnx"]["sha256"] == hashlib.sha256(data).hexdigest()
    held.pipe_file("/served/one/mine", b"mine")
    with pytest.raises(UsageError, match="holds mine, which no export has written"):
        export_run(str(run), "memory://served/one", "onnx")


@pytest.mark.slow
def test_a_run_of_jax_is_exported_whatever_the_backend(dataset, tmp_path):
    """The command takes TensorFlow by itself; the function says what to set."""
    environment = {**os.environ, "KERAS_BACKEND": "jax"}
    cxr = [sys.executable, "-m", "cxr_records"]
    words = [
        "train",
        str(dataset),
        "--run",
        str(tmp_path / "run"),
        "--set",
        "epochs=1",
        "--set",
        "batch_size=16",
    ]
    subprocess.run([*cxr, *words], env=environment, check=True, capture_output=True, timeout=240)
    words = ["export", str(tmp_path / "run"), "--format", "onnx", "--out", str(tmp_path / "served")]
    subprocess.run([*cxr, *words], env=environment, check=True, capture_output=True, timeout=240)
    images = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 1)).astype(np.uint8)

    assert json.loads((tmp_path / "served" / "model.json").read_text())["run"]["versions"]["backend"] == "jax"
    trained = load_model(open_run(str(tmp_path / "run")))
    assert_same(trained, images, served("onnx", tmp_path / "served", images))

    code = "import sys; from cxr_records.trainers.export import export_run as e; e(*sys.argv[1:])"
    words = [sys.executable, "-c", code, str(tmp_path / "run"), str(tmp_path / "other")]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=240)
    assert done.stderr.splitlines()[-1] == (
        "cxr_records.errors.UsageError: KERAS_BACKEND=jax: models are exported by Keras on TensorFlow, those "
        "of runs on other backends too; set KERAS_BACKEND=tensorflow before Keras is imported"
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in models.MODELS if name != "small_cnn"])
def test_every_architecture_is_exported_in_every_format(run, tmp_path, lookalike, name):
    changed = Path(shutil.copytree(run, tmp_path / "changed"))
    model = models.make_model(name, 14, 32, 120.0, 60.0, bias=np.full(14, -1.0), dropout=0.2)
    models.with_probabilities(model, "multilabel").save(tmp_path / "model.keras")
    digests.write(str(changed / "model.keras"), (tmp_path / "model.keras").read_bytes())
    images = pixels(sorted(lookalike.images.rglob("*.png"))[:5])

    for format in KINDS:
        done = export_run(str(changed), str(tmp_path / format), format)
        assert done.about["checked"]["largest_difference"] < 1e-5
        assert_same(load_model(open_run(str(changed))), images, served(format, tmp_path / format, images))
