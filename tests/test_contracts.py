"""The contracts of gradpath.testing: gradpath's own units pass them, and what is wrong is caught
with a message that says what.
"""

import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gradpath.commands.units import GROUPS
from gradpath.core.activations import Activation
from gradpath.schema import plugins
from gradpath.schema.discovery import discover
from gradpath.testing import (
    CellContract,
    ClippingContract,
    FigureContract,
    InitContract,
    InstrumentContract,
    OptimizerContract,
    TaskContract,
)

CONTRACTS: dict[str, Any] = {
    "cell": CellContract,
    "task": TaskContract,
    "instruments": InstrumentContract,
    "figures": FigureContract,
    "init": InitContract,
    "optimizer": OptimizerContract,
    "clip": ClippingContract,
}
CHECKED = {"test_gradpath_check_passes": None, "figures": ("exploding",)}
"""Of a cell that ``test_check.py`` checks and ``test_figures.py`` draws."""
GIVEN: dict[tuple[str, str], dict[str, Any]] = {
    ("cell", "rnn"): {**CHECKED, "variants": ({"activation": Activation.relu},)},
    ("cell", "lstm"): CHECKED,
    ("cell", "gru"): CHECKED,
    ("init", "constant"): {"random": {"jitter": 0.1}},
    ("clip", "threshold"): {"variants": ({"max_norm": 1.0}, {"max_value": 0.1})},
    ("instruments", "param_grad_norm"): {"scale": "log10"},
    ("instruments", "state_grad_norm"): {"scale": "log10"},
    ("instruments", "gate_activation"): {"scale": "none"},
    ("instruments", "loss_surface"): {"overrides": ("instruments.loss_surface.points=5",)},
    ("figures", "ablation"): {"sweep": (("arm=lstm",), ("arm=ablation/no_forget_gate",))},
    ("figures", "forget_bias"): {"sweep": (("arm=forget_bias/1",), ("arm=forget_bias/3",))},
    ("figures", "spectral_radius"): {"sweep": tuple(("cell=rnn", "init=gaussian", f"init.gain={g}") for g in (0.5, 1))},
    ("figures", "cliff"): {
        "sweep": tuple(("+experiment=cliff", "cell.hidden_size=1", f"arm={arm}") for arm in ("rnn", "clipped_rnn")),
    },
}
"""What the contract of a unit needs beside its name."""
QUICK = {"exploding", "gradient_atlas"}
"""Figures of the default run; ``test_figures.py`` and ``test_divergence.py`` draw the others."""


def adding_solution(self: Any, task: Any, inputs: np.ndarray) -> np.ndarray:
    """The sum of the marked numbers, whatever the step."""
    return np.broadcast_to((inputs[..., 0] * inputs[..., 1]).sum(axis=0), inputs.shape[:2])[..., None]


GIVEN["task", "adding"] = {"solution": adding_solution}

for group, contract in CONTRACTS.items():
    for unit in discover(GROUPS[group]):
        title = f"Test{group.title()}{unit.title().replace('_', '')}"
        globals()[title] = type(title, (contract,), {"name": unit, **GIVEN.get((group, unit), {})})
        if group == "figures" and unit not in QUICK:
            globals()[title].pytestmark = [pytest.mark.slow]
del contract


UNITS: dict[str, tuple[str, str]] = {
    "cells/wrong_adjoint": (
        "from gradpath.cells.lstm import LSTM",
        """
        class Wrong(LSTM):
            def step_backward(self, s, d):
                super().step_backward(s, d)
                d.pre[..., 0, :] *= 1.001
        """,
    ),
    "cells/writes_to_the_tape": (
        "import numpy as np\nfrom gradpath.cells.rnn import RNN",
        """
        class Wrong(RNN):
            def activations(self, tape):
                np.square(tape.pre, out=tape.pre)
                return super().activations(tape)
        """,
    ),
    "cells/unchecked_range": (
        "from gradpath.cells.rnn import RNN\nfrom gradpath.schema.settings import setting",
        """
        class Wrong(RNN):
            leak: float = setting(0.5, "leak", ge=0, le=1)
            def __post_init__(self):
                pass
        """,
    ),
    "cells/yields_nan": (
        "import numpy as np\nfrom gradpath.cells.lstm import LSTM",
        """
        class Wrong(LSTM):
            def step(self, s):
                super().step(s)
                np.sqrt(s.leaving[0], out=s.leaving[0])
        """,
    ),
    "cells/unwatched_keeping": (
        "from gradpath.cells.lstm import LSTM\nfrom gradpath.core.roles import Keeping",
        """
        class Wrong(LSTM):
            keeping = Keeping("Q")
        """,
    ),
    "tasks/wrong_chance": (
        "from gradpath.tasks.adding import Adding",
        """
        class Wrong(Adding):
            @property
            def chance_loss(self):
                return 1.1 / 6
        """,
    ),
    "tasks/wrong_mask": (
        "import numpy as np\nfrom dataclasses import replace\nfrom gradpath.tasks.temporal_order import TemporalOrder",
        """
        class Wrong(TemporalOrder):
            def sample(self, rng, batch_size):
                batch = super().sample(rng, batch_size)
                return replace(batch, mask=np.roll(batch.mask, -1, axis=0))
        """,
    ),
    "tasks/slow_draw": (
        "import numpy as np\nfrom gradpath.tasks.adding import Adding\nfrom gradpath.core.tape import Batch",
        """
        class Wrong(Adding):
            def sample(self, rng, batch_size):
                drawn = [super(Wrong, self).sample(rng, 1) for _ in range(batch_size)]
                arrays = zip(*((b.inputs, b.targets, b.mask) for b in drawn), strict=True)
                return Batch(*(np.concatenate(part, axis=1) for part in arrays))
        """,
    ),
    "instruments/writes_to_the_trace": (
        "from gradpath.instruments.grad_norm import GradNorm",
        """
        class Wrong(GradNorm):
            def measure(self, network, trace):
                trace.tape.layers[0].states[network.cell.output][-1] = 0
                return super().measure(network, trace)
        """,
    ),
    "instruments/wrong_shape": (
        "from gradpath.instruments.grad_norm import GradNorm",
        """
        class Wrong(GradNorm):
            per_timestep = True
        """,
    ),
    "instruments/refused_key": (
        "from gradpath.instruments.grad_norm import GradNorm",
        """
        class Wrong(GradNorm):
            def metric(self, name):
                return "bad key: %$"
        """,
    ),
    "figures/undeclared_reading": (
        "from gradpath.figures.gradient_atlas import GradientAtlas",
        """
        class Wrong(GradientAtlas):
            needs = ("grad_norm",)
        """,
    ),
    "figures/random_points": (
        "import numpy as np\nfrom gradpath.figures import Figure",
        """
        class Wrong(Figure):
            def draw(self, runs):
                from matplotlib import pyplot
                canvas, axes = pyplot.subplots()
                axes.plot(np.random.default_rng().normal(size=3), label="2 seeds")
                return canvas
        """,
    ),
    "figures/wrong_refusal": (
        "from gradpath.figures.gradient_atlas import GradientAtlas",
        """
        class Wrong(GradientAtlas):
            def draw(self, runs):
                if len(runs) == 1:
                    raise IndexError("list index out of range")
                return super().draw(runs)
        """,
    ),
    "optimizers/writes_to_theta": (
        "from gradpath.optimizers.sgd import SGD",
        """
        class Wrong(SGD):
            def update(self, theta, gradient, state, step):
                theta -= self.lr * gradient
                return theta, state
        """,
    ),
    "optimizers/uphill": (
        "from gradpath.optimizers.sgd import SGD",
        """
        class Wrong(SGD):
            def update(self, theta, gradient, state, step):
                return theta + (self.lr * gradient).astype(theta.dtype), state
        """,
    ),
    "clippings/wrong_ratio": (
        "from gradpath.clippings.threshold import Threshold",
        """
        class Wrong(Threshold):
            def apply(self, gradient):
                applied, ratio = super().apply(gradient)
                return applied, ratio**2
        """,
    ),
    "inits/draws_in_its_type": (
        "import numpy as np\nfrom gradpath.inits.uniform import Uniform",
        """
        class Wrong(Uniform):
            def draw(self, rng, network, dtype):
                return rng.random(network.size, dtype=np.dtype(dtype).type)
        """,
    ),
    "optimizers/other_value": (
        "from gradpath.optimizers.sgd import SGD\nfrom gradpath.schema.settings import setting",
        """
        class Wrong(SGD):
            lr: float = setting(0.5, "learning rate", gt=0)
        """,
    ),
}
"""Units with a fault, each with the imports that it needs."""
FOLDERS = {"cell": "cells", "task": "tasks", "instruments": "instruments", "figures": "figures"}
FOLDERS |= {"init": "inits", "optimizer": "optimizers", "clip": "clippings"}
MESSAGES = [
    (
        "cells/wrong_adjoint",
        "test_the_check_passes_at_every_length",
        ("T=5, two layers",),
        r"wrong from t = 5 of layer 2",
    ),
    (
        "cells/wrong_adjoint",
        "test_every_parameter_at_every_step_equals_untied_central_differences",
        ("T=1",),
        r"∂L/∂W_ix at t = 1: relative error 1.0e-03, at most 1e-7",
    ),
    (
        "cells/writes_to_the_tape",
        "test_nothing_given_is_written_to_and_a_second_pass_is_the_same",
        ("T=1",),
        r"activations has written to what it was given: tape.layers\[0\].pre",
    ),
    (
        "cells/yields_nan",
        "test_gradpath_check_passes",
        (1,),
        "wrong from t = 1 .*: step: finite where what enters is at t = 1",
    ),
    (
        "cells/unwatched_keeping",
        "test_gradpath_check_passes",
        (1,),
        "unwatched_keeping: keeping: 'Q' is not watched; watched are I",
    ),
    (
        "instruments/refused_key",
        "test_keys_of_the_mlflow_ui",
        (),
        r"metric must return None or a key that MLflow takes, .*; it returns \['bad key: %\$'",
    ),
    ("cells/unchecked_range", "test_ranges_hold", (), "hidden_size=0: is not refused; .* super"),
    (
        "tasks/wrong_chance",
        "test_the_best_predictor_that_ignores_the_input_scores_the_chance_loss",
        (),
        r"chance_loss is 0.18333, and the best predictor that ignores the input scores 0.1",
    ),
    (
        "tasks/wrong_mask",
        "test_the_best_predictor_that_ignores_the_input_scores_the_chance_loss",
        (),
        "chance_loss is 1.3863, .* scores .*: is it the formula, or the mask",
    ),
    (
        "tasks/slow_draw",
        "test_a_minibatch_is_drawn_without_a_loop_over_the_sequences",
        (),
        r"sample makes \d+ calls for 4 sequences and \d+ for 400",
    ),
    (
        "instruments/writes_to_the_trace",
        "test_nothing_given_is_written_to_and_a_second_reading_is_the_same",
        (),
        r"measure has written to what it was given: trace.tape.layers\[0\]",
    ),
    ("instruments/wrong_shape", "test_shape_and_names", (), r"per_timestep is True, so values must be \(T, names\)"),
    (
        "figures/undeclared_reading",
        "test_several_arms_are_drawn_the_same_twice_with_their_seeds",
        (),
        "draw looks for 'param_grad_norm', which these runs do not have; needs names grad_norm",
    ),
    (
        "figures/random_points",
        "test_several_arms_are_drawn_the_same_twice_with_their_seeds",
        (),
        "the same runs give other bytes",
    ),
    (
        "figures/wrong_refusal",
        "test_a_single_run_is_drawn_or_refused",
        (),
        "draw raises IndexError: .* CannotDrawError",
    ),
    (
        "optimizers/writes_to_theta",
        "test_nothing_given_is_written_to",
        (np.float64,),
        "update has written to what it was given: theta",
    ),
    ("optimizers/uphill", "test_the_first_step_goes_downhill", (np.float32,), "does not go against the gradient"),
    (
        "optimizers/other_value",
        "test_the_yaml_file_has_the_values_of_the_class",
        (),
        "sets lr to 0.01, the class to 0.5",
    ),
    ("clippings/wrong_ratio", "test_the_ratio_is_that_of_the_norms", (np.float64,), r"but ‖applied‖ / ‖raw‖ = 0.001"),
    ("inits/draws_in_its_type", "test_the_type_does_not_change_the_draw", (), "draw in float64, and round at the end"),
]


@pytest.fixture(scope="module")
def faulty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A plugin in which every unit has a fault."""
    root = tmp_path_factory.mktemp("faulty")
    packages = {folder: group for group, folder in FOLDERS.items()}
    for place, (imports, source) in UNITS.items():
        folder, name = place.split("/")
        module = root / folder / f"{name}.py"
        module.parent.mkdir(exist_ok=True)
        heading = f"{imports}\nfrom dataclasses import dataclass\n\n\n@dataclass"
        module.write_text(heading + textwrap.dedent(source), encoding="utf-8")
        group = packages[folder]
        yaml = root / "conf" / group / f"{name}.yaml"
        yaml.parent.mkdir(parents=True, exist_ok=True)
        package = f"# @package {group}.{name}\n" if group in ("instruments", "figures") else ""
        lines = "lr: 0.01\n" if name == "other_value" else ""
        yaml.write_text(f"{package}defaults:\n  - _{name}\n  - _self_\n\n{lines}", encoding="utf-8")
    return root


@pytest.mark.parametrize(
    ("place", "check", "arguments", "message"), MESSAGES, ids=[f"{place}-{check}" for place, check, *_ in MESSAGES]
)
def test_a_fault_is_caught_by_name(
    place: str, check: str, arguments: tuple, message: str, faulty: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, name = place.split("/")
    group = next(group for group, package in FOLDERS.items() if package == folder)
    variants = {"variants": ({"max_norm": 1.0},)} if group == "clip" else {}
    contract = type("Contract", (CONTRACTS[group],), {"name": name, "plugin": faulty, **variants})()
    monkeypatch.setenv(plugins.VARIABLE, str(faulty))
    with pytest.raises((AssertionError, pytest.fail.Exception), match=message):
        getattr(contract, check)(*arguments)


def test_a_name_that_is_none_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    contract = type("Contract", (CellContract,), {"name": "lstmm"})()
    with pytest.raises(pytest.fail.Exception, match="cell=lstmm: no such unit; there are gru, lstm"):
        contract.test_ranges_hold()


def test_without_pytest_a_line_says_what_is_needed() -> None:
    script = "import sys; sys.modules['pytest'] = None; import gradpath.testing"
    completed = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    last_line = completed.stderr.splitlines()[-1]
    assert last_line == "ImportError: gradpath.testing needs pytest: pip install 'gradpath[testing]'"
