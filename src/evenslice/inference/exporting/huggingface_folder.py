"""Folders as Hugging Face keeps models: ``model.safetensors``, ``config.json`` and a model card."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evenslice._core import json_text, needs_extra
from evenslice.inference.exporting.description import LIBRARY
from evenslice.inference.exporting.licenses import hub_license
from evenslice.inference.exporting.readme import README, readme_text
from evenslice.neutralizing import save_network
from evenslice.volumes import Reading

if TYPE_CHECKING:
    from torch import nn

    from evenslice.inference.exporting.description import Description
    from evenslice.networks import ModelSource

__all__ = ["HUGGINGFACE_FILES", "write_huggingface"]

HUGGINGFACE_FILES = ("model.safetensors", "config.json", README)
TAGS = ("evenslice", "2.5d", "volumes")


def write_huggingface(
    model: nn.Module, folder: Path, description: Description, source: ModelSource | None
) -> None:
    """Write the files of a model into an existing folder; ``load_network`` reads them.

    Raises:
        ModelError: the network has no record of ``neutralize``.
        ConfigError: the license is no identifier.
        MissingExtraError: huggingface_hub is not installed.
    """
    header = _header(description)  # first, as it checks the license
    if source is not None:
        source = replace(source, weights=Path(source.weights).name)  # without folders of this machine
    save_network(model, folder / "model.safetensors", source=source)
    configuration = {"library_name": LIBRARY, **_settings(description)}
    (folder / "config.json").write_text(json_text(configuration), encoding="utf-8")
    (folder / README).write_text(
        f"---\n{header}\n---\n\n{readme_text(description, _usage(description))}",
        encoding="utf-8",
    )


def _settings(description: Description) -> dict[str, Any]:
    """Return the document with what people look for first."""
    values = description.to_dict()
    record, source = values["record"] or {}, values["source"] or {}
    first = {
        "spec": source.get("spec"),
        "classes": source.get("classes"),
        "strategy": record.get("strategy"),
        "symmetrized": record.get("symmetrized"),
    }
    return first | values


def _header(description: Description) -> str:
    """Return the metadata of the model card as YAML."""
    with needs_extra("export", "writing a model card"):
        from huggingface_hub import ModelCardData

    card = description.card
    data = ModelCardData(
        license=hub_license(card.license) if card.license else None,
        library_name=LIBRARY,
        tags=[*TAGS, f"image-{description.task}"],
        pipeline_tag=f"image-{description.task}",
        model_name=card.name,
        authors=list(card.authors) or None,
    )
    return data.to_yaml()


def _usage(description: Description) -> list[str]:
    spec = (description.source or {}).get("spec", "SPEC")
    load = [
        "import evenslice",
        "",
        f'network = evenslice.load_network({spec!r}, "path/to/this/folder").model',
    ]
    if description.task == "classification":
        size = "y, x" if description.crop is None else ", ".join(map(str, description.crop))
        return [
            *load,
            f"logits = network(windows)  # (batch, {description.slices}, {size}), scaled as above: (batch, classes)",
        ]
    default = Reading().to_plain()
    given = {name: value for name, value in description.reading.to_plain().items() if value != default[name]}
    values = ", ".join(f"{name}={value!r}" for name, value in given.items())
    reading = f", reading=evenslice.Reading({values})" if given else ""
    return [*load, f'evenslice.segment(network, "volume.tif", "labels.tif"{reading})']
