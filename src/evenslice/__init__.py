"""Find and remove the colour bias that RGB-pretrained networks carry into stacks of grayscale slices.

    record = evenslice.neutralize(model, slices=5)
    volume = evenslice.open_volume("brain.nii.gz")
    audit = evenslice.audit(model, volume)

Importing the package imports nothing heavy: a public name brings its module, and with it PyTorch, on first use.
"""

from typing import Any

import lazy_loader

_attached, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("evenslice")
    if name in __all__:
        return _attached(name)
    raise AttributeError(f"module 'evenslice' has no attribute {name!r}")
