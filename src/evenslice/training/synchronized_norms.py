"""Batch norms that several GPUs share: each normalizes by the crops of all of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from timm.layers.norm_act import convert_sync_batchnorm
from torch.nn.modules.batchnorm import SyncBatchNorm, _BatchNorm

from evenslice._core import needs_extra

with needs_extra("train", "training"):
    from lightning.pytorch.plugins import TorchSyncBatchNorm

if TYPE_CHECKING:
    from torch import nn

__all__ = ["SynchronizedNorms"]


class SynchronizedNorms(TorchSyncBatchNorm):
    """Lightning's plugin for synchronized batch norms, without what the conversion of PyTorch loses.

    Some batch norms of timm end with an activation, and the average over a window and its mirror is a hook, which may be
    on a batch norm; PyTorch's conversion drops both.

    Example:
        >>> from timm.layers import BatchNormAct2d
        >>> from torch import nn
        >>> network = nn.Sequential(nn.Conv2d(3, 4, 1), BatchNormAct2d(4))
        >>> SynchronizedNorms().apply(network)[1].act
        ReLU(inplace=True)
    """

    def __init__(self) -> None:
        self._original: dict[nn.Module, nn.Module] = {}

    def apply(self, model: nn.Module) -> nn.Module:
        """Replace the batch norms of a model, in place; weights and statistics are the same tensors."""
        replaced: dict[nn.Module, nn.Module] = {}
        for name, norm in list(model.named_modules(remove_duplicate=False)):
            if isinstance(norm, _BatchNorm) and not isinstance(norm, SyncBatchNorm):
                if norm not in replaced:
                    replaced[norm] = convert_sync_batchnorm(norm)  # type: ignore[no-untyped-call]  # timm's
                    vars(replaced[norm]).update(vars(norm))  # with its hooks
                model.set_submodule(name, replaced[norm])
        self._original |= {synchronized: norm for norm, synchronized in replaced.items()}
        return model

    def revert(self, model: nn.Module) -> nn.Module:
        """Put the original batch norms back, in place, with the weights and statistics that they have by now."""
        for name, norm in list(model.named_modules(remove_duplicate=False)):
            if norm in self._original:
                model.set_submodule(name, self._original[norm].train(norm.training))
        return model
