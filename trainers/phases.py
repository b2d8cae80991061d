"""The phases of a run: training, the same with deferred weights, and the last layer trained anew.

A phase begins at the end of an epoch, so a run that was killed knows its phase by the epochs that are done.
The best weights are chosen within a phase, and a later phase's are taken whatever an earlier one had: who
asks for deferred weights or for retraining wants the model that came of it.
"""

import dataclasses
from collections.abc import Mapping

import keras
import numpy as np

from cxr_records.balancing import CLASS_BALANCED
from cxr_records.errors import UsageError
from cxr_records.trainers.checkpoints import TrainingProgress
from cxr_records.trainers.config import TrainConfig
from cxr_records.trainers.losses import LDAM

TRAIN, REWEIGHT, RETRAIN = "train", "reweight", "retrain"
HEAD = "head"  # the layer that `ModelSpec.head` makes


@dataclasses.dataclass(frozen=True)
class Phase:
    """A phase.

    Attributes:
        name: TRAIN; REWEIGHT, as TRAIN but with the weights of the loss; or RETRAIN, of the last layer alone.
        end: epochs of the run that will be done with it.
        may_stop: whether it ends early when validation no longer gets better.
    """

    name: str
    end: int
    may_stop: bool


def current(config: TrainConfig, loss: keras.losses.Loss, progress: TrainingProgress) -> Phase | None:
    """Returns the phase in which a run is or which begins now; None at its end.

    Args:
        config: of the run.
        loss: of the run.
        progress: how far it has come.
    """
    if is_main_over(config, progress):
        end = progress.epoch - progress.retrained + config.retrain_epochs
        return Phase(RETRAIN, end, may_stop=False) if progress.epoch < end else None
    turn = loss.reweights_from(config.epochs) if isinstance(loss, LDAM) else config.epochs
    if progress.epoch < turn:
        # To stop before the weights begin would be another method than was asked for.
        return Phase(TRAIN, turn, may_stop=turn == config.epochs)
    return Phase(REWEIGHT, config.epochs, may_stop=True)


def last_epoch(config: TrainConfig, phase: Phase) -> int:
    """Returns the epoch with which a run ends, as far as is known in a phase: training may yet stop early."""
    return phase.end if phase.name == RETRAIN else config.epochs + config.retrain_epochs


def is_main_over(config: TrainConfig, progress: TrainingProgress) -> bool:
    """Tells whether all is done but for retraining."""
    return progress.stopped or progress.epoch - progress.retrained >= config.epochs


def is_retraining(config: TrainConfig, progress: TrainingProgress) -> bool:
    """Tells whether a checkpoint was made in retraining, after its first step."""
    begun = progress.retrained > 0 or progress.batch > 0
    return config.retrain_epochs > 0 and is_main_over(config, progress) and begun


def retraining(config: TrainConfig) -> TrainConfig:
    """Returns the settings of retraining: those of the run, with its epochs, sampling and no warm-up.

    As Kang et al. ("Decoupling Representation and Classifier for Long-Tailed Recognition", ICLR 2020, section
    4.1): from the same learning rate, by a cosine to zero. The weights are those of the training before.
    """
    return dataclasses.replace(
        config,
        epochs=config.retrain_epochs,
        sampling=CLASS_BALANCED,
        warmup_epochs=0.0,
        weights="none",
    )


def set_weights_of(phase: Phase, loss: keras.losses.Loss, model: keras.Model) -> None:
    """Lets a loss with deferred weights use them, or not; steps are compiled anew where that changes."""
    wanted = phase.name == REWEIGHT
    if isinstance(loss, LDAM) and loss.reweighted != wanted:
        loss.reweighted = wanted
        model.make_train_function(force=True)


def freeze_features(network: keras.Model, arrays: Mapping[str, np.ndarray]) -> None:
    """Takes the weights of a checkpoint but for the last layer's, which stay fresh and alone will be trained.

    All others are as at inference, BatchNorm's statistics too. Dropout and augmentation, which have no
    weights, go on.

    Args:
        network: as the run's was made.
        arrays: of a `Checkpoint` of the run.
    """
    for weight in network.weights:
        if not weight.path.startswith(f"{HEAD}/"):
            weight.assign(arrays[f"model/{weight.path}"])
    for layer in network.layers:
        layer.trainable = layer.name == HEAD


def check_head(model: keras.Model, config: TrainConfig, loss: keras.losses.Loss) -> None:
    """Makes sure that a model has the last layer that the settings need, before anything is trained.

    Raises:
        UsageError: there is none of its name.
    """
    if HEAD in [layer.name for layer in model.layers]:
        return
    lacking = f"the model {model.name} has no layer called {HEAD}: end it with `spec.head(features)`"
    if config.retrain_epochs:
        raise UsageError(f"`retrain_epochs={config.retrain_epochs}`: {lacking}, or give `retrain_epochs=0`")
    if isinstance(loss, LDAM):
        raise UsageError(f"`loss=ldam`: its margins are of cosines, and {lacking}, which gives them")
