"""Find and remove the colour bias that RGB-pretrained networks carry into stacks of grayscale slices.

    record = evenslice.neutralize(model, slices=5)
    volume = evenslice.open_volume("brain.nii.gz")
    audit = evenslice.audit(model, volume)

Importing the package imports nothing heavy: a public name brings its module, and with it PyTorch, on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from evenslice.auditing import audit
    from evenslice.checkpoints import load_network, save_network
    from evenslice.errors import (
        ConfigError,
        EvensliceError,
        MissingExtraError,
        ModelError,
        OutputError,
        VolumeError,
    )
    from evenslice.monitoring import AsymmetryMonitor
    from evenslice.neutralizing import Record, neutralize, record_of, untie
    from evenslice.onnx_files import load_onnx
    from evenslice.results import Audit, load_audits
    from evenslice.segmenting import segment
    from evenslice.studying import study
    from evenslice.surveying import survey
    from evenslice.surveys import Survey
    from evenslice.training import train
    from evenslice.volumes import Volume, open_volume
    from evenslice.windows import Scaling

__all__ = [
    "AsymmetryMonitor",
    "Audit",
    "ConfigError",
    "EvensliceError",
    "MissingExtraError",
    "ModelError",
    "OutputError",
    "Record",
    "Scaling",
    "Survey",
    "Volume",
    "VolumeError",
    "audit",
    "load_audits",
    "load_network",
    "load_onnx",
    "neutralize",
    "open_volume",
    "record_of",
    "save_network",
    "segment",
    "study",
    "survey",
    "train",
    "untie",
]

_HOMES = {
    "AsymmetryMonitor": "monitoring",
    "Audit": "results",
    "Record": "neutralizing",
    "Scaling": "windows",
    "Survey": "surveys",
    "Volume": "volumes",
    "audit": "auditing",
    "load_audits": "results",
    "load_network": "checkpoints",
    "load_onnx": "onnx_files",
    "neutralize": "neutralizing",
    "open_volume": "volumes",
    "record_of": "neutralizing",
    "save_network": "checkpoints",
    "segment": "segmenting",
    "study": "studying",
    "survey": "surveying",
    "train": "training",
    "untie": "neutralizing",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("evenslice")
    if name in __all__:
        return getattr(import_module(f"evenslice.{_HOMES.get(name, 'errors')}"), name)
    raise AttributeError(f"module 'evenslice' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *__all__]
