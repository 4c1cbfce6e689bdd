"""Of a test marked ``pairwise`` fewer combinations run, and every pair of values is in them."""

from itertools import combinations, product

import pytest

from conftest import covering

SIZES = {"a": range(5), "b": range(3), "c": range(3), "d": range(2)}


def pairs(values: dict[str, int]) -> set:
    return set(combinations(sorted(values.items()), 2))


def test_every_pair_is_in_a_few_of_the_combinations() -> None:
    everything = [dict(zip(SIZES, values, strict=True)) for values in product(*SIZES.values())]
    kept = covering(everything)
    assert len(kept) == 5 * 3, "as many as the two longest parameters have pairs"
    assert set().union(*(pairs(everything[index]) for index in kept)) == set().union(*map(pairs, everything))


def test_one_parameter_keeps_the_values_that_a_pair_needs() -> None:
    assert covering([{"a": 1, "b": 1}, {"a": 1, "b": 1}, {"a": 2, "b": 1}]) == {0, 2}


@pytest.mark.parametrize("a", SIZES["a"])
@pytest.mark.parametrize("b", SIZES["b"])
@pytest.mark.parametrize("c", SIZES["c"])
@pytest.mark.pairwise
def test_of_a_marked_test_only_those_exist(request: pytest.FixtureRequest, a: int, b: int, c: int) -> None:
    count = 5 * 3 * 3 if request.config.getoption("--every-combination") else 5 * 3
    name = request.node.nodeid.partition("[")[0]
    assert len([item for item in request.session.items if item.nodeid.partition("[")[0] == name]) <= count
