"""What is watched while a network trains: networks with a known bias, in LightningModules of any kind."""

import warnings

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import evenslice
from evenslice import ConfigError

pytestmark = pytest.mark.slow


class Linear(nn.Module):
    """Two classes whose logits are +-sum_k w_k x_k: the shares are |w| / sum |w|; of squares, mirror-symmetric ones."""

    def __init__(self, *weights, power=1):
        super().__init__()
        self.weights, self.power = nn.Parameter(torch.tensor(weights).view(1, -1, 1, 1)), power

    def forward(self, windows):
        logit = (self.weights * windows**self.power).sum(1, keepdim=True)
        return torch.cat([logit, -logit], dim=1)


def small():
    layers = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5), nn.Conv2d(4, 2, 1)
    return nn.Sequential(nn.BatchNorm2d(3).eval(), *layers)


def fit(network, *callbacks, **options):
    """Train a network for 10 steps, in a module that knows nothing of evenslice, and return it."""
    from lightning.pytorch import LightningModule, Trainer

    class SomebodysModule(LightningModule):
        def __init__(self):
            super().__init__()
            self.network = network

        def forward(self, windows):
            return {"out": self.network(windows)}

        def training_step(self, batch):
            windows, labels = batch
            return nn.functional.cross_entropy(self(windows)["out"], labels)

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    shape = tuple(callbacks[0].windows.shape[1:]) if callbacks else (3, 16, 16)
    generator = torch.Generator().manual_seed(0)
    data = TensorDataset(
        torch.rand(10, *shape, generator=generator), torch.randint(2, (10, *shape[1:]), generator=generator)
    )
    switches = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")
    options |= {"accelerator": "cpu", "max_epochs": 1, "log_every_n_steps": 1} | dict.fromkeys(
        switches, False
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`isinstance|.*does not have many workers|.*eval mode")
        Trainer(callbacks=list(callbacks), **options).fit(SomebodysModule(), DataLoader(data, batch_size=1))
    return network


def measured(network, windows):
    """Return what a monitor finds before the first step."""
    monitor = evenslice.AsymmetryMonitor(windows)
    fit(network, monitor)
    return monitor.history[0]


@pytest.fixture
def windows():
    return torch.rand(6, 3, 16, 16, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("weights", [(3.0, 2.0, 1.0), (1.0, 0.0, -4.0, 2.0, 1.0)])
def test_planted_shares_are_found(weights):
    shares = np.abs(weights) / np.abs(weights).sum()
    found = measured(Linear(*weights), torch.rand(5, len(weights), 8, 8))
    half = len(weights) // 2
    assert [found[f"share_{k}"] for k in range(-half, half + 1)] == pytest.approx(shares)
    ahead, behind = shares[half + 1 :].sum(), shares[:half].sum()
    assert found["directional_bias"] == pytest.approx((ahead - behind) / (ahead + behind), abs=1e-6)
    assert found["asymmetry"] == pytest.approx(np.abs(shares - shares[::-1]).sum() / 2, abs=1e-6)
    assert found["imbalance"] == pytest.approx(np.abs(shares - 1 / len(shares)).sum() / 2, abs=1e-6)


def test_a_direction_in_the_data_is_not_blamed_on_the_network():
    brighter = torch.rand(4, 3, 8, 8) * torch.tensor([0.2, 0.5, 1.0]).view(1, 3, 1, 1)
    assert abs(measured(Linear(1.0, 1.0, 1.0, power=2), brighter)["asymmetry"]) < 1e-6


@pytest.mark.parametrize(("batches", "steps"), [(1, [0, 4, 8, 10]), (5, [0, 2])])
def test_the_monitor_works_in_any_module_and_changes_nothing(windows, batches, steps):
    networks = []
    for monitors in ([evenslice.AsymmetryMonitor(windows, every=4)], []):
        torch.manual_seed(0)
        networks.append(fit(small(), *monitors, accumulate_grad_batches=batches).state_dict())
        for monitor in monitors:
            assert [row["step"] for row in monitor.history] == steps
            assert all(set(monitor.columns) < row.keys() for row in monitor.history)
    assert all(
        torch.equal(one, other) for one, other in zip(*(net.values() for net in networks), strict=True)
    )


@pytest.mark.parametrize(
    ("shape", "options"), [((0, 3, 8, 8), {}), ((4, 2, 8, 8), {}), ((4, 3, 8, 8), {"every": 0})]
)
def test_windows_that_are_none_are_refused(shape, options):
    with pytest.raises(ConfigError):
        evenslice.AsymmetryMonitor(torch.zeros(shape), **options)


def test_the_monitor_finds_what_an_audit_of_the_same_windows_finds():
    """Also where reversing a window changes the predicted class: both explain the mirror for the class of the window."""
    volume = np.random.default_rng(0).random((24, 32, 32)).astype(np.float32)
    windows = torch.from_numpy(np.stack([volume[z - 1 : z + 2] for z in range(1, 23)]))
    network = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 3, 1)).eval()
    with torch.no_grad():
        network[2].bias -= network(windows).mean((0, 2, 3))
    options = {"reading": evenslice.Reading(intensity=(0, 1)), "sampling": evenslice.Sampling(min_windows=22)}
    audit = evenslice.audit(network, volume, slices=3, **options)
    found = measured(network, windows)
    assert audit.answer.estimate > 0.1
    assert found["directional_bias"] == pytest.approx(audit.statistics.directional_bias.estimate, abs=1e-4)
    shares = [found[f"share_{k}"] for k in (-1, 0, 1)]
    assert shares == pytest.approx([share.estimate for share in audit.shares], abs=1e-4)


@pytest.mark.parametrize(("strategy", "symmetrize"), [("twin", None), ("uniform", "encoder")])
def test_a_network_with_batch_norms_that_several_gpus_share_computes_the_same(strategy, symmetrize):
    """In evaluation mode such batch norms run on a CPU, too."""
    from evenslice.training.lightning_parts import SynchronizedNorms

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
        for shown in (window, window.flip(1)):
            torch.testing.assert_close(network(shown), before)
        for norm in norms():
            norm.running_mean += 0.1
        trained = network(window)
        plugin.revert(network)
        assert list(map(type, norms())) == kinds
        assert torch.equal(network(window), trained)
        assert not torch.allclose(trained, before)
