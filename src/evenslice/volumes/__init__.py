"""Volumes: any file as a lazy array (z, y, x), its slice windows, and any array to a file."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
