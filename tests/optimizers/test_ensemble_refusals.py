"""Models that cannot be trained side by side: the true reason, and errors of one's own as they are."""

import pickle
from collections.abc import Callable
from copy import deepcopy
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


class Functional(nn.Module):
    """Looks rows up with sparse gradients, by no module that says so."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Parameter(torch.ones(10, 4)), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(nn.functional.embedding(x, self.table, sparse=True))


def embedded() -> nn.Module:
    return nn.Sequential(nn.Embedding(10, 4), nn.Linear(4, 2))


def replace(copies: mt.Ensemble) -> None:
    copies.params["1.weight"] = torch.zeros(4, 2, 4).requires_grad_()


def reshape(copies: mt.Ensemble) -> None:
    copies.params["1.weight"].data = torch.zeros(4, 3, 4)


def convert(copies: mt.Ensemble) -> None:
    copies.params["1.bias"].data = copies.params["1.bias"].data.double()


def add(copies: mt.Ensemble) -> None:
    copies.model.append(nn.Linear(2, 2))


def make_sparse(copies: mt.Ensemble) -> None:
    copies.model[0].sparse = True


CHANGES: dict[str, tuple[Callable[[], nn.Module], Callable[[mt.Ensemble], None], str]] = {
    "replaced": (embedded, replace, r"params\['1\.weight'\] was replaced"),
    "reshaped": (embedded, reshape, r"params\['1\.weight'\] was replaced"),
    "converted": (embedded, convert, r"params\['1\.bias'\] was replaced"),
    "added": (embedded, add, r"'2\.weight' is new since"),
    "sparse": (embedded, make_sparse, "'0' has sparse gradients, which cannot be stacked"),
    "sparse function": (Functional, lambda copies: None, "a gradient is sparse, which cannot be stacked"),
}


@pytest.mark.parametrize("settings", [[ADAM, ADAM], [ADAM, mt.per_copy(ADAM)]], ids=["stacked", "per copy"])
@pytest.mark.parametrize("change", CHANGES)
def test_copies_that_would_not_be_trained_are_refused_before_any_has_moved(
    change: str, settings: list[partial[torch.optim.Adam]]
) -> None:
    build, apply, reason = CHANGES[change]
    copies = mt.Ensemble(build, [0, 1], settings)
    inputs, labels = torch.randint(10, (1, 5)), torch.zeros(1, 5, dtype=torch.long)
    if build is embedded:
        copies.step(inputs, labels)
    apply(copies)
    before = copies.state()
    with pytest.raises(mt.UserError, match=reason) as caught:
        copies.step(inputs, labels)
    assert "\n" not in str(caught.value)
    after = copies.state()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


@pytest.mark.parametrize("copied", [deepcopy, lambda x: pickle.loads(pickle.dumps(x))], ids=["copy", "pickle"])
def test_a_copy_of_the_ensemble_goes_on(copied: Callable[[mt.Ensemble], mt.Ensemble]) -> None:
    copies = mt.Ensemble(embedded, [0, 1], [ADAM, mt.per_copy(ADAM)])
    inputs, labels = torch.randint(10, (1, 5)), torch.zeros(1, 5, dtype=torch.long)
    copies.step(inputs, labels)
    other, before = copied(copies), copies.state()
    assert torch.equal(other.step(inputs, labels), copies.step(inputs, labels))
    after, ours = other.state(), copies.state()
    assert all(torch.equal(after[name], tensor) for name, tensor in ours.items())
    assert not torch.equal(after["params.1.weight"], before["params.1.weight"])
