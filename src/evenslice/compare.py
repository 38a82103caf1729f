"""Audits side by side: of one network as it was pretrained and after each strategy, and all of them in one folder."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from evenslice.attribution import check_method
from evenslice.auditing import audit
from evenslice.checkpoints import load_network
from evenslice.report import FIGURES, TABLES, write_figures, write_report, write_tables
from evenslice.results import save_audits
from evenslice.strategies import find_strategy

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from evenslice.auditing import VolumeLike
    from evenslice.results import Audit

__all__ = ["AUDITS", "RENDERED", "audit_strategies", "write_rendered", "write_results"]

AUDITS = ("audit*.json", "audit*.npz")
"""Name patterns of the audits in a folder of results."""

RENDERED = ("report.html", *(f"figures/{name}" for name in FIGURES), *(f"tables/{name}" for name in TABLES))
"""Name patterns of what is drawn from them."""


def audit_strategies(
    spec: str,
    weights: str,
    volume: VolumeLike | Sequence[VolumeLike],
    *,
    strategies: Sequence[str] = ("pretrained",),
    methods: Sequence[str] = ("gradient",),
    network: dict[str, Any] | None = None,
    command: str | None = None,
    **options: Any,
) -> list[Audit]:
    """Load a network once for each strategy and audit it by each method.

    Args:
        spec: the network, as ``load_network`` takes it.
        weights: its weights, likewise.
        volume: one volume or several, as ``audit`` takes them.
        strategies: how the stem's colour kernels become slice kernels; "pretrained" is the network as it is built.
        methods: of attribution.
        network: further keyword arguments of ``load_network``: slices, tie, classes, seed.
        command: the command line to note in the results.
        options: further keyword arguments of ``audit``.

    Returns:
        One audit for each strategy and method, named after what differs among them.
    """
    for strategy in strategies:
        find_strategy(strategy, (network or {}).get("slices") or 3)
    for method in methods:
        check_method(method)
    audits = []
    for strategy in strategies:
        model, record, source = load_network(spec, weights, strategy=strategy, **(network or {}))
        for method in methods:
            found = audit(model, volume, method=method, **options)
            run = {**found.run, "model": found.run["model"] | source.to_dict(), "command": command}
            name = _name(record.strategy, method, several=(len(strategies) > 1, len(methods) > 1))
            audits.append(replace(found, name=name, run=run))
    return audits


def _name(strategy: str, method: str, *, several: tuple[bool, bool]) -> str:
    if several == (True, True):
        return f"{strategy}, {method}"
    return method if several == (False, True) else strategy


def write_results(audits: Sequence[Audit], folder: Path) -> None:
    """Write audits, their report, its figures and its tables into a folder that exists."""
    save_audits(audits, folder)
    write_rendered(audits, folder)


def write_rendered(audits: Sequence[Audit], folder: Path) -> None:
    """Write the report of audits, its figures (PNG, SVG) and its tables (CSV) into a folder that exists."""
    write_report(audits, folder / "report.html")
    write_figures(audits, folder / "figures")
    write_tables(audits, folder / "tables")
