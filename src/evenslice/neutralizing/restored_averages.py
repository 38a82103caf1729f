"""The average over a window and its mirror, put back into a network whose weights come from a file."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import torch

from evenslice._core import ModelError, option
from evenslice.neutralizing.folding import find_scaling
from evenslice.neutralizing.mirror_average import average_mirrored, averages_due
from evenslice.neutralizing.neutralization import neutralize
from evenslice.neutralizing.record import record_of
from evenslice.neutralizing.stems import input_channels
from evenslice.neutralizing.symmetrization import symmetrize_after

if TYPE_CHECKING:
    from torch import nn

    from evenslice.neutralizing.record import Record

__all__ = ["average_as_recorded", "neutralize_averaged", "restore_average"]


def restore_average(model: nn.Module) -> None:
    """Let a network average where its state dict says that it did, and verify it as `symmetrize` does; else do nothing.

    Raises:
        ModelError: it is not symmetric then.

    Example:
        >>> from torch import nn
        >>> from evenslice.networks import fill_network
        >>> twin, other = (nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU()) for _ in range(2))
        >>> record = neutralize(twin, strategy="twin", mean=0, std=1)
        >>> filled = fill_network(other, twin.state_dict(), source="a state dict", target="a network")
        >>> restore_average(other)
        >>> window = torch.rand(1, 3, 8, 8)
        >>> torch.equal(other(window), twin(window))
        True
    """
    if cuts := averages_due(model):
        symmetrize_after(model, cuts)


def neutralize_averaged(
    model: nn.Module, slices: int, *, strategy: Any, mean: Any, std: Any, **options: Any
) -> Record:
    """Neutralize a network whose state dict says that it averaged, which may change nothing, and restore its average.

    Its slices are on one scale, as in any such network; options are those of `neutralize`.

    Raises:
        ModelError: it would change; or see `neutralize` and `restore_average`.
    """
    cuts, before = averages_due(model), {key: tensor.clone() for key, tensor in model.state_dict().items()}
    scaling = find_scaling(model, input_channels(model), mean, std, None)
    record = neutralize(model, slices, strategy=strategy, mean=scaling.mean, std=scaling.std, **options)
    after = model.state_dict()
    if before.keys() != after.keys() or not all(torch.equal(after[key], before[key]) for key in before):
        raise ModelError(
            "the weights are those of a network that averages over a window and its mirror after "
            f"{', '.join(cut or 'the output' for cut in cuts)}, and this strategy, tie or number of slices, or the network's "
            f"own scaling, would change them; give {option('strategy', 'pretrained')}, leave out {option('tie')} and "
            f"{option('slices')}, or load a file from evenslice.save_network, which says what was done to the network"
        )
    restore_average(model)
    return record_of(model) or record


def average_as_recorded(model: nn.Module, record: Record, weights: str) -> None:
    """Average over windows and their mirrors where a saved network did; of version 0.2, its record alone says where.

    Raises:
        ModelError: the network lacks a module after which it did, or its weights name another one.
    """
    missing = set(record.symmetrized) - dict(model.named_modules()).keys()
    if missing:
        raise ModelError(
            f"{weights}: was symmetrized after {min(missing)!r}, which the network lacks; save the network again"
        )
    if record.symmetrized:
        average_mirrored(model, record.symmetrized, ExitStack())  # never closed
    if other := averages_due(model):
        raise ModelError(
            f"{weights}: its weights say that it averages after {other[0] or 'the output'!r}, and its record does not; save "
            "the network again"
        )
