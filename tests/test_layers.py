"""Who may import whom, held by reading the source, and what a command loads, by running it."""

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from cxr_records.cli import COMMANDS

ROOT = Path(__file__).parents[1]
# Each module may import those before it; what reads stands before what writes.
ORDER = [
    "__init__", "choices", "urls", "errors", "drawings", "findings", "names", "filetypes", "columns",
    "seeding", "streams", "progress", "quiet", "layout", "storage", "locks", "parquet",
    "tfrecord", "examples", "tablefiles", "metadata", "boxes", "splits", "tasks", "sampling", "balancing",
    "decoding", "_pixels", "resizing", "png", "jpeg", "dicom", "images", "config",
    "manifest_schema", "manifest", "duplicates", "record_table", "dataset", "order", "epochs", "cache",
    "shard_files", "arrays", "tfio", "python_calls", "reader",
    "augment", "archives", "sources", "store", "planning", "shards", "tfds", "finish",
    "verification", "contact_sheet", "lookalike_patients", "lookalike_drawing", "lookalike",
    "cli", "bench", "demo", "__main__",
]  # fmt: skip
WRITING = {"archives", "augment", "finish", "planning", "shards", "sources", "store"}
HEAVY = {"apache_beam", "keras", "tensorflow", "tensorflow_datasets", "tensorflow_io"}


def imports(path: Path, always: bool = False) -> set[str]:
    """Full names that a module imports; with `always`, only those at its top, which are always imported.

    What stands under `if TYPE_CHECKING` is imported by nobody.
    """
    tree = ast.parse(path.read_text())
    tree.body = [node for node in tree.body if not _for_types_alone(node)]
    found = set()
    for node in tree.body if always else ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name} imports relatively"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def _for_types_alone(node: ast.stmt) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"


def modules(package: str) -> list[Path]:
    return sorted(path for path in (ROOT / package).rglob("*.py") if path.name != "__init__.py")


def tops(path: Path) -> set[str]:
    """What a module imports, by package; ours are cxr_records, pipelines and trainers."""
    found = {name.removeprefix("cxr_records.") for name in imports(path)}
    return {name.split(".")[0] for name in found}


def loaded_after(code: str) -> set[str]:
    """Modules that a fresh Python has loaded after running the code: those of others by their package."""
    code += (
        "\nimport json, sys; names = {name if name.startswith('cxr_records.') else name.split('.')[0] "
        "for name in sys.modules}; print(json.dumps(sorted(names)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True, timeout=120
    )
    return set(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize("path", modules("cxr_records"), ids=lambda path: path.stem)
def test_a_module_of_the_library_imports_only_those_before_it(path):
    assert path.stem in ORDER, f"say in ORDER where {path.name} stands"
    before = set(ORDER[: ORDER.index(path.stem)])

    ours = {name.split(".")[1] for name in imports(path) if name.startswith("cxr_records.")}
    # An open dataset has the reader's functions as methods, which load it when they are called.
    later = {"demo": {"pipelines", "trainers"}, "dataset": {"arrays", "reader"}}.get(path.stem, set())
    assert ours - before <= later
    always = {name.split(".")[1] for name in imports(path, always=True) if name.startswith("cxr_records.")}
    assert always <= before


@pytest.mark.parametrize("path", modules("cxr_records"), ids=lambda path: path.stem)
def test_the_library_never_imports_beam_keras_or_our_other_packages(path):
    # The reader and what it stands on need TensorFlow; the demo runs the commands of the other packages.
    allowed = {
        "reader": {"tensorflow"},
        "python_calls": {"tensorflow"},
        "tfio": {"tensorflow", "tensorflow_io"},
        "demo": {"pipelines", "trainers"},
    }.get(path.stem, set())

    assert tops(path) & (HEAVY | {"pipelines", "trainers"}) <= allowed


@pytest.mark.parametrize("path", modules("pipelines"), ids=lambda path: path.stem)
def test_pipelines_import_no_trainers_and_only_what_starts_beam_imports_it(path):
    allowed = {"apache_beam"} if path.stem in ("engines", "beam_job", "nursery") else set()

    assert tops(path) & (HEAVY | {"trainers"}) <= allowed


def test_beam_is_imported_only_when_a_job_runs():
    assert "apache_beam" not in {
        name.split(".")[0] for name in imports(ROOT / "pipelines/engines.py", always=True)
    }


@pytest.mark.parametrize(
    "path",
    [*modules("cxr_records"), *modules("pipelines")],
    ids=lambda path: f"{path.parent.name}.{path.stem}",
)
def test_no_clock_of_the_day_decides_anything(path):
    """Machines' clocks differ. The cache, on one machine, asks it which file was used last."""
    calls = {
        ast.unparse(node.func) for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)
    }
    clocks = {call for call in calls if re.search(r"\btime\.time(_ns)?$|\.(now|today|utcnow)$", call)}

    assert clocks == ({"time.time_ns"} if path.stem == "cache" else set())


@pytest.mark.parametrize("path", modules("trainers/evaluation"), ids=lambda path: path.stem)
def test_the_command_alone_knows_what_day_it_is(path):
    text = path.read_text()

    assert bool(re.search(r"\.(now|today|utcnow|fromtimestamp)\(|import time", text)) == (path.stem == "cli")


def test_the_two_other_packages_are_found_under_their_one_name():
    """The tests beside this one look for these names: under others they would find nothing and pass."""
    assert "pipelines" in tops(ROOT / "pipelines" / "cli.py")
    assert "trainers" in tops(ROOT / "trainers" / "cli.py")
    every = [*modules("cxr_records"), *modules("pipelines"), *modules("trainers")]
    assert [
        path for path in every if {n.split(".")[0] for n in imports(path)} & {"pipelines", "trainers"}
    ] == []


@pytest.mark.parametrize(
    "path",
    [*modules("cxr_records"), *modules("pipelines"), *modules("trainers")],
    ids=lambda path: f"{path.parent.name}.{path.stem}",
)
def test_parquet_files_are_read_in_one_way(path):
    """The other ways may abort the process at its end; see `parquet.read_parquet`."""
    called = {node.func for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)}
    names = {ast.unparse(function) for function in called}

    assert names & {"pq.read_table", "pq.read_pandas", "pd.read_parquet", "ds.dataset"} == set()


def test_trainers_import_no_pipelines():
    assert [path for path in modules("trainers") if "pipelines" in tops(path)] == []


def test_no_worker_or_command_of_ours_loads_tensorflow():
    names = [f"cxr_records.{path.stem}" for path in modules("cxr_records")]
    names = [name for name in names if not name.endswith(("__main__", "reader", "python_calls"))]
    names += [f"cxr_records.pipelines.{path.stem}" for path in modules("pipelines")]

    loaded = loaded_after("".join(f"import {name}\n" for name in names))

    assert loaded & {"tensorflow", "keras", "tensorflow_datasets"} == set()
    assert {"pandas", "pyarrow"} <= loaded  # so that the next test can fail


def test_reading_loads_nothing_that_writes():
    loaded = loaded_after("import cxr_records.reader")

    assert {name for name in WRITING if f"cxr_records.{name}" in loaded} == set()
    assert "cxr_records.dataset" in loaded


def test_the_face_loads_nothing_before_it_is_used():
    """So that importing it is at once done."""
    nothing, face = loaded_after(""), loaded_after("import cxr_records; dir(cxr_records)")

    assert face - nothing <= {"cxr_records", "typing", "_typing"}


def test_a_dataset_is_opened_without_tensorflow_beam_or_what_writes(dataset):
    loaded = loaded_after(
        f"import cxr_records; opened = cxr_records.open({str(dataset)!r}); opened.split('train')"
    )

    assert loaded & HEAVY == set()
    assert {name for name in WRITING if f"cxr_records.{name}" in loaded} == set()


@pytest.mark.parametrize("command", [[], *([name] for name in COMMANDS)], ids=" ".join)
def test_help_loads_none_of_the_large_packages(command):
    loaded = loaded_after(f"from cxr_records.cli import run\nassert run({[*command, '--help']!r}) == 0")

    large = {"numpy", "pandas", "pyarrow", "PIL", "fsspec", "google_crc32c", "scipy", "matplotlib", "sklearn"}
    assert loaded & (HEAVY | large) == set()
    assert "click" in loaded


# Where used-up memory is told as what it is (`errors.is_out_of_memory`), or goes on after a word of its own.
TOLD_LATER = {
    "cxr_records/cli.py _run": "says it to the user",
    "cxr_records/shard_files.py submitted": "whoever asks for the result gets it as it is",
    "pipelines/beam_job.py main": "prints it, and the command reads it",
}


def test_used_up_memory_is_never_told_as_a_broken_file():
    """Whoever turns any error into a word about a file or an image lets MemoryError pass first."""
    found = set()
    for path in sorted(
        [*ROOT.glob("cxr_records/*.py"), *ROOT.glob("pipelines/*.py"), *ROOT.glob("trainers/**/*.py")]
    ):
        for function in ast.walk(ast.parse(path.read_text())):
            if not isinstance(function, ast.FunctionDef):
                continue
            for block in (node for node in ast.walk(function) if isinstance(node, ast.Try)):
                names: set[str] = set()
                for handler in block.handlers:
                    kinds = ast.unparse(handler.type) if handler.type else "Exception"
                    passed_on = isinstance(handler.body[-1], ast.Raise) and handler.body[-1].exc is None
                    if kinds == "Exception" and not passed_on and "MemoryError" not in names:
                        found.add(f"{path.relative_to(ROOT).as_posix()} {function.name}")
                    names |= set(re.findall(r"\w+", kinds))
    assert found == set(TOLD_LATER)
