"""Export: a trained network as other programs take it, with the way in which it reads volumes.

evenslice.export(network, "fair", to="onnx")
evenslice.load_onnx("fair/network.onnx")
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from evenslice._core import ConfigError, OutputError, check_known, local_path, option, staged_folder
from evenslice.inference.bioimageio import BIOIMAGEIO_FILES, write_bioimageio
from evenslice.inference.model_card import HUGGINGFACE_FILES, README, ModelCard, describe, write_huggingface
from evenslice.inference.onnx_files import write_onnx
from evenslice.inference.segmenter import Segmenter, as_segmenter
from evenslice.volumes import check_tile

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence

    from evenslice.networks import ModelSource
    from evenslice.results import AuditResult
    from evenslice.volumes import Reading


FORMATS = {"onnx": ("network.onnx",), "bioimageio": BIOIMAGEIO_FILES, "huggingface": HUGGINGFACE_FILES}
"""The files of each format."""


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


@torch.inference_mode(mode=False)  # what is made in it can be trained, and explained
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
            the folder; by default as the segmenter says.
        card: what a file cannot know: name, authors, license, citations.
        audits: audits of the network, for its card; those of another network are refused as far as they tell: by the number
            of slices, the strategy, the tie and the file of weights.
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
        >>> segmenter = evenslice.open_segmenter("timm:test_resnet", "none", strategy="uniform", mean=0.5, std=0.2)
        >>> folder = tempfile.mkdtemp()
        >>> written = export(segmenter, folder, to="huggingface")
        >>> evenslice.load_network(folder).record == evenslice.record_of(segmenter.network)
        True
    """
    check_known("to", to, FORMATS)
    if to == "huggingface" and tile is not None:
        raise ConfigError(f"{option('tile', tile)}: weights have no fixed size of windows; leave it out")
    segmenter = as_segmenter(model, slices, reading)
    network, source = segmenter.network, source or segmenter.source
    crop = segmenter.crop if crop is None else check_tile(crop, "crop")
    tile = crop if tile is None else check_tile(tile)
    if not isinstance(network, nn.Module):
        raise ConfigError(
            f"{option('model')}: a function, such as an ONNX file, cannot be exported; give the network that it came from"
        )
    if local_path(out).is_file():
        raise OutputError(f"{out}: is a file; name a folder")
    description = describe(replace(segmenter, source=source, crop=crop), card or ModelCard(), audits)
    files, written = FORMATS[to], None
    own = [name for name in files if name != README]  # which two formats share
    with staged_folder(out, files, documents=own, force=force) as folder:
        if to == "huggingface":
            write_huggingface(network, folder, description, source)
        elif to == "bioimageio":
            written = write_bioimageio(network, folder, description, tile)
        else:
            written = write_onnx(network, folder / "network.onnx", description, scaled=True, tile=tile)
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
