"""The input of a network: its scaling and its size, as far as it states them, and the kernels that act on it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any

from evenslice._core import ConfigError, option

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import nn

LARGEST_SCALING = 10  # on a scale of 0..1, with room for a narrow range of wide intensities

IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
HALF = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
PLAIN = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}

# Input scaling of smp's own encoders where it is not ImageNet's; from the pretrained_settings of smp 0.4.
ENCODERS = {
    "dpn": {"mean": (124 / 255, 117 / 255, 104 / 255), "std": (1 / (0.0167 * 255),) * 3},
    "inception": HALF,
    "timm-tf_efficientnet_lite": HALF,
    "xception": HALF,
}
# Input scaling of the published networks of a model type of transformers, where it is not ImageNet's.
TYPE_SCALINGS = {
    **dict.fromkeys(
        ("beit", "data2vec-vision", "dpt", "mobilenet_v1", "mobilenet_v2", "vit", "zoedepth"), HALF
    ),
    **dict.fromkeys(("glpn", "mobilevit", "mobilevitv2"), PLAIN),
}
# Model types of transformers that only take images of the size in their configuration.
FIXED_TYPES = (
    *("clip", "clip_vision_model", "data2vec-vision", "deit", "eomt", "hiera", "ijepa", "levit", "pvt"),
    *("sam_hq_vision_model", "sam_vision_model", "siglip", "siglip_vision_model"),
    *("swin", "vit", "vit_mae", "vit_msn"),
)


@dataclass(frozen=True, eq=False)
class StemKernels:
    """The kernels of one stem as they act on the image; a linear stem has ky = kx = 1.

    Where one channel feeds several features of the stem, as after space to depth, their kernels lie side by side, in a
    square if their number is a square.

    Attributes:
        name: the stem.
        before: (filters, C, ky, kx) float32, the response to one unit of each channel. Channels and slices are in the
            unit that all slices share from now on, so a normalization by channel is part of the kernels.
        after: (filters, N, ky, kx) float32, the response to one unit of each slice.
    """

    name: str
    before: NDArray[np.float32]
    after: NDArray[np.float32]


def normalization(model: nn.Module) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """Return the per-channel scaling of the input that a network's pretrained weights were trained with.

    An input in [0, 1] becomes (input - mean) / std. Networks of timm state it in ``pretrained_cfg``, also inside
    another network; ``build_model`` gives the networks of other libraries the same attribute; for smp's own encoders
    it follows from the encoder's name, for transformers from the model type. It does not depend on whether the
    pretrained weights are loaded.

    Args:
        model: the network.

    Returns:
        Mean and std of each channel, in units of the full intensity range; None if the network states none.

    Example:
        >>> import segmentation_models_pytorch as smp
        >>> normalization(smp.Unet("resnet18", encoder_weights=None))
        ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    """
    for config in _pretrained_configs(model):
        if config.get("mean") is not None and config.get("std") is not None:
            return tuple(map(float, config["mean"])), tuple(map(float, config["std"]))
    return None


def check_scaling(name: str, values: Sequence[float]) -> None:
    """Raise ConfigError if the mean or std that a user states is that of 8-bit values: slices are scaled to 0..1 first."""
    if max(values) > LARGEST_SCALING:
        raise ConfigError(
            f"{option(name, list(values))}: slices are scaled to 0..1 first; divide the mean and std of 8-bit values by 255"
        )


def _pretrained_configs(model: nn.Module) -> Iterator[Mapping[str, Any]]:
    for module, name in product(model.modules(), ("pretrained_cfg", "default_cfg")):
        config = getattr(module, name, None)
        if isinstance(config, Mapping):
            yield config
    for module in model.modules():
        config = getattr(module, "config", None)
        if isinstance(config, Mapping) and "encoder_name" in config:
            yield _encoder_config(config)
        elif _reads_images(module):
            yield TYPE_SCALINGS.get(_model_type(module), IMAGENET)


def _reads_images(module: nn.Module) -> bool:
    """Say whether a module is one of transformers' networks for images."""
    return bool(_model_type(module)) and getattr(module, "main_input_name", None) == "pixel_values"


def _model_type(module: nn.Module) -> str:
    """Return the model type of a network of transformers; empty for any other."""
    return str(getattr(getattr(module, "config", None), "model_type", None) or "")


def _encoder_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the input scaling of one of smp's own encoders, offline: smp itself would ask its hub."""
    name = str(config["encoder_name"])
    if config.get("encoder_weights") == "advprop":
        return HALF
    return next((scaling for family, scaling in ENCODERS.items() if name.startswith(family)), IMAGENET)


def input_sizes(model: nn.Module) -> tuple[tuple[int, int] | None, int]:
    """Return the only in-plane size (y, x), in pixels, that a network takes, or None; and a number whose multiples suit it.

    That number is the stride of smp's encoders, the product of the strides of MONAI's networks that state them, and 32,
    the stride of most networks, for others; with a patch embedding it is a multiple of the patch as well.

    Example:
        >>> import segmentation_models_pytorch as smp
        >>> import timm
        >>> input_sizes(timm.create_model("vit_tiny_patch16_224"))
        ((224, 224), 32)
        >>> input_sizes(smp.Unet("resnet18", encoder_weights=None, encoder_depth=4, decoder_channels=(64, 32, 16, 8)))
        (None, 16)
    """
    return _only_size(model), _multiple(model)


def _only_size(model: nn.Module) -> tuple[int, int] | None:
    for module in model.modules():
        if hasattr(module, "strict_img_size"):  # timm's patch embeddings
            return _pair(getattr(module, "img_size", None)) if module.strict_img_size else None
        if hasattr(module, "seq_length") and hasattr(module, "image_size"):  # torchvision's transformers
            return _pair(module.image_size)
    # The outermost decides: a network of any size may hold, as a part, one that alone takes one size.
    outermost = next(filter(_reads_images, model.modules()), None)
    backbone = type(outermost).__name__.endswith("Backbone")  # of another network, for images of any size
    if outermost is not None and _model_type(outermost) in FIXED_TYPES and not backbone:
        whole: Any = outermost.config
        return _pair(getattr(getattr(whole, "vision_config", whole), "image_size", None))
    for config in _pretrained_configs(model):
        if config.get("fixed_input_size"):
            built = filter(None, (getattr(module, "img_size", None) for module in model.modules()))
            return _pair(next(built, config["input_size"][1:]))
    return None


def _multiple(model: nn.Module) -> int:
    multiple = next(filter(None, (_stride(*item) for item in model.named_modules())), 32)
    for module in model.modules():
        if hasattr(module, "strict_img_size") or _reads_images(module):
            stated = module if hasattr(module, "strict_img_size") else module.config
            multiple = math.lcm(multiple, *_patch(getattr(stated, "patch_size", None)))
    return multiple


def _stride(name: str, module: Any) -> int | None:
    """Return by how much a module shrinks the image down to its deepest features, if it states that."""
    stride = getattr(module, "output_stride", None)
    if isinstance(stride, int) and name.rpartition(".")[2] == "encoder":  # smp's
        return stride
    strides = getattr(module, "strides", None)  # MONAI's
    if isinstance(strides, list | tuple) and type(module).__module__.startswith("monai."):
        steps: list[int] = [max(step) if isinstance(step, list | tuple) else step for step in strides]
        return max(2, math.prod(steps))
    return None


def _patch(size: Any) -> tuple[int, ...]:
    """Return the sides of a patch; empty for a network with patches of several sizes."""
    return () if size is None or (isinstance(size, list) and len(size) != 2) else _pair(size) or ()


def _pair(size: Any) -> tuple[int, int] | None:
    if size is None:
        return None
    y, x = (size, size) if isinstance(size, int) else size
    return int(y), int(x)
