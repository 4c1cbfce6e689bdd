"""Completion in a shell, by Hydra's own completion: ``eval "$(gradpath -sc install=bash)"``, fish
or zsh.
"""

import os
import re
from contextlib import redirect_stdout
from io import StringIO

from omegaconf.errors import OmegaConfBaseException

from gradpath.commands import compose
from gradpath.commands.new import KINDS
from gradpath.schema import plugins
from gradpath.schema.settings import ConfigError

CONFIGURATIONS = {"run": "config", "check": "config", "report": "report"}
"""The configuration whose keys are completed, by command."""
LINE = "COMP_LINE"
"""The variable in which a shell passes the line that has been typed."""


def complete(arguments: list[str]) -> int:
    """Answers a shell (``install=SHELL``, ``uninstall=SHELL``, ``query=SHELL``); raises
    ConfigError.
    """
    name = "config"
    if LINE in os.environ and any(argument.startswith("query=") for argument in arguments):
        typed = re.findall(r"--plugin(?:=|\s+)(\S+)\s", os.environ[LINE])
        for path in typed:
            plugins.add_plugin(path)
        _, *words = re.sub(r"--plugin(=|\s+)\S+\s+", "", os.environ[LINE]).split(" ")
        words = [word for word in words[:-1] if word and not word.startswith("-")] + words[-1:]
        if len(words) < 2:
            print(" ".join(c for c in (*CONFIGURATIONS, "ui", "rerun", "send", "new") if c.startswith("".join(words))))
            return 0
        if words[0] == "new" and len(words) == 2:
            print(" ".join(kind for kind in KINDS if kind.startswith(words[1])))
        if words[0] not in CONFIGURATIONS:
            return 0
        name = CONFIGURATIONS[words[0]]
        if (values := _values(name, words[1:])) is not None:
            print(("\n" if "query=fish" in arguments else " ").join(values))
            return 0
        os.environ[LINE] = " ".join(["gradpath", *words[1:]])
    try:
        with compose.hydra() as hydra, redirect_stdout(StringIO()) as output:
            hydra.shell_completion(name, arguments)
    except (ValueError, KeyError):  # KeyError: the variables with which a shell asks for completions are missing
        raise ConfigError("--shell-completion: goes with install=SHELL or uninstall=SHELL") from None
    print(re.sub(r"\S+=_\S+ ?", "", output.getvalue()), end="")  # without the schemas, which are not to be chosen
    return 0


def _values(name: str, words: list[str]) -> list[str] | None:
    """``KEY=`` and what has been typed of a value, completed: the names of an enumeration, true and
    false, or the value that the key has, as one writes it. None of anything else.
    """
    *overrides, word = words or [""]
    key, equals, typed = word.partition("=")
    if not equals:
        return None
    try:
        keys = {path: (value, takes) for path, value, takes, _ in compose.settable(compose.load(name, overrides))}
    except (ConfigError, OmegaConfBaseException):  # what has been typed so far cannot be
        return None
    if key not in keys:
        return None
    value, takes = keys[key]
    named = re.fullmatch(r"(?:one of )?(.+?)( or null)?", takes)
    assert named is not None
    options = [str(value)]
    if takes.startswith("one of "):
        options = [*named[1].split(", "), *["null"] * bool(named[2])]
    elif named[1] == "true or false":
        options = ["true", "false", *["null"] * bool(named[2])]
    return [f"{key}={option}" for option in options if option.startswith(typed)]
