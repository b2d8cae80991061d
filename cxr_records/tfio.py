"""TensorFlow reading s3://, az:// and hdfs:// by itself, through tensorflow-io (extra `tfio`)."""

import ctypes
import functools
import hashlib
import os
import tempfile

from cxr_records.cache import HeldFile
from cxr_records.errors import CxrError, UsageError
from cxr_records.record_table import VERIFY

_PART_BYTES = 1 << 20


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


def fetch_by_tensorflow(url: str, num_bytes: int, sha256: str) -> HeldFile:
    """Brings a file by TensorFlow's own means to a temporary one without a name; as `ShardCache.fetch`.

    Raises:
        CxrError: it is missing, cannot be read, or its bytes are not those expected.
    """
    import tensorflow as tf

    digest, count = hashlib.sha256(), 0
    with tempfile.TemporaryFile() as file:
        try:
            with tf.io.gfile.GFile(url, "rb") as source:
                while part := source.read(_PART_BYTES):
                    digest.update(part)
                    count += len(part)
                    file.write(part)
        except tf.errors.OpError as error:
            raise CxrError(f"{url} cannot be read ({' '.join(error.message.split())}); {VERIFY}") from None
        if (count, digest.hexdigest()) != (num_bytes, sha256):
            raise CxrError(f"{url} is damaged, cut short or missing; {VERIFY}")
        file.flush()
        return HeldFile("", os.dup(file.fileno()))
