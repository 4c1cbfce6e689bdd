"""The options of ``gradpath run`` other than KEY=VALUE: Hydra's own options, each of them honoured
or refused in one line.
"""

import argparse
import sys
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import NoReturn

from hydra.core.override_parser.types import Quote, QuotedString
from omegaconf.errors import OmegaConfBaseException

from gradpath.commands import compose, messages
from gradpath.commands.completion import complete
from gradpath.commands.grammar import SEARCHPATH, folders, parse
from gradpath.commands.hydra_internals import get_args_parser
from gradpath.commands.overrides import read
from gradpath.schema.settings import ConfigError
from gradpath.schema.text import without_passwords

REFUSED = {
    "experimental_rerun": "it would unpickle a file, which can execute anything; give the overrides of the run again",
    "config_path": "the configuration is gradpath's own; a folder of YAML files is added by --config-dir",
    "config_name": "the configuration is gradpath's own; a folder of YAML files is added by --config-dir",
}


@dataclass
class Options:
    """The command line of ``gradpath run``. ``answer`` is the information that Hydra prints instead
    of a run, if any was asked for.
    """

    overrides: list[str]
    multirun: bool
    answer: Callable[[], None] | None = None


class Answered(Exception):  # noqa: N818 - nothing is wrong
    """The parser itself has answered, as to --version."""


def read_options(arguments: list[str]) -> Options:
    """Hydra's options and the overrides, in any order; raises ConfigError for options that are
    refused.
    """
    parser = get_args_parser()

    def refuse(message: str) -> NoReturn:
        raise ConfigError(f"{message}; see gradpath run --help")

    def leave(status: int = 0, message: str | None = None) -> NoReturn:
        raise Answered

    parser.error, parser.exit = refuse, leave  # type: ignore[method-assign]
    try:
        parsed = parser.parse_intermixed_args(arguments)
    except Answered:
        return Options([], False, lambda: None)
    for name, refusal in REFUSED.items():
        if getattr(parsed, name) is not None:
            raise ConfigError(f"--{name.replace('_', '-')}: not taken: {refusal}")
    modes = {"--run": parsed.run, "--multirun": parsed.multirun, "--cfg": parsed.cfg, "--info": parsed.info}
    modes |= {"--shell-completion": parsed.shell_completion, "--hydra-help": parsed.hydra_help}
    if len(chosen := [name for name, value in modes.items() if value]) > 1:
        raise ConfigError(f"{' '.join(chosen)}: only one of these at a time")
    for name in ("resolve", "package"):
        if getattr(parsed, name) and not parsed.cfg:
            raise ConfigError(f"--{name}: goes with --cfg only")
    changes, mode = _with_folder(parsed.overrides, parsed.config_dir), None
    for override in changes:
        if override.lstrip("+").startswith("hydra.mode="):
            mode = str(parse(override).value())
            if mode not in ("RUN", "MULTIRUN"):
                raise ConfigError(f"{override}: must be RUN or MULTIRUN")
    if parsed.run and mode == "MULTIRUN":
        raise ConfigError("--run hydra.mode=MULTIRUN: only one of these at a time")
    changes = [override for override in changes if not override.lstrip("+").startswith("hydra.mode=")]
    has_answer = parsed.cfg or parsed.info or parsed.hydra_help or parsed.shell_completion
    return Options(
        changes,
        parsed.multirun or mode == "MULTIRUN",
        (lambda: _answer(parsed, parser, changes)) if has_answer else None,
    )


def _with_folder(overrides: list[str], folder: str | None) -> list[str]:
    """The overrides with the folder of --config-dir added to Hydra's search path, where the check
    finds the folder too.
    """
    if folder is None:
        return overrides
    if not Path(folder).is_dir():
        raise ConfigError(f"--config-dir {folder}: there is no such folder")
    places = [*folders(overrides), str(Path(folder).absolute())]
    quoted = ",".join(QuotedString(place, Quote.double).with_quotes() for place in places)
    return [o for o in overrides if not o.startswith(f"{SEARCHPATH}=")] + [f"{SEARCHPATH}=[{quoted}]"]


def _answer(parsed: argparse.Namespace, parser: argparse.ArgumentParser, changes: list[str]) -> None:
    """Makes Hydra print its configuration, or information about itself."""
    if parsed.shell_completion:
        complete(changes)
        return
    ready = read(changes)
    messages.explained(changes, lambda: compose.trusted("config", ready))

    def show() -> None:
        with compose.hydra() as hydra:
            if parsed.cfg:
                hydra.show_cfg("config", ready, parsed.cfg, parsed.package, parsed.resolve)
            elif parsed.info:
                hydra.show_info(parsed.info, "config", ready)
            else:
                hydra.hydra_help("config", parser, parsed)

    errors, output = StringIO(), StringIO()
    try:
        with redirect_stderr(errors), redirect_stdout(output):
            messages.explained(changes, show)
    except (SystemExit, OmegaConfBaseException):
        raise ConfigError(f"--package {parsed.package}: there is no such section") from None
    finally:
        sys.stdout.write(without_passwords(output.getvalue()))
        sys.stdout.flush()
