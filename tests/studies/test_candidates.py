"""studies/candidates.py: what its trainings do that the package's own do not, and the table of what they found."""

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


@pytest.fixture(scope="module")
def rows():
    with scripts.script("candidate_rows") as module:
        yield module


def row(rows, arm, seed, dice, **scores):
    scores = {"changed": 0.0, "before": 0.5, "after": 0.7, "both": 0.4} | scores
    return rows.Row(arm=arm, seed=seed, dice=dice, **scores, seconds=1.0)


def test_the_table_compares_the_seeds_that_all_arms_have(rows, tmp_path):
    found = [
        row(rows, "pretrained", 0, 0.8, changed=0.2),
        row(rows, "pretrained", 1, 0.9, changed=0.1),
        row(rows, "tied", 0, 0.81),
        row(rows, "tied", 1, 0.93),
        row(rows, "pretrained", 2, 0.1),
    ]
    for one in found:
        rows.append_row(one, tmp_path / "rows.csv")
    read = rows.read_rows(tmp_path / "rows.csv")
    assert read == found
    assert rows.candidate_table(read[:3]) == ""  # a single seed
    _, _, baseline, tied = rows.candidate_table(read).splitlines()
    assert baseline.replace("\N{NO-BREAK SPACE}", " ") == (
        "| pretrained | 0.850 |  | 15 % | 0.500 | 0.700 | 0.400 |"
    )
    # The mean of .01 and .03, and t(.975, 1) = 12.706 standard errors of .01 to each side.
    assert "| tied | 0.870 | +0.020 [\N{MINUS SIGN}0.107, 0.147] |" in tied


def test_nothing_was_found_yet(rows, tmp_path):
    assert rows.read_rows(tmp_path / "rows.csv") == []


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
