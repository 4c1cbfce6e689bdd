"""Completion in a shell, by Hydra's own completion: ``eval "$(gradpath -sc install=bash)"``, fish
or zsh.
"""

import os
import re
from contextlib import redirect_stdout
from io import StringIO

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
            print(" ".join(c for c in (*CONFIGURATIONS, "ui", "new") if c.startswith("".join(words))))
            return 0
        if words[0] == "new" and len(words) == 2:
            print(" ".join(kind for kind in KINDS if kind.startswith(words[1])))
        if words[0] not in CONFIGURATIONS:
            return 0
        name = CONFIGURATIONS[words[0]]
        os.environ[LINE] = " ".join(["gradpath", *words[1:]])
    try:
        with compose.hydra() as hydra, redirect_stdout(StringIO()) as output:
            hydra.shell_completion(name, arguments)
    except (ValueError, KeyError):  # KeyError: the variables with which a shell asks for completions are missing
        raise ConfigError("--shell-completion: goes with install=SHELL or uninstall=SHELL") from None
    print(re.sub(r"\S+=_\S+ ?", "", output.getvalue()), end="")  # without the schemas, which are not to be chosen
    return 0
