"""The command `fedmr flatness`."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from fedmr_flwr.cli.arguments import Folder, Format, PictureFormat, print_line, progress
from fedmr_flwr.errors import ConfigError
from fedmr_flwr.report.console import Console


def flatness(
    run_folder: Folder,
    other: Annotated[Path | None, typer.Argument(metavar="[OTHER]", hidden=True)] = None,
    number: Annotated[
        int | None, typer.Option("--round", metavar="N", help="A round of keep-models; default: the end of the run.")
    ] = None,
    slots: Annotated[bool, typer.Option("--slots", help="Measure the model of each slot, too.")] = False,
    clients: Annotated[
        int, typer.Option(metavar="N", min=0, help="Measure on the own examples of so many clients, too.")
    ] = 0,
    surface: Annotated[bool, typer.Option("--surface", help="Draw the loss around the model.")] = False,
    paths: Annotated[bool, typer.Option("--paths", help="Draw the paths of RUN and OTHER on one surface.")] = False,
    examples: Annotated[
        int, typer.Option(metavar="N", min=1, help="The number of training examples for the loss.")
    ] = 1000,
    device: Annotated[str, typer.Option(metavar="NAME", help="auto, cpu, cuda or cuda:N.")] = "auto",
    form: PictureFormat = Format.png,
) -> None:
    """Measure how flat a run's minimum is.

    The largest eigenvalues and the trace of the Hessian, sharpness, and the loss between the models of the slots. RUN
    is a run folder, OTHER the folder of a second run, for --paths.
    """
    from fedmr_flwr.analysis.flatness import plots
    from fedmr_flwr.analysis.flatness.measure import Flatness
    from fedmr_flwr.analysis.flatness.records import save
    from fedmr_flwr.analysis.results import load_run
    from fedmr_flwr.training.devices import pick_device

    if paths != (other is not None):
        raise ConfigError("--paths compares two runs: fedmr flatness RUN OTHER --paths")
    if paths and (number is not None or slots or clients or surface):
        raise ConfigError(
            "--paths draws both runs and measures neither; leave out --round, --slots, --clients and --surface"
        )
    results = load_run(run_folder)
    out, title = results.folder, results.folder.read_manifest().get("title", run_folder.name)
    with progress("reading the data") as report:
        found = Flatness(results, examples, pick_device(device), report)
        if other is not None:
            picture = out.path / f"paths.{form}"
            plots.surface(found.paths(load_run(other)), f"{title}, and {other.name}", picture)
            print_line(str(picture))
            return
        measured = found.measure(number, slots, clients)
        after = results.last_round if number is None else number
        title = f"{title} · after round {after}"
        written = [save(measured, after, out), out.path / f"flatness-{after:06d}.{form}"]
        plots.flatness(measured, title, written[-1])
        if surface:
            written.append(out.path / f"surface-{after:06d}.{form}")
            plots.surface(found.surface(number), title, written[-1])
    Console().print(_table(measured))
    for path in written:
        print_line(str(path))


def _table(measured: dict[str, Any]) -> Table:
    """Return a table of all models that were measured."""
    rows = {"global model": measured["global"]}
    rows |= {f"slot {slot}": own for slot, own in enumerate(measured.get("slots", []))}
    rows |= {f"client {own['client']}": own for own in measured.get("clients", [])}
    out = Table(caption=f"cross-entropy on {measured['examples']} training examples; a client's row is on its own")
    for at, name in enumerate(("model", "loss", "λ1", "λ1/λ5", "trace", "sharpness", "adaptive")):
        out.add_column(name, justify="right" if at else "left", no_wrap=True)
    for name, own in rows.items():
        numbers = [own["loss"], own["eigenvalues"][0], own["ratio"]]
        trace = f"{own['trace']:.4g} ± {own['trace-error']:.2g}"
        rises = [own["sharpness"], own["adaptive-sharpness"]]
        out.add_row(name, *(f"{value:.4g}" for value in numbers), trace, *(f"{value:.3g}" for value in rises))
    for group, what in (("between-slots", "between slots"), ("slot-to-global", "from slot to global model")):
        if barriers := measured.get("lines", {}).get(group, {}).get("barriers"):
            out.caption = f"{out.caption}\nlargest barrier {what}: {max(barriers):.3g}"
    return out
