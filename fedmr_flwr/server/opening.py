"""Opening of a sealed run where the key is: its model from its latest checkpoint."""

from fedmr_flwr import models
from fedmr_flwr.algorithms.sealed import SealedPopulation
from fedmr_flwr.client.data_spec import DataSpec
from fedmr_flwr.client.seals import Seals
from fedmr_flwr.config.loading import load_recorded
from fedmr_flwr.errors import RunFolderError
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
        The round after which it is the model.

    Raises:
        RunFolderError: the run is not sealed, or has no checkpoint yet.
        SealError: a unit cannot be opened, or is not the one that should be there.
    """
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
    state = SealedPopulation.from_arrays(found.state, SealedCodec(dealing_of(settings, layout).units, codec.wire))
    initial = codec.encode(found.model)
    seals = Seals.of_run(settings, codec, key, out.identifier(), initial, hash_initial(initial), state.skipped)
    sha256 = out.save_model(arrays_of(seals.mean(state.models, state.examples, state.dealt), layout, model))
    out.note(**{"model-sha256": sha256})
    return found.round
