"""Rewriting: the colour kernels of a network's stems become slice kernels, in place, or a mixer goes in front of it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from evenslice.neutralizing.folding import (
    Met,
    add_constant,
    kernels_as_met,
    restorer,
    set_width,
    write_kernels,
)
from evenslice.neutralizing.input_path import install_plain, level
from evenslice.neutralizing.mixer import MIXER, add_mixer
from evenslice.neutralizing.probing import Layout, interior, probe
from evenslice.neutralizing.stems import Stem, Stems
from evenslice.neutralizing.strategies import Strategy, spread
from evenslice.neutralizing.ties import symmetric, tie_weight, untie_weight
from evenslice.neutralizing.verification import Border

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import ExitStack

    from evenslice.neutralizing.inspection import Seen

__all__ = ["Change", "Wish", "mix", "rewrite"]


@dataclass(frozen=True)
class Wish:
    """What the user asks for; see `evenslice.neutralize`."""

    slices: int
    strategy: Strategy
    tie: str | None
    seed: int


@dataclass(frozen=True)
class Change:
    """What was done to a network.

    Attributes:
        stems: what was rewritten, as it is in the network now.
        layouts: for each, which slice its features come from.
        before: for each, its kernels (out, C, P, ...) as the image met them.
        borders: what takes padding out of the comparison of gray images, where it makes a difference.
    """

    stems: Stems
    layouts: tuple[Layout, ...]
    before: tuple[Tensor, ...]
    borders: tuple[Border, ...] = ()


def rewrite(model: nn.Module, seen: Seen, wish: Wish, undo: ExitStack) -> Change:
    """Give the stems of a network slice kernels; torch's random numbers are the caller's to keep.

    Args:
        model: the network, which is changed in place.
        seen: how it was, with its stems.
        wish: what to do.
        undo: takes what undoes this.

    Raises:
        ModelError: the way to a stem does not take so many slices, or mixes its channels.
    """
    stems = install_plain(model, seen.stems, undo)
    old = probe(model, stems, stems.channels)
    before = [
        kernels_as_met(stem, layout, seen.scaling) for stem, layout in zip(stems.items, old, strict=True)
    ]
    borders = tuple(
        Border(stem, interior(stem, layout), wrote)
        for stem, layout, met, wrote in zip(stems.items, old, before, seen.wrote, strict=True)
        if met.shifted
    )
    everything = wish.strategy.name == "random"
    undo.callback(restorer(list(model.modules()) if everything else list(_touched(stems))))
    level(model, stems, old, wish.slices, undo)
    same = wish.slices == stems.channels and all(layout.is_bare for layout in old)
    layouts = old if same else probe(model, stems, wish.slices)
    torch.manual_seed(wish.seed)
    for number, (stem, layout, met) in enumerate(zip(stems.items, layouts, before, strict=True)):
        _rewrite(stem, layout, met, wish, number)
    if everything:
        _draw_anew(model)
    change = Change(stems, layouts, tuple(met.kernels for met in before), borders)
    _tie(change, wish.tie, undo)
    return change


def mix(model: nn.Module, seen: Seen, wish: Wish, undo: ExitStack) -> Change:
    """Put a slice mixer in front of a network; see `evenslice.neutralizing.mixer`.

    Args:
        model: the network, which is changed in place.
        seen: how it was.
        wish: what to do.
        undo: takes what undoes this.

    Raises:
        ModelError: the network has another part of the mixer's name.
    """
    means, stds = (
        torch.tensor(values, dtype=torch.float64) for values in (seen.scaling.means, seen.scaling.stds)
    )
    scale, shift = seen.scaling.std / stds, (seen.scaling.mean - means) / stds
    mixer = add_mixer(model, scale, shift, wish.slices, undo)
    stem = Stem(MIXER, mixer, None, mixer)
    layout = Layout(
        index=torch.arange(wish.slices)[None],
        scale=torch.ones(1, wish.slices, dtype=torch.float64),
        shift=torch.zeros(1, wish.slices, dtype=torch.float64),
        where=torch.ones(1, wish.slices, 1, 1),
    )
    stems = replace(seen.stems, items=(stem,))
    change = Change(stems, (layout,), (torch.diag(scale)[:, :, None, None, None],))
    _tie(change, wish.tie, undo)
    return change


def _tie(change: Change, tie: str | None, undo: ExitStack) -> None:
    if tie is None:
        return
    for stem, layout in zip(change.stems.items, change.layouts, strict=True):
        tie_weight(stem.module, layout, tie)
        undo.callback(untie_weight, stem.module, bake=False)


def _touched(stems: Stems) -> Iterator[nn.Module]:
    for stem in stems.items:
        yield stem.module
        if stem.norm is not None:
            yield stem.norm


def _rewrite(stem: Stem, layout: Layout, met: Met, wish: Wish, number: int) -> None:
    """Give one stem its new weights."""
    if wish.strategy.drawn:
        set_width(stem.module, layout.index.numel())
        stem.module.reset_parameters()
        return
    kernels = spread(met.kernels, layout.index.shape[1], wish.strategy, seed=wish.seed + number)
    if wish.tie is not None:
        kernels = symmetric(kernels, wish.tie)
    constant = met.constant - write_kernels(stem, layout, kernels)
    if constant.abs().max() > 1e-9 * kernels.abs().max():  # less is rounding, and worth no new bias
        add_constant(stem, constant)


def _draw_anew(model: nn.Module) -> None:
    """Draw every parameter of a network by its module's own rule.

    A parameter without one is drawn from the normal distribution of its own values' mean and standard deviation; the
    constants of a frozen batch norm become those of a fresh one.
    """
    for module in model.modules():
        reset = getattr(module, "reset_parameters", None)
        if reset is not None:
            reset()
            continue
        for parameter in module.parameters(recurse=False):
            if parameter.is_floating_point() and not parameter.is_meta:
                parameter.normal_(parameter.mean().item(), parameter.std(correction=0).item())
        for name, buffer in module.named_buffers(recurse=False):
            if isinstance(getattr(module, "running_mean", None), Tensor) and buffer.is_floating_point():
                buffer.fill_(name in ("weight", "running_var"))
