"""Checks of the device, the network and the options of a training run, before anything is written."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from evenslice._core import ConfigError, ModelError, reason, spelled_in_configuration
from evenslice.inference import ReadyNetwork, choose_device, choose_dtype, choose_tile, predict
from evenslice.networks import (
    ABOUT_INPUT,
    PROBABILITY,
    ends_in_sigmoid,
    ends_in_softmax,
    input_multiple,
    input_size,
    keep_generators,
    reporting_own_errors,
)
from evenslice.training.tasks import task_logits

if TYPE_CHECKING:
    from torch import Tensor, nn

    from evenslice.training.config import TrainConfig, TrainingConfig
    from evenslice.training.data import Data

__all__ = ["check_data", "check_network", "check_planes", "find_device", "find_dtype"]


def find_device(options: TrainingConfig) -> torch.device:
    """Return the kind of device to train on.

    Raises:
        ConfigError: it is not available, or not in that number.
    """
    if ":" in options.accelerator:
        raise ConfigError(
            f"training.accelerator: {options.accelerator}: give only the kind of device; "
            "CUDA_VISIBLE_DEVICES selects GPUs"
        )
    try:
        device = choose_device(options.device)
    except ConfigError as error:
        text = error.render(lambda *_: spelled_in_configuration("training.accelerator", options.accelerator))
        raise ConfigError(f"{text}; known: auto, cpu, gpu, cuda, mps") from error
    count = torch.cuda.device_count() if device.type == "cuda" else 1
    if device.type != "cpu" and count < options.devices:
        raise ConfigError(
            f"training.devices: {options.devices}: this machine has only {count} {'GPU' if count == 1 else 'GPUs'}"
        )
    return torch.device(device.type)


def find_dtype(options: TrainingConfig) -> torch.dtype:
    """Return the precision to train in.

    Raises:
        ConfigError: as for ``find_device``, or the device does not compute in it.
    """
    device = find_device(options)
    try:
        return choose_dtype(options.dtype, device, training=True)
    except ConfigError as error:
        text = error.render(lambda name, value: spelled_in_configuration(f"training.{name}", value))
        raise ConfigError(text) from error


def check_data(config: TrainConfig, data: Data) -> None:
    """Check that there are validation data if an option needs them, and that a segmentation can hold the values of labels.

    Raises:
        ConfigError: there are none, or it cannot.
    """
    if config.training.task == "segmentation":
        try:
            config.data.label_options.check_written()
        except ConfigError as error:
            text = error.render(lambda name, value: spelled_in_configuration(f"data.{name}", value))
            raise ConfigError(text) from error
    for name, needed in (("patience", config.training.patience), ("keep", config.training.keep == "best")):
        if needed and not data.validation:
            raise ConfigError(
                f"training.{name}: {getattr(config.training, name)}: there are no validation data; give "
                "data.validation, "
                f"set data.validation_fraction above 0, or omit {name}"
            )


def check_network(network: nn.Module, config: TrainConfig, channels: int) -> None:
    """Check that a network accepts crops and returns the right channels; freeze parts that its logits do not depend on.

    Such parts, auxiliary heads for instance, learn nothing, and several processes would wait for their gradients.

    Raises:
        ModelError: it rejects crops or fails, returns other channels, or has nothing to train.
    """
    spec, crop = config.model.spec, config.training.crop
    try:
        with reporting_own_errors(spec):
            scores = task_logits(network, _blank_crops(1, config), config.training.task)
    except ABOUT_INPUT as error:
        size = input_size(network)
        right = f"[{size[0]}, {size[1]}]" if size else f"multiples of {input_multiple(network)}"
        raise ModelError(
            f"{spec}: rejects crops of {crop[0]} x {crop[1]} ({reason(error)}); try {right} for training.crop"
        ) from error
    if scores.shape[1] != channels:
        raise ModelError(
            f"{spec}: returns {scores.shape[1]} channels; {config.data.classes} classes with the loss "
            f"{config.training.loss} need {channels}; change the network, data.classes or training.loss"
        )
    if ends_in_sigmoid(scores):
        raise ModelError(f"{spec}: {PROBABILITY}")
    if ends_in_softmax(scores):
        raise ModelError(
            f"{spec}: returns probabilities, which add up to 1, where logits are needed; build it without its last softmax"
        )
    parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
    if not parameters:
        raise ModelError(f"{spec}: has no parameter that requires a gradient, so there is nothing to train")
    gradients = torch.autograd.grad(scores.sum(), parameters, allow_unused=True)
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.requires_grad_(gradient is not None)
    _check_batch(network, config)


def check_planes(network: nn.Module, config: TrainConfig, data: Data) -> None:
    """Check that a network accepts the windows in which the planes of validation and test are shown to it.

    Raises:
        ModelError: it rejects one.
    """
    if config.training.task == "classification":  # its windows are as large as crops
        return
    model, one_pixel = config.model, (slice(0, 1), slice(0, 1))  # which is in one tile
    ready = ReadyNetwork(network, slices=model.slices, device="cpu", dtype="float32")
    of_size = {choose_tile(ready, part.volume.shape[1:]): part for part in (*data.validation, *data.test)}
    for part in of_size.values():
        y, x = part.volume.shape[1:]
        outputs = predict(
            ready,
            part.volume,
            scaling=part.scaling,
            slices=model.slices,
            step=model.step,
            centres=[0],
            region=one_pixel,
            batch=1,
        )
        try:
            with reporting_own_errors(model.spec):
                next(outputs)
        except ABOUT_INPUT as error:
            raise ModelError(
                f"{model.spec}: rejects the planes of {part.name}, {y} x {x} pixels ({reason(error)}); crop or pad them to "
                "a size that it accepts"
            ) from error


def _check_batch(network: nn.Module, config: TrainConfig) -> None:
    """Check that a network can be trained on so few crops: batch norms need several values per channel."""
    options = config.training
    crops = min(options.batch // options.devices, 2)
    before = [(buffer, buffer.clone()) for buffer in network.buffers()]
    try:
        with (
            torch.no_grad(),
            keep_generators([]),  # the network is on the CPU
            reporting_own_errors(config.model.spec),
        ):
            network.train()(_blank_crops(crops, config))
    except ValueError as error:
        raise ModelError(
            f"{config.model.spec}: cannot be trained on {crops} of these crops at once ({error}); "
            "increase training.batch or training.crop"
        ) from error
    finally:
        network.eval()
        for buffer, values in before:
            buffer.copy_(values)


def _blank_crops(count: int, config: TrainConfig) -> Tensor:
    """Return crops (count, slices, y, x) as a training gives them to a network, all 0, on the CPU."""
    shape = (count, config.model.slices, *config.training.crop)
    return torch.zeros(shape, dtype=torch.float32, device="cpu")
