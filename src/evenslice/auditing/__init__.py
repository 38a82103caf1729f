"""Auditing: attribution over the windows of volumes until the bias of a network is known."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
