"""Where the files lie that a snapshot speaks of. It carries their names only: paths are nobody's business but the run's.

They are found through the `training_options.json` beside the snapshot, which has absolute paths, then by name in the current
folder and beside the snapshot; what is found must hold what its fingerprint says.
"""

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePath
from typing import Any

from dnnlib.errors import UserError
from dnnlib.util import is_url
from training.checkpoints.state_file import OPTIONS_FILE
from training.data.shards import part_paths, set_exists, split_list
from training.dataset import ImageFolderDataset
from training.sources.label_distribution import LabelDistribution

CASCADE_FILE = "cascade.json"  # beside the snapshot of a whole cascade, which names that of its last stage
MAX_STAGES = 50


def travelling_name(path: str) -> str:
    """What a snapshot says of a path: the name of the zip, folder or file; of several zips all their names."""
    if is_url(path):
        return PurePath(path.split("?")[0]).name
    parts = [path] if os.path.lexists(path) else split_list(path) or [path]
    if any("/" in inside.split("}")[0] for part in parts for inside in part.split("{")[1:]):  # folders in braces
        parts = [str(part) for part in part_paths(path)]
    return ",".join(PurePath(part).name or PurePath(os.path.abspath(part)).name for part in parts)


def without_folders(described: Any) -> Any:
    """Plain data in which everything that is called `path` is a name."""
    if isinstance(described, Mapping):
        return {
            key: travelling_name(value) if key == "path" and isinstance(value, str) else without_folders(value)
            for key, value in described.items()
        }
    return [without_folders(one) for one in described] if isinstance(described, list | tuple) else described


def options_beside(snapshot: str | os.PathLike) -> dict[str, Any]:
    """The `training_options.json` of the run that a snapshot lies in, or that a cascade ended with; {} without one."""
    if is_url(os.fspath(snapshot)):
        return {}
    for place in dict.fromkeys([Path(snapshot), Path(os.path.realpath(snapshot))]):
        options = _read(place.parent / OPTIONS_FILE)
        if options:
            return options
        with contextlib.suppress(KeyError, IndexError, TypeError):
            last = _read(place.parent / CASCADE_FILE)["stages"][-1]["snapshot"]
            return _read((place.parent / last).parent / OPTIONS_FILE)
    return {}


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def by_name(name: str, snapshot: str | os.PathLike) -> Iterator[str]:
    """The current folder, then that of the snapshot."""
    yield name
    if not is_url(os.fspath(snapshot)):
        parts = [name] if len(split_list(name)) < 2 else split_list(name)
        yield ",".join(str(Path(snapshot).parent / part) for part in parts)


def source_places(name: str, snapshot: str | os.PathLike) -> list[str]:
    """Paths where the source images of a snapshot may lie, through the runs of all stages before."""
    places, here = [], os.fspath(snapshot)
    for _ in range(MAX_STAGES):
        source = options_beside(here).get("source")
        if not isinstance(source, dict) or not isinstance(path := source.get("path"), str):
            break
        if source.get("kind") != "network":
            places.append(path)
            break
        here = path
    return [*places, *by_name(travelling_name(name), snapshot)]


def exists(path: str) -> bool:
    try:
        return set_exists(path)
    except (UserError, OSError, ValueError):  # one that a file made up
        return False


def training_data(contents: dict[str, Any], snapshot: str | os.PathLike) -> str | None:
    """The path of what a snapshot was trained on, where that is found and still holds the same."""
    kwargs = contents.get("training_set_kwargs") or {}
    path, data = kwargs.get("path"), (contents.get("meta") or {}).get("data")
    fingerprint = data.get("fingerprint") if isinstance(data, dict) else None
    if not isinstance(path, str):
        return None
    beside = options_beside(snapshot).get("training_set_kwargs")
    known = beside.get("path") if isinstance(beside, dict) else None
    places = [known] if isinstance(known, str) else []
    if fingerprint is None:  # an older snapshot, which carries its path
        places = [path, *(place for place in places if travelling_name(place) == travelling_name(path))]
        return next((place for place in places if exists(place)), None)
    for place in [*places, path, *by_name(travelling_name(path), snapshot)]:
        if exists(place) and _fingerprint({**kwargs, "path": place}) == fingerprint:
            return place
    return None


def _fingerprint(kwargs: dict[str, Any]) -> str | None:
    try:
        return _dataset(kwargs).fingerprint
    except (UserError, TypeError):
        return None


def _dataset(kwargs: dict[str, Any]) -> ImageFolderDataset:
    return ImageFolderDataset(**{name: value for name, value in kwargs.items() if name != "class_name"})


def labels_of(contents: dict[str, Any], snapshot: str | os.PathLike) -> tuple[LabelDistribution | None, str | None]:
    """What labels of a snapshot's generator are drawn from, and a note where nobody knows: classes are drawn evenly then.

    None for a generator without labels, and with a prior, which draws its conditions itself.
    """
    c_dim = contents["G_ema"].c_dim
    if c_dim == 0 or contents.get("prior") is not None:
        return None, None
    if contents.get("labels") is not None:
        return contents["labels"], None
    path = training_data(contents, snapshot)
    if path is not None:
        with contextlib.suppress(UserError, TypeError):
            found = LabelDistribution.of(
                _dataset({**contents["training_set_kwargs"], "path": path, "use_labels": True})
            )
            if found is not None and found.c_dim == c_dim:
                return found, None
    return None, (
        "it does not carry how often its labels occurred (an older version or other code wrote it), and what it was "
        f"trained on is not found: its {c_dim} classes are drawn evenly, which gives other numbers where they were not even"
    )


def locate_weights(prior: Any, snapshot: str | os.PathLike) -> None:
    """Have a prior know where the file of its detector's weights lies, through the run of its snapshot."""
    described = options_beside(snapshot).get("prior")
    path = described.get("weights") if isinstance(described, dict) else None
    if prior.weights is not None and isinstance(path, str) and os.path.isfile(path):
        prior.weights = path
