"""What every script does around its click command: one-line errors, exit code 2 for what the user can mend."""

import io
import math
import sys
import warnings
from collections.abc import Callable
from typing import Any

import click

from dnnlib import interrupts
from dnnlib.errors import UserError


class ImageSets(click.ParamType):
    """The type of an option that takes images: one path, or several with commas between them or with braces."""

    name = "text"

    def convert(self, value: str, param: click.Parameter | None, context: click.Context | None) -> str:
        if value == "" and param is not None:  # which would be the current folder
            raise UserError(f"{param.opts[0]}= is empty; give a path")
        return value


IMAGE_SETS = ImageSets()


class Finite(click.FloatRange):
    """The type of an option that takes a number, but neither NaN nor infinity."""

    def convert(self, value: Any, param: click.Parameter | None, context: click.Context | None) -> float:
        number = super().convert(value, param, context)
        if not math.isfinite(number):
            self.fail(f"{value} is no finite number", param, context)
        return number


def to_stderr(message: str) -> None:
    print(message, file=sys.stderr)


def run(command: click.Command, say: Callable[[str], None] = to_stderr) -> None:
    """Run a click command as a program. Usage errors and `UserError` become one line on stderr and exit code 2.

    say: prints an error; for programs of several processes, one that does not repeat what another has said.
    """
    interrupts.end()
    for stream in (sys.stdout, sys.stderr):  # a terminal that has no ± gets an escape, not a traceback after hours
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    # What Pillow has to say about damaged metadata, in several lines each: what matters of it becomes an error.
    warnings.filterwarnings("ignore", module=r"PIL\.")
    try:
        refuse_repeated(command, sys.argv[1:])
        status = command.main(standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        fail(error.format_message(), 0, say)
    except click.UsageError as error:
        fail(f"Error: {one_line(error.format_message())} (see --help)", 2, say)
    except click.ClickException as error:
        fail(f"Error: {one_line(error.format_message())}", 2, say)
    except click.Abort:
        fail("Aborted.", 130, say)
    except KeyboardInterrupt:
        fail("Interrupted.", 130, say)
    except Exception as error:
        message = explanation(error)
        if message is None:
            raise
        fail(message, 2, say)
    sys.exit(status if isinstance(status, int) else 0)


def explanation(error: Exception) -> str | None:
    """The line that tells the user what to mend; None for an error of ours."""
    if isinstance(error, UserError):
        return f"Error: {one_line(str(error))}"
    if isinstance(error, OSError) and error.filename is not None:  # a folder that may not be entered, a full disk
        return f"Error: {error.filename}: {error.strerror}; check the path and its permissions"
    return None


def refuse_repeated(command: click.Command, arguments: list[str]) -> None:
    """Braces without quotes become one option for each zip, of which click would take the last and drop the others."""
    for param in command.params:
        if isinstance(param, click.Option) and not param.multiple and isinstance(param.type, ImageSets):
            given = [
                one
                for one in arguments
                if one in param.opts or one.startswith(tuple(f"{name}=" for name in param.opts))
            ]
            if len(given) > 1:
                raise UserError(
                    f"{param.opts[0]}: is given {len(given)} times; several zips are one value, with commas between them or "
                    f"with braces in quotes: {param.opts[0]}='train-{{000..127}}.zip'"
                )


def one_line(message: str) -> str:
    return " ".join(message.split())


def fail(message: str, exit_code: int = 2, say: Callable[[str], None] = to_stderr) -> None:
    say(message)
    sys.exit(exit_code)
