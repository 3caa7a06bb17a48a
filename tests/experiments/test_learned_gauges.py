"""The experiment that puts learned teleports over plain Adam: its rule, and the whole of it on toy sizes."""

import json
import subprocess
import sys
from functools import partial
from pathlib import Path

import laws
import pytest
import torch

from experiments.factors.learned_gauges import learned
from experiments.factors.teleported_training import Method, train
from meta_teleport.equivariant.equivariant import Equivariant
from meta_teleport.rules.classical import Adam
from meta_teleport.rules.rule import initialized
from meta_teleport.tasks.factorization import Factorization


def test_a_rule_without_elements_over_adam_is_adam(generator: torch.Generator) -> None:
    tasks = Factorization(rank=3, inputs=6, outputs=5, points=64, batch=8).sample(3, generator, dtype=torch.float64)
    lr = torch.tensor([0.01, 0.03, 0.1], dtype=torch.float64)
    with initialized(0):
        rule = Equivariant("adam", horizon=20, every=5).double()

    def trained(method: Method) -> dict[str, torch.Tensor]:
        return train(tasks, method, lr, 20, tasks.relative_error).params

    over = Method(partial(learned, rule, 40), arguments={"beta2": 0.95})
    laws.params_close(trained(over), trained(Method(Adam, arguments={"beta2": 0.95})), 1e-12)
    torch.nn.init.constant_(rule.element_head.bias, 0.5)
    laws.must_fail(laws.params_close, trained(over), trained(Method(Adam, arguments={"beta2": 0.95})), 1e-6)


PARTS = {
    "factorization": ("noisy", "beta2 = 0.95", {"learned rule", "learned rule without teleports"}),
    "lora": ("adapters", "beta2 = 0.999", {"teleports of adapters, transported", "learned rule of adapters"}),
}


@pytest.mark.parametrize("part", PARTS)
def test_smoke(part: str, tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-W",
        "error",
        "-m",
        "experiments.factors.learned_gauges",
        "--smoke",
        "--out",
        str(tmp_path),
    ]
    subprocess.run([*command, part], check=True, capture_output=True, cwd=tmp_path)
    content = json.loads((tmp_path / "learned_gauges.json").read_text())
    regime, scope, own = PARTS[part]
    assert set(content[part]["results"][regime][scope]) >= {"Adam", "learned teleports, transported", *own}
    assert (tmp_path / "learned_gauges.png").stat().st_size > 0
