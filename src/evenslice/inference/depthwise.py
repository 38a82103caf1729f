"""Depthwise convolutions that are slow in bfloat16 on a CPU, kept in float32.

oneDNN has no fast gradient for some of them. With a stride, those of EfficientNet take up to twenty times as long as in
float32: a sixth of the time of an audit. With kernels larger than 3 x 3, the gradient of the weights, which only
training needs, takes three times as long as in float32: a sixth of a step. So they run in float32 where the rest runs in
bfloat16, unless no gradient will be taken: without it, bfloat16 is the faster one.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["keep_depthwise_exact"]

LARGEST_FAST = 3  # largest kernel size for which the gradient of the weights is fast


def keep_depthwise_exact(network: nn.Module) -> None:
    """Make depthwise convolutions whose gradient is slow in bfloat16 run in float32 on a CPU under autocast, in place.

    No parameter is renamed. Freeze weights that are not trained first: whether a weight is trained is decided here.

    Example:
        >>> network = nn.Sequential(nn.Conv2d(4, 4, 3, stride=2, groups=4, bias=False))
        >>> keep_depthwise_exact(network)
        >>> with torch.autocast("cpu", dtype=torch.bfloat16):
        ...     output = network(torch.full((1, 4, 3, 3), 1.001))
        >>> bool((output - 1.001 * network[0].weight.sum((1, 2, 3)).view(1, -1, 1, 1)).abs().max() < 1e-6)
        True
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d) and _is_slow(module) and not isinstance(module, _Exact):
            module.__class__ = _exact(type(module))  # type: ignore[arg-type]  # mypy takes the instance's hash


def _is_slow(convolution: nn.Conv2d) -> bool:
    depthwise = convolution.groups == convolution.in_channels > 1
    strided, large = max(convolution.stride) > 1, max(convolution.kernel_size) > LARGEST_FAST
    return depthwise and (strided or (large and convolution.weight.requires_grad))


class _Exact:
    """The forward pass of a convolution, in the precision of its weights if a gradient may follow."""

    weight: Tensor

    def forward(self, pixels: Tensor) -> Any:
        if torch.is_autocast_enabled("cpu") and not torch.is_grad_enabled():
            return super().forward(pixels)  # type: ignore[misc]  # the convolution's
        with torch.autocast("cpu", enabled=False):
            output: Tensor = super().forward(pixels.to(self.weight.dtype))  # type: ignore[misc]
        return output.to(pixels.dtype)


@cache
def _exact(kind: type[nn.Conv2d]) -> type[nn.Conv2d]:
    """Return a class of convolutions that computes in float32."""
    return type(kind.__name__, (_Exact, kind), {})
