"""`build`, `plan` and `decode` for Python: plain arguments in, values out, nothing on stdout.

They are what the commands of these names call; each argument is the option of its name. Progress and
warnings go to stderr. A mistake of the caller's is a `cxr_records.errors.CxrError` of one line that names the
argument.
"""

from collections.abc import Sequence

from cxr_records.pipelines.build import BuildResult, build_dataset
from cxr_records.pipelines.decode import DecodedImages, decode_store
from cxr_records.pipelines.engines import LOCAL_RUNNER
from cxr_records.pipelines.plan import PlanResult, plan_dataset
from cxr_records.pipelines.request import PathOrUrl, build_request_of, decode_request_of
from cxr_records.tasks import Task

__all__ = ["build", "decode", "plan"]


def build(
    images: Sequence[PathOrUrl] | PathOrUrl,
    metadata: PathOrUrl,
    out: PathOrUrl,
    *,
    task: Task | str = "multilabel",
    train_val_list: PathOrUrl | None = None,
    test_list: PathOrUrl | None = None,
    validation_list: PathOrUrl | None = None,
    validation_fraction: float = 0.125,
    test_fraction: float = 0.2,
    splits_of: PathOrUrl | None = None,
    size: int = 224,
    codec: str = "raw",
    resample: str = "bilinear",
    copies: str = "linear",
    copies_target: float = 0.03,
    copies_max: int = 10,
    copies_of: Sequence[str] | str = (),
    flip: bool = False,
    seed: int = 0,
    shard_mb: int = 64,
    store: PathOrUrl | None = None,
    workers: int | None = None,
    runner: str = LOCAL_RUNNER,
    beam_options: Sequence[str] = (),
    allow_missing: bool = False,
    max_rejected: float = 0.01,
    debug: bool = False,
) -> BuildResult:
    """Builds a dataset of TFRecord shards, or finishes it, or brings it up to date.

    Every image is decoded once and kept in an image store; a change of task, split, labels or copies is then
    a matter of seconds. Stopped at any moment, the same call goes on where it was.

    Args:
        images: folders, .zip, .tar, .tar.gz files and URLs that hold the images, any mix, or one of them.
        metadata: NIH's table: CSV or .xlsx, packed or not; 2017, 2020 or Kaggle's sample.
        out: folder of the dataset.
        task: "binary", "binary:FINDING", "binary:FINDING,FINDING", "multiclass" or "multilabel", or a `Task`.
        train_val_list: file with the names of the images to train and validate on; goes with `test_list`.
        test_list: file with the names of the images to test on.
        validation_list: file with the names of those of `train_val_list` to validate on.
        validation_fraction: share of the training images (0 to below 1) cut for validation, by patient, where
            no `validation_list` is given; 0 makes no validation split.
        test_fraction: share of all images (0 to below 1) to test on, where no lists are given.
        splits_of: folder or URL of a dataset whose splits are taken as they are, in place of lists and
            fractions. Images that it does not name go with their patient, if it has any image of the patient.
        size: side of an image, in pixels.
        codec: what a record holds: "raw" pixels, which are the fastest to read, "png" or "jpeg".
        resample: filter used to resize: "bilinear" or another name of `images.RESAMPLING`.
        copies: how training images of rare classes are repeated: "linear", "sqrt", "fixed" or "none".
        copies_target: share of the training images (above 0, below 1) below which linear and sqrt copy a
            class.
        copies_max: linear and sqrt: most records of one image, the original among them; fixed: copies of each
            image beside the original.
        copies_of: the only classes to copy for; empty for the rule's own choice.
        flip: whether copies may be flipped sideways, which fakes dextrocardia.
        seed: of splits, order and copies.
        shard_mb: aim of a shard, in MiB.
        store: folder of decoded images, which builds share; None puts it beside the dataset.
        workers: processes; None takes as many as there are cores.
        runner: name of a Beam runner, or the dotted name of its class.
        beam_options: options of Beam's own, such as "--flink_master=host:8081".
        allow_missing: go on although more than 1% of the table's images are in no source, or more than 1% of
            a list's names in no row of the table; NIH's own lists may go with any part of its table.
        max_rejected: share (0 to 1) of the images at hand that may be undecodable.
        debug: whether Beam's log goes to stderr.

    Returns:
        The finished dataset: `path`, `id`, `manifest`, `plan`, what was decoded and written.

    Raises:
        UsageError: an argument is wrong, or a path that does not fit it.
        FoundProblems: more images were rejected than `max_rejected` allows.
        CxrError: the data or the machine is not as it must be.
    """
    return build_dataset(build_request_of(**locals()))


def plan(
    metadata: PathOrUrl,
    images: Sequence[PathOrUrl] | PathOrUrl = (),
    out: PathOrUrl = "cxr14",
    *,
    task: Task | str = "multilabel",
    train_val_list: PathOrUrl | None = None,
    test_list: PathOrUrl | None = None,
    validation_list: PathOrUrl | None = None,
    validation_fraction: float = 0.125,
    test_fraction: float = 0.2,
    splits_of: PathOrUrl | None = None,
    size: int = 224,
    codec: str = "raw",
    resample: str = "bilinear",
    copies: str = "linear",
    copies_target: float = 0.03,
    copies_max: int = 10,
    copies_of: Sequence[str] | str = (),
    flip: bool = False,
    seed: int = 0,
    shard_mb: int = 64,
    store: PathOrUrl | None = None,
    workers: int | None = None,
    runner: str = LOCAL_RUNNER,
    beam_options: Sequence[str] = (),
    allow_missing: bool = False,
    max_rejected: float = 0.01,
    debug: bool = False,
) -> PlanResult:
    """Tells what `build` would write with the same arguments; writes nothing.

    Args:
        metadata: see `build`, as for every argument that is not named here.
        images: without any, it plans as if every image of the table were there.
        out: folder that `build` would write to.
        workers: processes, for the estimate of time.

    Returns:
        The plan: records, splits and classes before and after copies, and its size in bytes and seconds.

    Raises:
        UsageError: an argument is wrong, or a path that does not fit it.
        CxrError: the data is not as it must be.
    """
    return plan_dataset(build_request_of(**locals()))


def decode(
    images: Sequence[PathOrUrl] | PathOrUrl,
    metadata: PathOrUrl,
    store: PathOrUrl,
    *,
    size: int = 224,
    codec: str = "raw",
    resample: str = "bilinear",
    workers: int | None = None,
    runner: str = LOCAL_RUNNER,
    beam_options: Sequence[str] = (),
    allow_missing: bool = False,
    max_rejected: float = 0.01,
    debug: bool = False,
) -> DecodedImages:
    """Decodes images into an image store, which builds then share; those that are there are not done again.

    Args:
        images: folders, .zip, .tar, .tar.gz files and URLs that hold the images, any mix, or one of them.
        metadata: the table whose images are decoded.
        store: folder of the image store.
        size: side of an image, in pixels.
        codec: "raw", "png" or "jpeg".
        resample: filter used to resize.
        workers: processes; None takes as many as there are cores.
        runner: name of a Beam runner, or the dotted name of its class.
        beam_options: options of Beam's own.
        allow_missing: go on although more than 1% of the table's images are in no source.
        max_rejected: share (0 to 1) of the images at hand that may be undecodable.
        debug: whether Beam's log goes to stderr.

    Returns:
        The store's path, a row for every image at hand, and how many were decoded now.

    Raises:
        UsageError: an argument is wrong, or a path that does not fit it.
        FoundProblems: more images were rejected than `max_rejected` allows; the others are in the store.
        CxrError: the data or the machine is not as it must be.
    """
    request = decode_request_of(**locals())
    decoded = decode_store(request)
    decoded.check_rejected(request.max_rejected)
    return decoded
