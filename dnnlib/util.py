"""The names that StyleGAN users import from here: EasyDict, construction by name, downloads, the log, times."""

import importlib
import importlib.util
import inspect
import sys
from types import ModuleType
from typing import Any

from dnnlib.downloads import is_url, make_cache_dir_path, open_url
from dnnlib.errors import UserError
from dnnlib.logger import Logger

__all__ = [
    "EasyDict",
    "Logger",
    "UserError",
    "call_func_by_name",
    "construct_class_by_name",
    "format_time",
    "get_obj_by_name",
    "is_url",
    "make_cache_dir_path",
    "open_url",
]


class EasyDict(dict):
    """A dict whose items are also attributes. A missing attribute is an AttributeError, as for any object."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"{type(self).__name__} has no item {name!r}") from None

    def __setattr__(self, name: str, value: Any) -> None:
        self[name] = value

    def __delattr__(self, name: str) -> None:
        try:
            del self[name]
        except KeyError:
            raise AttributeError(f"{type(self).__name__} has no item {name!r}") from None


def construct_class_by_name(*args: Any, class_name: str, **kwargs: Any) -> Any:
    """An instance of the class `class_name` ('torch.optim.Adam', 'mynet.Net'); see `get_obj_by_name`."""
    cls = get_obj_by_name(class_name)
    if not inspect.isclass(cls):
        raise UserError(f"{class_name!r} is not a class")
    return cls(*args, **kwargs)


def call_func_by_name(*args: Any, func_name: str, **kwargs: Any) -> Any:
    """Call the function or class `func_name`; see `get_obj_by_name`."""
    function = get_obj_by_name(func_name)
    if not callable(function):
        raise UserError(f"{func_name!r} is a {type(function).__name__}, which cannot be called")
    return function(*args, **kwargs)


def get_obj_by_name(name: str) -> Any:
    """What a program calls 'package.module.Class': the module is imported, the rest are attributes.

    For names that a program itself writes, of any package. A name out of a file chooses code, and nothing in this
    project hands one to this function: what files may name is decided by `torch_utils.persistence.find_class`. Raises
    `UserError` (a ValueError) naming what is not there; errors inside of a module come through.
    """
    parts = name.split(".") if isinstance(name, str) else []
    if len(parts) < 2 or not all(part.isidentifier() for part in parts):
        raise UserError(f"{name!r} is no name of the form package.module.Class")
    obj: Any = _imported(parts[0])
    for count, part in enumerate(parts[1:], start=2):
        submodule = _imported(".".join(parts[:count])) if inspect.ismodule(obj) and not hasattr(obj, part) else None
        obj = getattr(obj, part, None) if submodule is None else submodule
        if obj is None:
            raise UserError(f"{name!r}: there is no {'.'.join(parts[:count])}")
    return obj


def _imported(name: str) -> ModuleType | None:
    """The module `name`, None where there is none. An error inside of it comes through: a bug, not a bad name."""
    if name not in sys.modules:
        parent = sys.modules.get(name.rpartition(".")[0])
        if parent is not None and not hasattr(parent, "__path__"):
            return None
        if importlib.util.find_spec(name) is None:
            return None
    return importlib.import_module(name)


def format_time(seconds: float) -> str:
    """A duration for people: '5.0s', '3m 04s', '2h 03m 04s', '1d 02h 03m'."""
    if round(seconds, 1) < 60:
        return f"{seconds:.1f}s"
    minutes, secs = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days}d {hours:02d}h {minutes:02d}m"
    return f"{hours}h {minutes:02d}m {secs:02d}s" if hours else f"{minutes}m {secs:02d}s"
