"""What follows from a verdict: the command or call to type next, what may be written about a network, and its badge."""

from __future__ import annotations

import math
import shlex
from itertools import pairwise
from typing import TYPE_CHECKING, Final

from evenslice._core import json_text
from evenslice.report.tables import interval, listed, short_path, threshold

if TYPE_CHECKING:
    from collections.abc import Sequence

    from evenslice.results import AuditResult

ALL_READ: Final = "all windows used"
UNTRAINED = ("imagenet", "none")
REPEATED = ("--slices", "--mean", "--std", "--classes")
"""Options of the network that the command to type next needs as well as the audit."""

BADGE_COLOURS: Final = {
    "biased": "red",
    "inconclusive": "yellow",
    "balanced": "green",
    "symmetric": "brightgreen",
}
"""The colour of each verdict, the worst first."""


def next_step(audit: AuditResult) -> str:
    """Say in one line what to type next or, of a fair network, what may be written about it; empty if there is nothing to say."""
    if audit.verdict == "biased":
        return f"Next: {_remedy(audit)}"
    if audit.verdict == "inconclusive":
        if audit.run.stopped == ALL_READ:
            return "Next: all windows were read; audit another volume as well."
        windows = audit.statistics.needed or 2 * audit.windows
        typed = "--max-windows {}" if audit.run.command else "sampling=Sampling(max_windows={})"
        return f"Next: about {windows} windows may settle it, {typed.format(windows)}."
    return _claim(audit) if audit.verdict in ("balanced", "symmetric") and audit.definitions > 1 else ""


def _remedy(audit: AuditResult) -> str:
    """Return how to make a network fair: trained, or about to be."""
    model = audit.run.model
    if audit.run.command is None or "weights" not in model:
        if (audit.run.scaling or {}).get("source") == "function":
            return "evenslice.symmetrize(function)"
        return 'evenslice.symmetrize(model) if it is trained, else evenslice.neutralize(model, strategy="twin") before training'
    options = ["--model", str(model["spec"]), "--weights", str(model["weights"])]
    words = [
        part
        for word in shlex.split(audit.run.command)
        for part in word.split("=", 1 if word.startswith("--") else 0)
    ]
    options += [part for pair in pairwise(words) if pair[0] in REPEATED for part in pair]
    if model["weights"] in UNTRAINED:
        return f"before training, evenslice neutralize {shlex.join(options)} --strategy twin --out fair.safetensors"
    suffix = "onnx" if model["spec"] == "onnx" else "safetensors"
    return f"evenslice symmetrize {shlex.join(options)} --out symmetric.{suffix}"


def _claim(audit: AuditResult) -> str:
    """Return a sentence that holds of a fair network."""
    found, run = audit.statistics, audit.run
    volumes = listed(list(dict.fromkeys(short_path(volume.path) for volume in run.volumes))) or "the volume"
    of_all = f" of {run.windows_available}" if run.windows_available else ""
    version = f", evenslice {run.versions['evenslice']}" if "evenslice" in run.versions else ""
    figures = f"B within ±{found.tolerance:g}, C {interval(found.answer_change)}, E {interval(found.mirror_mismatch)}"
    if found.different is not None:
        sure = threshold(1 - math.ceil(1000 * found.different) / 1000)
        rest = f" read and, with 95 % confidence, in {sure} of all" if found.different else ""
        figures = f"B, C and E 0 in all windows{rest}"
    caution = ""
    if audit.verdict == "balanced":
        caution = " Not that it is symmetric: a map at one place may still favour a side."
    return f'You may write: "{audit.verdict} on {volumes}: {figures} ({audit.windows}{of_all} windows{version})."{caution}'


def badge_text(audits: Sequence[AuditResult]) -> str:
    """Return the JSON from which shields.io draws a badge of the worst verdict, see https://shields.io/badges/endpoint-badge."""
    order = (*BADGE_COLOURS, "not applicable")
    audit = min(audits, key=lambda found: order.index(found.verdict))
    change = f", C = {audit.answer.estimate:.2g}" if audit.answer.estimate >= 0 else ""
    return json_text(
        {
            "schemaVersion": 1,
            "label": "evenslice",
            "message": f"z-{audit.verdict}{change}" if audit.saliency else audit.verdict,
            "color": BADGE_COLOURS.get(audit.verdict, "lightgrey"),
        }
    )
