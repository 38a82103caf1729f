"""What the slice shares of a network's attribution say about its symmetry.

A network is asked about each window x and about its mirror x' (the same slices in reversed order). `measure` turns the
attributions and outputs of such pairs into figures, a row for each; `summarize` makes the statistics of all rows, with
their intervals and the verdict. Everything here is a pure function.

For the shares s_-K..s_K of one window, in the order in which the network saw its slices, and every pair k = 1..K

    pair bias          B_k = (s_k - s_-k) / (s_k + s_-k)                               0 where both are 0
    directional bias   D = (sum of s_k, k > 0, - sum of s_k, k < 0) / (sum of both)    0 where all are 0

lie in [-1, 1], and for either, with its values at x and at x', exactly

    model part   (D(x) + D(x')) / 2     0 for a mirror-symmetric network, whatever the data
    data part    (D(x) - D(x')) / 2
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Literal

import numpy as np

from evenslice.networks import predicted_classes
from evenslice.results.intervals import Interval, fit_means, mean_interval

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from evenslice.results.intervals import MeanFit

    Floats = NDArray[np.float64]

__all__ = [
    "Asymmetry",
    "Measurements",
    "Verdict",
    "data_part",
    "directional_bias",
    "measure",
    "measure_outputs",
    "model_part",
    "next_look",
    "pair_bias",
    "precise_enough",
    "summarize",
]

Verdict = Literal["symmetric", "biased", "inconclusive", "not applicable"]

FIRST_LOOK = 40  # windows; fewer say too little about how much neighbours depend on each other
NEGLIGIBLE = (
    1e-6  # attribution, as a part of the output; float32 rounds to 1e-7, and a network adds up many roundings
)
SALIENCY_SAMPLE = 4096  # pixels of a map that the Wasserstein distance looks at
BIASED_LEVEL = 0.95
# The 90 % intervals of "symmetric", drawn at 94 %: exact ones would be wrong in 5 % of audits of a network at the
# tolerance, and estimating the correlation would carry that beyond 5 % (benchmarks/calibration.py).
SYMMETRIC_LEVEL = 0.94


@dataclass(frozen=True)
class Measurements:
    """What was measured on each of n windows of N = 2K + 1 slices; row i belongs to window i.

    Shares stand in the order in which the network was given the slices: column j is offset j - K of its input.

    Attributes:
        volume: (n,) index of the volume a window was taken from.
        position: (n, 3) window centre slice z and in-plane origin y, x, in voxels.
        shares: (n, N) shares of the window; each row sums to 1.
        mirrored_shares: (n, N) shares of the mirrored window, in the order the network saw.
        wasserstein: (n, K) Wasserstein-1 distance between the saliency distributions of offsets k and -k, pooled over
            the window and its mirror, in units of their mean saliency.
        mirror_error: (n,) largest output change when the window is reversed, relative to the largest output.
        mirror_disagreement: (n,) share of output pixels whose predicted class changes when the window is reversed; NaN
            where the output has no classes.
    """

    volume: NDArray[np.int64]
    position: NDArray[np.int64]
    shares: NDArray[np.float64]
    mirrored_shares: NDArray[np.float64]
    wasserstein: NDArray[np.float64]
    mirror_error: NDArray[np.float64]
    mirror_disagreement: NDArray[np.float64]


@dataclass(frozen=True)
class Asymmetry:
    """The statistics of an audit; every interval has a confidence of 95 %.

    Attributes:
        verdict: "symmetric", "biased", "inconclusive", or "not applicable" at N = 1.
        tolerance: the largest absolute pair bias that still counts as symmetric.
        shares: N intervals of the mean share (over windows and mirrors), offsets -K..K.
        pairs: K intervals of the model part of the pair bias B_k, k = 1..K.
        data_pairs: K intervals of the data part of B_k.
        directional_bias: D_m, the model part of the directional bias.
        data_direction: D_d, its data part.
        asymmetry: A, half the L1 distance between the mean share profile and its mirror.
        imbalance: U, half the L1 distance between the mean share profile and 1/N.
        wasserstein: K intervals of the Wasserstein-1 distance between mirrored slices.
        mirror_error: mean relative output change when a window is reversed.
        mirror_disagreement: mean share of pixels whose class changes when a window is reversed.
    """

    verdict: Verdict
    tolerance: float
    shares: tuple[Interval, ...]
    pairs: tuple[Interval, ...]
    data_pairs: tuple[Interval, ...]
    directional_bias: Interval
    data_direction: Interval
    asymmetry: Interval
    imbalance: Interval
    wasserstein: tuple[Interval, ...]
    mirror_error: Interval
    mirror_disagreement: Interval


def pair_bias(shares: Floats) -> Floats:
    """Return the pair biases B_1..B_K (n, K) of shares (n, N); NaN where a share is.

    Example:
        >>> pair_bias(np.array([[0.125, 0.5, 0.375], [0.0, 1.0, 0.0]])).tolist()
        [[0.5], [0.0]]
    """
    left, right = _halves(shares)
    return _contrast(right, left)


def directional_bias(shares: Floats) -> Floats:
    """Return the directional bias D (n,) of shares (n, N): positive where the network leans to later slices.

    Example:
        >>> directional_bias(np.array([[0.1, 0.1, 0.2, 0.3, 0.3]])).round(6).tolist()
        [0.5]
    """
    left, right = _halves(shares)
    return _contrast(right.sum(axis=1), left.sum(axis=1))


def model_part(bias: Floats, mirrored_bias: Floats) -> Floats:
    """Return what the network contributes to a bias, from the bias at the windows and at their mirrors."""
    return (bias + mirrored_bias) / 2


def data_part(bias: Floats, mirrored_bias: Floats) -> Floats:
    """Return what the data contribute to a bias, from the bias at the windows and at their mirrors."""
    return (bias - mirrored_bias) / 2


def _halves(array: Floats) -> tuple[Floats, Floats]:
    """Return what belongs to offsets -1..-K and to 1..K, both (n, K, ...), of an array (n, N, ...)."""
    half = array.shape[1] // 2
    return array[:, :half][:, ::-1], array[:, half + 1 :]


def _contrast(right: Floats, left: Floats) -> Floats:
    total = right + left
    return np.divide(right - left, total, out=np.zeros_like(total), where=total != 0)


def measure(
    attribution: Tensor,
    mirrored_attribution: Tensor,
    output: Tensor,
    mirrored_output: Tensor,
    *,
    classes: bool = True,
) -> dict[str, Floats]:
    """Measure a batch of windows, each beside its mirror.

    Args:
        attribution: (B, N, y, x) absolute attribution of the windows, any real type.
        mirrored_attribution: (B, N, y, x) that of the mirrored windows, in the order in which the network saw them.
        output: what the network returned for the windows, batch first; (B, C) and (B, C, y, x) hold the logits of C
            classes, or of one class against the background where C is 1; whole numbers are classes themselves; any
            other output has no classes.
        mirrored_output: the same for the mirrored windows.
        classes: False where the output has no classes, whatever its shape.

    Returns:
        The fields of `Measurements` other than the volume and the position, one row a window. Shares are NaN where the
        attribution is 0 everywhere, or adds up to less than a millionth of the output: it then is the rounding of an
        output that does not depend on the window. The Wasserstein distances of large maps are those of a regular
        sample of about 4,096 of their pixels. The mirror disagreement is NaN where the output has no classes, the
        mirror error where it has nothing else.

    Example:
        >>> import torch
        >>> window, mirror = torch.tensor([[1.0, 2.0, 1.0], [1.0, 2.0, 5.0]])[:, None, :, None, None]
        >>> rows = measure(window, mirror, torch.tensor([[2.0]]), torch.tensor([[-1.0]]))
        >>> rows["shares"].tolist(), rows["mirrored_shares"].tolist()
        ([[0.25, 0.5, 0.25]], [[0.125, 0.25, 0.625]])
        >>> rows["wasserstein"].tolist(), rows["mirror_error"].tolist(), rows["mirror_disagreement"].tolist()
        ([[1.0]], [1.5], [1.0])
    """
    sums = _sums(attribution, output)
    mirrored_sums = _sums(mirrored_attribution, mirrored_output)
    pixels = attribution[0, 0].numel()
    mean = (sums + mirrored_sums).sum(axis=1, keepdims=True) / (2 * sums.shape[1] * pixels)
    return {
        "shares": _ratio(sums, sums.sum(axis=1, keepdims=True)),
        "mirrored_shares": _ratio(mirrored_sums, mirrored_sums.sum(axis=1, keepdims=True)),
        "wasserstein": _ratio(_wasserstein(attribution, mirrored_attribution), mean),
        **measure_outputs(output, mirrored_output, classes=classes),
    }


def measure_outputs(output: Tensor, mirrored_output: Tensor, *, classes: bool = True) -> dict[str, Floats]:
    """Measure what a mirror does to the outputs of a batch: the last two figures of ``measure``.

    Example:
        >>> import torch
        >>> rows = measure_outputs(torch.tensor([[2.0, 0.0]]), torch.tensor([[2.0, 1.0]]))
        >>> rows["mirror_error"].tolist(), rows["mirror_disagreement"].tolist()
        ([0.5], [0.0])
    """
    return {
        "mirror_error": _mirror_error(output, mirrored_output),
        "mirror_disagreement": _mirror_disagreement(output, mirrored_output, classes=classes),
    }


def _sums(attribution: Tensor, output: Tensor) -> Floats:
    """Return the attribution of each slice (B, N); 0 where all of it is no more than rounding of the output."""
    sums = _numpy(attribution.float().sum(dim=(2, 3)))
    if output.is_floating_point():
        size = _numpy(output.float().abs().reshape(len(output), -1).sum(dim=1))
        sums[sums.sum(axis=1) <= NEGLIGIBLE * size] = 0
    return sums


def _numpy(tensor: Tensor) -> Floats:
    return np.asarray(tensor.detach().cpu().numpy(), dtype=np.float64)


def _ratio(part: Floats, whole: Floats) -> Floats:
    """Divide by a whole that broadcasts to the part, with NaN where it is 0."""
    return np.divide(part, whole, out=np.full_like(part, np.nan), where=whole != 0)


def _wasserstein(attribution: Tensor, mirrored_attribution: Tensor) -> Floats:
    """Return the Wasserstein-1 distances (B, K) between the saliency of offsets k and -k, in its own unit.

    Each side holds the pixels of the window and of its mirror, so both sides are the same set where the network is
    symmetric. Between samples of one size the distance is the mean difference of their sorted values.
    """
    height, width = attribution.shape[2:]
    step = max(1, int(np.ceil(np.sqrt(height * width / SALIENCY_SAMPLE))))
    maps = [_numpy(part[:, :, ::step, ::step].float()) for part in (attribution, mirrored_attribution)]
    pooled = np.concatenate([part.reshape(*part.shape[:2], -1) for part in maps], axis=2)
    left, right = (np.sort(side, axis=2) for side in _halves(pooled))
    return np.asarray(np.abs(right - left).mean(axis=2))


def _mirror_error(output: Tensor, mirrored_output: Tensor) -> Floats:
    """Return max|f(x) - f(x')| / max|f(x)| (B,): 0 where nothing changes, NaN where only f(x) is 0 or f is a class."""
    if not output.is_floating_point():
        return np.full(len(output), np.nan)
    output = output.float()
    change = _largest(output - mirrored_output.float())
    error = _ratio(change, _largest(output))
    error[change == 0] = 0
    return error


def _largest(output: Tensor) -> Floats:
    """Return the largest absolute value of each window (B,)."""
    output = output.unsqueeze(-1)  # (B,) alone would leave no dimension to reduce
    return _numpy(output.abs().amax(dim=tuple(range(1, output.ndim))))


def _mirror_disagreement(output: Tensor, mirrored_output: Tensor, *, classes: bool) -> Floats:
    """Return the share of predictions (B,) that change; NaN where the output has no classes."""
    if not classes or (output.is_floating_point() and output.ndim not in (2, 4)):
        return np.full(len(output), np.nan)
    changed = predicted_classes(output, dim=1) != predicted_classes(mirrored_output, dim=1)
    return _numpy(changed.float().reshape(len(output), -1).mean(dim=1))


def next_look(windows: int) -> int:
    """Return after how many windows the audit asks next whether it is precise enough.

    Looks come at 40 windows and then each a quarter later than the one before: often enough to save windows, rarely
    enough that looking costs nothing beside the network.

    Args:
        windows: the number of windows measured so far.

    Example:
        >>> [next_look(windows) for windows in (0, 39, 40, 50)]
        [40, 40, 50, 62]
    """
    look = FIRST_LOOK
    while look <= windows:
        look += look // 4
    return look


def precise_enough(measurements: Measurements, precision: float = 0.01) -> bool:
    """Say whether the 95 % intervals of all pair biases (their model parts) are narrow enough.

    Args:
        measurements: of the windows so far.
        precision: what every half-width must be below.
    """
    kept = _with_shares(measurements)
    return bool((_fit(kept, _model_pairs(kept)).half_width() < precision).all())


def summarize(measurements: Measurements, tolerance: float = 0.05) -> Asymmetry:
    """Make the statistics of an audit and its verdict.

    The verdict is a test of equivalence: "symmetric" when the simultaneous 90 % intervals of the model parts of all
    B_k lie within +-tolerance, "biased" when the simultaneous 95 % interval of any lies outside it, else
    "inconclusive". Each of the first two is wrong in at most 5 % of audits; to keep that promise in audits that stop
    early, the 90 % intervals are drawn at 94 % (docs/statistics.md).

    Args:
        measurements: of all windows; those without attribution (NaN shares) are left out.
        tolerance: the largest absolute pair bias that still counts as symmetric, above 0 and at most 1.

    Example:
        >>> shares = np.array([[0.2, 0.5, 0.3], [0.21, 0.5, 0.29], [0.19, 0.5, 0.31], [0.2, 0.51, 0.29]])
        >>> place, figure = np.zeros((4, 3), dtype=int), np.zeros(4)
        >>> place[:, 0] = 10, 20, 30, 40
        >>> found = summarize(Measurements(place[:, 1], place, shares, shares, figure[:, None], figure, figure))
        >>> found.verdict, round(found.directional_bias.estimate, 2)
        ('biased', 0.2)
    """
    kept = _with_shares(measurements)
    shares, mirrored = kept.shares, kept.mirrored_shares
    profile = _fit(kept, model_part(shares, mirrored))
    differences = _fit(kept, model_part(_differences(shares), _differences(mirrored)))
    pairs = _fit(kept, _model_pairs(kept))
    directions = directional_bias(shares), directional_bias(mirrored)
    return Asymmetry(
        verdict=_verdict(pairs, tolerance),
        tolerance=tolerance,
        shares=profile.intervals(bounds=(0, 1)),
        pairs=pairs.intervals(bounds=(-1, 1)),
        data_pairs=_fit(kept, data_part(pair_bias(shares), pair_bias(mirrored))).intervals(bounds=(-1, 1)),
        directional_bias=_interval(kept, model_part(*directions), bounds=(-1, 1)),
        data_direction=_interval(kept, data_part(*directions), bounds=(-1, 1)),
        asymmetry=_distance(differences, 0, weight=1),
        imbalance=_distance(profile, 1 / shares.shape[1], weight=0.5),
        wasserstein=_fit(kept, kept.wasserstein).intervals(bounds=(0, np.inf)),
        mirror_error=_interval(measurements, measurements.mirror_error, bounds=(0, np.inf)),
        mirror_disagreement=_interval(measurements, measurements.mirror_disagreement, bounds=(0, 1)),
    )


def _with_shares(measurements: Measurements) -> Measurements:
    """Leave out the windows whose attribution was 0 everywhere, at the window or at its mirror."""
    kept = ~np.isnan(measurements.shares + measurements.mirrored_shares).any(axis=1)
    return Measurements(
        **{entry.name: getattr(measurements, entry.name)[kept] for entry in fields(measurements)}
    )


def _fit(measurements: Measurements, values: Floats) -> MeanFit:
    return fit_means(values, measurements.position[:, 0], measurements.volume)


def _model_pairs(measurements: Measurements) -> Floats:
    return model_part(pair_bias(measurements.shares), pair_bias(measurements.mirrored_shares))


def _differences(shares: Floats) -> Floats:
    left, right = _halves(shares)
    return right - left


def _interval(measurements: Measurements, values: Floats, bounds: tuple[float, float]) -> Interval:
    return mean_interval(values, measurements.position[:, 0], measurements.volume, bounds=bounds)


def _verdict(pairs: MeanFit, tolerance: float) -> Verdict:
    size, comparisons = np.abs(pairs.estimate), len(pairs.estimate)
    if comparisons == 0:
        return "not applicable"
    if (size + pairs.half_width(SYMMETRIC_LEVEL, comparisons) <= tolerance).all():
        return "symmetric"
    if (size - pairs.half_width(BIASED_LEVEL, comparisons) > tolerance).any():
        return "biased"
    return "inconclusive"


def _distance(means: MeanFit, target: float, weight: float) -> Interval:
    """Return the interval of a weighted sum of distances between means and a target, a sum that is at most 1.

    With 95 % all simultaneous intervals of the signed means hold; the sum is then at least that of the smallest
    distances which they admit and at most that of the largest. Unlike an interval of the sum itself, this is right near
    0 as well, where a sum of absolute values is far from normal; elsewhere it is wider than need be.
    """
    size, half = np.abs(means.estimate - target), means.half_width(comparisons=max(len(means.estimate), 1))
    low, high = np.maximum(size - half, 0).sum(), np.minimum((size + half).sum(), 1 / weight)
    return Interval(weight * float(size.sum()), weight * float(low), weight * float(high))
