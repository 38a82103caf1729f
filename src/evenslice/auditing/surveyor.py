"""Surveys of pretrained networks: how their stems weight colours, and how that biases them towards earlier or later slices.

The colour balance is the weight of each channel, and the part that a gray image does not excite.
For the kernels W_c of the channels c = 1..C, all filters and taps together, the energy of a channel is |W_c|^2, the sum
of squares. A gray image is the same in every channel, so it only excites sum_c W_c: the projection of the kernels on
equal channels, of energy |sum_c W_c|^2 / C. The rest is chromatic:

    chromatic part  =  1 - |sum_c W_c|^2 / (C sum_c |W_c|^2)

It is 0 if all channels have the same kernels and 1 if they cancel out. Energies of several stems are added.
"""

from __future__ import annotations

import datetime as dt
import math
import time
from dataclasses import replace
from statistics import fmean
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch

from evenslice._core import (
    ConfigError,
    EvensliceError,
    ModelError,
    option,
    progress_bar,
    reason,
    staged_folder,
    whole_number,
)
from evenslice.auditing.auditor import audit
from evenslice.auditing.options import Sampling
from evenslice.inference import Compute
from evenslice.neutralizing import current_kernels, find_strategy, load_network
from evenslice.report import html_of, write_report, write_report_files
from evenslice.results import Interval, SurveyedNetwork, SurveyResult
from evenslice.volumes import mni152, open_volume

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from evenslice.auditing.auditor import Audit
    from evenslice.volumes import Reading, Volume, VolumeLike

WINDOWS = 60
"""Default number of windows that each network is shown: with 59 that equal their mirrors, a network is symmetric."""

DRAWS = 3
"""Default number of times that the random parts of a network are drawn."""

BOUNDS = {
    "shares": (0.0, 1.0),
    "pairs": (-1.0, 1.0),
    "reliance": (-1.0, 1.0),
    "directional_bias": (-1.0, 1.0),
    "mirror_error": (0.0, math.inf),
    "mirror_disagreement": (0.0, 1.0),
}
"""The statistics of an audit that a survey keeps, with their ranges."""


class Survey(SurveyResult):
    """The result of a survey. See ``evenslice.results.SurveyResult`` for the attributes.

    Example:
        >>> import tempfile
        >>> import numpy as np
        >>> import evenslice
        >>> volume = np.random.default_rng(0).random((40, 64, 64))
        >>> found = evenslice.survey(["timm:test_resnet"], weights="none", volume=volume, windows=4)
        >>> found.save(folder := tempfile.mkdtemp())
        >>> evenslice.Survey.load(folder).networks[0].spec
        'timm:test_resnet'
    """

    FILES: ClassVar = ("survey.json", "survey.csv", "report.html", "figures/balance.[sp][vn]g")
    """Names of the files that ``save`` writes."""

    def to_html(self, path: str | os.PathLike[str]) -> Path:
        """Write the report as a self-contained HTML file, replacing an existing one, and return its path.

        Raises:
            OutputError: the file cannot be written.
            MissingExtraError: Jinja2 or Matplotlib is not installed.
        """
        return write_report(self, path)

    _repr_html_ = html_of  # in a notebook

    def save(self, folder: str | os.PathLike[str], *, force: bool = False) -> None:
        """Write ``survey.json``, ``survey.csv``, ``report.html`` and its figure into a folder.

        ``survey.csv`` has a row for each network. ``energy_1`` .. ``energy_C`` belong to the channels in their order, which is
        red, green and blue for a network trained on photographs; ``share_-1``, ``pair_1`` and ``reliance_1`` to offsets.
        Undefined values are left empty.

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
        write_report_files(self, folder)


@torch.inference_mode(mode=False)  # what is made in it can be trained, and explained
def survey(  # all but the networks have defaults and names
    specs: str | Sequence[str],
    *,
    weights: str | Sequence[str] = "imagenet",
    volume: VolumeLike | None = None,
    reading: Reading | None = None,
    slices: int | None = None,
    windows: int = WINDOWS,
    draws: int = DRAWS,
    mean: float | Sequence[float] | None = None,
    std: float | Sequence[float] | None = None,
    seed: int = 0,
    command: str | None = None,
    compute: Compute = Compute(),  # noqa: B008  # immutable
) -> Survey:
    """Measure the colour balance of networks' stems, and how unequally the networks treat slices because of it.

    Each network is built by its library (the strategy "pretrained"), with its normalisation folded in, and shown the
    same few windows of one volume. For segmenters and classifiers alike, the log-odds of the predicted class are
    explained. Random parts, such as the decoder of a segmenter with a pretrained encoder, are drawn several times,
    and the results averaged. A network that fails does not stop the others.

    Args:
        specs: the networks; see ``evenslice.networks.specification``.
        weights: ``"imagenet"``, ``"none"`` or a file, for all networks; a file for one network only. Or one of these
            for each network.
        volume: a volume, an array (z, y, x) or a path; by default the MNI152 template, real MRI, which comes with
            nilearn.
        reading: how the volume is read.
        slices: N, odd; by default the number of each network's inputs, which is 3 for colour images.
        windows: number of windows for each network, at least 2.
        draws: how many times the random parts of a network are drawn, at least 1, with the seeds ``seed``,
            ``seed + 1`` and so on. The time grows with it; networks without random parts are measured once.
        mean: subtracted from inputs in training; by default each network's own.
        std: the divisor afterwards, with the same default.
        seed: random seed for the windows and for random weights, 0 or more.
        command: the command line to record in the results.
        compute: where and how the networks run.

    Raises:
        ConfigError: an option is out of range, or the weights do not match the networks.
        VolumeError: the volume cannot be read.
        ModelError: none of the networks could be surveyed.
        MissingExtraError: no volume is given, and nilearn is not installed.

    Example:
        >>> import numpy as np
        >>> volume = np.random.default_rng(0).random((40, 64, 64))
        >>> found = survey(["timm:test_resnet", "timm:no_such"], weights="none", volume=volume, windows=4)
        >>> [(item.spec, bool(item.error)) for item in found.networks]
        [('timm:test_resnet', False), ('timm:no_such', True)]
        >>> round(sum(found.networks[0].energy), 6)
        1.0
    """
    started = time.monotonic()
    listed = [specs] if isinstance(specs, str) else list(specs) if isinstance(specs, list | tuple) else []
    if not all(isinstance(item, str) for item in listed):
        raise ConfigError("networks are surveyed by name, such as timm:resnet18; give text, or a list of it")
    pairs = _paired(listed, weights)
    windows, draws = whole_number("windows", windows, 2), whole_number("draws", draws, 1)
    sampling = Sampling(min_windows=windows, max_windows=windows, seed=seed)
    compute.refuse("engine", "workers", "scheduler")
    compute.place()  # raises if it is not there, of which otherwise every network would tell
    if slices is not None:
        find_strategy("pretrained", slices)  # raises if the number of slices is not valid
    shown = mni152() if volume is None else open_volume(volume)
    network = {"slices": slices, "mean": mean, "std": std, "seed": sampling.seed}
    found: list[SurveyedNetwork] = []
    shared: dict[str, Any] = {}
    with progress_bar("survey", len(pairs), "networks", show=compute.progress) as advance:
        for spec, which in pairs:
            item, details = _survey_one(spec, which, shown, reading, draws, network, sampling, compute)
            found.append(item)
            shared = shared or details
            advance(1)
    if all(item.error for item in found):
        reasons = "; ".join(dict.fromkeys(item.error for item in found))
        raise ModelError(
            found[0].error if len(found) == 1 else f"no network could be surveyed: {reasons:.1000}"
        )
    return Survey(
        networks=tuple(sorted(found, key=_rank)),
        run=Survey.Run(
            slices=slices,
            windows=windows,
            draws=draws,
            seed=sampling.seed,
            **shared,
            command=command,
            created=dt.datetime.now(dt.UTC).isoformat(timespec="milliseconds"),
            seconds=round(time.monotonic() - started, 2),
        ),
    )


def _rank(item: SurveyedNetwork) -> tuple[bool, float]:
    """Return the key that sorts networks by absolute D_m, descending; unknown and failed ones are last."""
    bias = abs(item.directional_bias.estimate)
    return bool(item.error), math.inf if math.isnan(bias) else -bias


def _paired(specs: Sequence[str], weights: str | Sequence[str]) -> list[tuple[str, str]]:
    """Return each network with its weights."""
    if not specs:
        raise ConfigError("no network given; name one or more, such as timm:resnet18")
    each = [weights] * len(specs) if isinstance(weights, str) else weights
    if len(each) != len(specs) or (
        len(specs) > 1 and weights == each[0] and weights not in ("imagenet", "none")
    ):
        raise ConfigError(
            f"{option('weights', weights)}: give 'imagenet', 'none', a file for a single network, or a list with one for each of "
            f"the {len(specs)}"
        )
    return list(zip(specs, each, strict=True))


def _survey_one(
    spec: str,
    weights: str,
    volume: Volume,
    reading: Reading | None,
    draws: int,
    network: dict[str, Any],
    sampling: Sampling,
    compute: Compute,
) -> tuple[SurveyedNetwork, dict[str, Any]]:
    """Survey one network; also return the parts of its audit's run that are the same for all networks."""
    started = time.monotonic()
    loaded, balances, audits, quiet = [], [], [], replace(compute, progress=False)
    try:
        for draw in range(draws):
            model, record, source = load_network(spec, weights, **network | {"seed": network["seed"] + draw})
            loaded.append((record, source))
            # The effective kernels: those for colours, or those of a saved network as they are.
            kernels = [stem.before for stem in record.kernels] or current_kernels(model, record)
            balances.append(colour_balance(kernels))
            audits.append(audit(model, volume, reading=reading, sampling=sampling, compute=quiet))
            if not source.random:
                break
    except EvensliceError as error:
        return SurveyedNetwork(spec, weights, error=str(error)), {}
    except Exception as error:  # noqa: BLE001  # a network may raise anything; the others go on
        return SurveyedNetwork(spec, weights, error=f"{type(error).__name__}: {reason(error)}"), {}
    record, source = loaded[0]
    seeds = f"seeds {network['seed']} to {network['seed'] + len(audits) - 1}"
    item = SurveyedNetwork(
        spec=spec,
        weights=weights,
        origin=seeds if source.random == ("*",) and len(audits) > 1 else source.origin,
        random=source.random,
        draws=len(audits),
        stems=record.stems,
        energy=tuple(map(fmean, zip(*(energy for energy, _ in balances), strict=True))),
        chromatic=fmean(chromatic for _, chromatic in balances),
        seconds=round(time.monotonic() - started, 2),
        **_statistics(audits),
    )
    return item, {
        name: getattr(audits[0].run, name) for name in ("method", "target", "device", "volumes", "versions")
    }


def _statistics(audits: Sequence[Audit]) -> dict[str, Any]:
    """Return the means over audits of the same network, whose random parts were drawn for each."""
    verdicts = {found.verdict for found in audits}
    decided = dict.fromkeys(item.question for found in audits for item in found.statistics.decided_by)
    values: dict[str, Any] = {
        "verdict": verdicts.pop() if len(verdicts) == 1 else "inconclusive",
        "decided_by": tuple(decided),
    }
    for name, bounds in BOUNDS.items():
        several = [getattr(found.statistics, name) for found in audits]
        values[name] = (
            mean_of_draws(several, bounds)
            if isinstance(several[0], Interval)
            else tuple(mean_of_draws(parts, bounds) for parts in zip(*several, strict=True))
        )
    answers = [found.answer for found in audits]
    of = answers[0].of
    if {answer.of for answer in answers} == {of}:
        # Scores have no upper limit, and no common mean with classes.
        values["answer_change"] = mean_of_draws(answers, (0.0, 1.0 if of == "classes" else math.inf))
        values["answer_of"] = of
    return {**values, "windows": audits[0].windows}


def mean_of_draws(draws: Sequence[Interval], bounds: tuple[float, float]) -> Interval:
    """Return the mean of a statistic over draws of a network's random parts, with a 95 % interval.

    All draws were shown the same windows, so the interval has two parts: that over the windows, by the mean of the draws'
    half-widths (of one that is clipped at the edge of the range, that of its other side), and that over the draws, by
    Student's t. The half-width is the root of the sum of their squares.

    Args:
        draws: the statistic of each draw with its interval over windows; a single one is returned as it is.
        bounds: the range of the statistic, to which the interval is clipped.

    Example:
        >>> found = mean_of_draws([Interval(-0.21, -0.24, -0.18), Interval(-0.19, -0.22, -0.16)], bounds=(-1, 1))
        >>> f"{found.estimate:.2f} [{found.low:.2f}, {found.high:.2f}]"
        '-0.20 [-0.33, -0.07]'
    """
    if len(draws) == 1:
        return Interval(draws[0].estimate, draws[0].low, draws[0].high)
    over_draws = Interval.of_mean([draw.estimate for draw in draws])
    half = math.hypot(
        sum(max(draw.high - draw.estimate, draw.estimate - draw.low) for draw in draws) / len(draws),
        (over_draws.high - over_draws.low) / 2,
    )
    middle = over_draws.estimate
    return Interval(middle, middle - half, middle + half).clipped(bounds)


def colour_balance(kernels: Sequence[NDArray[Any]]) -> tuple[tuple[float, ...], float]:
    """Return the share of each channel in the energy of stems, 0..1, and the chromatic part of that energy.

    Args:
        kernels: the effective kernels of each stem, (filters, C, ...), from ``Record.kernels`` or
            ``evenslice.neutralizing.rewriting.effective_kernels``; all with the same C.

    Raises:
        ModelError: their kernels are all 0 or not finite.

    Example: one filter that subtracts twice the second channel from the first.
        >>> colour_balance([np.array([[1.0, -2.0]])])
        ((0.2, 0.8), 0.9)
    """
    stems = [np.asarray(stem, dtype=np.float64).reshape(*stem.shape[:2], -1) for stem in kernels]
    by_channel = sum(np.square(stem).sum(axis=(0, 2)) for stem in stems)
    total = float(np.sum(by_channel))
    if not (np.isfinite(total) and total > 0):
        raise ModelError("the kernels of the stems are all 0 or not finite; check the weights of the network")
    gray = sum(float(np.square(stem.sum(axis=1)).sum()) for stem in stems)
    # Rounding may take the chromatic part below 0.
    return tuple((by_channel / total).tolist()), max(0.0, 1 - gray / (len(by_channel) * total))
