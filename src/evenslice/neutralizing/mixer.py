"""The slice mixer: a learnable 1 x 1 convolution from N slices to C channels in front of a whole network.

It serves if the stems cannot be rewritten, because the path to them mixes the channels, or takes exactly three of
them by name. With the channels c of an image g scaled as (g - m_c) / s_c before, and all slices as u = (g - m) / s
from now on, it starts out by giving channel c

    s / s_c * mean_k(u_k) + (m - m_c) / s_c

so any order of the slices gives the same, and N equal slices give what the gray image gave as C channels, borders
included.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from evenslice._core import ModelError, option
from evenslice.networks import layer_label, random_image
from evenslice.neutralizing.image_argument import change_image

if TYPE_CHECKING:
    from contextlib import ExitStack

__all__ = ["MIXER", "MIXER_HINT", "add_mixer", "has_mixer"]

MIXER = "slice_mixer"
"""The name of the mixer in the network."""

MIXER_HINT = (
    f"{option('strategy', 'mixer')} leaves the layer alone and puts a mixer of slices in front of the network"
)
"""The end of every message about a network whose stems cannot be rewritten."""

_CHAINS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)  # their forward passes run all parts in order


def has_mixer(model: nn.Module) -> bool:
    """Say whether a network has a slice mixer in front.

    Example:
        >>> has_mixer(nn.Sequential(nn.Conv2d(3, 8, 3)))
        False
    """
    return MIXER in dict(model.named_children())


def add_mixer(model: nn.Module, scale: Tensor, shift: Tensor, slices: int, undo: ExitStack) -> nn.Conv2d:
    """Put a slice mixer in front of a network, in place.

    It is a part of the network, called `MIXER`, that a forward pre-hook of the network runs; in a
    `torch.nn.Sequential` it is the first part. The hook mixes the first input that is an image, given by
    position or by name, or each image of a list.

    Args:
        model: takes (batch, C, y, x).
        scale: (C,) by what the mean over the slices is multiplied for each channel.
        shift: (C,) what is added afterwards.
        slices: N.
        undo: takes what undoes this.

    Returns:
        The mixer.

    Raises:
        ModelError: the network has another attribute of this name.

    Example:
        >>> from contextlib import ExitStack
        >>> network = nn.Sequential(nn.Conv2d(3, 8, 3))
        >>> add_mixer(network, torch.ones(3), torch.zeros(3), 5, ExitStack())
        Conv2d(5, 3, kernel_size=(1, 1), stride=(1, 1))
        >>> network(torch.zeros(1, 5, 4, 4)).shape
        torch.Size([1, 8, 2, 2])
    """
    if hasattr(model, MIXER):
        raise ModelError(f"{layer_label('', model)} already has an attribute {MIXER!r}; rename it")
    like = random_image(model, ())
    mixer = nn.Conv2d(slices, len(scale), 1, device=like.device, dtype=like.dtype)
    with torch.no_grad():
        mixer.weight.copy_((scale / slices)[:, None, None, None].expand_as(mixer.weight))
        mixer.bias.copy_(shift)  # type: ignore[union-attr]  # it has one
    model.add_module(MIXER, mixer.train(model.training))
    undo.callback(model._modules.pop, MIXER)  # noqa: SLF001  # torch has no public way to remove a part
    if isinstance(model, _CHAINS):
        parts = model._modules  # noqa: SLF001  # nor to reorder them; named_children leaves out parts that are repeated
        for name in [name for name in parts if name != MIXER]:
            parts[name] = parts.pop(name)
    else:
        undo.callback(model.register_forward_pre_hook(_mix_image, with_kwargs=True).remove)
    return mixer


def _mix_image(
    model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Mix the image that a network is given; a function of the module, so that networks with the hook can be pickled."""
    mixer = model.get_submodule(MIXER)
    return change_image(model, args, kwargs, partial(_mixed, mixer), whose="its slice mixer")


def _mixed(mixer: nn.Module, value: Any) -> Any:
    return mixer(value) if isinstance(value, Tensor) else [mixer(image) for image in value]
