"""float32 is computed in full, whatever PyTorch is set to, and PyTorch is set as before afterwards."""

import numpy as np
import pytest
import torch
from torch import nn

from evenslice import Compute, Sampling, audit
from evenslice.networks import full_precision


def settings():
    backends = torch.backends
    convolutions = (backends.cudnn.conv, backends.cudnn.rnn, backends.mkldnn.conv)
    names = [each.fp32_precision for each in (*convolutions, backends.cuda.matmul, backends.mkldnn.matmul)]
    return [*names, torch.get_float32_matmul_precision(), backends.cudnn.allow_tf32]


@pytest.fixture(params=["highest", "high", "medium"])
def chosen(request):
    """What somebody chose for the whole process."""
    torch.set_float32_matmul_precision(request.param)
    yield request.param
    torch.set_float32_matmul_precision("highest")


def test_float32_is_full_in_the_block_alone(chosen):
    before = settings()
    assert before[0] == "tf32"  # PyTorch's default; if this changes, fewer lines will do
    for _ in range(2):
        with pytest.raises(RuntimeError, match="inside"), full_precision():
            assert not {"tf32", "bf16"} & set(settings())
            with torch.backends.cudnn.flags(enabled=True):  # reads the older switches
                assert torch.get_float32_matmul_precision() == "highest"
            raise RuntimeError("inside")
        assert settings() == before


def test_blocks_of_two_threads_may_overlap(chosen):
    before = settings()
    first, second = full_precision(), full_precision()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert not {"tf32", "bf16"} & set(settings())
    second.__exit__(None, None, None)
    assert settings() == before


def test_a_setting_that_only_a_newer_switch_has_comes_back():
    conv = torch.backends.mkldnn.conv
    before, conv.fp32_precision = conv.fp32_precision, "bf16"
    with full_precision():
        assert conv.fp32_precision == "ieee"
    assert conv.fp32_precision == "bf16"
    conv.fp32_precision = before


def test_an_audit_does_not_depend_on_it(chosen):
    """On processors with bfloat16, "medium" otherwise rounds what a linear layer computes."""
    layer = nn.Sequential(nn.Conv2d(3, 64, 8, stride=8), nn.Flatten(2), nn.Linear(64, 256))
    volume = np.random.default_rng(0).random((6, 64, 64), np.float32)
    options = {"sampling": Sampling(max_windows=4), "compute": Compute(device="cpu", progress=False)}
    found = audit(layer, volume, **options).measurements
    torch.set_float32_matmul_precision("highest")
    exact = audit(layer, volume, **options).measurements
    for name in ("saliency", "reliance", "mirror_error"):
        np.testing.assert_allclose(getattr(found, name), getattr(exact, name), rtol=1e-4, atol=1e-6)
