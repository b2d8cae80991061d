"""What a user names from outside: "package.module:attribute", or "path/to/file.py:attribute".

A file stands by itself or imports what is installed. It is run once, as a module of its own.
"""

import contextlib
import dataclasses
import hashlib
import importlib
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from types import ModuleType
from typing import Any, TypeVar, cast

from cxr_records import storage
from cxr_records.errors import CxrError, UsageError
from cxr_records.findings import nearest

Maker = TypeVar("Maker", bound=Callable[..., Any])

SETTINGS = ("model", "loss", "augment")  # whose value may be named so

_FILES: dict[tuple[str, str], ModuleType] = {}  # those that were run, by path and content


@dataclasses.dataclass(frozen=True)
class NamedFile:
    """A file of the user's that a run depends on.

    Attributes:
        file: absolute path or URL.
        sha256: of its bytes, in hexadecimal.
    """

    file: str
    sha256: str


def is_outside(name: str) -> bool:
    """Tells whether a name is of something that is not ours."""
    return ":" in name


def choose(setting: str, name: str, known: Mapping[str, Maker], said: str = "") -> Maker:
    """Returns what a setting names: one of ours, or what a user has.

    Args:
        setting: "model", "loss" or "augment".
        name: the value of the setting.
        known: ours, by name.
        said: what to say of a name that is unknown; else the nearest one is suggested.

    Raises:
        UsageError: there is nothing of the name, or it cannot be called; one line says what is wrong.
    """
    if name in known:
        return known[name]
    if is_outside(name):
        return cast(Maker, _resolve(setting, name))
    said = said or f"no such {setting}{nearest(name, list(known))}"
    raise UsageError(
        f"`{setting}={name}`: {said}; expected one of {', '.join(known)}, or your own as module:function or "
        "file.py:function"
    )


def _resolve(setting: str, name: str) -> Any:
    place, attribute = _place(name), name.rpartition(":")[2]
    module = load(f"`{setting}={name}`", place)
    make = getattr(module, attribute, None)
    if make is None:
        public = [key for key in vars(module) if not key.startswith("_")]
        raise UsageError(f"`{setting}={name}`: {place} has no {attribute!r}{nearest(attribute, public)}")
    if not callable(make):
        kind = type(make).__name__
        raise UsageError(f"`{setting}={name}`: expected a function, found {attribute!r} of type {kind}")
    return make


def load(what: str, place: str) -> ModuleType:
    """Imports a module, or runs a file.

    Args:
        what: begins a message, such as "`model=nets.py:make`".
        place: "package.module" or "path/to/file.py".

    Raises:
        UsageError: it is not there, or running it failed; with its own message, file and line.
    """
    if place.endswith(".py"):
        return _run_file(what, place)
    try:
        with calling(what, place):
            return importlib.import_module(place)
    except UsageError as error:
        cause = error.__cause__
        if isinstance(cause, ModuleNotFoundError) and cause.name and f"{place}.".startswith(f"{cause.name}."):
            file = f"{place.replace('.', '/')}.py"
            hint = f"; for the file give {file}:..." if storage.exists(file) else ""
            raise UsageError(f"{what}: no module {cause.name!r} is installed{hint}") from None
        raise


def _run_file(what: str, path: str) -> ModuleType:
    source = read_file(what, path)
    # By its content, so that Keras, which writes modules' names into a model, writes the same everywhere.
    name = f"cxr_records_named_{hashlib.sha256(source).hexdigest()[:16]}"
    if (path, name) in _FILES:
        return _FILES[path, name]
    module = ModuleType(name)
    module.__file__ = path
    sys.modules[name] = module
    try:
        with calling(what, path):
            exec(compile(source, path, "exec"), vars(module))  # noqa: S102 - that is what the user asks for
    except BaseException:
        del sys.modules[name]
        raise
    _FILES[path, name] = module
    return module


def read_file(what: str, path: str) -> bytes:
    """Reads a file of the user's.

    Raises:
        UsageError: it is not there.
    """
    if not storage.exists(path):
        raise UsageError(f"{what}: no such file {path}")
    try:
        return storage.read_bytes(path)
    except OSError as error:
        raise UsageError(f"{what}: {path} cannot be read: {error.strerror or error}") from error


@contextlib.contextmanager
def calling(what: str, name: str) -> Iterator[None]:
    """Turns whatever goes wrong in a user's code into one line with its message, file and line.

    Args:
        what: begins the message.
        name: of the code.

    Raises:
        UsageError: something did.
    """
    try:
        yield
    except MemoryError:
        raise
    except Exception as error:
        kind = "" if isinstance(error, CxrError) else f"{type(error).__name__}: "
        text = error.msg if isinstance(error, SyntaxError) else str(error).strip().split("\n")[0]
        raise UsageError(f"{what}: {kind}{text}{_line_of(error, _place(name))}") from error


def _line_of(error: Exception, place: str) -> str:
    """Where in a user's file an error came about, in brackets; "" where that is elsewhere."""
    if isinstance(error, SyntaxError):
        return f" ({error.filename}, line {error.lineno})"
    file = getattr(sys.modules.get(place), "__file__", None) or place
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file]
    return f" ({file}, line {lines[-1]})" if lines else ""


def _place(name: str) -> str:
    """The module or file of "place:attribute"."""
    return name.rpartition(":")[0] if is_outside(name) else name


def files_of(settings: Mapping[str, Any]) -> dict[str, NamedFile]:
    """Returns the files that settings name, by setting.

    Raises:
        UsageError: one is not there.
    """
    files = {}
    for setting in SETTINGS:
        value = str(settings[setting])
        place = _place(value)
        if is_outside(value) and place.endswith(".py"):
            data = read_file(f"`{setting}={value}`", place)
            files[setting] = NamedFile(storage.absolute(place), hashlib.sha256(data).hexdigest())
    return files


def objects(settings: Mapping[str, Any], files: Mapping[str, NamedFile]) -> dict[str, Any]:
    """Returns classes and functions by name that a saved model may be made of.

    Args:
        settings: of which model is looked at; no saved model holds an augmentation.
        files: as `files_of` returned them when the run began; without one, what is there is taken.

    Raises:
        UsageError: one is not there, or no longer what it was.
    """
    value = str(settings["model"])
    if not is_outside(value):
        return {}
    what, place = f"`model={value}`", _place(value)
    if "model" in files:
        place = files["model"].file
        digest = hashlib.sha256(read_file(what, place)).hexdigest()
        if digest != files["model"].sha256:
            raise UsageError(f"{what}: {changed(place, digest, files['model'].sha256)}")
    return {key: value for key, value in vars(load(what, place)).items() if callable(value)}


def changed(path: str, now: str, before: str) -> str:
    """Says that a file is no longer what it was when the run began."""
    return (
        f"{path} has changed since the run began: found sha256 {now[:12]}, expected {before[:12]}; "
        "put it back as it was, or train into another folder"
    )
