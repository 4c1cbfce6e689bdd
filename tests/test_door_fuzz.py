"""The command's door under a grammar of overrides: every outcome is a configuration or one line."""

import contextlib
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from gradpath.commands import compose, launch

sys.path.insert(0, str(Path(__file__).parent / "fuzz"))
from overrides import outcome

KEYS = st.one_of(
    st.sampled_from(
        "seed cell task arm init optimizer instruments experiment train clip tracking train.steps cell.hidden_size "
        "optimizer.lr train.dtype clip.max_norm tracking.experiment tracking.sweep_id tracking.uri cell.ablation "
        "instruments.reach.schedule.every hydra.run.dir hydra/launcher hydra.mode hydra.callbacks hydra.job_logging "
        "hydra.searchpath resume jobs train.checkpoint_every hydra.launcher hydra.sweep.dir hydra.job.env_set "
        "hydra.sweeper.params hydra/sweeper hydra.output_subdir cell@train lr T cell._target_ defaults _self_ "
        "cell.".split()
    ),
    st.text(max_size=6),
)
WORDS = st.sampled_from(
    "rnn lstm adding copy demo null true nan inf -inf 0 -0 01 1_000 1e3 1e25 1e400 .5 0x1 3..5 ??? ${seed} ${cell} "
    "${nope} ${hydra:job.num} ${oc.env:HOME} ${oc.env:NOPE,3} ${now:%Y} ../x /etc/passwd a,b glob(*) range(3) int(x) "
    "choice(1) größe − \x1b[31m \u00a0".split(" ")
)
VALUES = st.recursive(
    st.one_of(WORDS, st.text(max_size=8), st.integers().map(str), st.floats().map(str)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3).map(lambda items: f"[{','.join(items)}]"),
        st.dictionaries(st.sampled_from(["a", "steps", "_target_"]), inner, max_size=2).map(
            lambda items: "{" + ",".join(f"{key}:{value}" for key, value in items.items()) + "}"
        ),
        inner.map(lambda text: f"${{oc.decode:'{text}'}}"),
        inner.map(lambda text: f'"{text}"'),
    ),
    max_leaves=4,
)
OVERRIDES = st.builds(
    lambda prefix, key, equals, value: f"{prefix}{key}{equals}{value}",
    st.sampled_from(["", "", "", "", "+", "++", "~", "-"]),
    KEYS,
    st.sampled_from(["=", "=", "=", "=", "==", ":", ""]),
    VALUES,
)
REPEATABLE = settings(deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck))


@pytest.mark.parametrize(
    "override",
    [
        "arm=${oc.decode:'[1,2]'}",
        f"arm={'a' * 5000}",
        f"{'a' * 5000}=3",
        f"cell.{'a' * 5000}=3",
        f"seed={'[' * 3000}",
        "train.steps=1e25",
        "seed=\ud800",
        "cell=${cell}",
        "=",
        "",
    ],
    ids=lambda override: ascii(override)[:30],
)
def test_what_once_was_a_traceback(override: str) -> None:
    assert ": " in outcome([override])


@settings(REPEATABLE, max_examples=12)
@given(st.lists(OVERRIDES, min_size=1, max_size=2))
@example(["seed=${train.steps}", "train.steps=${seed}"])
def test_a_few_overrides_give_a_configuration_or_one_line(overrides: list[str]) -> None:
    outcome(overrides)


@pytest.mark.slow
@settings(REPEATABLE, max_examples=1500)
@given(st.lists(OVERRIDES, min_size=1, max_size=3))
def test_many_overrides_give_a_configuration_or_one_line(overrides: list[str]) -> None:
    outcome(overrides)


@pytest.mark.slow
@settings(REPEATABLE, max_examples=300)
@given(st.lists(OVERRIDES, min_size=1, max_size=3))
def test_many_sweeps_give_points_or_one_line(overrides: list[str]) -> None:
    from gradpath.commands.hydra_options import Options

    with contextlib.suppress(compose.ConfigError):
        launch.planned(Options(overrides, multirun=True))
