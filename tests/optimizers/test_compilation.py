"""Optimizers under ``torch.compile``: the same steps as without it, or a warning."""

from collections.abc import Callable, Iterator
from typing import Any

import laws
import network_cases
import pytest
import torch
from network_cases import RELU, parameters
from rule_cases import trained
from torch import nn
from torch.optim import SGD, Optimizer

from meta_teleport.errors import UserError
from meta_teleport.optimizers.compilation import REASON
from meta_teleport.optimizers.learned_optimizer import LearnedOptimizer
from meta_teleport.optimizers.teleported import TeleportedOptimizer
from meta_teleport.params import Params

Step = Callable[[int], Any]
Loop = Callable[[nn.Module, Optimizer], Step]


@pytest.fixture(autouse=True)
def compiled_anew() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def compiled(function: Any, **options: Any) -> Any:
    return torch.compile(function, backend="eager", **options)


def stacked(model: nn.Module) -> Params:
    return {name: p.unsqueeze(0) for name, p in parameters(model).items()}


def learned(model: nn.Module) -> LearnedOptimizer:
    return trained(every=2).optimizer(model, symmetry=RELU.symmetry)


def teleported(model: nn.Module) -> TeleportedOptimizer:
    sgd = SGD(model.parameters(), 0.1, momentum=0.9)
    return TeleportedOptimizer(
        sgd, model, RELU.symmetry, schedule=2, loss=network_cases.loss, batches=lambda: RELU.batch(9), tolerance=1e-6
    )


def train(make: Callable[[nn.Module], Optimizer], loop: Loop) -> tuple[Params, Any]:
    model = RELU.build()
    optimizer = make(model)
    step = loop(model, optimizer)
    for seed in range(5):
        step(seed)
    return stacked(model), optimizer


def plain(model: nn.Module, optimizer: Any) -> Step:
    def step(seed: int) -> None:
        optimizer.zero_grad()
        loss = network_cases.loss(model, RELU.batch(seed))
        loss.backward()
        optimizer.report(loss=loss)
        optimizer.step()

    return step


def step_compiled(model: nn.Module, optimizer: Any) -> Step:
    optimizer.step = compiled(optimizer.step)
    return plain(model, optimizer)


def model_compiled(model: nn.Module, optimizer: Any) -> Step:
    return plain(compiled(model, fullgraph=True), optimizer)


def loop_compiled(model: nn.Module, optimizer: Any) -> Step:
    return compiled(plain(model, optimizer))


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # the compiler looks at the loss
@pytest.mark.parametrize(
    ("make", "loop"),
    [
        (learned, step_compiled),
        (teleported, step_compiled),
        (learned, model_compiled),
        pytest.param(teleported, model_compiled, marks=pytest.mark.slow),
        pytest.param(learned, loop_compiled, marks=pytest.mark.slow),
        pytest.param(teleported, loop_compiled, marks=pytest.mark.slow),
    ],
)
def test_compiled_steps_are_the_steps(make: Callable[[nn.Module], Optimizer], loop: Loop) -> None:
    expected, reference = train(make, plain)
    found, optimizer = train(make, loop)
    laws.params_close(found, expected, 1e-12)
    if make is learned:
        assert optimizer.step_count == reference.step_count == 5
    else:
        records = [[(r.step, r.accepted) for r in o.teleports] for o in (optimizer, reference)]
        assert records[0] == records[1] and records[0][0] == (2, True)


@pytest.mark.parametrize("make", [learned, teleported])
def test_a_step_in_one_graph_is_refused_with_the_reason(make: Callable[[nn.Module], Any]) -> None:
    optimizer = make(RELU.build())
    with pytest.raises(torch._dynamo.exc.Unsupported) as caught:
        compiled(optimizer.step, fullgraph=True)()
    assert REASON in str(caught.value)


def test_activations_that_a_compiled_model_hides_are_warned_of_once() -> None:
    """Hooks are not traced into a graph that is there already; a reset brings them in."""

    def run(reset: bool) -> Params:
        torch.compiler.reset()
        model = RELU.build()
        fast = compiled(model)
        network_cases.loss(fast, RELU.batch(0)).backward()
        optimizer = learned(model)
        if reset:
            torch.compiler.reset()
        step = plain(fast, optimizer)
        for seed in range(5):
            step(seed)
        return stacked(model)

    expected, _ = train(learned, plain)
    laws.params_close(run(reset=True), expected, 1e-12)
    with pytest.warns(UserWarning, match="at site '0' are not seen, .* call torch.compiler.reset") as caught:
        hidden = run(reset=False)
    assert len(caught) == 1
    laws.must_fail(laws.params_close, hidden, expected, 1e-3)


def test_activations_in_evaluation_mode_are_warned_of() -> None:
    model = RELU.build().eval()
    step = plain(model, learned(model))
    with pytest.warns(UserWarning, match="call model.train"):
        step(0)
    step(1)


def test_layers_without_a_gradient_and_those_seen_once_are_not_warned_of() -> None:
    model = RELU.build()
    optimizer = learned(model)
    model.eval()
    network_cases.loss(model, RELU.batch(0)).backward()
    for layer in model[1:]:
        for p in layer.parameters():
            p.grad = None
    optimizer.report(loss=1.0)
    optimizer.step()
    optimizer = learned(RELU.build())
    step = plain(optimizer.model, optimizer)
    step(0)
    optimizer.model.eval()
    step(1)


@pytest.mark.parametrize("make", [learned, teleported])
def test_a_compiled_model_is_refused(make: Callable[[nn.Module], Any]) -> None:
    with pytest.raises(UserError, match=r"the model is compiled: pass .* \(model._orig_mod"):
        make(compiled(RELU.build()))
