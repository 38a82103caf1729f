"""The network that is exported: a copy that maps windows to scores, without anything that only Python can do."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional

from evenslice.inference.ready_networks import by_slice, frozen_copy, trial_windows
from evenslice.networks import input_multiple, input_size, logits

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["WholeNetwork", "output_shape", "pads_by_size", "settle_padding"]

_TRIED = 64  # pixels in y and x, at least

SAME_CONVOLUTIONS = ("Conv2dSame", "SameConv2d")  # timm's and our own


class WholeNetwork(nn.Module):
    """A frozen copy of a network in float32 on the CPU; ties are resolved into plain weights.

    Args:
        model: maps (batch, slices, y, x), with the scaling it expects, to anything with logits.
        mean: what it subtracts from slices in 0..1 by itself; one value, or one for each slice.
        std: what it divides them by afterwards, likewise.

    Example:
        >>> network = WholeNetwork(nn.Conv2d(3, 2, 4, stride=4), (0.5,), (0.25,))
        >>> network(torch.rand(1, 3, 8, 8)).shape
        torch.Size([1, 2, 8, 8])
    """

    mean: Tensor
    std: Tensor

    def __init__(self, model: nn.Module, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.network = frozen_copy(model).cpu()
        self.scales = (mean, std) != ((0.0,), (1.0,))
        self.register_buffer("mean", by_slice(mean))
        self.register_buffer("std", by_slice(std))

    def forward(self, windows: Tensor) -> Tensor:
        """Return the logits of windows (batch, slices, y, x); a map gets the size of the windows, as in ``predict``."""
        output = logits(self.network((windows - self.mean) / self.std if self.scales else windows)).float()
        if output.ndim == 4 and output.shape[2:] != windows.shape[2:]:
            output = functional.interpolate(
                output, size=windows.shape[2:], mode="bilinear", align_corners=False
            )
        return output


def output_shape(
    model: nn.Module, slices: int, size: tuple[int, int] | None = None
) -> tuple[int, ...] | None:
    """Return the shape of what a network gives for one window of noise; None if it does not run on that.

    Args:
        model: the network.
        slices: number of slices of the window.
        size: its size (y, x), by default one that suits most networks.

    Example:
        >>> output_shape(nn.Conv2d(3, 2, 1), 3), output_shape(nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()), 3)
        ((1, 2, 64, 64), (1, 3))
    """
    multiple = input_multiple(model)
    side = -(-_TRIED // multiple) * multiple
    windows = trial_windows(slices, input_size(model) or size or (side, side))
    try:
        with torch.no_grad():
            return tuple(WholeNetwork(model, (0.0,), (1.0,))(windows).shape)
    except Exception:  # noqa: BLE001  # a network may raise anything, and some need no logits to be saved
        return None


def settle_padding(network: nn.Module) -> None:
    """Let convolutions with TensorFlow's padding "SAME" pad as they do for sizes that their stride divides, in place.

    Their padding otherwise depends on the size of the image, which takes the exporter very long to follow.

    Example:
        >>> import timm
        >>> network = timm.create_model("tf_efficientnet_lite0").eval()
        >>> image = torch.rand(1, 3, 64, 96)
        >>> before = network(image)
        >>> settle_padding(network)
        >>> torch.equal(network(image), before)
        True
    """
    for module in network.modules():
        if type(module).__name__ in SAME_CONVOLUTIONS and isinstance(module, nn.Conv2d):
            vars(module)["forward"] = _FixedPadding(module)  # its hooks stay


class _FixedPadding:
    """The forward pass of a convolution whose padding is known."""

    def __init__(self, layer: nn.Conv2d) -> None:
        self.layer, self.pads = layer, list[int]()
        for axis in (1, 0):  # torch pads the last axis first
            reach = layer.dilation[axis] * (layer.kernel_size[axis] - 1) + 1
            total = max(reach - layer.stride[axis], 0)
            self.pads += [total // 2, total - total // 2]

    def __call__(self, image: Tensor) -> Tensor:
        layer = self.layer
        padded = functional.pad(image, self.pads)
        return functional.conv2d(
            padded, layer.weight, layer.bias, layer.stride, 0, layer.dilation, layer.groups
        )


def pads_by_size(network: Any) -> bool:
    """Say whether other layers than those of ``settle_padding`` pad by the size of the image.

    Example:
        >>> pads_by_size(nn.Conv2d(3, 1, 1))
        False
    """
    names = {type(module).__name__ for module in network.modules()}
    return any(name.endswith("Same") and name not in SAME_CONVOLUTIONS for name in names)
