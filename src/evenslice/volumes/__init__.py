"""Volumes: files opened as lazy arrays (z, y, x), their slice windows, and arrays written to files."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
