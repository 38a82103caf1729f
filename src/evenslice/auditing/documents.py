"""Audits and surveys as the user gets them, with their reports, and the description of what an audit ran."""

from __future__ import annotations

import datetime as dt
from collections import Counter
from itertools import repeat
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias

from torch import nn

from evenslice._core import ConfigError, local_path, package_versions, staged_file, staged_folder
from evenslice.networks import (
    function_name,
    normalization,
)
from evenslice.neutralizing import record_of, record_with_names
from evenslice.report import (
    audit_html,
    survey_csv,
    survey_html,
    write_report,
    write_survey_report,
)
from evenslice.results import AuditedVolume, AuditResult, AuditRun, SurveyResult
from evenslice.volumes import fingerprint

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Sequence

    from evenslice.auditing.explainer import Explainer
    from evenslice.auditing.measuring import Found
    from evenslice.auditing.sampling import WindowSample
    from evenslice.neutralizing import Record
    from evenslice.volumes import LabelValues, Volume, WindowGrid

    Function: TypeAlias = Callable[[Any], Any]

MOST_AUDITS = 200  # in one report


class Audit(AuditResult):
    """The result of an audit.

    The main statistics are attributes (``audit.verdict``, ``audit.reliance[0].low``); ``save`` writes the result to files,
    ``load`` reads it and ``to_html`` writes the report. See ``evenslice.results.AuditResult`` for the attributes.

    Example:
        >>> import tempfile
        >>> import numpy as np
        >>> import torch
        >>> import evenslice
        >>> volume = np.random.default_rng(0).random((16, 32, 32))
        >>> found = evenslice.audit(torch.nn.Conv2d(3, 2, 1), volume, sampling=evenslice.Sampling(max_windows=8))
        >>> path = f"{tempfile.mkdtemp()}/audit.json"
        >>> found.save(path)
        >>> Audit.load(path).verdict == found.verdict
        True
    """

    def to_html(self, path: str | os.PathLike[str]) -> Path:
        """Write the report of this audit as a self-contained HTML file, replacing an existing one, and return its path.

        Raises:
            OutputError: the file cannot be written.
            MissingExtraError: Jinja2 or Matplotlib is not installed.
        """
        return write_report([self], path)

    def _repr_html_(self) -> str:  # in a notebook
        return audit_html(self)


class Survey(SurveyResult):
    """The result of a survey. See ``evenslice.results.SurveyResult`` for the attributes.

    Example:
        >>> import tempfile
        >>> import numpy as np
        >>> import evenslice
        >>> volume = np.random.default_rng(0).random((40, 64, 64))
        >>> found = evenslice.survey(["timm:test_resnet"], weights="none", volume=volume, windows=4)
        >>> print(found.to_csv(f"{tempfile.mkdtemp()}/survey.csv").read_text()[:12])
        spec,weights
    """

    FILES: ClassVar = (
        "survey.json",
        "survey.csv",
        "report.html",
        "figures/balance.png",
        "figures/balance.svg",
    )
    """Names of the files that ``save`` writes."""

    def to_csv(self, path: str | os.PathLike[str]) -> Path:
        """Write one row for each network as a CSV file, replacing an existing one, and return its path.

        ``energy_1`` .. ``energy_C`` belong to the channels in their order, which is red, green and blue for a network
        trained on photographs; ``share_-1`` and ``pair_1`` to offsets. Undefined values are left empty.

        Raises:
            OutputError: the file cannot be written.
        """
        with staged_file(path, force=True) as beside:
            beside.write_text(survey_csv(self), encoding="utf-8", errors="replace", newline="")
        return Path(path)

    def to_html(self, path: str | os.PathLike[str]) -> Path:
        """Write the report as a self-contained HTML file, replacing an existing one, and return its path.

        Raises:
            OutputError: the file cannot be written.
            MissingExtraError: Jinja2 or Matplotlib is not installed.
        """
        return write_survey_report(self, path)

    def _repr_html_(self) -> str:  # in a notebook
        return survey_html(self)

    def save(self, folder: str | os.PathLike[str], *, force: bool = False) -> None:
        """Write ``survey.json``, ``survey.csv``, ``report.html`` and its figure into a folder.

        Args:
            folder: where to write; it is created if missing.
            force: overwrite such files in the folder.

        Raises:
            OutputError: the folder holds such files and ``force`` is not set, or it cannot be written.
            MissingExtraError: Jinja2 or Matplotlib is not installed.
        """
        with staged_folder(folder, self.FILES, documents=("survey.json",), force=force) as beside:
            self.write(beside)

    def write(self, folder: Path) -> None:
        """Write the files of ``save`` into an existing folder."""
        (folder / "survey.json").write_text(self.to_json(), encoding="utf-8")
        self.to_csv(folder / "survey.csv")
        write_survey_report(self, folder / "report.html", figures=folder / "figures")


def load_audits(folder: str | os.PathLike[str]) -> list[Audit]:
    """Read all audits in a folder and its immediate subfolders, oldest first.

    Audits of the same name get the name of their folder as a prefix.

    Raises:
        ConfigError: there is no audit, one that cannot be read, or more than a report shows, 200.

    Example:
        >>> import tempfile
        >>> import numpy as np
        >>> import torch
        >>> import evenslice
        >>> volume = np.random.default_rng(0).random((16, 32, 32))
        >>> found = evenslice.audit(torch.nn.Conv2d(3, 2, 1), volume, sampling=evenslice.Sampling(max_windows=8))
        >>> path = f"{tempfile.mkdtemp()}/audit.json"
        >>> found.save(path)
        >>> [audit.name for audit in load_audits(path.rpartition("/")[0])]
        ['audit']
    """
    folder = local_path(folder, ConfigError)
    paths = sorted([*folder.glob("audit*.json"), *folder.glob("*/audit*.json")])
    if not paths:
        raise ConfigError(f"{folder}: holds no audit; name a folder that `evenslice audit --out` wrote")
    if len(paths) > MOST_AUDITS:
        raise ConfigError(
            f"{folder}: holds {len(paths)} audits; a report shows at most {MOST_AUDITS}: name a folder with fewer"
        )
    audits = [(path, Audit.load(path)) for path in paths]
    count = Counter(audit.name for _, audit in audits)
    named = [
        audit.renamed(f"{_name(path.parent)}: {audit.name}") if count[audit.name] > 1 else audit
        for path, audit in audits
    ]
    return sorted(named, key=lambda audit: audit.run.created)


def _name(folder: Path) -> str:
    """Return the name of a folder, also of one that the user calls ``.`` or ``..``."""
    return folder.name if folder.name not in ("", "..") else folder.resolve().name


def scaling_source(model: nn.Module | Function) -> str:
    """Return where the scaling of slices in 0..1 comes from, as ``AuditRun.scaling`` says it.

    Example:
        >>> scaling_source(nn.Conv2d(3, 8, 3))
        'assumed'
    """
    if not isinstance(model, nn.Module):
        return "function"
    record = record_of(model)
    if record is not None:
        return "recorded" if record_with_names(model) is record else "recorded on a part"
    return "assumed" if normalization(model) is None else "stated"


PACKAGES = [
    "evenslice",
    "torch",
    "numpy",
    "scipy",
    "captum",
    "timm",
    "segmentation-models-pytorch",
    "torchvision",
    "onnxruntime",
]


def describe_run(
    sample: WindowSample,
    explainer: Explainer,
    found: Found,
    *,
    model: nn.Module | Function,
    record: Record | None,
    outputs: Function | None,
    labels: Sequence[Volume] | None,
    values: LabelValues,
    seconds: float,
) -> AuditRun:
    """Return what an audit ran that ends now.

    Args:
        sample: the windows.
        explainer: what was asked of the network.
        found: what they say.
        model: the network.
        record: that of ``neutralize``, if there is one.
        outputs: the function that reduced the network's output, if one was given.
        labels: those of each volume as stored, if given.
        values: what the values of the labels mean.
        seconds: its duration.
    """
    grids, explained = sample.grids, explainer.explained
    network, measurements = explainer.network, found.measurements
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
        target=explained.target,
        explained=explained.name,
        assumed=explained.assumed,
        outputs=None if outputs is None else function_name(outputs),
        label_options=None if labels is None else values.to_dict(),
        precision=sample.sampling.precision,
        windows_available=sum(map(len, grids)),
        windows_without_attribution=int(unmoved.sum()),
        stopped=found.stopped,
        tile=grids[0].tile,
        batch=found.batch,
        seed=sample.sampling.seed,
        device=", ".join(sorted({item.device for item in found.batches})) or str(network.device),
        dtype=str(network.dtype).removeprefix("torch."),
        scaling={**network.scaling, "source": scaling_source(model)},
        clamped=float(measurements.clamped.mean()) if explained.probabilities else None,
        model={"class": network.name},
        volumes=tuple(_describe(grid, of) for grid, of in zip(grids, labels or repeat(None), strict=False)),
        versions=package_versions(PACKAGES),
        created=dt.datetime.now(dt.UTC).isoformat(timespec="milliseconds"),
        seconds=round(seconds, 2),
    )


def _describe(grid: WindowGrid, labels: Volume | None) -> AuditedVolume:
    volume = grid.volume
    same = ("path", "format", "shape", "region", "level", "spacing", "unit")
    return AuditedVolume(
        **{name: getattr(volume, name) for name in same},
        select=dict(volume.select),
        dtype=str(volume.dtype),
        fingerprint=fingerprint(volume),
        windows=len(grid),
        intensity=(grid.scaling.low, grid.scaling.high),
        fill=grid.scaling.fill,
        labels_path=None if labels is None else labels.path,
        labels=None if labels is None else fingerprint(labels),
    )
