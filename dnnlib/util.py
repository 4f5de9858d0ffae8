"""The names that StyleGAN users import from here: EasyDict, construction by name, downloads, the log, times."""

import importlib
import importlib.util
import inspect
import os
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
    "format_time_brief",
    "get_obj_by_name",
    "is_url",
    "make_cache_dir_path",
    "open_url",
    "set_cache_dir",
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


def format_time_brief(seconds: float) -> str:
    """Official name: the two largest units of a duration: '5s', '3m 04s', '2h 03m', '1d 02h'."""
    total = round(seconds)
    if total < 60:
        return f"{total}s"
    for large, small, unit in (("m", "s", 60), ("h", "m", 3600), ("d", "h", 86400)):
        if total < unit * (60 if unit < 3600 else 24) or large == "d":
            return f"{total // unit}{large} {total % unit // {'m': 1, 'h': 60, 'd': 3600}[large]:02d}{small}"
    raise AssertionError


def set_cache_dir(path: str) -> None:
    """Official name: like DNNLIB_CACHE_DIR, for this process and those that it starts."""
    os.environ["DNNLIB_CACHE_DIR"] = path


INSTEAD = {
    "ask_yes_no": "click.confirm",
    "tuple_product": "math.prod",
    "get_dtype_and_ctype": "numpy.dtype, numpy.ctypeslib.as_ctypes_type",
    "is_pickleable": "pickle.dumps in a try",
    "get_module_from_obj_name": "get_obj_by_name",
    "get_obj_from_module": "get_obj_by_name",
    "get_module_dir_by_obj_name": "get_obj_by_name and inspect.getfile",
    "is_top_level_function": "inspect.isfunction",
    "get_top_level_function_name": "function.__module__ and function.__qualname__",
    "list_dir_recursively_with_ignore": "pathlib.Path.rglob",
    "copy_files_and_create_dirs": "shutil.copytree",
}


def __getattr__(name: str) -> Any:
    """Official names that are refused, each with what to use."""
    if name in INSTEAD:
        raise AttributeError(f"dnnlib.util.{name} is not part of this project; use {INSTEAD[name]}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
