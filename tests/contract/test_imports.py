"""The rooms of the package stand on floors; each imports only from rooms below it.

`python tests/contract/test_imports.py` prints the figures: rooms, floors, the longest chain of modules.
"""

import ast
import sys
from functools import cache
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "fedmr_flwr"
# From the ground up. A room may import from those before it.
ROOMS = [
    "errors", "files", "core", "config", "data", "models", "training", "wire", "algorithms", "runs", "client", "gpu",
    "report", "analysis", "server", "deployment", "launch", "cli",
]  # fmt: skip
# What a room may import from outside the standard library and this project, where the design limits it.
ALLOWED = {
    "errors": set(),
    "files": {"numpy", "safetensors"},
    "core": {"numpy"},
    "core.tensors": {"numpy", "torch"},
    "config": {"pydantic", "pydantic_core", "yaml"},
    "models": {"numpy", "torch", "torchvision"},
    "models.kernels": {"torch", "triton"},
    "training": {"numpy", "torch"},
    "wire": {"flwr", "numpy"},
    "wire.sealing": {"cryptography"},
    "algorithms.classic": {"flwr", "numpy"},
    "runs": {"numpy", "safetensors"},
}
# What every room may import of Flower; the rest of it is for wire/flower alone.
PUBLIC_FLOWER = {
    "flwr.app", "flwr.clientapp", "flwr.clientapp.mod", "flwr.common", "flwr.server", "flwr.server.client_manager",
    "flwr.server.client_proxy", "flwr.server.strategy", "flwr.serverapp", "flwr.serverapp.strategy",
    "flwr.simulation",
}  # fmt: skip
MOST_ROOMS, MOST_FLOORS, LONGEST_CHAIN = 18, 9, 14


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


# The package's own __init__ only names what users import, and imports it when it is asked for; a __main__ is no more
# than a call.
DOORS = {PACKAGE / "__init__.py", PACKAGE / "cli" / "__main__.py"}
FILES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py")) if path not in DOORS}


@cache
def imports(module: str) -> frozenset[str]:
    """Return what a module imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(FILES[module].read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return frozenset(found)


@cache
def own_imports(module: str) -> frozenset[str]:
    """Return the modules of this package that a module imports."""
    found = {name if name in FILES else name.rpartition(".")[0] for name in imports(module)}
    return frozenset(name for name in found if name in FILES and name != module)


def room_of(module: str) -> str:
    return module.split(".")[1]


@cache
def floor(room: str) -> int:
    below = {room_of(name) for module in FILES if room_of(module) == room for name in own_imports(module)} - {room}
    return 1 + max(map(floor, below), default=0)


def chain_from(module: str, above: tuple[str, ...] = ()) -> list[str]:
    """Return the longest chain of imports that starts at a module."""
    assert module not in above, f"a circle of imports: {' > '.join([*above, module])}"
    return [module, *max((_chain(name, (*above, module)) for name in own_imports(module)), key=len, default=[])]


_known: dict[str, list[str]] = {}


def _chain(module: str, above: tuple[str, ...]) -> list[str]:
    if module not in _known:
        _known[module] = chain_from(module, above)
    return _known[module]


def longest_chain() -> list[str]:
    return max((_chain(module, ()) for module in FILES), key=len)


@pytest.mark.parametrize("module", FILES)
def test_imports_only_from_rooms_below(module):
    here = ROOMS.index(room_of(module))
    for name in own_imports(module):
        assert ROOMS.index(room_of(name)) <= here, f"{module} imports {name}, which stands above it"


@pytest.mark.parametrize("module", FILES)
def test_imports_only_libraries_of_its_room(module):
    inner = module.removeprefix("fedmr_flwr.")
    allowed = ALLOWED.get(inner, ALLOWED.get(room_of(module)))
    libraries = {name.split(".")[0] for name in imports(module)} - set(sys.stdlib_module_names) - {"fedmr_flwr"}
    assert allowed is None or libraries <= allowed


def flower_modules(module: str) -> set[str]:
    """Return the modules of Flower that a module imports, or imports names from."""
    found = set()
    for node in ast.walk(ast.parse(FILES[module].read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {f"flwr.{alias.name}" for alias in node.names} if node.module == "flwr" else {str(node.module)}
    return {name for name in found if name.split(".")[0] == "flwr"}


@pytest.mark.parametrize("module", [name for name in FILES if not name.startswith("fedmr_flwr.wire.flower.")])
def test_uses_only_what_is_public_of_flower(module):
    assert flower_modules(module) <= PUBLIC_FLOWER
    assert ".__dict__[" not in FILES[module].read_text(), "private attributes"


def test_few_rooms_on_few_floors():
    assert {room_of(module) for module in FILES} == set(ROOMS)
    assert len(ROOMS) <= MOST_ROOMS
    assert max(map(floor, ROOMS)) <= MOST_FLOORS


def test_chains_of_imports_are_short():
    assert len(longest_chain()) <= LONGEST_CHAIN, " > ".join(longest_chain())


# The base turns models into messages, with the half in which clients evaluate; "flower" adapts Flower's own
# strategies, and "sealed" has models that are nothing but bytes.
SEE_RECORDS = {"base", "evaluation", "flower", "sealed"}


@pytest.mark.parametrize("module", [name for name in FILES if name.startswith("fedmr_flwr.algorithms.")])
def test_algorithms_see_no_records(module):
    seen = {name for name in imports(module) if name.startswith(("flwr.app", "fedmr_flwr.wire.codec"))}
    assert not seen or module.rpartition(".")[2] in SEE_RECORDS


def test_nothing_draws_from_a_global_generator():
    banned = ("torch.manual_seed(", "np.random.seed(", "np.random.rand", "import random", "from random")
    # Looks whether a model of a user's own does.
    looking = PACKAGE / "models" / "checks.py"
    for path in set(PACKAGE.rglob("*.py")) - {looking}:
        text = path.read_text()
        assert not [word for word in banned if word in text], path


if __name__ == "__main__":
    print(f"{len(ROOMS)} rooms on {max(map(floor, ROOMS))} floors")
    for number in range(1, 1 + max(map(floor, ROOMS))):
        print(f"  {number}: {', '.join(room for room in ROOMS if floor(room) == number)}")
    print(f"longest chain of modules: {len(longest_chain())}")
    print("  " + "\n  ".join(longest_chain()))
