"""Simulated audits with known truth: the settings of the calibration, and how often each is answered rightly.

In a simulated audit the model part of a pair bias varies from window to window around a known mean as a first-order
autoregression along z. Windows are visited in the order of an audit, which stops by its rule at its default precision;
the spread of the windows decides when that is. Intervals and verdicts are those of `evenslice.results.asymmetry`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import product
from typing import TYPE_CHECKING, NamedTuple
from zlib import crc32

import numpy as np
from scipy.signal import lfilter
from scipy.stats import norm

from evenslice.results.asymmetry import next_look
from evenslice.results.intervals import FEW_SLICES, fit_means, fit_ratio, fit_votes
from evenslice.results.thresholds import Thresholds
from evenslice.results.verdicts import (
    BIASED_LEVEL,
    WITHIN_LEVEL,
    WITHIN_LEVEL_OF_RATIOS,
    Decision,
    Evidence,
    judge,
)
from evenslice.volumes.windows import visiting_order

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from evenslice.results.intervals import MeanFit

    Floats = NDArray[np.float64]

PRECISION, TOLERANCE = 0.01, Thresholds.attention  # the defaults of an audit
ORDER_SHARED_BY = 100  # number of simulated audits that visit the windows in the same order
# When the rule stops an audit: half-width with all windows, in units of the precision.
STOPS = {
    "never": 1.5,
    "in the middle": 1 / 1.3,
    "early": 1 / 1.8,
    "at the first look": 1 / 4,
    "at the end": 10.0,
}
REQUIRED_STOPS = ("never", "in the middle", "early")


@dataclass(frozen=True)
class Setting:
    """One kind of simulated audit.

    Attributes:
        slices: windows along z in each volume.
        autocorrelation: of the part shared by neighbouring slices.
        stop: when the stopping rule ends the audit, a key of ``STOPS``.
        pairs: K, pair biases that vary independently.
        noise: fraction of a window's variance that is not shared by its slice.
        tiles: number of windows in each slice.
        volumes: number of volumes.
        between: standard deviation of the volume means in units of that of the windows.
        skewed: log-normal windows with a skewness of 1.75 instead of normal ones.
    """

    slices: int
    autocorrelation: float
    stop: str = "never"
    pairs: int = 1
    noise: float = 0.0
    tiles: int = 1
    volumes: int = 1
    between: float = 0.0
    skewed: bool = False

    @property
    def windows(self) -> int:
        """Number of windows in all volumes."""
        return self.slices * self.tiles * self.volumes

    @property
    def spread(self) -> float:
        """Standard deviation of the windows for which the rule stops at the intended time."""
        inflation = (1 + self.autocorrelation) / (1 - self.autocorrelation)
        variance = (1 - self.noise) * inflation / (self.slices * self.volumes) + self.noise / self.windows
        return STOPS[self.stop] * PRECISION / (1.96 * float(np.sqrt(variance)))


class Audits(NamedTuple):
    """Results of R simulated audits minus the truth, (R, K), and the number of windows (R,) that each used."""

    error: Floats
    half_width: Floats
    within_half: Floats
    biased_half: Floats
    used: NDArray[np.int64]


def simulate(setting: Setting, audits: int, seed: int = 0) -> Audits:
    """Run simulated audits; every setting has its own random numbers."""
    key = [seed, crc32(str(setting).encode())]
    blocks = [
        _block(setting, min(ORDER_SHARED_BY, audits - start), np.random.default_rng([*key, start]))
        for start in range(0, audits, ORDER_SHARED_BY)
    ]
    return Audits(*(np.concatenate(parts) for parts in zip(*blocks, strict=True)))


def _block(setting: Setting, audits: int, rng: np.random.Generator) -> Audits:
    volume, z, tile = _visits(setting, seed=int(rng.integers(2**31)))
    values = setting.spread * _draw(setting, audits * setting.pairs, rng)[volume, z, tile]
    shape = (audits, setting.pairs)
    error, half_width, within_half, biased_half = np.full((4, *shape), np.nan)
    found = Audits(error, half_width, within_half, biased_half, used=np.zeros(audits, dtype=np.int64))
    live, look = np.arange(audits), 0
    while len(live):
        look = min(next_look(look), setting.windows)
        columns = values[:look].reshape(look, *shape)[:, live].reshape(look, -1)
        fit = fit_means(columns, z[:look], volume[:look])
        half = fit.half_width().reshape(-1, setting.pairs)
        done = (half < PRECISION).all(axis=1) | (look == setting.windows)
        ended, last = live[done], _columns(fit, np.repeat(done, setting.pairs))
        found.error[ended] = last.estimate.reshape(-1, setting.pairs)
        found.half_width[ended] = half[done]
        found.within_half[ended] = last.half_width(WITHIN_LEVEL).reshape(-1, setting.pairs)
        found.biased_half[ended] = last.half_width(BIASED_LEVEL, setting.pairs).reshape(-1, setting.pairs)
        found.used[ended] = look
        live = live[~done]
    return found


def _visits(setting: Setting, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Return volume, z and tile of all windows in the order of an audit, which alternates between volumes."""
    orders = [visiting_order(setting.slices, setting.tiles, seed=seed + i) for i in range(setting.volumes)]
    places = [(volume, *place) for turn in zip(*orders, strict=True) for volume, place in enumerate(turn)]
    volume, z, tile = np.array(places).T
    return volume, z, tile


def _draw(setting: Setting, columns: int, rng: np.random.Generator) -> Floats:
    """Return (volume, z, tile, column) values with mean 0 and variance 1, not counting the differences between volumes."""
    rho = setting.autocorrelation
    shocks = rng.standard_normal((setting.volumes, setting.slices, 1, columns))
    shocks[:, 1:] *= np.sqrt(1 - rho**2)
    effects = lfilter([1], [1, -rho], shocks, axis=1)
    if setting.skewed:
        variance = 0.25  # of the logarithm
        effects = np.exp(effects * np.sqrt(variance) - variance / 2) - 1
        effects /= np.sqrt(np.exp(variance) - 1)
    own = rng.standard_normal((setting.volumes, setting.slices, setting.tiles, columns))
    levels = setting.between * rng.standard_normal((setting.volumes, 1, 1, columns))
    return np.asarray(levels + np.sqrt(1 - setting.noise) * effects + np.sqrt(setting.noise) * own)


def _columns(fit: MeanFit, chosen: NDArray[np.bool_]) -> MeanFit:
    return replace(
        fit,
        estimate=fit.estimate[chosen],
        scale=fit.scale[:, chosen],
        weight=fit.weight[:, chosen],
        between=fit.between[chosen],
    )


def verdicts(audits: Audits, truth: Floats) -> tuple[float, float]:
    """Return the shares of audits that find attention "biased" and "balanced" when the true pair biases are (K,) `truth`.

    A shift of all values shifts the estimates and leaves the widths alone, so one simulation serves every truth.
    """
    size = np.abs(audits.error + truth)
    biased = (size - audits.biased_half > TOLERANCE).any(axis=1)
    balanced = (size + audits.within_half <= TOLERANCE).all(axis=1)
    return float(biased.mean()), float(balanced.mean())


def rates(setting: Setting, audits: int, seed: int) -> dict[str, float]:
    """Return the table entries of one setting, with the verdicts for the most difficult truths."""
    found = simulate(setting, audits, seed)
    all_at_tolerance = np.full(setting.pairs, TOLERANCE)
    one_at_tolerance = TOLERANCE * (np.arange(setting.pairs) == 0)
    return {
        "coverage": float((np.abs(found.error) <= found.half_width).mean()),
        "biased": verdicts(found, all_at_tolerance)[0],
        "balanced": verdicts(found, one_at_tolerance)[1],
        "used": float(found.used.mean()),
    }


def few_settings() -> list[Setting]:
    """Return audits of so few slices that their correlation can hardly be estimated."""
    return [Setting(slices, rho, pairs=1) for slices, rho in product((4, 8, 16, 24), (0.0, 0.5, 0.8))]


@dataclass(frozen=True)
class Question:
    """Simulated audits of the answer or of the use of slices, a ratio pooled over windows whose true value is known.

    Attributes:
        name: "answer" or "use"; "votes" for the answer in class numbers of whole windows, each of which changes or not.
        truth: of the ratio.
        slices: windows along z, one a slice.
        autocorrelation: of both parts of the ratio along z, and of where there is foreground.
        spread: standard deviation of the logarithm of the whole, and of that of each window's ratio.
        present: part of the windows that have foreground.
    """

    name: str
    truth: float
    slices: int
    autocorrelation: float
    spread: float = 0.5
    present: float = 1.0


def question_rates(question: Question, audits: int, seed: int) -> dict[str, float]:
    """Return how often the interval covers the truth, and how often it lies beyond or within a tolerance at the truth.

    Also, how often it lies within a tolerance of 5 times the truth, and beyond one of a fifth.
    """
    rng = np.random.default_rng([seed, crc32(str(question).encode())])
    z = np.linspace(0, 300, question.slices)
    draws = [
        _draw(Setting(question.slices, question.autocorrelation), audits, rng)[0, :, 0] for _ in range(2)
    ]
    if question.name == "votes":
        fit, enough = fit_votes(draws[0] < norm.ppf(question.truth), z), np.ones(audits, dtype=bool)
    else:
        whole, ratio = (np.exp(question.spread * draw - question.spread**2 / 2) for draw in draws)
        if question.present < 1:
            setting = Setting(question.slices, question.autocorrelation)
            whole *= _draw(setting, audits, rng)[0, :, 0] < norm.ppf(question.present)
        told = whole.any(axis=0)  # an audit that sees no foreground has no C
        ratio, whole = ratio[:, told], whole[:, told]
        fit = fit_ratio(question.truth * ratio * whole, whole, z)
        enough = (whole > 0).sum(axis=0) >= min(FEW_SLICES, question.slices)
    low, high = fit.bounds()
    beyond, within = fit.bounds(BIASED_LEVEL)[0], fit.bounds(WITHIN_LEVEL_OF_RATIOS)[1]
    return {
        "coverage": float(((low <= question.truth) & (question.truth <= high)).mean()),
        "biased": float((enough & (beyond > question.truth)).mean()),
        "balanced": float((enough & (within <= question.truth)).mean()),
        "found beyond": float((enough & (beyond > question.truth / 5)).mean()),
        "found within": float((enough & (within <= 5 * question.truth)).mean()),
    }


def questions() -> Iterator[Question]:
    """Yield the answer and the use at their tolerances."""
    truths = {"answer": Thresholds.answer, "votes": Thresholds.answer, "use": Thresholds.use}
    for (name, truth), slices, rho in product(truths.items(), (4, 8, 12, 30, 100), (0.0, 0.5, 0.8)):
        yield Question(name, truth, slices, rho)


def uneven_questions() -> Iterator[Question]:
    """Yield the answer of windows as uneven as those of real labels; the last half are more uneven still."""
    for spread, slices, present, rho in product((1.0, 1.6), (40, 100), (1.0, 0.5, 0.3), (0.0, 0.5, 0.8)):
        yield Question("answer", Thresholds.answer, slices, rho, spread, present)


@dataclass(frozen=True)
class Whole:
    """Whole simulated audits: attention by two methods and of two classes, and the answer.

    Attributes:
        at_tolerance: "all" that is asked, or the "class" alone, whose true pair bias, or C, equals its tolerance; the
            rest is fair.
        slices: windows along z of the first method; the others see one of five, or 8 if there are as many.
        autocorrelation: along z.
    """

    at_tolerance: str
    slices: int
    autocorrelation: float


def whole_rates(setting: Whole, audits: int, seed: int) -> dict[str, float]:
    """Return how often each verdict is given."""
    rng = np.random.default_rng([seed, crc32(str(setting).encode())])
    verdicts_given = [_judge_one(setting, rng) for _ in range(audits)]
    return {
        name: float(np.mean([verdict == name for verdict in verdicts_given]))
        for name in ("biased", "balanced")
    }


def _judge_one(setting: Whole, rng: np.random.Generator) -> str:
    few = min(max(setting.slices // 5, FEW_SLICES), setting.slices)
    truths = [
        TOLERANCE * (setting.at_tolerance in ("all", name)) for name in ("first", "second", "class", "rest")
    ]
    tests = []
    for truth, slices in zip(truths, (setting.slices, few, few, few), strict=True):
        spread = Setting(slices, setting.autocorrelation, "in the middle").spread
        values = truth + spread * _draw(Setting(slices, setting.autocorrelation), 1, rng)[0, :, 0]
        fit = fit_means(values, np.arange(slices))
        tests.append(Evidence(Decision("attention", "m"), fit, TOLERANCE, (True,), slices, exact=False))
    draws = [_draw(Setting(few, setting.autocorrelation), 1, rng)[0, :, 0] for _ in range(2)]
    whole, ratio = (np.exp(0.5 * draw - 0.125) for draw in draws)
    truth = Thresholds.answer * (1.0 if setting.at_tolerance == "all" else 0.2)
    fit = fit_ratio(truth * ratio * whole, whole, np.arange(few))
    answer = Evidence(Decision("answer"), fit, Thresholds.answer, (True,), few, exact=False)
    return judge(tests, answer, None)[0]


def wholes() -> Iterator[Whole]:
    """Yield whole audits at their tolerances."""
    for at_tolerance, slices, rho in product(("all", "class"), (4, 8, 16, 40, 100), (0.0, 0.5, 0.8)):
        yield Whole(at_tolerance, slices, rho)


def required_settings() -> Iterator[Setting]:
    """Yield the settings with requirements."""
    for pairs, slices, rho, stop in product((1, 3), (100, 300), (0.0, 0.5, 0.8), REQUIRED_STOPS):
        yield Setting(slices, rho, stop, pairs)
    for pairs, rho in product((1, 3), (0.0, 0.5, 0.8)):
        yield Setting(40, rho, pairs=pairs)


def further_settings() -> list[tuple[str, Setting]]:
    """Return further settings with their descriptions, which show where the intervals begin to fail."""
    return [
        ("autocorrelation 0, stops at the first look", Setting(300, 0.0, "at the first look")),
        ("autocorrelation 0.8, stops at the first look", Setting(300, 0.8, "at the first look")),
        ("autocorrelation 0.8, half of the variance independent noise", Setting(300, 0.8, noise=0.5)),
        ("the same, 100 windows", Setting(100, 0.8, noise=0.5)),
        ("the same, 40 windows", Setting(40, 0.8, noise=0.5)),
        ("autocorrelation 0.95", Setting(300, 0.95)),
        ("the same, 100 windows", Setting(100, 0.95)),
        ("autocorrelation 0.5, skewed windows", Setting(300, 0.5, skewed=True)),
        ("the same, 100 windows", Setting(100, 0.5, skewed=True)),
        ("4 tiles a slice that have nothing in common", Setting(75, 0.0, tiles=4, noise=1.0)),
        (
            "4 tiles a slice, 60 % of the variance is the slice's, autocorrelation 0",
            Setting(75, 0.0, tiles=4, noise=0.4),
        ),
        ("the same, autocorrelation 0.8", Setting(75, 0.8, tiles=4, noise=0.4)),
        ("the same, autocorrelation 0.8, stops early", Setting(75, 0.8, "early", tiles=4, noise=0.4)),
        ("4 volumes with one mean, autocorrelation 0.5", Setting(75, 0.5, volumes=4)),
        (
            "4 volumes whose means differ (half the spread of the windows)",
            Setting(75, 0.5, volumes=4, between=0.5),
        ),
        ("the same, stops early", Setting(75, 0.5, "early", volumes=4, between=0.5)),
        ("2 volumes whose means differ as much", Setting(150, 0.5, volumes=2, between=0.5)),
    ]
