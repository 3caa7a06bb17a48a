"""Models that cannot be trained side by side: the true reason, and errors of one's own as they are."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn

import meta_teleport as mt
from meta_teleport.params import functional

ADAM = partial(torch.optim.Adam, lr=1e-3)


class Recurrent(nn.Module):
    """The last output of a recurrent layer."""

    def __init__(self, kind: type[nn.RNNBase]) -> None:
        super().__init__()
        self.layer, self.head = kind(3, 4, batch_first=True), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(x)[0][:, -1])


class Mistaken(nn.Module):
    """Fails in the program of its author."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        raise RuntimeError("my own mistake")


class Looking(Mistaken):
    """Looks at numbers, for which there is no rule under vmap."""

    def forward(self, x: Tensor) -> Tensor:
        h = self.layer(x)
        return h * float(h.sum().item() > 0)


def spectral(wrap: Callable[[nn.Module], nn.Module]) -> Callable[[], nn.Module]:
    return lambda: nn.Sequential(wrap(nn.Linear(3, 4)), nn.Linear(4, 2))


BUILDS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], str]] = {
    **{
        kind.__name__: (partial(Recurrent, kind), (1, 5, 6, 3), f"'layer' is a recurrent layer \\({kind.__name__}\\)")
        for kind in (nn.LSTM, nn.GRU, nn.RNN)
    },
    "batch norm": (
        lambda: nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4, momentum=None), nn.Linear(4, 2)),
        (1, 5, 3),
        "'1' averages over all batches \\(momentum=None; give it a momentum\\)",
    ),
    "spectral": (spectral(nn.utils.parametrizations.spectral_norm), (1, 5, 3), "is under spectral_norm"),
    "hooked": (spectral(nn.utils.spectral_norm), (1, 5, 3), "'0' is under spectral_norm"),
    "looking": (Looking, (1, 5, 3), r"calling \.item\(\)"),
}


@pytest.mark.parametrize("name", BUILDS)
def test_what_vmap_does_not_allow_is_named_with_the_remedy(name: str) -> None:
    build, shape, reason = BUILDS[name]
    inputs, labels = torch.randn(shape, generator=torch.Generator().manual_seed(0)), torch.zeros(1, 5).long()
    with pytest.raises(mt.UserError, match=f"vmap does not allow it: .*{reason}.*train such networks in separate runs"):
        mt.Ensemble(build, [0, 1], [ADAM]).step(inputs, labels)
    model = build()
    params = {key: torch.stack([p.detach()] * 2) for key, p in model.named_parameters()}
    with pytest.raises(mt.UserError, match=f"{type(model).__name__} cannot run for many parameters at once"):
        functional(model)(params, inputs.expand(2, *shape[1:]))


def test_a_mistake_in_a_module_of_ones_own_keeps_its_traceback() -> None:
    with pytest.raises(RuntimeError, match="my own mistake") as caught:
        mt.Ensemble(Mistaken, [0, 1], [ADAM]).step(torch.ones(1, 5, 3), torch.zeros(1, 5).long())
    assert caught.traceback[-1].name == "forward" and str(caught.traceback[-1].path) == __file__


def test_inputs_that_do_not_fit_are_said_to() -> None:
    build = partial(nn.Linear, 7, 2)
    with pytest.raises(mt.UserError, match=r"inputs of shape \(5, 3\) do not fit the model: mat1 and mat2"):
        mt.Ensemble(build, [0, 1], [ADAM]).step(torch.ones(1, 5, 3), torch.zeros(1, 5).long())


def test_sparse_embeddings_are_refused_and_dense_ones_run() -> None:
    tokens, labels = torch.arange(5).unsqueeze(0), torch.zeros(1, 5).long()
    dense = mt.Ensemble(lambda: nn.Sequential(nn.Embedding(10, 4), nn.Linear(4, 2)), [0, 1], [ADAM])
    assert dense.step(tokens, labels).isfinite().all()
    with pytest.raises(mt.UserError, match="'0' has sparse gradients, which cannot be stacked: make it with sparse=F"):
        mt.Ensemble(lambda: nn.Sequential(nn.Embedding(10, 4, sparse=True), nn.Linear(4, 2)), [0, 1], [ADAM])
