"""Networks of transformers: ``transformers:TYPE``, a name on the hub, or a folder or file with a configuration.

A model type, as ``segformer``, stands for the library's own configuration of it, changed by the arguments. Which head
the network has is what the configuration says under ``architectures``; where it says nothing, the first of `TASKS`
for which the library has one. Only safetensors files are read, and no code that comes with a network is run.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from evenslice._core import ModelError, did_you_mean, reason
from evenslice.networks.inputs import IMAGENET, PLAIN, TYPE_SCALINGS
from evenslice.networks.libraries import Library, hub_with_timeout
from evenslice.networks.specification import find_loader_in_configuration
from evenslice.networks.weights import AVERAGED, place_averages

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from torch import Tensor, nn

    from evenslice.networks.libraries import Built
    from evenslice.networks.specification import Specification

TASKS = (
    "semantic-segmentation",
    "universal-segmentation",
    "instance-segmentation",
    "depth-estimation",
    "image-classification",
    "object-detection",
    "feature-extraction",
)
"""Values of the argument ``task``, which chooses the head of a network; by default the first that is available."""

_HEADLESS = ("depth-estimation", "feature-extraction")  # tasks without classes
# What the library's own configuration lacks for a task.
_DEFAULTS = {"beit": {"out_indices": [3, 5, 7, 11]}}
_PARTS = ("backbone_config", "vision_config")  # configurations inside a configuration that read the image


def _build(specification: Specification, pretrained: bool) -> Built:
    origin = _origin(specification)
    if origin == "type" and pretrained:
        raise specification.error(
            "a model type has no weights; name a network on the hub, such as transformers:nvidia/mit-b0, a folder, or a weights "
            "file, or use none"
        )
    config = _image_part(_configured(specification, origin))
    network = _network(specification, config)
    _set_inputs(specification, config)
    if pretrained:
        model, random = _load(specification, network, config, local=origin == "local")
    else:
        model, random = network(config), ()
    # Read by evenslice's normalization, as timm's networks carry it.
    model.pretrained_cfg = _scaling(specification.name, origin, config)
    return model, random


def _origin(specification: Specification) -> str:
    """Return where a configuration comes from: a model "type", a "local" folder or file, or the "hub"."""
    from transformers import CONFIG_MAPPING

    name, path = specification.name, Path(specification.name)
    if (path / "config.json").is_file() or (path.suffix == ".json" and path.is_file()):
        return "local"
    if name not in CONFIG_MAPPING and (path.exists() or not re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", name)):
        raise specification.error(
            f"{name} is not a folder with a config.json, nor a model type of transformers, nor OWNER/NAME on the hub; "
            f"{did_you_mean(name, CONFIG_MAPPING)}"
        )
    return "type" if name in CONFIG_MAPPING else "hub"


def _scaling(name: str, origin: str, config: Any) -> Mapping[str, Any]:
    """Return how a network wants its input: what lies beside its configuration says, else its type."""
    from transformers import ImageProcessingMixin

    default = TYPE_SCALINGS.get(config.model_type, IMAGENET)
    if origin == "type" or Path(name).is_file():
        return default
    try:
        stated, _ = ImageProcessingMixin.get_image_processor_dict(name, local_files_only=origin == "local")
    except OSError:  # no such file
        return default
    if stated.get("do_normalize") is False:
        return PLAIN
    mean, std = stated.get("image_mean"), stated.get("image_std")
    return {"mean": mean, "std": std} if mean and std else default


def _configured(specification: Specification, origin: str) -> Any:
    from huggingface_hub.errors import OfflineModeIsEnabled

    changes = {key: value for key, value in specification.arguments.items() if key != "task"}
    if specification.classes is not None:
        changes["num_labels"] = specification.classes
    try:
        with hub_with_timeout(asked=origin == "hub"):
            read = _read_type if origin == "type" else _read_file
            config, unknown = read(specification.name, changes, local=origin == "local")
    except OSError as error:
        if origin != "hub" and isinstance(error, OfflineModeIsEnabled):
            raise specification.error(
                "its configuration names a backbone that is another network on the hub; put the configuration of that in its "
                "place (backbone_config)"
            ) from error
        raise specification.error(
            f"its configuration is neither a local file nor cached, and the hub did not provide it ({reason(error)}); name a "
            "folder that holds a config.json, or a model type, such as transformers:segformer"
        ) from error
    for name in sorted(unknown):
        specification.require(name, config.to_dict(), f"the configuration of {config.model_type} has no")
    return config


def _read_type(name: str, changes: dict[str, Any], **_: bool) -> tuple[Any, Iterable[str]]:
    """Return the library's configuration of a type, and those of the changes that it has no place for."""
    from transformers import AutoConfig

    changes = {**_DEFAULTS.get(name, {}), **changes}
    plain = AutoConfig.for_model(name)  # which would accept any change, even a meaningless one
    unknown = [key for key in changes if not hasattr(plain, key)]
    return (plain if unknown else AutoConfig.for_model(name, **changes)), unknown


def _read_file(name: str, changes: dict[str, Any], *, local: bool) -> tuple[Any, Iterable[str]]:
    """Return the configuration of a file or of the hub, and those of the changes that it has no place for."""
    from transformers import AutoConfig, PretrainedConfig

    options = {"return_unused_kwargs": True, "trust_remote_code": False, **changes}
    if local:
        options["local_files_only"] = True
    stated, _ = PretrainedConfig.get_config_dict(name, **options)
    if loader := find_loader_in_configuration(stated):
        raise ModelError(
            f"{name}: its configuration sets {loader} so as to read other files or to run code; remove it there"
        )
    config, unused = AutoConfig.from_pretrained(name, **options)
    return config, unused


def _image_part(config: Any) -> Any:
    """Return the configuration of the image encoder where a model asks for more than an image, as SAM for prompts."""
    heads = [task for task, _ in _heads(config, TASKS) if task != "feature-extraction"]
    return config if heads else getattr(config, "vision_config", config)


def _network(specification: Specification, config: Any) -> Any:
    """Return the class of the network."""
    import transformers

    task = specification.arguments.get("task")
    if task is not None:
        specification.require(str(task), TASKS, "unknown task")
    found = dict(_heads(config, [task] if task else TASKS))
    stated = next(iter(config.architectures or ()), "")
    network = getattr(transformers, stated, None)
    if task is None and isinstance(network, type) and issubclass(network, transformers.PreTrainedModel):
        chosen = next((task for task, head in found.items() if head is network), None)
    else:
        chosen, network = next(iter(found.items()), (None, None))
    if network is None:
        having = [task for task, _ in _heads(config, TASKS)]
        raise specification.error(
            f"transformers has no {config.model_type} for {task or 'images'};"
            f" it has it for {', '.join(having) or 'none of the tasks that evenslice knows'}"
        )
    if specification.classes is not None and chosen in _HEADLESS:
        raise specification.error(f"a {network.__name__} has no classes; leave their number out")
    return network


def _heads(config: Any, tasks: Iterable[str]) -> Iterator[tuple[str, Any]]:
    """Yield those of some tasks for which the library has a network of a configuration, with its class."""
    import transformers

    for task in tasks:
        mapping = "MODEL" if task == "feature-extraction" else f"MODEL_FOR_{task.replace('-', '_').upper()}"
        network = getattr(transformers, f"{mapping}_MAPPING").get(type(config), None)
        if network is not None:
            yield task, network[0] if isinstance(network, tuple) else network


def _set_inputs(specification: Specification, config: Any) -> None:
    """State the number of input channels wherever a configuration has a place for it."""
    parts = [config, *(getattr(config, part, None) for part in _PARTS)]
    places = [part for part in parts if hasattr(part, "num_channels")]
    if specification.inputs != 3 and not places:
        raise specification.error(
            f"transformers builds {config.model_type} for 3 inputs only, these weights have {specification.inputs}"
        )
    for part in places:
        part.num_channels = specification.inputs


def _load(
    specification: Specification, network: Any, config: Any, *, local: bool
) -> tuple[Any, tuple[str, ...]]:
    """Build a network with its weights, and refuse them where they are not the network's."""
    import torch

    if local and not any(Path(specification.name).glob("*.safetensors")):
        raise specification.error(
            "the folder holds no .safetensors file, and evenslice does not open pickled ones; save the network again with "
            "save_pretrained, or use none for random weights"
        )
    model, info = network.from_pretrained(
        specification.name,
        config=config,
        dtype=torch.float32,
        use_safetensors=True,
        local_files_only=local,
        trust_remote_code=False,
        output_loading_info=True,
        ignore_mismatched_sizes=specification.classes is not None,
    )
    averages = [key for key in info["unexpected_keys"] if key.endswith(AVERAGED)]
    place_averages(model, averages, source=specification.text)
    missing, resized = set(info["missing_keys"]), {key for key, *_ in info["mismatched_keys"]}
    filled = {key.partition(".")[0] for key in model.state_dict().keys() - missing - resized}
    random = {key.partition(".")[0] for key in missing}
    if random & filled or not filled:
        first = min(key for key in missing if key.partition(".")[0] in filled or not filled)
        raise specification.error(f"its weights lack {first}; they are not those of a {network.__name__}")
    wrong = [key for key, have, want in info["mismatched_keys"] if tuple(have)[1:] != tuple(want)[1:]]
    if wrong:
        raise specification.error(f"{wrong[0]} has another shape in its weights than its configuration says")
    return model, tuple(sorted(random | {key.partition(".")[0] for key in resized}))


def _translate(model: nn.Module, state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Return the tensors of a file by their names in the network: transformers saves some layers under older names.

    Tensors that its own loading does not find keep their names.
    """
    import torch
    from transformers.utils import logging as own_logging

    network, logging = cast("Any", model), cast("Any", own_logging)
    own = network.state_dict().keys()
    if own <= state.keys():
        return state
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()  # else it reports on standard error what is checked here
    logging.disable_progress_bar()
    try:
        loaded, info = type(network).from_pretrained(
            None,
            config=network.config,
            state_dict=dict(state),
            dtype=torch.float32,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
    unknown = {*info["missing_keys"], *(key for key, *_ in info["mismatched_keys"])}
    found = {key: tensor for key, tensor in loaded.state_dict().items() if key not in unknown}
    if len(found) <= len(own & state.keys()):
        return state
    return found | {key: state[key] for key in {*info["unexpected_keys"], *unknown} if key in state}


TRANSFORMERS = Library(
    package="transformers",
    extra="transformers",
    build=_build,
    translate=_translate,
    reserved=frozenset({"id2label", "label2id", "num_channels", "num_labels", "trust_remote_code"}),
)
