"""Parameters that take turns: each moves in a gauge that conditions it, at every condition number."""

from itertools import pairwise

import laws
import pytest
import torch
from torch import Tensor

from meta_teleport.equivariant.alternation import layers_of
from meta_teleport.equivariant.equivariant import Equivariant
from meta_teleport.learned.curvatures import curvatures
from meta_teleport.meta.unroll import start, unroll
from meta_teleport.params import Params
from meta_teleport.rules.rule import Rule, initialized
from meta_teleport.tasks.factorization import Factorization
from meta_teleport.tasks.family import Tasks
from meta_teleport.tasks.linear import DeepLinear

SATURATED = 4.0


def factors(condition: float = 100.0, anisotropy: float = 1.0) -> Tasks:
    family = Factorization(3, 7, 6, condition, anisotropy, batch=None)
    return family.sample(4, torch.Generator().manual_seed(1), dtype=torch.float64)


def rule_in_turns(alternating: bool = True, **options: object) -> Equivariant:
    """Elements that whiten, up to the range of their coefficients; steps of length 1 / c."""
    given = {"bases": ["incoming", "outgoing"], "size": 100.0, "floor": 1e-12, "warmup_teleports": 1, **options}
    with initialized(0):
        rule = Equivariant("curvature", alternating=alternating, **given).double()  # type: ignore[arg-type]
    if rule.bases:
        rule.element_head.bias.data = torch.tensor([-SATURATED, SATURATED], dtype=torch.float64)
    return rule


@torch.no_grad()
def after(rule: Rule, tasks: Tasks, steps: int) -> tuple[Tensor, Params]:
    losses, carry = unroll(rule, dict(rule.named_parameters()), tasks, start(rule, tasks), steps)
    return losses, carry.params


def spread(matrix: Tensor) -> float:
    """The largest condition number of the Gram matrices of the rows."""
    values = torch.linalg.eigvalsh(matrix @ matrix.mT)
    return float((values[:, -1] / values[:, 0]).max())


def test_the_layers_of_a_chain_alternate() -> None:
    tasks = DeepLinear(width=4, depth=3, batch=None).sample(1, torch.Generator())
    layers = layers_of(tasks.symmetry)
    assert [layers[name] for name in tasks.params] == [0, 1, 2]


def test_one_factor_moves_at_a_time() -> None:
    tasks = factors()
    still = rule_in_turns(bases=[], warmup_teleports=0)
    places = [tasks.params, *(after(still, tasks, steps)[1] for steps in (1, 2))]
    moved = [{n for n in now if not torch.equal(now[n], then[n])} for then, now in pairwise(places)]
    assert moved == [{"A"}, {"B"}]


def test_the_gauge_is_that_of_the_factor_whose_turn_is_next() -> None:
    tasks = factors()
    for steps, name in ((1, "A"), (2, "B"), (3, "A"), (4, "B")):
        params = after(rule_in_turns(), tasks, steps)[1]
        white = {"A": spread(params["A"]), "B": spread(params["B"].mT)}
        assert white.pop(name) < 1.1 and min(white.values()) > 2
    params = after(rule_in_turns(alternating=False), tasks, 4)[1]
    assert min(spread(params["A"]), spread(params["B"].mT)) > 1.1


@pytest.mark.parametrize("condition", [1.0, 1e4])
def test_problems_of_every_condition_number_are_solved_in_the_same_steps(condition: float) -> None:
    tasks = factors(condition)
    assert float((after(rule_in_turns(), tasks, 6)[0][-1] / tasks.loss(tasks.params, torch.zeros(4))).max()) < 1e-6
    for other in (rule_in_turns(bases=[]), rule_in_turns(alternating=False)):
        assert float((after(other, tasks, 6)[0][-1] / tasks.loss(tasks.params, torch.zeros(4))).min()) > 1e-6


def hessian_norms(tasks: Tasks) -> Tensor:
    """The largest eigenvalue of the second derivatives along each parameter of every task."""
    found = torch.empty(tasks.count, len(tasks.params), dtype=torch.float64)
    for i in range(tasks.count):
        task = tasks.select(torch.tensor([i]))
        for j, (name, p) in enumerate(task.params.items()):

            def loss(x: Tensor, task: Tasks = task, name: str = name) -> Tensor:
                return task.loss({**task.params, name: x}, torch.zeros(1)).sum()

            h = torch.autograd.functional.hessian(loss, p)
            assert isinstance(h, Tensor)
            found[i, j] = torch.linalg.eigvalsh(h.reshape(p.numel(), p.numel()))[-1]
    return found


def test_curvatures_are_exact_for_factors_and_isotropic_inputs() -> None:
    for anisotropy, check in ((1.0, laws.assert_close), (100.0, lambda *a: laws.must_fail(laws.assert_close, *a))):
        tasks = factors(anisotropy=anisotropy)
        check(curvatures(tasks.params, tasks.symmetry), hessian_norms(tasks), 1e-9)


def test_curvatures_of_dead_layers_are_finite() -> None:
    tasks = factors()
    params = {"A": tasks.params["A"], "B": torch.zeros_like(tasks.params["B"])}
    assert bool((curvatures(params, tasks.symmetry) > 0).all())
    params["B"] = params["B"] + torch.nan
    assert bool(torch.isfinite(curvatures(params, tasks.symmetry)).all())


def test_the_loss_never_rises_at_any_step_length() -> None:
    for alternating in (True, False):
        tasks, rule = factors(), rule_in_turns(alternating, bases=[], warmup_teleports=0)
        torch.nn.init.constant_(rule.get_parameter("update.head.bias"), SATURATED)
        losses = after(rule, tasks, 8)[0]
        assert bool((losses.diff(dim=0) <= 1e-12 * losses[:-1]).all()) is alternating
