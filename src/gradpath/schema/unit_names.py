"""What a unit may be called, which is the name of its files and what one types."""

import keyword
import re

RESERVED = ("null", "none", "true", "false", "nan", "inf", "default")
"""Names that the command line or Hydra reads as something else."""
RULE = (
    "be of the letters a to z, digits and _, begin with a letter, have at most 60 characters, and be neither a "
    f"keyword of Python nor {', '.join(RESERVED[:-1])} or {RESERVED[-1]}"
)


def is_valid(name: str) -> bool:
    """Can a unit, or a study, have this name?"""
    return bool(re.fullmatch(r"[a-z][a-z0-9_]{0,59}", name)) and not keyword.iskeyword(name) and name not in RESERVED
