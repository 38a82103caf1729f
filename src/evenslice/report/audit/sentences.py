"""The sentences about an audit, the same for its page, the terminal and notebooks: verdict, advice, and how it was made."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from evenslice.report.audit.answers import four_answers, side
from evenslice.report.base.wording import counted, listed, one_line, percent, threshold

if TYPE_CHECKING:
    from collections.abc import Sequence

    from evenslice.report.audit.answers import Answer, Found
    from evenslice.results import AuditResult

SCALINGS = {
    "recorded": "as recorded on the network",
    "recorded on a part": "as recorded on a part of the network. If what wraps that part scales its input too, slices were "
    "scaled twice",
    "given": "as given",
    "stated": "as the network's library states for its pretrained weights",
    "assumed": "which is assumed: neither the network nor its library states a scaling",
}
ADVICE = {
    "biased": "A trained network: average it over each window and its mirror (evenslice symmetrize). A network about to be "
    "trained: start with the strategy twin (evenslice neutralize).",
    "symmetric": "There is nothing to do.",
    "balanced": "Maps favour neither side and answers do not depend on the order of slices, but a map at one place may.",
}
LONGEST_NAME = 60


def verdict_sentence(audit: AuditResult) -> str:
    """Describe the verdict of an audit and what decided it."""
    answers, verdict = four_answers(audit), audit.verdict
    decided = [item for item in answers if item.decided]
    if audit.definitions == 1:
        about = listed([item.question for item in audit.statistics.decided_by])
        return f"{verdict.capitalize()} with the definitions of version 0.2{about and f', by its {about}'}."
    if not answers or verdict == "not applicable":
        return "Not applicable: a window of one slice has no opposite slices to compare."
    if verdict == "biased":
        text = f"Biased {listed([_bias(audit, item, item.found) for item in decided if item.found])}."
    elif verdict == "symmetric":
        text = "Symmetric: opposite slices are used in the same way, place by place."
    elif verdict == "balanced":
        text = _balanced(answers)
    else:
        text = "Not settled" + (f": {listed([item.name for item in decided])}." if decided else ".")
    return text + _equal(audit) + _needed(audit) + _unjudged(audit)


def extent_sentence(audit: AuditResult) -> str:
    """Say of which volumes the verdict is, and how many of their windows were read."""
    there = audit.run.windows_available
    volumes = "these volumes" if len(audit.run.volumes) > 1 else "this volume"
    return f"On {volumes}: {audit.windows}{f' of {there}' if there else ''} windows read."


def advice_sentence(audit: AuditResult) -> str:
    """Say what to do next; empty if a verdict does not tell."""
    if audit.verdict != "inconclusive":
        return ADVICE.get(audit.verdict, "")
    if audit.run.stopped == "all windows used":
        return "All windows were read: audit another volume as well."
    return "Read more windows (max_windows)."


def setting_lines(audits: Sequence[AuditResult]) -> list[str]:
    """Say how audits were made as far as it bears on their figures, one line for each way.

    The line names the audits that were made in this way, unless all were: which scaling of the input was used, and where it
    comes from; whether classes were assumed to exclude each other; and by which definitions it was measured.
    """
    named: dict[str, list[str]] = {}
    for audit in audits:
        named.setdefault(_setting(audit), []).append(one_line(audit.name, LONGEST_NAME))
    return [text if len(named) == 1 else f"{listed(names)}: {text}" for text, names in named.items() if text]


def _setting(audit: AuditResult) -> str:
    run, parts = audit.run, []
    if audit.definitions == 1:
        parts.append("Measured with the definitions of version 0.2.")
    if run.scaling is not None:
        parts.append(_scaling(run.scaling))
    if run.assumed:
        parts.append("Classes were assumed to exclude each other; the option overlapping says otherwise.")
    if run.clamped:
        parts.append(f"Of the probabilities, {percent(run.clamped)} were clamped to [1e-6, 1 - 1e-6].")
    return " ".join(parts)


def _scaling(scaling: dict[str, Any]) -> str:
    source = scaling.get("source")
    if source == "function":
        return "The function gets slices in 0 to 1, and scales them itself."
    mean, std = (_values(scaling.get(name)) for name in ("mean", "std"))
    how = SCALINGS.get(str(source), "")
    return f"Input: slices in 0 to 1, less mean {mean}, over std {std}{how and f', {how}'}."


def _values(values: Any) -> str:
    """Format one value for each slice, once if all are the same."""
    found = [f"{value:.3g}" for value in (values if isinstance(values, list | tuple) else [values])]
    return found[0] if len(set(found)) == 1 else ", ".join(found)


def _bias(audit: AuditResult, answer: Answer, found: Found) -> str:
    """Say on which question a network is biased, and how much."""
    size, of = found.figure.estimate, "" if found.class_number is None else f" in class {found.class_number}"
    if answer.question == "saliency":
        method = audit.run.method.replace("_", " ")
        maps = "its gradient maps" if method == "gradient" else f"its maps by {method}"
        return f"in {maps} ({side(found)} gets {percent((1 + abs(size)) / 2)} of its pair{of})"
    if answer.question == "reliance":
        return f"in what it relies on ({side(found)} is missed most{of})"
    if audit.answer.of == "scores":
        return f"in its answers (reversing a window changes them by {percent(size)} of what unrelated ones differ by)"
    return f"in its answers ({percent(size)} of class {found.class_number} changes when a window is reversed)"


def _balanced(answers: Sequence[Answer]) -> str:
    within = [item.question for item in answers if item.state == "within"]
    equal = listed([name for name in within if name in ("saliency", "reliance")])
    parts = [f"opposite slices get equal {equal}"] if equal else []
    parts += ["the order of slices does not change the answer"] if "answer" in within else []
    rest = "they are not used in the same way, place by place"
    if answers[-1].state != "beyond":
        rest = "whether they are used in the same way, place by place, is open"
    return f"Balanced: {', and '.join(parts)}; but {rest}."


def _equal(audit: AuditResult) -> str:
    """Say of how many windows all that were read equal their mirrors."""
    different = audit.statistics.different
    if different is None:
        return ""
    rest = (
        f": fewer than {threshold(math.ceil(1000 * different) / 1000)} of all can differ" if different else ""
    )
    return f" Equal in all {counted(audit.windows, 'window')} read{rest}."


def _needed(audit: AuditResult) -> str:
    needed = audit.statistics.needed
    if audit.verdict != "inconclusive" or needed is None or audit.run.stopped == "all windows used":
        return ""
    return f" About {needed} windows would settle it (max_windows)."


def _unjudged(audit: AuditResult) -> str:
    numbers = audit.statistics.unjudged_classes
    if not numbers:
        return ""
    least = threshold(audit.statistics.judged_class)
    if len(numbers) == 1:
        return f" Class {numbers[0]} covers less than {least} of the pixels and was not judged."
    return (
        f" Classes {', '.join(map(str, numbers))} cover less than {least} of the pixels and were not judged."
    )


def network_names(audits: Sequence[AuditResult]) -> str:
    """Name the networks of audits."""
    return _shortened(list(dict.fromkeys(_network(audit.run.model) for audit in audits)))


def volume_names(audits: Sequence[AuditResult]) -> str:
    """Name the volumes of audits, with their sizes; empty if none is known."""
    names = {}
    for volume in (volume for audit in audits for volume in audit.run.volumes):
        size = f" ({' × '.join(map(str, volume.shape))} voxels)" if volume.shape else ""  # noqa: RUF001
        names[volume.fingerprint, volume.path] = f"{short_path(volume.path)}{size}"
    return _shortened(list(names.values()))


def _network(model: dict[str, Any]) -> str:
    text = str(model.get("spec") or model.get("class") or "a network of unknown name")
    text += f", weights {model['weights']}" if model.get("weights") else ""
    return f"{text}, symmetrized" if model.get("symmetrized") else text


def short_path(path: str) -> str:
    """Leave out the folders of a path or an address, but not those inside a file.

    Example:
        >>> short_path("/data/a.nii.gz"), short_path("/data/em.h5:/raw/0"), short_path("https://host/b/c.zarr")
        ('a.nii.gz', 'em.h5:/raw/0', 'c.zarr')
    """
    file, colon, inside = path.partition(":/")
    if not colon or inside.startswith("/"):  # no part of a file, or an address
        return path.rstrip("/").rpartition("/")[2] or "an array"
    return f"{file.rpartition('/')[2]}:/{inside}"


def _shortened(names: list[str], most: int = 3) -> str:
    left = len(names) - most
    return listed([*names[:most], f"{left} more"] if left > 1 else names)
