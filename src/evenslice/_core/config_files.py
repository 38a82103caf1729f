"""Configuration files: sections of options, read from YAML and checked before anything runs.

    class Audit(Section):
        windows: int = Field(default=200, ge=2, description="Number of windows.")

    config = load_config("audit.yaml", Audit)
    print(to_yaml(config))      every option, with its description as a comment

Errors are one line: where, what was wrong, and what would be right.
"""

from __future__ import annotations

import os
import reprlib
import textwrap
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, get_args

from evenslice._core.errors import UNREADABLE, ConfigError, did_you_mean, needs_extra, reason, without_secrets
from evenslice._core.files import local_path, read_bounded

with needs_extra("train", "a configuration"):
    import yaml
    from pydantic import (
        BaseModel,
        ConfigDict,
        ValidationError,
        ValidationInfo,
        field_validator,
        model_validator,
    )
    from pydantic_core import PydanticCustomError

if TYPE_CHECKING:
    from collections.abc import Container, Iterator

    from pydantic_core import ErrorDetails


LARGEST_FILE = 2**20
"""Size limit of a configuration file in bytes."""

MOST_SHOWN = 5
"""Limit of the wrong options that one message lists."""

_DAMAGED: tuple[type[Exception], ...] = (yaml.YAMLError, *UNREADABLE)

Config = TypeVar("Config", bound="Section")


class Section(BaseModel):
    """A group of options: immutable, unknown names refused, each option described by the text below it.

    Example:
        >>> from pydantic import Field
        >>> class Colours(Section):
        ...     shade: int = Field(default=3, ge=0, description="Darkness.")
        >>> print(to_yaml(Colours()), end="")
        # Darkness.
        shade: 3
    """

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        allow_inf_nan=False,
        coerce_numbers_to_str=True,
        use_attribute_docstrings=True,
    )

    @classmethod
    def __pydantic_init_subclass__(cls, **_: Any) -> None:
        for info in cls.model_fields.values():  # texts of several lines
            info.description = info.description and " ".join(info.description.split())

    @model_validator(mode="before")
    @classmethod
    def _refuse_unknown(cls, values: Any) -> Any:
        if values is None:  # a section whose options are all commented out
            return {}
        if isinstance(values, dict):
            unknown = [str(key) for key in values if key not in cls.model_fields]
            if unknown:
                found = {"unknown": unknown, "known": list(cls.model_fields)}
                raise PydanticCustomError("unknown_key", "no such option", found)
        return values

    @field_validator("*", mode="before")
    @classmethod
    def _refuse_switches(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuse true and false for numbers, which pydantic takes for 1 and 0."""
        if isinstance(value, bool):
            kinds = _kinds(cls.model_fields[str(info.field_name)].annotation)
            if bool not in kinds and kinds & {int, float}:
                raise PydanticCustomError("switch", "should be a number")
        return value


def _kinds(annotation: Any) -> set[Any]:
    """Return the types that an annotation joins."""
    parts = get_args(annotation)
    return {annotation}.union(*map(_kinds, parts)) if parts else {annotation}


def load_config(config: Config | Mapping[str, Any] | str | os.PathLike[str], kind: type[Config]) -> Config:
    r"""Read a configuration from a YAML file, or check one that is given otherwise.

    Relative paths of data, and of a weights file that exists there, are resolved against the folder of the file, else
    against the working directory.

    Args:
        config: a YAML file, a dict of options, or a configuration, which is returned.
        kind: the class of the configuration, such as ``TrainConfig``.

    Raises:
        ConfigError: the file cannot be read, is not YAML, or sets a wrong option; the message gives its place, such as
            ``data.train[0].slices``, its value, and what would be right.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from evenslice import TrainConfig
        >>> file = Path(tempfile.mkdtemp()) / "train.yaml"
        >>> data = "data: {train: [{image: image.tif, labels: labels.tif}]}"
        >>> _ = file.write_text(f"{data}\ntraining: {{steps: 500}}")
        >>> load_config(file, TrainConfig).training.steps
        500
        >>> _ = file.write_text(f"{data}\ntraining: {{stepps: 500}}")
        >>> load_config(file, TrainConfig)  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ...
        evenslice.ConfigError: ...train.yaml: training.stepps: no such option; did you mean 'steps'? known: ...
    """
    if isinstance(config, kind):
        return config
    if isinstance(config, Mapping):
        return _checked(dict(config), kind, Path.cwd())
    if not isinstance(config, str | os.PathLike):
        raise ConfigError(
            f"a configuration of type {type(config).__name__}: give a YAML file, a dict of options, or a "
            f"{kind.__name__}"
        )
    path = local_path(config, ConfigError)
    values = _read_yaml(path)
    if not isinstance(values, dict):
        raise ConfigError(
            f"{path}: holds {_shown(values)} instead of options; write them as 'name: value', one per line"
        )
    return _checked(values, kind, path.absolute().parent, f"{path}: ")


def _checked(values: dict[str, Any], kind: type[Config], folder: Path, place: str = "") -> Config:
    try:
        return kind.model_validate(values, context={"folder": folder})
    except ValidationError as error:
        raise ConfigError(f"{place}{_describe(error, values)}") from error


def to_yaml(config: Section, *, commented: Container[str] = ()) -> str:
    """Return a configuration as YAML: every option, with its description as a comment; addresses lose their secrets.

    Args:
        config: the configuration.
        commented: dotted names of options that only a comment states, since their default follows from other options,
            which the reader may set.

    Example:
        >>> from pydantic import Field
        >>> class Augmentation(Section):
        ...     flips: bool = Field(default=True, description="Flip crops.")
        >>> print(to_yaml(Augmentation(flips=False)), end="")
        # Flip crops.
        flips: false
        >>> print(to_yaml(Augmentation(), commented={"flips"}), end="")
        # Flip crops.
        # flips: true
    """
    return "\n".join(_lines(config, config.model_dump(mode="json"), commented)) + "\n"


def _lines(
    section: Section, values: Mapping[str, Any], commented: Container[str], above: str = ""
) -> Iterator[str]:
    """Write the options of a section, each below its description; above are the names of the sections around it."""
    indent = "  " * above.count(".")
    for name, info in type(section).model_fields.items():
        for line in textwrap.wrap(info.description or "", 100 - len(indent)):
            yield f"{indent}# {line}"
        inner, value = getattr(section, name), values[name]
        if isinstance(inner, Section) and isinstance(value, dict):
            yield f"{indent}{name}:"
            yield from _lines(inner, value, commented, f"{above}{name}.")
        elif isinstance(inner, tuple) and any(isinstance(item, Section) for item in inner):
            yield f"{indent}{name}:"
            for item in inner:
                yield f"{indent}  - {_flow(item.model_dump(mode='json', exclude_defaults=True))}"
        else:
            mark = "# " if f"{above}{name}" in commented else ""
            yield f"{indent}{mark}{name}: {_flow(value)}"


def _flow(value: Any) -> str:
    """Write a value in one line of YAML."""
    value = without_secrets(value)
    text = yaml.safe_dump(value, default_flow_style=True, width=2**20, sort_keys=False, allow_unicode=True)
    return text.removesuffix("\n").removesuffix("\n...")


class _Loader(yaml.SafeLoader):
    """Loads plain values only, and refuses repeated names, of which YAML silently takes the last."""

    def compose_mapping_node(self, anchor: Any) -> Any:
        node = super().compose_mapping_node(anchor)
        names = Counter(key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode))
        for name in names:
            if names[name] > 1:
                problem = f"{name!r} appears twice in one section; keep one"
                raise yaml.constructor.ConstructorError(problem=problem, problem_mark=node.start_mark)
        return node


def _read_yaml(path: Path) -> Any:
    try:
        text = read_bounded(path, LARGEST_FILE)
    except OSError as error:
        cause = error.strerror or reason(error)
        raise ConfigError(f"{path}: cannot be read ({cause}); name a YAML configuration file") from error
    try:
        return yaml.load(text, _Loader)  # noqa: S506  # a SafeLoader
    except _DAMAGED as error:
        # The libraries name no file, which the message begins with.
        cause = " ".join(str(error).replace('in "<byte string>", ', "at ").split())[:200]
        raise ConfigError(f"{path}: is not valid YAML ({cause}); write options as 'name: value'") from error


def _describe(error: ValidationError, values: Any) -> str:
    """Describe the first few of the errors that pydantic found: where, what, and what would be right."""
    found: dict[str, tuple[ErrorDetails, str]] = {}
    for fault in error.errors(include_url=False):
        place = _place(fault, values)
        if fault["type"] == "unknown_key":
            for key in fault["ctx"]["unknown"]:
                found[f"{place}.{key}".removeprefix(".")] = fault, key
        else:
            found.setdefault(place, (fault, ""))
    for place, (fault, _) in list(found.items()):
        if fault["type"] == "too_short" and any(other.startswith(f"{place}[") for other in found):
            del found[place]  # pydantic leaves out the wrong ones, and then finds too few
    shown = [f"{place}: {_worded(*found[place])}".removeprefix(": ") for place in list(found)[:MOST_SHOWN]]
    more = len(found) - len(shown)
    return "; ".join(shown) + (f" (and {more} more)" if more else "")


# Pydantic names Python types; a configuration has lists and sections.
_REASONS = {
    "dict_type": "should be 'name: value' pairs",
    "missing": "has too few values",
    "model_type": "should be a section of options, 'name: value', one per line",
    "path_type": "should be a path",
    "too_long": "has too many values",
    "tuple_type": "should be a list",
}


def _worded(fault: ErrorDetails, key: str) -> str:
    """Describe an error at its place: what, and what would be right; the key is that of an unknown option."""
    kind = fault["type"]
    if kind == "unknown_key":
        return f"no such option; {did_you_mean(key, fault['ctx']['known'])}"
    if kind == "missing" and isinstance(fault["loc"][-1], str):
        return "is missing; give one"
    reason = fault["msg"].removeprefix("Value error, ").removeprefix("Input ")
    if not fault["loc"]:  # of options together, which the reason names
        return reason
    return f"{_shown(fault['input'])}: {_REASONS.get(kind, reason)}"


def _shown(value: Any) -> str:
    """Return what the user wrote, shortened: references can make a huge value out of a short YAML file."""
    short = reprlib.Repr()
    short.maxlevel = 2
    return short.repr(value)


def _place(fault: ErrorDetails, values: Any) -> str:
    """Return the path of an error as a user would write it; pydantic's continues into the parts of a type."""
    path = ""
    for key in fault["loc"]:
        if isinstance(values, list) and isinstance(key, int) and key < len(values):
            path, values = f"{path}[{key}]", values[key]
        elif (
            isinstance(values, dict)
            and isinstance(key, str)
            and (key in values or not path or fault["type"] == "missing")
        ):
            path, values = f"{path}.{key}", values.get(key)
        else:
            break
    return path.removeprefix(".")
