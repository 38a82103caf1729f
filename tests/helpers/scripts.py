"""Loads the scripts of the project, which are no modules of the package."""

import importlib.util
import sys
from contextlib import contextmanager
from pathlib import Path

STUDIES = Path(__file__).parents[2] / "studies"


@contextmanager
def script(name):
    """Yield a script of ``studies`` as a module; what it imports from beside it is found as when it runs."""
    specification = importlib.util.spec_from_file_location(name, STUDIES / f"{name}.py")
    module = importlib.util.module_from_spec(specification)
    known = set(sys.modules)
    sys.path.insert(0, str(STUDIES))
    sys.modules[name] = module
    try:
        specification.loader.exec_module(module)
        yield module
    finally:
        sys.path.remove(str(STUDIES))
        for other in {name, *(path.stem for path in STUDIES.glob("*.py"))} - known:
            sys.modules.pop(other, None)
