"""Models as bioimage.io describes them: ``rdf.yaml`` with ONNX weights, test tensors and the preprocessing.

https://bioimage.io; the format is that of the package bioimageio.spec, model description 0.5. What people write about a
model, its name, authors, license and citations, is checked before all else.
"""

from __future__ import annotations

import re
import warnings
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from evenslice._core import ConfigError, ModelError, json_text, needs_extra, option
from evenslice.inference.exporting.huggingface import README, match_license, readme_text
from evenslice.inference.exporting.onnx_writing import INPUT, OUTPUT, write_onnx
from evenslice.inference.onnx_networks import open_session
from evenslice.volumes import PERCENTILES, Scaling

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray
    from torch import nn

    from evenslice.inference.exporting.description import Description
    from evenslice.inference.exporting.onnx_writing import WrittenOnnx

__all__ = ["BIOIMAGEIO_FILES", "write_bioimageio"]

WEIGHTS, TEST_INPUT, TEST_OUTPUT = "weights.onnx", "test_input.npy", "test_output.npy"
BIOIMAGEIO_FILES = ("rdf.yaml", README, WEIGHTS, TEST_INPUT, TEST_OUTPUT)
TAGS = ("semantic-segmentation", "2d", "evenslice", "slices")
EPS = 1e-6  # of ``scale_range``


def write_bioimageio(
    model: nn.Module, folder: Path, description: Description, tile: tuple[int, int] | None
) -> WrittenOnnx:
    """Write a model for bioimage.io into an existing folder; its description is validated.

    Raises:
        ModelError: the network cannot be exported, or gives no map of classes.
        ConfigError: the name, an author, the license or a citation is not as bioimage.io wants it.
        MissingExtraError: bioimageio.spec is not installed.
    """
    card = card_entries(description)  # before the network is converted, which takes long
    description = replace(description, card=replace(description.card, license=card.get("license")))
    written = write_onnx(model, folder / WEIGHTS, description, scaled=False, tile=tile)
    if len(written.shape) != 4:
        raise ModelError(
            f"the network {type(model).__name__} returns an output of shape {written.shape}; bioimage.io needs a map "
            f"(batch, classes, y, x): export it with {option('to', 'onnx')}"
        )
    voxels = _test_voxels(description, written.window)
    np.save(folder / TEST_INPUT, voxels)
    (output,) = open_session(folder / WEIGHTS).run(None, {INPUT: _preprocessed(voxels, description)})
    np.save(folder / TEST_OUTPUT, output)
    (folder / README).write_text(readme_text(description, _usage()), encoding="utf-8")
    _write_description(folder, _document(description, written, card))
    return written


def _test_voxels(description: Description, plane: tuple[int, int]) -> NDArray[np.float32]:
    low, high = description.reading.intensity or (0.0, 255.0)
    noise = np.random.default_rng(0).random((1, description.slices, *plane))
    return (low + (high - low) * noise).astype(np.float32)


def _preprocessed(voxels: NDArray[np.float32], description: Description) -> NDArray[np.float32]:
    """Compute what ``preprocessing`` of the description says."""
    low, high = description.reading.intensity or np.percentile(voxels, PERCENTILES).tolist()
    mean, std = (
        np.asarray(values, np.float32).reshape(1, -1, 1, 1) for values in (description.mean, description.std)
    )
    return ((Scaling(low, high)(voxels) - mean) / std).astype(np.float32)


def _document(description: Description, written: WrittenOnnx, card: dict[str, Any]) -> dict[str, Any]:
    """Return the description as plain values, as ``rdf.yaml`` holds it."""
    sizes: Any = (
        ({"min": min(written.window), "step": written.multiple} for _ in written.window)
        if written.tile is None
        else written.tile
    )
    axis = description.reading.plane  # along which slices follow one another
    batch: dict[str, Any] = {"type": "batch"} | ({"size": 1} if written.batch else {})
    plane = [{"type": "space", "id": axis, "size": size} for axis, size in zip("yx", sizes, strict=True)]
    same = [
        {"type": "space", "id": axis, "size": {"tensor_id": INPUT, "axis_id": axis}} for axis in ("y", "x")
    ]
    channels = {
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
    return {
        "format_version": _format_version(),
        "type": "model",
        **card,
        "documentation": {"source": README},
        "tags": list(TAGS),
        "inputs": [
            {
                "id": INPUT,
                "description": f"A window of slices around slice {axis}",
                "axes": [batch, channels, *plane],
                "data": {"type": "float32"},
                "test_tensor": {"source": TEST_INPUT},
                "preprocessing": _preprocessing(description),
            }
        ],
        "outputs": [
            {
                "id": OUTPUT,
                "description": f"Scores of slice {axis}",
                "axes": [batch, classes, *same],
                "data": {"type": "float32"},
                "test_tensor": {"source": TEST_OUTPUT},
            }
        ],
        "weights": {"onnx": {"source": WEIGHTS, "opset_version": written.opset, "authors": card["authors"]}},
        "config": {"evenslice": description.to_dict(scaled_in_graph=False)},
    }


def _format_version() -> str:
    from bioimageio.spec.model import v0_5

    return v0_5.ModelDescr.implemented_format_version


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
        steps.append(
            {"id": "scale_linear", "kwargs": {"gain": 1 / (high - low), "offset": -low / (high - low)}}
        )
    steps.append({"id": "clip", "kwargs": {"min": 0.0, "max": 1.0}})
    mean, std = description.mean, description.std
    if len(mean) == len(std) == 1:
        steps.append({"id": "fixed_zero_mean_unit_variance", "kwargs": {"mean": mean[0], "std": std[0]}})
    else:
        each = {
            "axis": "channel",
            **{
                name: list(values) * (description.slices // len(values))
                for name, values in (("mean", mean), ("std", std))
            },
        }
        steps.append({"id": "fixed_zero_mean_unit_variance", "kwargs": each})
    return steps


def _write_description(folder: Path, document: dict[str, Any]) -> None:
    """Validate a description, and write it with the digests of its files."""
    with quiet_library():
        from bioimageio.spec import InvalidDescr, ValidationContext, build_description, dump_description

        address = {str(entry.get("url")): None for entry in document["cite"]}  # known: nothing is looked up
        with ValidationContext(root=folder, known_files={**address}, perform_io_checks=True):
            built = build_description(document)
        if isinstance(built, InvalidDescr):
            error = next(
                (entry for detail in built.validation_summary.details for entry in detail.errors), None
            )
            where = ".".join(map(str, error.loc)) if error else "rdf.yaml"
            raise ConfigError(f"{where}: {error.msg if error else 'not valid'}; bioimage.io does not take it")
        content = dump_description(built)
    (folder / "rdf.yaml").write_text(json_text(content), encoding="utf-8")  # JSON is YAML


def _usage() -> list[str]:
    return [
        "import bioimageio.core",
        "import numpy as np",
        "",
        'model = bioimageio.core.load_description("rdf.yaml")',
        f'windows = np.load("{TEST_INPUT}")  # (batch, slices, y, x), raw voxel values',
        f'logits = bioimageio.core.predict(model=model, inputs={{"{INPUT}": windows}}).members["{OUTPUT}"]',
    ]


UNNAMED = "Unnamed author"
ADVICE = {
    "name": "use 5 to 128 letters, digits, spaces and _ + - ( )",
    "description": "bioimage.io takes at most 1,024 characters; shorten it",
    "author": "bioimage.io takes no / in a name; leave it out",
    "cite": "bioimage.io takes neither its DOI nor its address; correct it",
}


def card_entries(description: Description) -> dict[str, Any]:
    """Return the entries of ``rdf.yaml`` that the card of a network gives, as bioimage.io takes them.

    Raises:
        ConfigError: the name, the description, an author, the license or a citation is not as bioimage.io wants it.
        MissingExtraError: bioimageio.spec is not installed.
    """
    card = description.card
    entries: dict[str, Any] = {
        "name": description.name,
        "description": card.description
        or f"Segments slice {description.reading.plane} of a volume from a window of {description.window}.",
        "authors": [{"name": name} for name in card.authors or (UNNAMED,)],
        **({"license": match_license(card.license)} if card.license else {}),
        "cite": [_citation(text) for text in description.citations],
    }
    _check(entries)
    return entries


def _citation(text: str) -> dict[str, str]:
    doi = re.search(r"\b10\.\d{4,}/\S+[\w/]", text)
    if doi and "://" not in text[: doi.start()].rpartition(" ")[2]:
        return {"text": text, "doi": doi[0]}
    url = re.search(r"https?://\S+[\w/]", text)
    if url is None:
        raise ConfigError(f"{option('cite', text)}: bioimage.io needs a DOI or an address in it; add one")
    return {"text": text, "url": url[0]}


def _check(entries: dict[str, Any]) -> None:
    """Check entries by the fields of bioimageio.spec's model, which as a whole would need the network's files."""
    with quiet_library():
        from bioimageio.spec import ValidationContext
        from bioimageio.spec.model.v0_5 import ModelDescr
        from pydantic import ValidationError, create_model

        known = {name: ModelDescr.model_fields[name] for name in entries if name != "license"}
        fields: dict[str, Any] = {name: (field.annotation, field) for name, field in known.items()}
        values = {name: entries[name] for name in known}
        try:
            with ValidationContext(perform_io_checks=False):
                create_model("Card", **fields).model_validate(values)
        except ValidationError as error:
            name, *place = error.errors(include_url=False, include_context=False)[0]["loc"]
            raise _refusal(str(name), values[str(name)], place) from error


def _refusal(name: str, value: Any, place: list[int | str]) -> ConfigError:
    """Return the error about an entry, with the option as the user wrote it."""
    if name == "authors" and place:
        name, value = "author", value[place[0]]["name"]
    elif name == "cite" and place:
        value = value[place[0]]["text"]
    return ConfigError(f"{option(name, value)}: {ADVICE[name]}")


@contextmanager
def quiet_library() -> Iterator[None]:
    """Keep to itself that the library logs its own steps, warns of its own parts and leaves files open."""
    with needs_extra("export", "writing a model for bioimage.io"):
        import bioimageio.spec  # noqa: F401
        from loguru import logger
    logger.disable("bioimageio")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.enable("bioimageio")
