"""Models that cannot move are refused by everything that would move them, and stay as they are."""

import warnings
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import distributed, nn

import meta_teleport as mt
from meta_teleport.errors import UserError
from meta_teleport.symmetry.groups import PositiveScaling
from meta_teleport.symmetry.requirements import require_movable
from meta_teleport.symmetry.site import Site


def mlp() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))


def compiled_in_place() -> nn.Module:
    model = mlp()
    model.compile()
    return model


def with_first(first: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    """The model with another first layer."""
    return lambda: nn.Sequential(first(), nn.ReLU(), nn.Linear(6, 3))


class Forwarding(nn.Module):
    """A wrapper that has the attributes of what it wraps, as adapters have."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def __getattr__(self, name: str) -> object:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self._modules["inner"], name)


def compiled_in_part() -> nn.Module:
    return torch.compile(nn.Linear(4, 6))


def compiled_in_place_in_part() -> nn.Module:
    layer = nn.Linear(4, 6)
    layer.compile()
    return layer


def sharded(mark: str) -> Callable[[], nn.Module]:
    """A parameter with the attribute that tells those of sharded models."""

    def build() -> nn.Module:
        model = mlp()
        setattr(model[2].weight, mark, ())
        return model

    return build


def parallel(model: nn.Module) -> nn.Module:
    return nn.parallel.DistributedDataParallel(model)


def fully_sharded(model: nn.Module, **options: bool) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # one process has nothing to shard
        from torch.distributed.fsdp import FullyShardedDataParallel

        return FullyShardedDataParallel(model, device_id=torch.device("cpu"), **options)


def quantised() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.ao is deprecated, and in use
        return torch.ao.nn.quantized.dynamic.Linear(4, 6)


REFUSED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "compiled": (
        lambda: torch.compile(mlp()),
        "the model is compiled: pass the module that was given to torch.compile (model._orig_mod)",
    ),
    "compiled_in_place": (
        compiled_in_place,
        "the model is compiled in place: teleport before calling compile(), or undo it "
        "(model._compiled_call_impl = None)",
    ),
    "compiled_in_part": (
        with_first(compiled_in_part),
        "module '0' is compiled: put back the module that was given to torch.compile (model.0._orig_mod)",
    ),
    "compiled_in_place_in_part": (
        with_first(compiled_in_place_in_part),
        "module '0' is compiled in place: teleport before calling compile(), or undo it",
    ),
    "compiled_inside": (
        lambda: Forwarding(torch.compile(mlp())),
        "module 'inner' is compiled: put back the module that was given to torch.compile (model.inner._orig_mod)",
    ),
    "parallel": (
        lambda: parallel(mlp()),
        "the model is wrapped in DistributedDataParallel: pass the module that was given to it (model.module)",
    ),
    "parallel_in_part": (
        with_first(lambda: parallel(nn.Linear(4, 6))),
        "module '0' is wrapped in DistributedDataParallel: put back the module that it wraps (model.0.module)",
    ),
    "fully_sharded": (lambda: fully_sharded(mlp()), "the model is sharded over processes: gather the model, or"),
    "fully_sharded_by_name": (
        lambda: fully_sharded(mlp(), use_orig_params=True),
        "the model is sharded over processes: gather the model, or teleport before sharding",
    ),
    "fully_sharded_in_part": (
        with_first(lambda: fully_sharded(nn.Linear(4, 6))),
        "module '0' is sharded over processes: gather the model, or teleport before sharding",
    ),
    "placed": (sharded("placements"), "parameter '2.weight' is sharded over processes: gather the model, or"),
    "local": (sharded("_local_shards"), "parameter '2.weight' is sharded over processes: gather the model, or"),
    "meta": (lambda: mlp().to("meta"), "parameter '0.weight' has no numbers yet (meta device): initialize the model"),
    "lazy": (with_first(lambda: nn.LazyLinear(6)), "parameter '0.weight' has no numbers yet (meta device)"),
    "quantised": (with_first(quantised), "the model is quantised: teleport the float model, then quantise it"),
    "half": (lambda: mlp().half(), "parameter '0.weight' is float16: keep the parameters in float32 (model.float())"),
    "frozen": (lambda: mlp().requires_grad_(False), "the model has no trainable parameters: set requires_grad"),
}
SYMMETRY = mt.Symmetry(
    (
        Site(
            "hidden",
            PositiveScaling(6),
            (mt.View.along("0.weight", (6, 4), 0), mt.View.along("0.bias", (6,), 0)),
            (mt.View.along("2.weight", (3, 6), 1),),
        ),
    )
)
DOORS: dict[str, Callable[[nn.Module], object]] = {
    "find_symmetries": lambda model: mt.find_symmetries(model, torch.ones(5, 4)),
    "verify": lambda model: mt.verify(model, SYMMETRY, torch.ones(5, 4)),
    "manual": lambda model: mt.Symmetry.manual(model, {"hidden": ("scaling", ["0.weight", "0.bias"], ["2.weight"])}),
    "teleport": lambda model: mt.teleport(model, SYMMETRY, "balanced"),
    "TeleportedOptimizer": lambda model: mt.TeleportedOptimizer(
        torch.optim.SGD(model.parameters(), lr=0.1), model, SYMMETRY, "balanced", [1]
    ),
}


@pytest.fixture(scope="module", autouse=True)
def alone() -> Iterator[None]:
    """A group of one process, in which models can be wrapped."""
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


def numbers(model: nn.Module) -> dict[str, torch.Tensor]:
    """The parameters that have numbers."""
    return {
        name: p.detach().clone()
        for name, p in model.named_parameters()
        if not p.is_meta and not nn.parameter.is_lazy(p)
    }  # fmt: skip


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("kind", REFUSED)
def test_refused_everywhere_and_left_as_it_is(kind: str, door: str) -> None:
    build, message = REFUSED[kind]
    torch.manual_seed(0)
    model = build()
    before = numbers(model)
    with pytest.raises(UserError) as refused:
        DOORS[door](model)
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)
    after = numbers(model)
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)


@pytest.mark.parametrize("door", DOORS)
def test_plain_models_pass(door: str) -> None:
    assert DOORS[door](mlp()) is not None


def test_remedies_are_remedies() -> None:
    whole, place = torch.compile(mlp()), compiled_in_place()
    place._compiled_call_impl = None
    for model in (whole._orig_mod, parallel(mlp()).module, place):
        require_movable(model)


def test_a_frozen_base_may_be_of_half_precision() -> None:
    class Adapted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.base = nn.Linear(6, 5).to(torch.bfloat16).requires_grad_(False)
            self.down, self.up = nn.Linear(6, 2, bias=False), nn.Linear(2, 5, bias=False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.base(x.to(self.base.weight.dtype)).to(x.dtype) + self.up(self.down(x))

    model, x = Adapted(), torch.randn(3, 6)
    symmetry = mt.find_symmetries(model, x)
    assert [(site.name, site.parameters) for site in symmetry.sites] == [("down", ("down.weight", "up.weight"))]
    assert mt.verify(model, symmetry, x) < 1e-9
    assert mt.teleport(model, symmetry, "balanced").accepted
