"""The result of a training run: scores, what the log shows, and the circumstances."""

from __future__ import annotations

import datetime as dt
import math
import platform
from typing import TYPE_CHECKING, Any

import torch

from evenslice._core import ModelError, json_text, package_versions, staged_file, without_secrets
from evenslice.neutralizing import load_network
from evenslice.results import MAIN_SCORES
from evenslice.training.best_network import kept_validation
from evenslice.training.documents import RESULT_SCORES
from evenslice.training.monitor import bias_columns
from evenslice.training.preflight import find_device, find_dtype
from evenslice.training.tasks import final_scores
from evenslice.volumes import fingerprint

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import nn

    from evenslice.networks import ModelSource
    from evenslice.neutralizing import Record
    from evenslice.training.config import TrainConfig
    from evenslice.training.data import Data
    from evenslice.training.documents import DataPart, TrainResult
    from evenslice.training.run_folder import RunFolder

__all__ = ["describe_data", "finish_run"]

PACKAGES = ("evenslice", "torch", "lightning", "monai", "numpy", "timm", "segmentation-models-pytorch")


def finish_run(
    run: RunFolder,
    data: Data,
    config: TrainConfig,
    log: Sequence[Mapping[str, float]],
    *,
    record: Record,
    source: ModelSource,
    command: str | None,
    progress: bool | None = False,
) -> TrainResult:
    """Test the network of a run, as it is in its file, and write the result of the run.

    Args:
        run: the folder of the run, with its network.
        data: its data set.
        config: its configuration.
        log: rows of its log, see ``RunFolder.read_metrics``.
        record: that of the network.
        source: what the network was built from.
        command: the command line, if there is one.
        progress: show the progress of the test: True for a bar, False for nothing, None for a bar on a terminal and
            lines elsewhere.

    Returns:
        The content of ``result.json``.

    Raises:
        ModelError: the file of the network is damaged.
    """
    try:
        network = load_network(config.model.spec, str(run.network)).model
    except ModelError as error:
        raise ModelError(
            f"{error}; restore it, or delete it and resume the run, which writes it again from its checkpoint"
        ) from error
    result = {
        **_collect(network, data, config, log, progress),
        "network": source.to_dict(),
        "record": record.to_dict(),
        "command": command,
    }
    with staged_file(run.result) as beside:
        beside.write_text(json_text(result), encoding="utf-8")
    return run.read_result()


def _collect(
    network: nn.Module,
    data: Data,
    config: TrainConfig,
    log: Sequence[Mapping[str, float]],
    progress: bool | None,
) -> dict[str, Any]:
    """Test a trained network, and return what is known about it and the run."""
    device = find_device(config.training).type
    return {
        **_test(network, data, config, device, progress),
        **_summarize_log(log, config),
        "name": config.data.name,
        "seed": config.seed,
        "config": without_secrets(config.model_dump(mode="json")),
        "data": describe_data(data),
        "machine": {
            "platform": platform.platform(),
            "device": device,
            "devices": config.training.devices,
            "dtype": str(find_dtype(config.training)).removeprefix("torch."),
            "threads": torch.get_num_threads(),
        },
        "versions": package_versions(PACKAGES),
        "created": dt.datetime.now(dt.UTC).isoformat(timespec="milliseconds"),
    }


def describe_data(data: Data) -> dict[str, list[DataPart]]:
    """Return the parts of a data set by split."""
    return {
        split: [
            {
                "name": part.name,
                "shape": list(part.volume.shape),
                "intensity": [part.scaling.low, part.scaling.high],
                "image": fingerprint(part.volume),
                "labels": fingerprint(part.labels),
            }
            for part in getattr(data, split)
        ]
        for split in ("train", "validation", "test")
    }


def _test(
    network: nn.Module, data: Data, config: TrainConfig, device: str, progress: bool | None
) -> dict[str, Any]:
    if not data.test:
        return {**dict.fromkeys(RESULT_SCORES[config.training.task]), "stress": None}
    return final_scores(network, data.test, config, device=device, progress=progress)


def _summarize_log(rows: Sequence[Mapping[str, float]], config: TrainConfig) -> dict[str, Any]:
    score = MAIN_SCORES[config.training.task]
    column = f"validation_{score}"
    validated = [row for row in rows if row["step"] > 0 and not math.isnan(row.get(column, math.nan))]
    kept = (
        kept_validation(validated, column) if config.training.keeps_best else next(reversed(validated), None)
    )
    columns = bias_columns(config.model.slices)
    network = kept if config.training.keeps_best and kept else rows[-1]
    bias = {name: network[name] for name in columns} if "directional_bias" in network else None
    return {
        "validation": kept and {"step": int(kept["step"]), score: kept[column]},
        "bias": bias,
        "steps": int(rows[-1]["step"]),
        "seconds": max(row.get("seconds", 0) for row in rows),
    }
