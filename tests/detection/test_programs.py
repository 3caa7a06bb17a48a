"""No site that the walk finds in a random program moves what the program returns, and the check loses none."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from detection.nets import described
from detection.programs import Program, draw, moved_by, shrink

from meta_teleport.detection.detect import find_symmetries
from meta_teleport.operations import pointwise
from meta_teleport.operations.units import Units
from meta_teleport.operations.values import HANDLERS
from meta_teleport.symmetry.site import Site

pytestmark = pytest.mark.filterwarnings("ignore:input's size at dim")  # programs norm what they like
BOUND = 1e-7  # what is true moves outputs by rounding, 1e-16 times what the conditions of nine lines multiply to
SOME, MANY, MOST, CHUNK, LIMIT = 24, 1_000, 10_000, 50, 400


def sites(program: Program, check: bool = False) -> tuple[Site, ...]:
    examples = program.examples(torch.Generator().manual_seed(0))
    return find_symmetries(program.model(), examples, check=check).sites


def wrong(program: Program) -> list[str]:
    """The sites of a program that move what it returns."""
    return [described(site) for site in sites(program) if moved_by(program.model(), program, site) > BOUND]


def require_true(first: int, count: int) -> int:
    """How many sites some programs have; fails at a false one, with the shortest program that still has one."""
    found = 0
    for seed in range(first, first + count):
        program = draw(seed)
        if wrong(program):
            shortest = shrink(program, lambda shorter: bool(wrong(shorter)))
            pytest.fail(f"seed {seed}: {wrong(shortest)}\n{shortest}")
        found += len(sites(program))
    return found


def test_some_programs() -> None:
    assert require_true(0, SOME) > SOME / 2


@pytest.mark.slow
@pytest.mark.parametrize("first", range(SOME, SOME + MANY, CHUNK))
def test_many_programs(first: int) -> None:
    assert require_true(first, CHUNK) > CHUNK / 2


@pytest.mark.slow
@pytest.mark.nightly
@pytest.mark.parametrize("first", range(SOME + MANY, SOME + MANY + MOST, CHUNK))
def test_most_programs(first: int) -> None:
    assert require_true(first, CHUNK) > CHUNK / 2


@pytest.mark.slow
@pytest.mark.parametrize("first", range(0, 200, CHUNK))
def test_the_check_loses_no_site(first: int) -> None:
    for seed in range(first, first + CHUNK):
        program = draw(seed)
        assert list(map(described, sites(program, check=True))) == list(map(described, sites(program))), program


def test_half_of_the_programs_have_a_site() -> None:
    assert sum(bool(sites(draw(seed))) for seed in range(SOME)) >= SOME / 3


Break = Callable[[pytest.MonkeyPatch], None]


def handled_as(names: str, handler: Callable[..., Any]) -> Break:
    def broken(patch: pytest.MonkeyPatch) -> None:
        for name in names.split():
            patch.setitem(HANDLERS, name, handler)

    return broken


def without(owner: Any, name: str, stand_in: Any) -> Break:
    return lambda patch: patch.setattr(owner, name, stand_in)


BROKEN: dict[str, Break] = {
    "functions_pass_scalings": handled_as("tanh sigmoid gelu silu softplus cos", pointwise.homogeneous),
    "softmax_passes_all": handled_as("softmax", pointwise.homogeneous),
    "sums_do_not_join": without(Units, "join", lambda *given, **named: None),
    "gates_do_not_couple": without(Units, "couple", lambda *given: None),
    "parameters_are_not_shared": without(Units, "_share", lambda *given, **named: None),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", BROKEN)
def test_what_is_broken_on_purpose_is_caught(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    BROKEN[name](monkeypatch)
    assert any(wrong(draw(seed)) for seed in range(LIMIT))
