"""Dense Jacobians against differences of the textbook step; their products' singular values and
Lyapunov exponents against LAPACK, against mpmath where float64 fails, and against closed forms.
"""

from dataclasses import replace

import mpmath
import numpy as np
import pytest
from numpy.typing import NDArray

from conftest import Case, cell_id, cells, make_case
from gradpath.cells.gru import GRU
from gradpath.cells.lstm import LSTM, Ablation
from gradpath.cells.rnn import RNN
from gradpath.core.activations import Activation
from gradpath.core.cell import Cell
from gradpath.core.finite_differences import EPSILON, central_difference, pre_activations, relative_error
from gradpath.core.graded_product import Graded, products
from gradpath.core.jacobians import adjoint_qr, lyapunov_exponents, step_jacobians
from gradpath.core.losses import Loss
from gradpath.core.network import Network
from gradpath.core.tape import Batch, Tape
from gradpath.inits.uniform import Uniform
from gradpath.instruments.jacobian_log_singular_values import JacobianLogSingularValues
from gradpath.instruments.lyapunov_spectrum import LyapunovSpectrum


def jacobians(case: Case, layer: int = 0, sequence: int = 0) -> NDArray:
    """J_1 … J_T (T, n, n) in the order of time."""
    return np.stack(list(step_jacobians(case.network, case.trace.tape, layer, sequence)))[::-1]


def textbook_jacobian(case: Case, tape: Tape, layer: int, sequence: int, t: int) -> NDArray:
    """∂s_t/∂s_{t-1} by central differences of one step; with a truncated cell the pre-activations
    do not move.
    """
    cell = case.network.cell
    weights = list(case.network.layer_weights(case.theta))[layer]
    rows = tape.layers[layer]
    start = np.stack([rows.states[name][t, sequence] for name in cell.states])
    relu = getattr(cell, "activation", None) is Activation.relu
    columns = []
    for index in np.ndindex(start.shape):

        def leaving(displacement: float, position: tuple[int, ...] = index) -> NDArray:
            entering = start.copy()
            entering[position] += displacement
            hidden = start[0] if cell.truncated else entering[0]
            pre = pre_activations(cell, weights, rows.inputs[t, sequence][None], hidden[None])
            return np.concatenate(
                cell.new_step(pre, list(entering[:, None]), weights.elementwise_by_name(cell)).leaving, axis=-1
            )[0]

        columns.append(central_difference(leaving, 1e-4 if relu else EPSILON))
    return np.stack(columns, axis=-1)


TRUNCATED_AND_ABLATED = [
    LSTM(3, truncate=True),
    GRU(3, truncate=True),
    LSTM(3, ablation=Ablation.no_forget_gate, truncate=True),
]


@pytest.mark.parametrize("cell", [*cells(), *TRUNCATED_AND_ABLATED], ids=cell_id)
def test_jacobians_equal_central_differences_of_the_step(cell: Cell) -> None:
    case = make_case(cell, Loss.squared_error, 4, every_step=True)
    tape = case.trace.tape
    for layer in range(cell.layers):
        for sequence in (0, 2):
            computed = jacobians(case, layer, sequence)
            for t in range(4):
                expected = textbook_jacobian(case, tape, layer, sequence, t)
                assert relative_error(computed[t], expected) < 1e-8, (layer, sequence, t)


def test_a_long_sequence_in_several_runs_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    case = make_case(LSTM(3), Loss.squared_error, 50, every_step=False)
    in_one_pass = jacobians(case)
    monkeypatch.setattr("gradpath.core.jacobians.CHUNK_ELEMENTS", 7 * 6 * 3 * 4)
    np.testing.assert_array_equal(jacobians(case), in_one_pass)


@pytest.mark.parametrize(
    "cell", [RNN(4), LSTM(4), GRU(4), LSTM(4, ablation=Ablation.coupled_gates), LSTM(4, truncate=True)], ids=cell_id
)
def test_the_product_of_jacobians_carries_the_adjoint(cell: Cell) -> None:
    """p_{t-1} = p_t J_t from p_T = ∂L/∂H_T. The trace's total ∂L/∂C_t also has what reaches the
    loss through H_t.
    """
    case = make_case(cell, Loss.squared_error, 8, every_step=False)
    trace = case.trace
    for sequence in range(3):
        adjoint = np.zeros(len(cell.states) * 4)
        adjoint[:4] = trace.states["H"].plain()[-1, sequence]
        to_carrier = np.broadcast_to(cell.output_wrt_carrier(trace.tape.layers[0]), (8, 3, 4))
        for t, jacobian in zip(range(7, 0, -1), step_jacobians(case.network, trace.tape, 0, sequence), strict=False):
            adjoint = adjoint @ jacobian
            np.testing.assert_allclose(adjoint[:4], trace.states["H"].plain()[t - 1, sequence], rtol=1e-12, atol=1e-17)
            if "C" in cell.states:
                total = adjoint[4:] + adjoint[:4] * to_carrier[t - 1, sequence]
                np.testing.assert_allclose(total, trace.states["C"].plain()[t - 1, sequence], rtol=1e-12, atol=1e-17)


def log_singular_values(steps: NDArray) -> NDArray:
    """ln σ of steps[0] @ steps[1] @ …"""
    return list(products(adjoint_qr(steps)))[-1].log_singular_values()


@pytest.mark.parametrize("size", [1, 2, 5, 8])
@pytest.mark.parametrize("count", [1, 2, 9])
def test_singular_values_of_short_products_equal_lapack(size: int, count: int) -> None:
    steps = np.random.default_rng(size).normal(size=(count, size, size))
    explicit = np.linalg.multi_dot([np.eye(size), *steps, np.eye(size)])
    expected = np.log(np.linalg.svd(explicit, compute_uv=False))
    np.testing.assert_allclose(log_singular_values(steps), expected, atol=1e-9)


def gaussian(rng: np.random.Generator) -> NDArray:
    return rng.normal(size=(300, 6, 6)) / np.sqrt(6)


def saturated(rng: np.random.Generator) -> NDArray:
    """Rows that differ by up to 30 decades in every step, as those of saturated units do."""
    return 10.0 ** rng.uniform(-30, 0, (60, 6, 1)) * rng.normal(size=(60, 6, 6))


def random_singular(rng: np.random.Generator) -> NDArray:
    """Columns that do."""
    return saturated(rng).swapaxes(1, 2)


@pytest.mark.parametrize("kind", [gaussian, saturated, random_singular])
def test_singular_values_of_long_products_equal_mpmath(kind) -> None:
    """Every one of them, over up to 1 600 decades; float64 has 308, and 16 between the largest and
    the smallest.
    """
    steps = kind(np.random.default_rng(3))
    with mpmath.workdps(500 if kind is gaussian else 4000):
        product = mpmath.eye(6)
        for step in steps:
            product = product * mpmath.matrix(step.tolist())
        squares = mpmath.eigsy(product * product.T, eigvals_only=True)
        expected = np.sort([float(mpmath.log(abs(square)) / 2) for square in squares])[::-1]
    np.testing.assert_allclose(log_singular_values(steps), expected, rtol=1e-10, atol=0)
    assert expected[0] - expected[-1] > 100 * np.log(10)


@pytest.mark.parametrize("seed", [5, 195])
def test_a_direction_is_kept_where_its_elements_span_many_decades(seed: int) -> None:
    """The first diagonal is how a vector grows, whose elements are right to rounding of their own
    when it is carried back alone.
    """
    rng = np.random.default_rng(seed)
    steps = [
        10.0 ** rng.uniform(-25, 0, (4, 1)) * rng.normal(size=(4, 4)) * 10.0 ** rng.uniform(-25, 0, (1, 4))
        if t % 2
        else rng.normal(size=(4, 4)) * 10.0 ** rng.uniform(-40, 0, (4, 4))
        for t in range(6)
    ]
    vector, expected = np.linalg.qr(np.random.default_rng(0).normal(size=(4, 4)))[0][:, 0], []
    for step in steps:
        vector = step.T @ vector
        expected.append(np.log(np.linalg.norm(vector)))
        vector /= np.linalg.norm(vector)
    found = [np.log(factor[0, 0]) for factor in adjoint_qr(steps)]
    np.testing.assert_allclose(sum(found), sum(expected), atol=1e-7)


def test_close_and_equal_singular_values() -> None:
    """Orthogonal factors have one singular value many times over; a scaled one next to it tests
    every small gap.
    """
    rng = np.random.default_rng(0)
    rotations = [np.linalg.qr(rng.normal(size=(7, 7)))[0] for _ in range(40)]
    np.testing.assert_allclose(log_singular_values(np.stack(rotations)), np.zeros(7), atol=1e-13)
    values = 1 + np.array([1e-3, 1e-6, 1e-9, 1e-12, 0, -1e-9, -1e-3])
    steps = np.stack([rotations[0] @ np.diag(values) @ rotations[1]])
    np.testing.assert_allclose(log_singular_values(steps), np.sort(np.log(values))[::-1], atol=1e-14)


def test_rotations_alone_find_the_singular_values(monkeypatch: pytest.MonkeyPatch) -> None:
    """The preparation by QR saves time and must change nothing."""
    rng = np.random.default_rng(5)
    graded = Graded(np.sort(rng.uniform(-800, 0, 9))[::-1], np.triu(rng.uniform(-1, 1, (9, 9)), 1) + np.eye(9))
    prepared = graded.log_singular_values()
    monkeypatch.setattr("gradpath.core.graded_product.PRECONDITION", 0)
    np.testing.assert_allclose(graded.log_singular_values(), prepared, rtol=1e-13)
    assert np.abs(prepared - graded.log_scale).max() > 1e-2, "the diagonal alone is not the answer"


def scored_last(network: Network, inputs: NDArray) -> Batch:
    steps, sequences, _ = inputs.shape
    mask = np.zeros((steps, sequences), bool)
    mask[-1] = True
    return Batch(inputs, np.zeros((steps, sequences, network.output_size)), mask)


def run(cell: Cell, steps: int, gain: float = 1.0, recurrent: float = 1.0, seed: int = 0) -> Case:
    """A network on noise, its recurrent weights multiplied by ``recurrent``."""
    rng = np.random.default_rng(seed)
    network = Network(cell, 2, 1, Loss.squared_error, cell.layers, cell.initial_state)
    theta = Uniform(gain=gain).draw(rng, network, np.float64)
    for name, value in network.parameters(theta).items():
        if name[0] == "W" and name[-1] == "h":
            value *= recurrent
    return Case(network, theta, scored_last(network, rng.normal(size=(steps, 2, 2))))


def exponents(case: Case, warm_up: int = 0) -> NDArray:
    return lyapunov_exponents(adjoint_qr(step_jacobians(case.network, case.trace.tape, 0, 0)), warm_up)


@pytest.mark.parametrize("f", [0.3, 0.9, 1.0])
def test_without_recurrent_weights_the_exponents_are_log_f(f: float) -> None:
    """R = 0: J = [[0, A F], [0, F]] with A = ∂H_t/∂C_t. H hands nothing on: H exponents are -inf,
    true zeros. The rest are ln f to rounding, and the product [[0, A_T f^T], [0, f^T]] has the
    singular values f^T √(1 + A_T²), 523 decades down for f = 0.3.
    """
    case = run(LSTM(5, freeze_f=f), 1000, recurrent=0)
    computed = exponents(case, warm_up=1)
    np.testing.assert_allclose(computed[:5], np.log(f), rtol=1e-13, atol=1e-15)
    assert np.isneginf(computed[5:]).all()
    last_gain = case.network.cell.output_wrt_carrier(case.trace.tape.layers[0])[-1, 0]
    values = log_singular_values(jacobians(case)[::-1])
    expected = 1000 * np.log(f) + np.sort(np.log1p(last_gain**2))[::-1] / 2
    np.testing.assert_allclose(values[:5], expected, rtol=1e-13, atol=1e-12)  # a thousand roundings
    assert np.isneginf(values[5:]).all()


@pytest.mark.parametrize("bias", [-1.0, 0.0, 3.0])
def test_with_a_forget_gate_that_reads_only_its_bias_the_exponents_are_log_sigmoid(bias: float) -> None:
    case = run(LSTM(4), 60, recurrent=0)
    named = case.network.parameters(case.theta)
    named["W_fx"][:], named["b_f"][:] = 0, bias
    computed = exponents(case, warm_up=1)
    np.testing.assert_allclose(computed[:4], -np.log1p(np.exp(-bias)), rtol=1e-13)


@pytest.mark.parametrize("cell", [RNN(6), LSTM(4), GRU(5), LSTM(4, ablation=Ablation.coupled_gates)], ids=cell_id)
def test_the_exponents_sum_to_the_mean_log_determinant(cell: Cell) -> None:
    case = run(cell, 80)
    _, logs = np.linalg.slogdet(jacobians(case))
    for warm_up in (0, 10):
        assert exponents(case, warm_up).sum() == pytest.approx(logs[: 80 - warm_up].mean(), rel=1e-10)


@pytest.mark.parametrize("gain", [1.0, 2.5])
@pytest.mark.parametrize("cell", [RNN(6), LSTM(6), LSTM(6, forget_bias=4.0), GRU(6)], ids=cell_id)
def test_the_largest_exponent_is_the_slope_of_the_adjoint(cell: Cell, gain: float) -> None:
    """Of the trace's own adjoint, over 750 steps, after 750 in which adjoint and Q have turned to
    the leading direction. Where the next exponents are close to the first they have not yet quite:
    a factor that does not grow with T, here e^3 at most.
    """
    case = run(cell, 1500, gain)
    assert exponents(case, 750)[0] == pytest.approx(slope(case, 750), abs=3 / 750)


def slope(case: Case, warm_up: int) -> float:
    """Mean change of ln ‖∂L/∂(carrier)‖ a step back, without the last steps: where an LSTM's C has
    grown large, ∂H_T/∂C_T is next to nothing, and the adjoint starts with a drop.
    """
    norms = np.log(10) * case.trace.states[case.network.cell.states[-1]].seed(0).log10_norm()
    return float((norms[0] - norms[-1 - warm_up]) / (len(norms) - 1 - warm_up))


def test_identity_weights_and_active_units_have_exponents_of_zero() -> None:
    """relu, W_hh = 1, every unit active: J_t is the identity (Le, Jaitly & Hinton 2015). A unit
    that is dead in a single step takes one direction with it and leaves the others as they were.
    """
    case = run(RNN(6, activation=Activation.relu), 40)
    named = case.network.parameters(case.theta)
    named["W_xh"][:], named["W_hh"][:], named["b_h"][:] = 0, np.eye(6), 0.1
    np.testing.assert_allclose(exponents(case), np.zeros(6), atol=1e-14)
    named["W_xh"][0, 2] = -100
    case.batch.inputs[..., 0] = 0
    case.batch.inputs[17, :, 0] = 1
    values = log_singular_values(jacobians(case)[::-1])
    rounding = 40 * 6 * np.finfo(np.float64).eps  # of 40 factors of 6 columns each, by whichever kernel of BLAS
    np.testing.assert_allclose(values[:5], np.zeros(5), atol=rounding)
    assert np.isneginf(values[5])
    assert np.isneginf(exponents(case)).tolist() == [False] * 5 + [True]


def test_units_that_depend_on_each_other_leave_true_zeros() -> None:
    """Without output gate H_t = tanh C_t, so that a Jacobian has rank H although no row or column
    of it is 0.
    """
    case = run(LSTM(4, ablation=Ablation.no_output_gate), 50)
    computed, values = exponents(case), log_singular_values(jacobians(case)[::-1])
    assert np.isfinite(computed[:4]).all()
    assert np.isneginf(computed[4:]).all()
    explicit = np.linalg.multi_dot(jacobians(case)[::-1])
    largest = np.linalg.svd(explicit, compute_uv=False)[0]
    assert values[0] == pytest.approx(np.log(largest), rel=1e-12)
    assert np.isneginf(values[4:]).all()


def test_the_jacobian_of_h_alone_never_sees_the_forget_gate() -> None:
    """The published mistake: ∂H_t/∂H_{t-1} with C held fixed. Its exponent stays below -2 whatever
    b_f is, while the adjoint's slope and the exponent of [H, C] go from -1.5 to 0.
    """
    slopes, h_exponents, state_exponents = [], [], []
    for bias in (-2.0, 1.0, 6.0):
        case = run(LSTM(6, forget_bias=bias), 400)
        slopes.append(slope(case, 10))
        h_exponents.append(lyapunov_exponents(adjoint_qr(jacobians(case)[::-1, :6, :6]), 10)[0])
        state_exponents.append(exponents(case, 10)[0])
    np.testing.assert_allclose(state_exponents, slopes, atol=3 / 400)
    assert state_exponents[0] < -1.4 < -0.02 < state_exponents[2] < 0.02
    assert max(h_exponents) < -2
    assert np.ptp(h_exponents) < 0.5


def test_instruments_equal_a_naive_computation() -> None:
    case = run(LSTM(3), 9)
    measurement = JacobianLogSingularValues(lags=4).measure(case.network, case.trace)
    assert measurement.names[0] == "lag=1/sigma_1"
    assert measurement.values.shape == (4 * 6,) == (len(measurement.names),)
    for lag in (1, 2, 4, 8):
        expected = np.zeros(6)
        for sequence in (0, 1):
            steps = jacobians(case, 0, sequence)[::-1][:lag]
            product = np.linalg.multi_dot([np.eye(6), *steps])
            expected += np.log10(np.linalg.svd(product, compute_uv=False)) / 2
        recorded = [measurement.values[measurement.names.index(f"lag={lag}/sigma_{k}")] for k in range(1, 7)]
        np.testing.assert_allclose(recorded[:3], expected[:3], atol=1e-12)
        # At the longest lag LAPACK's smallest values are lost beside the largest.
        np.testing.assert_allclose(recorded, expected, atol=1e-9 if lag < 4 else 1e-1)
    spectrum = LyapunovSpectrum(sequences=1, warm_up=0).measure(case.network, case.trace)
    assert spectrum.names == tuple(f"lambda_{k}" for k in range(1, 7))
    first_sequence = JacobianLogSingularValues(sequences=1).measure(case.network, case.trace)
    assert spectrum.values.sum() == pytest.approx(np.linalg.slogdet(jacobians(case))[1].mean(), rel=1e-10)
    assert first_sequence.values.dtype == spectrum.values.dtype == np.float64


def test_instruments_of_a_stack_name_the_layer_and_show_one_number_of_it() -> None:
    case = make_case(GRU(3, layers=2), Loss.squared_error, 5, True, np.float32)
    trace = case.trace
    spectrum, values = LyapunovSpectrum(), JacobianLogSingularValues()
    names = spectrum.measure(case.network, trace).names
    assert names == tuple(f"layer{k}/lambda_{i}" for k in (1, 2) for i in (1, 2, 3))
    assert [spectrum.metric(name) for name in names if spectrum.metric(name)] == [
        "train/lyapunov_layer1_lambda_1",
        "train/lyapunov_layer2_lambda_1",
    ]
    assert spectrum.metric("lambda_11") is None
    assert values.measure(case.network, trace).names[0] == "layer1/lag=1/sigma_1"
    assert all(values.metric(name) is None for name in values.measure(case.network, trace).names)


@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize("cell", [RNN(3), LSTM(3)], ids=cell_id)
def test_the_shortest_sequences(cell: Cell, steps: int) -> None:
    case = make_case(cell, Loss.squared_error, steps, False)
    trace = case.trace
    for instrument in (LyapunovSpectrum(), JacobianLogSingularValues()):
        assert not np.isnan(instrument.measure(case.network, trace).values).any()


@pytest.mark.parametrize(
    "instrument", [LyapunovSpectrum(), JacobianLogSingularValues()], ids=lambda i: type(i).__name__
)
def test_a_network_that_blew_up_reads_nan_and_a_dead_one_zero(instrument) -> None:
    case = run(RNN(4, activation=Activation.relu), 20)
    names = instrument.measure(case.network, case.trace).names
    with np.errstate(over="ignore", invalid="ignore"):
        diverged = instrument.measure(case.network, replace(case, theta=case.theta * 1e300).trace)
    assert diverged.names == names
    assert np.isnan(diverged.values).all()
    named = case.network.parameters(case.theta)
    named["b_h"][:] = -1e3
    assert np.isneginf(instrument.measure(case.network, case.trace).values).all()
