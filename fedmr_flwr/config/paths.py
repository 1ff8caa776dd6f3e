"""Where things are looked up: data files, the app's files, and configurations by name."""

import difflib
import os
from pathlib import Path

from fedmr_flwr.errors import ConfigError

# The kinds of files of users, "KIND:PATH"; how each is read stands in `fedmr_flwr.data.datasets.KINDS`.
KINDS = ("csv", "folder", "hf", "npz")


def kind_and_path(name: str) -> tuple[str, str]:
    """Return the kind and the path of "KIND:PATH"; no kind, and the whole name, if it is something else."""
    kind, _, path = name.partition(":")
    return (kind, path) if kind in KINDS and path else ("", name)


def user_path(text: str | Path) -> Path:
    """Return a path of a user's, in which ~ and ~NAME stand for home folders.

    Raises:
        ConfigError: there is no such user, or no home folder.
    """
    try:
        return Path(text).expanduser()
    except RuntimeError:
        raise ConfigError(f"there is no home folder for {text}; write the whole path") from None


def default_data_dir() -> Path:
    """Return the default data folder: $FEDMR_DATA_DIR, or a folder in the user's cache."""
    try:
        return Path(os.environ.get("FEDMR_DATA_DIR") or "~/.cache/fedmr_flwr").expanduser().absolute()
    except RuntimeError as error:  # no home folder, or that of an unknown user
        raise ConfigError(f"cannot find the data folder: {error}; set data-dir=FOLDER") from None


def app_folder() -> Path:
    """Return the folder of the Flower app: the repository, or the copy of its files in the installed package."""
    package = Path(__file__).parents[1]
    return package / "app" if (package / "app").exists() else package.parent


def bundled_names() -> list[str]:
    """Return the names of the configurations that come with the package: "quickstart", "studies/main-table"."""
    folder = app_folder() / "conf"
    found = (path.relative_to(folder).with_suffix("").as_posix() for path in folder.rglob("*.yaml"))
    return sorted(found, key=lambda name: (name.count("/"), name))


def find_configuration(name: str | Path) -> Path:
    """Return a configuration file.

    Args:
        name: its path, or the name of one that comes with the package, with or without "conf/" and ".yaml".

    Raises:
        ConfigError: there is none of this name.
    """
    path = user_path(name)
    # A user's own file first, perhaps a pipe; not a folder, which may have the name of a configuration.
    if path.exists() and not path.is_dir():
        return path
    known = bundled_names()
    plain = path.as_posix().removeprefix("conf/").removesuffix(".yaml")
    if plain in known:
        return app_folder() / "conf" / f"{plain}.yaml"
    near = difflib.get_close_matches(plain, known, n=1)
    hint = f"did you mean {near[0]}?" if near else "give the path of a file, or a name that `fedmr run --help` lists"
    raise ConfigError(f"there is no configuration {name}; {hint}")
