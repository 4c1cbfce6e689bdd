"""Fuzzing of the command's door by coverage, with atheris (``pip install atheris``), for as long as
one likes:

python tests/fuzz/overrides.py -max_total_time=300 -max_len=80

Whatever the bytes say, the answer is a configuration or one line. Hypothesis tries the same by a
grammar in ``tests/test_door_fuzz.py``.
"""

import re
import sys

INTERNAL_NAMES = re.compile(r"Exception|Lexer|Traceback|DictConfig|ListConfig|NoneType|<class|<EOF>|omegaconf|antlr")


def outcome(overrides: list[str]) -> str:
    """The name of the run that the overrides describe, or the line that refuses them; fails where
    it is neither.
    """
    from gradpath.commands import compose

    try:
        return compose.experiments(overrides)[0].run_name
    except compose.ConfigError as error:
        line = str(error)
        assert line.isprintable(), line
        assert len(line) <= 800, line
        own_words = line
        for override in overrides:
            own_words = own_words.replace(override, "")
        assert not INTERNAL_NAMES.search(own_words) or any(INTERNAL_NAMES.search(override) for override in overrides), (
            line
        )
        return line


if __name__ == "__main__":
    import atheris

    with atheris.instrument_imports(include=["gradpath", "hydra.core.override_parser"]):
        import gradpath.commands.compose  # noqa: F401

    def one_input(data: bytes) -> None:
        overrides = atheris.FuzzedDataProvider(data).ConsumeUnicode(80).split("\x1f")
        outcome([override for override in overrides if override] or ["seed=1"])

    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()
