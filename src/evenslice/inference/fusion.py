"""Batch norms taken into the convolutions before them, for networks that only run and do not learn.

In evaluation mode a batch norm is a fixed scale and shift, which the convolution before it can do at no cost. Which
convolution that is, no list of architectures says: a forward pass is watched, and the autograd graph tells whether
anything else reads the convolution's output.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.fusion import fuse_conv_bn_weights

from evenslice.networks import logits

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["fuse_batch_norms"]

TOLERANCE = 1e-4  # of the largest output


def fuse_batch_norms(network: nn.Module, windows: Tensor, outputs: Callable[[Any], Tensor] = logits) -> int:
    """Take batch norms into the convolutions before them, in place.

    What does not follow its convolution directly, or is of a kind that is not known, stays as it is; so does everything
    where the output would change.

    Args:
        network: in evaluation mode, on float32.
        windows: (batch, slices, y, x) to try it with.
        outputs: reduces what the network returns to a tensor.

    Returns:
        How many there were.

    Example:
        >>> network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()).eval()
        >>> fuse_batch_norms(network, torch.zeros(1, 3, 8, 8)), network[1]
        (1, Identity())
    """
    if not any(_successor(module) for module in network.modules()):
        return 0
    before, pairs = _watch(network, windows, outputs)
    changes = [_fuse(network, *pair) for pair in pairs]
    try:
        with torch.no_grad():
            difference = (outputs(network(windows)) - before).abs().max()
        fine = bool(difference <= TOLERANCE * before.abs().max())
    except (RuntimeError, AttributeError, TypeError, ValueError):  # the network looks for its batch norms
        fine = False
    if fine:
        return len(pairs)
    for (convolution, name, batch_norm), (weight, bias) in zip(pairs, changes, strict=True):
        convolution.weight, convolution.bias = weight, bias
        network.set_submodule(name, batch_norm)
    return 0


def _successor(batch_norm: nn.Module) -> nn.Module | None:
    """Return what is left of a batch norm without its scale and shift; None where that is not known."""
    if type(batch_norm) in (nn.BatchNorm2d, nn.SyncBatchNorm):
        return nn.Identity()
    if type(batch_norm).__name__ == "BatchNormAct2d":  # timm's, with the activation in it
        return nn.Sequential(cast("nn.Module", batch_norm.drop), cast("nn.Module", batch_norm.act))
    return None


def _watch(
    network: nn.Module, windows: Tensor, outputs: Callable[[Any], Tensor]
) -> tuple[Tensor, list[tuple[nn.Conv2d, str, nn.Module]]]:
    """Run the network; return its output, and convolutions with the batch norms that alone read what they give."""
    made: dict[int, tuple[nn.Conv2d, Tensor]] = {}
    read: list[tuple[str, nn.Module, int]] = []
    calls: Counter[nn.Module] = Counter()
    parameters = Counter(id(p) for m in network.modules() for p in m.parameters(recurse=False))

    def note_convolution(module: nn.Module, _: Any, output: Tensor) -> None:
        calls[module] += 1
        made[id(output)] = cast("nn.Conv2d", module), output  # held, so that no other gets its id

    def note_batch_norm(name: str, module: nn.Module, given: tuple[Tensor, ...]) -> None:
        calls[module] += 1
        read.append((name, module, id(given[0])))

    hooks = []
    for name, module in network.named_modules():
        if isinstance(module, nn.Conv2d) and not parametrize.is_parametrized(module):
            hooks.append(module.register_forward_hook(note_convolution))
        elif _successor(module) and module.running_mean is not None:
            hooks.append(
                module.register_forward_pre_hook(lambda m, given, name=name: note_batch_norm(name, m, given))
            )
    try:
        with torch.enable_grad():
            output = outputs(network(windows.detach().requires_grad_()))
    finally:
        for hook in hooks:
            hook.remove()
    readers = Counter(node for node in _graph(output.grad_fn))
    pairs = [
        (convolution, name, module)
        for name, module, key in read
        if key in made
        for convolution, between in [made[key]]
        if calls[convolution] == calls[module] == 1
        and readers[between.grad_fn] == 1
        and parameters[id(convolution.weight)] == 1
    ]
    return output.detach(), pairs


def _graph(root: Any) -> Iterator[Any]:
    """Yield each node of an autograd graph as often as others read it."""
    waiting = [] if root is None else [root]  # classes, or nothing detected, have no graph
    seen = set(waiting)
    while waiting:
        for node, _ in waiting.pop().next_functions:
            if node is None:
                continue
            yield node
            if node not in seen:
                seen.add(node)
                waiting.append(node)


def _fuse(network: nn.Module, convolution: nn.Conv2d, name: str, batch_norm: nn.Module) -> tuple[Any, Any]:
    """Take a batch norm into a convolution; return the convolution's weight and bias as they were."""
    old = convolution.weight, convolution.bias
    norm = cast("nn.BatchNorm2d", batch_norm)
    weight, bias = fuse_conv_bn_weights(
        convolution.weight,
        convolution.bias,
        cast("Tensor", norm.running_mean),
        cast("Tensor", norm.running_var),
        norm.eps,
        norm.weight,
        norm.bias,
    )
    convolution.weight = nn.Parameter(weight.detach(), requires_grad=False)
    convolution.bias = nn.Parameter(bias.detach(), requires_grad=False)
    network.set_submodule(name, cast("nn.Module", _successor(batch_norm)))
    return old
