"""The plugin for napari: audit a network on the open volume, and segment it, without leaving the viewer."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
