"""Downloads of data sets, if the user allows them."""

from pathlib import Path

from fedmr_flwr.errors import DataError


def fetch(name: str, folder: Path, allowed: bool, remedy: str) -> None:
    """Download a data set with torchvision, which compares the published checksums.

    Args:
        name: of its class in torchvision.
        folder: the data folder.
        allowed: whether the user allows it.
        remedy: what to put where without a download.

    Raises:
        DataError: it is not allowed, or it failed.
    """
    if not allowed:
        raise DataError(
            f"{name} is not in {folder}; {remedy}, or set data-dir=FOLDER to its folder, or data.download=true to "
            "download it"
        )
    from torchvision import datasets

    try:
        getattr(datasets, name)(str(folder), download=True)
    except (OSError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:120]
        raise DataError(
            f"{name} is not in {folder} and could not be downloaded ({reason}); {remedy}, or set data-dir=FOLDER to "
            "its folder"
        ) from None
