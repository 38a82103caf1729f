"""The benchmark of planted evidence: what it plants, how it counts, and that its page holds its results."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import planted_evidence as planted
import pytest
import torch
import trained

ROOT = Path(__file__).parents[2]
CSVS = ROOT / "benchmarks" / "results"


@pytest.fixture
def volume():
    return np.random.default_rng(0).uniform(0.3, 0.7, (6, 80, 90)).astype(np.float32)


@pytest.mark.parametrize("marks", ["intensity", "texture", "both"])
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
    for pair in range(6 if marks == "intensity" else 0):
        mark, sign = found.marked[2 * pair].numpy(), 1 if found.labels[2 * pair].max() == 1 else -1
        for side in (0, 2):
            moved = (before[pair] - after[pair])[side][mark]
            assert np.allclose(moved, 0.15 * sign * (1 - side), atol=1e-6)


@pytest.mark.slow
def test_a_network_that_reads_one_neighbour_is_right_on_that_side_alone(volume):
    network = torch.nn.Conv2d(3, 4, 1, bias=False).requires_grad_(False)
    network.weight.zero_()
    network.weight[1, 0] = 1.0
    tested = planted.Planter(volume, "intensity").draw(np.random.default_rng(1), 6, tested=True)
    found = planted.point(network, tested)
    for name in (*planted.METHODS, "gradient, at the mark", "integrated gradients from the middle, smoothed"):
        assert found[name]["right"] == "10" * 6, name
    rows = [{"answered": found["answered"], "gradient": found["gradient"]}] * 2
    assert [estimate for estimate, *_ in planted.pointing(rows, "gradient")] == [1, 0, 1]


def test_a_network_that_reads_the_slice_before_changes_along_z_alone(monkeypatch, tmp_path):
    network = torch.nn.Conv2d(3, 2, 1).requires_grad_(False)
    network.weight.zero_()[1, 0] = 1.0
    network.bias.copy_(torch.tensor([0.5, 0.0]))
    monkeypatch.setattr(trained.evenslice, "load_network", lambda _: SimpleNamespace(model=network))
    stack = np.random.default_rng(0).random((6, 40, 35))
    bright = stack > np.percentile(stack, (0.5, 99.5)).mean()
    for name, voxels in (("image", stack), ("labels", bright.astype(np.uint8))):
        np.save(tmp_path / f"{name}.npy", voxels)
    pair = {name: str(tmp_path / f"{name}.npy") for name in ("image", "labels")}
    found = trained.order(tmp_path, [pair], "own", tmp_path)
    before, after = bright[[1, 0, 1, 2, 3, 4]], bright[[1, 2, 3, 4, 5, 4]]
    overlap = (before & after).sum() / (before | after).sum()
    assert found["change"] == pytest.approx([1 - overlap, 0, 0], abs=1e-4)
    assert found["seeds"] == 0


def test_pages_hold_the_tables_of_the_results():
    tables = planted.tables(planted.read_lines(planted.RESULTS))
    tables |= trained.tables(planted.read_lines(trained.RESULTS))
    for name, table in tables.items():
        if name.startswith("all"):  # a CSV file
            assert len(table.splitlines()) - 1 == len(
                (CSVS / f"planted-{name.replace(' ', '-')}.csv").read_text().splitlines()
            )
            continue
        text = (ROOT / "docs" / trained.PAGES.get(name, planted.PAGE.name)).read_text()
        found = text.split(f"<!-- {name} -->")[1].split(f"<!-- end of {name} -->")[0]
        assert found.strip() == table, name


def test_the_primary_comparison_is_what_the_page_says():
    rows = planted.read_lines(planted.RESULTS)
    cell = {"marks": "intensity", "background": "EM", "family": "EfficientNet-Lite0", "arm": "pretrained"}
    (before, *_), (after, *_), _ = planted.pointing(
        [row for row in rows if cell.items() <= row.items()], "gradient"
    )
    assert before > 0.95
    assert after < 0.05
