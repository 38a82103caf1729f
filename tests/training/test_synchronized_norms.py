"""Batch norms that several GPUs share; in evaluation mode they run on a CPU, too."""

import pytest
import torch
from timm.layers import BatchNormAct2d
from torch import nn

from evenslice.neutralizing.network_files import load_network
from evenslice.training.lightning_module import SynchronizedNorms

LITE = "smp:Unet/tu-tf_efficientnet_lite0"


def norms(network):
    return [module for module in network.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]


@pytest.mark.parametrize(
    ("strategy", "symmetrize"), [("pretrained", None), ("twin", None), ("uniform", "encoder")]
)
def test_a_network_with_synchronized_norms_computes_the_same(strategy, symmetrize):
    network = load_network(LITE, "none", strategy=strategy, symmetrize=symmetrize).model.eval()
    window = torch.rand(1, 3, 64, 64)
    kinds = list(map(type, norms(network)))
    assert BatchNormAct2d in kinds
    plugin = SynchronizedNorms()
    with torch.no_grad():
        before = network(window)
        plugin.apply(network)
        assert all(isinstance(norm, nn.SyncBatchNorm) for norm in norms(network))
        torch.testing.assert_close(network(window), before)
        if strategy == "twin" or symmetrize:
            torch.testing.assert_close(network(window.flip(1)), before)
        for norm in norms(network):
            norm.running_mean += 0.1
        trained = network(window)
        plugin.revert(network)
        assert list(map(type, norms(network))) == kinds
        assert torch.equal(network(window), trained)
        assert not torch.allclose(trained, before)


def test_a_norm_that_is_used_twice_stays_one():
    norm = nn.BatchNorm2d(3)
    network = nn.Sequential(norm, nn.ReLU(), norm)
    SynchronizedNorms().apply(network)
    assert network[0] is network[2]
    assert isinstance(network[0], nn.SyncBatchNorm)
    assert network[0].weight is norm.weight
