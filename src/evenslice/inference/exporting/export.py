"""Export: a trained network as other programs take it, with the way in which it reads volumes.

evenslice.export(network, "fair", to="onnx")
evenslice.load_onnx("fair/network.onnx")
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from evenslice._core import (
    ConfigError,
    OutputError,
    check_known,
    local_path,
    option,
    staged_folder,
)
from evenslice.inference.exporting.description import Description, ModelCard, describe
from evenslice.inference.exporting.huggingface import HUGGINGFACE_FILES, README, write_huggingface
from evenslice.inference.segmenter import Segmenter, as_segmenter
from evenslice.networks import with_gradients
from evenslice.results import AuditResult
from evenslice.volumes import check_tile

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence

    from evenslice.inference.exporting.onnx_writing import WrittenOnnx
    from evenslice.networks import ModelSource
    from evenslice.volumes import Reading

__all__ = ["Exported", "check_export_format", "export"]

ONNX_FILES = ("network.onnx",)
FORMATS = ("onnx", "bioimageio", "huggingface")


@dataclass(frozen=True)
class Exported:
    """What ``export`` wrote.

    Attributes:
        folder: where.
        to: the format.
        files: their names in the folder.
        slices: N, the slices of a window.
        mean: what is subtracted from slices in 0..1.
        std: what they are divided by afterwards.
        tile: the only size (y, x) of windows; None for every multiple of ``multiple``, or where it is not fixed.
        multiple: of which the size of windows is a multiple; None where the network is stored as weights.
        difference: the largest difference between the outputs of the file, run by onnxruntime, and those of the network,
            relative to the largest; None where the network is stored as weights, which are the same bits.
    """

    folder: Path
    to: str
    files: tuple[str, ...]
    slices: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    tile: tuple[int, int] | None
    multiple: int | None
    difference: float | None

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {**asdict(self), "folder": str(self.folder)}


def check_export_format(to: str) -> None:
    """Raise ConfigError unless networks are exported in this format.

    Example:
        >>> check_export_format("onnx")
    """
    check_known("to", to, FORMATS)


@with_gradients
def export(
    model: nn.Module | Segmenter,
    out: str | os.PathLike[str],
    *,
    to: str,
    slices: int | None = None,
    reading: Reading | None = None,
    source: ModelSource | None = None,
    tile: tuple[int, int] | None = None,
    crop: tuple[int, int] | None = None,
    card: ModelCard | None = None,
    audits: Sequence[AuditResult] = (),
    force: bool = False,
) -> Exported:
    """Write a network for other programs, and check what was written.

    The network itself is left unchanged. ``docs/export.md`` says what each format holds.

    Args:
        model: maps (batch, slices, y, x) to logits. Slices in 0..1 are scaled as ``neutralize`` recorded on it, else by the
            mean and std that its library states for pretrained weights, else not at all. Or a network with its reading.
        out: the folder, created if missing.
        to: ``"onnx"``: ``network.onnx``, which takes slices in 0..1. ``"bioimageio"``: a model for bioimage.io with ONNX
            weights, which takes voxel values. ``"huggingface"``: weights, ``config.json`` and a model card, which
            ``load_network`` takes back.
        slices: N; by default what ``neutralize`` recorded or the segmenter states, else 3.
        reading: how it reads volumes and their labels; by default as the segmenter says.
        source: what the network was built from, as ``load_network`` returns it; likewise.
        tile: fix the size (y, x) of the windows; by default ``crop``, else free where the network allows that. Not for
            weights.
        crop: the size (y, x) of the windows that a classifier was trained on, for the card and for commands that are given
            the folder; likewise.
        card: what a file cannot know: name, authors, license, citations.
        audits: audits of the network, for its card; those of another network are refused as far as they tell: by the number
            of slices, the strategy, the tie and the weights.
        force: overwrite an earlier export in the same format.

    Raises:
        ModelError: the network cannot be exported in this format, or the file computes something else.
        ConfigError: an option is out of range or unknown, ``slices`` differs from what is recorded on the network, or an
            audit is of another network.
        OutputError: the folder holds such files, or an export in a format that shares some of their names, or cannot be
            written.
        MissingExtraError: a package of the extra ``export`` is not installed.

    Example:
        >>> import tempfile
        >>> import numpy as np
        >>> import evenslice
        >>> network, record, source = evenslice.load_network("timm:test_resnet", "none", strategy="uniform", mean=0.5, std=0.2)
        >>> folder = tempfile.mkdtemp()
        >>> written = export(network, folder, to="huggingface", source=source)
        >>> evenslice.load_network(folder).record == record
        True
    """
    check_export_format(to)
    segmenter = as_segmenter(model, slices, reading)
    network, source, crop = segmenter.network, source or segmenter.source, crop or segmenter.crop
    if not isinstance(network, nn.Module):
        raise ConfigError(
            f"{option('model')}: a function, such as an ONNX file, cannot be exported; give the network that it came from"
        )
    if to == "huggingface" and tile is not None:
        raise ConfigError(f"{option('tile', tile)}: weights have no fixed size of windows; leave it out")
    tile, crop = (
        None if size is None else check_tile(size, name) for name, size in (("tile", tile), ("crop", crop))
    )
    _check_kinds(card, audits)
    if local_path(out).is_file():
        raise OutputError(f"{out}: is a file; name a folder")
    description = describe(
        network,
        slices=segmenter.slices,
        reading=segmenter.reading,
        crop=crop,
        source=source,
        card=card or ModelCard(),
        audits=audits,
    )
    files = _files(to)
    own = [name for name in files if name != README]  # which two formats share
    with staged_folder(out, files, documents=own, force=force) as folder:
        written = _write(network, folder, to, description, source, tile or crop)
    return Exported(
        Path(out),
        to,
        files,
        description.slices,
        description.mean,
        description.std,
        tile=written.tile if written else None,
        multiple=written.multiple if written else None,
        difference=written.difference if written else None,
    )


def _check_kinds(card: Any, audits: Any) -> None:
    """Raise ConfigError if the card of a network, or its audits, are something else."""
    if card is not None and not isinstance(card, ModelCard):
        raise ConfigError(f"{option('card')}: is {type(card).__name__}; give an evenslice.ModelCard")
    if not isinstance(audits, list | tuple) or not all(isinstance(item, AuditResult) for item in audits):
        raise ConfigError(f"{option('audits')}: give a list of what evenslice.audit returned")


def _files(to: str) -> tuple[str, ...]:
    from evenslice.inference.exporting.bioimageio import BIOIMAGEIO_FILES

    return {"onnx": ONNX_FILES, "bioimageio": BIOIMAGEIO_FILES, "huggingface": HUGGINGFACE_FILES}[to]


def _write(
    model: nn.Module,
    folder: Path,
    to: str,
    description: Description,
    source: ModelSource | None,
    tile: tuple[int, int] | None,
) -> WrittenOnnx | None:
    from evenslice.inference.exporting.bioimageio import write_bioimageio
    from evenslice.inference.exporting.onnx_writing import write_onnx

    if to == "huggingface":
        write_huggingface(model, folder, description, source)
        return None
    if to == "bioimageio":
        return write_bioimageio(model, folder, description, tile)
    return write_onnx(model, folder / ONNX_FILES[0], description, scaled=True, tile=tile)
