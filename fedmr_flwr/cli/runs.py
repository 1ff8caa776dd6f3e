"""The commands that train: `fedmr run` and `resume`."""

from typing import TYPE_CHECKING

from fedmr_flwr.cli.arguments import Conf, Engine, Folder, Overrides, Superlink, engine_overrides, print_line
from fedmr_flwr.errors import ConfigError
from fedmr_flwr.report.console import Console

if TYPE_CHECKING:
    from fedmr_flwr.config.settings import Settings
    from fedmr_flwr.runs.folder import RunFolder


def run(conf: Conf, overrides: Overrides = None, engine: Engine = None, superlink: Superlink = None) -> None:
    """Train a model and write its run folder.

    CONF is a configuration: a file, or the name of one that comes with the package, such as quickstart. OVERRIDES are
    key=value, nested keys with dots: training.lr=0.1.
    """
    from fedmr_flwr.config.loading import load, resolve_paths
    from fedmr_flwr.launch import engines
    from fedmr_flwr.runs import folder

    settings = resolve_paths(load(conf, [*(overrides or []), *engine_overrides(engine, superlink)]))
    assert settings.run_dir is not None
    # Before the data are loaded, which may take minutes.
    folder.check_free(settings.run_dir)
    engines.check_names(settings)
    _run(settings)


def resume(
    run_folder: Folder, overrides: Overrides = None, engine: Engine = None, superlink: Superlink = None
) -> None:
    """Resume a run that was stopped, or continue a complete one.

    RUN is its folder. The result is the same as without the interruption, with another engine, too. OVERRIDES are
    key=value: rounds=N for more rounds, and keys that leave the rounds as they are: engine, device, stop, evaluation,
    keep-models, track, checkpoint-every, round-timeout, max-bad-rounds, data-dir.
    """
    from fedmr_flwr.config.identity import check_resumable
    from fedmr_flwr.config.loading import load_recorded, to_yaml
    from fedmr_flwr.runs.folder import RunFolder
    from fedmr_flwr.runs.versions import changed_versions
    from fedmr_flwr.server.stopping import Stopping

    out = RunFolder.open(run_folder.absolute())
    changes = [*(overrides or []), *engine_overrides(engine, superlink)]
    check_resumable(changes)
    settings = load_recorded(out.config, changes).model_copy(update={"run_dir": out.path})
    rows, manifest = out.read_rows(), out.read_manifest()
    if settings.rounds < len(rows):
        raise ConfigError(f"rounds is {settings.rounds}, but {out.path} has already {len(rows)} rounds; raise it")
    # A completed run can be continued after its number of rounds was raised, or what ended it early has changed.
    if out.status == "completed":
        if reason := Stopping(settings.stop, rows).reason:
            line = (
                f"{out.path} is complete after round {len(rows)}: {reason}; raise it, or set it to null, to continue"
            )
            if overrides:
                raise ConfigError(line)
            print_line(line)
            return
        if manifest.get("rounds", 0) >= settings.rounds:
            print_line(f"{out.path} is complete: it has all {settings.rounds} rounds")
            return
    # Not an error: other versions give a valid result, only not bit for bit the same.
    for line in changed_versions(manifest.get("versions", {})):
        print_line(f"{line}: the result may differ in its last digits")
    if not overrides:
        _run(settings, out)
        return
    before = out.config.read_text(encoding="utf-8")
    with out.locked():
        out.configure(to_yaml(settings))
    try:
        _run(settings, out)
    except BaseException:
        # What was refused is not part of the run: it would be refused whenever the run is resumed.
        if out.read_rows() == rows:
            out.configure(before)
            if manifest.get("status") == "completed":
                out.note(status="completed", error=None)
        raise


def _run(settings: "Settings", prepared: "RunFolder | None" = None) -> None:
    """Run an experiment, or resume one, and show its results."""
    from fedmr_flwr.launch import engines
    from fedmr_flwr.report.display import Display
    from fedmr_flwr.report.tables import format_client_accuracy, table

    path = f"run folder: {settings.run_dir}"
    # Before and after: at the end the first line has scrolled away.
    print_line(path)
    done = engines.run(settings, Display(settings.rounds, Console()), prepared)
    Console().print(table(done.read_rows()))
    manifest = done.read_manifest()
    if over := manifest.get("client-accuracy"):
        print_line(format_client_accuracy(over))
    if over := manifest.get("tuned-accuracy"):
        print_line(format_client_accuracy(over, "after fine-tuning"))
    print_line(path)
