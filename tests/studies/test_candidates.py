"""studies/candidates.py: what its trainings do that the package's own do not."""

import numpy as np
import pytest
import scripts
import tifffile
import torch

from evenslice import load_network, neutralize

NETWORK = "smp:Unet/tu-tf_efficientnet_lite0"


@pytest.fixture(scope="module")
def script():
    with scripts.script("candidates") as module:
        yield module


def test_rows_survive_the_file(script, tmp_path):
    assert script.read_rows(tmp_path / "rows.csv") == []
    row = script.Row("tied", 1, dice=0.93, changed=0.0, before=0.5, after=0.7, both=0.4, seconds=1.0)
    for seed in (0, 1):
        script.append_row(script.Row(**(vars(row) | {"seed": seed})), tmp_path / "rows.csv")
    assert script.read_rows(tmp_path / "rows.csv")[1] == row


def test_outer_kernels_are_held_for_some_steps_alone(script):
    network, _, _ = load_network(NETWORK, "none", strategy="center", tie="mirror")
    script.hold_outer_kernels(network, 2)
    kernels = network.encoder.model.conv_stem.parametrizations.weight.original
    for held in (True, True, False):
        kernels.grad = None
        network(torch.rand(1, 3, 64, 64)).square().mean().backward()
        assert kernels.grad[:, 1].abs().max() > 0
        assert (kernels.grad[:, [0, 2]].abs().max() == 0) == held


@pytest.mark.slow
@pytest.mark.parametrize("arm", ["pretrained, consistency loss", "mirror, tied, distilled"])
def test_a_training_is_tested_intact_reversed_and_with_slices_missing(arm, script, tmp_path, monkeypatch):
    monkeypatch.setattr(script, "STEPS", 2)
    monkeypatch.setattr(script, "BATCH", 2)
    monkeypatch.setattr(script, "CROP", (32, 32))
    random = np.random.default_rng(0)
    for part in ("train", "test"):
        image = random.integers(0, 255, (8, 64, 64), dtype=np.uint8)
        tifffile.imwrite(tmp_path / f"{part}_image.tif", image)
        tifffile.imwrite(tmp_path / f"{part}_mito.tif", (image > 128).astype(np.uint8))
    threads = torch.get_num_threads()
    try:
        found = script.run(arm, 0, tmp_path)
    finally:
        torch.set_num_threads(threads)
    assert found.arm == arm
    assert 0 < found.dice < 1
    assert (found.changed < 0.001) == ("tied" in arm)
    assert found.both != found.dice


def test_a_network_that_sees_one_side_changes_and_loses_that_side_alone(script, tmp_path):
    """It answers with the slice before, which is the label."""
    network = torch.nn.Conv2d(3, 2, 1)
    with torch.no_grad():
        network.weight.zero_()[1, 0] = 1.0
        network.bias.copy_(torch.tensor([0.0, -0.5]))
    neutralize(network, strategy="pretrained", mean=0, std=1)
    image = (np.random.default_rng(0).random((12, 64, 64)) < 0.5).astype(np.uint8)
    tifffile.imwrite(tmp_path / "test_image.tif", image)
    tifffile.imwrite(tmp_path / "test_mito.tif", np.roll(image, 1, axis=0))
    found = script.test(network, tmp_path)
    assert found["dice"] == found["after"] == 1
    assert found["before"] == found["both"] == pytest.approx(0.5, abs=0.02)
    assert found["changed"] == pytest.approx(
        2 / 3, abs=0.02
    )  # half the pixels, three quarters of which are foreground
