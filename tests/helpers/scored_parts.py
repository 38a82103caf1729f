"""Networks scored on several volumes at once, as the test of a training scores them; ``evaluate`` takes one."""

import numpy as np

from evenslice import Scaling, open_volume
from evenslice.inference import Predictor, ReadyNetwork, evaluate_parts
from evenslice.volumes import LabelledVolume


def labelled(image, labels, classes, *, high=1.0, positions=(), **options):
    """Return a part of a data set: an image in 0..high, its labels, and the places where classes are known to be."""
    counts = np.bincount(np.maximum(labels, 0).ravel(), minlength=classes)
    volumes = open_volume(image.astype(np.float32), **options), open_volume(labels.astype(np.int64))
    return LabelledVolume("volume", *volumes, Scaling(0, high), counts, positions)


def score(network, parts, classes, **options):
    """Score a network of three slices."""
    predictor = Predictor(ReadyNetwork(network, slices=3, device="cpu"), 3)
    return evaluate_parts(predictor, parts, classes=classes, **options)
