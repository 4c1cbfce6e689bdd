"""The options of a command."""

import argparse
from typing import NoReturn

from gradpath.schema.settings import ConfigError


class Parser(argparse.ArgumentParser):
    """A parser that raises ConfigError where argparse would end the program. ``prog`` is the
    command.
    """

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}; see {self.prog} --help")
