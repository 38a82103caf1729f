"""Time of neutralizing, compared with forward passes of the same network.

    python benchmarks/neutralize_speed.py [--slices 5] [--rounds 5]

One line for each network: the seconds of one core for `evenslice.neutralize`, those for two forward passes of the batch
that it gives the network plus 0.2 s, and their ratio, all medians over alternating rounds. The ratio should be at
most 1.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from typing import TYPE_CHECKING

import segmentation_models_pytorch as smp
import timm
import torch
from torchvision.models import resnet50

import evenslice
from evenslice.neutralizing.verification import IMAGES

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn

NETWORKS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "smp Unet/tu-tf_efficientnet_lite0, 64 px": (
        lambda: smp.Unet("tu-tf_efficientnet_lite0", encoder_weights=None),
        64,
    ),
    "smp Unet/tu-tf_efficientnet_lite0, 256 px": (
        lambda: smp.Unet("tu-tf_efficientnet_lite0", encoder_weights=None),
        256,
    ),
    "torchvision resnet50, 224 px": (lambda: resnet50(weights=None), 224),
    "timm convnext_tiny, 224 px": (lambda: timm.create_model("convnext_tiny"), 224),
    "timm vit_small_patch16_224": (lambda: timm.create_model("vit_small_patch16_224"), 224),
}


def passes_seconds(model: nn.Module, size: int) -> float:
    """Time two forward passes of the batch that `neutralize` gives a network."""
    images = torch.rand(IMAGES, 3, size, size)
    with torch.no_grad():
        start = time.process_time()
        model(images)
        model(images)
        return time.process_time() - start


def neutralize_seconds(model: nn.Module, slices: int, size: int) -> float:
    """Time neutralizing a copy of a network."""
    network = copy.deepcopy(model)
    start = time.process_time()
    evenslice.neutralize(network, slices, size=(size, size))
    return time.process_time() - start


def main() -> None:
    """Print the ratios."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--slices", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    for name, (build, size) in NETWORKS.items():
        torch.manual_seed(0)
        model = build().eval()
        passes_seconds(model, size)  # the first passes of a process are slower
        rounds = [
            (neutralize_seconds(model, options.slices, size), passes_seconds(model, size) + 0.2)
            for _ in range(options.rounds)
        ]
        spent, allowed = (statistics.median(seconds) for seconds in zip(*rounds, strict=True))
        ratio = statistics.median(one / other for one, other in rounds)
        print(f"{name}: {spent:.2f} s of {allowed:.2f} s, ratio {ratio:.2f}", flush=True)


if __name__ == "__main__":
    main()
