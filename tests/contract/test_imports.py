"""The rooms of the library stand in an order; each imports only from rooms above it."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "fedmr_flwr"
ROOMS = [
    "errors",
    "grids",
    "files",
    "client_state",
    "randomness",
    "layout",
    "tensors",
    "population",
    "units",
    "recombination",
    "config",
    "data",
    "models",
    "training",
    "records",
    "attendance",
    "roster",
    "algorithms",
    "classic",
    "runs",
    "sites",
    "privacy",
    "client",
    "engines.in_process",
    "engines.superlink_grid",
    "engines.residents",
    "engines.slots",
    "engines.graphs",
    "engines.gpu",
    "engines",
    "server",
    "engines.cluster",
    "engines.flower",
    "engines.ray",
    "engines.deployment",
    "deployment",
    "cli",
]
# What a room may import from outside the standard library and this project, where the design limits it.
ALLOWED = {
    "errors": set(),
    "files": {"numpy", "safetensors"},
    "client_state": {"numpy", "safetensors"},
    "randomness": {"numpy"},
    "layout": {"numpy"},
    "tensors": {"numpy", "torch"},
    "population": {"numpy"},
    "units": set(),
    "recombination": {"numpy"},
    "config": {"pydantic", "yaml"},
    "models": {"torch", "torchvision"},
    "training": {"numpy", "torch"},
    "records": {"flwr", "numpy"},
    "grids": {"flwr"},
    "roster": {"flwr", "numpy"},
    "classic": {"flwr", "numpy"},
}


def room_of(module: str) -> str:
    inner = module.removeprefix("fedmr_flwr.")
    return max((room for room in ROOMS if inner == room or inner.startswith(room + ".")), key=len)


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = [path for path in sorted(PACKAGE.rglob("*.py")) if path != PACKAGE / "__init__.py"]


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_a_room_imports_only_from_rooms_above_it(path):
    here = room_of(module_name(path))
    for name in imports(path):
        if name.startswith("fedmr_flwr."):
            there = room_of(name)
            # engines/__init__ hands out the client app lazily, and cli is the top: both stand below what they name.
            assert ROOMS.index(there) <= ROOMS.index(here), f"{path} imports {name}, which stands below '{here}'"
        elif here in ALLOWED:
            import sys

            top = name.split(".")[0]
            assert top in ALLOWED[here] or top in sys.stdlib_module_names, f"{path} imports {name}"


def test_nothing_draws_from_a_global_generator():
    banned = ("torch.manual_seed(", "np.random.seed(", "np.random.rand", "import random", "from random")
    for path in PACKAGE.rglob("*.py"):
        text = path.read_text()
        assert not [word for word in banned if word in text], path
