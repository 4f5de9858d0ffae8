"""Quality metrics, and the signed inception distance that finds friendly neighbours."""

from typing import Any

FROM = {
    "compute": "metrics.computing",
    "detector_of_function": "metrics.own_detectors",
    "register_metric": "metrics.metric_main",
}


def __getattr__(name: str) -> Any:
    """What users call, imported when it is asked for: names of settings must come without torch."""
    if name not in FROM:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(FROM[name]), name)
