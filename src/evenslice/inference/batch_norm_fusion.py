"""Folding batch norms into the preceding convolutions, for inference.

In evaluation mode a batch norm is a fixed scale and shift, which the convolution before it can apply at no cost. Which
convolution that is does not come from a list of architectures: a forward pass is observed, and the autograd graph tells
whether anything else reads the output of the convolution.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.fusion import fuse_conv_bn_weights

from evenslice.networks import logits
from evenslice.neutralizing import copy_average

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["fuse_batch_norms"]

TOLERANCE = 1e-4  # relative to the largest output


def fuse_batch_norms(network: nn.Module, windows: Tensor, outputs: Callable[[Any], Tensor] = logits) -> int:
    """Fold batch norms into the preceding convolutions, in place.

    A batch norm stays if it does not directly follow its convolution, or is of an unknown kind; all of them stay if the
    output would change, or if the network cannot be watched: it has to accept the windows, and its memory to hold a pass
    with its graph.

    Args:
        network: in evaluation mode, in float32.
        windows: (batch, slices, y, x) to test it with.
        outputs: reduces what the network returns to a tensor.

    Returns:
        The number of folded batch norms.

    Example:
        >>> network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()).eval()
        >>> fuse_batch_norms(network, torch.zeros(1, 3, 8, 8)), network[1]
        (1, Identity())
    """
    if not any(_successor(module) for module in network.modules()):
        return 0
    try:
        before, pairs = _watch(network, windows, outputs)
    except Exception:  # noqa: BLE001  # the windows may be too small for it; watching takes more memory than running
        return 0
    changes = [_fuse(network, *pair) for pair in pairs]
    try:
        with torch.no_grad():
            difference = (outputs(network(windows)) - before).abs().max()
        fine = bool(difference <= TOLERANCE * before.abs().max())
    except Exception:  # noqa: BLE001  # the network may access its batch norms
        fine = False
    if fine:
        return len(pairs)
    for (convolution, name, batch_norm), (weight, bias) in zip(pairs, changes, strict=True):
        convolution.weight, convolution.bias = weight, bias
        network.set_submodule(name, batch_norm)
    return 0


def _successor(batch_norm: nn.Module) -> nn.Module | None:
    """Return what remains of a batch norm without its scale and shift; None if its kind is unknown."""
    if type(batch_norm) in (nn.BatchNorm2d, nn.SyncBatchNorm):
        return nn.Identity()
    if type(batch_norm).__name__ == "BatchNormAct2d":  # timm's, with the activation in it
        return nn.Sequential(cast("nn.Module", batch_norm.drop), cast("nn.Module", batch_norm.act))
    return None


def _watch(
    network: nn.Module, windows: Tensor, outputs: Callable[[Any], Tensor]
) -> tuple[Tensor, list[tuple[nn.Conv2d, str, nn.Module]]]:
    """Run the network; return its output, and convolutions with the batch norms that alone read their outputs."""
    made: dict[int, tuple[nn.Conv2d, Tensor]] = {}
    read: list[tuple[str, nn.Module, int]] = []
    calls: Counter[nn.Module] = Counter()
    parameters = Counter(id(p) for m in network.modules() for p in m.parameters(recurse=False))

    def note_convolution(module: nn.Module, _: Any, output: Tensor) -> None:
        calls[module] += 1
        # The output is kept alive, so that no other tensor gets its id.
        made[id(output)] = cast("nn.Conv2d", module), output

    def note_batch_norm(name: str, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        calls[module] += 1
        if inputs:  # given by keyword, it is not seen here
            read.append((name, module, id(inputs[0])))

    hooks = []
    for name, module in network.named_modules():
        if isinstance(module, nn.Conv2d) and not parametrize.is_parametrized(module):
            hooks.append(module.register_forward_hook(note_convolution))
        elif _successor(module) and module.running_mean is not None:
            hooks.append(
                module.register_forward_pre_hook(
                    lambda m, inputs, name=name: note_batch_norm(name, m, inputs)
                )
            )
    try:
        with torch.enable_grad():
            # The product is no leaf of the graph, which a network may not change in place.
            output = outputs(network(windows.detach().requires_grad_() * 1))
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
    """Yield each node of an autograd graph once for each node that reads it."""
    waiting = [] if root is None else [root]  # predicted classes, or an empty detection, have no graph
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
    """Fold a batch norm into a convolution; return the original weight and bias of the convolution."""
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
    successor = cast("nn.Module", _successor(batch_norm))
    copy_average(batch_norm, successor)
    network.set_submodule(name, successor)
    return old
