"""Networks: a specification and weights to a module, and what goes in and comes out of it."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
