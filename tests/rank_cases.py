"""Training by two processes, each on batches of its own, and by one process on the batches of both."""

import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import network_cases
import store_group  # noqa: F401  (the backend of this name)
import torch
import torch.distributed as dist
from network_cases import LINEAR, RELU, Batch, Network, parameters
from rule_cases import trained
from torch import Tensor, nn
from torch.multiprocessing.spawn import ProcessException
from torch.nn.parallel import DistributedDataParallel
from torch.optim import SGD

import meta_teleport as mt
from meta_teleport.errors import UserError
from meta_teleport.optimizers.learned_optimizer import LearnedOptimizer
from meta_teleport.optimizers.teleported import TeleportedOptimizer
from meta_teleport.teleportation.objectives import Loss, Sharpness, gradient_norm
from meta_teleport.teleportation.ranks import pooled

STEPS = 6
Weights = dict[str, Tensor]
Batches = Callable[[int], Batch]


class Here:
    """One of two processes (rank 0 or 1), or the one that sees the batches of both (rank None)."""

    def __init__(self, rank: int | None) -> None:
        self.rank = rank
        self.group = None if rank is None else dist.group.WORLD

    def batch(self, network: Network, step: int) -> Batch:
        both = [network.batch(2 * step + rank) for rank in (0, 1)]
        joint = tuple(torch.cat(tensors) for tensors in zip(*both, strict=True))
        return joint if self.rank is None else both[self.rank]  # type: ignore[return-value]

    def generator(self) -> torch.Generator:
        return torch.Generator().manual_seed(self.rank or 0)

    def wrapped(self, model: nn.Module) -> nn.Module:
        return model if self.rank is None else DistributedDataParallel(model)

    def summed(self, model: nn.Module) -> None:
        """Averages gradients by hand."""
        for p in model.parameters():
            if self.rank is not None and p.grad is not None:
                dist.all_reduce(p.grad)
                p.grad /= 2


def train(here: Here, network: Network, model: nn.Module, optimizer: Any, by_hand: bool = False) -> Weights:
    """Made first and wrapped afterwards, as trainers do."""
    called = model if by_hand else here.wrapped(model)
    for step in range(STEPS):
        optimizer.zero_grad()
        loss = network_cases.loss(called, here.batch(network, step))
        loss.backward()
        if by_hand:
            here.summed(model)
        optimizer.report(loss=loss)
        optimizer.step()
    return parameters(model)


def learned(here: Here, by_hand: bool = False, **options: Any) -> Weights:
    model = RELU.build()
    group = here.group if by_hand else None
    optimizer = trained(every=2, **options).optimizer(model, symmetry=RELU.symmetry, process_group=group)
    return train(here, RELU, model, optimizer, by_hand)


def given_losses(here: Here) -> Weights:
    model = LINEAR.build()
    optimizer = trained(every=2).optimizer(model, symmetry=LINEAR.symmetry)
    called = here.wrapped(model)
    for step in range(STEPS):
        optimizer.step(network_cases.loss(called, here.batch(LINEAR, step)))
    return parameters(model)


def closures(here: Here, backtracking: bool) -> Weights:
    model, rule = RELU.build(), trained("gd", every=2, lr=3.0)
    rule.backtracking = backtracking
    optimizer = rule.optimizer(model, symmetry=RELU.symmetry)
    called = here.wrapped(model)
    for step in range(STEPS):

        def closure(step: int = step) -> Tensor:
            optimizer.zero_grad()
            loss = network_cases.loss(called, here.batch(RELU, step))
            loss.backward()
            return loss

        optimizer.step(closure)
    return parameters(model)


def twice_differentiated(loss: Loss, params: Weights) -> Tensor:
    """The gradient norm, as a function of one's own: its slope takes second derivatives."""
    return gradient_norm(loss, params)


def teleported(here: Here, objective: Any, schedule: Any = 2, shown: bool = False, by_hand: bool = False) -> Weights:
    model = RELU.build()
    base = SGD(model.parameters(), 0.05, momentum=0.9)
    drawn = iter(range(100, 200))
    own = {} if shown else {"loss": network_cases.loss, "batches": lambda: here.batch(RELU, next(drawn))}
    optimizer = TeleportedOptimizer(
        base,
        model,
        RELU.symmetry,
        objective,
        schedule,
        size=0.5,
        imbalance=float("inf"),
        generator=here.generator(),
        process_group=here.group if by_hand else None,
        **own,
    )
    weights = train(here, RELU, model, optimizer, by_hand)
    accepted = [r.step for r in optimizer.teleports if r.accepted]
    return {**weights, "accepted": torch.tensor(accepted, dtype=torch.float64)}


SCENES: dict[str, Callable[[Here], Weights]] = {
    "learned": learned,
    "learned, averaged by hand": lambda here: learned(here, by_hand=True),
    "learned, step(loss)": given_losses,
    "learned, closures": lambda here: closures(here, backtracking=False),
    "learned, backtracking": lambda here: closures(here, backtracking=True),
    "gradient norm": lambda here: teleported(here, "gradient_norm"),
    "gradient norm, averaged by hand": lambda here: teleported(here, "gradient_norm", by_hand=True),
    "second derivatives": lambda here: teleported(here, twice_differentiated),
    "sharpness": lambda here: teleported(here, Sharpness(directions=2)),
    "sharpness, drawn": lambda here: teleported(here, "sharpness", [2]),
    "random": lambda here: teleported(here, "random"),
    "balanced": lambda here: teleported(here, "balanced"),
    "rule": lambda here: teleported(here, trained(every=2)),
    "rule that is shown": lambda here: teleported(here, trained(every=2), shown=True),
}
"""What two processes do bitwise alike, and one process, on the batches of both, to rounding."""

BY_THE_FIRST: dict[str, Callable[[Here], Weights]] = {
    "plateau": lambda here: teleported(here, "random", mt.Plateau(1, threshold=0.3)),
    "budget": lambda here: teleported(here, "random", mt.Budget(1, share=1e-3)),
}
"""What two processes do bitwise alike, when the first one says so."""


def alone(rank: int) -> Weights:
    """Models of one's own, for as many steps as one likes, in a program of many processes."""
    model = RELU.build(rank)
    learned = trained(every=2).optimizer(model, symmetry=RELU.symmetry)
    for step in range(2 + 3 * rank):
        learned.step(network_cases.loss(model, RELU.batch(step)))
    base = SGD(model.parameters(), 0.05)
    other = TeleportedOptimizer(base, model, RELU.symmetry, "balanced", mt.Plateau(1, threshold=0.9))
    for step in range(2 + 2 * rank):
        other.zero_grad()
        loss = network_cases.loss(model, RELU.batch(step))
        loss.backward()
        other.report(loss=loss)
        other.step()
    return {**parameters(model), "accepted": torch.tensor([sum(r.accepted for r in other.teleports)])}


def refusals() -> list[str]:
    """What is said of a model that is sharded over the processes."""
    from torch.distributed.fsdp import fully_shard

    model = RELU.build()
    fully_shard(model)
    makers: list[Callable[[], Any]] = [
        lambda: LearnedOptimizer(trained(), model, RELU.symmetry),
        lambda: TeleportedOptimizer(SGD(model.parameters(), 0.1), model, RELU.symmetry, "balanced", 2),
    ]
    said = []
    for make in makers:
        try:
            make()
            said.append("")
        except UserError as error:
            said.append(str(error))
    return said


def pools(rank: int) -> list[Any]:
    """Sums of 3 and 5 terms; of none and 4; of none at all."""
    here = [(torch.full((2,), 3.0 + 2 * rank), 3 + 2 * rank), (torch.ones(3), 4) if rank else None, None]
    return pooled(here, [torch.zeros(2), torch.zeros(3), torch.zeros(1)], dist.group.WORLD)


def work(rank: int, folder: str, backend: str) -> None:
    """One of two processes: does everything, and leaves what came of it in a file."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    wait = timedelta(seconds=60)  # one that waits in vain fails
    dist.init_process_group(backend, f"file://{folder}/meeting", timeout=wait, rank=rank, world_size=2)
    try:
        found: dict[str, Any] = {name: scene(Here(rank)) for name, scene in {**SCENES, **BY_THE_FIRST}.items()}
        found |= {"alone": alone(rank), "refusals": refusals(), "pools": pools(rank), "backend": backend}
        torch.save(found, Path(folder) / f"{rank}.pt")
    finally:
        dist.destroy_process_group()


def found_by_both(folder: Path, backends: Sequence[str] = ("gloo", "store")) -> Iterator[dict[str, Any]]:
    """Starts two processes and gives what each of them found.

    By the first of the backends that lives to the end: in some sandboxes gloo's threads abort the process that they
    are in, which no test of ours can catch.
    """
    for backend in backends:
        there = folder / backend
        there.mkdir()
        try:
            torch.multiprocessing.spawn(work, (str(there), backend), nprocs=2)
            break
        except ProcessException as died:
            if backend == backends[-1]:
                raise
            print(f"with {backend}: {died}")
    return (torch.load(there / f"{rank}.pt") for rank in (0, 1))
