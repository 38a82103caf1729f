"""The fields of a widget in which a user chooses a network, and how that is loaded."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from magicgui.types import FileDialogMode
from magicgui.widgets import ComboBox, Container, FileEdit, LineEdit, SpinBox

from evenslice import ConfigError, Segmenter, open_segmenter
from evenslice._core import option
from evenslice.training import find_network

if TYPE_CHECKING:
    from collections.abc import Callable

LIBRARY, RUN, FILE = "library", "training run", "saved network"
WEIGHTS_FILE = "file"
STARTS = ("pretrained", "twin", "mirror", "uniform", "center", "profile", "mixer")
"""Strategies that are no controls."""
DEFAULT = "smp:Unet/tu-tf_efficientnet_lite0"


class NetworkForm(Container):  # type: ignore[type-arg]  # it holds widgets of several kinds
    """The fields of a network and of the scaling of its input; those that do not apply to its source are hidden."""

    def __init__(self) -> None:
        self.source = ComboBox(label="network from", choices=[LIBRARY, RUN, FILE])
        self.spec = LineEdit(
            label="network",
            value=DEFAULT,
            tooltip="smp:DECODER/ENCODER, timm:NAME, torchvision:NAME, monai:NAME, transformers:NAME or package.module:function",
        )
        choices = ["imagenet", "none", WEIGHTS_FILE]
        self.weights = ComboBox(label="weights", choices=choices, tooltip="none: random weights")
        self.weights_file = FileEdit(label="weights file", mode=FileDialogMode.EXISTING_FILE)
        three = "N, odd: 3 is the slice and its neighbours"
        self.slices = SpinBox(label="slices", value=3, min=1, max=81, step=2, tooltip=three)
        self.strategy = ComboBox(
            label="start",
            choices=STARTS,
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
        self.of_library = [self.spec, self.weights, self.slices, self.strategy, self.mean, self.std]
        named = [*self.of_library[:2], self.weights_file, *self.of_library[2:], self.run, self.file]
        super().__init__(widgets=[self.source, *named, self.intensity, self.fill])
        self.margins = (0, 0, 0, 0)
        self.source.changed.connect(self._show_fields)
        self.weights.changed.connect(self._show_fields)
        self._show_fields()

    def choice(self) -> Callable[[], Segmenter]:
        """Return what loads the chosen network; its errors are those of ``open_segmenter``.

        Raises:
            ConfigError: no run or file is named, or the run is not finished; or a number cannot be read.
        """
        fill = _numbers(self.fill, "0")
        if fill is not None and len(fill) > 1:
            raise ConfigError(f"{option('fill')}: {self.fill.value.strip()}: one number is needed, such as 0")
        reading = {"intensity": _numbers(self.intensity, "0,255"), "fill": fill and fill[0]}
        if self.source.value == RUN:
            return find_network(_path(self.run, "network"), reading=reading).load
        if self.source.value == FILE:
            return partial(open_segmenter, str(_path(self.file, "network")), reading=reading)
        weights = str(self.weights.value)
        return partial(
            open_segmenter,
            self.spec.value.strip(),
            str(_path(self.weights_file, "weights")) if weights == WEIGHTS_FILE else weights,
            slices=self.slices.value,
            strategy=str(self.strategy.value),
            mean=_numbers(self.mean, "0.485,0.456,0.406"),
            std=_numbers(self.std, "0.229,0.224,0.225"),
            reading=reading,
        )

    def _show_fields(self, *_: object) -> None:
        library = self.source.value == LIBRARY
        for part in self.of_library:
            part.visible = library
        self.weights_file.visible = library and self.weights.value == WEIGHTS_FILE
        self.run.visible = self.source.value == RUN
        self.file.visible = self.source.value == FILE


def _optional(label: str, tooltip: str) -> LineEdit:
    """Return a field that may be left empty."""
    field = LineEdit(label=label, tooltip=tooltip)
    field.native.setPlaceholderText("default")
    return field


def _path(field: FileEdit, what: str) -> Path:
    """Return the path in a field; the empty field is the current folder."""
    path = Path(str(field.value or ""))
    if not path.name:
        raise ConfigError(f"no {what} chosen; enter the {field.label}")
    return path


def _numbers(field: LineEdit, example: str) -> tuple[float, ...] | None:
    """Return the numbers in a field, with commas or spaces between them; None if it is empty."""
    try:
        return tuple(map(float, field.value.replace(",", " ").split())) or None
    except ValueError:
        raise ConfigError(
            f"{option(field.label)}: {field.value.strip()}: numbers are needed, such as {example}"
        ) from None
