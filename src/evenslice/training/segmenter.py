"""The network of a training run, or any other one, and how a volume has to be shown to it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from evenslice._core import ConfigError, option
from evenslice.neutralizing import load_network

if TYPE_CHECKING:
    from pathlib import Path

    from torch import nn

__all__ = ["load_segmenter"]


def load_segmenter(
    run: Path | None = None, spec: str | None = None, weights: str | None = None, **options: Any
) -> tuple[nn.Module, dict[str, Any]]:
    """Load the network of a training run, or any other one, and say how it has to be used.

    Args:
        run: the folder of a finished run of ``train``, which says all of this; or
        spec: a network, see ``evenslice.networks.specification``, and
        weights: its weights, as ``load_network`` takes them.
        options: ``slices``, ``classes``, ``mean`` and ``std`` of ``load_network``, and ``step``, ``intensity`` and
            ``fill`` of ``segment``, those that are not None; with a run, only the last two.

    Returns:
        The network, and keyword arguments for ``segment``.

    Raises:
        ConfigError: neither a run nor a network is given or both are, or the run says what an option says.
        ModelError: the network cannot be loaded.
    """
    given = {name: value for name, value in options.items() if value is not None}
    use: dict[str, Any] = {name: given.pop(name) for name in ("step", "intensity", "fill") if name in given}
    if run is None:
        if spec is None or weights is None:
            raise ConfigError(
                f"no network was given; give {option('run')}, or {option('model')} and {option('weights')}"
            )
        network, record, _ = load_network(spec, weights, **given)
        return network, {"slices": record.slices, **use}
    from evenslice._core import load_config
    from evenslice.training.config import TrainConfig
    from evenslice.training.run_folder import RunFolder

    stated = [name for name in (*given, "step") if name in given or name in use]
    if spec is not None or weights is not None or stated:
        first = next(iter(stated), "model" if spec is not None else "weights")
        raise ConfigError(
            f"{option(first)}: the run {run} states its own; leave it out, or leave out {option('run')}"
        )
    files = RunFolder(run)
    if not files.network.exists():
        raise ConfigError(
            f"{run}: holds no finished run of `evenslice train`; name one, or finish it with `evenslice train --resume`"
        )
    config = load_config(files.config, TrainConfig)
    network, record, _ = load_network(config.model.spec, str(files.network))
    known = {"intensity": config.data.intensity, "fill": config.data.fill}
    return network, {
        "slices": record.slices,
        "step": config.model.step,
        "label_values": config.data.label_values,
        **known,
        **use,
    }
