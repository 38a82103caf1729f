"""What to do after each verdict, in one line, and the badge."""

import json
from dataclasses import replace

import pytest
from synthetic import PRETRAINED, RUN, UNIFORM, make_audit

from evenslice.report import badge_text
from evenslice.report.next_steps import next_step

SPEC = "smp:Unet/resnet34"


def audit_of(shares, *, weights="unet.pt", more="", **run):
    command = f"evenslice audit --model {SPEC} --weights={weights} --volume brain.nii.gz {more}"
    model = {"spec": SPEC, "weights": weights}
    return make_audit("net", shares, run={"command": command, "model": model, **run})


def with_verdict(audit, verdict, **statistics):
    return replace(audit, statistics=replace(audit.statistics, verdict=verdict, **statistics))


BIASED = {
    "trained": (
        audit_of(PRETRAINED, more="--slices 3 --mean=0.5 --stress"),
        f"evenslice symmetrize --model {SPEC} --weights unet.pt --slices 3 --mean 0.5 --out symmetric.safetensors",
    ),
    "untrained": (
        audit_of(PRETRAINED, weights="imagenet"),
        f"before training, evenslice neutralize --model {SPEC} --weights imagenet --strategy twin --out fair.safetensors",
    ),
    "an ONNX file": (
        audit_of(PRETRAINED, model={"spec": "onnx", "weights": "my net.onnx"}),
        "evenslice symmetrize --model onnx --weights 'my net.onnx' --out symmetric.onnx",
    ),
    "in Python": (
        audit_of(PRETRAINED, command=None, model={"class": "Unet"}),
        'evenslice.symmetrize(model) if it is trained, else evenslice.neutralize(model, strategy="twin") before training',
    ),
    "a function": (
        audit_of(PRETRAINED, command=None, model={"class": "f"}, scaling={"source": "function"}),
        "evenslice.symmetrize(function)",
    ),
}


@pytest.mark.parametrize("case", BIASED)
def test_a_biased_network_gets_the_remedy_that_fits_it(case):
    audit, remedy = BIASED[case]
    assert next_step(audit) == f"Next: {remedy}"


@pytest.mark.parametrize(
    ("needed", "command", "stopped", "said"),
    [
        (412, RUN.command, "limit reached", "Next: about 412 windows may settle it, --max-windows 412."),
        (
            412,
            None,
            "limit reached",
            "Next: about 412 windows may settle it, sampling=Sampling(max_windows=412).",
        ),
        (None, RUN.command, "limit reached", "Next: about 240 windows may settle it, --max-windows 240."),
        (412, None, "all windows used", "Next: all windows were read; audit another volume as well."),
    ],
)
def test_what_is_open_gets_a_number_of_windows(needed, command, stopped, said):
    audit = audit_of(UNIFORM, command=command, stopped=stopped)
    assert next_step(with_verdict(audit, "inconclusive", needed=needed)) == said


def test_of_a_fair_network_it_says_what_may_be_written():
    audit = audit_of(UNIFORM)
    said, more = 'You may write: "symmetric on brain.nii.gz: {}', ' (120 of 1683 windows, evenslice 0.1.0)."'
    same = "B, C and E 0 in all windows read and, with 95\u00a0% confidence, in 97.6\u00a0% of all"
    assert next_step(audit).replace("95 %", "95\u00a0%") == said.format(same + more)
    everywhere = next_step(with_verdict(audit, "symmetric", different=0.0))
    assert everywhere == said.format("B, C and E 0 in all windows" + more)
    measured = next_step(with_verdict(audit, "symmetric", different=None))
    assert measured == said.format("B within ±0.05, C 0 [0, 0], E 0 [0, 0]" + more)
    assert "may still favour a side" in next_step(with_verdict(audit, "balanced"))
    assert next_step(replace(audit, definitions=1)) == ""


def test_a_badge_shows_the_worst_verdict():
    fair, biased = audit_of(UNIFORM), audit_of(PRETRAINED)
    assert json.loads(badge_text([fair])) == {
        "schemaVersion": 1,
        "label": "evenslice",
        "message": "z-symmetric, C = 0",
        "color": "brightgreen",
    }
    worst = json.loads(badge_text([fair, biased, make_audit("one", (1.0,))]))
    assert (worst["message"], worst["color"]) == (f"z-biased, C = {biased.answer.estimate:.2g}", "red")
