"""Groups of options: frozen dataclasses whose fields are options.

A command takes groups as arguments and is decorated with ``grouped``; a new field of a group is then an option of every
command that takes it.
"""

from __future__ import annotations

from dataclasses import MISSING, Field, fields, is_dataclass
from functools import wraps
from inspect import Parameter, Signature, signature
from typing import TYPE_CHECKING, Any, get_type_hints

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["grouped"]


def grouped(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command one option for each field of the groups among its arguments.

    Raises:
        ValueError: two groups, or a group and the command, have an option of the same name.
    """
    hints = get_type_hints(command, include_extras=True)
    groups: dict[str, Any] = {name: hint for name, hint in hints.items() if is_dataclass(hint)}
    parameters: list[Parameter] = []
    for name, parameter in signature(command).parameters.items():
        parameters += _parameters(groups[name]) if name in groups else [parameter]

    @wraps(command)
    def call(**values: Any) -> None:
        made = {
            name: group(**{field.name: values.pop(field.name) for field in fields(group)})
            for name, group in groups.items()
        }
        command(**made, **values)

    call.__signature__ = Signature(parameters)  # type: ignore[attr-defined]
    call.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return call


def _parameters(group: Any) -> list[Parameter]:
    """Return a parameter for each field of a group, the required ones first, as the help shows them."""
    hints = get_type_hints(group, include_extras=True)

    def parameter(field: Field[Any]) -> Parameter:
        default = Parameter.empty if field.default is MISSING else field.default
        return Parameter(field.name, Parameter.KEYWORD_ONLY, default=default, annotation=hints[field.name])

    return [
        parameter(field) for field in sorted(fields(group), key=lambda field: field.default is not MISSING)
    ]
