"""The house of docs/architecture.md: a file imports only from its own floor and from those below, and nothing goes in circles."""

import ast
import re
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FLOORS = (  # from the ground up; a name stands for a module, or for all modules in a folder
    ("dnnlib",),
    ("torch_utils",),
    ("metrics",),
    ("training", "training.settings"),
    ("training.data",),
    ("training.dataset",),
    ("training.layers",),
    ("training.augment", "training.diff_augment", "training.losses"),
    ("training.sources",),
    ("training.generator", "training.discriminator"),
    ("training.conv_generator",),
    (
        "training.networks_stylegan2", "training.networks_stylegan3", "training.networks_dcgan", "training.networks_resnet",
        "training.networks_r3gan", "training.networks_pggan", "training.networks_projected",
        "training.networks_fastgan", "training.networks",
    ),
    ("training.checkpoints",),
    ("training.sampling",),
    ("training.config",),
    ("training.run",),
    ("training.training_loop", "training.loss"),
    ("training.cascades",),
    ("shared_options",),
    (
        "train", "gen_images", "gen_video", "calc_sid", "calc_metrics", "dataset_tool", "directions", "doctor", "legacy",
        "project", "style_mixing",
    ),
    ("demo", "bench", "tools"),
)  # fmt: skip
LONGEST_FUNCTION, LONGEST_CLASS = 80, 250  # lines


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {
    module_of(path): path
    for path in sorted(ROOT.rglob("*.py"))
    if path.relative_to(ROOT).parts[0] in {name.split(".")[0] for floor in FLOORS for name in floor}
    or path.parent == ROOT
}


def floor_of(module: str) -> int:
    """The highest floor of the longest name that the module belongs to; beside the rooms of training each has its own."""
    whole = module
    names = {name: number for number, floor in enumerate(FLOORS) for name in floor}
    while module not in names or (module == "training" and FILES[whole].name != "__init__.py"):
        assert "." in module, f"{module} stands on no floor: write it into FLOORS and docs/architecture.md"
        module = module.rpartition(".")[0]
    return names[module]


def imports_of(module: str, with_late: bool = True) -> set[str]:
    """Modules of this project that a module imports; late: within functions, and those for type checkers only."""
    tree = ast.parse(FILES[module].read_text(encoding="utf-8"))
    found: set[str] = set()
    for node in ast.walk(tree) if with_late else tree.body:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
    return {name for name in found if name in FILES} - {module}


@pytest.mark.parametrize("module", FILES)
def test_a_module_imports_nothing_from_above(module):
    above = {name for name in imports_of(module) if floor_of(name) > floor_of(module)}
    assert not above, f"{module} imports from above: {', '.join(sorted(above))}"


def test_nothing_goes_in_circles():
    try:
        list(TopologicalSorter({module: imports_of(module, with_late=False) for module in FILES}).static_order())
    except CycleError as error:
        pytest.fail(f"modules import each other: {' <- '.join(error.args[1])}")


def test_metrics_never_import_training():
    assert not [module for module in FILES if module.startswith("metrics") and "training" in str(imports_of(module))]


def test_no_function_and_no_class_is_long():
    long = []
    for module, path in FILES.items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                limit = LONGEST_CLASS if isinstance(node, ast.ClassDef) else LONGEST_FUNCTION
                size = node.end_lineno - node.lineno + 1
                if size > limit:
                    long.append(f"{module}.{node.name}: {size} lines")
    assert not long, "; ".join(long)


def test_the_page_draws_every_room():
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    named = {word for code in re.findall(r"`{3}[^`]+`{3}|`[^`]+`", page) for word in re.findall(r"\w+", code)}
    missing = [path.name for path in FILES.values() if path.name != "__init__.py" and path.stem not in named]
    assert not missing, f"docs/architecture.md says nothing of {', '.join(missing)}"
