"""The page of train.py's options, from their declarations.

python -m tools.options_page    # writes docs/options.md
"""

from pathlib import Path

from training.config.flags import Flag, OnResume, PathKind, flag_name
from training.config.options import DEFAULTS, FLAGS

PAGE = Path(__file__).resolve().parent.parent / "docs" / "options.md"
INTRODUCTION = """# The options of train.py

Written by `python -m tools.options_page` from `training/config/options.py`; do not edit. The last column is what `--resume`
of a run says to another value. Flags of the official `train.py` keep names and meanings ([what was tried](compatibility.md)).

| flag | meaning | default | in a run that is continued |
| --- | --- | --- | --- |
"""


def main() -> None:
    PAGE.write_text(page(), encoding="utf-8")


def page() -> str:
    """The whole page, Markdown."""
    return INTRODUCTION + "".join(row(name, flag) for name, flag in FLAGS.items())


def row(name: str, flag: Flag) -> str:
    """A line of the table."""
    values = f"={'|'.join(flag.choices)}" if flag.choices else ""
    meaning = f"{flag.help}; {flag.more}" if flag.more else flag.help
    cells = [f"`{flag_name(name)}{values}`", meaning, default_of(name, flag), resumed(flag)]
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |\n"


def resumed(flag: Flag) -> str:
    """What resuming says to another value."""
    is_checked = flag.path is PathKind.SET and flag.on_resume is OnResume.FREE and not flag.note
    return "its place may change, what it holds must agree" if is_checked else flag.on_resume.value


def default_of(name: str, flag: Flag) -> str:
    """The default as people read it."""
    if flag.unset is not None:
        return flag.unset
    value = flag.text or DEFAULTS[name]
    return "" if value is None or value == () else str(int(value) if isinstance(value, bool) else value)


if __name__ == "__main__":
    main()
