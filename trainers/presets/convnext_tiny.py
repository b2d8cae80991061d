"""ConvNeXt-Tiny (Liu et al. 2022) with the asymmetric loss, after the winner of CXR-LT 2023 (CheXFusion).

    cxr-records train cxr14 --run runs/convnext --preset convnext_tiny

Machine: one GPU with 24 GB or more (batch 64 at 224 pixels, bfloat16); multilabel only, as the loss is.
Hours: about 2 on a GPU that trains 400 images/s, 10 epochs (computed from that figure, not measured by us).
Expected: not known to us for the official split; DenseNet-121's .80 to .82 is the yardstick.
"""

from cxr_records.trainers.config import TrainConfig

CONFIG = TrainConfig(
    model="convnext_tiny",
    weights="imagenet",
    loss="asymmetric",
    epochs=10,
    batch_size=64,
    learning_rate=1e-4,
    weight_decay=5e-2,
    augment="light",
    precision="mixed_bfloat16",
)
