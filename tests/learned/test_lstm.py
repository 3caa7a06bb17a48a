"""The paper's three rules: every option runs, sizes are the published ones, heads do what they say."""

from itertools import product
from math import e
from typing import Any

import laws
import pytest
import tolerances
import torch

from meta_teleport.errors import UserError
from meta_teleport.learned.lstm import LSTMLrTele, LSTMRule, LSTMUpdate, LSTMUpdateTele
from meta_teleport.meta.unroll import start, unroll
from meta_teleport.params import Params, flatten
from meta_teleport.rules.rule import Observation, Shapes, initialized, shapes_of
from meta_teleport.tasks.family import Tasks
from meta_teleport.tasks.regression import Regression

SMALL = Regression(width=4, depth=3, hidden=[5, 3], points=3, data="gaussian", bias=True)
COMMON = {"features": ("raw", "normalized"), "gradient_term": (False, True), "safeguard": (False, True)}
ELEMENT = {"element_size": ("fixed", "learned")}
OPTIONS: dict[type[LSTMRule], dict[str, tuple[Any, ...]]] = {
    LSTMUpdate: COMMON,
    LSTMUpdateTele: {**COMMON, **ELEMENT, "networks": ("two", "one")},
    LSTMLrTele: {**COMMON, **ELEMENT},
}
PUBLISHED = {"features": "raw", "gradient_term": False, "safeguard": False}
PUBLISHED_ELEMENT = {"element_size": "fixed", "size": 0.01}
COMBINATIONS = [
    (cls, dict(zip(options, values, strict=True)))
    for cls, options in OPTIONS.items()
    for values in product(*options.values())
]


def sample(generator: torch.Generator, family: Regression = SMALL, count: int = 3) -> Tasks:
    return family.sample(count, generator, dtype=torch.float64)


def make(cls: type[LSTMRule], tasks: Tasks, **options: Any) -> LSTMRule:
    """A small rule with the published options, except for those given."""
    published = PUBLISHED if cls is LSTMUpdate else {**PUBLISHED, **PUBLISHED_ELEMENT}
    with initialized(0):
        return cls(shapes_of(tasks.params, tasks.symmetry), **{"hidden_size": 6, **published, **options}).double()


def observe(tasks: Tasks, params: Params) -> Observation:
    leaves = {name: p.detach().requires_grad_() for name, p in params.items()}
    step = torch.zeros(tasks.count).long()
    loss = tasks.loss(leaves, step)
    gradients = torch.autograd.grad(loss.sum(), list(leaves.values()))
    return Observation(params, dict(zip(params, gradients, strict=True)), loss.detach(), step)


def test_there_are_combinations() -> None:
    assert len(COMBINATIONS) == 8 + 32 + 16


@pytest.mark.parametrize(("cls", "options"), COMBINATIONS, ids=str)
def test_every_combination_runs_and_can_be_trained(
    cls: type[LSTMRule], options: dict[str, Any], generator: torch.Generator
) -> None:
    tasks = sample(generator)
    rule = make(cls, tasks, **options)
    phi = {name: p.detach().clone().requires_grad_() for name, p in rule.named_parameters()}
    losses, carry = unroll(rule, phi, tasks, start(rule, tasks), 4)
    assert losses.shape == (4, 3) and bool(torch.isfinite(losses).all()) and bool(carry.alive.all())
    gradients = torch.autograd.grad(losses.sum(), list(phi.values()), allow_unused=True)
    assert all(g is None or bool(torch.isfinite(g).all()) for g in gradients)
    assert any(g is not None and bool(g.any()) for g in gradients)
    proposal, _ = rule(observe(tasks, tasks.params), rule.init(tasks.params, tasks.symmetry))
    assert {n: f.shape for n, f in proposal.update.items()} == {n: p.shape for n, p in tasks.params.items()}
    assert [tuple(t.shape) for t in proposal.algebra] == ([] if cls is LSTMUpdate else [(3, 5, 5), (3, 3, 3)])


@pytest.mark.parametrize(("cls", "options"), COMBINATIONS, ids=str)
def test_a_batch_of_tasks_is_a_loop_over_them(
    cls: type[LSTMRule], options: dict[str, Any], generator: torch.Generator
) -> None:
    tasks = sample(generator)
    rule = make(cls, tasks, **options)
    observation = observe(tasks, tasks.params)
    _, state = rule(observation, rule.init(tasks.params, tasks.symmetry))
    laws.rule_is_loop(rule, observation, state)


def test_published_sizes(generator: torch.Generator) -> None:
    tasks = Regression().sample(1, generator)
    shapes = shapes_of(tasks.params, tasks.symmetry)
    options: dict[str, Any] = {**PUBLISHED, **PUBLISHED_ELEMENT}
    update_tele = {name: tuple(p.shape) for name, p in LSTMUpdateTele(shapes, 300, **options).named_parameters()}
    for network in ("update", "element.0"):
        assert update_tele[f"{network}.cells.0.weight_ih"] == (1200, 800)
        assert update_tele[f"{network}.cells.1.weight_ih"] == (1200, 300)
        assert f"{network}.cells.2.weight_ih" not in update_tele
    assert update_tele["update_head.linear.weight"] == (800, 300)
    assert update_tele["element_heads.0.linear.weight"] == (400, 300)
    assert sum(p.numel() for p in LSTMUpdate(shapes, 300, **PUBLISHED).parameters()) == 2285600
    lr_tele = {name: tuple(p.shape) for name, p in LSTMLrTele(shapes, 20, **options).named_parameters()}
    assert lr_tele["element.0.cells.0.weight_ih"] == (80, 800)
    assert lr_tele["element_lr.0.linear.weight"] == (1, 20)


@pytest.mark.parametrize("cls", [LSTMUpdateTele, LSTMLrTele])
def test_fixed_elements_have_exactly_the_norm_asked_for(cls: type[LSTMRule], generator: torch.Generator) -> None:
    tasks = sample(generator)
    for size in (0.01, 0.7):
        rule = make(cls, tasks, element_size="fixed", size=size)
        proposal, _ = rule(observe(tasks, tasks.params), rule.init(tasks.params, tasks.symmetry))
        for t in proposal.algebra:
            assert torch.allclose(t.flatten(1).norm(dim=1), torch.tensor(size, dtype=torch.float64), rtol=1e-12)


@pytest.mark.parametrize("networks", ["two", "one"])
def test_a_zero_head_proposes_nothing_at_all(networks: str, generator: torch.Generator) -> None:
    tasks = sample(generator)
    rule = make(LSTMUpdateTele, tasks, element_size="learned", networks=networks)
    with torch.no_grad():
        for head in (rule.update_head, *rule.element_heads):
            for p in head.parameters():
                p.zero_()
    proposal, _ = rule(observe(tasks, tasks.params), rule.init(tasks.params, tasks.symmetry))
    assert not flatten(proposal.update).any()
    for site, g in zip(tasks.symmetry.sites, tasks.symmetry.exp(proposal.algebra), strict=True):
        assert torch.equal(g, site.group.identity(3, dtype=torch.float64))
    with torch.no_grad():
        losses, carry = unroll(rule, dict(rule.named_parameters()), tasks, start(rule, tasks), 3)
    x = tasks.data["inputs"]
    # three times moved by nothing
    still = 3 * tolerances.solved(max(x.shape[1:]) + 1, float(torch.linalg.cond(x).max()))
    outputs, labels = tasks.outputs(tasks.params, torch.zeros(3).long()), tasks.data["labels"]
    laws.params_close(carry.params, tasks.params, still)
    laws.assert_close(losses, carry.initial.expand(3, -1), tolerances.squares(3 * still, outputs, outputs - labels))


def test_learned_elements_stay_below_the_bound(generator: torch.Generator) -> None:
    tasks = sample(generator)
    rule = make(LSTMUpdateTele, tasks, element_size="learned", size=0.3)
    for scale, low, high in ((1e-3, 0.0, 0.01), (1e3, 0.29, 0.3)):
        for head in rule.element_heads:
            torch.nn.init.constant_(head.linear.weight, scale)
            torch.nn.init.constant_(head.linear.bias, scale)
        proposal, _ = rule(observe(tasks, tasks.params), rule.init(tasks.params, tasks.symmetry))
        norms = torch.stack([t.flatten(1).norm(dim=1) for t in proposal.algebra])
        assert bool(((norms > low) & (norms <= high)).all())


def test_the_learning_rate_is_clamped_and_delayed_by_one_step(generator: torch.Generator) -> None:
    tasks = sample(generator)
    rule = make(LSTMLrTele, tasks)
    for bias, expected in ((1.0, 5e-3), (-1.0, 1e-7), (1e-3, 1e-3)):  # the published bounds, and first step below
        with torch.no_grad():
            for head in rule.element_lr:
                head.linear.bias.fill_(bias)
        observation = observe(tasks, tasks.params)
        proposal, state = rule(observation, rule.init(tasks.params, tasks.symmetry))
        laws.assert_close(flatten(proposal.update), -1e-4 * flatten(observation.gradients), 1e-12)
        proposal, _ = rule(observation, state)
        laws.assert_close(flatten(proposal.update), -expected * flatten(observation.gradients), 1e-12)


def test_gradient_term_starts_as_polyaks_step(generator: torch.Generator) -> None:
    tasks = sample(generator)
    observation = observe(tasks, tasks.params)
    gradient = flatten(observation.gradients)
    expected = -observation.loss[:, None] * gradient / gradient.square().sum(1, keepdim=True)
    for cls in OPTIONS:
        rule = make(cls, tasks, gradient_term=True)
        proposal, _ = rule(observation, rule.init(tasks.params, tasks.symmetry))
        laws.assert_close(flatten(proposal.update), expected, 1e-12)


def test_normalized_features_do_not_see_the_scale_of_the_direction(generator: torch.Generator) -> None:
    tasks = sample(generator)
    names = tuple(tasks.params)
    observation = observe(tasks, tasks.params)
    larger = observation._replace(gradients={n: 1e5 * g for n, g in observation.gradients.items()})
    raw, normalized = (make(LSTMUpdate, tasks, features=f) for f in ("raw", "normalized"))
    a, b = normalized.read(observation, names), normalized.read(larger, names)
    laws.assert_close(a[:, :-2], b[:, :-2], 1e-12)
    laws.must_fail(laws.assert_close, a[:, -2:], b[:, -2:], 1e-3)
    assert torch.equal(raw.read(observation, names), flatten(observation.gradients))


def test_sizes_and_losses_are_read_in_factors_of_e_to_the_tenth(generator: torch.Generator) -> None:
    tasks = sample(generator)
    observation = observe(tasks, tasks.params)
    larger = observation._replace(
        gradients={n: e**10 * g for n, g in observation.gradients.items()}, loss=e**-10 * observation.loss
    )
    rule = make(LSTMUpdate, tasks, features="normalized")
    before, after = (rule.read(seen, tuple(tasks.params))[:, -2:] for seen in (observation, larger))
    laws.assert_close(after - before, torch.tensor([[1.0, -1.0]]).double().expand_as(before), 1e-12)


@pytest.mark.parametrize("sign", [1, -1])
def test_entries_of_dense_updates_go_up_to_ten_million(sign: int, generator: torch.Generator) -> None:
    tasks = sample(generator)
    rule = make(LSTMUpdate, tasks, gradient_term=True)
    observation = observe(tasks, tasks.params)
    still = observation._replace(loss=torch.zeros_like(observation.loss))  # no part of Polyak's step
    for number, expected in ((0.9e7, 0.9e7), (1.1e7, 1e7), (1e30, 1e7)):
        torch.nn.init.constant_(rule.update_head.linear.bias, sign * number)
        update = flatten(rule(still, rule.init(tasks.params, tasks.symmetry))[0].update)
        laws.assert_close(update, torch.full_like(update, sign * expected), 1e-6)


def test_dense_rules_are_not_permutation_equivariant(generator: torch.Generator) -> None:
    """The negative control of the equivariance law, which gradient descent passes."""
    tasks = sample(generator, Regression(width=5, data="gaussian"))
    order = torch.tensor([3, 1, 4, 0, 2])

    def permute(params: Params) -> Params:
        first, second = params["layers.0.weight"], params["layers.1.weight"]
        return {"layers.0.weight": first[:, order], "layers.1.weight": second[:, :, order]}

    for cls in (LSTMUpdate, LSTMUpdateTele):
        rule = make(cls, tasks)

        def propose(params: Params, rule: LSTMRule = rule) -> Params:
            return rule(observe(tasks, params), rule.init(params, tasks.symmetry))[0].update

        laws.must_fail(laws.permutation_equivariance, propose, tasks.params, permute)
    laws.permutation_equivariance(lambda p: observe(tasks, p).gradients, tasks.params, permute)


def test_meta_groups_divide_the_meta_parameters(generator: torch.Generator) -> None:
    tasks = sample(generator)
    for cls in OPTIONS:
        rule = make(cls, tasks)
        groups = rule.meta_groups()
        assert sorted(groups["update"] + groups["element"]) == sorted(name for name, _ in rule.named_parameters())
        assert bool(groups["element"]) == (cls is not LSTMUpdate)
        assert bool(groups["update"]) == (cls is not LSTMLrTele)


REFUSALS: list[tuple[type[LSTMRule], dict[str, Any], str]] = [
    (LSTMUpdate, {"hidden_size": 0}, "hidden_size 0 and layers 2 must both be at least 1"),
    (LSTMUpdate, {"layers": 0}, "hidden_size 6 and layers 0 must both be at least 1"),
    (LSTMUpdate, {"features": "log"}, "unknown features 'log': choose one of raw, normalized"),
    (LSTMUpdateTele, {"element_size": "big"}, "unknown element_size 'big': choose one of fixed, learned"),
    (LSTMUpdateTele, {"networks": "three"}, "unknown networks 'three': choose two or one"),
]


@pytest.mark.parametrize(("cls", "options", "text"), REFUSALS)
def test_refusals(cls: type[LSTMRule], options: dict[str, Any], text: str, generator: torch.Generator) -> None:
    with pytest.raises(UserError) as error:
        make(cls, sample(generator), **options)
    assert str(error.value) == text


def test_lr_tele_needs_a_site() -> None:
    with pytest.raises(UserError) as error:
        LSTMLrTele(Shapes({"x": (2,)}, ()))
    assert str(error.value).startswith("LSTM(lr, tele) reads one pair of layers per site and the network has no site")
