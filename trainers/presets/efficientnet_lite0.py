"""EfficientNet-Lite0 from ImageNet weights that a package brings (extra `pretrained`): nothing is fetched.

    cxr-records train cxr14 --run runs/lite0 --preset efficientnet_lite0

Machine: a GPU of any size; a CPU for some thousands of small images.
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
