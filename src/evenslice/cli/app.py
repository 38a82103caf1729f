"""The command line ``evenslice``: its commands, and how it ends."""

from __future__ import annotations

import atexit
import os
import sys
import traceback
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

import evenslice
from evenslice._core import EvensliceError, spelled_on_command_line
from evenslice.cli.audit import audit
from evenslice.cli.demo import demo
from evenslice.cli.info import info
from evenslice.cli.neutralize import neutralize
from evenslice.cli.report import report
from evenslice.cli.segment import segment
from evenslice.cli.study import study
from evenslice.cli.survey import survey
from evenslice.cli.train import train

__all__ = ["app", "main"]

app = typer.Typer(
    name="evenslice",
    help="Find and remove the colour bias that RGB-pretrained networks carry into stacks of grayscale slices.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)


class _Command(TyperCommand):
    """Shows --help among the options of the output; by itself it would stand in a panel above all others."""

    def get_help_option(self, ctx: Any) -> Any:
        option = super().get_help_option(ctx)
        if option is not None:
            option.rich_help_panel, option.metavar = "Output", ""
        return option


for _command in (demo, info, audit, neutralize, survey, train, segment, study, report):
    app.command(cls=_Command)(_command)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"evenslice {evenslice.__version__}")
        raise typer.Exit


@app.callback()
def _root(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit."),
    ] = False,
) -> None:
    # `main` takes --debug from anywhere on the command line; it is declared here for the help.
    pass


def main() -> None:
    """Run the command line and exit.

    The status is 0 when done, 1 if ``--fail-on-bias`` found a bias or runs of a study failed, 2 if the user's input is
    at fault, 70 after an internal error, 130 if interrupted, 141 if the reader of the output has gone.
    """
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    debug = len(arguments) < len(sys.argv) - 1
    try:
        status = app(args=arguments, prog_name="evenslice", standalone_mode=False)
    except (EvensliceError, typer.TyperException) as error:
        if debug:
            traceback.print_exc()
        text = (
            error.render(spelled_on_command_line)
            if isinstance(error, EvensliceError)
            else error.format_message()
        )
        if text:  # without arguments, the help was shown
            typer.echo(f"error: {' '.join(text.split())}", err=True)
        # Unfinished requests to a store may complain when the interpreter exits, after one of them has failed.
        atexit.register(setattr, sys, "unraisablehook", lambda _: None)
        status = 2
    except (KeyboardInterrupt, typer.Abort):
        status = 130
    except BrokenPipeError:  # nobody reads any longer; exit without a complaint
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 141  # as a shell reports SIGPIPE
    except Exception:  # noqa: BLE001  # an internal error must not look like the status of a bias
        traceback.print_exc()
        status = 70
    if status == 130:
        typer.echo("interrupted", err=True)
    sys.exit(status if isinstance(status, int) else 0)
