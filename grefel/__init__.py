"""Facial expression learning that stays reliable on imbalanced, ambiguous and mislabelled data.

The names in `__init__.pyi` are loaded when they are first used, so `import grefel` costs nothing.
"""
__version__ = "0.2.0"

import lazy_loader as _lazy

from . import _moved

__getattr__, __dir__, __all__ = _lazy.attach_stub(__name__, __file__)
_moved.install()
