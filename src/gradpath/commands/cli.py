"""The command ``gradpath``: run, report, check, ui, new."""

import argparse
import signal
import sys
from collections.abc import Callable
from typing import Any, NoReturn

from gradpath.commands.new import new
from gradpath.commands.terminal import settle
from gradpath.schema.settings import ConfigError
from gradpath.schema.text import one_line

USAGE = """\
usage: gradpath COMMAND …

  gradpath run [KEY=VALUE …]          train one network and record it in MLflow
  gradpath run seed=0..15 …           the same with 16 seeds at once, side by side
  gradpath run -m KEY=V1,V2 …         the same for every combination: a sweep
  gradpath run -m +experiment=NAME    the sweep of a study in conf/experiment/
  gradpath report [KEY=VALUE …]       draw the figures of the newest sweep
  gradpath check [KEY=VALUE …]        check the gradient of any configuration
  gradpath ui [--port N]              open the MLflow UI
  gradpath new KIND NAME              write the files of a cell, task, … of your own

  gradpath COMMAND --help             what can be set

  gradpath -sc install=bash           completion; also zsh and fish: eval "$(gradpath -sc install=bash)"
  --plugin PATH                       with any of them: a folder with cells/, tasks/, conf/ … of your own
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
    """Entry point; the exit status is 0, 1 where a run or a figure that was asked for failed, 2
    where the command itself was wrong or its store cannot be used, 128 + n where the signal n ended
    it. Whatever happens is one line.
    """
    from gradpath.commands.signals import Terminated, terminable

    settle()
    commands = dict[str, Callable[[list[str]], int]](run=run, report=report, check=check, ui=ui, new=new)
    completion = {"-sc": complete, "--shell-completion": complete}
    command, arguments = (sys.argv[1], sys.argv[2:]) if len(sys.argv) > 1 else ("--help", [])
    if command in ("-h", "--help"):
        print(USAGE, end="")
        sys.exit(0)
    if command not in commands | completion:
        print(f"gradpath: {one_line(command)}: no such command; there are {', '.join(commands)}", file=sys.stderr)
        sys.exit(2)
    try:
        with terminable():
            sys.exit(_status((commands | completion)[command], arguments))
    except KeyboardInterrupt as error:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # it is ending; a second Ctrl-C has nothing to stop
        print(": ".join(["gradpath: interrupted", *map(str, error.args)]), file=sys.stderr)
        sys.exit(130)
    except Terminated as error:
        print(f"gradpath: ended by {error}", file=sys.stderr)
        sys.exit(error.code)


def _status(command: Callable[[list[str]], int], arguments: list[str]) -> int:
    """Runs a command; the one place where errors become a line and a status."""
    from gradpath.commands.reasons import reason
    from gradpath.commands.signals import ending
    from gradpath.tracking.store import StoreError

    try:
        return command(arguments if command is new else with_plugins(arguments))
    except (Exception, SystemExit) as error:  # a unit that calls sys.exit has failed too
        if ended := ending(error):
            raise ended from None
        if isinstance(error, ConfigError | StoreError):
            print(f"gradpath: {one_line(str(error))}", file=sys.stderr)
            return 2
        if type(error).__module__.startswith(("mlflow.", "sqlalchemy.", "requests.")):
            print(f"gradpath: the MLflow store answered: {one_line(str(error).partition(chr(10))[0])}", file=sys.stderr)
            return 2
        print(f"gradpath: {reason(error)}", file=sys.stderr)
        return 1


def with_plugins(arguments: list[str]) -> list[str]:
    """The arguments without ``--plugin PATH``, each now a plugin; raises ConfigError."""
    if "--plugin" not in " ".join(arguments):
        return arguments
    from gradpath.schema import plugins

    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--plugin", action="append", default=[])

    def refuse(message: str) -> NoReturn:
        raise ConfigError("--plugin: takes the path of a folder")

    parser.error = refuse  # type: ignore[method-assign]
    chosen, remaining = parser.parse_known_args(arguments)
    for path in chosen.plugin:
        plugins.add(path)
    return remaining


def run(arguments: list[str]) -> int:
    """``gradpath run``: checks every point first, then hands over to Hydra, which runs them."""
    from gradpath.commands import compose, hydra_options

    if {"-h", "--help"} & set(arguments):
        _help(RUN_HELP, "config", compose.GROUPS, excluded="figures", extra=("arm", "experiment"))
        return 0
    options = hydra_options.read_options(arguments)
    if options.answer is not None:
        options.answer()
        return 0
    from gradpath.commands import launch

    return launch.launch(options)


def _only_overrides(arguments: list[str]) -> list[str]:
    """The arguments of a command that knows no options; raises ConfigError."""
    for argument in arguments:
        if argument.startswith("-"):
            raise ConfigError(f"{argument}: this command takes KEY=VALUE and --help only")
    return arguments


def report(arguments: list[str]) -> int:
    """``gradpath report``: draws the figures."""
    from threadpoolctl import threadpool_limits

    from gradpath.commands import compose
    from gradpath.commands.report import write
    from gradpath.tracking.store import uri_key

    if {"-h", "--help"} & set(arguments):
        _help(REPORT_HELP, "report", {"figures": compose.GROUPS["figures"]})
        return 0
    named = any(argument.startswith("figures=") for argument in arguments)
    with threadpool_limits(1, "blas"), uri_key("uri"):
        return write(compose.report(_only_overrides(arguments)), named)


def check(arguments: list[str]) -> int:
    """``gradpath check``: the gradient check of what the overrides describe; 1 where it finds an
    error.
    """
    from threadpoolctl import threadpool_limits

    from gradpath import gradient_check as checking
    from gradpath.commands import compose
    from gradpath.commands.execute import check_loops

    if {"-h", "--help"} & set(arguments):
        _help(CHECK_HELP, "config", compose.GROUPS, excluded="figures", extra=("arm",))
        return 0
    experiment = compose.experiment(_only_overrides(arguments))
    if experiment.cell.truncated:
        raise ConfigError("cell.truncate=true: a truncated gradient is not the loss's gradient; nothing to check")
    check_loops([experiment])
    rows: list[checking.Row] = []
    print(f"{experiment.title}: {checking.cases.sizes(experiment)}")
    with threadpool_limits(1, "blas"):
        for case, reported in checking.every_case(experiment):
            rows = reported
            if case and sys.stderr.isatty():
                print(f"\r\x1b[2Kchecking: {case} …", end="", file=sys.stderr, flush=True)
    if sys.stderr.isatty():
        print("\r\x1b[2K", end="", file=sys.stderr, flush=True)
    print(checking.table(rows, experiment.cell.layers))
    return 0 if all(row.passed for row in rows) else 1


def complete(arguments: list[str]) -> int:
    """``gradpath -sc install=bash``: completion in a shell."""
    from gradpath.commands import completion

    return completion.complete(arguments)


def ui(arguments: list[str]) -> int:
    """``gradpath ui``: the MLflow UI, with links to its charts."""
    from gradpath.commands.ui import serve
    from gradpath.tracking.store import uri_key

    parser = argparse.ArgumentParser("gradpath ui", description="Opens the MLflow UI and prints links to its charts.")
    parser.add_argument("--uri", help="MLflow tracking URI (the project's own SQLite database)")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at (127.0.0.1)")
    parser.add_argument("--port", default="5000", help="port to listen at (5000)")
    if {"-h", "--help"} & set(arguments):
        parser.print_help()
        return 0

    def refuse(message: str) -> NoReturn:
        raise ConfigError(f"{message}; see gradpath ui --help")

    parser.error = refuse  # type: ignore[method-assign]
    options = parser.parse_args(arguments)
    if not (options.port.isascii() and options.port.isdigit() and 1 <= int(options.port[:9]) <= 65535):
        raise ConfigError(f"--port {options.port}: must be a number from 1 to 65535")
    with uri_key("--uri"):
        return serve(options.uri, options.host, int(options.port))


def _help(usage: str, name: str, groups: dict[str, Any], excluded: str = "", extra: tuple[str, ...] = ()) -> None:
    """What can be set: the units to choose from, then every key with its value, what it takes and
    what it means.
    """
    from gradpath.commands import compose

    print(usage)
    print("Units to choose (GROUP=NAME):")
    for group in (*extra, *(g for g in groups if g != excluded)):
        print(f"  {'+' if group == 'experiment' else ''}{group + '=':<13} {', '.join(compose.options(group))}")
    print("\nKeys (the value they have, what they take); those of another unit show with --cfg job after choosing it:")
    for key, value, takes, meaning in compose.settable(compose.load(name, [])):
        print(f"  {key + '=' + str(value):<52} {takes}{'. ' + meaning if meaning else ''}")
