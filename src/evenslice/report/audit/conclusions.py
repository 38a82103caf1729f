"""What follows from audits of one network by several methods."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from evenslice.report.audit.questions import method_name, state_of
from evenslice.report.base.wording import listed, one_line

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from evenslice.results import AuditResult

__all__ = ["Conclusion", "by_network", "conclude", "conclusion"]

LONGEST_NAME = 60
FAIR = frozenset({"symmetric", "balanced"})


@dataclass(frozen=True)
class Conclusion:
    """What the audits of one network by several methods say together.

    Attributes:
        network: the audits' name without the methods; empty if they have no other.
        verdicts: that by each method.
        agree: whether the methods come to one result, "symmetric" and "balanced" being one; None if that is not settled.
        says: a sentence.
    """

    network: str
    verdicts: Mapping[str, str]
    agree: bool | None
    says: str


def conclude(audits: Sequence[AuditResult]) -> list[Conclusion]:
    """Return what follows for each network that several methods audited.

    Audits belong together if they have the same network and volumes, and the same name but for the method in it.
    """
    return [_concluded(network, group) for network, group in _by_several_methods(audits)]


def conclusion(audits: Sequence[AuditResult]) -> str:
    """Say what follows for each network that several methods audited; empty if there is none."""
    return " ".join(found.says for found in conclude(audits))


def by_network(audits: Sequence[AuditResult]) -> list[tuple[str, list[int]]]:
    """Return the name of each network without the methods, empty if it has no other, and the indices of its audits."""
    groups: dict[tuple[str, str], list[int]] = {}
    for index, audit in enumerate(audits):
        network, volumes = _without_method(audit), [volume.fingerprint for volume in audit.run.volumes]
        groups.setdefault((network, repr((audit.run.model, volumes))), []).append(index)
    return [(network, group) for (network, _), group in groups.items()]


def _by_several_methods(audits: Sequence[AuditResult]) -> Iterator[tuple[str, list[AuditResult]]]:
    """Yield the networks that were audited by several methods: their names without the methods, and their audits."""
    for network, indices in by_network(audits):
        group = [audits[index] for index in indices]
        if len({audit.run.method for audit in group}) == len(group) > 1 and all(
            audit.pairs for audit in group
        ):
            yield network, group


def _without_method(audit: AuditResult) -> str:
    name = audit.name.removesuffix(audit.run.method)
    return audit.name if name == audit.name and audit.run.method else name.rstrip(" ,:")


def _concluded(network: str, group: Sequence[AuditResult]) -> Conclusion:
    verdicts = {audit.run.method: audit.verdict for audit in group}
    opposed = _opposed(group)
    found = set(verdicts.values())
    agree: bool | None = opposed is None and (len(found) == 1 or found <= FAIR)
    if opposed is None and "inconclusive" in found:
        agree = None
    agreed = agree is not None and all(map(_rests_on_methods, group))
    text = _sentence(verdicts, opposed, agreed=agreed)
    says = f"{one_line(network, LONGEST_NAME)}: {text}" if network else text[:1].upper() + text[1:]
    return Conclusion(network, verdicts, agree, says)


def _rests_on_methods(audit: AuditResult) -> bool:
    """Say whether a verdict rests on methods that agree: a network whose answer changes is biased by any method."""
    found = audit.statistics
    by_answer = (
        found.verdict == "biased" and found.decided_by is not None and found.decided_by.question == "answer"
    )
    return not by_answer and (found.second_opinion is None or found.methods_agree is True)


def _sentence(verdicts: Mapping[str, str], opposed: int | None, *, agreed: bool) -> str:
    """Say what several methods find; only if each verdict rests on methods that agree, they are said to (``agreed``)."""
    by_verdict: dict[str, list[str]] = {}
    for method, verdict in verdicts.items():
        by_verdict.setdefault(verdict, []).append(f"by {method_name(method)}")
    each = ", ".join(f"{verdict} {listed(methods)}" for verdict, methods in by_verdict.items())
    methods = listed([method_name(method) for method in verdicts])
    if opposed is not None:
        return f"{methods} disagree about which of the slices ±{opposed} is favoured: {each}."
    if len(by_verdict) == 1 and not agreed:
        every = "both" if len(verdicts) == 2 else "all"
        return f"the verdicts by {methods} are {every} {next(iter(by_verdict))}."
    if len(by_verdict) == 1:
        return f"{methods} agree: {next(iter(by_verdict))}."
    if set(by_verdict) <= FAIR:
        return f"no method finds a bias: {each}."
    if "inconclusive" in by_verdict:
        return f"not every method settles it: {each}."
    return f"the methods disagree: {each}."


def _opposed(group: Sequence[AuditResult]) -> int | None:
    """Return k of the first pair that is beyond its tolerance on one side by one method and on the other by another."""
    for k in range(1, min(len(audit.pairs) for audit in group) + 1):
        found = [(audit.pairs[k - 1], audit.statistics.tolerance) for audit in group]
        beyond = {
            pair.estimate > 0 for pair, edge in found if pair.judged and state_of(pair, edge) == "beyond"
        }
        if len(beyond) == 2:
            return k
    return None
