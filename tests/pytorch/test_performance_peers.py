"""What the benchmark times of PyTorch and of JAX gives our numbers, whichever way it takes."""

import pytest

import contest
import ours
from problem import Problem, Shape, pose

pytestmark = pytest.mark.peers


@pytest.fixture(params=["lstm", "rnn"])
def cell(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(params=["float32", "float64"])
def problem(request: pytest.FixtureRequest, cell: str) -> Problem:
    return pose(cell, Shape(7, 3, 4), request.param)


def hold(contestants: list[contest.Contestant], problem: Problem) -> set[str]:
    """Checks every way, and returns those that gave norms too."""
    own = next(one for one in ours.contestants(problem) if one.name == "ours, norms")
    assert own.read is not None
    reference, gave = own.read(own.run()), set()
    for one in contestants:
        assert one.read is not None
        found = one.read(one.run())
        contest.check(f"{one.name} ({one.way})", found, reference, problem.dtype.name)
        if found.norms is not None:
            gave.add(one.way)
    return gave


def test_every_way_through_pytorch_gives_our_numbers(problem: Problem) -> None:
    pytest.importorskip("torch", reason="PyTorch is not installed: pip install -e '.[peers]'")
    from peers.pytorch import PyTorch

    peer = PyTorch(problem)
    assert hold(list(peer.plain()), problem) == set()
    ways = {"untied copies", "hooks", "hooks, Gram identity", "through the fused layer"}
    assert hold(list(peer.with_norms()), problem) == ways


def test_every_way_through_jax_gives_our_numbers(problem: Problem) -> None:
    pytest.importorskip("jax", reason="JAX is not installed: pip install -e '.[peers]'")
    from peers import jax_scan

    assert hold(list(jax_scan.plain(problem)), problem) == set()
    assert len(hold(list(jax_scan.with_norms(problem)), problem)) == 3
