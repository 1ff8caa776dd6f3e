"""Opening of a sealed run where the key is: its model from its latest checkpoint."""

from collections.abc import Sequence
from importlib.machinery import PathFinder
from pathlib import Path

from fedmr_flwr import models
from fedmr_flwr.algorithms.sealed import SealedPopulation
from fedmr_flwr.client.data_spec import DataSpec
from fedmr_flwr.client.seals import Seals
from fedmr_flwr.config.identity import texts
from fedmr_flwr.config.loading import load_recorded
from fedmr_flwr.config.yaml_text import read_settings
from fedmr_flwr.errors import RunFolderError
from fedmr_flwr.files import reading
from fedmr_flwr.models.packing import arrays_of, layout_of
from fedmr_flwr.runs import checkpoint
from fedmr_flwr.runs.folder import RunFolder
from fedmr_flwr.wire.codec import Codec
from fedmr_flwr.wire.sealed import SealedCodec, dealing_of, hash_initial


def open_run(out: RunFolder, key: bytes) -> int:
    """Write the global model of a sealed run to its folder, and its hash to the manifest.

    Args:
        out: the run's folder, or a copy of it.
        key: of the run's nodes.

    Returns:
        The latest round that has changed it.

    Raises:
        RunFolderError: the run is not sealed, has no checkpoint yet, or names code in its own folder.
        SealError: a unit cannot be opened, or is not the one that should be there.
    """
    # The folder comes from the server, whose code must not be run where the key is.
    for text in texts(read_settings(out.config)):
        if ":" in text and _lies_in(out.path.resolve(), text.partition(":")[0]):
            raise RunFolderError(f"{out.config} names code in the run's folder, which is not run: {text}")
    settings, manifest = load_recorded(out.config), out.read_manifest()
    if not settings.privacy.sealed:
        raise RunFolderError(f"{out.path} is not the folder of a sealed run; its model can be read as it is")
    found, _ = checkpoint.latest(out.checkpoints)
    if found is None or "data-spec" not in manifest:
        raise RunFolderError(f"{out.path} has no checkpoint yet; let the run reach one")
    spec = DataSpec.from_json(manifest["data-spec"])
    model = models.build(
        settings.model.name, spec.input_shape, spec.classes, settings.seed, settings.model.initialise,
        settings.model.features, spec.text,
    )  # fmt: skip
    layout = layout_of(model)
    codec = Codec(layout, wire=settings.wire)
    of_units = SealedCodec(dealing_of(settings, layout).units, codec.wire)
    with reading(out.checkpoints, RunFolderError):
        state = SealedPopulation.from_arrays(found.state, of_units)
    if state.dealt < 1:  # it would be the initial model, which whoever made this folder may have replaced
        raise RunFolderError(f"{out.path} has no model yet that a client has trained; let the run reach one")
    initial = codec.encode(found.model)
    seals = Seals.of_run(settings, codec, key, out.identifier(), initial, hash_initial(initial), state.skipped)
    sha256 = out.save_model(arrays_of(seals.mean(state.models, state.examples, state.dealt), layout, model))
    out.note(**{"model-sha256": sha256})
    return state.dealt


def _lies_in(folder: Path, module: str) -> bool:
    """Return whether a module, or a package that it is in, would be imported from a folder; nothing is imported."""
    path: Sequence[str] | None = None
    for name in module.split("."):
        found = PathFinder.find_spec(name, path)
        if found is None:
            return False
        path = found.submodule_search_locations
        if any(Path(place).resolve().is_relative_to(folder) for place in (found.origin, *(path or ())) if place):
            return True
        if path is None:
            return False
    return False
