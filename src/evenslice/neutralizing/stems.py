"""Stems: the layers of a network that read the image before any parameter has touched it, and plain equivalents of them.

No list of architectures is needed. One forward pass with an image that requires its gradient finds them: the autograd graph
of a layer's input leads back to the image and to no parameter. A batch norm that reads the image is passed through: in
evaluation mode it is a fixed scaling by channel.

New kernels reach the image unchanged only if a layer uses its weight as it is. A weight-standardized convolution, a layer with
a parametrization, or one with torch's older weight normalization computes its weight in every pass. What it computed is seen
in the one call of `torch.nn.functional.conv2d` or `linear` in its forward pass, so no list of such layers is needed. A grouped
convolution is a dense one whose other kernels are zero.
"""

from __future__ import annotations

from collections import Counter
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from itertools import product
from numbers import Integral
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.parametrize import is_parametrized
from torch.overrides import TorchFunctionMode

from evenslice._core import ConfigError, EvensliceError, ModelError, option, reason
from evenslice.networks import input_size, layer_label
from evenslice.neutralizing.running import exact_evaluation, is_on_meta, random_image, run_network, tensors_in
from evenslice.neutralizing.strategies import MIXER_HINT

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from torch.utils.hooks import RemovableHandle

SIZES = (64, 224, 256, 384, 512)
"""In-plane sizes tried in turn, in pixels, for a network that does not state its own."""

OPTIONS = {"stride": 1, "padding": 0, "dilation": 1, "groups": 1}  # of torch's conv2d
ARGUMENTS = ("input", "weight", "bias", *OPTIONS)


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
    """

    items: tuple[Stem, ...]
    channels: int
    size: tuple[int, int]
    norms: tuple[str, ...] = ()


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
    model: nn.Module,
    channels: Iterable[int] = (),
    size: tuple[int, int] | None = None,
    *,
    dry: bool = False,
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
    stated, usual = input_size(model), [(pixels, pixels) for pixels in SIZES]
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


def trace_dry(model: nn.Module, image: Tensor) -> Stems:
    """Find the stems by a pass of shapes alone, or as `trace` does if the network cannot be run without values."""
    try:
        return trace(model, image.to("meta")).stems
    except ModelError:
        if is_on_meta(model):
            raise
    return trace(model, image.clone()).stems


def trace(model: nn.Module, image: Tensor) -> Trace:
    """Run a network once and find its stems; call it inside `evenslice.neutralizing.running.exact_evaluation`.

    Args:
        model: the network.
        image: (1, channels, y, x), on the meta device for a pass of shapes alone, which leaves the stems as they are.

    Raises:
        ModelError: nothing with parameters reads the image, or what reads it is no convolution or linear layer.
    """
    tracer = _Tracer(image.requires_grad_())
    with recorded_graph(model) as stack:
        for name, module in model.named_modules():
            if _has_parameters(module) or _has_statistics(module):
                for handle in tracer.watch(name, module):
                    stack.callback(handle.remove)
        parts = stack.enter_context(recorded_parts(model))
        try:
            output = run_network(
                model, image.clone()
            )  # a clone, since a network may change its input in place
        except EvensliceError:
            raise
        except Exception as error:
            raise ModelError(
                f"the network fails where gradients are recorded ({type(error).__name__}: {reason(error)})"
            ) from error
    readers = tracer.readers(output)
    if not readers:
        raise ModelError(
            f"no layer of this {type(model).__name__} reads the image first; evenslice looks for convolutions and linear"
            f" layers that the forward pass calls; {MIXER_HINT}"
        )
    items = tuple(Stem(reader.name, reader.module, reader.norm, reader.module) for reader in readers)
    stems = Stems(items, image.shape[1], (image.shape[2], image.shape[3]), tuple(tracer.passed))
    if not image.is_meta:
        stems = plain_stems(stems, [reader.input for reader in readers])
    outputs = tuple(
        tuple(reader.norm_outputs if stem.bias_owner is stem.norm else reader.outputs)
        for stem, reader in zip(stems.items, readers, strict=True)
    )
    return Trace(stems, output, tuple(parts), outputs)


@contextmanager
def recorded_graph(model: nn.Module) -> Iterator[ExitStack]:
    """In the block, the autograd graph records every parameter of a network, frozen ones too; yield what undoes more."""
    with ExitStack() as stack, torch.enable_grad():
        for parameter in model.parameters():
            if parameter.is_floating_point() and not parameter.requires_grad:
                parameter.requires_grad_()
                stack.callback(parameter.requires_grad_, False)
        yield stack


def graph_nodes(starts: Iterable[Any], ends: Callable[[Any], bool] = lambda _: False) -> Iterator[Any]:
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


class _Tracer:
    """Watches the layers of a network during one forward pass for those that read the image.

    Args:
        image: the leaf of the autograd graph that the pass starts from.
    """

    def __init__(self, image: Tensor) -> None:
        self.passed: list[str] = []  # batch norms that read the image
        self.leaves = [image]  # of the graph in front of the stems: the parameters of these batch norms, too
        self.seen: dict[str, _Reader] = {}
        self.norm_calls: Counter[nn.Module | None] = Counter()

    def watch(self, name: str, module: nn.Module) -> Iterator[RemovableHandle]:
        """Hook a module, and yield the handles of the hooks."""

        def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            arrived = next(tensors_in((*args, *kwargs.values())), None)
            if arrived is None:
                return
            self._note_norm(module, arrived)
            if not _leads_only_to(self.leaves, arrived):
                return
            if _is_fixed_norm(module, arrived):
                self.passed.append(name)
                self.leaves.extend(module.parameters())
            elif _has_parameters(module) and _is_layer(module):
                self.seen.setdefault(name, _Reader(name, module, arrived.detach()))

        def after(_module: nn.Module, _args: tuple[Any, ...], output: Any) -> None:
            if isinstance(output, Tensor):
                self._note_output(name, module, output)

        yield module.register_forward_pre_hook(before, with_kwargs=True)
        yield module.register_forward_hook(after)

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

    def readers(self, output: Any) -> tuple[_Reader, ...]:
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


def _leads_only_to(leaves: Sequence[Tensor], tensor: Tensor) -> bool:
    """Say whether a tensor was computed from the first of some leaves, the image, and from no others than these.

    The walk ends after a few steps anywhere after a stem.
    """
    found = False
    for node in graph_nodes([tensor.grad_fn]):
        leaf = getattr(node, "variable", None)
        if leaf is not None and all(leaf is not each for each in leaves):
            return False
        found = found or leaf is leaves[0]
    return found


def _consumers(output: Any, nodes: set[Any]) -> Counter[Any]:
    """Count the operations that read the output of each of some graph nodes."""
    every = graph_nodes(tensor.grad_fn for tensor in tensors_in(output))
    return Counter(parent for node in every for parent, _ in node.next_functions if parent in nodes)


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


@dataclass(frozen=True)
class _Call:
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
    weight = _dense(call.weight, call.options.get("groups", 1))

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


def _dense(weight: Tensor, groups: int) -> Tensor:
    """Return the weight of the dense convolution that is equivalent to a grouped one."""
    if groups == 1:
        return weight
    out, width = weight.shape[:2]
    dense = weight.new_zeros(out, groups * width, *weight.shape[2:])
    for group in range(groups):
        filters = slice(group * out // groups, (group + 1) * out // groups)
        dense[filters, group * width : (group + 1) * width] = weight[filters]
    return dense


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
