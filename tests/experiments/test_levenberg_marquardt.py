"""The second-order method beside brute force, its safeguard, and what a teleport can do to it."""

from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from experiments.optimizers.levenberg_marquardt import LEAST, MOST, LevenbergMarquardt, damped_step, factors
from meta_teleport.models import MLP
from meta_teleport.symmetry.mlp import mlp_symmetry

N, CLASSES = 7, 3


@pytest.fixture
def problem() -> tuple[MLP, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    model = MLP((4, 5, CLASSES)).double()
    for p in model.parameters():
        p.data = 0.5 * torch.randn(p.shape, generator=generator, dtype=torch.float64)
    x = torch.randn(N, 4, generator=generator, dtype=torch.float64)
    return model, x, torch.randint(CLASSES, (N,), generator=generator)


def flat(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def brute_force(model: MLP, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Gradient and Gauss-Newton matrix, entry by entry from the derivatives of the outputs and of the loss by them."""
    names, shapes = zip(*((n, p.shape) for n, p in model.named_parameters()), strict=True)
    sizes = [shape.numel() for shape in shapes]

    def outputs(w: Tensor) -> Tensor:
        parts = {n: v.view(s) for n, v, s in zip(names, w.split(sizes), shapes, strict=True)}
        return functional_call(model, parts, (x,))

    jacobian = torch.autograd.functional.jacobian(outputs, flat(model)).flatten(0, 1)
    out = model(x).detach()
    slope = torch.autograd.functional.jacobian(lambda f: F.cross_entropy(f, y), out).flatten()
    hessian = torch.autograd.functional.hessian(lambda f: F.cross_entropy(f, y), out).reshape(N * CLASSES, -1)
    return jacobian.T @ slope, jacobian.T @ hessian @ jacobian


def test_factors_give_gradient_and_gauss_newton_matrix(problem: tuple[MLP, Tensor, Tensor]) -> None:
    gradient, matrix = brute_force(*problem)
    rows, targets = factors(*problem)
    torch.testing.assert_close(rows.T @ targets, gradient, atol=1e-10, rtol=0)
    torch.testing.assert_close(rows.T @ rows, matrix, atol=1e-10, rtol=0)
    assert matrix.abs().max() > 1e-2


@pytest.mark.parametrize("count", [3, N])  # 9 and 21 equations of the outputs beside 35 of the weights
@pytest.mark.parametrize("transposed", [False, True])
def test_both_forms_of_the_step_solve_the_damped_system(
    problem: tuple[MLP, Tensor, Tensor], count: int, transposed: bool
) -> None:
    model, x, y = problem
    rows, targets = factors(model, x[:count], y[:count])
    if transposed:  # more rows than columns
        rows, targets = torch.cat([rows] * 5), torch.cat([targets] * 5)
    solved = torch.linalg.solve(rows.T @ rows + 0.3 * torch.eye(35, dtype=torch.float64), -rows.T @ targets)
    torch.testing.assert_close(damped_step(rows, targets, 0.3), solved, atol=1e-10, rtol=0)


def test_a_step_that_raises_the_loss_is_taken_back_and_damped_more(problem: tuple[MLP, Tensor, Tensor]) -> None:
    model, x, y = problem
    start = flat(model)
    optimizer = LevenbergMarquardt(model, damping=1e-8)
    losses, dampings = [], []
    for _ in range(40):
        losses.append(float(optimizer.step(lambda: (x, y))))
        dampings.append(optimizer.param_groups[0]["damping"])
    assert all(b <= a for a, b in pairwise(losses))
    assert losses[-1] < 1e-3 * losses[0]
    assert not torch.equal(flat(model), start)
    rejected = [b == a for a, b in pairwise(losses)]
    raised = [b > a for a, b in zip([1e-8, *dampings], dampings, strict=False)]
    assert any(rejected), "no step was taken back: the test shows nothing"
    assert all(up for up, stayed in zip(raised, rejected, strict=False) if stayed)


def test_the_damping_follows_the_gain_ratio(problem: tuple[MLP, Tensor, Tensor]) -> None:
    """Madsen, Nielsen and Tingleff 2004, section 3.2, from gradient and matrix by brute force: the fall of the loss
    over that of the quadratic model ``-(g.d + d.G d / 2)`` says how the damping goes on."""
    model, x, y = problem
    damping, raised, factors_seen = 1e-5, 2.0, []
    optimizer = LevenbergMarquardt(model, damping)
    for _ in range(20):
        gradient, matrix = brute_force(model, x, y)
        d = torch.linalg.solve(matrix + damping * torch.eye(len(matrix), dtype=torch.float64), -gradient)
        there = loss_at(model, flat(model) + d, x, y)
        gain = float(optimizer.step(lambda: (x, y)) - there) / float(-(gradient @ d + d @ matrix @ d / 2))
        factor = max(1 / 3, 1 - (2 * gain - 1) ** 3) if gain > 0 else raised
        raised = 2.0 if gain > 0 else 2 * raised
        factors_seen.append(factor)
        damping = min(max(factor * damping, LEAST), MOST)
        assert optimizer.param_groups[0]["damping"] == pytest.approx(damping, rel=1e-6)
        damping = optimizer.param_groups[0]["damping"]
    assert {1 / 3, 2.0, 4.0} <= set(factors_seen) and any(1 / 3 < f < 2 and f != 1 for f in factors_seen)


def loss_at(model: MLP, w: Tensor, x: Tensor, y: Tensor) -> Tensor:
    parts = w.split([p.numel() for p in model.parameters()])
    named = {n: v.view_as(p) for (n, p), v in zip(model.named_parameters(), parts, strict=True)}
    return F.cross_entropy(functional_call(model, named, (x,)), y).detach()


@pytest.mark.parametrize(("damping", "same"), [(1e-10, True), (1.0, False)])
def test_a_teleport_matters_only_through_the_damping(
    problem: tuple[MLP, Tensor, Tensor], damping: float, same: bool
) -> None:
    model, x, y = problem
    reached = []
    for scale in (0.0, 1.0):
        params = {name: p.detach()[None] for name, p in model.named_parameters()}
        moved = mlp_symmetry(model, "scaling").flow(params, [torch.linspace(-scale, scale, 5).double()[None]])
        weights = {name: p[0] for name, p in moved.items()}
        rows, targets = _factors_at(model, weights, x, y)
        step = damped_step(rows, targets, damping)
        outputs = rows @ step  # the change of the outputs to first order, in the metric of the loss
        reached.append(outputs)
    assert torch.allclose(reached[0], reached[1], atol=1e-4) is same


def _factors_at(model: MLP, weights: dict[str, Tensor], x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    kept = {name: p.detach().clone() for name, p in model.named_parameters()}
    model.load_state_dict(weights)
    found = factors(model, x, y)
    model.load_state_dict(kept)
    return found


def test_the_closure_is_needed(problem: tuple[MLP, Tensor, Tensor]) -> None:
    with pytest.raises(TypeError, match="step needs a closure that gives the batch"):
        LevenbergMarquardt(problem[0]).step()
