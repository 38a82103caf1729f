"""The command line ``evenslice``: its commands, and how it ends."""

from __future__ import annotations

import atexit
import errno
import io
import logging
import os
import re
import sys
import sysconfig
import traceback
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

import evenslice
from evenslice import ConfigError, EvensliceError
from evenslice._core import limit_memory, local_path, printable, spelled_on_command_line, without_secrets
from evenslice.cli.audit import audit
from evenslice.cli.demo import demo
from evenslice.cli.export import export
from evenslice.cli.flip import flip
from evenslice.cli.neutralize import neutralize, symmetrize
from evenslice.cli.survey import report, survey
from evenslice.cli.training import study, train
from evenslice.cli.volumes import evaluate, info, segment

if TYPE_CHECKING:
    from collections.abc import Sequence

NO_MEMORY = re.compile("cannot allocate memory|failed to map segment", re.IGNORECASE)
"""What the loader of libraries says where memory lacks."""

LEAST_COLUMNS = 20  # that the environment can ask for

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_CLOSED = "choose a place where you may read and write"
_FULL = "make room, or choose another place"

HINTS = {
    errno.EACCES: _CLOSED,
    errno.EPERM: _CLOSED,
    errno.EROFS: "nothing can be written there; choose another place",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.ELOOP: "the link leads back to itself; name a file or a folder",
    **dict.fromkeys(FULL, _FULL),
}
"""What would be right, for each error that is the user's; any other is a defect of the program."""


class _Group(TyperGroup):
    """The program with its own options, of which flags would by themselves be shown with ``<bool>``."""

    def get_params(self, ctx: Any) -> list[Any]:
        parameters = super().get_params(ctx)
        for parameter in parameters:  # --help and those of completion among them, which Typer adds
            if getattr(parameter, "is_flag", False):
                parameter.metavar = ""
        return parameters


app = typer.Typer(
    name="evenslice",
    cls=_Group,
    help="Find and remove the colour bias that RGB-pretrained networks carry into stacks of grayscale slices.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)


class _Command(TyperCommand):
    """A command with --help among the options of the output, which tells interrupts from its own exit status."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        words = list(args)
        rest: list[str] = super().parse_args(ctx, args)
        if not ctx.resilient_parsing:  # of a line that is being completed
            # As text: an empty path has become ".". Volumes, which may be at an address, are no paths.
            given, _, _ = self.make_parser(ctx).parse_args(words)
            for parameter in self.params:
                if parameter.name in given and isinstance(ctx.params[parameter.name], Path):
                    if not given[parameter.name]:
                        option = parameter.param_type_name == "option"
                        name = parameter.opts[0] if option else parameter.metavar
                        raise ConfigError(
                            f"{name}: is empty; name a file or folder, or . for the current folder"
                        )
                    local_path(given[parameter.name], ConfigError)
        return rest

    def invoke(self, ctx: Any) -> Any:
        Path.cwd()  # raises where the folder was removed, in which libraries would end the process
        try:
            return super().invoke(ctx)
        # Typer would make it a status, as if the command had told the user.
        except KeyboardInterrupt as error:
            raise typer.Abort from error

    def get_help_option(self, ctx: Any) -> Any:  # by itself it would stand in a panel above all others
        option = super().get_help_option(ctx)
        if option is not None:
            option.rich_help_panel, option.metavar = "Output", ""
        return option


for _command in (
    *(demo, info, audit, neutralize, symmetrize, survey),
    *(train, segment, evaluate, study, export, flip, report),
):
    app.command(cls=_Command)(_command)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"evenslice {evenslice.__version__}")
        raise typer.Exit


@app.callback()
def _root(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,  # noqa: ARG001
    memory_limit: Annotated[
        float | None,
        typer.Option(
            metavar="GIB",
            show_default=False,
            help="Largest memory of the command in GiB, beyond which it ends with an error; 0 for no limit (default: nearly "
            "all of the machine's).",
        ),
    ] = None,
    version: Annotated[  # noqa: ARG001  # printed by its callback
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit."),
    ] = False,
) -> None:
    # `run` takes --debug from anywhere on the command line; it is declared here for the help.
    if sys.flags.optimize > 1:
        raise ConfigError(
            "PYTHONOPTIMIZE or -OO: removes docstrings, which libraries of networks need; use 1 or -O"
        )
    if memory_limit is not None and not 0 <= memory_limit < float("inf"):
        raise ConfigError(f"--memory-limit {memory_limit:g}: must be a number of at least 0")
    limit_memory(None if memory_limit is None else int(memory_limit * 2**30))


def run(words: Sequence[str]) -> int:
    """Run a command, report its errors, and return the exit status that ``main`` documents.

    Raises:
        KeyboardInterrupt: the user interrupted.
    """
    arguments = [word for word in words if word != "--debug"]
    debug = len(arguments) < len(words)
    columns = os.environ.get("COLUMNS", "")
    if columns.isdecimal() and int(columns) < LEAST_COLUMNS:  # of which Rich prints next to nothing
        del os.environ["COLUMNS"]  # so that it asks the terminal
    if isinstance(sys.stdout, io.TextIOWrapper):  # a sign that the terminal lacks must not end a finished job
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        status = app(args=arguments, prog_name="evenslice", standalone_mode=False)
    except typer.Abort as error:  # what Typer makes of any interrupt
        raise (
            error.__cause__ if isinstance(error.__cause__, KeyboardInterrupt) else KeyboardInterrupt
        ) from error
    except SystemExit as error:  # what Typer makes of an output that nobody reads
        if not isinstance(error.__context__, BrokenPipeError):
            raise
        return _report(error.__context__, debug=debug)
    except Exception as error:  # an internal error must not look like the status of a bias
        if _is_interrupted(error):
            raise KeyboardInterrupt from error
        return _report(error, debug=debug)
    return status if isinstance(status, int) else 0


def _is_interrupted(error: BaseException | None) -> bool:
    """Return whether an interrupt is behind an error, as where a library cannot be imported because of it."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        if isinstance(error, KeyboardInterrupt):
            return True
        seen.add(id(error))
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return False


def _report(error: Exception, *, debug: bool) -> int:
    """Tell the user about an error, and return the exit status."""
    if isinstance(error, BrokenPipeError):  # nobody reads any longer; exit without a complaint
        _discard_stdout()
        return 141  # as a shell reports SIGPIPE
    text = _line(error)
    with suppress(OSError):  # where nothing can be told, the status tells alone
        if text is None or debug:
            typer.echo(printable(without_secrets(traceback.format_exc())), err=True, nl=False)
        if text:  # without arguments, the help was shown
            typer.echo(f"error: {printable(without_secrets(' '.join(text.split())))}", err=True)
    if text is None:
        return 70
    atexit.register(_end_quietly)
    return 2


def _end_quietly() -> None:
    """Let unfinished requests to a store, of which one has failed, not complain when the interpreter exits."""
    sys.unraisablehook = lambda _: None
    logging.getLogger("asyncio").disabled = True


def _line(error: Exception) -> str | None:
    """Return what to tell about an error that is the user's; None for an internal error."""
    if isinstance(error, EvensliceError):
        line = error.render(spelled_on_command_line)
        return f"{line} (--debug shows where)" if _is_from_own_code(error.__cause__) else line
    if isinstance(error, typer.TyperException):
        message = error.format_message()
        if "extra argument" in message:
            message += "; join the values of a list by commas: 0,255"
        return message
    return _refusal(error) or _memory_refusal(error)


def _is_from_own_code(error: BaseException | None) -> bool:
    """Return whether code of the user's own raised an error, so that its traceback helps."""
    raised = () if error is None else traceback.extract_tb(error.__traceback__)
    installed = (*set(sysconfig.get_paths().values()), str(Path(evenslice.__file__).parent), "<")
    return not all(frame.filename.startswith(installed) for frame in raised)


def _refusal(error: BaseException) -> str | None:
    """Return one line about an error of the operating system that is the user's; None for any other error.

    Paths are looked at in many places, and any of them can fail so; commands therefore leave these errors to the end.
    """
    if isinstance(error, RuntimeError):  # by which pathlib reports a loop of links before Python 3.13
        error = error.__context__ or error
        if not isinstance(error, OSError) or error.errno != errno.ELOOP:
            return None
    if not isinstance(error, OSError):
        return None
    if error.errno == errno.ENOENT:
        try:
            Path.cwd()
        except OSError:
            return "the working directory: was removed; change to a folder that exists"
    if error.filename is not None and error.errno in HINTS:
        return f"{os.fsdecode(error.filename)}: {error.strerror}; {HINTS[error.errno]}"
    if error.errno in FULL:  # of an open file, such as standard output, for which the system gives no name
        _discard_stdout()
        return f"output: cannot be written ({error.strerror}); {_FULL}"
    return None


def _discard_stdout() -> None:
    """Send nowhere what standard output still holds, on which Python would fail when it ends."""
    with suppress(OSError, ValueError, AttributeError):  # it is no file of the system, or closed
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _memory_refusal(error: Exception) -> str | None:
    """Return one line about memory that runs out, which it can do anywhere; None for any other error."""
    try:
        from evenslice.inference import device_error
    except (MemoryError, ImportError, OSError) as reason:  # there is not even enough for PyTorch
        short = isinstance(reason, MemoryError) or NO_MEMORY.search(str(reason))
        return "memory has run out; end what else uses it, or raise --memory-limit" if short else None
    refusal = device_error(error)
    if refusal is None:
        return None
    line = refusal.render(spelled_on_command_line)
    return line if "--device" in line else f"{line}, or raise --memory-limit"
