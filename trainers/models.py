"""Networks from raw uint8 images to logits: one that CPUs can train, and four of keras.applications.

Grey levels are normalised inside, by the mean and deviation of the dataset's training images, so a saved
model takes what a record holds.
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
from cxr_records.trainers import digests, efficientnet_lite, named

_APPLICATIONS = {
    "densenet121": "DenseNet121",  # Huang et al. 2017; the field's baseline since CheXNet
    "resnet50": "ResNet50",  # He et al. 2016
    "efficientnetv2b0": "EfficientNetV2B0",  # Tan and Le 2021
    "convnext_tiny": "ConvNeXtTiny",  # Liu et al. 2022
}
# The deviation of the pixels that the weights of ImageNet expect, where it is not 1: those of ResNet-50 come
# from Caffe, where grey levels were centred and not scaled; EfficientNet-Lite divided them by 128.
_SPREAD = {"resnet50": 58.0, "efficientnet_lite0": 58.0 / 128}
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
        pretrained: for networks of keras.applications: None, "imagenet", or a file of such weights.
        synchronized: whether batch statistics are to be those of all devices.
    """

    num_outputs: int
    dropout: float = 0.0
    seed: int = 0
    bias: np.ndarray | None = None
    pretrained: str | None = None
    synchronized: bool = False

    def head(self, features: keras.KerasTensor) -> keras.KerasTensor:
        """Returns logits, float32 [batch, num_outputs], from features [batch, n]: dropout, a last layer."""
        if self.dropout:
            with _seeded(self.seed, "dropout"):
                features = keras.layers.Dropout(self.dropout, name="dropout")(features)
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
            spec: what is asked for.
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
    augment: str = "none",
    dropout: float = 0.0,
    seed: int = 0,
    bias: np.ndarray | None = None,
    synchronized: bool = False,
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
        augment: "light" puts small random shifts (4%), turns (5°), zooms (6%), brightness (5%) and contrast
            (10%) before the network; they act in training alone and are inert at inference. Or an
            `Augmenter` of a user's, as `named.choose` takes it.
        dropout: share of the pooled features that is dropped in training.
        seed: of weights, dropout and augmentation.
        bias: float [num_outputs], what the last layer starts with: log-odds or log-shares of the classes, so
            that training begins at the prior (Lin et al. 2017, section 4.1). None for zeros.
        synchronized: batch statistics of small_cnn over all devices of a tf.distribute strategy.
        say: told what was taken from a weights file.

    Raises:
        UsageError: no such model, augmentation or weights file; or one of a user's fails, gives another
            shape, or cannot be saved.
        CxrError: ImageNet's weights cannot be fetched, or the file is of another network.
    """
    make, augmented = named.choose("model", name, MODELS), named.choose("augment", augment, AUGMENTATIONS)
    outside = named.is_outside(name) or named.is_outside(augment)
    if outside:
        _forget_names()
    _check_weights(name, weights)
    # Keras puts these into the network alone; other files are of whole models.
    pretrained = weights if weights == "imagenet" or weights.endswith(".h5") else None
    with _seeded(seed, "network"):
        inputs = keras.Input((size, size, 1), dtype="uint8", name="image")
        # In float32 whatever the precision of the run: half of it would round the grey levels.
        x = keras.layers.Rescaling(1.0, name="to_float", dtype="float32")(inputs)
        with _seeded(seed, "augmentation"), _users("augment", augment):
            x = _of_shape(augmented(x), x.shape, "images")
        scale = _SPREAD.get(name, 1.0) / std
        x = keras.layers.Rescaling(scale, offset=-mean * scale, name="normalise", dtype="float32")(x)
        with _users("model", name):
            spec = ModelSpec(num_outputs, dropout, seed, bias, pretrained, synchronized)
            logits = _of_shape(make(x, spec), (None, num_outputs), "logits")
            if logits.dtype != "float32":
                logits = keras.layers.Activation("linear", dtype="float32", name="to_logits")(logits)
            model = keras.Model(inputs, logits, name=name.rpartition(":")[2])
    if outside:
        _check_kept(model, {"model": name, "augment": augment})
    if weights != "none" and not pretrained:
        _take_weights(model, weights, say)
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


def _users(setting: str, name: str) -> contextlib.AbstractContextManager[None]:
    """Says whose fault it is where code of a user's fails."""
    return named.calling(f"`{setting}={name}`", name) if named.is_outside(name) else contextlib.nullcontext()


def _forget_names() -> None:
    """Numbers layers without a name anew, whatever was made before: checkpoints hold weights by path."""
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


def _check_kept(model: keras.Model, settings: Mapping[str, str]) -> None:
    """Makes sure that a user's model fits into checkpoints and model.keras, before hours of training."""
    setting = next(setting for setting, name in settings.items() if named.is_outside(name))
    what = f"`{setting}={settings[setting]}`"
    paths = [weight.path for weight in model.weights]
    if twice := [path for path in paths if paths.count(path) > 1]:
        raise UsageError(f"{what}: two weights are called {twice[0]}; give layers names of their own")
    custom = named.objects(settings, {})
    saving = named.calling(f"{what}: cannot be saved and loaded again", settings[setting])
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


def _light_augmentation(x: keras.KerasTensor) -> keras.KerasTensor:
    layers = keras.layers
    for layer in (
        layers.RandomTranslation(0.04, 0.04, fill_mode="constant", name="shift", dtype="float32"),
        layers.RandomRotation(5 / 360, fill_mode="constant", name="turn", dtype="float32"),
        layers.RandomZoom((-0.06, 0.06), fill_mode="constant", name="zoom", dtype="float32"),
        layers.RandomBrightness(0.05, value_range=(0, 255), name="brightness", dtype="float32"),
        layers.RandomContrast(0.1, value_range=(0, 255), name="contrast", dtype="float32"),
    ):
        x = layer(x)
    return x


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


def _take_weights(model: keras.Model, path: str, say: Callable[[str], None]) -> None:
    saved = _read_weights(path, say)
    fitting = {
        w.path: saved[w.path]
        for w in model.weights
        if w.path in saved and saved[w.path].shape == tuple(w.shape)
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


def _read_weights(path: str, say: Callable[[str], None]) -> dict[str, np.ndarray]:
    try:
        data = storage.read_bytes(path)
        if warning := digests.check(path, data):
            say(f"warning: {warning}")
        if path.endswith(".keras"):
            with local_copy(path) as file:
                model = keras.saving.load_model(file, compile=False)
            return {weight.path: np.asarray(weight.value) for weight in model.weights}
        with np.load(io.BytesIO(data), allow_pickle=False) as file:
            return {n.removeprefix("model/"): file[n] for n in file.files if n.startswith("model/")}
    except Exception as error:  # a file of another kind fails in as many ways as there are kinds
        raise CxrError(f"`weights={path}`: cannot be read: {' '.join(str(error).split())}") from error
