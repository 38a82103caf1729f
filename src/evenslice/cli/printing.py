"""What commands print: tables for people or one JSON document, notes, and how to go on with what was interrupted."""

from __future__ import annotations

import shlex
import sys
from contextlib import contextmanager, nullcontext, redirect_stdout
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from contextlib import AbstractContextManager
    from pathlib import Path

    from rich.console import Console, RenderableType
    from rich.table import Table
    from rich.text import Text

    from evenslice import Audit, Volume
    from evenslice.networks import ModelSource

UNBOUNDED = 10_000  # columns, more than any table needs
LONGEST_WORD = 14  # that is not broken in a cell
BESIDE = 2  # columns of space and line beside a cell


def command_line(option: str | None = None) -> str:
    """Return the command line, with an option if it lacks that, but without the secrets of addresses."""
    from evenslice._core import without_secrets

    words = ["evenslice", *without_secrets(sys.argv[1:])]
    return shlex.join(words if option is None or option in words else [*words, option])


def tell(*lines: str) -> None:
    """Print lines for people on standard error."""
    from evenslice._core import printable, without_secrets

    for line in lines:
        typer.echo(printable(without_secrets(line)), err=True)


def tell_missing(source: ModelSource, outcome: str) -> None:
    """Say which parts of a network its file of weights lacks, if it does, and what follows from it, after "they"."""
    if source.missing:
        lacks = f"lacks parts of the network ({', '.join(source.missing)})"
        tell(f"note: {source.weights} {lacks}; they {outcome}")


def tell_untrained(source: ModelSource) -> None:
    """Say which parts of a network are random because ``"imagenet"`` or ``"none"`` has no weights for them."""
    if parts := source.untrained:
        what = "the network is" if parts == ("*",) else f"parts of the network ({', '.join(parts)}) are"
        tell(
            f"note: with --weights {source.weights}, {what} randomly initialized; train it before using its output"
        )


def tell_adapted(source: ModelSource, slices: int) -> None:
    """Say that a file of weights is for another number of slices, so that the network is not the one that was trained."""
    if source.made_for not in (None, slices):
        tell(
            f"note: {source.weights} has {source.inputs} inputs; its first layer was adapted to {slices} slices: train it again"
        )


def tell_missing_slices(*volumes: Volume) -> None:
    """Say which slices folders of slices lack, by the names of their files."""
    from evenslice.volumes import missing_slices

    for volume in volumes:
        if missing := missing_slices(volume):
            tell(f"note: {volume.path}: missing slices {missing}")


def quiet(json: bool) -> AbstractContextManager[object]:
    """Send what a network prints to standard error if standard output is to hold one JSON document."""
    return redirect_stdout(sys.stderr) if json else nullcontext()


@contextmanager
def resumable(remedy: str | None) -> Iterator[None]:
    """Say in one line how to go on if the block is interrupted, and end with the status that shells expect.

    Args:
        remedy: how to go on, as the end of the line; by default the note on the interruption, if it has one.

    Raises:
        typer.Exit: it was interrupted; the status is 130 for Ctrl-C and 143 for SIGTERM.
        KeyboardInterrupt: likewise, and there is nothing to go on with.
    """
    try:
        yield
    except KeyboardInterrupt as error:
        how = remedy or " ".join(getattr(error, "__notes__", ()))
        if not how:
            raise
        what = str(error) or "interrupted"
        if not getattr(error, "told", False):  # by another process of the training
            tell(f"{what}; {how}")
        raise typer.Exit(getattr(error, "status", 130)) from None


def show(document: object, *items: RenderableType, json: bool) -> None:
    """Print a result as a JSON document or, for people, as tables, texts, and lines with commands and paths, never broken."""
    from evenslice._core import json_text, without_secrets

    if json:
        typer.echo(json_text(without_secrets(document)), nl=False)
        return
    console = _plain_console()
    for item in items:
        console.print(_fitting(item, console), soft_wrap=isinstance(item, str))


def _fitting(item: RenderableType, console: Console) -> RenderableType:
    """Keep words whole in a table that is too wide; if even that is too wide, break the lines of its cells anywhere."""
    from rich.table import Table

    if isinstance(item, Table):
        sizes, room = [*_widths(item, console)], console.width - BESIDE * len(item.columns)
        caps = [
            cap for cap in range(room) if sum(max(least, min(most, cap)) for least, most in sizes) <= room
        ]
        for column, (least, most) in zip(item.columns, sizes, strict=True):
            column.no_wrap, column.overflow = False, "fold"
            column.max_width = max(least, min(most, caps[-1])) if caps else None
    return item


def _widths(table: Table, console: Console) -> Iterator[tuple[int, int]]:
    """Yield the width of each column with its words whole, and with its lines whole."""
    unbounded = console.options.update(max_width=UNBOUNDED)
    for column in table.columns:
        sizes = [console.measure(cell, options=unbounded) for cell in (column.header, *column.cells)]
        most = max(size.maximum for size in sizes)
        yield most if column.no_wrap else min(max(size.minimum for size in sizes), LONGEST_WORD), most


def _plain_console() -> Console:
    """Return a console that takes no text for markup or emoji, and shows nothing of it that would steer a terminal."""
    from rich.console import Console

    from evenslice._core import printable, without_secrets

    class Plain(Console):
        def render_str(self, text: str, **options: Any) -> Text:
            return super().render_str(printable(without_secrets(text)), **options)

    return Plain(markup=False, emoji=False)


def show_audits(audits: Sequence[Audit], out: Path | None, *, json: bool) -> None:
    """Print audits: in JSON the only one or a list of them.

    For people, lines above a table of the answers of each say how the audits were made, and the verdicts. What lost slices cost,
    where labels were given, and what to do next stand below.
    """
    from evenslice.cli.tables import audit_parts

    documents = [audit.to_dict() for audit in audits]
    show(documents[0] if len(documents) == 1 else documents, *audit_parts(audits), *_report(out), json=json)


def show_result(document: object, result: object, *lines: str, out: Path | None = None, json: bool) -> None:
    """Print a result with its tables, where its report lies if the result is in a folder, and further lines."""
    from evenslice.cli.tables import rich_table
    from evenslice.report import tables_of

    show(document, *map(rich_table, tables_of(result)), *_report(out), *lines, json=json)


def _report(out: Path | None) -> list[str]:
    return [] if out is None else [f"report: {out / 'report.html'}"]
