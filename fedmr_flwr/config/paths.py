"""The default folder of data files."""

import os
from pathlib import Path

from fedmr_flwr.errors import ConfigError


def default_data_dir() -> Path:
    """Return the default data folder: $FEDMR_DATA_DIR, or a folder in the user's cache."""
    try:
        return Path(os.environ.get("FEDMR_DATA_DIR") or "~/.cache/fedmr_flwr").expanduser().absolute()
    except RuntimeError as error:  # no home folder, or that of an unknown user
        raise ConfigError(f"cannot find the data folder: {error}; set data-dir=FOLDER") from None
