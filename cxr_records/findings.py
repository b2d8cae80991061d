"""The 14 findings of NIH ChestX-ray14, in one fixed order, and the label strings that name them.

A set of findings is held as a row of 14 zeros and ones. "No Finding" is the row of all zeros; it is
not called healthy, because experts see a finding in 36% of such images (Majkowska et al. 2019 labels).
"""

import difflib
from collections.abc import Iterable, Sequence

import numpy as np

# The order of CheXNet (Rajpurkar et al. 2017) and of MedMNIST, so that score columns can be compared.
FINDINGS = (
    "Atelectasis",
    "Cardiomegaly",
    "Effusion",
    "Infiltration",
    "Mass",
    "Nodule",
    "Pneumonia",
    "Pneumothorax",
    "Consolidation",
    "Edema",
    "Emphysema",
    "Fibrosis",
    "Pleural_Thickening",
    "Hernia",
)
NO_FINDING = "No Finding"

_PLACE = {name: place for place, name in enumerate(FINDINGS)}
_KNOWN = (*FINDINGS, NO_FINDING)


def nearest(name: str, known: Sequence[str] = _KNOWN) -> str:
    """Returns " (did you mean X?)" for the known name most like `name`, or "" when none is like it."""
    lowered = {k.lower(): k for k in known}
    match = difflib.get_close_matches(name.lower(), lowered, n=1, cutoff=0.6)
    return f" (did you mean {lowered[match[0]]}?)" if match else ""


def parse_findings(text: str) -> np.ndarray:
    """Turns a label string such as "Mass|Nodule" or "No Finding" into uint8 [14], in any token order.

    Raises:
        ValueError: a token is unknown, the string is empty, or "No Finding" stands beside a finding.
    """
    vector = np.zeros(len(FINDINGS), np.uint8)
    tokens = [token.strip() for token in text.split("|")]
    for token in tokens:
        if token in _PLACE:
            vector[_PLACE[token]] = 1
        elif token != NO_FINDING:
            if not token:
                raise ValueError(f"empty finding in {text!r}; an image without findings is {NO_FINDING!r}")
            raise ValueError(f"unknown finding {token!r}{nearest(token)}")
    if NO_FINDING in tokens and vector.any():
        raise ValueError(f"{text!r} names findings and {NO_FINDING!r} at once")
    return vector


def format_findings(vector: Iterable[int], findings: Sequence[str] = FINDINGS) -> str:
    """Turns a row of zeros and ones into the label string, in the order of `findings`."""
    return "|".join(name for name, present in zip(findings, vector, strict=True) if present) or NO_FINDING
