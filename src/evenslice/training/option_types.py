"""Types of options that ``train`` and ``study`` share, each with its checks."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from evenslice._core import ConfigError, EvensliceError, ModelError, did_you_mean, needs_extra

if TYPE_CHECKING:
    from evenslice.neutralizing import Record

with needs_extra("train", "a configuration"):
    from pydantic import AfterValidator, BeforeValidator, Field, ValidationInfo


def config_folder(info: ValidationInfo) -> Path:
    """Return the folder to which paths in a configuration are relative; without a file, the working directory."""
    return Path((info.context or {}).get("folder", ""))


def _as_text(path: Any) -> str:
    if not isinstance(path, str | Path):
        raise ValueError("should be a path")  # pydantic adds the place
    return str(path)


FileOption = Annotated[str, Field(min_length=1), BeforeValidator(_as_text)]
"""A file, kept as text since an address is not a path."""


def _odd(slices: int) -> int:
    if slices % 2 == 0:
        raise ValueError("a window has an odd number of slices, such as 3 or 5")
    return slices


def _beside_file(weights: str, info: ValidationInfo) -> str:
    from evenslice.neutralizing import find_in_folder

    if weights in ("imagenet", "none"):
        return weights
    beside = config_folder(info) / weights
    try:
        _, file = find_in_folder("", str(beside))
        return file if Path(file).is_file() else weights
    except EvensliceError as error:  # of a name that no file can have
        raise ValueError(str(error)) from error
    except OSError as error:
        raise ValueError(f"cannot be read ({error.strerror}); name a file that can") from error


def record_beside(weights: Any, info: ValidationInfo) -> Record | None:
    """Return what was done to the network that weights in a configuration hold; see ``saved_record``."""
    try:
        return saved_record(_beside_file(str(weights), info)) if isinstance(weights, str | Path) else None
    except ValueError:  # of which the option itself will tell
        return None


def saved_record(weights: str) -> Record | None:
    """Return what was done to the network in a file of ``save_network``; None for any other weights."""
    from evenslice.networks import METADATA_KEY, read_metadata
    from evenslice.neutralizing import read_saved

    try:
        text = read_metadata(weights).get(METADATA_KEY)
        return None if text is None else read_saved(weights, text)[0]
    except ModelError:  # a damaged file, of which reading the weights will tell
        return None


def _known_strategy(strategy: str | tuple[float, ...]) -> str | tuple[float, ...]:
    from evenslice.neutralizing import STRATEGIES

    if isinstance(strategy, str) and strategy not in STRATEGIES:
        raise ValueError(did_you_mean(strategy, STRATEGIES))
    return strategy


def _known_tie(tie: str | None) -> str | None:
    from evenslice.neutralizing import TIES

    if tie is not None and tie not in TIES:
        raise ValueError(f"{did_you_mean(tie, TIES)}, or null for independent slices")
    return tie


def check_strategy(strategy: str | tuple[float, ...], slices: int) -> None:
    """Raise ValueError if a strategy does not fit the number of slices."""
    from evenslice.neutralizing import find_strategy

    try:
        find_strategy(strategy, slices)
    except ConfigError as error:  # pydantic itself says which option of the configuration it is
        raise ValueError(str(error).removeprefix("strategy: ")) from error


def check_added_symmetry(value: str | None, info: ValidationInfo) -> str | None:
    """Raise ValueError if a tie or a place to average adds nothing to the strategy's own symmetry, or makes it another."""
    if value == "uniform" and info.field_name == "tie" and _is_mirror_symmetric(info.data.get("strategy")):
        raise ValueError("makes every strategy 'uniform'; choose the strategy 'uniform', or the tie 'mirror'")
    if value is not None and info.data.get("strategy") == "twin":
        other = "'pretrained'" if info.field_name == "symmetrize" else "that of its name"
        raise ValueError(
            f"the strategy 'twin' is mirror-symmetric whatever is learned; omit {info.field_name}, or choose another "
            f"strategy, such as {other}"
        )
    return value


def _is_mirror_symmetric(strategy: Any) -> bool:
    return strategy in ("center", "profile", "mirror") or isinstance(strategy, tuple)


SlicesOption = Annotated[int, Field(ge=1), AfterValidator(_odd)]
"""The number of slices in a window."""

WeightsOption = Annotated[str, Field(min_length=1), AfterValidator(_beside_file)]
"""Weights by name or file; a file beside the configuration takes precedence."""

StrategyOption = Annotated[str | tuple[float, ...], AfterValidator(_known_strategy)]
"""The name of a strategy, or the weights of a symmetric profile."""

TieOption = Annotated[str | None, AfterValidator(_known_tie)]
"""The name of a tie, or None."""
