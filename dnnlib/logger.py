"""A copy of everything printed, in a file that stays readable."""

import contextlib
import os
import re
import sys
import threading
import traceback
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Any, TextIO, cast

from dnnlib.errors import UserError

_ANSI_ESCAPE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


class Logger:
    """Copies stdout and stderr into `file_name`, from construction until `close()` or the end of a `with` block.

    The file holds finished lines as UTF-8, without colours and without the carriage-return updates of progress bars.
    A terminal that goes away (`| head`, a closed SSH session) or a full disk ends that copy, not the program.
    """

    def __init__(self, file_name: str | os.PathLike | None = None, file_mode: str = "w", should_flush: bool = True):
        self.should_flush = should_flush
        self.lock = threading.RLock()
        self._file = None if file_name is None else _open_log(file_name, file_mode)
        self._tees = {"stdout": _Tee(sys.stdout, self), "stderr": _Tee(sys.stderr, self)}
        for name, tee in self._tees.items():
            setattr(sys, name, tee)

    def __enter__(self) -> "Logger":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, UserError):
            self.write_line(f"Error: {error}")
        elif isinstance(error, Exception):
            # Python prints the traceback after this block, when stderr is no longer copied.
            self.write_line("".join(traceback.format_exception(kind, error, trace)).rstrip())
        self.close()

    def write(self, text: str) -> None:
        """Write as to a file: the text goes to stdout and into the log."""
        self._tees["stdout"].write(text)

    def flush(self) -> None:
        for tee in self._tees.values():
            tee.flush()

    def write_line(self, line: str) -> None:
        """Write one line into the file only."""
        with self.lock:
            if self._file is None:
                return
            try:
                self._file.write(line + "\n")
                if self.should_flush:
                    self._file.flush()
            except OSError as error:
                self._give_up(error)

    def close(self) -> None:
        """Give stdout and stderr back, and close the file. A second call does nothing."""
        for name, tee in self._tees.items():
            tee.finish()
            if getattr(sys, name) is tee:
                setattr(sys, name, tee.stream)
        with self.lock:
            file, self._file = self._file, None
        if file is not None:
            with contextlib.suppress(OSError):
                file.close()

    def _give_up(self, error: OSError) -> None:
        file, self._file = self._file, None
        assert file is not None
        with contextlib.suppress(OSError):
            file.close()
        print(f"{file.name}: cannot be written ({error.strerror}); logging stops here", file=sys.stderr)


def _open_log(file_name: str | os.PathLike, mode: str) -> TextIO:
    try:
        return cast(TextIO, open(file_name, mode, encoding="utf-8", errors="backslashreplace"))
    except OSError as error:
        raise UserError(f"{os.fspath(file_name)}: cannot be written ({error.strerror})") from error


class _Tee:
    """Stands in for one stream: passes text on to it, and finished lines to the logger."""

    def __init__(self, stream: Any, logger: Logger):
        self.stream = stream
        self._logger = logger
        self._pending = ""  # the unfinished line, without progress bars
        self._has_bar = False  # whether a progress bar was drawn in this line
        self._is_alive = stream is not None

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def write(self, text: str) -> int:
        with self._logger.lock:
            self._pass_on(text)
            *finished, rest = text.replace("\r\n", "\n").split("\n")
            for piece in finished:
                self._take(piece)
                self.finish_line()
            self._take(rest)
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        if self._is_alive:
            self._guard(self.stream.flush)

    def isatty(self) -> bool:
        return bool(self._is_alive and not self.stream.closed and self.stream.isatty())

    def finish_line(self) -> None:
        line = _ANSI_ESCAPE.sub("", self._pending)
        if line or not self._has_bar:
            self._logger.write_line(line)
        self._pending, self._has_bar = "", False

    def finish(self) -> None:
        """Log what was printed without a final newline."""
        if self._pending:
            self.finish_line()

    def _take(self, piece: str) -> None:
        """Remember a piece of a line. A carriage return in it means a progress bar, unless it erases one."""
        if "\r" not in piece:
            self._pending += piece
            return
        *_, before, last = piece.split("\r")
        is_erased = bool(before) and not before.strip()
        self._pending, self._has_bar = last if is_erased else "", True

    def _pass_on(self, text: str) -> None:
        if not self._is_alive:
            return
        try:
            self._guard(self.stream.write, text)
        except UnicodeEncodeError:
            encoding = self.stream.encoding or "ascii"
            self._guard(self.stream.write, text.encode(encoding, "backslashreplace").decode(encoding))
        if self._logger.should_flush:
            self.flush()

    def _guard(self, action: Callable[..., Any], *args: Any) -> None:
        """Do it, and stop using the stream when it is gone."""
        try:
            action(*args)
        except OSError as error:
            self._is_alive = False
            if isinstance(error, BrokenPipeError):
                self._silence_descriptor()
        except ValueError:
            if not self.stream.closed:
                raise
            self._is_alive = False

    def _silence_descriptor(self) -> None:
        # Python flushes stdout when it leaves, and would end with a complaint and status 120.
        with contextlib.suppress(OSError, ValueError):
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self.stream.fileno())
            os.close(null)
