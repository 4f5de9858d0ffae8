"""A corpus of files that no reader should trust: pickles put together instruction by instruction, and safetensors.

`corpus(sentinel)` gives name -> (family, bytes). What code there is in them would write the file `sentinel`.
"""

# ruff: noqa: E501 (tables)

import io
import json
import pickle
import struct
from collections.abc import Iterator
from typing import Any

import safetensors.torch
import torch

from torch_utils import persistence, tensor_files
from training import networks_stylegan2, networks_stylegan3
from training.augment import AugmentPipe
from training.sources.source import GaussianSource

SMALL = dict(z_dim=4, c_dim=0, w_dim=4, img_resolution=8, img_channels=1, channel_base=16, channel_max=4)
GENERATOR2, GENERATOR3 = "training.networks_stylegan2.Generator", "training.networks_stylegan3.Generator"
RECONSTRUCT = ("torch_utils.persistence", "_reconstruct_persistent_obj")
REBUILD = ("torch_utils.persistence", "_rebuild_tensor")
TENSOR, STORAGE = ("torch._utils", "_rebuild_tensor_v2"), ("torch.storage", "_load_from_bytes")


# An assembler


class Code:
    """Instructions that leave one value on the stack."""

    def __init__(self, code: bytes):
        self.code = code


def value(x: Any) -> bytes:
    """The instructions for plain data, with `Code` in it."""
    if isinstance(x, Code):
        return x.code
    if x is None or isinstance(x, bool):
        return {None: b"N", True: b"\x88", False: b"\x89"}[x]
    if isinstance(x, int):
        raw = x.to_bytes((x.bit_length() + 8) // 8, "little", signed=True)
        return b"\x8a" + bytes([len(raw)]) + raw
    if isinstance(x, float):
        return b"G" + struct.pack(">d", x)
    if isinstance(x, str):
        raw = x.encode("utf-8", "surrogatepass")
        return b"X" + struct.pack("<I", len(raw)) + raw
    if isinstance(x, bytes):
        return b"B" + struct.pack("<I", len(x)) + x
    if isinstance(x, tuple):
        return b"(" + b"".join(map(value, x)) + b"t"
    if isinstance(x, list):
        return b"](" + b"".join(map(value, x)) + b"e"
    if isinstance(x, set):
        return b"\x8f(" + b"".join(map(value, x)) + b"\x90"
    assert isinstance(x, dict)
    return b"}(" + b"".join(value(key) + value(item) for key, item in x.items()) + b"u"


def name(module: str, attribute: str) -> Code:
    return Code(value(module) + value(attribute) + b"\x93")


def call(function: tuple[str, str], *args: Any) -> Code:
    return Code(name(*function).code + value(args) + b"R")


def build(target: Code, state: Any) -> Code:
    return Code(target.code + value(state) + b"b")


def file(x: Any, protocol: int = 4) -> bytes:
    return b"\x80" + bytes([protocol]) + value(x) + b"."


def tensor(x: torch.Tensor) -> Code:
    raw = x.contiguous().numpy().tobytes()
    return call(REBUILD, str(x.dtype).removeprefix("torch."), tuple(x.shape), raw)


def saved(obj: Any, state: Any = None, class_name: Any = None, **changed: Any) -> Code:
    """A persistent object with other arguments, another state or another class than it has."""
    kwargs = {key: item for key, item in {**obj.init_kwargs, **changed}.items() if item is not REMOVED}
    return meta(
        {
            "type": "class",
            "version": 7,
            "class_name": class_name or persistence.class_path(type(obj)),
            "init_kwargs": kwargs,
            "state": tensors(obj) if state is None else state,
        }
    )


def meta(x: Any) -> Code:
    return call(RECONSTRUCT, x)


def tensors(obj: Any) -> dict[str, Code]:
    return {key: tensor(item) for key, item in obj.state_dict().items()}


def official(state: Any, class_name: Any = "Generator", version: Any = 6) -> Code:
    return meta({"type": "class", "version": version, "module_src": "boom()", "class_name": class_name, "state": state})


REMOVED = object()
torch.manual_seed(0)
G2 = networks_stylegan2.Generator(**SMALL, mapping_kwargs={"num_layers": 1})
G3 = networks_stylegan3.Generator(
    **{**SMALL, "img_resolution": 16}, mapping_kwargs={"num_layers": 1}, num_layers=3, num_critical=1
)
VALID = saved(G2)


def beside(attack: Any, key: str = "D") -> bytes:
    """An attack in a snapshot that is otherwise in order."""
    return file({key: attack, "G_ema": VALID})


# Families


def gadgets(sentinel: str) -> Iterator[tuple[str, bytes]]:
    """Names that run something, in every way in which a pickle can ask for them."""
    shell, source = f"touch {sentinel}", f"open({sentinel!r}, 'w').close()"
    found: list[tuple[str, str, tuple]] = [
        *((module, "system", (shell,)) for module in ("os", "posix", "nt")),
        ("os", "popen", (shell,)), ("os", "execl", ("/bin/sh", "sh", "-c", shell)), ("os", "remove", (sentinel,)),
        ("os", "mkdir", (sentinel,)), ("subprocess", "Popen", (["sh", "-c", shell],)),
        ("subprocess", "check_output", (["sh", "-c", shell],)), ("pty", "spawn", (["sh", "-c", shell],)),
        *((module, "eval", (source,)) for module in ("builtins", "__builtin__")),
        *((module, "exec", (source,)) for module in ("builtins", "__builtin__")),
        ("builtins", "getattr", (name("os", "path"), "join")), ("builtins", "__import__", ("antigravity",)),
        ("builtins", "open", (sentinel, "w")), ("builtins", "compile", (source, "x", "exec")), ("builtins", "print", ("x",)),
        ("builtins", "setattr", ({}, "x", 1)), ("builtins", "globals", ()), ("builtins", "breakpoint", ()),
        ("builtins", "bytearray", (2**40,)), ("builtins", "range", (2**40,)), ("builtins", "type", ("x", (), {})),
        ("importlib", "import_module", ("antigravity",)), ("runpy", "run_path", (sentinel,)),
        ("runpy", "_run_code", (source, {})), ("pickle", "loads", (b"cos\nsystem\n.",)), ("_pickle", "loads", (b".",)),
        ("marshal", "loads", (b"c",)), ("torch", "load", (sentinel,)), ("torch.serialization", "load", (sentinel,)),
        ("torch.jit", "load", (sentinel,)), ("torch.hub", "load", ("a/b", "c")), ("torch", "save", ({}, sentinel)),
        ("torch.utils.cpp_extension", "load", ("x", sentinel)), ("numpy", "load", (sentinel,)),
        ("numpy", "save", (sentinel, [1])), ("numpy.testing._private.utils", "runstring", (source, {})),
        ("numpy", "memmap", (sentinel,)), ("ctypes", "CDLL", (sentinel,)), ("socket", "create_connection", (("127.0.0.1", 9),)),
        ("urllib.request", "urlopen", ("http://127.0.0.1:9",)), ("webbrowser", "open", ("http://127.0.0.1:9",)),
        ("shutil", "rmtree", (sentinel,)), ("shutil", "copyfile", ("/etc/hostname", sentinel)),
        ("pathlib", "Path", (sentinel,)), ("pdb", "run", (source,)), ("timeit", "timeit", (source,)),
        ("code", "interact", ()), ("types", "FunctionType", ()), ("types", "CodeType", ()), ("sys", "exit", (3,)),
        ("operator", "attrgetter", ("system",)), ("operator", "methodcaller", ("system", shell)),
        ("functools", "partial", (name("os", "system"), shell)), ("copyreg", "_reconstructor", (1, 2, 3)),
        ("copyreg", "add_extension", ("os", "system", 1)), ("copyreg", "__newobj__", (1,)), ("_io", "FileIO", (sentinel, "w")),
        ("multiprocessing.util", "spawnv_passfds", (b"/bin/sh", [], [])), ("asyncio", "run", (1,)),
        ("dnnlib.util", "get_obj_by_name", ("training.training_loop.training_loop",)),
        ("dnnlib.util", "call_func_by_name", ()), ("dnnlib.util", "open_url", (f"file://{sentinel}",)),
        ("dnnlib.files", "atomic_write", (sentinel,)), ("legacy", "load_network_pkl", (1,)),
        ("training.training_loop", "training_loop", ()), ("training.networks_stylegan2", "Generator", (1, 2, 3)),
        ("torch_utils.persistence", "find_class", ("os.system",)), ("torch_utils.persistence", "importlib", ()),
        ("torch_utils.persistence", "importlib.import_module", ("antigravity",)),
        ("torch_utils.persistence", "_reconstruct_persistent_obj.__globals__", ()),
        ("torch_utils.persistence", "_reconstruct_persistent_obj.__class__", ()),
        ("torch_utils.persistence", "__builtins__", ()), ("torch_utils.persistence", "__dict__", ()),
        ("collections", "OrderedDict.__class__", ()), ("collections", "OrderedDict.fromkeys", ([1],)),
        ("dnnlib.util", "EasyDict.__init__.__globals__", ()), ("numpy", "dtype.__class__", ()),
        ("numpy", "ndarray.tofile", (1, sentinel)), ("builtins", "set.__class__.__subclasses__", ()),
        ("torch.storage", "os.system", (shell,)), ("torch._utils", "sys.modules", ()), ("", "", ()), ("os", "", ()),
        ("..", "system", ()), ("os\x00", "system", (shell,)), ("OS", "System", (shell,)), ("os ", " system", (shell,)),
    ]  # fmt: skip
    for module, attribute, args in found:
        label = f"{module}.{attribute}"
        line = f"{module}\n{attribute}\n".encode()
        packed, loose = value(args), b"".join(map(value, args))
        yield f"{label} by REDUCE", file({"G_ema": Code(b"c" + line + packed + b"R")})
        yield f"{label} by STACK_GLOBAL", beside(call((module, attribute), *args))
        yield f"{label} by INST", file({"G_ema": Code(b"(" + loose + b"i" + line)})
        yield f"{label} by OBJ", file({"G_ema": Code(b"(c" + line + loose + b"o")}, protocol=2)
        yield f"{label} by NEWOBJ", beside(Code(b"c" + line + packed + b"\x81"))
        yield f"{label} by NEWOBJ_EX", beside(Code(b"c" + line + packed + b"}\x92"))
        yield f"{label} uncalled", beside(name(module, attribute))
        yield f"{label} in a module", beside(official({"_parameters": {"x": call((module, attribute), *args)}}))
        yield f"{label} in a storage", beside(call(STORAGE, file(call((module, attribute), *args), 2)))


def instructions() -> Iterator[tuple[str, bytes]]:
    """Instructions that data does not need, damaged groups, lengths that the file does not have."""
    codes = {
        "PERSID": b"Px\n", "BINPERSID": b"NQ", "EXT1": b"\x82\x01", "EXT2": b"\x83\x01\x00", "EXT4": b"\x84\x01\x00\x00\x00",
        "BYTEARRAY8": b"\x96" + struct.pack("<Q", 1) + b"x", "NEXT_BUFFER": b"\x97", "READONLY_BUFFER": b"N\x98",
        "FROZENSET": b"(\x91", "INT": b"I1\n", "LONG": b"L" + b"9" * 10**6 + b"L\n", "STRING": b"S'x'\n", "UNICODE": b"Vx\n",
        "BINSTRING": b"T\x01\x00\x00\x00x", "SHORT_BINSTRING": b"U\x01x", "FLOAT": b"F1.0\n", "DICT": b"(d", "LIST": b"(l",
        "GET": b"g0\n", "PUT": b"Np0\n", "OBJ": b"(o", "unknown": b"\xff", "a mark": b"(", "nothing": b"",
        "two pops": b"00", "a lonely TUPLE": b"t", "a lonely APPENDS": b"]e", "a lonely SETITEMS": b"}u",
        "odd SETITEMS": b"}(Nu", "APPEND to None": b"NNa", "APPENDS to a dict": b"}(Ne", "SETITEM on a list": b"]NNs",
        "ADDITEMS on a list": b"](N\x90", "a list as key": b"}]Ns", "a nested tuple as key": b"}" + b")" + b"\x85" * 10**5 + b"Ns",
        "a list in a set": b"\x8f(]\x90", "MEMOIZE nothing": b"\x94", "BINGET of nothing": b"h\x07", "LONG_BINGET": b"j\xff\xff\xff\xff",
        "a huge memo": b"Nr\xff\xff\xff\xff", "DUP nothing": b"(2", "REDUCE of None": b"N)R", "REDUCE without tuple": b"NNR",
        "BUILD on None": b"NNb", "BUILD on a dict": b"}}b", "BUILD on a list": b"]}b", "NEWOBJ of a str": value("x") + b")\x81",
        "STACK_GLOBAL of numbers": b"K\x01K\x02\x93", "STACK_GLOBAL of lists": b"]]\x93", "protocol 6": b"\x80\x06", "protocol 255": b"\x80\xff",
        "a name without end": b"c" + b"a" * 10**6, "no UTF-8": b"X\x01\x00\x00\x00\xff", "a name in no UTF-8": b"c\xff\n\xff\n",
        "LONG1 of 255 bytes": b"\x8a\xff" + b"\x01" * 255, "LONG4 below zero": b"\x8b\xff\xff\xff\xff",
        "LONG4 of 2 GB": b"\x8b\xff\xff\xff\x7f", "LONG4 of 1 MB": b"\x8b" + struct.pack("<i", 10**6) + b"\x01" * 10**6,
    }  # fmt: skip
    for label, code in codes.items():
        yield label, b"\x80\x04" + code + b"."
        if label != "a huge memo":  # which is in order there
            yield f"{label} inside", beside(Code(code))
    for label, code, form in [("FRAME", b"\x95", "<Q"), ("BINBYTES8", b"\x8e", "<Q"), ("BINUNICODE8", b"\x8d", "<Q"),
                              ("BINBYTES", b"B", "<I"), ("BINUNICODE", b"X", "<I"), ("SHORT_BINBYTES", b"C", "<B")]:  # fmt: skip
        for count in (200, 2**31, 2**32 - 1, 2**40, 2**63 - 1, 2**64 - 1):
            if count < 256 ** struct.calcsize(form):
                yield f"{label} of {count:,} bytes", b"\x80\x04" + code + struct.pack(form, count) + b"x."
    valid = beside(None)
    yield "no STOP", valid[:-1]
    yield "empty", b""
    for share in (0.01, 0.1, 0.3, 0.5, 0.7, 0.9, 0.99):
        yield f"{share:.0%} of a snapshot", valid[: int(len(valid) * share)]
    yield "a zip", b"PK\x03\x04" + bytes(100)
    yield "text", b"hello world\n" * 10
    yield "zeros", bytes(1000)
    yield "too many instructions", b"\x80\x04" + b"N0" * 1_000_000 + b"N."


def structures() -> Iterator[tuple[str, bytes]]:
    """Nesting, circles, and small files that stand for huge trees."""
    for depth in (60, 2000, 200_000):
        yield f"{depth:,} lists", beside(Code(b"]" * depth + b"a" * (depth - 1)), "meta")
        yield f"{depth:,} lists in meta", beside({"x": Code(b"]" * depth + b"a" * (depth - 1))}, "meta")
        yield f"{depth:,} tuples in meta", beside({"x": Code(b")" + b"\x85" * depth)}, "meta")
        dicts = Code(b"}" + (value("k") + b"}") * depth + b"s" * depth)
        yield f"{depth:,} dicts in meta", beside({"x": dicts}, "meta")
        yield f"{depth:,} dicts as arguments", beside(saved(G2, mapping_kwargs=dicts))
        yield f"{depth:,} marks", b"\x80\x04" + b"(" * depth + b"."
    deep = official({}, "Layer")
    for _ in range(8):
        deep = official({"_modules": {"a": deep}}, "Layer")
    yield "modules in modules", beside(official({"_modules": {"a": deep}}, "Generator"))
    calls = b"".join(
        name(*RECONSTRUCT).code + b"(}(" + value("type") + value("class") + value("version") + value(6)
        + value("module_src") + value("") + value("class_name") + value("A") + value("state") + b"}" + value("_modules") + b"}" + value("a")
        for _ in range(3000)
    )  # fmt: skip
    yield "3,000 modules in each other", beside(Code(calls + b"N" + b"ssutR" * 3000))
    yield "a list in itself", beside({"x": Code(b"]\x94h\x00a")}, "meta")
    yield "a dict in itself", beside(Code(b"}\x94" + value("k") + b"h\x00s"), "meta")
    yield "arguments in themselves", beside(saved(G2, mapping_kwargs=Code(b"}\x94" + value("k") + b"h\x00s")))
    for levels in (25, 40):
        lists = b"]\x94" + b"".join(b"](" + b"h" + bytes([i]) + b"h" + bytes([i]) + b"e\x94" for i in range(levels))
        yield f"2^{levels} lists", beside({"x": Code(lists)}, "meta")
        yield f"2^{levels} arguments", beside(saved(G2, mapping_kwargs={"x": Code(lists)}))
        module = official({"_parameters": {}}, "Layer").code + b"\x94"
        for i in range(levels):
            again = Code(b"h" + bytes([i]))
            module += official({"_modules": {"a": again, "b": again}}, "Layer").code + b"\x94"
        yield f"2^{levels} modules", beside(official({"_modules": {"a": Code(module)}}))
    # The memo keeps one megabyte, and everything refers to it.
    million = Code(tensor(torch.zeros(250_000)).code + b"\x94")
    again = Code(b"h\x00")
    layers = {f"mapping.fc{i}.weight": again for i in range(500)}
    yield "one tensor as 500", file({"x": million, "G_ema": saved(G2, {**tensors(G2), **layers})})
    wide = networks_stylegan2.Generator(**SMALL, mapping_kwargs={"num_layers": 9, "layer_features": 500})
    state = tensors(wide) | {f"mapping.fc{i}.weight": again for i in range(1, 8)}
    yield (
        "one tensor as seven layers",
        file(
            {"x": million, "G_ema": saved(wide, state, **{"mapping_kwargs": {"num_layers": 9, "layer_features": 500}})}
        ),
    )
    pipe = saved(AugmentPipe()).code
    yield "200 objects", file({"G_ema": VALID, "meta": {"x": [Code(pipe)] * 200}})


def contents() -> Iterator[tuple[str, bytes]]:
    """Well-formed files that hold something else than a snapshot."""
    noise = GaussianSource(4)
    pipe = saved(AugmentPipe())
    for label, thing in {"None": None, "a number": 1, "text": "G_ema", "bytes": b"x", "a list": [VALID], "a pair": (VALID, VALID),
                         "a generator": VALID, "no key": {}, "three texts": ("a", "b", "c"), "a tensor": tensor(torch.ones(2))}.items():  # fmt: skip
        yield label, file(thing)
    for label, thing in {"text": "x", "a list": [1], "a tensor": tensor(torch.ones(2)), "a source": saved(noise), "a pipe": pipe,
                         "bytes": b"x", "a set": {"x"}, "a number": 1}.items():  # fmt: skip
        yield f"G_ema is {label}", file({"G_ema": thing})
        yield f"G is {label}", beside(thing, "G")
        yield f"D is {label}", beside(thing, "D")
        if label != "a source":
            yield f"source is {label}", beside(thing, "source")
        if label != "a pipe":
            yield f"augment_pipe is {label}", beside(thing, "augment_pipe")
        yield f"meta is {label}", beside(thing, "meta")
        yield f"prior is {label}", beside(thing, "prior")
        if label not in ("text", "a list", "a number"):
            yield f"meta holds {label}", beside({"x": thing}, "meta")
    yield "noise of another size", beside(saved(GaussianSource(5)), "source")
    yield "noise of a billion numbers", beside(saved(noise, z_dim=10**9), "source")
    yield "noise with a state", beside(saved(noise, {"x": tensor(torch.ones(1))}), "source")
    images = {"path": "x", "num_images": 3, "image_shape": [3, 4, 4], "fingerprint": "x"}
    good = {
        "images": tensor(torch.zeros(3, 3, 4, 4, dtype=torch.uint8)),
        "classes": tensor(torch.zeros(3, dtype=torch.int64)),
    }
    good["class_pairs"] = tensor(torch.zeros(2, dtype=torch.int64))
    for label, state, changed in [
        ("no images", {}, {}), ("float images", {"images": tensor(torch.ones(3, 3, 4, 4))}, {}),
        ("images of another size", {"images": tensor(torch.ones(3, 1, 4, 4, dtype=torch.uint8))}, {}),
        ("more images than it says", {"images": tensor(torch.ones(4, 3, 4, 4, dtype=torch.uint8))}, {}),
        ("classes below zero", {**good, "classes": tensor(torch.tensor([-1, 0, 0]))}, {}),
        ("more classes than images", {**good, "classes": tensor(torch.zeros(4, dtype=torch.int64))}, {}),
        ("a class of 2**62", {**good, "classes": tensor(torch.tensor([0, 0, 2**62]))}, {}),
        ("pairs with empty classes", {**good, "class_pairs": tensor(torch.tensor([0, 7]))}, {}),
        ("classes without pairs", {name: part for name, part in good.items() if name != "class_pairs"}, {}),
        ("images that are text", {"images": "x"}, {}), ("a shape below zero", {}, {"image_shape": [-1, 4, 4]}),
        ("a shape of text", {}, {"image_shape": "abc"}), ("a number that is text", {}, {"num_images": "many"}),
    ]:  # fmt: skip
        attack = {
            "type": "class",
            "version": 7,
            "class_name": "training.source.ImageSource",
            "init_kwargs": {**images, **changed},
            "state": state,
        }
        yield f"a source of {label}", beside(meta(attack), "source")
    prior = {"detector": "tiny", "weights": None, "weights_hash": "x", "num_features": 4, "dim": 2}
    prior |= {"norm": "unit", "sampling": "memory", "num_images": 3}
    known = {"mean": torch.zeros(4), "axes": torch.ones(4, 2), "shares": torch.ones(3) / 3, "centres": torch.ones(3, 2)}
    for label, state, changed in [
        ("conditions of another size", {}, {}), ("a billion features", {}, {"num_features": 10**9}),
        ("numbers that are no numbers", {"mean": torch.full([4], float("nan"))}, {}), ("no shares", {"shares": torch.zeros(3)}, {}),
        ("an unknown sampling", {}, {"sampling": "os.system"}), ("a size of text", {}, {"dim": "many"}),
        ("a negative size", {}, {"dim": -1}), ("spreads too many", {"spreads": torch.ones(3, 2)}, {}),
    ]:  # fmt: skip
        attack = {
            "type": "class",
            "version": 7,
            "class_name": "training.prior.InstancePrior",
            "init_kwargs": {**prior, **changed},
            "state": {name: tensor(part) for name, part in {**known, **state}.items()},
        }
        yield f"a prior of {label}", beside(meta(attack), "prior")


def our_tensors() -> Iterator[tuple[str, bytes]]:
    """Declared sizes against the bytes that are there."""
    for dtype in ("object", "float128", "complex64", "os.system", "__class__", "", "float32 ", 5, None, [], b"float32"):
        yield f"dtype {dtype!r}", beside(call(REBUILD, dtype, (1,), bytes(4)))
    for shape in [(-1,), (-1, -1), (2**62, 2**62), (2**31, 2**31), (10**9,), (2,), (), (0,), ("1",), (1.0,), (None,), ((1,),),
                  (True,), (1,) * 9, (0, 2**63), (2**100,), [1], None, 1, "x", {}]:  # fmt: skip
        yield f"shape {shape!r}", beside(call(REBUILD, "float32", shape, bytes(4) if shape != () else b"xx"))
    for raw in (b"", b"xxx", b"xxxxx", "xxxx", None, 4, [1], {}):
        yield f"raw {raw!r}", beside(call(REBUILD, "float32", (1,), raw))
    for label, state in {
        "missing": {k: v for k, v in tensors(G2).items() if "fc0" not in k},
        "superfluous": {**tensors(G2), "x": tensor(torch.ones(1))},
        "of another shape": {**tensors(G2), "mapping.w_avg": tensor(torch.ones(5))},
        "of integers": {**tensors(G2), "mapping.w_avg": tensor(torch.ones(4, dtype=torch.int64))},
        "text": {**tensors(G2), "mapping.w_avg": "x"}, "numbered": {1: tensor(torch.ones(1))},
        "called __class__": {**tensors(G2), "__class__": tensor(torch.ones(1))},
        "a list": [1], "nothing": None, "a tensor": tensor(torch.ones(1)),
    }.items():  # fmt: skip
        yield (
            f"a state with {label}",
            file({"G_ema": saved(G2, state)})
            if state is not None
            else file(
                {
                    "G_ema": meta(
                        {"type": "class", "version": 7, "class_name": GENERATOR2, "init_kwargs": SMALL, "state": None}
                    )
                }
            ),
        )


def stream(
    numel: Any = 4,
    kind: tuple[str, str] = ("torch", "FloatStorage"),
    count: int = 4,
    data: bytes = bytes(16),
    **changed,
) -> bytes:
    """PyTorch's older format of a storage."""
    reference = changed.get("reference", ("storage", name(*kind), "0", "cpu", numel, None))
    parts = [changed.get("magic", 0x1950A86A20F9469CFC6C), 1001, {"little_endian": True}]
    pickles = [file(part, 2) for part in parts] + [
        file(Code(value(reference) + b"Q"), 2),
        file(changed.get("keys", ["0"]), 2),
    ]
    return b"".join(pickles) + struct.pack("<q", count) + data


def official_tensors() -> Iterator[tuple[str, bytes]]:
    """The official format's storages, tensors, arrays and numbers."""

    def held(thing: Any) -> bytes:
        return beside(official({"_parameters": {"x": thing}}))

    for label, data in {
        "huge": stream(2**60), "below zero": stream(-1, count=-1), "of text": stream("4"), "of another length": stream(5),
        "cut": stream(data=bytes(15)), "too long": stream(data=bytes(17)), "of another count": stream(count=2**60),
        "of a huge count": stream(2**60, count=2**60), "of objects": stream(kind=("builtins", "object")),
        "of another kind": stream(kind=("torch", "ComplexFloatStorage")), "of os.system": stream(kind=("os", "system")),
        "with other keys": stream(keys=["1"]), "with no magic": stream(magic=1), "with a view": stream(reference=("storage", name("torch", "FloatStorage"), "0", "cpu", 4, (1, 2))),
        "with a module": stream(reference=("module", 1, 2, 3)), "with no reference": stream(reference=None), "empty": b"",
        "a zip": b"PK\x03\x04" + bytes(50), "a pickle too few": file(1, 2),
    }.items():  # fmt: skip
        yield f"a storage {label}", held(call(TENSOR, call(STORAGE, data), 0, (4,), (1,), False, {}))
    good = call(STORAGE, stream())
    for label, args in {
        "an offset beyond": (5, (1,), (1,)), "an offset below zero": (-1, (1,), (1,)), "a huge offset": (2**60, (1,), (1,)),
        "a size beyond": (0, (5,), (1,)), "a size below zero": (0, (-1,), (1,)), "a huge size": (0, (2**60,), (0,)),
        "an expanded size": (0, (10**6, 10**6), (0, 0)), "a stride beyond": (0, (4,), (2,)), "a stride below zero": (3, (4,), (-1,)),
        "a huge stride": (0, (2,), (2**60,)), "a stride missing": (0, (2, 2), (1,)), "a size of text": (0, ("4",), (1,)),
        "a list as size": (0, [4], [1]), "nine dimensions": (0, (1,) * 9, (1,) * 9), "no size": (0, None, None),
    }.items():  # fmt: skip
        yield f"a tensor with {label}", held(call(TENSOR, good, *args, False, {}))
    for label, thing in {"None": None, "bytes": b"x", "a dict": {}, "a name": name(*STORAGE)}.items():
        yield f"a tensor made of {label}", held(call(TENSOR, thing, 0, (1,), (1,), False, {}))
        yield f"a parameter made of {label}", held(call(("torch._utils", "_rebuild_parameter"), thing, False, {}))
        yield f"a storage made of {label}", held(call(STORAGE, thing))

    array = call(("numpy.core.multiarray", "_reconstruct"), name("numpy", "ndarray"), (0,), b"b")
    for kind in ("O", "O8", "V8", "S10", "U4", "M8", "m8", "c8", "f8,f8", "os.system", "", 5, None, "i3", "f99"):
        dtype = call(("numpy", "dtype"), kind, False, True)
        yield f"an array of {kind!r}", beside(official({"x": build(array, (1, (1,), dtype, False, bytes(8)))}))
        yield (
            f"a number of {kind!r}",
            beside(official({"x": call(("numpy.core.multiarray", "scalar"), dtype, bytes(8))})),
        )
    dtype = call(("numpy", "dtype"), "f8", False, True)
    for label, state in {
        "huge": (1, (2**60,), dtype, False, bytes(8)), "below zero": (1, (-1,), dtype, False, bytes(8)),
        "of another size": (1, (2,), dtype, False, bytes(8)), "of a list": (1, (1,), dtype, False, [None]),
        "with nine dimensions": (1, (1,) * 9, dtype, False, bytes(8)), "with a short state": (1, (1,)), "with no state": None,
        "with another type": (1, (1,), "f8", False, bytes(8)), "with a shape of text": (1, ("1",), dtype, False, bytes(8)),
    }.items():  # fmt: skip
        yield f"an array {label}", beside(official({"x": build(array, state)}))
    for state in [None, (3, "x", None), (3,), {}, "<", (3, ["<"])]:
        yield f"a type with the state {state!r}", beside(official({"x": build(dtype, state)}))


def objects() -> Iterator[tuple[str, bytes]]:
    """Descriptions of objects: classes, versions, arguments."""
    good = {
        "type": "class",
        "version": 7,
        "class_name": GENERATOR2,
        "init_kwargs": G2.init_kwargs,
        "state": tensors(G2),
    }
    classes = [
        "os.system", "builtins.eval", "training.networks_stylegan2.SynthesisLayer", "training.networks_stylegan2.torch",
        "training.networks_stylegan2.Generator.__init__", "training.networks_stylegan2.__dict__", "training.sources.source.np.load",
        "training.training_loop.training_loop", "training.source.ImageSource.open", "training.cascade.Cascade.chain", "torch.nn.Linear",
        "Generator", "", ".", "..", "training", "__main__.x", "tests.helpers.hostile_pickles.Code", "dnnlib.util.EasyDict",
        "torch_utils.persistence.SavedObject", "a" * 10**6, "training.networks_stylegan2\x00.Generator", 1, None, [], {}, b"x",
    ]  # fmt: skip
    for class_name in classes:
        yield f"the class {str(class_name)[:60]!r}", beside(meta({**good, "class_name": class_name}))
        yield (
            f"a stage of the class {str(class_name)[:60]!r}",
            beside(
                meta(
                    {
                        **good,
                        "class_name": "training.cascade.Cascade",
                        "init_kwargs": {"first": {"class_name": class_name}, "generator": {}},
                    }
                )
            ),
        )
        yield f"the official class {str(class_name)[:60]!r}", beside(official({}, class_name))
    for version in (0, 5, 8, -1, 10**30, "7", None, [], 7.5):
        yield f"version {version!r}", beside(meta({**good, "version": version}))
    for key in good:
        for thing in (None, [], "x", 1, VALID):
            yield f"{key} is {str(thing)[:20]}", file({"G_ema": meta({**good, key: thing})})
        yield f"without {key}", file({"G_ema": meta({k: v for k, v in good.items() if k != key})})
    for args in [(), (None,), (1,), ([],), ("x",), ({},), (good, good), (b"x",), (VALID,), ({1: 2},)]:
        yield f"described by {str(args)[:30]}", beside(call(RECONSTRUCT, *args))
    for key in ("_parameters", "_buffers", "_modules", "_init_kwargs", "_init_args", "_non_persistent_buffers_set"):
        for thing in ([1], "x", 1, {"x": 1}, {1: 1}, {"x": "y"}):
            yield f"official, {key} is {thing!r}", beside(official({key: thing}))
    for target in (VALID, tensor(torch.ones(1)), name(*RECONSTRUCT), official({}, "Layer"), name("numpy", "ndarray")):
        for state in ({"__class__": 1}, {"__dict__": {}}, ({}, {"forward": 1}), None):
            yield f"state {state!r} for {target.code[:20]!r}", beside(build(target, state))


def arguments() -> Iterator[tuple[str, bytes]]:
    """Constructor arguments that would take memory or time, or that are none."""
    huge = (
        2**24,
        2**24 + 1,
        2**30,
        2**62,
        10**30,
        -1,
        0,
        1.5,
        float("nan"),
        float("inf"),
        "16",
        None,
        [4, 4],
        True,
        {},
    )
    for key in ("z_dim", "c_dim", "w_dim", "img_resolution", "img_channels", "channel_base", "channel_max"):
        for thing in huge:
            if (key, thing) not in ALLOWED:
                yield f"stylegan2, {key}={thing!r}", file({"G_ema": saved(G2, **{key: thing})})
                yield f"stylegan3, {key}={thing!r}", file({"G_ema": saved(G3, **{key: thing})})
    for key, thing in [
        ("num_layers", 10**9), ("num_layers", 2**24), ("num_layers", 500), ("num_layers", -1), ("filter_size", 10**7), ("filter_size", 200),
        ("lrelu_upsampling", 10**6), ("first_stopband", 1e-300), ("first_cutoff", 1e-300), ("first_cutoff", 0.0), ("first_stopband", float("nan")),
        ("last_stopband_rel", 1e-9), ("last_stopband_rel", float("inf")), ("margin_size", 10**7), ("margin_size", -100), ("conv_kernel", 10**7),
        ("num_critical", 3), ("num_critical", 10**7), ("use_radial_filters", [1]), ("no_such_argument", 1), ("self", 1), ("class_name", "x"),
    ]:  # fmt: skip
        yield f"stylegan3, {key}={thing!r}", file({"G_ema": saved(G3, **{key: thing})})
    for key, thing in [
        ("mapping_kwargs", {"num_layers": 10**9}), ("mapping_kwargs", {"num_layers": 10**5}), ("mapping_kwargs", {"num_layers": 20}),
        ("mapping_kwargs", {"layer_features": 2**24}), ("mapping_kwargs", {"activation": "os.system"}), ("mapping_kwargs", "x"), ("mapping_kwargs", 5),
        ("mapping_kwargs", {"encoder": {"kind": "os.system"}}), ("mapping_kwargs", {"encoder": {"kind": "conv", "img_channels": 2**24}}),
        ("mapping_kwargs", {"encoder": {"kind": "flatten", "norm": "whiten"}}), ("mapping_kwargs", {"encoder": 5}), ("mapping_kwargs", {"": 1}),
        ("resample_filter", [1.0] * 5000), ("resample_filter", [[1] * 90] * 90), ("resample_filter", []), ("resample_filter", "abc"),
        ("resample_filter", [0, 0, 0, 0, 0]), ("architecture", "x"), ("architecture", ["skip"]), ("activation", "__class__"), ("use_noise", False),
        ("no_such_argument", 1), ("use_fp16", True), ("img_resolution", [4, 8, 16]), ("img_resolution", [2**23, 2**23]), ("z_dim", REMOVED),
    ]:  # fmt: skip
        yield f"stylegan2, {key}={str(thing)[:50]}", file({"G_ema": saved(G2, **{key: thing})})
    for key, thing in [
        ("imgfilter_bands", [1] * 9000),
        ("imgfilter_bands", 5),
        ("scale", "x"),
        ("no_such_argument", 1),
    ]:
        yield f"augment pipe, {key}={str(thing)[:30]}", beside(saved(AugmentPipe(), **{key: thing}), "augment_pipe")
    recipe = {"class_name": GENERATOR2, **G2.init_kwargs}
    stage: Any = recipe
    for _ in range(60):
        stage = {"class_name": "training.cascade.Cascade", "first": stage, "generator": recipe}
    for label, kwargs in {"60 stages": {"first": stage, "generator": recipe}, "no stages": {}, "numbers": {"first": 1, "generator": 2},
                          "itself": {"first": {"class_name": "training.cascade.Cascade"}, "generator": recipe},
                          "sources": {"first": {"class_name": "training.source.GaussianSource", "z_dim": 4}, "generator": recipe}}.items():  # fmt: skip
        attack = {
            "type": "class",
            "version": 7,
            "class_name": "training.cascade.Cascade",
            "init_kwargs": kwargs,
            "state": tensors(G2),
        }
        yield f"a cascade of {label}", file({"G_ema": meta(attack)})


# Values that leave the small networks as they are.
ALLOWED: list[tuple] = [("img_channels", True), ("c_dim", 0), ("channel_max", 2**24)]


def wrong_arguments() -> Iterator[tuple[str, bytes]]:
    """Every name on the list, called with what it does not expect."""
    wrong: list[tuple] = [(), (None,), (1,), ("x",), ([],), ({},), (b"",), (2**60,), (VALID,), ("f8", 1, 2, 3), (1,) * 12,
                          ([[]],), ("x", "latin1", 3), (name(*RECONSTRUCT),)]  # fmt: skip
    for function in persistence.NAMES:
        for index, args in enumerate(wrong):
            called = call(function, *args)
            yield f"{'.'.join(function)}, wrong arguments {index}", beside(called)
            yield f"{'.'.join(function)}, wrong arguments {index}, NEWOBJ", beside(Code(called.code[:-1] + b"\x81"))
            yield f"{'.'.join(function)}, wrong arguments {index}, BUILD", beside(build(called, {"x": 1}))


def tensorflow() -> Iterator[tuple[str, bytes]]:
    """Stubs of the TensorFlow code."""

    def stub(**state: Any) -> Code:
        full = {
            "version": 4,
            "name": "G",
            "static_kwargs": {},
            "components": {},
            "build_module_src": "boom()",
            "build_func_name": "G_main",
        }
        return build(Code(name("dnnlib.tflib.network", "Network").code + b")\x81"), {**full, "variables": [], **state})

    def trio(**state: Any) -> bytes:
        return file((stub(**state), stub(), stub(**state)))

    yield "no state", file((Code(name("dnnlib.tflib.network", "Network").code + b")\x81"),) * 3)
    for key in ("version", "static_kwargs", "components", "variables"):
        for thing in (
            None,
            1,
            "x",
            [1],
            {"x": 1},
            [("x",)],
            [(1, 2)],
            [("lod", b"x")],
            {"fmap_base": 2**40},
            10**9,
            {"resolution": 2**24},
        ):
            yield f"{key} is {thing!r}", trio(**{key: thing})
    synthesis = stub(variables=[("noise99999999", 1.0)])
    for kwargs in ({"resolution": 2**24}, {"fmap_base": 10**12}, {"fmap_base": "x"}, {"mapping_layers": 10**9}, {"func_name": "os.system"},
                   {"resample_kernel": [1] * 10**4}, {"resample_kernel": 5}, {"architecture": []}, {"exec": "boom()"}):  # fmt: skip
        yield (
            f"a generator with {str(kwargs)[:60]}",
            trio(static_kwargs=kwargs, components={"synthesis": stub(), "mapping": stub()}),
        )
    yield "noise of an endless level", trio(components={"synthesis": synthesis})
    yield "itself as a part", file((Code(name("dnnlib.tflib.network", "Network").code + b")\x81\x94}(" + value("components") + b"}" + value("a") + b"h\x00s" + value("version") + value(4) + b"ub"),) * 3)  # fmt: skip


def tensor_archives() -> Iterator[tuple[str, bytes]]:
    """The same in safetensors and JSON."""
    whole = {
        "G": None,
        "D": None,
        "G_ema": G2,
        "source": GaussianSource(4),
        "augment_pipe": None,
        "training_set_kwargs": {},
        "meta": {},
    }
    good = tensor_files.pack(whole)
    length = int.from_bytes(good[:8], "little")
    header = json.loads(good[8 : 8 + length])
    own = json.loads(header["__metadata__"]["objects"])

    def archive(header: Any, data: bytes = good[8 + length :]) -> bytes:
        text = header if isinstance(header, bytes) else json.dumps(header).encode()
        return struct.pack("<Q", len(text)) + text + data

    def with_objects(objects: Any, values: Any = "{}") -> bytes:
        text = objects if isinstance(objects, str) else json.dumps(objects)
        return archive({**header, "__metadata__": {"format": tensor_files.FORMAT, "objects": text, "values": values}})

    for share in (0.01, 0.1, 0.5, 0.9, 0.999):
        yield f"{share:.1%} of an archive", good[: int(len(good) * share)]
    for count in (0, 1, 10**6, 2**40, 2**63, 2**64 - 1):
        yield f"a header of {count:,} bytes", struct.pack("<Q", count) + good[8:]
    yield "a foreign archive", safetensors.torch.save({"x": torch.ones(2)})
    yield "100,000 lists in the header", archive(b'{"a":' + b"[" * 10**5 + b"]" * 10**5 + b"}")
    yield "100,000 lists in the objects", with_objects("[" * 10**5 + "]" * 10**5)
    yield "an endless number", with_objects('{"G_ema": ' + "9" * 10**5 + "}")
    for thing in (
        "",
        "x",
        "[]",
        "1",
        "null",
        "{}",
        '{"G_ema": 1}',
        '{"G_ema": {}}',
        '{"G_ema": {"class_name": 1}}',
        '{"G_ema": {"class_name": "os.system"}}',
    ):
        yield f"objects {thing!r}", with_objects(thing)
    for key, item in {
        "img_resolution": 2**30,
        "channel_base": 10**12,
        "no_such": 1,
        "mapping_kwargs": {"num_layers": 10**9},
    }.items():
        kwargs = {**own["G_ema"]["init_kwargs"], key: item}
        yield f"{key}={item}", with_objects({**own, "G_ema": {**own["G_ema"], "init_kwargs": kwargs}})
    for values in ("", "[]", '{"meta": []}', '{"G": {"x": 1}}', '{"D": "os.system"}', '{"source": 1}'):
        yield f"values {values!r}", with_objects(own, values)
    first = next(key for key in header if key != "__metadata__")
    for key, item in {"shape": [2**40, 2**40], "dtype": "OBJECT", "data_offsets": [0, 2**50]}.items():
        yield f"a tensor with {key}={item}", archive({**header, first: {**header[first], key: item}})
    yield "a tensor too many", with_objects({key: item for key, item in own.items() if key != "G_ema"})


def corpus(sentinel: str) -> dict[str, tuple[str, bytes]]:
    """name -> (family, file)."""
    families = {
        "names that run something": gadgets(sentinel),
        "instructions and lengths": instructions(),
        "nesting, circles, bombs": structures(),
        "other contents": contents(),
        "tensors of our format": our_tensors(),
        "tensors and arrays of the official format": official_tensors(),
        "descriptions of objects": objects(),
        "constructor arguments": arguments(),
        "wrong arguments to every name on the list": wrong_arguments(),
        "TensorFlow stubs": tensorflow(),
        "safetensors and JSON": tensor_archives(),
    }
    return {f"{family}: {label}": (family, data) for family, cases in families.items() for label, data in cases}


def valid_files() -> dict[str, bytes]:
    """Files that load, for mutations: ours by pickle and by the assembler, safetensors."""
    whole = {
        "G": None,
        "D": None,
        "G_ema": G2,
        "source": GaussianSource(4),
        "augment_pipe": AugmentPipe(),
        "training_set_kwargs": {"path": "x"},
        "meta": {"a": [1, 2.5]},
    }
    buffer = io.BytesIO()
    pickle.dump(whole, buffer, protocol=pickle.HIGHEST_PROTOCOL)
    return {
        "snapshot": buffer.getvalue(),
        "assembled": file({"G_ema": VALID, "meta": {"x": [1, "y", None, True, 2.5, (1, 2)]}}),
        "stylegan3": file({"G_ema": saved(G3)}),
        "safetensors": tensor_files.pack(whole),
    }
