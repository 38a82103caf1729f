"""Export: a trained network as other programs take it, with the way in which it reads volumes.

    evenslice.export(network, "fair", to="onnx")
    evenslice.load_onnx("fair/network.onnx")

An exported network says how it reads a volume, where it comes from, who made it, and how fair it is. All formats hold it as one
document: in the metadata of an ONNX file, in the configuration of a bioimage.io description, as ``config.json`` of a folder for
Hugging Face. ``open_segmenter`` reads it again. The README of a network says it to people. The format of bioimage.io
(https://bioimage.io) is that of the package bioimageio.spec, model description 0.5, which checks it.
"""

from __future__ import annotations

import html
import json
import re
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import nn

from evenslice._core import (
    UNREADABLE,
    ConfigError,
    ModelError,
    check_known,
    json_text,
    needs_extra,
    option,
    read_json,
    staged_folder,
)
from evenslice.inference.onnx_files import INPUT, open_session, write_onnx
from evenslice.inference.ready_networks import (
    by_slice,
    frozen_copy,
    input_scaling,
    quiet_libraries,
    trial_windows,
)
from evenslice.inference.segmenter import Segmenter, as_segmenter
from evenslice.networks import METADATA_KEY, input_sizes, logits
from evenslice.neutralizing import record_of, save_network
from evenslice.results import score_title
from evenslice.volumes import Reading, Scaling, WindowGrid, check_tile

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from evenslice.inference.onnx_files import WrittenOnnx
    from evenslice.networks import ModelSource, StemKernels
    from evenslice.neutralizing import Record
    from evenslice.results import AuditResult


FORMAT = 1
TRIED = 64  # pixels in y and x, at least

FINDING = (
    *("name", "definitions", "verdict", "decided_by", "method", "windows", "population"),
    *("pairs", "reliance", "answer_change", "mirror_mismatch", "created"),
)
"""The keys of ``audit.json`` that the card has, too."""

SCORES = ("dice", "iou", "adapted_rand_error", "accuracy", "balanced_accuracy")
"""The keys of ``result.json`` that the card has."""

PAPER = (
    "Mitigating Pretraining-Induced Attention Asymmetry in 2D+ Electron Microscopy Image Segmentation, "
    "https://arxiv.org/abs/2505.14105"
)


@dataclass(frozen=True, kw_only=True)
class ModelCard:
    """Name, authors, license and citations of a network, for the people who get it from you.

    Attributes:
        name: the name of the network; by default one that says how many slices it takes.
        description: its purpose, in a sentence or two.
        authors: names, or a single name.
        license: SPDX identifier, such as "CC-BY-4.0". The pretrained weights may restrict the choice.
        cite: references besides the evenslice paper, each a text with a DOI or an address, or a single one.

    Example:
        >>> ModelCard(name="Mitochondria", authors="A. Author", license="CC-BY-4.0").authors
        ('A. Author',)
    """

    name: str | None = None
    description: str | None = None
    authors: Sequence[str] = ()
    license: str | None = None
    cite: Sequence[str] = ()

    def __post_init__(self) -> None:
        for name in ("authors", "cite"):
            given = getattr(self, name)  # a string's parts are its letters
            object.__setattr__(self, name, (given,) if isinstance(given, str) else tuple(given or ()))


def describe(segmenter: Segmenter, card: ModelCard, audits: Sequence[AuditResult]) -> dict[str, Any]:
    """Return what an exported network says about itself, as plain values for JSON.

    Returns:
        ``task``, "segmentation" if the network gives a map of classes, else "classification"; ``slices``, ``mean`` and ``std``
        of its windows; ``crop``, see ``Segmenter``; ``record``, what was done to its stem, and ``source``, what it was built
        from, None if unknown; ``card``; what ``audits`` found; ``scores`` on the test volumes of its run, empty if unknown, or
        if the network was changed since; and the options of its reading.

    Raises:
        ConfigError: an option is out of range, or contradicts the record of the network or the number of its classes; or an
            audit is of another network.
    """
    model, slices, reading = cast("nn.Module", segmenter.network), segmenter.slices, segmenter.reading
    record, source = record_of(model), segmenter.source
    if record is not None and slices != record.slices:
        raise ConfigError(
            f"{option('slices', slices)}: the network takes {record.slices}; leave {option('slices')} out"
        )
    WindowGrid.check(slices, reading.step)
    for audit in audits:
        _refuse_other(audit, segmenter)
    mean, std = input_scaling(model, slices)
    shape = _output_shape(model, slices, segmenter.crop)
    task = "classification" if shape and len(shape) < 3 else "segmentation"
    # What a classifier returns may depend on the size of its windows.
    known = shape and (len(shape) == 4 or (len(shape) == 2 and segmenter.crop is not None))
    reading.labels.check(max(shape[1], 2) if shape and known else None)
    if task == "segmentation":
        reading.labels.check_written()
    return {
        "format": FORMAT,
        "version": version("evenslice"),
        "task": task,
        "slices": slices,
        "mean": tuple(map(float, mean)),
        "std": tuple(map(float, std)),
        "crop": segmenter.crop,
        "record": None if record is None else record.to_dict(),
        "source": None if source is None else source.to_dict() | {"weights": None},  # a path on this machine
        "card": asdict(card),
        "audits": [{key: item[key] for key in FINDING} for item in (audit.to_dict() for audit in audits)],
        "scores": {} if record is None or segmenter.run is None else _test_scores(segmenter.run, record),
        **reading.to_plain(),
        "percentiles": None if reading.intensity else list(Scaling.PERCENTILES),
    }


def _test_scores(run: Path, record: Record) -> dict[str, float]:
    """Return the scores on the test volumes of a run, as long as the network is the one that was tested."""
    with suppress(ConfigError, *UNREADABLE):  # the run was not tested yet
        result = read_json(run / "result.json")
        if result["record"] == record.to_dict():
            found = {score_title(name): result.get(name) for name in SCORES}
            means = {
                name: score["mean"] if isinstance(score, dict) else score for name, score in found.items()
            }
            return {name: mean for name, mean in means.items() if mean is not None}
    return {}


def _refuse_other(audit: AuditResult, segmenter: Segmenter) -> None:
    """Raise ConfigError for the audit of a network with other slices, made in another way, or with other weights."""
    model = cast("nn.Module", segmenter.network)
    run, record = audit.run, record_of(model)
    pairs: list[tuple[str, Any, Any]] = [("slices", run.slices, segmenter.slices)]
    if record is not None and run.strategy is not None:
        pairs += [("strategy", run.strategy, record.strategy), ("tie", run.tie, record.tie)]
    if segmenter.source is not None and "origin" in run.model:  # as the command line states it
        if not _has_stems(model, audit.kernels):  # another file may hold the same weights
            pairs.append(("weights", run.model["origin"], segmenter.source.origin))
        pairs.append(("symmetrized", run.model.get("symmetrized"), record and record.symmetrized_at))
    for what, audited, exported in pairs:
        if audited != exported:
            raise ConfigError(
                f"the audit {audit.name!r} is of another network than the one that is exported ({what}: {audited} instead of "
                f"{exported}); audit that one"
            )


def _has_stems(model: nn.Module, kernels: Sequence[StemKernels]) -> bool:
    """Return whether a network has the stems whose kernels an audit saw, if it saw any."""
    modules = dict(model.named_modules())
    weights = [getattr(modules.get(stem.name), "weight", None) for stem in kernels]
    return bool(kernels) and all(
        isinstance(weight, torch.Tensor)
        and np.array_equal(weight.detach().float().cpu().numpy().reshape(-1), stem.after.reshape(-1))
        for weight, stem in zip(weights, kernels, strict=True)
    )


def _output_shape(model: nn.Module, slices: int, size: tuple[int, int] | None) -> tuple[int, ...] | None:
    """Return the shape of what a network gives for one window of noise; None if it does not run on that."""
    only, multiple = input_sizes(model)
    side = -(-TRIED // multiple) * multiple
    windows = trial_windows(slices, only or size or (side, side))
    network = frozen_copy(model).cpu()
    with suppress(Exception), torch.no_grad():  # it may raise anything, and some need no logits to be saved
        return tuple(logits(network(windows)).shape)
    return None


README = "README.md"
HUGGINGFACE_FILES = ("model.safetensors", "config.json", README)


def _rendered(template: str, stated: dict[str, Any], **values: Any) -> str:
    """Fill a template with what a network says about itself."""
    with needs_extra("export", "writing a model card"):
        import jinja2
    environment = jinja2.Environment(  # noqa: S701  # "plain" and "tojson" escape what comes from others
        trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True, undefined=jinja2.StrictUndefined
    )
    environment.filters["plain"] = _plain
    text = Path(__file__).with_name(f"{template}.jinja").read_text(encoding="utf-8")
    slices, default = stated["slices"], Reading().to_plain()
    window = "1 slice" if slices == 1 else f"{slices} slices"
    return environment.from_string(text).render(
        **stated | values,
        window=window,
        name=stated["card"]["name"] or f"evenslice network for windows of {window}",
        citations=(*stated["card"]["cite"], PAPER),
        offsets=[stated["step"] * (place - slices // 2) for place in range(slices)],
        reading={name: stated[name] for name, value in default.items() if stated[name] != value},
    )


def _plain(text: object) -> str:
    r"""Return text of others as one line that Markdown shows as it is.

    Example:
        >>> _plain("a | <b>")
        'a \\| &lt;b&gt;'
    """
    return re.sub(r"([\\`*\[\]|#])", r"\\\1", html.escape(" ".join(str(text).split()), quote=False))


def write_huggingface(
    model: nn.Module, folder: Path, stated: dict[str, Any], source: ModelSource | None
) -> None:
    """Write the files of a model into an existing folder; ``load_network`` reads them.

    Raises:
        ModelError: the network has no record of ``neutralize``.
    """
    if source is not None:
        source = replace(source, weights=Path(source.weights).name)  # without folders of this machine
    save_network(model, folder / "model.safetensors", source=source)
    record, built = stated["record"] or {}, stated["source"] or {}
    first = {  # what people look for first
        "library_name": METADATA_KEY,
        **{name: built.get(name) for name in ("spec", "classes")},
        **{name: record.get(name) for name in ("strategy", "symmetrized")},
    }
    (folder / "config.json").write_text(json_text(first | stated), encoding="utf-8")
    (folder / README).write_text(_rendered("model_card.md", stated, to="huggingface"), encoding="utf-8")


WEIGHTS, TEST_INPUT, TEST_OUTPUT = "weights.onnx", "test_input.npy", "test_output.npy"
BIOIMAGEIO_FILES = ("rdf.yaml", README, WEIGHTS, TEST_INPUT, TEST_OUTPUT)


def write_bioimageio(
    model: nn.Module, folder: Path, stated: dict[str, Any], tile: tuple[int, int] | None
) -> WrittenOnnx:
    """Write a model for bioimage.io into an existing folder; its description is validated.

    Raises:
        ModelError: the network cannot be exported, or gives no map of classes.
        ConfigError: the name, an author, the license or a citation is not as bioimage.io wants it.
        MissingExtraError: bioimageio.spec is not installed.
    """
    with needs_extra("export", "writing a model for bioimage.io"):
        import bioimageio.spec  # noqa: F401
    written = write_onnx(model, folder / WEIGHTS, stated, scaled=False, tile=tile)
    low, high = stated["intensity"] or (0.0, 255.0)
    noise = np.random.default_rng(0).random((1, stated["slices"], *written.window))
    voxels = (low + (high - low) * noise).astype(np.float32)
    np.save(folder / TEST_INPUT, voxels)
    (output,) = open_session(folder / WEIGHTS).run(None, {INPUT: _preprocessed(voxels, stated)})
    if output.ndim != 4:
        raise ModelError(
            f"the network {type(model).__name__} returns an output of shape {output.shape}; bioimage.io needs a map "
            f"(batch, classes, y, x): export it with {option('to', 'onnx')}"
        )
    np.save(folder / TEST_OUTPUT, output)
    (folder / README).write_text(_rendered("model_card.md", stated, to="bioimageio"), encoding="utf-8")
    document = _validated(_document(stated, written, output.shape[1]), folder)
    (folder / "rdf.yaml").write_text(json_text(document), encoding="utf-8")  # JSON is YAML
    return written


def _preprocessed(voxels: NDArray[np.float32], stated: dict[str, Any]) -> NDArray[np.float32]:
    """Compute what ``preprocessing`` of the description says."""
    low, high = stated["intensity"] or np.percentile(voxels, Scaling.PERCENTILES).tolist()
    mean, std = (by_slice(values).numpy() for values in (stated["mean"], stated["std"]))
    return np.asarray((Scaling(low, high)(voxels) - mean) / std, np.float32)


def _document(stated: dict[str, Any], written: WrittenOnnx, channels: int) -> Any:
    """Return the description as plain values, as ``rdf.yaml`` holds it."""
    from bioimageio.spec.model.v0_5 import ModelDescr

    first = 1 if channels == 1 else 0  # the class of the first channel
    values = stated["label_values"]
    text = _rendered(
        "rdf.json",
        stated,
        written=written,
        format_version=ModelDescr.implemented_format_version,
        cite=[_citation(text) for text in (*stated["card"]["cite"], PAPER)],
        classes=range(first, first + channels),
        values=values if values and len(values) == first + channels else None,
        percentiles=Scaling.PERCENTILES,
    )
    return json.loads(text) | {"config": {"evenslice": stated | {"scaled_in_graph": False}}}


def _citation(text: str) -> dict[str, str]:
    doi = re.search(r"\b10\.\d{4,}/\S+[\w/]", text)
    if doi and "://" not in text[: doi.start()].rpartition(" ")[2]:
        return {"text": text, "doi": doi[0]}
    url = re.search(r"https?://\S+[\w/]", text)
    if url is None:
        raise ConfigError(f"{option('cite', text)}: bioimage.io needs a DOI or an address in it; add one")
    return {"text": text, "url": url[0]}


def _validated(document: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Return a description as bioimageio.spec writes it, with the digests of its files.

    Raises:
        ConfigError: it does not take the description.
    """
    from bioimageio.spec import InvalidDescr, ValidationContext, build_description, dump_description
    from loguru import logger

    addresses = {str(entry.get("url")): None for entry in document["cite"]}  # known: nothing is looked up
    logger.disable("bioimageio")  # which logs its own steps
    try:
        with (
            quiet_libraries(),
            ValidationContext(root=folder, known_files={**addresses}, perform_io_checks=True),
        ):
            built = build_description(document)
            if isinstance(built, InvalidDescr):
                error = next(entry for detail in built.validation_summary.details for entry in detail.errors)
                raise ConfigError(
                    f"{'.'.join(map(str, error.loc))}: {error.msg}; bioimage.io does not take it"
                )
            return dict(dump_description(built))
    finally:
        logger.enable("bioimageio")


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
    """Write a network for other programs, and check the files.

    The network itself is left unchanged. See ``docs/export.md`` for the content of each format.

    Args:
        model: maps (batch, slices, y, x) to logits. Slices in 0..1 are scaled by its record, else by the mean and std
            that its library states for pretrained weights, else not at all. Or a ``Segmenter``.
        out: the folder, created if missing.
        to: ``"onnx"``: ``network.onnx``, which takes slices in 0..1. ``"bioimageio"``: a model for bioimage.io with ONNX
            weights, which takes voxel values. ``"huggingface"``: weights, ``config.json`` and a model card, which
            ``load_network`` takes back.
        slices: N; by default recorded by ``neutralize`` or stated by the segmenter, else 3.
        reading: how it reads volumes and their labels; by default the segmenter's.
        source: specification and weights of the network, as returned by ``load_network``; by default from the
            segmenter.
        tile: fix the size (y, x) of the windows; by default ``crop``, else free where the network allows that. Not for
            weights.
        crop: the size (y, x) of a classifier's windows in training, for the card and for commands that take the
            folder; by default the segmenter's.
        card: name, authors, license and citations.
        audits: audits of the network, for its card; refused if their slices, strategy, tie or file of weights are of
            another network.
        force: overwrite an earlier export in the same format.

    Raises:
        ModelError: the network cannot be exported in this format, or the file computes something else.
        ConfigError: an option is out of range or unknown, ``slices`` differs from the record of the network, or an
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
    stated = describe(replace(segmenter, source=source, crop=crop), card or ModelCard(), audits)
    files, written = FORMATS[to], None
    own = [name for name in files if name != README]  # which two formats share
    with staged_folder(out, files, documents=own, force=force) as folder:
        if to == "huggingface":
            write_huggingface(network, folder, stated, source)
        elif to == "bioimageio":
            written = write_bioimageio(network, folder, stated, tile)
        else:
            written = write_onnx(network, folder / "network.onnx", stated, scaled=True, tile=tile)
    return Exported(
        Path(out),
        to,
        files,
        *(stated[name] for name in ("slices", "mean", "std")),
        *((written.tile, written.multiple, written.difference) if written else (None, None, None)),
    )
