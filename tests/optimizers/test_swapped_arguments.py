"""What people hand over in the wrong place: one line with the remedy, and nothing changed."""

from collections.abc import Callable
from itertools import cycle
from typing import Any

import pytest
import torch
from torch import nn

import meta_teleport as mt
from meta_teleport.evaluation.methods import baseline

X = torch.linspace(-1, 1, 12).reshape(3, 4)
MODEL = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
SYMMETRY = mt.find_symmetries(MODEL, X)
BASE = torch.optim.SGD(MODEL.parameters(), lr=0.1)


def loss(model: nn.Module, batch: torch.Tensor) -> torch.Tensor:
    return model(batch).square().mean()


def wrap(*arguments: Any, **settings: Any) -> mt.TeleportedOptimizer:
    return mt.TeleportedOptimizer(*arguments, **settings)


RANDOM = "objective 'random' draws elements: pass generator=torch.Generator().manual_seed(0)"
CASES: list[tuple[Callable[[], Any], str]] = [
    (lambda: wrap(BASE, MODEL, MODEL, "balanced"), "the symmetry is a Sequential: give what find_symmetries"),
    (lambda: wrap(BASE, MODEL, mt.Symmetry, "balanced"), "the symmetry is the class Symmetry: give what"),
    (lambda: wrap(BASE, SYMMETRY, MODEL, "balanced"), "the model is a Symmetry: give an instance of torch.nn.Module"),
    (lambda: wrap(BASE, nn.Linear, SYMMETRY, "balanced"), "the model is the class Linear: give an instance"),
    (lambda: wrap(MODEL, BASE, SYMMETRY, "balanced"), "the base optimizer is a Sequential: give an instance"),
    (lambda: wrap(torch.optim.SGD, MODEL, SYMMETRY), "the base optimizer is the class SGD: give an instance"),
    (lambda: wrap(BASE, MODEL, SYMMETRY, "balanced", "often"), "'often' is not a schedule: give a number of steps k"),
    (lambda: wrap(BASE, MODEL, SYMMETRY, "balanced", mt.Every), "is not a schedule: give a number of steps k"),
    (lambda: wrap(BASE, MODEL, SYMMETRY, "random", 2), RANDOM),
    (lambda: wrap(BASE, MODEL, SYMMETRY, "balansed"), "unknown objective 'balansed' (did you mean 'balanced'?)"),
    (lambda: wrap(BASE, MODEL, SYMMETRY, mt.Sharpness, loss=loss, batches=lambda: X), "unknown objective the class"),
    (lambda: mt.teleport(MODEL, MODEL, "balanced"), "the symmetry is a Sequential: give what find_symmetries"),
    (lambda: mt.teleport(SYMMETRY, MODEL, "balanced"), "the model is a Symmetry: give an instance of torch.nn.Module"),
    (lambda: mt.teleport(MODEL, SYMMETRY, "random"), RANDOM),
    (lambda: mt.teleport(MODEL, SYMMETRY, "whitend"), "unknown objective 'whitend' (did you mean 'whitened'?)"),
    (lambda: mt.find_symmetries(X, MODEL), "the model is a Tensor: give an instance of torch.nn.Module"),
    (lambda: mt.find_symmetries(nn.Linear, X), "the model is the class Linear: give an instance"),
    (lambda: mt.verify(MODEL, X, SYMMETRY), "the symmetry is a Tensor: give what find_symmetries"),
    (lambda: mt.verify(SYMMETRY, MODEL, X), "the model is a Symmetry: give an instance"),
    (lambda: mt.load("factor"), "there is no rule 'factor' (did you mean 'factors'?): give a run folder"),
    (lambda: mt.load("nope"), "or one of this package's: factors, classification"),
    (lambda: baseline("adem", {}, torch.Generator()), "there is no baseline 'adem' (did you mean 'adam'?): choose one"),
    (lambda: baseline("adam+ascend", {}, torch.Generator()), "(did you mean 'adam+ascent'?)"),
    (lambda: baseline("lbfgs+random", {}, torch.Generator()), "there is no baseline 'lbfgs+random'"),
]


@pytest.mark.parametrize(("call", "message"), CASES, ids=[message[:40] for _, message in CASES])
def test_one_line_names_cause_and_remedy(call: Callable[[], Any], message: str) -> None:
    before = [parameter.detach().clone() for parameter in MODEL.parameters()]
    with pytest.raises(mt.UserError) as caught:
        call()
    assert message in str(caught.value) and "\n" not in str(caught.value)
    assert all(torch.equal(a, b) for a, b in zip(before, MODEL.parameters(), strict=True))


def test_batches_that_have_come_to_their_end() -> None:
    for batches in (iter([X]), cycle([X])):
        optimizer = wrap(BASE, MODEL, SYMMETRY, "gradient_norm", loss=loss, batches=batches.__next__)
        assert optimizer.teleport().accepted
    assert optimizer.teleport().drift < 1e-4
    optimizer = wrap(BASE, MODEL, SYMMETRY, "gradient_norm", loss=loss, batches=iter([]).__next__)
    before = [parameter.detach().clone() for parameter in MODEL.parameters()]
    with pytest.raises(mt.UserError, match=r"batches\(\) has no batch left: let it go on for ever") as caught:
        optimizer.teleport()
    assert "\n" not in str(caught.value) and optimizer.teleports == []
    assert all(torch.equal(a, b) for a, b in zip(before, MODEL.parameters(), strict=True))
