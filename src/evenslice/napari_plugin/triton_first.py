"""Loading Triton, which comes with PyTorch on Linux, into a process that draws with Mesa.

Both bring an LLVM of their own. Triton's would use the symbols of Mesa's, which is there first in a viewer, and crash the
process as soon as torchvision imports it (tensorflow/tensorflow issue 124205 describes the like).
"""

from __future__ import annotations

import os
import sys
from importlib.util import find_spec

__all__ = ["load_triton"]


def load_triton() -> None:
    """Load Triton, if it is installed, so that it uses its own symbols."""
    if not hasattr(os, "RTLD_DEEPBIND") or "triton" in sys.modules or find_spec("triton") is None:
        return
    before = sys.getdlopenflags()
    sys.setdlopenflags(os.RTLD_NOW | os.RTLD_DEEPBIND)
    try:
        import triton._C.libtriton  # type: ignore[import-untyped,import-not-found,unused-ignore] # noqa: F401
    finally:
        sys.setdlopenflags(before)
