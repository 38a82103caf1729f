"""Which layers of a network read the image before any parameter has touched it.

One forward pass with an image that requires its gradient finds them: the autograd graph of a layer's input leads back
to the image and to no parameter. A batch norm that reads the image is passed through: in evaluation mode it is a
fixed scaling by channel.
"""

from __future__ import annotations

from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from evenslice.networks import first_tensor, run_network, tensors_in

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch.utils.hooks import RemovableHandle

__all__ = ["Reader", "Readers", "find_readers"]


@dataclass
class Reader:
    """A layer that reads the image.

    Attributes:
        name: its dotted name in the network.
        module: the layer.
        input: its first input.
        norm: the batch norm that alone reads its outputs, all of them and nothing else, if there is one.
        outputs: its outputs, call by call.
        norm_outputs: those of the batch norm.
        made: its outputs, as they are in the network.
        nodes: the nodes of the autograd graph that made them.
        norms: the batch norms that read them, call by call.
    """

    name: str
    module: Any
    input: Tensor
    norm: nn.Module | None = None
    outputs: list[Tensor] = field(default_factory=list)
    norm_outputs: list[Tensor] = field(default_factory=list)
    made: list[Tensor] = field(default_factory=list)
    nodes: list[Any] = field(default_factory=list)
    norms: list[nn.Module] = field(default_factory=list)


class Readers(NamedTuple):
    """What reads the image in one pass of a network.

    Attributes:
        readers: the layers, in the order in which they read.
        norms: dotted names of the batch norms in front of them, which read the image too.
        output: what the network returned.
    """

    readers: tuple[Reader, ...]
    norms: tuple[str, ...]
    output: Any


def find_readers(model: nn.Module, image: Tensor) -> Readers:
    """Run a network once and see which layers read the image; call it inside `evenslice.networks.exact_evaluation`.

    Args:
        model: the network.
        image: (1, channels, y, x), on the meta device for a pass of shapes alone.

    Example:
        >>> network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 2, 1)).eval()
        >>> found = find_readers(network, torch.zeros(1, 3, 8, 8))
        >>> [reader.name for reader in found.readers], found.readers[0].norm is network[1]
        (['0'], True)
    """
    tracer = _Tracer(image.requires_grad_())
    with ExitStack() as stack, torch.enable_grad():
        for parameter in model.parameters():
            if parameter.is_floating_point() and not parameter.requires_grad:
                parameter.requires_grad_()
                stack.callback(parameter.requires_grad_, False)
        for name, module in model.named_modules():
            if _has_parameters(module) or _has_statistics(module):
                for handle in tracer.watch(name, module):
                    stack.callback(handle.remove)
        stack.callback(tracer.thaw)
        output = run_network(model, image.clone())  # a clone, since a network may change its input in place
    return Readers(tracer.readers(output), tuple(tracer.passed), output)


class _Tracer:
    """Watches the layers of a network during one forward pass for those that read the image.

    Args:
        image: the leaf of the autograd graph that the pass starts from.
    """

    def __init__(self, image: Tensor) -> None:
        self.image = image
        self.passed: list[str] = []  # batch norms that read the image
        self.frozen: list[nn.Parameter] = []  # their parameters
        self.seen: dict[str, Reader] = {}
        self.norm_calls: Counter[nn.Module | None] = Counter()

    def watch(self, name: str, module: nn.Module) -> Iterator[RemovableHandle]:
        """Hook a module, and yield the handles of the hooks."""

        def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            arrived = first_tensor((*args, *kwargs.values()))
            if arrived is None:
                return
            self._note_norm(module, arrived)
            if not _leads_only_to(self.image, arrived):
                return
            if _is_fixed_norm(module, arrived):
                self.passed.append(name)
                self._freeze(module)
            elif _has_parameters(module) and _is_layer(module):
                self.seen.setdefault(name, Reader(name, module, arrived.detach()))

        def after(_module: nn.Module, _args: tuple[Any, ...], output: Any) -> None:
            if isinstance(output, Tensor):
                self._note_output(name, module, output)

        yield module.register_forward_pre_hook(before, with_kwargs=True)
        yield module.register_forward_hook(after)

    def _freeze(self, module: nn.Module) -> None:
        """Keep a module's parameters out of the graph of its output."""
        for parameter in module.parameters():
            if parameter.requires_grad:
                parameter.requires_grad_(False)
                self.frozen.append(parameter)

    def thaw(self) -> None:
        """Undo what was done to parameters."""
        for parameter in self.frozen:
            parameter.requires_grad_()

    def _note_norm(self, module: nn.Module, arrived: Tensor) -> None:
        if _has_statistics(module):
            self.norm_calls[module] += 1
            for reader in self.seen.values():
                # An activation in place changes the node, but not the tensor.
                if arrived.grad_fn in reader.nodes and any(output is arrived for output in reader.made):
                    reader.norms.append(module)

    def _note_output(self, name: str, module: nn.Module, output: Tensor) -> None:
        # Copies, since what follows may change an output in place.
        if name in self.seen:
            reader = self.seen[name]
            reader.made.append(output)
            reader.nodes.append(output.grad_fn)
            reader.outputs.append(output.detach().clone())
        for reader in self.seen.values():
            if module in reader.norms:
                reader.norm_outputs.append(output.detach().clone())

    def readers(self, output: Any) -> tuple[Reader, ...]:
        """Return the layers that read the image, given what the network returned."""
        consumers = _consumers(output, {node for reader in self.seen.values() for node in reader.nodes})
        for reader in self.seen.values():
            norm, calls = next(iter(reader.norms), None), len(reader.made)
            alone = reader.norms == [norm] * calls and self.norm_calls[norm] == calls
            if alone and all(consumers[node] == 1 for node in reader.nodes):
                reader.norm = norm
        return tuple(self.seen.values())


def _is_layer(module: nn.Module) -> bool:
    """Say whether a module is a layer, not a container.

    A container may own parameters that never meet the image, such as a position embedding, so it is passed over; if
    they do meet it, verifying the neutralized network reveals it.
    """
    parts = (name for name, _ in module.named_children() if name != "parametrizations")
    return isinstance(module, nn.Conv2d | nn.Linear) or not any(parts)


def _has_parameters(module: nn.Module) -> bool:
    own = next(module.parameters(recurse=False), None)
    return own is not None or is_parametrized(module)


def _has_statistics(module: nn.Module) -> bool:
    """Say whether a module normalizes by running statistics, as every batch norm does, frozen ones included."""
    return isinstance(getattr(module, "running_mean", None), Tensor)


def _is_fixed_norm(module: nn.Module, arrived: Tensor) -> bool:
    """Say whether a module that reads the image only scales its channels, each by fixed numbers."""
    return (
        _has_statistics(module)
        and arrived.ndim == 4
        and module.get_buffer("running_mean").numel() == arrived.shape[1]
        and all(isinstance(child, nn.Identity) for child in module.children())
    )


def _leads_only_to(image: Tensor, tensor: Tensor) -> bool:
    """Say whether a tensor was computed from the image and from no parameter.

    The nodes of a layer's parameters are the last of its inputs, and the walk takes the last first, so it ends after a
    few steps anywhere after a stem.
    """
    stack, seen, found = [tensor.grad_fn], set(), False
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        leaf = getattr(node, "variable", None)
        if leaf is not None and leaf is not image:
            return False
        found = found or leaf is image
        stack.extend(parent for parent, _ in node.next_functions)
    return found


def _consumers(output: Any, nodes: set[Any]) -> Counter[Any]:
    """Count the operations that read the output of each of some graph nodes."""
    counts: Counter[Any] = Counter()
    stack = [tensor.grad_fn for tensor in tensors_in(output)]
    seen = set()
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        for parent, _ in node.next_functions:
            if parent in nodes:
                counts[parent] += 1
            stack.append(parent)
    return counts
