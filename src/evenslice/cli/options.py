"""The options that several commands share, each written once, and the groups in which a command takes them.

A group is a value of the library, or a frozen dataclass, whose fields are options. A command takes groups as arguments
and is decorated with ``grouped``; a new field of a group is then an option of every command that takes it.
"""

# Typer and `grouped` read the annotations here and in the commands when they run, so they are not postponed.
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import MISSING, asdict, dataclass, fields, is_dataclass, replace
from functools import partial, wraps
from inspect import Parameter, Signature, signature
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, get_args, get_type_hints

import typer

from evenslice import Compute, Reading
from evenslice.cli.printing import tell_adapted, tell_untrained

if TYPE_CHECKING:
    from evenslice import Segmenter, Volume


@dataclass(frozen=True)
class Options:
    """In the annotation of an argument: the command's options for fields of a value, whose types and defaults they have.

    Attributes:
        options: the option for each field that a user may state.
        stated: the class of the value, where the argument is a dict of the fields that the user states.
    """

    options: Mapping[str, Any]
    stated: Any = None


def grouped(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command one option for each field of the groups among its arguments, the required ones first."""
    makers: dict[str, tuple[Any, list[Parameter]]] = {}
    parameters: list[Parameter] = []
    hints = get_type_hints(command, include_extras=True)
    for name, parameter in signature(command).parameters.items():
        kind, *marks = get_args(hints[name]) or (hints[name],)
        mark = next((entry for entry in marks if isinstance(entry, Options)), None)
        if mark is None and not is_dataclass(kind):
            parameters.append(parameter)
        else:
            make = kind if mark is None or mark.stated is None else _stated
            makers[name] = make, _parameters(kind, mark)
            parameters += makers[name][1]

    @wraps(command)
    def call(**values: Any) -> None:
        made = {
            name: make(**{entry.name: values.pop(entry.name) for entry in taken})
            for name, (make, taken) in makers.items()
        }
        command(**made, **values)

    call.__signature__ = Signature(parameters)  # type: ignore[attr-defined]
    call.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return call


def _stated(**values: Any) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _parameters(kind: Any, mark: Options | None) -> list[Parameter]:
    """Return a parameter for each field of a group; a parser makes the value, whatever its type."""
    stated = mark is not None and mark.stated is not None
    value = mark.stated if mark is not None and stated else kind
    hints = get_type_hints(value, include_extras=True)
    parameters = []
    for entry in fields(value):
        hint, default = hints[entry.name], entry.default
        if mark is not None:
            if entry.name not in mark.options:
                continue
            option = mark.options[entry.name]
            hint = Annotated[Any | None if option.parser else hint | None if stated else hint, option]
        default = None if stated else Parameter.empty if default is MISSING else default
        parameters.append(Parameter(entry.name, Parameter.KEYWORD_ONLY, default=default, annotation=hint))
    return sorted(parameters, key=lambda parameter: parameter.default is not Parameter.empty)


STRATEGIES = (
    "pretrained", "uniform", "center", "profile", "mirror", "twin", "shuffle", "equalize", "mixer", "reinit", "random",
)  # fmt: skip
TARGETS = ("auto", "predicted", "labels", "sum")
OUTPUT = "output"
CUTS = (OUTPUT, "encoder")
PLANES = ("z", "y", "x")

MODEL_HELP = (
    "Network: smp:DECODER/ENCODER, timm:NAME, torchvision:NAME, monai:NAME, transformers:NAME (a hub name, "
    "a folder or a model type), or package.module:function"
)
WEIGHTS_HELP = "Weights: imagenet, none (random), a file (.safetensors, .pt ...), or an exported folder"
STRATEGY_HELP = (
    f"How colour kernels become slice kernels: {', '.join(STRATEGIES[1:])}, pretrained (the network as built), or the "
    "weights of a profile, such as 0.2,0.6,0.2"
)
REPEAT_HELP = "With --run, give the function again if the run's network comes from one of yours"
VOLUME_HELP = "a file, a folder, file.h5:/path or an address (https://, s3://, gs://)"


def _parse_numbers(number: type, example: str) -> Callable[[str], list[Any]]:
    """Return a function that reads numbers of a type, separated by commas."""

    def parse(text: str) -> list[Any]:
        try:
            return [number(part) for part in text.split(",")]
        except ValueError:
            what = "whole numbers" if number is int else "numbers"
            raise typer.BadParameter(f"{text}: {what} are needed, such as {example}") from None

    return parse


parse_values = _parse_numbers(int, "0,255")


def parse_strategy(text: str) -> str | tuple[float, ...]:
    """Read the name of a strategy, or the weights of a profile separated by commas."""
    return tuple(_parse_numbers(float, "0.25,0.5,0.25")(text)) if "," in text else text


class AxisEntry(NamedTuple):
    """One entry of an axis; a class of its own, since Typer takes no list of tuples."""

    axis: str
    place: int


def given_once(entries: list[AxisEntry] | None) -> list[AxisEntry] | None:
    """Check that no axis, or class, is given twice, as only the last would count."""
    for number, entry in enumerate(entries or ()):
        if entry.axis in [other.axis for other in (entries or ())[:number]]:
            raise typer.BadParameter(f"{entry.axis} is given twice; give each once")
    return entries


def parse_selection(text: str) -> AxisEntry:
    """Read AXIS=INDEX."""
    axis, _, index = text.partition("=")
    if not axis or not index.isdecimal():
        raise typer.BadParameter(f"{text}: an axis and a whole number are needed, such as t=0")
    return AxisEntry(axis, int(index))


def parse_region(text: str) -> tuple[slice, ...]:
    """Read z0:z1,y0:y1,x0:x1, in which any bound may be left out."""
    parts = re.fullmatch(r"(\d*):(\d*),(\d*):(\d*),(\d*):(\d*)", "".join(text.split()), re.ASCII)
    if parts is None:
        raise typer.BadParameter(
            f"{text}: bounds along z, y and x are needed, such as 0:16,:,100:612; a colon alone takes the whole axis"
        )
    bounds = [int(part) if part else None for part in parts.groups()]
    return tuple(slice(*bounds[axis : axis + 2]) for axis in (0, 2, 4))


def check_seed(seed: int | None) -> int | None:
    """Return a seed that every random generator takes; a range that Typer knows would fill the help."""
    if seed is not None and not 0 <= seed < 2**32:
        raise typer.BadParameter(f"{seed} is not between 0 and 2**32 - 1")
    return seed


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
        f"{STRATEGY_HELP}{more}.", metavar="S", parser=parse_strategy, autocompletion=lambda: STRATEGIES
    )


Classes = Annotated[int | None, network("Output classes (default: as in the weights, else 2).", metavar="N")]
Tie = Annotated[
    str | None,
    network(
        "Average the kernels of opposite slices (mirror) or of all slices (uniform), and keep them so in training.",
        metavar="TIE",
        autocompletion=lambda: ("mirror", "uniform"),
    ),
]
Seed = Annotated[int, computing("Random seed.", metavar="N", callback=check_seed)]
Json = Annotated[bool, output("Print the result as one JSON document.", "--json")]


@dataclass(frozen=True, kw_only=True)
class Window:
    """The windows that a network takes; fields are named as the arguments of ``load_network``."""

    slices: Annotated[
        int | None,
        network(
            "Slices in a window, odd (default: the network's, else 3; another number adapts its first layer).",
            metavar="N",
        ),
    ] = None
    mean: Annotated[
        Sequence[float] | None,
        network(
            "Mean subtracted from inputs in 0..1 (default: the library's, else 0). Give 0 if inputs were only scaled to 0..1.",
            metavar="M[,M,M]",
            parser=_parse_numbers(float, "0.485,0.456,0.406"),
        ),
    ] = None
    std: Annotated[
        Sequence[float] | None,
        network(
            "Standard deviation that inputs are then divided by (default: the library's, else 1).",
            metavar="S[,S,S]",
            parser=_parse_numbers(float, "0.485,0.456,0.406"),
        ),
    ] = None


@dataclass(frozen=True, kw_only=True)
class Input(Window):
    """The input and output of a network, and how it treats them; fields are named as the arguments of ``load_network``."""

    symmetrize: Annotated[
        str | None,
        network(
            "Average over each window and its mirror after: output (for trained networks; twice the passes), encoder, or a "
            "module (default: as saved).",
            metavar="AT",
            autocompletion=lambda: CUTS,
        ),
    ] = None
    classes: Classes = None


@dataclass(frozen=True, kw_only=True)
class TiedInput(Input):
    """Likewise, with the symmetry of the kernels."""

    tie: Tie = None


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where a network comes from: a run, or a specification and weights."""

    run: Annotated[
        Path | None,
        network(
            "Folder of a finished evenslice train run. Give --run, or --model with --weights.", metavar="RUN"
        ),
    ] = None
    model: Annotated[
        str | None,
        network(f"{MODEL_HELP}; or onnx, with an .onnx file as --weights. {REPEAT_HELP}.", metavar="SPEC"),
    ] = None
    weights: Annotated[str | None, network(f"{WEIGHTS_HELP}.", metavar="W")] = None

    def load(self, inputs: Input, reading: dict[str, Any]) -> "Segmenter":
        """Load the network with these options.

        Say which parts of it are random although its answers depend on them.

        Raises:
            ConfigError: see ``find_network``.
            ModelError: the network cannot be loaded; or a file of weights lacks parts of it, so that its answers would be random.
        """
        from evenslice import open_segmenter
        from evenslice.training import find_network

        given = asdict(inputs)
        fixed = {name: value for name, value in given.items() if name != "symmetrize"}
        found = find_network(self.run, self.model, self.weights, reading=reading, fixed=fixed)
        if self.run is None:
            loaded = open_segmenter(found.spec, found.weights, **given, reading=reading)
        else:
            loaded = found.load(inputs.symmetrize)
        loaded.need_all_weights()
        if self.weights is not None and loaded.source is not None:
            tell_untrained(loaded.source)
            tell_adapted(loaded.source, loaded.slices)
        return loaded


@dataclass(frozen=True, kw_only=True)
class Network(TiedInput):
    """A network; fields are named as the arguments of ``load_network``."""

    spec: Annotated[str, network(f"{MODEL_HELP}.", "--model", metavar="SPEC")]
    weights: Annotated[str, network(f"{WEIGHTS_HELP}.", metavar="W")]


READ: dict[str, Any] = {
    "step": network(
        "Take every n-th slice into a window (default: as saved, else 1: adjacent slices).", metavar="N"
    ),
    "plane": volume(
        "Axis along which slices are stacked: z, y or x (default: as saved, else z).",
        metavar="AXIS",
        autocompletion=lambda: PLANES,
    ),
    "intensity": volume(
        "Voxel values mapped to 0 and 1 (default: as saved, else percentiles of the volume).",
        metavar="LOW HIGH",
    ),
    "fill": volume(
        "Replace NaN and infinity by this voxel value (default: as saved, else refuse them).", metavar="X"
    ),
}
"""How volumes are read."""

LABELS: dict[str, Any] = {
    "label_values": volume(
        "Label value of each class (default: as saved, else 0,1,2 ...).", metavar="V,V", parser=parse_values
    ),
    "other_labels": volume(
        "Take other label values as error or as background, class 0 (default: as saved, else error).",
        metavar="WHAT",
        autocompletion=lambda: ("error", "background"),
    ),
    "ignore_label": volume(
        "Leave voxels of this label value out of scores (default: as saved).", metavar="V"
    ),
    "instances": volume(
        "Labels number objects; their boundaries become class 1. sparse: 0 is background. dense: 0 lies between objects "
        "and is boundary (default: as saved, else labels are classes).",
        metavar="KIND",
        autocompletion=lambda: ("sparse", "dense"),
    ),
}
"""The meaning of each value in labels."""

OVERLAPPING: dict[str, Any] = {
    "overlapping": measurement(
        "Whether several output channels can be on at once, or exclude each other (default: as the network's file or last "
        "activation says, else they exclude each other).",
        "--overlapping/--exclusive",
    )
}

VolumeReading = Annotated[dict[str, Any], Options(READ, Reading)]
LabelledReading = Annotated[dict[str, Any], Options(READ | LABELS, Reading)]
AuditReading = Annotated[dict[str, Any], Options(READ | LABELS | OVERLAPPING, Reading)]


@dataclass(frozen=True, kw_only=True)
class Opening:
    """How to read the axes of a volume."""

    axes: Annotated[
        str | None,
        volume(
            "Names of the file's axes as stored, such as xyz or tzyx (default: the file's, else z, y, x).",
            metavar="AXES",
        ),
    ] = None
    select: Annotated[
        list[AxisEntry] | None,
        volume(
            "Select one entry of an axis, such as t=0; repeat for further axes.",
            metavar="AXIS=N",
            parser=parse_selection,
            callback=given_once,
        ),
    ] = None
    level: Annotated[
        int, volume("Resolution level of a multiscale volume; 0 is the finest.", metavar="N")
    ] = 0
    region: Annotated[
        Sequence[slice] | None,
        volume(
            "Read only this part of the file, as start:stop along z, y and x, such as 0:16,:,100:612.",
            metavar="Z:Z,Y:Y,X:X",
            parser=parse_region,
        ),
    ] = None

    def open(self, path: str, *, plane: str | None = None, **sizes: Any) -> "Volume":
        """Open a volume with these options, sliced along an axis, with a spacing and unit of its own."""
        from evenslice import open_volume

        chosen = dict(self.select or ())
        return open_volume(
            path, axes=self.axes, select=chosen, level=self.level, plane=plane, region=self.region, **sizes
        )


@dataclass(frozen=True, kw_only=True)
class LabelledOpening(Opening):
    """How to read the axes of a volume and of its labels."""

    label_axes: Annotated[
        str | None,
        volume(
            "Axes of the label file as stored (default: as the file states, else as --axes).", metavar="AXES"
        ),
    ] = None

    def refuse(self, reading: dict[str, Any], **others: Any) -> None:
        """Raise ConfigError if an option of labels is given, in the reading or besides, as there are none."""
        from evenslice.volumes import refuse_without_labels

        given = {name: reading.get(name) for name in LABELS}
        refuse_without_labels(given | {"label_axes": self.label_axes} | others)

    def open_labels(self, path: str, *images: str) -> "Volume":
        """Open labels of images: by the axes given for labels, else those that their file states, else as the images.

        A file without the level of the images, or too small for their region, is read whole, as it may hold labels of just
        what is read of them; whoever takes them compares their shape with that of the images.

        Raises:
            ConfigError: the files of labels and image state the same axes, and those given for the image are others.
        """
        from evenslice import ConfigError, EvensliceError
        from evenslice.volumes import stated_axes

        if self.label_axes is not None or self.axes is None:
            try:
                return self._open_named(path, self.label_axes)
            except EvensliceError as error:
                raise type(error)(error.render(_spelled_for_labels)) from error
        states = partial(stated_axes, series=dict(self.select or ()).get("series"))
        if (stated := states(path)) is None:
            return self._open_named(path, self.axes)
        # Either the labels were stored like the image, and misnamed like it, or they were made from what was read.
        if stated in map(states, images) and stated.lower() != str(self.axes).lower():
            raise ConfigError(
                f"{path}: its file names its axes {stated.upper()}, as does that of the volume, for which --axes "
                f"{self.axes} was given; say which hold for the labels, as --label-axes {stated} or {self.axes}"
            )
        try:
            return self._open_named(path, None)
        except EvensliceError:  # what it states makes no volume
            return self._open_named(path, self.axes)

    def _open_named(self, path: str, axes: str | None) -> "Volume":
        """Open labels or, as they may lack the other axes of the image, those with z, y and x alone."""
        from evenslice import EvensliceError

        try:
            return _open_fitting(replace(self, axes=axes), path)
        except EvensliceError:
            if axes is not None and axes != self.label_axes:
                axes = "".join(axis for axis in axes if axis.lower() in "zyx")
            with suppress(EvensliceError):
                return _open_fitting(replace(self, axes=axes, select=None), path)
            raise


def _open_fitting(opening: Opening, path: str) -> "Volume":
    """Open labels at the level and in the region of the image, or whole if their file has no such level or region."""
    from evenslice import ConfigError

    try:
        return opening.open(path)
    except ConfigError:
        for level in (opening.level, 0):
            with suppress(ConfigError):
                return replace(opening, level=level, region=None).open(path)
        raise


def _spelled_for_labels(name: str, value: Any) -> str:
    """Spell an option of reading a volume as that for labels."""
    from evenslice._core import spelled_on_command_line

    return spelled_on_command_line("label_axes" if name == "axes" else name, value)


PASSES: dict[str, Any] = {
    "device": computing(
        "Device: auto (a CUDA GPU, else the CPU), cpu, cuda, or one GPU of several such as cuda:1.",
        metavar="DEVICE",
        autocompletion=lambda: ("auto", "cpu", "cuda"),
    ),
    "dtype": computing(
        "Compute in float32 (auto), bfloat16 or float16 (on a GPU only); all but audits say how many labels that changes.",
        metavar="TYPE",
        autocompletion=lambda: ("auto", "bfloat16", "float16", "float32"),
    ),
    "batch": computing("Windows per forward pass (default: chosen for speed).", metavar="N"),
}
CLUSTER: dict[str, Any] = {
    "workers": computing("Start this many local worker processes.", metavar="N"),
    "scheduler": computing("Use the workers of the Dask scheduler at this address.", metavar="ADDRESS"),
}

ENGINE = computing(
    "Engine on a CPU: torch, openvino, or auto (openvino, if installed, for convolutional networks and work worth the "
    "seconds of a conversion).",
    metavar="NAME",
    autocompletion=lambda: ("auto", "openvino", "torch"),
)
WHOLE: dict[str, Any] = PASSES | {"engine": ENGINE}
"""What runs whole volumes."""

DeviceAlone = Annotated[Compute, Options({"device": PASSES["device"]})]
Passes = Annotated[Compute, Options(WHOLE)]
WholeVolumes = Annotated[Compute, Options(WHOLE | CLUSTER)]
Computing = Annotated[Compute, Options(PASSES | CLUSTER)]
Cluster = Annotated[Compute, Options(CLUSTER)]
Tile = Annotated[
    tuple[int, int] | None,
    computing(
        "In-plane tile size in pixels (default: the network's only size, else planes up to 1024, or equal parts).",
        metavar="Y X",
    ),
]


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
