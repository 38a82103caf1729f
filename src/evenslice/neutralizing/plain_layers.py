"""Plain layers: an equivalent of a layer that computes its weight or works in groups.

New kernels reach the image unchanged only if a layer uses its weight as it is. A weight-standardized convolution, a
layer with a parametrization, or one with torch's older weight normalization computes its weight in every pass. What
it computed is seen in the one call of `torch.nn.functional.conv2d` or `linear` in its forward pass, so no list of
such layers is needed. A grouped convolution is a dense one whose other kernels are zero.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from evenslice._core import ModelError
from evenslice.networks import layer_label
from evenslice.neutralizing.mixer import MIXER_HINT

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

__all__ = ["SameConv2d", "plain_layer"]


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
        calls = _listen(layer, arrived)
        if len(calls) == 1:
            if isinstance(layer, nn.Conv2d | nn.Linear) and _is_plain(layer, calls[0]):
                return layer
            for made in _candidates(layer, calls[0], arrived):
                if _responds_alike(made, layer, arrived):
                    return made
    raise ModelError(
        f"the layer {layer_label(name, layer)} reads the image itself, and does something else with it than "
        "one convolution"
        f" or linear layer; evenslice cannot rewrite it; {MIXER_HINT}"
    )


@dataclass(frozen=True)
class _Call:
    """One call of conv2d or linear: its input, and its options by name."""

    input: Tensor
    weight: Tensor
    bias: Tensor | None
    options: Mapping[str, Any]


def _convolution(  # the signature of torch's own
    input: Tensor,  # noqa: A002
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> _Call:
    options = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    return _Call(input, weight, bias, options)


def _linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> _Call:  # noqa: A002
    return _Call(input, weight, bias, {})


class _Listener(TorchFunctionMode):
    def __init__(self, calls: list[_Call]) -> None:
        super().__init__()
        self.calls = calls

    def __torch_function__(
        self, function: Any, _types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if function is functional.conv2d:
            self.calls.append(_convolution(*args, **kwargs))
        elif function is functional.linear:
            self.calls.append(_linear(*args, **kwargs))
        return function(*args, **kwargs)


def _listen(layer: nn.Module, arrived: Tensor) -> list[_Call]:
    calls: list[_Call] = []
    with _Listener(calls):
        layer(arrived.clone())
    return calls


def _is_plain(layer: nn.Conv2d | nn.Linear, call: _Call) -> bool:
    own = dict(layer.named_parameters(recurse=False))
    return (
        call.weight is own.get("weight")
        and call.bias is own.get("bias")
        and call.options.get("groups", 1) == 1
    )


def _candidates(layer: nn.Module, call: _Call, arrived: Tensor) -> Iterator[nn.Conv2d | nn.Linear]:
    """Yield plain layers that may be equivalent to a layer, given one of its calls."""
    if not call.options:
        yield _filled(nn.Linear, (call.weight.shape[1], call.weight.shape[0]), {}, layer, call, call.weight)
        return
    weight = _dense(call.weight, call.options["groups"])
    channels = (weight.shape[1], weight.shape[0], tuple(weight.shape[2:]))
    options = {name: call.options[name] for name in ("stride", "dilation", "padding")}
    if isinstance(layer, nn.Conv2d) and layer.padding_mode != "zeros":
        mode = {"padding": layer.padding, "padding_mode": layer.padding_mode}
        yield _filled(nn.Conv2d, channels, {**options, **mode}, layer, call, weight)
    elif call.input.shape == arrived.shape:
        yield _filled(nn.Conv2d, channels, options, layer, call, weight)
    else:  # it was padded with zeros before, the same on every side or as the stride requires
        added = [(a - b) // 2 for a, b in zip(call.input.shape[-2:], arrived.shape[-2:], strict=True)]
        yield _filled(SameConv2d, channels, {**options, "padding": 0}, layer, call, weight)
        yield _filled(nn.Conv2d, channels, {**options, "padding": tuple(added)}, layer, call, weight)


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


def _filled(
    make: Callable[..., nn.Conv2d | nn.Linear],
    shape: tuple[Any, ...],
    options: Mapping[str, Any],
    layer: nn.Module,
    call: _Call,
    weight: Tensor,
) -> nn.Conv2d | nn.Linear:
    """Make a plain layer with the weights of a call; it is trainable if the other layer is."""
    made = make(*shape, bias=call.bias is not None, device=weight.device, dtype=weight.dtype, **options)
    made.weight.copy_(weight)
    if call.bias is not None and made.bias is not None:
        made.bias.copy_(call.bias)
    learns = any(parameter.requires_grad for parameter in layer.parameters())
    return made.requires_grad_(learns).train(layer.training)


def _responds_alike(made: nn.Module, layer: nn.Module, arrived: Tensor) -> bool:
    """Say whether two layers respond alike, to an image of another size too if sizes matter."""
    images = [arrived]
    if isinstance(made, nn.Conv2d):
        images.append(
            arrived[..., : -1 if arrived.shape[-2] > 1 else None, : -1 if arrived.shape[-1] > 1 else None]
        )
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
