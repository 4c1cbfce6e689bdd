"""The command ``gradpath``: run, report, check, ui."""

import argparse
import secrets
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NoReturn

from gradpath.terminal import printable, settle

if TYPE_CHECKING:
    from gradpath.experiment import Experiment

USAGE = """\
usage: gradpath COMMAND …

  gradpath run [KEY=VALUE …]          train one network and record it in MLflow
  gradpath run seed=0..15 …           the same with 16 seeds at once, side by side
  gradpath run -m KEY=V1,V2 …         the same for every combination: a sweep
  gradpath run -m +experiment=NAME    the sweep of a study in conf/experiment/
  gradpath report [KEY=VALUE …]       draw the figures of the newest sweep
  gradpath check [KEY=VALUE …]        check the gradient of any configuration
  gradpath ui [--port N]              open the MLflow UI

  gradpath COMMAND --help             what can be set
"""

RUN_HELP = """\
usage: gradpath run [-m] [KEY=VALUE …]

  gradpath run arm=lstm task=temporal_order task.length=50 seed=3
  gradpath run arm=lstm seed=0..15                           16 networks side by side, each a run of its own in MLflow
  gradpath run -m arm=rnn,clipped_rnn,lstm seed=0,1,2        a sweep: every combination, one after another
  gradpath run -m arm=rnn,clipped_rnn,lstm seed=0..15        … with the seeds of each arm side by side
  gradpath run -m +experiment=vanishing                      the sweep of a study

--cfg job prints the configuration without running; --hydra-help lists Hydra's own options.
"""

CHECK_HELP = """\
usage: gradpath check [KEY=VALUE …]

  gradpath check arm=lstm cell.layers=2 task=copy            the overrides of a run

Checks every number that an instrument stores or the optimiser sees: by central differences on untied copies and by a
second backward pass that is written as a textbook would; at a small size, at the layers, H, B and type asked for, and
where the adjoint leaves floating point's middle. Says from which timestep and layer back a gradient is wrong. Exit
status 1 where an error exceeds its tolerance.
"""

REPORT_HELP = """\
usage: gradpath report [KEY=VALUE …]

  gradpath report                                            all figures of the newest sweep
  gradpath report study=vanishing                            … of the newest sweep of a study
  gradpath report figures=[norm_by_lag] sweep=SWEEP_ID       one figure of a given sweep
  gradpath report partial=true                               also where points are missing or double

Exit status 0 where all is drawn that the runs hold the numbers for; 1 where a figure failed, a named one could not be
drawn or a damaged run was left out; 2 where the sweep is refused because points are missing or double.
"""


def main() -> None:
    """Entry point; the exit status is 0, 1 where a run or a figure that was asked for failed, or 2 where the command
    itself was wrong.
    """
    settle()
    commands: dict[str, Callable[[list[str]], int]] = {"run": run, "report": report, "check": check, "ui": ui}
    command, rest = (sys.argv[1], sys.argv[2:]) if len(sys.argv) > 1 else ("--help", [])
    if command in ("-h", "--help"):
        print(USAGE, end="")
        sys.exit(0)
    if command not in commands:
        print(f"gradpath: {printable(command)}: no such command; there are {', '.join(commands)}", file=sys.stderr)
        sys.exit(2)
    from gradpath.config import ConfigError
    from gradpath.store import StoreError

    try:
        sys.exit(commands[command](rest))
    except (ConfigError, StoreError) as error:
        print(f"gradpath: {printable(error, 2000)}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("gradpath: interrupted", file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        if not type(error).__module__.startswith(("mlflow.", "sqlalchemy.", "requests.")):
            raise
        print(f"gradpath: the MLflow store answered: {printable(str(error).partition(chr(10))[0])}", file=sys.stderr)
        sys.exit(2)


def run(arguments: list[str]) -> int:
    """``gradpath run``: checks every point first, then hands over to Hydra, which runs them."""
    import hydra
    from hydra._internal.utils import get_args_parser
    from omegaconf import DictConfig

    from gradpath import config, paths, plan, store

    if {"-h", "--help"} & set(arguments):
        _help(RUN_HELP, "config", config.GROUPS, without="figures", extra=("arm", "experiment"))
        return 0
    given = _parsed(get_args_parser(), arguments)
    asks_hydra = given.cfg or given.info or given.hydra_help or given.shell_completion
    jobs: list[list[Experiment]] = []
    if not asks_hydra:
        expanded = config.points(given.overrides) if given.multirun else [given.overrides]
        jobs = [config.experiments(overrides) for overrides in expanded]
        known: set[str] = set()
        for overrides, points in zip(expanded, jobs, strict=True):
            for point in points:
                if point.config_hash in known:
                    raise config.ConfigError(
                        f"{' '.join(overrides)}: this point is in the sweep twice, with seed {point.seed}"
                    )
                known.add(point.config_hash)
        for uri, name in {(points[0].tracking.uri, points[0].tracking.experiment) for points in jobs}:
            client = store.connect(uri, timeout=max(points[0].tracking.timeout for points in jobs))
            place = store.experiment_id(client, name)  # once, before processes of a sweep could race for it
            for line in store.reap(client, place):
                print(line, file=sys.stderr)
    sweep_id = f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"
    if not asks_hydra:
        plan.record(zip(expanded, jobs, strict=True), sweep_id)
    total = sum(map(len, jobs))
    failures: list[str] = []

    def job(composed: DictConfig) -> None:
        from hydra.core.hydra_config import HydraConfig

        from gradpath.run import execute_seeds, label

        settle()  # also where a launcher runs this in a process of its own
        experiments: list[Experiment] = config.build(composed).experiments()
        position = ""
        if given.multirun:
            before = sum(map(len, jobs[: HydraConfig.get().job.num]))
            ends = sorted({before + 1, before + len(experiments)})
            position = f"[{'-'.join(map(str, ends))}/{total}]"
        try:
            given_id = experiments[0].tracking.sweep_id
            execute_seeds(experiments, given_id or sweep_id, position, config.jobs_at_once())
        except Exception as error:
            if isinstance(error, store.StoreError) or not (given.multirun or isinstance(error, MemoryError)):
                raise
            # The other points of a sweep still run; these are FAILED in MLflow and named at the end.
            failures.append(f"{label(experiments)}: {type(error).__name__}: {error}")

    config.register()
    # Hydra wants its options before the overrides; people write them anywhere.
    options = [argument for argument in arguments if argument not in given.overrides]
    sys.argv = ["gradpath run", *options, *given.overrides]
    hydra.main(version_base="1.3", config_path=str(paths.conf()), config_name="config")(job)()
    if asks_hydra:
        return 0
    tracking = jobs[0][0].tracking
    name = tracking.experiment
    print(
        f"{total} run{'s'[: total != 1]} of sweep {tracking.sweep_id or sweep_id} in MLflow experiment {name}.", end=""
    )
    print(f" Figures: gradpath report study={name}. Curves: gradpath ui")
    for failure in failures:
        print(f"failed: {printable(failure, 2000)}", file=sys.stderr)
    return 1 if failures else 0


def _parsed(parser: argparse.ArgumentParser, arguments: list[str]) -> argparse.Namespace:
    """Hydra's own options and the overrides, in any order; raises ConfigError for an unknown option."""
    from gradpath.config import ConfigError

    def refuse(message: str) -> NoReturn:
        raise ConfigError(f"{message}; see gradpath run --help")

    parser.error = refuse  # type: ignore[method-assign]
    return parser.parse_intermixed_args(arguments)


def _only_overrides(arguments: list[str]) -> list[str]:
    """The arguments of a command that knows no options; raises ConfigError."""
    from gradpath.config import ConfigError

    for argument in arguments:
        if argument.startswith("-"):
            raise ConfigError(f"{argument}: this command takes KEY=VALUE and --help only")
    return arguments


def report(arguments: list[str]) -> int:
    """``gradpath report``: draws the figures."""
    from threadpoolctl import threadpool_limits

    from gradpath import config
    from gradpath.report import write

    if {"-h", "--help"} & set(arguments):
        _help(REPORT_HELP, "report", {"figures": config.GROUPS["figures"]})
        return 0
    named = any(argument.startswith("figures=") for argument in arguments)
    with threadpool_limits(1, "blas"):
        return write(config.report(_only_overrides(arguments)), named)


def check(arguments: list[str]) -> int:
    """``gradpath check``: the gradient check of what the overrides describe; 1 where it finds an error."""
    from threadpoolctl import threadpool_limits

    from gradpath import check as checking
    from gradpath import config

    if {"-h", "--help"} & set(arguments):
        _help(CHECK_HELP, "config", config.GROUPS, without="figures", extra=("arm",))
        return 0
    experiment = config.experiment(_only_overrides(arguments))
    if experiment.cell.truncated:
        raise config.ConfigError(
            "cell.truncate=true: a truncated gradient is not the loss's gradient; nothing to check"
        )
    rows: list[checking.Row] = []
    print(f"{experiment.title}: {checking.sizes(experiment)}")
    with threadpool_limits(1, "blas"):
        for case, found in checking.every_case(experiment):
            rows = found
            if case and sys.stderr.isatty():
                print(f"\r\x1b[2Kchecking: {case} …", end="", file=sys.stderr, flush=True)
    if sys.stderr.isatty():
        print("\r\x1b[2K", end="", file=sys.stderr, flush=True)
    print(checking.table(rows, experiment.cell.layers))
    return 0 if all(row.passed for row in rows) else 1


def ui(arguments: list[str]) -> int:
    """``gradpath ui``: the MLflow UI, with links to its charts."""
    from gradpath.ui import serve

    parser = argparse.ArgumentParser("gradpath ui", description="Opens the MLflow UI and prints links to its charts.")
    parser.add_argument("--uri", help="MLflow tracking URI (the project's own SQLite database)")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at (127.0.0.1)")
    parser.add_argument("--port", type=int, default=5000, help="port to listen at (5000)")
    given = parser.parse_args(arguments)
    return serve(given.uri, given.host, given.port)


def _help(usage: str, name: str, groups: dict[str, Any], without: str = "", extra: tuple[str, ...] = ()) -> None:
    """What can be set: the units to choose from, then every key with its value, what it takes and what it means."""
    from gradpath import config

    print(usage)
    print("Units to choose (GROUP=NAME):")
    for group in (*extra, *(g for g in groups if g != without)):
        print(f"  {'+' if group == 'experiment' else ''}{group + '=':<13} {', '.join(config.options(group))}")
    print("\nKeys (the value they have, what they take); those of another unit show with --cfg job after choosing it:")
    for key, value, takes, meaning in config.settable(config.load(name, [])):
        print(f"  {key + '=' + str(value):<52} {takes}{'. ' + meaning if meaning else ''}")
