"""Text from a store, a file or an override, made safe for a terminal."""

import difflib
import re
from collections.abc import Iterable

LONGEST = 400
"""Largest number of characters that are shown of one text from a store."""
LONGEST_LINE = 800
"""Largest number of characters of a message."""


def printable(text: object, longest: int = LONGEST) -> str:
    r"""Text from a store (names, tags, messages that quote them) as one line without effects on the
    terminal: invisible characters (controls, bidi overrides, zero-width characters, line
    separators, surrogates) are written in Python's notation, ``\x1b``, and a text that is too long
    ends in ``…``.
    """
    content = str(text)
    return _seen(content if len(content) <= longest else content[: longest - 1] + "…")


def one_line(text: str) -> str:
    """A message of gradpath as one line of bounded length, made safe in the same way, and without
    passwords. A message that is too long loses its middle, since the allowed values stand at its
    end.
    """
    text = _seen(without_passwords(text))
    return text if len(text) <= LONGEST_LINE else f"{text[: LONGEST_LINE // 4]} … {text[-LONGEST_LINE * 3 // 4 + 3 :]}"


def without_passwords(text: str) -> str:
    r"""A text with ``***`` for the passwords in it, of URIs (also with the ``\:`` of Hydra's
    grammar) and of connection strings.
    """
    text = re.sub(r"(https?\\?://)[^\s/]+@", r"\1***@", text)
    text = re.sub(r"(\w\\?://[^\s:/@\\]*\\?:)\S+@", r"\1***@", text)
    words = "password|passwd|pwd|token|secret|[a-z_]+key|sslpassword"
    return re.sub(rf"(?i)\b({words})(\s*=\s*)('[^']*'|\"[^\"]*\"|[^\s&;,'\"]+)", r"\1\2***", text)


def did_you_mean(word: str, names: Iterable[str], section: str = "") -> str:
    """`` (did you mean NAME?)`` with the name that ``word`` resembles, apart from capitals; empty
    if there is none.
    """
    by_lower = {name.lower(): name for name in names}
    match = difflib.get_close_matches(word[:80].lower(), by_lower, 1)
    return f" (did you mean {section}{by_lower[match[0]]}?)" if match else ""


def _seen(text: str) -> str:
    return "".join(c if c.isprintable() else escape(c) for c in text)


def escape(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")
