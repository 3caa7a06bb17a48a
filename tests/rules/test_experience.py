"""What a rule has met in training: stored with it, and held against what it is put to."""

import json
import warnings
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.optim import SGD

import meta_teleport as mt
from meta_teleport.cli.arguments import parse_evaluate
from meta_teleport.cli.main import main
from meta_teleport.equivariant.equivariant import Equivariant
from meta_teleport.learned.serialization import load, save
from meta_teleport.meta.config import TrainingConfig
from meta_teleport.meta.trainer import Trainer
from meta_teleport.registry import construct
from meta_teleport.rules.experience import WATCHED, Experience
from meta_teleport.runs.checkpoint import load_tensors, save_tensors

MLP = Experience(("Linear",), ("relu",), ("GL", "PositiveScaling"))


class Attending(nn.Module):
    """A block of a transformer on tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.norm = nn.Embedding(11, 8), nn.LayerNorm(8)
        self.query, self.key, self.value, self.out = (nn.Linear(8, 8, bias=False) for _ in range(4))
        self.mlp = nn.Sequential(nn.Linear(8, 12), nn.GELU(), nn.Linear(12, 11))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        h = self.embedding(tokens)
        q, k, v = (f(self.norm(h)).unflatten(-1, (2, 4)).transpose(1, 2) for f in (self.query, self.key, self.value))
        h = h + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return self.mlp(self.norm(h))


def convolutions() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 10)
    )


def classifier(activation: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Linear(8, 9), activation, nn.Linear(9, 3))


IMAGES, TOKENS, POINTS = torch.rand(2, 1, 8, 8), torch.arange(10).view(2, 5), torch.rand(6, 8)


def test_what_the_rules_of_this_package_have_met() -> None:
    assert load("factors").experience == MLP
    assert load("classification").experience == MLP._replace(groups=("PositiveScaling",))
    for name, kept in (("factors", lambda f: True), ("classification", lambda f: "mnist" not in json.dumps(f))):
        rule = load(name)
        assert rule.config is not None
        task = rule.config["task"]
        task["init_args"]["families"] = [f for f in task["init_args"]["families"] if kept(f)]
        families = construct(task, mt.TaskFamily).members
        tasks = [family.sample(1, torch.Generator().manual_seed(0)) for family in families]
        assert Experience.joined(Experience.of_tasks(t.params, t.symmetry) for t in tasks) == rule.experience


@pytest.mark.parametrize("name", ["factors", "classification"])
@pytest.mark.parametrize(
    ("build", "inputs", "missing"),
    [
        (convolutions, IMAGES, "BatchNorm2d, Conv2d"),
        (Attending, TOKENS, "Embedding, LayerNorm, gelu, sites with GL in blocks"),
        (lambda: classifier(nn.Tanh()), POINTS, "tanh"),
    ],
)
def test_what_a_rule_has_not_met_is_said_once(
    name: str, build: type[nn.Module], inputs: torch.Tensor, missing: str
) -> None:
    torch.manual_seed(0)
    model, rule = build(), load(name)
    with pytest.warns(UserWarning, match=f"this rule has never met {missing}.*: it was trained on Linear") as caught:
        optimizer = rule.optimizer(model, inputs)
    assert len(caught) == 1 and caught[0].filename == __file__
    assert "torch.optim.AdamW, alone or in mt.TeleportedOptimizer" in str(caught[0].message)
    optimizer.step(model(inputs).square().mean())


@pytest.mark.parametrize("name", ["factors", "classification"])
@pytest.mark.parametrize("activation", [nn.ReLU(), nn.LeakyReLU(0.1)])
def test_a_classifier_has_been_met(name: str, activation: nn.Module) -> None:
    load(name).optimizer(classifier(activation), POINTS)


def test_teleports_of_a_rule_between_the_steps_of_another_optimizer_are_warned_of_too() -> None:
    model = convolutions()
    with pytest.warns(UserWarning, match="has never met BatchNorm2d, Conv2d"):
        symmetry = mt.find_symmetries(model, IMAGES)
        mt.TeleportedOptimizer(SGD(model.parameters(), 0.1), model, symmetry, load("factors"), 2)


def test_parameters_outside_of_layers_count_by_their_dimensions() -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.matrix, self.cube = nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(2, 2, 2))
            self.frozen = nn.Parameter(torch.ones(2, 2, 2, 2), requires_grad=False)

    found = Experience.of_model(Own(), mt.Symmetry(()))
    assert found == Experience(("3-dimensional parameters", "Linear"), (), ())
    assert MLP.lacks(found) == ["3-dimensional parameters"]


def train(lr: float) -> None:
    torch.manual_seed(1)
    model, x, y = classifier(nn.ReLU()), torch.randn(64, 8), torch.randint(3, (64,))
    optimizer = load("factors").optimizer(model, x, lr=lr)
    for _ in range(WATCHED + 5):
        optimizer.step(F.cross_entropy(model(x), y))


def test_a_loss_that_does_not_fall_is_said_once() -> None:
    with pytest.warns(UserWarning, match=f"the loss was .* after {WATCHED} steps: .* does not suit") as caught:
        train(lr=0.0)
    assert len(caught) == 1 and caught[0].filename == __file__
    train(lr=1.0)


def test_training_and_files_keep_it(tmp_path: Path) -> None:
    rule = Equivariant(hidden_size=3)
    model = classifier(nn.Tanh())
    rule.optimizer(model, POINTS)  # one that has met nothing warns of nothing
    family = mt.Mixture([mt.Factorization(rank=2, inputs=5, outputs=3, batch=4), mt.Classification(hidden=[4])])
    Trainer(rule, family, TrainingConfig(tasks=2, window=2, horizon=2), seed=0)
    assert rule.experience == MLP
    save(rule, tmp_path, {"rule": {"class_path": "Equivariant", "init_args": {"hidden_size": 3}}}, 1)
    assert load(tmp_path).experience == MLP
    tensors, meta = load_tensors(tmp_path / "rule.safetensors")
    del meta["experience"]
    save_tensors(tmp_path / "rule.safetensors", tensors, meta)
    assert load(tmp_path).experience is None
    save_tensors(tmp_path / "rule.safetensors", tensors, {**meta, "experience": {"colours": ["red"]}})
    with pytest.raises(mt.UserError, match="its header does not describe a rule"):
        load(tmp_path)


def test_the_old_name_is_understood(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with pytest.warns(DeprecationWarning, match="the rule 'pretrained' is called 'factors'"):
        old = mt.load("pretrained")
    for name, tensor in mt.load("factors").state_dict().items():
        assert torch.equal(tensor, old.state_dict()[name])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert main(["info", "pretrained"]) == 0
        assert parse_evaluate(["pretrained"]).folder == Path("runs/evaluation-factors")
    assert main(["train", "--out", "pretrained"]) == 2
    assert "pretrained is the name of a rule" in capsys.readouterr().err
