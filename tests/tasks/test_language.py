"""Languages and the transformers that learn them: probabilities by hand, causality, pre-training, refusals."""

from dataclasses import replace
from typing import Any

import laws
import pytest
import tolerances
import torch
from torch import Tensor
from torch.nn import functional as F

from meta_teleport.errors import UserError
from meta_teleport.params import axpy
from meta_teleport.rules.classical import Adam
from meta_teleport.rules.rule import Observation
from meta_teleport.symmetry.symmetry import Symmetry
from meta_teleport.tasks import language as module
from meta_teleport.tasks.language import LENGTH, VOCABULARY, Language, LanguageTasks
from meta_teleport.tasks.pretraining import adam, pretrained, shifted
from meta_teleport.tasks.transformer import Decoder, Sizes, initial, is_adapter, structure

SIZES = Sizes(width=8, layers=2, heads=2, rank=2, batch=4, points=16, test=8, pretraining_steps=30)


def texts(count: int, generator: torch.Generator, sizes: Sizes = SIZES) -> LanguageTasks:
    """Tasks on models as they are drawn, in float64, all parameters trained."""
    params, spoken = initial(structure(sizes), count, generator), Language.draw(count, generator)
    params = {name: 0.1 * torch.randn(p.shape, generator=generator) + p for name, p in params.items()}
    sequences, _ = spoken.write(sizes.points, generator)
    test, truth = spoken.write(sizes.test, generator)
    data = {"sequences": sequences, "test": test, "truth": truth.double()}
    return LanguageTasks({n: p.double() for n, p in params.items()}, data, structure(sizes), Symmetry(()), sizes.batch)


def steps(tasks: LanguageTasks, number: int = 0) -> Tensor:
    return torch.full((tasks.count,), number)


def test_sequences_follow_their_language(generator: torch.Generator) -> None:
    language = Language.draw(2, generator)
    sequences, truth = language.write(400, generator)
    first, second, third = sequences[1, 7, :3].tolist()
    by_hand = language.present[1, first].log_softmax(-1)[second]
    assert float(truth[1, 7, 0]) == pytest.approx(float(by_hand), abs=1e-6)
    by_hand = (language.present[1, second] + language.previous[1, first]).log_softmax(-1)[third]
    assert float(truth[1, 7, 1]) == pytest.approx(float(by_hand), abs=1e-6)
    same, other = language.shifted(0.0, generator), language.shifted(1.0, generator)
    assert torch.equal(same.present, language.present)
    assert abs(float((other.present * language.present).mean())) < 0.2
    assert torch.equal(language.select(torch.tensor([1, 1])).previous, language.previous[[1, 1]])


def test_tables_are_normal_with_standard_deviation_three_halves(generator: torch.Generator) -> None:
    """Within five standard deviations, ``sqrt(2 / n)`` for a mean of n squares, ``sqrt(96 / n)`` for fourth powers."""
    language = Language.draw(50, generator)
    for table in (language.present, language.previous):
        square, fourth, root = table.double().square().mean(), table.double().pow(4).mean(), table.numel() ** 0.5
        assert float(square) / 2.25 == pytest.approx(1, abs=5 * 2**0.5 / root)
        assert float(fourth / square**2) == pytest.approx(3, abs=5 * 96**0.5 / root)


def test_losses_and_excess_by_hand(generator: torch.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    tasks = texts(3, generator)
    losses, excess = [], []
    for i in range(3):
        model = Decoder(SIZES).double()
        model.load_state_dict({name: p[i] for name, p in tasks.params.items()})
        rows, test = tasks.data["sequences"][i, 4:8], tasks.data["test"][i]
        losses.append(F.cross_entropy(model(rows[:, :-1]).flatten(0, 1), rows[:, 1:].flatten()))
        own = F.cross_entropy(model(test[:, :-1]).flatten(0, 1), test[:, 1:].flatten())
        excess.append(own + tasks.data["truth"][i].mean())
    laws.assert_close(tasks.loss(tasks.params, steps(tasks, 1)), torch.stack(losses).detach(), 1e-12)
    laws.assert_close(tasks.excess(tasks.params), torch.stack(excess).detach(), 1e-12)
    monkeypatch.setattr(module, "CHUNK", 2)
    laws.assert_close(tasks.excess(tasks.params), torch.stack(excess).detach(), 1e-12)
    laws.must_fail(laws.assert_close, tasks.loss(tasks.params, steps(tasks, 2)), torch.stack(losses).detach(), 1e-3)


def test_the_future_is_hidden_from_the_model(generator: torch.Generator) -> None:
    tasks = texts(1, generator)
    sequences = tasks.data["sequences"].clone()
    sequences[..., 10] = (sequences[..., 10] + 1) % VOCABULARY
    other = replace(tasks, data={**tasks.data, "sequences": sequences})
    outputs = [t.outputs(tasks.params, steps(tasks)) for t in (tasks, other)]
    assert outputs[0].shape == (1, 4, LENGTH, VOCABULARY)
    difference = (outputs[0] - outputs[1]).abs().amax((0, 1, 3))
    assert bool((difference[:10] == 0).all()) and bool((difference[10:] > 0).any())


def test_models_without_adapters_are_those_with_adapters_that_do_nothing(generator: torch.Generator) -> None:
    tasks = texts(2, generator)
    params = {name: torch.zeros_like(p) if name.endswith(".B") else p for name, p in tasks.params.items()}
    plain = replace(tasks, model=structure(replace(SIZES, rank=0)))
    weights = {name: p for name, p in params.items() if not is_adapter(name)}
    terms = sum(p.shape[-1] for p in weights.values() if p.ndim == 3)  # of every product in turn; signs are random
    outputs, loss = plain.outputs(weights, steps(tasks)), tasks.loss(params, steps(tasks))
    rounding = tolerances.cross_entropy(tolerances.summed(terms), outputs, loss)
    laws.assert_close(plain.loss(weights, steps(tasks)), loss, rounding)
    laws.must_fail(laws.assert_close, tasks.loss(tasks.params, steps(tasks)), plain.loss(weights, steps(tasks)), 1e-3)


def test_pre_training_is_adam_with_linear_decay(generator: torch.Generator) -> None:
    tasks, count = texts(2, generator), 5
    rule, params = Adam(0.01), tasks.params
    state = rule.init(params, tasks.symmetry)
    for number in range(count):
        leaves = {name: p.detach().requires_grad_() for name, p in params.items()}
        loss = tasks.loss(leaves, steps(tasks, number))
        gradients = dict(zip(leaves, torch.autograd.grad(loss.sum(), list(leaves.values())), strict=True))
        proposal, state = rule(Observation(params, gradients, loss.detach(), steps(tasks, number)), state)
        params = axpy(1 - number / count, proposal.update, params)
    laws.params_close(adam(tasks, 0.01, count), params, 1e-12)
    laws.must_fail(laws.params_close, adam(tasks, 0.011, count), params, 1e-4)


def test_pre_trained_models_know_their_own_language_best(generator: torch.Generator) -> None:
    sizes = replace(SIZES, layers=1, points=512, test=64, shift=1.0)
    sizes = replace(sizes, pretraining_steps=80, pretraining_batch=32, pretraining_lr=0.02)
    state = generator.get_state()
    before = pretrained(replace(sizes, pretraining_steps=0), 3, generator)
    generator.set_state(state)
    models = pretrained(sizes, 3, generator)
    assert torch.equal(models.language.present, before.language.present)
    assert bool((models.excess < before.excess - 0.3).all())
    adapting = shifted(sizes, models, is_adapter, generator)
    assert bool((adapting.excess(adapting.params) > models.excess + 0.1).all())
    chosen = models.select(torch.tensor([2, 0]))
    assert torch.equal(chosen.params["token"], models.params["token"][[2, 0]])
    assert torch.equal(chosen.excess, models.excess[[2, 0]])


REFUSALS: list[tuple[dict[str, Any], str]] = [
    ({"heads": 3}, "2 layers of width 64 with 3 heads make no transformer: give 1 or more of each, and a width that is "
     "a multiple of the heads"),
    ({"layers": 0}, "0 layers of width 64 with 4 heads make no transformer: give 1 or more of each, and a width that "
     "is a multiple of the heads"),
    ({"rank": 65}, "rank 65 does not fit width 64: choose 1 to 64"),
    ({"batch": 9, "points": 8}, "batch 9 does not fit 8 points: choose 1 to 8"),
    ({"points": 8}, "pretraining_batch 16 does not fit 8 points: choose 1 to 8"),
    ({"test": 0}, "test 0 must be 1 or more, pretraining_steps 600 0 or more"),
    ({"shift": 1.5}, "shift 1.5 is not possible: choose 0 to 1"),
]  # fmt: skip


@pytest.mark.parametrize(("options", "text"), REFUSALS, ids=str)
def test_refusals(options: dict[str, Any], text: str) -> None:
    with pytest.raises(UserError) as error:
        Sizes(**options)
    assert str(error.value) == text
