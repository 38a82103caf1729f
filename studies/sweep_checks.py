"""One network of the sweep: built with unequal random weights, neutralized or symmetrized, its promise checked.

Run as a script, it takes requests from standard input and answers on standard output, one JSON document a line; see
``sweep.py``.
"""

from __future__ import annotations

import copy
import gc
import json
import os
import resource
import sys
import time
import warnings
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

import evenslice
from evenslice import EvensliceError
from evenslice.networks.inputs import input_sizes
from evenslice.networks.models import build_model
from evenslice.networks.outputs import logits
from evenslice.neutralizing.stems import find_stems

if TYPE_CHECKING:
    from collections.abc import Iterator

    Row = dict[str, Any]
    """A network's row of the CSV, by column; a result is its part for one number of slices, less the number."""

SLICES = (3, 5)
ORDER, GRAY = 1e-5, 1e-4  # what the errors may be at most
BROKEN = ("the network breaks what the strategy", "the network is not symmetric")  # rounding may be to blame
NO_PLACE = "so the strategy 'twin' has no "  # single activation to average behind
SMALL = 64  # pixels, of the image where a network can be built for it
REFUSES = "the network refuses images of"  # of any size, as the library built it
NO_MEMORY = "allocate memory"
TINY = 0.01  # a scale that hides what it scales from a check
COLOURS = (0.5, 2.0, 0.2)  # by what the colours of a stem are scaled, so that they are far from equal


@dataclass(frozen=True)
class Limits:
    """What is too large to run here.

    Attributes:
        parameters: in millions.
        work: millions of parameters at 224 x 224 pixels, or the more the fewer pixels the image has.
    """

    parameters: float = 400.0
    work: float = 200.0

    def exceeded(self, millions: float, size: tuple[int, int] | None) -> bool:
        """Say whether a network is too large for the image that it insists on."""
        pixels = 1.0 if size is None else max(1.0, size[0] * size[1] / 224**2)
        return millions > self.parameters or (millions * pixels > self.work and size is not None)


def check_network(library: str, name: str, spec: str, limits: Limits, way: str = "uniform") -> Row:
    """Build one network, change it for every number of slices in one of `sweep.WAYS`, and return its row."""
    row: Row = {"library": library, "name": name, "spec": spec, "checked": "network"}
    try:
        spec, sketch = _smallest(spec)
        row["spec"] = spec
        if sketch is not None:
            row["parameters"] = _millions(sketch)
            if limits.exceeded(row["parameters"], input_sizes(sketch)[0]):
                if way == "symmetrize":  # which has to run all of it
                    size = f"{row['parameters']:.0f} million parameters"
                    return row | {"unbuilt": f"too large to run here, with {size}"}
                stems = _Sketched(sketch)
                results = {slices: _result(stems, slices, way, check="stems") for slices in SLICES}
                return row | {"checked": "stem"} | _columns(results)
        network = _Network(spec)
        row["parameters"] = _millions(network.fresh())
    except _Refused as refused:
        return row | {"unbuilt": str(refused)}
    results = {slices: _result(network, slices, way) for slices in reversed(SLICES)}
    errors = [str(result.get("error", "")) for result in results.values()]
    if all(error.startswith(REFUSES) for error in errors) and not any(NO_MEMORY in error for error in errors):
        return row | {"unbuilt": errors[0]}
    return row | {"pixels": network.pixels} | _columns(results)


def _columns(results: dict[int, Row]) -> Row:
    return {f"{name}_{slices}": value for slices, found in results.items() for name, value in found.items()}


def _millions(model: nn.Module) -> float:
    return sum(parameter.numel() for parameter in model.parameters()) / 1e6


class _Refused(Exception):  # noqa: N818  # no error of ours: the library does not build what it lists
    pass


def _smallest(spec: str) -> tuple[str, nn.Module | None]:
    """Return the specification for as small an image as the network can be built for, and its network without weights.

    The latter is None where a network cannot be built on the meta device.
    """
    sketch = _sketch(spec)
    stated = None if sketch is None else input_sizes(sketch)[0]
    argument = {"timm": "img_size", "torchvision": "image_size"}.get(spec.partition(":")[0])
    if stated is None or argument is None or "?" in spec:
        return spec, sketch
    smaller = f"{spec}?{argument}={SMALL}"
    other = _sketch(smaller)
    if other is not None and _runs(other):
        return smaller, other
    return spec, sketch


def _sketch(spec: str) -> nn.Module | None:
    try:
        with torch.device("meta"):
            return build_model(spec, "none")[0]
    except Exception:  # noqa: BLE001  # libraries raise anything
        return None


def _runs(sketch: nn.Module) -> bool:
    try:
        with torch.no_grad():
            logits(sketch(torch.empty(1, 3, SMALL, SMALL, device="meta")))
    except Exception:  # noqa: BLE001
        return False
    return True


class _Network:
    """A network that is built once, and copied for each attempt but for what no attempt changes."""

    def __init__(self, spec: str) -> None:
        self.spec = spec
        self.pixels: int | None = None
        self._model: nn.Module | None = None
        self._versions: dict[int, int] = {}

    def fresh(self) -> nn.Module:
        """Return the network as it was built."""
        if self._model is None or self._versions != _versions(self._model):
            self._model = None
            self._model = _built(self.spec)
            self._versions = _versions(self._model)
        shared = {id(tensor): tensor for tensor in _tensors(self._model) if tensor.ndim > 1}
        try:
            return copy.deepcopy(self._model, dict(shared))
        except (RuntimeError, TypeError):  # it cannot be copied
            model, self._model = self._model, None
            return model


def _tensors(model: nn.Module) -> Iterator[Tensor]:
    return chain(model.parameters(), model.buffers())


def _versions(model: nn.Module) -> dict[int, int]:
    """Return how often each tensor was changed in place."""
    return {id(tensor): tensor._version for tensor in _tensors(model)}  # noqa: SLF001  # public in all but name


def _built(spec: str) -> nn.Module:
    try:
        model, _ = build_model(spec, "none")
    except EvensliceError as error:
        raise _Refused(_line(error)) from error
    return unequal(model)


def unequal(model: nn.Module, seed: int = 0) -> nn.Module:
    """Make a network's colours and statistics as unequal as training does, in place, and its zeros alive."""
    generator = torch.Generator().manual_seed(seed)
    colours = torch.tensor(COLOURS)[:, None, None]
    with torch.no_grad():
        for module in model.modules():
            mean, variance = getattr(module, "running_mean", None), getattr(module, "running_var", None)
            if isinstance(mean, Tensor) and isinstance(variance, Tensor) and not mean.is_meta:
                mean.copy_(torch.randn(mean.shape, generator=generator) * 0.1)
                variance.copy_(torch.rand(variance.shape, generator=generator) + 0.5)
            weight = getattr(module, "weight", None)
            if isinstance(module, nn.Conv2d) and isinstance(weight, nn.Parameter) and weight.shape[1] == 3:
                weight.mul_(colours.to(weight))
        # A head that starts as zeros, or branches that are scaled to almost nothing, would make any promise hold.
        for name, parameter in model.named_parameters():
            if parameter.is_meta:
                continue
            if parameter.ndim > 1 and not parameter.any():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.02)
            elif _is_tiny_scale(name, parameter):
                parameter.fill_(1)
    return model


def _is_tiny_scale(name: str, parameter: nn.Parameter) -> bool:
    """Say whether a parameter scales a branch of a fresh network to almost nothing, such as the gamma of a LayerScale."""
    shift = "bias" in name.rpartition(".")[2] or name.endswith("beta")
    return not shift and parameter.numel() > 0 and bool(0 <= parameter.min() == parameter.max() <= TINY)


def _result(network: _Network, slices: int, way: str = "uniform", **options: Any) -> Row:
    started = time.process_time()
    result = _attempt(network, slices, way, **options)
    if way == "uniform" and result["outcome"] == "failed":
        mixed = _attempt(network, slices, "mixer", **options)
        result |= {"mixer": mixed["outcome"], "mixer_error": mixed["error"]}
    return result | {"seconds": time.process_time() - started}


def _attempt(network: _Network, slices: int, way: str, **options: Any) -> Row:
    """Change a network; where it breaks its promise, once more in double precision, and once more settled.

    There are networks that make a rounding error a thousand times as large, random ones above all.
    """
    result: Row = {}
    for precision, settled in ((torch.float32, False), (torch.float64, False), (torch.float64, True)):
        try:
            record, note = _changed(network, slices, way, precision, settled=settled, **options)
        except _NotTried as error:
            return {"outcome": "", "error": str(error)}
        except EvensliceError as error:
            no_place = way == "twin" and NO_PLACE in str(error)
            result = {"outcome": "no place" if no_place else "failed", "error": _line(error)}
            if not result["error"].startswith(BROKEN):
                return result
        except Exception as error:  # noqa: BLE001  # what is no ModelError is a finding too
            return {"outcome": "failed", "error": _line(error)}
        else:
            name = str(precision).removeprefix("torch.") + (", settled" if settled else "")
            result = _judged(record, way) | {"precision": name, "note": note}
            if result["outcome"] == "ok":
                return result
    return result


def _changed(  # what to do, and how precisely
    network: _Network, slices: int, way: str, precision: torch.dtype, *, settled: bool, **options: Any
) -> tuple[Any, str]:
    """Neutralize or symmetrize a fresh copy of a network; return its record, and a note."""
    model = network.fresh().to(precision)
    if settled and network.pixels is not None:
        _settle(model, network.pixels)
    sizes: list[int] = []
    handle = model.register_forward_pre_hook(
        lambda _, args: sizes.append(args[0].shape[-2]) if args else None
    )
    try:
        if way != "symmetrize":
            return evenslice.neutralize(model, slices, strategy=way, **options), ""
        return _symmetrized(model, slices, settled=settled)
    finally:
        handle.remove()
        network.pixels = sizes[-1] if sizes else network.pixels


def _symmetrized(model: nn.Module, slices: int, *, settled: bool) -> tuple[Any, str]:
    """Give a network its slices, and symmetrize it; where it cannot be given any, as it was built, for as many as it has."""
    note = ""
    try:
        evenslice.neutralize(model, slices, strategy="pretrained")
    except EvensliceError as error:
        if _line(error).startswith(REFUSES) or (_line(error).startswith(BROKEN) and not settled):
            raise
        note = f"as it was built, since neutralize says: {_line(error)}"
        if slices != SLICES[0]:
            raise _NotTried(note.replace("as it was built", "only for 3 slices")) from error
    return evenslice.record_of(evenslice.symmetrize(model)), note


class _NotTried(Exception):  # noqa: N818  # no error: the network has no such number of slices
    pass


def _settle(model: nn.Module, pixels: int) -> None:
    """Give batch norms the statistics of what they meet, as training does; with others, deep networks are chaotic."""
    weight = next(model.parameters())
    image = torch.rand(2, 3, pixels, pixels, generator=torch.Generator().manual_seed(0)).to(weight.dtype)
    with suppress(Exception):  # a detector wants targets as well; it is then checked as it stands
        update_bn([image], model)


def _judged(record: Any, way: str = "uniform") -> Row:
    errors = {name: getattr(record, name) for name in ("mirror_error", "permutation_error", "gray_error")}
    order = errors["mirror_error" if way in {"twin", "symmetrize"} else "permutation_error"]
    kept = order <= ORDER and record.gray_error <= GRAY
    failed = {"outcome": "failed", "error": "the promise holds only to the network's own rounding"}
    return {"outcome": "ok", "error": "", **errors} | ({} if kept else failed)


class _Sketched(_Network):
    """A network that lies on the meta device but for what its stems need."""

    def __init__(self, sketch: nn.Module) -> None:
        super().__init__("")
        self._sketch = sketch

    def fresh(self) -> nn.Module:
        """Return a copy whose stems, and the batch norms at them, have weights."""
        model = copy.deepcopy(self._sketch)
        found: Any = find_stems(model)
        names = dict(model.named_modules())
        needed = [getattr(stem, "reader", stem.module) for stem in found.items]
        needed += [stem.norm for stem in found.items if stem.norm is not None]
        needed += [names[name] for name in getattr(found, "norms", ())]
        for module in needed:
            _materialize(module)
        return unequal(model)


def _materialize(module: nn.Module) -> None:
    module.to_empty(device="cpu")
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for tensor in _tensors(module):
            if tensor.is_floating_point():
                tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.1 + (tensor.ndim == 1))
            else:
                tensor.zero_()


def _line(error: BaseException) -> str:
    """Return an error as one line; of one that evenslice did not raise on purpose, its type as well."""
    text = " ".join(str(error).split())[:500]
    return text if isinstance(error, EvensliceError) else f"{type(error).__name__}: {text}"


def main() -> None:
    """Answer requests until there are no more."""
    memory = int(sys.argv[1]) * 2**30
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # libraries print; the answers go where nobody else writes
    for line in sys.stdin:
        request = json.loads(line)
        library, name, spec = request["network"]
        row = check_network(library, name, spec, Limits(*request["limits"]), request["way"])
        gc.collect()
        print(json.dumps(row), file=answers, flush=True)


if __name__ == "__main__":
    main()
