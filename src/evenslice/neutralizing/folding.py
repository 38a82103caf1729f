"""Folding: a scaling by channel moves into the weights of a stem, so that all slices can share one scaling.

With the channels c of an image g scaled as x_c = (g - m_c) / s_c, and a stem whose feature of channel c is a x_c + b,
the stem's response to the image scaled as u = (g - m) / s instead is, where all its taps lie inside the image,

    sum_c W_c (a x_c + b)  =  sum_c (W_c a s / s_c) u  +  sum_c W_c (a (m - m_c) / s_c + b)

so the effective kernels are W_c a s / s_c, and the second sum, over the taps too, is a constant.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import chain
from numbers import Real
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from evenslice._core import ConfigError, option
from evenslice.networks import check_mean, normalization

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from evenslice.neutralizing.input_path import Layout
    from evenslice.neutralizing.stems import Stem


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
    model: nn.Module,
    channels: int,
    mean: float | Sequence[float] | None,
    std: float | Sequence[float] | None,
    known: tuple[float, float] | None,
) -> ChannelScaling:
    """Find how a network's channels are scaled.

    Args:
        model: the network; its pretrained weights may state it.
        channels: C.
        mean: as the user states it, one value a channel or one for all; None for nothing.
        std: likewise.
        known: the (mean, std) in the record of an earlier `neutralize`.

    Raises:
        ConfigError: the user's values are neither one nor C, or not finite, a mean is that of 8-bit values, or a std is not
            positive.

    Example:
        >>> find_scaling(nn.Conv2d(3, 8, 3), 3, mean=[0.2, 0.4, 0.6], std=None, known=None)
        ChannelScaling(means=(0.2, 0.4, 0.6), stds=(1.0, 1.0, 1.0))
    """
    stated = ((known[0],), (known[1],)) if known else normalization(model) or ((0.0,), (1.0,))
    if len(stated[0]) != channels:  # values of colours say nothing about other channels, except on average
        stated = (_average(stated[0]),), (_average(stated[1]),)
    means = _by_channel("mean", stated[0] if mean is None else mean, channels)
    stds = _by_channel("std", stated[1] if std is None else std, channels)
    if mean is not None:
        check_mean(means)
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
        >>> from evenslice.neutralizing.input_path import probe
        >>> from evenslice.neutralizing.stems import find_stems
        >>> layer = nn.Conv2d(2, 1, 1)
        >>> layer.weight.data = torch.tensor([1.0, 1.0]).reshape(1, 2, 1, 1)
        >>> stems = find_stems(layer, channels=[2])
        >>> found = effective_kernels(stems.items[0], probe(layer, stems, 2)[0], ChannelScaling((0.0, 1.0), (1.0, 3.0)))
        >>> found.kernels.flatten(), found.constant
        (tensor([2.0000, 0.6667], dtype=torch.float64), tensor([0.3333], dtype=torch.float64))
    """
    weight = stem.module.weight.detach().to("cpu", torch.float64)
    means, stds = (
        torch.tensor(values, dtype=torch.float64, device="cpu") for values in (scaling.means, scaling.stds)
    )
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
    setattr(layer, _width_name(layer), width)


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
    kept = [
        (module, name, tensor, tensor.detach().clone())
        for module in modules
        for name, tensor in chain(module.named_parameters(recurse=False), module.named_buffers(recurse=False))
    ]
    without_bias = [module for module in modules if getattr(module, "bias", ...) is None]

    def restore() -> None:
        for module, name, tensor, value in kept:
            tensor.copy_(value)
            setattr(module, name, tensor)
            if name == "weight" and isinstance(module, nn.Conv2d | nn.Linear):
                setattr(module, _width_name(module), tensor.shape[1])
        for module in without_bias:
            module.bias = None  # type: ignore[assignment]  # torch types attributes as modules

    return restore


def _width_name(layer: nn.Module) -> str:
    return "in_channels" if isinstance(layer, nn.Conv2d) else "in_features"


def _over_taps(values: Tensor, kernels: Tensor) -> Tensor:
    """Make (channels, P) values broadcast against (out, channels, P, ...) kernels."""
    return values.reshape(*values.shape, *[1] * (kernels.ndim - 3))


def _average(values: Sequence[float]) -> float:
    """Return the mean; equal values give that value to the last bit, so that nothing is folded needlessly."""
    return values[0] if len(set(values)) == 1 else math.fsum(values) / len(values)


def _by_channel(name: str, values: Any, channels: int) -> tuple[float, ...]:
    """Return a number, or one for each channel, as one for each; any number of Python or NumPy will do."""
    try:
        if isinstance(values, str):  # whose characters may be digits
            raise TypeError
        numbers = (float(values),) if isinstance(values, Real) else tuple(map(float, values))
    except (TypeError, ValueError):
        raise ConfigError(
            f"{option(name)} has to be a number, or one for each input, not {values!r:.100}"
        ) from None
    if len(numbers) not in (1, channels):
        raise ConfigError(
            f"{option(name)} has {len(numbers)} values; the network has {channels} inputs, so give 1 or {channels}"
        )
    if not all(map(math.isfinite, numbers)):
        raise ConfigError(f"{option(name)} has to be finite, not {values}")
    return numbers if len(numbers) == channels else numbers * channels
