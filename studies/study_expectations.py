"""What was expected of the project's studies, held against what they found."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeVar

import numpy as np
from found_studies import Found

from evenslice.report.formatting import difference, interval, number, percent
from evenslice.report.study_tables import judgement, metric_text, removed_part
from evenslice.results.intervals import UNKNOWN

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from found_studies import Study

    from evenslice.results.intervals import Interval
    from evenslice.studying.config import Arm

__all__ = ["LOST", "Expectation", "by_study", "expectations", "outcome"]

REMOVED = 0.9  # part of the bias that a uniform start is expected to remove
LOST = 0.01  # Dice that it is expected to lose at most
KEPT = 0.05  # pair bias that a pretrained start is expected to keep: the tolerance of an audit
EXACT = 1e-4  # largest pair bias that a network that is fair by construction is expected to stay below


class _OfStudy(Protocol):
    """What was found in a study."""

    @property
    def study(self) -> Study: ...


Item = TypeVar("Item", bound=_OfStudy)


@dataclass(frozen=True)
class Expectation:
    """What was expected, and what became of it.

    Attributes:
        text: what was expected.
        outcome: what became of it, see ``outcome``.
        evidence: what was found, a text for each comparison, by the name of its study.
    """

    text: str
    outcome: str
    evidence: Mapping[str, Sequence[str]]


def expectations(studies: Sequence[Study]) -> list[Expectation]:
    """Hold what was expected of each kind of start against what was found; what was not run is left out."""
    uniform = _arms(studies, lambda arm: arm.strategy == "uniform" and arm.tie is None)
    exact = _arms(studies, _is_exactly_fair, alone=False)
    random = _arms(studies, lambda arm: arm.strategy == "random")
    pretrained = _arms(studies, lambda arm: arm.strategy == "pretrained" and arm.z_flip is not False)
    return [
        *_removes_bias(_compared(uniform)),
        *_keeps_dice(_segmenting(_compared(uniform))),
        *_stays_exact(exact),
        *_loses_dice(_segmenting(_compared(random))),
        *_keeps_bias(pretrained),
    ]


def _arms(studies: Sequence[Study], chosen: Callable[[Arm], bool], *, alone: bool = True) -> list[Found]:
    """Return the arms of a kind; with ``alone``, those that differ from others by their start and ties alone."""
    return [
        Found(study, comparison, arm)
        for study in studies
        for comparison in study.results.comparisons
        for arm in comparison.arms
        if any(
            arm.arm == item.name and chosen(item) and (_by_start_alone(item) or not alone)
            for item in study.config.arms
        )
    ]


def _is_exactly_fair(arm: Arm) -> bool:
    return arm.tie is not None or arm.strategy == "twin" or arm.symmetrize is not None


def _by_start_alone(arm: Arm) -> bool:
    """Return whether an arm differs from others by how its stem starts and what is tied, and by nothing else."""
    return arm.network_of is None and arm.symmetrize is None and not arm.missing_slices


def _keeps_bias(found: Sequence[Found]) -> Iterator[Expectation]:
    if found:
        yield Expectation(
            f"A network with a pretrained start still has a largest pair bias of more than {KEPT:g} after training.",
            outcome(
                found,
                confirms=lambda item: _bias(item).low > KEPT,
                refutes=lambda item: _bias(item).high < KEPT,
            ),
            _evidence(found, lambda item: metric_text("largest_bias", item.arm)),
        )


def _compared(found: Sequence[Found]) -> list[Found]:
    """Return what is not the baseline itself; without a run in common with that, nothing is known of it."""
    return [item for item in found if item.arm.arm != item.study.results.baseline]


def _segmenting(found: Sequence[Found]) -> list[Found]:
    return [item for item in found if item.study.results.score == "dice"]


def _bias(item: Found) -> Interval:
    return item.arm.metrics["largest_bias"]


def _change(item: Found) -> Interval:
    return item.arm.differences.get("dice", UNKNOWN)


def _removes_bias(found: Sequence[Found]) -> Iterator[Expectation]:
    if found:
        yield Expectation(
            f"A uniform start removes at least {percent(REMOVED)} of the largest pair bias that is left "
            "after fine-tuning, "
            "with every data set and network.",
            outcome(
                found,
                confirms=lambda item: item.arm.bias_removed.low >= REMOVED,
                refutes=lambda item: item.arm.bias_removed.high < REMOVED,
            ),
            _evidence(found, lambda item: removed_part(item.arm.bias_removed)),
        )


def outcome(
    found: Sequence[Item], *, confirms: Callable[[Item], bool], refutes: Callable[[Item], bool]
) -> str:
    """Return what became of an expectation.

    It is refuted by any finding of a complete study, confirmed only by all findings, and open otherwise, where studies all
    of whose findings confirm it are named; while a study is not complete, that is an interim look. Comparisons with NaN are
    False, so what is not known confirms nothing.
    """
    complete = [item for item in found if item.study.complete]
    if any(map(refutes, complete)):
        return "refuted"
    if len(complete) < len(found):
        return "open (interim)"
    unsettled = {item.study.name for item in found if not confirms(item)}
    if not unsettled:
        return "confirmed"
    settled = dict.fromkeys(f"`{item.study.name}`" for item in found if item.study.name not in unsettled)
    return f"open (confirmed in {', '.join(settled)})" if settled else "open"


def _keeps_dice(found: Sequence[Found]) -> Iterator[Expectation]:
    if found:
        yield Expectation(
            f"It does so at a Dice that is no more than {LOST:g} below that of the pretrained start.",
            outcome(
                found,
                confirms=lambda item: bool(item.arm.holds) and item.arm.margin <= LOST,
                refutes=lambda item: _change(item).high < -LOST,
            ),
            _evidence(found, _dice),
        )


def _stays_exact(found: Sequence[Found]) -> Iterator[Expectation]:
    if found:
        yield Expectation(
            f"The largest pair bias of a tied, twin or symmetrized network stays below {number(EXACT)}.",
            outcome(
                found,
                confirms=lambda item: _bias(item).high < EXACT,
                refutes=lambda item: _bias(item).low > EXACT,
            ),
            by_study(_worst(found)),
        )


def _worst(found: Sequence[Found]) -> Iterator[tuple[Study, str]]:
    """Yield the study and the largest pair bias of each comparison: that of the arm whose interval reaches highest."""
    places: dict[tuple[str, str], list[Found]] = {}
    for item in found:
        places.setdefault((item.study.name, item.place), []).append(item)
    for items in places.values():
        highest = max(items, key=lambda item: np.nan_to_num(_bias(item).high, nan=np.inf))
        arms = f" at most, in {len(items)} arms" if len(items) > 1 else ""
        yield highest.study, f"{highest.place}: {interval(_bias(highest))}{arms}"


def _loses_dice(found: Sequence[Found]) -> Iterator[Expectation]:
    if found:
        yield Expectation(
            "A network that starts at random loses Dice.",
            outcome(
                found,
                confirms=lambda item: _change(item).high < 0,
                refutes=lambda item: _change(item).low > 0,
            ),
            _evidence(found, _dice),
        )


def _dice(item: Found) -> str:
    return f"{difference(_change(item), -item.arm.margin, -LOST)}, {judgement(item.arm)}"


def _evidence(found: Sequence[Found], write: Callable[[Found], str]) -> dict[str, list[str]]:
    """Return what was found in each comparison, study by study: several have comparisons of one name."""
    return by_study((item.study, f"{item.place}: {write(item)}") for item in found)


def by_study(found: Iterable[tuple[Study, str]]) -> dict[str, list[str]]:
    """Group what was found by the name of its study."""
    texts: dict[str, list[str]] = {}
    for study, text in found:
        texts.setdefault(study.name, []).append(text)
    return texts
