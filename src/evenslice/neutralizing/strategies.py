"""Strategies: how the kernels of a stem's colours become the kernels of slices; and ties, which keep these symmetric.

A strategy is a pure function from weights to weights. It knows nothing of networks: it takes kernels with their
channel axis, (filters, C, ...), and gives kernels with a slice axis, (filters, N, ...), computed in float64. C is 3 for
colours, and any other number for a network that already has so many inputs.

A tied weight is a `torch.nn.utils.parametrize` parametrization: the layer computes with the mean over the slices that
are tied to each other, and training moves them together.

Example:
    >>> import torch
    >>> colours = torch.tensor([[1.0, 5.0, 3.0]]).double()      # one filter, its three colour kernels 1 x 1
    >>> find_strategy("uniform", 3).spread(colours, 3)
    tensor([[3., 3., 3.]], dtype=torch.float64)
    >>> find_strategy("mirror", 5).spread(colours, 5)
    tensor([[1., 1., 5., 1., 1.]], dtype=torch.float64)
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from evenslice._core import ConfigError, ModelError, check_known, did_you_mean, option, whole_number

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

Symmetry = Literal["mirror", "permutation"]


@dataclass(frozen=True)
class KernelStrategy:
    """One strategy, with what it promises.

    Attributes:
        name: one of `STRATEGIES`.
        symmetry: "permutation" if any order of the slices gives the same output, "mirror" if the reversed order does,
            None if neither is promised.
        keeps_gray: True if the slice kernels always sum to the colour kernels, "multiples" if they do when N is 1 or a
            multiple of C, False if they need not.
        derive: turns (filters, C, ...) kernels into those of N slices, given N, the profile and a seed; None if the stem is drawn
            at random.
        averaged: the features of a window and of its mirror are averaged after the activation of the stem.
        profile: the N weights of the strategy "profile"; empty for the binomial weights.
    """

    name: str
    symmetry: Symmetry | None = None
    keeps_gray: bool | Literal["multiples"] = False
    derive: Callable[[Tensor, int, Sequence[float], int], Tensor] | None = None
    averaged: bool = False
    profile: tuple[float, ...] = ()

    def promises_gray(self, channels: int, slices: int) -> bool:
        """Say whether N equal slices get the response that C equal channels got."""
        if self.keeps_gray == "multiples":
            return slices == 1 or slices % channels == 0
        return self.keeps_gray

    def spread(self, kernels: Tensor, slices: int, seed: int = 0) -> Tensor | None:
        """Turn the kernels of C channels into the kernels of N slices; None if they are drawn at random.

        With W_c the kernel of channel c and V_k that of offset k = -K..K, per filter:

        - ``pretrained``: V = W repeated cyclically and cut to N, times C / N; at N = 1 the sum. This is
          `timm.models.adapt_input_conv`.
        - ``uniform``: V_k = sum_c W_c / N.
        - ``center``: V_0 = sum_c W_c, the others 0.
        - ``profile``: V_k = a_k sum_c W_c; a is the given profile, or the binomial weights (2K over K + k) / 4^K.
        - ``mirror``: each pair of opposite channels shares its mean. The outermost pair is spread evenly over the offsets
          beyond the others where N > C, and offsets beyond the window are folded onto its ends where N < C.
        - ``twin``: as ``mirror``, without the mean: channels on either side of the middle stay on their side. The network
          averages after the stem's activation, see `evenslice.neutralizing.averages`.
        - ``shuffle``: ``pretrained``, then one random permutation of the slices for each filter.
        - ``equalize``: ``pretrained``, then each kernel is rescaled to an N-th of the energy (sum of squares) of its
          filter; a kernel of zeros stays one.
        - ``mixer``: ``uniform``; the kernels are those of a mixer in front of the network, see
          `evenslice.neutralizing.rewriting`.

        Args:
            kernels: (filters, C, ...) weights; any C of 1 or more.
            slices: N, odd.
            seed: of the permutations of ``shuffle``.

        Returns:
            (filters, N, ...) weights, float64.

        Raises:
            ModelError: ``mirror`` or ``twin`` was asked of an even number of channels, which has no middle.
        """
        return None if self.derive is None else self.derive(kernels.double(), slices, self.profile, seed)


MOST_SLICES = 1001
"""Largest number of slices in a window."""

SMALLEST_SIZE, LARGEST_SIZE = 1e-100, 1e100  # of a voxel, of which no quotient overflows

MIXER_HINT = (
    f"{option('strategy', 'mixer')} leaves the layer alone and puts a mixer of slices in front of the network"
)
"""The end of every message about a network whose stems cannot be rewritten."""


def find_strategy(strategy: str | Sequence[float], slices: int) -> KernelStrategy:
    """Return the strategy that a user requested.

    Args:
        strategy: a name, or the N weights of a symmetric profile, offsets -K..K, which sum to 1.
        slices: N, odd.

    Raises:
        ConfigError: N is not a positive odd number, or too large; no strategy has this name; the weights are not
            numbers, not N, not symmetric, or do not sum to 1.

    Example:
        >>> find_strategy("uniform", 3).symmetry
        'permutation'
        >>> find_strategy([0.25, 0.5, 0.25], 3).name
        'profile'
    """
    slices = whole_number("slices", slices)
    if slices % 2 != 1 or not 1 <= slices <= MOST_SLICES:
        raise ConfigError(
            f"{option('slices', slices)}: a window has an odd number of slices, 1, 3, 5, ..., at most {MOST_SLICES}"
        )
    if isinstance(strategy, str):
        if strategy not in _TABLE:
            raise ConfigError(f"{option('strategy', strategy)}: {did_you_mean(strategy, STRATEGIES)}")
        return _TABLE[strategy]
    try:
        profile = tuple(float(weight) for weight in strategy)
    except (TypeError, ValueError, OverflowError):
        profile = ()
    sums = math.isclose(sum(profile), 1.0, abs_tol=1e-6)
    if len(profile) != slices or not sums or profile != profile[::-1]:
        raise ConfigError(
            f"{option('strategy')}: is {strategy!r:.60}; must be one of {', '.join(STRATEGIES)}, or {slices} weights, the same "
            "for opposite slices, which sum to 1"
        )
    return replace(_TABLE["profile"], profile=profile)


def profile_weights(
    slices: int, spacing: Sequence[float] | None = None, *, step: int = 1
) -> tuple[float, ...]:
    """Return weights for the strategy ``profile`` that cover the same thickness of tissue for any shape of voxels.

    Binomial weights to the power (step dz / dxy)^2: nearly a Gaussian whose standard deviation is sqrt(N - 1) / 2 times
    the size dxy of a voxel within the plane, the geometric mean of its sides. They are binomial for cubic voxels,
    nearly equal for much thinner slices, and nearly ``center`` for much thicker ones.

    Args:
        slices: N, odd.
        spacing: size (z, y, x) of a voxel in any unit, like `Volume.spacing`; by default a cube.
        step: distance of neighbouring slices of a window, in slices.

    Returns:
        N weights, offsets -K..K, which sum to 1: a ``strategy`` of `evenslice.neutralize` and of configurations.

    Raises:
        ConfigError: N is not a positive odd number, or too large; the spacing is not three positive numbers, or the step
            not a whole number of at least 1.

    Example:
        >>> profile_weights(3), profile_weights(5, (5, 5, 5))
        ((0.25, 0.5, 0.25), (0.0625, 0.25, 0.375, 0.25, 0.0625))
        >>> [round(weight, 3) for weight in profile_weights(5, (30, 15, 15))]
        [0.001, 0.141, 0.716, 0.141, 0.001]
    """
    slices, step = whole_number("slices", slices), whole_number("step", step, least=1)
    find_strategy("profile", slices)
    try:
        z, y, x = (1.0, 1.0, 1.0) if spacing is None else map(float, spacing)
    except (TypeError, ValueError, OverflowError):
        z = y = x = math.nan
    if not all(SMALLEST_SIZE <= size <= LARGEST_SIZE for size in (z, y, x)):
        raise ConfigError(
            f"{option('spacing')}: is {spacing!r:.60}; must be three positive numbers (z, y, x)"
        )
    ratio = step * (z / x) / math.sqrt(y / x)
    power = ratio * ratio  # infinite where ** would raise an error
    binomial = _binomial(slices)
    weights = [(weight / max(binomial)) ** power for weight in binomial]
    return tuple(weight / math.fsum(weights) for weight in weights)


def _pretrained(kernels: Tensor, slices: int, *_: object) -> Tensor:
    channels = kernels.shape[1]
    if slices == 1:
        return kernels.sum(dim=1, keepdim=True)
    cycle = torch.arange(slices, device=kernels.device) % channels
    return kernels.index_select(1, cycle) * (channels / slices)


def _profile(kernels: Tensor, slices: int, profile: Sequence[float], *_: object) -> Tensor:
    weights = torch.tensor(profile or _binomial(slices), dtype=kernels.dtype, device=kernels.device)
    return _along_slices(weights[None], kernels) * kernels.sum(dim=1, keepdim=True)


def _uniform(kernels: Tensor, slices: int, *_: object) -> Tensor:
    return _profile(kernels, slices, [1 / slices] * slices)


def _center(kernels: Tensor, slices: int, *_: object) -> Tensor:
    return _profile(kernels, slices, [float(k == slices // 2) for k in range(slices)])


def _mirror(kernels: Tensor, slices: int, *_: object) -> Tensor:
    spreaded = _twin(kernels, slices)
    return (spreaded + spreaded.flip(1)) / 2


def _twin(kernels: Tensor, slices: int, *_: object) -> Tensor:
    """Spread channels over the offsets on their side of the middle."""
    channels = kernels.shape[1]
    if channels % 2 == 0:
        raise ModelError(
            f"the strategies 'mirror' and 'twin' need a middle channel, and the network has {channels} inputs; choose 'uniform', "
            "'center' or 'profile'"
        )
    last, end = channels // 2, slices // 2
    result = kernels.new_zeros(kernels.shape[0], slices, *kernels.shape[2:])
    for channel in range(-last, last + 1):
        # the outermost channels go wherever the inner ones leave room, every other stays where it is or is folded
        nearest = min(abs(channel), end)
        reach = range(nearest, end + 1) if abs(channel) == last else [nearest]
        sides = (-1, 1) if channel == 0 else (1 if channel > 0 else -1,)
        places = sorted({side * distance for distance in reach for side in sides})
        result[:, [end + place for place in places]] += (kernels[:, last + channel] / len(places))[:, None]
    return result


def _shuffle(kernels: Tensor, slices: int, _: object, seed: int) -> Tensor:
    spreaded = _pretrained(kernels, slices)
    generator = torch.Generator().manual_seed(seed)
    keys = torch.rand(spreaded.shape[:2], generator=generator, dtype=torch.float32, device="cpu")
    order = keys.argsort(dim=1).to(kernels.device)
    return spreaded.gather(1, _along_slices(order, spreaded).expand_as(spreaded))


def _equalize(kernels: Tensor, slices: int, *_: object) -> Tensor:
    spreaded = _pretrained(kernels, slices)
    energy = spreaded.flatten(2).square().sum(dim=2) if spreaded.ndim > 2 else spreaded.square()
    factor = (energy.mean(dim=1, keepdim=True) / energy).sqrt()
    return spreaded * _along_slices(torch.where(energy > 0, factor, 0.0), spreaded)


def _binomial(slices: int) -> tuple[float, ...]:
    return tuple(math.comb(slices - 1, k) / 2 ** (slices - 1) for k in range(slices))


def _along_slices(values: Tensor, kernels: Tensor) -> Tensor:
    """Give (filters, N) values as many trailing axes as the kernels have."""
    return values.reshape(*values.shape, *[1] * (kernels.ndim - 2))


_TABLE = {
    strategy.name: strategy
    for strategy in (
        KernelStrategy("pretrained", None, "multiples", _pretrained),
        KernelStrategy("uniform", "permutation", True, _uniform),
        KernelStrategy("center", "mirror", True, _center),
        KernelStrategy("profile", "mirror", True, _profile),
        KernelStrategy("mirror", "mirror", True, _mirror),
        KernelStrategy("twin", "mirror", True, _twin, averaged=True),
        KernelStrategy("shuffle", None, "multiples", _shuffle),
        KernelStrategy("equalize", derive=_equalize),
        KernelStrategy("mixer", "permutation", True, _uniform),
        KernelStrategy("reinit"),
        KernelStrategy("random"),
    )
}

STRATEGIES: tuple[str, ...] = tuple(_TABLE)
"""The names of all strategies."""

TIES: tuple[str, ...] = ("mirror", "uniform")
"""The names of all ties."""

TIED = "evenslice_tied"
"""Buffer of a tied weight, as long as there are slices in its mean."""


class Tied(nn.Module):
    """The parametrization of a tied weight: every input feature is the mean over the features it is tied to.

    Args:
        partners: (G, F) the features that each of F features is averaged over, itself included.
        scale: (F,) by how much the path to the layer multiplies each feature; the mean is over effective kernels, so a
            fixed scaling in front of the layer does not undo the symmetry.

    Example:
        >>> tied = Tied(torch.tensor([[0, 1, 2], [2, 1, 0]]), torch.ones(3))
        >>> tied(torch.tensor([[1.0, 5.0, 3.0]]))
        tensor([[2., 5., 2.]])
    """

    def __init__(self, partners: Tensor, scale: Tensor) -> None:
        super().__init__()
        # Not part of the state dict, as `neutralize` with the same tie makes them again; nor buffers, which averages of
        # networks over time average, too: that of an index 3 and 3 may be 2. Its length lets no other tie load it.
        self.register_buffer(TIED, torch.zeros(len(partners), dtype=torch.uint8, device=partners.device))
        self.partners = partners
        self.ratio = scale[partners] / scale / len(partners)

    def forward(self, weight: Tensor) -> Tensor:
        """Return the symmetric weight (out, F, ...) of a free one."""
        trailing = [1] * (weight.ndim - 2)
        # Term by term, to save memory; identical to the bit in every slice, as the order of two terms does not matter
        # and larger groups are always in the same order.
        total = torch.zeros_like(weight)
        for partner, ratio in zip(self.partners, self.ratio, strict=True):
            chosen = weight.index_select(1, partner.to(weight.device))
            total = total + chosen * ratio.to(weight).reshape(-1, *trailing)
        return total


def check_tie(tie: str | None) -> None:
    """Raise ConfigError unless a tie is known or None.

    Example:
        >>> check_tie("mirror")
    """
    if tie is not None:
        check_known("tie", tie, TIES, "; omit it to leave the slices free")


def symmetric(kernels: Tensor, tie: str) -> Tensor:
    """Return the kernels that a tie allows and that are nearest to some (filters, N, ...).

    Example:
        >>> symmetric(torch.tensor([[1.0, 5.0, 3.0]]), "mirror")
        tensor([[2., 5., 2.]])
        >>> symmetric(torch.tensor([[1.0, 5.0, 3.0]]), "uniform")
        tensor([[3., 3., 3.]])
    """
    if tie == "mirror":
        return (kernels + kernels.flip(1)) / 2
    return kernels.mean(dim=1, keepdim=True).expand_as(kernels)


def tie_weight(layer: nn.Module, index: Tensor, scale: Tensor, tie: str) -> None:
    """Tie the kernels of a layer.

    Args:
        layer: a layer with a parameter ``weight`` (out, F, ...).
        index: (positions, slices) the numbers of the features that come from each slice.
        scale: by how much the path to the layer multiplies each of them.
        tie: "mirror" ties offset -k to offset k, "uniform" all offsets.
    """
    groups = (
        torch.stack([index, index.flip(1)])
        if tie == "mirror"
        else index.T[:, :, None].expand(-1, *index.shape)
    )
    partners = torch.empty(len(groups), index.numel(), dtype=torch.long, device="cpu")
    partners[:, index.flatten()] = groups.flatten(1)
    by_feature = torch.empty(index.numel(), dtype=torch.float64, device="cpu")
    by_feature[index] = scale
    tied = Tied(partners, by_feature.float())
    parametrize.register_parametrization(layer, "weight", tied)


def is_tied(layer: nn.Module) -> bool:
    """Say whether `tie_weight` has tied a layer's weight.

    Example:
        >>> is_tied(nn.Linear(2, 2))
        False
    """
    tied = parametrize.is_parametrized(layer, "weight") and cast("Any", layer).parametrizations["weight"]
    return any(isinstance(item, Tied) for item in tied or ())


def untie_weight(layer: nn.Module, *, bake: bool = True) -> None:
    """Remove the tie of a layer's weight, which stays the same parameter and may move freely from now on.

    Not by `torch.nn.utils.parametrize.remove_parametrizations`: it takes the weight from the layer's class, which copies
    share, and would break these.

    Args:
        layer: a layer that `tie_weight` tied.
        bake: give the parameter the tied values, so that the layer computes the same; otherwise it keeps the free ones.
    """
    tied = cast("Any", layer)
    weight, bias = tied.parametrizations["weight"].original, tied.bias
    if bake:
        weight.data = tied.weight.data
    del tied.parametrizations, tied.bias
    layer.__class__ = type(layer).__mro__[1]
    layer.register_parameter("weight", weight)  # which comes first in a state dict
    layer.register_parameter("bias", bias)
