import pytest
import torch
from evaluation_cases import Quadratic, Turning, generator

from meta_teleport.equivariant.equivariant import Equivariant
from meta_teleport.evaluation.controls import closed_form_controls, solve_last_layer
from meta_teleport.evaluation.measurement import measure
from meta_teleport.evaluation.methods import Method, ascent, baseline, random_move
from meta_teleport.rules.classical import GradientDescent
from meta_teleport.rules.rule import Observation
from meta_teleport.rules.wrappers import RandomElements, WithoutElements
from meta_teleport.tasks.functions import Functions
from meta_teleport.tasks.regression import Regression
from meta_teleport.teleportation.objectives import gradient_norm


def step_of(tasks):
    return torch.zeros(tasks.count, dtype=torch.long)


def test_the_identity_control_equals_the_rule_with_its_elements_dropped():
    tasks = Functions("rosenbrock").sample(6, generator())
    control = measure(Method("identity", "control", WithoutElements(Turning(1e-3))), tasks, 20)
    plain = measure(Method("gd", "baseline", GradientDescent(1e-3)), tasks, 20)
    turned = measure(Method("turning", "learned", Turning(1e-3)), tasks, 20)
    torch.testing.assert_close(control.losses, plain.losses)
    assert not torch.allclose(turned.losses, plain.losses)
    assert control.teleports == 0 and turned.teleports == 20


def test_the_random_control_has_the_size_of_the_rule_task_by_task():
    tasks = Regression(4).sample(5, generator(), dtype=torch.float64)
    algebra = torch.randn(5, 4, 4, generator=generator(1), dtype=torch.float64) * torch.arange(5.0).reshape(5, 1, 1)

    class Fixed(GradientDescent):
        def forward(self, observation, state):
            proposal, state = super().forward(observation, state)
            return proposal._replace(algebra=(algebra,)), state

    control = RandomElements(Fixed(0.1), generator(2))
    state = control.init(tasks.params, tasks.symmetry)
    zeros = {name: torch.zeros_like(p) for name, p in tasks.params.items()}
    ones = tasks.params["layers.0.weight"].new_ones(5)
    observation = Observation(tasks.params, zeros, ones, step_of(tasks), symmetry=tasks.symmetry)
    (drawn,) = control(observation, state)[0].algebra
    torch.testing.assert_close(drawn.flatten(1).norm(dim=1), algebra.flatten(1).norm(dim=1))
    assert not torch.allclose(drawn[1:], algebra[1:])


def test_random_rotations_turn_by_the_angle_of_the_rule():
    tasks = Functions("ellipse").sample(64, generator(), dtype=torch.float64)
    control = RandomElements(Turning(), generator(1))
    loss = tasks.params["x"][:, 0]
    observation = Observation(tasks.params, tasks.params, loss, step_of(tasks), symmetry=tasks.symmetry)
    (drawn,) = control(observation, ())[0].algebra
    torch.testing.assert_close(drawn[:, 0, 1].abs(), torch.full((64,), 0.5, dtype=torch.float64))
    assert set(drawn[:, 1, 0].sign().tolist()) == {1.0, -1.0}


@pytest.mark.parametrize("control", [WithoutElements, lambda rule: RandomElements(rule, generator(1))])
def test_controls_show_the_rule_what_it_reads_and_move_its_state(control):
    rule = Equivariant("adam", ["activations"], averaging=0.5)
    wrapped = control(rule)
    assert wrapped.observes_grams and not wrapped.observes_hidden
    tasks = Regression(4, action="scaling").sample(2, generator(), dtype=torch.float64)
    state = wrapped.init(tasks.params, tasks.symmetry)._replace(average=tasks.params)
    twice = torch.full((2, 4), 2.0, dtype=torch.float64)
    moved = wrapped.transport(state, tasks.symmetry, ((twice, 1 / twice),)).average["layers.0.weight"]
    factor = 0.5 if isinstance(wrapped, RandomElements) else 1.0
    torch.testing.assert_close(moved, factor * tasks.params["layers.0.weight"])


@pytest.mark.parametrize("family", [Functions("rosenbrock"), Regression(6, data="gaussian")])
def test_ascent_raises_the_gradient_norm_and_keeps_the_loss(family):
    tasks = family.sample(6, generator(), dtype=torch.float64)
    found = []
    with torch.no_grad():
        moved = ascent(0.05, found.append)(tasks, tasks.params, step_of(tasks))
    loss = lambda params: tasks.loss(params, step_of(tasks))  # noqa: E731
    torch.testing.assert_close(loss(moved), loss(tasks.params), rtol=1e-7, atol=1e-9)
    norms = [
        gradient_norm(loss, {name: p.clone().requires_grad_() for name, p in params.items()})
        for params in (tasks.params, moved)
    ]
    assert (norms[1] > norms[0]).all()
    assert len(found) == 1 and (found[0].length > 0).all() and (found[0].length <= 0.5 + 1e-12).all()


def test_random_moves_have_the_norm_that_is_asked_for_over_all_sites(monkeypatch):
    tasks = Regression(4, depth=3).sample(5, generator(), dtype=torch.float64)
    seen = []
    flow = type(tasks.symmetry).flow
    monkeypatch.setattr(
        type(tasks.symmetry),
        "flow",
        lambda self, params, algebra, inputs: seen.extend(algebra) or flow(self, params, algebra, inputs),
    )
    random_move((0, 7), (0.1, 0.3), generator())(tasks, tasks.params, step_of(tasks) + 7)
    assert len(seen) == 2
    norm = torch.stack([t.square().flatten(1).sum(1) for t in seen]).sum(0).sqrt()
    torch.testing.assert_close(norm, torch.full_like(norm, 0.3))


@pytest.mark.parametrize("name", ["gd", "momentum", "adam"])
def test_a_teleport_by_nothing_leaves_an_optimizer_and_its_state_as_they_are(name):
    tasks = Functions("booth").sample(4, generator(), dtype=torch.float64)
    settings = {"lr": 1e-2}
    plain = measure(baseline(name, settings, generator()), tasks, 15)
    teleported = {**settings, "at": [0, 5, 6], "sizes": [0.0, 0.0, 0.0]}
    still = measure(baseline(f"{name}+random", teleported, generator()), tasks, 15)
    torch.testing.assert_close(still.losses, plain.losses, rtol=1e-9, atol=0)
    moved = measure(baseline(f"{name}+random", {**teleported, "sizes": [0.5] * 3}, generator()), tasks, 15)
    assert moved.teleports == 3 and moved.drift_max < 1e-10
    assert not torch.allclose(moved.losses, plain.losses)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("points", [4, 9])
def test_the_last_layer_is_solved_as_by_least_squares(bias, points):
    family = Regression(5, points=points, bias=bias, data="gaussian", allow_drift=True)
    tasks = family.sample(3, generator(), dtype=torch.float64)
    with torch.no_grad():
        moved = solve_last_layer(tasks, tasks.params, step_of(tasks))
        h = tasks.symmetry.hidden(tasks.params, tasks.inputs(step_of(tasks)))[-1].mT
        h = torch.cat([h, torch.ones_like(h[..., :1])], -1) if bias else h
        residual = h @ torch.linalg.lstsq(h, tasks.data["labels"]).solution - tasks.data["labels"]
        expected = 0.5 * residual.square().sum((1, 2))
        torch.testing.assert_close(tasks.loss(moved, step_of(tasks)), expected, rtol=1e-9, atol=1e-18)
        assert torch.equal(moved["layers.0.weight"], tasks.params["layers.0.weight"])
    (solve,) = (m for m in closed_form_controls(tasks) if m.name == "last-layer-solve")
    measured = measure(solve, tasks, 3)
    torch.testing.assert_close(measured.losses[1:], expected.expand(3, 3), rtol=1e-9, atol=1e-18)
    assert measured.drift_max == 0


def test_closed_form_controls_exist_where_they_are_defined():
    def names(family):
        return [method.name for method in closed_form_controls(family.sample(1, generator()))]

    assert names(Regression(3)) == names(Regression(3, action="scaling")) == ["whitening", "last-layer-solve"]
    assert names(Regression(3, group="first_order")) == ["last-layer-solve"]
    assert names(Functions("booth")) == names(Quadratic()) == []
