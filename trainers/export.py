"""A run's model for servers: as SavedModel, ONNX or TFLite, and beside it a file that says how to use it.

What is exported computes in float32, takes raw uint8 images and gives probabilities. It is made by Keras on
TensorFlow, whatever the run was trained with, and scored by its own runtime before it is handed over.
"""

import contextlib
import dataclasses
import importlib
import importlib.metadata
import json
import logging
import os
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from cxr_records import storage
from cxr_records.errors import CxrError, UsageError
from cxr_records.findings import nearest
from cxr_records.images import JPEG_QUALITY, ImageFormat
from cxr_records.quiet import stderr_kept
from cxr_records.seeding import generator
from cxr_records.trainers import digests, named, predict, runs
from cxr_records.trainers.evaluation.predictions import evaluation_of
from cxr_records.urls import redacted_text

ABOUT_FILE = "model.json"
INPUT, OUTPUT = "image", "probabilities"
NO_DIAGNOSIS = (
    "Scores of this model are no diagnosis. It was trained on labels that a program took from reports, and "
    "is no medical device: nobody is to be treated, or not treated, by its scores alone."
)
# Between the run's model and what was exported, on the images that both score.
AGREES_WITHIN = 1e-5
_REFUSED_FROM = 1e-3

# How the figures of `results.ClassCalibration` are used; the thresholds are not of what comes out then.
_CALIBRATED = {
    "sigmoid": "a class that has slope and offset: sigmoid(slope * (logit(probability) - shift) + offset)",
    "softmax": (
        "exp(log(probability) - shift) of each class, divided by their sum; then, of a class that has slope "
        "and offset, sigmoid(slope * logit(of that) + offset)"
    ),
}
_FORMAT = "cxr_records export"
_VERSION = 1
_CHECKED_BATCHES = (1, 5)


@dataclasses.dataclass(frozen=True)
class Export:
    """What `export_run` has written.

    Attributes:
        path: the folder.
        model: the model in it, a file or folder.
        about: what model.json says.
        warnings: what is to be said of it.
    """

    path: str
    model: str
    about: dict[str, Any]
    warnings: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class _Kind:
    """A format: the name of its file or folder, the packages that it needs, how it is written and called."""

    file: str
    packages: tuple[str, ...]
    write: Callable[[keras.Model, Path], dict[str, Any]]
    load: Callable[[Path], Callable[[np.ndarray], np.ndarray]]
    call: str


def export_run(run: str, out: str, format: str = "savedmodel") -> Export:
    """Writes a run's model in a format that servers load, and model.json beside it.

    The run's dataset is not needed. The folder is whole or absent; an earlier export in the same format is
    replaced.

    Args:
        run: the run directory.
        out: a new or empty folder, local or a URL, or one with such an export.
        format: "savedmodel", "onnx" or "tflite".

    Raises:
        UsageError: there is no such format, the run is not finished, the folder holds something else, or
            Keras does not run on TensorFlow.
        CxrError: the model is damaged, cannot be written in this format, or does not give there what it gives
            in the run.
        ModuleNotFoundError: a package of the extra `export` is not installed.
    """
    if format not in KINDS:
        raise UsageError(
            f"`format={format}`: unknown{nearest(format, list(KINDS))}; expected one of {', '.join(KINDS)}"
        )
    if keras.backend.backend() != "tensorflow":
        raise UsageError(
            f"KERAS_BACKEND={keras.backend.backend()}: models are exported by Keras on TensorFlow, those of "
            "runs on other backends too; set KERAS_BACKEND=tensorflow before Keras is imported"
        )
    kind, out = KINDS[format], storage.absolute(out)
    for package in kind.packages:
        importlib.import_module(package)
    opened = runs.open_run(run)
    _check_out(out, format)
    points, notes = _measured(opened)
    model = _in_float32(predict.load_model(opened), opened)
    with storage.atomic_folder(out, ABOUT_FILE) as folder:
        with _said_of(opened, format):
            details = kind.write(model, folder / kind.file)
            difference = _largest_difference(model, kind.load(folder / kind.file))
        if not difference < _REFUSED_FROM:  # also refuses NaN
            raise CxrError(
                f"{run}: as {format} its model gives other scores than in the run, by up to "
                f"{difference:.2g}; nothing was written"
            )
        if difference > AGREES_WITHIN:
            notes.append(
                f"as {format} the model's scores differ from the run's by up to {difference:.1g}, expected "
                f"at most {AGREES_WITHIN:g}"
            )
        about = {
            **_about(opened, format, details),
            **points,
            "checked": {
                "batches": list(_CHECKED_BATCHES),
                "largest_difference": float(f"{difference:.3g}"),
                "text": "scores of drawn images by the format's own runtime, against the run's model",
            },
            "files": _files_of(folder),
            "converted_by": _versions(kind),
        }
        about = json.loads(redacted_text(json.dumps(about)))
        (folder / ABOUT_FILE).write_bytes(digests.sealed(about))
    return Export(out, storage.join(out, kind.file), about, tuple(notes))


def _check_out(out: str, format: str) -> None:
    """Refuses a folder with anything in it but a whole export in this format.

    Raises:
        UsageError: it holds something else.
    """
    if not storage.is_url(out) and os.path.lexists(out) and not os.path.isdir(out):
        raise UsageError(f"`out={out}` is no folder; name another")
    about_path, names = storage.join(out, ABOUT_FILE), storage.list_names(out)
    if not names:
        return
    if ABOUT_FILE not in names:
        raise UsageError(
            f"`out={out}` is not empty and no export of ours (it holds {names[0]}); name another"
        )
    try:
        about = digests.unsealed(about_path, storage.read_bytes(about_path))
        ours = about["format"] == _FORMAT
        before, files = about["model_format"], about["files"]
    except (CxrError, KeyError):
        ours = False
    if not ours:
        raise UsageError(
            f"`out={out}`: {ABOUT_FILE} in it is none of ours, or was changed since; name another folder"
        )
    if before != format:
        raise UsageError(f"`out={out}` holds an export as {before}; name another folder for {format}")
    for name in _files_below(out):
        if name == ABOUT_FILE:
            continue
        if name not in files:
            raise UsageError(f"`out={out}` holds {name}, which no export has written; name another folder")
        if storage.file_sha256(storage.join(out, *name.split("/"))) != files[name]["sha256"]:
            raise UsageError(f"`out={out}`: {name} was changed since its export; name another folder")


def _files_below(folder: str) -> list[str]:
    """All files below a folder, by their paths from there, and links as if they were files."""
    if storage.is_url(folder):
        root = storage.find_files(storage.join(folder, ABOUT_FILE))[0].url.removesuffix(ABOUT_FILE)
        return [file.url.removeprefix(root) for file in storage.find_files(folder)]
    found = []
    for above, folders, files in os.walk(folder):
        links = [name for name in folders if os.path.islink(os.path.join(above, name))]
        found += [os.path.relpath(os.path.join(above, name), folder) for name in (*files, *links)]
    return sorted(found)


def _about(run: runs.Run, format: str, details: dict[str, Any]) -> dict[str, Any]:
    kind, size, task = KINDS[format], run.image_format.size, run.task
    softmax = task.kind == "multiclass"
    return {
        "format": _FORMAT,
        "version": _VERSION,
        "notice": NO_DIAGNOSIS,
        "model_format": format,
        "model": {"file": kind.file, "precision": "float32", **details},
        "call": kind.call.replace("SIZE", str(size)),
        "task": task.name,
        "classes": list(run.score_names),
        "input": {
            "name": INPUT,
            "shape": ["batch", size, size, 1],
            "dtype": "uint8",
            "size": size,
            "channels": 1,
            "values": "grey levels from 0, black, to 255; the model normalises them itself",
            "resample": run.image_format.resample,
            "codec": run.image_format.codec,
            "preparation": _preparation(run.image_format),
        },
        "output": {
            "name": OUTPUT,
            "shape": ["batch", len(run.score_names)],
            "dtype": "float32",
            "values": (
                "a probability of each class, in the order of classes; "
                + ("together 1" if softmax else "each for itself, together any sum")
            ),
        },
        "dataset_id": run.dataset_id,
        "run": {
            "name": run.path.rstrip("/").rpartition("/")[2],
            "model": run.config.model,
            "loss": run.config.loss,
            "precision": run.config.precision,
            "versions": run.versions,
        },
    }


def _preparation(image_format: ImageFormat) -> list[str]:
    """What a server does with a file before it asks the model; `images.decode_image` does it."""
    side, resample = image_format.size, image_format.resample
    steps = [
        "decode the file (PNG, JPEG or DICOM) to 8-bit grey: colours by ITU-R 601-2 luma as Pillow's "
        "convert('L'), alpha dropped, 16-bit grey times 255/65535, EXIF's orientation applied; DICOM by its "
        "modality table or slope, then its VOI table or first window, MONOCHROME1 inverted",
        f"resize to {side} x {side} pixels with Pillow's filter {resample}, which averages where it makes "
        "smaller; the aspect is squashed",
    ]
    if image_format.codec == "jpeg":
        steps.append(f"encode as JPEG of quality {JPEG_QUALITY} and decode again, as images were in training")
    return steps


def _measured(run: runs.Run) -> tuple[dict[str, Any], list[str]]:
    """Operating points and calibration of the run's evaluation, and what is to be said of them."""
    found, why = evaluation_of(run)
    if found is None:
        note = f"no operating points: {why}; cxr-records evaluate, then export again, adds them"
        nothing = dict.fromkeys(("operating_points", "calibration", "calibration_note"))
        return {**nothing, "operating_points_note": note}, [note]
    identity = found["identity"]
    note = (
        f"thresholds on the probabilities that come out, positive from the threshold on; measured on "
        f"{identity['images']:,} images of {identity['patients']:,} patients of split {identity['split']}"
    )
    if given := identity.get("labels"):
        note += f", by the labels of {given['file']} and not NIH's"
    points = {name: found["classes"].get(name, {}).get("operating_point") for name in run.score_names}
    lacks = [name for name, point in points.items() if point is None]
    notes = (
        [f"no operating point of {', '.join(lacks)}: without positives none can be chosen"] if lacks else []
    )
    measured = {"operating_points": points, "operating_points_note": note}
    calibration = _without_bins(found.get("calibration"))
    how = _CALIBRATED["softmax" if run.task.kind == "multiclass" else "sigmoid"] if calibration else None
    return {**measured, "calibration": calibration, "calibration_note": how}, notes


def _without_bins(value: Any) -> Any:
    """Leaves the points of diagrams out."""
    if isinstance(value, Mapping):
        return {key: _without_bins(each) for key, each in value.items() if not key.startswith("bins")}
    return value


def _in_float32(model: keras.Model, run: runs.Run) -> keras.Model:
    """Returns a model of the same weights whose every layer computes in float32, as runtimes on CPUs do.

    Runs of before saved their models in the precision of training.
    """

    def plain(policy: Any) -> Any:
        if isinstance(policy, Mapping):
            name = policy.get("config", {}).get("name") if policy.get("class_name") == "DTypePolicy" else None
            if isinstance(name, str) and name.startswith("mixed_"):
                return {**policy, "config": {**policy["config"], "name": "float32"}}
            return {key: plain(each) for key, each in policy.items()}
        return [plain(each) for each in policy] if isinstance(policy, list) else policy

    serialized = keras.saving.serialize_keras_object(model)
    changed = plain(serialized)
    if changed == serialized:
        return model
    custom = named.objects(run.config.to_json(), run.code)
    twin = keras.saving.deserialize_keras_object(changed, custom_objects=custom)
    twin.set_weights(model.get_weights())
    held: keras.Model = twin
    return held


def _largest_difference(model: keras.Model, scorer: Callable[[np.ndarray], np.ndarray]) -> float:
    """How far a runtime's scores of drawn images are from the model's."""
    size = model.input.shape[1]
    random, most = generator(0, "export", size), max(_CHECKED_BATCHES)
    ramps = random.integers(64, 256, (most, 1, 1)) * np.linspace(0, 1, size)  # from black to some grey
    noisy = ramps + random.normal(0, 24, (most, size, size))
    drawn = np.clip(noisy, 0, 255).astype(np.uint8)[..., np.newaxis]
    differences = []
    for count in _CHECKED_BATCHES:
        expected = np.asarray(model.predict(drawn[:count], verbose=0))
        found = scorer(drawn[:count])
        if found.shape != expected.shape or found.dtype != np.float32:
            raise ValueError(f"{count} images gave {found.dtype} {list(found.shape)}")
        differences.append(np.abs(found - expected).max())
    return float(np.max(differences))


@contextlib.contextmanager
def _said_of(run: runs.Run, format: str) -> Iterator[None]:
    """Turns whatever a converter or a runtime raises into one line."""
    try:
        # Converters and runtimes write to the process' stderr, from Python and from C++.
        logging.getLogger("tf2onnx").setLevel(logging.CRITICAL)
        with stderr_kept():
            yield
    except (CxrError, MemoryError, ModuleNotFoundError):
        raise
    except Exception as error:  # as many kinds as there are ways for a graph not to fit
        text = str(error)
        missing = sorted(set(re.findall(r"\b(?:tf|Flex)\.?([A-Z]\w+)", text)))
        reason = f"it has no operation for {', '.join(missing)}" if missing else " ".join(text.split())[:300]
        others = ", ".join(other for other in KINDS if other != format)
        raise CxrError(
            f"{run.path}: its model cannot be written as {format} ({reason}); others: {others}"
        ) from error


# Formats


def _signature(model: keras.Model) -> tuple[Callable[[Any], dict[str, Any]], list[tf.TensorSpec]]:
    """The function that is exported, and what it takes: any number of images."""

    def serve(image: Any) -> dict[str, Any]:
        return {OUTPUT: model(image, training=False)}

    return serve, [tf.TensorSpec((None, *model.input.shape[1:]), tf.uint8, name=INPUT)]


@contextlib.contextmanager
def _inlined() -> Iterator[None]:
    """Traces functions that Keras marks for XLA, such as grouped convolutions, as part of what calls them."""
    before = tf.config.functions_run_eagerly()
    tf.config.run_functions_eagerly(True)
    try:
        yield
    finally:
        tf.config.run_functions_eagerly(before)


def _write_saved_model(model: keras.Model, path: Path) -> dict[str, Any]:
    serve, signature = _signature(model)
    archive = keras.export.ExportArchive()
    archive.track(model)
    archive.add_endpoint("serve", serve, input_signature=signature)
    archive.write_out(str(path), verbose=False)
    return {"signatures": ["serving_default", "serve"]}


def _load_saved_model(path: Path) -> Callable[[np.ndarray], np.ndarray]:
    loaded = tf.saved_model.load(str(path))

    def score(images: np.ndarray) -> np.ndarray:
        found: np.ndarray = loaded.signatures["serving_default"](**{INPUT: tf.constant(images)})[
            OUTPUT
        ].numpy()
        return found

    return score


def _write_onnx(model: keras.Model, path: Path) -> dict[str, Any]:
    import onnx
    import tf2onnx

    serve, signature = _signature(model)
    with _inlined():
        proto, _ = tf2onnx.convert.from_function(
            tf.function(serve, input_signature=signature),
            signature,
            custom_op_handlers={"Erfc": (_erfc_in_onnx, [])},
        )
    opset = {each.domain: each.version for each in proto.opset_import}
    # The converter passes over what it does not know.
    unknown = {node.op_type for node in proto.graph.node if not onnx.defs.has(node.op_type, node.domain)}
    if unknown:
        raise ValueError(" ".join(f"tf.{name}" for name in sorted(unknown)))
    # Its own names of the number of images are those of the moment.
    for tensor in (*proto.graph.input, *proto.graph.output):
        tensor.type.tensor_type.shape.dim[0].dim_param = "batch"
    onnx.checker.check_model(proto)
    path.write_bytes(proto.SerializeToString(deterministic=True))
    return {"opset": opset[""], "ir_version": proto.ir_version}


def _erfc_in_onnx(ctx: Any, node: Any, name: str, args: Any) -> None:
    """1 - erf(x), which the exact GELU is made of; ONNX has no erfc, and tf2onnx no word of it."""
    held = {"shapes": [ctx.get_shape(node.output[0])], "dtypes": [ctx.get_dtype(node.output[0])]}
    one = ctx.make_const(f"{name}_one", np.float32(1))
    ctx.remove_node(node.name)
    erf = ctx.make_node("Erf", node.input, **held)
    ctx.make_node("Sub", [one.output[0], erf.output[0]], name=node.name, outputs=node.output, **held)


def _load_onnx(path: Path) -> Callable[[np.ndarray], np.ndarray]:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])

    def score(images: np.ndarray) -> np.ndarray:
        found: np.ndarray = session.run([OUTPUT], {INPUT: images})[0]
        return found

    return score


def _write_tflite(model: keras.Model, path: Path) -> dict[str, Any]:
    serve, signature = _signature(model)
    folder = path.with_suffix(".saved_model")
    try:
        with _inlined():
            archive = keras.export.ExportArchive()
            archive.track(model)
            archive.add_endpoint("serve", serve, input_signature=signature)
            archive.write_out(str(folder), verbose=False)
        # TFLite's own operations alone: the runtime as it is installed has no others.
        converter = tf.lite.TFLiteConverter.from_saved_model(str(folder), signature_keys=["serve"])
        path.write_bytes(converter.convert())
    finally:
        storage.remove(str(folder))
    return {"signatures": ["serve"]}


def _load_tflite(path: Path) -> Callable[[np.ndarray], np.ndarray]:
    from ai_edge_litert.interpreter import Interpreter

    runner = Interpreter(model_path=str(path)).get_signature_runner("serve")

    def score(images: np.ndarray) -> np.ndarray:
        found: np.ndarray = runner(**{INPUT: images})[OUTPUT]
        return found

    return score


_IMAGES = "images uint8 [batch, SIZE, SIZE, 1]"
KINDS: Mapping[str, _Kind] = {
    "savedmodel": _Kind(
        "saved_model", (), _write_saved_model, _load_saved_model,
        "model = tf.saved_model.load('saved_model'); "
        f"model.serve(images)['{OUTPUT}'].numpy(), with {_IMAGES}",
    ),
    "onnx": _Kind(
        "model.onnx", ("onnx", "tf2onnx", "onnxruntime"), _write_onnx, _load_onnx,
        "session = onnxruntime.InferenceSession('model.onnx'); "
        f"session.run(['{OUTPUT}'], {{'{INPUT}': images}})[0], with {_IMAGES}",
    ),
    "tflite": _Kind(
        "model.tflite", ("ai_edge_litert",), _write_tflite, _load_tflite,
        "runner = ai_edge_litert.interpreter.Interpreter('model.tflite').get_signature_runner('serve'); "
        f"runner({INPUT}=images)['{OUTPUT}'], with {_IMAGES}",
    ),
}  # fmt: skip


def _files_of(folder: Path) -> dict[str, dict[str, Any]]:
    """Bytes and sha256 of every file below a folder, by its path from there."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        path.relative_to(folder).as_posix(): {
            "bytes": path.stat().st_size,
            "sha256": storage.file_sha256(str(path)),
        }
        for path in files
    }


def _versions(kind: _Kind) -> dict[str, str]:
    names = ("cxr_records", "keras", "tensorflow", *kind.packages)
    return {name: importlib.metadata.version(name) for name in names}
