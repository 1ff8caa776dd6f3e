"""Where data files are if nothing else is said."""

import os
from pathlib import Path

from fedmr_flwr.errors import ConfigError


def default_data_dir() -> Path:
    """Return the folder of data files if none is given: $FEDMR_DATA_DIR, or one in the user's cache."""
    try:
        return Path(os.environ.get("FEDMR_DATA_DIR") or "~/.cache/fedmr_flwr").expanduser().absolute()
    except RuntimeError as error:  # no home, or that of a user who is not known
        raise ConfigError(f"there is no data folder: {error}; name one with data-dir=FOLDER") from None
