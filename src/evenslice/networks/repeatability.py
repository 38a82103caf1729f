"""Whether a network answers a window in the same way twice, alone and in another batch: windows are compared one by one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from evenslice._core import ModelError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor, nn

    Answer = Callable[[Tensor], Mapping[Any, Tensor]]

__all__ = ["answers_alone"]

MOST_NAMED = 5
ADVICE = {
    "random": "make it deterministic in evaluation mode",
    "dependent on the batch": "make it independent of its batch in evaluation mode, as a batch norm with "
    "track_running_stats=True is",
}


def answers_alone(
    answer: Answer,
    windows: Tensor,
    *,
    name: str,
    limits: tuple[float, float],
    model: nn.Module | None = None,
) -> tuple[Mapping[Any, Tensor], Mapping[Any, Tensor]]:
    """Return the answers to two windows, each in a batch of its own, which depend on nothing but the window.

    Args:
        answer: returns the outputs of the network for a batch, each with the batch first, by any names.
        windows: (2, N, y, x).
        name: of the network, for messages.
        limits: the largest differences of two outputs for one window, relative to the largest value: of two runs, and of batches
            of different sizes, which are computed in another order.
        model: the network, whose layers are named; None if it has none.

    Raises:
        ModelError: the outputs for a window differ by more in a second run, or in a batch with the other window in front of it
            or behind it; the layers that do so are named.

    Example:
        >>> noisy = torch.nn.Sequential(torch.nn.Conv2d(3, 2, 1), torch.nn.Flatten(0, 0))
        >>> noisy.append(type("Noise", (torch.nn.Module,), {"forward": lambda self, x: x + torch.rand_like(x)})())
        Sequential(...)
        >>> windows = torch.rand(2, 3, 8, 8)
        >>> with torch.no_grad():
        ...     answers_alone(lambda batch: {"": noisy(batch)}, windows, name="Net", limits=(1e-4, 1e-4), model=noisy)
        Traceback (most recent call last):
        ...
        evenslice.ModelError: the network Net returns another output for the same window ... random: 2 (Noise) ...
    """

    def refused(place: int, batch: Tensor, where: str, kind: str, limit: float) -> ModelError:
        alone = windows[1 - place, None]
        layers = [] if model is None else _unlike_layers(model, answer, alone, batch, place, limit)
        named = f"; {kind}: {', '.join(layers[:MOST_NAMED])}" if layers else ""
        return ModelError(
            f"the network {name} returns another output for the same window {where}, so a window cannot be compared with its "
            f"mirror{named}; {ADVICE[kind]}"
        )

    def unlike(one: Mapping[Any, Tensor], other: Mapping[Any, Tensor], limit: float) -> bool:
        return any(_differ(one[key], other[key], limit) for key in one if key in other)

    first, second = answer(windows[:1]), answer(windows[1:])
    again, together = answer(windows[1:]), answer(windows.flip(0))
    if unlike(second, again, limits[0]):
        raise refused(0, windows[1:], "in a second run", "random", limits[0])
    for place, alone in enumerate((second, first)):
        if unlike(alone, {key: output[place : place + 1] for key, output in together.items()}, limits[1]):
            raise refused(
                place, windows.flip(0), "beside another window", "dependent on the batch", limits[1]
            )
    return first, second


def _differ(one: Tensor, other: Tensor, limit: float) -> bool:
    if one.shape != other.shape:
        return True
    size = max(float(one.abs().max()) if one.numel() else 0.0, torch.finfo(torch.float32).tiny)
    return float((one - other).abs().max() if one.numel() else 0.0) > limit * size


def _unlike_layers(  # of which network, on what
    model: nn.Module, answer: Answer, alone: Tensor, batch: Tensor, place: int, limit: float
) -> list[str]:
    """Return the innermost layers that answer the same input differently, by name and kind.

    Args:
        model: the network.
        answer: runs it.
        alone: a window.
        batch: a batch with this window.
        place: where it is in there.
        limit: the largest difference that counts as none.
    """
    runs = []
    for windows, row in ((alone, 0), (batch, place)):
        calls: dict[str, list[tuple[Tensor, Tensor]]] = {}
        hooks = [
            part.register_forward_hook(_recorder(calls, name, row)) for name, part in model.named_modules()
        ]
        try:
            answer(windows)
        finally:
            for hook in hooks:
                hook.remove()
        runs.append(calls)
    found = [
        name
        for name, calls in runs[0].items()
        if any(
            not _differ(given, again, limit) and _differ(output, repeated, limit)
            for (given, output), (again, repeated) in zip(calls, runs[1].get(name, []), strict=False)
        )
    ]
    inner = [
        name
        for name in found
        if not any(item != name and item.startswith(f"{name}." if name else "") for item in found)
    ]
    return [
        f"{name} ({type(model.get_submodule(name)).__name__})" if name else type(model).__name__
        for name in inner
    ]


def _recorder(calls: dict[str, list[tuple[Tensor, Tensor]]], name: str, row: int) -> Callable[..., None]:
    """Return a hook that keeps what a layer is given and returns for one window."""

    def record(_module: nn.Module, given: Any, returned: Any) -> None:
        tensors = [item for item in given if isinstance(item, torch.Tensor) and item.ndim]
        if tensors and isinstance(returned, torch.Tensor) and returned.ndim:
            rows = slice(row, row + 1)
            calls.setdefault(name, []).append((tensors[0][rows].float(), returned[rows].float()))

    return record
