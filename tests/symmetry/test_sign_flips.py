"""A manual site of signs in a network with tanh: verified, found false where it is, and Adam's state moved by it."""

import torch
from torch import nn

import meta_teleport as mt
from meta_teleport.optimizers.transport import moved_state

GENERATOR = torch.Generator()


def network(activation: nn.Module) -> tuple[nn.Module, mt.Symmetry]:
    model = nn.Sequential(nn.Linear(4, 6), activation, nn.Linear(6, 3)).double()
    return model, mt.Symmetry.manual(model, {"hidden": ("sign_flips", ["0.weight", "0.bias"], ["2.weight"])})


def test_signs_pass_through_tanh_and_not_through_sigmoid() -> None:
    x = torch.randn(5, 4, generator=GENERATOR.manual_seed(0)).double()
    assert mt.verify(*network(nn.Tanh()), x) < 1e-14
    assert mt.verify(*network(nn.Sigmoid()), x) > 1e-2


def test_the_state_of_adam_moves_along() -> None:
    """Adam from g.w is where Adam from w is, moved: weights and both moments."""
    x = torch.randn(5, 4, generator=GENERATOR.manual_seed(0)).double()
    signs = torch.tensor([[1.0, -1, -1, 1, 1, -1]]).double()
    here, symmetry = network(nn.Tanh())
    there, _ = network(nn.Tanh())
    start = {name: p.detach().unsqueeze(0) for name, p in here.named_parameters()}
    there.load_state_dict({name: p[0] for name, p in symmetry.act(start, [signs]).items()})
    states = []
    for model in (here, there):
        adam = torch.optim.Adam(model.parameters(), lr=0.1)
        for _ in range(3):
            adam.zero_grad()
            model(x).square().sum().backward()
            adam.step()
        states.append((adam, {p: name for name, p in model.named_parameters()}))
    (adam, names), (other, _) = states
    for tensor, value in moved_state(adam, names, symmetry, (signs[0],)):
        tensor.copy_(value)
    ours, theirs = (list(optimizer.state.values()) for optimizer in (adam, other))
    for key in ("exp_avg", "exp_avg_sq"):
        assert all(torch.allclose(a[key], b[key], rtol=1e-12, atol=0) for a, b in zip(ours, theirs, strict=True))
