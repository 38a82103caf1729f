"""What evenslice writes into the metadata of a network's file, read back; and which file of a folder is a network's."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import fields
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from evenslice._core import UNREADABLE, ConfigError, ModelError, local_path, option, path_text, reason
from evenslice.networks import METADATA_KEY, ModelSource, check_source, parse_specification, read_metadata
from evenslice.neutralizing.record import Record
from evenslice.volumes import Reading

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

__all__ = ["check_asked", "find_in_folder", "read_saved", "saved_text"]

FORMAT = 1
MOST_CHANNELS = 2**16  # classes or inputs that the metadata of a file may name
FOLDER_WEIGHTS = "model.safetensors"
_DAMAGED: tuple[type[Exception], ...] = (*UNREADABLE, ModelError)


def find_in_folder(spec: str, weights: str | None) -> tuple[str, str]:
    """Return the specification of a network and its file of weights, of which a folder holds the file, or both.

    Args:
        spec: a specification; without weights, a folder, or a file of ``save_network``.
        weights: a folder; anything else is returned as it is.

    Raises:
        ModelError: without weights: there is no such folder or file, or it does not name a network of a library.

    Example:
        >>> find_in_folder("timm:resnet18", "imagenet")
        ('timm:resnet18', 'imagenet')
    """
    spec, weights = path_text(spec, "a network"), None if weights is None else path_text(weights, "weights")
    folder = local_path(spec if weights is None else weights, ModelError)
    file = folder if weights is None and folder.is_file() else folder / FOLDER_WEIGHTS
    if weights is not None:
        found = weights not in {"imagenet", "none"} and file.is_file()
        return spec, str(file) if found else weights
    if not file.is_file():
        raise ModelError(
            f"{spec}: is not a folder with {FOLDER_WEIGHTS}, nor a file that `evenslice neutralize` wrote; name one that "
            f"`evenslice export --to huggingface` wrote, or give {option('weights')} as well"
        )
    return _named_in(file), str(file)


def _named_in(file: Path) -> str:
    """Return the specification that a file of ``save_network`` names; a function is not called on its word alone."""
    text = read_metadata(file).get(METADATA_KEY)
    source = None if text is None else read_saved(str(file), text)[1]
    if source is None:
        raise ModelError(f"{file}: does not say which network it is of; give its specification as well")
    if not parse_specification(source.spec).library:
        raise ModelError(
            f"{file}: its network comes from the function {source.spec}; if you trust its module, give its name as well"
        )
    return source.spec


def saved_text(
    record: Record,
    source: ModelSource | None,
    reading: Reading | Mapping[str, Any] | None,
    run: Mapping[str, str] | None = None,
) -> str:
    """Return the metadata of a network's file, which ``read_saved`` and ``stated_reading`` read.

    Args:
        record: what was done to the network.
        source: what it was built from; None if unknown.
        reading: how it reads volumes and their labels, as such or as options by name; None if unknown.
        run: hashes of the options of its training; None if it comes from none.

    Raises:
        ConfigError: an entry of ``reading`` is unknown, or cannot be right; or ``source`` is something else.
    """
    check_source(source)
    if not isinstance(record, Record):
        raise ConfigError(
            f"{option('record')}: is {type(record).__name__}; give what evenslice.neutralize returned"
        )
    document = {
        "format": FORMAT,
        "version": version("evenslice"),
        "record": record.to_dict(),
        "source": None if source is None else source.to_dict(),
    }
    stated: dict[str, Any] = {}
    if reading:
        read = reading if isinstance(reading, Reading) else Reading(**reading)
        stated = {"reading": read.to_plain()}
    return json.dumps(document | stated | ({"run": dict(run)} if run else {}))


def read_saved(weights: str, text: str) -> tuple[Record, ModelSource | None]:
    """Parse the metadata that evenslice wrote into a file; the file may come from anywhere.

    Args:
        weights: the file, for messages.
        text: its metadata under ``METADATA_KEY``.

    Returns:
        What was done to the network, and what it was built from, if that is known.

    Raises:
        ModelError: they are not as ``save_network`` writes them.
    """
    try:
        document = json.loads(text)
        if document["format"] != FORMAT:
            raise ValueError(f"format {document['format']}, this version reads {FORMAT}")
        source = document["source"]
        return Record.from_dict(document["record"]), None if source is None else _parsed_source(source)
    except _DAMAGED as error:
        raise ModelError(
            f"{weights}: the metadata of evenslice in it cannot be read ({reason(error)}); save the network again"
        ) from error


def check_asked(
    spec: str, weights: str, asked: Mapping[str, Any], record: Record, saved: ModelSource | None
) -> None:
    """Check what is asked of a saved network against what it is.

    Args:
        spec: the network that is asked for.
        weights: the file, for messages.
        asked: any of slices, strategy, tie, seed and classes; None for what nobody asks for.
        record: what was done to the network in the file.
        saved: what it was built from, if that is known.

    Raises:
        ModelError: the file holds another network.
    """
    has: dict[str, Any] = {
        "slices": record.slices,
        "strategy": record.profile or record.strategy,
        "tie": record.tie,
        "seed": record.seed,
        "classes": None if saved is None else saved.classes,
    }
    for name, value in asked.items():
        wanted = tuple(value) if isinstance(value, Iterable) and not isinstance(value, str) else value
        if wanted is not None and has[name] is not None and wanted != has[name]:
            # Whoever asks for a strategy may do so by default, and cannot leave it out.
            advice = f"give {option(name, has[name])}" if name == "strategy" else f"leave out {option(name)}"
            if name == "seed":  # which may be for more than what it drew there
                advice = f"give {option('seed', has[name])} or no {option('strategy')}"
            raise ModelError(
                f"{weights}: was saved with {name} {has[name]}, not {wanted}; {advice}, or start from the original weights"
            )
    if asked["tie"] is not None and record.tie is None:
        raise ModelError(
            f"{weights}: was saved untied; leave out {option('tie')}, or start from the original weights"
        )
    # Another argument of the builder may fit as well and compute something else; a function may have moved.
    if saved is not None and saved.spec != spec and parse_specification(saved.spec).library:
        raise ModelError(f"{weights}: was saved as {saved.spec}, not {spec}")


def _parsed_source(values: Mapping[str, Any]) -> ModelSource:
    lists = {name: tuple(str(part) for part in values[name]) for name in ("random", "unused")}
    for name, kinds in {
        "spec": str,
        "weights": str,
        "origin": str,
        "classes": int | None,
        "inputs": int | None,
    }.items():
        value = values[name]
        if not isinstance(value, kinds) or (isinstance(value, int) and not 0 < value <= MOST_CHANNELS):
            raise ValueError(f"{name}: bad value {value!r:.40}")
    return ModelSource(**{entry.name: values[entry.name] for entry in fields(ModelSource)} | lists)
