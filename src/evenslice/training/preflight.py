"""Whether a network can be trained, tried before anything is written."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from evenslice._core import ModelError
from evenslice.inference import class_logits
from evenslice.networks import input_multiple, input_size

if TYPE_CHECKING:
    from torch import nn

    from evenslice.training.config import TrainConfig

__all__ = ["check_network"]


def check_network(network: nn.Module, config: TrainConfig, channels: int) -> None:
    """Check that a network takes crops and gives the right channels; freeze what its logits do not depend on.

    Auxiliary heads are such parts: nothing is learned from them, and several processes would wait for their gradients.
    """
    spec, crop = config.model.spec, config.training.crop
    try:
        scores = class_logits(network, torch.zeros(1, config.model.slices, *crop))
    except (RuntimeError, ValueError, AssertionError, IndexError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        size = input_size(network)
        right = f"[{size[0]}, {size[1]}]" if size else f"multiples of {input_multiple(network)}"
        raise ModelError(
            f"{spec}: refuses crops of {crop[0]} x {crop[1]} ({reason}); try {right} for training.crop"
        ) from error
    if scores.shape[1] != channels:
        raise ModelError(
            f"{spec}: gives {scores.shape[1]} channels; {config.data.classes} classes with the loss "
            f"{config.training.loss} need {channels}"
        )
    parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
    if not parameters:
        raise ModelError(f"{spec}: has no parameter that asks for a gradient, so there is nothing to train")
    gradients = torch.autograd.grad(scores.sum(), parameters, allow_unused=True)
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.requires_grad_(gradient is not None)
    _check_batch(network, config)


def _check_batch(network: nn.Module, config: TrainConfig) -> None:
    """Check that a network can be trained with as few crops at once: batch norms need several values of a channel."""
    options = config.training
    crops = min(options.batch // options.devices, 2)
    before = [(buffer, buffer.clone()) for buffer in network.buffers()]
    try:
        with torch.no_grad(), torch.random.fork_rng(range(torch.cuda.device_count())):
            network.train()(torch.zeros(crops, config.model.slices, *options.crop))
    except ValueError as error:
        raise ModelError(
            f"{config.model.spec}: cannot be trained on {crops} of these crops at once ({error}); "
            "set training.batch or training.crop higher"
        ) from error
    finally:
        network.eval()
        for buffer, values in before:
            buffer.copy_(values)
