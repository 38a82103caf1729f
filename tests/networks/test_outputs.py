"""What a network returns, reduced to its scores."""

import operator
from collections import OrderedDict
from types import SimpleNamespace
from typing import NamedTuple

import pytest
import torch
from planted import Wired, assert_symmetric, conv_bias, run

from evenslice import ModelError, neutralize, record_of


class Named(NamedTuple):
    logits: torch.Tensor
    aux_logits: torch.Tensor


SCORES, OTHER = torch.zeros(1, 2, 4, 4), torch.ones(1)


def logits(output):
    """The scores in what a network returned."""
    return run(lambda _: output, None)


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


def test_detections_of_each_image_are_summed():
    weights = torch.tensor([0.5, 0.25, 1.0])
    images = [{"boxes": OTHER, "scores": weights[:2]}, {"boxes": OTHER, "scores": weights[:0]}]
    assert logits([*images, {"scores": 2 * weights[2:]}]).tolist() == [[0.75], [0.0], [2.0]]


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
        (operator.itemgetter("no"), r"outputs='itemgetter' .* \(KeyError: 'no'"),
    ],
)
def test_function_that_gives_no_tensor_is_named(function, message):
    with pytest.raises(ModelError, match=message):
        neutralize(depths(), outputs=function)
