"""Networks that compute a formula of their windows, audited on noise: what an audit has to say follows from the formula."""

import numpy as np
import torch
from torch import nn
from values import by_name

from evenslice import audit


class Formula(nn.Module):
    """A network that computes a function of its windows (batch, slices, y, x)."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, windows):
        return self.function(windows)


def noise(depth=64, size=32, seed=0):
    return np.random.default_rng(seed).random((depth, size, size)).astype(np.float32)


def audit_formula(function, volume=None, slices=3, **options):
    """Audit a formula on noise as it is, without scaling it."""
    volume = noise() if volume is None else volume
    model = function if isinstance(function, nn.Module) else Formula(function)
    options = {"intensity": (0, 1), "device": "cpu", "progress": False} | options
    return audit(model, volume, **by_name(audit, slices=slices, **options))


def linear(*weights, threshold=0.5):
    """A network: class 1 where a weighted sum of the slices exceeds a threshold."""
    network = nn.Conv2d(len(weights), 1, 1).requires_grad_(False)
    network.weight.copy_(torch.tensor(weights).view(1, -1, 1, 1))
    network.bias.fill_(-threshold)
    return network


def weighted(*weights):
    """A regression: the weighted sum of the slices."""
    return lambda windows: (windows * torch.tensor(weights).view(1, -1, 1, 1)).sum(1)


def two_classes(function):
    """Two classes whose log-odds are a formula (batch, y, x) of the windows."""
    return lambda windows: torch.stack([-function(windows) / 2, function(windows) / 2], dim=1)


def difference(windows):
    return windows[:, 2] - windows[:, 0]


def checkerboard(windows):
    """1 on every other pixel (y, x), 0 on the rest."""
    rows, columns = (torch.arange(length) for length in windows.shape[2:])
    return (rows[:, None] + columns) % 2.0


def alternating(windows):
    """The slice before on every other pixel, the slice after on the rest."""
    return torch.where(checkerboard(windows) > 0, windows[:, 0], windows[:, 2])


def foreground_alone(part):
    """Two classes: the foreground is the brightest part of the middle slice, and reads the slice before three times."""

    def log_odds(windows):
        before, middle, after = windows.unbind(1)
        fair = before + middle + after
        return torch.where(middle > 1 - part, 10 + 3 * before + middle + after, -10 - 3 * fair)

    return two_classes(log_odds)


def decided(found):
    """The verdict, and the question, class and offset of each decision."""
    by = found.statistics.decided_by
    return found.verdict, [(item.question, item.class_number, item.offset) for item in by]
