"""What a network returns, reduced to its scores."""

import operator
from collections import OrderedDict
from types import SimpleNamespace
from typing import NamedTuple

import pytest
import torch
from planted import Wired, assert_symmetric, conv_bias

from evenslice import ModelError, neutralize, record_of
from evenslice.networks import logits, predicted_classes


class Named(NamedTuple):
    logits: torch.Tensor
    aux_logits: torch.Tensor


SCORES, OTHER = torch.zeros(1, 2, 4, 4), torch.ones(1)


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
        SimpleNamespace(loss=OTHER, logits=SCORES),
        # The names of transformers, in order
        OrderedDict(loss=OTHER, predicted_depth=SCORES),
        OrderedDict(pooler_output=OTHER, last_hidden_state=SCORES),
        {"last_hidden_state": OTHER, "logits": SCORES},
        SimpleNamespace(image_embeds=None, last_hidden_state=SCORES),
    ],
)
def test_logits_are_found(output):
    assert logits(output) is SCORES


@pytest.mark.parametrize("output", [None, "scores", {}, [], {"out": None}, SimpleNamespace(scores=SCORES)])
def test_output_without_logits_is_named_by_its_type(output):
    with pytest.raises(ModelError, match=f"returned {type(output).__name__}, in which no logits"):
        logits(output)


def test_detections_of_each_image_are_summed_and_stay_differentiable():
    weights = torch.tensor([0.5, 0.25, 1.0], requires_grad=True)
    images = [{"boxes": OTHER, "scores": weights[:2]}, {"boxes": OTHER, "scores": weights[:0]}]
    scores = logits([*images, {"scores": 2 * weights[2:]}])
    assert scores.tolist() == [[0.75], [0.0], [2.0]]
    scores.sum().backward()
    assert weights.grad.tolist() == [1.0, 1.0, 2.0]
    nothing = logits([{"scores": weights[weights > 2]}])  # still leads back to the image
    assert nothing.tolist() == [[0.0]]
    assert nothing.requires_grad


# A function of the user's instead


def depths(leak=0):
    """Returns what the rule takes for the output, and beside it what is meant."""
    return Wired(
        lambda m, x: {"out": torch.zeros(len(x)), "depth": m.body(x) + leak * x.square()[:, :1]},
        body=conv_bias(),
    )


depth = operator.itemgetter("depth")


def test_network_is_neutralized_with_a_function_of_its_outputs():
    """The rules would compare "out", which depends on nothing, and so would see no error."""
    network = depths()
    with pytest.raises(ModelError, match="shape of the network's output"):
        neutralize(network, slices=5, outputs=lambda returned: returned["depth"].sum(0))
    assert network.body[0].weight.shape[1] == 3
    record = neutralize(network, slices=5, outputs=depth)
    assert 0 < record.permutation_error < 1e-5
    assert record_of(network) == record
    assert_symmetric(Wired(lambda m, x: m.network(x)["depth"], network=network), torch.rand(1, 5, 8, 8))
    assert neutralize(depths(leak=1), slices=3).permutation_error < 1e-5
    with pytest.raises(ModelError, match="promises: reversing the slices changes its output"):
        neutralize(depths(leak=1), slices=3, outputs=depth)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (dict, "outputs='builtins:dict'"),
        (operator.itemgetter("no"), "outputs='itemgetter' .* KeyError: 'no'"),
    ],
)
def test_function_that_gives_no_tensor_is_named(function, message):
    with pytest.raises(ModelError, match=message):
        neutralize(depths(), outputs=function)


def test_predicted_classes_of_one_channel_of_several_and_of_class_numbers():
    assert predicted_classes(torch.tensor([[[[-0.1, 0.1]]]]), dim=1).tolist() == [[[0, 1]]]
    scores = torch.tensor([[[1.0, 0.0]], [[0.5, 0.5]], [[0.0, 2.0]]])
    assert predicted_classes(scores, dim=0).tolist() == [[0, 2]]
    assert predicted_classes(scores.squeeze(1).T, dim=1).tolist() == [0, 2]
    numbers = torch.tensor([[3, 1]])
    assert predicted_classes(numbers, dim=1) is numbers
