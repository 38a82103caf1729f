"""The benchmark of planted evidence: what it plants, how it counts, and that its files hold its results."""

import numpy as np
import planted_evidence as planted
import pytest
import shared
import torch
import trained

import evenslice


@pytest.fixture
def volume():
    return np.random.default_rng(0).uniform(0.3, 0.7, (6, 80, 90)).astype(np.float32)


@pytest.mark.parametrize("marks", ["intensity", "texture", "both", "difference", "unequal"])
def test_each_tested_window_comes_twice_and_only_its_mark_moves(volume, marks):
    found = planted.Planter(volume, marks).draw(np.random.default_rng(1), 6, tested=True)
    before, after = found.windows[::2].numpy(), found.windows[1::2].numpy()
    assert found.sides.tolist() == [-1, 1] * 6
    assert np.array_equal(before[:, 1], after[:, 1])
    outside = ~found.marked[::2].numpy()[:, None] & np.ones((1, 3, 1, 1), bool)
    assert np.array_equal(before[outside], after[outside])
    assert not np.array_equal(before, after)
    assert found.disks.numpy()[found.marked.numpy()].mean() > 0.9
    assert sorted(set(found.labels.unique().tolist())) == [0, 1, 2]
    for pair in range(6 if marks in ("intensity", "difference", "unequal") else 0):
        mark, sign = found.marked[2 * pair].numpy(), 1 if found.labels[2 * pair].max() == 1 else -1
        for side in (0, 2):
            moved = (before[pair] - after[pair])[side][mark]
            away = 0.05 if marks == "unequal" else 0
            assert np.allclose(np.abs(moved - 0.15 * sign * (1 - side)), away, atol=1e-6)


@pytest.mark.slow
def test_a_network_that_reads_one_neighbour_is_right_on_that_side_alone(volume):
    network = torch.nn.Conv2d(3, 4, 1, bias=False).requires_grad_(False)
    network.weight.zero_()
    network.weight[1, 0] = 1.0
    tested = planted.Planter(volume, "intensity").draw(np.random.default_rng(1), 6, tested=True)
    found = planted.point(network, tested)
    for name in (*planted.METHODS, "gradient, at the mark", "integrated gradients from the middle, smoothed"):
        assert found[name]["right"] == "10" * 6, name
    rows = [{"marks": "intensity", "gradient": found["gradient"]}] * 2
    assert planted.pointing(rows, "gradient") == ([1, 0], (1, 1, 1))


def test_of_five_slices_the_mark_lies_in_each_neighbour_in_turn(volume):
    found = planted.Planter(volume, "five").draw(np.random.default_rng(1), 3, tested=True)
    assert found.sides.tolist() == [-2, -1, 1, 2] * 3
    changed = found.windows.reshape(3, 4, 5, -1).diff(dim=1).any(-1)
    assert changed[:, 0].tolist() == [[True, True, False, False, False]] * 3
    sums = torch.tensor([[5.0, 4, 9, 3, 2]] * 4)
    named = planted._named(sums, torch.tensor([-2, -1, 1, 2]))
    assert named == {"right": "1000", "bias": [pytest.approx(-4 / 14, abs=1e-4)] * 4}


def test_an_object_is_left_in_one_neighbour_alone(tmp_path):
    network = torch.nn.Conv2d(3, 2, 1).requires_grad_(False)
    network.weight.zero_()[1, 0] = 1.0
    stack = np.full((5, 160, 160), 0.5, np.float32)
    stack[:, 70:90, 72:90] = 1
    for name, voxels in (("image", stack), ("labels", (stack > 0.5).astype(np.uint8))):
        np.save(tmp_path / f"{name}.npy", voxels)
    found = trained.erased(network, [{name: str(tmp_path / f"{name}.npy") for name in ("image", "labels")}])
    assert [found[name] for name in ("gradient", "occlusion by the middle")] == [["111", "000"]] * 2
    window, _, place = next(trained.find_objects(*map(evenslice.open_volume, (stack, stack > 0.5))))
    assert trained.erase(window[0], place) == pytest.approx(0.5, abs=1e-4)


def test_a_network_that_reads_the_slice_before_changes_along_z_alone(tmp_path):
    network = torch.nn.Conv2d(3, 2, 1).requires_grad_(False)
    network.weight.zero_()[1, 0] = 1.0
    network.bias.copy_(torch.tensor([0.5, 0.0]))
    stack = np.random.default_rng(0).random((6, 40, 35))
    bright = stack > np.percentile(stack, (0.5, 99.5)).mean()
    for name, voxels in (("image", stack), ("labels", bright.astype(np.uint8))):
        np.save(tmp_path / f"{name}.npy", voxels)
    pair = {name: str(tmp_path / f"{name}.npy") for name in ("image", "labels")}
    found = trained.order(network, [pair], "own", tmp_path, tmp_path)
    before, after = bright[[1, 0, 1, 2, 3, 4]], bright[[1, 2, 3, 4, 5, 4]]
    overlap = (before & after).sum() / (before | after).sum()
    assert found["change"] == pytest.approx([1 - overlap, 0, 0], abs=1e-4)
    assert found["seeds"] == 0


def test_files_of_all_methods_hold_the_results(tmp_path):
    shared.write_csvs("planted", planted.whole_tables(), tmp_path)
    for path in (files := list(tmp_path.iterdir())):
        assert path.read_text() == (shared.RESULTS / path.name).read_text()
    assert len(files) == 7


def test_the_primary_comparison_is_what_the_page_says():
    rows = shared.read_lines(planted.RESULTS)
    cell = {"marks": "intensity", "background": "EM", "family": "EfficientNet-Lite0", "arm": "pretrained"}
    (before, after), _ = planted.pointing([row for row in rows if cell.items() <= row.items()], "gradient")
    assert (round(before, 1), round(after, 1)) == (1, 0)
    groups, families = planted._groups(), ("EfficientNet-Lite0", "MobileNetV1")
    said = [planted._answered(groups["intensity", "MRI", family, "uniform"]) for family in families]
    assert "`uniform` answers {} and {} right".format(*said) in planted.PICTURE.with_suffix(".md").read_text()
