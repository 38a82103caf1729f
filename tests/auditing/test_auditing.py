"""Audits whose outcome is known: planted networks, planted data."""

import numpy as np
import pytest
import torch
from planted import Weighted as Linear
from torch import nn
from values import by_name

import evenslice
from evenslice import ConfigError, ModelError, VolumeError


class Squares(Linear):
    """Its gradient grows with the brightness of a slice, so that what the data hold shows in the shares."""

    def forward(self, windows):
        return super().forward(windows**2)


LABELS = np.zeros((48, 40, 40), np.uint8)


def audit(network, volume, **options):
    """Audit a network with options by their names, whatever value they belong to."""
    return evenslice.audit(network, volume, **by_name(evenslice.audit, **options))


@pytest.fixture(scope="module")
def texture():
    return np.random.default_rng(0).random((48, 40, 40))


@pytest.mark.parametrize("weights", [(1.0, 2.0, 1.0), (3.0, 2.0, 1.0), (1.0, 0.0, -4.0, 2.0, 1.0)])
def test_planted_weights_are_found(texture, weights):
    found = audit(Linear(*weights), texture, slices=len(weights))
    expected = np.abs(weights) / np.abs(weights).sum()
    np.testing.assert_allclose([share.estimate for share in found.shares], expected, atol=1e-5)
    half = len(weights) // 2
    ahead, behind = expected[half + 1 :], expected[:half][::-1]
    np.testing.assert_allclose(
        [p.estimate for p in found.saliency], (ahead - behind) / (ahead + behind), atol=1e-5
    )
    direction = (ahead.sum() - behind.sum()) / (ahead.sum() + behind.sum())
    assert found.statistics.directional_bias.estimate == pytest.approx(direction, abs=1e-5)
    assert found.statistics.data_direction.estimate == pytest.approx(0, abs=1e-6)
    assert found.verdict == ("symmetric" if np.allclose(ahead, behind) else "biased")


class Scalar(nn.Module):
    """A classifier: one logit for each of two classes."""

    def forward(self, windows):
        mean = windows.mean(dim=(1, 2, 3))[:, None]
        return torch.cat([mean, -mean], dim=1)


def brightest(windows):
    """A function that returns the class number of each pixel."""
    return (windows[:, 1] > 0.5).astype(np.int64)


@pytest.mark.parametrize(
    ("network", "value", "options", "error", "message"),
    [
        (Linear(1.0, 2.0, 1.0), 255, {}, VolumeError, "holds the label value 255"),
        (Linear(1.0, 2.0, 1.0), 7, {"target": "labels"}, VolumeError, "holds the label value 7"),
        (Linear(1.0, 2.0, 1.0), 7, {"stress": False}, VolumeError, "holds the label value 7"),
        (Scalar(), 1, {}, ModelError, r"it returns \(1, 2\) of float32"),
        (brightest, 1, {}, ModelError, r"it returns \(1, 32, 32\) of int64"),
    ],
)
def test_labels_that_do_not_fit_are_refused_before_any_window_is_measured(
    texture, monkeypatch, network, value, options, error, message
):
    monkeypatch.setattr(
        "evenslice.auditing.auditor.read_until_settled", lambda *_: pytest.fail("measures windows")
    )
    labels = np.zeros(texture.shape, np.uint8)
    labels[-1, -1, -1] = value  # a stray one in the last slice
    with pytest.raises(error, match=message):
        audit(network, texture, labels=labels, **options)


def test_lost_slices_are_measured_last_and_in_no_more_windows_than_an_audit_may_read(texture):
    blank = []

    def function(windows):
        blank.extend((windows == 0).all(axis=(2, 3)).any(axis=1).tolist())
        return np.stack([1 - 2 * windows[:, 1], 2 * windows[:, 1] - 1], axis=1)

    options = {"slices": 3, "labels": texture > 0.5, "intensity": (0, 1), "tile": (40, 40), "batch": 4}
    found = audit(function, texture, max_windows=30, **options)
    assert found.stress.slices == 2  # each in 14 ways
    assert sum(blank) == 2 * 3
    assert len(blank) - blank.index(True) < 28
    blank.clear()
    assert audit(function, texture, max_windows=30, stress=False, **options).stress is None
    assert not any(blank)


def test_a_direction_in_the_data_is_not_blamed_on_the_network():
    brighter = np.linspace(0.2, 1, 64)[:, None, None] * np.random.default_rng(0).random((64, 40, 40))
    found = audit(Squares(1.0, 1.0, 1.0), brighter)
    assert found.verdict == "symmetric"
    assert abs(found.statistics.directional_bias.estimate) < 1e-6
    assert found.statistics.data_direction.low > 0


def test_one_slice_has_nothing_to_judge(texture):
    found = audit(Linear(1.0), texture, slices=1, labels=texture > 0.5)
    assert found.stress is None  # there is no neighbour that could be lost
    assert found.verdict == "not applicable"
    assert found.saliency == ()


@pytest.mark.slow
def test_the_same_seed_gives_the_same_audit_bit_for_bit(texture):
    network = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 2, 1))
    first, again = (audit(network, texture, seed=5, method="smoothgrad") for _ in range(2))
    volatile = ("created", "seconds")
    documents = [{k: v for k, v in audit.to_dict().items() if k not in volatile} for audit in (first, again)]
    assert documents[0] == documents[1]
    assert np.array_equal(first.examples.maps, again.examples.maps)


def test_the_network_is_left_as_it_was(texture):
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1)).train()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    audit(network, texture)
    assert network.training
    assert all(parameter.requires_grad for parameter in network.parameters())
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


def test_several_volumes_are_one_population(texture):
    found = audit(Squares(3.0, 2.0, 1.0), [texture, texture[:20]])
    population = [46 * 4, 18 * 4]
    assert [volume.windows for volume in found.run.volumes] == population
    expected = found.windows * population[1] / sum(population)
    assert np.sum(found.measurements.volume == 1) == pytest.approx(expected, abs=2)
    assert [part.windows for part in found.statistics.by_volume] == np.bincount(
        found.measurements.volume
    ).tolist()
    alone = audit(Squares(3.0, 2.0, 1.0), texture)
    assert alone.statistics.by_volume == ()


def test_progress_shows_the_verdict_and_the_figures_so_far(texture, monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")  # taken for a terminal
    audit(Linear(3.0, 2.0, 1.0), texture, progress=True)
    shown = capsys.readouterr().err
    assert "biased so far: saliency -0.50 \N{PLUS-MINUS SIGN} 0.00, reliance" in shown


def test_examples_show_what_the_network_saw(texture):
    found = audit(Linear(3.0, 2.0, 1.0), texture, intensity=(0, 1))
    examples = found.examples
    assert examples.images.shape == examples.maps.shape == (2, 3, 32, 32)
    z, y, x = examples.position[1]
    expected = np.rint(texture[z - 1 : z + 2, y : y + 32, x : x + 32] * 255)
    np.testing.assert_allclose(examples.images[1], expected, atol=1)
    logits = expected / 255 * np.reshape([3, 2, 1], (3, 1, 1))
    added = np.where(logits.sum(0) > 0, 2, -2) * (expected[[0, 2]] - expected[1]) / 255 * [[[3]], [[1]]]
    np.testing.assert_allclose(examples.maps[1, [0, 2]], added, atol=0.05)
    assert found.run.maps == ("integrated_gradients", "middle")


def test_a_slice_is_explained_among_the_examples(texture):
    network = Linear(3.0, 2.0, 1.0)
    found = audit(network, texture, explain=7, max_windows=4)
    middle = [(length - 32) // 2 for length in texture.shape[1:]]
    assert (found.examples.position[0].tolist(), len(found.examples.position), found.windows) == (
        [7, *middle],
        3,
        4,
    )
    explained = evenslice.explain(network, texture, 7, tile=(32, 32))
    assert explained.origin == tuple(middle)
    np.testing.assert_allclose(explained.maps, found.examples.maps[0], atol=1e-5)
    corner = audit(network, texture, explain=(7, 0, 0), max_windows=4, method="gradient")
    assert corner.examples.position[0].tolist() == [7, 0, 0]
    assert (corner.run.maps, corner.run.baseline) == (("gradient", ""), None)
    # The plane is reflected, not read from before its start.
    small = audit(network, texture[:, :20, :30], explain=7, tile=(32, 32), max_windows=4)
    assert small.examples.position[0].tolist() == [7, 0, 0]


def test_labels_as_target(texture):
    class TwoReaders(nn.Module):
        def forward(self, windows):
            return torch.stack([windows[:, 0], windows[:, 2]], dim=1)

    labels = np.zeros(texture.shape, dtype=np.uint8)
    labels[:, :, 20:] = 1
    found = audit(TwoReaders(), texture, labels=labels, target="labels", tile=(40, 40))
    np.testing.assert_allclose([share.estimate for share in found.shares], [0.5, 0, 0.5], atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_the_mode_of_the_caller_changes_nothing(mode, texture, tmp_path):
    """Not even for a network that was built in inference mode, or a function that returns arrays."""
    with mode():
        model = nn.Sequential(
            nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 1)
        ).eval()

    def function(windows):
        return model(torch.from_numpy(windows)).numpy()

    def results(out):
        options = {"tile": (16, 16), "progress": False}
        evenslice.segment(model, texture, out, **by_name(evenslice.segment, probabilities=True, **options))
        audits = [audit(network, texture, max_windows=8, **options) for network in (model, function)]
        return np.load(out), *([share.estimate for share in found.shares] for found in audits)

    wanted = results(tmp_path / "wanted.npy")
    with mode():
        found = results(tmp_path / "found.npy")
    for one, other in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_blank_volume_alone_is_refused(texture):
    """All of its windows are the same, so four would decide with an interval of no width."""
    blank, network = np.ones((12, 33, 40)), Linear(3.0, 2.0, 1.0)
    for options in ({}, {"intensity": (0, 2)}):
        with pytest.raises(VolumeError, match=r"sampled voxels are 1; use a volume with contrast$"):
            audit(network, blank, **options)
    audit(network, [blank, texture], intensity=(0, 2), max_windows=4)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"slices": 4}, ConfigError, "slices=4"),
        ({"slices": 51}, VolumeError, "a window of 51 needs 51"),
        ({"slices": 5}, ModelError, "rejects windows of 5 slices of"),
        ({"precision": 0}, ConfigError, "precision=0"),
        ({"seed": 2**63}, ConfigError, "seed="),
        ({"method": "saliencey"}, ConfigError, "method='saliencey'"),
        ({"device": "cuda:77"}, ConfigError, "device='cuda:77'"),
        ({"labels": LABELS[..., 1:], "target": "labels"}, VolumeError, "labels of shape"),
        ({"labels": LABELS + 0.5, "target": "labels"}, VolumeError, "is not a label"),
        ({"reading": [evenslice.Reading()] * 2}, ConfigError, "reading: 2 for 1 volume"),
        ({"labels": [], "target": "labels"}, ConfigError, "no volume given"),
        ({"target": "labels"}, ConfigError, "needs label volumes"),
        ({"labels": LABELS, "label_values": [0, 2, 7]}, ConfigError, "label_values="),
        ({"explain": (7, 40, 0)}, ConfigError, "explain="),
        ({"explain": 0}, ConfigError, "explain=0"),
    ],
)
def test_a_wrong_option_is_refused(texture, options, error, message):
    network = nn.Conv2d(3, 2, 3, padding=1)
    with pytest.raises(error, match=message):
        audit(network, texture, **options)


def test_a_volume_given_twice_is_no_second_sample(texture, tmp_path):
    for name, volume in (("one.npy", texture), ("another.npy", texture[:, :, ::-1])):
        np.save(tmp_path / name, volume)
    one, another = tmp_path / "one.npy", tmp_path / "another.npy"
    network = Linear(3.0, 2.0, 1.0)
    with pytest.raises(ConfigError, match=r"one\.npy: is given twice, .* give it once"):
        audit(network, [another, one, one])
    halves = [
        evenslice.open_volume(one, region=(slice(*part), slice(None), slice(None)))
        for part in ((0, 20), (20, 40))
    ]
    planes = [evenslice.open_volume(one, plane=plane) for plane in "zy"]
    for given in ([one, another], halves, planes, [np.zeros((9, 64, 64))] * 2):
        found = audit(network, given, max_windows=2, intensity=(0, 1))
        assert len(found.run.volumes) == 2


def test_an_audit_names_what_it_read_and_what_the_values_of_labels_mean(tmp_path):
    paths = [tmp_path / "labels.npy", tmp_path / "others.npy"]
    rng = np.random.default_rng(0)
    for path in paths:
        np.save(path, (255 * rng.integers(0, 2, (12, 32, 32))).astype(np.uint8))
    np.save(tmp_path / "four.npy", rng.random((2, 12, 32, 32)).astype(np.float32))
    entry = evenslice.open_volume(tmp_path / "four.npy", axes="tzyx", select={"t": np.int64(1)})
    options = {"target": "labels", "label_values": [0, 255], "max_windows": 4, "device": "cpu"}
    found = audit(Linear(1.0, 0.0, 2.0), [entry, rng.random((12, 32, 32))], labels=paths, **options)
    found.save(tmp_path / "audit.json")
    read = evenslice.Audit.load(tmp_path / "audit.json").run
    assert read == found.run
    assert (read.volumes[0].select, read.volumes[0].level) == ({"t": 1}, 0)
    assert [volume.labels_path for volume in read.volumes] == [str(path) for path in paths]
    assert all(volume.labels.startswith("sha256:") for volume in read.volumes)
    assert (read.target, read.label_options["label_values"], found.stress is None) == (
        "labels",
        [0, 255],
        False,
    )
    run = audit(Linear(1.0, 0.0, 2.0), rng.random((12, 32, 32)), max_windows=4, device="cpu").run
    assert (run.label_options, run.volumes[0].labels_path, run.volumes[0].labels) == (None, None, None)
