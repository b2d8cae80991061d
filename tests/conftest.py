"""The real NIH files, for the tests that need them; those skip where the files are absent."""

from pathlib import Path

import pytest

from cxr_records.metadata import Metadata, read_metadata


@pytest.fixture(scope="session")
def nih() -> Path:
    """The folder of real NIH tables, lists and images beside the repository."""
    folder = Path(__file__).parents[2] / "shared" / "nih"
    if not folder.is_dir():
        pytest.skip("the real NIH files are not at ../shared/nih")
    return folder


@pytest.fixture(scope="session")
def nih_v2020(nih: Path) -> Metadata:
    """The real table of 112,120 images, with the labels of 2020."""
    return read_metadata(str(nih / "Data_Entry_2017_v2020.csv.gz"))
