"""Runs from Python, for notebooks and scripts."""

import json
from pathlib import Path

from fedmr_flwr.analysis.results import RunResults
from fedmr_flwr.config.loading import load, resolve_paths
from fedmr_flwr.errors import ConfigError
from fedmr_flwr.launch import engines
from fedmr_flwr.report.console import Console
from fedmr_flwr.report.display import Display
from fedmr_flwr.runs import folder


def run(conf: str | Path, *overrides: str, **settings: object) -> RunResults:
    """Train a model as `fedmr run` does, and return its results.

        run("quickstart", "strategy.name=fedavg", rounds=20).metrics["test-accuracy"].plot()

    Args:
        conf: a configuration file, or the name of one that comes with the package.
        *overrides: "key=value", nested keys with dots.
        **settings: values of keys that are not nested, with underscores for hyphens: rounds=20, run_dir="runs/a".

    Raises:
        FedmrError: the configuration, the data or the clients are wrong, or the run failed.
    """
    for name, value in settings.items():
        if isinstance(value, dict):
            raise ConfigError(f"{name} is a section; set its keys by overrides, such as '{name}.KEY=VALUE'")
    # JSON is YAML, too.
    given = [f"{name.replace('_', '-')}={json.dumps(value, default=str)}" for name, value in settings.items()]
    complete = resolve_paths(load(conf, [*overrides, *given]))
    assert complete.run_dir is not None
    # Before the data are loaded, which may take minutes.
    folder.check_free(complete.run_dir)
    return RunResults(engines.run(complete, Display(complete.rounds, Console())).path)
