"""What happens beside the steps of a run: validation, checkpoints, early stopping, and what people see."""

import csv
import io
import math
import time
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from cxr_records import storage
from cxr_records.errors import CxrError
from cxr_records.progress import Progress, say
from cxr_records.trainers import averaging, checkpoints, digests, runs, scoring
from cxr_records.trainers.config import TrainConfig
from cxr_records.trainers.evaluation import metrics
from cxr_records.trainers.evaluation.results import mean_over
from cxr_records.trainers.inputs import WaitMeter
from cxr_records.trainers.phases import RETRAIN, REWEIGHT, TRAIN, Phase

BATCHES_BETWEEN_SUMMARIES = 100
# Epochs before a phase may have been better, and count no longer.
_OF_PHASE = {TRAIN: "", REWEIGHT: " with deferred weights", RETRAIN: " of retraining"}


class _Callback(keras.callbacks.Callback):  # type: ignore[misc]  # Keras has no types
    """What every callback of ours is to a type checker."""

    def done(self, batch: int) -> int:
        """Returns how many steps Keras has done in an epoch; `batch` is the last of an execution, in which
        the epoch's end may have come before."""
        steps = (self.params or {}).get("steps")
        return min(batch + 1, steps) if steps else batch + 1


class Validation:
    """Loss and AUROC of a model on the validation split.

    Args:
        batches: of the split, in manifest order, padded.
        labels: int64 [n] or [n, 14].
        rows: uint8 [n, k], 1 where the image holds the class that score k is of.
        names: of the k scores.
        loss: takes labels and logits.
        chosen: places of the scores whose mean AUROC tells epochs apart; see `selection.choose`.
    """

    def __init__(
        self,
        batches: tf.data.Dataset,
        labels: np.ndarray,
        rows: np.ndarray,
        names: tuple[str, ...],
        loss: keras.losses.Loss,
        chosen: Sequence[int],
    ):
        self._batches, self._labels, self._rows = batches, labels, rows
        self._names, self._loss, self._chosen = names, loss, list(chosen)

    def __call__(self, model: keras.Model) -> dict[str, float]:
        """Returns val_loss, val_macro_auroc, val_selection_auroc and val_auroc_NAME for each.

        Macro is over all classes that have an AUROC, selection over those that tell epochs apart; NaN where
        there is none.
        """
        logits = scoring.score(model, self._batches, len(self._rows))
        # Sigmoids keep the order of the scores, on which alone AUROC depends; a softmax does not.
        softmax = self._labels.ndim == 1 and len(self._names) > 1
        scores = scoring.probabilities(logits, "multiclass") if softmax else logits
        each = metrics.auroc_per_class(self._rows, scores)
        measured = {
            "val_loss": float(self._loss(self._labels.astype(np.int32), logits)),
            "val_macro_auroc": metrics.macro(each),
            runs.SELECTION_AUROC: metrics.macro(each[self._chosen]),
        }
        return measured | {
            f"{runs.CLASS_AUROC}{name}": float(v) for name, v in zip(self._names, each, strict=True)
        }


class RunKeeper(_Callback):
    """Keeps a run on disk, so that it can be killed anywhere and goes on with the same bits.

    Args:
        run: the run directory.
        progress: where it begins; changed in place.
        metrics_state: arrays of the last checkpoint, when it was made in the middle of an epoch.
        validation: None without a validation split; the last weights then count as the best.
        config: says which epoch is kept, when training stops, and how often checkpoints are made.
        steps: of an epoch.
        writes: whether this machine writes (one of them does).
        phase: which epochs these are.
    """

    def __init__(
        self,
        run: str,
        progress: checkpoints.TrainingProgress,
        metrics_state: dict[str, np.ndarray] | None,
        validation: Validation | None,
        config: TrainConfig,
        steps: int,
        writes: bool,
        phase: Phase,
    ):
        super().__init__()
        self.phase = phase
        self._run, self.progress, self._metrics_state = run, progress, metrics_state
        self._validation, self._config, self._steps = validation, config, steps
        self._seconds_between = 60 * config.checkpoint_minutes
        self._writes = writes
        self._first_batch = 0
        self._skipped = 0  # steps, as was said
        self._saved = time.monotonic()

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Puts back the running loss of an epoch that was broken off."""
        self._first_batch = self.progress.batch
        if self._metrics_state and self._first_batch:
            checkpoints.restore(self.model, self._metrics_state, ("metrics",))
        self._metrics_state = None

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Makes a checkpoint when it is time for one.

        Raises:
            CxrError: the loss is no longer a number.
        """
        done = self._first_batch + self.done(batch)
        if done < self._steps and time.monotonic() - self._saved >= self._seconds_between:
            self._check(logs["loss"])
            self.progress.batch = done
            self._save(runs.LAST_FILE)

    def on_epoch_end(self, epoch: int, logs: dict[str, Any]) -> None:
        """Validates, writes history and checkpoints, stops when it no longer gets better.

        Validation and the best weights are of the average, where the model keeps one.

        Raises:
            CxrError: the loss is no longer a number, or no step has changed a weight yet.
        """
        self._check(logs["loss"])
        self._check_updates()
        with averaging.averaged(self.model):
            better = self._end(epoch, logs)
            if better:
                self._save(runs.BEST_FILE)
        self._save(runs.LAST_FILE)
        if self._writes:
            digests.write(storage.join(self._run, runs.HISTORY_FILE), history_csv(self.progress.history))
        logs |= self.progress.history[-1]

    def _end(self, epoch: int, logs: dict[str, Any]) -> bool:
        """Validates, notes an epoch in the progress, and tells whether its weights are to be kept."""
        row: dict[str, Any] = {"epoch": epoch + 1, "steps": self._steps, "loss": float(logs["loss"])}
        row |= self._validation(self.model) if self._validation else {}
        row[runs.PHASE] = self.phase.name
        row["learning_rate"] = float(keras.ops.convert_to_numpy(self.model.optimizer.learning_rate))
        row |= {key: logs[key] for key in ("images_per_second", "input_wait_share", "seconds")}
        progress = self.progress
        score, patience = row.get(runs.SELECTION_AUROC, math.nan), self._config.patience
        first = not progress.history or progress.history[-1].get(runs.PHASE, TRAIN) != self.phase.name
        better = first or progress.best is None or score > progress.best or self._config.keep == "last"
        if better:
            progress.best = None if math.isnan(score) else score
            progress.best_epoch = epoch + 1
        progress.epoch, progress.batch = epoch + 1, 0
        progress.retrained += self.phase.name == RETRAIN
        progress.history.append(row)
        may_stop = self.phase.may_stop and (epoch + 1) * self._steps >= self._config.min_steps
        if patience and may_stop and epoch + 1 - progress.best_epoch >= patience:
            progress.stopped = self.model.stop_training = True
        return better

    def _check(self, loss: Any) -> None:
        if not math.isfinite(float(loss)):
            there = storage.exists(storage.join(self._run, runs.LAST_FILE))
            kept = "the last good checkpoint is kept" if there else "there is no checkpoint yet"
            raise CxrError(
                f"{self._run}: the loss became {float(loss)} in epoch {self.progress.epoch + 1}; {kept}; try "
                "a smaller learning_rate or clip_norm in a new run"
            )

    def _check_updates(self) -> None:
        """Says how many steps changed nothing, because gradients in float16 overflowed.

        Keras' LossScaleOptimizer begins with a scale of 32,768 and halves it with each such step, until the
        gradients fit: those of a fresh ResNet-50, up to 107, take 6 steps.
        """
        optimizer = self.model.optimizer
        if not hasattr(optimizer, "dynamic_scale"):
            return
        done = (self.progress.epoch + 1) * self._steps
        updates, scale = (
            float(keras.ops.convert_to_numpy(v)) for v in (optimizer.iterations, optimizer.dynamic_scale)
        )
        if not updates:
            raise CxrError(
                f"{self._run}: none of the {done} steps changed a weight: gradients overflow float16, at a "
                f"loss scale of {scale:g} still; give `precision=mixed_bfloat16` or float32 in a new run"
            )
        if updates < done - self._skipped:
            self._skipped = done - int(updates)
            say(
                f"warning: {self._skipped} of {done} steps changed nothing: their gradients overflowed "
                f"float16; the loss scale is {scale:g} now"
            )

    def _save(self, file: str) -> None:
        if self._writes:
            checkpoints.save(storage.join(self._run, file), self.model, self.progress)
        self._saved = time.monotonic()


def history_csv(history: list[dict[str, Any]]) -> bytes:
    """Returns the history as a table, one row per epoch."""
    out = io.StringIO()
    # The last row's: the first may be of a version that had no phases.
    writer = csv.DictWriter(out, list(history[-1]), lineterminator="\n")
    writer.writeheader()
    for row in history:
        writer.writerow({key: f"{v:.6g}" if isinstance(v, float) else v for key, v in row.items()})
    return out.getvalue().encode()


class Speed(_Callback):
    """Measures images per second and the share of the time in which the trainer waited for input.

    Comes first among the callbacks: it adds images_per_second, input_wait_share and seconds to an epoch's
    logs. The time of the first batch of all is left out, or that of the first execution of several: it holds
    the compilation.
    """

    def __init__(self, batch_size: int, meter: WaitMeter):
        super().__init__()
        self._batch_size, self._meter = batch_size, meter
        self._running = False

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Starts the clock, but for the first epoch."""
        self._batches, self._left_out, self._began = 0, 0, time.monotonic()
        if self._running:
            self._start()

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Counts batches up to this one."""
        if not self._running:
            self._running, self._left_out = True, self.done(batch)
            self._start()
            return
        self._batches = self.done(batch) - self._left_out

    def on_epoch_end(self, epoch: int, logs: dict[str, Any]) -> None:
        """Adds the figures of the epoch."""
        rate, share = self.figures()
        seconds = time.monotonic() - self._began
        logs |= {"images_per_second": rate, "input_wait_share": share, "seconds": seconds}

    def figures(self) -> tuple[float, float]:
        """Returns (images per second, share of time waited) of the epoch; NaN before its second batch."""
        seconds = time.monotonic() - self._started if self._batches else math.nan
        waited = self._meter.seconds - self._waited if self._batches else math.nan
        return self._batches * self._batch_size / seconds, min(1.0, waited / seconds)

    def _start(self) -> None:
        self._started, self._waited = time.monotonic(), self._meter.seconds


class Display(_Callback):
    """Shows an epoch as it runs, and a line for each that is done. Comes last among the callbacks."""

    def __init__(self, epochs: int, batch_size: int, steps: int, speed: Speed, keeper: RunKeeper):
        super().__init__()
        self._epochs, self._batch_size, self._steps = epochs, batch_size, steps
        self._speed, self._keeper = speed, keeper
        self._noted = 0.0

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Opens the bar."""
        self._first = self._keeper.progress.batch
        self._note = ""
        self._progress = Progress(
            f"epoch {epoch + 1}/{self._epochs}", "images", self._steps * self._batch_size
        )

    def on_train_batch_end(self, batch: int, logs: dict[str, Any]) -> None:
        """Moves the bar; now and then reads the loss, which makes the host wait for the device."""
        if time.monotonic() - self._noted > 2:
            self._noted = time.monotonic()
            self._note = f"loss {float(logs['loss']):.4f}, input wait {self._speed.figures()[1]:.1%}"
        self._progress.update((self._first + self.done(batch)) * self._batch_size, self._note)

    def on_epoch_end(self, epoch: int, logs: dict[str, Any]) -> None:
        """Says what the epoch brought."""
        self._progress.close()
        parts = [f"epoch {epoch + 1}/{self._epochs}: loss {logs['loss']:.4f}"]
        if "val_macro_auroc" in logs:
            best = ""
            if self._keeper.progress.best_epoch == epoch + 1:
                best = f" (best so far{_OF_PHASE[self._keeper.phase.name]})"
            classes = [key for key in logs if key.startswith(runs.CLASS_AUROC)]
            lacks = [key.removeprefix(runs.CLASS_AUROC) for key in classes if math.isnan(logs[key])]
            over = mean_over(lacks, len(classes))
            parts.append(f"validation macro AUROC{over} {logs['val_macro_auroc']:.4f}{best}")
        if self._speed._batches:
            parts.append(f"{logs['images_per_second']:,.0f} images/s")
            parts.append(f"waited for input {logs['input_wait_share']:.1%} of the time")
        say(", ".join(parts))


class Summaries(_Callback):
    """Writes scalars for TensorBoard, by epoch, and the running loss by step.

    Args:
        folder: a local one.
        steps: of an epoch.
        keeper: knows where an epoch goes on.
    """

    def __init__(self, folder: str, steps: int, keeper: RunKeeper):
        super().__init__()
        self._folder, self._steps, self._keeper = folder, steps, keeper
        self._writer = tf.summary.create_file_writer(folder)

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Remembers the first step."""
        self._first = self._step = epoch * self._steps + self._keeper.progress.batch

    def on_train_batch_end(self, batch: int, logs: dict[str, Any]) -> None:
        """Writes the running loss every so many steps."""
        before, self._step = self._step, self._first + self.done(batch)
        if self._step // BATCHES_BETWEEN_SUMMARIES > before // BATCHES_BETWEEN_SUMMARIES:
            with self._writer.as_default(step=self._step):
                tf.summary.scalar("step/loss", float(logs["loss"]))

    def on_epoch_end(self, epoch: int, logs: dict[str, Any]) -> None:
        """Writes the numbers of the epoch."""
        with self._writer.as_default(step=epoch + 1):
            for key, value in logs.items():
                if isinstance(value, float) and math.isfinite(value):
                    of_class = key.startswith(runs.CLASS_AUROC)
                    name = f"auroc/{key.removeprefix(runs.CLASS_AUROC)}" if of_class else f"epoch/{key}"
                    tf.summary.scalar(name, value)
        self._writer.flush()
