"""One network of the sweep: built with unequal random weights, neutralized or symmetrized, its promise checked."""

from __future__ import annotations

import json
import math
import resource
import sys
import time
import warnings
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from sweep import SLICES
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

import evenslice
from evenslice import EvensliceError

# What is checked is a network as its library builds it, which no public name returns.
from evenslice.inference import ReadyNetwork
from evenslice.inference.engine import EngineNetwork
from evenslice.inference.ready_networks import WholeNetwork
from evenslice.networks import build_model, input_sizes

if TYPE_CHECKING:
    from collections.abc import Callable

    Row = dict[str, Any]
    """A network's row of the CSV, by column; a result is its part for one number of slices, less the number."""

ORDER, GRAY = 1e-5, 1e-4  # what the errors may be at most
ROUNDING = (
    *("the network breaks what the strategy", "the network is not symmetric"),
    "the promise holds only to the network's own rounding",
)
"""How errors begin for which rounding may be to blame."""
NO_PLACE = "so the strategy 'twin' has no "  # single activation to average behind
SMALL = 64  # pixels, of the image where a network can be built for it
LARGER = 224  # which all networks take that are not built for one size
REFUSES = "the network refuses images of"  # of any size, as the library built it
NO_MEMORY = "allocate memory"
TINY = 0.01  # a scale that hides what it scales from a check
COLOURS = (0.5, 2.0, 0.2)  # by what the colours of a stem are scaled, so that they are far from equal
MEMORY = 10 * 2**30  # bytes of address space of a process
LARGEST = 400.0  # million parameters of a network that is run
WORK = 200.0  # the same for an image of 224 x 224 pixels; the fewer, the larger the only image that the network takes


def check_network(library: str, name: str, spec: str, way: str = "uniform") -> Row:
    """Build one network, change it for every number of slices in one of `sweep.RESULTS`, and return its row."""
    spec, sketch = _smallest(spec)
    row: Row = {"library": library, "name": name, "spec": spec}
    if sketch is not None and _is_too_large(sketch):
        millions = row["parameters"] = _millions(sketch)
        return row | {"unbuilt": f"too large to run here, with {millions:.0f} million parameters"}
    try:
        built = _built(spec)
    except EvensliceError as error:
        return row | {"unbuilt": _line(error)}
    row["parameters"] = _millions(built)
    if way == "engine":
        return row | _columns({SLICES[0]: _converted(built, SMALL if spec.endswith(f"={SMALL}") else LARGER)})

    results = {n: _result(partial(_built, spec), n, way) for n in SLICES}
    errors = [result["error"] for result in results.values()]
    if all(error.startswith(REFUSES) for error in errors) and not any(NO_MEMORY in error for error in errors):
        return row | {"unbuilt": errors[0]}
    return row | _columns(results)


def _converted(built: nn.Module, side: int) -> Row:
    """Run a network in OpenVINO and in PyTorch, on images of about this side; the note is the relative difference."""
    started, (only, multiple) = time.process_time(), input_sizes(built)
    sizes = only if only and side != SMALL else (-(-side // multiple) * multiple,) * 2
    network, error, difference = ReadyNetwork(built, slices=3, device="cpu"), "", math.inf
    windows = torch.rand((2, 3, *sizes), generator=torch.Generator().manual_seed(0))
    whole = WholeNetwork(built, *(tuple(network.scaling[name]) for name in ("mean", "std")))
    with torch.no_grad():
        before = whole(windows)
    try:
        found = EngineNetwork.of(network, windows[:1])(windows)
        difference = float((found - before).abs().max() / before.abs().max())
    except Exception as failed:  # noqa: BLE001  # which is a finding
        error = _line(failed)
    spent = time.process_time() - started
    row = {"outcome": "ok" if difference <= GRAY else "PyTorch", "error": error, "note": f"{difference:.1e}"}
    return row | {"seconds": spent, "pixels": sizes[0]}


def _columns(results: dict[int, Row]) -> Row:
    pixels = [found.pop("pixels") for found in results.values()]
    cells = {f"{name}_{n}": value for n, found in results.items() for name, value in found.items()}
    return {"pixels": pixels[0]} | cells


def _millions(model: nn.Module) -> float:
    return sum(parameter.numel() for parameter in model.parameters()) / 1e6


def _is_too_large(sketch: nn.Module) -> bool:
    millions, size = _millions(sketch), input_sizes(sketch)[0]
    pixels = 1.0 if size is None else max(1.0, size[0] * size[1] / 224**2)
    return millions > LARGEST or (millions * pixels > WORK and size is not None)


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
    if other is not None:
        with suppress(Exception), torch.no_grad():  # libraries raise anything
            other(torch.empty(1, 3, SMALL, SMALL, device="meta"))
            return smaller, other
    return spec, sketch


def _sketch(spec: str) -> nn.Module | None:
    with suppress(Exception), torch.device("meta"):
        return build_model(spec, "none").model
    return None


def _built(spec: str) -> nn.Module:
    return unequal(build_model(spec, "none").model)


def unequal(model: nn.Module) -> nn.Module:
    """Make a network's colours and statistics as unequal as training does, in place, and its zeros alive."""
    generator = torch.Generator().manual_seed(0)
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


def _result(fresh: Callable[[], nn.Module], slices: int, way: str) -> Row:
    started = time.process_time()
    result = _attempt(fresh, slices, way)
    if way == "uniform" and result["outcome"] == "failed":
        mixed = _attempt(fresh, slices, "mixer")
        result |= {"mixer": mixed["outcome"], "mixer_error": mixed["error"]}
    return result | {"seconds": time.process_time() - started}


def _attempt(fresh: Callable[[], nn.Module], slices: int, way: str) -> Row:
    """Change a network; where it breaks its promise, once more in double precision, and once more settled.

    There are networks that make a rounding error a thousand times as large, random ones above all.
    """
    sizes, result = list[int](), dict[str, Any]()
    for precision, settled in ((torch.float32, False), (torch.float64, False), (torch.float64, True)):
        try:
            model = fresh().to(precision)
            if settled and sizes:
                _settle(model, sizes[-1])
            hook = lambda _, given: sizes.extend(image.shape[-2] for image in given[:1])  # noqa: E731
            with model.register_forward_pre_hook(hook):
                record, note = _changed(model, slices, way, settled=settled)
        except Exception as error:  # noqa: BLE001  # what is no ModelError is a finding too
            outcome = "no place" if way == "twin" and NO_PLACE in str(error) else "failed"
            result = {"outcome": outcome, "error": _line(error)}
        else:
            name = str(precision).removeprefix("torch.") + (", settled" if settled else "")
            result = _judged(record, way, name, note)
        if result["outcome"] != "failed" or not result["error"].startswith(ROUNDING):
            break
    return result | {"pixels": sizes[-1] if sizes else None}


def _changed(model: nn.Module, slices: int, way: str, *, settled: bool) -> tuple[Any, str]:
    """Neutralize or symmetrize a network; return its record, and a note.

    One that cannot be given any slices is symmetrized as it was built, for as many as it has; the record is None for others.
    """
    if way != "symmetrize":
        return evenslice.neutralize(model, slices, strategy=way), ""
    note = ""
    try:
        evenslice.neutralize(model, slices, strategy="pretrained")
    except EvensliceError as error:
        if _line(error).startswith(REFUSES) or (_line(error).startswith(ROUNDING) and not settled):
            raise
        if slices != SLICES[0]:
            return None, f"only for 3 slices, since neutralize says: {_line(error)}"
        note = f"as it was built, since neutralize says: {_line(error)}"
    return evenslice.record_of(evenslice.symmetrize(model)), note


def _settle(model: nn.Module, pixels: int) -> None:
    """Give batch norms the statistics of what they meet, as training does; with others, deep networks are chaotic."""
    weight = next(model.parameters())
    image = torch.rand(2, 3, pixels, pixels, generator=torch.Generator().manual_seed(0)).to(weight.dtype)
    with suppress(Exception):  # a detector wants targets as well; it is then checked as it stands
        update_bn([image], model)


def _judged(record: Any, way: str, precision: str, note: str) -> Row:
    """Return the result for a network that was changed; without a record, it could not be."""
    if record is None:
        return {"outcome": "", "error": note}
    errors = {name: getattr(record, name) for name in ("mirror_error", "permutation_error", "gray_error")}
    order = errors["mirror_error" if way in {"twin", "symmetrize"} else "permutation_error"]
    kept = order <= ORDER and record.gray_error <= GRAY
    outcome = {"outcome": "ok", "error": ""} if kept else {"outcome": "failed", "error": ROUNDING[-1]}
    return {**outcome, **errors, "precision": precision, "note": note}


def _line(error: BaseException) -> str:
    """Return an error as one line; of one that evenslice did not raise on purpose, its type as well."""
    text = " ".join(str(error).split())[:500]
    return text if isinstance(error, EvensliceError) else f"{type(error).__name__}: {text}"


def main() -> None:
    """Check the network that the command line names, and print its row."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    print(f"\n{json.dumps(check_network(*sys.argv[1:]))}")


if __name__ == "__main__":
    main()
