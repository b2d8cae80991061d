"""A run: a dataset to a trained model, going on where it was broken off."""

import contextlib
import dataclasses
import functools
import importlib.metadata
import math
import os
import tempfile
from collections.abc import Iterator, Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from cxr_records import locks, reader, storage
from cxr_records.balancing import CLASS_BALANCED
from cxr_records.dataset import Dataset, open_dataset
from cxr_records.drawings import drawn_words
from cxr_records.errors import CxrError, UsageError
from cxr_records.progress import say
from cxr_records.splits import TRAIN, VALIDATION
from cxr_records.tasks import Task
from cxr_records.trainers import (
    averaging,
    callbacks,
    checkpoints,
    digests,
    losses,
    models,
    named,
    phases,
    runs,
)
from cxr_records.trainers.config import TrainConfig
from cxr_records.trainers.devices import Devices, choose_devices, deterministic_kernels
from cxr_records.trainers.inputs import WaitMeter

# For multiclass, where one class holds a third of the images, plain cross-entropy learns the large ones only.
AUTO_LOSS = {"binary": "bce", "multilabel": "bce", "multiclass": "logit_adjusted"}
# Losses that leave the classes' frequencies to the model, which may then start from them.
_PRIOR_KEEPING = ("bce", "ce", "focal", "asymmetric")


@dataclasses.dataclass(frozen=True, eq=False)
class _Job:
    """What stays the same through a run; retraining has settings of its own."""

    dataset: Dataset
    run: runs.Run
    devices: Devices
    steps: int
    config: TrainConfig

    @property
    def task(self) -> Task:
        return self.run.task

    @functools.cached_property  # the dataset may be rebuilt before the run ends
    def counts(self) -> np.ndarray:
        """Records of an epoch that hold each class, copies included: float64 [number of scores]."""
        return np.array(runs.seen(self.dataset.split(TRAIN), self.config.sampling), np.float64)

    def retraining(self) -> "_Job":
        """Returns that of the last layer alone."""
        return dataclasses.replace(self, config=phases.retraining(self.config))


def train(
    dataset: Dataset | str,
    run: str,
    config: TrainConfig,
    *,
    task: Task | str | None = None,
    devices: str = "auto",
) -> tuple[runs.Run, checkpoints.TrainingProgress]:
    """Trains a model, or goes on with a run that was broken off.

    The same settings and dataset give the same weights, bit for bit on one CPU with the TensorFlow backend,
    however often the run was killed.

    Args:
        dataset: an open dataset, or the folder or URL of a finished one.
        run: the run directory: new, empty, or of a run with the same settings.
        config: the settings.
        task: another than the dataset's; see `Dataset.as_task`.
        devices: as for `choose_devices`.

    Returns:
        The run, and how far it has come: to its end.

    Raises:
        UsageError: settings do not fit each other, the dataset, or the run that is in the directory.
        CxrError: the dataset is damaged, or the devices are not there.
    """
    dataset, run = open_dataset(dataset), storage.absolute(run)
    dataset = dataset.as_task(task) if task is not None else dataset
    chosen = choose_devices(devices)
    config = _resolved(config, dataset.task, chosen, run)
    chosen.check_batch(config.batch_size)
    share = config.batch_size // chosen.num_hosts
    steps = dataset.steps_per_epoch(TRAIN, share, num_hosts=chosen.num_hosts)
    described = runs.describe(run, dataset, config, _versions())
    job = _Job(dataset, described, chosen, steps, described.config)
    writes = chosen.host == 0
    if writes:
        runs.check(described)
    # TensorFlow compiles nothing with XLA while its kernels are to be deterministic.
    by_itself = config.deterministic == "auto" and chosen.kind == "cpu" and config.xla != "yes"
    exact = config.deterministic == "yes" or by_itself
    with contextlib.ExitStack() as stack:
        if exact:
            stack.enter_context(deterministic_kernels())
        stack.enter_context(_precision(config.precision))
        loss = _loss(job)
        with chosen.scope():
            model = _compiled(job, loss)
        if named.is_outside(config.model):
            with chosen.alone():
                models.check_inert(_inert(job), model, config.model, say)
        if writes:  # settings that give no model leave no run behind
            runs.begin(described)
            storage.make_folder(storage.join(run, digests.CHECKPOINTS_FOLDER))
            stack.enter_context(locks.lock(storage.join(run, ".lock"), f"`run={run}`"))
            for folder in (run, storage.join(run, digests.CHECKPOINTS_FOLDER)):
                storage.remove_temporary(folder)
        with reader.shard_errors():
            progress = _train(job, model, loss, writes)
    chosen.part()
    return described, progress


def _resolved(config: TrainConfig, task: Task, devices: Devices, run: str) -> TrainConfig:
    """The settings with what "auto" stands for here, or stood for where the run began."""
    loss = AUTO_LOSS[task.kind] if config.loss == "auto" else config.loss
    precision = config.precision
    if precision == "auto" and storage.exists(storage.join(run, runs.CONFIG_FILE)):
        precision = runs.open_run(run).config.precision
    if precision == "auto":
        precision = devices.precision
    return dataclasses.replace(config, loss=loss, precision=precision)


def _train(
    job: _Job, model: keras.Model, loss: keras.losses.Loss, writes: bool
) -> checkpoints.TrainingProgress:
    last = checkpoints.load(job.run.file(runs.LAST_FILE))
    progress = last.progress if last else checkpoints.TrainingProgress()
    if last and phases.is_retraining(job.config, progress):
        job, model, loss = _retraining(job, last.arrays)
    if last:
        checkpoints.restore(model, last.arrays, ("model", "average", "seeds", "optimizer"))
    model_path = job.run.file(runs.MODEL_FILE)
    if _is_whole(model_path):
        say(f"{job.run.path}: already trained, {len(progress.history)} epochs")
        return progress
    best_path = job.run.file(runs.BEST_FILE)
    if progress.best_epoch and not _is_whole(best_path):
        if (progress.epoch, progress.batch) != (progress.best_epoch, 0):
            raise _no_best(job.run)
        if writes:  # the last weights are the best ones
            with averaging.averaged(model):
                checkpoints.save(best_path, model, progress)
    say(_greeting(job, model, progress))
    say(job.run.selection.text)
    arrays = last.arrays if last else None
    while (phase := phases.current(job.run.config, loss, progress)) is not None:
        if phase.name == phases.RETRAIN and not phases.is_retraining(job.run.config, progress):
            job, model, loss = _begin_retraining(job)
        _fit(job, model, loss, progress, arrays, writes, phase)
        arrays = None
    if writes:
        storage.remove(job.run.file(runs.PREDICTIONS_FILE))  # of a model before this one
        with job.devices.alone():
            _save_best(job)
    return progress


def _retraining(job: _Job, arrays: Mapping[str, np.ndarray]) -> tuple[_Job, keras.Model, keras.losses.Loss]:
    """Returns what trains the last layer alone, as fresh as at first, on the features of a checkpoint."""
    retraining = job.retraining()
    loss = _loss(retraining)
    with job.devices.scope():
        return retraining, _compiled(retraining, loss, features=arrays), loss


def _begin_retraining(job: _Job) -> tuple[_Job, keras.Model, keras.losses.Loss]:
    """As `_retraining`, on the features of the best weights."""
    job.devices.meet("the best weights are written")
    best = checkpoints.load(job.run.file(runs.BEST_FILE))
    if best is None:
        raise _no_best(job.run)
    epochs = job.config.retrain_epochs
    say(f"now the last layer alone, anew: {epochs} epoch{'s' * (epochs > 1)} of class-balanced sampling")
    return _retraining(job, best.arrays)


def _save_best(job: _Job) -> keras.Model:
    """Writes model.keras with the best weights; returns what it holds."""
    best = checkpoints.load(job.run.file(runs.BEST_FILE))
    if best is None:
        raise _no_best(job.run)
    saved = _inert(job)
    checkpoints.restore(saved, best.arrays, ("model",))
    _save_model(saved, job.run.file(runs.MODEL_FILE))
    return saved


def _inert(job: _Job) -> keras.Model:
    """The model that a run hands over, made anew: uint8 to probabilities in float32, and nothing random.

    Its weights are to be replaced: there is no need to fetch any.
    """
    with _precision("float32"):
        network = _network(job, weights="none", dropout=0.0, synchronized=False)
        return models.with_probabilities(models.inert(network), job.task.kind)


def remake_model(run: runs.Run, dataset: Dataset) -> keras.Model:
    """Makes a finished run's model.keras again from its best checkpoint.

    Args:
        run: which run.
        dataset: the run's, for the run's task.

    Returns:
        The model that the file holds.

    Raises:
        UsageError: the user's code that the model is made of is gone or has changed.
        CxrError: the checkpoint is missing or damaged.
    """
    now = dataclasses.replace(run, code=named.files_of(run.config.to_json()))
    runs.check(now)
    job = _Job(dataset, run, Devices("cpu", 1), steps=1, config=run.config)
    if not _is_whole(run.file(runs.BEST_FILE)):
        raise _no_best(run)
    return _save_best(job)


def _is_whole(path: str) -> bool:
    """Tells whether a file of the run is there and what was written; says so where it is damaged."""
    if not storage.exists(path):
        return False
    try:
        digests.check(path, storage.read_bytes(path))
    except digests.DamagedFileError as error:
        say(f"warning: {error}")
        return False
    return True


@contextlib.contextmanager
def _precision(precision: str) -> Iterator[None]:
    """Makes models that compute in a precision."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(precision)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)


def _loss(job: _Job) -> keras.losses.Loss:
    config = job.config
    return losses.make_loss(
        config.loss, job.task.kind, job.counts, job.run.train_records, **config.loss_options
    )


def _no_best(run: runs.Run) -> CxrError:
    return CxrError(
        f"{run.file(runs.BEST_FILE)} is missing or damaged, and {runs.MODEL_FILE} is made from it; put it "
        f"back, or remove {run.file(runs.LAST_FILE)} to begin the run anew"
    )


def _network(job: _Job, **changes: Any) -> keras.Model:
    """The run's network, uint8 to logits; `changes` are arguments of `make_model` beside its own."""
    config, pixels = job.config, job.dataset.manifest.pixels
    assert pixels.mean is not None
    assert pixels.std is not None, "a dataset with a training split has both"
    settings = {"weights": config.weights, "dropout": config.dropout, "seed": config.seed, "say": say}
    settings["cosine_scale"] = losses.cosine_scale(config.loss, config.loss_options)
    size, outputs = job.run.image_format.size, len(job.counts)
    return models.make_model(config.model, outputs, size, pixels.mean, pixels.std, **{**settings, **changes})


def _prior(job: _Job) -> np.ndarray | None:
    """What the last layer starts with, float [number of scores], to give the classes' frequencies."""
    config = job.config
    if not config.prior_bias or not (config.loss in _PRIOR_KEEPING or named.is_outside(config.loss)):
        return None
    share = np.clip(job.counts / job.run.train_records, 1e-4, 1 - 1e-4)
    return np.asarray(np.log(share) if job.task.kind == "multiclass" else np.log(share / (1 - share)))


def _compiled(
    job: _Job, loss: keras.losses.Loss, features: Mapping[str, np.ndarray] | None = None
) -> keras.Model:
    """Returns a model to be trained: all of it, or its last layer alone, on the features of a checkpoint."""
    config = job.config
    network = _network(job, bias=_prior(job), synchronized=job.devices.strategy is not None)
    phases.check_head(network, config, loss)
    if features is not None:
        phases.freeze_features(network, features)
    model = models.with_augmentation(network, config.augment, config.seed)
    if config.ema:
        model = averaging.AveragedModel(model, config.ema)
    warmup = round(config.warmup_epochs * job.steps)
    rate = keras.optimizers.schedules.CosineDecay(
        0.0 if warmup else config.learning_rate,
        max(1, config.epochs * job.steps - warmup),
        warmup_target=config.learning_rate if warmup else None,
        warmup_steps=warmup,
    )
    optimizer = keras.optimizers.AdamW(
        rate, weight_decay=config.weight_decay, global_clipnorm=config.clip_norm or None
    )
    optimizer.exclude_from_weight_decay(var_names=["bias", "beta", "gamma"])
    model.compile(
        optimizer=optimizer,
        loss=loss,
        jit_compile=_xla(job, model),
        steps_per_execution=config.steps_per_execution,
    )
    # With mixed_float16, compile has wrapped the optimizer to scale the loss.
    model.optimizer.build(model.trainable_variables)
    return model


def _xla(job: _Job, model: keras.Model) -> bool | str:
    """Whether steps are to be compiled with XLA, as `compile` takes it.

    Raises:
        UsageError: they are, and cannot be.
    """
    asked = job.config.xla
    if asked == "no":
        return False
    obstacle = job.devices.obstacle_to_xla(model)
    if obstacle and asked == "yes":
        raise UsageError(f"`xla=yes`: {obstacle}")
    if obstacle and job.devices.kind != "cpu":
        say(f"warning: steps are not compiled with XLA: {obstacle}")
    return "auto" if asked == "auto" else True


def _fit(
    job: _Job,
    model: keras.Model,
    loss: keras.losses.Loss,
    progress: checkpoints.TrainingProgress,
    arrays: dict[str, np.ndarray] | None,
    writes: bool,
    phase: phases.Phase,
) -> None:
    config, meter = job.config, WaitMeter()
    phases.set_weights_of(phase, loss, model)
    keeper = callbacks.RunKeeper(
        job.run.path,
        progress,
        arrays,
        _validation(job, loss),
        config,
        job.steps,
        writes,
        phase,
    )
    speed = callbacks.Speed(config.batch_size, meter)
    followers = [speed, keeper]
    if writes:
        last = phases.last_epoch(job.run.config, phase)
        followers.append(callbacks.Display(last, config.batch_size, job.steps, speed, keeper))
    if writes and not storage.is_url(job.run.path):
        folder = str(storage.local_path(job.run.file(runs.TENSORBOARD_FOLDER)))
        followers.append(callbacks.Summaries(folder, job.steps, keeper))
    # An epoch that was broken off is finished by itself: Keras counts an epoch's steps from its beginning.
    # So is each epoch where several steps are one execution, which would go on into the next one.
    several = config.steps_per_execution > 1
    while progress.epoch < phase.end and not (phase.may_stop and progress.stopped):
        epoch, batch = progress.epoch, progress.batch
        batches = _training_batches(job, meter, epoch, batch)
        model.fit(
            batches.take(job.steps - batch) if several else batches,
            initial_epoch=epoch,
            epochs=epoch + 1 if batch or several else phase.end,
            steps_per_epoch=job.steps - batch,
            callbacks=followers,
            shuffle=False,  # the reader has
            verbose=0,
        )


def _training_batches(job: _Job, meter: WaitMeter, epoch: int, batch: int) -> tf.data.Dataset:
    """This machine's part of the endless batches, from a place on; waiting for them is measured."""
    devices = job.devices
    hosts = {"host": devices.host, "num_hosts": devices.num_hosts}
    share, seed = job.config.batch_size // devices.num_hosts, job.config.seed
    return meter.measure(
        job.dataset.load(
            TRAIN,
            share,
            seed=seed,
            sampling=job.config.sampling,
            start_epoch=epoch,
            start_batch=batch,
            **hosts,
        )
    )


def _validation(job: _Job, loss: keras.losses.Loss) -> callbacks.Validation | None:
    try:
        records = job.dataset.split(VALIDATION)
    except UsageError:  # the dataset was built without one, or no image of it takes part in the task
        records = None
    if records is None or not len(records):
        return None

    # Once for all epochs: whatever is built there meanwhile, the run ends on what it began with.
    batches = job.dataset.load(VALIDATION, job.config.batch_size, last_batch="pad")
    rows = runs.class_rows(job.task, records.labels)
    names, chosen = runs.score_names(job.task), job.run.selection.names
    places = [names.index(name) for name in chosen]
    return callbacks.Validation(batches, records.labels, rows, names, loss, places)


def _greeting(job: _Job, model: keras.Model, progress: checkpoints.TrainingProgress) -> str:
    by_class = " sampled by class" if job.config.sampling == CLASS_BALANCED else ""
    going_on = ""
    if progress.epoch or progress.batch:
        going_on = f"; going on at epoch {progress.epoch + 1}, step {progress.batch}"
    drawn = drawn_words(job.run.drawn)
    weights = sum(math.prod(weight.shape) for weight in averaging.own_weights(model))
    return (
        f"{job.task.name}: {job.config.model} with {weights:,} weights, loss {job.config.loss}, "
        f"{job.run.train_records:,} records{by_class} in {job.steps:,} steps of {job.config.batch_size} an "
        f"epoch, {job.devices.text}, Keras on {keras.backend.backend()}{going_on}{drawn and f'; {drawn}'}"
    )


def _save_model(model: keras.Model, path: str) -> None:
    """Writes model.keras whole or not at all; Keras itself writes to local files only."""
    with tempfile.TemporaryDirectory() as folder:
        local = os.path.join(folder, runs.MODEL_FILE)
        model.save(local)
        digests.write(path, storage.read_bytes(local))


def _versions() -> dict[str, str]:
    names = ("cxr_records", "keras", "tensorflow") + (("jax",) if keras.backend.backend() == "jax" else ())
    return {"backend": keras.backend.backend()} | {n: importlib.metadata.version(n) for n in names}
