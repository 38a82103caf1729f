"""Every task: a network with planted slice weights gets them as shares, through the default target of its task."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from formulas import Formula
from torch import nn
from torchvision.models import detection
from torchvision.models.detection.anchor_utils import AnchorGenerator
from values import by_name

import evenslice
from evenslice import ModelError

WEIGHTS = (1.0, -3.0, 4.0)
EXPECTED = [0.125, 0.375, 0.5]


class Mixed(nn.Module):
    """Reads its slices through one weighted sum: whatever follows, the shares of a gradient are |w| / sum |w|."""

    def __init__(self, then, weights=WEIGHTS):
        super().__init__()
        self.weights = nn.Parameter(torch.tensor(weights).view(1, -1, 1, 1))
        self.then = then

    def forward(self, windows):
        return self.then((self.weights * windows).sum(1, keepdim=True))


@dataclass
class Queries:
    """What Mask2Former returns, but for its auxiliary outputs."""

    class_queries_logits: torch.Tensor
    masks_queries_logits: torch.Tensor


def queries(mixed):
    classes = torch.tensor([[2.0, 0, -1], [0, 2, 1]]).expand(len(mixed), -1, -1)
    return Queries(classes, torch.cat([mixed, 1 - mixed], dim=1))


def masks_by_class(returned):
    classes = returned.class_queries_logits.softmax(-1)[..., :-1]
    return torch.einsum("bqc,bqyx->bcyx", classes, returned.masks_queries_logits.sigmoid())


def detect(mixed):
    """Each window's quarters that are bright enough are detections."""
    found = []
    for window in mixed:
        scores = window.unfold(1, 16, 16).unfold(2, 16, 16).mean(dim=(-1, -2)).flatten().sigmoid()
        boxes = torch.zeros(len(scores), 4)
        found.append({"boxes": boxes, "labels": torch.ones(len(scores)).long(), "scores": scores})
    return found


def head(outputs):
    return nn.Sequential(nn.Conv2d(1, 4, 3, stride=2), nn.Tanh(), nn.Conv2d(4, outputs, 3))


def pooled(outputs):
    return nn.Sequential(head(outputs), nn.AdaptiveAvgPool2d(1), nn.Flatten())


TASKS = {
    "semantic segmentation": (lambda: head(2), None, "predicted"),
    "binary segmentation": (lambda: head(1), None, "predicted"),
    "in a mapping": (lambda: nn.Sequential(head(3), Formula(lambda x: {"out": x})), None, "predicted"),
    "instance segmentation": (lambda: Formula(queries), masks_by_class, "predicted"),
    "classification": (lambda: pooled(5), None, "predicted"),
    "detection": (lambda: Formula(detect), None, "sum"),
    "regression (batch, 1)": (lambda: pooled(1), None, "predicted"),
    "regression (batch,)": (lambda: nn.Sequential(pooled(1), nn.Flatten(0)), None, "sum"),
    "depth (batch, 1, y, x)": (lambda: nn.Sequential(head(1), nn.Softplus()), None, "predicted"),
    "depth (batch, y, x)": (lambda: nn.Sequential(head(1), nn.Softplus(), nn.Flatten(1, 2)), None, "sum"),
    "features": (lambda: nn.Sequential(nn.Conv2d(1, 6, 8, stride=8), nn.Flatten(2)), None, "sum"),
}


@pytest.fixture(scope="module")
def texture():
    return np.random.default_rng(0).random((24, 32, 32))


def audit(network, volume, **options):
    given = {"dtype": "float32", "device": "cpu", "max_windows": 6, "batch": 3, **options}
    return evenslice.audit(network, volume, **by_name(evenslice.audit, **given))


def shares(found):
    return [share.estimate for share in found.shares]


@pytest.mark.parametrize("task", TASKS)
def test_planted_shares_come_through_the_default_target(texture, task):
    build, outputs, target = TASKS[task]
    found = audit(Mixed(build()), texture, outputs=outputs)
    np.testing.assert_allclose(shares(found), EXPECTED, atol=1e-5)
    assert found.saliency[0].estimate == pytest.approx(0.6, abs=1e-5)
    assert found.run.target == target
    assert np.isfinite(found.statistics.mirror_error.estimate)
    assert found.statistics.mirror_error.estimate > 0
    classes = target == "predicted"
    assert np.isnan(found.statistics.mirror_disagreement.estimate) == (not classes)


# Detectors of torchvision on a backbone of one convolution; they read the slices through one weighted sum as well.


class Backbone(nn.Sequential):
    out_channels = 32  # FCOS normalises in 32 groups


def torchvision_detector(kind, threshold=0.0):
    torch.manual_seed(0)
    backbone = Backbone(Mixed(nn.Conv2d(1, 32, 9, stride=8, padding=4)), nn.Tanh())
    anchors = AnchorGenerator(sizes=((16,),), aspect_ratios=((1.0,),))
    plain = {"min_size": 32, "max_size": 32, "image_mean": [0.0] * 3, "image_std": [1.0] * 3}
    if kind == "fasterrcnn":
        return detection.FasterRCNN(
            backbone, num_classes=2, rpn_anchor_generator=anchors, box_score_thresh=threshold, **plain
        )
    detector = {"retinanet": detection.RetinaNet, "fcos": detection.FCOS}[kind]
    return detector(backbone, num_classes=2, anchor_generator=anchors, score_thresh=threshold, **plain)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["fasterrcnn", "retinanet", "fcos"])
def test_detectors_of_torchvision(texture, kind):
    found = audit(torchvision_detector(kind), texture, max_windows=4)
    np.testing.assert_allclose(shares(found), EXPECTED, atol=1e-4)
    assert found.run.target == "sum"
    assert found.run.windows_without_attribution == 0
    assert np.isnan(found.statistics.mirror_disagreement.estimate)


def test_a_detector_that_finds_nothing_says_so(texture):
    with pytest.raises(ModelError, match="nothing in 6 windows moves it; .* lower the score threshold"):
        audit(torchvision_detector("retinanet", threshold=0.999), texture)


class Spots(Mixed):
    """Detects windows whose sum is above a threshold, and returns scores without a graph where there are none."""

    def __init__(self, threshold):
        super().__init__(None)
        self.threshold = threshold

    def forward(self, windows):
        levels = (self.weights * windows).mean(dim=(1, 2, 3))
        return [
            {"boxes": torch.zeros(1, 4), "scores": level[None]}
            if level > self.threshold
            else {"boxes": torch.zeros(0, 4), "scores": torch.zeros(0)}
            for level in levels
        ]


@pytest.mark.slow
def test_windows_without_a_detection_are_left_out_and_counted():
    volume = np.random.default_rng(0).random((40, 32, 32))
    volume[:20] *= 0.2
    found = audit(Spots(0.25), volume, intensity=(0, 1), max_windows=36, precision=1e-9, batch=1)
    told = ~np.isnan(found.measurements.shares).all(axis=(1, 2))
    without = found.run.windows_without_attribution
    assert 0 < without <= (~told).sum() < len(told)  # a slice that is replaced may show an object
    assert np.isfinite(found.statistics.mirror_error.estimate)
    np.testing.assert_allclose(shares(found), EXPECTED, atol=1e-5)


# What does not depend on its input


@pytest.mark.parametrize(
    ("network", "options"),
    [
        (Formula(lambda x: torch.ones(len(x), 2, 8, 8) + 0 * x.sum()), {}),
        (Formula(lambda x: (0 * x.mean(1, keepdim=True)).softmax(1)), {}),
        (Formula(lambda x: torch.cat([x, 3 * x], 1).softmax(1).cumsum(1)[:, -1:]), {}),
        (Formula(lambda x: torch.ones(len(x), 2, 8, 8)), {"method": "occlusion"}),
    ],
)
def test_a_network_that_ignores_its_input_gets_no_verdict(texture, network, options):
    with pytest.raises(ModelError, match="output does not depend on its input: nothing in 6 windows"):
        audit(network, texture, **by_name(audit, **options))


# What networks return


def test_a_reduction_of_ones_own_is_used_and_recorded(texture):
    network = Mixed(Formula(lambda x: {"out": torch.zeros_like(x), "depth": x[:, 0]}))
    found = audit(network, texture, outputs=depth_of)
    np.testing.assert_allclose(shares(found), EXPECTED, atol=1e-5)
    assert found.run.outputs == f"{__name__}:depth_of"
    assert found.run.target == "sum"
    assert audit(Mixed(head(2)), texture).run.outputs is None


def depth_of(returned):
    return returned["depth"]


@pytest.mark.parametrize(
    ("outputs", "message"),
    [
        (lambda returned: returned["no"], r"fails on what the network returned, dict \(KeyError: 'no'"),
        (lambda returned: returned, "returns dict; it must return a tensor"),
        (lambda returned: returned["depth"].sum(), r"returns \(\) for a batch of 1;"),
        (lambda returned: returned["depth"][0], r"returns \(32, 32\) for a batch of 1;"),
    ],
)
def test_a_reduction_that_does_not_do_is_refused(texture, outputs, message):
    network = Mixed(Formula(lambda x: {"depth": x[:, 0]}))
    with pytest.raises(ModelError, match=message):
        audit(network, texture, outputs=outputs)


def test_a_reduction_runs_in_the_precision_of_the_network(texture):
    weights = torch.randn(2, 4)

    def product(returned):  # of what the network computed in bfloat16 and of what is in float32
        return torch.einsum("qc,bcyx->bqyx", weights, returned)

    found = audit(Mixed(nn.Conv2d(1, 4, 1)), texture, outputs=product, dtype="bfloat16")
    np.testing.assert_allclose(shares(found), EXPECTED, atol=0.01)


def test_a_network_with_batch_norms_that_returns_classes_is_occluded(texture):
    network = nn.Sequential(nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2), Formula(lambda x: x.argmax(1)))
    with torch.no_grad():
        network[0].weight.copy_(torch.tensor([[1.0, 0, 2], [0, 0, 0]])[..., None, None])
        network[0].bias.copy_(torch.tensor([-1.4, 0]))
    found = audit(network.eval(), texture, method="occlusion")
    assert found.run.target == "predicted"
    assert found.shares[1].estimate == 0
    assert 0 < found.shares[0].estimate < found.shares[2].estimate
    assert np.isnan(found.statistics.mirror_error.estimate)
    assert 0 < found.statistics.mirror_disagreement.estimate < 1


@pytest.mark.parametrize("convert", [nn.Module.half, nn.Module.double])
def test_weights_of_any_precision_run(texture, convert):
    network = convert(Mixed(nn.Conv2d(1, 2, 1)))
    np.testing.assert_allclose(shares(audit(network, texture)), EXPECTED, atol=1e-3)
