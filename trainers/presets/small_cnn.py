"""A small network that CPUs can train: first runs, tests of a pipeline, the look-alike set.

    cxr-records train cxr14 --run runs/small --preset small_cnn

Machine: 2 CPU cores.
Hours: 0.01 for 12 epochs of the demo's 440 records at 224 pixels (28 s, 390 images/s, measured); at that rate
1.2 for 20 epochs of the 82,380 records of the full set.
Expected: test macro AUROC .92 on the demo's look-alike images (measured). On real images it is a check of the
pipeline, not a model to use: .66 on 310 test images of 64 pixels after training on 600 (measured), where a
logistic regression on the pixels has .69.
"""

from cxr_records.trainers.config import TrainConfig

CONFIG = TrainConfig()
