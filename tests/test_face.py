"""What `import cxr_records` gives."""

import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

import cxr_records
from cxr_records.errors import UsageError


def test_the_face_has_these_names_and_no_others():
    assert dir(cxr_records) == ["Dataset", "__version__", "build", "open", "plan", "verify"]
    assert cxr_records.__version__ == version("cxr_records")
    with pytest.raises(AttributeError, match=r"^module 'cxr_records' has no attribute 'bild'$"):
        _ = cxr_records.bild


def test_no_module_takes_the_place_of_a_name_of_the_face():
    """Importing a module sets its name in the package: `cxr_records.plan` must stay the function."""
    code = (
        "import pkgutil, importlib, cxr_records\n"
        "for module in pkgutil.iter_modules(cxr_records.__path__):\n"
        "    if module.name != '__main__': importlib.import_module(f'cxr_records.{module.name}')\n"
        "import cxr_records.pipelines.api, cxr_records.pipelines.plan, cxr_records.pipelines.build\n"
        "print(*[callable(getattr(cxr_records, name)) for name in ('build', 'open', 'plan', 'verify')])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "True True True True\n"


def test_from_files_to_batches_by_the_face_alone(lookalike, tmp_path, capsys):
    arguments = {
        "images": lookalike.images,
        "metadata": lookalike.metadata,
        "train_val_list": lookalike.train_val_list,
        "test_list": lookalike.test_list,
        "out": tmp_path / "cxr14",
        "size": 32,
        "copies": "none",
        "workers": 1,
    }
    planned = cxr_records.plan(**arguments)
    built = cxr_records.build(**arguments)
    dataset = cxr_records.open(tmp_path / "cxr14")

    assert dataset.id == built.manifest.id
    assert {name: split.records for name, split in dataset.splits.items()} == {
        name: counts["records"] for name, counts in planned.plan.split_counts().items()
    }
    assert cxr_records.verify(dataset, deep=True) == []
    images, labels = next(iter(dataset.as_task("binary:Mass").load("train", batch_size=8, seed=0)))
    assert (images.shape, images.dtype.name) == ((8, 32, 32, 1), "uint8")
    assert set(labels.numpy().tolist()) <= {0, 1}
    assert capsys.readouterr().out == ""


def test_a_mistake_in_an_argument_is_named_as_the_argument(lookalike, tmp_path):
    with pytest.raises(UsageError, match=r"^`size=3`: expected 16 to 2048 pixels$"):
        cxr_records.build(lookalike.images, lookalike.metadata, tmp_path / "cxr14", size=3)


@pytest.mark.parametrize(
    "words", [["--version"], *([name, "--help"] for name in ("build", "train", "evaluate"))], ids=" ".join
)
def test_packages_of_a_stranger_with_the_names_of_our_folders_are_not_taken(tmp_path, words):
    for name in ("pipelines", "trainers"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(f"raise SystemExit('the wrong {name}')\n")
    command = [sys.executable, "-m", "cxr_records", *words]  # which looks in the current folder first
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert "cxr-records" in done.stdout


def test_a_checkout_that_hides_the_installed_package_is_named(tmp_path):
    """Where it was not installed with -e, its folder cxr_records/ is not the whole package."""
    hiding = tmp_path / "cxr_records"
    shutil.copytree(Path(cxr_records.__file__).parent, hiding)
    code = (
        "import sys; sys.meta_path[:] = [f for f in sys.meta_path if 'editable' not in str(f).lower()]; "
        "from cxr_records.cli import main; main(['build', '--help'])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)

    assert done.returncode == 1
    assert done.stderr == (
        f"Error: {hiding} hides the installed package; call cxr-records from another folder\n"
    )
