"""The fields of a widget in which a user chooses a network."""

from __future__ import annotations

from pathlib import Path

from magicgui.types import FileDialogMode
from magicgui.widgets import ComboBox, Container, FileEdit, LineEdit, SpinBox

from evenslice._core import ConfigError, option
from evenslice.napari_plugin.network_choice import FromFile, FromLibrary, FromRun, NetworkChoice
from evenslice.neutralizing import STRATEGIES

__all__ = ["NetworkForm"]

LIBRARY, RUN, FILE = "library", "training run", "saved network"
WEIGHTS_FILE = "file"
DEFAULT = "smp:Unet/tu-tf_efficientnet_lite0"


class NetworkForm(Container):  # type: ignore[type-arg]  # it holds widgets of several kinds
    """The fields of a network and of the scaling of its input; those that do not apply to its source are hidden."""

    def __init__(self) -> None:
        self.source = ComboBox(label="network from", choices=[LIBRARY, RUN, FILE], value=LIBRARY)
        self.spec = LineEdit(
            label="network",
            value=DEFAULT,
            tooltip="smp:DECODER/ENCODER, timm:NAME, torchvision:NAME, monai:NAME, transformers:NAME or package.module:function",
        )
        self.weights = ComboBox(
            label="weights",
            choices=["imagenet", "none", WEIGHTS_FILE],
            value="imagenet",
            tooltip="none: random weights",
        )
        self.weights_file = FileEdit(label="weights file", mode=FileDialogMode.EXISTING_FILE)
        self.slices = SpinBox(
            label="slices",
            value=3,
            min=1,
            max=81,
            step=2,
            tooltip="N, odd: 3 is the slice and its neighbours",
        )
        self.strategy = ComboBox(
            label="start",
            choices=["pretrained", *(name for name in STRATEGIES if name != "pretrained")],
            value="pretrained",
            tooltip="How colour kernels become slice kernels; pretrained: as the library does",
        )
        self.mean = _optional(
            "mean",
            "Input mean used in training, on the scale 0..1. Empty: what the network's library states, even with a file of your "
            "own; 0, and 1 for std, if it states nothing. Give 0, and 1 for std, if inputs were only scaled to 0..1.",
        )
        self.std = _optional("std", "Input standard deviation used in training. Empty: as for mean.")
        self.run = FileEdit(label="run folder", mode=FileDialogMode.EXISTING_DIRECTORY)
        self.file = FileEdit(label="file", mode=FileDialogMode.EXISTING_FILE, filter="*.safetensors")
        self.intensity = _optional(
            "intensity",
            "Voxel values that become 0 and 1. Empty: those of the run or saved network, else percentiles of the volume.",
        )
        self.fill = _optional(
            "fill",
            "Voxel value that replaces NaN and infinity. Empty: that of the run or saved network, else they are an error.",
        )
        super().__init__(
            widgets=[
                self.source, self.spec, self.weights, self.weights_file, self.slices, self.strategy, self.mean, self.std,
                self.run, self.file, self.intensity, self.fill,
            ]
        )  # fmt: skip
        self.margins = (0, 0, 0, 0)
        self.source.changed.connect(self._show_fields)
        self.weights.changed.connect(self._show_fields)
        self._show_fields()

    def choice(self) -> NetworkChoice:
        """Return what is chosen.

        Raises:
            ConfigError: the weights are to come from a file, and none is named; or a number cannot be read.
        """
        reading = {"intensity": _numbers(self.intensity, "0,255"), "fill": _number(self.fill)}
        if self.source.value == RUN:
            return FromRun(_path(self.run), reading)
        if self.source.value == FILE:
            return FromFile(_path(self.file), reading)
        weights = str(self.weights.value)
        if weights == WEIGHTS_FILE:
            weights = str(_path(self.weights_file))
            if not _path(self.weights_file).name:
                raise ConfigError("no weights chosen; choose their file")
        return FromLibrary(
            self.spec.value.strip(),
            weights,
            self.slices.value,
            str(self.strategy.value),
            _numbers(self.mean, "0.485,0.456,0.406"),
            _numbers(self.std, "0.229,0.224,0.225"),
            reading,
        )

    def _show_fields(self, *_: object) -> None:
        library = self.source.value == LIBRARY
        for field in (self.spec, self.weights, self.slices, self.strategy, self.mean, self.std):
            field.visible = library
        self.weights_file.visible = library and self.weights.value == WEIGHTS_FILE
        self.run.visible = self.source.value == RUN
        self.file.visible = self.source.value == FILE


def _optional(label: str, tooltip: str) -> LineEdit:
    """Return a field that may be left empty."""
    field = LineEdit(label=label, tooltip=tooltip)
    field.native.setPlaceholderText("default")
    return field


def _path(field: FileEdit) -> Path:
    """Return the path in a field, ``Path()`` if it is empty."""
    return Path(str(field.value or ""))


def _numbers(field: LineEdit, example: str) -> tuple[float, ...] | None:
    """Return the numbers in a field, with commas or spaces between them; None if it is empty."""
    try:
        return tuple(map(float, field.value.replace(",", " ").split())) or None
    except ValueError:
        raise ConfigError(
            f"{option(field.label)}: {field.value.strip()}: numbers are needed, such as {example}"
        ) from None


def _number(field: LineEdit) -> float | None:
    """Return the number in a field; None if it is empty."""
    numbers = _numbers(field, "0")
    if numbers is not None and len(numbers) > 1:
        raise ConfigError(f"{option(field.label)}: {field.value.strip()}: one number is needed, such as 0")
    return None if numbers is None else numbers[0]
