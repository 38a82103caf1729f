"""The statistics of an audit: four questions, the evidence that its windows give on each, figures with intervals, a verdict.

An audit asks: would a map of saliency favour a side, does the network rely on one, does the order of slices change its
answers, and are opposite slices used in the same way, place by place? ``ask`` collects the evidence from the
``Measurements`` of a sample of windows and decides; ``summarize`` adds all other figures. Everything here is a pure
function. docs/statistics.md explains the method, docs/calibration.md how often it is right.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from functools import cached_property
from itertools import product
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from scipy.special import stdtrit

from evenslice.results.documents import PAIRS, SLICES
from evenslice.results.intervals import TAIL, UNKNOWN, Interval, fit_ratios, mean_interval, unseen_part
from evenslice.results.measurements import directional_bias, halves, pair_bias
from evenslice.results.tolerances import Tolerances

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

    from evenslice.results.intervals import Ratios, Scale
    from evenslice.results.measurements import Measurements

    Floats = NDArray[np.float64]
    Flags = NDArray[np.bool_]
    Columns = tuple[Floats, Floats, Flags]
    """Parts and wholes (n, groups, figures), and which figures (groups, figures) are judged."""


Verdict = Literal["symmetric", "balanced", "biased", "inconclusive", "not applicable"]
Question = Literal["saliency", "reliance", "answer", "use"]
State = Literal["within", "beyond", "open", "not judged", "unknown"]
AnswerKind = Literal["classes", "scores", "unknown"]

# Looks are taken again and again, and any of several figures decides "biased": with these levels, wrong verdicts are at most
# 5 % over all looks and figures (benchmarks/calibration.py).
BEYOND_LEVEL = 0.95
WITHIN_LEVEL = 0.995
LARGEST_DIFFERENT = 0.05
"""Part of the windows that may differ from their mirrors, at 95 % confidence, where all that were read are equal."""


@dataclass(frozen=True)
class Decision:
    """What a figure is about, such as one that decided a verdict.

    Attributes:
        question: "saliency", "reliance", "answer", "use", or "attention" in audits of version 0.2.
        class_number: the class; None for all predicted pixels.
        offset: k of the pair; None for no single one.
    """

    question: str
    class_number: int | None = field(default=None, metadata={"key": "class"})
    offset: int | None = None


@dataclass(frozen=True, slots=True)
class Figure(Interval):
    """A figure that a verdict depends on, with its 95 % interval.

    Attributes:
        judged: whether the verdict depends on it.
        state: "within" or "beyond" the tolerance, or still "open"; "not judged"; "unknown" in audits of version 0.2.
    """

    judged: bool = True
    state: State = "unknown"


@dataclass(frozen=True, slots=True)
class AnswerChange(Figure):
    """The answer change C.

    Attributes:
        of: what it compares: "classes", the part of a class that changes, 0..1; "scores", the change of the output in terms
            of its standard deviation; "unknown" if C is not known.
        class_number: the class; None for scores.
    """

    of: AnswerKind = "unknown"
    class_number: int | None = field(default=None, metadata={"key": "class"})


@dataclass(frozen=True, slots=True)
class Mismatch(Figure):
    """The mirror mismatch E.

    Attributes:
        pairs: E of each pair k = 1..K; empty for a class.
    """

    pairs: tuple[Figure, ...] = field(default=(), metadata=PAIRS)


NOT_JUDGED = Figure(math.nan, math.nan, math.nan, judged=False, state="not judged")
NO_ANSWER, NO_MISMATCH = AnswerChange(**asdict(NOT_JUDGED)), Mismatch(**asdict(NOT_JUDGED))


@dataclass(frozen=True, kw_only=True)
class Answers:
    """The figures on the four questions.

    Attributes:
        pairs: K pair biases B_k of the saliency (their model parts), k = 1..K; empty if not asked.
        reliance: K pair biases of the reliance; likewise.
        answer_change: C, the part of the answer that changes when a window is reversed: of the judged class in which it is
            largest, first of those beyond the tolerance, or of scores.
        mirror_mismatch: E, the part of the outer slices' attribution that is not used in the same way.
    """

    pairs: tuple[Figure, ...] = field(default=(), metadata=PAIRS)
    reliance: tuple[Figure, ...] = field(default=(), metadata=PAIRS)
    answer_change: AnswerChange = NO_ANSWER
    mirror_mismatch: Mismatch = NO_MISMATCH


@dataclass(frozen=True, kw_only=True)
class ClassFigures(Answers):
    """The figures of the pixels of one judged class, predicted or (target "labels") labelled.

    Attributes:
        class_number: the class.
        pixels: part of the pixels that have it, in the answers to windows and mirrors.
        windows: number of windows that have it.
    """

    class_number: int = field(metadata={"key": "class"})
    pixels: float
    windows: int


@dataclass(frozen=True, kw_only=True)
class VolumeFigures(Answers):
    """The figures of one of several volumes, for all predicted pixels, from the windows that were read of it."""

    volume: int
    windows: int


@dataclass(frozen=True, kw_only=True)
class Asymmetry(Answers, Tolerances):
    """The statistics of an audit, with its tolerances; every interval has a confidence of 95 %.

    Attributes:
        verdict: "symmetric", "balanced", "biased", "inconclusive", or "not applicable" at N = 1.
        shares: N intervals of the mean share of the saliency (over windows and mirrors), offsets -K..K; NaN if not asked.
        data_pairs: K intervals of the data part of B_k.
        directional_bias: D_m, the model part of the directional bias.
        data_direction: D_d, its data part.
        asymmetry: A, half the L1 distance between the mean share profile and its mirror.
        imbalance: U, half the L1 distance between the mean share profile and 1/N.
        wasserstein: K intervals of the Wasserstein-1 distance between mirrored slices.
        mirror_error: mean relative output change when a window is reversed.
        mirror_disagreement: mean share of pixels whose class changes when a window is reversed.
        decided_by: the figures that decided the verdict, or that are open, one for each question.
        classes: the figures of each judged class.
        unjudged_classes: the classes in the answers that were not judged.
        different: the part of the windows that may differ from their mirrors, with 95 % confidence, if all that were read are
            equal to their mirrors; else None.
        needed: windows that would settle the open figures, if these are what they seem; None if none is open.
        by_volume: the figures of each volume, if there are several.
    """

    verdict: Verdict
    shares: tuple[Interval, ...] = field(metadata=SLICES)
    data_pairs: tuple[Interval, ...] = field(metadata=PAIRS)
    directional_bias: Interval
    data_direction: Interval
    asymmetry: Interval
    imbalance: Interval
    wasserstein: tuple[Interval, ...] = field(metadata=PAIRS)
    mirror_error: Interval
    mirror_disagreement: Interval
    decided_by: tuple[Decision, ...] = ()
    classes: tuple[ClassFigures, ...] = ()
    unjudged_classes: tuple[int, ...] = ()
    different: float | None = None
    needed: int | None = None
    by_volume: tuple[VolumeFigures, ...] = ()


@dataclass(frozen=True)
class Evidence:
    """What windows say about a question: q figures with one tolerance.

    Attributes:
        question: which.
        keys: what each figure is about.
        fit: the figures, or their squares.
        tolerance: the largest absolute value that counts as fair.
        judged: (q,) which figures count.
        decides: (q,) which of them may decide for "biased".
    """

    question: Question
    keys: tuple[Decision, ...]
    fit: Ratios
    tolerance: float
    judged: Flags
    decides: Flags

    @property
    def root(self) -> bool:
        """Whether the figures are the square roots of what was fitted: those of scores."""
        return self.keys == (Decision("answer"),)

    @property
    def estimate(self) -> Floats:
        """The figures (q,)."""
        return np.sqrt(self.fit.estimate) if self.root else self.fit.estimate

    def bounds(self, level: float = 0.95, comparisons: int = 1) -> tuple[Floats, Floats]:
        """Return the bounds (q,) of the figures; see ``Ratios.bounds``."""
        low, high = self.fit.bounds(level, comparisons)
        return (np.sqrt(low), np.sqrt(high)) if self.root else (low, high)

    def beyond(self, comparisons: int = 1) -> Flags:
        """Return which figures (q,) are beyond the tolerance with their whole intervals."""
        low, high = self.bounds(BEYOND_LEVEL, comparisons)
        return np.asarray(((low > self.tolerance) | (high < -self.tolerance)) & self.judged)

    def within(self) -> Flags:
        """Return which figures (q,) are within the tolerance with their whole intervals."""
        low, high = self.bounds(WITHIN_LEVEL)
        return np.asarray((low >= -self.tolerance) & (high <= self.tolerance) & self.judged)

    def figures(self, number: int | None, comparisons: int, different: float | None) -> list[Figure]:
        """Return the figures of a class, or of all predicted pixels; all are 0 where all windows read equal their mirrors.

        Args:
            number: the class.
            comparisons: number of figures of which any may decide for "biased".
            different: the part of the windows that may differ from their mirrors; None if some of those read do.
        """
        estimate, low, high = self.estimate, *self.bounds()
        beyond, within = self.beyond(comparisons), self.within()
        if different is not None:
            estimate = low = high = np.zeros(len(self.keys))
            beyond, within = ~self.judged, np.full(len(self.keys), different < LARGEST_DIFFERENT)
        least = -1.0 if self.question in ("saliency", "reliance") else 0.0
        low, high = np.clip((low, high), least, np.inf if self.root else 1.0)
        states = np.select([~self.judged, beyond, within], ["not judged", "beyond", "within"], "open")
        columns = (part.tolist() for part in (estimate, low, high, self.judged, states))
        rows = zip(self.keys, *columns, strict=True)
        return [Figure(*row) for key, *row in rows if key.class_number == number]

    def deciding(self, chosen: Flags) -> tuple[Decision, ...]:
        """Return the chosen figure that is most certainly beyond the tolerance, or else nearest to it, if there is any."""
        low, high = self.bounds()
        least = np.where(self.estimate < 0, -high, low)
        least, size = np.where(np.isfinite(least), least, -np.inf), np.nan_to_num(np.abs(self.estimate))
        order = sorted(np.flatnonzero(chosen), key=lambda n: (least[n], size[n]), reverse=True)
        return tuple(self.keys[n] for n in order[:1])

    def needed(self) -> int:
        """Return how many windows would settle the open figures if they are what they seem; 0 if all are settled.

        Half-widths shrink with sqrt(1/n - 1/M) of n windows out of M.
        """
        still = self.judged & ~self.beyond() & ~self.within()
        low, high = self.bounds(WITHIN_LEVEL)
        read, population = self.fit.read, self.fit.population
        size = np.abs(self.estimate)
        gap = np.abs(size - self.tolerance)
        nearer = np.where((self.estimate < 0) == (size > self.tolerance), high, low)
        reach = np.abs(nearer - self.estimate)
        with np.errstate(all="ignore"):
            left = np.maximum(1 / read - 1 / population, 0) * np.square(gap / reach)
            counts = np.where(np.isfinite(reach) & (gap > 0), 1 / (left + 1 / population), population)
        return int(min(np.ceil(counts[still].max(initial=0)), population))


@dataclass(frozen=True)
class Questions:
    """The evidence on the questions that were asked, the classes that it is about, and the verdict.

    A network is "biased" if any judged bias or answer change is beyond its tolerance: one of many figures decides, so their
    intervals hold simultaneously. It is "symmetric" if all are within, uses included, and "balanced" without the uses: all
    have to agree, so that each may be wrong in 5 % of audits without the verdict being so more often (Berger 1982,
    doi:10.1080/00401706.1982.10487790).

    Attributes:
        evidence: on saliency, reliance, answer and use, as far as asked.
        judged: the numbers of the judged classes.
        pairs: K.
        different: the part of the windows that may differ from their mirrors; None if some of those read do.
    """

    evidence: tuple[Evidence, ...]
    judged: tuple[int, ...]
    pairs: int
    different: float | None

    @cached_property
    def tests(self) -> list[Evidence]:
        """The evidence on all questions but that of use, which never makes a network biased."""
        return [item for item in self.evidence if item.question != "use"]

    @cached_property
    def comparisons(self) -> int:
        """Number of figures of which any may decide for "biased"."""
        return max(sum(int((item.judged & item.decides).sum()) for item in self.tests), 1)

    @cached_property
    def decision(self) -> tuple[Verdict, tuple[Decision, ...]]:
        """The verdict, and the decision of each question that decided it, or of each that is open."""
        if not self.evidence:
            return "not applicable", ()
        if self.different is not None:
            return ("symmetric", ()) if self.different < LARGEST_DIFFERENT else ("inconclusive", ())
        beyond = [item.deciding(item.beyond(self.comparisons) & item.decides) for item in self.tests]
        if any(beyond):
            return "biased", sum(beyond, ())
        open_ = [item.deciding(item.judged & ~item.within()) for item in self.evidence]
        still = sum(open_[: len(self.tests)], ())
        # Where all windows are their own mirrors, nothing is known about the answer.
        if still or not any(item.question == "answer" for item in self.tests):
            return "inconclusive", still
        uses = open_[len(self.tests) :]
        return ("balanced", sum(uses, ())) if not uses or any(uses) else ("symmetric", ())

    def __str__(self) -> str:
        """Return the verdict, and of each question the figure that decides, with the half-width of its interval.

        Where all windows read equal their mirrors, there is no figure to show.
        """
        figures = []
        for item in self.evidence if self.different is None else ():
            low, high = item.bounds()
            for key in item.deciding(item.judged):
                at = item.keys.index(key)
                half = max(high[at] - item.estimate[at], item.estimate[at] - low[at])
                figures.append(f"{item.question} {item.estimate[at]:.2f} \N{PLUS-MINUS SIGN} {half:.2f}")
        return f"{self.decision[0]} so far" + (f": {', '.join(figures)}" if figures else "")

    def settled(self, precision: float | None = None) -> str:
        """Return why an audit may stop, "settled" or "precision reached"; empty if it has to go on.

        "balanced" is settled once the use of slices is beyond its tolerance: until then it may become "symmetric".

        Args:
            precision: half-width that no interval of a judged bias or answer change may exceed.
        """
        verdict, _ = self.decision
        uses = [item.beyond().any() for item in self.evidence if item.question == "use"]
        if verdict == "inconclusive" or (verdict == "balanced" and uses and not any(uses)):
            return ""
        if precision is None:
            return "settled"
        bounds = [(item.judged, *item.bounds()) for item in self.tests]
        wide = any(((high - low)[judged] / 2 > precision).any() for judged, low, high in bounds)
        return "" if wide else "precision reached"

    @property
    def needed(self) -> int | None:
        """How many windows would settle the open figures: one that seems beyond is enough, else all have to be within."""
        if self.different is not None:
            return min(EQUAL_WINDOWS, self.evidence[0].fit.population)
        return max((item.needed() for item in self.tests), default=0) or None

    def answers(self, number: int | None = None) -> dict[str, Any]:
        """Return the figures of a class, or of all predicted pixels, by the names of ``Answers``."""
        own = {
            item.question: tuple(item.figures(number, self.comparisons, self.different))
            for item in self.evidence
        }
        unknown = (NOT_JUDGED,) * self.pairs
        answer, mismatch = NO_ANSWER, NO_MISMATCH
        if own.get("answer"):
            of: AnswerKind = "scores" if number is None else "classes"
            answer = AnswerChange(**asdict(own["answer"][0]), of=of, class_number=number)
        elif number is None:
            answer = max(
                [self.answers(judged)["answer_change"] for judged in self.judged] or [answer],
                key=lambda item: (item.state == "beyond", np.nan_to_num(item.estimate, nan=-1)),
            )
        if own.get("use"):
            whole, *pairs = own["use"]
            mismatch = Mismatch(**asdict(whole), pairs=tuple(pairs) if number is None else ())
        return {
            "pairs": own.get("saliency") or unknown,
            "reliance": own.get("reliance") or unknown,
            "answer_change": answer,
            "mirror_mismatch": mismatch,
        }


def ask(measured: Measurements, population: int, tolerances: Tolerances) -> Questions:
    """Return the evidence that windows give on each question; none for windows of one slice.

    Args:
        measured: those of a random sample of the windows.
        population: number of all windows.
        tolerances: what counts as fair.
    """
    judged, decides = _judge_classes(measured, population, tolerances)
    numbers = np.flatnonzero(judged).tolist()
    # Group 0 holds all predicted pixels, group c + 1 those of the class c. One class that is everywhere has the figures of
    # all pixels; classes that overlap have no figure over all.
    groups = [0, *(number + 1 for number in numbers)] if measured.pixels.any(axis=0).sum() > 1 else [0]
    if numbers and not measured.explained[:, 0].any():
        groups = [number + 1 for number in numbers]
    evidence: list[Evidence] = []
    if measured.slices > 1:
        saliency = _saliency(measured, groups, tolerances.judged_share)
        reliance = _reliance(measured, groups, tolerances.judged_share)
        of_classes, answer = _answer(measured, numbers)
        use = _use(measured, groups, (saliency if saliency[1].any() else reliance)[2])
        classes = [group - 1 if group else None for group in groups]
        pairs = range(1, measured.slices // 2 + 1)
        asked: dict[Question, tuple[Columns, Iterable[Any], float, Scale]] = {
            "saliency": (saliency, product(classes, pairs), tolerances.tolerance, "linear"),
            "reliance": (reliance, product(classes, pairs), tolerances.tolerance, "atanh"),
            "answer": (answer, product(of_classes, [None]), tolerances.answer_tolerance, "log"),
            "use": (use, product(classes, [None, *pairs]), tolerances.mismatch_tolerance, "log"),
        }
        for question, (columns, about, tolerance, scale) in asked.items():
            keys = tuple(Decision(question, *key) for key in about)
            part, whole = (values.reshape(len(values), -1) for values in columns[:2])
            fit = fit_ratios(part, whole, population, scale=scale)
            may = np.array([key.class_number is None or decides[key.class_number] for key in keys])
            if question == "reliance" or whole.any():  # else no window tells
                evidence.append(Evidence(question, keys, fit, tolerance, columns[2].ravel(), may))
    different = None
    if measured.equal and not measured.own_mirror.all():  # else nothing tells
        different = unseen_part(float(len(measured)), len(measured), population, 0.05)
    return Questions(tuple(evidence), tuple(numbers), measured.slices // 2, different)


def _judge_classes(measured: Measurements, population: int, tolerances: Tolerances) -> tuple[Flags, Flags]:
    """Return which classes (C,) are judged, and which may decide for "biased".

    Judged are those that may cover the judged part of the pixels, and the two largest.
    """
    # Student's intervals: those of the bootstrap have no end for a class that few windows have.
    read, pixels = len(measured), measured.pixels.mean(axis=0)
    left = max(0.0, 1 - read / population) / max(read, 1)
    error = np.sqrt(measured.pixels.var(axis=0, ddof=1) * left) if read > 1 else np.full(pixels.shape, np.inf)
    half = -stdtrit(max(read - 1, 1), TAIL) * error
    low, high, seen = pixels - half, pixels + half, pixels > 0
    largest = np.zeros(pixels.shape, bool)
    largest[np.argsort(-pixels, kind="stable")[:2]] = True
    surely = largest & ((high[None, :] > low[:, None]).sum(axis=1) <= 2)  # one of the others, and itself
    least = tolerances.judged_class
    return seen & (largest | (high >= least)), seen & (surely | (low >= least))


def _saliency(measured: Measurements, groups: Sequence[int], judged_share: float) -> Columns:
    """Return the columns of the pair biases of the saliency: means over the windows that have any.

    Of K > 2 pairs, each has to get 2/K of the judged share: however many slices share the saliency, the pairs that are not
    judged together get less than twice the judged share.
    """
    sums = measured.saliency.take(groups, axis=2)
    known = (sums.sum(axis=-1) > 0).all(axis=1)[..., None]
    bias = np.where(known, pair_bias(sums).mean(axis=1), 0)
    shares = sums / np.where(known[:, None], sums.sum(axis=-1, keepdims=True), 1)
    outer = np.where(known, np.add(*halves(shares.mean(axis=1))), 0).sum(axis=0)
    least = judged_share * min(1.0, 2 / bias.shape[-1])
    judged = outer / np.maximum(known.sum(axis=0), 1) >= least
    return bias, np.ones_like(bias) * known, judged


def _reliance(measured: Measurements, groups: Sequence[int], judged_share: float) -> Columns:
    """Return the columns of the pair biases of the reliance: ratios of sums over windows."""
    left, right = halves(measured.reliance.take(groups, axis=2).sum(axis=1))
    least = 2 * judged_share * measured.explained.take(groups, axis=1).sum(axis=0)[:, None]
    total = (right + left).sum(axis=0)
    return right - left, right + left, (total >= least) & (total > 0)


def _answer(measured: Measurements, numbers: Sequence[int]) -> tuple[list[int | None], Columns]:
    """Return the classes of which a part C of the answer may change when a window is reversed, None for scores, and the columns.

    Of a class, C is the pixels that only one of the answers to window and mirror puts into it, over those that either does:
    1 - IoU. Of scores, the numbers that are explained, it is the RMS of f(x) - f(x') over sqrt(2) times the standard deviation
    of f(x), which is 1 for unrelated answers. Where one class is predicted everywhere, it says nothing about the order, and
    its scores are compared.
    """
    tell = measured.own_mirror != 1
    if np.isnan(measured.power).all() or (measured.union[tell].sum(axis=0) > 0).sum() > 1:
        about = [number for number in numbers if measured.union[:, number].any()]
        part, whole = measured.changed[:, about], measured.union[:, about]
        return [*about], (part, whole, np.ones(len(about), bool))
    tell &= ~np.isnan(measured.change)
    part, whole = np.where(tell, measured.change, 0), 2 * _variance(measured, tell)
    return [None], (part, whole, np.ones(1, bool))


def _use(measured: Measurements, groups: Sequence[int], judged: Flags) -> Columns:
    """Return the columns of the mirror mismatch E over all outer slices, and for each pair, judged as its biases are."""
    part, whole = (
        np.concatenate([values.sum(axis=-1, keepdims=True), values], axis=-1)
        for values in (measured.mismatch.take(groups, axis=1), measured.outer.take(groups, axis=1))
    )
    return part, whole, np.insert(judged, 0, values=True, axis=1) & whole.any(axis=0)


def _variance(measured: Measurements, tell: Flags) -> Floats:
    """Return for each window the variance of what is explained: over its pixels, or over windows if it has none."""
    level = measured.level[tell]
    if not len(level):
        return np.zeros(len(measured))
    mean, found = level.mean(axis=0), np.zeros(len(measured))
    found[tell] = np.maximum(measured.power[tell] + np.mean(mean**2 - 2 * mean * level, axis=1), 0)
    return found


EQUAL_WINDOWS = 59
"""With as many that equal their mirrors, fewer than 5 % of all can differ."""


def summarize(
    measurements: Measurements,
    population: Sequence[int],
    tolerances: Tolerances = Tolerances(),  # noqa: B008  # immutable
) -> Asymmetry:
    """Compute the statistics of an audit and its verdict.

    Args:
        measurements: those of a random sample of the windows.
        population: number of windows in each volume.
        tolerances: what counts as fair.
    """
    total, count, pixels = sum(population), measurements.slices, measurements.pixels.mean(axis=0)
    found = ask(measurements, total, tolerances)
    verdict, decided_by = found.decision
    shares = measurements.shares
    shares = np.where(np.isnan(shares).any(axis=(1, 2), keepdims=True), np.nan, shares)
    directions, biases = directional_bias(shares), pair_bias(shares)
    profile = shares.mean(axis=1)
    left, right = halves(profile)
    parts = [measurements.at(measurements.volume == volume) for volume in range(len(population))]
    classes = tuple(
        ClassFigures(
            class_number=number,
            pixels=float(pixels[number]),
            windows=int((measurements.pixels[:, number] > 0).sum()),
            **found.answers(number),
        )
        for number in found.judged
    )
    return Asymmetry(
        verdict=verdict,
        shares=_means(profile, total, (0, 1)),
        data_pairs=_means((biases[:, 0] - biases[:, 1]) / 2, total, (-1, 1)),
        directional_bias=mean_interval(directions.mean(axis=1), total, (-1, 1)),
        data_direction=mean_interval((directions[:, 0] - directions[:, 1]) / 2, total, (-1, 1)),
        asymmetry=_distance(right - left, total, 0, weight=1, most=1),
        imbalance=_distance(profile, total, 1 / count, weight=0.5, most=1 - 1 / count),
        wasserstein=_means(measurements.wasserstein, total, (0, count)),
        mirror_error=mean_interval(measurements.mirror_error, total, (0, np.inf)),
        mirror_disagreement=mean_interval(measurements.mirror_disagreement, total, (0, 1)),
        decided_by=decided_by,
        classes=classes,
        unjudged_classes=tuple(sorted({*np.flatnonzero(pixels).tolist()} - {*found.judged})),
        different=found.different,
        needed=found.needed if verdict == "inconclusive" else None,
        by_volume=tuple(
            VolumeFigures(volume=volume, windows=len(part), **ask(part, windows, tolerances).answers())
            for volume, (part, windows) in enumerate(zip(parts, population, strict=True))
            if len(parts) > 1 and len(part)
        ),
        **asdict(tolerances),
        **found.answers(),
    )


def _means(values: Floats, population: int, bounds: tuple[float, float]) -> tuple[Interval, ...]:
    return tuple(mean_interval(column, population, bounds) for column in values.T)


def _distance(values: Floats, population: int, target: float, weight: float, most: float) -> Interval:
    """Return the interval of a weighted sum of distances between means and a target, where the sum is at most ``most``.

    With a confidence of 95 % all simultaneous intervals of the signed means hold; the sum then lies between those of
    the smallest and of the largest distances that they admit. Unlike an interval of the sum itself, this is valid
    near 0, where a sum of absolute values is far from normal; elsewhere it is wider than necessary.
    """
    known = np.asarray(~np.isnan(values).any(axis=1))
    if not known.any():
        return UNKNOWN
    fit = fit_ratios(np.where(known[:, None], values, 0), np.ones_like(values) * known[:, None], population)
    lower, upper = fit.bounds(comparisons=max(values.shape[1], 1))
    size, half = np.abs(fit.estimate - target), np.maximum(upper - fit.estimate, fit.estimate - lower)
    low, high = np.maximum(size - half, 0).sum(), min((size + half).sum(), max(most / weight, size.sum()))
    return Interval(weight * float(size.sum()), weight * float(low), weight * float(high))
