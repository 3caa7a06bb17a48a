"""Processes that train one model together, each on batches of its own (data parallelism).

They stay together as long as all of them do the same to the same weights. So whatever a rule or a search reads from a
batch is the mean over all: with process r of R at a batch with loss L_r and units h (n_r of them as columns),

    L = 1/R sum_r L_r          grad L = 1/R sum_r grad L_r          gram = (sum_r h_r h_r^T) / (sum_r n_r)

which for batches of one size is what one process would see of all of them. The first two are the means that
``DistributedDataParallel`` takes of gradients. What is chosen by a clock or by chance is process 0's.
"""

import gc
from collections.abc import Callable, Sequence
from copy import deepcopy
from typing import Any, Optional

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from meta_teleport.params import Params, flatten, unflatten
from meta_teleport.teleportation.objectives import Loss

Processes = Optional["dist.ProcessGroup"]


class Ranks:
    """The processes that train ``model`` together: those of ``process_group``, or else of the
    ``DistributedDataParallel`` that has parameters of the model; without one, this process alone.

    It is looked for when ``group`` is first read in a distributed program: a model is wrapped before its first step.
    A copy is of the same group if that was given; it is not pickled.
    """

    def __init__(self, model: nn.Module, process_group: Processes = None) -> None:
        self.model, self.given = model, process_group
        self._found, self._known = process_group, process_group is not None

    def __deepcopy__(self, memo: dict[int, Any]) -> "Ranks":
        return Ranks(deepcopy(self.model, memo), self.given)

    def __reduce__(self) -> Any:
        return Ranks, (self.model,)

    @property
    def group(self) -> Processes:
        """None where this process is alone."""
        if not self._known and dist.is_available() and dist.is_initialized():
            self._found, self._known = _group_around(self.model), True
        return self._found if self._found is not None and self._found.size() > 1 else None


def mean(x: Tensor, group: Processes) -> Tensor:
    """The mean over the processes, of the shape of ``x``; a constant."""
    if group is None:
        return x
    x = x.detach().clone()
    dist.all_reduce(x, group=group)
    return x.div_(group.size())


def pooled(
    sums: Sequence[tuple[Tensor, int] | None], blanks: Sequence[Tensor], group: Processes
) -> list[tuple[Tensor, int] | None]:
    """Sums and how many terms they have, each added up over the processes; None where no process has one.

    ``blanks`` are zeros in the shapes of the sums. Added in float64.
    """
    if group is None:
        return list(sums)
    known = [(blank, 0) if pair is None else pair for pair, blank in zip(sums, blanks, strict=True)]
    if not known:
        return []
    counts = known[0][0].new_tensor([n for _, n in known], dtype=torch.float64)
    flat = torch.cat([counts, *(total.double().flatten() for total, _ in known)])
    dist.all_reduce(flat, group=group)
    counts, *totals = flat.split([len(known), *(total.numel() for total, _ in known)])
    pairs = zip(totals, counts.tolist(), blanks, strict=True)
    return [(total.view_as(blank).to(blank.dtype), int(n)) if n else None for total, n, blank in pairs]


def shared(loss: Loss, group: Processes) -> Loss:
    """The mean of the losses of all processes, as a function of parameters that are the same in all; it and its
    derivatives of any order are. Every process must evaluate and differentiate it alike."""
    if group is None:
        return loss

    def evaluate(params: Params) -> Tensor:
        own = unflatten(_Spread.apply(flatten(params), group), params)
        return _Gathered.apply(loss(own), group) / group.size()

    return evaluate


def decided(decide: Callable[[], bool], model: nn.Module, group: Processes) -> bool:
    """What process 0 decides; the others are not asked."""
    if group is None:
        return decide()
    answer = next(model.parameters()).new_tensor(float(group.rank() == 0 and decide()))
    return bool(_broadcast(answer, group))


def agreed(fault: str, like: Tensor, group: Processes) -> str:
    """The reason not to go on, if any process has one."""
    found = mean(like.new_tensor(float(bool(fault))), group)
    return fault or ("another process refused it" if bool(found) else "")


def equal(tensors: Sequence[Tensor], group: Processes) -> list[Tensor]:
    """Process 0's."""
    return list(tensors) if group is None else [_broadcast(t.detach().clone(), group) for t in tensors]


def synchronize(generator: torch.Generator | None, like: Tensor, group: Processes) -> None:
    """Brings the generator into the state of process 0's."""
    if generator is not None and group is not None:
        state = generator.get_state()
        generator.set_state(_broadcast(state.to(like.device), group).to(state.device))


def _broadcast(x: Tensor, group: "dist.ProcessGroup") -> Tensor:
    x = x.contiguous()
    dist.broadcast(x, src=dist.get_global_rank(group, 0), group=group)
    return x


def _group_around(model: nn.Module) -> Processes:
    own = set(model.parameters())
    for found in gc.get_objects():  # trainers wrap the model, or what has it inside, after the optimizer is made
        if issubclass(type(found), DistributedDataParallel) and not own.isdisjoint(found.parameters()):
            return found.process_group
    return None


class _Spread(torch.autograd.Function):
    """Numbers that all processes have, on their way into each one's own loss: the gradient is the sum of all."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Any) -> Tensor:
        ctx.group = group
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return _Gathered.apply(gradient, ctx.group), None


class _Gathered(torch.autograd.Function):
    """The sum over the processes, which all of them have: so they have its gradient, each for its own term."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Any) -> Tensor:
        ctx.group = group
        x = x.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(x, group=group)
        return x

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return _Spread.apply(gradient, ctx.group), None
