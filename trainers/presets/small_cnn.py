"""A small network that CPUs can train: first runs, tests of a pipeline, the look-alike set.

    cxr-records train cxr14 --run runs/small --preset small_cnn

Machine: 2 CPU cores.
"""

from trainers.config import TrainConfig

CONFIG = TrainConfig()
