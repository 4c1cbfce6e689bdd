"""The benchmark's own parts: its statistics, its floor, its checks, and what it has written."""

import json
from math import comb
from pathlib import Path

import numpy as np
import pytest

import benchmark
import contest
import figure
import floor
import ours
import ratios
import scale
import table
import worker
from problem import Answer, Contestant, Problem, Shape, random_problem

RESULTS = benchmark.FOLDER / "results.json"


@pytest.fixture(params=["lstm", "rnn"])
def problem(request: pytest.FixtureRequest) -> Problem:
    return random_problem(request.param, Shape(5, 3, 4), "float64")


def test_the_interval_of_a_median_is_that_of_the_tables() -> None:
    """n = 10: x_(2), x_(9) with coverage 97.9 %; n = 20: x_(6), x_(15) with 95.9 % (Conover 1999,
    table A3).
    """
    rng = np.random.default_rng(0)
    for size, low, high in ((10, 2, 9), (20, 6, 15), (6, 1, 6), (5, 1, 5), (1, 1, 1)):
        sample = rng.permutation(size) + 1
        assert ratios.median_interval(sample) == ((size + 1) / 2, low, high)


@pytest.mark.parametrize("size", [6, 9, 17, 60])
def test_the_interval_is_the_shortest_that_covers(size: int) -> None:
    _, low, _ = ratios.median_interval(np.arange(1, size + 1))
    tail_probabilities = [2 * sum(comb(size, i) for i in range(k)) / 2**size for k in (int(low), int(low) + 1)]
    assert tail_probabilities[0] <= 0.05 < tail_probabilities[1]


def test_geometric_mean() -> None:
    assert ratios.geometric_mean([0.5, 2, 8]) == pytest.approx(2)


def test_the_floor_is_the_products_of_the_network_in_every_layout(problem: Problem) -> None:
    """The same numbers in each, and gradients of the shapes of the network's own matrices."""
    outputs = {part: [variant.run() for variant in variants] for part, variants in floor.parts(problem).items()}
    assert tuple(outputs) == floor.PARTS
    for rows, *by_gate, columns in outputs.values():
        for array, transposed in zip(rows, columns, strict=True):
            np.testing.assert_allclose(array, transposed.T, rtol=1e-12)
        for gate_arrays in by_gate:
            for array, transposed in zip(rows, gate_arrays, strict=True):
                np.testing.assert_allclose(array, transposed, rtol=1e-12)
    assert {part for part, variants in outputs.items() if len(variants) == 3} == {"forward", "backward", "weights"}
    w_x, w_h, _, w_hy, _ = problem.weights
    assert [gradient.shape for gradient in outputs["weights"][0]] == [w_x.shape, w_h.shape]
    assert outputs["readout, back"][0][1].shape == w_hy.shape
    pre, recurrent = outputs["forward"][0]
    np.testing.assert_allclose(pre, problem.batch.inputs.reshape(-1, 2) @ w_x, rtol=1e-12)
    assert recurrent.shape == (problem.shape.batch, w_h.shape[1])
    assert outputs["backward"][0][0].shape == (problem.shape.batch, problem.shape.hidden)


def test_packed_weights_and_answers_carry_the_networks_names(problem: Problem) -> None:
    named = problem.network.parameters(problem.theta)
    norms = [np.arange(2.0 * len(names)).reshape(2, -1) for names in problem.names]
    answer = problem.answer(1.0, problem.weights, norms)
    assert set(answer.gradient) == set(named)
    for name, value in named.items():
        np.testing.assert_array_equal(answer.gradient[name], value)
    assert answer.norms is not None
    for names, packed in zip(problem.names, norms, strict=True):
        for column, name in enumerate(names):
            np.testing.assert_array_equal(answer.norms[name], packed[:, column])


def moved(answer: Answer, quantity: str) -> Answer:
    """The answer with one number of it off by 1e-8."""
    assert answer.norms is not None
    gradient = {name: value.copy() for name, value in answer.gradient.items()}
    norms = {name: value.copy() for name, value in answer.norms.items()}
    if quantity == "gradient of W_hy":
        gradient["W_hy"] *= 1 + 1e-8
    if quantity == "norm of b_y at step 3":
        norms["b_y"][2] *= 1 + 1e-8
    return Answer(answer.loss * (1 + 1e-8 * (quantity == "loss")), gradient, norms)


@pytest.mark.parametrize("quantity", ["loss", "gradient of W_hy", "norm of b_y at step 3"])
def test_a_mismatch_is_an_error_that_names_its_place(problem: Problem, quantity: str) -> None:
    contestant = next(candidate for candidate in ours.contestants(problem) if candidate.name == "ours, norms")
    assert contestant.read is not None
    answer = contestant.read(contestant.run())
    contest.check("peer", answer, answer, "float64")
    contest.check("peer", moved(answer, quantity), answer, "float32")
    with pytest.raises(contest.MismatchError, match=f"peer: {quantity} is off by"):
        contest.check("peer", moved(answer, quantity), answer, "float64")
    nothing = Answer(answer.loss, {name: np.full_like(g, np.nan) for name, g in answer.gradient.items()}, None)
    with pytest.raises(contest.MismatchError, match="gradient"):
        contest.check("peer", nothing, answer, "float64")


def test_rounds_time_every_stage_of_every_contestant_in_a_changing_order() -> None:
    calls: list[str] = []
    stages = {"first": lambda _: 1, "second": lambda value: calls.append("long") or value}
    long = Contestant("long", "", stages, None, most=9)
    brief = Contestant("short", "", {"step": lambda _: calls.append("short")}, None, most=contest.MIN_ROUNDS)
    samples = contest.rounds([long, brief], seconds=60)
    assert samples["long"].shape == (9, 3)
    assert samples["short"].shape == (contest.MIN_ROUNDS, 2)
    pairs = list(zip(calls[0:12:2], calls[1:12:2], strict=True))
    assert {frozenset(pair) for pair in pairs} == {frozenset({"long", "short"})}
    assert len(set(pairs)) == 2


def test_instruments_that_cannot_read_the_network_are_left_out(problem: Problem) -> None:
    instruments = ours.every_instrument(problem.network)
    assert set(ours.default_instruments()) < set(instruments)
    assert set(ours.SLOW) < set(instruments)
    large_network = random_problem("lstm", Shape(1, 1, 20), "float32").network
    assert set(instruments) - set(ours.every_instrument(large_network)) <= {"loss_surface", "parameter_value"}
    assert "loss_surface" not in ours.every_instrument(large_network)


def test_growth_is_fitted() -> None:
    rows = [{"shape": [t, 20, 8], "seconds": 3e-6 * t**1.5, "traced": 1000 + 30 * t * 160} for t in (10, 100, 1000)]
    assert scale.exponent(rows, 0) == pytest.approx(1.5)
    assert scale.bytes_per_element(rows, "traced") == pytest.approx(30)


@pytest.mark.parametrize("text", ["1,2", "1,2,0", "a,b,c", "1,2,3,4", ""])
def test_an_impossible_shape_is_refused(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as refused:
        benchmark.parse(["--shapes", text])
    assert refused.value.code == 2
    assert "must be T,B,H" in capsys.readouterr().err


def artificial_row(threads: str, dtype: str, cell: str, shape: Shape) -> dict:
    """A row in which everything takes the same time, but at H < 128 ours with norms three times as
    long.
    """
    stages = {"ours, norms": ("forward", "backward", "instruments"), "floor": floor.PARTS}
    milliseconds = {
        name: {"rounds": 6, "median": 5.0, "stages": dict.fromkeys(parts, 1.0)} for name, parts in stages.items()
    }
    longer = 3.0 if shape.hidden < 128 else 1.0
    values = {
        f"{numerator} / {denominator}": longer if numerator == "ours, norms" else 1.0
        for numerator, denominator in worker.RATIOS
    }
    ratios = {name: [value, value / 2, value * 2] for name, value in values.items()}
    variants = dict.fromkeys(("PyTorch, norms", "JAX, norms"), "a way")
    row = {"threads": threads, "dtype": dtype, "cell": cell, "shape": list(shape)}
    return row | {"milliseconds": milliseconds, "ratios": ratios, "ways": variants}


def test_tables_and_figure_of_every_row(tmp_path: Path) -> None:
    rows = [artificial_row(*row) for row in benchmark.every_row()]
    head, _, fused_row, *_, floor_row, _ = table.headline(rows).splitlines()
    assert head.count("thread") == 4
    assert fused_row.count(" 1.44 (3.00) ") == 4, "two shapes of six with H < 128: 3^(1/3)"
    assert floor_row.count(" 1.00 (1.00) ") == 4, "the floor is aimed at from H = 128 on"
    assert table.detail(rows[:12]).count("\n") == 13
    parts = figure.parts(rows[0])
    assert sum(parts.values()) == pytest.approx(3)
    figure.draw(rows, tmp_path / "performance.png")
    assert (tmp_path / "performance.png").read_bytes().startswith(b"\x89PNG")


def test_the_page_of_the_study_takes_the_table_between_its_marks(tmp_path: Path) -> None:
    page = tmp_path / "README.md"
    page.write_text((benchmark.FOLDER / "README.md").read_text())
    for block in ("| a | \\1 |", "| b |"):
        table.put(block, page)
        assert f"\n{block}\n<!-- end -->" in page.read_text()
    assert "\\1" not in page.read_text()


@pytest.mark.skipif(not RESULTS.exists(), reason="not measured yet: make benchmark")
def test_the_results_have_every_row_and_are_what_the_pages_show() -> None:
    results = json.loads(RESULTS.read_text())
    assert sorted(table.key(row) for row in results["rows"]) == sorted(benchmark.every_row())
    for row in results["rows"]:
        assert {ratio for ratio in table.COLUMNS if "every" not in ratio} < set(row["ratios"])
        for median, low, high in row["ratios"].values():
            assert low <= median <= high
    assert (benchmark.FOLDER / "results.md").read_text() == table.page(results)
    assert table.headline(results["rows"]) in (benchmark.FOLDER / "README.md").read_text()
