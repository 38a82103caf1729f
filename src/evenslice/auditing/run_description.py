"""What an audit ran, for its document: the network, the volumes, the options and the versions."""

from __future__ import annotations

import datetime as dt
from itertools import repeat
from typing import TYPE_CHECKING

from evenslice._core import package_versions
from evenslice.networks import function_name
from evenslice.results import AuditedVolume, AuditRun, StemShape
from evenslice.volumes import fingerprint

if TYPE_CHECKING:
    from collections.abc import Sequence

    from evenslice.auditing.measuring import MeasuredBatch, Measurer
    from evenslice.auditing.preparation import Function, Understood
    from evenslice.networks import StemKernels
    from evenslice.neutralizing import Record
    from evenslice.results import Measurements
    from evenslice.volumes import LabelValues, Volume, WindowGrid

PACKAGES = (
    "evenslice",
    "torch",
    "numpy",
    "scipy",
    "captum",
    "timm",
    "segmentation-models-pytorch",
    "torchvision",
    "onnxruntime",
)


def describe_run(  # noqa: PLR0913  # what an audit decided at different places, each under its name
    measurer: Measurer,
    batches: Sequence[MeasuredBatch],
    measurements: Measurements,
    *,
    understood: Understood,
    source: str,
    record: Record | None,
    kernels: Sequence[StemKernels],
    outputs: Function | None,
    labels: Sequence[Volume] | None,
    values: LabelValues,
    precision: float | None,
    batch: int,
    seed: int,
    stopped: str,
    seconds: float,
) -> AuditRun:
    """Return what an audit ran that ends now.

    Args:
        measurer: what measured the windows.
        batches: the measured windows.
        measurements: of all windows.
        understood: how the output was understood.
        source: where the scaling comes from.
        record: that of ``neutralize``, if there is one.
        kernels: the stems.
        outputs: the function that reduced the network's output, if one was given.
        labels: those of each volume as stored, if given.
        values: what the values of the labels mean.
        precision: half-width of the intervals that the audit was to reach, if one was asked for.
        batch: windows in one pass.
        seed: random seed.
        stopped: why the audit stopped.
        seconds: its duration.
    """
    explainer, grids = measurer.explainer, measurer.grids
    network = explainer.network
    unmoved = ~(measurements.saliency.any(axis=(1, 2, 3)) | measurements.reliance.any(axis=(1, 2, 3)))
    return AuditRun(
        slices=grids[0].slices,
        step=grids[0].step,
        strategy=record.strategy if record else None,
        tie=record.tie if record else None,
        method=explainer.method,
        baseline=explainer.baseline,
        maps=(explainer.maps[0], explainer.maps[1] or ""),
        use="gradient" if explainer.gradient else "replacement",
        target=understood.explained.target,
        explained=understood.name,
        assumed=understood.assumed,
        outputs=None if outputs is None else function_name(outputs),
        label_options=None if labels is None else values.to_dict(),
        precision=precision,
        windows_available=sum(map(len, grids)),
        windows_without_attribution=int(unmoved.sum()),
        stopped=stopped,
        tile=grids[0].tile,
        batch=batch,
        seed=seed,
        device=", ".join(sorted({item.device for item in batches})) or str(network.device),
        dtype=str(network.dtype).removeprefix("torch."),
        scaling={**network.scaling, "source": source},
        clamped=float(measurements.clamped.mean()) if understood.explained.probabilities else None,
        model={"class": network.name},
        stems=tuple(StemShape(stem.name, stem.after.shape) for stem in kernels),
        volumes=tuple(_describe(grid, of) for grid, of in zip(grids, labels or repeat(None), strict=False)),
        versions=package_versions(PACKAGES),
        created=dt.datetime.now(dt.UTC).isoformat(timespec="milliseconds"),
        seconds=round(seconds, 2),
    )


def _describe(grid: WindowGrid, labels: Volume | None) -> AuditedVolume:
    volume = grid.volume
    return AuditedVolume(
        path=volume.path,
        format=volume.format,
        shape=volume.shape,
        region=volume.region,
        select=dict(volume.select),
        level=volume.level,
        dtype=str(volume.dtype),
        spacing=volume.spacing,
        unit=volume.unit,
        fingerprint=fingerprint(volume),
        windows=len(grid),
        intensity=(grid.scaling.low, grid.scaling.high),
        fill=grid.scaling.fill,
        labels_path=None if labels is None else labels.path,
        labels=None if labels is None else fingerprint(labels),
    )
