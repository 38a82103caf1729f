"""Files that version 0.1.0 wrote are read: networks, audits and runs of training."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import evenslice

BEFORE = Path(__file__).parents[1] / "data" / "written-by-0.1.0"
SPEC = "smp:Unet/tu-test_resnet?encoder_depth=2&decoder_channels=[4,4]"


@pytest.fixture
def folder(tmp_path):
    """A copy, which tests may write to."""
    return Path(shutil.copytree(BEFORE, tmp_path / "before"))


def test_audits_say_what_they_said(folder):
    pretrained, uniform = evenslice.load_audits(folder / "audit")
    assert (pretrained.verdict, uniform.verdict) == ("biased", "symmetric")
    for audit, name in ((pretrained, "audit.json"), (uniform, "audit.1-uniform.json")):
        said = json.loads((folder / "audit" / name).read_text())
        assert audit.definitions == 1
        assert audit.pairs[0].estimate == said["pairs"][0]["estimate"]
        assert [share.estimate for share in audit.shares] == [share["mean"] for share in said["shares"]]
        # What that version did not ask stays open.
        assert np.isnan(
            [audit.answer.estimate, audit.mismatch.estimate, *(pair.estimate for pair in audit.reliance)]
        ).all()


@pytest.mark.slow
def test_its_report_is_rebuilt(folder, cli):
    assert cli("report", str(folder / "audit"))[0] == 0
    assert "version 0.2" in (folder / "audit" / "report.html").read_text()
