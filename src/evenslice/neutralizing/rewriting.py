"""Rewriting: the colour kernels of a network's stems become slice kernels, in place, or a mixer is put in front of it.

A scaling by channel moves into the weights of a stem, so that all slices can share one scaling. With the channels c of an image
g scaled as x_c = (g - m_c) / s_c, and a stem whose feature of channel c is a x_c + b, the stem's response to the image scaled
as u = (g - m) / s instead is, where all its taps lie inside the image,

    sum_c W_c (a x_c + b)  =  sum_c (W_c a s / s_c) u  +  sum_c W_c (a (m - m_c) / s_c + b)

so the effective kernels are W_c a s / s_c, and the second sum, over the taps too, is a constant.

The slice mixer is a learnable 1 x 1 convolution from N slices to C channels. It serves if the stems cannot be rewritten, because
the path to them mixes the channels, or takes exactly three of them by name. It starts out by giving channel c

    s / s_c * mean_k(u_k) + (m - m_c) / s_c

so any order of the slices gives the same, and N equal slices give what the gray image gave as C channels, borders included.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, product
from numbers import Real
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from evenslice._core import ConfigError, option
from evenslice.networks import check_scaling, keep_generators, normalization, require_network
from evenslice.neutralizing.averages import change_image
from evenslice.neutralizing.record import forget_ties
from evenslice.neutralizing.running import random_image
from evenslice.neutralizing.stems import Layout, Stem, Stems, equalize_input_path, probe, replace_module
from evenslice.neutralizing.strategies import KernelStrategy, is_tied, symmetric, tie_weight, untie_weight

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import ExitStack

    from evenslice.neutralizing.record import Record

ChannelValues = float | Sequence[float] | None
MIXER = "slice_mixer"
"""The name of the mixer in the network."""

_CHAINS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)  # their forward passes run all parts in order


@dataclass(frozen=True)
class ChannelScaling:
    """How the channels of a network's input are scaled: (g - means[c]) / stds[c]."""

    means: tuple[float, ...]
    stds: tuple[float, ...]

    @property
    def mean(self) -> float:
        """The mean of the means, by which all slices are centred from now on."""
        return _average(self.means)

    @property
    def std(self) -> float:
        """The mean of the stds, by which all slices are divided from now on."""
        return _average(self.stds)

    def shared(self, slices: int) -> ChannelScaling:
        """Return the one scaling that all slices share from now on."""
        return ChannelScaling((self.mean,) * slices, (self.std,) * slices)

    def columns(self) -> tuple[Tensor, Tensor]:
        """Return means and stds, float64 on the CPU."""
        means, stds = torch.tensor([self.means, self.stds], dtype=torch.float64, device="cpu")
        return means, stds

    def apply(self, image: Tensor) -> Tensor:
        """Scale an image (batch, channels or 1, y, x)."""
        columns = (image.new_tensor(values)[:, None, None] for values in (self.means, self.stds))
        return (image - next(columns)) / next(columns)


@dataclass(frozen=True)
class EffectiveKernels:
    """A stem's response to an image in which all channels share one scaling.

    Attributes:
        kernels: (out, C, P, ...) float64, the kernels of each channel; P features come from it.
        constant: (out,) float64, the response to an image of zeros on the shared scale, away from padding.
        shifted: whether any feature is shifted, so that zeros of padding do not mean 0 on the shared scale.
    """

    kernels: Tensor
    constant: Tensor
    shifted: bool


def find_scaling(
    model: nn.Module, channels: int, mean: ChannelValues, std: ChannelValues, known: Record | None
) -> ChannelScaling:
    """Find how a network's channels are scaled.

    Args:
        model: the network; its pretrained weights may state it.
        channels: C.
        mean: as the user states it, one value a channel or one for all; None for nothing.
        std: likewise.
        known: the record of an earlier `neutralize`.

    Raises:
        ConfigError: the user's values are neither one nor C, or not finite, a mean is that of 8-bit values, or a std is not
            positive.

    Example:
        >>> find_scaling(nn.Conv2d(3, 8, 3), 3, mean=[0.2, 0.4, 0.6], std=None, known=None)
        ChannelScaling(means=(0.2, 0.4, 0.6), stds=(1.0, 1.0, 1.0))
    """
    stated = ((known.mean,), (known.std,)) if known else normalization(model) or ((0.0,), (1.0,))
    if len(stated[0]) != channels:  # values of colours say nothing about other channels, except on average
        stated = (_average(stated[0]),), (_average(stated[1]),)
    means = _one_each("mean", stated[0] if mean is None else mean, channels)
    stds = _one_each("std", stated[1] if std is None else std, channels)
    for name, given, values in (("mean", mean, means), ("std", std, stds)):
        if given is not None:
            check_scaling(name, values)
    if min(stds) <= 0:
        raise ConfigError(f"{option('std')} has to be positive, not {std}")
    return ChannelScaling(means, stds)


def effective_kernels(stem: Stem, layout: Layout, scaling: ChannelScaling) -> EffectiveKernels:
    """Return the kernels and the constant of a stem for an image on the shared scale.

    Args:
        stem: the layer, of the width that the layout describes.
        layout: which channel each of its features comes from.
        scaling: how the channels are scaled now.

    Example:
        >>> from evenslice.neutralizing.stems import probe
        >>> from evenslice.neutralizing.stems import find_stems
        >>> layer = nn.Conv2d(2, 1, 1)
        >>> layer.weight.data = torch.tensor([1.0, 1.0]).reshape(1, 2, 1, 1)
        >>> stems = find_stems(layer, channels=[2])
        >>> found = effective_kernels(stems.items[0], probe(layer, stems, 2)[0], ChannelScaling((0.0, 1.0), (1.0, 3.0)))
        >>> found.kernels.flatten(), found.constant
        (tensor([2.0000, 0.6667], dtype=torch.float64), tensor([0.3333], dtype=torch.float64))
    """
    weight = stem.module.weight.detach().to("cpu", torch.float64)
    means, stds = scaling.columns()
    taps = weight[:, layout.index.T]
    shift = (layout.scale * ((scaling.mean - means) / stds) + layout.shift).T
    return EffectiveKernels(
        kernels=taps * _over_taps((layout.scale * (scaling.std / stds)).T, taps),
        constant=(taps * _over_taps(shift, taps)).flatten(1).sum(dim=1),
        shifted=bool(shift.any()),
    )


def write_kernels(stem: Stem, layout: Layout, kernels: Tensor) -> Tensor:
    """Give a stem new kernels.

    Args:
        stem: the layer, which gets as many input features as the layout has.
        layout: which slice each feature comes from; its scaling is undone in the weights.
        kernels: (out, N, P, ...) effective kernels.

    Returns:
        (out,) float64, the constant that shifts in front of the stem add to the response.
    """
    taps = kernels / _over_taps(layout.scale.T, kernels)
    weight = taps.new_empty(taps.shape[0], layout.index.numel(), *taps.shape[3:])
    weight[:, layout.index.T] = taps
    set_width(stem.module, weight.shape[1])
    stem.module.weight.copy_(weight)
    return (taps * _over_taps(layout.shift.T, taps)).flatten(1).sum(dim=1)


def set_width(layer: nn.Conv2d | nn.Linear, width: int) -> None:
    """Set the number of input features of a layer; if it changes, its weight is a new parameter without values."""
    weight = layer.weight
    if width == weight.shape[1]:
        return
    empty = weight.new_empty(weight.shape[0], width, *weight.shape[2:])
    layer.weight = nn.Parameter(empty, requires_grad=weight.requires_grad)
    setattr(layer, "in_channels" if isinstance(layer, nn.Conv2d) else "in_features", width)


def add_constant(stem: Stem, constant: Tensor) -> None:
    """Add a constant (out,) to the response of a stem."""
    bias_owner = stem.bias_owner
    if bias_owner is stem.norm:
        running_mean = bias_owner.get_buffer("running_mean")
        running_mean.sub_(constant.to(running_mean))
    elif stem.module.bias is not None:
        stem.module.bias.add_(constant.to(stem.module.bias))
    else:
        weight = stem.module.weight
        stem.module.bias = nn.Parameter(constant.to(weight), requires_grad=weight.requires_grad)


def restorer(modules: Sequence[nn.Module]) -> Callable[[], None]:
    """Remember the parameters and buffers of some modules, and return a function that restores them, the same objects."""
    # The dictionaries first, as they hold the tensors; so a width that changed, or a new bias, goes as well.
    stores = [
        (store, dict(store))
        for module in modules
        for store in (module._parameters, module._buffers, vars(module))  # noqa: SLF001  # the public ways have no order
    ]
    tensors = [
        (tensor, tensor.detach().clone())
        for module in modules
        for tensor in chain(module.parameters(recurse=False), module.buffers(recurse=False))
    ]

    def restore() -> None:
        for store, before in stores:
            store.clear()
            store.update(before)
        for tensor, value in tensors:
            tensor.copy_(value)

    return restore


def _over_taps(values: Tensor, kernels: Tensor) -> Tensor:
    """Make (channels, P) values broadcast against (out, channels, P, ...) kernels."""
    return values.reshape(*values.shape, *[1] * (kernels.ndim - 3))


def _average(values: Sequence[float]) -> float:
    """Return the mean; equal values give that value to the last bit, so that nothing is folded needlessly."""
    return values[0] if len(set(values)) == 1 else math.fsum(values) / len(values)


def _one_each(name: str, values: Any, channels: int) -> tuple[float, ...]:
    """Return a number, or one for each channel, as one for each; any number of Python or NumPy will do."""
    try:
        numbers = (float(values),) if isinstance(values, Real) else tuple(map(float, values))
    except (TypeError, ValueError):
        numbers = ()
    # A text may be one of digits.
    if isinstance(values, str) or len(numbers) not in (1, channels) or not all(map(math.isfinite, numbers)):
        raise ConfigError(
            f"{option(name)} has to be a finite number, or one for each of the {channels} inputs, not {values!r:.100}"
        )
    return numbers if len(numbers) == channels else numbers * channels


@dataclass(frozen=True)
class Request:
    """What the user requests, see `evenslice.neutralize`, and the record of an earlier change."""

    slices: int
    strategy: KernelStrategy
    tie: str | None = None
    seed: int = 0
    mean: ChannelValues = None
    std: ChannelValues = None
    size: tuple[int, int] | None = None
    outputs: Callable[[Any], Any] | None = None
    check: str = "network"
    record: Record | None = None


@dataclass(frozen=True)
class StemPlan:
    """What one stem gets.

    Attributes:
        stem: the stem, a plain layer as it is in the network now.
        old: which of the channels before its features come from.
        layout: which slice its features come from.
        colours: its effective kernels before.
        kernels: its effective kernels from now on; None if they are drawn, or a mixer's.
    """

    stem: Stem
    old: Layout
    layout: Layout
    colours: EffectiveKernels
    kernels: Tensor | None


def open_path(
    model: nn.Module, stems: Stems, slices: int, undo: ExitStack
) -> tuple[tuple[Stem, ...], tuple[Layout, ...], tuple[Layout, ...]]:
    """Make the stems of a network plain layers, and what is in front of them treat all slices alike, in place.

    Args:
        model: the network.
        stems: its stems.
        slices: N.
        undo: takes what undoes this.

    Returns:
        The plain stems; for each, which of the channels before its features come from, and which slice now.

    Raises:
        ModelError: the path to a stem does not accept so many slices, or mixes its channels.
    """
    for stem in stems.items:
        if stem.module is not stem.reader:  # it computes its weight, or works in groups
            replace_module(model, stem.reader, stem.module, undo)
    stems = replace(stems, items=tuple(replace(stem, reader=stem.module) for stem in stems.items))
    _unshare(stems.items, undo)
    old = probe(model, stems, stems.channels)
    equalize_input_path(model, stems, old, slices, undo)
    same = slices == stems.channels and all(layout.is_bare for layout in old)
    return stems.items, old, old if same else probe(model, stems, slices)


def plan(
    model: nn.Module, stems: Stems, scaling: ChannelScaling, request: Request, undo: ExitStack
) -> tuple[StemPlan, ...]:
    """Open the path to the stems of a network, see `open_path`, and return what they get, without changing any.

    Args:
        model: the network.
        stems: its stems.
        scaling: how the channels were scaled before.
        request: what to do.
        undo: takes what undoes this.
    """
    opened = open_path(model, stems, request.slices, undo)
    planned = []
    for number, (stem, old, layout) in enumerate(zip(*opened, strict=True)):
        colours = effective_kernels(stem, old, scaling)
        kernels = request.strategy.spread(colours.kernels, request.slices, request.seed + number)
        if kernels is not None and request.tie is not None:
            kernels = symmetric(kernels, request.tie)
        planned.append(StemPlan(stem, old, layout, colours, kernels))
    return tuple(planned)


def rewrite(model: nn.Module, planned: Sequence[StemPlan], request: Request, undo: ExitStack) -> None:
    """Give the stems of a network their new kernels, in place.

    Args:
        model: the network.
        planned: what its stems get.
        request: what to do.
        undo: takes what undoes this.
    """
    everything = request.strategy.name == "random"
    touched = [
        module for each in planned for module in (each.stem.module, each.stem.norm) if module is not None
    ]
    undo.callback(restorer(list(model.modules()) if everything else touched))
    with keep_generators({parameter.device for parameter in model.parameters()}, request.seed):
        for each in planned:
            _fill(each)
        if everything:
            _draw_anew(model)
    for each in planned:
        tie_stem(each.stem, each.layout, request.tie, undo)


def _fill(planned: StemPlan) -> None:
    """Give a stem its new kernels, without a tie."""
    stem, layout, kernels = planned.stem, planned.layout, planned.kernels
    if kernels is None:
        set_width(stem.module, layout.index.numel())
        stem.module.reset_parameters()
        return
    missing = planned.colours.constant - write_kernels(stem, layout, kernels)
    if missing.abs().max() > 1e-9 * kernels.abs().max():  # else not worth a new bias
        add_constant(stem, missing)


def mix(model: nn.Module, scaling: ChannelScaling, slices: int, tie: str | None, undo: ExitStack) -> StemPlan:
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
        The mixer as a stem, with effective kernels (C, C, 1, 1, 1) before.

    Example:
        >>> from contextlib import ExitStack
        >>> network = nn.Sequential(nn.Conv2d(3, 8, 3))
        >>> with torch.no_grad():
        ...     mixer = mix(network, ChannelScaling((0.0,) * 3, (1.0,) * 3), 5, None, ExitStack())
        >>> mixer.stem.label, network(torch.zeros(1, 5, 4, 4)).shape
        ('slice_mixer (Conv2d)', torch.Size([1, 8, 2, 2]))
    """
    means, stds = scaling.columns()
    scale = scaling.std / stds
    mixer = _add_mixer(model, scale, (scaling.mean - means) / stds, slices, undo)
    ones = torch.ones(1, slices, dtype=torch.float64, device="cpu")
    index = torch.arange(slices, device="cpu")[None]
    layout = Layout(index, ones, torch.zeros_like(ones), ones.float()[:, :, None, None])
    stem = Stem(MIXER, mixer, None, mixer)
    tie_stem(stem, layout, tie, undo)
    before = EffectiveKernels(
        torch.diag(scale)[:, :, None, None, None], torch.zeros_like(scale), shifted=False
    )
    return StemPlan(stem, layout, layout, before, None)


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


def tie_stem(stem: Stem, layout: Layout, tie: str | None, undo: ExitStack) -> None:
    """Tie the kernels of a stem, or leave them free if the tie is None."""
    if tie is not None:
        tie_weight(stem.module, layout.index, layout.scale, tie)
        undo.callback(untie_weight, stem.module, bake=False)


@torch.inference_mode(mode=False)  # what is made in it can be trained, and explained
def untie(model: nn.Module) -> None:
    """Bake the ties of a network into its weights: its output stays the same, and training may now move the weights apart.

    The tied weights stay the same parameters, so an optimizer that has them still works. A network without ties is left
    alone. Afterwards the state dict has its plain keys, and the record, if there is one, says that nothing is tied.

    Raises:
        ModelError: it is not a network.

    Example:
        >>> import evenslice
        >>> network = nn.Sequential(nn.Conv2d(3, 8, 3))
        >>> record = evenslice.neutralize(network, tie="mirror")
        >>> list(network.state_dict())
        ['0.bias', '0.parametrizations.weight.original', '0.parametrizations.weight.0.evenslice_tied']
        >>> untie(network)
        >>> sorted(network.state_dict())
        ['0.bias', '0.weight']
    """
    require_network(model)
    for module in model.modules():
        if is_tied(module):
            untie_weight(module)
    forget_ties(model)


def _unshare(stems: Sequence[Stem], undo: ExitStack) -> None:
    """Give stems that share a weight or a bias one each: they may get slices that are scaled differently."""
    seen = set()
    for stem, name in product(stems, ("weight", "bias")):
        shared = getattr(stem.module, name)
        if id(shared) in seen and shared is not None:
            undo.callback(setattr, stem.module, name, shared)
            own = nn.Parameter(shared.detach().clone(), requires_grad=shared.requires_grad)
            setattr(stem.module, name, own)
        seen.add(id(shared))


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
            if torch.equal(parameter, old) and parameter.is_floating_point():
                parameter.normal_(parameter.mean().item(), parameter.std(correction=0).item())
        if reset is None and isinstance(getattr(module, "running_mean", None), Tensor):
            for name, buffer in module.named_buffers(recurse=False):
                if buffer.is_floating_point():
                    buffer.fill_(name in ("weight", "running_var"))
