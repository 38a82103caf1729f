"""Stems: the layers of a network that read the image before any parameter has touched it, and plain equivalents of them.

No list of architectures is needed. One forward pass with an image that requires its gradient finds them: the autograd graph
of a layer's input leads back to the image and to no parameter. A batch norm that reads the image is passed through: in
evaluation mode it is a fixed scaling by channel.

New kernels reach the image unchanged only if a layer uses its weight as it is. A weight-standardized convolution, a layer with
a parametrization, or one with torch's older weight normalization computes its weight in every pass. What it computed is seen
in the one call of `torch.nn.functional.conv2d` or `linear` in its forward pass, so no list of such layers is needed. A grouped
convolution is a dense one whose other kernels are zero.

Images whose channels are distinct constants, sent through the parameter-free part in front of the stems, tell which channel
each input feature of a stem comes from, whatever happens to the image on the way: unfolding, space to depth, resizing, a fixed
scaling. The passes end at the last stem.

Then a batch norm on the image is removed; torchvision's ``transform_input`` is switched off; constants with one value a
channel, such as the mean and std of a normalization inside the network, become their average; and attributes that state
the number of channels state that of the slices. What these did to the image moves into the stems; see
`evenslice.neutralizing.rewriting`.
"""

from __future__ import annotations

import copy
from collections import Counter
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import product
from numbers import Integral
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import BackwardCFunction
from torch.nn import functional
from torch.nn.utils.parametrize import is_parametrized
from torch.overrides import TorchFunctionMode

from evenslice._core import ConfigError, EvensliceError, ModelError, option, reason, reporting_errors
from evenslice.networks import input_sizes
from evenslice.neutralizing.running import (
    exact_evaluation,
    is_on_meta,
    layer_label,
    random_image,
    run_network,
    tensors_in,
)
from evenslice.neutralizing.strategies import MIXER_HINT

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from torch.utils.hooks import RemovableHandle

SIZES = (64, 224, 256, 384, 512)
"""In-plane sizes tried in turn, in pixels, for a network that does not state its own."""

OPTIONS = {"stride": 1, "padding": 0, "dilation": 1, "groups": 1}  # of torch's conv2d
ARGUMENTS = ("input", "weight", "bias", *OPTIONS)

# Nodes of the autograd graph by the start of their names: activations, and what combines pixels or channels by weights.
ACTIVATIONS = (
    *("Relu", "Hardtanh", "Silu", "Gelu", "Hardswish", "LeakyRelu", "Elu", "Mish", "PreluKernel", "Softplus"),
    *("Sigmoid", "Hardsigmoid", "Tanh", "Clamp", "Threshold", "LogSigmoid", "Celu", "Rrelu", "Glu"),
    *("Hardshrink", "Softshrink", "Abs"),  # the last in softsign
)
WEIGHTED = ("Convolution", "MkldnnConvolution", "Addmm", "Mm", "Bmm", "Mv", "Baddbmm", "Linear")


@dataclass(frozen=True)
class Stem:
    """A layer that reads the image before any parameter has touched it.

    Attributes:
        name: its dotted name in the network; empty if the layer is the network.
        module: the layer, or an equivalent plain one if it computes its weight or works in groups. In a network
            traced on the meta device, the layer as it is.
        norm: the batch norm that alone reads the layer's output, if there is one.
        reader: the layer that is in the network.
    """

    name: str
    module: nn.Conv2d | nn.Linear
    norm: nn.Module | None
    reader: nn.Module

    @property
    def label(self) -> str:
        """How a message names the layer: ``encoder.conv1 (Conv2d)``."""
        return layer_label(self.name, self.reader)

    @property
    def bias_owner(self) -> nn.Module:
        """The module that a constant is folded into: the stem if it has a bias, else the batch norm after it, else the stem."""
        biased = getattr(self.module, "bias", None) is not None  # on the meta device it may be any layer
        return self.module if biased or self.norm is None else self.norm


@dataclass(frozen=True)
class Stems:
    """The stems of a network, in the order in which they read, and the images they were found with.

    Attributes:
        items: the stems, at least one.
        channels: number of channels C that the network reads.
        size: in-plane size (y, x) in pixels of the images.
        norms: dotted names of the batch norms in front of the stems, which read the image itself.
        activations: those of the modules after which the activation of each stem is complete, if they were asked for.
    """

    items: tuple[Stem, ...]
    channels: int
    size: tuple[int, int]
    norms: tuple[str, ...] = ()
    activations: tuple[str, ...] = ()


class Trace(NamedTuple):
    """What one forward pass shows of a network.

    Attributes:
        stems: its stems.
        output: what it returned.
        parts: names and outputs of its top-level parts, call by call.
        stem_outputs: for each stem, what its `Stem.bias_owner` returned, call by call.
    """

    stems: Stems
    output: Any
    parts: tuple[tuple[str, Any], ...]
    stem_outputs: tuple[tuple[Tensor, ...], ...]


def find_stems(
    model: nn.Module, *, channels: Iterable[int] = (), size: tuple[int, int] | None = None
) -> Stems:
    """Find the stems of a network by one forward pass.

    Args:
        model: a network that takes (batch, channels, y, x). It is left as it was. It may be on the meta device.
        channels: numbers of input channels to try in turn; by default 3, then as many as its first layer takes.
        size: in-plane size (y, x) of the image in pixels; by default the first that it accepts of its stated size and
            of 64, 224, 256, 384 and 512.

    Raises:
        ModelError: the network refuses every image; nothing with parameters reads the image; or what reads it is
            not equivalent to a convolution or a linear layer.

    Example:
        >>> network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 2, 1))
        >>> found = find_stems(network)
        >>> found.channels, [stem.label for stem in found.items]
        (3, ['0 (Conv2d)'])
        >>> found.items[0].norm is network[1]
        True
    """
    count, pixels = accepted_input(model, channels, size)
    image = random_image(model, (1, count, *pixels))
    with exact_evaluation(model):
        return trace(model, image.to("meta") if is_on_meta(model) else image).stems


def accepted_input(
    model: nn.Module, channels: Iterable[int] = (), size: tuple[int, int] | None = None, *, dry: bool = False
) -> tuple[int, tuple[int, int]]:
    """Return the first number of channels and in-plane size of those tried in turn that a network accepts.

    Args:
        model: the network; it is left as it was.
        channels: see `find_stems`.
        size: see `find_stems`.
        dry: run it on shapes alone, if it can be run without values; it is anyhow if it lies on the meta device.

    Raises:
        ModelError: the network refuses every image, or an error of evenslice was raised in it.
        ConfigError: the size is not a pair of positive whole numbers.
    """
    numbers: Any = size if isinstance(size, tuple | list) else ()
    sound = len(numbers) == 2 and all(isinstance(pixels, Integral) and int(pixels) > 0 for pixels in numbers)
    if size is not None and not sound:
        raise ConfigError(
            f"{option('size')}: is {size!r:.60}; must be two numbers of pixels (y, x), such as (64, 64)"
        )
    stated, usual = input_sizes(model)[0], [(pixels, pixels) for pixels in SIZES]
    sizes = [size] if size else [stated, *usual] if stated else usual
    # The first layer in the order of registration mostly is the first to run.
    layers = (module for module in model.modules() if isinstance(module, nn.Conv2d | nn.Linear))
    widths = (each.in_channels if isinstance(each, nn.Conv2d) else each.in_features for each in layers)
    counts = tuple(dict.fromkeys(channels)) or tuple(dict.fromkeys((3, next(widths, 3))))
    passes = (True,) if is_on_meta(model) else (True, False) if dry else (False,)
    refusals: list[Exception] = []
    with exact_evaluation(model), torch.no_grad():
        for shapes_alone, pixels, count in product(passes, sizes, counts):
            image = random_image(model, (1, count, *pixels))
            try:
                run_network(model, image.to("meta") if shapes_alone else image)
            except Exception as error:  # a network may refuse an image by any exception
                if isinstance(error, EvensliceError) and shapes_alone == passes[-1]:
                    raise
                refusals.append(error)
            else:
                return count, pixels
    tried = ", ".join(f"{y}x{x}" for y, x in sizes)
    raise ModelError(
        f"the network refuses images of {' or '.join(map(str, counts))} channels at {tried} pixels"
        f" ({type(refusals[0]).__name__}: {reason(refusals[0])}); in Python, give the right size (y, x) as size"
    )


def trace_dry(model: nn.Module, image: Tensor, *, activations: bool = False) -> Stems:
    """Find the stems by a pass of shapes alone, or as `trace` does if the network cannot be run without values."""
    try:
        return trace(model, image.to("meta"), activations=activations).stems
    except ModelError:
        if is_on_meta(model):
            raise
    return trace(model, image.clone(), activations=activations).stems


def trace(model: nn.Module, image: Tensor, *, activations: bool = False) -> Trace:
    """Run a network once and find its stems; call it inside `evenslice.neutralizing.running.exact_evaluation`.

    Args:
        model: the network.
        image: (1, channels, y, x), on the meta device for a pass of shapes alone, which leaves the stems as they are.
        activations: find the modules after which the activation of each stem is complete, too.

    Raises:
        ModelError: nothing with parameters reads the image, or what reads it is no convolution or linear layer; or no
            activation follows a stem, or only one that the network uses elsewhere too.

    Example:
        >>> network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 2, 1)).eval()
        >>> trace(network, torch.zeros(1, 3, 8, 8), activations=True).stems.activations
        ('2',)
    """
    tracer = _Tracer(image.requires_grad_())
    with ExitStack() as stack, torch.enable_grad():
        for parameter in model.parameters():  # frozen ones too
            if parameter.is_floating_point() and not parameter.requires_grad:
                parameter.requires_grad_()
                stack.callback(parameter.requires_grad_, False)
        for name, module in model.named_modules():
            for handle in tracer.watch(name, module):
                stack.callback(handle.remove)
            if activations and getattr(module, "inplace", None) is True:
                module.inplace = False  # which hides an activation of a view from the graph
                stack.callback(setattr, module, "inplace", True)
        parts = stack.enter_context(recorded_parts(model))
        with reporting_errors(ModelError, "the network fails where gradients are recorded"):
            output = run_network(model, image.clone())  # a network may change its input in place
    readers = tracer.readers(output)
    if not readers:
        raise ModelError(
            f"no layer of this {type(model).__name__} reads the image first; evenslice looks for convolutions and linear"
            f" layers that the forward pass calls; {MIXER_HINT}"
        )
    stems = Stems(
        tuple(Stem(reader.name, reader.module, reader.norm, reader.module) for reader in readers),
        image.shape[1],
        (image.shape[2], image.shape[3]),
        tuple(tracer.passed),
        tracer.activations() if activations else (),
    )
    if not image.is_meta:
        stems = plain_stems(stems, [reader.input for reader in readers])
    outputs = tuple(
        tuple(reader.norm_outputs if stem.bias_owner is stem.norm else reader.outputs)
        for stem, reader in zip(stems.items, readers, strict=True)
    )
    return Trace(stems, output, tuple(parts), outputs)


@contextmanager
def recorded_parts(model: nn.Module) -> Iterator[list[tuple[str, Any]]]:
    """Yield a list of the names and outputs of a network's top-level parts, to which each call in the block adds."""
    heard: list[tuple[str, Any]] = []
    with ExitStack() as stack:
        for name, part in model.named_children():
            handle = part.register_forward_hook(lambda _, __, output, name=name: heard.append((name, output)))
            stack.callback(handle.remove)
        yield heard


def plain_stems(stems: Stems, arrivals: Sequence[Tensor]) -> Stems:
    """Return stems with a plain layer each, given one input of each; see `evenslice.neutralizing.stems`.

    Raises:
        ModelError: one of them has no plain equivalent.
    """
    pairs = zip(stems.items, arrivals, strict=True)
    items = (replace(stem, module=plain_layer(stem.name, stem.reader, arrived)) for stem, arrived in pairs)
    return replace(stems, items=tuple(items))


@dataclass
class _Reader:
    """A layer that reads the image.

    Attributes:
        name: its dotted name in the network.
        module: the layer.
        input: its first input.
        norm: the batch norm that alone reads its outputs, all of them and nothing else, if there is one.
        outputs: its outputs, call by call.
        norm_outputs: those of the batch norm.
        nodes: the nodes of the autograd graph that made its outputs.
        norms: the batch norms that read them, call by call.
    """

    name: str
    module: Any
    input: Tensor
    norm: nn.Module | None = None
    outputs: list[Tensor] = field(default_factory=list)
    norm_outputs: list[Tensor] = field(default_factory=list)
    nodes: list[Any] = field(default_factory=list)
    norms: list[nn.Module] = field(default_factory=list)


class _Tracer:
    """Watches the modules of a network during one forward pass.

    Args:
        image: the leaf of the autograd graph that the pass starts from.
    """

    def __init__(self, image: Tensor) -> None:
        self.passed: list[str] = []  # batch norms that read the image
        self.leaves = [image]  # of the graph in front of the stems: the parameters of these batch norms, too
        self.seen: dict[str, _Reader] = {}
        self.norm_calls: Counter[nn.Module | None] = Counter()
        # Modules in the order in which they end, and what made their outputs.
        self.finished: list[tuple[str, Any]] = []

    def watch(self, name: str, module: nn.Module) -> Iterator[RemovableHandle]:
        """Hook a module, and yield the handles of the hooks."""

        def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            arrived = next(tensors_in((*args, *kwargs.values())), None)
            if arrived is not None:
                self._note_input(name, module, arrived)

        def after(_module: nn.Module, _args: tuple[Any, ...], output: Any) -> None:
            if isinstance(output, Tensor):
                self._note_output(name, module, output)

        if _has_parameters(module) or _has_statistics(module):
            yield module.register_forward_pre_hook(before, with_kwargs=True)
        yield module.register_forward_hook(after)

    def _note_input(self, name: str, module: nn.Module, arrived: Tensor) -> None:
        if _has_statistics(module):
            self.norm_calls[module] += 1
            for reader in self.seen.values():
                if arrived.grad_fn in reader.nodes:
                    reader.norms.append(module)
        if not _leads_only_to(self.leaves, arrived):
            return
        if _is_fixed_norm(module, arrived):
            self.passed.append(name)
            self.leaves.extend(module.parameters())
        elif _has_parameters(module) and _is_layer(module):
            self.seen.setdefault(name, _Reader(name, module, arrived.detach()))

    def _note_output(self, name: str, module: nn.Module, output: Tensor) -> None:
        # Copies, since what follows may change an output in place.
        if name in self.seen:
            self.seen[name].nodes.append(output.grad_fn)
            self.seen[name].outputs.append(output.detach().clone())
        for reader in self.seen.values():
            if module in reader.norms:
                reader.norm_outputs.append(output.detach().clone())
        if output.grad_fn is not None:
            self.finished.append((name, output.grad_fn))

    def readers(self, output: Any) -> tuple[_Reader, ...]:
        """Return the layers that read the image, given what the network returned."""
        nodes = {node for reader in self.seen.values() for node in reader.nodes}
        every = _graph_nodes(tensor.grad_fn for tensor in tensors_in(output))
        consumers = Counter(parent for node in every for parent, _ in node.next_functions if parent in nodes)
        for reader in self.seen.values():
            norm, calls = next(iter(reader.norms), None), len(reader.nodes)
            alone = reader.norms == [norm] * calls and self.norm_calls[norm] == calls
            if alone and all(consumers[node] == 1 for node in reader.nodes):
                reader.norm = norm
        return tuple(self.seen.values())

    def activations(self) -> tuple[str, ...]:
        """Return the modules after which the activation of each stem is complete.

        That is the first module to return the stem's output after an activation, and after no other layer with weights
        but a norm. Where a network applies the activation by a function, or by a module that it uses elsewhere too, it is
        the part that holds both, or a pooling layer after it.
        """
        starts = {node for reader in self.seen.values() for node in reader.nodes}
        # The nodes that lead from stems to the output of each module, and others beside them; a walk ends at stems and layers.
        between = {
            node: set(_graph_nodes([node], lambda each: each in starts or _is_weighted(each)))
            for _, node in self.finished
        }
        # A module that runs again behind one of its own calls, or behind a layer that is no stem, would average what it has
        # averaged. Its calls cannot be told apart: checkpointing runs one again in the backward pass.
        calls: dict[str, set[Any]] = {}
        for name, node in self.finished:
            calls.setdefault(name, set()).add(node)
        again = {
            name
            for name, nodes in calls.items()
            for node in nodes
            if len(nodes) > 1
            and any(
                each in nodes or (_is_weighted(each) and each not in starts)
                for each in between[node] - {node}
            )
        }
        return tuple(dict.fromkeys(self._activation(each, between, again) for each in self.seen.values()))

    def _activation(self, reader: _Reader, between: dict[Any, set[Any]], again: set[str]) -> str:
        """Return the first module after the activation of a stem, which does not run again behind it."""
        shared, starts = "", {node for each in self.seen.values() for node in each.nodes}
        for name, node in self.finished:
            nodes = between[node]
            if reader.nodes[0] not in nodes or node is reader.nodes[0]:
                continue
            if any(_is_weighted(each) for each in nodes - starts):
                break
            if name and any(_is_activation(each) for each in nodes):
                if name not in again:
                    return name
                shared = shared or name
        label = layer_label(reader.name, reader.module)
        why, place = f"no activation follows the layer {label}", "place"
        if shared:
            why = f"the network uses the activation {shared} after the layer {label} elsewhere too"
            place = "single place"
        raise ModelError(
            f"{why}, so the strategy 'twin' has no {place} to average; choose another strategy, such as 'mirror', or symmetrize "
            f"the network instead ({option('symmetrize', 'output')})"
        )


def _graph_nodes(starts: Iterable[Any], ends: Callable[[Any], bool] = lambda _: False) -> Iterator[Any]:
    """Yield the nodes of an autograd graph that lead to some nodes, each once.

    The nodes of a layer's parameters are the last of its inputs, and the walk takes the last first, so it meets them soon.

    Args:
        starts: the nodes; None for none.
        ends: whether the walk ends at a node.
    """
    stack, seen = list(starts), set()
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        yield node
        if not ends(node):
            stack.extend(parent for parent, _ in node.next_functions)


def _is_weighted(node: Any) -> bool:
    return type(node).__name__.startswith(WEIGHTED)


def _is_activation(node: Any) -> bool:
    """Say whether a node is an activation; libraries write some as functions with a gradient of their own."""
    return type(node).__name__.startswith(ACTIVATIONS) or isinstance(node, BackwardCFunction)


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


def _leads_only_to(leaves: Sequence[Tensor], tensor: Tensor) -> bool:
    """Say whether a tensor was computed from the first of some leaves, the image, and from no others than these.

    The walk ends after a few steps anywhere after a stem.
    """
    found = False
    for node in _graph_nodes([tensor.grad_fn]):
        leaf = getattr(node, "variable", None)
        if leaf is not None and all(leaf is not each for each in leaves):
            return False
        found = found or leaf is leaves[0]
    return found


class SameConv2d(nn.Conv2d):
    """A convolution that pads like TensorFlow's "SAME": the size of the output is that of the input over the stride.

    Example:
        >>> SameConv2d(3, 8, 3, stride=2)(torch.zeros(1, 3, 7, 8)).shape
        torch.Size([1, 8, 4, 4])
    """

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  # the name that torch gives it
        """Pad an image (batch, channels, y, x), more at its end where the number is odd, and convolve it."""
        pads: list[int] = []
        for axis in (1, 0):  # torch pads the last axis first
            size, stride = input.shape[axis - 2], self.stride[axis]
            reach = self.dilation[axis] * (self.kernel_size[axis] - 1) + 1
            total = max((-(-size // stride) - 1) * stride + reach - size, 0)
            pads += [total // 2, total - total // 2]
        return super().forward(functional.pad(input, pads))


def plain_layer(name: str, layer: nn.Module, arrived: Tensor) -> nn.Conv2d | nn.Linear:
    """Return a layer if it is plain, else an equivalent plain one.

    A plain layer is a `torch.nn.Conv2d` without groups or a `torch.nn.Linear` that uses its own weight as it is. An
    equivalent one has no hooks: older weight normalizations are hooks of a layer themselves, and handles of those of a
    user would no longer remove them.

    Args:
        name: its dotted name in the network, for messages.
        layer: what reads the image; it is left as it was.
        arrived: an input of the layer.

    Raises:
        ModelError: no plain convolution or linear layer is equivalent, with a hook that changes the input or output as well.

    Example:
        >>> layer = torch.nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 8, 3))
        >>> plain = plain_layer("stem", layer, torch.rand(1, 3, 8, 8))
        >>> type(plain).__name__, torch.equal(plain.weight, layer.weight)
        ('Conv2d', True)
    """
    with torch.no_grad():
        with _Listener() as listener:
            layer(arrived.clone())
        if len(listener.calls) == 1:
            (call,) = listener.calls
            if isinstance(layer, nn.Conv2d | nn.Linear) and _is_plain(layer, call):
                return layer
            for made in _candidates(layer, call, arrived):
                if _responds_alike(made, layer, arrived):
                    return made
    raise ModelError(
        f"the layer {layer_label(name, layer)} reads the image itself, and does something else with it than one "
        f"convolution or linear layer; evenslice cannot rewrite it; {MIXER_HINT}"
    )


class _Call(NamedTuple):
    """One call of conv2d or linear: its input, and its options by name."""

    input: Tensor
    weight: Tensor
    bias: Tensor | None
    options: Mapping[str, Any]


class _Listener(TorchFunctionMode):
    """Notes the calls of conv2d and linear in a block."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[_Call] = []

    def __torch_function__(
        self, function: Any, _types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if function in (functional.conv2d, functional.linear):
            given = dict(zip(ARGUMENTS, args, strict=False)) | dict(kwargs or {})
            options = OPTIONS | given if function is functional.conv2d else {}
            options = {name: options[name] for name in OPTIONS if options}
            self.calls.append(_Call(given["input"], given["weight"], given.get("bias"), options))
        return function(*args, **(kwargs or {}))


def _is_plain(layer: nn.Conv2d | nn.Linear, call: _Call) -> bool:
    own = dict(layer.named_parameters(recurse=False))
    return (
        call.weight is own.get("weight")
        and call.bias is own.get("bias")
        and call.options.get("groups", 1) == 1
    )


def _candidates(layer: nn.Module, call: _Call, arrived: Tensor) -> Iterator[nn.Conv2d | nn.Linear]:
    """Yield plain layers that may be equivalent to a layer, given one of its calls."""
    options = {name: call.options[name] for name in ("stride", "dilation", "padding") if call.options}
    # The dense convolution that is equivalent to a grouped one.
    blocks = call.weight.flatten(1).chunk(call.options.get("groups", 1))
    dense: Tensor = torch.block_diag(*blocks)  # type: ignore[no-untyped-call]
    weight = dense.reshape(len(call.weight), -1, *call.weight.shape[2:])

    def filled(make: Callable[..., Any], **changed: Any) -> Any:
        sizes = (tuple(weight.shape[2:]),) if options else ()
        made = make(weight.shape[1], weight.shape[0], *sizes, bias=call.bias is not None, **options | changed)
        made = made.to(weight)
        made.weight.copy_(weight)
        if call.bias is not None:
            made.bias.copy_(call.bias)
        learns = any(parameter.requires_grad for parameter in layer.parameters())
        return made.requires_grad_(learns).train(layer.training)

    if not options:
        yield filled(nn.Linear)
    elif isinstance(layer, nn.Conv2d) and layer.padding_mode != "zeros":
        yield filled(nn.Conv2d, padding=layer.padding, padding_mode=layer.padding_mode)
    elif call.input.shape == arrived.shape:
        yield filled(nn.Conv2d)
    else:  # it was padded with zeros before, the same on every side or as the stride requires
        added = [(a - b) // 2 for a, b in zip(call.input.shape[-2:], arrived.shape[-2:], strict=True)]
        yield filled(SameConv2d, padding=0)
        yield filled(nn.Conv2d, padding=tuple(added))


def _responds_alike(made: nn.Module, layer: nn.Module, arrived: Tensor) -> bool:
    """Say whether two layers respond alike, to an image of another size too if sizes matter."""
    y, x = (max(size - 1, 1) for size in arrived.shape[-2:])
    images = [arrived, arrived[..., :y, :x]] if isinstance(made, nn.Conv2d) else [arrived]
    for image in images:
        try:
            old, new = layer(image.clone()), made(image)
        except Exception:  # noqa: BLE001  # another size may be too small, or the layer may refuse it
            return False
        if not isinstance(old, Tensor) or old.shape != new.shape:
            return False
        if (old - new).abs().max() > 50 * torch.finfo(old.dtype).eps * old.abs().max():
            return False
    return True


WIDTHS = ("in_channels", "in_chans", "num_channels")
"""Attributes of modules that contain a stem, or of their configuration, that state the number of channels."""


@dataclass(frozen=True)
class Layout:
    """Where the input features of a stem come from: feature ``index[p, c]`` is ``scale[p, c] * image[c] + shift[p, c]``.

    P features of a stem come from each of C channels: 1 in most networks, 16 where space to depth unfolds 4 x 4 pixels.

    Attributes:
        index: (P, C) feature numbers, int64.
        scale: (P, C) float64.
        shift: (P, C) float64.
        where: (1, ...) float32, of the shape of the stem's input for one image: 1 where a feature follows the
            channels as above, 0 where it does not, as in a border that was padded on the way to the stem.
    """

    index: Tensor
    scale: Tensor
    shift: Tensor
    where: Tensor

    @property
    def is_bare(self) -> bool:
        """Whether the image arrives as it is, or only moved about."""
        return bool((self.scale == 1).all() and not self.shift.any())


class StemCall(NamedTuple):
    """One call of a stem: its input, and the output of its `Stem.bias_owner`, empty if the stem was not run."""

    input: Tensor
    output: Tensor


def probe(model: nn.Module, stems: Stems, channels: int) -> tuple[Layout, ...]:
    """Find which channel each input feature of the stems comes from, for images of some number of channels.

    Only the parameter-free part in front of the stems is run, so the number of channels need not be the one that the
    stems are made for.

    Args:
        model: the network; it is left as it was.
        stems: from `find_stems`.
        channels: number of channels of the images.

    Returns:
        One layout a stem.

    Raises:
        ModelError: the path to a stem does not accept so many channels, or mixes, drops or centres them.

    Example:
        >>> network = nn.Sequential(nn.PixelUnshuffle(2), nn.Conv2d(12, 8, 3))
        >>> layout, = probe(network, find_stems(network), 3)
        >>> layout.index                            # (positions, channels)
        tensor([[ 0,  4,  8],
                [ 1,  5,  9],
                [ 2,  6, 10],
                [ 3,  7, 11]])
    """
    images = random_image(model, (channels + 1, channels, *stems.size)).zero_()
    for channel in range(channels):
        images[channel + 1, channel] = 1
    with exact_evaluation(model), torch.no_grad():
        calls = run_to_stems(model, stems, images, run=False)
    rounding = 50 * torch.finfo(images.dtype).eps  # below which the trace of another channel is none
    return tuple(
        _layout(stem, call.input, channels, rounding) for stem, call in zip(stems.items, calls, strict=True)
    )


def run_to_stems(model: nn.Module, stems: Stems, images: Tensor, *, run: bool) -> tuple[StemCall, ...]:
    """Run a network up to its last stem; call it inside `evenslice.neutralizing.running.exact_evaluation`.

    Args:
        model: the network; what is after the stems may be on the meta device.
        stems: from `find_stems`.
        images: (batch, channels, y, x).
        run: run the stems too; otherwise the number of channels may differ from theirs.

    Returns:
        The first call of each stem.

    Raises:
        ModelError: the path to a stem refuses the images.
    """
    path = _Path(len(stems.items), run=run, elsewhere=is_on_meta(model))
    with ExitStack() as hooks:
        for stem in stems.items:
            path.watch(stem, hooks)
        try:
            model(images)
        except _Reached:
            nothing = images.new_empty(0)
            return tuple(
                StemCall(path.arrivals[stem.name], path.written.get(stem.name, nothing))
                for stem in stems.items
            )
        except Exception as error:  # noqa: BLE001  # a network may refuse an image by any exception
            refusal = f"{type(error).__name__}: {reason(error)}"
        else:
            refusal = "nothing arrives"
    passed = path.written if run else path.arrivals
    missed = next(stem for stem in stems.items if stem.name not in passed)
    raise ModelError(
        f"the way from the image to the layer {missed.label} does not take {images.shape[1]} channels"
        f" ({refusal}); it seems to be made for {stems.channels}; {MIXER_HINT}"
    )


class _Path:
    """Notes the input and the output of each of so many stems in a pass, by name, and ends the pass after the last of them."""

    def __init__(self, count: int, *, run: bool, elsewhere: bool) -> None:
        self.count, self.run, self.elsewhere = count, run, elsewhere
        self.arrivals: dict[str, Tensor] = {}
        self.written: dict[str, Tensor] = {}

    def watch(self, stem: Stem, hooks: ExitStack) -> None:
        arrive = partial(self._arrive, stem)
        hooks.callback(stem.reader.register_forward_pre_hook(arrive, with_kwargs=True).remove)
        for module in filter(None, (stem.reader, stem.norm)):
            hooks.callback(module.register_forward_hook(partial(self._leave, stem)).remove)

    def _arrive(self, stem: Stem, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        arrived = next(tensors_in((*args, *kwargs.values())), None)
        if arrived is not None:
            self.arrivals.setdefault(stem.name, arrived.clone())
        if self.run:
            return None
        if len(self.arrivals) == self.count:
            raise _Reached
        # Others follow: continue with an input of the width that the layer is made for.
        shape = list(self.arrivals[stem.name].shape)
        shape[_feature_axis(stem.module)] = stem.module.weight.shape[1]
        return (self.arrivals[stem.name].new_zeros(shape),), {}

    def _leave(self, stem: Stem, module: nn.Module, _: tuple[Any, ...], output: Tensor) -> Tensor | None:
        if self.run and module is (stem.norm if stem.bias_owner is stem.norm else stem.reader):
            self.written.setdefault(stem.name, output.clone())
            if len(self.written) == self.count:
                raise _Reached
        # What is after the stem, perhaps its batch norm already, has no values.
        last = stem.reader if stem.norm is None or is_on_meta(stem.norm) else stem.norm
        return output.to("meta") if self.elsewhere and module is last else None


class _Reached(Exception):  # noqa: N818  # not an error: it ends a forward pass when every stem has been reached
    pass


def interior(stem: Stem, layout: Layout) -> Tensor:
    """Mark the outputs of a stem whose taps all lie inside the image.

    Args:
        stem: the layer.
        layout: its layout for the channels that the layer takes now.

    Returns:
        A boolean mask that broadcasts against the output of the stem for one image.

    Example:
        >>> network = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1))
        >>> found = find_stems(network, size=(4, 4))
        >>> interior(found.items[0], probe(network, found, 3)[0])[0, 0].int()
        tensor([[0, 0, 0, 0],
                [0, 1, 1, 0],
                [0, 1, 1, 0],
                [0, 0, 0, 0]], dtype=torch.int32)
    """
    layer = copy.deepcopy(stem.module).float()
    axis = _feature_axis(layer)
    with torch.no_grad():
        layer.weight.fill_(1)
        if layer.bias is not None:
            layer.bias.zero_()
        taps: Tensor = layer(layout.where).narrow(axis, 0, 1)
    inside: Tensor = taps == taps.max()
    return inside


def _layout(stem: Stem, arrived: Tensor, channels: int, tolerance: float) -> Layout:
    """Derive the layout from the inputs for the images 0, e_1 .. e_C."""

    def refused(why: str) -> ModelError:
        return ModelError(f"the layer {stem.label}, given images of {channels} channels, {why}; {MIXER_HINT}")

    axis = _feature_axis(stem.module)
    moved = arrived.detach().to("cpu", torch.float64).movedim(axis, -1)
    if moved.shape[0] % (channels + 1):
        raise refused(f"gets {moved.shape[0]} inputs for {channels + 1} images; it mixes images")
    by_image = moved.reshape(channels + 1, -1, moved.shape[-1])  # (images, positions, features)
    typical = by_image.median(dim=1).values  # borders that were padded on the way are few
    shift, gain = typical[0], typical[1:] - typical[0]
    strength, source = gain.abs().max(dim=0)
    if (strength < tolerance).any() or (gain.abs().sum(dim=0) > strength * (1 + channels * tolerance)).any():
        raise refused("gets features that no channel or several channels enter; each has to come from one")
    counts = source.bincount(minlength=channels)
    if counts.min() != counts.max():
        found = "/".join(map(str, counts.tolist()))
        raise refused(
            f"gets {found} features from them; the way to it is made for another number of channels"
        )
    index = source.argsort(stable=True).reshape(channels, -1).T
    follows = torch.isclose(by_image, typical[:, None], rtol=tolerance, atol=tolerance).all(dim=0)
    one_image = moved.reshape(channels + 1, -1, *moved.shape[1:])[0]
    return Layout(
        index=index,
        scale=_snapped(gain.gather(0, source[None])[0], 1.0)[index],
        shift=_snapped(shift, 0.0)[index],
        where=follows.reshape(one_image.shape).movedim(-1, axis).to(arrived.device, torch.float32),
    )


def _snapped(values: Tensor, to: float) -> Tensor:
    """Undo the rounding of values meant to be a round number: resizing an image of ones gives 0.9999999."""
    return torch.where((values - to).abs() < 1e-6, to, values)


def _feature_axis(layer: nn.Conv2d | nn.Linear) -> int:
    return -3 if isinstance(layer, nn.Conv2d) else -1


def equalize_input_path(
    model: nn.Module, stems: Stems, layouts: Sequence[Layout], slices: int, undo: ExitStack
) -> None:
    """Make the path from the image to the stems treat all channels alike, in place.

    Args:
        model: the network.
        stems: from `find_stems`.
        layouts: from `probe`, for the channels that the network takes now.
        slices: N, the number of channels that it will take.
        undo: takes what undoes this.
    """
    for name in stems.norms:
        replace_module(model, model.get_submodule(name), nn.Identity(), undo)
    for module in model.modules():
        if getattr(module, "transform_input", None) is True:
            _set(module, "transform_input", False, undo)
    if slices != stems.channels or not all(layout.is_bare for layout in layouts):
        for owner, name in _constants_on_the_way(model, stems):
            _set(owner, name, _averaged(getattr(owner, name), slices), undo)
    if slices != stems.channels:
        for owner, name in _stated_widths(model, stems):
            _set(owner, name, slices, undo)


def replace_module(model: nn.Module, old: nn.Module, new: nn.Module, undo: ExitStack) -> None:
    """Replace a module wherever it is registered in a network.

    Raises:
        ModelError: it is the network itself.
    """
    if old is model:
        raise ModelError(
            f"{layer_label('', model)} is the network itself and cannot be replaced in place;"
            " wrap it in torch.nn.Sequential"
        )
    for parent in list(model.modules()):
        for name, child in list(parent._modules.items()):  # noqa: SLF001  # the public ways skip what comes twice
            if child is old:
                _set(parent, name, new, undo)


def _set(owner: Any, name: str, value: Any, undo: ExitStack) -> None:
    undo.callback(setattr, owner, name, getattr(owner, name))
    setattr(owner, name, value)


def _constants_on_the_way(model: nn.Module, stems: Stems) -> list[tuple[nn.Module, str]]:
    """Find constants with one value a channel that change what arrives at a stem, by changing each in turn."""
    constants = list(_constants(model, stems.channels))
    if not constants:
        return []
    image = random_image(model, (1, stems.channels, *stems.size))
    usual = [call.input for call in run_to_stems(model, stems, image, run=False)]
    found = []
    for owner, name in constants:
        value = getattr(owner, name)
        setattr(owner, name, _moved(value))
        try:
            arrived = [call.input for call in run_to_stems(model, stems, image, run=False)]
            if any(not torch.equal(old, new) for old, new in zip(usual, arrived, strict=True)):
                found.append((owner, name))
        except EvensliceError:  # not a number to scale by
            pass
        finally:
            setattr(owner, name, value)
    return found


def _constants(model: nn.Module, channels: int) -> Iterator[tuple[nn.Module, str]]:
    """Yield constants with one number a channel: buffers, other tensors, lists and tuples of floats."""
    if channels == 1:
        return
    for module in model.modules():
        for name, value in (*module.named_buffers(recurse=False), *vars(module).items()):
            if _is_constant(value, channels):
                yield module, name


def _is_constant(value: Any, channels: int) -> bool:
    if isinstance(value, Tensor):
        return value.is_floating_point() and value.numel() == channels and channels in value.shape
    return (
        type(value) in (list, tuple)
        and len(value) == channels
        and all(isinstance(item, int | float) for item in value)
        and any(isinstance(item, float) for item in value)
    )


def _moved(value: Any) -> Any:
    """Return a constant with other values, none of them 0."""
    return (
        value * 1.5 + 0.25 if isinstance(value, Tensor) else type(value)(item * 1.5 + 0.25 for item in value)
    )


def _averaged(value: Any, slices: int) -> Any:
    """Return a constant for N slices, its average for each, so that padding with 0 keeps about the same meaning."""
    if not isinstance(value, Tensor):
        return type(value)([sum(value) / len(value)] * slices)
    shape = [slices if length == value.numel() else length for length in value.shape]
    return value.mean().expand(shape).contiguous()


def _stated_widths(model: nn.Module, stems: Stems) -> Iterator[tuple[Any, str]]:
    """Yield the attributes that state the number of channels, on what contains the stems and its configurations."""
    for name, module in model.named_modules():
        if not any(
            stem.name.startswith(f"{name}." if name else "") and stem.name != name for stem in stems.items
        ):
            continue
        for owner in (module, vars(module).get("config")):
            for width in WIDTHS:
                value = vars(owner).get(width) if hasattr(owner, "__dict__") else None
                if value == stems.channels and type(value) is int:
                    yield owner, width
