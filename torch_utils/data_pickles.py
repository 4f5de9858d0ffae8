"""A pickle machine for data: containers, numbers, text, bytes, and calls of the few names that a reader hands it.

Python's own unpickler allocates what a file declares before it looks at the file, and knows neither where in the file it
is nor when to stop. This one executes only the instructions that data needs, takes lengths from the file no further than
the file goes, and its errors name the byte. A name outside of the reader's list ends the reading; nothing is imported.
"""

import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pickletools import opcodes
from typing import Any, BinaryIO

import torch

from dnnlib.errors import UserError

MAX_INSTRUCTIONS = 1_000_000  # a snapshot has some 10,000
MAX_INT_BYTES = 16


class SnapshotError(UserError):
    """A snapshot that cannot be read, or names something that must not be built."""


class Blob:
    """Bytes of the file, where they lie in it, and what was made of them: once, however often the file asks for it."""

    __slots__ = ("_copy", "made", "offset", "view")

    def __init__(self, view: memoryview, offset: int):
        self.view, self.offset = view, offset
        self.made: Any = None
        self._copy: bytearray | None = None

    def writable(self) -> bytearray:
        """A copy, aligned for numbers of any size."""
        if self._copy is None:
            self._copy = bytearray(self.view)
        return self._copy


@dataclass(frozen=True)
class Name:
    """A global that a file may name. `call` stands in for it and is handed data only, `Blob`s in place of bytes."""

    call: Callable[..., Any] | None = None
    value: Any = None
    """What a name that is not called stands for."""


class Stateful:
    """Base of what a file may give state to after it was made."""

    def set_state(self, state: Any) -> None:
        raise NotImplementedError


Names = Mapping[tuple[str, str], Name]


def read(file: BinaryIO, names: Names) -> tuple[Any, int]:
    """The object in the pickle at the file's position, and the number of bytes that the file had.

    Raises `SnapshotError` naming the byte for whatever is wrong, be it the file's format or what it asks for.
    """
    data = memoryview(file.read())
    return Machine(data, names).load(), len(data)


def shown(value: Any) -> str:
    """A short piece of one line for error messages, whatever the file holds."""
    if isinstance(value, str):
        return ascii(value if len(value) <= 80 else value[:77] + "...")[1:-1]
    return str(value)[:80] if isinstance(value, int | float) else f"a {type(value).__name__}"


def tensor_from_bytes(dtype: torch.dtype, shape: tuple[int, ...], data: bytearray | memoryview) -> torch.Tensor:
    """A tensor over writable memory of exactly its size. Raises `SnapshotError` before anything is allocated."""
    if len(shape) > 8 or not all(type(side) is int and 0 <= side < 2**48 for side in shape):
        raise SnapshotError("a tensor's shape is no list of up to eight sizes")
    numel = 1
    for side in shape:
        numel *= side
    if numel * dtype.itemsize != len(data):
        raise SnapshotError(
            f"a tensor is declared as {'x'.join(map(str, shape))} {str(dtype).removeprefix('torch.')}, "
            f"and the file has {len(data):,} bytes for it"
        )
    return torch.frombuffer(data, dtype=dtype).reshape(shape) if numel else torch.empty(shape, dtype=dtype)


class _Mark:
    """Where a group of items on the stack begins."""


_MARK = _Mark()


class Machine:
    """Executes one pickle after the other from `data`, which begins at byte `base` of the file.

    persistent: what the file's references to storages become; without it they are refused.
    """

    def __init__(
        self, data: memoryview, names: Names, persistent: Callable[[Any], Any] | None = None, base: int = 0
    ) -> None:
        self.data, self.names, self.persistent, self.base = data, names, persistent, base
        self.position = 0  # of the next byte
        self.start = 0  # of the instruction
        self.instructions = 0

    def load(self) -> Any:
        """Execute up to the next STOP; `position` is then behind it."""
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        try:
            while True:
                self.start = self.position
                code = self.take(1)[0]
                if code == STOP:
                    return self.pop()
                self.execute(code)
        except SnapshotError as error:
            raise error if error.place is not None else self.error(str(error)) from error
        except Exception as error:  # wrong arguments to a name on the list can raise nearly anything
            raise self.error(f"damaged or no snapshot ({type(error).__name__})") from error

    def execute(self, code: int) -> None:
        self.instructions += 1
        if self.instructions > MAX_INSTRUCTIONS:
            raise self.error(f"more than {MAX_INSTRUCTIONS:,} instructions, which no snapshot needs")
        instruction = INSTRUCTIONS.get(code)
        if instruction is None:
            known = [opcode.name for opcode in opcodes if opcode.code == chr(code)]
            what = f"the instruction {known[0]}, which data does not need" if known else f"no instruction ({code})"
            raise self.error(f"{what}: damaged, or no snapshot")
        instruction(self)

    def error(self, message: str) -> SnapshotError:
        return SnapshotError(message, f"at byte {self.base + self.start}")

    # The file

    def take(self, count: int) -> memoryview:
        end = self.position + count
        if end > len(self.data):
            missing = f"{count:,} bytes are announced and {len(self.data) - self.position:,} are left"
            raise self.error(f"the file ends too early ({missing})")
        part = self.data[self.position : end]
        self.position = end
        return part

    def number(self, form: str) -> Any:
        return struct.unpack(form, self.take(struct.calcsize(form)))[0]

    def line(self) -> str:
        for end in range(self.position, min(self.position + 1000, len(self.data))):
            if self.data[end] == ord("\n"):
                text = str(self.data[self.position : end], "utf-8")
                self.position = end + 1
                return text
        raise self.error("a name without an end")

    def text(self, form: str) -> None:
        self.push(str(self.take(self.number(form)), "utf-8", "surrogatepass"))

    def blob(self, form: str) -> None:
        count = self.number(form)
        offset = self.base + self.position
        self.push(Blob(self.take(count), offset))

    def long_integer(self, form: str) -> None:
        count = self.number(form)
        if not 0 <= count <= MAX_INT_BYTES:
            raise self.error(f"an integer of {count:,} bytes")
        self.push(int.from_bytes(self.take(count), "little", signed=True))

    # The stack

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def pop(self) -> Any:
        value = self.stack.pop()
        if value is _MARK:
            raise self.error("damaged (a group of items without items)")
        return value

    def items(self) -> list[Any]:
        """Everything above the last mark, which goes as well."""
        for index in range(len(self.stack) - 1, -1, -1):
            if self.stack[index] is _MARK:
                items = self.stack[index + 1 :]
                del self.stack[index:]
                return items
        raise self.error("damaged (the end of a group that never began)")

    def top(self, kind: type) -> Any:
        value = self.stack[-1]
        if type(value) is not kind:
            raise self.error(f"adds items to {shown(value)}")
        return value

    def push_tuple(self, count: int) -> None:
        self.push(tuple(reversed([self.pop() for _ in range(count)])))

    def add_items(self, items: list[Any]) -> None:
        self.top(list).extend(items)

    def add_pairs(self, items: list[Any]) -> None:
        target = self.top(dict)
        for key, value in zip(items[::2], items[1::2], strict=True):
            if type(key) not in (str, int):
                raise self.error(f"a dict with {shown(key)} as a key")
            target[key] = value

    def add_members(self, items: list[Any]) -> None:
        if not all(type(item) in (str, int) for item in items):
            raise self.error("a set of something else than text and integers")
        self.top(set).update(items)

    def pop_pair(self) -> list[Any]:
        value, key = self.pop(), self.pop()
        return [key, value]

    # Memory

    def remember(self, index: int) -> None:
        value = self.stack[-1]
        if value is _MARK:
            raise self.error("damaged (a mark is to be remembered)")
        self.memo[index] = value

    def recall(self, index: int) -> None:
        if index not in self.memo:
            raise self.error("damaged (refers to something that it never defined)")
        self.push(self.memo[index])

    # Names and calls

    def push_name(self, module: Any, name: Any) -> None:
        if type(module) is not str or type(name) is not str or (module, name) not in self.names:
            raise self.error(
                f"the file asks for {shown(module)}.{shown(name)}, which a snapshot has no business with; "
                "nothing of it was run"
            )
        self.push(self.names[module, name])

    def stack_name(self) -> None:
        name, module = self.pop(), self.pop()
        self.push_name(module, name)

    def call(self) -> None:
        arguments, function = self.pop(), self.pop()
        if not isinstance(function, Name) or function.call is None or type(arguments) is not tuple:
            raise self.error(f"calls {shown(function)}")
        self.push(function.call(*arguments))

    def set_state(self) -> None:
        state, target = self.pop(), self.stack[-1]
        if not isinstance(target, Stateful):
            raise self.error(f"gives state to {shown(target)}")
        target.set_state(state)

    def push_persistent(self) -> None:
        reference = self.pop()
        if self.persistent is None:
            raise self.error("the file refers to storage outside itself")
        self.push(self.persistent(reference))

    def refuse_instance(self) -> None:
        module, name = self.line(), self.line()
        self.push_name(module, name)
        raise self.error("an instance in the oldest format; nothing of it was run")

    def check_frame(self) -> None:
        """A frame says how much may be read at once; everything is here already."""
        count = self.number("<Q")
        if count > len(self.data) - self.position:
            self.take(count)

    def check_protocol(self) -> None:
        protocol = self.number("<B")
        if protocol > 5:
            raise self.error(f"protocol {protocol} of pickle, 5 is the last one known")


STOP = ord(".")
INSTRUCTIONS: dict[int, Callable[[Machine], Any]] = {
    ord(code): instruction
    for code, instruction in {
        "\x80": Machine.check_protocol,
        "\x95": Machine.check_frame,
        "(": lambda m: m.push(_MARK),
        "0": lambda m: m.stack.pop(),
        "1": lambda m: m.items(),
        "2": lambda m: m.push(m.stack[-1]),
        "N": lambda m: m.push(None),
        "\x88": lambda m: m.push(True),
        "\x89": lambda m: m.push(False),
        "J": lambda m: m.push(m.number("<i")),
        "K": lambda m: m.push(m.number("<B")),
        "M": lambda m: m.push(m.number("<H")),
        "G": lambda m: m.push(m.number(">d")),
        "\x8a": lambda m: m.long_integer("<B"),
        "\x8b": lambda m: m.long_integer("<i"),
        "X": lambda m: m.text("<I"),
        "\x8c": lambda m: m.text("<B"),
        "\x8d": lambda m: m.text("<Q"),
        "B": lambda m: m.blob("<I"),
        "C": lambda m: m.blob("<B"),
        "\x8e": lambda m: m.blob("<Q"),
        ")": lambda m: m.push(()),
        "\x85": lambda m: m.push_tuple(1),
        "\x86": lambda m: m.push_tuple(2),
        "\x87": lambda m: m.push_tuple(3),
        "t": lambda m: m.push(tuple(m.items())),
        "]": lambda m: m.push([]),
        "a": lambda m: m.add_items([m.pop()]),
        "e": lambda m: m.add_items(m.items()),
        "}": lambda m: m.push({}),
        "s": lambda m: m.add_pairs(m.pop_pair()),
        "u": lambda m: m.add_pairs(m.items()),
        "\x8f": lambda m: m.push(set()),
        "\x90": lambda m: m.add_members(m.items()),
        "q": lambda m: m.remember(m.number("<B")),
        "r": lambda m: m.remember(m.number("<I")),
        "\x94": lambda m: m.remember(len(m.memo)),
        "h": lambda m: m.recall(m.number("<B")),
        "j": lambda m: m.recall(m.number("<I")),
        "c": lambda m: m.push_name(m.line(), m.line()),
        "\x93": Machine.stack_name,
        "R": Machine.call,
        "\x81": Machine.call,
        "b": Machine.set_state,
        "Q": Machine.push_persistent,
        "i": Machine.refuse_instance,
    }.items()
}
