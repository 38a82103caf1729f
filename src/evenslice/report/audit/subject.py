"""What was audited, for the top of the page: networks and volumes by name."""

from __future__ import annotations

from typing import TYPE_CHECKING

from evenslice.report.base.wording import listed

if TYPE_CHECKING:
    from collections.abc import Sequence

    from evenslice.results import AuditedVolume, AuditResult, AuditRun

MOST_NAMES = 3  # of networks or of volumes; the table of settings has all


def network_names(audits: Sequence[AuditResult]) -> str:
    """Name the networks of audits; each with the audits it belongs to if they differ."""
    audited: dict[str, list[str]] = {}
    for audit in audits:
        audited.setdefault(_network(audit.run), []).append(audit.name)
    if len(audited) == 1:
        return next(iter(audited))
    return _shortened([f"{network} ({', '.join(names)})" for network, names in audited.items()])


def volume_names(audits: Sequence[AuditResult]) -> str:
    """Name the volumes of audits, with their sizes; empty if none is known."""
    volumes = {(item.fingerprint, item.path): _volume(item) for audit in audits for item in audit.run.volumes}
    return _shortened(list(volumes.values()))


def _network(run: AuditRun) -> str:
    spec, weights, kind = (run.model.get(key) for key in ("spec", "weights", "class"))
    name = spec or kind
    text = str(name) if name else "a network of unknown name"
    text = f"{text}, weights {weights}" if weights else text
    return f"{text}, symmetrized" if run.model.get("symmetrized") else text


def _volume(volume: AuditedVolume) -> str:
    size = " × ".join(map(str, volume.shape))  # noqa: RUF001 - the sign of multiplication
    name = _short(volume.path) or "an array"
    return f"{name} ({size} voxels)" if size else name


def _short(path: str) -> str:
    """Leave out the folders of a path or an address, but not those inside a file.

    Example:
        >>> _short("/data/a.nii.gz"), _short("/data/em.h5:/raw/0"), _short("https://host/b/c.zarr")
        ('a.nii.gz', 'em.h5:/raw/0', 'c.zarr')
    """
    file, colon, inside = path.partition(":/")
    if not colon or inside.startswith("/"):  # no part of a file, or an address
        return path.rstrip("/").rpartition("/")[2]
    return f"{file.rpartition('/')[2]}:/{inside}"


def _shortened(names: list[str]) -> str:
    left = len(names) - MOST_NAMES
    return listed([*names[:MOST_NAMES], f"{left} more"] if left > 1 else names)
