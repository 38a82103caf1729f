"""Networks to and from one file, with the record that says how their slices are scaled.

It is a safetensors file with the network's plain keys, so that others can read it too; its metadata contain, under
``evenslice``, the record and the source of the network as JSON, and how it reads volumes if that is known.
"""

from __future__ import annotations

import json
import stat
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import fields, replace
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch
from torch import nn

from evenslice._core import (
    UNREADABLE,
    ModelError,
    OutputError,
    local_path,
    option,
    path_text,
    reason,
    staged_file,
    whole_number,
)
from evenslice.networks import (
    METADATA_KEY,
    ModelSource,
    build_model,
    parse_specification,
    read_metadata,
    read_weights,
)
from evenslice.neutralizing.averages import average_mirrored, averages_due
from evenslice.neutralizing.neutralization import inspect_network, neutralize
from evenslice.neutralizing.record import Record, keep_record, record_of, record_with_names, unwrapped
from evenslice.neutralizing.rewriting import (
    MIXER,
    ChannelScaling,
    Request,
    find_scaling,
    mix,
    open_path,
    set_width,
    tie_stem,
)
from evenslice.neutralizing.running import exact_evaluation
from evenslice.neutralizing.stems import accepted_input
from evenslice.neutralizing.strategies import TIED, find_strategy, is_tied
from evenslice.neutralizing.symmetrization import restore_average, symmetrize as make_symmetric

if TYPE_CHECKING:
    import os
    from pathlib import Path

    from torch import Tensor

    from evenslice.neutralizing.stems import Layout, Stem
    from evenslice.volumes import Reading

DRAWN = ("shuffle", "reinit", "random")  # strategies with a seed
FORMAT = 1
FOLDER_WEIGHTS = "model.safetensors"
_DAMAGED: tuple[type[Exception], ...] = (*UNREADABLE, ModelError)


class LoadedNetwork(NamedTuple):
    """A network in evaluation mode.

    Attributes:
        model: the network.
        record: what was done to it; it states how its slices are scaled.
        source: what it was built from.
    """

    model: nn.Module
    record: Record
    source: ModelSource


@torch.inference_mode(mode=False)  # what is made in it can be trained, and explained
def load_network(  # what to build, and one argument for each choice of neutralize
    spec: str,
    weights: str | None = None,
    *,
    slices: int | None = None,
    strategy: str | Sequence[float] = "pretrained",
    tie: str | None = None,
    classes: int | None = None,
    seed: int = 0,
    mean: float | Sequence[float] | None = None,
    std: float | Sequence[float] | None = None,
    symmetrize: str | None = None,
) -> LoadedNetwork:
    """Build a network that takes windows of slices on one common scale.

    A file from ``save_network`` is restored unchanged. Any other network is built by ``build_model`` and neutralized;
    the default strategy keeps the library's kernels and only folds in the per-colour scaling. If a state dict comes
    from a network that averages over a window and its mirror, so does the new network, with slices on one scale.

    Args:
        spec: which network; see ``evenslice.networks.specification``. Without weights: a file from ``save_network`` or
            a folder that ``evenslice.export`` wrote for Hugging Face, unless its network comes from a function, which
            must be named.
        weights: ``"imagenet"``, ``"none"``, or the path of a file or of such a folder.
        slices: N, odd. None: the number of the network's inputs, 3 unless its file or function says otherwise. For
            another number, the strategy adapts the first layer, even if the weights were trained on three slices.
        strategy: how the stem's colour kernels become slice kernels, as for ``neutralize``. For a file from
            ``save_network``, ``"pretrained"`` keeps the strategy of the file.
        tie: which slices to tie permanently, as for ``neutralize``.
        classes: channels of the output, as for ``build_model``.
        seed: random seed for random parts. A file from ``save_network`` has none, and accepts 0 or its own seed.
        mean: subtracted from the network's inputs in training, one value or one for each (see ``neutralize``); by
            default the pretrained weights' own. 0 for a network trained on slices in 0..1.
        std: the divisor afterwards, in the same form and with the same default; 1 for such a network.
        symmetrize: where to average over a window and its mirror: "output", "encoder" or the name of a module, as for
            ``symmetrize``; None for nowhere, or for a file from ``save_network`` where it did when it was saved.

    Raises:
        ModelError: the specification or the weights cannot be used, or do not fit each other; the network cannot be
            neutralized; or a file from ``save_network`` has other slices, strategy, tie or classes than requested,
            states the mean and std itself, or is too small for the network that it names.
        ConfigError: an option is unknown or has a bad value.
        MissingExtraError: the library of the network is not installed.

    Example:
        >>> import torch
        >>> model, record, source = load_network("smp:Unet/tu-tf_efficientnet_lite0", "imagenet", slices=5)
        >>> model(torch.zeros(1, 5, 64, 64)).shape
        torch.Size([1, 2, 64, 64])
        >>> record.mean, record.std, source.weights
        (0.5, 0.5, 'imagenet')
    """
    seed = whole_number("seed", seed, least=0)
    spec, weights = _find_in_folder(spec, weights)
    if read_metadata(weights) is not None:
        if mean is not None or std is not None:
            raise ModelError(
                f"{weights}: states its own mean and std; leave out {option('mean')} and {option('std')}"
            )
        named = strategy if isinstance(strategy, str) else None
        asked: dict[str, Any] = {"slices": slices, "tie": tie, "classes": classes}
        asked["strategy"] = None if named == "pretrained" else strategy
        asked["seed"] = seed or None if named in DRAWN else None  # callers pass the default too
        loaded = _load_saved(spec, weights, asked)
    else:
        model, source = build_model(spec, weights, classes=classes, seed=seed)
        inputs = source.inputs or accepted_input(model)[0]
        if slices is None and inputs % 2 == 0:
            raise ModelError(
                f"{spec}: reads {inputs} channels, and a window has an odd number of slices; give {option('slices')}"
            )
        options: dict[str, Any] = {"strategy": strategy, "tie": tie, "mean": mean, "std": std, "seed": seed}
        change = _neutralize_averaged if averages_due(model) else neutralize
        record = change(model, inputs if slices is None else slices, **options)
        loaded = LoadedNetwork(model, record, replace(source, inputs=inputs))
    if symmetrize is not None:
        make_symmetric(loaded.model, symmetrize)
    return loaded._replace(record=record_of(loaded.model) or loaded.record)


def _neutralize_averaged(
    model: nn.Module, slices: int, *, strategy: Any, mean: Any, std: Any, **options: Any
) -> Record:
    """Neutralize a network whose state dict says that it averaged, which may change nothing, and restore its average.

    Its slices are on one scale, as in any such network; options are those of `neutralize`.

    Raises:
        ModelError: it would change; or see `neutralize` and `restore_average`.
    """
    cuts, before = averages_due(model), {key: tensor.clone() for key, tensor in model.state_dict().items()}
    scaling = find_scaling(model, accepted_input(model)[0], mean, std, None)
    record = neutralize(model, slices, strategy=strategy, mean=scaling.mean, std=scaling.std, **options)
    after = model.state_dict()
    if before.keys() != after.keys() or not all(torch.equal(after[key], before[key]) for key in before):
        raise ModelError(
            "the weights are those of a network that averages over a window and its mirror after "
            f"{', '.join(cut or 'the output' for cut in cuts)}, and this strategy, tie or number of slices, or the network's "
            f"own scaling, would change them; give {option('strategy', 'pretrained')}, leave out {option('tie')} and "
            f"{option('slices')}, or load a file from evenslice.save_network, which says what was done to the network"
        )
    restore_average(model)
    return record_of(model) or record


def _load_saved(spec: str, weights: str, asked: Mapping[str, Any]) -> LoadedNetwork:
    """Load a file of `save_network`, which may be anyone's."""
    file = read_weights(weights)
    record, saved = _parsed(weights, file.metadata or "")
    _check_asked(spec, weights, asked, record, saved)
    classes = saved.classes if saved is not None and saved.classes is not None else asked["classes"]
    inputs = None  # its stems get a shape of their own afterwards
    if not record.stems:  # nobody has neutralized it
        inputs = record.slices
    elif saved is not None and record.stems == (MIXER,):
        inputs = saved.inputs
    most = 16 * sum(tensor.numel() for tensor in file.state.values()) + 2**20  # else its file is too small
    model, source = build_model(spec, "none", classes=classes, inputs=inputs, most=most)
    shaped = _shape_stems(model, source, record, weights, file.state) if record.stems else ()
    filled = file.fill(model, spec if asked["classes"] is None else f"{spec} with {classes} classes")
    if filled.random:
        raise ModelError(f"{weights}: lacks the network's {', '.join(filled.random)}; save the network again")
    if missing := set(record.symmetrized) - dict(model.named_modules()).keys():
        raise ModelError(
            f"{weights}: was symmetrized after {min(missing)!r}, which the network lacks; save the network again"
        )
    for stem, layout in shaped:
        tie_stem(stem, layout, record.tie, ExitStack())  # never closed
    if record.symmetrized:  # of version 0.2, the record alone says where
        average_mirrored(model, record.symmetrized, ExitStack())  # never closed
    keep_record(model, record)
    source = replace(source if saved is None else saved, spec=spec, weights=str(weights), origin=file.origin)
    return LoadedNetwork(model, record, replace(source, random=() if saved is None else saved.random))


def _shape_stems(
    model: nn.Module, source: ModelSource, record: Record, weights: str, state: Mapping[str, Tensor]
) -> tuple[tuple[Stem, Layout], ...]:
    """Give the stems of a network the shapes of a saved one; return them, with which slice their features come from."""
    undo = ExitStack()  # never closed
    with exact_evaluation(model), torch.no_grad():
        if record.stems == (MIXER,):
            channels = source.inputs or accepted_input(model)[0]
            scaling = ChannelScaling((0.0,) * channels, (1.0,) * channels)
            mixer = mix(model, scaling, record.slices, None, undo)
            return ((mixer.stem, mixer.layout),)
        as_it_is = find_strategy("pretrained", record.slices)
        stems = inspect_network(model, Request(record.slices, as_it_is, check="stems")).stems
        names = tuple(stem.name for stem in stems.items)
        if names != record.stems:
            raise ModelError(
                f"{weights}: was saved with the stems {', '.join(record.stems)}, but {source.spec} has {', '.join(names)}"
            )
        items, _, layouts = open_path(model, stems, record.slices, undo)
        for stem, layout in zip(items, layouts, strict=True):
            set_width(stem.module, layout.index.numel())
            # A normalization may have been folded into a bias that the library's network does not have.
            layer, name = stem.module, f"{stem.name}.bias" if stem.name else "bias"
            if layer.bias is None and name in state:
                layer.bias = nn.Parameter(layer.weight.new_zeros(len(layer.weight)))
        return tuple(zip(items, layouts, strict=True))


def save_network(
    model: nn.Module,
    path: str | os.PathLike[str],
    *,
    record: Record | None = None,
    source: ModelSource | None = None,
    reading: Reading | None = None,
    run: Mapping[str, str] | None = None,
    force: bool = False,
) -> None:
    """Write a neutralized network to a safetensors file that ``load_network`` reads.

    The file has the network's plain keys: ties are baked in, and restored on loading.

    Args:
        model: the network.
        path: the file, ``.safetensors``; it appears once it is complete.
        record: the network's record; by default the one that ``neutralize`` left on it, or on the network that the
            model wraps, which is then saved without the wrapper.
        source: specification and weights of the network; without it, pass the classes to ``load_network``.
        reading: how the network reads volumes, for commands that take the file.
        run: hashes of its training options, by which a training checks whether it may resume from the file.
        force: overwrite an existing file.

    Raises:
        ModelError: it is not a network, or has no record.
        OutputError: the path has another suffix, exists, or cannot be written.

    Example:
        >>> import tempfile
        >>> model, record, source = load_network("timm:test_resnet", "none", strategy="uniform")
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_network(model, f"{folder}/fair.safetensors", source=source)
        ...     again = load_network("timm:test_resnet", f"{folder}/fair.safetensors")
        >>> again.record == record
        True
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    if record is None:
        model, _ = unwrapped(model)
        record = record_with_names(model)
    if record is None:
        raise ModelError("the network has no record; call evenslice.neutralize on it before saving it")
    if local_path(path).suffix != ".safetensors":
        raise OutputError(f"{path}: networks are written as .safetensors; choose this suffix")
    try:
        str(path).encode()
    except UnicodeEncodeError:  # safetensors writes such a file, and then reads it no more
        raise OutputError(f"{path}: is not UTF-8, as safetensors needs; choose another name") from None
    metadata = {METADATA_KEY: _metadata(record, source, reading, run)}
    with staged_file(path, force=force) as beside:
        beside.touch()
        usual = beside.stat().st_mode  # safetensors makes files that only their owner may read
        try:
            save_file(_plain_state(model), beside, metadata)
        except SafetensorError as error:
            raise OutputError(
                f"{path}: cannot be written ({reason(error)}); make room, or choose a place where you may write"
            ) from error
        beside.chmod(stat.S_IMODE(usual))


def _plain_state(model: nn.Module) -> dict[str, Tensor]:
    """Return a network's state dict with ties baked in; tensors are copies, as safetensors refuses shared memory."""
    state = model.state_dict()
    for name, module in model.named_modules():
        if is_tied(module):
            prefix = f"{name}." if name else ""
            for part in ("original", f"0.{TIED}"):
                del state[f"{prefix}parametrizations.weight.{part}"]
            state[f"{prefix}weight"] = cast("Any", module).weight
    return {key: tensor.detach().cpu().contiguous().clone() for key, tensor in state.items()}


def _find_in_folder(spec: str, weights: str | None) -> tuple[str, str]:
    """Return the specification of a network and its file of weights, of which a folder holds the file, or both.

    Args:
        spec: a specification; without weights, a folder, or a file of ``save_network``.
        weights: a folder; anything else is returned as it is.

    Raises:
        ModelError: without weights: there is no such folder or file, or it does not name a network of a library.
    """
    spec, weights = path_text(spec, "a network"), None if weights is None else path_text(weights, "weights")
    folder = local_path(spec if weights is None else weights, ModelError)
    file = folder if weights is None and folder.is_file() else folder / FOLDER_WEIGHTS
    if weights is not None:
        found = weights not in ("imagenet", "none") and file.is_file()
        return spec, str(file) if found else weights
    if not file.is_file():
        raise ModelError(
            f"{spec}: is not a folder with {FOLDER_WEIGHTS}, nor a file that `evenslice neutralize` wrote; name one that "
            f"`evenslice export --to huggingface` wrote, or give {option('weights')} as well"
        )
    return _named_in(file), str(file)


def _named_in(file: Path) -> str:
    """Return the specification that a file of ``save_network`` names; a function is not called on its word alone."""
    _, source = read_saved(file) or (None, None)
    if source is None:
        raise ModelError(f"{file}: does not say which network it is of; give its specification as well")
    if not parse_specification(source.spec).library:
        raise ModelError(
            f"{file}: its network comes from the function {source.spec}; if you trust its module, give its name as well"
        )
    return source.spec


def _metadata(
    record: Record, source: ModelSource | None, reading: Reading | None, run: Mapping[str, str] | None
) -> str:
    """Return the metadata of a network's file; the arguments are those of ``save_network``."""
    document: dict[str, Any] = {"format": FORMAT, "version": version("evenslice"), "record": record.to_dict()}
    document["source"] = None if source is None else source.to_dict()
    if reading is not None:
        document["reading"] = reading.to_plain()
    if run:
        document["run"] = dict(run)
    return json.dumps(document)


def read_saved(weights: str | os.PathLike[str]) -> tuple[Record, ModelSource | None] | None:
    """Read what was done to the network in a file of ``save_network``, and what it was built from, if that is known.

    Returns:
        The two; None for any other weights.

    Raises:
        ModelError: they are not as ``save_network`` writes them, for the file may come from anywhere.
    """
    text = read_metadata(weights)
    return None if text is None else _parsed(str(weights), text)


def _parsed(weights: str, text: str) -> tuple[Record, ModelSource | None]:
    try:
        document = json.loads(text)
        if document["format"] != FORMAT:
            raise ValueError(f"format {document['format']}, this version reads {FORMAT}")
        record, stated = Record.from_dict(document["record"]), document["source"]
        if stated is None:
            return record, None
        lists = {name: tuple(map(str, stated[name])) for name in ("random", "unused")}
        source = ModelSource(**{entry.name: stated[entry.name] for entry in fields(ModelSource)} | lists)
        if not all(isinstance(text, str) for text in (source.spec, source.weights, source.origin)):
            raise ValueError("the source is not named by text")
        return record, source
    except _DAMAGED as error:
        raise ModelError(
            f"{weights}: the metadata of evenslice in it cannot be read ({reason(error)}); save the network again"
        ) from error


def _check_asked(
    spec: str, weights: str, asked: Mapping[str, Any], record: Record, saved: ModelSource | None
) -> None:
    """Check what is asked of a saved network against what it is.

    Args:
        spec: the network that is asked for.
        weights: the file, for messages.
        asked: any of slices, strategy, tie, seed and classes; None for what nobody asks for.
        record: what was done to the network in the file.
        saved: what it was built from, if that is known.

    Raises:
        ModelError: the file holds another network.
    """
    has: dict[str, Any] = {
        "slices": record.slices,
        "strategy": record.profile or record.strategy,
        "tie": record.tie or "none",
        "seed": record.seed,
        "classes": None if saved is None else saved.classes,
    }
    for name, value in asked.items():
        wanted = tuple(value) if isinstance(value, Iterable) and not isinstance(value, str) else value
        if wanted is not None and has[name] is not None and wanted != has[name]:
            raise ModelError(
                f"{weights}: was saved with {name} {has[name]}, not {wanted}; leave out {option(name)}, or start from the "
                "original weights"
            )
    # Another argument of the builder may fit as well and compute something else; a function may have moved.
    if saved is not None and saved.spec != spec and parse_specification(saved.spec).library:
        raise ModelError(f"{weights}: was saved as {saved.spec}, not {spec}")
