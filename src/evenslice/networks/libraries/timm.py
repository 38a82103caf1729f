"""Networks of timm: ``timm:NAME``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from evenslice._core import ModelError, did_you_mean
from evenslice.networks.libraries.library import Library

if TYPE_CHECKING:
    from evenslice.networks.libraries.library import Built
    from evenslice.networks.specification import Specification

__all__ = ["TIMM", "check_timm"]


def _build(specification: Specification, pretrained: bool) -> Built:
    import timm

    check_timm(specification, specification.name, pretrained)
    classes: dict[str, Any] = {} if specification.classes is None else {"num_classes": specification.classes}
    model: Any = timm.create_model(
        specification.name,
        pretrained=pretrained,
        in_chans=specification.inputs,
        **classes,
        **specification.arguments,
    )
    config = model.pretrained_cfg
    if specification.classes in (None, config.get("num_classes")):
        return model, ()
    classifiers = config.get("classifier") or ()
    classifiers = (classifiers,) if isinstance(classifiers, str) else classifiers
    return model, tuple(dict.fromkeys(name.partition(".")[0] for name in classifiers))


def check_timm(specification: Specification, name: str, pretrained: bool) -> None:
    """Refuse a name that timm does not know, or of which it has no pretrained weights where they are asked for."""
    import timm

    architecture, _, _ = name.partition(".")
    if not timm.is_model(architecture):
        raise ModelError(
            f"{specification.text}: timm has no network {architecture!r}; "
            f"{did_you_mean(architecture, timm.list_models())}"
        )
    if pretrained and not timm.models.is_model_pretrained(name):
        raise ModelError(
            f"{specification.text}: timm has no pretrained weights for {name}; give a weights file, or none"
        )


TIMM = Library(
    package="timm",
    extra="models",
    build=_build,
    reserved=frozenset({"in_chans", "num_classes", "pretrained"}),
)
