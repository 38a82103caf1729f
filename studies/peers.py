"""studies/peers.csv: what other libraries do to a pretrained stem for five slices, beside evenslice.

    pip install '.[all]' --group peers
    python studies/peers.py

The functions that run are the libraries' own; the volume is the MNI152 template.
"""

from __future__ import annotations

import copy
import tempfile
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

import torch
from study_results import write_rows

import evenslice
from evenslice.volumes import mni152

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor, nn

RESULTS = Path(__file__).parent / "peers.csv"
NETWORK = "tf_efficientnet_lite0"
STEM = "encoder.model.conv_stem"
SLICES = 5
SAMPLING = evenslice.Sampling(tile=(192, 192), min_windows=24, max_windows=24)


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
    network: nn.Module = smp.Unet(
        f"tu-{NETWORK}", encoder_weights=True, in_channels=slices, classes=2, pretrained_cfg_overlay=source
    )
    return network


def peer_rules(model: nn.Module, weights: Path) -> dict[str, Callable[[int], Tensor]]:
    """Return the rule of each library, which makes the new weight (filters, N, ky, kx) of the stem for N slices.

    Args:
        model: the U-Net for three colours, with its pretrained weights.
        weights: those of the encoder as a file, under timm's names.
    """
    return {
        "timm": partial(timm_stem, weights),
        "smp": lambda slices: _weight(_smp_network(weights, slices).get_submodule(STEM)),
        "fastai": partial(fastai_stem, model),
        "MONAI": partial(monai_stem, model),
    }


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


def gray_error(weight: Tensor, colours: Tensor) -> float:
    """Return the difference of a stem's responses to a gray image, given as slices and given as colours, of the latter.

    A gray image meets the sum of the kernels (filters, N, ky, kx) over N; sizes are norms over filters and taps.
    """
    usual = colours.sum(1)
    return float((weight.sum(1) - usual).norm() / usual.norm())


def row(name: str, network: nn.Module, colours: Tensor) -> dict[str, str]:
    """Measure a network for five slices, and return its row of the CSV."""
    audit = evenslice.audit(network, mni152(), slices=SLICES, sampling=SAMPLING)
    print(f"{name}: {audit!r}", flush=True)
    return {
        "first_layer": name,
        "mirror_error": size(audit.statistics.mirror_error.estimate),
        "gray_error": size(gray_error(_weight(network.get_submodule(STEM)), colours)),
        "shares": " ".join(f"{share.estimate:.3f}" for share in audit.shares),
    }


def size(error: float) -> str:
    """Write an error with two figures, which is what it is good for."""
    return f"{error:.2f}" if 0.01 <= error < 0.995 else f"{error:.2g}"


def main() -> None:
    """Measure all, and write the CSV."""
    with tempfile.TemporaryDirectory() as scratch:
        model, weights = build(Path(scratch))
        colours, rows = _weight(model.get_submodule(STEM)), []
        for name, rule in peer_rules(model, weights).items():
            changed = copy.deepcopy(model)
            layer: Any = changed.get_submodule(STEM)
            layer.weight, layer.in_channels = torch.nn.Parameter(rule(SLICES)), SLICES
            rows.append(row(name, changed, colours))
        evenslice.neutralize(model, SLICES, strategy="uniform")
        rows.append(row("uniform", model, colours))
    write_rows(RESULTS, rows, rows[0])


if __name__ == "__main__":
    main()
