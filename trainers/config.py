"""What a training run is told: one flat table of settings, presets of them, and changes by key=value."""

import dataclasses
import importlib
import pkgutil
from collections.abc import Sequence
from types import ModuleType
from typing import Any, get_type_hints

from cxr_records.balancing import NATURAL, SAMPLINGS
from cxr_records.errors import UsageError
from cxr_records.findings import nearest
from cxr_records.trainers import named, presets

PRECISIONS = ("auto", "float32", "mixed_bfloat16", "mixed_float16")


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """The settings of a run. Its own (dataset, task, devices) are options of the command.

    Attributes:
        model: a name of `cxr_records.trainers.models.MODELS`, or a `ModelMaker` of one's own as
            "module:function" or "file.py:function".
        weights: "none", "imagenet", or a file: a run's model.keras or .npz checkpoint, or an .h5 of
            keras.applications without its top.
        loss: a name of `cxr_records.trainers.losses.LOSSES`, or "auto": bce for binary and multilabel,
            logit_adjusted for multiclass; or a `LossMaker` of one's own, named as a model is.
        loss_options: options of that loss, such as {"gamma": 2.0}.
        sampling: "natural", each training record once in an epoch; or "class_balanced", as many records,
            drawn so that all classes come as often: see `cxr_records.balancing`.
        retrain_epochs: epochs in which, after all others, the last layer is trained anew by class-balanced
            sampling, and it alone (Kang et al. 2020: cRT); 0 for none.
        epochs: passes over the training records; at least 1.
        batch_size: records of a step, over all devices together.
        learning_rate: the peak, reached after the warm-up; then half a cosine down to zero.
        warmup_epochs: length of the linear warm-up, in epochs.
        weight_decay: of AdamW (Loshchilov and Hutter 2019); biases and normalisation are exempt.
        clip_norm: largest norm of all gradients together; 0 for no clipping.
        dropout: before the last layer.
        augment: "none", or "light": small random shifts, turns, zooms and contrasts on the device; or an
            `Augmenter` of one's own, named as a model is.
        prior_bias: start the last layer at the classes' frequencies (Lin et al. 2017, section 4.1).
        ema: share of the running average of all weights that stays at each step; what is validated and what
            the run leaves are the averaged weights (see `averaging.AveragedModel`). 0 for no average. At the
            end of a cosine to zero, on few images, .999 and 0 gave the same (benchmarks/README.md): it is
            on for what comes before the end, when an epoch is chosen or a run stops early.
        keep: which epoch's weights the run leaves: "best" (of the largest mean AUROC on validation, over
            the classes that have enough positives there) or "last".
        min_positives: positive images, of at least 3 patients, that a class must have in validation to take
            part in the choice of the best epoch and in early stopping.
        patience: stop after so many epochs without a better mean AUROC of those classes; 0 for never, which
            is the default as the learning rate falls to zero at the last epoch: a run that stops before has
            not had the steps that gain most.
        min_steps: training steps before which no run stops early. The default is not measured.
        precision: of training; the saved model computes in float32. "float32", "mixed_bfloat16",
            "mixed_float16" (GPUs that are older than Ampere), or "auto": mixed_bfloat16 on TPUs and on GPUs
            of compute capability 8 or more, else float32; a run that goes on keeps what it began with.
        xla: compile steps with XLA: "auto" (on GPUs and TPUs; with JAX always), "yes" or "no".
        deterministic: "auto" (on CPUs, but where xla=yes), "yes" or "no": only kernels that give the same
            bits each time.
        steps_per_execution: steps between two looks of the host at the device; more of them help where
            a step takes a few milliseconds. Nothing that comes out depends on it.
        checkpoint_minutes: time between two checkpoints in the middle of an epoch.
        seed: of the order of records, the first weights, dropout and augmentation.

    Raises:
        UsageError: a value is not one of these.
    """

    model: str = "small_cnn"
    weights: str = "none"
    loss: str = "auto"
    loss_options: dict[str, float] = dataclasses.field(default_factory=dict)
    sampling: str = NATURAL
    retrain_epochs: int = 0
    epochs: int = 20
    batch_size: int = 64
    learning_rate: float = 2e-3
    warmup_epochs: float = 1.0
    weight_decay: float = 1e-4
    clip_norm: float = 1.0
    dropout: float = 0.0
    augment: str = "none"
    prior_bias: bool = True
    ema: float = 0.999
    keep: str = "best"
    min_positives: int = 10
    patience: int = 0
    min_steps: int = 1000
    precision: str = "auto"
    xla: str = "auto"
    deterministic: str = "auto"
    steps_per_execution: int = 1
    checkpoint_minutes: float = 5.0
    seed: int = 0

    def __post_init__(self) -> None:
        choices = {
            "keep": ("best", "last"),
            "sampling": SAMPLINGS,
            "precision": PRECISIONS,
            "xla": ("auto", "yes", "no"),
            "deterministic": ("auto", "yes", "no"),
        }
        for key, known in choices.items():
            value = getattr(self, key)
            if value not in known:
                guess = nearest(value, known)
                raise UsageError(f"`{key}={value}`: unknown{guess}; expected one of {', '.join(known)}")
        limits = {
            "epochs": 1, "retrain_epochs": 0, "batch_size": 1, "steps_per_execution": 1, "warmup_epochs": 0,
            "weight_decay": 0, "clip_norm": 0, "patience": 0, "checkpoint_minutes": 0, "dropout": 0,
            "seed": 0, "ema": 0, "min_positives": 1, "min_steps": 0,
        }  # fmt: skip
        for key, lowest in limits.items():
            if not getattr(self, key) >= lowest:  # also refuses NaN
                raise UsageError(f"`{key}={getattr(self, key)}`: expected at least {lowest}")
        if self.keep == "last" and self.patience:
            raise UsageError(
                f"`patience={self.patience}`: stops after the best epoch, and `keep=last` keeps "
                "another; expected `keep=best` or `patience=0`"
            )
        if not self.learning_rate > 0:
            raise UsageError(f"`learning_rate={self.learning_rate}`: expected a number above 0")
        for key in ("dropout", "ema"):
            if getattr(self, key) >= 1:
                raise UsageError(f"`{key}={getattr(self, key)}`: expected a share below 1")

    def to_json(self) -> dict[str, Any]:
        """Returns plain values; `TrainConfig(**config.to_json())` is the same config again."""
        return dataclasses.asdict(self)


def preset_names() -> list[str]:
    """Returns the names of the presets, sorted."""
    return sorted(module.name for module in pkgutil.iter_modules(presets.__path__))


def read_preset(name: str) -> TrainConfig:
    """Returns the settings of a preset: `CONFIG` of trainers/presets/NAME.py, or of a file of the user's.

    Args:
        name: of a preset, or the path of a .py file.

    Raises:
        UsageError: no preset has the name (the nearest one is suggested), or the file is not there, fails, or
            does not define CONFIG as a `TrainConfig`.
    """
    if name.endswith(".py"):
        return _preset_of(named.load(f"`preset={name}`", name), name)
    known = preset_names()
    if name not in known:
        raise UsageError(
            f"`preset={name}`: no such preset{nearest(name, known)}; expected one of {', '.join(known)}, "
            "or a file that defines CONFIG, such as mine.py"
        )
    return _preset_of(importlib.import_module(f"cxr_records.trainers.presets.{name}"), name)


def _preset_of(module: ModuleType, name: str) -> TrainConfig:
    config = getattr(module, "CONFIG", None)
    if not isinstance(config, TrainConfig):
        found = "no CONFIG" if config is None else f"CONFIG of type {type(config).__name__}"
        raise UsageError(f"`preset={name}`: found {found}; expected CONFIG = TrainConfig(...)")
    return config


def change(config: TrainConfig, changes: Sequence[str]) -> TrainConfig:
    """Returns the config with changes such as "epochs=5" or "loss_options.gamma=2", later ones winning.

    Raises:
        UsageError: a text is not key=value, the key is unknown (with the nearest name) or the value is not of
            the key's kind.
    """
    values: dict[str, Any] = config.to_json()
    kinds = get_type_hints(TrainConfig)
    for text in changes:
        key, equals, value = text.partition("=")
        key, value = key.strip(), value.strip()
        if not equals or not key:
            raise UsageError(f"`changes={text}`: expected key=value, such as epochs=5")
        name, dot, option = key.partition(".")
        if name == "loss_options" and option:
            values[name] = {**values[name], option: _parse(key, value, float)}
        elif name not in kinds or dot:
            known = [name for name in kinds if name != "loss_options"]
            raise UsageError(
                f"`changes={key}`: no such setting{nearest(key, known)}; known: {', '.join(known)}, "
                "and loss_options.NAME"
            )
        elif name == "loss_options":
            raise UsageError(
                f"`changes={text}`: expected loss_options.NAME=VALUE, such as loss_options.gamma=2"
            )
        else:
            values[name] = _parse(key, value, kinds[name])
    return TrainConfig(**values)


def _parse(key: str, value: str, kind: Any) -> Any:
    if kind is bool:
        if value.lower() in ("true", "yes", "1"):
            return True
        if value.lower() in ("false", "no", "0"):
            return False
        raise UsageError(f"`{key}={value}`: expected true or false")
    try:
        return kind(value)
    except ValueError:
        expected = {int: "a whole number", float: "a number"}[kind]
        raise UsageError(f"`{key}={value}`: expected {expected}") from None
