"""The command ``gradpath``: run, report, check, ui, new, rerun, send."""

import argparse
import signal
import sys
from collections.abc import Callable
from importlib.metadata import version

from gradpath.commands.arguments import Parser
from gradpath.commands.new import new
from gradpath.commands.terminal import settle
from gradpath.commands.usage import CHECK_HELP, REPORT_HELP, RUN_HELP, USAGE, print_help
from gradpath.schema import locations
from gradpath.schema.settings import ConfigError
from gradpath.schema.text import one_line


def main() -> None:
    """Entry point. The exit status is 0; 1 where a requested run or figure failed; 2 where the
    command was wrong or its store cannot be used; 128 + n where the signal n ended it. Every error
    is one line.
    """
    from gradpath.commands.signals import Terminated, terminable

    settle()
    commands: dict[str, Callable[[list[str]], int]] = {
        function.__name__: function for function in (run, report, check, ui, new, rerun, send)
    }
    completion = {"-sc": complete, "--shell-completion": complete}
    command, arguments = (sys.argv[1], sys.argv[2:]) if len(sys.argv) > 1 else ("--help", [])
    if command.startswith("--plugin"):  # it may precede the command too
        count = 1 if "=" in command else 2
        option, (command, *arguments) = sys.argv[1 : 1 + count], sys.argv[1 + count :] or ["--help"]
        arguments = [*option, *arguments]
    if command in ("-h", "--help"):
        print(USAGE, end="")
        sys.exit(0)
    if command == "--version":
        print(f"gradpath {version('gradpath')}")
        sys.exit(0)
    if command not in commands | completion:
        print(f"gradpath: {one_line(command)}: no such command; there are {', '.join(commands)}", file=sys.stderr)
        sys.exit(2)
    try:
        with terminable():
            sys.exit(_status((commands | completion)[command], arguments))
    except KeyboardInterrupt as error:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the program is ending; a second Ctrl-C has nothing to stop
        print(": ".join(["gradpath: interrupted", *map(str, error.args)]), file=sys.stderr)
        sys.exit(130)
    except Terminated as error:
        print(f"gradpath: ended by {error}", file=sys.stderr)
        sys.exit(error.code)


def _status(command: Callable[[list[str]], int], arguments: list[str]) -> int:
    """Runs a command. Errors become a line and an exit status here, and nowhere else."""
    from gradpath.commands.reasons import print_whole, reason, store_answer
    from gradpath.commands.signals import ending
    from gradpath.tracking.store import StoreError

    try:
        locations.keep_home()
        return command(arguments if command is new else with_plugins(arguments))
    except (Exception, SystemExit) as error:  # a unit that calls sys.exit has failed too
        if ended := ending(error):
            raise ended from None
        if isinstance(error, ConfigError | StoreError):
            print_whole(error.__cause__)  # the exception that a unit's code has raised
            print(f"gradpath: {one_line(str(error))}", file=sys.stderr)
            return 2
        if answer := store_answer(error):
            print(f"gradpath: {answer}", file=sys.stderr)
            return 2
        print(f"gradpath: {reason(error)}", file=sys.stderr)
        return 1


def with_plugins(arguments: list[str]) -> list[str]:
    """Adds the plugin of every ``--plugin PATH`` and returns the other arguments; raises
    ConfigError.
    """
    if "--plugin" not in " ".join(arguments):
        return arguments
    from gradpath.schema import plugins

    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--plugin", action="append", default=[])
    try:
        chosen, remaining = parser.parse_known_args(arguments)
    except argparse.ArgumentError:
        raise ConfigError("--plugin: takes the path of a folder") from None
    for path in chosen.plugin:
        plugins.add_plugin(path)
    return remaining


def run(arguments: list[str]) -> int:
    """``gradpath run``: checks every point, then lets Hydra run them."""
    from gradpath.commands import compose, hydra_options
    from gradpath.commands.grammar import chosen
    from gradpath.commands.hydra_choices import SEARCH

    if {"-h", "--help"} & set(arguments):
        print_help(RUN_HELP, "config", compose.GROUPS, excluded="figures", extra=("arm", "experiment", "tracking"))
        return 0
    options = hydra_options.read_options(arguments)
    if options.answer is not None:
        options.answer()
        return 0
    from gradpath.commands import launch, search

    searching = options.multirun and chosen("hydra/sweeper", options.overrides) == SEARCH
    return search.search(options) if searching else launch.launch(options)


def rerun(arguments: list[str]) -> int:
    """``gradpath rerun``: makes a run again, and says whether the bits agree."""
    from gradpath.commands.rerun import rerun
    from gradpath.tracking.store import uri_key

    with uri_key("--uri"):
        return rerun(arguments)


def send(arguments: list[str]) -> int:
    """``gradpath send``: sends what was left on this machine while a server was away."""
    from gradpath.commands.send import send
    from gradpath.tracking.store import uri_key

    with uri_key("--uri"):
        return send(arguments)


def _only_overrides(arguments: list[str]) -> list[str]:
    """The arguments of a command without options; raises ConfigError."""
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
        print_help(REPORT_HELP, "report", {"figures": compose.GROUPS["figures"]})
        return 0
    named = any(argument.startswith("figures=") for argument in arguments)
    with threadpool_limits(1, "blas"), uri_key("uri"):
        return write(compose.report(_only_overrides(arguments)), named)


def check(arguments: list[str]) -> int:
    """``gradpath check``: the gradient check of the configuration that the overrides describe; the
    exit status is 1 where it finds an error.
    """
    from gradpath import gradient_check
    from gradpath.commands import checking, compose

    if {"-h", "--help"} & set(arguments):
        print_help(CHECK_HELP, "config", compose.GROUPS, excluded="figures", extra=("arm",))
        return 0
    experiment = checking.checkable(_only_overrides(arguments))
    rows: list[gradient_check.Row] = []
    print(checking.heading(experiment))
    for case, reported in checking.cases(experiment):
        rows = reported
        if case and sys.stderr.isatty():
            print(f"\r\x1b[2Kchecking: {case} …", end="", file=sys.stderr, flush=True)
    if sys.stderr.isatty():
        print("\r\x1b[2K", end="", file=sys.stderr, flush=True)
    print(gradient_check.table(rows, experiment.cell.layers))
    return 0 if all(row.passed for row in rows) else 1


def complete(arguments: list[str]) -> int:
    """``gradpath -sc install=bash``: completion in a shell."""
    from gradpath.commands import completion

    return completion.complete(arguments)


def ui(arguments: list[str]) -> int:
    """``gradpath ui``: the MLflow UI, with links to its charts."""
    from gradpath.commands.ui import serve
    from gradpath.tracking.store import uri_key

    parser = Parser("gradpath ui", description="Opens the MLflow UI and prints links to its charts.")
    parser.add_argument("--uri", help="MLflow tracking URI (the project's own SQLite database)")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at (127.0.0.1)")
    parser.add_argument("--port", default="5000", help="port to listen at (5000)")
    if {"-h", "--help"} & set(arguments):
        parser.print_help()
        return 0
    options = parser.parse_args(arguments)
    if not (options.port.isascii() and options.port.isdigit() and 1 <= int(options.port[:9]) <= 65535):
        raise ConfigError(f"--port {options.port}: must be a number from 1 to 65535")
    with uri_key("--uri"):
        return serve(options.uri, options.host, int(options.port))
