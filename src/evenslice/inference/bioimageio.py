"""Models as bioimage.io describes them: ``rdf.yaml`` with ONNX weights, test tensors and the preprocessing.

https://bioimage.io; the format is that of the package bioimageio.spec, model description 0.5, which checks it.
"""

from __future__ import annotations

import re
import warnings
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from evenslice._core import ConfigError, ModelError, json_text, needs_extra, option
from evenslice.inference.model_card import README, readme_text
from evenslice.inference.onnx_files import INPUT, OUTPUT, write_onnx
from evenslice.inference.onnx_networks import open_session
from evenslice.volumes import PERCENTILES, Scaling

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray
    from torch import nn

    from evenslice.inference.model_card import Description
    from evenslice.inference.onnx_files import WrittenOnnx


WEIGHTS, TEST_INPUT, TEST_OUTPUT = "weights.onnx", "test_input.npy", "test_output.npy"
BIOIMAGEIO_FILES = ("rdf.yaml", README, WEIGHTS, TEST_INPUT, TEST_OUTPUT)
EPS = 1e-6  # of ``scale_range``
USAGE = [
    "import bioimageio.core",
    "import numpy as np",
    "",
    'model = bioimageio.core.load_description("rdf.yaml")',
    f'windows = np.load("{TEST_INPUT}")  # (batch, slices, y, x), raw voxel values',
    f'logits = bioimageio.core.predict(model=model, inputs={{"{INPUT}": windows}}).members["{OUTPUT}"]',
]


def write_bioimageio(
    model: nn.Module, folder: Path, description: Description, tile: tuple[int, int] | None
) -> WrittenOnnx:
    """Write a model for bioimage.io into an existing folder; its description is validated.

    Raises:
        ModelError: the network cannot be exported, or gives no map of classes.
        ConfigError: the name, an author, the license or a citation is not as bioimage.io wants it.
        MissingExtraError: bioimageio.spec is not installed.
    """
    with needs_extra("export", "writing a model for bioimage.io"):
        import bioimageio.spec  # noqa: F401
    written = write_onnx(model, folder / WEIGHTS, description, scaled=False, tile=tile)
    if len(written.shape) != 4:
        raise ModelError(
            f"the network {type(model).__name__} returns an output of shape {written.shape}; bioimage.io needs a map "
            f"(batch, classes, y, x): export it with {option('to', 'onnx')}"
        )
    low, high = description.reading.intensity or (0.0, 255.0)
    noise = np.random.default_rng(0).random((1, description.slices, *written.window))
    voxels = (low + (high - low) * noise).astype(np.float32)
    np.save(folder / TEST_INPUT, voxels)
    (output,) = open_session(folder / WEIGHTS).run(None, {INPUT: _preprocessed(voxels, description)})
    np.save(folder / TEST_OUTPUT, output)
    (folder / README).write_text(readme_text(description, USAGE), encoding="utf-8")
    document = _validated(_document(description, written), folder)
    (folder / "rdf.yaml").write_text(json_text(document), encoding="utf-8")  # JSON is YAML
    return written


def _preprocessed(voxels: NDArray[np.float32], description: Description) -> NDArray[np.float32]:
    """Compute what ``preprocessing`` of the description says."""
    low, high = description.reading.intensity or np.percentile(voxels, PERCENTILES).tolist()
    mean, std = (
        np.asarray(values, np.float32).reshape(1, -1, 1, 1) for values in (description.mean, description.std)
    )
    return ((Scaling(low, high)(voxels) - mean) / std).astype(np.float32)


def _document(description: Description, written: WrittenOnnx) -> dict[str, Any]:
    """Return the description as plain values, as ``rdf.yaml`` holds it."""
    from bioimageio.spec.model.v0_5 import ModelDescr

    card, axis = description.card, description.reading.plane  # along which slices follow one another
    sizes: Any = written.tile
    if written.tile is None:
        sizes = [{"min": min(written.window), "step": written.multiple}] * 2
    batch: dict[str, Any] = {"type": "batch"} | ({"size": 1} if written.batch else {})
    plane = [{"type": "space", "id": axis, "size": size} for axis, size in zip("yx", sizes, strict=True)]
    same = [{"type": "space", "id": axis, "size": {"tensor_id": INPUT, "axis_id": axis}} for axis in "yx"]
    slices = {
        "type": "channel",
        "id": "channel",
        "description": f"Neighbouring slices of a volume, in their order along {axis}; not colours",
        "channel_names": [f"{axis}{offset:+d}" if offset else axis for offset in description.offsets],
    }
    classes = {
        "type": "channel",
        "id": "channel",
        "description": "Logits of the classes; a single one stands for class 1",
        "channel_names": _class_names(written.shape[1], description),
    }
    window = {"id": INPUT, "description": f"A window of slices around slice {axis}"}
    scores = {"id": OUTPUT, "description": f"Scores of slice {axis}"}
    kind = {"data": {"type": "float32"}}
    authors = [{"name": name} for name in card.authors or ("Unnamed author",)]
    return {
        "format_version": ModelDescr.implemented_format_version,
        "type": "model",
        "name": description.name,
        "description": card.description
        or f"Segments slice {axis} of a volume from a window of {description.window}.",
        "authors": authors,
        **({"license": card.license} if card.license else {}),
        "cite": [_citation(text) for text in description.citations],
        "documentation": {"source": README},
        "tags": ["semantic-segmentation", "2d", "evenslice", "slices"],
        "inputs": [
            {
                **window,
                "axes": [batch, slices, *plane],
                **kind,
                "test_tensor": {"source": TEST_INPUT},
                "preprocessing": _preprocessing(description),
            }
        ],
        "outputs": [
            {**scores, "axes": [batch, classes, *same], **kind, "test_tensor": {"source": TEST_OUTPUT}}
        ],
        "weights": {"onnx": {"source": WEIGHTS, "opset_version": written.opset, "authors": authors}},
        "config": {"evenslice": description.to_dict() | {"scaled_in_graph": False}},
    }


def _class_names(channels: int, description: Description) -> list[str]:
    first = 1 if channels == 1 else 0
    names = [f"class {number}" for number in range(first, first + channels)]
    values = description.reading.labels.label_values
    if values is None or len(values) != first + channels:
        return names
    return [f"{name} (label {value})" for name, value in zip(names, values[first:], strict=True)]


def _preprocessing(description: Description) -> list[dict[str, Any]]:
    """Return the steps from voxel values to the network's input: to 0..1, then by mean and std."""
    steps: list[dict[str, Any]] = []
    if description.reading.intensity is None:
        low, high = PERCENTILES
        # With the batch, which makes it one scale for all: identical slices stay identical.
        axes = ["batch", "channel", "y", "x"]
        kwargs = {"axes": axes, "min_percentile": low, "max_percentile": high, "eps": EPS}
        steps.append({"id": "scale_range", "kwargs": kwargs})
    elif description.reading.intensity != (0.0, 1.0):
        low, high = description.reading.intensity
        kwargs = {"gain": 1 / (high - low), "offset": -low / (high - low)}
        steps.append({"id": "scale_linear", "kwargs": kwargs})
    steps.append({"id": "clip", "kwargs": {"min": 0.0, "max": 1.0}})
    values = {"mean": description.mean, "std": description.std}
    kwargs = {name: given[0] for name, given in values.items()}
    if max(map(len, values.values())) > 1:
        every = {name: list(given) * (description.slices // len(given)) for name, given in values.items()}
        kwargs = {"axis": "channel", **every}
    return [*steps, {"id": "fixed_zero_mean_unit_variance", "kwargs": kwargs}]


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
    with _quiet_library():
        from bioimageio.spec import InvalidDescr, ValidationContext, build_description, dump_description

        addresses = {str(entry.get("url")): None for entry in document["cite"]}  # known: nothing is looked up
        with ValidationContext(root=folder, known_files={**addresses}, perform_io_checks=True):
            built = build_description(document)
        if isinstance(built, InvalidDescr):
            error = next(entry for detail in built.validation_summary.details for entry in detail.errors)
            raise ConfigError(f"{'.'.join(map(str, error.loc))}: {error.msg}; bioimage.io does not take it")
        return dict(dump_description(built))


@contextmanager
def _quiet_library() -> Iterator[None]:
    """Keep to itself that the library logs its own steps, warns of its own parts and leaves files open."""
    from loguru import logger

    logger.disable("bioimageio")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.enable("bioimageio")
