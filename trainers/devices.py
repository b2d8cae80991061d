"""Where a run computes: CPUs, GPUs, TPUs, one machine or several, under TensorFlow or JAX.

With the TensorFlow backend several devices are driven by tf.distribute, with KERAS_BACKEND=jax by
keras.distribution. In both, a step's batch is split over the devices and every device holds all weights.
"""

import contextlib
import dataclasses
import os
import re
from collections.abc import Iterator
from typing import Any

from cxr_records.errors import CxrError, UsageError

KINDS = ("cpu", "gpu", "tpu")
FORMS = "auto, cpu, gpu, tpu, or a kind with a number such as gpu:2"


@dataclasses.dataclass(frozen=True)
class Devices:
    """The devices of a run, as made by `choose_devices`.

    Attributes:
        kind: "cpu", "gpu" or "tpu".
        count: devices over all machines; a step's batch is split over them.
        host: the number of this machine.
        num_hosts: how many machines take part.
        strategy: the tf.distribute strategy that spans them; None with one device or another backend.
    """

    kind: str
    count: int
    host: int = 0
    num_hosts: int = 1
    strategy: Any = None

    @property
    def text(self) -> str:
        """For people: "1 CPU", "4 GPUs on 2 machines"."""
        devices = f"{self.count} {self.kind.upper()}{'s' * (self.count > 1)}"
        return devices + (f" on {self.num_hosts} machines" if self.num_hosts > 1 else "")

    @property
    def precision(self) -> str:
        """In what to compute, as `keras.config.set_dtype_policy` takes it: in bfloat16 where that is faster,
        on TPUs and on GPUs of compute capability 8 (Ampere) or newer."""
        fast = self.kind == "tpu" or (self.kind == "gpu" and min(_generations()) >= 8)
        return "mixed_bfloat16" if fast else "float32"

    def scope(self) -> contextlib.AbstractContextManager[Any]:
        """The context in which the model is made, so that its weights live on every device."""
        return self.strategy.scope() if self.strategy else contextlib.nullcontext()

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """The context in which a model is one device's own, however many train another one together."""
        import keras

        before = keras.distribution.distribution()
        keras.distribution.set_distribution(None)
        try:
            yield
        finally:
            keras.distribution.set_distribution(before)

    def meet(self, where: str) -> None:
        """Waits until all machines have come so far, so that each sees what another has written before.

        Args:
            where: names the place, the same on each.
        """
        if self.num_hosts > 1:
            from jax.experimental import multihost_utils

            multihost_utils.sync_global_devices(where)

    def part(self) -> None:
        """Waits for the other machines to come to their end too, so that none takes another for lost."""
        if self.num_hosts > 1:
            import jax

            jax.distributed.shutdown()

    def obstacle_to_xla(self, model: Any) -> str:
        """Says why Keras cannot compile the steps of a model with XLA, and what to do; "" where it can.

        Args:
            model: a keras.Model; asked before it is compiled, with the run's kernels chosen.
        """
        import keras
        from keras.src.trainers.trainer import model_supports_jit  # what Keras itself goes by

        unfit = [layer for layer in model._flatten_layers() if not layer.supports_jit]
        if unfit:
            names = " and ".join(f"{layer.name} ({type(layer).__name__})" for layer in unfit[:2])
            more = f" and {len(unfit) - 2} more" if len(unfit) > 2 else ""
            return f"XLA cannot compile {names}{more}; replace what cannot, or give `xla=no`"
        if keras.backend.backend() == "tensorflow":
            from tensorflow.python.framework import config

            if config.is_op_determinism_enabled():
                return (
                    "TensorFlow compiles no steps while its kernels are to be deterministic; give "
                    "`deterministic=no`, or `xla=no`"
                )
            if self.strategy is not None:
                return (
                    f"Keras compiles no steps of tf.distribute ({self.text}); use KERAS_BACKEND=jax, or one"
                )
        return "" if model_supports_jit(model) else "Keras cannot do so on this machine; give `xla=no`"

    def check_batch(self, batch_size: int) -> None:
        """Refuses a batch that cannot be split evenly.

        Raises:
            UsageError: with the nearest size that can.
        """
        if batch_size % self.count:
            fitting = max(self.count, batch_size // self.count * self.count)
            raise UsageError(
                f"`batch_size={batch_size}`: cannot be split evenly over {self.text}; "
                f"take a multiple of {self.count}, such as {fitting}"
            )


def choose_devices(text: str = "auto") -> Devices:
    """Finds the devices that a run is to use and makes them ready; to be called before any tensor is made.

    Several machines, with JAX: KERAS_DISTRIBUTION_JOB_ADDRESSES, KERAS_DISTRIBUTION_NUM_PROCESSES and
    KERAS_DISTRIBUTION_PROCESS_ID say so; the run directory is one that all of them see.

    Args:
        text: "auto" (TPUs if there are any, else GPUs, else the CPU), a kind, or a kind with the number of
            devices to use. "cpu:2" splits the CPU into two virtual devices, which is for tests.

    Raises:
        UsageError: the text has another form.
        CxrError: the devices are not there.
    """
    match = re.fullmatch(rf"(auto|{'|'.join(KINDS)})(?::([1-9]\d*))?", text)
    if not match or (match[1] == "auto" and match[2]):
        raise UsageError(f"found `devices={text}`; expected {FORMS}")
    kind, wanted = match[1], int(match[2]) if match[2] else None
    import keras

    if keras.backend.backend() == "jax":
        return _jax_devices(kind, wanted)
    if keras.backend.backend() == "tensorflow":
        return _tensorflow_devices(kind, wanted)
    raise UsageError(f"KERAS_BACKEND={keras.backend.backend()}: expected tensorflow or jax")


@contextlib.contextmanager
def deterministic_kernels() -> Iterator[None]:
    """Lets only kernels run that give the same bits each time (TensorFlow; XLA on CPUs always does)."""
    import keras

    if keras.backend.backend() != "tensorflow":
        yield
        return
    from tensorflow.python.framework import config  # tf.config itself can only switch it on

    before = config.is_op_determinism_enabled()
    config.enable_op_determinism()
    try:
        yield
    finally:
        if not before:
            config.disable_op_determinism()


def _tensorflow_devices(kind: str, wanted: int | None) -> Devices:
    import tensorflow as tf

    if os.environ.get("TF_CONFIG"):
        raise UsageError(
            "found TF_CONFIG: Keras 3 does not train on several machines with TensorFlow; unset it, or use "
            "KERAS_BACKEND=jax with KERAS_DISTRIBUTION_JOB_ADDRESSES"
        )
    if os.environ.get("TPU_NAME") and kind in ("auto", "tpu"):
        return _tensorflow_tpu()
    if kind == "tpu":
        raise CxrError("found no TPU: TPU_NAME is not set; on a TPU VM set TPU_NAME=local")
    gpus = tf.config.list_physical_devices("GPU")
    if kind == "auto":
        kind = "gpu" if gpus else "cpu"
    if kind == "cpu":
        _hide(tf, "GPU")
        if wanted and wanted > 1:
            virtual = [tf.config.LogicalDeviceConfiguration()] * wanted
            _configure(
                lambda: tf.config.set_logical_device_configuration(
                    tf.config.list_physical_devices("CPU")[0], virtual
                )
            )
    elif (wanted or 1) > len(gpus):
        raise CxrError(f"found {len(gpus)} GPUs that TensorFlow can use, `devices` asks for {wanted or 1}")
    count = wanted or (len(gpus) if kind == "gpu" else 1)
    if kind == "gpu":
        for gpu in gpus:
            _configure(lambda gpu=gpu: tf.config.experimental.set_memory_growth(gpu, True))
    if count == 1:
        return Devices(kind, 1)
    names = [f"/{kind}:{place}" for place in range(count)]
    return Devices(kind, count, strategy=tf.distribute.MirroredStrategy(names))


def _tensorflow_tpu() -> Devices:
    import tensorflow as tf

    try:
        resolver = tf.distribute.cluster_resolver.TPUClusterResolver.connect(os.environ["TPU_NAME"])
    except MemoryError:
        raise
    except Exception as error:  # the resolver raises whatever its transport does
        raise CxrError(f"TPU_NAME={os.environ['TPU_NAME']}: cannot be reached: {error}") from error
    strategy = tf.distribute.TPUStrategy(resolver)
    return Devices("tpu", strategy.num_replicas_in_sync, strategy=strategy)


def _jax_devices(kind: str, wanted: int | None) -> Devices:
    import jax
    import keras
    import tensorflow as tf

    _hide(tf, "GPU")  # tf.data runs on the CPU; the memory of GPUs is JAX's
    if kind == "cpu":
        _configure(lambda: jax.config.update("jax_platforms", "cpu"))
        if wanted and wanted > 1:
            _configure(lambda: jax.config.update("jax_num_cpu_devices", wanted))
    if os.environ.get("KERAS_DISTRIBUTION_JOB_ADDRESSES"):
        keras.distribution.initialize()
    try:
        devices = jax.devices(None if kind == "auto" else kind)
    except RuntimeError as error:
        raise CxrError(f"`devices={kind}`: JAX finds none: {error}") from error
    count = wanted or len(devices)
    if count > len(devices):
        raise CxrError(f"found {len(devices)} devices of kind {kind} that JAX can use, not {count}")
    kind, num_hosts = devices[0].platform, jax.process_count()
    kind = "gpu" if kind in ("cuda", "rocm") else kind
    if count > 1:
        names = [f"{kind}:{device.id}" for device in devices[:count]]
        keras.distribution.set_distribution(
            keras.distribution.DataParallel(devices=names, auto_shard_dataset=False)
        )
    return Devices(kind, count, jax.process_index(), num_hosts)


def _generations() -> list[int]:
    """The first number of the compute capability of each GPU; 0 where it has none, as AMD's."""
    import keras

    if keras.backend.backend() == "jax":
        import jax

        texts = [str(getattr(device, "compute_capability", "")) for device in jax.local_devices()]
        return [int(text.split(".")[0]) if text[:1].isdigit() else 0 for text in texts]
    import tensorflow as tf

    gpus = tf.config.list_physical_devices("GPU")
    details = [tf.config.experimental.get_device_details(gpu) for gpu in gpus]
    return [each.get("compute_capability", (0, 0))[0] for each in details]


def _hide(tf: Any, kind: str) -> None:
    _configure(lambda: tf.config.set_visible_devices([], kind))


def _configure(set_up: Any) -> None:
    """Sets up devices; once a backend is in use it can no longer be told, which is an error of ours only
    where it was told otherwise before."""
    try:
        set_up()
    except RuntimeError as error:
        raise CxrError(f"the devices are already in use in this process: {error}") from error
