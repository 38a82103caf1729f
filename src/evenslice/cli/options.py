"""The options that several commands share, each written once, and the groups in which a command takes them."""

# Typer and `grouped` read the annotations here and in the commands when they run, so they are not postponed.
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from evenslice.cli.parsing import (
    AxisEntry,
    check_seed,
    check_selection,
    parse_numbers,
    parse_region,
    parse_selection,
    parse_strategy,
    parse_values,
)
from evenslice.cli.printing import tell_untrained

if TYPE_CHECKING:
    from evenslice.inference import Segmenter
    from evenslice.volumes import Volume

STRATEGIES = (
    "pretrained", "uniform", "center", "profile", "mirror", "twin", "shuffle", "equalize", "mixer", "reinit", "random",
)  # fmt: skip
METHODS = (
    "gradient", "input_x_gradient", "integrated_gradients", "smoothgrad", "gradient_shap", "occlusion",
)  # fmt: skip
TARGETS = ("auto", "predicted", "labels", "sum")
TIES = ("mirror", "uniform")
OUTPUT = "output"
CUTS = (OUTPUT, "encoder")
PLANES = ("z", "y", "x")
OTHERS = ("error", "background")
INSTANCES = ("sparse", "dense")
DTYPES = ("auto", "bfloat16", "float16", "float32")

MODEL_HELP = (
    "Network: smp:DECODER/ENCODER, timm:NAME, torchvision:NAME, monai:NAME, transformers:NAME (a hub name, "
    "a folder or a model type), or package.module:function"
)
WEIGHTS_HELP = (
    "Weights: imagenet, none (random), a file (.safetensors, .pt, .pth, .ckpt, .bin), or an exported folder"
)
STRATEGY_HELP = (
    f"How colour kernels become slice kernels: {', '.join(STRATEGIES[1:])}, pretrained (the network as built), or the "
    "weights of a profile, such as 0.2,0.6,0.2"
)
REGION_HELP = "as start:stop along z, y and x, such as 0:16,:,100:612"
REPEAT_HELP = "With --run, give the function again if the run's network comes from one of yours"
VOLUME_HELP = "a file, a folder, file.h5:/path or an address (https://, s3://, gs://, az://)"


def _option(panel: str, text: str, *names: str, metavar: str = "", **more: Any) -> Any:
    """Return an option for a panel of the help; a flag needs its name, or Typer would add --no-NAME."""
    return typer.Option(*names, metavar=metavar, help=text, rich_help_panel=panel, **more)


network = partial(_option, "Network")
volume = partial(_option, "Volume")
measurement = partial(_option, "Measurement")
computing = partial(_option, "Computing")
output = partial(_option, "Output")


def strategy(more: str = "") -> Any:
    """Return the option of a strategy, a name or the weights of a profile, with more help."""
    return network(
        f"{STRATEGY_HELP}{more}.",
        metavar="S",
        parser=parse_strategy,
        autocompletion=lambda: STRATEGIES,
    )


Classes = Annotated[int | None, network("Output classes (default: as in the weights, else 2).", metavar="N")]
Tie = Annotated[
    str | None,
    network(
        "Tie the kernels so that training keeps the symmetry: mirror or uniform.",
        metavar="TIE",
        autocompletion=lambda: TIES,
    ),
]
Step = Annotated[
    int | None,
    network(
        "Take every n-th slice of the volume into a window (1: adjacent slices; default: that of the run or saved network, "
        "else 1).",
        metavar="N",
    ),
]
Seed = Annotated[int, computing("Random seed.", metavar="N", callback=check_seed)]
Device = Annotated[
    str,
    computing(
        "Device: auto (a CUDA GPU, else the CPU), cpu, cuda, or one GPU of several such as cuda:1.",
        metavar="DEVICE",
        autocompletion=lambda: ("auto", "cpu", "cuda"),
    ),
]
Json = Annotated[bool, output("Print the result as one JSON document.", "--json")]


@dataclass(frozen=True, kw_only=True)
class Window:
    """The windows that a network takes; fields are named as the arguments of ``load_network``."""

    slices: Annotated[
        int | None,
        network("Slices in a window, an odd number (default: the network's, usually 3).", metavar="N"),
    ] = None
    mean: Annotated[
        Sequence[float] | None,
        network(
            "Input mean used in training, on the scale 0..1 (default: what the network's library states for its pretrained "
            "weights, even with a file of your own; 0, and 1 for --std, if it states nothing, as for a network of your own). "
            "Give 0, and --std 1, if inputs were only scaled to 0..1.",
            metavar="M[,M,M]",
            parser=parse_numbers,
        ),
    ] = None
    std: Annotated[
        Sequence[float] | None,
        network(
            "Input standard deviation used in training (default: as for --mean).",
            metavar="S[,S,S]",
            parser=parse_numbers,
        ),
    ] = None


@dataclass(frozen=True, kw_only=True)
class Input(Window):
    """The input of a network, and how it treats it; fields are named as the arguments of ``load_network``."""

    symmetrize: Annotated[
        str | None,
        network(
            "Where to average over each window and its mirror: output (twice the passes; right for a trained network), "
            "encoder, or the name of a module (default: nowhere, or as in the saved network).",
            metavar="AT",
            autocompletion=lambda: CUTS,
        ),
    ] = None


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where a network comes from: a run, or a specification and weights."""

    run: Annotated[
        Path | None,
        network(
            "Folder of a finished evenslice train run. Give --run, or --model with --weights.", metavar="RUN"
        ),
    ] = None
    model: Annotated[str | None, network(f"{MODEL_HELP}. {REPEAT_HELP}.", metavar="SPEC")] = None
    weights: Annotated[str | None, network(f"{WEIGHTS_HELP}.", metavar="W")] = None

    def load(self, *groups: Any, **options: Any) -> "Segmenter":
        """Load the network with the options of these groups and further ones, as ``load_segmenter`` takes them.

        Say which parts of it are random although its answers depend on them.

        Raises:
            ModelError: a file of weights lacks parts of the network, so that its answers would be random; or see there.
        """
        from evenslice.training import load_segmenter

        given = {name: value for group in groups for name, value in asdict(group).items()}
        loaded = load_segmenter(self.run, self.model, self.weights, **given, **options)
        loaded.need_all_weights()
        if self.weights is not None and loaded.source is not None:
            tell_untrained(self.weights, loaded.source.random)
        return loaded


@dataclass(frozen=True, kw_only=True)
class AnySource(Source):
    """Where a network comes from, which may also be an ONNX file."""

    model: Annotated[
        str | None,
        network(f"{MODEL_HELP}; or onnx, with an .onnx file as --weights. {REPEAT_HELP}.", metavar="SPEC"),
    ] = None


@dataclass(frozen=True, kw_only=True)
class Network(Input):
    """A network; fields are named as the arguments of ``load_network``."""

    spec: Annotated[str, network(f"{MODEL_HELP}.", "--model", metavar="SPEC")]
    weights: Annotated[str, network(f"{WEIGHTS_HELP}.", metavar="W")]
    classes: Classes = None
    tie: Tie = None


@dataclass(frozen=True, kw_only=True)
class Opening:
    """How to read the axes of a volume."""

    axes: Annotated[
        str | None,
        volume(
            "Names of the file's axes as stored, such as xyz or tzyx (default: those that the file states, else z, y, x).",
            metavar="AXES",
        ),
    ] = None
    select: Annotated[
        list[AxisEntry] | None,
        volume(
            "Select one entry of an axis, such as t=0; repeat for further axes.",
            metavar="AXIS=N",
            parser=parse_selection,
            callback=check_selection,
        ),
    ] = None
    level: Annotated[
        int, volume("Resolution level of a multiscale volume; 0 is the finest.", metavar="N")
    ] = 0
    region: Annotated[
        Sequence[slice] | None,
        volume(
            f"Read only this part of the file, {REGION_HELP}.",
            metavar="Z:Z,Y:Y,X:X",
            parser=parse_region,
        ),
    ] = None

    def open(self, path: str, *, plane: str | None = None) -> "Volume":
        """Open a volume with these options, sliced along an axis."""
        from evenslice.volumes import open_volume

        chosen = dict(self.select or ())
        return open_volume(
            path, axes=self.axes, select=chosen, level=self.level, plane=plane, region=self.region
        )


Plane = Annotated[
    str | None,
    volume(
        "Axis along which slices are stacked: z, y or x (default: that of the run or saved network, else z).",
        metavar="AXIS",
        autocompletion=lambda: PLANES,
    ),
]


@dataclass(frozen=True, kw_only=True)
class LabelValues:
    """What the values of labels mean; fields are named as the arguments of ``audit`` and ``evaluate``."""

    label_values: Annotated[
        Sequence[int] | None,
        volume(
            "Label value of each class (default: those of the run or saved network, else 0,1,2 ...).",
            metavar="V,V",
            parser=parse_values,
        ),
    ] = None
    other_labels: Annotated[
        str | None,
        volume(
            "What all other values mean: error, or background, which is class 0 (default: that of the run or saved "
            "network, else error).",
            metavar="WHAT",
            autocompletion=lambda: OTHERS,
        ),
    ] = None
    ignore_label: Annotated[
        int | None,
        volume(
            "Label value of voxels that do not count in scores (default: that of the run or saved network).",
            metavar="V",
        ),
    ] = None
    instances: Annotated[
        str | None,
        volume(
            "Labels number objects; their boundaries become class 1. sparse: 0 is background. dense: 0 lies between objects "
            "and is boundary (default: that of the run or saved network, else labels are classes).",
            metavar="KIND",
            autocompletion=lambda: INSTANCES,
        ),
    ] = None

    def refuse(self) -> None:
        """Raise ConfigError if an option is given, as there are no labels to which it would apply."""
        from evenslice.volumes import refuse_without_labels

        refuse_without_labels(**asdict(self))


@dataclass(frozen=True, kw_only=True)
class Scaling:
    """How voxel values become inputs; fields are named as the arguments of ``audit`` and ``segment``."""

    intensity: Annotated[
        tuple[float, float] | None,
        volume(
            "Voxel values mapped to 0 and 1 (default: those of the run or saved network, else percentiles of the volume).",
            metavar="LOW HIGH",
        ),
    ] = None
    fill: Annotated[
        float | None,
        volume(
            "Voxel value that replaces NaN and infinity (default: that of the run or saved network, else they are an error).",
            metavar="X",
        ),
    ] = None


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """Which processes share the work."""

    workers: Annotated[int | None, computing("Start this many local worker processes.", metavar="N")] = None
    scheduler: Annotated[
        str | None, computing("Use the workers of the Dask scheduler at this address.", metavar="ADDRESS")
    ] = None


@dataclass(frozen=True, kw_only=True)
class Passes:
    """How a network runs in this process; fields are named as the arguments of ``evaluate``."""

    device: Device = "auto"
    dtype: Annotated[
        str,
        computing(
            "Data type of the network's passes: float32 (auto), or bfloat16 or float16 (on a GPU only), whose cost in labels is "
            "then measured.",
            metavar="TYPE",
            autocompletion=lambda: DTYPES,
        ),
    ] = "auto"
    batch: Annotated[
        int | None, computing("Windows per forward pass (default: chosen for speed).", metavar="N")
    ] = None
    tile: Annotated[
        tuple[int, int] | None,
        computing(
            "In-plane tile size in pixels (default: the only size that the network takes, else whole planes up to 1024 along "
            "each axis, and equal parts of longer ones).",
            metavar="Y X",
        ),
    ] = None


@dataclass(frozen=True, kw_only=True)
class Computing(Passes, Cluster):
    """How a network runs, and where; fields are named as the arguments of ``segment``."""


@dataclass(frozen=True, kw_only=True)
class AuditComputing(Computing):
    """How the network of an audit runs, and where; fields are named as the arguments of ``audit``."""

    dtype: Annotated[
        str,
        computing(
            "Data type of the network's passes and of all figures: float32 (auto), bfloat16, or float16 (on a GPU only).",
            metavar="TYPE",
            autocompletion=lambda: DTYPES,
        ),
    ] = "auto"
    tile: Annotated[
        tuple[int, int] | None,
        computing(
            "In-plane tile size in pixels (default: what the network or its crops state, else planes up to 256, or 192).",
            metavar="Y X",
        ),
    ] = None


@dataclass(frozen=True, kw_only=True)
class Output:
    """What becomes of the result."""

    force: Annotated[bool, output("Overwrite existing output.", "--force")] = False
    json: Json = False

    def staged(
        self, out: Path | None, files: Sequence[str], documents: Sequence[str]
    ) -> AbstractContextManager[Path | None]:
        """Return a context in which the folder of results is made, see ``staged_folder``; without one, give None."""
        from evenslice._core import staged_folder

        if out is None:
            return nullcontext()
        return staged_folder(out, files, documents=documents, force=self.force)
