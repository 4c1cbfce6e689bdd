"""Text of a store, a file or an override, made safe to be shown on a terminal."""

import difflib
import re
from collections.abc import Iterable

LONGEST = 400
"""Characters of one piece of a store's text that are shown."""
LONGEST_LINE = 800
"""Characters of a message, whatever was given."""


def printable(text: object, longest: int = LONGEST) -> str:
    r"""Text of a store (names, tags, messages that quote them) as one line that does nothing but be
    read: whatever is not seen but acts (controls, bidi overrides, zero-width characters, line
    separators, surrogates) is written as Python writes it, ``\x1b``, and what is too long ends in
    ``…``.
    """
    content = str(text)
    return _seen(content if len(content) <= longest else content[: longest - 1] + "…")


def one_line(text: str) -> str:
    """A message of ours as one line of bounded length, likewise, without the passwords of what was
    given; of one that is too long the middle is left out, since what is allowed stands at its end.
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
    """`` (did you mean NAME?)``, of the name that ``word`` is close to but for capitals; empty if
    there is none.
    """
    by_lower = {name.lower(): name for name in names}
    match = difflib.get_close_matches(word[:80].lower(), by_lower, 1)
    return f" (did you mean {section}{by_lower[match[0]]}?)" if match else ""


def _seen(text: str) -> str:
    return "".join(c if c.isprintable() else escape(c) for c in text)


def escape(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")
