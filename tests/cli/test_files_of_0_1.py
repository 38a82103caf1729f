"""Files that version 0.1.0 wrote are read: networks, audits and runs of training."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import evenslice

BEFORE = Path(__file__).parents[1] / "data" / "written-by-0.1.0"
SPEC = "smp:Unet/tu-test_resnet?encoder_depth=2&decoder_channels=[4,4]"


@pytest.fixture
def folder(tmp_path):
    """A copy, which tests may write to."""
    return Path(shutil.copytree(BEFORE, tmp_path / "before"))


def test_a_saved_network_gives_the_output_it_gave():
    network, record, source = evenslice.load_network(SPEC, str(BEFORE / "fair.safetensors"))
    windows = torch.rand(1, 5, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        output = network(windows)
    np.testing.assert_allclose(output.numpy(), np.load(BEFORE / "output_of_fair.npy"), rtol=0, atol=1e-5)
    assert (record.strategy, record.tie, record.slices, source.weights) == (
        "mirror",
        "mirror",
        5,
        str(BEFORE / "fair.safetensors"),
    )
    assert network.get_submodule("encoder.model.conv1.0").parametrizations  # the tie is there again


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


def test_the_run_of_a_training_segments_as_it_did(folder, cli):
    out = folder / "again.npy"
    files = ["--run", str(folder / "run"), "--volume", str(folder / "image.tif"), "--out", str(out)]
    # The labels were made in bfloat16, which is not the default on every machine.
    assert cli("segment", *files, "--dtype", "bfloat16")[0] == 0
    assert (np.load(out) == np.load(folder / "labels_of_run.npy")).mean() > 0.999
