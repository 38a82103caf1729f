"""What a network returns, reduced to its scores."""

import operator
from collections import OrderedDict
from dataclasses import dataclass
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import pytest
import torch
from planted import conv_bias
from torch import nn

from evenslice import neutralize, record_of, untie
from evenslice._core.errors import ModelError
from evenslice.networks.outputs import detections, logits, predicted_classes, reduce_output


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


def test_function_is_applied_to_what_the_network_returned():
    network, image = Depths(), torch.rand(2, 3, 8, 8)
    assert torch.equal(reduce_output(network(image), depth), network.body(image))
    array = np.zeros(3)
    assert reduce_output({"depth": array}, depth) is array


def test_network_is_neutralized_with_a_function_of_its_outputs():
    """The rules would compare "out", which depends on nothing, and so would see no error."""
    network = Depths()
    with pytest.raises(ModelError, match="shape of the network's output"):
        neutralize(network, slices=5, outputs=lambda returned: returned["depth"].sum(0))
    assert network.body[0].weight.shape[1] == 3
    record = neutralize(network, slices=5, tie="mirror", outputs=depth)
    assert 0 < record.permutation_error < 1e-5
    assert record.stems == ("body.0",)
    assert record_of(network) == record
    window = torch.rand(1, 5, 8, 8)
    torch.testing.assert_close(network(window)["depth"], network(window.flip(1))["depth"])
    untie(network)
    assert record_of(network).tie is None
    assert network.body[0].weight.shape[1] == 5


def test_broken_promise_shows_in_the_outputs_of_the_function():
    """The network reads the image beside its stem, in an output that the rules do not look at."""

    class Leaking(Depths):
        def forward(self, image):
            return {"out": self.body(image), "depth": self.body(image) + image.square()[:, :1]}

    assert neutralize(Leaking(), slices=3).permutation_error < 1e-5
    with pytest.raises(ModelError, match="promises: reversing the slices changes its output"):
        neutralize(Leaking(), slices=3, outputs=depth)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (dict, "outputs='builtins:dict' returns dict; it must return a tensor"),
        (
            operator.itemgetter("no"),
            "outputs='itemgetter' fails on what the network returned, dict: KeyError: 'no'",
        ),
    ],
)
def test_function_that_gives_no_tensor_is_named(function, message):
    with pytest.raises(ModelError, match=message):
        neutralize(Depths(), outputs=function)


@pytest.mark.parametrize(
    "output", [SCORES, {"scores": OTHER}, [], [SCORES, {"scores": OTHER}], None, Named(SCORES, OTHER)]
)
def test_only_a_list_of_mappings_is_the_output_of_a_detector(output):
    assert detections(output) is None


@pytest.mark.parametrize("output", [[{"scores": OTHER}], ({"boxes": OTHER}, {})])
def test_detections_come_one_mapping_an_image(output):
    assert detections(output) is output


def test_predicted_classes_of_one_channel_of_several_and_of_class_numbers():
    assert predicted_classes(torch.tensor([[[[-0.1, 0.1]]]]), dim=1).tolist() == [[[0, 1]]]
    scores = torch.tensor([[[1.0, 0.0]], [[0.5, 0.5]], [[0.0, 2.0]]])
    assert predicted_classes(scores, dim=0).tolist() == [[0, 2]]
    assert predicted_classes(scores.squeeze(1).T, dim=1).tolist() == [0, 2]
    numbers = torch.tensor([[3, 1]])
    assert predicted_classes(numbers, dim=1) is numbers
