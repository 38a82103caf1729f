"""Licenses by their SPDX identifiers, https://spdx.org/licenses, in any case: ``mit`` is ``MIT``."""

from __future__ import annotations

import difflib
import re
import warnings

from evenslice._core import ConfigError, needs_extra, option

__all__ = ["hub_license", "match_license"]


def match_license(text: str) -> str:
    """Return the SPDX identifier that a text is, spelled as SPDX does.

    Raises:
        ConfigError: it is none that bioimageio.spec knows.
        MissingExtraError: bioimageio.spec is not installed.
    """
    current, deprecated = _known()
    found = {name.lower(): name for name in (*deprecated, *current)}.get(text.strip().lower())
    if found is None:
        raise _unknown(text, current)
    return found


def hub_license(text: str) -> str:
    """Return a license as Hugging Face writes it: in lower case.

    It has identifiers of its own as well, such as ``openrail``, so any word is taken.

    Raises:
        ConfigError: it is no identifier, but the name of a license or several words.
    """
    name = text.strip().lower()
    if not re.fullmatch(r"[a-z0-9][a-z0-9.+-]*", name):
        raise _unknown(text, _known()[0])
    return name


def _known() -> tuple[list[str], list[str]]:
    """Return the identifiers in use, and those that SPDX has replaced."""
    with needs_extra("export", "checking a license"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of parts of the library
        from bioimageio.spec.model.v0_5 import DeprecatedLicenseId, LicenseId
        from pydantic import TypeAdapter
    current, deprecated = (
        TypeAdapter(kind).json_schema()["enum"] for kind in (LicenseId, DeprecatedLicenseId)
    )
    return current, deprecated


def _unknown(text: str, known: list[str]) -> ConfigError:
    # Not ``did_you_mean``: a few of hundreds of identifiers say nothing, nor do those of other licenses with similar names.
    sought = _bare(text)
    names = {_bare(name): name for name in known if _family(_bare(name)) == _family(sought)}
    near = difflib.get_close_matches(sought, names, n=1)
    hint = f"did you mean {names[near[0]]!r}? " if near else ""
    return ConfigError(
        f"{option('license', text)}: {hint}give an SPDX identifier, such as CC-BY-4.0, from https://spdx.org/licenses"
    )


def _bare(text: str) -> str:
    """Return the letters and digits of a license, without the words that people add to its identifier."""
    words = re.sub(r"\b(license|version|the)\b|v(?=\d)", "", text.lower())
    return re.sub(r"[^a-z0-9]", "", words)


def _family(bare: str) -> str:
    return re.split(r"\d", bare, maxsplit=1)[0]
