"""The official name of the module that compiles kernels. Kernels here build themselves: see `torch_utils.ops.dispatch`."""

from typing import Any

from dnnlib.errors import UserError

verbosity = "brief"  # programs set it to silence the compiler; kernels here say a line when they build, whatever it is


def get_plugin(module_name: str, sources: Any, headers: Any = None, source_dir: Any = None, **build_kwargs: Any) -> Any:
    """The official name of the compiler of kernels; raises `UserError`."""
    raise UserError(
        f"custom_ops.get_plugin({module_name!r}): kernels of others are not compiled here; use the ops of torch_utils.ops, or "
        "torch.utils.cpp_extension.load for your own"
    )
