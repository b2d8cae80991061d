"""TensorFlow reading s3://, az:// and hdfs:// by itself, through tensorflow-io (extra `tfio`)."""

import ctypes
import functools
import os

from cxr_records.errors import UsageError


@functools.cache
def enable_tensorflow_io() -> None:
    """Loads tensorflow-io, so that file names inside tf.data may be its URLs.

    It knows the endpoint of an S3 server by variables of its own, which follow AWS_ENDPOINT_URL here.

    A process that has used it (0.37.1) aborts in the destructors of its C++ library when it ends:
    "pure virtual method called". So the process leaves before them, after all of Python's own ending, with
    its status.

    Raises:
        UsageError: tensorflow-io is not installed.
    """
    if endpoint := os.environ.get("AWS_ENDPOINT_URL"):
        os.environ.setdefault("S3_ENDPOINT", endpoint)
        if endpoint.startswith("http://"):
            os.environ.setdefault("S3_USE_HTTPS", "0")
            os.environ.setdefault("S3_VERIFY_SSL", "0")
    if region := os.environ.get("AWS_DEFAULT_REGION"):
        os.environ.setdefault("AWS_REGION", region)
    try:
        import tensorflow_io  # noqa: F401 - registers its file systems
    except ImportError as error:
        raise UsageError(
            f"reading without a local cache needs tensorflow-io ({error}); pip install '.[tfio]' in a clone, "
            "or leave out direct=True"
        ) from error
    libc = ctypes.CDLL(None)
    if hasattr(libc, "on_exit"):  # glibc; what is registered last is called first, with the status
        libc.on_exit(ctypes.cast(libc._exit, ctypes.c_void_p), None)
