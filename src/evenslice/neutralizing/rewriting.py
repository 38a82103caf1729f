"""Rewriting: the colour kernels of a network's stems become slice kernels, in place, or a mixer is put in front of it.

The slice mixer is a learnable 1 x 1 convolution from N slices to C channels. It serves if the stems cannot be rewritten, because
the path to them mixes the channels, or takes exactly three of them by name. With the channels c of an image g scaled as
(g - m_c) / s_c before, and all slices as u = (g - m) / s from now on, it starts out by giving channel c

    s / s_c * mean_k(u_k) + (m - m_c) / s_c

so any order of the slices gives the same, and N equal slices give what the gray image gave as C channels, borders included.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from evenslice._core import ModelError
from evenslice.networks import random_image, seed_generators
from evenslice.neutralizing.averages import change_image
from evenslice.neutralizing.folding import (
    EffectiveKernels,
    add_constant,
    effective_kernels,
    restorer,
    set_width,
    write_kernels,
)
from evenslice.neutralizing.input_path import (
    Layout,
    equalize_input_path,
    install_plain_stems,
    probe,
)
from evenslice.neutralizing.stems import Stem, Stems
from evenslice.neutralizing.strategies import MIXER_HINT, KernelStrategy, spread
from evenslice.neutralizing.ties import symmetric, tie_weight, untie_weight

if TYPE_CHECKING:
    from collections.abc import Sequence
    from contextlib import ExitStack

    from evenslice.neutralizing.folding import ChannelScaling

MIXER = "slice_mixer"
"""The name of the mixer in the network."""

_CHAINS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)  # their forward passes run all parts in order


@dataclass(frozen=True)
class Request:
    """What the user requests; see `evenslice.neutralize`."""

    slices: int
    strategy: KernelStrategy
    tie: str | None
    seed: int


@dataclass(frozen=True)
class OpenedStems:
    """Stems whose path treats all channels alike.

    Attributes:
        stems: the plain stems, as they are in the network now.
        old: for each, which of the channels before its features come from.
        layouts: for each, which slice its features come from.
    """

    stems: Stems
    old: tuple[Layout, ...]
    layouts: tuple[Layout, ...]


@dataclass(frozen=True)
class NewKernels:
    """What one stem gets.

    Attributes:
        colours: its effective kernels before.
        kernels: its effective kernels from now on; None if they are drawn.
        owner: the number of the first stem with the same weight, mostly its own.
        constant: whether it gets the constant that makes up for what colours add; a bias that two stems share gets it once.
    """

    colours: EffectiveKernels
    kernels: Tensor | None
    owner: int
    constant: bool


def open_path(model: nn.Module, stems: Stems, slices: int, undo: ExitStack) -> OpenedStems:
    """Make the stems of a network plain layers, and what is in front of them treat all slices alike, in place.

    Args:
        model: the network.
        stems: its stems.
        slices: N.
        undo: takes what undoes this.

    Raises:
        ModelError: the path to a stem does not accept so many slices, or mixes its channels.
    """
    stems = install_plain_stems(model, stems, undo)
    old = probe(model, stems, stems.channels)
    equalize_input_path(model, stems, old, slices, undo)
    same = slices == stems.channels and all(layout.is_bare for layout in old)
    return OpenedStems(stems, old, old if same else probe(model, stems, slices))


def plan(opened: OpenedStems, scaling: ChannelScaling, request: Request) -> tuple[NewKernels, ...]:
    """Return what the stems get, without changing any.

    Args:
        opened: the stems.
        scaling: how the channels were scaled before.
        request: what to do.
    """
    stems = opened.stems.items
    planned = []
    for number, owner in enumerate(_weight_owners(stems)):
        stem, kernels = stems[number], None
        colours = effective_kernels(stem, opened.old[number], scaling)
        if not request.strategy.drawn:
            kernels = spread(colours.kernels, request.slices, request.strategy, seed=request.seed + owner)
            kernels = kernels if request.tie is None else symmetric(kernels, request.tie)
        constant = number == owner or stem.bias_owner is stem.norm or not _share_bias(stem, stems[owner])
        planned.append(NewKernels(colours, kernels, owner, constant))
    return tuple(planned)


def rewrite(
    model: nn.Module, opened: OpenedStems, planned: Sequence[NewKernels], request: Request, undo: ExitStack
) -> None:
    """Give the stems of a network their new kernels, in place; the caller restores torch's random numbers.

    Args:
        model: the network.
        opened: its stems.
        planned: what they get.
        request: what to do.
        undo: takes what undoes this.

    Raises:
        ModelError: stems that share a weight need different ones.
    """
    stems, drawn, everything = opened.stems.items, request.strategy.drawn, request.strategy.name == "random"
    touched = [module for stem in stems for module in (stem.module, stem.norm) if module is not None]
    undo.callback(restorer(list(model.modules()) if everything else touched))
    if drawn:
        seed_generators({parameter.device for parameter in model.parameters()}, request.seed)
    for stem, layout, new in zip(stems, opened.layouts, planned, strict=True):
        if new.kernels is None:
            set_width(stem.module, layout.index.numel())
            stem.module.reset_parameters()
            continue
        missing = new.colours.constant - write_kernels(stem, layout, new.kernels)
        if new.constant and missing.abs().max() > 1e-9 * new.kernels.abs().max():  # else not worth a new bias
            add_constant(stem, missing)
    _share_weights(stems, [new.owner for new in planned], drawn=drawn)
    if everything:
        _draw_anew(model)
    _tie(stems, opened.layouts, request.tie, undo)


def shape_stems(model: nn.Module, stems: Stems, slices: int, tie: str | None, undo: ExitStack) -> None:
    """Give the stems of a network the shapes and ties that `rewrite` gives them, but no values.

    Raises:
        ModelError: see `open_path`.
    """
    opened = open_path(model, stems, slices, undo)
    owners = _weight_owners(opened.stems.items)
    for stem, layout in zip(opened.stems.items, opened.layouts, strict=True):
        set_width(stem.module, layout.index.numel())
    _share_weights(opened.stems.items, owners, drawn=True)
    _tie(opened.stems.items, opened.layouts, tie, undo)


def mix(
    model: nn.Module, scaling: ChannelScaling, slices: int, tie: str | None, undo: ExitStack
) -> tuple[Stem, Layout, Tensor]:
    """Put a slice mixer in front of a network, in place.

    It is a part of the network, called `MIXER`, that a forward pre-hook of the network runs; in a `torch.nn.Sequential` it is the
    first part. The hook mixes the first input that is an image, given by position or by name, or each image of a list.

    Args:
        model: takes (batch, C, y, x).
        scaling: how its C channels were scaled before.
        slices: N.
        tie: see `evenslice.neutralize`.
        undo: takes what undoes this.

    Returns:
        The mixer, which slice its features come from, and its effective kernels (C, C, 1, 1, 1) before.

    Example:
        >>> from contextlib import ExitStack
        >>> from evenslice.neutralizing.folding import ChannelScaling
        >>> network = nn.Sequential(nn.Conv2d(3, 8, 3))
        >>> with torch.no_grad():
        ...     stem, _, _ = mix(network, ChannelScaling((0.0,) * 3, (1.0,) * 3), 5, None, ExitStack())
        >>> stem.label, network(torch.zeros(1, 5, 4, 4)).shape
        ('slice_mixer (Conv2d)', torch.Size([1, 8, 2, 2]))
    """
    means, stds = (
        torch.tensor(values, dtype=torch.float64, device="cpu") for values in (scaling.means, scaling.stds)
    )
    scale = scaling.std / stds
    mixer = _add_mixer(model, scale, (scaling.mean - means) / stds, slices, undo)
    layout = Layout(
        index=torch.arange(slices, device="cpu")[None],
        scale=torch.ones(1, slices, dtype=torch.float64, device="cpu"),
        shift=torch.zeros(1, slices, dtype=torch.float64, device="cpu"),
        where=torch.ones(1, slices, 1, 1, device="cpu"),
    )
    stem = Stem(MIXER, mixer, None, mixer)
    _tie([stem], [layout], tie, undo)
    return stem, layout, torch.diag(scale)[:, :, None, None, None]


def has_mixer(model: nn.Module) -> bool:
    """Say whether a network has a slice mixer in front.

    Example:
        >>> has_mixer(nn.Sequential(nn.Conv2d(3, 8, 3)))
        False
    """
    return MIXER in dict(model.named_children())


def _add_mixer(model: nn.Module, scale: Tensor, shift: Tensor, slices: int, undo: ExitStack) -> nn.Conv2d:
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


def _tie(stems: Sequence[Stem], layouts: Sequence[Layout], tie: str | None, undo: ExitStack) -> None:
    if tie is None:
        return
    for stem, layout in zip(stems, layouts, strict=True):
        tie_weight(stem.module, layout, tie)
        undo.callback(untie_weight, stem.module, bake=False)


def _weight_owners(stems: Sequence[Stem]) -> list[int]:
    """Return for each stem the number of the first one that has the same weight, mostly its own."""
    first: dict[int, int] = {}
    return [first.setdefault(id(stem.module.weight), number) for number, stem in enumerate(stems)]


def _share_weights(stems: Sequence[Stem], owners: Sequence[int], *, drawn: bool) -> None:
    """Let stems that had one weight have one again, though it was given another shape.

    Raises:
        ModelError: they need different weights; those that were drawn do not.
    """
    for stem, owner in zip(stems, owners, strict=True):
        shared = stems[owner].module.weight
        if stem.module.weight is shared:
            continue
        if not drawn and not torch.equal(stem.module.weight, shared):
            raise ModelError(
                f"the layers {stems[owner].label} and {stem.label} share a weight, but get slices that are scaled differently; "
                f"{MIXER_HINT}"
            )
        stem.module.weight = shared


def _share_bias(stem: Stem, other: Stem) -> bool:
    return stem.module.bias is not None and stem.module.bias is other.module.bias


def _draw_anew(model: nn.Module) -> None:
    """Redraw every parameter of a network by its module's own rule.

    A parameter that no rule changes is drawn from the normal distribution with the mean and standard deviation of its values;
    the constants of a frozen batch norm become those of a new one.
    """
    for module in model.modules():
        parameters = [each for each in module.parameters(recurse=False) if not each.is_meta]
        before = [each.detach().clone() for each in parameters]
        reset = getattr(module, "reset_parameters", None)
        if reset is not None:
            reset()
        for parameter, old in zip(parameters, before, strict=True):
            # Where a norm of the weights holds them under other names, the module's rule does not reach them.
            if torch.equal(parameter, old) and (parameter.is_floating_point() or parameter.is_complex()):
                values = torch.view_as_real(parameter) if parameter.is_complex() else parameter
                values.normal_(values.mean().item(), values.std(correction=0).item())
        if reset is not None:
            continue
        for name, buffer in module.named_buffers(recurse=False):
            if isinstance(getattr(module, "running_mean", None), Tensor) and buffer.is_floating_point():
                buffer.fill_(name in ("weight", "running_var"))
