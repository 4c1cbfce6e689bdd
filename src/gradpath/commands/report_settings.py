"""The settings of ``gradpath report``."""

from dataclasses import dataclass, field

from gradpath.figures import Figure
from gradpath.schema.settings import SettingError, Settings, setting

FORMATS: dict[str, dict[str, None]] = {"svg": {"Date": None}, "png": {"Software": None}, "pdf": {"CreationDate": None}}
"""File format → the metadata to leave out, so that the same runs give the same bytes."""

ALLOWED = "a list of png, svg and pdf, each once"


@dataclass
class Report(Settings):
    """The runs and figures of a report; by default the newest sweep."""

    figures: dict[str, Figure] = field(default_factory=dict)
    study: str | None = setting(None, "MLflow experiment, named after its study; null for the one with the newest run")
    sweep: str | None = setting(None, "sweep_id of the runs to draw; null for the newest of the experiment")
    uri: str | None = setting(None, "MLflow tracking URI; null for the project's own SQLite database")
    out: str | None = setting(None, "folder for the figures; null for reports/figures/EXPERIMENT")
    partial: bool = setting(
        False, "draw a sweep of which points are missing or double: what is there, the newest of each"
    )
    jobs: int | None = setting(None, "figures drawn at once, in processes of their own; null for one a core", ge=1)
    formats: list[str] = field(
        default_factory=lambda: ["png", "svg"],
        metadata={"help": "file formats of every figure", "takes": ALLOWED},
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.formats or set(self.formats) - FORMATS.keys() or len(set(self.formats)) < len(self.formats):
            raise SettingError("formats", self.formats, ALLOWED)
