"""``gradpath rerun RUN_ID``: makes a run again, and says whether the bits agree."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from omegaconf import OmegaConf

from gradpath.commands import compose
from gradpath.commands.arguments import Parser
from gradpath.commands.execute import execute_seeds
from gradpath.schema.settings import ConfigError
from gradpath.schema.text import printable
from gradpath.tracking import artifact, store, store_uri
from gradpath.tracking.comparison import compare
from gradpath.tracking.decoding import DamagedError
from gradpath.tracking.earlier import RERUN
from gradpath.tracking.stored_run import artifact_file
from gradpath.training.experiment import Experiment, Replicates, Tracking

UNITS = ("task", "cell", "init", "optimizer", "clip")
MOST_LINES = 20
"""Of what differs, that are printed."""


def rerun(arguments: list[str]) -> int:
    """The command; 0 where the bits agree, 1 where they do not."""
    parser = Parser("gradpath rerun", description="Makes a run again, and says whether the bits agree.")
    parser.add_argument("run", metavar="RUN_ID", help="of a finished run, as MLflow shows it")
    parser.add_argument("--uri", help="MLflow tracking URI (the project's own SQLite database)")
    if {"-h", "--help"} & set(arguments):
        parser.print_help()
        return 0
    options = parser.parse_args(arguments)
    client = store.connect(options.uri, create=False)
    first = _finished(client, options.run)
    experiment = _experiment(client, first, options.uri)
    sweep_id = f"rerun-{first.info.run_id[:12]}"
    (recorder,) = execute_seeds([experiment], sweep_id, tags={RERUN: first.info.run_id})
    second = client.get_run(recorder.run_id)
    try:
        comparison = compare(client, first, second)
    except DamagedError as error:
        raise ConfigError(f"{options.run}: {error}") from None
    if not comparison.differences:
        print(f"the bits agree: {comparison.numbers} numbers of {first.info.run_id}, made again as {recorder.run_id}")
        return 0
    print(f"the bits differ: {first.info.run_id}, made again as {recorder.run_id}")
    for title, lines in (("differ", comparison.differences), ("computed by", comparison.circumstances)):
        for line in lines[:MOST_LINES]:
            print(f"  {title}: {line}")
        if len(lines) > MOST_LINES:
            print(f"  {title}: and {len(lines) - MOST_LINES} more")
    return 1


def _finished(client: Any, run_id: str) -> Any:
    """A run of gradpath's that has finished; raises ConfigError."""
    if not re.fullmatch(r"[0-9a-f]{32}", run_id):
        raise ConfigError(f"{run_id}: must be a run's id, 32 hexadecimal digits, as MLflow shows it")
    try:
        run = client.get_run(run_id)
    except store.UnreachableError:
        raise
    except store.StoreError:
        raise ConfigError(f"{run_id}: no such run in {store_uri.named(client.tracking_uri)}") from None
    if not re.fullmatch(r"[0-9a-f]{12}", run.data.tags.get("config_hash", "")):
        raise ConfigError(f"{run_id}: is not a run of gradpath")
    if run.info.status != "FINISHED":
        raise ConfigError(f"{run_id}: has not finished: {run.info.status}; the command that began it goes on with it")
    return run


def _experiment(client: Any, run: Any, uri: str | None) -> Experiment:
    """The experiment that a run has recorded; raises ConfigError where it cannot be had here."""
    run_id, identity = run.info.run_id, run.data.tags["config_hash"]
    try:
        with artifact_file(client, run, "config.yaml") as path:
            config = artifact.configuration(path, identity)
    except DamagedError as error:
        raise ConfigError(f"{run_id}: {error}") from None
    try:
        names = [str(config[group].get("name")) for group in UNITS] + [*config.get("instruments", {})]
        if not all(re.fullmatch(r"\w+", str(name)) for name in names) or any("${" in text for text in _texts(config)):
            raise ConfigError(f"{run_id}: its configuration holds what gradpath does not write")
        chosen = [f"{group}={config[group]['name']}" for group in UNITS]
        composed = compose.load("config", [*chosen, f"instruments=[{','.join(config['instruments'])}]"])
        partitioned = config["train"].pop("partitioned", None)
        for group in UNITS:
            del config[group]["name"]
        config["train"]["threads"] = {True: 2, False: 1}.get(partitioned)
        for key, value in config.items():
            OmegaConf.update(composed, key, value, merge=True)
        replicates: Replicates = compose.build(composed)
        name = client.get_experiment(run.info.experiment_id).name
        (experiment,) = replicates.experiments()
        experiment = replace(experiment, resume=False, tracking=Tracking(uri=uri, experiment=name))
    except (ConfigError, store.StoreError):
        raise
    except Exception as error:  # of OmegaConf at keys and types, of a unit at values, that this gradpath does not have
        cause = printable(f"{type(error).__name__}: {error}".partition("\n")[0], 300)
        raise ConfigError(f"{run_id}: cannot be made again by this gradpath: {cause}") from None
    if experiment.config_hash != identity:
        raise ConfigError(f"{run_id}: cannot be made again: in this gradpath its configuration is another one")
    return experiment


def _texts(node: Any) -> Iterator[str]:
    """All text in a plain tree, keys too."""
    if isinstance(node, Mapping):
        for key, value in node.items():
            yield str(key)
            yield from _texts(value)
    elif isinstance(node, list):
        for value in node:
            yield from _texts(value)
    elif isinstance(node, str):
        yield node
