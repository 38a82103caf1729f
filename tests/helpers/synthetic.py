"""Audits made up for the tests of the report: known shares, smooth noise along z, blobs to look at."""

from dataclasses import replace

import numpy as np
from scipy import ndimage

from evenslice import Audit
from evenslice.networks.inputs import StemKernels
from evenslice.results.intervals import Interval
from evenslice.results.measurements import Measurements
from evenslice.results.stress import BriefLoss, StressSummary
from evenslice.results.verdicts import summarize

PRETRAINED = (0.26, 0.56, 0.18)
UNIFORM = (1 / 3, 1 / 3, 1 / 3)
CYCLIC = (0.149, 0.309, 0.083, 0.149, 0.309)
PIXELS = np.array([0.7, 0.3])
"""Parts of the pixels in two classes."""
PARTS = np.array([1.0, *PIXELS])


def make_audit(name, shares, *, windows=120, volumes=1, examples=2, size=64, stems=1, run=None):
    """Make the audit of a network with the given shares; the data lean now this way, now that way along z."""
    random = np.random.default_rng(0)
    half, biased = len(shares) // 2, shares[0] != shares[-1]
    volume = np.sort(random.integers(volumes, size=windows))
    z = half + random.permutation(windows)
    lean = 0.15 * np.sin(z / 9) + 0.04 * random.standard_normal(windows)
    given, mirrored = _leaning(shares, lean, random), _leaning(shares, -lean, random)
    saliency = np.stack([_by_class(part) for part in (given, mirrored)], axis=1)
    reliance = _by_class(0.1 * _leaning(_halved(shares), lean, random))
    reliance[..., half] = 0
    reliance = np.stack([reliance, reliance if biased else reliance[..., ::-1]], axis=1)
    by_class = np.tile(PIXELS, (windows, 1))
    ones, outer = np.ones(windows), np.full((windows, 3, half), 0.4) * PARTS[:, None]
    measurements = Measurements(
        volume=volume,
        position=np.stack([z, 64 * random.integers(3, size=windows), np.zeros_like(z)], axis=1),
        saliency=saliency,
        reliance=reliance,
        explained=ones[:, None] * PARTS,
        mismatch=outer * random.uniform(0.7, 0.8, (windows, 1, 1)) * (1 if biased else 1e-7),
        outer=outer,
        pixels=by_class,
        changed=by_class * np.where(biased, random.uniform(0.1, 0.3, (windows, 1)), 0.0),
        union=by_class,
        wasserstein=np.abs(0.2 + 0.02 * random.standard_normal((windows, half))) * biased,
        mirror_error=0.69 * ones if biased else 2e-6 * ones,
        mirror_disagreement=0.12 * ones * biased,
        change=0.5 * ones * biased,
        power=ones,
        level=np.zeros((windows, 1)),
        clamped=0 * ones,
        own_mirror=0 * ones,
    )
    kernels = tuple(_kernels(f"encoder.stem_{i}", shares) for i in range(stems))
    of = tuple(replace(RUN.volumes[0], path=f"brain{i or ''}.nii.gz", windows=1683) for i in range(volumes))
    return Audit(
        name=name,
        statistics=summarize(measurements, [1683] * volumes),
        windows=windows,
        measurements=measurements,
        examples=_examples(shares, examples, size),
        kernels=kernels,
        run=replace(
            RUN,
            strategy=name,
            slices=len(shares),
            **{"windows_available": 1683 * volumes, "volumes": of, **(run or {})},
        ),
    )


RUN = Audit.Run(
    method="gradient",
    use="gradient",
    target="predicted",
    explained="log-odds",
    assumed=True,
    stopped="settled",
    tile=(192, 224),
    device="cpu",
    scaling={"mean": [0.5] * 3, "std": [0.5] * 3, "source": "recorded"},
    model={"spec": "smp:Unet/tu-tf_efficientnet_lite0", "weights": "imagenet", "sha256": "9f86d081" * 8},
    volumes=(Audit.Volume(path="brain.nii.gz", shape=(189, 233, 197), fingerprint="60303ae2" * 8),),
    command="evenslice audit --model smp:Unet/tu-tf_efficientnet_lite0 --weights imagenet --volume brain.nii.gz",
    versions={"evenslice": "0.1.0", "torch": "2.9.0", "timm": "1.0.15"},
    created="2025-06-01T12:00:00+00:00",
    seconds=41.3,
)


def _leaning(shares, lean, random):
    """Return shares that the content of each window tilts; a network without favourites adds no noise of its own."""
    offsets = np.arange(len(shares)) - len(shares) // 2
    noise = 0.03 if shares[0] != shares[-1] else 1e-7
    tilt = np.outer(lean, offsets) + noise * random.standard_normal((len(lean), 1)) * offsets
    rows = np.array(shares) * np.exp(tilt)
    return rows / rows.sum(axis=1, keepdims=True)


def _halved(shares):
    """Return shares with half the bias."""
    return tuple((3 * one + other) / 4 for one, other in zip(shares, shares[::-1], strict=True))


def _by_class(rows):
    """Return sums (n, 3, N) of all pixels, and of two classes, the second of which has half the bias."""
    weaker = (3 * rows + rows[:, ::-1]) / 4
    return np.stack([rows, rows * PIXELS[0], weaker * PIXELS[1]], axis=1)


def _examples(shares, count, size):
    """Make windows of drifting blobs, and saliency that sits on the blobs' edges."""
    random, slices = np.random.default_rng(1), len(shares)
    blobs = ndimage.gaussian_filter(
        random.standard_normal((count, slices, size, size)), (0, 2, size / 16, size / 16)
    )
    edges = ndimage.gaussian_gradient_magnitude(blobs, (0, 0, 1, 1))
    saliency = edges * np.reshape(shares, (-1, 1, 1)) / edges.sum(axis=(2, 3), keepdims=True)
    return Audit.Examples(
        volume=np.zeros(count, dtype=np.int64),
        position=np.array([[8 + 20 * i, 0, 32 * (i % 3)] for i in range(count)], np.int64).reshape(-1, 3),
        images=np.clip(120 + 2000 * blobs, 0, 255).astype(np.uint8),
        maps=(saliency * np.sign(random.standard_normal(saliency.shape))).astype(np.float32),
    )


def _kernels(name, shares):
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


def make_stress(before, after, *, kinds=("missing",), reference="labels"):
    """Make what a network of a Dice of .9 loses by disturbed slices on either side."""
    asymmetry = Interval(before - after, np.nan, np.nan)
    losses = (BriefLoss(kind, 1, 0.9 - before, 0.9 - after, 0.5, asymmetry) for kind in kinds)
    return StressSummary(reference, 16, 0.9, 0.8, tuple(losses))


def with_statistics(audit, **changes):
    """Return an audit with other statistics."""
    return replace(audit, statistics=replace(audit.statistics, **changes))


def save_audits(audits, folder):
    """Write audits into a folder as commands do, and return it."""
    for index, audit in enumerate(audits):
        audit.save(folder / (f"audit.{index}-more.json" if len(audits) > 1 else "audit.json"))
    return folder
