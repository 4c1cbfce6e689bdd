"""The figures of runs."""

import base64
import html
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from gradpath.api import canvas, stored
from gradpath.api.argument_types import check
from gradpath.api.result import Result, Results
from gradpath.api.session import session
from gradpath.schema.settings import ConfigError

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Canvas


class Drawings(Mapping[str, "Canvas"]):
    """Figures by name, as matplotlib's Figure objects; a notebook shows them one below the other.

    ``left_out``: figures that could not be drawn, with the reason.
    """

    def __init__(self, drawn: "Mapping[str, Canvas]", left_out: Mapping[str, str]) -> None:
        self._drawn, self.left_out = dict(drawn), dict(left_out)

    def __getitem__(self, name: str) -> "Canvas":
        if name in self.left_out:
            raise KeyError(f"{name}: {self.left_out[name]}")
        return self._drawn[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._drawn)

    def __len__(self) -> int:
        return len(self._drawn)

    def __repr__(self) -> str:
        lines = [f"Drawings({', '.join(self)})", *(f"  {name}: {reason}" for name, reason in self.left_out.items())]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        images = "".join(
            f'<p>{html.escape(name)}</p><img src="data:image/png;base64,'
            f'{base64.b64encode(canvas.png(figure, 80)).decode()}"/>'
            for name, figure in self.items()
        )
        lines = [f"<li>{html.escape(name)}: {html.escape(reason)}</li>" for name, reason in self.left_out.items()]
        return images + (f"<p>not drawn:</p><ul>{''.join(lines)}</ul>" if lines else "")


RUNS, NAMES = "a Result, several of them, or None", "names of figures, or None"


def draw(
    results: Result | Results | Sequence[Result] | None = None, names: Sequence[str] | None = None, **settings: Any
) -> Drawings:
    """The figures of ``gradpath report``.

    ``results``: the runs, None for the newest stored sweep. ``names``: the names of the figures,
    None for all for which these runs hold the readings; the others are named in
    ``Drawings.left_out``. ``settings`` by the figure's name: ``norm_by_lag={"dpi": 100}``.

    Raises ConfigError where there is no such figure or setting, or where ``results`` are no runs;
    StoreError where there is no stored sweep; and CannotDrawError where a figure in ``names``
    cannot be drawn.
    """
    runs = _runs(results)
    names = [names] if isinstance(names, str) else names
    if names is not None:
        check("names", names, Sequence, NAMES)
        for name in names:
            check("names", name, str, NAMES)
    records, named = [run.stored for run in runs], names is not None
    drawn, left_out = {}, {}
    with session():
        from gradpath.commands.reasons import reason
        from gradpath.figures import CannotDrawError

        described = canvas.described(names, settings)
        if not runs:
            raise ConfigError("no runs to draw")
        for name, figure in described.items():
            try:
                drawn[name] = canvas.drawn(figure, records)
            except Exception as error:  # odd data, or a fault in a user's figure: the others are drawn
                if named:
                    raise
                left_out[name] = str(error) if isinstance(error, CannotDrawError) else reason(error)
    return Drawings(drawn, left_out)


def _runs(results: Any) -> list[Result]:
    """The runs to draw; raises ConfigError where the argument holds none."""
    if results is None:
        results = stored.load()
    runs = [results] if isinstance(results, Result) else results
    check("results", runs, Sequence, RUNS)
    for run in runs:
        check("results", run, Result, RUNS)
    return list(runs)
