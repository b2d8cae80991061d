"""ResNet-50 from ImageNet weights, for comparison with the first paper on the set (Wang et al. 2017).

    cxr-records train cxr14 --run runs/resnet50 --preset resnet50

Machine: one GPU with 16 GB or more (batch 128 at 224 pixels, float16).
Hours: about 1 on a GPU that trains 800 images/s, 10 epochs (computed from that figure, not measured by us).
Expected: test macro AUROC about .81 on the official split (medical_mae, WACV 2023: .809 to .815 with
self-supervised weights); not yet reproduced by us.
"""

from cxr_records.trainers.config import TrainConfig

CONFIG = TrainConfig(
    model="resnet50",
    weights="imagenet",
    epochs=10,
    batch_size=128,
    learning_rate=3e-4,
    weight_decay=1e-4,
    augment="light",
    precision="mixed_float16",
)
