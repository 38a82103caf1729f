"""A user's own function from what a network returns to the one tensor of its outputs, in place of a rule.

``evenslice.networks.models.logits`` finds the outputs of most networks. Where they have to be made of several things first, as
the masks and classes of queries are, a function does it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from evenslice._core import ConfigError, EvensliceError, ModelError, find_member, importable_here

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["find_function", "function_name", "reduce_output"]


def reduce_output(returned: Any, function: Callable[[Any], Any]) -> Any:
    """Apply a user's function to what a network returned.

    Args:
        returned: whatever the network returned for windows.
        function: maps it to the outputs, batch first.

    Raises:
        ModelError: the function raises.

    Example:
        >>> import operator
        >>> reduce_output({"depth": 3.0}, operator.itemgetter("depth"))
        3.0
    """
    try:
        return function(returned)
    except EvensliceError:
        raise
    except Exception as error:
        reason = (str(error).splitlines() or ["no reason given"])[0]
        raise ModelError(
            f"outputs={function_name(function)} fails on what the network returned, {type(returned).__name__}: "
            f"{type(error).__name__}: {reason}"
        ) from error


def function_name(function: Callable[..., Any]) -> str:
    """Return how a function is called, ``package.module:function`` where it has a name of its own.

    Example:
        >>> import operator
        >>> function_name(abs), function_name(operator.itemgetter("depth"))
        ('builtins:abs', 'itemgetter')
    """
    name = getattr(function, "__qualname__", type(function).__name__)
    module = getattr(function, "__module__", None)
    return f"{module}:{name}" if module and hasattr(function, "__qualname__") else str(name)


def find_function(text: str) -> Callable[..., Any]:
    """Return the function that ``package.module:function`` names; the current directory is importable.

    Raises:
        ConfigError: it cannot be imported, or is no function.

    Example:
        >>> find_function("operator:neg")(3)
        -3
    """
    path, colon, name = text.partition(":")
    if not (path and colon and name):
        raise ConfigError(f"{text!r} names no function; write package.module:function")
    try:
        with importable_here():
            module = importlib.import_module(path)
    except Exception as error:  # a module of the user's may raise anything
        reason = (str(error).splitlines() or ["no reason given"])[0]
        raise ConfigError(f"{text}: cannot be imported ({type(error).__name__}: {reason})") from error
    function = find_member(module, name, text, ConfigError)
    if not callable(function):
        raise ConfigError(f"{text}: is {type(function).__name__}, not a function")
    found: Callable[..., Any] = function
    return found
