"""The command `fedmr init`."""

import keyword
import re
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from fedmr_flwr.cli.arguments import print_line
from fedmr_flwr.config.paths import app_folder
from fedmr_flwr.errors import ConfigError

# Of a Flower app.
_LONGEST = 32
# What stands in the template for the project and its package.
_PROJECT, _PACKAGE = "my-project", "my_project"


def init(name: Annotated[str, typer.Argument(metavar="NAME", hidden=True)]) -> None:
    """Create a project: a model, data, a configuration.

    NAME is that of the project and of its folder, which is new. All its files are yours to edit; it trains as it is.
    """
    from fedmr_flwr.files import writing
    from fedmr_flwr.runs import folder

    package = package_name(name)
    out = Path(name)
    folder.check_free(out, "another name")
    template = app_folder() / "template"
    for path in sorted(template.rglob("*")):
        if path.is_dir() or "__pycache__" in path.parts:
            continue
        written = out / path.relative_to(template).as_posix().replace(_PACKAGE, package)
        text = path.read_text(encoding="utf-8").replace(_PACKAGE, package).replace(_PROJECT, name)
        with writing(written):
            written.parent.mkdir(parents=True, exist_ok=True)
            written.write_text(text, encoding="utf-8")
    print_line(f"cd {name} && fedmr run conf.yaml    # trains in less than a minute")
    print_line(f"edit conf.yaml, {package}/data.py and {package}/model.py    # then train yours")
    print_line("flwr run . --stream    # trains the same model, by Flower's own command")


def package_name(name: str) -> str:
    """Return the name of a project's Python package.

    Raises:
        ConfigError: the name of the project cannot be that of a Flower app and of a Python package.
    """
    if len(name) > _LONGEST or not re.fullmatch(r"[A-Za-z][A-Za-z0-9]*(-[A-Za-z0-9]+)*", name):
        raise ConfigError(
            f"'{name}' cannot name a Flower app: use a letter, then letters, digits and single hyphens, "
            f"{_LONGEST} characters at most"
        )
    package = name.replace("-", "_").lower()
    found = find_spec(package)
    # An empty folder of this name counts as a package, too.
    empty = found and [*(found.submodule_search_locations or [])] == [str(Path(name).absolute())]
    if keyword.iskeyword(package) or (found and not empty):
        raise ConfigError(f"'{name}' cannot name a project: Python has a '{package}' already; choose another name")
    return package
