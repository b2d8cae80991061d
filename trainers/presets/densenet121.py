"""DenseNet-121, the baseline of the field (CheXNet, Rajpurkar et al. 2017), from ImageNet weights.

    cxr-records train cxr14 --run runs/densenet121 --preset densenet121

Machine: one GPU with 16 GB or more (batch 64 at 224 pixels, float16).
Hours: about 1.5 on a GPU that trains 500 images/s, 10 epochs of 86,524 images less validation (computed from
those two figures, not measured by us).
Expected: test macro AUROC .80 to .82 on the official split (medical_mae, WACV 2023: .822; Goel 2024: .820 to
.824, both DenseNet-121 at 224); not yet reproduced by us.
"""

from cxr_records.trainers.config import TrainConfig

CONFIG = TrainConfig(
    model="densenet121",
    weights="imagenet",
    epochs=10,
    batch_size=64,
    learning_rate=2e-4,
    weight_decay=1e-5,
    augment="light",
    precision="mixed_float16",
)
