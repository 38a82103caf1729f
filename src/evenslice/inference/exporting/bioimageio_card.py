"""What people write about a model for bioimage.io: its name, authors, license and citations, checked before all else."""

from __future__ import annotations

import re
import warnings
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from evenslice._core import ConfigError, needs_extra, option
from evenslice.inference.exporting.licenses import match_license

if TYPE_CHECKING:
    from collections.abc import Iterator

    from evenslice.inference.exporting.description import Description

__all__ = ["card_entries", "quiet_library"]

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
