"""A segmentation during which something happens to its files, or which stops."""

import torch
from torch import nn

from evenslice import Compute, Reading, segment

PASSES = [lambda _: None]
"""What is done at each pass of a network over voxels, with its number; and the passes so far."""


class Bright(nn.Module):
    """Labels bright voxels."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Conv2d(3, 1, 1)
        self.layer.weight.data[:] = torch.tensor([0.0, 1.0, 0.0]).view(1, 3, 1, 1)
        self.layer.bias.data[:] = -0.5

    def forward(self, x):
        if len(x) > 1:  # voxels
            PASSES.append(len(PASSES))
            PASSES[0](len(PASSES) - 1)
        return self.layer(x)

    def __deepcopy__(self, memo):
        return self


def label(path, out, meddle=lambda _: None, *, intensity=(0, 250), **options):
    """Label the voxels that are brighter than the middle of the range."""
    PASSES[:] = [meddle]
    compute = Compute(batch=2, dtype="float32", device="cpu")
    return segment(
        Bright(), path, out, slices=3, reading=Reading(intensity=intensity), compute=compute, **options
    )
