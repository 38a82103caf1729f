"""Whether a network answers a window in the same way twice, alone and in another batch: an audit compares windows one by one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from evenslice._core import ModelError
from evenslice.auditing.targets import check_batch
from evenslice.inference import SMALLER, ReadyNetwork, reporting_device_errors
from evenslice.networks import logits
from evenslice.results import SAME

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor, nn

    from evenslice.inference import BlackBox

__all__ = ["check_repeatable"]

MOST_NAMED = 5


def check_repeatable(network: ReadyNetwork | BlackBox, windows: Tensor) -> None:
    """Check that the output for a window depends on nothing but the window.

    Args:
        network: ready to run.
        windows: (2, N, y, x) in 0..1.

    Raises:
        ModelError: two outputs for one window differ by more than 1e-4 of the largest; the layers that do so are named.
            Or the first dimension of the output is not the batch, or memory runs out.

    Example:
        >>> noisy = torch.nn.Sequential(torch.nn.Conv2d(3, 2, 1), torch.nn.Flatten(0, 0))
        >>> noisy.append(type("Noise", (torch.nn.Module,), {"forward": lambda self, x: x + torch.rand_like(x)})())
        Sequential(...)
        >>> check_repeatable(ReadyNetwork(noisy, slices=3, device="cpu", dtype="float32"), torch.rand(2, 3, 8, 8))
        Traceback (most recent call last):
        ...
        evenslice.ModelError: the network Sequential returns another output for the same window ... random: 2 (Noise) ...
    """
    if isinstance(network, ReadyNetwork):
        network = network.in_precision(torch.float32)

    def first(batch: Tensor) -> Tensor:
        output = logits(network(batch))
        check_batch(output, batch)
        return output[:1].float()

    with torch.no_grad(), reporting_device_errors(network.device, "two windows do not fit into it", SMALLER):
        beside, alone = first(windows), first(windows[:1])
        if _differ(alone, first(windows[:1])):
            raise _refused(network, windows[:1], windows[:1], "in a second run", "random")
        if _differ(alone, beside):
            raise _refused(network, windows[:1], windows, "beside another window", "dependent on the batch")


def _differ(one: Tensor, other: Tensor) -> bool:
    if one.shape != other.shape:
        return True
    size = max(float(one.abs().max()) if one.numel() else 0.0, torch.finfo(torch.float32).tiny)
    return float((one - other).abs().max() if one.numel() else 0.0) > SAME * size


def _refused(
    network: ReadyNetwork | BlackBox, one: Tensor, other: Tensor, where: str, kind: str
) -> ModelError:
    layers = _unlike_layers(network.module, network, one, other) if isinstance(network, ReadyNetwork) else []
    named = f"; {kind}: {', '.join(layers[:MOST_NAMED])}" if layers else ""
    return ModelError(
        f"the network {network.name} returns another output for the same window {where}, so a window cannot be compared "
        f"with its mirror{named}; make it deterministic in evaluation mode"
    )


def _unlike_layers(
    module: nn.Module, network: Callable[[Tensor], Any], one: Tensor, other: Tensor
) -> list[str]:
    """Return the innermost layers that answer the same input differently, by name and kind."""
    runs = []
    for batch in (one, other):
        calls: dict[str, list[tuple[Tensor, Tensor]]] = {}
        hooks = [part.register_forward_hook(_recorder(calls, name)) for name, part in module.named_modules()]
        try:
            network(batch)
        finally:
            for hook in hooks:
                hook.remove()
        runs.append(calls)
    found = [
        name
        for name, calls in runs[0].items()
        if any(
            not _differ(given, again) and _differ(output, repeated)
            for (given, output), (again, repeated) in zip(calls, runs[1].get(name, []), strict=False)
        )
    ]
    inner = [
        name
        for name in found
        if not any(item != name and item.startswith(f"{name}." if name else "") for item in found)
    ]
    return [
        f"{name} ({type(module.get_submodule(name)).__name__})" if name else type(module).__name__
        for name in inner
    ]


def _recorder(calls: dict[str, list[tuple[Tensor, Tensor]]], name: str) -> Callable[..., None]:
    """Return a hook that keeps the first window of what a layer is given and returns."""

    def record(_module: nn.Module, given: Any, returned: Any) -> None:
        tensors = [item for item in given if isinstance(item, torch.Tensor)]
        if tensors and isinstance(returned, torch.Tensor):
            calls.setdefault(name, []).append((tensors[0][:1].float(), returned[:1].float()))

    return record
