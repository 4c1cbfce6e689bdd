"""Commands that the program prints, as they can be pasted into a shell."""

import shlex

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.errors import HydraException

from gradpath.schema import locations
from gradpath.tracking import store


def assignment(key: str, value: str) -> str:
    """KEY=VALUE that Hydra's grammar reads as this very text."""
    try:
        if OverridesParser.create().parse_override(f"{key}={value}").value() == value:
            return f"{key}={value}"
    except (HydraException, AssertionError, RecursionError):
        pass
    return f"{key}={QuotedString(value, Quote.double).with_quotes()}"


def run_command(study: str | None) -> str:
    """The command that trains a study, or any run where the name is not one of a study."""
    studies = {file.stem for file in (locations.conf() / "experiment").glob("*.yaml")}
    return f"gradpath run -m +experiment={study}" if study in studies else "gradpath run"


def report_command(study: str, sweep_id: str | None, uri: str | None, *more: str) -> str:
    """The command that draws the figures of a sweep, which is named: by the time it is typed another may be newest."""
    words = ["gradpath", "report", assignment("study", study)]
    words += [assignment("sweep", sweep_id)] if sweep_id is not None else []
    words += [assignment("uri", store.masked(uri))] if uri else []
    return shlex.join([*words, *more])


def ui_command(uri: str | None) -> str:
    """The command that shows the curves of a store."""
    return shlex.join(["gradpath", "ui", *(["--uri", store.masked(uri)] if uri else [])])
