"""Small tools without torch: EasyDict, construction by name, cached downloads, errors that speak to the user."""

from dnnlib import interrupts  # before what takes long

# isort: split
from dnnlib import util
from dnnlib.util import EasyDict, UserError, make_cache_dir_path

__all__ = ["EasyDict", "UserError", "interrupts", "make_cache_dir_path", "util"]
