"""The arms of a sweep: groups of runs that differ only in the seed, each with a name, a colour and
a dash.
"""

import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from gradpath.figures import CannotDrawError
from gradpath.figures._shared import palette
from gradpath.tracking.loader import Run

COLUMNS = 12
WIDEST = 26
"""Largest number of characters of a line of a label."""


@dataclass(frozen=True)
class Group:
    """Runs that differ only in the seed, with the name and the colour that they have in every
    figure.
    """

    name: str
    """The name from the configurations, unshortened."""
    label: str
    """The name in the form in which a picture can show it: `plain`, and of at most two lines."""
    color: str
    dash: str
    """The dash of clipped arms, since a clipped curve often lies on the unclipped one."""
    runs: tuple[Run, ...]

    @property
    def title(self) -> str:
        """The label as the title of a narrow column, with a line for each difference."""
        lines = [line for part in self.label.split(", ") for line in textwrap.wrap(part, WIDEST)]
        return "\n".join(lines)

    @property
    def legend_label(self) -> str:
        """The label in a legend inside a panel."""
        return self.label if len(self.label) <= 2 * WIDEST else self.title

    @property
    def heading(self) -> str:
        """The label in one line, shortened to the width of a column."""
        return self.label if len(self.label) <= WIDEST else self.title


def plain(text: str) -> str:
    """Text from a store in a form that matplotlib shows unchanged: without mathematics in dollars,
    a second line, unprintable characters, or the leading underscore that would exclude it from a
    legend.
    """
    clean = "".join(c if c.isprintable() else " " for c in " ".join(text.split())).replace("$", r"\$")
    return f" {clean}" if clean.startswith("_") else clean


def shortened(names: Sequence[str]) -> list[str]:
    """The names for a picture: a name that is too long loses its middle, and names that then look
    alike are numbered.
    """
    limit, seen, labels = 4 * WIDEST, list[str](), list[str]()
    for name in names:
        text = " ".join(name.split())
        if len(text) > limit:
            text = f"{text[: limit // 2]}…{text[1 - limit // 2 :]}"
        seen.append(text)
        copies = seen.count(text)
        labels.append(f"{text} ({copies})" if copies > 1 else text)
    return [plain(text) for text in labels]


def groups(runs: Sequence[Run]) -> list[Group]:
    """The arms, in a fixed order. The label is derived from the resolved configurations: the arm,
    and every other difference between two groups of the same arm.
    """
    by_config: dict[tuple[tuple[str, str], ...], list[Run]] = {}
    for run in runs:
        flat = {
            key: value for key, value in _flatten(run.config) if key != "seed" and not key.startswith("instruments")
        }
        by_config.setdefault(tuple(sorted(flat.items())), []).append(run)
    keyed = sorted(by_config.items(), key=lambda item: (_rank(item[1][0]), item[1][0].arm, _plainest(item[0])))
    taken = {declared_color(members[0]) for members in by_config.values()}
    spare = iter([color for color in palette.SPARE if color not in taken] * len(keyed))
    used: set[str] = set()
    entries: list[tuple[str, str, str, list[Run]]] = []
    for config, members in keyed:
        arm = members[0].arm
        rivals = [dict(rival) for rival, rival_runs in keyed if rival_runs[0].arm == arm]
        # The label omits settings that are off (None), and settings without effect, as the biases
        # under chrono initialisation.
        silent = {f"cell.{name}" for name in members[0].roles.idle}
        differing = [_short(k, v) for k, v in config if v != "None" and k not in silent and _distinguishes(k, rivals)]
        declared = declared_color(members[0])
        color = declared if declared and declared not in used else next(spare)
        used.add(color)
        dash = "--" if "clipped_" in arm else "-"
        entries.append((", ".join([arm_label(members[0]), *differing]), color, dash, members))
    labels = shortened([name for name, *_ in entries])
    return [
        Group(name, label, color, dash, tuple(members))
        for label, (name, color, dash, members) in zip(labels, entries, strict=True)
    ]


def columns(runs: Sequence[Run]) -> list[Group]:
    """The arms of a figure that gives each arm a column of its own; raises CannotDrawError where
    there would be too many.
    """
    arms = groups(runs)
    if len(arms) > COLUMNS:
        raise CannotDrawError(f"{len(arms)} groups of runs, more than the {COLUMNS} columns that can be read")
    return arms


def _plainest(config: tuple[tuple[str, str], ...]) -> list[str]:
    """A sorting key that puts the group with the fewest additional settings first: of the groups of
    one arm, this one has the arm's own colour.
    """
    return ["" if value == "None" else value for _, value in config]


def _distinguishes(key: str, rivals: list[dict[str, str]]) -> bool:
    """Does a key distinguish groups of one arm? The settings of a unit do not where the unit's name
    already does.
    """
    unit = f"{key.partition('.')[0]}.name"
    if key != unit and len({rival.get(unit) for rival in rivals}) > 1:
        return False
    return len({rival.get(key) for rival in rivals}) > 1


def _short(key: str, value: str) -> str:
    """``init=orthogonal`` for the name of a unit, ``forget_bias=3.0`` for a setting."""
    section, _, name = key.rpartition(".")
    return f"{section if name == 'name' else name}={value}"


def arm_label(run: Run) -> str:
    """``clipped_rnn`` → ``clipped RNN``, ``lstm_no_forget_gate`` → ``LSTM, no forget gate``, by the
    declarations of the cell; an arm with a name of its own keeps this name.
    """
    clipping, cell = _clipping(run)
    variant = run.roles.variant.replace("_", " ")
    words = cell if cell != _cell(run) else run.roles.label + (f", {variant}" if variant else "")
    return f"{clipping.replace('_', '-')} {words}" if clipping else words


def declared_color(run: Run) -> str | None:
    """The colour that the cell declares for its plain form; None for other arms."""
    clipping, cell = _clipping(run)
    return None if run.roles.variant or cell != _cell(run) else (run.roles.colors or {}).get(clipping)


def _clipping(run: Run) -> tuple[str, str]:
    """(``clipped``, ``value_clipped`` or nothing, the rest) of the arm's name."""
    clipping, clipped, cell = run.arm.rpartition("clipped_")
    return f"{clipping}clipped" if clipped else "", cell


def _cell(run: Run) -> str:
    """The name of the cell in the name of an arm."""
    return "_".join(filter(None, (run.config["cell"]["name"], run.roles.variant)))


def _rank(run: Run) -> int:
    color = declared_color(run)
    return palette.ARMS.index(color) if color in palette.ARMS else len(palette.ARMS)


def _flatten(tree: dict[str, Any], path: str = "") -> Iterator[tuple[str, str]]:
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _flatten(value, f"{path}{key}.")
        else:
            yield f"{path}{key}", str(value)
