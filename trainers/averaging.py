"""A running average of all weights, made in the training step itself, so that it costs no trip to the host.

Weights of the last steps lie around a minimum; their mean lies nearer to it (Polyak and Juditsky 1992). The
average holds everything that a model's answer depends on: what is trained, and BatchNorm's statistics too,
for those of the last batches belong to the last weights and not to the averaged ones.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np


class AveragedModel(keras.Model):  # type: ignore[misc]  # Keras has no types
    """A model that shares all layers of another and keeps, as it trains, the average of its weights.

    After step t, counted from 0, average <- d * average + (1 - d) * weight with d = min(ema, (1 + t) /
    (10 + t)): after few steps it is a mean of the later half of them and not of the first weights, so short
    runs lose nothing.

    Args:
        model: from inputs to outputs, with the weights to begin with.
        ema: the share of the average that stays at each step; above 0, below 1.
    """

    def __init__(self, model: keras.Model, ema: float):
        super().__init__(model.input, model.output, name=model.name)
        self._ema, self._of = ema, list(model.weights)
        self._averages = [
            self.add_weight(
                shape=weight.shape, dtype=weight.dtype, initializer="zeros", trainable=False, autocast=False,
                name=f"average_{place:04d}",
            )
            for place, weight in enumerate(self._of)
        ]  # fmt: skip
        self._count = self.add_weight(
            shape=(), dtype="float32", initializer="zeros", trainable=False, autocast=False, name="averaged"
        )
        for weight, average in zip(self._of, self._averages, strict=True):
            average.assign(_array(weight))

    def train_step(self, *arguments: Any) -> Any:
        """One step of Keras, and one of the average."""
        done = super().train_step(*arguments)
        if keras.backend.backend() == "jax":
            logs, state = done
            return logs, self._averaged_state(state)
        self._average_here()
        return done

    @contextlib.contextmanager
    def averaged(self) -> Iterator[None]:
        """Puts the average in place of the weights for a while."""
        kept = [_array(weight) for weight in self._of]
        try:
            for weight, average in zip(self._of, self._averages, strict=True):
                weight.assign(_array(average))
            yield
        finally:
            for weight, array in zip(self._of, kept, strict=True):
                weight.assign(array)

    def _rate(self, count: Any) -> Any:
        """How far the average goes towards the weights in the step of this number."""
        return 1 - keras.ops.minimum(self._ema, (1 + count) / (10 + count))

    def _averaged_state(self, state: tuple[Any, ...]) -> tuple[Any, ...]:
        """JAX: variables are values that go from step to step."""
        trainable, others, *rest = state
        places = {id(variable): place for place, variable in enumerate(self.non_trainable_variables)}
        values = dict(zip(map(id, self.trainable_variables), trainable, strict=True))
        values |= {key: others[place] for key, place in places.items()}
        changed, count = list(others), values[id(self._count)]
        rate = self._rate(count)
        for weight, average in zip(self._of, self._averages, strict=True):
            before = values[id(average)]
            changed[places[id(average)]] = before + rate * (values[id(weight)] - before)
        changed[places[id(self._count)]] = count + 1
        return (trainable, changed, *rest)

    def _average_here(self) -> None:
        """TensorFlow: variables change in place, on each device of a strategy by itself."""
        import tensorflow as tf

        def on_all(strategy: Any) -> None:
            rate = self._rate(tf.convert_to_tensor(self._count.value))
            for weight, average in zip(self._of, self._averages, strict=True):
                strategy.extended.update(
                    average.value,
                    lambda mean, now, rate: mean.assign_add(rate * (now - mean), read_value=False),
                    args=(weight.value, rate),
                    group=False,
                )
            strategy.extended.update(
                self._count.value, lambda count: count.assign_add(1.0, read_value=False), group=False
            )

        strategy = tf.distribute.get_strategy()
        tf.__internal__.distribute.interim.maybe_merge_call(on_all, strategy)


def averages(model: keras.Model) -> list[keras.Variable]:
    """Returns the variables of a model that hold its average, and after how many steps; none without one."""
    return [*model._averages, model._count] if isinstance(model, AveragedModel) else []


def named_averages(model: keras.Model) -> dict[str, keras.Variable]:
    """Returns the same variables by the paths of the weights that they are of, and the count as "steps"."""
    if not isinstance(model, AveragedModel):
        return {}
    paths = [weight.path for weight in model._of]
    return dict(zip(paths, model._averages, strict=True)) | {"steps": model._count}


def own_weights(model: keras.Model) -> list[keras.Variable]:
    """Returns the weights of a model without those that hold its average."""
    apart = {id(variable) for variable in averages(model)}
    return [weight for weight in model.weights if id(weight) not in apart]


@contextlib.contextmanager
def averaged(model: keras.Model) -> Iterator[None]:
    """Lets a model answer with its averaged weights for a while; one that keeps no average, with its own."""
    with model.averaged() if isinstance(model, AveragedModel) else contextlib.nullcontext():
        yield


def _array(variable: keras.Variable) -> np.ndarray:
    """A copy: two variables of one buffer cannot both be given away to a step, as JAX does.

    By way of a tensor, as a variable that lives on several devices is no array.
    """
    return np.array(keras.ops.convert_to_numpy(keras.ops.convert_to_tensor(variable)), copy=True)
