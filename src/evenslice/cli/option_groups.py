"""Groups of options: values of the library, or frozen dataclasses, whose fields are options.

A command takes groups as arguments and is decorated with ``grouped``; a new field of a group is then an option of every
command that takes it.
"""

from __future__ import annotations

from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from functools import wraps
from inspect import Parameter, Signature, signature
from typing import TYPE_CHECKING, Annotated, Any, get_args, get_type_hints

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


@dataclass(frozen=True)
class Options:
    """In the annotation of an argument: the command's options for fields of a value, whose types and defaults they have.

    Attributes:
        options: the option for each field that a user may state.
    """

    options: Mapping[str, Any]

    def parameters(self, value: Any) -> list[Parameter]:
        """Return a parameter for each of the fields."""
        hints = get_type_hints(value)
        return [
            _parameter(entry, _annotated(hints[entry.name], self.options[entry.name]))
            for entry in fields(value)
            if entry.name in self.options
        ]


@dataclass(frozen=True)
class Given(Options):
    """Likewise, for an argument that is a dict of the fields which the user states.

    Attributes:
        value: the class of the value.
    """

    value: Any

    def parameters(self, value: Any) -> list[Parameter]:  # noqa: ARG002  # which is dict
        """Return a parameter for each of the fields, None by default."""
        hints = get_type_hints(self.value)
        return [
            Parameter(
                name, Parameter.KEYWORD_ONLY, default=None, annotation=_annotated(hints[name] | None, option)
            )
            for name, option in self.options.items()
        ]


def grouped(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command one option for each field of the groups among its arguments.

    Raises:
        ValueError: two groups, or a group and the command, have an option of the same name.
    """
    makers: dict[str, tuple[Any, list[Parameter]]] = {}
    parameters: list[Parameter] = []
    for name, hint in get_type_hints(command, include_extras=True).items():
        kind, *marks = get_args(hint) or (hint,)
        mark = next((entry for entry in marks if isinstance(entry, Options)), None)
        if mark is not None:
            makers[name] = _given if isinstance(mark, Given) else kind, mark.parameters(kind)
        elif is_dataclass(hint):
            makers[name] = hint, _parameters(hint)
    for name, parameter in signature(command).parameters.items():
        parameters += makers[name][1] if name in makers else [parameter]

    @wraps(command)
    def call(**values: Any) -> None:
        made = {
            name: make(**{entry.name: values.pop(entry.name) for entry in taken})
            for name, (make, taken) in makers.items()
        }
        command(**made, **values)

    call.__signature__ = Signature(parameters)  # type: ignore[attr-defined]
    call.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return call


def _annotated(hint: Any, option: Any) -> Any:
    """Return the annotation of an option; a parser makes the value, whatever its type."""
    return Annotated[hint if option.parser is None else Any | None, option]


def _given(**values: Any) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _parameters(group: Any) -> list[Parameter]:
    """Return a parameter for each field of a group, the required ones first, as the help shows them."""
    hints = get_type_hints(group, include_extras=True)
    ordered = sorted(fields(group), key=lambda entry: entry.default is not MISSING)
    return [_parameter(entry, hints[entry.name]) for entry in ordered]


def _parameter(entry: Field[Any], hint: Any) -> Parameter:
    default = Parameter.empty if entry.default is MISSING else entry.default
    return Parameter(entry.name, Parameter.KEYWORD_ONLY, default=default, annotation=hint)
