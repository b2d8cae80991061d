"""EfficientNetV2-B0 (Tan and Le 2021) from ImageNet weights: small, for TPUs and for many runs.

    cxr-records train cxr14 --run runs/efficientnet --preset efficientnetv2b0 --devices tpu

Machine: one TPU v3-8 or newer, or one GPU (batch 256 at 224 pixels, bfloat16; on GPUs older than Ampere add
--set precision=mixed_float16).
Hours: under 1 on a device that trains 1,500 images/s, 15 epochs (computed from that figure, not
measured by us).
Expected: not known to us for the official split; DenseNet-121's .80 to .82 is the yardstick.
"""

from cxr_records.trainers.config import TrainConfig

CONFIG = TrainConfig(
    model="efficientnetv2b0",
    weights="imagenet",
    epochs=15,
    batch_size=256,
    learning_rate=5e-4,
    weight_decay=1e-4,
    dropout=0.2,
    augment="light",
    precision="mixed_bfloat16",
)
