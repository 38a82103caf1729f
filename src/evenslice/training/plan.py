"""What a configuration comes to on this machine: device and precision, data and network, opened, built and checked.

    plan = resolve(config)
    print(*describe_plan(plan), sep="; ")

Nothing is written.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch

from evenslice._core import (
    ConfigError,
    ModelError,
    errors_at,
    reason,
    reporting_errors,
    spelled_in_configuration,
)
from evenslice.inference import Compute, Predictor, ReadyNetwork
from evenslice.networks import final_activation, input_sizes, keep_generators, parse_specification
from evenslice.neutralizing import load_network
from evenslice.training.data import open_data
from evenslice.training.losses import output_channels, task_logits
from evenslice.volumes import Scaling, missing_slices

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from torch import Tensor, nn

    from evenslice.networks import ModelSource
    from evenslice.neutralizing import Record
    from evenslice.training.config import TrainConfig, TrainingConfig
    from evenslice.training.data import Data


MOST_NAMED = 3  # stems, and ranges of intensities

ABOUT_INPUT = (RuntimeError, ValueError, AssertionError, IndexError, TypeError, MemoryError)
"""What networks raise on windows that are too large, or of a size or number of slices that they do not take."""


@dataclass(frozen=True)
class Machine:
    """Where to train, and how precisely.

    Attributes:
        device: the kind of device.
        devices: how many of them, or, in one of several workers of a study, the number of its own.
        dtype: the precision.
    """

    device: torch.device
    devices: int | list[int]
    dtype: torch.dtype


@dataclass(frozen=True)
class Plan:
    """All that a run consists of.

    Attributes:
        config: its configuration.
        machine: where it is trained and tested.
        data: its data set.
        network: its network, in float32 on the CPU.
        record: what was done to the network; it states how its slices are scaled.
        source: what the network was built from.
    """

    config: TrainConfig
    machine: Machine
    data: Data
    network: nn.Module
    record: Record
    source: ModelSource


def find_machine(options: TrainingConfig) -> Machine:
    """Return where to train, and how precisely.

    Raises:
        ConfigError: the device is not available, not in that number, or does not compute in the precision.
    """

    def spelled(name: str, value: Any) -> str:
        place = {"device": ("accelerator", options.accelerator)}.get(name, (name, value))
        return spelled_in_configuration(f"training.{place[0]}", place[1])

    try:
        found, dtype = Compute(device=options.device, dtype=options.dtype).place(training=True)
    except ConfigError as error:
        raise ConfigError(error.render(spelled)) from error
    device = torch.device(found.type)
    count = torch.cuda.device_count() if device.type == "cuda" else 1
    if device.type != "cpu" and count < options.devices:
        raise ConfigError(f"training.devices: {options.devices}: this machine has only {count} of them")
    own = [found.index] if options.devices == 1 and found.index is not None else options.devices
    return Machine(device, own, dtype)


def resolve(config: TrainConfig) -> Plan:
    """Open the data and build the network of a configuration, and check that they fit each other and the machine.

    Raises:
        ConfigError: the options do not fit the data or the machine.
        VolumeError: the data cannot be used.
        ModelError: the network cannot be built or trained, or rejects the data.
    """
    machine, data = find_machine(config.training), open_data(config)
    model, channels = config.model, output_channels(config.training.loss, config.data.classes)
    with at_model():
        network, record, source = load_network(
            model.spec,
            model.weights,
            slices=model.slices,
            strategy=model.strategy,
            tie=model.tie,
            # An imported function determines the number of classes itself.
            classes=channels if parse_specification(model.spec).library else None,
            seed=config.seed,
            symmetrize=model.symmetrize,
        )
    # Whatever it was built as: under another default dtype or device of PyTorch's, or by a function.
    network = network.cpu().float()
    _check_network(network, config, channels)
    _check_planes(network, config, data)
    return Plan(config, machine, data, network, record, source)


def at_model() -> AbstractContextManager[None]:
    """Add the place in the configuration to errors about the network, and spell options as they are written there."""

    def spelled(name: str, value: Any) -> str:
        path = {"classes": "data.classes", "seed": "seed"}.get(name, f"model.{name}")
        return spelled_in_configuration(path, value)

    return errors_at("model", spelled)


def _check_network(network: nn.Module, config: TrainConfig, channels: int) -> None:
    """Check that a network can be trained on crops; freeze parts that its logits do not depend on.

    Such parts, auxiliary heads for instance, learn nothing, and several processes would wait for their gradients.

    Raises:
        ModelError: it rejects crops or fails, returns other channels, or has nothing to train.
    """
    spec, crop = config.model.spec, config.training.crop
    size, multiple = input_sizes(network)
    right = f"[{size[0]}, {size[1]}]" if size else f"multiples of {multiple}"
    what = f"crops of {crop[0]} x {crop[1]}"
    scores = _scores(network, config, crop, what, advice=f"try {right} for training.crop")
    if scores.shape[1] != channels:
        raise ModelError(
            f"{spec}: returns {scores.shape[1]} channels; {config.data.classes} classes with the loss "
            f"{config.training.loss} need {channels}; change the network, data.classes or training.loss"
        )
    if (activation := final_activation(scores)) is not None:
        raise ModelError(
            f"{spec}: returns probabilities where logits are needed; build it without its last {activation}"
        )
    parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
    if not parameters:
        raise ModelError(f"{spec}: has no parameter that requires a gradient, so there is nothing to train")
    gradients = torch.autograd.grad(scores.sum(), parameters, allow_unused=True)
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.requires_grad_(gradient is not None)
    _check_batch(network, config)


def _scores(
    network: nn.Module, config: TrainConfig, size: tuple[int, int], what: str, *, advice: str
) -> Tensor:
    """Return the logits of a network for a blank window.

    Raises:
        ModelError: it rejects the window, which is one of ``what``, or fails otherwise.
    """
    spec = config.model.spec
    with reporting_errors(ModelError, f"{spec}: fails in its forward pass", "; correct it"):
        try:
            return task_logits(network, _blank(1, config.model.slices, size), config.training.task)
        except ABOUT_INPUT as error:
            raise ModelError(f"{spec}: rejects {what} ({reason(error)}); {advice}") from error


def _check_batch(network: nn.Module, config: TrainConfig) -> None:
    """Check that a network can be trained on so few crops: batch norms need several values per channel."""
    options = config.training
    crops = min(options.batch // options.devices, 2)
    before = [(buffer, buffer.clone()) for buffer in network.buffers()]
    try:
        with torch.no_grad(), keep_generators([]):  # the network is on the CPU
            network.train()(_blank(crops, config.model.slices, options.crop))
    except ValueError as error:
        raise ModelError(
            f"{config.model.spec}: cannot be trained on {crops} of these crops at once ({error}); "
            "increase training.batch or training.crop"
        ) from error
    finally:
        network.eval()
        for buffer, values in before:
            buffer.copy_(values)


def _blank(count: int, slices: int, size: tuple[int, int]) -> Tensor:
    """Return windows (count, slices, y, x) that are all 0, on the CPU."""
    return torch.zeros(count, slices, *size, dtype=torch.float32, device="cpu")


def _check_planes(network: nn.Module, config: TrainConfig, data: Data) -> None:
    """Check that a network accepts the windows in which the planes of validation and test are shown to it.

    Raises:
        ModelError: it rejects one.
    """
    if config.training.task == "classification":  # its windows are as large as crops
        return
    slices = config.model.slices
    predictor = Predictor(ReadyNetwork(network, slices=slices, device="cpu", dtype="float32"), slices)
    parts = (*data.validation, *data.test)
    of_size = {predictor.for_planes(part.volume.shape[1:]): part for part in parts}
    for whole, part in of_size.items():
        tile = cast("tuple[int, int]", whole.tile)
        y, x = part.volume.shape[1:]
        what = f"the planes of {part.name}, {y} x {x} pixels"
        with torch.inference_mode():
            _scores(network, config, tile, what, advice="crop or pad them to a size that it accepts")


def describe_plan(plan: Plan) -> tuple[str, ...]:
    """Return lines that say what was chosen for a training run, by its configuration or by default."""
    config, data, record = plan.config, plan.data, plan.record
    parts = (*data.train, *data.validation, *data.test)
    ranges = [f"{part.scaling.low:g}..{part.scaling.high:g}" for part in parts]
    why = "percentiles {:g} and {:g}".format(*Scaling.PERCENTILES)
    why = why if config.data.intensity is None else "data.intensity"
    scaled = f"mean {record.mean:.4g}, standard deviation {record.std:.4g}"
    gaps = {part.volume.location: missing_slices(part.volume) for part in parts}
    missing = plan.source.missing
    lacking = f"; it lacks {', '.join(missing)}, which start random" if missing else ""
    return (
        f"network: {config.model.spec}, {plan.source.origin}{lacking}",
        _slices_line(plan),
        f"scaling: voxel values {_few(ranges)} ({why}) become 0..1; then {scaled}",
        f"data: {_splits(data)}; {config.data.classes} classes",
        *(f"{at}: missing slices {gap}" for at, gap in gaps.items() if gap),
        _training_line(plan),
    )


def _few(names: list[str]) -> str:
    """Return the first different names, for a line that names few of many."""
    different = list(dict.fromkeys(names))
    return ", ".join(different[:MOST_NAMED]) + (" ..." if len(different) > MOST_NAMED else "")


def _slices_line(plan: Plan) -> str:
    record, inputs, plane = plan.record, plan.source.inputs, plan.config.data.plane
    line = f"slices: {record.slices} a window, {plan.config.model.step} apart"
    line += f" along {plane}" if plane != "z" else ""
    line += f", strategy {record.strategy}" + (f" tied {record.tie}" if record.tie else "")
    if record.stems:
        line += f", stem{'s' if len(record.stems) > 1 else ''} {_few(list(record.stems))}"
        line += (
            f" lifted from {inputs} inputs to {record.slices}" if inputs not in (None, record.slices) else ""
        )
    return line + (", averaged over the window and its mirror" if record.symmetrized else "")


def _splits(data: Data) -> str:
    counts = []
    for split in ("train", "validation", "test"):
        parts = getattr(data, split)
        volumes = f" in {len(parts)} volumes" if len(parts) > 1 else ""
        slices = sum(len(part.labels) for part in parts)
        counts.append(f"{split} {slices} slices{volumes}" if parts else f"no {split}")
    return ", ".join(counts)


def _training_line(plan: Plan) -> str:
    options, machine = plan.config.training, plan.machine
    where = f"{options.devices} x " if options.devices > 1 else ""
    where += machine.device.type
    crops = f"{options.batch} crops of {options.crop[0]} x {options.crop[1]}"
    precision = str(machine.dtype).removeprefix("torch.")
    return f"training: {options.steps} steps of {crops}, {precision} on {where}, seed {plan.config.seed}"
