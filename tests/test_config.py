"""The door: bad input is one line that names the key, what was given and what is allowed; before
anything runs.
"""

from pathlib import Path

import pytest
import yaml

from gradpath.commands import compose
from gradpath.schema import locations
from gradpath.schema.discovery import discover
from gradpath.training.experiment import Experiment

CONF = locations.conf()
CHOSEN = ("cell", "task", "init", "optimizer", "clip")
"""The groups of which a run has one unit each."""

INVALID_OVERRIDES = [
    ("cell.hidden_size=abc", "cell.hidden_size=abc: must be an integer ≥ 1"),
    ("cell.hidden_size=-1", "cell.hidden_size=-1: must be ≥ 1"),
    ("cell.hiden_size=3", "cell.hiden_size=3: no such key; there are hidden_size, layers"),
    ("cell=lstmm", "cell=lstmm: no such name; there are gru, lstm, peephole_lstm, rnn (did you mean lstm?)"),
    ("cell=null", "cell=null: "),
    (
        "arm=mlp",
        "arm=mlp: no such name; there are ablation/coupled_gates, ablation/no_forget_gate, ",
    ),
    ("task.length=0", "task.length=0: must be ≥ 2"),
    ("task=temporal_order task.length=5", "task.length=5: must be ≥ 10"),
    ("train.batch_size=0", "train.batch_size=0: must be ≥ 1"),
    ("train.steps=1.5", "train.steps=1.5: must be an integer ≥ 0"),
    ("train=3", "train=3: must be a section"),
    ("clip.max_norm=0", "clip.max_norm=0.0: must be > 0"),
    ("clip.max_norm=-1", "clip.max_norm=-1.0: must be > 0"),
    ("clip.max_norm=abc", "clip.max_norm=abc: must be a number > 0 or null"),
    ("clip.max_norm=1 clip.max_value=1", "clip.max_value=1.0: must be null where clip.max_norm is set"),
    ("train.dtype=float16", "train.dtype=float16: must be one of float32, float64"),
    ("optimizer.lr=nan", "optimizer.lr=nan: must be > 0"),
    ("optimizer.lr=inf", "optimizer.lr=inf: must be finite"),
    (
        "seed=-1",
        "seed=-1: must be an integer ≥ 0, a range 0..15 or a list [0,3,7], each seed once and below 2^63",
    ),
    *[
        (f"seed={several}", f"seed={several}: must be an integer ≥ 0, a range 0..15 or a list ")
        for several in ("5..2", "0..x", "-1..3", "0..", "..3", "0...3", "0.5", "0..1000", f"0..{'9' * 18}", "0..1..2")
    ],
    *[
        (f"seed={several}", f"seed={several}: must be an integer ≥ 0, a range 0..15 or a list ")
        for several in ("[]", "[1,1]", "[0,-1]", "[0,x]", "[0,1.5]", "[0,true]", "[0..3,7]", "[[0,1]]", "null", "true")
    ],
    ("seed=", "seed=: must be an integer ≥ 0"),
    ("foo=3", "foo=3: no such key; there are task, cell"),
    ("+foo=3", "foo=3: no such key; there are task, cell"),
    ("+cell.foo=1", "cell.foo=1: no such key; there are hidden_size"),
    ("cell=rnn cell.activation=gelu", "cell.activation=gelu: must be one of tanh, relu, sigmoid"),
    ("instruments.grad_norm.schedule.every=0", "instruments.grad_norm.schedule.every=0: must be ≥ 1"),
    ("instruments.nope.schedule.every=3", "instruments.nope: no such key; there are clip_scale"),
    ("train.steps=[1", "train.steps=[1: "),
    ("seed=${foo}", "seed=${foo}: "),
    ("tracking.experiment=a/b", "tracking.experiment=a/b: must be letters, digits"),
    ("tracking.sweep_id=a'b", "tracking.sweep_id=a'b: "),
]


@pytest.mark.parametrize(("overrides", "message"), INVALID_OVERRIDES, ids=[o for o, _ in INVALID_OVERRIDES])
def test_bad_overrides_are_one_clear_line(overrides: str, message: str) -> None:
    with pytest.raises(compose.ConfigError) as error:
        compose.experiment(overrides.split())
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


UNITS = [(group, name) for group in CHOSEN for name in discover(compose.GROUPS[group])]


@pytest.mark.parametrize(("group", "name"), UNITS, ids=[f"{group}={name}" for group, name in UNITS])
def test_every_key_refuses_what_it_cannot_take(group: str, name: str) -> None:
    """A list is right for no key, minus infinity for no number, so each must name itself and say
    what it takes. The keys that no unit brings are tried with the first.
    """
    unit = f"{group}={name}"
    for key, _, accepts, _ in compose.settable(compose.load("config", [unit])):
        if key.partition(".")[0] != group and (key.partition(".")[0] in CHOSEN or (group, name) != UNITS[0]):
            continue
        for value in ["[1,2]", *(["-inf"] if "a number" in accepts else [])]:
            with pytest.raises(compose.ConfigError) as error:
                compose.experiment([unit, f"{key}={value}"])
            assert str(error.value).startswith(f"{key}={value}: must be ")


def test_arms_are_points_of_a_two_by_two_and_labels_come_from_the_configuration() -> None:
    arms = {arm: compose.experiment([f"arm={arm}"]) for arm in ("rnn", "clipped_rnn", "lstm", "clipped_lstm")}
    assert all(experiment.arm == arm for arm, experiment in arms.items())
    assert compose.experiment(["arm=lstm", "cell=rnn"]).arm == "rnn"
    assert compose.experiment(["arm=lstm_1997"]).arm == "lstm_no_forget_gate"
    assert compose.experiment(["arm=rnn", "clip.max_norm=0.5"]).arm == "clipped_rnn"
    assert compose.experiment(["arm=clipped_rnn", "clip.max_norm=null"]).arm == "rnn"
    assert compose.experiment(["cell=rnn", "clip.max_value=1"]).arm == "value_clipped_rnn"


def test_identity_follows_what_determines_the_numbers() -> None:
    base = compose.experiment([]).config_hash
    assert base == compose.experiment(["tracking.experiment=elsewhere"]).config_hash
    assert base == compose.experiment(["cell=lstm", "seed=0"]).config_hash
    changes = ["seed=1", "cell=rnn", "optimizer.lr=0.1", "train.dtype=float64", "clip.max_norm=1"]
    assert len({base, *(compose.experiment([override]).config_hash for override in changes)}) == len(changes) + 1


def test_a_swept_cell_brings_its_own_keys() -> None:
    points = compose.points(["arm=rnn,clipped_rnn", "cell.activation=relu"])
    assert [compose.experiment(point).arm for point in points] == ["rnn", "clipped_rnn"]


def test_a_sweep_of_no_points_is_refused() -> None:
    with pytest.raises(compose.ConfigError, match="a sweep of no points"):
        compose.points(["seed=range(0)"])


def test_points_of_a_sweep() -> None:
    assert compose.points(["arm=rnn,lstm", "seed=0,1"]) == [
        ["arm=rnn", "seed=0"],
        ["arm=rnn", "seed=1"],
        ["arm=lstm", "seed=0"],
        ["arm=lstm", "seed=1"],
    ]


@pytest.mark.parametrize(
    ("text", "seeds"),
    [
        ("seed=7", [7]),
        ("seed=3..5", [3, 4, 5]),
        ("seed=4..4", [4]),
        ("seed=[7,0,3]", [7, 0, 3]),
        ("seed=0..999", range(1000)),
    ],
)
def test_one_value_can_hold_several_seeds(text: str, seeds: list[int]) -> None:
    experiments = compose.experiments(["arm=gru", text])
    assert [experiment.seed for experiment in experiments] == list(seeds)
    for experiment in (experiments[0], experiments[len(seeds) // 2], experiments[-1]):
        assert experiment == compose.experiment(["arm=gru", f"seed={experiment.seed}"])
    assert {type(experiment) for experiment in experiments} == {Experiment}


def test_several_seeds_are_one_point_of_a_sweep_for_hydra() -> None:
    points = compose.points(["arm=rnn,lstm", "seed=0..7,[8,9]"])
    assert [seeds for _, seeds in points] == ["seed=0..7", "seed=[8,9]"] * 2
    assert [len(compose.experiments(point)) for point in points] == [8, 2, 8, 2]


def test_where_one_seed_is_meant_several_are_refused() -> None:
    with pytest.raises(compose.ConfigError, match=r"^seed=0\.\.3: must be a single seed here$"):
        compose.experiment(["seed=0..3"])


STUDIES = sorted(path.stem for path in (CONF / "experiment").glob("*.yaml"))


@pytest.mark.parametrize("study", STUDIES)
def test_every_point_of_every_study_type_checks(study: str) -> None:
    points = compose.points([f"+experiment={study}"])
    experiments = [compose.experiment(point) for point in points]
    assert len({e.config_hash for e in experiments}) == len(points) > 1
    assert {e.tracking.experiment for e in experiments} == {study}


@pytest.mark.parametrize("group", ["task", "cell", "init", "optimizer", "instruments", "figures"])
def test_every_unit_has_its_yaml_and_every_yaml_its_unit(group: str) -> None:
    files = {path.stem for path in (CONF / group).glob("*.yaml")}
    assert files == set(discover(compose.GROUPS[group]))
    if group not in ("instruments", "figures"):
        for name in files:
            assert isinstance(compose.experiment([f"{group}={name}"]), Experiment)


def test_every_default_in_yaml_is_a_known_key() -> None:
    for path in Path(CONF).rglob("*.yaml"):
        assert isinstance(yaml.safe_load(path.read_text()), dict), path


def test_help_lists_every_key_with_what_it_takes(capsys: pytest.CaptureFixture[str]) -> None:
    from gradpath.commands import cli

    assert cli.run(["--help"]) == 0
    out = capsys.readouterr().out
    for entry in (
        "arm=",
        "task=",
        "cell.hidden_size=64",
        "an integer ≥ 1",
        "clip.max_norm=null",
        "optimizer.lr=",
        "a range 0..15",
    ):
        assert entry in out
