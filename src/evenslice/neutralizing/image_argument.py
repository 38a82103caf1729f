"""Which argument of a call of a network is the image, for hooks that change it."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

from torch import Tensor

from evenslice._core import ModelError
from evenslice.networks import layer_label

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn

__all__ = ["change_image"]


def change_image(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    change: Callable[[Any], Any],
    others: Callable[[Any, Any], Any] | None = None,
    *,
    whose: str,
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the arguments of a call of a network with the image changed.

    The image is the first argument, in the order in which the network names its inputs, that is a tensor (batch,
    channels, y, x) or a list of tensors (channels, y, x).

    Args:
        model: the network.
        args: the arguments given by position.
        kwargs: those given by name, in any order.
        change: what becomes of the image.
        others: what becomes of each other argument, beside the image; None leaves them as they are.
        whose: what needs the image, for the error.

    Raises:
        ModelError: none of the arguments is an image.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> args, _ = change_image(nn.ReLU(), (torch.zeros(1, 3, 4, 4),), {}, lambda image: image + 1, whose="its sum")
        >>> args[0].mean()
        tensor(1.)
    """
    if len(kwargs) > 1:  # the first as the network names its inputs, not as the call does
        order = list(inspect.signature(model.forward).parameters)
        kwargs = dict(
            sorted(kwargs.items(), key=lambda item: order.index(item[0]) if item[0] in order else len(order))
        )
    values = [*args, *kwargs.values()]
    place = next((place for place, value in enumerate(values) if _is_image(value)), None)
    if place is None:
        raise ModelError(f"no image among the inputs of {layer_label('', model)}; {whose} needs one")
    image = values[place]
    changed = values if others is None else [others(value, image) for value in values]
    changed[place] = change(image)
    return tuple(changed[: len(args)]), dict(zip(kwargs, changed[len(args) :], strict=True))


def _is_image(value: Any) -> bool:
    return (isinstance(value, Tensor) and value.ndim == 4) or (
        isinstance(value, list | tuple)
        and bool(value)
        and all(isinstance(item, Tensor) and item.ndim == 3 for item in value)
    )
