"""Absurd sizes are refused before anything of that size is made."""

import resource
from typing import Any

import pytest
import torch

import meta_teleport as mt
from meta_teleport.bounds import COUNT, TENSOR, TOTAL, Bounded, require_memory
from meta_teleport.learned.serialization import build
from meta_teleport.registry import construct
from meta_teleport.rules.rule import shapes_of
from meta_teleport.tasks.family import TaskFamily

FAMILIES: list[tuple[str, dict[str, Any], str]] = [
    ("Regression", {"depth": 10**9}, "do not make a network: width >= 1, depth from 2 to 999"),
    ("Regression", {"hidden": [1] * 5000}, "an MLP of 5001 layers is too deep"),
    ("Regression", {"width": "3"}, "Regression: width is '3', and that is no int"),
    ("Regression", {"noise": float("nan")}, "noise is nan, and that is no float"),
    ("Regression", {"hidden": [3, "x"]}, r"hidden is \[3, 'x'\], and that is no Sequence\[int\] | None"),
    ("Regression", {"labels": "owned"}, "labels is 'owned', and that is no Literal"),
    ("Factorization", {"outputs": 10**6}, "is too large: give 4,194,304 numbers at most"),
    ("Adapters", {"layers": 10**6}, "layers 1000000 is too much for a small transformer: give 100 at most"),
    ("FewShot", {"data": [1, 2]}, r"data is \[1, 2\], and that is no str | tuple"),
]
RULES: list[tuple[dict[str, Any], str]] = [
    ({"layers": 10**12}, "an LSTM of 1000000000000 layers is too deep"),
    ({"hidden_size": 10**7}, "these settings make tensors of [0-9,]+ MB and more: choose smaller sizes"),
    ({"hidden_size": 10**18}, "cannot be made|these settings make tensors"),
]


def peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


@pytest.mark.parametrize(("name", "arguments", "text"), FAMILIES)
def test_families(name: str, arguments: dict[str, Any], text: str) -> None:
    before = peak()
    with pytest.raises(mt.UserError, match=text):
        construct({"class_path": name, "init_args": arguments}, TaskFamily)
    assert peak() - before < 200


@pytest.mark.parametrize(("arguments", "text"), RULES)
def test_rules(arguments: dict[str, Any], text: str) -> None:
    tasks = mt.Regression(3, bias=True).sample(1, torch.Generator().manual_seed(0))
    before = peak()
    with pytest.raises(mt.UserError, match=text):
        build({"class_path": "LSTMUpdate", "init_args": arguments}, shapes_of(tasks.params, tasks.symmetry))
    assert peak() - before < 200


def test_what_is_made_is_measured_one_by_one_and_together() -> None:
    generator = torch.Generator().manual_seed(0)
    with Bounded() as bounded:
        assert torch.randn(2, 3, generator=generator, dtype=torch.float64).shape == (2, 3)
        assert bounded.bytes == 48 and bounded.left == COUNT - 1
        with pytest.raises(mt.UserError, match="tensors of 256 MB and more"):
            torch.empty(2 * TENSOR, dtype=torch.uint8)
    with Bounded(), pytest.raises(mt.UserError, match="choose smaller sizes"):
        for _ in range(2 * TOTAL // TENSOR):
            torch.empty(TENSOR // 4, device="meta")
    with Bounded(3), pytest.raises(mt.UserError, match="too many tensors"):
        for _ in range(4):
            torch.ones(1)
    assert torch.equal(torch.randn(2, generator=torch.Generator().manual_seed(1)), seeded_in_bounds())


def seeded_in_bounds() -> torch.Tensor:
    with Bounded():
        return torch.randn(2, generator=torch.Generator().manual_seed(1))


def test_tasks_that_no_memory_holds() -> None:
    require_memory(1, "3 tasks")
    with pytest.raises(mt.UserError, match="3 tasks need 1,048,576,000,000 MB, and this machine has"):
        require_memory(10**6 * 2**40, "3 tasks")
