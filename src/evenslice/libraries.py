"""From a specification to a network, one library each.

A specification names a library and a network, or a function of the user's:

    smp:Unet/resnet34                       segmentation_models_pytorch, DECODER/ENCODER
    smp:Unet/tu-tf_efficientnet_lite0       the same with one of timm's networks as encoder
    timm:convnext_tiny                      timm
    torchvision:deeplabv3_resnet50          torchvision, classification and segmentation
    package.module:function                 a function that returns a module; the current directory is importable

Keyword arguments of the builder may follow, as Python or JSON literals: ``smp:Unet/resnet34?encoder_depth=4`` or
``timm:mobilenetv1_100?pad_type=same&bn_eps=1e-3``.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import operator
import socket
import ssl
import sys
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.error import HTTPError, URLError
from urllib.parse import unquote
from urllib.request import Request, urlopen

from evenslice.errors import EvensliceError, ModelError, nearest, needs_extra

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from types import ModuleType

    from torch import nn

__all__ = ["HALF", "IMAGENET", "Plan"]

IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
HALF = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
SEGMENTER_CLASSES = 2  # unless another number is asked for: background and one thing
HUB_TIMEOUT = 10.0  # seconds to wait for a hub's answer


@dataclass(frozen=True)
class Plan:
    """A specification, taken apart, and how to build it. The library is empty for a function of the user's."""

    spec: str
    library: str
    name: str
    arguments: Mapping[str, Any]
    classes: int | None
    seed: int
    inputs: int = 3

    @classmethod
    def read(cls, spec: str, classes: int | None, seed: int) -> Plan:
        """Take a specification apart; raise ModelError where it has no meaning."""
        head, _, query = spec.partition("?")
        library, colon, name = head.partition(":")
        if not (library and colon and name):
            raise ModelError(f"{spec!r} names no network; write LIBRARY:NETWORK, as smp:Unet/resnet34")
        arguments = _arguments(spec, query)
        if library not in _LIBRARIES:
            if classes is not None:
                raise ModelError(
                    f"{spec}: a function sets its own classes; pass its arguments as {head}?name=value"
                )
            return cls(spec, "", head, arguments, None, seed)
        if taken := sorted(_LIBRARIES[library].reserved & arguments.keys()):
            raise ModelError(
                f"{spec}: {taken[0]} cannot stand here; weights and classes are options of their own"
            )
        return cls(spec, library, name, arguments, classes, seed)

    @property
    def outputs(self) -> int | None:
        """Channels of the output; None for the number that the library or the user's function chooses."""
        return self.classes or (SEGMENTER_CLASSES if self.library == "smp" else None)

    @property
    def timm_name(self) -> str | None:
        """Timm's name of the network, or of the encoder; None where it is not one of timm's."""
        if self.library == "timm":
            return self.name
        _, _, encoder = self.name.partition("/")
        return encoder.removeprefix("tu-") if self.library == "smp" and encoder.startswith("tu-") else None

    def build(self, *, pretrained: bool = False) -> tuple[nn.Module, tuple[str, ...]]:
        """Build the network; return it with the top-level parts that the library's weights leave random."""
        library = _LIBRARIES.get(self.library)
        try:
            with _drawn_under(self.seed):
                if library is None:
                    return _build_imported(self, pretrained), ()
                with needs_extra("models", f"building {self.spec}"):
                    importlib.import_module(library.package)
                if not pretrained:
                    return library.build(self, False)
                with _impatient_hub():
                    return library.build(self, True)
        except EvensliceError:
            raise
        except Exception as error:
            if pretrained and isinstance(error, OSError):
                raise ModelError(
                    f"{self.spec}: its imagenet weights are neither installed nor cached, and the hub cannot be reached"
                    f" ({type(error).__name__}); give a weights file, or none for random weights"
                ) from error
            reason = (str(error).splitlines() or ["no reason given"])[0]
            raise ModelError(f"{self.spec}: cannot be built ({type(error).__name__}: {reason})") from error


def _arguments(spec: str, query: str) -> dict[str, Any]:
    """Read ``a=1&b=true&c=same``; values are Python or JSON literals, and else words."""
    arguments: dict[str, Any] = {}
    for item in filter(None, query.split("&")):
        key, equals, value = item.partition("=")
        if not (equals and key.isidentifier()) or key in arguments:
            raise ModelError(
                f"{spec}: {item!r} is no argument; write ?name=value&other=value, each name once"
            )
        arguments[key] = _literal(unquote(value))
    return arguments


def _literal(text: str) -> Any:
    for read in (ast.literal_eval, json.loads):
        try:
            return read(text)
        except (ValueError, SyntaxError):
            continue
    return text


@contextmanager
def _drawn_under(seed: int) -> Iterator[None]:
    """Draw under a seed from torch's CPU generator, and leave it as it was."""
    import torch

    state = torch.default_generator.get_state()
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        torch.default_generator.set_state(state)


@contextmanager
def _impatient_hub() -> Iterator[None]:
    """Where there is no network, let hubs say so at once instead of after minutes of retries.

    What a hub keeps in its cache is found either way. Progress goes to standard error.
    """
    with needs_extra("models", "reading weights from a hub"):
        from huggingface_hub import constants

    timeout, offline = socket.getdefaulttimeout(), constants.HF_HUB_OFFLINE
    socket.setdefaulttimeout(HUB_TIMEOUT)
    constants.HF_HUB_OFFLINE = offline or not _answers(constants.ENDPOINT)
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        constants.HF_HUB_OFFLINE = offline
        socket.setdefaulttimeout(timeout)


def _answers(url: str) -> bool:
    """Tell whether anything answers at an address, be it with an error or a certificate that is not trusted."""
    try:
        urlopen(Request(url, method="HEAD")).close()  # noqa: S310  # the hub's address, from its own library
    except HTTPError:
        return True
    except URLError as error:
        return isinstance(error.reason, ssl.SSLError)
    except OSError:
        return False
    return True


def _build_smp(plan: Plan, pretrained: bool) -> tuple[nn.Module, tuple[str, ...]]:
    import segmentation_models_pytorch as smp

    name, slash, encoder = plan.name.partition("/")
    if not slash:
        raise ModelError(f"{plan.spec}: no encoder; write smp:DECODER/ENCODER, as smp:Unet/resnet34")
    decoder = smp.MODEL_ARCHITECTURES_MAPPING.get(name.lower())
    if decoder is None:
        known = [decoder.__name__ for decoder in smp.MODEL_ARCHITECTURES_MAPPING.values()]
        raise ModelError(f"{plan.spec}: smp has no decoder {name!r}; {nearest(name, known)}")
    if plan.timm_name:
        _check_timm(plan, plan.timm_name, pretrained)
    else:
        _check_encoder(plan, encoder, pretrained)
        _check_arguments(plan, decoder)
    model = decoder(
        encoder_name=encoder,
        encoder_weights=(True if plan.timm_name else "imagenet") if pretrained else None,
        in_channels=plan.inputs,
        classes=plan.outputs,
        **plan.arguments,
    )
    return model, tuple(name for name, _ in model.named_children() if name != "encoder")


def _check_encoder(plan: Plan, encoder: str, pretrained: bool) -> None:
    import timm
    from segmentation_models_pytorch.encoders import encoders

    if encoder not in encoders:
        known = [*encoders, *(f"tu-{name}" for name in timm.list_models())]
        raise ModelError(f"{plan.spec}: smp has no encoder {encoder!r}; {nearest(encoder, known)}")
    settings = encoders[encoder]["pretrained_settings"]
    if pretrained and "imagenet" not in settings:
        raise ModelError(
            f"{plan.spec}: smp has no imagenet weights for this encoder, only {', '.join(settings)}; give a file"
        )


def _check_arguments(plan: Plan, decoder: type[nn.Module]) -> None:
    """Refuse arguments that the decoder does not know: smp's own encoders would swallow them."""
    known = inspect.signature(decoder).parameters.keys() - {"kwargs"} - _LIBRARIES["smp"].reserved
    if unknown := sorted(plan.arguments.keys() - known):
        raise ModelError(
            f"{plan.spec}: {decoder.__name__} takes no argument {unknown[0]!r}; {nearest(unknown[0], known)}"
        )


def _build_timm(plan: Plan, pretrained: bool) -> tuple[nn.Module, tuple[str, ...]]:
    import timm

    _check_timm(plan, plan.name, pretrained)
    classes: dict[str, Any] = {} if plan.classes is None else {"num_classes": plan.classes}
    model: Any = timm.create_model(
        plan.name, pretrained=pretrained, in_chans=plan.inputs, **classes, **plan.arguments
    )
    config = model.pretrained_cfg
    if plan.classes in (None, config.get("num_classes")):
        return model, ()
    classifiers = config.get("classifier") or ()
    classifiers = (classifiers,) if isinstance(classifiers, str) else classifiers
    return model, tuple(dict.fromkeys(name.partition(".")[0] for name in classifiers))


def _check_timm(plan: Plan, name: str, pretrained: bool) -> None:
    import timm

    architecture, _, _ = name.partition(".")
    if not timm.is_model(architecture):
        raise ModelError(
            f"{plan.spec}: timm has no network {architecture!r}; {nearest(architecture, timm.list_models())}"
        )
    if pretrained and not timm.models.is_model_pretrained(name):
        raise ModelError(
            f"{plan.spec}: timm has no pretrained weights for {name}; give a weights file, or none"
        )


def _build_torchvision(plan: Plan, pretrained: bool) -> tuple[nn.Module, tuple[str, ...]]:
    from torchvision import models as zoo

    segmenters = zoo.list_models(module=zoo.segmentation)
    known = [*zoo.list_models(module=zoo), *segmenters]
    if plan.name not in known:
        raise ModelError(
            f"{plan.spec}: torchvision has no network {plan.name!r}; {nearest(plan.name, known)}"
        )
    if plan.inputs != 3:
        raise ModelError(
            f"{plan.spec}: torchvision builds networks of 3 inputs only, these weights have {plan.inputs}"
        )
    classes = {} if plan.classes is None else {"num_classes": plan.classes}
    random: tuple[str, ...] = ()
    if plan.name in segmenters:
        backbone = {} if pretrained else {"weights_backbone": None}
        model = zoo.get_model(plan.name, weights=None, **backbone, **classes, **plan.arguments)
        random = tuple(name for name, _ in model.named_children() if name != "backbone")
    elif pretrained:
        model = zoo.get_model(plan.name, weights="DEFAULT", **plan.arguments)
        if classes:
            random = _transplant_heads(
                model, zoo.get_model(plan.name, weights=None, **classes, **plan.arguments)
            )
    else:
        model = zoo.get_model(plan.name, weights=None, **classes, **plan.arguments)
    model.pretrained_cfg = IMAGENET  # read by normalization; timm's networks carry the same
    return model, random


def _transplant_heads(model: nn.Module, donor: nn.Module) -> tuple[str, ...]:
    """Replace the layers whose number of classes differs by those of another network; return their top-level parts."""
    replaced = []
    for name, module in list(model.named_modules()):
        shapes = [tuple(parameter.shape) for parameter in module.parameters(recurse=False)]
        other = donor.get_submodule(name) if shapes else module
        if shapes != [tuple(parameter.shape) for parameter in other.parameters(recurse=False)]:
            model.set_submodule(name, other)
            replaced.append(name.partition(".")[0])
    return tuple(dict.fromkeys(replaced))


def _build_imported(plan: Plan, pretrained: bool) -> nn.Module:
    """Call the user's function; the module's own directory of work is importable, as under ``python -m``."""
    import torch

    if pretrained:
        raise ModelError(
            f"{plan.spec}: a function has no imagenet weights; give a file, or none to keep its own"
        )
    path, _, attribute = plan.name.partition(":")
    sys.path.insert(0, str(Path.cwd()))
    try:
        model = _find_function(plan, path, attribute)(**plan.arguments)
    finally:
        sys.path.remove(str(Path.cwd()))
    if not isinstance(model, torch.nn.Module):
        raise ModelError(f"{plan.spec}: returned {type(model).__name__}, not a torch.nn.Module")
    return model


def _find_function(plan: Plan, path: str, attribute: str) -> Callable[..., Any]:
    module = _import(plan, path)
    try:
        function: Callable[..., Any] = operator.attrgetter(attribute)(module)
    except AttributeError as error:
        names = [name for name, item in vars(module).items() if callable(item) and not name.startswith("_")]
        raise ModelError(f"{plan.spec}: {path} has no {attribute!r}; {nearest(attribute, names)}") from error
    return function


def _import(plan: Plan, path: str) -> ModuleType:
    try:
        return importlib.import_module(path)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{path}.".startswith(f"{error.name}."):
            raise
        raise ModelError(
            f"{plan.spec}: {path!r} is neither a library nor a module that can be imported;"
            f" {nearest(path, [*_LIBRARIES, 'package.module:function'])}"
        ) from error


@dataclass(frozen=True)
class _Library:
    """How to build the networks of a library, and the arguments of its builders that evenslice sets."""

    package: str
    build: Callable[[Plan, bool], tuple[nn.Module, tuple[str, ...]]]
    reserved: frozenset[str]


_LIBRARIES: dict[str, _Library] = {
    "smp": _Library(
        "segmentation_models_pytorch",
        _build_smp,
        frozenset({"classes", "encoder_name", "encoder_weights", "in_channels"}),
    ),
    "timm": _Library(
        "timm", _build_timm, frozenset({"checkpoint_path", "in_chans", "num_classes", "pretrained"})
    ),
    "torchvision": _Library(
        "torchvision", _build_torchvision, frozenset({"num_classes", "weights", "weights_backbone"})
    ),
}
