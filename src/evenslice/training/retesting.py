"""Test a network that was trained elsewhere, and leave the folder that its training would have left."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from evenslice._core import ModelError
from evenslice.neutralizing import record_of, save_network
from evenslice.training.data import open_data
from evenslice.training.preflight import find_device
from evenslice.training.result import describe_data, finish_run
from evenslice.training.run_folder import RunFolder, fixed_options
from evenslice.training.segmenter import reading_of

if TYPE_CHECKING:
    import os

    from torch import nn

    from evenslice.networks import ModelSource
    from evenslice.training.config import TrainConfig
    from evenslice.training.documents import TrainResult

__all__ = ["retest"]

UNTRAINED = ({"step": 0.0, "seconds": 0.0},)
"""The log of a run without training."""


def retest(
    network: nn.Module,
    source: ModelSource,
    config: TrainConfig,
    out: str | os.PathLike[str],
    *,
    trained: RunFolder,
    progress: bool | None = False,
) -> TrainResult:
    """Test a network that was changed after its training, and write everything to a folder.

    The folder gets the files of ``train`` but its log and checkpoints: ``config.yaml``, ``data.json``,
    ``network.safetensors`` and ``result.json``, with 0 as ``steps`` and ``seconds``. A finished run is not changed.

    Args:
        network: the network, with the record that ``neutralize`` or ``symmetrize`` left on it.
        source: what it was built from.
        config: the configuration that describes the network as it is now, with its data.
        out: the folder.
        trained: the run that trained the network.
        progress: show the progress of the test: True for a bar, False for nothing, None for a bar on a terminal and
            lines elsewhere.

    Returns:
        The content of ``result.json``.

    Raises:
        OutputError: another process works in the folder, or it cannot be written.
        ConfigError: the options do not fit the data or the machine, or differ from those of the run in the folder; or
            the data are not those that the network was trained on.
        VolumeError: the data cannot be used.
        ModelError: the network has no record.

    Example: a trained network, made fair afterwards.
        >>> from evenslice.neutralizing import load_network, symmetrize
        >>> from evenslice.training import RunFolder, TrainConfig, retest
        >>> def test_symmetrized(config: TrainConfig, base: RunFolder, out: str) -> float | None:
        ...     model, _, source = load_network(config.model.spec, str(base.network))
        ...     return retest(symmetrize(model), source, config, out, trained=base)["dice"]["mean"]
    """
    run, record = RunFolder(Path(out).absolute()), record_of(network)
    if record is None:
        raise ModelError("the network has no record; load it with load_network, or call neutralize on it")
    with run.lock():
        if run.has_begun(config, resume=True) and run.result.exists():
            return run.read_result()
        run.remove_leftovers()
        find_device(config.training)  # raises if it is missing
        data = open_data(config.data, config.model, seed=config.seed)
        described = describe_data(data)
        trained.check_data(described)
        run.begin(described, config)
        reading = reading_of(config)
        began = fixed_options(config.model_dump(mode="json"))
        save_network(
            network, run.network, record=record, source=source, reading=reading, run=began, force=True
        )
        return finish_run(
            run, data, config, UNTRAINED, record=record, source=source, command=None, progress=progress
        )
