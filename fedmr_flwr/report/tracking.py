"""Trackers: TensorBoard, Weights & Biases and MLflow show the metrics of a run, while it trains or afterwards.

A tracker asks its own store for the last round that it has, and no round is written a second time: neither after the
run was resumed, which repeats rounds, nor when it is exported again. Rounds that changed nothing are left out: a
resumed run may repeat them with another outcome.
"""

import importlib.util
import json
import math
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from fedmr_flwr.config.settings import Settings
from fedmr_flwr.errors import ConfigError, RunError
from fedmr_flwr.runs.folder import RunFolder

# What MLflow accepts in a name; a client chooses the names of its metrics.
_REFUSED = re.compile(r"[^\w\-. :/]")
# The parameters, or metrics, that MLflow takes at a time.
_BATCH = 100


Row = Mapping[str, Any]


class Tracker(Protocol):
    """Where the metrics of a run go.

    Attributes:
        place: for the user: a folder or an address.
        last: the last round that is there already; 0 if none is.
    """

    place: str
    last: int

    def write(self, number: int, values: Mapping[str, float]) -> None:
        """Write the metrics of a round, by name."""

    def close(self) -> None:
        """Write what is left; the run has ended."""


class TensorBoard:
    """Event files in the run folder."""

    def __init__(self, out: RunFolder, parameters: Mapping[str, Any]) -> None:
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
        from torch.utils.tensorboard import SummaryWriter
        from torch.utils.tensorboard.summary import hparams

        path = out.path / "tensorboard"
        self.place, self.last = str(path), 0
        if path.exists():
            found = EventAccumulator(str(path)).Reload()
            if "seconds" in found.Tags()["scalars"]:
                self.last = found.Scalars("seconds")[-1].step
        self._writer = SummaryWriter(str(path))
        if not self.last:
            part = "validation" if parameters["data.validation"] else "test"
            for summary in hparams(dict(parameters), {f"{part}-accuracy": 0.0}):  # type: ignore[no-untyped-call]
                self._writer.file_writer.add_summary(summary)  # type: ignore[attr-defined]  # None by its types

    def write(self, number: int, values: Mapping[str, float]) -> None:
        """Add the scalars of a round."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, number)
        self._writer.flush()

    def close(self) -> None:
        """Close the file."""
        self._writer.close()


class Wandb:
    """A run of Weights & Biases; with WANDB_MODE=offline, in the run folder."""

    def __init__(self, out: RunFolder, parameters: Mapping[str, Any]) -> None:
        import wandb

        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "fedmr"),
            id=out.identifier(),
            name=out.path.name,
            dir=out.path,
            config=dict(parameters),
            allow_val_change=True,
            resume="allow",
            # The output of a run is its own.
            settings=wandb.Settings(console="off", silent=True),
        )
        here = Path(self._run.sync_dir)
        if self._run.offline:
            # It cannot be continued, but it can be written again: what is here of an earlier part of this run.
            for earlier in set(here.parent.glob(f"offline-run-*-{self._run.id}")) - {here}:
                shutil.rmtree(earlier)
        self.place = str(here) if self._run.offline else str(self._run.url)
        self.last = self._run.starting_step - 1

    def write(self, number: int, values: Mapping[str, float]) -> None:
        """Log a step, which W&B takes only if it is later than the last one."""
        self._run.log(dict(values), step=number)

    def close(self) -> None:
        """Wait until everything has been sent or written."""
        self._run.finish()


class Mlflow:
    """A run of MLflow, in the store of MLFLOW_TRACKING_URI or else in a file beside the run folder."""

    def __init__(self, out: RunFolder, parameters: Mapping[str, Any]) -> None:
        from mlflow.entities import Param
        from mlflow.tracking import MlflowClient

        self.place = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{out.path.parent / 'mlflow.db'}"
        self._client = MlflowClient(tracking_uri=self.place)
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "fedmr")
        experiment = self._client.get_experiment_by_name(name)
        where = experiment.experiment_id if experiment else self._client.create_experiment(name)
        identifier = out.identifier()
        found = self._client.search_runs([where], f"tags.`fedmr.run-id` = '{identifier}'")
        tags = {"fedmr.run-id": identifier}
        run = found[0] if found else self._client.create_run(where, run_name=out.path.name, tags=tags)
        self._id = run.info.run_id
        self.last = max((metric.step for metric in self._client.get_metric_history(self._id, "seconds")), default=0)
        if found:
            self._client.update_run(self._id, status="RUNNING")
        else:
            params = [Param(name, str(value)) for name, value in parameters.items()]
            for at in range(0, len(params), _BATCH):
                self._client.log_batch(self._id, params=params[at : at + _BATCH])

    def write(self, number: int, values: Mapping[str, float]) -> None:
        """Log the metrics of a round."""
        from mlflow.entities import Metric

        now = int(1000 * time.time())
        metrics = [Metric(_REFUSED.sub("_", name), value, now, number) for name, value in values.items()]
        # "seconds" last, because it says which rounds are there.
        metrics.sort(key=lambda metric: metric.key == "seconds")
        for at in range(0, len(metrics), _BATCH):
            self._client.log_batch(self._id, metrics=metrics[at : at + _BATCH])

    def close(self) -> None:
        """Mark the run as finished."""
        self._client.set_terminated(self._id)


# By name, which is also that of the package and of the extra that installs it.
TRACKERS: Mapping[str, Callable[[RunFolder, Mapping[str, Any]], Tracker]] = {
    "tensorboard": TensorBoard,
    "wandb": Wandb,
    "mlflow": Mlflow,
}


def check(names: Sequence[str]) -> None:
    """Check that trackers are installed.

    Raises:
        ConfigError: one is not.
    """
    for name in names:
        found = importlib.util.find_spec(name)
        # A folder of that name, which W&B itself makes, would be a package without a file.
        if found is None or found.origin is None:
            raise ConfigError(f'{name} is not installed: pip install "fedmr_flwr[{name}]"')


@contextmanager
def tracking(
    names: Sequence[str], out: RunFolder, settings: Settings, report: Callable[[str], None]
) -> Iterator[Callable[[Row], None]]:
    """Yield a function that passes a round's metrics to trackers, which have all earlier rounds by then.

    Args:
        names: of the trackers.
        out: the run's folder, with the metrics of the earlier rounds.
        settings: of the run.
        report: called with each line for the user. A tracker that fails while the run trains is reported and left
            out, because the run is worth more than its picture.

    Raises:
        RunError: a tracker cannot be opened.
    """
    trackers: dict[str, Tracker] = {}
    units = out.read_manifest().get("units", [])

    def write(tracker: Tracker, row: Row) -> None:
        changed = not row.get("bad") and "problem" not in row
        if changed and row["round"] > tracker.last:
            tracker.write(row["round"], _values(row, units, _classes(out, row["round"])))

    def write_to_all(row: Row) -> None:
        for name, tracker in [*trackers.items()]:
            try:
                write(tracker, row)
            except Exception as error:  # whatever a library or its server does
                del trackers[name]
                report(
                    f"{name} has failed: {_line(error)}; `fedmr export {out.path} --to {name}` adds what is missing"
                )

    try:
        for name in names:
            try:
                trackers[name] = TRACKERS[name](out, _flat(settings.model_dump(mode="json", by_alias=True)))
                for row in out.read_rows():
                    write(trackers[name], row)
            except Exception as error:
                raise RunError(f"{name} has failed: {_line(error)}") from None
            report(f"{name}: {trackers[name].place}")
        yield write_to_all
    finally:
        for tracker in trackers.values():
            tracker.close()


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the keys of a configuration that have a value, with dots."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            found |= _flat(value, f"{prefix}{name}.")
        elif value is not None:
            found[prefix + name] = value if isinstance(value, bool | int | float | str) else json.dumps(value)
    return found


def _values(row: Row, units: Sequence[str], classes: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Return the numbers of a round by name; those of parts after a slash: bytes-down/arrays, spread/UNIT."""
    parts: dict[str, Mapping[Any, Any]] = {name: value for name, value in row.items() if isinstance(value, Mapping)}
    parts["spread"] = dict(zip(units, row.get("spread", ()), strict=False))
    parts["slot-accuracies"] = dict(enumerate(row.get("slot-accuracies", ())))
    for name in ("precision", "recall", "f1-score"):
        parts[name] = {label: scores[name] for label, scores in classes.items()}
    found = {name: value for name, value in row.items() if name != "round"}
    found |= {f"{name}/{part}": value for name, values in parts.items() for part, value in values.items()}
    return {
        name: float(value) for name, value in found.items() if isinstance(value, int | float) and math.isfinite(value)
    }


def _classes(out: RunFolder, number: int) -> Mapping[str, Mapping[str, float]]:
    """Return the scores of each class after a round; none if the latest ones are of another round."""
    found = json.loads(out.classes.read_text(encoding="utf-8")) if out.classes.exists() else {}
    return found["classes"] if found.get("round") == number else {}


def _line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())
