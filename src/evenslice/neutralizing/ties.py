"""Ties: kernels of a stem that stay symmetric whatever is learned.

A tied weight is a `torch.nn.utils.parametrize` parametrization: the layer computes with the mean over the slices that
are tied to each other, and training moves them together.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from evenslice._core import check_known
from evenslice.networks import TIED

if TYPE_CHECKING:
    from evenslice.neutralizing.input_path import Layout

TIES: tuple[str, ...] = ("mirror", "uniform")
"""The names of all ties."""


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


def tie_weight(layer: nn.Module, layout: Layout, tie: str) -> None:
    """Tie the kernels of a layer.

    Args:
        layer: a layer with a parameter ``weight`` (out, F, ...).
        layout: which slice each of its F features comes from.
        tie: "mirror" ties offset -k to offset k, "uniform" all offsets.
    """
    index = layout.index  # (positions, slices)
    groups = (
        torch.stack([index, index.flip(1)])
        if tie == "mirror"
        else index.T[:, :, None].expand(-1, *index.shape)
    )
    partners = torch.empty(len(groups), index.numel(), dtype=torch.long, device="cpu")
    partners[:, index.flatten()] = groups.flatten(1)
    scale = torch.empty(index.numel(), dtype=torch.float64, device="cpu")
    scale[index] = layout.scale
    tied = Tied(partners, scale.float())
    parametrize.register_parametrization(layer, "weight", tied)
    _make_picklable(layer)


def is_tied(layer: nn.Module) -> bool:
    """Say whether `tie_weight` has tied a layer's weight.

    Example:
        >>> is_tied(nn.Linear(2, 2))
        False
    """
    return parametrize.is_parametrized(layer, "weight") and any(
        isinstance(item, Tied) for item in _parametrizations(layer)
    )


def untie_weight(layer: nn.Module, *, bake: bool = True) -> None:
    """Remove the tie of a layer's weight, which stays the same parameter and may move freely from now on.

    Args:
        layer: a layer that `tie_weight` tied.
        bake: give the parameter the tied values, so that the layer computes the same; otherwise it keeps the free ones.
    """
    parametrize.remove_parametrizations(layer, "weight", leave_parametrized=bake)
    bias = dict(layer.named_parameters(recurse=False)).get("bias")
    if bias is not None:  # torch has put the weight behind it, but it comes first in a state dict
        del layer.bias
        layer.register_parameter("bias", bias)


def _parametrizations(layer: nn.Module) -> nn.ModuleList:
    parametrizations: Any = layer.parametrizations
    weight: nn.ModuleList = parametrizations["weight"]
    return weight


def _make_picklable(layer: nn.Module) -> None:
    """Let a tied layer be pickled, which torch refuses for parametrized modules, as their class is made at run time.

    Workers of a cluster receive networks by pickle. What is pickled is the layer without its tie, and the tie.
    """
    cls: Any = type(layer)
    cls.__reduce_ex__ = _reduce
    # With torch's own, copies would share that class, and untying one would break the others.
    if "__deepcopy__" in vars(cls):
        del cls.__deepcopy__


def _reduce(layer: nn.Module, _: int) -> tuple[Any, ...]:
    state = dict(vars(layer))
    state["_modules"] = {name: child for name, child in layer.named_children() if name != "parametrizations"}
    parametrizations = _parametrizations(layer)
    free = parametrizations.get_parameter("original")
    return _rebuild, (type(layer).__mro__[1], state, free, parametrizations[0])


def _rebuild(cls: type[nn.Module], state: dict[str, Any], free: nn.Parameter, tied: Tied) -> nn.Module:
    layer = cls.__new__(cls)
    vars(layer).update(state)
    layer.register_parameter("weight", free)
    parametrize.register_parametrization(layer, "weight", tied)
    _make_picklable(layer)
    return layer
