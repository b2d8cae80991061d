"""The command `cxr-records`. Commands are loaded when they are called, so that --help is at once there."""

import gc
import importlib
import json
import os
import re
import resource
import signal
import sys
import traceback
from typing import NoReturn

import click

from cxr_records import streams
from cxr_records.errors import NO_MEMORY, CxrError, FoundProblems, UsageError, is_out_of_memory

# name: (module of cxr_records:function, what it does)
COMMANDS = {
    "build": ("pipelines.cli:build", "Images and a table to a finished dataset of TFRecord shards."),
    "plan": ("pipelines.cli:plan", "Tell what build would write, how large, how long; write nothing."),
    "decode": ("pipelines.cli:decode", "Only the slow part of build: bring the image store up to date."),
    "verify": ("cli:verify", "Check a dataset against its manifest, byte by byte."),
    "bench": ("bench:bench", "How fast a dataset's records are read into a trainer."),
    "train": ("trainers.cli:train", "Train a model on a dataset, and evaluate it."),
    "evaluate": (
        "trainers.evaluation.cli:evaluate",
        "Score runs or a table of predictions; write a report.",
    ),
    "predict": ("trainers.cli:predict", "Score single PNG, JPEG or DICOM files with a trained run."),
    "export": ("trainers.cli:export", "Write a trained run's model for a server: SavedModel, ONNX, TFLite."),
    "explain": ("trainers.explain_cli:explain", "Draw where scores come from; measure it against boxes."),
    "demo": ("demo:demo", "Make a small look-alike set and run the main job on it."),
}
# Packages that only some commands need: the extra that brings each.
_EXTRAS = {
    **dict.fromkeys(("tensorflow", "keras", "jinja2", "matplotlib", "scipy", "sklearn"), "train"),
    **dict.fromkeys(("onnx", "tf2onnx", "onnxruntime", "ai_edge_litert"), "export"),
    "jax": "jax",
}
_MAPPED = ("cxr_records.pipelines", "cxr_records.trainers")  # which setup.cfg puts below this package
EXIT_CODES = (
    "Exit codes: 0 done; 1 failed; 2 wrong usage; 3 the check found problems, or too many images were "
    "rejected; 130 and 143 ended by Ctrl-C and SIGTERM."
)


class PathType(click.ParamType):  # type: ignore[type-arg]  # generic in later versions of click
    """A path or URL of the user's: every option and argument that takes one is of this type."""

    name = "path"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Applies the one rule for paths, `storage.given`."""
        from cxr_records import storage

        try:
            return storage.given(value)
        except UsageError as error:
            raise UsageError(f"`{param.name}`: {error}" if param else str(error)) from None


PATH = PathType()


class LazyGroup(click.Group):
    """A group that knows its commands by name and imports one when it is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Returns the names in the order of the work."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        """Imports a command; None where there is none of the name."""
        if name not in COMMANDS:
            return None
        module, function = COMMANDS[name][0].split(":")
        command: click.Command = getattr(importlib.import_module(f"cxr_records.{module}"), function)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Writes the list of commands without importing any."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Finds a command, or says which one may have been meant."""
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            from cxr_records.findings import nearest

            ctx.fail(f"no such command {args[0]!r}{nearest(args[0], list(COMMANDS))}")
        return super().resolve_command(ctx, args)


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]}, epilog=EXIT_CODES)
@click.version_option(package_name="cxr_records")
def cli() -> None:
    """NIH chest X-rays to TFRecord shards, with augmented copies of rare classes.

    \b
    Example:
      cxr-records build --images images_*.tar.gz --metadata Data_Entry_2017_v2020.csv \\
          --train-val-list train_val_list.txt --test-list test_list.txt --out cxr14
    """


@click.command()
@click.argument("dataset", type=PATH)
@click.option("--deep", is_flag=True, help="Read and check every record, not only the bytes of each file.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout and nothing else.")
@click.option("--debug", is_flag=True, help="Show tracebacks.")
def verify(dataset: str, deep: bool, as_json: bool, debug: bool) -> None:
    """Check a dataset against its manifest.

    Sizes and sha256 of every file; where one is damaged, which record of which image it is. With --deep
    also every record: checksums, features, image shape, label against findings, patients across splits.

    \b
    Example:
      cxr-records verify cxr14 --deep
    """
    from cxr_records.verification import check_dataset

    problems = check_dataset(dataset, deep)
    if as_json:
        rows = [{"path": p.path, "record": p.record, "message": p.message} for p in problems]
        click.echo(json.dumps({"ok": not problems, "problems": rows}))
    else:
        for problem in problems:
            click.echo(str(problem))
        if not problems:
            click.echo(f"{dataset}: ok ({'every record' if deep else 'every byte'} checked)")
    if problems:
        raise FoundProblems(f"{len(problems)} problem{'s' * (len(problems) > 1)} in {dataset}")


class _Terminated(BaseException):
    """The command was told to end by SIGTERM or SIGHUP."""


def _terminate(number: int, frame: object) -> NoReturn:
    raise _Terminated(number)


def main(arguments: list[str] | None = None) -> NoReturn:
    """Runs the command line; every error of the user's is one line, and every process has ended after it."""
    # Commands load a thousand modules and make objects for each row of a table, nearly all of which stay:
    # looking for garbage among them after every 700 takes an eighth of a rebuild.
    gc.set_threshold(50_000, 20, 20)
    # Before Arrow is loaded: its own allocator keeps what is freed, and what Python frees goes unused.
    os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")
    streams.reopen()
    arguments = sys.argv[1:] if arguments is None else arguments
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:  # nohup's wish is kept
            signal.signal(number, _terminate)
    code = run(arguments)
    # Beam leaves threads behind that Python would wait for, for ever after an interruption.
    os._exit(code)


def run(arguments: list[str]) -> int:
    """Runs one command and returns its exit code; what went wrong has been said in one line on stderr."""
    with streams.doors() as (out, _):
        code = _run(arguments)
        out.flush()
        if out.error is not None and code == 0:
            code = _say(f"Error: standard output: {out.error.strerror}; the work itself is done", 1)
    return code


def _run(arguments: list[str]) -> int:
    try:
        return cli.main(arguments, prog_name="cxr-records", standalone_mode=False) or 0
    except click.exceptions.Exit as error:
        return error.exit_code
    except click.UsageError as error:
        command = error.ctx.command_path if error.ctx else "cxr-records"
        return _say(f"Error: {error.format_message().rstrip('.')}; see {command} --help", error.exit_code)
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        return _say("stopped; the same command goes on from here", 130)
    except _Terminated as error:
        return _say("told to end; the same command goes on from here", 128 + error.args[0])
    except Exception as error:
        if "--debug" in arguments:
            traceback.print_exc()
        if isinstance(error, CxrError):
            return _say(f"Error: {in_options(str(error), _command_of(arguments))}", error.exit_code)
        if is_out_of_memory(error):
            return _say(f"Error: {in_options(NO_MEMORY, _command_of(arguments))}", 1)
        if isinstance(error, ModuleNotFoundError) and error.name in _EXTRAS:
            extra = _EXTRAS[error.name]
            return _say(f"Error: {error.name} is not installed; pip install '.[{extra}]' in a clone", 1)
        if isinstance(error, ModuleNotFoundError) and error.name in _MAPPED:
            # Python looks where it was started first, and a checkout's cxr_records/ is not the whole package.
            folder = os.path.dirname(__file__)
            return _say(
                f"Error: {folder} hides the installed package; call cxr-records from another folder", 1
            )
        if isinstance(error, OSError) and error.strerror:
            return _say(f"Error: {error.filename or 'the system says'}: {error.strerror}", 1)
        text = " ".join(str(error).split())
        most, _ = resource.getrlimit(resource.RLIMIT_AS)
        limit = f", or ulimit -v {most >> 10} is too little" if most != resource.RLIM_INFINITY else ""
        return _say(f"Error: {type(error).__name__}: {text} (a fault of ours{limit}; --debug shows where)", 1)


def in_options(text: str, command: click.Command | None) -> str:
    """Returns a message of the library in the command line's words.

    The library names an argument in backquotes, as `copies_max=0` or `store`. Where the command has an option
    or argument of that name, it is what the user typed: --copies-max 0, --store. Where it has an option that
    changes settings, `epochs=0` is --set epochs=0.
    """
    params = command.params if command else []
    names = {param.name: param for param in params}
    # An option has `settings`, the names of those that it changes.
    settings = {name: param.opts[0] for param in params for name in getattr(param, "settings", ())}

    def option(argument: re.Match[str]) -> str:
        param = names.get(argument["name"])
        if param is None and (change := settings.get(argument["name"].partition(".")[0])):
            return f"{change} {argument[0][1:-1]}"
        if param is None:
            return argument[0]
        name = param.opts[0] if isinstance(param, click.Option) else param.human_readable_name
        value = argument["value"]
        if value is None or value == "True":
            return name
        return f"{name} {value[1:-1] if value[:1] == value[-1:] == chr(39) else value}"

    return re.sub(r"`(?P<name>[a-z_]+(?:\.[a-z_]+)?)(?:=(?P<value>[^`]*))?`", option, text)


def _command_of(arguments: list[str]) -> click.Command | None:
    """The command that was called, once it is loaded."""
    name = next((word for word in arguments if word in COMMANDS), None)
    return cli.get_command(click.Context(cli), name) if name else None


def _say(text: str, code: int) -> int:
    """Says what went wrong, in one line: a name that the user gave may hold line ends."""
    click.echo(text.replace("\r", "\\r").replace("\n", "\\n"), err=True)
    return code
