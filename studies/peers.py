"""studies/peers.csv: what other libraries do to a pretrained stem for N slices, beside evenslice.

    pip install '.[all]' --group peers
    python studies/peers.py --shared FOLDER     # FOLDER/data/lucchi_pp/test_image.tif; without it, a template of MRI

The functions that run are the libraries' own.
"""

from __future__ import annotations

import argparse
import copy
import tempfile
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

import numpy as np
import torch
from survey import write_csv

import evenslice
from evenslice.volumes import mni152

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from torch import Tensor, nn

    Rule = tuple[str, Callable[[int], Tensor]]
    """A library, and the new weight (filters, N, ky, kx) of the stem that it makes for N slices."""

RESULTS = Path(__file__).parent / "peers.csv"
NETWORK = "tf_efficientnet_lite0"
STEM = "encoder.model.conv_stem"
HALF = 0.5  # mean and std of that network's input
SLICES = (3, 5, 7)
STRATEGIES = ("uniform", "center", "profile", "mirror", "shuffle", "equalize")
WINDOWS, COMPARED, TILE = 24, 8, (256, 256)


def build(scratch: Path) -> tuple[nn.Module, Path]:
    """Build the U-Net of all rows, its decoder drawn under seed 0, and write its encoder's weights to a file."""
    from safetensors.torch import save_file

    path = scratch / "weights.safetensors"
    save_file(evenslice.load_network(f"timm:{NETWORK}", "imagenet").model.state_dict(), path)
    torch.manual_seed(0)
    return _smp_network(path, 3).eval(), path


def _smp_network(weights: Path, slices: int) -> nn.Module:
    import segmentation_models_pytorch as smp

    source = {"file": str(weights)}  # in the place of timm's hub
    name = f"tu-{NETWORK}"
    network: nn.Module = smp.Unet(
        name, encoder_weights=True, in_channels=slices, classes=2, pretrained_cfg_overlay=source
    )
    return network


def peer_rules(model: nn.Module, weights: Path) -> list[Rule]:
    """Return the rules of other libraries.

    Args:
        model: the U-Net for three colours, with its pretrained weights.
        weights: those of the encoder as a file, under timm's names.
    """
    return [
        ("timm", partial(timm_stem, weights)),
        ("smp", lambda slices: _weight(_smp_network(weights, slices).get_submodule(STEM))),
        ("fastai", partial(fastai_stem, model)),
        ("MONAI", partial(monai_stem, model)),
    ]


def timm_stem(weights: Path, slices: int) -> Tensor:
    """Let timm load its network for some slices, as it does for ``in_chans``."""
    import timm

    source = {"file": str(weights)}
    network = timm.create_model(NETWORK, pretrained=True, pretrained_cfg_overlay=source, in_chans=slices)
    return _weight(network.conv_stem)


def fastai_stem(model: nn.Module, slices: int) -> Tensor:
    """Apply fastai's rule, which ``n_in`` of its learners calls."""
    from fastai.vision.learner import _update_first_layer

    changed = copy.deepcopy(model)
    _update_first_layer(changed, slices, pretrained=True)
    return _weight(changed.get_submodule(STEM))


def monai_stem(model: nn.Module, slices: int) -> Tensor:
    """Let MONAI load pretrained weights into an EfficientNet for some slices, with our stem among them.

    Its EfficientNet-B0 has a stem of the same shape; of the checkpoint, MONAI keeps what has the shape of its network.
    """
    from monai.networks.nets import EfficientNetBN, efficientnet

    checkpoint = EfficientNetBN("efficientnet-b0", pretrained=False).state_dict()
    checkpoint["_conv_stem.weight"] = _weight(model.get_submodule(STEM))
    torch.manual_seed(0)
    network = EfficientNetBN("efficientnet-b0", pretrained=False, in_channels=slices)
    with mock.patch.object(efficientnet.model_zoo, "load_url", return_value=checkpoint):
        efficientnet._load_state_dict(network, "efficientnet-b0", False, False)  # noqa: SLF001  # the rule itself
    return _weight(network._conv_stem)  # noqa: SLF001


def _weight(layer: Any) -> Tensor:
    weight: Tensor = layer.weight.detach().clone()
    return weight


def candidates(model: nn.Module, rules: Sequence[Rule], slices: int) -> Iterator[tuple[str, nn.Module]]:
    """Yield the networks for some slices: those of the libraries, equal ones once, then those of evenslice."""
    stems: list[tuple[list[str], Tensor]] = []
    for library, rule in rules:
        kernel = rule(slices)
        same = next((names for names, other in stems if torch.equal(kernel, other)), None)
        if same is None:
            stems.append(([library], kernel))
        elif library not in same:
            same.append(library)
    for names, kernel in stems:
        changed = copy.deepcopy(model)
        layer: Any = changed.get_submodule(STEM)
        layer.weight, layer.in_channels = torch.nn.Parameter(kernel.clone()), slices
        yield ", ".join(names), changed
    for strategy in STRATEGIES:
        changed = copy.deepcopy(model)
        evenslice.neutralize(changed, slices, strategy=strategy)
        yield strategy, changed


def read_windows(volume: evenslice.Volume, slices: int) -> Tensor:
    """Read a few windows (windows, N, y, x) in 0..1 of the middle of planes that are evenly spread."""
    voxels = volume[:].astype(np.float32)
    low, high = np.percentile(voxels, (0.5, 99.5))
    y, x = (
        slice(max(length - side, 0) // 2, None) for length, side in zip(voxels.shape[1:], TILE, strict=True)
    )
    first = np.linspace(0, len(voxels) - slices, COMPARED).astype(int)
    found = np.stack([voxels[z : z + slices, y, x][:, : TILE[0], : TILE[1]] for z in first])
    return torch.from_numpy(((found - low) / (high - low)).clip(0, 1).astype(np.float32))


@torch.no_grad()
def gray_error(network: nn.Module, reference: nn.Module, windows: Tensor) -> float:
    """Return how much the outputs for a gray image differ, given as slices and given as colours; the mean over windows.

    Args:
        network: takes N slices.
        reference: takes 3 colours.
        windows: (windows, N, y, x); the middle slice of each is the gray image.
    """
    slices = windows.shape[1]
    gray = windows[:, slices // 2 : slices // 2 + 1]
    given = network(gray.expand(-1, slices, -1, -1))
    usual = reference(gray.expand(-1, 3, -1, -1))
    largest = torch.maximum(usual.abs(), given.abs()).flatten(1).amax(1)
    return float(((usual - given).abs().flatten(1).amax(1) / largest).mean())


def rows(
    model: nn.Module, rules: Sequence[Rule], volume: evenslice.Volume, slices: int
) -> Iterator[dict[str, str]]:
    """Measure every network for some slices, and yield a row of the CSV for each."""
    windows = (read_windows(volume, slices) - HALF) / HALF
    sampling = evenslice.Sampling(tile=TILE, min_windows=WINDOWS, max_windows=WINDOWS)
    for name, network in candidates(model, rules, slices):
        audit = evenslice.audit(network, volume, slices=slices, sampling=sampling)
        print(f"N = {slices}: {name}: {audit!r}", flush=True)
        yield {
            "slices": str(slices),
            "first_layer": name,
            "mirror_error": size(audit.statistics.mirror_error.estimate),
            "gray_error": size(gray_error(network, model, windows)),
            "shares": " ".join(f"{share.estimate:.3f}" for share in audit.shares),
            "directional_bias": bias(audit.statistics.directional_bias.estimate),
            "pair_biases": " ".join(bias(pair.estimate) for pair in audit.saliency),
        }


def size(error: float) -> str:
    """Write an error with two figures, which is what it is good for."""
    return f"{error:.2f}" if 0.01 <= error < 0.995 else f"{error:.2g}"


def bias(value: float) -> str:
    """Write a bias; what rounding leaves of none is 0."""
    return f"{value:.3g}" if abs(value) >= 5e-4 else "0"


def main() -> None:
    """Measure all, and write the CSV."""
    parser = argparse.ArgumentParser(description="Measure what other libraries do to a pretrained stem.")
    parser.add_argument("--shared", type=Path, help="folder that holds data; without it, an MRI template")
    parser.add_argument("--out", type=Path, default=RESULTS, help="the CSV")
    options = parser.parse_args()
    crop = options.shared and options.shared / "data" / "lucchi_pp" / "test_image.tif"
    volume = evenslice.open_volume(crop) if crop else mni152()
    with tempfile.TemporaryDirectory() as scratch:
        model, weights = build(Path(scratch))
        rules = peer_rules(model, weights)
        write_csv(options.out, [row for slices in SLICES for row in rows(model, rules, volume, slices)])


if __name__ == "__main__":
    main()
