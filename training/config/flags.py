"""How a flag is declared: everything about it, beside the field of the options that it fills. No torch is imported here."""

import dataclasses
import enum
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from dnnlib.errors import UserError
from training.config.presets import Preset


class OnResume(enum.Enum):
    """What another value does to a run that is continued; the value says so in docs/options.md."""

    FREE = "may change"
    ROUNDS = "may change: equal up to rounding, not to the bit"
    TUNES = "may change, and is noted"
    FIXED = "must agree"


class PathKind(enum.Enum):
    """What lies at a path."""

    SET = "image set"  # or several with commas between them, or a snapshot
    FILE = "file"  # a network or weights, here or at an address
    FOLDER = "folder"


@dataclass(frozen=True)
class Need:
    """What must be so for a flag to mean anything."""

    holds: Callable[[Any], bool]  # of `TrainingOptions`
    text: str  # "needs --aug=fixed"


@dataclass(frozen=True)
class Flag:
    """What is known of a flag beside its type and default."""

    help: str
    on_resume: OnResume
    metavar: str | None = None
    unset: str | None = None
    """What stands for no value in `--help`: `32; that of --cfg`."""
    choices: tuple[str, ...] = ()
    parse: Callable[[str], Any] | None = None
    """From the text of the command line, where that is no plain number, text or choice. Raises `UserError`."""
    text: str | None = None
    """The default as text, with `parse`; without it there is no text to show."""
    least: float | None = None
    above: float | None = None
    most: float | None = None
    pattern: tuple[str, str] | None = None
    """Regular expression of a text, and the rule in words."""
    path: PathKind | None = None
    words: tuple[str, ...] = ()
    """Values of a path flag that are no paths."""
    needs: Need | None = None
    suits: Callable[[Preset], bool] | None = None
    """Which configurations have something for it."""
    more: str = ""
    """What docs/options.md says beyond `help`."""
    note: str = ""
    """What another value changes in a run that is continued, beside its networks."""
    is_of_stage: bool = True
    """Whether a recipe may say it of a stage."""
    is_beside_cascade: bool = False
    """Whether it says where and how to compute, and may stand beside --cascade for all stages."""


def option(default: Any, help: str, on_resume: OnResume, **known: Any) -> Any:
    """A field of `TrainingOptions`. known: the other fields of its `Flag`."""
    return dataclasses.field(default=default, metadata={"flag": Flag(help, on_resume, **known)})


def auto_int(text: str) -> int | None:
    """An integer, or `auto` for None."""
    try:
        return None if text == "auto" else int(text)
    except ValueError:
        raise UserError(f"{text!r} is neither a number nor auto") from None


def names(text: str) -> tuple[str, ...]:
    """Words with commas between them, each once; `none` for none."""
    words = tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
    return () if words == ("none",) else words


def sorted_names(text: str) -> tuple[str, ...]:
    """So that `prior,target` is `target,prior` to a run that is continued."""
    return tuple(sorted(names(text)))


def sets(text: str) -> tuple[str, ...]:
    """Paths with commas between them, braces written out, each once."""
    from training.data.shards import split_list

    return tuple(dict.fromkeys(split_list(text)))


def resumed(text: str) -> str | None:
    """A published network's address for its name, None for `noresume`."""
    from training.config.ada import resume_address

    return resume_address(text)


FREE, ROUNDS, TUNES, FIXED = OnResume


def problem_with(value: Any, flag: Flag) -> str | None:
    """What is wrong with a value by itself, as a sentence that goes on after the flag; None if nothing is."""
    if value is None:
        return None
    if flag.choices and value not in flag.choices:
        return f": choose from {', '.join(flag.choices)}"
    if flag.path is not None and value == "":
        return " is empty; give a path"
    if flag.pattern is not None and not re.fullmatch(flag.pattern[0], value):
        return f" {flag.pattern[1]}"
    if isinstance(value, int | float) and not math.isfinite(value):
        return " must be a finite number"
    is_low = (flag.least is not None and value < flag.least) or (flag.above is not None and value <= flag.above)
    is_high = flag.most is not None and value > flag.most
    return f" must {range_of(flag)}" if is_low or is_high else None


def range_of(flag: Flag) -> str:
    """The range of a number: `be at least 1`."""
    if flag.least is not None and flag.most is not None:
        return f"be from {flag.least:,} to {flag.most:,}"
    if flag.least is not None:
        return f"be at least {flag.least:,}" if flag.least else "not be negative"
    return "be positive"


def flag_name(name: str) -> str:
    return f"--{name.replace('_', '-')}"
