"""Networks to and from one file, with the record that says how their slices are scaled.

It is a safetensors file with the network's plain keys, so that others can read it too; its metadata contain, under
``evenslice``, the record and the source of the network as JSON, and how it reads volumes if that is known.
"""

from __future__ import annotations

import stat
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import nn

from evenslice._core import ModelError, OutputError, local_path, option, reason, staged_file, whole_number
from evenslice.networks import (
    METADATA_KEY,
    TIED,
    ModelSource,
    build_model,
    exact_evaluation,
    fill_network,
    parse_specification,
    read_metadata,
    read_weights,
    sketched_size,
    with_gradients,
)
from evenslice.neutralizing.inspection import KnownInput, locate_stems
from evenslice.neutralizing.mirror_average import averages_due
from evenslice.neutralizing.mixer import MIXER
from evenslice.neutralizing.network_metadata import check_asked, find_in_folder, read_saved, saved_text
from evenslice.neutralizing.neutralization import neutralize
from evenslice.neutralizing.record import Record, keep_record, record_of, record_with_names, unwrapped
from evenslice.neutralizing.restored_averages import average_as_recorded, neutralize_averaged
from evenslice.neutralizing.rewriting import shape_mixer, shape_stems
from evenslice.neutralizing.stems import find_stems, input_channels
from evenslice.neutralizing.symmetrization import symmetrize as make_symmetric
from evenslice.neutralizing.ties import is_tied

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping, Sequence

    from torch import Tensor

    from evenslice.volumes import Reading
__all__ = ["MANY_SLICES", "LoadedNetwork", "load_network", "neutralize_file", "save_network"]

DRAWN = ("shuffle", "reinit", "random")  # strategies with a seed
MANY_SLICES = 81  # the memory in which stems are probed grows with their square; 1 GiB at this number


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


@with_gradients
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

    A file that ``save_network`` wrote comes back as it was saved. Any other network is built as ``build_model`` does
    and neutralized; the default strategy, which is what the libraries do, only folds in the per-colour scaling. A state
    dict of a network that averages over a window and its mirror gives one that does so, with slices on one scale.

    Args:
        spec: which network; see ``evenslice.networks.specification``. Without weights: a file from ``save_network`` or
            a folder that ``evenslice.export`` wrote for Hugging Face, unless its network comes from a function, which
            must be named.
        weights: ``"imagenet"``, ``"none"``, or the path of a file or of such a folder.
        slices: N, odd. None: as many as the network has inputs, which is 3 unless its file or function says otherwise.
        strategy: how the stem's colour kernels become slice kernels, as for ``neutralize``. For a file from
            ``save_network``, ``"pretrained"`` leaves the network as it was saved, whatever its strategy.
        tie: which slices to tie permanently, as for ``neutralize``.
        classes: channels of the output, as for ``build_model``.
        seed: random seed for random parts. A file from ``save_network`` has none, and is refused if its strategy is asked
            for with another seed than 0 and its own.
        mean: what was subtracted from the network's inputs in training, one value or one for each, as for
            ``neutralize``; by default as for the pretrained weights. 0 for a network trained on slices in 0..1.
        std: what they were divided by afterwards, in the same form and with the same default; 1 for such a network.
        symmetrize: where to average over a window and its mirror: "output", "encoder" or the name of a module, as for
            ``symmetrize``; None for nowhere, or for a file from ``save_network`` where it did when it was saved.

    Raises:
        ModelError: the specification or the weights cannot be used, or not together; the network cannot be neutralized;
            or a file from ``save_network`` was saved with other slices, strategy, tie or classes than requested, states
            the mean and std itself, has more than 81 slices and ``slices`` does not say so, or names a network by
            arguments whose size only building it would tell.
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
    stated, seed = weights is None, whole_number("seed", seed, least=0)
    spec, weights = find_in_folder(spec, weights)
    if METADATA_KEY in read_metadata(weights):
        if mean is not None or std is not None:
            raise ModelError(
                f"{weights}: states its own mean and std; leave out {option('mean')} and {option('std')}"
            )
        asked = {"slices": slices, "strategy": strategy, "tie": tie, "classes": classes}
        if isinstance(strategy, str) and strategy == "pretrained":
            del asked["strategy"]
        elif isinstance(strategy, str) and strategy in DRAWN and seed != 0:  # callers pass the default too
            asked["seed"] = seed
        return _symmetrized(_load_saved(spec, weights, asked, stated=stated), symmetrize)
    model, source = build_model(spec, weights, classes=classes, seed=seed)
    inputs = source.inputs or input_channels(model)
    count = inputs if slices is None else slices
    change = neutralize_averaged if averages_due(model) else neutralize
    record = change(model, count, strategy=strategy, tie=tie, mean=mean, std=std, seed=seed)
    return _symmetrized(LoadedNetwork(model, record, replace(source, inputs=inputs)), symmetrize)


def _symmetrized(loaded: LoadedNetwork, at: str | None) -> LoadedNetwork:
    if at is None:
        return loaded
    return loaded._replace(record=record_of(make_symmetric(loaded.model, at)) or loaded.record)


def _load_saved(spec: str, weights: str, asked: Mapping[str, Any], *, stated: bool) -> LoadedNetwork:
    """Load a file of `save_network`, whose words may be anyone's; it alone names the network if that is stated there."""
    file = read_weights(weights)
    record, saved = read_saved(weights, file.metadata[METADATA_KEY])
    parse_specification(spec, asked["classes"])  # of a function, nobody can ask for classes
    check_asked(spec, weights, asked, record, saved)
    if record.slices > MANY_SLICES and asked["slices"] is None:
        raise ModelError(
            f"{weights}: was saved with {record.slices} slices, which take much memory; to load it, give "
            f"{option('slices', record.slices)}"
        )
    inputs = _inputs(record, saved)
    classes = saved.classes if saved is not None and saved.classes is not None else asked["classes"]
    state = dict(file.state)
    size = sketched_size(spec, classes=classes, inputs=inputs)
    if size is None and stated and parse_specification(spec).arguments:
        raise ModelError(
            f"{weights}: its network {spec} has to be built before its size is known; if you trust the file, give the "
            "specification as well"
        )
    if size is not None and size > _room(state):
        raise ModelError(
            f"{weights}: is too small for the network {spec}; name the network that was saved in it"
        )
    model, source = build_model(spec, "none", classes=classes, inputs=inputs)
    _check_room(model, record, state, weights)
    _shape_stems(model, source, record, weights)
    _match_stems(model, record.stems, state)
    target = spec if asked["classes"] is None else f"{spec} with {classes} classes"
    filled = fill_network(model, state, source=weights, target=target)
    if filled.random:
        raise ModelError(f"{weights}: lacks the network's {', '.join(filled.random)}; save the network again")
    average_as_recorded(model, record, weights)
    keep_record(model, record)
    source = replace(source if saved is None else saved, spec=spec, weights=str(weights), origin=file.origin)
    return LoadedNetwork(model, record, replace(source, random=() if saved is None else saved.random))


def _inputs(record: Record, saved: ModelSource | None) -> int | None:
    """Return the inputs to build a saved network with; None where its stems get a shape of their own afterwards."""
    if not record.stems:  # nobody has neutralized it
        return record.slices
    return saved.inputs if saved is not None and record.stems == (MIXER,) else None


def _room(state: Mapping[str, Tensor]) -> int:
    """Return how many parameters a network may have at most whose file holds these tensors."""
    return 16 * sum(tensor.numel() for tensor in state.values()) + 2**20


def _check_room(model: nn.Module, record: Record, state: Mapping[str, Tensor], weights: str) -> None:
    """Check that a file is large enough for the stems that its record names, before they are made."""
    names = dict(model.named_modules())
    needed = sum(
        parameter.numel() // 3 * record.slices  # about: few networks have other than three inputs
        for name in record.stems
        for key, parameter in (names[name].named_parameters(recurse=False) if name in names else ())
        if key == "weight"
    )
    if needed > _room(state):
        raise ModelError(
            f"{weights}: is too small for the {record.slices} slices that it names; save the network again"
        )


def _shape_stems(model: nn.Module, source: ModelSource, record: Record, weights: str) -> None:
    """Give the stems of a network the shapes and ties of a saved one; none are named if nobody neutralized it."""
    if not record.stems:
        return
    if record.stems == (MIXER,):
        shape_mixer(model, source.inputs or input_channels(model), record.slices, record.tie)
        return
    with exact_evaluation(model), torch.no_grad():
        stems = find_stems(model) if record.check == "network" else locate_stems(model, KnownInput())[0]
        names = tuple(stem.name for stem in stems.items)
        if names != record.stems:
            raise ModelError(
                f"{weights}: was saved with the stems {', '.join(record.stems)}, but {source.spec} has "
                f"{', '.join(names)}"
            )
        shape_stems(model, stems, record.slices, record.tie)


def _match_stems(model: nn.Module, stems: Sequence[str], state: dict[str, Tensor]) -> None:
    """Give a network's stems and a saved state dict the same keys, in place.

    A normalization may have been folded into a bias that the library's network does not have, and a tied weight has
    another key.
    """
    for name in stems:
        stem, prefix = model.get_submodule(name), f"{name}." if name else ""
        if f"{prefix}bias" in state and getattr(stem, "bias", None) is None:
            weight: Any = stem.weight
            stem.register_parameter("bias", nn.Parameter(weight.new_zeros(len(weight))))
        if is_tied(stem) and f"{prefix}weight" in state:
            state[f"{prefix}parametrizations.weight.original"] = state.pop(f"{prefix}weight")


def save_network(
    model: nn.Module,
    path: str | os.PathLike[str],
    *,
    record: Record | None = None,
    source: ModelSource | None = None,
    reading: Reading | Mapping[str, Any] | None = None,
    run: Mapping[str, str] | None = None,
    force: bool = False,
) -> None:
    """Write a neutralized network to a safetensors file that ``load_network`` reads.

    The file has the network's plain keys: ties are baked in, and restored on loading.

    Args:
        model: the network.
        path: the file, ``.safetensors``; it appears once it is complete.
        record: what was done to the network; by default what ``neutralize`` left on it, or on the network that the
            model wraps, which is then saved without the wrapper.
        source: what the network was built from; without it, ``load_network`` must be told the classes.
        reading: how the network reads volumes, for commands that are given the file: arguments of ``export``, by name.
        run: hashes of the options of its training, which tells by them whether it may go on from the file.
        force: overwrite an existing file.

    Raises:
        ModelError: the network has no record, or is none.
        ConfigError: an entry of ``reading`` is unknown, or cannot be right; or ``source`` is something else.
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
    if record is None:
        model, _ = unwrapped(model)
        record = record_with_names(model)
    if record is None:
        raise ModelError("the network has no record; call evenslice.neutralize on it before saving it")
    _check_name(path)
    with staged_file(path, force=force) as beside:
        _write(model, beside, saved_text(record, source, reading, run), label=path)


def _write(model: nn.Module, path: Path, metadata: str, *, label: str | os.PathLike[str]) -> None:
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    path.touch()
    usual = path.stat().st_mode  # safetensors makes files that only their owner may read
    try:
        save_file(_plain_state(model), path, {METADATA_KEY: metadata})
    except SafetensorError as error:
        raise OutputError(
            f"{label}: cannot be written ({reason(error)}); make room, or choose a place where you may write"
        ) from error
    path.chmod(stat.S_IMODE(usual))


def _plain_state(model: nn.Module) -> dict[str, Tensor]:
    """Return a network's state dict with ties baked in; tensors are copies, as safetensors refuses shared memory."""
    state = model.state_dict()
    for name, module in model.named_modules():
        if is_tied(module):
            layer: Any = module
            prefix = f"{name}." if name else ""
            del (
                state[f"{prefix}parametrizations.weight.original"],
                state[f"{prefix}parametrizations.weight.0.{TIED}"],
            )
            state[f"{prefix}weight"] = layer.weight
    return {key: tensor.detach().cpu().contiguous().clone() for key, tensor in state.items()}


def _check_name(path: str | os.PathLike[str]) -> None:
    if local_path(path).suffix != ".safetensors":
        raise OutputError(f"{path}: networks are written as .safetensors; choose this suffix")
    try:
        str(path).encode()
    except UnicodeEncodeError:  # safetensors writes such a file, and then reads it no more
        raise OutputError(f"{path}: is not UTF-8, as safetensors needs; choose another name") from None


def neutralize_file(  # noqa: PLR0913  # one for each option of the command
    spec: str,
    weights: str,
    out: str | os.PathLike[str],
    *,
    slices: int | None = None,
    strategy: str | Sequence[float] = "uniform",
    tie: str | None = None,
    classes: int | None = None,
    seed: int = 0,
    mean: float | Sequence[float] | None = None,
    std: float | Sequence[float] | None = None,
    symmetrize: str | None = None,
    reading: Reading | Mapping[str, Any] | None = None,
    force: bool = False,
) -> Record:
    """Neutralize or symmetrize a network from its weights into a file, as ``evenslice neutralize`` does.

    Args:
        spec: which network; see ``evenslice.networks.specification``.
        weights: ``"imagenet"``, ``"none"``, or the path of a file or folder, which stays as it is.
        out: the file to write, ``.safetensors``.
        slices: see ``load_network``, as for the options below.
        strategy: how the stem's colour kernels become slice kernels.
        tie: which slices to tie permanently.
        classes: channels of the output.
        seed: of random parts.
        mean: by which the network's inputs were centred in training.
        std: by which they were divided afterwards.
        symmetrize: where to average over a window and its mirror.
        reading: how the network reads volumes, as for ``save_network``.
        force: overwrite an existing file.

    Returns:
        What was done.

    Raises:
        ModelError: see ``load_network``.
        ConfigError: see ``load_network``.
        OutputError: the file exists, cannot be written, or contains the weights.
    """
    spec, weights = find_in_folder(spec, weights)
    if Path(weights).is_file() and Path(out).exists() and Path(out).samefile(weights):
        raise OutputError(f"{out}: is the file of weights to read; write to another file")
    _check_name(out)
    with staged_file(out, force=force) as beside:
        loaded = load_network(
            spec,
            weights,
            slices=slices,
            strategy=strategy,
            tie=tie,
            classes=classes,
            seed=seed,
            mean=mean,
            std=std,
            symmetrize=symmetrize,
        )
        _write(loaded.model, beside, saved_text(loaded.record, loaded.source, reading), label=out)
    return loaded.record
