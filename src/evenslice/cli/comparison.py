"""Several audits in one folder: of one network before and after each strategy, and by each method."""

from __future__ import annotations

import re
from dataclasses import asdict, replace
from statistics import fmean
from typing import TYPE_CHECKING, Any

from evenslice import ConfigError, ModelError, load_network, load_onnx, record_of, symmetrize
from evenslice._core import check_known, option
from evenslice.auditing import METHODS
from evenslice.inference import ONNX
from evenslice.networks import build_model, check_scaling, normalization
from evenslice.neutralizing import find_strategy, restore_average
from evenslice.report import write_report_files

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from torch import nn

    from evenslice import Audit, Record, Sampling
    from evenslice.cli.options import Network
    from evenslice.networks import ModelSource

AUDITS = ("audit.json", "audit.npz", "audit.[0-9]*-*.json", "audit.[0-9]*-*.npz")
"""Name patterns of the audits in a folder of results."""

LONGEST_SLUG = 60  # characters of an audit's name in that of its file


def audit_strategies(
    network: Network,
    measure: Callable[..., Audit],
    *,
    strategies: Sequence[str | tuple[float, ...]] = ("pretrained",),
    methods: Sequence[str | None] = (None,),
    sampling: Sampling,
    command: str | None = None,
) -> list[Audit]:
    """Load a network once for each strategy and audit it by each method.

    Args:
        network: the network; its specification may be "onnx" and its weights then the file.
        measure: ``evenslice.audit`` with everything given but the network, the method and the sampling.
        strategies: how colour kernels become slice kernels, or the weights of a profile; "pretrained" is the network as
            built.
        methods: attribution methods; None stands for the default of ``audit``.
        sampling: which windows are read; its seed is also that of the strategies, and its stress test is run once for each.
        command: the command line to note in the results.

    Returns:
        One audit for each strategy and method, named after what differs among them.

    Raises:
        ConfigError: an unknown strategy or method, or an option that would change an ONNX network.
    """
    for strategy in strategies:
        find_strategy(strategy, network.slices or 3)
    for name in filter(None, methods):
        check_known("method", name, METHODS)
    strategies, methods = [*dict.fromkeys(strategies)], [*dict.fromkeys(methods)]
    audits = []
    for model, title, source in _networks(network, strategies, sampling.seed):
        lost = None
        for number, method in enumerate(methods):
            own = sampling if number == 0 else replace(sampling, stress=False)
            found = measure(model, slices=network.slices, method=method, sampling=own)
            lost = found.stress if number == 0 else lost  # which no method changes
            scaling = _scaling(network, model, found.run.scaling)
            run = replace(found.run, model=found.run.model | source, scaling=scaling, command=command)
            name = title if len(methods) == 1 else f"{title}, {run.method}"
            if len(strategies) == 1 < len(methods) and title in ("pretrained", "audit"):
                name = run.method
            audits.append(replace(found, name=name, stress=lost, run=run))
    return audits


def _networks(
    network: Network, strategies: Sequence[str | tuple[float, ...]], seed: int
) -> Iterator[tuple[nn.Module | Callable[..., Any], str, dict[str, Any]]]:
    """Yield the network for each strategy, its title, and what it was built from."""
    if network.spec == ONNX:
        onnx = _load_onnx(network, strategies)
        source = {"spec": ONNX, "weights": network.weights, "origin": onnx.origin}
        yield _symmetrized(network, onnx, ("audit", "symmetrized"), source)
        return
    for strategy in strategies:
        try:
            loaded = load_network(**asdict(network), strategy=strategy, seed=seed)
        except ModelError as error:
            yield _plain(network, strategy, seed, error)
            continue
        source = loaded.source.to_dict()
        if (place := loaded.record.symmetrized_at) is not None:
            source["symmetrized"] = place
        yield loaded.model, _title(strategy, loaded.record, loaded.source), source


def _scaling(network: Network, model: Any, scaling: dict[str, Any] | None) -> dict[str, Any] | None:
    """Say where the scaling of a network comes from that was neutralized here, and not recorded before."""
    record = None if network.spec == ONNX else record_of(model)
    given = network.mean is not None or network.std is not None
    if network.spec == ONNX or not (given or (record is not None and record.kernels)):
        return scaling
    source = "given" if given else "assumed" if normalization(model) is None else "stated"
    return {**(scaling or {}), "source": source}


def _plain(
    network: Network, strategy: str | tuple[float, ...], seed: int, error: ModelError
) -> tuple[nn.Module, str, dict[str, Any]]:
    """Return a network as it was built, scaled as given, where its stems cannot be found and nothing was to be done to them.

    Raises:
        ModelError: ``error``, as something was, or as the network cannot be built either.
    """
    if strategy != "pretrained" or network.tie is not None:
        raise error
    model: Any
    try:
        model, source = build_model(network.spec, network.weights, classes=network.classes, seed=seed)
        restore_average(model)
    except ModelError:
        raise error from error.__cause__
    if network.mean or network.std:
        mean, std = normalization(model) or ((0.0,), (1.0,))
        mean, std = tuple(network.mean or mean), tuple(network.std or std)
        check_scaling("mean", mean)
        check_scaling("std", std)
        if min(std) <= 0:
            raise ConfigError(f"{option('std')} has to be positive, not {network.std}")
        if len(mean) != len(std):
            mean, std = (fmean(mean),), (fmean(std),)
        model.pretrained_cfg = {"mean": mean, "std": std}
    return _symmetrized(network, model, ("as built", "as built, symmetrized"), source.to_dict())


def _symmetrized(
    network: Network, model: Any, titles: tuple[str, str], source: dict[str, Any]
) -> tuple[Any, str, dict[str, Any]]:
    """Return a network, its title and what it was built from, symmetrized if that was asked for."""
    if network.symmetrize is None:
        return model, titles[0], source
    return symmetrize(model, network.symmetrize), titles[1], source | {"symmetrized": network.symmetrize}


def _title(strategy: str | tuple[float, ...], record: Record, source: ModelSource) -> str:
    """Return what tables call a network: its strategy, but not "pretrained" where nothing is known to be."""
    title = record.strategy
    if not isinstance(strategy, str):
        title = f"profile {', '.join(f'{weight:g}' for weight in strategy)}"
    if title == "pretrained" and source.weights == "none":
        title = "random weights" if "*" in source.random else "as built"
    if record.tie is not None:
        title = f"{title}, tied"
    return title if record.symmetrized_at is None else f"{title}, symmetrized"


def _load_onnx(network: Network, strategies: Sequence[str | tuple[float, ...]]) -> Any:
    """Load a network from an ONNX file; refuse options that would change it."""
    changes = {
        "strategy": [name for name in strategies if name != "pretrained"],
        "tie": network.tie,
        "classes": network.classes,
    }
    for name, value in changes.items():
        if value:
            raise ConfigError(
                f"{option(name)}: an ONNX network cannot be changed; omit the option, or neutralize the network "
                "that was exported to the file"
            )
    return load_onnx(network.weights, mean=network.mean, std=network.std)


def write_results(audits: Sequence[Audit], folder: Path) -> None:
    """Write audits, their report, its figures and its tables into a folder that exists.

    The first audit is in ``audit.json``, the others are in ``audit.INDEX-NAME.json``.
    """
    for index, audit in enumerate(audits):
        slug = re.sub(r"[^a-z0-9]+", "-", audit.name.lower())[:LONGEST_SLUG].strip("-")
        audit.save(folder / ("audit.json" if index == 0 else f"audit.{index}-{slug}.json"))
    write_report_files(audits, folder)
