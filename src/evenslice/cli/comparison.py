"""Audits side by side: of one network as it was pretrained and after each strategy, and all of them in one folder."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from evenslice._core import ConfigError
from evenslice.auditing import audit, check_method
from evenslice.inference import load_onnx
from evenslice.neutralizing import find_strategy, load_network
from evenslice.report import FIGURES, TABLES, write_figures, write_report, write_tables
from evenslice.results import save_audits

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from torch import nn

    from evenslice.auditing import Audit, VolumeLike
    from evenslice.inference import OnnxNetwork

__all__ = ["AUDITS", "RENDERED", "audit_strategies", "write_rendered", "write_results"]

AUDITS = ("audit*.json", "audit*.npz")
"""Name patterns of the audits in a folder of results."""

RENDERED = ("report.html", *(f"figures/{name}" for name in FIGURES), *(f"tables/{name}" for name in TABLES))
"""Name patterns of what is drawn from them."""

ONNX = "onnx"
"""The specification of a network in an ONNX file."""


def audit_strategies(
    spec: str,
    weights: str,
    volume: VolumeLike | Sequence[VolumeLike],
    *,
    strategies: Sequence[str] = ("pretrained",),
    methods: Sequence[str] = (),
    network: dict[str, Any] | None = None,
    command: str | None = None,
    **options: Any,
) -> list[Audit]:
    """Load a network once for each strategy and audit it by each method.

    Args:
        spec: the network, as ``load_network`` takes it, or "onnx".
        weights: its weights, likewise; the file of an ONNX network.
        volume: one volume or several, as ``audit`` takes them.
        strategies: how the stem's colour kernels become slice kernels; "pretrained" is the network as it is built.
        methods: of attribution; by default what ``audit`` chooses.
        network: further keyword arguments of ``load_network``: slices, tie, classes, seed, mean, std.
        command: the command line to note in the results.
        options: further keyword arguments of ``audit``.

    Returns:
        One audit for each strategy and method, named after what differs among them.

    Raises:
        ConfigError: an option that an ONNX network, which stays as it is, does not have.
    """
    network = network or {}
    for strategy in strategies:
        find_strategy(strategy, network.get("slices") or 3)
    for method in methods:
        check_method(method)
    if spec == ONNX:
        options["slices"] = network.get("slices")
    audits = []
    for model, strategy, source in _networks(spec, weights, strategies, network):
        for chosen in methods or (None,):
            found = audit(model, volume, method=chosen, **options)
            run = {**found.run, "model": found.run["model"] | source, "command": command}
            several = (len(strategies) > 1, len(methods) > 1)
            audits.append(replace(found, name=_name(strategy, found.run["method"], several=several), run=run))
    return audits


def _networks(
    spec: str, weights: str, strategies: Sequence[str], network: dict[str, Any]
) -> Iterator[tuple[nn.Module | OnnxNetwork, str, dict[str, Any]]]:
    """Yield the network for each strategy, the strategy's name, and what the network was built from."""
    if spec == ONNX:
        yield _load_onnx(weights, strategies, network)
        return
    for strategy in strategies:
        model, record, source = load_network(spec, weights, strategy=strategy, **network)
        yield model, record.strategy, source.to_dict()


def _load_onnx(
    path: str, strategies: Sequence[str], network: dict[str, Any]
) -> tuple[OnnxNetwork, str, dict[str, Any]]:
    """Load a network from an ONNX file; refuse the options that would change it."""
    changes = {
        "strategy": [name for name in strategies if name != "pretrained"],
        "tie": network.get("tie"),
        "classes": network.get("classes"),
    }
    for name, value in changes.items():
        if value:
            raise ConfigError(
                f"--{name}: an ONNX network stays as it is; leave the option out, or neutralize the network that the file "
                "was exported from"
            )
    scaling = {name: network[name] for name in ("mean", "std") if network.get(name) is not None}
    model = load_onnx(path, **scaling)
    return model, "audit", {"spec": ONNX, "weights": str(path), "origin": model.origin}


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
