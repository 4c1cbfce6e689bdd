"""What the benchmark times of PyTorch and of JAX gives our numbers, whichever way it takes."""

import pytest

import contest
import ours
from problem import Problem, Shape, random_problem

pytestmark = pytest.mark.peers


@pytest.fixture(params=["lstm", "rnn"])
def cell(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(params=["float32", "float64"])
def problem(request: pytest.FixtureRequest, cell: str) -> Problem:
    return random_problem(cell, Shape(7, 3, 4), request.param)


def check_all(contestants: list[contest.Contestant], problem: Problem) -> set[str]:
    """Checks every way, and returns those that gave norms too."""
    reference_contestant = next(
        contestant for contestant in ours.contestants(problem) if contestant.name == "ours, norms"
    )
    assert reference_contestant.read is not None
    reference, with_norms = reference_contestant.read(reference_contestant.run()), set()
    for contestant in contestants:
        assert contestant.read is not None
        answer = contestant.read(contestant.run())
        contest.check(f"{contestant.name} ({contestant.variant})", answer, reference, problem.dtype.name)
        if answer.norms is not None:
            with_norms.add(contestant.variant)
    return with_norms


def test_every_way_through_pytorch_gives_our_numbers(problem: Problem) -> None:
    pytest.importorskip("torch", reason="PyTorch is not installed: pip install -e '.[peers]'")
    from peers.pytorch import PyTorch

    peer = PyTorch(problem)
    assert check_all(list(peer.plain()), problem) == set()
    variants = {"untied copies", "hooks", "hooks, Gram identity", "through the fused layer"}
    assert check_all(list(peer.with_norms()), problem) == variants


def test_every_way_through_jax_gives_our_numbers(problem: Problem) -> None:
    pytest.importorskip("jax", reason="JAX is not installed: pip install -e '.[peers]'")
    from peers import jax_scan

    assert check_all(list(jax_scan.plain(problem)), problem) == set()
    assert len(check_all(list(jax_scan.with_norms(problem)), problem)) == 3
