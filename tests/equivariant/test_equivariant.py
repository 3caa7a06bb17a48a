"""The equivariant rule: the identity to begin with, equivariant, one set of meta-parameters for every network."""

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import laws
import pytest
import torch
from observations import observe
from torch import Tensor

from meta_teleport.equivariant.bases import BASES, EQUIVARIANT, basis
from meta_teleport.equivariant.equivariant import Equivariant, EquivariantState
from meta_teleport.equivariant.updates import UPDATES
from meta_teleport.errors import UserError
from meta_teleport.learned.lstm import LSTMUpdateTele
from meta_teleport.meta.unroll import start, unroll
from meta_teleport.params import Params
from meta_teleport.rules.classical import GradientDescent
from meta_teleport.rules.rule import Proposal, Rule, initialized, shapes_of
from meta_teleport.tasks.factorization import Factorization
from meta_teleport.tasks.family import TaskFamily, Tasks
from meta_teleport.tasks.functions import Functions
from meta_teleport.tasks.regression import Regression
from meta_teleport.teleportation.gauges import balanced

GAUSSIAN = partial(Regression, data="gaussian")
FAMILIES: dict[str, TaskFamily] = {
    "data-dependent": GAUSSIAN(width=4, depth=3, hidden=[5, 3], points=3),
    "pseudo-inverse": GAUSSIAN(width=4, depth=3, hidden=[5, 6], points=3, action="pseudo_inverse"),
    "linear": GAUSSIAN(width=4, depth=3, action="linear", activation="identity", points=9, bias=True),
    "scaling": GAUSSIAN(width=4, depth=3, action="scaling", points=9, bias=True),
    "orthogonal": GAUSSIAN(width=4, action="linear", activation="identity", group="orthogonal"),
    "plane": Functions("booth"),
    "factors": Factorization(rank=3, inputs=6, outputs=5, points=32, batch=4),
}


def rule_with(seed: int = 0, **options: Any) -> Equivariant:
    """A rule whose heads are drawn at random, as if it had been trained."""
    with initialized(seed):
        rule = Equivariant(**{"hidden_size": 6, "horizon": 10, **options}).double()
        for name, p in rule.named_parameters():
            if not bool(p.any()):
                torch.nn.init.normal_(p, std=0.3)
                assert "head" in name
    return rule


def tasks_of(name: str, count: int = 3) -> Tasks:
    return FAMILIES[name].sample(count, torch.Generator().manual_seed(1), dtype=torch.float64)


def proposed(rule: Rule, tasks: Tasks, params: Params) -> Proposal:
    return rule(observe(tasks, params), rule.init(params, tasks.symmetry))[0]


@pytest.mark.parametrize("name", FAMILIES)
def test_a_zero_head_gives_the_identity(name: str) -> None:
    tasks = tasks_of(name)
    with initialized(0):
        rule = Equivariant(hidden_size=6, horizon=10).double()
    algebra = proposed(rule, tasks, tasks.params).algebra
    assert len(algebra) == len(tasks.symmetry.sites) and not any(bool(t.any()) for t in algebra)
    assert any(bool(t.any()) for t in proposed(rule_with(), tasks, tasks.params).algebra)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_batch_of_tasks_is_a_loop_over_them(name: str) -> None:
    tasks = tasks_of(name)
    for update in UPDATES:
        rule = rule_with(update=update, averaging=0.5)
        observation, state = observe(tasks, tasks.params), rule.init(tasks.params, tasks.symmetry)
        if name == "factors":  # its symmetry belongs to the batch
            observation = observation._replace(symmetry=tasks_of(name, 1).symmetry)
        laws.rule_is_loop(rule, observation, state, 1e-10)


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("second_order", [False, True])
def test_can_be_trained(name: str, second_order: bool) -> None:
    tasks = tasks_of(name)
    rule = rule_with(averaging=0.5, every=2)
    phi = {key: p.detach().clone().requires_grad_() for key, p in rule.named_parameters()}
    losses, carry = unroll(rule, phi, tasks, start(rule, tasks), 4, second_order=second_order)
    gradients = torch.autograd.grad(losses.log().sum(), list(phi.values()), allow_unused=True)
    named = dict(zip(phi, gradients, strict=True))
    assert all(g is None or bool(torch.isfinite(g).all()) for g in gradients) and bool(carry.alive.all())
    moved = [key for key in phi if key.startswith("element_lstm")]
    assert moved and all(named[key] is not None and bool(named[key].any()) for key in moved)


@pytest.mark.parametrize("update", ["adam", "muon"])
@pytest.mark.parametrize("name", ["data-dependent", "linear", "factors"])
def test_meta_gradient_is_that_of_extrapolated_differences(name: str, update: str) -> None:
    tasks = tasks_of(name, 2)
    rule = rule_with(averaging=0.5, update=update)
    phi = {key: p.detach().clone().requires_grad_() for key, p in rule.named_parameters()}

    def objective(at: Params) -> Tensor:
        return unroll(rule, at, tasks, start(rule, tasks), 3, second_order=True)[0].log().sum()

    direction = {key: torch.randn(p.shape, generator=torch.Generator().manual_seed(2)).to(p) for key, p in phi.items()}
    gradients = torch.autograd.grad(objective(phi), list(phi.values()), allow_unused=True)
    slope = sum((g * d).sum() for g, d in zip(gradients, direction.values(), strict=True) if g is not None)

    @torch.no_grad()
    def along(t: float) -> float:
        return float(objective({key: p + t * direction[key] for key, p in phi.items()}))

    found, error = laws.slope_at_zero(along)
    assert error <= 1e-7 * abs(found)  # what is claimed below is ten times as much
    assert float(slope.detach()) == pytest.approx(found, rel=1e-6)
    first_order = unroll(rule, phi, tasks, start(rule, tasks), 3)[0].log().sum()
    parts = torch.autograd.grad(first_order, list(phi.values()), allow_unused=True)
    cut = sum((g * d).sum() for g, d in zip(parts, direction.values(), strict=True) if g is not None)
    assert float(cut.detach()) != pytest.approx(found, rel=1e-5)


@pytest.mark.parametrize("update", ["polyak", "adam", "muon"])
def test_step_lengths_see_the_activations_with_teleports_and_without(update: str) -> None:
    tasks = tasks_of("linear")
    for bases in (None, []):
        rule = rule_with(bases=bases, update=update)
        losses, _ = unroll(rule, dict(rule.named_parameters()), tasks, start(rule, tasks), 2)
        blind = rule_with(bases=bases, update=update)
        blind.observes_grams = False
        others, _ = unroll(blind, dict(blind.named_parameters()), tasks, start(blind, tasks), 2)
        assert not torch.allclose(losses, others, rtol=1e-6)
    assert rule_with(bases=[], update="gd").observes_grams is False
    assert rule_with(bases=["identity"], update=update).over(GradientDescent(0.1)).observes_grams is False


def permuted(params: Params, order: Tensor) -> Params:
    """The same MLP of three layers with the units of its first hidden layer in another order."""
    names = list(params)
    below = [name for name in names if name.startswith("layers.0")]
    above = next(name for name in names if name.startswith("layers.1.weight"))
    return {**params, **{name: params[name][:, order] for name in below}, above: params[above][:, :, order]}


@pytest.mark.parametrize("name", ["data-dependent", "linear", "scaling"])
@pytest.mark.parametrize("update", ["polyak", "adam", "muon"])
def test_permuting_the_units_permutes_the_proposal(name: str, update: str) -> None:
    tasks = tasks_of(name)
    order = torch.randperm(tasks.symmetry.sites[0].group.k, generator=torch.Generator().manual_seed(3))

    def propose(rule: Rule, params: Params) -> Params:
        proposal = proposed(rule, tasks, params)
        return {**proposal.update, "element": proposal.algebra[0], "upper": proposal.algebra[1]}

    def permute(params: Params) -> Params:
        moved = permuted({key: p for key, p in params.items() if key.startswith("layers")}, order)
        if "element" not in params:
            return moved
        t = params["element"][:, order]
        return {**moved, "element": t[..., order] if t.ndim > 2 else t, "upper": params["upper"]}

    laws.permutation_equivariance(partial(propose, rule_with(update=update)), tasks.params, permute)
    if name == "data-dependent":
        with initialized(0):
            dense = LSTMUpdateTele(shapes_of(tasks.params, tasks.symmetry), hidden_size=6).double()
            for p in dense.parameters():
                torch.nn.init.normal_(p, std=0.3)
        laws.must_fail(laws.permutation_equivariance, partial(propose, dense), tasks.params, permute)


def test_rotating_a_linear_site_rotates_the_proposal() -> None:
    tasks = tasks_of("factors")
    rotation = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(3), dtype=torch.float64)).Q

    def rotate(params: Params) -> Params:
        return {"A": rotation @ params["A"], "B": params["B"] @ rotation.mT}

    rule = rule_with(update="polyak")
    here, there = (proposed(rule, tasks, params) for params in (tasks.params, rotate(tasks.params)))
    laws.params_close(there.update, rotate(here.update), 1e-10)
    laws.assert_close(there.algebra[0], rotation @ here.algebra[0] @ rotation.mT, 1e-10)
    laws.must_fail(laws.assert_close, there.algebra[0], here.algebra[0], 1e-3)
    weighed = rule_with(update="polyak", bases=["balance"])
    here, there = (proposed(weighed, tasks, params).algebra[0] for params in (tasks.params, rotate(tasks.params)))
    laws.assert_close(there, rotation @ here @ rotation.mT, 1e-10)
    aligned = rule_with(update="polyak", bases=["axes"])
    here, there = (proposed(aligned, tasks, params).algebra[0] for params in (tasks.params, rotate(tasks.params)))
    laws.must_fail(laws.assert_close, there, rotation @ here @ rotation.mT, 1e-3)


def test_axes_turn_factors_to_their_principal_axes() -> None:
    tasks = tasks_of("factors")
    params = tasks.params

    def slant(params: Params) -> float:
        gram = params["A"] @ params["A"].mT
        return float((gram - torch.diag_embed(gram.diagonal(dim1=-2, dim2=-1))).norm() / gram.norm())

    balance = balanced(tasks.symmetry.sites[0], params)
    params = tasks.symmetry.act(params, (balance,))
    before = slant(params)
    for _ in range(8):
        t = basis(tasks.symmetry.sites[0], 0, observe(tasks, params), ("axes",), 1e-6).matrices[:, 0, 0]
        params = tasks.symmetry.flow(params, (t / 2,))
    assert slant(params) < 1e-6 < 1e-2 < before


@pytest.mark.parametrize("name", ["factors", "linear", "scaling"])
def test_balance_leads_to_the_balanced_gauge(name: str) -> None:
    tasks = tasks_of(name)
    for site, index in zip(tasks.symmetry.sites, range(2), strict=False):
        diagonal = name == "scaling"
        found = basis(site, index, observe(tasks, tasks.params), ("balance",), 1e-6).matrices
        t = found[:, 0, :, 0] if diagonal else found[:, 0, 0]
        g = balanced(site, tasks.params)
        laws.assert_close(site.group.exp(t / 2), g, 1e-10)
        laws.must_fail(laws.assert_close, site.group.exp(t), g, 1e-2)


def test_there_is_no_balance_without_a_gauge() -> None:
    tasks = tasks_of("factors")
    empty = {**tasks.params, "B": torch.zeros_like(tasks.params["B"])}
    cases = [("data-dependent", None), ("orthogonal", None), ("plane", None), ("factors", empty)]
    for name, params in cases:
        tasks = tasks_of(name)
        seen = observe(tasks, params or tasks.params)
        assert not basis(tasks.symmetry.sites[0], 0, seen, ("balance",), 1e-6).matrices.any()


def test_a_rule_can_begin_as_a_gauge() -> None:
    tasks = tasks_of("factors")
    with initialized(0):
        rule = Equivariant(
            bases=["incoming", "balance", "axes"], init_coefficients={"balance": 1.0, "axes": 1.0}, size=1e4
        ).double()
    seen = observe(tasks, tasks.params)
    half = basis(tasks.symmetry.sites[0], 0, seen, ("balance", "axes"), 1e-6).matrices[:, 0].sum(1) / 2
    algebra = proposed(rule, tasks, tasks.params).algebra[0]
    laws.assert_close(algebra, torch.tanh(torch.tensor(1.0)) * half, 1e-6)
    laws.must_fail(laws.assert_close, algebra, half, 1e-2)


def test_a_rule_can_begin_by_whitening_activations() -> None:
    tasks = GAUSSIAN(width=6).sample(3, torch.Generator().manual_seed(2), dtype=torch.float64)
    inputs = tasks.inputs(torch.zeros(3, dtype=torch.long))

    def condition(b: float) -> torch.Tensor:
        with initialized(0):
            rule = Equivariant(bases=["activations"], init_coefficients={"activations": b}, size=1e4).double()
        moved = tasks.symmetry.flow(tasks.params, proposed(rule, tasks, tasks.params).algebra, inputs)
        return torch.linalg.cond(tasks.symmetry.grams(moved, inputs)[0])

    at_first = condition(0.0)
    laws.assert_close(condition(-20.0), torch.ones(3, dtype=torch.float64), 1e-6)
    laws.assert_close(condition(-1.0).log(), at_first.log() * (1 - math.tanh(1.0)), 1e-6)
    assert bool((condition(1.0) > 2 * at_first).all())


def test_one_rule_for_every_network() -> None:
    rule = rule_with()
    for name in FAMILIES:
        tasks = tasks_of(name)
        with torch.no_grad():
            losses, _ = unroll(rule, dict(rule.named_parameters()), tasks, start(rule, tasks), 3)
        assert bool(torch.isfinite(losses).all())


@pytest.mark.parametrize(("dtype", "least"), [(torch.float64, 1e-14), (torch.float32, torch.finfo(torch.float32).eps)])
def test_whitening_stops_where_rounding_begins(dtype: torch.dtype, least: float) -> None:
    family = GAUSSIAN(width=6, points=3)  # more units than points: activations of rank 3
    tasks = family.sample(2, torch.Generator().manual_seed(1), dtype=dtype)
    log = basis(tasks.symmetry.sites[0], 0, observe(tasks, tasks.params), ("activations",), 0.5).matrices[:, 0, 0]
    lowest = torch.linalg.eigvalsh(log.double()).exp().min(1).values
    torch.testing.assert_close(lowest, torch.full_like(lowest, least), rtol=0.01, atol=0)


def unmoved(rule: Equivariant) -> Equivariant:
    """The same rule, but its memory stays behind when the parameters move."""

    class Unmoved(Equivariant):
        def transport(self, state: EquivariantState, *_: Any) -> EquivariantState:
            return state

    rule.__class__ = Unmoved
    return rule


@pytest.mark.parametrize("make", [rule_with, lambda **options: unmoved(rule_with(**options))], ids=["moved", "left"])
def test_the_memory_moves_with_the_parameters(make: Callable[..., Equivariant]) -> None:
    """Means of gradients after teleports along exact sites are those of gradients taken at the moved weights all along:
    with the elements undone at the end, a rule without updates is where it was."""
    tasks = tasks_of("factors")
    rule = make(update="gd", lr=0.0, averaging=0.5, every=1)
    batch = replace(tasks, batch=None)
    with torch.no_grad():
        _, carry = unroll(rule, dict(rule.named_parameters()), batch, start(rule, batch), 4)
    bias = 1 - 0.5**4
    now = observe(batch, carry.params).gradients
    expected = {name: bias * g for name, g in now.items()}
    if make is rule_with:
        laws.params_close(carry.state.average, expected, 1e-10)
    else:
        laws.must_fail(laws.params_close, carry.state.average, expected, 1e-3)


def test_a_mean_that_the_update_keeps_is_kept_once() -> None:
    tasks = tasks_of("factors")

    def losses(averaging: float, update: str = "adam", shared: bool = True) -> Tensor:
        rule = rule_with(update=update, averaging=averaging)
        if not shared:
            rule.update.running_mean = lambda state, decay: None
        assert bool(rule.init(tasks.params, tasks.symmetry).average) is not shared
        return unroll(rule, dict(rule.named_parameters()), tasks, start(rule, tasks), 6)[0]

    laws.assert_close(losses(0.9), losses(0.9, shared=False), 1e-10)
    laws.must_fail(laws.assert_close, losses(0.9), losses(0.99), 1e-6)
    for averaging, update in ((0.8, "adam"), (0.9, "polyak"), (0.9, "gd")):
        losses(averaging, update, shared=False)


def test_what_cannot_be_built() -> None:
    with pytest.raises(UserError, match="unknown basis 'axes': choose from incoming"):
        Equivariant(bases=["incoming"], init_coefficients={"axes": 1.0})
    with pytest.raises(UserError, match="unknown basis 'gram': choose from activations, incoming"):
        Equivariant(bases=["gram"])
    with pytest.raises(UserError, match="unknown update 'sgd': choose one of polyak, adam"):
        Equivariant(update="sgd")
    assert set(BASES) - set(EQUIVARIANT) == {"balance", "axes", "steepest"}


@pytest.mark.parametrize("update", ["polyak", "adam", "muon", "coordinatewise"])
def test_a_rule_made_to_last_twice_as_long_reads_half_of_the_time(update: str) -> None:
    tasks = tasks_of("linear")
    rule = rule_with(update=update)
    longer = rule.for_horizon(2 * rule.horizon)
    early, late = (observe(tasks, tasks.params)._replace(step=torch.full((3,), t)) for t in (4, 8))
    state = rule(observe(tasks, tasks.params), rule.init(tasks.params, tasks.symmetry))[1]
    first, second = rule(early, state)[0], longer(late, state)[0]
    laws.assert_close(first.algebra[0], second.algebra[0], 1e-12)
    laws.must_fail(laws.assert_close, rule(late, state)[0].algebra[0], first.algebra[0], 1e-6)
    assert rule.time_scale == 1.0
    with pytest.raises(UserError, match="Equivariant cannot be made for 300 steps: give 1 or more"):
        rule.for_horizon("300")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="GradientDescent cannot be made for 5 steps"):
        GradientDescent(0.1).for_horizon(5)


def test_a_rule_whose_steps_fall_takes_as_many_teleports_when_it_lasts_longer() -> None:
    tasks = tasks_of("linear")
    rule = rule_with(update="adam", every=2)
    state = rule.init(tasks.params, tasks.symmetry)

    def times(rule: Equivariant, steps: int) -> list[int]:
        at = observe(tasks, tasks.params)
        proposals = [rule(at._replace(step=torch.full((3,), t)), state)[0] for t in range(steps)]
        return [t for t, proposal in enumerate(proposals) if proposal.algebra]

    horizon = rule.horizon
    assert times(rule, horizon) == list(range(0, horizon, 2))
    assert times(rule.for_horizon(3 * horizon), 3 * horizon) == list(range(0, 3 * horizon, 6))
    assert times(rule.for_horizon(horizon // 2), horizon // 2) == list(range(horizon // 2))
    assert times(rule_with(update="polyak", every=2).for_horizon(3 * horizon), horizon) == list(range(0, horizon, 2))


@pytest.mark.parametrize("update", UPDATES)
def test_teleports_end_where_step_lengths_have_fallen(update: str) -> None:
    """At the horizon, stretched or not, and past it; not before, not under updates that go on, and not where someone
    else says when."""
    tasks = tasks_of("linear")
    decays = update in ("adam", "muon", "coordinatewise", "decaying_adam")

    def moves(rule: Equivariant, step: int) -> bool:
        at = observe(tasks, tasks.params)._replace(step=torch.full((3,), step))
        algebra = rule(at, rule.init(tasks.params, tasks.symmetry))[0].algebra
        return any(bool(t.any()) for t in algebra)

    rule = rule_with(update=update)
    assert moves(rule, rule.horizon - 1) and moves(rule, rule.horizon) is not decays
    longer = rule.for_horizon(2 * rule.horizon)
    assert moves(longer, rule.horizon) and moves(longer, 2 * rule.horizon) is not decays
    assert moves(rule.over(GradientDescent(0.1)), 10 * rule.horizon)


def test_tasks_that_wait_for_their_teleport_do_not_see_that_others_have_one() -> None:
    tasks, rule = tasks_of("linear"), rule_with(every=2)
    _, together = after(rule, tasks, torch.tensor([0, 1, 2]))
    for i in range(3):
        _, alone = after(rule, tasks.select(torch.tensor([i])), torch.tensor([i]))
        for mine, its in zip((*together.cells[0], *together.memory), (*alone.cells[0], *alone.memory), strict=True):
            assert torch.equal(mine[i].isnan(), its[0].isnan()) and bool(its.isnan().all()) == (
                i == 1 and its.ndim == 1
            )
            laws.assert_close(mine[i : i + 1].nan_to_num(), its.nan_to_num(), 1e-12)


def after(rule: Equivariant, tasks: Tasks, step: Tensor) -> tuple[Proposal, EquivariantState]:
    """What a fresh rule proposes at steps of one's own per task, and its next state."""
    return rule(observe(tasks, tasks.params)._replace(step=step), rule.init(tasks.params, tasks.symmetry))


@pytest.mark.parametrize("update", ["polyak", "adam", "muon"])
@pytest.mark.parametrize("name", ["scaling", "linear"])
def test_units_that_are_all_dead_break_nothing(name: str, update: str) -> None:
    tasks = tasks_of(name)
    observation = observe(tasks, tasks.params)
    dead = observation._replace(grams=tuple(torch.zeros_like(gram) for gram in observation.grams))
    rule = rule_with(update=update)
    state = rule.init(tasks.params, tasks.symmetry)
    alive, stopped = rule(observation, state)[0], rule(dead, state)[0]
    for proposal in (alive, stopped):
        assert all(bool(torch.isfinite(x).all()) for x in (*proposal.update.values(), *proposal.algebra))
    laws.must_fail(laws.params_close, stopped.update, alive.update, 1e-6)
