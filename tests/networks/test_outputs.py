"""What a network returns, reduced to its scores."""

import copy
import pickle
from collections import OrderedDict
from dataclasses import dataclass
from types import SimpleNamespace
from typing import NamedTuple

import pytest
import torch
from planted import conv_bias
from torch import nn

from evenslice import neutralize, record_of, untie
from evenslice._core.errors import ModelError
from evenslice.networks.inputs import normalization
from evenslice.networks.outputs import Reduced, logits, predicted_classes
from evenslice.neutralizing.stems import find_stems


class Named(NamedTuple):
    logits: torch.Tensor
    aux_logits: torch.Tensor


@dataclass
class Segmentation:
    loss: torch.Tensor | None
    logits: torch.Tensor


SCORES = torch.zeros(1, 2, 4, 4)
OTHER = torch.ones(1)


@pytest.mark.parametrize(
    "output",
    [
        SCORES,
        {"aux": OTHER, "out": SCORES},
        {"loss": OTHER, "logits": SCORES},
        {"loss": None, "prediction": SCORES, "features": OTHER},
        (SCORES, OTHER),
        [None, SCORES],
        Named(SCORES, OTHER),
        Segmentation(OTHER, SCORES),
    ],
)
def test_logits_are_found(output):
    assert logits(output) is SCORES


@pytest.mark.parametrize("output", [None, "scores", {}, [], {"out": None}, SimpleNamespace(scores=SCORES)])
def test_output_without_logits_is_named_by_its_type(output):
    with pytest.raises(ModelError, match=f"returned {type(output).__name__}, in which no logits"):
        logits(output)


def test_names_of_transformers_are_looked_for_in_order():
    assert logits(OrderedDict(loss=OTHER, predicted_depth=SCORES)) is SCORES
    assert logits(OrderedDict(pooler_output=OTHER, last_hidden_state=SCORES)) is SCORES
    assert logits({"last_hidden_state": OTHER, "logits": SCORES}) is SCORES
    assert logits(SimpleNamespace(image_embeds=None, last_hidden_state=SCORES)) is SCORES


def test_detections_of_each_image_are_summed_and_stay_differentiable():
    weights = torch.tensor([0.5, 0.25, 1.0], requires_grad=True)
    images = [{"boxes": OTHER, "scores": weights[:2]}, {"boxes": OTHER, "scores": weights[:0]}]
    scores = logits([*images, {"scores": 2 * weights[2:]}])
    assert scores.tolist() == [[0.75], [0.0], [2.0]]
    scores.sum().backward()
    assert weights.grad.tolist() == [1.0, 1.0, 2.0]


def test_nothing_detected_anywhere_is_a_zero_that_still_leads_back_to_the_image():
    image = torch.rand(5, requires_grad=True)
    scores = logits([{"scores": image[image > 2]}])
    assert scores.tolist() == [[0.0]]
    scores.sum().backward()
    assert image.grad.tolist() == [0.0] * 5


def test_queries_give_the_probability_of_each_class_at_each_pixel():
    """Two queries: one is sure of class 0 and of the left pixel, the other of "nothing" and of all pixels."""
    sure = 50.0
    classes = torch.tensor([[[sure, 0.0, 0.0], [0.0, 0.0, sure]]])
    masks = torch.tensor([[[[sure, -sure]], [[sure, sure]]]])
    output = SimpleNamespace(logits=None, class_queries_logits=classes, masks_queries_logits=masks)
    expected = torch.tensor([[[[1.0, 0.0]], [[0.0, 0.0]]]])
    torch.testing.assert_close(logits(output), expected)
    torch.testing.assert_close(logits(vars(output)), expected)


# A function of the user's instead


class Depths(nn.Module):
    """Returns what the rule takes for the output, and beside it what is meant."""

    def __init__(self):
        super().__init__()
        self.body = conv_bias()

    def forward(self, image):
        return {"out": torch.zeros(len(image)), "depth": self.body(image)}


def depth(output):
    return output["depth"]


def test_reduced_network_stands_for_the_network():
    network = Depths()
    reduced = Reduced(network, depth)
    image = torch.rand(2, 3, 8, 8)
    assert torch.equal(logits(reduced(image)), network.body(image))
    assert reduced.state_dict().keys() == network.state_dict().keys()
    assert [*dict(reduced.named_modules())] == [*dict(network.named_modules())]
    assert [*dict(reduced.named_parameters())] == [*dict(network.named_parameters())]
    assert reduced.get_submodule("body.0") is network.body[0]
    assert [stem.name for stem in find_stems(reduced).items] == ["body.0"]
    network.pretrained_cfg = {"mean": (0.5,) * 3, "std": (0.2,) * 3}
    assert normalization(reduced) == ((0.5,) * 3, (0.2,) * 3)


def test_neutralizing_a_reduced_network_neutralizes_and_marks_the_network():
    network = Depths()
    record = neutralize(Reduced(network, depth), slices=5, tie="mirror")
    assert record.permutation_error < 1e-5
    assert record.stems == ("body.0",)
    assert record_of(network) == record_of(Reduced(network, depth)) == record
    window = torch.rand(1, 5, 8, 8)
    torch.testing.assert_close(network(window)["depth"], network(window.flip(1))["depth"])
    untie(Reduced(network, depth))
    assert record_of(network).tie is None
    assert network.body[0].weight.shape[1] == 5


def test_reduced_network_is_copied_sent_and_loaded(tmp_path):
    network = Reduced(Depths(), depth)
    image = torch.rand(1, 3, 8, 8)
    for other in (copy.deepcopy(network), pickle.loads(pickle.dumps(network))):  # noqa: S301  # its own pickle
        assert torch.equal(other(image), network(image))
    around, other = nn.ModuleDict({"inside": network}), nn.ModuleDict({"inside": Reduced(Depths(), depth)})
    with torch.no_grad():
        network.model.body[0].weight.add_(1)
    other.load_state_dict(around.state_dict())
    assert torch.equal(other["inside"](image), network(image))
    third = Reduced(Depths(), depth)
    third.load_state_dict(network.state_dict())
    assert torch.equal(third(image), network(image))
    replaced = nn.Conv2d(3, 8, 1)
    network.set_submodule("body.0", replaced)
    assert network.model.body[0] is replaced


def test_function_that_gives_no_tensor_is_named():
    network = Reduced(Depths(), dict)
    with pytest.raises(ModelError, match="the function dict for the outputs of Depths returned dict"):
        network(torch.rand(1, 3, 8, 8))


def test_predicted_classes_of_one_channel_of_several_and_of_class_numbers():
    assert predicted_classes(torch.tensor([[[[-0.1, 0.1]]]]), dim=1).tolist() == [[[0, 1]]]
    scores = torch.tensor([[[1.0, 0.0]], [[0.5, 0.5]], [[0.0, 2.0]]])
    assert predicted_classes(scores, dim=0).tolist() == [[0, 2]]
    assert predicted_classes(scores.squeeze(1).T, dim=1).tolist() == [0, 2]
    numbers = torch.tensor([[3, 1]])
    assert predicted_classes(numbers, dim=1) is numbers
