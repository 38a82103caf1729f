"""Directives of the reference: commands with their options, and configurations with theirs, from the code itself.

    ```{command-summary} audit        what a command does
    ```{command} audit                its usage, and its arguments and options by group
    ```{configuration} evenslice.TrainConfig       each section of a configuration, with every option in it

Typer's own ``utils docs`` writes such pages too, but without the groups in which ``--help`` shows the options, and the
extensions of Sphinx for click know nothing of the click that Typer brings along.
"""

from __future__ import annotations

import importlib
import json
import re
from typing import TYPE_CHECKING, Any

from docutils.statemachine import StringList
from sphinx.util.docutils import SphinxDirective

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from docutils.nodes import Node
    from sphinx.application import Sphinx


def commands() -> dict[str, Any]:
    """Return the commands of the command line by name."""
    from typer.main import get_command

    from evenslice.cli.app import app

    group: Any = get_command(app)
    return dict(group.commands)


def command_lines(name: str) -> list[str]:
    """Return what a command takes, as lines of Markdown.

    Example:
        >>> command_lines("info")[1]
        '$ evenslice info [OPTIONS] {PATH}'
    """
    import typer

    command = commands()[name]
    context = typer.Context(command, info_name=name)
    usage = " ".join(["evenslice", name, *command.collect_usage_pieces(context)])
    lines = ["```console", f"$ {usage}", "```", ""]
    panels: dict[str, list[Any]] = {}
    for parameter in command.get_params(context):
        panel = "Arguments" if parameter.param_type_name == "argument" else "Options"
        panels.setdefault(getattr(parameter, "rich_help_panel", None) or panel, []).append(parameter)
    for panel in sorted(panels, key=lambda name: name != "Arguments"):
        head = "argument" if panel == "Arguments" else "option"
        rows = (_option(parameter, context) for parameter in panels[panel])
        lines += [f"**{panel}**", "", *table((head, "meaning"), rows), ""]
    return lines


def _option(parameter: Any, context: Any) -> tuple[str, str]:
    """Return the names of a parameter with its placeholder, and its help with its default."""
    record = parameter.get_help_record(context)
    names, text = record if record is not None else (parameter.name, parameter.help or "")
    return f"`{names}`", re.sub(r"(?<!\S)--[a-z][a-z-]*", r"`\g<0>`", text)


def configuration_lines(section: type[Any]) -> Iterator[str]:
    """Yield the options of a configuration and of the sections in it, each kind of section once, as lines of Markdown."""
    places = _places(section)
    for kind, place in places.items():
        rows = []
        for name, field in kind.model_fields.items():
            inner = _section(field.annotation)
            default = f"see `{places[inner]}`" if inner in places else _default(field)
            rows.append((f"`{name}`", default, field.description or ""))
        yield from [f"**`{place}`**" if place else "**At the top**", ""]
        yield from [(kind.__doc__ or "").partition("\n\n")[0].strip(), ""]
        yield from [*table(("option", "default", "meaning"), rows), ""]


def _places(section: type[Any]) -> dict[type[Any], str]:
    """Return the sections of a configuration, each with the first place at which it stands; "" for the whole."""
    places, waiting = {section: ""}, [section]
    while waiting:
        kind = waiting.pop(0)
        for name, field in kind.model_fields.items():
            inner = _section(field.annotation)
            if inner is not None and inner not in places:
                places[inner] = f"{places[kind]}.{name}".lstrip(".")
                waiting.append(inner)
    return places


def _section(annotation: Any) -> type[Any] | None:
    """Return the section that an option holds, itself or as the items of a list."""
    from pydantic import BaseModel

    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next(filter(None, map(_section, getattr(annotation, "__args__", ()))), None)


def _default(field: Any) -> str:
    """Return the default of an option as YAML has it."""
    from pydantic_core import to_jsonable_python

    if field.is_required():
        return "required"
    return f"`{json.dumps(to_jsonable_python(field.get_default(call_default_factory=True)))}`"


def table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> list[str]:
    r"""Return the lines of a table.

    Example:
        >>> print(*table(("a", "b"), [("x|y", "z")]), sep="\n")
        | a | b |
        | --- | --- |
        | x\|y | z |
    """
    cells = [head, ("---",) * len(head)]
    cells += [tuple(" ".join(cell.split()).replace("|", "\\|") for cell in row) for row in rows]
    return [f"| {' | '.join(row)} |" for row in cells]


class _Generated(SphinxDirective):
    required_arguments = 1

    def lines(self, name: str) -> list[str]:
        """Return what stands in the place of the directive, as lines of Markdown."""
        raise NotImplementedError

    def run(self) -> list[Node]:
        """Return what the lines become."""
        self.content = StringList(self.lines(self.arguments[0]), source=self.get_source_info()[0])
        return self.parse_content_to_nodes()


class CommandSummary(_Generated):
    """What a command does."""

    def lines(self, name: str) -> list[str]:
        """Return the help of the command."""
        return [commands()[name].help]


class Command(_Generated):
    """The usage, arguments and options of a command."""

    def lines(self, name: str) -> list[str]:
        """Return its options."""
        return command_lines(name)


class Configuration(_Generated):
    """The options of a configuration."""

    def lines(self, name: str) -> list[str]:
        """Return every section."""
        module, _, attribute = name.rpartition(".")
        return list(configuration_lines(getattr(importlib.import_module(module), attribute)))


def arrange_docstring(
    _app: Sphinx, what: str, _name: str, found: Any, _options: Any, lines: list[str]
) -> None:
    """Prepare a docstring for napoleon, and say where the options of configurations are listed.

    Examples with a title, ``Example: two volumes.``, become sections as those without one are. A colon in the first line of a
    property would set its type.
    """
    text = "\n".join(lines)
    text = re.sub(
        r"^( *)Example: (.+)$",
        lambda match: f"{match[1]}Example:\n{match[1]}    {match[2][0].upper()}{match[2][1:]}\n",
        text,
        flags=re.MULTILINE,
    )
    if what in {"property", "attribute"}:
        text = text.replace(": ", " \N{EN DASH} ", 1)
    if _is_configuration(found):
        text += "\n\n:doc:`Configuration </reference/configuration>` lists its options.\n"
    lines[:] = text.split("\n")


def hide_signature(
    _app: Sphinx, _what: str, name: str, found: Any, _options: Any, _signature: str, _returns: str
) -> tuple[str, str] | None:
    """Leave out the signatures of what nobody creates by its signature: results and configurations."""
    hidden = name in {"evenslice.Audit", "evenslice.Survey"} or _is_configuration(found)
    return ("", "") if hidden else None


def _is_configuration(found: Any) -> bool:
    from pydantic import BaseModel

    return isinstance(found, type) and issubclass(found, BaseModel)


def setup(app: Sphinx) -> dict[str, Any]:
    """Tell Sphinx about the directives."""
    app.add_directive("command-summary", CommandSummary)
    app.add_directive("command", Command)
    app.add_directive("configuration", Configuration)
    app.connect("autodoc-process-docstring", arrange_docstring, priority=100)  # before napoleon
    app.connect("autodoc-process-signature", hide_signature)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
