"""The recipe of a cascade: a YAML file that names stages, read as data and checked before anything else happens.

    defaults: {cfg: stylegan2, batch: 32}       # for all stages
    stages:
      - {name: objects, data: tinyimagenet.zip, kimg: 200}                           # from noise
      - {name: photos, source: objects, data: cifar10.zip, kimg: 100, resume: objects}
    table: [fid5k_full, csid5k_full]            # what the stages are judged by

Keys of stages are flags of train.py. `source` and `resume` may name an earlier stage; paths are relative to the file.
"""

import difflib
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from dnnlib.errors import UserError
from dnnlib.util import is_url
from metrics import metric_main
from training.config.flags import PathKind
from training.config.options import DEFAULTS, FED, FED_BY_NETWORK, FLAGS, names_where
from training.data.shards import set_exists, split_list

MAX_BYTES = 1 << 20
TOP_KEYS = ("defaults", "stages", "table")
TABLE = ("fid5k_full", "csid5k_full")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,59}")
TAKEN_NAMES = frozenset({"auto", "noise", "latest", "none"})  # they mean something as a source or in --resume
NOT_OF_A_STAGE = names_where(lambda flag: not flag.is_of_stage)  # the cascade decides
PATHS = names_where(lambda flag: flag.path is not None)
SETS = names_where(lambda flag: flag.path is PathKind.SET)
LISTS = SETS | {name for name, default in DEFAULTS.items() if isinstance(default, tuple)}
# As defaults, these pass over stages that start from noise, and those over stages that are fed by no other.
NEEDS_SOURCE = names_where(lambda flag: flag.needs is not None and flag.needs.text == FED.text)
NEEDS_NETWORK = names_where(lambda flag: flag.needs is FED_BY_NETWORK)


@dataclass(frozen=True)
class Stage:
    """One training run of a cascade."""

    name: str
    settings: Mapping[str, str]
    """What the recipe sets, by the names of `TrainingOptions`, as text for the command line; without stages' names."""
    source: str | None
    """The earlier stage whose images it is fed, if any."""
    resume: str | None
    """The earlier stage whose weights it starts from, if any."""

    def arguments(self, more: Mapping[str, str]) -> list[str]:
        """The command line of the stage. more: settings that win over its own."""
        return [f"--{name.replace('_', '-')}={value}" for name, value in {**self.settings, **more}.items()]


@dataclass(frozen=True)
class Recipe:
    path: Path
    stages: tuple[Stage, ...]
    table: tuple[str, ...]
    """Metrics that every stage is judged by at its end."""

    def lineage(self) -> list[Stage]:
        """The stages that an image of the last one has passed through, first stage first."""
        by_name = {stage.name: stage for stage in self.stages}
        line = [self.stages[-1]]
        while line[0].source is not None:
            line.insert(0, by_name[line[0].source])
        return line


def read_recipe(path: str | os.PathLike) -> Recipe:
    """Raises `UserError`, one line that names the file, the stage and the key."""
    path = Path(path)
    try:
        return parse_recipe(load_yaml(path), path)
    except UserError as error:
        raise UserError(f"--cascade={path}: {error}") from error


# The file


class RecipeLoader(yaml.SafeLoader):
    """Safe YAML without aliases, which can stand for more than any memory holds, and without keys that are given twice."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark
            raise yaml.composer.ComposerError(
                None,
                None,
                "anchors and aliases (&, *) are not taken; what stages have in common goes into defaults",
                mark,
            )
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = (key_node.tag, str(key_node.value))
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"{key_node.value} is given twice", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


def load_yaml(path: Path) -> Any:
    if not path.is_file():
        raise UserError("no such file; give a recipe in YAML" if not path.exists() else "is no file")
    if path.stat().st_size > MAX_BYTES:
        raise UserError("is larger than 1 MB, and no recipe")
    try:
        return yaml.load(path.read_bytes(), Loader=RecipeLoader)
    except yaml.MarkedYAMLError as error:
        where = "" if error.problem_mark is None else f"line {error.problem_mark.line + 1}: "
        raise UserError(f"{where}is no YAML that a recipe can be: {error.problem}") from error
    except (yaml.YAMLError, ValueError, ArithmeticError, RecursionError) as error:
        reason = getattr(error, "reason", None) or str(error).split("\n")[0] or type(error).__name__
        raise UserError(f"is no YAML that a recipe can be: {reason}") from error


# Its contents


def parse_recipe(contents: Any, path: Path) -> Recipe:
    """What the YAML file says, checked as far as it can be without looking at data."""
    if contents is None:
        raise UserError("is empty; a recipe has stages")
    if not isinstance(contents, dict):
        raise UserError(f"a recipe is a mapping with {' and '.join(TOP_KEYS[:2])}, not {kind_of(contents)}")
    check_keys(contents, TOP_KEYS, "")
    entries = contents.get("stages")
    if not isinstance(entries, list) or not entries:
        raise UserError(f"stages must be a list of at least one stage, not {kind_of(entries)}")
    defaults = mapping(contents.get("defaults") or {}, "defaults")
    check_keys(defaults, option_names(), "defaults: ")
    entries = [mapping(entry, f"stage {number}") for number, entry in enumerate(entries, 1)]
    names = [stage_name(entry, number) for number, entry in enumerate(entries, 1)]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"two stages are named {name}")
    for name, entry in zip(names, entries, strict=True):
        check_keys(entry, ("name", *option_names()), f"stage {name}: ")
    settings = [
        texts(defaults, "defaults") | texts({k: v for k, v in entry.items() if k != "name"}, f"stage {name}")
        for name, entry in zip(names, entries, strict=True)
    ]
    check_references(names, settings, path.parent)
    stages = [
        build_stage(name, options, {str(key).replace("-", "_") for key in entry}, names, path.parent)
        for name, options, entry in zip(names, settings, entries, strict=True)
    ]
    return Recipe(path, tuple(stages), table_metrics(contents.get("table", list(TABLE))))


def option_names() -> list[str]:
    return [name for name in FLAGS if name not in NOT_OF_A_STAGE]


def mapping(value: Any, where: str) -> dict:
    if not isinstance(value, dict):
        raise UserError(f"{where}: must be keys with values, such as cfg: stylegan2, not {kind_of(value)}")
    return value


def kind_of(value: Any) -> str:
    if value is None:
        return "nothing"
    return {dict: "a mapping", list: "a list", str: "a text", bool: "true or false"}.get(
        type(value), "a number or date"
    )


def check_keys(given: Mapping[Any, Any], known: Iterable[str], where: str) -> None:
    """Each key is known, and no option is there in both spellings. Raises `UserError` that suggests the nearest."""
    shown = [name.replace("_", "-") for name in known]
    seen: set[str] = set()
    for key in given:
        name = str(key).replace("_", "-")
        if name not in shown:
            near = difflib.get_close_matches(name, shown, n=1)
            hint = f" (did you mean {near[0]}?)" if near else ""
            what = "a flag of train.py" if len(shown) > len(TOP_KEYS) else f"one of {', '.join(TOP_KEYS)}"
            if name in NOT_OF_A_STAGE:
                hint = "; the cascade names its folders itself, --outdir on the command line says where"
                what = "of a stage"
            raise UserError(f"{where}{str(key)[:60]} is not {what}{hint}")
        if name in seen:
            raise UserError(f"{where}{name} is given twice, with - and with _")
        seen.add(name)


def stage_name(entry: Mapping[str, Any], number: int) -> str:
    name = entry.get("name")
    if name is None:
        raise UserError(f"stage {number} has no name; add name: …")
    if not isinstance(name, str) or not NAME.fullmatch(name) or name in TAKEN_NAMES:
        raise UserError(
            f"stage {number}: name must be a word of at most 60 letters, digits, '.', '_' and '-', in quotes if it is a "
            f"number, and none of {', '.join(sorted(TAKEN_NAMES))}; not {str(name)[:60]!r}"
        )
    return name


def texts(options: Mapping[str, Any], where: str) -> dict[str, str]:
    """Values as the command line would have them, by the names of `TrainingOptions`."""
    named = {str(key).replace("-", "_"): value for key, value in options.items()}
    return {name: text_of(value, name in LISTS, f"{where}: {name.replace('_', '-')}") for name, value in named.items()}


def text_of(value: Any, may_be_list: bool, where: str) -> str:
    if isinstance(value, list) and may_be_list and value and all(isinstance(part, str) for part in value):
        return ",".join(value)
    if isinstance(value, bool):
        return "1" if value else "0"
    if isinstance(value, int | float | str) and "\0" not in str(value):
        return str(value)
    raise UserError(f"{where} must be a single value{' or a list of names' * may_be_list}, not {kind_of(value)}")


def table_metrics(value: Any) -> tuple[str, ...]:
    text = text_of(value, True, "table") if value not in (None, []) else "none"
    names = tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
    names = () if names == ("none",) else names
    for name in names:
        try:
            metric_main.find_metric(name)
        except UserError as error:
            raise error.moved("--metrics", "table") from error
    return names


# Which stage feeds which


def check_references(names: list[str], settings: list[dict[str, str]], folder: Path) -> None:
    """`source` and `resume` name earlier stages, or something that is there. Raises `UserError`."""
    for index, (name, options) in enumerate(zip(names, settings, strict=True)):
        for key in ("source", "resume"):
            value = options.get(key)
            if value is None or value in names[:index]:
                if value is not None and os.path.lexists(folder / value):
                    raise UserError(
                        f"stage {name}: {key}: {value} is a stage and a file; write ./{value} for the file, or rename the stage"
                    )
                if value is not None and key == "source":
                    check_feeding(name, value, settings[names.index(value)])
            elif value in names:
                raise UserError(f"stage {name}: {key}: {order_problem(name, value, names, settings)}")
            elif value not in TAKEN_NAMES and not is_url(value) and not set_exists(located(value, folder, key in SETS)):
                near = difflib.get_close_matches(value, names[:index], n=1)
                hint = f" (did you mean {near[0]}?)" if near else ""
                raise UserError(f"stage {name}: {key}: {value} is neither an earlier stage nor a file{hint}")


def check_feeding(name: str, feeding: str, options: dict[str, str]) -> None:
    """A stage that needs labels or features for its images cannot feed another. Raises `UserError`."""
    is_matched = "source" in options and options.get("source_match", "random") != "random"
    for key in ["source_match"] * is_matched + ["prior"] * ("prior" in options):
        raise UserError(
            f"stage {name}: source: {feeding} has {key}: {options[key]}, and would be asked for images without saying of what; "
            f"leave {key} out of it"
        )


def order_problem(name: str, value: str, names: list[str], settings: list[dict[str, str]]) -> str:
    """Why a stage cannot name itself or a later one: a circle, or only the order."""
    feeds = {
        one: [options.get(key) for key in ("source", "resume")] for one, options in zip(names, settings, strict=True)
    }
    trail, seen = [(value, [name, value])], set()
    while trail:
        here, way = trail.pop()
        if here == name:
            return f"the stages feed each other in a circle: {' <- '.join(way)}"
        if here not in seen:
            seen.add(here)
            trail += [(before, [*way, before]) for before in feeds[here] if before in feeds]
    return f"{value} comes later; move it before {name}"


def build_stage(name: str, options: dict[str, str], own: set[str], names: list[str], folder: Path) -> Stage:
    """The stage with its paths, and without the names of other stages. own: options that are not from the defaults."""
    source = options.pop("source") if options.get("source") in names else None
    resume = options.pop("resume") if options.get("resume") in names else None
    if resume is None and (options.get("resume") == "latest"):
        raise UserError(f"stage {name}: resume: latest is not needed: the cascade goes on where it stopped")
    if source is not None and "data" not in options:
        raise UserError(f"stage {name}: data is missing: what the stage shall make from the images of {source}")
    has_source = source is not None or ("data" in options and options.get("source", "noise") != "noise")
    passed_over = (frozenset() if has_source else NEEDS_SOURCE) | (NEEDS_NETWORK if source is None else frozenset())
    for key in passed_over - own:
        options.pop(key, None)
    for key in PATHS & set(options):
        if options[key] in FLAGS[key].words:
            continue
        options[key] = located(options[key], folder, key in SETS)
    if "resume" in options and Path(options["resume"]).is_dir():
        raise UserError(
            f"stage {name}: resume: {options['resume']} is a folder; give a stage or a network-snapshot-….pkl"
        )
    return Stage(name, options, source, resume)


def located(value: str, folder: Path, is_set: bool) -> str:
    """A path, or several with commas between them, as seen from here instead of from the recipe's folder."""
    if is_url(value) or value in TAKEN_NAMES:
        return value
    parts = [value] if not is_set or os.path.lexists(folder / value) else split_list(value)
    here = (part if is_url(part) or part == "noise" else os.path.normpath(folder / part) for part in parts)
    return ",".join(here)
