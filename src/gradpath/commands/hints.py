"""Commands that the program prints, in a form that can be pasted into a shell."""

import re
import shlex

from hydra.core.override_parser.types import Quote, QuotedString

from gradpath.commands.choices import options
from gradpath.commands.grammar import parse
from gradpath.schema import plugins
from gradpath.schema.settings import ConfigError
from gradpath.schema.text import printable
from gradpath.tracking import store
from gradpath.tracking.plan import Point


def assignment(key: str, value: str) -> str:
    """KEY=VALUE in a form that Hydra's grammar reads as exactly this text."""
    try:
        if parse(f"{key}={value}").value() == value:
            return f"{key}={value}"
    except ConfigError:
        pass
    return f"{key}={QuotedString(value, Quote.double).with_quotes()}"


def run_command(study: str | None) -> str:
    """The command that trains a study, or any run where the name is not that of a study."""
    studies = options("experiment")
    words = ["-m", f"+experiment={study}"] if study in studies else []
    return shlex.join(["gradpath", "run", *plugins.arguments(), *words])


def point_command(point: Point, sweep_id: str, uri: str | None) -> str:
    """The command that runs a planned point into its sweep; empty where the point's overrides are
    not fit to be pasted.
    """
    overrides = [o for o in point.overrides if not o.lstrip("+~").startswith(("seed=", "seed@"))]
    if not all(o == printable(o, 1000) and re.match(r"[+~]{0,2}(?!hydra|tracking.uri)[A-Za-z_]", o) for o in overrides):
        return ""
    store_override = [f"tracking.uri={uri}"] if uri and "@" not in uri else []  # no password on the terminal
    words = [*overrides, f"seed={point.seed}", f"tracking.sweep_id={sweep_id}", *store_override]
    return shlex.join(["gradpath", "run", *plugins.arguments(), *words])


def report_command(study: str, sweep_id: str | None, uri: str | None, *extra: str) -> str:
    """The command that draws the figures of a sweep. It names the sweep, because another one may be
    the newest by the time the command is typed.
    """
    words = ["gradpath", "report", *plugins.arguments(), assignment("study", study)]
    words += [assignment("sweep", sweep_id)] if sweep_id is not None else []
    words += [assignment("uri", store.masked(uri))] if uri else []
    return shlex.join([*words, *extra])


def ui_command(uri: str | None) -> str:
    """The command that shows the curves of a store."""
    return shlex.join(["gradpath", "ui", *(["--uri", store.masked(uri)] if uri else [])])
