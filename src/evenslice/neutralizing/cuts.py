"""Cuts: modules whose output is all that the rest of a network sees of the image.

Behind a cut, the features of a window and of its mirror can be averaged; see `evenslice.neutralizing.mirror_average`.
Whether a module is a cut is not guessed: the symmetrized network is run, and refused if a connection bypasses it.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.autograd.function import BackwardCFunction

from evenslice._core import ModelError, did_you_mean, option
from evenslice.networks import run_network

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from evenslice.neutralizing.stems import Stem

__all__ = ["OUTPUT", "find_activations", "find_cut"]

OUTPUT = "output"
"""The cut after the whole network."""

ENCODERS = ("encoder", "backbone", "features")
"""Names that libraries give to the part that turns the image into features, most likely first."""

# Nodes of the autograd graph by the start of their names: activations, and what combines pixels or channels by weights.
ACTIVATIONS = (
    *("Relu", "Hardtanh", "Silu", "Gelu", "Hardswish", "LeakyRelu", "Elu", "Mish", "PreluKernel", "Softplus"),
    *("Sigmoid", "Hardsigmoid", "Tanh", "Clamp", "Threshold", "LogSigmoid", "Celu", "Rrelu", "Glu"),
    *("Hardshrink", "Softshrink", "Abs"),  # the last in softsign
)
LAYERS = (
    "Convolution",
    "Addmm",
    "Mm",
    "Bmm",
    "Mv",
    "Baddbmm",
    "Linear",
    "MkldnnConvolution",
    "ConvolutionOverrideable",
)


def find_cut(model: nn.Module, at: str) -> str:
    """Return the dotted name of the module that a user asks to cut after; empty for the network.

    Args:
        model: the network.
        at: "output", "encoder", or the dotted name of a module.

    Raises:
        ModelError: there is no such module.

    Example:
        >>> network = nn.Sequential()
        >>> network.backbone, network.head = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 2, 1)
        >>> find_cut(network, "output"), find_cut(network, "encoder"), find_cut(network, "head")
        ('', 'backbone', 'head')
    """
    if at == OUTPUT:
        return ""
    names = [name for name, _ in model.named_modules() if name]
    if at in names:
        return at
    if at != "encoder":
        raise ModelError(f"the network has no module {at!r}; {did_you_mean(at, [OUTPUT, 'encoder', *names])}")
    found = [
        (name.count("."), ENCODERS.index(last), name)
        for name in names
        if (last := name.rpartition(".")[2]) in ENCODERS
    ]
    if not found:
        parts = ", ".join(name for name, _ in model.named_children()) or "none"
        raise ModelError(
            f"{type(model).__name__} has no part called {', '.join(ENCODERS[:-1])} or {ENCODERS[-1]}; "
            f"name another of its parts ({parts}), or {OUTPUT!r}"
        )
    _, _, name = min(found)
    return str(name)


def find_activations(model: nn.Module, stems: Sequence[Stem], image: Tensor) -> tuple[str, ...]:
    """Return the modules after which the activation of each stem is complete.

    That is the first module to return the stem's output after an activation, and after no other layer with weights
    but a norm. Where a network applies the activation by a function, or by a module that it uses elsewhere too, it is
    the part that holds both, or a pooling layer after it. Call it inside `evenslice.networks.exact_evaluation`.

    Args:
        model: the network.
        stems: its stems, as they are in it.
        image: (1, slices, y, x), on the meta device for a pass of shapes alone.

    Raises:
        ModelError: no activation follows a stem, or only one that the network uses elsewhere too.

    Example:
        >>> from evenslice.neutralizing import find_stems
        >>> network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 2, 1)).eval()
        >>> find_activations(network, find_stems(network).items, torch.zeros(1, 3, 8, 8))
        ('2',)
    """
    finished: list[tuple[str, Any]] = []

    def note(name: str, output: Any) -> None:
        if isinstance(output, Tensor) and output.grad_fn is not None:
            finished.append((name, output.grad_fn))

    with ExitStack() as stack, torch.enable_grad():
        for name, module in model.named_modules():
            handle = module.register_forward_hook(lambda _, __, output, name=name: note(name, output))
            stack.callback(handle.remove)
            if getattr(module, "inplace", None) is True:  # which hides an activation of a view from the graph
                module.inplace = False
                stack.callback(setattr, module, "inplace", True)
        for parameter in model.parameters():
            if parameter.is_floating_point() and not parameter.requires_grad:
                parameter.requires_grad_()
                stack.callback(parameter.requires_grad_, False)
        run_network(model, image.clone())
    starts = {stem.name: next((node for name, node in finished if name == stem.name), None) for stem in stems}
    known = frozenset(starts.values())
    reused = _reused(finished, frozenset(starts))
    return tuple(
        dict.fromkeys(_activation_of(stem, starts[stem.name], known, finished, reused) for stem in stems)
    )


def _reused(finished: Sequence[tuple[str, Any]], stems: frozenset[str]) -> frozenset[str]:
    """Return the modules that run again behind one of their own calls, or behind a layer that is no stem.

    Their later calls would get what the first has averaged. They cannot be told apart in a call: checkpointing runs
    one again in the backward pass.
    """
    starts = frozenset(node for name, node in finished if name in stems)
    calls: dict[str, set[Any]] = {}
    for name, node in finished:
        calls.setdefault(name, set()).add(node)
    return frozenset(
        name
        for name, nodes in calls.items()
        if len(nodes) > 1
        and any(
            each in nodes or (_is_layer(each) and each not in starts)
            for node in nodes
            for each in set(_between(node, starts)) - {node}
        )
    )


def _activation_of(  # which stem, and what is known of the pass
    stem: Stem,
    start: Any,
    stems: frozenset[Any],
    finished: Sequence[tuple[str, Any]],
    reused: frozenset[str],
) -> str:
    """Return the first module after the activation of a stem, from the modules in the order in which they end."""
    shared = ""
    for name, node in finished:
        between = set(_between(node, stems))
        if start not in between or node is start:
            continue
        if any(_is_layer(each) for each in between - stems):
            break
        if name and any(_is_activation(each) for each in between):
            if name not in reused:
                return name
            shared = shared or name
    why, place = f"no activation follows the layer {stem.label}", "place"
    if shared:
        why, place = (
            f"the network uses the activation {shared} after the layer {stem.label} elsewhere too",
            "single place",
        )
    raise ModelError(
        f"{why}, so the strategy 'twin' has no {place} to average; "
        f"choose another strategy, such as 'mirror', or symmetrize the network instead ({option('symmetrize', 'output')})"
    )


def _between(node: Any, stems: frozenset[Any]) -> Iterator[Any]:
    """Yield the nodes of an autograd graph that lead from stems to ``node``, and others beside them.

    The walk ends at stems and at layers, so it stays short.
    """
    waiting, seen = [node], {node}
    while waiting:
        current = waiting.pop()
        yield current
        if current in stems or _is_layer(current):
            continue
        for above, _ in current.next_functions:
            if above is not None and above not in seen:
                seen.add(above)
                waiting.append(above)


def _is_layer(node: Any) -> bool:
    return type(node).__name__.startswith(LAYERS)


def _is_activation(node: Any) -> bool:
    """Say whether a node is an activation; libraries write some as functions with a gradient of their own."""
    return type(node).__name__.startswith(ACTIVATIONS) or isinstance(node, BackwardCFunction)
