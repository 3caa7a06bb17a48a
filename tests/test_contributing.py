"""The examples of CONTRIBUTING.md run as they stand, one after the other, as one program."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "CONTRIBUTING.md").read_text()
KINDS = (
    "A group",
    "A data-dependent action",
    "A rule",
    "A task family",
    "A detection operation",
    "A baseline",
    "A claim",
)


def test_every_kind_of_thing_has_its_files_and_an_example() -> None:
    sections = {s.partition("\n")[0]: s for s in TEXT.split("\n## ")[1:]}
    for kind in KINDS:
        assert len(re.findall("^```python$", sections[kind], re.MULTILINE)) == 1, kind
        assert re.search("^(One|A rule, and one) (file|class|folder|function|entry)", sections[kind], re.MULTILINE), (
            kind
        )


def test_the_examples_run(tmp_path: Path) -> None:
    blocks = re.findall(r"^```python\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
    checks = (
        "from meta_teleport.symmetry.groups import Permutation\n"
        "assert 'sign-descent' in evaluation.methods and 'lr' in evaluation.methods['sign-descent'].settings\n"
        "assert torch.allclose(tasks.loss(tasks.symmetry.act(tasks.params, (PositiveScaling(3).sample(4, generator="
        "torch.Generator(), dtype=torch.float64),)), step), tasks.loss(tasks.params, step), rtol=1e-12, atol=0)\n"
        "assert [site.group for site in mt.find_symmetries(model, torch.randn(5, 4)).sites] == [Permutation(8)]\n"
        "assert mt.verify(relu, doubled, torch.randn(5, 4)) < 1e-14\n"
        "change = {name: (moved[name] - params[name]).abs().max() for name in params}\n"
        "condition = torch.linalg.cond(torch.tanh(params['layers.0.weight'] @ x.mT)).max()\n"
        "size = torch.linalg.cond(g).max() * condition * 8 * torch.finfo(x.dtype).eps\n"
        "assert change['layers.1.weight'] > 1e-3 and (outputs(moved, x) - outputs(params, x)).abs().max() < 10 * size\n"
    )
    program = tmp_path / "examples.py"
    program.write_text("\n".join([*blocks, checks]))
    command = [sys.executable, "-W", "error", str(program), "--smoke", "--out", str(tmp_path / "out")]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "out" / "results.json").read_text())["family"] == "products"
