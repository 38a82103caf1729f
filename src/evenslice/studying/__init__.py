"""Studies: arms x architectures x data sets x folds x seeds, each trained, tested and audited."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
