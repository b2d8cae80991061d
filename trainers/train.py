"""A run: a dataset to a trained model, going on where it was broken off."""

import contextlib
import dataclasses
import importlib.metadata
import os
import tempfile
from collections.abc import Iterator

import keras
import numpy as np
import tensorflow as tf

from cxr_records import locks, reader, storage
from cxr_records.dataset import Dataset, open_dataset
from cxr_records.errors import CxrError, UsageError
from cxr_records.progress import say
from cxr_records.splits import TRAIN, VALIDATION
from cxr_records.tasks import Task
from cxr_records.trainers import averaging, callbacks, checkpoints, digests, losses, models, named, runs
from cxr_records.trainers.config import TrainConfig
from cxr_records.trainers.devices import Devices, choose_devices, deterministic_kernels
from cxr_records.trainers.inputs import WaitMeter

# For multiclass, where one class holds a third of the images, plain cross-entropy learns the large ones only.
AUTO_LOSS = {"binary": "bce", "multilabel": "bce", "multiclass": "logit_adjusted"}
# Losses that leave the classes' frequencies to the model, which may then start from them.
_PRIOR_KEEPING = ("bce", "ce", "focal", "asymmetric")


@dataclasses.dataclass(frozen=True, eq=False)
class _Job:
    """What stays the same through a run."""

    dataset: Dataset
    run: runs.Run
    devices: Devices
    steps: int

    @property
    def config(self) -> TrainConfig:
        return self.run.config

    @property
    def task(self) -> Task:
        return self.run.task

    @property
    def counts(self) -> np.ndarray:
        """Training records that hold each class, copies included: int64 [number of scores]."""
        return np.array([count.records for count in self.run.classes.values()])


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
    if config.loss == "auto":
        config = dataclasses.replace(config, loss=AUTO_LOSS[dataset.task.kind])
    chosen = choose_devices(devices)
    chosen.check_batch(config.batch_size)
    share = config.batch_size // chosen.num_hosts
    steps = dataset.steps_per_epoch(TRAIN, share, num_hosts=chosen.num_hosts)
    described = runs.describe(run, dataset, config, _versions())
    job = _Job(dataset, described, chosen, steps)
    writes = chosen.host == 0
    if writes:
        runs.check(described)
    exact = config.deterministic == "yes" or (config.deterministic == "auto" and chosen.kind == "cpu")
    with contextlib.ExitStack() as stack:
        if exact:
            stack.enter_context(deterministic_kernels())
        stack.enter_context(_precision(config))
        loss = _loss(job)
        with chosen.scope():
            model = _compiled(job, loss)
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


def _train(
    job: _Job, model: keras.Model, loss: keras.losses.Loss, writes: bool
) -> checkpoints.TrainingProgress:
    last = checkpoints.load(job.run.file(runs.LAST_FILE))
    progress = last.progress if last else checkpoints.TrainingProgress()
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
    _fit(job, model, loss, progress, last.arrays if last else None, writes)
    job.devices.work_alone()
    if writes:
        if job.devices.num_hosts > 1:
            model = _compiled(job, loss)  # whose weights are this machine's alone
        storage.remove(job.run.file(runs.PREDICTIONS_FILE))  # of a model before this one
        _save_best(job, model)
    return progress


def _save_best(job: _Job, model: keras.Model) -> keras.Model:
    """Writes model.keras from the best weights, put into the model; returns what it holds."""
    best = checkpoints.load(job.run.file(runs.BEST_FILE))
    if best is None:
        raise _no_best(job.run)
    checkpoints.restore(model, best.arrays, ("model",))
    saved = models.with_probabilities(model, job.task.kind)
    _save_model(saved, job.run.file(runs.MODEL_FILE))
    return saved


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
    # Its first weights are replaced: there is no need to fetch any.
    run = dataclasses.replace(run, config=dataclasses.replace(run.config, weights="none"))
    job = _Job(dataset, run, Devices("cpu", 1), steps=1)
    if not _is_whole(run.file(runs.BEST_FILE)):
        raise _no_best(run)
    with _precision(run.config):
        return _save_best(job, _compiled(job, _loss(job)))


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
def _precision(config: TrainConfig) -> Iterator[None]:
    """Computes in the run's precision."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(config.precision)
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


def _compiled(job: _Job, loss: keras.losses.Loss) -> keras.Model:
    config, pixels, counts = job.config, job.dataset.manifest.pixels, job.counts
    assert pixels.mean is not None
    assert pixels.std is not None, "a dataset with a training split has both"
    bias = None
    if config.prior_bias and (config.loss in _PRIOR_KEEPING or named.is_outside(config.loss)):
        share = np.clip(counts / job.run.train_records, 1e-4, 1 - 1e-4)
        bias = np.log(share) if job.task.kind == "multiclass" else np.log(share / (1 - share))
    model = models.make_model(
        config.model,
        len(counts),
        job.run.image_format.size,
        pixels.mean,
        pixels.std,
        weights=config.weights,
        augment=config.augment,
        dropout=config.dropout,
        seed=config.seed,
        bias=bias,
        synchronized=job.devices.strategy is not None,
        say=say,
    )
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
    xla = {"auto": "auto", "yes": True, "no": False}[config.xla]
    model.compile(optimizer=optimizer, loss=loss, jit_compile=xla)
    # With mixed_float16, compile has wrapped the optimizer to scale the loss.
    model.optimizer.build(model.trainable_variables)
    return model


def _fit(
    job: _Job,
    model: keras.Model,
    loss: keras.losses.Loss,
    progress: checkpoints.TrainingProgress,
    arrays: dict[str, np.ndarray] | None,
    writes: bool,
) -> None:
    config, meter = job.config, WaitMeter()
    keeper = callbacks.RunKeeper(
        job.run.path,
        progress,
        arrays,
        _validation(job, loss),
        config,
        job.steps,
        writes,
    )
    speed = callbacks.Speed(config.batch_size, meter)
    followers = [speed, keeper]
    if writes:
        followers.append(callbacks.Display(config.epochs, config.batch_size, job.steps, speed, keeper))
    if writes and not storage.is_url(job.run.path):
        folder = str(storage.local_path(job.run.file(runs.TENSORBOARD_FOLDER)))
        followers.append(callbacks.Summaries(folder, job.steps, keeper))
    # An epoch that was broken off is finished by itself: Keras counts an epoch's steps from its beginning.
    while progress.epoch < config.epochs and not progress.stopped:
        epoch, batch = progress.epoch, progress.batch
        model.fit(
            _training_batches(job, meter, epoch, batch),
            initial_epoch=epoch,
            epochs=epoch + 1 if batch else config.epochs,
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
        job.dataset.load(TRAIN, share, seed=seed, start_epoch=epoch, start_batch=batch, **hosts)
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
    going_on = ""
    if progress.epoch or progress.batch:
        going_on = f"; going on at epoch {progress.epoch + 1}, step {progress.batch}"
    return (
        f"{job.task.name}: {job.config.model} with {model.count_params():,} weights, loss {job.config.loss}, "
        f"{job.run.train_records:,} records in {job.steps:,} steps of {job.config.batch_size} an epoch, "
        f"{job.devices.text}, Keras on {keras.backend.backend()}{going_on}"
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
