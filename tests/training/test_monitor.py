"""What is watched while a network trains: networks with a known bias, in LightningModules of any kind."""

import warnings

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import evenslice
from evenslice import AsymmetryMonitor, ConfigError
from evenslice.training.lightning_parts import CsvLog, SynchronizedNorms, measure_bias


class Linear(nn.Module):
    """Two classes whose logits are +-sum_k w_k x_k: the shares are |w| / sum |w|; of squares, mirror-symmetric ones."""

    def __init__(self, *weights, power=1):
        super().__init__()
        self.weights, self.power = nn.Parameter(torch.tensor(weights).view(1, -1, 1, 1)), power

    def forward(self, windows):
        logit = (self.weights * windows**self.power).sum(1, keepdim=True)
        return torch.cat([logit, -logit], dim=1)


class SomebodysModule(LightningModule):
    """A module that knows nothing of evenslice."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5), nn.Conv2d(4, 2, 1)
        )
        self.frozen = nn.BatchNorm2d(3).eval()

    def forward(self, windows):
        return {"out": self.layers(self.frozen(windows))}

    def training_step(self, batch):
        windows, labels = batch
        return nn.functional.cross_entropy(self(windows)["out"], labels)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(*callbacks, **options):
    """Train a module for 10 steps and return it."""
    torch.manual_seed(0)
    module = SomebodysModule()
    data = TensorDataset(torch.rand(10, 3, 16, 16), torch.randint(2, (10, 16, 16)))
    switches = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")
    options |= {
        "accelerator": "cpu",
        "max_epochs": 1,
        "log_every_n_steps": 1,
        **dict.fromkeys(switches, False),
    }
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`isinstance|.*does not have many workers|.*eval mode")
        Trainer(callbacks=list(callbacks), **options).fit(module, DataLoader(data, batch_size=1))
    return module


@pytest.fixture
def windows():
    return torch.rand(6, 3, 16, 16, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("weights", [(1.0, 2.0, 1.0), (3.0, 2.0, 1.0), (1.0, 0.0, -4.0, 2.0, 1.0)])
def test_planted_shares_are_found(weights):
    shares = np.abs(weights) / np.abs(weights).sum()
    found = measure_bias(Linear(*weights), torch.rand(5, len(weights), 8, 8))
    half = len(weights) // 2
    assert [found[f"share_{k}"] for k in range(-half, half + 1)] == pytest.approx(shares)
    ahead, behind = shares[half + 1 :].sum(), shares[:half].sum()
    assert found["directional_bias"] == pytest.approx((ahead - behind) / (ahead + behind), abs=1e-6)
    assert found["asymmetry"] == pytest.approx(np.abs(shares - shares[::-1]).sum() / 2, abs=1e-6)
    assert found["imbalance"] == pytest.approx(np.abs(shares - 1 / len(shares)).sum() / 2, abs=1e-6)


def test_a_direction_in_the_data_is_not_blamed_on_the_network():
    brighter = torch.rand(4, 3, 8, 8) * torch.tensor([0.2, 0.5, 1.0]).view(1, 3, 1, 1)
    found = measure_bias(Linear(1.0, 1.0, 1.0, power=2), brighter)
    assert abs(found["directional_bias"]) < 1e-6
    assert found["asymmetry"] < 1e-6


def test_a_network_is_left_as_it_was(windows):
    module = SomebodysModule()
    module.train()
    module.frozen.eval()
    module.layers[0].weight.grad = torch.ones_like(module.layers[0].weight)
    before = {key: value.clone() for key, value in module.state_dict().items()}
    state = torch.get_rng_state()
    with torch.no_grad():
        measure_bias(module, windows)
    assert all(torch.equal(before[key], value) for key, value in module.state_dict().items())
    assert torch.equal(module.layers[0].weight.grad, torch.ones_like(module.layers[0].weight))
    assert module.layers[4].weight.grad is None
    assert (module.training, module.layers[3].training, module.frozen.training) == (True, True, False)
    assert torch.equal(torch.get_rng_state(), state)


def test_the_monitor_works_in_any_module_and_changes_nothing(windows):
    monitor = AsymmetryMonitor(windows, every=4)
    watched, alone = fit(monitor), fit()
    pairs = zip(watched.state_dict().values(), alone.state_dict().values(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)
    assert [row["step"] for row in monitor.history] == [0, 4, 8, 10]
    assert all(set(monitor.columns) < row.keys() for row in monitor.history)
    assert monitor.history[-1] == {"step": 10, **measure_bias(watched, windows)}
    other = AsymmetryMonitor(windows)
    other.load_state_dict(monitor.state_dict())  # it travels in checkpoints
    assert other.history == monitor.history
    assert other.history is not monitor.history


def test_the_monitor_measures_once_a_step_where_several_batches_make_one(windows):
    monitor = AsymmetryMonitor(windows, every=1)
    fit(monitor, accumulate_grad_batches=5)
    assert [row["step"] for row in monitor.history] == [0, 1, 2]


@pytest.mark.parametrize(
    ("shape", "options"),
    [((0, 3, 8, 8), {}), ((4, 2, 8, 8), {}), ((3, 8, 8), {}), ((4, 3, 8, 8), {"every": 0})],
)
def test_windows_that_are_none_are_refused(shape, options):
    with pytest.raises(ConfigError):
        AsymmetryMonitor(torch.zeros(shape), **options)


def test_the_log_drops_what_a_resumed_run_writes_again(tmp_path):
    log = CsvLog(tmp_path / "metrics.csv", ["loss", "dice"])
    for step in (0, 10, 20, 30):
        log.log_metrics({"loss": step / 100}, step)
        log.log_metrics({"dice": step / 50, "epoch": 7}, step)
    again = CsvLog(log.path, ["loss", "dice"])
    again.restore(log.read(until=10))
    again.log_metrics({"loss": 0.5}, 20)
    again.log_metrics({"loss": 0.6}, 30)
    assert log.path.read_text().split() == ["step,loss,dice", "0,0.0,0.0", "10,0.1,0.2", "20,0.5,", "30,0.6,"]


def test_the_monitor_finds_what_an_audit_of_the_same_windows_finds():
    """Also where reversing a window changes the predicted class: both explain the mirror for the class of the window."""
    volume = np.random.default_rng(0).random((24, 32, 32)).astype(np.float32)
    windows = torch.from_numpy(np.stack([volume[z - 1 : z + 2] for z in range(1, 23)]))
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 3, 1)).eval()
    with torch.no_grad():
        network[2].bias -= network(windows).mean((0, 2, 3))
    options = {"reading": evenslice.Reading(intensity=(0, 1)), "sampling": evenslice.Sampling(min_windows=22)}
    audit = evenslice.audit(network, volume, slices=3, **options)
    found = measure_bias(network, windows)
    assert audit.answer.estimate > 0.1
    assert found["directional_bias"] == pytest.approx(audit.directional_bias.estimate, abs=1e-4)
    shares = [found[f"share_{k}"] for k in (-1, 0, 1)]
    assert shares == pytest.approx([share.estimate for share in audit.shares], abs=1e-4)


# Batch norms that several GPUs share; in evaluation mode they run on a CPU, too.


@pytest.mark.slow
@pytest.mark.parametrize(
    ("strategy", "symmetrize"), [("pretrained", None), ("twin", None), ("uniform", "encoder")]
)
def test_a_network_with_synchronized_norms_computes_the_same(strategy, symmetrize):
    options = {"strategy": strategy, "symmetrize": symmetrize}
    network = evenslice.load_network("smp:Unet/tu-tf_efficientnet_lite0", "none", **options).model.eval()

    def norms():
        return [module for module in network.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]

    window, plugin, kinds = torch.rand(1, 3, 64, 64), SynchronizedNorms(), list(map(type, norms()))
    assert any(kind.__name__ == "BatchNormAct2d" for kind in kinds)
    with torch.no_grad():
        before = network(window)
        plugin.apply(network)
        assert all(isinstance(norm, nn.SyncBatchNorm) for norm in norms())
        torch.testing.assert_close(network(window), before)
        if strategy == "twin" or symmetrize:
            torch.testing.assert_close(network(window.flip(1)), before)
        for norm in norms():
            norm.running_mean += 0.1
        trained = network(window)
        plugin.revert(network)
        assert list(map(type, norms())) == kinds
        assert torch.equal(network(window), trained)
        assert not torch.allclose(trained, before)


def test_a_norm_that_is_used_twice_stays_one():
    norm = nn.BatchNorm2d(3)
    network = nn.Sequential(norm, nn.ReLU(), norm)
    SynchronizedNorms().apply(network)
    assert network[0] is network[2]
    assert isinstance(network[0], nn.SyncBatchNorm)
    assert network[0].weight is norm.weight
