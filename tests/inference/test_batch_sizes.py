"""How many windows go through a network at once: as many as fit, and fewer where memory runs out, with the same results."""

import numpy as np
import pytest
import torch
from torch import nn

from evenslice import Compute, ModelError, Sampling, audit, evaluate, explain, segment

VOLUME = np.random.default_rng(0).random((12, 40, 48))
LABELS = (VOLUME > 0.5).astype(np.uint8)


class Small(nn.Module):
    """A network whose device has memory for some windows at once, and not more."""

    def __init__(self, most, error=torch.OutOfMemoryError):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.SiLU(), nn.Conv2d(8, 2, 3, padding=1))
        self.most, self.error, self.sizes = most, error, []

    def forward(self, windows):
        if len(windows) > self.most:
            raise self.error("out of memory") if isinstance(self.error, type) else self.error
        self.sizes.append(len(windows))
        return self.layers(windows)

    def __deepcopy__(self, memo):
        return self


NO_MEMORY = RuntimeError(
    "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate "
    "562949953421312 bytes. Error code 12 (Cannot allocate memory)"
)
"""What PyTorch raises where the memory of the machine itself runs out."""

NO_ENGINE = RuntimeError("GET was unable to find an engine to execute this computation")
"""What PyTorch raises where no algorithm of cuDNN gets the memory that it needs."""


@pytest.mark.slow
@pytest.mark.parametrize("tile", [None, (16, 24)])
@pytest.mark.parametrize(
    ("most", "error"),
    [(1, torch.OutOfMemoryError), (3, RuntimeError), (5, MemoryError), (2, NO_MEMORY), (2, NO_ENGINE)],
)
def test_a_prediction_goes_on_in_smaller_batches_with_results_equal_but_for_rounding(
    tmp_path, most, error, tile
):
    small, compute = Small(most, error), Compute(device="cpu", batch=8, progress=False)
    found, right = (
        segment(model, VOLUME, tmp_path / name, tile=tile, probabilities=True, compute=compute)[...]
        for model, name in ((small, "small.npy"), (Small(100), "right.npy"))
    )
    assert np.allclose(found, right, atol=1e-6)
    assert max(small.sizes) <= most


def test_a_window_too_large_for_the_memory_is_refused_with_what_would_help():
    with pytest.raises(ModelError, match="a window of 3 slices of 64 x 64 does not fit.*smaller tile"):
        segment(Small(0), VOLUME)


@pytest.mark.parametrize("method", ["gradient", "integrated_gradients", "occlusion"])
def test_a_map_is_made_in_smaller_batches(method):
    found, whole = (explain(Small(most), VOLUME, 5, method=method) for most in (1, 100))
    assert np.allclose(found.maps, whole.maps, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_whole_audits_segmentations_and_evaluations_go_on():
    compute = Compute(device="cpu", batch=8, progress=False)
    sampling = Sampling(max_windows=10, tile=(32, 32))

    def found(most):
        return (
            audit(Small(most), VOLUME, labels=LABELS, sampling=sampling, compute=compute),
            segment(Small(most), VOLUME, compute=compute)[:],
            evaluate(Small(most), VOLUME, LABELS, stress=True, compute=compute).dice,
        )

    audits, labels, scores = zip(found(3), found(100), strict=True)
    for name in ("saliency", "reliance", "mismatch"):
        assert np.allclose(*(getattr(one.measurements, name) for one in audits), rtol=1e-3, atol=1e-3)
    assert audits[0].run.batch == 8
    assert audits[0].stress == audits[1].stress
    assert np.array_equal(*labels)
    assert scores[0] == scores[1]
