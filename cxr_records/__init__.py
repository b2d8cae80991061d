"""NIH chest X-rays to label-encoded TFRecord shards with augmented copies of rare classes.

    import cxr_records

    cxr_records.build(images=["images_001"], metadata="Data_Entry_2017_v2020.csv", out="cxr14")
    dataset = cxr_records.open("cxr14")
    batches = dataset.as_task("binary:Mass").load("train", batch_size=64, seed=0)

What is named here is loaded when it is first used.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cxr_records.dataset import Dataset as Dataset
    from cxr_records.dataset import open_dataset as open
    from cxr_records.pipelines.api import build as build
    from cxr_records.pipelines.api import plan as plan
    from cxr_records.verification import check_dataset as verify

    __version__: str

# name: (module of cxr_records, name in it)
_FACE = {
    "Dataset": ("dataset", "Dataset"),
    "build": ("pipelines.api", "build"),
    "open": ("dataset", "open_dataset"),
    "plan": ("pipelines.api", "plan"),
    "verify": ("verification", "check_dataset"),
}
__all__ = ["Dataset", "__version__", "build", "open", "plan", "verify"]


def __getattr__(name: str) -> Any:
    """Loads what is asked for by its name (PEP 562)."""
    if name == "__version__":
        from importlib.metadata import version

        value: Any = version("cxr_records")
    elif name in _FACE:
        module, attribute = _FACE[name]
        value = getattr(importlib.import_module(f"cxr_records.{module}"), attribute)
    else:
        raise AttributeError(f"module 'cxr_records' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
