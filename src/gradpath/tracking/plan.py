"""What a sweep was to run, stored before its first point, so that a report knows which points are
missing.

The plan of one ``gradpath run`` lies in tags of the MLflow experiment, in parts that every store
takes: a tag needs no run and no folder, and several commands that share a sweep_id (one after
another or at once) each add their own.
"""

import base64
import hashlib
import json
import re
import secrets
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from gradpath.schema.text import printable
from gradpath.tracking import store

if TYPE_CHECKING:
    from mlflow import MlflowClient

    from gradpath.training.experiment import Experiment

PART = 4000
"""Characters of a tag that every MLflow store takes."""
MOST_PARTS = 5000
"""Of one plan; a point takes about 15 characters of one."""
LARGEST = 1 << 26
"""Bytes of a plan when it is unpacked."""
LEFT_OUT = ("tracking=", "tracking.uri", "tracking.sweep_id", "hydra", "jobs", "resume")
"""Overrides that a plan does not hold: the uri may have a password in it, and the others are said
anew where the point is run again.
"""


@dataclass(frozen=True)
class Point:
    """A planned point: its ``config_hash``, the name of its run, and the overrides that describe
    it.
    """

    identity: str
    name: str
    seed: int
    overrides: tuple[str, ...]
    run_id: str = ""
    """The run of another sweep that stands for it, if one does."""


def record(
    jobs: Iterable[tuple[Sequence[str], Sequence["Experiment"]]],
    sweep_id: str,
    run_ids: Mapping[str, str] = MappingProxyType({}),
) -> None:
    """Stores what a command is going to run: for each job its overrides and its experiments, one a
    seed. ``run_ids``: identity → run of another sweep that stands for the point.
    """
    places: dict[tuple[str | None, str, str], list[Any]] = {}
    for overrides, experiments in jobs:
        tracking = experiments[0].tracking
        stored = [o for o in overrides if not o.lstrip("+").startswith(LEFT_OUT)]
        entry = [stored, experiments[0].title, [_planned(e, run_ids) for e in experiments]]
        place = (tracking.uri, tracking.experiment, tracking.sweep_id or sweep_id)
        places.setdefault(place, []).append(entry)
    for (uri, name, sweep), entries in places.items():
        client = store.connect(uri)
        write(client, store.experiment_id(client, name), sweep, entries)


def _planned(experiment: "Experiment", run_ids: Mapping[str, str]) -> list[Any]:
    identity = experiment.config_hash
    planned = [experiment.seed, identity]
    return [*planned, run_ids[identity]] if identity in run_ids else planned


def write(client: "MlflowClient", experiment_id: str, sweep_id: str, entries: list[Any]) -> None:
    """One plan into the tags of an experiment. MLflow's UI does not show tags of its own prefix,
    and these are not for reading.
    """
    packed = zlib.compress(json.dumps({"sweep_id": sweep_id, "jobs": entries}).encode(), 9)
    text = base64.b64encode(packed).decode()
    parts = [text[i : i + PART] for i in range(0, len(text), PART)]
    plan_key = f"{_prefix(sweep_id)}{secrets.token_hex(4)}"
    for number, part in enumerate(parts, 1):
        client.set_experiment_tag(experiment_id, f"{plan_key}.{number}of{len(parts)}", part)


def read(tags: Mapping[str, str], sweep_id: str) -> tuple[dict[str, Point], list[str]]:
    """The planned points of a sweep by identity, from all its plans, and what is wrong with those
    that are damaged.
    """
    prefix = _prefix(sweep_id)
    plans: dict[tuple[str, int], dict[int, str]] = {}
    for key, value in tags.items():
        if match := re.fullmatch(r"([0-9a-f]{1,32})\.([0-9]{1,4})of([0-9]{1,4})", key.removeprefix(prefix)):
            plans.setdefault((match[1], int(match[3])), {})[int(match[2])] = value
    points: dict[str, Point] = {}
    damaged = []
    for plan_id, count in sorted(plans):
        parts = plans[plan_id, count]
        try:
            if max(map(len, parts.values())) > PART:
                raise ValueError("a part is longer than gradpath writes it")
            if sorted(parts) != list(range(1, count + 1)) or count > MOST_PARTS:
                raise ValueError(f"{len(parts)} of its {count} parts are there")
            unpacked = _unpacked("".join(parts[i] for i in sorted(parts)), sweep_id)
            # A plan that names the run of another sweep for a point holds over one that names none.
            points |= {i: p for i, p in unpacked.items() if p.run_id or i not in points}
        except Exception as error:  # anybody may write a tag, and what decoders raise at nonsense has no end
            damaged.append(f"plan {plan_id} of the sweep is damaged: {printable(error, 120)}")
    return points, damaged


def _prefix(sweep_id: str) -> str:
    """A digest, because a sweep_id may have characters and a length that a tag's key may not."""
    return f"mlflow.gradpath.tracking.plan.{hashlib.sha256(sweep_id.encode(errors='replace')).hexdigest()[:16]}."


def _unpacked(text: str, sweep_id: str) -> dict[str, Point]:
    """Raises whatever it likes where the text is no plan."""
    unpacking = zlib.decompressobj()
    unpacked = unpacking.decompress(base64.b64decode(text, validate=True), LARGEST)
    if not unpacking.eof:
        raise ValueError("it does not end")
    plan = json.loads(unpacked)
    if plan["sweep_id"] != sweep_id:
        raise ValueError("it belongs to another sweep")
    points = {}
    for overrides, title, seeds in plan["jobs"]:
        for seed, identity, *run_ids in seeds:
            well_typed = type(seed) is int and isinstance(title, str) and isinstance(overrides, list)
            well_formed = re.fullmatch(r"[0-9a-f]{12}", identity) and all(
                re.fullmatch(r"[0-9a-f]{32}", r) for r in run_ids
            )
            if not (well_typed and well_formed and len(run_ids) < 2 and all(isinstance(o, str) for o in overrides)):
                raise ValueError("it holds what is no point")
            name = printable(f"{title} · seed {seed}")
            points[identity] = Point(identity, name, seed, tuple(overrides), "".join(run_ids))
    return points
