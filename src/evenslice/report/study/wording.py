"""The sentences of a study's page: how much of the bias each arm removes, and at what cost."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

from evenslice.report.base.wording import MINUS, NOTHING, interval, listed, number, percent

if TYPE_CHECKING:
    from collections.abc import Sequence

    from evenslice.results import ArmSummary, Comparison, Interval, StudyResults

MOST: Final = 0.9
"""The share of the baseline's bias that an arm must remove to be named in the headline of a comparison."""


_OUTCOMES: Final = {
    "not inferior": (" and is not inferior in Dice", " and are not inferior in Dice"),
    "inferior": (" but is inferior in Dice", " but are inferior in Dice"),
    "not settled": (
        ", but whether it is inferior in Dice is not settled",
        ", but whether they are inferior in Dice is not settled",
    ),
    "no test": (", but one seed is too few to test Dice",) * 2,
}
"""Ends of a clause about one arm and about several, by the outcome for Dice."""


def study_headline(results: StudyResults) -> str:
    """Describe what was compared and how much of it is done."""
    planned, finished = (int(results.summary[name]) for name in ("planned", "finished"))
    failed = len(results.summary["failed"])
    sets, networks = (
        len({getattr(item, name) for item in results.comparisons}) for name in ("dataset", "architecture")
    )
    seeds = len({run.seed for run in results.runs})
    counts = (
        (sets, "data set"),
        (networks, "network"),
        (len(results.arms), "arm"),
        (seeds, "seed"),
    )
    text = f"{finished} of {_counted(planned, 'run')} {'is' if 1 in (planned, finished) else 'are'} done"
    if results.comparisons:
        text += ": " + listed([_counted(count, name) for count, name in counts])
    text += f"; {failed} failed" if failed else ""
    waiting = max(0, planned - finished - failed)
    return text + (f"; {waiting} {'is' if waiting == 1 else 'are'} still to be done." if waiting else ".")


def comparison_sentence(comparison: Comparison, baseline: str) -> str:
    """Name the arms that remove most of the baseline's directional bias, and whether that costs Dice."""
    others = [arm for arm in comparison.arms if arm.arm != baseline]
    compared = [arm for arm in others if arm.differences]
    if not compared:
        return (
            f"There is no other arm to compare with {baseline}."
            if not others
            else f"No arm has a seed in common with {baseline}, so there is nothing to compare."
        )
    removing = [arm for arm in compared if arm.bias_removed >= MOST]
    if not removing:
        return f"No arm removes at least {percent(MOST)} of the directional bias of {baseline}."
    what, clauses = f"at least {percent(MOST)} of the directional bias of {baseline}", []
    for outcome, (one, several) in _OUTCOMES.items():
        names = [arm.arm for arm in removing if judgement(arm) == outcome]
        if names:
            verb, cost = ("removes", one) if len(names) == 1 else ("remove", several)
            clauses.append(f"{listed(names)} {verb} {what}{cost}")
            what = "as much"
    tested = any(arm.holds is not None for arm in removing)
    return "; ".join(clauses) + (f" (margin {removing[0].margin:g})." if tested else ".")


def arm_sentence(arm: ArmSummary, baseline: str) -> str:
    """Describe the effect of an arm on the bias and on Dice, to follow its name.

    ``"removes 98 % of the directional bias; Dice differs by +0.002 [-0.004, 0.008] and is not inferior (margin
    0.01)."``
    """
    if arm.arm == baseline:
        bias, dice = (interval(arm.metrics[name]) for name in ("directional_bias", "dice"))
        return f"is the baseline: its directional bias is {bias}, its Dice {dice}."
    if not arm.differences:
        return f"has no seed in common with {baseline}; its Dice is {interval(arm.metrics['dice'])}."
    change = arm.differences["dice"]
    if math.isnan(change.estimate):
        return f"{removal(arm.bias_removed)}; there is no Dice to compare."
    return f"{removal(arm.bias_removed)}; Dice differs by {difference(change)}{_judged(arm)}."


def removal(removed: float) -> str:
    r"""Describe how much of the directional bias an arm removes or adds.

    Example:
        >>> for part in (0.98, 0.9996, -0.3, -4.2, float("nan")):
        ...     print(removal(part).replace("\N{NO-BREAK SPACE}", " "))
        removes 98 % of the directional bias
        removes more than 99 % of the directional bias
        adds 30 % to the directional bias
        has 5.2 times the directional bias
        finds no directional bias to remove
    """
    if math.isnan(removed):
        return "finds no directional bias to remove"
    if removed <= -1:
        times = 1 - removed
        written = f"{times:.1f}" if times < 10 else f"{times:.0f}" if times < 1000 else "more than 1000"
        return f"has {written} times the directional bias"
    if removed < 0:
        return f"adds {percent(-removed)} to the directional bias"
    return f"removes {removed_part(removed)} of the directional bias"


def removed_part(removed: float) -> str:
    """Format the share that is removed in whole percent, rounded down so as not to overstate it."""
    if math.isnan(removed):
        return NOTHING
    if removed < -10:
        return f"below {MINUS}{percent(10)}"
    part = math.floor(100 * removed) / 100
    if part < 0:
        return f"{MINUS}{percent(-part)}"
    return f"more than {percent(0.99)}" if 0.99 < removed < 1 else percent(part)


def judgement(arm: ArmSummary) -> str:
    """Return the outcome of the non-inferiority test of Dice: not inferior, inferior, not settled or no test.

    It is inferior if the whole 95 % interval of the difference lies below minus the margin.
    """
    if arm.holds is None:
        return "no test"
    if arm.holds:
        return "not inferior"
    return "inferior" if arm.differences["dice"].high < -arm.margin else "not settled"


def _judged(arm: ArmSummary) -> str:
    margin = f"(margin {arm.margin:g})"
    return {
        "no test": "; one seed in common is too few for a test",
        "not inferior": f" and is not inferior {margin}",
        "inferior": f" and is inferior {margin}",
        "not settled": f"; whether it is inferior is not settled {margin}",
    }[judgement(arm)]


def verdicts(seen: Sequence[str]) -> str:
    """Count the verdicts of an arm's audits: ``"2 biased, 1 inconclusive"``; a single one is not counted."""
    known = ("biased", "inconclusive", "symmetric", "not applicable")
    names = [name for name in known if name in seen] + sorted(set(seen) - set(known))
    return ", ".join(name if len(seen) == 1 else f"{seen.count(name)} {name}" for name in names) or NOTHING


def difference(value: Interval) -> str:
    """Format a difference with its interval in three decimals, with a plus sign if positive.

    Example:
        >>> from evenslice.results import Interval
        >>> difference(Interval(0.0021, -0.0004, 0.0046)).replace("\N{MINUS SIGN}", "-")
        '+0.002 [0.000, 0.005]'
    """
    if math.isnan(value.estimate):
        return NOTHING
    estimate = _decimals(value.estimate)
    estimate = f"+{estimate}" if estimate.strip("0.") and value.estimate > 0 else estimate
    if math.isnan(value.low) or math.isnan(value.high):
        return estimate
    return f"{estimate} [{_decimals(value.low)}, {_decimals(value.high)}]"


def _decimals(value: float) -> str:
    return f"{value:z.3f}".replace("-", MINUS)


def p_value(p: float) -> str:
    """Format the p of a test.

    Example:
        >>> p_value(0.0312), p_value(2e-5)
        ('p = 0.031', 'p < 0.001')
    """
    if math.isnan(p):
        return NOTHING
    return "p < 0.001" if p < 0.001 else f"p = {number(p)}"


def _counted(count: int, name: str) -> str:
    return f"{count} {name}" if count == 1 else f"{count} {name}s"
