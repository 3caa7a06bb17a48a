"""A model, its loss and a batch as a pure function."""

from collections.abc import Callable
from typing import Any

import laws
import pytest
import tolerances
import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from meta_teleport.errors import UserError
from meta_teleport.params import Params
from meta_teleport.teleportation.binding import bind
from meta_teleport.teleportation.objectives import gradient_norm


class Attention(nn.Module):
    """One head, by torch's own attention."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(4, 12)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unsqueeze(1).chunk(3, dim=-1)
        return scaled_dot_product_attention(q, k, v)


class Tied(nn.Module):
    """An embedding that is also the last layer."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(7, 5)
        self.head = nn.Linear(5, 7, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.embedding(tokens))


def noisy() -> nn.Module:
    """Batch norm, whose running means change at every call, and dropout, which draws."""
    return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Dropout(0.5), nn.Linear(6, 3))


def build(make: Callable[[], nn.Module], device: str = "cpu") -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return make().double().to(device)


def params_of(model: nn.Module) -> Params:
    return {name: p.detach().clone().unsqueeze(0) for name, p in model.named_parameters()}


def batch_of(generator: torch.Generator, *shape: int, device: str = "cpu") -> Tensor:
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(device)


def mean_square(model: nn.Module, batch: Tensor) -> Tensor:
    return model(batch).square().mean()


def snapshot(model: nn.Module) -> list[Tensor]:
    return [tensor.clone() for tensor in model.state_dict().values()]


def unchanged(model: nn.Module, before: list[Tensor]) -> None:
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), before, strict=True))


@pytest.mark.parametrize("training", [True, False])
def test_every_evaluation_is_the_next_call_of_the_model(
    training: bool, device: str, generator: torch.Generator
) -> None:
    model, batch = build(noisy, device).train(training), batch_of(generator, 8, 4, device=device)
    before, state = snapshot(model), torch.get_rng_state()
    bound = bind(model, mean_square, batch)
    first, second = bound(params_of(model)), bound(params_of(model))
    assert first.shape == (1,) and torch.equal(first, second)
    assert torch.equal(torch.get_rng_state(), state) and model.training == training
    unchanged(model, before)
    assert torch.equal(mean_square(model, batch), first[0])
    assert torch.equal(torch.get_rng_state(), state) == (device != "cpu" or not training)
    if training:
        laws.must_fail(unchanged, model, before)
    torch.rand(1)
    assert torch.equal(bound(params_of(model)), first), "the numbers of the moment it was bound"
    assert torch.equal(bind(model, mean_square, batch)(params_of(model)), first) != (training and device == "cpu")


def test_it_is_a_function_of_the_parameters_it_is_given(generator: torch.Generator) -> None:
    model, batch = build(noisy).eval(), batch_of(generator, 8, 4)
    params = {name: torch.cat([p, 2 * p, p - 1]) for name, p in params_of(model).items()}
    losses = bind(model, mean_square, batch)(params)
    assert losses.shape == (3,)
    for i in range(3):
        with torch.no_grad():
            for name, p in model.named_parameters():
                p.copy_(params[name][i])
        outputs = model(batch).detach()[None]
        rounding = tolerances.squares(tolerances.summed(5 + 2 + 7), outputs, outputs)
        laws.assert_close(losses[i : i + 1], mean_square(model, batch)[None], rounding)


def test_parameters_that_are_not_given_are_the_models(generator: torch.Generator) -> None:
    model, batch = build(noisy).eval(), batch_of(generator, 8, 4)
    some = {name: p for name, p in params_of(model).items() if name.startswith("4")}
    assert torch.equal(bind(model, mean_square, batch)(some)[0], mean_square(model, batch))
    assert all(p.grad is None for p in model.parameters())


def test_a_tied_parameter_counts_once_and_moves_everywhere(generator: torch.Generator) -> None:
    model, tokens = build(Tied), torch.tensor([0, 3, 3, 6])

    def loss(model: nn.Module, tokens: Tensor) -> Tensor:
        return nn.functional.cross_entropy(model(tokens), tokens)

    params = {name: p.requires_grad_() for name, p in params_of(model).items()}
    assert list(params) == ["embedding.weight"]
    (ours,) = torch.autograd.grad(bind(model, loss, tokens)(params).sum(), list(params.values()))
    loss(model, tokens).backward()
    largest = float(model(tokens).detach().abs().max())
    laws.assert_close(ours, model.embedding.weight.grad[None], tolerances.summed(5 + 7 + 4, max(largest, 1.0)))


def test_attention_can_be_differentiated_twice(device: str, generator: torch.Generator) -> None:
    model, batch = build(Attention, device), batch_of(generator, 3, 5, 4, device=device)

    def value(params: Params) -> Tensor:
        return gradient_norm(bind(model, mean_square, batch), params)

    params = {name: p.requires_grad_() for name, p in params_of(model).items()}
    slopes = torch.autograd.grad(value(params).sum(), list(params.values()))
    ahead = {name: p.detach() + 1e-5 * s for (name, p), s in zip(params.items(), slopes, strict=True)}
    back = {name: p.detach() - 1e-5 * s for (name, p), s in zip(params.items(), slopes, strict=True)}
    rise = value({n: p.requires_grad_() for n, p in ahead.items()}) - value(
        {n: p.requires_grad_() for n, p in back.items()}
    )
    laws.assert_close(rise / 2e-5, sum(s.square().sum() for s in slopes)[None], 1e-6)


def test_torchs_own_choice_of_attention_cannot(generator: torch.Generator) -> None:
    model, batch = build(Attention), batch_of(generator, 3, 5, 4)
    (g,) = torch.autograd.grad(mean_square(model, batch), [model.qkv.weight], create_graph=True)
    with pytest.raises(RuntimeError, match=r"derivative for .* is not implemented"):
        g.square().sum().backward()


def test_the_callers_autocast_is_used(generator: torch.Generator) -> None:
    model, batch = build(noisy).float().eval(), batch_of(generator, 8, 4).float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected = mean_square(model, batch)
        bound = bind(model, mean_square, batch)
        with torch.autocast("cpu", enabled=False):
            full = bind(model, mean_square, batch)
    assert torch.equal(bound(params_of(model))[0], expected)
    assert torch.equal(full(params_of(model))[0], mean_square(model, batch))
    assert not torch.equal(expected, mean_square(model, batch))
    params = {name: p.requires_grad_() for name, p in params_of(model).items()}
    slopes = torch.autograd.grad(gradient_norm(bound, params).sum(), list(params.values()))
    assert all(s.dtype == torch.float32 and bool(torch.isfinite(s).all()) for s in slopes)


@pytest.mark.parametrize(
    "batch", [{"x": 1, "scale": 3.0}, ("x", 3.0)], ids=["a dict of tensors and numbers", "a tuple with a string"]
)
def test_a_batch_is_whatever_the_loss_takes(batch: Any, generator: torch.Generator) -> None:
    model, x, seen = build(noisy).eval(), batch_of(generator, 8, 4), []

    def loss(model: nn.Module, batch: Any) -> Tensor:
        seen.append(batch)
        return mean_square(model, x)

    bind(model, loss, batch)(params_of(model))
    assert seen == [batch] and seen[0] is batch


BAD = [
    (lambda m, b: m(b), r"gave a tensor of shape \(8, 3\), not one number: reduce it"),
    (lambda m, b: m(b).mean().item(), "gave float, not one number"),
    (lambda m, b: m(b).detach().mean(), "does not depend on the model's trainable parameters"),
    (lambda m, b: b.mean(), "does not depend on the model's trainable parameters"),
]


@pytest.mark.parametrize(("loss", "message"), BAD)
def test_losses_that_cannot_be_followed(
    loss: Callable[[nn.Module, Any], Any], message: str, generator: torch.Generator
) -> None:
    model, batch = build(noisy), batch_of(generator, 8, 4)
    before, state = snapshot(model), torch.get_rng_state()
    with pytest.raises(UserError, match=message):
        bind(model, loss, batch)({name: p.requires_grad_() for name, p in params_of(model).items()})
    unchanged(model, before)
    assert torch.equal(torch.get_rng_state(), state)


def test_without_gradients_a_loss_needs_none(generator: torch.Generator) -> None:
    model, batch = build(noisy).eval(), batch_of(generator, 8, 4)
    with torch.no_grad():
        value = bind(model, lambda m, b: m(b).detach().mean(), batch)(params_of(model))
    assert torch.equal(value[0], model(batch).mean())


def test_inference_mode_is_refused(generator: torch.Generator) -> None:
    model = build(noisy)
    with torch.inference_mode(), pytest.raises(UserError, match=r"leave torch\.inference_mode\(\) first"):
        bind(model, mean_square, batch_of(generator, 8, 4))


def test_an_error_in_the_loss_leaves_the_model_as_it_was(generator: torch.Generator) -> None:
    model, batch = build(noisy), batch_of(generator, 8, 5)
    before, objects, state = snapshot(model), list(model.parameters()), torch.get_rng_state()
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        bind(model, mean_square, batch)(params_of(model))
    unchanged(model, before)
    assert all(a is b for a, b in zip(model.parameters(), objects, strict=True))
    assert torch.equal(torch.get_rng_state(), state)
