"""Networks from raw uint8 images to logits: one that CPUs can train, EfficientNet-Lite0, four others.

Grey levels are normalised inside, by the mean and deviation of the dataset's training images, so a saved
model takes what a record holds. What is random in training stands before the network (`with_augmentation`),
or is taken out of the model that a run hands over (`inert`).
"""

import contextlib
import dataclasses
import functools
import io
import os
import random
import socket
import tempfile
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

import keras
import numpy as np

from cxr_records import storage
from cxr_records.errors import CxrError, UsageError
from cxr_records.trainers import augmentation, averaging, digests, efficientnet_lite, named

_APPLICATIONS = {
    "densenet121": "DenseNet121",  # Huang et al. 2017; the field's baseline since CheXNet
    "resnet50": "ResNet50",  # He et al. 2016
    "efficientnetv2b0": "EfficientNetV2B0",  # Tan and Le 2021
    "convnext_tiny": "ConvNeXtTiny",  # Liu et al. 2022
}
# The deviation of the pixels that the weights of ImageNet expect, where it is not 1: those of ResNet-50 come
# from Caffe, where grey levels were centred and not scaled; EfficientNet-Lite divided them by 128.
_SPREAD = {"resnet50": 58.0, "efficientnet_lite0": 58.0 / 128}
_GREY_LEVELS = "to_float"  # the layer behind which images are augmented
_WAYS: tuple[dict[str, bool], ...] = ({}, {}, {"training": False})  # in which a server may call a model
_SECONDS_TO_ANSWER = 20  # of the server that has ImageNet's weights
SMALL_CHANNELS = (32, 64, 96, 128)
SMALL_BELOW = 160  # pixels; from there on small_cnn looks at a quarter of the height and width


@dataclasses.dataclass(frozen=True, eq=False)
class ModelSpec:
    """What a model is to be like.

    Attributes:
        num_outputs: logits.
        dropout: share of the features that is dropped before the last layer.
        seed: of weights and dropout. Layers that are given none take theirs from it too.
        bias: float [num_outputs], what the last layer starts with; None for zeros.
        cosine_scale: logits are this times the cosine between features and the weights of the last layer;
            0 for a last layer as usual.
        pretrained: for networks of keras.applications: None, "imagenet", or a file of such weights.
        synchronized: whether batch statistics are to be those of all devices.
    """

    num_outputs: int
    dropout: float = 0.0
    seed: int = 0
    bias: np.ndarray | None = None
    pretrained: str | None = None
    synchronized: bool = False
    cosine_scale: float = 0.0

    def head(self, features: keras.KerasTensor) -> keras.KerasTensor:
        """Returns logits, float32 [batch, num_outputs], from features [batch, n]: dropout, a last layer.

        Its weights are those of the layer `head`, and of no other.
        """
        if self.dropout:
            with _seeded(self.seed, "dropout"):
                features = keras.layers.Dropout(self.dropout, name="dropout")(features)
        if self.cosine_scale:
            # In layers that Keras has, so that a saved model needs nothing of ours: features of length 1, and
            # weights that each step brings back to length 1, which they begin with.
            features = keras.layers.UnitNormalization(name="unit_features", dtype="float32")(features)
            cosines = keras.layers.Dense(
                self.num_outputs,
                use_bias=False,
                kernel_initializer=keras.initializers.Orthogonal(),
                kernel_constraint=keras.constraints.UnitNorm(axis=0),
                name="head",
                dtype="float32",
            )(features)
            return keras.layers.Rescaling(self.cosine_scale, name="scale", dtype="float32")(cosines)
        start = keras.initializers.Constant(0.0 if self.bias is None else np.asarray(self.bias, np.float32))
        head = keras.layers.Dense(self.num_outputs, bias_initializer=start, name="head", dtype="float32")
        return head(features)


class ModelMaker(Protocol):
    """Makes a network, of ours or of a user's, from Keras layers."""

    def __call__(self, images: keras.KerasTensor, spec: ModelSpec, /) -> keras.KerasTensor:
        """Returns logits, [batch, spec.num_outputs]; `spec.head(features)` makes them from features.

        Args:
            images: float32 [batch, size, size, 1], grey levels of mean 0 and deviation 1 over the training
                images, augmented in training.
            spec: what is asked for. The model that a run hands over is made by a second call, with a dropout
                of 0: it has to give the same weights, by path and shape.
        """


class Augmenter(Protocol):
    """Changes images at random in training alone, by Keras layers."""

    def __call__(self, images: keras.KerasTensor, /) -> keras.KerasTensor:
        """Returns images of the same shape.

        Args:
            images: float32 [batch, size, size, 1], grey levels 0 to 255.
        """


def make_model(
    name: str,
    num_outputs: int,
    size: int,
    mean: float,
    std: float,
    *,
    weights: str = "none",
    dropout: float = 0.0,
    seed: int = 0,
    bias: np.ndarray | None = None,
    synchronized: bool = False,
    cosine_scale: float = 0.0,
    say: Callable[[str], None] = lambda text: None,
) -> keras.Model:
    """Returns a model from uint8 [batch, size, size, 1] to logits, float32 [batch, num_outputs].

    Two processes with the same arguments make the same weights, bit for bit.

    Args:
        name: one of `MODELS`, or a `ModelMaker` of a user's, as `named.choose` takes it.
        num_outputs: logits.
        size: side of the images in pixels; keras.applications take 32 or more.
        mean: of the training images' grey levels, 0 to 255.
        std: their standard deviation.
        weights: "none", "imagenet" (fetched by Keras from the network), or a file: a run's model.keras or one
            of its checkpoints, of which a last layer of another shape stays fresh; or an .h5 that holds the
            weights of a network of keras.applications without its top, as Keras itself fetches them.
        dropout: share of the pooled features that is dropped in training.
        seed: of weights and dropout.
        bias: float [num_outputs], what the last layer starts with: log-odds or log-shares of the classes, so
            that training begins at the prior (Lin et al. 2017, section 4.1). None for zeros.
        synchronized: batch statistics of small_cnn over all devices of a tf.distribute strategy.
        cosine_scale: as `ModelSpec.cosine_scale`.
        say: told what was taken from a weights file, and that a user's model takes no dropout.

    Raises:
        UsageError: no such model or weights file; or a user's model fails, gives another shape, or cannot be
            saved.
        CxrError: ImageNet's weights cannot be fetched, or the file is of another network.
    """
    make = named.choose("model", name, MODELS)
    _check_weights(name, weights)
    _forget_names()
    # Keras puts these into the network alone; other files are of whole models.
    pretrained = weights if weights == "imagenet" or weights.endswith(".h5") else None
    with _seeded(seed, "network"):
        inputs = keras.Input((size, size, 1), dtype="uint8", name="image")
        # In float32 whatever the precision of the run: half of it would round the grey levels.
        x = keras.layers.Rescaling(1.0, name=_GREY_LEVELS, dtype="float32")(inputs)
        scale = _SPREAD.get(name, 1.0) / std
        x = keras.layers.Rescaling(scale, offset=-mean * scale, name="normalise", dtype="float32")(x)
        with _users("model", name):
            spec = ModelSpec(num_outputs, dropout, seed, bias, pretrained, synchronized, cosine_scale)
            logits = _of_shape(make(x, spec), (None, num_outputs), "logits")
            if logits.dtype != "float32":
                logits = keras.layers.Activation("linear", dtype="float32", name="to_logits")(logits)
            model = keras.Model(inputs, logits, name=name.rpartition(":")[2])
    if named.is_outside(name):
        _check_kept(model, name)
        if dropout and not any(map(_draws, model._flatten_layers())):
            say(f"warning: `dropout={dropout}`: nothing in {name} drops; end it with `spec.head(features)`")
    if weights != "none" and not pretrained:
        _take_weights(model, weights, named.objects({"model": name}, {}), say)
    return model


def with_probabilities(model: keras.Model, kind: str) -> keras.Model:
    """Returns a model that shares all weights and gives probabilities, float32.

    Args:
        model: of `make_model`.
        kind: "multiclass" (softmax), or "binary" or "multilabel" (sigmoids).
    """
    function = "softmax" if kind == "multiclass" else "sigmoid"
    last = keras.layers.Activation(function, dtype="float32", name="probabilities")
    return keras.Model(model.input, last(model.output), name=f"{model.name}_{function}")


def with_augmentation(model: keras.Model, augment: str, seed: int = 0) -> keras.Model:
    """Returns a model for training that shares all weights and changes images at random before the network.

    Args:
        model: of `make_model`.
        augment: "none"; "light": small random shifts (4%), turns (5°), zooms (6%), brightness (5%) and
            contrast (10%), each up and down; or an `Augmenter` of a user's, as `named.choose` takes it.
        seed: of the changes.

    Raises:
        UsageError: no such augmentation; or one of a user's fails or gives another shape.
    """
    augmented = named.choose("augment", augment, AUGMENTATIONS)
    levels = model.get_layer(_GREY_LEVELS).output
    with _seeded(seed, "augmentation"), _users("augment", augment):
        changed = _of_shape(augmented(levels), levels.shape, "images")
    if changed is levels:
        return model
    behind = keras.Model(levels, model.output, name=model.name)
    return keras.Model(model.input, behind(changed), name=f"{model.name}_augmented")


def inert(model: keras.Model) -> keras.Model:
    """Returns a model that shares all weights and holds no layer of Keras that draws at random.

    Keras' random layers for images act wherever nobody says that it is not training, in `model(x)` as a
    server calls it, and let what is behind them train too. Those in a user's own layers are left to
    `check_inert`.
    """

    stand_ins: list[keras.layers.Layer] = []

    def quiet(layer: keras.layers.Layer) -> keras.layers.Layer:
        if _is_noise(layer):
            stand_ins.append(keras.layers.Activation("linear", name=layer.name, dtype=layer.dtype_policy))
            return stand_ins[-1]
        is_graph = isinstance(layer, keras.Sequential) or hasattr(layer, "operations")
        return inert(layer) if is_graph else layer

    def call(layer: keras.layers.Layer, *inputs: Any, **options: Any) -> Any:
        # A random layer's training=True would be handed on to whatever comes behind it.
        return layer(*inputs) if layer in stand_ins else layer(*inputs, **options)

    if not any(map(_is_noise, model._flatten_layers())):
        return model
    in_a_row = isinstance(model, keras.Sequential)
    return keras.models.clone_model(model, clone_function=quiet, call_function=None if in_a_row else call)


def _is_noise(layer: keras.layers.Layer) -> bool:
    """Tells whether a layer does nothing but to draw, as Dropout, GaussianNoise and RandomRotation do."""
    if not type(layer).__module__.startswith("keras.") or layer.weights:
        return False
    if isinstance(layer, keras.Model | keras.layers.RandomCrop):  # which also cuts
        return False
    return bool(_draws(layer)) or type(layer).__name__ == "StochasticDepth"  # which has no seed of its own


def _draws(layer: keras.layers.Layer) -> int:
    """How many random states a layer and those in it hold; they are variables and no weights."""
    return len(layer.variables) - len(layer.weights)


def check_inert(model: keras.Model, trained: keras.Model, name: str, say: Callable[[str], None]) -> None:
    """Makes sure, before hours of training, that a user's model can be handed over.

    Args:
        model: as `inert` gave it.
        trained: the one whose weights it will take.
        name: of the user's function.
        say: told of what is random in training and could not be taken out.

    Raises:
        UsageError: its weights are others than those of the trained one; or it does not answer the same
            each time, or learns from what it is asked.
    """
    what = f"`model={name}`"
    here, there = ({w.path: tuple(w.shape) for w in averaging.own_weights(m)} for m in (model, trained))
    if here != there:
        odd = sorted(set(here.items()) ^ set(there.items()))[0][0]
        raise UsageError(
            f"{what}: {odd} differs between the model that is trained and the one without dropout that is "
            "saved; give the same weights whatever `spec.dropout` is"
        )
    side = model.input.shape[1]
    images = (np.arange(2 * side * side).reshape(2, side, side, 1) % 251).astype(np.uint8)
    drawing = [f"{layer.name} ({type(layer).__name__})" for layer in model.layers if _draws(layer)]
    before = _state(model)
    with named.calling(what, name):
        answers = [keras.ops.convert_to_numpy(model(images, **way)) for way in _WAYS]
    same = all(np.allclose(answer, answers[0], rtol=1e-4, atol=1e-5) for answer in answers)
    kept = all(np.array_equal(a, b) for a, b in zip(before, _state(model), strict=True))
    if not same or not kept:
        found = "gives other scores each time it is called" if not same else "changes when it is called"
        suspects = f" (look at {', '.join(drawing)})" if drawing else ""
        raise UsageError(
            f"{what}: the saved model {found}{suspects}; let layers do so only where `training` is true"
        )
    for layer in drawing:
        say(f"warning: {what}: {layer} stays random in model.keras where a caller asks for training=True")


def _state(model: keras.Model) -> list[np.ndarray]:
    return [np.array(keras.ops.convert_to_numpy(variable)) for variable in model.variables]


def _users(setting: str, name: str) -> contextlib.AbstractContextManager[None]:
    """Says whose fault it is where code of a user's fails."""
    return named.calling(f"`{setting}={name}`", name) if named.is_outside(name) else contextlib.nullcontext()


def _forget_names() -> None:
    """Numbers what has no name anew, whatever was made before: checkpoints hold weights by path.

    Users' layers have none, nor have some weights of ConvNeXt.
    """
    from keras.src.utils import naming  # Keras shows it nowhere else

    naming.reset_uids()


def _of_shape(tensor: Any, shape: tuple[int | None, ...], what: str) -> keras.KerasTensor:
    if not isinstance(tensor, keras.KerasTensor):
        raise UsageError(f"expected {what}, a Keras tensor, found {type(tensor).__name__}")
    if tuple(tensor.shape) != tuple(shape):
        expected, found = [("batch", *s[1:]) for s in (shape, tensor.shape)]
        text = [f"[{', '.join(map(str, s))}]" for s in (expected, found)]
        raise UsageError(f"expected {what} of shape {text[0]}, found {text[1]}")
    return tensor


def _check_kept(model: keras.Model, name: str) -> None:
    """Makes sure that a user's model fits into checkpoints and model.keras, before hours of training."""
    what = f"`model={name}`"
    paths = [weight.path for weight in model.weights]
    if twice := [path for path in paths if paths.count(path) > 1]:
        raise UsageError(f"{what}: two weights are called {twice[0]}; give layers names of their own")
    custom = named.objects({"model": name}, {})
    saving = named.calling(f"{what}: cannot be saved and loaded again", name)
    with saving, tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "model.keras")
        model.save(path)
        keras.saving.load_model(path, compile=False, custom_objects=custom)


@contextlib.contextmanager
def local_copy(path: str) -> Iterator[str]:
    """Gives the local path of a file, for Keras, which reads no others: of a copy, where it is remote."""
    if not storage.is_url(path):
        yield str(storage.local_path(path))
        return
    with tempfile.TemporaryDirectory() as folder:
        local = os.path.join(folder, os.path.basename(path))
        storage.write_bytes(local, storage.read_bytes(path))
        yield local


def _check_weights(name: str, weights: str) -> None:
    if weights == "none":
        return
    applications_only = weights == "imagenet" or weights.endswith(".h5")
    if (name, weights) == ("efficientnet_lite0", "imagenet"):
        return
    # Of a .weights.h5, Keras passes over what does not fit without an error.
    unknown = not applications_only and not weights.endswith((".keras", ".npz"))
    if applications_only and name not in _APPLICATIONS:
        raise UsageError(
            f"`weights={weights}`: {name} has none such; expected none, or a run's model.keras or .npz "
            "checkpoint"
        )
    if unknown or weights.endswith(".weights.h5"):
        raise UsageError(
            f"`weights={weights}`: expected none, imagenet, a run's model.keras or .npz checkpoint, or an "
            ".h5 of keras.applications without its top"
        )
    if weights != "imagenet" and not storage.exists(weights):
        raise UsageError(f"`weights={weights}`: no such file")


@contextlib.contextmanager
def _impatient() -> Iterator[None]:
    """Lets a server that does not answer fail soon; by itself Keras would wait for minutes."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_SECONDS_TO_ANSWER)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


@contextlib.contextmanager
def _seeded(seed: int, what: str) -> Iterator[None]:
    """Seeds whatever initializers and layers are made inside, for each `what` by itself.

    So a run with augmentation or dropout starts from the weights of one without. Keras takes the seeds that
    nobody gives, as in keras.applications, from Python's generator: it is set for a while and then put back,
    so nobody else sees it.
    """
    state = random.getstate()
    random.seed(f"{seed} {what}")
    try:
        yield
    finally:
        random.setstate(state)


def _no_augmentation(images: keras.KerasTensor) -> keras.KerasTensor:
    return images


def _light_augmentation(images: keras.KerasTensor) -> keras.KerasTensor:
    return augmentation.RandomView(augmentation.LIGHT, name="light")(images)


def _small_cnn(x: keras.KerasTensor, spec: ModelSpec) -> keras.KerasTensor:
    """Five convolutions. Maxima over places see a small shadow that a mean over all places would drown.

    The first one halves small images and quarters large ones, for a CPU's sake.
    """

    def convolve(
        x: keras.KerasTensor, channels: int, name: str, kernel: int = 3, strides: int = 1
    ) -> keras.KerasTensor:
        convolution = keras.layers.Conv2D(
            channels, kernel, strides, "same", use_bias=False, kernel_initializer="he_normal", name=name
        )
        normalised = keras.layers.BatchNormalization(
            momentum=0.9, synchronized=spec.synchronized, name=f"{name}_norm"
        )(convolution(x))
        return keras.layers.ReLU(name=f"{name}_relu")(normalised)

    strides = 2 if x.shape[1] < SMALL_BELOW else 4
    x = convolve(x, 16, "stem", kernel=strides + 1, strides=strides)
    for place, channels in enumerate(SMALL_CHANNELS, 1):
        if place > 1:
            x = keras.layers.MaxPooling2D(2, padding="same", name=f"pool{place}")(x)
        x = convolve(x, channels, f"conv{place}")
    mean = keras.layers.GlobalAveragePooling2D(name="mean")(x)
    largest = keras.layers.GlobalMaxPooling2D(name="largest")(x)
    return spec.head(keras.layers.Concatenate(name="features")([mean, largest]))


def _application(name: str, x: keras.KerasTensor, spec: ModelSpec) -> keras.KerasTensor:
    size, weights = x.shape[1], spec.pretrained
    make = getattr(keras.applications, _APPLICATIONS[name])
    # What these two would do to pixels themselves, the layers before have done.
    own = {"include_preprocessing": False} if name in ("efficientnetv2b0", "convnext_tiny") else {}
    if size < 32:
        raise UsageError(f"`model={name}`: takes images of 32 pixels or more, the dataset's have {size}")
    file = local_copy(weights) if weights and weights != "imagenet" else contextlib.nullcontext(weights)
    try:
        with _impatient(), file as source:
            network = make(
                include_top=False,
                weights=source,
                input_shape=(size, size, 3),
                pooling="avg",
                **own,
            )
    except MemoryError:  # about the machine, not the file
        raise
    except Exception as error:  # as many kinds as networks and files have ways to fail
        reason = " ".join(str(error).split())
        if weights == "imagenet":
            raise CxrError(
                f"`weights=imagenet`: the weights of {name} cannot be fetched ({reason}); where there is no "
                "network give `weights=none`, or a file of weights"
            ) from error
        if weights:
            raise CxrError(
                f"`weights={weights}`: not the weights of {name} without its top, or damaged ({reason})"
            ) from error
        raise
    return spec.head(network(keras.layers.Concatenate(name="grey_to_rgb")([x, x, x])))


def _efficientnet_lite0(x: keras.KerasTensor, spec: ModelSpec) -> keras.KerasTensor:
    features = efficientnet_lite.features(keras.layers.Concatenate(name="grey_to_rgb")([x, x, x]))
    if spec.pretrained:
        efficientnet_lite.load_imagenet(keras.Model(x, features))
    return spec.head(features)


MODELS: Mapping[str, ModelMaker] = {
    "small_cnn": _small_cnn,
    "efficientnet_lite0": _efficientnet_lite0,
    **{name: functools.partial(_application, name) for name in _APPLICATIONS},
}
AUGMENTATIONS: Mapping[str, Augmenter] = {"none": _no_augmentation, "light": _light_augmentation}


def _take_weights(
    model: keras.Model, path: str, custom: Mapping[str, Any], say: Callable[[str], None]
) -> None:
    saved = _read_weights(path, custom, say)
    # Keras forgets these names when it loads a file.
    blocks = {layer.name for layer in model._flatten_layers() if isinstance(layer, keras.Sequential)}
    held = dict(saved)
    for weight in model.weights:
        short = "/".join(part for part in weight.path.split("/") if part not in blocks)
        if weight.path not in saved and short in saved:
            held[weight.path] = saved[short]
    fitting = {
        w.path: held[w.path] for w in model.weights if w.path in held and held[w.path].shape == tuple(w.shape)
    }
    missing = [w.path for w in model.weights if w.path not in fitting and not w.path.startswith("head/")]
    if missing:
        raise CxrError(
            f"`weights={path}`: of another network: {len(missing)} of the {len(model.weights)} weights of "
            f"{model.name} are not in it, such as {missing[0]}"
        )
    for weight in model.weights:
        if weight.path in fitting:
            weight.assign(fitting[weight.path])
    fresh = len(model.weights) - len(fitting)
    say(f"took the weights of {path}" + (", the last layer stays fresh: it has other outputs" * bool(fresh)))


def _read_weights(path: str, custom: Mapping[str, Any], say: Callable[[str], None]) -> dict[str, np.ndarray]:
    try:
        data = storage.read_bytes(path)
        if warning := digests.check(path, data):
            say(f"warning: {warning}")
        if path.endswith(".keras"):
            _forget_names()
            with local_copy(path) as file:
                model = keras.saving.load_model(file, compile=False, custom_objects=dict(custom))
            return {weight.path: np.asarray(weight.value) for weight in model.weights}
        with np.load(io.BytesIO(data), allow_pickle=False) as file:
            return {n.removeprefix("model/"): file[n] for n in file.files if n.startswith("model/")}
    except MemoryError:  # about the machine, not the file
        raise
    except Exception as error:  # a file of another kind fails in as many ways as there are kinds
        raise CxrError(f"`weights={path}`: cannot be read: {' '.join(str(error).split())}") from error
