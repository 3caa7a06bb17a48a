"""How far the outputs of a model move along its symmetry: written independently of the check that detection makes."""

import copy
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._pytree import tree_map_only

from meta_teleport.symmetry.groups import Permutation, PositiveScaling, SignFlips
from meta_teleport.symmetry.site import Site
from meta_teleport.tracing.trace import Examples, arguments

SEED, NOISE = 7, 0.05


def drifts(
    model: nn.Module,
    inputs: Examples,
    sites: tuple[Site, ...],
    trials: int = 20,
    alone: bool = True,
    dtype: torch.dtype = torch.float64,
    modes: tuple[bool, ...] = (False, True),
) -> dict[str, float]:
    """The largest ``||f(g.w) - f(w)|| / ||f(w)||`` over elements, modes and outputs: of each site by name (if
    ``alone``), and of all at once. Where training is evaluation, bit by bit, one of them is tried."""
    subject = Subject(model, inputs, dtype, {name for site in sites for name in site.parameters})
    generator = torch.Generator().manual_seed(11)
    before = {mode: subject.outputs(subject.params, mode) for mode in modes}
    assert all(bool(tensor.norm() > 0) for tensors in before.values() for tensor in tensors), "an output is zero"
    if len(modes) == 2 and all(map(torch.equal, before[False], before[True])):
        modes = (False,)
    worst: dict[str, float] = {}
    singles = {site.name: (site,) for site in sites} if alone else {}
    for name, together in {**singles, "all": sites}.items():
        for _ in range(trials):
            moved = subject.params
            for site in together:
                moved = site.act(moved, element(site, generator, dtype))
            for mode in modes:
                pairs = zip(subject.outputs(moved, mode), before[mode], strict=True)
                worst[name] = max(worst.get(name, 0.0), *(float((a - b).norm() / b.norm()) for a, b in pairs))
    return worst


class Subject:
    """A copy of a model with all parameters, and the buffers that are to move, shaken (zeros hide what is done to
    them), and its inputs."""

    def __init__(self, model: nn.Module, inputs: Examples, dtype: torch.dtype, moved: set[str]) -> None:
        self.model = copy.deepcopy(model).to(dtype)
        args = arguments(inputs)
        self.args, self.kwargs = tree_map_only(Tensor, lambda t: t.to(dtype) if t.is_floating_point() else t, args)
        generator = torch.Generator().manual_seed(3)
        self.trained = {name for name, _ in self.model.named_parameters()}
        self.params = {
            name: p.detach() + NOISE * torch.randn(p.shape, generator=generator).to(dtype) * p.detach().abs().mean()
            + (0 if bool(p.any()) else NOISE * torch.randn(p.shape, generator=generator).to(dtype))
            for name, p in self.model.named_parameters()
        }  # fmt: skip
        self.buffers = {name: b.clone() for name, b in self.model.named_buffers()}
        for name in moved & self.buffers.keys():
            b = self.buffers.pop(name)
            noise = 0.3 * torch.randn(b.shape, generator=generator).to(dtype)
            self.params[name] = b * noise.exp() if bool((b > 0).all()) else b + noise

    def outputs(self, params: dict[str, Tensor], training: bool) -> list[Tensor]:
        """The tensors of floats that the model returns in a mode, with the same random numbers every time."""
        self.model.train(training)
        buffers = {name: b.clone() for name, b in {**self.buffers, **params}.items() if name not in self.trained}
        params = {name: p for name, p in params.items() if name in self.trained}
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(SEED)
            numpy_state = np.random.get_state()
            np.random.seed(SEED)
            returned = functional_call(self.model, {**params, **buffers}, self.args, self.kwargs)
            np.random.set_state(numpy_state)
        return [tensor for tensor in leaves(returned) if tensor.is_floating_point()]


def element(site: Site, generator: torch.Generator, dtype: torch.dtype = torch.float64) -> Tensor:
    """A random element: factors between 1/2 and 2, ``1 + 0.6 u v^T / k`` with signs u and v, any permutation, signs."""
    group, shape = site.group, (*site.group.blocks, site.group.k)
    if isinstance(group, Permutation):
        return torch.rand(shape, generator=generator).argsort(-1)
    if isinstance(group, SignFlips):
        return 2 * torch.randint(2, shape, generator=generator).to(dtype) - 1
    if isinstance(group, PositiveScaling):
        return 2 ** (2 * torch.rand(shape, generator=generator, dtype=dtype) - 1)
    u, v = (torch.randint(2, shape, generator=generator).to(dtype) * 2 - 1 for _ in range(2))
    return torch.eye(group.k, dtype=dtype) + 0.6 * u.unsqueeze(-1) * v.unsqueeze(-2) / group.k


def leaves(returned: Any) -> list[Tensor]:
    """All tensors in what a model returns; caches of keys and values are none."""
    if isinstance(returned, Tensor):
        return [returned]
    values = returned.values() if isinstance(returned, dict) else returned
    if not isinstance(values, (list, tuple)) and not isinstance(returned, dict):
        values = vars(returned).values() if hasattr(returned, "__dataclass_fields__") else ()
    return [tensor for value in values for tensor in leaves(value)]
