"""Random changes of windows, the same for all slices of a window.

Rotations, flips and intensity changes are array operations instead of MONAI's transforms: by default crops are prepared
in the training process, and the transforms take several times as long (``benchmarks/crop_speed.py``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import numpy as np
import torch

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from evenslice.training.config import AugmentationConfig

__all__ = ["augment"]

# Ranges and probabilities of intensity changes, for intensities in 0..1.
CHANGED = 0.5
GAMMA = 0.25  # exponents from exp(-GAMMA) to exp(GAMMA)
CONTRAST = 0.2
BRIGHTNESS = 0.1
NOISY = 0.5  # of the changed windows
NOISE = 0.04


def augment(
    window: NDArray[np.float32],
    labels: NDArray[np.int64] | None,
    config: AugmentationConfig,
    random: np.random.Generator,
) -> tuple[NDArray[np.float32], NDArray[np.int64] | None]:
    """Flip a window and its labels, lose slices and change intensities, as the configuration says.

    Rotations are not among them: they are chosen before a window is read, whose tile they turn.

    Args:
        window: (N, y, x) in 0..1.
        labels: (y, x) classes of the middle slice, if there are any.
        config: which changes.
        random: what decides, on a Philox generator. Which slices are lost changes nothing else that is drawn.
    """
    window, labels = _flip(window, labels, config, random)
    if config.missing_slices:
        window = _lose_slices(window, config.missing_slices, random)
    if config.intensity:
        window = _change_intensity(window, random)
    return window, labels


def _flip(
    window: NDArray[np.float32],
    labels: NDArray[np.int64] | None,
    config: AugmentationConfig,
    random: np.random.Generator,
) -> tuple[NDArray[np.float32], NDArray[np.int64] | None]:
    z, y, x = (-1 if draw < 0.5 else 1 for draw in random.random(3))
    if config.flips:
        window, labels = window[:, ::y, ::x], None if labels is None else labels[::y, ::x]
    return window[::z] if config.z_flip else window, labels


def _lose_slices(
    window: NDArray[np.float32], probability: float, random: np.random.Generator
) -> NDArray[np.float32]:
    """Put the middle slice in the place of each of its neighbours with some probability."""
    middle = len(window) // 2
    # From numbers far ahead, so that the next draws are those of a crop without lost slices: arms are compared on both.
    ahead = np.random.Generator(cast("np.random.Philox", random.bit_generator).jumped())
    lost = ahead.random(len(window)) < probability
    return np.where(lost[:, None, None], window[middle], window)


def _change_intensity(window: NDArray[np.float32], random: np.random.Generator) -> NDArray[np.float32]:
    """Change gamma, contrast and brightness of half the windows, equally in all slices, and add noise to half of those."""
    if random.random() >= CHANGED:
        return window
    gamma, contrast, brightness = random.uniform(-1, 1, 3) * (GAMMA, CONTRAST, BRIGHTNESS)
    window = window ** float(np.exp(gamma))
    window = (window - 0.5) * float(1 + contrast) + float(0.5 + brightness)
    if random.random() < NOISY:
        generator = torch.Generator().manual_seed(int(random.integers(2**63)))
        noise = torch.randn(window.shape, generator=generator, dtype=torch.float32, device="cpu")
        window += random.uniform(0, NOISE) * noise.numpy()
    return window
