"""What is shipped and what was published stays what it is: committed numbers to a relative 1e-9, in float64.

Where a change is meant, ``python tests/pinned/write.py NAME`` writes them anew; say so in the commit.
"""

import copy

import pytest
import torch
from pinned.cases import CASES, double, run
from pinned.rules import PROBLEMS, RULES, trained
from pinned.store import RELATIVE, apart, flat, read


@pytest.mark.parametrize("name", CASES)
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:this rule has never met")
def test_numbers_are_those_that_are_committed(name: str) -> None:
    found = apart(run(name), read(name))
    assert {key: value for key, value in found.items() if value > RELATIVE} == {}


@pytest.mark.parametrize("name", RULES)
@pytest.mark.filterwarnings("ignore:this rule has never met")
def test_the_rules_teleport_within_these_steps(name: str) -> None:
    """At lr 0 nothing but teleports moves the weights, and the loss stays where it is."""
    moved = []
    with double():
        for problem in PROBLEMS.values():
            losses, optimizer = trained(name, problem, lr=0.0)
            pairs = zip(optimizer.model.parameters(), problem.model().parameters(), strict=True)
            moved.append(max(float((a - b).detach().abs().max()) for a, b in pairs))
            assert optimizer.rejected == 0
            assert float((losses - losses[0]).abs().max()) < 1e-12
    assert max(moved) > 1e-2


@pytest.mark.parametrize("name", CASES)
def test_a_change_of_any_committed_number_is_seen(name: str) -> None:
    committed = read(name)
    assert set(apart(committed, committed).values()) == {0.0}
    for key, value in committed.items():
        other = copy.copy(committed)
        other[key] = [1.001 * x + 1e-9 for x in value] if isinstance(value, list) and value else "another"
        assert apart(other, committed)[key] > RELATIVE, key
    assert apart({}, committed) and torch.inf in apart({}, committed).values()
    assert flat(committed) == committed
