"""Audits made up for the tests of the report: known shares, smooth noise along z, blobs to look at."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from evenslice.auditing.documents import Audit
from evenslice.networks.stem_kernels import StemKernels
from evenslice.results.asymmetry import summarize
from evenslice.results.audits import AuditedVolume, AuditRun, ExampleWindows, StemShape
from evenslice.results.measurements import Measurements
from evenslice.results.subsets import SubsetMeasurements

if TYPE_CHECKING:
    from collections.abc import Sequence

PRETRAINED = (0.26, 0.56, 0.18)
UNIFORM = (1 / 3, 1 / 3, 1 / 3)
CYCLIC = (0.149, 0.309, 0.083, 0.149, 0.309)

Floats: TypeAlias = NDArray[np.float64]


def make_audit(
    name: str,
    shares: Sequence[float],
    *,
    windows: int = 120,
    volumes: int = 1,
    examples: int = 2,
    size: int = 64,
    stems: int = 1,
    run: dict[str, Any] | None = None,
) -> Audit:
    """Make the audit of a network with the given shares; the data lean now this way, now that way along z."""
    random = np.random.default_rng(0)
    half = len(shares) // 2
    volume = np.sort(random.integers(volumes, size=windows))
    z = half + random.permutation(windows)
    lean = 0.15 * np.sin(z / 9) + 0.04 * random.standard_normal(windows)
    measurements = Measurements(
        volume=volume,
        position=np.stack([z, 64 * random.integers(3, size=windows), np.zeros_like(z)], axis=1),
        shares=_leaning(shares, lean, random),
        mirrored_shares=_leaning(shares, -lean, random),
        wasserstein=np.abs(0.2 + 0.02 * random.standard_normal((windows, half))) * (shares[0] != shares[-1]),
        mirror_error=np.full(windows, 0.69 if shares[0] != shares[-1] else 2e-6),
        mirror_disagreement=np.full(windows, 0.12 if shares[0] != shares[-1] else 0.0),
        foreground=np.full(windows, 0.4),
        lowest_class=np.zeros(windows),
        highest_class=np.ones(windows),
        change=np.full(windows, 0.5 if shares[0] != shares[-1] else 0.0),
        power=np.ones(windows),
        level=np.zeros((windows, 1)),
        mismatch=np.full((windows, half), 0.3 if shares[0] != shares[-1] else 1e-7) / max(half, 1),
        outer=np.full((windows, half), 0.4) / max(half, 1),
        own_mirror=np.zeros(windows),
    )
    subset = _subset(measurements)
    kernels = tuple(_kernels(f"encoder.stem_{i}", shares) for i in range(stems))
    return Audit(
        name=name,
        statistics=summarize(measurements, subset),
        measurements=measurements,
        subset=subset,
        examples=_examples(shares, examples, size),
        kernels=kernels,
        run=replace(
            RUN,
            strategy=name,
            slices=len(shares),
            stems=tuple(StemShape(item.name, item.after.shape) for item in kernels),
            **(run or {}),
        ),
    )


RUN = AuditRun(
    method="gradient",
    target="predicted",
    precision=0.01,
    windows_available=1683,
    stopped="precision reached",
    tile=(192, 224),
    device="cpu",
    scaling={"mean": 0.5, "std": 0.5},
    model={"spec": "smp:Unet/tu-tf_efficientnet_lite0", "weights": "imagenet", "sha256": "9f86d081" * 8},
    volumes=(AuditedVolume(path="brain.nii.gz", shape=(189, 233, 197), fingerprint="60303ae2" * 8),),
    command="evenslice audit --model smp:Unet/tu-tf_efficientnet_lite0 --weights imagenet --volume brain.nii.gz",
    versions={"evenslice": "0.1.0", "torch": "2.9.0", "timm": "1.0.15"},
    created="2025-06-01T12:00:00+00:00",
    seconds=41.3,
)


def _leaning(shares: Sequence[float], lean: Floats, random: np.random.Generator) -> Floats:
    """Return shares that the content of each window tilts; a network without favourites adds no noise of its own."""
    offsets = np.arange(len(shares)) - len(shares) // 2
    noise = 0.03 if shares[0] != shares[-1] else 1e-7
    rows = np.array(shares) * np.exp(
        np.outer(lean, offsets) + noise * random.standard_normal((len(lean), 1)) * offsets
    )
    return np.asarray(rows / rows.sum(axis=1, keepdims=True))


def _subset(measured: Measurements) -> SubsetMeasurements:
    """Return a subset whose second method finds half the bias, and two classes that share it."""
    window = np.arange(0, len(measured.volume), 10)
    given, mirrored = measured.shares[window], measured.mirrored_shares[window]
    weaker = [(part + (part + part[:, ::-1]) / 2) / 2 for part in (given, mirrored)]
    return SubsetMeasurements(
        window=window,
        first_shares=given,
        mirrored_first_shares=mirrored,
        second_shares=weaker[0],
        mirrored_second_shares=weaker[1],
        class_pixels=np.tile([0.7, 0.3], (len(window), 1)),
        class_shares=np.stack([given, weaker[0]], axis=1),
        mirrored_class_shares=np.stack([mirrored, weaker[1]], axis=1),
    )


def _examples(shares: Sequence[float], count: int, size: int) -> ExampleWindows:
    """Make windows of drifting blobs under grain, and saliency that sits on the blobs' edges."""
    random = np.random.default_rng(1)
    slices = len(shares)
    shape = (max(count, 1), 9, size, size)
    blobs = ndimage.gaussian_filter(random.standard_normal(shape), (0, 2, size / 16, size / 16))
    blobs = np.clip(blobs / blobs.std() + 0.5, 0, 1.5)[:, 4 - slices // 2 : 5 + slices // 2]
    grain = random.standard_normal(shape)[:, 4 - slices // 2 : 5 + slices // 2]
    images = np.clip(60 + 100 * blobs + 9 * grain, 0, 255).astype(np.uint8)
    edges = ndimage.gaussian_gradient_magnitude(blobs, (0, 0, 1, 1)) + 0.01 * np.abs(grain)
    saliency = edges * np.abs(random.standard_normal(edges.shape))
    saliency *= np.reshape(shares, (-1, 1, 1)) / saliency.sum(axis=(2, 3), keepdims=True)
    position = np.array([[8 + 20 * i, 0, 32 * (i % 3)] for i in range(count)], dtype=np.int64).reshape(
        count, 3
    )
    return ExampleWindows(
        volume=np.zeros(count, dtype=np.int64),
        position=position,
        images=images[:count],
        saliency=saliency[:count].astype(np.float32),
    )


def _kernels(name: str, shares: Sequence[float]) -> StemKernels:
    """Make a stem of smooth colour kernels, and what becomes of it under the given shares."""
    random = np.random.default_rng(2)
    colours = ndimage.gaussian_filter(random.standard_normal((32, 3, 3, 3)), (0, 0, 1, 1))
    before = colours * np.reshape(PRETRAINED, (3, 1, 1)) * random.lognormal(size=(32, 1, 1, 1))
    if tuple(shares) == PRETRAINED:
        after = before
    elif len(set(shares)) == 1:
        after = np.repeat(before.sum(axis=1, keepdims=True), len(shares), axis=1) / len(shares)
    else:
        after = before[:, np.arange(len(shares)) % 3] * 3 / len(shares)
    return StemKernels(name, before.astype(np.float32), after.astype(np.float32))
